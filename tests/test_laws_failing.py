"""The rules for failing, as laws: what is told of a failure, to whom, and what comes out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, example, given

from conftest import BACKENDS
from labels import Fault, Secret, in_any_order, in_no_order, label, living_tasks, overlaps
from managers import hosted
from plain_list import urgent
from programs import Runner, ran
from rescope import (
    CloseFailure,
    CloseRejectedError,
    Err,
    ResourceCleanupError,
    Scope,
    cleanup_errors,
    is_resource_cleanup_error,
)
from strategies import (
    DOES,
    HOST_ACTS,
    Hosted,
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
FAILING = ("return", "raise", "raise", "raise secret", "err", "err value", "cancelled")


def run_on(backend: Any, main: Callable[[], Any]) -> Any:
    return anyio.run(main, backend=backend[0], backend_options=backend[1])


def inner_errors(error: ResourceCleanupError) -> list[ResourceCleanupError]:
    """Give an error and those of children in it."""
    children = [one for one in error.exceptions if isinstance(one, ResourceCleanupError)]
    return [error, *(inner for child in children for inner in inner_errors(child))]


# Failing 1: one error for all


@everywhere
@examples(120)
@given(
    program=programs(ends=FAILING, host_acts=("pass", "raise"), acts=("pass", "raise"), bodies=("return", "ok", "err"))
)
@example(program=sensible(Program((Plain(does="defer", end="raise"),))))
def test_failing_rule_1_one_error_tells_all_failures_in_order(program: Program, backend: Any) -> None:
    """All that failed, and nothing else, in the order in which it did; a child's as one error under its name."""
    model, report = ran(program, backend)
    event(f"failures: {len(model.failures or ())}")
    same = in_no_order if overlaps(program) else tuple
    error = report.cleanup

    assert same(label(error) or ()) == same(model.failures or ())
    if error is None:
        return
    assert report.raised is (None if model.came[0] == "returned" else error)
    assert error.message.startswith(f"{len(model.failures)} of {model.closing.attempted} resources of scope 'root'")
    result: Any = error.original_result
    assert (result.ok, None if result.ok else result.error) == (
        model.outcome[0] == "Ok",
        "body" if program.end == "err" and program.form in ("with_scope", "scoped") else None,
    )
    for one in inner_errors(error):
        assert one.exceptions == one.errors == tuple(failure.exception for failure in one.failures)
        assert all(failure.name in one.message for failure in one.failures)
        assert all(failure.elapsed >= 0 and not failure.timed_out for failure in one.failures)
        assert "\n" not in one.message


@examples(100)
@given(
    data=st.data(),
    names=st.lists(st.sampled_from("abcde"), min_size=1, max_size=5),
    depth=st.integers(0, 2),
    shared=st.booleans(),
)
def test_failing_rule_1_a_part_keeps_the_failures_of_its_own_exceptions(
    data: st.DataObject, names: list[str], depth: int, shared: bool
) -> None:
    """`split`, `subgroup`, `copy` and `pickle`: each part has its own failures, name for name, and the result."""
    one = Fault("one for all")
    faults = [one if shared else Fault(f"{name}{number}") for number, name in enumerate(names)]
    error = made_by_a_scope(names, faults, depth)
    chosen = data.draw(st.lists(st.sampled_from(faults)))

    def is_chosen(exc: Exception) -> bool:
        return any(exc is fault for fault in chosen)

    parts: Any = error.split(is_chosen)
    assert parts[0] is None or label(error.subgroup(is_chosen)) == label(parts[0])
    for part, wanted in zip(parts, (True, False), strict=True):
        expected = [pair for pair in zip(names, faults, strict=True) if is_chosen(pair[1]) == wanted]
        kept = zip(named_leaves(part), leaves_of(part), strict=True) if part is not None else ()
        assert [*kept] == expected
        assert part is None or part.original_result == error.original_result
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 (our own)
        told = [(label(one), str(one), one.failures[0].elapsed) for one in (twin, error)]
        assert told[0] == told[1]


def made_by_a_scope(names: list[str], faults: list[Fault], depth: int) -> ResourceCleanupError:
    """Let a scope fail, with as many scopes in between."""

    def fail(fault: Fault) -> None:
        raise fault

    async def main() -> ResourceCleanupError:
        root = scope = Scope()
        for _ in range(depth):
            scope = scope.child("child")
        for name, fault in reversed([*zip(names, faults, strict=True)]):
            scope.add(Secret(), partial(fail, fault), name=name)
        try:
            await root.aclose()
        except ResourceCleanupError as error:
            return error
        raise AssertionError

    return anyio.run(main)


def leaves_of(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves_of(inner)]
    return [error]


def named_leaves(error: ResourceCleanupError) -> list[str]:
    """Give the names of the failures, those of children in their place."""
    names = []
    for failure in error.failures:
        inner = failure.exception
        names += named_leaves(inner) if isinstance(inner, ResourceCleanupError) else [failure.name]
    return names


# Failing 2: the body's exception is the cause


@everywhere
@examples(100)
@given(
    program=programs(
        ends=("return", "raise", "err value"),
        acts=("pass", "pass", "suppress", "wrap", "reraise"),
        host_acts=("pass", "raise"),
        bodies=("raise", "raise secret"),
        forms=("with", "with_scope", "scoped"),
        least=1,
    )
)
def test_failing_rule_2_the_bodys_exception_is_the_cause(program: Program, backend: Any) -> None:
    """The cleanup error is raised from the body's exception as the managers left it, and is not among the failures."""
    model, report = ran(program, backend)
    assume(model.failures)
    error = report.raised
    event(f"cause: {model.cause if model.cause is None else model.cause == 'body'}")

    assert isinstance(error, ResourceCleanupError)
    assert label(error.__cause__) == model.cause
    assert isinstance(error.original_result, Err)
    assert label(error.original_result.error) == model.outcome[1]
    assert report.outcome == model.outcome
    assert error.original_result.error not in leaves_of(error)


# Failing 3: what is no `Exception` is never replaced


@everywhere
@examples(120)
@given(
    program=programs(
        ends=("return", "raise", "interrupt", "exit", "stop"),
        does=(*DOES, "cancel"),
        acts=("pass", "raise", "interrupt"),
        bodies=("return", "raise", "stop", "interrupt", "cancel"),
        least=1,
    )
)
@example(
    program=sensible(
        Program((Managed(kind="sync", act="interrupt"), Hosted(act="interrupt"), Managed(kind="sync", act="interrupt")))
    )
)
@example(
    program=sensible(Program((Plain(), Plain(), Managed(steps=1), Plain(style="async", does="cancel", end="stop"))))
)
def test_failing_rule_3_what_is_urgent_is_never_replaced(program: Program, backend: Any) -> None:
    """It comes out as itself, an interrupt before a cancellation, else the first; the cleanup error is told beside."""
    model, report = ran(program, backend)
    same = in_no_order if overlaps(program) else tuple
    event(f"urgent: {urgent(model.came[1])}, with failures: {bool(model.failures)}")

    assert urgent(report.came[1]) == urgent(model.came[1])
    assert not urgent(model.came[1]) or report.came == model.came
    assert same(label(report.cleanup) or ()) == same(model.failures or ())
    assert len(report.logs) == model.logs
    if urgent(model.came[1]) and report.cleanup is not None:
        assert f"rescope: {report.cleanup.message}" in getattr(report.raised, "__notes__", [])
        assert report.cleanup.message in report.logs[-1]
    if program.told:
        told = [one.resource for one in report.events if one.kind == "failed" and one.path == ("root",)]
        assert {name for name, _ in label(report.cleanup) or ()} <= {*told}


@everywhere
@examples(50)
@given(program=nothing_else(ends=("return", "cancelled"), bodies=("return", "raise"), children=True, concurrent=True))
def test_failing_rule_3_a_cancellation_that_nobody_asked_for_is_a_failure(program: Program, backend: Any) -> None:
    """A closer's own `CancelledError` is a failure like any other, and cancels nothing."""
    model, report = ran(program, backend)
    same = in_no_order if overlaps(program) else tuple

    assert (report.came[0], same(label(report.cleanup) or ())) == (model.came[0], same(model.failures or ()))
    assert report.later is None


# Failing 4: an `Err` from a closer is a failure


@everywhere
@examples(60)
@given(
    program=nothing_else(
        ends=("return", "err", "err value"), early=("release", "aclose"), children=True, concurrent=True
    )
)
def test_failing_rule_4_an_err_from_a_closer_is_a_failure(program: Program, backend: Any) -> None:
    """With its error where that is an exception, else with a `CloseRejectedError` that keeps it; `Ok` is none."""
    model, report = ran(program, backend)
    same = in_no_order if overlaps(program) else tuple

    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)
    assert same(label(report.cleanup) or ()) == same(model.failures or ())
    for one in leaves_of(report.cleanup) if report.cleanup else ():
        assert isinstance(one, Fault) or (isinstance(one, CloseRejectedError) and isinstance(one.error, Secret))


# Failing 5: entered managers are nested `with` statements (see also tests/test_laws_oracles.py)


@everywhere
@examples(150)
@given(
    program=programs(
        hows=("defer", "on_error", "on_exit"),
        ends=("return", "return", "raise"),
        does=("",),
        early=(),
        bodies=("return", "raise", "raise", "stop"),
        concurrent=False,
        least=2,
    )
)
def test_failing_rule_5_managers_see_and_change_what_is_in_flight(program: Program, backend: Any) -> None:
    """Each sees what the inner ones left, a child's failure as the child's error; closers see the body's outcome."""
    assume(any(isinstance(item, Managed) for item in walk(program.items)))
    model, report = ran(program, backend)

    assert (report.journal, report.came, report.outcome) == (model.journal, model.came, model.outcome)
    assert label(report.cleanup) == model.failures


# Failing 6: finding them


def trees() -> st.SearchStrategy[BaseException]:
    """Give exceptions with errors in groups, causes and contexts."""
    leaf = st.builds(lambda: Fault("leaf")) | st.builds(lambda: made_of([Fault("closer")]))

    def grown(inner: st.SearchStrategy[BaseException]) -> st.SearchStrategy[BaseException]:
        linked = st.builds(linked_to, inner, inner, st.sampled_from(["__cause__", "__context__"]))
        members = st.lists(inner, min_size=1, max_size=3)
        return linked | st.builds(lambda ms: BaseExceptionGroup("group", ms), members) | st.builds(made_of, members)

    return st.recursive(leaf, grown, max_leaves=8)


def made_of(members: list[Any]) -> ResourceCleanupError:
    return ResourceCleanupError("some", members, [CloseFailure("a", one, 0.0) for one in members])


def linked_to(exc: BaseException, other: BaseException, link: str) -> BaseException:
    setattr(exc, link, other)
    return exc


def reached(exc: BaseException | None, seen: dict[int, BaseException]) -> dict[int, BaseException]:
    """Give all that can be reached from an exception."""
    if exc is not None and id(exc) not in seen:
        seen[id(exc)] = exc
        for one in (exc.__cause__, exc.__context__, *getattr(exc, "exceptions", ())):
            reached(one, seen)
    return seen


@examples(150)
@given(exc=trees(), circle=st.booleans())
def test_failing_rule_6_every_cleanup_error_is_found(exc: BaseException, circle: bool) -> None:
    """In itself, inside groups, along causes and contexts, each once, circles or not; the guard tells them."""
    if circle:
        *_, last = reached(exc, {}).values()
        last.__context__ = exc
    expected = {key for key, one in reached(exc, {}).items() if isinstance(one, ResourceCleanupError)}
    found = cleanup_errors(exc)
    event(f"found: {min(len(found), 4)}")

    assert (len(found), {id(one) for one in found}) == (len(expected), expected)
    assert all(is_resource_cleanup_error(one) for one in found)
    assert is_resource_cleanup_error(exc) == isinstance(exc, ResourceCleanupError)


# Failing 7: hosted managers see, but don't suppress


@everywhere
@examples(100)
@given(
    program=nothing_else(
        host_acts=HOST_ACTS,
        acts=("pass", "suppress", "wrap"),
        early=("die", "die", "release"),
        ends=("return", "raise"),
        does=("", "cancel"),
        styles=("sync", "async"),
        bodies=("return", "raise", "cancel"),
        children=True,
        least=1,
    )
)
def test_failing_rule_7_hosted_managers_see_but_do_not_suppress(program: Program, backend: Any) -> None:
    """A hosted exit sees what is in flight and can't hide it; to raise it again, or wrapped, is no failure.

    One that dies is told to `on_event` at once, and is a failure when it is closed.
    """
    model, report = ran(program, backend)
    event(f"died: {len(model.deaths)}")

    assert (report.journal, report.came) == (model.journal, model.came)
    assert label(report.cleanup) == model.failures
    if program.told:
        assert [one.resource for one in report.events if one.kind == "died"] == model.deaths


@everywhere
@examples(40)
@given(
    hosts=st.lists(
        st.builds(Hosted, steps=st.integers(0, 2), act=st.sampled_from(["pass", "pass", "refuse"])), max_size=5
    )
)
def test_failing_rule_7_host_all_is_all_or_none(hosts: list[Hosted], backend: Any) -> None:
    """Where one fails to enter, those that had entered are exited with that, then it is raised; nothing is held."""
    hosts = [replace(host, name=f"h{number}") for number, host in enumerate(hosts)]
    refusing = [host.name for host in hosts if host.act == "refuse"]

    async def main() -> Any:
        before = living_tasks()
        runner, scope = Runner(Program()), Scope()
        given: Any
        try:
            given = await scope.host_all(*(hosted(runner, host) for host in hosts))
        except (Fault, ExceptionGroup) as exc:
            given = exc
        size = scope.size
        await scope.aclose()
        return given, size, living_tasks() - before, runner.report.journal, {*runner.deaths}

    given, size, left, journal, entered = run_on(backend, main)
    exited = {entry[1] for entry in journal if entry[0] == "end"}
    assert left == 0
    if refusing:
        assert size == 0
        assert {one.args[0] for one in leaves_of(given)} <= {*refusing}
        assert exited == entered <= {host.name for host in hosts} - {*refusing}
        assert all(entry[2] in (*refusing, "ExceptionGroup") for entry in journal if entry[0] == "begin")
    else:
        assert (given, size) == (tuple(host.name for host in hosts), len(hosts))
        assert [entry[1] for entry in journal if entry[0] == "end"] == [host.name for host in hosts][::-1]
