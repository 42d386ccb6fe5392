"""What a lease gives, as type checkers see it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import assert_type

from rescope import Scope
from rescope.workflow import MemoryStore, Store
from rescope.workflow.lease import Lease, LeaseHeldError, LeaseLostError, lease


async def held(store: Store) -> int:
    """A block under a lease suppresses nothing, so what it returns is what comes back."""
    async with lease(store, "orders", ttl=30, wait=5.0, holder="me") as held:
        assert_type(held, Lease)
        assert_type(held.token, int)
        assert_type(held.expires_at, float)
        assert_type(held.remaining, float)
        assert_type(held.lost, LeaseLostError | None)
        assert_type(held.release_error, Exception | None)
        return held.token


async def in_a_scope() -> None:
    """A scope that enters or hosts one gives the lease."""
    async with Scope() as scope:
        assert_type(await scope.enter(lease(MemoryStore(), "a", ttl=1)), Lease)
        assert_type(await scope.host(lease(MemoryStore(), "b", ttl=1)), Lease)
    assert_type(lease(MemoryStore(), "a", ttl=1), AbstractAsyncContextManager[Lease, bool | None])


def errors(refused: LeaseHeldError, lost: LeaseLostError) -> None:
    """Both errors say what they are about."""
    assert_type(refused.holder, str | None)
    assert_type(refused.until, float | None)
    assert_type(lost.token, int)
    assert_type(lost.reason, str)


lease(MemoryStore(), "a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
lease("store", "a", ttl=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
lease(MemoryStore(), "a", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
