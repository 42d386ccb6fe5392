"""`Resource`: a value and its closer, and how a closer is found, checked and called."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable
from functools import partial
from inspect import CO_COROUTINE
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

from rescope import _unwind
from rescope._result import Err, Ok, Result
from rescope._unwind import CLOSED, DETACHED, OPEN, reject
from rescope.exceptions import ScopeClosedError

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from rescope._scope import Scope
    from rescope._unwind import Closing, Unwinding

T = TypeVar("T")
State: TypeAlias = Literal["open", "closing", "closed", "detached"]


class Resource(Generic[T]):
    """A value together with what closes it; also the handle of whatever a scope holds.

    `close` takes no argument and is sync or async (`close=db.close`). `name` is for logs, errors and events; by default
    it is the type of the value, or the closer's own name. `timeout`, in seconds, bounds the close. `force` is a sync last
    resort (`proc.kill`, `transport.abort`): it is called when the close ran out of time.
    """

    __slots__ = ("_close", "_force", "_holder", "_name", "_state", "_timeout", "_value")

    _in_task = False
    """Whether it is bound to the task that registered it."""

    def __init__(
        self,
        value: T,
        close: Callable[[], object],
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
    ) -> None:
        check_callable(close, "close")
        check_options(name, timeout, force)
        self._value = value
        self._close = close
        self._name = name
        self._timeout = timeout
        self._force = force
        self._state: Any = OPEN
        self._holder: weakref.ref[Scope] | None = None

    @property
    def value(self) -> T:
        """What is to be closed."""
        return self._value

    @property
    def name(self) -> str:
        """What it is called in logs, errors and events."""
        return self._name or self._default_name()

    @property
    def state(self) -> State:
        """`"open"`, `"closing"`, `"closed"`, or `"detached"`: taken off its scope, open, and the caller's again."""
        state = self._state
        return cast("State", state if isinstance(state, str) else "closing")

    async def aclose(self) -> None:
        """Close it now, whoever holds it, and take it off. Closing twice closes once.

        Raises `ResourceCleanupError` when that fails. A cancellation waits until the close has ended. Where somebody
        else is closing it, this waits for them, and that wait can be cancelled.
        """
        await _unwind.close_now(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    def _default_name(self) -> str:
        return name_of(self._close) if self._value is None else type(self._value).__qualname__

    def _call(self, outcome: Result[Any, Any]) -> object:  # noqa: ARG002 (for the callbacks that depend on it)
        """Call the closer, in the closing task; async ones give something to be awaited."""
        return self._close()

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None] | None:
        """Start closing; give what is still to be awaited, if anything."""
        result = self._call(unwinding.outcome)
        if result is None:
            return None
        if not is_awaitable(result):
            reject(result)
            return None
        return unwinding.in_time(closing, lambda: awaited(cast("Awaitable[object]", result)))

    def _held_by(self, holder: weakref.ref[Scope]) -> None:
        """Take note of the scope that holds it now."""
        self._holder = holder

    def _let_go(self) -> None:
        """Take it off the scope that holds it, if one does."""
        scope = None if self._holder is None else self._holder()
        self._holder = None
        if scope is not None:
            scope._held.drop(self)


class Callback(Resource[None]):
    """A cleanup without a value that depends on how the body ended."""

    __slots__ = ("_when",)

    def __init__(self, close: Callable[..., object], when: Literal["error", "success", "exit"]) -> None:
        super().__init__(None, close)
        self._when = when

    def _call(self, outcome: Result[Any, Any]) -> object:
        if self._when == "exit":
            return cast("Callable[[object], object]", self._close)(outcome)
        return self._close() if outcome.ok is (self._when == "success") else None


def managed() -> None:
    """Stand where a closer would: what is held here closes in a way of its own."""


async def awaited(result: Awaitable[object]) -> object:
    """Await it: a job runs a coroutine, and a closer may give any awaitable."""
    return await result


def is_awaitable(result: object) -> bool:
    """Tell whether a closer's result is still to be awaited."""
    return type(result) is CoroutineType or isinstance(result, Awaitable)


def is_coroutine_function(fn: object) -> bool:
    """Tell whether calling `fn` runs nothing of it yet."""
    while type(fn) is partial:
        fn = fn.func
    code = getattr(fn, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


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
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


@overload
async def create_resource(
    acquire: Callable[[], Awaitable[T]],
    release: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[T]: ...
@overload
async def create_resource(
    acquire: Callable[[], T],
    release: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[T]: ...
async def create_resource(
    acquire: Callable[[], Any],
    release: Callable[[Any], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[Any]:
    """Acquire something and pair it with what releases it.

    `acquire()` and `release(value)` are sync or async. Whatever `acquire` raises is raised, a cancellation too.
    """
    check_callable(acquire, "acquire")
    check_callable(release, "release")
    check_options(name, timeout, force)
    value = acquire()
    if is_awaitable(value):
        value = await value
    return Resource(value, partial(release, value), name=name, timeout=timeout, force=force)
