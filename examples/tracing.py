"""An order is handled in a scope, and its trace drawn: what was acquired and closed, how long that took, what failed.

The service has a database; each order has a scope of its own, below that of the service, and is handled within a span
`handle order`, as a web framework would make one. The courier of the second order is not to be reached when it is time
to say goodbye. `rescope.otel` makes the spans, the SDK of OpenTelemetry collects them, and this program draws them as
a tree. It ends by checking that every span has ended, and that the failure stands on the close, on the scope and on
nothing else.

    python examples/tracing.py
    python examples/tracing.py --backend trio
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import anyio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from rescope import ResourceCleanupError, Scope
from rescope.otel import Tracing

UNREACHABLE = 2  # the order whose courier will not answer


class Client:
    """A connection to something, which takes a moment to open and to close."""

    def __init__(self, *, polite: bool = True) -> None:
        self.polite = polite

    @classmethod
    async def open(cls) -> Client:
        await anyio.sleep(0.02)
        return cls()

    async def aclose(self) -> None:
        await anyio.sleep(0.01)
        if not self.polite:
            msg = "no answer"
            raise ConnectionError(msg)


async def handle(service: Scope, tracer: Tracer, number: int) -> None:
    with tracer.start_as_current_span("handle order", attributes={"order": number}):
        try:
            async with service.child(f"order {number}") as scope:
                await scope.acquire(Client.open, Client.aclose, name="payment")
                courier = await scope.acquire(Client.open, Client.aclose, name="courier")
                courier.polite = number != UNREACHABLE
        except ResourceCleanupError as error:
            print(f"order {number}: {error.message}\n")


def draw(spans: Sequence[ReadableSpan], above: int | None = None, depth: int = 0) -> Iterator[str]:
    """Give a line for each span, those below it indented."""
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if (span.parent.span_id if span.parent else None) == above:
            took = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
            why = f"  {span.status.description}" if not span.status.is_ok else ""
            yield f"{took:7.1f} ms  {'   ' * depth}{span.name}{why}"
            yield from draw(spans, span.context.span_id, depth + 1)


async def main() -> int:
    """Handle orders, draw the traces, and check."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async with Scope("service", on_event=Tracing(tracer_provider=provider)) as service:
        await service.acquire(Client.open, Client.aclose, name="database")
        for number in (1, 2):
            await handle(service, provider.get_tracer("shop"), number)

    spans = exporter.get_finished_spans()
    print("\n".join(draw(spans)))
    provider.shutdown()

    failed = [span.name for span in spans if span.name.startswith("close") and not span.status.is_ok]
    names = {span.name for span in spans}
    expected = {"scope service", "scope order 1", "scope order 2", "close database", "close payment", "acquire courier"}
    if failed != ["close courier", "close order 2"] or not expected <= names:
        print(f"WRONG: failed are {failed}, missing are {sorted(expected - names)}")
        return 1
    print("\nevery span has ended, and the failure stands where it belongs")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trace scopes with OpenTelemetry.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
