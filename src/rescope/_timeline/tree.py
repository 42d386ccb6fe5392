"""Events become spans.

Events may begin late, end early, or miss a part: what was not told stays `None`. All events of one scope have the very
same `ScopePath`, so that scopes of the same name are told apart; of a plain tuple, equal ones are the same scope.
A resource is told by its name alone. Of several by one name, the one acquired last is closed first, as a scope does.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from rescope._timeline.spans import TROUBLES, Span, Trouble
from rescope.events import ScopePath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rescope.events import ScopeEvent

Path: TypeAlias = "tuple[str, ...]"

LATEST = 1e15
"""Times further from the epoch than that, in seconds, are not believed."""


class _Namesakes:
    """What one scope holds by one name, the latest last, while its events come in."""

    def __init__(self, name: str, scope: Span) -> None:
        self.name, self.scope = name, scope
        self.expected: list[Span] = []
        """What has told of itself before `acquired` was told: child scopes, and hosts that died early."""
        self.held: dict[Span, None] = {}
        self.closing: list[Span] = []
        self.announced: list[float] = []
        """When one of several child scopes began to close. Which of them it is, shows when it tells of that itself."""
        self.deaths: dict[int, Span] = {}
        """By the identity of its error, what was taken for dead. The events keep their errors alive."""
        self.finished: list[Span] = []
        """Child scopes that have told that they are closed; the scope that holds them tells so right after."""

    def make(self, *, is_scope: bool = False) -> Span:
        """Make the span of one more. Where the beginning of the scope was missed, so may have been its."""
        span = Span(self.name, is_scope=is_scope, before=self.scope.acquired is None)
        self.scope.children.append(span)
        return span

    def expect(self, *, is_scope: bool = False) -> Span:
        """Make the span of one that is to be acquired."""
        self.expected.append(self.make(is_scope=is_scope))
        return self.expected[-1]

    def acquired(self) -> Span:
        """Find or make what was acquired."""
        span = self.expected.pop() if self.expected else self.make()
        self.held[span] = None
        return span

    def adopt(self) -> Span:
        """Find or make a child scope that has not told that it opened."""
        for span in reversed(self.held):
            if not span.is_scope and span.begun is None:
                span.is_scope = True
                return span
        span = self.make(is_scope=True)
        self.held[span] = None
        return span

    def is_closing(self, now: float) -> Span | None:
        """Find what begins to close, unless that is still to show."""
        latest = list(islice(reversed(self.held), 2))
        if len(latest) > 1 and all(span.is_scope for span in latest):
            self.announced.append(now)
            return None
        return self._next()

    def child_closes(self, child: Span) -> None:
        """Take in that a child scope tells of closing by itself."""
        if self.announced and child in self.held:
            del self.held[child]
            child.closing = self.announced.pop(0)
            self.closing.append(child)

    def child_closed(self, child: Span) -> None:
        """Take in that a child scope is closed."""
        self.child_closes(child)
        if child in self.held or child in self.closing:
            self.finished.append(child)

    def is_closed(self, since: float | None) -> Span:
        """Find what has closed, and let go of it."""
        span = self.finished.pop(0) if self.finished else self.under_way(since)
        if span is None:
            span = self._next()
            span.closing = self.announced.pop(0) if self.announced else None
        if span in self.held:
            del self.held[span]
        else:
            self.closing.remove(span)
        return span

    def in_trouble(self, event: ScopeEvent, since: float | None) -> Span:
        """Find what a trouble is told of."""
        if event.kind == "died":
            return self._has_died(event.error)
        for span in (*self.finished, *self.closing):
            if any(trouble.error is event.error is not None for trouble in span.troubles):
                return span
        if event.kind == "failed":
            found = self.under_way(since)
        else:  # what closes for longest is out of time first; after that, it is forced
            before = int(event.kind == "forced")
            found = next((span for span in self.closing if len(span.troubles) == before), self.under_way(None))
        found = found or self._next()
        self._died_of(event.error, found)
        return found

    def _has_died(self, error: BaseException | None) -> Span:
        """Guess which one died: which it was, shows when it fails to close, with the same error."""
        alike = [span for span in [*self.expected, *self.held] or self.closing if span.died is None]
        span = alike[-1] if alike else self.expect()
        if error is not None:
            self.deaths[id(error)] = span
        return span

    def _died_of(self, error: BaseException | None, span: Span) -> None:
        """Let a death be of the one that fails with the same error, if another was taken for dead."""
        other = self.deaths.pop(id(error), span)
        if other is not span:
            span.died, other.died = other.died, None
            span.troubles += [trouble for trouble in other.troubles if trouble.error is error]
            other.troubles = [trouble for trouble in other.troubles if trouble.error is not error]

    def under_way(self, since: float | None) -> Span | None:
        """Find what is closing; of several at once, the one that began then, else the latest."""
        alike = self.closing
        if since is None or len(alike) <= 1:
            return alike[-1] if alike else None
        after = bisect_left(alike, since, key=_closing_since)
        return min(alike[max(0, after - 1) : after + 1], key=lambda span: abs(_closing_since(span) - since))

    def hand_over(self, time: float) -> None:
        """Let go of what the scope did not close. A child scope tells of itself."""
        for span in [*self.expected, *self.held]:
            if not span.is_scope:
                span.left = time
                self.held.pop(span, None)
        self.expected = [span for span in self.expected if span.is_scope]

    def _next(self) -> Span:
        """Give the one that closes next: the latest one, else one that was not heard of."""
        span = self.held.popitem()[0] if self.held else self.expected.pop() if self.expected else self.make()
        self.closing.append(span)
        return span


def _closing_since(span: Span) -> float:
    return 0.0 if span.closing is None else span.closing


class _Place:
    """A scope while its events come in: where it is held, how often it is open, and what it holds."""

    def __init__(self, span: Span, among: _Namesakes | None) -> None:
        self.span, self.among = span, among
        self.open = 0
        """A scope that was moved is open twice: here, and where it was moved to."""
        self.named: dict[str, _Namesakes] = {}

    def called(self, name: str) -> _Namesakes:
        """Give what it holds by that name."""
        if name not in self.named:
            self.named[name] = _Namesakes(name, self.span)
        return self.named[name]


def spans_of(events: Sequence[ScopeEvent]) -> list[Span]:
    """Give the spans of the outermost scopes; those of what they hold are below them."""
    tree = _Tree(next((event.time for event in events if _believable(event.time)), 0.0))
    for event in events:
        tree.take(event)
    return tree.roots


class _Tree:
    """All scopes that were told of, and where each is."""

    def __init__(self, now: float) -> None:
        self.roots: list[Span] = []
        self.places: dict[object, _Place] = {}
        self.scopes: dict[Span, _Place] = {}
        self.now = now

    def take(self, event: ScopeEvent) -> None:
        """Put one event where it belongs."""
        if _believable(event.time):
            self.now = event.time
        elapsed = event.elapsed
        if elapsed is not None and not 0 <= elapsed <= LATEST:
            elapsed = None
        place = self._place(event.path, opening=event.kind == "opened")
        if event.resource is None:
            self._scope(place, event, elapsed)
        else:
            self._resource(place, event, place.called(event.resource), elapsed)

    def _scope(self, place: _Place, event: ScopeEvent, elapsed: float | None) -> None:
        if event.kind == "opened":
            place.open += 1
            self._happens(place.span, "acquired", None, None)
        elif event.kind != "scope_closed":
            self._happens(place.span, event.kind, elapsed, event.error)
        else:
            if place.among is not None:
                place.among.child_closed(place.span)
            if event.error is not None:
                self._happens(place.span, "failed", None, event.error)
            place.open -= 1
            if place.open <= 0:
                self._happens(place.span, "closed", elapsed, None)
                for namesakes in place.named.values():
                    namesakes.hand_over(self.now)

    def _resource(self, place: _Place, event: ScopeEvent, alike: _Namesakes, elapsed: float | None) -> None:
        since = None if elapsed is None else self.now - elapsed
        span: Span | None
        if event.kind == "acquired":
            span = alike.acquired()
        elif event.kind == "closing":
            if place.among is not None:
                place.among.child_closes(place.span)
            span = alike.is_closing(self.now)
        elif event.kind == "closed":
            span = alike.is_closed(since)
            if span in self.scopes and self.scopes[span].open > 0:  # moved: this is not the end of it
                span.closing = None
                return
        elif event.kind in TROUBLES:
            span = alike.in_trouble(event, since)
        else:
            return
        if span is not None:
            self._happens(span, event.kind, elapsed, event.error)

    def _happens(self, span: Span, kind: str, elapsed: float | None, error: BaseException | None) -> None:
        """Write down what happened to a span."""
        now = self.now
        span.heard = now if span.heard is None else span.heard
        if kind == "acquired":
            span.acquired = now if span.acquired is None else span.acquired
            span.begun = None if elapsed is None else now - elapsed
            span.acquire_seconds = elapsed
        elif kind == "closing":
            span.closing = now
        elif kind == "closed":
            span.closed, span.close_seconds = now, elapsed
            if elapsed is not None and (span.closing is None or span.is_scope):
                span.closing = now - elapsed
        elif kind in TROUBLES:
            span.troubles.append(Trouble(kind, now, error))
            if kind == "died":
                span.died = now

    def _place(self, path: Path, *, opening: bool) -> _Place:
        """Find the place of a scope, or make it, and those above it that were not told of."""
        found = self.places.get(_key(path))
        if found is not None and not (opening and found.span.closed is not None):
            return found
        missing = [path]
        above = _parent(path)
        while above is not None and _key(above) not in self.places:
            missing.append(above)
            above = _parent(above)
        outer = None if above is None else self.places[_key(above)]
        place = self._make(missing.pop(), outer, opening=opening and not missing)
        while missing:
            place = self._make(missing.pop(), place, opening=opening and not missing)
        return place

    def _make(self, path: Path, outer: _Place | None, *, opening: bool) -> _Place:
        name = path[-1] if path else "scope"
        alike = None if outer is None else outer.called(name)
        if alike is None:
            span = Span("/".join(path) or name, is_scope=True, before=not opening)
            self.roots.append(span)
        else:
            span = alike.expect(is_scope=True) if opening else alike.adopt()
        span.heard = self.now if span.heard is None else span.heard
        place = self.places[_key(path)] = self.scopes[span] = _Place(span, alike)
        return place


def _believable(time: float) -> bool:
    return abs(time) <= LATEST  # NaN is not


def _key(path: Path) -> object:
    return id(path) if isinstance(path, ScopePath) else path


def _parent(path: Path) -> Path | None:
    return path.parent if isinstance(path, ScopePath) else path[:-1] or None
