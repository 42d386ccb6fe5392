"""Cleanups by name: what a process that finds a token can do about it."""

from __future__ import annotations

from inspect import isasyncgenfunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, TypeVar

from rescope._closer import check_callable, is_awaitable, name_of, reject
from rescope.workflow.store import check_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    Clean: TypeAlias = Callable[[Any], object]

__all__ = ["begin", "cleanup", "find", "find_name", "known", "run"]

F = TypeVar("F", bound="Clean")

_registered: dict[str, Clean] = {}


def cleanup(name: str, /) -> Callable[[F], F]:
    """Register a function, sync or async, as the cleanup of that name: it takes a token, and sees that nothing is left.

    It must be idempotent: it may meet what was never made, or is gone already, and may be run again after a crash. It
    has failed where it raises, or gives an `Err`. The token comes as JSON has it: tuples as lists. The name is what the
    journal knows, for as long as there are records: to rename a cleanup, decorate it with both names, the new one on
    top. ::

        @cleanup("vm.delete")
        async def delete_vm(token):
            await cloud.delete_if_exists(token)

    Gives back the function. Raises `ValueError` for a name that is registered already, `TypeError` for what is no
    cleanup.
    """
    if callable(name):
        msg = f"`cleanup` needs a name: `@cleanup({name_of(name)!r})` above the function"
        raise TypeError(msg)
    try:
        check_key(name)
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("a key", "the name of a cleanup", 1)) from None

    def register(fn: F) -> F:
        check_callable(fn, "fn")
        if isgeneratorfunction(fn) or isasyncgenfunction(fn):
            msg = f"{name_of(fn)} is a generator function: calling it runs nothing, so it cleans nothing up"
            raise TypeError(msg)
        if name in _registered:
            msg = f"a cleanup {name!r} is registered already, {name_of(_registered[name])}: take another name"
            raise ValueError(msg)
        _registered[name] = fn
        return fn

    return register


def find(name: str) -> Clean | None:
    """Give the cleanup of that name, if there is one."""
    return _registered.get(name)


def known(name: str) -> Clean:
    """Give the cleanup of a name that was found."""
    return _registered[name]


def find_name(given: object) -> str:
    """Give the name of what is given as a cleanup: the name itself, or the function, by the name it got last."""
    if isinstance(given, str):
        if given in _registered:
            return given
        msg = f'there is no cleanup {given!r}: decorate a function with `@cleanup("{given}")`, and import its module'
        raise ValueError(msg)
    check_callable(given, "cleanup")
    for name, fn in reversed(_registered.items()):
        if fn == given:
            return name
    msg = f'{name_of(given)} is no cleanup: decorate it with `@cleanup("a.name")`, so that other processes find it'
    raise ValueError(msg)


async def run(fn: Clean, token: Any) -> None:
    """Run it; raise what it fails with."""
    await begin(fn, token)


def begin(fn: Clean, token: Any) -> Awaitable[None]:
    """Call it, here and now; give what is still to be awaited, which raises what it fails with."""
    try:
        return _end(fn(token), None)
    except BaseException as exc:
        return _end(None, exc)


async def _end(result: object, error: BaseException | None) -> None:
    try:
        if error is not None:
            raise error
    finally:
        del error
    reject(await result if is_awaitable(result) else result)  # type: ignore[misc]
