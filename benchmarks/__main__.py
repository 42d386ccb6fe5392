"""One command, one table: `python -m benchmarks [--backend NAME] [--quick] [--check] [--only TEXT] [--json FILE]`.

- `rescope`: a `Scope`, with `scope.defer(close)`
- `add`: the same, with `scope.add(value, close)`
- `AES`: `contextlib.AsyncExitStack` as it is
- `AES+`: the same stack, closed in a shielded task of its own
- `by hand`: nested `try` and `finally`, the limit
- `svcs`, `dishka`: containers that make the values, and close them
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from benchmarks.backends import backend, installed
from benchmarks.measuring import FULL, QUICK, Effort, compete
from benchmarks.results import Results, figures
from benchmarks.rows import rows
from benchmarks.singles import singles
from benchmarks.table import Table
from benchmarks.work import idle_parts


async def measure(name: str, effort: Effort, only: str) -> tuple[Results, Table]:
    """Measure all, and print it as it comes."""
    loop = backend(name)
    parts = idle_parts(loop)
    results = Results(name, effort.rounds)
    table = Table(results)
    for row in rows(loop, parts):
        if only in row.work:
            results.rows[row.work] = figures(await compete(row.contest(), effort))
            table.row(row.work, results.rows[row.work])
    print()
    async for work, found in singles(loop, parts, effort, only):
        results.singles[work] = found
        table.single(work, found)
    return results, table


def main() -> int:
    """Parse the command line, measure, print; tell by the exit code with `--check`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What rescope costs.")
    parser.add_argument("--backend", choices=installed(), default="asyncio", help="the loop to measure on")
    parser.add_argument("--quick", action="store_true", help="a rough figure in a few seconds")
    parser.add_argument("--check", action="store_true", help="fail where a must is missed")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the lines whose name holds this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in a file, for the report")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    python = platform.python_version()
    print(f"Python {python}, {options.backend}, {effort.rounds} rounds; ratios of times, lower is better")
    results, table = backend(options.backend).run(lambda: measure(options.backend, effort, options.only))
    table.sum_up()
    if options.json is not None:
        results.save(options.json)
    return int(options.check and bool(table.promises.missed))


if __name__ == "__main__":
    sys.exit(main())
