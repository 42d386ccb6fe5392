"""'Failing: the rules' 1 to 9, by number. Rules 5 and 7 have rooms of their own: `test_entered` and `test_host`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import (
    CloseCancelledError,
    CloseFailure,
    CloseRejectedError,
    Err,
    Ok,
    Resource,
    ResourceCleanupError,
    Result,
    Scope,
    ScopeClosedError,
    create_resource,
    scoped,
    with_scope,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rescope.events import ScopeEvent

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
INTERRUPTS = [KeyboardInterrupt, SystemExit, GeneratorExit]
SYNC_OR_ASYNC = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


class Fault(Exception):
    """An error of our own."""


def fail(error: BaseException) -> NoReturn:
    """A closer that fails."""
    raise error


async def fail_later(error: BaseException) -> NoReturn:
    """A closer that fails after it was suspended."""
    await anyio.lowlevel.checkpoint()
    raise error


def failing(error: BaseException, *, sync: bool) -> Callable[[], object]:
    """Make a closer that fails."""
    return functools.partial(fail if sync else fail_later, error)


async def outcome_of(fn: Callable[[], Any]) -> BaseException | None:
    """Await `fn()`, and give what it raised, whatever it is."""
    try:
        await fn()
    except BaseException as exc:
        return exc
    return None


# Rule 1: one `ResourceCleanupError`


@SYNC_OR_ASYNC
async def test_rule_1_a_single_failure_is_raised_as_a_cleanup_error(sync: bool) -> None:
    """Even one failure comes in a `ResourceCleanupError`."""
    fault = Fault("one")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(failing(fault, sync=sync))

    assert (caught.value.exceptions, caught.value.__cause__, caught.value.__context__) == ((fault,), None, None)


async def test_rule_1_all_failures_are_told_in_the_order_in_which_they_happened() -> None:
    """Last in, first out, sync and async closers mixed."""
    faults = [Fault(str(n)) for n in range(6)]
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            for n, fault in enumerate(faults):
                scope.defer(failing(fault, sync=n % 2 == 0))

    assert caught.value.exceptions == tuple(reversed(faults))


async def test_rule_1_in_a_concurrent_scope_the_order_is_that_of_the_failures() -> None:
    """The one that fails first is told first, whichever was registered first."""
    first, second = Fault("first"), Fault("second")
    failed = anyio.Event()

    async def fail_first() -> None:
        await anyio.lowlevel.checkpoint()
        failed.set()
        raise first

    async def fail_second() -> None:
        await failed.wait()
        await anyio.lowlevel.checkpoint()
        raise second

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope(concurrent=True) as scope:
            scope.defer(fail_first)
            scope.defer(fail_second)

    assert caught.value.exceptions == (first, second)


async def test_rule_1_each_failure_has_name_exception_time_and_whether_it_timed_out() -> None:
    """One `CloseFailure` each."""
    fault = Fault("one")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(object(), failing(fault, sync=True), name="db")
    failure = caught.value.failures[0]

    assert failure == CloseFailure("db", fault, failure.elapsed, timed_out=False)
    assert failure.elapsed >= 0


async def test_rule_1_the_original_result_is_the_bodys_value() -> None:
    """`original_result` of a body that returned is `Ok` of what it returned."""

    async def body(scope: Scope) -> int:
        scope.defer(fail, Fault("one"))
        return 41

    with pytest.raises(ResourceCleanupError) as caught:
        await with_scope(body)

    assert caught.value.original_result == Ok(41)


async def test_rule_1_a_childs_failures_are_one_error_under_the_childs_name() -> None:
    """The parent counts its child as one, with a `ResourceCleanupError` in its place."""
    first, second, own = Fault("first"), Fault("second"), Fault("own")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(fail, own)
            child = scope.child("child")
            child.defer(fail, second)
            child.defer(fail_later, first)

    told = [(failure.name, failure.exception) for failure in caught.value.failures]
    assert told == [("child", child.cleanup_error), ("fail", own)]
    assert child.cleanup_error is not None
    assert child.cleanup_error.exceptions == (first, second)


async def test_rule_1_a_child_closed_by_itself_raises_to_whoever_closed_it_alone() -> None:
    """Its failure is raised once: the parent, closed later, has none."""
    fault = Fault("one")
    async with Scope() as scope:
        child = scope.child("child")
        child.defer(fail, fault)
        with pytest.raises(ResourceCleanupError) as caught:
            await child.aclose()

    assert (caught.value.exceptions, scope.cleanup_error) == ((fault,), None)


async def test_rule_1_the_scope_keeps_what_it_raised() -> None:
    """`cleanup_error` is the very error; a clean scope has none."""
    scope = Scope()
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            scope.defer(fail, Fault("one"))
    async with Scope() as clean:
        pass

    assert (scope.cleanup_error, clean.cleanup_error) == (caught.value, None)


async def test_rule_1_the_same_error_object_from_every_closer_is_told_each_time() -> None:
    """Three closers, one exception object: three failures."""
    fault = Fault("shared")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            for name in ("a", "b", "c"):
                scope.add(object(), failing(fault, sync=False), name=name)

    assert [failure.name for failure in caught.value.failures] == ["c", "b", "a"]


async def test_rule_1_a_stop_iteration_is_a_failure_like_any_other() -> None:
    """The errors that drive generators and coroutines are told as what they are, out of sync and async managers."""
    stops = [StopIteration("a"), StopAsyncIteration("b")]
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            for stop in stops:
                scope.defer(fail, stop)

    assert caught.value.exceptions == tuple(reversed(stops))


# Rule 2: raised from the body's error


async def test_rule_2_the_cleanup_error_is_raised_from_the_bodys() -> None:
    """Cause, `original_result` and `outcome` are the body's error, which is not among the exceptions."""
    body, fault = Fault("body"), Fault("closer")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(fail, fault)
            raise body

    error = caught.value
    actual = (error.__cause__, error.original_result, scope.outcome, error.exceptions)
    assert actual == (body, Err(body), Err(body), (fault,))


async def test_rule_2_raised_from_nothing_where_it_was_suppressed() -> None:
    """A manager swallowed the body's error: the cleanup error has no cause, the result still tells of it."""
    body, fault = Fault("body"), OSError("closer")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(contextlib.suppress(Fault))
            scope.defer(fail, fault)
            raise body

    error = caught.value
    assert (error.__cause__, error.__context__, error.original_result) == (None, None, Err(body))


async def test_rule_2_the_bodys_error_keeps_its_own_cause_and_context() -> None:
    """Closing changes nothing of what the body raised."""
    cause, body = LookupError("cause"), Fault("body")
    with pytest.raises(ResourceCleanupError):
        async with Scope() as scope:
            scope.defer(fail, OSError("closer"))
            scope.defer(fail_later, OSError("closer"))
            try:
                raise cause
            except LookupError as exc:
                raise body from exc

    assert (body.__cause__, body.__context__, getattr(body, "__notes__", [])) == (cause, cause, [])


async def test_rule_2_a_clean_cleanup_raises_the_bodys_error_itself() -> None:
    """The same object, its context untouched."""
    body = Fault("body")
    with pytest.raises(Fault) as caught:
        async with Scope() as scope:
            scope.defer(list)
            scope.defer(anyio.lowlevel.checkpoint)
            raise body

    assert (caught.value, body.__context__, scope.outcome, scope.cleanup_error) == (body, None, Err(body), None)


async def test_rule_2_with_scope_raises_from_the_bodys_error_too() -> None:
    """The same out of `with_scope`."""
    body, fault = Fault("body"), Fault("closer")

    async def run(scope: Scope) -> None:
        scope.defer(fail, fault)
        raise body

    raised = await outcome_of(functools.partial(with_scope, run))

    assert isinstance(raised, ResourceCleanupError)
    assert (raised.__cause__, raised.exceptions) == (body, (fault,))


async def test_rule_2_with_scope_gives_an_err_for_a_body_that_returned_a_result() -> None:
    """A `Result` in, a `Result` out: `Err(ResourceCleanupError)` that keeps the body's `Ok`."""

    async def run(scope: Scope) -> Result[int, str]:
        scope.defer(fail, Fault("closer"))
        return Ok(41)

    result = await with_scope(run)

    assert isinstance(result, Err)
    assert isinstance(result.error, ResourceCleanupError)
    assert result.error.original_result == Ok(41)


# Rule 3: what is no `Exception` is never replaced


@SYNC_OR_ASYNC
@pytest.mark.parametrize("kind", INTERRUPTS)
async def test_rule_3_an_interrupt_from_a_closer_is_raised_as_itself(kind: type[BaseException], *, sync: bool) -> None:
    """After all the closers ran, sync or async."""
    interrupt = kind()
    log: list[str] = []

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            scope.defer(failing(interrupt, sync=sync))
            scope.defer(log.append, "inner")

    raised = await outcome_of(run)

    assert (raised, log) == (interrupt, ["inner", "outer"])


@pytest.mark.parametrize("kind", INTERRUPTS)
async def test_rule_3_an_interrupt_from_the_body_is_raised_as_itself(kind: type[BaseException]) -> None:
    """Whatever fails meanwhile; it counts as failed for `on_error`."""
    interrupt = kind()
    log: list[str] = []
    scope = Scope()

    async def run() -> None:
        async with scope:
            scope.on_error(log.append, "rolled back")
            scope.on_success(log.append, "committed")
            scope.defer(fail, Fault("closer"))
            raise interrupt

    raised = await outcome_of(run)

    assert (raised, log, scope.outcome) == (interrupt, ["rolled back"], Err(interrupt))


@pytest.mark.parametrize("where", ["body", "closer"])
async def test_rule_3_the_cleanup_error_is_kept_noted_logged_and_told(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In `cleanup_error`, as a note on the interrupt, at ERROR on the logger `rescope`, and to `on_event`."""
    interrupt, fault = KeyboardInterrupt(), Fault("bad closer")
    events: list[ScopeEvent] = []
    scope = Scope(on_event=events.append)

    async def run() -> None:
        async with scope:
            scope.defer(fail, fault)
            if where == "body":
                raise interrupt
            scope.defer(fail_later, interrupt)

    raised = await outcome_of(run)
    notes = " ".join(interrupt.__notes__)
    logged = [(record.name, record.levelno, "bad closer" in record.getMessage()) for record in caplog.records]
    told = [event.error for event in events if event.error is scope.cleanup_error]

    assert raised is interrupt
    assert scope.cleanup_error is not None
    actual = (scope.cleanup_error.exceptions, "bad closer" in notes, logged, told)
    assert actual == ((fault,), True, [("rescope", logging.ERROR, True)], [scope.cleanup_error])


async def test_rule_3_nothing_is_noted_or_logged_when_cleanup_was_clean(caplog: pytest.LogCaptureFixture) -> None:
    """An interrupted body alone is no news of the scope's."""
    interrupt = KeyboardInterrupt()

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(anyio.lowlevel.checkpoint)
            raise interrupt

    raised = await outcome_of(run)

    assert (raised, getattr(interrupt, "__notes__", []), caplog.records) == (interrupt, [], [])


async def test_rule_3_the_bodys_error_is_the_context_of_a_closers_interrupt() -> None:
    """Body raised, a closer was interrupted: the body's error can still be found."""
    body, interrupt = Fault("body"), KeyboardInterrupt()

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(fail_later, interrupt)
            raise body

    raised = await outcome_of(run)

    assert (raised, raised and raised.__context__) == (interrupt, body)


@pytest.mark.parametrize("kinds", [(KeyboardInterrupt, SystemExit), (SystemExit, KeyboardInterrupt)])
async def test_rule_3_of_several_interrupts_the_first_is_raised(kinds: tuple[type[BaseException], ...]) -> None:
    """In the order in which they happened."""
    first, second = (kind() for kind in kinds)

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(fail, second)
            scope.defer(fail_later, first)

    assert await outcome_of(run) is first


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_rule_3_the_bodys_interrupt_comes_before_a_closers(kind: type[BaseException]) -> None:
    """The body's was first."""
    body, closer = kind(), KeyboardInterrupt()

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(fail, closer)
            raise body

    assert await outcome_of(run) is body


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_rule_3_an_interrupt_comes_before_a_cancellation_of_the_body(kind: type[BaseException]) -> None:
    """The body was cancelled first; the closer's interrupt is raised all the same."""
    interrupt = kind()
    log: list[str] = []

    async def run() -> None:
        with anyio.CancelScope() as cancel_scope:
            async with Scope() as scope:
                scope.defer(log.append, "outer")
                scope.defer(fail_later, interrupt)
                cancel_scope.cancel()
                await anyio.sleep_forever()

    with anyio.fail_after(5):
        raised = await outcome_of(run)

    assert (raised, log) == (interrupt, ["outer"])


@on_asyncio
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_rule_3_an_interrupted_body_stays_so_when_cancelled_while_closing(kind: type[BaseException]) -> None:
    """`task.cancel()` during cleanup does not replace the body's interrupt."""
    interrupt = kind()
    raised: list[BaseException | None] = []

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(anyio.lowlevel.checkpoint)
            scope.defer(asyncio.current_task().cancel)  # type: ignore[union-attr]
            raise interrupt

    async def work() -> None:
        raised.append(await outcome_of(run))

    await asyncio.wait([asyncio.ensure_future(work())])

    assert raised == [interrupt]


async def test_rule_3_a_generator_exit_does_not_come_before_a_cancellation() -> None:
    """Only `KeyboardInterrupt` and `SystemExit` do; else the first one: the body's cancellation."""
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            scope.defer(fail, GeneratorExit())
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert cancel_scope.cancelled_caught


async def test_rule_3_a_cancelled_body_counts_as_failed() -> None:
    """`on_error` runs, `on_success` does not, and the outcome holds the cancellation."""
    log: list[str] = []
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            scope.on_error(log.append, "rolled back")
            scope.on_success(log.append, "committed")
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert isinstance(scope.outcome, Err)
    assert (log, isinstance(scope.outcome.error, anyio.get_cancelled_exc_class())) == (["rolled back"], True)


async def test_rule_3_a_cancellation_is_raised_and_the_cleanup_error_kept(caplog: pytest.LogCaptureFixture) -> None:
    """The cancelled body's cancellation reaches its scope; the failure is kept and logged."""
    fault = Fault("bad closer")
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            scope.defer(fail_later, fault)
            cancel_scope.cancel()
            await anyio.sleep_forever()

    assert scope.cleanup_error is not None
    logged = [(record.name, record.levelno) for record in caplog.records if record.name == "rescope"]
    actual = (cancel_scope.cancelled_caught, scope.cleanup_error.exceptions, logged)
    assert actual == (True, (fault,), [("rescope", logging.ERROR)])


async def test_rule_3_an_interrupt_from_a_childs_closer_is_raised_by_the_parent() -> None:
    """The child's and the parent's other closers ran; the interrupt is raised as itself."""
    interrupt = KeyboardInterrupt()
    log: list[str] = []

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(log.append, "parent")
            child = scope.child()
            child.defer(log.append, "child")
            child.defer(fail_later, interrupt)

    raised = await outcome_of(run)

    assert (raised, log) == (interrupt, ["child", "parent"])


@pytest.mark.parametrize("concurrent", [True, False])
async def test_rule_3_an_interrupt_from_a_concurrent_scope_is_raised_as_itself(*, concurrent: bool) -> None:
    """Closers that run beside others keep to the rule."""
    interrupt = KeyboardInterrupt()
    log: list[str] = []

    async def run() -> None:
        async with Scope(concurrent=concurrent) as scope:
            scope.defer(log.append, "one")
            scope.defer(fail_later, interrupt)
            scope.defer(fail_later, Fault("beside"))

    raised = await outcome_of(run)

    assert (raised, log) == (interrupt, ["one"])


@pytest.mark.parametrize("how", ["release", "handle", "aclose"])
async def test_rule_3_an_interrupt_from_a_single_close_is_raised_as_itself(how: str) -> None:
    """`release`, a handle's `aclose` and the scope's raise it; the resource is closed."""
    interrupt = KeyboardInterrupt()
    scope = Scope()
    handle = scope.defer(fail_later, interrupt)
    calls: dict[str, Callable[[], Any]] = {
        "release": functools.partial(scope.release, handle),
        "handle": handle.aclose,
        "aclose": scope.aclose,
    }
    raised = await outcome_of(calls[how])
    await scope.aclose()

    assert (raised, handle.state, scope.size) == (interrupt, "closed", 0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_rule_3_an_interrupt_from_an_entered_exit_is_raised_as_itself(kind: type[BaseException]) -> None:
    """With a failed body and failing closers around it."""
    interrupt = kind()
    log: list[str] = []

    @contextlib.contextmanager
    def interrupted() -> Iterator[None]:
        try:
            yield
        finally:
            raise interrupt

    async def run() -> None:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            scope.defer(fail, Fault("closer"))
            await scope.enter(interrupted())
            raise Fault("body")

    raised = await outcome_of(run)

    assert (raised, log) == (interrupt, ["outer"])


async def test_rule_3_an_error_from_an_entered_exit_does_not_replace_the_bodys_interrupt() -> None:
    """A manager that fails while the body's `KeyboardInterrupt` is in flight: that comes out, the failure is kept."""
    interrupt, fault = KeyboardInterrupt(), Fault("exit")
    scope = Scope()

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        try:
            yield
        finally:
            raise fault

    async def run() -> None:
        async with scope:
            await scope.enter(broken())
            raise interrupt

    raised = await outcome_of(run)

    assert scope.cleanup_error is not None
    assert (raised, scope.cleanup_error.exceptions) == (interrupt, (fault,))


async def test_rule_3_with_scope_raises_an_interrupt_over_a_returned_result() -> None:
    """A body that returned a `Result` does not turn an interrupt into one."""
    interrupt = KeyboardInterrupt()

    async def body(scope: Scope) -> Result[int, str]:
        scope.defer(fail_later, interrupt)
        return Ok(1)

    raised = await outcome_of(functools.partial(with_scope, body))

    assert raised is interrupt


@on_asyncio
async def test_rule_3_awaiting_a_cancelled_task_in_a_closer_is_a_failure() -> None:
    """`task.cancel(); await task`: nobody cancelled the closer, so it is a `CloseCancelledError` that names it."""
    log: list[str] = []

    async def stop(task: asyncio.Task[object]) -> None:
        task.cancel()
        await task

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(log.append, "outer")
            scope.defer(stop, asyncio.ensure_future(asyncio.sleep(100)))

    error = caught.value.exceptions[0]
    actual = (type(error), type(error.__cause__), "stop" in str(error), log)
    assert actual == (CloseCancelledError, asyncio.CancelledError, True, ["outer"])


@on_asyncio
@SYNC_OR_ASYNC
async def test_rule_3_a_cancelled_error_raised_by_hand_is_a_failure(sync: bool) -> None:
    """A closer that raises `CancelledError` on its own account, sync or async, cancels nobody."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(failing(asyncio.CancelledError(), sync=sync))

    assert [type(exc) for exc in caught.value.exceptions] == [CloseCancelledError]


@on_asyncio
async def test_rule_3_a_cancelled_error_from_an_entered_exit_nobody_asked_for_is_a_failure() -> None:
    """An entered manager that awaits a cancelled task as it exits fails like a closer."""

    @contextlib.asynccontextmanager
    async def stopping() -> AsyncIterator[None]:
        task = asyncio.ensure_future(asyncio.sleep(100))
        yield
        task.cancel()
        await task

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(stopping(), name="stopping")

    told = [(failure.name, type(failure.exception)) for failure in caught.value.failures]
    assert told == [("stopping", CloseCancelledError)]


@on_asyncio
async def test_rule_3_a_cancelled_error_from_a_childs_closer_nobody_asked_for_is_a_failure() -> None:
    """In a child, concurrent or not, the same."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.child("a").defer(fail_later, asyncio.CancelledError())
            scope.child("b", concurrent=True).defer(fail_later, asyncio.CancelledError())

    told = [
        (failure.name, [type(exc) for exc in failure.exception.exceptions])
        for failure in caught.value.failures
        if isinstance(failure.exception, ResourceCleanupError)
    ]
    assert told == [("b", [CloseCancelledError]), ("a", [CloseCancelledError])]


@on_asyncio
async def test_rule_3_a_failed_body_and_a_closer_that_awaits_a_cancelled_task() -> None:
    """The body's error is the cause; the closer's stray cancellation does not come out."""
    body = Fault("body")

    async def stop(task: asyncio.Task[object]) -> None:
        task.cancel()
        await task

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(stop, asyncio.ensure_future(asyncio.sleep(100)))
            raise body

    assert ([type(exc) for exc in caught.value.exceptions], caught.value.__cause__) == ([CloseCancelledError], body)


# Rule 4: a closer that returns an `Err`


@SYNC_OR_ASYNC
async def test_rule_4_a_returned_err_with_an_exception_is_that_failure(sync: bool) -> None:
    """The error itself is among the exceptions."""
    fault = Fault("returned")

    async def close() -> Err[Fault]:
        await anyio.lowlevel.checkpoint()
        return Err(fault)

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer((lambda: Err(fault)) if sync else close)

    assert caught.value.exceptions == (fault,)


@SYNC_OR_ASYNC
async def test_rule_4_a_returned_err_with_a_value_is_a_close_rejected_error(sync: bool) -> None:
    """`.error` keeps the value."""

    async def close() -> Err[str]:
        await anyio.lowlevel.checkpoint()
        return Err("busy")

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer((lambda: Err("busy")) if sync else close)

    error = caught.value.exceptions[0]
    assert isinstance(error, CloseRejectedError)
    assert error.error == "busy"


async def test_rule_4_every_kind_of_closer_may_return_an_err() -> None:
    """`add`, `acquire`, `on_exit`, `on_success`, a `Resource`, and a child's."""
    rejected: list[object] = []
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(object(), lambda: Err(1))
            await scope.acquire(object, lambda _: Err(2))
            scope.on_exit(lambda _: Err(3))
            scope.on_success(lambda: Err(4))
            scope.add(Resource(object(), lambda: Err(5)))
            scope.add(await create_resource(object, lambda _: Err(6)))
            scope.defer(lambda: Err(7))
    rejected += [error.error for error in caught.value.exceptions if isinstance(error, CloseRejectedError)]

    assert rejected == [7, 6, 5, 4, 3, 2, 1]


async def test_rule_4_a_returned_ok_or_anything_else_is_success() -> None:
    """Only an `Err` tells of a failure."""
    async with Scope() as scope:
        for value in (Ok(1), None, False, 0, "no", Fault("returned, not raised")):
            scope.defer(lambda value=value: value)

    assert scope.cleanup_error is None


async def test_rule_4_a_release_that_returns_an_err_raises() -> None:
    """A single close follows the rule too."""
    scope = Scope()
    handle = scope.defer(lambda: Err("busy"))
    with pytest.raises(ResourceCleanupError):
        await scope.release(handle)
    await scope.aclose()

    assert (handle.state, scope.cleanup_error) == ("closed", None)


# Rule 7: several kinds together


async def test_rule_7_all_kinds_that_fail_are_told_in_order() -> None:
    """A plain closer, an entered and a hosted manager and a child, each failing under its name."""

    @contextlib.asynccontextmanager
    async def broken(error: Fault) -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise error

    faults = {name: Fault(name) for name in ("plain", "entered", "hosted", "late")}
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(object(), failing(faults["plain"], sync=False), name="plain")
            await scope.host(broken(faults["hosted"]), name="hosted")
            await scope.enter(broken(faults["entered"]), name="entered")
            scope.add(object(), failing(faults["late"], sync=True), name="late")

    told = [(failure.name, failure.exception) for failure in caught.value.failures]
    assert told == [(name, faults[name]) for name in ("late", "entered", "hosted", "plain")]


# Rule 8: misuse raises at the call


async def connect() -> object:
    """A coroutine function, to be misused."""
    return object()


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[None]:
    """A manager's function, to be misused."""
    yield


@contextlib.contextmanager
def sync_session() -> Iterator[None]:
    """The same, sync."""
    yield


class Connection:
    """A class, to be misused."""

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


MISUSE: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "a closer that is no callable": (lambda scope: scope.add(1, 2), TypeError, "callable"),
    "a value without a closer": (lambda scope: scope.add(object()), TypeError, "close="),
    "a coroutine for a value": (lambda scope: scope.add(connect()), TypeError, "await"),
    "a coroutine for a value with a closer": (lambda scope: scope.add(connect(), list), TypeError, "await"),
    "a coroutine for a closer": (lambda scope: scope.add(1, connect()), TypeError, "without calling"),
    "a coroutine for a force": (lambda scope: scope.add(1, list, force=connect()), TypeError, "without calling"),
    "an async force": (lambda scope: scope.add(1, list, force=connect), TypeError, "sync"),
    "a class for a value": (lambda scope: scope.add(Connection), TypeError, "instance"),
    "a manager for a value": (lambda scope: scope.add(session()), TypeError, "enter"),
    "a name that is no string": (lambda scope: scope.add(1, list, name=2), TypeError, "string"),
    "a negative timeout": (lambda scope: scope.add(1, list, timeout=-1), ValueError, "timeout"),
    "a NaN timeout": (lambda scope: scope.add(1, list, timeout=float("nan")), ValueError, "timeout"),
    "a timeout that is no number": (lambda scope: scope.add(1, list, timeout="1"), TypeError, "timeout"),
    "a resource's coroutine value": (lambda _: Resource(connect(), list), TypeError, "await"),
    "a resource's coroutine closer": (lambda _: Resource(1, connect()), TypeError, "without calling"),
    "defer of a coroutine": (lambda scope: scope.defer(connect()), TypeError, "without calling"),
    "on_error of a coroutine": (lambda scope: scope.on_error(connect()), TypeError, "without calling"),
    "on_success of no callable": (lambda scope: scope.on_success(1), TypeError, "callable"),
    "on_exit of a coroutine": (lambda scope: scope.on_exit(connect()), TypeError, "without calling"),
    "a negative grace": (lambda _: Scope(grace=-0.1), ValueError, "grace"),
    "a child's negative grace": (lambda scope: scope.child(grace=-1), ValueError, "grace"),
    "a child's name": (lambda scope: scope.child(1), TypeError, "string"),
    "an on_event that is no callable": (lambda _: Scope(on_event=1), TypeError, "callable"),
    "options beside a resource": (lambda scope: scope.add(Resource(1, list), list), TypeError, "Resource"),
    "detach of what is not held": (lambda scope: scope.detach(1), KeyError, "hold"),
    "scoped on a sync function": (lambda _: scoped(len), TypeError, "async"),
}


@pytest.mark.parametrize("case", MISUSE)
async def test_rule_8_misuse_raises_at_the_call(case: str) -> None:
    """With the mend in the message; nothing is registered, and no coroutine is left behind unawaited."""
    call, kind, mend = MISUSE[case]
    scope = Scope()
    with pytest.raises(kind) as caught:
        call(scope)
    gc.collect()

    assert (mend in str(caught.value), scope.size) == (True, 0)


ASYNC_MISUSE: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "enter of a function": (lambda scope: scope.enter(session), TypeError, "session(...)"),
    "enter of a sync function": (lambda scope: scope.enter(sync_session), TypeError, "sync_session(...)"),
    "enter of a class": (lambda scope: scope.enter(Connection), TypeError, "Connection(...)"),
    "enter of a coroutine": (lambda scope: scope.enter(connect()), TypeError, "await"),
    "enter of an async generator": (lambda scope: scope.enter(session.__wrapped__()), TypeError, "asynccontextmanager"),
    "enter of nothing of the kind": (lambda scope: scope.enter(1), TypeError, "__aenter__"),
    "host of a function": (lambda scope: scope.host(session), TypeError, "session(...)"),
    "host of a class": (lambda scope: scope.host(Connection), TypeError, "Connection(...)"),
    "host of a sync manager": (lambda scope: scope.host(sync_session()), TypeError, "enter"),
    "host of a coroutine": (lambda scope: scope.host(connect()), TypeError, "await"),
    "host with a negative timeout": (lambda scope: scope.host(session(), timeout=-1), ValueError, "timeout"),
    "host_all with one bad": (lambda scope: scope.host_all(session(), session), TypeError, "session(...)"),
    "acquire of a coroutine": (lambda scope: scope.acquire(connect(), print), TypeError, "without calling"),
    "acquire with a coroutine to release": (lambda scope: scope.acquire(object, connect()), TypeError, "without"),
    "acquire with a negative timeout": (lambda scope: scope.acquire(object, print, timeout=-1), ValueError, "timeout"),
    "create_resource of a coroutine": (lambda _: create_resource(connect(), print), TypeError, "without calling"),
    "create_resource without a release": (lambda _: create_resource(object, None), TypeError, "callable"),
    "with_scope of a coroutine": (lambda _: with_scope(connect()), TypeError, "without calling"),
    "release of what is not held": (lambda scope: scope.release(1), KeyError, "hold"),
    "release of None": (lambda scope: scope.release(None), KeyError, "hold"),
}


@pytest.mark.parametrize("case", ASYNC_MISUSE)
async def test_rule_8_misuse_raises_at_the_await(case: str) -> None:
    """The same for what is awaited: nothing was entered, acquired or registered."""
    call, kind, mend = ASYNC_MISUSE[case]
    scope = Scope()
    with pytest.raises(kind) as caught:
        await call(scope)
    gc.collect()

    assert (mend in str(caught.value), scope.size) == (True, 0)


async def test_rule_8_acquire_checks_release_before_it_acquires() -> None:
    """What could not be released is not acquired."""
    acquired: list[str] = []
    scope = Scope()
    with pytest.raises(TypeError):
        await scope.acquire(lambda: acquired.append("it"), None)  # type: ignore[func-returns-value,call-overload]

    assert (acquired, scope.size) == ([], 0)


async def test_rule_8_a_closed_resource_cannot_be_added() -> None:
    """`ValueError`, and it is not held."""
    resource = Resource(1, list)
    await resource.aclose()
    scope = Scope()
    with pytest.raises(ValueError, match="closed"):
        scope.add(resource)

    assert scope.size == 0


async def test_rule_8_a_held_resource_cannot_be_added() -> None:
    """Neither to the scope that holds it nor to another one; it stays where it is."""
    resource = Resource(1, list)
    first, second = Scope(), Scope()
    first.add(resource)
    for scope in (first, second):
        with pytest.raises(ValueError, match="detach"):
            scope.add(resource)
    sizes = (first.size, second.size)
    await first.aclose()

    assert sizes == (1, 0)


async def test_rule_8_a_resource_that_is_being_closed_cannot_be_added() -> None:
    """From inside its own closer: `ValueError`."""
    raised: list[type[BaseException]] = []

    def close() -> None:
        try:
            scope.add(resource)
        except ValueError as exc:
            raised.append(type(exc))

    scope = Scope()
    resource = Resource(1, close)
    scope.add(resource)
    await scope.aclose()

    assert raised == [ValueError]


async def test_rule_8_an_entered_manager_cannot_be_added_to_a_concurrent_scope() -> None:
    """Detached from its scope, it is still tied to its task."""
    async with Scope() as scope:
        await scope.enter(session())
        handle = scope.detach(scope.resources[0])
        concurrent = Scope(concurrent=True)
        with pytest.raises(TypeError, match="host"):
            concurrent.add(handle)
        await handle.aclose()

    assert (concurrent.size, handle.state) == (0, "closed")


async def test_rule_8_keywords_of_a_callback_clash_with_nothing() -> None:
    """`defer`, `on_error` and `on_success` pass on `self`, `fn`, `name`, `timeout`, `force` and `args`."""
    got: list[dict[str, int]] = []

    def take(**keywords: int) -> None:
        got.append(keywords)

    keywords: dict[str, Any] = {"self": 1, "fn": 2, "name": 3, "timeout": 4, "force": 5, "args": 6, "x": 7, "when": 8}
    async with Scope() as scope:
        scope.defer(take, **keywords)
        scope.on_success(take, **keywords)

    assert got == [keywords, keywords]


async def test_rule_8_a_scope_is_entered_once() -> None:
    """A second `async with` on the same scope is a `RuntimeError` that says so, inside the first or after."""
    scope = Scope()
    async with scope:
        with pytest.raises(RuntimeError, match="entered already"):
            await scope.__aenter__()
    with pytest.raises(ScopeClosedError):
        await scope.__aenter__()

    assert scope.state == "closed"


# Rule 9: names and types (the rest is in `test_exceptions`)


async def test_rule_9_the_arguments_of_a_callback_are_in_no_name() -> None:
    """A deferred call is named after its function, however its arguments were bound."""
    scope = Scope()
    handles = [scope.defer(print, "hunter2"), scope.defer(functools.partial(print, "hunter2", end="hunter2"))]
    names = [handle.name for handle in handles]
    for handle in handles:
        scope.detach(handle)

    assert names == ["print", "print"]
