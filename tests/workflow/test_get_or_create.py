"""`get_or_create`: one value for all who ask, made once, whatever becomes of the one who makes it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import (
    Entry,
    LeaseHeldError,
    LeaseLostError,
    MemoryStore,
    SqliteStore,
    Store,
    StoreError,
    get_or_create,
    lease,
    shared,
)
from rescope.workflow.shared import _turns
from workflow.broken_stores import Clock

KEY = "shared/=day"
LEASE = "lease/shared/=day"
LONG = 60.0


class Fault(Exception):
    """An error of our own."""


class Spied:
    """A store that notes what is asked of it, and lets something else happen before a put of the value."""

    def __init__(self, inner: Store | None = None) -> None:
        self.inner: Store = MemoryStore() if inner is None else inner
        self.calls: list[tuple[str, str]] = []
        self.before_value: list[Callable[[], Awaitable[object]]] = []
        self.after_value: list[Callable[[], Awaitable[object]]] = []

    async def get(self, key: str) -> Entry | None:
        self.calls.append(("get", key))
        return await self.inner.get(key)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        self.calls.append(("put", key))
        if key == KEY and self.before_value:
            await self.before_value.pop(0)()
        version = await self.inner.put(key, value, ttl=ttl, if_version=if_version)
        if key == KEY and self.after_value:
            await self.after_value.pop(0)()
        return version

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        self.calls.append(("delete", key))
        return await self.inner.delete(key, if_version=if_version)

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self.inner.scan(prefix)


class Factory:
    """Makes 1, 2, 3, …; it can be held up, told to fail, and asked how often it was called."""

    def __init__(self, *cues: Any) -> None:
        self.cues = list(cues)
        self.calls = 0
        self.begun = anyio.Event()
        self.go_on = anyio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        made = self.calls
        self.begun.set()
        cue = self.cues.pop(0) if self.cues else None
        if cue == "hold":
            await self.go_on.wait()
        elif cue is not None:
            raise cue
        await anyio.lowlevel.checkpoint()
        return made


# What is asked for


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"store": MemoryStore}, TypeError, "`store` must be a store, as `MemoryStore()`, not the class MemoryStore"),
        ({"key": None}, TypeError, "a key must be a string, not a NoneType"),
        ({"key": ""}, ValueError, "a key must not be empty"),
        ({"key": "a\nb"}, ValueError, "a key must not hold control characters"),
        ({"key": "x" * 5000}, ValueError, "a key must be at most 4096 bytes in UTF-8, not 5000"),
        ({"factory": "id"}, TypeError, "`factory` must be callable, not a str"),
        ({"ttl": 0}, ValueError, "`ttl` must be more than 0"),
        ({"ttl": -1}, ValueError, "`ttl` must be more than 0"),
        ({"ttl": "60"}, TypeError, "`ttl` must be a number of seconds, or None, not a str"),
        ({"lease_ttl": 0}, ValueError, "`lease_ttl` must be more than 0"),
        ({"lease_ttl": True}, TypeError, "`lease_ttl` must be a number of seconds"),
        ({"lease_ttl": None}, TypeError, "`lease_ttl` must be a number of seconds: it is how long the others wait"),
        ({"clock": 1.5}, TypeError, "`clock` must be callable, not a float"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_done(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The store is not even asked, and the message tells the mend."""
    store = Spied()
    given: dict[str, Any] = {"store": store, "key": "day", "factory": Factory(), "ttl": LONG} | change
    with pytest.raises(error, match=re.escape(message)):
        await get_or_create(given.pop("store"), given.pop("key"), given.pop("factory"), **given)
    assert store.calls == []


async def test_a_coroutine_is_no_factory() -> None:
    """The usual slip is told by name, and leaves no warning of a coroutine that was never awaited."""
    with pytest.raises(TypeError, match=r"`factory` got the coroutine Factory.__call__\(\): pass the function itself"):
        await get_or_create(MemoryStore(), "day", Factory()(), ttl=LONG)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan")])
async def test_what_is_not_json_can_not_be_shared(value: Any) -> None:
    """The error names the key, nothing is written, and the next one may try."""
    store = MemoryStore()
    with pytest.raises((TypeError, ValueError), match="the value for 'day' is not JSON"):
        await get_or_create(store, "day", lambda: value, ttl=LONG)
    assert [entry async for entry in store.scan("")] == []


# One value


async def test_it_is_made_once_and_shared() -> None:
    """Who comes later gets what is there, with a single get."""
    store, factory = Spied(), Factory()
    assert await get_or_create(store, "day", factory, ttl=LONG) == 1
    store.calls.clear()
    assert await get_or_create(store, "day", factory, ttl=LONG) == 1
    assert (factory.calls, store.calls) == (1, [("get", KEY)])


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
async def test_what_is_nothing_is_shared_too(value: Any) -> None:
    """`None` and all that is false are values like any other."""
    store, calls = MemoryStore(), []

    def factory() -> Any:
        calls.append(1)
        return value

    assert [await get_or_create(store, "day", factory, ttl=LONG) for _ in range(2)] == [value, value]
    assert calls == [1]


async def test_all_get_it_as_json_has_it() -> None:
    """Also the one who made it, so that nobody relies on what the others don't get; each has a copy of their own."""
    store = MemoryStore()
    values: list[Any] = [await get_or_create(store, "day", lambda: {1: (2, 3)}, ttl=LONG) for _ in range(2)]
    assert values == [{"1": [2, 3]}] * 2
    assert values[0] is not values[1]


async def test_a_factory_may_be_sync_or_async_or_give_what_can_be_awaited() -> None:
    """All of them make a value."""
    store = MemoryStore()

    def awaitable(value: int) -> Awaitable[int]:
        class Awaits:
            def __await__(self) -> Generator[Any, Any, int]:
                yield from anyio.lowlevel.checkpoint().__await__()
                return value

        return Awaits()

    factory = Factory()
    assert await get_or_create(store, "sync", lambda: "made", ttl=LONG) == "made"
    assert await get_or_create(store, "async", factory.__call__, ttl=LONG) == 1
    assert await get_or_create(store, "lambda", lambda: awaitable(2), ttl=LONG) == 2


async def test_it_expires_by_the_clock_of_the_store() -> None:
    """The ttl counts from when it was written; after that it is made anew."""
    clock = Clock()
    store, factory = Spied(MemoryStore(clock=clock)), Factory()

    async def pass_time() -> None:
        clock.advance(5)

    store.before_value.append(pass_time)
    assert await get_or_create(store, "day", factory, ttl=60) == 1
    clock.advance(59.5)
    assert await get_or_create(store, "day", factory, ttl=60) == 1
    clock.advance(0.5)
    assert await get_or_create(store, "day", factory, ttl=60) == 2


async def test_without_a_ttl_it_stays() -> None:
    """`None` is for ever, as in a store."""
    clock = Clock()
    store, factory = MemoryStore(clock=clock), Factory()
    await get_or_create(store, "day", factory, ttl=None)
    clock.advance(1e10)
    assert await get_or_create(store, "day", factory, ttl=None) == 1


async def test_keys_do_not_mix() -> None:
    """Each key has a value of its own, however long it is and whatever it holds."""
    store = MemoryStore()
    keys = [
        "a",
        "a/b",
        "=a",
        "x" * 498,
        "x" * 499,
        "x" * 504,
        "x" * 505,
        "x" * 1000,
        "x" * 1001,
        "caf\udce9.csv",
    ]
    made = [await get_or_create(store, key, lambda key=key: key, ttl=LONG) for key in keys]  # type: ignore[misc]
    again: list[Any] = [await get_or_create(store, key, Factory(), ttl=LONG) for key in keys]
    assert made == keys
    assert again == keys


async def test_a_lease_of_the_same_name_is_not_in_the_way() -> None:
    """Who holds a lease of one's own may ask for the value of that name."""
    store = MemoryStore()
    async with lease(store, "day", ttl=LONG):
        assert await get_or_create(store, "day", Factory(), ttl=LONG) == 1


@pytest.mark.parametrize("value", ["something else", {"key": "day"}])
async def test_what_something_else_wrote_is_told(value: Any) -> None:
    """It is neither given nor overwritten."""
    store = MemoryStore()
    await store.put(KEY, value)
    with pytest.raises(StoreError, match="was not written by `get_or_create`: delete it"):
        await get_or_create(store, "day", Factory(), ttl=LONG)


# Many who ask


async def test_many_tasks_ask_at_once() -> None:
    """One of them calls the factory, and each of the others asks the store twice."""
    store, factory, values = Spied(), Factory("hold"), []

    async def ask() -> None:
        values.append(await get_or_create(store, "day", factory, ttl=LONG))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(ask)
        await factory.begun.wait()
        await anyio.wait_all_tasks_blocked()
        factory.go_on.set()
    assert (values, factory.calls) == ([1] * 100, 1)
    assert len(store.calls) == 2 * 100 + 4
    assert _turns().get() == {}


async def test_different_values_are_made_at_the_same_time() -> None:
    """Neither another key nor another store has to wait."""
    stores = [MemoryStore(), MemoryStore()]
    factories = [Factory("hold") for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for number, factory in enumerate(factories):
            key = f"key {number % 2}"
            tasks.start_soon(partial(get_or_create, stores[number // 2], key, factory, ttl=LONG))
        for factory in factories:
            await factory.begun.wait()
        for factory in factories:
            factory.go_on.set()
    assert [factory.calls for factory in factories] == [1] * 4


async def test_who_waits_sees_the_value_of_another_process() -> None:
    """Who was refused the lease asks again, and finds the value as soon as it is there."""
    clock = count().__next__  # so that a lease is asked for once
    values: list[int] = []
    here, there = Factory(), Factory("hold")
    waiting = Spied()

    async def ask() -> None:
        values.append(await get_or_create(waiting, "day", here, ttl=LONG, clock=clock))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(get_or_create, waiting.inner, "day", there, ttl=LONG))
        await there.begun.wait()
        tasks.start_soon(ask)
        with anyio.fail_after(20):
            while waiting.calls.count(("get", KEY)) < 5:  # noqa: ASYNC110 (a condition, and nobody tells of it)
                await anyio.sleep(0.001)
        there.go_on.set()
    assert (values, here.calls, there.calls) == ([1], 0, 1)


async def test_where_the_factory_raises_the_next_one_tries() -> None:
    """Who called it gets the exception, and the others go on, one at a time."""
    store, factory = MemoryStore(), Factory(Fault("first"), Fault("second"))
    outcomes: list[Any] = []

    async def ask() -> None:
        try:
            outcomes.append(await get_or_create(store, "day", factory, ttl=LONG))
        except Fault as exc:
            outcomes.append(str(exc))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert outcomes == ["first", "second", 3, 3, 3]
    assert await store.get(LEASE) is None


async def test_who_got_an_error_may_ask_again() -> None:
    """Also while others wait, and are at it by then."""
    store, factory = MemoryStore(), Factory(Fault("first"), "hold")
    values: list[int] = []

    async def ask() -> None:
        values.append(await get_or_create(store, "day", factory, ttl=LONG))

    async def ask_again() -> None:
        try:
            await ask()
        except Fault:
            await ask()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_again)
        tasks.start_soon(ask_again)
        await factory.begun.wait()
        await anyio.wait_all_tasks_blocked()
        factory.go_on.set()
    assert (values, factory.calls) == ([2, 2], 2)


async def test_where_the_factory_is_cancelled_the_next_one_tries() -> None:
    """The lease is released at once, so the next one need not wait for it to expire."""
    store, factory = MemoryStore(), Factory("hold", "hold")
    values: list[int] = []

    async def ask() -> None:
        values.append(await get_or_create(store, "day", factory, ttl=LONG))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as cancel_scope:
            async with anyio.create_task_group() as first:
                first.start_soon(ask)
                await factory.begun.wait()
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                factory.begun = anyio.Event()
                cancel_scope.cancel()
        await factory.begun.wait()
        factory.go_on.set()
    assert values == [2]


async def test_nothing_is_left_wherever_it_is_cancelled() -> None:
    """No lease stays held and no turn taken, and what stands in the store is whole."""

    async def program(ledger: Ledger) -> None:
        store = MemoryStore()
        ledger.opened("asking")
        try:
            await get_or_create(store, "day", Factory(), ttl=LONG)
        finally:
            if KEY in store._held:
                assert store._held[KEY].text == '{"key":"day","value":1}'
            if LEASE not in store._held and not _turns().get({}):
                ledger.closed("asking")

    report = await cancel_everywhere(program)
    assert report.total > 0


async def in_this_task(ask: Callable[[], Awaitable[Any]]) -> Any:
    return await ask()


async def in_a_task_of_its_own(ask: Callable[[], Awaitable[Any]]) -> Any:
    answers: list[Any] = []

    async def run() -> None:
        with pytest.raises(RuntimeError) as caught:
            await ask()
        answers.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
    raise answers[0]


async def from_a_thread(ask: Callable[[], Awaitable[Any]]) -> Any:
    return await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(in_this_task, ask))


@pytest.mark.parametrize("run", [in_this_task, in_a_task_of_its_own, from_a_thread])
async def test_a_factory_that_asks_for_its_own_value_is_told(run: Callable[..., Awaitable[Any]]) -> None:
    """It would wait for itself, in whatever task or thread it asks, also by way of another value, for which it may."""
    store = MemoryStore()

    async def ask(key: str, *others: str) -> Any:
        return await get_or_create(store, key, lambda: run(lambda: ask(*others)), ttl=LONG)

    for keys in ("aa", "aba"):
        with pytest.raises(RuntimeError, match="the factory for 'a' asks for 'a' itself, and would wait for ever"):
            await ask(*keys)


async def test_a_factory_may_ask_another_store_for_the_same_key() -> None:
    """So a value can be kept near, and be made from the one that is far."""
    near, far = MemoryStore(), MemoryStore()

    async def ask_far() -> int:
        return await get_or_create(far, "day", Factory(), ttl=LONG)

    assert await get_or_create(near, "day", ask_far, ttl=LONG) == 1


async def test_what_a_factory_has_started_may_ask_later() -> None:
    """Nothing waits for itself any more when the factory has ended."""
    store, made, asked = MemoryStore(), anyio.Event(), anyio.Event()
    answers: list[int] = []

    async def ask_later() -> None:
        await made.wait()
        answers.append(await get_or_create(store, "day", Factory(), ttl=LONG))
        asked.set()

    async with anyio.create_task_group() as tasks:

        async def factory() -> int:
            tasks.start_soon(ask_later)
            return 7

        await get_or_create(store, "day", factory, ttl=LONG)
        await store.delete(KEY)
        made.set()
        await asked.wait()
    assert (answers, shared._MAKING.get()) == ([1], ())


@pytest.mark.parametrize("error", [LeaseHeldError("tape", "Ann", None), LeaseLostError("tape", 1, "gone")])
async def test_a_lease_of_the_factorys_own_is_its_own_business(error: Exception) -> None:
    """What the factory fails with comes out, also where it looks like what is seen to here."""
    with pytest.raises(type(error)) as caught:
        await get_or_create(MemoryStore(), "day", Factory(error), ttl=LONG)
    assert caught.value is error


# When the lease is lost


class Lost:
    """A lease that is lost while the value is made: what makes it notices only when it is told to look."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Spied(MemoryStore(clock=self.clock))

    async def lose(self) -> None:
        """Let the lease run out, by the clock of the store."""
        await self.store.inner.delete(LEASE)

    async def noticed(self) -> None:
        """Wait for the renewal that notices it."""
        await anyio.sleep_forever()

    async def ask(self, factory: Callable[[], Any], lease_ttl: float = 0.06) -> Any:
        return await get_or_create(self.store, "day", factory, ttl=LONG, lease_ttl=lease_ttl)


async def test_a_factory_that_lost_its_lease_gets_the_value_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """It is cancelled, and what the other one wrote is given; the loss is logged."""
    lost = Lost()

    async def factory() -> str:
        await lost.lose()
        await lost.store.inner.put(KEY, {"key": "day", "value": "theirs"})
        await lost.noticed()
        return "mine"

    assert await lost.ask(factory) == "theirs"
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith("while the value for 'day' was made: lease 'shared/=day' (token ")


async def test_a_factory_that_lost_its_lease_to_nobody_is_called_again() -> None:
    """Where nobody else has made a value, it is made anew."""
    lost, calls = Lost(), []

    async def factory() -> int:
        calls.append(1)
        if len(calls) == 1:
            await lost.lose()
            await lost.noticed()
        return len(calls)

    assert await lost.ask(factory) == 2


async def test_what_was_made_is_offered_although_the_lease_was_lost() -> None:
    """Where the loss is noticed while the value is written, the work isn't thrown away: the first one stands."""
    lost, factory = Lost(), Factory()

    async def lose() -> None:
        await lost.lose()
        await lost.noticed()

    lost.store.before_value.append(lose)
    assert await lost.ask(factory) == 1
    lost.store.calls.clear()
    assert (await lost.ask(factory), factory.calls) == (1, 1)


async def test_a_factory_that_fails_because_it_lost_its_lease_is_told() -> None:
    """Nothing that a factory raises is swallowed: it is the cause of the loss that comes out."""
    lost = Lost()

    async def factory() -> None:
        await lost.lose()
        try:
            await lost.noticed()
        finally:
            raise Fault

    with pytest.raises(LeaseLostError) as caught:
        await lost.ask(factory)
    assert isinstance(caught.value.__cause__, Fault)


async def test_what_was_written_first_is_what_all_get() -> None:
    """Somebody else's value that comes in between is not overwritten, and is given to the one who made another."""
    store = Spied()
    store.before_value.append(partial(store.inner.put, KEY, {"key": "day", "value": "theirs"}))
    assert await get_or_create(store, "day", lambda: "mine", ttl=LONG) == "theirs"
    assert await get_or_create(store, "day", lambda: "another", ttl=LONG) == "theirs"


async def test_a_value_that_comes_and_goes_in_between_is_no_matter() -> None:
    """Where the other one's value has gone by the time it is looked for, this one's is written."""

    class Fleeting(Spied):
        async def get(self, key: str) -> Entry | None:
            if self.calls[-1:] == [("put", KEY)]:
                await self.inner.delete(KEY)
            return await super().get(key)

    store = Fleeting()
    store.before_value.append(partial(store.inner.put, KEY, {"key": "day", "value": "theirs"}))
    assert await get_or_create(store, "day", lambda: "mine", ttl=LONG) == "mine"


# When the store fails


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between the tries to write."""
    monkeypatch.setattr(shared, "_PAUSES", (0, 0, 0))


def failing(*, may_retry: bool) -> Callable[[], Awaitable[object]]:
    async def fail() -> object:
        raise StoreError("cut", may_retry=may_retry)

    return fail


@pytest.mark.usefixtures("hurried")
async def test_what_was_made_is_written_stubbornly() -> None:
    """A store that fails for a moment does not cost the work of the factory."""
    store, factory = Spied(), Factory()
    store.before_value += [failing(may_retry=True), failing(may_retry=False)]
    assert await get_or_create(store, "day", factory, ttl=LONG) == 1
    assert factory.calls == 1


@pytest.mark.usefixtures("hurried")
async def test_a_write_whose_answer_got_lost_is_found_again() -> None:
    """The next try meets what the one before has written, and gives it."""
    store, factory = Spied(), Factory()
    store.after_value.append(failing(may_retry=False))
    assert await get_or_create(store, "day", factory, ttl=LONG) == 1
    assert [call for call in store.calls if call[1] == KEY][-2:] == [("put", KEY), ("get", KEY)]


@pytest.mark.usefixtures("hurried")
async def test_a_store_that_goes_on_failing_is_told() -> None:
    """After a few tries its error comes out, and the lease is released."""
    store, factory = Spied(), Factory()
    store.before_value += [failing(may_retry=True)] * 4
    with pytest.raises(StoreError, match="cut"):
        await get_or_create(store, "day", factory, ttl=LONG)
    assert store.calls.count(("put", KEY)) == 4
    assert await store.get(LEASE) is None


# Several processes

WORKER = """
import os, sys, anyio
from rescope.workflow import SqliteStore, get_or_create

def note(text):
    with open(sys.argv[2], "a") as journal:
        journal.write(text + "\\n")

def notes(text):
    with open(sys.argv[2]) as journal:
        return journal.read().splitlines().count(text)

async def factory():
    note("made")
    print("making", flush=True)
    with anyio.fail_after(30):
        while notes("begun") < int(sys.argv[3]):
            await anyio.sleep(0.01)
    return os.getpid()

async def ask(store):
    print(await get_or_create(store, "day", factory, ttl=60, lease_ttl=0.6), flush=True)

async def main():
    async with SqliteStore(sys.argv[1]) as store, anyio.create_task_group() as tasks:
        note("begun")
        for _ in range(int(sys.argv[4])):
            tasks.start_soon(ask, store)

anyio.run(main, backend=sys.argv[5])
"""


class Workers:
    """Processes that ask for one value, each with some tasks. The factory goes on when so many have begun."""

    def __init__(self, folder: Path, begun: int) -> None:
        self.path = folder / "store.db"
        self.journal = folder / "journal"
        self.begun = begun

    @contextmanager
    def one(self, tasks: int = 1, backend: str = "asyncio") -> Generator[subprocess.Popen[str]]:
        given = (self.path, self.journal, self.begun, tasks, backend)
        command = [sys.executable, "-c", WORKER, *map(str, given)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (as above)
            try:
                yield process
            finally:
                process.kill()

    def made(self) -> int:
        return self.journal.read_text().splitlines().count("made")

    async def ask(self) -> Any:
        async with SqliteStore(self.path) as store:
            with anyio.fail_after(30):
                return await get_or_create(store, "day", lambda: "theirs", ttl=LONG, lease_ttl=0.6)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.long
def test_eight_processes_make_it_once(tmp_path: Path) -> None:
    """The factory runs in one of them, while all of them ask; all their tasks get what it made."""
    workers = Workers(tmp_path, begun=8)
    with ExitStack() as stack:
        running = [stack.enter_context(workers.one(5, ("asyncio", "trio")[number % 2])) for number in range(8)]
        told = [process.communicate(timeout=60)[0].split() for process in running]
    values = [line for lines in told for line in lines if line != "making"]
    assert workers.made() == 1
    assert len(values) == 40
    assert len(set(values)) == 1


def test_one_that_is_killed_while_it_makes_it_frees_the_others(tmp_path: Path) -> None:
    """After a `kill -9` in the factory the next one makes it, when the lease has run out."""
    workers = Workers(tmp_path, begun=100)
    with workers.one() as process:
        assert line_of(process) == "making"
        process.kill()
        assert anyio.run(workers.ask) == "theirs"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_that_was_stopped_gets_the_value_of_the_others(tmp_path: Path, backend: str) -> None:
    """A process that was stopped past its lease wakes up, gives what was made meanwhile, and overwrites nothing."""
    pytest.importorskip(backend)
    workers = Workers(tmp_path, begun=2)
    with workers.one(backend=backend) as process:
        assert line_of(process) == "making"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            assert anyio.run(workers.ask) == "theirs"
            with workers.journal.open("a") as journal:
                journal.write("begun\n")  # so the factory ends as soon as it wakes up
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=30)[0].split() == ["theirs"]
    assert anyio.run(workers.ask) == "theirs"


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
async def test_a_plain_task_may_be_cancelled_while_it_waits_for_its_turn() -> None:
    """A `task.cancel()` of asyncio ends the waiting, and the others get on."""
    store, factory = MemoryStore(), Factory("hold")
    tasks = [asyncio.ensure_future(get_or_create(store, "day", factory, ttl=LONG)) for _ in range(3)]
    await factory.begun.wait()
    await anyio.wait_all_tasks_blocked()
    tasks[1].cancel()
    factory.go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, asyncio.CancelledError, int]
    assert _turns().get() == {}
