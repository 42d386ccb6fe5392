"""The work, as it is done with a scope and with `contextlib.AsyncExitStack`.

The contenders of a contest do the same: each registers in a loop of its own, so that none pays for a call that the
others don't make.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator  # noqa: TC003 (dishka reads the types of what it calls)
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from benchmarks.backends import Backend

Batch: TypeAlias = "Callable[[int], Awaitable[object]]"
"""Does the work so many times."""

Contest: TypeAlias = dict[str, Batch]
"""What is measured beside each other, by contender."""

AsyncClose: TypeAlias = "Callable[[], Coroutine[Any, Any, object]]"


class Item:
    """Something to hold."""


class Manager:
    """An async context manager that does nothing but close."""

    def __init__(self, close: AsyncClose | None = None) -> None:
        self._close = close

    async def __aenter__(self) -> Item | None:
        return None

    async def __aexit__(self, *exc_info: object) -> None:
        if self._close is not None:
            await self._close()


@dataclass(frozen=True)
class Parts:
    """What the work is done with."""

    close_sync: Callable[[], object]
    close_async: AsyncClose
    close_pausing: AsyncClose
    """It waits for the loop once."""
    manager: AbstractAsyncContextManager[object]

    def generator(self) -> Iterator[Item]:
        """Give an item, and close; as containers have it."""
        yield Item()
        self.close_sync()

    async def async_generator(self) -> AsyncGenerator[Item]:
        """Do the same, asynchronously."""
        yield Item()
        await self.close_async()

    async def pausing_generator(self) -> AsyncGenerator[Item]:
        """Do the same, waiting for the loop once."""
        yield Item()
        await self.close_pausing()


def idle_parts(backend: Backend) -> Parts:
    """Give parts that do nothing, so that all that is measured is those who use them."""
    pause = backend.pause

    def close_sync() -> None:
        pass

    async def close_async() -> None:
        pass

    async def close_pausing() -> None:
        await pause()

    return Parts(close_sync, close_async, close_pausing, Manager())


def empty(backend: Backend) -> Contest:
    """Enter and exit, with nothing held."""
    apart = backend.apart

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope():
                pass

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack():
                pass

    async def plus(times: int) -> None:
        for _ in range(times):
            stack = AsyncExitStack()
            try:
                pass
            finally:
                await apart(stack.aclose)

    return {"rescope": rescope, "AES": aes, "AES+": plus}


def closers(backend: Backend, count: int, close: Callable[[], object], *, sync: bool) -> Contest:  # noqa: C901 (one small function a contender)
    """Register so many closers, and close."""
    apart = backend.apart
    items = [Item() for _ in range(count)]
    push: Any = AsyncExitStack.callback if sync else AsyncExitStack.push_async_callback

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for _ in items:
                    scope.defer(close)

    async def add(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for item in items:
                    scope.add(item, close)

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in items:
                    push(stack, close)

    async def plus(times: int) -> None:
        for _ in range(times):
            stack = AsyncExitStack()
            try:
                for _ in items:
                    push(stack, close)
            finally:
                await apart(stack.aclose)

    return {"rescope": rescope, "add": add, "AES": aes, "AES+": plus}


def entered(count: int, manager: AbstractAsyncContextManager[object]) -> Contest:
    """Enter so many async managers, and exit them."""

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for _ in range(count):
                    await scope.enter(manager)

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(manager)

    return {"rescope": rescope, "AES": aes}


def generators(count: int, generator: Callable[[], AsyncGenerator[Item]]) -> Contest:
    """Make so many values by async generators, and end those: the same work for stacks and containers."""
    make = asynccontextmanager(generator)

    async def rescope(times: int) -> None:
        for _ in range(times):
            async with Scope() as scope:
                for _ in range(count):
                    await scope.enter(make())

    async def aes(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(make())

    return {"rescope": rescope, "AES": aes}
