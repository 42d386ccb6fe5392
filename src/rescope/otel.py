"""What scopes do, as OpenTelemetry spans.

    scope = Scope("orders", on_event=Tracing())

The life of a scope is a span, from `opened` to `scope_closed`. Below it there is one for each acquisition that took
time, and one for each close.

What is known of a scope is kept on its path, which all of its events have, and nowhere else: so it is gone with the
scope, also with one that is dropped without being closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from rescope._version import __version__
from rescope.events import ScopePath
from rescope.exceptions import reason

try:
    from opentelemetry.context import get_current
    from opentelemetry.trace import Link, get_current_span, get_tracer, set_span_in_context
    from opentelemetry.trace.status import Status, StatusCode
except ImportError as _missing:
    msg = "rescope.otel needs the API of OpenTelemetry: pip install 'rescope[otel]'"
    raise ImportError(msg, name=_missing.name) from _missing

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from rescope.events import ScopeEvent

__all__ = ["Tracing"]


@final
class Tracing:
    """Makes a span of each scope, of each acquisition that takes time, and of each close: an `on_event` callback.

    One does for any number of scopes, at the same time and in any threads. Without a `tracer_provider` it takes the
    global one, which may also be set later.

    The span of a scope is a child of the span that is current when it opens; the span of a child scope of that of its
    parent, unless another trace goes on there: then it belongs to that one, with a link to its parent's. No span is
    made current: it is told what happens, and does not run it.

    Exceptions are recorded by their type and by what is fit to be told of them, without a stack trace, as that may
    show a password. No span holds a value or its `repr`.
    """

    __slots__ = ("_key", "_tracer")

    def __init__(self, *, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("rescope", __version__, tracer_provider)
        self._key = f"_life_of_tracing_{id(self)}"

    def __call__(self, event: ScopeEvent) -> None:
        """Take an event of a scope. Raises `TypeError` for one that somebody else made."""
        path = event.path
        if not isinstance(path, ScopePath):
            msg = f"Tracing takes in what scopes tell, with a ScopePath for a path, not a {type(path).__name__}"
            raise TypeError(msg)
        known = vars(path)
        if event.kind == "opened" and self._key not in known:
            above = None if path.parent is None else vars(path.parent).get(self._key)
            known[self._key] = _Life(self._tracer, event, above)
        elif self._key in known:  # else this was not yet called when it opened
            known[self._key].take(event)

    def __repr__(self) -> str:
        return "<Tracing>"


class _Close:
    """A close that is under way."""

    __slots__ = ("failed", "late", "resource", "span", "start")

    def __init__(self, resource: str | None, span: Span, start: int) -> None:
        self.resource = resource
        self.span = span
        self.start = start
        self.late: BaseException | None = None
        self.failed = False


class _Life:
    """The span of a scope, and those of the closes in it that are under way."""

    __slots__ = ("_acquired", "_attributes", "_closed", "_closes", "_context", "_failed", "_open", "_span", "_tracer")

    _context: Context
    _span: Span

    def __init__(self, tracer: Tracer, event: ScopeEvent, above: _Life | None) -> None:
        self._open = 0
        current = get_current_span().get_span_context()
        context, links = get_current(), []
        if above is not None:
            parent = above._span.get_span_context()
            if not current.is_valid or current.trace_id == parent.trace_id:
                context = above._context
            else:
                links = [Link(parent)]
        self._attributes: dict[str, AttributeValue] = {"rescope.scope.path": "/".join(event.path)}
        self._tracer = tracer
        self._span = tracer.start_span(
            f"scope {event.path[-1]}",
            context,
            attributes=self._attributes,
            links=links,
            start_time=_nanoseconds(event.time),
        )
        self._context = set_span_in_context(self._span, context)
        self._closes: list[_Close] = []
        self._open += 1
        self._acquired = self._closed = self._failed = 0

    def __del__(self) -> None:
        if self._open:
            if self._acquired > self._closed:
                self._span.set_status(Status(StatusCode.ERROR, "dropped without being closed"))
            self._span.end()

    def take(self, event: ScopeEvent) -> None:
        """See to one more event."""
        kind = event.kind
        if kind == "opened":  # all that it held was moved to a new scope: together they have one life
            self._open += 1
        elif kind == "scope_closed":
            self._end(event)
        elif kind == "acquired":
            self._take_acquired(event)
        elif kind == "closing":
            start = _nanoseconds(event.time)
            span = self._start(f"close {event.resource}", event, start)
            self._closes.append(_Close(event.resource, span, start))
        elif kind == "died":
            self._span.add_event("died", self._of(event) | _told(event.error), _nanoseconds(event.time))
        else:
            self._take_close(event)

    def _take_acquired(self, event: ScopeEvent) -> None:
        self._acquired += 1
        end = _nanoseconds(event.time)
        if event.elapsed is None:  # it was there already, and took no time
            self._span.add_event("acquired", self._of(event), end)
            return
        span = self._start(f"acquire {event.resource}", event, end - _nanoseconds(event.elapsed))
        span.set_attribute("rescope.elapsed", event.elapsed)
        span.end(end)

    def _take_close(self, event: ScopeEvent) -> None:
        close = self._close_of(event)
        if close is None:  # it began before this was called
            return
        if event.kind == "closed":
            elapsed = event.elapsed or 0.0
            close.span.set_attribute("rescope.elapsed", elapsed)
            close.span.end(close.start + _nanoseconds(elapsed))
            self._closes.remove(close)
            self._closed += 1
        elif event.kind == "failed":
            close.span.add_event("exception", _told(event.error), _nanoseconds(event.time))
            _set_error(close.span, event.error)
            close.failed = True
            self._failed += 1
        else:
            close.span.add_event(event.kind, timestamp=_nanoseconds(event.time))
            close.late = close.late or event.error

    def _close_of(self, event: ScopeEvent) -> _Close | None:
        """Find the close that an event is about. Of several that go by the same name it is known by what came before.

        `forced` comes right after `timed_out`, and `closed` right after `failed`; else they are told apart by when they
        began.
        """
        same = [close for close in self._closes if close.resource == event.resource]
        if event.kind == "timed_out":
            return min(same, key=lambda close: close.late is not None, default=None)
        if event.kind == "forced":
            return max(reversed(same), key=lambda close: close.late is not None, default=None)
        began = _nanoseconds(event.time - (event.elapsed or 0.0))

        def unlikeness(close: _Close) -> tuple[bool, int]:
            is_it = close.failed or (event.error is not None and close.late is event.error)
            return not is_it, abs(close.start - began)

        return min(same, key=unlikeness, default=None)

    def _start(self, name: str, event: ScopeEvent, start: int) -> Span:
        return self._tracer.start_span(name, self._context, attributes=self._of(event), start_time=start)

    def _of(self, event: ScopeEvent) -> dict[str, AttributeValue]:
        return {**self._attributes, "rescope.resource.name": str(event.resource)}

    def _end(self, event: ScopeEvent) -> None:
        if event.error is not None:
            _set_error(self._span, event.error)
        self._open -= 1
        if self._open == 0:
            counts = {"acquired": self._acquired, "closed": self._closed, "failed": self._failed}
            self._span.set_attributes({f"rescope.resources.{what}": number for what, number in counts.items()})
            self._span.end(_nanoseconds(event.time))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _set_error(span: Span, error: BaseException | None) -> None:
    span.set_status(Status(StatusCode.ERROR, None if error is None else reason(error)))


def _told(error: BaseException | None) -> dict[str, AttributeValue]:
    """Give the attributes of an exception, by OpenTelemetry's names, as far as they are fit to be seen."""
    if error is None:
        return {}
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"exception.type": name, "exception.message": reason(error)}
