"""What only mutation testing showed to be untested: each of these fails on a mutant that all other tests let live."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import HostDiedError, Ok, Resource, ResourceCleanupError, Scope, ScopeClosedError, WrongTaskError
from rescope.events import ScopeEvent
from test_budget import LONG, allowed, failure_of, jump

# Those who wait for a close


async def test_any_number_wait_for_one_close() -> None:
    """A third and a fourth wait as the second does, its closer runs once, and until then its scope has it."""
    log: list[str] = []
    reached, go = anyio.Event(), anyio.Event()

    async def close() -> None:
        reached.set()
        await go.wait()
        log.append("closed")

    scope, value = Scope(), object()
    scope.add(value, close)
    (handle,) = scope.resources

    async def wait() -> None:
        await handle.aclose()
        log.append("came back")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await reached.wait()
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        try:
            found = value in scope
        finally:
            go.set()

    assert found
    assert log == ["closed", *["came back"] * 3]


async def test_one_waits_for_a_manager_that_is_being_exited() -> None:
    """Whoever closes an entered manager that its scope is exiting comes back when it has exited."""
    log: list[str] = []
    reached, go = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def manager() -> Any:
        yield
        reached.set()
        await go.wait()
        log.append("exited")

    scope = Scope()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await reached.wait()
                tasks.start_soon(second)
                await anyio.wait_all_tasks_blocked()
                go.set()

            async def second() -> None:
                await handle.aclose()
                log.append("came back")

            tasks.start_soon(wait)
            async with scope:
                await scope.enter(manager())
                (handle,) = scope.resources

    assert log == ["exited", "came back"]


async def test_what_is_released_out_of_turn_counts_until_it_is_closed() -> None:
    """Also while a concurrent scope closes the others: `size` tells of the one that somebody else is closing."""
    sizes: list[int] = []
    reached, go = anyio.Event(), anyio.Event()

    async def slow() -> None:
        reached.set()
        await go.wait()

    scope = Scope(concurrent=True)
    handle = scope.defer(slow)
    scope.defer(lambda: sizes.append(scope.size))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.aclose)
        await reached.wait()
        tasks.start_soon(scope.aclose)
        await anyio.wait_all_tasks_blocked()
        sizes.append(scope.size)
        go.set()

    assert [*sizes, scope.size] == [1, 1, 0]


# Cancellation


async def test_a_cancellation_that_cuts_off_the_only_exit_comes_out() -> None:
    """Nothing was in flight before, and it is no failure of the manager's."""
    reached = anyio.Event()

    class Manager:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            reached.set()
            await anyio.sleep_forever()

    scope = Scope()
    came_out: list[type[BaseException]] = []

    async def body() -> None:
        try:
            async with scope:
                await scope.enter(Manager())
        except BaseException as exc:
            came_out.append(type(exc))
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body)
        await reached.wait()
        tasks.cancel_scope.cancel()

    assert (came_out, scope.cleanup_error) == ([anyio.get_cancelled_exc_class()], None)


# Time


def test_what_is_registered_meanwhile_takes_no_time_from_a_concurrent_close() -> None:
    """Each of a concurrent scope has all of the grace, whatever a sync closer among them registers."""

    async def main() -> Any:
        scope = Scope(grace=LONG, concurrent=True)
        scope.add("x", anyio.sleep_forever, name="one")
        scope.defer(lambda: scope.defer(int))
        return await failure_of(scope.aclose)

    error, _ = jump(main)

    assert allowed(error) == [("one", LONG)]


def test_half_of_what_is_left_is_no_whole_number_of_seconds() -> None:
    """Of five seconds the first one has two and a half, and so has the last."""

    async def main() -> Any:
        scope = Scope(grace=5.0)
        scope.add("x", anyio.sleep_forever, name="last")
        scope.add("x", anyio.sleep_forever, name="first")
        return await failure_of(scope.aclose)

    error, _ = jump(main)

    assert allowed(error) == [("first", 2.5), ("last", 2.5)]


@pytest.mark.parametrize("options", [{}, {"on_event": lambda event: None}], ids=["plain", "told"])
async def test_a_failure_tells_how_long_its_close_took(options: dict[str, Any]) -> None:
    """`elapsed` runs from the beginning of that one close to its failure."""
    began: list[float] = []

    def fail() -> None:
        began.append(time.perf_counter())
        while time.perf_counter() - began[-1] < 0.001:
            pass
        raise ValueError

    async def fail_later() -> None:
        await anyio.lowlevel.checkpoint()
        fail()

    class Manager:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            fail()

    scope = Scope(**options)
    scope.defer(fail)
    scope.defer(fail_later)
    await scope.enter(Manager())
    await scope.enter(Manager())
    before = time.perf_counter()
    error = await failure_of(scope.aclose)
    took = time.perf_counter() - before

    assert error is not None
    assert len(error.failures) == 4
    assert all(failure.elapsed >= 0.001 for failure in error.failures)
    assert sum(failure.elapsed for failure in error.failures) <= took


# What managers see


class Alike(Exception):  # noqa: PLW1641 (nothing hashes it)
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)


async def test_a_manager_sees_python_handle_what_it_is_given() -> None:
    """Also where a manager inside has put something in the place of the body's exception that equals it."""
    seen: list[object] = []

    class Outer:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            seen.extend((exc, sys.exception()))

    @asynccontextmanager
    async def translates() -> Any:
        try:
            yield
        except Alike as exc:
            raise Alike("outside") from exc

    with pytest.raises(Alike, match="outside") as caught:
        async with Scope() as scope:
            await scope.enter(Outer())
            await scope.enter(translates())
            raise Alike("inside")

    assert [one is caught.value for one in seen] == [True, True]


def test_nurseries_around_a_manager_are_not_its_own() -> None:
    """One that opened none may be exited in another task, whatever nurseries its own task holds open."""
    trio = pytest.importorskip("trio")
    log: list[str] = []

    @contextmanager
    def untied() -> Iterator[None]:
        yield
        log.append("exited")

    async def main() -> None:
        scope = Scope()
        async with trio.open_nursery() as nursery:
            await scope.enter(untied())
            nursery.start_soon(scope.aclose)

    trio.run(main)

    assert log == ["exited"]


def test_a_nursery_inside_of_others_is_not_exited_in_another_task() -> None:
    """It is the manager's own that counts, however many are open around."""
    trio = pytest.importorskip("trio")

    async def main() -> Any:
        scope, group = Scope(), anyio.create_task_group()
        errors: list[ResourceCleanupError | None] = []

        async def close() -> None:
            errors.append(await failure_of(scope.aclose))

        async with trio.open_nursery(), trio.open_nursery() as nursery:
            await scope.enter(group)
            nursery.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            await group.__aexit__(None, None, None)
        return errors

    (error,) = trio.run(main)

    assert error is not None
    assert [type(failure.exception) for failure in error.failures] == [WrongTaskError]


# Messages


async def test_a_resource_that_fails_by_itself_is_one_of_one() -> None:
    """The error of a handle's own `aclose` counts that one resource, whatever its scope holds besides."""

    def fail() -> None:
        raise ValueError("x")

    async with Scope() as scope:
        scope.defer(int)
        handle = scope.defer(fail)
        with pytest.raises(ResourceCleanupError, match=r"^1 of 1 resources failed to close") as caught:
            await handle.aclose()

    assert len(caught.value.failures) == 1


@pytest.mark.parametrize(
    ("count", "end"), [(1, "x0"), (10, "x8, x9"), (11, "x8, x9 and 1 more"), (13, "x8, x9 and 3 more")]
)
def test_the_warning_of_a_dropped_scope_names_ten(count: int, end: str) -> None:
    """It says how many more there are, if any, and points at the line that dropped the scope."""
    scope = Scope()
    for number in range(count):
        scope.add(object(), int, name=f"x{number}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del scope
        gc.collect()

    assert [(str(warning.message).endswith(end), warning.filename) for warning in caught] == [(True, __file__)]


class OnlyEnters:
    async def __aenter__(self) -> None:
        raise AssertionError("entered")


class OnlyExits:
    async def __aexit__(self, *exc: object) -> None:
        raise AssertionError("exited")


class OnlyEntersSync:
    def __enter__(self) -> None:
        raise AssertionError("entered")


class OnlyExitsSync:
    def __exit__(self, *exc: object) -> None:
        raise AssertionError("exited")


@pytest.mark.parametrize("how", [Scope.enter, Scope.host], ids=["enter", "host"])
@pytest.mark.parametrize("half", [OnlyEnters, OnlyExits, OnlyEntersSync, OnlyExitsSync])
async def test_half_a_manager_is_refused(half: Callable[[], Any], how: Callable[..., Any]) -> None:
    """One that can be entered but not exited, or the other way round, is not entered, and the error says what lacks."""
    async with Scope() as scope:
        with pytest.raises(TypeError, match="which has no `__aenter__` and `__aexit__`"):
            await how(scope, half())

        assert scope.size == 0


# Many


async def test_a_callback_over_many_closers_is_called_first() -> None:
    """What is closed in its own way may stand over any number of plain closers."""
    log: list[str] = []
    with anyio.fail_after(5):
        async with Scope() as scope:
            for _ in range(300):
                scope.defer(log.append, "closed")
            scope.on_success(log.append, "succeeded")

    assert log == ["succeeded", *["closed"] * 300]


# Memory


async def test_a_long_lived_scope_lets_go_of_what_it_released() -> None:
    """Of what was released around the few that stay, not much more is kept alive than there are of those."""

    class Value:
        def close(self) -> None: ...

    async with Scope() as scope:
        staying = [scope.add(Value()) for _ in range(20)]
        refs = []
        for _ in range(500):
            value = scope.add(Value())
            staying.append(scope.add(Value()))
            refs.append(weakref.ref(value))
            await scope.release(value)
            await scope.release(staying.pop(0))
            del value
        alive = sum(ref() is not None for ref in refs)

    assert (len(staying), alive < 2 * (len(staying) + 20)) == (20, True)


# What is urgent, and what came first


class Fatal(BaseException):
    pass


class CutOff:
    """A manager whose exit waits for what cancels it."""

    def __init__(self) -> None:
        self.reached = anyio.Event()

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc: object) -> None:
        self.reached.set()
        await anyio.sleep_forever()


def fail_with(exc: BaseException) -> None:
    raise exc


async def comes_out(scope: Scope, body: Callable[[], None], cut_off: CutOff) -> BaseException | None:
    """Give what comes out of a scope that is cancelled while a manager exits."""
    found: list[BaseException] = []

    async def run() -> None:
        try:
            async with scope:
                await scope.enter(cut_off)
                body()
        except BaseException as exc:
            found.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await cut_off.reached.wait()
        tasks.cancel_scope.cancel()
    return found[0] if found else None


async def test_a_cancellation_that_cuts_off_an_exit_goes_before_the_bodys_error() -> None:
    """It is what comes out, with the body's exception as its context."""
    fault = ValueError("body")
    exc = await comes_out(Scope(), lambda: fail_with(fault), CutOff())

    assert isinstance(exc, anyio.get_cancelled_exc_class())
    assert exc.__context__ is fault


async def test_what_was_urgent_before_an_exit_was_cut_off_comes_out() -> None:
    """Of two things that no error may replace the first one is raised."""
    fatal = Fatal("body")

    assert await comes_out(Scope(), lambda: fail_with(fatal), CutOff()) is fatal


async def test_a_cancellation_that_is_delivered_again_came_when_it_came_first() -> None:
    """So it goes before what a closer raised in between."""
    scope, cut_off = Scope(), CutOff()
    with anyio.CancelScope() as around:
        async with scope:
            await scope.enter(cut_off)
            scope.defer(fail_with, Fatal("closer"))
            around.cancel()
            await anyio.lowlevel.checkpoint()

    assert (around.cancelled_caught, cut_off.reached.is_set(), scope.cleanup_error) == (True, True, None)


async def test_the_bodys_interrupt_goes_before_those_of_all_closers() -> None:
    """However many of them raise something that no error may replace."""
    fatal = Fatal("body")
    with pytest.raises(Fatal) as caught:
        async with Scope() as scope:
            scope.defer(fail_with, Fatal("first"))
            scope.defer(fail_with, Fatal("second"))
            raise fatal

    assert caught.value is fatal


async def test_an_interrupt_keeps_the_context_that_it_has() -> None:
    """What a closer was handling when it was interrupted says more than what the body raised."""
    handled = KeyError("handled")

    def close() -> None:
        try:
            raise handled
        except KeyError:
            raise Fatal  # noqa: B904 (its context is the point)

    with pytest.raises(Fatal) as caught:
        async with Scope() as scope:
            scope.defer(close)
            raise ValueError("body")

    assert caught.value.__context__ is handled


class Swallows:
    """A manager that owns a cancel scope, and swallows what the body raised."""

    def __init__(self) -> None:
        self.own = anyio.CancelScope()

    async def __aenter__(self) -> anyio.CancelScope:
        return self.own.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.own.__exit__(kind, exc, traceback)
        return True


@pytest.mark.parametrize("whose", ["the manager's", "one around"])
async def test_a_cancellation_behind_a_swallowed_error_comes_up_where_it_still_holds(whose: str) -> None:
    """It came while a closer ran: it is raised at once, unless its cancel scope has ended with the manager."""
    passed = False
    with anyio.CancelScope() as around:
        async with Scope() as scope:
            own = await scope.enter(Swallows())
            cancelled = own if whose == "the manager's" else around

            async def close() -> None:
                cancelled.cancel()
                await anyio.lowlevel.checkpoint()
                await anyio.wait_all_tasks_blocked()

            scope.defer(close)
            raise ValueError("body")
        passed = True

    assert passed == (whose == "the manager's")


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_beside_others_a_cancelled_closers_cancellation_is_no_failure() -> None:
    """Where the closing task was asked to cancel, a closer of a concurrent scope may well end in that."""
    scope = Scope(concurrent=True)
    reached, go = asyncio.Event(), asyncio.Event()

    async def close() -> None:
        reached.set()
        await go.wait()
        raise asyncio.CancelledError

    async def body() -> None:
        async with scope:
            scope.defer(close)

    task = asyncio.create_task(body())
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert scope.cleanup_error is None


# What is made of what


async def test_an_exception_that_equals_the_one_in_flight_is_not_that_one() -> None:
    """A manager that raises something else has failed, even if it claims to be equal."""
    inside, outside = Alike("inside"), Alike("outside")

    class Fails:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            raise outside

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(Fails())
            raise inside

    assert [caught.value.__cause__ is inside, caught.value.exceptions[0] is outside] == [True, True]


async def test_a_group_whose_parts_share_a_cause_may_take_the_place_of_what_it_holds() -> None:
    """What is in flight is found in it, however its parts hang together."""
    fault, cause = ValueError("body"), OSError("cause")
    groups: list[BaseException] = []

    class Wraps:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            parts: list[Exception] = [fault, KeyError("one"), KeyError("two")]
            for part in parts[1:]:
                part.__cause__ = cause
            groups.append(ExceptionGroup("group", parts))
            raise groups[0]

    with pytest.raises(ExceptionGroup) as caught:
        async with Scope() as scope:
            await scope.enter(Wraps())
            raise fault

    assert (caught.value is groups[0], scope.cleanup_error) == (True, None)


async def test_a_hosted_manager_fails_with_what_is_its_own() -> None:
    """What it was given is no failure where it raises that beside another, not even wrapped."""
    own = OSError("own")

    class Wraps:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            wrapped = RuntimeError("wrapped")
            wrapped.__cause__ = exc
            raise ExceptionGroup("group", [wrapped, own])

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.host(Wraps())
            raise ValueError("body")

    (group,) = caught.value.exceptions
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (own,)


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
@pytest.mark.parametrize("again", [False, True], ids=["returns", "raises it again"])
async def test_a_host_that_was_cancelled_tells_of_the_cancellation(*, again: bool) -> None:
    """Its manager exited without an error of its own: what ended its task is told, and is the cause of the failure."""
    tasks: list[asyncio.Task[Any] | None] = []
    events: list[ScopeEvent] = []

    class Manager:
        async def __aenter__(self) -> None:
            tasks.append(asyncio.current_task())

        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            if again and exc is not None:
                raise exc

    scope = Scope(on_event=events.append)
    await scope.host(Manager())
    assert tasks[0] is not None
    tasks[0].cancel()
    await anyio.wait_all_tasks_blocked()
    error = await failure_of(scope.aclose)

    assert error is not None
    (failure,) = error.failures
    told = [type(event.error) for event in events if event.kind == "died"]
    assert (told, type(failure.exception)) == ([asyncio.CancelledError], HostDiedError)
    assert isinstance(failure.exception.__cause__, asyncio.CancelledError)


# A scope while somebody else closes it


async def closing_with_waiters(scope: Scope, close: Callable[[], Awaitable[object]], look: Callable[[], object]) -> Any:
    """Close a scope that another task waits for, and look at it meanwhile; give what was seen, and who came back."""
    came_back: list[str] = []
    reached, go = anyio.Event(), anyio.Event()
    seen: list[object] = []

    async def slow() -> None:
        reached.set()
        await go.wait()

    async def wait(name: str) -> None:
        await scope.aclose()
        came_back.append(name)

    scope.defer(slow)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            await reached.wait()
            tasks.start_soon(wait, "second")
            tasks.start_soon(wait, "third")
            await anyio.wait_all_tasks_blocked()
            seen.append(look())
            go.set()
    return seen[0], came_back


def looks_closing(scope: Scope, value: object) -> list[object]:
    with pytest.raises(ScopeClosedError):
        scope.move()
    return [scope.state, scope.outcome, scope.has(value), scope.has(object())]


@pytest.mark.parametrize("options", [{}, {"grace": LONG}], ids=["plain", "with a grace"])
async def test_those_who_wait_come_back_however_the_scope_is_closed(options: dict[str, Any]) -> None:
    """At the end of an `async with` too, and what is asked meanwhile is answered."""
    scope, value = Scope(**options), object()

    async def leave() -> None:
        await scope.__aexit__(None, None, None)

    seen, came_back = await closing_with_waiters(scope, leave, lambda: looks_closing(scope, value))

    assert (seen, sorted(came_back)) == (["closing", Ok(None), False, False], ["second", "third"])
    assert scope.state == "closed"


async def test_a_body_that_ends_while_others_wait_for_the_close_waits_too() -> None:
    """The end of the `async with` is then one more that waits."""
    scope, log = Scope(), list[str]()

    async def body() -> None:
        async with scope:
            await ended.wait()
        log.append(scope.state)

    ended = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body)
        await anyio.wait_all_tasks_blocked()
        await closing_with_waiters(scope, scope.aclose, ended.set)

    assert log == ["closed"]


async def test_what_is_being_closed_is_found_by_identity() -> None:
    """A closer that asks its scope finds the very value that it closes, and none that equals it."""
    found: list[list[bool]] = []
    value = Alike("held")
    scope = Scope()

    async def close() -> None:
        found.append([scope.has(value), scope.has(Alike("other")), scope.has(object()), handle in scope])

    scope.add(value, close)
    (handle,) = scope.resources
    await scope.aclose()

    assert found == [[True, False, False, True]]


async def test_a_handle_is_in_its_scope_until_it_is_closed() -> None:
    """While it is released it is held, and afterwards it isn't, also where others were registered after it."""
    scope = Scope()
    found: list[bool] = []

    def close() -> None:
        found.append(handle in scope)

    handle = scope.defer(close)
    scope.defer(int)
    await scope.release(handle)
    found.append(handle in scope)
    await scope.aclose()

    assert found == [True, False]


async def test_only_what_is_held_counts_as_attempted() -> None:
    """What was released before is none of those of which so and so many failed to close."""
    scope = Scope()
    handles = [scope.defer(int) for _ in range(3)]
    scope.defer(fail_with, ValueError("x"))
    await scope.release(handles[1])
    with pytest.raises(ResourceCleanupError, match=r"^1 of 3 resources failed"):
        await scope.__aexit__(None, None, None)

    assert scope.size == 0


async def test_a_moved_scope_tells_what_is_registered_after() -> None:
    """`on_event` moves with it, as does what is held."""
    events: list[ScopeEvent] = []
    scope = Scope(on_event=events.append)
    scope.add(object(), int, name="before")
    new = scope.move()
    new.add(object(), int, name="after")
    told = [event.resource for event in events if event.kind == "acquired"]
    await new.aclose()

    assert told == ["before", "after"]


async def test_acquiring_tells_how_long_it_took() -> None:
    """`elapsed` of an `acquired` event runs from the call to the registration."""
    events: list[ScopeEvent] = []

    def acquire() -> object:
        began = time.perf_counter()
        while time.perf_counter() - began < 0.001:
            pass
        return object()

    scope = Scope(on_event=events.append)
    before = time.perf_counter()
    await scope.acquire(acquire, id)
    took = time.perf_counter() - before
    (elapsed,) = [event.elapsed for event in events if event.kind == "acquired"]
    await scope.aclose()

    assert elapsed is not None
    assert 0.001 <= elapsed <= took


async def test_a_child_that_closes_by_itself_tells_how_long_it_took() -> None:
    """`elapsed` of what its parent is told runs from the beginning of the child's close."""
    events: list[ScopeEvent] = []

    def fail() -> None:
        began = time.perf_counter()
        while time.perf_counter() - began < 0.001:
            pass
        raise ValueError

    async with Scope(on_event=events.append) as scope:
        child = scope.child("child")
        child.defer(fail)
        before = time.perf_counter()
        await failure_of(child.aclose)
        took = time.perf_counter() - before
    told = [event.elapsed or 0 for event in events if event.resource == "child" and event.kind in {"failed", "closed"}]

    assert len(told) == 2
    assert 0.001 <= told[0] <= told[1] <= took


async def test_a_closed_scope_refuses_before_it_looks_at_the_value() -> None:
    """That the scope is closed is what the caller has to hear first."""
    scope = Scope()
    await scope.aclose()
    with pytest.raises(ScopeClosedError):
        scope.add(object())

    assert scope.size == 0


# Hosting several


async def test_all_others_have_exited_when_one_could_not_be_hosted() -> None:
    """Each of them, one after the other, before the error is raised; what fails meanwhile is noted on it."""
    log: list[str] = []

    class Manager:
        def __init__(self, name: str) -> None:
            self.name = name

        async def __aenter__(self) -> None:
            if self.name == "fails":
                await anyio.wait_all_tasks_blocked()
                raise ValueError(self.name)

        async def __aexit__(self, *exc: object) -> None:
            for _ in range(5 if self.name == "slow" else 0):
                await anyio.lowlevel.checkpoint()
            log.append(self.name)
            if self.name == "slow":
                raise OSError(self.name)

    scope = Scope()
    with pytest.raises(ValueError, match="fails") as caught:
        await scope.host_all(Manager("quick"), Manager("fails"), Manager("slow"))

    assert (log, scope.size) == (["quick", "slow"], 0)
    assert ["1 of 2" in note and "slow" in note for note in caught.value.__notes__] == [True]


async def test_what_is_registered_while_others_wait_for_the_close_is_closed_too() -> None:
    """However it is registered; only to enter something is refused."""
    log: list[str] = []
    scope = Scope()
    reached, go = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        yield "hosted"
        log.append("hosted")

    async def registers() -> None:
        reached.set()
        await go.wait()
        scope.add("added", lambda: log.append("added"))
        scope.defer(log.append, "deferred")
        scope.on_success(log.append, "succeeded")
        await scope.acquire(lambda: "acquired", log.append)
        await scope.host(manager())
        scope.child().defer(log.append, "of a child")
        async with scope:
            scope.defer(log.append, "of a body")
        with pytest.raises(ScopeClosedError):
            await scope.enter(manager())

    scope.defer(registers)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.aclose)
            await reached.wait()
            tasks.start_soon(scope.aclose)
            tasks.start_soon(scope.aclose)
            await anyio.wait_all_tasks_blocked()
            go.set()

    assert log == ["of a body", "of a child", "hosted", "acquired", "succeeded", "deferred", "added"]


async def test_what_entered_while_others_waited_for_the_close_is_exited() -> None:
    """It came too late: it is exited at once, and the scope is refused."""
    log: list[str] = []
    scope = Scope()
    reached, go = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(scope.aclose)
            await reached.wait()
            await anyio.wait_all_tasks_blocked()
            yield
            go.set()
        log.append("exited")

    async def close() -> None:
        reached.set()
        await go.wait()

    scope.defer(close)
    with anyio.fail_after(5), pytest.raises(ScopeClosedError):
        await scope.enter(manager())

    assert (log, scope.state) == (["exited"], "closed")


def test_what_is_acquired_has_its_timeout_and_its_force() -> None:
    """Each of the two also without the other."""
    forced: list[str] = []

    async def main() -> Any:
        scope = Scope(grace=LONG)
        await scope.acquire(
            lambda: "x", lambda _: anyio.sleep_forever(), name="forced", force=lambda: forced.append("x")
        )
        scope.add(Resource("z", anyio.sleep_forever, name="made", force=lambda: forced.append("z")))
        await scope.acquire(lambda: "y", lambda _: anyio.sleep_forever(), name="timed", timeout=1.0)
        return await failure_of(scope.aclose)

    error, _ = jump(main)

    assert (allowed(error), forced) == (
        [("timed", 1.0), ("made", (LONG - 1) / 2), ("forced", (LONG - 1) / 2)],
        ["z", "x"],
    )


async def test_a_callback_that_is_not_due_is_not_attempted() -> None:
    """Of the resources of which so and so many failed to close it is none."""
    with pytest.raises(ResourceCleanupError, match=r"^1 of 2 resources failed"):
        async with Scope() as scope:
            scope.defer(int)
            scope.on_error(int)
            scope.on_error(int)
            scope.defer(fail_with, ValueError("x"))

    assert scope.size == 0


async def test_hosting_several_refuses_a_sync_manager() -> None:
    """As `host` does, with the mend, and before any of them is entered."""
    log: list[str] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        log.append("entered")
        yield

    async with Scope() as scope:
        with pytest.raises(TypeError, match=r"use `await scope\.enter"):
            await scope.host_all(manager(), sync_manager())  # type: ignore[arg-type]

    assert log == []


@contextmanager
def sync_manager() -> Iterator[None]:
    yield


class Later:
    """An awaitable that is no coroutine."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, object]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return self.value


async def test_whatever_can_be_awaited_is_awaited_to_acquire() -> None:
    """An `acquire` may give any awaitable, not only a coroutine."""
    released: list[object] = []
    async with Scope() as scope:
        value = await scope.acquire(lambda: Later("x"), released.append)

    assert (value, released) == ("x", ["x"])


class EqualToAll:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


async def test_a_value_that_equals_everything_is_waited_for_as_any_other() -> None:
    """A closer that closes what somebody else is closing waits, whatever its value says of itself."""
    log: list[str] = []
    reached, go = anyio.Event(), anyio.Event()

    async def slow() -> None:
        reached.set()
        await go.wait()
        log.append("closed")

    async def close_too() -> None:
        await handle.aclose()
        log.append("came back")

    handle, scope = Resource(EqualToAll(), slow), Scope()
    scope.defer(close_too)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handle.aclose)
            await reached.wait()
            tasks.start_soon(scope.aclose)
            await anyio.wait_all_tasks_blocked()
            go.set()

    assert log == ["closed", "came back"]


async def test_a_shielded_acquire_is_cancelled_in_the_end_wherever_it_registers() -> None:
    """Also in a scope that holds something already: what was acquired is held, and the cancellation goes on."""
    reached, go = anyio.Event(), anyio.Event()
    scope = Scope()
    scope.defer(int)
    went_on: list[object] = []

    async def acquire() -> str:
        reached.set()
        await go.wait()
        return "acquired"

    async def body() -> None:
        went_on.append(await scope.acquire(acquire, id, shield=True))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body)
        await reached.wait()
        tasks.cancel_scope.cancel()
        go.set()
    held = scope.size
    await scope.aclose()

    assert (held, went_on) == (2, [])


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_bounded_closer_whose_own_task_is_cancelled_ends_in_that() -> None:
    """Somebody asked for it: the cancellation is raised as itself, as it is where the closer has no timeout."""

    async def close() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    scope = Scope()
    scope.add("x", close, timeout=LONG)
    with pytest.raises(asyncio.CancelledError):
        await scope.aclose()

    assert scope.cleanup_error is None


# Coroutines that share a task


def test_what_follows_in_the_same_task_keeps_its_timeout() -> None:
    """A bounded closer after one without a bound is bounded."""

    async def main() -> Any:
        scope = Scope()
        scope.add("x", anyio.sleep_forever, name="bounded", timeout=1.0)
        scope.defer(anyio.lowlevel.checkpoint)
        return await failure_of(scope.aclose)

    error, seconds = jump(main)

    assert (allowed(error), seconds) == ([("bounded", 1.0)], 1.0)


async def test_what_somebody_else_releases_is_not_closed_again() -> None:
    """Though it comes after a closer of the same kind, which is awaited in a task that goes on with the next."""
    log: list[str] = []
    reached, go = anyio.Event(), anyio.Event()

    async def close(name: str) -> None:
        log.append(name)
        if name == "released":
            reached.set()
            await go.wait()

    scope = Scope()
    handle = scope.defer(close, "released")
    scope.defer(close, "after")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.aclose)
        await reached.wait()
        tasks.start_soon(scope.aclose)
        await anyio.wait_all_tasks_blocked()
        log.append(scope.state)
        go.set()

    assert (log, scope.state) == (["released", "after", "closing"], "closed")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no task starts at once")
@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_task_that_waits_for_a_sync_closer_from_the_start_is_woken() -> None:
    """One that the closer itself starts, eagerly and in a context of its own, comes back when the closer has ended."""
    log: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def wait() -> None:
        await handle.aclose()
        log.append("came back")

    def close() -> None:
        eager: Any = asyncio.Task
        tasks.append(eager(wait(), loop=asyncio.get_running_loop(), eager_start=True, context=Context()))
        log.append("closed")

    with anyio.fail_after(5):
        async with Scope() as scope:
            handle = scope.defer(close)
        await tasks[0]

    assert log == ["closed", "came back"]


async def test_of_a_value_held_twice_among_many_the_latest_goes_first() -> None:
    """And then the earlier one, however many others there are."""
    log: list[str] = []
    scope, value = Scope(), object()
    for _ in range(20):
        scope.add(object(), int)
    scope.add(value, lambda: log.append("first"))
    scope.add(value, lambda: log.append("second"))
    await scope.release(value)
    still = value in scope
    await scope.release(value)

    assert (log, still, value in scope) == (["second", "first"], True, False)
    await scope.aclose()


async def test_all_that_were_hosted_have_exited_before_the_error_comes_out() -> None:
    """One of several can't be entered: the exits of all the others are waited for, however slow."""
    exited: list[str] = []

    @asynccontextmanager
    async def client(name: str, turns: int) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            exited.append(name)

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        raise KeyError
        yield

    async with Scope() as scope:
        with pytest.raises(KeyError):
            await scope.host_all(client("quick", 0), client("slow", 20), client("slower", 40), broken())

        assert exited == ["quick", "slow", "slower"]


@pytest.mark.parametrize("count", [1, 50])
async def test_of_a_value_twice_the_latest_is_released_first(count: int) -> None:
    """Among few and among many: the latest, then the one before it."""
    log: list[str] = []
    value = object()
    async with Scope() as scope:
        for _ in range(count):
            scope.add(object(), list)
        scope.add(value, lambda: log.append("first"))
        scope.add(value, lambda: log.append("second"))
        await scope.release(value)
        await scope.release(value)

        assert (log, scope.has(value), scope.size) == (["second", "first"], False, count)


async def test_size_is_right_while_many_are_released() -> None:
    """The places of those that were released are swept now and then; they never count."""
    sizes: list[int] = []
    async with Scope() as scope:
        handles = [scope.defer(list) for _ in range(100)]
        for handle in handles[:90]:
            await handle.aclose()
            sizes.append(scope.size)

        assert sizes == list(range(99, 9, -1))


async def test_the_close_of_a_child_by_itself_has_a_length() -> None:
    """`elapsed` is the time it took, told to the parent's `on_event`: not the time of day."""
    told: list[ScopeEvent] = []
    async with Scope(on_event=told.append) as scope:
        await scope.child("child").aclose()
        elapsed = [event.elapsed for event in told if event.kind == "closed"]

        assert [seconds is not None and 0 <= seconds < 5 for seconds in elapsed] == [True]


async def test_what_is_waited_for_still_counts() -> None:
    """While a scope waits for a resource that somebody else releases, `size` tells of it and of those still to come."""
    reached, go = anyio.Event(), anyio.Event()

    async def slow() -> None:
        reached.set()
        await go.wait()

    scope = Scope()
    scope.defer(int)
    handle = scope.defer(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.aclose)
        await reached.wait()
        tasks.start_soon(scope.aclose)
        await anyio.wait_all_tasks_blocked()
        size = scope.size
        go.set()

    assert (size, scope.size) == (2, 0)


async def test_a_cleanup_is_released_among_many_values() -> None:
    """It has no value to be found by, and needs none."""
    async with Scope() as scope:
        for _ in range(20):
            scope.add(object(), int)
        handle = scope.defer(int)
        await scope.release(handle)

        assert (handle.state, scope.size) == ("closed", 20)


async def test_of_a_value_held_twice_before_many_others_the_latest_goes_first() -> None:
    """However many are registered after the two."""
    log: list[str] = []
    scope, value = Scope(), object()
    scope.add(value, lambda: log.append("first"))
    scope.add(value, lambda: log.append("second"))
    for _ in range(20):
        scope.add(object(), int)
    await scope.release(value)
    await scope.release(value)
    await scope.aclose()

    assert log == ["second", "first"]
