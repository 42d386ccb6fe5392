"""The same work done by containers that close what they made: svcs and dishka.

A container is not told of a closer. It is told how to make a value of a type, by a generator whose second half closes
the value. So beside holding and closing, which are all that a scope does here, a container finds out how the type is
made, and makes it. Registering the types is done beforehand and isn't measured; each value has a type of its own, as a
container makes but one of each.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from benchmarks.work import Item

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from benchmarks.work import Batch, Contest


def made_by(generator: Callable[[], object], count: int) -> Contest:
    """Let the containers make so many values by a generator, and close."""
    return _contest(generator, generator, count)


def entered(manager: AbstractAsyncContextManager[object], count: int) -> Contest:
    """Let the containers enter so many managers. svcs enters what a factory gives; for dishka a generator does."""

    async def entering() -> Any:
        async with manager as value:
            yield value

    return _contest(lambda: manager, entering, count)


def _contest(for_svcs: Callable[[], object], for_dishka: Callable[[], object], count: int) -> Contest:
    """Make the contenders whose libraries are installed."""
    kinds = [type(f"Item{number}", (Item,), {}) for number in range(count)]
    contest = {}
    if importlib.util.find_spec("svcs"):
        contest["svcs"] = _svcs(kinds, for_svcs)
    if importlib.util.find_spec("dishka"):
        contest["dishka"] = _dishka(kinds, for_dishka)
    return contest


def _svcs(kinds: list[type], factory: Callable[[], object]) -> Batch:
    svcs: Any = importlib.import_module("svcs")
    registry = svcs.Registry()
    for kind in kinds:
        registry.register_factory(kind, factory)

    async def batch(times: int) -> None:
        for _ in range(times):
            async with svcs.Container(registry) as container:
                for kind in kinds:
                    await container.aget(kind)

    return batch


def _dishka(kinds: list[type], factory: Callable[[], object]) -> Batch:
    dishka: Any = importlib.import_module("dishka")
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    for kind in kinds:
        provider.provide(factory, provides=kind)
    app = dishka.make_async_container(provider)

    async def batch(times: int) -> None:
        for _ in range(times):
            async with app() as container:
                for kind in kinds:
                    await container.get(kind)

    return batch
