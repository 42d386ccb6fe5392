"""How the contract opens a store on a server, here and in the processes that it starts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from rescope.workflow import PostgresStore, RedisStore


@asynccontextmanager
async def open_postgres(url: str, table: str = "rescope_store", **options: Any) -> AsyncGenerator[PostgresStore]:
    import asyncpg

    async with asyncpg.create_pool(url, min_size=1, max_size=8, **options) as pool:
        yield PostgresStore(pool, table=table)


@asynccontextmanager
async def open_redis(url: str, **options: Any) -> AsyncGenerator[RedisStore]:
    from redis.asyncio import Redis

    async with Redis.from_url(url, **options) as client:
        yield RedisStore(client)


@asynccontextmanager
async def open_cluster(port: int) -> AsyncGenerator[RedisStore]:
    from redis.asyncio import RedisCluster

    async with RedisCluster(host="127.0.0.1", port=port) as client:
        yield RedisStore(client)
