"""Waiting until something has happened, on any backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from rescope._backends import backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from rescope._backends import Event

T = TypeVar("T")


class Bell:
    """Lets those who wait look again. It can be made where no loop runs yet, and be rung where none does any more."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Event] = []

    def ring(self) -> None:
        """Let all who wait look again."""
        for event in self._waiting:
            event.set()

    async def until(self, look: Callable[[], T | None]) -> T:
        """Wait until `look()` gives something, and give that."""
        while (found := look()) is None:
            event = backend().Event()
            self._waiting.append(event)
            try:
                await event.wait()
            finally:
                self._waiting.remove(event)
        return found

    async def within(self, seconds: float, look: Callable[[], T | None], missing: Callable[[], str]) -> T:
        """Wait for so long at most; then raise `TimeoutError`, which says what is missing."""
        from anyio import move_on_after

        with move_on_after(seconds):
            return await self.until(look)
        raise TimeoutError(missing())
