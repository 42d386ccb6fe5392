"""What machines on a memory give, as type checkers see it."""

from __future__ import annotations

from typing import Any, TypedDict, assert_type

from rescope import Scope
from rescope.workflow import Store
from rescope.workflow.machine import (
    EventResource,
    LockStatus,
    MachineMemory,
    ReleaseStatus,
    StoreMemory,
    Transaction,
    TransactionViolation,
)


class Order(TypedDict):
    """A state."""

    paid: int


class Tables:
    """A memory of one's own, with names of its own for what it is given."""

    async def read(self, key: str) -> Order | None:
        """Give the state."""
        return {"paid": len(key)}

    async def write(self, key: str, state: Order, before: Order | None) -> None:
        """Write the state."""

    async def lock(self, key: str) -> bool:
        """Lock it."""
        return bool(key)

    async def unlock(self, key: str) -> None:
        """Unlock it."""


async def four(orders: EventResource[Order]) -> None:
    """Each call gives what the next one takes."""
    status = assert_type(await orders.acquire_lock("a"), LockStatus)
    before = assert_type(await orders.acquire_state("a"), Order | None)
    await orders.persist_state("a", {"paid": 1}, before)
    assert_type(await orders.release_lock("a", status), ReleaseStatus)
    await orders.release_lock("a", None)
    await orders.persist_state("a", {"paid": "1"}, None)  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]


async def transaction(orders: EventResource[Order]) -> int:
    """A transaction suppresses nothing, so what the block returns is what comes back."""
    async with orders.transaction("a") as step:
        assert_type(step, Transaction[Order])
        assert_type(step.state, Order | None)
        assert_type(step.previous, Order | None)
        assert_type(step.status, LockStatus)
        assert_type(step.released, ReleaseStatus | None)
        step.state = {"paid": 2}
        await step.persist({"paid": 3})
        return step.state["paid"]


async def in_a_scope(orders: EventResource[Order]) -> None:
    """A scope that enters or hosts one gives the transaction."""
    async with Scope() as scope:
        assert_type(await scope.enter(orders.transaction("a")), Transaction[Order])
        assert_type(await scope.host(orders.transaction("b")), Transaction[Order])


def memories(store: Store) -> None:
    """The memory says what the states are; a store's memory takes any, unless it is told."""
    own: MachineMemory[Order] = Tables()
    assert_type(EventResource(own, locking=True), EventResource[Order])
    assert_type(EventResource(Tables(), locking=False), EventResource[Order])
    assert_type(EventResource(StoreMemory[Order](store), locking=True), EventResource[Order])
    assert_type(StoreMemory(store), StoreMemory[Any])
    told: EventResource[Order] = EventResource(StoreMemory(store, lock_ttl=5), locking=True)
    assert_type(told, EventResource[Order])


def errors(error: TransactionViolation) -> None:
    """A violation says where, what, and whether all may be done again."""
    assert_type(error.subject, str)
    assert_type(error.may_retry, bool)
    assert error.reason != "stale"  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]


EventResource(Tables())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
EventResource({}, locking=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
