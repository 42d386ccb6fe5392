"""What comes out of a run, as it is kept in a file."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import CONTROL, Ratio, Took, ratio, seconds

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("rescope", "anyio", "svcs", "dishka", "uvloop", "trio")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one row, by contender."""

    seconds: dict[str, float]
    to_aes: dict[str, Ratio]
    to_plus: dict[str, Ratio]


@dataclass(frozen=True, slots=True)
class Single:
    """A figure that is no race, and what it was made of."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Results:
    """One run, on one Python and one backend."""

    backend: str
    rounds: int
    python: str = field(default_factory=platform.python_version)
    system: str = field(default_factory=lambda: f"{platform.system()} on {platform.machine()}")
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    versions: dict[str, str] = field(default_factory=_versions)
    rows: dict[str, Figures] = field(default_factory=dict)
    singles: dict[str, Single] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Keep it in a file."""
        path.write_text(json.dumps(rounded(asdict(self)), indent=1) + "\n", encoding="utf-8")

    def control(self) -> tuple[float, float]:
        """Give the lowest and the highest ratio of the stack to itself."""
        found = [row.to_aes[CONTROL].middle for row in self.rows.values() if CONTROL in row.to_aes]
        return (min(found), max(found)) if found else (1.0, 1.0)

    def spread(self) -> float:
        """Give how far the rounds' ratios of a scope to the stack scatter: the widest half of them, to its middle."""
        found = [row.to_aes["rescope"] for row in self.rows.values() if "rescope" in row.to_aes]
        return max(((one.high - one.low) / one.middle for one in found), default=0.0)


def load(path: Path) -> Results:
    """Give what was kept in a file."""
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept["rows"] = {work: _figures(row) for work, row in kept["rows"].items()}
    kept["singles"] = {work: Single(**single) for work, single in kept["singles"].items()}
    return Results(**kept)


def figures(took: Took) -> Figures:
    """Sum up what the contenders took."""
    return Figures(
        {name: of_it for name in took if (of_it := seconds(took, name)) is not None},
        {name: to_it for name in took if (to_it := ratio(took, name, "AES")) is not None},
        {name: to_it for name in took if (to_it := ratio(took, name, "AES+")) is not None},
    )


def _figures(row: dict[str, dict[str, Any]]) -> Figures:
    to_aes, to_plus = ({name: Ratio(*found) for name, found in row[to].items()} for to in ("to_aes", "to_plus"))
    return Figures(row["seconds"], to_aes, to_plus)


def rounded(value: Any) -> Any:
    """Keep as many digits as say something."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
