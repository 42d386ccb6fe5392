"""The example that loads a folder of CSV files, killed again and again."""

from __future__ import annotations

import csv
import os
import random
import signal
import sqlite3
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from conftest import ASYNCIO_ONLY
from rescope import Scope
from rescope.workflow import JobLog, JobStatus, MemoryStore, ProcessedLog, RetryLedger, Store, StoreError
from running import EXAMPLES, every_backend, load_example, run_example
from workflow.broken_stores import Good

INBOX = EXAMPLES / "inbox"
SOUND = sorted(path for path in INBOX.glob("*.csv") if "damaged" not in path.name)
TTL = "0.3"  # seconds
HEADER = "order,customer,item,pieces,cents\n"

once = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1], indirect=True)


@pytest.fixture(scope="module")
def ingest() -> ModuleType:
    """The example, as a module."""
    return load_example("ingest.py")


def rows_of(path: Path) -> list[tuple[str, ...]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [tuple(row) for row in list(csv.reader(lines))[1:]]


def arrived(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT id, customer, item, pieces, cents FROM orders ORDER BY id")
        return [tuple(map(str, row)) for row in rows]


EXPECTED = sorted(row for path in SOUND for row in rows_of(path)) + rows_of(INBOX / "orders-damaged.csv")[:20]
"""Of the damaged file, what was loaded before the batch with the damage."""


@every_backend
def test_it_loads_what_ships(backend: str, tmp_path: Path) -> None:
    """Each row arrives once, and the damaged file is told with its line."""
    shared = ("--into", str(tmp_path / "orders.db"), "--store", f"sqlite:///{tmp_path}/ingest.db", "--backend", backend)
    first = run_example("ingest.py", *shared)
    assert (first.returncode, first.stderr) == (0, "")
    assert "orders-damaged.csv@" in first.stdout
    assert "line 41: invalid literal" in first.stdout
    assert arrived(tmp_path / "orders.db") == EXPECTED

    again = run_example("ingest.py", *shared)
    assert (again.returncode, again.stderr) == (0, "")
    assert "rows\n" not in again.stdout.replace("rows are there", "")  # nothing was loaded, nor tried, again

    table = run_example("ingest.py", "--show", *shared, env={"COLUMNS": "200"})
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.count("completed") == len(SOUND)
    assert table.stdout.count("failed") == 1


def killed_again_and_again(folder: Path, store: str, kills: int, seed: int) -> int:
    """Start it until it comes to its end; kill it up to so many times; tell how often that was."""
    random_point = random.Random(seed).uniform
    into = folder / "orders.db"
    command = [sys.executable, str(EXAMPLES / "ingest.py"), "--into", str(into), "--store", store, "--ttl", TTL]
    killed = 0
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:  # noqa: S603
            assert worker.stdout is not None
            assert worker.stdout.readline().startswith(str(INBOX))
            try:
                worker.wait(random_point(0, 0.5) if killed < kills else 60)
            except subprocess.TimeoutExpired:
                worker.kill()
                killed += 1
                continue
            finally:
                told = worker.communicate()
            assert worker.returncode == 0, told
            assert arrived(into) == EXPECTED
            return killed


@pytest.mark.long
def test_every_row_arrives_once_wherever_it_is_killed(tmp_path: Path) -> None:
    """After twenty kills at random points, over as many runs as that takes, each row is there once."""
    kills = runs = 0
    while kills < 20:
        folder = tmp_path / str(runs)
        folder.mkdir()
        kills += killed_again_and_again(folder, f"sqlite:///{folder}/ingest.db", 20 - kills, seed=runs)
        runs += 1
    assert kills == 20


@pytest.mark.long
def test_the_same_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    """With what is shared in PostgreSQL, each row is there once too."""
    store = anyio.run(new_database, postgres_url)
    assert killed_again_and_again(tmp_path, store, 5, seed=1) <= 5


@pytest.mark.long
def test_the_same_on_valkey(tmp_path: Path, redis_url: str) -> None:
    """With what is shared in Valkey, each row is there once too."""
    assert killed_again_and_again(tmp_path, f"{redis_url}?db=5", 5, seed=1) <= 5


async def new_database(url: str) -> str:
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute("CREATE DATABASE ingest")
    await connection.close()
    before, mark, after = url.partition("?")
    return f"{before.rpartition('/')[0]}/ingest{mark}{after}"


@pytest.mark.long
def test_two_at_once(tmp_path: Path) -> None:
    """Two workers share the files, and load none twice."""
    shared = ["--into", str(tmp_path / "orders.db"), "--store", f"sqlite:///{tmp_path}/ingest.db"]
    command = [sys.executable, str(EXAMPLES / "ingest.py"), *shared]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]  # noqa: S603
    told = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert "".join(told).count(" rows\n") == len(SOUND)
    assert arrived(tmp_path / "orders.db") == EXPECTED


def test_what_it_can_not_use_is_told(tmp_path: Path) -> None:
    """A store that can't be reached ends it, with what to look at."""
    nowhere = tmp_path / "no.sock"
    ended = run_example("ingest.py", "--store", f"unix://{nowhere}", "--into", str(tmp_path / "orders.db"))
    assert ended.returncode == 1
    assert "Look at unix: and at" in ended.stderr


# Files that are not as they should be


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file that looks as if that were a minute ago."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    a_minute_ago = path.stat().st_mtime - 60
    os.utime(path, (a_minute_ago, a_minute_ago))
    return path


def test_a_bad_file_is_told_and_holds_up_no_other(tmp_path: Path) -> None:
    """What can't be read is a failed job each, and the rest is loaded; the table shows what is in a file as it is."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "folder.csv").mkdir()
    bad: dict[str, tuple[str | bytes, str]] = {
        "columns.csv": ("1,ada,jar,1,1\n", "line 1: no column order, customer, item, pieces, cents"),
        "latin.csv": (HEADER.encode() + b"1,\xff,jar,1,1\n", "can't decode byte 0xff"),
        "large.csv": (f"{HEADER}1,ada,jar,{10**30},1\n", "too large"),
        "long.csv": (f"{HEADER}1,{'a' * 200_000},jar,1,1\n", "field larger than field limit"),
        "markup.csv": (f'{HEADER}1,"ada\nand alan",jar,[/b],1\n', "line 3: invalid literal for int() with base 10: '["),
        "short.csv": (f"{HEADER}1,ada\n", "line 2: invalid literal for int() with base 10: ''"),
    }
    for name, (content, _) in bad.items():
        write(inbox, name, content)
    write(inbox, "empty.csv", "")
    write(inbox, "z.csv", f'\ufeff{HEADER}1,"two\nlines",a\u2028b,1,1\n')
    write(inbox, "z\nz.csv", f"{HEADER}2,ada,jar,1,1\n")
    shared = ("--inbox", str(inbox), "--into", str(tmp_path / "orders.db"))
    told = run_example("ingest.py", *shared)

    assert (told.returncode, told.stderr) == (0, "")
    for name, (_, why) in bad.items():
        (line,) = [line for line in told.stdout.splitlines() if line.startswith(f"{name}@")]
        assert why in line
    assert arrived(tmp_path / "orders.db") == [
        ("1", "two\nlines", "a\u2028b", "1", "1"),
        ("2", "ada", "jar", "1", "1"),
    ]
    table = run_example("ingest.py", "--show", *shared, env={"COLUMNS": "300"})
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.count("failed") == len(bad)
    assert "'[/b]'" in table.stdout


def test_a_file_that_is_being_written_is_not_read(ingest: ModuleType, tmp_path: Path) -> None:
    """It is taken to be whole when nobody has written to it for a second."""
    path = write(tmp_path, "a.csv", HEADER)
    whole = ingest.Source.read(path)
    os.utime(path)
    with pytest.raises(ingest.BeingWrittenError):
        ingest.Source.read(path)

    write(tmp_path, "a.csv", HEADER)
    assert ingest.Source.read(path) == whole


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """It ends with the usage, and makes no database."""
    ended = run_example("ingest.py", "--inbox", str(tmp_path / "none"), "--into", str(tmp_path / "orders.db"))
    assert ended.returncode == 2
    assert "none is no folder" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "into", "store"),
    [
        (["--into", "a.db"], "a.db", "sqlite:///a.db.store"),
        (["--store", "redis://a"], "orders.db", "redis://a"),
        (["--store", "redis://a", "--into", "a.db"], "a.db", "redis://a"),
    ],
)
def test_what_is_kept_is_kept_together(
    given: list[str], into: str, store: str, ingest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No store that outlives the run says that files are loaded whose rows went into a temporary folder."""
    got: list[Namespace] = []
    monkeypatch.setattr(sys, "argv", ["ingest.py", *given])
    monkeypatch.setattr(ingest, "run", lambda main, options, backend: got.append(options))
    ingest.main()
    assert [(str(options.into), options.store) for options in got] == [(into, store)]


# A worker that dies, or whose store does, between two notes


class Dies(Good):
    """Fails once, for good, at the first write of a key that begins like that."""

    def __init__(self, inner: Store, prefix: str, error: BaseException) -> None:
        super().__init__(inner)
        self.prefix = prefix
        self.error = error

    def check(self, key: str) -> None:
        if self.prefix and key.startswith(self.prefix):
            self.prefix = ""
            raise self.error

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        self.check(key)
        return await super().put(key, value, ttl=ttl, if_version=if_version)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        self.check(key)
        return await super().delete(key, if_version=if_version)


class Locked:
    """A warehouse that is locked."""

    async def add(self, *_: object, **__: object) -> None:
        raise sqlite3.OperationalError


@asynccontextmanager
async def worker_of(ingest: ModuleType, store: Store, folder: Path) -> AsyncGenerator[Any]:
    async with ingest.open_warehouse(folder / "orders.db") as warehouse:
        yield ingest.Worker(store, warehouse, 10.0)


@once
async def test_one_that_dies_before_it_recorded_a_failure_leaves_that_to_the_next(
    ingest: ModuleType, tmp_path: Path
) -> None:
    """Also where the next one could load the file: the job has failed, and what has ended stays as it is."""
    write(tmp_path, "a.csv", f"{HEADER}1,ada,jar,1,1\n")
    store = MemoryStore()
    dying = ingest.Worker(Dies(store, "retries/", KeyboardInterrupt()), Locked(), 10.0)
    with pytest.raises(KeyboardInterrupt):
        await dying.look_through(tmp_path)

    async with worker_of(ingest, store, tmp_path) as worker:
        assert not await worker.look_through(tmp_path)
        (entry,) = [entry async for entry in RetryLedger(store, "ingest").list()]
        assert (entry.attempts, entry.last_failure.message) == (1, "OperationalError")
        assert arrived(tmp_path / "orders.db") == []

        await RetryLedger(store, "ingest").clear(entry.key)
        await RetryLedger(store, "ingest", backoff=lambda _: 0).record_failure(entry.key, "again")
        assert not await worker.look_through(tmp_path)
        assert arrived(tmp_path / "orders.db") == [("1", "ada", "jar", "1", "1")]
        assert sorted([job.status async for job in JobLog(store).list()]) == ["completed", "failed"]


@once
async def test_one_that_dies_when_it_has_marked_a_file_leaves_nothing_to_do(ingest: ModuleType, tmp_path: Path) -> None:
    """A failure that is still in the ledger then is no reason to begin again, nor to fail."""
    path = write(tmp_path, "a.csv", f"{HEADER}1,ada,jar,1,1\n")
    store = MemoryStore()
    name = ingest.Source.read(path).name
    await RetryLedger(store, "ingest", backoff=lambda _: 0).record_failure(name, "locked")
    async with worker_of(ingest, Dies(store, "retries/", KeyboardInterrupt()), tmp_path) as dying:
        with pytest.raises(KeyboardInterrupt):
            await dying.look_through(tmp_path)

    async with worker_of(ingest, store, tmp_path) as worker:
        assert not await worker.look_through(tmp_path)
    assert await ProcessedLog(store, "ingest").is_processed(name)
    assert [job.status async for job in JobLog(store).list()] == [JobStatus.COMPLETED]


@once
async def test_a_store_that_is_away_for_a_moment_is_asked_again(
    ingest: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the next look loads the file; one that can't come back ends the worker."""
    write(tmp_path, "a.csv", f"{HEADER}1,ada,jar,1,1\n")
    away = Dies(MemoryStore(), "jobs/", StoreError("away", may_retry=True))
    async with worker_of(ingest, away, tmp_path) as worker:
        assert await worker.look_through(tmp_path)
        assert capsys.readouterr().out == "'a.csv': away\n"
        assert not await worker.look_through(tmp_path)
    assert arrived(tmp_path / "orders.db") == [("1", "ada", "jar", "1", "1")]

    write(tmp_path, "b.csv", f"{HEADER}2,ada,jar,1,1\n")
    gone = Dies(MemoryStore(), "jobs/", StoreError("gone"))
    async with worker_of(ingest, gone, tmp_path) as worker:
        with pytest.raises(StoreError, match="gone"):
            await worker.look_through(tmp_path)


# Others that are at it


@once
async def test_one_that_wakes_up_when_the_job_has_ended_looks_again(
    ingest: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it has noticed the loss of its lease: it is told that somebody else was there, and goes on."""
    write(tmp_path, "a.csv", HEADER + "".join(f"{number},ada,jar,1,1\n" for number in range(30)))
    store = MemoryStore()

    class Stopped:
        async def add(self, *_: object, **__: object) -> None:
            (job,) = [job async for job in JobLog(store).list()]
            await JobLog(store).complete(job.id, rows=30)

    assert await ingest.Worker(store, Stopped(), 10.0).look_through(tmp_path)
    assert "has completed already" in capsys.readouterr().out


@pytest.mark.long
def test_one_that_was_stopped_for_longer_than_its_lease_finds_out(tmp_path: Path) -> None:
    """The other one takes over; when the first one wakes up, it writes nothing any more, and ends well."""
    shared = ["--into", str(tmp_path / "orders.db"), "--ttl", TTL]
    command = [sys.executable, str(EXAMPLES / "ingest.py"), *shared]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as stopped:  # noqa: S603
        assert stopped.stdout is not None
        stopped.stdout.readline()
        stopped.send_signal(signal.SIGSTOP)
        try:
            other = run_example("ingest.py", *shared)
        finally:
            stopped.send_signal(signal.SIGCONT)
        told = stopped.communicate(timeout=30)
    assert (other.returncode, stopped.returncode) == (0, 0), (other, told)
    assert arrived(tmp_path / "orders.db") == EXPECTED


@pytest.mark.long
@every_backend
def test_a_watching_one_ends_at_a_signal(backend: str, tmp_path: Path) -> None:
    """Its exit code is that of a shell, and nobody has to wait for a lease of its."""
    shared = ["--into", str(tmp_path / "orders.db"), "--backend", backend]
    command = [sys.executable, "-W", "error", str(EXAMPLES / "ingest.py"), *shared, "--watch", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:  # noqa: S603
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.stdout.readline()
        worker.terminate()
        _, errors = worker.communicate(timeout=30)
    assert (worker.returncode, errors) == (143, "")
    assert run_example("ingest.py", *shared, timeout=9).returncode == 0  # its leases would last for ten seconds
    assert arrived(tmp_path / "orders.db") == EXPECTED


async def test_the_table_is_live_on_a_terminal(
    ingest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is drawn for as long as a job runs, and not given up between one and the next."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(ingest, "A_MOMENT", 0.3)
    store = f"sqlite:///{tmp_path}/ingest.db"
    drawn = ""

    async def until(text: str) -> None:
        nonlocal drawn
        while text not in drawn:
            await anyio.sleep(0.01)
            drawn += capsys.readouterr().out

    async with Scope() as scope, ingest.open_store(store) as seen, anyio.create_task_group() as tasks:
        jobs = JobLog(seen)
        await jobs.create("first")
        tasks.start_soon(ingest.show, scope, Namespace(store=store))
        with anyio.fail_after(10):
            await until("running")
            await jobs.complete("first")
            await until("completed")
            await jobs.create("second")
            await jobs.fail("second", "no amount")
            await until("no amount")
    assert drawn.count("running") > 0
