"""The timeline as SVG: one picture that needs nothing besides itself, no script and no font.

As a file of its own it has a ground of its own and follows the reader's light or dark mode: `svg:root` is true there
alone. Written into a page it has no ground, and the colours of the text around it; what is coloured besides can be
seen on white and on black.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from rescope._timeline.axis import duration, ticks
from rescope._timeline.columns import clean, fit, squeeze, width_of, wrapped
from rescope._timeline.layout import WORDS, Layout, Row, marks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rescope._timeline.spans import Span
    from rescope.events import ScopeEvent

NARROWEST = 320
"""Pixels."""

MARGIN = 16
ROW = 24
NOTE = 18
BAR = 12
LINE = 4
"""How high a scope is drawn, and what is not alive yet or any more."""
INDENT = 16
FIGURE = 68
"""How wide a column of figures is."""
LETTER = 7.8
"""How wide a letter is at most, in a text of many. Wide ones count twice."""
SMALL = 6.4
"""The same for what is written smaller."""
TICK = 84
"""How far apart ticks are at least."""
LONG = 30
"""With more rows, the axis stands below them too."""
THINNEST = 1.5
"""What is thinner can't be seen; what lived is never thinner."""
APART = 13
"""Marks are that far apart at least."""

STYLE = """
.rescope-timeline text{fill:currentColor}
.rescope-timeline .dim{fill-opacity:.68}
.rescope-timeline .grid{stroke:currentColor;stroke-opacity:.14}
.rescope-timeline .tree{stroke:currentColor;stroke-opacity:.35;fill:none}
.rescope-timeline .row:hover .over{fill-opacity:.06}
.rescope-timeline .over{fill:currentColor;fill-opacity:0}
.rescope-timeline .acquiring{fill:#8a929c}
.rescope-timeline .dead{stroke:#8a929c;stroke-width:3;stroke-dasharray:2 3}
.rescope-timeline .alive{fill:#3a76bd}
.rescope-timeline .closing{fill:#2e8058}
.rescope-timeline .late{fill:#a5640f}
.rescope-timeline .bad{fill:#cf3b3b}
.rescope-timeline .sign{stroke:#fff;stroke-width:1.6;fill:none;stroke-linecap:round;stroke-linejoin:round}
.rescope-timeline .edge{stroke:currentColor;stroke-width:1.6;fill:none;stroke-linecap:round;stroke-linejoin:round}
svg.rescope-timeline:root{color:#1f2328;background:#fff}
@media (prefers-color-scheme:dark){
svg.rescope-timeline:root{color:#e6edf3;background:#0d1117}
svg.rescope-timeline:root .alive{fill:#4c8fdc}
svg.rescope-timeline:root .closing{fill:#3fa372}
svg.rescope-timeline:root .late{fill:#c98a2b}
svg.rescope-timeline:root .bad{fill:#e5534b}
}
""".replace("\n", "")

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

SIGNS = {
    "failed": ("bad", "M-2.5,-2.5L2.5,2.5M-2.5,2.5L2.5,-2.5"),
    "timed_out": ("late", "M0,-3.4V0.4L2.4,1.8"),
    "forced": ("late", "M0.9,-3.8L-1.9,0.4H1.9L-0.9,3.8"),
    "died": ("bad", "M0,-3.6V3.6M-2.3,-1.3H2.3"),
}
"""What is drawn into the disc of a mark, and the disc's colour."""
CHEVRON = {"open": "M-2,-4L2.5,0L-2,4", "handed over": "M-2,-4L2.5,0L-2,4Z", "before": "M2,-4L-2.5,0L2,4"}


def draw(events: Sequence[ScopeEvent], dropped: int, width: int) -> str:
    """Draw events as a picture of that many pixels; its height comes from how many rows there are."""
    return _Picture(Layout(events, dropped), width).svg()


class _Picture:
    """A picture in the making: from left to right the names, the chart, and figures where there is room."""

    def __init__(self, layout: Layout, width: int) -> None:
        self.layout, self.width = layout, width
        self.parts: list[str] = []
        self.used: set[str] = set()
        self.y = 0.0
        widest = max((self._indent(row) + LETTER * width_of(clean(row.span.name)) for row in layout.rows), default=0)
        self.left = MARGIN + min(max(widest + 12, 80), 0.34 * width)
        told = [row.span.durations(layout.last) for row in layout.rows]
        columns = [("acquire", 0), ("alive", 1), ("close", 2)]
        self.figures = [(title, place) for title, place in columns if any(seconds[place] for seconds in told)]
        while self.figures and width - self.left < FIGURE * len(self.figures) + width * 0.4:
            self.figures.pop(0)
        self.right = width - MARGIN - FIGURE * len(self.figures) - 10

    def svg(self) -> str:
        """Give the whole picture."""
        layout = self.layout
        words = ", ".join(layout.summary) if layout.rows else "nothing has happened yet"
        self._head(words)
        if layout.rows:
            self._chart()
        if layout.missing is not None:
            self.y += NOTE
            self._text(MARGIN, self.y, layout.missing, "dim", size=12)
        height = self.y + MARGIN
        title = f"Timeline of {layout.title}" if layout.rows else "Timeline"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="rescope-timeline" role="img" '
            f'width="{self.width}" height="{height:g}" viewBox="0 0 {self.width} {height:g}" '
            f'style="max-width:100%;height:auto" font-family="{SANS}" aria-label="{escape(f"{title}: {words}")}">\n'
            f"<title>{escape(title)}</title>\n<desc>{escape(self._description(words))}</desc>\n"
            f"<style>{STYLE}</style>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )

    def _description(self, words: str) -> str:
        notes = [f"{clean(row.span.name)}: {note}" for row in self.layout.rows for _, note in row.span.notes()]
        return ". ".join([words, *notes])

    def _head(self, words: str) -> None:
        self.y = MARGIN + 8
        if not self.layout.rows:
            self._text(MARGIN, self.y, words, "dim")
            return
        room = self.width - 2 * MARGIN
        self._text(MARGIN, self.y, fit(self.layout.title, int(room / 8.5), "…"), size=15, bold=True)
        told = [*self.layout.summary, *([self.layout.started] if self.layout.started else [])]
        for line in wrapped(told, int(room / SMALL), ", "):
            self.y += 19
            self._text(MARGIN, self.y, line, "dim", size=12)

    def _chart(self) -> None:
        """Draw the axis, the rows, and below them what the signs mean."""
        self.y += 30
        axis = self.y
        grid = len(self.parts)
        for number, (title, _) in enumerate(self.figures):
            self._text(self._figure(number), axis, title, "dim", size=11, anchor="end")
        self.y += 10
        for row in self.layout.rows:
            self._row(row)
        self.parts[grid:grid] = self._axis(axis, self.y)
        self.y += 26 if self._is_long() else 8
        self._legend()

    def _axis(self, top: float, bottom: float) -> list[str]:
        """Draw the lines that all rows share, and what they stand for: above, and where that is far away, below too."""
        above = len(self.parts)
        for mark, label in ticks(self.layout.seconds, int((self.right - self.left) / TICK)):
            x = self._x(self.layout.first + mark)
            self.parts.append(f'<path class="grid" d="M{x:.1f},{top + 8:g}V{bottom:g}"/>')
            if x + SMALL * len(label) / 2 <= self.right + 12:
                for y in (top, bottom + 10)[: 1 + self._is_long()]:
                    self._text(x, y, label, "dim", size=11, anchor="middle" if mark else "start")
        drawn = self.parts[above:]
        del self.parts[above:]
        return drawn

    def _is_long(self) -> bool:
        return len(self.layout.rows) > LONG

    def _row(self, row: Row) -> None:
        span, notes = row.span, row.span.notes()
        middle, height = self.y + ROW / 2, ROW + NOTE * len(notes)
        self.parts.append(f'<g class="row"><title>{escape(self._tooltip(span))}</title>')
        self.parts.append(f'<rect class="over" x="0" y="{self.y:g}" width="{self.width}" height="{height:g}"/>')
        self._tree(row, middle, height)
        indent = self._indent(row)
        room = int((self.left - MARGIN - indent - 8) / (LETTER * 1.04 if span.is_scope else LETTER))
        self._text(MARGIN + indent, middle, squeeze(clean(span.name), max(room, 1), "…"), bold=span.is_scope)
        self._bar(span, middle)
        told = span.durations(self.layout.last)
        for number, (_, place) in enumerate(self.figures):
            if (seconds := told[place]) is not None:
                self._text(self._figure(number), middle, duration(seconds), "dim number", size=12, anchor="end")
        for number, (kinds, note) in enumerate(notes):
            y, x = self.y + ROW + NOTE * (number + 0.5) - 2, MARGIN + indent + 7
            self._sign(x, y, kinds[0], small=True)
            room = int((self.width - MARGIN - x - 12) / SMALL)
            self._text(x + 12, y, fit(note, max(room, 1), "…"), size=12)
        self.parts.append("</g>")
        self.y += height

    def _tree(self, row: Row, middle: float, height: float) -> None:
        """Draw the lines that lead to a row, and those that pass it by."""
        path = ""
        for level, go_on in enumerate(row.follows):
            x = MARGIN + self._step(row) * level + 5
            own = level == len(row.follows) - 1
            if own:
                path += f"M{x:g},{self.y:g}V{self.y + height if go_on else middle:g}M{x:g},{middle:g}h{7:g}"
            elif go_on:
                path += f"M{x:g},{self.y:g}v{height:g}"
        if path:
            self.parts.append(f'<path class="tree" d="{path}"/>')

    def _bar(self, span: Span, y: float) -> None:
        kinds = {trouble.kind for trouble in span.troubles}
        for stage in span.stages(self.layout.first, self.layout.last):
            left, right = self._x(stage.start), self._x(stage.end)
            shown = stage.kind
            if shown == "closing":
                shown = "late" if "timed_out" in kinds else "bad" if "failed" in kinds else shown
            if stage.kind == "alive":
                right = max(right, left + THINNEST)
            if right - left >= THINNEST:
                self.used.add("scope" if span.is_scope and stage.kind == "alive" else stage.kind)
                self._stretch(left, right, y, shown, thin=span.is_scope)
        if span.unknown_since:
            self._edge(self.left - 6, y, "before")
        if span.state != "closed":
            self._edge(self._x(span.end(self.layout.last)) + 6, y, span.state)
        taken = -float(APART)
        for kind, time in sorted(marks(span), key=lambda mark: mark[1]):
            taken = max(self._x(time), taken + APART)
            self._sign(taken, y, kind)

    def _stretch(self, left: float, right: float, y: float, colour: str, *, thin: bool) -> None:
        """Draw a stretch of time."""
        if colour == "dead":
            self.parts.append(f'<path class="dead" d="M{left:.1f},{y:g}H{right:.1f}"/>')
            return
        thick = LINE if thin or colour == "acquiring" else BAR
        self.parts.append(
            f'<rect class="{colour}" x="{left:.1f}" y="{y - thick / 2:g}" width="{right - left:.1f}" '
            f'height="{thick}" rx="2"/>'
        )

    def _sign(self, x: float, y: float, kind: str, *, small: bool = False) -> None:
        self.used.add(kind)
        colour, path = SIGNS[kind]
        scale = " scale(.85)" if small else ""
        self.parts.append(
            f'<g transform="translate({x:.1f},{y:g}){scale}"><circle class="{colour}" r="6"/>'
            f'<path class="sign" d="{path}"/></g>'
        )

    def _edge(self, x: float, y: float, kind: str) -> None:
        self.used.add(kind)
        self.parts.append(f'<path class="edge" transform="translate({x:.1f},{y:g})" d="{CHEVRON[kind]}"/>')

    def _legend(self) -> None:
        x = float(MARGIN)
        self.y += ROW / 2
        for kind in [kind for kind in WORDS if kind in self.used]:
            words = WORDS[kind]
            wide = 32 + SMALL * len(words)
            if x > MARGIN and x + wide > self.width - MARGIN:
                x, self.y = float(MARGIN), self.y + 20
            if kind in SIGNS:
                self._sign(x + 8, self.y, kind, small=True)
            elif kind in CHEVRON:
                self._edge(x + 8, self.y, kind)
            else:
                self._stretch(x, x + 16, self.y, "alive" if kind == "scope" else kind, thin=kind == "scope")
            self._text(x + 21, self.y, words, "dim", size=12)
            x += wide
        self.y += ROW / 2 - MARGIN / 2

    def _tooltip(self, span: Span) -> str:
        told = zip(("acquired in", "alive for", "closed in"), span.durations(self.layout.last), strict=True)
        spent = [f"{words} {duration(seconds)}" for words, seconds in told if seconds is not None]
        if span.state != "closed":
            spent.append(WORDS[span.state])
        return "\n".join([clean(span.name), *spent, *(note for _, note in span.notes())])

    def _text(
        self,
        x: float,
        y: float,
        words: str,
        kind: str = "",
        *,
        size: int = 13,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Write a line whose middle is at `y`."""
        extra = (f' class="{kind}"' if kind else "") + (' font-weight="600"' if bold else "")
        if anchor != "start":
            extra += f' text-anchor="{anchor}"'
        self.parts.append(
            f'<text x="{x:.4g}" y="{y + size * 0.35:.5g}" font-size="{size}"{extra}>{escape(words)}</text>'
        )

    def _x(self, time: float) -> float:
        return self.left + self.layout.at(time) * (self.right - self.left)

    def _figure(self, number: int) -> float:
        return self.width - MARGIN - FIGURE * (len(self.figures) - 1 - number)

    def _indent(self, row: Row) -> float:
        return self._step(row) * len(row.follows)

    def _step(self, row: Row) -> float:
        """Give how far a level stands to the right; of very many, less."""
        return min(INDENT, 0.2 * self.width / max(1, len(row.follows)))
