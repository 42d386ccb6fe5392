"""`lease`: who holds it, for how long, and what becomes of the body when it is lost."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from conftest import ASYNCIO_ONLY
from rescope import ResourceCleanupError, Scope, WrongTaskError
from rescope.events import ScopeEvent
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import Entry, MemoryStore, SqliteStore, Store, StoreClosedError, StoreError, VersionConflictError
from rescope.workflow.lease import Lease, LeaseHeldError, LeaseLostError, lease

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "lease.py"
KEY = "lease/orders"
TTL = 0.06  # renewals come after a third of it, in real time, on whatever clock it expires by
LONG = 60.0

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)


class Fault(Exception):
    """An error of our own."""


class Clock:
    """A clock for the store and the holder, which stands still unless it is turned."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FaultyStore:
    """A store whose operations go wrong on cue.

    `cues` says what becomes of the next operation of a name, the one after it, and so on; `then` of all after those:
    `"fail"`, `"lost"` (it is done, and the answer is lost), `"hang"`, `"done, hang"`, `"stuck"` (hangs, and no
    cancellation gets it out), or an exception to raise.
    """

    def __init__(self, inner: Store | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.inner: Store = MemoryStore(clock=clock) if inner is None else inner
        self.cues: dict[str, list[Any]] = {"get": [], "put": [], "delete": []}
        self.then: dict[str, Any] = {}
        self.every: list[Any] = []
        self.before: dict[str, Callable[[], Awaitable[object]]] = {}
        self.after: dict[str, Callable[[], Awaitable[object]]] = {}
        self.calls: list[str] = []
        self.renewed = anyio.Event()
        self.tried = anyio.Event()
        self.unstick = anyio.Event()
        self.ledger: Ledger | None = None

    def renews_at_once(self, clock: Clock, ttl: float) -> None:
        """Let the next renewal always be due: a put takes as long, by the clock."""

        async def pass_time() -> None:
            clock.now += ttl / 3

        self.after["put"] = pass_time

    async def get(self, key: str) -> Entry | None:
        return await self._do("get", lambda: self.inner.get(key))

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        async def put() -> int:
            version = await self.inner.put(key, value, ttl=ttl, if_version=if_version)
            if self.ledger is not None and not if_version:
                self.ledger.opened(key)
            return version

        version = await self._do("put", put)
        if if_version:
            self.renewed.set()
        return version

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        async def delete() -> bool:
            there = await self.inner.delete(key, if_version=if_version)
            if self.ledger is not None and there:
                self.ledger.closed(key)
            return there

        return await self._do("delete", delete)

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        return self.inner.scan(prefix)

    def _cue(self, name: str) -> Any:
        self.calls.append(name)
        if self.calls.count("put") > 1:
            self.tried.set()
        if self.every:
            return self.every.pop(0)
        return self.cues[name].pop(0) if self.cues[name] else self.then.get(name)

    async def _do(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        cue = self._cue(name)
        if isinstance(cue, BaseException):
            raise cue
        if cue == "fail":
            raise StoreError("no answer", may_retry=True)
        if cue == "hang":
            await anyio.sleep_forever()
        if cue == "stuck":
            with anyio.CancelScope(shield=True):
                await self.unstick.wait()
        await self.before.get(name, anyio.lowlevel.checkpoint)()
        answer = await act()
        await self.after.get(name, anyio.lowlevel.checkpoint)()
        if cue == "lost":
            raise StoreError("the connection was cut")
        if cue == "done, hang":
            await anyio.sleep_forever()
        return answer


class PromptStore(FaultyStore):
    """One that can be cut off soon, as that on Valkey: a lease of it is mostly released in the task of the block."""

    _soon_cut_off = True


async def holder_of(store: Store, key: str = KEY) -> str | None:
    entry = await store.get(key)
    return None if entry is None else entry.value["holder"]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def on_a_virtual_clock(main: Callable[[], Awaitable[None]]) -> None:
    clock = pytest.importorskip("trio.testing").MockClock(autojump_threshold=0)
    pytest.importorskip("trio").run(main, clock=clock)


# What is asked for


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"store": MemoryStore}, TypeError, "`store` must be a store, as `MemoryStore()`, not the class MemoryStore"),
        ({"store": {}}, TypeError, "`store` must be a store, as `MemoryStore()`, not a dict"),
        ({"name": 5}, TypeError, "`name` must be a string, not a int"),
        ({"name": None}, TypeError, "`name` must be a string, not a NoneType"),
        ({"name": ""}, ValueError, "`name` must not be empty"),
        ({"name": "a\nb"}, ValueError, "a key must not hold control characters"),
        ({"name": "x" * 600}, ValueError, "a key must be at most 512 bytes"),
        ({"holder": ""}, ValueError, "`holder` must not be empty"),
        ({"holder": 7}, TypeError, "`holder` must be a string, not a int"),
        ({"ttl": None}, TypeError, "`ttl` must be a number of seconds: a lock that never expires"),
        ({"ttl": "5"}, TypeError, "`ttl` must be a number of seconds"),
        ({"ttl": 0}, ValueError, "`ttl` must be more than 0"),
        ({"ttl": -1}, ValueError, "`ttl` must be more than 0"),
        ({"ttl": math.nan}, ValueError, "`ttl` must be more than 0"),
        ({"ttl": math.inf}, ValueError, "`ttl` must be more than 0 and at most"),
        ({"wait": -1}, ValueError, "`wait` must not be negative or NaN, got -1"),
        ({"wait": math.nan}, ValueError, "`wait` must not be negative or NaN"),
        ({"wait": True}, TypeError, "`wait` must be a number of seconds, not a bool"),
        ({"wait": None}, TypeError, "`wait` must be a number of seconds, not a NoneType: `math.inf` waits for ever"),
    ],
)
def test_bad_input_is_refused_at_the_call(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """What no lease can be made of is refused where it is given, and the message tells the mend."""
    given: dict[str, Any] = {"store": MemoryStore(), "name": "orders", "ttl": 5} | change
    with pytest.raises(error, match=re.escape(message)):
        lease(given.pop("store"), given.pop("name"), **given)


async def test_it_is_held_while_the_block_runs() -> None:
    """The entry stands in the store as long as the block runs, and is gone after it."""
    store = MemoryStore()
    async with lease(store, "orders", ttl=LONG, holder="me") as held:
        entry = await store.get(KEY)
        assert entry is not None
        assert (held.name, held.token, held.holder, held.lost) == ("orders", entry.version, "me", None)
        assert entry.value["holder"] == "me"
        assert entry.expires_at is not None
        assert 0 < held.remaining <= LONG
        assert abs(held.expires_at - entry.expires_at) < 5
    assert await store.get(KEY) is None
    assert (held.remaining, held.lost, held.release_error) == (0, None, None)


async def test_an_uncontended_lease_costs_two_calls() -> None:
    """Taking it is one call to the store, and releasing it is another."""
    store = FaultyStore()
    async with lease(store, "orders", ttl=LONG):
        assert store.calls == ["put"]
    assert store.calls == ["put", "delete"]


async def test_who_holds_it_is_told() -> None:
    """By default a holder is called after its host and process, and who is refused learns that name."""
    store = MemoryStore()
    async with lease(store, "orders", ttl=LONG) as held:
        with pytest.raises(LeaseHeldError) as caught:
            async with lease(store, "orders", ttl=LONG):
                raise AssertionError
        entry = await store.get(KEY)
    assert entry is not None
    assert re.fullmatch(rf".+:{os.getpid()}:[0-9a-f]{{4}}", held.holder)
    assert (caught.value.name, caught.value.holder, caught.value.until) == ("orders", held.holder, entry.expires_at)
    assert str(caught.value).startswith(f"lease 'orders' is held by {held.holder} until 2")
    assert str(caught.value).endswith("; to wait for it, use `wait=`")


async def test_what_others_write_there_is_no_reason_to_fail_otherwise() -> None:
    """An entry that no lease wrote is somebody's all the same."""
    store = MemoryStore()
    for value in ("x", {"holder": 5}):
        await store.put(KEY, value)
        with pytest.raises(LeaseHeldError, match=r"^lease 'orders' is held by somebody else; to wait") as caught:
            async with lease(store, "orders", ttl=LONG):
                raise AssertionError
        assert (caught.value.holder, caught.value.until) == (None, None)


async def test_one_that_slips_away_again_and_again_is_held_by_somebody() -> None:
    """Where others take it and let it go between all looks, nobody can be named."""
    store = FaultyStore()
    store.then["put"] = VersionConflictError(KEY, 0, 5)
    with pytest.raises(LeaseHeldError, match="held by somebody else"):
        async with lease(store, "orders", ttl=LONG):
            raise AssertionError
    assert store.calls.count("put") > 2


def test_it_fails_fast() -> None:
    """A few tries, the later the rarer, in half a second; then it is given up."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        async with lease(store, "orders", ttl=LONG, clock=anyio.current_time):
            start = anyio.current_time()
            with pytest.raises(LeaseHeldError):
                async with lease(store, "orders", ttl=LONG, clock=anyio.current_time):
                    raise AssertionError
            times.append(anyio.current_time() - start)
        assert 4 <= store.calls.count("get") <= 12

    on_a_virtual_clock(main)
    assert times == [pytest.approx(0.5)]


def test_it_waits_as_long_as_it_is_told() -> None:
    """With `wait`, it is given up after that time."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        async with lease(store, "orders", ttl=LONG, clock=anyio.current_time):
            start = anyio.current_time()
            with pytest.raises(LeaseHeldError):
                async with lease(store, "orders", ttl=LONG, wait=1000, clock=anyio.current_time):
                    raise AssertionError
            times.append(anyio.current_time() - start)
        assert 1000 <= store.calls.count("get") <= 2100

    on_a_virtual_clock(main)
    assert times == [pytest.approx(1000)]


async def test_who_waits_gets_it_when_it_is_released() -> None:
    """`wait=math.inf` waits until the holder lets go, and gets a larger token."""
    store = FaultyStore()
    tokens: list[int] = []

    async def wait() -> None:
        async with lease(store, "orders", ttl=LONG, wait=math.inf) as held:
            tokens.append(held.token)

    async with anyio.create_task_group() as tasks, lease(store, "orders", ttl=LONG) as held:
        tokens.append(held.token)
        tasks.start_soon(wait)
        await store.tried.wait()
    assert tokens[0] < tokens[1]


# Tokens


async def test_tokens_only_grow() -> None:
    """A token is larger than all before it: after a release, an expiry, a deletion, whatever else is in the store."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    tokens: list[int] = []
    for how in ("released", "expired", "deleted", "released"):
        async with lease(store, "orders", ttl=10, clock=clock) as held:
            tokens.append(held.token)
            async with lease(store, "other", ttl=10, clock=clock):
                pass
            if how == "expired":
                clock.now += 11
            elif how == "deleted":
                await store.delete(KEY)
    assert tokens == sorted(set(tokens))


async def test_a_renewal_keeps_the_token() -> None:
    """A renewal writes a new version, for as long again, and the token stays."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    async with lease(store, "orders", ttl=TTL, clock=clock) as held:
        token = held.token
        clock.now += TTL / 2
        await store.renewed.wait()
        await anyio.wait_all_tasks_blocked()
        entry = await store.get(KEY)
        assert entry is not None
        assert entry.version > held.token == token
        assert held.remaining == pytest.approx(TTL, abs=1e-6)
        assert entry.expires_at == pytest.approx(clock.now + TTL, abs=1e-6)
    assert await store.get(KEY) is None


async def test_a_stale_lease_is_taken_over() -> None:
    """What a dead holder left is taken once its time is over, with a larger token."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    version = await store.put(KEY, {"holder": "the dead", "mark": "x"}, ttl=10)
    with pytest.raises(LeaseHeldError, match="held by the dead"):
        async with lease(store, "orders", ttl=10):
            raise AssertionError
    clock.now += 10
    async with lease(store, "orders", ttl=10) as held:
        assert held.token > version


# How it is lost


@pytest.mark.parametrize("how", ["deleted", "taken"])
async def test_what_is_lost_cancels_the_body(how: str) -> None:
    """A renewal that finds the entry gone, or another's, cancels the body and raises `LeaseLostError`."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    cancelled = []
    with pytest.raises(LeaseLostError) as caught:
        async with lease(store, "orders", ttl=TTL, clock=clock) as held:
            await store.delete(KEY)
            if how == "taken":
                await store.put(KEY, {"holder": "another", "mark": "x"}, ttl=10)
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled.append(True)
                raise
    reason = {"deleted": "its entry is gone from the store", "taken": "another holds it now"}[how]
    assert cancelled == [True]
    assert str(caught.value) == f"lease 'orders' (token {held.token}) is lost: {reason}"
    assert caught.value.__cause__ is None
    assert held.lost is not None
    assert held.lost.args == caught.value.args == ("orders", held.token, reason)
    assert (held.remaining, held.release_error) == (0, None)
    assert await holder_of(store) == {"deleted": None, "taken": "another"}[how]


@pytest.mark.parametrize("cue", ["fail", "hang", ConnectionError("secret")])
def test_a_holder_believes_for_its_ttl_from_before_the_last_success_was_sent(cue: Any) -> None:
    """A store that fails or hangs is tried again; the body is cancelled when the time is over, to the tick."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        store.after["put"] = lambda: anyio.sleep(2)  # the answer is on its way
        start = anyio.current_time()
        with pytest.raises(LeaseLostError) as caught:
            async with lease(store, "orders", ttl=30, clock=anyio.current_time):
                store.cues["put"] = [None]  # one renewal, sent after 10 s
                store.then["put"] = cue
                try:
                    await anyio.sleep_forever()
                finally:
                    times.append(anyio.current_time() - start)
        kind = "ConnectionError" if isinstance(cue, ConnectionError) else "StoreError"
        assert caught.value.reason == f"its time ran out, and renewing it had failed ({kind})"
        assert type(caught.value.__cause__).__name__ == kind
        assert "secret" not in str(caught.value)
        tries = store.calls.count("put") - 2
        assert tries >= (7 if cue != "hang" else 2)

    on_a_virtual_clock(main)
    assert times == [pytest.approx(40)]


def test_a_renewal_is_due_after_a_third() -> None:
    """Renewals are sent each third of the ttl."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)

        async def note() -> None:
            times.append(anyio.current_time() - start)
            await anyio.sleep(1)

        store.before["put"] = note
        start = anyio.current_time()
        async with lease(store, "orders", ttl=30, clock=anyio.current_time):
            await anyio.sleep(45)

    on_a_virtual_clock(main)
    assert times == [pytest.approx(due) for due in (0, 10, 20, 30, 40)]


async def test_a_store_that_is_stuck_does_not_keep_the_loss_from_being_noticed() -> None:
    """A call that no cancellation gets out of (a thread) holds up neither the watch nor, for long, the end."""
    store = FaultyStore()
    store.cues["put"] = [None, "stuck"]
    with anyio.fail_after(10):
        with pytest.raises(LeaseLostError, match="its time ran out"):
            async with lease(store, "orders", ttl=TTL) as held:
                await anyio.sleep_forever()
        assert isinstance(held.release_error, ResourceCleanupError)
        store.unstick.set()
        await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("cue", ["fail", "lost", "hang", "done, hang", Fault()])
async def test_one_failure_to_renew_is_no_loss(cue: Any) -> None:
    """What failed, hung, or was done without an answer, is done again, and the token stays."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    store.cues["put"] = [None, cue]
    store.cues["get"] = ["fail"]
    with anyio.fail_after(10):
        async with lease(store, "orders", ttl=TTL, clock=clock) as held:
            token = held.token
            await store.renewed.wait()
            await anyio.wait_all_tasks_blocked()
            held.check()
    assert (held.token, held.lost, held.release_error) == (token, None, None)
    assert await store.get(KEY) is None


async def test_a_success_that_was_sent_too_early_is_none() -> None:
    """An answer that comes when the time is over, counted from when it was sent, does not bring the lease back."""
    clock = Clock()
    store = FaultyStore(clock=clock)

    async def stop() -> None:
        clock.now += 1  # the process was stopped

    with pytest.raises(LeaseLostError, match="its time ran out"):
        async with lease(store, "orders", ttl=TTL, clock=clock):
            store.after["put"] = stop
            await anyio.sleep_forever()
    assert await store.get(KEY) is None


def test_a_body_that_keeps_the_loop_waiting_from_the_start_hears_of_the_loss_soon() -> None:
    """The time to the first renewal runs from the grant, also where nothing else has had its turn since."""
    clock = pytest.importorskip("trio.testing").MockClock()
    turns: list[int] = []

    async def main() -> None:
        store = MemoryStore(clock=anyio.current_time)
        with pytest.raises(LeaseLostError, match="its time ran out"):
            async with lease(store, "orders", ttl=30, clock=anyio.current_time):
                clock.jump(31)  # as if it did something that takes so long, and never awaits
                for turn in range(10):
                    await anyio.lowlevel.checkpoint()
                    turns.append(turn)
                raise AssertionError

    pytest.importorskip("trio").run(main, clock=clock)
    assert len(turns) < 10


# What comes out


async def test_the_bodys_own_exception_is_the_cause_of_the_loss() -> None:
    """A body that raises when it is cancelled has its exception told with the loss."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    with pytest.raises(LeaseLostError) as caught:
        async with lease(store, "orders", ttl=TTL, clock=clock):
            await store.delete(KEY)
            try:
                await anyio.sleep_forever()
            finally:
                raise Fault
    assert isinstance(caught.value.__cause__, Fault)


async def test_a_body_that_ends_well_after_the_loss_was_noticed_hears_of_it() -> None:
    """A body that a shield keeps from being cancelled, and that returns, raises `LeaseLostError` all the same."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    with pytest.raises(LeaseLostError):
        async with lease(store, "orders", ttl=TTL, clock=clock) as held:
            await store.delete(KEY)
            with anyio.CancelScope(shield=True):
                await until(lambda: held.lost)


async def until(look: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not look():  # noqa: ASYNC110 (nobody tells)
            await anyio.sleep(0.001)


@pytest.mark.parametrize("error", [None, Fault])
async def test_a_body_that_ends_before_the_loss_is_noticed_keeps_its_outcome(
    error: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its value or its exception stands; the loss is told in the log, in `lost`, and as a note."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    raised = None
    try:
        async with lease(store, "orders", ttl=10, clock=clock) as held:
            clock.now += 10
            if error is not None:
                raise error
    except Fault as exc:
        raised = exc
    message = f"lease 'orders' (token {held.token}) is lost: its time ran out"
    assert (str(held.lost), warnings_in(caplog)) == (message, [message])
    assert getattr(raised, "__notes__", None) == (None if error is None else [f"rescope: {message}"])


@pytest.mark.parametrize("how", ["deleted", "taken"])
async def test_a_loss_that_only_the_release_finds_is_told(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Release by one who holds it no longer does nothing to the new holder, and is told."""
    store = MemoryStore()
    async with lease(store, "orders", ttl=LONG) as held:
        await store.delete(KEY)
        if how == "taken":
            await store.put(KEY, {"holder": "another", "mark": "x"}, ttl=10)
    assert await holder_of(store) == {"deleted": None, "taken": "another"}[how]
    assert held.lost is not None
    assert held.release_error is None
    assert warnings_in(caplog) == [str(held.lost)]


async def test_a_cancellation_that_comes_with_the_loss_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    """A cancellation from outside is never replaced; the loss is noted on it and logged."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    notes: list[str] = []
    with anyio.CancelScope() as outer:
        try:
            async with lease(store, "orders", ttl=TTL, clock=clock) as held:
                await store.delete(KEY)
                with anyio.CancelScope(shield=True):
                    await until(lambda: held.lost)
                outer.cancel()
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as exc:
            notes = exc.__notes__
            raise
    assert outer.cancelled_caught
    assert notes == [f"rescope: {held.lost}"]
    assert warnings_in(caplog) == [str(held.lost)]


@on_asyncio
@pytest.mark.usefixtures("anyio_backend")
async def test_a_task_that_is_cancelled_together_with_the_loss_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """`task.cancel()` together with the loss: the cancellation comes out, and is counted once."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    leases: list[Lease] = []

    async def work() -> None:
        async with lease(store, "orders", ttl=TTL, clock=clock) as held:
            leases.append(held)
            await store.delete(KEY)
            with anyio.CancelScope(shield=True):
                await until(lambda: held.lost)
            task.cancel()
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1
    assert warnings_in(caplog) == [str(leases[0].lost)]


async def test_an_interrupt_is_never_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """`SystemExit` from a body whose lease was lost comes out, with a note."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    with pytest.raises(SystemExit) as caught:
        async with lease(store, "orders", ttl=TTL, clock=clock) as held:
            await store.delete(KEY)
            with anyio.CancelScope(shield=True):
                await until(lambda: held.lost)
            raise SystemExit(5)
    assert caught.value.__notes__ == [f"rescope: {held.lost}"]
    assert warnings_in(caplog) == [str(held.lost)]


async def test_a_failing_part_of_the_body_is_told_with_the_loss() -> None:
    """A task group in the body, one of whose children fails when it is cancelled: its group is the cause."""
    clock = Clock()
    store = FaultyStore(clock=clock)

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Fault

    with pytest.raises(LeaseLostError) as caught:
        async with lease(store, "orders", ttl=TTL, clock=clock):
            await store.delete(KEY)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                await anyio.sleep_forever()
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(exc) for exc in cause.exceptions] == [Fault]


async def test_without_a_loss_the_body_raises_what_it_raises() -> None:
    """The exception of a body comes out as it is, with its cause and context, and the lease is released."""
    store = MemoryStore()
    error, cause = Fault(), ValueError()
    with pytest.raises(Fault) as caught:
        async with lease(store, "orders", ttl=LONG):
            raise error from cause
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, None)
    assert await store.get(KEY) is None


# Releasing


@pytest.mark.parametrize("cue", ["fail", "lost", "hang", "stuck", Fault("secret")])
@pytest.mark.parametrize("error", [None, Fault])
async def test_a_failing_release_is_reported_and_never_raised(
    cue: Any, error: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The body's outcome stands, and the lease says why it was left to expire."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    store.cues["delete"] = [cue]
    raised = None
    with anyio.fail_after(10):
        try:
            async with lease(store, "orders", ttl=0.3, clock=clock) as held:
                if error is not None:
                    raise error
        except Fault as exc:
            raised = exc
    assert type(raised) is (type(None) if error is None else error)
    assert held.lost is None
    assert isinstance(held.release_error, ResourceCleanupError)
    assert [failure.name for failure in held.release_error.failures] == ["release"]
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"lease 'orders' (token {held.token}) is left to expire: 1 of 1 resources")
    store.unstick.set()
    await anyio.wait_all_tasks_blocked()
    clock.now += 1
    async with lease(store, "orders", ttl=10, clock=clock) as again:
        assert again.token > held.token


@pytest.mark.parametrize("cue", [None, "fail", "lost", "hang", Fault("secret")])
async def test_what_fails_in_the_task_of_the_block_is_done_once_more(
    cue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the first release fails, a second one takes the entry away, and nothing is told."""
    clock = Clock()
    store = PromptStore(clock=clock)
    store.cues["delete"] = [cue]
    with anyio.fail_after(10):
        async with lease(store, "orders", ttl=LONG, clock=clock) as held:
            pass
    assert await holder_of(store) is None
    assert (held.lost, held.release_error, warnings_in(caplog)) == (None, None, [])


async def test_what_goes_on_failing_in_the_task_of_the_block_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The block's outcome stands, and the lease says why it was left to expire."""
    clock = Clock()
    store = PromptStore(clock=clock)
    store.then["delete"] = "fail"
    async with lease(store, "orders", ttl=LONG, clock=clock) as held:
        pass
    assert isinstance(held.release_error, ResourceCleanupError)
    assert warnings_in(caplog) == [f"lease 'orders' (token 1) is left to expire: {held.release_error.message}"]


@pytest.mark.parametrize("cue", [None, "hang"])
async def test_a_cancellation_of_the_release_in_the_task_of_the_block_comes_out(cue: str | None) -> None:
    """It comes out, as it would from any closer, when the entry is gone."""
    clock = Clock()
    store = PromptStore(clock=clock)
    store.cues["delete"] = [cue]

    async def cancel() -> None:
        outer.cancel()
        await anyio.lowlevel.checkpoint()

    after = False
    with anyio.CancelScope() as outer:
        store.before["delete"] = cancel
        if cue == "hang":
            outer.deadline = anyio.current_time() + 0.05
        async with lease(store, "orders", ttl=LONG, clock=clock):
            pass
        after = True
    assert outer.cancelled_caught
    assert not after
    assert await holder_of(store) is None


async def test_a_renewal_that_the_end_cuts_off_is_released_too() -> None:
    """A body that ends while a renewal is done and not yet answered leaves nothing."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    store.cues["put"] = [None, "done, hang"]
    store.renews_at_once(clock, LONG)
    async with lease(store, "orders", ttl=LONG, clock=clock) as held:
        await store.tried.wait()
        await anyio.wait_all_tasks_blocked()
    assert await store.get(KEY) is None
    assert (held.lost, held.release_error) == (None, None)


async def test_a_late_renewal_does_not_escape_the_release() -> None:
    """One that is done between the look and the delete is found by the next look."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    late = []

    async def renew() -> None:
        if not late:
            entry = await store.inner.get(KEY)
            assert entry is not None
            late.append(await store.inner.put(KEY, entry.value, ttl=10, if_version=entry.version))

    store.cues["put"] = [None, "done, hang"]
    store.before["delete"] = renew
    store.renews_at_once(clock, LONG)
    async with lease(store, "orders", ttl=LONG, clock=clock):
        await store.tried.wait()
        await anyio.wait_all_tasks_blocked()
    assert store.calls[-4:] == ["get", "delete", "get", "delete"]
    assert await store.get(KEY) is None


async def test_what_is_over_is_not_released() -> None:
    """After its time nothing more is asked of the store: another may hold it."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    async with lease(store, "orders", ttl=10, clock=clock):
        clock.now += 10
    assert store.calls == ["put"]


async def test_a_release_that_is_cut_off_by_a_cancellation_ends_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A cancellation while it is being released waits for that, comes out, and carries what went wrong."""
    clock = Clock()
    store = FaultyStore()
    notes: list[str] = []

    async def cancel() -> None:
        outer.cancel()
        await anyio.lowlevel.checkpoint()

    store.before["delete"] = cancel
    with anyio.CancelScope() as outer:
        try:
            async with lease(store, "orders", ttl=10, clock=clock) as held:
                await store.inner.put(KEY, {"holder": "another", "mark": "x"})
        except anyio.get_cancelled_exc_class() as exc:
            notes = exc.__notes__
            raise
    assert outer.cancelled_caught
    assert notes == [f"rescope: {held.lost}"]
    assert warnings_in(caplog) == [str(held.lost)]


@pytest.mark.parametrize("raised", [None, Fault])
async def test_a_release_that_fails_as_it_is_cancelled_is_told(raised: type[Exception] | None) -> None:
    """The cancellation or the body's exception comes out, and `release_error` has what went wrong."""
    store = FaultyStore()
    failure = Fault("the disk is full")

    async def cancel() -> None:
        outer.cancel()
        await anyio.lowlevel.checkpoint()

    async def fail() -> None:
        raise failure

    store.before["delete"], store.after["delete"] = cancel, fail
    with anyio.CancelScope() as outer, suppress(Fault):
        async with lease(store, "orders", ttl=LONG) as held:
            if raised is not None:
                raise raised
    assert outer.cancelled_caught is (raised is None)
    told = held.release_error
    assert told is failure or (isinstance(told, ResourceCleanupError) and told.errors == (failure,))


def test_a_release_that_hangs_as_it_is_cancelled_is_told() -> None:
    """It has its 5 seconds; then the cancellation comes out, and `release_error` says that there was no answer."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        store.then["delete"] = "hang"
        with anyio.CancelScope() as outer:
            async with lease(store, "orders", ttl=30, clock=anyio.current_time) as held:
                start = anyio.current_time()
                outer.deadline = start + 1
                times.append(start)
        assert outer.cancelled_caught
        assert str(held.release_error) == "the store did not answer within 5 s"
        times.append(anyio.current_time())

    logging.disable(logging.ERROR)
    try:
        on_a_virtual_clock(main)
    finally:
        logging.disable(logging.NOTSET)
    assert times[1] - times[0] == pytest.approx(5, abs=0.2)


# Asking


@pytest.mark.parametrize("cue", ["fail", "lost"])
async def test_a_store_that_fails_is_asked_again(cue: str) -> None:
    """One failure, or one lost answer, doesn't keep it from being granted."""
    store = FaultyStore()
    store.cues["put"] = [cue]
    async with lease(store, "orders", ttl=LONG) as held:
        entry = await store.get(KEY)
        assert entry is not None
        assert entry.version == held.token
    assert await store.get(KEY) is None


async def test_a_store_that_goes_on_failing_is_told() -> None:
    """After the quick tries, what the store raised comes out."""
    store = FaultyStore()
    store.then["put"] = "fail"
    with pytest.raises(StoreError, match="no answer"):
        async with lease(store, "orders", ttl=LONG):
            raise AssertionError
    assert store.calls.count("put") > 2


async def test_answers_that_are_lost_leave_nothing() -> None:
    """Where each answer is lost, the error comes out, and what was granted is released."""
    store = FaultyStore()
    store.then["put"] = "lost"
    with pytest.raises(StoreError, match="cut"):
        async with lease(store, "orders", ttl=LONG):
            raise AssertionError
    assert await store.get(KEY) is None


@pytest.mark.parametrize("error", [StoreClosedError("closed"), Fault()])
async def test_what_no_new_try_can_mend_is_told_at_once(error: Exception) -> None:
    """A store that is closed, or raises what is no `StoreError`, is asked once."""
    store = FaultyStore()
    store.cues["put"] = [error]
    store.cues["get"] = [error]
    with pytest.raises(type(error)) as caught:
        async with lease(store, "orders", ttl=LONG):
            raise AssertionError
    assert caught.value is error
    assert store.calls == ["put", "get"]


@pytest.mark.parametrize("cue", ["hang", "done, hang"])
def test_a_store_that_hangs_when_it_is_asked(cue: str) -> None:
    """It has a third of the ttl to answer; then a `StoreError` comes out, and nothing is held."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        store.then["put"] = cue
        start = anyio.current_time()
        with pytest.raises(StoreError, match=r"the store did not answer within 10 s$") as caught:
            async with lease(store, "orders", ttl=30, wait=math.inf, clock=anyio.current_time):
                raise AssertionError
        times.append(anyio.current_time() - start)
        assert caught.value.may_retry
        assert await store.get(KEY) is None

    on_a_virtual_clock(main)
    assert times == [pytest.approx(10)]


async def test_a_store_that_can_not_be_cut_off_and_answers_too_late() -> None:
    """What is granted too late is not held: it is released, and a `StoreError` comes out."""
    store = FaultyStore()

    async def take_long() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.6)

    store.after["put"] = take_long
    with pytest.raises(StoreError, match=r"did not answer within 0\.5 s"):
        async with lease(store, "orders", ttl=1):
            raise AssertionError
    assert await store.get(KEY) is None


def test_who_waits_long_hears_soon_of_a_store_that_fails() -> None:
    """A store may fail for half a second; then who waits for ever is told, and not before."""
    times: list[float] = []

    async def main() -> None:
        store = FaultyStore(clock=anyio.current_time)
        await store.put(KEY, {"holder": "another", "mark": "x"}, ttl=100)
        store.cues["get"] = [*[None] * 50, "fail", None]
        store.then["get"] = "fail"
        start = anyio.current_time()
        with pytest.raises(StoreError, match="no answer"):
            async with lease(store, "orders", ttl=LONG, wait=math.inf, clock=anyio.current_time):
                raise AssertionError
        assert store.calls.count("get") >= 53
        times.append(anyio.current_time() - start)

    on_a_virtual_clock(main)
    assert 25 < times[0] < 55


async def test_an_answer_that_comes_when_the_time_is_over_grants_nothing() -> None:
    """A process that was stopped between asking and the answer asks again: no block begins without the lease."""
    clock = Clock()
    store = FaultyStore(clock=clock)

    async def stop() -> None:
        clock.now += 10
        del store.after["put"]

    store.after["put"] = stop
    async with lease(store, "orders", ttl=10, wait=100, clock=clock) as held:
        held.check()
        entry = await store.inner.get(KEY)
        assert entry is not None
        assert entry.version == held.token
    assert store.calls == ["put", "get", "put", "delete"]


async def test_a_store_that_always_answers_when_the_time_is_over_is_told() -> None:
    """A ttl that is shorter than the store takes to answer is an error of its own, and nothing is held."""
    clock = Clock()
    store = FaultyStore(clock=clock)

    async def take_long() -> None:
        clock.now += 10

    store.after["put"] = take_long
    with pytest.raises(StoreError, match=r"^the answer of the store took longer than the ttl, 10 s$") as caught:
        async with lease(store, "orders", ttl=10, clock=clock):
            raise AssertionError
    assert caught.value.may_retry
    assert await store.get(KEY) is None


async def test_a_cancelled_asking_leaves_nothing() -> None:
    """A cancellation after the put was done, and before its answer came, releases what was granted."""
    store = FaultyStore()
    store.cues["put"] = ["done, hang"]
    with anyio.CancelScope() as outer:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await anyio.wait_all_tasks_blocked()
                outer.cancel()

            tasks.start_soon(cancel)
            async with lease(store, "orders", ttl=LONG):
                raise AssertionError
    assert outer.cancelled_caught
    assert await store.get(KEY) is None


# Asking oneself


async def test_check_says_whether_it_is_held_now() -> None:
    """`check` is silent while it is held, raises when its time is over, and then the body is cancelled."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    reached = []
    with pytest.raises(LeaseLostError, match="its time ran out"):
        async with lease(store, "orders", ttl=10, clock=clock) as held:
            held.check()
            clock.now += 10
            for _ in range(2):
                with pytest.raises(LeaseLostError, match="its time ran out"):
                    held.check()
            reached.append(held.remaining)
            await anyio.sleep_forever()
    assert reached == [0]
    with pytest.raises(LeaseLostError, match="its block has ended"):
        held.check()


async def test_what_check_raised_is_the_loss_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A body that lets it through raises that very error, and nothing is told twice."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    raised = None
    with pytest.raises(LeaseLostError) as caught:
        async with lease(store, "orders", ttl=10, clock=clock) as held:
            clock.now += 10
            try:
                held.check()
            except LeaseLostError as exc:
                raised = exc
                raise
    assert caught.value is raised
    assert warnings_in(caplog) == []


async def test_the_same_in_a_group_is_its_cause() -> None:
    """What a child task of the body raised by `check` comes out as the cause of the same error."""
    clock = Clock()
    store = MemoryStore(clock=clock)

    async def child(held: Lease) -> None:
        held.check()

    with pytest.raises(LeaseLostError) as caught:
        async with lease(store, "orders", ttl=10, clock=clock) as held:
            clock.now += 10
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child, held)
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(exc) for exc in cause.exceptions] == [LeaseLostError]


async def test_a_repr_a_person_can_read() -> None:
    """The name, the token, and whether it is held, lost or gone."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with lease(store, "orders", ttl=10, clock=clock) as held:
        assert repr(held) == f"<Lease 'orders': token {held.token}, 10 s left>"
    assert repr(held) == f"<Lease 'orders': token {held.token}, gone>"
    async with lease(store, "orders", ttl=10, clock=clock) as held:
        clock.now += 10
    assert repr(held) == f"<Lease 'orders': token {held.token}, lost>"


@pytest.mark.parametrize("error", [LeaseHeldError("a", "me", 5.0), LeaseLostError("a", 7, "gone")])
def test_errors_can_be_sent_and_copied(error: Exception) -> None:
    """Both errors survive pickling and copying."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 (its own)
        assert (type(twin), twin.args, str(twin), vars(twin)) == (type(error), error.args, str(error), vars(error))


# In scopes


async def test_a_scope_enters_it() -> None:
    """In a scope, what is lost cancels the task that entered it, and comes out of the scope as itself."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    with pytest.raises(LeaseLostError):
        async with Scope() as scope:
            await scope.enter(lease(store, "orders", ttl=TTL, clock=clock))
            assert scope.resources[0].name == "lease"
            await store.delete(KEY)
            await anyio.sleep_forever()


async def test_a_scope_hosts_it() -> None:
    """Hosted, it is released by whoever closes the scope."""
    store = MemoryStore()
    scope = Scope()
    held = await scope.host(lease(store, "orders", ttl=LONG, holder="me"))
    assert await holder_of(store) == "me"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
    assert await store.get(KEY) is None
    assert held.lost is None


async def test_a_loss_kills_the_host() -> None:
    """Hosted, a loss is told as the death of the host, and closing reports it by name."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    died = anyio.Event()
    events: list[ScopeEvent] = []

    def on_event(event: ScopeEvent) -> None:
        if event.kind == "died":
            events.append(event)
            died.set()

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope(on_event=on_event) as scope:
            await scope.host(lease(store, "orders", ttl=TTL, clock=clock))
            await store.delete(KEY)
            with anyio.fail_after(10):
                await died.wait()
    (failure,) = caught.value.failures
    assert failure.name == "lease"
    assert isinstance(failure.exception, LeaseLostError)
    assert isinstance(events[0].error, LeaseLostError)


@on_asyncio
@pytest.mark.usefixtures("anyio_backend")
async def test_closed_from_another_task_it_is_released() -> None:
    """An entered lease that another task closes is released, and the failure says to host it."""
    store = MemoryStore()
    scope = Scope()

    async def start() -> None:
        await scope.enter(lease(store, "orders", ttl=LONG))

    await asyncio.create_task(start())
    with pytest.raises(ResourceCleanupError, match=r"use `await scope\.host") as caught:
        await scope.aclose()
    assert isinstance(caught.value.errors[0], WrongTaskError)
    assert await store.get(KEY) is None


async def test_it_is_for_one_block() -> None:
    """What was used once can't be used again."""
    once = lease(MemoryStore(), "orders", ttl=LONG)
    async with once:
        pass
    with pytest.raises(RuntimeError, match=r"call `lease\(\.\.\.\)` for each block"):
        async with once:
            raise AssertionError


# Wherever it is cancelled, whatever fails


@pytest.mark.long
@pytest.mark.parametrize("kind", [FaultyStore, PromptStore])
async def test_nothing_stays_held_wherever_it_is_cancelled(kind: type[FaultyStore]) -> None:
    """At each point of asking, holding and releasing, a cancellation leaves nothing in the store."""

    async def program(ledger: Ledger) -> None:
        store = kind()
        store.ledger = ledger
        async with lease(store, "orders", ttl=LONG):
            await anyio.lowlevel.checkpoint()

    report = await cancel_everywhere(program)
    assert report.total > 0


@pytest.mark.long
async def test_nothing_stays_held_when_it_is_cancelled_while_it_renews() -> None:
    """So too when a renewal is under way, or has been done, or its answer was lost."""

    async def program(ledger: Ledger) -> None:
        clock = Clock()
        store = FaultyStore(clock=clock)
        store.ledger = ledger
        store.renews_at_once(clock, LONG)
        async with lease(store, "orders", ttl=LONG, clock=clock):
            await store.renewed.wait()
            await anyio.lowlevel.checkpoint()

    report = await cancel_everywhere(program)
    assert report.total > 0


@pytest.mark.long
async def test_nothing_stays_held_when_it_is_cancelled_while_it_is_in_doubt() -> None:
    """So too when a renewal was done and its answer was lost."""

    async def program(ledger: Ledger) -> None:
        clock = Clock()
        store = FaultyStore(clock=clock)
        store.ledger = ledger
        store.cues["put"] = [None, "lost"]
        async with lease(store, "orders", ttl=3 * TTL, clock=clock):
            await store.tried.wait()
            await store.renewed.wait()

    report = await cancel_everywhere(program, turns=1)
    assert report.total > 0


@pytest.mark.long
async def test_nothing_stays_held_when_asking_is_cancelled() -> None:
    """So too where an answer got lost and it is asked again."""

    async def program(ledger: Ledger) -> None:
        store = FaultyStore()
        store.ledger = ledger
        store.cues["put"] = ["lost"]
        async with lease(store, "orders", ttl=LONG):
            pass

    report = await cancel_everywhere(program, turns=2)
    assert report.total > 0


@pytest.mark.parametrize("cue", ["fail", "lost", "hang", "done, hang"])
@pytest.mark.parametrize("place", range(7))
async def test_whatever_operation_fails(place: int, cue: str) -> None:
    """One operation fails, in whatever way: the outcome is told, and the next holder has a larger token in time."""
    clock = Clock()
    store = FaultyStore(clock=clock)
    store.every = [None] * place + [cue]
    token = 0
    renewals = 0
    outcome: list[Exception | None] = []
    with anyio.fail_after(20):
        try:
            async with lease(store, "orders", ttl=0.09, clock=clock) as held:
                token = held.token
                for _ in range(2):
                    await store.renewed.wait()
                    store.renewed = anyio.Event()
                    renewals += 1
        except StoreError as exc:
            outcome.append(exc)
    assert renewals == 2 or outcome
    clock.now += 1
    store.every = []
    async with lease(store, "orders", ttl=LONG, clock=clock) as next_one:
        assert next_one.token > token


# Between processes


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills and stops by signals")
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_a_race_of_processes_loses_no_update(kind: str, tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    """Eight processes, killed and stopped under the lease: a fenced counter loses no update, and tokens only grow."""
    from workflow.race import race

    url = {"sqlite": f"sqlite:///{tmp_path / 'race.db'}", "postgres": postgres_url, "redis": redis_url}[kind]
    report = race(url, kills=4, stops=4)
    assert (report.processes, report.kills, report.stops) == (12, 4, 4)
    assert report.updates >= 16
    assert (report.lost_updates, report.tokens_repeated, report.tokens_shrunk) == (0, 0, 0)


HOLDER = """
import logging, sys
import anyio
from rescope.workflow import SqliteStore
from rescope.workflow.lease import LeaseLostError, lease

async def main():
    async with SqliteStore(sys.argv[1]) as store:
        try:
            async with lease(store, "orders", ttl=1, holder="the stopped one") as held:
                print("held", held.token, flush=True)
                while True:
                    await anyio.to_thread.run_sync(sys.stdin.readline)
                    held.check()
                    print("wrote", flush=True)
        except LeaseLostError as exc:
            print("lost", exc.token, flush=True)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="stops by a signal")
async def test_a_process_that_was_stopped_finds_out(tmp_path: Path, anyio_backend_name: str) -> None:
    """Stopped for longer than its ttl, a process has lost its lease to another, and learns it before it writes."""
    path = tmp_path / "store.db"
    command = [sys.executable, "-c", HOLDER, str(path), anyio_backend_name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: ASYNC220, S603 (it is short)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            token = int(process.stdout.readline().split()[1])
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "wrote\n"
            process.send_signal(signal.SIGSTOP)
            async with SqliteStore(path) as store, lease(store, "orders", ttl=LONG, wait=30) as held:
                process.stdin.write("\n")
                process.stdin.flush()
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == f"lost {token}\n"
                assert held.token > token
                process.stdin.close()
                assert process.wait(timeout=10) == 0
                held.check()
        finally:
            process.kill()


@pytest.mark.long
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example(backend: str) -> None:
    """The example runs, and what it says is so."""
    command = [sys.executable, str(EXAMPLE), "--backend", backend]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert run.returncode == 0, run.stdout + run.stderr
    assert "took the lease over" in run.stdout
    assert "refused" in run.stdout
