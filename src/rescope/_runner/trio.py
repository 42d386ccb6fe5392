"""A run on trio.

Main is the root task, in a cancel scope of its own. What can't be had here is an end of `trio.run` while a task ignores
its cancellation: so the watchdog is there as soon as main is gone, whether a signal came or not.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import current_trio_token, spawn_system_task

from rescope._runner.stop import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._runner.stop import Stop


class Run:
    """One run."""

    def __init__(self, stop: Stop, live: Callable[[], Awaitable[None]]) -> None:
        self.stop = stop
        self.live = live
        self.gone = trio.Event()
        self.body = trio.CancelScope()
        self.hurry = trio.Event()
        self.patience: trio.Event | None = None

    async def main(self) -> None:
        self.stop.wake = partial(current_trio_token().run_sync_soon, self.heed)
        if not self.stop.begun:
            try:
                with self.body:
                    await self.live()
            except BaseException as exc:
                self.stop.error = exc
            self.gone.set()
            self.hurry.set()
            if self.patience is not None:
                await self.patience.wait()
        self.stop.begin()
        self.stop.watch()

    def heed(self) -> None:
        """Do what the signals that came ask for."""
        self.stop.tell()
        if self.stop.forced or not self.stop.ended:
            self.body.cancel()
        if self.stop.forced:
            self.hurry.set()
        if self.patience is None and not self.gone.is_set():
            self.patience = trio.Event()
            spawn_system_task(self._wait_for_body, self.patience)
            spawn_system_task(self._force_in_time)

    async def _wait_for_body(self, done: trio.Event) -> None:
        """Have the scope closed over the body's head if it takes too long; then end, as `trio.run` would not."""
        with trio.move_on_after((self.stop.left() or 0.0) / 2):
            await self.hurry.wait()
        if self.stop.stuck():
            await self.stop.close_over()
            with trio.move_on_after(PATIENCE):
                await self.gone.wait()
            if not self.gone.is_set():
                self.stop.leave(["main"])
        done.set()

    async def _force_in_time(self) -> None:
        with trio.move_on_after(self.stop.left() or 0.0):
            await self.gone.wait()
        if not self.gone.is_set():
            self.stop.force("the grace is over")
            self.heed()


def run(stop: Stop, live: Callable[[], Awaitable[None]]) -> list[str]:
    """Run it; nothing is left, as `trio.run` waits for all of its tasks."""
    trio.run(Run(stop, live).main)
    return []
