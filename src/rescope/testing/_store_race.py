"""What `store_contract` checks between processes: fresh interpreters that race, and that are killed."""

from __future__ import annotations

import json
import os
import pickle
import sys
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from rescope._backends import backend
from rescope.testing._store_bench import Bench, Checks, expect, increment, opened, there
from rescope.workflow.store import BatchStore, VersionConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from anyio.abc import Process

    from rescope.testing._store_bench import Opener
    from rescope.workflow.store import Store

_ROUNDS = 25
_KILLS = 5
checks = Checks()
_CHILD = "from rescope.testing._store_race import child; child()"


class _Order(NamedTuple):
    """What a process is told to do."""

    work: Callable[[Store, _Order], Any]
    open_store: Opener
    prefix: str
    number: int
    processes: int
    backend: str


class _Race(NamedTuple):
    """What a process has won."""

    versions: list[int]
    made: list[int]
    taken: list[int]


@checks("of processes that race, one wins")
async def _(bench: Bench) -> None:
    from anyio import create_task_group

    races: list[_Race] = []

    async def run(number: int) -> None:
        async with _started(bench, _race, number) as process:
            races.append(_Race(*json.loads(await _said(process))))

    async with bench.store() as store:
        for turn in range(_ROUNDS):
            await store.put(bench.key(f"taken:{turn}"), 1)
        async with create_task_group() as group:
            for number in range(bench.processes):
                group.start_soon(run, number)
        entry = await store.get(bench.key("count"))
    total = bench.processes * _ROUNDS
    lost = total - (0 if entry is None else entry.value)
    expect(lost == 0, f"{lost} of {total} updates with if_version are lost where processes race")
    for race in races:
        expect(race.versions == sorted(set(race.versions)), "the versions that a process is given don't grow")
    versions = [version for race in races for version in race.versions]
    expect(len(set(versions)) == total, "two processes were given the same version of a key")
    for turn in range(_ROUNDS):
        made = sum(turn in race.made for race in races)
        expect(made == 1, f"{made} of {bench.processes} processes that put with if_version=0 win")
        taken = sum(turn in race.taken for race in races)
        expect(taken == 1, f"{taken} of {bench.processes} processes that delete one entry are told True")


async def _race(store: Store, order: _Order) -> None:
    from anyio import fail_after, sleep

    await store.put(f"{order.prefix}ready:{order.number}", 1)
    with fail_after(60):
        while len([entry async for entry in store.scan(f"{order.prefix}ready:")]) < order.processes:  # noqa: ASYNC110
            await sleep(0.005)
    race = _Race([], [], [])
    for turn in range(_ROUNDS):
        race.versions.append(await increment(store, f"{order.prefix}count"))
        with suppress(VersionConflictError):
            await store.put(f"{order.prefix}made:{turn}", order.number, if_version=0)
            race.made.append(turn)
        if await store.delete(f"{order.prefix}taken:{turn}"):
            race.taken.append(turn)
    _say(json.dumps(race))


@checks("a process that is killed leaves all or nothing")
async def _(bench: Bench) -> None:
    from anyio import sleep

    moments = Random(1)  # noqa: S311 (any will do, and the same each time)
    version = 0
    for _ in range(_KILLS):
        async with _started(bench, _write_for_ever, 0) as process:
            await process.stdout.receive()  # type: ignore[union-attr]
            await sleep(moments.uniform(0, 0.02))
            process.kill()
        async with bench.store() as store:
            entry = await there(store, bench.key())
            expect(len(set(entry.value)) == 1, "a process that is killed leaves a value half-written")
            many = [await store.get(bench.key(name)) for name in "ab"]
            alike = len({each and each.value for each in many}) == 1
            expect(alike, "a process that is killed leaves a part of a put_many")
            expect(entry.version > version, "a version does not grow where a process was killed")
            version = await store.put(bench.key(), [0, 0], if_version=entry.version)


async def _write_for_ever(store: Store, order: _Order) -> None:
    turn = 0
    while True:
        turn += 1
        await store.put(f"{order.prefix}key", [turn] * 2000)
        if isinstance(store, BatchStore):
            await store.put_many({f"{order.prefix}{name}": turn for name in "ab"})
        if turn == 1:
            _say("writing")


@asynccontextmanager
async def _started(bench: Bench, work: Callable[..., Any], number: int) -> AsyncGenerator[Process]:
    """Run an interpreter that does that work, and kill it if it is still there in the end."""
    import asyncio
    from subprocess import PIPE

    from anyio import open_process

    name = "asyncio" if issubclass(backend().Cancelled, asyncio.CancelledError) else "trio"
    try:
        order = pickle.dumps(_Order(work, bench.open_store, bench.prefix, number, bench.processes, name))
    except Exception as exc:
        msg = "`open_store` can't be taken to a process: give a function of a module, or a functools.partial of one"
        raise TypeError(msg) from exc
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    async with await open_process([sys.executable, "-c", _CHILD], stderr=PIPE, env=environment) as process:
        await process.stdin.send(order)  # type: ignore[union-attr]
        await process.stdin.aclose()  # type: ignore[union-attr]
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


async def _said(process: Process) -> bytes:
    """Wait for what a process says, until it has ended."""
    said = b"".join([part async for part in process.stdout])  # type: ignore[union-attr]
    error = b"".join([part async for part in process.stderr])  # type: ignore[union-attr]
    failed = await process.wait() != 0
    expect(not failed, f"a process fails: {(error.decode(errors='replace').splitlines() or ['it says nothing'])[-1]}")
    return said


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (to the process that has started this one)


def child() -> None:
    """Be such a process."""
    import anyio

    order: _Order = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that has started this one)

    async def work() -> None:
        async with opened(order.open_store) as store:
            await order.work(store, order)

    anyio.run(work, backend=order.backend)
