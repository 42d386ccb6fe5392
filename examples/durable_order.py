"""An order in three steps, killed with `kill -9` at each point in turn, and what a restart makes of it.

Reserve, charge, ship: each is a durable function, and a fourth one, the order, starts and awaits them. For each row of
the table a process of its own runs an order, and kills itself at that point: at first when the order has just been
started, at last when all has ended. Then the application is opened again, and goes on by itself. Steps that had ended
are not run again. The step that was cut short is, so what it does to the outer world must bear that: it is done under
the number of the order, and the shop ignores the second one.

Two orders can't be shipped. They are undone by the scope of the order: `on_error` says what undoes a step as soon as it
is done. The order has one attempt, as its steps have their own, and what was undone must not be taken for done.

    python examples/durable_order.py
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rescope import Scope
from rescope.workflow.durable import Durable, DurableFunction

# Where it is killed, where it is going, and how often reserve, charge, ship, refund and put back must have run in all.
ROWS = [
    ("nowhere", "here", "1 1 1 0 0"),
    ("after start", "here", "1 1 1 0 0"),
    ("before reserve", "here", "1 1 1 0 0"),
    ("in reserve", "here", "2 1 1 0 0"),
    ("after reserve", "here", "1 1 1 0 0"),
    ("in charge", "here", "1 2 1 0 0"),
    ("after charge", "here", "1 1 1 0 0"),
    ("in ship", "here", "1 1 2 0 0"),
    ("after ship", "here", "1 1 1 0 0"),
    ("after the end", "here", "1 1 1 0 0"),
    ("nowhere", "nowhere", "1 1 1 1 1"),
    ("in refund", "nowhere", "1 1 1 2 1"),
    ("in put back", "nowhere", "1 1 1 2 2"),
]
STEPS = ("reserve", "charge", "ship", "refund", "put back")


class Shop:
    """The outer world: a database that knows what was done for an order, and how often it was tried."""

    def __init__(self, folder: Path, kill_at: str) -> None:
        self.path = folder / "shop.db"
        self.kill_at = kill_at
        with self.database() as db:
            db.execute("CREATE TABLE IF NOT EXISTS done (step TEXT, number INTEGER, UNIQUE (step, number))")
            db.execute("CREATE TABLE IF NOT EXISTS tried (step TEXT)")

    @contextmanager
    def database(self) -> Generator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30)
        try:
            with db:
                yield db
        finally:
            db.close()

    def do(self, step: str, number: int) -> None:
        with self.database() as db:
            db.execute("INSERT INTO tried VALUES (?)", (step,))
            db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (step, number))
        self.maybe_die(f"in {step}")

    def maybe_die(self, where: str) -> None:
        if where == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def tried(self) -> str:
        with self.database() as db:
            steps = [step for (step,) in db.execute("SELECT step FROM tried")]
        return " ".join(str(steps.count(step)) for step in STEPS)

    def done(self) -> list[str]:
        with self.database() as db:
            return sorted(step for (step,) in db.execute("SELECT step FROM done"))


@dataclass
class Program:
    """What each process opens."""

    shop: Shop
    app: Durable
    order: DurableFunction[int, str, str]


def load(folder: Path, kill_at: str = "") -> Program:
    shop = Shop(folder, kill_at)
    app = Durable(url=f"sqlite:///{folder}/work.db", name="orders")

    @app.function(namespace="orders.step")
    async def reserve(_scope: Scope, number: int) -> None:
        shop.do("reserve", number)

    @app.function(namespace="orders.step")
    async def charge(_scope: Scope, number: int) -> None:
        shop.do("charge", number)

    @app.function(namespace="orders.step", attempts=1)
    async def ship(_scope: Scope, number: int, place: str) -> None:
        shop.do("ship", number)
        if place == "nowhere":
            msg = "no such place"
            raise LookupError(msg)

    @app.function(namespace="orders.order", attempts=1)
    async def order(scope: Scope, number: int, place: str) -> str:
        shop.maybe_die("before reserve")
        await (await reserve.start(number)).result()
        scope.on_error(shop.do, "put back", number)
        shop.maybe_die("after reserve")
        await (await charge.start(number)).result()
        scope.on_error(shop.do, "refund", number)
        shop.maybe_die("after charge")
        await (await ship.start(number, place)).result()
        shop.maybe_die("after ship")
        return f"order {number} is on its way"

    return Program(shop, app, order)


async def run(folder: Path, kill_at: str, place: str) -> str:
    program = load(folder, kill_at)
    async with program.app:
        # To start it again after a restart gives the same order, as its number is the key.
        handle = await program.order.start(7, place, key="7")
        program.shop.maybe_die("after start")
        try:
            outcome = await handle.result(timeout=30)
        except LookupError as exc:
            outcome = f"undone: {exc}"
        program.shop.maybe_die("after the end")
        return outcome


def start_process(folder: Path, kill_at: str, place: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (it is this program)
        [sys.executable, __file__, str(folder), kill_at, place], stderr=subprocess.DEVNULL
    )


def check(folder: Path, row: tuple[str, str, str], exit_code: int) -> bool:
    kill_at, place, expected = row
    outcome = asyncio.run(run(folder, "", place))
    shop = load(folder).shop
    tried = shop.tried()
    done = ["charge", "reserve", "ship"] if place == "here" else sorted(STEPS)
    died = exit_code == (0 if kill_at == "nowhere" else -signal.SIGKILL)
    as_it_should = died and tried == expected and shop.done() == done
    counts = "".join(f"{times:>10}" for times in tried.split())
    print(f"{kill_at:15}{counts}  {outcome}{'' if as_it_should else ' WRONG'}")
    return as_it_should


def main(root: Path) -> bool:
    folders = [root / str(number) for number in range(len(ROWS))]
    processes = []
    for folder, (kill_at, place, _) in zip(folders, ROWS, strict=True):
        folder.mkdir()
        processes.append(start_process(folder, kill_at, place))
    print(f"{'killed':15}{''.join(f'{step:>10}' for step in STEPS)}  (how often each ran in all)")
    exit_codes = [process.wait(60) for process in processes]
    good = [check(*row) for row in zip(folders, ROWS, exit_codes, strict=True)]
    print(f"{sum(good)} of {len(good)} orders are as they should be")
    return all(good)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            sys.exit(0 if main(Path(temporary)) else 1)
