"""The table on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks import bounds
from benchmarks.bounds import Bound
from benchmarks.measuring import CONTROL

if TYPE_CHECKING:
    from benchmarks.measuring import Ratio
    from benchmarks.results import Figures, Results, Single

FORM = (
    "{:<25} {:>8} {:>8} {:>8}   {:>7} {:>5} {:>5} {:<4} {:>5} {:<4}   {:>7} {:>5} {:<4} {:>5} {:<4}"
    "   {:>5} {:>7} {:>5} {:>6} {:>5}"
)
GROUPS = f"{'':25} {'µs':>26}   {'to AES':<35}   {'to AES+':<29}   others, to AES"
HEAD = (
    *("work", "rescope", "add", "AES"),
    *("rescope", "must", "goal", "", "add", ""),
    *("rescope", "must", "", "add", ""),
    *("AES+", "by hand", "svcs", "dishka", "AES"),
)


@dataclass
class Promises:
    """How what was promised stands."""

    of_what: str
    judged: int = 0
    missed: list[str] = field(default_factory=list)

    def judge(self, work: str, figure: float | None, bound: Bound) -> str:
        """Mark a figure, and keep in mind how it stands."""
        mark = "" if figure is None else bound.mark(figure)
        self.judged += bool(mark)
        if mark == "MISS":
            self.missed.append(f"{work}: {written(figure)}, must {written(bound.must)}")
        return mark

    def tell(self) -> None:
        """Print it."""
        if self.judged:
            print(f"{self.judged - len(self.missed)} of {self.judged} {self.of_what} hold")
        for work in self.missed:
            print(f"  missed: {work}")


class Table:
    """Prints the lines as they come, and counts what was promised."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.promises = Promises("musts")
        self.with_add = Promises("of the same, where `add` stands for `defer`,")
        self._headed = False

    def row(self, work: str, figures: Figures) -> None:
        """Print a line of ratios, the first one below the head."""
        if not self._headed:
            print(f"{GROUPS}\n{FORM.format(*HEAD)}")
            self._headed = True
        bound = bounds.of_row(work, self.results.python, self.results.backend)
        line = [work]
        line += [_micro(figures.seconds.get(name)) for name in ("rescope", "add", "AES")]
        ours, must, *rest = self._stands(work, figures.to_aes, bound.aes)
        line += [ours, must, written(bound.aes.goal), *rest]
        line += self._stands(f"{work}, to AES+", figures.to_plus, bound.plus)
        line += [written(_middle(figures.to_aes.get(name))) for name in ("AES+", "by hand", "svcs", "dishka", CONTROL)]
        print(FORM.format(*line).rstrip(), flush=True)

    def single(self, work: str, found: Single) -> None:
        """Print a line with one figure, and below it what it was made of."""
        bound = bounds.of_single(work, self.results.python, self.results.backend)
        mark = self.promises.judge(work, found.value, bound)
        promised = "" if bound.must is None else f"must {written(bound.must)}"
        promised += "" if bound.goal is None else f"  goal {written(bound.goal)}"
        print(f"{work:<47} {found.value:>7.3g}   {promised:<22} {mark}".rstrip(), flush=True)
        if found.parts:
            print("    " + ", ".join(f"{name}: {part:.3g}" for name, part in found.parts.items()))
        if work == bounds.IMPORT:
            for name, imported in found.parts.items():
                self.promises.judge(name, imported, Bound(0))

    def sum_up(self) -> None:
        """Print how all of it stands."""
        low, high = self.results.control()
        half = self.results.spread() / 2
        print(f"\nAES to itself: {low:.2f} to {high:.2f}; half of the rounds lie within ±{half:.0%} of the figure")
        self.promises.tell()
        self.with_add.tell()

    def _stands(self, work: str, to: dict[str, Ratio], bound: Bound) -> list[str]:
        ours, add = _middle(to.get("rescope")), _middle(to.get("add"))
        marks = self.promises.judge(work, ours, bound), self.with_add.judge(work, add, bound)
        return [written(ours), written(bound.must), marks[0], written(add), marks[1]]


def written(value: float | None) -> str:
    """Write a figure with as many digits as it deserves."""
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 (three digits)


def _middle(found: Ratio | None) -> float | None:
    return None if found is None else found.middle


def _micro(found: float | None) -> str:
    return "" if found is None else written(found * 1e6)
