"""What a review with fresh eyes found: closes that overlap, cancellations that met another error, contexts."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Never

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import ResourceCleanupError, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType


class Fault(Exception):
    """Something that went wrong."""


def fail() -> None:
    msg = "closer"
    raise Fault(msg)


class Manager:
    """An async context manager whose exit tells that it began, waits for `go`, and may raise."""

    def __init__(self, go: anyio.Event | None = None, error: BaseException | None = None) -> None:
        self.go = go
        self.error = error
        self.inside = anyio.Event()
        self.leaving = anyio.Event()

    async def __aenter__(self) -> Manager:
        self.inside.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leaving.set()
        if self.go is not None:
            await self.go.wait()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def refuses(after: anyio.Event) -> AsyncIterator[Never]:
    """Fail to enter, once the other one is inside and the caller waits."""
    await after.wait()
    await anyio.lowlevel.checkpoint()
    msg = "enter"
    raise Fault(msg)
    yield


# Once: a concurrent scope, where one closer closes another


@pytest.mark.parametrize("how", ["release", "aclose"])
async def test_a_closer_of_a_concurrent_scope_may_close_another_at_its_first_step(how: str) -> None:
    """Rule 3: one that is closed by its sibling, before its own turn in the same pass has come, is closed once."""
    log: list[str] = []
    scope = Scope(concurrent=True)

    async def other() -> None:
        log.append("other")

    handle = scope.defer(other)

    async def closes_the_other() -> None:
        await (scope.release(handle) if how == "release" else handle.aclose())

    scope.defer(closes_the_other)
    await scope.aclose()

    assert log == ["other"]


async def test_a_closer_of_a_concurrent_scope_waits_for_another_that_it_closes() -> None:
    """Rule 3: the one that comes second waits until the other has ended, whichever of them was registered first."""
    log: list[str] = []
    scope = Scope(concurrent=True)

    async def slow() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        log.append("slow ended")

    handle = scope.defer(slow)

    async def waits() -> None:
        await anyio.lowlevel.checkpoint()
        await handle.aclose()
        log.append("waited")

    scope.defer(waits)
    await scope.aclose()

    assert log == ["slow ended", "waited"]


async def test_a_closer_of_a_concurrent_scope_may_close_a_child_at_its_first_step() -> None:
    """Rule 3: the same with a child that takes its time: closed once, and nothing has failed."""
    log: list[str] = []
    scope = Scope(concurrent=True)
    child = scope.child("child")

    async def slow() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("slow ended")

    child.defer(slow)
    scope.defer(child.aclose)
    await scope.aclose()

    assert log == ["slow ended"]


async def test_a_closer_of_a_concurrent_scope_may_not_detach_by_halves() -> None:
    """While a concurrent scope closes, `detach` of another gives the handle, or `KeyError`; it is closed once."""
    log: list[str] = []
    elsewhere = Scope()
    scope = Scope(concurrent=True)
    handle = scope.add("value", lambda: log.append("closed")) and scope.resources[0]

    def takes_it() -> None:
        try:
            elsewhere.add(scope.detach(handle))
        except KeyError:
            log.append("refused")

    scope.defer(takes_it)
    await scope.aclose()
    await elsewhere.aclose()

    assert log.count("closed") == 1


async def test_a_sync_closer_of_a_child_of_a_concurrent_scope_runs_in_the_closing_tasks_context() -> None:
    """Rule 9: a sync closer runs in the closing task and its context, also below a concurrent scope."""
    variable = ContextVar("variable", default="before")
    token = variable.set("changed")

    async with Scope(concurrent=True) as scope:
        scope.child().defer(variable.reset, token)

    assert variable.get() == "before"


# The manual form in a `finally`


async def by_aclose(scope: Scope) -> None:
    await scope.aclose()


async def by_release(scope: Scope) -> None:
    await scope.release(scope.resources[0])


async def by_handle(scope: Scope) -> None:
    await scope.resources[0].aclose()


async def by_block(scope: Scope) -> None:
    async with scope:
        pass


@pytest.mark.parametrize("close", [by_aclose, by_release, by_handle, by_block])
async def test_a_cleanup_error_raised_while_another_is_handled_has_that_as_its_context(
    close: Callable[[Scope], Awaitable[None]],
) -> None:
    """`try: ... finally: await scope.aclose()`: what the body raised stays to be seen, as with any other `finally`."""
    body = Fault("body")
    scope = Scope()
    scope.defer(fail)

    with pytest.raises(ResourceCleanupError) as caught:
        try:
            raise body
        finally:
            await close(scope)

    assert caught.value.__context__ is body


# A cancellation that meets another error is not lost


async def outcome(task: asyncio.Task[Any]) -> str:
    await asyncio.wait([task])
    return "cancelled" if task.cancelled() else type(task.exception()).__name__


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_task_cancelled_while_a_shielded_acquire_comes_too_late_is_cancelled() -> None:
    """The scope was closed meanwhile: the new one is released, and the cancellation goes on, by no error replaced."""
    log: list[str] = []
    scope = Scope()
    started, go = anyio.Event(), anyio.Event()

    async def acquire() -> str:
        started.set()
        await go.wait()
        return "value"

    task = asyncio.create_task(scope.acquire(acquire, log.append, shield=True))
    await started.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    await scope.aclose()
    go.set()

    assert (await outcome(task), log) == ("cancelled", ["value"])


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_task_cancelled_while_a_host_that_came_too_late_is_exited_is_cancelled() -> None:
    """The scope was closed while the manager was entered; the cancellation that comes during its exit is not lost."""
    scope = Scope()
    manager = Manager(go=anyio.Event())
    assert manager.go is not None
    enter = anyio.Event()

    @asynccontextmanager
    async def late() -> AsyncIterator[None]:
        manager.inside.set()
        await enter.wait()
        async with manager:
            yield

    task = asyncio.create_task(scope.host(late()))
    await manager.inside.wait()
    await scope.aclose()
    enter.set()
    await manager.leaving.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    manager.go.set()

    assert await outcome(task) == "cancelled"


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_task_cancelled_while_host_all_exits_the_others_is_cancelled() -> None:
    """One failed to enter; the cancellation that comes while the others are exited is not lost."""
    scope = Scope()
    manager = Manager(go=anyio.Event())
    assert manager.go is not None

    task = asyncio.create_task(scope.host_all(manager, refuses(manager.inside)))
    await manager.leaving.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    manager.go.set()

    assert await outcome(task) == "cancelled"


async def test_an_interrupt_of_an_exit_is_raised_where_host_all_fails() -> None:
    """What is no `Exception` is never replaced: an interrupt of an exit comes out, though another failed to enter."""
    scope = Scope()
    manager = Manager(error=KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        await scope.host_all(manager, refuses(manager.inside))


async def test_an_interrupt_of_an_exit_is_raised_where_a_host_came_too_late() -> None:
    """The same where the scope was closed meanwhile."""
    scope = Scope()
    entering, go = anyio.Event(), anyio.Event()
    caught: list[type[BaseException]] = []

    class Late(Manager):
        async def __aenter__(self) -> Manager:
            entering.set()
            await go.wait()
            return self

    async def hosts() -> None:
        try:
            await scope.host(Late(error=KeyboardInterrupt()))
        except BaseException as exc:
            caught.append(type(exc))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hosts)
        await entering.wait()
        await scope.aclose()
        go.set()

    assert caught == [KeyboardInterrupt]


# Order, counts, and what is left behind


async def test_of_several_interrupts_the_first_one_comes_out() -> None:
    """Rule 3: a manager's comes first, then a closer's, then another manager's: the first is raised."""

    @contextmanager
    def interrupting(name: str) -> Iterator[None]:
        try:
            yield
        finally:
            raise KeyboardInterrupt(name)

    def closer() -> None:
        msg = "second"
        raise KeyboardInterrupt(msg)

    with pytest.raises(KeyboardInterrupt, match="first"):
        async with Scope() as scope:
            await scope.enter(interrupting("third"))
            scope.defer(closer)
            await scope.enter(interrupting("first"))


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("options", [{}, {"grace": 5}], ids=["plain", "grace"])
async def test_what_a_closer_interrupts_with_comes_before_a_later_cancellation(
    kind: str, options: dict[str, Any]
) -> None:
    """Rule 3: "else the first one": a cancellation that comes while the next closer runs is the second."""

    class Stop(BaseException):
        """Something urgent that is neither an interrupt nor an exit."""

    def stops() -> None:
        raise Stop

    async def stops_later() -> None:
        await anyio.lowlevel.checkpoint()
        raise Stop

    with anyio.CancelScope() as cancelled:

        async def cancels() -> None:
            cancelled.cancel()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()

        with pytest.raises(Stop):
            async with Scope(**options) as scope:
                scope.defer(cancels)
                scope.defer(stops if kind == "sync" else stops_later)


async def test_a_cancellation_comes_before_what_a_manager_raises_later() -> None:
    """Rule 3: neither an interrupt nor an exit, and the second: the cancellation is raised."""

    class Stop(BaseException):
        """Something urgent that is neither an interrupt nor an exit."""

    with anyio.CancelScope() as cancelled:
        with pytest.raises(anyio.get_cancelled_exc_class()):
            async with Scope() as scope:
                await scope.enter(Manager(error=Stop()))
                cancelled.cancel()
                await anyio.lowlevel.checkpoint()

    assert cancelled.cancel_called


async def test_a_group_of_cancellations_is_cut_off_as_a_cancellation_is() -> None:
    """Nested `with`s would raise the plain cancellation that the outer exit met; so does the scope."""

    class Groups(Manager):
        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            assert exc is not None
            msg = "all of it"
            raise BaseExceptionGroup(msg, [exc])

    class Waits(Manager):
        async def __aexit__(self, *exc_info: object) -> None:
            await anyio.lowlevel.checkpoint()

    with anyio.CancelScope() as cancelled:
        with pytest.raises(anyio.get_cancelled_exc_class()):
            async with Scope() as scope:
                await scope.enter(Waits())
                await scope.enter(Groups())
                cancelled.cancel()
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("options", [{}, {"grace": 5}], ids=["plain", "grace"])
async def test_what_is_registered_while_closing_counts(options: dict[str, Any]) -> None:
    """The message says of how many closers the failed ones are, those that a closer registered included."""
    with pytest.raises(ResourceCleanupError, match="2 of 2 resources failed"):
        async with Scope(**options) as scope:

            def registers() -> None:
                scope.defer(fail)
                fail()

            scope.defer(registers)


@pytest.mark.parametrize("way", ["plain", "by hand", "child", "grace", "entered"])
async def test_a_scope_with_async_closers_leaves_no_circle(way: str) -> None:
    """What a clean close leaves is gone at once: nothing waits for the collector."""

    async def close() -> None:
        await anyio.lowlevel.checkpoint()

    async def work() -> None:
        scope = Scope(grace=5 if way == "grace" else None)
        inner = scope.child() if way == "child" else scope
        if way == "entered":
            await inner.enter(Manager())
        inner.defer(close)
        inner.defer(close)
        if way == "by hand":
            await scope.aclose()
        else:
            async with scope:
                pass

    await work()
    gc.collect()
    gc.disable()
    try:
        gone = []
        for _ in range(3):
            await work()
            gone.append(gc.collect())
    finally:
        gc.enable()

    assert gone == [0, 0, 0]


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_long_grace_keeps_nothing_alive() -> None:
    """The loop keeps the timer of a close that ended in time; what was closed is not kept with it."""

    class Item:
        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()
            fail()

    earlier = asyncio.get_running_loop().call_later(500, fail)  # the loop drops those that are cancelled up to this one
    item = Item()
    gone = weakref.ref(item)
    scope = Scope(grace=1000)
    scope.add(item)
    with suppress(ResourceCleanupError):
        await scope.aclose()
    del item, scope
    await anyio.lowlevel.checkpoint()  # what the end of the close set off has been called then
    gc.collect()
    earlier.cancel()

    assert gone() is None


# Deadlocks


@pytest.mark.parametrize("order", ["the task first", "the scope first"])
async def test_a_hosted_managers_background_task_may_close_the_scope_that_waits_for_it(order: str) -> None:
    """Its exit waits for its background task, and that closes the scope: neither waits for the other for ever."""
    log: list[str] = []
    scope = Scope()
    go = anyio.Event()

    async def background() -> None:
        await go.wait()
        with anyio.move_on_after(1) as patience:
            await scope.aclose()
        log.append("hung" if patience.cancelled_caught else "ended")

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(background)
            yield
            go.set()

    await scope.host(client())
    if order == "the task first":
        go.set()
        await anyio.wait_all_tasks_blocked()
    await scope.aclose()

    assert log == ["ended"]


async def test_a_manager_that_is_still_entering_may_close_its_scope() -> None:
    """Its own task closes the scope before it is held: it is drained by that close, which does not wait for us."""
    scope = Scope()
    log: list[str] = []

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.aclose)
            await anyio.lowlevel.checkpoint()
            yield
        log.append("exited")

    async def slow() -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()

    scope.defer(slow)
    with anyio.fail_after(5):
        await scope.host(client())
        await scope.aclose()

    assert (scope.state, log) == ("closed", ["exited"])


@pytest.mark.parametrize("what", ["scope", "resource"])
async def test_two_that_close_at_once_close_once(what: str) -> None:
    """One of them is a hosted manager's background task: what it closes is closing from that very moment."""
    scope = Scope()
    log: list[str] = []
    go = anyio.Event()

    async def closer() -> None:
        log.append("closing")
        await anyio.lowlevel.checkpoint()
        log.append("closed")

    handle = scope.defer(closer)
    closes = scope.aclose if what == "scope" else handle.aclose

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async def lost() -> None:
            await go.wait()
            await closes()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lost)
            yield

    await scope.host(client())
    go.set()
    await anyio.lowlevel.checkpoint()
    await closes()
    after = list(log)
    await scope.aclose()

    assert (after, log) == (["closing", "closed"], ["closing", "closed"])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no task starts eagerly there")
@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_a_task_that_a_sync_closer_starts_eagerly_may_wait_for_it() -> None:
    """In a context of its own, which knows nothing of the closing: it is woken when the closer has returned."""
    tasks: list[asyncio.Task[None]] = []
    eagerly: Any = {"eager_start": True, "context": Context()}

    def close() -> None:
        tasks.append(asyncio.Task(handle.aclose(), loop=asyncio.get_running_loop(), **eagerly))

    async with Scope() as scope:
        handle = scope.defer(close)
    await asyncio.wait_for(tasks[0], 5)

    assert handle.state == "closed"


async def test_a_scope_closed_from_within_a_manager_that_is_being_released_waits_for_it() -> None:
    """Rule 1: its background task closes the scope while it exits; what was opened before it is closed after it."""
    scope, go = Scope(), anyio.Event()
    log: list[str] = []

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async def lost() -> None:
            await go.wait()
            await scope.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lost)
            yield
            go.set()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            log.append("client gone")

    scope.defer(log.append, "outer closed")
    await scope.host(client())
    with anyio.fail_after(5):
        await scope.resources[-1].aclose()
        await scope.aclose()

    assert log == ["client gone", "outer closed"]


# Odd closers


class Proxy:
    """Answers to every name with another of its kind, as clients of remote objects do."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Proxy:
        return Proxy(self._log)

    def __call__(self) -> None:
        self._log.append("proxy")


@pytest.mark.parametrize("beside", ["alone", "async", "suspending"])
async def test_a_closer_that_answers_to_every_name_is_called(beside: str) -> None:
    """Rule 2: it is no coroutine function, whatever it answers; behind async closers it is called as well."""
    log: list[str] = []

    async def close() -> None:
        if beside == "suspending":
            await anyio.lowlevel.checkpoint()
        log.append("async")

    async with Scope() as scope:
        handle = scope.defer(Proxy(log).logout)
        if beside != "alone":
            scope.defer(close)

    assert (log, handle.name) == (["proxy"] if beside == "alone" else ["async", "proxy"], "Proxy")


@pytest.mark.parametrize("count", [1, 16, 17, 18, 100])
async def test_of_a_value_twice_the_latest_is_the_one_that_closes(count: int) -> None:
    """Its closer releases the value: that is itself, so it returns at once, however many are held."""
    log: list[str] = []
    value = object()

    async def first() -> None:
        log.append("first")

    async def second() -> None:
        await scope.release(value)
        log.append("second")

    scope = Scope()
    for _ in range(count - 1):
        scope.add(object(), list)
    scope.add(value, first)
    scope.add(value, second)
    await scope.aclose()

    assert log == ["second", "first"]


@pytest.mark.parametrize("later", [KeyError, KeyboardInterrupt])
async def test_a_manager_that_raises_lets_go_of_what_was_handled_around_it(later: type[BaseException]) -> None:
    """A kept handle keeps neither that exception nor its frames."""
    scope = Scope()
    try:
        fail()
    except Fault:
        await scope.enter(Manager(error=later()))
    (handle,) = scope.resources
    with pytest.raises((ResourceCleanupError, KeyboardInterrupt)):
        async with scope:
            pass

    assert handle._handled is None  # type: ignore[attr-defined]


# Misuse


async def test_a_scope_that_could_not_be_made_goes_quietly() -> None:
    """An unknown option is a `TypeError` at the call, and nothing else: no `AttributeError` from `__del__`."""
    with pytest.raises(TypeError):
        Scope(bogus=1)  # type: ignore[call-arg]
    gc.collect()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_generator_function_is_no_closer(kind: str) -> None:
    """Rule 8: calling one runs nothing of it, so as a closer it would never close: refused, or told as a failure."""
    log: list[str] = []

    async def asynchronous() -> AsyncIterator[None]:
        log.append("ran")
        yield

    def synchronous() -> Any:
        log.append("ran")
        yield

    scope = Scope()
    with pytest.raises((TypeError, ResourceCleanupError)):
        scope.defer(asynchronous if kind == "async" else synchronous)
        await scope.aclose()


@pytest.mark.parametrize("concurrent", [False, True])
async def test_a_child_may_close_its_parent_while_another_child_closes_by_itself(*, concurrent: bool) -> None:
    """Then each of the two is around the other, and who looks for the scopes around them still comes to an end."""
    gate, began = anyio.Event(), anyio.Event()
    closed: list[str] = []
    parent = Scope("parent", concurrent=concurrent)
    parent.defer(closed.append, "parent")
    mine, other = parent.child("mine"), parent.child("other")

    async def wait() -> None:
        began.set()
        await gate.wait()
        closed.append("other")

    async def close_all() -> None:
        await anyio.lowlevel.checkpoint()
        await parent.aclose()
        closed.append("mine")

    other.defer(wait)
    mine.defer(close_all)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.aclose)
            await began.wait()
            tasks.start_soon(mine.aclose)
            await anyio.wait_all_tasks_blocked()
            gate.set()
    assert sorted(closed) == ["mine", "other", "parent"]
    assert [scope.state for scope in (parent, mine, other)] == ["closed"] * 3
