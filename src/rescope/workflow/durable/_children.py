"""What one attempt of a function has started, so that a restart finds it again.

Each gets an id below its parent's. When the attempt is made again, after a crash, what it starts is looked up among
what was started before: the first one of that function with the same arguments that was not asked for yet. So the
order in which tasks start them doesn't matter. An attempt that follows one that failed finds what that one has started
too, but for what failed.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, Final, final

from dbos import DBOS

from rescope.workflow.durable._packing import digest, same

if TYPE_CHECKING:
    from dbos import WorkflowStatus

__all__ = ["ENDED", "FAILED", "Children", "below", "started_by"]

FAILED: Final = frozenset({"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
ENDED: Final = FAILED | {"SUCCESS"}
_LONG: Final = 300  # characters; PostgreSQL can't index more than some 2700 bytes, and functions may start themselves


def below(parent: str) -> str:
    """Give the beginning of the ids of all that a workflow starts. No id that holds a user's key begins like it."""
    if len(parent) > _LONG:
        return f">{sha256(parent.encode()).hexdigest()}/"
    return f">{len(parent)}:{parent}/"


async def started_by(parent: str, *, load_input: bool) -> list[WorkflowStatus]:
    """List what a workflow has started without a key, in any of its attempts. To be asked in no step of the engine."""
    prefix = below(parent)
    found = await DBOS.list_workflows_async(workflow_id_prefix=prefix, load_input=load_input, load_output=False)
    # SQLite's LIKE, which the engine asks, takes a small letter for a capital one.
    return [status for status in found if status.workflow_id.startswith(prefix)]


@final
class Children:
    """What an attempt has started. `first`: it is the first one, and none was cut short before it."""

    def __init__(self, parent: str, attempt: int, *, first: bool) -> None:
        self.parent: Final = parent
        self._mine = f"{below(parent)}{attempt}."
        self._looking = asyncio.Lock()
        self._known: list[WorkflowStatus] | None = [] if first else None
        self._started = 0
        self.over = False

    async def id_for(self, name: str, args: tuple[object, ...]) -> str:
        """Give the id of the next one of that function with these arguments: one that is there already, or a new one.

        To be asked in no step of the engine.
        """
        known = await self._before()
        for status in known:
            if status.name == name and status.input is not None and same(status.input["args"], args):
                known.remove(status)
                return status.workflow_id
        self._started += 1
        # Should a process that was taken for dead go on, it counts too: so the same number is not enough.
        return f"{self._mine}{self._started}:{name}~{digest(args)}"

    async def running(self) -> bool:
        """Whether one of those that were there before has not ended. To be asked in no step of the engine."""
        return any(status.status not in ENDED for status in await self._before())

    async def _before(self) -> list[WorkflowStatus]:
        async with self._looking:
            if self._known is None:
                self._known = await self._look()
        return self._known

    async def _look(self) -> list[WorkflowStatus]:
        before = await started_by(self.parent, load_input=True)
        mine = [status for status in before if status.workflow_id.startswith(self._mine)]
        numbers = (status.workflow_id.removeprefix(self._mine).partition(":")[0] for status in mine)
        self._started = max(map(int, numbers), default=0)
        return [status for status in before if status in mine or status.status not in FAILED]
