"""One life of an owner: its lease, which its scopes share, and what they have written down."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING, final

from rescope import ResourceCleanupError, Scope
from rescope.exceptions import reason
from rescope.workflow._lease_held import tell
from rescope.workflow.journal._records import begin_life
from rescope.workflow.lease import Lease, LeaseHeldError, LeaseLostError, lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from anyio.lowlevel import RunVar

    from rescope.events import ScopeEvent
    from rescope.workflow.journal._records import Life
    from rescope.workflow.store import Store

__all__ = ["CleanupTakenError", "Family", "Journal", "Owner"]


class CleanupTakenError(Exception):
    """The owner had lost its lease, and somebody recovers what it left: the cleanup was left to them.

    Its record is in the journal until it has run.
    """

    __module__ = "rescope.workflow.journal"

    def __init__(self, cleanup: str, owner: str) -> None:
        super().__init__(cleanup, owner)
        self.cleanup = cleanup
        self.owner = owner

    def __str__(self) -> str:
        return f"owner {self.owner!r} has lost its lease: the cleanup {self.cleanup!r} is left to who recovers it now"


@final
class Journal:
    """Where scopes write, and as whom."""

    __slots__ = ("clock", "owner", "store", "ttl")

    def __init__(self, store: Store, owner: str, ttl: float, clock: Callable[[], float]) -> None:
        self.store = store
        self.owner = owner
        self.ttl = ttl
        self.clock = clock

    async def join(self) -> Owner:
        """Give the life that this event loop has; it begins where there is none, or its lease is lost."""
        owners = _owners_here()
        key = id(self.store), self.owner, self.ttl
        owner = owners.get(key)
        if owner is None or owner.lost:
            owner = owners[key] = Owner(self)
        await owner.need()
        return owner


@final
class Family:
    """A scope, its children, and what it was moved to: they share a life, as each may build on what another holds."""

    __slots__ = ("_members", "_owner", "journal")

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._members = 0
        self._owner: Owner | None = None

    async def join(self) -> Owner:
        """Count one more of them that stands on the lease. Raises `LeaseLostError` where the others' is lost."""
        if self._owner is not None:
            self._owner.check()
            self._owner.need_too()
        else:
            self._owner = await self.journal.join()  # who joins at the same time is given the same one
        self._members += 1
        return self._owner

    async def part(self, owner: Owner) -> None:
        """Count one less. When there is none, the next one may begin another life."""
        self._members -= 1
        if not self._members:
            self._owner = None
        await owner.let_go()


class Footing:
    """A lease of an owner's life, on which several stand: the first one takes it, and the last one gives it back."""

    __slots__ = ("_home", "_lease", "_needed", "_opening", "journal", "life")

    def __init__(self, journal: Journal, life: Life) -> None:
        from anyio import Lock

        self.journal = journal
        self.life = life
        self._needed = 0
        self._opening = Lock()
        self._home = Scope(f"journal of {life.owner}", on_event=self._on_event)
        self._lease: Lease | None = None

    async def need(self) -> None:
        """Count one more who stands on it. The first one takes it; it is kept in a task of its own."""
        self._needed += 1
        try:
            if self._lease is None:
                async with self._opening:
                    if self._lease is None:
                        self._lease = await self._home.host(self._new_lease(), name="lease")
        except BaseException:
            await self.let_go()
            raise

    def need_too(self) -> None:
        """Count one more, while somebody stands on it."""
        self._needed += 1

    async def let_go(self) -> None:
        """Count one less; the last one gives the lease back. No cancellation reaches that."""
        self._needed -= 1
        if self._needed:
            return
        try:
            await self._home.aclose()
        except ResourceCleanupError as error:
            self._tell_lost(error)

    @property
    def over(self) -> bool:
        """Whether nobody stands on it any more: it never begins again."""
        return self._needed == 0

    @property
    def lost(self) -> bool:
        """Whether the lease was lost, by now."""
        try:
            self.check()
        except LeaseLostError:
            return True
        return False

    def check(self) -> None:
        """Raise `LeaseLostError` where the lease was lost."""
        if self._lease is None:
            return
        if (lost := self._lease.lost) is not None:
            raise LeaseLostError(*lost.args) from lost.__cause__
        self._lease.check()

    def _new_lease(self) -> AbstractAsyncContextManager[Lease, bool | None]:
        return lease(self.journal.store, self.life.lease, ttl=self.journal.ttl, clock=self.journal.clock)

    def _on_event(self, event: ScopeEvent) -> None:
        if event.kind == "died":
            self._tell_lost(event.error)

    def _tell_lost(self, error: BaseException | None) -> None:
        """Say that it was lost, where nobody knows yet."""


@final
class Owner(Footing):
    """One life of an owner."""

    __slots__ = ("_again", "_told", "leaves_all", "left", "prefix")

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal, begin_life(journal.owner, time.time(), os.urandom(5).hex()))
        self.prefix = self.life.prefix
        self.left = self.life.left.prefix
        self._again: Footing | None = None
        self.leaves_all = False  # to a recoverer, as it had to leave something that may build on the rest
        self._told = False

    async def let_go(self) -> None:
        """Count one less; the last one ends this life."""
        if self._needed == 1:
            owners = _owners_here()
            for key in [key for key, owner in owners.items() if owner is self]:
                del owners[key]
        await super().let_go()

    async def again(self, cleanup: str, fn: Callable[[], Awaitable[None]]) -> None:
        """Do that with the lease, which is taken once more for it. Refused where a recoverer has it."""
        if self.leaves_all:
            raise CleanupTakenError(cleanup, self.life.owner)
        footing = self._again
        if footing is None or footing.over:
            footing = self._again = Footing(self.journal, self.life)
        try:
            await footing.need()
        except LeaseHeldError as held:
            raise CleanupTakenError(cleanup, self.life.owner) from held
        try:
            footing.check()
            await fn()
        finally:
            await footing.let_go()

    def _tell_lost(self, error: BaseException | None) -> None:
        if not self._told:
            self._told = True
            why = "" if error is None else f" ({reason(error)})"
            tell(f"owner {self.life.owner!r} has lost its lease, and journals nothing more in this life{why}")


@cache
def _owners() -> RunVar[dict[tuple[int, str, float], Owner]]:
    """The lives that are under way, of each event loop."""
    from anyio.lowlevel import RunVar

    return RunVar("rescope.workflow.journal")


def _owners_here() -> dict[tuple[int, str, float], Owner]:
    try:
        return _owners().get()
    except LookupError:
        owners: dict[tuple[int, str, float], Owner] = {}
        _owners().set(owners)
        return owners
