"""The examples of durable functions run as they are, and check themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import run_example

LAST_LINES = {
    "durable_welcome.py": "mails sent: 1",
    "durable_report.py": "attempts: 2",
    "durable_order.py": "11 of 11 orders are as they should be",
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
