"""How what waits for a server or a disk is measured: one turn of each contender after the other.

Times are wall-clock time, as most of it is spent elsewhere. Within a round every contender does its work once, in an
order that is shuffled anew. A figure is the median of the rounds, a ratio the ratio of two medians: so a round that was
disturbed counts for nothing. The collector runs whenever it likes, as it does in a program.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Work = Callable[[], Awaitable[object]]

WARM = 50


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each contender has its turn, and how often all of that is repeated."""

    rounds: int
    repeats: int


QUICK = Effort(rounds=200, repeats=1)
FULL = Effort(rounds=3000, repeats=3)


async def take_turns(contest: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Give the median seconds of each contender."""
    took: dict[str, list[float]] = {name: [] for name in contest}
    for work in contest.values():
        for _ in range(min(WARM, rounds)):
            await work()
    order = random.Random(0)  # noqa: S311 (no secret)
    for _ in range(rounds):
        for name in order.sample(list(contest), len(contest)):
            start = time.perf_counter()
            await contest[name]()
            took[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in took.items()}
