"""The examples of durable functions, and the sweep of kills, run as they are, and check themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable import kill_sweep
from running import run_example, run_python

LAST_LINES = {
    "durable_welcome.py": "mails sent: 1",
    "durable_report.py": "attempts: 2",
    "durable_order.py": "13 of 13 orders are as they should be",
    "durable_images.py": "10 of 12 done, 2 failed, at most",
    "durable_webhook.py": "pauses before the attempts for evt-1:",
    "durable_batch.py": "30 invoices sent,",
}


@pytest.mark.long
@pytest.mark.parametrize("name", LAST_LINES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    """It ends with the line that says so, and leaves nothing in the folder for temporary files."""
    result = run_example(name, env=dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path)))

    assert result.stdout.splitlines()[-1].startswith(LAST_LINES[name])
    assert result.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_chain_survives_kills_at_random() -> None:
    """Two processes are killed in turn while they are at it; `kill_sweep.py --kills 200` does so for longer."""
    result = run_python(kill_sweep.__file__, "--kills", "4", "--seed", "1")

    assert result.stdout.endswith("in 1 chains: 0 went wrong\n")
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("journal", "fault"),
    [
        ("1 begin 0, 1 unwound 0, 1 begin 39, 1 unwound 39, 1 result 40, 1 ended 0", ""),
        ("1 begin 0, 1 killed, 2 begin 0, 2 unwound 0, 2 begin 39, 2 unwound 39, 2 result 40", ""),
        ("1 begin 1, 1 unwound 1, 1 begin 0, 1 unwound 0, 1 begin 39", "step 0 began again after step 1 had begun"),
        ("1 begin 39, 2 begin 39", "step 39 began in 2 while 1 was at it"),
        ("1 begin 39, 1 begin 39", "step 39 began in 1 while 1 was at it"),
        ("1 begin 39, 1 unwound 39, 1 result 7", "result 7 of 1"),
        ("1 begin 39, 1 ended 1", "ended 1 of 1"),
        ("1 begin 0", "it ended after step 0"),
    ],
)
def test_the_sweep_finds_what_must_not_be(journal: str, fault: str) -> None:
    """A step that runs again, or twice at once, a wrong result and a chain that doesn't end."""
    found, _ = kill_sweep.faults([line.split() for line in journal.split(", ")])

    assert found == ([fault] if fault else [])
