"""`RetryLedger`: what has failed, how often, and when it may be tried again."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rescope import ResourceCleanupError
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import MemoryStore, SqliteStore, Store, StoreError
from rescope.workflow._names import key_in, section
from rescope.workflow.retries import MAX_MESSAGE, Backoff, RetryEntry, RetryFailure, RetryLedger

START = 1_000_000.0


class Fault(Exception):
    """An error of our own."""


class Clock:
    """A clock that stands still unless it is turned."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Overtaken:
    """A store in which somebody else is quicker, as often as it is told to, just before each put or delete."""

    def __init__(self, others: Callable[[], Any], times: int) -> None:
        self.inner = MemoryStore()
        self.others = others
        self.times = times
        self.get, self.scan = self.inner.get, self.inner.scan

    async def _overtake(self) -> None:
        if self.times:
            self.times -= 1
            await self.others()

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        await self._overtake()
        return await self.inner.put(key, value, ttl=ttl, if_version=if_version)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        await self._overtake()
        return await self.inner.delete(key, if_version=if_version)


class Unreachable:
    """A store that can be read, and not written to."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.get, self.scan = self.inner.get, self.inner.scan

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        raise StoreError("no answer", may_retry=True)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        raise StoreError("no answer", may_retry=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ledger_on(clock: Clock, store: Store | None = None, name: str = "jobs", **options: Any) -> RetryLedger:
    options.setdefault("backoff", Backoff(first=10, factor=2, cap=60, jitter=0))
    return RetryLedger(MemoryStore() if store is None else store, name, clock=clock, **options)


async def all_of(entries: AsyncIterator[RetryEntry]) -> list[RetryEntry]:
    return [entry async for entry in entries]


# What is kept


async def test_a_key_that_never_failed_is_due(clock: Clock) -> None:
    """What the ledger does not know may be tried, and there is nothing to tell of it."""
    ledger = ledger_on(clock)
    assert await ledger.due("a")
    assert await ledger.get("a") is None


async def test_what_is_known_of_a_failure(clock: Clock) -> None:
    """An entry tells the attempts, the first and the last failure, and the next try; recording gives the same."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", Fault("disk full"))
    clock.now += 100
    given = await ledger.record_failure("a", ValueError("no number"))

    assert given == RetryEntry(
        key="a",
        attempts=2,
        first_failure=RetryFailure(START, "Fault", "disk full"),
        last_failure=RetryFailure(START + 100, "ValueError", "no number"),
        next_try=START + 100 + 20,
    )
    assert await ledger.get("a") == given
    assert (given.first_failure.message, given.last_failure.message) == ("disk full", "no number")
    assert (given.first_failure.error, given.last_failure.error) == ("Fault", "ValueError")
    assert given.first_failure < given.last_failure
    assert not given.given_up


async def test_a_failure_may_be_a_text(clock: Clock) -> None:
    """Where there is no exception, a text says what failed, and there is no type."""
    entry = await ledger_on(clock).record_failure("a", "exit code 3")
    assert (entry.last_failure.error, entry.last_failure.message) == (None, "exit code 3")


@pytest.mark.parametrize("make", [Fault, str])
async def test_a_long_message_is_cut(clock: Clock, make: Callable[[str], Any]) -> None:
    """Of a message that is too long its beginning is kept, and it can be seen that it was cut."""
    ledger = ledger_on(clock)
    fits = await ledger.record_failure("a", make("x" * MAX_MESSAGE))
    cut = await ledger.record_failure("a", make("x" * (MAX_MESSAGE + 1)))
    assert fits.last_failure.message == "x" * 1000
    assert cut.last_failure.message == "x" * 999 + "…"


async def test_a_message_may_hold_any_character(clock: Clock) -> None:
    """What a file's name or a server's answer put into a message comes back as it was."""
    text = "null \x00, half a pair \udc80, \N{SNOWMAN}"
    ledger = ledger_on(clock)
    await ledger.record_failure("a", Fault(text))
    entry = await ledger.get("a")
    assert entry is not None
    assert entry.last_failure.message == text


async def test_an_error_that_cannot_say_what_it_is(clock: Clock) -> None:
    """An error whose `__str__` fails is recorded by its type."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise Fault

    entry = await ledger_on(clock).record_failure("a", Mute())
    assert entry.last_failure.error is not None
    assert entry.last_failure.error.endswith("Mute")
    assert entry.last_failure.message == ""


async def test_nothing_but_type_and_message_is_stored(clock: Clock) -> None:
    """Neither the traceback nor what else an error carries gets into the store, and no `repr` shows the message."""
    store = MemoryStore()
    error = Fault("the message")
    error.connection = "hunter2"  # type: ignore[attr-defined]
    error.add_note("a note with hunter2")
    error.__cause__ = ValueError("hunter2")
    entry = await ledger_on(clock, store).record_failure("a", error)

    (stored,) = [entry async for entry in store.scan("")]
    assert stored.value == {
        "key": "a",
        "attempts": 1,
        "first": [START, "Fault", "the message"],
        "last": [START, "Fault", "the message"],
        "next": START + 10,
    }
    assert "the message" not in repr(entry)


async def test_entries_cannot_be_changed(clock: Clock) -> None:
    """What a ledger gives is frozen."""
    entry = await ledger_on(clock).record_failure("a", "no")
    with pytest.raises(FrozenInstanceError):
        entry.attempts = 0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        entry.last_failure.at = 0  # type: ignore[misc]
    assert entry.attempts == 1


# When it is due


async def test_a_key_is_due_when_its_time_has_come(clock: Clock) -> None:
    """After a failure a key has to wait for its pause, and no longer."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", "no")
    assert not await ledger.due("a")
    clock.now += 9.99
    assert not await ledger.due("a")
    clock.now += 0.01
    assert await ledger.due("a")


async def test_pauses_grow_up_to_the_cap(clock: Clock) -> None:
    """Each pause is as many times the one before as the factor says, until the cap."""
    ledger = ledger_on(clock, max_attempts=6)
    waits = [(await ledger.record_failure("a", "no")).next_try for _ in range(5)]
    assert waits == [START + 10, START + 20, START + 40, START + 60, START + 60]


async def test_a_key_that_failed_too_often_is_given_up(clock: Clock) -> None:
    """At the last attempt a key is given up: it is due no more, however long one waits, until it is cleared."""
    ledger = ledger_on(clock, max_attempts=2)
    first = await ledger.record_failure("a", "no")
    last = await ledger.record_failure("a", "no")
    assert (first.given_up, last.given_up) == (False, True)
    assert last.next_try is None

    clock.now += 1e9
    assert not await ledger.due("a")
    assert await ledger.clear("a")
    assert await ledger.due("a")


async def test_five_attempts_by_default(clock: Clock) -> None:
    """Without `max_attempts` the fifth failure is the last."""
    ledger = RetryLedger(MemoryStore(), "jobs", clock=clock)
    given_up = [(await ledger.record_failure("a", "no")).given_up for _ in range(5)]
    assert given_up == [False, False, False, False, True]
    assert ledger.max_attempts == 5


async def test_what_was_given_up_can_fail_again(clock: Clock) -> None:
    """Who tries a key by hand that was given up has its failure counted, too."""
    ledger = ledger_on(clock, max_attempts=1)
    await ledger.record_failure("a", "no")
    again = await ledger.record_failure("a", "not even so")
    assert (again.attempts, again.given_up, again.last_failure.message) == (2, True, "not even so")


async def test_another_run_may_allow_more_or_fewer_attempts(clock: Clock) -> None:
    """Who reads decides what is given up: more attempts bring a key back, at the time that it would have had."""
    store = MemoryStore()
    strict, patient = ledger_on(clock, store, max_attempts=2), ledger_on(clock, store, max_attempts=3)
    await strict.record_failure("a", "no")
    await strict.record_failure("a", "no")

    assert not await patient.due("a")
    back = await patient.get("a")
    assert back is not None
    assert (back.given_up, back.next_try) == (False, START + 20)
    clock.now += 20
    assert await patient.due("a")
    assert not await strict.due("a")


async def test_another_run_sees_what_was_recorded(clock: Clock, tmp_path: Path) -> None:
    """What has failed is known after the process has ended."""
    async with SqliteStore(tmp_path / "state.db") as store:
        recorded = await ledger_on(clock, store).record_failure("a", Fault("no"))
    async with SqliteStore(tmp_path / "state.db") as store:
        assert await ledger_on(clock, store).get("a") == recorded
        assert not await ledger_on(clock, store).due("a")


async def test_a_clock_that_is_set_back_a_little(clock: Clock) -> None:
    """Clocks of two machines differ: a failure that lies ahead by less than the pause is waited for."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", "no")
    clock.now -= 10
    assert not await ledger.due("a")


async def test_a_clock_that_is_set_back_far(clock: Clock) -> None:
    """A clock that was a day ahead, and is right again, holds no key up for a day."""
    ledger = ledger_on(clock)
    clock.now += 86_400
    await ledger.record_failure("a", "no")
    clock.now -= 86_400
    assert await ledger.due("a")
    again = await ledger.record_failure("a", "no")
    assert (again.attempts, again.next_try) == (2, START + 20)


# Backoff


@pytest.mark.parametrize("jitter", [0, 0.3, 0.5, 1])
def test_jitter_takes_a_part_of_the_pause(jitter: float) -> None:
    """A pause is between the part that is not left to chance and the whole, and reaches both ends."""
    drawn = [0.0, 0.5, 0.999999]
    pauses = [Backoff(first=8, factor=2, cap=100, jitter=jitter, random=lambda it=part: it)(3) for part in drawn]  # type: ignore[misc]
    assert pauses == [32 * (1 - jitter * part) for part in drawn]


def test_the_default_backoff() -> None:
    """By default it begins at a second, doubles up to an hour, and half of it is left to chance."""
    assert Backoff() == Backoff(first=1.0, factor=2.0, cap=3600.0, jitter=0.5)
    chance = random.Random(5)
    backoff = Backoff(random=chance.random)
    pauses = [backoff(attempts) for attempts in range(1, 30)]
    assert all(min(3600, 2**n) / 2 <= pause <= min(3600, 2**n) for n, pause in enumerate(pauses))
    assert pauses[:11] == sorted(pauses[:11])
    assert len(set(pauses)) == len(pauses)


@pytest.mark.parametrize("attempts", [1025, 10**6, pytest.param(10**300, id="1e300")])
@pytest.mark.parametrize("factor", [1, 1.5, 2, 10**6, 1e10])
def test_no_number_of_attempts_overflows(attempts: int, factor: float) -> None:
    """However often something failed, the pause is a number, and at most the cap."""
    pause = Backoff(first=2, factor=factor, cap=60, jitter=0)(attempts)
    assert pause == (2 if factor == 1 else 60)
    assert Backoff(first=0, factor=factor)(attempts) == 0


def test_full_jitter_of_two_is_not_the_same() -> None:
    """Two that failed together are not tried together again."""
    assert Backoff(jitter=1)(10) != Backoff(jitter=1)(10)


async def test_a_backoff_of_ones_own(clock: Clock) -> None:
    """Any function from attempts to seconds will do."""
    seen: list[int] = []

    def backoff(attempts: int) -> float:
        seen.append(attempts)
        return 7 * attempts

    ledger = ledger_on(clock, backoff=backoff)
    entries = [await ledger.record_failure("a", "no") for _ in range(2)]
    assert seen == [1, 2]
    assert [entry.next_try for entry in entries] == [START + 7, START + 14]


@pytest.mark.parametrize(
    ("gives", "error"),
    [("soon", TypeError), (True, TypeError), (-1, ValueError), (math.nan, ValueError), (math.inf, ValueError)],
)
async def test_a_backoff_that_gives_no_time(clock: Clock, gives: Any, error: type[Exception]) -> None:
    """What a function gives that can't be waited for is refused, and nothing is written."""

    def backoff(attempts: int) -> Any:
        return gives

    ledger = ledger_on(clock, backoff=backoff)
    with pytest.raises(error, match="what `backoff` gives must be"):
        await ledger.record_failure("a", "no")
    assert await ledger.get("a") is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"first": -1}, ValueError),
        ({"first": "1"}, TypeError),
        ({"first": math.nan}, ValueError),
        ({"factor": 0.5}, ValueError),
        ({"factor": None}, TypeError),
        ({"cap": math.inf}, ValueError),
        ({"cap": True}, TypeError),
        ({"jitter": 1.1}, ValueError),
        ({"jitter": -0.1}, ValueError),
    ],
)
def test_a_backoff_that_cannot_be(options: dict[str, Any], error: type[Exception]) -> None:
    """A time that is none, a pause that shrinks, or a jitter that is no part, is refused by its name."""
    with pytest.raises(error, match=f"`{next(iter(options))}` must be"):
        Backoff(**options)


# Keys and names


async def test_ledgers_whose_names_share_a_prefix(clock: Clock) -> None:
    """Ledgers of different names know nothing of each other, whatever their names hold."""
    store = MemoryStore()
    names = ["a", "a/", "a/b", "a/=b", "1:a", "é"]
    for name in names:
        await ledger_on(clock, store, name).record_failure("b/c", name)
    for name in names:
        (entry,) = await all_of(ledger_on(clock, store, name).list())
        assert (entry.key, entry.attempts, entry.last_failure.message) == ("b/c", 1, name)
    assert await ledger_on(clock, store, "a").prune(0) == 0
    clock.now += 1
    assert await ledger_on(clock, store, "a").prune(0) == 1
    assert await ledger_on(clock, store, "a/b").get("b/c") is not None


@pytest.mark.parametrize("key", ["a", pytest.param("/var/in/" + "x" * 4000, id="long"), "\udcff.csv", "=a", "~a"])
async def test_any_text_may_be_a_key(clock: Clock, key: str) -> None:
    """The paths of files are keys, also those that are no UTF-8, and come back as they were."""
    ledger = ledger_on(clock)
    assert (await ledger.record_failure(key, "no")).key == key
    assert [entry.key for entry in await all_of(ledger.list())] == [key]
    assert await ledger.clear(key)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", ValueError),
        ("two\nlines", ValueError),
        pytest.param("x" * 4097, ValueError, id="too long"),
        (7, TypeError),
        (b"a", TypeError),
        (Path("a"), TypeError),
    ],
)
async def test_what_is_no_key(clock: Clock, key: Any, error: type[Exception]) -> None:
    """Each method says what is wrong with a key, before anything is done."""
    ledger = ledger_on(clock)
    for call in (ledger.due, ledger.get, ledger.clear):
        with pytest.raises(error, match="a key must"):
            await call(key)
    with pytest.raises(error, match="a key must"):
        await ledger.record_failure(key, "no")
    with pytest.raises(error, match="a key must"):
        ledger.attempt(key)
    assert await all_of(ledger.list()) == []


@pytest.mark.parametrize(
    ("error", "named"), [(7, "a int"), (None, "a NoneType"), (Fault, "the class Fault"), (b"no", "a bytes")]
)
async def test_what_is_no_error(clock: Clock, error: Any, named: str) -> None:
    """What is neither an exception nor a text is refused, and nothing is written."""
    ledger = ledger_on(clock)
    with pytest.raises(TypeError, match=f"`error` must be an exception or a text, not {named}"):
        await ledger.record_failure("a", error)
    assert await ledger.get("a") is None


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"store": "state.db"}, TypeError, "`store` must be a store"),
        ({"name": ""}, ValueError, "a name must not be empty"),
        ({"name": None}, TypeError, "a name must be a string"),
        ({"max_attempts": 0}, ValueError, "`max_attempts` must be at least 1"),
        ({"max_attempts": True}, TypeError, "`max_attempts` must be a whole number, not a bool"),
        ({"max_attempts": 2.5}, TypeError, "`max_attempts` must be a whole number"),
        ({"backoff": 5}, TypeError, "not a int"),
        ({"backoff": Backoff}, TypeError, "not the class Backoff"),
    ],
)
def test_a_ledger_that_cannot_be(options: dict[str, Any], error: type[Exception], says: str) -> None:
    """What no ledger can be made of is refused at once, by its name."""
    given: dict[str, Any] = {"store": MemoryStore(), "name": "jobs", **options}
    with pytest.raises(error, match=says):
        RetryLedger(given.pop("store"), given.pop("name"), **given)


def test_a_ledger_tells_its_name() -> None:
    """In a debugger one sees which ledger it is."""
    ledger = RetryLedger(MemoryStore(), "jobs")
    assert (repr(ledger), ledger.name) == ("<RetryLedger 'jobs'>", "jobs")


# Clearing, listing, pruning


async def test_clear_tells_whether_there_was_something(clock: Clock) -> None:
    """A key that is cleared begins anew, and clearing it twice is no error."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", "no")
    await ledger.record_failure("a", "no")
    assert await ledger.clear("a")
    assert not await ledger.clear("a")
    assert (await ledger.record_failure("a", "again")).attempts == 1


async def test_all_that_failed_is_listed(clock: Clock) -> None:
    """The list has every key once, in order, and is not held up by who leaves it early."""
    ledger = ledger_on(clock)
    for number in range(1200):
        await ledger.record_failure(f"{number:04}", "no")
    assert [entry.key for entry in await all_of(ledger.list())] == [f"{number:04}" for number in range(1200)]
    async for entry in ledger.list():
        assert entry.key == "0000"
        break


async def test_prune_removes_what_failed_last_long_ago(clock: Clock) -> None:
    """Only the last failure counts, also of what was given up; what is as old as that to the second stays."""
    ledger = ledger_on(clock, max_attempts=2)
    for key in ("old", "failed again", "given up"):
        await ledger.record_failure(key, "no")
    await ledger.record_failure("given up", "no")
    clock.now += 60
    for key in ("young", "failed again"):
        await ledger.record_failure(key, "no")

    assert await ledger.prune(60) == 0
    assert await ledger.prune(59) == 2
    assert [entry.key for entry in await all_of(ledger.list())] == ["failed again", "young"]
    clock.now += 1
    assert await ledger.prune(0) == 2


async def test_prune_leaves_what_fails_again_meanwhile(clock: Clock) -> None:
    """A failure that comes between the look and the removal is not lost with the old ones."""

    async def fails_again() -> None:
        await ledger_on(clock, store.inner).record_failure("a", "again")

    store = Overtaken(fails_again, 0)
    ledger = ledger_on(clock, store)
    await ledger.record_failure("a", "no")
    clock.now += 60
    store.times = 1
    assert await ledger.prune(10) == 0
    entry = await ledger.get("a")
    assert entry is not None
    assert entry.attempts == 2


@pytest.mark.parametrize(
    ("older_than", "error"), [(-1, ValueError), ("1", TypeError), (math.nan, ValueError), (None, TypeError)]
)
async def test_prune_needs_a_time(clock: Clock, older_than: Any, error: type[Exception]) -> None:
    """What is no number of seconds is refused, and nothing is removed."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", "no")
    clock.now += 60
    with pytest.raises(error, match="`older_than` must be"):
        await ledger.prune(older_than)
    assert await ledger.get("a") is not None


# Several at once


async def test_a_failure_that_is_overtaken_comes_after() -> None:
    """Who is overtaken, however often, reads again and counts on."""

    async def fails_too() -> None:
        await RetryLedger(store.inner, "jobs").record_failure("a", "theirs")

    store = Overtaken(fails_too, 8)
    entry = await RetryLedger(store, "jobs").record_failure("a", "ours")
    assert (entry.attempts, entry.first_failure.message, entry.last_failure.message) == (9, "theirs", "ours")


async def test_a_failure_after_a_clear_in_between_is_the_first() -> None:
    """Where the key is cleared between the look and the writing, the failure counts from one."""

    async def cleared() -> None:
        await RetryLedger(store.inner, "jobs").clear("a")

    store = Overtaken(cleared, 0)
    ledger = RetryLedger(store, "jobs")
    await ledger.record_failure("a", "before")
    store.times = 1
    entry = await ledger.record_failure("a", "after")
    assert (entry.attempts, entry.first_failure.message) == (1, "after")


async def test_tasks_that_record_at_once_lose_nothing(clock: Clock) -> None:
    """Many failures of one key at the same time are all counted."""
    ledger = ledger_on(clock)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ledger.record_failure, "a", f"failure {number}")
    entry = await ledger.get("a")
    assert entry is not None
    assert entry.attempts == 20


RECORDER = """
import anyio, sys
from rescope.workflow import SqliteStore
from rescope.workflow.retries import RetryLedger

async def main():
    async with SqliteStore(sys.argv[1]) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(25):
            await RetryLedger(store, "jobs").record_failure("a", f"failure {number}")

anyio.run(main)
"""


def test_processes_that_record_at_once_lose_nothing(tmp_path: Path) -> None:
    """Failures of one key that several processes record at the same time are all counted."""
    path = tmp_path / "state.db"
    command = [sys.executable, "-c", RECORDER, str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(3)
    ]
    ready = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)

    async def attempts() -> int:
        async with SqliteStore(path) as store:
            entry = await RetryLedger(store, "jobs").get("a")
            return 0 if entry is None else entry.attempts

    assert ready == ["ready\n"] * 3
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert anyio.run(attempts) == 75


def attempts_in(store: MemoryStore, key: str = "a") -> int:
    """Look without waiting, as a test under cancellation must."""
    held = store._held.get(key_in(section("retries", "jobs"), key))
    return 0 if held is None else int(held.entry(key).value["attempts"])


async def test_a_cancelled_recording_is_whole_or_not_there() -> None:
    """Wherever recording is cancelled, the key has failed as often as before, or once more."""
    store = MemoryStore()

    async def program(_: Ledger) -> None:
        before = attempts_in(store)
        try:
            await RetryLedger(store, "jobs").record_failure("a", "no")
        finally:
            assert attempts_in(store) in {before, before + 1}

    report = await cancel_everywhere(program)
    assert report.total > 0
    assert attempts_in(store) > 0


# What goes wrong


@pytest.mark.parametrize(
    "value",
    [
        None,
        "no",
        [],
        {},
        {"key": "a", "attempts": "1"},
        {"key": "a", "attempts": 1, "first": [1, None, "x"], "last": [1, None], "next": 3},
        {"key": "a", "attempts": 1, "first": [1, None, "x"], "last": ["1", None, "x"], "next": 3},
        {"key": "a", "attempts": 1, "first": [1, None, "x"], "last": [1, None, "x"], "next": None},
    ],
)
async def test_a_corrupt_record_is_told_and_taken_for_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """A record that no ledger has written is told by a WARNING, is in nobody's way, and can be written over."""
    store = MemoryStore()
    ledger = ledger_on(clock, store)
    where = key_in(section("retries", "jobs"), "a")
    await store.put(where, value)
    await ledger.record_failure("b", "no")
    clock.now += 60

    assert await ledger.due("a")
    assert await ledger.get("a") is None
    assert [entry.key for entry in await all_of(ledger.list())] == ["b"]
    assert await ledger.prune(10) == 1
    assert await store.get(where) is not None
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 4
    assert set(told) == {
        f"retry ledger 'jobs': what stands under {where!r} is no record of its own, and is taken for nothing"
    }
    assert (await ledger.record_failure("a", "no")).attempts == 1
    assert await ledger.get("a") is not None


async def test_a_store_that_fails_is_told(clock: Clock) -> None:
    """Where the store fails, its error comes out."""
    ledger = ledger_on(clock, Unreachable())
    with pytest.raises(StoreError) as caught:
        await ledger.record_failure("a", "no")
    with pytest.raises(StoreError):
        await ledger.clear("a")
    assert caught.value.may_retry


# `attempt`


async def test_an_attempt_that_fails_is_recorded(clock: Clock) -> None:
    """What a block raises is recorded, and comes out as it is."""
    ledger = ledger_on(clock)
    error = Fault("no")
    with pytest.raises(Fault) as caught:
        async with ledger.attempt("a"):
            raise error
    entry = await ledger.get("a")
    assert caught.value is error
    assert entry is not None
    assert (entry.attempts, entry.last_failure) == (1, RetryFailure(START, "Fault", "no"))
    assert entry.last_failure.message == "no"


async def test_an_attempt_that_succeeds_clears_the_key(clock: Clock) -> None:
    """Success forgets the failures before."""
    ledger = ledger_on(clock)
    await ledger.record_failure("a", "no")
    async with ledger.attempt("a"):
        assert await ledger.get("a") is not None
    assert await ledger.get("a") is None


async def test_a_cancelled_attempt_is_no_failure(clock: Clock) -> None:
    """A block that is cancelled has neither failed nor succeeded."""
    ledger = ledger_on(clock)
    before = await ledger.record_failure("a", "no")
    with anyio.CancelScope() as cut:
        async with ledger.attempt("a"):
            cut.cancel()
            await anyio.sleep_forever()
    assert cut.cancelled_caught
    assert await ledger.get("a") == before


async def test_an_interrupted_attempt_is_no_failure(clock: Clock) -> None:
    """`KeyboardInterrupt` says nothing of the work."""
    ledger = ledger_on(clock)
    with pytest.raises(KeyboardInterrupt):
        async with ledger.attempt("a"):
            raise KeyboardInterrupt
    assert await ledger.get("a") is None


async def test_a_failed_attempt_is_recorded_under_cancellation(clock: Clock) -> None:
    """A block that fails while it is cancelled has failed, and the cancellation does not keep that from being told."""
    ledger = ledger_on(clock)
    with anyio.CancelScope() as cut, pytest.raises(Fault):
        async with ledger.attempt("a"):
            cut.cancel()
            raise Fault("no")
    entry = await ledger.get("a")
    assert entry is not None
    assert entry.attempts == 1


async def test_an_attempt_that_cannot_be_recorded(clock: Clock) -> None:
    """Where the store fails, that is raised from what the block raised, and neither is lost."""
    error = Fault("no")
    with pytest.raises(ResourceCleanupError) as caught:
        async with ledger_on(clock, Unreachable()).attempt("a"):
            raise error
    assert caught.value.__cause__ is error
    assert [type(inner) for inner in caught.value.errors] == [StoreError]


async def test_attempts_are_settled_at_every_point_of_cancellation() -> None:
    """Wherever a failing attempt is cancelled, its failure is recorded if it came to it."""
    store = MemoryStore()

    async def program(ledger: Ledger) -> None:
        retries = RetryLedger(store, "jobs")
        before = attempts_in(store)
        failed = False
        try:
            async with retries.attempt("a"):
                await anyio.lowlevel.checkpoint()
                failed = True
                ledger.opened("failure")
                raise Fault("no")
        finally:
            if failed and attempts_in(store) == before + 1:
                ledger.closed("failure")

    report = await cancel_everywhere(program, raises=Fault)
    assert report.total > 0
