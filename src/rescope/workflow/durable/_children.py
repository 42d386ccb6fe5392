"""What one attempt of a function has started, so that a restart finds it again.

Each gets an id below its parent's. When the attempt is made again, after a crash, what it starts is looked up among
what was started before: the first one of that function with the same arguments that was not asked for yet. So the
order in which tasks start them doesn't matter. An attempt that follows one that failed finds what that one has started
too, but for what failed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from dbos import DBOS

from rescope.workflow.durable._packing import same

if TYPE_CHECKING:
    from dbos import WorkflowStatus

__all__ = ["FAILED", "Children", "below"]

FAILED = frozenset({"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})


def below(parent: str) -> str:
    """Give the beginning of the ids of all that a workflow starts. No id that holds a user's key begins like it."""
    return f">{len(parent)}:{parent}/"


@final
class Children:
    """What an attempt has started."""

    def __init__(self, parent: str, attempt: int) -> None:
        self._prefix = below(parent)
        self._mine = f"{self._prefix}{attempt}."
        self._looking = asyncio.Lock()
        self._known: list[WorkflowStatus] | None = None
        self._started = 0
        self.over = False

    async def id_for(self, name: str, args: tuple[object, ...]) -> str:
        """Give the id of the next one of that function with these arguments: one that is there already, or a new one.

        To be asked in no step of the engine.
        """
        async with self._looking:
            if self._known is None:
                self._known = await self._look()
        for status in self._known:
            if status.name == name and status.input is not None and same(status.input["args"], args):
                self._known.remove(status)
                return status.workflow_id
        self._started += 1
        return f"{self._mine}{self._started}:{name}"

    async def _look(self) -> list[WorkflowStatus]:
        before = await DBOS.list_workflows_async(workflow_id_prefix=self._prefix, load_output=False)
        mine = [status for status in before if status.workflow_id.startswith(self._mine)]
        numbers = (status.workflow_id.removeprefix(self._mine).partition(":")[0] for status in mine)
        self._started = max(map(int, numbers), default=0)
        return [status for status in before if status in mine or status.status not in FAILED]
