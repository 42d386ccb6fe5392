"""One record that was left behind, and what becomes of it in a pass of `recover`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

from rescope.workflow.journal._cleanups import find
from rescope.workflow.journal._records import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from rescope.workflow.store import Entry

__all__ = ["Left"]

PATIENCE: Final = 3.0  # seconds for which a pass waits for a retry
TRIES: Final = 3  # in one pass


@final
class Left:
    """One record that was left: `due` by the clock of the event loop, if it is worth waiting for in this pass."""

    def __init__(self, entry: Entry) -> None:
        self.item = read(entry)
        self.value: dict[str, Any] = entry.value
        self.version = entry.version
        found = find(self.item.cleanup)
        self.unknown = found is None
        self.clean: Callable[[Any], object] = found or _nothing
        self.tries = 0
        self.over = self.unknown  # whether this pass has done with it
        self.closed = False
        self.due = 0.0

    def wait(self, pause: float, now: float) -> None:
        """Let it be due after a pause, in this pass or in a later one."""
        self.due = now + pause
        if pause > PATIENCE or self.tries >= TRIES:
            self.over = True

    def failed(self, error: str) -> None:
        self.tries += 1
        self.item = replace(self.item, attempts=self.item.attempts + 1, error=error)

    def end(self) -> None:
        self.over = self.closed = True

    def record(self, next_try: float) -> dict[str, Any]:
        """Give what is to be written of a failure."""
        item = self.item = replace(self.item, next_try=next_try)
        return {**self.value, "attempts": item.attempts, "error": item.error, "next_try": next_try}


def _nothing(_: object) -> None:
    """Stand where a cleanup would that isn't known: it is never called."""
