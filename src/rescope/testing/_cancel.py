"""Cancel a program at every point where a cancellation can reach it.

A cancellation at the wrong moment is the usual way to leak, and that moment is hard to hit with a timer. So
`cancel_everywhere` does what SQLite's tests do with allocations ("How SQLite Is Tested"): they let the first one fail,
then the second, and so on, until the program ends before it comes to the next.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

from rescope._backends import backend
from rescope._closer import check_callable, check_seconds, name_of
from rescope.exceptions import reason
from rescope.testing._report import MODES, CancelEverywhereError, CancelMode, CancelReport, Fault
from rescope.testing._run import SETTLING, AsyncioRun, TrioRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator

    from rescope.testing._ledger import Ledger
    from rescope.testing._run import Run


async def cancel_everywhere(
    program: Callable[[Ledger], Awaitable[object]],
    /,
    *,
    raises: type[BaseException] | tuple[type[BaseException], ...] = (),
    ordered: bool = True,
    modes: Collection[CancelMode] = MODES,
    turns: int = 5,
    timeout: float = 5.0,
    max_points: int = 1000,
) -> CancelReport:
    """Run `program(ledger)` again and again, cancelled at its first point, its second, ... until it ends by itself.

    A point is where the program's own task suspends. While it waits there, other tasks get on, so each of the first
    `turns` turns of the loop is a point of its own. It is cancelled in each of the `modes` (on trio in the last one):

    - `"task"`: by `task.cancel()`, once;
    - `"late"`: so too, but when what it waits for has just come, and is lost; here turns are no points;
    - `"repeated"`: by `task.cancel()` at that point and at all that follow; here turns are no points;
    - `"scope"`: by an anyio or trio cancel scope around it, which goes on until the program has left it.

    After each run, what the ledger knows as opened must be closed: once, and last in, first out (in any order with
    `ordered=False`). The cancellation must have come out, and nothing else. Nothing may be left: no task, no
    exception that nobody retrieved, no count in `task.cancelling()` for what nobody asked. What a program raises by
    itself is named by `raises`. It must come out of the run that is not cancelled; it may where a scope cancels, and
    where it is no `Exception`.

    `timeout`, in seconds, bounds each run, and `max_points` the suspensions of the program. Raises
    `CancelEverywhereError` where a run went wrong, `TypeError` where the program is no async function that takes
    a ledger, `ValueError` for a mode that there is not. When it is itself cancelled, so is the run that is under way.
    """
    _check(program, modes, timeout)
    on_asyncio = issubclass(backend().Cancelled, asyncio.CancelledError)
    kind = AsyncioRun if on_asyncio else TrioRun
    sweep = Sweep(kind, program, raises, ordered, turns, timeout, max_points)
    with _listening(sweep.told) if on_asyncio else nullcontext():
        await sweep.run(None, (0, 0))
        sweep.judge()
        for mode in kind.modes:
            if mode in modes:
                await sweep.over(mode)
    sweep.judge()
    return CancelReport(*(sweep.points[mode] for mode in MODES))


def _check(program: Callable[..., object], modes: Collection[str], timeout: float) -> None:
    check_callable(program, "program")
    check_seconds(timeout, "timeout")
    with suppress(ValueError):  # what has no signature
        try:
            signature(program).bind(None)
        except TypeError as exc:
            msg = f"{name_of(program)} must take one argument, the ledger: `async def program(ledger): ...`"
            raise TypeError(msg) from exc
    if unknown := {*modes} - {*MODES}:
        msg = f"there is no mode {', '.join(map(repr, sorted(unknown)))}: the modes are {', '.join(MODES)}"
        raise ValueError(msg)


@dataclass
class Sweep:
    """All runs of a program, and what went wrong in them."""

    kind: type[Run]
    program: Callable[[Ledger], Awaitable[object]]
    raises: type[BaseException] | tuple[type[BaseException], ...]
    ordered: bool
    turns: int
    timeout: float
    max_points: int
    points: Counter[CancelMode] = field(default_factory=Counter)
    runs: int = 0
    faults: list[Fault] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    async def over(self, mode: CancelMode) -> None:
        """Cancel at every point, in one mode."""
        turns = self.turns if mode in {"task", "scope"} else 0
        point = (1, 0)
        while (fired := await self.run(mode, point)) is not None:
            self.points[mode] += 1
            at, turn = fired
            point = (at, turn + 1) if turn < turns else (at + 1, 0)
        gc.collect()  # what nobody retrieved is told when it is collected
        if self.told:
            self.faults.append(Fault(mode, 0, 0, (), tuple(self.told)))
            self.told.clear()

    async def run(self, mode: CancelMode | None, point: tuple[int, int]) -> tuple[int, int] | None:
        """Run the program once, and put on record what is wrong. Give the point at which it was cancelled."""
        before = self.kind.tasks()
        run = self.kind(self, mode, point)
        self.runs += 1
        await run.go()
        left = await self._left(before)
        problems = (*run.problems(), *(f"left a task running: {name}" for name in left), *self.told)
        self.told.clear()
        if problems:
            at, turn = run.fired or (0, 0)
            self.faults.append(Fault(mode if run.fired else None, at, turn, run.stack, problems, run.error))
        if run.hung:
            self.judge()
        return run.fired

    async def _left(self, before: Collection[object]) -> list[str]:
        """Give the names of tasks that a run has left, when those that were about to end have ended."""
        from anyio import move_on_after
        from anyio.lowlevel import checkpoint

        with move_on_after(SETTLING):
            while self.kind.tasks().keys() - before:
                await checkpoint()
        return [name for task, name in self.kind.tasks().items() if task not in before]

    def judge(self) -> None:
        if self.faults:
            raise CancelEverywhereError(name_of(self.program), tuple(self.faults), self.runs)


@contextmanager
def _listening(told: list[str]) -> Generator[None]:
    """Let asyncio tell of exceptions that nobody retrieved."""

    def tell(_: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told.append(context["message"] + (f": {reason(error)}" if error else ""))

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(tell)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
