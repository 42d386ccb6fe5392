"""`KeyedPool`: one live resource per key, shared, closed when it is idle, replaced when it is broken."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import subprocess
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import Err, Resource, ResourceCleanupError, Scope, ScopeClosedError
from rescope._closing import around
from rescope._pool_errand import own
from rescope.events import ScopeEvent
from rescope.pool import KeyedPool
from rescope.testing import Ledger, cancel_everywhere

EXAMPLE = Path(__file__).parent.parent / "examples" / "pool.py"
SHORT = 0.01
LONG = 60.0

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)


class Fault(Exception):
    """An error of our own."""


class Connection:
    """What the pools here hold."""

    def __init__(self, key: str, log: list[str]) -> None:
        self.key = key
        self.log = log
        self.good = True
        self.closed = anyio.Event()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(f"close {self.key}")
        self.closed.set()


class Server:
    """Opens connections, each when it is let go, and counts."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.made: list[Connection] = []
        self.asked = Counter[str]()
        self.gates: dict[str, anyio.Event] = {}
        self.broken: dict[str, BaseException] = {}

    async def open(self, scope: Scope, key: str) -> Connection:
        self.asked[key] += 1
        await anyio.lowlevel.checkpoint()
        if key in self.gates:
            await self.gates[key].wait()
        if key in self.broken:
            raise self.broken.pop(key)
        self.log.append(f"open {key}")
        self.made.append(Connection(key, self.log))
        return scope.add(self.made[-1])


@contextlib.asynccontextmanager
async def users(pool: KeyedPool[str, Any], *keys: str) -> AsyncIterator[tuple[list[Any], anyio.Event]]:
    """Let each key be used by a task of its own; give what they were given, and what lets them go."""
    given: list[Any] = []
    leave = anyio.Event()

    async def use(key: str) -> None:
        async with pool.use(key) as value:
            given.append(value)
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(use, key)
        yield given, leave
        leave.set()


async def use(pool: KeyedPool[str, Any], key: str) -> Any:
    """Use a key for a moment."""
    async with pool.use(key) as value:
        return value


async def outcome_of(fn: Callable[[], Awaitable[object]], told: list[Any]) -> None:
    """Put on record what comes out of `fn`."""
    try:
        told.append(await fn())
    except Exception as exc:
        told.append(exc)


async def unheeding(gate: anyio.Event) -> None:
    """Wait through a cancellation."""
    try:
        await gate.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await gate.wait()


# Opening


async def test_a_key_is_opened_once_however_many_ask_at_once() -> None:
    """Ten who ask for a key at the same time share the one value that is opened for them."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool, users(pool, *["a"] * 10) as (given, _):
            await anyio.wait_all_tasks_blocked()
            assert given == server.made * 10

    assert server.log == ["open a", "close a"]


async def test_a_key_stays_open_for_the_next() -> None:
    """One who asks later is given the value that is still there, and another key another value."""
    server = Server()
    async with KeyedPool(server.open) as pool:
        first = await use(pool, "a")
        assert await use(pool, "a") is first
        assert await use(pool, "b") is not first
        assert server.log == ["open a", "open b"]


async def test_a_slow_open_blocks_no_other_key() -> None:
    """While one key takes its time to open, another is opened, used and discarded."""
    server = Server()
    server.gates["slow"] = anyio.Event()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool, users(pool, "slow") as (given, _):
            await anyio.wait_all_tasks_blocked()
            fast = await use(pool, "fast")
            pool.discard("fast")
            await fast.closed.wait()
            assert given == []
            server.gates["slow"].set()

    assert server.log == ["open fast", "close fast", "open slow", "close slow"]


async def test_a_failing_open_is_told_to_all_who_waited_and_the_next_asks_again() -> None:
    """Each of those who waited gets the error; the next who asks opens anew."""
    server = Server()
    server.broken["a"] = Fault("no answer")
    told: list[Any] = []
    async with KeyedPool(server.open) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
        assert [(type(error), str(error)) for error in told] == [(Fault, "no answer")] * 3
        assert pool.size == 0
        assert await use(pool, "a") is server.made[0]

    assert server.asked["a"] == 2


async def test_each_who_waited_gets_an_exception_of_its_own() -> None:
    """Three who wait get three exceptions, so that their tracebacks, notes and contexts don't mix."""
    server = Server()
    server.broken["a"] = Fault("no answer")
    server.broken["a"].__cause__ = cause = OSError("down")
    told: list[Any] = []
    async with KeyedPool(server.open) as pool, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)

    told[0].add_note("mine")
    depths = [len(list(_frames(error))) for error in told]
    assert len({id(error) for error in told}) == 3
    assert [getattr(error, "__notes__", []) for error in told] == [["mine"], [], []]
    assert [error.__cause__ for error in told] == [cause] * 3
    assert len(set(depths)) == 1


def _frames(error: BaseException) -> Any:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


class Fussy(Exception):
    """Can't be copied."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Wordy(Exception):
    """A copy of it would say something else."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


def test_an_exception_that_makes_no_faithful_copy_is_shared() -> None:
    """Where the constructor wants something else, or writes the message, the exception is given as it is."""
    fussy, wordy = Fussy(code=3), Wordy("cup")

    assert own(fussy) is fussy
    assert own(wordy) is wordy


def test_a_copy_of_an_exception_keeps_what_belongs_to_it() -> None:
    """Type, arguments, attributes, notes and chain are those of the original, and the notes a list of their own."""
    error = OSError(2, "gone", "file")
    error.add_note("seen")
    error.__context__ = context = Fault()
    error.__suppress_context__ = True
    twin = own(error)

    assert isinstance(twin, OSError)
    assert (twin.args, twin.filename, twin.__notes__) == (error.args, "file", ["seen"])
    assert (twin.__context__, twin.__suppress_context__) == (context, True)
    twin.add_note("another")
    assert error.__notes__ == ["seen"]


async def test_what_a_failing_open_has_registered_is_closed_as_after_an_error() -> None:
    """Callbacks of `on_error` run, and all is closed before those who wait are told."""
    log: list[str] = []

    async def open_half(scope: Scope, key: str) -> None:
        scope.defer(log.append, "closed")
        scope.on_error(log.append, "rolled back")
        scope.on_success(log.append, "committed")
        raise Fault

    async with KeyedPool(open_half) as pool:
        with pytest.raises(Fault):
            await use(pool, "a")
        assert log == ["rolled back", "closed"]
        assert pool.size == 0


async def test_what_fails_to_close_after_a_failing_open_is_told() -> None:
    """Those who wait get the `ResourceCleanupError`, from what opening raised."""

    async def open_half(scope: Scope, key: str) -> None:
        scope.defer(int, "no number")
        raise Fault

    async with KeyedPool(open_half) as pool:
        with pytest.raises(ResourceCleanupError, match="int: ValueError") as caught:
            await use(pool, "a")

    assert isinstance(caught.value.__cause__, Fault)


async def test_who_asks_while_a_failed_open_is_cleaned_up_opens_anew() -> None:
    """What is told of is what was asked for: one who comes later waits for the end, and asks again."""
    log: list[str] = []
    gate = anyio.Event()
    told: list[Any] = []

    async def open_half(scope: Scope, key: str) -> str:
        if not log:
            log.append("failed")
            scope.defer(gate.wait)
            raise Fault
        log.append("opened")
        return key

    with anyio.fail_after(5):
        async with KeyedPool(open_half) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            assert (log, told) == (["failed"], [])
            gate.set()

    assert log == ["failed", "opened"]
    assert {type(one) for one in told} == {Fault, str}


async def test_a_cancelled_opener_does_not_cancel_the_others() -> None:
    """The one who asked first is cancelled; opening goes on for the one who still waits."""
    server = Server()
    server.gates["a"] = anyio.Event()
    first = anyio.CancelScope()

    async with KeyedPool(server.open) as pool:

        async def ask_first() -> None:
            with first:
                await use(pool, "a")

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_first)
                await anyio.wait_all_tasks_blocked()
                async with users(pool, "a") as (given, _):
                    await anyio.wait_all_tasks_blocked()
                    first.cancel()
                    await anyio.wait_all_tasks_blocked()
                    server.gates["a"].set()
                    await anyio.wait_all_tasks_blocked()
                    assert given == server.made

    assert first.cancelled_caught
    assert server.log == ["open a", "close a"]
    assert server.asked["a"] == 1


async def test_where_nobody_waits_any_more_the_opening_is_cancelled() -> None:
    """The last who waits is cancelled: what was opened so far is closed, and the key is forgotten."""
    log: list[str] = []

    async def hang(scope: Scope, key: str) -> None:
        scope.defer(log.append, "closed")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    with anyio.fail_after(5):
        async with KeyedPool(hang) as pool:
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            await anyio.wait_all_tasks_blocked()
            assert log == ["cancelled", "closed"]
            assert pool.size == 0


async def test_who_asks_while_an_abandoned_opening_ends_opens_anew() -> None:
    """The cancellation of one opening is not for the next who asks."""
    gate = anyio.Event()
    asked: list[str] = []

    async def slow(scope: Scope, key: str) -> str:
        asked.append(key)
        if len(asked) == 1:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
        return key

    with anyio.fail_after(5):
        async with KeyedPool(slow) as pool:
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            async with users(pool, "a") as (given, _):
                await anyio.wait_all_tasks_blocked()
                assert given == []
                gate.set()
                await anyio.wait_all_tasks_blocked()
                assert given == ["a"]

    assert asked == ["a", "a"]


@on_asyncio
async def test_an_opening_is_cancelled_once_however_many_give_up() -> None:
    """Another who asks while it ends, and gives up too, does not cut its cleanup short."""
    gate = anyio.Event()
    log: list[str] = []

    async def slow(key: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await gate.wait()
            log.append("cleaned up")

    with anyio.fail_after(5):
        async with KeyedPool(slow) as pool:
            for _ in range(2):
                with anyio.move_on_after(SHORT):
                    await use(pool, "a")
            gate.set()
            await anyio.wait_all_tasks_blocked()

    assert log == ["cleaned up"]


async def test_opening_is_no_part_of_the_close_that_asked_for_it() -> None:
    """A value lives longer than the closer that asked first, so what it does later is not that closer's work."""
    seen: list[object] = []

    def look(scope: Scope, key: str) -> None:
        seen.append(around.get())

    async with KeyedPool(look) as pool, Scope() as scope:
        scope.defer(use, pool, "a")

    assert seen == [None]


async def test_an_abandoned_opening_that_ends_well_is_kept() -> None:
    """One that does not heed its cancellation has a value in the end: it is idle, and the next is given it."""
    gate = anyio.Event()
    made: list[object] = []

    async def stubborn(key: str) -> Resource[object]:
        await unheeding(gate)
        made.append(object())
        return Resource(made[-1], int)

    with anyio.fail_after(5):
        async with KeyedPool(stubborn) as pool:
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            gate.set()
            await anyio.wait_all_tasks_blocked()
            assert (pool.size, "a" in pool) == (1, True)
            assert await use(pool, "a") is made[0]

    assert len(made) == 1


async def test_cleanup_that_fails_when_nobody_waits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An abandoned opening that fails, and fails to clean up, has nobody to tell: the log has it."""

    async def translate(scope: Scope, key: str) -> None:
        scope.defer(int, "no number")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise Fault from None

    async with KeyedPool(translate) as pool:
        with anyio.move_on_after(SHORT):
            await use(pool, "a")
        await anyio.wait_all_tasks_blocked()

    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "int: ValueError" in caplog.text


@on_asyncio
async def test_a_stray_cancellation_of_an_opening_is_an_error() -> None:
    """An `open` that awaits a cancelled task does not cancel those who wait: they get an error that says so."""

    async def stray(key: str) -> str:
        task = asyncio.ensure_future(asyncio.sleep(LONG))
        task.cancel()
        await task
        return key

    async with KeyedPool(stray, label=str.upper) as pool:
        with pytest.raises(RuntimeError, match="opening A ended in a cancellation that nobody who waited") as caught:
            await use(pool, "a")

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_an_interrupt_in_open_comes_out_of_use() -> None:
    """What is no `Exception` is raised to the one who waits, as itself."""
    server = Server()
    server.broken["a"] = KeyboardInterrupt()
    async with KeyedPool(server.open) as pool:
        with pytest.raises(KeyboardInterrupt):
            await use(pool, "a")
        assert pool.size == 0


async def test_opening_runs_in_the_context_of_the_one_who_asked_first() -> None:
    """`open` sees the context variables of the first who asks, as if called there."""
    who = ContextVar("who", default="nobody")
    seen: list[str] = []

    def look(scope: Scope, key: str) -> None:
        seen.append(who.get())

    who.set("ada")
    async with KeyedPool(look) as pool:
        await use(pool, "a")

    assert seen == ["ada"]


async def test_asking_for_the_key_that_is_being_opened_is_refused() -> None:
    """An `open` that asks the pool for its own key gets an error instead of waiting for itself."""
    pools: list[KeyedPool[str, str]] = []

    async def circle(scope: Scope, key: str) -> str:
        return await scope.host(pools[0].use(key))

    with anyio.fail_after(5):
        async with KeyedPool(circle) as pool:
            pools.append(pool)
            with pytest.raises(RuntimeError, match=r"opening .*circle 1 asks the pool for its own key"):
                await use(pool, "a")


async def test_a_key_may_be_opened_from_another() -> None:
    """An `open` that uses another key of the pool is given it."""
    pools: list[KeyedPool[str, str]] = []

    async def build(scope: Scope, key: str) -> str:
        if not key:
            return "root"
        return f"{await scope.host(pools[0].use(key[:-1]))}/{key}"

    with anyio.fail_after(5):
        async with KeyedPool(build) as pool:
            pools.append(pool)
            assert await use(pool, "ab") == "root/a/ab"
            assert pool.size == 3


async def test_keys_that_need_each_other_are_refused() -> None:
    """`a` asks for `b` to open, and `b` for `a`: an error says so, where both would wait for ever."""
    pools: list[KeyedPool[str, str]] = []

    async def circle(scope: Scope, key: str) -> str:
        return await scope.host(pools[0].use("b" if key == "a" else "a"))

    with anyio.fail_after(5):
        async with KeyedPool(circle, label=str) as pool:
            pools.append(pool)
            with pytest.raises(RuntimeError, match="opening a asks the pool for its own key: that would wait"):
                await use(pool, "a")
            assert pool.size == 0


@pytest.mark.parametrize("suspends", [True, False])
async def test_an_open_may_close_what_holds_its_pool(suspends: bool) -> None:
    """The closing does not wait for the opening that it is part of: that is cancelled, and all is closed."""
    outer = Scope()
    log: list[str] = []

    async def fatal(scope: Scope, key: str) -> None:
        scope.defer(log.append, f"close {key}")
        if suspends:
            await anyio.lowlevel.checkpoint()
        if key == "b":
            await outer.aclose()
            log.append(pool.state)
            await anyio.lowlevel.checkpoint()
            log.append("not reached")

    with anyio.fail_after(5):
        pool = outer.add(KeyedPool(fatal))
        await use(pool, "a")
        with pytest.raises(ScopeClosedError):
            await use(pool, "b")

    assert sorted(set(log)) in (["close a", "close b"], ["close a", "close b", "closed"])
    assert (outer.state, pool.state) == ("closed", "closed")


# What `open` may be, and give


async def test_open_may_be_sync_and_register_in_its_scope() -> None:
    """A sync `open(scope, key)` is called with a scope of the key's own, and its value given."""
    log: list[str] = []

    def open_now(scope: Scope, key: str) -> str:
        scope.defer(log.append, f"close {key}")
        return key.upper()

    async with KeyedPool(open_now) as pool:
        assert [await use(pool, key) for key in "ab"] == ["A", "B"]

    assert sorted(log) == ["close a", "close b"]


async def test_open_may_give_a_resource() -> None:
    """A `Resource`, from a sync or async `open(key)`, is held with its own closer, and its value is given."""
    log: list[str] = []

    def make(key: str) -> Resource[str]:
        return Resource(key.upper(), partial(log.append, key))

    async def make_later(key: str) -> Resource[str]:
        return make(key)

    async with KeyedPool(make) as pool, KeyedPool(make_later) as later:
        assert (await use(pool, "a"), await use(later, "b")) == ("A", "B")

    assert sorted(log) == ["a", "b"]


@contextlib.asynccontextmanager
async def client(key: str, log: list[str]) -> AsyncIterator[str]:
    """A client with background work, in a task group that belongs to the task that entered it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        log.append(f"open {key}")
        try:
            yield key.upper()
        finally:
            tasks.cancel_scope.cancel()
            log.append(f"close {key}")


async def test_an_async_manager_is_hosted_so_any_task_may_close_it() -> None:
    """A manager with a task group inside is used in one task, and closed from others, in any order."""
    log: list[str] = []

    async def later(key: str) -> Any:
        return client(key, log)

    with anyio.fail_after(5):
        pool = KeyedPool(partial(client, log=log))
        second = KeyedPool(later)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, pool, "a")
            tasks.start_soon(use, pool, "b")
            tasks.start_soon(use, second, "c")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.aclose)
            tasks.start_soon(second.aclose)

    assert sorted(log) == ["close a", "close b", "close c", "open a", "open b", "open c"]


class Twofold:
    """A client as they come: closable, a manager that can be entered once, and awaitable. It is open when asked."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.log: list[str] = []

    def __await__(self) -> Any:
        yield from self._start().__await__()
        return self

    async def _start(self) -> None:
        self.log.append("awaited")

    async def __aenter__(self) -> Twofold:
        self.log.append("entered")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("exited")

    async def close(self) -> None:
        self.log.append("closed")


async def test_what_is_both_manager_and_closable_is_entered_unless_it_was_awaited() -> None:
    """A sync `open` gives what is still to be entered; what an async one gives is open already, and is only closed."""

    async def connect(key: str) -> Twofold:
        client = Twofold(key)
        await client
        return client

    async with KeyedPool(Twofold) as pool, KeyedPool(connect) as second:
        entered, awaited = await use(pool, "a"), await use(second, "a")

    assert entered.log == ["entered", "exited"]
    assert awaited.log == ["awaited", "closed"]


async def test_a_value_is_closed_by_its_own_closer() -> None:
    """What has an `aclose` or `close` needs nothing else; a class will do for `open`."""
    log: list[str] = []
    async with KeyedPool(partial(Connection, log=log)) as pool:
        assert (await use(pool, "a")).key == "a"

    assert log == ["close a"]


async def test_a_value_that_cannot_be_closed_is_refused_with_the_mend() -> None:
    """What `open(key)` gave can't be closed: those who wait are told what to give instead."""

    def nothing(key: str) -> object:
        return key

    async with KeyedPool(nothing) as pool:
        with pytest.raises(
            TypeError, match=r"nothing gave the pool what it can't close .*give a `Resource\("
        ) as caught:
            await use(pool, "pass-word")

    assert "pass-word" not in str(caught.value)


class Closable(dict[str, str]):
    """A kind of dict, whose constructor doesn't tell what it takes."""

    def close(self) -> None:
        self.clear()


async def test_open_without_a_signature_takes_a_key() -> None:
    """A builtin that does not tell what it takes is called with the key."""
    with pytest.raises(ValueError, match="no signature"):
        signature(Closable)
    pool = KeyedPool[Any, Any](Closable)
    async with pool:
        assert await use(pool, (("a", "b"),)) == {"a": "b"}  # type: ignore[arg-type]


def opens_with_default(key: str, timeout: float = 5, *, tls: bool = False) -> Resource[str]:
    return Resource(f"{key} {timeout} {tls}", int)


def opens_without_any(dsn: str = "none") -> Resource[str]:
    return Resource(dsn, int)


@pytest.mark.parametrize(
    ("open_it", "expected"), [(opens_with_default, "a 5 False"), (opens_without_any, "a")], ids=lambda x: str(x)[:10]
)
async def test_only_required_parameters_tell_what_open_takes(open_it: Any, expected: str) -> None:
    """One required parameter, or none, is a key; those with defaults keep them."""
    async with KeyedPool(open_it) as pool:
        assert await use(pool, "a") == expected


# Idle


async def test_an_idle_one_is_closed_after_its_time() -> None:
    """What nobody uses is closed by itself, and the next who asks opens anew."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, idle=SHORT) as pool:
            first = await use(pool, "a")
            await first.closed.wait()
            await anyio.wait_all_tasks_blocked()
            assert (pool.size, "a" in pool) == (0, False)
            assert await use(pool, "a") is not first


def test_the_idle_time_runs_from_the_last_use_by_the_clock_of_the_backend() -> None:
    """On a virtual clock, each is closed just `idle` seconds after its last user left, however long that used it."""
    trio = pytest.importorskip("trio")
    closed: list[tuple[str, float]] = []

    async def main() -> None:
        start = trio.current_time()

        def open_now(scope: Scope, key: str) -> None:
            scope.defer(lambda: closed.append((key, round(trio.current_time() - start, 6))))

        async with KeyedPool(open_now) as pool:
            await use(pool, "a")
            await anyio.sleep(100)
            await use(pool, "b")
            async with pool.use("c"):
                await anyio.sleep(100)
                await use(pool, "a")
                await anyio.sleep(700)
            await anyio.sleep(1000)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert closed == [("b", 400), ("a", 500), ("c", 1200)]


@pytest.mark.parametrize("idle", [None, math.inf])
async def test_without_an_idle_time_all_are_kept(idle: float | None) -> None:
    """`idle=None` keeps them until the pool closes, and needs no task."""
    server = Server()
    async with KeyedPool(server.open, idle=idle) as pool:
        await use(pool, "a")
        assert pool._sweep is None
        assert await use(pool, "a") is server.made[0]


async def test_with_no_idle_time_one_is_closed_when_its_last_user_leaves() -> None:
    """`idle=0` shares among those who use at the same time, and keeps nothing."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, idle=0) as pool:
            async with users(pool, "a", "a") as (given, _):
                await anyio.wait_all_tasks_blocked()
                assert given == server.made * 2
            await server.made[0].closed.wait()
            assert await use(pool, "a") is server.made[1]
            assert server.log[:3] == ["open a", "close a", "open a"]


async def test_no_task_is_there_while_nothing_is_idle() -> None:
    """The task that waits for the time of idle ones ends with the last of them."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, idle=SHORT) as pool:
            async with pool.use("a"):
                assert pool._sweep is None
            sweep = pool._sweep
            assert sweep is not None
            await sweep.ended.wait()
            assert pool.size == 0
            await use(pool, "a")
            assert pool._sweep is not sweep


async def test_one_used_again_is_not_closed_at_its_old_time() -> None:
    """The sweep comes at the time that was, finds it in use, and leaves it alone."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, idle=SHORT) as pool:
            await use(pool, "a")
            async with pool.use("a") as value:
                await pool._sweep.ended.wait()  # type: ignore[union-attr]
                assert not value.closed.is_set()
            await value.closed.wait()
            assert server.log == ["open a", "close a"]


async def test_who_asks_for_a_key_that_is_being_closed_waits_for_the_end() -> None:
    """There are never two of a key: the next is opened when the old one is closed."""
    log: list[str] = []
    gate = anyio.Event()

    def open_now(scope: Scope, key: str) -> str:
        async def close() -> None:
            await gate.wait()
            log.append("closed")

        scope.defer(close)
        log.append("opened")
        return key

    with anyio.fail_after(5):
        async with KeyedPool(open_now, idle=0) as pool:
            await use(pool, "a")
            async with users(pool, "a") as (given, _):
                await anyio.wait_all_tasks_blocked()
                assert (given, log, pool.size) == ([], ["opened"], 0)
                gate.set()
                await anyio.wait_all_tasks_blocked()
                assert (given, log) == (["a"], ["opened", "closed", "opened"])


async def test_a_close_that_hangs_keeps_others_from_the_key_no_longer_than_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`grace` bounds it; what ran out of time is forced, and logged."""
    log: list[str] = []

    def open_now(scope: Scope, key: str) -> str:
        close = int if log else anyio.sleep_forever
        log.append("opened")
        return scope.add(key, close, name="sleeper", force=partial(log.append, "forced"))

    with anyio.fail_after(5):
        async with KeyedPool(open_now, idle=0, grace=SHORT) as pool:
            await use(pool, "a")
            await use(pool, "a")

    (record,) = caplog.records
    assert log == ["opened", "forced", "opened"]
    assert record.levelname == "ERROR"
    assert "sleeper: CloseTimeoutError: closing sleeper took longer" in record.getMessage()


def test_what_the_end_of_the_loop_cancels_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`asyncio.run` cancels the tasks that are left, those of a pool that nobody closed too: that is no failure."""
    log: list[str] = []

    async def close() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    async def main() -> None:
        await use(KeyedPool(lambda key: Resource(key, close), idle=0), "a")

    asyncio.run(main())
    assert (log, caplog.records) == (["cancelled"], [])


async def test_an_idle_close_that_fails_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits it, so it is told at ERROR on the logger `rescope`, without the key; the pool closes cleanly."""

    def open_now(scope: Scope, key: str) -> str:
        scope.defer(int, "no number")
        return key

    with anyio.fail_after(5):
        async with KeyedPool(open_now, idle=0) as pool:
            await use(pool, "pass-word")
            await anyio.wait_all_tasks_blocked()
            (record,) = caplog.records

    assert (record.name, record.levelname) == ("rescope", "ERROR")
    assert "open_now 1' failed to close: int: ValueError" in record.getMessage()
    assert "pass-word" not in caplog.text


async def test_closers_of_idle_ones_work_for_nobody() -> None:
    """A closer sees no context variable of who happened to leave last."""
    who = ContextVar("who", default="nobody")
    seen: list[str] = []

    def open_now(scope: Scope, key: str) -> None:
        scope.defer(lambda: seen.append(who.get()))

    async with KeyedPool(open_now, idle=0) as pool:
        who.set("ada")
        await use(pool, "a")
        await anyio.wait_all_tasks_blocked()

    assert seen == ["nobody"]


# The limit


async def test_beyond_the_limit_the_least_recently_used_idle_one_is_closed() -> None:
    """A third key closes the one of two that was used longer ago, not the one that was opened first."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, limit=2) as pool:
            for key in "aba":
                await use(pool, key)
            await use(pool, "c")
            await anyio.wait_all_tasks_blocked()
            assert set(server.log[2:]) == {"open c", "close b"}
            assert ("a" in pool, "b" in pool, "c" in pool, pool.size) == (True, False, True, 2)


async def test_a_new_key_closes_an_idle_one_while_it_opens() -> None:
    """The place is made when the new key is asked for, not when that is idle."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, limit=1) as pool:
            first = await use(pool, "a")
            async with pool.use("b"):
                await first.closed.wait()
                assert pool.size == 1


async def test_one_in_use_is_never_closed_for_the_limit() -> None:
    """Where all are in use the limit is exceeded, and trimmed as soon as one is idle."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, limit=1) as pool:
            async with pool.use("a"), users(pool, "b", "c") as (given, leave):
                await anyio.wait_all_tasks_blocked()
                assert (len(given), pool.size) == (2, 3)
                leave.set()
                await anyio.wait_all_tasks_blocked()
                assert pool.size == 1
                assert "a" in pool
            assert pool.size == 1
            assert not server.made[0].closed.is_set()


async def test_keys_open_while_others_close_for_the_limit() -> None:
    """A close that takes its time does not hold up the key that took its place."""
    gate = anyio.Event()
    with anyio.fail_after(5):
        async with KeyedPool(lambda key: Resource(key, gate.wait), limit=1) as pool:
            assert [await use(pool, key) for key in "abc"] == ["a", "b", "c"]
            assert pool.size == 1
            gate.set()


# Validate


async def good(connection: Connection) -> bool:
    await anyio.lowlevel.checkpoint()
    return connection.good


async def test_validate_is_asked_on_reuse_only() -> None:
    """A value that was just opened is not checked; each later use is."""
    server = Server()
    checked: list[Connection] = []

    def check(connection: Connection) -> bool:
        checked.append(connection)
        return True

    async with KeyedPool(server.open, validate=check) as pool:
        async with users(pool, "a", "a") as (given, _):
            await anyio.wait_all_tasks_blocked()
            assert (len(given), checked) == (2, [])
        await use(pool, "a")
        assert checked == server.made


async def test_validate_is_asked_once_for_those_who_ask_at_the_same_time() -> None:
    """Five who ask while the check runs share its verdict."""
    server = Server()
    gate = anyio.Event()
    asked: list[Connection] = []

    async def check(connection: Connection) -> bool:
        asked.append(connection)
        await gate.wait()
        return True

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool:
            await use(pool, "a")
            async with users(pool, *"aaaaa") as (given, _):
                await anyio.wait_all_tasks_blocked()
                gate.set()
                await anyio.wait_all_tasks_blocked()
                assert (len(given), len(asked)) == (5, 1)


def raises(connection: Connection) -> bool:
    if not connection.good:
        raise ConnectionError
    return True


@pytest.mark.parametrize("validate", [good, raises, lambda connection: connection.good])
async def test_one_that_fails_the_check_is_closed_and_replaced(validate: Any) -> None:
    """False, sync or async, or an exception: the value is closed, and the next is given another."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=validate) as pool:
            first = await use(pool, "a")
            first.good = False
            async with users(pool, "a", "a") as (given, _):
                await first.closed.wait()
                await anyio.wait_all_tasks_blocked()
                assert given == [server.made[1]] * 2
                assert pool.size == 1

    assert server.asked["a"] == 2


async def test_those_who_use_a_failing_one_keep_it() -> None:
    """It is closed when the last of them leaves; meanwhile there are two."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=good) as pool:
            async with pool.use("a") as first:
                first.good = False
                async with pool.use("a") as second:
                    assert second is not first
                    assert (pool.size, first.closed.is_set()) == (2, False)
                assert (pool.size, first.closed.is_set()) == (2, False)
            await first.closed.wait()
            assert (pool.size, "a" in pool) == (1, True)


async def test_a_check_that_nobody_waits_for_is_cancelled_and_says_nothing() -> None:
    """The value stays, and the next who asks has it checked again."""
    server = Server()
    gate = anyio.Event()
    asked: list[str] = []

    async def check(connection: Connection) -> bool:
        asked.append("check")
        await gate.wait()
        return True

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool:
            await use(pool, "a")
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            await anyio.wait_all_tasks_blocked()
            gate.set()
            assert await use(pool, "a") is server.made[0]

    assert asked == ["check", "check"]


async def test_a_check_goes_on_for_those_who_still_wait() -> None:
    """One of two who wait is cancelled; the other gets the verdict of the same check."""
    server = Server()
    gate = anyio.Event()
    asked: list[str] = []

    async def check(connection: Connection) -> bool:
        asked.append("check")
        await gate.wait()
        return True

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool:
            await use(pool, "a")
            async with users(pool, "a") as (given, _):
                await anyio.wait_all_tasks_blocked()
                with anyio.move_on_after(SHORT):
                    await use(pool, "a")
                gate.set()
                await anyio.wait_all_tasks_blocked()
                assert given == server.made

    assert asked == ["check"]


@on_asyncio
async def test_a_check_that_ends_in_a_stray_cancellation_has_failed() -> None:
    """A client whose check awaits its own cancelled task is broken: it is replaced."""
    server = Server()

    async def stray(connection: Connection) -> bool:
        task = asyncio.ensure_future(asyncio.sleep(LONG))
        task.cancel()
        await task
        return True

    async with KeyedPool(server.open, validate=stray) as pool:
        await use(pool, "a")
        assert await use(pool, "a") is server.made[1]


def says_nothing(connection: Connection) -> Any:
    """A check that forgot to return."""


async def test_a_check_that_says_nothing_is_an_error() -> None:
    """A `validate` without a `return` would replace at each use, unseen: it is refused, and the value stays."""
    server = Server()
    async with KeyedPool(server.open, validate=says_nothing) as pool:
        await use(pool, "a")
        with pytest.raises(TypeError, match="`validate` gave None: let it return whether"):
            await use(pool, "a")
        assert "a" in pool


async def test_why_a_check_failed_is_logged_for_those_who_look(caplog: pytest.LogCaptureFixture) -> None:
    """What `validate` raised is a DEBUG record, by type and text."""
    server = Server()
    caplog.set_level(logging.DEBUG, "rescope")

    def check(connection: Connection) -> bool:
        raise ConnectionError("reset by peer")

    async with KeyedPool(server.open, validate=check) as pool:
        await use(pool, "a")
        await use(pool, "a")

    assert [record.getMessage() for record in caplog.records] == [
        "Server.open 1 failed its check: ConnectionError: reset by peer"
    ]


@contextlib.asynccontextmanager
async def mortal(key: str, kill: anyio.Event, dead: anyio.Event) -> AsyncIterator[list[str]]:
    """A client whose background work fails when it is told to."""

    async def work() -> None:
        await kill.wait()
        raise ConnectionError("the server went away")

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            yield [key]
            tasks.cancel_scope.cancel()
    finally:
        dead.set()


async def test_one_whose_hosted_manager_died_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """The next who asks is given another, and what the dead one left is logged, as nobody else is told."""
    kills = [anyio.Event(), anyio.Event()]
    waiting = iter(kills)
    dead = anyio.Event()
    with anyio.fail_after(5):
        async with KeyedPool(lambda key: mortal(key, next(waiting), dead)) as pool:
            first = await use(pool, "a")
            assert await use(pool, "a") is first
            kills[0].set()
            await dead.wait()
            await anyio.wait_all_tasks_blocked()
            assert await use(pool, "a") is not first
            await anyio.wait_all_tasks_blocked()

    (record,) = caplog.records
    assert "mortal: ExceptionGroup of ConnectionError: the server went away" in record.getMessage()


async def test_one_that_died_in_use_is_closed_when_its_last_user_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """It is not kept for its idle time, and what it died of is logged at once."""
    kill, dead = anyio.Event(), anyio.Event()
    with anyio.fail_after(5):
        async with KeyedPool(lambda key: mortal(key, kill, dead)) as pool:
            async with pool.use("a"):
                kill.set()
                await dead.wait()
                await anyio.wait_all_tasks_blocked()
            await anyio.wait_all_tasks_blocked()
            assert pool.size == 0
            assert "the server went away" in caplog.text


async def test_one_whose_scope_was_closed_is_replaced() -> None:
    """A value that closes its own scope is out of the pool."""
    scopes: list[Scope] = []

    def open_now(scope: Scope, key: str) -> Scope:
        scopes.append(scope)
        return scope

    async with KeyedPool(open_now) as pool:
        await (await use(pool, "a")).aclose()
        assert (await use(pool, "a")).state == "open"

    assert len(scopes) == 2


async def test_a_closer_that_asks_for_the_key_it_closes_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It would wait for its own end: it gets an error that says so."""
    pools: list[KeyedPool[str, None]] = []

    def open_now(scope: Scope, key: str) -> None:
        scope.defer(use, pools[0], key)

    with anyio.fail_after(5):
        async with KeyedPool(open_now, idle=0, label=str) as pool:
            pools.append(pool)
            await use(pool, "a")
            await anyio.wait_all_tasks_blocked()

    assert "RuntimeError: closing a asks the pool for its own key: that would wait for itself" in caplog.text


# Discard


async def test_a_discarded_one_is_replaced_and_closed_when_its_last_user_leaves() -> None:
    """Those who use it keep it; the next is given another at once."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool:
            async with pool.use("a") as first:
                pool.discard("a")
                assert "a" not in pool
                async with pool.use("a") as second:
                    assert second is not first
                assert not first.closed.is_set()
            await first.closed.wait()
            assert not second.closed.is_set()


async def test_an_idle_one_is_closed_when_discarded() -> None:
    """It has no user to wait for. A key that is not there is nothing to do."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool:
            first = await use(pool, "a")
            pool.discard("a")
            pool.discard("a")
            pool.discard("b")
            await first.closed.wait()
            assert pool.size == 0


async def test_one_that_is_discarded_while_it_opens_goes_to_those_who_waited() -> None:
    """They asked before; the next opens another, and the first is closed when they leave."""
    server = Server()
    server.gates["a"] = anyio.Event()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool, users(pool, "a") as (given, leave):
            await anyio.wait_all_tasks_blocked()
            pool.discard("a")
            server.gates["a"].set()
            second = await use(pool, "a")
            await anyio.wait_all_tasks_blocked()
            (first,) = given
            assert first is not second
            leave.set()
            await first.closed.wait()
            assert not second.closed.is_set()


@pytest.mark.parametrize("verdict", [True, False])
async def test_one_that_is_discarded_while_it_is_checked_goes_to_nobody(verdict: bool) -> None:
    """Whatever the check says, those who waited for it are given another."""
    server = Server()
    gate = anyio.Event()

    async def check(connection: Connection) -> bool:
        await gate.wait()
        return verdict

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool:
            await use(pool, "a")
            async with users(pool, "a") as (given, _):
                await anyio.wait_all_tasks_blocked()
                pool.discard("a")
                gate.set()
                await server.made[0].closed.wait()
                await anyio.wait_all_tasks_blocked()
                assert given == [server.made[1]]


async def test_one_that_is_discarded_when_its_opening_was_abandoned_is_closed() -> None:
    """It opens all the same, as it heeds no cancellation; then it is closed, as nobody will ask for it."""
    gate = anyio.Event()
    closed = anyio.Event()

    async def stubborn(key: str) -> Resource[str]:
        await unheeding(gate)
        return Resource(key, closed.set)

    with anyio.fail_after(5):
        async with KeyedPool(stubborn) as pool:
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            pool.discard("a")
            assert not closed.is_set()
            gate.set()
            await closed.wait()
            assert pool.size == 0


async def test_a_discarded_one_that_fails_to_open_is_forgotten() -> None:
    """It leaves the one that took its place alone."""
    server = Server()
    server.gates["a"] = gate = anyio.Event()
    told: list[Any] = []
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            pool.discard("a")
            del server.gates["a"]
            second = await use(pool, "a")
            server.broken["a"] = Fault()
            gate.set()
            await anyio.wait_all_tasks_blocked()
            assert [type(error) for error in told] == [Fault]
            assert await use(pool, "a") is second


async def test_a_closer_may_discard_the_key_that_takes_its_place() -> None:
    """The closing for the limit begins within the asking for another key: that is claimed by then, and stays."""

    def open_now(scope: Scope, key: str) -> str:
        scope.defer(lambda: pool.discard("b"))
        return key

    async with KeyedPool(open_now, limit=1) as pool:
        await use(pool, "a")
        assert await use(pool, "b") == "b"


# Closing


async def test_a_scope_holds_a_pool_and_closes_it() -> None:
    """`scope.add` gives it back; with the scope, all its values close."""
    server = Server()
    async with Scope() as scope:
        pool = scope.add(KeyedPool(server.open))
        await use(pool, "a")
        await use(pool, "b")

    assert (pool.state, pool.size) == ("closed", 0)
    assert sorted(server.log[2:]) == ["close a", "close b"]


async def test_a_closed_pool_refuses_new_uses() -> None:
    """The error names the mend; to close again is nothing to do."""
    server = Server()
    async with KeyedPool(server.open) as pool:
        pass
    await pool.aclose()

    with pytest.raises(ScopeClosedError, match=r"Server.open is closed: use it before .* or make a new one"):
        await use(pool, "a")
    with pytest.raises(ScopeClosedError):
        await pool.__aenter__()
    pool.discard("a")
    assert server.log == []


async def test_values_in_use_are_closed_too() -> None:
    """The closing waits for no user; one who leaves later disturbs nothing."""
    server = Server()
    with anyio.fail_after(5):
        pool = KeyedPool(server.open)
        async with pool.use("a") as value:
            await pool.aclose()
            assert value.closed.is_set()

    assert pool.size == 0


async def test_all_close_at_once() -> None:
    """Two closers that wait for each other both end: neither has to be first."""
    everybody = [anyio.Event(), anyio.Event()]

    def open_now(scope: Scope, key: int) -> None:
        async def close() -> None:
            everybody[key].set()
            await everybody[1 - key].wait()

        scope.defer(close)

    with anyio.fail_after(5):
        async with KeyedPool(open_now) as pool:
            for key in (0, 1):
                async with pool.use(key):
                    pass

    assert pool.state == "closed"


async def test_one_that_hangs_is_cut_short_by_the_grace_of_the_outer_scope() -> None:
    """The scope's grace reaches the values: what hangs is cancelled and forced, the others close, and all is told."""
    log: list[str] = []

    def open_now(scope: Scope, key: str) -> None:
        if key == "hangs":
            scope.add(None, anyio.sleep_forever, name="sleeper", force=partial(log.append, "forced"))
        else:
            scope.defer(log.append, f"close {key}")

    with anyio.fail_after(5):
        with pytest.raises(ResourceCleanupError) as caught:
            async with Scope(grace=0.2) as scope:
                pool = scope.add(KeyedPool(open_now, grace=LONG, label=str))
                for key in ("a", "hangs", "b"):
                    await use(pool, key)

    assert sorted(log) == ["close a", "close b", "forced"]
    assert "hangs: 1 of 1 resources of scope 'hangs' failed to close: sleeper: CloseTimeoutError" in str(caught.value)
    assert [failure.name for failure in caught.value.failures] == ["KeyedPool"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_the_timeout_of_the_pool_reaches_its_values(concurrent: bool) -> None:
    """`scope.add(pool, timeout=…)` bounds what is inside, and what happened there is told."""
    log: list[str] = []

    def open_now(key: str) -> Resource[str]:
        return Resource(key, anyio.sleep_forever, force=partial(log.append, "forced"))

    with anyio.fail_after(5):
        with pytest.raises(ResourceCleanupError, match=r"str: CloseTimeoutError"):
            async with Scope(concurrent=concurrent) as scope:
                await use(scope.add(KeyedPool(open_now, grace=LONG), timeout=0.2), "a")

    assert log == ["forced"]


def test_the_times_of_a_close_by_the_virtual_clock() -> None:
    """By itself a pool has its own grace; in a scope that has less, a bit less than that."""
    trio = pytest.importorskip("trio")
    took: list[float] = []

    def open_now(key: str) -> Resource[str]:
        return Resource(key, anyio.sleep_forever)

    async def close_in(pool: KeyedPool[str, str], scope: Scope | None) -> None:
        await use(pool, "a")
        start = trio.current_time()
        with contextlib.suppress(ResourceCleanupError):
            await (pool if scope is None else scope).aclose()
        took.append(round(trio.current_time() - start, 3))

    async def main() -> None:
        await close_in(KeyedPool(open_now), None)
        for grace in (10, None, 100):
            scope = Scope(grace=grace)
            await close_in(scope.add(KeyedPool(open_now)), scope)
        parent = Scope(grace=10)
        child = parent.child()
        await close_in(child.add(KeyedPool(open_now)), parent)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert took == [30, 9.85, 30, 30, 9.85]


async def test_a_close_that_began_before_the_pools_own_is_forced_with_it() -> None:
    """What was idle is closing already, with more time than the scope has: when that is over, it is forced."""
    gate = anyio.Event()
    opened: list[str] = []

    def open_now(scope: Scope, key: str) -> None:
        scope.add(None, partial(opened.append, "closed"), force=partial(opened.append, "forced"))
        scope.add(None, gate.wait, name="sleeper", force=gate.set)

    with anyio.fail_after(5):
        with pytest.raises(ResourceCleanupError, match="open_now 1: CloseTimeoutError"):
            async with Scope(grace=0.2) as scope:
                pool = scope.add(KeyedPool(open_now, idle=0, grace=LONG))
                await use(pool, "a")
                await anyio.wait_all_tasks_blocked()
                assert pool.size == 0

    await anyio.wait_all_tasks_blocked()
    assert gate.is_set()
    assert opened == ["closed"]


async def test_a_close_that_began_before_the_pools_own_is_waited_for() -> None:
    """When the pool is closed, all is, and no task is left."""
    log: list[str] = []
    gate = anyio.Event()

    async def close() -> None:
        await gate.wait()
        log.append("closed")

    with anyio.fail_after(5):
        async with KeyedPool(lambda key: Resource(key, close), idle=0) as pool:
            await use(pool, "a")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.aclose)
                await anyio.wait_all_tasks_blocked()
                assert (pool.state, log) == ("closing", [])
                gate.set()
        assert log == ["closed"]


async def test_failures_come_out_of_the_close_under_names_without_the_key() -> None:
    """The key may hold a password: those who fail are numbered, in the order of opening."""

    def fail() -> None:
        raise ConnectionError

    def connect(key: str) -> Resource[str]:
        return Resource(key, int if key == "fine" else fail)

    pool = KeyedPool(connect)
    for key in ("postgres://u:pass-word@a", "fine", "postgres://u:pass-word@b"):
        await use(pool, key)
    with pytest.raises(ResourceCleanupError) as caught:
        await pool.aclose()

    names = {failure.name.rpartition(".")[2] for failure in caught.value.failures}
    assert names == {"connect 1", "connect 3"}
    assert "pass-word" not in caught.value.message
    assert "2 of 3 resources of scope 'pool of" in caught.value.message


async def test_an_opening_is_cancelled_when_the_pool_closes() -> None:
    """Those who wait get a `ScopeClosedError`; what was registered so far is closed after the opening has ended."""
    log: list[str] = []
    told: list[Any] = []

    async def hang(scope: Scope, key: str) -> None:
        scope.defer(log.append, "closed")
        try:
            await anyio.sleep_forever()
        finally:
            scope.defer(log.append, "closed what came late")
            log.append("cancelled")

    with anyio.fail_after(5):
        pool = KeyedPool(hang)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()

    assert [type(error) for error in told] == [ScopeClosedError] * 2
    assert log == ["cancelled", "closed what came late", "closed"]


@pytest.mark.parametrize("ended", [True, False])
async def test_an_opening_that_closes_its_own_scope_is_cancelled_when_the_pool_closes(ended: bool) -> None:
    """Whether that has ended or goes on: neither waits for the other."""
    told: list[Any] = []
    gate = anyio.Event()

    async def give_up(scope: Scope, key: str) -> None:
        scope.defer(gate.wait)
        await scope.aclose()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        pool = KeyedPool(give_up)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            if ended:
                gate.set()
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(pool.aclose)
            await anyio.wait_all_tasks_blocked()
            gate.set()

    assert [type(error) for error in told] == [ScopeClosedError]
    assert pool.state == "closed"


async def test_an_opening_that_heeds_no_cancellation_is_left_behind() -> None:
    """It has its time, then the pool goes on, and what it opens later is refused by its scope."""
    gate = anyio.Event()
    told: list[Any] = []

    async def stubborn(scope: Scope, key: str) -> None:
        await unheeding(gate)
        scope.defer(int)

    with anyio.fail_after(5):
        pool = KeyedPool(stubborn, grace=SHORT)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ResourceCleanupError, match=r"opening .*stubborn 1: CloseTimeoutError"):
                await pool.aclose()
            await anyio.wait_all_tasks_blocked()
            assert [type(error) for error in told] == [ScopeClosedError]
            gate.set()


async def test_an_opening_that_ends_while_the_pool_closes_is_closed() -> None:
    """One that heeds no cancellation, but ends in time, has its value closed, and nobody is given it."""
    gate = anyio.Event()
    log: list[str] = []
    told: list[Any] = []

    async def stubborn(scope: Scope, key: str) -> None:
        await unheeding(gate)
        scope.defer(log.append, "closed")

    with anyio.fail_after(5):
        pool = KeyedPool(stubborn)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(pool.aclose)
            await anyio.wait_all_tasks_blocked()
            gate.set()

    assert [type(error) for error in told] == [ScopeClosedError]
    assert log == ["closed"]


@on_asyncio
async def test_an_opening_that_ends_just_before_the_pool_closes_is_given_to_nobody() -> None:
    """The closing begins before the one who waited is on: it is refused, and the value is closed."""
    server = Server()
    told: list[Any] = []

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:

            async def open_it(scope: Scope, key: str) -> Connection:
                connection = await server.open(scope, key)
                tasks.start_soon(pool.aclose)
                return connection

            pool = KeyedPool(open_it)
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)

    assert [type(error) for error in told] == [ScopeClosedError]
    assert server.log == ["open a", "close a"]


async def test_a_close_that_is_about_to_begin_has_ended_with_the_pool() -> None:
    """An idle one whose task has not had its first step is closed by the pool, and the task is gone too."""
    left: list[Any] = []
    for _ in range(100):  # trio runs the tasks of a turn in any order
        server = Server()
        pool = KeyedPool(server.open, idle=0)
        await use(pool, "a")
        await pool.aclose()
        assert server.log == ["open a", "close a"]
        left += pool._leaving

    assert left == []


async def test_a_failed_opening_is_cleaned_up_once_when_the_pool_closes_meanwhile() -> None:
    """The pool waits for the cleanup that is under way, and those who wait get what opening raised."""
    gate = anyio.Event()
    log: list[str] = []
    told: list[Any] = []

    async def fail(scope: Scope, key: str) -> None:
        scope.defer(log.append, "closed")
        scope.defer(gate.wait)
        raise Fault

    with anyio.fail_after(5):
        pool = KeyedPool(fail)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(pool.aclose)
            await anyio.wait_all_tasks_blocked()
            assert log == []
            gate.set()

    assert log == ["closed"]
    assert [type(error) for error in told] == [Fault]


async def test_a_check_is_cancelled_when_the_pool_closes() -> None:
    """Those who wait for it get a `ScopeClosedError`, and the value is closed."""
    server = Server()
    told: list[Any] = []

    async def hang(connection: Connection) -> bool:
        await anyio.sleep_forever()
        return True

    with anyio.fail_after(5):
        pool = KeyedPool(server.open, validate=hang)
        await use(pool, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()

    assert [type(error) for error in told] == [ScopeClosedError]
    assert server.log == ["open a", "close a"]


async def test_who_waits_for_a_closing_key_is_refused_when_the_pool_closes() -> None:
    """The close that they wait for ends with the pool, and there is no next one."""
    gate = anyio.Event()
    told: list[Any] = []

    with anyio.fail_after(5):
        pool = KeyedPool(lambda key: Resource(key, gate.wait), idle=0)
        await use(pool, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(pool.aclose)
            await anyio.wait_all_tasks_blocked()
            gate.set()

    assert [type(error) for error in told] == [ScopeClosedError]


async def test_a_closer_may_close_the_pool_it_is_closed_by() -> None:
    """`aclose` from within a closer, also one of an idle value, does not wait for that, as that of a scope doesn't."""
    pools: list[KeyedPool[str, None]] = []
    log: list[str] = []

    def open_now(scope: Scope, key: str) -> None:
        async def close() -> None:
            await pools[0].aclose()
            log.append(pools[0].state)

        scope.defer(close)

    with anyio.fail_after(5):
        for idle in (0, None):
            async with KeyedPool(open_now, idle=idle) as pool:
                pools[:] = [pool]
                await use(pool, "a")
                await anyio.wait_all_tasks_blocked()

    assert log == ["closed", "closing"]


async def test_a_pool_that_is_closed_long_after_by_a_closers_task_has_its_own_grace() -> None:
    """A task that a closer started, and that outlives the closing, has nothing of its time left to ask for."""
    server = Server()
    pool = KeyedPool(server.open)
    go = anyio.Event()
    with anyio.fail_after(5):
        await use(pool, "a")
        async with anyio.create_task_group() as tasks:

            async def later() -> None:
                await go.wait()
                await pool.aclose()

            async def close() -> None:
                await anyio.lowlevel.checkpoint()
                tasks.start_soon(later)

            async with Scope(grace=1) as scope:
                scope.defer(close)
            go.set()

    assert server.made[0].closed.is_set()


async def test_the_body_of_a_pool_that_raises_has_its_error_raised() -> None:
    """`async with pool` closes all as on success, and what the body raised comes out."""
    log: list[str] = []

    def open_now(scope: Scope, key: str) -> None:
        scope.on_success(log.append, "success")
        scope.on_error(log.append, "error")

    with pytest.raises(Fault):
        async with KeyedPool(open_now) as pool:
            await use(pool, "a")
            raise Fault

    assert log == ["success"]


async def test_a_pool_that_is_dropped_unclosed_warns() -> None:
    """What it still held is named, as by a scope."""
    pool = KeyedPool(lambda key: Resource(key, int), idle=None, label=str.upper)
    await use(pool, "a")
    await anyio.lowlevel.checkpoint()  # a task that has just ended
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()

    told = [str(warning.message) for warning in caught]
    assert any(text.endswith("<lambda>' was dropped without being closed; it still held: A") for text in told)
    assert {warning.category for warning in caught} == {ResourceWarning}


async def test_what_is_closed_is_let_go() -> None:
    """A pool keeps nothing of what it has closed, nor does a closed pool."""

    class Value:
        def close(self) -> None:
            pass

    pool = KeyedPool(lambda key: Value(), idle=0)
    seen = [weakref.ref(await use(pool, key)) for key in "ab"]
    await anyio.wait_all_tasks_blocked()
    await anyio.lowlevel.checkpoint()  # a task that has just ended
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert len(pool._scope.resources) == len(pool._entries) == 0

    kept = KeyedPool[str, Value](lambda key: Value())
    last = weakref.ref(await use(kept, "a"))
    await kept.aclose()
    await pool.aclose()
    gc.collect()
    assert last() is None


# Cancellation


async def test_a_user_may_be_cancelled_at_every_point() -> None:
    """Wherever it strikes, in the opening, the check, the use or the close: nothing leaks, and the counts are right."""

    async def program(ledger: Ledger) -> None:
        opened = 0

        async def open_it(scope: Scope, key: str) -> str:
            nonlocal opened
            await anyio.lowlevel.checkpoint()
            opened += 1
            name = f"{key} {opened}"

            async def close(name: str) -> None:
                await anyio.lowlevel.checkpoint()
                ledger.closed(name)

            return await scope.acquire(partial(ledger.opened, name), close)

        async def check(value: str) -> bool:
            await anyio.lowlevel.checkpoint()
            return value != "a 1"

        pool = KeyedPool(open_it, validate=check, limit=2)
        try:
            async with pool.use("a") as first, pool.use("a") as second:
                assert (first, second) == ("a 1", "a 2")
                await anyio.lowlevel.checkpoint()
            for key in "ab":
                async with pool.use(key):
                    await anyio.lowlevel.checkpoint()
        finally:
            await pool.aclose()
            assert (pool.size, pool._idle, pool._leaving) == (0, {}, set())

    report = await cancel_everywhere(program, ordered=False)
    assert report.total > 0


async def test_one_of_two_users_may_be_cancelled_at_every_point() -> None:
    """The other gets its value every time, and what the cancelled one claimed is given up."""

    async def program(ledger: Ledger) -> None:
        async def open_it(scope: Scope, key: str) -> str:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            scope.add(None, partial(ledger.closed, key), name="connection")
            return ledger.opened(key)

        given: list[str] = []
        pool = KeyedPool(open_it, idle=0)

        async def other() -> None:
            async with pool.use("a") as value:
                given.append(value)
                await anyio.lowlevel.checkpoint()

        async with Scope() as scope:
            scope.add(pool)
            other_user = scope.defer(other)  # runs when the scope closes, out of reach of the cancellation
            async with pool.use("a"):
                await anyio.lowlevel.checkpoint()
                await other_user.aclose()
        assert given == ["a"]
        assert pool.size == 0

    report = await cancel_everywhere(program, ordered=False)
    assert report.total > 0


async def test_closing_the_pool_may_be_cancelled_at_every_point() -> None:
    """All is closed all the same: what is idle, in use, being opened, and closing already."""

    async def program(ledger: Ledger) -> None:
        async def open_it(key: str) -> Resource[str]:
            if key == "hangs":
                await anyio.sleep_forever()
            return Resource(ledger.opened(key), partial(close, key))

        async def close(key: str) -> None:
            await anyio.lowlevel.checkpoint()
            ledger.closed(key)

        async with anyio.create_task_group() as tasks, KeyedPool(open_it, limit=2) as pool:
            tasks.start_soon(outcome_of, partial(use, pool, "hangs"), [])
            for key in "abc":
                await use(pool, key)
            async with pool.use("c"):
                await pool.aclose()

    report = await cancel_everywhere(program, ordered=False)
    assert report.total > 0


# In circles, too late, interrupted


@pytest.mark.parametrize("kind", [Resource, Connection])
async def test_what_opens_when_the_pool_is_closed_is_closed_again(kind: type) -> None:
    """An opening that heeds no cancellation is left behind; what `open(key)` gives after that is not lost."""
    gate = anyio.Event()
    closed = anyio.Event()
    told: list[Any] = []

    async def stubborn(key: str) -> Any:
        await unheeding(gate)
        if kind is Resource:
            return Resource(key, closed.set)
        connection = Connection(key, [])
        connection.closed = closed
        return connection

    with anyio.fail_after(5):
        pool = KeyedPool(stubborn, grace=SHORT)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ResourceCleanupError, match="CloseTimeoutError"):
                await pool.aclose()
            gate.set()
            await closed.wait()

    assert [type(error) for error in told] == [ScopeClosedError]


async def test_what_opens_too_late_and_fails_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The pool is closed, and those who waited are gone: the log has it."""
    gate = anyio.Event()
    told: list[Any] = []

    async def stubborn(key: str) -> Resource[str]:
        await unheeding(gate)
        return Resource(key, partial(int, "no number"), name="late")

    with anyio.fail_after(5):
        pool = KeyedPool(stubborn, grace=SHORT)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ResourceCleanupError, match="CloseTimeoutError"):
                await pool.aclose()
            gate.set()
            await anyio.wait_all_tasks_blocked()

    assert "stubborn 1: 1 of 1 resources failed to close: late: ValueError" in caplog.text


@pytest.mark.parametrize("askers", [1, 3])
async def test_a_failing_open_leaves_no_circle(askers: int) -> None:
    """What its frames hold is gone with the exception, without the collector."""
    kept: list[weakref.ref[Connection]] = []
    told: list[Any] = []

    async def fail(scope: Scope, key: str) -> None:
        connection = Connection(key, [])
        kept.append(weakref.ref(connection))
        await anyio.lowlevel.checkpoint()
        raise Fault

    gc.collect()
    gc.disable()
    try:
        async with KeyedPool(fail) as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(askers):
                    tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            assert [type(error) for error in told] == [Fault] * askers
            told.clear()
            await anyio.wait_all_tasks_blocked()
            assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()


async def test_keys_that_need_each_other_are_refused_when_both_are_asked_for() -> None:
    """Two tasks ask, each for one of two that need each other: both are told, and neither waits for ever."""
    told: list[Any] = []

    async def circle(scope: Scope, key: str) -> str:
        await anyio.lowlevel.checkpoint()
        return await scope.host(pool.use("b" if key == "a" else "a"))

    with anyio.fail_after(5):
        async with KeyedPool(circle) as pool, anyio.create_task_group() as tasks:
            for key in "ab":
                tasks.start_soon(outcome_of, partial(use, pool, key), told)

    assert [type(error) for error in told] == [RuntimeError] * 2
    assert all(str(error).endswith("asks the pool for its own key: that would wait for itself") for error in told)


async def test_keys_that_share_what_they_need_are_no_circle() -> None:
    """`a` and `b` need `c` and each waits for it; `d` needs all three."""
    needs = {"a": "c", "b": "c", "d": "abc"}

    async def build(scope: Scope, key: str) -> str:
        await anyio.lowlevel.checkpoint()
        for other in needs.get(key, ""):
            await scope.host(pool.use(other))
        return key

    with anyio.fail_after(5):
        async with KeyedPool(build) as pool, users(pool, "a", "b", "d") as (given, _):
            await anyio.wait_all_tasks_blocked()
            assert sorted(given) == ["a", "b", "d"]
            assert pool.size == 4


async def test_a_check_that_asks_for_its_own_key_is_refused() -> None:
    """It is a mistake in `validate` and no verdict: who asked is told, and the value stays."""
    server = Server()

    async def check(connection: Connection) -> bool:
        await use(pool, connection.key)
        return True

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool:
            await use(pool, "a")
            with pytest.raises(RuntimeError, match=r"checking Server.open 1 asks the pool for its own key"):
                await use(pool, "a")

    assert server.asked["a"] == 1


async def test_a_check_that_nobody_waits_for_is_cancelled_while_the_value_is_in_use() -> None:
    """One that hangs does not keep the key from the next who asks until its user leaves."""
    server = Server()
    asked: list[str] = []

    async def check(connection: Connection) -> bool:
        asked.append("check")
        if len(asked) == 1:
            await anyio.sleep_forever()
        return True

    with anyio.fail_after(5):
        async with KeyedPool(server.open, validate=check) as pool, pool.use("a") as first:
            with anyio.move_on_after(SHORT):
                await use(pool, "a")
            assert await use(pool, "a") is first

    assert asked == ["check", "check"]


@on_asyncio
async def test_discard_may_be_called_from_a_callback_of_the_loop() -> None:
    """Clients tell of a lost connection so, where no task runs."""
    server = Server()
    with anyio.fail_after(5):
        async with KeyedPool(server.open) as pool:
            first = await use(pool, "a")
            asyncio.get_running_loop().call_soon(pool.discard, "a")
            await first.closed.wait()
            assert (pool.size, "a" in pool) == (0, False)
            assert await use(pool, "a") is server.made[1]


@pytest.mark.parametrize("idle", [1e-9, SHORT])
async def test_a_closer_may_close_the_pool_when_its_time_has_come(idle: float) -> None:
    """However short the time, it is the first step of a task then that closes the pool."""
    closed = anyio.Event()

    def open_now(scope: Scope, key: str) -> None:
        async def close() -> None:
            await pool.aclose()
            closed.set()

        scope.defer(close)

    with anyio.fail_after(5):
        async with KeyedPool(open_now, idle=idle) as pool:
            await use(pool, "a")
            await closed.wait()
            assert pool.state == "closed"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_of_an_opening_comes_out_of_the_close_that_cancels_it(kind: type[BaseException]) -> None:
    """What is no `Exception` is not lost where those who waited get a `ScopeClosedError`."""
    told: list[Any] = []

    async def interrupted(key: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise kind

    pool = KeyedPool(interrupted)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(kind):
            await pool.aclose()

    assert [type(error) for error in told] == [ScopeClosedError]
    assert pool.state == "closed"


async def test_an_interrupt_of_an_abandoned_opening_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is there to be told. An ordinary error is what came of the cancellation, and says nothing."""
    kinds: list[type[BaseException]] = [SystemExit, Fault]

    async def interrupted(key: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise kinds.pop(0)

    async with KeyedPool(interrupted, label=str) as pool:
        for key in "ab":
            with anyio.move_on_after(SHORT):
                await use(pool, key)
            await anyio.wait_all_tasks_blocked()

    assert [record.getMessage() for record in caplog.records] == ["opening a: SystemExit"]


async def test_an_opening_may_close_its_pool_when_that_is_closing() -> None:
    """The closing waits for it, so it does not wait for the closing."""
    told: list[Any] = []
    log: list[str] = []

    async def hang(key: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await pool.aclose()
            log.append(pool.state)

    with anyio.fail_after(5):
        pool = KeyedPool(hang)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, partial(use, pool, "a"), told)
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()

    assert log == ["closing"]
    assert [type(error) for error in told] == [ScopeClosedError]


async def test_a_key_whose_value_is_being_closed_is_not_in_the_pool() -> None:
    """Neither while the whole pool closes, nor where the scope of the value was closed."""
    gate = anyio.Event()
    scopes: list[Scope] = []

    def open_now(scope: Scope, key: str) -> None:
        scopes.append(scope)
        scope.defer(gate.wait)

    with anyio.fail_after(5):
        pool = KeyedPool(open_now)
        await use(pool, "a")
        await use(pool, "b")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scopes[0].aclose)
            await anyio.wait_all_tasks_blocked()
            assert ("a" in pool, "b" in pool) == (False, True)
            tasks.start_soon(pool.aclose)
            await anyio.wait_all_tasks_blocked()
            assert "b" not in pool
            gate.set()


# Bad input, looking


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"limit": 0}, ValueError, "`limit` must be at least 1, got 0: to keep none that is not in use, use `idle=0`"),
        ({"limit": 1.5}, TypeError, "`limit` must be a whole number or None, not a float"),
        ({"limit": True}, TypeError, "`limit` must be a whole number or None, not a bool"),
        ({"idle": -1}, ValueError, "`idle` must not be negative or NaN"),
        ({"idle": math.nan}, ValueError, "`idle` must not be negative or NaN"),
        ({"idle": "300"}, TypeError, "`idle` must be a number of seconds or None, not a str"),
        ({"grace": -1}, ValueError, "`grace` must not be negative or NaN"),
        ({"validate": True}, TypeError, "`validate` must be callable, not a bool"),
        ({"label": "name"}, TypeError, "`label` must be callable, not a str"),
        ({"on_event": 1}, TypeError, "`on_event` must be callable"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Each at the construction, with the mend."""
    with pytest.raises(kind, match=message):
        KeyedPool(opens_with_default, **options)


def three(scope: Scope, key: str, more: str) -> None: ...


def none() -> None: ...


def keyword(key: str, *, tls: bool) -> None: ...


async def undecorated(key: str) -> AsyncIterator[str]:
    yield key


@pytest.mark.parametrize(
    ("open_it", "message"),
    [
        ("postgres://", "`open` must be callable, not a str"),
        (three, r"three can't be called as `open\(key\)` or `open\(scope, key\)`"),
        (none, r"none can't be called as `open\(key\)`"),
        (keyword, r"keyword can't be called as `open\(key\)`"),
        (undecorated, "undecorated is a generator function: decorate it with `contextlib.asynccontextmanager`"),
    ],
)
def test_an_open_that_cannot_be_called_is_refused(open_it: Any, message: str) -> None:
    """At the construction, with the mend."""
    with pytest.raises(TypeError, match=message):
        KeyedPool(open_it)


async def test_a_coroutine_in_place_of_open_is_refused() -> None:
    """`KeyedPool(open("a"))` is told to pass the function itself."""

    async def connect(key: str) -> str:
        return key

    with pytest.raises(TypeError, match=r"`open` got the coroutine .*connect\(\): pass the function itself"):
        KeyedPool(connect("a"))  # type: ignore[call-overload]


async def test_a_key_that_is_not_hashable_is_refused_at_the_call() -> None:
    """The error names its type, and not what it holds."""
    async with KeyedPool(opens_with_default) as pool:
        with pytest.raises(TypeError, match=r"^a key must be hashable, and a list is not$"):
            pool.use(["pass-word"])  # type: ignore[arg-type]


async def test_a_label_that_gives_no_text_is_refused() -> None:
    """The error names the option, and nothing is opened."""
    async with KeyedPool(opens_with_default, label=len) as pool:  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="`label` must give a string, not a int"):
            await use(pool, "a")
        assert pool.size == 0


async def test_a_pool_shows_how_it_is() -> None:
    """Its `repr` tells what it opens with, its state, and how many are live and in use; and it is always true."""
    async with KeyedPool(opens_with_default) as pool:
        assert bool(pool)
        await use(pool, "b")
        async with pool.use("a"):
            assert repr(pool) == "<KeyedPool of opens_with_default open, holds 2, 1 in use>"
    assert repr(pool) == "<KeyedPool of opens_with_default closed, holds 0, 0 in use>"


async def test_a_pool_tells_what_happens() -> None:
    """`on_event` is told of the pool's scope and of each key's, by its label."""
    events: list[ScopeEvent] = []
    async with KeyedPool(opens_with_default, label=str.upper, on_event=events.append) as pool:
        await use(pool, "a")

    assert [(event.kind, event.path[1:], event.resource) for event in events] == [
        ("opened", (), None),
        ("opened", ("A",), None),
        ("acquired", (), "A"),
        ("acquired", ("A",), "str"),
        ("closing", (), "sweeping"),
        ("closing", (), "A"),
        ("closing", ("A",), "str"),
        ("closed", ("A",), "str"),
        ("scope_closed", ("A",), None),
        ("closed", (), "A"),
        ("closed", (), "sweeping"),
        ("scope_closed", (), None),
    ] or [event.resource for event in events].count("sweeping") == 3


async def test_a_closer_that_returns_an_err_has_failed() -> None:
    """The rules for closers are those of a scope."""
    async with KeyedPool(lambda key: Resource(key, lambda: Err("no")), idle=None) as pool:
        await use(pool, "a")
        with pytest.raises(ResourceCleanupError, match="CloseRejectedError"):
            await pool.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example_runs(backend: str) -> None:
    """The program runs as it is, on both backends, and its claims hold."""
    if backend == "trio":
        pytest.importorskip("trio")
    result = subprocess.run(  # noqa: S603 (our own example, run by our own interpreter)
        [sys.executable, "-W", "error", str(EXAMPLE), "--backend", backend],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )

    assert result.stderr == ""
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "every database is closed, and nothing was lost"
