"""What is in flight while a scope closes: the exception that the next manager sees.

Plain closers never see it, nor add to it: they get the body's outcome. Managers pass it on as nested `with` statements
would. It is one of three things, and which one decides what may become of it:

- what the body raised, as the managers inside have left it (`failure` is None, `exc` an `Exception`);
- a cancellation, or anything else that is no `Exception`: from the body, held off while a closer ran, or out of
  a manager's exit;
- where there was neither: what a manager failed with, so that the ones outside of it roll back (`failure` is its
  record, which goes when an outer manager suppresses it, and changes when one translates it).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rescope._backends import backend
from rescope._result import Err, Result
from rescope._tell import tell_beside
from rescope.exceptions import CloseFailure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rescope.exceptions import ResourceCleanupError


class Failure:
    """A cleanup failure on record; without `exception` it was suppressed after all."""

    __slots__ = ("elapsed", "exception", "name", "timed_out")

    def __init__(self, name: str, exception: Exception, elapsed: float, *, timed_out: bool) -> None:
        self.name = name
        self.exception: Exception | None = exception
        self.elapsed = elapsed
        self.timed_out = timed_out

    def report(self) -> CloseFailure | None:
        if self.exception is None:
            return None
        return CloseFailure(self.name, self.exception, self.elapsed, self.timed_out)


class Flight:
    """The exception in flight, and what must be raised in any case once all is closed."""

    failure: Failure | None = None
    interrupts: tuple[BaseException, ...] = ()
    _since = 0
    _pending: BaseException | None = None

    def __init__(self, exc: BaseException | None) -> None:
        self.exc = exc

    def take(self, exc: BaseException, failure: Failure | None = None) -> None:
        """Let `exc` be what the next manager sees; what it saw until now becomes its context."""
        chain(exc, self.exc)
        self.exc, self.failure, self._since = exc, failure, len(self.interrupts)

    def hold_off(self, exc: BaseException, *, by_scope: bool) -> None:
        """Keep a cancellation that came while closers ran.

        A cancelled scope cancels again later, so where the body has raised, its own exception stays in flight.
        """
        if self.exc is None or self.failure is not None:
            self.take(exc)
        elif not isinstance(self.exc, Exception):
            return
        elif by_scope:
            self._pending = exc
        else:
            self.take(exc)

    def suppressed(self) -> None:
        """A manager swallowed what was in flight; a cancellation that waited behind it comes up."""
        if self.failure is not None:
            self.failure.exception = None
        self.exc = self.failure = None
        pending, self._pending = self._pending, None
        if pending is not None and backend().scope_cancelled():
            self.take(pending)

    def replaced(self, new: BaseException) -> None:
        """A manager made something else of what was in flight."""
        if self.failure is not None:
            self.failure.exception = new if isinstance(new, Exception) else None
            self.failure = self.failure if isinstance(new, Exception) else None
        self.exc = new

    def interrupted(self, new: BaseException) -> None:
        """A manager's exit was cut off. What was in flight is its context, and is kept where nothing may replace it."""
        old, since = self.exc, self._since
        again = old is not None and cancels(old) and cancels(new)
        if old is not None and not isinstance(old, Exception) and not again:
            self.interrupts = (*self.interrupts[:since], old, *self.interrupts[since:])
        self.take(new)
        if again:
            self._since = since

    def failed(self, failure: Failure) -> None:
        """A manager failed; where nothing but such a failure is in flight, the next manager sees this one."""
        if self.exc is None or self.failure is not None:
            self.take(cast("Exception", failure.exception), failure)

    @property
    def cancelled(self) -> bool:
        """Whether the closing task was asked to cancel, as far as can be seen from another task."""
        return self._pending is not None or (self.exc is not None and isinstance(self.exc, backend().Cancelled))

    def interruption(self) -> BaseException | None:
        """Give what no error may replace: an interrupt or exit before anything else, then the first that came."""
        found = list(self.interrupts)
        if self.exc is not None and not isinstance(self.exc, Exception):
            found.insert(self._since, self.exc)
        for exc in found:
            if isinstance(exc, KeyboardInterrupt | SystemExit):
                return exc
        return found[0] if found else None


def cancels(exc: BaseException) -> bool:
    """Tell whether it is a cancellation, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(cancels(inner) for inner in exc.exceptions)
    return isinstance(exc, backend().Cancelled)


def carries(new: BaseException, old: BaseException) -> bool:
    """Tell whether `new` is made of `old`: is it, has it as a cause, contains it, or is a part of it."""
    if any(old is part for part in _parts(new)):
        return True
    return isinstance(old, BaseExceptionGroup) and {*_leaves(new)} <= {*_leaves(old)}


def _parts(exc: BaseException) -> Iterator[BaseException]:
    ahead: list[BaseException] = [exc]
    seen: set[int] = set()
    while ahead:
        part = ahead.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, BaseExceptionGroup):
            ahead += part.exceptions
        if part.__cause__ is not None:
            ahead.append(part.__cause__)


def _leaves(exc: BaseException) -> Iterator[int]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield id(exc)


def three(exc: BaseException | None) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    """Give what an exit takes."""
    return _CLEAN if exc is None else (type(exc), exc, exc.__traceback__)


_CLEAN = (None, None, None)


def chain(exc: BaseException, context: BaseException | None) -> None:
    """Make `context` the context of `exc`, unless it has one or that would close a circle."""
    if context is None or exc.__context__ is not None:
        return
    link: BaseException | None = context
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if link is exc:
            return
        seen.add(id(link))
        link = link.__context__
    exc.__context__ = context


def cut_context(new: BaseException, suppressed: BaseException, outer: BaseException | None) -> None:
    """End the contexts of `new` where nested `with` statements would have ended them.

    After a manager has suppressed what the body raised, the interpreter still handles that while the outer exits run,
    and takes it for the context of what they raise. There it was never seen: what was handled around the body was.
    """
    link: BaseException | None = new
    walked: set[int] = set()
    while link is not None and link is not suppressed and id(link) not in walked:
        walked.add(id(link))
        if link.__context__ is suppressed:
            link.__context__ = outer
            return
        link = link.__context__


def without(new: BaseException, old: BaseException) -> BaseException | None:
    """Give what is left of `new` without all that is made of `old`."""
    if not isinstance(new, BaseExceptionGroup):
        return None if carries(new, old) else new

    def is_old(exc: BaseException) -> bool:
        return not isinstance(exc, BaseExceptionGroup) and carries(exc, old)

    return cast("BaseException | None", new.split(is_old)[1])


def verdict(flight: Flight, error: ResourceCleanupError | None, outcome: Result[Any, Any]) -> BaseException | None:
    """Give what must come out of a close: nothing, what is in flight, or what went wrong."""
    interruption = flight.interruption()
    if interruption is not None:
        chain(interruption, flight.exc)
        chain(interruption, _handled_around(outcome))
        if error is not None:
            tell_beside(interruption, error)
        return interruption
    if error is None:
        return flight.exc
    if flight.exc is not None and flight.failure is None:
        error.__cause__ = error.__context__ = flight.exc
    else:
        chain(error, _handled_around(outcome))
    return error


def _handled_around(outcome: Result[Any, Any]) -> BaseException | None:
    """Give the exception that is being handled around the close, unless it is the body's, which came before."""
    handled = sys.exception()
    return None if isinstance(outcome, Err) and outcome.error is handled else handled


def raise_unchanged(exc: BaseException) -> NoReturn:
    """Raise it with the context it has: Python would take the exception that is being handled around us."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context
