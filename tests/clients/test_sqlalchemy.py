"""SQLAlchemy's async sessions, on PostgreSQL and SQLite: what is left in pool and server without a scope, and with."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
import pytest

from clients.shared import Server, ended, on_asyncio, on_trio
from rescope import Err, ResourceCleanupError, Scope, with_scope
from running import run_example

sqlalchemy = pytest.importorskip("sqlalchemy")
pytest.importorskip("asyncpg")
pytest.importorskip("aiosqlite")

from sqlalchemy import (  # noqa: E402
    AsyncAdaptedQueuePool,
    Column,
    Connection,
    ForeignKey,
    MetaData,
    Table,
    Text,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, SAWarning  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine  # noqa: E402

T = TypeVar("T")

since_2_1 = pytest.mark.skipif(
    tuple(int(part) for part in sqlalchemy.__version__.split(".")[:2]) < (2, 1), reason="what SQLAlchemy 2.1 does"
)
on_both = pytest.mark.parametrize("kind", ["postgresql", "sqlite"])


class Database(Server):
    """A database with a table of its own for a test, and how the test connects to it."""

    def __init__(self, kind: str, url: str) -> None:
        super().__init__(url)
        self.kind = kind
        self.sold = Table(f"sold_{uuid4().hex}", MetaData(), Column("item", Text, primary_key=True))
        self.sold.append_column(
            Column("instead_of", ForeignKey(self.sold.c.item, deferrable=True, initially="DEFERRED"))
        )

    def engine(self) -> AsyncEngine:
        """Make an engine whose pool holds up to two connections."""
        if self.kind == "sqlite":
            return create_async_engine(f"sqlite+aiosqlite:///{self.url}", poolclass=AsyncAdaptedQueuePool)
        url = make_url(self.url).set(drivername="postgresql+asyncpg")
        arguments = {"server_settings": {"application_name": self.name}}
        return create_async_engine(url, connect_args=arguments, pool_size=2, max_overflow=0)

    async def run(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn(connection)` in a transaction and on an engine of its own."""
        engine = self.engine()
        async with engine.begin() as connection:
            result = await connection.run_sync(fn)
        await engine.dispose()
        return result

    async def items(self) -> list[str]:
        """Give what has been committed."""
        return await self.run(lambda connection: list(connection.scalars(select(self.sold.c.item)).all()))


@pytest.fixture
async def database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Database]:
    """A database with an empty table."""
    url = str(tmp_path / "shop.sqlite") if kind == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database(kind, url)
    await database.run(database.sold.metadata.create_all)
    yield database
    await database.run(database.sold.metadata.drop_all)


def checked_out(engine: AsyncEngine) -> int:
    return engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]


# A session that nobody closes


@since_2_1
@on_asyncio
@on_both
async def test_a_session_that_nobody_closes(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Without a scope: the garbage collector finds its connection, and the pool warns and logs an error."""
    engine = database.engine()

    async def request() -> None:
        session = AsyncSession(engine)
        await session.execute(insert(database.sold).values(item="no SQL", instead_of=None))
        raise LookupError

    with caplog.at_level(logging.ERROR), pytest.warns(SAWarning, match="non-checked-in connection"):
        await ended(request)
    assert "non-checked-in connection" in caplog.text
    await engine.dispose()
    gc.collect()
    assert await database.items() == []


async def sell(scope: Scope, engine: AsyncEngine, sold: Table, ending: str) -> Err[str] | None:
    session = scope.add(AsyncSession(engine))
    scope.on_success(session.commit)
    scope.on_error(session.rollback)
    await session.execute(insert(sold).values(item=ending))
    assert checked_out(engine) == 1
    if ending == "raises":
        raise LookupError
    if ending == "cancelled":
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)
    return Err("refused") if ending == "returns an Err" else None


@on_asyncio
@on_both
async def test_a_session_ends_as_its_request_does(database: Database) -> None:
    """With a scope: committed on success, rolled back else; each time the connection is back in the pool."""
    async with Scope("service") as service:
        engine = database.engine()
        service.add(engine, engine.dispose)
        for ending in "succeeds", "raises", "cancelled", "returns an Err":
            task = asyncio.create_task(with_scope(sell, engine, database.sold, ending))
            await asyncio.gather(task, return_exceptions=True)
            assert checked_out(engine) == 0
    assert await database.items() == ["succeeds"]


# Cancelled


@since_2_1
@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_cancelled_request_costs_a_connection(database: Database) -> None:
    """Without a scope: where anyio cancels, `session.close()` is cut off, and its connection is dropped."""
    engine = database.engine()
    with anyio.CancelScope() as cancel_scope:
        session = AsyncSession(engine)
        try:
            await session.execute(insert(database.sold).values(item="half"))
            cancel_scope.cancel()
            await anyio.sleep_forever()
        finally:
            await session.close()
    assert await database.left() == []
    await engine.dispose()


@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_cancelled_request_gives_its_connection_back(database: Database) -> None:
    """With a scope: it is rolled back, and its connection waits in the pool for the next request."""
    engine = database.engine()
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            session = scope.add(AsyncSession(engine))
            scope.on_success(session.commit)
            scope.on_error(session.rollback)
            await session.execute(insert(database.sold).values(item="half"))
            assert await database.connections() == ["idle in transaction"]
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert checked_out(engine) == 0
    assert await database.connections() == ["idle"]
    assert await database.items() == []
    await engine.dispose()
    assert await database.left() == []


@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_request_cancelled_in_a_query_gives_its_place_in_the_pool_back(database: Database) -> None:
    """With a scope: SQLAlchemy drops the connection whose query was cut off; nothing is committed."""
    engine = database.engine()
    started = asyncio.Event()

    async def request() -> None:
        async with Scope() as scope:
            session = scope.add(AsyncSession(engine))
            scope.on_success(session.commit)
            await session.execute(insert(database.sold).values(item="half"))
            started.set()
            await session.execute(text("SELECT pg_sleep(3600)"))

    running = asyncio.create_task(request())
    await started.wait()
    await database.becomes(["active"])
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert checked_out(engine) == 0
    assert await database.items() == []
    await engine.dispose()
    assert await database.left() == []


# A commit that fails


@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_commit_that_fails_is_told(database: Database) -> None:
    """With a scope: what the database refuses as it commits is raised, named after the session's commit."""
    engine = database.engine()
    with pytest.raises(ResourceCleanupError, match=r"AsyncSession\.commit: IntegrityError") as caught:
        async with Scope("request") as scope:
            session = scope.add(AsyncSession(engine))
            scope.on_success(session.commit)
            scope.on_error(session.rollback)
            await session.execute(insert(database.sold).values(item="a cup", instead_of="no such item"))
    (failure,) = caught.value.failures
    assert isinstance(failure.exception, IntegrityError)
    assert checked_out(engine) == 0
    assert await database.connections() == ["idle"]
    await engine.dispose()
    assert await database.items() == []


# The end


@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_disposing_of_the_engine_first(database: Database) -> None:
    """Without a scope: what is out while the engine is disposed of stays connected, in its transaction."""
    engine = database.engine()
    session = AsyncSession(engine)
    await session.execute(insert(database.sold).values(item="half"))
    driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    await engine.dispose()
    assert await database.connections() == ["idle in transaction"]

    await session.close()
    assert await database.connections() == ["idle"]  # in the pool of the past, which nobody disposes of
    await driver.close()


@on_asyncio
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_engine_is_disposed_of_last(database: Database) -> None:
    """With a scope: a request that is still open when the service stops is closed before the engine."""
    async with Scope("service") as service:
        engine = database.engine()
        service.add(engine, engine.dispose)
        session = service.child("request").add(AsyncSession(engine))
        await session.execute(insert(database.sold).values(item="half"))
        assert await database.connections() == ["idle in transaction"]
    assert await database.left() == []
    assert await database.items() == []


@on_asyncio
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_threads_of_sqlite_end_with_the_engine(database: Database) -> None:
    """With a scope: the thread that aiosqlite starts for each connection has ended when the scope is closed."""
    before = set(threading.enumerate())
    async with Scope() as scope:
        engine = database.engine()
        scope.add(engine, engine.dispose)
        await scope.add(AsyncSession(engine)).execute(select(1))
        (thread,) = set(threading.enumerate()) - before
    thread.join(5)  # one that has answered has not quite ended
    assert not thread.is_alive()


# On trio


@on_trio
async def test_sqlalchemy_needs_asyncio(postgres_url: str) -> None:
    """On trio the driver can't connect, and says so; the scope closes the session and the engine all the same."""
    engine = Database("postgresql", postgres_url).engine()
    scope = Scope()
    scope.add(engine, engine.dispose)
    session = scope.add(AsyncSession(engine))
    with pytest.raises(RuntimeError, match="event loop"):
        await session.execute(select(1))
    await scope.aclose()
    assert checked_out(engine) == 0


# The example


def test_the_example_runs() -> None:
    """The example commits and rolls back, and leaves nothing, neither in the pool nor in the server."""
    result = run_example("sqlalchemy_sessions.py")
    assert result.stderr == ""
    same = [
        "  bob wanted a seat that is taken: rolled back",
        "  carol went away: rolled back",
        "  booked: {1: 'ada', 2: 'dora'}; connections out of the pool: 0",
    ]
    lines = ["on SQLite", *same, "on PostgreSQL", *same, "connections left in the server: 0"]
    assert result.stdout.splitlines() == lines
    assert result.returncode == 0
