"""The rules of closing, 1 to 9; every test carries the number of the rule that it proves.

Rule 4 has `test_cancellation.py` besides, rule 5 `test_budget.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY, BACKENDS
from rescope import (
    Err,
    Ok,
    Resource,
    ResourceCleanupError,
    Scope,
    ScopeClosedError,
    WrongTaskError,
    create_resource,
    with_scope,
)

Closer = Callable[[], Awaitable[None]]

GUARD = 2.0
"""Seconds of grace for a scope in a test that would wait for ever where the rule is broken."""

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
trio_only = pytest.mark.parametrize("anyio_backend", [param for param in BACKENDS if param.id == "trio"], indirect=True)


def closer(log: list[str], name: str) -> Closer:
    """Make an async closer that suspends, and then logs its name."""

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        log.append(name)

    return close


class Gate:
    """An async closer that stays until it is let go."""

    def __init__(self, log: list[str], name: str = "gate") -> None:
        self.log, self.name = log, name
        self.reached, self.leave = anyio.Event(), anyio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.leave.wait()
        self.log.append(self.name)


async def raised_by(fn: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Give what `fn` raises, if it is an `Exception`."""
    try:
        await fn()
    except Exception as exc:
        return exc
    return None


class Caller:
    """Calls something in a task of its own, and keeps how that ended."""

    def __init__(self, fn: Callable[[], Awaitable[object]]) -> None:
        self.fn = fn
        self.done = False
        self.error: BaseException | None = None

    async def __call__(self) -> None:
        self.error = await raised_by(self.fn)
        self.done = True


class Raises:
    """A closer, sync or async as asked for, that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def sync(self) -> None:
        raise self.error

    async def at_once(self) -> None:
        raise self.error

    async def later(self) -> None:
        await anyio.lowlevel.checkpoint()
        raise self.error


# Rule 1: in reverse order


async def test_rule_1_all_kinds_close_in_reverse_order() -> None:
    """Sync and async closers, callbacks, entered and hosted managers and children are closed last in, first out."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def manager(name: str) -> AsyncIterator[None]:
        yield
        await anyio.lowlevel.checkpoint()
        log.append(name)

    async with Scope() as scope:
        scope.defer(log.append, "sync")
        scope.defer(closer(log, "async"))
        await scope.enter(manager("entered"))
        await scope.host(manager("hosted"))
        child = scope.child()
        child.defer(log.append, "in the child 1")
        child.defer(closer(log, "in the child 2"))
        scope.on_exit(lambda _: log.append("exit"))
        await scope.acquire(lambda: "acquired", log.append)

    assert log == ["acquired", "exit", "in the child 2", "in the child 1", "hosted", "entered", "async", "sync"]


async def test_rule_1_one_at_a_time() -> None:
    """A closer starts only when the one registered after it has ended."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    scope.defer(log.append, "first")
    scope.defer(gate)

    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        await anyio.wait_all_tasks_blocked()
        before = list(log)
        gate.leave.set()

    assert (before, log) == ([], ["gate", "first"])


async def test_rule_1_early_release_leaves_the_order_of_the_others() -> None:
    """Releasing, detaching and adding again change nothing in the order of the rest."""
    log: list[str] = []
    async with Scope() as scope:
        scope.defer(log.append, "1")
        two = scope.defer(log.append, "2")
        scope.defer(log.append, "3")
        four = scope.defer(log.append, "4")
        await scope.release(four)
        scope.add(scope.detach(two))

    assert log == ["4", "2", "3", "1"]


async def test_rule_1_of_a_value_registered_twice_each_closer_runs_in_order() -> None:
    """The same value may be held twice; both closers run, each in its place."""
    log: list[str] = []
    value = object()
    async with Scope() as scope:
        scope.add(value, partial(log.append, "first"))
        scope.defer(log.append, "between")
        scope.add(value, partial(log.append, "second"))

    assert log == ["second", "between", "first"]


async def test_rule_1_concurrent_closes_all_at_once() -> None:
    """In a concurrent scope all closers are under way together."""
    log: list[str] = []
    gates = [Gate(log, str(n)) for n in range(3)]
    scope = Scope(concurrent=True)
    for gate in gates:
        scope.defer(gate)

    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        for gate in gates:
            await gate.reached.wait()
        for gate in gates:
            gate.leave.set()

    assert sorted(log) == ["0", "1", "2"]


async def test_rule_1_a_concurrent_child_sits_at_its_place_in_its_parent() -> None:
    """What the parent registered after a concurrent child closes before it, what it registered before, after it."""
    log: list[str] = []
    async with Scope() as parent:
        parent.defer(closer(log, "outer"))
        child = parent.child(concurrent=True)
        child.defer(closer(log, "child"))
        child.defer(closer(log, "child"))
        parent.defer(closer(log, "inner"))

    assert log == ["inner", "child", "child", "outer"]


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_rule_1_enter_is_refused_in_a_concurrent_scope_and_below(depth: int) -> None:
    """A manager tied to a task can't be closed beside others: `TypeError`, and it is not entered."""
    entered: list[bool] = []

    @contextlib.contextmanager
    def manager() -> Any:
        entered.append(True)
        yield

    async with Scope(concurrent=True) as root:
        scope = root
        for _ in range(depth):
            scope = scope.child()
        with pytest.raises(TypeError, match="use `await scope"):
            await scope.enter(manager())

    assert (entered, scope.size) == ([], 0)


async def test_rule_1_a_moved_concurrent_scope_still_refuses_enter() -> None:
    """The mode goes with what is moved."""
    moved = Scope(concurrent=True).move()
    with pytest.raises(TypeError):
        await moved.enter(contextlib.nullcontext())
    await moved.aclose()

    assert moved.state == "closed"


# Rule 2: all are attempted


def failing_closers() -> list[Any]:
    """Every way a closer can go wrong that is no cancellation."""
    errors: list[BaseException] = [
        ValueError("broken"),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        StopAsyncIteration(),
    ]
    ways = ["sync", "at_once", "later"]
    return [pytest.param(error, way, id=f"{type(error).__name__}-{way}") for error in errors for way in ways]


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize(("error", "way"), failing_closers())
async def test_rule_2_the_others_run_whatever_one_raises(error: BaseException, way: str, *, concurrent: bool) -> None:
    """Whatever a closer raises, and however, those before and after it run, and the scope is closed."""
    log: list[str] = []
    scope = Scope(concurrent=concurrent)
    scope.defer(closer(log, "first"))
    scope.defer(log.append, "second")
    scope.defer(getattr(Raises(error), way))
    scope.defer(closer(log, "last"))

    came: BaseException | None = None
    try:
        await scope.aclose()
    except BaseException as exc:
        came = exc

    expected = ResourceCleanupError if isinstance(error, Exception) else type(error)
    assert (sorted(log), type(came), scope.state) == (["first", "last", "second"], expected, "closed")


async def test_rule_2_a_closer_that_runs_out_of_time_stops_no_other() -> None:
    """One that hangs is given up after its timeout, and the others run."""
    log: list[str] = []
    scope = Scope()
    scope.defer(log.append, "first")
    scope.add("slow", anyio.sleep_forever, timeout=0.01)
    scope.defer(log.append, "last")

    error = await raised_by(scope.aclose)

    assert (log, isinstance(error, ResourceCleanupError)) == (["last", "first"], True)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_2_every_failure_is_told(*, concurrent: bool) -> None:
    """When all closers fail, all failures are told."""
    scope = Scope(concurrent=concurrent)
    for n in range(4):
        scope.add(n, Raises(ValueError(str(n))).sync if n % 2 else Raises(ValueError(str(n))).later, name=str(n))

    error = await raised_by(scope.aclose)

    assert isinstance(error, ResourceCleanupError)
    assert sorted(failure.name for failure in error.failures) == ["0", "1", "2", "3"]


async def test_rule_2_an_error_that_cant_be_printed_leaves_nothing_half_closed() -> None:
    """A failure whose `__str__` raises is reported like any other, and the scope ends up closed."""

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    log: list[str] = []
    scope = Scope()
    scope.defer(log.append, "first")
    scope.defer(Raises(UnprintableError("x")).sync)

    error = await raised_by(scope.aclose)

    assert (log, scope.state, type(error)) == (["first"], "closed", ResourceCleanupError)


@asyncio_only
async def test_rule_2_a_closer_cancelled_by_somebody_stops_no_other() -> None:
    """A closer whose own task is cancelled ends; the others run, and the cancellation comes out."""
    log: list[str] = []
    scope = Scope()
    scope.defer(closer(log, "first"))

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.lowlevel.checkpoint()

    scope.defer(cancelled)
    scope.defer(closer(log, "last"))

    with pytest.raises(asyncio.CancelledError):
        await scope.aclose()

    assert (log, scope.state) == (["last", "first"], "closed")


@asyncio_only
async def test_rule_2_every_closer_starts_though_all_tasks_are_cancelled() -> None:
    """Whoever cancels every task of the loop can cut a closer short, but not keep it from starting."""
    log: list[str] = []
    scope = Scope()
    others = asyncio.all_tasks()

    async def close(name: str) -> None:
        log.append(f"{name} starts")
        await anyio.lowlevel.checkpoint()
        log.append(f"{name} ends")

    scope.defer(close, "first")
    scope.defer(close, "second")
    asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in asyncio.all_tasks() - others])
    closing = asyncio.create_task(scope.aclose())
    await asyncio.wait([closing])
    if not log:  # cancelled before its own first step: nothing has begun, so nothing is closed
        await scope.aclose()

    assert [entry for entry in log if entry.endswith("starts")] == ["second starts", "first starts"]


@asyncio_only
async def test_rule_2_a_closer_task_cancelled_before_its_first_step_still_starts() -> None:
    """On 3.11 a task cancelled before its first step never runs; its closer does."""
    log: list[str] = []
    scope = Scope()

    async def close(name: str) -> None:
        log.append(f"{name} starts")
        await anyio.lowlevel.checkpoint()

    def cancel_all_but(spared: set[asyncio.Task[Any]]) -> None:
        for task in asyncio.all_tasks() - spared:
            task.cancel()

    scope.defer(close, "first")
    scope.defer(close, "second")
    scope.defer(lambda: asyncio.get_running_loop().call_soon(cancel_all_but, asyncio.all_tasks()))

    with pytest.raises(asyncio.CancelledError):
        await scope.aclose()

    assert log == ["second starts", "first starts"]


@asyncio_only
@pytest.mark.parametrize("suspends", [False, True])
async def test_rule_2_a_closer_that_cancels_its_own_task_cancels_no_other(*, suspends: bool) -> None:
    """A cancellation that one closer asks of its own task, once or more, is not delivered to the next."""
    log: list[str] = []
    scope = Scope()

    async def cancels() -> None:
        if suspends:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    scope.defer(closer(log, "first"))
    scope.defer(closer(log, "second"))
    scope.defer(cancels)
    with contextlib.suppress(asyncio.CancelledError):
        await scope.aclose()

    assert (log, scope.state) == (["second", "first"], "closed")


async def test_rule_2_an_async_generator_that_is_closed_closes_its_scope() -> None:
    """`GeneratorExit` in the body is a failed body: all closers run, and the generator ends quietly."""
    log: list[str] = []

    async def numbers() -> AsyncGenerator[int, None]:
        async with Scope() as scope:
            scope.defer(closer(log, "first"))
            scope.on_error(log.append, "on_error")
            scope.defer(closer(log, "last"))
            yield 1

    stream = numbers()
    await anext(stream)
    await stream.aclose()

    assert log == ["last", "on_error", "first"]


# Rule 3: once


async def test_rule_3_state_is_closing_before_the_first_closer_runs() -> None:
    """A closer never sees an open scope."""
    seen: list[str] = []
    scope = Scope()
    scope.defer(lambda: seen.append(scope.state))
    await scope.aclose()

    assert (seen, scope.state) == (["closing"], "closed")


async def test_rule_3_a_resource_is_closing_while_its_closer_runs() -> None:
    """A handle's state is `closing` in its closer, and `closed` afterwards."""
    seen: list[str] = []
    scope = Scope()
    handle = scope.defer(lambda: seen.append(handle.state))
    await scope.aclose()

    assert (seen, handle.state) == (["closing"], "closed")


async def test_rule_3_closing_twice_closes_once() -> None:
    """A second `aclose()` does nothing."""
    log: list[str] = []
    scope = Scope()
    scope.defer(log.append, "closed")
    await scope.aclose()
    await scope.aclose()

    assert log == ["closed"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_overlapping_aclose_closes_each_once(*, concurrent: bool) -> None:
    """Many tasks that close one scope close each resource once."""
    log: list[str] = []
    scope = Scope(concurrent=concurrent)
    for n in range(3):
        scope.defer(closer(log, str(n)))

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(scope.aclose)

    assert sorted(log) == ["0", "1", "2"]


async def test_rule_3_overlapping_aclose_waits_for_the_first() -> None:
    """A second `aclose()` comes back only when all is closed."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    scope.defer(log.append, "last closer")
    scope.defer(gate)
    first, second = Caller(scope.aclose), Caller(scope.aclose)

    async with anyio.create_task_group() as tg:
        tg.start_soon(first)
        await gate.reached.wait()
        tg.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        before = (first.done, second.done)
        gate.leave.set()

    assert (before, second.done, log) == ((False, False), True, ["gate", "last closer"])


async def test_rule_3_waiting_for_the_first_can_be_cancelled() -> None:
    """The second caller's wait ends with its cancellation; the closing goes on."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    scope.defer(gate)

    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await scope.aclose()
        state = scope.state
        gate.leave.set()

    assert (cancelled.cancelled_caught, state, log) == (True, "closing", ["gate"])


async def test_rule_3_the_failure_is_raised_to_the_one_that_closes() -> None:
    """Of two overlapping calls only the first gets the failure; a later one gets none either."""
    gate = anyio.Event()

    async def fails() -> None:
        await gate.wait()
        raise ValueError("broken")

    scope = Scope()
    scope.defer(fails)
    first, second = Caller(scope.aclose), Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    third = await raised_by(scope.aclose)

    assert [type(first.error), second.error, third] == [ResourceCleanupError, None, None]


async def test_rule_3_overlapping_release_closes_once_and_raises_once() -> None:
    """Two releases of one resource: the first closes it and gets the failure, the second waits."""
    log: list[str] = []
    gate = Gate(log)

    async def close() -> None:
        await gate()
        raise ValueError("broken")

    scope = Scope()
    handle = scope.defer(close)
    first, second = Caller(handle.aclose), Caller(lambda: scope.release(handle))
    async with anyio.create_task_group() as tg:
        tg.start_soon(first)
        await gate.reached.wait()
        tg.start_soon(second)
        await anyio.wait_all_tasks_blocked()
        waited = not second.done
        gate.leave.set()
    await scope.aclose()

    assert (waited, log, type(first.error), second.error) == (True, ["gate"], ResourceCleanupError, None)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_aclose_waits_for_a_release_that_is_under_way(*, concurrent: bool) -> None:
    """The scope is closed only when the resource that somebody else closes is closed, and closes it no second time."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope(concurrent=concurrent)
    handle = scope.defer(gate)
    closing = Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.release, handle)
        await gate.reached.wait()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        before = (closing.done, scope.state)
        gate.leave.set()

    assert (before, log, scope.size) == ((False, "closing"), ["gate"], 0)


async def test_rule_3_a_release_under_way_keeps_its_place_in_the_order() -> None:
    """What was registered before a resource that is being released closes after it all the same."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    scope.defer(closer(log, "first"))
    handle = scope.defer(gate)
    scope.defer(closer(log, "last"))
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.release, handle)
        await gate.reached.wait()
        tg.start_soon(scope.aclose)
        await anyio.wait_all_tasks_blocked()
        gate.leave.set()

    assert log == ["last", "gate", "first"]


async def test_rule_3_a_release_under_way_that_fails_is_raised_to_the_releaser() -> None:
    """The scope that closes meanwhile doesn't raise what the release raises."""
    gate = anyio.Event()

    async def fails() -> None:
        await gate.wait()
        raise ValueError("broken")

    scope = Scope()
    handle = scope.defer(fails)
    releasing, closing = Caller(handle.aclose), Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(releasing)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        gate.set()

    assert (type(releasing.error), closing.error) == (ResourceCleanupError, None)


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_release_beside_aclose_waits_and_closes_once(*, concurrent: bool, by_value: bool) -> None:
    """Releasing what the scope is just closing waits for that, by handle and by value."""
    log: list[str] = []
    gate = Gate(log)
    value = object()
    handle = Resource(value, gate)
    scope = Scope(concurrent=concurrent)
    scope.add(handle)
    releasing = Caller(lambda: scope.release(value if by_value else handle))
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        tg.start_soon(releasing)
        await anyio.wait_all_tasks_blocked()
        waited = not releasing.done
        gate.leave.set()

    assert (waited, log, releasing.error) == (True, ["gate"], None)


async def test_rule_3_release_while_closing_of_one_whose_turn_has_not_come() -> None:
    """A resource further down may be released while the scope closes another; it is closed once."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    handle = scope.defer(closer(log, "first"))
    scope.defer(gate)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        await scope.release(handle)
        gate.leave.set()

    assert log == ["first", "gate"]


async def test_rule_3_a_closer_may_release_another() -> None:
    """A closer that releases one registered earlier closes it, once."""
    log: list[str] = []
    async with Scope() as scope:
        first = scope.defer(closer(log, "first"))
        scope.defer(lambda: scope.release(first))

    assert log == ["first"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_aclose_from_inside_a_closer_returns_at_once(*, concurrent: bool) -> None:
    """A closer that closes its own scope doesn't wait for itself; the rest is closed as if it hadn't."""
    log: list[str] = []
    scope = Scope(grace=GUARD, concurrent=concurrent)
    scope.defer(closer(log, "first"))
    scope.defer(scope.aclose)
    scope.defer(closer(log, "last"))
    await scope.aclose()

    assert sorted(log) == ["first", "last"]


async def test_rule_3_a_closer_may_close_its_own_handle() -> None:
    """A closer that closes its own handle doesn't wait for itself."""
    log: list[str] = []
    scope = Scope(grace=GUARD)

    async def close() -> None:
        await handle.aclose()
        log.append("closed")

    handle = scope.defer(close)
    await scope.aclose()

    assert log == ["closed"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_aclose_from_a_task_that_a_closer_started_returns_at_once(*, concurrent: bool) -> None:
    """A closer may wait for a task of its own that closes the scope."""
    log: list[str] = []
    scope = Scope(grace=GUARD, concurrent=concurrent)

    async def close() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(scope.aclose)
        log.append("closed")

    scope.defer(close)
    await scope.aclose()

    assert log == ["closed"]


@asyncio_only
async def test_rule_3_aclose_from_a_task_that_a_sync_closer_started_returns_at_once() -> None:
    """So it is for a task started by a sync closer, even when a later closer waits for it."""
    tasks: list[asyncio.Task[None]] = []
    scope = Scope(grace=GUARD)
    scope.defer(lambda: asyncio.wait(tasks))
    scope.defer(lambda: tasks.append(asyncio.create_task(scope.aclose())))
    await scope.aclose()

    assert [task.done() for task in tasks] == [True]


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_rule_3_aclose_from_the_closer_of_a_child_returns_at_once(depth: int, *, concurrent: bool) -> None:
    """The closer of a child, or a grandchild, may close the scope at the top."""
    log: list[str] = []
    root = Scope(grace=GUARD, concurrent=concurrent)
    scope = root
    for _ in range(depth):
        scope = scope.child()

    async def close() -> None:
        await root.aclose()
        log.append("closed")

    scope.defer(close)
    await root.aclose()

    assert log == ["closed"]


async def test_rule_3_aclose_from_a_hosted_exit_returns_at_once() -> None:
    """A hosted manager's exit may close the scope that holds it."""
    log: list[str] = []
    scope = Scope(grace=GUARD)

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield
        await scope.aclose()
        log.append("closed")

    await scope.host(manager())
    await scope.aclose()

    assert log == ["closed"]


async def test_rule_3_aclose_from_an_entered_exit_returns_at_once() -> None:
    """An entered manager's exit may close the scope that holds it."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield
        with anyio.fail_after(GUARD):
            await scope.aclose()
        log.append("closed")

    async with Scope() as scope:
        await scope.enter(manager())

    assert log == ["closed"]


async def test_rule_3_a_released_closer_may_close_the_scope() -> None:
    """The closer of a resource that is being released closes the scope that holds it: the others are closed."""
    log: list[str] = []
    scope = Scope()
    scope.defer(closer(log, "other"))

    async def close() -> None:
        await scope.aclose()
        log.append("released")

    scope.add("x", close, timeout=GUARD)
    await scope.release("x")

    assert (log, scope.state) == (["other", "released"], "closed")


async def test_rule_3_a_released_closer_may_close_the_scope_that_waits_for_it() -> None:
    """Where the scope is being closed elsewhere and waits for that closer, its `aclose()` returns at once."""
    log: list[str] = []
    go = anyio.Event()
    scope = Scope()

    async def close() -> None:
        await go.wait()
        await scope.aclose()
        log.append("released")

    scope.add("x", close, timeout=GUARD)
    releasing, closing = Caller(lambda: scope.release("x")), Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(releasing)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        go.set()

    assert (log, releasing.error, closing.error) == (["released"], None, None)


async def test_rule_3_the_closer_of_a_child_that_alone_is_closing_may_close_the_parent() -> None:
    """A child that closes by itself closes its open parent from a closer: the parent doesn't wait for that child."""
    log: list[str] = []
    parent = Scope()
    parent.defer(closer(log, "of the parent"))
    child = parent.child(grace=GUARD)

    async def close() -> None:
        await parent.aclose()
        log.append("of the child")

    child.defer(close)
    error = await raised_by(child.aclose)

    assert (error, log, parent.state, child.state) == (None, ["of the parent", "of the child"], "closed", "closed")


async def test_rule_3_the_closer_of_a_child_may_close_the_parent_that_waits_for_it() -> None:
    """A child closes by itself, the parent is closed elsewhere and waits for it, its closer closes the parent."""
    log: list[str] = []
    go = anyio.Event()
    parent = Scope()
    child = parent.child(grace=GUARD)

    async def close() -> None:
        await go.wait()
        await parent.aclose()
        log.append("of the child")

    child.defer(close)
    alone, closing = Caller(child.aclose), Caller(parent.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(alone)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        go.set()

    assert (log, alone.error, closing.error) == (["of the child"], None, None)


async def test_rule_3_a_closer_of_a_middle_scope_that_alone_is_closing_may_close_the_root() -> None:
    """Two levels: the grandchild's closer closes the root while only the middle scope is closing."""
    log: list[str] = []
    root = Scope()
    middle = root.child(grace=GUARD)
    leaf = middle.child()

    async def close() -> None:
        await root.aclose()
        log.append("of the leaf")

    leaf.defer(close)
    error = await raised_by(middle.aclose)

    assert (error, log, root.state) == (None, ["of the leaf"], "closed")


async def test_rule_3_a_released_closer_may_close_the_parent_that_waits_for_it() -> None:
    """A resource of a child is being released, the parent closes elsewhere and waits for it, its closer closes it."""
    log: list[str] = []
    go = anyio.Event()
    parent = Scope()
    child = parent.child()

    async def close() -> None:
        await go.wait()
        await parent.aclose()
        log.append("released")

    child.add("x", close, timeout=GUARD)
    releasing, closing = Caller(lambda: child.release("x")), Caller(parent.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(releasing)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        go.set()

    assert (log, releasing.error, closing.error) == (["released"], None, None)


async def test_rule_3_a_task_of_an_earlier_close_is_not_inside_a_later_one() -> None:
    """A task that a closer started, and that outlives it, waits for another scope like anybody else."""
    log: list[str] = []
    gate = Gate(log)
    go = anyio.Event()
    later = Scope()
    later.defer(gate)

    async def background() -> None:
        await go.wait()
        await later.aclose()
        log.append("background")

    async with anyio.create_task_group() as tg:
        earlier = Scope()

        def start() -> None:
            tg.start_soon(background)

        earlier.defer(start)
        await earlier.aclose()
        tg.start_soon(later.aclose)
        await gate.reached.wait()
        go.set()
        await anyio.wait_all_tasks_blocked()
        gate.leave.set()

    assert log == ["gate", "background"]


async def test_rule_3_closing_a_child_alone_takes_it_off_its_parent() -> None:
    """A child closed first is closed once, and no longer held."""
    log: list[str] = []
    async with Scope() as parent:
        child = parent.child()
        child.defer(closer(log, "child"))
        await child.aclose()
        size = parent.size

    assert (size, log) == (0, ["child"])


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_closing_the_parent_waits_for_a_child_that_closes_alone(*, concurrent: bool) -> None:
    """A child that somebody else is closing is waited for, and what it fails with is raised to them alone."""
    log: list[str] = []
    gate = Gate(log)
    parent = Scope(concurrent=concurrent)
    child = parent.child()
    child.defer(Raises(ValueError("broken")).sync)
    child.defer(gate)
    alone, closing = Caller(child.aclose), Caller(parent.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(alone)
        await gate.reached.wait()
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        waited = not closing.done
        gate.leave.set()

    assert (waited, log, type(alone.error), closing.error) == (True, ["gate"], ResourceCleanupError, None)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_3_closing_a_child_that_its_parent_closes_waits(*, concurrent: bool) -> None:
    """`child.aclose()` beside the parent's closing waits until the child is closed."""
    log: list[str] = []
    gate = Gate(log)
    parent = Scope(concurrent=concurrent)
    child = parent.child()
    child.defer(gate)
    beside = Caller(child.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(parent.aclose)
        await gate.reached.wait()
        tg.start_soon(beside)
        await anyio.wait_all_tasks_blocked()
        waited = not beside.done
        gate.leave.set()

    assert (waited, log, child.state) == (True, ["gate"], "closed")


async def test_rule_3_a_child_closed_at_the_very_start_of_its_concurrent_parents_close() -> None:
    """Whoever of the two comes first, the parent is closed only when the child is, and all who wait come back."""
    rounds: list[tuple[object, ...]] = []
    for _ in range(8):  # trio draws who runs first by lot
        go, gate = anyio.Event(), Gate([])
        parent = Scope(concurrent=True)
        child = parent.child()
        child.defer(gate)
        parent.defer(go.set)

        async def close_child(go: anyio.Event = go, child: Scope = child) -> None:
            await go.wait()
            await child.aclose()

        alone, closing = Caller(close_child), Caller(parent.aclose)
        async with anyio.create_task_group() as tg:
            tg.start_soon(alone)
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(closing)
            await gate.reached.wait()
            await anyio.wait_all_tasks_blocked()
            rounds.append((alone.done, closing.done, child.state, parent.state))
            gate.leave.set()

    assert rounds == [(False, False, "closing", "closing")] * 8


async def test_rule_3_a_detached_child_that_is_closed_cant_be_added_again() -> None:
    """The handle of a child that was detached and then closed is closed."""
    parent, other = Scope(), Scope()
    child = parent.child()
    handle = parent.detach(child)
    await child.aclose()
    error: BaseException | None = None
    try:
        other.add(handle)
    except ValueError as exc:
        error = exc
    size = other.size
    await other.aclose()

    assert (type(error), size) == (ValueError, 0)


async def test_rule_3_a_detached_child_that_is_closing_cant_be_added_again() -> None:
    """Nor while it is closing: no second scope begins to close it beside the first."""
    log: list[str] = []
    gate = Gate(log)
    parent, other = Scope(), Scope()
    child = parent.child()
    child.defer(gate)
    handle = parent.detach(child)
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.aclose)
        await gate.reached.wait()
        error: BaseException | None = None
        try:
            other.add(handle)
        except ValueError as exc:
            error = exc
        await other.aclose()
        state = child.state
        gate.leave.set()

    assert (type(error), state, log) == (ValueError, "closing", ["gate"])


async def test_rule_3_a_detached_child_may_be_held_by_another_scope() -> None:
    """A child that was detached and added elsewhere is closed by its new parent, once."""
    log: list[str] = []
    parent, other = Scope(), Scope()
    child = parent.child()
    child.defer(log.append, "child")
    other.add(parent.detach(child))
    await parent.aclose()
    before = list(log)
    await other.aclose()

    assert (before, log, child.state) == ([], ["child"], "closed")


async def test_rule_3_move_while_a_release_is_under_way() -> None:
    """A resource that is being released when its scope is moved is closed once, and its new scope waits for it."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    handle = scope.defer(gate)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.release, handle)
        await gate.reached.wait()
        moved = scope.move()
        closing = Caller(moved.aclose)
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        waited = not closing.done
        gate.leave.set()
    await scope.aclose()

    assert (waited, log, moved.size) == (True, ["gate"], 0)


async def test_rule_3_move_while_a_child_closes_alone() -> None:
    """A child that is closing by itself when its parent is moved is waited for by the new parent."""
    log: list[str] = []
    gate = Gate(log)
    parent = Scope()
    child = parent.child()
    child.defer(gate)
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.aclose)
        await gate.reached.wait()
        moved = parent.move()
        closing = Caller(moved.aclose)
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
        waited = not closing.done
        gate.leave.set()
    await parent.aclose()

    assert (waited, log, moved.size, child.state) == (True, ["gate"], 0, "closed")


async def test_rule_3_detach_of_a_resource_that_is_closing_is_refused() -> None:
    """Nobody can take away what is being closed."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    handle = scope.defer(gate)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        with pytest.raises(KeyError):
            scope.detach(handle)
        gate.leave.set()

    assert (log, handle.state) == (["gate"], "closed")


async def test_rule_3_a_resource_closed_by_its_handle_is_taken_off() -> None:
    """`handle.aclose()` closes it whoever holds it, and the scope doesn't close it again."""
    log: list[str] = []
    async with Scope() as scope:
        handle = scope.defer(log.append, "closed")
        await handle.aclose()
        size = scope.size

    assert (size, log) == (0, ["closed"])


async def test_rule_3_closing_the_scope_in_its_body_closes_once_and_raises_there() -> None:
    """`aclose()` in the body raises what fails there; leaving the body raises nothing of its own."""
    log: list[str] = []
    async with Scope() as scope:
        scope.defer(closer(log, "other"))
        scope.defer(Raises(ValueError("broken")).later)
        inside = await raised_by(scope.aclose)

    assert (type(inside), log) == (ResourceCleanupError, ["other"])


async def test_rule_3_leaving_the_body_waits_for_a_close_that_is_under_way() -> None:
    """A body that ends while another task closes its scope waits for that."""
    log: list[str] = []
    gate = Gate(log)

    async def body() -> None:
        async with Scope() as scope:
            scope.defer(gate)
            tg.start_soon(scope.aclose)
            await gate.reached.wait()
        log.append("left")

    async with anyio.create_task_group() as tg:
        tg.start_soon(body)
        await gate.reached.wait()
        await anyio.wait_all_tasks_blocked()
        gate.leave.set()

    assert log == ["gate", "left"]


async def test_rule_3_size_is_0_afterwards() -> None:
    """Nothing is held by a closed scope."""
    scope = Scope()
    value = scope.add(object(), lambda: None)
    await scope.aclose()

    assert (scope.size, scope.resources, scope.has(value)) == (0, (), False)


# Rule 6: closed means closed


@contextlib.asynccontextmanager
async def logging_manager(log: list[str]) -> AsyncIterator[str]:
    """Log that it is entered and exited."""
    log.append("entered")
    try:
        yield "value"
    finally:
        log.append("exited")


REGISTERING: dict[str, Callable[[Scope, list[str]], Any]] = {
    "add": lambda scope, log: scope.add(object(), lambda: log.append("closed")),
    "add_resource": lambda scope, log: scope.add(Resource(object(), lambda: log.append("closed"))),
    "acquire": lambda scope, log: scope.acquire(lambda: log.append("acquired"), lambda _: log.append("closed")),
    "acquire_shielded": lambda scope, log: scope.acquire(closer(log, "acquired"), lambda _: None, shield=True),
    "enter": lambda scope, log: scope.enter(logging_manager(log)),
    "host": lambda scope, log: scope.host(logging_manager(log)),
    "host_all": lambda scope, log: scope.host_all(logging_manager(log), logging_manager(log)),
    "defer": lambda scope, log: scope.defer(log.append, "closed"),
    "on_error": lambda scope, log: scope.on_error(log.append, "closed"),
    "on_success": lambda scope, log: scope.on_success(log.append, "closed"),
    "on_exit": lambda scope, log: scope.on_exit(lambda _: log.append("closed")),
    "child": lambda scope, log: scope.child(),
    "move": lambda scope, log: scope.move(),
    "async with": lambda scope, log: scope.__aenter__(),
}


async def call(what: str, scope: Scope, log: list[str]) -> None:
    """Register something in that way."""
    result = REGISTERING[what](scope, log)
    if isinstance(result, Awaitable):
        await result


@pytest.mark.parametrize("what", REGISTERING)
async def test_rule_6_a_closed_scope_refuses(what: str) -> None:
    """On a closed scope every way of registering raises `ScopeClosedError` and does nothing before."""
    log: list[str] = []
    scope = Scope()
    await scope.aclose()
    with pytest.raises(ScopeClosedError):
        await call(what, scope, log)

    assert (log, scope.size) == ([], 0)


async def test_rule_6_a_refused_resource_stays_the_callers() -> None:
    """What a closed scope refuses is open still, and may go elsewhere."""
    log: list[str] = []
    closed = Scope()
    await closed.aclose()
    handle = Resource("x", partial(log.append, "closed"))
    with pytest.raises(ScopeClosedError):
        closed.add(handle)
    state = handle.state
    async with Scope() as scope:
        scope.add(handle)

    assert (state, log) == ("open", ["closed"])


DRAINED = {
    "add": ["closed"],
    "add_resource": ["closed"],
    "acquire": ["acquired", "closed"],
    "acquire_shielded": ["acquired"],
    "host": ["entered", "exited"],
    "host_all": ["entered", "entered", "exited", "exited"],
    "defer": ["closed"],
    "on_success": ["closed"],
    "on_exit": ["closed"],
    "child": [],
}


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize(("what", "expected"), DRAINED.items(), ids=DRAINED)
async def test_rule_6_what_a_closer_registers_is_drained(what: str, expected: list[str], *, concurrent: bool) -> None:
    """While it is closing, a scope takes more, and closes it in the same unwinding."""
    log: list[str] = []
    scope = Scope(concurrent=concurrent)
    scope.defer(lambda: call(what, scope, log))
    await scope.aclose()

    assert (log, scope.size) == (expected, 0)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_6_enter_is_refused_while_closing(*, concurrent: bool) -> None:
    """`enter` on a closing scope raises `ScopeClosedError`, and the manager is not entered."""
    log: list[str] = []
    errors: list[BaseException | None] = []
    scope = Scope(concurrent=concurrent)

    async def close() -> None:
        errors.append(await raised_by(lambda: scope.enter(logging_manager(log))))

    scope.defer(close)
    await scope.aclose()

    assert ([type(error) for error in errors], log) == ([ScopeClosedError], [])


async def test_rule_6_what_another_task_registers_while_closing_is_drained_next() -> None:
    """What is registered while a closer runs is closed next, before what was registered earlier."""
    log: list[str] = []
    gate = Gate(log)
    scope = Scope()
    scope.defer(log.append, "first")
    scope.defer(gate)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        scope.defer(closer(log, "late"))
        gate.leave.set()

    assert log == ["gate", "late", "first"]


async def test_rule_6_a_chain_of_registrations_is_drained() -> None:
    """A closer that registers one that registers one, and so on, is followed to the end."""
    log: list[str] = []
    scope = Scope()

    async def close(n: int) -> None:
        log.append(str(n))
        if n:
            scope.defer(close, n - 1)

    scope.defer(close, 3)
    await scope.aclose()

    assert log == ["3", "2", "1", "0"]


async def test_rule_6_the_closer_of_a_child_registers_in_the_parent() -> None:
    """What a child's closer registers in the parent is drained when the child is closed."""
    log: list[str] = []
    parent = Scope()
    parent.defer(log.append, "first")
    parent.child().defer(lambda: parent.defer(log.append, "late") and None)
    await parent.aclose()

    assert log == ["late", "first"]


async def test_rule_6_a_child_opened_while_closing_is_closed_with_what_it_holds() -> None:
    """A child that a closer opens is drained with its resources, and with the same outcome."""
    outcomes: list[object] = []
    scope = Scope()
    scope.defer(lambda: scope.child().on_exit(outcomes.append) and None)
    await scope.aclose()

    assert outcomes == [Ok(None)]


@pytest.mark.parametrize("shield", [False, True])
async def test_rule_6_a_scope_closed_while_acquiring_releases_what_came(*, shield: bool) -> None:
    """The new resource is released, then `ScopeClosedError` raised."""
    log: list[str] = []
    go = anyio.Event()
    scope = Scope()

    async def acquire() -> str:
        await go.wait()
        return "x"

    acquiring = Caller(lambda: scope.acquire(acquire, log.append, shield=shield))
    async with anyio.create_task_group() as tg:
        tg.start_soon(acquiring)
        await anyio.wait_all_tasks_blocked()
        await scope.aclose()
        go.set()

    assert (type(acquiring.error), log, scope.size) == (ScopeClosedError, ["x"], 0)


async def test_rule_6_a_scope_that_begins_to_close_while_acquiring_drains_what_came() -> None:
    """Where the scope is still closing when `acquire` ends, the resource is held and drained."""
    log: list[str] = []
    go, gate = anyio.Event(), Gate(log)
    scope = Scope()
    scope.defer(gate)

    async def acquire() -> str:
        await go.wait()
        return "x"

    acquiring = Caller(lambda: scope.acquire(acquire, log.append))
    async with anyio.create_task_group() as tg:
        tg.start_soon(acquiring)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(scope.aclose)
        await gate.reached.wait()
        go.set()
        await anyio.wait_all_tasks_blocked()
        gate.leave.set()

    assert (acquiring.error, log) == (None, ["gate", "x"])


@pytest.mark.parametrize("how", ["enter", "host"])
async def test_rule_6_a_scope_closed_while_a_manager_is_entered_exits_it(how: str) -> None:
    """A manager that came too late is exited again, then `ScopeClosedError` raised."""
    log: list[str] = []
    go = anyio.Event()

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        await go.wait()
        async with logging_manager(log):
            yield

    scope = Scope()
    registering = Caller(lambda: getattr(scope, how)(manager()))
    async with anyio.create_task_group() as tg:
        tg.start_soon(registering)
        await anyio.wait_all_tasks_blocked()
        await scope.aclose()
        go.set()

    assert (type(registering.error), log, scope.size) == (ScopeClosedError, ["entered", "exited"], 0)


async def test_rule_6_releasing_a_handle_that_is_closed_does_nothing() -> None:
    """On a closed scope too."""
    log: list[str] = []
    scope = Scope()
    handle = scope.defer(log.append, "closed")
    await scope.aclose()
    await scope.release(handle)

    assert log == ["closed"]


@pytest.mark.parametrize("method", ["release", "detach"])
async def test_rule_6_a_value_that_is_no_longer_held_is_a_key_error(method: str) -> None:
    """After closing, a value is not held any more."""
    scope = Scope()
    value = scope.add(object(), lambda: None)
    await scope.aclose()
    error: BaseException | None = None
    try:
        result = getattr(scope, method)(value)
        if isinstance(result, Awaitable):
            await result
    except KeyError as exc:
        error = exc

    assert type(error) is KeyError


# Rule 7: nothing is held open around the body


async def test_rule_7_a_scope_may_be_closed_in_another_task() -> None:
    """Opened here, closed there: plain closers, hosted managers and children all close."""
    log: list[str] = []
    scope = Scope()
    scope.defer(closer(log, "plain"))

    @contextlib.asynccontextmanager
    async def tied() -> AsyncIterator[None]:
        async with anyio.create_task_group():
            yield
        log.append("hosted")

    async def open_all() -> None:
        await scope.__aenter__()
        await scope.host(tied())
        scope.child().defer(closer(log, "child"))

    async def close_all() -> None:
        await scope.__aexit__(None, None, None)

    async with anyio.create_task_group() as tg:
        tg.start_soon(open_all)
    async with anyio.create_task_group() as tg:
        tg.start_soon(close_all)

    assert log == ["child", "hosted", "plain"]


async def test_rule_7_scopes_may_be_closed_in_any_order() -> None:
    """Scopes opened one after the other in one task may be closed first in, first out."""
    log: list[str] = []
    scopes = [Scope(str(n)) for n in range(3)]
    for scope in scopes:
        await scope.__aenter__()
        scope.defer(closer(log, str(scope.name)))
    for scope in scopes:
        await scope.__aexit__(None, None, None)

    assert log == ["0", "1", "2"]


async def test_rule_7_an_entered_manager_that_does_not_mind_is_exited_in_another_task() -> None:
    """The exit is tried: one that isn't tied to its task succeeds."""
    log: list[str] = []
    scope = Scope()
    await scope.enter(logging_manager(log))
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.aclose)

    assert log == ["entered", "exited"]


async def test_rule_7_a_failing_exit_in_another_task_explains_itself() -> None:
    """The failure names both tasks and the resource, keeps what was raised, and says what to do."""

    @contextlib.asynccontextmanager
    async def tied() -> AsyncIterator[None]:
        yield
        raise RuntimeError("not my task")

    scope = Scope()
    await scope.enter(tied())
    here = anyio.get_current_task().name
    closing = Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(closing, name="the closing one")

    assert isinstance(closing.error, ResourceCleanupError)
    (error,) = closing.error.errors
    parts = [str(here), "the closing one", "tied", "host"]
    assert (type(error), [part for part in parts if part not in str(error)]) == (WrongTaskError, [])
    assert str(error.__cause__) == "not my task"


@trio_only
async def test_rule_7_a_nursery_is_not_exited_in_another_task() -> None:
    """On trio that would crash the run: it is not tried, reported as a failure, and the others are closed."""
    log: list[str] = []
    scope = Scope()
    group = anyio.create_task_group()
    scope.defer(closer(log, "other"))
    await scope.enter(group)
    closing = Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(closing)
        await anyio.wait_all_tasks_blocked()
    await group.__aexit__(None, None, None)

    assert isinstance(closing.error, ResourceCleanupError)
    assert ([type(error) for error in closing.error.errors], log) == ([WrongTaskError], ["other"])


@trio_only
async def test_rule_7_a_nursery_inside_of_a_manager_is_not_exited_in_another_task() -> None:
    """So it is for one that a manager opens inside."""

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group():
            yield

    scope = Scope()
    manager = client()
    await scope.enter(manager)
    closing = Caller(scope.aclose)
    async with anyio.create_task_group() as tg:
        tg.start_soon(closing)
    await manager.__aexit__(None, None, None)

    assert isinstance(closing.error, ResourceCleanupError)
    assert [type(error) for error in closing.error.errors] == [WrongTaskError]


async def test_rule_7_cancelling_the_body_cancels_nothing_else() -> None:
    """No task group or cancel scope of the scope's is around the body: what the body cancels is its own."""
    log: list[str] = []
    with anyio.CancelScope() as own:
        async with Scope() as scope:
            scope.defer(closer(log, "closed"))
            deadline = anyio.current_effective_deadline()
            own.cancel()
            await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()

    assert (deadline, own.cancelled_caught, log) == (float("inf"), True, ["closed"])


async def test_rule_7_a_task_group_and_a_scope_may_be_crossed() -> None:
    """A scope opened inside a task group may be closed outside of it, as it holds nothing open."""
    log: list[str] = []
    async with anyio.create_task_group():
        scope = await Scope().__aenter__()
        scope.defer(closer(log, "closed"))
    await scope.__aexit__(None, None, None)

    assert log == ["closed"]


async def test_rule_7_a_hosted_managers_own_task_may_close_the_scope() -> None:
    """Any task may close: a background task of the hosted manager too, which the manager's exit waits for."""
    log: list[str] = []
    ended = anyio.Event()
    scope = Scope()
    scope.defer(closer(log, "other"))

    lost = anyio.Event()

    async def background() -> None:
        try:
            await lost.wait()
            await scope.aclose()
        finally:
            ended.set()

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(background)
            yield
            tg.cancel_scope.cancel()
        log.append("exited")

    await scope.host(client(), timeout=GUARD)
    lost.set()
    await ended.wait()
    await scope.aclose()

    assert (log, scope.state, scope.cleanup_error) == (["exited", "other"], "closed", None)


# Rule 8: leaving one open


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """Give the texts of all warnings, without keeping what they are about alive, and without the cycle collector."""
    texts: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        texts.append(f"{category.__name__}: {message}")

    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show  # type: ignore[assignment]
            yield texts
    finally:
        gc.enable()


async def test_rule_8_dropping_an_open_scope_warns_at_once_with_names() -> None:
    """No collection of cycles is needed; the warning names the scope and what it held."""
    scope = Scope("orders")
    scope.add(object(), lambda: None, name="database")
    await scope.acquire(lambda: "x", lambda _: None, name="lock")
    with told() as texts:
        del scope

    (text,) = texts
    assert [part for part in ("ResourceWarning", "orders", "database", "lock") if part not in text] == []


async def test_rule_8_dropping_a_tree_of_scopes_warns_for_each_that_held_something() -> None:
    """A dropped parent lets its children go too."""
    parent = Scope("parent")
    parent.child("child").defer(lambda: None)
    with told() as texts:
        del parent

    assert sorted(text.split()[2] for text in texts) == ["'child'", "'parent'"]


async def test_rule_8_a_scope_with_every_kind_of_thing_warns_at_once() -> None:
    """Callbacks, hosted and entered managers and children hold no scope alive."""
    log: list[str] = []
    scope = Scope("all")
    scope.on_exit(lambda _: None)
    manager = logging_manager(log)
    await scope.enter(manager)
    await scope.host(logging_manager(log), name="hosted")
    scope.child("below")
    hosted = scope.resources[-2]
    with told() as texts:
        del scope
    await hosted.aclose()
    await manager.__aexit__(None, None, None)

    assert ["hosted" in text and "below" in text for text in texts] == [True]


async def test_rule_8_a_closed_scope_goes_quietly() -> None:
    """Nothing is said of a scope that was closed, moved or never held anything."""
    with told() as texts:
        first = Scope()
        first.defer(lambda: None)
        moved = first.move()
        await moved.aclose()
        failed = Scope()
        failed.defer(Raises(ValueError("broken")).later)
        error = await raised_by(failed.aclose)
        del first, moved, failed, error
        gc.collect()

    assert texts == []


async def test_rule_8_what_was_detached_is_not_named() -> None:
    """Only what is still held is named."""
    scope = Scope()
    scope.add(object(), lambda: None, name="kept")
    given_away = Resource(object(), lambda: None, name="given away")
    scope.add(given_away)
    scope.detach(given_away)
    with told() as texts:
        del scope

    assert [("kept" in text, "given away" in text) for text in texts] == [(True, False)]


async def test_rule_8_a_scope_with_very_much_in_it_does_not_flood_the_warning() -> None:
    """Of many resources some names are told, and how many more there are."""
    scope = Scope()
    for n in range(1000):
        scope.add(object(), lambda: None, name=f"number {n}")
    with told() as texts:
        del scope

    (text,) = texts
    assert ("number 0" in text, "990 more" in text, "number 999" in text) == (True, True, False)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_8_a_closed_scope_is_freed_without_the_collector(*, concurrent: bool) -> None:
    """Closing leaves no reference cycle, whatever was held."""
    with told():
        scope = Scope(concurrent=concurrent)
        scope.defer(closer([], "async"))
        scope.defer(lambda: None)
        scope.child().defer(closer([], "async"))
        await scope.host(logging_manager([]))
        await scope.aclose()
        ref = weakref.ref(scope)
        del scope
        await anyio.wait_all_tasks_blocked()
        freed = ref() is None

    assert freed


# Rule 9: where closers run

PLACE: ContextVar[str] = ContextVar("PLACE", default="unset")


async def test_rule_9_a_sync_closer_runs_in_the_closing_task() -> None:
    """It is called in the task that closes, not in the one that registered it."""
    tasks: list[int] = []
    scope = Scope()
    scope.defer(lambda: tasks.append(anyio.get_current_task().id))

    async def close() -> None:
        tasks.append(anyio.get_current_task().id)
        await scope.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(close)

    assert tasks[0] == tasks[1]


async def test_rule_9_a_sync_closer_runs_in_the_closing_tasks_context() -> None:
    """A context variable set in the body can be reset by a sync closer."""
    async with Scope() as scope:
        scope.defer(PLACE.reset, PLACE.set("body"))
        inside = PLACE.get()

    assert (inside, PLACE.get()) == ("body", "unset")


async def test_rule_9_a_sync_closer_of_a_child_runs_in_the_closing_tasks_context() -> None:
    """So it does in a child, behind other children and async closers."""
    async with Scope() as scope:
        child = scope.child().child()
        child.defer(PLACE.reset, PLACE.set("body"))
        child.defer(closer([], "async"))

    assert PLACE.get() == "unset"


async def test_rule_9_a_sync_closer_in_a_concurrent_scope_runs_in_the_closing_tasks_context() -> None:
    """So it does beside others that run at the same time."""
    async with Scope(concurrent=True) as scope:
        scope.defer(closer([], "async"))
        scope.defer(PLACE.reset, PLACE.set("body"))
        scope.defer(closer([], "async"))

    assert PLACE.get() == "unset"


async def test_rule_9_a_lock_of_the_task_can_be_released() -> None:
    """`anyio.Lock.release` belongs to the task that took it."""
    lock = anyio.Lock()
    async with Scope() as scope:
        await scope.acquire(lock.acquire, lambda _: lock.release())
        inside = lock.locked()

    assert (inside, lock.locked()) == (True, False)


@pytest.mark.parametrize("concurrent", [False, True])
async def test_rule_9_an_async_closer_sees_the_closing_tasks_context(*, concurrent: bool) -> None:
    """An async closer sees the context variables as they are when the scope closes."""
    seen: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(PLACE.get())

    scope = Scope(concurrent=concurrent)
    scope.defer(close)
    token = PLACE.set("closing")
    try:
        await scope.aclose()
    finally:
        PLACE.reset(token)

    assert seen == ["closing"]


async def test_rule_9_an_acquire_sees_the_calling_tasks_context_when_shielded() -> None:
    """`acquire(shield=True)` runs in a copy of the caller's context."""

    async def acquire() -> str:
        await anyio.lowlevel.checkpoint()
        return PLACE.get()

    token = PLACE.set("caller")
    try:
        async with Scope() as scope:
            seen = await scope.acquire(acquire, lambda _: None, shield=True)
    finally:
        PLACE.reset(token)

    assert seen == "caller"


async def test_rule_9_the_sync_part_of_a_closer_runs_in_the_closing_task() -> None:
    """A function that is not async but gives something to await is called in the closing task."""
    tasks: list[int] = []

    def close() -> Awaitable[None]:
        tasks.append(anyio.get_current_task().id)
        return closer([], "rest")()

    async with Scope() as scope:
        scope.defer(close)
    here = anyio.get_current_task().id

    assert tasks == [here]


async def test_rule_9_with_scope_and_create_resource_close_in_the_same_way() -> None:
    """A sync release runs in the closing task and its context there too."""

    async def body(scope: Scope) -> str:
        scope.add(await create_resource(lambda: PLACE.set("body"), PLACE.reset))
        return PLACE.get()

    assert (await with_scope(body), PLACE.get()) == ("body", "unset")


async def test_rule_9_nothing_of_a_close_stays_in_the_context() -> None:
    """After closing, the context of the task is as it was: a scope opened next is closed for itself."""
    log: list[str] = []
    first = Scope()
    first.defer(closer(log, "first"))
    await first.aclose()
    second = Scope()
    second.defer(closer(log, "second"))
    await second.aclose()

    assert log == ["first", "second"]


def test_rule_9_failures_of_a_body_and_outcome_reach_callbacks_in_the_task() -> None:
    """The outcome that a callback gets is the body's, also where `sys.exception()` is something else."""
    outcomes: list[object] = []
    error = ValueError("body")

    async def main() -> None:
        try:
            async with Scope() as scope:
                scope.on_exit(outcomes.append)
                raise error
        except ValueError:
            outcomes.append(sys.exception())

    anyio.run(main)

    assert outcomes == [Err(error), error]
