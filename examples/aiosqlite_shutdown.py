"""A visitors' book on aiosqlite, run three times: with a forgotten close, in a scope, and told to stop.

Each connection of aiosqlite has a thread, and Python waits for threads at its end. So a process with a connection that
was not closed may never end, also after an exception. In a scope it ends, and `rescope.runner` has it end on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import aiosqlite

from rescope import Scope
from rescope.runner import run

PATIENCE = 2
"""Seconds until the first of the three is taken to hang."""


async def close(db: aiosqlite.Connection) -> None:
    """Close at once: without the interrupt, it waits for the query that runs."""
    await db.interrupt()
    await db.close()


async def visit(db: aiosqlite.Connection, name: str) -> None:
    await db.execute("CREATE TABLE IF NOT EXISTS visitors (name TEXT)")
    await db.execute("INSERT INTO visitors VALUES (?)", [name])


async def forgotten(path: str) -> None:
    db = await aiosqlite.connect(path)
    await visit(db, "ada")
    await db.commit()
    msg = "and nobody closes the connection"
    raise LookupError(msg)


async def in_a_scope(scope: Scope, path: str) -> None:
    db = await scope.acquire(lambda: aiosqlite.connect(path), close, name="visitors", shield=True)
    scope.on_success(db.commit)
    await visit(db, "bob")


async def until_told(scope: Scope, path: str) -> None:
    await in_a_scope(scope, path)
    print("ready", flush=True)
    await asyncio.Event().wait()


def child(how: str, path: str) -> None:
    if how == "forgotten":
        asyncio.run(forgotten(path))
    else:
        run(in_a_scope if how == "in a scope" else until_told, path, grace=5)


def start(how: str, path: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, how, path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def end(process: subprocess.Popen[str], seconds: float) -> int | None:
    """Wait for a process; give its exit code, or `None` if it had to be killed."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return process.returncode


async def visitors(path: str) -> list[str]:
    async with Scope() as scope:
        db = await scope.acquire(lambda: aiosqlite.connect(path), close)
        return [name for (name,) in await db.execute_fetchall("SELECT name FROM visitors")]


def main() -> int:
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "visitors.sqlite"))
        codes = [end(start("forgotten", path), PATIENCE), end(start("in a scope", path), 30)]
        told = start("until told", path)
        if told.stdout is not None:
            told.stdout.readline()
        told.send_signal(signal.SIGTERM)
        codes.append(end(told, 30))
        names = asyncio.run(visitors(path))
    for how, code in zip(("forgotten", "in a scope", "told to stop"), codes, strict=True):
        print(f"{how:12}  {'did not end, and was killed' if code is None else f'ended, exit code {code}'}")
    print("visitors:", ", ".join(names))
    return 0 if codes == [None, 0, 128 + signal.SIGTERM] and names == ["ada", "bob"] else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        sys.exit(main())
