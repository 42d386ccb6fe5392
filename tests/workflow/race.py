"""Processes that race for a lease, and are killed and stopped while they hold it; a shared counter loses no update.

    python tests/workflow/race.py sqlite:////tmp/race.db
    python tests/workflow/race.py postgres://… --processes 8 --kills 20 --stops 20
    python tests/workflow/race.py redis://… --unfenced

Each process takes the lease again and again, reads the counter, waits a little, and writes one more. The counter is in
a file beside the store. It is fenced: it remembers the largest token that it was shown, by a reader or a writer, and
refuses a smaller one. With `--unfenced` it doesn't, and a holder that was stopped for longer than the ttl overwrites
what the next ones have written: lost updates.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from rescope.workflow import PostgresStore, RedisStore, SqliteStore, Store, StoreError
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, lease

TTL = 0.6
STOPPED = 1.2  # seconds: twice the ttl
STATE = struct.Struct(">QQQQ")  # the largest token seen, the value, how many writes were accepted, who was seen last


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[Store]:
    """Open the store that a URL names."""
    kind, _, path = url.partition("://")
    if kind == "sqlite":
        async with SqliteStore(path.removeprefix("/")) as store:  # sqlite:///relative, sqlite:////absolute
            yield store
    elif kind in {"redis", "rediss", "unix"}:
        from redis.asyncio import Redis

        async with Redis.from_url(url) as client:
            yield RedisStore(client)
    else:
        import asyncpg

        async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
            yield PostgresStore(pool)


class StaleTokenError(Exception):
    """The counter has seen a larger token."""


class Counter:
    """A number in a file, which refuses stale tokens. Each change is one `pwrite`, which no signal cuts in two."""

    def __init__(self, folder: Path, *, fenced: bool = True) -> None:
        self.file = os.open(folder / "counter", os.O_RDWR | os.O_CREAT, 0o600)
        self.fenced = fenced

    def read(self, token: int) -> int:
        with self._locked(token) as (value, accepted):
            os.pwrite(self.file, STATE.pack(max(token, self.state()[0]), value, accepted, os.getpid()), 0)
            return value

    def write(self, token: int, value: int) -> None:
        with self._locked(token) as (_, accepted):
            os.pwrite(self.file, STATE.pack(max(token, self.state()[0]), value, accepted + 1, os.getpid()), 0)

    def state(self) -> tuple[int, int, int, int]:
        held = os.pread(self.file, STATE.size, 0)
        token, value, accepted, pid = STATE.unpack(held) if held else (0, 0, 0, 0)
        return token, value, accepted, pid

    @contextmanager
    def _locked(self, token: int) -> Generator[tuple[int, int]]:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            seen, value, accepted, _ = self.state()
            if self.fenced and token < seen:
                raise StaleTokenError
            yield value, accepted
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)


async def work(url: str, folder: Path, *, fenced: bool) -> None:
    """Count, until there is a file named `end`."""
    counter = Counter(folder, fenced=fenced)
    async with open_store(url) as store:
        while not (folder / "end").exists():
            try:
                async with lease(store, "race", ttl=TTL, wait=2) as held:
                    note(folder, "token", held.token)
                    value = counter.read(held.token)
                    await anyio.sleep(random.uniform(0, 0.03))
                    if fenced and random.random() < 0.5:
                        held.check()
                    counter.write(held.token, value + 1)
                if held.lost is not None:
                    note(folder, "told", held.token)
            except LeaseHeldError:
                note(folder, "held", 0)
            except LeaseLostError as exc:
                note(folder, "lost", exc.token)
            except StaleTokenError:
                note(folder, "refused", held.token)
            except StoreError:
                note(folder, "store failed", 0)


def note(folder: Path, what: str, token: int) -> None:
    """Add a line to the journal, in one write."""
    with open(folder / "journal", "ab", buffering=0) as journal:  # noqa: PTH123 (unbuffered)
        journal.write(json.dumps([what, token, os.getpid()]).encode() + b"\n")


class Report(NamedTuple):
    """What came of a race."""

    processes: int
    kills: int
    stops: int
    taken: int
    tokens_repeated: int
    tokens_shrunk: int
    lost: int
    told: int
    refused: int
    held: int
    store_failed: int
    updates: int
    lost_updates: int


class Race:
    """The processes, and what is done to them."""

    def __init__(self, url: str, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.counter = Counter(folder)
        self.command = [sys.executable, __file__, url, "--worker", str(folder), "--backend", options.backend]
        self.command += ["--unfenced"] if options.unfenced else []
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.kills = self.stops = 0

    def run(self) -> Report:
        try:
            for _ in range(self.options.processes):
                self.start()
            self.until(lambda: self.counter.state()[2] >= self.options.processes)
            while self.kills < self.options.kills or self.stops < self.options.stops:
                accepted = self.counter.state()[2]
                self.harm()
                self.until(lambda before=accepted: self.counter.state()[2] > before)  # type: ignore[misc]
        finally:
            (self.folder / "end").touch()
            for process in self.running.values():
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        return self.report()

    def start(self) -> None:
        process = subprocess.Popen(self.command)  # noqa: S603 (itself)
        self.running[process.pid] = process

    def harm(self) -> None:
        """Kill or stop one: mostly one that has just read the counter, and is going to write."""
        if random.random() < 0.8:
            token = self.counter.state()[0]
            self.until(lambda: self.counter.state()[0] > token and self.counter.state()[3] in self.running, pause=0.001)
            pid = self.counter.state()[3]
        else:
            pid = random.choice(list(self.running))
        if self.kills / max(1, self.options.kills) <= self.stops / max(1, self.options.stops):
            self.kills += 1
            process = self.running.pop(pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.start()
        else:
            self.stops += 1
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(STOPPED)
            finally:
                os.kill(pid, signal.SIGCONT)

    @staticmethod
    def until(look: Callable[[], bool], pause: float = 0.01) -> None:
        end = time.monotonic() + 60
        while not look():
            if time.monotonic() > end:
                raise TimeoutError("the processes do not get on")
            time.sleep(pause)

    def report(self) -> Report:
        notes = [json.loads(line) for line in (self.folder / "journal").read_bytes().splitlines()]
        count = {what: sum(one[0] == what for one in notes) for what in {one[0] for one in notes}}
        tokens = [token for what, token, _ in notes if what == "token"]
        own: dict[int, list[int]] = {}
        for what, token, pid in notes:
            if what == "token":
                own.setdefault(pid, []).append(token)
        _, value, accepted, _ = self.counter.state()
        return Report(
            processes=self.options.processes + self.kills,
            kills=self.kills,
            stops=self.stops,
            taken=len(tokens),
            tokens_repeated=len(tokens) - len(set(tokens)),
            tokens_shrunk=sum(mine != sorted(mine) for mine in own.values()),
            lost=count.get("lost", 0),
            told=count.get("told", 0),
            refused=count.get("refused", 0),
            held=count.get("held", 0),
            store_failed=count.get("store failed", 0),
            updates=accepted,
            lost_updates=accepted - value,
        )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Race for a lease.")
    parser.add_argument("url")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--stops", type=int, default=8)
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser


def race(url: str, **options: Any) -> Report:
    """Run a race on the store of that URL."""
    given = vars(arguments().parse_args([url])) | options
    with tempfile.TemporaryDirectory() as folder:
        return Race(url, Path(folder), argparse.Namespace(**given)).run()


def main() -> int:
    options = arguments().parse_args()
    if options.worker is not None:
        logging.getLogger("rescope").addHandler(logging.NullHandler())  # the journal has it
        anyio.run(lambda: work(options.url, options.worker, fenced=not options.unfenced), backend=options.backend)
        return 0
    report = race(**vars(options))
    for name, value in report._asdict().items():
        print(f"{name.replace('_', ' '):16}{value}")  # noqa: T201 (its table)
    return 1 if report.lost_updates or report.tokens_repeated or report.tokens_shrunk else 0


if __name__ == "__main__":
    sys.exit(main())
