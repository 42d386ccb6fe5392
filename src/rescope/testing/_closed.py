"""Telling whether things are closed."""

from __future__ import annotations

from types import CoroutineType

from rescope._resource import Resource
from rescope._scope import Scope
from rescope._trace import traced_name
from rescope.testing._faulty import FaultyResource


def assert_all_closed(*things: object) -> None:
    """Raise an `AssertionError` that names each of these which is not closed, and says how it is.

    A `Scope` must be closed, and nothing in it may have failed to close. If it isn't, the error shows what it holds,
    and the line that registered each, where that is recorded (by the pytest plugin, or with `RESCOPE_TRACE=1`).
    A `Resource`, the handle of what a scope holds, must be in state `"closed"`. Of anything else, `is_closed` or
    `closed` must be true, an attribute or a method: so files, a `FaultyResource` and the clients of httpx and aiohttp
    can be asked. Raises `TypeError` for what has neither, and without arguments::

        async def test_all_is_closed():
            async with Scope() as scope:
                database = scope.add(FaultyResource("database"))
                handles = scope.resources
            assert_all_closed(scope, *handles, database)
    """
    __tracebackhide__ = True  # by pytest: the failure is in the test
    if not things:
        msg = "nothing to assert: pass scopes, handles or values (`resources` of a scope that is closed is empty)"
        raise TypeError(msg)
    left = [problem for thing in things if (problem := _problem(thing)) is not None]
    if left:
        lines = [f"{len(left)} of {len(things)} not closed:", *left]
        raise AssertionError("\n".join(lines).replace("\n", "\n  "))


def _problem(thing: object) -> str | None:
    """Tell what is left to do; never by a value's `repr`, which may hold a password."""
    if isinstance(thing, Scope):
        if thing.state != "closed":
            return thing.describe()
        return None if thing.cleanup_error is None else thing.cleanup_error.message
    if isinstance(thing, Resource):
        return None if thing.state == "closed" else f"{traced_name(thing)}: {thing.state}"
    if _is_closed(thing):
        return None
    return repr(thing) if isinstance(thing, FaultyResource) else f"{type(thing).__qualname__}: open"


def _is_closed(value: object) -> bool:
    kind = type(value).__qualname__
    for name in ("is_closed", "closed"):
        found = getattr(value, name, None)
        if found is None:
            continue
        closed = found() if callable(found) else found
        if isinstance(closed, int):
            return closed != 0
        if isinstance(closed, CoroutineType):
            closed.close()
        msg = f"`{name}` of a {kind} gives a {type(closed).__qualname__}, not a bool: assert on it by yourself"
        raise TypeError(msg)
    msg = f"a {kind} has neither `is_closed` nor `closed`: pass its handle, or the scope that held it"
    raise TypeError(msg)
