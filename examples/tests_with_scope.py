"""Tests of a small key-value server, which open a lot and close next to nothing.

Each test has a database, a listener, a task group in which the server runs, and clients. The fixture `scope` closes
them after the test. Two tests fail. One asks for what makes the server fail: the test only sees its connection end, but
the close of its scope tells what happened. The other one leaves a client open, and is told the line that opened it.

    python examples/tests_with_scope.py
    pytest --rescope-leaks=error examples/tests_with_scope.py

As a program it runs pytest on itself, and checks that pytest said all of that.
"""
# ruff: noqa: S101 (pytest asserts)

from __future__ import annotations

import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from rescope import Scope
from rescope.pytest_plugin import ScopeFactory

pytestmark = pytest.mark.anyio


async def serve(db: sqlite3.Connection, stream: SocketStream) -> None:
    """Answer `set key value` and `get key`."""
    async with stream:
        async for request in stream:
            match request.decode().split():
                case ["set", key, value]:
                    db.execute("INSERT INTO entries VALUES (?, ?)", (key, value))
                    await stream.send(b"done")
                case ["get", key]:
                    (value,) = db.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
                    await stream.send(value.encode())


class Client:
    """Asks the server. It has a scope of its own, and whoever makes one is to close it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.scope = Scope("client")

    async def ask(self, request: str) -> str:
        stream = self.scope.add(await anyio.connect_tcp("127.0.0.1", self.port), name="connection")
        await stream.send(request.encode())
        return (await stream.receive()).decode()


@pytest.fixture
async def port(scope: Scope, tmp_path: Path) -> int:
    db = scope.add(sqlite3.connect(tmp_path / "entries.db", isolation_level=None))
    db.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT)")
    listener = scope.add(await anyio.create_tcp_listener(local_host="127.0.0.1"))
    tasks = await scope.enter(anyio.create_task_group(), name="server")
    scope.defer(tasks.cancel_scope.cancel)
    tasks.start_soon(partial(listener.serve, partial(serve, db), task_group=tasks))
    return listener.extra(SocketAttribute.local_port)  # noqa: S610 (no SQL here)


@pytest.fixture
def client(scope: Scope, port: int) -> Client:
    client = Client(port)
    scope.defer(client.scope.aclose)
    return client


async def test_keeps_what_it_is_given(client: Client) -> None:
    assert await client.ask("set colour green") == "done"
    assert await client.ask("get colour") == "green"


async def test_two_clients_share_it(port: int, scope_factory: ScopeFactory) -> None:
    clients = [Client(port), Client(port)]
    scope = scope_factory("clients", grace=5, concurrent=True)
    for client in clients:
        scope.defer(client.scope.aclose)
    assert await clients[0].ask("set size 7") == "done"
    assert await clients[1].ask("get size") == "7"


async def test_asks_for_what_is_not_there(client: Client) -> None:
    assert await client.ask("get nothing") == "nothing"


async def test_forgets_to_close_its_client(port: int) -> None:
    client = Client(port)
    assert await client.ask("set shape round") == "done"


def main() -> int:
    """Run the tests above, show what pytest says, and check that it said what it should."""
    options = [
        "-q",
        "--tb=short",
        "--rescope-leaks=error",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "-o",
        "filterwarnings=",
    ]
    command = [sys.executable, "-m", "pytest", *options, __file__]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)  # noqa: S603
    print(done.stdout, done.stderr)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "await anyio.connect_tcp" in text)
    expected = [
        "ERROR at teardown of test_asks_for_what_is_not_there",
        "failed to close: server: ExceptionGroup of TypeError",
        "ERROR at teardown of test_forgets_to_close_its_client",
        "left open: connection in scope 'client', registered at ",
        f"{Path(__file__).name}:{line} in Client.ask",
    ]
    missing = [text for text in expected if text not in done.stdout]
    if missing or done.returncode != pytest.ExitCode.TESTS_FAILED:
        print(f"pytest did not say: {missing}")
        return 1
    print("As expected: pytest told what failed in the background, and what was left open.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
