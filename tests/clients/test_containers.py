"""Containers of svcs and dishka: what their own close does, and what it is where a scope closes what they make."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any, NewType

import anyio
import anyio.lowlevel
import pytest

from clients.shared import on_asyncio
from rescope import CloseTimeoutError, ResourceCleanupError, Scope
from running import every_backend, run_example

dishka = pytest.importorskip("dishka")
svcs = pytest.importorskip("svcs")

from dishka import Provider, make_async_container  # noqa: E402
from dishka import Scope as Level  # noqa: E402

every_kind = pytest.mark.parametrize("kind", ["svcs", "dishka"])

ApplicationScope = NewType("ApplicationScope", Scope)


class Database:
    """Is closed by an `await`."""


class Cache:
    """Stands on the database, so it is to be closed before that."""

    def __init__(self, database: Database) -> None:
        self.database = database


class Client:
    """Holds a task group."""


class Parts:
    """Opens and closes a database and a cache, and notes it. The cache may fail to close, or hang."""

    def __init__(self, how: str = "clean") -> None:
        self.how = how
        self.log: list[str] = []

    async def close_database(self, database: Database) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append("database closed")

    async def close_cache(self, cache: Cache) -> None:
        if self.how == "fails":
            raise ConnectionError("the cache is gone")
        await (anyio.sleep_forever() if self.how == "hangs" else anyio.lowlevel.checkpoint())
        self.log.append("cache closed")

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client, None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            try:
                yield Client()
            finally:
                tasks.cancel_scope.cancel()
                self.log.append("client closed")


@dataclass(frozen=True)
class Container:
    """A container of either kind: how it is asked, and how it is closed."""

    get: Callable[[Any], Coroutine[Any, Any, Any]]
    close: Callable[[], Coroutine[Any, Any, object]]


def of_svcs(registry: Any, scope: Scope | None = None) -> Container:
    container = svcs.Container(registry)
    if scope is not None:
        container.register_local_value(Scope, scope)
    return Container(container.aget, container.aclose)


def of_dishka(provider: Provider, scope: Scope | None = None) -> Container:
    context = {} if scope is None else {Scope: scope}
    container = make_async_container(provider, context=context, lock_factory=anyio.Lock)
    return Container(container.get, container.close)


def closes_by_itself(kind: str, parts: Parts) -> Container:
    """Make a container whose factories are generators, for it to close."""

    async def database() -> AsyncIterator[Database]:
        database = Database()
        yield database
        await parts.close_database(database)

    async def cache(database: Database) -> AsyncIterator[Cache]:
        cache = Cache(database)
        yield cache
        await parts.close_cache(cache)

    async def cache_of(svcs_container: Any) -> AsyncIterator[Cache]:
        cache = Cache(await svcs_container.aget(Database))
        yield cache
        await parts.close_cache(cache)

    async def client() -> AsyncIterator[Client]:
        async with parts.client() as client:
            yield client

    if kind == "svcs":
        registry = svcs.Registry()
        registry.register_factory(Database, database)
        registry.register_factory(Cache, cache_of)
        registry.register_factory(Client, client)
        return of_svcs(registry)
    provider = Provider(scope=Level.APP)
    for factory in database, cache, client:
        provider.provide(factory)
    return of_dishka(provider)


def closed_by(scope: Scope, kind: str, parts: Parts) -> Container:
    """Make a container whose factories open with the scope, which it has as one more thing to ask for."""

    async def database(scope: Scope) -> Database:
        return await scope.acquire(Database, parts.close_database)

    async def cache(scope: Scope, database: Database) -> Cache:
        return await scope.acquire(lambda: Cache(database), parts.close_cache, name="Cache")

    async def client(scope: Scope) -> Client:
        return await scope.host(parts.client())

    async def database_of(svcs_container: Any) -> Database:
        return await database(await svcs_container.aget(Scope))

    async def cache_of(svcs_container: Any) -> Cache:
        return await cache(*await svcs_container.aget(Scope, Database))

    async def client_of(svcs_container: Any) -> Client:
        return await client(await svcs_container.aget(Scope))

    if kind == "svcs":
        registry = svcs.Registry()
        registry.register_factory(Database, database_of)
        registry.register_factory(Cache, cache_of)
        registry.register_factory(Client, client_of)
        container = of_svcs(registry, scope)
    else:
        provider = Provider(scope=Level.APP)
        provider.from_context(Scope)
        for factory in database, cache, client:
            provider.provide(factory)
        container = of_dishka(provider, scope)
    scope.defer(container.close)
    return container


async def fill(container: Container) -> None:
    """Ask for the database first, as svcs needs it for the right order."""
    database = await container.get(Database)
    assert (await container.get(Cache)).database is database


# In order


@every_kind
async def test_without_a_scope_svcs_closes_a_dependency_first(kind: str) -> None:
    """What a generator of svcs gets from the container is closed before what it makes of it; dishka does well."""
    parts = Parts()
    container = closes_by_itself(kind, parts)
    await container.get(Cache)
    await container.close()
    in_order = ["cache closed", "database closed"]
    assert parts.log == (in_order if kind == "dishka" else in_order[::-1])


@every_kind
async def test_in_order(kind: str) -> None:
    """A dependency is acquired first, and so closed last."""
    parts = Parts()
    async with Scope() as scope:
        container = closed_by(scope, kind, parts)
        cache = await container.get(Cache)
        assert cache.database is await container.get(Database)
    assert parts.log == ["cache closed", "database closed"]


# Cancelled


def run_and_leave(main: Callable[[], Coroutine[Any, Any, None]], backend: str) -> None:
    """Run what leaves something open; svcs and trio say so in the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        anyio.run(main, backend=backend)
        gc.collect()


@every_kind
@every_backend
def test_without_a_scope_a_cancelled_close_closes_nothing(kind: str, backend: str) -> None:
    """Where the close is cancelled, both stay open."""
    parts = Parts()

    async def main() -> None:
        container = closes_by_itself(kind, parts)
        with anyio.CancelScope() as cancel_scope:
            try:
                await fill(container)
                cancel_scope.cancel()
                await anyio.sleep_forever()
            finally:
                await container.close()

    run_and_leave(main, backend)
    assert parts.log == []


@every_kind
async def test_a_cancellation_does_not_cut_off_the_close(kind: str) -> None:
    """Where the request is cancelled, both are closed, in order."""
    parts = Parts()
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            await fill(closed_by(scope, kind, parts))
            cancel_scope.cancel()
            await anyio.sleep_forever()
    assert cancel_scope.cancelled_caught
    assert parts.log == ["cache closed", "database closed"]


# Failing


@every_kind
async def test_without_a_scope_a_failure_is_logged_or_told_without_a_name(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The close of svcs raises nothing, and logs; that of dishka raises a group that names no resource."""
    parts = Parts("fails")
    container = closes_by_itself(kind, parts)
    await fill(container)
    told = ""
    try:
        await container.close()
    except Exception as error:
        told = str(error)
    assert told == ("" if kind == "svcs" else "Cleanup context errors (1 sub-exception)")
    assert bool(caplog.records) is (kind == "svcs")
    assert parts.log == ["database closed"]


@every_kind
async def test_a_failure_is_raised_with_its_name(kind: str) -> None:
    """What fails to close is raised by the scope, and named; the rest is closed."""
    parts = Parts("fails")
    with pytest.raises(ResourceCleanupError, match=r"1 of 3 resources .* Cache: ConnectionError: the cache is gone"):
        async with Scope("request") as scope:
            await fill(closed_by(scope, kind, parts))
    assert parts.log == ["database closed"]


# In time


@every_kind
@every_backend
def test_without_a_scope_what_hangs_keeps_the_rest_open(kind: str, backend: str) -> None:
    """A timeout around the close ends it; what was to be closed after the one that hangs stays open."""
    parts = Parts("hangs")

    async def main() -> None:
        container = closes_by_itself(kind, parts)
        await fill(container)
        with anyio.move_on_after(0.05) as timeout:
            await container.close()
        parts.log.append(f"cut off: {timeout.cancelled_caught}")

    run_and_leave(main, backend)
    assert parts.log == ["cut off: True"]


@every_kind
async def test_in_time(kind: str) -> None:
    """What hangs has half of the grace; the rest is closed in the other half."""
    parts = Parts("hangs")
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("request", grace=0.1) as scope:
            await fill(closed_by(scope, kind, parts))
    (failure,) = caught.value.failures
    assert (failure.name, type(failure.exception)) == ("Cache", CloseTimeoutError)
    assert parts.log == ["database closed"]


# From any task


@on_asyncio
@every_kind
async def test_without_a_scope_another_task_can_not_close(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A client that holds a task group can't be closed in another task than asked for it: a `RuntimeError`."""
    caplog.set_level(logging.WARNING)
    container = closes_by_itself(kind, Parts())
    await asyncio.create_task(container.get(Client))
    told: list[BaseException] = []
    try:
        await asyncio.create_task(container.close())
    except ExceptionGroup as error:
        told += error.exceptions
    told += [record.exc_info[1] for record in caplog.records if record.exc_info and record.exc_info[1]]
    assert [str(error) for error in told] == [
        "Attempted to exit cancel scope in a different task than it was entered in"
    ]


@every_kind
async def test_any_task_can_close(kind: str) -> None:
    """A client that the scope hosts may be asked for in one task, and closed in another."""
    parts, scope = Parts(), Scope()
    container = closed_by(scope, kind, parts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(container.get, Client)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
    assert parts.log == ["client closed"]


# Rolling back


@every_kind
@pytest.mark.parametrize("fails", [False, True])
async def test_a_factory_may_commit_or_roll_back(kind: str, fails: bool) -> None:
    """What a factory registers with `on_success` and `on_error` runs by how the request ended."""
    log: list[str] = []

    async def database(scope: Scope) -> Database:
        scope.on_success(log.append, "committed")
        scope.on_error(log.append, "rolled back")
        return Database()

    async def database_of(svcs_container: Any) -> Database:
        return await database(await svcs_container.aget(Scope))

    async def request(scope: Scope) -> None:
        if kind == "svcs":
            registry = svcs.Registry()
            registry.register_factory(Database, database_of)
            container = of_svcs(registry, scope)
        else:
            provider = Provider(scope=Level.APP)
            provider.from_context(Scope)
            provider.provide(database)
            container = of_dishka(provider, scope)
        scope.defer(container.close)
        await container.get(Database)
        if fails:
            raise LookupError

    with suppress(LookupError):
        async with Scope("request") as scope:
            await request(scope)
    assert log == ["rolled back" if fails else "committed"]


# Where a framework opens and closes the container


@pytest.mark.parametrize("ending", ["well", "badly", "cancelled"])
async def test_dishka_can_open_the_scope_itself(ending: str) -> None:
    """A provider that opens a child closes it with the container, with its outcome, though the close is cancelled."""
    parts = Parts()

    async def request_scope(application: ApplicationScope) -> AsyncIterator[Scope]:
        scope = Scope.child(application, "request")
        error = yield scope
        await scope.__aexit__(type(error) if error else None, error, None)

    async def cache(scope: Scope) -> Cache:
        scope.on_error(parts.log.append, "rolled back")
        return await scope.acquire(lambda: Cache(Database()), parts.close_cache)

    provider = Provider(scope=Level.REQUEST)
    provider.from_context(ApplicationScope, scope=Level.APP)
    provider.provide(request_scope)
    provider.provide(cache)

    async with Scope("application") as application:
        context = {ApplicationScope: application}
        container = make_async_container(provider, context=context, lock_factory=anyio.Lock)
        application.add(container)
        with anyio.CancelScope() as cancel_scope, suppress(LookupError):
            async with container() as request:
                await request.get(Cache)
                if ending == "badly":
                    raise LookupError
                if ending == "cancelled":
                    cancel_scope.cancel()
                    await anyio.sleep_forever()
        assert application.size == 1
    rolled_back = [] if ending == "well" else ["rolled back"]
    assert parts.log == ["cache closed", *rolled_back]


async def test_svcs_can_open_the_scope_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A factory that opens a child closes all with the container; what fails is then logged by svcs."""
    parts = Parts("fails")

    async def request_scope(svcs_container: Any) -> AsyncIterator[Scope]:
        async with (await svcs_container.aget(ApplicationScope)).child("request") as scope:
            yield scope

    async def cache(svcs_container: Any) -> Cache:
        scope: Scope = await svcs_container.aget(Scope)
        database = await scope.acquire(Database, parts.close_database)
        return await scope.acquire(lambda: Cache(database), parts.close_cache, name="Cache")

    registry = svcs.Registry()
    registry.register_factory(Scope, request_scope)
    registry.register_factory(Cache, cache)
    async with Scope("application") as application:
        registry.register_value(ApplicationScope, application, enter=False)
        async with svcs.Container(registry) as container:
            await container.aget(Cache)
    assert parts.log == ["database closed"]
    assert "Cache: ConnectionError: the cache is gone" in caplog.text


@pytest.mark.skipif(
    "suppress_context_exit" not in signature(svcs.Registry.register_factory).parameters,
    reason="this svcs hands no exception on",
)
@pytest.mark.parametrize("suppress", [True, False])
async def test_svcs_hands_the_exception_on_when_asked_to(suppress: bool) -> None:
    """A scope that svcs closes commits a request that failed, but with `suppress_context_exit=False` it rolls back."""
    log: list[str] = []

    async def request_scope() -> AsyncIterator[Scope]:
        async with Scope("request") as scope:
            yield scope

    registry = svcs.Registry()
    registry.register_factory(Scope, request_scope, suppress_context_exit=suppress)
    with pytest.raises(LookupError):
        async with svcs.Container(registry) as container:
            scope = await container.aget(Scope)
            scope.on_success(log.append, "committed")
            scope.on_error(log.append, "rolled back")
            raise LookupError
    assert log == ["committed" if suppress else "rolled back"]


# The example


@every_kind
@every_backend
def test_the_example_runs(kind: str, backend: str) -> None:
    """The example processes its orders with either container, and all that they opened is closed."""
    run = run_example("di_container.py", "--container", kind, "--backend", backend, env={"PYTHONUNBUFFERED": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1] == "database and mails agree, and nothing is left open"
