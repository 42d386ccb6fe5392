"""The timeline as text: a tree on the left, a bar for each span, and how long it took on the right."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple

from rescope._timeline.axis import duration, ticks
from rescope._timeline.columns import clean, fit, squeeze, width_of, wrapped
from rescope._timeline.layout import MARKS, WORDS, Layout, Row, marks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rescope._timeline.spans import Span
    from rescope.events import ScopeEvent

EIGHTHS = 8
LEAST_CHART = 24
"""Columns. A narrower one makes room by giving up figures."""
LEAST_NAMES = 16
GAP = 2
TINY = 1e-6
"""Columns by which a float may be off."""


class Ink(NamedTuple):
    """The characters of a drawing."""

    glyphs: dict[str, str]
    blocks: str
    """From one to eight eighths, from the left."""
    right: tuple[str, str]
    """One or two eighths, and about a half, from the right."""
    halves: tuple[str, str]
    """The left and the right half of a scope's line."""
    tree: tuple[str, str, str]
    """One that has others below it, the last one, and a line that goes on."""
    axis: tuple[str, str]
    more: str

    def clean(self, text: str) -> str:
        """Make text harmless, and such as can be written with this ink."""
        return clean(text) if self is PRETTY else _ascii(clean(text))


PRETTY = Ink(
    glyphs={
        "acquiring": "─",
        "alive": "█",
        "dead": "┈",
        "closing": "▒",
        "scope": "━",
        "scope closing": "╍",
        "failed": "✗",
        "timed_out": "◔",
        "forced": "↯",
        "died": "†",
        "open": "▸",
        "handed over": "▹",
        "before": "◂",
    },
    blocks="▏▎▍▌▋▊▉█",
    right=("▕", "▐"),
    halves=("╸", "╺"),
    tree=("├ ", "└ ", "│ "),
    axis=("┼", "─"),
    more="…",
)
PLAIN = Ink(
    glyphs={
        "acquiring": "-",
        "alive": "#",
        "dead": ".",
        "closing": ":",
        "scope": "=",
        "scope closing": "~",
        "failed": "x",
        "timed_out": "t",
        "forced": "!",
        "died": "+",
        "open": ">",
        "handed over": ")",
        "before": "<",
    },
    blocks="########",
    right=("#", "#"),
    halves=("=", "="),
    tree=("|-", "`-", "| "),
    axis=("+", "-"),
    more="..",
)


def columns() -> int:
    """Say how wide the terminal is, 80 where there is none."""
    return shutil.get_terminal_size().columns


def needs_ascii() -> bool:
    """Tell whether the standard output can't show the characters of a drawing."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "".join([*PRETTY.glyphs.values(), *PRETTY.blocks, *PRETTY.tree]).encode(encoding)
    except UnicodeError:
        return True
    return False


def draw(events: Sequence[ScopeEvent], dropped: int, width: int, *, plain: bool) -> str:
    """Draw events as lines of at most `width` columns; `plain` uses ASCII alone."""
    layout = Layout(events, dropped)
    ink = PLAIN if plain else PRETTY
    lines = _Page(layout, width, ink).lines() if layout.rows else ["nothing has happened yet"]
    if layout.missing is not None:
        lines += wrapped([layout.missing], width)
    if plain:
        lines = [_ascii(line) for line in lines]
    return "\n".join(fit(line.rstrip(), width, ink.more) for line in lines)


class _Page:
    """How the columns are shared out: names, a gap that holds `◂`, the chart, a place for `▸`, figures."""

    def __init__(self, layout: Layout, width: int, ink: Ink) -> None:
        self.layout, self.width, self.ink = layout, width, ink
        widest = max(width_of(self._tree(row)) + width_of(ink.clean(row.span.name)) for row in layout.rows)
        self.names = min(widest, max(width * 3 // 10, LEAST_NAMES))
        self.figures = [self._column(*column) for column in [("acquire", 0), ("alive", 1), ("close", 2)]]
        while self.figures and self._room() < LEAST_CHART:
            self.figures.pop(0)
        self.chart = self._room() if self._room() >= EIGHTHS else 0
        if not self.chart:
            self.names = width
        self.used: set[str] = set()

    def lines(self) -> list[str]:
        """Draw it all."""
        layout = self.layout
        head = [self.ink.clean(layout.title), *([layout.started] if layout.started else []), *layout.summary]
        rows = [line for number, row in enumerate(layout.rows) for line in self._lines(number, row)]
        legend = [f"{self.ink.glyphs[kind]} {words}" for kind, words in WORDS.items() if kind in self.used]
        return [
            *wrapped(head, self.width, ", "),
            *self._axis(),
            *rows,
            *wrapped(legend, self.width, "  "),
        ]

    def _lines(self, number: int, row: Row) -> list[str]:
        tree, name = self._tree(row), self.ink.clean(row.span.name)
        line = tree + squeeze(name, max(1, self.names - width_of(tree)), self.ink.more)
        if self.chart:
            before = self._glyph("before") if row.span.unknown_since else " "
            line = fit(line, self.names, self.ink.more)
            line += " " * (self.names - width_of(line) + 1) + before
            line += self._bar(row.span) + "".join(column[number + 1] for column in self.figures)
        return [line, *self._notes(row)]

    def _notes(self, row: Row) -> list[str]:
        """Write what went wrong below the row, where the tree leaves room."""
        below = self._branches(row.follows, more=bool(row.span.children))
        lines: list[str] = []
        for kinds, note in row.span.notes():
            words = wrapped(self.ink.clean(note).split(), self.width - width_of(below) - 2)
            lines.append(f"{below}{self._glyph(kinds[0])} {words[0]}")
            lines += [f"{below}  {rest}" for rest in words[1:]]
        return lines

    def _tree(self, row: Row) -> str:
        """Draw the lines that lead to a row."""
        if not row.follows:
            return ""
        fork, last, _ = self.ink.tree
        return self._branches(row.follows[:-1]) + (fork if row.follows[-1] else last)

    def _branches(self, follows: tuple[bool, ...], *, more: bool = False) -> str:
        """Draw the lines of the tree that pass a row by; of very many, those next to it."""
        line = self.ink.tree[2]
        most = max(1, self.width // 10)
        drawn = "".join(line if go_on else "  " for go_on in follows[-most:])
        if len(follows) > most:
            drawn = self.ink.more.ljust(2) + drawn[2:]
        return drawn + (line if more else "")

    def _column(self, title: str, place: int) -> list[str]:
        """Write a column of figures, the title first."""
        told = [row.span.durations(self.layout.last)[place] for row in self.layout.rows]
        if not any(told):
            return [""] * (len(told) + 1)
        words = [title, *("" if seconds is None else duration(seconds) for seconds in told)]
        wide = max(map(len, words)) + GAP
        return [word.rjust(wide) for word in words]

    def _room(self) -> int:
        return self.width - self.names - 3 - sum(len(column[0]) for column in self.figures)

    def _axis(self) -> list[str]:
        if not self.chart:
            return []
        found = ticks(self.layout.seconds, self.chart // 11)
        places = [min(int(mark / self.layout.seconds * self.chart + TINY), self.chart - 1) for mark, _ in found]
        cross, along = self.ink.axis
        rule = [along] * self.chart
        labels = ""
        for place, (_, label) in zip(places, found, strict=True):
            rule[place] = cross
            start = min(place, self.chart + 1 - len(label))
            if start > len(labels) or not labels:
                labels = labels.ljust(start) + label
        margin = " " * (self.names + 2)
        titles = "".join(column[0] for column in self.figures)
        return [margin + labels.ljust(self.chart + 1) + titles, margin + "".join(rule)]

    def _bar(self, span: Span) -> str:
        """Draw the line of a span: its stages, and marks upon them."""
        slots = self._slots(span)
        cells = [self._cell(slots[place : place + EIGHTHS], span) for place in range(0, len(slots), EIGHTHS)]
        cells.append(" ")
        if span.state == "open":
            cells[-1] = self._glyph("open")
        for kind, time in marks(span):
            self._mark(cells, kind, time)
        if span.left is not None and span.closed is None:
            self._mark(cells, "handed over", span.left)
        return "".join(cells)

    def _slots(self, span: Span) -> list[str]:
        """Say for every eighth of a column which stage it shows. What lived at all can be seen."""
        size = self.chart * EIGHTHS
        slots = [""] * size
        for stage in span.stages(self.layout.first, self.layout.last):
            start = min(round(self.layout.at(stage.start) * size), size - 1)
            end = max(round(self.layout.at(stage.end) * size), start + (stage.kind == "alive"))
            slots[start:end] = [stage.kind] * (end - start)
        return slots

    def _cell(self, slots: list[str], span: Span) -> str:
        inked = [kind for kind in slots if kind]
        if not inked:
            return " "
        kind = max(reversed(inked), key=inked.count)
        if span.is_scope:
            kind = "scope closing" if kind == "closing" else "scope"
        glyph = self._glyph(kind)
        if kind == "alive" and slots[0]:
            return self.ink.blocks[len(inked) - 1]
        if kind == "alive" and slots[-1]:
            short, half = self.ink.right
            return short if len(inked) <= 2 else half if len(inked) < 6 else glyph  # noqa: PLR2004 (of eight eighths)
        if kind == "scope" and len(inked) <= EIGHTHS // 2 and (slots[0] or slots[-1]):
            return self.ink.halves[0 if slots[0] else 1]
        return glyph

    def _glyph(self, kind: str) -> str:
        self.used.add(kind)
        return self.ink.glyphs[kind]

    def _mark(self, cells: list[str], kind: str, time: float) -> None:
        """Put a mark where it happened, or at the next place that has none."""
        place = min(int(self.layout.at(time) * self.chart), self.chart)
        taken = [self.ink.glyphs[kind] for kind in MARKS]
        ahead = [*range(place, len(cells)), *range(place - 1, -1, -1)]
        free = next((at for at in ahead if cells[at] not in taken), place)
        cells[free] = self._glyph(kind)


def _ascii(text: str) -> str:
    return text.replace("µ", "u").encode("ascii", "backslashreplace").decode()
