"""How far a piece of work got, kept in a `Store`, so that the next run goes on from there.

A checkpoint is one entry. It holds the state, which is the caller's own, and what tells whether it may be trusted: the
caller's version of it, when it was saved, and a SHA-256 over all of it. The state stands there as the text of its JSON,
so that no store that writes numbers or the keys of objects in a way of its own can spoil the checksum.

Each save is a compare-and-set on the version of the entry that was read or written last: two runs on the same
checkpoint find each other out at the first save. Whether a save that was cut off, or whose answer got lost, was done is
not known. So the entry also holds a mark of the run that wrote it, and what is done next looks for that mark.

The save at a failing end, and the clearing at a good one, are held by a `Scope`, which no cancellation keeps from
closing what it holds.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, final

from rescope import ResourceCleanupError, Scope
from rescope.workflow._names import check_store, key_in
from rescope.workflow.store import Entry, StoreError, UnreadableValueError, VersionConflictError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from anyio import Lock

    from rescope.workflow.store import Store

__all__ = ["Checkpoint", "CheckpointConflictError", "CheckpointReport", "checkpoint"]

_PREFIX = "checkpoint/"
_LONGEST_END = 10.0  # seconds for the save or the clearing at the end
_NOBODYS = 2**53 - 1  # a version that no entry comes to have
_SEALED = ("key", "version", "saved_at", "mark", "state")


class CheckpointConflictError(Exception):
    """Somebody else has saved, finished or deleted the checkpoint since this run read it. Nothing was overwritten.

    `found` is the version of the entry that is there now, 0 for none.
    """

    def __init__(self, key: str, found: int) -> None:
        super().__init__(key, found)
        self.key = key
        self.found = found

    def __str__(self) -> str:
        what = "saved" if self.found else "finished or deleted"
        mend = "let one run at a time work on it, as under a `lease`"
        return f"checkpoint {self.key!r}: somebody else has {what} it since this run read it: {mend}"


@final
@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """Why a checkpoint was there, and the run started afresh all the same. As a string it is what was logged.

    `reason` is `"corrupt"`: it is not what a checkpoint writes, or its checksum is wrong; `"foreign version"`: it was
    saved with another `version`; or `"too old"`. `detail` says more. `version` and `saved_at` (epoch seconds) are those
    that it was saved with; `None` where it is corrupt.
    """

    key: str
    reason: Literal["corrupt", "foreign version", "too old"]
    detail: str
    version: int | None = None
    saved_at: float | None = None

    def __str__(self) -> str:
        return f"checkpoint {self.key!r} is not used ({self.reason}: {self.detail}): started afresh"


@final
class Checkpoint:
    """What `checkpoint(...)` gives: how far the work got, and where to say that it got further."""

    __slots__ = (
        "_at",
        "_beaten",
        "_clock",
        "_every",
        "_in_doubt",
        "_lock",
        "_mark",
        "_over",
        "_state",
        "_store",
        "_text",
        "_there",
        "_unsaved",
        "_version",
        "end_error",
        "key",
        "report",
        "saved_at",
    )

    key: str
    """What it is called."""
    saved_at: float | None
    """When it was saved last, in epoch seconds; `None` when it was not."""
    report: CheckpointReport | None
    """Why what was there is not used, if so."""
    end_error: ResourceCleanupError | None
    """Why the save or the clearing at the end went wrong, if so."""

    _lock: Lock

    def __init__(self, store: Store, key: str, version: int, every: int, clock: Callable[[], float]) -> None:
        self.key = key
        self.saved_at = None
        self.report = None
        self.end_error = None
        self._store = store
        self._at = key_in(_PREFIX, key)
        self._version = version
        self._every = every
        self._clock = clock
        self._mark = os.urandom(8).hex()
        self._there = 0  # the version of the entry that was read or written last
        self._in_doubt = False
        self._beaten = False
        self._state: Any = None
        self._text = ""
        self._unsaved = 0
        self._over = False

    @property
    def state(self) -> Any:
        """How far the work got: what was given to `advance` last, as JSON has it. `None` when the run starts afresh."""
        return self._state

    async def advance(self, state: Any) -> None:
        """Say how far the work got: `state` is what the next run needs to go on from here.

        It is copied, and saved if it is the `every`-th since the last save; else at the latest when the block fails or
        is cancelled. It also counts as given where this call is cancelled, or the store fails. Several tasks may call
        this; what was given last stands.

        Raises `TypeError` or `ValueError` for what is not JSON, and for `None`, which stands for a fresh start;
        `CheckpointConflictError` where somebody else has worked on the same checkpoint meanwhile; `StoreError` where
        the store fails; `RuntimeError` after the end of the block.
        """
        if self._over:
            msg = f"the block of checkpoint {self.key!r} has ended: what is given to it now would not be saved"
            raise RuntimeError(msg)
        if state is None:
            msg = f"checkpoint {self.key!r} can't be advanced to None, which is a fresh start: give how far it got"
            raise TypeError(msg)
        text = encode(self.key, state)
        self._state = decode(self.key, text)
        self._text = text
        self._unsaved += 1
        await self._save(self._every)

    async def _save(self, least: int = 1) -> None:
        """Save what was given last, if at least so many were given since the last save."""
        async with self._lock:
            if self._unsaved < least:
                return
            await self._settle()
            saved_at, unsaved = float(self._clock()), self._unsaved
            await self._put(_sealed(self.key, self._version, saved_at, self._mark, self._text))
            self.saved_at = saved_at
            self._unsaved -= unsaved

    async def _put(self, record: dict[str, Any]) -> None:
        self._in_doubt = True
        try:
            self._there = await self._store.put(self._at, record, if_version=self._there)
        except VersionConflictError as exc:
            self._in_doubt, self._beaten = False, True
            raise CheckpointConflictError(self.key, exc.found) from exc
        self._in_doubt = self._beaten = False

    async def _clear(self) -> None:
        """Take away what this run has read or written, and nothing else."""
        async with self._lock:
            await self._settle()
            if not self._there or await self._store.delete(self._at, if_version=self._there):
                return
            if (entry := await self._look()) is not None:
                raise CheckpointConflictError(self.key, entry.version)
            _tell(f"checkpoint {self.key!r} was gone before it was cleared: somebody else has finished or deleted it")

    async def _settle(self) -> None:
        """Find out what became of a save that was cut off."""
        if not self._in_doubt:
            return
        entry = await self._look()
        if entry is not None and isinstance(entry.value, dict) and entry.value.get("mark") == self._mark:
            self._there = entry.version
        self._in_doubt = False

    async def _load(self, max_age: float | None) -> None:
        """Take over what is there, or report why not."""
        entry = await self._look()
        if entry is None:
            return
        self._there = entry.version
        self.report = self._judge(entry.value, max_age)
        if self.report is not None:
            _tell(str(self.report))
            return
        self.saved_at = entry.value["saved_at"]
        self._state = decode(self.key, entry.value["state"])

    def _judge(self, record: Any, max_age: float | None) -> CheckpointReport | None:
        """Say why a record can't be used, if it can't."""
        if not _intact(record, self.key):
            detail = str(record) if isinstance(record, StoreError) else "it is not what a checkpoint has written here"
            return CheckpointReport(self.key, "corrupt", detail)
        version, saved_at = record["version"], record["saved_at"]
        if version != self._version:
            detail = f"it has version {version}, and this run version {self._version}"
            return CheckpointReport(self.key, "foreign version", detail, version, saved_at)
        age = self._clock() - saved_at
        if max_age is not None and not abs(age) <= max_age:
            detail = f"it was saved {_ago(age)}, and `max_age` is {max_age:g} s"
            return CheckpointReport(self.key, "too old", detail, version, saved_at)
        return None

    async def _look(self) -> Entry | None:
        """Give what is there. The value of an entry that the store can't read is the store's error.

        A put that can't succeed tells the version of such an entry, so that nothing else is ever overwritten.
        """
        try:
            return await self._store.get(self._at)
        except UnreadableValueError as exc:
            with suppress(StoreError):
                try:
                    await self._store.put(self._at, None, if_version=_NOBODYS)
                except VersionConflictError as conflict:
                    return Entry(self._at, exc, conflict.found) if conflict.found else None
            raise

    def __repr__(self) -> str:
        state = "over" if self._over else f"{self._unsaved} not saved"
        return f"<Checkpoint {self.key!r}: {state}>"


def checkpoint(
    store: Store,
    key: str,
    *,
    version: int = 1,
    max_age: float | None = None,
    every: int = 1,
    clock: Callable[[], float] = time.time,
) -> AbstractAsyncContextManager[Checkpoint, None]:
    """Go on where the last run of a piece of work stopped, and keep how far this one gets.

    Gives a `Checkpoint`. Its `state` is what the last run saved, or `None`. Call `await c.advance(state)` after each
    item; it saves at each `every`-th call. When the block fails, is cancelled or interrupted, what was given last is
    saved; when it ends, the checkpoint is cleared. Nothing given, nothing written. ::

        async with checkpoint(store, "orders.csv") as c:
            for number in range(c.state or 0, len(rows)):
                await insert(rows[number])
                await c.advance(number + 1)

    `key` may have up to 4096 bytes. `version` is that of the state's layout: raise it when older states can't be read
    any more. `max_age`: seconds for which a checkpoint is good, `None` for ever. `clock` gives the epoch seconds that
    it is saved with and judged by; one that lies ahead by more than `max_age` is too old too, as nobody knows its age.

    A checkpoint that is corrupt, of another version, or too old is told in `Checkpoint.report`, and by a WARNING on the
    logger `rescope`, and the run starts afresh. It is overwritten by the first save.

    No cancellation reaches the save or the clearing at the end. They take 10 seconds at most. A clearing that fails
    after a block that did not is raised, as a `ResourceCleanupError`, since the next run would skip what it finds there
    as done. A failing save never takes the place of what the block raised: it is noted on that, logged, and in
    `Checkpoint.end_error`. Two runs at once on one checkpoint end in a `CheckpointConflictError` for all but one.

    Raises `TypeError` or `ValueError` at the call for bad arguments, `StoreError` on entering where the store fails.
    """
    check_store(store)
    _check_count(version, "version", least=0)
    _check_count(every, "every", least=1)
    _check_age(max_age)
    if not callable(clock):
        msg = f"`clock` must be callable, not a {type(clock).__qualname__}"
        raise TypeError(msg)
    return _Block(Checkpoint(store, key, version, every, clock), max_age)


@final
class _Block:
    """The block of code that a checkpoint is for."""

    __qualname__ = "checkpoint"  # what a scope calls it that enters or hosts it

    __slots__ = ("_checkpoint", "_max_age", "_used")

    def __init__(self, checkpoint: Checkpoint, max_age: float | None) -> None:
        self._checkpoint = checkpoint
        self._max_age = max_age
        self._used = False

    async def __aenter__(self) -> Checkpoint:
        from anyio import Lock

        if self._used:
            msg = f"this checkpoint of {self._checkpoint.key!r} has been used: call `checkpoint(...)` for each block"
            raise RuntimeError(msg)
        self._used = True
        self._checkpoint._lock = Lock()
        await self._checkpoint._load(self._max_age)
        return self._checkpoint

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held = self._checkpoint
        held._over = True
        scope = Scope(f"checkpoint {held.key}")
        if exc is None:
            scope.add(None, held._clear, name="clear", timeout=_LONGEST_END)
        elif not held._beaten:  # who was beaten has been told
            scope.add(None, held._save, name="save", timeout=_LONGEST_END)
        try:
            await scope.__aexit__(kind, exc, traceback)
        except ResourceCleanupError as error:
            if exc is None:
                raise
            _tell(error.message)
            exc.add_note(f"rescope: {error.message}")
        finally:
            held.end_error = scope.cleanup_error


# What stands in the store


def _sealed(key: str, version: int, saved_at: float, mark: str, state: str) -> dict[str, Any]:
    record: dict[str, Any] = dict(zip(_SEALED, (key, version, saved_at, mark, state), strict=True))
    return {**record, "sha256": _checksum(record)}


def _intact(record: Any, key: str) -> bool:
    """Tell whether a record is as it was saved, under that key."""
    if not isinstance(record, dict) or record.keys() != {*_SEALED, "sha256"}:
        return False
    return bool(record["key"] == key and record["sha256"] == _checksum(record))


def _checksum(record: dict[str, Any]) -> str:
    return sha256(json.dumps([record[name] for name in _SEALED]).encode()).hexdigest()


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds >= 0 else f"{-seconds:.0f} s ahead of this clock"


def _tell(message: str) -> None:
    logging.getLogger("rescope").warning("%s", message)


def _check_count(number: object, option: str, *, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        msg = f"`{option}` must be a whole number, not a {type(number).__qualname__}"
        raise TypeError(msg)
    if number < least:
        msg = f"`{option}` must be at least {least}, not {number}"
        raise ValueError(msg)


def _check_age(max_age: object) -> None:
    if max_age is None:
        return
    if isinstance(max_age, bool) or not isinstance(max_age, int | float):
        msg = f"`max_age` must be a number of seconds, or None, not a {type(max_age).__qualname__}"
        raise TypeError(msg)
    if not max_age > 0:
        msg = f"`max_age` must be more than 0 s, not {max_age}: leave it out for a checkpoint that is good for ever"
        raise ValueError(msg)
