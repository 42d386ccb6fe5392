"""What `checkpoint` and `get_or_create` give, as type checkers see it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Literal, assert_type

from rescope import ResourceCleanupError, Scope
from rescope.workflow import Checkpoint, CheckpointReport, MemoryStore, Store, checkpoint, get_or_create


async def resumed(store: Store) -> int:
    """The block suppresses nothing, so what it returns is what comes back."""
    async with checkpoint(store, "orders", version=2, max_age=60, every=10) as c:
        assert_type(c, Checkpoint)
        assert_type(c.report, CheckpointReport | None)
        assert_type(c.saved_at, float | None)
        assert_type(c.end_error, ResourceCleanupError | None)
        await c.advance({"row": 3})
        if c.report is not None:
            assert_type(c.report.reason, Literal["corrupt", "foreign version", "too old"])
        return 3


async def in_a_scope() -> None:
    """A scope that enters or hosts one gives the checkpoint."""
    async with Scope() as scope:
        assert_type(await scope.enter(checkpoint(MemoryStore(), "a")), Checkpoint)
        assert_type(await scope.host(checkpoint(MemoryStore(), "b")), Checkpoint)
    assert_type(checkpoint(MemoryStore(), "a"), AbstractAsyncContextManager[Checkpoint, None])


async def new_id() -> str:
    """Make an id."""
    return "id"


def number() -> int:
    """Make a number."""
    return 1


async def shared(store: Store) -> None:
    """The value is of the type that the factory gives, be it sync or async."""
    assert_type(await get_or_create(store, "day", new_id, ttl=60), str)
    assert_type(await get_or_create(store, "day", number, ttl=None, lease_ttl=5), int)


checkpoint(MemoryStore())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
checkpoint(MemoryStore(), "a", 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
checkpoint("store", "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
