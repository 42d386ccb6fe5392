"""Try every peer, and print the tables of the comparison.

python -m pip install . -r docs/comparison/requirements.txt
python docs/comparison/try_all.py            # all tables
python docs/comparison/try_all.py hangs      # one column
python docs/comparison/try_all.py --check    # are the tables of the page those that come out now
python docs/comparison/try_all.py --write    # put them into the page
"""
# ruff: noqa: INP001, T201

from __future__ import annotations

import asyncio
import inspect
import logging
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import questions
from containers import DependencyInjector, Dishka, Svcs, ThatDepends
from peers import Adefer, ExitStack, Finally, Rescope, ShieldedFinally

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Peer

PEERS = [
    Rescope(),
    ExitStack(),
    Finally(),
    ShieldedFinally(),
    Adefer(),
    Svcs(),
    Dishka(),
    ThatDepends(),
    DependencyInjector(),
]

PAGE = Path(__file__).parents[1] / "comparison.md"

TABLES = {
    "Cancellation": {
        "`task.cancel()` in the first of three closes: how many end": questions.cancelled,
        "an anyio scope cancelled in the body: how many of three end": questions.cancelled_by_scope,
        "the first of three raises what is no `Exception`: how many others run": questions.interrupted,
    },
    "Failures": {
        "two closers fail: what is raised": questions.two_fail,
        "the body and a closer fail: what is raised": questions.body_fails_too,
        "closers know that the body failed": questions.told,
    },
    "Time": {
        "the first of three hangs": questions.hangs,
        "several close at once": questions.at_once,
        "several open at once": questions.opened_at_once,
    },
    "Tasks": {
        "a client with a task group is closed from another task": questions.another_task,
        "two tasks close at the same time": questions.twice,
        "runs on trio": questions.on_trio,
    },
    "Owning": {
        "one closed early, by itself": questions.early,
        "all handed over to another owner": questions.hand_over,
        "forgotten while open: what is told": questions.dropped,
    },
    "Making": {
        "makes what is asked for, and what that needs": questions.made,
        "a fake in the place of what is needed": questions.faked,
    },
}


def ask(question: Callable[[Peer], object], peer: Peer) -> str:
    """Try one cell."""
    if not inspect.iscoroutinefunction(question):
        return str(question(peer))
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)  # what a peer leaves behind tells of itself at the end
        return str(runner.run(question(peer)))


def table(columns: dict[str, Callable[[Peer], object]]) -> str:
    """Try one table."""
    rows = [["", *columns]]
    rows += [[peer.name, *[ask(question, peer) for question in columns.values()]] for peer in PEERS]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def put(page: str, name: str, made: str) -> str:
    """Put what was made into its place in the page."""
    before, rest = page.split(f"<!-- {name}, by try_all.py -->\n")
    after = rest.split("<!-- end -->", 1)[1]
    return f"{before}<!-- {name}, by try_all.py -->\n{made}\n<!-- end -->{after}"


def main(asked: list[str]) -> int:
    """Try what is asked for."""
    logging.getLogger().addHandler(logging.NullHandler())
    write, check = "--write" in asked, "--check" in asked
    names = {word for word in asked if not word.startswith("-")}
    page = written = PAGE.read_text(encoding="utf-8") if write or check else ""
    versions = ", ".join(
        [f"CPython {platform.python_version()}", *[peer.version() for peer in PEERS[1:] if peer.package]]
    )
    print(f"{versions}\n")
    if written and not names:
        written = put(written, "Versions", versions)
    for name, columns in TABLES.items():
        chosen = {title: column for title, column in columns.items() if not names or column.__name__ in names}
        if not chosen:
            continue
        made = table(chosen)
        print(f"{name}\n\n{made}\n")
        if written:
            written = put(written, name, made)
    if write:
        PAGE.write_text(written, encoding="utf-8")
    return int(check and written != page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
