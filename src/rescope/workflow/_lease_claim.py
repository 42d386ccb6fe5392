"""What a holder asks of the store, and when.

A lease is one entry, `lease/<name>`, which the store forgets when its time is over. It holds who has it, and a mark of
this one holding, so that a holder whose answer got lost recognises its own writing. The token is the version of the put
that took it: versions of a key only grow, so whoever takes it later has a larger one. A renewal is a put on the version
before; a release is a delete of the last one. So neither can touch what another holder wrote.

The states:

- *asking*: in the body's task, which may be cancelled at any point. An alarm goes off where the store takes too long,
  and cancels the scope that is the body's later. Whether a put was done that was cut off isn't known: then the release
  looks for the mark.
- *held*: no task waits beside the body. The alarm goes off again when the first renewal is due, and only then starts
  one, which is no child of the body's and hears of no cancellation of it. It has two children. One renews, the other
  watches the clock, so that a store which hangs in a thread, where nothing can cut it off, doesn't keep the loss from
  being noticed.
- *renewing*: still held. The store has a third of the ttl to answer. The end of the body cancels it.
- *in doubt*: a put failed or was cut off, and may have been done. Still held, for the time since the last success was
  sent: nobody can take it before. The next try looks first whose entry stands there.
- *lost*: the time is over, or the entry there is another's, or none. One of the two children notices, or `check`.
- *releasing*: out of reach of what cancels the body. First the renewing is cancelled and waited for, then the entry is
  deleted. What a cut-off renewal may have written is looked for. Where the store can be cut off soon, and nothing was
  renewed, the body's task deletes it itself, with the alarm set; what hits that has it done once more, out of reach.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final, final

from rescope.workflow._later import later
from rescope.workflow._lease_held import LeaseHeldError
from rescope.workflow.store import Entry, Store, StoreClosedError, StoreError, VersionConflictError

if TYPE_CHECKING:
    from anyio import Event

    from rescope.workflow._later import Later
    from rescope.workflow._lease_held import Lease

PREFIX: Final = "lease/"
_QUICK = 0.5  # seconds for the quick tries that everybody has
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_SOON = 1.0
LONGEST_RELEASE: Final = 5.0  # what is not released expires


@final
class Claim:
    """One holder's claim to a lease: asked for, renewed, released."""

    __slots__ = (
        "_alarm",
        "_clock",
        "_failure",
        "_in_doubt",
        "_kept",
        "_key",
        "_mark",
        "_sent",
        "_store",
        "_version",
        "lease",
        "patience",
        "released",
        "ttl",
    )

    _alarm: Later

    def __init__(self, store: Store, lease: Lease, ttl: float, mark: str) -> None:
        self.lease = lease
        self._store = store
        self._key = PREFIX + lease.name
        self.ttl = ttl
        self.patience = max(ttl / 3, _QUICK)
        self._clock = lease._clock
        self._mark = mark
        self._version = 0
        self._sent = -math.inf
        self._in_doubt = False
        self._kept: Event | None = None
        self._failure: Exception | None = None
        self.released = False

    async def acquire(self, wait: float) -> None:
        """Ask until it is granted, or the time to wait is over, or the store goes on failing."""
        until = end = self._clock() + max(wait, _QUICK)
        pause, look, failing, seen = _FIRST_PAUSE, False, False, None
        while True:
            entry, trouble = await self._ask(look=look)
            if self._version:
                self.lease.token = self._version
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
        """Try once, with the alarm set.

        Mostly the store's time to answer is over just when the first renewal is due: then the alarm stays as it is.
        """
        self._alarm = later(self.patience, self._ring)
        found = await self._try(look=look)
        due = self._until_due()
        if not self._version:
            self._alarm.cancel()
        elif due == 0 or self.patience > self.ttl / 3:
            self._alarm.cancel()
            self._alarm = later(due, self._ring)
        if self.lease._body.cancel_called:  # where the store could not be cut off, and has answered too late
            await _sleep(0)
        return found

    async def _try(self, *, look: bool) -> tuple[Entry | None, StoreError | None]:
        """Ask once; give what stands in the way. Only who was refused looks first, which saves the others a call."""
        try:
            entry = await self._look() if look else None
            if entry is not None and not self._is_ours(entry):
                return entry, None
            await self._put(0 if entry is None else entry.version)
        except VersionConflictError:
            return None, None
        except StoreClosedError:
            raise
        except StoreError as exc:
            return None, exc
        return None, None if self.lease.remaining > 0 else self._too_late()

    def _too_late(self) -> StoreError:
        """Take as not granted what was over when the answer came: this process may have been stopped."""
        self._version, self._in_doubt = 0, True
        return StoreError(f"the answer of the store took longer than the ttl, {self.ttl:.3g} s", may_retry=True)

    async def _ring(self) -> None:
        """The alarm has gone off: keep what is held, or give up asking, or letting go."""
        if self._version and not self.lease._over:
            await self._keep()
        else:
            self.lease._body.cancel()

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

        trouble: Exception = no_answer(self.ttl / 3)
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

    async def let_go(self) -> BaseException | None:
        """Delete the entry in the body's own task, where the store can be cut off soon; give what cut it off.

        That saves a task, and mostly nothing hits it. What hit it, and what was renewed, is left to `release`.
        """
        self._alarm.cancel()
        plain = self._kept is None and not self._in_doubt and self._clock() < self._sent + self.ttl
        if not (plain and getattr(self._store, "_soon_cut_off", False)):
            return None
        self._alarm = later(min(self.ttl, _SOON), self._ring)
        try:
            self.released = await self._store.delete(self._key, if_version=self._version)
        except BaseException as exc:
            self._version, self._in_doubt = 0, True
            return None if isinstance(exc, Exception) else exc
        finally:
            self._alarm.cancel()
        return None

    async def release(self) -> None:
        """Take back what may be granted, unless it is over by itself."""
        try:
            await self._stop_keeping()
            if (self._version or self._in_doubt) and self._clock() < self._sent + self.ttl:
                await self._take_back()
        except Exception as exc:
            self._failure = exc
            raise
        self.released = True

    def unreleased(self) -> Exception | None:
        """Say why it may still stand in the store, if so."""
        return None if self.released else self._failure or no_answer(LONGEST_RELEASE)

    async def _stop_keeping(self) -> None:
        self._alarm.cancel()
        if self._kept is not None:
            await self._kept.wait()

    async def _take_back(self) -> None:
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


def no_answer(seconds: float) -> StoreError:
    return StoreError(f"the store did not answer within {seconds:.3g} s", may_retry=True)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)  # noqa: S311 (it spreads the tries, and hides nothing)
