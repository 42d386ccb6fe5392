"""asyncpg, on a real PostgreSQL server: what is left in the server without a scope, and with one."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from examples.servers import connections, connections_left

from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]
from rescope import CloseTimeoutError, Err, ResourceCleanupError, Scope, with_scope
from rescope.events import ScopeEvent

asyncpg = pytest.importorskip("asyncpg")

EXAMPLE = Path(__file__).parents[2] / "examples" / "asyncpg_pool.py"
BEFORE_0_32 = tuple(int(part) for part in asyncpg.__version__.split(".")[:2]) < (0, 32)

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
on_trio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param("trio", marks=pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="needs trio"))],
)


class Server:
    """The server, and the name under which a test connects to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"rescope-{uuid4().hex}"

    def pool(self, size: int = 1, settings: dict[str, str] | None = None, **options: Any) -> Any:
        """Make a pool that opens that many connections as it is awaited."""
        settings = {"application_name": self.name} | (settings or {})
        return asyncpg.create_pool(self.url, min_size=size, max_size=size, server_settings=settings, **options)

    async def connections(self) -> list[str]:
        return await connections(self.url, self.name)

    async def left(self) -> list[str]:
        return await connections_left(self.url, self.name)

    async def becomes(self, expected: list[str]) -> None:
        """Wait until its connections are as expected, for up to 5 seconds."""
        for _ in range(500):
            if await self.connections() == expected:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await self.connections())


@pytest.fixture
def server(postgres_url: str) -> Server:
    """A server to which nobody is connected yet under the name that it gives."""
    return Server(postgres_url)


@pytest.fixture
async def ledger(postgres_url: str) -> Any:
    """A table of its own for a test."""
    name = f"ledger_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_url, server_settings={"lock_timeout": "10s"})
    await connection.execute(f"CREATE TABLE {name} (entry text)")
    yield name
    await connection.execute(f"DROP TABLE {name}")
    await connection.close()


def insert_into(ledger: str) -> str:
    return f"INSERT INTO {ledger} VALUES ($1)"  # noqa: S608


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """Cancel a task, and tell whether it was."""
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


# A connection that never comes back


@on_asyncio
async def test_a_pool_waits_for_a_connection_that_does_not_come_back(server: Server) -> None:
    """Without a scope: `pool.close()` waits until the last connection has come back, however long that takes."""
    pool = await server.pool(2)
    connection = await pool.acquire()
    close = asyncio.create_task(pool.close())
    await anyio.wait_all_tasks_blocked()
    waits, held = not close.done(), await server.connections()

    await pool.release(connection)
    await close

    assert waits
    assert held == ["idle", "idle"]
    assert await server.left() == []


@on_asyncio
async def test_a_scope_forces_a_pool_whose_connection_does_not_come_back(server: Server) -> None:
    """With a scope: closed in time, by force, and reported; what was opened before it is closed all the same."""
    events: list[ScopeEvent] = []
    closed: list[str] = []
    with pytest.raises(ResourceCleanupError, match="pool: CloseTimeoutError") as caught:
        async with Scope("service", on_event=events.append) as scope:
            scope.defer(closed.append, "opened before")
            pool = await server.pool(2)
            scope.add(pool, name="pool", timeout=0.05, force=pool.terminate)
            await pool.acquire()

    (failure,) = caught.value.failures
    assert isinstance(failure.exception, CloseTimeoutError)
    assert failure.timed_out
    told = [event.kind for event in events if event.resource == "pool"]
    assert told == ["acquired", "closing", "timed_out", "forced", "failed", "closed"]
    assert closed == ["opened before"]
    assert await server.left() == []


@on_asyncio
async def test_the_grace_of_a_scope_bounds_a_pool(server: Server) -> None:
    """With a scope: where the pool has no time of its own, the grace of the scope forces it."""
    forced = []
    scope = Scope(grace=0.05)
    pool = await server.pool()

    def force() -> None:
        forced.append("pool")
        pool.terminate()

    scope.add(pool, force=force)
    await pool.acquire()
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()
    assert forced == ["pool"]
    assert await server.left() == []


@on_asyncio
async def test_who_kept_the_connection_is_told(server: Server) -> None:
    """With a scope: the task that kept a connection fails at its next query, with an error that says why."""
    scope = Scope()
    pool = await server.pool()
    scope.add(pool, timeout=0.05, force=pool.terminate)
    connection = await pool.acquire()
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()
    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
        await connection.execute("SELECT 1")
    with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
        await pool.acquire()


@on_asyncio
@pytest.mark.parametrize("interval", ["0", "50ms"])
async def test_the_server_goes_on_with_a_query_whose_client_is_gone(server: Server, interval: str) -> None:
    """Terminating drops the socket; the query ends once the server looks, each `client_connection_check_interval`."""
    scope = Scope()
    pool = await server.pool(settings={"client_connection_check_interval": interval})
    scope.add(pool, timeout=0.05, force=pool.terminate)
    connection = await pool.acquire()
    query = asyncio.create_task(connection.execute("SELECT pg_sleep(3600)"))
    await server.becomes(["active"])
    with pytest.raises(ResourceCleanupError):
        await scope.aclose()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await query

    if interval == "0":
        assert await server.connections() == ["active"]
        await end_by_the_server(server)
    assert await server.left() == []


async def end_by_the_server(server: Server) -> None:
    admin = await asyncpg.connect(server.url)
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", server.name
    )
    await admin.close()


# Cancelled while it closes


async def work(pool: Any, ledger: str, begun: asyncio.Event, go_on: asyncio.Event) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(insert_into(ledger), "last one")
        begun.set()
        await go_on.wait()


@on_asyncio
async def test_a_close_that_is_cancelled_fails_the_work_that_it_waited_for(server: Server, ledger: str) -> None:
    """Without a scope: a cancelled `pool.close()` terminates, and a transaction that was about to commit is lost."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    pool = await server.pool(2)
    worker = asyncio.create_task(work(pool, ledger, begun, go_on))
    await begun.wait()
    close = asyncio.create_task(pool.close())
    await anyio.wait_all_tasks_blocked()
    assert await cancelled(close)
    go_on.set()
    with pytest.raises(asyncpg.InterfaceError):
        await worker
    assert await entries(server, ledger) == []


@on_asyncio
async def test_a_scope_waits_for_the_work_although_it_is_cancelled(server: Server, ledger: str) -> None:
    """With a scope: the pool closes to its end, the worker commits, and then the cancellation is raised."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    scope = Scope()
    pool = await server.pool(2)
    scope.add(pool, timeout=10, force=pool.terminate)
    worker = asyncio.create_task(work(pool, ledger, begun, go_on))
    await begun.wait()
    close = asyncio.create_task(scope.aclose())
    await anyio.wait_all_tasks_blocked()
    close.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not close.done()
    go_on.set()
    await worker
    await asyncio.wait([close])
    assert close.cancelled()
    assert scope.cleanup_error is None
    assert await entries(server, ledger) == ["last one"]
    assert await server.left() == []


async def entries(server: Server, ledger: str) -> list[str]:
    connection = await asyncpg.connect(server.url)
    try:
        return [row["entry"] for row in await connection.fetch(f"SELECT entry FROM {ledger}")]  # noqa: S608
    finally:
        await connection.close()


# Opened while it is cancelled


class SlowStart:
    """Lets a pool open its first connection, and holds up the second one."""

    def __init__(self) -> None:
        self.opened = 0
        self.second, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, connection: Any) -> None:
        self.opened += 1
        if self.opened == 2:
            self.second.set()
            await self.go_on.wait()


@on_asyncio
async def test_a_pool_whose_start_is_cancelled(server: Server) -> None:
    """Without a scope: asyncpg before 0.32 leaves the connections that are open already, 0.32 closes them."""
    start = SlowStart()
    pool = server.pool(2, init=start)

    async def open_pool() -> None:
        await pool

    opening = asyncio.create_task(open_pool())
    await start.second.wait()
    assert await cancelled(opening)
    if BEFORE_0_32:
        assert "idle" in await server.connections()
        await end_by_the_server(server)
    assert await server.left() == []


@on_asyncio
async def test_a_pool_whose_start_is_cancelled_is_registered_and_closed(server: Server) -> None:
    """With `shield=True`: the cancellation waits for the pool, which is registered, and closed as any other."""
    start = SlowStart()
    events: list[ScopeEvent] = []

    async def main() -> None:
        async with Scope(on_event=events.append) as scope:
            pool = server.pool(2, init=start)
            await scope.acquire(
                lambda: pool, asyncpg.Pool.close, name="pool", timeout=10, force=pool.terminate, shield=True
            )

    running = asyncio.create_task(main())
    await start.second.wait()
    running.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not running.done()
    start.go_on.set()
    await asyncio.wait([running])
    assert running.cancelled()
    assert [event.kind for event in events if event.resource == "pool"] == ["acquired", "closing", "closed"]
    assert await server.left() == []


# Requests


@on_asyncio
async def test_a_request_that_fails_keeps_its_connection(server: Server) -> None:
    """Without a scope: a connection that is not released is missing in the pool, and the next request waits for it."""
    pool = await server.pool()

    async def request() -> None:
        connection = await pool.acquire()
        await connection.execute("no SQL")
        await pool.release(connection)

    with pytest.raises(asyncpg.PostgresSyntaxError):
        await request()
    following = asyncio.create_task(request())
    await anyio.wait_all_tasks_blocked()
    waits = not following.done()
    assert await cancelled(following)
    assert waits
    assert pool.get_idle_size() == 0
    pool.terminate()


@on_asyncio
@pytest.mark.parametrize("ending", ["fails", "cancelled", "succeeds"])
async def test_a_request_gives_its_connection_back(server: Server, ending: str) -> None:
    """With a child scope: the connection is back in the pool, however the request ends."""
    async with Scope("service") as service:
        pool = await service.acquire(partial(server.pool, 1), asyncpg.Pool.close)

        async def request() -> None:
            async with service.child("request") as scope:
                connection = await scope.acquire(pool.acquire, pool.release, name="connection")
                assert pool.get_idle_size() == 0
                if ending == "fails":
                    await connection.execute("no SQL")
                if ending == "cancelled":
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                    await connection.execute("SELECT 1")

        task = asyncio.create_task(request())
        await asyncio.wait([task])
        assert task.cancelled() is (ending == "cancelled")
        assert isinstance(None if task.cancelled() else task.exception(), asyncpg.PostgresError) is (ending == "fails")
        assert pool.get_idle_size() == pool.get_size() == 1
        assert await pool.fetchval("SELECT 1") == 1
    assert await server.left() == []


# Transactions


async def insert_and_end(scope: Scope, pool: Any, ledger: str, ending: str) -> Any:
    connection = await scope.acquire(pool.acquire, pool.release, name="connection")
    transaction = connection.transaction()
    await transaction.start()
    scope.on_success(transaction.commit)
    scope.on_error(transaction.rollback)
    await connection.execute(insert_into(ledger), ending)
    if ending == "raises":
        raise ValueError
    if ending == "cancelled":
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)
    return Err("refused") if ending == "returns an Err" else None


@on_asyncio
async def test_a_transaction_ends_as_the_body_does(server: Server, ledger: str) -> None:
    """`on_success` commits; `on_error` rolls back what raised, was cancelled, or returned an `Err`."""
    async with Scope() as service:
        pool = await service.acquire(partial(server.pool, 1), asyncpg.Pool.close)
        for ending in "succeeds", "raises", "cancelled", "returns an Err":
            task = asyncio.create_task(with_scope(insert_and_end, pool, ledger, ending))
            await asyncio.gather(task, return_exceptions=True)
    assert await entries(server, ledger) == ["succeeds"]


@on_asyncio
async def test_a_rollback_is_cut_off_in_a_cancelled_scope(server: Server, ledger: str) -> None:
    """Without a scope: in a cancelled scope of anyio the manager can't roll back; the pool does, on its return."""

    async def is_cut_off() -> bool:
        connection = await pool.acquire()
        with anyio.CancelScope() as cancel_scope:
            async with connection.transaction():
                await connection.execute(insert_into(ledger), "half")
                cancel_scope.cancel()
                await anyio.sleep_forever()
        in_transaction: bool = connection.is_in_transaction()
        await pool.release(connection)
        return in_transaction

    pool = await server.pool()
    # A busy machine may give the server the time to answer before the cancellation is delivered.
    cut_off = [await is_cut_off() for _ in range(10)]
    await pool.close()
    assert any(cut_off)
    assert await entries(server, ledger) == []


@on_asyncio
async def test_a_hosted_transaction_rolls_back_in_a_cancelled_scope(server: Server, ledger: str) -> None:
    """With `host`: the manager rolls back itself, before the connection goes back to the pool."""
    within = []
    pool = await server.pool()
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            connection = await scope.acquire(pool.acquire, pool.release)
            scope.defer(lambda: within.append(connection.is_in_transaction()))
            await scope.host(connection.transaction())
            await connection.execute(insert_into(ledger), "half")
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert within == [False]
    await pool.close()
    assert await entries(server, ledger) == []


# Listening


@on_asyncio
async def test_a_listener_that_is_left_on_a_connection(server: Server) -> None:
    """Without a scope: a connection that still listens goes back to the pool with a warning."""
    pool = await server.pool()
    connection = await pool.acquire()
    await connection.add_listener("news", print)
    with pytest.warns(asyncpg.InterfaceWarning, match="listener"):
        await pool.release(connection)
    await pool.close()


@on_asyncio
async def test_a_listener_is_removed_before_its_connection_goes_back(server: Server) -> None:
    """With a scope: what was heard is heard, then the listener goes, then the connection, then the pool."""
    heard: asyncio.Queue[str] = asyncio.Queue()

    def listener(connection: Any, pid: int, channel: str, payload: str) -> None:
        heard.put_nowait(payload)

    async with Scope() as scope:
        pool = await scope.acquire(partial(server.pool, 2), asyncpg.Pool.close)
        connection = await scope.acquire(pool.acquire, pool.release)
        await connection.add_listener("news", listener)
        scope.defer(connection.remove_listener, "news", listener)
        await pool.execute("NOTIFY news, 'it is out'")
        assert await heard.get() == "it is out"
    assert await server.left() == []


# On trio


@on_trio
async def test_asyncpg_needs_asyncio(server: Server) -> None:
    """On trio asyncpg can't connect, and says so; the scope holds nothing, and closes."""
    async with Scope() as scope:
        with pytest.raises(RuntimeError, match="event loop"):
            await scope.acquire(server.pool, asyncpg.Pool.close)
        assert scope.size == 0


# The example


def test_the_example_runs() -> None:
    """The example commits and rolls back, forces the pool, and finds no connection left."""
    command = [sys.executable, "-W", "error", str(EXAMPLE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert result.stderr == ""
    assert [line for line in result.stdout.splitlines() if not line.startswith("  ")] == [
        "5 requests at once, over two connections",
        "stopping, while a report still has its connection",
        "not closed in time: pool",
        "in the ledger: coffee, pie, tea",
        "connections left in the server: 0",
    ]
    assert result.returncode == 0
