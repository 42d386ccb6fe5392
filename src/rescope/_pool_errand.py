"""What one task does for all who wait for it."""

from __future__ import annotations

from contextvars import ContextVar
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from rescope._closing import around
from rescope._resource import SPECIAL, Resource
from rescope._tell import log
from rescope.exceptions import ResourceCleanupError, reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._backends import Backend, Job
    from rescope._closing import Closing
    from rescope._unwind import Unwinding


class Errand:
    """Something done once for all who wait for it, in a task that none of them owns.

    It knows who waits: what it raises is for them, and when the last of them leaves it is called off. It knows what it
    waits for itself, so that a circle of such waits is refused instead of waited in.
    """

    __slots__ = ("_job", "_on", "_work", "awaits", "called_off", "ended", "error", "name", "over", "refused", "waiting")

    def __init__(self, name: str, on: Backend, work: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.ended = on.Event()
        self.over = False
        self.called_off = False
        self.refused = False
        """Whether what it did would have waited for itself."""
        self.error: BaseException | None = None
        self.waiting = 0
        self.awaits: list[Errand] = []
        self._on = on
        self._work: Callable[[], Awaitable[object]] | None = work
        self._job: Job | None = None

    def start(self) -> None:
        """Begin, in a copy of the current context. What it raises is for those who wait."""
        work, self._work = self._work, None
        if work is not None:
            self._job = self._on.start(partial(self._run, work))
            if self.called_off:  # by its own first step
                self._job.cancel()

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        around.set(None)  # it works for those who wait, and not for the close that one of them may be part of
        _here.set(self)
        try:
            await work()
        except self._on.Cancelled as exc:
            if self.waiting and not self.called_off:
                self.error = RuntimeError(f"{self.name} ended in a cancellation that nobody who waited had asked for")
                self.error.__cause__ = exc
        except BaseException as exc:
            self.error = exc
        if not self.waiting:
            self._tell_the_log()
        self.over = True
        self.ended.set()

    def needs_us(self) -> bool:
        """Tell whether it can't end before the code that asks: that is part of it, or of what it waits for."""
        reached = edge = {self}
        while edge:
            edge = {another for one in edge for another in one.awaits} - reached
            reached = reached | edge
        return _here.get() in reached

    def call_off(self) -> None:
        """Cancel it: nobody waits for it any more, or nobody may."""
        if not (self.over or self.called_off):
            self.called_off = True
            if self._job is not None:
                self._job.cancel()

    async def done(self) -> bool:
        """Wait for it, and raise what it raised; `False` where it was called off."""
        self.waiting += 1
        try:
            await self.wait()
            if self.called_off or self.error is None:
                return not self.called_off
            error, self.error = self.error, own(self.error) if self.waiting > 1 else None
            try:
                raise error
            finally:
                del error
        finally:
            self.leave()

    async def wait(self) -> None:
        """Begin, where it has not begun, and wait until it has ended."""
        here = _here.get()
        if here is not None and self.needs_us():
            here.refused = True
            msg = f"{self.name} asks the pool for its own key: that would wait for itself"
            raise RuntimeError(msg)
        awaits = [] if here is None else here.awaits
        awaits.append(self)
        try:
            self.start()
            await self.ended.wait()
        finally:
            awaits.remove(self)

    def leave(self) -> None:
        """Wait no longer. The last one turns off the light."""
        self.waiting -= 1
        if not self.waiting:
            self.call_off()
            self._tell_the_log()

    def _tell_the_log(self) -> None:
        """Log what nobody is there to be told, unless it may come of being called off."""
        error, self.error = self.error, None
        ordinary = isinstance(error, Exception) and not isinstance(error, ResourceCleanupError)
        if error is not None and not (ordinary and self.called_off):
            log(f"{self.name}: {reason(error)}")


class Stop(Resource[None]):
    """The end of an errand, as the first that a scope closes. It is no resource, and is not counted as one."""

    __slots__ = ("_errand",)

    def __init__(self, errand: Errand) -> None:
        super().__init__(None, errand.call_off, name=errand.name)
        self._limits = SPECIAL
        self._errand = errand
        errand.waiting += 1

    async def _begin(self, unwinding: Unwinding, closing: Closing) -> None:
        await unwinding.in_time(closing, partial(self._stop, unwinding))
        self._errand.ended.set()  # where it heeds nothing it is left behind, also by those who wait for it
        self._errand.leave()

    async def _stop(self, unwinding: Unwinding) -> None:
        self._errand.call_off()
        await self._errand.ended.wait()
        unwinding.attempted -= 1
        if not isinstance(self._errand.error, Exception | None):
            error, self._errand.error = self._errand.error, None
            raise error


_here: ContextVar[Errand | None] = ContextVar("rescope_errand", default=None)
"""What this code is part of."""


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
