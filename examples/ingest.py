"""Load a folder of CSV files into a database: each row once, whatever happens, by any number of workers.

What the workers share is in one store: which files are done, how far the one got that was interrupted, what failed and
when it is tried again, and a log of jobs to look at meanwhile. A worker may be killed at any point. The next one takes
over when its lease has run out, and goes on where it was.

    python examples/ingest.py                         # the files that ship, once, in a temporary folder
    python examples/ingest.py --inbox FOLDER --into orders.db --store sqlite:///ingest.db --watch 1
    python examples/ingest.py --show --store sqlite:///ingest.db       # in another terminal; needs rescope[cli]

`--store` also takes `postgresql://` (with `rescope[postgres]`) and `redis://` (with `rescope[redis]`). One of the files
that ship is damaged, to show what becomes of that: it is told, tried again later, and in the way of no other file.

A file that was written to within the last second is left for the next look. Who takes longer to write one should move
it into the folder when it is whole: a file that has changed is another file, and all of its rows are loaded.
"""

from __future__ import annotations

import argparse
import csv
import os
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio

from rescope import Scope
from rescope.runner import run
from rescope.workflow import (
    Backoff,
    CheckpointConflictError,
    Job,
    JobExistsError,
    JobFinishedError,
    JobLog,
    JobStatus,
    LeaseHeldError,
    LeaseLostError,
    ProcessedLog,
    RetryLedger,
    Store,
    StoreError,
    checkpoint,
    get_or_create,
    lease,
    open_store,
    validated,
)

if TYPE_CHECKING:
    from rich.table import Table

Row: TypeAlias = tuple[int, str, str, int, int]
Line: TypeAlias = tuple[int, dict[str, str]]
INBOX = Path(__file__).parent / "inbox"
COLUMNS = ("order", "customer", "item", "pieces", "cents")
A_DAY = 86400.0
BATCH = 20
SETTLED = 1.0  # seconds without a write after which a file is taken to be whole
A_MOMENT = 2.0  # seconds
BAD_FILE = (ValueError, OverflowError, csv.Error, sqlite3.Error)


@dataclass(frozen=True)
class Source:
    """A file, known by its name and content: one that has changed is another."""

    name: str
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Source:
        content = path.read_bytes()
        if abs(time.time() - path.stat().st_mtime) < SETTLED:
            raise BeingWrittenError(path.name)
        printable = "".join(each if each.isprintable() else "?" for each in path.name)
        digest = sha256(os.fsencode(path.name) + b"/" + content).hexdigest()
        return cls(f"{printable}@{digest[:8]}", content)

    def lines(self) -> list[Line]:
        """Give its lines, unread. An empty file has none; in any other the first one must name the columns."""
        reader = csv.DictReader(StringIO(self.content.decode("utf-8-sig"), newline=""), restval="")
        if missing := [column for column in COLUMNS if reader.fieldnames and column not in reader.fieldnames]:
            msg = f"line 1: no column {', '.join(missing)}"
            raise ValueError(msg)
        return [(reader.line_num, line) for line in reader]


def read_line(numbered: Line) -> Row:
    number, line = numbered
    try:
        return int(line["order"]), line["customer"], line["item"], int(line["pieces"]), int(line["cents"])
    except ValueError as exc:
        msg = f"line {number}: {exc}"
        raise ValueError(msg) from None


class BeingWrittenError(Exception):
    """Somebody may be writing that file: what there is of it may not be all."""


class TakenOverError(Exception):
    """A newer worker is at that file: this one was stopped for longer than its lease."""

    def __str__(self) -> str:
        return "a newer worker is at it, or was, with another store"


class Warehouse:
    """Where the rows go: an SQLite database, which takes those of one file in order, from the newest worker only."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    async def add(self, source: Source, begin: int, rows: list[Row], *, token: int) -> None:
        """Add rows in one transaction. Those that are there already, from a worker that died, are not added again."""
        await anyio.to_thread.run_sync(self._add, source.name, begin, rows, token)

    def _add(self, source: str, begin: int, rows: list[Row], token: int) -> None:
        fence = "INSERT INTO fences VALUES (?, ?) ON CONFLICT DO UPDATE SET token = excluded.token WHERE token <= ?"
        with self._db:
            if self._db.execute(fence, (source, token, token)).rowcount == 0:
                raise TakenOverError
            numbered = [(source, begin + number, *row) for number, row in enumerate(rows)]
            self._db.executemany("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", numbered)

    def is_sound(self) -> bool:
        return bool(self._db.execute("PRAGMA quick_check").fetchone() == ("ok",))

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM orders").fetchone()[0])


@asynccontextmanager
async def open_warehouse(path: Path) -> AsyncGenerator[Warehouse]:
    async with Scope("warehouse") as scope:
        db = scope.add(sqlite3.connect(path, check_same_thread=False, timeout=10))
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS fences (source TEXT PRIMARY KEY, token INTEGER)")
            columns = "source TEXT, line INTEGER, id INTEGER, customer TEXT, item TEXT, pieces INTEGER, cents INTEGER"
            db.execute(f"CREATE TABLE IF NOT EXISTS orders ({columns}, PRIMARY KEY (source, line))")
        yield Warehouse(db)


class Worker:
    """One that loads what nobody else is at."""

    def __init__(self, store: Store, warehouse: Warehouse, ttl: float) -> None:
        self._store = store
        self._warehouse = warehouse
        self._ttl = ttl
        self._loaded = ProcessedLog(store, "ingest")
        self._failed = RetryLedger(store, "ingest", backoff=Backoff(first=60))
        self._jobs = JobLog(store)

    async def look_through(self, inbox: Path) -> bool:
        """Load all there is to load; tell whether there may be more, as somebody else is at some of it."""
        busy = False
        for path in await anyio.to_thread.run_sync(_files, inbox):
            try:
                source = await anyio.to_thread.run_sync(Source.read, path)
                async with lease(self._store, f"ingest/{source.name}", ttl=self._ttl) as held:
                    await self._take(source, held.token)
            except (BeingWrittenError, LeaseHeldError, LeaseLostError, CheckpointConflictError):
                busy = True
            except (TakenOverError, JobExistsError, JobFinishedError, StoreError) as exc:
                if isinstance(exc, StoreError) and not exc.may_retry:
                    raise
                busy = True
                print(f"{path.name!a}: {exc}", flush=True)
            except OSError as exc:  # it has gone meanwhile, or may not be read
                print(f"{path.name!a}: {exc.strerror}", flush=True)
        return busy

    async def _take(self, source: Source, token: int) -> None:
        if await self._loaded.is_processed(source.name) or not await self._failed.due(source.name):
            return
        job = await self._job(source)
        if job.error is not None:  # who was at it died before that was recorded
            await self._failed.record_failure(source.name, str(job.error))
            return
        try:
            rows = await self._load(source, job, token)
        except BAD_FILE as exc:
            await self._jobs.fail(job.id, exc)
            entry = await self._failed.record_failure(source.name, exc)
            print(f"{source.name}: {exc} (attempt {entry.attempts})", flush=True)
            return
        await self._jobs.complete(job.id, rows=rows)
        await self._loaded.mark(source.name, {"rows": rows})  # until here it would be done again
        await self._failed.clear(source.name)
        print(f"{source.name}: {rows} rows", flush=True)

    async def _load(self, source: Source, job: Job, token: int) -> int:
        lines = source.lines()
        async with checkpoint(self._store, f"ingest/{source.name}") as progress:
            for begin in range(progress.state or 0, len(lines), BATCH):
                if job.status == JobStatus.RUNNING:
                    await self._jobs.stage(job.id, f"from row {begin} of {len(lines)}")
                rows = [read_line(line) for line in lines[begin : begin + BATCH]]
                await self._warehouse.add(source, begin, rows, token=token)
                await progress.advance(begin + BATCH)
        return len(lines)

    async def _job(self, source: Source) -> Job:
        """Give the job of this attempt: that of the worker that was at it, if one was. The id of the day is shared."""
        day = datetime.now(UTC).date()
        run_of_the_day = await get_or_create(self._store, f"ingest/{day}", lambda: _new_id(day), ttl=2 * A_DAY)
        failed = await self._failed.get(source.name)
        job_id = f"{run_of_the_day}/{source.name}#{failed.attempts + 1 if failed else 1}"
        return await self._jobs.get(job_id) or await self._jobs.create(job_id, bytes=len(source.content))


def _files(inbox: Path) -> list[Path]:
    return sorted(path for path in inbox.glob("*.csv") if path.is_file())


def _new_id(day: object) -> str:
    return f"{day}-{secrets.token_hex(2)}"


async def ingest(scope: Scope, options: argparse.Namespace) -> None:
    """Look through the inbox: once, or for ever, until a signal comes."""
    hint = f"Look at {options.store.partition(':')[0]}: and at {options.into}."
    store = await scope.enter(validated(open_store(options.store), _answers, name="store", timeout=10, hint=hint))
    opening = validated(open_warehouse(options.into), Warehouse.is_sound, name="warehouse", hint=hint)
    warehouse = await scope.enter(opening)
    worker = Worker(store, warehouse, options.ttl)
    print(f"{options.inbox} goes into {options.into}", flush=True)
    while await worker.look_through(options.inbox) or options.watch is not None:  # noqa: ASYNC110 (files tell nobody)
        await anyio.sleep(options.watch or 0.05)
    print(f"{warehouse.count()} rows are there", flush=True)


async def _answers(store: Store) -> None:
    await store.get("ingest")


async def show(scope: Scope, options: argparse.Namespace) -> None:
    """Draw the jobs: on a terminal for as long as one runs, and a moment longer, as another may follow; else once."""
    try:
        from rich.live import Live
    except ImportError:
        sys.exit("the table needs rich: pip install 'rescope[cli]'")
    jobs = JobLog(await scope.enter(open_store(options.store)))
    with Live(await _table(jobs), refresh_per_second=10) as live:
        seen = time.monotonic()
        while live.console.is_terminal and time.monotonic() < seen + A_MOMENT:
            await anyio.sleep(0.1)
            live.update(await _table(jobs))
            if [job async for job in jobs.list(status=JobStatus.RUNNING)]:
                seen = time.monotonic()


async def _table(jobs: JobLog) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "state", "stage", "rows", "for", title="ingest")
    async for job in jobs.list():
        until = job.finished_at or time.time()
        stage = job.error.message if job.error else job.stage or ""
        rows = str((job.result or {}).get("rows", ""))
        cells = (job.id, str(job.status), stage, rows, f"{until - job.created_at:.1f} s")
        table.add_row(*map(Text, cells))  # as they are: what is in a file is no markup
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--inbox", type=Path, default=INBOX)
    parser.add_argument("--into", type=Path, help="the database; orders.db where only a store is given")
    parser.add_argument("--store", help="what the workers share; beside the database where only that is given")
    parser.add_argument("--ttl", type=float, default=10, help="seconds after which a dead worker's file is taken over")
    parser.add_argument("--watch", type=float, help="seconds between looks; without it, look once")
    parser.add_argument("--show", action="store_true", help="draw the jobs, and load nothing")
    parser.add_argument("--backend", default="asyncio", choices=["asyncio", "trio"])
    options = parser.parse_args()
    if not options.show and not options.inbox.is_dir():
        parser.error(f"{options.inbox} is no folder")
    with tempfile.TemporaryDirectory() as folder:  # for what nobody wants to keep
        options.into = options.into or Path("orders.db" if options.store else f"{folder}/orders.db")
        options.store = options.store or f"sqlite:///{options.into}.store"
        run(show if options.show else ingest, options, backend=options.backend)


if __name__ == "__main__":
    main()
