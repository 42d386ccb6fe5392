"""Orders from a CSV: a database and a bucket that always agree, because each order has a scope.

Every order opens a connection, a working directory and a transaction, and uploads a receipt. Whatever happens to it,
its scope puts things right: a good order is committed and handed to the courier; one that fails is rolled back and its
receipt deleted again; the directory and the connection go in any case. `orders.csv` holds good orders and three that
are not: an unknown customer (the body returns an `Err`), more pieces than there are (the database refuses, so the body
raises), and a courier who does not come (the cleanup fails).

The commit decides. An order is in the database if and only if its receipt is in the bucket; what fails after the commit
is told, but does not undo it. The program ends by checking that, and its exit code is 1 if the two disagree.

    python examples/order_receipt.py
    python examples/order_receipt.py --backend trio --work shop     # trio; and keep what was made in ./shop
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import anyio
from anyio.to_thread import run_sync as in_thread

from rescope import Err, Ok, ResourceCleanupError, Result, Scope, with_scope
from rescope.events import ScopeEvent

SCHEMA = """
    CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, cents INTEGER, pieces INTEGER CHECK (pieces >= 0));
    CREATE TABLE IF NOT EXISTS orders (number TEXT PRIMARY KEY, customer TEXT, cents INTEGER);
    INSERT OR IGNORE INTO customers VALUES ('ada'), ('alan'), ('grace');
    INSERT OR IGNORE INTO stock VALUES ('cup', 650, 40), ('kettle', 5400, 10), ('teapot', 2490, 25);
"""


class UnknownCustomerError(Exception):
    """Nobody of that name buys here."""


class CourierError(Exception):
    """No such courier comes here."""


@dataclass(frozen=True)
class Order:
    """One line of the CSV."""

    number: str
    customer: str
    item: str
    pieces: int
    courier: str


class Shop:
    """The real parts, all in one folder: a database, a bucket of receipts, desks to work at, boxes for couriers."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "shop.sqlite"
        self.bucket = folder / "bucket"
        self.desks = folder / "desks"
        self.couriers = folder / "couriers"
        for path in (self.bucket, self.desks, self.couriers / "north", self.couriers / "south"):
            path.mkdir(parents=True, exist_ok=True)
        db = self.connect()
        db.executescript(SCHEMA)
        db.close()

    def connect(self) -> sqlite3.Connection:
        # Transactions begin and end where we say so, and each statement runs in whichever thread is free.
        return sqlite3.connect(self.database, isolation_level=None, check_same_thread=False)

    def new_desk(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.desks))

    async def upload(self, receipt: Path) -> None:
        await in_thread(shutil.copy, receipt, self.bucket)

    async def delete_receipt(self, name: str) -> None:
        await anyio.Path(self.bucket, name).unlink(missing_ok=True)

    async def commit(self, db: sqlite3.Connection, receipt: str) -> None:
        try:
            await in_thread(db.commit)
        except sqlite3.Error:
            # The body has succeeded, so `on_error` is out of the question: who commits must see to the receipt.
            await self.delete_receipt(receipt)
            raise

    async def roll_back(self, db: sqlite3.Connection) -> None:
        await in_thread(db.rollback)

    async def hand_over(self, receipt: Path, courier: str) -> None:
        box = self.couriers / courier
        if not box.is_dir():
            msg = f"no courier {courier!r} comes here"
            raise CourierError(msg)
        await in_thread(shutil.copy, receipt, box)


async def fulfil(scope: Scope, shop: Shop, order: Order) -> Result[int, UnknownCustomerError]:
    """Sell what was ordered; give the price in cents. What it opens, the scope closes."""
    # `shield`: a thread can't be cancelled, so whoever cancels us waits until we hold what it opens.
    db = await scope.acquire(
        lambda: in_thread(shop.connect), lambda db: in_thread(db.close), name="connection", shield=True
    )
    desk = await scope.acquire(
        lambda: in_thread(shop.new_desk),
        lambda desk: in_thread(shutil.rmtree, desk),
        name="working directory",
        shield=True,
    )
    receipt = desk / f"{order.number}.txt"
    scope.on_success(shop.hand_over, receipt, order.courier)  # closed after the commit, before the desk is cleared

    await in_thread(db.execute, "BEGIN IMMEDIATE")
    scope.on_error(shop.roll_back, db)
    scope.on_success(shop.commit, db, receipt.name)

    known = await in_thread(db.execute, "SELECT 1 FROM customers WHERE name = ?", (order.customer,))
    if known.fetchone() is None:
        return Err(UnknownCustomerError(f"no customer {order.customer!r}"))
    price = await in_thread(db.execute, "SELECT cents * ? FROM stock WHERE item = ?", (order.pieces, order.item))
    (cents,) = price.fetchone()
    await in_thread(db.execute, "INSERT INTO orders VALUES (?, ?, ?)", (order.number, order.customer, cents))

    text = f"{order.pieces} x {order.item} for {order.customer}\ntotal {cents} cents\n"
    await anyio.Path(receipt).write_text(text, encoding="utf-8")
    scope.on_error(shop.delete_receipt, receipt.name)  # before the upload, so that half of one is deleted too
    await shop.upload(receipt)

    await in_thread(db.execute, "UPDATE stock SET pieces = pieces - ? WHERE item = ?", (order.pieces, order.item))
    return Ok(cents)


async def run_order(shop: Shop, order: Order) -> None:
    """Run one order in a scope, and print the life of that scope."""
    events: list[ScopeEvent] = []
    started = perf_counter()
    result: Result[int, Exception]
    try:
        result = await with_scope(fulfil, shop, order, name=order.number, on_event=events.append)
    except Exception as error:
        result = Err(error)
    elapsed = perf_counter() - started

    print("\n" + f"order {order.number}: {order.pieces} x {order.item} for {order.customer}".ljust(58) + ms(elapsed))
    print_life(events, succeeded=is_sold(result))
    print(f"    => {in_words(result)}")


def is_sold(result: Result[int, Exception]) -> bool:
    """Tell whether the order was committed: a cleanup that failed after that changes nothing."""
    if isinstance(result, Err) and isinstance(result.error, ResourceCleanupError):
        return result.error.original_result is not None and result.error.original_result.ok
    return isinstance(result, Ok)


def in_words(result: Result[int, Exception]) -> str:
    """Say what became of an order."""
    match result:
        case Ok(cents):
            return f"sold for {cents / 100:.2f}: committed, and the receipt is in the bucket"
        case Err(ResourceCleanupError() as error):
            return "TO BE SEEN TO: " + ", ".join(f"{failure.name}: {failure.exception}" for failure in error.failures)
        case Err(error):
            return f"not sold: {error} ({type(error).__name__})"


def print_life(events: list[ScopeEvent], *, succeeded: bool) -> None:
    """Print side by side what the scope opened and what it closed."""
    opened = [label(event) for event in events if event.kind == "acquired"]
    closed = [event for event in events if event.kind == "closed"]
    failed = {label(event) for event in events if event.kind == "failed"}
    not_due = {"roll back", "delete receipt"} if succeeded else {"commit", "hand over"}

    print("    opened, first to last      closed, last to first")
    for number, (left, event) in enumerate(zip(opened, closed, strict=True), start=1):
        right = label(event)
        note = "not due" if right in not_due else ms(event.elapsed or 0)
        mark = "  FAILED" if right in failed else ""
        print(f"    {number}  {left:<24}{opened.index(right) + 1}  {right:<24}{note:>10}{mark}")


def label(event: ScopeEvent) -> str:
    return (event.resource or "").rpartition(".")[2].replace("_", " ")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:7.2f} ms"


def disagreements(shop: Shop) -> list[str]:
    """Say where database and bucket disagree, and what was left behind; nothing is what we want to hear."""
    db = shop.connect()
    sold = {f"{number}.txt": cents for number, cents in db.execute("SELECT number, cents FROM orders")}
    db.close()
    receipts = {path.name: path.read_text(encoding="utf-8") for path in shop.bucket.iterdir()}
    return [
        *(f"{name}: sold, but there is no receipt" for name in sorted(sold.keys() - receipts.keys())),
        *(f"{name}: a receipt, but nothing was sold" for name in sorted(receipts.keys() - sold.keys())),
        *(
            f"{name}: the receipt tells another price"
            for name in sorted(sold.keys() & receipts.keys())
            if f"total {sold[name]} cents\n" not in receipts[name]
        ),
        *(f"{path.name}: a working directory left behind" for path in sorted(shop.desks.iterdir())),
    ]


async def main(folder: Path) -> int:
    """Run all the orders, one after the other, and check."""
    shop = Shop(folder)
    with Path(__file__).with_name("orders.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            order = Order(line["order"], line["customer"], line["item"], int(line["pieces"]), line["courier"])
            await run_order(shop, order)

    found = disagreements(shop)
    for text in found:
        print(f"\n{text}", end="")
    sold = len(list(shop.bucket.iterdir()))
    print("\ndatabase and bucket DISAGREE" if found else f"\ndatabase and bucket agree: {sold} orders, {sold} receipts")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Process the orders in orders.csv, each in a scope of its own.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keep database and bucket in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(anyio.run(main, options.work or Path(temporary), backend=options.backend))
