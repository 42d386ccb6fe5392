"""What one task does for all who wait for it."""

from __future__ import annotations

from contextvars import ContextVar
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from rescope._backends import backend
from rescope._closing import around
from rescope._resource import SPECIAL, Resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._backends import Job
    from rescope._closing import Closing
    from rescope._unwind import Unwinding


class Errand:
    """Something done once for all who wait for it, in a task that none of them owns."""

    __slots__ = ("called_off", "ended", "error", "job", "name", "over")

    job: Job

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = backend().Event()
        self.over = False
        self.called_off = False
        self.error: BaseException | None = None

    def start(self, work: Callable[[], Awaitable[object]]) -> None:
        """Begin, in a copy of the current context. What it raises is for those who wait."""
        self.job = backend().start(partial(self._run, work))

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        around.set(None)  # it works for those who wait, and not for the close that one of them may be part of
        _within.set((*_within.get(), self))
        try:
            await work()
        except backend().Cancelled as exc:
            if not self.called_off:
                self.error = RuntimeError(f"{self.name} ended in a cancellation that nobody who waited had asked for")
                self.error.__cause__ = exc
        except BaseException as exc:
            self.error = exc
        self.over = True
        self.ended.set()

    def refuse_within(self, what: str) -> None:
        """Refuse what would wait for it from within."""
        if self in _within.get():
            msg = f"{self.name} {what}: that would wait for itself"
            raise RuntimeError(msg)

    def call_off(self) -> None:
        """Cancel it: nobody waits for it any more, or nobody may."""
        if not (self.over or self.called_off):
            self.called_off = True
            self.job.cancel()

    async def done(self) -> bool:
        """Wait for it, and raise what it raised; `False` where it was called off."""
        await self.ended.wait()
        if self.called_off or self.error is None:
            return not self.called_off
        error, self.error = self.error, own(self.error)
        try:
            raise error
        finally:
            del error


class Stop(Resource[None]):
    """The end of an errand, as the first that a scope closes. It is no resource, and is not counted as one."""

    __slots__ = ("_errand",)

    def __init__(self, errand: Errand) -> None:
        super().__init__(None, errand.call_off, name=errand.name)
        self._limits = SPECIAL
        self._errand = errand

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None]:
        return unwinding.in_time(closing, partial(self._stop, unwinding))

    async def _stop(self, unwinding: Unwinding) -> None:
        self._errand.call_off()
        await self._errand.ended.wait()
        unwinding.attempted -= 1


_within: ContextVar[tuple[Errand, ...]] = ContextVar("rescope_errands", default=())


def own(error: BaseException) -> BaseException:
    """Give a copy of an exception, so that of several tasks each has one.

    One that they share would mix their tracebacks, contexts and notes. Where its constructor makes no faithful copy,
    they share it after all, as those do who await the same `asyncio.Future`.
    """
    try:
        twin: Any = copy(error)
    except Exception:
        return error
    if type(twin) is not type(error) or [*map(id, twin.args)] != [*map(id, error.args)]:
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    if hasattr(error, "__notes__"):
        twin.__notes__ = [*error.__notes__]
    return twin.with_traceback(error.__traceback__)
