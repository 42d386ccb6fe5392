"""For tests of your own resources: cancel a program at every point where a cancellation can reach it.

A cancellation at the wrong moment is the usual way to leak, and that moment is hard to hit with a timer. So
`cancel_everywhere` does what SQLite's tests do with allocations ("How SQLite Is Tested"): they let the first one fail,
then the second, and so on, until the program ends before it comes to the next.
"""

from __future__ import annotations

import asyncio
import gc
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from inspect import signature
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, cast, final, get_args

from rescope._backends import backend
from rescope._closer import awaited, check_callable, check_seconds, is_awaitable, name_of
from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterator

__all__ = ["CancelEverywhereError", "CancelMode", "CancelReport", "Fault", "Ledger", "cancel_everywhere"]

CancelMode: TypeAlias = Literal["task", "late", "repeated", "scope"]

_MODES: tuple[CancelMode, ...] = get_args(CancelMode)
_PLUMBING = {"anyio", "asyncio", "contextlib", "trio"}  # whose frames say little
_SETTLING = 0.1  # seconds for tasks that are about to end
_STUBBORN = 100  # times that a program which is given up may await something more
_TOLD = 10  # faults in a message


@final
class Ledger:
    """What a program has opened and closed: by this, a run is judged. Each run gets a fresh one.

    Call `opened` where a resource is there, and `closed` where it is gone, in any task.
    """

    __slots__ = ("_known", "_mistakes", "_open", "_ordered")

    def __init__(self, *, ordered: bool = True) -> None:
        self._open: list[str] = []
        self._known: set[str] = set()
        self._mistakes: list[str] = []
        self._ordered = ordered

    def opened(self, name: str, /) -> str:
        """Note that a resource is open, and give back its name."""
        self._open.insert(0, name)
        self._known.add(name)
        return name

    def closed(self, name: str, /) -> None:
        """Note that a resource is closed: the latest of that name."""
        if name not in self._open:
            self._mistakes.append(f"closed {'twice' if name in self._known else 'but never opened'}: {name}")
            return
        if self._ordered and self._open[0] != name:
            self._mistakes.append(f"closed out of order: {name} before {self._open[0]}")
        self._open.remove(name)

    @property
    def open(self) -> tuple[str, ...]:
        """The names of what is open, the latest first."""
        return tuple(self._open)

    @property
    def problems(self) -> tuple[str, ...]:
        """What was closed twice or out of order, and what is open still."""
        return (*self._mistakes, *(f"left open: {name}" for name in self._open))


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


async def cancel_everywhere(
    program: Callable[[Ledger], Awaitable[object]],
    /,
    *,
    raises: type[BaseException] | tuple[type[BaseException], ...] = (),
    ordered: bool = True,
    modes: Collection[CancelMode] = _MODES,
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
    kind = _AsyncioRun if on_asyncio else _TrioRun
    sweep = _Sweep(kind, program, raises, ordered, turns, timeout, max_points)
    with _listening(sweep.told) if on_asyncio else nullcontext():
        await sweep.run(None, (0, 0))
        sweep.judge()
        for mode in kind.modes:
            if mode in modes:
                await sweep.over(mode)
    sweep.judge()
    return CancelReport(*(sweep.points[mode] for mode in _MODES))


def _check(program: Callable[..., object], modes: Collection[str], timeout: float) -> None:
    check_callable(program, "program")
    check_seconds(timeout, "timeout")
    with suppress(ValueError):  # what has no signature
        try:
            signature(program).bind(None)
        except TypeError as exc:
            msg = f"{name_of(program)} must take one argument, the ledger: `async def program(ledger): ...`"
            raise TypeError(msg) from exc
    if unknown := {*modes} - {*_MODES}:
        msg = f"there is no mode {', '.join(map(repr, sorted(unknown)))}: the modes are {', '.join(_MODES)}"
        raise ValueError(msg)


@dataclass
class _Sweep:
    """All runs of a program, and what went wrong in them."""

    kind: type[_Run]
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

        with move_on_after(_SETTLING):
            while self.kind.tasks().keys() - before:
                await checkpoint()
        return [name for task, name in self.kind.tasks().items() if task not in before]

    def judge(self) -> None:
        if self.faults:
            raise CancelEverywhereError(name_of(self.program), tuple(self.faults), self.runs)


class _Run(ABC):
    """One run of a program, cancelled at its point.

    It stands between the program and the loop, steps through the one and hands on to the other what is awaited. So it
    knows of each suspension before the loop does, and what it cancels then is that very wait: no timer has to hit it.
    """

    modes: tuple[CancelMode, ...]
    scope: Any  # the cancel scope around the program

    def __init__(self, sweep: _Sweep, mode: CancelMode | None, point: tuple[int, int]) -> None:
        self.sweep = sweep
        self.mode = mode
        self.point = point
        self.ledger = Ledger(ordered=sweep.ordered)
        self.coro = _coroutine_of(sweep.program, self.ledger)
        self.trap: Any = None
        self.suspensions = 0
        self.waiting = False
        self.fired: tuple[int, int] | None = None
        self.stack: tuple[str, ...] = ()
        self.reached = False
        self.cancelled = False
        self.error: BaseException | None = None
        self.mistakes: tuple[str, ...] = ()
        self.hung = ""

    async def main(self) -> None:
        """Let the program run to its end, and note how it ended."""
        try:
            with self.scope:
                await self
        except BaseException as exc:
            self.error = exc
        self.mistakes = self.ledger.problems  # now: what is closed later, nobody has waited for

    def __await__(self) -> Generator[object, Any, None]:
        step: Callable[[Any], object] = self.coro.send
        given: Any = None
        while True:
            try:
                self.trap = step(given)
            except StopIteration:
                return
            if self.hung:
                self._cut_off()
                return
            self._suspended()
            try:
                step, given = self.coro.send, (yield self.trap)
            except BaseException as exc:
                step, given = self.coro.throw, exc
            self.waiting = False
            came = getattr(given, "error", given)  # what trio sends is an outcome
            self.reached |= self.fired is not None and isinstance(came, backend().Cancelled)

    def _suspended(self) -> None:
        self.waiting = True
        self.suspensions += 1
        at, turn = self.point
        if self.fired is not None:
            if self.mode == "repeated":
                self.cancel()
        elif self.mode is not None and self.suspensions >= at:
            if turn and self.suspensions == at:
                self.beside(self._fire_after, turn, at)
            else:
                self.fire(0)

    async def _fire_after(self, turns: int, suspension: int) -> None:
        from anyio.lowlevel import cancel_shielded_checkpoint

        for _ in range(turns - 1):  # to start has taken one
            await cancel_shielded_checkpoint()
        if self.waiting and self.suspensions == suspension:
            self.fire(turns)

    def fire(self, turn: int) -> None:
        """Cancel the program here."""
        self.fired = (self.suspensions, turn)
        self.stack = _stack(self.coro)
        self.cancel()

    def hang(self) -> None:
        """Give the program up."""
        self.hung = f"did not end within {self.sweep.timeout:g} s, and after {self.suspensions} suspensions waits"
        self.stack = _stack(self.coro)

    def _cut_off(self) -> None:
        """End the program, though it may await something more. To close it would spare asynchronous generators."""
        for _ in range(_STUBBORN):
            try:
                self.coro.throw(_GivenUp())
            except BaseException:
                return

    def problems(self) -> Iterator[str]:
        """Tell what is wrong."""
        if self.hung:
            yield self.hung
        else:
            yield from self._wrong_end()
            yield from self.mistakes

    def _wrong_end(self) -> Iterator[str]:
        expected = isinstance(self.error, self.sweep.raises)
        if self.fired is None:
            if self.error is None and self.sweep.raises:
                yield "did not raise what `raises` says"
            elif self.error is not None and not expected:
                yield f"raised {reason(self.error)}"
            if self.suspensions > self.sweep.max_points:
                yield f"came to {self.suspensions} suspensions: let it do less, or raise `max_points`"
        elif self.error is not None:
            if not expected or (self.mode != "scope" and isinstance(self.error, Exception)):
                yield f"raised {reason(self.error)} in place of the cancellation"
        elif self.reached and not self.cancelled:
            yield "swallowed the cancellation"

    # Each backend has its own way to

    @abstractmethod
    async def go(self) -> None:
        """Run `main` in a task, and give it up where it hangs."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the program in its mode."""

    @abstractmethod
    def beside(self, fn: Callable[..., Coroutine[Any, Any, None]], *args: int) -> None:
        """Run `fn` in a task of its own."""

    @staticmethod
    @abstractmethod
    def tasks() -> dict[object, str]:
        """Give all tasks that run, and their names."""


class _AsyncioRun(_Run):
    modes = _MODES
    requests = 0
    task: asyncio.Task[None]

    async def go(self) -> None:
        from anyio import CancelScope

        self.scope = CancelScope() if self.mode == "scope" else nullcontext()
        self.task = asyncio.create_task(self.main())
        try:
            await asyncio.wait([self.task], timeout=self.sweep.timeout)
            if not self.task.done():
                self.hang()
        finally:
            if not self.task.done():
                self.task.cancel()
                with CancelScope(shield=True):
                    await asyncio.wait([self.task], timeout=self.sweep.timeout)

    async def main(self) -> None:
        await super().main()
        if self.mode == "scope":
            self.cancelled = self.scope.cancelled_caught
        elif self.fired is not None and isinstance(self.error, asyncio.CancelledError):
            self.cancelled, self.error = True, None

    def _wrong_end(self) -> Iterator[str]:
        yield from super()._wrong_end()
        if (stray := self.task.cancelling() - self.requests) > 0:
            yield f"left {stray} in task.cancelling() that nobody asked for"

    def cancel(self) -> None:
        if self.mode == "scope":
            self.scope.cancel()
        elif self.mode == "late" and asyncio.isfuture(self.trap):
            self.trap.add_done_callback(self._cancel_task)  # called before the one that wakes up the task
        else:
            self._cancel_task()

    def _cancel_task(self, _: object = None) -> None:
        self.requests += 1
        self.task.cancel()

    def beside(self, fn: Callable[..., Coroutine[Any, Any, None]], *args: int) -> None:
        self.ticker = asyncio.create_task(fn(*args))

    @staticmethod
    def tasks() -> dict[object, str]:
        return {task: name_of(task.get_coro()) for task in asyncio.all_tasks()}


class _TrioRun(_Run):
    modes = ("scope",)
    nursery: Any
    task: Any

    async def go(self) -> None:
        import trio

        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self.main)
            with trio.move_on_after(self.sweep.timeout):
                await self.ended.wait()
            if not self.ended.is_set():
                await self._break_off()

    async def main(self) -> None:
        from trio.lowlevel import current_task

        self.task = current_task()
        await super().main()
        self.cancelled = self.scope.cancelled_caught
        self.ended.set()

    async def _break_off(self) -> None:
        """End a program that hangs. Under a shield no cancellation can; there, the wait itself is aborted."""
        import trio
        from outcome import Error

        self.hang()
        self.scope.cancel()
        with trio.move_on_after(_SETTLING):
            await self.ended.wait()
        abort = getattr(self.trap, "abort_func", None) if self.waiting else None
        if abort is not None and abort(_leave) is trio.lowlevel.Abort.SUCCEEDED:
            trio.lowlevel.reschedule(self.task, Error(_GivenUp()))

    def cancel(self) -> None:
        self.scope.cancel()

    def beside(self, fn: Callable[..., Coroutine[Any, Any, None]], *args: int) -> None:
        self.nursery.start_soon(fn, *args)

    @staticmethod
    def tasks() -> dict[object, str]:
        from trio.lowlevel import current_root_task

        found: list[Any] = [current_root_task()]
        for task in found:
            found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return {task: task.name for task in found}


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


class _GivenUp(BaseException):
    """What is thrown into a program that hangs."""


def _leave() -> NoReturn:
    raise _GivenUp


def _coroutine_of(program: Callable[[Ledger], Awaitable[object]], ledger: Ledger) -> CoroutineType[Any, Any, object]:
    made = program(ledger)
    if not is_awaitable(made):
        msg = f"{name_of(program)} must be async: it gave a {type(made).__qualname__}, not something to await"
        raise TypeError(msg)
    return cast("CoroutineType[Any, Any, object]", made if type(made) is CoroutineType else awaited(made))


def _stack(coro: Any) -> tuple[str, ...]:
    """Tell where a suspended coroutine stands; as `Task.iter_await_frames` of trio does."""
    places: list[str] = []
    while coro is not None:
        if type(coro).__name__ in {"async_generator_asend", "async_generator_athrow"}:
            coro = next((of for of in gc.get_referents(coro) if isinstance(of, AsyncGeneratorType)), None)
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(coro, f"{kind}_frame")), "")
        frame = getattr(coro, f"{kind}_frame", None)
        if frame is None:
            break
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _PLUMBING:
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        coro = getattr(coro, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return tuple(places)
