"""A price watcher that reads several streams at once, and leaves none of them open.

It starts a server on a free port that streams the prices of some markets, and then watches three of them with httpx:
it closes one early, which frees its connection for a fourth; it gives up one that never answers; and then it is
cancelled while it still reads. On asyncio a second watcher does the same with aiohttp, and a websocket. In the end
the program asks the server what is still open there; its exit code is 1 if anything is.

    python examples/http_streams.py
    python examples/http_streams.py --backend trio
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import sys
from collections.abc import AsyncIterator
from threading import Event, Thread

import aiohttp
import anyio
import httpx
from aiohttp import web

from rescope import Scope

STREAMS = 3
"""How many connections a watcher may have at once."""


class Exchange:
    """A server in a thread of its own, that knows which of its streams are open."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.ready = Event()
        self.thread = Thread(target=lambda: asyncio.run(self.serve()))
        self.thread.start()
        self.ready.wait()

    async def serve(self) -> None:
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.add_routes([web.get("/prices/{market}", self.prices), web.get("/chat", self.chat)])
        async with Scope("exchange", grace=5) as scope:
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
            await scope.acquire(runner.setup, lambda _: runner.cleanup(), name="runner")
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.ready.set()
            await self.end.wait()

    async def prices(self, request: web.Request) -> web.StreamResponse:
        market = request.match_info["market"]
        self.open.append(market)
        try:
            if market == "closed":
                await asyncio.sleep(3600)
            response = web.StreamResponse()
            await response.prepare(request)
            for price in itertools.count(100):
                await response.write(f"{market} {price}\n".encode())
                await asyncio.sleep(0.05)
        finally:
            self.open.remove(market)
        return response

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.open.append("chat")
        try:
            async for message in socket:
                await socket.send_str(f"{message.data} yourself")
        finally:
            self.open.remove("chat")
        return socket

    async def still_open(self) -> list[str]:
        """Give what is open; a client that has hung up is noticed within a moment."""
        with anyio.move_on_after(5):
            while self.open:  # noqa: ASYNC110 (another thread empties it)
                await anyio.sleep(0.01)
        return self.open.copy()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join()


class Watcher:
    """Prints what it reads, and knows when it has read of each market."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prices: dict[str, str] = {}
        self.news = anyio.Event()

    def say(self, what: str) -> None:
        print(f"{self.name:<8} {what}")

    async def watch(self, lines: AsyncIterator[str | bytes]) -> None:
        async for line in lines:
            text = line.decode() if isinstance(line, bytes) else line
            market, price = text.split()
            if market not in self.prices:
                self.say(f"reads {text.strip()}")
            self.prices[market] = price
            self.news.set()
            self.news = anyio.Event()

    async def has_read(self, *markets: str) -> None:
        while not self.prices.keys() >= set(markets):
            await self.news.wait()


async def with_httpx(exchange: Exchange, cancel_scope: anyio.CancelScope) -> None:
    watcher = Watcher("httpx")
    limits = httpx.Limits(max_connections=STREAMS)
    async with Scope("httpx", grace=5) as scope:
        client = scope.add(httpx.AsyncClient(base_url=exchange.url, limits=limits, timeout=httpx.Timeout(5, pool=1)))
        london, paris, tokyo = await scope.host_all(
            client.stream("GET", "/prices/london"),
            client.stream("GET", "/prices/paris"),
            client.stream("GET", "/prices/tokyo"),
        )
        await scope.release(tokyo)
        watcher.say("closes tokyo early")
        try:
            with anyio.fail_after(0.2):
                await scope.host(client.stream("GET", "/prices/closed"))
        except TimeoutError:
            watcher.say("gives up a market that is closed")
        madrid = await scope.host(client.stream("GET", "/prices/madrid"), name="madrid")
        async with anyio.create_task_group() as tasks:
            for response in london, paris, madrid:
                tasks.start_soon(watcher.watch, response.aiter_lines())
            await watcher.has_read("london", "paris", "madrid")
            watcher.say(f"is cancelled, and holds {scope.size}: {', '.join(one.name for one in scope.resources)}")
            cancel_scope.cancel()


async def with_aiohttp(exchange: Exchange, cancel_scope: anyio.CancelScope) -> None:
    watcher = Watcher("aiohttp")
    async with Scope("aiohttp", grace=5) as scope:
        connector = aiohttp.TCPConnector(limit=STREAMS)
        session = scope.add(aiohttp.ClientSession(exchange.url, connector=connector))
        london = scope.add(await session.get("/prices/london"))
        tokyo = scope.add(await session.get("/prices/tokyo"))
        await scope.release(tokyo)
        watcher.say("closes tokyo early")
        try:
            with anyio.fail_after(0.2):
                scope.add(await session.get("/prices/closed"))
        except TimeoutError:
            watcher.say("gives up a market that is closed")
        chat = await scope.host(session.ws_connect("/chat"), name="chat", timeout=1)
        await chat.send_str("hello")
        watcher.say(f"hears {await chat.receive_str()!r}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.watch, aiter(london.content))
            await watcher.has_read("london")
            watcher.say(f"is cancelled, and holds {scope.size}: {', '.join(one.name for one in scope.resources)}")
            cancel_scope.cancel()


async def main(backend: str) -> int:
    """Watch, be cancelled, and ask the server what is still open."""
    async with Scope("program") as scope:
        exchange = Exchange()
        scope.defer(exchange.stop)
        for watch in (with_httpx, with_aiohttp) if backend == "asyncio" else (with_httpx,):
            with anyio.CancelScope() as cancel_scope:
                await watch(exchange, cancel_scope)
        left = await exchange.still_open()
    gc.collect()  # what was not closed would warn now
    print(f"\nSTILL OPEN: {', '.join(left)}" if left else "\nthe server has no stream open any more")
    return 1 if left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read streams with httpx and aiohttp, and leave none open.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    backend = parser.parse_args().backend
    sys.exit(anyio.run(main, backend, backend=backend))
