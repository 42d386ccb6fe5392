"""Orders that events step from state to state: two workers, one queue, and no event is lost, nor counted twice.

The queue delivers every event twice, in no order, as queues may that promise "at least once". Both workers take from
it, each with a connection of its own to the store, as if on two machines. An event that can't be yet, as a parcel for
an order that isn't paid, goes back to the queue. So does one whose order the other worker has locked, or has written
meanwhile. And now and then a worker fails in the middle of an event.

It is done twice: with locks, and without, where the snapshots alone see to it that nothing is lost. The program ends by
checking each order; its exit code is 1 if one is wrong. With `--careless`, there are no locks, and the memory does not
look at the snapshots: orders lose events, and the check says so.

    python examples/order_machine.py
    python examples/order_machine.py --backend trio
    python examples/order_machine.py --careless
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple, TypedDict

import anyio

from rescope.workflow import SqliteStore
from rescope.workflow.machine import EventResource, MachineMemory, StoreMemory, TransactionViolation

ORDERS = [f"order-{number}" for number in range(1, 5)]
PRICE = 60  # in three payments
BAD_DAYS = 0.1


class Order(TypedDict):
    """The state of an order: JSON, as a store keeps it."""

    status: str
    paid: int
    handled: list[str]


class Event(NamedTuple):
    """What happens to an order. Two deliveries of an event have the same id."""

    id: str
    order: str
    kind: str


class TooEarlyError(Exception):
    """The order is not there yet."""


class BadDayError(Exception):
    """A worker failed in the middle of an event."""


def after(order: Order | None, event: Event) -> Order:
    """Give the state after an event: the machine itself, which knows nothing of stores and locks."""
    order = order or {"status": "new", "paid": 0, "handled": []}
    status, paid = order["status"], order["paid"]
    if event.kind == "payment" and status == "new":
        paid += PRICE // 3
        status = "paid" if paid == PRICE else "new"
    elif (status, event.kind) in {("paid", "parcel"), ("parcel", "handover")}:
        status = event.kind
    else:
        raise TooEarlyError
    return {"status": status, "paid": paid, "handled": [*order["handled"], event.id]}


class Desk:
    """What both workers share: the queue, and a count of what became of each delivery."""

    def __init__(self) -> None:
        kinds = ["payment 1", "payment 2", "payment 3", "parcel", "handover"]
        self.events = [Event(f"{order}, {kind}", order, kind.split()[0]) for order in ORDERS for kind in kinds]
        self.queue = deque(random.sample(2 * self.events, 2 * len(self.events)))
        self.counts = Counter[str]()

    async def work(self, orders: EventResource[Order]) -> None:
        while self.queue:
            event = self.queue.popleft()
            try:
                outcome = await self.handle(orders, event)
            except (TooEarlyError, BadDayError, TransactionViolation) as exc:
                outcome = exc.reason if isinstance(exc, TransactionViolation) else type(exc).__name__
                self.queue.append(event)
            self.counts[outcome] += 1

    async def handle(self, orders: EventResource[Order], event: Event) -> str:
        async with orders.transaction(event.order) as step:
            if step.state is not None and event.id in step.state["handled"]:
                return "seen before"
            step.state = after(step.state, event)
            await anyio.sleep(random.uniform(0, 0.005))  # noqa: S311 (the work; the other worker is at it too)
            if random.random() < BAD_DAYS:  # noqa: S311 (no secret)
                raise BadDayError
        return "handled"


class CarelessMemory:
    """A memory that writes over whatever there is."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.memory = StoreMemory[Order](store)
        self.read, self.lock, self.unlock = self.memory.read, self.memory.lock, self.memory.unlock

    async def write(self, order: str, data: Order, _: Order | None) -> None:
        while True:
            try:
                return await self.memory.write(order, data, await self.memory.read(order))
            except TransactionViolation:
                continue


async def worker(path: Path, desk: Desk, *, locking: bool, careless: bool) -> None:
    async with SqliteStore(path, synchronous="normal") as store:
        memory: MachineMemory[Order] = CarelessMemory(store) if careless else StoreMemory(store)
        await desk.work(EventResource(memory, locking=locking))


async def wrong(path: Path) -> list[str]:
    """Say which orders are not what their events make of them."""
    found = []
    async with SqliteStore(path) as store:
        memory = StoreMemory[Order](store)
        for name in ORDERS:
            order = await memory.read(name)
            if order is None or (order["status"], order["paid"]) != ("handover", PRICE):
                found.append(f"{name} is {order and order['status']}, and {order and order['paid']} are paid")
            elif len(order["handled"]) != len(set(order["handled"])):
                found.append(f"{name} has handled an event twice")
    return found


async def run(*, locking: bool, careless: bool) -> bool:
    """Let both workers work until the queue is empty, and say whether all is as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path, desk = Path(folder, "orders.db"), Desk()
        deliveries = len(desk.queue)
        with anyio.move_on_after(2 if careless else 60):  # an order that lost an event may wait for it for ever
            async with anyio.create_task_group() as workers:
                for _ in range(2):
                    workers.start_soon(lambda: worker(path, desk, locking=locking, careless=careless))
        problems = await wrong(path)
    if (times := desk.counts["handled"]) != len(desk.events):
        problems.append(f"{len(desk.events)} events were handled {times} times")
    print(f"{deliveries} deliveries, {'with' if locking else 'without'} locks:")
    print(*(f"  {count:4} {outcome}" for outcome, count in sorted(desk.counts.items())), sep="\n")
    print(*(f"  WRONG: {problem}" for problem in problems) if problems else ["  every order is right"], sep="\n")
    return not problems


async def main(*, careless: bool) -> int:
    results = [await run(locking=locking, careless=careless) for locking in ([False] if careless else [True, False])]
    return 0 if all(results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Step orders by events, and lose none.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--careless", action="store_true", help="write without looking at the snapshot")
    options = parser.parse_args()
    sys.exit(anyio.run(lambda: main(careless=options.careless), backend=options.backend))
