"""The rules for closing, as laws: each holds for every random program, on every backend.

What a program must do is said by a plain list (`tests/plain_list.py`). Rule 5, in time, has a room of its own.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, example, given, settings

from conftest import BACKENDS
from labels import CANCELLED, Fault, in_any_order, in_no_order, logs_into, overlaps
from programs import Place, Report, Runner, ran
from rescope import Resource, ResourceCleanupError, Scope
from strategies import (
    ACTS,
    BODIES,
    DOES,
    EARLY,
    ENDS,
    FORMS,
    HOST_ACTS,
    HOWS,
    Managed,
    Plain,
    Program,
    examples,
    nothing_else,
    programs,
    sensible,
    walk,
)

pytestmark = pytest.mark.long

everywhere = pytest.mark.parametrize("backend", BACKENDS)
CANCELS = (*DOES, "cancel", "cancel", "cancel")


def names(journal: list[tuple[Any, ...]], kind: str = "begin") -> list[str]:
    """Give the names of all that began to close, in order."""
    return [entry[1] for entry in journal if entry[0] == kind]


# What the programs are


def test_the_programs_have_everything_in_them() -> None:
    """No law is empty: among the random programs are all ways to register, to fail, to end and to be cancelled."""
    seen: set[str] = set()

    @settings(examples(200), derandomize=False)
    @given(program=programs(does=CANCELS))
    def gather(program: Program) -> None:
        seen.update({program.form, f"body {program.end}", f"cancel {program.cancel}"})
        for item in walk(program.items):
            seen.add(type(item).__name__)
            for key in ("how", "end", "does", "act", "kind", "concurrent", "grace"):
                seen.add(f"{type(item).__name__} {key} {getattr(item, key, None)}")

    wanted = {f"Plain end {end}" for end in ENDS} | {f"Plain does {does}" for does in CANCELS}
    wanted |= {f"Managed act {act}" for act in ACTS} | {f"Hosted act {act}" for act in HOST_ACTS}
    wanted |= {f"Early how {how}" for how in EARLY} | {"HostAll", "Child concurrent True", "Child grace 1000.0"}
    wanted |= {f"Plain how {how}" for how in HOWS} | {f"body {end}" for end in BODIES} | {*FORMS, "cancel task"}
    for _ in range(20):
        gather()
        if wanted <= seen:
            break
    assert wanted - seen == set()


@everywhere
@examples(250)
@given(program=programs(does=CANCELS))
def test_every_program_does_what_the_list_says(program: Program, backend: Any) -> None:
    """All rules at once: what is closed, in what order, what each sees, and what comes out of it."""
    model, report = ran(program, backend)
    event(f"came: {model.came[0]}, later: {model.later}")
    same = in_no_order if overlaps(program) else tuple

    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)
    assert same(report.came) == same(model.came)
    assert (report.held, report.outcome, report.later) == (model.held, model.outcome, model.later)
    assert (report.tasks, len(report.logs)) == (0, model.logs)


# Closing 1: last in, first out


@everywhere
@examples(80)
@given(program=nothing_else(children=True, concurrent=True, host_acts=("pass",), ends=ENDS, does=("", "defer"), most=9))
def test_closing_rule_1_lifo_one_at_a_time(program: Program, backend: Any) -> None:
    """Each begins after the one registered after it has ended; what is concurrent does so at its place in that."""
    model, report = ran(program, backend)

    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)


@everywhere
@examples(15)
@given(count=st.integers(2, 12), told=st.booleans(), in_child=st.booleans())
def test_closing_rule_1_concurrent_closes_all_at_once(count: int, told: bool, in_child: bool, backend: Any) -> None:
    """Closers that each wait until all have begun end all the same, in a concurrent scope."""
    events: list[Any] = []

    async def main() -> list[int]:
        begun: list[int] = []
        everybody = anyio.Event()

        async def meet(number: int) -> None:
            begun.append(number)
            if len(begun) == count:
                everybody.set()
            await everybody.wait()

        root = Scope(concurrent=not in_child, on_event=events.append if told else None)
        async with root:
            scope = root.child(concurrent=True) if in_child else root
            for number in range(count):
                scope.defer(meet, number)
        return begun

    begun = anyio.run(main, backend=backend[0], backend_options=backend[1])
    assert sorted(begun) == list(range(count))


@everywhere
@examples(20)
@given(modes=st.lists(st.booleans(), min_size=1, max_size=4), as_child=st.booleans())
@example(modes=[True, False, False], as_child=True)
def test_closing_rule_1_nothing_is_entered_below_a_concurrent_scope(
    modes: list[bool], as_child: bool, backend: Any
) -> None:
    """`enter` is a `TypeError` in a concurrent scope and anywhere below one, and registers nothing."""

    async def main() -> tuple[bool, bool, int]:
        runner = Runner(Program())
        async with Scope(concurrent=modes[0]) as root:
            scope = root
            for mode in modes[1:]:
                scope = scope.child(concurrent=mode)
            refused = await runner.attempt(Runner.do_one, runner, Place(scope), Managed("m"))
            return refused == "TypeError", refused is None, scope.size

    expected = (True, False, 0) if any(modes) else (False, True, 1)
    assert anyio.run(main, backend=backend[0], backend_options=backend[1]) == expected


# Closing 2: all are attempted


@everywhere
@examples(80)
@given(program=programs(ends=ENDS[2:], bodies=("return", "raise", "stop", "cancel"), does=CANCELS, least=2))
@example(program=sensible(Program((Plain(), Plain(end="interrupt")))))
@example(
    program=sensible(Program((Plain(style="async"), Plain(style="async", steps=1, end="exit"), Plain(end="stop"))))
)
def test_closing_rule_2_all_are_attempted(program: Program, backend: Any) -> None:
    """Whatever one does, all that were due begin; a closer that begins comes to its end."""
    model, report = ran(program, backend)
    event(f"failures: {len(model.failures or ())}")

    assert sorted(names(report.journal)) == sorted(names(model.journal))
    ends = sorted(names(report.journal, "end") + names(report.journal, "cut"))
    assert ends == sorted(names(report.journal))


# Closing 3: once

NESTED: dict[str, Any] = {"children": True, "concurrent": True, "least": 1, "most": 4}
CALLS = ("aclose", "aclose", "aclose of handle", "release")


@everywhere
@examples(100)
@given(
    program=nothing_else(
        hows=("defer", "add", "acquire", "on_success"), ends=("return", "raise"), host_acts=("pass",), **NESTED
    ),
    calls=st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 3), st.booleans()), min_size=2, max_size=6),
)
def test_closing_rule_3_overlapping_closes_close_once(
    program: Program, calls: list[tuple[str, int, bool]], backend: Any
) -> None:
    """Of many that close at once each resource is closed once, each failure told once, and who waited sees it closed.

    Those who are cancelled as they wait are let go, and disturb nobody.
    """
    told: list[str] = []
    late: list[str] = []
    logs: list[str] = []

    async def call(scope: Scope, handle: Resource[Any], how: str, *, cancelled: bool) -> None:
        what: dict[str, Any] = {
            "aclose": scope.aclose,
            "aclose of handle": handle.aclose,
            "release": partial(scope.release, handle),
        }
        with anyio.CancelScope() as cancel_scope:
            if cancelled:
                cancel_scope.cancel()
            try:
                await what[how]()
            except ResourceCleanupError as error:
                told.extend(faults(error))
            if (scope if how == "aclose" else handle).state != "closed":
                late.append(how)

    async def main() -> list[tuple[Any, ...]]:
        runner, scope = Runner(program), Scope(concurrent=program.concurrent)
        await runner.do_all(Place(scope), program.items)
        handles = scope.resources
        with logs_into(logs):
            async with anyio.create_task_group() as tg:
                for how, number, cancelled in calls:
                    tg.start_soon(partial(call, scope, handles[number % len(handles)], how, cancelled=cancelled))
            await call(scope, handles[0], "aclose", cancelled=False)
        return runner.report.journal

    begun = names(anyio.run(main, backend=backend[0], backend_options=backend[1]))
    for log in logs:  # what could not be raised, as who closed was cancelled
        told += re.findall(r"Fault: (c\d+)", log)
    failing = [item.name for item in walk(program.items) if isinstance(item, Plain) and item.end == "raise"]

    assert (len(begun), late) == (len({*begun}), [])
    assert sorted(told) == sorted(failing)


def faults(error: BaseException) -> list[str]:
    """Give the labels of all faults in an error."""
    if isinstance(error, BaseExceptionGroup):
        return [label for inner in error.exceptions for label in faults(inner)]
    return [error.args[0]]


@everywhere
@examples(40)
@given(program=programs(does=("aclose", "aclose root", "aclose task", "close"), styles=("async", "lazy"), least=2))
def test_closing_rule_3_closing_from_inside_returns_at_once(program: Program, backend: Any) -> None:
    """A closer that closes its scope, the root, or another, in itself or in a task it starts: all is closed once."""
    model, report = ran(program, backend)
    begun = names(report.journal)

    assert sorted(begun) == sorted({*names(model.journal)})


@everywhere
@examples(40)
@given(program=nothing_else(children=True, concurrent=True, most=5, early=("release", "aclose")))
def test_closing_rule_3_nothing_is_open_any_more_when_its_closer_runs(program: Program, backend: Any) -> None:
    """A closer sees its own handle closing, and so its scope where that closes; afterwards all are closed and empty."""
    seen: set[str] = set()

    class Watcher(Runner):
        def begin(self, item: Plain, args: tuple[Any, ...]) -> None:
            seen.add(self.handles[item.name].state)
            if self.report.closing:
                seen.add(self.root.scope.state)
            super().begin(item, args)

    async def main() -> Report:
        return await Watcher(program.on(backend[0])).run()

    report = anyio.run(main, backend=backend[0], backend_options=backend[1])
    assert (seen <= {"closing"}, report.left) == (True, [{("closed", 0)}, {}])


# Closing 4: cancellation does not stop cleanup


@everywhere
@examples(150)
@given(
    program=programs(
        does=("", "", "cancel", "cancel"),
        bodies=("return", "ok", "raise", "cancel"),
        acts=("pass", "suppress", "raise"),
        least=1,
    )
)
@example(program=sensible(Program((Plain(style="async", does="cancel", steps=1), Managed(steps=1)), cancel="task")))
def test_closing_rule_4_cancellation_does_not_stop_cleanup(program: Program, backend: Any) -> None:
    """Cancelled before or in the middle, once or often: all come to their end, and then the cancellation comes out.

    Only an entered manager is as exposed as in a plain `async with`. What stays pending is what would without a scope,
    and `task.cancelling()` is what was asked.
    """
    model, report = ran(program, backend)
    assume(model.requests)
    event(f"came: {model.came[1] == CANCELLED}, later: {model.later}")
    managers = {item.name for item in walk(program.items) if isinstance(item, Managed)}

    assert {*names(report.journal, "cut")} <= managers
    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)
    assert (report.came[0], report.later) == (model.came[0], model.later)
    assert (report.came[1] == CANCELLED) == (model.came[1] == CANCELLED)
    assert report.cancelling == (model.requests if program.on(backend[0]).cancel == "task" else 0)


@everywhere
@examples(40)
@given(
    program=nothing_else(
        does=("", "cancel"), styles=("async", "lazy"), bodies=("raise", "cancel"), ends=("return", "raise")
    )
)
def test_closing_rule_4_the_same_cancellation_comes_out_with_the_bodys_error_as_its_context(
    program: Program, backend: Any
) -> None:
    """`task.cancel(message)`: what comes out has that message, and knows what the body raised."""
    model, report = ran(program, backend)
    assume(model.requests)
    program = program.on(backend[0])
    raised = report.raised
    contexts = [] if raised is None else [raised.__context__, raised.__cause__]

    if model.came[1] != CANCELLED:
        assert (program.end, program.cancel) == ("raise", "scope")
    elif program.cancel == "task":
        assert raised is not None
        assert raised.args == ("the one",)
        assert program.end == "cancel" or any(isinstance(exc, Fault) for exc in contexts)
