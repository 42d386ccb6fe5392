"""A batch of invoices, with a bar that another process can draw too, and that goes on where it was after `kill -9`.

A process of its own begins the batch, and is killed when a third of it is done. This one opens the application, asks
for the same batch by its key, and shows how far it is until it ends. What was known to be done is not done again.

    python examples/durable_batch.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from rescope import Scope
from rescope.workflow.durable import Durable, DurableFunction, Progress, gather

INVOICES = 30
AT_A_TIME = 3


def load(root: Path) -> tuple[Durable, DurableFunction[int, int]]:
    app = Durable(url=f"sqlite:///{root}/work.db", name="invoices")
    at_a_time = asyncio.Semaphore(AT_A_TIME)

    @app.function(namespace="billing.invoice")
    async def invoice(scope: Scope, number: int) -> None:
        await scope.enter(at_a_time)
        await asyncio.sleep(0.02)
        with (root / "sent.txt").open("a") as sent:
            sent.write(f"{number}\n")

    @app.function(namespace="billing.batch")
    async def batch(_scope: Scope, size: int) -> int:
        handles = [await invoice.start(number) for number in range(size)]
        return sum(result.ok for result in await gather(*handles))

    return app, batch


def bar(progress: Progress) -> str:
    return f"[{'#' * progress.done:{INVOICES}}] {progress.done} done, {progress.failed} failed"


async def begin(root: Path) -> None:
    """Begin the batch, say once how far it is, and go on."""
    app, batch = load(root)
    async with app:
        handle = await batch.start(INVOICES, key="november")
        progress = await handle.progress()
        while progress.done < INVOICES // 3:
            await asyncio.sleep(0.01)
            progress = await handle.progress()
        print(bar(progress), flush=True)
        await handle.result()


async def go_on(root: Path) -> int:
    app, batch = load(root)
    async with app:
        handle = await batch.start(INVOICES, key="november")
        while await handle.status() == "running":
            print(bar(await handle.progress()))
            await asyncio.sleep(0.2)
        print(bar(await handle.progress()))
        return await handle.result()


def main(root: Path) -> bool:
    command = [sys.executable, __file__, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (it is this program)
        for line in process.stdout or ():
            print(line.rstrip(), "- then it was killed")
            process.kill()
    done = asyncio.run(go_on(root))
    sent = [int(line) for line in (root / "sent.txt").read_text().splitlines()]
    again = [number for number in range(INVOICES) if sent.count(number) > 1]
    print(f"{done} invoices sent, {len(again)} of them twice, as it was not written down yet that they were sent")
    return done == INVOICES and set(sent) == set(range(INVOICES)) and len(again) <= INVOICES - INVOICES // 3


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(begin(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            sys.exit(0 if main(Path(temporary)) else "it did NOT go as it should")
