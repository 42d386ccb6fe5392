"""What a recoverer tells, and how the journal looks to a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rescope.workflow.journal._records import PendingCleanup

__all__ = ["COLUMNS", "RecoveryReport", "as_table", "columns", "rows"]

COLUMNS: Final = ("owner", "scope", "place", "cleanup", "since (UTC)", "state")


@final
@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What came of one pass of `recover`. `str` draws it as a table.

    `closed`: cleanups that have run to their end, in that order; their records are gone. All the others are kept:
    `failed` were tried in vain; for `unknown` no cleanup of that name is registered here, or the record can't be read;
    `later` are those that this pass has not come to: a retry is not due yet, the `grace` was over, or their owner or
    another recoverer has taken them. `busy`: somebody else is recovering, so this pass did nothing, or went no further.
    """

    closed: tuple[PendingCleanup, ...] = ()
    failed: tuple[PendingCleanup, ...] = ()
    unknown: tuple[PendingCleanup, ...] = ()
    later: tuple[PendingCleanup, ...] = ()
    busy: bool = False

    @property
    def clean(self) -> bool:
        """Whether nothing that this pass found is left."""
        return not (self.failed or self.unknown or self.later or self.busy)

    @property
    def summary(self) -> str:
        """One line of it."""
        counts = [f"{len(self.closed)} closed"]
        counts += [f"{len(kept)} {what}" for what, kept in self._kept() if kept]
        busy = "; somebody else is recovering" if self.busy else ""
        return ", ".join(counts) + busy

    def rows(self) -> list[tuple[str, ...]]:
        """Give the cells of its table, below `COLUMNS`."""
        closed = [(*_who(one), "closed") for one in self.closed]
        return closed + [(*_who(one), _why(one, what)) for what, kept in self._kept() for one in kept]

    def _kept(self) -> Iterable[tuple[str, tuple[PendingCleanup, ...]]]:
        return ("failed", self.failed), ("unknown", self.unknown), ("left for later", self.later)

    def __str__(self) -> str:
        table = self.rows()
        return f"{as_table(table)}\n{self.summary}" if table else self.summary


def rows(pending: Iterable[PendingCleanup], *, tokens: bool = False) -> list[tuple[str, ...]]:
    """Give the cells of a table of what is open. Tokens may hold what nobody should see, so they are asked for."""
    return [
        (*_who(one), _why(one, "held by a live owner" if one.live else "left behind"), *_tokens(one, tokens))
        for one in pending
    ]


def _tokens(one: PendingCleanup, asked: bool) -> tuple[str, ...]:  # noqa: FBT001 (as it was given)
    return (json.dumps(one.token),) if asked else ()


def columns(cells: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Give the heads of these cells."""
    return (*COLUMNS, "token") if cells and len(cells[0]) > len(COLUMNS) else COLUMNS


def as_table(cells: Sequence[tuple[str, ...]]) -> str:
    """Draw a table in plain text."""
    lines = [columns(cells), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn)


def _who(one: PendingCleanup) -> tuple[str, ...]:
    since = f"{datetime.fromtimestamp(one.since, UTC):%Y-%m-%d %H:%M:%S}"
    return one.owner, f"{one.life[-4:]}/{one.scope.lstrip('0')}", _numbers(one.place), _shown(one.cleanup) or "?", since


def _numbers(place: str) -> str:
    return ".".join(number.lstrip("0") for number in place.split("/"))


def _shown(text: str) -> str:
    """Let it be one line that any terminal can show: who wrote it isn't known."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def _why(one: PendingCleanup, what: str) -> str:
    tries = f", {one.attempts} tries" if one.attempts > 1 else ", 1 try" if one.attempts else ""
    error = f": {_shown(one.error)}" if one.error else ""
    due = f"; next try {datetime.fromtimestamp(one.next_try, UTC):%H:%M:%S}" if one.next_try else ""
    return f"{what}{tries}{error}{due}"
