"""A service that takes orders is stopped: what becomes of those that it has accepted.

It is a real TCP server. Orders are accepted at once, and written to SQLite in batches: at any time some are in memory
only. When a platform stops a service, it sends SIGTERM. This program starts the service three times, sends it three
orders each time, then signals, and looks at what is in the database:

- run by `anyio.run`, which here is as good as `asyncio.run`: the default of SIGTERM ends the process on the spot;
- run by `rescope.runner.run`: the writer is told to exit, writes what it has, and only then the database is closed;
- the same with a metrics client that does not close: it has ten seconds, or until a second signal.

It ends with exit code 1 if any of that is not so.

    python examples/service.py
    python examples/service.py --backend trio
"""

from __future__ import annotations

import argparse
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

from rescope import Scope
from rescope.runner import run

ORDERS = ["apples", "pears", "plums"]


@asynccontextmanager
async def writer(db: sqlite3.Connection) -> AsyncGenerator[list[str]]:
    """Write what is accepted once a minute, in the background, and what is left at the end."""
    accepted: list[str] = []

    def write() -> None:
        with db:
            db.executemany("INSERT INTO orders VALUES (?)", [(order,) for order in accepted])
        accepted.clear()

    async def every_minute() -> None:
        while True:
            await anyio.sleep(60)
            write()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(every_minute)
        try:
            yield accepted
        finally:
            tasks.cancel_scope.cancel()
            write()
            print("the writer has written what it had", flush=True)


async def hang() -> None:
    print("the metrics client hangs", flush=True)
    await anyio.sleep_forever()


async def serve(scope: Scope, path: str, *flags: str) -> None:
    """Take orders until somebody stops it."""
    db = await scope.acquire(lambda: sqlite3.connect(path), sqlite3.Connection.close, name="database")
    if "hang" in flags:
        scope.add("metrics", hang, name="metrics client")
    accepted = await scope.host(writer(db))

    async def handle(stream: SocketStream) -> None:
        async with stream:
            accepted.append((await stream.receive()).decode())
            await stream.send(b"accepted")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    scope.add(listener, name="listener")
    print(listener.extra(SocketAttribute.local_port), flush=True)  # noqa: S610 (it is no Django)
    await listener.serve(handle)


async def serve_plainly(*args: str) -> None:
    async with Scope("serve") as scope:
        await serve(scope, *args)


def stop_a_service(how: str, backend: str, *flags: str) -> bool:
    """Start the service, send it orders, then signals; say what happened, and whether that was right."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "orders.sqlite"))
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE orders (item TEXT)")
        command = [sys.executable, __file__, "--backend", backend, "--serve", how, path, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (this program)
            try:
                code = order_and_stop(process, twice="hang" in flags)
            finally:
                process.kill()
        written = [item for (item,) in db.execute("SELECT item FROM orders")]
        db.close()
    print(f"   exit code {code}, {len(written)} of {len(ORDERS)} orders written\n")
    return (code, written) == ((-signal.SIGTERM, []) if how == "plainly" else (128 + signal.SIGTERM, ORDERS))


def order_and_stop(process: subprocess.Popen[str], *, twice: bool) -> int:
    lines: Any = process.stdout
    port = int(lines.readline())
    for order in ORDERS:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(order.encode())
            connection.recv(100)  # that it is accepted
    process.send_signal(signal.SIGTERM)
    begin = perf_counter()
    for line in lines:
        print(f"   {line.strip()}")
        if twice and "hangs" in line:
            print("   a second signal")
            process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=20)
    print(f"   gone after {perf_counter() - begin:.1f} s")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description="Stop a service that holds what is not written yet.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        how, *args = options.serve
        if how == "plainly":
            anyio.run(partial(serve_plainly, *args), backend=options.backend)
        else:
            run(serve, *args, grace=10, backend=options.backend)
        return 0
    right = []
    for title, how, *flags in [
        ("SIGTERM, without `run`", "plainly"),
        ("SIGTERM, with `run`", "run"),
        ("SIGTERM twice, with `run`, and a closer that hangs", "run", "hang"),
    ]:
        print(title, flush=True)
        right.append(stop_a_service(how, options.backend, *flags))
    print("as it should be" if all(right) else "NOT AS IT SHOULD BE")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
