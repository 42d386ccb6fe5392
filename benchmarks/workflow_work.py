"""The work: leases on servers and in a file, and the locks that the clients have themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from examples.servers import postgres, valkey

from benchmarks.workflow_trips import Trips, counted
from rescope.workflow import PostgresStore, ProcessedLog, RedisStore, SqliteStore, lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AsyncExitStack

    from rescope.workflow import Store

    Work = Callable[[], Awaitable[object]]

TTL = 30.0
SQL_LOCK, SQL_UNLOCK = "SELECT pg_advisory_lock(5, 5)", "SELECT pg_advisory_unlock(5, 5)"


async def nothing(_connection: object) -> None:
    """Reset nothing, where a pool gets a connection back."""


def taken(store: Store) -> Work:
    """Give what takes a lease, and releases it."""

    async def take() -> None:
        async with lease(store, "benchmark", ttl=TTL):
            pass

    return take


def locked(pool: Any) -> Work:
    """Give what takes PostgreSQL's advisory lock on one connection, and releases it."""

    async def lock() -> None:
        async with pool.acquire() as connection:
            await connection.fetchval(SQL_LOCK)
            await connection.fetchval(SQL_UNLOCK)

    return lock


async def on_valkey(stack: AsyncExitStack) -> dict[str, Work]:
    """Give the contenders on a Valkey server."""
    from redis.asyncio import Redis

    client = await stack.enter_async_context(Redis.from_url(stack.enter_context(valkey())))
    store = RedisStore(client)

    async def lock() -> None:
        async with client.lock("benchmark", timeout=TTL):
            pass

    async def put_and_delete() -> None:
        version = await store.put("benchmark", {"holder": "a", "mark": "b"}, ttl=TTL, if_version=0)
        await store.delete("benchmark", if_version=version)

    return {"lease": taken(store), "redis-py's Lock": lock, "put and delete": put_and_delete}


async def on_postgres(stack: AsyncExitStack, url: str | None = None) -> dict[str, Work]:
    """Give the contenders on a PostgreSQL server: a pool as it is, and one that resets nothing."""
    import asyncpg

    url = url or stack.enter_context(postgres())
    pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=1))
    kept = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=1, reset=nothing))
    return {
        "lease, reset=nothing": taken(PostgresStore(kept)),
        "lease": taken(PostgresStore(pool)),
        "advisory lock": locked(pool),
    }


async def postgres_trips(
    stack: AsyncExitStack, contest: Callable[[AsyncExitStack, str], Awaitable[dict[str, Work]]]
) -> dict[str, float]:
    """Count the round trips of each contender, when it is warm."""
    url = stack.enter_context(postgres())
    trips = Trips(_address(url))
    folder = stack.enter_context(TemporaryDirectory())
    await stack.enter_async_context(counted(trips, Path(folder, ".s.PGSQL.5432")))
    parts = urlsplit(url)
    relayed = f"postgresql://{parts.username or ''}@{parts.path}?host={folder}"
    found = {}
    for name, work in (await contest(stack, relayed)).items():
        for _ in range(3):
            await work()
        trips.count = 0
        for _ in range(10):
            await work()
        found[name] = trips.count / 10
    return found


def _address(url: str) -> str | tuple[str, int]:
    parts = urlsplit(url)
    if host := parse_qs(parts.query).get("host"):
        return f"{host[0]}/.s.PGSQL.5432"
    return parts.hostname or "localhost", parts.port or 5432


@dataclass(frozen=True, slots=True)
class OnSqlite:
    """What is done in a file."""

    lease: Work
    mark: Callable[[], Coroutine[Any, Any, int]]


async def on_sqlite(stack: AsyncExitStack, batch: int) -> OnSqlite:
    """Give the work in a file."""
    folder = stack.enter_context(TemporaryDirectory())
    store = await stack.enter_async_context(SqliteStore(Path(folder, "benchmark.db")))
    log, marked = ProcessedLog(store, "benchmark"), 0

    async def mark() -> int:
        nonlocal marked
        marked += batch
        return await log.mark_many(f"2026/11/{number}.csv" for number in range(marked - batch, marked))

    return OnSqlite(taken(store), mark)
