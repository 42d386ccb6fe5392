"""What has failed, how often, and when it may be tried again: for work that outlives the process that tries it.

The pauses are those of Brooker ("Exponential Backoff and Jitter", AWS Architecture Blog, 2015): they grow by a factor
up to a cap, and part of each is left to chance, so that what failed together isn't tried together again.

A key that has failed is one entry, which each failure writes anew on the version before. Who was overtaken reads again,
so no failure is lost. When the next try may come is written with it, also for a key that is given up: how many attempts
there are is for the ledger that reads, and may be another one tomorrow.
"""

from __future__ import annotations

import logging
import math
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, final

from rescope import Err, Scope
from rescope.workflow._failure import told
from rescope.workflow._listing import Listing
from rescope.workflow._names import check_store, check_user_key, key_in, section
from rescope.workflow.store import VersionConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from rescope import Result
    from rescope.workflow.store import Entry, Store

__all__ = ["Backoff", "RetryEntry", "RetryFailure", "RetryLedger"]

MAX_MESSAGE = 1000
"""How many characters of an error's message are kept."""

_LONGEST = 1e10  # seconds, as of a time-to-live
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1
_GRACE = 30.0


def _check_number(what: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{what} must be a number, not a {type(value).__qualname__}"
        raise TypeError(msg)
    if not least <= value <= most:
        msg = f"{what} must be at least {least}{'' if most == math.inf else f' and at most {most:g}'}, not {value}"
        raise ValueError(msg)


@final
@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after a failure: `backoff(attempts)` gives seconds.

    The pause after the first failure is `first` seconds, and after each further one `factor` times as long, up to
    `cap`. `jitter` is the part of it that is left to chance: 0 for none, 1 for all of it, which Brooker calls "full
    jitter". With the default of a half and a factor of 2, no pause is shorter than the one before it. `random` gives
    numbers from 0 to 1; a test may give its own.
    """

    first: float = 1.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.5
    random: Callable[[], float] = field(default=random.random, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("first", 0, _LONGEST),
            ("factor", 1, _LONGEST),
            ("cap", 0, _LONGEST),
            ("jitter", 0, 1),
        ):
            _check_number(f"`{name}`", getattr(self, name), least, most)

    def __call__(self, attempts: int) -> float:
        """Give the seconds to wait after that many failures."""
        try:
            pause = min(self.cap, self.first * float(self.factor) ** (attempts - 1))
        except OverflowError:
            pause = self.cap if self.first else 0.0
        return pause * (1 - self.jitter * self.random())


@final
@dataclass(frozen=True, slots=True, order=True)
class RetryFailure:
    """One failure: when, in epoch seconds by the clock of who recorded it, the type of the error, and its message.

    `error` is `None` where the failure was recorded as a text. `message` is cut to 1,000 characters; it is left out of
    the `repr`, as it may hold a password.
    """

    at: float
    error: str | None = field(compare=False)
    message: str = field(repr=False, compare=False)


@final
@dataclass(frozen=True, slots=True)
class RetryEntry:
    """What a ledger knows of a key that has failed.

    `next_try` is when it may be tried again, in epoch seconds; `None` where it is `given_up`, as it has failed as often
    as the ledger allows.
    """

    key: str
    attempts: int
    first_failure: RetryFailure
    last_failure: RetryFailure
    next_try: float | None

    @property
    def given_up(self) -> bool:
        """Whether it has failed too often to be tried again."""
        return self.next_try is None


_BACKOFF = Backoff()


@final
class RetryLedger:
    """Which keys have failed, how often, and when each may be tried again, under a name, in a store.

    `name`: up to 200 bytes in UTF-8. Ledgers of different names share nothing. `max_attempts` is how many failures
    a key may have; then it is given up, until it is cleared. `backoff(attempts)` gives the seconds to wait after that
    many failures: a `Backoff`, or a function. `clock` gives epoch seconds; a test may turn it.

    *Keys* are strings as the paths of files are: not empty, up to 4096 bytes, without control characters.

    Any number of tasks and processes may use a ledger at once; no failure is lost. A ledger hands out nothing: two who
    ask may both be told that a key is due, so hold a `lease` where that matters. Each failure is recorded as a whole or
    not at all, also when it is cancelled. A store that fails raises its `StoreError`. A record that no ledger can have
    written is told by a WARNING on the logger `rescope`, and is as if it weren't there. ::

        ledger = RetryLedger(store, "invoices")
        if await ledger.due(path):
            try:
                await load(path)
            except InvoiceError as exc:
                await ledger.record_failure(path, exc)
            else:
                await ledger.clear(path)
    """

    __slots__ = ("_backoff", "_clock", "_prefix", "_store", "max_attempts", "name")

    name: str
    """What the ledger is called."""
    max_attempts: int
    """How many failures a key may have."""

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        max_attempts: int = 5,
        backoff: Callable[[int], float] = _BACKOFF,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_store(store)
        self._prefix = section("retries", name)
        _check_attempts(max_attempts)
        _check_backoff(backoff)
        self._store = store
        self._backoff = backoff
        self._clock = clock
        self.name = name
        self.max_attempts = max_attempts

    def __repr__(self) -> str:
        return f"<RetryLedger {self.name!r}>"

    async def due(self, key: str) -> bool:
        """Tell whether a key may be tried now: it has never failed, or its time has come and it is not given up.

        However the clock is set back, a key waits no longer than twice its pause: a failure that lies further ahead
        than the pause after it is no reason to wait.
        """
        entry = await self.get(key)
        if entry is None:
            return True
        if entry.next_try is None:
            return False
        now, failed = self._clock(), entry.last_failure.at
        return now >= entry.next_try or failed - now > entry.next_try - failed

    async def record_failure(self, key: str, error: BaseException | str) -> RetryEntry:
        """Record that a key has failed, and give what is known of it now.

        Of the error, its type's name and the first 1,000 characters of its message are kept, and nothing else: see to
        it that no message holds a password. Where somebody else records the same key meanwhile, this one comes after.
        """
        where, (kind, message), pause = self._where(key), told(error), _FIRST_PAUSE
        while True:
            found = await self._store.get(where)
            record = self._record(key, kind, message, None if found is None else self._read(found))
            try:
                await self._store.put(where, record, if_version=0 if found is None else found.version)
            except VersionConflictError:
                await _sleep(pause * random.uniform(0.5, 1))  # noqa: S311 (it spreads the tries, and hides nothing)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return self._entry(record)

    async def get(self, key: str) -> RetryEntry | None:
        """Give what is known of a key, or `None` where it has not failed since it was cleared."""
        found = await self._store.get(self._where(key))
        return None if found is None else self._read(found)

    def list(self) -> AsyncIterator[RetryEntry]:
        """Give all keys that have failed, in the order of code points.

        Those of more than about 500 bytes, and those that are no UTF-8, come last, in no order. They are read in pages,
        so that few are in memory. What fails or is cleared meanwhile may be given as it was before or after. It may be
        left at any time.
        """
        return cast("AsyncIterator[RetryEntry]", Listing(self._store.scan(self._prefix), self._read, _is_known))

    async def clear(self, key: str) -> bool:
        """Forget that a key has failed, as it has succeeded or is to begin anew. Tell whether it was there."""
        return await self._store.delete(self._where(key))

    async def prune(self, older_than: float) -> int:
        """Forget the keys whose last failure is more than that many seconds ago, and tell how many those were.

        Also those that were given up. One that fails again meanwhile stays. So does a record that can't be read, which
        has no time.
        """
        _check_number("`older_than`", older_than, 0, math.inf)
        before, count = self._clock() - older_than, 0
        async for found in self._store.scan(self._prefix):
            known = self._read(found)
            if known is not None and known.last_failure.at < before:
                count += await self._store.delete(found.key, if_version=found.version)
        return count

    def attempt(self, key: str) -> AbstractAsyncContextManager[None, bool | None]:
        """Run a block for a key: an `Exception` that it raises is recorded, and at success the key is cleared.

        A block that is cancelled or interrupted has not failed, nor succeeded: nothing is written. It doesn't ask
        whether the key is due. No cancellation reaches the writing, which has 30 seconds. Where that fails, it is
        a `ResourceCleanupError`, from what the block raised. ::

            if await ledger.due(path):
                async with ledger.attempt(path):
                    await load(path)
        """
        check_user_key(key)
        return self._attempt(key)

    @asynccontextmanager
    async def _attempt(self, key: str) -> AsyncGenerator[None]:
        async def settle(outcome: Result[None, BaseException]) -> None:
            if not isinstance(outcome, Err):
                await self.clear(key)
            elif isinstance(outcome.error, Exception):
                await self.record_failure(key, outcome.error)

        async with Scope(f"attempt of {self.name}", grace=_GRACE) as scope:
            scope.on_exit(settle)
            yield

    def _where(self, key: str) -> str:
        return key_in(self._prefix, key)

    def _record(self, key: str, kind: str | None, message: str, known: RetryEntry | None) -> dict[str, Any]:
        """Give what is to be written of a failure, on what was known before."""
        failure = RetryFailure(self._clock(), kind, _cut(message))
        attempts = 1 if known is None else known.attempts + 1
        pause = self._backoff(attempts)
        _check_number("what `backoff` gives", pause, 0, _LONGEST)
        return {
            "key": key,
            "attempts": attempts,
            "first": _as_json(failure if known is None else known.first_failure),
            "last": _as_json(failure),
            "next": failure.at + pause,
        }

    def _entry(self, record: Any) -> RetryEntry:
        """Read a record, by what this ledger allows. Raises `ValueError` for one that no ledger can have written."""
        match record:
            case {
                "key": str() as key,
                "attempts": int() as attempts,
                "first": [int() | float() as first_at, str() | None as first_error, str() as first_message],
                "last": [int() | float() as at, str() | None as error, str() as message],
                "next": int() | float() as next_try,
            }:
                first, last = RetryFailure(first_at, first_error, first_message), RetryFailure(at, error, message)
                return RetryEntry(key, attempts, first, last, next_try if attempts < self.max_attempts else None)
            case _:
                raise ValueError

    def _read(self, found: Entry) -> RetryEntry | None:
        try:
            return self._entry(found.value)
        except ValueError:
            msg = "retry ledger %r: what stands under %r is no record of its own, and is taken for nothing"
            logging.getLogger("rescope").warning(msg, self.name, found.key)
            return None


def _is_known(entry: RetryEntry | None) -> bool:
    return entry is not None


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _as_json(failure: RetryFailure) -> list[Any]:
    return [failure.at, failure.error, failure.message]


async def _sleep(seconds: float) -> None:
    from anyio import sleep

    await sleep(seconds)


# Bad input


def _check_attempts(max_attempts: object) -> None:
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int):
        msg = f"`max_attempts` must be a whole number, not a {type(max_attempts).__qualname__}"
        raise TypeError(msg)
    if max_attempts < 1:
        msg = f"`max_attempts` must be at least 1, not {max_attempts}: the first try is one"
        raise ValueError(msg)


def _check_backoff(backoff: object) -> None:
    if isinstance(backoff, type) or not callable(backoff):
        what = f"the class {backoff.__qualname__}" if isinstance(backoff, type) else f"a {type(backoff).__qualname__}"
        msg = f"`backoff` must be a `Backoff(...)`, or a function from attempts to seconds, not {what}"
        raise TypeError(msg)
