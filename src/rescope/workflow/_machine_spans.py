"""A span for each operation on a machine's memory, where OpenTelemetry is present."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rescope._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from opentelemetry.trace import Span, Tracer

    Operations: TypeAlias = Callable[[str, str], AbstractContextManager["Operation"]]

__all__ = ["Operation", "operations"]


class Operation(Protocol):
    """An operation that is under way."""

    def retry(self, trouble: Exception | None) -> None:
        """Tell that it is going to be tried again."""
        ...

    def end(self, status: str) -> None:
        """Tell how it ended."""
        ...


def operations(tracer: Tracer | None) -> Operations:
    """Give what makes a span of an operation on a subject, with that tracer or else the global one, if there is one."""
    if tracer is None:
        try:
            from opentelemetry.trace import get_tracer
        except ImportError:
            return _untraced
        tracer = get_tracer("rescope", __version__)

    @contextmanager
    def traced(name: str, subject: str) -> Generator[Operation]:
        from opentelemetry.trace.status import Status, StatusCode

        attributes = {"rescope.machine.subject": subject}
        with tracer.start_as_current_span(
            f"machine {name}", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield _Traced(span)
            except Exception as exc:
                span.add_event("exception", {"exception.type": type(exc).__qualname__})
                span.set_status(Status(StatusCode.ERROR, type(exc).__qualname__))
                raise

    return traced


class _Traced:
    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def retry(self, trouble: Exception | None) -> None:
        self._span.add_event("retry", {} if trouble is None else {"exception.type": type(trouble).__qualname__})

    def end(self, status: str) -> None:
        self._span.set_attribute("rescope.machine.status", status)
        if status == "ERROR":
            from opentelemetry.trace.status import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR))


@contextmanager
def _untraced(name: str, subject: str) -> Generator[Operation]:  # noqa: ARG001 (nobody sees them)
    yield _UNSEEN


class _Unseen:
    __slots__ = ()

    def retry(self, trouble: Exception | None) -> None:
        """Nobody sees it."""

    def end(self, status: str) -> None:
        """Nobody sees it."""


_UNSEEN = _Unseen()
