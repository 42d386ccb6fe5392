"""What every drawing has: the rows, from when to when, and what it says in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from rescope._timeline.axis import SHORTEST, duration
from rescope._timeline.columns import clean
from rescope._timeline.spans import TROUBLES, Span
from rescope._timeline.tree import spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rescope.events import ScopeEvent

WORDS = {
    "acquiring": "acquiring",
    "alive": "alive",
    "dead": "died, not closed yet",
    "closing": "closing",
    "scope": "scope",
    "scope closing": "scope closing",
    "failed": "failed",
    "timed_out": "timed out",
    "forced": "forced",
    "died": "died",
    "open": "still open",
    "handed over": "handed over",
    "before": "there before",
}
"""What a legend calls them, in its order."""


MARKS = (*TROUBLES, "open", "handed over")
"""What is marked at a moment."""


class Row(NamedTuple):
    """One span at its place in the tree: for each level, from the outermost one, whether more of it follows below."""

    span: Span
    follows: tuple[bool, ...]


class Layout:
    """The spans of some events, in rows, and the time that they take up. A row is for a resource or for a scope."""

    def __init__(self, events: Sequence[ScopeEvent], dropped: int = 0) -> None:
        self.roots = spans_of(events)
        self.rows = list(_rows(self.roots))
        self.dropped = dropped
        times = [time for row in self.rows for time in row.span.times()]
        self.first = min(times, default=0.0)
        self.last = max(times, default=0.0)

    @property
    def seconds(self) -> float:
        """How long it all took; an axis is never shorter than that."""
        return max(self.last - self.first, SHORTEST)

    def at(self, time: float) -> float:
        """Say where a time is, from 0 to 1."""
        return (time - self.first) / self.seconds

    @property
    def title(self) -> str:
        """The outermost scope, or how many there are."""
        return clean(self.roots[0].name) if len(self.roots) == 1 else f"{len(self.roots)} scopes"

    @property
    def summary(self) -> list[str]:
        """How long it took, how many there were, and what became of how many."""
        resources = [row.span for row in self.rows if not row.span.is_scope]
        troubles = [{trouble.kind for trouble in span.troubles} for span in resources]
        counts = [(sum(kind in kinds for kinds in troubles), WORDS[kind]) for kind in TROUBLES]
        counts += [(sum(span.state == state for span in resources), WORDS[state]) for state in ("handed over", "open")]
        told = [f"{count} {words}" for count, words in counts if count]
        plural = "" if len(resources) == 1 else "s"
        return [duration(self.last - self.first), f"{len(resources)} resource{plural}", *told]

    @property
    def started(self) -> str | None:
        """The date and time at which it began, where a calendar has it."""
        try:
            return f"{datetime.fromtimestamp(self.first, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (OverflowError, OSError, ValueError):
            return None

    @property
    def missing(self) -> str | None:
        """What was dropped."""
        if not self.dropped:
            return None
        return f"{self.dropped} earlier event{'' if self.dropped == 1 else 's'} dropped: the timeline keeps no more"


def _rows(roots: list[Span]) -> Iterator[Row]:
    """Give the tree row by row. It may be deeper than Python's stack."""
    ahead = [Row(root, ()) for root in reversed(roots)]
    while ahead:
        row = ahead.pop()
        yield row
        last = len(row.span.children) - 1
        below = [Row(child, (*row.follows, place < last)) for place, child in enumerate(row.span.children)]
        ahead.extend(reversed(below))


def marks(span: Span) -> list[tuple[str, float]]:
    """Give what is marked on the line of a span, and when. A close that ran out of time has failed by that."""
    kinds = {trouble.kind for trouble in span.troubles}
    told: dict[str, float] = {}
    for trouble in span.troubles:
        if trouble.kind == "failed" and kinds & {"timed_out", "died"}:
            continue
        told.setdefault(trouble.kind, trouble.time)
    return list(told.items())
