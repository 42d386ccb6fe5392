"""`FaultyResource`: what it does on cue, what it keeps of that, and what a scope makes of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import pytest

from conftest import ASYNCIO_ONLY
from rescope import (
    CloseCancelledError,
    CloseRejectedError,
    CloseTimeoutError,
    Err,
    ResourceCleanupError,
    Scope,
    with_scope,
)
from rescope.testing import CancelEverywhereError, FaultyResource, Ledger, _faulty, cancel_everywhere

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)


class Boom(Exception):
    """What a resource fails with."""


class Exit(BaseException):
    """No `Exception`."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stubborn one give in soon."""
    monkeypatch.setattr(_faulty, "_PATIENCE", 0.01)


async def failure_of(*faulty: FaultyResource, **options: Any) -> list[Exception]:
    """Close a scope that holds them, and give what it failed with."""
    scope = Scope()
    for one in faulty:
        scope.add(one, **options)
    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()
    return [failure.exception for failure in caught.value.failures]


# On cue


async def test_without_a_cue_it_succeeds() -> None:
    """It is opened by `open`, closed by `aclose`, and keeps that."""
    faulty = FaultyResource()

    async with Scope() as scope:
        assert await scope.acquire(faulty.open, FaultyResource.aclose) is faulty
        assert (faulty.history, faulty.is_closed) == (["opening", "opened"], False)

    assert faulty.history == ["opening", "opened", "closing", "closed"]
    assert (faulty.opened, faulty.closed, faulty.failed, faulty.cancelled, faulty.forced) == (1, 1, 0, 0, 0)
    assert faulty.is_closed


@pytest.mark.parametrize("cue", [Boom("gone"), Boom], ids=["instance", "type"])
async def test_it_raises_what_it_is_given(cue: Any) -> None:
    """An exception, or a type of one, is the failure of its close, and the next one is closed all the same."""
    beside, faulty = FaultyResource(), FaultyResource(close=cue)

    (failure,) = await failure_of(beside, faulty)

    assert failure is cue or type(failure) is cue
    assert (faulty.history, faulty.is_closed) == (["closing", "failed"], False)
    assert beside.closed == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Exit])
async def test_it_raises_what_is_no_exception(kind: type[BaseException]) -> None:
    """What is no `Exception` comes out of the scope as itself, when all is closed."""
    beside, faulty = FaultyResource(), FaultyResource(close=kind)
    scope = Scope()
    scope.add(beside)
    scope.add(faulty)

    with pytest.raises(kind):
        await scope.aclose()

    assert (beside.history, faulty.history) == (["closing", "closed"], ["closing", "failed"])


async def test_it_raises_a_cancellation_that_nobody_asked_for() -> None:
    """`"cancelled"` is a failure, not a cancellation: nobody has cancelled it."""
    faulty = FaultyResource(close="cancelled")

    (failure,) = await failure_of(faulty)

    assert isinstance(failure, CloseCancelledError)
    assert isinstance(failure.__cause__, anyio.get_cancelled_exc_class())
    assert faulty.history == ["closing", "failed"]


async def test_it_returns_an_err() -> None:
    """An `Err` comes back from its close, and counts as failed."""
    rejected, boom = Err("no"), Err(Boom())

    assert await FaultyResource(close=rejected).aclose() is rejected
    first, second = await failure_of(one := FaultyResource(close=rejected), FaultyResource(close=boom))

    assert first is boom.error
    assert isinstance(second, CloseRejectedError)
    assert one.history == ["closing", "failed"]


async def test_an_err_may_hold_what_has_no_hash() -> None:
    """What is in the `Err` is nobody's business."""
    rejected = Err(["no"])

    assert await FaultyResource(close=rejected).aclose() == rejected


async def test_it_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is slept for, in seconds, and then it succeeds."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    faulty = FaultyResource(open=1.5, close=30)

    await (await faulty.open()).aclose()

    assert slept == [1.5, 30]
    assert faulty.history == ["opening", "opened", "closing", "closed"]


async def test_no_time_is_one_suspension() -> None:
    """`0` can be cancelled at one point; without a cue there is none."""

    async def closing(ledger: Ledger) -> None:
        await FaultyResource(close=[None, 0]).aclose()
        await FaultyResource(close=0).aclose()

    report = await cancel_everywhere(closing, modes=["scope"], turns=0)

    assert report.scope == 1


async def test_a_slow_one_can_be_cancelled() -> None:
    """It is cancelled as it sleeps, and out of time for the scope."""
    faulty = FaultyResource(close=60)

    (failure,) = await failure_of(faulty, timeout=0.01)

    assert isinstance(failure, CloseTimeoutError)
    assert (faulty.history, faulty.is_closed) == (["closing", "cancelled"], False)


async def test_one_cue_for_each_attempt() -> None:
    """It fails the first times, and then succeeds; the last cue is for all that follow."""
    faulty = FaultyResource(close=[Boom, Err("busy"), None])

    with pytest.raises(Boom):
        await faulty.aclose()
    assert await faulty.aclose() == Err("busy")
    for _ in range(2):
        await faulty.aclose()

    assert faulty.history == ["closing", "failed", "closing", "failed", "closing", "closed", "closing", "closed"]
    assert (faulty.failed, faulty.closed) == (2, 2)


async def test_cues_are_kept_apart() -> None:
    """A list that is given stays as it is, so that doubles can share it."""
    cues = [Boom, None]

    for _ in range(2):
        faulty = FaultyResource(open=cues)
        with pytest.raises(Boom):
            await faulty.open()
        assert await faulty.open() is faulty

    assert cues == [Boom, None]


async def test_an_open_that_fails_leaves_nothing_open() -> None:
    """The scope registers nothing, and the double is as good as closed."""
    faulty = FaultyResource(open=Boom("refused"))

    async with Scope() as scope:
        with pytest.raises(Boom, match="refused"):
            await scope.acquire(faulty.open, FaultyResource.aclose)
        assert scope.size == 0

    assert (faulty.history, faulty.is_closed) == (["opening", "failed"], True)


# Hanging


async def test_one_that_hangs_is_forced() -> None:
    """It ends when it is cancelled, and is gone when it is forced."""
    faulty = FaultyResource(close="hang")

    (failure,) = await failure_of(faulty, timeout=0.01, force=faulty.force)

    assert isinstance(failure, CloseTimeoutError)
    assert (faulty.history, faulty.is_closed) == (["closing", "cancelled", "forced"], True)


async def test_it_hangs_until_it_is_let_go() -> None:
    """A test waits until its close has begun, and lets it succeed."""
    faulty = FaultyResource(close="hang")
    scope = Scope()
    scope.add(faulty)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await faulty.wait("closing")
        assert (faulty.history, scope.state) == (["closing"], "closing")
        faulty.let_go()

    assert (faulty.history, scope.cleanup_error) == (["closing", "closed"], None)


async def test_it_hangs_until_it_is_told_to_fail() -> None:
    """A test waits until its opening has begun, and lets it fail."""
    faulty = FaultyResource(open="hang")
    caught: list[BaseException] = []

    async def opening() -> None:
        try:
            await faulty.open()
        except Boom as exc:
            caught.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening)
        await faulty.wait("opening")
        faulty.fail(Boom("refused"))

    assert [str(exc) for exc in caught] == ["refused"]
    assert faulty.history == ["opening", "failed"]


async def test_what_is_told_stands() -> None:
    """Told before it hangs, it does not; told anew, it does the new thing; other cues are as they were."""
    faulty = FaultyResource(close=["hang", "stubborn", 0, "hang"])

    faulty.fail(Boom)
    with pytest.raises(Boom):
        await faulty.aclose()
    with pytest.raises(Boom):
        await faulty.aclose()
    await faulty.aclose()
    faulty.let_go()
    await faulty.aclose()

    assert faulty.history == [*["closing", "failed"] * 2, *["closing", "closed"] * 2]


async def test_all_that_hang_are_told() -> None:
    """Overlapping closes of one double end together."""
    faulty = FaultyResource(close="hang")

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(faulty.aclose)
        await anyio.wait_all_tasks_blocked()
        faulty.let_go()

    assert faulty.closed == 3


async def test_a_stubborn_one_stays_until_it_is_forced() -> None:
    """It swallows its cancellation; `force` ends it."""
    faulty = FaultyResource(close="stubborn")

    (failure,) = await failure_of(faulty, timeout=0.01, force=faulty.force)

    assert isinstance(failure, CloseTimeoutError)
    assert faulty.history == ["closing", "cancelled", "forced", "closed"]
    assert (faulty.closed, faulty.is_closed) == (1, True)


async def test_a_stubborn_one_stays_until_it_is_told() -> None:
    """A scope has left it behind; it ends when a test lets it."""
    faulty = FaultyResource(close="stubborn")

    await failure_of(faulty, timeout=0.01)
    assert faulty.history == ["closing", "cancelled"]

    faulty.let_go()
    await faulty.wait("closed")

    assert faulty.history == ["closing", "cancelled", "closed"]


async def test_a_stubborn_one_can_be_told_to_fail() -> None:
    """What it raises after its cancellation is the cause of what the scope tells."""
    faulty = FaultyResource(close="stubborn")

    def force() -> None:
        faulty.fail(Boom("killed"))

    (failure,) = await failure_of(faulty, timeout=0.01, force=force)

    assert isinstance(failure.__cause__, Boom)
    assert faulty.history == ["closing", "cancelled", "failed"]


async def test_a_stubborn_one_stands_a_cancel_scope() -> None:
    """Below a cancelled scope it goes on, without a busy loop, and succeeds."""
    faulty = FaultyResource(close="stubborn")

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            scope.cancel()
            tasks.start_soon(let_go_when_cancelled, faulty)
            await faulty.aclose()

    assert faulty.history == ["closing", "cancelled", "closed"]


async def let_go_when_cancelled(faulty: FaultyResource) -> None:
    await faulty.wait("cancelled")
    await anyio.wait_all_tasks_blocked()
    faulty.let_go()


@asyncio_only
async def test_a_stubborn_one_swallows_all_that_come() -> None:
    """`task.cancel()`, again and again, doesn't end it."""
    faulty = FaultyResource(close="stubborn")
    task = asyncio.create_task(faulty.aclose())

    for _ in range(3):
        await anyio.wait_all_tasks_blocked()
        task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert (faulty.cancelled, task.done()) == (3, False)
    faulty.let_go()
    await task

    assert faulty.history == ["closing", *["cancelled"] * 3, "closed"]


@pytest.mark.usefixtures("impatient")
async def test_a_stubborn_one_gives_in() -> None:
    """When its patience is over, it ends as cancelled, so that it can't keep a loop from ending."""
    faulty = FaultyResource(close="stubborn")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await faulty.aclose()

    assert scope.cancelled_caught
    assert faulty.history == ["closing", "cancelled"]


@asyncio_only
@pytest.mark.usefixtures("impatient")
async def test_a_stubborn_one_gives_in_to_the_loop() -> None:
    """A task that nobody lets go has ended as cancelled, and the loop may end."""
    faulty = FaultyResource(close="stubborn")
    task = asyncio.create_task(faulty.aclose())
    await anyio.wait_all_tasks_blocked()

    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert faulty.history == ["closing", "cancelled", "cancelled"]


async def test_a_stubborn_one_opens_though_it_was_cancelled() -> None:
    """Told by `open`, the same holds for its opening: it is registered, and closed."""
    faulty = FaultyResource(open="stubborn")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go_when_cancelled, faulty)
        with anyio.CancelScope() as cancel_scope:
            cancel_scope.cancel()
            async with Scope() as scope:
                await scope.acquire(faulty.open, FaultyResource.aclose)

    assert faulty.history == ["opening", "cancelled", "opened", "closing", "closed"]


# As a manager


@pytest.mark.parametrize("how", ["enter", "host"])
async def test_as_a_manager_it_is_opened_and_closed(how: str) -> None:
    """Entered or hosted, it gives itself, and keeps the exception that its exit was given."""
    faulty, error = FaultyResource(), Boom()

    with pytest.raises(Boom):
        async with Scope() as scope:
            assert await getattr(scope, how)(faulty) is faulty
            raise error

    assert faulty.history == ["opening", "opened", "closing", "closed"]
    assert faulty.saw is error


@pytest.mark.parametrize("how", ["enter", "host"])
async def test_as_a_manager_it_fails_to_enter(how: str) -> None:
    """What `open` is told is for its `__aenter__`."""
    faulty = FaultyResource(open=Boom)

    async with Scope() as scope:
        with pytest.raises(Boom):
            await getattr(scope, how)(faulty)
        assert scope.size == 0

    assert faulty.history == ["opening", "failed"]
    assert faulty.saw is None


@pytest.mark.parametrize("how", ["enter", "host"])
@pytest.mark.parametrize(("cue", "expected"), [(Boom, Boom), (Err(Boom()), Boom), (Err("no"), CloseRejectedError)])
async def test_as_a_manager_it_fails_to_exit(how: str, cue: Any, expected: type[Exception]) -> None:
    """What `close` is told is for its `__aexit__`; that raises what an `Err` stands for."""
    faulty, scope = FaultyResource(close=cue), Scope()
    await getattr(scope, how)(faulty)

    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()

    assert [type(error) for error in caught.value.errors] == [expected]
    assert faulty.history == ["opening", "opened", "closing", "failed"]


async def test_as_a_manager_it_suppresses() -> None:
    """`"suppress"` swallows what the body raised; to a plain close it means nothing."""
    faulty = FaultyResource(close="suppress")

    async with Scope() as scope:
        await scope.enter(faulty)
        raise Boom
    assert await faulty.aclose() is None

    assert isinstance(faulty.saw, Boom)
    assert faulty.history == ["opening", "opened", *["closing", "closed"] * 2]


async def test_as_a_manager_it_does_not_suppress() -> None:
    """Without that word, what the body raised comes out."""
    with pytest.raises(Boom):
        async with FaultyResource():
            raise Boom


async def test_one_that_is_hosted_hangs_and_is_cancelled() -> None:
    """A hosted one that hangs runs out of time, and keeps that it was cancelled."""
    faulty, scope = FaultyResource(close="hang"), Scope()
    await scope.host(faulty, timeout=0.01)

    with pytest.raises(ResourceCleanupError):
        await scope.aclose()

    assert faulty.history == ["opening", "opened", "closing", "cancelled"]


# To wait for


async def test_what_happened_is_not_waited_for() -> None:
    """`wait` returns at once for what has happened before."""
    faulty = FaultyResource()
    await faulty.aclose()

    await faulty.wait("closed", timeout=0)

    assert faulty.history == ["closing", "closed"]


async def test_what_does_not_happen_is_told() -> None:
    """Out of time, the error names the resource, and tells what happened instead."""
    faulty = FaultyResource("cache")

    with pytest.raises(TimeoutError, match=r"^cache was not closing within 0 s: nothing has happened to it$"):
        await faulty.wait("closing", timeout=0)
    await faulty.aclose()
    with pytest.raises(TimeoutError, match=r"^cache was not forced within 0.01 s: closing, closed$"):
        await faulty.wait("forced", timeout=0.01)


async def test_waiting_can_be_cancelled() -> None:
    """A cancellation ends the waiting, and is no timeout."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await FaultyResource().wait("closed")

    assert scope.cancelled_caught


def test_one_outlives_its_loop() -> None:
    """Made before any loop runs, and told after: one double is good for a whole test."""
    faulty = FaultyResource(close="hang")

    async def main() -> None:
        with anyio.move_on_after(0.01):
            await faulty.aclose()

    anyio.run(main)
    faulty.let_go()
    anyio.run(faulty.aclose)

    assert faulty.history == ["closing", "cancelled", "closing", "closed"]


# With the ledger of `cancel_everywhere`


async def test_it_keeps_a_ledger() -> None:
    """Two of them in a scope stand a cancellation at any point; closed in the right order is what the ledger sees."""

    async def program(ledger: Ledger) -> None:
        async with Scope() as scope:
            for name in "ab":
                faulty = FaultyResource(name, open=0, close=0, ledger=ledger)
                await scope.acquire(faulty.open, FaultyResource.aclose)

    report = await cancel_everywhere(program)

    assert report.total > 0


async def test_the_ledger_tells_of_a_leak() -> None:
    """One whose close is cut off is left open."""

    async def program(ledger: Ledger) -> None:
        async with FaultyResource("db", close=0, ledger=ledger):
            pass

    with pytest.raises(CancelEverywhereError, match="left open: db"):
        await cancel_everywhere(program, modes=["scope"], turns=0)


async def test_the_ledger_knows_what_was_forced() -> None:
    """What was forced is closed by that; if it is closed then too, or forced again, that is no mistake."""
    ledger = Ledger()
    for cue in ("hang", "stubborn"):
        faulty = FaultyResource(close=cue, ledger=ledger)
        await faulty.open()
        await failure_of(faulty, timeout=0.01, force=faulty.force)
        faulty.force()

    assert ledger.problems == ()


async def test_the_ledger_tells_of_a_second_close() -> None:
    """To close one twice is a mistake, and to close one that was never opened."""
    ledger = Ledger()
    faulty = FaultyResource("db", ledger=ledger)
    await faulty.open()
    await faulty.aclose()
    await faulty.aclose()
    await FaultyResource("cache", ledger=ledger).aclose()

    assert ledger.problems == ("closed twice: db", "closed but never opened: cache")


# Misuse, and what is said

Untyped: Any = FaultyResource


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Untyped(close="hng"),
            ValueError,
            "`close` can't be 'hng': the words are hang, stubborn, cancel",
        ),
        (lambda: Untyped(open=["hang", "x"]), ValueError, "`open` can't be 'x': the words are"),
        (
            lambda: Untyped(open="suppress"),
            ValueError,
            "`open` can't suppress and can't return an `Err`: let it",
        ),
        (lambda: Untyped(open=[None, Err(1)]), ValueError, "`open` can't suppress and can't return an `Err`"),
        (lambda: Untyped(close=[]), ValueError, "`close` is an empty list: it takes one cue at least"),
        (lambda: Untyped(close=-1), ValueError, "`close` must not be negative or NaN"),
        (lambda: Untyped(close=True), TypeError, "`close` must be a number of seconds or None, not a bool"),
        (
            lambda: Untyped(close=object()),
            TypeError,
            "`close` takes None, seconds, .* or a list .*, not a object",
        ),
        (lambda: Untyped(close=int), TypeError, "`close` takes None, .*, not the class int"),
        (lambda: Untyped(Boom()), TypeError, "`name` must be a string, not a Boom"),
        (lambda: Untyped().fail("gone"), TypeError, "`fail` takes an exception, not a str"),
    ],
)
def test_misuse_is_told_with_the_mend(make: Any, error: type[Exception], message: str) -> None:
    """What is no cue is refused at once, and the message says what is one."""
    with pytest.raises(error, match=message):
        make()


async def test_a_moment_that_there_is_not_is_refused() -> None:
    """`wait` says what there is to wait for."""
    unknown: Any = "close"

    with pytest.raises(
        ValueError, match="there is no moment 'close': the moments are opening, opened, closing, closed,"
    ):
        await FaultyResource().wait(unknown)
    with pytest.raises(ValueError, match="`timeout` must not be negative"):
        await FaultyResource().wait("closed", timeout=-1)


async def test_it_reads_well() -> None:
    """Its `repr` tells its name and its story."""
    faulty = FaultyResource("cache", close=Err("secret"))
    assert repr(faulty) == "<FaultyResource 'cache': nothing has happened to it>"

    await faulty.aclose()

    assert repr(faulty) == "<FaultyResource 'cache': closing, failed>"


# What it is for


@pytest.mark.parametrize("how", ["a closer", "entered", "hosted"])
@pytest.mark.parametrize(
    "cue", [Boom, Err("no"), KeyboardInterrupt, "cancelled", "hang", "stubborn", 0.001, None, [Boom, None]], ids=str
)
async def test_what_is_beside_a_faulty_one_is_closed(how: str, cue: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it does, all others of the scope are closed, once."""
    caplog.set_level(logging.CRITICAL, "rescope")
    before, faulty, after = FaultyResource(), FaultyResource(close=cue), FaultyResource()
    entered_and_waits = how == "entered" and cue in ("hang", "stubborn")
    if entered_and_waits:
        faulty.let_go()  # rule 5: an entered manager can't be bounded

    async def body(scope: Scope) -> None:
        scope.add(before)
        if how == "a closer":
            scope.add(faulty, timeout=0.01, force=faulty.force)
        elif how == "entered":
            await scope.enter(faulty)
        else:
            await scope.host(faulty, timeout=0.01)
        scope.add(after)

    try:
        await with_scope(body)
    except (ResourceCleanupError, KeyboardInterrupt):
        pass
    faulty.let_go()

    assert (before.history, after.history) == (["closing", "closed"], ["closing", "closed"])
    assert faulty.history.count("closing") == 1
