"""redis-py, on a real Valkey server: what is left in the server without a scope, and with one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from clients.shared import Server, ended, on_asyncio, on_trio
from rescope import Scope
from rescope.events import ScopeEvent
from running import run_example

redis = pytest.importorskip("redis")

from redis.asyncio import Redis  # noqa: E402
from redis.asyncio.retry import Retry  # noqa: E402
from redis.backoff import NoBackoff  # noqa: E402


class Valkey(Server):
    """The server, how a test connects to it, and a key of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.key = f"key of {self.name}"

    def client(self, **options: Any) -> Any:
        return Redis.from_url(self.url, client_name=self.name, **options)

    def worker_client(self) -> Any:
        """Make a client that waits as long as it takes, and that retries, as one made by `Redis(host=...)` does."""
        return self.client(socket_timeout=None, retry=Retry(NoBackoff(), 3))


@pytest.fixture
def server(redis_url: str) -> Valkey:
    """A server to which nobody is connected yet under the name that it gives."""
    return Valkey(redis_url)


# A client that is not closed


@on_asyncio
async def test_a_client_that_nobody_closes(server: Valkey) -> None:
    """Without a scope: the connection of a forgotten client is found by the garbage collector, with a warning."""

    async def request() -> None:
        client = server.client()
        await client.get("no such key")
        raise LookupError

    with pytest.warns(ResourceWarning, match="unclosed Connection"):
        await ended(request)
    assert await server.left() == []


@on_asyncio
@pytest.mark.parametrize("how", ["async with", "finally"])
async def test_a_close_is_cut_off_in_a_cancelled_scope(server: Valkey, how: str) -> None:
    """Without a scope: where anyio cancels, neither `async with` nor `finally` closes the connection."""
    client = server.client()
    with anyio.CancelScope() as cancel_scope:
        if how == "async with":
            async with client:
                await client.ping()
                cancel_scope.cancel()
                await anyio.sleep_forever()
        try:
            await client.ping()
            cancel_scope.cancel()
            await anyio.sleep_forever()
        finally:
            await client.aclose()
    assert await server.connections() == ["ping"]
    await client.aclose()


@on_asyncio
async def test_a_scope_closes_a_client_in_a_cancelled_scope(server: Valkey) -> None:
    """With a scope: the client is closed, although each `await` around it is cancelled."""
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            await scope.add(server.client()).ping()
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert cancel_scope.cancelled_caught
    assert await server.left() == []


# Used after it was closed


@on_asyncio
async def test_a_closed_client_connects_again(server: Valkey) -> None:
    """Without a scope: who goes on with a client after its close opens a new connection, and nobody closes that."""
    client = server.client()
    await client.ping()
    await client.aclose()
    assert await server.left() == []

    await client.ping()

    assert await server.connections() == ["ping"]
    await client.aclose()


async def wait_for_work(client: Any, key: str) -> None:
    while True:
        await client.blpop([key], timeout=0)


@pytest.mark.skipif(redis.VERSION < (6,), reason="redis-py 5 does not send it again")
@on_asyncio
async def test_closing_a_client_that_waits_for_the_server(server: Valkey) -> None:
    """Without a scope: a blocking command whose client is closed is sent again, on a new connection."""
    client = server.worker_client()
    worker = asyncio.create_task(wait_for_work(client, server.key))
    await server.becomes(["blpop"])
    admin = Redis.from_url(server.url)
    before = await ids(admin, server.name)

    await client.aclose()
    after = before
    for _ in range(500):  # until the server has seen the new one
        after = await ids(admin, server.name)
        if after not in ([], before):
            break
        await asyncio.sleep(0.01)
    await server.becomes(["blpop"])

    assert after != before
    assert not worker.done()
    worker.cancel()
    await asyncio.wait([worker])
    await client.aclose()
    await admin.aclose()


async def ids(admin: Any, name: str) -> list[str]:
    return [entry["id"] for entry in await admin.client_list() if entry["name"] == name]


@asynccontextmanager
async def worker_on(client: Any, key: str) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_work, client, key)
        yield
        tasks.cancel_scope.cancel()


@on_asyncio
async def test_a_scope_ends_the_worker_before_the_client(server: Valkey) -> None:
    """With a scope: what was opened with the client ends first, so nobody connects again."""
    async with Scope() as scope:
        client = scope.add(server.worker_client())
        await scope.host(worker_on(client, server.key))
        await server.becomes(["blpop"])
    assert await server.left() == []


# Publish and subscribe


@on_asyncio
async def test_a_subscription_outlives_its_client(server: Valkey) -> None:
    """Without a scope: a subscription whose client was closed first connects again, and stays."""
    client = server.client()
    subscription = client.pubsub()
    await subscription.subscribe(server.key)
    await subscription.get_message(timeout=5)
    await client.aclose()
    assert await server.left() == []

    await subscription.get_message(timeout=5)

    assert await server.connections() == ["subscribe"]
    await subscription.aclose()
    await client.aclose()


@on_asyncio
async def test_a_scope_closes_the_subscription_before_the_client(server: Valkey) -> None:
    """With a scope: what was opened last is closed first, and nothing is left."""
    events: list[ScopeEvent] = []
    async with Scope(on_event=events.append) as scope:
        client = scope.add(server.client(), name="client")
        subscription = scope.add(client.pubsub(), name="subscription")
        await subscription.subscribe(server.key)
        await subscription.get_message(timeout=5)
        await client.publish(server.key, "it is out")
        message = await subscription.get_message(timeout=5)
    assert message["data"] == b"it is out"
    assert [event.resource for event in events if event.kind == "closed"] == ["subscription", "client"]
    assert await server.left() == []


# Locks


async def cancel_as_the_lock_is_set(server: Valkey, task: asyncio.Task[Any]) -> None:
    """Cancel a task after the server has set its lock, and before the answer has been read."""
    with redis.Redis.from_url(server.url) as here:  # it blocks the loop, so that nothing is read meanwhile
        for _ in range(1000):
            await asyncio.sleep(0)
            if here.exists(server.key):
                break
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@on_asyncio
async def test_a_lock_whose_acquisition_is_cancelled_stays_locked(server: Valkey) -> None:
    """Without a scope: the server has set the lock, nobody holds it, and it stays until its time is over."""
    client = server.client(socket_timeout=None)  # with one, redis-py on Python 3.11 can lose the cancellation
    await client.ping()

    async def job() -> None:
        async with client.lock(server.key, timeout=3600):
            await anyio.sleep_forever()

    await cancel_as_the_lock_is_set(server, asyncio.create_task(job()))
    assert await client.exists(server.key) == 1
    await client.delete(server.key)
    await client.aclose()


async def take(lock: Any) -> Any:
    if not await lock.acquire(blocking_timeout=1):
        raise redis.exceptions.LockError("held by somebody else")
    return lock


@on_asyncio
async def test_a_lock_whose_acquisition_is_cancelled_is_released(server: Valkey) -> None:
    """With `shield=True`: the cancellation waits for the answer, and the lock is released as it should be."""
    client = server.client()
    await client.ping()

    async def job() -> None:
        async with Scope() as scope:
            lock = client.lock(server.key, timeout=3600)
            await scope.acquire(partial(take, lock), lambda lock: lock.release(), name="lock", shield=True)
            await anyio.sleep_forever()

    await cancel_as_the_lock_is_set(server, asyncio.create_task(job()))
    assert await client.exists(server.key) == 0
    await client.aclose()


@on_asyncio
async def test_a_lock_is_released_before_the_client_is_closed(server: Valkey) -> None:
    """With a scope: lock and client may share it, however it ends."""
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            client = scope.add(server.client())
            lock = client.lock(server.key, timeout=3600)
            await scope.acquire(partial(take, lock), lambda lock: lock.release(), shield=True)
            assert await client.exists(server.key) == 1
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert await server.left() == []
    async with Scope() as scope:
        assert await scope.add(server.client()).exists(server.key) == 0


# Cancelled in a command


@on_asyncio
async def test_a_cancelled_command_does_not_spoil_the_next_one(server: Valkey) -> None:
    """Wherever a command is cut off, redis-py drops the connection, and the next command gets its own answer."""
    async with Scope() as scope:
        client = scope.add(server.client())
        await client.mset({f"{server.key} a": "A", f"{server.key} b": "B"})
        scope.defer(client.delete, f"{server.key} a", f"{server.key} b")
        answers = set()
        for turns in range(50):
            command = asyncio.create_task(client.get(f"{server.key} a"))
            for _ in range(turns):
                await asyncio.sleep(0)
            command.cancel()
            await asyncio.wait([command])
            answers.add(await client.get(f"{server.key} b"))
    assert answers == {b"B"}
    assert await server.left() == []


# On trio


@on_trio
async def test_redis_needs_asyncio(server: Valkey) -> None:
    """On trio redis-py can't connect, and says so; nothing was opened."""
    client = server.client()
    with pytest.raises((RuntimeError, redis.ConnectionError), match="event loop"):
        await client.ping()
    assert await anyio.to_thread.run_sync(asyncio.run, server.connections()) == []


# The example


def test_the_example_runs() -> None:
    """The example ends by itself, and leaves neither a connection nor a lock in the server."""
    result = run_example("redis_client.py")
    assert result.stderr == ""
    assert [line for line in result.stdout.splitlines() if "while it ran" not in line] == [
        "worked off: letter 1, letter 2, letter 3",
        "heard: stop",
        "closed in order: worker, lock, subscription, client",
        "connections left in the server: 0; the lock is free",
    ]
    assert result.returncode == 0
