"""`with_scope` and `scoped`: a body in a scope of its own.

One rule for both: a `Result` in, a `Result` out; anything else raises.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast, overload

from rescope._closer import check_callable, check_scope, is_awaitable, is_coroutine_function, name_of
from rescope._closing import OPEN
from rescope._flight import raise_unchanged
from rescope._result import Err, Ok
from rescope._scope import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from rescope.events import ScopeEvent
    from rescope.exceptions import ResourceCleanupError

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")
S = TypeVar("S")
P = ParamSpec("P")
Args = TypeVarTuple("Args")


@overload
async def with_scope(
    fn: Callable[[Scope, *Args], Awaitable[Ok[T]]],
    /,
    *args: *Args,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> Ok[T] | Err[ResourceCleanupError]: ...
@overload
async def with_scope(
    fn: Callable[[Scope, *Args], Awaitable[Err[E]]],
    /,
    *args: *Args,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> Err[E | ResourceCleanupError]: ...
@overload
async def with_scope(
    fn: Callable[[Scope, *Args], Awaitable[Ok[T] | Err[E]]],
    /,
    *args: *Args,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> Ok[T] | Err[E | ResourceCleanupError]: ...
@overload
async def with_scope(
    fn: Callable[[Scope, *Args], Awaitable[R]],
    /,
    *args: *Args,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> R: ...
async def with_scope(
    fn: Callable[[Scope, *Args], Awaitable[Any]],
    /,
    *args: *Args,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> Any:
    """Open a scope, await `fn(scope, *args)`, close the scope.

    A body that returns `Ok` or `Err` gets it back when the cleanup is clean, and `Err(ResourceCleanupError)` when it is
    not; a returned `Err` counts as failure for `on_error`. A body that returns anything else gets it back, or
    the `ResourceCleanupError` is raised. What a body raises is raised; where an entered manager suppressed it, `None`
    comes back. Cancellation waits until all is closed, then it is raised. The options are those of `Scope`; the name is
    the function's by default.
    """
    check_callable(fn, "fn")
    label = name_of(fn) if name is None else name
    scope = Scope(label, grace=grace, concurrent=concurrent, on_event=on_event)
    return await _run(scope, partial(_body, fn), args, {})


class _Decorator(Protocol):
    """What `scoped(...)` gives."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[Scope, P], Awaitable[Ok[T]]], /
    ) -> Callable[P, Coroutine[Any, Any, Ok[T] | Err[ResourceCleanupError]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Scope, P], Awaitable[Err[E]]], /
    ) -> Callable[P, Coroutine[Any, Any, Err[E | ResourceCleanupError]]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[Scope, P], Awaitable[Ok[T] | Err[E]]], /
    ) -> Callable[P, Coroutine[Any, Any, Ok[T] | Err[E | ResourceCleanupError]]]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Scope, P], Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, Scope, P], Awaitable[Ok[T]]], /
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Ok[T] | Err[ResourceCleanupError]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, Scope, P], Awaitable[Err[E]]], /
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Err[E | ResourceCleanupError]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, Scope, P], Awaitable[Ok[T] | Err[E]]], /
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Ok[T] | Err[E | ResourceCleanupError]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, Scope, P], Awaitable[R]], /
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]: ...


@overload
def scoped(
    fn: Callable[Concatenate[Scope, P], Awaitable[Ok[T]]], /
) -> Callable[P, Coroutine[Any, Any, Ok[T] | Err[ResourceCleanupError]]]: ...
@overload
def scoped(
    fn: Callable[Concatenate[Scope, P], Awaitable[Err[E]]], /
) -> Callable[P, Coroutine[Any, Any, Err[E | ResourceCleanupError]]]: ...
@overload
def scoped(  # type: ignore[overload-overlap]
    fn: Callable[Concatenate[Scope, P], Awaitable[Ok[T] | Err[E]]], /
) -> Callable[P, Coroutine[Any, Any, Ok[T] | Err[E | ResourceCleanupError]]]: ...
@overload
def scoped(fn: Callable[Concatenate[Scope, P], Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...  # type: ignore[overload-overlap]
@overload
def scoped(
    fn: Callable[Concatenate[S, Scope, P], Awaitable[Ok[T]]], /
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Ok[T] | Err[ResourceCleanupError]]]: ...
@overload
def scoped(
    fn: Callable[Concatenate[S, Scope, P], Awaitable[Err[E]]], /
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Err[E | ResourceCleanupError]]]: ...
@overload
def scoped(
    fn: Callable[Concatenate[S, Scope, P], Awaitable[Ok[T] | Err[E]]], /
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, Ok[T] | Err[E | ResourceCleanupError]]]: ...
@overload
def scoped(
    fn: Callable[Concatenate[S, Scope, P], Awaitable[R]], /
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]: ...
@overload
def scoped(
    *,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> _Decorator: ...
def scoped(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    grace: float | None = None,
    concurrent: bool = False,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> Any:
    """Give an async function a scope of its own for each call, as its first argument; of a method, after `self`.

    Use it as `@scoped`, or with the options of `Scope`, as `@scoped(name=..., grace=...)`; by default the name is
    the function's. What comes back and what is raised follows the rule of `with_scope`.
    """
    check_scope(name, grace, on_event)

    def decorate(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        label = name_of(fn) if name is None else name
        return _decorate(fn, partial(Scope, label, grace=grace, concurrent=concurrent, on_event=on_event))

    return decorate if fn is None else decorate(fn)


def _decorate(fn: Callable[..., Awaitable[Any]], open_scope: Callable[[], Scope]) -> Callable[..., Any]:
    check_callable(fn, "fn")
    if not is_coroutine_function(fn):
        msg = f"`scoped` is for an `async def` function, not for {name_of(fn)}"
        raise TypeError(msg)
    from inspect import signature as signature_of

    signature = signature_of(fn)
    parameters = list(signature.parameters.values())
    place = 1 if parameters and parameters[0].name in {"self", "cls"} else 0
    if len(parameters) <= place:
        msg = f"{name_of(fn)} takes no scope: make it {'its first parameter' if place == 0 else 'the one after `self`'}"
        raise TypeError(msg)

    @wraps(fn)
    async def scoped_call(*args: Any, **kwargs: Any) -> Any:
        return await _run(open_scope(), partial(_insert, fn, place), args, kwargs)

    del parameters[place]
    cast("Any", scoped_call).__signature__ = signature.replace(parameters=parameters)
    return scoped_call


def _insert(
    fn: Callable[..., Awaitable[Any]], place: int, scope: Scope, /, *args: Any, **kwargs: Any
) -> Awaitable[Any]:
    return fn(*args[:place], scope, *args[place:], **kwargs)


def _body(fn: Callable[..., Awaitable[Any]], scope: Scope, *args: Any) -> Awaitable[Any]:
    result = fn(scope, *args)
    if not is_awaitable(result):
        msg = f"{name_of(fn)} must be async: it gave a {type(result).__qualname__}, not something to await"
        raise TypeError(msg)
    return result


async def _run(scope: Scope, body: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
    await scope.__aenter__()
    try:
        value = await body(scope, *args, **kwargs)
    except BaseException as exc:
        if not await scope.__aexit__(type(exc), exc, exc.__traceback__):
            raise
        return None
    return await _close_with(scope, value)


async def _close_with(scope: Scope, value: Any) -> Any:
    """Close the scope of a body that returned."""
    is_result = isinstance(value, Ok | Err)
    if scope._state is not OPEN:
        await scope.aclose()
        return value
    exc = await scope._begin_close(value if is_result else Ok(value), None)
    if exc is None:
        return value
    if is_result and exc is scope.cleanup_error:
        return Err(exc)
    try:
        raise_unchanged(exc)
    finally:
        del exc
