"""What was promised: what a figure must not pass, and what it should."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure must not pass, and what it should."""

    must: float | None = None
    goal: float | None = None

    def mark(self, figure: float) -> str:
        """Say how the figure stands."""
        if self.must is None:
            return ""
        if self.goal is not None and figure <= self.goal:
            return "goal"
        return "ok" if figure <= self.must else "MISS"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What was promised of a row: to the stack as it is, and to the stack with the same guarantees."""

    aes: Bound = Bound()
    plus: Bound = Bound()


UNJUDGED = Bound()
JUDGED = ("3.11.", "3.13.")
"""On these Pythons, and asyncio."""

ROWS = {
    "0 resources": Bounds(Bound(0.95, 0.8), Bound(0.25)),
    "1 sync closer": Bounds(Bound(1.1, 0.7), Bound(0.3)),
    "10 sync closers": Bounds(Bound(0.7, 0.45), Bound(0.4)),
    "1000 sync closers": Bounds(Bound(0.5, 0.3), Bound(0.5)),
    "1 async closer": Bounds(Bound(1.8, 1.0), Bound(0.4)),
    "10 async closers": Bounds(Bound(0.9, 0.5), Bound(0.5)),
    "1000 async closers": Bounds(Bound(0.5, 0.3), Bound(0.5)),
    "10 closers that suspend": Bounds(Bound(1.3, 1.1), Bound(1.0)),
    "1000 closers that suspend": Bounds(Bound(0.85, 0.7), Bound(0.85)),
    "10 entered managers": Bounds(Bound(1.8, 1.1)),
}

# Before 3.12 no task starts eagerly, so what is async takes a turn of the loop more.
ROWS_OF_3_11 = ROWS | {
    "1 async closer": Bounds(),
    "10 async closers": Bounds(Bound(2.4)),
    "1000 async closers": Bounds(Bound(0.65)),
    "10 closers that suspend": Bounds(),
    "1000 closers that suspend": Bounds(),
}

MEMORY = "memory per closer, to AES"
MEMORY_ADD = "memory per closer, to AES, with add"
RELEASE = "release among 100,000, to among 10"
GROWTH = "cost per closer at 100 to 100,000, to at 10"
CONCURRENT = "100 closers of 50 ms, concurrent, in s"
GARBAGE = "objects left to the collector, per scope"
IMPORT = "import, beyond anyio's own, in ms of CPU time"

SINGLES = {
    MEMORY: Bound(0.3, 0.2),
    MEMORY_ADD: Bound(0.3, 0.2),
    RELEASE: Bound(1.75),
    GROWTH: Bound(1.5),
    CONCURRENT: Bound(0.1),
    GARBAGE: UNJUDGED,
    IMPORT: Bound(15),
}


def judged(python: str, backend: str) -> bool:
    """Tell whether anything was promised for this Python, `"3.13.0"` or so, and backend."""
    return backend == "asyncio" and python.startswith(JUDGED)


def of_row(work: str, python: str, backend: str) -> Bounds:
    """Give what was promised of a row there."""
    if not judged(python, backend):
        return Bounds()
    return (ROWS_OF_3_11 if python.startswith("3.11.") else ROWS).get(work, Bounds())


def of_single(work: str, python: str, backend: str) -> Bound:
    """Give what was promised of a single figure there."""
    return SINGLES[work] if judged(python, backend) else UNJUDGED
