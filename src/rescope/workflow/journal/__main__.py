"""The journal at the command line: what is open, and closing what was left behind.

    python -m rescope.workflow.journal pending --store sqlite:///jobs.db
    python -m rescope.workflow.journal recover --store sqlite:///jobs.db --import myapp.cleanups

On a terminal it draws with `rich`, and shows progress; else it prints plain text. It ends with 0 where nothing that it
found is left, with 1 where `recover` had to leave something, and with 2 where it could not work.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio

from rescope.exceptions import reason
from rescope.workflow.journal import RecoveryReport, pending, recover
from rescope.workflow.journal._report import as_table, columns, rows
from rescope.workflow.store import StoreError
from rescope.workflow.stores.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from rescope.workflow.journal import PendingCleanup

__all__ = ["main"]

_HINT = "for tables and progress on a terminal: pip install 'rescope[cli]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; give the exit code."""
    options = _parser().parse_args(argv)
    try:
        for module in options.modules:
            _import(module)
        return anyio.run(_pending if options.command == "pending" else _recover, options)
    except (StoreError, ImportError, ValueError, OSError, SystemExit) as exc:
        lines = [f"{options.command}: {reason(exc)}", *getattr(exc, "__notes__", ())]
        print(*lines, sep="\n", file=sys.stderr)  # noqa: T201 (this is what it is for)
    except Exception:
        traceback.print_exc()
    return 2


def _import(module: str) -> None:
    """Import what has cleanups. Whatever that raises, it is no success: a script may end by an exit."""
    try:
        import_module(module)
    except (Exception, SystemExit) as exc:
        msg = f"--import {module}: {reason(exc)}"
        raise ImportError(msg) from exc


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rescope.workflow.journal", description=_summary())
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("pending", help="list what is open")
    listing.add_argument("--tokens", action="store_true", help="show the tokens too: nobody else should look")
    recovering = commands.add_parser("recover", help="close what was left behind: one pass")
    recovering.add_argument("--grace", type=float, default=60.0, metavar="SECONDS", help="for the whole pass (60)")
    recovering.add_argument("--limit", type=int, default=10, metavar="N", help="scopes at once (10)")
    for command in commands.choices.values():
        command.add_argument("--store", required=True, metavar="URL", help="as sqlite:///jobs.db, postgresql://…")
        command.add_argument(
            "--import", action="append", default=[], dest="modules", metavar="MODULE", help="one with your cleanups"
        )
    return parser


def _summary() -> str:
    return str(__doc__).partition("\n")[0]


async def _pending(options: argparse.Namespace) -> int:
    async with open_store(options.store) as store:
        found = await pending(store)
    _print(
        rows(found, tokens=options.tokens),
        f"{len(found)} open, {sum(not one.live for one in found)} of them left behind",
    )
    return 0


async def _recover(options: argparse.Namespace) -> int:
    async with open_store(options.store) as store:
        with _progress() as on_progress:
            report = await recover(store, grace=options.grace, limit=options.limit, on_progress=on_progress)
    _print(report.rows(), report.summary)
    _explain(report)
    return 0 if report.clean else 1


def _explain(report: RecoveryReport) -> None:
    names = ", ".join(sorted({one.cleanup for one in report.unknown if one.cleanup}))
    if names:
        print(f"not registered here: {names}; name their modules with --import", file=sys.stderr)  # noqa: T201


def _print(cells: list[tuple[str, ...]], summary: str) -> None:
    console = _console()
    if console is None:
        print(f"{as_table(cells)}\n{summary}" if cells else summary)  # noqa: T201
        return
    from rich.table import Table

    if cells:
        table = Table(*columns(cells))
        for line in cells:
            table.add_row(*map(_plain, line))
        console.print(table)
    console.print(summary, markup=False, highlight=False)


def _plain(cell: str) -> Any:
    """Let what stands in a cell be text, whatever brackets it holds."""
    from rich.text import Text

    return Text(cell)


@contextmanager
def _progress() -> Generator[Callable[[PendingCleanup], object] | None]:
    """Show on a terminal what is being closed."""
    console = _console()
    if console is None:
        yield None
        return
    with console.status("looking for what was left behind") as status:
        tries = 0

        def show(one: PendingCleanup) -> None:
            nonlocal tries
            tries += 1
            status.update(_plain(f"{tries} tried, the last one: {one.cleanup} of {one.owner}"))

        yield show


def _console() -> Any:
    """Give a console of rich's on a terminal; without one, or without rich, nothing."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        print(_HINT, file=sys.stderr)  # noqa: T201
        return None
    return Console()


if __name__ == "__main__":
    sys.exit(main())
