"""`ProcessedLog`: what is marked stays marked, once, whoever marks it and whatever dies; and how names become keys."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from conftest import ASYNCIO_ONLY
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import Entry, MemoryStore, PostgresStore, RedisStore, SqliteStore, Store, StoreError
from rescope.workflow._names import key_in, section
from rescope.workflow.processed import ProcessedEntry, ProcessedLog, ProcessedStats
from workflow.broken_stores import Clock, Good
from workflow.openers import open_postgres, open_redis

LONG = "/data/" + "sub/" * 300 + "file.csv"
NOT_UTF8 = os.fsdecode(b"caf\xe9.csv")
STRANGE = [
    "a",
    "ä/日本.csv",
    "a%2Fb",
    "=a",
    "~a",
    NOT_UTF8,
    LONG,
    LONG + "2",
    "e\u0301",
    "\xe9",
]

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
once = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1], indirect=True)


class Batches:
    """Passes on to a store, and keeps what was written at once."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.written: list[list[str]] = []
        self.gets = 0
        self.fail_at: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str) -> Entry | None:
        self.gets += 1
        return await self.inner.get(key)

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        if len(self.written) == self.fail_at:
            raise StoreError("out of order", may_retry=True)
        self.written.append([*values])
        return await self.inner.put_many(values, ttl=ttl)


class ReadOnly(Good):
    """Nothing can be put into it any more."""

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        raise StoreError("read only")

    async def put_many(self, values: Mapping[str, Any]) -> dict[str, int]:
        raise StoreError("read only")


async def keys(log: ProcessedLog) -> list[str]:
    return [entry.key async for entry in log.list()]


async def held(store: Store) -> list[str]:
    return [entry.key async for entry in store.scan("")]


@pytest.fixture(params=["many at once", "one by one"])
def store(request: pytest.FixtureRequest) -> Any:
    """A store that can write many at once, or one that can't."""
    return MemoryStore() if request.param == "many at once" else Good(MemoryStore())


# A key


async def test_a_marked_key_is_processed_and_no_other(store: Store) -> None:
    """Nor is that key in another store."""
    log = ProcessedLog(store, "files")
    before = await log.is_processed("a")
    await log.mark("a")

    assert (before, await log.is_processed("a"), await log.is_processed("A")) == (False, True, False)
    assert not await ProcessedLog(MemoryStore(), "files").is_processed("a")


async def test_asking_for_a_key_is_one_get() -> None:
    """However many are marked."""
    store = Batches(MemoryStore())
    log = ProcessedLog(store, "files")
    await log.mark_many(["a", "b"])
    await log.is_processed("a")

    assert store.gets == 1


async def test_an_entry_has_its_key_metadata_and_time(store: Store) -> None:
    """The time is that of the clock given."""
    clock = Clock()
    log = ProcessedLog(store, "files", clock=clock)
    await log.mark("a", {"rows": 12})
    clock.advance(0.25)
    await log.mark("b")

    assert [entry async for entry in log.list()] == [
        ProcessedEntry("a", {"rows": 12}, 1000.0),
        ProcessedEntry("b", None, 1000.25),
    ]


async def test_the_time_is_that_of_the_machine_by_default() -> None:
    """In epoch seconds."""
    log = ProcessedLog(MemoryStore(), "files")
    before = time.time()
    await log.mark("a")
    last = await log.last()

    assert last is not None
    assert before <= last.at <= time.time()


async def test_marking_again_replaces_metadata_and_time(store: Store) -> None:
    """And adds no second entry."""
    clock = Clock()
    log = ProcessedLog(store, "files", clock=clock)
    await log.mark("a", {"try": 1})
    clock.advance(5)
    await log.mark("a", {"try": 2})

    assert [entry async for entry in log.list()] == [ProcessedEntry("a", {"try": 2}, 1005.0)]


@pytest.mark.parametrize("key", STRANGE)
async def test_any_key_comes_back_as_it_was(key: str, store: Store) -> None:
    """As long as the path of a file may be, also of one whose name is no UTF-8."""
    log = ProcessedLog(store, "files")
    await log.mark_many(other for other in STRANGE if other != key)
    before = await log.is_processed(key)
    await log.mark(key, {"its": key})

    assert not before
    assert await log.is_processed(key)
    assert sorted(await keys(log)) == sorted(STRANGE)
    last = await log.last()
    assert last is not None
    assert (last.key, last.metadata) == (key, {"its": key})
    assert await log.remove(key)
    assert not await log.is_processed(key)


async def test_a_path_of_the_greatest_length_fits() -> None:
    """In a log with a name of the greatest length, on a store that has a limit."""
    log = ProcessedLog(MemoryStore(), "ä" * 100)
    for length in range(290, 310):
        await log.mark("x" * length)

    assert (await log.stats()).count == 20
    assert {len(key) for key in await keys(log)} == set(range(290, 310))


# Names


NAMES = ["a", "a/b", "ab", "a%", "a%2Fb", "a/", "/a", "/", "1:a", "1:a/", "=", "a/=k", "ä", "日本", "a b"]


async def test_logs_whose_names_share_a_prefix_are_separate(store: Store) -> None:
    """Marks, lists, counts, the last ones and clearing don't mix, whatever the names and keys hold."""
    logs = {name: ProcessedLog(store, name) for name in NAMES}
    for name, log in logs.items():
        await log.mark_many([name, "b/k", "/k", "=k"])

    for name, log in logs.items():
        assert sorted(await keys(log)) == sorted({name, "b/k", "/k", "=k"})
        assert await log.clear() == len({name, "b/k", "/k", "=k"})
        assert await log.last() is None
        assert [(await other.stats()).count > 0 for other in logs.values()].count(False) == 1
        await log.mark_many([name, "b/k", "/k", "=k"])


def test_no_prefix_is_the_beginning_of_another() -> None:
    """For all pairs of names, and of pieces."""
    prefixes = [section(piece, name) for piece in ("p", "p/1", "processed") for name in NAMES]

    assert [(one, other) for one in prefixes for other in prefixes if one is not other and other.startswith(one)] == []


def test_keys_keep_their_order_where_they_fit() -> None:
    """By code points, in the store too."""
    users = ["", "a", "a/b", "b", "~", "ä", "\U0001f600"]
    stored = [key_in("p/", user) for user in users[1:]]

    assert sorted(stored) == stored
    assert len({key_in("p/", key) for key in STRANGE}) == len(STRANGE)
    assert all(len(key_in("p/", key).encode()) <= 512 for key in STRANGE)
    assert key_in("p/", "x" * 509) == "p/=" + "x" * 509
    assert key_in("p/", "x" * 510).startswith("p/~")


async def test_a_log_is_shown_by_its_name() -> None:
    """And metadata is not shown at all."""
    log = ProcessedLog(MemoryStore(), "files")
    await log.mark("a", {"password": "hunter2"})
    last = await log.last()

    assert repr(log) == "<ProcessedLog 'files'>"
    assert "hunter2" not in repr(last)
    assert log.name == "files"


# Many


@pytest.mark.parametrize(
    "given",
    [
        {"a": {"n": 1}, "b": None},
        [("a", {"n": 1}), "b"],
        (("a", {"n": 1}), ("b", None)),
        iter,
        {"a": {"n": 1}, "b": None}.items(),
    ],
    ids=["mapping", "mixed", "pairs", "iterator", "items"],
)
async def test_many_may_come_as_keys_pairs_or_a_mapping(given: Any) -> None:
    """From anything that can be iterated."""
    log = ProcessedLog(MemoryStore(), "files", clock=Clock())

    assert await log.mark_many(iter({"a": {"n": 1}, "b": None}.items()) if given is iter else given) == 2
    assert [(entry.key, entry.metadata) async for entry in log.list()] == [("a", {"n": 1}), ("b", None)]


async def test_keys_that_come_without_metadata_get_that_of_all() -> None:
    """The others keep their own."""
    log = ProcessedLog(MemoryStore(), "files")
    await log.mark_many(["a", ("b", None), ("c", 3)], {"day": 1})

    assert [(entry.key, entry.metadata) async for entry in log.list()] == [("a", {"day": 1}), ("b", None), ("c", 3)]


async def test_of_several_marks_of_a_key_the_last_counts(store: Store) -> None:
    """Its metadata, and its place among the others."""
    log = ProcessedLog(store, "files", clock=Clock())
    await log.mark_many([("a", 1), ("b", 2), ("a", 3)])
    last = await log.last()
    await log.remove("a")

    assert last == ProcessedEntry("a", 3, 1000.0)
    assert await keys(log) == ["b"]


async def test_no_keys_are_no_marks() -> None:
    """And write nothing."""
    store = MemoryStore()

    assert await ProcessedLog(store, "files").mark_many([]) == 0
    assert await held(store) == []


async def test_many_are_written_in_bounded_chunks() -> None:
    """Each with what points to the last one; no more than a chunk is taken from a generator before it is written."""
    store = Batches(MemoryStore())
    taken: list[int] = []

    def source() -> Iterator[str]:
        for number in range(1200):
            taken.append(len(store.written))
            yield f"{number:04}"

    await ProcessedLog(store, "files").mark_many(source())

    assert [len(chunk) for chunk in store.written] == [501, 501, 201]
    assert taken == [0] * 500 + [1] * 500 + [2] * 200


async def test_many_are_right_on_a_store_that_writes_one_at_a_time() -> None:
    """As on one that has `put_many`."""
    log = ProcessedLog(Good(MemoryStore()), "files")
    await log.mark_many(f"{number:04}" for number in range(1200))
    last = await log.last()

    assert (await log.stats()).count == 1200
    assert last is not None
    assert last.key == "1199"


async def test_what_is_written_is_what_was_given() -> None:
    """Metadata that changes while it is written is written as it was."""
    metadata = {"rows": 1}

    class Slow(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            metadata["rows"] = 2
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    log = ProcessedLog(Slow(MemoryStore()), "files")
    await log.mark_many(["a", "b"], metadata)

    assert [entry.metadata async for entry in log.list()] == [{"rows": 1}, {"rows": 1}]


async def test_what_was_written_before_a_failure_stays() -> None:
    """The chunk that failed is not there at all; marking all again mends it."""
    store = Batches(MemoryStore())
    store.fail_at = 1
    log = ProcessedLog(store, "files")
    names = [f"{number:04}" for number in range(1200)]
    with pytest.raises(StoreError, match="out of order"):
        await log.mark_many(names)
    before = await keys(log)
    store.fail_at = None
    await log.mark_many(names)

    assert before == names[:500]
    assert await keys(log) == names


async def test_a_cancellation_leaves_whole_chunks() -> None:
    """Wherever it comes; and the last one is that of the latest chunk."""

    async def program(_: Ledger) -> None:
        log = ProcessedLog(MemoryStore(), "files")
        try:
            await log.mark_many(f"{number:04}" for number in range(600))
        finally:
            with anyio.CancelScope(shield=True):
                stats, last = await log.stats(), await log.last()
            assert stats.count in {0, 500, 600}
            assert last is None if stats.count == 0 else last is not None and int(last.key) == stats.count - 1

    report = await cancel_everywhere(program)

    assert report


@pytest.mark.long
@once
async def test_a_hundred_thousand_are_listed_and_counted() -> None:
    """All of them, in order."""
    log = ProcessedLog(MemoryStore(), "files", clock=Clock())
    marked = await log.mark_many(f"{number:06}" for number in range(100_000))
    listed = [int(entry.key) async for entry in log.list()]

    assert marked == 100_000
    assert listed == [*range(100_000)]
    assert await log.stats() == ProcessedStats(100_000, 1000.0, 1000.0)


@once
async def test_counting_holds_little_in_memory(tmp_path: Path) -> None:
    """On SQLite, which is not in memory itself: a page or two are all that is held."""
    async with SqliteStore(tmp_path / "store.db", synchronous="normal") as store:
        log = ProcessedLog(store, "files", clock=Clock())
        await log.mark_many((f"{number:06}", "x" * 1000) for number in range(10_000))
        tracemalloc.start()
        try:
            stats = await log.stats()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert stats.count == 10_000
    assert peak < 4_000_000


# The last one


async def test_the_last_is_the_one_marked_last(store: Store) -> None:
    """Not the greatest key, nor the one with the latest time: clocks differ."""
    clock = Clock()
    log = ProcessedLog(store, "files", clock=clock)
    found = [await log.last()]
    for key, turn in [("b", 1), ("a", 1), ("c", -500), ("a", 1)]:
        clock.advance(turn)
        await log.mark(key)
        found.append(await log.last())

    assert [None if entry is None else entry.key for entry in found] == [None, "b", "a", "c", "a"]


async def test_the_last_takes_two_gets() -> None:
    """However many are marked: nothing is looked through."""
    store = Batches(MemoryStore())
    log = ProcessedLog(store, "files")
    await log.mark_many(f"{number:04}" for number in range(1200))
    store.scan = None  # type: ignore[attr-defined]
    last = await log.last()

    assert last is not None
    assert last.key == "1199"
    assert store.gets == 2


async def test_the_last_may_be_marked_again_meanwhile() -> None:
    """It was the last when it was marked again, so nothing has to be looked through."""
    clock = Clock()

    class Busy(Good):
        async def get(self, key: str) -> Entry | None:
            found = await super().get(key)
            clock.advance(1)
            await ProcessedLog(self.inner, "files", clock=clock).mark("hot", clock.now)
            return found

    inner = MemoryStore()
    await ProcessedLog(inner, "files", clock=clock).mark("hot")

    busy = Busy(inner)
    busy.scan = None  # type: ignore[method-assign, assignment]

    assert await ProcessedLog(busy, "files").last() == ProcessedEntry("hot", 1001.0, 1001.0)


async def test_without_the_last_it_is_the_one_before() -> None:
    """By the order in which the store took them, though the clocks of two processes differ by an hour."""
    store, ahead, behind = MemoryStore(), Clock(), Clock()
    ahead.advance(3600)
    one, other = ProcessedLog(store, "files", clock=ahead), ProcessedLog(store, "files", clock=behind)
    await one.mark("a")
    await one.mark_many(["z", "b"])
    await other.mark("c")
    await one.mark("a")
    await other.mark_many(["d", "e"])

    found = []
    while (last := await one.last()) is not None:
        found.append(last.key)
        await other.remove(last.key)

    assert found == ["e", "d", "a", "c", "b", "z"]


async def test_removing_one_that_is_not_the_last_changes_nothing(store: Store) -> None:
    """The last one stays the last one."""
    log = ProcessedLog(store, "files")
    await log.mark_many(["a", "b", "c"])
    await log.remove("b")
    last = await log.last()

    assert last is not None
    assert last.key == "c"


async def test_the_rest_is_looked_through_once() -> None:
    """The one found is pointed to, until the next mark."""
    store = Batches(MemoryStore())
    log = ProcessedLog(store, "files")
    await log.mark_many(["a", "b", "c"])
    await log.remove("c")
    await log.last()
    store.scan = None  # type: ignore[attr-defined]
    last = await log.last()

    assert last is not None
    assert last.key == "b"


async def test_a_mark_made_while_it_looks_is_not_overwritten() -> None:
    """What points to the new one stays, and the next look finds it."""
    inner = MemoryStore()
    log = ProcessedLog(inner, "files")
    await log.mark_many(["a", "b"])
    await log.remove("b")

    class Interrupted(Batches):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            await log.mark("new")
            return await self.inner.put(key, value, ttl=ttl, if_version=if_version)

    found = await ProcessedLog(Interrupted(inner), "files").last()
    last = await log.last()

    assert (found and found.key, last and last.key) == ("a", "new")


@pytest.mark.parametrize("key", ["a", "c"])
@pytest.mark.parametrize("puts", [4, 5])
async def test_a_mark_that_came_by_half_fits_the_last(key: str, puts: int) -> None:
    """Where the store writes one at a time, and the process died in between: it is the last if it is marked at all."""

    class Dies(Good):
        left = puts

        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if not self.left:
                raise StoreError("killed here")
            self.left -= 1
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    clock = Clock()
    log = ProcessedLog(Dies(MemoryStore()), "files", clock=clock)
    for each in ("a", "b"):
        await log.mark(each)
        clock.advance(1)
    with pytest.raises(StoreError, match="killed here"):
        await log.mark(key)
    entries = [entry async for entry in log.list()]

    assert [await log.last(), await log.last()] == [max(entries, key=lambda entry: entry.at)] * 2


async def test_a_mark_on_its_way_is_the_last_when_it_comes() -> None:
    """Also where the store writes one at a time, and somebody asked for the last meanwhile."""
    asked = []

    class Looked(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            version = await super().put(key, value, ttl=ttl, if_version=if_version)
            asked.append(await ProcessedLog(Good(self.inner), "files").last())
            return version

    log = ProcessedLog(Looked(MemoryStore()), "files")
    await log.mark("b")
    await log.mark("a")
    last = await log.last()

    assert [entry and entry.key for entry in [*asked, last]] == [None, "b", "b", "a", "a"]


async def test_the_last_can_be_read_where_nothing_can_be_written() -> None:
    """It is looked for each time."""
    inner = MemoryStore()
    log = ProcessedLog(inner, "files")
    await log.mark_many(["a", "b"])
    await log.remove("b")
    reader = ProcessedLog(ReadOnly(inner), "files")
    found = [await reader.last(), await reader.last()]

    assert [entry and entry.key for entry in found] == ["a", "a"]


# Listing, counting, taking away


async def test_the_list_is_in_the_order_of_keys(store: Store) -> None:
    """Whatever the order they were marked in."""
    log = ProcessedLog(store, "files")
    await log.mark_many(["b", "ä", "a/b", LONG, "a", "B"])

    assert await keys(log) == ["B", "a", "a/b", "b", "ä", LONG]


async def test_a_list_may_be_left_and_keys_removed_while_it_is_read(store: Store) -> None:
    """Nothing is left open, and what is there is given once."""
    log = ProcessedLog(store, "files")
    await log.mark_many(f"{number:04}" for number in range(1200))
    async for entry in log.list():
        if entry.key == "0010":
            break
    found = []
    async for entry in log.list():
        found.append(entry.key)
        await log.remove(entry.key)

    assert found == [f"{number:04}" for number in range(1200)]
    assert await keys(log) == []


async def test_stats_count_and_tell_the_first_and_last_time(store: Store) -> None:
    """By the times of the entries; in an empty log there are none."""
    clock = Clock()
    log = ProcessedLog(store, "files", clock=clock)
    empty = await log.stats()
    for key, turn in [("a", 5), ("b", 20), ("c", -15)]:
        clock.advance(turn)
        await log.mark(key)

    assert empty == ProcessedStats(0, None, None)
    assert await log.stats() == ProcessedStats(3, 1005.0, 1025.0)


async def test_remove_tells_whether_there_was_one(store: Store) -> None:
    """Twice removes once."""
    log = ProcessedLog(store, "files")
    await log.mark("a")

    assert [await log.remove("a"), await log.remove("a"), await log.remove("b")] == [True, False, False]
    assert not await log.is_processed("a")


async def test_clear_takes_all_away_and_tells_how_many(store: Store) -> None:
    """Nothing of the log is left in the store; a second time there is nothing to clear."""
    log = ProcessedLog(store, "files")
    await log.mark_many(f"{number:04}" for number in range(600))

    assert [await log.clear(), await log.clear()] == [600, 0]
    assert await held(store) == []
    await log.mark("again")
    assert await keys(log) == ["again"]


async def test_what_is_marked_while_the_log_is_cleared_is_not_lost() -> None:
    """A key that is marked anew stays, and is the last."""
    inner = MemoryStore()
    log = ProcessedLog(inner, "files")
    await log.mark_many(["a", "b", "c"])

    class Marking(Batches):
        async def delete(self, key: str, *, if_version: int | None = None) -> bool:
            if key.endswith("=b"):
                await log.mark("b", "anew")
            return await self.inner.delete(key, if_version=if_version)

    cleared = await ProcessedLog(Marking(inner), "files").clear()
    reader = Batches(inner)
    reader.scan = None  # type: ignore[attr-defined]
    last = await ProcessedLog(reader, "files").last()

    assert cleared == 2
    assert await keys(log) == ["b"]
    assert last is not None
    assert (last.key, last.metadata) == ("b", "anew")


# Bad input


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        ("", ValueError, "a key must not be empty"),
        (b"a", TypeError, "a key must be a string, not a bytes"),
        (Path("a"), TypeError, "use `os.fspath` or `str`"),
        (None, TypeError, "not a NoneType"),
        (("a", "b", "c"), TypeError, "not a tuple"),
        ("half \ud83d", ValueError, "high surrogates"),
    ],
)
async def test_what_can_be_no_key_is_refused(key: Any, error: type[Exception], text: str, store: Store) -> None:
    """Everywhere, before anything is written."""
    log = ProcessedLog(store, "files")
    for act in (log.mark, log.is_processed, log.remove, lambda key: log.mark_many(["fine", key])):
        with pytest.raises(error, match=text):
            await act(key)

    assert await held(store) == []


@pytest.mark.parametrize("metadata", [object(), {"x": {1, 2}}, float("nan")])
async def test_metadata_that_is_not_json_is_refused(metadata: Any, store: Store) -> None:
    """The key is named, the metadata is not shown, and nothing is written."""
    log = ProcessedLog(store, "files")
    for act in (log.mark("a", metadata), log.mark_many({"fine": 1, "a": metadata})):
        with pytest.raises((TypeError, ValueError), match="=a' is not JSON"):
            await act

    assert await held(store) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("abc", "not a str: use `mark`"),
        (b"abc", "not a bytes: use `mark`"),
        (None, "not a NoneType: collect"),
        (MemoryStore().scan(""), "not a Scan: collect"),
    ],
)
async def test_what_holds_no_keys_is_refused(given: Any, text: str, store: Store) -> None:
    """A string is no list of keys, and an async iterator has to be collected."""
    with pytest.raises(TypeError, match=text):
        await ProcessedLog(store, "files").mark_many(given)

    assert await held(store) == []


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", ValueError, "a name must not be empty"),
        (3, TypeError, "a name must be a string, not a int"),
        ("a\nb", ValueError, "a name must not hold control characters"),
        ("x" * 201, ValueError, "a name must be at most 200 bytes in UTF-8, not 201"),
        ("x" * 600, ValueError, "a name must be at most 512 bytes in UTF-8, not 600"),
    ],
)
def test_what_can_be_no_name_is_refused(name: Any, error: type[Exception], text: str) -> None:
    """At once."""
    with pytest.raises(error, match=text):
        ProcessedLog(MemoryStore(), name)


def test_what_is_no_store_is_refused() -> None:
    """A class is none either."""
    with pytest.raises(TypeError, match="must be a store, as `MemoryStore\\(\\)`, not a dict"):
        ProcessedLog({}, "files")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not the class MemoryStore"):
        ProcessedLog(MemoryStore, "files")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["mine", {"key": "a"}, [1]])
async def test_what_something_else_wrote_is_told(value: Any) -> None:
    """Where a mark should be."""
    store = MemoryStore()
    log = ProcessedLog(store, "files")
    await store.put(key_in(section("processed", "files"), "a"), value)
    with pytest.raises(StoreError, match="is no mark: something other than ProcessedLog wrote it"):
        await keys(log)

    assert await log.is_processed("a")


# Between processes

MARK = """
import sys, anyio
from rescope.workflow import SqliteStore
from rescope.workflow.processed import ProcessedLog

async def main(path, who):
    async with SqliteStore(path, synchronous="normal", busy_timeout=30) as store:
        log = ProcessedLog(store, "files")
        await log.mark_many((f"{who}/{number:05}", {"by": who}) for number in range(1500))
        for number in range(30):
            await log.mark(f"{who}/single/{number:05}")
            await log.mark(f"all/{number:05}", {"by": who})

anyio.run(main, *sys.argv[1:])
"""

MARK_FOR_EVER = """
import itertools, sys, anyio
from rescope.workflow import SqliteStore
from rescope.workflow.processed import ProcessedLog

def numbers():
    for number in itertools.count():
        if number == 3000:
            print("under way", flush=True)
        yield f"{number:08}"

async def main(path):
    async with SqliteStore(path, synchronous="normal") as store:
        await ProcessedLog(store, "files").mark_many(numbers())

anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.long
@once
async def test_marks_of_several_processes_are_all_there(tmp_path: Path) -> None:
    """None is lost, also of the keys that all of them mark."""
    path = str(tmp_path / "store.db")
    processes = [subprocess.Popen([sys.executable, "-c", MARK, path, f"p{number}"]) for number in range(4)]  # noqa: ASYNC220, S603
    codes = [process.wait(timeout=60) for process in processes]
    async with SqliteStore(path) as store:
        log = ProcessedLog(store, "files")
        found = set(await keys(log))
        last = await log.last()

    assert codes == [0, 0, 0, 0]
    assert found == (
        {f"p{who}/{number:05}" for who in range(4) for number in range(1500)}
        | {f"p{who}/single/{number:05}" for who in range(4) for number in range(30)}
        | {f"all/{number:05}" for number in range(30)}
    )
    assert last is not None
    assert last.key == "all/00029"


@once
async def test_a_process_that_is_killed_leaves_whole_chunks_and_the_last_of_them(tmp_path: Path) -> None:
    """In the middle of `mark_many`: what was marked stays, `last` and `stats` fit it."""
    path = str(tmp_path / "store.db")
    process = subprocess.Popen([sys.executable, "-c", MARK_FOR_EVER, path], stdout=subprocess.PIPE)  # noqa: ASYNC220, S603
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    async with SqliteStore(path) as store:
        log = ProcessedLog(store, "files")
        found, last, stats = await keys(log), await log.last(), await log.stats()

    assert stats.count >= 3000
    assert stats.count % 500 == 0
    assert found == [f"{number:08}" for number in range(stats.count)]
    assert last is not None
    assert last.key == found[-1]


# On servers


@pytest.fixture(params=["postgres", "redis"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[PostgresStore | RedisStore]:
    """A store on a server."""
    url = request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgres":
        async with open_postgres(url, "processed") as store:
            yield store
    else:
        async with open_redis(url) as other:
            yield other


@asyncio_only
async def test_it_is_the_same_on_a_server(served: PostgresStore | RedisStore) -> None:
    """Marks of any key, also at once from many tasks; the one before the last; counting; clearing."""
    log, other = ProcessedLog(served, "a"), ProcessedLog(served, "a/b")
    await log.mark_many(STRANGE)
    await other.mark("o")
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(log.mark, f"many/{number}")
            tasks.start_soon(log.mark, "all")
    await log.mark_many(["x", "y", "z"])
    lasts = [await log.last()]
    for key in ("z", "y"):
        await log.remove(key)
        lasts.append(await log.last())

    assert [entry and entry.key for entry in lasts] == ["z", "y", "x"]
    assert sorted(await keys(log)) == sorted([*STRANGE, *(f"many/{number}" for number in range(40)), "all", "x"])
    assert await log.clear() == len(STRANGE) + 42
    assert await keys(other) == ["o"]
    assert await other.clear() == 1
