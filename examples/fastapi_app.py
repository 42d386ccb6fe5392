"""A FastAPI application whose scope holds the database, with a child of that scope for each request.

The program starts itself as a server, under uvicorn on a free port, and plays the clients: one buys, one asks for
what there is not (its request is rolled back), one reads a stream and hangs up in the middle, and one still reads when
the server gets its SIGTERM. The server tells what its scopes hold and close. In the end the program checks that every
connection went back to the pool, that the pool closed after all of them, and what is in the database; its exit code
is 1 if anything is wrong.

    python examples/fastapi_app.py
"""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Annotated

import anyio
import httpx
import uvicorn
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from anyio.to_thread import run_sync as in_thread
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from rescope import Scope
from rescope.events import ScopeEvent

REQUESTS = 4

# The application


class Pool:
    """Two connections to the database, lent to one request at a time."""

    def __init__(self, path: Path) -> None:
        self.idle = [self.connect(path) for _ in range(2)]
        self.lent = 0

    @staticmethod
    def connect(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, check_same_thread=False)
        db.execute("CREATE TABLE IF NOT EXISTS sold (item)")
        return db

    def lend(self) -> sqlite3.Connection:
        if not self.idle:
            raise HTTPException(503, "no connection is free")
        self.lent += 1
        return self.idle.pop()

    async def take_back(self, db: sqlite3.Connection) -> None:
        await in_thread(db.rollback)
        self.lent -= 1
        self.idle.append(db)

    def close(self) -> None:
        for db in self.idle:
            db.close()
        if self.lent:
            msg = f"{self.lent} connections never came back"
            raise RuntimeError(msg)


def tell(event: ScopeEvent) -> None:
    """Print what is acquired and closed, and where."""
    if event.kind in {"acquired", "closed", "failed"} and event.resource not in {None, "commit"}:
        print(f"{event.kind:<8}  {' / '.join((*event.path, str(event.resource)))}", flush=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    async with Scope("application", grace=5, on_event=tell) as scope:
        app.state.scope = scope
        app.state.pool = scope.add(Pool(Path(sys.argv[1])), name="pool")
        yield


async def request_scope(request: Request) -> AsyncIterator[Scope]:
    async with request.app.state.scope.child(request.scope["route"].name) as scope:
        yield scope


# Whose commit fails must not be told that all is well: this scope closes before the response is sent.
ScopeOfFunction = Annotated[Scope, Depends(request_scope, scope="function")]
# A stream reads on while the response is sent: this scope closes after it.
ScopeOfRequest = Annotated[Scope, Depends(request_scope)]

app = FastAPI(lifespan=lifespan)


async def connect(request: Request, scope: Scope) -> sqlite3.Connection:
    pool: Pool = request.app.state.pool
    return await scope.acquire(pool.lend, pool.take_back, name="connection")


async def commit(db: sqlite3.Connection) -> None:
    await in_thread(db.commit)
    print("committed", flush=True)


@app.post("/buy/{item}", status_code=201)
async def buy(item: str, request: Request, scope: ScopeOfFunction) -> str:
    db = await connect(request, scope)
    scope.on_success(commit, db)
    await in_thread(db.execute, "INSERT INTO sold VALUES (?)", [item])
    if item == "unicorn":
        raise HTTPException(404, "there are no unicorns")
    return item


@app.get("/sold")
async def sold(request: Request, scope: ScopeOfRequest) -> StreamingResponse:
    return StreamingResponse(follow(await connect(request, scope)), media_type="text/plain")


async def follow(db: sqlite3.Connection) -> AsyncIterator[str]:
    """Give all that was sold, and then wait for more."""
    for (item,) in await in_thread(db.execute, "SELECT item FROM sold"):
        yield f"{item}\n"
    await anyio.sleep_forever()


def serve() -> None:
    """Serve on a free port, and print which."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([server])


# The clients


async def stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()
    await process.aclose()


async def lines_of(process: Process) -> AsyncIterator[str]:
    assert process.stdout is not None  # noqa: S101 (for the type checker)
    rest = ""
    async for text in TextReceiveStream(process.stdout):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line


async def read_and_hang_up(client: httpx.AsyncClient) -> str:
    async with Scope("reader") as scope:
        response = await scope.host(client.stream("GET", "/sold"))
        return await anext(response.aiter_text())


async def use(client: httpx.AsyncClient, process: Process) -> None:
    for item in "cup", "unicorn":
        response = await client.post(f"/buy/{item}")
        print(f"client: bought a {item}: {response.status_code}")
    print(f"client: read {(await read_and_hang_up(client)).split()}, and hung up")
    async with Scope("late reader") as scope:
        response = await scope.host(client.stream("GET", "/sold"))
        pieces = response.aiter_text()
        print(f"client: read {(await anext(pieces)).split()}, and stays")
        print("SIGTERM to the server")
        process.send_signal(signal.SIGTERM)
        try:
            await anext(pieces)
        except httpx.RemoteProtocolError:
            print("client: the stream was cut off")


def problems(told: list[str], path: Path, exit_code: int | None) -> list[str]:
    """Say what is not as it should be."""
    lent = [line.startswith("acquired") and line.endswith("connection") for line in told].count(True)
    back = [line.startswith("closed") and line.endswith("connection") for line in told].count(True)
    with sqlite3.connect(path) as db:
        items = [item for (item,) in db.execute("SELECT item FROM sold")]
    db.close()
    checks = {
        f"{lent} connections were lent, {back} came back": lent == back == REQUESTS,
        "the pool was not the last to close": told[-1:] == ["closed    application / pool"],
        "something failed to close": not any(line.startswith("failed") for line in told),
        f"sold: {items}": items == ["cup"],
        f"exit code {exit_code}": exit_code == -signal.SIGTERM,
    }
    return [problem for problem, fine in checks.items() if not fine]


async def main() -> int:
    """Start the server, be its clients, stop it, and check."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shop.sqlite")
        async with Scope("clients", grace=10) as scope:
            command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), __file__, str(path)]
            process = await scope.acquire(lambda: anyio.open_process(command, stderr=DEVNULL), stop)
            lines = lines_of(process)
            told = []
            port = await anext(lines)
            client = await scope.host(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, client, process)
                async for line in lines:
                    print(f"server: {line}")
                    told.append(line)
            await process.wait()

        found = problems(told, path, process.returncode)
        print("\nWRONG: " + "; ".join(found) if found else "\nall that was opened is closed, in order")
        return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve()
    else:
        sys.exit(anyio.run(main))
