"""Scopes inside a scope.

The parent holds the child's handle, and the child knows the handle weakly, so that neither keeps the other alive in
a circle.
"""

from __future__ import annotations

import weakref
from time import perf_counter
from typing import TYPE_CHECKING

from rescope._budget import least
from rescope._closing import CLOSING, end
from rescope._held import Held
from rescope._resource import SPECIAL, Resource, managed

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from rescope._closing import Closing
    from rescope._scope import Scope
    from rescope._unwind import Unwinding
    from rescope.exceptions import ResourceCleanupError


class Child(Resource["Scope"]):
    """The handle by which a scope holds a child. The child knows its parent only weakly, as any handle does."""

    __slots__ = ("__weakref__",)

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope, managed, name=scope.name or "scope")
        self._limits = SPECIAL
        scope._handle = weakref.ref(self)
        scope._plain = False

    @property
    def _in_task(self) -> bool:  # type: ignore[override]
        return any(handle._in_task for handle in self._value.resources)

    def _inner(self) -> Scope:
        return self._value

    async def aclose(self) -> None:
        """Close the child scope."""
        await self._value.aclose()

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None]:
        child = self._value
        own = child._start(unwinding.outcome, unwinding.flight, least(unwinding.limit(None), child._grace))
        if child._held is not None and own.straight():
            child._held.close_plain()
        return self._unwind(unwinding, closing, own)

    async def _unwind(self, unwinding: Unwinding, closing: Closing, own: Unwinding) -> None:
        """Close the child with the parent's outcome; its managers see what is in flight there, and may change it."""
        child = self._value
        if child._held is not None:
            await own.run(child._held)
        child._settle(own)
        flight = unwinding.flight
        if unwinding.budget is not None and own.budget is not None:
            unwinding.budget.extend(own.budget.overtime)
        if own.error is not None:
            failure = unwinding.failed(self, own.error, closing.elapsed())
            if flight.failure in own.failures:
                flight.exc, flight.failure = own.error, failure


class Leaving:
    """A child that closes by itself: its parent knows of it as of any close, and then holds it no longer."""

    def __init__(self, handle: Child) -> None:
        held = handle._state if type(handle._state) is Held else None
        parent = None if held is None else held()
        self.handle = handle
        self.held = held
        self.parent = parent
        self.teller = None if parent is None else parent._teller
        self.since = perf_counter()
        handle._state = CLOSING
        if self.teller is not None:
            self.teller.tell("closing", handle.name)

    def end(self, error: ResourceCleanupError | None) -> None:
        """Take it off."""
        if self.teller is not None:
            elapsed = perf_counter() - self.since
            if error is not None:
                self.teller.tell("failed", self.handle.name, elapsed=elapsed, error=error)
            self.teller.tell("closed", self.handle.name, elapsed=elapsed)
        end(self.handle)
        if self.held is not None:
            self.held.leave(self.handle)
