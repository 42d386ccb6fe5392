"""Programs that the tests of `rescope.runner` start, send signals to, and look at: `mains.py NAME BACKEND [GRACE]`.

Each says on stdout where it is, so that a test never has to guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread

from rescope import Scope
from rescope._runner import stop
from rescope.runner import run

Main = Callable[[Scope], Awaitable[object]]

MAINS: dict[str, Main] = {}


def program(main: Main) -> Main:
    MAINS[main.__name__] = main
    return main


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 (what the tests read)


async def goodbye(name: str) -> None:
    say("closed", name)
    await anyio.lowlevel.checkpoint()


def hold(scope: Scope, *names: str) -> None:
    for name in names:
        scope.defer(goodbye, name)


async def hang() -> None:
    say("hangs")
    await anyio.sleep_forever()


async def ignore(scope: Scope) -> None:
    """Ignore every cancellation, for ever."""
    while scope is not None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.sleep(0.05)
            except BaseException:
                say("ignored")


@program
async def body(scope: Scope) -> None:
    hold(scope, "a", "b")
    scope.on_error(say, "rolled back")
    scope.on_success(say, "committed")
    say("up")
    await anyio.sleep_forever()


@program
async def unwinding(scope: Scope) -> None:
    """A body whose own `finally` awaits, as asyncio's code does."""
    hold(scope, "a")
    try:
        say("up")
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield="trio" in sys.argv):
            await anyio.sleep(0.01)
        say("unwound")


@program
async def start_up(scope: Scope) -> None:
    hold(scope, "a")

    async def connect() -> None:
        say("acquiring")
        await anyio.sleep_forever()

    await scope.acquire(connect, lambda _: say("closed what never was"))


@program
async def cleanup(scope: Scope) -> str:
    """It has ended when the signal comes, and closes."""
    hold(scope, "a")

    async def close() -> None:
        say("closing")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        say("closed b")

    scope.defer(close)
    return "ended"


@program
async def hanging_closers(scope: Scope) -> None:
    hold(scope, "a")
    scope.add("b", hang, name="b", force=partial(say, "forced b"))
    hold(scope, "c")
    scope.add("d", hang, name="d", force=partial(say, "forced d"))
    say("up")
    await anyio.sleep_forever()


@program
async def hanging_child(scope: Scope) -> None:
    hold(scope, "a")
    child = scope.child("requests", concurrent=True)
    child.add("b", hang, name="b", force=partial(say, "forced b"))
    hold(child, "c")
    say("up")
    await anyio.sleep_forever()


@program
async def hanging_exit(scope: Scope) -> None:
    """An entered manager whose exit hangs: only a cancellation ends it."""

    @contextlib.asynccontextmanager
    async def manager():  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield
        say("exits")
        await anyio.sleep_forever()

    hold(scope, "a")
    await scope.enter(manager())


@program
async def stubborn_closer(scope: Scope) -> None:
    hold(scope, "a")
    scope.defer(ignore, scope)
    say("up")
    await anyio.sleep_forever()


@program
async def closer_in_thread(scope: Scope) -> None:
    hold(scope, "a")
    scope.defer(anyio.to_thread.run_sync, time.sleep, 60)
    say("up")
    await anyio.sleep_forever()


@program
async def blocked_executor(scope: Scope) -> None:
    hold(scope, "a")
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    say("up")
    await anyio.sleep_forever()


@program
async def stuck_thread(scope: Scope) -> None:
    """A thread of its own, for which Python would wait at its end."""
    threading.Thread(target=time.sleep, args=(60,), name="stuck").start()
    hold(scope, "a")
    say("up")
    await anyio.sleep_forever()


POOLS: list[ProcessPoolExecutor | ThreadPoolExecutor] = []


@program
async def idle_executors(scope: Scope) -> None:
    """Executors that a library keeps for ever, with nothing to do: Python ends them at its own end."""
    for pool in (ProcessPoolExecutor(1), ThreadPoolExecutor(1)):
        POOLS.append(pool)
        pool.submit(int).result()
    hold(scope, "a")
    say("up")
    await anyio.sleep_forever()


@program
async def blocking_log(scope: Scope) -> None:
    """An error of the cleanup's can't be logged, as the handler blocks."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say("logs", record.levelname)
            time.sleep(60)

    def fail() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise OSError("disk full")

    logging.getLogger("rescope").addHandler(Handler(logging.ERROR))
    hold(scope, "a")
    scope.defer(fail)


@program
async def stubborn_body(scope: Scope) -> None:
    hold(scope, "a")
    scope.on_error(say, "rolled back")
    scope.on_success(say, "committed")
    say("up")
    await ignore(scope)


@program
async def blocking_body(scope: Scope) -> None:
    hold(scope, "a")
    say("up")
    sys.stdout.write("not flushed\n")
    while scope.size:
        time.sleep(0.01)  # noqa: ASYNC251 (it is to block)


@program
async def telling_body(scope: Scope) -> None:
    """A body that blocks, and tells of each signal."""
    say("up")
    seen = 0
    while scope.state == "open":
        time.sleep(0.01)  # noqa: ASYNC251 (it is to block)
        come = (scope._stop.first is not None) + (scope._stop.forced is not None)  # type: ignore[attr-defined]
        if come > seen:
            seen = come
            say("signal", seen)


@program
async def swallowing(scope: Scope) -> str:
    hold(scope, "a")
    try:
        say("up")
        await anyio.sleep_forever()
    except BaseException:
        say("swallowed")
        if "trio" in sys.argv:
            raise
    return "all is well"


@program
async def failing_cleanup(scope: Scope) -> None:
    def fail() -> None:
        raise OSError("disk full")

    hold(scope, "a")
    scope.defer(fail)
    say("up")
    await anyio.sleep_forever()


@program
async def raising(scope: Scope) -> None:
    hold(scope, "a")
    raise LookupError("its own")


@program
async def raising_when_stopped(scope: Scope) -> None:
    hold(scope, "a")
    try:
        say("up")
        await anyio.sleep_forever()
    finally:
        raise LookupError("its own")


@program
async def exiting(scope: Scope) -> None:
    hold(scope, "a")
    sys.exit(3)


@program
async def returning(scope: Scope) -> str:
    hold(scope, "a")
    await anyio.lowlevel.checkpoint()
    return "the value"


@program
async def leaving_behind(scope: Scope) -> str:
    """It ends by itself, and leaves a closer behind that will not end."""
    hold(scope, "a")
    scope.add("b", partial(ignore, scope), name="b", timeout=0.01)
    return "the value"


@program
async def with_child_process(scope: Scope) -> None:
    """A process of the same group, that tells whether it got a signal."""
    code = "import sys; print('child up', flush=True); print('child', sys.stdin.readline().strip(), flush=True)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603
    assert os.getpgid(child.pid) == os.getpgid(0)

    def end() -> None:
        child.communicate("unharmed\n")
        say("child ended with", child.returncode)

    scope.defer(end)
    await anyio.sleep_forever()


@program
async def with_fork(scope: Scope) -> None:
    """A child that is forked, as `multiprocessing` does on Linux, and knows nothing of `run`."""
    child = os.fork()
    if child == 0:
        say("child", os.getpid())
        while scope is not None:
            time.sleep(0.05)  # noqa: ASYNC251 (it has no loop)
    say("child ended by", -os.waitstatus_to_exitcode(await anyio.to_thread.run_sync(lambda: os.waitpid(child, 0)[1])))


@program
async def with_uvicorn(scope: Scope) -> None:
    """A server that handles signals itself, finishes its requests, and signals the process again."""
    import uvicorn

    async def app(asgi: dict[str, str], receive: object, send: Callable[[object], Awaitable[None]]) -> None:
        assert asgi["type"] == "http"
        say("requested")
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        say("answered")

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    hold(scope, "a")
    say("port", listener.getsockname()[1])
    await server.serve([listener])
    say("served")
    await anyio.sleep_forever()


@program
async def service(scope: Scope) -> None:
    """All its threads, its log and its streams are as usual when it ends."""
    await anyio.to_thread.run_sync(threading.get_ident)
    hold(scope, "a")
    scope.defer(sys.stdout.write, "not flushed\n")
    logging.getLogger("service").info("ready")
    say("up")
    await anyio.sleep_forever()


if __name__ == "__main__":
    stop.SLACK = float(os.environ.get("SLACK", "0.3"))
    if os.environ.get("LOG"):
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    say("returned", run(MAINS[sys.argv[1]], backend=sys.argv[2], grace=float(sys.argv[3])))  # type: ignore[arg-type]
