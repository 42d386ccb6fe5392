# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `Scope`, `Resource` and `create_resource`. Never run, only checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import IO, Any, Literal, Self, assert_type

import anyio
from anyio.abc import TaskGroup

from rescope import (
    Resource,
    ResourceCleanupError,
    Result,
    Scope,
    cleanup_errors,
    create_resource,
    is_resource_cleanup_error,
)
from rescope.events import ScopeEvent


class Client:
    """Something to close, which is its own context manager."""

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Suppressing:
    """A manager whose exit may swallow."""

    async def __aenter__(self) -> bytes:
        return b""

    async def __aexit__(self, *_: object) -> bool:
        return True


class Both:
    """A manager of both kinds; the async one goes first."""

    def __enter__(self) -> int:
        return 1

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> str:
        return ""

    async def __aexit__(self, *_: object) -> None: ...


async def connect() -> Client:
    return Client()


def open_now() -> Client:
    return Client()


async def disconnect(client: Client) -> None: ...


def disconnect_now(client: Client) -> None: ...


def disconnect_telling(client: Client) -> bool:
    return bool(client)


async def read(path: str) -> str:
    return path


def forget(text: str) -> None: ...


def close() -> None: ...


async def aclose() -> None: ...


def kill_telling() -> int:
    return 9


@asynccontextmanager
async def session(name: str) -> AsyncGenerator[Client, None]:
    del name
    yield Client()


@contextmanager
def chdir() -> Generator[str, None, None]:
    yield ""


def what_add_gives(scope: Scope, client: Client, resource: Resource[Client]) -> None:
    assert_type(scope.add(resource), Client)
    assert_type(scope.add(client), Client)
    assert_type(scope.add(client, close), Client)
    assert_type(scope.add(client, close=aclose), Client)
    assert_type(scope.add(client, client.aclose, name="client", timeout=1, force=kill_telling), Client)
    assert_type(scope.add(None, close), None)
    assert_type(scope.add("token", partial(print, "token")), str)
    assert_type(scope.add(Resource(1, close)), int)


def what_add_refuses(scope: Scope, client: Client) -> None:
    scope.add(client, 1)  # type: ignore[call-overload]
    scope.add(client, disconnect)  # type: ignore[arg-type]
    scope.add(client, timeout="1")  # type: ignore[call-overload]
    scope.add()  # type: ignore[call-overload]


async def what_acquire_gives(scope: Scope) -> None:
    assert_type(await scope.acquire(connect, disconnect), Client)
    assert_type(await scope.acquire(connect, disconnect_now), Client)
    assert_type(await scope.acquire(open_now, disconnect), Client)
    assert_type(await scope.acquire(open_now, disconnect_telling), Client)
    assert_type(await scope.acquire(Client, Client.aclose), Client)
    assert_type(await scope.acquire(lambda: connect(), Client.aclose), Client)  # noqa: PLW0108
    assert_type(await scope.acquire(lambda: Client(), lambda client: client.aclose()), Client)  # noqa: PLW0108
    assert_type(await scope.acquire(partial(read, "file"), forget), str)
    assert_type(
        await scope.acquire(connect, disconnect, name="c", timeout=0.5, force=kill_telling, shield=True), Client
    )


async def what_acquire_refuses(scope: Scope) -> None:
    await scope.acquire(connect, forget)  # type: ignore[misc]
    await scope.acquire(connect(), disconnect)  # type: ignore[call-overload]
    await scope.acquire(connect)  # type: ignore[call-overload]


async def what_enter_gives(
    scope: Scope, reader: AbstractContextManager[IO[str]], stack: AbstractAsyncContextManager[float]
) -> None:
    assert_type(await scope.enter(session("a")), Client)
    assert_type(await scope.enter(Client(), name="client"), Client)
    assert_type(await scope.enter(Suppressing()), bytes)
    assert_type(await scope.enter(chdir()), str)
    assert_type(await scope.enter(reader), IO[str])
    assert_type(await scope.enter(stack), float)
    assert_type(await scope.enter(anyio.create_task_group()), TaskGroup)
    assert_type(await scope.enter(Both()), str)
    assert_type(await scope.enter(scope), Scope)


async def what_enter_refuses(scope: Scope) -> None:
    await scope.enter(session)  # type: ignore[call-overload]
    await scope.enter(connect())  # type: ignore[call-overload]
    await scope.enter(Client)  # type: ignore[call-overload]


async def what_host_gives(scope: Scope) -> None:
    assert_type(await scope.host(session("a")), Client)
    assert_type(await scope.host(Client(), name="client", timeout=1), Client)
    assert_type(await scope.host(Suppressing()), bytes)
    assert_type(await scope.host(anyio.create_task_group()), TaskGroup)


async def what_host_refuses(scope: Scope) -> None:
    await scope.host(chdir())  # type: ignore[arg-type]
    await scope.host(session)  # type: ignore[arg-type]


async def what_host_all_gives(scope: Scope, sessions: list[AbstractAsyncContextManager[Client]]) -> None:
    assert_type(await scope.host_all(session("a")), tuple[Client])
    assert_type(await scope.host_all(session("a"), Suppressing()), tuple[Client, bytes])
    assert_type(await scope.host_all(session("a"), Suppressing(), Both()), tuple[Client, bytes, str])
    assert_type(await scope.host_all(session("a"), Suppressing(), Both(), Client()), tuple[Client, bytes, str, Client])
    assert_type(await scope.host_all(*sessions), tuple[Client, ...])


async def what_host_all_refuses(scope: Scope) -> None:
    await scope.host_all(chdir())  # type: ignore[call-overload]


def what_callbacks_give(scope: Scope) -> None:
    assert_type(scope.defer(close), Resource[None])
    assert_type(scope.defer(disconnect, Client()), Resource[None])
    assert_type(scope.defer(print, "a", sep=""), Resource[None])
    assert_type(scope.defer(chdir, scope=1, fn=2, self=3), Resource[None])
    assert_type(scope.on_error(aclose), Resource[None])
    assert_type(scope.on_success(print, 1), Resource[None])
    assert_type(scope.on_exit(told), Resource[None])
    assert_type(scope.on_exit(lambda outcome: outcome.ok), Resource[None])


def told(outcome: Result[Any, Any]) -> None:
    assert_type(outcome.ok, bool)


def what_callbacks_refuse(scope: Scope) -> None:
    scope.defer(1)  # type: ignore[arg-type]
    scope.defer(aclose())  # type: ignore[arg-type]
    scope.on_exit(close)  # type: ignore[arg-type]
    scope.on_exit(told, 1)  # type: ignore[call-arg]


async def looking_and_handing_over(scope: Scope, client: Client) -> None:
    assert_type(scope.child("inner", grace=1, concurrent=True), Scope)
    assert_type(scope.size, int)
    assert_type(scope.name, str | None)
    assert_type(scope.state, Literal["open", "closing", "closed"])
    assert_type(scope.resources, tuple[Resource[Any], ...])
    assert_type(scope.outcome, Result[Any, BaseException] | None)
    assert_type(scope.cleanup_error, ResourceCleanupError | None)
    assert_type(scope.has(client), bool)
    assert_type(client in scope, bool)
    assert_type(scope.move(), Scope)
    await scope.release(client)
    await scope.aclose()


def what_detach_gives(scope: Scope, client: Client, resource: Resource[Client]) -> None:
    assert_type(scope.detach(client), Resource[Client])
    assert_type(scope.detach(resource), Resource[Client])
    assert_type(scope.detach(scope.defer(close)), Resource[None])


async def the_scope_itself() -> None:
    async with Scope() as scope:
        assert_type(scope, Scope)
    async with Scope("name", grace=1.5, concurrent=True, on_event=heard) as named:
        assert_type(named, Scope)
    Scope(on_event=close)  # type: ignore[arg-type]
    Scope("name", 1)  # type: ignore[call-arg]


def heard(event: ScopeEvent) -> None:
    assert_type(
        event.kind,
        Literal["opened", "acquired", "closing", "closed", "failed", "timed_out", "forced", "died", "scope_closed"],
    )
    assert_type(event.path, tuple[str, ...])
    assert_type(event.resource, str | None)
    assert_type(event.time, float)
    assert_type(event.elapsed, float | None)
    assert_type(event.error, BaseException | None)
    event.time = 0  # type: ignore[misc]


async def a_body_may_be_suppressed(scope: Scope) -> int:
    """`__aexit__` may swallow, so the end is reachable, and a function needs a `return` there."""
    async with scope:
        return 1
    return 0


async def resources(resource: Resource[Client]) -> None:
    assert_type(Resource(Client(), close), Resource[Client])
    assert_type(Resource(None, aclose, name="n", timeout=1, force=close), Resource[None])
    assert_type(Resource[int](1, close), Resource[int])
    assert_type(resource.value, Client)
    assert_type(resource.name, str)
    assert_type(resource.state, Literal["open", "closing", "closed", "detached"])
    await resource.aclose()
    resource.value = Client()  # type: ignore[misc]
    Resource(Client(), disconnect)  # type: ignore[arg-type]
    Resource(Client())  # type: ignore[call-arg]


async def what_create_resource_gives() -> None:
    assert_type(await create_resource(connect, disconnect), Resource[Client])
    assert_type(await create_resource(connect, disconnect_now), Resource[Client])
    assert_type(await create_resource(open_now, disconnect), Resource[Client])
    assert_type(await create_resource(Client, Client.aclose, name="c", timeout=1, force=close), Resource[Client])
    assert_type(await create_resource(lambda: 1, lambda number: number + 1), Resource[int])


async def what_create_resource_refuses() -> None:
    await create_resource(connect, forget)  # type: ignore[misc]
    await create_resource(connect(), disconnect)  # type: ignore[call-overload]


def what_errors_are(error: Exception | None, cleanup: ResourceCleanupError) -> None:
    if is_resource_cleanup_error(error):
        assert_type(error, ResourceCleanupError)
    else:
        assert_type(error, Exception | None)
    assert_type(cleanup_errors(error), list[ResourceCleanupError])
    assert_type(cleanup.failures[0].name, str)
    assert_type(cleanup.failures[0].exception, Exception)
    assert_type(cleanup.failures[0].elapsed, float)
    assert_type(cleanup.failures[0].timed_out, bool)
    assert_type(cleanup.original_result, Result[Any, Any] | None)
