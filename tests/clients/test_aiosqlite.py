"""aiosqlite: its threads keep a process alive whose connection was not closed; with a scope they end."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import anyio
import pytest

from clients.shared import on_asyncio
from rescope import Scope
from running import run_example

aiosqlite = pytest.importorskip("aiosqlite")

SINCE_0_22 = tuple(int(part) for part in aiosqlite.__version__.split(".")[:2]) >= (0, 22)
SLOW = "WITH RECURSIVE n(i) AS (SELECT begun() UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
"""A query that calls the function `begun`, and then does not end by itself."""

PROGRAM = """
import asyncio
import threading

import aiosqlite
import anyio

from rescope import Scope

async def main():
{body}

try:
    asyncio.run(main())
finally:
    for thread in threading.enumerate()[1:]:
        thread.join(1)  # one that has answered has not quite ended
    print("done,", threading.active_count() - 1, "threads to wait for", flush=True)
"""


def start(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def program(body: str) -> str:
    return PROGRAM.format(body=indent(dedent(body).strip(), "    "))


def end(process: subprocess.Popen[str], seconds: float) -> tuple[int | None, str, str]:
    """Wait for a process; give its exit code, `None` if it had to be killed, and what it wrote."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return None, *process.communicate()
    return process.returncode, out, err


# A missed close

MISSED = {
    "kept": """
        global db
        db = await aiosqlite.connect(":memory:")
    """,
    "in a cycle": """
        class App: pass
        app = App()
        app.itself = app
        app.db = await aiosqlite.connect(":memory:")
    """,
    "after an exception": """
        db = await aiosqlite.connect(":memory:")
        raise LookupError("no such customer")
    """,
    "after a cancellation": """
        db = await aiosqlite.connect(":memory:")
        asyncio.current_task().cancel()
        await asyncio.sleep(3600)
    """,
}


@pytest.mark.parametrize("body", MISSED.values(), ids=MISSED.keys())
def test_a_process_with_a_missed_close_does_not_end(body: str) -> None:
    """Without a scope: main is done, and Python waits for the connection's thread until somebody kills the process."""
    process = start(program(body))
    assert process.stdout is not None
    assert process.stdout.readline() == "done, 1 threads to wait for\n"
    code, _, _ = end(process, 1)
    assert code is None


def test_a_connection_that_is_dropped() -> None:
    """Without a scope: one that nothing refers to hangs before aiosqlite 0.22; from then on its thread is stopped."""
    process = start(program('db = await aiosqlite.connect(":memory:")'))
    assert process.stdout is not None
    process.stdout.readline()
    code, _, _ = end(process, 30 if SINCE_0_22 else 1)
    assert code == (0 if SINCE_0_22 else None)


@pytest.mark.skipif(not SINCE_0_22, reason="it said nothing before")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_dropped_connection_is_a_warning() -> None:
    """Without a scope: since 0.22, a connection that is dropped in a running loop stops its thread, with a warning."""
    before = set(threading.enumerate())

    async def request() -> None:
        await aiosqlite.connect(":memory:")

    with pytest.warns(ResourceWarning, match="deleted before being closed"):
        await request()
    for thread in set(threading.enumerate()) - before:
        await anyio.to_thread.run_sync(thread.join, 5)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if "worker_thread" in thread.name and thread not in before]


HELD = {
    "kept": ("db", 0),
    "after an exception": ("raise LookupError('no such customer')", 1),
    "after a cancellation": ("asyncio.current_task().cancel(); await asyncio.sleep(3600)", 1),
    "after a timeout": ("with anyio.fail_after(0): await anyio.sleep(3600)", 1),
    "after an interrupt": ("import signal; signal.raise_signal(signal.SIGINT); await asyncio.sleep(3600)", -2),
}


@pytest.mark.parametrize(("ending", "code"), HELD.values(), ids=HELD.keys())
def test_a_process_with_a_scope_ends(ending: str, code: int) -> None:
    """With a scope: the thread has ended before main is done, however main ends, and so does the process."""
    body = f"""
        global db
        async with Scope() as scope:
            db = await scope.acquire(lambda: aiosqlite.connect(":memory:"), aiosqlite.Connection.close)
            {ending}
    """
    found, out, _ = end(start(program(body)), 30)
    assert found == code
    assert out == "done, 0 threads to wait for\n"


def test_a_process_with_the_runner_ends() -> None:
    """With `rescope.runner`: a process that is told to stop closes its connection, and ends with the shell's code."""
    if importlib.util.find_spec("rescope.runner") is None:
        pytest.skip("it comes with the runner")
    process = start(
        dedent("""
            import asyncio

            import aiosqlite

            from rescope.runner import run

            async def main(scope):
                global db
                db = await scope.acquire(lambda: aiosqlite.connect(":memory:"), aiosqlite.Connection.close)
                scope.defer(print, "closing", flush=True)
                print("ready", flush=True)
                await asyncio.sleep(3600)

            run(main)
        """)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert end(process, 30) == (128 + signal.SIGTERM, "closing\n", "")


# A query that takes long


async def begin(db: Any) -> asyncio.Task[Any]:
    """Let the query run, until it has begun in its thread."""
    begun = threading.Event()

    def tell() -> int:
        begun.set()
        return 1

    await db.create_function("begun", 0, tell)
    query = asyncio.create_task(db.execute(SLOW))
    assert await anyio.to_thread.run_sync(begun.wait, 30)
    return query


@on_asyncio
async def test_closing_waits_for_a_query(tmp_path: Path) -> None:
    """Without a scope: a query that was cancelled goes on in its thread, and the close waits for its end."""
    db = await aiosqlite.connect(tmp_path / "shop.sqlite")
    query = await begin(db)
    query.cancel()
    await asyncio.wait([query])
    assert query.cancelled()

    close = asyncio.create_task(db.close())
    await anyio.wait_all_tasks_blocked()
    assert not close.done()

    await db.interrupt()
    await close


async def close_now(db: Any) -> None:
    await db.interrupt()
    await db.close()


@on_asyncio
async def test_a_query_that_is_interrupted_lets_the_scope_close(tmp_path: Path) -> None:
    """With a scope whose closer interrupts first: a cancelled request closes at once, and its thread has ended."""
    before = set(threading.enumerate())
    begun = asyncio.Event()

    async def request() -> None:
        async with Scope() as scope:
            db = await scope.acquire(partial(aiosqlite.connect, tmp_path / "shop.sqlite"), close_now)
            query = await begin(db)
            begun.set()
            await query

    running = asyncio.create_task(request())
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert await threads_ended(before)


async def threads_ended(before: set[threading.Thread]) -> bool:
    """Tell whether the threads of aiosqlite that are new end: one that has answered has not quite ended."""
    new = [thread for thread in set(threading.enumerate()) - before if "worker thread" not in thread.name]
    for thread in new:
        await anyio.to_thread.run_sync(thread.join, 5)
    return not any(thread.is_alive() for thread in new)


# Opened while it is cancelled


@on_asyncio
async def test_a_connection_that_is_opened_under_a_cancellation(tmp_path: Path) -> None:
    """With `shield=True`: the connection is registered, and closed like any other; no thread is left."""
    before = set(threading.enumerate())
    closed = []

    async def close(db: Any) -> None:
        await db.close()
        closed.append("closed")

    async def request() -> None:
        async with Scope() as scope:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await scope.acquire(partial(aiosqlite.connect, tmp_path / "shop.sqlite"), close, shield=True)

    running = asyncio.create_task(request())
    await asyncio.wait([running])
    assert running.cancelled()
    assert closed == ["closed"]
    assert await threads_ended(before)


# Commit or roll back


@on_asyncio
@pytest.mark.parametrize("ending", ["succeeds", "raises"])
async def test_a_connection_commits_or_rolls_back(tmp_path: Path, ending: str) -> None:
    """With a scope: `on_success` commits; closing rolls back what was not committed."""
    path = tmp_path / "shop.sqlite"
    try:
        async with Scope() as scope:
            db = await scope.acquire(partial(aiosqlite.connect, path), aiosqlite.Connection.close)
            scope.on_success(db.commit)
            await db.execute("CREATE TABLE IF NOT EXISTS sold (item)")
            await db.execute("INSERT INTO sold VALUES (?)", [ending])
            if ending == "raises":
                raise LookupError
    except LookupError:
        pass
    reader = sqlite3.connect(path)
    committed = reader.execute("SELECT name FROM sqlite_schema").fetchall()
    items = reader.execute("SELECT item FROM sold").fetchall() if committed else []
    reader.close()
    assert items == ([("succeeds",)] if ending == "succeeds" else [])


# On trio


def test_aiosqlite_needs_asyncio() -> None:
    """On trio aiosqlite can't connect; trio says what is wrong, and the process ends."""
    pytest.importorskip("trio")
    on_trio = program('await aiosqlite.connect(":memory:")').replace(
        "asyncio.run(main())", "anyio.run(main, backend='trio')"
    )
    code, _, err = end(start(on_trio), 30)
    assert code == 1
    assert "library written for some other framework like asyncio" in err


# The example


def test_the_example_runs() -> None:
    """The example shows what hangs, what ends, and what has been committed."""
    result = run_example("aiosqlite_shutdown.py")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "forgotten     did not end, and was killed",
        "in a scope    ended, exit code 0",
        "told to stop  ended, exit code 143",
        "visitors: ada, bob",
    ]
    assert result.returncode == 0
