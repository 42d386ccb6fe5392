"""How a closer is found, checked and called."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from functools import partial
from types import CoroutineType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, cast

from rescope._result import Err
from rescope.exceptions import CloseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable


CO_COROUTINE = 0x80
"""As in `inspect`, which takes 4 ms to import."""


def is_coroutine_function(fn: Any) -> bool:
    """Tell whether calling `fn` runs nothing of it yet."""
    while True:
        if type(fn) is FunctionType:
            return fn.__code__.co_flags & CO_COROUTINE != 0
        if type(fn) is MethodType:
            fn = fn.__func__
        elif type(fn) is partial:
            fn = fn.func
        else:
            return False


def reject(result: object) -> None:
    """Raise for a closer that returned an `Err`."""
    if type(result) is Err:
        raise result.error if isinstance(result.error, Exception) else CloseRejectedError(result.error)


async def awaited(result: Awaitable[object]) -> object:
    """Await it: a job runs a coroutine, and a closer may give any awaitable."""
    return await result


def is_awaitable(result: object) -> bool:
    """Tell whether a closer's result is still to be awaited."""
    return type(result) is CoroutineType or isinstance(result, Awaitable)


def bound(release: Callable[[Any], object], value: object) -> Callable[[], object]:
    """Give what calls `release(value)`: a method, which is made and called in half the time of a `partial`."""
    return partial(release, value) if value is None else MethodType(release, value)


def find_closer(value: object) -> Callable[[], object]:
    """Give the value's own `aclose`, else its `close`."""
    if isinstance(value, type):
        msg = f"{value.__qualname__} is a class: add an instance of it, or pass `close=`"
        raise TypeError(msg)
    for name in ("aclose", "close"):
        close = getattr(value, name, None)
        if callable(close):
            return cast("Callable[[], object]", close)
    kind = type(value).__qualname__
    msg = f"a {kind} has neither `aclose` nor `close`: pass `close=`"
    if callable(value):
        msg = f"{name_of(value)} is a {kind}: call it, and add what it gives, or pass `close=`"
    if hasattr(type(value), "__aexit__") or hasattr(type(value), "__exit__"):
        msg = f"a {kind} is a context manager: use `await scope.enter(...)` or `await scope.host(...)`"
    raise TypeError(msg)


def check_value(value: object) -> None:
    """Refuse a coroutine: it closes, but what it would have made is what the caller means."""
    if type(value) is CoroutineType:
        name = value.__qualname__
        value.close()
        msg = f"got the coroutine {name}() for a value: await it first, or use `await scope.acquire(...)`"
        raise TypeError(msg)


def check_callable(fn: object, what: str) -> None:
    """Refuse what can't be called, with the mend for the usual slip."""
    if callable(fn):
        return
    msg = f"`{what}` must be callable, not a {type(fn).__qualname__}"
    if type(fn) is CoroutineType:
        msg = f"`{what}` got the coroutine {fn.__qualname__}(): pass the function itself, without calling it"
        fn.close()
    raise TypeError(msg)


def check_seconds(seconds: object, what: str) -> None:
    """Refuse what is no length of time."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        msg = f"`{what}` must be a number of seconds or None, not a {type(seconds).__qualname__}"
        raise TypeError(msg)
    if seconds < 0 or math.isnan(seconds):
        msg = f"`{what}` must not be negative or NaN, got {seconds}"
        raise ValueError(msg)


def check_options(name: object, timeout: object, force: object) -> None:
    """Refuse options that would only show to be wrong when it is time to close."""
    if name is not None and not isinstance(name, str):
        msg = f"`name` must be a string, not a {type(name).__qualname__}"
        raise TypeError(msg)
    if timeout is not None:
        check_seconds(timeout, "timeout")
    if force is not None:
        check_callable(force, "force")
        if is_coroutine_function(force):
            msg = f"`force` must be sync, and {name_of(force)} is async: it is for when awaiting has failed"
            raise TypeError(msg)


def name_of(fn: object) -> str:
    """Give the name by which a person knows a callable."""
    while isinstance(fn, partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if name and isinstance(name, str) else type(fn).__qualname__


def check_scope(name: object, grace: object, on_event: object) -> None:
    """Refuse options that no scope can have."""
    check_options(name, None, None)
    if grace is not None:
        check_seconds(grace, "grace")
    if on_event is not None:
        check_callable(on_event, "on_event")
        if is_coroutine_function(on_event):
            msg = f"`on_event` must be sync, and {name_of(on_event)} is async: nothing is awaited where events are told"
            raise TypeError(msg)
