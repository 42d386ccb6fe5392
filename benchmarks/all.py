"""All there is to measure, for the docs: `python -m benchmarks.all [PYTHON...]`.

Each Python runs each loop and then the pieces, one after the other, and the page of the docs is made from what they
keep in `benchmarks/results`. Without arguments it takes `python3.11` to `python3.13`, as far as they are found. One
that lacks what is needed gets an environment of its own, which is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.backends import NAMES

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NEEDED = ("rescope", "svcs", "dishka", "trio", "uvloop")


def run(*command: object) -> None:
    """Run a command in the checkout, or end with its failure."""
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)  # noqa: S603 (our own commands)


def answer(python: str, code: str) -> str | None:
    """Give what an interpreter prints, or nothing where it can't run that."""
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)  # noqa: S603 (our own code)
    return done.stdout.strip() if done.returncode == 0 else None


def equipped(python: str, folder: Path) -> str:
    """Give a Python that has what is needed: this one, or one in a new environment."""
    if answer(python, f"import {', '.join(NEEDED)}") is not None:
        return python
    run(python, "-m", "venv", folder)
    inside = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    run(inside, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[bench]")
    return inside


def measure(python: str, options: list[str]) -> None:
    """Run all on one Python."""
    version = answer(python, "import sys; print('%d.%d' % sys.version_info[:2])")
    for name in NAMES:
        run(python, "-m", "benchmarks", "--backend", name, "--json", RESULTS / f"{version}-{name}.json", *options)
    run(python, "-m", "benchmarks.pieces", "--json", RESULTS / f"{version}-pieces.json", *options)


def main() -> int:
    """Parse the command line, measure, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description="Measure all, and write the page.")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters to measure on")
    parser.add_argument("--quick", action="store_true", help="rough figures")
    options = parser.parse_args()
    found = (shutil.which(f"python3.{minor}") for minor in (13, 12, 11))
    pythons = options.pythons or [python for python in found if python and answer(python, "") is not None]
    RESULTS.mkdir(exist_ok=True)
    for python in pythons:
        with TemporaryDirectory() as folder:
            with_all = equipped(python, Path(folder))
            measure(with_all, ["--quick"] if options.quick else [])
            run(with_all, "-m", "benchmarks.report", *sorted(RESULTS.glob("*.json")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
