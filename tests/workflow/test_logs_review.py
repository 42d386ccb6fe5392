"""The names and signatures that the contract gives to what a job notes, called as it is written there."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import pytest

from rescope.workflow import JobLog, MemoryStore, ProcessedLog, RetryLedger, validated
from workflow.broken_stores import Clock


async def test_a_processed_log_as_it_is_written_in_the_contract() -> None:
    """`ProcessedLog(store, name)`: by position and by keyword, with entries of `key`, `metadata` and `at`."""
    log = ProcessedLog(MemoryStore(), "files", clock=Clock())
    await log.mark("a")
    await log.mark("b", {"rows": 1})
    await log.mark("c", metadata={"rows": 2})
    await log.mark_many(["d", "e"])
    await log.mark_many(["f"], {"rows": 3})
    await log.mark_many({"g": {"rows": 4}})
    last = await log.last()
    assert last is not None
    assert (last.key, last.metadata, last.at) == ("g", {"rows": 4}, 1000.0)

    assert [await log.is_processed(key) for key in ("a", "z")] == [True, False]
    assert await log.remove("a")
    listed = [(entry.key, entry.metadata) async for entry in log.list()]
    assert listed == [
        ("b", {"rows": 1}),
        ("c", {"rows": 2}),
        ("d", None),
        ("e", None),
        ("f", {"rows": 3}),
        ("g", {"rows": 4}),
    ]
    assert (await log.stats()).count == 6
    await log.clear()
    assert [entry async for entry in log.list()] == []


async def test_a_retry_ledger_as_it_is_written_in_the_contract() -> None:
    """`RetryLedger(store, name, *, max_attempts, backoff)`: attempts, first and last failure, next try."""
    clock = Clock()
    ledger = RetryLedger(MemoryStore(), "files", max_attempts=3, backoff=lambda attempt: 10.0 * attempt, clock=clock)
    due = []
    for _ in range(3):
        due.append(await ledger.due("a"))
        await ledger.record_failure("a", ValueError("no amount"))
        due.append(await ledger.due("a"))
        clock.advance(100)
    entry = await ledger.get("a")

    assert due == [True, False, True, False, True, False]
    assert entry is not None
    assert (entry.attempts, entry.first_failure.at, entry.last_failure.at, entry.next_try) == (3, 1000.0, 1200.0, None)
    assert not await ledger.due("a")
    assert [await ledger.prune(101), await ledger.prune(older_than=99), await ledger.clear("a")] == [0, 1, False]


async def test_a_job_log_as_it_is_written_in_the_contract() -> None:
    """`JobLog(store)`: created, staged, completed or failed, and read by one and by all."""
    jobs = JobLog(MemoryStore())
    for job_id in ("a", "b"):
        await jobs.create(job_id, day="2026-11-22")
        await jobs.stage(job_id, "load")
    running = await jobs.get("a")
    await jobs.complete("a", rows=3)
    await jobs.fail("b", ValueError("no amount"))

    assert running is not None
    assert (running.id, running.status, running.stage, running.metadata) == (
        "a",
        "running",
        "load",
        {"day": "2026-11-22"},
    )
    told = [(job.id, job.status, job.result, job.error and job.error.message) async for job in jobs.list()]
    assert told == [("a", "completed", {"rows": 3}, None), ("b", "failed", None, "no amount")]


class Connection:
    """Says when it is closed."""

    closed = False

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


@pytest.mark.parametrize("as_what", ["a class", "a function", "a coroutine function"])
async def test_validated_as_it_is_written_in_the_contract(as_what: str) -> None:
    """`validated(cm_or_acquire, check)`: in whatever way a function gives a connection."""

    async def connect() -> Connection:
        await anyio.lowlevel.checkpoint()
        return Connection()

    opened: dict[str, Any] = {
        "a class": Connection,
        "a function": lambda: connect(),  # noqa: PLW0108 (as people write it)
        "a coroutine function": connect,
    }
    async with validated(opened[as_what], lambda connection: not connection.closed) as connection:
        assert not connection.closed
    assert connection.closed
