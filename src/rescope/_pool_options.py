"""What a pool takes: two kinds of `open`, and options."""

from __future__ import annotations

from inspect import Parameter, isasyncgenfunction, isgeneratorfunction, signature
from typing import TYPE_CHECKING, Any

from rescope._closer import check_callable, check_seconds, find_closer, is_awaitable, name_of
from rescope._resource import Resource
from rescope.exceptions import ScopeClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._scope import Scope


def opener(open: Callable[..., Any]) -> Callable[[Scope, Any], Awaitable[Any]]:  # noqa: A002 (the pool's name for it)
    """Give what opens a key in a scope."""
    takes_scope = _takes_scope(open)

    async def open_in(scope: Scope, key: object) -> Any:
        if not takes_scope:
            return await _take(scope, open(key), name_of(open))
        value = open(scope, key)
        return await value if is_awaitable(value) else value

    return open_in


def _takes_scope(open: Callable[..., object]) -> bool:  # noqa: A002
    """Tell `open(scope, key)` from `open(key)`, by how many positional parameters it requires."""
    check_callable(open, "open")
    name = name_of(open)
    if isasyncgenfunction(open) or isgeneratorfunction(open):
        msg = f"{name} is a generator function: decorate it with `contextlib.asynccontextmanager`"
        raise TypeError(msg)
    try:
        takes = signature(open)
    except ValueError:  # some builtins don't tell
        return False
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    required = [one for one in takes.parameters.values() if one.kind in positional and one.default is one.empty]
    two = len(required) == 2  # noqa: PLR2004 (a scope and a key)
    try:
        takes.bind(*((None, None) if two else (None,)))
    except TypeError:
        msg = f"{name} can't be called as `open(key)` or `open(scope, key)`: let it require just the one or the two"
        raise TypeError(msg) from None
    return two


async def _take(scope: Scope, given: Any, name: str) -> Any:
    """Let the scope hold what `open(key)` gave.

    A manager comes before what can be awaited: many clients return something that is both, and not yet open. After the
    await it is open, and to enter it would open it again.
    """
    awaited = not _is_manager(given) and is_awaitable(given)
    if awaited:
        given = await given
    if _is_manager(given) and not (isinstance(given, Resource) or (awaited and _has_closer(given))):
        return await scope.host(given)
    handle = given if isinstance(given, Resource) else _resource(given, name)
    try:
        return scope.add(handle)
    except ScopeClosedError:  # it was left behind when the pool closed, and is late
        await handle.aclose()
        raise


def _resource(given: Any, name: str) -> Resource[Any]:
    try:
        return Resource(given, find_closer(given))
    except TypeError as exc:
        msg = f"{name} gave the pool what it can't close ({exc}): give a `Resource(value, close)` instead"
        raise TypeError(msg) from exc


def _is_manager(value: object) -> bool:
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")


def _has_closer(value: object) -> bool:
    return callable(getattr(value, "aclose", None)) or callable(getattr(value, "close", None))


def check_options(idle: object, limit: object, validate: object, label: object) -> None:
    """Refuse options that no pool can have."""
    if idle is not None:
        check_seconds(idle, "idle")
    if isinstance(limit, bool) or not isinstance(limit, int | None):
        msg = f"`limit` must be a whole number or None, not a {type(limit).__qualname__}"
        raise TypeError(msg)
    if limit is not None and limit < 1:
        msg = f"`limit` must be at least 1, got {limit}: to keep none that is not in use, use `idle=0`"
        raise ValueError(msg)
    for option, what in ((validate, "validate"), (label, "label")):
        if option is not None:
            check_callable(option, what)
