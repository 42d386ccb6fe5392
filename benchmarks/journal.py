"""What the journal costs: `python -m benchmarks.journal [--quick] [--check] [--only TEXT] [--json FILE]`.

- SQLite: a resource of a `JournaledScope` acquired, and closed, beside a bare insert of its record by `sqlite3`, in the
  same journal mode, with `synchronous="full"`, as a `SqliteStore` has it, and `"normal"`; in turn, and some in a row
- PostgreSQL: how many round trips each is, counted by a relay between client and server
- recover: one pass over what a process that died has left, how long it takes, and how much memory

All contenders of a part take turns in one run, on a server of their own (`examples/servers.py`), on asyncio.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from benchmarks.journal_work import (
    ACQUIRE,
    CLOSE,
    INSERT,
    MODES,
    PLACES,
    in_a_row,
    on_postgres,
    on_sqlite,
    open_on,
    timed,
    weighed,
)
from benchmarks.workflow import Figure, command
from benchmarks.workflow_rounds import take_turns
from benchmarks.workflow_work import postgres_trips

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.workflow import Part
    from benchmarks.workflow_rounds import Effort

ROW = 20
LEFT: Final = 10_000
MUST: Final = 2.0  # times a bare insert, where the disk is waited for


async def sqlite_figures(effort: Effort) -> list[Figure]:
    """Race the journal and bare inserts in files."""
    figures: list[Figure] = []
    for where, synchronous in MODES.items():
        must = MUST if synchronous == "full" else None
        found = [await _raced(synchronous, max(10, effort.rounds // 10), 1) for _ in range(effort.repeats)]
        rows = [await _raced(synchronous, max(5, effort.rounds // 60), ROW) for _ in range(effort.repeats)]
        figures += (Figure(f"{where}: {name}", [one[name] * 1e6 for one in found], "µs") for name in found[0])
        figures += _ratios(f"{where}: ", found, must)
        figures += _ratios(f"{where}: {ROW} in a row, ", rows, None)
    return figures


async def _raced(synchronous: Any, rounds: int, row: int) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        contest = await on_sqlite(stack, synchronous)
        if row > 1:
            contest = {name: in_a_row(work, row) for name, work in contest.items()}
            await contest[ACQUIRE]()
        return await take_turns(contest, rounds)


def _ratios(where: str, found: list[dict[str, float]], must: float | None) -> Iterator[Figure]:
    for name in (ACQUIRE, CLOSE):
        yield Figure(f"{where}{name}, to a bare insert", [one[name] / one[INSERT] for one in found], "times", must)


async def postgres_figures(_effort: Effort) -> list[Figure]:
    """Count round trips."""
    async with AsyncExitStack() as stack:
        trips = await postgres_trips(stack, on_postgres)
    return [
        Figure(f"PostgreSQL: {name}", [found], "round trips", 1 if "reset=nothing" in name else None)
        for name, found in trips.items()
    ]


async def recover_figures(effort: Effort) -> list[Figure]:
    """Recover what was left, in each store."""
    figures = []
    for where in PLACES:
        async with AsyncExitStack() as stack:
            store = await open_on(stack, where)
            for many in (LEFT // 10, LEFT) if effort.repeats > 1 else (LEFT // 100,):
                seconds = [await timed(store, many) for _ in range(effort.repeats)]
                megabytes = [await weighed(store, many)]
                figures.append(Figure(f"recover: {many:,} on {where}", seconds, "s"))
                figures.append(Figure(f"recover: {many:,} on {where}, memory", megabytes, "MB"))
    return figures


PARTS: dict[str, Part] = {
    "SQLite": sqlite_figures,
    "PostgreSQL": postgres_figures,
    "recover": recover_figures,
}


def main() -> int:
    """Parse the command line, measure, print; tell by the exit code with `--check`."""
    return command("journal", "What the journal costs.", PARTS)


if __name__ == "__main__":
    sys.exit(main())
