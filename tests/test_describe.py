"""What a scope says that it holds now."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Database:
    def __repr__(self) -> str:
        return "Database(password='secret')"

    async def aclose(self) -> None: ...


@asynccontextmanager
async def client() -> AsyncGenerator[None]:
    yield


@asynccontextmanager
async def fragile(broken: anyio.Event) -> AsyncGenerator[None]:
    async def fail() -> None:
        await broken.wait()
        raise ConnectionError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        yield


async def test_draws_a_tree() -> None:
    """Every resource has a line with its name and what it is; a child stands with what it holds."""
    async with Scope("service") as scope:
        scope.add(Database())
        scope.on_error(print)
        request = scope.child("request")
        request.on_success(str)
        request.on_exit(lambda _: None)
        request.child()
        await scope.enter(client())
        await scope.host(client(), name="client")
        drawn = scope.describe()
    assert drawn.splitlines() == [
        "Scope 'service' open, holds 5",
        "├── Database",
        "├── print: on error",
        "├── Scope 'request' open, holds 3",
        "│   ├── str: on success",
        "│   ├── test_draws_a_tree.<locals>.<lambda>: on exit",
        "│   └── Scope open, holds 0",
        "├── client: entered",
        "└── client: hosted",
    ]
    assert scope.describe() == "Scope 'service' closed, holds 0"


async def test_is_one_line_for_a_scope_that_holds_nothing() -> None:
    """An empty scope is one line."""
    assert Scope().describe() == "Scope open, holds 0"


async def test_shows_what_is_being_closed() -> None:
    """What is under way stands where it stood, and is said to close; so it is in a child and beside others."""
    began, go = anyio.Event(), anyio.Event()
    scope = Scope("service")
    scope.add(Database())
    child = scope.child("request", concurrent=True)

    async def close() -> None:
        began.set()
        await go.wait()

    child.defer(str)
    child.add("queue", close, name="queue")
    child.add("lock", close, name="lock")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await began.wait()
        await anyio.wait_all_tasks_blocked()
        drawn = scope.describe()
        go.set()
    assert drawn.splitlines() == [
        "Scope 'service' closing, holds 1",
        "├── Database",
        "└── Scope 'request' closing, holds 0",
        "    ├── queue: closing",
        "    └── lock: closing",
    ]


async def test_shows_what_is_being_released() -> None:
    """One that closes out of turn is said to close, in its place."""
    began, go = anyio.Event(), anyio.Event()

    async def close() -> None:
        began.set()
        await go.wait()

    async with Scope() as scope:
        lock = scope.add("lock", close, name="lock")
        scope.defer(str)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, lock)
            await began.wait()
            drawn = scope.describe()
            go.set()
    assert drawn.splitlines() == ["Scope open, holds 2", "├── lock: closing", "└── str"]


async def test_tells_of_a_hosted_manager_that_has_died() -> None:
    """A hosted manager whose task has ended is said to have died."""
    broken, died = anyio.Event(), anyio.Event()
    scope = Scope(on_event=lambda event: died.set() if event.kind == "died" else None)
    await scope.host(fragile(broken))
    broken.set()
    await died.wait()
    assert scope.describe().splitlines()[1] == "└── fragile: hosted, has died"
    with pytest.raises(ExceptionGroup):
        await scope.aclose()


async def test_shows_no_value() -> None:
    """A value may hold a password: neither it nor its `repr` is shown."""
    async with Scope() as scope:
        scope.add(Database())
        scope.child().add("pass", print)
        assert "secret" not in scope.describe()
        assert "pass" not in scope.describe()
