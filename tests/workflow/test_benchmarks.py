"""The benchmarks of leases measure what they say, and can't rot. How fast anything is, no test asserts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("benchmarks", reason="runs from a checkout")

from benchmarks import workflow, workflow_page
from benchmarks.workflow_rounds import Effort

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers have Unix sockets")


def test_all_is_measured_kept_and_put_into_the_page(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    postgres_url: str,
    redis_url: str,
) -> None:
    """One command races all contenders, counts the round trips, keeps the figures, and a second makes the table."""
    monkeypatch.setenv("RESCOPE_TEST_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("RESCOPE_TEST_REDIS_URL", redis_url)
    monkeypatch.setattr(workflow, "QUICK", Effort(rounds=3, repeats=2))
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["workflow", "--quick", "--json", str(kept)])
    assert workflow.main() == 0
    figures = json.loads(kept.read_text(encoding="utf-8"))["figures"]
    assert [figure["values"] for figure in figures if figure["unit"] == "round trips"] == [[2], [4], [3]]
    assert all(len(figure["values"]) == 2 for figure in figures if figure["unit"] != "round trips")
    assert len(capsys.readouterr().out.splitlines()) == len(figures) + 1

    page.write_text(f"before\n{workflow_page.BEGIN}\nof last year\n{workflow_page.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(workflow_page, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["workflow_page", str(kept)])
    assert workflow_page.main() == 0
    written = page.read_text(encoding="utf-8")
    assert "of last year" not in written
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert written.count("\n| ") == len(figures) + 2


def test_a_must_that_is_missed_is_told() -> None:
    """A figure on the wrong side of its must is a miss, whichever side that is; what has none isn't judged."""
    figure = workflow.Figure
    assert figure("a", [1, 3, 2], "ms", 2).mark() == "ok"
    assert figure("a", [1, 3, 2.1], "ms", 2).mark() == "MISS"
    assert figure("a", [5], "marks/s", 6, more_is_better=True).mark() == "MISS"
    assert figure("a", [6], "marks/s", 6, more_is_better=True).mark() == "ok"
    assert figure("a", [6], "ms").mark() == ""
