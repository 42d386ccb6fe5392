"""`Scope`: what registers, and beyond that: look, hand over, close."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from rescope._budget import Budget
from rescope._child import Child, Leaving
from rescope._closing import CLOSED, CLOSING, DETACHED, OPEN, apart, around, end, ended, host_within
from rescope._flight import Flight, raise_unchanged
from rescope._held import Held, tell_dropped
from rescope._registry import Registry
from rescope._resource import Resource
from rescope._result import Err, Result
from rescope._trace import Trace
from rescope._unwind import SUCCESS, Unwinding, close_straight
from rescope.exceptions import ResourceCleanupError, ScopeClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType
    from typing import Self


T = TypeVar("T")


class Scope(Registry):
    """Holds what was opened, and closes it: in order, in time, from any task, whatever happens.

    Use it as `async with Scope() as scope:`, or by hand: register at once, and `await scope.aclose()` in a `finally`.

    `name` is for logs, errors and events. `grace`, in seconds, bounds the whole unwinding: no single resource may take
    more than half of what is left of it, unless it is the last. `concurrent=True` closes all at once instead of one at
    a time in reverse order. `on_event` is called with a `ScopeEvent` for all that happens, here and in children.

    Cancellation does not stop the closing: it is raised when all is closed. What fails is raised as one
    `ResourceCleanupError`, with the body's exception as its `__cause__`.
    """

    __slots__ = ()

    _pass = Unwinding
    """How it unwinds."""

    def child(self, name: str | None = None, *, grace: float | None = None, concurrent: bool = False) -> Scope:
        """Open a scope inside this one.

        Closing this one closes it, with the same outcome; closing it first takes it off.
        """
        self._refuse_closed()
        child = self._another(name, grace=grace, concurrent=concurrent)
        if self._teller is not None:
            child._tell_from(self._teller.below(name))
        self._keep(Child(child))
        return child

    @property
    def size(self) -> int:
        """How many it holds."""
        return 0 if self._held is None else len(self._held.places) - self._held.gone

    @property
    def resources(self) -> tuple[Resource[Any], ...]:
        """The handles of what it holds, in order of registration."""
        return () if self._held is None else tuple(self._held.handles())

    @property
    def outcome(self) -> Result[Any, BaseException] | None:
        """How the body ended, once the scope closes: `Ok(value)` or `Err(error)`."""
        if self._unwinding is not None:
            return self._unwinding.outcome
        return None if self._state is OPEN else SUCCESS

    @property
    def cleanup_error(self) -> ResourceCleanupError | None:
        """What failed to close, once the scope is closed, also where something else had to be raised."""
        return None if self._unwinding is None else self._unwinding.error

    def has(self, x: object, /) -> bool:
        """Tell whether it holds `x`, a handle or a registered value (by identity). `None` is no such value."""
        return self._find(x) is not None

    def __contains__(self, x: object) -> bool:
        return self.has(x)

    def __repr__(self) -> str:
        return f"<{self._label()[0].upper()}{self._label()[1:]} {self.state}, holds {self.size}>"

    def describe(self) -> str:
        """Draw what it holds and what it is closing, and what its children do, as a tree for a person to read.

        With `RESCOPE_TRACE=1` it also tells where each was registered.
        """
        from rescope._describe import describe

        return describe(self)

    async def release(self, x: object, /) -> None:
        """Close one resource now, as on success: a handle, or a value (of one registered twice, the latest).

        Raises `KeyError` if it is not held, `ResourceCleanupError` if it fails to close. A handle that is closed
        already is nothing to do. A cancellation waits until the close has ended.
        """
        under_way = isinstance(x, Resource) and x.state in {"closing", "closed"}
        await (cast("Resource[Any]", x) if under_way else self._get(x)).aclose()

    @overload
    def detach(self, x: Resource[T], /) -> Resource[T]: ...
    @overload
    def detach(self, x: T, /) -> Resource[T]: ...
    def detach(self, x: object, /) -> Resource[Any]:
        """Forget one resource without closing it: the caller owns it again. Raises `KeyError` if it is not held."""
        handle = self._get(x)
        if self._held is None or handle._state is not self._held:
            msg = f"{handle.name} is being closed: it can't be detached from {self._label()} any more"
            raise KeyError(msg)
        self._held.take_out(handle)
        handle._state = DETACHED
        return handle

    def move(self) -> Scope:
        """Hand all that is held to a new open scope with the same name, grace, mode and `on_event`.

        This one stays usable, and empty. Raises `ScopeClosedError` unless it is open.
        """
        if self._state is not OPEN:
            msg = f"{self._label()} is {self.state}: what it held can't be moved any more"
            raise ScopeClosedError(msg)
        new = self._another(self._name, grace=self._grace, concurrent=self._concurrent)
        if self._teller is not None:
            new._tell_from(self._teller)
        if self._held is not None:
            new._held, self._held = self._held.hand_over(new), None
            new._straight, self._straight = None if new._teller is not None or Trace.on else new._held, None
        return new

    async def aclose(self) -> None:
        """Close all that is held. Closing twice closes once: a second caller waits for the first.

        It counts as success: `on_success` runs, `on_error` does not. From inside a closer it returns at once. Raises
        `ResourceCleanupError` to the caller that closes. A cancellation waits until all is closed, then it is raised.
        """
        if self._state is OPEN:
            host = None if around.get() is None else host_within(self)
            begin = partial(self._begin_close, SUCCESS, None)
            exc = await (begin() if host is None else apart(begin, host))
            if exc is not None:
                try:
                    raise_unchanged(exc)
                finally:
                    del exc
        else:
            await ended(self)

    async def __aenter__(self) -> Self:
        if self._state is not OPEN:
            self._refuse_closed()
        if self._entered:
            msg = f"{self._label()} was entered already: a scope is for one `async with`, open a new one"
            raise RuntimeError(msg)
        self._entered = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._state is not OPEN:
            await self.aclose()
            return False
        held = self._held
        if exc is None and self._plain:
            # A plain scope, and a clean body: that is what most are.
            if held is None:
                self._state = CLOSED
                return False
            places = held.places
            held.attempted = len(places) - held.gone
            self._state = CLOSING
            self._straight = None
            if places:
                if places[-1]._limits is None:
                    held.close_plain()
                else:
                    await places[-1]._in_turn(held)
            flight = None
            if held.job is not None or (places and held.left is None):
                flight = Flight(None)
                await close_straight(held, flight)
            clean = not places and held.left is None and (flight is None or flight.interruption() is None)
            if clean and self._state is CLOSING:
                self._held = held.resource = None
                self._state = CLOSED
                return False
            unwinding = self._unwinding = Unwinding(self, SUCCESS, flight, held.attempted)
            await unwinding.run(held)
            self._settle(unwinding)
            left = unwinding.verdict()
        else:
            left = await self._begin_close(SUCCESS if exc is None else Err(exc), exc)
        if left is exc:
            return False
        if left is None:
            return True
        try:
            raise_unchanged(left)
        finally:
            del left

    def __del__(self) -> None:
        try:
            held = self._held
        except AttributeError:  # it could not be made
            return
        if held is not None and held.places:
            try:
                tell_dropped(self._label(), held)
            finally:
                held.places, held.values = [], None

    # What the rest of the house uses

    def _another(self, name: str | None, *, grace: float | None, concurrent: bool) -> Scope:
        """Make one of the same kind: a child, or what all is moved to."""
        return Scope(name, grace=grace, concurrent=concurrent)

    def _begin_close(self, outcome: Result[Any, Any], raised: BaseException | None) -> Awaitable[BaseException | None]:
        """Begin to close with that outcome, at once; the rest gives what must come out: nothing, `raised`, or else."""
        handle = None if self._handle is None else self._handle()
        if handle is not None and handle.state == "closing":  # the parent is about to close it
            return self._closed_by_parent(handle, raised)
        leaving = None if handle is None else Leaving(handle)
        unwinding = self._start(outcome, None if raised is None else Flight(raised), self._grace)
        if leaving is not None:
            unwinding.holder = leaving.parent
        return self._close(unwinding, leaving)

    async def _close(self, unwinding: Unwinding, leaving: Leaving | None) -> BaseException | None:
        if self._held is not None:
            await unwinding.run(self._held)
        self._settle(unwinding)
        if leaving is not None:
            unwinding.holder = None
            leaving.end(unwinding.error)
        return unwinding.verdict()

    @staticmethod
    async def _closed_by_parent(handle: Child, raised: BaseException | None) -> BaseException | None:
        await ended(handle)
        return raised

    def _start(self, outcome: Result[Any, Any], flight: Flight | None, grace: float | None) -> Unwinding:
        budget = None if grace is None else Budget(grace)
        self._state = CLOSING
        self._straight = None
        self._unwinding = unwinding = self._pass(self, outcome, flight, self.size)
        if budget is not None:
            unwinding.budget = budget
        if self._concurrent:
            unwinding.concurrent = True
        if self._teller is not None:
            unwinding.teller = self._teller
            unwinding.began = perf_counter()
        return unwinding

    def _settle(self, unwinding: Unwinding) -> None:
        if unwinding.failures:
            unwinding.error = unwinding.sum_up()
        if self._held is not None:
            self._held.resource = None
        unwinding.scope = unwinding.resource = self._held = None
        if self._teller is not None:
            self._teller.tell("scope_closed", elapsed=perf_counter() - unwinding.began, error=unwinding.error)
        if self._state is CLOSING:
            self._state = CLOSED
        else:
            end(self)

    def _find(self, x: object) -> Resource[Any] | None:
        held = self._held
        if held is None:
            return None
        if isinstance(x, Resource):
            found = x._state is held or (x.state == "closing" and (x in self._under_way(held) or x in held.places))
            return x if found else None
        if x is None:
            return None
        closing = (one for one in self._under_way(held) if one._value is x and one._state is not CLOSED)
        return next(closing, None) or held.find(x)

    def _under_way(self, held: Held) -> list[Resource[Any]]:
        """Give what this scope is closing now."""
        closings = () if self._unwinding is None else self._unwinding.under_way()
        return [one for one in (held.resource, *(closing.resource for closing in closings)) if one is not None]

    def _get(self, x: object) -> Resource[Any]:
        handle = self._find(x)
        if handle is None:
            what = x.name if isinstance(x, Resource) else f"that {type(x).__qualname__}"
            msg = f"{self._label()} does not hold {what}"
            raise KeyError(msg)
        return handle
