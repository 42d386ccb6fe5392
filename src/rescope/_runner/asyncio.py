"""A run on asyncio or uvloop.

Main has a task of its own, and the supervisor another, on which the loop runs. Main is cancelled once, as by Ctrl-C
under `asyncio.run`, so that a `finally` in it may still await. When it is gone or given up, the supervisor sees off
what else runs on the loop, for a bounded time, where `asyncio.run` would wait for ever.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rescope._backends.asyncio import Job
from rescope._budget import MOMENT
from rescope._held import Held
from rescope._runner.stop import GLANCE, PATIENCE, seconds_from_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from rescope._runner.stop import Stop

_JOBS = {Job.keep.__code__, Held._batch.__code__}
"""What runs in a job: a close, which is not cancelled with the task that waits for it."""


class Run:
    """One run, on a loop of its own."""

    def __init__(self, stop: Stop, live: Callable[[], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
        self.stop = stop
        self.live = live
        self.loop = loop
        self.main: asyncio.Task[None] | None = None
        self.overdue: asyncio.Future[None] = loop.create_future()
        self.left: set[asyncio.Task[Any]] = set()
        self._timers: list[asyncio.TimerHandle] = []

    def drive(self) -> None:
        """Run it to its end, through what stops a loop halfway: an exit or interrupt outside of main, `loop.stop()`."""
        supervisor = self.loop.create_task(self._supervise(), name="rescope supervisor")
        while not supervisor.done():
            try:
                self.loop.run_until_complete(supervisor)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as exc:
                self.stop.escaped(exc)
                self.heed()

    async def _supervise(self) -> None:
        self.stop.wake = partial(self.loop.call_soon_threadsafe, self.heed)
        if not self.stop.begun:
            self.main = self.loop.create_task(self._keep(), name="main")
            await asyncio.wait({self.main, self.overdue}, return_when=asyncio.FIRST_COMPLETED)
            if self.overdue.done():
                await self.stop.close_over()
        for timer in self._timers:
            timer.cancel()
        await self._see_off()

    async def _keep(self) -> None:
        try:
            await self.live()
        except BaseException as exc:
            self.stop.error = exc

    def heed(self) -> None:
        """Do what the signals that came ask for."""
        self.stop.tell()
        if self.main is None or self.main.done():
            return
        if self.stop.forced:
            self.main.cancel()
            self._give_up()
        elif not self._timers:
            left = self.stop.left() or 0.0
            self._timers = [self.loop.call_later(left / 2, self._give_up), self.loop.call_later(left, self._force)]
            if not self.stop.ended:
                self.main.cancel()

    def _force(self) -> None:
        self.stop.force("the grace is over")
        self.heed()

    def _give_up(self) -> None:
        """Wait for main no longer, unless it closes its scope."""
        if self.stop.stuck() and not self.overdue.done():
            self.overdue.set_result(None)

    async def _see_off(self) -> None:
        """Cancel what still runs: strays, which have what is left of the grace; then those who had their time."""
        self.stop.begin()
        strays = {task for task in self._others() if task is not self.main and not _is_job(task)}
        await self._end(strays, self.stop.left)
        await self._end({task for task in self._others() if task is self.main}, seconds_from_now(PATIENCE))
        generators = self.loop.create_task(self.loop.shutdown_asyncgens(), name="async generators")
        await self._wait({generators}, self.stop.left)
        await self._end(self._others(), seconds_from_now(MOMENT))
        self.left = self._others()

    @staticmethod
    def _others() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    async def _end(self, tasks: set[asyncio.Task[Any]], left: Callable[[], float | None]) -> None:
        for task in tasks:
            task.cancel()
        await self._wait(tasks, left)

    @staticmethod
    async def _wait(tasks: set[asyncio.Task[Any]], left: Callable[[], float | None]) -> None:
        """Wait for tasks, at least a moment."""
        moment = seconds_from_now(MOMENT)
        while tasks and (seconds := max(left() or 0.0, moment())) > 0:
            _, tasks = await asyncio.wait(tasks, timeout=min(seconds, GLANCE))


def _is_job(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "cr_code", None) in _JOBS


def run(
    stop: Stop,
    live: Callable[[], Awaitable[None]],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> list[str]:
    """Run it; give the names of the tasks that did not end."""
    loop = new_loop()
    try:
        asyncio.set_event_loop(loop)
        run = Run(stop, live, loop)
        with _woken_by_signals(loop):
            run.drive()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    for task in run.left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is told by name
    return sorted(map(_name_of, run.left))


@contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Generator[None]:
    """Have the system wake the loop at a signal, as Python's handlers run only once it is awake.

    A signal that another thread gets doesn't wake it otherwise, nor one that comes just as it falls asleep. uvloop, and
    asyncio on Windows, see to that themselves.
    """
    if not isinstance(loop, asyncio.SelectorEventLoop):
        yield
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(0)
        writer.settimeout(0)
        loop.add_reader(reader, reader.recv, 4096)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(reader)


def _name_of(task: asyncio.Task[Any]) -> str:
    if _is_job(task):
        return "a closer"  # which, the scope has told
    coroutine = task.get_coro()
    return f"{task.get_name()} ({getattr(coroutine, '__qualname__', type(coroutine).__qualname__)})"
