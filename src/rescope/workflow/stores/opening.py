"""A store by its URL, as programs get one from a command line or their environment."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rescope import Scope
from rescope.workflow.stores._asyncio import refuse_trio
from rescope.workflow.stores.memory import MemoryStore
from rescope.workflow.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from rescope.workflow.store import BatchStore

    _Opener = Callable[[str, str], AbstractAsyncContextManager[BatchStore]]

__all__ = ["open_store"]

_TO_CLOSE = 5.0  # seconds
_WAYS = "sqlite:///jobs.db, sqlite:////var/lib/jobs.db, postgresql://user@host/database, redis://host, memory:"


def open_store(url: str) -> AbstractAsyncContextManager[BatchStore]:
    """Open the store at a URL, for as long as the manager that this gives is entered.

    ``async with open_store("sqlite:///jobs.db") as store:``, or ``store = await scope.enter(open_store(url))``.

    `sqlite:///jobs.db` is a path below the working directory, `sqlite:////var/lib/jobs.db` one from the root;
    `postgresql://` and `postgres://` are as asyncpg has them, `redis://`, `rediss://` and `unix://` as redis-py has
    them, and `valkey://`, `valkeys://` are the same. `memory:` is for tests. It connects when it is first used. It is
    closed within 5 seconds, and no cancellation reaches that.

    Raises `TypeError` or `ValueError` at once for what is no such URL, without showing it, as it may hold a password.
    On entering: `ImportError` where the extra is missing, `RuntimeError` on trio for what knows asyncio alone, and
    what the client says of a URL that it can't read.
    """
    opener, rest = _parsed(url)
    return opener(url, rest)


def _parsed(url: object) -> tuple[_Opener, str]:
    if not isinstance(url, str):
        msg = f"`url` must be a string, not a {type(url).__qualname__}: as {_WAYS}"
        raise TypeError(msg)
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() not in _OPENERS:
        msg = f"`url` must begin with one of {', '.join(f'{known}:' for known in _OPENERS)}: as {_WAYS}"
        raise ValueError(msg)
    return _OPENERS[scheme.lower()], rest


def _memory(_url: str, rest: str) -> AbstractAsyncContextManager[BatchStore]:
    if rest.strip("/"):
        msg = "a store in memory has no address: write `memory:`"
        raise ValueError(msg)
    return nullcontext(MemoryStore())


def _sqlite(_url: str, rest: str) -> AbstractAsyncContextManager[BatchStore]:
    path = re.fullmatch("///(.+)", rest, re.DOTALL)
    if path is None:
        msg = "`url` must name a file: sqlite:///jobs.db below the working directory, sqlite:////var/lib/jobs.db from /"
        raise ValueError(msg)
    return SqliteStore(path[1])


@asynccontextmanager
async def _postgres(url: str, _rest: str) -> AsyncGenerator[BatchStore]:
    refuse_trio("PostgresStore", "asyncpg")
    asyncpg = _imported("asyncpg", "postgres")
    from rescope.workflow.stores.postgres import PostgresStore

    async with Scope("store") as scope:
        # It connects when it is first used. A reset is a round trip, and the store leaves nothing to reset.
        pool = await asyncpg.create_pool(url, min_size=0, reset=_nothing)
        scope.add(pool, name="pool", timeout=_TO_CLOSE, force=pool.terminate)
        yield PostgresStore(pool)


@asynccontextmanager
async def _redis(url: str, _rest: str) -> AsyncGenerator[BatchStore]:
    refuse_trio("RedisStore", "redis-py")
    redis = _imported("redis.asyncio", "redis")
    from rescope.workflow.stores.redis import RedisStore

    async with Scope("store") as scope:
        client = redis.Redis.from_url(re.sub("^valkey", "redis", url, flags=re.IGNORECASE))
        scope.add(client, name="client", timeout=_TO_CLOSE)
        yield RedisStore(client)


async def _nothing(_connection: object) -> None:
    pass


def _imported(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as missing:
        msg = f"a {extra}: URL needs {module.partition('.')[0]}: pip install 'rescope[{extra}]'"
        raise ImportError(msg, name=missing.name) from missing


_OPENERS: dict[str, _Opener] = {
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
    "redis": _redis,
    "rediss": _redis,
    "unix": _redis,
    "valkey": _redis,
    "valkeys": _redis,
    "memory": _memory,
}
