"""Closing rule 4: cancellation does not stop cleanup; what comes out is what would come out without the scope."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import Err, ResourceCleanupError, Scope, cleanup_errors, with_scope

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
concurrent_or_not = pytest.mark.parametrize("concurrent", [False, True])

LOOPS = [pytest.param(name, id=name) for name in ("asyncio", "uvloop")]


class Life:
    """A scope full of everything, that logs what is closed; `gate` is the closer that runs first."""

    def __init__(self, *, concurrent: bool = False, gates: int = 1) -> None:
        self.log: list[str] = []
        self.closing = anyio.Event()
        self.go = anyio.Event()
        self.scope = Scope(concurrent=concurrent)
        self.gates = gates

    async def fill(self) -> None:
        scope = self.scope
        scope.defer(self.log.append, "sync")
        scope.defer(self.slow, "async")
        await scope.host(self.manager("hosted"))
        child = scope.child()
        child.defer(self.slow, "child async")
        child.defer(self.log.append, "child sync")
        for _ in range(self.gates):
            scope.defer(self.gate)

    async def slow(self, name: str) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.log.append(name)

    async def gate(self) -> None:
        self.closing.set()
        await self.go.wait()
        self.log.append("gate")

    @contextlib.asynccontextmanager
    async def manager(self, name: str) -> AsyncIterator[None]:
        async with anyio.create_task_group():
            try:
                yield
            finally:
                await self.slow(name)


ALL = ["gate", "child sync", "child async", "hosted", "async", "sync"]


def same(log: list[str], *, concurrent: bool) -> bool:
    """Tell whether all was closed once, in order where there is one."""
    return sorted(log) == sorted(ALL) if concurrent else log == ALL


class Stepped:
    """An awaitable that counts how often its task runs."""

    def __init__(self, coro: Coroutine[Any, Any, object]) -> None:
        self.coro = coro
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self.coro.__await__()
        send: Callable[[], Any] = lambda: next(inner)  # noqa: E731
        while True:
            self.steps += 1
            try:
                waits_for = send()
            except StopIteration as stop:
                return stop.value
            try:
                value = yield waits_for
            except BaseException as exc:
                send = lambda exc=exc: inner.throw(exc)  # noqa: E731
            else:
                send = lambda value=value: inner.send(value)  # noqa: E731


async def ended(task: asyncio.Task[Any]) -> BaseException | None:
    """Wait for a task, and give what it raised, a cancellation too."""
    await asyncio.wait([task])
    try:
        return task.exception()
    except asyncio.CancelledError as exc:
        return exc


def myself() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


# By an anyio scope (on trio: a trio scope)


@concurrent_or_not
async def test_anyio_scope_cancelled_before_cleanup(*, concurrent: bool) -> None:
    """A body that is cancelled: everything is closed, and the cancellation arrives at its scope."""
    life = Life(concurrent=concurrent)
    life.go.set()
    with anyio.CancelScope() as cancelled:
        async with life.scope:
            await life.fill()
            cancelled.cancel()
            await anyio.sleep_forever()

    assert (cancelled.cancelled_caught, same(life.log, concurrent=concurrent)) == (True, True)


@concurrent_or_not
async def test_anyio_scope_cancelled_with_no_checkpoint_before_cleanup(*, concurrent: bool) -> None:
    """A body that ends well in a cancelled scope: everything is closed, then the cancellation comes."""
    life = Life(concurrent=concurrent)
    life.go.set()
    with anyio.CancelScope() as cancelled:
        async with life.scope:
            await life.fill()
            cancelled.cancel()

    assert (cancelled.cancelled_caught, same(life.log, concurrent=concurrent)) == (True, True)


@concurrent_or_not
async def test_anyio_scope_cancelled_during_cleanup(*, concurrent: bool) -> None:
    """A cancellation in the middle of cleanup waits until all is closed."""
    life = Life(concurrent=concurrent)
    scopes: list[anyio.CancelScope] = []

    async def work() -> None:
        with anyio.CancelScope() as cancelled:
            scopes.append(cancelled)
            async with life.scope:
                await life.fill()

    async with anyio.create_task_group() as tg:
        tg.start_soon(work)
        await life.closing.wait()
        scopes[0].cancel()
        await anyio.wait_all_tasks_blocked()
        before = list(life.log)
        life.go.set()

    assert "gate" not in before
    assert (scopes[0].cancelled_caught, same(life.log, concurrent=concurrent)) == (True, True)


async def test_anyio_scope_cancelled_after_cleanup() -> None:
    """Once the scope is closed, a cancellation is like any other."""
    life = Life()
    life.go.set()
    with anyio.CancelScope() as cancelled:
        async with life.scope:
            await life.fill()
        cancelled.cancel()
        await anyio.sleep_forever()

    assert (cancelled.cancelled_caught, life.log) == (True, ALL)


async def test_anyio_scope_cancelled_during_aclose() -> None:
    """The manual form does the same."""
    life = Life()
    await life.fill()
    life.go.set()
    with anyio.CancelScope() as cancelled:
        cancelled.cancel()
        await life.scope.aclose()

    assert (cancelled.cancelled_caught, life.log, life.scope.state) == (True, ALL, "closed")


async def test_anyio_scope_cancelled_during_release() -> None:
    """Releasing one resource is not cut short either."""
    log: list[str] = []
    life = Life()
    async with Scope() as scope:
        handle = scope.defer(life.slow, "released")
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await scope.release(handle)
            log.append("not reached")

    assert (cancelled.cancelled_caught, life.log, log) == (True, ["released"], [])


async def test_anyio_task_group_whose_sibling_fails() -> None:
    """A task group that aborts cancels the closing task; its error comes out as it would without the scope."""
    life = Life()

    async def fail() -> None:
        await life.closing.wait()
        life.go.set()
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tg:
            tg.start_soon(fail)
            async with life.scope:
                await life.fill()

    assert ([type(error) for error in caught.value.exceptions], life.log) == ([ValueError], ALL)


async def test_anyio_deadline_that_passes_during_cleanup() -> None:
    """`move_on_after` moves on when all is closed."""
    life = Life()

    with anyio.CancelScope() as limit:
        async with life.scope:
            await life.fill()
            life.scope.defer(lambda: setattr(limit, "deadline", anyio.current_time() - 1))
            life.go.set()

    assert (limit.cancelled_caught, life.log) == (True, ALL)


async def test_anyio_scope_cancelled_where_the_body_raised_lets_its_exception_out() -> None:
    """The body's own exception comes out of the scope, and the cancellation stays pending."""
    life = Life()
    life.go.set()
    error = ValueError("body")
    caught: list[BaseException] = []
    with anyio.CancelScope() as cancelled:
        try:
            async with life.scope:
                await life.fill()
                cancelled.cancel()
                raise error
        except ValueError as exc:
            caught.append(exc)
        await anyio.lowlevel.checkpoint()
        caught.clear()

    assert (caught, cancelled.cancelled_caught, life.log) == ([error], True, ALL)


async def test_anyio_scope_cancelled_where_body_and_cleanup_failed() -> None:
    """The `ResourceCleanupError` from the body's exception comes out, and the cancellation stays pending."""
    error = ValueError("body")
    caught: list[BaseException | None] = []

    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError

    with anyio.CancelScope() as cancelled:
        try:
            async with Scope() as scope:
                scope.defer(fails)
                cancelled.cancel()
                raise error
        except ResourceCleanupError as exc:
            caught.append(exc.__cause__)
        await anyio.lowlevel.checkpoint()

    assert (caught, cancelled.cancelled_caught) == ([error], True)


async def test_anyio_scope_cancelled_keeps_the_cleanup_failure() -> None:
    """A cancellation is never replaced: what failed is kept, and noted on it."""

    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise KeyError

    notes: list[str] = []
    with anyio.CancelScope() as cancelled:
        try:
            async with Scope() as scope:
                scope.add("x", fails, name="broken one")
                cancelled.cancel()
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as exc:
            notes += getattr(exc, "__notes__", [])
            raise

    assert isinstance(scope.cleanup_error, ResourceCleanupError)
    assert (cancelled.cancelled_caught, ["broken one" in note for note in notes]) == (True, [True])


async def test_a_cancelled_body_counts_as_failed() -> None:
    """`on_error` runs, `on_success` doesn't, and the outcome is an `Err` with the cancellation."""
    log: list[str] = []
    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            scope.on_error(log.append, "on_error")
            scope.on_success(log.append, "on_success")
            cancelled.cancel()
            await anyio.sleep_forever()

    assert isinstance(scope.outcome, Err)
    assert (log, type(scope.outcome.error)) == (["on_error"], anyio.get_cancelled_exc_class())


async def test_an_entered_cancel_scope_consumes_its_own_cancellation() -> None:
    """A cancel scope that the scope holds catches what it cancelled, held off while closers ran: nothing comes out."""
    life = Life()
    life.go.set()
    own = anyio.CancelScope()
    async with Scope() as scope:
        scope.defer(life.slow, "outer")
        await scope.enter(own)
        scope.defer(life.slow, "inner")
        scope.defer(own.cancel)
    await anyio.lowlevel.checkpoint()

    assert (own.cancelled_caught, life.log) == (True, ["inner", "outer"])


async def test_an_entered_manager_sees_the_cancellation_that_was_held_off() -> None:
    """A manager outside of a closer that ran while cancelled rolls back."""
    life = Life()
    seen: list[object] = []

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except BaseException as exc:
            seen.append(type(exc))
            raise

    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            await scope.enter(transaction())
            scope.defer(life.slow, "closed")
            cancelled.cancel()

    assert (seen, life.log) == ([anyio.get_cancelled_exc_class()], ["closed"])


async def test_an_entered_exit_that_is_cut_off_stops_no_other() -> None:
    """An entered manager is as exposed as in a plain `async with`; the rest still runs."""
    life = Life()

    @contextlib.asynccontextmanager
    async def exposed() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.sleep_forever()

    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            scope.defer(life.slow, "first")
            await scope.enter(exposed())
            scope.defer(life.slow, "last")
            cancelled.cancel()

    assert (cancelled.cancelled_caught, life.log) == (True, ["last", "first"])


async def test_a_closer_is_not_under_the_cancellation_of_its_scope() -> None:
    """A closer may use checkpoints, timeouts and task groups of its own as ever."""
    log: list[object] = []

    async def close() -> None:
        with anyio.move_on_after(5) as limit:
            async with anyio.create_task_group() as tg:
                tg.start_soon(anyio.lowlevel.checkpoint)
        log.append((limit.cancelled_caught, anyio.current_effective_deadline()))

    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            scope.defer(close)
            cancelled.cancel()
            await anyio.sleep_forever()

    assert log == [(False, float("inf"))]


@concurrent_or_not
@pytest.mark.parametrize("turns", [20, 200])
async def test_no_busy_loop_while_cancelled(turns: int, *, concurrent: bool) -> None:
    """However long a closer takes, the closing task is woken a fixed number of times by a cancelled scope."""

    async def close() -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()

    async def work(scope: Scope) -> None:
        with anyio.CancelScope() as cancelled:
            async with scope:
                scope.defer(close)
                cancelled.cancel()

    stepped = Stepped(work(Scope(concurrent=concurrent)))
    await stepped

    assert stepped.steps < 10


@asyncio_only
async def test_no_cancellation_is_delivered_again_and_again() -> None:
    """Nor does a cancelled anyio scope cancel the closing task at each turn of the loop."""
    cancels: list[int] = []

    class Counting(asyncio.Task[Any]):
        def cancel(self, msg: object = None) -> bool:
            cancels.append(1)
            return super().cancel(msg)

    async def close() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def work() -> None:
        with anyio.CancelScope() as cancelled:
            async with Scope() as scope:
                scope.defer(close)
                cancelled.cancel()

    await Counting(work(), loop=asyncio.get_running_loop())

    assert len(cancels) < 10


async def test_an_uncancelled_close_makes_no_cancel_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shield for each close would be waste: there is none where nothing is cancelled."""
    made: list[object] = []
    real = anyio.CancelScope

    def counting(*args: Any, **kwargs: Any) -> anyio.CancelScope:
        made.append(1)
        return real(*args, **kwargs)

    life = Life()
    scope = Scope()
    scope.defer(life.slow, "closed")
    monkeypatch.setattr(anyio, "CancelScope", counting)
    await scope.aclose()

    assert (made, life.log) == ([], ["closed"])


# By asyncio's own means


@asyncio_only
@concurrent_or_not
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_task_cancel_in_the_body(times: int, *, concurrent: bool) -> None:
    """`task.cancel()` in the body, followed by more during cleanup: all is closed, the first comes out."""
    life = Life(concurrent=concurrent)

    async def work() -> None:
        async with life.scope:
            await life.fill()
            await asyncio.sleep(3600)

    task = asyncio.create_task(work())
    await anyio.wait_all_tasks_blocked()
    for n in range(times):
        task.cancel(f"number {n}")
        await anyio.wait_all_tasks_blocked()
    life.go.set()
    error = await ended(task)

    assert (repr(error), task.cancelling(), same(life.log, concurrent=concurrent)) == (
        "CancelledError('number 0')",
        times,
        True,
    )


@asyncio_only
@concurrent_or_not
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_task_cancel_during_cleanup(times: int, *, concurrent: bool) -> None:
    """`task.cancel()` in the middle of cleanup, once or many times: all is closed, the first comes out once."""
    life = Life(concurrent=concurrent)
    came: list[str] = []

    async def work() -> None:
        try:
            async with life.scope:
                await life.fill()
        except asyncio.CancelledError as exc:
            came.append(str(exc))
        await asyncio.sleep(0)
        came.append("no stray one")

    task = asyncio.create_task(work())
    await life.closing.wait()
    for n in range(times):
        task.cancel(f"number {n}")
        await anyio.wait_all_tasks_blocked()
    life.go.set()
    await ended(task)

    assert (came, task.cancelling(), same(life.log, concurrent=concurrent)) == (
        ["number 0", "no stray one"],
        times,
        True,
    )


@asyncio_only
async def test_task_cancel_at_every_closer() -> None:
    """A cancellation during each closer in turn changes nothing but that one comes out."""
    log: list[int] = []
    holder: list[asyncio.Task[None]] = []

    async def close(n: int) -> None:
        holder[0].cancel(f"by {n}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        log.append(n)

    async def work() -> None:
        async with Scope() as scope:
            for n in range(5):
                scope.defer(close, n)

    holder.append(asyncio.create_task(work()))
    error = await ended(holder[0])

    assert (log, str(error), holder[0].cancelling()) == ([4, 3, 2, 1, 0], "by 4", 5)


@asyncio_only
async def test_task_cancel_that_a_sync_closer_asks_for() -> None:
    """A sync closer that cancels its own task: the later ones run, and the cancellation comes out."""
    log: list[str] = []
    life = Life()

    async def work() -> None:
        async with Scope() as scope:
            scope.defer(life.slow, "first")
            scope.defer(lambda: myself().cancel("own") and None)

    task = asyncio.create_task(work())
    error = await ended(task)
    log += life.log

    assert (log, str(error)) == (["first"], "own")


@asyncio_only
async def test_task_cancel_before_aclose() -> None:
    """A cancellation that is pending when the closing begins comes out of it."""
    life = Life()
    life.go.set()

    async def work() -> None:
        await life.fill()
        myself().cancel("pending")
        await life.scope.aclose()

    error = await ended(asyncio.create_task(work()))

    assert (str(error), life.log) == ("pending", ALL)


@asyncio_only
async def test_task_cancel_raises_the_very_same_exception() -> None:
    """What the body was cancelled with is what comes out."""
    life = Life()
    life.go.set()
    raised: list[BaseException] = []

    async def work() -> None:
        try:
            async with life.scope:
                await life.fill()
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError as exc:
                    raised.append(exc)
                    raise
        except asyncio.CancelledError as exc:
            raised.append(exc)

    task = asyncio.create_task(work())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await asyncio.wait([task])

    assert raised[0] is raised[1]


@asyncio_only
async def test_task_cancel_during_cleanup_has_the_bodys_exception_as_its_context() -> None:
    """Where the body raised, the cancellation comes out with that as its context."""
    life = Life()
    error = ValueError("body")

    async def work() -> None:
        async with life.scope:
            await life.fill()
            raise error

    task = asyncio.create_task(work())
    await life.closing.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    life.go.set()
    came: list[BaseException] = []
    try:
        await task
    except asyncio.CancelledError as exc:
        came.append(exc)

    chain = []
    link: BaseException | None = came[0]
    while link is not None:
        chain.append(link)
        link = link.__context__
    assert (error in chain, life.log) == (True, ALL)


@asyncio_only
async def test_task_cancel_with_a_cleanup_failure_keeps_it() -> None:
    """The cancellation comes out; what failed is in `cleanup_error`, and as a note on it."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError

    scope = Scope()
    notes: list[str] = []

    async def work() -> None:
        try:
            async with scope:
                scope.add("x", fails, name="broken one")
                myself().cancel()
        except asyncio.CancelledError as exc:
            notes.extend(exc.__notes__)
            raise

    error = await ended(asyncio.create_task(work()))

    assert (type(error), len(cleanup_errors(scope.cleanup_error))) == (asyncio.CancelledError, 1)
    assert ["broken one" in note for note in notes] == [True]


@asyncio_only
async def test_task_cancel_while_a_second_caller_waits() -> None:
    """A second `aclose()` may be cancelled by `task.cancel()` too; the first goes on."""
    life = Life()
    await life.fill()
    first = asyncio.create_task(life.scope.aclose())
    await life.closing.wait()
    second = asyncio.create_task(life.scope.aclose())
    await anyio.wait_all_tasks_blocked()
    second.cancel()
    error = await ended(second)
    before = life.scope.state
    life.go.set()
    await first

    assert (type(error), before, life.log) == (asyncio.CancelledError, "closing", ALL)


@asyncio_only
async def test_a_cancelled_first_caller_lets_the_second_go_on_once_all_is_closed() -> None:
    """The first caller's cancellation doesn't reach the second, nor does it come before all is closed."""
    life = Life()
    await life.fill()
    first = asyncio.create_task(life.scope.aclose())
    await life.closing.wait()
    second = asyncio.create_task(life.scope.aclose())
    first.cancel()
    await anyio.wait_all_tasks_blocked()
    before = (first.done(), second.done())
    life.go.set()
    errors = (type(await ended(first)), await ended(second))

    assert (before, errors, life.log) == ((False, False), (asyncio.CancelledError, None), ALL)


@asyncio_only
async def test_task_cancel_while_waiting_for_a_child_that_closes_elsewhere() -> None:
    """A parent that waits for such a child waits to the end, and closes the rest."""
    life = Life()
    parent = Scope()
    parent.defer(life.slow, "of the parent")
    child = parent.child()
    child.defer(life.gate)
    alone = asyncio.create_task(child.aclose())
    await life.closing.wait()
    closing = asyncio.create_task(parent.aclose())
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    closing.cancel()
    await anyio.wait_all_tasks_blocked()
    before = closing.done()
    life.go.set()
    errors = (await ended(alone), type(await ended(closing)))

    assert (before, errors, life.log) == (False, (None, asyncio.CancelledError), ["gate", "of the parent"])


@asyncio_only
@pytest.mark.parametrize("where", ["body", "cleanup"])
async def test_asyncio_timeout_around_a_scope(where: str) -> None:
    """`asyncio.timeout` that expires in the body or during cleanup gives its `TimeoutError`, and leaves no trace."""
    life = Life()
    task = myself()
    before = task.cancelling()
    came: list[object] = []
    try:
        async with asyncio.timeout(None) as limit:
            async with life.scope:
                await life.fill()

                def expire() -> None:
                    limit.reschedule(asyncio.get_running_loop().time() - 1)

                life.go.set()
                if where == "body":
                    expire()
                    await asyncio.sleep(3600)
                life.scope.defer(expire)
    except TimeoutError as exc:
        came.append(type(exc))
    for _ in range(3):
        await asyncio.sleep(0)

    assert (came, task.cancelling() - before, life.log) == ([TimeoutError], 0, ALL)


@asyncio_only
async def test_asyncio_timeout_entered_in_a_scope() -> None:
    """One that the scope holds expires while closers run: it turns its cancellation into `TimeoutError`."""
    life = Life()
    task = myself()
    before = task.cancelling()
    limit = asyncio.timeout(None)
    with pytest.raises(TimeoutError):
        async with Scope() as scope:
            scope.defer(life.slow, "outer")
            await scope.enter(limit)
            scope.defer(life.slow, "inner")
            scope.defer(lambda: limit.reschedule(asyncio.get_running_loop().time() - 1))
    await asyncio.sleep(0)

    assert (limit.expired(), task.cancelling() - before, life.log) == (True, 0, ["inner", "outer"])


@asyncio_only
async def test_asyncio_timeout_and_task_cancel_together() -> None:
    """Both during cleanup: the outer cancellation wins, as it would without the scope."""
    life = Life()

    async def work() -> None:
        async with asyncio.timeout(None) as limit:
            async with life.scope:
                await life.fill()
                life.scope.defer(lambda: limit.reschedule(asyncio.get_running_loop().time() - 1))

    task = asyncio.create_task(work())
    await life.closing.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    life.go.set()
    error = await ended(task)

    assert (type(error), task.cancelling(), life.log) == (asyncio.CancelledError, 1, ALL)


@asyncio_only
async def test_asyncio_timeouts_in_a_row_leave_no_stray_cancellation() -> None:
    """After many timeouts that expire during cleanup the task is as it was."""
    task = myself()
    before = task.cancelling()
    life = Life()
    expired: list[bool] = []
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0) as limit, Scope() as scope:
                scope.defer(life.slow, "closed")
        expired.append(limit.expired())
        await asyncio.sleep(0)

    assert (expired, task.cancelling() - before, len(life.log)) == ([True] * 5, 0, 5)


@asyncio_only
async def test_asyncio_wait_for_around_aclose() -> None:
    """`wait_for` gives up only when all is closed."""
    life = Life()
    await life.fill()
    life.go.set()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(life.scope.aclose(), 0.000001)

    assert life.log in (ALL, [])  # 3.11 doesn't even start what has no time


@asyncio_only
async def test_aborting_task_group_with_the_scope_in_its_body() -> None:
    """A child that fails during cleanup cancels the closing task; the group's error comes out, and nothing else."""
    life = Life()
    task = myself()
    before = task.cancelling()

    async def fail() -> None:
        await life.closing.wait()
        asyncio.get_running_loop().call_soon(life.go.set)
        raise ValueError("child")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(fail())
            async with life.scope:
                await life.fill()

    assert ([type(error) for error in caught.value.exceptions], life.log) == ([ValueError], ALL)
    assert task.cancelling() - before == 0


@asyncio_only
async def test_aborting_task_group_with_the_scope_in_a_child() -> None:
    """A scope in a task of the group closes before the group ends."""
    life = Life()

    async def work() -> None:
        async with life.scope:
            await life.fill()
            await asyncio.sleep(3600)

    async def fail() -> None:
        await anyio.wait_all_tasks_blocked()
        asyncio.get_running_loop().call_later(0.001, life.go.set)
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(work())
            tg.create_task(fail())

    assert ([type(error) for error in caught.value.exceptions], life.log) == ([ValueError], ALL)


@asyncio_only
async def test_aborting_task_group_entered_in_the_scope() -> None:
    """A group that the scope holds aborts while closers run: its error comes out, balanced."""
    life = Life()
    task = myself()
    before = task.cancelling()

    async def fail() -> None:
        await life.closing.wait()
        asyncio.get_running_loop().call_soon(life.go.set)
        raise ValueError("child")

    errors: list[BaseException] = []
    try:
        async with Scope() as scope:
            scope.defer(life.slow, "outer")
            tg = await scope.enter(asyncio.TaskGroup())
            tg.create_task(fail())
            scope.defer(life.slow, "inner")
            scope.defer(life.gate)
    except BaseExceptionGroup as group:
        errors += group.exceptions
    await asyncio.sleep(0)

    assert ([type(error) for error in errors], life.log) == ([ValueError], ["gate", "inner", "outer"])
    assert task.cancelling() - before == 0


@asyncio_only
async def test_anyio_scope_and_task_cancel_together() -> None:
    """An anyio scope and `task.cancel()` both cancel: all is closed, and the task ends cancelled."""
    life = Life()
    scopes: list[anyio.CancelScope] = []

    async def work() -> None:
        with anyio.CancelScope() as cancelled:
            scopes.append(cancelled)
            async with life.scope:
                await life.fill()
        await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await life.closing.wait()
    scopes[0].cancel()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    life.go.set()
    await ended(task)

    assert (life.log, task.cancelling() >= 1) == (ALL, True)


@asyncio_only
async def test_task_cancel_then_anyio_scope() -> None:
    """The other way round, the task's own cancellation, which came first, goes through the anyio scope."""
    life = Life()
    scopes: list[anyio.CancelScope] = []

    async def work() -> None:
        with anyio.CancelScope() as cancelled:
            scopes.append(cancelled)
            async with life.scope:
                await life.fill()
        await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await life.closing.wait()
    task.cancel("own")
    await anyio.wait_all_tasks_blocked()
    scopes[0].cancel()
    await anyio.wait_all_tasks_blocked()
    life.go.set()
    error = await ended(task)

    assert (str(error), task.cancelling(), life.log) == ("own", 1, ALL)


@asyncio_only
@pytest.mark.parametrize("raises", [False, True])
async def test_anyio_scopes_leave_the_count_of_cancellations_balanced(*, raises: bool) -> None:
    """After an anyio scope caught its cancellation, `task.cancelling()` is what it was."""
    task = myself()
    before = task.cancelling()
    life = Life()
    life.go.set()
    with anyio.CancelScope() as cancelled, contextlib.suppress(ValueError):
        async with life.scope:
            await life.fill()
            cancelled.cancel()
            if raises:
                raise ValueError
    for _ in range(3):
        await asyncio.sleep(0)

    assert (task.cancelling() - before, life.log) == (0, ALL)


@asyncio_only
async def test_a_swallowed_cancellation_of_the_body_does_not_come_back() -> None:
    """A body that handles its cancellation, and says so, ends as success."""
    life = Life()
    life.go.set()

    async def work() -> str:
        async with life.scope:
            await life.fill()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                myself().uncancel()
        return "done"

    task = asyncio.create_task(work())
    await anyio.wait_all_tasks_blocked()
    task.cancel()

    assert (await task, life.log) == ("done", ALL)


@asyncio_only
async def test_with_scope_raises_the_cancellation() -> None:
    """A cancelled `with_scope` closes all, and raises the cancellation."""
    life = Life()

    async def body(scope: Scope) -> None:
        scope.defer(life.slow, "closed")
        await asyncio.sleep(3600)

    task = asyncio.create_task(with_scope(body))
    await anyio.wait_all_tasks_blocked()
    task.cancel("own")
    error = await ended(task)

    assert (str(error), life.log) == ("own", ["closed"])


# What comes out with and without the scope


Work = Callable[[], Awaitable[None]]
Triggers = list[Callable[[], object]]


async def cancelled_by_timeout(work: Work, triggers: Triggers) -> None:
    async with asyncio.timeout(None) as limit:
        triggers.append(lambda: limit.reschedule(asyncio.get_running_loop().time() - 1))
        await work()


async def cancelled_by_anyio(work: Work, triggers: Triggers) -> None:
    with anyio.fail_after(3600) as limit:
        triggers.append(lambda: setattr(limit, "deadline", anyio.current_time() - 1))
        await work()


async def fail_on(go: asyncio.Event) -> None:
    await go.wait()
    raise ValueError("sibling")


async def cancelled_by_group(work: Work, triggers: Triggers) -> None:
    async with asyncio.TaskGroup() as tg:
        go = asyncio.Event()
        tg.create_task(fail_on(go))
        triggers.append(go.set)
        await work()


async def cancelled_by_anyio_group(work: Work, triggers: Triggers) -> None:
    async with anyio.create_task_group() as tg:
        go = asyncio.Event()
        tg.start_soon(fail_on, go)
        triggers.append(go.set)
        await work()


async def cancelled_by_task(work: Work, triggers: Triggers) -> None:
    task = myself()
    triggers.append(lambda: task.cancel("own"))
    await work()


WAYS = [cancelled_by_timeout, cancelled_by_anyio, cancelled_by_group, cancelled_by_anyio_group, cancelled_by_task]
PAIRS = [(outer, inner) for outer in WAYS for inner in WAYS]


def shape(exc: BaseException | None) -> object:
    """Give what an exception is made of."""
    if isinstance(exc, BaseExceptionGroup):
        return (type(exc).__name__, [shape(part) for part in exc.exceptions])
    return repr(exc).split("(Cancelled")[0].split("('Cancelled")[0]


Way = Callable[[Work, Triggers], Awaitable[None]]
Fire = Callable[[], None]


async def run_under(ways: list[Way], body: Callable[[Fire], Awaitable[None]]) -> object:
    """Run a body below those that cancel it, and give what comes out and the count of cancellations."""
    triggers: Triggers = []

    def fire() -> None:
        for trigger in triggers:
            asyncio.get_running_loop().call_soon(trigger)

    async def below(ways: list[Way]) -> None:
        await (ways[0](lambda: below(ways[1:]), triggers) if ways else body(fire))

    task = asyncio.create_task(below(ways))
    error = await ended(task)
    return shape(error), task.cancelling()


async def patiently(fn: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Clean up by hand: through every cancellation, of which the first is raised at the end."""
    job = asyncio.create_task(fn())
    try:
        await asyncio.wait([job])
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not job.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
        raise


async def linger() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@asyncio_only
@pytest.mark.parametrize("handled", [False, True], ids=["passed on", "turned into an error"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_comes_out_is_what_would_come_out_without_the_scope(
    way: Callable[..., Awaitable[None]], *, handled: bool
) -> None:
    """For every way to cancel the body: same exception, same count of cancellations, no stray one."""
    life = Life()
    life.go.set()

    async def plain(fire: Fire) -> None:
        fire()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not handled:
                raise
            raise KeyError("handled") from None

    async def with_a_scope(fire: Fire) -> None:
        async with life.scope:
            await life.fill()
            await plain(fire)

    assert (await run_under([way], with_a_scope), life.log) == (await run_under([way], plain), ALL)


@asyncio_only
@pytest.mark.parametrize("when", ["body", "cleanup"])
@pytest.mark.parametrize(("outer", "inner"), PAIRS, ids=[f"{o.__name__}-{i.__name__}" for o, i in PAIRS])
async def test_what_comes_out_of_two_at_once_is_what_patient_cleanup_by_hand_would_give(
    outer: Callable[..., Awaitable[None]], inner: Callable[..., Awaitable[None]], when: str
) -> None:
    """For every pair of ways to cancel, in the body or in the middle of cleanup: the same as by hand, and balanced."""
    log: list[str] = []

    async def close() -> None:
        await linger()
        log.append("closed")

    async def body(fire: Fire) -> None:
        fire()
        if when == "body":
            await asyncio.sleep(3600)

    async def with_a_scope(fire: Fire) -> None:
        async with Scope() as scope:
            scope.defer(close)
            await body(fire)

    async def by_hand(fire: Fire) -> None:
        try:
            await body(fire)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await patiently(linger)
            raise
        await patiently(linger)

    came_out = await run_under([outer, inner], with_a_scope)
    by_us = await run_under([outer, inner], by_hand)

    either = (
        sys.version_info < (3, 12) and when == "cleanup"
    )  # a closer takes a turn to begin there: which one is first?
    assert (came_out if not either else by_us, log) == (by_us, ["closed"])


# Interrupts


@pytest.mark.parametrize("loop", LOOPS)
@concurrent_or_not
def test_a_signal_during_cleanup_on_asyncio(loop: str, *, concurrent: bool) -> None:
    """Ctrl-C while a closer runs: all closers end, then `KeyboardInterrupt` comes out of the run."""
    log: list[str] = []

    async def close(name: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        log.append(name)

    async def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        await close("interrupted")

    async def main() -> None:
        async with Scope(concurrent=concurrent) as scope:
            scope.defer(close, "first")
            scope.defer(interrupted)
            scope.defer(close, "last")

    factory = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())

    assert sorted(log) == ["first", "interrupted", "last"]


@concurrent_or_not
def test_a_signal_during_cleanup_on_trio(*, concurrent: bool) -> None:
    """Ctrl-C while a closer runs: all closers end, in order, then `KeyboardInterrupt` comes out of the run."""
    trio = pytest.importorskip("trio")
    log: list[str] = []

    async def close(name: str) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        log.append(name)

    async def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        await close("interrupted")

    scope = Scope(concurrent=concurrent)

    async def main() -> None:
        async with scope:
            scope.defer(close, "first")
            scope.defer(interrupted)
            scope.defer(close, "last")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    expected = ["first", "interrupted", "last"] if concurrent else ["last", "interrupted", "first"]
    assert (sorted(log) if concurrent else log, scope.state) == (expected, "closed")


@concurrent_or_not
@pytest.mark.parametrize("loop", LOOPS)
def test_the_loop_shuts_down_while_a_scope_closes(loop: str, *, concurrent: bool) -> None:
    """A run that ends cancels all tasks: the closer under way may be cut short, all others run to their end."""
    log: list[str] = []

    async def close(name: str) -> None:
        await asyncio.sleep(0)
        log.append(name)

    async def cut_off() -> None:
        reached.set()
        await asyncio.sleep(3600)

    scope = Scope(concurrent=concurrent)
    reached = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        scope.defer(close, "first")
        scope.defer(cut_off)
        scope.defer(close, "last")
        tasks.append(asyncio.create_task(scope.aclose()))
        await reached.wait()
        if concurrent:
            await anyio.wait_all_tasks_blocked()

    factory = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())

    assert (sorted(log), scope.state, tasks[0].cancelled()) == (["first", "last"], "closed", True)


def test_the_run_ends_on_trio_while_a_scope_closes() -> None:
    """A main task that is cancelled closes its scope before the run ends."""
    trio = pytest.importorskip("trio")
    log: list[str] = []

    async def close(name: str) -> None:
        await trio.lowlevel.checkpoint()
        log.append(name)

    async def main() -> None:
        with trio.CancelScope() as cancelled:
            async with Scope() as scope:
                scope.defer(close, "first")
                scope.defer(close, "last")
                cancelled.cancel()

    trio.run(main)

    assert log == ["last", "first"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_comes_before_a_cancellation(kind: type[BaseException]) -> None:
    """A closer that raises `KeyboardInterrupt` or `SystemExit` while cancelled: that is what comes out."""
    life = Life()

    async def interrupts() -> None:
        await anyio.lowlevel.checkpoint()
        raise kind

    came: list[type[BaseException]] = []
    with anyio.CancelScope() as cancelled:
        try:
            async with Scope() as scope:
                scope.defer(life.slow, "first")
                scope.defer(interrupts)
                cancelled.cancel()
                await anyio.sleep_forever()
        except BaseException as exc:
            came.append(type(exc))

    assert (came, life.log) == ([kind], ["first"])


async def test_a_closer_that_swallows_its_callers_cancellation_is_not_cancelled() -> None:
    """No closer ever sees the cancellation of the closing task."""
    seen: list[str] = []

    async def close() -> None:
        try:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
        except BaseException as exc:
            seen.append(type(exc).__name__)

    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            scope.defer(close)
            scope.child().defer(close)
            cancelled.cancel()
            await anyio.sleep_forever()

    assert (seen, cancelled.cancelled_caught) == ([], True)
