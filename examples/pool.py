"""A service with a database per tenant: each is opened once, shared by all requests, and closed when nobody needs it.

Requests of all tenants come in at once and each writes one line to its tenant's journal. A pool keeps at most three
databases open beyond those that are in use. Then somebody closes one behind the pool's back: the pool finds out when it
is used again, and opens another beside it. The program ends by checking that each request is in its journal, that no
other database was ever open twice at once, and that none is open still; its exit code is 1 if that is not so.

    python examples/pool.py
    python examples/pool.py --backend trio
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from collections import Counter
from pathlib import Path

import anyio
from anyio.to_thread import run_sync as in_thread

from rescope import Scope
from rescope.pool import KeyedPool

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella", "vehement")
ROUNDS = 5
REQUESTS = 10  # of each tenant, in each round
LIMIT = 3


class Database:
    """An open database: many tasks may use it, a thread does one thing at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.turn = anyio.Lock()

    async def execute(self, sql: str, *parameters: object) -> None:
        async with self.turn:
            await in_thread(self.connection.execute, sql, parameters)

    async def aclose(self) -> None:
        await in_thread(self.connection.close)


class Databases:
    """Where the tenants' databases are, and what happened to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.most = 0
        self.twice: set[str] = set()

    async def connect(self, scope: Scope, tenant: str) -> Database:
        """Open the database of a tenant. What it registers in the scope, the pool closes."""
        self.opened[tenant] += 1
        self.open[tenant] += 1
        scope.defer(self.open.subtract, [tenant])
        self.most = max(self.most, self.open.total())
        if self.open[tenant] > 1:
            self.twice.add(tenant)
        return await scope.acquire(lambda: in_thread(self._connect, tenant), Database.aclose, shield=True)

    def _connect(self, tenant: str) -> Database:
        connection = sqlite3.connect(self.folder / f"{tenant}.sqlite", check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")  # while it is open, there is a file beside it: see `left_open`
        connection.execute("CREATE TABLE IF NOT EXISTS journal (request INTEGER)")
        return Database(connection)

    def lines(self, tenant: str) -> int:
        """Count the lines in a tenant's journal."""
        connection = sqlite3.connect(self.folder / f"{tenant}.sqlite")
        try:
            return int(connection.execute("SELECT count(*) FROM journal").fetchone()[0])
        finally:
            connection.close()

    def wrong(self, broken: str) -> list[str]:
        """Say what is not as it should be when all requests are answered."""
        return [
            *(f"left open: {path.name}" for path in self.folder.glob("*-wal")),
            *(f"open twice at once: {tenant}" for tenant in sorted(self.twice - {broken})),
            *(f"lost requests: {tenant}" for tenant in TENANTS if self.lines(tenant) != ROUNDS * REQUESTS),
        ]


async def answers(database: Database) -> bool:
    """Tell whether a database can still be used; what it raises says no."""
    await database.execute("SELECT 1")
    return True


async def request(pool: KeyedPool[str, Database], tenant: str, number: int) -> None:
    async with pool.use(tenant) as database:
        await database.execute("INSERT INTO journal VALUES (?)", number)


async def serve(pool: KeyedPool[str, Database]) -> None:
    """Answer one round of requests, those of all tenants at once."""
    async with anyio.create_task_group() as tasks:
        for tenant in TENANTS:
            for number in range(REQUESTS):
                tasks.start_soon(request, pool, tenant, number)


async def main() -> int:
    """Serve, and check."""
    with tempfile.TemporaryDirectory() as folder:
        databases = Databases(Path(folder))
        async with Scope("service", grace=10) as scope:
            pool = scope.add(KeyedPool(databases.connect, limit=LIMIT, validate=answers, label=str))
            for number in range(1, ROUNDS + 1):
                await serve(pool)
                print(f"round {number}: {len(TENANTS) * REQUESTS} requests answered, {pool.size} databases kept open")
            tenant = next(tenant for tenant in TENANTS if tenant in pool)
            async with pool.use(tenant) as database:
                await database.aclose()  # behind the pool's back
            async with pool.use(tenant) as another:
                replaced = another is not database
            print(f"one was closed behind the pool's back, and {'' if replaced else 'NOT '}replaced")

        print(f"{databases.opened.total()} times a database was opened, {databases.most} were open at once")
        wrong = databases.wrong(broken=tenant)
        if wrong or not replaced:
            print(f"WRONG: {', '.join(wrong)}")
            return 1
        print("every database is closed, and nothing was lost")
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Share one database connection per tenant.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
