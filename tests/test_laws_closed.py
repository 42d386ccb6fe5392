"""The rules for closing, as laws, continued: what is closed stays closed, whose task is whose, what is left open."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, example, given

from conftest import BACKENDS
from labels import Fault, in_any_order, in_no_order, living_tasks, overlaps
from managers import managed
from programs import Place, Runner, ran
from rescope import ResourceCleanupError, Scope, WrongTaskError
from strategies import DOES, Child, Managed, Plain, Program, examples, nothing_else, programs, sensible, walk

pytestmark = pytest.mark.long

everywhere = pytest.mark.parametrize("backend", BACKENDS)


def run_on(backend: Any, main: Callable[[], Any]) -> Any:
    return anyio.run(main, backend=backend[0], backend_options=backend[1])


# Closing 6: closed means closed


def attempts(scope: Scope, made: list[str]) -> dict[str, Callable[[], Any]]:
    """Give all ways to register, each of which would tell what it made."""

    async def later(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        made.append(what)

    class Manager:
        async def __aenter__(self) -> None:
            made.append("manager")

        async def __aexit__(self, *exc: object) -> None:
            made.append("exit")

    return {
        "add": lambda: scope.add(made, made.clear),
        "defer": lambda: scope.defer(made.clear),
        "on_error": lambda: scope.on_error(made.clear),
        "on_success": lambda: scope.on_success(made.clear),
        "on_exit": lambda: scope.on_exit(print),
        "child": scope.child,
        "acquire": partial(scope.acquire, partial(made.append, "acquired"), made.append),
        "acquire async": partial(scope.acquire, partial(later, "acquired"), made.append),
        "acquire shield": partial(scope.acquire, partial(later, "acquired"), made.append, shield=True),
        "enter": lambda: scope.enter(Manager()),
        "host": lambda: scope.host(Manager()),
        "host_all": lambda: scope.host_all(Manager(), Manager()),
    }


@everywhere
@examples(60)
@given(program=programs())
def test_closing_rule_6_closed_means_closed(program: Program, backend: Any) -> None:
    """However a scope or a child of it came to be closed: all that registers is refused before anything is made."""
    made: list[str] = []

    async def attempt(call: Callable[[], Any]) -> None:
        given = call()
        if given is not None:
            await given

    async def main() -> set[tuple[str, str]]:
        runner = Runner(program.on(backend[0]))
        await runner.run()
        return {
            (how, await runner.attempt(attempt, call))
            for scope in runner.scopes
            for how, call in attempts(scope, made).items()
        }

    assert run_on(backend, main) == {(how, "ScopeClosedError") for how in attempts(Scope(), [])}
    assert made == []


@everywhere
@examples(80)
@given(
    program=nothing_else(
        does=("defer", "acquire", "host", "child", "enter"),
        styles=("sync", "async", "lazy"),
        ends=("return", "raise"),
        children=True,
        concurrent=True,
        least=1,
    )
)
def test_closing_rule_6_what_is_registered_while_closing_is_drained(program: Program, backend: Any) -> None:
    """A closer may register more, which is closed in the same unwinding; it may not enter a manager."""
    model, report = ran(program, backend)
    more = [entry[1] for entry in model.journal if entry[0] == "begin" and entry[1].endswith("+")]
    event(f"drained: {len(more)}")

    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)
    assert report.left == [{("closed", 0)}, {}]


# Closing 7: nothing is held open around the body


@everywhere
@examples(60)
@given(
    program=programs(
        acts=(), forms=("aclose", "with"), bodies=("return", "raise", "stop"), does=tuple(filter("enter".__ne__, DOES))
    )
)
def test_closing_rule_7_a_scope_is_closed_by_another_task(program: Program, backend: Any) -> None:
    """Opened in one task, filled in another, closed in a third: all is as if it were one task."""
    model, report = ran(program, backend, apart=True)
    same = in_no_order if overlaps(program) else tuple

    assert in_any_order(program, report.journal) == in_any_order(program, model.journal)
    assert (same(report.came), report.outcome) == (same(model.came), model.outcome)


@everywhere
@examples(40)
@given(program=programs(host_acts=(), bodies=("return",), early=()))
def test_closing_rule_7_no_task_runs_around_the_body(program: Program, backend: Any) -> None:
    """Whatever but a host is registered: while the body runs, no task runs besides, and on trio no nursery is open."""
    seen: list[int] = []

    class Watcher(Runner):
        async def body_end(self) -> Any:
            seen.append(living_tasks())
            if backend[0] == "trio":
                import trio

                seen[0] += len(trio.lowlevel.current_task().child_nurseries)
            return await super().body_end()

    async def main() -> int:
        before = living_tasks()
        await Watcher(program.on("trio")).run()
        return before

    assert [run_on(backend, main)] == seen


class Tied:
    """A manager that can be exited in its own task only."""

    def __init__(self) -> None:
        self.task = anyio.get_current_task().id

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        if anyio.get_current_task().id != self.task:
            raise Fault("not my task")


@everywhere
@examples(40)
@given(kinds=st.lists(st.sampled_from(["tied", "nursery", "manager", "closer"]), min_size=1, max_size=5))
def test_closing_rule_7_a_manager_that_is_tied_to_its_task_explains_itself_in_another(
    kinds: list[str], backend: Any
) -> None:
    """Closed in another task than it was entered in, it is a failure that names it and the mend; on trio no crash.

    Managers that don't mind are exited there, and all others are closed.
    """
    kinds = [kind for kind in kinds if kind != "nursery" or backend[0] == "trio"]
    labels = [f"{kind}{number}" for number, kind in enumerate(kinds)]
    tied = [name for name in labels[::-1] if name.startswith(("tied", "nursery"))]

    async def main() -> tuple[ResourceCleanupError | None, Runner]:
        runner, scope, groups = Runner(Program()), Scope(), []
        for name in labels:
            if name.startswith("closer"):
                scope.defer(runner.closer(Place(scope), Plain(name, style="async"), None))
            elif name.startswith("nursery"):
                groups.append(anyio.create_task_group())
                await scope.enter(groups[-1], name=name)
            else:
                await scope.enter(Tied() if name.startswith("tied") else managed(runner, Managed(name)), name=name)
        runner.apart, error = True, None
        try:
            await runner.in_task(scope.aclose)
        except ResourceCleanupError as exc:
            error = exc
        for group in reversed(groups):
            await group.__aexit__(None, None, None)
        return error, runner

    error, runner = run_on(backend, main)
    failures = () if error is None else error.failures

    assert [(one.name, type(one.exception)) for one in failures] == [(name, WrongTaskError) for name in tied]
    assert all(one.name in str(one.exception) and "host" in str(one.exception) for one in failures)
    assert [entry[1] for entry in runner.report.journal if entry[0] == "end"] == [
        name for name in labels[::-1] if name not in tied
    ]


# Closing 8: leaving one open


@everywhere
@examples(25)
@given(
    program=nothing_else(
        early=("release", "detach", "readd"), children=True, concurrent=True, ends=("return", "raise"), most=14
    )
)
@example(program=sensible(Program((Plain(),) * 11)))
@example(program=sensible(Program((Plain(), Child(items=(Plain(),) * 10), Plain(how="own close")))))
def test_closing_rule_8_a_scope_that_is_dropped_tells_what_it_held(program: Program, backend: Any) -> None:
    """Dropping an open scope is a `ResourceWarning` with the names of what it held, in order; of children too."""

    async def fill() -> dict[str, list[str]]:
        runner, scope = Runner(program), Scope("root")
        await runner.do_all(Place(scope), program.items)
        for name in runner.detached:
            await runner.attempt(runner.handles[name].aclose)
        scopes = {"root": scope, **{str(one.name): one for one in runner.scopes}}
        return {name: [handle.name for handle in one.resources] for name, one in scopes.items() if one.size}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        held = run_on(backend, fill)
        gc.collect()
    told = [str(one.message) for one in caught]
    event(f"scopes: {len(held)}")
    expected = []
    for name, names in held.items():
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        expected.append(
            f"scope {name!r} was dropped without being closed; it still held: {', '.join(names[:10])}{more}"
        )
    assert sorted(told) == sorted(expected)


# Closing 9: where closers run


@everywhere
@examples(80)
@given(
    program=nothing_else(
        children=True, does=("", "defer"), ends=("return", "raise"), bodies=("return", "raise"), least=2
    )
)
def test_closing_rule_9_sync_closers_run_in_the_closing_task_and_its_context(program: Program, backend: Any) -> None:
    """A sync closer runs in the closing task, and what it sets there stays; an async one sees a copy of that context.

    What an async closer sets, neither a sync one nor the closing task sees.
    """
    assume(all(not isinstance(item, Child) or item.grace is None for item in walk(program.items)))
    model, report = ran(program, backend)
    styles = {item.name: item.style for item in walk(program.items) if isinstance(item, Plain)}
    current = "body"
    for kind, name, *_ in model.journal:
        if kind != "begin" or name.endswith("+"):
            continue
        here, found = report.where[name]
        if styles[name] == "sync":
            assert (name, here, found) == (name, True, current)
            current = name
        else:
            assert found == current or styles[found] != "sync"

    assert report.variable == current
