"""Entered managers are nested `with` statements: failing rule 5, and what cancellation does to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY, BACKENDS
from rescope import CloseFailure, Err, Ok, ResourceCleanupError, Scope, WrongTaskError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
on_trio = pytest.mark.parametrize("anyio_backend", [param for param in BACKENDS if param.id == "trio"])
anyio_version = tuple(map(int, version("anyio").split(".")[:2]))


class Fault(Exception):
    """An error with a label, so that two runs can be compared."""


# The oracle: random stacks of managers, in a scope and as literally nested `with` statements.


@dataclass(frozen=True)
class Spec:
    """What one manager of a random stack does as it is exited."""

    label: str
    act: str
    sync: bool
    checkpoint: bool
    generator: bool = False


ACTS = (
    "pass",
    "pass",
    "suppress",
    "raise",
    "raise from none",
    "raise from old",
    "reraise",
    "wrap",
    "wrap twice",
    "group",
    "group and more",
    "group of wrapped",
    "part",
    "split",
    "if raised",
)


def act(spec: Spec, exc: BaseException | None) -> bool:  # noqa: C901, PLR0912
    """Do what the spec says, as the body of an exit."""
    new = Fault(spec.label)
    match spec.act:
        case "suppress":
            return True
        case "raise":
            raise new
        case "raise from none":
            raise new from None
        case "raise from old":
            raise new from Fault(f"{spec.label} cause")
        case "if raised" if exc is not None:
            raise new
        case "reraise" if exc is not None:
            raise exc
        case "wrap" if exc is not None:
            raise new from exc
        case "wrap twice" if exc is not None:
            try:
                raise new from exc
            except Fault as inner:
                raise Fault(f"{spec.label} outer") from inner
        case "group" if isinstance(exc, Exception):
            raise ExceptionGroup(spec.label, [exc])
        case "group and more" if isinstance(exc, Exception):
            raise ExceptionGroup(spec.label, [new, exc])
        case "group of wrapped" if isinstance(exc, Exception):
            new.__cause__ = exc
            raise ExceptionGroup(spec.label, [new])
        case "part" if isinstance(exc, ExceptionGroup):
            raise exc.exceptions[0]
        case "split" if isinstance(exc, ExceptionGroup):
            rest = exc.exceptions[-1]
            part = exc.subgroup(lambda leaf: leaf is rest)
            if part is not None:
                raise part
    return False


def describe(exc: BaseException | None, above: tuple[int, ...] = ()) -> Any:
    """Give all that can be compared of an exception: label, members, cause, context."""
    if exc is None:
        return None
    if id(exc) in above:
        return "a circle"
    above = (*above, id(exc))
    members = [describe(inner, above) for inner in exc.exceptions] if isinstance(exc, BaseExceptionGroup) else []
    return (
        type(exc).__name__,
        exc.args[0],
        members,
        describe(exc.__cause__, above),
        describe(exc.__context__, above),
        exc.__suppress_context__,
    )


class SyncManager:
    """A sync manager of the stack; it tells what its exit sees."""

    def __init__(self, spec: Spec, log: list[Any]) -> None:
        self.spec = spec
        self.log = log

    def __enter__(self) -> str:
        self.log.append(("enter", self.spec.label))
        return self.spec.label

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        expected = (None, None) if exc is None else (type(exc), exc.__traceback__)
        self.log.append(("exit", self.spec.label, describe(exc), (kind, traceback) == expected))
        return act(self.spec, exc)


class AsyncManager(SyncManager):
    """The same, async."""

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if self.spec.checkpoint:
            await anyio.lowlevel.checkpoint()
        return self.__exit__(kind, exc, traceback)


def act_in_handler(spec: Spec, log: list[Any], raised: BaseException | None) -> None:
    """Do what the spec says where a generator is resumed: what it doesn't suppress it raises again."""
    log.append(("exit", spec.label, describe(raised)))
    if not act(spec, raised) and raised is not None:
        raise raised


@contextlib.contextmanager
def sync_generator(spec: Spec, log: list[Any]) -> Iterator[str]:
    """The same, as a generator."""
    log.append(("enter", spec.label))
    try:
        yield spec.label
    except BaseException as exc:
        act_in_handler(spec, log, exc)
    else:
        act_in_handler(spec, log, None)


@contextlib.asynccontextmanager
async def async_generator(spec: Spec, log: list[Any]) -> AsyncIterator[str]:
    """The same, as an async generator."""
    log.append(("enter", spec.label))
    try:
        yield spec.label
    except BaseException as exc:
        if spec.checkpoint:
            await anyio.lowlevel.checkpoint()
        act_in_handler(spec, log, exc)
    else:
        act_in_handler(spec, log, None)


def manager_of(spec: Spec, log: list[Any]) -> Any:
    """Make the manager of a spec."""
    if spec.generator:
        return sync_generator(spec, log) if spec.sync else async_generator(spec, log)
    return SyncManager(spec, log) if spec.sync else AsyncManager(spec, log)


def body(act: str) -> None:
    """End as the bodies of the stacks do."""
    match act:
        case "raise":
            raise Fault("body")
        case "raise from":
            try:
                raise Fault("body cause")
            except Fault as cause:
                raise Fault("body") from cause
        case "raise in handler":
            try:
                raise Fault("body context")
            except Fault:
                raise Fault("body")  # noqa: B904
        case "group":
            raise ExceptionGroup("body", [Fault("one"), ExceptionGroup("inner", [Fault("two"), Fault("three")])])


BODIES = ("clean", "raise", "raise from", "raise in handler", "group")


def made_of(new: BaseException, old: BaseException) -> bool:
    """The rule of failing rule 5: is, contains, or has as its cause; or is a part of the group it was."""

    def has(exc: BaseException | None) -> bool:
        if exc is None:
            return False
        members = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
        return exc is old or has(exc.__cause__) or any(has(member) for member in members)

    def leaves(exc: BaseException) -> set[int]:
        if not isinstance(exc, BaseExceptionGroup):
            return {id(exc)}
        return set().union(*(leaves(member) for member in exc.exceptions))

    return has(new) or (isinstance(old, BaseExceptionGroup) and leaves(new) <= leaves(old))


@dataclass
class Told:
    """A failure on record in the model."""

    name: str
    exc: BaseException


@dataclass
class Model:
    """Where a scope departs from nested `with`s: what a manager fails with is put on record."""

    failures: list[Told] = field(default_factory=list)
    flying: Told | None = None

    def suppressed(self) -> None:
        """What is in flight was swallowed; a failure that was in flight goes off the record."""
        if self.flying is not None:
            self.failures.remove(self.flying)
            self.flying = None

    def raised(self, name: str, new: Exception, seen: BaseException | None) -> bool:
        """Put on record what a manager raised; tell whether the ones outside of it see it."""
        if seen is not None and made_of(new, seen):
            if self.flying is not None:
                self.flying.exc = new
            return True
        failure = Told(name, new)
        self.failures.append(failure)
        if seen is None or self.flying is not None:
            self.flying = failure
            return True
        return False


class Nested:
    """One manager around which a `with` statement stands, with the departure modelled."""

    def __init__(self, spec: Spec, log: list[Any], model: Model) -> None:
        self.spec = spec
        self.manager = manager_of(spec, log)
        self.model = model

    async def __aenter__(self) -> Any:
        return self.manager.__enter__() if self.spec.sync else await self.manager.__aenter__()

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        manager = self.manager
        try:
            if self.spec.sync:
                suppress = manager.__exit__(kind, exc, traceback)
            else:
                suppress = await manager.__aexit__(kind, exc, traceback)
        except Exception as new:
            if self.model.raised(self.spec.label, new, exc):
                raise
            return False
        if suppress and exc is not None:
            self.model.suppressed()
        return bool(suppress)


async def run_nested(specs: list[Spec], how: str, log: list[Any]) -> Any:
    """Run a stack as nested `with` statements, and give what comes out."""
    model = Model()

    async def nest(left: list[Spec]) -> None:
        if not left:
            log.append("body")
            body(how)
            return
        async with Nested(left[0], log, model):
            await nest(left[1:])

    raised: BaseException | None = None
    try:
        await nest(specs)
    except Exception as exc:
        raised = exc
    if model.failures:
        cause = raised if model.flying is None else None
        return [(told.name, describe(told.exc)) for told in model.failures], describe(cause)
    return describe(raised)


async def run_scoped(specs: list[Spec], how: str, log: list[Any]) -> Any:
    """Run a stack in a scope, and give what comes out."""
    try:
        async with Scope() as scope:
            for spec in specs:
                await scope.enter(manager_of(spec, log), name=spec.label)
            log.append("body")
            body(how)
    except ResourceCleanupError as error:
        return [(failure.name, describe(failure.exception)) for failure in error.failures], describe(error.__cause__)
    except Exception as exc:
        return describe(exc)
    return None


async def run_handling(run: Callable[[list[Spec], str, list[Any]], Any], *args: Any) -> Any:
    """Run while another exception is being handled, which contexts go on to."""
    try:
        raise Fault("handled")
    except Fault:
        return await run(*args)


def random_stack(rng: random.Random) -> list[Spec]:
    """Make up a stack."""
    acts = rng.choices(ACTS, k=rng.randint(1, 6))
    return [Spec(f"m{n}", how, *(rng.random() < 0.5 for _ in range(3))) for n, how in enumerate(acts)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("handling", [False, True], ids=["bare", "in a handler"])
async def test_random_stacks_do_what_nested_withs_do(seed: int, handling: bool) -> None:
    """Every exit sees the same exception, with the same context and cause, and the same comes out."""
    rng = random.Random(seed)
    for _ in range(700):
        specs, how = random_stack(rng), rng.choice(BODIES)
        expected_log: list[Any] = []
        actual_log: list[Any] = []
        if handling:
            expected = await run_handling(run_nested, specs, how, expected_log)
            actual = await run_handling(run_scoped, specs, how, actual_log)
        else:
            expected = await run_nested(specs, how, expected_log)
            actual = await run_scoped(specs, how, actual_log)
        assert (specs, how, expected_log, expected) == (specs, how, actual_log, actual)


@pytest.mark.parametrize("seed", range(2))
async def test_random_stacks_with_plain_closers_between_do_what_nested_withs_do(seed: int) -> None:
    """Plain closers between managers change nothing of what managers see, whether or not they fail."""
    rng = random.Random(seed)
    for _ in range(400):
        specs, how = random_stack(rng), rng.choice(BODIES)
        expected_log: list[Any] = []
        actual_log: list[Any] = []
        expected = await run_nested(specs, how, expected_log)
        failing = rng.random() < 0.3
        closed: list[int] = []

        async def close(n: int, fail: bool, wait: bool, closed: list[int] = closed) -> None:
            if wait:
                await anyio.lowlevel.checkpoint()
            closed.append(n)
            if fail:
                raise Fault("closer")

        scope = Scope()
        raised: BaseException | None = None
        try:
            async with scope:
                for n, spec in enumerate(specs):
                    scope.defer(close, n, fail=failing and rng.random() < 0.5, wait=rng.random() < 0.5)
                    await scope.enter(manager_of(spec, actual_log), name=spec.label)
                actual_log.append("body")
                body(how)
        except Exception as exc:
            raised = exc
        actual = describe(raised)
        if isinstance(raised, ResourceCleanupError):
            own = [failure for failure in raised.failures if failure.name.startswith("m")]
            cause = raised.__cause__
            actual = (
                ([(told.name, describe(told.exception)) for told in own], describe(cause)) if own else describe(cause)
            )
        assert (specs, how, expected_log, expected, [*reversed(range(len(specs)))]) == (
            specs,
            how,
            actual_log,
            actual,
            closed,
        )


# One by one


class Recorder:
    """A manager that keeps what its exit saw, and may suppress it or raise."""

    def __init__(self, *, suppress: bool = False, error: BaseException | None = None) -> None:
        self.suppress = suppress
        self.error = error
        self.seen: list[BaseException | None] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.seen.append(exc)
        if self.error is not None:
            raise self.error
        return self.suppress


def contexts(exc: BaseException | None) -> list[BaseException]:
    """Walk the contexts; a circle fails the test."""
    chain: list[BaseException] = []
    while exc is not None:
        assert not any(exc is link for link in chain), "a circle of contexts"
        chain.append(exc)
        exc = exc.__context__
    return chain


async def test_a_suppressing_manager_hides_the_error_from_outer_ones_and_the_caller() -> None:
    """After one suppressed, the outer one sees nothing and nothing is raised; the outcome stays the body's."""
    outer, inner, fault = Recorder(), Recorder(suppress=True), Fault("body")
    async with Scope() as scope:
        await scope.enter(outer)
        await scope.enter(inner)
        raise fault

    assert (inner.seen, outer.seen, scope.outcome) == ([fault], [None], Err(fault))


async def test_plain_closers_see_the_bodys_outcome_even_when_it_was_suppressed() -> None:
    """`on_error` outside of a manager that suppressed still runs, and `on_exit` gets the error."""
    log: list[Any] = []
    fault = Fault("body")
    async with Scope() as scope:
        scope.on_exit(log.append)
        scope.on_error(log.append, "rolled back")
        scope.on_success(log.append, "committed")
        await scope.enter(contextlib.suppress(Fault))
        raise fault

    assert log == ["rolled back", Err(fault)]


async def test_what_a_plain_closer_fails_with_no_manager_sees() -> None:
    """A manager outside of a closer that failed sees a clean body."""
    outer = Recorder()
    fault = Fault("closer")

    def fail() -> None:
        raise fault

    scope = Scope()
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            await scope.enter(outer)
            scope.defer(fail)

    assert (outer.seen, caught.value.exceptions) == ([None], (fault,))


async def test_a_managers_failure_in_a_clean_body_rolls_back_the_outer_ones() -> None:
    """With nothing in flight, what an inner manager raises is what the outer ones see."""
    outer, fault = Recorder(), Fault("commit failed")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            await scope.enter(Recorder(error=fault))

    assert (outer.seen, caught.value.exceptions, caught.value.__cause__) == ([fault], (fault,), None)


async def test_the_latest_failure_is_what_outer_managers_see() -> None:
    """Two failing managers in a clean body: both on record, the outermost sees the second, chained to the first."""
    outer, first, second = Recorder(), Fault("first"), Fault("second")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            await scope.enter(Recorder(error=second))
            await scope.enter(Recorder(error=first))

    assert (outer.seen, caught.value.exceptions, second.__context__) == ([second], (first, second), first)


async def test_suppressing_a_failure_drops_that_one_alone() -> None:
    """A manager that swallows the failure in flight takes it off the record; the one before stays."""
    first, second = Fault("first"), Fault("second")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(Recorder(suppress=True))
            await scope.enter(Recorder(error=second))
            await scope.enter(Recorder(error=first))

    assert caught.value.exceptions == (first,)


async def test_suppressing_the_only_failure_leaves_nothing_to_raise() -> None:
    """A scope whose one failing manager was suppressed by an outer one ends clean."""
    async with Scope() as scope:
        await scope.enter(Recorder(suppress=True))
        await scope.enter(Recorder(error=Fault("inner")))

    assert scope.cleanup_error is None


async def test_a_translated_failure_stands_under_the_name_it_had() -> None:
    """A manager that translates an inner failure puts the translation in its place, under the inner one's name."""

    @contextlib.contextmanager
    def translating() -> Iterator[None]:
        try:
            yield
        except Fault as exc:
            msg = "translated"
            raise LookupError(msg) from exc

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(translating(), name="translator")
            await scope.enter(Recorder(error=Fault("inner")), name="inner")

    assert [(told.name, type(told.exception)) for told in caught.value.failures] == [("inner", LookupError)]


async def test_a_translated_body_error_is_the_cause_of_the_cleanup_error() -> None:
    """The `ResourceCleanupError` is raised from E as the managers left it; the outcome holds what the body raised."""

    @contextlib.contextmanager
    def translating() -> Iterator[None]:
        try:
            yield
        except Fault as exc:
            msg = "translated"
            raise LookupError(msg) from exc

    def fail() -> None:
        raise OSError

    fault = Fault("body")
    scope = Scope()
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            scope.defer(fail)
            await scope.enter(translating())
            raise fault

    error = caught.value
    assert (type(error.__cause__), error.original_result, scope.outcome) == (LookupError, Err(fault), Err(fault))


async def test_an_unrelated_error_in_an_exit_leaves_the_bodys_in_flight() -> None:
    """Where nested `with`s would lose the body's error, a scope records the other and goes on with the body's."""
    outer, fault, other = Recorder(), Fault("body"), Fault("other")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            await scope.enter(Recorder(error=other))
            raise fault

    actual = (outer.seen, caught.value.exceptions, caught.value.__cause__, other.__context__, fault.__context__)
    assert actual == ([fault], (other,), fault, fault, None)


async def test_contexts_never_form_a_circle() -> None:
    """An exit that raises the context of what it sees, one that raises the same object again, and so on: no circle."""
    shared, fault = Fault("shared"), Fault("body")

    class RaisesContext:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
            if exc is not None and exc.__context__ is not None:
                raise exc.__context__
            raise shared

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            for _ in range(3):
                await scope.enter(RaisesContext())
                await scope.enter(Recorder(error=shared))
            raise fault

    ends = [contexts(exc)[-1] for exc in (caught.value, shared, fault, *caught.value.exceptions)]
    assert {type(end) for end in ends} <= {Fault, ResourceCleanupError}


async def test_a_closer_that_raises_the_bodys_own_error_forms_no_circle() -> None:
    """A failing closer that raises the very exception of the body makes neither cause nor context point in a ring."""
    fault = Fault("body")

    def fail() -> None:
        raise fault

    scope = Scope()
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            scope.defer(fail)
            raise fault

    assert contexts(caught.value) == [caught.value, fault]


async def test_an_exit_gets_type_error_and_traceback() -> None:
    """`__exit__` is called with the three arguments that a `with` statement passes."""
    got: list[Any] = []

    class Manager:
        def __enter__(self) -> None: ...

        def __exit__(self, *args: object) -> None:
            got.append(args)

    fault = Fault("body")
    with pytest.raises(Fault):
        async with Scope() as scope:
            await scope.enter(Manager())
            raise fault

    assert got == [(Fault, fault, fault.__traceback__ and got[0][2])]


async def test_dunders_are_looked_up_on_the_type() -> None:
    """As by `with`: an `__exit__` set on the instance is not what is called."""
    log: list[str] = []

    class Manager:
        def __enter__(self) -> None:
            log.append("type enter")

        def __exit__(self, *_: object) -> None:
            log.append("type exit")

    manager = Manager()
    manager.__exit__ = lambda *_: log.append("instance")  # type: ignore[method-assign,assignment]
    manager.__enter__ = lambda: log.append("instance")  # type: ignore[method-assign]
    async with Scope() as scope:
        await scope.enter(manager)

    assert log == ["type enter", "type exit"]


async def test_one_that_fails_to_enter_registers_nothing() -> None:
    """The error of an `__aenter__` is raised as it is, and its exit never runs."""
    fault = Fault("enter")

    class Broken(Recorder):
        async def __aenter__(self) -> Recorder:
            raise fault

    broken = Broken()
    async with Scope() as scope:
        with pytest.raises(Fault) as caught:
            await scope.enter(broken)
        held = scope.size

    assert (caught.value, held, broken.seen) == (fault, 0, [])


# Task groups and cancel scopes


async def fail_with(error: BaseException) -> None:
    """A child task that fails."""
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    """A child task that fails as it is cancelled."""
    try:
        await anyio.sleep_forever()
    finally:
        raise error


def leaves(exc: BaseException | None) -> list[BaseException]:
    """The errors in an exception group, however deep."""
    if exc is None:
        return []
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in leaves(inner)]
    return [exc]


class Closers:
    """Plain async closers to stand around managers; they suspend, and tell who ran to the end."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.ended: list[str] = []

    def add(self, name: str) -> None:
        async def close() -> None:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            self.ended.append(name)

        self.scope.defer(close)


async def test_a_task_groups_failing_child_comes_out_as_from_a_plain_async_with() -> None:
    """The child's error cancels the body and comes out in the task group's own group, not as a cleanup failure."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with scope:
            closers.add("outer")
            group = await scope.enter(anyio.create_task_group())
            closers.add("inner")
            group.start_soon(fail_with, fault)
            await anyio.sleep_forever()

    assert (caught.value.exceptions, closers.ended, scope.cleanup_error) == ((fault,), ["inner", "outer"], None)


async def test_a_task_groups_child_that_fails_in_a_clean_body_is_a_cleanup_failure() -> None:
    """Nobody was cancelled, nothing is in flight: what the exit raises is a failure to close."""
    fault = Fault("child")
    scope = Scope()
    release = anyio.Event()

    async def child() -> None:
        await release.wait()
        raise fault

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            group = await scope.enter(anyio.create_task_group())
            group.start_soon(child)
            scope.defer(release.set)

    assert (leaves(caught.value), scope.outcome) == ([fault], Ok(None))


async def test_a_task_groups_child_that_fails_while_a_closer_runs_is_told_once() -> None:
    """The task group cancels the closing task; the closer ends all the same, and the child's error comes out."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with scope:
            closers.add("outer")
            group = await scope.enter(anyio.create_task_group())
            closers.add("inner")

            async def closer() -> None:
                group.start_soon(fail_with, fault)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                closers.ended.append("starter")

            scope.defer(closer)

    await anyio.lowlevel.checkpoint()
    assert (leaves(caught.value), closers.ended) == ([fault], ["starter", "inner", "outer"])


async def test_a_task_group_that_wraps_the_bodys_error_is_no_cleanup_failure() -> None:
    """The body's error comes out in the task group's group; the scope's outcome keeps the error itself."""
    fault = Fault("body")
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with scope:
            closers.add("outer")
            group = await scope.enter(anyio.create_task_group())
            group.start_soon(anyio.sleep_forever)
            closers.add("inner")
            raise fault

    actual = (caught.value.exceptions, scope.outcome, scope.cleanup_error, closers.ended)
    assert actual == ((fault,), Err(fault), None, ["inner", "outer"])


async def test_a_wrapped_body_error_is_the_cause_of_the_cleanup_error() -> None:
    """Body raised, task group wrapped it, a closer failed: the cleanup error is raised from the task group's group."""
    fault, bad = Fault("body"), OSError("closer")

    def fail() -> None:
        raise bad

    with anyio.fail_after(5), pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(fail)
            await scope.enter(anyio.create_task_group())
            raise fault

    error = caught.value
    assert (error.exceptions, leaves(error.__cause__), error.original_result) == ((bad,), [fault], Err(fault))


async def test_nested_task_groups_pass_the_error_on_as_nested_withs_do() -> None:
    """Three task groups wrap the body's error three times."""
    fault = Fault("body")
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with Scope() as scope:
            for _ in range(3):
                await scope.enter(anyio.create_task_group())
            raise fault

    expected: list[Any] = ["ExceptionGroup", "ExceptionGroup", "ExceptionGroup", "Fault"]
    actual: list[Any] = []
    exc: BaseException = caught.value
    while isinstance(exc, BaseExceptionGroup):
        actual.append(type(exc).__name__)
        exc = exc.exceptions[0]
    assert [*actual, type(exc).__name__] == expected


async def test_a_child_may_be_cancelled_by_closing_a_task_groups_cancel_scope_from_a_closer() -> None:
    """The usual way to end background work: a closer that cancels the task group; nothing comes out."""
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5):
        async with scope:
            closers.add("outer")
            group = await scope.enter(anyio.create_task_group())
            group.start_soon(anyio.sleep_forever)
            scope.defer(group.cancel_scope.cancel)
            closers.add("inner")
        await anyio.lowlevel.checkpoint()

    assert (closers.ended, scope.cleanup_error) == (["inner", "outer"], None)


async def test_a_cancel_scope_cancelled_in_the_body_ends_there() -> None:
    """An entered `CancelScope` swallows its own cancellation; the outer closers and managers see nothing of it."""
    scope, outer = Scope(), Recorder()
    closers = Closers(scope)
    with anyio.fail_after(5):
        async with scope:
            await scope.enter(outer)
            closers.add("outer")
            cancel_scope = await scope.enter(anyio.CancelScope())
            closers.add("inner")
            cancel_scope.cancel()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    assert (outer.seen, closers.ended, cancel_scope.cancelled_caught) == ([None], ["inner", "outer"], True)


async def test_a_cancel_scope_cancelled_while_a_closer_runs_ends_there() -> None:
    """The cancellation that was held off goes to the cancel scope whose it is, and leaves no trace behind."""
    scope, outer = Scope(), Recorder()
    closers = Closers(scope)
    with anyio.fail_after(5):
        async with scope:
            await scope.enter(outer)
            closers.add("outer")
            cancel_scope = await scope.enter(anyio.CancelScope())

            async def cancelling() -> None:
                cancel_scope.cancel()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                closers.ended.append("cancelling")

            closers.add("between")
            scope.defer(cancelling)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    assert (outer.seen, closers.ended) == ([None], ["cancelling", "between", "outer"])


async def test_a_cancel_scope_cancelled_while_a_closer_runs_after_the_body_raised() -> None:
    """The body's error passes through the cancelled scope, as with nested `with`s, and nothing is left pending."""
    scope, fault = Scope(), Fault("body")
    closers = Closers(scope)
    with anyio.fail_after(5):
        with pytest.raises(Fault) as caught:
            async with scope:
                closers.add("outer")
                cancel_scope = await scope.enter(anyio.CancelScope())

                async def cancelling() -> None:
                    cancel_scope.cancel()
                    for _ in range(5):
                        await anyio.lowlevel.checkpoint()
                    closers.ended.append("cancelling")

                scope.defer(cancelling)
                raise fault
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    assert (caught.value, closers.ended, caught.value.__context__) == (fault, ["cancelling", "outer"], None)


async def test_an_entered_fail_after_raises_its_timeout_as_itself() -> None:
    """What a cancel scope makes of its own cancellation takes its place: `TimeoutError`, no cleanup failure."""
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5):
        with pytest.raises(TimeoutError):
            async with scope:
                closers.add("outer")
                await scope.enter(anyio.fail_after(0))
                closers.add("inner")
                await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    assert (closers.ended, scope.cleanup_error) == (["inner", "outer"], None)


async def test_an_entered_fail_after_that_runs_out_while_a_closer_runs() -> None:
    """The closer runs to its end; then the timeout comes out as itself."""
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5):
        with pytest.raises(TimeoutError):
            async with scope:
                closers.add("outer")
                limit = await scope.enter(anyio.fail_after(100))

                async def late() -> None:
                    limit.deadline = anyio.current_time() - 1
                    for _ in range(5):
                        await anyio.lowlevel.checkpoint()
                    closers.ended.append("late")

                scope.defer(late)
        await anyio.lowlevel.checkpoint()

    assert (closers.ended, scope.cleanup_error) == (["late", "outer"], None)


async def test_an_entered_move_on_after_that_runs_out_in_the_body() -> None:
    """The body is cut off, nothing is raised, the closers ran."""
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5):
        async with scope:
            closers.add("outer")
            limit = await scope.enter(anyio.move_on_after(0))
            closers.add("inner")
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    assert (closers.ended, limit.cancelled_caught) == (["inner", "outer"], True)


@pytest.mark.parametrize("when", ["body", "closer"])
async def test_an_outer_cancellation_and_a_failing_child_neither_is_lost(when: str) -> None:
    """The outer cancel scope catches its cancellation, and the child's error is told once: raised, or kept."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    raised: list[BaseException] = []
    with anyio.fail_after(5):
        try:
            with anyio.CancelScope() as outer:
                async with scope:
                    closers.add("outer")
                    group = await scope.enter(anyio.create_task_group())
                    closers.add("inner")
                    group.start_soon(fail_when_cancelled, fault)
                    await anyio.wait_all_tasks_blocked()
                    if when == "body":
                        outer.cancel()
                        await anyio.sleep_forever()
                    scope.defer(outer.cancel)
        except ExceptionGroup as exc:
            raised += leaves(exc)

    told = [*leaves(scope.cleanup_error), *raised]
    assert (outer.cancelled_caught, told, closers.ended) == (True, [fault], ["inner", "outer"])


async def test_an_outer_cancellation_after_a_child_has_failed_neither_is_lost() -> None:
    """The task group's own cancellation is in flight as the outer one comes while a closer runs: both arrive."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    raised: list[BaseException] = []
    went_on: list[str] = []
    with anyio.fail_after(5):
        try:
            with anyio.CancelScope() as outer:
                try:
                    async with scope:
                        closers.add("outer")
                        group = await scope.enter(anyio.create_task_group())

                        async def cancelling() -> None:
                            outer.cancel()
                            for _ in range(5):
                                await anyio.lowlevel.checkpoint()
                            closers.ended.append("cancelling")

                        scope.defer(cancelling)
                        group.start_soon(fail_with, fault)
                        await anyio.sleep_forever()
                except ExceptionGroup as exc:
                    raised += [leaf for leaf in leaves(exc) if isinstance(leaf, Fault)]
                await anyio.lowlevel.checkpoint()
                went_on.append("past a checkpoint")
        except ExceptionGroup as exc:
            raised += leaves(exc)

    told = [*leaves(scope.cleanup_error), *raised]
    assert (outer.cancel_called, told, closers.ended, went_on) == (True, [fault], ["cancelling", "outer"], [])


@on_asyncio
@pytest.mark.parametrize("when", ["body", "closer"])
async def test_a_task_cancel_and_a_failing_child_neither_is_lost(when: str) -> None:
    """The same by `task.cancel()`: the task ends cancelled or owes the cancellation, and the child's error is told."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)

    async def work() -> None:
        async with scope:
            closers.add("outer")
            group = await scope.enter(asyncio.TaskGroup())
            closers.add("inner")
            group.create_task(fail_when_cancelled(fault))
            await anyio.wait_all_tasks_blocked()
            if when == "closer":
                scope.defer(task.cancel)
            else:
                task.cancel()
                await asyncio.sleep(100)

    task = asyncio.ensure_future(work())
    with anyio.fail_after(5):
        await asyncio.wait([task])

    assert (task.cancelled(), leaves(scope.cleanup_error), closers.ended) == (True, [fault], ["inner", "outer"])


@on_asyncio
async def test_an_entered_asyncio_timeout_raises_its_timeout_as_itself() -> None:
    """`asyncio.timeout` in a scope with suspending closers around it: `TimeoutError`, and the count is balanced."""
    scope = Scope()
    closers = Closers(scope)
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError):
        async with scope:
            closers.add("outer")
            await scope.enter(asyncio.timeout(0))
            closers.add("inner")
            await asyncio.sleep(100)
    await asyncio.sleep(0)

    assert (closers.ended, task.cancelling(), scope.cleanup_error) == (["inner", "outer"], 0, None)


@on_asyncio
@pytest.mark.parametrize("raises", [False, True], ids=["clean body", "failed body"])
async def test_an_entered_asyncio_timeout_that_runs_out_while_a_closer_runs(raises: bool) -> None:
    """The closer runs to its end, the timeout gets the cancellation that was held off, and turns it into its error."""
    scope = Scope()
    closers = Closers(scope)
    task = asyncio.current_task()
    assert task is not None
    fault = Fault("body")
    with pytest.raises(TimeoutError) as caught:
        async with scope:
            closers.add("outer")
            limit = await scope.enter(asyncio.timeout(None))

            async def late() -> None:
                limit.reschedule(0)
                while not task.cancelling():  # noqa: ASYNC110 (no event tells of it)
                    await asyncio.sleep(0)
                closers.ended.append("late")

            scope.defer(late)
            if raises:
                raise fault
    await asyncio.sleep(0)

    actual = (closers.ended, task.cancelling(), limit.expired(), fault in contexts(caught.value))
    assert actual == (["late", "outer"], 0, True, raises)


@on_asyncio
async def test_an_entered_asyncio_task_groups_failing_child_comes_out_as_itself() -> None:
    """An aborting `asyncio.TaskGroup`, with suspending closers inside and outside of it."""
    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(ExceptionGroup) as caught:
        async with scope:
            closers.add("outer")
            group = await scope.enter(asyncio.TaskGroup())
            closers.add("inner")
            group.create_task(fail_with(fault))  # type: ignore[arg-type]
            await asyncio.sleep(100)
    await asyncio.sleep(0)

    actual = (caught.value.exceptions, closers.ended, task.cancelling(), scope.cleanup_error)
    assert actual == ((fault,), ["inner", "outer"], 0, None)


@on_asyncio
async def test_an_entered_asyncio_task_group_inside_a_timeout_that_runs_out() -> None:
    """A timeout around a task group around a closer: it cancels, the children end, `TimeoutError` comes out."""
    scope = Scope()
    closers = Closers(scope)
    task = asyncio.current_task()
    assert task is not None
    child: list[asyncio.Task[None]] = []
    with pytest.raises(TimeoutError):
        async with scope:
            await scope.enter(asyncio.timeout(0))
            closers.add("outer")
            group = await scope.enter(asyncio.TaskGroup())
            closers.add("inner")
            child.append(group.create_task(asyncio.sleep(100)))
            await asyncio.sleep(100)
    await asyncio.sleep(0)

    assert (closers.ended, task.cancelling(), child[0].cancelled()) == (["inner", "outer"], 0, True)


@on_asyncio
async def test_a_task_cancel_while_a_closer_runs_is_what_an_entered_manager_sees() -> None:
    """The cancellation held off is what the next manager sees, the very one that is raised in the end."""
    scope, outer = Scope(), Recorder()

    async def work() -> None:
        async with scope:
            await scope.enter(outer)
            scope.defer(asyncio.sleep, 0)
            scope.defer(task.cancel)

    task = asyncio.ensure_future(work())
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [type(exc) for exc in outer.seen] == [asyncio.CancelledError]


@on_asyncio
@pytest.mark.skipif(anyio_version < (4, 16), reason="its scopes lost it, in a plain `with` too (anyio issue 1214)")
@pytest.mark.parametrize("kind", [anyio.CancelScope, anyio.create_task_group])
async def test_a_task_cancel_beside_an_entered_scopes_own_cancellation_is_not_lost(kind: Callable[[], Any]) -> None:
    """The body was cancelled by an entered scope, the task itself while a closer runs: the task ends cancelled."""
    scope = Scope()
    closers = Closers(scope)

    async def work() -> None:
        async with scope:
            closers.add("outer")
            entered = await scope.enter(kind())
            closers.add("inner")

            async def cancelling() -> None:
                task.cancel()
                await asyncio.sleep(0)
                closers.ended.append("cancelling")

            scope.defer(cancelling)
            getattr(entered, "cancel_scope", entered).cancel()
            await asyncio.sleep(100)
        await asyncio.sleep(0)

    task = asyncio.ensure_future(work())
    with anyio.fail_after(5):
        await asyncio.wait([task])

    assert (task.cancelled(), closers.ended) == (True, ["cancelling", "inner", "outer"])


@on_asyncio
async def test_a_task_cancel_beside_an_entered_timeout_is_not_lost() -> None:
    """`asyncio.timeout` ran out in the body, the task is cancelled while a closer runs: the task ends cancelled."""
    scope = Scope()
    closers = Closers(scope)

    async def work() -> None:
        async with scope:
            await scope.enter(asyncio.timeout(0))
            closers.add("inner")
            scope.defer(lambda: task.cancel() and None)
            await asyncio.sleep(100)

    task = asyncio.ensure_future(work())
    with anyio.fail_after(5):
        await asyncio.wait([task])

    assert (task.cancelled(), closers.ended) == (True, ["inner"])


@on_asyncio
async def test_a_failing_child_of_an_asyncio_task_group_while_a_closer_runs_after_the_body_raised() -> None:
    """The body's error and the child's are both told, the task group's cancellation is consumed."""
    fault, body_error = Fault("child"), Fault("body")
    scope = Scope()
    task = asyncio.current_task()
    assert task is not None
    raised: BaseException | None = None
    try:
        async with scope:
            group = await scope.enter(asyncio.TaskGroup())

            async def starting() -> None:
                group.create_task(fail_with(fault))  # type: ignore[arg-type]
                while not task.cancelling():  # noqa: ASYNC110 (no event tells of it)
                    await asyncio.sleep(0)

            scope.defer(starting)
            raise body_error
    except Exception as exc:
        raised = exc
    await asyncio.sleep(0)

    told = [*leaves(raised), *contexts(raised)]
    assert (fault in told, body_error in told, task.cancelling()) == (True, True, 0)


async def test_a_cancellation_held_off_goes_to_its_scope_where_the_bodys_error_was_suppressed() -> None:
    """Body raised, a closer cancels an entered scope, a manager inside of that swallows the error: nothing is left."""
    scope = Scope()
    closers = Closers(scope)
    with anyio.fail_after(5):
        async with scope:
            closers.add("outer")
            cancel_scope = await scope.enter(anyio.CancelScope())
            await scope.enter(contextlib.suppress(Fault))

            async def cancelling() -> None:
                cancel_scope.cancel()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                closers.ended.append("cancelling")

            scope.defer(cancelling)
            raise Fault
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    assert (closers.ended, scope.cleanup_error) == (["cancelling", "outer"], None)


async def test_a_context_of_an_outer_handler_is_kept() -> None:
    """A scope inside an `except` block: what an exit raises in a clean body has that exception as its context."""
    handled, fault = Fault("handled"), Fault("exit")
    try:
        raise handled
    except Fault:
        with pytest.raises(ResourceCleanupError):
            async with Scope() as scope:
                await scope.enter(Recorder(error=fault))

    assert fault.__context__ is handled


async def test_raising_a_part_of_a_group_again_forms_no_circle() -> None:
    """One manager wraps the error in a group, the next takes it out again: no context points back to itself."""
    fault = Fault("body")

    class Wraps(Recorder):
        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
            assert isinstance(exc, Exception)
            msg = "wrapped"
            raise ExceptionGroup(msg, [exc])

    class Unwraps(Recorder):
        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
            assert isinstance(exc, ExceptionGroup)
            raise exc.exceptions[0]

    with pytest.raises(Fault) as caught:
        async with Scope() as scope:
            await scope.enter(Unwraps())
            await scope.enter(Wraps())
            raise fault

    assert [type(exc) for exc in contexts(caught.value)] == [Fault, ExceptionGroup]


async def test_raising_again_what_an_inner_manager_made_keeps_its_context() -> None:
    """An exit that raises the exception it sees leaves the contexts as they are."""
    fault = Fault("body")

    class Translates(Recorder):
        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
            try:
                msg = "between"
                raise LookupError(msg) from exc
            except LookupError as between:
                msg = "translated"
                raise OSError(msg) from between

    class RaisesAgain(Recorder):
        async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
            assert exc is not None
            raise exc

    with pytest.raises(OSError, match="translated") as caught:
        async with Scope() as scope:
            await scope.enter(RaisesAgain())
            await scope.enter(Translates())
            raise fault

    assert [type(exc) for exc in contexts(caught.value)] == [OSError, LookupError, Fault]


@on_asyncio
async def test_an_outer_asyncio_timeout_gets_the_cancellation_held_off() -> None:
    """An `asyncio.timeout` around the whole scope runs out while a closer runs: `TimeoutError`, and no stray cancel."""
    task = asyncio.current_task()
    assert task is not None
    ended: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, Scope() as scope:
            await scope.enter(asyncio.TaskGroup())

            async def late() -> None:
                limit.reschedule(0)
                while not task.cancelling():  # noqa: ASYNC110 (no event tells of it)
                    await asyncio.sleep(0)
                ended.append("late")

            scope.defer(late)
    for _ in range(3):
        await asyncio.sleep(0)

    assert (ended, task.cancelling()) == (["late"], 0)


@on_trio
async def test_an_entered_nurserys_failing_child_comes_out_as_itself() -> None:
    """A trio nursery, with suspending closers inside and outside of it."""
    import trio

    fault = Fault("child")
    scope = Scope()
    closers = Closers(scope)
    with pytest.raises(ExceptionGroup) as caught:
        async with scope:
            closers.add("outer")
            nursery = await scope.enter(trio.open_nursery())
            closers.add("inner")
            nursery.start_soon(fail_with, fault)
            await trio.sleep_forever()

    assert (caught.value.exceptions, closers.ended, scope.cleanup_error) == ((fault,), ["inner", "outer"], None)


@on_trio
async def test_an_entered_nursery_cancelled_while_a_closer_runs() -> None:
    """A closer that cancels the nursery: its children end, nothing comes out, and nothing stays pending."""
    import trio

    scope = Scope()
    closers = Closers(scope)
    async with scope:
        closers.add("outer")
        nursery = await scope.enter(trio.open_nursery())
        nursery.start_soon(trio.sleep_forever)
        closers.add("inner")
        scope.defer(nursery.cancel_scope.cancel)
    await trio.lowlevel.checkpoint()

    assert (closers.ended, scope.cleanup_error) == (["inner", "outer"], None)


@on_trio
async def test_nurseries_entered_in_a_scope_are_exited_in_order() -> None:
    """Two nurseries, a cancel scope and a timeout between them: the stack of cancel scopes stays whole."""
    import trio

    fault = Fault("body")
    scope = Scope()
    closers = Closers(scope)
    with pytest.raises(ExceptionGroup) as caught:
        async with scope:
            first = await scope.enter(trio.open_nursery())
            closers.add("outer")
            await scope.enter(trio.CancelScope())
            await scope.enter(trio.open_nursery())
            await scope.enter(trio.fail_after(100))
            closers.add("inner")
            first.start_soon(trio.sleep_forever)
            raise fault

    assert (leaves(caught.value), closers.ended) == ([fault], ["inner", "outer"])


async def test_a_managers_exit_that_is_cut_off_leaves_the_rest_to_run() -> None:
    """An entered manager is exposed to cancellation; the closers outside of it run to their end all the same."""
    scope = Scope()
    closers = Closers(scope)
    cut: list[str] = []

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        yield
        try:
            await anyio.sleep_forever()
        except BaseException:
            cut.append("off")
            raise

    with anyio.fail_after(5), anyio.CancelScope() as outer:
        async with scope:
            closers.add("outer")
            await scope.enter(slow())
            scope.defer(outer.cancel)

    assert (outer.cancelled_caught, cut, closers.ended) == (True, ["off"], ["outer"])


async def test_a_cancelled_body_reaches_every_manager_as_a_cancellation() -> None:
    """Managers on both sides of a plain closer see the cancellation, and it is raised."""
    scope, outer, inner = Scope(), Recorder(), Recorder()
    closers = Closers(scope)
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with scope:
            await scope.enter(outer)
            closers.add("between")
            await scope.enter(inner)
            cancel_scope.cancel()
            await anyio.sleep_forever()

    cancelled = anyio.get_cancelled_exc_class()
    kinds = [isinstance(exc, cancelled) for exc in (*inner.seen, *outer.seen)]
    assert (kinds, closers.ended, cancel_scope.cancelled_caught) == ([True, True], ["between"], True)


async def test_an_error_in_an_exit_does_not_replace_a_cancellation_from_outside() -> None:
    """The cancellation comes out; what the manager raised meanwhile is kept in `cleanup_error`."""
    scope, outer, fault = Scope(), Recorder(), Fault("exit")
    with anyio.fail_after(5), anyio.CancelScope() as cancel_scope:
        async with scope:
            await scope.enter(outer)
            await scope.enter(Recorder(error=fault))
            cancel_scope.cancel()
            await anyio.sleep_forever()

    kept = scope.cleanup_error
    is_cancelled = isinstance(outer.seen[0], anyio.get_cancelled_exc_class())
    assert (cancel_scope.cancelled_caught, kept and kept.exceptions, is_cancelled) == (True, (fault,), True)


# In another task


class TiedToATask:
    """A manager that can only be exited in the task that entered it."""

    async def __aenter__(self) -> Self:
        self.task = anyio.get_current_task().id
        return self

    async def __aexit__(self, *_: object) -> None:
        if anyio.get_current_task().id != self.task:
            msg = "exited in a different task"
            raise RuntimeError(msg)


async def in_another_task(fn: Callable[[], Any]) -> BaseException | None:
    """Await `fn()` in a task of its own, named `the other`, and give what it raised."""
    raised: list[BaseException] = []

    async def run() -> None:
        try:
            await fn()
        except Exception as exc:
            raised.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(run, name="the other")
    return raised[0] if raised else None


async def test_entered_here_and_closed_elsewhere_explains_itself() -> None:
    """The failure is a `WrongTaskError` that names the resource, both tasks, and the mend; its cause is the exit's."""
    scope = Scope()
    closers = Closers(scope)
    closers.add("outer")
    await scope.enter(TiedToATask(), name="client")
    here = anyio.get_current_task().name
    error = await in_another_task(scope.aclose)

    assert isinstance(error, ResourceCleanupError)
    wrong = error.exceptions[0]
    told = [part in str(wrong) for part in ("client", repr(here), "the other", "host")]
    actual = (type(wrong), type(wrong.__cause__), told, closers.ended)
    assert actual == (WrongTaskError, RuntimeError, [True] * 4, ["outer"])


async def test_an_exit_that_works_in_another_task_is_no_failure() -> None:
    """A manager that is not tied to its task may be closed from another one."""
    scope, manager = Scope(), Recorder()
    await scope.enter(manager)
    error = await in_another_task(scope.aclose)

    assert (error, manager.seen) == (None, [None])


@on_asyncio
async def test_an_anyio_task_group_closed_elsewhere_explains_itself() -> None:
    """On asyncio the exit of an anyio task group is tried, fails, and the failure tells why."""
    errors: list[BaseException | None] = []

    async def work() -> None:
        scope = Scope()
        await scope.enter(anyio.create_task_group(), name="group")
        errors.append(await asyncio.ensure_future(in_another_task(scope.aclose)))

    task = asyncio.ensure_future(work())
    await asyncio.wait([task])
    task.exception()
    gc.collect()

    assert isinstance(errors[0], ResourceCleanupError)
    assert [type(exc) for exc in errors[0].exceptions] == [WrongTaskError]


@on_trio
async def test_a_nursery_opened_here_is_not_exited_elsewhere() -> None:
    """On trio, to exit a nursery from another task would crash the run: it is reported and left to its own task."""
    import trio

    scope = Scope()
    closers = Closers(scope)
    closers.add("outer")
    manager = trio.open_nursery()
    nursery = await scope.enter(manager, name="nursery")
    raised: list[BaseException] = []

    async def close() -> None:
        try:
            await scope.aclose()
        except ResourceCleanupError as exc:
            raised.append(exc)

    nursery.start_soon(close)
    await anyio.wait_all_tasks_blocked()
    await manager.__aexit__(None, None, None)

    assert isinstance(raised[0], ResourceCleanupError)
    kinds = [(type(exc), exc.__cause__, "host" in str(exc)) for exc in raised[0].exceptions]
    assert (kinds, closers.ended) == ([(WrongTaskError, None, True)], ["outer"])


async def test_a_body_error_seen_elsewhere_is_no_wrong_task() -> None:
    """`release` from another task of an untied manager that raises: the failure is a failure of the task alone."""
    scope, fault = Scope(), Fault("exit")
    manager = Recorder(error=fault)
    await scope.enter(manager)
    error = await in_another_task(scope.aclose)

    assert isinstance(error, ResourceCleanupError)
    assert leaves(error)[0].__cause__ is fault


# Children


async def test_a_childs_failure_is_seen_by_its_parents_managers_as_the_childs_cleanup_error() -> None:
    """The child's manager failed with nothing in flight: the parent's outer manager sees a `ResourceCleanupError`."""
    outer, fault = Recorder(), Fault("inner")
    scope = Scope()
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            await scope.enter(outer)
            child = scope.child("child")
            await child.enter(Recorder(error=fault), name="manager")

    assert outer.seen == [child.cleanup_error]
    assert [(told.name, leaves(told.exception)) for told in caught.value.failures] == [("child", [fault])]


async def test_a_childs_failure_suppressed_by_a_parents_manager_is_not_raised() -> None:
    """The parent's manager swallows the child's error: the parent ends clean; the child keeps what happened."""
    fault = Fault("inner")
    async with Scope() as scope:
        await scope.enter(contextlib.suppress(Exception))
        child = scope.child("child")
        await child.enter(Recorder(error=fault))

    assert (scope.cleanup_error, leaves(child.cleanup_error)) == (None, [fault])


async def test_a_childs_failure_translated_by_a_parents_manager_keeps_the_childs_name() -> None:
    """The translation stands in the parent's record in place of the child's error."""

    @contextlib.contextmanager
    def translating() -> Iterator[None]:
        try:
            yield
        except ResourceCleanupError as exc:
            msg = "translated"
            raise LookupError(msg) from exc

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(translating(), name="translator")
            child = scope.child("child")
            await child.enter(Recorder(error=Fault("inner")))

    assert [(told.name, type(told.exception)) for told in caught.value.failures] == [("child", LookupError)]


async def test_a_childs_plain_closer_failure_is_seen_by_no_manager_of_the_parent() -> None:
    """What a plain closer of the child fails with is told, and hidden from managers, as in the child itself."""
    outer, fault = Recorder(), Fault("closer")

    def fail() -> None:
        raise fault

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            scope.child("child").defer(fail)

    assert (outer.seen, leaves(caught.value)) == ([None], [fault])


async def test_a_childs_manager_sees_and_suppresses_the_parents_body_error() -> None:
    """A child's managers are nested inside the parent's: one that suppresses hides the error from those."""
    outer, inner, fault = Recorder(), Recorder(suppress=True), Fault("body")
    async with Scope() as scope:
        await scope.enter(outer)
        child = scope.child()
        await child.enter(inner)
        raise fault

    assert (inner.seen, outer.seen, scope.outcome, child.outcome) == ([fault], [None], Err(fault), Err(fault))


async def test_a_childs_task_group_wraps_the_parents_body_error() -> None:
    """A task group entered in a child wraps what the parent's body raised; that is no failure of the child."""
    fault = Fault("body")
    scope = Scope()
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with scope:
            child = scope.child()
            await child.enter(anyio.create_task_group())
            raise fault

    assert (caught.value.exceptions, scope.cleanup_error, child.cleanup_error) == ((fault,), None, None)


async def test_a_childs_unrelated_failure_leaves_the_parents_body_error_in_flight() -> None:
    """Body raised, child's manager failed: the outer manager sees the body's error, and both are told."""
    outer, fault, other = Recorder(), Fault("body"), Fault("other")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(outer)
            child = scope.child("child")
            await child.enter(Recorder(error=other))
            raise fault

    assert (outer.seen, leaves(caught.value), caught.value.__cause__) == ([fault], [other], fault)


async def test_an_earlier_failure_of_the_parent_is_translated_inside_the_child() -> None:
    """The parent's innermost manager failed; a child further out holds one that suppresses: it is off the record."""
    async with Scope() as scope:
        child = scope.child("child")
        await child.enter(contextlib.suppress(Fault))
        await scope.enter(Recorder(error=Fault("inner")))

    assert (scope.cleanup_error, child.cleanup_error) == (None, None)


async def test_a_childs_context_for_a_parents_manager_is_as_nested() -> None:
    """A manager of the parent that fails after the child's did has the child's cleanup error as its context."""
    inner, outer = Fault("inner"), Fault("outer")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.enter(Recorder(error=outer))
            child = scope.child("child")
            await child.enter(Recorder(error=inner))

    assert (caught.value.exceptions, outer.__context__) == ((child.cleanup_error, outer), child.cleanup_error)


async def test_grandchildren_nest_their_failures() -> None:
    """Each level tells of the one below as one `ResourceCleanupError` under that scope's name."""
    fault = Fault("inner")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("root") as scope:
            await scope.child("a").child("b").enter(Recorder(error=fault), name="manager")

    path: list[str] = []
    failure: CloseFailure | None = caught.value.failures[0]
    while failure is not None:
        path.append(failure.name)
        inner = failure.exception
        failure = inner.failures[0] if isinstance(inner, ResourceCleanupError) else None
    assert path == ["a", "b", "manager"]
