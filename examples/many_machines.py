"""Two machines and one PostgreSQL: one of them is killed at work, by `kill -9`, and the other one goes on.

Each machine runs the same program, here a process. It opens a durable application and a journal on the same database,
and recovers from time to time what others have left. A film is to be rendered, on a helper that is rented for it: a
row of the table `rented` stands for it. The machine that is at it is killed in the middle. Then the other one takes the
film over, with a helper of its own, and gives back the one that nobody knows of any more.

    python examples/many_machines.py
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, cast
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from servers import postgres

from rescope import Scope
from rescope.workflow import JournaledScope, PostgresStore, StoreError, cleanup, recover
from rescope.workflow.durable import Durable, DurableFunction

TTL = 2.0  # seconds; half a minute or so is usual
EVERY = 0.5  # seconds between two looks for what others have left; ten for the work, a minute for the rest are usual
FILM = "waves"


class Machine:
    """What each machine opens: a pool for the store, and the application with its function."""

    pool: asyncpg.Pool
    store: PostgresStore

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.app = Durable(url=url, name="studio", recover_every=EVERY)
        self.render: DurableFunction[str, str] = self.app.function(namespace="studio.films")(self._render)
        cleanup("studio.helper")(self.give_back)

    async def rent(self, token: str) -> str:
        await self.pool.execute("INSERT INTO rented VALUES ($1)", token)
        return token

    async def give_back(self, token: str) -> None:
        print(f"{self.name}: gives back {token[:-37]}'s helper", flush=True)
        await self.pool.execute("DELETE FROM rented WHERE helper = $1", token)

    async def _render(self, scope: Scope, film: str) -> str:
        """Render it. The first machine never gets to the end."""
        helpers = await scope.enter(JournaledScope(self.store, self.name, ttl=TTL))
        helper = await helpers.acquire(self.rent, self.give_back, token=f"{self.name}-{uuid4()}")
        print(f"{self.name}: renders {film} on {helper[:-37]}'s helper", flush=True)
        if self.name == "ada":
            await asyncio.sleep(600)
        return f"{film}, rendered by {self.name}"

    async def recover_for_ever(self) -> None:
        while True:
            try:
                await recover(self.store, ttl=TTL)  # so long it holds up the others, should it be killed
            except StoreError as error:
                print(f"{self.name}: nothing was recovered: {error}", file=sys.stderr)
            await asyncio.sleep(EVERY)

    async def run(self) -> None:
        """Ask for the film, as each machine may, and wait until it is there and nothing is rented any more."""
        async with Scope(self.name) as scope:
            # A pool of its own, so that nothing else keeps a lease from being renewed. The store leaves nothing to
            # reset. A few connections do, as none is held for longer than a statement.
            self.pool = await asyncpg.create_pool(self.url, min_size=1, max_size=4, reset=_nothing)
            scope.add(self.pool, timeout=5, force=self.pool.terminate)
            self.store = PostgresStore(self.pool)
            await scope.enter(self.app)
            recovering = asyncio.create_task(self.recover_for_ever())
            scope.defer(_stopped, recovering)
            handle = await self.render.start(FILM, key=FILM)  # the same key, so the same work
            print(f"{self.name}: {await handle.result(timeout=60)}", flush=True)
            async with asyncio.timeout(60):
                while await self.pool.fetchval("SELECT count(*) FROM rented"):  # noqa: ASYNC110 (others change it)
                    await asyncio.sleep(0.1)


async def _nothing(_connection: object) -> None:
    """Reset nothing."""


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


# The story


def start(name: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--machine", name, "--url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (it is this program)


@contextmanager
def database(server: str) -> Generator[str]:
    """Give the URL of a database of that server which is dropped again."""
    name = f"machines_{uuid4().hex}"
    asyncio.run(ask(server, f"CREATE DATABASE {name}"))
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        asyncio.run(ask(server, f"DROP DATABASE {name} WITH (FORCE)"))


async def ask(url: str, sql: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [str(row[0]) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def main() -> int:
    with postgres() as server, database(server) as url:
        asyncio.run(ask(url, "CREATE TABLE rented (helper text PRIMARY KEY)"))
        with start("ada", url) as ada:
            print(cast("IO[str]", ada.stdout).readline(), end="", flush=True)
            ada.kill()
        print(f"(ada is killed; {len(asyncio.run(ask(url, 'SELECT helper FROM rented')))} helper is still rented)")
        with start("bob", url) as bob:
            said = bob.communicate(timeout=100)[0]
        print(said, end="")
        left = asyncio.run(ask(url, "SELECT helper FROM rented"))
    expected = {
        "bob: renders waves on bob's helper",
        "bob: waves, rendered by bob",
        "bob: gives back bob's helper",
        "bob: gives back ada's helper",
    }
    if left or bob.returncode or set(said.splitlines()) != expected:
        print("WRONG: the film is missing, or something is left")
        return 1
    print("the film is there, and nothing is rented any more")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two machines, of which one is killed.")
    parser.add_argument("--machine", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.machine is not None:
        asyncio.run(Machine(options.machine, options.url).run())
    else:
        sys.exit(main())
