"""A report that takes longer than a request may: wait for it for a moment, and come back for it later.

The request starts the report under a key and waits for a tenth of a second. Then it answers "come back later", and the
report goes on. Before the customer comes back, the application is closed and opened again, as in a deployment: the
report that was cut short is made again, with a fresh scope, and its half-written file is gone.

    python examples/durable_report.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from rescope import Scope
from rescope.workflow.durable import Durable

folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
app = Durable(url=f"sqlite:///{root}/work.db", name="reports")
found_at_start: list[list[str]] = []


def drafts() -> list[str]:
    return sorted(path.name for path in root.glob("*.draft"))


@app.function(namespace="sales.report", attempts=3, timeout=30)
async def monthly(scope: Scope, month: str) -> str:
    """Add up the sales of a month, row by row, into a file that is there as a whole or not at all."""
    found_at_start.append(drafts())
    db = scope.add(sqlite3.connect(root / "sales.db"))
    draft = root / f"{month}.draft"
    scope.on_error(draft.unlink)
    with draft.open("w") as file:
        for number, (customer, cents) in enumerate(db.execute("SELECT customer, cents FROM sales")):
            file.write(f"{customer} {cents / 100:.2f}\n")
            if number % 50 == 0:
                await asyncio.sleep(0.01)
    return str(draft.rename(root / f"{month}.txt"))


async def request(month: str) -> str:
    """What the web server does."""
    handle = await monthly.start(month, key=month)
    try:
        return f"here it is: {Path(await handle.result(timeout=0.1)).name}"
    except TimeoutError:
        return "it is being made, come back later"


def make_sales() -> None:
    db = sqlite3.connect(root / "sales.db")
    with db:
        db.execute("CREATE TABLE sales (customer TEXT, cents INTEGER)")
        db.executemany("INSERT INTO sales VALUES (?, ?)", [(f"customer {n}", 7 * n) for n in range(2000)])
    db.close()


async def main() -> bool:
    make_sales()
    async with app:
        first = await request("2026-10")
        print(f"first request: {first}")
    print("the application was closed; drafts left:", drafts() or "none")
    async with app:
        handle = await monthly.start("2026-10", key="2026-10")
        path = Path(await handle.result(timeout=20))
        second = await request("2026-10")
        print(f"second request: {second}, with {len(path.read_text().splitlines())} lines")  # noqa: ASYNC240
    print(f"attempts: {len(found_at_start)}")
    return "later" in first and "2026-10.txt" in second and found_at_start == [[], []] and not drafts()


if __name__ == "__main__":
    with folder:
        sys.exit(0 if asyncio.run(main()) else "it did NOT go as it should")
