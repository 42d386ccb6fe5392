"""The work: journaled resources, the bare inserts beside them, and what a process that died has left."""

from __future__ import annotations

import json
import sqlite3
import time
import tracemalloc
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from anyio import to_thread
from examples.servers import postgres, valkey

from benchmarks.workflow_work import nothing
from rescope.workflow import JournaledScope, PostgresStore, SqliteStore, cleanup, open_store, recover
from rescope.workflow.journal._records import begin_life, place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack

    from rescope.workflow import Store
    from rescope.workflow.store import BatchStore

    Work = Callable[[], Awaitable[object]]

INSERT, PUT, ACQUIRE, CLOSE, HOP = "bare insert", "put", "acquire", "close", "to a thread and back"
TOKEN = "ci-0123456789abcdef"  # noqa: S105 (no secret)
SINCE = 1763800000.123456
RECORD = {"cleanup": "benchmark.close", "token": TOKEN, "owner": "benchmark", "since": SINCE}
LIFE = begin_life("benchmark", SINCE, "0123456789")
SCOPES = 10


@cleanup("benchmark.close")
def close(_token: str) -> None:
    """Close nothing: what is measured is the journal."""


def journaled(scope: JournaledScope) -> dict[str, Work]:
    """Give what acquires a resource, and what closes the latest one."""

    async def acquire() -> None:
        await scope.acquire(str, close, token=TOKEN)

    async def close_one() -> None:
        await scope.resources[-1].aclose()

    return {ACQUIRE: acquire, CLOSE: close_one}


def in_a_row(work: Work, times: int) -> Work:
    """Give what does that so many times."""

    async def many() -> None:
        for _ in range(times):
            await work()

    return many


# SQLite


async def on_sqlite(stack: AsyncExitStack, synchronous: Literal["full", "normal"]) -> dict[str, Work]:
    """Give the contenders, each with a file of its own, all in the same journal mode."""
    folder = stack.enter_context(TemporaryDirectory())
    bare = stack.enter_context(closing(_bare(Path(folder, "bare.db"), synchronous)))
    store, journal = [
        await stack.enter_async_context(SqliteStore(Path(folder, name), synchronous=synchronous))
        for name in ("store.db", "journal.db")
    ]
    scope = await stack.enter_async_context(JournaledScope(journal, "benchmark"))
    keys = map(key, count())

    async def insert() -> None:
        bare.execute("INSERT INTO entries VALUES (?, ?)", (next(keys), json.dumps(RECORD)))

    async def put() -> None:
        await store.put(next(keys), RECORD)

    async def hop() -> None:
        await to_thread.run_sync(int)

    works = journaled(scope)
    await works[ACQUIRE]()  # so that there is one to close, whoever comes first
    return {INSERT: insert, PUT: put, **works, HOP: hop}


def _bare(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)  # each insert is a transaction
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    return connection


def key(number: int) -> str:
    """Give the key of a record, as the journal has them."""
    return f"{LIFE.prefix}{place(number % SCOPES + 1)}/{place(number)}"


# PostgreSQL


async def on_postgres(stack: AsyncExitStack, url: str) -> dict[str, Work]:
    """Give the contenders on a PostgreSQL server: a pool that resets nothing, and one as it is."""
    import asyncpg

    kept = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=1, reset=nothing))
    pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=1))
    contest = {}
    for name, store in {", reset=nothing": PostgresStore(kept), "": PostgresStore(pool)}.items():
        scope = await stack.enter_async_context(JournaledScope(store, "benchmark"))
        for what, work in journaled(scope).items():
            contest[f"{what}{name}"] = work
    return contest


# Recovering


async def open_on(stack: AsyncExitStack, where: str) -> BatchStore:
    """Open a store of that kind, on a server or in a file of its own."""
    if where == "SQLite":
        url = f"sqlite:///{stack.enter_context(TemporaryDirectory())}/journal.db"
    else:
        url = stack.enter_context(postgres() if where == "PostgreSQL" else valkey())
    return await stack.enter_async_context(open_store(url))


async def timed(store: BatchStore, many: int) -> float:
    """Give the seconds that it takes to recover so many."""
    await leave(store, many)
    start = time.perf_counter()
    await recover_all(store, many)
    return time.perf_counter() - start


async def weighed(store: BatchStore, many: int) -> float:
    """Give the megabytes that Python allocates for it, at most at a time."""
    await leave(store, many)
    tracemalloc.start()
    try:
        await recover_all(store, many)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


async def leave(store: BatchStore, many: int) -> None:
    """Write what a process that died would have left, in ten scopes."""
    for start in range(0, many, 1000):
        await store.put_many({key(number): RECORD for number in range(start, min(many, start + 1000))})


async def recover_all(store: Store, many: int) -> None:
    """Recover all of it, in one pass."""
    report = await recover(store, grace=3600)
    if len(report.closed) != many:
        msg = f"of {many} records: {report.summary}"
        raise RuntimeError(msg)


PLACES = ("SQLite", "PostgreSQL", "Valkey")
MODES: dict[str, Literal["full", "normal"]] = {"SQLite": "full", "SQLite, normal": "normal"}
