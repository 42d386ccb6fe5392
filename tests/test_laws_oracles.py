"""Oracles: random stacks do in a scope what they do as nested `with` statements, and in an `AsyncExitStack`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from hypothesis import event, example, given

from conftest import BACKENDS
from labels import CANCELLED, Fault
from rescope import ResourceCleanupError, Scope
from strategies import Shown, examples

pytestmark = pytest.mark.long

everywhere = pytest.mark.parametrize("backend", BACKENDS)

CARRYING = ("pass", "pass", "suppress", "reraise", "wrap", "wrap twice", "group", "group of wrapped", "part")
"""Acts after which what was in flight is in flight, in some form, or nothing is."""
ACTS = (*CARRYING, "raise", "raise from", "if clean")
KINDS = ("sync", "async", "generator", "async generator")
BODIES = ("clean", "raise", "raise from", "raise in handler", "group", "interrupt")


@dataclass(frozen=True, repr=False)
class Spec(Shown):
    """A manager: how it is made, whether its exit suspends, and what that does."""

    act: str = "pass"
    kind: str = "async"
    steps: int = 0


Log = list[Any]


class Brief(Log):
    """A log without contexts."""


def told(exc: BaseException | None, above: tuple[int, ...] = ()) -> Any:
    """Tell all that can be compared of an exception."""
    if exc is None or id(exc) in above:
        return None if exc is None else "a circle"
    above = (*above, id(exc))
    members = [told(one, above) for one in getattr(exc, "exceptions", ())]
    links = told(exc.__cause__, above), told(exc.__context__, above), exc.__suppress_context__
    return type(exc).__name__, exc.args[0], members, links


def told_without_contexts(exc: BaseException | None) -> Any:
    """Tell what it is, of what it is made, and what it was raised from."""
    if exc is None or isinstance(exc, anyio.get_cancelled_exc_class()):
        return None if exc is None else CANCELLED
    members = [told_without_contexts(one) for one in getattr(exc, "exceptions", ())]
    return type(exc).__name__, exc.args[0], members, told_without_contexts(exc.__cause__)


def act(name: str, spec: Spec, exc: BaseException | None) -> bool:  # noqa: C901
    """Do what the spec says, as an exit."""
    new = Fault(name)
    match spec.act:
        case "suppress":
            return True
        case "raise":
            raise new
        case "raise from":
            raise new from Fault(f"{name} cause")
        case "if clean" if exc is None:
            raise new
        case "reraise" if exc is not None:
            raise exc
        case "wrap" if exc is not None:
            raise new from exc
        case "wrap twice" if exc is not None:
            try:
                raise new from exc
            except Fault as inner:
                raise Fault(f"{name} outer") from inner
        case "group" if exc is not None:
            raise BaseExceptionGroup(name, [exc])
        case "group of wrapped" if exc is not None:
            new.__cause__ = exc
            raise BaseExceptionGroup(name, [new, exc])
        case "part" if isinstance(exc, BaseExceptionGroup):
            raise exc.exceptions[0]
    return False


class Sync:
    """A manager as a class."""

    def __init__(self, name: str, spec: Spec, log: Log) -> None:
        self.name, self.spec, self.log = name, spec, log
        self.tell: Callable[[BaseException | None], Any] = told_without_contexts if isinstance(log, Brief) else told

    def __enter__(self) -> str:
        self.log.append(("enter", self.name))
        return self.name

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.log.append(("exit", self.name, self.tell(exc)))
        self.log.append(f"handles it: {exc is None or sys.exception() is exc}")
        return act(self.name, self.spec, exc)


class Async(Sync):
    """The same, async."""

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        for _ in range(self.spec.steps):
            await anyio.lowlevel.checkpoint()
        return self.__exit__(kind, exc, traceback)


@contextlib.contextmanager
def generator(name: str, spec: Spec, log: Log) -> Iterator[str]:
    """The same, as a generator."""
    with Sync(name, spec, log) as given:
        yield given


@contextlib.asynccontextmanager
async def async_generator(name: str, spec: Spec, log: Log) -> AsyncIterator[str]:
    """The same, as an async generator."""
    async with Async(name, spec, log) as given:
        yield given


MAKE: dict[str, Callable[[str, Spec, Log], Any]] = {
    "sync": Sync,
    "async": Async,
    "generator": generator,
    "async generator": async_generator,
}


def made(specs: list[Spec], log: Log) -> list[Any]:
    """Make the managers."""
    return [MAKE[spec.kind](f"m{number}", spec, log) for number, spec in enumerate(specs)]


async def body(how: str, log: Log, cancel: Callable[[], object]) -> None:
    """End as the bodies do."""
    log.append("body")
    match how:
        case "raise":
            raise Fault("body")
        case "raise from":
            raise Fault("body") from Fault("body cause")
        case "raise in handler":
            try:
                raise Fault("body context")
            except Fault:
                raise Fault("body")  # noqa: B904
        case "group":
            raise ExceptionGroup("body", [Fault("one"), ExceptionGroup("inner", [Fault("two"), Fault("three")])])
        case "interrupt":
            raise KeyboardInterrupt("body")
        case "cancel":
            cancel()
            await anyio.lowlevel.checkpoint()


Body = Callable[[], Any]


async def nested(managers: list[Any], run: Body) -> None:
    """Run a body in nested statements."""
    if not managers:
        await run()
    elif hasattr(managers[0], "__aenter__"):
        async with managers[0]:
            await nested(managers[1:], run)
    else:
        with managers[0]:
            await nested(managers[1:], run)


async def in_scope(managers: list[Any], run: Body) -> None:
    """Run it in a scope."""
    async with Scope() as scope:
        for manager in managers:
            await scope.enter(manager)
        await run()


async def in_nested_scopes(managers: list[Any], run: Body) -> None:
    """Run it in a scope in a child in a child."""

    async def inside(scope: Scope, left: list[Any]) -> None:
        for manager in left[:1]:
            await scope.enter(manager)
            await inside(scope.child(), left[1:])

    async with Scope() as scope:
        await inside(scope, managers)
        await run()


async def in_stack(managers: list[Any], run: Body) -> None:
    """Run it in an exit stack."""
    async with contextlib.AsyncExitStack() as stack:
        for manager in managers:
            if hasattr(manager, "__aenter__"):
                await stack.enter_async_context(manager)
            else:
                stack.enter_context(manager)
        await run()


async def outcome(run: Callable[[], Any], *, brief: bool = False) -> tuple[BaseException | None, Any]:
    """Give what comes out, and all that can be told of it."""
    try:
        await run()
    except BaseException as exc:
        return exc, (told_without_contexts(exc) if brief else told(exc))
    return None, None


def run_on(backend: Any, main: Callable[[], Any]) -> Any:
    return anyio.run(main, backend=backend[0], backend_options=backend[1])


specs = st.builds(Spec, act=st.sampled_from(CARRYING), kind=st.sampled_from(KINDS), steps=st.integers(0, 1))
any_specs = st.builds(Spec, act=st.sampled_from(ACTS), kind=st.sampled_from(KINDS), steps=st.integers(0, 1))
careful_specs = st.builds(
    Spec, act=st.sampled_from((*CARRYING, "suppress", "if clean")), kind=st.sampled_from(KINDS), steps=st.integers(0, 1)
)
plain_specs = specs.filter(lambda spec: spec.act != "group of wrapped")  # a scope loses neither, as a `with` would
INS = {"scope": in_scope, "nested scopes": in_nested_scopes}


async def compare(how: Any, managers: list[Spec], end: str, *, handling: bool) -> tuple[Any, Any, Log, Log]:
    """Run in both worlds, where asked inside of a handler."""

    async def one(world: Any, log: Log) -> Any:
        async def run() -> None:
            await world(made(managers, log), lambda: body(end, log, log.clear))

        if not handling:
            return await outcome(run)
        try:
            raise Fault("handled")
        except Fault:
            return await outcome(run)

    here: Log = []
    there: Log = []
    return await one(how, here), await one(nested, there), here, there


@everywhere
@examples(200)
@given(
    managers=st.lists(specs, max_size=4),
    end=st.sampled_from(BODIES),
    handling=st.booleans(),
    how=st.sampled_from(list(INS)),
)
@example(managers=[Spec("wrap"), Spec("suppress"), Spec("wrap", "generator")], end="group", handling=True, how="scope")
def test_failing_rule_5_entered_managers_are_nested_withs(
    managers: list[Spec], end: str, handling: bool, how: str, backend: Any
) -> None:
    """Each exit sees the same, handles the same, and the same comes out, with the same causes and contexts."""

    async def main() -> Any:
        return await compare(INS[how], managers, end, handling=handling)

    (raised, actual), (_, expected), here, there = run_on(backend, main)
    event(f"out: {type(raised).__name__}")

    assert here == there
    assert actual == expected


@everywhere
@examples(250)
@given(
    stack=st.tuples(st.lists(any_specs, min_size=1, max_size=4), st.just("clean"))
    | st.tuples(st.lists(careful_specs, min_size=2, max_size=4), st.sampled_from(BODIES)),
    handling=st.booleans(),
)
@example(stack=([Spec("if clean"), Spec("suppress")], "raise"), handling=False)
def test_failing_rule_5_failing_managers_are_nested_withs_to_the_outer_ones(
    stack: tuple[list[Spec], str], handling: bool, backend: Any
) -> None:
    """Where nothing is in flight, what one fails with is what the outer ones see; the last comes out as a failure.

    So it is after a clean body, and after one that a manager has suppressed.
    """
    managers, end = stack

    async def main() -> Any:
        return await compare(in_scope, managers, end, handling=handling)

    (raised, actual), (expected, told_of_it), here, there = run_on(backend, main)
    failures = innermost(raised) if isinstance(raised, ResourceCleanupError) else []
    event(f"failures: {len(failures)}")

    assert here == there
    if not failures:
        assert actual == told_of_it
    elif expected is not None:
        assert told(failures[-1]) == told_of_it


def innermost(error: BaseException | None) -> list[BaseException]:
    """Give the failures in cleanup errors."""
    if isinstance(error, ResourceCleanupError):
        return [inner for one in error.exceptions for inner in innermost(one)]
    return [] if error is None else [error]


# Cancelled


async def cancelled(world: Any, managers: list[Spec], *, native: bool, groups: set[int]) -> Any:
    """Cancel the body of a stack, and give what was seen, what comes out, and what stays.

    No contexts: where asyncio throws a cancellation into a task, Python makes what each frame on the way out handles
    the context of it; in the frame with the scope that is what the body raised, whatever became of it.
    """
    log = Brief()
    came: list[Any] = []
    with anyio.CancelScope() as cancel_scope:
        task: Any = asyncio.current_task() if native else None
        cancel: Callable[[], object] = task.cancel if native else cancel_scope.cancel
        stack = made(managers, log)
        for number in groups:
            stack.insert(min(number, len(stack)), anyio.create_task_group())
        came.append((await outcome(lambda: world(stack, lambda: body("cancel", log, cancel)), brief=True))[1])
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            came.append(CANCELLED)
            if not native:
                raise
    if native:
        came.append(task.cancelling())
    return log, came, cancel_scope.cancelled_caught


@everywhere
@examples(150)
@example(managers=[Spec(steps=1), Spec("group", "sync")], native=False, groups=set())
@given(managers=st.lists(plain_specs, max_size=4), native=st.booleans(), groups=st.sets(st.integers(0, 4), max_size=2))
def test_closing_rule_4_entered_managers_are_as_exposed_as_in_nested_withs(
    managers: list[Spec], native: bool, groups: set[int], backend: Any
) -> None:
    """A cancelled body: each exit sees the same and is cut off the same, and the same comes out and stays pending."""

    async def one(world: Any) -> Any:
        if backend[0] == "trio" or not native:
            return await cancelled(world, managers, native=False, groups=groups)
        return await asyncio.create_task(cancelled(world, managers, native=True, groups=groups))

    async def main() -> Any:
        return [await one(world) for world in (in_scope, nested)]

    actual, expected = run_on(backend, main)
    assert actual == expected


# Exit stacks


def taken(stack: Any, log: Log, name: str, *, sync: bool) -> None:
    """Register a callback in a scope, or in an exit stack."""

    async def later(*args: Any, **kwargs: Any) -> str:
        await anyio.lowlevel.checkpoint()
        log.append((name, args, kwargs))
        return name

    def now(*args: Any, **kwargs: Any) -> bool:
        log.append((name, args, kwargs))
        return True

    if isinstance(stack, Scope):
        stack.defer(now if sync else later, name, option=sync)
    elif sync:
        stack.callback(now, name, option=sync)
    else:
        stack.push_async_callback(later, name, option=sync)


async def entered(stack: Any, manager: Any) -> Any:
    """Enter a manager in a scope, or in an exit stack."""
    if isinstance(stack, Scope):
        return await stack.enter(manager)
    return await stack.enter_async_context(manager) if hasattr(manager, "__aenter__") else stack.enter_context(manager)


async def fill_and_close(make: Any, plan: list[Any], end: str) -> Any:
    """Fill a scope or stack, hand over where the plan says so, and close it.

    No contexts: an exit stack mends them in a way of its own.
    """
    log = Brief()

    async def run() -> None:
        async with make() as stack:
            held = stack
            for number, item in enumerate(plan):
                if isinstance(item, Spec):
                    log.append(await entered(held, MAKE[item.kind](f"m{number}", item, log)))
                elif item == "move":
                    held = held.move() if isinstance(held, Scope) else held.pop_all()
                else:
                    taken(held, log, f"c{number}", sync=item == "callback")
            if held is stack:
                await body(end, log, log.clear)
                return
            async with held:
                await body(end, log, log.clear)

    return (await outcome(run, brief=True))[1], [entry for entry in log if not str(entry).startswith("handles")]


@everywhere
@examples(150)
@given(
    plan=st.lists(
        specs | st.sampled_from(["callback", "async callback", "callback", "async callback", "move"]), max_size=7
    ),
    end=st.sampled_from(BODIES),
)
def test_closing_rule_1_a_scope_is_an_exit_stack_where_they_agree(plan: list[Any], end: str, backend: Any) -> None:
    """Callbacks with arguments, managers, what they give, handing over: the same order, and the same comes out."""

    async def main() -> Any:
        return [await fill_and_close(make, plan, end) for make in (Scope, contextlib.AsyncExitStack)]

    actual, expected = run_on(backend, main)
    assert actual == expected
