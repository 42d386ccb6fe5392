"""Time on paper: how long it was, said in three digits, and where an axis has its ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS = [(1e-6, "µs", 1000), (1e-3, "ms", 1000), (1.0, "s", 60), (60.0, "min", 60), (3600.0, "h", 24)]
_DAY = 86400.0

SHORTEST = 1e-6
"""An axis shows no less, in seconds: the clock knows no better."""


def duration(seconds: float) -> str:
    """Say how long it was: `1.25 s`, `12 ms`, `3.5 min`."""
    if not seconds:
        return "0 s"
    for size, unit, most in _UNITS:
        number = float(f"{seconds / size:.3g}")
        if number < most:
            return f"{number:g} {unit}"
    return f"{seconds / _DAY:.3g} d"


def ticks(seconds: float, most: int) -> list[tuple[float, str]]:
    """Give the ticks of an axis that is that long, each with its label: few, and never 0 alone."""
    step = next(step for step in _steps() if seconds / step <= max(3, most))
    size, unit = _unit(seconds if seconds < 60 else step)  # noqa: PLR2004 (a minute)
    marks = [number * step for number in range(int(seconds / step * (1 + 1e-9)) + 1)]
    return [(mark, f"{mark / size:.6g} {unit}" if mark else "0") for mark in marks]


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= _DAY:
        return _DAY, "d"
    return next(((size, unit) for size, unit, _ in reversed(_UNITS) if seconds >= size), (1e-6, "µs"))


def _steps() -> Iterator[float]:
    """Give the steps that people count in."""
    for power in range(-7, 1):
        for digit in (1, 2, 5):
            yield digit * 10.0**power
    yield from (10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)
    yield from (hours * 3600.0 for hours in (1, 2, 4, 6, 12))
    power = 0
    while True:
        for digit in (1, 2, 5):
            yield digit * 10.0**power * _DAY
        power += 1
