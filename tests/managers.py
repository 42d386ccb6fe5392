"""The managers of random programs, to be entered and to be hosted."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from labels import Fault, acting, label
from strategies import Hosted, Managed

if TYPE_CHECKING:
    from programs import Runner


class Sync:
    """A manager as a class."""

    def __init__(self, runner: Runner, item: Managed) -> None:
        self.runner = runner
        self.item = item

    def __enter__(self) -> str:
        if self.item.act == "refuse":
            raise Fault(self.item.name)
        return self.item.name

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.runner.log("begin", self.item.name, label(exc))
        self.runner.log("end", self.item.name)
        return acting(self.item.name, self.item.act, exc)


class Async(Sync):
    """The same, async."""

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.runner.log("begin", self.item.name, label(exc))
        await steps(self.runner, self.item)
        self.runner.log("end", self.item.name)
        return acting(self.item.name, self.item.act, exc)


async def steps(runner: Runner, item: Managed | Hosted) -> None:
    """Suspend in an exit; say so where that is cut off."""
    try:
        for _ in range(item.steps):
            await anyio.lowlevel.checkpoint()
    except BaseException:
        runner.log("cut", item.name)
        raise


@contextlib.contextmanager
def generator(runner: Runner, item: Managed) -> Iterator[str]:
    """A manager as a generator."""
    seen: BaseException | None = None
    Sync(runner, item).__enter__()
    try:
        yield item.name
    except BaseException as exc:
        seen = exc
        if not Sync(runner, item).__exit__(None, exc, None):
            raise
    if seen is None:
        Sync(runner, item).__exit__(None, None, None)


@contextlib.asynccontextmanager
async def async_generator(runner: Runner, item: Managed) -> AsyncIterator[str]:
    """The same, async."""
    seen: BaseException | None = None
    await Async(runner, item).__aenter__()
    try:
        yield item.name
    except BaseException as exc:
        seen = exc
        if not await Async(runner, item).__aexit__(None, exc, None):
            raise
    if seen is None:
        await Async(runner, item).__aexit__(None, None, None)


def managed(runner: Runner, item: Managed) -> Any:
    """Make a manager to be entered."""
    kinds: dict[str, Any] = {
        "sync": Sync,
        "async": Async,
        "generator": generator,
        "async generator": async_generator,
    }
    return kinds[item.kind](runner, item)


def hosted(runner: Runner, item: Hosted) -> Any:
    """Make a manager to be hosted, that holds a cancel scope, and dies when that is cancelled."""

    async def host() -> AsyncIterator[str]:
        seen: BaseException | None = None
        if item.act == "refuse":
            await anyio.lowlevel.checkpoint()
            raise Fault(item.name)
        with anyio.CancelScope() as runner.deaths[item.name]:
            try:
                yield item.name
            except BaseException as exc:
                seen = exc
                if runner.deaths[item.name].cancel_called:
                    raise
            runner.log("begin", item.name, label(seen))
            await steps(runner, item)
            runner.log("end", item.name)
            if not acting(item.name, item.act, seen) and seen is not None:
                raise seen

    host.__qualname__ = item.name
    return contextlib.asynccontextmanager(host)()
