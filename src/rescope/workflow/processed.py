"""What has been processed, by key: files, messages, rows, so that nobody does them twice.

A log has one entry for each key, and one more that points to the key marked last. Both are written at once where the
store can: so whatever is killed, the pointer is that of the latest mark, in the order in which the store took them, and
no clocks are compared. A store that can't write several entries at once is told the pointer first: one that points to
a mark that never came is seen to do so, and one that misses a mark would not be. Then, and after the last one has been
removed, the rest is looked through, once: versions tell which was written last.

There is no count to keep in step: `stats` counts. A mark of a key that was marked may or may not add one, and to know
it would take a look before each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, cast, final

from rescope.workflow._listing import Listing
from rescope.workflow._names import check_store, check_user_key, key_in, section
from rescope.workflow.store import StoreError, VersionConflictError, decode, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rescope.workflow.store import BatchStore, Entry, Store

__all__ = ["ProcessedEntry", "ProcessedLog", "ProcessedStats"]

_CHUNK = 500
_PAIR = 2


@final
@dataclass(frozen=True, slots=True)
class ProcessedEntry:
    """A key that has been marked.

    `metadata` is what it was marked with last, as JSON has it; it is left out of the `repr`. `at` is when, in epoch
    seconds by the clock of the process that did.
    """

    key: str
    metadata: Any = field(repr=False)
    at: float


@final
@dataclass(frozen=True, slots=True)
class ProcessedStats:
    """How many keys are marked, and when the earliest and the latest of these marks were made.

    The times are the least and the greatest `at`, in epoch seconds; `None` in an empty log.
    """

    count: int
    first_at: float | None
    last_at: float | None


@final
class ProcessedLog:
    """The keys that have been processed, under a name, in a store that processes share.

    `name`: up to 200 bytes in UTF-8. Logs of different names share nothing, whatever the names begin with. `clock`
    gives the `at` of what is marked, in epoch seconds.

    *Keys* are strings as the paths of files are: not empty, up to 4096 bytes, without control characters. *Metadata* is
    what `json` can write. Nothing else refers to a log: it is there when something is marked, and holds until it is
    removed.

    Any number of tasks and processes may use a log at once; no mark is lost. Each mark is whole or not there, also when
    it is cancelled or the process is killed. Where the store fails, its `StoreError` is raised; marking again does no
    harm. ::

        log = ProcessedLog(store, "invoices")
        if not await log.is_processed(path):
            await load(path)
            await log.mark(path, {"rows": 12})
    """

    __slots__ = ("_clock", "_latest", "_prefix", "_store", "name")

    name: str
    """What the log is called."""

    def __init__(self, store: Store, name: str, *, clock: Callable[[], float] = time.time) -> None:
        check_store(store)
        self._prefix = section("processed", name)
        self._latest = section("processed-last", name)
        self._store = store
        self._clock = clock
        self.name = name

    def __repr__(self) -> str:
        return f"<ProcessedLog {self.name!r}>"

    async def is_processed(self, key: str) -> bool:
        """Tell whether that key is marked. This is one `get`."""
        return await self._store.get(key_in(self._prefix, key)) is not None

    async def mark(self, key: str, metadata: Any = None) -> None:
        """Mark a key. One that was marked before gets this metadata and time instead, and is the last again.

        Raises `TypeError` or `ValueError`, and writes nothing, for a key that is no string or empty, and for metadata
        that isn't JSON.
        """
        check_user_key(key)
        await self._write({key: metadata})

    async def mark_many(self, keys: Iterable[str | tuple[str, Any]] | Mapping[str, Any], metadata: Any = None) -> int:
        """Mark many keys, and tell how many marks that were.

        `keys`: a mapping from keys to their metadata, or keys, or pairs of a key and its metadata; a generator will do,
        and is never held as a whole. `metadata` is for keys that come without. Of several marks of a key the last one
        counts.

        They are written in chunks of 500. On a store that has `put_many`, each chunk is there as a whole or not at all;
        on others, each mark is. What was written stays, also when it is cancelled, the store fails, or something later
        in `keys` is refused: a chunk is checked before it is written. To mark them all again does no harm. Raises as
        `mark` does.
        """
        marks, count = _marks(keys, metadata), 0
        while chunk := list(islice(marks, _CHUNK)):
            values: dict[str, Any] = {}
            for key, own in chunk:
                values.pop(key, None)  # so that it has its place where it was marked last
                values[key] = own
            await self._write(values)
            count += len(chunk)
        return count

    async def last(self) -> ProcessedEntry | None:
        """Give what was marked last, in the order in which the store took the marks, or `None` if nothing is marked.

        These are two `get`s. Once after the last one was removed, it takes as long as `stats` does.
        """
        pointer = await self._store.get(self._latest)
        if pointer is not None:
            pointed = _entry(pointer)
            found = await self._store.get(key_in(self._prefix, pointed.key))
            if found is not None:
                last = _entry(found)
                if last.at == pointed.at or found.version > pointer.version:  # or marked again meanwhile
                    return last
        return await self._look_for_last(pointer)

    def list(self) -> AsyncIterator[ProcessedEntry]:
        """Give all that are marked, in the order of their keys by code points.

        Those of more than about 500 bytes, and those that are no UTF-8, come last, in no order. They are read in pages,
        so that few are in memory. What is marked or removed meanwhile may be given as it was before or after. It may be
        left at any time.
        """
        return Listing(self._store.scan(self._prefix), _entry)

    async def stats(self) -> ProcessedStats:
        """Count what is marked. It goes through all of them, in pages, as `list` does."""
        count, first, last = 0, None, None
        async for entry in self.list():
            count += 1
            first = entry.at if first is None else min(first, entry.at)
            last = entry.at if last is None else max(last, entry.at)
        return ProcessedStats(count, first, last)

    async def remove(self, key: str) -> bool:
        """Take the mark of a key away, and tell whether there was one."""
        return await self._store.delete(key_in(self._prefix, key))

    async def clear(self) -> int:
        """Take all marks away, one by one, and tell how many those were.

        What is marked meanwhile may stay. So may what is left when it is cancelled; then clear it again.
        """
        pointer = await self._store.get(self._latest)
        count = 0
        async for entry in self._store.scan(self._prefix):
            count += await self._store.delete(entry.key, if_version=entry.version)
        if pointer is not None:
            await self._store.delete(self._latest, if_version=pointer.version)
        return count

    async def _write(self, marks: dict[str, Any]) -> None:
        """Write these marks, of which the last one is the latest, and before them what points to it."""
        at = self._clock()
        values = {self._latest: _value(next(reversed(marks)), at)}
        for key, metadata in marks.items():
            values[key_in(self._prefix, key)] = _value(key, at, metadata)
        if self._writes_many:
            await cast("BatchStore", self._store).put_many(values)
            return
        texts = {key: encode(key, value) for key, value in values.items()}  # all that may be refused or change is here
        for key, text in texts.items():
            await self._store.put(key, decode(key, text))

    @property
    def _writes_many(self) -> bool:
        return hasattr(self._store, "put_many")

    async def _look_for_last(self, pointer: Entry | None) -> ProcessedEntry | None:
        """Look through all for what was written last, and point to it unless somebody has marked something since."""
        last, order = None, (0, 0.0)
        async for entry in self._store.scan(self._prefix):
            found = _entry(entry)
            if last is None or (entry.version, found.at) > order:
                last, order = found, (entry.version, found.at)
        if last is not None and self._writes_many:  # else the mark that the pointer is for may be on its way
            version = 0 if pointer is None else pointer.version
            with suppress(VersionConflictError, StoreError):  # this only saves the next one the looking
                await self._store.put(self._latest, _value(last.key, last.at), if_version=version)
        return last


def _value(key: str, at: float, metadata: Any = None) -> dict[str, Any]:
    return {"key": key, "at": at, "metadata": metadata}


def _entry(entry: Entry) -> ProcessedEntry:
    try:
        return ProcessedEntry(entry.value["key"], entry.value["metadata"], entry.value["at"])
    except (KeyError, TypeError):
        msg = f"what the store holds under {entry.key!r} is no mark: something other than ProcessedLog wrote it"
        raise StoreError(msg) from None


def _marks(keys: object, metadata: Any) -> Iterator[tuple[str, Any]]:
    """Give keys and their metadata, one after the other."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        mend = "use `mark` for a single key" if isinstance(keys, str | bytes) else "collect the keys in a list first"
        msg = f"`keys` must be keys, or a mapping to their metadata, not a {type(keys).__qualname__}: {mend}"
        raise TypeError(msg)
    return (_mark(item, metadata) for item in (keys.items() if isinstance(keys, Mapping) else keys))


def _mark(item: Any, metadata: Any) -> tuple[str, Any]:
    pair: tuple[Any, Any] = item if isinstance(item, tuple) and len(item) == _PAIR else (item, metadata)
    check_user_key(pair[0])
    return pair
