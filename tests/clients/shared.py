"""What the tests of several clients share: where they run, the server that they ask, and how they wait."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
from collections.abc import Awaitable, Callable
from uuid import uuid4

import anyio
import pytest
from examples.servers import connections, connections_left

from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
on_trio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param("trio", marks=pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="needs trio"))],
)


class Server:
    """A server, and the name under which a test connects to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"rescope-{uuid4().hex}"

    async def connections(self) -> list[str]:
        return await connections(self.url, self.name)

    async def left(self) -> list[str]:
        return await connections_left(self.url, self.name)

    async def becomes(self, expected: list[str]) -> None:
        """Wait until its connections are as expected, for up to 5 seconds."""
        for _ in range(500):
            if await self.connections() == expected:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await self.connections())


async def ended(request: Callable[[], Awaitable[object]]) -> None:
    """Let a request fail, and clear away what it leaves."""
    try:
        await request()
    except LookupError:
        pass
    gc.collect()


def gone(pid: int) -> bool:
    """Tell whether a process of ours has ended, and was waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in another process or thread."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 (no event tells of it)
            await anyio.sleep(0.001)
