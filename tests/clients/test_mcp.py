"""MCP servers over stdio, with the official SDK: what goes wrong without a scope, and what a scope does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import mcp.client.stdio
import pytest
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from clients.shared import gone, on_asyncio, until
from rescope import CloseTimeoutError, ResourceCleanupError, Scope
from rescope.events import ScopeEvent
from running import every_backend, load_example, run_example, run_python

SERVER = """
import os, pathlib, signal, sys, time
import anyio
from mcp.server.mcpserver import Context, MCPServer

stays = len(sys.argv) > 1
if stays:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = MCPServer("test")

@server.tool()
def pid() -> int:
    return os.getpid()

@server.tool()
async def dawdle(context: Context) -> None:
    await context.report_progress(0)
    await anyio.sleep(60)

server.run("stdio")
if stays:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
"""

# What programs without a scope begin with; each runs in a process of its own, as some bring down the whole run.
WITHOUT = """
import asyncio, os, pathlib, sys
from contextlib import AsyncExitStack
import anyio
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

backend, server, *arguments = sys.argv[1:]
params = StdioServerParameters(command=sys.executable, args=["-c", server, *arguments])

def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

def told(error):
    print(f"{type(error).__name__}: {error}")

async def open_server(stack):
    read, write = await stack.enter_async_context(stdio_client(params))
    session = await stack.enter_async_context(ClientSession(read, write))
    await session.initialize()
    return session

async def pid_of(session):
    return int((await session.call_tool("pid", {})).content[0].text)

async def in_another_task(fn, *args):
    if backend != "trio":
        return await asyncio.create_task(fn(*args))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fn, *args)

def run(main):
    try:
        options = {"use_uvloop": backend == "uvloop"} if backend != "trio" else {}
        anyio.run(main, backend=backend.replace("uvloop", "asyncio"), backend_options=options)
    except BaseException as error:
        told(error)
"""


def without_scope(program: str, backend: str, *arguments: str) -> list[str]:
    """Run a program that has no scope; give the lines that it printed."""
    return run_python("-c", WITHOUT + program, backend, SERVER, *arguments).stdout.splitlines()


def params(*arguments: str) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=["-c", SERVER, *arguments])


@asynccontextmanager
async def connect(transport: AbstractAsyncContextManager[Any]) -> AsyncGenerator[ClientSession]:
    async with transport as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


@asynccontextmanager
async def watched(transport: AbstractAsyncContextManager[Any]) -> AsyncGenerator[Any]:
    """A transport that fails when its server goes away."""
    async with transport as (read, write), anyio.create_task_group() as tasks:
        send, receive = anyio.create_memory_object_stream[Any](0)

        async def forward() -> None:
            async with send:
                async for message in read:
                    await send.send(message)
            raise ConnectionError("the server went away")

        tasks.start_soon(forward)
        yield receive, write
        tasks.cancel_scope.cancel()


def noted(server: StdioServerParameters, pid_file: Path) -> StdioServerParameters:
    """The same server, whose process writes down its id before it becomes the server."""
    script = 'echo $$ >"$0" && exec "$@"'
    return StdioServerParameters(command="sh", args=["-c", script, str(pid_file), server.command, *server.args])


def kill_group(pid_file: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int(pid_file.read_text(encoding="utf-8")), signal.SIGKILL)


def server(*arguments: str) -> AbstractAsyncContextManager[ClientSession]:
    return connect(stdio_client(params(*arguments)))


async def pid_of(session: ClientSession) -> int:
    result = await session.call_tool("pid", {})
    assert result.structured_content is not None
    return int(result.structured_content["result"])


async def dawdle(session: ClientSession, in_flight: anyio.Event) -> None:
    """Make a call that does not come back."""

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        in_flight.set()

    await session.call_tool("dawdle", {}, progress_callback=tell)


async def in_another_task(fn: Callable[..., Any], *args: Any) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fn, *args)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that waits less for a server to exit."""
    monkeypatch.setattr(mcp.client.stdio, "PROCESS_TERMINATION_TIMEOUT", 0.2)
    monkeypatch.setattr(mcp.client.stdio, "FORCE_KILL_TIMEOUT", 0.2)


@every_backend
def test_without_a_scope_a_server_can_not_be_closed_in_another_task(backend: str) -> None:
    """An exit stack that is closed in another task than the one that filled it fails, and crashes a run of trio."""
    lines = without_scope(
        """
async def main():
    stack = AsyncExitStack()
    await in_another_task(open_server, stack)
    await in_another_task(close, stack)

async def close(stack):
    try:
        await stack.aclose()
    except RuntimeError as error:
        told(error)

run(main)
""",
        backend,
    )

    if backend == "trio":
        assert lines == ["TrioInternalError: internal error in Trio - please file a bug!"]
    else:
        assert lines == ["RuntimeError: Attempted to exit cancel scope in a different task than it was entered in"]


@every_backend
def test_without_a_scope_servers_can_not_be_closed_in_the_order_they_were_opened_in(backend: str) -> None:
    """Exit stacks closed first in, first out, fail in the very task that opened them, which is then cancelled."""
    first, *rest = without_scope(
        """
async def main():
    stacks = [AsyncExitStack() for _ in range(2)]
    for stack in stacks:
        await open_server(stack)
    try:
        await stacks[0].aclose()
    except Exception as error:
        told(error)
    try:
        await anyio.sleep(0.1)
    except BaseException as error:
        print(f"then {type(error).__name__}")

run(main)
""",
        backend,
    )

    if backend == "trio":
        assert first == "AssertionError: Nursery misnesting detected!"
        assert "TrioInternalError" in rest[-1]
    else:
        assert first == (
            "RuntimeError: Attempted to exit a cancel scope that isn't the current tasks's current cancel scope"
        )
        assert rest[0] == "then CancelledError"


@pytest.mark.parametrize("backend", ["asyncio"])
def test_without_a_scope_a_second_cancellation_keeps_a_server_alive(backend: str, tmp_path: Path) -> None:
    """A `task.cancel()` while the SDK waits for a server to exit keeps it from killing it: both wait on."""
    lines = without_scope(
        """
import mcp.client.stdio
mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT = mcp.client.stdio.FORCE_KILL_TIMEOUT = 0.2

async def main():
    pids = []
    async def use():
        async with AsyncExitStack() as stack:
            pids.append(await pid_of(await open_server(stack)))
            await anyio.sleep_forever()

    task = asyncio.create_task(use())
    while not pids:
        await anyio.sleep(0.01)
    task.cancel()
    while not pathlib.Path(arguments[0]).exists():
        await anyio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task], timeout=1)
    print("done" if task.done() else "still closing", "with a live server" if alive(pids[0]) else "")
    os.kill(pids[0], 9)
    await asyncio.wait([task])
    print("cancelled" if task.cancelled() else "")

run(main)
""",
        backend,
        str(tmp_path / "leaving"),
    )

    assert lines == ["still closing with a live server", "cancelled"]


@every_backend
def test_without_a_scope_nobody_is_told_of_a_server_that_was_killed(backend: str) -> None:
    """A killed server is noticed by those who call it alone; closing it is clean, as if nothing had happened."""
    lines = without_scope(
        """
async def main():
    async with AsyncExitStack() as stack:
        session = await open_server(stack)
        pid = await pid_of(session)
        os.kill(pid, 9)
        try:
            await pid_of(session)
        except MCPError as error:
            told(error)
    print("closed")

run(main)
""",
        backend,
    )

    assert lines == ["MCPError: Connection closed", "closed"]


@pytest.mark.parametrize("order", ["012", "120"])
async def test_three_servers_are_closed_from_other_tasks_in_any_order(order: str) -> None:
    """Opened in one task, each is released in a task of its own; those that are left still answer; none is left."""
    scope = Scope("servers")
    sessions = list(await scope.host_all(server(), server(), server()))
    pids = [await pid_of(session) for session in sessions]
    with anyio.fail_after(20):
        for n, place in enumerate(map(int, order), start=1):
            await in_another_task(scope.release, sessions[place])
            assert [gone(pids[int(place)]) for place in order] == [True] * n + [False] * (3 - n)
            assert [await pid_of(sessions[int(place)]) for place in order[n:]] == [pids[int(p)] for p in order[n:]]

    await scope.aclose()
    assert scope.size == 0


async def test_servers_opened_in_several_tasks_are_closed_in_yet_another() -> None:
    """Whoever opened a server, `aclose` in any task closes it, the latest first."""
    closed: list[str | None] = []
    scope = Scope("servers", on_event=lambda event: closed.append(event.resource) if event.kind == "closed" else None)
    pids: list[int] = []

    async def open_one(name: str) -> None:
        pids.append(await pid_of(await scope.host(server(), name=name)))

    for name in ("weather", "calendar"):
        await in_another_task(open_one, name)
    await in_another_task(scope.aclose)

    assert [gone(pid) for pid in pids] == [True, True]
    assert closed == ["calendar", "weather"]


async def test_a_server_that_is_killed_in_use_is_told_of() -> None:
    """The call in flight fails, the other server goes on, the death is told at once, and again when closing."""
    died, in_flight = anyio.Event(), anyio.Event()
    scope = Scope("servers", on_event=lambda event: died.set() if event.kind == "died" else None)
    calm = await scope.host(server(), name="calm")
    killed = await scope.host(connect(watched(stdio_client(params()))), name="killed")
    pids = [await pid_of(session) for session in (calm, killed)]
    failures: list[str] = []

    async def call() -> None:
        try:
            await dawdle(killed, in_flight)
        except MCPError as error:
            failures.append(str(error))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await in_flight.wait()
            os.kill(pids[1], signal.SIGKILL)
            await died.wait()
        assert failures == ["Connection closed"]
        with pytest.raises(MCPError, match="Connection closed"):
            await pid_of(killed)
        assert await pid_of(calm) == pids[0]
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.aclose()

    (failure,) = caught.value.failures
    assert failure.name == "killed"
    assert caught.value.subgroup(ConnectionError) is not None
    assert "ConnectionError: the server went away" in str(caught.value)
    assert [gone(pid) for pid in pids] == [True, True]


async def test_a_killed_server_that_is_not_watched_is_closed_in_silence() -> None:
    """Without a watch on the transport the SDK says nothing when its server dies, and so the scope has no failure."""
    events: list[ScopeEvent] = []
    async with Scope(on_event=events.append) as scope:
        session = await scope.host(server())
        pid = await pid_of(session)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(20), pytest.raises(MCPError, match="Connection closed"):
            await pid_of(session)

    assert [event.kind for event in events] == ["opened", "acquired", "closing", "closed", "scope_closed"]
    assert gone(pid)


async def test_servers_are_closed_when_the_body_is_cancelled_by_a_scope() -> None:
    """A cancel scope of anyio's cancels a call in flight; the servers are closed before it comes out."""
    in_flight = anyio.Event()
    pids: list[int] = []

    async def use() -> None:
        async with Scope("servers") as scope:
            sessions = await scope.host_all(server(), server())
            pids.extend([await pid_of(session) for session in sessions])
            await dawdle(sessions[1], in_flight)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await in_flight.wait()
            tasks.cancel_scope.cancel()

    assert [gone(pid) for pid in pids] == [True, True]


@on_asyncio
@pytest.mark.usefixtures("impatient")
async def test_servers_are_closed_when_the_body_is_cancelled_again_and_again(tmp_path: Path) -> None:
    """`task.cancel()` in a call, and then while each server is closed, one of which won't exit: all are gone."""
    in_flight = anyio.Event()
    pids: list[int] = []

    def cancel_again(event: ScopeEvent) -> None:
        if event.kind == "closing":
            asyncio.get_running_loop().call_soon(task.cancel)

    async def use() -> None:
        async with Scope("servers", on_event=cancel_again) as scope:
            sessions = await scope.host_all(server(), server(str(tmp_path / "leaving")))
            pids.extend([await pid_of(session) for session in sessions])
            await dawdle(sessions[1], in_flight)

    task = asyncio.create_task(use())
    with anyio.fail_after(20):
        await in_flight.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert task.cancelled()
    assert [gone(pid) for pid in pids] == [True, True]


async def test_a_host_that_is_cancelled_while_its_server_starts_leaves_no_server(tmp_path: Path) -> None:
    """Cancelled before a server has answered, `host` comes back when its process is gone."""
    started = tmp_path / "pid"
    mute = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(f'{{os.getpid()}}\\n'); time.sleep(60)"
    scope = Scope("servers")
    transport = stdio_client(StdioServerParameters(command=sys.executable, args=["-c", mute]))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.host, connect(transport))
            await until(lambda: started.exists() and started.read_text(encoding="utf-8").endswith("\n"))
            tasks.cancel_scope.cancel()

    assert gone(int(started.read_text(encoding="utf-8")))
    assert scope.size == 0
    await scope.aclose()


async def test_where_one_server_can_not_start_none_stays() -> None:
    """`host_all` closes the servers that came up when one of them did not, and raises why."""
    pids: list[int] = []
    missing = StdioServerParameters(command=str(Path("no", "such", "server")))

    @asynccontextmanager
    async def known() -> AsyncGenerator[ClientSession]:
        async with server() as session:
            pids.append(await pid_of(session))
            up.set()
            yield session

    @asynccontextmanager
    async def late() -> AsyncGenerator[ClientSession]:
        await up.wait()
        async with connect(stdio_client(missing)) as session:
            yield session

    up = anyio.Event()
    scope = Scope("servers")
    with anyio.fail_after(20), pytest.raises(FileNotFoundError):
        await scope.host_all(known(), late())

    assert [gone(pid) for pid in pids] == [True]
    assert scope.size == 0
    await scope.aclose()


@pytest.mark.usefixtures("impatient")
async def test_servers_that_do_not_exit_are_killed_at_the_same_time_in_a_concurrent_scope(tmp_path: Path) -> None:
    """The SDK kills what won't exit, which is no failure; in a concurrent scope all begin before one has ended."""
    told: list[tuple[str, str | None]] = []
    async with Scope(
        "servers", concurrent=True, on_event=lambda event: told.append((event.kind, event.resource))
    ) as scope:
        a = await scope.host(server(str(tmp_path / "a")), name="a")
        b = await scope.host(server(str(tmp_path / "b")), name="b", timeout=10)
        pids = [await pid_of(session) for session in (a, b)]

    closing = [kind for kind, resource in told if resource is not None and kind != "acquired"]
    assert closing == ["closing", "closing", "closed", "closed"]
    assert [gone(pid) for pid in pids] == [True, True]


@pytest.mark.parametrize(("grace", "timeout"), [(2, None), (None, 0.25)])
async def test_a_server_that_gets_less_time_than_the_sdk_takes_is_killed_by_force(
    grace: float | None, timeout: float | None, tmp_path: Path
) -> None:
    """Out of time, the failure names the server, `force` kills it, and all are gone."""
    pid_file = tmp_path / "pid"
    stubborn = noted(params(str(tmp_path / "leaving")), pid_file)
    scope = Scope("servers", grace=grace)
    calm = await scope.host(server(), name="calm")
    kill = partial(kill_group, pid_file)
    stays = await scope.host(connect(stdio_client(stubborn)), name="stays", timeout=timeout, force=kill)
    pids = [await pid_of(session) for session in (calm, stays)]

    with anyio.fail_after(20), pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()

    assert [(failure.name, failure.timed_out) for failure in caught.value.failures] == [("stays", True)]
    assert isinstance(caught.value.errors[0], CloseTimeoutError)
    await until(lambda: all(gone(pid) for pid in pids))


async def test_a_server_that_exits_is_not_forced(tmp_path: Path) -> None:
    """The kill in reserve is not called where the server went by itself."""
    pid_file = tmp_path / "pid"
    forced: list[str] = []
    async with Scope("servers", grace=30) as scope:
        client = connect(stdio_client(noted(params(), pid_file)))
        session = await scope.host(client, force=lambda: forced.append("killed"))
        pid = await pid_of(session)
        assert pid_file.read_text(encoding="utf-8") == f"{pid}\n"

    assert gone(pid)
    assert forced == []
    assert scope.cleanup_error is None


@every_backend
def test_the_example_loses_a_server_and_no_process(backend: str) -> None:
    """`mcp_servers` closes its servers from other tasks, tells of the one that was killed, and leaves no process."""
    result = run_example("mcp_servers.py", "--backend", backend)

    lines = result.stdout.splitlines()
    assert result.stderr == ""
    assert "    library closed, 2 servers left" in lines
    assert "    the order failed: Connection closed" in lines
    assert "    (the scope says at once that shop died)" in lines
    assert "    add 2 and 3: 5" in lines
    assert lines[-2:] == ["    shop failed to close: the server went away", "all 3 server processes are gone"]
    assert result.returncode == 0


def test_the_example_finds_what_is_left_and_what_was_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The checks at the end of `mcp_servers` can fail."""
    example = load_example("mcp_servers.py")
    agent = example.Agent()
    agent.pids = {"library": os.getpid()}
    agent.told = ["shop died"]

    assert example.verdict(agent) == 1
    assert capsys.readouterr().out.splitlines() == [
        "left behind: library",
        "nobody told that shop failed to close, the order failed",
    ]
