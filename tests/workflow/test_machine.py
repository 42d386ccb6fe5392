"""`EventResource`: machines that events step, over a memory of one's own and over a store."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from conftest import ASYNCIO_ONLY
from rescope import Scope
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import MemoryStore, SqliteStore, StoreClosedError, StoreError, VersionConflictError
from rescope.workflow._machine_store import canonical
from rescope.workflow.machine import (
    EventResource,
    ExecutionViolation,
    LockStatus,
    MachineMemory,
    ReleaseStatus,
    StoreMemory,
    Transaction,
    TransactionViolation,
    UnfitStateError,
    check_subject,
)
from running import every_backend, run_example
from workflow.broken_stores import Clock, Good

ME = Path(__file__)
SUBJECT = "order-17"

STALE = (
    f"rescope.workflow._machine_port.TransactionViolation: machine '{SUBJECT}': "
    "the snapshot no longer stands, as somebody else has written: read the state, and decide again"
)

CALLS = {
    "acquire_lock": ["subject"],
    "acquire_state": ["subject"],
    "persist_state": ["subject", "data", "prev"],
    "release_lock": ["subject", "status"],
    "transaction": ["subject"],
}

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)


class Fault(Exception):
    """An error of our own."""


class Memory:
    """A memory as a user writes one: dicts, with locks that name no holder.

    `faults` says what becomes of the next calls of a method: an exception is raised, a callable is awaited.
    """

    def __init__(self, **faults: Any) -> None:
        self.states: dict[str, Any] = {}
        self.locked: set[str] = set()
        self.faults: dict[str, Iterator[Any]] = {name: iter(these) for name, these in faults.items()}
        self.calls: list[str] = []
        self.ledger: Ledger | None = None

    async def _call(self, name: str) -> Any:
        self.calls.append(name)
        await anyio.lowlevel.checkpoint()
        fault = next(self.faults.get(name, iter(())), None)
        if isinstance(fault, BaseException):
            raise fault
        return await fault() if callable(fault) else fault

    async def read(self, key: str) -> Any:
        await self._call("read")
        return self.states.get(key)

    async def write(self, key: str, data: Any, prev: Any) -> Any:
        answer = await self._call("write")
        if self.states.get(key) != prev:
            raise TransactionViolation(key, "stale snapshot")
        self.states[key] = json.loads(json.dumps(data))
        return answer

    async def lock(self, key: str) -> bool:
        answer = await self._call("lock")
        if answer is False or key in self.locked:
            return False
        self.locked.add(key)
        if self.ledger is not None:
            self.ledger.opened(key)
        await anyio.lowlevel.checkpoint()
        return True

    async def unlock(self, key: str) -> Any:
        await anyio.lowlevel.checkpoint()
        if self.ledger is not None:
            self.ledger.closed(key)
        answer = await self._call("unlock")
        self.locked.discard(key)
        return answer


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause shortly between tries, but where a test looks at them, on a virtual clock."""
    if "anyio_backend" in request.fixturenames:
        monkeypatch.setattr("rescope.workflow.machine._PAUSES", (0.001,) * 4)


def always(fault: Any) -> Iterator[Any]:
    while True:
        yield fault


def made(memory: Any = None, *, locking: bool = True, **options: Any) -> EventResource[Any]:
    return EventResource(StoreMemory(MemoryStore()) if memory is None else memory, locking=locking, **options)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def on_a_virtual_clock(main: Callable[[], Awaitable[None]]) -> None:
    clock = pytest.importorskip("trio.testing").MockClock(autojump_threshold=0)
    pytest.importorskip("trio").run(main, clock=clock)


# The four calls


@pytest.mark.parametrize("memory", [Memory, lambda: StoreMemory(MemoryStore())])
async def test_the_four_calls(memory: Callable[[], MachineMemory]) -> None:
    """Lock, read, write over what was read, unlock: and the next one reads what was written."""
    resource = EventResource(memory(), locking=True)
    assert await resource.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert await resource.acquire_state(SUBJECT) is None
    await resource.persist_state(SUBJECT, {"paid": False}, None)
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED
    assert await resource.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    before = await resource.acquire_state(SUBJECT)
    assert before == {"paid": False}
    await resource.persist_state(SUBJECT, {"paid": True}, before)
    assert await resource.acquire_state(SUBJECT) == {"paid": True}
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED


@pytest.mark.parametrize("memory", [Memory, lambda: StoreMemory(MemoryStore())])
async def test_who_comes_second_does_not_get_the_lock(memory: Callable[[], MachineMemory]) -> None:
    """A lock that is held is `NOT_ACQUIRED` for all others; another subject is another lock."""
    resource = EventResource(memory(), locking=True)
    assert await resource.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert await resource.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    assert await resource.acquire_lock("order-18") is LockStatus.ACQUIRED
    assert await resource.release_lock(SUBJECT, LockStatus.NOT_ACQUIRED) is ReleaseStatus.NOOP
    assert await resource.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED


async def test_locking_off_is_noop_all_through() -> None:
    """Without locking the memory is never asked to lock or unlock, and every status is `NOOP`."""
    memory = Memory()
    resource = made(memory, locking=False)
    assert await resource.acquire_lock(SUBJECT) is LockStatus.NOOP
    for status in LockStatus:
        assert await resource.release_lock(SUBJECT, status) is ReleaseStatus.NOOP
    async with resource.transaction(SUBJECT) as step:
        assert step.status is LockStatus.NOOP
        step.state = {"n": 1}
    assert step.released is ReleaseStatus.NOOP
    assert memory.calls == ["read", "write"]


@pytest.mark.parametrize("status", [LockStatus.NOOP, LockStatus.NOT_ACQUIRED, None, "NOOP"])
async def test_nothing_is_unlocked_that_was_not_acquired(status: Any) -> None:
    """`release_lock` asks the memory for `ACQUIRED` only; `None` is what one has before asking."""
    memory = Memory()
    assert await made(memory).release_lock(SUBJECT, status) is ReleaseStatus.NOOP
    assert memory.calls == []


def test_it_is_called_as_the_contract_has_it() -> None:
    """Names, order and defaults of what is asked for are those of the contract."""
    resource, memory = inspect.signature(EventResource), inspect.signature(StoreMemory)
    assert [*resource.parameters][:3] == ["memory", "locking", "validate_subject"]
    assert resource.parameters["locking"].kind is inspect.Parameter.KEYWORD_ONLY
    assert str(memory) == "(store: 'Store', *, lock_ttl: 'float' = 60) -> 'None'"
    calls = {name: [*inspect.signature(getattr(EventResource, name)).parameters][1:] for name in CALLS}
    assert calls == CALLS


def test_statuses_are_words() -> None:
    """The statuses are enums, and equal to the words that the contract calls them by."""
    assert list(LockStatus) == ["ACQUIRED", "NOT_ACQUIRED", "NOOP"]
    assert list(ReleaseStatus) == ["RELEASED", "NOOP", "ERROR"]
    assert [status.name for status in (*LockStatus, *ReleaseStatus)] == [*LockStatus, *ReleaseStatus]
    assert (f"{LockStatus('ACQUIRED')}", json.dumps(ReleaseStatus.ERROR)) == ("ACQUIRED", '"ERROR"')


async def test_writing_passes_on_data_and_snapshot() -> None:
    """The memory gets the very objects that it was given, once."""
    given: list[Any] = []
    memory = Memory()

    async def write(key: str, data: Any, prev: Any) -> None:
        given.append((key, data, prev))

    memory.write = write  # type: ignore[method-assign]
    data, prev = object(), object()
    await made(memory).persist_state(SUBJECT, data, prev)
    ((key, now, before),) = given
    assert (key, now is data, before is prev) == (SUBJECT, True, True)


# What fails


@pytest.mark.parametrize(("name", "reason"), [("read", "read failed"), ("lock", "lock failed")])
@pytest.mark.parametrize("error", [RuntimeError("down"), StoreError("down", may_retry=True), ValueError("down")])
def test_reading_and_locking_are_tried_again(name: str, reason: str, error: Exception) -> None:
    """A memory that goes on failing is asked five times in half a second; then its error is the cause."""

    async def main() -> None:
        memory = Memory(**{name: always(error)})
        resource = made(memory, clock=anyio.current_time)
        start = anyio.current_time()
        with pytest.raises(TransactionViolation) as caught:
            await (resource.acquire_state if name == "read" else resource.acquire_lock)(SUBJECT)
        assert anyio.current_time() - start < 0.5
        assert memory.calls == [name] * 5
        assert caught.value.__cause__ is error
        assert (caught.value.subject, caught.value.reason, caught.value.may_retry) == (SUBJECT, reason, True)
        assert str(caught.value).startswith(f"machine '{SUBJECT}': the memory failed to ")
        assert str(caught.value).endswith(f" ({type(error).__name__}: down)")

    on_a_virtual_clock(main)


@pytest.mark.parametrize("name", ["read", "lock"])
async def test_a_fault_that_passes_is_not_seen(name: str) -> None:
    """Reading and locking succeed where the memory does at the third try."""
    memory = Memory(**{name: [Fault(), Fault()]})
    resource = made(memory)
    answer = await (resource.acquire_state if name == "read" else resource.acquire_lock)(SUBJECT)
    assert answer == (None if name == "read" else "ACQUIRED")
    assert memory.calls == [name] * 3


async def test_a_lock_that_is_given_back_meanwhile_is_had() -> None:
    """A lock that somebody else holds is asked for again, too."""
    memory = Memory(lock=[False, Fault(), False])
    assert await made(memory).acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert memory.calls == ["lock"] * 4


def test_slow_failures_are_not_tried_for_long() -> None:
    """No other try begins when half a second is over, however few there were."""

    async def main() -> None:
        memory = Memory(read=always(partial(fail_slowly, 0.3)), lock=always(partial(fail_slowly, 0.3)))
        resource = made(memory, clock=anyio.current_time)
        for ask in (resource.acquire_state, resource.acquire_lock):
            start = anyio.current_time()
            with pytest.raises(TransactionViolation):
                await ask(SUBJECT)
            assert anyio.current_time() - start < 1
        memory.faults["lock"] = always(partial(refuse_slowly, 0.3))
        assert await resource.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
        assert memory.calls == ["read", "read", "lock", "lock", "lock", "lock"]

    async def refuse_slowly(seconds: float) -> bool:
        await anyio.sleep(seconds)
        return False

    async def fail_slowly(seconds: float) -> None:
        await anyio.sleep(seconds)
        raise Fault

    on_a_virtual_clock(main)


async def test_a_closed_store_is_not_asked_again() -> None:
    """Where trying again can't help, it isn't done."""
    memory = Memory(read=always(StoreClosedError("closed")))
    with pytest.raises(TransactionViolation, match="closed"):
        await made(memory).acquire_state(SUBJECT)
    assert memory.calls == ["read"]


async def test_waiting_for_another_try_can_be_cancelled() -> None:
    """A cancellation ends the trying."""
    memory = Memory()
    tried = anyio.Event()

    async def fail() -> None:
        tried.set()
        raise Fault

    memory.faults["read"] = always(fail)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made(memory).acquire_state, SUBJECT)
        await tried.wait()
        tasks.cancel_scope.cancel()
    assert len(memory.calls) <= 2


@pytest.mark.parametrize(
    ("error", "reason", "may_retry"),
    [
        (RuntimeError("down"), "write failed", False),
        (ValueError("down"), "write failed", False),
        (StoreError("down"), "write failed", False),
        (StoreError("busy", may_retry=True), "write failed", True),
        (VersionConflictError("k", 1, 2), "stale snapshot", True),
        (TransactionViolation(SUBJECT, "stale snapshot"), "stale snapshot", True),
    ],
)
async def test_a_write_is_tried_once(error: Exception, reason: str, may_retry: bool) -> None:
    """A write that fails is never repeated, and the violation tells whether all may be done again."""
    memory = Memory(write=always(error))
    with pytest.raises(TransactionViolation) as caught:
        await made(memory).persist_state(SUBJECT, {"n": 1}, None)
    assert memory.calls == ["write"]
    assert (caught.value.reason, caught.value.may_retry) == (reason, may_retry)
    assert caught.value is error or caught.value.__cause__ is error
    assert str(caught.value).endswith("; it may have been written: read the state, and see") is not may_retry


async def test_a_violation_of_the_memory_is_its_own() -> None:
    """What a memory raises as a `TransactionViolation` comes out as it is."""
    error = TransactionViolation(SUBJECT, "read failed")
    with pytest.raises(TransactionViolation) as caught:
        await made(Memory(read=always(error))).acquire_state(SUBJECT)
    assert caught.value is error


async def test_a_write_that_gives_false_was_refused() -> None:
    """A memory that tells by `False` that it did not write is heard."""
    with pytest.raises(TransactionViolation, match="the snapshot no longer stands"):
        await made(Memory(write=[False])).persist_state(SUBJECT, {"n": 1}, None)


@pytest.mark.parametrize("fault", [Fault("gone"), False])
async def test_a_failing_unlock_is_told_and_never_raised(fault: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The status is `ERROR`, a WARNING says why, and nothing is raised, by the call nor by the transaction."""
    memory = Memory(unlock=always(fault))
    resource = made(memory)
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.ERROR
    async with resource.transaction(SUBJECT) as step:
        step.state = {"n": 1}
    assert step.released is ReleaseStatus.ERROR
    assert memory.states == {SUBJECT: {"n": 1}}
    why = "its time was over" if fault is False else "Fault: gone"
    assert len(warnings_in(caplog)) == 2
    assert all(SUBJECT in told and why in told for told in warnings_in(caplog))


async def test_a_failing_unlock_does_not_replace_what_the_block_raised() -> None:
    """The block's own error comes out."""
    error = Fault()
    with pytest.raises(Fault) as caught:
        async with made(Memory(unlock=[Fault("gone")])).transaction(SUBJECT):
            raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)


def test_an_unlock_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """After five seconds it is told as failed."""

    async def main() -> None:
        memory = Memory(unlock=[anyio.sleep_forever])
        start = anyio.current_time()
        assert await made(memory).release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.ERROR
        assert anyio.current_time() - start == pytest.approx(5, abs=0.2)

    on_a_virtual_clock(main)
    assert "still running after 5 s" in caplog.text or "5 s" in caplog.text


def test_violations_can_be_pickled() -> None:
    """A violation goes through a process pool as it is."""
    error = pickle.loads(pickle.dumps(TransactionViolation("a", "write failed", may_retry=False)))  # noqa: S301 (ours)
    assert (error.subject, error.reason, error.may_retry) == ("a", "write failed", False)
    assert str(error) == (
        "machine 'a': the memory failed to write the state; it may have been written: read the state, and see"
    )


# Subjects


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("", "ValueError: a subject must not be empty"),
        ("  ", "ValueError: a subject must not be blank"),
        ("x" * 513, "ValueError: a subject must be at most 512 bytes in UTF-8, not 513"),
        ("é" * 300, "ValueError: a subject must be at most 512 bytes in UTF-8, not 600"),
        ("a\nb", r"ValueError: a subject must not hold control characters .* at 1"),
        ("a\ud800", "ValueError: a subject must not hold control characters or lone surrogates"),
        (None, "TypeError: a subject must be a string, not a NoneType"),
        (b"order", "TypeError: a subject must be a string, not a bytes"),
    ],
)
@pytest.mark.parametrize("locking", [True, False])
async def test_a_bad_subject_is_refused_before_the_memory_is_asked(subject: Any, message: str, locking: bool) -> None:
    """All calls raise an `ExecutionViolation` that says what is wrong with it."""
    memory = Memory()
    resource = made(memory, locking=locking)
    for call in (
        lambda: resource.acquire_lock(subject),
        lambda: resource.acquire_state(subject),
        lambda: resource.persist_state(subject, {}, None),
        lambda: resource.release_lock(subject, LockStatus.ACQUIRED),
    ):
        with pytest.raises(ExecutionViolation, match=message):
            await call()
    with pytest.raises(ExecutionViolation, match=message):
        resource.transaction(subject)
    assert memory.calls == []


@pytest.mark.parametrize("subject", ["a", "a/b", "=a", "a b", "ä" * 256, "x" * 512])
@pytest.mark.parametrize("kind", [Memory, lambda: StoreMemory(MemoryStore())])
async def test_every_other_subject_is_fine(subject: str, kind: Callable[[], Any]) -> None:
    """All text that a key may hold can be a subject, up to 512 bytes."""
    memory = kind()
    async with made(memory).transaction(subject) as step:
        step.state = {"n": 1}
    assert await memory.read(subject) == {"n": 1}


def orders_only(subject: str) -> None:
    check_subject(subject)
    if not subject.startswith("order-"):
        raise ValueError("it must begin with order-")


def is_order(subject: str) -> bool:
    return subject.startswith("order-")


def own_error(subject: str) -> None:
    if not is_order(subject):
        raise ExecutionViolation("ours")


@pytest.mark.parametrize(
    ("validate", "message"),
    [
        (orders_only, "ValueError: it must begin with order-"),
        (is_order, "`validate_subject` gave False"),
        (own_error, "^ours$"),
    ],
)
async def test_validation_can_be_replaced(validate: Callable[[str], object], message: str) -> None:
    """A validation of one's own refuses by raising or by `False`, and all else is fine."""
    memory = Memory()
    resource = made(memory, validate_subject=validate)
    with pytest.raises(ExecutionViolation, match=message) as caught:
        await resource.acquire_lock("invoice-1")
    assert (memory.calls, isinstance(caught.value, ValueError)) == ([], True)
    assert await resource.acquire_lock("order-1") is LockStatus.ACQUIRED


async def test_an_async_validation_is_refused() -> None:
    """One that would never be awaited does not let every subject pass."""

    async def validate(subject: str) -> bool:
        return False

    with pytest.raises(TypeError, match="`validate_subject` must not be async"):
        await made(Memory(), validate_subject=validate).acquire_lock(SUBJECT)


# Bad input


class OnlyStates:
    read = write = None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EventResource(Memory()), TypeError, "locking"),
        (lambda: made(Memory(), locking=1), TypeError, "`locking` must be True or False, not a int"),
        (lambda: made(Memory), TypeError, "`memory` must be a memory, not the class Memory"),
        (lambda: made({}), TypeError, "`memory` must have read, write, lock, unlock; a dict lacks read, write, lock"),
        (lambda: made(OnlyStates(), locking=False), TypeError, "a OnlyStates lacks read, write"),
        (lambda: made(Memory(), validate_subject=None), TypeError, "`validate_subject` must be callable"),
        (lambda: made(Memory(), clock=1.5), TypeError, "`clock` must be callable, not a float"),
        (lambda: StoreMemory({}), TypeError, "`store` must be a store"),
        (lambda: StoreMemory(MemoryStore), TypeError, "`store` must be a store, as `MemoryStore()`, not the class"),
        (lambda: StoreMemory(MemoryStore(), lock_ttl=None), TypeError, "`lock_ttl` must be a number of seconds: the"),
        (
            lambda: StoreMemory(MemoryStore(), lock_ttl="1"),
            TypeError,
            "`lock_ttl` must be a number of seconds, not",
        ),
        (lambda: StoreMemory(MemoryStore(), lock_ttl=0), ValueError, "`lock_ttl` must be more than 0 and at most"),
        (lambda: StoreMemory(MemoryStore(), lock_ttl=math.nan), ValueError, "`lock_ttl` must be more than 0"),
    ],
)
def test_bad_input_is_refused_at_the_call(make: Any, error: type[Exception], message: str) -> None:
    """What nothing can be made of is refused where it is given."""
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("status", ["RELEASED", 5, ReleaseStatus.ERROR])
async def test_a_status_of_another_kind_is_refused(status: Any) -> None:
    """`release_lock` takes what `acquire_lock` gave."""
    with pytest.raises(TypeError, match="`status` must be what `acquire_lock` gave"):
        await made(Memory()).release_lock(SUBJECT, status)


@pytest.mark.parametrize("state", [{1, 2}, {"at": b"secret"}, math.nan, {"deep": [object()]}, (item := [])])
async def test_what_is_no_json_is_refused_and_nothing_is_written(state: Any) -> None:
    """A store's memory says what is wrong with a state, as a `TypeError` and `ValueError`, and shows nothing of it."""
    if state == []:
        state.append(state)
    memory = StoreMemory(MemoryStore())
    resource = made(memory)
    with pytest.raises(UnfitStateError, match=f"the state of '{SUBJECT}' is not JSON") as caught:
        await resource.persist_state(SUBJECT, state, None)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert "secret" not in str(caught.value)
    with pytest.raises(UnfitStateError):
        async with resource.transaction(SUBJECT) as step:
            step.state = state
    assert step.released is ReleaseStatus.RELEASED
    assert await memory.read(SUBJECT) is None


async def test_none_is_no_state() -> None:
    """`None` stands for no state, so it can't be written, in any way."""
    memory = StoreMemory(MemoryStore())
    resource = made(memory)
    with pytest.raises(TypeError, match="must not be None, which stands for no state"):
        await resource.persist_state(SUBJECT, None, None)
    with pytest.raises(TypeError, match="must not be None"):
        await memory.write(SUBJECT, None, None)
    async with resource.transaction(SUBJECT) as step:
        with pytest.raises(TypeError, match="must not be None"):
            step.state = None
    assert await memory.read(SUBJECT) is None


# Transactions


async def test_a_transaction_writes_what_the_block_made_of_the_state() -> None:
    """The state that is set is written at the end of the block, under the lock, over what was read."""
    memory = Memory()
    resource = made(memory)
    async with resource.transaction(SUBJECT) as step:
        assert (step.state, step.previous, step.status, step.released) == (None, None, "ACQUIRED", None)
        assert memory.locked == {SUBJECT}
        step.state = {"n": 1}
        assert memory.states == {}
    assert (memory.states, memory.locked) == ({SUBJECT: {"n": 1}}, set())
    assert step.released is ReleaseStatus.RELEASED
    assert memory.calls == ["lock", "read", "write", "unlock"]
    assert repr(step) == f"<Transaction on '{SUBJECT}': over>"


async def test_a_state_that_is_changed_in_place_is_written() -> None:
    """The block has a copy of its own to change, and the snapshot stays what was read, also of a live object."""
    memory = Memory()
    memory.states[SUBJECT] = {"items": ["cup"]}
    async with made(memory).transaction(SUBJECT) as step:
        assert step.state is not None
        step.state["items"].append("kettle")
        assert step.previous == {"items": ["cup"]} == memory.states[SUBJECT]
        assert repr(step) == f"<Transaction on '{SUBJECT}': ACQUIRED>"
    assert memory.states == {SUBJECT: {"items": ["cup", "kettle"]}}


async def test_a_state_that_stays_is_not_written() -> None:
    """A block that changes nothing writes nothing, also where it sets the same state."""
    memory = Memory()
    memory.states[SUBJECT] = {"a": 1, "b": [2]}
    async with made(memory).transaction(SUBJECT) as step:
        step.state = {"b": (2,), "a": 1}
    async with made(memory).transaction("order-18"):
        pass
    assert "write" not in memory.calls


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0, False), ([1], [1.0])])
async def test_a_change_of_kind_is_a_change(before: Any, after: Any) -> None:
    """What Python finds equal and JSON doesn't is written."""
    memory = StoreMemory(MemoryStore())
    await memory.write(SUBJECT, before, None)
    async with made(memory).transaction(SUBJECT) as step:
        step.state = after
    assert repr(await memory.read(SUBJECT)) == repr(after)


@pytest.mark.parametrize("kind", [Memory, lambda: StoreMemory(MemoryStore())])
async def test_a_block_that_fails_writes_nothing(kind: Callable[[], Any]) -> None:
    """The state stays what it was, the lock is given back, and the error comes out as it is."""
    memory = kind()
    resource = made(memory)
    error = Fault()
    with pytest.raises(Fault) as caught:
        async with resource.transaction(SUBJECT) as step:
            step.state = {"n": 1}
            raise error
    assert caught.value is error
    assert (await memory.read(SUBJECT), step.released) == (None, "RELEASED")
    assert await memory.lock(SUBJECT) is True


async def test_without_the_lock_the_block_does_not_run() -> None:
    """Where somebody else holds it, a `TransactionViolation` says so, nothing is read, and their lock stays."""
    memory = Memory()
    resource = made(memory)
    async with resource.transaction(SUBJECT):
        memory.calls.clear()
        with pytest.raises(TransactionViolation) as caught:
            async with resource.transaction(SUBJECT):
                raise AssertionError
        assert set(memory.calls) == {"lock"}
        assert memory.locked == {SUBJECT}
    assert (caught.value.reason, caught.value.may_retry) == ("not acquired", True)
    assert str(caught.value) == f"machine '{SUBJECT}': somebody else holds the lock: try again later"


@pytest.mark.parametrize(("faults", "reason"), [("lock", "lock failed"), ("read", "read failed")])
async def test_where_the_memory_fails_the_block_does_not_run(faults: str, reason: str) -> None:
    """A memory that fails before the block is told, and what was locked is unlocked."""
    memory = Memory(**{faults: always(Fault())})
    with pytest.raises(TransactionViolation) as caught:
        async with made(memory).transaction(SUBJECT):
            raise AssertionError
    assert (caught.value.reason, memory.locked) == (reason, set())


async def test_where_the_write_fails_it_is_told_and_unlocked() -> None:
    """What the block made is not lost in silence."""
    memory = Memory(write=[Fault("disk full")])
    with pytest.raises(TransactionViolation, match="disk full"):
        async with made(memory).transaction(SUBJECT) as step:
            step.state = {"n": 1}
    assert (step.released, memory.locked) == ("RELEASED", set())


async def test_without_locking_one_of_two_is_refused_at_the_end() -> None:
    """Two transactions on one snapshot: who ends first wins, the other is told that the snapshot doesn't stand."""
    resource = made(locking=False)
    with pytest.raises(TransactionViolation) as caught:
        async with resource.transaction(SUBJECT) as first, resource.transaction(SUBJECT) as second:
            first.state, second.state = {"by": "first"}, {"by": "second"}
    assert caught.value.reason == "stale snapshot"
    assert await resource.acquire_state(SUBJECT) == {"by": "second"}


async def test_persist_writes_at_once_and_goes_on_from_there() -> None:
    """What is persisted in the block stands, whatever becomes of it; what comes after builds upon it."""
    memory = StoreMemory(MemoryStore())
    resource = made(memory)
    async with resource.transaction(SUBJECT) as step:
        await step.persist({"n": 1})
        assert await memory.read(SUBJECT) == step.previous == step.state == {"n": 1}
        step.state["n"] += 1
    assert await memory.read(SUBJECT) == {"n": 2}
    with pytest.raises(Fault):
        async with resource.transaction(SUBJECT) as step:
            await step.persist({"n": 3})
            raise Fault
    assert await memory.read(SUBJECT) == {"n": 3}


async def test_a_memory_may_keep_the_objects_that_it_is_given() -> None:
    """What the block changes after it was written changes nothing in the memory, and is written in the end."""
    states: dict[str, Any] = {}
    memory = Memory()
    memory.states = states

    async def write(key: str, data: Any, prev: Any) -> None:
        assert states.get(key) == prev
        states[key] = data

    memory.write = write  # type: ignore[method-assign]
    async with made(memory).transaction(SUBJECT) as step:
        await step.persist({"n": 1})
        assert step.state is not None
        step.state["n"] = 2
        assert states == {SUBJECT: {"n": 1}}
    step.state["n"] = 3
    assert states == {SUBJECT: {"n": 2}}


async def test_what_is_set_after_the_block_is_refused() -> None:
    """Nobody would write it, so it raises."""
    async with made().transaction(SUBJECT) as step:
        step.state = {"n": 1}
    with pytest.raises(RuntimeError, match="is over: what is set now would not be written"):
        step.state = {"n": 2}
    with pytest.raises(RuntimeError, match="is over"):
        await step.persist({"n": 2})
    assert step.state == {"n": 1}


async def test_a_memory_may_keep_what_is_no_json() -> None:
    """What can't be compared is taken for changed, and given to the memory."""
    given: list[Any] = []
    memory = Memory()

    async def write(key: str, data: Any, prev: Any) -> None:
        given.append(data)

    memory.write = write  # type: ignore[method-assign]
    async with made(memory).transaction(SUBJECT) as step:
        step.state = {1, 2}
    assert given == [{1, 2}]


async def test_a_scope_may_hold_a_transaction() -> None:
    """Entered or hosted, it is written and unlocked when the scope closes well."""
    memory = Memory()
    resource = made(memory)
    async with Scope() as scope:
        entered = await scope.enter(resource.transaction("a"))
        hosted = await scope.host(resource.transaction("b"))
        assert isinstance(hosted, Transaction)
        entered.state, hosted.state = 1, 2
    assert (memory.states, memory.locked) == ({"a": 1, "b": 2}, set())


def test_reprs_show_no_state() -> None:
    """Each says what a person wants to know in a debugger."""
    memory: StoreMemory = StoreMemory(MemoryStore(), lock_ttl=5)
    assert repr(memory) == "<StoreMemory on a MemoryStore, locks for 5 s>"
    assert repr(made(memory)) == "<EventResource on a StoreMemory, locking on>"
    assert repr(made(memory, locking=False)) == "<EventResource on a StoreMemory, locking off>"


# Cancellation


async def test_wherever_a_transaction_is_cancelled_it_is_unlocked() -> None:
    """Cancelled at every point, in every way: the lock is given back, and the state is old or new."""

    async def program(ledger: Ledger) -> None:
        memory = Memory(lock=[False])
        memory.ledger = ledger
        try:
            async with made(memory).transaction(SUBJECT) as step:
                step.state = {"n": 1}
                await anyio.lowlevel.checkpoint()
        finally:
            assert memory.locked == set()
            assert memory.states in ({}, {SUBJECT: {"n": 1}})

    report = await cancel_everywhere(program, turns=2)
    assert report.total > 0


async def test_wherever_the_four_calls_are_cancelled_it_is_unlocked() -> None:
    """Who was cancelled while locking holds nothing; who releases in a `finally` has released."""

    async def program(ledger: Ledger) -> None:
        memory = Memory()
        memory.ledger = ledger
        resource = made(memory)
        status = None
        try:
            status = await resource.acquire_lock(SUBJECT)
            await resource.persist_state(SUBJECT, {"n": 1}, await resource.acquire_state(SUBJECT))
        finally:
            await resource.release_lock(SUBJECT, status)

    report = await cancel_everywhere(program, turns=3)
    assert report.total > 0


async def test_wherever_it_is_cancelled_the_store_holds_no_lock() -> None:
    """So too over a store: its lock is gone, and not left to expire."""

    async def program(ledger: Ledger) -> None:
        store = MemoryStore()
        try:
            async with made(StoreMemory(store)).transaction(SUBJECT) as step:
                step.state = {"n": 1}
        finally:
            with anyio.CancelScope(shield=True):
                assert [entry.key async for entry in store.scan("machine-lock/")] == []

    report = await cancel_everywhere(program, turns=2)
    assert report.total > 0


async def test_who_is_cancelled_before_asks_nobody() -> None:
    """A cancellation that is there already leaves the memory alone."""
    memory = Memory()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await made(memory).acquire_lock(SUBJECT)
    assert memory.calls == []


@pytest.mark.parametrize(("answer", "released"), [(None, "RELEASED"), (Fault(), "ERROR")])
async def test_what_came_of_unlocking_is_known_under_cancellation(answer: Any, released: str, spans: Spans) -> None:
    """The unlocking is done then as at any time, so the transaction and its span say what came of it."""
    with anyio.CancelScope() as scope:
        async with made(Memory(unlock=[answer]), tracer=spans.tracer).transaction(SUBJECT) as step:
            scope.cancel()
    assert scope.cancelled_caught
    assert (step.released, spans.told[-1][:2]) == (released, ("release_lock", released))


def test_a_lock_that_hangs_can_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """A cancellation waits for the answer for a second, and then says that it may be locked."""

    async def main() -> None:
        start = anyio.current_time()
        with anyio.move_on_after(3) as scope:
            await made(Memory(lock=[anyio.sleep_forever])).acquire_lock(SUBJECT)
        assert scope.cancelled_caught
        assert anyio.current_time() - start == pytest.approx(4)

    on_a_virtual_clock(main)
    assert warnings_in(caplog) == [
        f"machine '{SUBJECT}': locking it was cancelled, and the memory gave no answer: it may be locked"
    ]


@on_asyncio
async def test_a_memory_that_cancels_itself_has_failed() -> None:
    """A `CancelledError` that nobody asked for is no answer, and no cancellation."""
    with pytest.raises(TransactionViolation, match="the memory gave no answer"):
        await made(Memory(lock=always(asyncio.CancelledError()))).acquire_lock(SUBJECT)


async def test_transactions_within_one_another() -> None:
    """On another subject both are written. On the same one the inner finds it locked, and waits for nobody for ever."""
    resource = made()
    async with resource.transaction(SUBJECT) as outer:
        async with resource.transaction("another") as inner:
            inner.state = outer.state = {"n": 1}
        with pytest.raises(TransactionViolation, match="somebody else holds the lock"):
            async with resource.transaction(SUBJECT):
                pytest.fail("entered")
    states = [await resource.acquire_state(subject) for subject in (SUBJECT, "another")]
    assert states == [{"n": 1}, {"n": 1}]


@pytest.mark.parametrize("name", ["lock", "read", "write"])
async def test_what_is_no_exception_comes_out_itself(name: str) -> None:
    """A memory that exits the process does."""
    memory = Memory(**{name: [SystemExit(3)]})
    with pytest.raises(SystemExit) as caught:
        async with made(memory).transaction(SUBJECT) as step:
            step.state = {"n": 1}
    assert (caught.value.code, memory.locked) == (3, set())


# A memory on a store


async def test_a_snapshot_must_still_stand() -> None:
    """A write is refused where there is another state, none, or one where there should be none."""
    memory = StoreMemory(MemoryStore())
    with pytest.raises(TransactionViolation, match="no longer stands"):
        await memory.write(SUBJECT, {"n": 2}, {"n": 1})
    await memory.write(SUBJECT, {"n": 1}, None)
    for stale in (None, {"n": 0}, {}, {"n": 1, "m": 1}):
        with pytest.raises(TransactionViolation) as caught:
            await memory.write(SUBJECT, {"n": 2}, stale)
        assert (caught.value.subject, caught.value.reason) == (SUBJECT, "stale snapshot")
    await memory.write(SUBJECT, {"n": 2}, {"n": 1})
    assert await memory.read(SUBJECT) == {"n": 2}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, [2]], (1, (2,)), True),
        ({1: "x"}, {"1": "x"}, True),
        ({"a": None}, {}, False),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        (0.0, -0.0, False),
        ("1", 1, False),
        ([1, 2], [2, 1], False),
        (10**30, 1e30, False),
        ("é", "e\u0301", False),
    ],
)
async def test_which_states_are_the_same(one: Any, other: Any, same: bool) -> None:
    """Snapshots are compared as JSON: the same text, but for the order of keys."""
    memory = StoreMemory(MemoryStore())
    await memory.write(SUBJECT, one, None)
    refused = False
    try:
        await memory.write(SUBJECT, "next", other)
    except TransactionViolation:
        refused = True
    assert refused is not same
    assert (canonical("", one) == canonical("", other)) is same


async def test_of_two_writers_one_wins() -> None:
    """Two that write over the same snapshot at once: one has written, the other is refused."""
    memory = StoreMemory(MemoryStore())
    refused: list[int] = []

    async def write(number: int) -> None:
        try:
            await memory.write(SUBJECT, {"by": number}, None)
        except TransactionViolation:
            refused.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(write, number)
    (winner,) = set(range(8)) - set(refused)
    assert await memory.read(SUBJECT) == {"by": winner}


class Meddled(Good):
    """Somebody else writes right before the first put."""

    def __init__(self, inner: Any, meddle: Any) -> None:
        super().__init__(inner)
        self.meddle = [meddle]

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        if self.meddle:
            await super().put(key, self.meddle.pop())
        return await super().put(key, value, ttl=ttl, if_version=if_version)


@pytest.mark.parametrize(("meddle", "stands"), [({"n": 1.0}, False), ({"n": 1}, True)])
async def test_what_is_written_between_look_and_put_is_seen(meddle: Any, stands: bool) -> None:
    """A put on a version that is gone looks again: the same state still stands, another doesn't."""
    store = MemoryStore()
    await StoreMemory(store).write(SUBJECT, {"n": 1}, None)
    written = True
    try:
        await StoreMemory(Meddled(store, meddle)).write(SUBJECT, {"n": 2}, {"n": 1})
    except TransactionViolation:
        written = False
    assert written is stands
    assert await StoreMemory(store).read(SUBJECT) == ({"n": 2} if stands else meddle)


async def test_states_and_locks_of_all_ids_are_apart() -> None:
    """No id's state is another's, or a lock, whatever the ids look like."""
    store = MemoryStore()
    memory = StoreMemory(store)
    ids = ["a", "a/b", "=a", "lock/a", "machine/a", "machine-lock/=a", "-lock/=a", "~" + "0" * 64, "x" * 511, "x" * 512]
    for one in ids:
        assert await memory.lock(one) is True
        await memory.write(one, one, None)
    assert [await memory.read(one) for one in ids] == ids
    assert len([entry async for entry in store.scan("")]) == 2 * len(ids)


async def test_a_lock_expires() -> None:
    """A holder that died is followed by another when `lock_ttl` is over, by the store's clock."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    dead, alive = made(StoreMemory(store, lock_ttl=5)), made(StoreMemory(store, lock_ttl=5))
    assert await dead.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    clock.advance(4.9)
    assert await alive.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    clock.advance(0.2)
    assert await alive.acquire_lock(SUBJECT) is LockStatus.ACQUIRED


async def test_by_default_a_lock_lasts_a_minute() -> None:
    """`lock_ttl` is 60 seconds."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    await StoreMemory(store).lock(SUBJECT)
    (entry,) = [entry async for entry in store.scan("machine-lock/")]
    assert entry.expires_at == clock.now + 60


@pytest.mark.parametrize("shared", ["nothing", "the memory", "all"])
async def test_who_overran_the_lock_spoils_nothing(shared: str, caplog: pytest.LogCaptureFixture) -> None:
    """A late unlock leaves the new holder's lock alone, a late write is refused, and both are told."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    memory = StoreMemory(store, lock_ttl=5)
    first = made(memory)
    second = first if shared == "all" else made(StoreMemory(store, lock_ttl=5) if shared == "nothing" else memory)
    entered = anyio.Event()
    go_on = anyio.Event()
    steps: list[Transaction[Any]] = []

    async def overrun() -> None:
        with pytest.raises(TransactionViolation, match="no longer stands"):
            async with first.transaction(SUBJECT) as step:
                steps.append(step)
                entered.set()
                await go_on.wait()
                step.state = {"by": "late"}

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(overrun)
        await entered.wait()
        clock.advance(6)
        async with second.transaction(SUBJECT) as step:
            await step.persist({"by": "second"})
            go_on.set()
            await anyio.wait_all_tasks_blocked()
            assert steps[0].released is ReleaseStatus.ERROR
            assert await made(StoreMemory(store)).acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    assert step.released is ReleaseStatus.RELEASED
    assert await memory.read(SUBJECT) == {"by": "second"}
    assert len(warnings_in(caplog)) == 1
    assert "its time was over" in caplog.text


async def test_a_late_release_leaves_the_new_holder_alone() -> None:
    """So too with the four calls, of two resources on the same memory."""
    clock = Clock()
    memory = StoreMemory(MemoryStore(clock=clock), lock_ttl=5)
    first, second, third = made(memory), made(memory), made(memory)
    await first.acquire_lock(SUBJECT)
    clock.advance(6)
    assert await second.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert await first.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.ERROR
    assert await third.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    assert await second.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED
    assert await third.acquire_lock(SUBJECT) is LockStatus.ACQUIRED


async def test_who_takes_what_it_left_behind_can_unlock_it() -> None:
    """A holder that forgot to unlock, and locks again when the time is over, unlocks what it has now."""
    clock = Clock()
    resource = made(StoreMemory(MemoryStore(clock=clock), lock_ttl=5))
    await resource.acquire_lock(SUBJECT)
    clock.advance(6)
    assert await resource.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.ERROR


async def test_the_memory_alone_knows_what_it_locked() -> None:
    """Without a resource, the memory itself is the holder."""
    store = MemoryStore()
    memory, other = StoreMemory(store), StoreMemory(store)
    assert [await memory.lock("a"), await memory.lock("a"), await other.lock("a")] == [True, False, False]
    assert [await other.unlock("a"), await memory.unlock("a"), await memory.unlock("a")] == [False, True, False]
    assert await other.lock("a") is True


async def test_nothing_is_kept_of_what_is_over() -> None:
    """A memory that serves for long stays small, also where unlocking fails again and again."""
    store = AnswerLost(MemoryStore())
    memory = StoreMemory(store)
    resource = made(memory)
    for number in range(3):
        async with resource.transaction(f"failing {number}"):
            store.cue = "not done"
        await resource.release_lock(f"a {number}", await resource.acquire_lock(f"a {number}"))
    gc.collect()
    assert list(memory._held.values()) == [{}]


class AnswerLost(Good):
    """The next put, or delete, is done or not done, and fails."""

    cue = ""

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        cue, self.cue = self.cue, ""
        if cue == "not done":
            raise StoreError("no answer")
        version = await super().put(key, value, ttl=ttl, if_version=if_version)
        if cue == "done":
            raise StoreError("no answer")
        return version

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        cue, self.cue = self.cue, ""
        if cue == "not done":
            raise StoreError("no answer")
        return await super().delete(key, if_version=if_version)


@pytest.mark.parametrize("cue", ["done", "not done"])
async def test_a_lock_whose_answer_got_lost_is_found_again(cue: str) -> None:
    """The next try recognises what the one before has put there, and it can be unlocked."""
    store = AnswerLost(MemoryStore())
    store.cue = cue
    resource, other = made(StoreMemory(store)), made(StoreMemory(store))
    assert await resource.acquire_lock(SUBJECT) is LockStatus.ACQUIRED
    assert await resource.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    assert await other.acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
    assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED
    assert await other.acquire_lock(SUBJECT) is LockStatus.ACQUIRED


async def test_what_others_wrote_under_the_lock_is_somebodys() -> None:
    """An entry that no memory wrote there is a lock all the same."""
    store = MemoryStore()
    memory = StoreMemory(store)
    assert await memory.lock("a") is True
    (entry,) = [entry async for entry in store.scan("machine-lock/")]
    await store.put(entry.key, "x")
    assert await memory.lock("a") is False
    assert await memory.unlock("a") is False


async def test_a_lock_that_slips_away_between_two_looks_is_refused() -> None:
    """Who was refused finds nothing there: the next try may have it."""

    class SlipsAway(Good):
        async def get(self, key: str) -> None:
            await self.inner.delete(key)

    memory = StoreMemory(SlipsAway(MemoryStore()))
    assert [await memory.lock("a"), await memory.lock("a"), await memory.lock("a")] == [True, False, True]


async def test_an_unlock_that_failed_may_be_asked_for_again() -> None:
    """A release that failed on the way to the store can be repeated."""
    store = AnswerLost(MemoryStore())
    resource = made(StoreMemory(store))
    status = await resource.acquire_lock(SUBJECT)
    store.cue = "not done"
    assert await resource.release_lock(SUBJECT, status) is ReleaseStatus.ERROR
    assert await resource.release_lock(SUBJECT, status) is ReleaseStatus.RELEASED


async def test_an_unlock_beside_a_new_lock_forgets_the_old_one_only() -> None:
    """What the same holder locks while its unlock is on the way stays its own."""

    class LocksMeanwhile(Good):
        memory: StoreMemory

        async def delete(self, key: str, *, if_version: int | None = None) -> bool:
            released = await super().delete(key, if_version=if_version)
            if not hasattr(self, "again"):
                self.again = await self.memory.lock("a")
            return released

    store = LocksMeanwhile(MemoryStore())
    store.memory = StoreMemory(store)
    await store.memory.lock("a")
    assert await store.memory.unlock("a") is True
    assert store.again is True
    assert await store.memory.unlock("a") is True


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1])
@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_servers_keep_states_as_they_are(kind: str, postgres_url: str, redis_url: str) -> None:
    """On the servers too, a snapshot stands for what was written, whatever numbers are in it."""
    from workflow.openers import open_postgres, open_redis

    url = {"postgres": postgres_url, "redis": redis_url}[kind]
    state = {"float": 1.0, "big": 1e30, "int": 10**30, "minus": -0.0, "text": "\x00é", "order": {"b": 1, "a": 2}}
    async with {"postgres": open_postgres, "redis": open_redis}[kind](url) as store:  # type: ignore[operator]
        resource = made(StoreMemory(store))
        await resource.persist_state("kept", state, None)
        async with resource.transaction("kept") as step:
            assert canonical("", step.state) == canonical("", state)
            step.state = {"n": 2}
        with pytest.raises(TransactionViolation, match="no longer stands"):
            await resource.persist_state("kept", {"n": 3}, state)
        assert await resource.acquire_state("kept") == {"n": 2}


# Spans


class Spans:
    """What a provider has exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def told(self) -> list[tuple[str, Any, bool]]:
        """Each span's name, status and whether it is one of an error."""
        return [
            (
                span.name.removeprefix("machine "),
                (span.attributes or {}).get("rescope.machine.status"),
                span.status.status_code is StatusCode.ERROR,
            )
            for span in self.all
        ]


@pytest.fixture
def spans() -> Iterator[Spans]:
    """A provider of its own for each test."""
    made = Spans()
    yield made
    made.provider.shutdown()


async def test_each_operation_is_a_span(spans: Spans) -> None:
    """The four calls and the four of a transaction, with subject and status, below the span around them."""
    resource = made(tracer=spans.tracer)
    with spans.tracer.start_as_current_span("event"):
        async with resource.transaction(SUBJECT) as step:
            step.state = {"card": "secret"}
    assert spans.told == [
        ("acquire_lock", "ACQUIRED", False),
        ("acquire_state", None, False),
        ("persist_state", None, False),
        ("release_lock", "RELEASED", False),
        ("event", None, False),
    ]
    *four, event = spans.all
    assert all(span.parent and span.parent.span_id == event.context.span_id for span in four)
    assert all((span.attributes or {})["rescope.machine.subject"] == SUBJECT for span in four)
    assert "secret" not in "".join(span.to_json() for span in spans.all)


async def test_what_the_memory_does_is_below_the_operation(spans: Spans) -> None:
    """Spans of the memory's own, as those of a database client, are children of the operation's."""
    memory = Memory()

    async def query() -> None:
        with spans.tracer.start_as_current_span("query"):
            await anyio.lowlevel.checkpoint()

    memory.faults = {name: always(query) for name in ("read", "write", "lock", "unlock")}
    async with made(memory, tracer=spans.tracer).transaction(SUBJECT) as step:
        step.state = {"n": 1}
    names = {span.context.span_id: span.name for span in spans.all}
    above = [names[span.parent.span_id] for span in spans.all if span.name == "query" and span.parent]
    assert above == ["machine acquire_lock", "machine acquire_state", "machine persist_state", "machine release_lock"]


async def test_spans_tell_what_failed(spans: Spans) -> None:
    """What was tried again is an event; what failed makes an error of the span, and shows nothing of the message."""
    memory = Memory(lock=[False, Fault("secret")], write=[Fault("secret")], unlock=[Fault("secret")])
    with pytest.raises(TransactionViolation):
        async with made(memory, tracer=spans.tracer).transaction(SUBJECT) as step:
            step.state = {"n": 1}
    assert spans.told == [
        ("acquire_lock", "ACQUIRED", False),
        ("acquire_state", None, False),
        ("persist_state", None, True),
        ("release_lock", "ERROR", True),
    ]
    events = [(event.name, dict(event.attributes or {})) for span in spans.all for event in span.events]
    assert events == [
        ("retry", {}),
        ("retry", {"exception.type": "Fault"}),
        ("exception", {"exception.type": "TransactionViolation"}),
    ]
    assert "secret" not in "".join(span.to_json() for span in spans.all)


async def test_a_span_of_locking_switched_off_says_so(spans: Spans) -> None:
    """Where locking is off, the spans of locking and unlocking say `NOOP`."""
    resource = made(tracer=spans.tracer, locking=False)
    await resource.release_lock(SUBJECT, await resource.acquire_lock(SUBJECT))
    assert spans.told == [("acquire_lock", "NOOP", False), ("release_lock", "NOOP", False)]


async def test_the_global_tracer_is_the_default(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenTelemetry is installed and set up, spans are made without being asked for."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    await made().acquire_state(SUBJECT)
    assert spans.told == [("acquire_state", None, False)]


async def test_without_opentelemetry_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All works where the package is not installed, retries and failures included."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    memory = Memory(lock=[Fault()], unlock=[Fault()])
    async with made(memory).transaction(SUBJECT) as step:
        step.state = {"n": 1}
    assert (memory.states, step.released) == ({SUBJECT: {"n": 1}}, "ERROR")


# Between processes


async def count(path: str, locked: str, unlocked: str) -> None:
    """Step two counters that many times, one with locks and one without; a process of its own does."""
    async with SqliteStore(path, synchronous="normal") as store:
        for name, times in (("locked", int(locked)), ("unlocked", int(unlocked))):
            resource = made(StoreMemory(store, lock_ttl=30), locking=name == "locked")
            done = 0
            while done < times:
                with suppress(TransactionViolation):
                    async with resource.transaction(name) as step:
                        step.state = {"n": (step.state or {"n": 0})["n"] + 1}
                    done += 1


async def hold(path: str, ttl: str) -> None:
    """Take the lock, say so, and write when told to; a process of its own does, which is killed or stopped."""
    async with (
        SqliteStore(path) as store,
        made(StoreMemory(store, lock_ttl=float(ttl))).transaction(SUBJECT) as step,
    ):
        step.state = {"by": "the first"}
        print("held", flush=True)  # noqa: T201 (the test reads it)
        await anyio.to_thread.run_sync(sys.stdin.readline)


def start(*args: object, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(ME), *map(str, args)], text=True, env=env, **options)  # noqa: S603 (us)


@pytest.mark.long
def test_eight_processes_lose_no_update(tmp_path: Path) -> None:
    """Each steps two counters again and again: they end at their sums, under locks as by the snapshots alone."""
    path = tmp_path / "machines.db"
    processes = [start("count", path, 6, 10) for _ in range(8)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 8

    async def look() -> list[Any]:
        async with SqliteStore(path) as store:
            memory = StoreMemory(store)
            return [await memory.read("locked"), await memory.read("unlocked")]

    assert anyio.run(look) == [{"n": 8 * 6}, {"n": 8 * 10}]


def signals(test: Any) -> Any:
    """Run it once, and where processes can be killed and stopped."""
    once = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1])
    return once(pytest.mark.skipif(sys.platform == "win32", reason="kills and stops by signals")(test))


@contextmanager
def holding(path: Path, ttl: float) -> Generator[subprocess.Popen[str]]:
    """Have a process that holds the lock."""
    with start("hold", path, ttl, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


async def follow(resource: EventResource[Any]) -> int:
    """Take the lock when its time is over, and tell how often it was refused."""
    refused = 0
    with anyio.fail_after(20):
        while await resource.acquire_lock(SUBJECT) is not LockStatus.ACQUIRED:
            refused += 1
    return refused


@pytest.mark.long
@signals
async def test_a_holder_that_is_killed_is_followed_when_its_time_is_over(tmp_path: Path) -> None:
    """After `kill -9` the lock stands until its time is over, nothing is written, and then others have it."""
    path = tmp_path / "machines.db"
    with holding(path, 1) as holder:
        holder.send_signal(signal.SIGKILL)
    async with SqliteStore(path) as store:
        resource = made(StoreMemory(store))
        assert await follow(resource) >= 1
        assert await resource.acquire_state(SUBJECT) is None
        assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED


@signals
async def test_a_holder_that_was_stopped_past_its_time_does_no_harm(tmp_path: Path) -> None:
    """When it wakes up, its write is refused, and its unlock leaves the new holder's lock alone."""
    path = tmp_path / "machines.db"
    async with SqliteStore(path) as store:
        resource = made(StoreMemory(store))
        with holding(path, 1) as holder:
            holder.send_signal(signal.SIGSTOP)
            assert await follow(resource) >= 1
            await resource.persist_state(SUBJECT, {"by": "the second"}, None)
            holder.send_signal(signal.SIGCONT)
            _, told = await anyio.to_thread.run_sync(partial(holder.communicate, "go on\n", timeout=20))
        assert (holder.returncode, told.splitlines()[-1]) == (1, STALE)
        assert await resource.acquire_state(SUBJECT) == {"by": "the second"}
        assert await made(StoreMemory(store)).acquire_lock(SUBJECT) is LockStatus.NOT_ACQUIRED
        assert await resource.release_lock(SUBJECT, LockStatus.ACQUIRED) is ReleaseStatus.RELEASED


@every_backend
def test_the_example_runs(backend: str) -> None:
    """`examples/order_machine.py` keeps its promise, and says so."""
    result = run_example("order_machine.py", "--backend", backend)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.count("  every order is right\n") == 2


@pytest.mark.long
def test_the_example_notices_what_is_lost() -> None:
    """With a memory that looks at no snapshot, its check fails."""
    result = run_example("order_machine.py", "--careless")
    assert (result.stderr, result.returncode) == ("", 1)
    assert "WRONG: 20 events were handled " in result.stdout


if __name__ == "__main__":
    what, *args = sys.argv[1:]
    anyio.run(globals()[what], *args)
