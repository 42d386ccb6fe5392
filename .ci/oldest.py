"""Print, as constraints for pip, the oldest that pyproject.toml allows of what is needed to run and to test."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(requirements: list[str]) -> Iterator[str]:
    """Give them, with those of our own extras instead of these."""
    for requirement in requirements:
        if own := re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", requirement):
            for extra in own[1].split(","):
                yield from needed(PROJECT["optional-dependencies"][extra])
        else:
            yield requirement


for requirement in needed([*PROJECT["dependencies"], f"{PROJECT['name']}[test-core]"]):
    if ">=" in requirement:
        print(re.sub(r"\[.+?\]", "", requirement).replace(">=", "==", 1))  # the first one: markers have it too
