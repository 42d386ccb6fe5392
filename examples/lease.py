"""Two workers on one machine, and a lock that expires between them: what happens when the one that has it is stopped.

The first worker takes the lease, and is stopped by the system in the middle of its work, for longer than the lease
lasts: as long garbage collections, a laptop's lid and overfull machines do. The second one takes the lease over, and
writes. Then the first wakes up, and goes on with what it was about to do. Two things keep it from spoiling the work of
the second: the register refuses its fencing token, and its lease tells it that it was lost.

    python examples/lease.py
    python examples/lease.py --backend trio
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import anyio

from rescope.workflow import SqliteStore
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, lease

TTL = 1.5  # seconds; half a minute or so is usual


class Register:
    """What the workers write to. It takes the token with each write, and refuses one smaller than it has seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self.connect()) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS lines (token INTEGER, worker TEXT)")

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10)

    def write(self, worker: str, token: int) -> bool:
        """Write a line, in one statement with the check; tell whether it was taken."""
        sql = "INSERT INTO lines SELECT ?, ? WHERE ? >= (SELECT coalesce(max(token), 0) FROM lines)"
        with closing(self.connect()) as connection, connection:
            return connection.execute(sql, (token, worker, token)).rowcount == 1

    def workers(self) -> list[str]:
        with closing(self.connect()) as connection:
            return [worker for (worker,) in connection.execute("SELECT worker FROM lines ORDER BY rowid")]


async def work(name: str, folder: Path, *, wait: float) -> None:
    """Take the lease, write a line, do what takes long, and write another."""
    register = Register(folder / "register.db")
    async with SqliteStore(folder / "leases.db") as store:
        try:
            async with lease(store, "register", ttl=TTL, wait=wait, holder=name) as held:
                register.write(name, held.token)
                print(f"{name}: has the lease, token {held.token}, and has written a line", flush=True)
                sys.stdin.readline()  # blocks, as much code does; the first worker is stopped here
                taken = register.write(name, held.token)
                print(f"{name}: the register has {'taken' if taken else 'refused'} token {held.token}", flush=True)
                held.check()
        except LeaseLostError as exc:
            print(f"{name}: {exc}", flush=True)


def start(name: str, folder: Path, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--backend", backend, "--worker", name, "--folder", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 (itself)


def say(worker: subprocess.Popen[str]) -> str:
    """Pass on a line that a worker says."""
    line = worker.stdout.readline().strip() if worker.stdout else ""
    print(line)
    return line


def finish(worker: subprocess.Popen[str]) -> list[str]:
    """Let a worker go on, and pass on what it says until it ends."""
    lines = worker.communicate("\n", timeout=30)[0].splitlines()
    print(*lines, sep="\n")
    return lines


async def who_holds(folder: Path) -> str | None:
    """Ask for the lease without waiting, and give the name of the one who has it."""
    async with SqliteStore(folder / "leases.db") as store:
        try:
            async with lease(store, "register", ttl=TTL):
                return None
        except LeaseHeldError as exc:
            return exc.holder


def main(backend: str) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = start("Ann", folder, backend)
        with first:
            say(first)
            os.kill(first.pid, signal.SIGSTOP)
            try:
                holder = anyio.run(who_holds, folder, backend=backend)
                print(f"(Ann is stopped; the lease is held by {holder})")
                second = start("Bob", folder, backend)
                with second:
                    took_over = say(second).startswith("Bob: has the lease")
                    print("(Bob took the lease over, as Ann's time was up)")
                    finish(second)
            finally:
                os.kill(first.pid, signal.SIGCONT)
            print("(Ann goes on)")
            lines = finish(first)
        workers = Register(folder / "register.db").workers()
    print(f"the register says: {', '.join(workers)}")
    fenced = "refused" in lines[0] and "is lost" in lines[1]
    if not (holder == "Ann" and took_over and fenced and workers == ["Ann", "Bob", "Bob"]):
        print("WRONG: Ann wrote after Bob, or did not learn that her lease was lost")
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lose a lease, and spoil nothing.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        wait = 0 if options.worker == "Ann" else 20
        sys.exit(anyio.run(lambda: work(options.worker, options.folder, wait=wait), backend=options.backend))
    sys.exit(main(options.backend))
