"""trio.

A cancelled scope cancels at every checkpoint below it, and a shield stops it. Closers run in a system task of their own
all the same, so that one which does not end can be left behind, and so that a closer sees the same on both backends.
Nothing may escape a system task: trio would take it for a fault of its own and crash the run.
"""

from __future__ import annotations

import math
from contextvars import copy_context
from typing import TYPE_CHECKING

import trio
from trio import Cancelled, Event
from trio import current_time as now
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled, current_task, spawn_system_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


class Job:
    """A system task that keeps what came out of it.

    Its cancel scope lies around the whole of it: one that opened and closed within would break a manager that keeps a
    nursery or scope of its own open in between.
    """

    __slots__ = ("_error", "_fn", "_scope", "asked", "done", "ended", "value")

    def __init__(self, fn: Callable[[], Awaitable[object]]) -> None:
        self._fn = fn
        self.value: object = None
        self._error: BaseException | None = None
        self._scope = trio.CancelScope()
        self.ended = Event()
        self.done = False
        self.asked = False

    async def run(self) -> None:
        with self._scope:
            try:
                self.value = await self._fn()
            except BaseException as exc:
                self._error = exc
        del self._fn
        self.done = True
        self.ended.set()

    def end(self) -> None:
        """Nothing to do: `run` ends it."""

    def cancel(self) -> None:
        self.asked = True
        self._scope.cancel()

    def take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return error


def start(fn: Callable[[], Awaitable[object]], /) -> Job:
    job = Job(fn)
    spawn_system_task(job.run, context=copy_context())
    return job


launch = start


class _Alarm:
    """What to call after so many seconds of waiting, and then after twice as many, and so on."""

    seconds = math.inf
    ring: Callable[[], object]


_alarm = _Alarm()


async def finish(job: Job, flight: Flight, seconds: float | None = None, /) -> bool:
    if job.done:
        return True
    begun = now()
    deadline = math.inf if seconds is None else begun + seconds
    pause = _alarm.seconds
    if seconds == 0:  # the job has its first step; on asyncio it has had it by now
        await cancel_shielded_checkpoint()
        await cancel_shielded_checkpoint()
    while not job.done and now() < deadline:
        try:
            with trio.CancelScope(shield=True, deadline=min(deadline, begun + pause)):
                await job.ended.wait()
        except KeyboardInterrupt as exc:
            flight.interrupts += (exc,)
        if not job.done and now() >= begun + pause:
            _alarm.ring()
            pause *= 2
    try:
        await checkpoint_if_cancelled()
    except Cancelled as exc:
        flight.hold_off(exc, by_scope=True)
    return job.done


def pressure() -> float:
    return scope_cancelled()


def pressure_gauge() -> Callable[[], float]:
    return scope_cancelled


def alarm(seconds: float, ring: Callable[[], object], /) -> None:
    """Let those who wait in `finish` look in between: a timer would be one more task, and trio has nothing less."""
    _alarm.seconds, _alarm.ring = seconds, ring


def scope_cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf


def open_nurseries() -> int:
    return len(current_task().child_nurseries)


def warm() -> None:
    """Nothing is imported late here."""
