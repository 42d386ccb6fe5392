"""Scopes inside a scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rescope._budget import least
from rescope._resource import Resource, managed

if TYPE_CHECKING:
    import weakref
    from collections.abc import Awaitable

    from rescope._scope import Scope
    from rescope._unwind import Closing, Unwinding


class Child(Resource["Scope"]):
    """The handle by which a scope holds a child. The child knows its parent only weakly, as any handle does."""

    __slots__ = ()

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope, managed, name=scope.name or "scope")

    async def aclose(self) -> None:
        """Close the child scope."""
        await self._value.aclose()

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None]:
        return self._unwind(unwinding, closing)

    async def _unwind(self, unwinding: Unwinding, closing: Closing) -> None:
        """Close the child with the parent's outcome; its managers see what is in flight there, and may change it."""
        flight = unwinding.flight
        grace = least(unwinding.limit(None), self._value._grace)
        error, failures = await self._value._unwind(unwinding.outcome, flight, grace)
        if error is None:
            return
        failure = unwinding.failed(closing, error)
        if flight.failure in failures:
            flight.exc, flight.failure = error, failure

    def _held_by(self, holder: weakref.ref[Scope]) -> None:
        super()._held_by(holder)
        self._value._parent = holder

    def _let_go(self) -> None:
        super()._let_go()
        self._value._parent = None
