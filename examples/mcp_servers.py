"""Three MCP servers of one agent: opened together, one of them lost, the others closed from other tasks.

The agent asks a library, a shop and a calculator, each a server in a process of its own that it talks to over stdio.
Its first task opens them, at once. Then, each in a task of its own: the library is closed, the one that was opened
first; the shop is killed in the middle of a call; the calculator is still asked, and closed in the end, with the scope.

An MCP client holds task groups, so it wants to be closed in the task that opened it, the latest first. A hosted one
lives in a task of its own, and doesn't mind. The program ends by checking that no server process is left, and its exit
code is 1 if one is, or if the loss of the shop was not told.

    python examples/mcp_servers.py
    python examples/mcp_servers.py --backend trio
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from rescope import ResourceCleanupError, Scope
from rescope.events import ScopeEvent

SERVERS = {
    "library": """
        @server.tool()
        def find(title: str) -> str:
            return f"{title}: shelf {len(title)}"
    """,
    "shop": """
        @server.tool()
        async def order(item: str, context: Context) -> str:
            await context.report_progress(0, message=f"looking for a {item}")
            await anyio.sleep(60)
            return item
    """,
    "calculator": """
        @server.tool()
        def add(a: int, b: int) -> int:
            return a + b
    """,
}
PROGRAM = """
import os
import anyio
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("{name}")

@server.tool()
def pid() -> int:
    return os.getpid()
{tools}
server.run("stdio")
"""


def parameters(name: str) -> StdioServerParameters:
    tools = SERVERS[name].replace("\n        ", "\n")
    return StdioServerParameters(command=sys.executable, args=["-c", PROGRAM.format(name=name, tools=tools)])


@asynccontextmanager
async def watched(transport: AbstractAsyncContextManager[Any]) -> AsyncGenerator[Any]:
    """Give a transport that fails when its server goes away: the SDK tells only those who call it then."""
    async with transport as (read, write), anyio.create_task_group() as tasks:
        send, receive = anyio.create_memory_object_stream[Any](0)

        async def forward() -> None:
            async with send:
                async for message in read:
                    await send.send(message)
            msg = "the server went away"
            raise ConnectionError(msg)

        tasks.start_soon(forward)
        yield receive, write
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def connect(name: str) -> AsyncGenerator[ClientSession]:
    async with watched(stdio_client(parameters(name))) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


class Agent:
    """What the tasks of the agent share: the servers, by name, and what was told of them."""

    def __init__(self) -> None:
        self.scope = Scope("servers", grace=30, on_event=self.hear)
        self.sessions: dict[str, ClientSession] = {}
        self.pids: dict[str, int] = {}
        self.ordering = anyio.Event()
        self.lost = anyio.Event()
        self.told: list[str] = []

    def hear(self, event: ScopeEvent) -> None:
        if event.kind == "died":
            self.told.append(f"{event.resource} died")
            print(f"    (the scope says at once that {event.resource} died)")
            self.lost.set()

    async def open(self) -> None:
        async with anyio.create_task_group() as tasks:
            for name in SERVERS:
                tasks.start_soon(self.open_one, name)

    async def open_one(self, name: str) -> None:
        self.sessions[name] = await self.scope.host(connect(name), name=name)
        self.pids[name] = int(await self.ask(name, "pid"))

    async def ask(self, name: str, tool: str, **arguments: Any) -> str:
        async def tell(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 (the SDK gives them by name)
            print(f"    {name}: {message}")
            self.ordering.set()

        result = await self.sessions[name].call_tool(tool, arguments, progress_callback=tell)
        return str(getattr(result.content[0], "text", ""))

    async def close_library(self) -> None:
        print("    find 'Ulysses':", await self.ask("library", "find", title="Ulysses"))
        await self.scope.release(self.sessions["library"])
        print(f"    library closed, {self.scope.size} servers left")

    async def order(self) -> None:
        try:
            await self.ask("shop", "order", item="kettle")
        except MCPError as error:
            self.told.append("the order failed")
            print(f"    the order failed: {error}")

    async def kill_shop(self) -> None:
        await self.ordering.wait()
        os.kill(self.pids["shop"], signal.SIGKILL)
        await self.lost.wait()

    async def calculate(self) -> None:
        print("    add 2 and 3:", await self.ask("calculator", "add", a=2, b=3))

    async def close(self) -> None:
        try:
            await self.scope.aclose()
        except ResourceCleanupError as error:
            for failure in error.failures:
                self.told.append(f"{failure.name} failed to close")
                print(f"    {failure.name} failed to close: {innermost(failure.exception)}")


def innermost(error: BaseException) -> BaseException:
    """Look into the groups of the task groups that an error came through."""
    return innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def main() -> int:
    """Let the agent live its life, each step in tasks of its own, and check."""
    agent = Agent()
    steps = {
        "open three servers": [agent.open],
        "close the one that was opened first": [agent.close_library],
        "kill one while it works": [agent.order, agent.kill_shop],
        "use the last one": [agent.calculate],
        "close the scope": [agent.close],
    }
    for text, step in steps.items():
        print(text)
        async with anyio.create_task_group() as tasks:
            for task in step:
                tasks.start_soon(task)

    return verdict(agent)


def verdict(agent: Agent) -> int:
    """Say what is left behind, or was not told; 0 is what we want to give."""
    left = [name for name, pid in agent.pids.items() if alive(pid)]
    untold = {"shop died", "the order failed", "shop failed to close"} - set(agent.told)
    print("left behind: " + ", ".join(left) if left else f"all {len(agent.pids)} server processes are gone")
    if untold:
        print("nobody told that " + ", ".join(sorted(untold)))
    return 1 if left or untold else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Open three MCP servers, lose one, close them from other tasks.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
