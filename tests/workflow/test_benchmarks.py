"""The benchmarks of leases and of the journal measure what they say. How fast anything is, no test asserts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("benchmarks", reason="runs from a checkout")

from benchmarks import journal, workflow, workflow_page
from benchmarks.workflow_rounds import Effort

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers have Unix sockets")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, postgres_url: str, redis_url: str) -> None:
    """The servers that are there already."""
    monkeypatch.setenv("RESCOPE_TEST_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("RESCOPE_TEST_REDIS_URL", redis_url)


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(
    ("benchmark", "trips"), [(workflow, [[2], [4], [3]]), (journal, [[1], [1], [2], [2]])], ids=["leases", "journal"]
)
def test_all_is_measured_kept_and_put_into_the_page(
    benchmark: ModuleType,
    trips: list[list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One command races all contenders, counts the round trips, keeps the figures, and a second makes the table."""
    monkeypatch.setattr(workflow, "QUICK", Effort(rounds=3, repeats=2))
    monkeypatch.setattr(journal, "LEFT", 20)
    monkeypatch.setattr(journal, "ROW", 2)
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--json", str(kept)])
    assert benchmark.main() == 0
    found = json.loads(kept.read_text(encoding="utf-8"))
    figures = found["figures"]
    assert [figure["values"] for figure in figures if figure["unit"] == "round trips"] == trips
    assert all(len(figure["values"]) == 2 for figure in figures if figure["unit"] not in {"round trips", "MB"})
    assert len(capsys.readouterr().out.splitlines()) == len(figures) + 1

    begin = workflow_page.BEGIN.format(found["of"])
    page.write_text(f"before\n{begin}\nof last year\n{workflow_page.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(workflow_page, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["workflow_page", str(kept)])
    assert workflow_page.main() == 0
    written = page.read_text(encoding="utf-8")
    assert "of last year" not in written
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert written.count("\n| ") == len(figures) + 2


def test_figures_that_the_page_has_no_place_for_are_refused() -> None:
    """So that none are lost."""
    with pytest.raises(ValueError, match="no place for the figures of 'journal'"):
        workflow_page.put_in("a page", "journal", "a table")


def test_a_must_that_is_missed_is_told() -> None:
    """A figure on the wrong side of its must is a miss, whichever side that is; what has none isn't judged."""
    figure = workflow.Figure
    assert figure("a", [1, 3, 2], "ms", 2).mark() == "ok"
    assert figure("a", [1, 3, 2.1], "ms", 2).mark() == "MISS"
    assert figure("a", [5], "marks/s", 6, more_is_better=True).mark() == "MISS"
    assert figure("a", [6], "marks/s", 6, more_is_better=True).mark() == "ok"
    assert figure("a", [6], "ms").mark() == ""
