"""`checkpoint`: what is kept of work that stops, and what the next run makes of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import pickle
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import CloseTimeoutError, Ok, ResourceCleanupError, Scope, with_scope
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import (
    Checkpoint,
    CheckpointConflictError,
    CheckpointReport,
    Entry,
    MemoryStore,
    SqliteStore,
    Store,
    StoreClosedError,
    StoreError,
    UnreadableValueError,
    checkpoint,
    checkpoints,
)
from workflow.broken_stores import Clock, Good

KEY = "checkpoint/=orders"


class Fault(Exception):
    """An error of our own."""


class CuedStore(Good):
    """A store whose operations go wrong on cue: the next of a name, the one after it, and so on.

    They are: `"fail"`; `"lost"`: it is done, and the answer is lost; `"hang"`; `"wait"`, to be told to go on; or an
    exception to raise.
    """

    def __init__(self, inner: Store | None = None) -> None:
        super().__init__(inner or MemoryStore())
        self.cues: dict[str, list[Any]] = {"get": [], "put": [], "delete": []}
        self.calls: list[str] = []
        self.stands: Any = None
        self.put_begun = anyio.Event()
        self.go_on = anyio.Event()

    async def get(self, key: str) -> Entry | None:
        entry: Entry | None = await self._do("get", lambda: self.inner.get(key))
        return entry

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        async def put() -> int:
            version: int = await self.inner.put(key, value, ttl=ttl, if_version=if_version)
            self.stands = value
            return version

        self.put_begun.set()
        version: int = await self._do("put", put)
        return version

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        async def delete() -> bool:
            deleted: bool = await self.inner.delete(key, if_version=if_version)
            if deleted:
                self.stands = None
            return deleted

        there: bool = await self._do("delete", delete)
        return there

    async def _do(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append(name)
        cue = self.cues[name].pop(0) if self.cues[name] else None
        if isinstance(cue, BaseException):
            raise cue
        if cue == "fail":
            raise StoreError("no answer", may_retry=True)
        if cue == "hang":
            await anyio.sleep_forever()
        if cue == "wait":
            await self.go_on.wait()
        answer = await act()
        if cue == "lost":
            raise StoreError("the connection was cut")
        await anyio.lowlevel.checkpoint()
        return answer


async def saved(store: Store, *states: Any, key: str = "orders", **options: Any) -> None:
    """Let a run fail after it has advanced to these states."""
    with pytest.raises(Fault, match="the run"):
        async with checkpoint(store, key, **options) as c:
            for state in states:
                await c.advance(state)
            raise Fault("the run")


async def state_in(store: Store, key: str = "orders", **options: Any) -> Any:
    """Look what a next run finds, and leave it there."""
    found: Any = None
    with pytest.raises(Fault, match="looking"):
        async with checkpoint(store, key, **options) as c:
            found = c.state
            raise Fault("looking")
    return found


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rescope"]


# What is asked for


def test_it_is_called_as_the_contract_has_it() -> None:
    """Names, order and defaults of what is asked for are those of the contract."""
    given = [(name, one.default) for name, one in inspect.signature(checkpoint).parameters.items()]
    assert given[2:5] == [("version", 1), ("max_age", None), ("every", 1)]
    assert given[:2] == [("store", inspect.Parameter.empty), ("key", inspect.Parameter.empty)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"store": MemoryStore}, TypeError, "`store` must be a store, as `MemoryStore()`, not the class MemoryStore"),
        ({"store": {}}, TypeError, "`store` must be a store, as `MemoryStore()`, not a dict"),
        ({"key": 5}, TypeError, "a key must be a string, not a int"),
        ({"key": ""}, ValueError, "a key must not be empty"),
        ({"key": "a\nb"}, ValueError, "a key must not hold control characters"),
        ({"key": "x" * 5000}, ValueError, "a key must be at most 4096 bytes in UTF-8, not 5000"),
        ({"version": "1"}, TypeError, "`version` must be a whole number, not a str"),
        ({"version": True}, TypeError, "`version` must be a whole number, not a bool"),
        ({"version": -1}, ValueError, "`version` must be at least 0, not -1"),
        ({"every": 0}, ValueError, "`every` must be at least 1, not 0"),
        ({"every": 1.5}, TypeError, "`every` must be a whole number, not a float"),
        ({"max_age": 0}, ValueError, "`max_age` must be more than 0 s, not 0"),
        ({"max_age": -1.5}, ValueError, "`max_age` must be more than 0 s, not -1.5"),
        ({"max_age": float("nan")}, ValueError, "`max_age` must be more than 0 s, not nan"),
        ({"max_age": "60"}, TypeError, "`max_age` must be a number of seconds, or None, not a str"),
        ({"max_age": True}, TypeError, "`max_age` must be a number of seconds, or None, not a bool"),
        ({"clock": 1.5}, TypeError, "`clock` must be callable, not a float"),
    ],
)
def test_bad_input_is_refused_at_the_call(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """What no checkpoint can be made with is refused where it is given, and the message tells the mend."""
    given: dict[str, Any] = {"store": MemoryStore(), "key": "orders"} | change
    with pytest.raises(error, match=re.escape(message)):
        checkpoint(given.pop("store"), given.pop("key"), **given)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({1, 2}, TypeError, "the value for 'orders' is not JSON: Object of type set is not JSON serializable"),
        (object(), TypeError, "the value for 'orders' is not JSON"),
        (float("nan"), ValueError, "the value for 'orders' is not JSON"),
        (None, TypeError, "checkpoint 'orders' can't be advanced to None, which is a fresh start"),
    ],
)
async def test_a_state_that_can_not_be_saved_is_refused(state: Any, error: type[Exception], message: str) -> None:
    """What is not JSON is refused before anything is written, also where it would not be saved yet."""
    store = CuedStore()
    async with checkpoint(store, "orders", every=3) as c:
        await c.advance("before")
        with pytest.raises(error, match=re.escape(message)):
            await c.advance(state)
        assert (c.state, store.calls) == ("before", ["get"])


# How far it got


async def test_a_first_run_starts_afresh() -> None:
    """Where nothing was saved there is no state, and nothing to report."""
    async with checkpoint(MemoryStore(), "orders") as c:
        assert (c.state, c.report, c.saved_at, c.end_error) == (None, None, None, None)
        assert repr(c) == "<Checkpoint 'orders': 0 not saved>"
    assert repr(c) == "<Checkpoint 'orders': over>"


async def test_the_next_run_goes_on_where_this_one_failed() -> None:
    """A run that fails leaves its last state, as JSON has it, and the time of the save."""
    store = MemoryStore()
    await saved(store, {"row": 1}, {"row": 2, "of": (3, 4)}, clock=lambda: 1234)
    async with checkpoint(store, "orders") as c:
        assert c.state == {"row": 2, "of": [3, 4]}
        assert (c.report, c.saved_at) == (None, 1234.0)


async def test_it_is_cleared_when_the_run_succeeds() -> None:
    """A normal end of the block leaves nothing in the store: neither what it saved, nor what the run before left."""
    store = MemoryStore()
    async with checkpoint(store, "orders") as c:
        await c.advance(1)
        assert await store.get(KEY) is not None
    assert await store.get(KEY) is None
    await saved(store, 1)
    async with checkpoint(store, "orders"):
        assert await store.get(KEY) is not None
    assert await store.get(KEY) is None


async def test_nothing_advanced_nothing_written() -> None:
    """A run that fails before it got anywhere leaves what it found, untouched."""
    store = CuedStore()
    await saved(store)
    assert store.calls == ["get"]
    await saved(store, 7)
    before = await store.get(KEY)
    await saved(store)
    assert await store.get(KEY) == before


async def test_it_is_saved_every_so_many() -> None:
    """With `every=3`, each third call saves, and one that fails has saved the last state that it was given."""
    store = CuedStore()
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=3) as c:
            for number in range(1, 9):
                await c.advance(number)
                assert store.calls.count("put") == number // 3
            assert repr(c) == "<Checkpoint 'orders': 2 not saved>"
            raise Fault
    assert store.calls.count("put") == 3
    assert await state_in(store) == 8


async def test_what_is_saved_already_is_not_saved_again() -> None:
    """A run that fails right after a save writes nothing more."""
    store = CuedStore()
    await saved(store, 1, 2)
    assert store.calls == ["get", "put", "put"]


async def test_the_state_is_taken_as_it_is_at_the_call() -> None:
    """What the caller does to it later is not saved, and `state` is a copy."""
    store = MemoryStore()
    mine = [1]
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=10) as c:
            await c.advance(mine)
            mine.append(2)
            assert c.state == [1]
            raise Fault
    assert await state_in(store) == [1]


async def test_a_state_may_be_changed_in_place_and_given_back() -> None:
    """`state` stays the same object until the next `advance`."""
    store = MemoryStore()
    await saved(store, {"rows": [1]})
    with pytest.raises(Fault):
        async with checkpoint(store, "orders") as c:
            c.state["rows"].append(2)
            await c.advance(c.state)
            raise Fault
    assert await state_in(store) == {"rows": [1, 2]}


async def test_keys_do_not_mix() -> None:
    """Each key has a checkpoint of its own, however long it is and whatever it holds."""
    store = MemoryStore()
    keys = ["a", "a/b", "a/b/", "=a", "x" * 1000, "x" * 1001, "caf\udce9.csv"]
    for number, key in enumerate(keys):
        await saved(store, number, key=key)
    assert [await state_in(store, key) for key in keys] == list(range(len(keys)))


async def test_a_loop_that_only_advances_can_be_cancelled() -> None:
    """Each call is a checkpoint for cancellation, also one that saves nothing."""
    with anyio.CancelScope() as cancel_scope:
        async with checkpoint(MemoryStore(), "orders", every=1000) as c:
            cancel_scope.cancel()
            await c.advance(1)
            pytest.fail("it went on")
    assert cancel_scope.cancelled_caught


async def test_several_tasks_may_advance() -> None:
    """They get into no conflict with one another, and what was given last stands."""
    store = CuedStore()
    with pytest.raises(Fault):
        async with checkpoint(store, "orders") as c:
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(c.advance, number)
            last = c.state
            raise Fault
    assert await state_in(store) == last
    assert store.calls.count("put") < 20


async def test_what_is_given_while_a_save_is_under_way_is_not_forgotten() -> None:
    """It is saved by the next save, or at the end."""
    store = CuedStore()
    store.cues["put"] = ["wait"]
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=2) as c:
            await c.advance(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(c.advance, 2)
                await store.put_begun.wait()
                tasks.start_soon(c.advance, 3)
                await anyio.wait_all_tasks_blocked()
                store.go_on.set()
            assert store.stands["state"] == "2"
            raise Fault
    assert await state_in(store) == 3


# How a block ends


async def test_it_is_saved_when_it_is_cancelled() -> None:
    """A cancellation reaches neither the save at the end, nor what it leads to."""
    store = CuedStore()
    with anyio.CancelScope() as cancel_scope:
        async with checkpoint(store, "orders", every=10) as c:
            await c.advance("so far")
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert await state_in(store) == "so far"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_it_is_saved_when_it_is_interrupted(interruption: type[BaseException]) -> None:
    """What is no `Exception` is a failure too, and comes out itself."""
    store = MemoryStore()
    with pytest.raises(interruption):
        async with checkpoint(store, "orders", every=10) as c:
            await c.advance("so far")
            raise interruption
    assert await state_in(store) == "so far"


@pytest.mark.parametrize("every", [1, 2])
async def test_wherever_it_is_cancelled_the_last_state_stands(every: int) -> None:
    """At every point of a run: the store has what was given last, or nothing once the block has come to its end."""

    async def program(_: Ledger) -> None:
        store = CuedStore()
        given: int | None = None
        try:
            async with checkpoint(store, "orders", every=every) as c:
                for number in (1, 2, 3):
                    given = number
                    await c.advance(number)
                given = None
        finally:
            stands = None if store.stands is None else int(store.stands["state"])
            if stands != given:
                raise Fault(f"{stands} stands, and {given} was given")

    report = await cancel_everywhere(program)
    assert report.total > 0


@pytest.mark.parametrize("every", [1, 5])
async def test_a_save_whose_answer_got_lost_is_no_conflict(every: int) -> None:
    """Whether it was done is found out by the next one: a run does not take itself for somebody else."""
    store = CuedStore()
    store.cues["put"] = ["lost"]
    with pytest.raises(StoreError, match="cut"):
        async with checkpoint(store, "orders", every=every) as c:
            for number in range(1, 6):
                await c.advance(number)
    assert store.calls == ["get", "put", "get", "put"]
    assert await state_in(store) == (1 if every == 1 else 5)


async def test_a_save_that_was_not_done_is_done_by_the_next() -> None:
    """A block may stand a failing store: what it could not save is saved with the next state."""
    store = CuedStore()
    await saved(store, 1)
    store.cues["put"] = ["fail"]
    with pytest.raises(Fault):
        async with checkpoint(store, "orders") as c:
            with pytest.raises(StoreError, match="no answer"):
                await c.advance(2)
            await c.advance(3)
            raise Fault
    assert await state_in(store) == 3


async def test_a_save_whose_answer_got_lost_is_cleared() -> None:
    """A run that ends well clears what it may have written."""
    store = CuedStore()
    store.cues["put"] = ["lost"]
    async with checkpoint(store, "orders") as c:
        with pytest.raises(StoreError, match="cut"):
            await c.advance(1)
    assert await store.get(KEY) is None


async def test_a_failing_save_does_not_hide_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The block's own exception comes out. The save's is noted on it, logged, and kept."""
    store = CuedStore()
    store.cues["put"] = ["fail"]
    with pytest.raises(Fault) as caught:
        async with checkpoint(store, "orders", every=2) as c:
            await c.advance({"password": "secret"})
            raise Fault
    told = "1 of 1 resources of scope 'checkpoint orders' failed to close: save: StoreError: no answer"
    assert warnings_in(caplog) == [told]
    assert caught.value.__notes__ == [f"rescope: {told}"]
    assert isinstance(c.end_error, ResourceCleanupError)
    assert isinstance(c.end_error.exceptions[0], StoreError)


async def test_a_failing_save_does_not_hide_a_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    """The cancellation goes on, and the failure is logged and kept."""
    store = CuedStore()
    store.cues["put"] = ["fail"]
    with anyio.CancelScope() as cancel_scope:
        async with checkpoint(store, "orders", every=2) as c:
            await c.advance(1)
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert cancel_scope.cancelled_caught
    assert any("save: StoreError: no answer" in message for message in warnings_in(caplog))
    assert c.end_error is not None


async def test_a_failing_clearing_is_raised() -> None:
    """The next run would skip what it finds there as done, so a run that ended well tells it loudly."""
    store = CuedStore()
    store.cues["delete"] = ["fail"]
    with pytest.raises(ResourceCleanupError) as caught:
        async with checkpoint(store, "orders") as c:
            await c.advance(1)
    assert caught.value.original_result == Ok(None)
    assert [failure.name for failure in caught.value.failures] == ["clear"]
    assert c.end_error is caught.value


async def test_a_store_that_hangs_at_the_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The save at the end takes no longer than it may."""
    monkeypatch.setattr(checkpoints, "_LONGEST_END", 0.02)
    store = CuedStore()
    store.cues["put"] = ["hang"]
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=2) as c:
            await c.advance(1)
            raise Fault
    assert c.end_error is not None
    assert isinstance(c.end_error.exceptions[0], CloseTimeoutError)


async def test_after_its_end_it_can_not_be_advanced() -> None:
    """What would not be saved any more is refused."""
    async with checkpoint(MemoryStore(), "orders") as c:
        pass
    with pytest.raises(RuntimeError, match="the block of checkpoint 'orders' has ended"):
        await c.advance(1)


async def test_one_is_for_one_block() -> None:
    """A second use is refused, and says what to do."""
    manager = checkpoint(MemoryStore(), "orders")
    async with manager:
        pass
    with pytest.raises(RuntimeError, match="has been used: call `checkpoint"):
        await manager.__aenter__()


@pytest.mark.parametrize("how", ["enter", "host"])
async def test_a_scope_may_hold_it(how: str) -> None:
    """Entered or hosted, it sees how the scope's body ends: it is saved when that fails, and else cleared."""
    store = MemoryStore()

    async def work(scope: Scope, *, fail: bool) -> None:
        c: Checkpoint = await getattr(scope, how)(checkpoint(store, "orders", every=10))
        await c.advance((c.state or 0) + 1)
        if fail:
            raise Fault

    with pytest.raises(Fault):
        await with_scope(lambda scope: work(scope, fail=True))
    assert await state_in(store) == 1
    await with_scope(lambda scope: work(scope, fail=False))
    assert await store.get(KEY) is None


# What can't be used


@contextmanager
def reported(caplog: pytest.LogCaptureFixture, reason: str) -> Iterator[None]:
    """Let one WARNING tell of it, and of its reason."""
    caplog.clear()
    yield
    (record,) = [record for record in caplog.records if record.name == "rescope"]
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()


@pytest.mark.parametrize(
    "change",
    [
        {"state": '{"row":3}'},
        {"version": 2},
        {"saved_at": 1.0},
        {"key": "others"},
        {"mark": ""},
        {"sha256": "0" * 64},
        {"sha256": None},
        {"state": {"row": 2}},
        {"extra": 1},
    ],
)
async def test_one_that_was_tampered_with_is_corrupt(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """The checksum is over all that it holds."""
    store = MemoryStore()
    await saved(store, {"row": 2})
    entry = await store.get(KEY)
    assert entry is not None
    await store.put(KEY, {**entry.value, **change})
    with reported(caplog, "corrupt"):
        async with checkpoint(store, "orders") as c:
            assert c.state is None
            assert c.report == CheckpointReport("orders", "corrupt", "it is not what a checkpoint has written here")
            told = "checkpoint 'orders' is not used (corrupt: it is not what a checkpoint has written here)"
            assert str(c.report) == f"{told}: started afresh"


async def test_one_of_another_key_is_corrupt() -> None:
    """A record that was copied from elsewhere says nothing about this work."""
    store = MemoryStore()
    await saved(store, 1, key="others")
    entry = await store.get("checkpoint/=others")
    assert entry is not None
    await store.put(KEY, entry.value)
    async with checkpoint(store, "orders") as c:
        assert c.report is not None
        assert c.state is None


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, {"state": 1}])
async def test_what_is_no_checkpoint_is_corrupt(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever stands under the key is reported, and overwritten by the first save, and not before."""
    store = MemoryStore()
    version = await store.put(KEY, value)
    with reported(caplog, "corrupt"):
        await saved(store)
    entry = await store.get(KEY)
    assert entry is not None
    assert entry.version == version
    await saved(store, 1)
    assert await state_in(store) == 1


async def test_what_is_corrupt_is_cleared_by_a_run_that_succeeds() -> None:
    """A run that needs no checkpoint leaves none."""
    store = MemoryStore()
    await store.put(KEY, "garbage")
    async with checkpoint(store, "orders") as c:
        assert c.report is not None
    assert await store.get(KEY) is None


async def test_what_the_store_can_not_read_is_corrupt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage in the database itself is reported, and overwritten by the first save."""
    path = tmp_path / "store.db"
    async with SqliteStore(path) as store:
        await saved(store, 1)
        with closing(sqlite3.connect(path)) as database, database:
            assert database.execute("UPDATE rescope_entries SET value = '{\"row'").rowcount == 1
        with reported(caplog, "corrupt: what the store holds under 'checkpoint/=orders' is not JSON"):
            await saved(store, 2)
        assert await state_in(store) == 2


async def test_an_unreadable_one_that_vanishes_is_none() -> None:
    """Somebody may delete it between two looks."""
    store = CuedStore()
    store.cues["get"] = [unreadable()]
    async with checkpoint(store, "orders") as c:
        assert c.report is None
        assert store.calls == ["get", "put"]


def unreadable() -> UnreadableValueError:
    """Give the error of a store that can't decode a value."""
    return UnreadableValueError("not JSON")


@pytest.mark.parametrize(
    "error", [StoreError("away", may_retry=True), StoreError("disk full"), StoreClosedError("closed")]
)
async def test_a_store_that_fails_is_no_fresh_start(error: StoreError) -> None:
    """What is there is not known then, so nothing begins: the error is raised."""
    store = CuedStore()
    await saved(store, 1)
    store.cues["get"] = [error]
    with pytest.raises(StoreError) as caught:
        await checkpoint(store, "orders").__aenter__()
    assert caught.value is error


async def test_a_store_that_fails_to_tell_what_is_unreadable() -> None:
    """Where its version can't be told either, the first error is raised."""
    store = CuedStore()
    error = unreadable()
    store.cues["get"], store.cues["put"] = [error], ["fail"]
    with pytest.raises(StoreError) as caught:
        await checkpoint(store, "orders").__aenter__()
    assert caught.value is error


async def test_a_foreign_version_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A state of another version is not used, whether that is older or newer."""
    store = MemoryStore()
    await saved(store, "old", version=2, clock=lambda: 1234)
    for version in (1, 3):
        with reported(caplog, "foreign version"):
            assert await state_in(store, version=version) is None
    async with checkpoint(store, "orders", version=3) as c:
        detail = "it has version 2, and this run version 3"
        assert c.report == CheckpointReport("orders", "foreign version", detail, 2, 1234.0)
    await saved(store, "new", version=3)
    entry = await store.get(KEY)
    assert entry is not None
    assert entry.value["version"] == 3


async def test_a_generator_that_is_left_early_saves_how_far_it_got() -> None:
    """Who stops asking for items has not had all of them: the next run goes on there."""
    store = MemoryStore()

    async def numbers() -> AsyncGenerator[int]:
        async with checkpoint(store, "orders", every=100) as c:
            for number in range(c.state or 0, 10):
                yield number
                await c.advance(number + 1)

    for stop in (5, 7):
        async with aclosing(numbers()) as some:
            given = []
            async for number in some:
                given.append(number)
                if number == stop:
                    break
    assert given == [5, 6, 7]


async def test_a_state_that_would_not_be_saved_cannot_be_set() -> None:
    """Who sets `state` instead of calling `advance` is told, and not left without what was saved."""
    async with checkpoint(MemoryStore(), "orders") as c:
        with pytest.raises(AttributeError, match="state"):
            c.state = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert c.state is None


async def test_a_clock_that_tells_no_time_makes_none_young() -> None:
    """Nobody knows the age then, so it is too old."""
    store = MemoryStore()
    await saved(store, "state")
    assert await state_in(store, max_age=60, clock=lambda: math.nan) is None


async def test_one_that_is_too_old_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """It is good for `max_age` seconds by the clock, to the second, and any time without it."""
    store, clock = MemoryStore(), Clock()
    await saved(store, "state", clock=clock)
    clock.advance(60)
    assert await state_in(store, max_age=60, clock=clock) == "state"
    clock.advance(1)
    with reported(caplog, "too old"):
        assert await state_in(store, max_age=60, clock=clock) is None
    assert await state_in(store, clock=clock) == "state"
    async with checkpoint(store, "orders", max_age=60, clock=clock) as c:
        detail = "it was saved 61 s ago, and `max_age` is 60 s"
        assert c.report == CheckpointReport("orders", "too old", detail, 1, 1000.0)


async def test_the_age_counts_from_the_last_save() -> None:
    """A long run that goes on saving keeps its checkpoint young."""
    store, clock = MemoryStore(), Clock()
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", max_age=60, clock=clock) as c:
            for number in range(3):
                await c.advance(number)
                clock.advance(50)
            assert c.saved_at == 1100.0
            raise Fault
    assert await state_in(store, max_age=60, clock=clock) == 2


async def test_one_from_the_future_is_too_old(caplog: pytest.LogCaptureFixture) -> None:
    """Clocks differ a little, and that is no harm. How old one is that was saved far ahead, nobody knows."""
    store, clock = MemoryStore(), Clock()
    await saved(store, "state", clock=clock)
    clock.advance(-60)
    assert await state_in(store, max_age=60, clock=clock) == "state"
    clock.advance(-1)
    with reported(caplog, "too old: it was saved 61 s ahead of this clock"):
        assert await state_in(store, max_age=60, clock=clock) is None


# Two at once


@pytest.mark.parametrize("resumed", [False, True])
async def test_two_runs_on_one_checkpoint_find_each_other_out(
    caplog: pytest.LogCaptureFixture, *, resumed: bool
) -> None:
    """The first to save goes on. The other one gets an error, and its end writes nothing."""
    store = MemoryStore()
    if resumed:
        await saved(store, "before")
    with pytest.raises(CheckpointConflictError) as caught:
        async with checkpoint(store, "orders") as late:
            await saved(store, "theirs")
            await late.advance("mine")
    assert str(caught.value) == (
        "checkpoint 'orders': somebody else has saved it since this run read it: "
        "let one run at a time work on it, as under a `lease`"
    )
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # noqa: S301 (its own)
    assert (await state_in(store), warnings_in(caplog), late.end_error) == ("theirs", [], None)


async def test_a_conflict_of_an_inner_checkpoint_is_a_failure_like_any_other() -> None:
    """The outer one is saved."""
    store = MemoryStore()
    with pytest.raises(CheckpointConflictError):
        async with checkpoint(store, "outer", every=10) as outer, checkpoint(store, "orders") as inner:
            await outer.advance(1)
            await saved(store, "theirs")
            await inner.advance(2)
    assert await state_in(store, "outer") == 1


async def test_a_conflict_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where the save at a failing end is the first to meet it, it is noted and logged, and nothing is overwritten."""
    store = MemoryStore()
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=10) as late:
            await late.advance("mine")
            await saved(store, "theirs")
            raise Fault
    assert await state_in(store) == "theirs"
    assert ["somebody else has saved it" in message for message in warnings_in(caplog)] == [True]


async def test_a_run_that_succeeds_does_not_clear_what_is_anothers() -> None:
    """It ends with an error, and the progress of the other stays."""
    store = MemoryStore()
    await saved(store, "before")
    with pytest.raises(ResourceCleanupError) as caught:
        async with checkpoint(store, "orders", every=10) as late:
            await saved(store, "theirs")
            await late.advance("mine")
    assert [type(error) for error in caught.value.exceptions] == [CheckpointConflictError]
    assert await state_in(store) == "theirs"


async def test_a_run_that_succeeds_after_another_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What was to be cleared is gone, as it should be; that somebody else did it is logged."""
    store = MemoryStore()
    await saved(store, "before")
    async with checkpoint(store, "orders"), checkpoint(store, "orders"):
        pass
    told = "checkpoint 'orders' was gone before it was cleared: somebody else has finished or deleted it"
    assert warnings_in(caplog) == [told]


async def test_who_was_beaten_may_begin_anew_when_the_other_has_finished() -> None:
    """A block that goes on after a conflict saves again as soon as nothing of another's stands, also at its end."""
    store = MemoryStore()
    with pytest.raises(Fault):
        async with checkpoint(store, "orders", every=2) as late:
            async with checkpoint(store, "orders") as first:
                await first.advance("theirs")
                await late.advance(1)
                with pytest.raises(CheckpointConflictError):
                    await late.advance(2)
            await late.advance(3)
            await late.advance(4)
            raise Fault
    assert await state_in(store) == 4


async def test_who_is_in_doubt_does_not_take_anothers_for_its_own() -> None:
    """A save that failed, and may have been done, is recognised by its mark and not by being there."""
    store = CuedStore()
    with pytest.raises(CheckpointConflictError):
        async with checkpoint(store, "orders") as late:
            store.cues["put"] = ["fail"]
            with pytest.raises(StoreError):
                await late.advance("mine")
            await saved(store, "theirs")
            await late.advance("mine")
    assert await state_in(store) == "theirs"


async def test_one_that_was_finished_by_another_is_gone() -> None:
    """A save over what somebody else has cleared is a conflict too."""
    store = MemoryStore()
    await saved(store, 1)
    with pytest.raises(CheckpointConflictError, match="somebody else has finished or deleted it"):
        async with checkpoint(store, "orders") as late:
            async with checkpoint(store, "orders"):
                pass
            await late.advance(2)
    assert await store.get(KEY) is None


# Killed and cancelled for real

PROGRAM = """
import sys, anyio
from rescope.workflow import SqliteStore, checkpoint

async def main(path, end):
    async with SqliteStore(path) as store, checkpoint(store, "orders") as c:
        print(c.state or 0, flush=True)
        for number in range(c.state or 0, end):
            await c.advance(number + 1)
            print(number + 1, flush=True)

anyio.run(main, sys.argv[1], int(sys.argv[2]), backend=sys.argv[3])
"""


def run_of(path: Path, end: int, backend: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(path), str(end), backend]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (the program above)


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_after_its_last_state(tmp_path: Path) -> None:
    """After a `kill -9` at any point the next run gets the last state whose saving was told, or the one just saved."""
    path, last = tmp_path / "store.db", 0
    for turn in range(5):
        with run_of(path, sys.maxsize, ("asyncio", "trio")[turn % 2]) as process:
            assert process.stdout is not None
            try:
                assert int(process.stdout.readline()) in {last, last + 1}
                for _ in range(random.randrange(30)):
                    process.stdout.readline()
            finally:
                process.kill()
            told = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        last = anyio.run(peek, path)
        assert not told or int(told[-1]) in {last - 1, last}
    with run_of(path, last + 3, "asyncio") as process:
        told = process.communicate(timeout=30)[0].split()
    assert [int(line) for line in told] == [last, last + 1, last + 2, last + 3]
    assert anyio.run(peek, path) is None


async def peek(path: Path) -> Any:
    async with SqliteStore(path) as store:
        return await state_in(store)


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
async def test_a_save_that_goes_on_in_a_thread_is_no_conflict(tmp_path: Path) -> None:
    """A `task.cancel()` cuts off the waiting for SQLite and not the write: the save at the end comes after that."""
    async with SqliteStore(tmp_path / "store.db") as inner:
        for turn in range(20):
            store = CuedStore(inner)

            async def work(store: Store, turn: int) -> None:
                async with checkpoint(store, "orders") as c:
                    for number in range(sys.maxsize):
                        await c.advance([number, turn])

            task = asyncio.ensure_future(work(store, turn))
            await store.put_begun.wait()
            for _ in range(turn):
                await anyio.lowlevel.checkpoint()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await state_in(inner))[1] == turn
