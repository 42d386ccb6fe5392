"""A lock that expires, with fencing tokens, on a `Store`.

After Gray and Cheriton ("Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache Consistency", 1989),
Chubby's sequencers (Burrows, 2006), and Kleppmann's "How to do distributed locking" (2016), which is why there is
a token.

A lease is one entry, `lease/<name>`, which the store forgets when its time is over. It holds who has it, and a mark of
this one holding, so that a holder whose answer got lost recognises its own writing. The token is the version of the put
that took it: versions of a key only grow, so whoever takes it later has a larger one. A renewal is a put on the version
before; a release is a delete of the last one. So neither can touch what another holder wrote.

No two clocks are compared. The store judges expiry by its own clock, from when it does the put. The holder judges by
its own, from before it sent that put, which is earlier. So the holder is the first to think that the time is over, as
long as both clocks run at the same speed. The holder's clock goes on while the process is stopped, and where the system
has such a clock, while the machine sleeps.

The states, and who may be cancelled where:

- *asking*: in the body's task, which may be cancelled at any point, inside the cancel scope that is the body's later.
  Whether a put was done that was cut off isn't known: then the release looks for the mark.
- *held*: the body runs, in its cancel scope. No task group lies around it, and no task waits beside it: a timer starts
  one, `_keep`, when the first renewal is due. That one is no child of the body's and hears of no cancellation of it. It
  has two children. One renews, the other watches the clock, so that a store which hangs in a thread, where nothing can
  cut it off, doesn't keep the loss from being noticed.
- *renewing*: still held. The store has a third of the ttl to answer. The end of the body cancels it.
- *in doubt*: a put failed or was cut off, and may have been done. Still held, for the time since the last success was
  sent: nobody can take it before. The next try looks first whose entry stands there.
- *lost*: the time is over, or the entry there is another's, or none. One of the two children notices, or `check`. The
  body's cancel scope is cancelled, once.
- *releasing*: by a closer of a `Scope`, which no cancellation of the body's task reaches, in the time that there is:
  first `_keep` is cancelled and waited for, then the entry is deleted. What a cut-off renewal may have written is
  looked for.
- *gone*: released, lost, or left to expire; the latter two are told.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from socket import gethostname
from typing import TYPE_CHECKING, Final, cast, final

from rescope import ResourceCleanupError, Scope
from rescope.workflow._later import later
from rescope.workflow.store import (
    Entry,
    Store,
    StoreClosedError,
    StoreError,
    VersionConflictError,
    check_key,
    check_ttl,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from anyio import CancelScope, Event

    from rescope.workflow._later import Later

__all__ = ["Lease", "LeaseHeldError", "LeaseLostError", "lease"]

_PREFIX = "lease/"
_QUICK = 0.5  # seconds for the quick tries that everybody has
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_LONGEST_RELEASE = 5.0  # seconds: what is not released expires

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_clock: Final[Callable[[], float]] = time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)


class LeaseHeldError(Exception):
    """Somebody else holds the lease, and did so for as long as it was asked for.

    `holder` is what the holder calls itself; `until` is when that lease runs out unless it is renewed, in epoch seconds
    by the store's clock. Both are `None` where it was let go of just now, and taken again.
    """

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


def lease(
    store: Store,
    name: str,
    *,
    ttl: float,
    wait: float = 0,
    holder: str | None = None,
    clock: Callable[[], float] = _clock,
) -> AbstractAsyncContextManager[Lease, bool | None]:
    """Hold a lock that expires, while a block of code runs.

    `ttl`: seconds after which it expires unless it is renewed, which it is by itself, after each third of that. So
    others wait as long for a holder that was killed, and a holder can do without its store for about as long. `wait`:
    seconds to wait where somebody holds it; there are a few quick tries in any case, for half a second. `holder`: what
    this holder is called in the errors of the others; by default host name, process id and some random digits. `clock`
    gives seconds that never go back; a test may turn it.

    Gives a `Lease`. Send its `token` with all that is written under the lease, and let the other side refuse one that
    is smaller than what it has seen. Without that, no lock that expires is safe.

    Raises `LeaseHeldError` where somebody else holds it. A store that fails is asked again for half a second; then its
    `StoreError` is raised. So is one where the store does not answer in a third of the ttl, or half a second if that is
    more.

    Where the lease is lost while the block runs, the block is cancelled, and `LeaseLostError` is raised: `from` the
    block's own exception, if it ended with one. What is no `Exception`, as a cancellation from outside, comes out
    itself, with a note. A block that ends before the loss is noticed keeps its outcome. A failing release never changes
    the outcome: the lease then expires. What is not raised is told in `Lease.lost`, `Lease.release_error`, and by
    a WARNING on the logger `rescope`.

    A cancellation ends the asking, and what was granted meanwhile is released. No cancellation reaches the release,
    which takes 5 seconds at most.

    In `async with` and in `await scope.enter(lease(...))`, the task that enters is the one to be cancelled. In `await
    scope.host(lease(...))` there is no block: the loss is the death of the host, and is told as that. ::

        async with lease(store, "invoices", ttl=30) as held:
            await invoices.write(fencing_token=held.token)
    """
    _check(store, name, ttl, wait, holder)
    mark = os.urandom(8).hex()
    return _Leasing(
        _Claim(store, Lease(name, holder or f"{gethostname()}:{os.getpid()}:{mark[:4]}", clock), ttl, mark), wait
    )


@final
class _Leasing:
    """The block that runs under a lease."""

    __qualname__ = "lease"  # what a scope calls it that enters or hosts it

    __slots__ = ("_claim", "_scope", "_wait")

    def __init__(self, claim: _Claim, wait: float) -> None:
        self._claim = claim
        self._wait = wait
        self._scope: Scope | None = None

    async def __aenter__(self) -> Lease:
        from anyio import CancelScope

        claim, lease = self._claim, self._claim.lease
        if self._scope is not None:
            msg = f"this lease of {lease.name!r} has been used: call `lease(...)` for each block"
            raise RuntimeError(msg)
        self._scope = Scope(f"lease {lease.name}")
        self._scope.add(None, claim.release, name="release", timeout=min(claim.ttl, _LONGEST_RELEASE))
        lease._body = CancelScope()
        lease._body.__enter__()
        try:
            await claim.acquire(self._wait)
        except BaseException as exc:
            if not await self.__aexit__(type(exc), exc, exc.__traceback__):
                raise
            raise _no_answer(claim.patience) from None
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            swallowed = self._claim.lease._body.__exit__(kind, exc, traceback)
        except BaseException as left:  # trio takes its own cancellation out of a group
            await self._end(left)
            raise
        await self._end(None if swallowed else exc)
        return swallowed

    async def _end(self, exc: BaseException | None) -> None:
        """Release it, and say what there is to say: `exc` is what comes out, unless this raises."""
        lease, scope = self._claim.lease, cast("Scope", self._scope)
        noticed = lease._end()
        try:
            await scope.__aexit__(None if exc is None else type(exc), exc, None)
        except ResourceCleanupError as error:
            lease.release_error = error
            _tell(f"lease {lease.name!r} (token {lease.token}) is left to expire: {error.message}")
        except BaseException as interruption:
            lease.release_error = scope.cleanup_error
            if lease.lost is not None:
                _tell(str(lease.lost), interruption)
            raise
        lost = lease.lost
        if lost is None or (isinstance(exc, LeaseLostError) and exc.args == lost.args):
            return
        if noticed and (exc is None or isinstance(exc, Exception)):
            raise lost._anew() from (lost.__cause__ if exc is None else exc)
        _tell(str(lost), exc)


@final
class _Claim:
    """What a holder asks of the store, and when."""

    __slots__ = (
        "_clock",
        "_in_doubt",
        "_keeper",
        "_kept",
        "_key",
        "_mark",
        "_sent",
        "_store",
        "_version",
        "lease",
        "patience",
        "ttl",
    )

    def __init__(self, store: Store, lease: Lease, ttl: float, mark: str) -> None:
        self.lease = lease
        self._store = store
        self._key = _PREFIX + lease.name
        self.ttl = ttl
        self.patience = max(ttl / 3, _QUICK)
        self._clock = lease._clock
        self._mark = mark
        self._version = 0
        self._sent = -math.inf
        self._in_doubt = False
        self._keeper: Later | None = None
        self._kept: Event | None = None

    async def acquire(self, wait: float) -> None:
        """Ask until it is granted, or the time to wait is over, or the store goes on failing."""
        until = end = self._clock() + max(wait, _QUICK)
        pause, look, failing, seen = _FIRST_PAUSE, False, False, None
        while True:
            entry, trouble = await self._ask(look=look)
            if self._version:
                self.lease.token = self._version
                self._keeper = later(self._until_due(), self._keep)
                return
            now = self._clock()
            if trouble is None:
                seen, until = entry or seen, end
            elif not failing:
                until, pause = min(end, now + _QUICK), _FIRST_PAUSE
            if now >= until:
                raise trouble or self._refusal(seen)
            await _sleep(min(until - now, _jittered(pause)))
            pause, look, failing = min(2 * pause, _LONGEST_PAUSE), True, trouble is not None

    def _refusal(self, entry: Entry | None) -> LeaseHeldError:
        return LeaseHeldError(self.lease.name, _holder(entry), None if entry is None else entry.expires_at)

    async def _ask(self, *, look: bool) -> tuple[Entry | None, StoreError | None]:
        """Try once. The body's cancel scope, which has no body yet, cuts off a store that takes too long."""
        from anyio import current_time

        body = self.lease._body
        body.deadline = current_time() + self.patience
        found = await self._try(look=look)
        body.deadline = math.inf
        if body.cancel_called:  # where the store could not be cut off, and has answered too late
            await _sleep(0)
        return found

    async def _try(self, *, look: bool) -> tuple[Entry | None, StoreError | None]:
        """Ask once; give what stands in the way. Only who was refused looks first, which saves the others a call."""
        try:
            entry = await self._look() if look else None
            if entry is not None and not self._is_ours(entry):
                return entry, None
            with suppress(VersionConflictError):
                await self._put(0 if entry is None else entry.version)
        except StoreClosedError:
            raise
        except StoreError as exc:
            return None, exc
        return None, None

    async def _keep(self) -> None:
        """Keep it until this is cancelled, or it is lost."""
        from anyio import Event, create_task_group

        self._kept = Event()
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._watch)
                tasks.start_soon(self._renew)
        finally:
            self._kept.set()

    async def _watch(self) -> None:
        while (left := self.lease._look_at_the_clock()) > 0:
            await _sleep(left)

    async def _renew(self) -> None:
        while self.lease._look_at_the_clock() > 0 and self.lease.lost is None:
            await _sleep(await self._renew_once())

    async def _renew_once(self) -> float:
        """Renew it, or notice that it is lost; give the seconds until the next try."""
        from anyio import move_on_after

        trouble: Exception = _no_answer(self.ttl / 3)
        try:
            with move_on_after(self.ttl / 3):
                await self._write_again()
                self.lease._trouble = None
                return self._until_due()
        except VersionConflictError:
            return 0  # by now in doubt
        except Exception as exc:
            trouble = exc
        self.lease._trouble = trouble
        return _jittered(self.ttl / 10)

    async def _write_again(self) -> None:
        if self._in_doubt:
            entry = await self._look()
            if entry is None or not self._is_ours(entry):
                self._lose_to(entry)
                return
            self._version = entry.version
        await self._put(self._version)

    def _until_due(self) -> float:
        return max(0, self._sent + self.ttl / 3 - self._clock())

    async def release(self) -> None:
        """Take back what may be granted, unless it is over by itself."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._kept is not None:
            await self._kept.wait()
        if not (self._version or self._in_doubt) or self._sent + self.ttl <= self._clock():
            return
        if not self._in_doubt and await self._store.delete(self._key, if_version=self._version):
            return
        while (entry := await self._store.get(self._key)) is not None and self._is_ours(entry):
            if await self._store.delete(self._key, if_version=entry.version):
                return
        if self._version:
            self._lose_to(entry)

    async def _put(self, version: int) -> None:
        """Write it, over that version. Until an answer comes, whether it is written is in doubt."""
        sent = self._sent = self._clock()
        self._in_doubt = True
        record = {"holder": self.lease.holder, "mark": self._mark}
        self._version = await self._store.put(self._key, record, ttl=self.ttl, if_version=version)
        self._in_doubt = False
        self.lease._deadline = sent + self.ttl

    async def _look(self) -> Entry | None:
        entry = await self._store.get(self._key)
        self._in_doubt = False
        return entry

    def _is_ours(self, entry: Entry) -> bool:
        return isinstance(entry.value, dict) and entry.value.get("mark") == self._mark

    def _lose_to(self, entry: Entry | None) -> None:
        found = "its entry is gone from the store" if entry is None else f"{_holder(entry)} holds it now"
        self.lease._lose(found)


async def _sleep(seconds: float) -> None:
    from anyio import sleep  # late, as each import of anyio's names is felt where a lease is taken often

    await sleep(seconds)


def _holder(entry: Entry | None) -> str | None:
    holder = entry.value.get("holder") if entry is not None and isinstance(entry.value, dict) else None
    return holder if isinstance(holder, str) else None


def _no_answer(seconds: float) -> StoreError:
    return StoreError(f"the store did not answer within {seconds:.3g} s", may_retry=True)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)  # noqa: S311 (it spreads the tries, and hides nothing)


def _tell(message: str, beside: BaseException | None = None) -> None:
    """Say what is not raised: in the log, and as a note on what is."""
    if beside is not None:
        beside.add_note(f"rescope: {message}")
    logging.getLogger("rescope").warning("%s", message)


def _check(store: object, name: object, ttl: object, wait: object, holder: object) -> None:
    """Refuse what no lease can be made of."""
    if isinstance(store, type) or not hasattr(store, "put"):
        what = f"the class {store.__qualname__}" if isinstance(store, type) else f"a {type(store).__qualname__}"
        msg = f"`store` must be a store, as `MemoryStore()`, not {what}"
        raise TypeError(msg)
    for text, option in ((name, "name"), (holder, "holder")):
        if not isinstance(text, str) and not (text is None and option == "holder"):
            msg = f"`{option}` must be a string, not a {type(text).__qualname__}"
            raise TypeError(msg)
        if text == "":
            msg = f"`{option}` must not be empty"
            raise ValueError(msg)
    check_key(f"{_PREFIX}{name}")
    if ttl is None:
        msg = "`ttl` must be a number of seconds: a lock that never expires is never let go of by a holder that died"
        raise TypeError(msg)
    check_ttl(ttl)
    if isinstance(wait, bool) or not isinstance(wait, int | float):
        msg = f"`wait` must be a number of seconds, not a {type(wait).__qualname__}: `math.inf` waits for ever"
        raise TypeError(msg)
    if not wait >= 0:
        msg = f"`wait` must not be negative or NaN, got {wait}"
        raise ValueError(msg)
