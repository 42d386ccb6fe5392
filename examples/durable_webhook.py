"""Webhooks, delivered to a receiver that is down for a while, and to one that never answers well.

Each delivery has up to seven attempts, with pauses that double from 20 ms to 200 ms. For the receiver, each event has
an id, so it knows one that it had before: an attempt whose answer got lost is made again. Each attempt has a connection
of its own, which is closed before the next.

    python examples/durable_webhook.py
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from time import monotonic

from rescope import Ok, Scope
from rescope.workflow.durable import Durable, gather

folder = tempfile.TemporaryDirectory()
app = Durable(url=f"sqlite:///{folder.name}/work.db", name="webhooks")
DOWN = 4
port = 0
asked: Counter[str] = Counter()
times: list[float] = []
received: set[str] = set()


async def receiver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP server: down for four requests of each event, then it takes it and loses the answer, then it answers."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    event = head.partition("Event: ")[2].partition("\r\n")[0]
    asked[event] += 1
    if event == "evt-1":
        times.append(monotonic())
    if event == "evt-bad" or asked[event] <= DOWN:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    else:
        received.add(event)
        if asked[event] > DOWN + 1:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    with suppress(ConnectionError):
        await writer.drain()
        await reader.read()
    writer.close()


@app.function(namespace="billing.webhook", attempts=7, backoff=0.02, max_backoff=0.2, timeout=5)
async def deliver(scope: Scope, event: str, payload: dict[str, int]) -> int:
    """Post an event; gives the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    scope.add(writer, writer.close)
    body = json.dumps(payload)
    writer.write(f"POST /hook HTTP/1.1\r\nEvent: {event}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    writer.write_eof()
    answer = (await reader.readline()).decode()
    if " 200 " not in answer:
        msg = f"the receiver says: {answer.strip() or 'nothing'}"
        raise ConnectionError(msg)
    return 200


async def main() -> bool:
    global port  # noqa: PLW0603
    async with Scope("example") as scope:
        server = scope.add(await asyncio.start_server(receiver, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        await scope.enter(app)
        events = ["evt-1", "evt-2", "evt-bad"]
        handles = [await deliver.start(event, {"cents": 4980}, key=event) for event in events]
        results = await gather(*handles)
    for event, result in zip(events, results, strict=True):
        print(f"{event}: {asked[event]} attempts, {'delivered' if isinstance(result, Ok) else result.error}")
    pauses = [later - earlier for earlier, later in pairwise(times)]
    print("pauses before the attempts for evt-1:", ", ".join(f"{1000 * pause:.0f} ms" for pause in pauses))
    grew = all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.16, 0.2), strict=True))
    return grew and received == {"evt-1", "evt-2"} and dict(asked) == {"evt-1": 6, "evt-2": 6, "evt-bad": 7}


if __name__ == "__main__":
    with folder:
        sys.exit(0 if asyncio.run(main()) else "it did NOT go as it should")
