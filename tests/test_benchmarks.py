"""The benchmarks measure what they say, and can't rot. How fast anything is, no test asserts."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("benchmarks", reason="runs from a checkout")

from benchmarks import __main__ as command
from benchmarks import bounds, pieces, report
from benchmarks.backends import Backend, backend, installed
from benchmarks.bounds import Bound, Bounds
from benchmarks.measuring import Effort
from benchmarks.results import load
from benchmarks.rows import rows
from benchmarks.work import Manager, Parts, idle_parts

if TYPE_CHECKING:
    from pathlib import Path

TINY = Effort(rounds=2, seconds=0, many=100)


def counting(loop: Backend, log: list[str]) -> Parts:
    """Parts that write down each close."""

    async def close_async() -> None:
        log.append("async")

    async def close_pausing() -> None:
        await loop.pause()
        log.append("pausing")

    return Parts(lambda: log.append("sync"), close_async, close_pausing, Manager(close_async))


@pytest.fixture
def loop(anyio_backend: Any) -> Backend:
    """The loop that the test runs on, as the benchmarks know it."""
    name, options = anyio_backend
    return backend("uvloop" if options.get("use_uvloop") else name)


async def test_every_contender_closes_what_it_opened(loop: Backend) -> None:
    """In every row each contender runs as many closers as the row says, and of the kind that it says."""
    log: list[str] = []
    expected, actual = {}, {}
    for row in rows(loop, counting(loop, log)):
        kind = "sync" if " sync " in row.work else "pausing" if "suspend" in row.work else "async"
        for name, batch in row.contest().items():
            log.clear()
            await batch(2)
            expected[row.work, name] = [kind] * row.closes * 2
            actual[row.work, name] = log.copy()

    assert expected == actual


async def test_contenders_meet_in_every_row(loop: Backend) -> None:
    """No row lacks the scope, the stack, or one of the containers that are installed."""
    everywhere = {"rescope", "AES", *filter(importlib.util.find_spec, ("svcs", "dishka"))}

    assert [row.work for row in rows(loop, idle_parts(loop)) if not everywhere <= row.contest().keys()] == []


async def test_every_promise_has_its_row(loop: Backend) -> None:
    """What was promised is promised of a row that there is, so that none goes unjudged for its name."""
    works = {row.work for row in rows(loop, idle_parts(loop))}

    assert [*(bounds.ROWS | bounds.ROWS_OF_3_11).keys() - works] == []


@pytest.mark.parametrize("work", pieces.LADDERS)
def test_every_step_of_the_ladder_closes_what_it_opened(work: str) -> None:
    """However few guarantees a step gives, all its closers run and all its managers are exited."""
    log: list[str] = []
    expected, actual = {}, {}

    async def main() -> None:
        for name, batch in pieces.ladder_of(work, counting(backend("asyncio"), log)).items():
            log.clear()
            await batch(2)
            expected[name] = ["sync" if " sync " in work else "async"] * 2 * int(work.split(maxsplit=1)[0])
            actual[name] = log.copy()

    asyncio.run(main())

    assert expected == actual


@pytest.mark.parametrize("name", installed())
def test_a_run_is_kept_and_read_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run keeps in a file is, but for rounding, what it printed: all rows and all single figures."""
    results, _ = backend(name).run(lambda: command.measure(name, TINY, ""))
    results.save(tmp_path / "run.json")
    kept = load(tmp_path / "run.json")

    printed = capsys.readouterr().out
    assert [work for work in (*kept.rows, *kept.singles) if work not in printed] == []
    assert {work: [*figures.to_aes] for work, figures in results.rows.items()} == {
        work: [*figures.to_aes] for work, figures in kept.rows.items()
    }
    assert kept.singles.keys() == results.singles.keys()
    assert kept.singles.keys() == bounds.SINGLES.keys() - ({bounds.IMPORT} if name != "asyncio" else set())


def test_the_page_gets_tables_and_plots(tmp_path: Path) -> None:
    """The report fills the places that the page names, draws the plots, and leaves the words alone."""
    results, _ = backend("asyncio").run(lambda: command.measure("asyncio", TINY, ""))
    results.python = "3.13.0"
    results.save(tmp_path / "run.json")
    found = asyncio.run(pieces.measure(TINY)) | {"python": "3.13.0"}
    pieces.keep(found, tmp_path / "pieces.json")
    blocks, plots = report.made(*report.read([tmp_path / "run.json", tmp_path / "pieces.json"]))
    page = "words <!-- runs, by python -m benchmarks.report -->old<!-- end of runs --> more"

    new = report.put_in(page, blocks)

    assert new.startswith("words <!-- runs")
    assert new.endswith("end of runs --> more")
    assert "| 3.13.0 | asyncio |" in new
    assert "old" not in new
    assert sorted(plots) == ["cost", "cost-growth", "cost-steps"]
    assert all(picture.startswith("<svg") and picture.endswith("</svg>\n") for picture in plots.values())


def test_every_table_of_the_page_is_made() -> None:
    """The tables of the page are those that the report makes of the results that are kept."""
    page = (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    files = sorted((report.DOCS.parent / "benchmarks" / "results").glob("*.json"))
    blocks, _ = report.made(*report.read(files))
    named = {line.split(", by")[0].removeprefix("<!-- ") for line in page.splitlines() if ", by python -m" in line}

    assert [*named - blocks.keys()] == []
    assert report.put_in(page, blocks) == page


@pytest.mark.parametrize(("must", "code"), [(0.0, 1), (1e9, 0)])
def test_check_fails_where_a_must_is_missed(must: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--check` the exit code tells whether all musts hold."""
    monkeypatch.setitem(bounds.ROWS, "0 resources", Bounds(Bound(must)))
    monkeypatch.setitem(bounds.ROWS_OF_3_11, "0 resources", Bounds(Bound(must)))
    monkeypatch.setattr(bounds, "JUDGED", ("3.",))
    monkeypatch.setattr(command, "QUICK", TINY)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--check", "--only", "0 resources"])

    assert command.main() == code


@pytest.mark.parametrize(("figure", "mark"), [(0.2, "goal"), (0.3, "goal"), (0.4, "ok"), (0.5, "ok"), (0.51, "MISS")])
def test_a_figure_is_marked(figure: float, mark: str) -> None:
    """A figure up to the goal reaches it, one up to the must is fine, one beyond is a miss."""
    assert Bound(0.5, 0.3).mark(figure) == mark


def test_what_was_not_promised_is_not_judged() -> None:
    """Promises are for asyncio, on 3.13 in full, and on 3.11 with the exceptions that it has no eager tasks."""
    assert bounds.of_row("1 async closer", "3.13.0", "asyncio").aes == Bound(1.8, 1.0)
    assert bounds.of_row("1 async closer", "3.11.7", "asyncio") == Bounds()
    assert bounds.of_row("10 async closers", "3.11.7", "asyncio") == Bounds(Bound(2.4))
    assert bounds.of_row("10 sync closers", "3.11.7", "asyncio").aes == Bound(0.7, 0.45)
    assert bounds.of_row("10 sync closers", "3.12.1", "asyncio") == Bounds()
    assert bounds.of_row("10 sync closers", "3.13.0", "trio") == Bounds()
    assert bounds.of_single(bounds.MEMORY, "3.13.0", "uvloop") == Bound()
