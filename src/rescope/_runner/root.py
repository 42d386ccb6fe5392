"""The scope that main gets: its time runs from the signal, and a second signal leaves next to none.

The core bounds a close when it begins. To be cut short later, by a second signal, is a matter of this room: its
unwindings wait in slices, and look in between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from rescope._backends import backend
from rescope._budget import least, run_out
from rescope._scope import Scope
from rescope._unwind import Unwinding

if TYPE_CHECKING:
    from rescope._backends import Job
    from rescope._closing import Closing
    from rescope._flight import Flight
    from rescope._result import Result
    from rescope._runner.stop import Stop

SLICE = 0.05
"""Seconds after which a second signal is seen at the latest; so each close has as many after it, and no more."""


class Hurried(Unwinding):
    """An unwinding of which each close is soon out of time once there was a second signal."""

    __slots__ = ()

    _stop: Stop

    async def within(self, closing: Closing, job: Job) -> BaseException | None:
        """Wait for a job for as long as this close may take, or until a second signal; give what it raised."""
        limit = self.limit(closing.resource.timeout)
        over = math.inf if limit is None else backend().now() + limit
        while not await backend().finish(job, self.flight, self._slice(over)):
            if self._stop.forced or backend().now() >= over:
                seconds = closing.elapsed() if limit is None else min(closing.elapsed(), limit)
                await run_out(self, closing, job, seconds)
                return None
        return job.take_error()

    def _slice(self, over: float) -> float:
        return SLICE if self._stop.forced else max(0.0, min(SLICE, over - backend().now()))


class Root(Scope):
    """A scope that minds the clock of a `Stop`, as its children do."""

    __slots__ = ()

    _pass = Hurried
    _stop: Stop

    def _another(self, name: str | None, *, grace: float | None, concurrent: bool) -> Root:
        another = Root(name, grace=grace, concurrent=concurrent)
        another._stop = self._stop
        return another

    def _start(self, outcome: Result[Any, Any], flight: Flight | None, grace: float | None) -> Unwinding:
        if self._stop.scope is self:
            self._stop.begin()
        unwinding = super()._start(outcome, flight, least(grace, self._stop.left()))
        cast("Hurried", unwinding)._stop = self._stop
        return unwinding
