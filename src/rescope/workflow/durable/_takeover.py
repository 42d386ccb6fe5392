"""Taking over what others left that died, or what was lost here: when the application opens, and every few seconds.

Recovery as the engine has it goes by the executor's name: a process takes what is pending under its own name for its
own, also where another process of that name is at it. So here each process has a name of its own, and proof is asked
for that the other one is dead: its lock.

What is pending under our own name, and runs nowhere in this process, was lost: its task was cancelled, or has met an
error of the database that the engine doesn't know how to wait for. It is taken up when it is seen so for some seconds,
as what is just beginning, or has just ended, looks the same.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Final, final

from dbos import DBOS

from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from dbos import WorkflowStatus

    from rescope.workflow.durable._locks import Locks

__all__ = ["TakeOver"]

_PICKED_UP_WITHIN: Final = 0.2  # seconds; the engine's own queue for that is asked once a second
_LOST_AFTER: Final = 5.0  # seconds
_log = logging.getLogger("rescope")


@final
class TakeOver:
    """What one process does about the work of others that died.

    `application` is its name for the engine, `functions` the names of those that this process knows, `executor` its
    own name, for which it holds the lock, `running` gives the ids of what it is at.
    """

    def __init__(
        self,
        application: str,
        functions: Container[str],
        locks: Locks,
        executor: str,
        running: Callable[[], set[str]],
    ) -> None:
        self._application = application
        self._functions = functions
        self._locks = locks
        self._executor = executor
        self._running = running
        self._missed: dict[str, float] = {}  # since when
        self._queue = f"rescope-{application}"
        self._told: set[str] = set()

    async def begin(self) -> None:
        """Make the queue that what is taken over goes through, and take over what is there."""
        await DBOS.register_queue_async(self._queue, polling_interval_sec=_PICKED_UP_WITHIN)
        await self._once()

    async def go_on(self, every: float) -> None:
        """Take over again every so many seconds, until cancelled. Failures are told, and tried again."""
        while True:
            await asyncio.sleep(every)
            try:
                await self._once()
            except Exception as exc:
                _log.warning("what others may have left of %r can't be taken over: %s", self._application, reason(exc))

    async def _once(self) -> None:
        await asyncio.to_thread(self._locks.take, self._executor)  # again, should it have got lost
        pending = await self._pending()
        executors = {status.executor_id for status in pending if status.executor_id is not None}
        executors |= await asyncio.to_thread(self._locks.left)
        for executor in executors - {self._executor}:
            if await asyncio.to_thread(self._locks.take, executor):
                try:
                    await self._resume_all_of(executor)
                finally:
                    await asyncio.to_thread(self._locks.let_go, executor)
        await self._resume_lost(status.workflow_id for status in pending if status.executor_id == self._executor)

    async def _resume_lost(self, mine: Iterable[str]) -> None:
        now = monotonic()
        missed = {id: self._missed.get(id, now) for id in set(mine) - self._running()}  # noqa: A001
        lost = [id for id, since in missed.items() if now - since > _LOST_AFTER]  # noqa: A001
        self._missed = {id: since for id, since in missed.items() if id not in lost}  # noqa: A001
        for id in lost:  # noqa: A001
            _log.warning("%s did not come to its end in this process, and is taken up again", id)
        await self._resume(lost)

    async def _resume(self, ids: list[str]) -> None:
        if ids:
            await DBOS.resume_workflows_async(ids, queue_name=self._queue)

    async def _resume_all_of(self, executor: str) -> None:
        left = await self._pending(executor)
        await self._resume([status.workflow_id for status in left if status.name in self._functions])
        unknown = {status.name for status in left if status.name not in self._functions} - self._told
        if unknown:
            self._told |= unknown
            names = ", ".join(sorted(unknown))
            _log.warning("work of %r can't go on, as this process does not know %s", self._application, names)

    async def _pending(self, executor: str | None = None) -> list[WorkflowStatus]:
        return await DBOS.list_workflows_async(
            status="PENDING",
            executor_id=executor,
            application_name=self._application,
            load_input=False,
            load_output=False,
        )
