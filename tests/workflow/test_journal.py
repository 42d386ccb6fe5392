"""`JournaledScope` and `recover`: what is written before it is made is closed, by its scope or by somebody else."""

# ruff: noqa: S105, S106 (the token of a cleanup is no password)

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import CloseTimeoutError, Err, Resource, ResourceCleanupError, Scope, ScopeClosedError
from rescope.events import ScopeEvent
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import Backoff, Entry, MemoryStore, SqliteStore, Store, StoreError
from rescope.workflow.journal import (
    CleanupTakenError,
    JournaledScope,
    PendingCleanup,
    RecoveryReport,
    _recovery,
    cleanup,
    pending,
    recover,
)
from rescope.workflow.journal import __main__ as command
from rescope.workflow.journal.__main__ import main
from rescope.workflow.journal._cleanups import _registered
from rescope.workflow.journal._report import as_table, rows
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, lease
from running import run_example
from workflow.broken_stores import Clock, Good
from workflow.openers import open_postgres, open_redis

HERE = Path(__file__).parent
once = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1], indirect=True)
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
NEVER = Backoff(first=60, jitter=0)  # within a test, that is
AT_ONCE = Backoff(first=0.001)


class Fault(Exception):
    """An error of our own."""


log: list[Any] = []
failing: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> Generator[None]:
    """Forget what the test before it has done, and the cleanups that it has registered."""
    log.clear()
    failing.clear()
    before = _registered.copy()
    yield
    _registered.clear()
    _registered.update(before)


async def make(token: Any) -> str:
    await anyio.lowlevel.checkpoint()
    log.append(f"made {token}")
    return f"the {token}"


def make_at_once(token: Any) -> str:
    log.append(f"made {token}")
    return f"the {token}"


@cleanup("test.remove")
async def remove(token: Any) -> None:
    await anyio.lowlevel.checkpoint()
    log.append(token)
    if token in failing:
        raise Fault("it is stuck")


@cleanup("test.remove-at-once")
def remove_at_once(token: Any) -> None:
    log.append(token)


@cleanup("test.reject")
def reject(token: Any) -> object:
    return Err(Fault("refused"))


@cleanup("test.hang")
async def hang(token: Any) -> None:
    log.append(token)
    await anyio.sleep_forever()


async def content(store: Any) -> list[str]:
    return [entry.key async for entry in store.scan("")]


async def tokens(store: Any) -> list[Any]:
    return [one.token for one in await pending(store)]


async def leave_behind(store: Any, *left: Any, cleanup: str = "test.remove", owner: str = "dead") -> None:
    """Let the journal hold what an owner leaves that dies with these resources in a scope."""
    before = await content(store)
    async with JournaledScope(store, owner) as scope:
        for token in left:
            await scope.acquire(make, "test.remove", token=token)
        records = {entry.key: entry.value async for entry in store.scan("journal/") if entry.key not in before}
        kept = failing.copy()
        failing.clear()
    failing.extend(kept)
    log.clear()
    for key, value in records.items():
        await store.put(key, {**value, "cleanup": cleanup})


class Cued(Good):
    """A store that does something before and after calls, and counts the calls about records."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], Any]] = {}
        self.after: dict[str, Callable[[], Any]] = {}

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        return await self._do("put", key, lambda: self.inner.put(key, value, ttl=ttl, if_version=if_version))

    async def get(self, key: str) -> Entry | None:
        return await self._do("get", key, lambda: self.inner.get(key))

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        return await self._do("delete", key, lambda: self.inner.delete(key, if_version=if_version))

    async def _do(self, name: str, key: str, call: Callable[[], Any]) -> Any:
        if not key.startswith("journal/"):
            return await call()
        self.calls.append(name)
        self.before.get(name, int)()
        result = await call()
        self.after.get(name, int)()
        return result


def fail() -> None:
    raise StoreError("no route to host")


# A scope in every other way


async def test_what_is_acquired_with_a_token_is_closed_by_its_cleanup() -> None:
    """`acquire` gives what was made; closing runs the cleanup with the token; then nothing is in the store."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        value = await scope.acquire(make, remove, token="a")
        assert scope.size == 1
        assert scope.has(value)
        assert await scope.acquire(make_at_once, remove_at_once, token={"id": 7}) == "the {'id': 7}"

    assert value == "the a"
    assert log == ["made a", "made {'id': 7}", {"id": 7}, "a"]
    assert await content(store) == []


async def test_the_intent_is_written_before_anything_is_made() -> None:
    """What creates finds its own record in the journal: whose it is, which cleanup, which token, at which place."""
    store = MemoryStore()
    seen: list[PendingCleanup] = []

    async def look(token: str) -> None:
        seen.extend(await pending(store))

    async with JournaledScope(store, owner="worker") as scope:
        await scope.acquire(look, "test.remove", token="a")

    assert [(one.owner, one.cleanup, one.token, one.place, one.live) for one in seen] == [
        ("worker", "test.remove", "a", "00000001", True)
    ]
    assert "token" not in repr(seen[0])


async def test_one_write_before_and_one_after() -> None:
    """A resource costs its intent and its end, and nothing between."""
    store = Cued(MemoryStore())
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        assert store.calls == ["put"]

    assert store.calls == ["put", "delete"]


async def test_it_holds_anything_else_too() -> None:
    """Ordinary resources are closed in one order with the journaled ones, and are in no journal."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        scope.defer(log.append, "deferred")
        await scope.acquire(lambda: "plain", log.append)
        await scope.acquire(make, remove, token="b")
        assert await tokens(store) == ["a", "b"]

    assert log == ["made a", "made b", "b", "plain", "deferred", "a"]


async def test_without_journaled_resources_nothing_is_written() -> None:
    """No lease is taken for a scope that journals nothing."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(lambda: 1, lambda _: None)
        assert await content(store) == []
    assert scope.state == "closed"


async def test_releasing_one_ends_its_record() -> None:
    """`release` runs the cleanup now."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        value = await scope.acquire(make, remove, token="a")
        await scope.acquire(make, remove, token="b")
        await scope.release(value)
        assert await tokens(store) == ["b"]
        assert log[-1] == "a"


async def test_children_journal_at_their_place() -> None:
    """What a child holds is closed at the child's place in the parent, by the scope and by who recovers it."""
    store = MemoryStore()
    records = {}
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        child = scope.child("child")
        await scope.acquire(make, remove, token="d")
        await child.acquire(make, remove, token="b")
        grandchild = child.child(grace=5, concurrent=True)
        await grandchild.acquire(make, remove, token="c")
        assert isinstance(grandchild, JournaledScope)
        records = {entry.key: entry.value async for entry in store.scan("journal/")}
        log.clear()

    by_scope = log.copy()
    for key, value in records.items():
        await store.put(key, value)
    report = await recover(store)
    assert by_scope == ["d", "c", "b", "a"]
    assert [one.token for one in report.closed] == by_scope


async def test_moving_goes_on_with_the_journal() -> None:
    """The new scope holds the lease, and what it acquires comes after what it was handed, also when recovered."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        moved = scope.move()
    assert await recover(store) == RecoveryReport()
    await moved.acquire(make, remove, token="b")
    assert [one.place for one in await pending(store)] == ["00000001", "00000002"]
    await moved.aclose()

    assert log == ["made a", "made b", "b", "a"]
    assert await content(store) == []


async def test_what_is_detached_stays_in_the_journal() -> None:
    """The lease is kept for it, and given back when it is closed."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        handle = scope.detach(await scope.acquire(make, remove, token="a"))
    assert (await recover(store)).closed == ()
    assert [one.live for one in await pending(store)] == [True]
    await handle.aclose()

    assert log == ["made a", "a"]
    assert await content(store) == []


async def test_events_are_those_of_a_scope() -> None:
    """`on_event` is told what a `Scope` would tell: the lease is no resource."""

    async def told(scope: Scope, acquire: Callable[[Any], Any]) -> list[tuple[str, str | None]]:
        async with scope:
            await acquire(scope)
            scope.child("child")
        return events.copy()

    events: list[tuple[str, str | None]] = []

    def on_event(event: ScopeEvent) -> None:
        events.append((event.kind, event.resource))

    journaled = JournaledScope(MemoryStore(), "worker", name="s", grace=5, on_event=on_event)
    of_journaled = await told(journaled, lambda scope: scope.acquire(make, remove, token="a", name="a"))
    events.clear()
    plain = Scope("s", grace=5, on_event=on_event)
    of_plain = await told(plain, lambda scope: scope.acquire(lambda: 1, lambda _: None, name="a"))

    assert of_journaled == of_plain


async def test_a_resource_is_called_after_its_cleanup() -> None:
    """Unless it is given a name."""
    async with JournaledScope(MemoryStore(), "worker") as scope:
        await scope.acquire(make, remove, token="a")
        await scope.acquire(make, remove, token="b", name="bee", timeout=3)

        assert [(one.name, one.timeout) for one in scope.resources] == [("test.remove", None), ("bee", 3)]


async def test_a_concurrent_scope_closes_all_at_once() -> None:
    """Its cleanups run side by side."""
    store = MemoryStore()
    async with JournaledScope(store, "worker", concurrent=True) as scope:
        for token in "abc":
            await scope.acquire(make, remove, token=token)

    assert sorted(log[3:]) == ["a", "b", "c"]
    assert await content(store) == []


async def test_a_sync_cleanup_runs_in_the_closing_task_and_its_context() -> None:
    """As any sync closer does."""
    var.set("here")
    async with JournaledScope(MemoryStore(), "worker") as scope:
        await scope.acquire(make, "test.where", token="a")
        task = anyio.get_current_task().id

    assert log == ["made a", (task, "here")]


var: ContextVar[str] = ContextVar("var", default="elsewhere")


@cleanup("test.where")
def where(token: Any) -> None:
    log.append((anyio.get_current_task().id, var.get()))


async def test_a_scope_that_is_dropped_is_gone_at_once() -> None:
    """No circle keeps it: the warning comes there and then, and not when the garbage is collected."""
    scope = JournaledScope(MemoryStore(), "worker")
    await scope.acquire(make, remove, token="a")
    gone = weakref.ref(scope)
    with pytest.warns(ResourceWarning, match=r"it still held: test\.remove"):
        del scope
    assert gone() is None


async def test_a_token_is_copied_as_json() -> None:
    """The cleanup gets what it would get after a crash, whatever becomes of the token meanwhile; `None` is one."""
    store = MemoryStore()
    token = {"parts": (1, 2)}
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token=token)
        await scope.acquire(make, remove, token=None)
        token["parts"] = ()

    assert log[2:] == [None, {"parts": [1, 2]}]


# Failing


async def test_a_cleanup_that_fails_is_told_and_its_record_kept() -> None:
    """It is one failure of the closing like any other, and left to recover at once."""
    store = MemoryStore()
    failing.append("b")
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker") as scope:
            await scope.acquire(make, remove, token="a")
            await scope.acquire(make, remove, token="b")
            await scope.acquire(make, reject, token="c")

    assert [failure.name for failure in caught.value.failures] == ["test.reject", "test.remove"]
    assert [str(error) for error in caught.value.errors] == ["refused", "it is stuck"]
    assert [(one.token, one.live) for one in await pending(store)] == [("b", False), ("c", False)]
    failing.clear()
    assert [one.token for one in (await recover(store, backoff=NEVER)).closed] == ["b"]


async def test_what_failed_to_close_is_left_to_recover_though_its_owner_lives() -> None:
    """At once, and with what it failed with; what the owner still holds isn't touched."""
    store = MemoryStore()
    failing.append("b")
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        with pytest.raises(ResourceCleanupError):
            await scope.release(await scope.acquire(make, remove, token="b"))
        assert [(one.token, one.live, one.error) for one in await pending(store)] == [
            ("b", False, "Fault: it is stuck"),
            ("a", True, None),
        ]
        failing.clear()
        assert [one.token for one in (await recover(store)).closed] == ["b"]

    assert log == ["made a", "made b", "b", "b", "a"]
    assert await content(store) == []


async def test_a_cleanup_may_take_its_token_apart() -> None:
    """It has a copy each time: what stays in the journal when it fails is the whole token."""
    store = MemoryStore()
    token = {"names": ["a", "b"]}
    async with JournaledScope(store, "worker") as scope:
        value = await scope.acquire(make, "test.take-apart", token=token)
        with pytest.raises(ResourceCleanupError, match="took a"):
            await scope.release(value)
        assert await tokens(store) == [token]
    report = await recover(store, backoff=NEVER)

    assert [(one.token, one.error) for one in report.failed] == [(token, "Fault: took a")]
    assert await tokens(store) == [token]


@cleanup("test.take-apart")
def take_apart(token: dict[str, list[str]]) -> None:
    raise Fault(f"took {token.pop('names').pop(0)}")


async def test_what_hangs_is_left_to_recover_too() -> None:
    """When it was cut off."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        with pytest.raises(ResourceCleanupError):
            await scope.release(await scope.acquire(make, hang, token="b", timeout=0.01))
        with anyio.fail_after(20):  # on a busy machine it may be left behind, and write that a bit later
            while [(one.token, one.live) for one in await pending(store)] != [("b", False), ("a", True)]:
                await anyio.lowlevel.checkpoint()
        assert [one.error for one in await pending(store)] == ["it was cut off", None]
        assert [one.token for one in (await recover(store, grace=0.01, backoff=NEVER)).failed] == ["b"]


async def test_what_can_not_be_left_to_recover_stays_its_owners(caplog: pytest.LogCaptureFixture) -> None:
    """Where the store fails just then, that is told, and nothing is lost."""
    store = Cued(MemoryStore())
    failing.append("b")
    async with JournaledScope(store, "worker") as scope:
        value = await scope.acquire(make, remove, token="b")
        store.before["put"] = fail
        with pytest.raises(ResourceCleanupError, match="it is stuck"):
            await scope.release(value)
        assert [(one.token, one.live) for one in await pending(store)] == [("b", True)]

    assert "what 'test.remove' could not close may stay until its owner has ended" in caplog.text
    assert await tokens(store) == ["b"]


async def test_an_owner_that_lost_its_lease_in_a_failing_cleanup_leaves_no_second_record() -> None:
    """Somebody may have closed it meanwhile."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    clocks[:] = [clock]
    with pytest.raises(ResourceCleanupError):
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, "test.late-failure", token="a")
            keys = [one.key for one in await pending(store)]

    assert [one.key for one in await pending(store)] == keys


clocks: list[Clock] = []


@cleanup("test.late-failure")
async def fail_late(token: Any) -> None:
    clocks[0].advance(31)
    raise Fault("too late")


async def test_a_cleanup_out_of_time_is_kept() -> None:
    """`timeout` bounds it; the record stays."""
    store = MemoryStore()
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker") as scope:
            await scope.acquire(make, hang, token="a", timeout=0.01)

    assert isinstance(caught.value.errors[0], CloseTimeoutError)
    assert await tokens(store) == ["a"]


async def test_what_could_not_be_made_is_cleaned_up() -> None:
    """Something may have been made: the cleanup runs before the error comes out, and nothing is held."""
    store = MemoryStore()

    async def half(token: str) -> None:
        log.append("half made")
        raise Fault("no quota")

    async with JournaledScope(store, "worker") as scope:
        with pytest.raises(Fault, match="no quota"):
            await scope.acquire(half, remove, token="a")
        assert scope.size == 0
        assert await tokens(store) == []

    assert log == ["half made", "a"]
    assert await content(store) == []


async def test_what_could_not_be_made_is_cleaned_up_in_time() -> None:
    """The options of the resource hold for that too: its name, its timeout, its last resort."""

    def half(token: str) -> None:
        raise Fault("no quota")

    async with JournaledScope(MemoryStore(), "worker") as scope:
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.acquire(half, hang, token="a", name="vm", timeout=0.01, force=lambda: log.append("forced"))

    assert [(failure.name, failure.timed_out) for failure in caught.value.failures] == [("vm", True)]
    assert isinstance(caught.value.__cause__, Fault)
    assert log == ["a", "forced"]


async def test_what_could_neither_be_made_nor_cleaned_up_is_kept() -> None:
    """The failing cleanup is raised from the error, as of any scope, and its record stays."""
    store = MemoryStore()
    failing.append("a")

    def half(token: str) -> None:
        raise Fault("no quota")

    async with JournaledScope(store, "worker") as scope:
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.acquire(half, remove, token="a")

    assert str(caught.value.__cause__) == "no quota"
    assert await tokens(store) == ["a"]


async def test_a_cancelled_create_is_cleaned_up() -> None:
    """Nothing cancels the cleanup."""
    store = MemoryStore()

    async def hang_making(token: str) -> None:
        log.append("half made")
        cancelled.cancel()
        await anyio.sleep_forever()

    async with JournaledScope(store, "worker") as scope:
        with anyio.CancelScope() as cancelled:
            await scope.acquire(hang_making, remove, token="a")

    assert cancelled.cancelled_caught
    assert log == ["half made", "a"]
    assert await content(store) == []


async def test_shield_lets_a_create_end() -> None:
    """With `shield=True` the cancellation waits, and what was made is held."""
    store = MemoryStore()

    async def go_on(token: str) -> str:
        cancelled.cancel()
        return await make(token)

    async with JournaledScope(store, "worker") as scope:
        with anyio.CancelScope() as cancelled:
            await scope.acquire(go_on, remove, token="a", shield=True)
            await anyio.lowlevel.checkpoint()
        assert await tokens(store) == ["a"]

    assert log == ["made a", "a"]


async def test_no_cancellation_leaves_anything() -> None:
    """Cancelled at every point, what was made is cleaned up in order, and no record or lease is left."""
    stores: list[MemoryStore] = []

    async def program(ledger: Ledger) -> None:
        def opened(token: str) -> str:
            return ledger.opened(token)

        async def create(token: str) -> str:
            await anyio.lowlevel.checkpoint()
            made = ledger.opened(token)
            current.add(token)
            await anyio.lowlevel.checkpoint()
            return made

        ledgers[:] = [ledger]
        stores.append(MemoryStore())
        async with JournaledScope(stores[-1], "worker") as scope:
            await scope.acquire(create, "test.ledger", token="a")
            child = scope.child()
            await child.acquire(create, "test.ledger", token="b", shield=True)
            await scope.acquire(create, "test.ledger", token="c")

    report = await cancel_everywhere(program)

    assert report.scope > 20
    left = [key for store in stores for key in await content(store)]
    assert left == []


ledgers: list[Ledger] = []
current: set[str] = set()


@cleanup("test.ledger")
async def close_in_ledger(token: str) -> None:
    await anyio.lowlevel.checkpoint()
    if token in current:
        current.remove(token)
        ledgers[0].closed(token)


async def test_a_scope_closed_meanwhile_keeps_nothing() -> None:
    """What is made too late is cleaned up again, and `ScopeClosedError` raised."""
    store = MemoryStore()
    scope = JournaledScope(store, "worker")

    async def slow(token: str) -> None:
        await scope.aclose()

    with pytest.raises(ScopeClosedError):
        await scope.acquire(slow, remove, token="a")
    assert log == ["a"]
    assert await content(store) == []


async def test_a_scope_closed_before_its_lease_is_there_makes_nothing() -> None:
    """The lease is given back."""

    class Closing(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            version = await super().put(key, value, ttl=ttl, if_version=if_version)
            await scope.aclose()
            return version

    store = MemoryStore()
    scope = JournaledScope(Closing(store), "worker")
    with pytest.raises(ScopeClosedError, match="nothing was made"):
        await scope.acquire(make, remove, token="a")

    assert log == []
    assert await content(store) == []


async def test_a_closed_scope_writes_nothing() -> None:
    """`ScopeClosedError` comes before the intent."""
    store = Cued(MemoryStore())
    scope = JournaledScope(store, "worker")
    await scope.aclose()

    with pytest.raises(ScopeClosedError):
        await scope.acquire(make, remove, token="a")
    assert store.calls == []


async def test_what_is_acquired_while_closing_is_closed_too() -> None:
    """A cleanup may acquire; the lease is given back when all is closed."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        scope.defer(scope.acquire, make, remove, token="late")  # type: ignore[arg-type]

    assert log == ["made late", "late"]
    assert await content(store) == []


async def test_a_store_that_fails_makes_nothing() -> None:
    """Where the intent can't be written, `StoreError` is raised; one that may stand all the same is told."""
    inner = MemoryStore()
    store = Cued(inner)
    async with JournaledScope(store, "worker") as scope:
        store.before["put"] = fail
        with pytest.raises(StoreError, match="no route"):
            await scope.acquire(make, remove, token="a")

    assert log == []
    assert await content(inner) == []


async def test_an_intent_that_may_stand_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Its cleanup will have nothing to do."""
    store = Cued(MemoryStore())
    async with JournaledScope(store, "worker") as scope:
        store.after["put"] = store.before["delete"] = fail
        with pytest.raises(StoreError, match="no route"):
            await scope.acquire(make, remove, token="secret")

    assert await tokens(store) == ["secret"]
    assert "the intent to make what 'test.remove' cleans up may stand" in caplog.text
    assert "secret" not in caplog.text


async def test_a_record_that_can_not_be_deleted_is_told() -> None:
    """The cleanup has run, and will run again: that is a failure to close."""
    store = Cued(MemoryStore())
    with pytest.raises(ResourceCleanupError, match="no route"):
        async with JournaledScope(store, "worker") as scope:
            await scope.acquire(make, remove, token="a")
            store.before["delete"] = fail

    assert log == ["made a", "a"]
    assert await tokens(store) == ["a"]


# The lease


async def test_scopes_of_one_owner_share_a_lease() -> None:
    """There is one for all, from the first acquisition with a token to the end of the last scope."""
    store = MemoryStore()
    async with JournaledScope(store, "worker") as first, JournaledScope(store, "worker") as second:
        async with anyio.create_task_group() as tasks:
            for scope, token in ((first, "a"), (first, "b"), (second, "c")):
                tasks.start_soon(lambda scope=scope, token=token: scope.acquire(make, remove, token=token))
        assert len([key for key in await content(store) if key.startswith("lease/")]) == 1
        assert {one.life for one in await pending(store)} == {(await pending(store))[0].life}
        await first.aclose()
        assert [one.live for one in await pending(store)] == [True]

    assert await content(store) == []


async def test_two_lives_under_one_name_do_not_meet() -> None:
    """A process that is started again begins at once, and what the one before left is recovered beside it."""
    store = MemoryStore()
    await leave_behind(store, "old", owner="worker")
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="new")
        report = await recover(store)
        assert [one.token for one in report.closed] == ["old"]
        assert await tokens(store) == ["new"]

    assert log == ["made new", "old", "new"]


@once
async def test_recover_leaves_a_live_owner_alone() -> None:
    """However long it lives, as its lease is renewed."""
    store = MemoryStore()
    async with JournaledScope(store, "worker", ttl=0.6) as scope:
        await scope.acquire(make, remove, token="a")
        [lease] = [key for key in await content(store) if key.startswith("lease/")]
        versions: set[int] = set()
        while len(versions) < 5:  # it was taken once, and renewed for longer than the ttl
            assert await recover(store) == RecoveryReport()
            versions.add(store._held[lease].version)
            await anyio.sleep(0.01)

    assert log == ["made a", "a"]


async def test_recover_does_not_ask_for_the_lease_of_a_live_owner() -> None:
    """That would take half a second for each."""

    class Asked(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            asked.append(key)
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    asked: list[str] = []
    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        await recover(Asked(store))

    assert asked == ["lease/journal-recovery"]


async def test_what_is_registered_while_the_lease_is_given_back_is_closed_too() -> None:
    """The scope is still closing then."""

    class Slow(Good):
        async def delete(self, key: str, *, if_version: int | None = None) -> bool:
            if key.startswith("lease/"):
                scope.defer(log.append, "late")
            return await super().delete(key, if_version=if_version)

    async with JournaledScope(Slow(MemoryStore()), "worker") as scope:
        await scope.acquire(make, remove, token="a")

    assert log == ["made a", "a", "late"]


@once
async def test_a_lease_that_can_not_be_had_makes_nothing() -> None:
    """`acquire` raises the `StoreError`; the scope goes on, and tries again."""

    class Down(Good):
        down = True

        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if self.down:
                fail()
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    store = Down(MemoryStore())
    async with JournaledScope(store, "worker", ttl=0.3) as scope:
        with pytest.raises(StoreError, match="no route"):
            await scope.acquire(make, remove, token="a")
        store.down = False
        await scope.acquire(make, remove, token="b")

    assert log == ["made b", "b"]
    assert await content(store) == []


class Ticking(Clock):
    """One by which the tries for a lease that is held come to an end."""

    def __call__(self) -> float:
        self.now += 0.05
        return self.now


async def test_an_owner_that_has_lost_its_lease_journals_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """It says so, writes nothing and makes nothing; a new scope begins another life."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        clock.advance(31)
        for _ in range(2):
            with pytest.raises(LeaseLostError, match="its time ran out"):
                await scope.acquire(make, remove, token="b")
        await anyio.wait_all_tasks_blocked()
        async with JournaledScope(store, "worker", clock=clock) as another:
            await another.acquire(make, remove, token="c")
            assert sorted(await tokens(store)) == ["a", "c"]

    assert log == ["made a", "made c", "c", "a"]
    assert await content(store) == []
    told = [record for record in caplog.records if "has lost its lease, and journals nothing more" in record.message]
    assert [record.levelname for record in told] == ["WARNING"]


async def test_children_are_of_the_life_of_those_around_them() -> None:
    """What a parent holds may be destroyed when its lease is lost: nothing is built on it in another life."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        child = scope.child()
        await child.acquire(make, remove, token="a")
        clock.advance(31)
        for one in (scope, scope.child(), child.child(), scope.move()):
            with pytest.raises(LeaseLostError):
                await one.acquire(make, remove, token="b")
            await one.aclose()

    assert log == ["made a", "a"]
    assert await content(store) == []


async def test_a_family_of_which_nobody_stands_on_a_lease_may_have_another() -> None:
    """What was lost is closed by then."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        for token in "ab":
            async with scope.child() as child:
                await child.acquire(make, remove, token=token)
                clock.advance(31)

    assert log == ["made a", "a", "made b", "b"]
    assert await content(store) == []


async def test_who_was_refused_may_join_when_what_was_lost_is_closed() -> None:
    """It was never one of those that stood on the lost lease."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        first, second = scope.child(), scope.child()
        await first.acquire(make, remove, token="a")
        clock.advance(31)
        with pytest.raises(LeaseLostError):
            await second.acquire(make, remove, token="b")
        await first.aclose()
        await second.acquire(make, remove, token="b")

    assert log == ["made a", "a", "made b", "b"]


async def test_scopes_of_a_family_that_begin_at_the_same_time_have_one_life() -> None:
    """Also where the lease was lost before the others had joined it: those are refused."""
    clock = Clock()
    refused: list[str] = []

    class Late(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if key.startswith("journal/"):
                clock.advance(31)
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    async def acquire(token: str) -> None:
        try:
            await scope.child().acquire(make, remove, token=token)
        except LeaseLostError as lost:
            refused.append(lost.name)

    store = MemoryStore(clock=clock)
    async with JournaledScope(Late(store), "worker", clock=clock) as scope, anyio.create_task_group() as tasks:
        for token in "abc":
            tasks.start_soon(acquire, token)

    assert len(refused) == 3
    assert len(set(refused)) == 1
    assert log == []
    assert await content(store) == []


async def test_a_cleanup_of_a_lost_owner_may_close_another() -> None:
    """They share the lease that is taken back for it: none waits for the other."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        handles[:] = scope.resources
        await scope.acquire(make, "test.close-another", token="b")
        clock.advance(31)

    assert log == ["made a", "made b", "a", "b"]
    assert await content(store) == []


async def test_a_lease_that_was_taken_back_and_lost_again_closes_nothing_more() -> None:
    """What was begun ends; the rest is left."""
    clock = Clock()
    clocks[:] = [clock]
    store = MemoryStore(clock=clock)
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            handles[:] = scope.resources
            await scope.acquire(make, "test.close-another", token="too late")
            clock.advance(31)

    assert [type(inner) for error in caught.value.errors for inner in error.exceptions] == [LeaseLostError]
    assert log == ["made a", "made too late"]
    assert await tokens(store) == ["a", "too late"]


handles: list[Resource[Any]] = []


@cleanup("test.close-another")
async def close_another(token: Any) -> None:
    if token == "too late":
        clocks[0].advance(31)
    await handles[0].aclose()
    log.append(token)


async def test_what_is_recovered_while_the_lease_is_taken_back_is_not_closed_again() -> None:
    """It is looked for once more when nobody else can close it."""
    clock = Clock()
    memory = MemoryStore(clock=clock)
    store = Cued(memory)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        clock.advance(31)
        [key] = [one.key for one in await pending(store)]
        store.after["get"] = lambda: memory._held.get(key) and memory._drop(key)

    assert log == ["made a"]


async def test_a_loss_that_shows_when_it_is_given_back_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """By the same WARNING."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        clock.advance(31)

    assert log == ["made a", "a"]
    assert "has lost its lease" in caplog.text


async def test_what_was_recovered_is_not_closed_again() -> None:
    """An owner that wakes up when its lease has run out leaves alone what has no record any more."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        await scope.acquire(make, remove, token="b")
        clock.advance(31)
        assert [one.token for one in (await recover(store)).closed] == ["b", "a"]

    assert log == ["made a", "made b", "b", "a"]
    assert await content(store) == []


async def test_what_is_being_recovered_is_left_to_who_does() -> None:
    """Where somebody has the owner's lease, the owner's close fails and says so, and runs nothing."""
    clock = Ticking()
    store = MemoryStore(clock=clock)
    with pytest.raises(ResourceCleanupError, match="is left to who recovers it now") as caught:
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            clock.advance(31)
            await store.put((await content(store))[0].replace("journal/", "lease/journal/", 1).rsplit("/", 2)[0], {})

    assert isinstance(caught.value.errors[0], CleanupTakenError)
    assert (caught.value.errors[0].cleanup, caught.value.errors[0].owner) == ("test.remove", "worker")
    assert log == ["made a"]
    assert await tokens(store) == ["a"]


async def test_what_is_older_than_what_was_left_is_left_too() -> None:
    """Else the older one would go first, where the recoverer ends before it has come to the younger one."""
    clock = Ticking()
    store = MemoryStore(clock=clock)
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            younger = await scope.acquire(make, remove, token="b")
            clock.advance(31)
            lease = f"lease/journal/6:worker/{(await pending(store))[0].life}"
            await store.put(lease, {})
            with pytest.raises(ResourceCleanupError, match="is left to who recovers it now"):
                await scope.release(younger)
            await store.delete(lease)

    assert [type(error) for error in caught.value.errors] == [CleanupTakenError]
    assert [one.token for one in (await recover(store)).closed] == ["b", "a"]
    assert log == ["made a", "made b", "b", "a"]


async def test_what_is_older_than_what_could_not_be_looked_at_is_left_too() -> None:
    """A store that fails just then is no reason to close them out of order."""
    clock = Clock()
    store = Cued(MemoryStore(clock=clock))
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            younger = await scope.acquire(make, remove, token="b")
            clock.advance(31)
            store.before["get"] = fail
            with pytest.raises(ResourceCleanupError, match="no route"):
                await scope.release(younger)
            del store.before["get"]

    assert [type(error) for error in caught.value.errors] == [CleanupTakenError]
    assert [one.token for one in (await recover(store)).closed] == ["b", "a"]


async def test_what_fails_in_a_lost_life_keeps_nobody_waiting() -> None:
    """It was tried, as in any scope: the older ones are closed."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    failing.append("b")
    with pytest.raises(ResourceCleanupError, match="it is stuck"):
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            await scope.acquire(make, remove, token="b")
            clock.advance(31)

    assert log == ["made a", "made b", "b", "a"]
    assert await tokens(store) == ["b"]


@pytest.mark.parametrize("concurrent", [False, True])
async def test_no_cancellation_leaves_anything_of_a_lost_life(*, concurrent: bool) -> None:
    """Cancelled at every point, all is closed, and no record or lease is left."""
    stores: list[MemoryStore] = []

    async def program(ledger: Ledger) -> None:
        clock = Clock()
        stores.append(MemoryStore(clock=clock))
        async with JournaledScope(stores[-1], "worker", concurrent=concurrent, clock=clock) as scope:
            await scope.acquire(make, remove, token="a")
            await scope.acquire(make, remove, token="b")
            clock.advance(31)

    report = await cancel_everywhere(program)

    assert report.scope > 10
    assert [key for store in stores for key in await content(store)] == []


async def test_what_was_recovered_meanwhile_is_no_failure_of_one_that_had_to_leave_something() -> None:
    """There is nothing left to close."""
    clock = Ticking()
    store = MemoryStore(clock=clock)
    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="a")
        younger = await scope.acquire(make, remove, token="b")
        clock.advance(31)
        lease = f"lease/journal/6:worker/{(await pending(store))[0].life}"
        await store.put(lease, {})
        with pytest.raises(ResourceCleanupError):
            await scope.release(younger)
        await store.delete(lease)
        await recover(store)

    assert log == ["made a", "made b", "b", "a"]


async def test_a_lease_lost_between_intent_and_create_makes_nothing() -> None:
    """It is looked at once more when the intent is written: somebody may have recovered that."""
    clock = Clock()
    store = Cued(MemoryStore(clock=clock))
    async with JournaledScope(store, "worker", clock=clock) as scope:
        store.after["put"] = lambda: clock.advance(31)
        with pytest.raises(LeaseLostError):
            await scope.acquire(make, remove, token="a")

    assert log == []
    assert await content(store) == []


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_made_while_the_lease_is_lost_is_cleaned_up(*, fails: bool) -> None:
    """Also when its intent was recovered before it was there, and when making it failed."""
    clock = Clock()
    store = MemoryStore(clock=clock)

    async def slow(token: str) -> None:
        clock.advance(31)
        assert [one.token for one in (await recover(store)).closed] == ["a"]
        log.append("made late")
        if fails:
            raise Fault("no quota")

    async with JournaledScope(store, "worker", clock=clock) as scope:
        with pytest.raises(Fault if fails else LeaseLostError):
            await scope.acquire(slow, remove, token="a")

    assert log == ["a", "made late", "a"]
    assert await content(store) == []


async def test_what_is_made_late_while_somebody_recovers_gets_its_record_back() -> None:
    """Then the next pass finds it."""
    clock = Ticking()
    store = MemoryStore(clock=clock)

    async def slow(token: str) -> None:
        clock.advance(31)
        await recover(store)
        await take_lease_of(store)
        log.append("made late")

    async def take_lease_of(store: MemoryStore) -> None:
        await store.put(f"lease/journal/6:worker/{life}", {})

    async with JournaledScope(store, "worker", clock=clock) as scope:
        await scope.acquire(make, remove, token="first")
        life = (await pending(store))[0].life
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.acquire(slow, remove, token="a")
        await store.delete(f"lease/journal/6:worker/{life}")

    assert isinstance(caught.value.errors[0], CleanupTakenError)
    assert isinstance(caught.value.__cause__, LeaseLostError)
    assert await tokens(store) == ["a"]
    assert [one.token for one in (await recover(store)).closed] == ["a"]


async def test_a_lease_that_a_cleanup_can_not_have_is_its_own_failure() -> None:
    """A `LeaseHeldError` of the cleanup of a lost owner is not taken for a recoverer's."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    failing.append("a")
    with pytest.raises(ResourceCleanupError) as caught:
        async with JournaledScope(store, "worker", clock=clock) as scope:
            await scope.acquire(make, "test.needs-lease", token="a")
            clock.advance(31)

    assert isinstance(caught.value.errors[0], LeaseHeldError)


@cleanup("test.needs-lease")
def needs_lease(token: str) -> None:
    raise LeaseHeldError("another", None, None)


# Bad input


async def test_a_cleanup_has_one_name() -> None:
    """A name that is taken is refused, by whichever function, and says which has it."""
    with pytest.raises(ValueError, match=r"'test.remove' is registered already, remove: take another name"):
        cleanup("test.remove")(lambda token: None)
    with pytest.raises(ValueError, match="is registered already"):
        cleanup("test.remove")(remove)


async def test_a_cleanup_may_have_an_old_name() -> None:
    """The name on top is the one that is written; the other one is still found."""
    store = MemoryStore()

    @cleanup("test.new-name")
    @cleanup("test.old-name")
    def renamed(token: str) -> None:
        log.append(token)

    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, renamed, token="a")
        assert [one.cleanup for one in await pending(store)] == ["test.new-name"]
        await scope.acquire(make, "test.old-name", token="b")
    assert log == ["made a", "made b", "b", "a"]


def test_what_is_no_cleanup() -> None:
    """The mend is in the message."""

    def generator(token: str) -> Any:
        yield

    async def async_generator(token: str) -> Any:
        yield

    with pytest.raises(TypeError, match=r"`@cleanup\('hang'\)` above the function"):
        cleanup(hang)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the name of a cleanup must be a string, not a int"):
        cleanup(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the name of a cleanup must not be empty"):
        cleanup("")
    with pytest.raises(TypeError, match="must be callable"):
        cleanup("test.x")("function")  # type: ignore[type-var]
    for fn in (generator, async_generator):
        with pytest.raises(TypeError, match="is a generator function"):
            cleanup("test.x")(fn)


async def test_bad_arguments_are_refused_before_anything_is_written() -> None:
    """Tokens that aren't JSON, cleanups that aren't registered, what can't be called."""
    store = Cued(MemoryStore())

    async def coroutine() -> None:
        """Never runs."""

    async with JournaledScope(store, "worker") as scope:
        for token, error in (
            ({1}, TypeError),
            (b"x", TypeError),
            (math.nan, ValueError),
            (object(), TypeError),
            ([{"a": ({7: "a number"},)}], TypeError),
        ):
            with pytest.raises(error, match="`token` is not JSON"):
                await scope.acquire(make, remove, token=token)
        with pytest.raises(
            ValueError, match=r'no cleanup \'test.none\': decorate a function with `@cleanup\("test.none'
        ):
            await scope.acquire(make, "test.none", token="a")
        with pytest.raises(ValueError, match=r"make is no cleanup: decorate it"):
            await scope.acquire(make, make, token="a")
        with pytest.raises(TypeError, match="`cleanup` must be callable, not a int"):
            await scope.acquire(make, 7, token="a")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="pass the function itself"):
            await scope.acquire(coroutine(), remove, token="a")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"the cleanup 'test.remove' needs a token"):
            await scope.acquire(lambda: 1, "test.remove")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="`timeout` must be a number"):
            await scope.acquire(make, remove, token="a", timeout="soon")  # type: ignore[call-overload]

    assert store.calls == []
    assert await content(store) == []


async def test_a_token_is_never_shown() -> None:
    """Not in the error about one that isn't JSON either."""
    async with JournaledScope(MemoryStore(), "worker") as scope:
        with pytest.raises(TypeError) as caught:
            await scope.acquire(make, remove, token=["hunter2", {1}])

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((7, "worker"), TypeError, "`store` must be a store, as `MemoryStore()`, not a int"),
        ((MemoryStore, "worker"), TypeError, "not the class MemoryStore"),
        ((MemoryStore(), 7), TypeError, "`owner` must be a string, not a int"),
        ((MemoryStore(), ""), ValueError, "`owner` must not be empty"),
        ((MemoryStore(), "x" * 201), ValueError, "`owner` must be at most 200 bytes"),
    ],
)
def test_a_journal_needs_a_store_and_an_owner(arguments: Any, error: type[Exception], message: str) -> None:
    """What can't be one is refused at once."""
    with pytest.raises(error, match=re.escape(message)):
        JournaledScope(*arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl": None}, TypeError),
        ({"ttl": "30"}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"clock": 7}, TypeError),
        ({"name": 7}, TypeError),
        ({"grace": -1}, ValueError),
        ({"on_event": 7}, TypeError),
    ],
)
def test_bad_options_of_a_scope(options: Any, error: type[Exception]) -> None:
    """They are refused at once, those of every scope too."""
    with pytest.raises(error):
        JournaledScope(MemoryStore(), "worker", **options)


async def test_scopes_nested_too_deep() -> None:
    """A key of the store has its limit: nothing is written, and the message says what to do."""
    store = Cued(MemoryStore())
    async with JournaledScope(store, "w" * 200) as scope:
        deep: JournaledScope = scope
        for _ in range(40):
            deep = deep.child()
        with pytest.raises(ValueError, match="nested too deep"):
            await deep.acquire(make, remove, token="a")
    assert store.calls == []


# Recovering


async def test_recover_closes_in_reverse_and_reports() -> None:
    """The report says what was closed, in that order, and prints as a table."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    progress: list[Any] = []
    report = await recover(store, on_progress=lambda one: progress.append(one.token))

    assert log == progress == ["c", "b", "a"]
    assert [one.token for one in report.closed] == ["c", "b", "a"]
    assert report.clean
    assert str(report).splitlines()[0].split() == ["owner", "scope", "place", "cleanup", "since", "(UTC)", "state"]
    assert str(report).splitlines()[2].split()[0] == "dead"
    assert str(report).splitlines()[-1] == "3 closed"
    assert await content(store) == []
    assert str(await recover(store)) == "0 closed"


async def test_a_failing_cleanup_is_kept_and_keeps_nobody_waiting() -> None:
    """Neither an older one of its scope nor another scope's; the report says how often it failed, and why."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    await leave_behind(store, "d", owner="other")
    failing.append("b")
    report = await recover(store, backoff=NEVER)

    assert sorted(log) == ["a", "b", "c", "d"]
    assert [one for one in log if one != "d"] == ["c", "b", "a"]
    assert [(one.token, one.attempts, one.error) for one in report.failed] == [("b", 1, "Fault: it is stuck")]
    assert str(report).splitlines()[-1] == "3 closed, 1 failed"
    assert "failed, 1 try: Fault: it is stuck; next try" in str(report)
    assert not report.clean
    assert [(one.token, one.attempts) for one in await pending(store)] == [("b", 1)]


async def test_a_failing_cleanup_is_tried_again_within_the_pass() -> None:
    """The first time within a second; what then succeeds is closed."""
    store = MemoryStore()
    await leave_behind(store, "a")
    failing.append("a")
    report = await recover(store, backoff=AT_ONCE, on_progress=lambda one: failing.clear())

    assert log == ["a", "a"]
    assert [(one.token, one.attempts) for one in report.closed] == [("a", 1)]
    assert await content(store) == []


def test_the_first_retry_is_due_within_a_second() -> None:
    """Unless another backoff is given."""
    from rescope.workflow.journal._recovery import BACKOFF

    assert 0 < BACKOFF(1) <= 1
    assert BACKOFF(100) <= 3600


async def test_a_pass_tries_three_times_at_most() -> None:
    """However short the backoff is."""
    store = MemoryStore()
    await leave_behind(store, "a")
    failing.append("a")
    report = await recover(store, backoff=lambda attempts: 0)

    assert log == ["a", "a", "a"]
    assert [one.attempts for one in report.failed] == [3]


async def test_a_retry_comes_before_what_is_older() -> None:
    """As it is younger, and due."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    failing.append("b")
    await recover(store, backoff=lambda attempts: 0)

    assert log == ["c", "b", "b", "b", "a"]


async def test_a_retry_is_not_refused_as_the_pass_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the others have taken, what fails is tried again soon."""
    store = MemoryStore()
    await leave_behind(store, "a")
    failing.append("a")
    turned = turn_the_clock_of_the_loop(monkeypatch)

    def on_progress(one: PendingCleanup) -> None:
        turned.now += 10
        if one.attempts == 2:
            failing.clear()

    assert (await recover(store, backoff=lambda attempts: 0, on_progress=on_progress)).clean
    assert log == ["a", "a", "a"]


def turn_the_clock_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give a clock that adds to the one by which a pass goes."""
    turned, current_time = Clock(), anyio.current_time
    turned.now = 0
    monkeypatch.setattr(anyio, "current_time", lambda: current_time() + turned.now)
    return turned


@once
async def test_what_hangs_starves_nobody() -> None:
    """A cleanup may take all of the grace only where no other one waits for its first try."""
    store = MemoryStore()
    await leave_behind(store, "a", cleanup="test.hang")
    await leave_behind(store, "b", owner="other")
    report = await recover(store, grace=1, limit=1, backoff=NEVER)

    assert [one.token for one in report.closed] == ["b"]
    assert [one.token for one in report.failed] == ["a"]


async def test_a_cleanup_has_half_of_the_grace_or_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All where no other one waits for its first try."""
    store = MemoryStore()
    monkeypatch.setattr(anyio, "current_time", lambda: 0.0)
    await leave_behind(store, "a", "b", cleanup="test.hang")
    report = await recover(store, grace=0.04, backoff=NEVER)

    assert [str(one.error).partition("than the ")[2] for one in report.failed] == ["0.04 s it had", "0.02 s it had"]
    assert log == ["b", "a"]


@pytest.mark.parametrize(("stubborn", "new"), [("life/00000002", "life/00000001"), ("life-1/00000001", "life-2/0001")])
@on_asyncio
async def test_what_never_failed_comes_first(stubborn: str, new: str) -> None:
    """Of the scopes of a life, and of lives: so those that hang in each pass keep nobody waiting in all of them."""
    store = MemoryStore()
    for name, attempts in ((stubborn, 3), (new, 0)):
        record = {"cleanup": "test.remove", "token": name, "since": 0, "attempts": attempts}
        await store.put(f"journal/4:dead/{name}/00000001", record)
    await recover(store, limit=1)

    assert log == [new, stubborn]


async def test_nothing_begins_when_the_grace_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the next one of the same scope either."""
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    turned = turn_the_clock_of_the_loop(monkeypatch)

    def on_progress(one: PendingCleanup) -> None:
        turned.now += 100

    report = await recover(store, on_progress=on_progress)

    assert log == ["b"]
    assert [one.token for one in report.later] == ["a"]


async def test_lives_that_the_grace_does_not_reach_are_left_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease is taken for them, and the report has them all the same."""
    store = MemoryStore()
    monkeypatch.setattr(_recovery, "_LIVES", 1)
    await leave_behind(store, "a", owner="other")
    await leave_behind(store, "b", owner="other")
    turned = turn_the_clock_of_the_loop(monkeypatch)

    class Asked(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            asked.append(key)
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    def on_progress(one: PendingCleanup) -> None:
        turned.now += 100

    asked: list[str] = []
    report = await recover(Asked(store), on_progress=on_progress)

    assert (len(report.closed), len(report.later)) == (1, 1)
    assert await tokens(store) == [one.token for one in report.later]
    assert len(asked) == 2  # that of all recoverers, and that of the first life


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_exit_of_a_cleanup_comes_out_when_the_others_are_closed(kind: type[BaseException]) -> None:
    """As in a scope; it counts as a failure, so that it can't stop the passes that follow."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    await leave_behind(store, "d", owner="other")
    [_, second, *_] = [entry async for entry in store.scan("journal/")]
    await store.put(second.key, {**second.value, "cleanup": "test.exit", "token": kind.__name__})
    with pytest.raises(kind) as caught:
        await recover(store, backoff=NEVER)

    assert sorted(log) == ["a", "c", "d"]
    assert [(one.attempts, one.error) for one in await pending(store)] == [(1, kind.__name__)]
    assert caught.value.__notes__ == ["rescope: the pass of `recover` went on: 3 closed, 1 failed"]


@cleanup("test.exit")
async def leave_all(token: str) -> None:
    raise SystemExit if token == "SystemExit" else KeyboardInterrupt


@pytest.mark.parametrize(("exits", "error"), [(True, SystemExit), (False, ValueError)])
async def test_of_several_troubles_an_exit_comes_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, exits: bool, error: type[BaseException]
) -> None:
    """Else the first one does; the others are told."""
    monkeypatch.setattr(_recovery, "BACKOFF", AT_ONCE)
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    if exits:
        await leave_behind(store, "SystemExit", owner="a later one", cleanup="test.exit")
    failing.extend("ab")
    pauses = {"b": math.nan, "a": "soon"}

    def backoff(attempts: int) -> Any:
        return pauses.pop(log[-1], 60)

    with pytest.raises(error):
        await recover(store, backoff=backoff, limit=1)

    assert "recovering goes on, although ValueError: what `backoff` gives" in caplog.text
    assert "recovering goes on, although TypeError: what `backoff` gives" in caplog.text
    assert ("recovering goes on, although SystemExit" in caplog.text) == exits


async def test_a_backoff_that_gives_nonsense_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass goes on with the usual pauses; then the error is raised."""
    monkeypatch.setattr(_recovery, "BACKOFF", AT_ONCE)
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    await leave_behind(store, "c", owner="other")
    failing.append("b")
    with pytest.raises(ValueError, match="what `backoff` gives must be at least 0"):
        await recover(store, backoff=lambda attempts: math.nan)

    assert sorted(log) == ["a", "b", "b", "b", "c"]
    assert [(one.token, one.attempts) for one in await pending(store)] == [("b", 3)]


async def test_a_retry_waits_until_it_is_due() -> None:
    """Also that of another pass: what isn't due yet is kept for later; a clock that was set back delays nothing."""
    clock = Clock()
    store = MemoryStore()
    await leave_behind(store, "a")
    failing.append("a")
    first = await recover(store, backoff=NEVER, clock=clock)
    second = await recover(store, backoff=NEVER, clock=clock)
    clock.advance(59.95)
    third = await recover(store, backoff=NEVER, clock=clock)  # due soon

    assert [one.next_try for one in first.failed] == [1060]
    assert [one.token for one in second.later] == ["a"]
    assert str(second).splitlines()[-1] == "0 closed, 1 left for later"
    assert [one.attempts for one in third.failed] == [2]
    clock.now = 0
    failing.clear()
    assert [one.token for one in (await recover(store, backoff=AT_ONCE, clock=clock)).closed] == ["a"]


async def test_unknown_cleanups_are_reported_and_kept() -> None:
    """They are never dropped, and are no failures: when the name is registered, the next pass runs them."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", cleanup="test.later")
    report = await recover(store)

    assert [(one.cleanup, one.attempts) for one in report.unknown] == [("test.later", 0)] * 2
    assert "2 unknown" in str(report)
    assert await tokens(store) == ["a", "b"]
    cleanup("test.later")(remove)
    assert [one.token for one in (await recover(store)).closed] == ["b", "a"]


async def test_what_is_no_record_is_reported_and_kept() -> None:
    """Whatever stands under a key of the journal is told, with its key, and left there."""
    store = MemoryStore()
    keys = ["journal/1:w/life/00000001/00000001", "journal/1:w/life/1", "journal/3:w/x", "journal/x", "journal/9:"]
    values = [7, {"cleanup": "test.remove", "token": 1}, {}, {"cleanup": "test.remove", "token": 1}, {"error": 3}]
    for key, value in zip(keys, values, strict=True):
        await store.put(key, value)
    report = await recover(store)

    assert sorted(one.key for one in report.unknown) == sorted(keys)
    assert {one.error for one in report.unknown} == {"not a record of the journal"}
    assert log == []
    assert sorted(await content(store)) == sorted(keys)


@pytest.mark.parametrize("field", ["since", "attempts", "next_try", "error", "cleanup"])
@pytest.mark.parametrize("value", [-1e300, 1e18, pytest.param(10**400, id="huge"), -5, True, "a\nb\udcff", [], None])
@once
async def test_whatever_stands_in_a_record_it_is_shown_and_disturbs_nobody(field: str, value: Any) -> None:
    """Times and counts that can't be are taken as none, and each text is one line."""
    store = MemoryStore()
    await leave_behind(store, "a")
    [entry] = [entry async for entry in store.scan("journal/")]
    await store.put(entry.key, {**entry.value, field: value})
    await leave_behind(store, "b", owner="other")
    before = await pending(store)
    shown = as_table(rows(before))
    report = await recover(store, backoff=lambda attempts: 2.0**attempts)

    assert all(0 <= one.attempts <= 1_000_000 for one in before)
    assert len(shown.encode().splitlines()) == 4
    assert len(str(report).encode().splitlines()) == 5
    assert "b" in log


async def test_scopes_are_closed_side_by_side_up_to_a_limit() -> None:
    """No more than `limit` at once."""
    store = MemoryStore()
    for number in range(5):
        await leave_behind(store, number, cleanup="test.count")
    counted.update(now=0, peak=0)
    report = await recover(store, limit=3)

    assert len(report.closed) == 5
    assert counted == {"now": 0, "peak": 3}


counted = {"now": 0, "peak": 0}


@cleanup("test.count")
async def count_now(token: Any) -> None:
    counted["now"] += 1
    counted["peak"] = max(counted["peak"], counted["now"])
    with anyio.fail_after(10):
        while counted["peak"] < 3:  # noqa: ASYNC110 (nobody tells)
            await anyio.sleep(0.01)
    await anyio.wait_all_tasks_blocked()  # so that a fourth one would have come
    counted["now"] -= 1


async def test_a_cleanup_that_hangs_is_cut_off_and_keeps_nobody_waiting() -> None:
    """`grace` bounds the pass: half of what is left for one, and the older ones of its scope still run."""
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    [_, second] = [entry async for entry in store.scan("journal/")]
    await store.put(second.key, {**second.value, "cleanup": "test.hang"})
    report = await recover(store, grace=0.3, backoff=NEVER)

    assert log == ["b", "a"]
    assert [one.token for one in report.closed] == ["a"]
    assert [str(one.error)[:17] for one in report.failed] == ["CloseTimeoutError"]


async def test_what_the_grace_does_not_reach_is_left_for_later() -> None:
    """It is no failure, as it was not tried."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c", cleanup="test.hang")
    report = await recover(store, grace=0.05, backoff=NEVER)

    assert len(report.failed) + len(report.later) == 3
    assert await tokens(store) == ["a", "b", "c"]


async def test_a_pass_without_end() -> None:
    """`grace=math.inf` bounds nothing."""
    store = MemoryStore()
    await leave_behind(store, "a")

    assert (await recover(store, grace=math.inf)).clean


async def test_one_recoverer_at_a_time() -> None:
    """Another one returns at once, and says so."""
    store = MemoryStore()
    await leave_behind(store, "a", cleanup="test.recover")
    inner.clear()
    stores[:] = [store]
    report = await recover(store)

    assert inner == [RecoveryReport(busy=True)]
    assert str(inner[0]) == "0 closed; somebody else is recovering"
    assert not inner[0].clean
    assert report.clean


inner: list[RecoveryReport] = []
stores: list[Any] = []


@cleanup("test.recover")
async def recover_too(token: Any) -> None:
    inner.append(await recover(stores[0]))


async def test_recoverers_that_start_together() -> None:
    """One of them works; each cleanup runs once."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    reports: list[RecoveryReport] = []

    async def work() -> None:
        reports.append(await recover(store))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(work)

    assert log == ["c", "b", "a"]
    assert sorted(len(report.closed) for report in reports) == [0, 0, 3]


async def test_a_recoverer_that_loses_its_lease_begins_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    """What is under way ends; the rest is somebody else's."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", "c")
    failing.append("b")

    def meddle(one: PendingCleanup) -> None:
        if one.token == "c":
            store._drop("lease/journal-recovery")

    async def slow() -> None:
        report = await recover(store, ttl=0.6, backoff=lambda attempts: 1, on_progress=meddle)
        assert report.busy
        assert [one.token for one in report.closed] == ["c", "a"]
        assert [one.token for one in report.failed] == ["b"]

    await slow()
    assert "recovering is left to others" in caplog.text


async def test_a_recoverer_that_loses_its_lease_tells_what_went_wrong_before() -> None:
    """What was kept until the end of the pass comes out then, too."""
    store = MemoryStore()
    await leave_behind(store, "SystemExit", cleanup="test.exit")

    def meddle(one: PendingCleanup) -> None:
        store._drop("lease/journal-recovery")

    with pytest.raises(SystemExit):
        await recover(store, ttl=0.6, backoff=lambda attempts: 1, on_progress=meddle)
    assert await tokens(store) == ["SystemExit"]


async def test_a_life_that_is_taken_from_a_recoverer_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Its other work goes on."""
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    failing.append("a")

    def meddle(one: PendingCleanup) -> None:
        if one.token == "a":
            store._drop(next(key for key in list(store._held) if key.startswith("lease/journal/")))

    report = await recover(store, ttl=0.6, backoff=lambda attempts: 1, on_progress=meddle)

    assert not report.busy
    assert [one.token for one in report.failed] == ["a"]
    assert "what owner 'dead' left is left to others" in caplog.text


@pytest.mark.parametrize("older", [["a"], []])
async def test_nothing_begins_without_the_lease(older: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at before each cleanup, by the clock: the process may have been stopped."""
    clock = Clock()
    clocks[:] = [clock]
    monkeypatch.setattr(_recovery, "lease", partial(lease, clock=clock))
    store = MemoryStore(clock=clock)
    await leave_behind(store, *older, "b", cleanup="test.stop")
    report = await recover(store)

    assert log == ["b"]
    assert [one.token for one in report.later] == older
    assert report.busy == bool(older)  # with nothing left, nobody else has anything to do


@cleanup("test.stop")
def stop(token: Any) -> None:
    log.append(token)
    clocks[0].advance(31)


@once
async def test_an_owner_that_is_back_is_left_alone() -> None:
    """One that takes its lease between the look and the taking over."""
    clock = Clock()

    class Late(Good):
        async def get(self, key: str) -> Entry | None:
            return await super().get(key)

        def scan(self, prefix: str) -> AsyncIterator[Entry]:
            if prefix == "lease/journal/":
                self.inner._put(f"lease/{lease_name}", '{"holder": "owner", "mark": "m"}', 60)
                return self.inner.scan("nothing")
            return self.inner.scan(prefix)

    store = MemoryStore(clock=clock)
    await leave_behind(store, "a")
    lease_name = (await content(store))[0].rsplit("/", 2)[0]

    assert (await recover(Late(store))) == RecoveryReport()
    assert await tokens(store) == ["a"]


async def test_a_store_that_fails_is_an_error() -> None:
    """`recover` and `pending` raise `StoreError`: at once where it can't be reached, else when the rest is done."""

    class Down(Good):
        async def get(self, key: str) -> Entry | None:
            fail()
            raise AssertionError

        def scan(self, prefix: str) -> AsyncIterator[Entry]:
            fail()
            raise AssertionError

    with pytest.raises(StoreError, match="no route"):
        await recover(Down(MemoryStore()))
    with pytest.raises(StoreError, match="no route"):
        await pending(Down(MemoryStore()))


@pytest.mark.parametrize("what", ["scan", "put"])
async def test_a_store_that_fails_on_the_way(what: str) -> None:
    """What could be done is done; then the `StoreError` is raised."""

    class Down(Good):
        def scan(self, prefix: str) -> AsyncIterator[Entry]:
            if what == "scan" and prefix.startswith("journal/4:dead/"):
                fail()
            return self.inner.scan(prefix)

        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if what == "put" and key.startswith("journal/4:dead/"):
                fail()
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    store = MemoryStore()
    await leave_behind(store, "a")
    await leave_behind(store, "b", owner="other")
    failing.append("a")
    with pytest.raises(StoreError, match="no route"):
        await recover(Down(store), backoff=NEVER)

    assert "b" in log
    assert await tokens(store) == ["a"]


async def test_a_store_that_fails_in_a_way_of_its_own() -> None:
    """What a store of somebody's raises comes out as it is, when the others are closed."""

    class Down(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if key.startswith("lease/journal/4:dead/"):
                raise ConnectionResetError
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    store = MemoryStore()
    await leave_behind(store, "a")
    await leave_behind(store, "b", owner="other")
    with pytest.raises(ConnectionResetError):
        await recover(Down(store))

    assert log == ["b"]
    assert await tokens(store) == ["a"]


@pytest.mark.parametrize("unseen", [1, 2])
@once
async def test_an_owner_that_begins_or_ends_while_one_looks_is_live(unseen: int) -> None:
    """`pending` doesn't take it for one that died, whose lease it has not seen before, or no longer."""

    class Looked(Good):
        looks = 0

        def scan(self, prefix: str) -> AsyncIterator[Entry]:
            self.looks += prefix.startswith("lease/")
            return self.inner.scan("nothing" if prefix.startswith("lease/") and self.looks == unseen else prefix)

    store = MemoryStore()
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="a")
        assert [one.live for one in await pending(Looked(store))] == [True]


async def test_a_record_that_was_written_anew_is_not_lost() -> None:
    """Neither a failure nor a success of the older one overwrites or deletes it."""
    store = MemoryStore()
    await leave_behind(store, "a", "b", cleanup="test.rewrite")
    failing.append("a")
    stores[:] = [store]
    report = await recover(store, backoff=AT_ONCE)

    assert log == ["b", "a"]
    assert [one.token for one in report.failed] == ["a"]
    assert await tokens(store) == ["a", "b"]
    assert [one.attempts for one in await pending(store)] == [0, 0]


@cleanup("test.rewrite")
async def rewrite(token: Any) -> None:
    log.append(token)
    for entry in [entry async for entry in stores[0].scan("journal/")]:
        await stores[0].put(entry.key, entry.value)
    if token in failing:
        raise Fault("it is stuck")


async def test_a_callback_that_raises_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    store = MemoryStore()
    await leave_behind(store, "a", "b")

    def on_progress(one: PendingCleanup) -> None:
        raise Fault("no paper")

    assert (await recover(store, on_progress=on_progress)).clean
    assert "on_progress raised, and the recovery goes on: Fault: no paper" in caplog.text


async def test_cancelling_a_recovery_lets_what_is_under_way_end() -> None:
    """No other cleanup begins, and the next pass does the rest."""
    store = MemoryStore()
    await leave_behind(store, "a", "b")
    with anyio.CancelScope() as cancelled:
        await recover(store, on_progress=lambda one: cancelled.cancel())

    assert log == ["b"]
    assert await tokens(store) == ["a"]
    assert (await recover(store)).clean


async def test_a_recovery_that_is_cancelled_leaves_no_lease_and_loses_no_record() -> None:
    """Wherever it is cancelled, the next one does what is left, and each cleanup has run."""
    stores: list[tuple[MemoryStore, list[Any]]] = []

    async def program(ledger: Ledger) -> None:
        store = MemoryStore()
        for number, token in enumerate("ab", 1):
            record = {"cleanup": "test.remove", "token": token, "since": 0.0}
            store._put(f"journal/4:dead/life/00000001/{number:08x}", json.dumps(record), None)
        log.clear()
        stores.append((store, log.copy()))
        try:
            await recover(store)
        finally:
            stores[-1][1].extend(log)

    report = await cancel_everywhere(program)

    assert report.scope > 10
    for store, done in stores:
        log.clear()
        assert [key for key in await content(store) if key.startswith("lease/")] == []
        assert (await recover(store)).clean
        assert {*done, *log} == {"a", "b"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"grace": 0}, ValueError),
        ({"grace": math.nan}, ValueError),
        ({"grace": "1"}, TypeError),
        ({"backoff": 2}, TypeError),
        ({"limit": 0}, ValueError),
        ({"limit": 1.5}, TypeError),
        ({"ttl": None}, TypeError),
        ({"ttl": -1}, ValueError),
        ({"clock": 1}, TypeError),
        ({"on_progress": 1}, TypeError),
        ({"on_progress": make}, TypeError),
    ],
)
@once
async def test_bad_options_of_recover(options: Any, error: type[Exception]) -> None:
    """They are refused before the store is asked."""
    with pytest.raises(error):
        await recover(MemoryStore(), **options)


@once
async def test_what_is_no_store() -> None:
    """`recover` and `pending` say so."""
    with pytest.raises(TypeError, match="`store` must be a store"):
        await recover("sqlite:///x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`store` must be a store"):
        await pending(None)  # type: ignore[arg-type]


# Other stores


async def live_and_die(store: Store) -> None:
    await leave_behind(store, "a", "b")
    async with JournaledScope(store, "worker") as scope:
        await scope.acquire(make, remove, token="live")
        report = await recover(store)
        assert [one.token for one in report.closed] == ["b", "a"]
        assert await tokens(store) == ["live"]
    assert log == ["made live", "b", "a", "live"]


async def test_sqlite(tmp_path: Path) -> None:
    """It stands on a store in a file."""
    async with SqliteStore(tmp_path / "store") as store:
        await live_and_die(store)
        assert await content(store) == []


@on_asyncio
async def test_postgres(postgres_url: str) -> None:
    """It stands on a store in PostgreSQL."""
    async with open_postgres(postgres_url, table="journal_test") as store:
        await live_and_die(store)
        assert await content(store) == []


@on_asyncio
async def test_redis(redis_url: str) -> None:
    """It stands on a store in Valkey."""
    async with open_redis(redis_url) as store:
        await live_and_die(store)
        assert await tokens(store) == []


# Real processes


@pytest.mark.long
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_at_every_point(backend: str) -> None:
    """Whatever process is killed wherever, nothing is left, and all goes in reverse: here, at one point of four."""
    command = [sys.executable, "-W", "error", HERE / "kill_sweep.py", "--every", "4", "--backend", backend]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 (ours)

    assert result.stderr == ""
    assert result.stdout.splitlines()[-2:] == ["left behind     0", "out of order    0"]
    assert result.returncode == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "backend"), [("holding", "asyncio"), ("making", "asyncio"), ("making", "trio"), ("closing", "trio")]
)
def test_stopped_for_longer_than_its_lease(tmp_path: Path, where: str, backend: str) -> None:
    """What it left is recovered meanwhile; when it goes on it notices, and leaves nothing either."""
    from workflow import journal_owner

    command = [sys.executable, "-W", "error", journal_owner.__file__, str(tmp_path), where, backend]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:  # noqa: S603 (ours)
        assert owner.stdin is not None
        assert owner.stdout is not None
        try:
            assert owner.stdout.readline() == "here\n"
            owner.send_signal(signal.SIGSTOP)
            folders[:] = [tmp_path]
            anyio.run(recover_until_empty, tmp_path)
            recovered = sorted(log)
            owner.send_signal(signal.SIGCONT)
            said, _ = owner.communicate("\n", timeout=20)
        finally:
            owner.kill()

    assert recovered == (["first"] if where == "holding" else ["first", "second"])
    assert said == ("" if where == "closing" else "lost\n")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


folders: list[Path] = []


@cleanup("owner.folder")
def remove_folder(token: str) -> None:
    log.append(token)
    shutil.rmtree(folders[0] / token, ignore_errors=True)


async def recover_until_empty(folder: Path) -> None:
    async with SqliteStore(folder / "store") as store:
        with anyio.fail_after(20):
            while await pending(store):
                await recover(store)
                await anyio.sleep(0.02)


@pytest.mark.long
def test_the_example_runs(tmp_path: Path) -> None:
    """A directory, a process and a database are gone after a kill; those of a live worker are not touched."""
    result = run_example("crash_cleanup.py", env={"TMPDIR": str(tmp_path)})

    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[3] for line in result.stdout.splitlines() if line.startswith("ada  ")] == [
        "example.database",
        "example.tool",
        "example.directory",
    ]
    assert result.stdout.splitlines()[-2:] == ["bob: done", "nothing is left"]
    assert list(tmp_path.glob("*/ada_*")) == []


@pytest.mark.long
def test_it_is_a_scope_in_every_other_way() -> None:
    """The tests of scopes pass with a journaled one in place of each, in which each acquisition is journaled."""
    tests = [HERE.parent / f"test_{name}.py" for name in ("scope", "closing_rules", "cancellation")]
    options = ["-p", "workflow.journal_in_place", "-p", "no:cacheprovider", "-q", "-k", "asyncio"]
    result = subprocess.run(  # noqa: S603 (ours)
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


# At the command line


@once
async def test_recoverers_that_look_at_the_same_time() -> None:
    """Who finds nobody at it, and is second all the same, does nothing."""

    class Late(Good):
        async def get(self, key: str) -> Entry | None:
            found = await super().get(key)
            if key == "lease/journal-recovery" and found is None:
                await self.inner.put(key, {"holder": "another", "mark": "other"}, ttl=60)
            return found

    store = MemoryStore()
    await leave_behind(store, "a")
    assert await recover(Late(store)) == RecoveryReport(busy=True)
    assert log == []


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store in which something was left behind."""

    async def leave() -> None:
        async with SqliteStore(tmp_path / "jobs.db") as store:
            await leave_behind(store, "a")

    anyio.run(leave)
    return f"sqlite:///{tmp_path / 'jobs.db'}"


def test_pending_at_the_command_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a table, plain where there is no terminal, and ends with 0."""
    assert main(["pending", "--store", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("dead")
    assert lines[2].endswith("left behind")
    assert lines[3] == "1 open, 1 of them left behind"


def test_tokens_are_shown_when_they_are_asked_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a column of their own; else not at all."""
    assert main(["pending", "--store", url, "--tokens"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("token")
    assert lines[2].endswith('left behind  "a"')


def test_recover_at_the_command_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It closes, prints the report, and ends with 0; then there is nothing to do."""
    assert main(["recover", "--store", url, "--import", "json", "--grace", "5", "--limit", "2"]) == 0
    assert capsys.readouterr().out.endswith("closed\n1 closed\n")
    assert log == ["a"]
    assert main(["pending", "--store", url]) == 0
    assert capsys.readouterr().out == "0 open, 0 of them left behind\n"


def test_what_is_not_registered_has_a_hint(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which names are unknown, and what to do; the exit code is 1."""
    del _registered["test.remove"]
    monkeypatch.setattr(sys, "argv", ["journal", "recover", "--store", url])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(main.__code__.co_filename), run_name="__main__")

    assert ended.value.code == 1
    assert capsys.readouterr().err == "not registered here: test.remove; name their modules with --import\n"


def test_the_command_in_a_process(url: str, tmp_path: Path) -> None:
    """Cleanups of a module that isn't named are unknown, with a hint and exit code 1; named, they run."""
    source = (
        "from rescope.workflow.journal import cleanup\n@cleanup('test.remove')\ndef f(token): print('ran', token)\n"
    )
    (tmp_path / "mycleanups.py").write_text(source)
    command = [sys.executable, "-W", "error", "-m", "rescope.workflow.journal", "recover", "--store", url]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}
    unnamed = subprocess.run(command, check=False, **options)  # noqa: S603 (ours)
    named = subprocess.run([*command, "--import", "mycleanups"], check=False, **options)  # noqa: S603

    assert unnamed.returncode == 1
    assert unnamed.stdout.endswith("0 closed, 1 unknown\n")
    assert unnamed.stderr == "not registered here: test.remove; name their modules with --import\n"
    assert (named.returncode, named.stderr) == (0, "")
    assert named.stdout.startswith("ran a\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "jobs.db"], "recover: ValueError: `url` must begin with one of"),
        (
            ["--import", "no_such_module", "--store", "memory:"],
            "recover: ImportError: --import no_such_module: ModuleN",
        ),
        (["--import", ".relative", "--store", "memory:"], "recover: ImportError: --import .relative: TypeError"),
        (["--store", "sqlite:////no/such/folder/jobs.db"], "recover: StoreError: the store at"),
        (["--store", "memory:", "--grace", "0"], "recover: ValueError: `grace` must be more than 0 s"),
    ],
)
def test_what_the_command_can_not_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why, and it ends with 2."""
    assert main(["recover", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_module_that_exits_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that was taken for a module with cleanups has not recovered anything."""
    (tmp_path / "myscript.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["recover", "--store", "memory:", "--import", "myscript"]) == 2
    assert capsys.readouterr().err == "recover: ImportError: --import myscript: SystemExit: 0\n"


def test_a_cleanup_that_exits_does_not_say_how_the_command_ends(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 2, and says what the pass has done."""

    def leave(token: str) -> None:
        raise SystemExit(0)

    _registered["test.remove"] = leave
    assert main(["recover", "--store", url, "--grace", "0.1"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "recover: SystemExit: 0",
        "rescope: the pass of `recover` went on: 0 closed, 1 failed",
    ]


def test_what_nobody_expects_is_shown_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its traceback; and it ends with 2 as well, since 1 would say that something was left."""

    async def broken(store: Store) -> list[PendingCleanup]:
        raise Fault("never thought of")

    monkeypatch.setattr(command, "pending", broken)
    assert main(["pending", "--store", "memory:"]) == 2
    assert capsys.readouterr().err.endswith("Fault: never thought of\n")


def test_on_a_terminal_it_draws_with_rich(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table with lines, and progress while it works."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["pending", "--store", url]) == 0
    assert main(["recover", "--store", url]) == 0
    assert main(["pending", "--store", url]) == 0
    out = capsys.readouterr().out
    assert "┃" in out
    assert "1 closed" in out


def test_on_a_terminal_without_rich(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to install, and prints plain text."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["pending", "--store", url]) == 0
    said = capsys.readouterr()
    assert "pip install 'rescope[cli]'" in said.err
    assert said.out.endswith("1 open, 1 of them left behind\n")
