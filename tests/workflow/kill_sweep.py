"""Kills a process that holds journaled resources at every point of its life, and the one that recovers them too.

    python tests/workflow/kill_sweep.py                    # each point of an owner, each point of a recoverer
    python tests/workflow/kill_sweep.py --cross            # each point of a recoverer after each point of an owner
    python tests/workflow/kill_sweep.py --every 4          # one point of four
    python tests/workflow/kill_sweep.py --backend trio     # or uvloop
    python tests/workflow/kill_sweep.py --store postgresql://user@host/database --every 4
    python tests/workflow/kill_sweep.py --store redis://host

A point is: before and after each call of the store, before, within and after each `create` and each cleanup, and
between two acquisitions. There the process kills itself, by SIGKILL. What is made are directories, one within the
other, so that only the reverse order can remove them. After each kill `recover` runs in a process of its own.

Then nothing that was made may be left, and all must have gone once, in the reverse of the order in which it was made.
Two recoverers at once do no worse than one. Each process is a fork of this one, which runs no event loop and no thread.

Without `--store`, each life has a SQLite file of its own. Its time is that of the machine, plus an hour for each
process that died: so no lease has to be waited for. A server has a clock that nobody can turn: there the leases of who
died are taken away instead. It holds one life at a time, in a table or under a prefix of its own, `rescope_kill_sweep`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import anyio

from rescope.workflow import PostgresStore, RedisStore, SqliteStore, Store
from rescope.workflow.journal import JournaledScope, RecoveryReport, cleanup, recover

HOUR = 3600.0
BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
NAME = "rescope_kill_sweep"
WARM = ("anyio._backends._asyncio", "anyio._backends._trio", "anyio.to_thread")  # else each fork would import them


class Points:
    """Counts the points that a process comes to, and kills it at one of them."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        self.folder = folder
        self.last = last
        self.passed = 0

    def at(self) -> None:
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def note(self, what: str, name: str) -> None:
        with open(self.folder / "events", "ab", buffering=0) as events:  # noqa: PTH123 (unbuffered)
            events.write(f"{what} {name}\n".encode())


class Watched:
    """A store, each call of which has a point before it and one after."""

    def __init__(self, inner: Store, points: Points) -> None:
        self.inner = inner
        self.points = points

    async def _do(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.points.at()
        result = await call()
        self.points.at()
        return result

    async def get(self, key: str) -> Any:
        return await self._do(partial(self.inner.get, key))

    async def put(self, key: str, value: Any, **options: Any) -> int:
        return await self._do(partial(self.inner.put, key, value, **options))

    async def delete(self, key: str, **options: Any) -> bool:
        return await self._do(partial(self.inner.delete, key, **options))

    async def scan(self, prefix: str) -> AsyncIterator[Any]:
        self.points.at()
        async for entry in self.inner.scan(prefix):
            yield entry
        self.points.at()


class Home(Protocol):
    """Where the journal is."""

    def opened(self, folder: Path, hours: int) -> AbstractAsyncContextManager[Store]:
        """Open the store, as many hours later."""
        ...

    def load(self, folder: Path) -> None:
        """Let the store hold what is kept in that folder, when the leases in it have run out."""
        ...

    def keep(self, folder: Path) -> None:
        """Keep what the store holds, for a life that goes on from there."""
        ...

    def count_open(self, folder: Path) -> int:
        """Count the records that are kept in that folder."""
        ...


class InFiles:
    """A SQLite database in each folder."""

    def opened(self, folder: Path, hours: int) -> AbstractAsyncContextManager[Store]:
        return SqliteStore(folder / "store", synchronous="normal", clock=lambda: time.time() + hours * HOUR)

    def load(self, folder: Path) -> None:
        """It is there, and its time is turned where it is opened."""

    def keep(self, folder: Path) -> None:
        """It is there."""

    def count_open(self, folder: Path) -> int:
        """Ask the database itself: an event loop here would leave threads, which no fork should meet."""
        with closing(sqlite3.connect(folder / "store")) as database:
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'rescope_entries'").fetchone()
            if not tables:
                return 0
            (count,) = database.execute("SELECT count(*) FROM rescope_entries WHERE key LIKE 'journal/%'").fetchone()
            return int(count)


class OnServer:
    """A PostgreSQL or Valkey server, which holds the journal of one folder at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        for module in ("asyncpg",) if self._is_postgres else ("redis.asyncio",):
            import_module(module)

    @property
    def _is_postgres(self) -> bool:
        return self.url.startswith("postgres")

    @asynccontextmanager
    async def opened(self, folder: Path, hours: int) -> AsyncGenerator[Store]:
        if self._is_postgres:
            import asyncpg

            async with asyncpg.create_pool(self.url, min_size=1, max_size=4) as pool:
                yield PostgresStore(pool, table=NAME)
        else:
            from redis.asyncio import Redis

            async with Redis.from_url(self.url) as client:
                yield RedisStore(client, prefix=NAME)

    def load(self, folder: Path) -> None:
        async def replace(_points: Points) -> None:
            async with self.opened(folder, 0) as store:
                for entry in [entry async for entry in store.scan("")]:
                    await store.delete(entry.key)
                for key, value in self._kept(folder).items():
                    if not key.startswith("lease/"):
                        await store.put(key, value)

        self._do(replace)

    def keep(self, folder: Path) -> None:
        async def write(_points: Points) -> None:
            async with self.opened(folder, 0) as store:
                found = {entry.key: entry.value async for entry in store.scan("")}
            (folder / "entries").write_text(json.dumps(found))

        self._do(write)

    def count_open(self, folder: Path) -> int:
        return sum(key.startswith("journal/") for key in self._kept(folder))

    @staticmethod
    def _kept(folder: Path) -> dict[str, Any]:
        path = folder / "entries"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @staticmethod
    def _do(main: Callable[[Points], Awaitable[None]]) -> None:
        code, _ = fork(main, Points(Path()), "asyncio")
        assert code == 0, "the server does not answer"


class Here:
    """What this process knows: cleanups are functions, and have it from here."""

    points: Points
    home: Home


def make_folder(token: list[str]) -> Path:
    made = Here.points.folder.joinpath("made", *token)
    Here.points.at()
    made.mkdir()
    Here.points.at()
    (made / "file").touch()
    Here.points.note("made", token[-1])
    Here.points.at()
    return made


@cleanup("sweep.folder")
async def remove_folder(token: list[str]) -> None:
    """Remove the directory, which holds no other one by now."""
    made = Here.points.folder.joinpath("made", *token)
    Here.points.at()
    (made / "file").unlink(missing_ok=True)
    Here.points.at()
    if made.exists():
        made.rmdir()
        Here.points.note("gone", token[-1])
    Here.points.at()


async def own(points: Points) -> None:
    """Live, and die at a point: four resources, of which two are a child's, and an ordinary one among them."""
    async with (
        Here.home.opened(points.folder, 0) as inner,
        JournaledScope(Watched(inner, points), "worker") as scope,  # type: ignore[arg-type] # it scans by a generator
    ):
        await scope.acquire(make_folder, remove_folder, token=["a"])
        points.at()
        child = scope.child("child")
        await child.acquire(make_folder, remove_folder, token=["a", "b"])
        points.at()
        scope.defer(points.at)
        await child.acquire(make_folder, "sweep.folder", token=["a", "b", "c"])
        points.at()
        await scope.acquire(make_folder, remove_folder, token=["a", "b", "c", "d"])
        points.note("full", str(points.passed))
        points.at()


async def close_left(points: Points, hours: int) -> RecoveryReport:
    async with Here.home.opened(points.folder, hours) as inner:
        return await recover(Watched(inner, points))  # type: ignore[arg-type]


def fork(main: Callable[[Points], Awaitable[object]], points: Points, backend: str) -> tuple[int, int]:
    """Run that in a process of its own; give its exit code (-9 where it was killed), and how many points it passed."""
    return ended(*begun(main, points, backend))


def begun(main: Callable[[Points], Awaitable[object]], points: Points, backend: str) -> tuple[int, int]:
    """Run that in a process of its own, beside this one; give its id, and where it says how many points it passed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            Here.points = points
            anyio.run(main, points, **BACKENDS[backend])
            os.write(writing, str(points.passed).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def ended(child: int, reading: int) -> tuple[int, int]:
    """Wait for a process."""
    with os.fdopen(reading) as pipe:
        passed = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(passed or 0)


def events(folder: Path) -> list[str]:
    return (folder / "events").read_text().splitlines() if (folder / "events").exists() else []


class Report(NamedTuple):
    """What came of a sweep."""

    owner_points: int
    recover_points: int
    kills: int
    left_behind: int
    out_of_order: int


class Sweep:
    """All the lives and deaths."""

    def __init__(self, home: Home, backend: str, every: int, folder: Path) -> None:
        self.home = Here.home = home
        self.backend = backend
        self.every = every
        self.folder = folder
        self.kills = self.left = self.disorder = 0

    def run(self, *, cross: bool) -> Report:
        owner, all_made = self.measure()
        full = self.killed("full", all_made)
        recoverer = self.recovered(self.copy(full, "measured"), None)
        for point in range(0, owner, self.every):
            left = self.killed(f"owner-{point}", point)
            for other in range(0, recoverer, self.every) if cross else ():
                self.recovered(self.copy(left, f"owner-{point}-{other}"), other)
            self.recovered(left, None)
        for point in range(0, recoverer, self.every):
            self.recovered(self.copy(full, f"recover-{point}"), point)
        for race in range(max(2, 20 // self.every)):
            self.raced(self.copy(full, f"race-{race}"))
        return Report(owner, recoverer, self.kills, self.left, self.disorder)

    def measure(self) -> tuple[int, int]:
        """Live undisturbed; give how many points there are, and the first one where all is made."""
        folder = self.new("whole")
        self.home.load(folder)
        code, passed = fork(own, Points(folder), self.backend)
        self.home.keep(folder)
        assert code == 0, "the owner has failed by itself"
        all_made = next(line.split()[1] for line in events(folder) if line.startswith("full"))
        self.judge(folder)
        return passed, int(all_made)

    def killed(self, name: str, point: int) -> Path:
        folder = self.new(name)
        self.home.load(folder)
        code, _ = fork(own, Points(folder, point), self.backend)
        self.home.keep(folder)
        assert code == -signal.SIGKILL, f"the owner came to no point {point}"
        self.kills += 1
        return folder

    def recovered(self, folder: Path, point: int | None) -> int:
        """Recover, killed at a point, and then again; give how many points the last one has passed."""
        self.home.load(folder)
        if point is not None:
            code, _ = fork(partial(close_left, hours=1), Points(folder, point), self.backend)
            self.kills += code == -signal.SIGKILL
            self.home.keep(folder)
            self.home.load(folder)
        code, passed = fork(partial(close_left, hours=2), Points(folder), self.backend)
        self.home.keep(folder)
        assert code == 0, "the recoverer has failed by itself"
        self.judge(folder)
        return passed

    def raced(self, folder: Path) -> None:
        """Let two recover at once; whoever is second finds one at it, or nothing to do."""
        self.home.load(folder)
        racers = [begun(partial(close_left, hours=1), Points(folder), self.backend) for _ in range(2)]
        codes = [ended(*racer)[0] for racer in racers]
        self.home.keep(folder)
        assert codes == [0, 0], "a recoverer has failed by itself"
        self.judge(folder)

    def judge(self, folder: Path) -> None:
        """Nothing is left, in the world nor in the journal, and all has gone once, in the reverse order."""
        gone = [line.split()[1] for line in events(folder) if line.startswith("gone")]
        self.left += bool(list((folder / "made").iterdir())) or self.home.count_open(folder) > 0
        self.disorder += gone != sorted(set(gone), reverse=True)
        shutil.rmtree(folder)

    def new(self, name: str) -> Path:
        (self.folder / name / "made").mkdir(parents=True)
        return self.folder / name

    def copy(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.folder / name))


def sweep(*, store: str | None = None, backend: str = "asyncio", every: int = 1, cross: bool = False) -> Report:
    """Run a sweep in a temporary directory."""
    for module in WARM:
        import_module(module)
    logging.getLogger("rescope").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as folder:
        home = InFiles() if store is None else OnServer(store)
        return Sweep(home, backend, every, Path(folder)).run(cross=cross)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill owners and recoverers of a journal at every point.")
    parser.add_argument("--store", metavar="URL", help="of a PostgreSQL or Valkey server, else SQLite; on asyncio")
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    parser.add_argument("--every", type=int, default=1, help="one point of so many")
    parser.add_argument("--cross", action="store_true", help="each point of a recoverer after each of an owner")
    report = sweep(**vars(parser.parse_args()))
    for name, value in report._asdict().items():
        print(f"{name.replace('_', ' '):16}{value}")  # noqa: T201 (its table)
    return 1 if report.left_behind or report.out_of_order else 0


if __name__ == "__main__":
    sys.exit(main())
