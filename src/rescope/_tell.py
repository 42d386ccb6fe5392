"""Telling `on_event` what happens, and the log what could not be raised."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rescope.events import EventKind, ScopeEvent, ScopePath
from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from rescope.exceptions import ResourceCleanupError


class Teller:
    """An `on_event` callback and the place in the tree of scopes that it is told about."""

    __slots__ = ("callback", "path")

    def __init__(self, callback: Callable[[ScopeEvent], object], path: ScopePath) -> None:
        self.callback = callback
        self.path = path

    def below(self, name: str | None) -> Teller:
        """Give the teller of a child scope."""
        return Teller(self.callback, ScopePath((*self.path, name or "scope"), self.path))

    def tell(
        self,
        kind: EventKind,
        resource: str | None = None,
        *,
        elapsed: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Call back with one event. Whatever the callback raises is logged, so that it disturbs nothing."""
        try:
            self.callback(ScopeEvent(kind, self.path, resource, time.time(), elapsed, error))
        except BaseException as exc:
            log(f"on_event raised at {kind!r}, and the scope goes on: {reason(exc)}")


def log(message: str) -> None:
    """Log at ERROR on the logger `rescope`, without a traceback: its exceptions may show what a value looks like."""
    import logging

    logging.getLogger("rescope").error(message)


def tell_beside(raised: BaseException, kept: ResourceCleanupError) -> None:
    """Say a cleanup error that something more urgent keeps from being raised: as a note on that, and in the log."""
    raised.add_note(f"rescope: {kept.message}")
    log(f"{kept.message} (not raised, because of a {type(raised).__name__})")
