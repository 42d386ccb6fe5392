"""A connection that is checked as it is acquired.

The check stands between the opening and the block, as the first lines of the block would: what is opened is left with
what the check raised, the same way as by the block. So a transaction rolls back, a task group ends, and a closer runs
through a cancellation, as they do without a check.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar, cast, final, overload

from rescope import Err, Resource, Scope
from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

__all__ = ["InvalidConnectionError", "validated"]

T = TypeVar("T")


class InvalidConnectionError(Exception):
    """A connection did not pass its check, and has been closed again.

    `connection` and `check` are what the two are called, `reason` is what the check said, and `hint` what its author
    said to look at. The `__cause__` is what the check raised, if it did. `close_error` is what the closing failed with,
    if it did.
    """

    def __init__(self, connection: str, check: str, reason: str, hint: str | None = None) -> None:
        super().__init__(connection, check, reason, hint)
        self.connection = connection
        self.check = check
        self.reason = reason
        self.hint = hint
        self.close_error: Exception | None = None

    def __str__(self) -> str:
        said = f"{self.connection} failed its check {self.check}, which {self.reason}. "
        closed = "It has been closed again."
        if self.close_error is not None:
            closed = f"Closing it again failed too: {reason(self.close_error)}."
        return said + closed + (f" {self.hint}" if self.hint else "")


@overload
def validated(
    cm_or_acquire: AbstractAsyncContextManager[T, Any] | AbstractContextManager[T, Any],
    check: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    hint: str | None = None,
) -> AbstractAsyncContextManager[T, bool | None]: ...
@overload
def validated(
    cm_or_acquire: Callable[[], AbstractAsyncContextManager[T, Any]]
    | Callable[[], Awaitable[AbstractAsyncContextManager[T, Any]]]
    | Callable[[], Resource[T]]
    | Callable[[], Awaitable[Resource[T]]],
    check: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    hint: str | None = None,
) -> AbstractAsyncContextManager[T, bool | None]: ...
@overload
def validated(
    cm_or_acquire: Callable[[], Awaitable[T]],
    check: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    hint: str | None = None,
) -> AbstractAsyncContextManager[T, bool | None]: ...
@overload
def validated(
    cm_or_acquire: Callable[[], T],
    check: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    hint: str | None = None,
) -> AbstractAsyncContextManager[T, bool | None]: ...
def validated(
    cm_or_acquire: Any,
    check: Callable[[Any], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    hint: str | None = None,
) -> AbstractAsyncContextManager[Any, bool | None]:
    """Open a connection, check it, and give it to a block of code; one that fails the check is closed again.

    `cm_or_acquire` is a context manager, or a function, sync or async, that gives a connection when it is called: one
    to be closed by its own `aclose` or `close`, a `Resource`, or a manager to be entered. What an async function gives
    is open already, so there a closer comes before a manager. Each `validated(...)` is for one block.

    `check(connection)`, sync or async, passes unless it raises, or gives something false. `None` passes, as a check
    that only does something gives that; an `Err` fails. It runs in the task that enters. `timeout`, in seconds, bounds
    it, but can't cut off what blocks the thread. `name` is what the connection is called in the error, beside its type.
    `hint` is a sentence for the error, on what to look at.

    Raises `InvalidConnectionError` where the check fails, when the connection is closed: the manager has been left with
    that error. What opening raises comes out itself, and so does a cancellation: where it reaches the check,
    the connection is closed first. No cancellation reaches a closer. A manager is as exposed to them as in a plain
    `async with`; hosted, it isn't. Beyond the check, entering and leaving are those of the manager itself: it sees what
    the block raised, and may suppress it. A closer that fails raises `ResourceCleanupError`.

    Raises `TypeError` or `ValueError` at once for what can't be opened, and for options that can't be. ::

        async with validated(pool.acquire(), ping, timeout=5, hint="Is the VPN up?") as connection:
            await connection.execute("UPDATE ...")
        connection = await scope.enter(validated(connect, ping))
        session = await scope.host(validated(open_session(), ping))
    """
    _refuse_bad_options(check, name, timeout, hint)
    return _validated(_manager_of(cm_or_acquire), _Check(check, name, timeout, hint))


async def _validating(manager: AbstractAsyncContextManager[T, Any], check: _Check) -> AsyncGenerator[T]:
    passed, failed = False, None
    try:
        async with manager as value:
            failed = await check.failure(value)
            if failed is not None:
                raise failed  # noqa: TRY301 (so that what is open is left with it)
            passed = True
            yield value
    except Exception as exc:
        if failed is None:
            raise
        failed.close_error = _besides(exc, failed)
        raise failed from failed.__cause__
    if not passed:  # the manager has suppressed it, but there is nothing to give to a block
        raise failed or check.error(value, "was cancelled by the connection's own manager")


_validating.__qualname__ = "validated"  # what a scope calls it that enters or hosts it
_validated = asynccontextmanager(_validating)


@final
class _Check:
    """What a connection has to pass."""

    __slots__ = ("_check", "_hint", "_name", "_timeout")

    def __init__(
        self, check: Callable[[Any], object], name: str | None, timeout: float | None, hint: str | None
    ) -> None:
        self._check = check
        self._name = name
        self._timeout = timeout
        self._hint = hint

    async def failure(self, value: object) -> InvalidConnectionError | None:
        """Check it, in the time that there is; give the error where it fails."""
        from anyio import move_on_after

        try:
            with move_on_after(self._timeout):
                result = self._check(value)
                if isinstance(result, Awaitable):
                    result = await result
                return self._judge(value, result)
        except Exception as exc:
            return self.error(value, f"raised {reason(exc)}", exc)
        return self.error(value, f"did not end within {self._timeout:.3g} s", TimeoutError())

    def _judge(self, value: object, result: object) -> InvalidConnectionError | None:
        if isinstance(result, Err):
            why = result.error
            if isinstance(why, BaseException):
                return self.error(value, f"gave an Err of {reason(why)}", why)
            return self.error(value, f"gave an Err of a {type(why).__qualname__}")
        if result is None or result:
            return None
        return self.error(
            value, "gave False" if result is False else f"gave a {type(result).__qualname__} that is false"
        )

    def error(self, value: object, why: str, cause: BaseException | None = None) -> InvalidConnectionError:
        """Say that a connection fails, and why."""
        kind = type(value).__qualname__
        connection = f"a {kind}" if self._name is None else f"{self._name} (a {kind})"
        error = InvalidConnectionError(connection, _name_of(self._check), why, self._hint)
        error.__cause__ = cause
        return error


def _besides(exc: Exception, failed: InvalidConnectionError) -> Exception | None:
    """Give what the closing failed with. A task group wraps what it is left with, which is no failure of its own."""
    if exc is failed:
        return None
    if exc.__cause__ is failed:
        exc.__cause__ = None  # it is going to be told by that very error
    if isinstance(exc, ExceptionGroup):
        wrapped, rest = cast("ExceptionGroup[Exception]", exc).split(lambda one: one is failed)
        return exc if wrapped is None else rest
    return exc


# Opening


def _manager_of(given: Any) -> AbstractAsyncContextManager[Any, Any]:
    """Give what opens and closes it."""
    if _is_manager(given):
        return given  # type: ignore[no-any-return]
    if _is_sync_manager(given):
        if _has_closer(given):  # as with a connection of `sqlite3`, which is left without being closed
            kind = type(given).__qualname__
            msg = f"a {kind} is open already, and leaving it may not close it: pass the function that opens it, or {{}}"
            raise TypeError(msg.format("`contextlib.closing(...)` of it"))
        return _entered(given)
    if not callable(given):
        raise TypeError(_slip(given))
    from inspect import isasyncgenfunction, isgeneratorfunction

    if isasyncgenfunction(given) or isgeneratorfunction(given):
        msg = f"{_name_of(given)} is a generator function: decorate it with `@contextlib.asynccontextmanager`"
        raise TypeError(msg)
    return _acquired(given)


@asynccontextmanager
async def _acquired(acquire: Callable[[], Any]) -> AsyncGenerator[Any]:
    """Open it by a function, as `rescope.pool` does: what is still to be entered is, what is open already is closed."""
    called: Any = acquire()
    is_open = not _is_manager(called) and isinstance(called, Awaitable)
    given: Any = await called if is_open else called
    if _is_manager(given) and not (is_open and _has_closer(given)):
        manager = given
    elif _is_sync_manager(given) and not _has_closer(given):
        manager = _entered(given)
    else:
        manager = _held(given, _name_of(acquire))
    async with manager as value:
        yield value


@asynccontextmanager
async def _entered(manager: AbstractContextManager[T, Any]) -> AsyncGenerator[T]:
    with manager as value:
        yield value


@asynccontextmanager
async def _held(given: Any, by: str) -> AsyncGenerator[Any]:
    """Hold what has a closer; one that is async runs through any cancellation."""
    async with Scope() as scope:
        try:
            value = scope.add(given)
        except TypeError as exc:
            msg = f"{by} gave what can't be closed ({exc}): let it give a `Resource(value, close)`"
            raise TypeError(msg) from exc
        yield value


def _is_manager(value: object) -> bool:
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")


def _is_sync_manager(value: object) -> bool:
    return hasattr(type(value), "__enter__") and hasattr(type(value), "__exit__")


def _has_closer(value: object) -> bool:
    return callable(getattr(value, "aclose", None)) or callable(getattr(value, "close", None))


# Bad input


def _slip(given: object) -> str:
    """Say what was meant in place of what can't be opened."""
    expected = "expected a context manager, or a function that opens a connection"
    if isinstance(given, CoroutineType):
        given.close()
        return f"{expected}, got the coroutine {given.__qualname__}(): pass the function itself, without calling it"
    if isinstance(given, AsyncGeneratorType | GeneratorType):
        decorator = "decorate its function with `@contextlib.asynccontextmanager`"
        return f"{expected}, got the generator {given.__qualname__}: {decorator}"
    return f"{expected}, got a {type(given).__qualname__}"


def _refuse_bad_options(check: object, name: object, timeout: object, hint: object) -> None:
    if not callable(check):
        msg = f"`check` must be a function that takes a connection, not a {type(check).__qualname__}"
        if isinstance(check, CoroutineType):
            msg = f"`check` got the coroutine {check.__qualname__}(): pass the function itself, without calling it"
            check.close()
        raise TypeError(msg)
    for text, option in ((name, "name"), (hint, "hint")):
        if text is not None and not isinstance(text, str):
            msg = f"`{option}` must be a string, not a {type(text).__qualname__}"
            raise TypeError(msg)
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        msg = f"`timeout` must be a number of seconds, or None, not a {type(timeout).__qualname__}"
        raise TypeError(msg)
    if not timeout > 0:
        msg = f"`timeout` must be more than 0 s, not {timeout}: leave it out for a check that may take its time"
        raise ValueError(msg)


def _name_of(fn: object) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__qualname__
