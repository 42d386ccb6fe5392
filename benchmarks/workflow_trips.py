"""A relay between a client and its server, on a Unix socket, that counts round trips."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncGenerator
    from pathlib import Path


class Trips:
    """How often a client has spoken after the server has, on whatever connection: each is a round trip."""

    def __init__(self, server: str | tuple[str, int]) -> None:
        self.server = server
        self.count = 0

    async def relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Relay one connection until one side has gone."""
        there, to_server = await self._open()
        answered = True

        async def ask() -> None:
            nonlocal answered
            while asked := await reader.read(65536):
                self.count += answered
                answered = False
                to_server.write(asked)

        async def answer() -> None:
            nonlocal answered
            while answer := await there.read(65536):
                answered = True
                writer.write(answer)

        sides = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        for side in sides:
            side.cancel()
        for end in (to_server, writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    async def _open(self) -> tuple[StreamReader, StreamWriter]:
        if isinstance(self.server, str):
            return await asyncio.open_unix_connection(self.server)
        host, port = self.server
        return await asyncio.open_connection(host, port)


@asynccontextmanager
async def counted(trips: Trips, path: Path) -> AsyncGenerator[None]:
    """Relay from that socket."""
    listening = await asyncio.start_unix_server(trips.relay, path)
    try:
        yield
    finally:
        listening.close()
