"""Saying that a close takes long, while it does.

Whoever waits for a close has it watched for as long. On asyncio all that are watched share one timer: to set one for
each would cost more than most closes do.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from rescope._backends import backend
from rescope._closer import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from rescope._closing import Closing
    from rescope._held import Held

    Watched: TypeAlias = "Closing | Held"


class Settings:
    """After how many seconds it is said first, and then at twice as many, and so on; `None`: never."""

    after: float | None = 5.0


def warn_when_slow(after: float | None) -> None:
    """Set after how many seconds a close that is still under way is warned of; it is 5 from the start, `None` is never.

    The WARNING goes to the logger `rescope`, and names what is still closing; it comes again after twice as long, four
    times as long, and so on. This is for the whole process, and for closes that begin from now on. A sync closer that
    blocks, blocks the warning too.
    """
    if after is not None:
        check_seconds(after, "after")
        if after == 0:
            msg = "`after` must be more than 0 seconds, or None for no warning"
            raise ValueError(msg)
    Settings.after = after


_watched: dict[int, Watched] = {}
_said: dict[int, tuple[Any, float]] = {}
"""For a watched close the resource of which it was said, and at how many seconds it is to be said again."""


def watch(closing: Watched) -> Callable[[], object] | None:
    """Watch a close from now on, until `unwatch` is called with it and what this gives."""
    if Settings.after is None:
        return None
    _watched[id(closing)] = closing
    return backend().alarm(Settings.after, _look)


def unwatch(closing: Watched, calm: Callable[[], object] | None) -> None:
    """Watch it no longer."""
    _watched.pop(id(closing), None)
    if calm is not None:
        calm()


def _look() -> float | None:
    """Say which closes take long; give the seconds until it is time to look again, if there is anything to watch."""
    for key in _said.keys() - _watched.keys():
        del _said[key]
    after = Settings.after
    if after is None or not _watched:
        return None
    return min(after, *(_look_at(key, closing, after) for key, closing in list(_watched.items())))


def _look_at(key: int, closing: Watched, after: float) -> float:
    resource, elapsed = closing.resource, perf_counter() - closing.since
    said_of, due = _said.get(key, (resource, after))
    if said_of is not resource:
        due = after
    if elapsed >= due:
        due = 2 * max(due, elapsed)
        _said[key] = resource, due
        _say(closing, resource, elapsed)
    return due - elapsed


def _say(closing: Watched, resource: Any, elapsed: float) -> None:
    if resource is None or resource._inner() is not None:  # what takes long in a child is said of itself
        return
    from logging import getLogger

    from rescope._closing import line_of

    where = " in ".join(scope._label() for scope in line_of(closing.scope or closing.holder))
    more = 0 if closing.scope is None else closing.scope.size  # what is closed out of turn is in one that stays open
    if where:
        where = f" ({where}, {more} more to close)" if more else f" ({where})"
    getLogger("rescope").warning("closing %s takes long: %.3g s so far%s", resource.name, elapsed, where)
