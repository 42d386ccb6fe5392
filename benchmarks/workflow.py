"""What leases cost: `python -m benchmarks.workflow [--quick] [--check] [--only TEXT] [--json FILE]`.

- Valkey: a lease taken and released, beside redis-py's own `Lock`; and the two calls to the store alone
- PostgreSQL: a lease, beside an advisory lock, which is taken and released on one connection of the pool; how long
  that takes, and how many round trips it is, counted by a relay between client and server
- SQLite: a lease, and marks in a `ProcessedLog`, in batches of 500

All contenders of a part take turns in one run, on a server of their own (`examples/servers.py`), on asyncio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.bounds import Bound
from benchmarks.workflow_rounds import FULL, QUICK, Effort, take_turns
from benchmarks.workflow_work import on_postgres, on_sqlite, on_valkey, postgres_trips

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from typing import TypeAlias

    Part: TypeAlias = Callable[[Effort], Coroutine[Any, Any, list["Figure"]]]

BATCH = 500
LEASE, LOCK, ADVISORY = "lease", "redis-py's Lock", "advisory lock"


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured, with what was promised of it; of some, less is better, of others more."""

    what: str
    values: list[float]
    unit: str
    must: float | None = None
    more_is_better: bool = False

    @property
    def middle(self) -> float:
        """The median of the repeats."""
        return median(self.values)

    def mark(self) -> str:
        """Say how it stands."""
        if self.must is None:
            return ""
        if self.more_is_better:
            return "ok" if self.middle >= self.must else "MISS"
        return Bound(self.must).mark(self.middle)

    def line(self) -> str:
        """Give its line of the table."""
        must = "" if self.must is None else f"{'>=' if self.more_is_better else '<='} {self.must:g}"
        low, high = min(self.values), max(self.values)
        spread = f"{low:.4g} to {high:.4g}" if len(self.values) > 1 else ""
        return f"{self.what:<58} {self.middle:>8.4g} {self.unit:<13} {must:<9} {self.mark():<5} {spread}".rstrip()


async def valkey_figures(effort: Effort) -> list[Figure]:
    """Race a lease and redis-py's lock on one server."""
    async with AsyncExitStack() as stack:
        contest = await on_valkey(stack)
        found = [await take_turns(contest, effort.rounds) for _ in range(effort.repeats)]
    return [
        *_times("Valkey", found),
        Figure("Valkey: lease, to redis-py's Lock", [one[LEASE] / one[LOCK] for one in found], "times", 1.2),
    ]


async def postgres_figures(effort: Effort) -> list[Figure]:
    """Race leases and an advisory lock on one server, and count their round trips."""
    async with AsyncExitStack() as stack:
        contest = await on_postgres(stack)
        found = [await take_turns(contest, max(1, effort.rounds // 3)) for _ in range(effort.repeats)]
        trips = await postgres_trips(stack, on_postgres)
    kept = "lease, reset=nothing"
    return [
        *_times("PostgreSQL", found),
        Figure(f"PostgreSQL: {kept}, to an advisory lock", [one[kept] / one[ADVISORY] for one in found], "times"),
        *(Figure(f"PostgreSQL: {name}", [trips[name]], "round trips", 2 if name == kept else None) for name in contest),
    ]


async def sqlite_figures(effort: Effort) -> list[Figure]:
    """Time leases and marks in a file."""
    async with AsyncExitStack() as stack:
        work = await on_sqlite(stack, BATCH)
        leases = [await take_turns({LEASE: work.lease}, max(1, effort.rounds // 10)) for _ in range(effort.repeats)]
        marks = [await _rate(work.mark, max(5, effort.rounds // 100)) for _ in range(effort.repeats)]
    return [
        Figure("SQLite: lease", [one[LEASE] * 1e3 for one in leases], "ms", 3),
        Figure(f"SQLite: ProcessedLog.mark_many, {BATCH} at a time", marks, "marks/s", 5000, more_is_better=True),
    ]


PARTS: dict[str, Part] = {
    "Valkey": valkey_figures,
    "PostgreSQL": postgres_figures,
    "SQLite": sqlite_figures,
}


def _times(server: str, found: list[dict[str, float]]) -> Iterator[Figure]:
    for name in found[0]:
        yield Figure(f"{server}: {name}", [one[name] * 1e6 for one in found], "µs")


async def _rate(mark: Callable[[], Coroutine[Any, Any, int]], batches: int) -> float:
    start = time.perf_counter()
    marked = sum([await mark() for _ in range(batches)])
    return marked / (time.perf_counter() - start)


def keep(of: str, figures: list[Figure], path: Path) -> None:
    """Keep them in a file."""
    found = {"of": of, "python": platform.python_version(), "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def command(of: str, description: str, parts: Mapping[str, Part]) -> int:
    """Parse the command line, measure, print; tell by the exit code with `--check`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{of}", description=description)
    parser.add_argument("--quick", action="store_true", help="rough figures in a few seconds")
    parser.add_argument("--check", action="store_true", help="fail where a must is missed")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the parts whose name holds this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in a file")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    print(f"Python {platform.python_version()}, asyncio; medians of {effort.rounds} rounds, {effort.repeats} times")
    figures = []
    for name, measure in parts.items():
        if options.only in name:
            for figure in asyncio.run(measure(effort)):
                print(figure.line(), flush=True)
                figures.append(figure)
    if options.json is not None:
        keep(of, figures, options.json)
    return int(options.check and any(figure.mark() == "MISS" for figure in figures))


def main() -> int:
    """Measure what leases cost."""
    return command("workflow", "What leases cost.", PARTS)


if __name__ == "__main__":
    sys.exit(main())
