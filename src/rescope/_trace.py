"""Where things were registered. It is recorded only while somebody wants to know: `RESCOPE_TRACE=1`, or a watcher."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rescope._resource import Resource


class Watcher(Protocol):
    """Who wants to know of what is lost."""

    def dropped(self, label: str, handles: Iterable[Resource[Any]], /) -> None:
        """Know that a scope is gone that still held these. A `ResourceWarning` has told so."""


class Trace:
    """Whether sites are recorded, and who watches."""

    on = os.environ.get("RESCOPE_TRACE", "") not in {"", "0"}
    watcher: Watcher | None = None


_PASSED_ON = {"rescope", "contextlib"}
_RUNNERS = {"anyio", "asyncio", "concurrent", "threading", "trio"}


def registered(handle: Resource[Any]) -> None:
    """Take note of where something is registered: at the line of the caller's that led to it, if there is one."""
    site = _site()
    if site is not None:
        handle._site = site


def site_of(handle: Resource[Any]) -> str | None:
    """Give the file, line and function in which it was registered, if that was recorded."""
    return getattr(handle, "_site", None)


def traced_name(handle: Resource[Any]) -> str:
    """Give its name, and where it was registered if that is known."""
    site = site_of(handle)
    return handle.name if site is None else f"{handle.name} (registered at {site})"


def _site() -> str | None:
    """Find the nearest line that is somebody's own. What a loop or a thread runs by itself has none."""
    frame: Any = sys._getframe(2)
    while (package := str(frame.f_globals.get("__name__")).partition(".")[0]) in _PASSED_ON:
        frame = frame.f_back
    if package in _RUNNERS:
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
