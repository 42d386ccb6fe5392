"""A till on PostgreSQL: requests share a pool, a report never gives its connection back, and the service still stops.

The pool belongs to the scope of the service, each connection and each transaction to the child scope of a request. As
the service stops, the pool waits half a second for its connections, then it is terminated, and the scope says so.
Runs on a server of its own, or on the one that `RESCOPE_TEST_POSTGRES_URL` names.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TypeAlias

import asyncpg
from servers import connections_left, postgres

from rescope import ResourceCleanupError, Scope

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

NAME = "rescope-till"
ORDERS = [("tea", 300), ("cake", -1), ("coffee", 280), ("a wait", 0), ("pie", 350)]
"""What is sold for how many cents. The database refuses a price below 0, and `a wait` never ends by itself."""


async def open_pool(service: Scope, url: str) -> Pool:
    """Open a pool of two connections. Where that is cancelled, it is closed again like any other."""
    pool = asyncpg.create_pool(url, min_size=2, max_size=2, server_settings={"application_name": NAME})
    await service.acquire(
        lambda: pool,  # it connects as it is awaited
        asyncpg.Pool.close,
        name="pool",
        timeout=0.5,
        force=pool.terminate,
        shield=True,
    )
    return pool


async def sell(service: Scope, pool: Pool, item: str, cents: int) -> None:
    async with service.child(f"sell {item}") as request:
        connection = await request.acquire(pool.acquire, pool.release, name="connection")
        transaction = connection.transaction()
        await transaction.start()
        request.on_success(transaction.commit)
        request.on_error(transaction.rollback)
        await connection.execute("INSERT INTO ledger VALUES ($1, $2)", item, cents)
        if item == "a wait":
            await asyncio.Event().wait()


async def serve(service: Scope, pool: Pool) -> None:
    """Sell all at once; who waits is cancelled after a moment, as by a server whose client hung up."""
    requests = {item: asyncio.create_task(sell(service, pool, item, cents)) for item, cents in ORDERS}
    await asyncio.wait(requests.values(), timeout=0.5)
    requests["a wait"].cancel()
    for item, outcome in zip(requests, await asyncio.gather(*requests.values(), return_exceptions=True), strict=True):
        print(f"  {item:8} {'sold' if outcome is None else f'rolled back: {type(outcome).__name__}'}")
    print(f"  idle connections: {pool.get_idle_size()} of {pool.get_size()}")


async def run_service(url: str) -> None:
    async with Scope("till", grace=5) as service:
        pool = await open_pool(service, url)
        await serve(service, pool)
        await pool.acquire()  # the report
        print("stopping, while a report still has its connection")


async def main() -> int:
    async with Scope("example") as scope:
        url = await scope.enter(postgres())
        admin = scope.add(await asyncpg.connect(url))
        await admin.execute("CREATE TABLE ledger (item text, cents int CHECK (cents >= 0))")
        scope.defer(admin.execute, "DROP TABLE ledger")
        print(f"{len(ORDERS)} requests at once, over two connections")
        try:
            await run_service(url)
        except ResourceCleanupError as error:
            print("not closed in time:", ", ".join(failure.name for failure in error.failures if failure.timed_out))
        sold = [row["item"] for row in await admin.fetch("SELECT item FROM ledger ORDER BY item")]
        print("in the ledger:", ", ".join(sold))
        left = await connections_left(url, NAME)
        print(f"connections left in the server: {len(left)}")
        return 0 if sold == ["coffee", "pie", "tea"] and not left else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
