"""The calls by which every peer is tried, and those of them that only open and close."""
# ruff: noqa: D102, INP001 (what the methods do is said once, at `Peer`)

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import aiotools
import anyio

from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    Closer = Callable[[BaseException | None], Awaitable[None]]
    """Closes something; it is told what the body raised, where the peer tells."""

    Body = Callable[[], Awaitable[None]]
    Client = Callable[[], AsyncIterator[object]]
    """The function of an async context manager."""


class Peer:
    """Something that closes what was opened."""

    name: str
    package: str | None = None

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:
        """Open one thing for each closer, in this order, each needing the one before; await the body; close.

        `grace`: the seconds that the closing may take, for those that have such a thing.
        """
        raise NotImplementedError

    keep: Callable[[Client], Awaitable[Callable[[], Awaitable[object]]]] | None = None
    """Open a client here, and give what closes it anywhere."""

    early: Callable[[Sequence[Closer]], Awaitable[None]] | None = None
    """Open one thing for each of three closers, close the second alone, then the rest."""

    at_once: Callable[[Sequence[Closer]], Awaitable[None]] | None = None
    """Open one thing for each closer, none of which needs another, and close them."""

    opened_at_once: Callable[[Sequence[Client]], Awaitable[None]] | None = None
    """Open clients, none of which needs another, and close them."""

    hand_over: Callable[[Sequence[Closer]], Awaitable[Callable[[], Awaitable[object]]]] | None = None
    """Open one thing for each closer, let something else own all, end, and give what closes that."""

    asked_by = "its type"
    made: Callable[[], Awaitable[str]] | None = None
    """Ask for a thing that needs another, and give the type of what it needs."""

    faked: Callable[[], Awaitable[str]] | None = None
    """The same, with a fake in the place of what it needs, put there without touching what was set up."""

    def version(self) -> str:
        """Give its version."""
        return f"{self.package} {version(str(self.package))}"


class Database:
    """Something that another thing needs."""


class Fake(Database):
    """Something that stands for it in a test."""


class Shop:
    """Something that needs another thing."""

    def __init__(self, database: Database) -> None:
        self.database = database


async def nothing() -> None:
    """Do nothing, as a body."""


def generator(closer: Closer) -> Client:
    """Make a generator function of the kind that containers take: it opens, yields, closes."""

    async def opened(*_needs: object) -> AsyncIterator[object]:
        told = None
        try:
            yield object()
        except BaseException as exc:
            told = exc
            raise
        finally:
            await closer(told)

    return opened


class Rescope(Peer):
    """A scope."""

    name, package = "rescope", "rescope"

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:
        async with Scope(grace=grace) as scope:
            for closer in closers:
                scope.on_exit(lambda outcome, closer=closer: closer(None if outcome.ok else outcome.error))
            await body()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        scope = Scope()
        await scope.host(asynccontextmanager(client)())
        return scope.aclose

    async def early(self, closers: Sequence[Closer]) -> None:
        async with Scope() as scope:
            handles = [scope.defer(closer, None) for closer in closers]
            await scope.release(handles[1])

    async def at_once(self, closers: Sequence[Closer]) -> None:
        async with Scope(concurrent=True) as scope:
            for closer in closers:
                scope.defer(closer, None)

    async def opened_at_once(self, clients: Sequence[Client]) -> None:
        async with Scope() as scope:
            await scope.host_all(*[asynccontextmanager(client)() for client in clients])

    async def hand_over(self, closers: Sequence[Closer]) -> Callable[[], Awaitable[object]]:
        async with Scope() as scope:
            for closer in closers:
                scope.defer(closer, None)
            return scope.move().aclose


class ExitStack(Peer):
    """The standard library's."""

    name = "`AsyncExitStack`"

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        async with AsyncExitStack() as stack:
            for closer in closers:
                stack.push_async_exit(lambda _kind, exc, _trace, closer=closer: closer(exc))
            await body()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        stack = AsyncExitStack()
        await stack.enter_async_context(asynccontextmanager(client)())
        return stack.aclose

    async def hand_over(self, closers: Sequence[Closer]) -> Callable[[], Awaitable[object]]:
        async with AsyncExitStack() as stack:
            for closer in closers:
                stack.push_async_callback(closer, None)
            return stack.pop_all().aclose


class Finally(Peer):
    """Nested statements, written by hand."""

    name = "`try`/`finally`"

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:
        if not closers:
            return await body()
        try:
            await self.run(closers[1:], body, grace=grace)
        finally:
            await closers[0](sys.exception())

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        manager = asynccontextmanager(client)()
        await manager.__aenter__()
        return lambda: manager.__aexit__(None, None, None)


class ShieldedFinally(Finally):
    """The same, each closer in `anyio.move_on_after(..., shield=True)`, with a third of the grace."""

    name, package = "the same, each in an anyio shield", "anyio"

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:
        if not closers:
            return await body()
        try:
            await self.run(closers[1:], body, grace=grace)
        finally:
            told = sys.exception()
            with anyio.move_on_after(None if grace is None else grace / 3, shield=True):
                await closers[0](told)


class Adefer(Peer):
    """A decorator that gives its function a `defer`."""

    name, package = "aiotools", "aiotools"

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        @aiotools.adefer
        async def do(defer: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
            for closer in closers:
                defer(partial(closer, None))
            await body()

        await do()

    async def at_once(self, closers: Sequence[Closer]) -> None:
        async with aiotools.AsyncContextGroup([asynccontextmanager(generator(closer))() for closer in closers]):
            pass

    async def opened_at_once(self, clients: Sequence[Client]) -> None:
        async with aiotools.AsyncContextGroup([asynccontextmanager(client)() for client in clients]):
            pass
