"""Every error that rescope raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

    from typing_extensions import TypeIs

    from rescope._result import Result

_LONGEST_REASON = 200


class ScopeClosedError(RuntimeError):
    """The scope is closed, or closing where only an open one will do. Nothing was acquired or registered."""


class WrongTaskError(RuntimeError):
    """A manager that was `enter`ed in one task could not be exited in another.

    Where the manager's own exit was tried, what it raised is the `__cause__`.
    """


class UnwrapError(Exception):
    """`unwrap()` met an `Err` whose error is no exception. It is kept in `error`."""

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return f"unwrap() of an Err that holds a value of type {type(self.error).__name__}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


class CloseRejectedError(UnwrapError):
    """A closer returned an `Err` whose error is no exception. It is kept in `error`."""

    def __str__(self) -> str:
        return f"the closer returned an Err that holds a value of type {type(self.error).__name__}"


class CloseTimeoutError(TimeoutError):
    """A close did not end in time: it was cancelled, forced where it could be, and left behind if need be."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds)
        self.name = name
        self.seconds = seconds

    def __str__(self) -> str:
        return f"closing {self.name} took longer than the {self.seconds:.3g} s it had"


class CloseCancelledError(RuntimeError):
    """A closer raised a cancellation that nobody here had asked for. It is the `__cause__`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"closing {self.name} ended in a cancellation that nobody asked for (does it await a cancelled task?)"


class HostDiedError(RuntimeError):
    """The task of a hosted manager ended before the manager was closed, and left no error of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the task that hosts {self.name} ended before it was closed"


class CloseFailure(NamedTuple):
    """One resource that failed to close: its name, why, after how many seconds, and whether it ran out of time."""

    name: str
    exception: Exception
    elapsed: float
    timed_out: bool = False


class ResourceCleanupError(ExceptionGroup[Exception]):
    """One or more resources failed to close. All the others of the scope were closed.

    `exceptions` (also `errors`) and `failures` stand in the order in which they happened. `original_result` is how the
    body ended: its `Ok(value)` or `Err(error)`. `except* SomeError`, `split` and `subgroup` work as on any
    `ExceptionGroup`, and a part keeps the failures of its own exceptions. (`except* ResourceCleanupError` itself is
    a `TypeError` in Python, as it is for every group: catch it with `except`, or find it with `cleanup_errors`.)
    """

    failures: tuple[CloseFailure, ...]
    original_result: Result[Any, Any] | None
    _scope: str | None
    _attempted: int

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[Exception],
        failures: Iterable[CloseFailure] = (),
        original_result: Result[Any, Any] | None = None,
    ) -> Self:
        """Make one; `cleanup_error` is the usual way, and writes the message."""
        self = super().__new__(cls, message, exceptions)
        self.failures = tuple(failures)
        self.original_result = original_result
        self._scope = None
        self._attempted = len(self.failures)
        return self

    def __init__(
        self,
        message: str,
        exceptions: Sequence[Exception],
        failures: Iterable[CloseFailure] = (),  # noqa: ARG002 (`__new__` keeps it)
        original_result: Result[Any, Any] | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__(message, exceptions)

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The same as `exceptions`."""
        return self.exceptions

    def derive(self, excs: Sequence[Exception], /) -> ResourceCleanupError:  # type: ignore[override]
        """Make the same error of a part of the exceptions; it keeps the failures that belong to them."""
        failures = _failures_of(excs, self.failures)
        if len(failures) < len(excs):
            return ResourceCleanupError(self.message, excs, failures, self.original_result)
        return cleanup_error(failures, self.original_result, scope=self._scope, attempted=self._attempted)


def cleanup_error(
    failures: Sequence[CloseFailure], result: Result[Any, Any] | None, *, scope: str | None, attempted: int
) -> ResourceCleanupError:
    """Build the error that tells of `failures`, of `attempted` closes in the scope of that name."""
    where = f" of scope {scope!r}" if scope is not None else ""
    reasons = "; ".join(f"{failure.name}: {reason(failure.exception)}" for failure in failures)
    message = f"{len(failures)} of {attempted} resources{where} failed to close: {reasons}"
    error = ResourceCleanupError(message, [failure.exception for failure in failures], failures, result)
    error._scope, error._attempted = scope, attempted
    return error


def reason(error: BaseException) -> str:
    """Say in one line what went wrong: the type, and the message where it was written as text.

    An exception made of anything but text (`KeyError(key)`) shows its argument's `repr`, which may hold a password.
    """
    kind = type(error).__name__
    if isinstance(error, ResourceCleanupError):
        return error.message
    if isinstance(error, BaseExceptionGroup):
        return f"{kind} of {', '.join(reason(inner) for inner in error.exceptions)}"
    own = type(error).__module__ == __name__
    text_only = not isinstance(error, KeyError) and all(isinstance(arg, str | int) for arg in error.args)
    try:
        text = " ".join(str(error).split()) if own or text_only else ""
    except Exception:  # its `__str__` is foreign code
        text = ""
    if len(text) > _LONGEST_REASON:
        text = text[: _LONGEST_REASON - 1] + "…"
    return f"{kind}: {text}" if text else kind


def _failures_of(excs: Sequence[Exception], failures: Sequence[CloseFailure]) -> list[CloseFailure]:
    """Find the failure that each exception comes from: itself, or a group that `split` has made smaller."""
    left = list(failures)
    found = []
    for exc in excs:
        leaves = set(_leaves(exc))
        for failure in left:
            if exc is failure.exception or leaves <= set(_leaves(failure.exception)):
                left.remove(failure)
                found.append(CloseFailure(failure.name, exc, failure.elapsed, failure.timed_out))
                break
    return found


def _leaves(exc: BaseException) -> Iterator[int]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield id(exc)


def is_resource_cleanup_error(x: object, /) -> TypeIs[ResourceCleanupError]:
    """Tell whether `x` is a `ResourceCleanupError`, so that type checkers know it too."""
    return isinstance(x, ResourceCleanupError)


def cleanup_errors(exc: BaseException | None, /) -> list[ResourceCleanupError]:
    """Find every `ResourceCleanupError` in an exception.

    Looks at the exception itself, inside groups, and along `__cause__` and `__context__`.
    """
    found: list[ResourceCleanupError] = []
    seen: set[int] = set()
    ahead = [exc]
    while ahead:
        error = ahead.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, ResourceCleanupError):
            found.append(error)
        inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        ahead += [error.__context__, error.__cause__, *reversed(inner)]
    return found
