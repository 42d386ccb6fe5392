"""What a holder holds: `Lease`, and the errors of those who don't, or no longer.

No two clocks are compared. The store judges expiry by its own clock, from when it does the put. The holder judges by
its own, from before it sent that put, which is earlier. So the holder is the first to think that the time is over, as
long as both clocks run at the same speed. The holder's clock goes on while the process is stopped, and where the system
has such a clock, while the machine sleeps.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CancelScope

_PUBLIC = "rescope.workflow.lease"  # where the errors are found, as a traceback shows it


class LeaseHeldError(Exception):
    """Somebody else holds the lease, and did so for as long as it was asked for.

    `holder` is what the holder calls itself; `until` is when that lease runs out unless it is renewed, in epoch seconds
    by the store's clock. Both are `None` where it was let go of just now, and taken again.
    """

    __module__ = _PUBLIC

    def __init__(self, name: str, holder: str | None, until: float | None) -> None:
        super().__init__(name, holder, until)
        self.name = name
        self.holder = holder
        self.until = until

    def __str__(self) -> str:
        until = ""
        if self.until is not None:
            at = datetime.fromtimestamp(self.until, UTC)
            until = f" until {at:%Y-%m-%d %H:%M:%S} UTC by the store's clock, unless it is renewed"
        return f"lease {self.name!r} is held by {self.holder or 'somebody else'}{until}; to wait for it, use `wait=`"


class LeaseLostError(Exception):
    """The lease is held no longer: somebody else may have it, and be at the same work.

    `token` is the fencing token that it had, `reason` says how it was lost. The `__cause__` is what the body raised
    itself, else the latest failure to renew, if there was one.
    """

    __module__ = _PUBLIC

    def __init__(self, name: str, token: int, reason: str) -> None:
        super().__init__(name, token, reason)
        self.name = name
        self.token = token
        self.reason = reason

    def __str__(self) -> str:
        return f"lease {self.name!r} (token {self.token}) is lost: {self.reason}"

    def _anew(self) -> LeaseLostError:
        """Make it anew, to raise it: an error that was raised knows all the frames that it went through."""
        return LeaseLostError(self.name, self.token, self.reason)


@final
class Lease:
    """What `lease(...)` gives: a lease that is held, or was."""

    __slots__ = (
        "_body",
        "_clock",
        "_deadline",
        "_over",
        "_trouble",
        "holder",
        "lost",
        "name",
        "release_error",
        "token",
    )

    name: str
    """What it is called in the store."""
    holder: str
    """What this holder is called in the errors of the others."""
    token: int
    """The fencing token: larger than that of any holder before, and the same for as long as the lease is held."""
    lost: LeaseLostError | None
    """How it was lost, if it was; also where that was noticed too late to be raised."""
    release_error: Exception | None
    """Why it could not be released, if so: then it stays until it expires."""

    _body: CancelScope

    def __init__(self, name: str, holder: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.holder = holder
        self.token = 0
        self.lost = None
        self.release_error = None
        self._clock = clock
        self._deadline = -math.inf
        self._over = False
        self._trouble: Exception | None = None

    @property
    def remaining(self) -> float:
        """The seconds for which it is held unless it is renewed, by this machine's monotonic clock; at the end 0."""
        if self._over or self.lost is not None:
            return 0.0
        return max(0.0, self._deadline - self._clock())

    @property
    def expires_at(self) -> float:
        """When it runs out unless it is renewed, in epoch seconds by this machine's clock.

        This is for people to read. The lease itself goes by a clock that nobody can set: see `remaining`.
        """
        return time.time() + self._deadline - self._clock()

    def check(self) -> None:
        """Raise `LeaseLostError` unless the lease is held right now. This asks the clock, not the store.

        It is for a body that kept its event loop waiting, or may have been stopped, and is about to do something that
        no token guards. Where the lease is lost, the body is also cancelled.
        """
        if self._over:
            raise LeaseLostError(self.name, self.token, "its block has ended")
        self._look_at_the_clock()
        if self.lost is not None:
            raise self.lost._anew() from self.lost.__cause__

    def _look_at_the_clock(self) -> float:
        """Notice that its time is over, if it is; give the seconds that are left."""
        left = self._deadline - self._clock()
        if left <= 0:
            self._lose("its time ran out")
        return left

    def _lose(self, reason: str) -> None:
        """Notice that it is lost. The body is cancelled, unless it has ended."""
        if self.lost is not None:
            return
        if self._trouble is not None:
            reason += f", and renewing it had failed ({type(self._trouble).__name__})"
        self.lost = LeaseLostError(self.name, self.token, reason)
        self.lost.__cause__ = self._trouble
        if not self._over:
            self._body.cancel()

    def _end(self) -> bool:
        """The block has ended. Tell whether the loss was noticed while it ran."""
        noticed = self.lost is not None
        self._over = True
        if self.token:
            self._look_at_the_clock()
        return noticed

    def __repr__(self) -> str:
        state = "lost" if self.lost else "gone" if self._over else f"{self.remaining:.3g} s left"
        return f"<Lease {self.name!r}: token {self.token}, {state}>"


def tell(message: str, beside: BaseException | None = None) -> None:
    """Say what is not raised: in the log, and as a note on what is."""
    if beside is not None:
        beside.add_note(f"rescope: {message}")
    logging.getLogger("rescope").warning("%s", message)
