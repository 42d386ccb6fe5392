"""The loops to measure on."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

NAMES = ("asyncio", "uvloop", "trio")


@dataclass(frozen=True, slots=True)
class Backend:
    """A loop, and what the work needs of it."""

    name: str
    pause: Callable[[], Awaitable[object]]
    """Wait for the loop to come round once."""
    sleep: Callable[[float], Awaitable[object]]
    apart: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[object]]
    """Run in a task of its own, behind a shield."""

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a program."""
        if self.name == "trio":
            ended: T = importlib.import_module("trio").run(main)
            return ended
        factory = importlib.import_module("uvloop").new_event_loop if self.name == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())


def installed() -> list[str]:
    """Give the names of the backends that can run here."""
    return [name for name in NAMES if importlib.util.find_spec(name)]


def backend(name: str) -> Backend:
    """Give a backend by its name."""
    return _trio() if name == "trio" else _asyncio(name)


def _asyncio(name: str) -> Backend:
    def apart(close: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[object]:
        return asyncio.shield(asyncio.create_task(close()))

    return Backend(name, lambda: asyncio.sleep(0), asyncio.sleep, apart)


def _trio() -> Backend:
    trio: Any = importlib.import_module("trio")

    async def apart(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close)

    return Backend("trio", trio.lowlevel.checkpoint, trio.sleep, apart)
