"""The table in `docs/benchmarks-workflow.md`, from a file: `python -m benchmarks.workflow_page FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.workflow import Figure

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-workflow.md"
BEGIN, END = "<!-- figures, by python -m benchmarks.workflow_page -->", "<!-- end of figures -->"


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


def put_in(page: str, block: str) -> str:
    """Put a new table into a page."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Parse the command line, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workflow_page", description="Put figures into the docs."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what a run with --json has kept")
    kept = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    figures = [Figure(**figure) for figure in kept["figures"]]
    PAGE.write_text(put_in(PAGE.read_text(encoding="utf-8"), table(figures)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
