"""All ways to register and to close, each cancelled at every point: what was opened is closed, in order and once.

`python tests/test_cancel_everywhere.py` sweeps them all, and prints at how many points each was cancelled.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import BACKENDS
from rescope import (
    Err,
    Ok,
    Resource,
    ResourceCleanupError,
    Result,
    Scope,
    ScopeClosedError,
    create_resource,
    scoped,
    with_scope,
)
from rescope.testing import CancelReport, Ledger, cancel_everywhere
from running import load_example

pytestmark = pytest.mark.long

Program = Callable[[Ledger], Awaitable[object]]


class Boom(Exception):
    """What a body or a closer fails with."""


async def pause(times: int = 2) -> None:
    for _ in range(times):
        await anyio.lowlevel.checkpoint()


@dataclass
class Parts:
    """Things to open and to close, in all kinds."""

    ledger: Ledger

    async def open(self, name: str) -> str:
        await pause()
        return self.ledger.opened(name)

    async def open_in_steps(self, name: str) -> str:
        """Be open long before the caller gets it: only a shield helps."""
        await pause()
        self.ledger.opened(name)
        await pause()
        return name

    async def close(self, name: str) -> None:
        await pause()
        self.ledger.closed(name)

    async def close_slowly(self, name: str) -> None:
        await pause(15)
        self.ledger.closed(name)

    async def close_and_fail(self, name: str) -> None:
        await self.close(name)
        raise Boom

    def fail(self, name: str) -> None:
        self.ledger.closed(name)
        raise Boom

    @contextlib.contextmanager
    def sync_manager(self, name: str) -> Iterator[str]:
        self.ledger.opened(name)
        try:
            yield name
        finally:
            self.ledger.closed(name)

    @contextlib.asynccontextmanager
    async def manager(self, name: str) -> AsyncIterator[str]:
        await pause()
        self.ledger.opened(name)
        try:
            yield name
            await pause()
        finally:
            try:
                await pause()
            finally:
                self.ledger.closed(name)

    @contextlib.asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[str]:
        """Hold a task group with work in the background, as clients of protocols do."""
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop.wait)
            async with self.manager(name):
                yield name
            stop.set()

    @contextlib.asynccontextmanager
    async def cancelling_client(self, name: str) -> AsyncIterator[str]:
        """Cancel that work. A `task.cancel()` beside it was lost before anyio 4.16, so nobody enters this one."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            async with self.manager(name):
                yield name
            tasks.cancel_scope.cancel()


class Closable:
    """Has a closer of its own."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.ledger = ledger
        self.name = ledger.opened(name)

    async def aclose(self) -> None:
        await pause()
        self.ledger.closed(self.name)


@dataclass(frozen=True)
class Case:
    """A program, and what there is to know about it."""

    program: Program
    options: dict[str, Any]
    only: str = ""

    @property
    def name(self) -> str:
        return self.program.__name__


CASES: list[Case] = []


def swept(*, only: str = "", **options: Any) -> Callable[[Program], Program]:
    """Let a program be swept."""

    def note(program: Program) -> Program:
        CASES.append(Case(program, options, only))
        return program

    return note


Manager = Callable[[str], contextlib.AbstractAsyncContextManager[str]]


async def fill(scope: Scope, parts: Parts, *, enter: Manager | None = None) -> None:
    """Let a scope hold one of each kind."""
    scope.defer(parts.ledger.closed, parts.ledger.opened("sync"))
    await scope.acquire(functools.partial(parts.open, "acquired"), parts.close)
    if enter is not None:
        await scope.enter(enter("entered"))
    await scope.host(parts.cancelling_client("hosted"))
    child = scope.child("child")
    child.defer(parts.close, parts.ledger.opened("in the child"))
    scope.defer(parts.close, parts.ledger.opened("async"))


@swept()
async def an_empty_scope(ledger: Ledger) -> None:
    async with Scope():
        await pause()


@swept()
async def add(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        scope.add(Closable(ledger, "its own"))
        await pause(1)
        scope.add(ledger.opened("sync"), lambda: ledger.closed("sync"))
        scope.add(ledger.opened("async"), lambda: parts.close("async"), timeout=5)
        await pause(1)
        scope.add(Resource(ledger.opened("handle"), lambda: parts.close("handle")))
        scope.add(Closable(ledger, "last"), name="another name")
        await pause(1)


@swept()
async def created(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        scope.add(await create_resource(lambda: ledger.opened("sync"), ledger.closed))
        scope.add(await create_resource(lambda: parts.open("async"), parts.close))
        await pause()


@swept()
async def a_resource_by_itself(ledger: Ledger) -> None:
    parts = Parts(ledger)
    resource = await create_resource(lambda: parts.open("a"), parts.close)
    try:
        await pause()
    finally:
        await resource.aclose()


@swept()
async def acquire(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.acquire(lambda: ledger.opened("sync"), ledger.closed)
        await scope.acquire(lambda: parts.open("async"), parts.close)
        await scope.acquire(lambda: parts.open("bounded"), parts.close, timeout=5, force=pytest.fail)
        await pause()


@swept()
async def acquire_shielded(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.acquire(lambda: parts.open_in_steps("a"), parts.close, shield=True)
        await scope.acquire(lambda: parts.open_in_steps("b"), ledger.closed, shield=True)
        await pause()


@swept(raises=Boom)
async def acquire_that_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def fail() -> None:
        await parts.close("half")
        raise Boom

    async with Scope() as scope:
        await scope.acquire(lambda: parts.open("a"), parts.close)
        ledger.opened("half")
        await scope.acquire(fail, parts.close, shield=True)


@swept()
async def enter(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(parts.sync_manager("sync"))
        await scope.enter(parts.manager("async"))
        await scope.enter(parts.client("with a task group"))
        scope.defer(parts.close, ledger.opened("closer"))
        await scope.enter(parts.manager("last"))
        await pause()


@swept()
async def enter_a_task_group(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def work() -> None:
        async with Scope() as scope:
            await scope.acquire(lambda: parts.open("in the task"), parts.close)
            await pause()

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("outer"))
        tasks = await scope.enter(anyio.create_task_group())
        tasks.start_soon(work)
        await pause()


# Not by `task.cancel()`: anyio (4.16) takes that back where both groups end at once, so nobody has asked any more.
@swept(modes=["scope"])
async def enter_a_task_group_with_another_in_a_child(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await pause(8)
            tasks.cancel_scope.cancel()

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("outer"))
        tasks = await scope.enter(anyio.create_task_group())
        tasks.start_soon(work)


@swept(raises=ExceptionGroup)
async def enter_a_task_group_whose_child_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def work() -> None:
        await pause(3)
        raise Boom

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("outer"))
        tasks = await scope.enter(anyio.create_task_group())
        scope.defer(parts.close, ledger.opened("inner"))
        tasks.start_soon(work)
        await pause(6)


@swept(raises=Boom)
async def enter_one_that_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with parts.manager("inside"):
            await pause()
            raise Boom
        yield

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("before"))
        await scope.enter(broken())


@swept()
async def enter_one_that_suppresses(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(contextlib.suppress(Boom))
        scope.defer(parts.close, ledger.opened("a"))
        await scope.enter(parts.manager("b"))
        await pause()
        raise Boom


@swept()
async def enter_a_timeout(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(anyio.fail_after(5))
        await scope.acquire(lambda: parts.open("a"), parts.close)
        await scope.enter(anyio.move_on_after(5))
        await scope.host(parts.client("b"))
        await pause()


@swept()
async def host(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.host(parts.manager("a"))
        await scope.host(parts.client("b"), timeout=5)
        await pause()


@swept(raises=Boom)
async def host_one_that_fails_to_enter(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with parts.manager("inside"):
            await pause()
            raise Boom
        yield

    async with Scope() as scope:
        await scope.host(parts.client("before"))
        await scope.host(broken())


@swept(raises=ResourceCleanupError)
async def host_one_that_fails_to_exit(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with parts.manager("inside"):
            yield
            await pause()
            raise Boom

    async with Scope() as scope:
        await scope.host(parts.client("before"))
        await scope.host(broken())
        await pause()


@swept(raises=ResourceCleanupError)
async def host_one_that_dies(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def dying() -> AsyncIterator[None]:
        async def fail() -> None:
            await pause(4)
            raise Boom

        async with anyio.create_task_group() as tasks, parts.manager("dying"):
            tasks.start_soon(fail)
            yield

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("before"))
        await scope.host(dying())
        await pause(12)


@swept(ordered=False)
async def host_all(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.host_all(parts.manager("a"), parts.client("b"), parts.client("c"))
        await pause()


@swept(ordered=False, raises=Boom)
async def host_all_of_which_one_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        async with parts.manager("inside"):
            await pause()
            raise Boom
        yield

    async with Scope() as scope:
        await scope.host_all(parts.client("a"), broken(), parts.client("c"))


@swept()
async def callbacks(ledger: Ledger) -> None:
    """One of them closes, whichever is due."""
    parts = Parts(ledger)
    async with Scope() as scope:
        ledger.opened("exit")
        scope.on_exit(lambda _: parts.close("exit"))
        ledger.opened("transaction")
        scope.on_error(parts.close, "transaction")
        scope.on_success(parts.close, "transaction")
        ledger.opened("another")
        scope.on_success(ledger.closed, "another")
        scope.on_error(ledger.closed, "another")
        await pause()


@swept(raises=Boom)
async def callbacks_of_a_body_that_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        scope.on_exit(lambda _: parts.close(ledger.opened("exit")))
        ledger.opened("transaction")
        scope.on_success(parts.close, "transaction")
        scope.on_error(parts.close, "transaction")
        await pause()
        raise Boom


@swept()
async def everything(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await fill(scope, parts, enter=parts.client)
        await pause()


@swept(raises=Boom)
async def everything_and_a_body_that_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await fill(scope, parts, enter=parts.manager)
        await pause()
        raise Boom


@swept()
async def everything_told(ledger: Ledger) -> None:
    events: list[Any] = []
    parts = Parts(ledger)
    async with Scope("told", on_event=events.append) as scope:
        await fill(scope, parts, enter=parts.client)
        await pause()


@swept()
async def everything_within_a_grace(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope(grace=5) as scope:
        await fill(scope, parts, enter=parts.client)
        await pause()


@swept(ordered=False)
async def concurrent(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope(concurrent=True) as scope:
        scope.defer(parts.close_slowly, ledger.opened("slow"))  # the first in, and the last to end
        await fill(scope, parts)
        await pause()


@swept(ordered=False, raises=ResourceCleanupError)
async def concurrent_with_failures(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope(concurrent=True, grace=5) as scope:
        await fill(scope, parts)
        scope.defer(parts.close_and_fail, ledger.opened("failing"))
        scope.defer(parts.fail, ledger.opened("failing, sync"))
        await pause()


@swept(ordered=False)
async def a_concurrent_child(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(parts.client("outer"))
        child = scope.child(concurrent=True, grace=5)
        await fill(child, parts)
        scope.defer(parts.close, ledger.opened("last"))
        await pause()


@swept()
async def children(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await fill(scope, parts, enter=parts.client)
        async with scope.child("closed first") as first:
            await fill(first, parts, enter=parts.client)
            await pause()
        left = scope.child("left", grace=5)
        await fill(left, parts, enter=parts.client)
        by_hand = left.child("by hand")
        await fill(by_hand, parts, enter=parts.client)
        await pause()
        await by_hand.aclose()
        await pause()


@swept(raises=Boom)
async def a_child_whose_body_fails(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await fill(scope, parts, enter=parts.manager)
        async with scope.child() as child:
            await fill(child, parts, enter=parts.manager)
            await pause()
            raise Boom


@swept(raises=ResourceCleanupError)
async def a_child_that_fails_to_close(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(parts.client("entered"))
        child = scope.child()
        child.defer(parts.close_and_fail, ledger.opened("failing"))
        await child.enter(parts.client("inside"))
        await pause()


@swept()
async def by_hand(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()
    try:
        await fill(scope, parts, enter=parts.manager)
        await pause()
    finally:
        await scope.aclose()
        await scope.aclose()


@swept()
async def move(ledger: Ledger) -> None:
    parts = Parts(ledger)
    kept = Scope()
    async with Scope() as scope:
        await fill(scope, parts)
        await pause()
        kept = scope.move()
    async with kept:
        await pause()


@swept(ordered=False)
async def release(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        value = await scope.acquire(lambda: parts.open("a"), parts.close)
        hosted = await scope.host(parts.client("b"))
        handle = scope.defer(parts.close, ledger.opened("c"))
        scope.defer(ledger.closed, ledger.opened("d"))
        scope.defer(parts.close, ledger.opened("e"))
        await scope.release(value)
        await pause(1)
        await scope.release(handle)
        await handle.aclose()
        await scope.release(hosted)
        await pause(1)


@swept()
async def release_an_entered_manager(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("a"))
        await scope.enter(parts.client("b"))
        await scope.release("b")
        await pause()


@swept()
async def detach(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as outer:
        async with Scope() as inner:
            value = await inner.acquire(lambda: parts.open("a"), parts.close)
            await pause(1)
            outer.add(inner.detach(value))
            hosted = await inner.host(parts.client("b"))
            outer.add(inner.detach(hosted))
            inner.defer(parts.close, ledger.opened("c"))
            await pause(1)
        await pause(1)


@swept()
async def closers_that_register(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def more(scope: Scope) -> None:
        await pause(1)
        await scope.acquire(lambda: parts.open("acquired late"), parts.close)
        await scope.host(parts.client("hosted late"))
        scope.child().defer(parts.close, ledger.opened("in a late child"))

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("a"))
        scope.defer(more, scope)
        scope.defer(parts.close, ledger.opened("b"))
        await pause()


@swept()
async def a_closer_that_closes_the_scope(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("a"))
        scope.defer(scope.aclose)
        await scope.host(parts.client("b"))
        await pause()


@swept()
async def a_hosted_manager_that_closes_the_scope(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope, lost = Scope(), anyio.Event()

    async def close() -> None:
        await lost.wait()
        await scope.aclose()

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks, parts.manager("client"):
            tasks.start_soon(close)
            yield

    async with Scope() as outer:  # which waits for the end of it, cancelled or not
        outer.defer(scope.aclose)
        outer.defer(lost.set)
        scope.defer(parts.close, ledger.opened("a"))
        await scope.host(client())
        lost.set()
        await pause(1)
        await scope.aclose()


@swept(ordered=False)
async def a_hosted_manager_that_closes_the_scope_as_it_enters(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks, parts.manager("client"):
            tasks.start_soon(scope.aclose)
            await pause()
            yield

    async with Scope() as outer:
        outer.defer(scope.aclose)
        scope.defer(parts.close_slowly, ledger.opened("a"))
        await scope.host(client())
        await scope.aclose()


@swept()
async def two_that_close(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()
    try:
        await fill(scope, parts)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.aclose)
            tasks.start_soon(scope.aclose)
            await scope.aclose()
    finally:
        await scope.aclose()


@swept()
async def the_end_of_somebody_elses_close(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()
    async with anyio.create_task_group() as tasks:
        scope.defer(parts.close, ledger.opened("a"))
        handle = scope.defer(parts.close, ledger.opened("b"))
        tasks.start_soon(scope.release, handle)
        try:
            await pause(1)
        finally:
            await scope.aclose()


@swept(ordered=False)
async def releases_beside_a_close(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()
    handles = [scope.defer(parts.close, ledger.opened(name)) for name in "abc"]
    hosted = ""
    try:
        hosted = await scope.host(parts.client("hosted"))
        async with anyio.create_task_group() as tasks:
            for handle in handles[::2]:
                tasks.start_soon(handle.aclose)
            tasks.start_soon(scope.aclose)
            await scope.release(hosted)
    finally:
        await scope.aclose()


@swept(raises=ScopeClosedError)
async def acquire_in_a_scope_that_closes_meanwhile(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()

    async def open_slowly() -> str:
        await scope.aclose()
        return await parts.open_in_steps("late")

    await scope.acquire(open_slowly, parts.close, shield=True)


@swept(raises=ScopeClosedError)
async def host_in_a_scope_that_closes_meanwhile(ledger: Ledger) -> None:
    parts = Parts(ledger)
    scope = Scope()

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await scope.aclose()
        async with parts.client("late"):
            yield

    await scope.host(slow())


@swept(raises=ResourceCleanupError)
async def closers_that_fail(ledger: Ledger) -> None:
    parts = Parts(ledger)
    async with Scope() as scope:
        await fill(scope, parts, enter=parts.manager)
        scope.defer(parts.fail, ledger.opened("sync, failing"))
        scope.defer(parts.close_and_fail, ledger.opened("async, failing"))
        await pause()


@swept(raises=KeyboardInterrupt)
async def a_closer_that_interrupts(ledger: Ledger) -> None:
    parts = Parts(ledger)

    async def interrupt() -> None:
        await parts.close("c")
        raise KeyboardInterrupt

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("a"))
        await scope.host(parts.client("b"))
        ledger.opened("c")
        scope.defer(interrupt)


@swept(raises=ResourceCleanupError)
async def out_of_time(ledger: Ledger) -> None:
    """One that ends when it is cancelled, and one that ends only when it is forced."""
    forced = anyio.Event()

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ledger.closed("hanging")

    async def stubborn() -> None:
        while not forced.is_set():
            with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                await forced.wait()
        ledger.closed("stubborn")

    async with Scope() as scope:
        scope.defer(Parts(ledger).close, ledger.opened("in time"))
        scope.add(ledger.opened("hanging"), hang, timeout=0)
        scope.add(ledger.opened("stubborn"), stubborn, timeout=0, force=forced.set)


@swept(raises=ResourceCleanupError)
async def out_of_grace(ledger: Ledger) -> None:
    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ledger.closed("hanging")

    async with Scope(grace=0.004) as scope:
        scope.defer(ledger.closed, ledger.opened("a"))
        scope.add(ledger.opened("hanging"), hang)
        await pause()


@swept(raises=ResourceCleanupError)
async def a_host_out_of_time(ledger: Ledger) -> None:
    parts = Parts(ledger)

    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        async with parts.manager("hanging"):
            yield
            await anyio.sleep_forever()

    async with Scope() as scope:
        scope.defer(parts.close, ledger.opened("a"))
        await scope.host(hanging(), timeout=0)
        await pause()


async def body(scope: Scope, parts: Parts) -> Result[int, str]:
    await fill(scope, parts, enter=parts.manager)
    await pause()
    return Ok(1)


@swept()
async def with_scope_and_a_result(ledger: Ledger) -> None:
    assert await with_scope(body, Parts(ledger)) == Ok(1)


@swept()
async def with_scope_and_an_err(ledger: Ledger) -> None:
    async def fail(scope: Scope, parts: Parts) -> Err[str]:
        scope.on_error(parts.close, ledger.opened("rolled back"))
        await body(scope, parts)
        return Err("no")

    assert await with_scope(fail, Parts(ledger)) == Err("no")


@swept()
async def with_scope_and_a_failing_closer(ledger: Ledger) -> None:
    async def fail(scope: Scope, parts: Parts) -> Ok[int]:
        scope.defer(parts.close_and_fail, ledger.opened("failing"))
        await body(scope, parts)
        return Ok(1)

    result = await with_scope(fail, Parts(ledger))
    assert isinstance(result, Err)
    assert isinstance(result.error, ResourceCleanupError)


@swept(raises=Boom)
async def scoped_function(ledger: Ledger) -> None:
    @scoped(grace=5)
    async def fail(scope: Scope, parts: Parts) -> None:
        await body(scope, parts)
        raise Boom

    await fail(Parts(ledger))


@swept()
async def scopes_in_tasks(ledger: Ledger) -> None:
    ledgers = [Ledger() for _ in range(3)]

    async def work(own: Ledger) -> None:
        async with Scope() as scope:
            await fill(scope, Parts(own))
            await pause()

    try:
        async with Scope() as outer:
            tasks = await outer.enter(anyio.create_task_group())
            for own in ledgers:
                tasks.start_soon(work, own)
            await fill(outer, Parts(ledger))
    finally:
        assert [own.problems for own in ledgers] == [(), (), ()]


@swept(only="asyncio")
async def enter_what_asyncio_has(ledger: Ledger) -> None:
    import asyncio

    parts = Parts(ledger)

    async def work() -> None:
        await fill(group_scope, parts)

    async with Scope() as scope:
        await scope.enter(asyncio.timeout(5))
        group_scope = scope.child()
        tasks = await scope.enter(asyncio.TaskGroup())
        tasks.create_task(work())
        await scope.enter(asyncio.Lock())
        await pause()


@swept(only="trio")
async def enter_what_trio_has(ledger: Ledger) -> None:
    import trio

    parts = Parts(ledger)
    async with Scope() as scope:
        await scope.enter(trio.fail_after(5))
        await fill(scope, parts)
        nursery = await scope.enter(trio.open_nursery())
        nursery.start_soon(pause, 5)
        await pause()


# The examples, at every point of their own: their threads and processes take time, which no turn of the loop brings on.

example = functools.cache(load_example)


def unsafely(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    """Let a database not wait for the disk: that takes most of the time."""

    @functools.wraps(connect)
    def connect_unsafely(*args: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*args, **options)
        db.execute("PRAGMA synchronous = OFF")
        return db

    return connect_unsafely


@swept(turns=0)
async def order_receipt(ledger: Ledger) -> None:
    shops = example("order_receipt.py")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shops.Shop, "connect", unsafely(shops.Shop.connect))
        shop = shops.Shop(Path(folder))
        try:
            assert await with_scope(shops.fulfil, shop, shops.Order("1", "ada", "cup", 1, "north")) == Ok(650)
        finally:
            left = shops.disagreements(shop)
            assert left == []


@swept(turns=0)
async def tenant_export(ledger: Ledger) -> None:
    exports = example("tenant_export.py")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "connect", unsafely(exports.connect))
        folders = exports.Folders(Path(folder))
        exports.make_database(folders.databases / "acme.sqlite", 10)
        try:
            assert await exports.export(folders, "acme") == 13
        finally:
            left = [text for text in exports.left_behind(folders) if not text.startswith("no archive")]
            assert left == []


@swept(turns=0)
async def webhook(ledger: Ledger) -> None:
    webhooks = example("webhook.py")
    with tempfile.TemporaryDirectory() as folder:
        desk = webhooks.Desk(Path(folder))
        try:
            done = await webhooks.process(desk, webhooks.Webhook("wh", "acme", '{"seconds": 0, "exit_code": 0}'))
            assert done == Ok("done")
        finally:
            left = webhooks.left_behind(desk)
            assert left == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_stands_to_be_cancelled_everywhere(
    case: Case, anyio_backend_name: str, record_property: Callable[[str, object], None]
) -> None:
    """Cancelled at any of its points, in any mode, what was opened is closed, and the cancellation comes out."""
    if case.only not in {"", anyio_backend_name}:
        pytest.skip(f"is about {case.only}")

    report = await cancel_everywhere(case.program, **case.options)

    assert report.total > 0
    record_property("points", report.total)


def main() -> None:
    """Sweep all programs on all backends, and print the number of points."""
    logging.disable()  # the scope says what it could not raise
    total = sweeps = 0
    for backend in BACKENDS:
        name, options = backend.values[0]  # type: ignore[misc]
        cases = [case for case in CASES if case.only in {"", name}]
        reports = [anyio.run(sweep, case, backend=name, backend_options=options) for case in cases]
        points = {field.name: sum(getattr(report, field.name) for report in reports) for field in fields(CancelReport)}
        told = ", ".join(f"{mode} {count:,}" for mode, count in points.items() if count)
        print(f"{backend.id}: {told}")  # noqa: T201
        total += sum(points.values())
        sweeps += len(reports)
    print(f"{total:,} points in {sweeps} sweeps of {len(CASES)} programs")  # noqa: T201


async def sweep(case: Case) -> CancelReport:
    return await cancel_everywhere(case.program, **case.options)


if __name__ == "__main__":
    main()
