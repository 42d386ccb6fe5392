"""Stores by their URL."""

from __future__ import annotations

import sys
from typing import Any

import anyio
import pytest
from examples.servers import connections_left

from conftest import ASYNCIO_ONLY, TRIO_ONLY
from rescope.workflow import open_store

on_trio = pytest.mark.parametrize("anyio_backend", TRIO_ONLY, indirect=True)
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)


async def use(url: str) -> None:
    async with open_store(url) as store:
        await store.put("key", 1)
        entry = await store.get("key")
        assert entry is not None
        assert entry.value == 1
        assert await store.delete("key")


async def test_sqlite(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are a path below the working directory, four one from the root."""
    monkeypatch.chdir(tmp_path)
    await use("sqlite:///here.db")
    await use(f"sqlite:///{tmp_path}/there.db")
    assert {"here.db", "there.db"} <= {path.name for path in tmp_path.iterdir()}


async def test_memory() -> None:
    """One in memory has no address."""
    await use("memory:")
    await use("memory://")
    with pytest.raises(ValueError, match="has no address"):
        open_store("memory://here")


@on_asyncio
async def test_postgres(postgres_url: str) -> None:
    """PostgreSQL's own URL opens a pool, and closes it again."""
    separator = "&" if "?" in postgres_url else "?"
    await use(f"{postgres_url}{separator}application_name=by-url")
    assert await connections_left(postgres_url, "by-url") == []


@on_asyncio
async def test_redis(redis_url: str) -> None:
    """redis-py's URL opens a client, and closes it again."""
    await use(f"{redis_url}?client_name=by-url")
    assert await connections_left(redis_url, "by-url") == []


@on_asyncio
async def test_a_valkey_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme of Valkey is told to redis-py as its own."""
    from redis.asyncio import Redis

    asked = []
    real = Redis.from_url

    def from_url(url: str) -> Redis:
        asked.append(url)
        return real(url)

    monkeypatch.setattr(Redis, "from_url", from_url)
    for url in ("valkey://valkey/1", "valkeys://valkey/1"):
        async with open_store(url) as store:
            assert repr(store) == "<RedisStore 'rescope'>"
    assert asked == ["redis://valkey/1", "rediss://valkey/1"]


@pytest.mark.parametrize(
    "url", ["", "jobs.db", "mysql://secret@host", "sqlite", "secret:", "sqlite:jobs.db", "sqlite:///"]
)
def test_what_is_no_url(url: str) -> None:
    """What it can't be is refused at the call, and not shown: it may hold a password."""
    with pytest.raises(ValueError, match=r"sqlite:///jobs\.db") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_what_is_no_string() -> None:
    """What is no string is refused by its type."""
    with pytest.raises(TypeError, match="`url` must be a string, not a int"):
        open_store(7)  # type: ignore[arg-type]


@on_trio
@pytest.mark.parametrize("url", ["postgres://host", "redis://host"])
async def test_trio_is_refused(url: str) -> None:
    """On trio, the error says which stores do run there."""
    with pytest.raises(RuntimeError, match=r"runs on asyncio only.*`SqliteStore`"):
        await use(url)


@pytest.mark.parametrize(("url", "package"), [("postgres://host", "asyncpg"), ("redis://host", "redis")])
def test_a_missing_extra(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client isn't installed, the error says how to get it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'rescope\[(postgres|redis)\]'"):
        anyio.run(use, url)
