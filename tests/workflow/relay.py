"""A relay between a client and its server: counts round trips, and loses a request or an answer on cue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal


class Relay:
    """What goes through a Unix socket of its own to that of a server, or to its address.

    `trips` counts how often the client has spoken after the server has: each is a round trip. `lose` is what is lost
    next: `"request"`, before the server has it, or `"answer"`, when the server has done what it was asked. Both
    connections are cut with it. `skip` requests go through before.
    """

    def __init__(self, server: str | tuple[str, int]) -> None:
        self.server = server
        self.trips = 0
        self.lose: Literal["request", "answer"] | None = None
        self.skip = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if isinstance(self.server, str):
                there, to_server = await asyncio.open_unix_connection(self.server)
            else:
                there, to_server = await asyncio.open_connection(*self.server)
            try:
                await self._relay(reader, writer, there, to_server)
            finally:
                for end in (to_server, writer):
                    end.close()
                    with suppress(OSError):
                        await end.wait_closed()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        lost, spoke = asyncio.Event(), "server"

        async def ask() -> None:
            nonlocal spoke
            while asked := await reader.read(65536):
                if spoke == "server":
                    spoke = "client"
                    self.trips += 1
                    losing = self.lose if self.skip <= 0 else None
                    self.skip -= 1
                    if losing:
                        self.lose = None
                        lost.set()
                    if losing == "request":
                        return
                to_server.write(asked)
                await to_server.drain()

        async def answer() -> None:
            nonlocal spoke
            while answered := await there.read(65536):
                spoke = "server"
                if lost.is_set():
                    return
                writer.write(answered)
                await writer.drain()

        asking, answering = asyncio.create_task(ask()), asyncio.create_task(answer())
        done, pending = await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*done, *pending, return_exceptions=True)


@asynccontextmanager
async def relayed(path: Path, server: str | tuple[str, int]) -> AsyncGenerator[Relay]:
    """Relay from that Unix socket."""
    relay = Relay(server)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(relay.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_unix_server(connected, path)
    try:
        yield relay
    finally:
        listening.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
