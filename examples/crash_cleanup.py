"""Two workers, each with a directory, a process at work in it, and a database. One of them is killed, by `kill -9`.

No `finally` runs in a process that is killed. But each worker has written down what it was going to make, before it
made it, in a journal in PostgreSQL. When the lease of the one that was killed has run out, `recover` closes what it
left: the database, the process, the directory, in that order. What the other one holds isn't touched; that one ends as
programs do.

    python examples/crash_cleanup.py
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import IO, cast
from uuid import uuid4

import asyncpg
from servers import postgres

from rescope.workflow import Store, open_store
from rescope.workflow.journal import JournaledScope, RecoveryReport, cleanup, pending, recover

TTL = 2.0  # seconds; half a minute or so is usual

TOOL = """
import fcntl, os, time
pid = open("pid", "r+")
fcntl.flock(pid, fcntl.LOCK_EX)
pid.write(str(os.getpid()))
pid.flush()
print("started", flush=True)
time.sleep(600)
"""


def server() -> str:
    """Where the databases are; no token holds it, as a URL may hold a password."""
    return os.environ["CRASH_CLEANUP_SERVER"]


# What is made, and what takes it away: whatever has become of it, also if it was never made


def make_directory(token: str) -> Path:
    Path(token).mkdir()
    return Path(token)


@cleanup("example.directory")
def remove_directory(token: str) -> None:
    rmtree(token, ignore_errors=True)
    if Path(token).exists():
        msg = "the directory can't be removed"
        raise OSError(msg)


async def start_tool(token: str) -> subprocess.Popen[str]:
    """Start a process in that directory, which locks a file for as long as it lives, and writes down who it is."""
    Path(token, "pid").touch()  # noqa: ASYNC240 (it takes no time)
    command = [sys.executable, "-c", TOOL]
    tool = subprocess.Popen(command, cwd=token, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603
    await asyncio.to_thread(cast("IO[str]", tool.stdout).readline)  # the lease is renewed meanwhile
    return tool


@cleanup("example.tool")
def stop_tool(token: str) -> None:
    """Kill the process, if it lives. The lock tells, and not the id, which may be another process's by now."""
    with suppress(FileNotFoundError), Path(token, "pid").open() as pid:
        while not locked(pid.fileno()):
            if number := pid.read():
                os.kill(int(number), signal.SIGKILL)
            time.sleep(0.01)
            pid.seek(0)


def locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def create_database(token: str) -> str:
    await execute(f"CREATE DATABASE {token}")
    return token


@cleanup("example.database")
async def drop_database(token: str) -> None:
    await execute(f"DROP DATABASE IF EXISTS {token} WITH (FORCE)")


async def execute(sql: str) -> list[str]:
    connection = await asyncpg.connect(server())
    try:
        return [str(row[0]) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def work(name: str, folder: Path) -> None:
    """Make all three, say so, and wait: one worker is killed here, the other one gets a line."""
    mark = f"{name}_{uuid4().hex[:8]}"
    async with open_store(server()) as store, JournaledScope(store, name, ttl=TTL) as scope:
        directory = await scope.acquire(make_directory, remove_directory, token=str(folder / mark))
        tool = await scope.acquire(start_tool, stop_tool, token=str(directory))
        await scope.acquire(create_database, drop_database, token=f"crash_{mark}")
        print(f"{name}: at work", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    with tool:  # which has ended: only who started it can take note of that
        print(f"{name}: done", flush=True)


# The world, as it is


async def there(folder: Path, name: str) -> dict[str, int]:
    """Count what there is of a worker's."""
    directories = list(folder.glob(f"{name}_*"))  # noqa: ASYNC240 (it is here to look)
    databases = await execute(f"SELECT datname FROM pg_database WHERE datname LIKE 'crash\\_{name}\\_%'")
    return {
        "directories": len(directories),
        "processes": sum(alive(directory / "pid") for directory in directories),
        "databases": len(databases),
    }


def alive(path: Path) -> bool:
    with path.open() as pid:
        return not locked(pid.fileno())


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 (itself)
    print(cast("IO[str]", process.stdout).readline(), end="")
    return process


async def recover_all(store: Store, owner: str) -> list[RecoveryReport]:
    """Recover from time to time, as a program would that does nothing else, until nothing of that owner's is open."""
    reports = []
    async with asyncio.timeout(30):
        while any(one.owner == owner for one in await pending(store)):
            reports.append(await recover(store))
            await asyncio.sleep(0.2)
    return reports


async def story(folder: Path) -> bool:
    """Tell it; give whether it came out as it should."""
    all_there, all_gone = dict.fromkeys(["directories", "processes", "databases"], 1), 0
    with start("ada", folder) as ada, start("bob", folder) as bob:
        ada.kill()
        ada.wait()
        print(f"(ada is killed; there is still: {await there(folder, 'ada')})")
        left = await there(folder, "ada") == all_there
        async with open_store(server()) as store:
            reports = await recover_all(store, "ada")
        closed = [one.cleanup for report in reports for one in report.closed]
        print(next(str(report) for report in reports if report.closed))
        gone = sum((await there(folder, "ada")).values()) == all_gone
        live = await there(folder, "bob") == all_there
        print(f"(of ada's there is: {await there(folder, 'ada')}; of bob's: {await there(folder, 'bob')})")
        print(bob.communicate("\n", timeout=20)[0], end="")
    ended = sum((await there(folder, "bob")).values()) == all_gone
    in_order = closed == ["example.database", "example.tool", "example.directory"]
    return left and gone and live and ended and in_order


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        os.environ["CRASH_CLEANUP_SERVER"] = url
        if not asyncio.run(story(Path(folder))):
            print("WRONG: something was left, or something live was destroyed")
            return 1
    print("nothing is left")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Leave nothing behind, killed or not.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        asyncio.run(work(options.worker, options.folder))
    else:
        sys.exit(main())
