"""Containers: peers that make what is asked for, and close it."""
# ruff: noqa: D102, INP001 (what the methods do is said once, at `Peer`)

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import dishka
import svcs
import that_depends
from dependency_injector import containers as di_containers
from dependency_injector import providers as di_providers
from peers import Database, Fake, Peer, Shop, generator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from peers import Body, Client, Closer

_numbers = count()


class Svcs(Peer):
    """A service locator."""

    name, package = "svcs", "svcs"

    def container(self, *clients: Client) -> tuple[svcs.Container, list[type]]:
        registry = svcs.Registry()
        kinds = [type(f"Kind{number}", (), {}) for number, _ in enumerate(clients)]
        for kind, client in zip(kinds, clients, strict=True):
            registry.register_factory(kind, client, suppress_context_exit=False)
        return svcs.Container(registry), kinds

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        container, kinds = self.container(*[in_svcs(generator(closer)) for closer in closers])
        async with container:
            for kind in kinds:
                await container.aget(kind)
            await body()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        container, (kind,) = self.container(client)
        await container.aget(kind)
        return container.aclose

    def shops(self) -> svcs.Container:
        registry = svcs.Registry()
        registry.register_factory(Database, Database)

        async def shop(container: svcs.Container) -> Shop:
            return Shop(await container.aget(Database))

        registry.register_factory(Shop, shop)
        return svcs.Container(registry)

    async def made(self) -> str:
        async with self.shops() as container:
            return type((await container.aget(Shop)).database).__name__

    async def faked(self) -> str:
        async with self.shops() as container:
            container.register_local_value(Database, Fake())
            return type((await container.aget(Shop)).database).__name__


def in_svcs(client: Client) -> Client:
    """Drop the parameters: svcs reads the signature."""

    async def opened() -> AsyncIterator[object]:
        async with asynccontextmanager(client)() as value:
            yield value

    return opened


class Dishka(Peer):
    """An injector with scopes."""

    name, package = "dishka", "dishka"

    def container(self, *closers: Closer) -> tuple[dishka.AsyncContainer, list[type]]:
        kinds = [type(f"Kind{number}", (), {}) for number, _ in enumerate(closers)]
        return provided(*[(kind, in_dishka(kind, closer)) for kind, closer in zip(kinds, closers, strict=True)]), kinds

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        container, kinds = self.container(*closers)
        async with container() as request:
            for kind in kinds:
                await request.get(kind)
            await body()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        async def opened() -> AsyncIterator[object]:
            async with asynccontextmanager(client)() as value:
                yield value

        request = await provided((object, opened))().__aenter__()
        await request.get(object)
        return request.close

    async def made(self) -> str:
        async with provided((Database, Database), (Shop, Shop))() as request:
            return type((await request.get(Shop)).database).__name__

    async def faked(self) -> str:
        provider = dishka.Provider(scope=dishka.Scope.REQUEST)
        provider.provide(Database)
        provider.provide(Shop)
        tested = dishka.Provider(scope=dishka.Scope.REQUEST)
        tested.provide(Fake, provides=Database, override=True)
        async with dishka.make_async_container(provider, tested)() as request:
            return type((await request.get(Shop)).database).__name__


def provided(*sources: tuple[type, Any]) -> dishka.AsyncContainer:
    """Make a container that provides each type from its source."""
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    for kind, source in sources:
        if not isinstance(source, type):
            source.__annotations__ = {"return": AsyncIterable[kind]}
        provider.provide(source, provides=kind)
    return dishka.make_async_container(provider)


def in_dishka(kind: type, closer: Closer) -> Client:
    """Make a generator function as dishka has them: what the body raised comes out of the `yield`."""

    async def opened() -> AsyncIterator[object]:
        told = yield kind()
        await closer(told)

    return opened


class ThatDepends(Peer):
    """An injector of containers that are classes."""

    name, package = "that-depends", "that-depends"

    def container(self, *clients: Client) -> Any:
        resources: dict[str, Any] = {}
        needs: list[Any] = []
        for number, client in enumerate(clients):
            resources[f"kind{number}"] = needed = that_depends.providers.Resource(client, *needs)
            needs = [needed]
        return type(f"Container{next(_numbers)}", (that_depends.BaseContainer,), resources)

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        container = self.container(*[generator(closer) for closer in closers])
        await container.init_resources()
        try:
            await body()
        finally:
            await container.tear_down()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        container = self.container(client)
        await container.init_resources()
        return container.tear_down

    async def early(self, closers: Sequence[Closer]) -> None:
        container = self.container(*[generator(closer) for closer in closers])
        await container.init_resources()
        await container.kind1.tear_down(propagate=False)
        await container.tear_down()

    def shops(self) -> Any:
        database = that_depends.providers.Factory(Database).bind(Database)
        shop = that_depends.providers.Factory(Shop, database=database.cast).bind(Shop)
        return type(f"Container{next(_numbers)}", (that_depends.BaseContainer,), {"database": database, "shop": shop})

    async def made(self) -> str:
        return type((await self.shops().get_provider_for_type(Shop).resolve()).database).__name__

    async def faked(self) -> str:
        container = self.shops()
        with container.database.override_context_sync(Fake()):
            return type((await container.shop.resolve()).database).__name__


class DependencyInjector(Peer):
    """An injector of containers with providers."""

    name, package = "dependency-injector", "dependency-injector"
    asked_by = "its provider"

    def container(self, *clients: Client, chained: bool = True) -> Any:
        container = di_containers.DynamicContainer()
        needs: list[Any] = []
        for number, client in enumerate(clients):
            needed = di_providers.Resource(client, *needs)
            setattr(container, f"kind{number}", needed)
            needs = [needed] if chained else []
        return container

    async def run(self, closers: Sequence[Closer], body: Body, *, grace: float | None = None) -> None:  # noqa: ARG002
        container = self.container(*[generator(closer) for closer in closers])
        await container.init_resources()
        try:
            await body()
        finally:
            await container.shutdown_resources()

    async def keep(self, client: Client) -> Callable[[], Awaitable[object]]:
        container = self.container(client)
        await container.init_resources()
        return container.shutdown_resources

    async def early(self, closers: Sequence[Closer]) -> None:
        container = self.container(*[generator(closer) for closer in closers], chained=False)
        await container.init_resources()
        await container.kind1.shutdown()
        await container.shutdown_resources()

    async def at_once(self, closers: Sequence[Closer]) -> None:
        container = self.container(*[generator(closer) for closer in closers], chained=False)
        await container.init_resources()
        await container.shutdown_resources()

    async def opened_at_once(self, clients: Sequence[Client]) -> None:
        container = self.container(*clients, chained=False)
        await container.init_resources()
        await container.shutdown_resources()

    def shops(self) -> Any:
        container = di_containers.DynamicContainer()
        container.database = di_providers.Factory(Database)
        container.shop = di_providers.Factory(Shop, database=container.database)
        return container

    async def made(self) -> str:
        return type(self.shops().shop().database).__name__

    async def faked(self) -> str:
        container = self.shops()
        with container.database.override(di_providers.Factory(Fake)):
            return type(container.shop().database).__name__
