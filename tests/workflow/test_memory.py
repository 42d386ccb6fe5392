"""`MemoryStore`: the contract, and what is its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

import anyio
import pytest

from rescope.testing import store_contract
from rescope.testing._store_bench import increment
from rescope.workflow import Entry, MemoryStore
from workflow.broken_stores import Clock

CHECKS = [check for check in store_contract.checks if check.needs is None]


@pytest.fixture
def clock() -> Clock:
    """A clock that the test turns."""
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    """A store by that clock."""
    return MemoryStore(clock=clock)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_it_keeps_the_contract(check: Any, store: MemoryStore, clock: Clock) -> None:
    """Each check is a test."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[MemoryStore]:
        yield store

    await check(open_store, advance=clock.advance)

    assert [entry.key async for entry in store.scan("")] == []


async def test_time_is_the_clocks(store: MemoryStore, clock: Clock) -> None:
    """An entry is gone at the very second."""
    await store.put("key", 1, ttl=10)
    clock.advance(9.5)
    before = await store.get("key")
    clock.advance(0.5)

    assert before == Entry("key", 1, 1, clock.now)
    assert await store.get("key") is None


async def test_the_clock_is_that_of_the_machine() -> None:
    """Where none is given."""
    store = MemoryStore()
    await store.put("key", 1, ttl=10)
    entry = await store.get("key")

    assert entry is not None
    assert entry.expires_at is not None
    assert entry.expires_at > 1.7e9


async def test_what_has_expired_is_forgotten(store: MemoryStore, clock: Clock) -> None:
    """A store that lives long stays small."""
    await store.put_many({f"short {number}": 1 for number in range(500)}, ttl=1)
    clock.advance(2)
    for number in range(500):
        await store.put(f"long {number}", 1)

    assert repr(store) == "<MemoryStore holds 500>"
    assert len([entry async for entry in store.scan("")]) == 500


async def test_a_page_of_expired_entries_is_not_the_end_of_a_scan(store: MemoryStore, clock: Clock) -> None:
    """What comes after them is given."""
    await store.put_many({f"a{number:04}": 1 for number in range(900)}, ttl=1)
    await store.put("b", 1)
    clock.advance(2)

    assert [entry.key async for entry in store.scan("")] == ["b"]
    assert [entry.key async for entry in store.scan("a")] == []


async def test_a_scan_reads_in_pages(store: MemoryStore) -> None:
    """So few entries are in memory: what is deleted far ahead isn't given."""
    names = [f"{number:04}" for number in range(501)]
    await store.put_many(dict.fromkeys(names, 1))
    scan = store.scan("")
    first = await anext(scan)
    await store.delete(names[-1])

    assert [first.key, *[entry.key async for entry in scan]] == names[:-1]


async def test_a_call_is_cancelled_before_it_is_done(store: MemoryStore) -> None:
    """Each is a place where a cancellation comes in."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.put("key", 1)

    assert scope.cancelled_caught
    assert await store.get("key") is None


def test_threads_and_their_loops_share_it() -> None:
    """None of their updates is lost, though each asks for the time between looking and writing, and others get on."""

    def now() -> float:
        time.sleep(0.0001)
        return 1000.0

    store = MemoryStore(clock=now)

    async def count() -> None:
        for _ in range(50):
            await increment(store, "count")

    threads = [Thread(target=anyio.run, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def counted() -> Any:
        entry = await store.get("count")
        return entry and entry.value

    assert anyio.run(counted) == 200
