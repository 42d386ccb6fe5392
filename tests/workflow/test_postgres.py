# ruff: noqa: S608 (the names of tables are these tests' own)
"""PostgresStore, on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import anyio
import pytest

from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]
from rescope.testing import StoreCheck, store_contract
from rescope.workflow import Entry, PostgresStore, StoreClosedError, StoreError, VersionConflictError, lease

asyncpg = pytest.importorskip("asyncpg")

from workflow.openers import open_postgres as opened  # noqa: E402
from workflow.relay import Relay, relayed  # noqa: E402

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
on_trio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param("trio", marks=pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="needs trio"))],
)
CONTRACT = "postgres-store-contract"


async def as_it_is(connection: Any) -> None:
    """Reset nothing, so that giving back a connection costs no round trip."""


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def table() -> str:
    return f"store_{uuid4().hex[:12]}"


@asynccontextmanager
async def relay_to(url: str, folder: Path, **options: Any) -> AsyncGenerator[tuple[PostgresStore, Relay]]:
    """Give a store with one connection, through a relay."""
    (host,) = parse_qs(urlsplit(url).query)["host"]
    async with (
        relayed(folder / ".s.PGSQL.5432", f"{host}/.s.PGSQL.5432") as relay,
        asyncpg.create_pool(
            f"postgresql://postgres:@/postgres?host={folder}", min_size=1, max_size=1, **options
        ) as pool,
    ):
        store = PostgresStore(pool)
        for _ in range(2):  # each kind of statement, so that the connection knows it
            await store.delete("key")
            version = await store.put("key", "before", if_version=0)
            version = await store.put("key", "before", if_version=version)
            await store.put("key", "before")
            await store.get("key")
        yield store, relay


@asynccontextmanager
async def turn_of(url: str, table: str, key: str) -> AsyncGenerator[Any]:
    """Take that key's turn, in a transaction that commits in the end. Gives its connection."""
    async with connected(url) as connection, connection.transaction():
        await connection.fetchval(
            f"SELECT pg_advisory_xact_lock('{table}'::regclass::oid::int, hashtext($1) & 1023)", key
        )
        yield connection


async def waiting(connection: Any, table: str) -> None:
    """Wait until somebody waits for a turn in that table."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = $1::regclass::oid"
    with anyio.fail_after(10):
        while not await connection.fetchval(query, table):
            pass


# The contract


async def cut(url: str) -> None:
    async with connected(url) as connection:
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", CONTRACT
        )


@on_asyncio
@pytest.mark.parametrize("check", store_contract.checks, ids=str)
async def test_the_contract(check: StoreCheck, postgres_url: str) -> None:
    """The store keeps the contract, between processes and where connections are cut too."""
    open_store = partial(opened, postgres_url, server_settings={"application_name": CONTRACT})
    await check(open_store, processes=4, cut=partial(cut, postgres_url))
    assert check.name


# Round trips


@on_asyncio
async def test_an_operation_is_one_round_trip(postgres_url: str, tmp_path: Path) -> None:
    """Each operation is one round trip, a conflict too."""
    async with relay_to(postgres_url, tmp_path, reset=as_it_is) as (store, relay):
        version = await store.put("key", 1)

        async def conflict() -> None:
            with pytest.raises(VersionConflictError):
                await store.put("key", 2, if_version=0)

        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: store.get("key"),
            "conflict": conflict,
            "swap": lambda: store.put("key", 2, ttl=60, if_version=version),
            "put": lambda: store.put("key", 3, ttl=60),
            "put_many": lambda: store.put_many({f"k{i}": i for i in range(100)}),
            "delete": lambda: store.delete("key"),
            "add": lambda: store.put("key", 1, if_version=0),
        }
        trips = {}
        for name, operation in operations.items():
            before = relay.trips
            await operation()
            trips[name] = relay.trips - before
    assert trips == dict.fromkeys(operations, 1)


@on_asyncio
async def test_a_pool_that_resets_adds_a_round_trip(postgres_url: str, tmp_path: Path) -> None:
    """What asyncpg's pool does by itself, to reset a connection, is one more round trip."""
    async with relay_to(postgres_url, tmp_path) as (store, relay):
        before = relay.trips
        await store.get("key")
        await asyncio.sleep(0)
        assert relay.trips - before == 2


@on_asyncio
@pytest.mark.parametrize(("options", "trips"), [({"reset": as_it_is}, 2), ({}, 4)], ids=["as it is", "reset"])
async def test_a_lease_is_two_round_trips(
    postgres_url: str, tmp_path: Path, options: dict[str, Any], trips: int
) -> None:
    """To take a lease is one round trip, to release it another; a pool that resets adds one to each."""
    async with relay_to(postgres_url, tmp_path, **options) as (store, relay):
        before = relay.trips
        async with lease(store, "orders", ttl=60):
            pass
        assert relay.trips - before == trips


# Versions and turns


@on_asyncio
async def test_the_version_is_drawn_in_turn(postgres_url: str, table: str) -> None:
    """A put that waits has a greater version than what is written and deleted while it waits."""
    async with opened(postgres_url, table) as store:
        for put in (store.put("key", "mine"), store.put_many({"key": "mine"}), store.put("key", "mine", if_version=0)):
            await store.delete("key")
            async with turn_of(postgres_url, table, "key") as other:
                task = asyncio.ensure_future(put)
                await waiting(other, table)
                theirs = await other.fetchval(f"INSERT INTO {table} (key, value) VALUES ('key', '1') RETURNING version")
                await other.execute(f"DELETE FROM {table}")
            mine = await task
            assert (mine["key"] if isinstance(mine, dict) else mine) > theirs


@on_asyncio
async def test_who_waited_is_told_what_stands_now(postgres_url: str, table: str) -> None:
    """A conflict tells the version that was written while the put waited, and not what it saw before."""
    async with opened(postgres_url, table) as store:
        first = await store.put("old", 0)
        for key, expected in (("old", first), ("new", 0)):
            async with turn_of(postgres_url, table, key) as other:
                task = asyncio.create_task(store.put(key, "mine", if_version=expected))
                await waiting(other, table)
                theirs = await other.fetchval(
                    f"INSERT INTO {table} (key, value) VALUES ($1, '1') "
                    "ON CONFLICT (key) DO UPDATE SET version = DEFAULT RETURNING version",
                    key,
                )
            with pytest.raises(VersionConflictError) as caught:
                await task
            assert (caught.value.expected, caught.value.found) == (expected, theirs)


@on_asyncio
async def test_what_vanished_while_a_put_waited_is_no_conflict(postgres_url: str, table: str) -> None:
    """A put with `if_version=0` that sees an entry is done once more where that one was gone when it was its turn."""
    async with opened(postgres_url, table) as store:
        await store.put("other", 0)
        async with turn_of(postgres_url, table, "key") as other:
            await other.execute(f"INSERT INTO {table} (key, value) VALUES ('key', '1')")
            async with connected(postgres_url) as third:
                adding = asyncio.create_task(store.put("key", "mine", if_version=0))
                await waiting(third, table)
                await other.execute(f"DELETE FROM {table} WHERE key = 'key'")
        version = await adding
        assert await store.get("key") == Entry("key", "mine", version)


@on_asyncio
async def test_time_begins_when_it_is_written(postgres_url: str, table: str) -> None:
    """The time-to-live of a put that has waited for its turn begins when the waiting is over."""
    async with opened(postgres_url, table) as store:
        await store.put("other", 0)
        async with turn_of(postgres_url, table, "key") as other:
            putting = asyncio.create_task(store.put("key", 1, ttl=60))
            await waiting(other, table)
            waited_until = await other.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        await putting
        entry = await store.get("key")
    assert entry is not None
    assert entry.expires_at is not None
    assert entry.expires_at > waited_until + 60


@on_asyncio
async def test_a_batch_larger_than_the_table_of_locks(postgres_url: str, table: str) -> None:
    """A batch of more keys than the server can have locks is written, in one go."""
    async with opened(postgres_url, table) as store:
        versions = await store.put_many({f"key {number}": number for number in range(20_000, 0, -1)}, ttl=1000)
        assert [*versions][:2] == ["key 20000", "key 19999"]
        assert len({entry.version async for entry in store.scan("")}) == 20_000


@on_asyncio
async def test_batches_in_any_order_do_not_deadlock(postgres_url: str, table: str) -> None:
    """Batches that share keys, of different sizes and in different orders, all go through, each as a whole."""
    keys = [f"key {number}" for number in range(1_000)]
    async with opened(postgres_url, table) as store:

        async def put(value: int, some: list[str]) -> None:
            for _ in range(10):
                await store.put_many(dict.fromkeys(some, value))

        async with anyio.create_task_group() as tasks:
            for value, some in enumerate((keys, keys[::-1], keys[::5], keys[::-25], keys[::100])):
                tasks.start_soon(put, value, some)
        shared = {entry.value async for entry in store.scan("key 900")}
        whole = {entry.value async for entry in store.scan("key ") if int(entry.key[4:]) % 5}
    assert len(shared) == 1
    assert len(whole) == 1


@on_asyncio
async def test_what_has_expired_is_cleared_away(postgres_url: str, table: str) -> None:
    """A put with a time-to-live clears away what has expired, of the same key and of others, and nothing else."""
    async with opened(postgres_url, table) as store, connected(postgres_url) as connection:
        await store.put_many({f"old {number}": number for number in range(50)}, ttl=0.001)
        await store.put("kept", 1)
        await store.put("kept a while", 1, ttl=60)
        await asyncio.sleep(0.01)
        await store.put("old 0", "again", ttl=60)
        rows = await connection.fetch(f"SELECT key FROM {table} ORDER BY key")
    assert [row["key"] for row in rows] == ["kept", "kept a while", "old 0"]


@on_asyncio
async def test_a_prefix_at_the_end_of_all_text(postgres_url: str, table: str) -> None:
    """A scan ends at the end of its prefix, also where no text comes after it."""
    last = chr(0x10FFFF)
    async with opened(postgres_url, table) as store:
        await store.put_many(dict.fromkeys(("a", last, last * 128, "\ufffd"), 1))
        found = {prefix: [entry.key async for entry in store.scan(prefix)] for prefix in ("", last, "\ufffd")}
    assert found == {"": ["a", "\ufffd", last, last * 128], last: [last, last * 128], "\ufffd": ["\ufffd"]}


# The table


@on_asyncio
async def test_the_table_is_made_once(postgres_url: str) -> None:
    """Where many stores are first used at once, each finds the table or makes it, and none fails."""
    for _ in range(5):
        table = f"store_{uuid4().hex[:12]}"
        async with (
            asyncpg.create_pool(postgres_url, min_size=8, max_size=8) as pool,
            anyio.create_task_group() as tasks,
        ):
            for number in range(8):
                tasks.start_soon(PostgresStore(pool, table=table).put, f"key {number}", number)
        async with opened(postgres_url, table) as store:
            assert [entry.value async for entry in store.scan("")] == list(range(8))


@on_asyncio
async def test_a_table_in_a_schema_of_its_own(postgres_url: str, table: str) -> None:
    """A table may be named with its schema, in upper and lower case, and is told apart from others of that name."""
    async with connected(postgres_url) as connection:
        await connection.execute(f'CREATE SCHEMA "Jobs_{table}"')
    async with opened(postgres_url, f"Jobs_{table}.Store") as store, opened(postgres_url, table) as other:
        await store.put("key", 1)
        assert await other.get("key") is None
        assert repr(store) == f"<PostgresStore 'Jobs_{table}.Store'>"


@on_asyncio
async def test_a_newer_schema_is_refused(postgres_url: str, table: str) -> None:
    """A table of a newer rescope is not written to, and the error says what to do."""
    async with opened(postgres_url, table) as store:
        await store.put("key", 1)
    async with connected(postgres_url) as connection:
        await connection.execute(f"COMMENT ON TABLE {table} IS 'rescope store, schema 2'")
        async with opened(postgres_url, table) as store:
            with pytest.raises(StoreError, match="schema 2, of a newer rescope; this one knows 1: update") as caught:
                await store.put("key", 2)
        assert not caught.value.may_retry
        assert await connection.fetchval(f"SELECT value FROM {table}") == "1"


@on_asyncio
async def test_a_foreign_table_is_refused(postgres_url: str, table: str) -> None:
    """A table of that name that is somebody else's is not touched."""
    async with connected(postgres_url) as connection:
        await connection.execute(f"CREATE TABLE {table} (key text PRIMARY KEY)")
        async with opened(postgres_url, table) as store:
            with pytest.raises(StoreError, match="is none that PostgresStore made: pass another name") as caught:
                await store.put("key", 2)
        assert not caught.value.may_retry
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


@on_asyncio
async def test_a_table_that_is_dropped_is_made_again(postgres_url: str, table: str) -> None:
    """Where the table was dropped under a store, the call fails and may be retried, and then there is a new one."""
    async with opened(postgres_url, table) as store, connected(postgres_url) as connection:
        await store.put("key", 1)
        await connection.execute(f"DROP TABLE {table}")
        with pytest.raises(StoreError, match="does not exist; nothing was written") as caught:
            await store.put("key", 1)
        assert caught.value.may_retry
        await store.put("key", 2)
        entry = await store.get("key")
    assert entry is not None
    assert entry.value == 2


# What goes wrong


@on_asyncio
async def test_a_lost_answer(postgres_url: str, tmp_path: Path) -> None:
    """Where the answer to a put is lost, the error says whether it may be retried: not where it looks at versions."""
    async with relay_to(postgres_url, tmp_path, reset=as_it_is) as (store, relay):
        version = await store.put("key", "before")
        relay.lose = "answer"
        with pytest.raises(StoreError, match="whether it was done is not known: get the entry, and look") as caught:
            await store.put("key", "swapped", if_version=version)
        assert not caught.value.may_retry
        entry = await store.get("key")
        assert entry is not None
        assert entry.value == "swapped"
        for call in (store.put("key", "put"), store.put_many({"key": "put"}), store.get("key"), store.delete("key")):
            await store.get("key")
            relay.lose = "answer"
            with pytest.raises(StoreError, match=r"whether it was done is not known$") as caught:
                await call
            assert caught.value.may_retry


@on_asyncio
async def test_a_lost_request(postgres_url: str, tmp_path: Path) -> None:
    """Where a request is lost, nothing was written; and as nobody can tell, the error doesn't."""
    async with relay_to(postgres_url, tmp_path, reset=as_it_is) as (store, relay):
        version = await store.put("key", "before")
        relay.lose = "request"
        with pytest.raises(StoreError, match="whether it was done is not known") as caught:
            await store.put("key", "swapped", if_version=version)
        assert not caught.value.may_retry
        assert await store.get("key") == Entry("key", "before", version)


@on_asyncio
async def test_an_answer_counts_though_the_connection_is_lost_then(postgres_url: str, tmp_path: Path) -> None:
    """Where the connection is cut as it is given back, after the answer, the put is done and says so."""
    async with relay_to(postgres_url, tmp_path) as (store, relay):
        relay.skip, relay.lose = 1, "answer"
        version = await store.put("key", "after")
        assert relay.lose is None
        assert await store.get("key") == Entry("key", "after", version)


@on_asyncio
async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Where nobody answers, nothing was written, and the call may be retried."""
    pool = asyncpg.create_pool(f"postgresql://postgres@/postgres?host={tmp_path}", min_size=0)
    async with pool:
        with pytest.raises(StoreError, match="FileNotFoundError; nothing was written") as caught:
            await PostgresStore(pool).put("key", 1, if_version=0)
    assert caught.value.may_retry


@on_asyncio
async def test_a_user_that_is_not_known(postgres_url: str) -> None:
    """Where the server refuses the login, to retry does not help."""
    pool = asyncpg.create_pool(postgres_url, user="nobody_of_that_name", min_size=0)
    async with pool:
        with pytest.raises(StoreError, match='role "nobody_of_that_name" does not exist; nothing') as caught:
            await PostgresStore(pool).put("key", 1, if_version=0)
    assert not caught.value.may_retry


@on_asyncio
async def test_a_lock_that_is_not_to_be_had(postgres_url: str, table: str) -> None:
    """Where the server gives up waiting for a lock, nothing was written, and the call may be retried."""
    async with opened(postgres_url, table, server_settings={"lock_timeout": "20ms"}) as store:
        version = await store.put("key", "before")
        async with turn_of(postgres_url, table, "key"):
            with pytest.raises(StoreError, match="lock timeout; nothing was written") as caught:
                await store.put("key", "after", if_version=version)
        assert caught.value.may_retry
        assert await store.get("key") == Entry("key", "before", version)


@on_asyncio
async def test_transactions_that_are_serializable(postgres_url: str, table: str) -> None:
    """Where all transactions are serializable, what PostgreSQL refuses was not written, and may be retried."""
    settings = {"default_transaction_isolation": "serializable"}
    async with opened(postgres_url, table, server_settings=settings) as store:
        version = await store.put("key", "before")
        async with turn_of(postgres_url, table, "key") as other:
            putting = asyncio.create_task(store.put("key", "mine"))
            await waiting(other, table)
            await other.execute(f"UPDATE {table} SET value = '1', version = DEFAULT")
        with pytest.raises(StoreError, match=r"could not serialize access .*; nothing was written") as caught:
            await putting
        assert caught.value.may_retry
        assert (await store.put("key", "again")) > version


@on_asyncio
async def test_a_timeout_of_the_pool(postgres_url: str, table: str) -> None:
    """Where asyncpg's `command_timeout` is over, whether it was done is not known."""
    async with opened(postgres_url, table) as store, opened(postgres_url, table, command_timeout=0.1) as hasty:
        version = await store.put("key", "before")
        assert await hasty.get("key") == Entry("key", "before", version)
        async with turn_of(postgres_url, table, "key"):
            with pytest.raises(StoreError, match="TimeoutError; whether it was done is not known") as caught:
                await hasty.put("key", "after", if_version=version)
        assert not caught.value.may_retry
        assert await hasty.get("key") == Entry("key", "before", version)


@on_asyncio
@pytest.mark.parametrize("by", ["task", "scope"])
async def test_a_put_that_is_cancelled(postgres_url: str, table: str, by: str) -> None:
    """A put that is cancelled while it waits is never done, and the pool's only connection is good afterwards."""
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool:
        store = PostgresStore(pool, table=table)
        version = await store.put("key", "before")
        async with turn_of(postgres_url, table, "key") as other:
            if by == "task":
                task = asyncio.create_task(store.put("key", "after"))
                await waiting(other, table)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
            else:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(store.put, "key", "after")
                    await waiting(other, table)
                    tasks.cancel_scope.cancel()
        assert await store.get("key") == Entry("key", "before", version)


@on_asyncio
async def test_a_pool_that_is_closed(postgres_url: str, table: str) -> None:
    """A store whose pool is closed says so."""
    async with opened(postgres_url, table) as store:
        await store.put("key", 1)
    with pytest.raises(StoreClosedError, match="pool is closed: use the store before its pool closes") as caught:
        await store.get("key")
    assert not caught.value.may_retry


@on_asyncio
async def test_a_pool_that_is_not_open_yet(postgres_url: str) -> None:
    """A pool that nobody has awaited is told as what it is."""
    pool = asyncpg.create_pool(postgres_url)
    with pytest.raises(StoreError, match="pool is not initialized; nothing was written") as caught:
        await PostgresStore(pool).get("key")
    assert not caught.value.may_retry


@pytest.mark.parametrize("pool", ["postgresql://localhost", None, object()])
def test_what_is_no_pool(pool: Any) -> None:
    """What is no pool is refused at once, with what to pass instead."""
    with pytest.raises(TypeError, match=r"`pool` must be an asyncpg pool, not a \w+: pass what `await asyncpg"):
        PostgresStore(pool)


class AnyPool:
    def acquire(self) -> AbstractAsyncContextManager[Any]:
        raise NotImplementedError


@pytest.mark.parametrize("table", ["", "a b", 'a"b', "a'b", "a.b.c", ".a", "1a", "x" * 64, "é", "a\n"])
def test_what_is_no_table(table: str) -> None:
    """A name that would need quoting is refused, so that none can hold SQL."""
    with pytest.raises(ValueError, match=re.escape(repr(table))):
        PostgresStore(AnyPool(), table=table)
    with pytest.raises(TypeError, match="`table` must be a string, not a bytes"):
        PostgresStore(AnyPool(), table=b"table")  # type: ignore[arg-type]


@on_trio
async def test_trio_is_refused() -> None:
    """On trio, the error says that asyncpg doesn't run there, and which stores do."""
    with pytest.raises(RuntimeError, match="PostgresStore runs on asyncio only, as asyncpg does: on trio, use `Sqlite"):
        await PostgresStore(AnyPool()).get("key")
