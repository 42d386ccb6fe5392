"""A worker on Valkey (or Redis): it waits for letters, hears when to stop, and holds a lock while it runs.

All that it opens on the client, the scope closes before the client: a worker or a subscription that went on would
connect again. The lock is taken with `shield=True`, so that no cancellation can come between the server and us.
Runs on a server of its own, or on the one that `RESCOPE_TEST_REDIS_URL` names.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import anyio
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError
from servers import connections, connections_left, valkey

from rescope import Scope
from rescope.events import ScopeEvent

NAME = "rescope-letters"
LETTERS, CONTROL, LOCK = f"{NAME}:queue", f"{NAME}:control", f"{NAME}:lock"
SENT = ["letter 1", "letter 2", "letter 3"]


@asynccontextmanager
async def worker(client: Redis, done: list[str]) -> AsyncGenerator[None]:
    """Work off letters in the background, for as long as this is entered."""

    async def work() -> None:
        while letter := await client.blpop([LETTERS], timeout=0):
            done.append(str(letter[1]))
            if done == SENT:
                await client.publish(CONTROL, "stop")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        yield
        tasks.cancel_scope.cancel()


async def take(lock: Lock) -> Lock:
    if not await lock.acquire(blocking_timeout=1):
        msg = "another worker has the lock"
        raise LockError(msg)
    return lock


async def run(scope: Scope, url: str) -> bool:
    done: list[str] = []
    client = Redis.from_url(url, client_name=NAME, decode_responses=True, socket_timeout=None)  # the worker waits long
    scope.add(client, name="client")
    subscription = scope.add(client.pubsub(), name="subscription")
    await subscription.subscribe(CONTROL)
    lock = client.lock(LOCK, timeout=60)
    await scope.acquire(partial(take, lock), Lock.release, name="lock", shield=True)
    await scope.host(worker(client, done), name="worker")
    await client.rpush(LETTERS, *SENT)
    async for message in subscription.listen():
        if message["type"] == "message":
            print("worked off:", ", ".join(done))
            print("heard:", message["data"])
            break
    print("connections while it ran:", len(await connections(url, NAME)))
    return done == SENT


async def main() -> int:
    closed: list[str] = []

    def note(event: ScopeEvent) -> None:
        if event.kind == "closed" and event.resource is not None:
            closed.append(event.resource)

    with valkey() as url:
        async with Scope("letters", grace=5, on_event=note) as scope:
            good = await run(scope, url)
        print("closed in order:", ", ".join(closed))
        left = await connections_left(url, NAME)
        async with Scope() as scope:
            free = not await scope.add(Redis.from_url(url)).exists(LOCK)
    print(f"connections left in the server: {len(left)}; the lock is {'free' if free else 'TAKEN'}")
    return 0 if good and not left and free else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
