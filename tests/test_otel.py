"""Scopes as OpenTelemetry spans, seen through the in-memory exporter of its SDK."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from rescope import ResourceCleanupError, Scope
from rescope._version import __version__
from rescope.events import ScopeEvent, ScopePath, tee
from rescope.otel import Tracing

EXAMPLE = Path(__file__).parent.parent / "examples" / "tracing.py"
SHORT = 0.01


class Spans:
    """What a provider has exported, by name."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def __getitem__(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.all if span.name == name]
        return found

    def parent(self, name: str) -> str | None:
        """The name of the span above, `None` for a root."""
        above = self[name].parent
        return None if above is None else next(s.name for s in self.all if s.context.span_id == above.span_id)


@pytest.fixture
def spans() -> Iterator[Spans]:
    """A provider of its own for each test."""
    made = Spans()
    yield made
    made.provider.shutdown()


@pytest.fixture
def tracing(spans: Spans) -> Tracing:
    """The callback under test."""
    return Tracing(tracer_provider=spans.provider)


class Database:
    """What is acquired and closed."""

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


async def connect() -> Database:
    await anyio.lowlevel.checkpoint()
    return Database()


async def hang() -> None:
    await anyio.sleep_forever()


def fail(text: str = "no answer") -> None:
    raise ConnectionError(text)


async def test_a_scope_is_a_span_with_a_child_for_each_acquire_and_close(spans: Spans, tracing: Tracing) -> None:
    """The span of the scope is the parent of the others, and encloses them."""
    async with Scope("orders", on_event=tracing) as scope:
        await scope.acquire(connect, Database.aclose)

    assert spans.names == ["acquire Database", "close Database", "scope orders"]
    assert [spans.parent(name) for name in spans.names] == ["scope orders", "scope orders", None]
    whole = spans["scope orders"]
    assert all(whole.start_time <= span.start_time <= span.end_time <= whole.end_time for span in spans.all)  # type: ignore[operator]


async def test_attributes_stand_under_a_prefix_of_our_own(spans: Spans, tracing: Tracing) -> None:
    """The path of the scope, the name of the resource, how long it took, and how many there were."""
    async with Scope("orders", on_event=tracing) as scope:
        child = scope.child("request")
        await child.acquire(connect, Database.aclose, name="primary")

    acquire = spans["acquire primary"].attributes
    assert acquire is not None
    assert acquire["rescope.scope.path"] == "orders/request"
    assert acquire["rescope.resource.name"] == "primary"
    assert isinstance(acquire["rescope.elapsed"], float)
    assert dict(spans["scope request"].attributes or {}) == {
        "rescope.scope.path": "orders/request",
        "rescope.resources.acquired": 1,
        "rescope.resources.closed": 1,
        "rescope.resources.failed": 0,
    }
    assert {*(spans["close primary"].attributes or {})} == {*acquire}


async def test_spans_tell_the_library_and_its_version(spans: Spans, tracing: Tracing) -> None:
    """The instrumentation scope is `rescope`."""
    async with Scope(on_event=tracing):
        pass

    library = spans["scope scope"].instrumentation_scope
    assert library is not None
    assert (library.name, library.version) == ("rescope", __version__)


def path_of(*names: str, parent: ScopePath | None = None) -> ScopePath:
    return ScopePath(names, parent)


def test_times_are_those_of_the_events(spans: Spans, tracing: Tracing) -> None:
    """An acquire starts `elapsed` before it is told, and a close lasts for its `elapsed`."""
    path = path_of("a")
    for event in [
        ScopeEvent("opened", path, None, 100.0),
        ScopeEvent("acquired", path, "db", 102.0, 1.5),
        ScopeEvent("closing", path, "db", 103.0),
        ScopeEvent("closed", path, "db", 104.5, 0.25),
        ScopeEvent("scope_closed", path, None, 105.0),
    ]:
        tracing(event)

    times = {span.name: (span.start_time / 1e9, span.end_time / 1e9) for span in spans.all}  # type: ignore[operator]
    assert times == {"scope a": (100.0, 105.0), "acquire db": (100.5, 102.0), "close db": (103.0, 103.25)}


async def test_what_took_no_time_is_an_event_of_the_scope(spans: Spans, tracing: Tracing) -> None:
    """`add` and `defer` acquire nothing, so they make no span."""
    async with Scope("orders", on_event=tracing) as scope:
        scope.add(Database())

    (event,) = spans["scope orders"].events
    assert event.name == "acquired"
    assert dict(event.attributes or {}) == {"rescope.scope.path": "orders", "rescope.resource.name": "Database"}
    assert spans.names == ["close Database", "scope orders"]


# Parents


async def test_a_scope_belongs_to_the_span_that_is_current_when_it_opens(spans: Spans, tracing: Tracing) -> None:
    """And it makes none current itself: a span that is made in its body is beside it."""
    with spans.tracer.start_as_current_span("request") as request:
        async with Scope("orders", on_event=tracing):
            assert trace.get_current_span() is request
            with spans.tracer.start_as_current_span("query"):
                pass

    assert (spans.parent("scope orders"), spans.parent("query")) == ("request", "request")


async def test_a_child_scope_is_below_its_parent_in_the_same_trace(spans: Spans, tracing: Tracing) -> None:
    """Whatever is current: the tree of scopes stays together."""
    with spans.tracer.start_as_current_span("request"):
        async with Scope("orders", on_event=tracing) as scope:
            with spans.tracer.start_as_current_span("work"):
                scope.child("a").child("b").defer(int)

    assert [spans.parent(f"scope {name}") for name in ("orders", "a", "b")] == ["request", "scope orders", "scope a"]


async def test_a_child_scope_without_a_current_span_is_below_its_parent(spans: Spans, tracing: Tracing) -> None:
    """Where nothing is current there is no other trace to belong to."""
    with spans.tracer.start_as_current_span("start-up"):
        service = Scope("service", on_event=tracing)
    service.child("request")
    await service.aclose()

    assert spans.parent("scope request") == "scope service"
    assert spans["scope request"].links == ()


async def test_a_child_scope_in_another_trace_belongs_to_that(spans: Spans, tracing: Tracing) -> None:
    """The scope of a request, below that of a service: it is in the trace of the request, linked to the service's."""
    async with Scope("service", on_event=tracing) as service:
        with spans.tracer.start_as_current_span("GET /"):
            async with service.child("request") as scope:
                await scope.acquire(connect, Database.aclose)

    (link,) = spans["scope request"].links
    assert spans.parent("scope request") == "GET /"
    assert link.context.span_id == spans["scope service"].context.span_id
    assert spans.parent("acquire Database") == "scope request"


async def test_scopes_of_the_same_name_are_told_apart(spans: Spans, tracing: Tracing) -> None:
    """One callback serves many scopes at the same time, however they are called."""
    barrier = [anyio.Event(), anyio.Event()]

    async def work(number: int) -> None:
        with contextlib.suppress(ResourceCleanupError):
            async with Scope("same", on_event=tracing) as scope:
                barrier[number].set()
                await barrier[1 - number].wait()
                scope.defer(int if number else fail)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 0)
        tasks.start_soon(work, 1)

    scopes = {span.context.span_id: span for span in spans.all if span.name == "scope same"}
    of = {span.name: scopes[span.parent.span_id] for span in spans.all if span.parent}
    assert len(scopes) == 2
    assert of["close fail"] is not of["close int"]
    assert of["close fail"].status.status_code is StatusCode.ERROR
    assert of["close int"].status.status_code is StatusCode.UNSET


def test_scopes_in_many_threads_share_one_callback(spans: Spans, tracing: Tracing) -> None:
    """Each thread has its own loop and scopes; no span is lost or mixed up."""

    async def work(name: str) -> None:
        for _ in range(20):
            async with Scope(name, on_event=tracing) as scope:
                await scope.acquire(connect, Database.aclose, name=name)

    threads = [Thread(target=asyncio.run, args=(work(f"t{number}"),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    scopes = {span.context.span_id: span for span in spans.all if span.name.startswith("scope")}
    others = [span for span in spans.all if span.parent]
    assert (len(scopes), len(others)) == (80, 160)
    assert all(scopes[span.parent.span_id].name[-2:] == span.name[-2:] for span in others if span.parent)


# Failures


async def test_a_failed_close_is_recorded_on_its_span(spans: Spans, tracing: Tracing) -> None:
    """As an exception event and a status, on the close and on the scope."""
    with pytest.raises(ResourceCleanupError):
        async with Scope("orders", on_event=tracing) as scope:
            scope.defer(fail)
            scope.defer(int)

    close, whole = spans["close fail"], spans["scope orders"]
    (event,) = close.events
    assert event.name == "exception"
    assert dict(event.attributes or {}) == {
        "exception.type": "ConnectionError",
        "exception.message": "ConnectionError: no answer",
    }
    assert (close.status.status_code, close.status.description) == (StatusCode.ERROR, "ConnectionError: no answer")
    assert whole.status.status_code is StatusCode.ERROR
    assert "1 of 2 resources of scope 'orders' failed to close: fail: ConnectionError" in str(whole.status.description)
    assert (whole.attributes or {})["rescope.resources.failed"] == 1
    assert spans["close int"].status.status_code is StatusCode.UNSET


async def test_no_span_holds_a_value(spans: Spans, tracing: Tracing) -> None:
    """An exception made of anything but text is told by its type; there is no stack trace."""

    class Secret:
        def __repr__(self) -> str:
            return "pass-word"

        def close(self) -> None:
            raise LookupError(self)

    with pytest.raises(ResourceCleanupError):
        async with Scope("orders", on_event=tracing) as scope:
            scope.add(Secret())

    told = "".join(span.to_json() for span in spans.all)
    assert "pass-word" not in told
    assert "Traceback" not in told
    assert '"exception.message": "LookupError"' in told


class Odd(Exception):
    """An error of our own."""


async def test_the_type_of_an_exception_is_told_in_full(spans: Spans, tracing: Tracing) -> None:
    """With its module, as OpenTelemetry has it, unless it is a builtin."""

    def raise_it() -> None:
        raise Odd

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=tracing) as scope:
            scope.defer(raise_it)

    (event,) = next(span for span in spans.all if span.name.startswith("close")).events
    assert (event.attributes or {})["exception.type"] == f"{Odd.__module__}.Odd"


async def test_what_ran_out_of_time_tells_so_on_its_span(spans: Spans, tracing: Tracing) -> None:
    """`timed_out`, `forced` and the exception, in that order, on the one span."""
    with pytest.raises(ResourceCleanupError):
        async with Scope("orders", on_event=tracing) as scope:
            scope.add("socket", hang, timeout=SHORT, force=int)

    close = spans["close str"]
    assert [event.name for event in close.events] == ["timed_out", "forced", "exception"]
    assert (close.events[-1].attributes or {})["exception.type"] == "rescope.exceptions.CloseTimeoutError"
    assert close.status.status_code is StatusCode.ERROR


async def test_closes_of_the_same_name_are_told_apart(spans: Spans, tracing: Tracing) -> None:
    """Three that close at once: what one does stands on one span, and the others are clean."""
    gate = anyio.Event()

    async def wait() -> None:
        await gate.wait()

    async def fail_later() -> None:
        await gate.wait()
        fail()

    async def hang_and_open() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            gate.set()

    with pytest.raises(ResourceCleanupError):
        async with Scope("orders", concurrent=True, on_event=tracing) as scope:
            for close, limit in ((wait, None), (hang_and_open, SHORT), (fail_later, None), (hang, SHORT)):
                scope.add("x", close, name="same", timeout=limit, force=int if limit else None)

    told = sorted([event.name for event in span.events] for span in spans.all if span.name == "close same")
    assert told == [[], ["exception"], ["timed_out", "forced", "exception"], ["timed_out", "forced", "exception"]]
    failed = [span for span in spans.all if span.name == "close same" and span.events]
    assert all(span.status.status_code is StatusCode.ERROR for span in failed)


def test_a_close_is_known_by_what_came_before_and_by_when_it_began(spans: Spans, tracing: Tracing) -> None:
    """Of several of the same name: the one that was late, by its error; the one that failed; else by its time."""
    path = path_of("a")
    first, second = TimeoutError("first"), TimeoutError("second")
    for event in [
        ScopeEvent("opened", path, None, 0.0),
        *(ScopeEvent("closing", path, "x", time) for time in (1.0, 2.0, 3.0, 4.0)),
        ScopeEvent("timed_out", path, "x", 5.0, error=first),
        ScopeEvent("forced", path, "x", 5.0),
        ScopeEvent("timed_out", path, "x", 6.0, error=second),
        ScopeEvent("forced", path, "x", 6.0),
        ScopeEvent("failed", path, "x", 7.0, 6.0, second),
        ScopeEvent("closed", path, "x", 7.0, 6.0),
        ScopeEvent("closed", path, "x", 8.0, 4.0),
        ScopeEvent("failed", path, "x", 9.0, 6.0, OSError("third")),
        ScopeEvent("closed", path, "x", 9.0, 8.0),
        ScopeEvent("closed", path, "x", 10.0, 9.0),
        ScopeEvent("scope_closed", path, None, 11.0),
    ]:
        tracing(event)

    closes = [span for span in spans.all if span.parent]
    times = [((span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9) for span in closes]
    told = [[(event.name, event.timestamp / 1e9) for event in span.events] for span in closes]
    assert dict(zip(times, told, strict=True)) == {
        (1.0, 10.0): [("timed_out", 5.0), ("forced", 5.0)],
        (2.0, 8.0): [("timed_out", 6.0), ("forced", 6.0), ("exception", 7.0)],
        (3.0, 11.0): [("exception", 9.0)],
        (4.0, 8.0): [],
    }


@contextlib.asynccontextmanager
async def dies(error: Exception | None) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        if error is None:
            tasks.cancel_scope.cancel()
        else:
            tasks.start_soon(raise_one, error)
        yield


async def raise_one(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("error", "kind"), [(ConnectionError("gone"), "ExceptionGroup"), (None, None)])
async def test_a_host_that_dies_is_an_event_of_the_scope(
    spans: Spans, tracing: Tracing, error: Exception | None, kind: str | None
) -> None:
    """It comes when it dies, with what it left, and its close fails later."""
    died = anyio.Event()

    def watch(event: ScopeEvent) -> None:
        tracing(event)
        if event.kind == "died":
            died.set()

    with anyio.fail_after(5):
        with pytest.raises(ResourceCleanupError):
            async with Scope("orders", on_event=watch) as scope:
                await scope.host(dies(error), name="client")
                await died.wait()

    (event,) = [event for event in spans["scope orders"].events if event.name == "died"]
    attributes = event.attributes or {}
    assert attributes["rescope.resource.name"] == "client"
    assert (kind is None) or attributes["exception.type"] == kind
    assert [event.name for event in spans["close client"].events] == ["exception"]


async def test_a_cancellation_is_no_error_of_the_scope(spans: Spans, tracing: Tracing) -> None:
    """What is closed because its body was cancelled has closed well."""
    with anyio.move_on_after(SHORT):
        async with Scope("orders", on_event=tracing) as scope:
            scope.add(Database())
            await anyio.sleep_forever()

    assert {span.status.status_code for span in spans.all} == {StatusCode.UNSET}
    assert len(spans.all) == 2


# Lives


async def test_what_is_released_early_has_its_span_then(spans: Spans, tracing: Tracing) -> None:
    """The close is told when it happens, below the scope that goes on."""
    async with Scope("orders", on_event=tracing) as scope:
        database = await scope.acquire(connect, Database.aclose)
        await scope.release(database)
        assert spans.names == ["acquire Database", "close Database"]

    assert spans.parent("close Database") == "scope orders"


async def test_a_moved_scope_has_one_life_with_the_one_it_came_from(spans: Spans, tracing: Tracing) -> None:
    """One span, which ends when both are closed."""
    async with Scope("orders", on_event=tracing) as scope:
        scope.add(Database())
        kept = scope.move()
    assert spans.names == []
    await kept.aclose()

    assert spans.names == ["close Database", "scope orders"]


async def test_a_close_that_outlives_its_scope_still_ends(spans: Spans, tracing: Tracing) -> None:
    """A release that the scope could not wait for ends its span when it ends."""
    gate = anyio.Event()
    scope = Scope("orders", grace=SHORT, on_event=tracing)
    handle = scope.defer(gate.wait)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handle.aclose)
            await anyio.wait_all_tasks_blocked()
            with contextlib.suppress(ResourceCleanupError):
                await scope.aclose()
            assert "scope orders" in spans.names
            gate.set()

    assert "close Event.wait" in spans.names or "close wait" in spans.names


async def test_nothing_is_kept_of_what_is_closed(spans: Spans, tracing: Tracing) -> None:
    """A callback that serves a thousand scopes knows of none when they are gone."""
    for _ in range(1000):
        async with Scope(on_event=tracing) as scope:
            scope.defer(int)
    del scope

    assert _lives() == 0
    assert len(spans.all) == 2000


def _lives() -> int:
    gc.collect()
    return sum(type(one).__name__ == "_Life" for one in gc.get_objects())


async def test_a_scope_that_is_dropped_unclosed_ends_its_span(spans: Spans, tracing: Tracing) -> None:
    """As an error that says so, and nothing is kept."""
    scopes = [Scope("orders", on_event=tracing)]
    scopes[0].child("request").defer(int)
    with pytest.warns(ResourceWarning, match="was dropped without being closed"):
        scopes.clear()

    assert sorted(spans.names) == ["scope orders", "scope request"]
    assert {(span.status.status_code, span.status.description) for span in spans.all} == {
        (StatusCode.ERROR, "dropped without being closed")
    }
    assert _lives() == 0


async def test_an_empty_scope_that_is_dropped_ends_its_span_without_an_error(spans: Spans, tracing: Tracing) -> None:
    """There was nothing to close: it was never used, or all was closed or moved on."""
    Scope("unused", on_event=tracing)
    scope = Scope("moved", on_event=tracing)
    scope.defer(int)
    kept = scope.move()
    del scope
    await kept.aclose()
    del kept
    gc.collect()

    assert sorted(spans.names) == ["close int", "scope moved", "scope unused"]
    assert {span.status.status_code for span in spans.all} == {StatusCode.UNSET}


async def test_a_callback_that_comes_late_is_no_harm(spans: Spans, tracing: Tracing, caplog: Any) -> None:
    """Of a scope that opened before anybody asked, nothing is told; nor of a close that was under way."""
    path = path_of("a")
    tracing(ScopeEvent("acquired", path, "db", 1.0))
    tracing(ScopeEvent("opened", path, None, 2.0))
    tracing(ScopeEvent("closed", path, "db", 3.0, 1.0))
    tracing(ScopeEvent("scope_closed", path, None, 4.0))

    assert spans.names == ["scope a"]
    assert (spans["scope a"].attributes or {})["rescope.resources.closed"] == 0


async def test_a_traced_event_may_be_copied_and_pickled(tracing: Tracing) -> None:
    """Events go on a queue to another process as they are: what `Tracing` knows of their scope stays here."""
    events: list[ScopeEvent] = []
    async with Scope("service", on_event=tee(tracing, events.append)) as scope:
        scope.child("request")
        for event in (pickle.loads(pickle.dumps(events[-1])), copy.deepcopy(events[-1])):  # noqa: S301 (our own)
            assert event == events[-1]
            assert vars(event.path) == {"parent": None}
        path = copy.deepcopy(events[1].path)
        assert isinstance(path, ScopePath)
        assert path.parent == ("service",)
        assert [*path] == ["service", "request"]


def test_an_event_that_no_scope_made_is_refused(tracing: Tracing) -> None:
    """An event whose path is a plain tuple can't be told from that of another scope: it is refused by its type."""
    with pytest.raises(TypeError, match="with a ScopePath for a path, not a tuple"):
        tracing(ScopeEvent("opened", ("service",), None, 1.0))


async def test_a_tracer_that_fails_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What the SDK raises is logged by the scope, and the scope goes on."""

    class Broken(trace.NoOpTracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def start_span(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError("full")

    closed: list[str] = []
    async with Scope(on_event=Tracing(tracer_provider=Broken())) as scope:
        scope.defer(closed.append, "closed")
    gc.collect()

    assert closed == ["closed"]
    assert "on_event raised at 'opened', and the scope goes on: OSError: full" in caplog.text


async def test_without_an_sdk_nothing_is_recorded_and_the_trace_goes_on() -> None:
    """The API alone makes spans that record nothing; a remote parent is passed through."""
    remote = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(remote)))
    closed: list[str] = []
    try:
        async with Scope(on_event=Tracing(tracer_provider=trace.NoOpTracerProvider())) as scope:
            await scope.acquire(connect, Database.aclose)
            scope.child().defer(closed.append, "closed")
    finally:
        otel_context.detach(token)

    assert closed == ["closed"]


async def test_without_a_provider_the_global_one_is_taken(monkeypatch: pytest.MonkeyPatch, spans: Spans) -> None:
    """It may be set after the callback was made, as programs do."""
    tracing = Tracing()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    async with Scope("orders", on_event=tracing):
        pass

    assert spans.names == ["scope orders"]
    assert repr(tracing) == "<Tracing>"


# Around


def test_without_the_extra_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is an `ImportError` with the command."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    monkeypatch.delitem(sys.modules, "rescope.otel")

    with pytest.raises(ImportError, match=r"rescope.otel needs .*: pip install 'rescope\[otel\]'"):
        __import__("rescope.otel")


def test_only_the_api_is_imported() -> None:
    """The SDK is the program's choice."""
    code = "import sys, rescope.otel; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    result = subprocess.run(  # noqa: S603 (our own code, run by our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert result.stdout == "[]\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example_runs(backend: str) -> None:
    """The program runs as it is, on both backends, and draws the spans as a tree."""
    if backend == "trio":
        pytest.importorskip("trio")
    result = subprocess.run(  # noqa: S603 (our own example, run by our own interpreter)
        [sys.executable, "-W", "error", str(EXAMPLE), "--backend", backend],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )

    assert result.stderr == ""
    assert result.returncode == 0
    assert "close courier  ConnectionError: no answer" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("every span has ended")
