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
from asyncio import AbstractEventLoop, CancelledError, Event, Future, Task, current_task, get_running_loop, sleep
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from rescope._flight import Flight

__all__ = [
    "Cancelled",
    "Event",
    "alarm",
    "current_task",
    "finish",
    "launch",
    "now",
    "open_nurseries",
    "pressure",
    "pressure_gauge",
    "scope_cancelled",
    "start",
    "warm",
]

Cancelled = CancelledError

# A task that starts at once (3.12) costs next to nothing when its coroutine doesn't suspend.
_EAGER = sys.version_info >= (3, 12)

# The loop keeps a timer that was cancelled for as long as it would have run, and the timer keeps its context. In ours
# there is the closing, and all that failed in it.
_EMPTY = Context()

_Task: Any = Task


class Job:
    """A task that keeps what came out of it, whatever it is: out of an asyncio task, an exit would end the loop."""

    __slots__ = ("_error", "_fresh", "_task", "_waiter", "done", "value")

    def __init__(self, task: Task[None] | None = None) -> None:
        self._task = cast("Task[None]", task)
        self._error: BaseException | None = None
        self._waiter: Future[None] | None = None
        self._fresh = not _EAGER
        self.value: Any = None
        self.done = False

    async def keep(self, fn: Callable[[], Awaitable[object]]) -> None:
        try:
            self.value = await fn()
        except BaseException as exc:
            self._error = exc
        self.end()

    def begin(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        options: dict[str, Any] = {"eager_start": True} if _EAGER else {}
        self._task = Task(main(), loop=get_running_loop(), **options)
        if not _EAGER:
            self._task.add_done_callback(partial(self._begin_again, main))

    def _begin_again(self, main: Callable[[], Coroutine[Any, Any, None]], _: object) -> None:
        """Begin anew where the task was cancelled before its first step (3.11): closers run, cancelled or not."""
        if not self.done:
            self.begin(main)
            get_running_loop().call_soon(self._task.cancel)

    def end(self) -> None:
        self.done = True
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def waiter(self) -> Awaitable[None]:
        """Give what to await: the next turn of the loop for a task that has not begun, which may well end in it."""
        if self._fresh:
            self._fresh = False
            return sleep(0)
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
    job = Job()
    job.begin(partial(job.keep, fn))
    return job


def launch(main: Callable[[], Coroutine[Any, Any, None]], /) -> Job | None:
    if not _EAGER:
        job = Job()
        job.begin(main)
        return job
    task = _Task(main(), loop=get_running_loop(), eager_start=True)
    return None if task.done() else Job(task)


async def finish(job: Job, flight: Flight, seconds: float | None = None, /) -> bool:
    if job.done:
        return True
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        job.wake()

    timer = None if seconds is None else get_running_loop().call_later(seconds, give_up, context=_EMPTY)
    try:
        try:
            while not (job.done or late):
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


def pressure() -> float:
    return pressure_gauge()()


def pressure_gauge() -> Callable[[], float]:
    return cast("Task[Any]", current_task()).cancelling


_alarmed: set[AbstractEventLoop] = set()
"""The loops that have an alarm set."""


def alarm(seconds: float, ring: Callable[[], float | None], /) -> None:
    loop = get_running_loop()
    if loop not in _alarmed:
        _alarmed.difference_update([one for one in _alarmed if one.is_closed()])
        _set_alarm(loop, seconds, ring)


def _set_alarm(loop: AbstractEventLoop, seconds: float, ring: Callable[[], float | None]) -> None:
    _alarmed.add(loop)
    loop.call_later(seconds, _ring, loop, ring, context=_EMPTY)


def _ring(loop: AbstractEventLoop, ring: Callable[[], float | None]) -> None:
    _alarmed.discard(loop)
    seconds = ring()
    if seconds is not None:
        _set_alarm(loop, seconds, ring)


def scope_cancelled() -> bool:
    from anyio import current_effective_deadline

    return current_effective_deadline() == -math.inf


def open_nurseries() -> None:
    """None can be: a task group belongs to no task."""


def warm() -> None:
    from anyio import CancelScope

    CancelScope(shield=True)
