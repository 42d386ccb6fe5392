"""asyncio and uvloop.

Two things can cancel the task that closes a scope, and one shield doesn't stop both. `task.cancel()` comes once, and
pierces anyio's shield; a cancelled anyio scope cancels again at every turn of the loop until the task leaves it, so
that absorbing without a shield would keep a core busy. Therefore closers run in a task of their own, where neither
reaches them, and the closing task only waits: it absorbs what comes, enters anyio's shield once something came (to
enter one each time would be waste), and raises what it caught when all is done. The very same exception: to
`uncancel()` and `cancel()` again would leak a stray cancellation out of `asyncio.timeout` on 3.11 and 3.12.
"""

from __future__ import annotations

import math
import sys
from asyncio import CancelledError, Event, Future, Task, current_task, get_running_loop
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._flight import Flight

__all__ = [
    "Cancelled",
    "Event",
    "current_task",
    "finish",
    "now",
    "open_nurseries",
    "pressure",
    "pressure_gauge",
    "scope_cancelled",
    "stance",
    "start",
    "warm",
]

Cancelled = CancelledError

# A task that starts at once (3.12) costs next to nothing when its coroutine doesn't suspend.
_EAGER = sys.version_info >= (3, 12)
_Task: Any = Task


class Job:
    """A task that keeps what came out of it, whatever it is: out of an asyncio task, an exit would end the loop."""

    __slots__ = ("_error", "_fn", "_task", "_waiter", "done", "value")

    _task: Task[None]

    def __init__(self, fn: Callable[[], Awaitable[object]]) -> None:
        self._fn = fn
        self._error: BaseException | None = None
        self._waiter: Future[None] | None = None
        self.value: Any = None
        self.done = False
        self._begin()

    def _begin(self) -> None:
        loop = get_running_loop()
        self._task = _Task(self._run(), loop=loop, eager_start=True) if _EAGER else Task(self._run(), loop=loop)
        if not self.done:
            self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            self.value = await self._fn()
        except BaseException as exc:
            self._error = exc
        self.done = True
        del self._fn
        if self._waiter is not None:
            self.wake()

    def _ended(self, _: object) -> None:
        """Begin anew where the task was cancelled before its first step (3.11): closers run, cancelled or not."""
        if not self.done:
            self._begin()
            get_running_loop().call_soon(self._task.cancel)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def waiter(self) -> Future[None]:
        self._waiter = get_running_loop().create_future()
        return self._waiter

    @property
    def asked(self) -> bool:
        return self._task.cancelling() > 0

    def cancel(self) -> None:
        self._task.cancel()

    def take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return error


def start(fn: Callable[[], Awaitable[object]], /) -> Job:
    return Job(fn)


async def finish(job: Job, flight: Flight, seconds: float | None = None, /) -> bool:
    if job.done:
        return True
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        job.wake()

    timer = None if seconds is None else get_running_loop().call_later(seconds, give_up)
    try:
        try:
            await job.waiter()
        except CancelledError as exc:
            from anyio import CancelScope

            flight.hold_off(exc, by_scope=_by_scope(exc))
            with CancelScope(shield=True):
                while not (job.done or late):
                    try:
                        await job.waiter()
                    except CancelledError as again:
                        flight.hold_off(again, by_scope=_by_scope(again))
    finally:
        if timer is not None:
            timer.cancel()
    return job.done


def _by_scope(exc: CancelledError) -> bool:
    """Tell a cancellation of anyio's, which will be delivered again, from a `task.cancel()`, which will not."""
    return str(exc).startswith(("Cancelled via cancel scope", "Cancelled by cancel scope"))


def now() -> float:
    return get_running_loop().time()


def stance() -> tuple[object, float, int]:
    task = cast("Task[Any]", current_task())
    return task, task.cancelling(), 0


def pressure() -> float:
    return pressure_gauge()()


def pressure_gauge() -> Callable[[], float]:
    return cast("Task[Any]", current_task()).cancelling


def scope_cancelled() -> bool:
    from anyio import current_effective_deadline

    return current_effective_deadline() == -math.inf


def open_nurseries() -> int:
    return 0


def warm() -> None:
    from anyio import CancelScope

    CancelScope(shield=True)
