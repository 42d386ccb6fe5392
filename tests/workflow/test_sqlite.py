"""`SqliteStore`: the contract, between processes too, and what is its own."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread, active_count
from typing import Any

import anyio
import pytest
from anyio import to_thread

from conftest import ASYNCIO_ONLY, TRIO_ONLY
from rescope import Scope
from rescope.testing import store_contract
from rescope.testing._store_bench import increment
from rescope.workflow import Entry, SqliteStore, StoreClosedError, StoreError, VersionConflictError
from rescope.workflow.stores import sqlite
from workflow.broken_stores import Clock

CHECKS = [check for check in store_contract.checks if check.needs is None]
BETWEEN_PROCESSES = [check for check in store_contract.checks if check.needs == "processes"]
asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """A store there, open, that waits for nobody."""
    async with SqliteStore(path, busy_timeout=0) as store:
        yield store


@contextmanager
def another(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program that has the database open."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with another(path) as connection:
        return connection.execute(sql).fetchall()


def content(path: Path) -> dict[str, bytes]:
    """What lies where the database is."""
    return {each.name: each.read_bytes() for each in path.parent.iterdir()}


class Held:
    """A clock that holds up the thread that asks for the time."""

    def __init__(self) -> None:
        self.asked = Event()
        self.go_on = Event()

    def __call__(self) -> float:
        self.asked.set()
        assert self.go_on.wait(10)
        return 1000.0


# The contract


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_it_keeps_the_contract(check: Any, path: Path) -> None:
    """Each check is a test."""
    clock = Clock()
    await check(partial(SqliteStore, path, synchronous="normal", clock=clock), advance=clock.advance)

    assert query(path, "PRAGMA integrity_check") == [("ok",)]


async def test_it_expires_by_the_clock_of_the_machine(path: Path) -> None:
    """Where no other is given."""
    async with SqliteStore(path) as store:
        before = time.time()
        await store.put("key", 1, ttl=100)
        entry = await store.get("key")

    assert entry is not None
    assert entry.expires_at is not None
    assert before + 100 <= entry.expires_at <= time.time() + 100


@pytest.mark.parametrize("check", BETWEEN_PROCESSES, ids=str)
async def test_it_keeps_the_contract_between_processes(check: Any, path: Path) -> None:
    """Processes that race lose nothing, and one that is killed leaves nothing half-written."""
    await check(partial(SqliteStore, path, synchronous="normal"), processes=4)

    assert query(path, "PRAGMA integrity_check") == [("ok",)]


async def test_it_keeps_the_contract_in_memory() -> None:
    """A store of its own, for tests."""
    clock = Clock()
    async with SqliteStore(":memory:", clock=clock) as store:

        @asynccontextmanager
        async def open_store() -> AsyncIterator[SqliteStore]:
            yield store

        assert await store_contract(open_store, advance=clock.advance) == len(CHECKS)


# Opening


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        (b"store.db", {}, TypeError, "`path` must be a string or a path of strings, not bytes"),
        (3, {}, TypeError, "expected str, bytes or os.PathLike object, not int"),
        ("", {}, ValueError, "`path` must be the path of a file, or ':memory:'"),
        ("a\0b", {}, ValueError, "`path` must be the path of a file, or ':memory:'"),
        ("a", {"busy_timeout": -1}, ValueError, "`busy_timeout` must be from 0 to 3600 seconds, not -1"),
        ("a", {"busy_timeout": float("nan")}, ValueError, "`busy_timeout` must be from 0 to 3600 seconds, not nan"),
        ("a", {"synchronous": "off"}, ValueError, "`synchronous` must be 'full' or 'normal'"),
    ],
)
def test_arguments_that_can_not_be_are_refused(path: Any, options: Any, error: type[Exception], message: str) -> None:
    """At once, and not when the store is used."""
    with pytest.raises(error) as caught:
        SqliteStore(path, **options)

    assert str(caught.value).startswith(message)


async def test_it_opens_when_it_is_first_used(path: Path) -> None:
    """To make one does nothing yet, so it may be made anywhere."""
    store = SqliteStore(str(path))
    before = content(path), repr(store)
    await store.put("key", 1)
    during = repr(store)
    await store.aclose()

    assert before == ({}, f"<SqliteStore {str(path)!r} not opened>")
    assert during == f"<SqliteStore {str(path)!r} open>"
    assert repr(store) == f"<SqliteStore {str(path)!r} closed>"


async def test_it_shares_the_file_with_tables_of_your_own(path: Path) -> None:
    """Its tables have names that tell whose they are."""
    with another(path) as connection:
        connection.execute("CREATE TABLE orders (id)")
        connection.execute("PRAGMA user_version = 7")
    async with SqliteStore(path) as store:
        await store.put("key", 1)
    names = [name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]

    assert names == ["orders", "rescope_entries", "rescope_schema", "sqlite_sequence"]
    assert query(path, "PRAGMA user_version") == [(7,)]


async def test_it_writes_ahead(store: SqliteStore, path: Path) -> None:
    """So readers and a writer don't wait for each other."""
    await store.put("key", 1)

    assert query(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
async def test_a_put_waits_for_the_disk_or_does_not(path: Path, synchronous: Any, level: int) -> None:
    """As it was chosen."""
    async with SqliteStore(path, synchronous=synchronous) as store:
        found = store._connection and store._connection.execute("PRAGMA synchronous").fetchone()

    assert found == (level,)


async def test_a_schema_of_a_newer_version_is_refused_and_nothing_is_written(path: Path) -> None:
    """An old program must not spoil what a newer one has written."""
    with another(path) as connection:
        connection.execute("CREATE TABLE rescope_schema (version)")
        connection.execute("INSERT INTO rescope_schema VALUES (2)")
    before = content(path)
    with pytest.raises(
        StoreError, match="has schema 2, of a newer rescope; this one knows 1: update rescope"
    ) as caught:
        await SqliteStore(path).put("key", 1)

    assert not caught.value.may_retry
    assert content(path) == before


async def test_a_file_that_is_no_database_is_refused() -> None:
    """And left as it is."""
    before = Path(__file__).read_bytes()  # noqa: ASYNC240
    with pytest.raises(StoreError, match="file is not a database; nothing was written") as caught:
        async with SqliteStore(__file__):
            pass

    assert __file__ in str(caught.value)
    assert Path(__file__).read_bytes() == before  # noqa: ASYNC240


async def test_a_file_that_can_not_be_opened_is_told(tmp_path: Path) -> None:
    """With its path; and the store may be tried again."""
    store = SqliteStore(tmp_path / "nowhere" / "store.db")
    with pytest.raises(StoreError, match=r"nowhere/store\.db': unable to open database file"):
        await store.get("key")
    await anyio.Path(tmp_path, "nowhere").mkdir()
    async with store:
        assert await store.get("key") is None


async def test_a_database_that_sorts_otherwise_is_refused(path: Path) -> None:
    """In UTF-16, keys would not be in the order of code points."""
    with another(path) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE orders (id)")
    with pytest.raises(StoreError, match="is in UTF-16le, which sorts keys otherwise"):
        await SqliteStore(path).get("key")

    assert query(path, "SELECT name FROM sqlite_master") == [("orders",)]


async def test_many_open_it_at_once(path: Path) -> None:
    """One of them makes the tables, and none fails."""
    stores = [SqliteStore(path) for _ in range(10)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.put, "key", 1)
    for store in stores:
        await store.aclose()

    assert query(path, "SELECT version FROM rescope_schema") == [(1,)]
    assert query(path, "SELECT version FROM rescope_entries") == [(10,)]


async def test_tables_that_another_makes_meanwhile_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited for its turn looks again."""
    log_ahead = SqliteStore._log_ahead

    def made_meanwhile(self: SqliteStore, connection: sqlite3.Connection) -> None:
        log_ahead(self, connection)
        with another(path) as other:
            for statement in sqlite._CREATE:
                other.execute(statement)

    monkeypatch.setattr(SqliteStore, "_log_ahead", made_meanwhile)
    async with SqliteStore(path) as store:
        assert await store.put("key", 1) == 1


# Waiting


async def test_who_waits_too_long_for_another_is_told(store: SqliteStore, path: Path) -> None:
    """The error says that it may be retried, and then it may."""
    await store.put("key", "before")
    with another(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError) as caught:
            await store.put("key", "after")
        entry = await store.get("key")
        connection.execute("ROLLBACK")

    assert str(caught.value) == (
        f"the store at {str(path)!r}: others have kept it busy for longer than the `busy_timeout` of 0 s; "
        "nothing was written"
    )
    assert caught.value.may_retry
    assert entry == Entry("key", "before", 1)
    assert await store.put("key", "after") == 2


async def test_a_put_waits_for_another_process(path: Path) -> None:
    """For as long as it was told to."""
    async with SqliteStore(path, busy_timeout=60) as store:
        with another(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.put, "key", 1)
                await to_thread.run_sync(time.sleep, 0.01)
                connection.execute("COMMIT")

        assert await store.get("key") == Entry("key", 1, 1)


async def test_the_time_is_read_when_the_waiting_is_over(path: Path) -> None:
    """So a put that waited long doesn't expire early."""
    clock = Held()
    clock.go_on.set()
    async with SqliteStore(path, busy_timeout=60, clock=clock) as store:
        with another(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(store.put, "key", 1, ttl=10))
                await to_thread.run_sync(time.sleep, 0.01)
                asked = clock.asked.is_set()
                connection.execute("COMMIT")

    assert (asked, clock.asked.is_set()) == (False, True)


@pytest.mark.parametrize("busy_timeout", [0, 60])
async def test_opening_waits_for_others_who_do_so_too(path: Path, busy_timeout: float) -> None:
    """To write ahead, each of them needs the file for itself for a moment."""
    with another(path) as connection:
        connection.execute("CREATE TABLE orders (id)")
        connection.execute("BEGIN EXCLUSIVE")
        store = SqliteStore(path, busy_timeout=busy_timeout)
        failed: list[StoreError] = []

        async def put() -> None:
            try:
                await store.put("key", 1)
            except StoreError as exc:
                failed.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put)
            await to_thread.run_sync(time.sleep, 0.05)
            connection.execute("COMMIT")
    await store.aclose()

    assert [error.may_retry for error in failed] == ([] if busy_timeout else [True])


class Busy:
    """A connection that can't switch to a write-ahead log the first few times."""

    def __init__(self, times: int, code: int = sqlite3.SQLITE_BUSY) -> None:
        self.times = times
        self.code = code

    def execute(self, sql: str) -> None:
        if self.times:
            self.times -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_switching_to_a_log_is_tried_again_for_as_long_as_it_may(path: Path) -> None:
    """SQLite doesn't wait by itself there, where two do so at once."""
    patient, hasty, hopeless = Busy(3), Busy(3), Busy(1, sqlite3.SQLITE_IOERR)
    SqliteStore(path)._log_ahead(patient)  # type: ignore[arg-type]
    for busy, seconds in ((hasty, 0), (hopeless, 5)):
        with pytest.raises(sqlite3.OperationalError):
            SqliteStore(path, busy_timeout=seconds)._log_ahead(busy)  # type: ignore[arg-type]

    assert (patient.times, hopeless.times) == (0, 0)
    assert hasty.times


# Failing


async def test_a_disk_that_is_full_is_told(store: SqliteStore) -> None:
    """To try again at once would not help, and nothing is half-written."""
    await store.put("key", "before")
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreError, match="database or disk is full; nothing was written") as caught:
        await store.put_many({"a": 1, "key": "x" * 100_000})

    assert not caught.value.may_retry
    assert [entry.value async for entry in store.scan("")] == ["before"]


async def test_what_another_has_written_that_is_no_json_is_told(store: SqliteStore, path: Path) -> None:
    """By its key alone."""
    with another(path) as connection:
        connection.execute("INSERT INTO rescope_entries (key, value) VALUES ('key', 'hunter2')")
    with pytest.raises(StoreError) as caught:
        await store.get("key")

    assert "'key' is not JSON" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_failure_in_the_middle_undoes_the_whole(path: Path) -> None:
    """And the connection is good for the next."""
    clock = Clock()

    def now() -> float:
        if clock.now < 0:
            raise OSError("no clock")
        return clock.now

    async with SqliteStore(path, clock=now) as store:
        await store.put("key", "before")
        with pytest.raises(VersionConflictError):
            await store.put("key", "after", if_version=7)
        clock.advance(-2000)
        with pytest.raises(OSError, match="no clock"):
            await store.put("key", "after")
        clock.advance(2000)

        assert await store.get("key") == Entry("key", "before", 1)
        assert await store.put("key", "after") == 2


# Cancelling


async def test_a_call_that_is_cancelled_before_it_has_begun_does_nothing(store: SqliteStore) -> None:
    """It has taken no thread."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.put("key", 1)

    assert scope.cancelled_caught
    assert await store.get("key") is None


async def test_a_call_that_has_begun_is_done_as_a_whole(path: Path) -> None:
    """Its cancellation waits for it, and the connection is fine afterwards."""
    clock = Held()
    async with SqliteStore(path, clock=clock) as store:
        versions: list[int] = []

        async def put(scope: anyio.CancelScope) -> None:
            with scope:
                versions.append(await store.put("key", 1))
                await anyio.sleep_forever()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, scope)
            await to_thread.run_sync(clock.asked.wait)
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            clock.go_on.set()

        assert versions == [1]
        assert await store.get("key") == Entry("key", 1, 1)


@asyncio_only
async def test_a_task_that_is_cancelled_leaves_a_call_that_is_done_as_a_whole(path: Path) -> None:
    """`task.cancel()` cuts off the waiting; the thread goes on, and who comes next waits for it."""
    clock = Held()
    async with SqliteStore(path, clock=clock) as store:
        task = asyncio.ensure_future(store.put("key", 1))
        await to_thread.run_sync(clock.asked.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        clock.go_on.set()

        assert await store.get("key") == Entry("key", 1, 1)
        assert await store.put("key", 2, if_version=1) == 2


async def test_who_waits_for_the_connection_takes_no_thread(path: Path) -> None:
    """However many call, there is one thread for them, and none of anybody else's."""
    clock = Held()
    limiter, before = to_thread.current_default_thread_limiter(), active_count()
    async with SqliteStore(path, clock=clock) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(store.put, f"key {number}", 1)
            await to_thread.run_sync(clock.asked.wait)
            await anyio.wait_all_tasks_blocked()
            threads, borrowed = active_count(), limiter.borrowed_tokens
            clock.go_on.set()

        assert threads < before + 10
        assert borrowed == 0
        assert len([entry async for entry in store.scan("")]) == 100


# Closing


async def test_a_closed_store_is_told(path: Path) -> None:
    """By every method, with the mend; closing it again does nothing."""
    store = SqliteStore(path)
    await store.put("key", 1)
    await store.aclose()
    await store.aclose()
    for call in (
        lambda: store.get("key"),
        lambda: store.put("key", 1),
        lambda: store.put_many({"key": 1}),
        lambda: store.delete("key"),
        lambda: anext(store.scan("")),
        store.__aenter__,
    ):
        with pytest.raises(StoreClosedError, match="is closed: use it before its scope closes, or make a new one"):
            await call()

    assert list(content(path)) == [path.name]


async def test_a_store_that_was_never_used_is_closed_too(path: Path) -> None:
    """And writes nothing."""
    await SqliteStore(path).aclose()

    assert content(path) == {}


async def test_closing_waits_for_what_is_under_way(path: Path) -> None:
    """Also when it is cancelled, so that the file is closed in any case. What has not begun is told."""
    clock = Held()
    store = SqliteStore(path, clock=clock)
    outcomes: list[object] = []

    async def put() -> None:
        try:
            outcomes.append(await store.put("key", 1))
        except StoreClosedError:
            outcomes.append("closed")

    async def close() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.aclose()
        outcomes.append(store._connection)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put)
        await to_thread.run_sync(clock.asked.wait)
        tasks.start_soon(put)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        clock.go_on.set()

    assert outcomes == [1, "closed", None]


@pytest.mark.parametrize("hold", ["add", "enter", "host"])
async def test_a_scope_holds_it_in_any_way(path: Path, hold: str) -> None:
    """And closes it with the rest."""
    async with Scope() as scope:
        if hold == "add":
            store = scope.add(SqliteStore(path))
        else:
            store = await getattr(scope, hold)(SqliteStore(path))
        await store.put("key", 1)
    with pytest.raises(StoreClosedError):
        await store.get("key")

    assert list(content(path)) == [path.name]


async def test_a_scan_reads_in_pages(path: Path) -> None:
    """So few entries are in memory: what is deleted far ahead isn't given."""
    names = [f"{number:04}" for number in range(501)]
    async with SqliteStore(path) as store:
        await store.put_many(dict.fromkeys(names, 1))
        scan = store.scan("")
        first = await anext(scan)
        await store.delete(names[-1])

        assert [first.key, *[entry.key async for entry in scan]] == names[:-1]


async def test_a_page_of_large_values_is_short(path: Path) -> None:
    """A few of them are enough for one; and what was read is let go of."""
    async with SqliteStore(path) as store:
        await store.put_many({f"{number:02}": "x" * 300_000 for number in range(10)})
        scan = store.scan("")
        await anext(scan)
        with another(path) as connection:
            connection.execute("DELETE FROM rescope_entries WHERE key IN ('03', '04', '05')")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

        assert busy == 0
        assert [entry.key async for entry in scan] == ["01", "02", "03", "06", "07", "08", "09"]


# Threads, loops and processes


def test_threads_and_their_loops_share_it(path: Path) -> None:
    """None of their updates is lost, on asyncio and on trio at once."""
    store = SqliteStore(path, synchronous="normal")

    async def count() -> None:
        for _ in range(20):
            await increment(store, "count")

    backends = ["asyncio", "trio" if TRIO_ONLY else "asyncio"] * 2
    threads = [Thread(target=partial(anyio.run, count, backend=name)) for name in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    anyio.run(store.aclose)

    assert query(path, "SELECT value FROM rescope_entries") == [("80",)]


FORKED = """
import os, sys, anyio
from rescope.workflow import SqliteStore, StoreError
import rescope.workflow.stores.sqlite

async def use(store, closing=True):
    try:
        await store.put("key", "child")
    except StoreError as exc:
        print(str(exc).replace(sys.argv[1], "store.db"), exc.may_retry, flush=True)
    else:
        print("fine", flush=True)
    if closing:
        await store.aclose()

store, unused = SqliteStore(sys.argv[1]), SqliteStore(sys.argv[1] + "2")
anyio.run(store.put, "key", "parent")
pid = os.fork()
if not pid:
    anyio.run(use, store)
    anyio.run(use, SqliteStore(sys.argv[1]))
    anyio.run(use, unused)
    anyio.run(use, SqliteStore(":memory:"))
    os._exit(0)
os.waitpid(pid, 0)
print(anyio.run(store.get, "key").value, flush=True)
anyio.run(store.aclose)
if not os.fork():
    anyio.run(use, SqliteStore(sys.argv[1]))
    os._exit(0)
os.wait()
"""


@can_fork
def test_a_process_that_was_forked_does_not_use_what_was_open(path: Path) -> None:
    """SQLite's locks don't go through a fork: what was open there, and its file, are refused; others are fine."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    refused = (
        "the store at 'store.db' was open when this process was forked, which SQLite does not stand: "
        "start processes by 'spawn', or close the store before the fork False"
    )

    assert run.stderr == ""
    assert run.stdout.splitlines() == [refused, refused, "fine", "fine", "parent", "fine"]


async def test_another_process_is_told_by_its_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was open is refused there, and closing it leaves it to the one that opened it."""
    store = SqliteStore(path)
    await store.put("key", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        for of_the_other in (store, SqliteStore(path)):
            with pytest.raises(StoreError, match="was open when this process was forked"):
                await of_the_other.get("key")
        await store.aclose()
        left_open = store._connection
    await store.aclose()

    assert left_open is not None
    assert store._connection is None


# Sweeping


async def test_what_has_expired_is_swept(path: Path) -> None:
    """A thousand at a time, by who puts, once a minute where there is nothing to do."""
    clock = Clock()
    counts: list[int] = []

    async def put() -> None:
        await store.put("key", 1)
        counts.extend(count for (count,) in query(path, "SELECT count(*) FROM rescope_entries"))

    async with SqliteStore(path, clock=clock) as store:
        await store.put_many({f"{number}": 1 for number in range(1500)}, ttl=10)
        clock.advance(30)
        await put()  # the minute is not over
        clock.advance(31)
        for _ in range(3):
            await put()
        await store.put("short", 1, ttl=1)
        clock.advance(2)
        await put()

    assert counts == [1501, 501, 1, 1, 2]


async def test_a_clock_that_was_put_back_does_not_stop_the_sweeping(path: Path) -> None:
    """It is swept at once, and a minute later."""
    clock = Clock()
    async with SqliteStore(path, clock=clock) as store:
        await store.put("a", 1, ttl=1)
        clock.advance(-500)
        await store.put("b", 1, ttl=1)
        clock.advance(2)
        await store.put("c", 1)
        clock.advance(60)
        await store.put("d", 1)

    assert query(path, "SELECT key FROM rescope_entries ORDER BY key") == [("a",), ("c",), ("d",)]


async def test_versions_survive_everything_that_goes(path: Path) -> None:
    """They go on where they were when the store is empty, and when it is opened again."""
    async with SqliteStore(path) as store:
        first = await store.put("key", 1)
        await store.delete("key")
    async with SqliteStore(path) as store:
        second = await store.put("key", 1)

    assert (first, second) == (1, 2)
