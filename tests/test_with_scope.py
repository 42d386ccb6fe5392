"""`with_scope` and `scoped`: a body in a scope of its own."""

from __future__ import annotations

import contextlib
import inspect
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest

from rescope import Err, Ok, ResourceCleanupError, Scope, scoped, with_scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

FAULT = OSError("closing failed")


def fail() -> None:
    """Fail to close."""
    raise FAULT


async def fail_async() -> None:
    """Fail to close, after a checkpoint."""
    await anyio.lowlevel.checkpoint()
    raise FAULT


@asynccontextmanager
async def suppressing() -> AsyncGenerator[None, None]:
    """Swallow what the body raises."""
    with contextlib.suppress(ValueError):
        yield


def by_with_scope(body: Callable[[Scope], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Run a body by the function."""
    return partial(with_scope, body)


def by_scoped(body: Any) -> Callable[[], Awaitable[Any]]:
    """Run a body by the decorator."""
    decorated: Callable[[], Awaitable[Any]] = scoped(body)
    return decorated


def by_scoped_with_options(body: Any) -> Callable[[], Awaitable[Any]]:
    """Run a body by the decorator with options."""
    decorated: Callable[[], Awaitable[Any]] = scoped(name="body", grace=60)(body)
    return decorated


@pytest.fixture(params=[by_with_scope, by_scoped, by_scoped_with_options])
def run_by(request: pytest.FixtureRequest) -> Any:
    """Each of the ways to give a body a scope."""
    return request.param


# The rule: a Result in, a Result out; anything else raises


@pytest.mark.parametrize("value", ["text", None, 0, [Ok(1)], ValueError("returned"), Ok], ids=repr)
async def test_a_plain_value_comes_back(run_by: Any, value: object) -> None:
    """A body that returns anything but a `Result` gets it back."""

    async def body(scope: Scope) -> object:
        scope.defer(anyio.lowlevel.checkpoint)
        return value

    assert await run_by(body)() is value


@pytest.mark.parametrize("result", [Ok(1), Ok(None), Err("no"), Err(ValueError())], ids=repr)
async def test_a_result_comes_back(run_by: Any, result: object) -> None:
    """A body that returns `Ok` or `Err` gets that very one back where cleanup is clean."""

    async def body(scope: Scope) -> object:
        scope.defer(anyio.lowlevel.checkpoint)
        return result

    assert await run_by(body)() is result


async def test_what_the_body_raises_is_raised(run_by: Any) -> None:
    """A body's exception comes out as itself."""
    error = ValueError()

    async def body(scope: Scope) -> None:
        scope.defer(anyio.lowlevel.checkpoint)
        raise error

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        await run_by(body)()

    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_interruption_is_raised(run_by: Any, kind: type[BaseException]) -> None:
    """What is no `Exception` comes out as itself."""

    async def body(scope: Scope) -> None:
        scope.defer(anyio.lowlevel.checkpoint)
        raise kind

    with pytest.raises(kind) as caught:
        await run_by(body)()

    assert type(caught.value) is kind


@pytest.mark.parametrize("closer", [fail, fail_async])
@pytest.mark.parametrize("result", [Ok(1), Err("no")], ids=repr)
async def test_a_result_of_a_failed_cleanup_is_an_err(run_by: Any, result: object, closer: Any) -> None:
    """A body that returned `Ok` or `Err` gets `Err(ResourceCleanupError)` where cleanup failed."""

    async def body(scope: Scope) -> object:
        scope.defer(closer)
        return result

    outcome = await run_by(body)()

    assert (type(outcome), type(outcome.error), outcome.error.exceptions) == (Err, ResourceCleanupError, (FAULT,))


@pytest.mark.parametrize("result", [Ok(1), Err("no")], ids=repr)
async def test_the_bodys_own_result_is_kept(run_by: Any, result: object) -> None:
    """The `ResourceCleanupError` in the `Err` keeps what the body returned."""

    async def body(scope: Scope) -> object:
        scope.defer(fail)
        return result

    outcome = await run_by(body)()

    assert outcome.error.original_result is result


@pytest.mark.parametrize("closer", [fail, fail_async])
async def test_a_failed_cleanup_of_a_plain_value_is_raised(run_by: Any, closer: Any) -> None:
    """A body that returned any other value has the `ResourceCleanupError` raised, which keeps the value."""

    async def body(scope: Scope) -> object:
        scope.defer(closer)
        return "value"

    with pytest.raises(ResourceCleanupError) as caught:
        await run_by(body)()

    assert (caught.value.exceptions, caught.value.original_result) == ((FAULT,), Ok("value"))


async def test_a_failed_cleanup_of_a_body_that_raised_is_raised_from_it(run_by: Any) -> None:
    """A body that raised has the `ResourceCleanupError` raised from its exception."""
    error = ValueError()

    async def body(scope: Scope) -> object:
        scope.defer(fail)
        raise error

    with pytest.raises(ResourceCleanupError) as caught:
        await run_by(body)()

    assert (caught.value.__cause__, caught.value.original_result) == (error, Err(error))


@pytest.mark.parametrize("result", [Ok(1), Err("no"), "value"], ids=repr)
async def test_an_interrupting_closer_goes_before_any_result(run_by: Any, result: object) -> None:
    """A closer's `KeyboardInterrupt` is raised, whatever the body returned."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def body(scope: Scope) -> object:
        scope.defer(interrupt)
        return result

    with pytest.raises(KeyboardInterrupt) as caught:
        await run_by(body)()

    assert type(caught.value) is KeyboardInterrupt


@pytest.mark.parametrize("result", [Ok(1), Err("no"), "value"], ids=repr)
async def test_a_cancellation_while_closing_goes_before_any_result(run_by: Any, result: object) -> None:
    """A cancellation that came while closers ran is raised when all is closed."""
    log: list[str] = []

    with anyio.CancelScope() as cancel:

        async def close() -> None:
            cancel.cancel()
            await anyio.lowlevel.checkpoint()
            log.append("closed")

        async def body(scope: Scope) -> object:
            scope.defer(close)
            return result

        await run_by(body)()
        log.append("went on")

    assert (log, cancel.cancelled_caught) == (["closed"], True)


async def test_a_suppressed_body_gives_none(run_by: Any) -> None:
    """Where an entered manager suppressed what the body raised, `None` comes back."""

    async def body(scope: Scope) -> str:
        await scope.enter(suppressing())
        raise ValueError

    assert await run_by(body)() is None


async def test_a_suppressed_body_whose_cleanup_failed(run_by: Any) -> None:
    """The `ResourceCleanupError` of a suppressed body is raised from nothing, and remembers what was raised."""
    error = ValueError()

    async def body(scope: Scope) -> str:
        await scope.enter(suppressing())
        scope.defer(fail)
        raise error

    with pytest.raises(ResourceCleanupError) as caught:
        await run_by(body)()

    assert (caught.value.__cause__, caught.value.original_result) == (None, Err(error))


@pytest.mark.parametrize(
    ("result", "expected"),
    [(Ok(1), ["success"]), (Err("no"), ["error"]), (None, ["success"]), (0, ["success"]), (False, ["success"])],
    ids=repr,
)
async def test_a_returned_err_counts_as_failure(run_by: Any, result: object, expected: list[str]) -> None:
    """`on_error` runs for a returned `Err`, `on_success` for anything else that is returned."""
    log: list[str] = []

    async def body(scope: Scope) -> object:
        scope.on_error(log.append, "error")
        scope.on_success(log.append, "success")
        return result

    await run_by(body)()

    assert log == expected


@pytest.mark.parametrize(
    ("result", "expected"), [(Ok(1), Ok(1)), (Err("no"), Err("no")), ("value", Ok("value")), (None, Ok(None))], ids=repr
)
async def test_callbacks_get_the_bodys_outcome(run_by: Any, result: object, expected: object) -> None:
    """`on_exit` gets the body's `Result` as it is, and `Ok` of any other value."""
    log: list[object] = []

    async def body(scope: Scope) -> object:
        scope.on_exit(log.append)
        return result

    await run_by(body)()

    assert log == [expected]


@pytest.mark.parametrize("register", ["enter", "host"])
async def test_managers_see_a_returned_err_as_success(run_by: Any, register: Literal["enter", "host"]) -> None:
    """Entered and hosted managers see only what was raised: a returned `Err` exits them as success."""
    log: list[object] = []

    class Manager:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, kind: object, exc: object, traceback: object) -> None:
            log.append((kind, exc, traceback))

    async def body(scope: Scope) -> Err[ValueError]:
        await getattr(scope, register)(Manager())
        return Err(ValueError())

    await run_by(body)()

    assert log == [(None, None, None)]


async def test_a_body_may_close_its_scope_itself(run_by: Any) -> None:
    """What the body returns comes back, also where its scope is closed already."""

    async def body(scope: Scope) -> object:
        await scope.aclose()
        return "value"

    assert await run_by(body)() == "value"


async def test_the_scope_is_closed_before_the_value_comes_back(run_by: Any) -> None:
    """Nothing is left open when the caller goes on."""
    scopes: list[Scope] = []

    async def body(scope: Scope) -> object:
        scopes.append(scope)
        scope.defer(anyio.lowlevel.checkpoint)
        return scope.state

    value = await run_by(body)()

    assert (value, scopes[0].state, scopes[0].size) == ("open", "closed", 0)


async def test_each_call_has_a_scope_of_its_own(run_by: Any) -> None:
    """Calls share nothing, also when they overlap."""
    scopes: list[Scope] = []

    async def body(scope: Scope) -> None:
        scopes.append(scope)
        await anyio.lowlevel.checkpoint()

    call = run_by(body)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        tasks.start_soon(call)

    assert len({id(scope) for scope in scopes}) == 2


# with_scope


async def test_with_scope_passes_the_arguments_on() -> None:
    """The body gets the scope first, then the arguments."""

    async def body(scope: Scope, *args: int) -> tuple[bool, tuple[int, ...]]:
        return type(scope) is Scope, args

    assert await with_scope(body, 1, 2) == (True, (1, 2))


async def test_with_scope_names_the_scope_after_the_body() -> None:
    """The scope's name is that of the function."""

    async def load(scope: Scope) -> str | None:
        return scope.name

    assert (await with_scope(load) or "").endswith("load")


async def test_with_scope_takes_a_partial() -> None:
    """A partial is a fine body; the scope's name is that of the function inside."""

    async def load(scope: Scope, first: int, *, second: int) -> tuple[str, int, int]:
        return (scope.name or "").rpartition(".")[2], first, second

    assert await with_scope(partial(load, second=2), 1) == ("load", 1, 2)


async def test_with_scope_takes_a_lambda() -> None:
    """A plain function that gives something to await is a fine body."""

    async def load(scope: Scope, number: int) -> int:
        return number + scope.size

    assert await with_scope(lambda scope: load(scope, 1)) == 1


async def test_with_scope_takes_a_callable_object() -> None:
    """An object with an async `__call__` is a fine body."""

    class Load:
        async def __call__(self, scope: Scope, number: int) -> int:
            return number + scope.size

    assert await with_scope(Load(), 1) == 1


class Service:
    """A class with bodies among its methods."""

    prefix = "class"

    def __init__(self) -> None:
        self.prefix = "instance"

    async def method(self, scope: Scope, key: str) -> str:
        """A method."""
        return f"{self.prefix} {key} {scope.size}"

    @classmethod
    async def class_method(cls, scope: Scope, key: str) -> str:
        """A class method."""
        return f"{cls.prefix} {key} {scope.size}"

    @staticmethod
    async def static_method(scope: Scope, key: str) -> str:
        """A static method."""
        return f"static {key} {scope.size}"

    @scoped
    async def scoped_method(self, scope: Scope, key: str = "default") -> str:
        """A scoped method."""
        return f"{self.prefix} {key} {scope.size}"

    @scoped(name="service", grace=60)
    async def named_method(self, scope: Scope, key: str = "default") -> tuple[str | None, str]:
        """A scoped method with options."""
        return scope.name, f"{self.prefix} {key}"

    @classmethod
    @scoped
    async def scoped_class_method(cls, scope: Scope, key: str = "default") -> str:
        """A scoped class method."""
        return f"{cls.prefix} {key} {scope.size}"

    @staticmethod
    @scoped
    async def scoped_static_method(scope: Scope, key: str = "default") -> str:
        """A scoped static method."""
        return f"static {key} {scope.size}"


async def test_with_scope_takes_methods() -> None:
    """Bound methods, class methods and static methods are fine bodies."""
    service = Service()

    assert [
        await with_scope(service.method, "a"),
        await with_scope(service.class_method, "b"),
        await with_scope(Service.static_method, "c"),
    ] == ["instance a 0", "class b 0", "static c 0"]


# scoped


async def test_scoped_passes_all_arguments_on() -> None:
    """Positional, keyword-only and variable arguments come after the scope."""

    @scoped  # type: ignore[arg-type]
    async def body(scope: Scope, first: int, *rest: int, key: str, **more: int) -> object:
        return type(scope) is Scope, first, rest, key, more

    assert await body(1, 2, 3, key="k", other=4) == (True, 1, (2, 3), "k", {"other": 4})


async def test_scoped_takes_arguments_by_keyword() -> None:
    """What stands after the scope may be passed by name."""

    @scoped
    async def body(scope: Scope, first: int, second: int = 2) -> tuple[int, int, int]:
        return scope.size, first, second

    assert await body(first=1) == (0, 1, 2)


@pytest.mark.parametrize("keyword", ["fn", "place", "scope", "self", "cls", "name", "args", "label"])
async def test_scoped_clashes_with_no_keyword(keyword: str) -> None:
    """Whatever a function calls its parameters, `scoped` has no claim on the name."""

    @scoped
    async def body(scope: Scope, /, **kwargs: int) -> tuple[int, dict[str, int]]:
        return scope.size, kwargs

    assert await body(**{keyword: 1}) == (0, {keyword: 1})


async def test_scoped_names_the_scope_after_the_function() -> None:
    """The default name is the function's."""

    @scoped
    async def load(scope: Scope) -> str | None:
        return scope.name

    assert (await load() or "").endswith("load")


async def test_scoped_takes_a_name() -> None:
    """`name` is that of each scope."""

    @scoped(name="orders")
    async def load(scope: Scope) -> str | None:
        return scope.name

    assert await load() == "orders"


async def test_scoped_takes_a_grace() -> None:
    """`grace` bounds the cleanup of each call."""

    @scoped(grace=0.01)
    async def load(scope: Scope) -> Ok[int]:
        scope.defer(anyio.sleep_forever)
        return Ok(1)

    outcome: Any = await load()

    assert [failure.timed_out for failure in outcome.error.failures] == [True]


async def test_scoped_works_without_options_in_brackets() -> None:
    """`@scoped()` is the same as `@scoped`."""

    @scoped()
    async def load(scope: Scope, number: int) -> int:
        return number + scope.size

    assert await load(1) == 1


async def test_scoped_works_on_methods() -> None:
    """On a method, the scope is the parameter after `self`."""
    service = Service()

    assert [await service.scoped_method("a"), await service.scoped_method(key="b"), await service.scoped_method()] == [
        "instance a 0",
        "instance b 0",
        "instance default 0",
    ]


async def test_scoped_works_on_methods_called_on_the_class() -> None:
    """A method that is called on its class takes the instance first, as any does."""
    assert await Service.scoped_method(Service(), "a") == "instance a 0"


async def test_scoped_works_on_methods_with_options() -> None:
    """Options change nothing about where the scope goes."""
    assert await Service().named_method("a") == ("service", "instance a")


async def test_scoped_works_on_class_methods() -> None:
    """Under `@classmethod`, called on the class or an instance."""
    assert [await Service.scoped_class_method("a"), await Service().scoped_class_method(key="b")] == [
        "class a 0",
        "class b 0",
    ]


async def test_scoped_works_on_static_methods() -> None:
    """Under `@staticmethod`, called on the class or an instance."""
    assert [await Service.scoped_static_method("a"), await Service().scoped_static_method(key="b")] == [
        "static a 0",
        "static b 0",
    ]


async def test_scoped_works_on_methods_bound_late() -> None:
    """A bound method can be kept, and called later."""
    call = Service().scoped_method

    assert await call("a") == "instance a 0"


async def test_scoped_works_inside_of_scoped() -> None:
    """Scopes of nested calls are closed from the inside out."""
    log: list[str] = []

    @scoped
    async def inner(scope: Scope) -> None:
        scope.defer(log.append, "inner")

    @scoped
    async def outer(scope: Scope) -> None:
        scope.defer(log.append, "outer")
        await inner()

    await outer()

    assert log == ["inner", "outer"]


async def test_a_scoped_function_can_be_a_body() -> None:
    """`with_scope` calls a scoped function with a scope like any argument."""

    @scoped
    async def inner(scope: Scope, outer: Scope) -> tuple[bool, int]:
        return scope is outer, scope.size

    assert await with_scope(inner) == (False, 0)


def test_the_signature_is_what_the_caller_passes() -> None:
    """`inspect.signature` shows the parameters without the scope."""

    @scoped
    async def load(scope: Scope, key: str, *, deep: bool = False) -> int:
        return scope.size + len(key) + deep

    assert list(inspect.signature(load).parameters) == ["key", "deep"]


def test_the_signature_of_a_method_keeps_self() -> None:
    """`self` is there on the class, and gone on an instance, as of any method."""
    found = [list(inspect.signature(fn).parameters) for fn in (Service.scoped_method, Service().scoped_method)]

    assert found == [["self", "key"], ["key"]]


def test_a_scoped_function_is_a_coroutine_function() -> None:
    """Frameworks that ask see an async function."""
    assert [
        inspect.iscoroutinefunction(Service.scoped_method),
        inspect.iscoroutinefunction(Service().named_method),
    ] == [
        True,
        True,
    ]


def test_a_scoped_function_keeps_its_name_and_docstring() -> None:
    """`scoped` wraps: name, docstring and the function itself can be found."""
    found: Any = Service.scoped_method

    assert (found.__name__, found.__qualname__, found.__doc__, found.__wrapped__ is found) == (
        "scoped_method",
        "Service.scoped_method",
        "A scoped method.",
        False,
    )
