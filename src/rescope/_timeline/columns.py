"""Text in columns: how wide it is on a terminal, how it is made to fit, and made harmless."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING
from unicodedata import category, east_asian_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

JOINER = "\u200d"
"""Makes one picture of two: a family of three people. What follows it takes no columns of its own."""
EMOJI_STYLE = "\ufe0f"
"""Makes a picture of the character before it, which is two columns wide then."""

LEAST_SQUEEZED = 6
"""In fewer columns, a name keeps its beginning alone."""


def clean(text: str) -> str:
    """Make text harmless: no character of it may move the cursor, break the line, turn the writing round, or hide."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == JOINER else _shown(char) for char in text)


def _shown(char: str) -> str:
    return " " if category(char) == "Zs" else char.encode("unicode_escape").decode()


def width_of(text: str) -> int:
    """Say how many columns it takes, as terminals do that know of wide, combining and joined characters."""
    return len(text) if text.isascii() else sum(width for _, width in _widths(text))


def fit(text: str, columns: int, more: str) -> str:
    """Cut text that is too wide; `more` says that there was more."""
    if width_of(text) <= columns:
        return text
    if columns <= width_of(more):
        return _cut(text, columns)
    return _cut(text, columns - width_of(more)) + more


def squeeze(text: str, columns: int, more: str) -> str:
    """Cut text that is too wide in the middle: what names have in common is mostly their beginning."""
    room = columns - width_of(more)
    if width_of(text) <= columns or room < LEAST_SQUEEZED:
        return fit(text, columns, more)
    clusters: list[tuple[str, int]] = []
    for char, width in _widths(text):
        if char == EMOJI_STYLE or (width == 0 and clusters):
            before, wide = clusters.pop() if clusters else ("", 0)
            clusters.append((before + char, wide + width))
        else:
            clusters.append((char, width))
    end, left = "", room // 3
    while clusters[-1][1] <= left:
        cluster, width = clusters.pop()
        end, left = cluster + end, left - width
    return _cut(text, room - width_of(end)) + more + end


def wrapped(parts: Sequence[str], columns: int, between: str = " ") -> list[str]:
    """Put parts into as few lines as hold them; one that is too wide stands alone."""
    lines: list[str] = []
    for part in parts:
        if lines and width_of(lines[-1] + between + part) <= columns:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def _cut(text: str, columns: int) -> str:
    until = accumulate(width for _, width in _widths(text))
    return "".join(char for char, wide in zip(text, until, strict=True) if wide <= columns)


def _widths(text: str) -> Iterator[tuple[str, int]]:
    """Give each character, and by how many columns it makes the text wider."""
    before, joined = 0, False
    for char in text:
        if char == EMOJI_STYLE:
            width = int(before == 1)
        elif joined or _adds_nothing(char):
            width = 0
        else:
            width = 2 if east_asian_width(char) in "WF" else 1
        yield char, width
        joined = char == JOINER
        before = 0 if char.isspace() else width or before


def _adds_nothing(char: str) -> bool:
    """Tell whether it stands on or in the one before: accents, the middle and end of a Korean syllable, skin tones."""
    return category(char) in {"Mn", "Me", "Cf"} or "\u1160" <= char <= "\u11ff" or "\U0001f3fb" <= char <= "\U0001f3ff"
