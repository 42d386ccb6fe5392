"""What a review of the stores has found: phrases of the port, read as those who break things read them."""

from __future__ import annotations

import asyncio
import gc
import math
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import anyio
import pytest
from anyio import to_thread

from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]
from rescope.workflow import MemoryStore, PostgresStore, SqliteStore, StoreClosedError, StoreError
from rescope.workflow.stores import sqlite
from workflow.openers import open_postgres, open_redis

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database is."""
    return tmp_path / "store.db"


def content(path: Path) -> dict[str, bytes]:
    """What lies where the database is."""
    return {each.name: each.read_bytes() for each in path.parent.iterdir()}


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110
            await anyio.sleep(0.001)


# SqliteStore: closing, where `task.cancel()` cuts off the waiting


@asyncio_only
@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_file_is_closed_though_its_close_is_cut_off(path: Path, turns: int) -> None:
    """Wherever a `task.cancel()` meets it, the connection does not stay open, and the close is cancelled."""
    store = SqliteStore(path)
    await store.put("key", 1)
    closing = asyncio.create_task(store.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    cut_off = closing.cancel()
    if cut_off:
        with pytest.raises(asyncio.CancelledError):
            await closing
    await until(lambda: not path.with_name("store.db-wal").exists())  # the last to close takes the log away

    assert store._connection is None


@asyncio_only
async def test_a_file_is_closed_though_its_close_waited_for_another_call(path: Path) -> None:
    """Who closes waits for what is under way; where that is cut off, it is closed all the same when that is done."""
    began, go_on = Event(), Event()

    def clock() -> float:
        began.set()
        assert go_on.wait(10)
        return 1000.0

    store = SqliteStore(path, clock=clock)
    putting = asyncio.create_task(store.put("key", 1))
    await to_thread.run_sync(began.wait)
    closing = asyncio.create_task(store.aclose())
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go_on.set()

    assert await putting == 1
    await until(lambda: store._connection is None)


@asyncio_only
@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_file_is_closed_though_its_opening_is_cut_off(path: Path, turns: int) -> None:
    """Who was not let in does not exit, so nobody else would close it."""
    store = SqliteStore(path)

    async def use() -> None:
        async with store:
            await anyio.sleep_forever()

    using = asyncio.create_task(use())
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await until(lambda: store._connection is None and not store._lock.locked())

    with pytest.raises(StoreClosedError):
        await store.get("key")


# SqliteStore: waiting for others


async def test_who_stands_in_line_does_not_wait_anew(path: Path) -> None:
    """Where one has waited in vain for another process, those behind it are told at once; who comes later waits."""
    store = SqliteStore(path, busy_timeout=0.05)
    await store.put("key", 1)
    statements: list[str] = []
    store._connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
    failures: list[StoreError] = []

    async def put() -> None:
        with pytest.raises(StoreError) as caught:
            await store.put("key", 2)
        failures.append(caught.value)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(put)
        other.execute("ROLLBACK")
    await store.put("key", 3)
    await store.aclose()

    assert [error.may_retry for error in failures] == [True] * 3
    assert [each for each in statements if each.startswith(("BEGIN", "PRAGMA"))] == [
        "BEGIN IMMEDIATE",
        "PRAGMA busy_timeout = 0",
        "BEGIN IMMEDIATE",
        "BEGIN IMMEDIATE",
        "PRAGMA busy_timeout = 50",
        "BEGIN IMMEDIATE",
    ]


async def test_who_stands_in_line_for_the_opening_does_not_wait_anew(path: Path) -> None:
    """Nor where the file could not even be opened."""
    store = SqliteStore(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript("CREATE TABLE other (a); BEGIN EXCLUSIVE")
        with pytest.raises(StoreError):
            await store.get("key")
        store._gave_up = math.inf  # so all stand in line behind it
        with pytest.raises(StoreError):
            await store.get("key")
        patience = store._patience
        store._gave_up = -math.inf
        other.execute("ROLLBACK")
    await store.put("key", 1)
    await store.aclose()

    assert (patience, store._patience) == (0, 0.05)


# SqliteStore: the file


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_removed_is_told(path: Path, replaced: bool) -> None:
    """SQLite would go on writing to what nobody finds again; a new store takes what is there."""
    async with SqliteStore(path) as store:
        await store.put("key", 1)
        for each in [*path.parent.iterdir()]:
            each.unlink()
        if replaced:
            async with SqliteStore(path) as other:
                await other.put("key", "other")
        for call in (lambda: store.put("key", 2), lambda: store.get("key"), lambda: anext(store.scan(""))):
            with pytest.raises(StoreError, match=r"was removed or replaced: make a new store\. Nothing") as caught:
                await call()
            assert not caught.value.may_retry
    async with SqliteStore(path) as store:
        entry = await store.get("key")

    assert (entry and entry.value) == ("other" if replaced else None)


async def test_a_relative_path_is_from_where_the_store_was_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from where the program is when the store is first used."""
    monkeypatch.chdir(path.parent)
    store = SqliteStore(path.name)
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    await store.put("key", 1)
    await store.aclose()

    assert {each.name for each in path.parent.iterdir()} == {path.name, elsewhere.name}


def test_a_store_that_is_dropped_is_forgotten(path: Path) -> None:
    """It is as good as closed, so a process that is forked then may open the file."""
    store = SqliteStore(path)
    anyio.run(store.put, "key", 1)
    held = len(sqlite._OPEN)
    store._connection.close()  # type: ignore[union-attr]  # Python 3.13 warns of one that is dropped open
    del store
    gc.collect()

    assert len(sqlite._OPEN) == held - 1


@pytest.mark.parametrize(
    "made", ["", "INSERT INTO rescope_schema VALUES ('x')", "INSERT INTO rescope_schema VALUES (0)"]
)
async def test_a_table_of_schemas_that_is_somebody_elses_is_told(path: Path, made: str) -> None:
    """Nothing is written beside it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE rescope_schema (version); {made}")
    before = content(path)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match=r"^the table rescope_schema in .* is none that SqliteStore made\. Nothing"):
        await store.put("key", 1)
    await store.aclose()

    assert content(path) == before


# What all four stores do


@asynccontextmanager
async def opened(kind: str, path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Any]:
    """Open a store of that kind."""
    if kind == "memory":
        yield MemoryStore()
    elif kind == "sqlite":
        async with SqliteStore(path) as store:
            yield store
    elif kind == "postgres":
        pytest.importorskip("asyncpg")
        async with open_postgres(request.getfixturevalue("postgres_url"), f"review_{uuid4().hex[:12]}") as store:
            yield store
    else:
        pytest.importorskip("redis")
        async with open_redis(request.getfixturevalue("redis_url")) as store:
            yield store


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def kind(request: pytest.FixtureRequest, anyio_backend_name: str) -> str:
    """Each store, where it runs."""
    if request.param in ("postgres", "redis") and anyio_backend_name == "trio":
        pytest.skip("its client runs on asyncio only")
    return str(request.param)


async def test_the_longest_time_is_kept_to(kind: str, path: Path, request: pytest.FixtureRequest) -> None:
    """It is 1e10 seconds, and the store tells so; the shortest is over at once, and was a put all the same."""
    async with opened(kind, path, request) as store:
        key = uuid4().hex
        before = time.time()
        first = await store.put(key, 1, ttl=1e10)
        entry = await store.get(key)
        second = await store.put(key, 2, ttl=1e-9, if_version=first)
        over = await store.get(key)
        third = await store.put(key, 3, if_version=0)
        await store.delete(key)

    assert entry.expires_at == pytest.approx(before + 1e10, abs=60)
    assert over is None
    assert first < second < third


def test_a_class_is_no_pool() -> None:
    """It has the methods of one, but nothing to call them on."""
    asyncpg = pytest.importorskip("asyncpg")
    with pytest.raises(TypeError) as caught:
        PostgresStore(asyncpg.Pool)

    assert str(caught.value).startswith("`pool` must be an asyncpg pool, not a type: pass what")


@pytest.mark.parametrize("values", [["a"], "a", None, 7])
async def test_many_values_are_a_mapping(values: Any) -> None:
    """What is no mapping of keys to values is refused by its type."""
    with pytest.raises(TypeError, match="`values` must be a mapping of keys to values, not a"):
        await MemoryStore().put_many(values)
