"""What is measured besides the races: memory, early release, growth, closing at once, importing."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
import tracemalloc
from contextlib import AsyncExitStack
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import bounds
from benchmarks.measuring import sample
from benchmarks.results import Single
from benchmarks.work import Item, closers
from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.backends import Backend
    from benchmarks.measuring import Effort
    from benchmarks.work import Parts


async def singles(backend: Backend, parts: Parts, effort: Effort, only: str) -> AsyncIterator[tuple[str, Single]]:
    """Measure one after the other."""
    rounds = max(1, effort.rounds // 4)
    if only in bounds.MEMORY:
        taken = await memory(parts.close_sync)
        yield bounds.MEMORY, Single(taken["rescope"] / taken["AES"], taken)
        yield bounds.MEMORY_ADD, Single(taken["add"] / taken["AES"])
    if only in bounds.RELEASE:
        yield bounds.RELEASE, await early_release(parts.close_sync, rounds, effort.many)
    if only in bounds.GROWTH:
        yield bounds.GROWTH, await growth(backend, parts, rounds, effort.many)
    if only in bounds.CONCURRENT:
        yield bounds.CONCURRENT, await concurrent_close(backend)
    if only in bounds.GARBAGE:
        yield bounds.GARBAGE, await garbage(backend, parts)
    if only in bounds.IMPORT and backend.name == "asyncio":
        yield bounds.IMPORT, import_cost(rounds)


async def memory(close: Callable[[], object], count: int = 10_000) -> dict[str, float]:
    """Give the bytes that one registered closer takes among many, by contender."""
    item = Item()
    async with Scope() as deferring, Scope() as adding, AsyncExitStack() as stack:
        return {
            "rescope": _taken(lambda: deferring.defer(close), count),
            "add": _taken(lambda: adding.add(item, close), count),
            "AES": _taken(lambda: stack.callback(close), count),
        }


def _taken(register: Callable[[], object], count: int) -> float:
    register()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(count):
        register()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / count


async def early_release(close: Callable[[], object], rounds: int, many: int, few: int = 10) -> Single:
    """Give the cost of one release among many, to that among few."""
    count = 1000
    rng = random.Random(0)  # noqa: S311 (no secret)

    async def release(held: int) -> float:
        scopes = [Scope() for _ in range(count if held == few else 1)]
        handles = [[scope.defer(close) for _ in range(held)] for scope in scopes]
        picked = (
            [(scope, rng.choice(own)) for scope, own in zip(scopes, handles, strict=True)]
            if held == few
            else [(scopes[0], handle) for handle in rng.sample(handles[0], min(count, held))]
        )

        async def batch(_: int) -> None:
            for scope, handle in picked:
                await scope.release(handle)

        took = await sample(batch, 1) / len(picked)
        for scope in scopes:
            await scope.aclose()
        return took

    await release(few)
    pairs = [(await release(few), await release(many)) for _ in range(rounds)]
    value = median(late / early for early, late in pairs)
    early, late = (median(one) for one in zip(*pairs, strict=True))
    return Single(value, {f"µs among {few}": early * 1e6, f"µs among {many:,}": late * 1e6})


async def growth(backend: Backend, parts: Parts, rounds: int, many: int) -> Single:
    """Give the highest cost per closer at any size, to that at the first; and what each costs, in nanoseconds."""
    sizes = [10**power for power in range(1, 10) if 10**power <= many]
    contests = {size: closers(backend, size, parts.close_async, sync=False) for size in sizes}
    took: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in ("rescope", "AES")}
    for _ in range(rounds):
        for size, contest in contests.items():
            times = max(1, 10_000 // size)
            for name, found in took.items():
                found[size].append(await sample(contest[name], times) / (times * size))
    ours = took["rescope"]
    ratios = [median(a / b for a, b in zip(ours[size], ours[sizes[0]], strict=True)) for size in sizes[1:]]
    each = {f"{name} {size}": median(of_it) * 1e9 for name, found in took.items() for size, of_it in found.items()}
    return Single(max(ratios), each)


async def concurrent_close(backend: Backend, count: int = 100, seconds: float = 0.05) -> Single:
    """Give the seconds, on the wall clock, that a concurrent scope needs for that many slow closers."""

    async def once() -> float:
        scope = Scope(concurrent=True)
        for _ in range(count):
            scope.defer(backend.sleep, seconds)
        start = time.perf_counter()
        await scope.aclose()
        return time.perf_counter() - start

    return Single(median([await once() for _ in range(3)]))


async def garbage(backend: Backend, parts: Parts, count: int = 10, times: int = 100) -> Single:
    """Give how many objects are left in reference cycles by each scope, of so many async closers, that has closed."""
    contest = closers(backend, count, parts.close_async, sync=False)
    left = {}
    for name, batch in contest.items():
        await batch(1)
        await backend.pause()
        gc.collect()
        gc.disable()
        await batch(times)
        await backend.pause()  # what has ended leaves the loop
        left[name] = gc.collect() / times
        gc.enable()
    return Single(left["rescope"], left)


def import_cost(rounds: int) -> Single:
    """Give the milliseconds of CPU time that `import rescope` adds to `import anyio`.

    `asyncio` and `trio` among the parts tell whether it imported them, which it should not.
    """
    code = "import sys, time; t = time.process_time(); import {}; print(time.process_time() - t, *sys.modules)"

    # With bytecode, as installed packages have it, whatever this process was told about writing any.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(module: str) -> list[str]:
        command = [sys.executable, "-c", code.format(module)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)  # noqa: S603 (our own code)
        return done.stdout.split()

    for module in ("anyio", "rescope"):
        run(module)
    added = [float(run("anyio, rescope")[0]) - float(run("anyio")[0]) for _ in range(rounds)]
    alone = run("rescope")[1:]
    return Single(median(added) * 1000, {f"imports {name}": float(name in alone) for name in ("asyncio", "trio")})
