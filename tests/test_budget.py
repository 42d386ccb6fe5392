"""Closing rule 5: in time. Timeouts, the grace of a whole unwinding, force, and what is left behind.

What is about lengths of time runs on trio's clock that jumps; what is about order runs on every backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rescope import CloseTimeoutError, Resource, ResourceCleanupError, Scope

SHORT = 0.01
LONG = 60.0


async def failure_of(fn: Callable[[], Awaitable[object]]) -> ResourceCleanupError | None:
    """Give the cleanup error that `fn` raises."""
    try:
        await fn()
    except ResourceCleanupError as error:
        return error
    return None


def allowed(error: ResourceCleanupError | None) -> list[tuple[str, float]]:
    """Give the names of what ran out of time, and how many seconds each had."""
    failures = () if error is None else error.failures
    return [
        (failure.name, round(failure.exception.seconds, 6))
        for failure in failures
        if isinstance(failure.exception, CloseTimeoutError)
    ]


class Stubborn:
    """A closer that swallows its cancellation until it is let go."""

    def __init__(self) -> None:
        self.leave = anyio.Event()
        self.log: list[str] = []

    async def __call__(self) -> None:
        while not self.leave.is_set():
            try:
                await self.leave.wait()
            except anyio.get_cancelled_exc_class():
                self.log.append("cancelled")
                with anyio.CancelScope(shield=True):
                    await self.leave.wait()
        self.log.append("ended")

    def force(self) -> None:
        self.log.append("forced")
        self.leave.set()


def jump(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run `main` on trio, on a clock that jumps to whatever comes next; give what it gives and the seconds it took."""
    trio = pytest.importorskip("trio")
    clock = pytest.importorskip("trio.testing").MockClock(autojump_threshold=0)

    async def timed() -> Any:
        start = trio.current_time()
        result = await main()
        return result, round(trio.current_time() - start, 6)

    return trio.run(timed, clock=clock)


# The timeout of one close


async def test_a_closer_out_of_time_fails_with_an_error_that_names_it() -> None:
    """The failure is a `CloseTimeoutError` with the name and the seconds it had, and marked as timed out."""
    scope = Scope()
    scope.add("x", anyio.sleep_forever, name="slow one", timeout=SHORT)
    error = await failure_of(scope.aclose)

    assert error is not None
    (failure,) = error.failures
    assert (type(failure.exception), failure.name, failure.timed_out) == (CloseTimeoutError, "slow one", True)
    assert ("slow one" in str(failure.exception), failure.exception.seconds) == (True, SHORT)


async def test_a_closer_in_time_is_left_alone() -> None:
    """Neither cancelled nor forced."""
    log: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("closed")

    async with Scope(grace=LONG) as scope:
        scope.add("x", close, timeout=LONG, force=lambda: log.append("forced"))

    assert log == ["closed"]


async def test_out_of_time_a_closer_is_cancelled_and_then_forced() -> None:
    """First it is cancelled and may end; then `force` is called, as it didn't finish its work."""
    log: list[str] = []

    async def close() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    scope = Scope()
    scope.add("x", close, timeout=SHORT, force=lambda: log.append("forced"))
    await failure_of(scope.aclose)

    assert log == ["cancelled", "forced"]


async def test_force_lets_a_stubborn_closer_end() -> None:
    """One that ends because of `force` is waited for."""
    close = Stubborn()
    scope = Scope()
    scope.add("x", close, timeout=SHORT, force=close.force)
    await failure_of(scope.aclose)

    assert close.log == ["cancelled", "forced", "ended"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_a_closer_that_never_ends_is_left_behind(*, concurrent: bool) -> None:
    """The scope doesn't wait for it; the others are closed, and it is told."""
    close = Stubborn()
    log: list[str] = []
    scope = Scope(concurrent=concurrent)
    scope.defer(log.append, "first")
    scope.add("x", close, name="stubborn", timeout=SHORT)
    scope.defer(log.append, "last")
    error = await failure_of(scope.aclose)
    before = list(close.log)
    state = scope.state
    close.leave.set()
    await anyio.wait_all_tasks_blocked()

    assert ([name for name, _ in allowed(error)], sorted(log), state) == (["stubborn"], ["first", "last"], "closed")
    assert (before, close.log) == (["cancelled"], ["cancelled", "ended"])


async def test_what_a_closer_left_behind_raises_later_disturbs_nothing() -> None:
    """Its late failure is nobody's any more."""
    close = Stubborn()

    async def fails() -> None:
        await close()
        raise ValueError("late")

    scope = Scope()
    scope.defer(lambda: None)
    scope.add("x", fails, timeout=SHORT)
    error = await failure_of(scope.aclose)
    close.leave.set()
    await anyio.wait_all_tasks_blocked()

    assert (len(allowed(error)), close.log) == (1, ["cancelled", "ended"])


async def test_what_a_cancelled_closer_raises_is_the_cause() -> None:
    """A closer that fails when it is cancelled for time is told as out of time, because of that failure."""

    async def close() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cancelled")

    scope = Scope()
    scope.add("x", close, timeout=SHORT)
    error = await failure_of(scope.aclose)

    assert error is not None
    assert [type(exc.__cause__) for exc in error.errors] == [ValueError]


async def test_a_closer_that_ends_well_though_cancelled_is_out_of_time() -> None:
    """Swallowing the cancellation doesn't make it have been in time."""

    async def close() -> None:
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()

    scope = Scope()
    scope.add("x", close, name="swallows", timeout=SHORT)
    error = await failure_of(scope.aclose)

    assert allowed(error) == [("swallows", SHORT)]


async def test_what_force_raises_is_noted_and_stops_nothing() -> None:
    """The failure stays the `CloseTimeoutError`; a note says that `force` failed; the others are closed."""
    log: list[str] = []

    def force() -> None:
        raise ValueError("no force")

    scope = Scope()
    scope.defer(log.append, "first")
    scope.add("x", anyio.sleep_forever, timeout=SHORT, force=force)
    error = await failure_of(scope.aclose)

    assert error is not None
    (exc,) = error.errors
    assert (type(exc), ["no force" in note for note in exc.__notes__], log) == (CloseTimeoutError, [True], ["first"])


async def test_an_interrupt_that_force_raises_comes_out() -> None:
    """`KeyboardInterrupt` out of `force` is raised as itself, after all closers ran, with the failure kept."""
    log: list[str] = []

    def force() -> None:
        raise KeyboardInterrupt

    scope = Scope()
    scope.defer(log.append, "first")
    scope.add("x", anyio.sleep_forever, name="slow", timeout=SHORT, force=force)
    with pytest.raises(KeyboardInterrupt):
        await scope.aclose()

    assert (log, allowed(scope.cleanup_error)) == (["first"], [("slow", SHORT)])


async def test_a_release_is_bounded_by_the_timeout() -> None:
    """So is closing one by its handle."""
    scope = Scope()
    scope.add("x", anyio.sleep_forever, name="slow", timeout=SHORT)
    released = await failure_of(lambda: scope.release("x"))
    closed = await failure_of(Resource("y", anyio.sleep_forever, name="own", timeout=SHORT).aclose)

    assert (allowed(released), allowed(closed), scope.size) == ([("slow", SHORT)], [("own", SHORT)], 0)


async def test_a_hosted_exit_is_bounded() -> None:
    """A hosted manager whose exit hangs is cancelled after its timeout."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    scope = Scope()
    await scope.host(manager(), name="hosted", timeout=SHORT)
    error = await failure_of(scope.aclose)

    assert (allowed(error), log) == ([("hosted", SHORT)], ["cancelled"])


async def test_a_closer_runs_out_of_time_while_the_closing_task_is_cancelled() -> None:
    """Time is kept under a cancellation too; the failure is kept, and the cancellation comes out."""
    log: list[str] = []
    with anyio.CancelScope() as cancelled:
        async with Scope() as scope:
            scope.defer(log.append, "first")
            scope.add("x", anyio.sleep_forever, name="slow", timeout=SHORT, force=lambda: log.append("forced"))
            cancelled.cancel()
            await anyio.sleep_forever()

    assert (cancelled.cancelled_caught, log, allowed(scope.cleanup_error)) == (
        True,
        ["forced", "first"],
        [("slow", SHORT)],
    )


async def test_a_closer_that_takes_no_time_is_in_time() -> None:
    """With a timeout of 0, an async closer that doesn't suspend is in time."""
    log: list[int] = []

    async def close(n: int) -> None:
        log.append(n)

    scope = Scope()
    for n in range(10):  # trio draws who runs first by lot
        scope.add(n, partial(close, n), timeout=0)
    error = await failure_of(scope.aclose)

    assert (error, log) == (None, list(reversed(range(10))))


async def test_with_no_grace_at_all_every_closer_gets_its_turn() -> None:
    """With `grace=0`, sync closers and async ones that don't suspend are in time."""
    log: list[int] = []

    async def close(n: int) -> None:
        log.append(n)

    scope = Scope(grace=0)
    for n in range(10):
        scope.defer(close if n % 2 else log.append, n)
    error = await failure_of(scope.aclose)

    assert (error, log) == (None, list(reversed(range(10))))


# The grace of a whole unwinding


async def test_one_that_hangs_does_not_starve_the_rest() -> None:
    """Within the grace, those after one that hangs are closed in time."""
    log: list[str] = []

    async def close(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(name)

    scope = Scope(grace=0.2)
    scope.defer(close, "first")
    scope.defer(close, "second")
    scope.add("x", anyio.sleep_forever, name="hangs")
    error = await failure_of(scope.aclose)

    assert ([name for name, _ in allowed(error)], log) == (["hangs"], ["second", "first"])


async def test_one_that_swallows_its_cancellation_does_not_starve_the_rest() -> None:
    """What it takes beyond its time, until it is left behind, is not taken from those after it."""
    log: list[str] = []
    stubborn = Stubborn()

    async def close(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(name)

    scope = Scope(grace=0.1)
    scope.defer(close, "first")
    scope.defer(close, "second")
    scope.add("x", stubborn, name="stubborn")
    error = await failure_of(scope.aclose)
    stubborn.leave.set()
    await anyio.wait_all_tasks_blocked()

    assert ([name for name, _ in allowed(error)], log) == (["stubborn"], ["second", "first"])


def test_none_takes_more_than_half_of_what_is_left_but_the_last() -> None:
    """Of 8 seconds the first that hangs gets 4, the next 2, the last all that is left."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        for name in ("last", "second", "first"):
            scope.add(name, anyio.sleep_forever, name=name)
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("first", 4.0), ("second", 2.0), ("last", 2.0)], 8.0)


def test_the_grace_bounds_the_whole_unwinding() -> None:
    """However many hang, all is over when the grace is."""

    async def main() -> int:
        scope = Scope(grace=16)
        for n in range(100):
            scope.add(n, anyio.sleep_forever)
        return len(allowed(await failure_of(scope.aclose)))

    assert jump(main) == (100, 16.0)


def test_a_quick_one_leaves_its_time_to_the_next() -> None:
    """What a closer doesn't use is there for those after it."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        scope.add("last", anyio.sleep_forever, name="last")
        scope.add("second", anyio.sleep_forever, name="second")
        scope.defer(anyio.lowlevel.checkpoint)
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("second", 4.0), ("last", 4.0)], 8.0)


def test_a_shorter_timeout_goes_before_the_share_of_the_grace() -> None:
    """The least of both holds."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        scope.add("long", anyio.sleep_forever, name="long", timeout=LONG)
        scope.add("short", anyio.sleep_forever, name="short", timeout=1)
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("short", 1.0), ("long", 7.0)], 8.0)


def test_the_grace_runs_from_the_beginning_of_the_close() -> None:
    """Not from when the scope was opened."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        scope.add("slow", anyio.sleep_forever, name="slow")
        await anyio.sleep(100)
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("slow", 8.0)], 108.0)


def test_concurrent_closers_have_all_of_the_grace_each() -> None:
    """They run out of time together."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8, concurrent=True)
        for name in ("a", "b", "c"):
            scope.add(name, anyio.sleep_forever, name=name)
        return sorted(allowed(await failure_of(scope.aclose)))

    assert jump(main) == ([("a", 8.0), ("b", 8.0), ("c", 8.0)], 8.0)


def test_concurrent_closers_that_take_long_but_not_too_long_all_succeed() -> None:
    """A hundred of 7 seconds take 7 seconds of 8."""

    async def main() -> ResourceCleanupError | None:
        scope = Scope(grace=8, concurrent=True)
        for _ in range(100):
            scope.defer(anyio.sleep, 7)
        return await failure_of(scope.aclose)

    assert jump(main) == (None, 7.0)


def test_what_is_registered_while_closing_shares_the_same_grace() -> None:
    """A late one gets of what is left."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)

        async def close() -> None:
            await anyio.sleep(2)
            scope.add("late", anyio.sleep_forever, name="late")

        scope.defer(close)
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("late", 6.0)], 8.0)


def test_a_child_gets_its_share_of_the_parents_grace() -> None:
    """Half of what is left where others follow; in it the same rule goes on."""

    async def main() -> list[float]:
        parent = Scope(grace=8)
        parent.add("outer", anyio.sleep_forever, name="outer")
        child = parent.child("child")
        child.add("second", anyio.sleep_forever, name="second")
        child.add("first", anyio.sleep_forever, name="first")
        error = await failure_of(parent.aclose)
        assert error is not None
        below, outer = error.errors
        assert isinstance(below, ResourceCleanupError)
        assert isinstance(outer, CloseTimeoutError)
        return [seconds for _, seconds in allowed(below)] + [outer.seconds]

    assert jump(main) == ([2.0, 2.0, 4.0], 8.0)


def test_a_shorter_grace_of_the_childs_own_holds() -> None:
    """The least of both holds, also when the child is closed by its parent."""

    async def main() -> list[tuple[str, float]]:
        parent = Scope(grace=8)
        child = parent.child(grace=3)
        child.add("slow", anyio.sleep_forever, name="slow")
        await failure_of(parent.aclose)
        return allowed(child.cleanup_error)

    assert jump(main) == ([("slow", 3.0)], 3.0)


def test_a_childs_grace_holds_in_a_parent_without_one() -> None:
    """And a child that is closed by itself has its own."""

    async def main() -> list[list[tuple[str, float]]]:
        parent = Scope()
        children = [parent.child(grace=3), parent.child(grace=3)]
        for child in children:
            child.add("slow", anyio.sleep_forever, name="slow")
        await failure_of(children[0].aclose)
        await failure_of(parent.aclose)
        return [allowed(child.cleanup_error) for child in children]

    assert jump(main) == ([[("slow", 3.0)]] * 2, 6.0)


def test_the_time_of_an_entered_exit_is_subtracted() -> None:
    """It can't be bounded, but what it takes is no longer there for the others."""

    async def main() -> list[tuple[str, float]]:
        @contextlib.asynccontextmanager
        async def manager() -> AsyncIterator[None]:
            yield
            await anyio.sleep(6)

        scope = Scope(grace=8)
        scope.add("slow", anyio.sleep_forever, name="slow")
        await scope.enter(manager())
        return allowed(await failure_of(scope.aclose))

    assert jump(main) == ([("slow", 2.0)], 8.0)


def test_an_entered_exit_is_not_bounded() -> None:
    """One that takes longer than the grace takes it, and what comes after it that doesn't suspend is still closed."""

    async def main() -> list[str]:
        log: list[str] = []

        @contextlib.asynccontextmanager
        async def manager() -> AsyncIterator[None]:
            yield
            await anyio.sleep(100)
            log.append("exited")

        scope = Scope(grace=8)
        scope.defer(log.append, "closed")
        await scope.enter(manager())
        await scope.aclose()
        return log

    assert jump(main) == (["exited", "closed"], 100.0)


def test_a_moved_scope_keeps_its_grace() -> None:
    """The grace goes with what is moved."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        scope.add("slow", anyio.sleep_forever, name="slow")
        return allowed(await failure_of(scope.move().aclose))

    assert jump(main) == ([("slow", 8.0)], 8.0)


def test_a_resource_that_somebody_else_is_closing_is_waited_for_within_the_grace() -> None:
    """A scope that closes doesn't wait longer for it than for one of its own."""

    async def main() -> list[tuple[str, float]]:
        scope = Scope(grace=8)
        leave = anyio.Event()
        scope.add("slow", leave.wait, name="slow")
        async with anyio.create_task_group() as tg:
            tg.start_soon(scope.release, "slow")
            await anyio.wait_all_tasks_blocked()
            error = await failure_of(scope.aclose)
            leave.set()
        return allowed(error)

    assert jump(main) == ([("slow", 8.0)], 8.0)


def test_a_closer_that_ignores_all_has_50_ms_and_with_force_100() -> None:
    """After its time: 50 ms to end, `force`, 50 ms more, then it is left behind."""

    async def main() -> list[float]:
        trio = pytest.importorskip("trio")
        stubborn = Stubborn()
        forced: list[float] = []
        scope = Scope()
        scope.add("x", stubborn, timeout=1, force=lambda: forced.append(round(trio.current_time(), 6)))
        await failure_of(scope.aclose)
        stubborn.leave.set()
        return forced

    assert jump(main) == ([1.05], 1.1)


def test_a_concurrent_scope_leaves_behind_all_that_are_stubborn_together() -> None:
    """Their moments pass at the same time."""

    async def main() -> int:
        stubborn = [Stubborn() for _ in range(20)]
        scope = Scope(grace=1, concurrent=True)
        for close in stubborn:
            scope.defer(close)
        error = await failure_of(scope.aclose)
        for close in stubborn:
            close.leave.set()
        return len(allowed(error))

    assert jump(main) == (20, 1.1)


def test_stubborn_closers_leave_time_for_the_rest() -> None:
    """Those that are left behind use up no more than their share: a closer of 10 ms is in time after four of them."""

    async def main() -> tuple[int, list[str]]:
        log: list[str] = []
        stubborn = [Stubborn() for _ in range(4)]

        async def close() -> None:
            await anyio.sleep(0.01)
            log.append("closed")

        scope = Scope(grace=1)
        scope.defer(close)
        for one in stubborn:
            scope.defer(one)
        error = await failure_of(scope.aclose)
        for one in stubborn:
            one.leave.set()
        return len(allowed(error)), log

    assert jump(main)[0] == (4, ["closed"])


async def test_what_a_childs_stubborn_closer_takes_is_not_taken_from_the_parents() -> None:
    """The time beyond its own is given back on every level."""
    log: list[str] = []
    stubborn = Stubborn()

    async def close() -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        log.append("in time")

    parent = Scope(grace=0.2)
    parent.defer(close)
    parent.child().defer(stubborn)
    error = await failure_of(parent.aclose)
    stubborn.leave.set()
    await anyio.wait_all_tasks_blocked()

    assert (len(error.errors), log) == (1, ["in time"])
