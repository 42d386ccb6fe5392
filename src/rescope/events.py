"""What a scope tells while it lives: frozen events, given to its `on_event`; and a timeline that draws them.

The core imports this, so nothing is imported here that costs time: the drawing comes when there is something to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from rescope._slow import warn_when_slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike
    from typing import Self

__all__ = ["EventKind", "ScopeEvent", "ScopePath", "Timeline", "tee", "warn_when_slow"]

EventKind: TypeAlias = Literal[
    "opened", "acquired", "closing", "closed", "failed", "timed_out", "forced", "died", "scope_closed"
]
"""What an event may tell of."""


class ScopePath(tuple[str, ...]):  # noqa: SLOT001 (a tuple can have none)
    """The names from the root scope down to one scope; `parent` is the path of the scope that it is in.

    All events of one scope have the very same path, so that `is` tells scopes of the same name apart.
    """

    parent: ScopePath | None

    def __new__(cls, names: Iterable[str], parent: ScopePath | None = None) -> Self:
        """Make one of names."""
        self = super().__new__(cls, names)
        self.parent = parent
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...], ScopePath | None]]:
        """Be copied and pickled as names alone: who watches may keep here what only this process knows."""
        return type(self), (tuple(self), self.parent)


class ScopeEvent(NamedTuple):
    """One thing that happened to a scope or to a resource it holds.

    `path` holds the names from the root scope down to the one that tells (`"scope"` for one without a name);
    `resource` is the resource's name, `None` for what concerns the scope itself; `time` is in seconds since the epoch,
    `elapsed` in seconds: how long it took, where that is known. `closing` and `closed` are told for each resource,
    whether or not it fails; `failed` comes between them.
    """

    kind: EventKind
    path: tuple[str, ...]
    resource: str | None
    time: float
    elapsed: float | None = None
    error: BaseException | None = None


class Timeline:
    """Collects the events of scopes and draws their life: what was held when, how closing went, what is still open.

    ::

        timeline = Timeline()
        async with Scope("service", on_event=timeline) as scope:
            ...
        print(timeline)

    One timeline may be given to several scopes, and be told by several threads at once. With a `limit` it keeps that
    many events, the latest, and every drawing says how many were dropped. It also keeps the errors of the events, and
    so what their tracebacks refer to, until they are dropped or cleared.

    A drawing begins with the first event and ends with the last one. Raises `TypeError` or `ValueError` for a `limit`
    that is no whole number above 0.
    """

    def __init__(self, limit: int | None = None) -> None:
        from collections import deque
        from threading import RLock

        if limit is not None:
            _check_whole(limit, "limit", 1)
        self._limit = limit
        self._kept: deque[ScopeEvent] = deque(maxlen=limit)
        self._told = 0
        # The garbage collector may run anywhere, and what it closes may tell of it, in the thread that has the lock.
        self._lock = RLock()

    def __call__(self, event: ScopeEvent) -> None:
        """Take in one event: this is what makes it an `on_event`. Raises `TypeError` for anything else."""
        _check_event(event)
        with self._lock:
            self._kept.append(event)
            self._told += 1

    @property
    def events(self) -> tuple[ScopeEvent, ...]:
        """What it was told and has kept, in order."""
        with self._lock:
            return tuple(self._kept)

    @property
    def dropped(self) -> int:
        """How many events it has dropped, because of its `limit`."""
        with self._lock:
            return self._told - len(self._kept)

    def clear(self) -> None:
        """Forget all events."""
        with self._lock:
            self._kept.clear()
            self._told = 0

    def text(self, width: int | None = None, *, plain: bool | None = None) -> str:
        """Draw it as text, in lines of at most `width` columns; by default as wide as the terminal.

        `plain` draws with ASCII alone; by default that is done where the standard output can't show more. Raises
        `ValueError` for a `width` below 1.
        """
        from rescope._timeline.text import columns, draw, needs_ascii

        if width is None:
            width = columns()
        _check_whole(width, "width", 1)
        events, dropped = self._taken()
        return draw(events, dropped, width, plain=needs_ascii() if plain is None else plain)

    def svg(self, width: int = 960) -> str:
        """Draw it as an SVG picture of that many pixels, for a file or a page. It needs nothing besides itself.

        It follows the reader's light or dark mode; written into a page, it has the colours of the text around it.
        Raises `ValueError` for a `width` below 320.
        """
        from rescope._timeline.svg import NARROWEST, draw

        _check_whole(width, "width", NARROWEST)
        return draw(*self._taken(), width)

    def chrome_trace(self) -> str:
        """Give it as JSON in Chrome's trace event format, which https://ui.perfetto.dev opens.

        Times are in microseconds since the first event; `otherData` says when that was.
        """
        from rescope._timeline.chrome import trace

        return trace(*self._taken())

    def write(self, path: str | PathLike[str]) -> None:
        """Write it to a file, as its suffix says: `.txt` (120 columns), `.svg`, or `.json` for a Chrome trace.

        Raises `ValueError` for any other suffix, and `OSError` where the file can't be written.
        """
        from pathlib import Path

        draw = {".txt": self._text_file, ".svg": self.svg, ".json": self.chrome_trace}
        suffix = Path(path).suffix
        if suffix.lower() not in draw:
            msg = f"a timeline is written as .txt, .svg or .json (a Chrome trace), not as {suffix!r}: rename the file"
            raise ValueError(msg)
        Path(path).write_text(draw[suffix.lower()](), encoding="utf-8", newline="\n")

    def _text_file(self) -> str:
        return self.text(120, plain=False) + "\n"

    def _taken(self) -> tuple[tuple[ScopeEvent, ...], int]:
        with self._lock:
            return self.events, self.dropped

    def __str__(self) -> str:
        return self.text(100)

    def __repr__(self) -> str:
        events, dropped = self._taken()
        return f"<Timeline of {len(events)} events{f', {dropped} dropped' if dropped else ''}>"


def tee(*callbacks: Callable[[ScopeEvent], object]) -> Callable[[ScopeEvent], None]:
    """Make one `on_event` of several: each event is given to all of them, in order.

    One that raises does not keep the others from being told. What it raised is raised when all were told (of several,
    as a group), so that the scope logs it. Raises `TypeError` for one that can't be called, or is async.
    """
    from rescope._closer import check_callable, check_scope

    for number, callback in enumerate(callbacks, 1):
        check_callable(callback, f"callback {number} of tee")
        check_scope(None, None, callback)

    def on_event(event: ScopeEvent) -> None:
        errors: list[BaseException] = []
        for callback in callbacks:
            try:
                callback(event)
            except BaseException as exc:
                errors.append(exc)
        if len(errors) > 1:
            msg = "several callbacks raised"
            raise BaseExceptionGroup(msg, errors)
        if errors:
            raise errors[0]

    return on_event


def _check_event(event: object) -> None:
    if not isinstance(event, ScopeEvent):
        msg = f"a timeline takes in a ScopeEvent, not a {type(event).__qualname__}"
        raise TypeError(msg)


def _check_whole(number: object, what: str, least: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        msg = f"`{what}` must be a whole number, not a {type(number).__qualname__}"
        raise TypeError(msg)
    if number < least:
        msg = f"`{what}` must be at least {least}, got {number}"
        raise ValueError(msg)
