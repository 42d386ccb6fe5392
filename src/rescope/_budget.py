"""In time: how long one close may take, and what happens to one that takes longer.

Cancelled, given a moment to end; forced, given another; then left behind. It is a task of its own, so nothing has to
wait for it. No single close may take more than half of what is left of the grace, unless it is the last: however many
hang, the next one always has as much again as all that follow it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rescope._backends import backend
from rescope.exceptions import CloseTimeoutError, reason

if TYPE_CHECKING:
    from rescope._backends import Job
    from rescope._closing import Closing
    from rescope._unwind import Unwinding

MOMENT = 0.05
"""Seconds that a cancelled or forced close has to end."""


class Budget:
    """The grace of one unwinding, running from now, by the backend's clock."""

    __slots__ = ("deadline", "overtime")

    def __init__(self, grace: float) -> None:
        backend().warm()
        self.deadline = backend().now() + grace
        self.overtime = 0.0

    def extend(self, seconds: float) -> None:
        """Give back what a close took beyond its time, which is not to be taken from those that follow."""
        self.deadline += seconds
        self.overtime += seconds

    def left(self) -> float:
        """Seconds until the grace is over."""
        return max(0.0, self.deadline - backend().now())


def least(*limits: float | None) -> float | None:
    """Give the shortest of some limits, of which `None` is none."""
    return min((limit for limit in limits if limit is not None), default=None)


async def run_out(unwinding: Unwinding, closing: Closing, job: Job, seconds: float) -> None:
    """End a close that is out of time, by force if need be, and put the failure on record."""
    since = backend().now()
    job.cancel()
    await backend().finish(job, unwinding.flight, MOMENT)
    error = CloseTimeoutError(closing.resource.name, seconds)
    unwinding.tell("timed_out", closing.resource, error=error)
    _force(unwinding, closing, error)
    if await backend().finish(job, unwinding.flight, MOMENT):
        own = job.take_error()
        if isinstance(own, Exception):
            error.__cause__ = own
        elif own is not None and not isinstance(own, backend().Cancelled):
            unwinding.flight.interrupts += (own,)
    unwinding.failed(closing.resource, error, closing.elapsed(), timed_out=True)
    if unwinding.budget is not None:
        unwinding.budget.extend(backend().now() - since)


def _force(unwinding: Unwinding, closing: Closing, error: CloseTimeoutError) -> None:
    force = closing.resource.force
    if force is None:
        return
    unwinding.tell("forced", closing.resource)
    try:
        force()
    except BaseException as exc:
        error.add_note(f"force failed too: {reason(exc)}")
        if not isinstance(exc, Exception):
            unwinding.flight.interrupts += (exc,)
