"""Several tenants exported at once, each in a scope of its own.

Every tenant has a database. To export one takes a connection and a temporary directory: its tables are written there
as CSV files, zipped, and the archive is stored. One of the four fails half way, since its database file is damaged:
the others arrive all the same, and no directory, no open connection and no half an archive is left of any.
The program ends by checking that, and its exit code is 1 if anything is.

    python examples/tenant_export.py
    python examples/tenant_export.py --backend trio
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sqlite3
import sys
import tempfile
import zipfile
from pathlib import Path
from time import perf_counter

import anyio
from anyio.to_thread import run_sync as in_thread

from rescope import Scope, scoped

TENANTS = {"acme": 20_000, "globex": 5_000, "initech": 10_000, "umbrella": 1_000}
DAMAGED = "initech"


class Folders:
    """The real parts: where the tenants' databases are, where exports are made, and where they are stored."""

    def __init__(self, root: Path) -> None:
        self.databases = root / "databases"
        self.scratch = root / "scratch"
        self.store = root / "store"
        for path in (self.databases, self.scratch, self.store):
            path.mkdir()


@scoped
async def export(scope: Scope, folders: Folders, tenant: str) -> int:
    """Export one tenant; give the number of rows. What it opens, the scope closes, however it ends."""
    # `shield`: a thread can't be cancelled, so whoever cancels us waits until we hold what it opens.
    db = await scope.acquire(
        lambda: in_thread(connect, folders.databases / f"{tenant}.sqlite"), lambda db: in_thread(db.close), shield=True
    )
    scratch = await scope.acquire(
        lambda: in_thread(make_directory, folders.scratch), lambda path: in_thread(shutil.rmtree, path), shield=True
    )
    rows = 0
    for table in ("customers", "invoices"):
        rows += await in_thread(write_csv, db, table, scratch / f"{table}.csv")

    target = folders.store / f"{tenant}.zip"
    scope.on_error(target.unlink, missing_ok=True)  # before it is written, so that half of one goes too
    await in_thread(shutil.make_archive, str(target.with_suffix("")), "zip", scratch)
    return rows


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, check_same_thread=False)  # used by one thread at a time, but not always the same


def make_directory(inside: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=inside))


def write_csv(db: sqlite3.Connection, table: str, path: Path) -> int:
    cursor = db.execute(f"SELECT * FROM {table}")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column[0] for column in cursor.description)
        rows = 0
        for row in cursor:
            writer.writerow(row)
            rows += 1
    return rows


def make_database(path: Path, invoices: int) -> None:
    """Fill a tenant's database. While a connection is open, SQLite keeps a `-wal` file beside it: see `left_behind`."""
    db = connect(path)
    db.executescript(
        f"""
        PRAGMA journal_mode = WAL;
        CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO customers VALUES (1, 'ada'), (2, 'alan'), (3, 'grace');
        CREATE TABLE invoices (id INTEGER PRIMARY KEY, customer INTEGER, cents INTEGER);
        INSERT INTO invoices WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {invoices})
            SELECT i, i % 3 + 1, i * 7 FROM n;
        """
    )
    db.close()


def damage(path: Path) -> None:
    """Overwrite the second half of a database: it opens, its first table can be read, and then it can't."""
    half = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(half)
        file.write(b"\xff" * half)


def left_behind(folders: Folders) -> list[str]:
    """Say what is left of the exports that should not be, and what is missing."""
    complete = {path.stem for path in folders.store.glob("*.zip") if zipfile.is_zipfile(path)}
    expected = TENANTS.keys() - {DAMAGED}
    return [
        *(f"directory {path.name}" for path in folders.scratch.iterdir()),
        *(f"open connection {path.name}" for path in folders.databases.glob("*-wal")),
        *(f"half an archive {path.name}" for path in folders.store.iterdir() if path.stem not in complete),
        *(f"no archive of {tenant}" for tenant in sorted(expected - complete)),
        *(f"archive of a damaged database {tenant}" for tenant in sorted(complete - expected)),
    ]


async def report(folders: Folders, tenant: str) -> None:
    """Export one tenant and say how that went: what fails here must not stop the others."""
    started = perf_counter()
    try:
        outcome = f"{await export(folders, tenant):>7,} rows stored"
    except Exception as error:
        outcome = f" FAILED: {error} ({type(error).__name__})"
    print(f"{tenant:<10}{(perf_counter() - started) * 1000:>8.1f} ms  {outcome}")


async def main() -> int:
    """Export all tenants at once, and check."""
    with tempfile.TemporaryDirectory() as root:
        folders = Folders(Path(root))
        for tenant, invoices in TENANTS.items():
            make_database(folders.databases / f"{tenant}.sqlite", invoices)
        damage(folders.databases / f"{DAMAGED}.sqlite")

        async with anyio.create_task_group() as tasks:
            for tenant in TENANTS:
                tasks.start_soon(report, folders, tenant)

        found = left_behind(folders)
        stored = ", ".join(sorted(path.name for path in folders.store.iterdir()))
        print(f"\nstored: {stored}")
        print("LEFT BEHIND: " + ", ".join(found) if found else "nothing left behind")
        return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export several tenants at once, each in a scope of its own.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
