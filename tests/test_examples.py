"""The examples run as they are, on both backends, and the checks at their ends can fail."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from running import every_backend, load_example, run_example


def run(name: str, temporary: Path, *args: str) -> CompletedProcess[str]:
    """Run an example with a folder of its own for temporary files."""
    return run_example(name, *args, env=dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))


def without_times(text: str) -> list[str]:
    """Give the lines of an output, each blank run as one, without what differs from run to run."""
    return [" ".join(re.sub(r"[\d.]+ m?s\b", "", line).split()) for line in text.splitlines()]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """An empty folder for what an example makes and must remove."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@every_backend
def test_order_receipt_runs(backend: str, temporary: Path) -> None:
    """Each order ends as its data demand, database and bucket agree, and nothing is left."""
    result = run("order_receipt.py", temporary, "--backend", backend)

    assert result.stderr == ""
    assert [line for line in without_times(result.stdout) if "=>" in line or "agree" in line] == [
        "=> sold for 49.80: committed, and the receipt is in the bucket",
        "=> sold for 54.00: committed, and the receipt is in the bucket",
        "=> not sold: no customer 'nobody' (UnknownCustomerError)",
        "=> not sold: CHECK constraint failed: pieces >= 0 (IntegrityError)",
        "=> TO BE SEEN TO: Shop.hand_over: no courier 'offshore' comes here",
        "=> sold for 26.00: committed, and the receipt is in the bucket",
        "database and bucket agree: 4 orders, 4 receipts",
    ]
    assert result.returncode == 0
    assert list(temporary.iterdir()) == []


@every_backend
def test_order_receipt_shows_what_a_scope_does(backend: str, temporary: Path) -> None:
    """The trace of an order tells what was opened, and what was closed, in reverse order, for which outcome."""
    lines = without_times(run("order_receipt.py", temporary, "--backend", backend).stdout)

    first = lines.index("order 1004: 500 x kettle for alan")
    assert lines[first + 1 : first + 8] == [
        "opened, first to last closed, last to first",
        "1 connection 6 delete receipt",
        "2 working directory 5 commit not due",
        "3 hand over 4 roll back",
        "4 roll back 3 hand over not due",
        "5 commit 2 working directory",
        "6 delete receipt 1 connection",
    ]
    assert "4 roll back 3 hand over FAILED" in lines


def test_order_receipt_keeps_its_work_and_refuses_to_sell_twice(tmp_path: Path, temporary: Path) -> None:
    """With `--work`, what was made stays; a second run sells nothing again, and all still agrees."""
    work = tmp_path / "work"
    receipts = ["1001.txt", "1002.txt", "1005.txt", "1006.txt"]
    assert run("order_receipt.py", temporary, "--work", str(work)).returncode == 0
    assert sorted(path.name for path in (work / "bucket").iterdir()) == receipts

    again = run("order_receipt.py", temporary, "--work", str(work))

    assert again.stdout.count("UNIQUE constraint failed") == len(receipts)
    assert again.returncode == 0
    assert sorted(path.name for path in (work / "bucket").iterdir()) == receipts


def test_order_receipt_fails_when_a_receipt_is_missing(tmp_path: Path, temporary: Path) -> None:
    """Where a receipt was taken out of the bucket, the check at the end says which, and the exit code is 1."""
    work = tmp_path / "work"
    run("order_receipt.py", temporary, "--work", str(work))
    (work / "bucket" / "1002.txt").unlink()

    again = run("order_receipt.py", temporary, "--work", str(work))

    assert again.stdout.endswith("1002.txt: sold, but there is no receipt\ndatabase and bucket DISAGREE\n")
    assert again.returncode == 1


def test_disagreements_are_found(tmp_path: Path) -> None:
    """The check of `order_receipt` finds whatever is missing, too much, different, or left behind."""
    example = load_example("order_receipt.py")
    shop = example.Shop(tmp_path)
    assert example.disagreements(shop) == []

    db = sqlite3.connect(shop.database)
    with db:
        db.execute("INSERT INTO orders VALUES ('1', 'ada', 100), ('2', 'ada', 200)")
    db.close()
    (shop.bucket / "2.txt").write_text("total 201 cents\n")
    (shop.bucket / "3.txt").write_text("total 300 cents\n")
    (shop.desks / "desk").mkdir()

    assert example.disagreements(shop) == [
        "1.txt: sold, but there is no receipt",
        "3.txt: a receipt, but nothing was sold",
        "2.txt: the receipt tells another price",
        "desk: a working directory left behind",
    ]


async def test_a_commit_that_fails_leaves_no_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the body succeeds and the commit does not, the receipt goes too: database and bucket agree."""
    example = load_example("order_receipt.py")
    shop = example.Shop(tmp_path)
    reader = sqlite3.connect(shop.database)
    shop.connect = lambda: sqlite3.connect(shop.database, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        rows = reader.execute("SELECT item FROM stock")
        rows.fetchone()  # a reader that is not done: it may still see what it began to read
        await example.run_order(shop, example.Order("1", "ada", "cup", 1, "north"))
    finally:
        reader.close()

    assert "TO BE SEEN TO: Shop.commit: database is locked" in capsys.readouterr().out
    assert list(shop.bucket.iterdir()) == []
    assert example.disagreements(shop) == []


@every_backend
def test_tenant_export_runs(backend: str, temporary: Path) -> None:
    """The damaged tenant fails, the others arrive, and nothing is left."""
    result = run("tenant_export.py", temporary, "--backend", backend)

    *tenants, _, stored, left = without_times(result.stdout)
    assert result.stderr == ""
    assert sorted(tenants) == [
        "acme 20,003 rows stored",
        "globex 5,003 rows stored",
        "initech FAILED: database disk image is malformed (DatabaseError)",
        "umbrella 1,003 rows stored",
    ]
    assert [stored, left] == ["stored: acme.zip, globex.zip, umbrella.zip", "nothing left behind"]
    assert result.returncode == 0
    assert list(temporary.iterdir()) == []


def test_what_an_export_leaves_behind_is_found(tmp_path: Path) -> None:
    """The check of `tenant_export` finds a directory, an open connection and half an archive."""
    example = load_example("tenant_export.py")
    folders = example.Folders(tmp_path)
    example.make_database(folders.databases / "acme.sqlite", 10)
    (folders.scratch / "forgotten").mkdir()
    (folders.store / "globex.zip").write_bytes(b"half")
    db = example.connect(folders.databases / "acme.sqlite")
    try:
        db.execute("SELECT * FROM customers").fetchall()
        found = example.left_behind(folders)
    finally:
        db.close()

    assert found == [
        "directory forgotten",
        "open connection acme.sqlite-wal",
        "half an archive globex.zip",
        "no archive of acme",
        "no archive of globex",
        "no archive of umbrella",
    ]


@every_backend
def test_webhook_runs(backend: str, temporary: Path) -> None:
    """Done, refused, failed or cancelled: locks, tokens and token files are given back."""
    result = run("webhook.py", temporary, "--backend", backend)

    *webhooks, _, issued, left = without_times(result.stdout)
    assert result.stderr == ""
    assert sorted(webhooks) == [
        "wh-1 acme done",
        "wh-2 acme done",
        "wh-3 globex failed: CalledProcessError",
        "wh-4 initech refused: bad payload: Unterminated string starting at: line 1 column 18 (char 17)",
        "wh-5 umbrella cancelled after",
    ]
    assert [issued, left] == [
        "5 tokens issued, 0 of them still live",
        "no lock, no token and no token file is left",
    ]
    assert result.returncode == 0
    assert list(temporary.iterdir()) == []


async def test_what_a_webhook_leaves_behind_is_found(tmp_path: Path) -> None:
    """The check of `webhook` finds a lock, a token file and a token that was not revoked."""
    example = load_example("webhook.py")
    desk = example.Desk(tmp_path)
    webhook = example.Webhook("wh-1", "acme", "{}")
    await desk.lock("acme")
    path = desk.write_token(webhook, await desk.issue(webhook))

    assert example.left_behind(desk) == ["lock of acme", "token file of wh-1", "live token of wh-1"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
