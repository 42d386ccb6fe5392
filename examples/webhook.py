"""Webhooks, each processed under a lock and with credentials that live no longer than it does.

Every webhook gets a token: on record in a registry, and in a file that only we can read, for the worker process that
does the work. A lock file keeps two webhooks of one account apart. All three are gone in the end, however it went:
done, a bad payload (the body returns an `Err`), a worker that fails (it raises), or one that takes too long (a timeout
cancels it). The program ends by checking that nothing is left, and its exit code is 1 if anything is.

    python examples/webhook.py
    python examples/webhook.py --backend trio
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import anyio
from anyio.to_thread import run_sync as in_thread

from rescope import Err, Ok, Result, Scope, scoped

TIMEOUT = 2.0

# A process of its own, as a deployment script would be: it reads the token, takes its time, and may fail.
WORKER = """
import pathlib, sys, time
token, seconds, exit_code = pathlib.Path(sys.argv[1]).read_text(), float(sys.argv[2]), int(sys.argv[3])
time.sleep(seconds)
sys.exit(exit_code if token else "no token")
"""


@dataclass(frozen=True)
class Webhook:
    """What came in."""

    id: str
    account: str
    payload: str


WEBHOOKS = [
    Webhook("wh-1", "acme", '{"seconds": 0.1, "exit_code": 0}'),
    Webhook("wh-2", "acme", '{"seconds": 0.1, "exit_code": 0}'),
    Webhook("wh-3", "globex", '{"seconds": 0.1, "exit_code": 3}'),
    Webhook("wh-4", "initech", '{"seconds": 0.1, "exit'),
    Webhook("wh-5", "umbrella", '{"seconds": 60, "exit_code": 0}'),
]


class Desk:
    """The real parts: a registry of tokens, a folder of token files, a folder of lock files."""

    def __init__(self, root: Path) -> None:
        self.registry = root / "registry.sqlite"
        self.tokens = root / "tokens"
        self.locks = root / "locks"
        self.tokens.mkdir()
        self.locks.mkdir()
        self.execute("CREATE TABLE tokens (token TEXT PRIMARY KEY, webhook TEXT, live INTEGER)")

    def execute(self, sql: str, *args: object) -> list[tuple[object, ...]]:
        db = sqlite3.connect(self.registry, timeout=30)
        try:
            with db:
                return db.execute(sql, args).fetchall()
        finally:
            db.close()

    async def issue(self, webhook: Webhook) -> str:
        token = secrets.token_urlsafe()
        await in_thread(self.execute, "INSERT INTO tokens VALUES (?, ?, 1)", token, webhook.id)
        return token

    async def revoke(self, token: str) -> None:
        await in_thread(self.execute, "UPDATE tokens SET live = 0 WHERE token = ?", token)

    def write_token(self, webhook: Webhook, token: str) -> Path:
        path = self.tokens / webhook.id
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(token)
        return path

    async def lock(self, account: str) -> Path:
        path = self.locks / account
        while True:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                await anyio.sleep(0.01)  # held by another, maybe in another process: look again soon
            else:
                return path


@scoped
async def process(scope: Scope, desk: Desk, webhook: Webhook) -> Result[str, str]:
    """Process one webhook. What it takes, the scope gives back, however it ends."""
    await scope.acquire(lambda: desk.lock(webhook.account), Path.unlink, name="lock")
    # `shield`: a timeout that strikes while the token is issued waits until we hold it, and can revoke it.
    token = await scope.acquire(lambda: desk.issue(webhook), desk.revoke, name="token", shield=True)
    path = await scope.acquire(lambda: desk.write_token(webhook, token), Path.unlink, name="token file")

    try:
        job = json.loads(webhook.payload)
    except json.JSONDecodeError as error:
        return Err(f"bad payload: {error}")
    arguments = [str(path), str(job["seconds"]), str(job["exit_code"])]
    await anyio.run_process([sys.executable, "-c", WORKER, *arguments])
    return Ok("done")


def left_behind(desk: Desk) -> list[str]:
    """Say what is left that should have been given back."""
    live = desk.execute("SELECT webhook FROM tokens WHERE live ORDER BY webhook")
    return [
        *(f"lock of {path.name}" for path in desk.locks.iterdir()),
        *(f"token file of {path.name}" for path in desk.tokens.iterdir()),
        *(f"live token of {webhook}" for (webhook,) in live),
    ]


async def report(desk: Desk, webhook: Webhook) -> None:
    """Process one webhook in time, and say how that went."""
    started = perf_counter()
    outcome = f"cancelled after {TIMEOUT:g} s"
    with anyio.move_on_after(TIMEOUT):
        try:
            match await process(desk, webhook):
                case Ok(text):
                    outcome = text
                case Err(error):
                    outcome = f"refused: {error}"
        except Exception as error:
            outcome = f"failed: {type(error).__name__}"
    print(f"{webhook.id}  {webhook.account:<10}{perf_counter() - started:>6.2f} s  {outcome}")


async def main() -> int:
    """Process all webhooks at once, and check."""
    with tempfile.TemporaryDirectory() as root:
        desk = Desk(Path(root))
        async with anyio.create_task_group() as tasks:
            for webhook in WEBHOOKS:
                tasks.start_soon(report, desk, webhook)

        found = left_behind(desk)
        [(issued, live)] = desk.execute("SELECT count(*), sum(live) FROM tokens")
        print(f"\n{issued} tokens issued, {live} of them still live")
        print("LEFT BEHIND: " + ", ".join(found) if found else "no lock, no token and no token file is left")
        return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Process webhooks under a lock, with temporary credentials.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
