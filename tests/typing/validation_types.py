# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `validated`. Never run, only checked."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Self, assert_type

import aiosqlite
import asyncpg

from rescope import Resource, Scope, create_resource
from rescope.workflow.validation import InvalidConnectionError, validated


class Client:
    """Something to close, which is its own context manager."""

    async def aclose(self) -> None: ...

    async def ping(self) -> bool:
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Plain:
    """Something to close."""

    def close(self) -> None: ...

    def alive(self) -> bool:
        return True


async def connect() -> Plain:
    return Plain()


async def connect_client() -> Client:
    return Client()


@asynccontextmanager
async def session() -> AsyncGenerator[Plain]:
    yield Plain()


@contextmanager
def sync_session() -> Generator[Plain]:
    yield Plain()


def managers() -> None:
    """What a manager gives is what the check takes, and what comes out."""
    assert_type(validated(Client(), Client.ping), AbstractAsyncContextManager[Client, bool | None])
    assert_type(validated(session(), Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(validated(sync_session(), Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(
        validated(closing(Plain()), Plain.alive, name="plain", timeout=5, hint="Look."),
        AbstractAsyncContextManager[Plain, bool | None],
    )


def functions() -> None:
    """So is what a function gives: the connection, or what its manager or `Resource` holds."""
    assert_type(validated(connect, Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(validated(connect_client, Client.ping), AbstractAsyncContextManager[Client, bool | None])
    assert_type(validated(Plain, Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(validated(Client, Client.ping), AbstractAsyncContextManager[Client, bool | None])
    assert_type(validated(session, Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(validated(partial(connect), Plain.alive), AbstractAsyncContextManager[Plain, bool | None])
    assert_type(
        validated(lambda: create_resource(connect, Plain.close), Plain.alive),
        AbstractAsyncContextManager[Plain, bool | None],
    )
    assert_type(
        validated(lambda: Resource(1, print), lambda value: value > 0), AbstractAsyncContextManager[int, bool | None]
    )
    assert_type(
        validated(partial(sqlite3.connect, "state.db"), lambda database: database.execute("SELECT 1")),
        AbstractAsyncContextManager[sqlite3.Connection, bool | None],
    )
    assert_type(
        validated(aiosqlite.connect("state.db"), lambda database: database.execute("SELECT 1")),
        AbstractAsyncContextManager[aiosqlite.Connection, bool | None],
    )


async def in_a_scope(pool: asyncpg.Pool[asyncpg.Record]) -> int:
    """A block that returns does so: nothing is thought to be swallowed."""
    async with Scope() as scope:
        assert_type(await scope.enter(validated(session(), Plain.alive)), Plain)
        assert_type(await scope.host(validated(connect, Plain.alive)), Plain)
        await scope.enter(validated(pool.acquire(), lambda connection: connection.fetchval("SELECT 1")))
        async with validated(connect, Plain.alive) as connection:
            assert_type(connection, Plain)
            return 1


def errors(error: InvalidConnectionError) -> None:
    """The error says what it is about."""
    assert_type(error.connection, str)
    assert_type(error.check, str)
    assert_type(error.reason, str)
    assert_type(error.hint, str | None)
    assert_type(error.close_error, Exception | None)


validated(session())  # type: ignore[call-overload]
validated(session(), Client.ping)  # type: ignore[arg-type]
validated(session(), 1)  # type: ignore[call-overload]
validated(session(), Plain.alive, 5)  # type: ignore[call-overload]
validated(7, Plain.alive)  # type: ignore[call-overload]
