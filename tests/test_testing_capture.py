"""`rescope.testing`: events that are kept, things that must be closed, and the examples in its docstrings."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
import textwrap
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import rescope.testing
from rescope import Resource, ResourceCleanupError, Scope
from rescope._trace import Trace
from rescope.events import ScopeEvent
from rescope.testing import CapturedEvents, FaultyResource, assert_all_closed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Secret:
    """A value that nobody may print."""

    def __init__(self, *, closed: Any = False) -> None:
        self.closed = closed

    def __repr__(self) -> str:
        return "hunter2"


class Socket:
    """It can't be asked without awaiting."""

    async def is_closed(self) -> None: ...


def event(kind: Any, *path: str, resource: str | None = None) -> ScopeEvent:
    return ScopeEvent(kind, path, resource, 0.0)


# Events


async def test_events_are_kept_in_order() -> None:
    """`events` holds them as they were told; `kinds` and `told` are easy to compare."""
    captured = CapturedEvents()
    told: list[ScopeEvent] = []

    def on_event(event: ScopeEvent) -> None:
        told.append(event)
        captured(event)

    async with Scope("app", on_event=on_event) as scope:
        scope.child("request").add(FaultyResource(), name="cache")

    assert captured.events == told
    assert captured.kinds == [event.kind for event in told]
    assert captured.told == [
        ("opened", "app", None),
        ("opened", "app/request", None),
        ("acquired", "app", "request"),
        ("acquired", "app/request", "cache"),
        ("closing", "app", "request"),
        ("closing", "app/request", "cache"),
        ("closed", "app/request", "cache"),
        ("scope_closed", "app/request", None),
        ("closed", "app", "request"),
        ("scope_closed", "app", None),
    ]


async def test_events_of_some_kinds() -> None:
    """`of` gives the events of some kinds, with all that they tell; `names` what they tell of."""
    captured, error = CapturedEvents(), ConnectionError("gone")

    with pytest.raises(ResourceCleanupError):
        async with Scope("app", on_event=captured) as scope:
            scope.add(FaultyResource(), name="database")
            scope.add(FaultyResource(close=error), name="cache")

    assert [event.error for event in captured.of("failed")] == [error]
    assert [event.kind for event in captured.of("failed", "scope_closed")] == ["failed", "scope_closed"]
    assert captured.names("closed") == ["cache", "database"]
    assert captured.names("failed", "scope_closed") == ["cache", "app"]
    assert (captured.of(), captured.of("died")) == ([], [])


def test_events_can_be_forgotten() -> None:
    """`clear` begins anew."""
    captured = CapturedEvents()
    events = captured.events
    captured(event("opened", "app"))

    captured.clear()

    assert (captured.events, captured.kinds, captured.told) == ([], [], [])
    assert captured.events is events


def test_captured_events_read_well() -> None:
    """Their `repr` tells the kinds."""
    captured = CapturedEvents()
    assert repr(captured) == "<CapturedEvents: none yet>"

    captured(event("opened", "app"))
    captured(event("scope_closed", "app"))

    assert repr(captured) == "<CapturedEvents: opened, scope_closed>"


async def test_an_event_is_waited_for() -> None:
    """A test goes on when it is told, also where nothing of the test's own has caused it."""
    captured, leave = CapturedEvents(), anyio.Event()

    @asynccontextmanager
    async def client() -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield

    async def work() -> None:
        await leave.wait()
        raise ConnectionError

    scope = Scope("app", on_event=captured)
    await scope.host(client(), name="client")
    leave.set()
    died = await captured.wait("died", resource="client")
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()

    assert (died.kind, died.path, died.resource) == ("died", ("app",), "client")
    assert died is captured.of("died")[0]


async def test_the_first_that_fits_is_given() -> None:
    """An event that was told before is not waited for; resource and path tell one from the other."""
    captured = CapturedEvents()
    events = [
        event("opened", "app"),
        event("closed", "app", resource="cache"),
        event("closed", "app", "one", resource="db"),
        event("closed", "app", "two", resource="db"),
    ]
    for one in events:
        captured(one)

    assert await captured.wait("closed", timeout=0) is events[1]
    assert await captured.wait("closed", "db", timeout=0) is events[2]
    assert await captured.wait("closed", path="app/two", timeout=0) is events[3]
    assert await captured.wait("closed", "db", path="app/two", timeout=0) is events[3]


async def test_all_who_wait_are_told() -> None:
    """Several may wait for events of one kind; each goes on with its own."""
    captured = CapturedEvents()
    got: list[ScopeEvent] = []

    async def wait(name: str) -> None:
        got.append(await captured.wait("closed", name))

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "b"):
            tasks.start_soon(wait, name)
        await anyio.wait_all_tasks_blocked()
        captured(event("closed", "app", resource="b"))
        await anyio.wait_all_tasks_blocked()
        assert [event.resource for event in got] == ["b", "b"]
        captured(event("closed", "app", resource="a"))

    assert [event.resource for event in got] == ["b", "b", "a"]


async def test_an_event_that_does_not_come_is_told() -> None:
    """Out of time, the error says what was waited for, and lists what came."""
    captured = CapturedEvents()
    with pytest.raises(TimeoutError) as nothing:
        await captured.wait("died", timeout=0)
    captured(event("opened", "app"))
    captured(event("closed", "app", "request", resource="cache"))
    with pytest.raises(TimeoutError) as something:
        await captured.wait("closed", "db", path="app/request", timeout=0.01)

    assert str(nothing.value) == "no 'died' was told within 0 s, but:\n  nothing at all"
    assert str(something.value).splitlines() == [
        "no 'closed' of 'db' in 'app/request' was told within 0.01 s, but:",
        "  ('opened', 'app', None)",
        "  ('closed', 'app/request', 'cache')",
    ]


async def test_to_wait_for_an_event_can_be_cancelled() -> None:
    """A cancellation ends the waiting, and is no timeout."""
    captured = CapturedEvents()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await captured.wait("died")

    assert scope.cancelled_caught
    assert captured._bell._waiting == []


async def test_a_kind_that_there_is_not_is_refused() -> None:
    """A slip would find no event, and a test that wants none would pass."""
    captured, unknown = CapturedEvents(), "faild"

    for ask in (captured.of, captured.names):
        with pytest.raises(ValueError, match="there is no kind 'faild' of events: the kinds are opened, acquired, "):
            ask("closed", unknown)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no kind 'faild' of events"):
        await captured.wait(unknown)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`timeout` must be a number of seconds"):
        await captured.wait("closed", timeout="5")  # type: ignore[arg-type]


# What is closed


async def test_what_is_closed_passes() -> None:
    """Scopes, children, handles, doubles, and values that tell so in their own way."""

    class Client:
        is_closed = True
        closed = False  # `is_closed` is asked first

    class Connection:
        def is_closed(self) -> bool:
            return True

    async with Scope("app") as scope:
        child = scope.child()
        faulty = child.add(FaultyResource())
        handles = (*scope.resources, *child.resources)
    with tempfile.TemporaryFile() as file:
        pass

    assert_all_closed(scope, child, *handles, faulty, file, Client(), Connection(), Secret(closed=1))

    assert [handle.state for handle in handles] == ["closed", "closed"]


async def test_what_is_open_is_named() -> None:
    """The error counts what isn't closed, and tells the state of each, in order, and no value's `repr`."""
    scope = Scope("app")
    scope.add(Secret(), int)
    handle = Resource("hunter2", int, name="cache")
    cut_off = FaultyResource("db", close="hang")
    with anyio.move_on_after(0):
        await cut_off.aclose()
    detached = scope.detach(scope.defer(int))

    with pytest.raises(AssertionError) as caught:
        assert_all_closed(scope, handle, Secret(closed=True), cut_off, detached, Secret(), Secret(closed=0))

    assert str(caught.value).splitlines() == [
        "6 of 7 not closed:",
        "  Scope 'app' open, holds 1",
        "  └── Secret",
        "  cache: open",
        "  <FaultyResource 'db': closing, cancelled>",
        "  int: detached",
        "  Secret: open",
        "  Secret: open",
    ]
    await scope.aclose()


async def test_what_is_open_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sites are recorded, the error tells the line that registered it."""
    monkeypatch.setattr(Trace, "on", True)
    scope = Scope("app")
    handle = scope.defer(int)

    with pytest.raises(AssertionError) as caught:
        assert_all_closed(scope, handle)

    line = inspect.currentframe().f_lineno - 5  # type: ignore[union-attr]
    place = f"(registered at {__file__}:{line} in {test_what_is_open_is_named_with_its_line.__qualname__})"
    assert str(caught.value).splitlines()[2:] == [f"  └── int {place}", f"  int {place}: open"]
    await scope.aclose()


async def test_a_scope_in_which_something_failed_is_named() -> None:
    """It is closed, but not all that was in it; its handles are closed all the same."""
    scope = Scope("app")
    scope.add(faulty := FaultyResource("cache", close=ConnectionError("gone")), name="cache")
    handles = scope.resources
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()

    with pytest.raises(AssertionError) as caught:
        assert_all_closed(scope, *handles, faulty)

    assert str(caught.value).splitlines() == [
        "2 of 3 not closed:",
        "  1 of 1 resources of scope 'app' failed to close: cache: ConnectionError: gone",
        "  <FaultyResource 'cache': closing, failed>",
    ]


async def test_what_is_closing_is_not_closed() -> None:
    """A scope, and a handle, whose close has begun but not ended."""
    scope, faulty = Scope("app"), FaultyResource(close="hang")
    scope.add(faulty)
    handles = scope.resources

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await faulty.wait("closing")
        with pytest.raises(AssertionError, match=r"(?s)3 of 3 not closed:.*'app' closing.*FaultyResource: closing"):
            assert_all_closed(scope, *handles, faulty)
        faulty.let_go()

    assert_all_closed(scope, *handles, faulty)


def test_what_can_not_tell_is_refused() -> None:
    """What has no `closed`, or one that gives no bool, is a slip of the test, as is nothing at all."""
    cases: list[tuple[object, str]] = [
        (object(), "a object has neither `is_closed` nor `closed`: pass its handle, or the scope that held it"),
        (Socket(), "`is_closed` of a Socket gives a coroutine, not a bool: assert on it by yourself"),
        (Secret(closed="no"), "`closed` of a Secret gives a str, not a bool: assert on it by yourself"),
    ]
    for thing, message in cases:
        with pytest.raises(TypeError) as caught:
            assert_all_closed(thing)
        assert str(caught.value) == message
    with pytest.raises(TypeError, match="nothing to assert: pass scopes, handles or values"):
        assert_all_closed(*Scope().resources)


# The module


@pytest.mark.parametrize("name", ["FaultyResource", "CapturedEvents", "assert_all_closed"])
async def test_the_example_of_a_docstring_runs(name: str) -> None:
    """What a docstring shows is a test, and passes."""
    (example,) = re.findall(r"::\n\n((?: {4}.*(?:\n|$))+)", inspect.getdoc(getattr(rescope.testing, name)) or "")
    names: dict[str, Any] = vars(rescope) | vars(rescope.testing) | {"pytest": pytest}

    exec(textwrap.dedent(example), names)  # noqa: S102 (it is our own)
    (test,) = (value for key, value in names.items() if key.startswith("test_"))

    assert await test() is None


@pytest.mark.parametrize("backend", [name for name in ("asyncio", "trio") if find_spec(name)])
def test_little_is_imported(backend: str) -> None:
    """To import the module takes neither pytest nor trio; to use it on asyncio doesn't, either."""
    code = """if True:
        import sys
        from rescope.testing import FaultyResource
        assert {"anyio._core._tasks", "pytest", "trio"}.isdisjoint(sys.modules), sys.modules
        import anyio
        async def main():
            faulty = FaultyResource(close=["cancelled", 0, "hang"])
            for ends in (BaseException, (), ()):
                try:
                    faulty.let_go()
                    await faulty.aclose()
                except ends:
                    pass
            return faulty.history
        print(*anyio.run(main, backend=sys.argv[1]), "trio" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code, backend], capture_output=True, text=True, check=True)  # noqa: S603

    history = "closing failed closing closed closing closed"
    assert done.stdout.split() == [*history.split(), str(backend == "trio")]
