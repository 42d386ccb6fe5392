"""Hosted managers: failing rule 7, and what closing rules 2 to 7 ask of a manager in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY, BACKENDS
from rescope import (
    CloseTimeoutError,
    Err,
    HostDiedError,
    ResourceCleanupError,
    Scope,
    ScopeClosedError,
    cleanup_errors,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rescope.events import ScopeEvent

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
on_trio = pytest.mark.parametrize("anyio_backend", [param for param in BACKENDS if param.id == "trio"])


class Fault(Exception):
    """An error of our own."""


class Transaction:
    """A manager that tells how it was exited, with a checkpoint on the way in and out."""

    def __init__(self, log: list[Any] | None = None, *, name: str = "") -> None:
        self.log: list[Any] = [] if log is None else log
        self.name = name
        self.seen: list[BaseException | None] = []

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        self.log.append(f"begin{self.name}")
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.seen.append(exc)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.log.append(f"commit{self.name}" if exc is None else f"rollback{self.name}")
        return False


@contextlib.asynccontextmanager
async def client(log: list[str], name: str = "client") -> AsyncIterator[Any]:
    """A client with a background task, as they come: a task group is held open around the `yield`."""
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        log.append(f"open {name}")
        try:
            yield group
        finally:
            log.append(f"close {name}")
            group.cancel_scope.cancel()


def leaves(exc: BaseException | None) -> list[BaseException]:
    """The errors in an exception group, however deep."""
    if exc is None:
        return []
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in leaves(inner)]
    return [exc]


async def fail_with(error: BaseException) -> None:
    """A background task that fails."""
    raise error


async def test_a_task_group_in_a_hosted_manager_closes_from_another_task() -> None:
    """Opened in one task, closed in another: no cancel scope is in anybody's way."""
    log: list[str] = []
    scope = Scope()
    await scope.host(client(log))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(scope.aclose)

    assert (log, scope.state) == (["open client", "close client"], "closed")


async def test_hosted_managers_close_in_any_order_from_any_task() -> None:
    """The first opened is the first closed, each by another task, with their task groups inside."""
    log: list[str] = []
    scope = Scope()
    names = ["a", "b", "c"]
    with anyio.fail_after(5):
        for name in names:
            await scope.host(client(log, name), name=name)
        for handle in scope.resources:
            async with anyio.create_task_group() as group:
                group.start_soon(scope.release, handle)
        await scope.aclose()

    assert log == ["open a", "open b", "open c", "close a", "close b", "close c"]


async def test_hosted_managers_close_last_in_first_out() -> None:
    """A scope exits them in reverse order, each to its end before the next begins."""
    log: list[str] = []
    with anyio.fail_after(5):
        async with Scope() as scope:
            for name in ("a", "b"):
                await scope.host(client(log, name))

    assert log == ["open a", "open b", "close b", "close a"]


async def test_hosted_managers_between_entered_ones_close_in_order() -> None:
    """A real task group entered around and inside of a hosted one: each is exited where it was entered."""
    log: list[str] = []
    with anyio.fail_after(5):
        async with Scope() as scope:
            outer = await scope.enter(anyio.create_task_group())
            await scope.host(client(log))
            inner = await scope.enter(anyio.create_task_group())
            outer.start_soon(anyio.lowlevel.checkpoint)
            inner.start_soon(anyio.lowlevel.checkpoint)
        await anyio.lowlevel.checkpoint()

    assert log == ["open client", "close client"]


async def test_a_value_and_a_name_come_from_the_manager() -> None:
    """`host` gives what `__aenter__` gave; the handle is named after the manager's function."""
    log: list[str] = []
    async with Scope() as scope:
        transaction = Transaction(log)
        value = await scope.host(transaction)
        await scope.host(client(log))
        names = [handle.name for handle in scope.resources]

    assert (value, names) == (transaction, ["Transaction", "client"])


# What the exit sees


async def test_a_transaction_commits_when_the_body_succeeds() -> None:
    """The exit sees nothing in flight."""
    transaction = Transaction()
    async with Scope() as scope:
        await scope.host(transaction)

    assert (transaction.log, transaction.seen) == (["begin", "commit"], [None])


async def test_a_transaction_rolls_back_when_the_body_fails() -> None:
    """The exit sees the body's exception, and it comes out unchanged."""
    transaction, fault = Transaction(), Fault("body")
    with pytest.raises(Fault) as caught:
        async with Scope() as scope:
            await scope.host(transaction)
            raise fault

    assert (transaction.seen, caught.value, fault.__context__) == ([fault], fault, None)


async def test_a_transaction_rolls_back_when_the_body_is_cancelled() -> None:
    """The exit sees the cancellation, and runs to its end in spite of it."""
    transaction = Transaction()
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            await scope.host(transaction)
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert (transaction.log, cancel_scope.cancelled_caught) == (["begin", "rollback"], True)


@on_asyncio
async def test_a_transaction_rolls_back_when_the_task_is_cancelled_again_and_again() -> None:
    """`task.cancel()` in the body and again while the exit runs: the roll-back ends, the task ends cancelled."""
    transaction = Transaction()
    exiting = asyncio.Event()
    go_on = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            yield
        finally:
            exiting.set()
            await go_on.wait()

    async def work() -> None:
        async with Scope() as scope:
            await scope.host(transaction)
            await scope.host(slow())
            await asyncio.sleep(100)

    task = asyncio.ensure_future(work())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await exiting.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([task])

    assert (transaction.log, task.cancelled()) == (["begin", "rollback"], True)


async def test_a_transaction_rolls_back_when_an_inner_manager_failed() -> None:
    """In a clean body, what an entered manager inside fails with is what the hosted one sees."""
    transaction, fault = Transaction(), Fault("inner")

    @contextlib.contextmanager
    def failing() -> Any:
        yield
        raise fault

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.host(transaction)
            await scope.enter(failing())

    assert (transaction.seen, caught.value.exceptions) == ([fault], (fault,))


async def test_a_transaction_commits_when_an_inner_manager_suppressed_the_bodys_error() -> None:
    """What an entered manager swallowed a hosted one outside of it does not see."""
    transaction = Transaction()
    async with Scope() as scope:
        await scope.host(transaction)
        await scope.enter(contextlib.suppress(Fault))
        raise Fault

    assert transaction.log == ["begin", "commit"]


async def test_a_hosted_exit_cannot_suppress_the_bodys_error() -> None:
    """One that returns true changes nothing: the error comes out, and the outer managers see it."""
    outer, fault = Transaction(), Fault("body")

    @contextlib.asynccontextmanager
    async def suppressing() -> AsyncIterator[None]:
        with contextlib.suppress(Fault):
            yield

    with pytest.raises(Fault) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            await scope.host(suppressing())
            raise fault

    assert (caught.value, outer.seen, scope.cleanup_error) == (fault, [fault], None)


async def test_a_hosted_exit_cannot_suppress_a_cancellation() -> None:
    """One that swallows the cancellation it sees changes nothing."""

    @contextlib.asynccontextmanager
    async def suppressing() -> AsyncIterator[None]:
        with contextlib.suppress(BaseException):
            yield

    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            await scope.host(suppressing())
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert (cancel_scope.cancelled_caught, scope.cleanup_error) == (True, None)


@pytest.mark.parametrize("how", ["again", "wrapped", "in a group"])
async def test_raising_the_bodys_error_again_is_no_failure(how: str) -> None:
    """A hosted exit that raises what it sees, with another error around it, or in a group: no cleanup failure."""
    fault = Fault("body")

    @contextlib.asynccontextmanager
    async def raising() -> AsyncIterator[None]:
        try:
            yield
        except Fault as exc:
            if how == "again":
                raise
            if how == "wrapped":
                raise LookupError from exc
            raise ExceptionGroup("group", [exc]) from None

    with pytest.raises(Fault) as caught:
        async with Scope() as scope:
            await scope.host(raising())
            raise fault

    assert (caught.value, scope.cleanup_error) == (fault, None)


async def test_a_hosted_task_group_that_wraps_the_bodys_error_is_no_failure() -> None:
    """A real task group in the hosted manager puts the error in a group: the body's error comes out as it is."""
    fault = Fault("body")
    with anyio.fail_after(5), pytest.raises(Fault) as caught:
        async with Scope() as scope:
            await scope.host(anyio.create_task_group())
            raise fault

    assert (caught.value, scope.cleanup_error) == (fault, None)


async def test_a_hosted_task_group_sees_the_cancellation_of_another_task() -> None:
    """The caller's cancellation, put through a real task group in the host's task, is no failure and no crash."""
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            group = await scope.host(anyio.create_task_group())
            group.start_soon(anyio.sleep_forever)
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert (cancel_scope.cancelled_caught, scope.cleanup_error) == (True, None)


async def test_a_hosted_exit_that_fails_is_a_cleanup_failure_from_the_bodys_error() -> None:
    """What it raises that is not made of the body's error is told under its name."""
    fault, other = Fault("body"), LookupError("exit")

    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise other

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.host(failing(), name="store")
            raise fault

    error = caught.value
    told = [(failure.name, failure.exception) for failure in error.failures]
    assert (told, error.__cause__, error.original_result) == ([("store", other)], fault, Err(fault))


# Cancelled while closing


async def test_a_hosted_exit_is_out_of_reach_of_the_callers_cancellation() -> None:
    """Cancelled in the middle of the exit: it runs to its end, then the cancellation is raised."""
    transaction = Transaction()
    exiting = anyio.Event()
    go_on = anyio.Event()

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        yield
        exiting.set()
        await go_on.wait()
        transaction.log.append("slow ended")

    cancel_scope = anyio.CancelScope()

    async def work() -> None:
        with cancel_scope:
            async with Scope() as scope:
                await scope.host(transaction)
                await scope.host(slow())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await exiting.wait()
            cancel_scope.cancel()
            await anyio.wait_all_tasks_blocked()
            go_on.set()

    assert (transaction.log, cancel_scope.cancelled_caught) == (["begin", "slow ended", "rollback"], True)


# Dying early


async def test_one_whose_background_work_fails_is_told_at_once() -> None:
    """`died` is told while the scope is open, with the error; closing reports it under the manager's name."""
    fault = Fault("background")
    died = anyio.Event()
    events: list[tuple[str, str | None, list[BaseException]]] = []

    def note(event: ScopeEvent) -> None:
        if event.kind == "died":
            events.append((scope.state, event.resource, leaves(event.error)))
            died.set()

    scope = Scope(on_event=note)
    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            group = await scope.host(anyio.create_task_group(), name="client")
            group.start_soon(fail_with, fault)
            await died.wait()

    told = [(failure.name, leaves(failure.exception)) for failure in caught.value.failures]
    assert (events, told) == ([("open", "client", [fault])], [("client", [fault])])


async def test_one_that_dies_leaves_the_caller_alone() -> None:
    """The background failure of a hosted manager cancels neither the body nor the other closers."""
    fault = Fault("background")
    log: list[str] = []
    with anyio.fail_after(5), pytest.raises(ResourceCleanupError):
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            group = await scope.host(anyio.create_task_group())
            group.start_soon(fail_with, fault)
            await anyio.wait_all_tasks_blocked()
            await anyio.lowlevel.checkpoint()
            log.append("body went on")

    assert log == ["body went on", "outer"]


async def test_one_whose_task_just_returned_has_died() -> None:
    """A manager whose own cancel scope ended it quietly left no error: closing reports a `HostDiedError`."""

    @contextlib.asynccontextmanager
    async def quitter() -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as cancel_scope:
            yield cancel_scope

    died = anyio.Event()

    def note(event: ScopeEvent) -> None:
        if event.kind == "died":
            died.set()

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=note) as scope:
            cancel_scope = await scope.host(quitter(), name="quitter")
            cancel_scope.cancel()
            await died.wait()

    error = caught.value.exceptions[0]
    assert (type(error), "quitter" in str(error), error.__cause__) == (HostDiedError, True, None)


@on_asyncio
async def test_one_whose_task_was_cancelled_has_died() -> None:
    """A cancellation that nobody here asked for ended it: closing reports a `HostDiedError` that names it."""

    @contextlib.asynccontextmanager
    async def exposed() -> AsyncIterator[asyncio.Task[Any] | None]:
        yield asyncio.current_task()

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            task = await scope.host(exposed(), name="exposed")
            assert task is not None
            task.cancel()
            await asyncio.wait([task])

    error = caught.value.exceptions[0]
    assert (type(error), "exposed" in str(error)) == (HostDiedError, True)


@on_asyncio
async def test_one_whose_task_is_cancelled_while_it_exits_has_failed() -> None:
    """Somebody cancels the host's task during its exit: a failure, never a cancellation of the closing task."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def exposed() -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        yield
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(100)

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            await scope.host(exposed(), name="exposed")

    assert ([failure.name for failure in caught.value.failures], log) == (["exposed"], ["outer"])


async def test_one_that_died_before_the_body_failed_is_a_cleanup_failure_from_the_bodys_error() -> None:
    """Both are told: the death among the failures, the body's error as the cause."""
    fault, background = Fault("body"), Fault("background")
    died = anyio.Event()

    def note(event: ScopeEvent) -> None:
        if event.kind == "died":
            died.set()

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=note) as scope:
            group = await scope.host(anyio.create_task_group())
            group.start_soon(fail_with, background)
            await died.wait()
            raise fault

    assert (leaves(caught.value), caught.value.__cause__) == ([background], fault)


async def test_a_background_failure_beside_the_bodys_error_is_not_lost() -> None:
    """A hosted task group that puts the body's error and a child's in one group: the child's is a cleanup failure."""
    fault, background = Fault("body"), Fault("background")

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise background

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            group = await scope.host(anyio.create_task_group(), name="client")
            group.start_soon(fail_when_cancelled)
            await anyio.wait_all_tasks_blocked()
            raise fault

    told = [(failure.name, background in leaves(failure.exception)) for failure in caught.value.failures]
    assert (told, caught.value.__cause__, fault in leaves(caught.value)) == ([("client", True)], fault, False)


async def test_a_background_failure_beside_a_cancelled_body_is_not_lost() -> None:
    """The same where the body is cancelled: the cancellation comes out, the child's error is in `cleanup_error`."""
    background = Fault("background")

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise background

    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            group = await scope.host(anyio.create_task_group())
            group.start_soon(fail_when_cancelled)
            await anyio.wait_all_tasks_blocked()
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert (cancel_scope.cancelled_caught, leaves(scope.cleanup_error)) == (True, [background])


async def test_releasing_one_that_died_raises_its_failure_once() -> None:
    """`release` reports the death; the scope that held it then closes clean."""
    background = Fault("background")
    scope = Scope()
    with anyio.fail_after(5):
        group = await scope.host(anyio.create_task_group())
        group.start_soon(fail_with, background)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.release(group)
        await scope.aclose()

    assert (leaves(caught.value), scope.cleanup_error) == ([background], None)


async def test_a_background_failure_while_it_exits_is_a_failure_that_names_it() -> None:
    """Children that fail as the hosted task group ends are told in the scope's cleanup error."""
    fault = Fault("background")

    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            yield
            group.start_soon(fail_with, fault)

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.host(failing(), name="failing")

    assert [(told.name, leaves(told.exception)) for told in caught.value.failures] == [("failing", [fault])]


# In time


async def test_an_exit_that_hangs_is_bounded_by_its_timeout() -> None:
    """Out of time it is cancelled, which it may use to clean up; the failure names it; the others run."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        yield
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            await scope.host(hanging(), name="hanging", timeout=0.01)

    failure = caught.value.failures[0]
    actual = (failure.name, failure.timed_out, type(failure.exception), "hanging" in str(failure.exception), log)
    assert actual == ("hanging", True, CloseTimeoutError, True, ["cancelled", "outer"])


async def test_a_hosted_task_group_with_a_child_that_hangs_is_bounded_by_the_grace() -> None:
    """The scope's grace bounds a hosted exit; being cancelled, the task group ends its children."""
    log: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("child ended")

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope(grace=0.05) as scope:
            scope.defer(log.append, "outer")
            group = await scope.host(anyio.create_task_group())
            group.start_soon(child)
            await anyio.wait_all_tasks_blocked()

    assert ([told.timed_out for told in caught.value.failures], log) == ([True], ["child ended", "outer"])


async def test_an_exit_that_swallows_its_cancellation_is_left_behind() -> None:
    """One that won't end is never waited for; the rest runs. It ends when what it waits for comes."""
    go_on = anyio.Event()
    ended = anyio.Event()
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        with anyio.CancelScope(shield=True):
            while not go_on.is_set():
                with contextlib.suppress(BaseException):
                    await go_on.wait()
        ended.set()

    with anyio.fail_after(5):
        with pytest.raises(ResourceCleanupError) as caught:
            async with Scope() as scope:
                scope.defer(log.append, "outer")
                await scope.host(stubborn(), timeout=0.01)
        go_on.set()
        await ended.wait()

    assert ([type(exc) for exc in caught.value.exceptions], log) == ([CloseTimeoutError], ["outer"])


# Entering


class Gate:
    """A manager whose enter waits at a gate, and tells what happened to it."""

    def __init__(self) -> None:
        self.entering = anyio.Event()
        self.open = anyio.Event()
        self.log: list[str] = []

    async def __aenter__(self) -> Self:
        self.entering.set()
        try:
            await self.open.wait()
        except BaseException:
            self.log.append("cut off")
            raise
        self.log.append("entered")
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        self.log.append("exited" if exc is None else f"exited by {type(exc).__name__}")


async def test_one_that_fails_to_enter_registers_nothing() -> None:
    """Its error is raised as it is, and the scope stays empty."""
    fault = Fault("enter")

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        await anyio.lowlevel.checkpoint()
        raise fault
        yield

    async with Scope() as scope:
        with pytest.raises(Fault) as caught:
            await scope.host(broken())
        held = scope.size

    assert (caught.value, held) == (fault, 0)


async def test_a_host_cancelled_while_entering_leaves_nothing() -> None:
    """The enter is cancelled, its exit doesn't run, nothing is held, and the cancellation goes on."""
    gate = Gate()
    scope = Scope()
    cancel_scope = anyio.CancelScope()

    async def work() -> None:
        with cancel_scope:
            await scope.host(gate)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await gate.entering.wait()
            cancel_scope.cancel()
        await scope.aclose()

    assert (gate.log, cancel_scope.cancelled_caught, scope.size) == (["cut off"], True, 0)


@on_asyncio
async def test_a_task_cancelled_twice_while_hosting_leaves_nothing() -> None:
    """The second `task.cancel()` comes while the enter cleans up: that ends, and the task ends cancelled."""
    go_on = asyncio.Event()
    entering = asyncio.Event()
    log: list[str] = []
    scope = Scope()

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            entering.set()
            await asyncio.sleep(100)
            yield
        finally:
            await go_on.wait()
            log.append("cleaned up")

    task = asyncio.ensure_future(scope.host(slow()))
    await entering.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    go_on.set()
    await asyncio.wait([task])
    await scope.aclose()

    assert (log, task.cancelled(), scope.size) == (["cleaned up"], True, 0)


async def test_an_enter_that_swallows_its_cancellation_is_exited_again() -> None:
    """It did enter after all: it is exited with the cancellation, nothing is held, and the cancellation goes on."""
    log: list[str] = []
    entering = anyio.Event()

    class Stubborn:
        async def __aenter__(self) -> None:
            entering.set()
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
            log.append("entered")

        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            log.append("exited" if exc is None else "rolled back")

    scope = Scope()
    cancel_scope = anyio.CancelScope()

    async def work() -> None:
        with cancel_scope:
            await scope.host(Stubborn())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await entering.wait()
            cancel_scope.cancel()

    assert (log, cancel_scope.cancelled_caught, scope.size) == (["entered", "rolled back"], True, 0)


async def test_a_scope_closed_while_hosting_exits_what_came_too_late() -> None:
    """The manager entered after the scope was closed: it is exited again, and `ScopeClosedError` tells why."""
    gate = Gate()
    scope = Scope()
    raised: list[type[BaseException]] = []

    async def work() -> None:
        try:
            await scope.host(gate)
        except ScopeClosedError as exc:
            raised.append(type(exc))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await gate.entering.wait()
            await scope.aclose()
            gate.open.set()

    assert (len(gate.log), gate.log[0], raised, scope.size) == (2, "entered", [ScopeClosedError], 0)


async def test_hosting_on_a_closed_scope_enters_nothing() -> None:
    """`host` and `host_all` refuse before anything is entered."""
    gate = Gate()
    scope = Scope()
    await scope.aclose()
    with pytest.raises(ScopeClosedError):
        await scope.host(gate)
    with pytest.raises(ScopeClosedError):
        await scope.host_all(gate)

    assert (gate.entering.is_set(), gate.log) == (False, [])


async def test_hosting_while_the_scope_closes_is_drained_in_the_same_unwinding() -> None:
    """A closer that hosts another manager: that one is exited before the scope is closed."""
    transaction = Transaction()
    async with Scope() as scope:
        scope.defer(scope.host, transaction)

    assert (transaction.log, scope.state, scope.size) == (["begin", "commit"], "closed", 0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_an_enter_is_raised_as_itself(kind: type[BaseException]) -> None:
    """It ends neither the loop nor the run: it reaches the one that hosts."""
    interrupt = kind()

    @contextlib.asynccontextmanager
    async def interrupted() -> AsyncIterator[None]:
        await anyio.lowlevel.checkpoint()
        raise interrupt
        yield

    scope = Scope()
    raised: list[BaseException] = []
    try:
        await scope.host(interrupted())
    except BaseException as exc:
        raised.append(exc)
    await scope.aclose()

    assert (raised, scope.size) == ([interrupt], 0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_an_exit_is_raised_as_itself_after_all_closers(kind: type[BaseException]) -> None:
    """It reaches the one that closes, when all the others are closed."""
    interrupt = kind()
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def interrupted() -> AsyncIterator[None]:
        yield
        await anyio.lowlevel.checkpoint()
        raise interrupt

    raised: list[BaseException] = []
    try:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            await scope.host(interrupted())
    except BaseException as exc:
        raised.append(exc)

    assert (raised, log) == ([interrupt], ["outer"])


async def test_a_death_by_interrupt_is_raised_as_itself_when_the_scope_closes() -> None:
    """A `KeyboardInterrupt` that ended the host's task early is no mere failure."""
    interrupt = KeyboardInterrupt()

    class Interrupted:
        async def __aenter__(self) -> anyio.CancelScope:
            self.cancel_scope = anyio.CancelScope()
            self.cancel_scope.__enter__()
            return self.cancel_scope

        async def __aexit__(self, *exc_info: object) -> None:
            self.cancel_scope.__exit__(*exc_info)
            raise interrupt

    raised: list[BaseException] = []
    try:
        with anyio.fail_after(5):
            async with Scope() as scope:
                cancel_scope = await scope.host(Interrupted())
                cancel_scope.cancel()
                await anyio.wait_all_tasks_blocked()
    except BaseException as exc:
        raised.append(exc)

    assert raised == [interrupt]


# All or none


async def test_host_all_enters_concurrently_and_gives_the_values_in_order() -> None:
    """Each waits for the others to be entering: they do so at once."""
    gates = [Gate() for _ in range(3)]

    async def open_when_all_wait() -> None:
        for gate in gates:
            await gate.entering.wait()
        for gate in reversed(gates):
            gate.open.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(open_when_all_wait)
            async with Scope() as scope:
                values = await scope.host_all(*gates)
                order = [handle.value for handle in scope.resources]

    assert (list(values), order, [gate.log for gate in gates]) == (gates, gates, [["entered", "exited"]] * 3)


async def test_host_all_exits_the_others_when_one_fails() -> None:
    """One inside is rolled back, one still entering is cancelled, nothing is held, and the error is raised itself."""
    inside, entering, fault = Transaction(), Gate(), Fault("enter")

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        await anyio.wait_all_tasks_blocked()
        raise fault
        yield

    scope = Scope()
    with anyio.fail_after(5), pytest.raises(Fault) as caught:
        await scope.host_all(inside, entering, broken())
    await scope.aclose()

    actual = (caught.value, inside.log, inside.seen, entering.log, scope.size)
    assert actual == (fault, ["begin", "rollback"], [fault], ["cut off"], 0)


async def test_host_all_cancelled_leaves_none() -> None:
    """Cancelled while one still enters: that one is cut off, the other rolled back, nothing is held."""
    inside, entering = Transaction(), Gate()
    scope = Scope()
    cancel_scope = anyio.CancelScope()

    async def work() -> None:
        with cancel_scope:
            await scope.host_all(inside, entering)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            cancel_scope.cancel()

    actual = (inside.log, entering.log, cancel_scope.cancelled_caught, scope.size)
    assert actual == (["begin", "rollback"], ["cut off"], True, 0)


async def test_host_all_tells_of_several_that_fail() -> None:
    """Two that fail at the same moment are both told."""
    faults = [Fault("one"), Fault("two")]

    @contextlib.asynccontextmanager
    async def broken(fault: Fault) -> AsyncIterator[None]:
        raise fault
        yield

    scope = Scope()
    raised: BaseException | None = None
    with anyio.fail_after(5):
        try:
            await scope.host_all(*map(broken, faults))
        except Exception as exc:
            raised = exc
        await scope.aclose()

    assert (sorted(map(str, leaves(raised))), scope.size) == (["one", "two"], 0)


async def test_host_all_tells_of_an_exit_that_fails_while_another_failed_to_enter() -> None:
    """The error of the enter is raised; that of the other's exit is noted on it, and not lost."""
    fault = Fault("enter")

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        await anyio.wait_all_tasks_blocked()
        raise fault
        yield

    class BadExit(Transaction):
        async def __aexit__(self, *_: object) -> bool:
            msg = "bad exit"
            raise LookupError(msg)

    scope = Scope()
    with anyio.fail_after(5), pytest.raises(Fault) as caught:
        await scope.host_all(BadExit(), broken())

    notes = " ".join(getattr(caught.value, "__notes__", []))
    assert ("bad exit" in notes, "BadExit" in notes) == (True, True)


async def test_host_all_of_none_gives_an_empty_tuple() -> None:
    """Nothing to host is no error."""
    async with Scope() as scope:
        values = await scope.host_all()

    assert values == ()


# Closing from inside


@pytest.mark.parametrize("how", ["aclose", "release", "handle"])
async def test_closing_from_inside_a_hosted_exit_returns_at_once(how: str) -> None:
    """A hosted exit that closes the scope, or itself, doesn't wait for itself."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def closing() -> AsyncIterator[str]:
        yield "value"
        handle = handles[0]
        calls: dict[str, Callable[[], Any]] = {"aclose": scope.aclose, "handle": handle.aclose}
        if how == "release":
            await scope.release(handle)
        else:
            await calls[how]()
        log.append("went on")

    scope = Scope()
    handles: list[Any] = []
    with anyio.fail_after(5):
        async with scope:
            scope.defer(log.append, "outer")
            await scope.host(closing())
            handles += scope.resources[-1:]

    assert log == ["went on", "outer"]


async def test_closing_from_a_task_that_a_hosted_exit_started_returns_at_once() -> None:
    """A child task of the exit that closes the scope doesn't wait for it."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def closing() -> AsyncIterator[None]:
        yield
        async with anyio.create_task_group() as group:
            group.start_soon(scope.aclose)
        log.append("went on")

    scope = Scope()
    with anyio.fail_after(5):
        async with scope:
            await scope.host(closing())

    assert log == ["went on"]


async def test_two_that_close_one_hosted_manager_exit_it_once() -> None:
    """Overlapping `release`s and an `aclose`: one exit, and all return when it has ended."""
    transaction = Transaction()
    scope = Scope()
    handle: Any = None
    with anyio.fail_after(5):
        await scope.host(transaction)
        handle = scope.resources[0]
        async with anyio.create_task_group() as group:
            group.start_soon(handle.aclose)
            group.start_soon(scope.release, handle)
            group.start_soon(scope.aclose)

    assert (transaction.log, handle.state) == (["begin", "commit"], "closed")


# Elsewhere


async def test_hosted_managers_in_a_concurrent_scope_exit_at_once() -> None:
    """Two exits that wait for each other: closed one at a time they would hang."""
    first, second = anyio.Event(), anyio.Event()

    @contextlib.asynccontextmanager
    async def meeting(mine: anyio.Event, other: anyio.Event) -> AsyncIterator[None]:
        async with anyio.create_task_group():
            yield
            mine.set()
            await other.wait()

    with anyio.fail_after(5):
        async with Scope(concurrent=True) as scope:
            await scope.host(meeting(first, second))
            await scope.host(meeting(second, first))

    assert (first.is_set(), second.is_set()) == (True, True)


async def test_a_moved_hosted_manager_is_closed_by_the_new_scope() -> None:
    """`move` takes hosted managers along; the old scope closes without them, the new one from another task."""
    log: list[str] = []
    with anyio.fail_after(5):
        async with Scope() as scope:
            await scope.host(client(log))
            new = scope.move()
        log.append("moved")
        async with anyio.create_task_group() as group:
            group.start_soon(new.aclose)

    assert log == ["open client", "moved", "close client"]


async def test_a_detached_hosted_manager_may_be_closed_by_its_handle() -> None:
    """`detach` leaves the task running; `aclose` of the handle ends it."""
    transaction = Transaction()
    with anyio.fail_after(5):
        async with Scope() as scope:
            await scope.host(transaction)
            handle = scope.detach(transaction)
        transaction.log.append("scope closed")
        await handle.aclose()

    assert transaction.log == ["begin", "scope closed", "commit"]


async def test_a_hosted_manager_of_a_child_sees_the_parents_failure() -> None:
    """A transaction hosted in a child scope rolls back when the parent's body fails."""
    transaction, fault = Transaction(), Fault("body")
    with pytest.raises(Fault):
        async with Scope() as scope:
            await scope.child().host(transaction)
            raise fault

    assert transaction.seen == [fault]


async def test_a_hosted_failure_in_a_child_is_found_in_the_parents_error() -> None:
    """The parent tells of the child's cleanup error, which tells of the hosted exit."""
    fault = Fault("exit")

    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        yield
        raise fault

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("parent") as scope:
            await scope.child("child").host(failing(), name="store")

    found = [[failure.name for failure in error.failures] for error in cleanup_errors(caught.value)]
    assert (found, leaves(caught.value)) == ([["child"], ["store"]], [fault])


@on_asyncio
async def test_an_asyncio_timeout_and_task_group_may_be_hosted() -> None:
    """What asyncio itself ties to a task lives in the host's task."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def tied() -> AsyncIterator[None]:
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(100))
            yield
            task.cancel()
        log.append("ended")

    scope = Scope()
    await scope.host(tied())
    await asyncio.wait_for(asyncio.ensure_future(scope.aclose()), 5)

    assert log == ["ended"]


@on_trio
async def test_a_trio_nursery_may_be_hosted() -> None:
    """A nursery in a hosted manager, closed from a task of another nursery."""
    import trio

    log: list[str] = []

    @contextlib.asynccontextmanager
    async def tied() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield
            nursery.cancel_scope.cancel()
        log.append("ended")

    scope = Scope()
    await scope.host(tied())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scope.aclose)

    assert log == ["ended"]


async def test_an_exit_that_hangs_is_forced() -> None:
    """`force` is called when the exit of a hosted manager ran out of time; it may be what lets it end."""
    forced = anyio.Event()

    @contextlib.asynccontextmanager
    async def client() -> Any:
        yield
        with anyio.CancelScope(shield=True):
            while not forced.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await forced.wait()

    scope = Scope()
    await scope.host(client(), name="client", timeout=0.01, force=forced.set)
    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()
    assert forced.is_set()
    assert [(failure.name, failure.timed_out) for failure in caught.value.failures] == [("client", True)]


async def test_force_must_be_sync() -> None:
    """A `force` that is async is refused at the call, and nothing is entered."""

    async def force() -> None: ...

    async with Scope() as scope:
        with pytest.raises(TypeError, match="`force` must be sync"):
            await scope.host(anyio.create_task_group(), force=force)
        assert scope.size == 0
