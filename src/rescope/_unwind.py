"""One pass over what is held: order, outcome, failures.

Who may be cancelled where. The closing task calls sync closers and exits entered managers, which are as exposed there
as in a plain `async with`. All that is async besides runs in jobs, tasks of their own that no cancellation of the
closing task reaches; while it waits for one, the closing task absorbs what comes and hands it to the `Flight`. So
nothing but a closer itself can cut a closer short, and the pass always comes to its end.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from rescope._backends import backend
from rescope._budget import Budget, least, run_out
from rescope._closer import reject
from rescope._closing import (
    CLOSED,
    CLOSING,
    DETACHED,
    OPEN,
    Closing,
    apart,
    around,
    begin_within,
    end,
    end_within,
    ended,
    host_within,
    inside,
)
from rescope._flight import Failure, Flight, raise_unchanged, verdict
from rescope._held import Held, Raised
from rescope._result import Ok, Result
from rescope._slow import unwatch, watch
from rescope.exceptions import CloseCancelledError, cleanup_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._backends import Job
    from rescope._resource import Resource
    from rescope._scope import Scope
    from rescope._tell import Teller
    from rescope.events import EventKind
    from rescope.exceptions import ResourceCleanupError

SUCCESS: Ok[None] = Ok(None)


class Unwinding(Closing):
    """One pass over what a scope holds; itself the closing of what it is at.

    How a kind of resource is closed is asked of its `_begin`. Plain ones go straight: `Held.close_plain` and `_batch`
    call their closers without asking.
    """

    __slots__ = ("__dict__", "_flight", "attempted", "outcome")

    # What few closings need stands here until they do.
    began = 0.0
    budget: Budget | None = None
    closings: tuple[Closing, ...] = ()
    concurrent = False
    error: ResourceCleanupError | None = None
    failures: tuple[Failure, ...] = ()
    teller: Teller | None = None

    def __init__(
        self, scope: Scope | None, outcome: Result[Any, Any], flight: Flight | None, attempted: int = 1
    ) -> None:
        self.scope = scope
        self.resource = None
        self.outer = around.get()
        self.outcome = outcome
        self.attempted = attempted
        self._flight = flight

    def seen(self) -> BaseException | None:
        """Give the exception in flight, if any."""
        return None if self._flight is None else self._flight.exc

    @property
    def flight(self) -> Flight:
        """What is in flight."""
        if self._flight is None:
            self._flight = Flight(None)
        return self._flight

    async def run(self, held: Held) -> None:
        """Close all that is held, and what is registered meanwhile."""
        straight = self.straight()
        token = begin_within(self)
        try:
            while True:
                if straight:
                    await close_straight(held, self.flight)
                if held.left is not None:
                    await self._see_to_left(held)
                elif not held.places:
                    break
                elif self.concurrent:
                    await self._all_at_once(held)
                else:
                    await self._close_last(held)
        finally:
            end_within(token)

    def straight(self) -> bool:
        """Tell whether plain closers may be called without asking."""
        return self.budget is None and self.teller is None and not self.concurrent

    async def _see_to_left(self, held: Held) -> None:
        """See to what closing straight could not: what one raised, or gave that is no coroutine."""
        left, held.left = held.left, None
        resource = self.resource = held.resource
        self.since = held.since
        try:
            if type(left) is Raised:
                resource._has_raised(self, left)
            elif (rest := resource._rest(self, self, left)) is not None:
                await rest
        except BaseException as exc:
            self.failed(resource, exc, self.elapsed())
        self.closed(self)

    async def _close_last(self, held: Held) -> None:
        """Close the last one, whatever kind it is of."""
        resource = held.places[-1]
        if resource._state is CLOSED:
            held.trim()
        elif resource._state is not held:
            held.pass_over()
            await self._wait_beside(Closing(self.scope, resource, self))
        else:
            held.places.pop()
            resource._state = CLOSING
            self.resource = held.resource = resource
            rest = self.begin(self)
            if rest is not None:
                await self.finish(self, rest)

    async def _all_at_once(self, held: Held) -> None:
        mine = [resource for resource in held.places if resource._state is held]
        others = [resource for resource in held.handles() if resource._state is not held]
        self.closings = tuple(Closing(self.scope, resource, self) for resource in reversed(mine))
        for resource in mine:
            resource._state = CLOSING
        held.places.clear()
        held.gone = -len(others)
        jobs = [backend().start(partial(self._wait_beside, Closing(self.scope, other, self))) for other in others]
        for closing in self.closings:
            self.resource = closing.resource
            if (rest := self.begin(closing)) is not None:
                jobs.append(backend().start(partial(self._apart, closing, rest)))
        self.resource = None
        for job in jobs:
            await backend().finish(job, self.flight)
        for closing in self.closings:
            closing.scope = closing.resource = None
        self.closings = ()

    async def _apart(self, closing: Closing, rest: Awaitable[None]) -> None:
        around.set(closing)
        await self.finish(closing, rest)

    def begin(self, closing: Closing) -> Awaitable[None] | None:
        """Start one close, in the closing task. What is still to be awaited comes back."""
        resource = closing.resource
        closing.since = perf_counter()
        if self.teller is not None:
            self.tell("closing", resource)
        try:
            rest: Awaitable[None] | None = resource._begin(self, closing)
        except BaseException as exc:
            self.failed(closing.resource, exc, closing.elapsed())
            rest = None
        if rest is None:
            self.closed(closing)
        return rest

    async def finish(self, closing: Closing, rest: Awaitable[None]) -> None:
        """Await the rest of one close."""
        watch(closing)
        try:
            await rest
        except BaseException as exc:
            self.failed(closing.resource, exc, closing.elapsed())
        unwatch(closing)
        self.closed(closing)

    def closed(self, closing: Closing) -> None:
        end(closing.resource)
        if self.teller is not None:
            self.tell("closed", closing.resource, elapsed=closing.elapsed())

    async def _wait_beside(self, closing: Closing) -> None:
        """Wait for a resource that somebody else is closing; what it fails with is raised to them."""
        closing.since = perf_counter()
        if not inside(closing.resource):
            await self.in_time(closing, partial(ended, closing.resource))

    async def in_time(self, closing: Closing, fn: Callable[[], Awaitable[object]]) -> None:
        """Run `fn` as a job, for as long as this close may take, and put on record how it failed."""
        job = backend().start(fn)
        error = await self.within(closing, job)
        if error is not None:
            self.failed(closing.resource, error, closing.elapsed(), asked=job.asked)
        else:
            reject(job.value)

    async def within(self, closing: Closing, job: Job) -> BaseException | None:
        """Wait for a job for as long as this close may take; give what it raised."""
        seconds = self.limit(closing.resource.timeout)
        if await backend().finish(job, self.flight, seconds):
            return job.take_error()
        await run_out(self, closing, job, cast("float", seconds))
        return None

    def limit(self, timeout: float | None) -> float | None:
        """Give the seconds that one close may take now, `None` for as long as it likes."""
        if self.budget is None:
            return timeout
        held = None if self.scope is None else self.scope._held
        last = self.closings or held is None or not held.places
        return least(timeout, self.budget.left() if last else self.budget.left() / 2)

    def under_way(self) -> tuple[Closing, ...]:
        """Give what is being closed now."""
        return self.closings or (self,)

    def failed(
        self,
        resource: Resource[Any],
        exc: BaseException,
        elapsed: float,
        *,
        asked: bool = False,
        timed_out: bool = False,
    ) -> Failure | None:
        """Put on record that a close failed; what is no `Exception` is kept, to be raised when all is closed."""
        if not asked and self.nobody_asked(exc):
            error = CloseCancelledError(resource.name)
            error.__cause__ = exc
            exc = error
        self.tell("failed", resource, elapsed=elapsed, error=exc)
        if not isinstance(exc, Exception):
            self.flight.interrupts += (exc,)
            return None
        failure = Failure(resource.name, exc, elapsed, timed_out=timed_out)
        self.failures += (failure,)
        return failure

    def nobody_asked(self, exc: BaseException) -> bool:
        """Tell whether this is a cancellation that nobody asked of this task or of the closing one."""
        if isinstance(exc, Exception) or not isinstance(exc, backend().Cancelled):
            return False
        return not (self.flight.cancelled or backend().pressure())

    def tell(
        self,
        kind: EventKind,
        resource: Resource[Any],
        *,
        elapsed: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Tell `on_event`, if there is one."""
        if self.teller is not None:
            self.teller.tell(kind, resource.name, elapsed=elapsed, error=error)

    def sum_up(self) -> ResourceCleanupError | None:
        """Make one error of all that failed and was not suppressed."""
        failures = [report for failure in self.failures if (report := failure.report()) is not None]
        name = None if self.scope is None else self.scope.name
        return cleanup_error(failures, self.outcome, scope=name, attempted=self.attempted) if failures else None

    def verdict(self) -> BaseException | None:
        """Give what must come out of it all: what is in flight, something else, or nothing. Keep nothing more of it."""
        flight, self._flight = self._flight, None
        if flight is None and self.error is None:
            return None
        return verdict(flight or Flight(None), self.error, self.outcome)


async def close_straight(held: Held, flight: Flight) -> None:
    """Close what can be closed without asking, until something is to be seen to."""
    places = held.places
    before = None
    while held.left is None or held.job is not None:
        if held.job is not None:
            watch(held)
            try:
                await backend().finish(held.job, flight)
            finally:
                unwatch(held)
            held.job = None  # its task knows the closing, by its context
        elif not places or len(places) == before:
            break
        else:
            before = len(places)
            if places[-1]._limits is None:
                held.close_plain()
            elif flight.exc is None:
                await places[-1]._in_turn(held)


async def close_now(resource: Resource[Any]) -> None:
    """Close one resource by itself, as on success, and take it off the scope that holds it."""
    state = resource._state
    if type(state) is not Held and state is not OPEN and state is not DETACHED:
        await ended(resource)
        return
    host = None if around.get() is None else host_within(resource)
    resource._state = CLOSING
    begin = partial(_close_one, resource, state if type(state) is Held else None)
    exc = await (begin() if host is None else apart(begin, host))
    if exc is not None:
        try:
            raise_unchanged(exc)
        finally:
            del exc


async def _close_one(resource: Resource[Any], held: Held | None) -> BaseException | None:
    unwinding = Unwinding(None, SUCCESS, None)
    if held is not None and (scope := held()) is not None:
        unwinding.teller, unwinding.holder = scope._teller, scope
    token = begin_within(unwinding)
    try:
        unwinding.resource = resource
        rest = unwinding.begin(unwinding)
        if rest is not None:
            await unwinding.finish(unwinding, rest)
    finally:
        end_within(token)
    if held is not None:
        held.leave(resource)
    unwinding.error = unwinding.sum_up()
    unwinding.holder = unwinding.resource = None
    return unwinding.verdict()
