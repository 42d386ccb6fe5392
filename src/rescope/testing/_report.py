"""What `cancel_everywhere` reports, and what it raises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

CancelMode: TypeAlias = Literal["task", "late", "repeated", "scope"]

MODES: tuple[CancelMode, ...] = get_args(CancelMode)
_TOLD = 10  # faults in a message


@dataclass(frozen=True, slots=True)
class CancelReport:
    """The number of points at which a program was cancelled, in each mode."""

    task: int = 0
    late: int = 0
    repeated: int = 0
    scope: int = 0

    @property
    def total(self) -> int:
        """The number in all modes."""
        return self.task + self.late + self.repeated + self.scope


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong in one run.

    The program was cancelled in that `mode` (`None`: not at all) at its suspension number `point`, when it had waited
    there for `turn` turns of the loop. `stack` says where that was, or where it hangs, outermost first, as
    `file:line in function`. `exception` is what came out in place of the cancellation.
    """

    mode: CancelMode | None
    point: int
    turn: int
    stack: tuple[str, ...]
    problems: tuple[str, ...]
    exception: BaseException | None = field(default=None, repr=False)

    def __str__(self) -> str:
        turn = f", turn {self.turn}" if self.turn else ""
        when = "not cancelled" if self.mode is None else f"{self.mode}, point {self.point}{turn}"
        return "\n    ".join([f"{when}: {'; '.join(self.problems)}", *(f"at {place}" for place in self.stack)])


class CancelEverywhereError(AssertionError):
    """A program can't stand to be cancelled everywhere. `faults` says where, and what goes wrong.

    Its cause is the first exception that came out in place of a cancellation.
    """

    def __init__(self, program: str, faults: tuple[Fault, ...], runs: int) -> None:
        more = [f"... and {len(faults) - _TOLD} more, see `faults`"] if len(faults) > _TOLD else []
        lines = [f"{len(faults)} of {runs} runs of {program} went wrong", *map(str, faults[:_TOLD]), *more]
        super().__init__("\n  ".join(lines))
        self.faults = faults
        causes = (fault.exception for fault in faults if fault.exception is not None)
        self.__cause__: BaseException | None = next(causes, None)
