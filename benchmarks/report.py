"""The page of the docs, from files: `python -m benchmarks.report FILE...`, each made by a run with `--json`.

The page keeps its words. Between `<!-- NAME, by python -m benchmarks.report -->` and `<!-- end of NAME -->` it gets a
new table, and the plots it takes in are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plot, tables
from benchmarks.backends import NAMES
from benchmarks.results import Results, load

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCS = Path(__file__).parent.parent / "docs"
PYTHONS = ("3.13", "3.12", "3.11")


def read(files: Iterable[Path]) -> tuple[dict[str, Results], dict[str, dict[str, Any]]]:
    """Give the runs, by Python and loop, and what a scope is made of, by Python."""
    runs: dict[str, Results] = {}
    pieces: dict[str, dict[str, Any]] = {}
    for file in files:
        kept = json.loads(file.read_text(encoding="utf-8"))
        version = kept["python"].rpartition(".")[0]
        if "pieces" in kept:
            pieces[version] = kept
        else:
            runs[f"{version} {kept['backend']}"] = load(file)
    in_order = [f"{version} {loop}" for version in PYTHONS for loop in NAMES]
    return (
        {name: runs[name] for name in in_order if name in runs},
        {version: pieces[version] for version in PYTHONS if version in pieces},
    )


def made(runs: dict[str, Results], pieces: dict[str, dict[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """Give the tables and the plots, by name, of those runs that there are."""
    every = list(runs.values())
    on_asyncio = [run for run in every if run.backend == "asyncio"]
    blocks = {"runs": tables.taken(every), "to AES": tables.loops(every, "AES"), "to AES+": tables.loops(every, "AES+")}
    blocks["besides"] = tables.besides(on_asyncio)
    plots: dict[str, str] = {}
    for run in on_asyncio:
        version = run.python.rpartition(".")[0]
        blocks[f"promised on {version}"] = tables.promised(run)
        blocks[f"others on {version}"] = tables.others(run)
        if version == PYTHONS[0]:
            plots |= {"cost": plot.standing(run), "cost-growth": plot.growing(run)}
    if pieces:
        blocks["pieces"] = tables.pieces(pieces)
    for version, kept in pieces.items():
        blocks[f"ladder on {version}"] = tables.ladder(kept["python"], kept["ladders"])
        if version == PYTHONS[0]:
            plots["cost-steps"] = plot.climbing(kept["ladders"])
    return blocks, plots


def put_in(page: str, blocks: dict[str, str]) -> str:
    """Put new tables into a page."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}, by python -m benchmarks.report -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        if found:
            page = f"{before}{begin}\n\n{block}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    """Parse the command line, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Put figures into the docs.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what a run with --json has kept")
    options = parser.parse_args()
    blocks, plots = made(*read(options.files))
    page = DOCS / "benchmarks.md"
    page.write_text(put_in(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    for name, picture in plots.items():
        (DOCS / "pictures" / f"{name}.svg").write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
