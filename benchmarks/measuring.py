"""How it is measured: in turns.

Within a round every contender has one turn, in an order that is shuffled anew, so that whatever else the machine does
hits all of them alike. A ratio is the median of the rounds' ratios. All are warm; the collector runs before each sample
and never within one. Times are CPU time of this process where that clock is fine enough, else wall-clock time.

A contender is measured twice: `AES` and `AES again` do the same, so the ratio between them tells how far to trust the
others.
"""

from __future__ import annotations

import gc
import random
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from benchmarks.work import Batch, Contest

MICROSECOND = 1e-6
clock = time.process_time if time.get_clock_info("process_time").resolution <= MICROSECOND else time.perf_counter

Took: TypeAlias = dict[str, list[float]]
"""The seconds that the work took, round by round, by contender."""

CONTROL = "AES again"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """What one sample should take."""
    many: int = 100_000
    """How many closers are many."""


QUICK = Effort(rounds=12, seconds=0.002)
FULL = Effort(rounds=61, seconds=0.005)


class Ratio(NamedTuple):
    """The ratio of two contenders: a half of the rounds lies between `low` and `high`."""

    low: float
    middle: float
    high: float


async def sample(batch: Batch, times: int) -> float:
    """Give the seconds that one batch takes."""
    gc.collect()
    gc.disable()
    try:
        start = clock()
        await batch(times)
        return clock() - start
    finally:
        gc.enable()


async def enough(batch: Batch, seconds: float) -> int:
    """Find how often the work has to be done to last that long; it is warm afterwards."""
    await batch(1)  # what is imported or compiled on first use would be taken for the work
    times = 1
    while (took := await sample(batch, times)) < seconds / 2:
        times *= 2
    return max(1, round(times * seconds / took))


async def compete(contest: Contest, effort: Effort) -> Took:
    """Let all take turns; give each one's seconds for doing the work once, round by round."""
    contest = contest | {CONTROL: contest["AES"]} if "AES" in contest else contest
    frozen = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()  # so that the collector has little to look at before each sample
    try:
        times = {name: await enough(batch, effort.seconds) for name, batch in contest.items()}
        took: Took = {name: [] for name in contest}
        order = random.Random(0)  # noqa: S311 (no secret)
        for _ in range(effort.rounds):
            for name in order.sample(list(contest), len(contest)):
                took[name].append(await sample(contest[name], times[name]) / times[name])
    finally:
        if not frozen:
            gc.unfreeze()
    return took


def ratio(took: Took, one: str, other: str) -> Ratio | None:
    """Give the ratio of two contenders, if both took part."""
    if one not in took or other not in took:
        return None
    ratios = [a / b for a, b in zip(took[one], took[other], strict=True)]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Ratio(low, middle, high)


def seconds(took: Took, name: str) -> float | None:
    """Give the median of what a contender took, if it took part."""
    return median(took[name]) if name in took else None
