# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `KeyedPool`. Never run, only checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import assert_type

from rescope import Resource, Scope
from rescope.pool import KeyedPool


class Connection:
    """What is opened."""

    def __init__(self, dsn: str, timeout: float = 5) -> None: ...

    async def aclose(self) -> None: ...
    async def ping(self) -> bool:
        return True


class Session:
    """A client that is its own manager."""

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc: object) -> None: ...


async def connect(dsn: str) -> Connection:
    return Connection(dsn)


async def connect_in(scope: Scope, shard: int) -> Connection:
    return scope.add(Connection(str(shard)))


def connect_now(scope: Scope, shard: int) -> Connection:
    return scope.add(Connection(str(shard)))


def paired(shard: int) -> Resource[Connection]:
    raise NotImplementedError


async def paired_later(shard: int) -> Resource[Connection]:
    raise NotImplementedError


@asynccontextmanager
async def client(url: str) -> AsyncGenerator[Connection]:
    yield Connection(url)


def session(url: str) -> Session:
    del url
    return Session()


def valid(connection: Connection) -> bool:
    del connection
    return True


async def main() -> None:
    assert_type(KeyedPool(Connection), KeyedPool[str, Connection])
    assert_type(KeyedPool(connect), KeyedPool[str, Connection])
    assert_type(KeyedPool(connect_in), KeyedPool[int, Connection])
    assert_type(KeyedPool(connect_now), KeyedPool[int, Connection])
    assert_type(KeyedPool(paired), KeyedPool[int, Connection])
    assert_type(KeyedPool(paired_later), KeyedPool[int, Connection])
    assert_type(KeyedPool(client), KeyedPool[str, Connection])
    assert_type(KeyedPool(session), KeyedPool[str, Session])

    pool = KeyedPool(connect_in, idle=60, limit=10, validate=Connection.ping, grace=5, label=str)
    assert_type(pool.use(3), AbstractAsyncContextManager[Connection, bool | None])
    async with pool.use(3) as connection:
        assert_type(connection, Connection)
    async with pool as same:
        assert_type(same, KeyedPool[int, Connection])
    assert_type(Scope().add(pool), KeyedPool[int, Connection])
    assert_type(3 in pool, bool)
    assert_type(pool.size, int)

    KeyedPool(connect, validate=valid)
    pool.use("three")  # type: ignore[arg-type]
    KeyedPool(connect, limit="ten")  # type: ignore[call-overload]
    KeyedPool(connect, validate=len)  # type: ignore[arg-type]
