"""`rescope.testing`: what `cancel_everywhere` cancels, what it finds wrong, and how it says so."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import FrozenInstanceError
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY, BACKENDS
from rescope import Scope
from rescope.testing import CancelEverywhereError, CancelReport, Fault, Ledger, cancel_everywhere

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
trio_only = pytest.mark.parametrize(
    "anyio_backend",
    [param for param in BACKENDS if param.id == "trio"] or [pytest.param("", marks=pytest.mark.skip)],
    indirect=True,
)


class Boom(Exception):
    """What a program fails with."""


async def pause(times: int = 1) -> None:
    for _ in range(times):
        await anyio.lowlevel.checkpoint()


async def faults_of(program: Callable[[Ledger], Awaitable[object]], **options: Any) -> tuple[Fault, ...]:
    """Sweep a program that has faults."""
    with pytest.raises(CancelEverywhereError) as caught:
        await cancel_everywhere(program, **options)
    return caught.value.faults


def modes_of(backend: str) -> list[str]:
    return ["scope"] if backend == "trio" else ["task", "late", "repeated", "scope"]


def found(faults: tuple[Fault, ...]) -> set[tuple[str | None, int, tuple[str, ...]]]:
    return {(fault.mode, fault.point, fault.problems) for fault in faults}


# The ledger


def test_a_ledger_knows_what_is_open() -> None:
    """`opened` gives the name back, `open` tells the latest first, and what is closed is gone from it."""
    ledger = Ledger()

    assert ledger.opened("a") == "a"
    ledger.opened("b")
    assert ledger.open == ("b", "a")
    assert ledger.problems == ("left open: b", "left open: a")

    ledger.closed("b")
    ledger.closed("a")
    assert ledger.open == ()
    assert ledger.problems == ()


def test_a_ledger_tells_what_was_closed_wrongly() -> None:
    """Closed twice, never opened, and closed before what was opened later, are mistakes."""
    ledger = Ledger()
    for name in "abc":
        ledger.opened(name)

    ledger.closed("b")
    ledger.closed("b")
    ledger.closed("d")
    ledger.closed("c")
    ledger.closed("a")

    assert ledger.problems == (
        "closed out of order: b before c",
        "closed twice: b",
        "closed but never opened: d",
    )


def test_a_ledger_without_order_takes_any() -> None:
    """With `ordered=False`, what was opened first may be closed first, and twice is still once too often."""
    ledger = Ledger(ordered=False)
    ledger.opened("a")
    ledger.opened("b")

    ledger.closed("a")
    ledger.closed("b")
    ledger.closed("a")

    assert ledger.problems == ("closed twice: a",)


def test_a_name_may_be_open_more_than_once() -> None:
    """Of one name, the latest is closed first."""
    ledger = Ledger()
    for name in ("a", "b", "a"):
        ledger.opened(name)

    ledger.closed("a")
    ledger.closed("b")

    assert ledger.open == ("a",)
    assert ledger.problems == ("left open: a",)


# Where it cancels


async def test_every_checkpoint_is_a_point(anyio_backend_name: str) -> None:
    """A program is cancelled at each of its checkpoints once in each mode, and the report says how often."""
    came: list[int] = []

    async def program(ledger: Ledger) -> None:
        came.append(0)
        for _ in range(3):
            await pause()
            came[-1] += 1

    report = await cancel_everywhere(program, turns=0)

    modes = modes_of(anyio_backend_name)
    assert came == [3] + [0, 1, 2, 3] * len(modes)
    assert report == CancelReport(**dict.fromkeys(modes, 3))
    assert report.total == 3 * len(modes)


async def test_a_program_without_a_checkpoint_has_no_point() -> None:
    """What never suspends is run, and can't be cancelled."""

    async def program(ledger: Ledger) -> None:
        ledger.closed(ledger.opened("a"))

    assert await cancel_everywhere(program) == CancelReport()


async def test_turns_of_the_loop_are_points() -> None:
    """While the program waits for another task, it is cancelled as that one gets on."""
    steps: list[int] = []

    async def program(ledger: Ledger) -> None:
        steps.append(0)

        async def other() -> None:
            for _ in range(4):
                await pause()
                steps[-1] += 1
            done.set()

        done = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await done.wait()

    await cancel_everywhere(program, turns=0)
    without, steps[:] = set(steps), []
    await cancel_everywhere(program)

    assert without == {0, 4}
    assert set(steps) > {0, 4}  # on trio, tasks take their steps in random order


async def test_a_program_may_be_anything_that_gives_an_awaitable() -> None:
    """A method, a partial, and a callable that gives an awaitable of its own kind are programs."""

    class Awaiting:
        def __await__(self) -> Generator[Any, Any, None]:
            yield from pause(2).__await__()

    class Programs:
        async def method(self, ledger: Ledger) -> None:
            await pause(2)

    async def program(times: int, ledger: Ledger) -> None:
        await pause(times)

    for one in (Programs().method, functools.partial(program, 2), lambda _: Awaiting()):
        report = await cancel_everywhere(one, turns=0, modes=["scope"])
        assert report == CancelReport(scope=2)


@asyncio_only
async def test_what_a_future_hands_over_is_lost_when_cancelled_late() -> None:
    """A result that is there when the cancellation comes is lost: only the mode `late` meets that."""

    async def program(ledger: Ledger) -> None:
        handed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: handed.done() or handed.set_result(ledger.opened("a")))
        ledger.closed(await handed)

    faults = await faults_of(program, turns=0)

    assert found(faults) == {("late", 1, ("left open: a",))}


@asyncio_only
async def test_a_second_cancellation_can_do_what_one_can_not() -> None:
    """Cleanup that stands one cancellation leaks at a second one: only `repeated` and `scope` meet that."""

    async def program(ledger: Ledger) -> None:
        ledger.opened("a")
        try:
            await pause()
        except asyncio.CancelledError:
            await pause()
            ledger.closed("a")
            raise
        ledger.closed("a")

    faults = await faults_of(program, turns=0)

    assert found(faults) == {("repeated", 1, ("left open: a",)), ("scope", 1, ("left open: a",))}


async def test_modes_can_be_chosen(anyio_backend_name: str) -> None:
    """Only the modes asked for are swept, and of those what the backend has."""
    report = await cancel_everywhere(lambda _: pause(2), modes=["task", "scope"], turns=0)

    assert report == CancelReport(task=0 if anyio_backend_name == "trio" else 2, scope=2)


# What it finds


async def test_a_close_that_can_be_cut_off_is_found() -> None:
    """A `finally` that suspends before it has closed leaks; the error names the line that was cancelled."""

    async def program(ledger: Ledger) -> None:
        ledger.opened("connection")
        try:
            await pause()
        finally:
            await pause()
            ledger.closed("connection")

    with pytest.raises(CancelEverywhereError) as caught:
        await cancel_everywhere(program, modes=["scope"], turns=0)

    first, second = caught.value.faults
    line = program.__code__.co_firstlineno
    assert (first.mode, first.point, first.turn, first.problems) == ("scope", 1, 0, ("left open: connection",))
    assert first.stack[0] == f"{__file__}:{line + 3} in {program.__qualname__}"
    assert second.stack[0] == f"{__file__}:{line + 5} in {program.__qualname__}"
    assert str(caught.value).splitlines()[:3] == [
        f"2 of 4 runs of {program.__qualname__} went wrong",
        "  scope, point 1: left open: connection",
        f"    at {first.stack[0]}",
    ]


async def test_the_leak_of_an_exit_stack_is_found(anyio_backend_name: str) -> None:
    """An `AsyncExitStack` lets a cancellation cut off the closer that suspends; a scope does not."""

    async def close(ledger: Ledger, name: str) -> None:
        await pause()
        ledger.closed(name)

    async def with_stack(ledger: Ledger) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for name in "ab":
                stack.push_async_callback(close, ledger, ledger.opened(name))
            await pause()

    async def with_scope(ledger: Ledger) -> None:
        async with Scope() as scope:
            for name in "ab":
                scope.defer(close, ledger, ledger.opened(name))
            await pause()

    faults = await faults_of(with_stack, turns=0)
    report = await cancel_everywhere(with_scope)

    assert ("scope", 1, ("left open: b", "left open: a")) in found(faults)
    assert {fault.mode for fault in faults} == set(modes_of(anyio_backend_name))
    assert report.total > 0


async def test_a_cancellation_that_is_swallowed_is_found(anyio_backend_name: str) -> None:
    """A program that catches the cancellation, and ends as if nothing were, is told in each mode."""

    async def program(ledger: Ledger) -> None:
        with contextlib.suppress(BaseException):
            await pause()

    faults = await faults_of(program, turns=0)

    assert found(faults) == {(mode, 1, ("swallowed the cancellation",)) for mode in modes_of(anyio_backend_name)}


async def test_another_exception_in_place_of_the_cancellation_is_found() -> None:
    """What comes out instead is named, and is the cause of the error."""

    async def program(ledger: Ledger) -> None:
        try:
            await pause()
        except BaseException:
            msg = "no"
            raise Boom(msg) from None

    with pytest.raises(CancelEverywhereError) as caught:
        await cancel_everywhere(program, modes=["scope"], turns=0)

    [fault] = caught.value.faults
    assert fault.problems == ("raised Boom: no in place of the cancellation",)
    assert isinstance(fault.exception, Boom)
    assert caught.value.__cause__ is fault.exception
    assert "Boom" not in repr(fault).replace("raised Boom", "")


async def test_what_is_closed_twice_or_out_of_order_is_found() -> None:
    """The mistakes of the ledger are told with the point."""

    async def program(ledger: Ledger) -> None:
        ledger.opened("a")
        ledger.opened("b")
        try:
            await pause()
        except BaseException:
            ledger.closed("a")
            raise
        finally:
            ledger.closed("b")
            with contextlib.suppress(ValueError):
                ledger.closed("a")

    faults = await faults_of(program, turns=0, modes=["scope"])

    assert found(faults) == {("scope", 1, ("closed out of order: a before b", "closed twice: a"))}


async def test_a_program_that_goes_wrong_by_itself_is_found_first() -> None:
    """What goes wrong without a cancellation is told at once, and nothing is cancelled."""
    runs: list[Ledger] = []

    async def program(ledger: Ledger) -> None:
        runs.append(ledger)
        ledger.opened("a")
        await pause()
        msg = "by itself"
        raise Boom(msg)

    with pytest.raises(CancelEverywhereError) as caught:
        await cancel_everywhere(program)

    assert [fault.problems for fault in caught.value.faults] == [("raised Boom: by itself", "left open: a")]
    assert str(caught.value).splitlines()[1] == "  not cancelled: raised Boom: by itself; left open: a"
    assert len(runs) == 1


@asyncio_only
async def test_a_task_that_is_left_is_found() -> None:
    """A task that outlives the program is named."""
    running = []

    async def forever() -> None:
        await anyio.sleep_forever()

    async def program(ledger: Ledger) -> None:
        task = asyncio.create_task(forever())
        running.append(task)
        await pause()
        task.cancel()

    faults = await faults_of(program, modes=["task"], turns=0)

    for task in running:
        task.cancel()
    assert found(faults) == {("task", 1, (f"left a task running: {forever.__qualname__}",))}


@trio_only
async def test_a_system_task_that_is_left_is_found() -> None:
    """On trio it can only be a system task."""
    import trio

    async def forever(done: trio.Event) -> None:
        await done.wait()

    events: list[trio.Event] = []

    async def program(ledger: Ledger) -> None:
        done = trio.Event()
        events.append(done)
        trio.lowlevel.spawn_system_task(forever, done)
        await pause()
        done.set()

    faults = await faults_of(program, turns=0)

    for event in events:
        event.set()
    [problem] = [fault.problems for fault in faults]
    assert problem[0].startswith("left a task running: ")
    assert problem[0].endswith("forever")


async def test_a_task_that_is_about_to_end_is_not_left() -> None:
    """What ends within a moment after the program is waited for."""

    async def program(ledger: Ledger) -> None:
        async with Scope() as scope:
            scope.defer(pause, 3)
            await pause()

    report = await cancel_everywhere(program)

    assert report.total > 0


@asyncio_only
async def test_a_close_that_nobody_waits_for_is_found() -> None:
    """What is closed a moment after the program has ended was left open by it, though the task is about to end."""

    async def close(ledger: Ledger) -> None:
        await pause(2)
        ledger.closed("a")

    async def program(ledger: Ledger) -> None:
        ledger.opened("a")
        task = asyncio.create_task(close(ledger))
        await pause()
        await task

    faults = await faults_of(program, modes=["late"], turns=0)

    assert found(faults) == {("late", 1, ("left open: a",))}


@asyncio_only
async def test_an_exception_that_nobody_retrieved_is_found() -> None:
    """What asyncio tells the loop's exception handler is told with the point; the handler from before is back after."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    async def fail() -> None:
        msg = "lost"
        raise Boom(msg)

    async def program(ledger: Ledger) -> None:
        task = asyncio.create_task(fail())
        await pause(3)
        with contextlib.suppress(Boom):
            await task

    faults = await faults_of(program, modes=["task"], turns=0)

    assert loop.get_exception_handler() is before
    assert {problem for fault in faults for problem in fault.problems} == {
        "Task exception was never retrieved: Boom: lost"
    }


@asyncio_only
async def test_what_the_collector_brings_to_light_is_found() -> None:
    """An exception in a circle is told when that is collected, after the last point of the mode."""

    async def fail() -> None:
        raise Boom

    async def program(ledger: Ledger) -> None:
        task = asyncio.create_task(fail())
        circle = [task]
        circle.append(circle)  # type: ignore[arg-type]
        await pause(2)
        with contextlib.suppress(Boom):
            await task

    faults = await faults_of(program, modes=["task"], turns=0)

    assert any(fault.point == 0 and "never retrieved" in fault.problems[0] for fault in faults)


@asyncio_only
async def test_what_is_told_without_an_exception_is_found() -> None:
    """The loop may be told something by itself, without an exception."""

    async def program(ledger: Ledger) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "look here"})

    faults = await faults_of(program)

    assert [fault.problems for fault in faults] == [("look here",)]


@asyncio_only
async def test_a_stray_cancellation_is_found() -> None:
    """A program that cancels its own task, and then swallows what comes, leaves a count that others trip over."""

    async def program(ledger: Ledger) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pause()

    faults = await faults_of(program, modes=["scope"])

    assert [fault.problems for fault in faults] == [("left 1 in task.cancelling() that nobody asked for",)]


# Programs that raise


async def test_what_a_program_raises_by_itself_is_named(anyio_backend_name: str) -> None:
    """With `raises`, that must come out of a run that is not cancelled, and may where a scope cancels after it."""

    async def program(ledger: Ledger) -> None:
        await pause()
        async with Scope() as scope:
            scope.defer(pause)
            raise Boom

    report = await cancel_everywhere(program, raises=Boom, turns=0)

    assert all(getattr(report, mode) >= 2 for mode in modes_of(anyio_backend_name))


async def test_a_program_that_does_not_raise_what_it_should_is_found() -> None:
    """Without a cancellation, what `raises` names must come out."""
    faults = await faults_of(lambda _: pause(), raises=(Boom, ValueError))

    assert found(faults) == {(None, 0, ("did not raise what `raises` says",))}


@asyncio_only
async def test_a_native_cancellation_must_come_out_all_the_same() -> None:
    """`raises` is no excuse where `task.cancel()` came, which is not delivered again."""

    async def program(ledger: Ledger) -> None:
        try:
            await pause()
        finally:
            raise Boom

    faults = await faults_of(program, raises=Boom, turns=0)

    problem = ("raised Boom in place of the cancellation",)
    assert found(faults) == {(mode, 1, problem) for mode in ("task", "late", "repeated")}


async def test_an_interrupt_goes_before_a_cancellation() -> None:
    """What is no `Exception`, and named by `raises`, may come out in every mode."""

    async def program(ledger: Ledger) -> None:
        try:
            await pause()
        finally:
            raise KeyboardInterrupt

    report = await cancel_everywhere(program, raises=KeyboardInterrupt, turns=0)

    assert report.scope == 1


# Programs that don't end


async def test_a_program_that_hangs_when_cancelled_is_cut_off() -> None:
    """It is given up in time, under a shield too; the error tells where it waits, and its `finally` blocks have run."""
    log: list[str] = []

    async def program(ledger: Ledger) -> None:
        try:
            try:
                await pause()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep_forever()
        finally:
            log.append("finally")

    faults = await faults_of(program, modes=["scope"], timeout=0.05)

    line = program.__code__.co_firstlineno
    assert [fault.problems for fault in faults] == [
        (f"did not end within 0.05 s, and after {faults[0].problems[0].split()[-3]} suspensions waits",)
    ]
    assert faults[0].stack[0] == f"{__file__}:{line + 6} in {program.__qualname__}"
    assert log == ["finally", "finally"]


@trio_only
async def test_a_nursery_that_hangs_under_a_shield_is_cut_off() -> None:
    """On trio the tasks of the nursery are cancelled, as it can't be left without them."""
    import trio

    log: list[str] = []

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("child")

    async def program(ledger: Ledger) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)

    faults = await faults_of(program, timeout=0.05)

    assert faults[0].problems[0].startswith("did not end within 0.05 s")
    assert log == ["child"]


async def test_a_program_that_never_ends_is_cut_off() -> None:
    """One that waits for ever by itself is told before anything is cancelled, in a generator too."""

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    async def program(ledger: Ledger) -> None:
        async with manager():
            pass

    faults = await faults_of(program, timeout=0.05)

    line = manager.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert [fault.mode for fault in faults] == [None]
    assert faults[0].stack[1:] == (f"{__file__}:{line + 2} in {manager.__qualname__}",)


async def test_a_program_that_will_not_end_is_left() -> None:
    """One that swallows whatever comes, and spins, is closed a hundred times, and then left."""
    closed: list[type[BaseException]] = []

    async def program(ledger: Ledger) -> None:
        while len(closed) <= 100:
            try:
                await pause()
            except BaseException as exc:
                closed.append(type(exc))

    faults = await faults_of(program, timeout=0.05)

    assert [fault.mode for fault in faults] == [None]
    assert len(closed) >= 100


async def test_a_program_with_too_many_points_is_refused() -> None:
    """More suspensions than `max_points` would take for ever to sweep."""
    faults = await faults_of(lambda _: pause(11), max_points=10)

    assert found(faults) == {(None, 0, ("came to 11 suspensions: let it do less, or raise `max_points`",))}


async def test_cancelling_the_sweep_cancels_the_run() -> None:
    """A cancellation of `cancel_everywhere` itself reaches the program, and comes out."""
    log: list[str] = []
    inside = anyio.Event()

    async def program(ledger: Ledger) -> None:
        async with Scope() as scope:
            scope.defer(pause, 3)
            scope.defer(log.append, "closed")
            inside.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_everywhere, program)
        await inside.wait()
        tasks.cancel_scope.cancel()

    assert log == ["closed"]


# Misuse, and what is said


async def test_misuse_is_told_with_the_mend() -> None:
    """What is no async function of a ledger is refused, and the message says what to do."""

    async def no_ledger() -> None: ...

    def sync(ledger: Ledger) -> None: ...

    cases: list[tuple[Any, str]] = [
        (no_ledger(), "`program` got the coroutine .*no_ledger.*: pass the function itself, without calling it"),
        (no_ledger, "no_ledger must take one argument, the ledger: `async def program"),
        (sync, "sync must be async: it gave a NoneType, not something to await"),
        (1, "`program` must be callable, not a int"),
        (max, "'Ledger' object is not iterable"),
    ]
    for program, message in cases:
        with pytest.raises(TypeError, match=message):
            await cancel_everywhere(program)


async def test_options_that_can_not_be_are_refused() -> None:
    """A mode that there is not, and a timeout that is no number of seconds."""
    unknown: Any = ["task", "twice"]

    with pytest.raises(ValueError, match="there is no mode 'twice': the modes are task, late, repeated, scope"):
        await cancel_everywhere(lambda _: pause(), modes=unknown)
    with pytest.raises(ValueError, match="`timeout` must not be negative"):
        await cancel_everywhere(lambda _: pause(), timeout=-1)


def test_outside_of_a_loop_it_says_so() -> None:
    """Stepped through without a loop, it says what it needs."""
    sweep = cancel_everywhere(lambda _: pause())

    with pytest.raises(RuntimeError, match="no async task is running here"):
        sweep.send(None)


def test_a_report_reads_well() -> None:
    """A report is frozen, comparable, and shows the number in each mode."""
    report = CancelReport(task=3, scope=4)

    assert repr(report) == "CancelReport(task=3, late=0, repeated=0, scope=4)"
    assert report.total == 7
    with pytest.raises(FrozenInstanceError):
        report.task = 1  # type: ignore[misc]


def test_an_error_tells_the_first_faults() -> None:
    """A message holds ten faults and says how many more there are; `faults` has them all."""
    faults = tuple(Fault("task", number, number % 2, (f"here.py:{number} in f",), ("bad",)) for number in range(12))

    error = CancelEverywhereError("program", faults, 20)

    lines = str(error).splitlines()
    assert lines[:5] == [
        "12 of 20 runs of program went wrong",
        "  task, point 0: bad",
        "    at here.py:0 in f",
        "  task, point 1, turn 1: bad",
        "    at here.py:1 in f",
    ]
    assert lines[-1] == "  ... and 2 more, see `faults`"
    assert len(lines) == 22
    assert error.faults == faults
    assert error.__cause__ is None


def test_the_core_does_not_import_it() -> None:
    """`import rescope` leaves `rescope.testing` alone."""
    code = "import rescope, sys; print('rescope.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603

    assert done.stdout.strip() == "False"
