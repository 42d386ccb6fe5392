"""Threads that a run leaves behind, for which Python would wait at its end, however long."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from rescope._budget import MOMENT
from rescope._runner.stop import GLANCE, seconds_from_now

if TYPE_CHECKING:
    from rescope._runner.stop import Stop


def busy_threads(stop: Stop, before: set[threading.Thread]) -> list[str]:
    """Name the threads of this run that are still busy when there is no time left."""
    moment = seconds_from_now(MOMENT)
    while True:
        busy = [one for one in threading.enumerate() if one not in before and not (one.daemon or _idle(one))]
        seconds = max(moment(), (stop.left() or 0.0) if stop.first is not None else 0.0)
        if not busy or seconds <= 0:
            return [f"thread {one.name}" for one in busy]
        busy[0].join(min(seconds, GLANCE))


def _idle(thread: threading.Thread) -> bool:
    """Tell a thread of an executor that has nothing to do: Python ends it, and the processes it minds, at its end."""
    if getattr(thread, "pending_work_items", None) == {}:  # it minds a `ProcessPoolExecutor`
        return True
    frame = sys._current_frames().get(thread.ident or 0)
    module = frame and frame.f_globals.get("__name__")
    return frame is not None and (module, frame.f_code.co_name) == ("concurrent.futures.thread", "_worker")
