"""Stores that each break one promise, for the contract to catch. They stand on one that keeps them all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from rescope.workflow import Entry, MemoryStore, SqliteStore, StoreError, VersionConflictError
from rescope.workflow.store import check_key, check_ttl, encode


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Good:
    """Keeps every promise, on the store that it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def get(self, key: str) -> Entry | None:
        return await self.inner.get(key)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await self.inner.put(key, value, ttl=ttl, if_version=if_version)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        return await self.inner.delete(key, if_version=if_version)

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self.inner.scan(prefix)


class Forgets(Good):
    async def get(self, key: str) -> Entry | None:
        await super().get(key)
        return None


class CountsEachKey(Good):
    """Begins at 1 again for a key that was deleted."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.versions: dict[str, int] = {}

    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        return entry and replace(entry, version=self.versions[key])

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        entry = await self.get(key)
        found = 0 if entry is None else entry.version
        if if_version not in (None, found):
            raise VersionConflictError(key, if_version, found)
        await super().put(key, value, ttl=ttl)
        self.versions[key] = found + 1
        return found + 1

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        entry = await super().get(key)
        if entry is None or if_version not in (None, self.versions[key]):
            return False
        return await super().delete(key)


class IgnoresIfVersion(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await super().put(key, value, ttl=ttl)


class LooksThenWrites(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        if if_version is not None:
            entry = await self.get(key)
            found = 0 if entry is None else entry.version
            if found != if_version:
                raise VersionConflictError(key, if_version, found)
        return await super().put(key, value, ttl=ttl)


class ForgetsTheTimeOfASwap(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        check_ttl(ttl)
        return await super().put(key, value, ttl=None if if_version else ttl, if_version=if_version)


class RenewsWhatIsRead(Good):
    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        if entry and entry.expires_at:
            self.inner._held[key] = replace(self.inner._held[key], expires_at=entry.expires_at + 1)
        return entry


class KeepsWhatItHasRead(Good):
    """Until it writes that key itself."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.read: dict[str, Entry] = {}

    async def get(self, key: str) -> Entry | None:
        if not isinstance(key, str) or key not in self.read:
            entry = await super().get(key)
            if entry is None:
                return None
            self.read[key] = entry
        return replace(self.read[key], value=json.loads(json.dumps(self.read[key].value)))

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        self.read.pop(str(key), None)
        return await super().put(key, value, ttl=ttl, if_version=if_version)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        self.read.pop(str(key), None)
        return await super().delete(key, if_version=if_version)


class DeletesWhatBeginsWithIt(Good):
    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        deleted = await super().delete(key, if_version=if_version)
        if deleted:
            async for entry in self.inner.scan(key):
                await self.inner.delete(entry.key)
        return deleted


class HasOneCursor(Good):
    """The latest scan is the only one."""

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        self.latest = self.inner.scan(prefix)
        return Cursor(self)


class Cursor:
    def __init__(self, store: HasOneCursor) -> None:
        self.store = store

    def __aiter__(self) -> Cursor:
        return self

    async def __anext__(self) -> Entry:
        return await anext(self.store.latest)


class DeletesWhatCameAfter(Good):
    """Looks at the version, and then deletes whatever stands there."""

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        if if_version is not None and type(if_version) is int and 0 < if_version < 2**63:
            entry = await self.get(key)
            if entry is None or entry.version != if_version:
                return False
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            if_version = None
        return await super().delete(key, if_version=if_version)


class PutsManyInTurn(Good):
    """Checks all, and then writes one after the other."""

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        check_ttl(ttl)
        for key, value in values.items():
            check_key(key)
            encode(key, value)
        return {key: await self.put(key, value, ttl=ttl) for key, value in values.items()}


class PutsManyAndKeepsTheTime(PutsManyInTurn):
    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        for key in values:
            entry = await self.get(key)
            if entry and entry.expires_at and ttl is None:
                ttl = entry.expires_at - self.inner._clock()
        return await super().put_many(values, ttl=ttl)


class LooksThenDeletes(Good):
    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        entry = await self.get(key)
        if entry is None or if_version not in (None, entry.version):
            return False
        await super().delete(key)
        return True


class NeverExpires(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await super().put(key, value, ttl=ttl and 1e9, if_version=if_version)


class KeepsTheTime(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        entry = await self.get(key)
        if entry is not None and entry.expires_at is not None and ttl is None:
            ttl = entry.expires_at - self.inner._clock()
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class TellsMilliseconds(Good):
    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        return entry and replace(entry, expires_at=entry.expires_at and entry.expires_at * 1000)

    async def _scan(self, prefix: str) -> AsyncIterator[Entry]:
        async for entry in self.inner.scan(prefix):
            yield replace(entry, expires_at=entry.expires_at and entry.expires_at * 1000)

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self._scan(prefix)


class TellsWholeSeconds(Good):
    async def _scan(self, prefix: str) -> AsyncIterator[Entry]:
        async for entry in self.inner.scan(prefix):
            yield replace(entry, expires_at=entry.expires_at and int(entry.expires_at))

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self._scan(prefix)


class Sorts(Good):
    """Scans in an order of its own."""

    async def order(self, entries: list[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: entry.key.encode("utf-16-be"))

    def wider(self, prefix: str) -> str:
        return prefix

    async def _scan(self, prefix: str) -> AsyncIterator[Entry]:
        for entry in await self.order([entry async for entry in self.inner.scan(self.wider(prefix))]):
            yield entry

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self._scan(prefix)


class ScansByPattern(Sorts):
    """Takes a `_` in a prefix for any character."""

    async def order(self, entries: list[Entry]) -> list[Entry]:
        return entries

    def wider(self, prefix: str) -> str:
        return prefix.split("_", 1)[0]


class ScansByOffset(Good):
    async def _scan(self, prefix: str) -> AsyncIterator[Entry]:
        given = 0
        while page := [entry async for entry in self.inner.scan(prefix)][given : given + 100]:
            given += len(page)
            for entry in page:
                yield entry

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self._scan(prefix)


class SharesValues(Good):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.values: dict[str, Any] = {}

    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        return entry and replace(entry, value=self.values[key])

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        version = await super().put(key, value, ttl=ttl, if_version=if_version)
        self.values[key] = value if isinstance(value, dict) else json.loads(json.dumps(value))
        return version


class TakesAnything(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        try:
            encode(key, value)
        except (TypeError, ValueError):
            value = None
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class RefusesTooLate(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        try:
            encode(key, value)
        except (TypeError, ValueError):
            await super().put(key, None)
            raise
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class ShowsValues(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        try:
            encode(key, value)
        except TypeError:
            raise TypeError(f"no JSON: {value!r}") from None
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class TakesAnyKey(Good):
    async def get(self, key: str) -> Entry | None:
        try:
            check_key(key)
        except (TypeError, ValueError):
            return None
        return await super().get(key)


class FoldsCase(Good):
    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key.lower())
        return entry and replace(entry, key=key)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await super().put(key.lower() if isinstance(key, str) else key, value, ttl=ttl, if_version=if_version)


class StripsNulls(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        text = encode(key, value).replace("\\u0000", "")
        return await super().put(key, json.loads(text), ttl=ttl, if_version=if_version)


class TakesAnyTime(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await super().put(key, value, ttl=ttl or None, if_version=if_version)


class AlwaysDeletes(Good):
    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        await super().delete(key, if_version=if_version)
        return True


class WritesByHalves(Good):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        if isinstance(value, list) and if_version is None:
            await super().put(key, [*value[:1], -1])
            await anyio.sleep(0.001)
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class PutsOneByOne(Good):
    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        return {key: await self.put(key, value, ttl=ttl) for key, value in values.items()}


class Hangs(Good):
    async def get(self, key: str) -> Entry | None:
        await anyio.sleep_forever()
        return None


@asynccontextmanager
async def unlocked(path: Path) -> AsyncIterator[LooksThenWrites]:
    async with SqliteStore(path) as store:
        yield LooksThenWrites(store)


@asynccontextmanager
async def by_halves(path: Path) -> AsyncIterator[WritesByHalves]:
    async with SqliteStore(path) as store:
        yield WritesByHalves(store)


class PutsManySlowly(Good):
    """One after the other, with time enough to be killed in between."""

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        versions = {}
        for key, value in values.items():
            versions[key] = await self.put(key, value, ttl=ttl)
            await anyio.sleep(0.1)
        return versions


@asynccontextmanager
async def in_turn(path: Path) -> AsyncIterator[PutsManySlowly]:
    async with SqliteStore(path, synchronous="normal") as store:
        yield PutsManySlowly(store)


@asynccontextmanager
async def fails_elsewhere(path: Path, here: int) -> AsyncIterator[SqliteStore]:
    import os

    if os.getpid() != here:
        raise ConnectionError("no such host")
    async with SqliteStore(path) as store:
        yield store


class ComesLate(Good):
    """Others are seen at the second look."""

    looks = 0

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        self.looks += 1
        return super().scan(prefix if self.looks > 1 else "nothing")


@asynccontextmanager
async def comes_late(path: Path) -> AsyncIterator[ComesLate]:
    async with SqliteStore(path, synchronous="normal") as store:
        await store.put("contract:taken:3", 1)
        yield ComesLate(store)


class FailsSoon(Good):
    left = 0

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("no such host")
        return await super().put(key, value, ttl=ttl, if_version=if_version)


class FailsSoonAtMany(FailsSoon, PutsManyInTurn):
    pass


@asynccontextmanager
async def fails_soon(left: int, kind: type[FailsSoon] = FailsSoon) -> AsyncIterator[FailsSoon]:
    store = kind(MemoryStore())
    store.left = left
    yield store


# Seconds. The contract cuts at up to 4 ms, and clocks are coarse: so it cuts on both ways, some times each.
THERE, BACK = 0.002, 0.008


class Connection:
    """What a store on a network has, and a test cuts: who is under way loses it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1

    @asynccontextmanager
    async def open(self, kind: type[OverNetwork]) -> AsyncIterator[OverNetwork]:
        yield kind(self.store, self)


class OverNetwork(Good):
    """Keeps every promise: what was cut before it was done may be retried, as may what does no harm."""

    def __init__(self, inner: Any, connection: Connection) -> None:
        super().__init__(inner)
        self.connection = connection

    async def call(self, done: Callable[[], Awaitable[Any]], *, harmless: bool) -> Any:
        cuts = self.connection.cuts
        await anyio.sleep(THERE)
        if self.connection.cuts != cuts:
            raise self.lost(may_retry=True)
        result = await done()
        await anyio.sleep(BACK)
        if self.connection.cuts != cuts:
            raise self.lost(may_retry=harmless)
        return result

    def lost(self, *, may_retry: bool) -> Exception:
        return StoreError("the connection was cut", may_retry=may_retry)

    async def get(self, key: str) -> Entry | None:
        return await self.call(lambda: self.inner.get(key), harmless=True)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        done = super().put
        return await self.call(lambda: done(key, value, ttl=ttl, if_version=if_version), harmless=if_version is None)


class LetsTheClientsErrorOut(OverNetwork):
    def lost(self, *, may_retry: bool) -> Exception:
        return ConnectionResetError("reset by peer")


class AlwaysSaysRetry(OverNetwork):
    def lost(self, *, may_retry: bool) -> Exception:
        return super().lost(may_retry=True)


class NeverSaysRetry(OverNetwork):
    def lost(self, *, may_retry: bool) -> Exception:
        return super().lost(may_retry=False)


class NeverComesBack(OverNetwork):
    async def call(self, done: Callable[[], Awaitable[Any]], *, harmless: bool) -> Any:
        if self.connection.cuts:
            raise self.lost(may_retry=True)
        return await super().call(done, harmless=harmless)


class AnswersTooSoon(OverNetwork):
    """Says that a put is done, and loses it with the connection."""

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        cuts = self.connection.cuts
        before = await self.inner.get(key)
        version = await self.inner.put(key, value, ttl=ttl, if_version=if_version)
        await anyio.sleep(BACK)
        if self.connection.cuts != cuts and before is not None:
            await self.inner.put(key, before.value)
        return version


class WritesHalfOfIt(OverNetwork):
    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        cuts = self.connection.cuts
        version = await self.inner.put(key, value[:1], ttl=ttl, if_version=if_version)
        await anyio.sleep(BACK)
        if self.connection.cuts != cuts:
            raise self.lost(may_retry=if_version is None)
        return await self.inner.put(key, value, ttl=ttl, if_version=version)


class GivesUpHalfway(OverNetwork):
    """Gives something else than the entry where it was cut."""

    async def get(self, key: str) -> Entry | None:
        try:
            return await super().get(key)
        except StoreError:
            return None
