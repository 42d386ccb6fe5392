"""Closing what owners left behind.

Who recovers has two leases: one of all recoverers, so that there is one at a time, and for each life that of its owner,
so that an owner that wakes up finds it taken. Without both nothing more is begun. Cleanups that are under way are run
to their end, as those of a closing scope are.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, final

from rescope import Resource, ResourceCleanupError
from rescope._closer import check_callable, is_coroutine_function, name_of
from rescope.exceptions import reason
from rescope.workflow._names import check_store
from rescope.workflow.journal._cleanups import run
from rescope.workflow.journal._left import Left
from rescope.workflow.journal._records import LEASES, PREFIX, Life, as_json, life_of, live_leases, read
from rescope.workflow.journal._report import RecoveryReport
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, lease
from rescope.workflow.retries import _LONGEST, Backoff, _check_number
from rescope.workflow.store import VersionConflictError, check_ttl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rescope.workflow.journal._records import PendingCleanup
    from rescope.workflow.lease import Lease
    from rescope.workflow.store import Store

__all__ = ["BACKOFF", "pending", "recover"]

BACKOFF: Final = Backoff(first=0.5)
RECOVERY: Final = "journal-recovery"

_LIVES = 100  # that are taken over at once, whose leases are to be renewed


async def pending(store: Store) -> list[PendingCleanup]:
    """List what is open: what live owners hold, and what is left behind, in order of owner, scope and place.

    Raises `TypeError` for what is no store, `StoreError` where the store fails.
    """
    check_store(store)
    before = await live_leases(store)
    entries = [entry async for entry in store.scan(PREFIX)]
    live = before | await live_leases(store)  # who began meanwhile is live, and who ended was
    return [read(entry, live) for entry in entries]


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

    `grace`, in seconds, bounds the pass: a cleanup may take half of what is left of it, or all where no other one waits
    for its first try; what takes longer is cancelled, has failed, and is left behind if it does not end. `ttl` is that
    of the leases of the recoverer: so long it takes until another one can go on for one that died. `clock` gives epoch
    seconds, for the times that are written. `on_progress`, which is sync, is called with each cleanup that was closed
    or has failed.

    One recoverer works at a time: where another one is at it this returns at once. A cancellation waits for the
    cleanups that are under way; no other one begins.

    Raises `TypeError` or `ValueError` for arguments that can't be. When all the others were closed: `StoreError` where
    the store fails, what `backoff` raises, and a `KeyboardInterrupt` or `SystemExit` of a cleanup.
    """
    _check(store, grace, backoff, limit, ttl, clock, on_progress)
    recovery = _Recovery(store, grace, backoff, limit, ttl, clock, on_progress)
    if await store.get(LEASES + RECOVERY) is not None:
        return RecoveryReport(busy=True)
    try:
        async with lease(store, RECOVERY, ttl=ttl) as held:
            await recovery.run(held)
        stopped = held.lost is not None and bool(recovery.report().later)  # which may be noticed at the end only
    except LeaseHeldError:
        return RecoveryReport(busy=True)
    except LeaseLostError as lost:
        _log("recovering is left to others: %s", lost)
        stopped = True
    recovery.raise_trouble()
    return recovery.report(busy=stopped)


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
        self.lives = CapacityLimiter(_LIVES)
        self.scopes = CapacityLimiter(limit)
        self.ahead = 0  # how much has not had its first try yet: lives to take over, and records
        self.found: list[Left] = []
        self.closed: list[PendingCleanup] = []
        self.strange: list[PendingCleanup] = []
        self.unreached: list[PendingCleanup] = []
        self.trouble: BaseException | None = None

    async def run(self, held: Lease) -> None:
        """Take over each life whose lease has run out, and close what it left."""
        from anyio import create_task_group

        lives = await self._lives()
        live = await live_leases(self.store)
        over = [life for life in lives if LEASES + life.lease not in live]
        self.ahead = len(over)
        async with create_task_group() as tasks:
            for life in sorted(over, key=lambda life: _tried(lives[life])):
                tasks.start_soon(self._take_over, life, lives[life], held)

    def raise_trouble(self) -> None:
        """Raise what was kept until now, if anything was."""
        if self.trouble is not None:
            self.trouble.add_note(f"rescope: the pass of `recover` went on: {self.report().summary}")
            raise self.trouble

    def report(self, *, busy: bool = False) -> RecoveryReport:
        """Say what has come of it."""
        kept = [left for left in self.found if not left.closed]
        return RecoveryReport(
            tuple(self.closed),
            tuple(left.item for left in kept if left.tries),
            tuple(left.item for left in kept if left.unknown) + tuple(self.strange),
            tuple(left.item for left in kept if not left.tries and not left.unknown) + tuple(self.unreached),
            busy,
        )

    async def _lives(self) -> dict[Life, list[PendingCleanup]]:
        """Give all that have left something; whose lease has run out is asked later, as a live one adds records."""
        lives: dict[Life, list[PendingCleanup]] = {}
        async for entry in self.store.scan(PREFIX):
            life = life_of(entry.key)
            if life is None:
                self.strange.append(read(entry))
            else:
                lives.setdefault(life, []).append(read(entry))
        return lives

    async def _take_over(self, life: Life, seen: list[PendingCleanup], recovering: Lease) -> None:
        """Close what that one left, unless it is back."""
        async with self.lives:
            if self.now() >= self.end:
                self.unreached += seen
                return
            try:
                async with lease(self.store, life.lease, ttl=self.ttl) as held:
                    await self._close_life(life, (recovering, held))
            except LeaseHeldError:
                pass  # it is live, or another recoverer is at it
            except LeaseLostError as lost:
                _log("what owner %r left is left to others: %s", life.owner, lost)
            except Exception as exc:
                self._keep_trouble(exc)

    async def _close_life(self, life: Life, leases: tuple[Lease, ...]) -> None:
        """Close what is there, the scopes side by side; read when nobody else can write it."""
        from anyio import create_task_group

        found = [Left(entry) async for entry in self.store.scan(life.prefix)]
        self.found += found
        for left in found:
            left.wait(self._rest_of_pause(left.item), self.now())
        todo = [left for left in reversed(found) if not left.over]
        self.ahead += len(todo) - 1
        lines = [list(line) for _, line in groupby(todo, key=lambda left: left.item.scope)]
        async with create_task_group() as tasks:
            for line in sorted(lines, key=lambda line: _tried(left.item for left in line)):
                tasks.start_soon(self._close_line, line, leases)

    async def _close_line(self, todo: list[Left], leases: tuple[Lease, ...]) -> None:
        """Close what one scope left, each as soon as it is due."""
        from anyio import sleep_until

        while todo and self._may_begin(leases):
            await sleep_until(min(self.end, *(left.due for left in todo)))
            async with self.scopes:
                await self._close_due(todo, leases)

    async def _close_due(self, todo: list[Left], leases: tuple[Lease, ...]) -> None:
        """Close the youngest that is due, until none is."""
        from anyio.lowlevel import checkpoint

        while True:
            await checkpoint()
            left = next((left for left in todo if left.due <= self.now()), None)
            if left is None or not self._may_begin(leases):
                return
            await self._try(left)
            if left.over:
                todo.remove(left)

    def _may_begin(self, leases: tuple[Lease, ...]) -> bool:
        return self.now() < self.end and all(held.remaining for held in leases)

    async def _try(self, left: Left) -> None:
        if not left.tries:
            self.ahead -= 1
        seconds = (self.end - self.now()) / (2 if self.ahead else 1)  # who hangs leaves as much to those who wait
        timeout = None if seconds == math.inf else max(0.0, seconds)
        closing = Resource(None, partial(self._close, left), name=left.item.cleanup, timeout=timeout)
        try:
            await closing.aclose()
        except ResourceCleanupError as error:
            await self._note(left, error.exceptions[0])
        except (KeyboardInterrupt, SystemExit) as exc:  # as in a scope, it comes out when the others were closed too
            self._keep_trouble(exc)
            await self._note(left, exc)
        self._tell(left.item)

    async def _close(self, left: Left) -> None:
        await run(left.clean, as_json(left.item.token))  # whatever it does to that
        await self.store.delete(left.item.key, if_version=left.version)
        left.end()
        self.closed.append(left.item)

    async def _note(self, left: Left, error: BaseException) -> None:
        """Write down that it has failed, and when it is tried again."""
        left.failed(reason(error))
        _log("cleanup %r of owner %r has failed: %s", left.item.cleanup, left.item.owner, left.item.error)
        pause = self._pause(left.item.attempts)
        left.wait(pause, self.now())
        try:
            record = left.record(self.clock() + pause)
            left.version = await self.store.put(left.item.key, record, if_version=left.version)
        except VersionConflictError:
            left.over = True  # somebody else has written it, or closed it
        except Exception as exc:
            self._keep_trouble(exc)

    def _rest_of_pause(self, item: PendingCleanup) -> float:
        """Give how long it still has to wait; a clock that was set back makes it wait no longer than a pause takes."""
        rest = 0.0 if item.next_try is None else item.next_try - self.clock()
        return min(rest, self._pause(item.attempts)) if rest > 0 else 0.0

    def _pause(self, attempts: int) -> float:
        """Give what `backoff` does; where that can't be, the pass goes on with the one there is without it."""
        try:
            pause = self.backoff(attempts)
            _check_number("what `backoff` gives", pause, 0, _LONGEST)
        except Exception as exc:
            self._keep_trouble(exc)
            return BACKOFF(attempts)
        return pause

    def _keep_trouble(self, exc: BaseException) -> None:
        """Keep what is to be raised when the others were closed too: the first one, and an exit before all else."""
        worse = not isinstance(exc, Exception) and isinstance(self.trouble, Exception)
        if self.trouble is None or worse:
            self.trouble = exc
        _log("recovering goes on, although %s", reason(exc))

    def _tell(self, item: PendingCleanup) -> None:
        try:
            if self.on_progress is not None:
                self.on_progress(item)
        except Exception as exc:
            _log("on_progress raised, and the recovery goes on: %s", reason(exc))


def _tried(items: Iterable[PendingCleanup]) -> int:
    """Give how often of all these the most stubborn one was tried.

    Those that never failed begin first: else, with a short grace, those that hang would have all of it in each pass. On
    trio tasks begin in an order of chance, which starves nobody either.
    """
    return max(item.attempts for item in items)


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
        if is_coroutine_function(on_progress):
            msg = f"`on_progress` must be sync, and {name_of(on_progress)} is async: nothing awaits it"
            raise TypeError(msg)
