"""What journaled scopes and recovering give, as type checkers see it."""

from __future__ import annotations

from typing import assert_type

from rescope import Scope
from rescope.workflow import (
    Backoff,
    CleanupTakenError,
    JournaledScope,
    MemoryStore,
    PendingCleanup,
    RecoveryReport,
    cleanup,
    pending,
    recover,
)


class Machine:
    """Something that is made outside of the process."""


@cleanup("machine.delete")
async def delete(token: str) -> None:
    """A cleanup keeps its type: it can be called as what it is."""


async def create(token: str) -> Machine:
    """Make one, as the token says."""
    return Machine()


def count(token: dict[str, int]) -> int:
    """Make something at once."""
    return token["n"]


async def acquired() -> None:
    """What is made is what comes back; a cleanup is given as a function or by its name."""
    assert_type(await delete("vm-1"), None)
    async with JournaledScope(MemoryStore(), "worker-7", ttl=30, name="ci", grace=5.0, concurrent=True) as scope:
        assert_type(scope, JournaledScope)
        assert_type(await scope.acquire(create, delete, token="vm-1"), Machine)
        assert_type(await scope.acquire(create, "machine.delete", token="vm-2", timeout=1.0), Machine)
        assert_type(await scope.acquire(count, "machine.delete", token={"n": 1}), int)
        await scope.acquire(create, delete, token=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def as_any_scope() -> None:
    """Without a token it takes what a scope takes; children and moved ones journal too."""
    async with JournaledScope(MemoryStore(), "worker-7") as scope:
        plain: Scope = scope
        assert_type(await plain.acquire(Machine, lambda machine: None), Machine)
        assert_type(await scope.acquire(Machine, lambda machine: None), Machine)
        assert_type(scope.child("a"), JournaledScope)
        assert_type(scope.move(), JournaledScope)


JournaledScope(MemoryStore())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
JournaledScope("store", "worker-7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def recovered() -> None:
    """A pass gives a report, and the journal can be looked at."""
    report = await recover(MemoryStore(), grace=60.0, backoff=Backoff(first=0.5), limit=10, ttl=30.0)
    assert_type(report, RecoveryReport)
    assert_type(report.closed, tuple[PendingCleanup, ...])
    assert_type(report.clean, bool)
    assert_type(report.summary, str)
    assert_type(await pending(MemoryStore()), list[PendingCleanup])
    assert_type(report.failed[0].error, str | None)


def taken(error: CleanupTakenError) -> None:
    """The error says what was left, and whose it was."""
    assert_type(error.cleanup, str)
    assert_type(error.owner, str)
