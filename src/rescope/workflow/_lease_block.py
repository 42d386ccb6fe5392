"""The block that runs under a lease.

The body runs in a cancel scope of its own, which the loss of the lease cancels, once. No task group lies around it. The
release is the closer of a `Resource`: so no cancellation of the body's task reaches it, and it ends in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, final

from rescope import Resource, ResourceCleanupError, Scope
from rescope.workflow._lease_claim import LONGEST_RELEASE, no_answer
from rescope.workflow._lease_held import LeaseLostError, tell

if TYPE_CHECKING:
    from types import TracebackType

    from rescope.workflow._lease_claim import Claim
    from rescope.workflow._lease_held import Lease


@final
class Leasing:
    """The block that runs under a lease."""

    __qualname__ = "lease"  # what a scope calls it that enters or hosts it

    __slots__ = ("_claim", "_taken", "_wait")

    def __init__(self, claim: Claim, wait: float) -> None:
        self._claim = claim
        self._wait = wait
        self._taken: Resource[None] | None = None

    async def __aenter__(self) -> Lease:
        from anyio import CancelScope

        claim, lease = self._claim, self._claim.lease
        if self._taken is not None:
            msg = f"this lease of {lease.name!r} has been used: call `lease(...)` for each block"
            raise RuntimeError(msg)
        self._taken = Resource(None, claim.release, name="release", timeout=min(claim.ttl, LONGEST_RELEASE))
        lease._body = CancelScope()
        lease._body.__enter__()
        try:
            await claim.acquire(self._wait)
        except BaseException as exc:
            if not await self.__aexit__(type(exc), exc, exc.__traceback__):
                raise
            raise no_answer(claim.patience) from None
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        noticed, hit = self._claim.lease._end(), None
        if kind is None:
            hit = exc = await self._claim.let_go()
        try:
            swallowed = self._claim.lease._body.__exit__(None if exc is None else type(exc), exc, traceback)
        except BaseException as left:  # trio takes its own cancellation out of a group
            await self._end(left, noticed=noticed)
            raise
        await self._end(None if swallowed else exc, noticed=noticed)
        if hit is not None and not swallowed:
            raise hit
        return swallowed

    async def _end(self, exc: BaseException | None, *, noticed: bool) -> None:
        """Release it, and say what there is to say: `exc` is what comes out, unless this raises."""
        lease = self._claim.lease
        try:
            await self._release(exc)
        except ResourceCleanupError as error:
            lease.release_error = error
            tell(f"lease {lease.name!r} (token {lease.token}) is left to expire: {error.message}")
        except BaseException as interruption:
            lease.release_error = self._claim.unreleased()
            if lease.lost is not None:
                tell(str(lease.lost), interruption)
            raise
        lost = lease.lost
        if lost is None or (isinstance(exc, LeaseLostError) and exc.args == lost.args):
            return
        if noticed and (exc is None or isinstance(exc, Exception)):
            raise lost._anew() from (lost.__cause__ if exc is None else exc)
        tell(str(lost), exc)

    async def _release(self, exc: BaseException | None) -> None:
        """Release it, out of reach of what cancels this task; a scope is for what is in flight meanwhile."""
        if self._claim.released:
            return
        taken = cast("Resource[None]", self._taken)
        if exc is None:
            await taken.aclose()
        else:
            scope = Scope(f"lease {self._claim.lease.name}")
            scope.add(taken)
            await scope.__aexit__(type(exc), exc, exc.__traceback__)
