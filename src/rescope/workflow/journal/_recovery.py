"""Closing what owners left behind.

Who recovers has two leases: one of all recoverers, so that there is one at a time, and for each life that of its owner,
so that an owner that wakes up finds it taken. Without both nothing more is begun. Cleanups that are under way are run
to their end, as those of a closing scope are.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, final

from rescope import Resource, ResourceCleanupError
from rescope._closer import check_callable
from rescope.exceptions import reason
from rescope.workflow._names import check_store
from rescope.workflow.journal._cleanups import find, run
from rescope.workflow.journal._records import LEASES, PREFIX, Life, life_of, live_leases, read
from rescope.workflow.journal._report import RecoveryReport
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, lease
from rescope.workflow.retries import Backoff
from rescope.workflow.store import StoreError, VersionConflictError, check_ttl

if TYPE_CHECKING:
    from collections.abc import Callable

    from rescope.workflow.journal._records import PendingCleanup
    from rescope.workflow.lease import Lease
    from rescope.workflow.store import Entry, Store

__all__ = ["BACKOFF", "pending", "recover"]

BACKOFF: Final = Backoff(first=0.5)
RECOVERY: Final = "journal-recovery"

_PATIENCE = 3.0  # seconds for which a pass waits for a retry
_TRIES = 3  # in one pass


async def pending(store: Store) -> list[PendingCleanup]:
    """List what is open: what live owners hold, and what is left behind, in order of owner, scope and place.

    Raises `TypeError` for what is no store, `StoreError` where the store fails.
    """
    check_store(store)
    live = await live_leases(store)
    return [read(entry, live) async for entry in store.scan(PREFIX)]


async def recover(
    store: Store,
    *,
    grace: float = 60.0,
    backoff: Callable[[int], float] = BACKOFF,
    limit: int = 10,
    ttl: float = 30.0,
    clock: Callable[[], float] = time.time,
    on_progress: Callable[[PendingCleanup], object] | None = None,
) -> RecoveryReport:
    """Close what owners whose lease has run out left behind. This is one pass; call it again from time to time.

    Each scope is closed in reverse order of registration, its children at their places; up to `limit` scopes at once.
    A cleanup that fails is kept in the journal and keeps no other one waiting, nor an older one of its own scope, as in
    any scope. It is tried again after `backoff(attempts)` seconds (half a second, and then twice as long each time, up
    to an hour): in this pass where that is within 3 seconds, up to three times, else in a later one. A cleanup of
    a name that is not registered here is kept and reported, so import the modules with your cleanups first.

    `grace`, in seconds, bounds the pass: a cleanup may take half of what is left of it, the last one of its scope all;
    what takes longer is cancelled, has failed, and is left behind if it does not end. `ttl` is that of the leases of
    the recoverer: so long it takes until another one can go on for one that died. `clock` gives epoch seconds, for the
    times that are written. `on_progress` is called with each cleanup that was closed or has failed.

    One recoverer works at a time: where another one is at it this returns at once. A cancellation waits for the
    cleanups that are under way; no other one begins.

    Raises `TypeError` or `ValueError` for arguments that can't be, `StoreError` where the store fails.
    """
    _check(store, grace, backoff, limit, ttl, clock, on_progress)
    recovery = _Recovery(store, grace, backoff, limit, ttl, clock, on_progress)
    if await store.get(LEASES + RECOVERY) is not None:
        return RecoveryReport(busy=True)
    try:
        async with lease(store, RECOVERY, ttl=ttl) as held:
            await recovery.run(held)
    except LeaseHeldError:
        return RecoveryReport(busy=True)
    except LeaseLostError as lost:
        _log("recovering is left to others: %s", lost)
        return recovery.report(busy=True)
    return recovery.report()


@final
class _Recovery:
    """One pass."""

    def __init__(
        self,
        store: Store,
        grace: float,
        backoff: Callable[[int], float],
        limit: int,
        ttl: float,
        clock: Callable[[], float],
        on_progress: Callable[[PendingCleanup], object] | None,
    ) -> None:
        from anyio import CapacityLimiter, current_time

        self.store = store
        self.backoff = backoff
        self.ttl = ttl
        self.clock = clock
        self.on_progress = on_progress
        self.now = current_time
        self.end = current_time() + grace
        self.patience = current_time() + min(grace, _PATIENCE)
        self.lives = CapacityLimiter(limit)
        self.scopes = CapacityLimiter(limit)
        self.found: list[_Left] = []
        self.closed: list[PendingCleanup] = []
        self.strange: list[PendingCleanup] = []
        self.trouble: StoreError | None = None

    async def run(self, held: Lease) -> None:
        """Take over each life whose lease has run out, and close what it left."""
        from anyio import create_task_group

        lives = await self._lives()
        live = await live_leases(self.store)
        async with create_task_group() as tasks:
            for life in lives:
                if LEASES + life.lease not in live:
                    tasks.start_soon(self._take_over, life, held)
        if self.trouble is not None:
            raise self.trouble

    def report(self, *, busy: bool = False) -> RecoveryReport:
        """Say what has come of it."""
        kept = [left for left in self.found if not left.closed]
        return RecoveryReport(
            tuple(self.closed),
            tuple(left.item for left in kept if left.tries),
            tuple(left.item for left in kept if left.unknown) + tuple(self.strange),
            tuple(left.item for left in kept if not left.tries and not left.unknown),
            busy,
        )

    async def _lives(self) -> list[Life]:
        """Give all that have left something; whose lease has run out is asked later, as a live one adds records."""
        lives: dict[Life, None] = {}
        async for entry in self.store.scan(PREFIX):
            life = life_of(entry.key)
            if life is None:
                self.strange.append(read(entry))
            else:
                lives[life] = None
        return list(lives)

    async def _take_over(self, life: Life, recovering: Lease) -> None:
        """Close what that one left, unless it is back."""
        from anyio import create_task_group

        async with self.lives:
            try:
                async with lease(self.store, life.lease, ttl=self.ttl) as held:
                    lines = await self._lines(life)
                    async with create_task_group() as tasks:
                        for line in lines:
                            tasks.start_soon(self._close_line, line, (recovering, held))
            except LeaseHeldError:
                pass  # it is live, or another recoverer is at it
            except LeaseLostError as lost:
                _log("what owner %r left is left to others: %s", life.owner, lost)
            except StoreError as exc:
                self.trouble = exc

    async def _lines(self, life: Life) -> list[list[_Left]]:
        """Give what there is to close of each scope, the latest first; read when nobody else can write it."""
        entries = [entry async for entry in self.store.scan(life.prefix)]
        found = [_Left(entry, self.clock(), self.now(), self.backoff) for entry in entries]
        self.found += found
        known = [left for left in reversed(found) if not left.unknown]
        return [list(line) for _, line in groupby(known, key=lambda left: left.item.scope)]

    async def _close_line(self, line: list[_Left], leases: tuple[Lease, ...]) -> None:
        """Close what one scope left, in that order, each as soon as it is due."""
        from anyio import sleep_until
        from anyio.lowlevel import checkpoint

        while todo := [left for left in line if self._worth_waiting(left)]:
            await sleep_until(min(left.due for left in todo))
            async with self.scopes:
                for left in todo:
                    await checkpoint()
                    if left.due <= self.now() and all(held.remaining for held in leases):
                        await self._try(left, last=left is line[-1])
            if not all(held.remaining for held in leases):
                break

    def _worth_waiting(self, left: _Left) -> bool:
        return not left.closed and left.tries < _TRIES and left.due <= self.patience and self.now() < self.end

    async def _try(self, left: _Left, *, last: bool) -> None:
        seconds = max(0.0, self.end - self.now()) / (1 if last else 2)
        timeout = None if seconds == math.inf else seconds
        closing = Resource(None, partial(self._close, left), name=left.item.cleanup, timeout=timeout)
        try:
            await closing.aclose()
        except ResourceCleanupError as error:
            await self._note(left, error.exceptions[0])
        self._tell(left.item)

    async def _close(self, left: _Left) -> None:
        await run(left.clean, left.item.token)
        await self.store.delete(left.item.key, if_version=left.version)
        left.closed = True
        self.closed.append(left.item)

    async def _note(self, left: _Left, error: Exception) -> None:
        """Write down that it has failed, and when it is tried again."""
        left.failed(reason(error), self.clock(), self.now(), self.backoff)
        _log("cleanup %r of owner %r has failed: %s", left.item.cleanup, left.item.owner, left.item.error)
        try:
            left.version = await self.store.put(left.item.key, left.record(), if_version=left.version)
        except VersionConflictError:
            left.tries = _TRIES  # somebody else has written it, or closed it
        except StoreError as exc:
            self.trouble = exc

    def _tell(self, item: PendingCleanup) -> None:
        try:
            if self.on_progress is not None:
                self.on_progress(item)
        except Exception as exc:
            _log("on_progress raised, and the recovery goes on: %s", reason(exc))


@final
class _Left:
    """One record that was left, and what has become of it in this pass."""

    def __init__(self, entry: Entry, clock: float, now: float, backoff: Callable[[int], float]) -> None:
        self.item = read(entry)
        self.value: dict[str, Any] = entry.value
        self.version = entry.version
        found = find(self.item.cleanup)
        self.unknown = found is None
        self.clean: Callable[[Any], object] = found or _nothing
        self.tries = 0
        self.closed = False
        # A clock that was set back makes nothing wait for longer than it would have to anyway.
        wait = 0.0 if self.item.next_try is None else min(self.item.next_try - clock, backoff(self.item.attempts))
        self.due = now + max(0.0, wait)

    def failed(self, error: str, clock: float, now: float, backoff: Callable[[int], float]) -> None:
        self.tries += 1
        attempts = self.item.attempts + 1
        pause = backoff(attempts)
        self.item = replace(self.item, attempts=attempts, error=error, next_try=clock + pause)
        self.due = now + pause

    def record(self) -> dict[str, Any]:
        item = self.item
        return {**self.value, "attempts": item.attempts, "error": item.error, "next_try": item.next_try}


def _nothing(_: object) -> None:
    """Stand where a cleanup would that isn't known: it is never called."""


def _log(message: str, *args: object) -> None:
    logging.getLogger("rescope").warning(message, *args)


def _check(
    store: object, grace: object, backoff: object, limit: object, ttl: object, clock: object, on_progress: object
) -> None:
    """Refuse what can't be recovered with."""
    check_store(store)
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        msg = f"`grace` must be a number of seconds, not a {type(grace).__qualname__}"
        raise TypeError(msg)
    if not grace > 0:
        msg = f"`grace` must be more than 0 s, got {grace}"
        raise ValueError(msg)
    check_callable(backoff, "backoff")
    if isinstance(limit, bool) or not isinstance(limit, int):
        msg = f"`limit` must be a whole number of scopes, not a {type(limit).__qualname__}"
        raise TypeError(msg)
    if limit < 1:
        msg = f"`limit` must be at least 1, not {limit}"
        raise ValueError(msg)
    if ttl is None:
        msg = "`ttl` must be a number of seconds: it is how long others wait for a recoverer that died"
        raise TypeError(msg)
    check_ttl(ttl)
    check_callable(clock, "clock")
    if on_progress is not None:
        check_callable(on_progress, "on_progress")
