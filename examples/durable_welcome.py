"""A welcome e-mail, sent by a durable function: the one who signs up doesn't wait for it, and no crash loses it.

The mail goes over a real SMTP connection, to a small server of our own that is down at first. Signing up answers at
once. The connection belongs to the scope of an attempt, so it is closed before the next attempt begins. To press the
button twice sends one mail, as the address is the key.

    python examples/durable_welcome.py
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from time import perf_counter

from rescope import Scope
from rescope.workflow.durable import Durable


class PostOffice:
    """An SMTP server that says it is busy to the first ones who connect, and keeps what the others send."""

    def __init__(self, *, busy: int) -> None:
        self.busy = busy
        self.mails: list[str] = []
        self.connected = 0
        self.port = 0

    async def open(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        self.busy -= 1
        writer.write(b"421 too busy\r\n" if self.busy >= 0 else b"220 ready\r\n")
        while (line := (await reader.readline()).decode().strip()) and line != "QUIT":
            if line == "DATA":
                writer.write(b"354 go on\r\n")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"250 ok\r\n")
        writer.close()
        self.connected -= 1


class Line:
    """A connection to an SMTP server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, *lines: str, code: str) -> None:
        for line in lines:
            self.writer.write(f"{line}\r\n".encode())
        answer = (await self.reader.readline()).decode().strip()
        if not answer.startswith(code):
            raise ConnectionError(answer)

    async def aclose(self) -> None:
        self.writer.write(b"QUIT\r\n")
        self.writer.close()
        await self.writer.wait_closed()


BUSY = 2
office = PostOffice(busy=BUSY)
folder = tempfile.TemporaryDirectory()
app = Durable(url=f"sqlite:///{folder.name}/mail.db", name="welcome")
attempts: list[int] = []


@app.function(namespace="users.mail", attempts=5, backoff=0.05)
async def welcome(scope: Scope, address: str) -> str:
    """Send the mail, on a connection that is closed with the scope."""
    attempts.append(office.connected)
    line = scope.add(Line(*await asyncio.open_connection("127.0.0.1", office.port)))
    await line.say(code="220")
    await line.say("MAIL FROM:<shop@example.org>", code="250")
    await line.say(f"RCPT TO:<{address}>", code="250")
    await line.say("DATA", code="354")
    await line.say(f"To: {address}", "Subject: Welcome", "", "Good to have you.", ".", code="250")
    return address


async def sign_up(address: str) -> str:
    """What the web server does: it answers at once."""
    handle = await welcome.start(address, key=address)
    return handle.id


async def main() -> bool:
    async with Scope("example") as scope:
        scope.add(await office.open())
        await scope.enter(app)
        begin = perf_counter()
        first = await sign_up("ada@example.org")
        print(f"signed up, after {1000 * (perf_counter() - begin):.0f} ms; mails sent so far: {len(office.mails)}")
        second = await sign_up("ada@example.org")
        await app.handle(first).result(timeout=20)
    print(f"attempts: {len(attempts)}, with {sum(attempts)} connections of earlier ones still open")
    print(f"mails sent: {len(office.mails)}")
    return first == second and len(attempts) == BUSY + 1 and not sum(attempts) and len(office.mails) == 1


if __name__ == "__main__":
    with folder:
        sys.exit(0 if asyncio.run(main()) else "it did NOT go as it should")
