"""A timeline of a small service: what it opens and closes, how long that takes, and what goes wrong.

The service holds a SQLite database, a TCP server, and a worker process that ignores SIGTERM. Three requests run at
once, each in a child scope with a connection of its own; the server hangs up on the third one, which then can't say
goodbye. When the service closes, the worker is out of time and is killed. The program prints the timeline, and checks
that all of this can be seen in it; its exit code is 1 if anything can't.

    python examples/timeline.py
    python examples/timeline.py --backend trio --write timeline.svg   (or .txt, or .json for ui.perfetto.dev)
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import ByteStream, Process, SocketAttribute, SocketStream
from anyio.to_thread import run_sync as in_thread

from rescope import Scope
from rescope.events import Timeline

# It says that it is ready, and then does not listen.
WORKER = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def open_database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    db.execute("CREATE TABLE visits (id INTEGER PRIMARY KEY, page TEXT)")
    db.executemany("INSERT INTO visits (page) VALUES (?)", [(f"page {n % 97}",) for n in range(200_000)])
    return db


def close_database(db: sqlite3.Connection) -> None:
    db.commit()
    db.execute("VACUUM")
    db.close()


@asynccontextmanager
async def server() -> AsyncGenerator[int]:
    """Answer every line, and hang up on who asks for it. Gives the port."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            async for line in stream:
                if line == b"hang up\n":
                    return
                await anyio.sleep(0.05)
                await stream.send(b"you said " + line)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)  # noqa: S610 (no SQL here)
        tasks.cancel_scope.cancel()


async def start_worker() -> Process:
    worker = await anyio.open_process([sys.executable, "-c", WORKER], stdin=subprocess.DEVNULL, stderr=None)
    if worker.stdout is not None:
        await worker.stdout.receive()
    return worker


async def stop_worker(worker: Process) -> None:
    worker.terminate()
    await worker.wait()


async def say_goodbye(connection: ByteStream) -> None:
    try:
        await connection.send(b"goodbye\n")
        await connection.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        msg = "the server hung up before the goodbye"
        raise ConnectionError(msg) from None
    finally:
        await connection.aclose()


async def request(service: Scope, port: int, words: bytes) -> None:
    async with service.child("request") as scope:
        connection = await scope.acquire(lambda: anyio.connect_tcp("127.0.0.1", port), say_goodbye, name="connection")
        await connection.send(words)
        if words != b"hang up\n":
            await connection.receive()
        await anyio.sleep(0.1)


async def quietly(service: Scope, port: int, words: bytes) -> None:
    """A request that fails is no reason to stop the service."""
    try:
        await request(service, port, words)
    except* ConnectionError:
        pass


async def run(folder: Path, timeline: Timeline) -> int | None:
    """Run the service once; give the worker's exit code."""
    worker: Process | None = None
    try:
        async with Scope("service", on_event=timeline) as service:
            await service.acquire(
                lambda: in_thread(open_database, folder / "visits.sqlite"),
                lambda db: in_thread(close_database, db),
                name="database",
            )
            worker = await service.acquire(start_worker, Process.aclose, name="worker")
            service.add(worker, partial(stop_worker, worker), name="stop worker", timeout=0.3, force=worker.kill)
            port = await service.host(server(), name="server")
            async with anyio.create_task_group() as requests:
                for number, words in enumerate([b"hello\n", b"good day\n", b"hang up\n"]):
                    requests.start_soon(quietly, service, port, words)
                    await anyio.sleep(0.05 * number)
    except* TimeoutError:
        pass
    return None if worker is None else worker.returncode


def missing(timeline: Timeline, exit_code: int | None) -> list[str]:
    """Say what should have happened, or should be in the drawings, and isn't."""
    text = timeline.text(100)
    slices = [event for event in json.loads(timeline.chrome_trace())["traceEvents"] if event["ph"] == "X"]
    expected = {
        "three requests in the text": text.count(" request ") == 3,  # noqa: PLR2004
        "three requests in the trace": sum(event["name"] == "request" for event in slices) == 3,  # noqa: PLR2004
        "the failed goodbye": "failed: ConnectionError: the server hung up before the goodbye" in text,
        "the worker that was forced": "timed out, forced: CloseTimeoutError: closing stop worker" in text,
        "a worker that was killed": exit_code == -signal.SIGKILL,
        "nothing left open": "still open" not in text,
    }
    return [what for what, seen in expected.items() if not seen]


async def main(write: Path | None) -> int:
    timeline = Timeline()
    with tempfile.TemporaryDirectory() as folder:
        exit_code = await run(Path(folder), timeline)
    print(timeline)
    if write is not None:
        timeline.write(write)
        print(f"\nwritten to {write}")
    lost = missing(timeline, exit_code)
    print(f"\nMISSING: {', '.join(lost)}" if lost else "\nall of it can be seen")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the life of a small service.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="also write the timeline to a .svg, .txt or .json file"
    )
    arguments = parser.parse_args()
    sys.exit(anyio.run(main, arguments.write, backend=arguments.backend))
