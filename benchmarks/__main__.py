"""One command, one table: `python -m benchmarks [--quick] [--check] [--only TEXT]`.

Contenders stand beside each other in one process, and take turns within each round, so that whatever else the machine
does hits all of them. A ratio is the median of the rounds' ratios. All are warm; the collector runs before each sample
and never within one. Times are CPU time where the clock is fine enough, else wall-clock time.

- `rescope`: a `Scope`, with `scope.defer(close)`
- `add`: the same, with `scope.add(value, close)`
- `AES`: `contextlib.AsyncExitStack` as it is
- `AES+`: the same stack, closed in a shielded task of its own
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import random
import subprocess
import sys
import time
import tracemalloc
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

Batch: TypeAlias = "Callable[[int], Awaitable[object]]"
"""Does the work so many times."""

Contest: TypeAlias = dict[str, Batch]
"""The batches that are measured beside each other, by contender."""

MICROSECOND = 1e-6
clock = time.process_time if time.get_clock_info("process_time").resolution <= MICROSECOND else time.perf_counter
eager = sys.version_info >= (3, 12)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure must not pass, and what it should."""

    must: float | None = None
    goal: float | None = None

    def mark(self, figure: float) -> str:
        """Say how the figure stands."""
        if self.must is None:
            return ""
        if self.goal is not None and figure <= self.goal:
            return "goal"
        return "ok" if figure <= self.must else "MISS"


UNJUDGED = Bound()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of ratios."""

    work: str
    contest: Contest
    aes: Bound
    plus: Bound = UNJUDGED


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """What one sample should take."""


# The work


async def close_async() -> None:
    """Close without suspending."""


async def close_suspending() -> None:
    """Close as something that has to wait for the loop once."""
    await asyncio.sleep(0)


def close_sync() -> None:
    """Close at once."""


class Item:
    """Something to hold."""


class Manager:
    """An async context manager that does nothing."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def empty() -> Contest:
    """Enter and exit, with nothing held."""

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope():
                pass

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack():
                pass

    async def plus(times: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(times):
            stack = AsyncExitStack()
            try:
                pass
            finally:
                await asyncio.shield(loop.create_task(stack.aclose()))

    return {"rescope": rescope, "AES": aes, "AES+": plus}


def closers(count: int, close: Callable[[], object]) -> Contest:  # noqa: C901 (one small function a contender)
    """Register so many closers, and close."""
    items = [Item() for _ in range(count)]
    is_async = close is not close_sync

    def register(stack: AsyncExitStack) -> None:
        if is_async:
            for _ in items:
                stack.push_async_callback(close)  # type: ignore[arg-type]
        else:
            for _ in items:
                stack.callback(close)

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for _ in items:
                    scope.defer(close)

    async def add(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for item in items:
                    scope.add(item, close)

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                register(stack)

    async def plus(times: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(times):
            stack = AsyncExitStack()
            try:
                register(stack)
            finally:
                await asyncio.shield(loop.create_task(stack.aclose()))

    return {"rescope": rescope, "add": add, "AES": aes, "AES+": plus}


def entered(count: int) -> Contest:
    """Enter so many async managers, and exit them."""
    manager = Manager()

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for _ in range(count):
                    await scope.enter(manager)

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(manager)

    return {"rescope": rescope, "AES": aes}


def rows() -> Iterator[Row]:
    """Give the lines of the table of ratios, with what was promised for this Python."""
    yield Row("0 resources", empty(), Bound(0.95, 0.8), Bound(0.25))
    for count, aes, plus in (
        (1, Bound(1.1, 0.7), Bound(0.3)),
        (10, Bound(0.7, 0.45), Bound(0.4)),
        (1000, Bound(0.5, 0.3), Bound(0.5)),
    ):
        yield Row(f"{count} sync", closers(count, close_sync), aes, plus)
    for count, aes, plus, lazy in (
        (1, Bound(1.8, 1.0), Bound(0.4), UNJUDGED),
        (10, Bound(0.9, 0.5), Bound(0.5), Bound(2.4)),
        (1000, Bound(0.5, 0.3), Bound(0.5), Bound(0.65)),
    ):
        judged = (aes, plus) if eager else (lazy, UNJUDGED)
        yield Row(f"{count} async", closers(count, close_async), *judged)
    for count, aes, plus in ((10, Bound(1.3, 1.1), Bound(1.0)), (1000, Bound(0.85, 0.7), Bound(0.85))):
        judged = (aes, plus) if eager else (UNJUDGED, UNJUDGED)
        yield Row(f"{count} async, suspending once", closers(count, close_suspending), *judged)
    yield Row("10 entered async managers", entered(10), Bound(1.8, 1.1))


# Measuring


async def sample(batch: Batch, times: int) -> float:
    """Give the seconds that one batch takes."""
    gc.collect()
    gc.disable()
    try:
        start = clock()
        await batch(times)
        return clock() - start
    finally:
        gc.enable()


async def enough(batch: Batch, seconds: float) -> int:
    """Find how often the work has to be done to last that long; it is warm afterwards."""
    times = 1
    while (took := await sample(batch, times)) < seconds / 2:
        times *= 2
    return max(1, round(times * seconds / took))


async def compete(contest: Contest, effort: Effort) -> dict[str, list[float]]:
    """Let all take turns; give each one's seconds for doing the work once, round by round."""
    times = {name: await enough(batch, effort.seconds) for name, batch in contest.items()}
    took: dict[str, list[float]] = {name: [] for name in contest}
    names = list(contest)
    for turn in range(effort.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took[name].append(await sample(contest[name], times[name]) / times[name])
    return took


def ratio(took: dict[str, list[float]], one: str, other: str) -> float | None:
    """Give the median of the rounds' ratios."""
    if one not in took or other not in took:
        return None
    return median(a / b for a, b in zip(took[one], took[other], strict=True))


def memory(register: Callable[[], Callable[[], object]], count: int = 10_000) -> float:
    """Give the bytes that one registered closer takes, among many."""
    once = register()
    once()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(count):
        once()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / count


async def memories() -> dict[str, float]:
    """Give the bytes of one closer, by contender."""
    item = Item()
    async with Scope() as deferring, Scope() as adding, AsyncExitStack() as stack:
        return {
            "rescope": memory(lambda: lambda: deferring.defer(close_sync)),
            "add": memory(lambda: lambda: adding.add(item, close_sync)),
            "AES": memory(lambda: lambda: stack.callback(close_sync)),
        }


async def early_release(effort: Effort, few: int = 10, many: int = 100_000) -> float:
    """Give the cost of one release among many to that among few."""
    count = 1000
    rng = random.Random(0)  # noqa: S311 (no secret)

    async def release(held: int) -> float:
        scopes = [Scope() for _ in range(count if held == few else 1)]
        handles = [[scope.defer(close_sync) for _ in range(held)] for scope in scopes]
        picked = (
            [(scope, rng.choice(own)) for scope, own in zip(scopes, handles, strict=True)]
            if held == few
            else [(scopes[0], handle) for handle in rng.sample(handles[0], count)]
        )

        async def batch(_: int) -> None:
            for scope, handle in picked:
                await scope.release(handle)

        took = await sample(batch, 1)
        for scope in scopes:
            await scope.aclose()
        return took

    await release(few)
    rounds = [(await release(few), await release(many)) for _ in range(max(3, effort.rounds // 4))]
    return median(late / early for early, late in rounds)


async def growth(effort: Effort, sizes: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)) -> dict[int, float]:
    """Give the cost per resource at each size, to that at the first."""
    batches = {size: closers(size, close_async)["rescope"] for size in sizes}
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(max(3, effort.rounds // 4)):
        for size, batch in batches.items():
            times = max(1, 10_000 // size)
            took[size].append(await sample(batch, times) / (times * size))
    first = took[sizes[0]]
    return {size: median(a / b for a, b in zip(took[size], first, strict=True)) for size in sizes[1:]}


async def concurrent_close(count: int = 100, seconds: float = 0.05) -> float:
    """Give the seconds, on the wall clock, that a concurrent scope needs for that many slow closers."""
    scope = Scope(concurrent=True)
    for _ in range(count):
        scope.defer(asyncio.sleep, seconds)
    start = time.perf_counter()
    await scope.aclose()
    return time.perf_counter() - start


def import_cost(effort: Effort) -> tuple[float, list[str]]:
    """Give the CPU seconds that `import rescope` adds to `import anyio`, and what it should not have imported."""
    code = "import sys, time; t = time.process_time(); import {}; print(time.process_time() - t, *sys.modules)"

    # With bytecode, as installed packages have it, whatever this process was told about writing any.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(module: str) -> list[str]:
        command = [sys.executable, "-c", code.format(module)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)  # noqa: S603 (our own code)
        return done.stdout.split()

    for module in ("anyio", "rescope"):
        run(module)
    rounds = range(max(5, effort.rounds // 2))
    added = [float(run("anyio, rescope")[0]) - float(run("anyio")[0]) for _ in rounds]
    alone = run("rescope")[1:]
    return median(added), [name for name in ("asyncio", "trio") if name in alone]


# Telling


class Table:
    """Prints the lines as they come, and counts."""

    form = "{:<27} {:>9} {:>9} {:>9}   {:>5} {:>5} {:>5} {:<4}   {:>5} {:>5} {:<4}   {:>5} {:>5}"

    def __init__(self) -> None:
        self.judged = 0
        self.missed: list[str] = []
        over = ("", "µs", "µs", "µs", "to", "", "", "", "to", "", "", "add", "add")
        head = ("work", "rescope", "AES", "AES+", "AES", "must", "goal", "", "AES+", "must", "", "AES", "AES+")
        self.head = "\n".join(self.form.format(*line).rstrip() for line in (over, head))

    def judge(self, work: str, figure: float | None, bound: Bound) -> str:
        """Mark a figure, and keep in mind how it stands."""
        mark = "" if figure is None else bound.mark(figure)
        self.judged += bool(mark)
        if mark == "MISS":
            self.missed.append(work)
        return mark

    def ratios(self, row: Row, took: dict[str, list[float]]) -> None:
        """Print a line of ratios, the first one below the head."""
        if self.head:
            print(self.head)
            self.head = ""
        aes, plus = ratio(took, "rescope", "AES"), ratio(took, "rescope", "AES+")
        times = [median(took[name]) * 1e6 if name in took else None for name in ("rescope", "AES", "AES+")]
        line = (
            row.work,
            *map(figure, times),
            *map(figure, (aes, row.aes.must, row.aes.goal)),
            self.judge(row.work, aes, row.aes),
            *map(figure, (plus, row.plus.must)),
            self.judge(row.work, plus, row.plus),
            *map(figure, (ratio(took, "add", "AES"), ratio(took, "add", "AES+"))),
        )
        print(self.form.format(*line).rstrip(), flush=True)

    def single(self, work: str, value: float, bound: Bound, note: str = "") -> None:
        """Print a line with one figure."""
        mark = self.judge(work, value, bound)
        goal = "" if bound.goal is None else f"goal {figure(bound.goal)}"
        line = f"{work:<51} {value:>8.3g}   must {figure(bound.must):<5} {goal:<9} {mark:<4} {note}"
        print(line.rstrip(), flush=True)


def figure(value: float | None) -> str:
    """Write a figure with as many digits as it deserves."""
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 (three digits)


async def measure(effort: Effort, only: str) -> Table:
    """Measure all, and print it."""
    table = Table()
    for row in rows():
        if only in row.work:
            table.ratios(row, await compete(row.contest, effort))
    print()
    await measure_the_rest(table, effort, only)
    return table


async def measure_the_rest(table: Table, effort: Effort, only: str) -> None:
    """Measure what is no race between contenders."""
    if only in (work := "memory per registered closer, to AES"):
        taken = await memories()
        note = ", ".join(f"{name} {size:.0f} B" for name, size in taken.items())
        table.single(work, taken["rescope"] / taken["AES"], Bound(0.3, 0.2), note)
        table.single(f"{work}, with add", taken["add"] / taken["AES"], Bound(0.3, 0.2))
    if only in (work := "early release among 100,000, to among 10"):
        table.single(work, await early_release(effort), Bound(1.75))
    if only in (work := "cost per resource at 100 to 100,000, to at 10"):
        costs = await growth(effort)
        note = ", ".join(f"{size:,}: {cost:.2f}" for size, cost in costs.items())
        table.single(work, max(costs.values()), Bound(1.5), note)
    if only in (work := "100 closers of 50 ms, concurrent, in s"):
        table.single(work, median([await concurrent_close() for _ in range(3)]), Bound(0.1))
    if only in (work := "import, beyond anyio's own, in ms of CPU time"):
        seconds, unwanted = import_cost(effort)
        table.single(work, seconds * 1000, Bound(15), f"imports {' and '.join(unwanted)}" if unwanted else "")
        table.judge("import of asyncio or trio", float(len(unwanted)), Bound(0))


def main() -> int:
    """Parse the command line, measure, print; tell by the exit code with `--check`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What rescope costs.")
    parser.add_argument("--quick", action="store_true", help="a rough figure in a few seconds")
    parser.add_argument("--check", action="store_true", help="fail where a must is missed")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the lines whose name holds this text")
    options = parser.parse_args()
    effort = Effort(rounds=7, seconds=0.003) if options.quick else Effort(rounds=41, seconds=0.01)
    print(f"Python {platform.python_version()}, asyncio, {effort.rounds} rounds; ratios of times, lower is better")
    gc.collect()
    gc.freeze()
    table = asyncio.run(measure(effort, options.only))
    print(f"\n{table.judged - len(table.missed)} of {table.judged} musts hold")
    if table.missed:
        print("missed:", "; ".join(dict.fromkeys(table.missed)))
    return int(bool(options.check and table.missed))


if __name__ == "__main__":
    sys.exit(main())
