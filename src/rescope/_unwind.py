"""One pass over what is held: order, outcome, failures.

Who may be cancelled where. The closing task calls sync closers and exits entered managers, which are as exposed there
as in a plain `async with`. All that is async besides runs in jobs, tasks of their own that no cancellation of the
closing task reaches; while it waits for one, the closing task absorbs what comes and hands it to the `Flight`. So
nothing but a closer itself can cut a closer short, and the pass always comes to its end.

`_closing` tells, to a closer and to every task that one starts, what is being closed around it, so that closing the
same from there returns at once instead of waiting for itself.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rescope._backends import backend
from rescope._budget import Budget, least, run_out
from rescope._flight import Failure, Flight, chain
from rescope._held import Held
from rescope._result import Err, Ok, Result
from rescope._tell import tell_beside
from rescope.exceptions import CloseCancelledError, CloseRejectedError, cleanup_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._backends import Job
    from rescope._resource import Resource
    from rescope._scope import Scope
    from rescope._tell import Teller
    from rescope.events import EventKind
    from rescope.exceptions import ResourceCleanupError

# A resource or scope that closes has the state CLOSING, or the event that those set up who wait for the end.
OPEN, CLOSING, CLOSED, DETACHED = "open", "closing", "closed", "detached"

SUCCESS: Ok[None] = Ok(None)

_closing: ContextVar[Closing | None] = ContextVar("rescope_closing", default=None)


class Closing:
    """A close that is under way: of one resource, in a scope's unwinding or by itself, inside of `outer`."""

    __slots__ = ("outer", "resource", "scope", "since")

    def __init__(self, scope: Scope | None, outer: Closing | None) -> None:
        self.scope = scope
        self.outer = outer
        self.resource: Resource[Any] = None  # type: ignore[assignment]
        self.since = 0.0


def inside(x: Resource[Any] | Scope) -> bool:
    """Tell whether this runs, directly or in a task started from there, within the closing of `x`."""
    closing = _closing.get()
    while closing is not None:
        if x is closing.scope or x is closing.resource:
            return True
        closing = closing.outer
    return False


async def ended(x: Resource[Any] | Scope) -> None:
    """Wait until somebody else has closed `x`."""
    if x._state is CLOSING:
        x._state = backend().Event()
    await x._state.wait()


def close_state(x: Resource[Any] | Scope) -> None:
    """Let `x` be closed, and wake those who wait for that."""
    state, x._state = x._state, CLOSED
    if state is not CLOSING:
        state.set()


def reject(result: object) -> None:
    """Raise for a closer that returned an `Err`."""
    if type(result) is Err:
        raise result.error if isinstance(result.error, Exception) else CloseRejectedError(result.error)


class Unwinding:
    """One pass over `held`. A resource's `_begin` is asked how it is closed; the rest is the same for all kinds."""

    __slots__ = (
        "attempted",
        "budget",
        "closings",
        "concurrent",
        "failures",
        "flight",
        "held",
        "outcome",
        "scope",
        "teller",
    )

    def __init__(
        self,
        held: Held,
        outcome: Result[Any, Any],
        flight: Flight,
        *,
        scope: Scope | None = None,
        teller: Teller | None = None,
        grace: float | None = None,
        concurrent: bool = False,
    ) -> None:
        self.held = held
        self.outcome = outcome
        self.flight = flight
        self.scope = scope
        self.teller = teller
        self.concurrent = concurrent
        self.budget = None if grace is None else Budget(grace)
        self.failures: list[Failure] = []
        self.closings: list[Closing] = []
        self.attempted = 0

    async def run(self) -> None:
        """Close all that is held, and what is registered meanwhile."""
        closing = Closing(self.scope, _closing.get())
        token = _closing.set(closing)
        self.closings = [closing]
        try:
            while self.held:
                if self.concurrent:
                    await self._all_at_once(closing)
                else:
                    await self._next(closing)
        finally:
            _closing.reset(token)

    async def _next(self, closing: Closing) -> None:
        resource = self.held.take()
        if resource._state is not OPEN:
            await self._beside(closing, resource)
            return
        rest = self._begin(closing, resource)
        if rest is not None:
            await self._end(closing, rest)

    async def _all_at_once(self, outer: Closing) -> None:
        jobs = []
        for resource in reversed(list(self.held.values())):
            self.held.drop(resource)
            closing = Closing(self.scope, outer)
            self.closings.append(closing)
            if resource._state is not OPEN:
                jobs.append(backend().start(partial(self._beside, closing, resource)))
                continue
            outer.resource = resource
            rest = self._begin(closing, resource)
            if rest is not None:
                jobs.append(backend().start(partial(self._apart, closing, rest)))
        for job in jobs:
            await backend().finish(job, self.flight)
        del self.closings[1:]

    async def _apart(self, closing: Closing, rest: Awaitable[None]) -> None:
        _closing.set(closing)
        await self._end(closing, rest)

    def _begin(self, closing: Closing, resource: Resource[Any]) -> Awaitable[None] | None:
        """Start one close, in the closing task. What is still to be awaited comes back."""
        resource._state = CLOSING
        closing.resource = resource
        closing.since = perf_counter()
        self.attempted += 1
        self.tell("closing", closing)
        try:
            rest = resource._begin(self, closing)
        except BaseException as exc:
            self.failed(closing, exc)
            rest = None
        if rest is None:
            self._closed(closing)
        return rest

    async def _end(self, closing: Closing, rest: Awaitable[None]) -> None:
        try:
            await rest
        except BaseException as exc:
            self.failed(closing, exc)
        self._closed(closing)

    def _closed(self, closing: Closing) -> None:
        resource = closing.resource
        resource._let_go()
        close_state(resource)
        self.tell("closed", closing, elapsed=perf_counter() - closing.since)

    async def _beside(self, closing: Closing, resource: Resource[Any]) -> None:
        """Wait for a resource that somebody else is closing; what it fails with is raised to them."""
        if not inside(resource):
            closing.resource = resource
            closing.since = perf_counter()
            await self.in_time(closing, partial(ended, resource))

    async def in_time(self, closing: Closing, fn: Callable[[], Awaitable[object]]) -> None:
        """Run `fn` as a job, for as long as this close may take, and put on record how it failed."""
        job = backend().start(fn)
        error = await self.within(closing, job)
        if error is not None:
            self.failed(closing, error, asked=job.asked)
        else:
            reject(job.value)

    async def within(self, closing: Closing, job: Job) -> BaseException | None:
        """Wait for a job for as long as this close may take; give what it raised."""
        seconds = self.limit(closing.resource._timeout)
        if await backend().finish(job, self.flight, seconds):
            return job.take_error()
        await run_out(self, closing, job, cast("float", seconds))
        return None

    def limit(self, timeout: float | None) -> float | None:
        """Give the seconds that one close may take now, `None` for as long as it likes."""
        if self.budget is None:
            return timeout
        last = self.concurrent or not self.held
        return least(timeout, self.budget.left() if last else self.budget.left() / 2)

    def failed(
        self, closing: Closing, exc: BaseException, *, asked: bool = False, timed_out: bool = False
    ) -> Failure | None:
        """Put on record that a close failed; what is no `Exception` is kept, to be raised when all is closed."""
        exc = self._named(closing, exc, asked=asked)
        elapsed = perf_counter() - closing.since
        self.tell("failed", closing, elapsed=elapsed, error=exc)
        if not isinstance(exc, Exception):
            self.flight.interrupts.append(exc)
            return None
        failure = Failure(closing.resource.name, exc, elapsed, timed_out=timed_out)
        self.failures.append(failure)
        return failure

    def _named(self, closing: Closing, exc: BaseException, *, asked: bool) -> BaseException:
        """Make a cancellation that nobody asked for a failure like any other."""
        if asked or not self.nobody_asked(exc):
            return exc
        error = CloseCancelledError(closing.resource.name)
        error.__cause__ = exc
        return error

    def nobody_asked(self, exc: BaseException) -> bool:
        """Tell whether this is a cancellation that nobody asked of this task or of the closing one."""
        if isinstance(exc, Exception) or not isinstance(exc, backend().Cancelled):
            return False
        return not (self.flight.cancelled or backend().pressure())

    def tell(
        self,
        kind: EventKind,
        closing: Closing,
        *,
        elapsed: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Tell `on_event`, if there is one."""
        if self.teller is not None:
            self.teller.tell(kind, closing.resource.name, elapsed=elapsed, error=error)

    def error(self) -> ResourceCleanupError | None:
        """Make one error of all that failed and was not suppressed."""
        failures = [report for failure in self.failures if (report := failure.report()) is not None]
        name = None if self.scope is None else self.scope.name
        return cleanup_error(failures, self.outcome, scope=name, attempted=self.attempted) if failures else None


async def close_now(resource: Resource[Any]) -> None:
    """Close one resource by itself, as on success, and take it off the scope that holds it."""
    if resource._state is CLOSED:
        return
    if resource._state is not OPEN and resource._state is not DETACHED:
        if not inside(resource):
            await ended(resource)
        return
    scope = None if resource._holder is None else resource._holder()
    unwinding = Unwinding(Held(), SUCCESS, Flight(None), teller=None if scope is None else scope._teller)
    unwinding.held.keep(resource)
    resource._state = OPEN
    await unwinding.run()
    raise_verdict(unwinding.flight, unwinding.error())


def verdict(flight: Flight, error: ResourceCleanupError | None) -> BaseException | None:
    """Give what must come out of a close: nothing, what is in flight, or what went wrong."""
    interruption = flight.interruption()
    if interruption is not None:
        chain(interruption, flight.exc)
        if error is not None:
            tell_beside(interruption, error)
        return interruption
    if error is None:
        return flight.exc
    error.__cause__ = error.__context__ = flight.exc if flight.failure is None else None
    return error


def raise_verdict(flight: Flight, error: ResourceCleanupError | None) -> None:
    """Raise what must come out of a close, if anything."""
    exc = verdict(flight, error)
    if exc is not None:
        raise_unchanged(exc)


def raise_unchanged(exc: BaseException) -> NoReturn:
    """Raise it with the context it has: Python would take the exception that is being handled around us."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context


def enter_closing(closing: Closing | None) -> None:
    """Let the current task know that it works for a close."""
    _closing.set(closing)
