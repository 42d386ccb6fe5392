"""The example that loads a folder of CSV files, killed again and again."""

from __future__ import annotations

import csv
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from running import EXAMPLES, every_backend, run_example

INBOX = EXAMPLES / "inbox"
SOUND = sorted(path for path in INBOX.glob("*.csv") if "damaged" not in path.name)
TTL = "0.3"  # seconds


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
