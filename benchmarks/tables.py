"""The tables of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import bounds
from benchmarks.measuring import CONTROL
from benchmarks.pieces import PIECES
from benchmarks.table import written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.bounds import Bound
    from benchmarks.measuring import Ratio
    from benchmarks.results import Results

STANDS = {"": "", "goal": "goal", "ok": "must", "MISS": "**missed**"}
NONE = "–"  # noqa: RUF001 (a dash, as in a printed table)


def taken(runs: Iterable[Results]) -> str:
    """Tell of each run how far it can be trusted."""
    rows = []
    for run in runs:
        low, high = run.control()
        loop = f"{run.backend} {run.versions[run.backend]}" if run.backend in run.versions else run.backend
        rows.append(
            (run.python, loop, run.system, run.date, run.rounds, f"{low:.2f} to {high:.2f}", f"±{run.spread() / 2:.0%}")
        )
    head = ("Python", "loop", "system", "date", "rounds", "AES to itself", "half of the rounds within")
    return _table(head, rows, "llllrrr")


def promised(run: Results) -> str:
    """Show the figures beside what was promised."""
    rows = []
    for work, figures in run.rows.items():
        bound = bounds.of_row(work, run.python, run.backend)
        to_aes, to_plus = _middle(figures.to_aes, "rescope"), _middle(figures.to_plus, "rescope")
        rows.append(
            (
                work,
                _micro(figures.seconds["rescope"]),
                *(_figure(to_aes), _figure(bound.aes.must), _figure(bound.aes.goal), _stands(to_aes, bound.aes)),
                *(_figure(to_plus), _figure(bound.plus.must), _stands(to_plus, bound.plus)),
                *(_figure(_middle(figures.to_aes, "add")), _figure(_middle(figures.to_plus, "add"))),
            )
        )
    head = (
        "work",
        "µs",
        "to AES",
        "must",
        "goal",
        "stands",
        "to AES+",
        "must",
        "stands",
        "`add`, to AES",
        "`add`, to AES+",
    )
    return _table(head, rows, "lrrrrlrrlrr")


def others(run: Results) -> str:
    """Show how the others stand."""
    names = ("rescope", "add", "by hand", CONTROL, "AES+", "svcs", "dishka")
    rows = [
        (work, _micro(figures.seconds["AES"]), *(_figure(_middle(figures.to_aes, name)) for name in names))
        for work, figures in run.rows.items()
    ]
    head = ("work", "AES, in µs", "rescope", "rescope, `add`", "by hand", "AES", "AES+", "svcs", "dishka")
    return _table(head, rows, "lrrrrrrrr")


def loops(runs: Sequence[Results], to: str) -> str:
    """Show the same figure on all Pythons and loops, to `AES` or `AES+`."""
    works = list(runs[0].rows)

    def of(run: Results, work: str) -> str:
        figures = run.rows[work]
        return _figure(_middle(figures.to_aes if to == "AES" else figures.to_plus, "rescope"))

    rows = [(work, *(of(run, work) for run in runs)) for work in works]
    rows = [row for row in rows if set(row[1:]) != {NONE}]
    return _table(("work", *(f"{_short(run.python)} {run.backend}" for run in runs)), rows, "l" + "r" * len(runs))


def besides(runs: Sequence[Results]) -> str:
    """Show what is no race."""
    rows = []
    for work, bound in bounds.SINGLES.items():
        found = [run.singles.get(work) for run in runs]
        figures = (NONE if one is None else f"{one.value:.3g}" for one in found)
        rows.append((work, _figure(bound.must), _figure(bound.goal), *figures))
    head = ("what", "must", "goal", *(f"{_short(run.python)} {run.backend}" for run in runs))
    return _table(head, rows, "lrr" + "r" * len(runs))


def pieces(kept: dict[str, dict[str, Any]]) -> str:
    """Show what each piece costs, by version."""
    rows = []
    for piece in PIECES:
        costs = (kept[version]["pieces"].get(piece.name) for version in kept)
        rows.append((piece.name, *(NONE if cost is None else f"{cost:,.0f}" for cost in costs), piece.when, piece.buys))
    head = ("piece", *(f"ns, {version}" for version in kept), "when", "what it buys")
    return _table(head, rows, "l" + "r" * len(kept) + "ll")


def ladder(python: str, ladders: dict[str, dict[str, float]]) -> str:
    """Show the steps in nanoseconds per closer, and what was promised in the same measure."""
    steps = list(next(iter(ladders.values())))
    rows = [(step, *(f"{ladders[work][step]:,.0f}" for work in ladders)) for step in steps if step != "AES"]
    rows.append(("`AsyncExitStack`", *(f"{found['AES']:,.0f}" for found in ladders.values())))
    for name in ("must", "goal"):
        promised = {work: getattr(bounds.of_row(work, python, "asyncio").aes, name) for work in ladders}
        in_ns = (None if promised[work] is None else promised[work] * ladders[work]["AES"] for work in ladders)
        rows.append((f"the {name}", *(NONE if one is None else f"{one:,.0f}" for one in in_ns)))
    return _table(("ns per closer", *ladders), rows, "l" + "r" * len(ladders))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str) -> str:
    rule = ["---:" if one == "r" else "---" for one in align]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *rows))


def _short(python: str) -> str:
    return python.rpartition(".")[0]


def _stands(figure: float | None, bound: Bound) -> str:
    return "" if figure is None else STANDS[bound.mark(figure)]


def _middle(ratios: dict[str, Ratio], name: str) -> float | None:
    return ratios[name].middle if name in ratios else None


def _figure(value: float | None) -> str:
    return written(value) or NONE


def _micro(seconds: float) -> str:
    return written(seconds * 1e6)
