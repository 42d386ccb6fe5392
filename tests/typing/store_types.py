# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for the stores of `rescope.workflow`. Never run, only checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, assert_type

from rescope import Scope
from rescope.testing import StoreCheck, store_contract
from rescope.workflow import BatchStore, Entry, MemoryStore, SqliteStore, Store, StoreError, VersionConflictError
from rescope.workflow.store import Scan


class Counters:
    """A store of somebody's own: it needs no base class."""

    async def get(self, key: str) -> Entry | None:
        return Entry(key, 1, 1)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return 1

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        return True

    async def scan(self, prefix: str) -> AsyncIterator[Entry]:
        yield Entry(prefix, 1, 1)


async def use(store: Store) -> None:
    entry = await store.get("key")
    assert_type(entry, Entry | None)
    if entry is not None:
        assert_type(entry.key, str)
        assert_type(entry.version, int)
        assert_type(entry.expires_at, float | None)
        entry.version = 2  # type: ignore[misc]
    assert_type(await store.put("key", {"a": [1]}, ttl=0.5, if_version=0), int)
    assert_type(await store.delete("key", if_version=1), bool)
    async for each in store.scan(""):
        assert_type(each, Entry)
    await store.put(1, 1)  # type: ignore[arg-type]
    if isinstance(store, BatchStore):
        assert_type(await store.put_many({"a": 1, "b": [2]}, ttl=1), dict[str, int])


async def pass_each() -> None:
    for store in (MemoryStore(), SqliteStore("store.db"), Counters()):
        await use(store)
    many: list[BatchStore] = [MemoryStore(clock=lambda: 0.0), SqliteStore(Path("store.db"), synchronous="normal")]
    assert_type(many[0].scan(""), AsyncIterator[Entry])
    assert_type(MemoryStore().scan(""), Scan)
    SqliteStore("store.db", synchronous="off")  # type: ignore[arg-type]


async def hold(scope: Scope) -> None:
    assert_type(scope.add(SqliteStore("store.db")), SqliteStore)
    assert_type(await scope.enter(SqliteStore("store.db")), SqliteStore)
    assert_type(await scope.host(SqliteStore("store.db")), SqliteStore)
    async with SqliteStore("store.db") as store:
        assert_type(store, SqliteStore)


def fail(error: StoreError, conflict: VersionConflictError) -> None:
    assert_type(error.may_retry, bool)
    assert_type((conflict.key, conflict.expected, conflict.found), tuple[str, int, int])


@asynccontextmanager
async def open_counters() -> AsyncGenerator[Counters]:
    yield Counters()


async def check() -> None:
    assert_type(await store_contract(open_counters), int)
    assert_type(await store_contract(partial(SqliteStore, "store.db"), processes=4, timeout=10), int)
    assert_type(store_contract.checks, tuple[StoreCheck, ...])
    await store_contract.checks[0](open_counters, advance=lambda seconds: None, cut=lambda: None)
    assert_type(await store_contract(Counters()), int)
    await store_contract(7)  # type: ignore[arg-type]
