"""A long life: many resources through many scopes, below one parent that stays.

    python tests/soak.py                                          # a million resources, 100,000 scopes, all backends
    python tests/soak.py --scopes 1000 --resources 10000 --backend trio

The collector is off meanwhile. At the end, no more memory may be in use than after the first tenth; the collector may
find nothing of ours; no task may be left; all that was opened must have been closed, and the parent must be empty. It
prints one line for each backend, and its exit code is 1 where anything of that does not hold.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from rescope import Ok, Resource, Scope, with_scope


class Counted:
    """What is opened and closed, and nothing else."""

    def __init__(self) -> None:
        self.opened = self.closed = 0

    def open(self) -> int:
        self.opened += 1
        return self.opened

    async def open_slowly(self) -> int:
        await checkpoint()
        return self.open()

    def close(self, *_: object) -> None:
        self.closed += 1

    async def close_async(self, *_: object) -> None:
        self.closed += 1

    async def close_slowly(self, *_: object) -> None:
        await checkpoint()
        self.closed += 1

    @contextmanager
    def manager(self) -> Iterator[int]:
        yield self.open()
        self.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[int]:
        """Hold a task group, with a task in the background.

        That ends unhurt: on asyncio, a task group that cancels leaves work for the collector, with or without a scope.
        """
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop.wait)
            yield self.open()
            stop.set()
        self.close()


# Each kind of scope, with n resources. The parent is there for those that use it.


async def sync_closers(counted: Counted, n: int, _: Scope) -> None:
    async with Scope() as scope:
        for _ in range(n):
            scope.add(counted.open(), counted.close)


async def async_closers(counted: Counted, n: int, _: Scope) -> None:
    async with Scope() as scope:
        for _ in range(n):
            scope.add(counted.open(), counted.close_async)


async def suspending_closers(counted: Counted, n: int, _: Scope) -> None:
    async with Scope() as scope:
        for _ in range(n):
            await scope.acquire(counted.open_slowly, counted.close_slowly)


async def a_child(counted: Counted, n: int, parent: Scope) -> None:
    async with parent.child() as child:
        for place in range(n):
            child.add(counted.open(), counted.close if place % 2 else counted.close_slowly)


async def a_child_by_hand(counted: Counted, n: int, parent: Scope) -> None:
    child = parent.child("by hand", grace=60)
    grandchild = child.child()
    for place in range(n):
        (grandchild if place % 2 else child).add(counted.open(), counted.close_async)
    await child.aclose()


async def entered_managers(counted: Counted, n: int, _: Scope) -> None:
    async with Scope() as scope:
        for place in range(n):
            await scope.enter(counted.manager() if place else counted.client())


async def hosts_that_come_and_go(counted: Counted, n: int, parent: Scope) -> None:
    client = await parent.host(counted.client())
    async with Scope() as scope:
        for _ in range(n - 1):
            scope.defer(counted.close, counted.open())
    await parent.release(client)


async def a_concurrent_scope(counted: Counted, n: int, _: Scope) -> None:
    async with Scope(concurrent=True) as scope:
        for _ in range(n):
            scope.add(counted.open(), counted.close_slowly)


async def a_scope_with_limits(counted: Counted, n: int, _: Scope) -> None:
    async with Scope("limits", grace=60) as scope:
        for _ in range(n):
            scope.add(counted.open(), counted.close_slowly, timeout=30, force=counted.close)


async def a_scope_that_hands_over(counted: Counted, n: int, parent: Scope) -> None:
    scope = Scope()
    handles: list[Resource[Any]] = [scope.defer(counted.close_async, counted.open()) for _ in range(n)]
    for handle in handles[::2]:
        await scope.release(handle)
    for handle in handles[1::4]:
        parent.add(scope.detach(handle))
    await scope.move().aclose()
    await scope.aclose()
    for handle in handles[1::4]:
        await parent.release(handle)


async def a_body_that_is_told(counted: Counted, n: int, _: Scope) -> None:
    async def body(scope: Scope) -> Ok[int]:
        for _ in range(n):
            scope.on_success(counted.close, counted.open())
        scope.on_exit(lambda outcome: outcome.unwrap())
        return Ok(n)

    await with_scope(body, on_event=lambda _: None)


Kind = Callable[[Counted, int, Scope], Awaitable[None]]

KINDS: Sequence[Kind] = (
    sync_closers,
    async_closers,
    suspending_closers,
    a_child,
    a_child_by_hand,
    entered_managers,
    hosts_that_come_and_go,
    a_concurrent_scope,
    a_scope_with_limits,
    a_scope_that_hands_over,
    a_body_that_is_told,
)


@dataclass(frozen=True)
class Memory:
    """What is in use: blocks of Python's allocator now, and MiB of the process at most until now."""

    blocks: int
    peak: float


@dataclass(frozen=True)
class Soaked:
    """What became of many resources."""

    scopes: int
    opened: int
    closed: int
    held: int
    tasks: int
    seconds: float
    early: Memory
    end: Memory
    ours: int
    found: int

    def __str__(self) -> str:
        return (
            f"{self.scopes:,} scopes, {self.opened:,} resources, {self.seconds:.1f} s; "
            f"blocks of memory: {self.early.blocks:,} at 10 %, {self.end.blocks:,} at the end; "
            f"peak: {self.early.peak:.1f} MiB at 10 %, {self.end.peak:.1f} MiB at the end; "
            f"found by the collector: {self.found}; tasks left: {self.tasks}"
        )

    def complaints(self, slack: int) -> list[str]:
        """Say what does not hold; so many blocks more are no growth."""
        grown, left = self.end.blocks - self.early.blocks, self.opened - self.closed
        found = {
            f"{grown:,} blocks of memory more than after the first tenth": grown > slack,
            f"{self.ours:,} objects of ours were left to the collector": self.ours,
            f"{self.tasks} tasks are left": self.tasks,
            f"{left:,} resources are left open": left,
            f"the parent holds {self.held:,} still": self.held,
        }
        return [text for text, wrong in found.items() if wrong]


async def soak(scopes: int, resources: int, kinds: Sequence[Kind] = KINDS) -> Soaked:
    """Open and close so many, while the collector is off."""
    counted, tasks, enabled = Counted(), living_tasks(), gc.isenabled()

    async def live(numbers: range) -> Memory:
        for number in numbers:
            n = resources * (number + 1) // scopes - resources * number // scopes
            await kinds[number % len(kinds)](counted, n, parent)
        await settle()
        return Memory(sys.getallocatedblocks(), peak_memory())

    gc.collect()
    gc.disable()
    since = perf_counter()
    try:
        async with Scope("parent") as parent:
            early = await live(range(scopes // 10))
            end = await live(range(scopes // 10, scopes))
            held = parent.size
        seconds = perf_counter() - since
        await settle()
        ours, found = collect()
    finally:
        if enabled:
            gc.enable()
    left = living_tasks() - tasks
    return Soaked(scopes, counted.opened, counted.closed, held, left, seconds, early, end, ours, found)


async def settle() -> None:
    """Let tasks end that are about to."""
    for _ in range(10):
        await checkpoint()


def living_tasks() -> int:
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_task():
            return trio.lowlevel.current_statistics().tasks_living
    import asyncio

    return len(asyncio.all_tasks())


def collect() -> tuple[int, int]:
    """Give how many unreachable objects of ours the collector finds, and how many in all."""
    flags = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = list(gc.garbage)
    finally:
        gc.garbage.clear()
        gc.set_debug(flags)
    ours = [one for one in found if type(one).__module__.startswith("rescope")]
    return len(ours), len(found)


def peak_memory() -> float:
    """Give the most memory that the process has had, in MiB."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass(frozen=True)
class Backend:
    """Where to run, and how many blocks of memory more are no growth."""

    name: str
    slack: int
    use_uvloop: bool | None = None

    def run(self, scopes: int, resources: int) -> Soaked:
        options = {} if self.use_uvloop is None else {"use_uvloop": self.use_uvloop}
        return anyio.run(soak, scopes, resources, backend=self.name, backend_options=options)


BACKENDS = {
    "asyncio": Backend("asyncio", 500, use_uvloop=False),
    "uvloop": Backend("asyncio", 500, use_uvloop=True),
    "trio": Backend("trio", 5_000),  # which forgets its deadlines a thousand at a time
}


def main() -> int:
    """Soak, and print what became of it."""
    parser = argparse.ArgumentParser(description="Send many resources through many scopes, and see what is left.")
    parser.add_argument("--scopes", type=int, default=100_000)
    parser.add_argument("--resources", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="one, or several; all by default")
    options = parser.parse_args()
    failed = False
    for name in options.backend or BACKENDS:
        soaked = BACKENDS[name].run(options.scopes, options.resources)
        print(f"{name} on Python {platform.python_version()}: {soaked}", flush=True)  # noqa: T201
        for complaint in soaked.complaints(BACKENDS[name].slack):
            print(f"  FAILED: {complaint}", flush=True)  # noqa: T201
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
