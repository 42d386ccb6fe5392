"""Two processes share the work of a chain, and the one that is at it is killed at random moments, again and again.

    python tests/durable/kill_sweep.py
    python tests/durable/kill_sweep.py --kills 200 --seed 7
    python tests/durable/kill_sweep.py --url postgresql://…

All write what they do into one journal, and who is killed is written there too. Then it must hold that

- all steps ended, in their order, with their results;
- no step began again after the next one had begun: its end was known by then;
- no attempt began while another one of that step was not unwound, in any process that lived.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rescope import Scope
from rescope.workflow.durable import Durable, Handle

STEPS = 40
PROCESSES = 2


def write(journal: Path, *entry: object) -> None:
    with journal.open("ab", buffering=0) as file:
        file.write(f"{' '.join(map(str, entry))}\n".encode())


async def work(url: str, journal: Path) -> None:
    """Open the application, ask for the chain, and stay until it has ended."""
    app = Durable(url=url, name=f"sweep {journal.parent.name}", recover_every=0.1)

    @app.function(namespace="sweep.chain", attempts=50, backoff=0.01, max_backoff=0.01)  # which none uses up
    async def step(scope: Scope, number: int) -> int:
        write(journal, os.getpid(), "begin", number)

        async def close() -> None:
            await asyncio.sleep(0.005)
            write(journal, os.getpid(), "unwound", number)

        scope.defer(close)
        await asyncio.sleep(random.uniform(0, 0.03))
        if random.random() < 0.2:
            raise ConnectionError("no route to host")
        return number + 1

    @app.function(namespace="sweep.chain", attempts=1)
    async def chain(scope: Scope) -> int:
        number = 0
        while number < STEPS:
            number = await (await step.start(number)).result()
        return number

    async with app:
        handle: Handle[int] = await chain.start(key="the chain")
        write(journal, os.getpid(), "result", await handle.result())


def faults(lines: list[list[str]]) -> tuple[list[str], int]:
    """Find what must not be in a journal; and how many were killed while they were at work on a step."""
    at_work = 0
    found: list[str] = []
    begun = 0
    running: dict[str, str] = {}  # by step, which process is at it
    for pid, what, *rest in lines:
        number = rest[0] if rest else ""
        if what == "begin":
            if int(number) < begun:
                found.append(f"step {number} began again after step {begun} had begun")
            if number in running:
                found.append(f"step {number} began in {pid} while {running[number]} was at it")
            begun = max(begun, int(number))
            running[number] = pid
        elif what == "unwound":
            running.pop(number, None)
        elif what == "killed":
            at_work += pid in running.values()
            running = {step: at for step, at in running.items() if at != pid}
        elif (what, number) not in {("ended", "0"), ("result", str(STEPS))}:
            found.append(f"{what} {number} of {pid}")
    if begun != STEPS - 1:
        found.append(f"it ended after step {begun}")
    return found, at_work


def last_at_work(journal: Path) -> str:
    begun = [line.split()[0] for line in journal.read_text().splitlines() if " begin " in line]
    return begun[-1] if begun else ""


def wait_for_more(journal: Path) -> None:
    """Wait for up to 10 seconds, until a few more lines were written."""
    size = journal.stat().st_size if journal.exists() else 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (not journal.exists() or journal.stat().st_size < size + 60):
        time.sleep(0.01)


def sweep(url: str, journal: Path, kills: int) -> list[list[str]]:
    """Kill one of the processes and start another, as often as that; then let them end. Gives the journal."""
    command = [sys.executable, __file__, "--work", url, str(journal)]

    def start() -> subprocess.Popen[bytes]:
        with journal.with_name("stderr").open("ab") as stderr:
            return subprocess.Popen(command, stderr=stderr)  # noqa: S603 (it is this program)

    processes = [start() for _ in range(PROCESSES)]
    for _ in range(kills):
        wait_for_more(journal)
        time.sleep(random.uniform(0, 0.1))
        last = last_at_work(journal)
        victim = next((process for process in processes if str(process.pid) == last), processes[0])
        processes.remove(victim)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        write(journal, victim.pid, "killed")
        processes.append(start())
    for process in processes:
        write(journal, process.pid, "ended", process.wait(60))
    return [line.split() for line in journal.read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(options.work[0], Path(options.work[1])))
        return 0
    random.seed(options.seed)
    killed = at_work = failed = rounds = 0
    while killed < options.kills:
        with tempfile.TemporaryDirectory() as folder:
            lines = sweep(options.url or f"sqlite:///{folder}/jobs.db", Path(folder, "journal"), 4)
            said = Path(folder, "stderr").read_text()
        killed += 4
        rounds += 1
        found, cut = faults(lines)
        at_work += cut
        failed += bool(found)
        if found:
            print(*found, said, sep="\n")  # noqa: T201
    print(f"{killed} processes killed, {at_work} of them at work on a step, in {rounds} chains: {failed} went wrong")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
