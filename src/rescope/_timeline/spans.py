"""Spans: each resource and each scope, from when it was asked for until it was closed, as far as it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rescope._timeline.columns import clean
from rescope.exceptions import ResourceCleanupError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

TROUBLES = ("failed", "timed_out", "forced", "died")
"""The kinds that tell of trouble."""


class Trouble(NamedTuple):
    """One thing that went wrong, when, and why."""

    kind: str
    time: float
    error: BaseException | None


class Stage(NamedTuple):
    """A stretch of a span: `acquiring`, `alive`, `dead` (a host that died, not closed yet) or `closing`."""

    kind: str
    start: float
    end: float


class Span:
    """The life of a resource or of a scope, as far as it was told. Times are seconds since the epoch."""

    __slots__ = (
        "acquire_seconds",
        "acquired",
        "before",
        "begun",
        "children",
        "close_seconds",
        "closed",
        "closing",
        "died",
        "heard",
        "is_scope",
        "left",
        "name",
        "troubles",
    )

    def __init__(self, name: str, *, is_scope: bool = False, before: bool = False) -> None:
        self.name = name
        self.is_scope = is_scope
        self.before = before
        """Whether it was there before the first event, if `acquired` was not told."""
        self.heard: float | None = None
        self.begun: float | None = None
        self.acquired: float | None = None
        self.died: float | None = None
        self.closing: float | None = None
        self.closed: float | None = None
        self.left: float | None = None
        """When its scope closed without closing it: it was detached before, and lives on elsewhere."""
        self.acquire_seconds: float | None = None
        self.close_seconds: float | None = None
        self.troubles: list[Trouble] = []
        self.children: list[Span] = []

    @property
    def state(self) -> str:
        """`open`, `handed over` or `closed`."""
        if self.closed is not None:
            return "closed"
        return "open" if self.left is None else "handed over"

    @property
    def unknown_since(self) -> bool:
        """Whether it was there before the first event."""
        return self.acquired is None and self.before

    def times(self) -> list[float]:
        """Give all that is known."""
        known = (self.heard, self.begun, self.acquired, self.died, self.closing, self.closed, self.left)
        return [*(time for time in known if time is not None), *(trouble.time for trouble in self.troubles)]

    def end(self, last: float) -> float:
        """Say when it ended, `last` where it goes on."""
        return _first_known(self.closed, self.left, last)

    def stages(self, first: float, last: float) -> list[Stage]:
        """Say what it was from when to when; what began before `first` or goes on after `last` is cut there.

        The clock may have been set back meanwhile: then a stage takes no time.
        """
        begins = [
            ("acquiring", self.begun),
            ("alive", _first_known(self.acquired, None if self.before else self.heard, first)),
            ("dead", self.died),
            ("closing", self.closing),
        ]
        told = [(kind, time) for kind, time in begins if time is not None]
        stages: list[Stage] = []
        now = told[0][1]
        for (kind, time), (_, until) in zip(told, [*told[1:], ("", self.end(last))], strict=True):
            start = max(now, time)
            now = max(start, until)
            stages.append(Stage(kind, start, now))
        return stages

    def durations(self, last: float) -> tuple[float | None, float | None, float | None]:
        """Give the seconds that acquiring took, that it lived, and that closing took, `None` for what isn't known."""
        alive = None if self.acquired is None else max(0.0, _first_known(self.closing, self.end(last)) - self.acquired)
        close = self.close_seconds
        if close is None and self.closing is not None and self.closed is not None:
            close = max(0.0, self.closed - self.closing)
        return self.acquire_seconds, alive, close

    def notes(self) -> list[tuple[tuple[str, ...], str]]:
        """Say what went wrong: the kinds of one trouble, and one line about it.

        A scope fails because something in it does. That is said there, and not again on every scope on the way up.
        """
        lines: list[tuple[tuple[str, ...], str]] = []
        for kinds, error in self._merged():
            if isinstance(error, ResourceCleanupError) and any(child.troubles for child in self.children):
                continue
            words = [kind.replace("_", " ") for kind in kinds if kind != "failed" or kinds == ("failed",)]
            why = [clean(" ".join(reason(error).split()))] if isinstance(error, BaseException) else []
            lines.append((kinds, ": ".join([", ".join(words), *why])))
        return lines

    def _merged(self) -> Iterator[tuple[tuple[str, ...], object]]:
        """Put together what tells of the same error; `forced` has none, and belongs to what was before."""
        merged: list[tuple[list[str], object]] = []
        for kind, _, error in self.troubles:
            same = next((kinds for kinds, other in merged if error is other), None)
            if same is None and error is None and merged:
                same = merged[-1][0]
            if same is None:
                merged.append(([kind], error))
            elif kind not in same:
                same.append(kind)
        return ((tuple(kinds), error) for kinds, error in merged)


def _first_known(*times: float | None) -> float:
    return next(time for time in times if time is not None)
