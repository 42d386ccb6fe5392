"""What a scope tells its `on_event`."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from rescope import CloseTimeoutError, HostDiedError, ResourceCleanupError, Scope, ScopeClosedError
from rescope.events import ScopeEvent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Told = tuple[str, tuple[str, ...], "str | None"]


class Heard:
    """An `on_event` that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[ScopeEvent] = []
        self.died = anyio.Event()

    def __call__(self, event: ScopeEvent) -> None:
        self.events.append(event)
        if event.kind == "died":
            self.died.set()

    @property
    def kinds(self) -> list[str]:
        """The kinds, in order."""
        return [event.kind for event in self.events]

    @property
    def told(self) -> list[Told]:
        """Kind, path and resource of each, in order."""
        return [(event.kind, event.path, event.resource) for event in self.events]

    def of(self, *kinds: str) -> list[ScopeEvent]:
        """Those of some kinds."""
        return [event for event in self.events if event.kind in kinds]


@pytest.fixture
def heard() -> Heard:
    """An `on_event` that keeps what it is told."""
    return Heard()


def nothing() -> None:
    """Close nothing."""


@asynccontextmanager
async def session() -> AsyncGenerator[str, None]:
    """A context manager."""
    yield "session"


class Leaving:
    """A hosted manager whose task can be made to end before it is closed."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tasks = anyio.create_task_group()
        self.leave = anyio.Event()

    async def __aenter__(self) -> Leaving:
        await self.tasks.__aenter__()
        self.tasks.start_soon(self.work)
        return self

    async def work(self) -> None:
        """Fail in the background."""
        await self.leave.wait()
        raise self.error

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return await self.tasks.__aexit__(*exc_info)


# The event


def test_an_event_is_frozen() -> None:
    """Who hears an event can't change it for the next."""
    event: Any = ScopeEvent("opened", ("scope",), None, 0.0)

    with pytest.raises(AttributeError):
        event.kind = "closed"


def test_an_event_has_these_fields() -> None:
    """Kind, path, resource, time, elapsed, error."""
    assert list(ScopeEvent._fields) == [
        "kind",
        "path",
        "resource",
        "time",
        "elapsed",
        "error",
    ]


async def test_the_time_is_that_of_the_epoch(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """`time` is in seconds since the epoch."""
    monkeypatch.setattr(time, "time", lambda: 1234.5)

    async with Scope(on_event=heard) as scope:
        scope.defer(nothing)

    assert {event.time for event in heard.events} == {1234.5}


# What is told when


async def test_the_life_of_an_empty_scope(heard: Heard) -> None:
    """`opened` and `scope_closed` concern the scope itself."""
    async with Scope("orders", on_event=heard):
        pass

    assert heard.told == [("opened", ("orders",), None), ("scope_closed", ("orders",), None)]


async def test_a_scope_without_a_name_is_called_scope(heard: Heard) -> None:
    """In a path, `"scope"` stands for one without a name."""
    async with Scope(on_event=heard):
        pass

    assert {event.path for event in heard.events} == {("scope",)}


async def test_a_scope_that_is_opened_is_told_at_once(heard: Heard) -> None:
    """`opened` comes when the scope is made, also without a block."""
    scope = Scope(on_event=heard)
    kinds = heard.kinds
    await scope.aclose()

    assert kinds == ["opened"]


async def test_the_life_of_a_resource(heard: Heard) -> None:
    """A resource is `acquired`, then `closing`, then `closed`."""
    async with Scope("orders", on_event=heard) as scope:
        scope.add(1, nothing, name="db")

    assert heard.told[1:-1] == [
        ("acquired", ("orders",), "db"),
        ("closing", ("orders",), "db"),
        ("closed", ("orders",), "db"),
    ]


async def test_every_way_to_register_is_told(heard: Heard) -> None:
    """Whatever a scope holds is told as `acquired`, under its name."""
    async with Scope(on_event=heard) as scope:
        scope.add(1, nothing, name="add")
        await scope.acquire(object, print, name="acquire")
        await scope.enter(session(), name="enter")
        await scope.host(session(), name="host")
        await scope.host_all(session())
        scope.defer(nothing)
        scope.on_error(nothing)
        scope.on_success(nothing)
        scope.on_exit(print)
        scope.child("child")

    acquired = ["add", "acquire", "enter", "host", "session", "nothing", "nothing", "nothing", "print", "child"]
    assert [event.resource for event in heard.of("acquired")] == acquired


async def test_every_kind_of_resource_is_told_to_close(heard: Heard) -> None:
    """Whatever a scope holds is told as `closing` and `closed`, in LIFO order."""
    async with Scope("root", on_event=heard) as scope:
        scope.add(1, nothing, name="add")
        await scope.acquire(object, lambda _: anyio.lowlevel.checkpoint(), name="acquire")
        await scope.enter(session(), name="enter")
        await scope.host(session(), name="host")
        scope.on_error(nothing)
        scope.child("child")

    names = ["child", "nothing", "host", "enter", "acquire", "add"]
    assert [(e.kind, e.resource) for e in heard.of("closing", "closed") if e.path == ("root",)] == [
        (kind, name) for name in names for kind in ("closing", "closed")
    ]


async def test_a_failure_is_told_between_closing_and_closed(heard: Heard) -> None:
    """A resource that fails to close is `failed`, and `closed` all the same."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.defer(lambda: 1 / 0)

    assert heard.kinds == ["opened", "acquired", "closing", "failed", "closed", "scope_closed"]


async def test_a_failure_is_told_with_its_error(heard: Heard) -> None:
    """`failed` carries what the closer raised."""
    error = OSError("no")

    async def fail() -> None:
        raise error

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.defer(fail)

    assert [event.error for event in heard.of("failed")] == [error]


async def test_the_end_is_told_with_the_cleanup_error(heard: Heard) -> None:
    """`scope_closed` carries the `ResourceCleanupError`, where there is one."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=heard) as scope:
            scope.defer(lambda: 1 / 0)

    assert [event.error for event in heard.of("scope_closed")] == [caught.value]


async def test_the_end_of_a_clean_scope_has_no_error(heard: Heard) -> None:
    """What the body raised is no cleanup error."""
    with pytest.raises(ValueError):  # noqa: PT011
        async with Scope(on_event=heard) as scope:
            scope.defer(nothing)
            raise ValueError

    assert [event.error for event in heard.events] == [None] * 5


async def test_a_cleanup_error_that_is_not_raised_is_told(heard: Heard) -> None:
    """Where an interruption is raised instead, `scope_closed` tells the cleanup error."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with Scope(on_event=heard) as scope:
            scope.defer(lambda: 1 / 0)
            scope.defer(interrupt)

    assert [event.error for event in heard.of("scope_closed")] == [scope.cleanup_error]


async def test_what_is_out_of_time_is_told(heard: Heard) -> None:
    """A closer out of time is `timed_out`, `forced` where there is a `force`, then `failed`."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.add(1, anyio.sleep_forever, name="db", timeout=0.01, force=nothing)

    assert [(event.kind, event.resource) for event in heard.events[2:-1]] == [
        ("closing", "db"),
        ("timed_out", "db"),
        ("forced", "db"),
        ("failed", "db"),
        ("closed", "db"),
    ]


async def test_what_is_out_of_time_without_force(heard: Heard) -> None:
    """`forced` is told only where something was forced."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.add(1, anyio.sleep_forever, timeout=0.01)

    assert heard.kinds[2:-1] == ["closing", "timed_out", "failed", "closed"]


async def test_what_is_out_of_time_carries_its_error(heard: Heard) -> None:
    """`timed_out` and `failed` carry the same `CloseTimeoutError`."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=heard) as scope:
            scope.add(1, anyio.sleep_forever, timeout=0.01)

    (error,) = caught.value.exceptions
    assert ([event.error for event in heard.of("timed_out", "failed")], type(error)) == (
        [error, error],
        CloseTimeoutError,
    )


async def test_how_long_it_took_is_told(heard: Heard) -> None:
    """`closed` and `failed` tell the seconds that the close took; `opened` and `acquired` have none."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.defer(lambda: 1 / 0)

    assert {event.kind: event.elapsed is not None for event in heard.events if event.kind != "scope_closed"} == {
        "opened": False,
        "acquired": False,
        "closing": False,
        "failed": True,
        "closed": True,
    }


async def test_the_elapsed_time_of_a_failure_is_that_of_its_report(heard: Heard) -> None:
    """`failed` and the `CloseFailure` tell the same."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=heard) as scope:
            scope.defer(lambda: 1 / 0)

    assert [event.elapsed for event in heard.of("failed")] == [f.elapsed for f in caught.value.failures]


async def test_a_death_is_told_at_once(heard: Heard) -> None:
    """A hosted manager whose background work failed is `died`, before anyone closes it."""
    scope = Scope("root", on_event=heard)
    host = await scope.host(Leaving(ConnectionError("lost")), name="client")
    host.leave.set()
    await heard.died.wait()
    told, state = heard.told[-1], scope.state
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()

    assert (told, state) == (("died", ("root",), "client"), "open")


async def test_a_death_is_told_with_its_error(heard: Heard) -> None:
    """`died` carries what ended the task."""
    error = ConnectionError("lost")

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            host = await scope.host(Leaving(error), name="client")
            host.leave.set()
            await heard.died.wait()

    (event,) = heard.of("died")
    assert isinstance(event.error, BaseExceptionGroup)
    assert event.error.exceptions == (error,)


async def test_closing_the_dead_is_told_too(heard: Heard) -> None:
    """Closing a manager that died is `closing`, `failed`, `closed`, like any failure."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            host = await scope.host(Leaving(ConnectionError()), name="client")
            host.leave.set()
            await heard.died.wait()

    assert heard.kinds == ["opened", "acquired", "died", "closing", "failed", "closed", "scope_closed"]


async def test_a_host_that_is_closed_did_not_die(heard: Heard) -> None:
    """The end that was asked for is no death, not even where the exit fails."""

    @asynccontextmanager
    async def failing() -> AsyncGenerator[None, None]:
        yield
        raise ConnectionError

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            await scope.host(failing())
            await scope.host(session())

    assert heard.of("died") == []


async def test_a_host_that_leaves_no_error_died_too(heard: Heard) -> None:
    """A task that just ended is a `HostDiedError` when it is closed."""

    class Swallowing(Leaving):
        async def __aexit__(self, *exc_info: object) -> bool:
            try:
                await super().__aexit__(*exc_info)
            except BaseExceptionGroup:
                pass
            return True

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            host = await scope.host(Swallowing(ConnectionError()), name="client")
            host.leave.set()
            await heard.died.wait()

    assert [(e.kind, type(e.error)) for e in heard.of("died", "failed")][1:] == [("failed", HostDiedError)]


async def test_a_release_is_told(heard: Heard) -> None:
    """What is closed early is told when it is closed."""
    async with Scope("root", on_event=heard) as scope:
        handle = scope.add(1, nothing, name="db")
        await scope.release(handle)
        told = heard.told

    assert told[2:] == [("closing", ("root",), "db"), ("closed", ("root",), "db")]


async def test_a_failed_release_is_told(heard: Heard) -> None:
    """A failure of an early close is told too."""
    async with Scope(on_event=heard) as scope:
        handle = scope.defer(lambda: 1 / 0)
        with pytest.raises(ResourceCleanupError):
            await scope.release(handle)
        kinds = heard.kinds

    assert kinds == ["opened", "acquired", "closing", "failed", "closed"]


async def test_misuse_tells_nothing(heard: Heard) -> None:
    """What was not registered was not acquired."""
    async with Scope(on_event=heard) as scope:
        with pytest.raises(TypeError):
            scope.add(object())
        with pytest.raises(TypeError):
            await scope.enter(1)  # type: ignore[call-overload]

    assert heard.kinds == ["opened", "scope_closed"]


async def test_what_is_registered_while_closing_is_told(heard: Heard) -> None:
    """What comes late is `acquired`, and closed, like the rest."""
    async with Scope(on_event=heard) as scope:
        scope.add(1, lambda: scope.add(2, nothing, name="late"), name="early")

    assert [(event.kind, event.resource) for event in heard.events[2:-1]] == [
        ("closing", "early"),
        ("acquired", "late"),
        ("closed", "early"),
        ("closing", "late"),
        ("closed", "late"),
    ]


async def test_a_closed_scope_tells_no_more(heard: Heard) -> None:
    """`scope_closed` is the last word of a scope."""
    async with Scope(on_event=heard) as scope:
        pass
    await scope.aclose()
    with pytest.raises(ScopeClosedError):
        scope.defer(nothing)

    assert heard.kinds == ["opened", "scope_closed"]


# Children and moved scopes


async def test_a_child_inherits_on_event(heard: Heard) -> None:
    """A child tells its parent's callback, with the path from the root down."""
    async with Scope("root", on_event=heard) as scope:
        child = scope.child("inner")
        child.add(1, nothing, name="db")

    assert [told for told in heard.told if told[1] == ("root", "inner")] == [
        ("opened", ("root", "inner"), None),
        ("acquired", ("root", "inner"), "db"),
        ("closing", ("root", "inner"), "db"),
        ("closed", ("root", "inner"), "db"),
        ("scope_closed", ("root", "inner"), None),
    ]


async def test_a_child_is_a_resource_of_its_parent(heard: Heard) -> None:
    """The parent tells of the child as of any resource, under the child's name."""
    async with Scope("root", on_event=heard) as scope:
        scope.child("inner")

    assert [told for told in heard.told if told[2] == "inner"] == [
        ("acquired", ("root",), "inner"),
        ("closing", ("root",), "inner"),
        ("closed", ("root",), "inner"),
    ]


@pytest.mark.parametrize("how", ["aclose", "block", "release"])
async def test_a_child_that_is_closed_first_is_told(heard: Heard, how: str) -> None:
    """The parent tells that a child was closed, also where the child was closed by itself."""
    async with Scope("root", on_event=heard) as scope:
        child = scope.child("inner")
        if how == "aclose":
            await child.aclose()
        elif how == "block":
            async with child:
                pass
        else:
            await scope.release(child)
        told = heard.told

    assert [told for told in told if told[2] == "inner"][1:] == [
        ("closing", ("root",), "inner"),
        ("closed", ("root",), "inner"),
    ]


async def test_the_failures_of_a_child_are_told_twice(heard: Heard) -> None:
    """The child tells what failed in it; the parent, that the child failed."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("root", on_event=heard) as scope:
            scope.child("inner").defer(nothing)
            scope.resources[0].value.add(1, lambda: 1 / 0, name="db")

    (inner,) = caught.value.exceptions
    assert [(e.path, e.resource, e.error) for e in heard.of("failed")] == [
        (("root", "inner"), "db", inner.exceptions[0]),  # type: ignore[union-attr]
        (("root",), "inner", inner),
    ]


async def test_the_path_goes_to_any_depth(heard: Heard) -> None:
    """A grandchild's path has all the names, `"scope"` for those without one."""
    async with Scope(on_event=heard) as scope:
        scope.child("a").child().child("c")

    assert [event.path for event in heard.of("opened")] == [
        ("scope",),
        ("scope", "a"),
        ("scope", "a", "scope"),
        ("scope", "a", "scope", "c"),
    ]


async def test_a_moved_scope_inherits_on_event(heard: Heard) -> None:
    """The new scope tells the same callback, with the same path."""
    async with Scope("root", on_event=heard) as scope:
        scope.add(1, nothing, name="db")
        moved = scope.move()
    heard.events.clear()
    await moved.aclose()

    assert heard.told == [
        ("closing", ("root",), "db"),
        ("closed", ("root",), "db"),
        ("scope_closed", ("root",), None),
    ]


async def test_a_moved_scope_is_opened(heard: Heard) -> None:
    """The new scope is told as `opened`; what is handed over is not acquired again."""
    async with Scope("root", on_event=heard) as scope:
        scope.add(1, nothing, name="db")
        heard.events.clear()
        moved = scope.move()
        told = heard.told
    await moved.aclose()

    assert told == [("opened", ("root",), None)]


async def test_a_moved_child_keeps_its_path(heard: Heard) -> None:
    """Children that were handed over tell under the same names."""
    async with Scope("root", on_event=heard) as scope:
        child = scope.child("inner")
        moved = scope.move()
        child.add(1, nothing, name="db")
    await moved.aclose()

    assert {event.path for event in heard.events if event.resource == "db"} == {("root", "inner")}


async def test_a_child_of_a_moved_scope_tells_too(heard: Heard) -> None:
    """Children that are made after the move inherit from the new scope."""
    async with Scope("root", on_event=heard) as scope:
        moved = scope.move()
    async with moved:
        moved.child("inner")

    assert ("opened", ("root", "inner"), None) in heard.told


async def test_a_scope_without_on_event_tells_nobody(heard: Heard) -> None:
    """A handle that moved to another scope tells that one's callback, or nobody."""
    async with Scope() as quiet, Scope(on_event=heard) as scope:
        scope.add(1, nothing, name="db")
        quiet.add(scope.detach(scope.resources[0]))

    assert heard.kinds == ["opened", "acquired", "scope_closed"]


async def test_a_detached_resource_tells_nobody(heard: Heard) -> None:
    """Whoever closes what is theirs again needs no event."""
    async with Scope(on_event=heard) as scope:
        handle = scope.detach(scope.defer(nothing))
        await handle.aclose()

    assert heard.kinds == ["opened", "acquired", "scope_closed"]


async def test_a_concurrent_scope_tells_the_same(heard: Heard) -> None:
    """All begin to close, then each is closed."""
    one, other = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, theirs: anyio.Event) -> None:
        mine.set()
        await theirs.wait()

    async with Scope(concurrent=True, on_event=heard) as scope:
        scope.defer(meet, one, other)
        scope.defer(meet, other, one)

    assert heard.kinds == ["opened", "acquired", "acquired", "closing", "closing", "closed", "closed", "scope_closed"]


# Callbacks that fail


def broken(event: ScopeEvent) -> None:
    """An `on_event` that always fails."""
    msg = f"broken by {event.kind}"
    raise RuntimeError(msg)


async def test_a_raising_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What `on_event` raises is logged at ERROR on the logger `rescope`, once for each event."""
    async with Scope(on_event=broken) as scope:
        scope.defer(nothing)

    logged = [(r.name, r.levelno, r.getMessage()) for r in caplog.records]
    assert logged == [
        (
            "rescope",
            logging.ERROR,
            f"on_event raised at {kind!r}, and the scope goes on: RuntimeError: broken by {kind}",
        )
        for kind in ("opened", "acquired", "closing", "closed", "scope_closed")
    ]


async def test_a_raising_callback_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """All is closed, in order, as without a callback."""
    log: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("async")

    with caplog.at_level(logging.CRITICAL, "rescope"):
        async with Scope(on_event=broken) as scope:
            scope.defer(log.append, "sync")
            scope.defer(close)
            await scope.host(session())
            await scope.enter(session())
            scope.child().defer(log.append, "child")

    assert (log, scope.cleanup_error) == (["child", "async", "sync"], None)


async def test_a_raising_callback_changes_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """What fails to close is reported as without a callback."""
    error = OSError("no")

    def fail() -> None:
        raise error

    with caplog.at_level(logging.CRITICAL, "rescope"), pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=broken) as scope:
            scope.defer(fail)

    assert caught.value.exceptions == (error,)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_a_callback_that_interrupts_is_logged_too(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `on_event` raises, it disturbs nothing."""
    log: list[str] = []

    def interrupt(_: ScopeEvent) -> None:
        raise kind

    async with Scope(on_event=interrupt) as scope:
        scope.defer(log.append, "closed")

    assert (log, len(caplog.records)) == (["closed"], 5)


async def test_a_callback_may_use_the_scope() -> None:
    """A callback can look at the scope that tells it."""
    sizes: list[int] = []
    scopes: list[Scope] = []

    def look(_: ScopeEvent) -> None:
        sizes.extend(scope.size for scope in scopes)

    async with Scope(on_event=look) as scope:
        scopes.append(scope)
        scope.defer(nothing)

    assert sizes == [1, 0, 0, 0]


async def test_events_never_carry_a_value(heard: Heard) -> None:
    """Names and types are told, never a value, which may be a password."""

    class Refused(Exception):
        pass

    def fail(_: str) -> None:
        raise Refused

    with pytest.raises(ResourceCleanupError):
        async with Scope(on_event=heard) as scope:
            scope.add("hunter2", nothing)
            scope.defer(fail, "hunter2")

    assert [event for event in heard.events if "hunter2" in repr(event)] == []


async def test_scope_closed_tells_how_long_the_closing_took() -> None:
    """The last event of a scope has the seconds since it began to close; those of its closes are part of that."""
    heard = Heard()
    async with Scope(on_event=heard) as scope:
        scope.defer(anyio.sleep, 0.01)
    closed, last = heard.events[-2:]
    assert (closed.kind, last.kind) == ("closed", "scope_closed")
    assert closed.elapsed is not None
    assert last.elapsed is not None
    assert last.elapsed >= closed.elapsed >= 0.009
