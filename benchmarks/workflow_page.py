"""The tables in `docs/benchmarks-workflow.md`, from files: `python -m benchmarks.workflow_page FILE...`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.workflow import Figure

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-workflow.md"
BEGIN, END = "<!-- figures of benchmarks.{}, by python -m benchmarks.workflow_page -->", "<!-- end of figures -->"


def row(figure: Figure) -> str:
    """Give the line of a figure."""
    must = "" if figure.must is None else f"{'≥' if figure.more_is_better else '≤'} {figure.must:,g}"
    stands = {"ok": "holds", "MISS": "**missed**"}.get(figure.mark(), "")
    low, high = (written(value) for value in (min(figure.values), max(figure.values)))
    spread = low if low == high else f"{low} to {high}"
    return f"| {figure.what} | {written(figure.middle)} {figure.unit} | {spread} | {must} | {stands} |"


def written(value: float) -> str:
    """Write a figure with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 (three digits)


def table(figures: list[Figure]) -> str:
    """Give the table."""
    head = "| what | median | of three | must | stands |\n| --- | ---: | ---: | ---: | --- |"
    return "\n".join([head, *map(row, figures)])


def put_in(page: str, of: str, block: str) -> str:
    """Put a new table into a page."""
    begin = BEGIN.format(of)
    before, found, rest = page.partition(begin)
    if not found:
        msg = f"the page has no place for the figures of {of!r}"
        raise ValueError(msg)
    return f"{before}{begin}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Parse the command line, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workflow_page", description="Put figures into the docs."
    )
    parser.add_argument("files", type=Path, metavar="FILE", nargs="+", help="what a run with --json has kept")
    page = PAGE.read_text(encoding="utf-8")
    for file in parser.parse_args().files:
        kept = json.loads(file.read_text(encoding="utf-8"))
        page = put_in(page, kept["of"], table([Figure(**figure) for figure in kept["figures"]]))
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
