"""A shop whose parts are built by a container, of svcs or of dishka, and closed by scopes.

The container knows what needs what: a transaction needs the database. It is given a scope for the shop, and one for
each order, and its factories open with these. So each order ends as it should: one is sold, one is refused and rolled
back, one takes too long and is cancelled, and one finds that the mailer fails to close, which is told while all else
is closed. In the end the program checks that the mails agree with the database, and that nothing is open; its exit
code is 1 if anything is wrong.

    python examples/di_container.py
    python examples/di_container.py --container dishka --backend trio
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NewType, Protocol, TypeVar

import anyio
import svcs
from anyio.abc import ObjectSendStream
from anyio.to_thread import run_sync as in_thread
from dishka import Provider, make_async_container
from dishka import Scope as Level

from rescope import ResourceCleanupError, Scope

T = TypeVar("T")

ShopScope = NewType("ShopScope", Scope)
OrderScope = NewType("OrderScope", Scope)
Folder = NewType("Folder", Path)

ORDERS = ["cup", "unicorn", "piano", "glass"]
TIMEOUT = 0.3

open_now: list[str] = []


# The parts, which know neither a container nor a scope


class Database:
    """The shop's file of what was sold. It makes connections, and cleans up in the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.sqlite"
        open_now.append("database")
        with sqlite3.connect(self.path) as db:
            db.execute("CREATE TABLE IF NOT EXISTS sold (item)")
        db.close()

    def close(self) -> None:
        if "connection" in open_now:
            msg = "a connection is still open"
            raise RuntimeError(msg)
        open_now.remove("database")
        print("          database closed")


class Transaction:
    """A connection of one order."""

    def __init__(self, database: Database) -> None:
        self.db = sqlite3.connect(database.path, check_same_thread=False)
        open_now.append("connection")

    async def sell(self, item: str) -> None:
        await in_thread(self.db.execute, "INSERT INTO sold VALUES (?)", [item])

    async def commit(self) -> None:
        await in_thread(self.db.commit)
        print("          committed")

    async def rollback(self) -> None:
        await in_thread(self.db.rollback)
        print("          rolled back")

    async def aclose(self) -> None:
        await in_thread(self.db.close)
        open_now.remove("connection")
        print("          connection closed")


class Mailer:
    """Writes mails, one after the other, in the background."""

    def __init__(self, mails: ObjectSendStream[str]) -> None:
        self.mails = mails

    async def send(self, item: str) -> None:
        await self.mails.send(item)


@asynccontextmanager
async def mailer(folder: Path) -> AsyncGenerator[Mailer, None]:
    """Run a mailer. It holds a task group, so it has to be closed by the task that opened it."""
    mails, queue = anyio.create_memory_object_stream[str]()

    async def work() -> None:
        async for item in queue:
            await in_thread((folder / f"{item}.mail").touch)

    open_now.append("mailer")
    try:
        async with queue, anyio.create_task_group() as tasks, mails:
            tasks.start_soon(work)
            yield Mailer(mails)
    finally:
        open_now.remove("mailer")
        print("          mailer closed")
    if (folder / "glass.mail").exists():
        msg = "the mail server hung up without a goodbye"
        raise ConnectionError(msg)


# How they are opened: with a scope


async def open_database(scope: ShopScope, folder: Folder) -> Database:
    return await scope.acquire(lambda: Database(folder), Database.close)


async def open_transaction(scope: OrderScope, database: Database) -> Transaction:
    transaction = scope.add(Transaction(database))
    scope.on_success(transaction.commit)
    scope.on_error(transaction.rollback)
    return transaction


async def open_mailer(scope: OrderScope, folder: Folder) -> Mailer:
    return await scope.host(mailer(folder), name="mailer")


# The containers


class Get(Protocol):
    """Asks a container for something."""

    async def __call__(self, kind: type[T], /) -> T: ...


NewOrder = Callable[[Scope], Awaitable[Get]]


async def with_svcs(shop: Scope, folder: Path) -> NewOrder:
    async def transaction(container: svcs.Container) -> Transaction:
        return await open_transaction(*await container.aget(OrderScope, Database))

    async def open_a_mailer(container: svcs.Container) -> Mailer:
        return await open_mailer(*await container.aget(OrderScope, Folder))

    registry = svcs.Registry()
    registry.register_value(Folder, folder)
    registry.register_value(Database, await open_database(ShopScope(shop), Folder(folder)))
    registry.register_factory(Transaction, transaction, enter=False)
    registry.register_factory(Mailer, open_a_mailer, enter=False)

    async def new_order(scope: Scope) -> Get:
        container = scope.add(svcs.Container(registry))
        container.register_local_value(OrderScope, scope)
        return container.aget

    return new_order


async def with_dishka(shop: Scope, folder: Path) -> NewOrder:
    provider = Provider()
    provider.from_context(ShopScope, scope=Level.APP)
    provider.from_context(Folder, scope=Level.APP)
    provider.from_context(OrderScope, scope=Level.REQUEST)
    provider.provide(open_database, scope=Level.APP)
    provider.provide(open_transaction, scope=Level.REQUEST)
    provider.provide(open_mailer, scope=Level.REQUEST)
    context = {ShopScope: shop, Folder: folder}
    of_shop = shop.add(make_async_container(provider, context=context, lock_factory=anyio.Lock))

    async def new_order(scope: Scope) -> Get:
        container = await scope.host(of_shop({OrderScope: scope}, lock_factory=anyio.Lock))
        return container.get

    return new_order


# The shop


async def sell(item: str, get: Get) -> None:
    """Sell one item, and write the mail only when it is sold."""
    transaction = await get(Transaction)
    await transaction.sell(item)
    if item == "unicorn":
        msg = "there are no unicorns"
        raise LookupError(msg)
    if item == "piano":
        await anyio.sleep(3600)
    mails = await get(Mailer)
    await mails.send(item)


async def process(item: str, shop: Scope, new_order: NewOrder) -> None:
    """Process one order in a scope of its own, and say how it went."""
    print(f"{item}:")
    outcome = "too slow"
    try:
        with anyio.move_on_after(TIMEOUT):
            async with shop.child(f"order of a {item}") as scope:
                await sell(item, await new_order(scope))
            outcome = "sold"
    except LookupError as error:
        outcome = f"refused: {error}"
    except ResourceCleanupError as error:
        outcome = f"sold, but {error}"
    print(f"       => {outcome}")


def problems(folder: Path) -> list[str]:
    """Say what is not as it should be."""
    with sqlite3.connect(folder / "shop.sqlite") as db:
        sold = sorted(item for (item,) in db.execute("SELECT item FROM sold"))
    db.close()
    mails = sorted(path.stem for path in folder.glob("*.mail"))
    return [
        *(f"{one} is still open" for one in open_now),
        *([f"sold {sold}, mails {mails}"] if sold != mails else []),
        *([f"sold {sold}"] if sold != ["cup", "glass"] else []),
    ]


async def main(container: str) -> int:
    """Process all orders, close the shop, and check."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        async with Scope("shop", grace=5) as shop:
            new_order = await (with_svcs if container == "svcs" else with_dishka)(shop, folder)
            for item in ORDERS:
                await process(item, shop, new_order)
            print("closing the shop")
        found = problems(folder)
        print("\nWRONG: " + "; ".join(found) if found else "\ndatabase and mails agree, and nothing is left open")
        return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sell things; the parts are built by a container, closed by scopes.")
    parser.add_argument("--container", choices=["svcs", "dishka"], default="svcs")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    sys.exit(anyio.run(main, arguments.container, backend=arguments.backend))
