"""As much SVG as the plots need.

The page takes a plot in as it is, so that letters and lines have the colour of the text around them, in the light theme
and in the dark one. The few colours besides are readable on both.
"""

from __future__ import annotations

from html import escape
from math import log10
from typing import Literal

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
TEXT = "currentColor"
BLUE, GREEN, RED, AMBER, PURPLE, PINK, GREY = (
    "#3a76bd",
    "#35936a",
    "#cf3b3b",
    "#b5721a",
    "#8a63d2",
    "#c2478a",
    "#7d8590",
)

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


class Picture:
    """A picture in the making, with the words that stand for it where it can't be seen."""

    def __init__(self, width: int, height: int, words: str) -> None:
        look = f'viewBox="0 0 {width} {height}" font-family="{SANS}"'
        self._parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {look} role="img" aria-label="{escape(words)}">']

    def text(self, x: float, y: float, words: str, *, anchor: Anchor = "start", bold: bool = False) -> None:
        """Write a line; `y` is the middle of its height."""
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:.1f}" y="{y + 4.4:.1f}" font-size="12.5" text-anchor="{anchor}"'
        self._parts.append(f'<text {place} fill="{TEXT}"{weight}>{escape(words)}</text>')

    def line(self, *points: Point, colour: str = TEXT, width: float = 1.0, tint: float = 1.0) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        stroke = f'stroke="{colour}" stroke-width="{width:g}" stroke-opacity="{tint:g}"'
        self._parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')

    def bar(self, x: float, y: float, width: float, height: float, colour: str, *, tint: float = 1.0) -> None:
        """Draw a bar; `y` is the middle of its height."""
        place = f'x="{x:.1f}" y="{y - height / 2:.1f}" width="{max(width, 0):.1f}" height="{height:g}"'
        self._parts.append(f'<rect {place} fill="{colour}" fill-opacity="{tint:g}"/>')

    def mark(self, x: float, y: float, form: str, colour: str) -> None:
        """Draw a mark: contenders differ by its form too, for those who don't see the colours."""
        forms = {
            "dot": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{colour}"/>',
            "small dot": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
            "ring": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{colour}" stroke-width="2"/>',
            "stroke": f'<path d="M{x:.1f} {y - 6:.1f}v12" stroke="{colour}" stroke-width="3"/>',
            "cross": f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0-10l-10 10" stroke="{colour}" stroke-width="2.5"/>',
            "square": f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>',
            "triangle": f'<path d="M{x:.1f} {y - 5.5:.1f}l6 10.5h-12z" fill="{colour}"/>',
        }
        self._parts.append(forms[form])

    def written(self) -> str:
        """Give the picture."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"


class Scale:
    """Where a value stands on a line from one place to another, by its logarithm."""

    def __init__(self, values: tuple[float, float], places: tuple[float, float]) -> None:
        self._low, self._high = map(log10, values)
        self._begin, self._end = places

    def __call__(self, value: float) -> float:
        """Give the place of a value; for one beyond the line, its end."""
        share = (log10(value) - self._low) / (self._high - self._low)
        return self._begin + min(max(share, 0), 1) * (self._end - self._begin)
