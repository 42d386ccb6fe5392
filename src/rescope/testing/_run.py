"""One run of a program, cancelled at one point: on asyncio and on trio."""

from __future__ import annotations

import asyncio
import gc
from abc import ABC, abstractmethod
from contextlib import nullcontext
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rescope._backends import backend
from rescope._closer import awaited, is_awaitable, name_of
from rescope.exceptions import reason
from rescope.testing._ledger import Ledger
from rescope.testing._report import MODES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator

    from rescope.testing._cancel import Sweep
    from rescope.testing._report import CancelMode

_PLUMBING = {"anyio", "asyncio", "contextlib", "trio"}  # whose frames say little
SETTLING = 0.1  # seconds for tasks that are about to end
_STUBBORN = 100  # times that a program which is given up may await something more


class Run(ABC):
    """One run of a program, cancelled at its point.

    It stands between the program and the loop, steps through the one and hands on to the other what is awaited. So it
    knows of each suspension before the loop does, and what it cancels then is that very wait: no timer has to hit it.
    """

    modes: tuple[CancelMode, ...]
    scope: Any  # the cancel scope around the program

    def __init__(self, sweep: Sweep, mode: CancelMode | None, point: tuple[int, int]) -> None:
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


class AsyncioRun(Run):
    modes = MODES
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


class TrioRun(Run):
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
        with trio.move_on_after(SETTLING):
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
