"""FastAPI and Starlette under a real uvicorn: what a client that hangs up, a timeout or a stop does to resources."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from threading import Event, Thread
from typing import Annotated, Any

import anyio
import pytest

from rescope import ResourceCleanupError, Scope
from running import run_example

fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket  # noqa: E402
from fastapi.exception_handlers import http_exception_handler  # noqa: E402
from fastapi.responses import JSONResponse, Response, StreamingResponse  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: E402
from starlette.routing import Route  # noqa: E402

VERSION = tuple(int(part) for part in fastapi.__version__.split(".")[:2])

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
WEBSOCKETS = any(importlib.util.find_spec(name) for name in ("websockets", "wsproto"))

every_loop = pytest.mark.parametrize("loop", LOOPS)
on_asyncio = pytest.mark.parametrize("loop", LOOPS[:1])
exits_after_the_response = pytest.mark.skipif(
    VERSION < (0, 118), reason="this FastAPI exits dependencies before the response is sent"
)
has_function_scope = pytest.mark.skipif(VERSION < (0, 121), reason="this FastAPI has no `Depends(scope=...)`")


class Pool:
    """Lends connections, at most so many at once."""

    def __init__(self, limit: int = 1) -> None:
        self.free = limit
        self.closed = False
        self.log: list[str] = []

    def connect(self) -> Connection:
        if not self.free:
            raise HTTPException(503, "no connection is free")
        self.free -= 1
        return Connection(self)

    async def aclose(self) -> None:
        self.closed = True
        self.log.append("pool closed")


class Connection:
    """Comes from a pool, and goes back to it after a goodbye, which has to be awaited."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def aclose(self) -> None:
        await anyio.sleep(0.001)
        self.pool.free += 1
        self.pool.log.append(f"connection given back to {'a closed' if self.pool.closed else 'an open'} pool")


class Over:
    """An ASGI middleware that counts the requests which are over."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            self.requests += scope["type"] in {"http", "websocket"}


class Served:
    """An application that uvicorn serves, in a thread of its own."""

    def __init__(self, app: Any, loop: str, **options: Any) -> None:
        self.over = Over(app)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(self.over, log_config=None, loop=loop, **options))
        self.thread = Thread(target=self.server.run, args=([self.sock],))
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"

    def stop(self) -> None:
        """Do what the handler of SIGTERM does, and wait for the end."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def serving(app: Any, loop: str, **options: Any) -> Generator[Served, None, None]:
    served = Served(app, loop, **options)
    served.thread.start()
    try:
        wait_for(lambda: served.server.started)
        yield served
    finally:
        served.stop()


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def hang_up(served: Served, path: str) -> None:
    """Ask for a stream, read the first piece, and go away; the request is over when this returns."""
    before = served.over.requests
    with httpx.stream("GET", served.url + path) as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"first"
    wait_for(lambda: served.over.requests > before)


async def ticks() -> AsyncIterator[bytes]:
    yield b"first"
    await anyio.sleep_forever()


async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


def in_application(resources: Callable[[Scope], Any]) -> Callable[[Any], Any]:
    """Give a lifespan that holds a scope, and what that opens, in the application's state."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None, None]:
        async with Scope("application", grace=5) as scope:
            app.state.scope = scope
            resources(scope)
            yield

    return lifespan


async def request_scope(request: Request) -> AsyncIterator[Scope]:
    async with request.app.state.scope.child("request") as scope:
        yield scope


RequestScope = Annotated[Scope, Depends(request_scope)]


# A client that hangs up in the middle of a stream


@every_loop
@pytest.mark.parametrize("middleware", [False, True])
def test_without_a_scope_a_stream_leaks_its_connection(loop: str, middleware: bool) -> None:
    """A `finally` that awaits in a stream is cancelled with the stream, so the connection never goes back."""
    pool, log = Pool(), []
    app = FastAPI()

    async def stream() -> AsyncIterator[bytes]:
        connection = pool.connect()
        try:
            async for tick in ticks():
                yield tick
        finally:
            log.append("closing")
            await connection.aclose()
            log.append("closed")

    @app.get("/")
    async def root() -> StreamingResponse:
        return StreamingResponse(stream())

    @app.get("/next")
    async def following() -> None:
        await pool.connect().aclose()

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    with serving(app, loop) as served:
        hang_up(served, "/")
        assert log == ["closing"]
        assert httpx.get(f"{served.url}/next").status_code == 503


@every_loop
@pytest.mark.parametrize("middleware", [False, True])
def test_a_scope_in_the_stream_closes_its_connection(loop: str, middleware: bool) -> None:
    """A scope inside the stream closes all that the stream opened, though the stream is cancelled."""
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))

    async def stream(application: Scope) -> AsyncIterator[bytes]:
        async with application.child("stream") as scope:
            scope.add(pool.connect())
            async for tick in ticks():
                yield tick

    @app.get("/")
    async def root(request: Request) -> StreamingResponse:
        return StreamingResponse(stream(request.app.state.scope))

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    with serving(app, loop) as served:
        hang_up(served, "/")
        assert pool.free == 1
    assert pool.log == ["connection given back to an open pool", "pool closed"]


@every_loop
@exits_after_the_response
@pytest.mark.parametrize("middleware", [False, True])
def test_the_scope_of_the_request_lives_as_long_as_the_stream(loop: str, middleware: bool) -> None:
    """What a stream opens in the scope of its request is closed when the client has gone."""
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))

    async def stream(scope: Scope) -> AsyncIterator[bytes]:
        scope.add(pool.connect())
        async for tick in ticks():
            yield tick

    @app.get("/")
    async def root(scope: RequestScope) -> StreamingResponse:
        return StreamingResponse(stream(scope))

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    with serving(app, loop) as served:
        hang_up(served, "/")
        hang_up(served, "/")
        assert pool.free == 1
    assert pool.log == ["connection given back to an open pool"] * 2 + ["pool closed"]


@every_loop
def test_in_starlette_without_a_scope_a_stream_leaks_its_connection(loop: str) -> None:
    """Plain Starlette cancels the stream and its `finally` just so."""
    pool = Pool()

    async def stream() -> AsyncIterator[bytes]:
        connection = pool.connect()
        try:
            async for tick in ticks():
                yield tick
        finally:
            await connection.aclose()

    async def root(request: Request) -> Response:
        return StreamingResponse(stream())

    with serving(Starlette(routes=[Route("/", root)]), loop) as served:
        hang_up(served, "/")
        assert pool.free == 0


@every_loop
def test_in_starlette_a_middleware_gives_each_request_a_scope(loop: str) -> None:
    """A scope that an ASGI middleware opens outlives the stream, and closes what that has opened."""
    pool = Pool()

    class WithScope:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
                return
            async with scope["app"].state.scope.child("request") as resources:
                scope.setdefault("state", {})["scope"] = resources
                await self.app(scope, receive, send)

    async def stream(scope: Scope) -> AsyncIterator[bytes]:
        scope.add(pool.connect())
        async for tick in ticks():
            yield tick

    async def root(request: Request) -> Response:
        return StreamingResponse(stream(request.state.scope))

    app = Starlette(routes=[Route("/", root)], lifespan=in_application(lambda scope: scope.add(pool)))
    app.add_middleware(WithScope)
    with serving(app, loop) as served:
        hang_up(served, "/")
        assert pool.free == 1
    assert pool.log == ["connection given back to an open pool", "pool closed"]


# A request that takes too long


class InTime:
    """An ASGI middleware that gives a request a moment, as many applications have one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        with anyio.move_on_after(0.05) as timeout:
            await self.app(scope, receive, send)
        if timeout.cancelled_caught:
            await Response(status_code=504)(scope, receive, send)


@every_loop
def test_without_a_scope_a_timeout_leaks_the_connection(loop: str) -> None:
    """A `finally` that awaits in a handler is cancelled with the handler."""
    pool = Pool()
    app = FastAPI()
    app.add_middleware(InTime)

    @app.get("/")
    async def root() -> None:
        connection = pool.connect()
        try:
            await anyio.sleep_forever()
        finally:
            await connection.aclose()

    with serving(app, loop) as served:
        assert [httpx.get(served.url).status_code for _ in range(2)] == [504, 503]
        assert pool.free == 0


@on_asyncio
def test_without_a_scope_a_timeout_cuts_off_a_dependency_before_fastapi_0_163(loop: str) -> None:
    """A `finally` that awaits in a dependency was cancelled with the request, until FastAPI shielded it."""
    pool = Pool()
    app = FastAPI()
    app.add_middleware(InTime)

    async def connected() -> AsyncIterator[Connection]:
        connection = pool.connect()
        try:
            yield connection
        finally:
            await connection.aclose()

    @app.get("/", dependencies=[Depends(connected)])
    async def root() -> None:
        await anyio.sleep_forever()

    with serving(app, loop) as served:
        statuses = [httpx.get(served.url).status_code for _ in range(2)]
    assert statuses == ([504, 503] if VERSION < (0, 163) else [504, 504])


@every_loop
@pytest.mark.parametrize("how", ["in the handler", "as a dependency"])
def test_a_scope_closes_the_connection_of_a_request_that_timed_out(loop: str, how: str) -> None:
    """A scope closes what a request opened, also where a timeout has cancelled it, and then it counts as failed."""
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))
    app.add_middleware(InTime)

    async def work(scope: Scope) -> None:
        scope.add(pool.connect())
        scope.on_error(pool.log.append, "rolled back")
        await anyio.sleep_forever()

    if how == "in the handler":

        @app.get("/")
        async def handler(request: Request) -> None:
            async with request.app.state.scope.child() as scope:
                await work(scope)

    else:

        @app.get("/")
        async def dependent(scope: RequestScope) -> None:
            await work(scope)

    with serving(app, loop) as served:
        assert [httpx.get(served.url).status_code for _ in range(2)] == [504, 504]
        assert pool.free == 1
    assert pool.log == ["rolled back", "connection given back to an open pool"] * 2 + ["pool closed"]


async def in_time(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    with anyio.move_on_after(0.05):
        return await call_next(request)
    return Response(status_code=504)


@every_loop
@pytest.mark.parametrize("how", ["the client hangs up", "a BaseHTTPMiddleware times out"])
def test_what_does_not_cancel_a_handler(loop: str, how: str) -> None:
    """Neither a client that hangs up nor a timeout in a `BaseHTTPMiddleware` reaches a handler: it runs to its end."""
    go_on = Event()
    log: list[str] = []
    app = FastAPI()
    if how == "a BaseHTTPMiddleware times out":
        app.add_middleware(BaseHTTPMiddleware, dispatch=in_time)

    @app.get("/")
    async def root() -> None:
        log.append("begun")
        while not go_on.is_set():  # noqa: ASYNC110 (set in another thread)
            await anyio.sleep(0.001)
        log.append("ended")

    with serving(app, loop) as served:
        if how == "the client hangs up":
            with socket.create_connection(served.sock.getsockname()) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                wait_for(lambda: log)
            wait_for(lambda: not served.server.server_state.connections)
        else:
            with httpx.stream("GET", served.url) as response:
                assert response.status_code == 504
        assert log == ["begun"]
        go_on.set()
        wait_for(lambda: served.over.requests == 1)
    assert log == ["begun", "ended"]


# How a request ended


def told(served: Served, path: str) -> int:
    """Give the status of a request that is over."""
    before = served.over.requests
    status = httpx.get(served.url + path).status_code
    wait_for(lambda: served.over.requests > before)
    return int(status)


@on_asyncio
@exits_after_the_response
@pytest.mark.parametrize(
    ("path", "status", "outcome"),
    [
        ("/ok", 200, "committed"),
        ("/returns-404", 404, "committed"),
        ("/raises-404", 404, "rolled back"),
        ("/raises", 500, "rolled back"),
        ("/ok?number=none", 422, "rolled back"),
        ("/background-raises", 200, "rolled back"),
    ],
)
def test_what_is_raised_rolls_back(loop: str, path: str, status: int, outcome: str) -> None:
    """An exception, `HTTPException` included, runs `on_error`; a response of any status runs `on_success`."""
    log: list[str] = []
    app = FastAPI(lifespan=in_application(lambda scope: None))

    async def transaction(scope: RequestScope) -> Scope:
        scope.on_error(log.append, "rolled back")
        scope.on_success(log.append, "committed")
        return scope

    @app.get("/ok", dependencies=[Depends(transaction)])
    async def fine(number: int = 0) -> int:
        return number

    @app.get("/returns-404", dependencies=[Depends(transaction)])
    async def returns() -> JSONResponse:
        return JSONResponse({}, status_code=404)

    @app.get("/raises-404", dependencies=[Depends(transaction)])
    async def not_found() -> None:
        raise HTTPException(404)

    @app.get("/raises", dependencies=[Depends(transaction)])
    async def raises() -> None:
        raise ValueError

    @app.get("/background-raises", dependencies=[Depends(transaction)])
    async def background(tasks: BackgroundTasks) -> None:
        async def fail() -> None:
            raise ValueError

        tasks.add_task(fail)

    with serving(app, loop) as served:
        assert told(served, path) == status
    assert log == [outcome]


async def cannot_commit() -> None:
    raise ConnectionError("the database went away")


@on_asyncio
@has_function_scope
def test_without_a_scope_a_commit_that_fails_is_told_to_nobody(loop: str) -> None:
    """What a dependency does after its `yield` comes after the response: the client has its 200 by then."""
    app = FastAPI()

    async def transaction() -> AsyncIterator[None]:
        yield
        await cannot_commit()

    @app.get("/", dependencies=[Depends(transaction)])
    async def root() -> None: ...

    with serving(app, loop) as served:
        assert told(served, "/") == 200


@on_asyncio
@has_function_scope
@pytest.mark.parametrize(("until", "status"), [("request", 200), ("function", 500)])
def test_a_function_scope_closes_before_the_response(loop: str, until: Any, status: int) -> None:
    """A commit that fails is a 500 where the scope ends with the function; with the request, it comes too late."""
    app = FastAPI(lifespan=in_application(lambda scope: None))

    @app.get("/")
    async def root(scope: Scope = Depends(request_scope, scope=until)) -> None:  # noqa: B008, FAST002
        scope.on_success(cannot_commit)

    with serving(app, loop) as served:
        assert told(served, "/") == status


@on_asyncio
@exits_after_the_response
@pytest.mark.parametrize(("handled", "status"), [(False, 500), (True, 404)])
def test_an_answer_is_found_behind_a_failure_to_close(loop: str, handled: bool, status: int) -> None:
    """A `ResourceCleanupError` is a 500; its cause is the `HTTPException`, so a handler can answer with that."""
    app = FastAPI(lifespan=in_application(lambda scope: None))

    async def answer(request: Request, error: Any) -> Response:
        cause = error.__cause__
        return await http_exception_handler(request, cause if isinstance(cause, HTTPException) else HTTPException(500))

    if handled:
        app.add_exception_handler(ResourceCleanupError, answer)

    @app.get("/")
    async def root(scope: RequestScope) -> None:
        scope.defer(cannot_commit)
        raise HTTPException(404)

    with serving(app, loop) as served:
        assert told(served, "/") == status


@on_asyncio
@exits_after_the_response
def test_background_tasks_have_the_scope_of_their_request(loop: str) -> None:
    """The scope of a request stays open until its background tasks are done."""
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))

    async def work(scope: Scope) -> None:
        pool.log.append(f"work, {scope!r}")

    @app.get("/")
    async def root(tasks: BackgroundTasks, scope: RequestScope) -> None:
        scope.add(pool.connect())
        tasks.add_task(work, scope)

    with serving(app, loop) as served:
        assert told(served, "/") == 200
    assert pool.log == [
        "work, <Scope 'request' open, holds 1>",
        "connection given back to an open pool",
        "pool closed",
    ]


# When the server stops


@every_loop
@exits_after_the_response
def test_without_a_scope_the_pool_closes_under_a_request(loop: str) -> None:
    """A stream that uvicorn cancels at its end is not waited for: the pool closes, the connection never does."""
    pool = Pool()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None, None]:
        yield
        await pool.aclose()

    app = FastAPI(lifespan=lifespan)

    async def connection() -> AsyncIterator[Connection]:
        connection = pool.connect()
        try:
            yield connection
        finally:
            await connection.aclose()

    @app.get("/", dependencies=[Depends(connection)])
    async def root() -> StreamingResponse:
        return StreamingResponse(ticks())

    with (
        serving(app, loop, timeout_graceful_shutdown=0.1) as served,
        httpx.stream("GET", served.url) as response,
    ):
        pieces = response.iter_raw()
        assert next(pieces) == b"first"
        served.stop()
    assert pool.log == ["pool closed"]
    assert pool.free == 0


@every_loop
@exits_after_the_response
def test_the_pool_closes_after_the_requests(loop: str) -> None:
    """The scope of a request is a child of the application's: it is closed, and waited for, before the pool."""
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))

    @app.get("/")
    async def root(scope: RequestScope) -> StreamingResponse:
        scope.add(pool.connect())
        return StreamingResponse(ticks())

    with (
        serving(app, loop, timeout_graceful_shutdown=0.1) as served,
        httpx.stream("GET", served.url) as response,
    ):
        pieces = response.iter_raw()
        assert next(pieces) == b"first"
        served.stop()
    assert pool.log == ["connection given back to an open pool", "pool closed"]


@every_loop
def test_what_hangs_at_the_end_is_left_behind(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """Within its grace the application's scope closes all, and uvicorn logs what did not close."""
    pool = Pool()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None, None]:
        async with Scope("application", grace=0.1) as scope:
            scope.add(pool)
            scope.add("cache", anyio.sleep_forever, name="cache")
            yield

    with serving(FastAPI(lifespan=lifespan), loop):
        pass
    assert pool.log == ["pool closed"]
    assert "closing cache took longer than" in caplog.text


# What the first request opens, and the server closes


@asynccontextmanager
async def client(log: list[str]) -> AsyncGenerator[str, None]:
    """A client that holds a task group, as those for websockets and message queues do."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        try:
            yield "client"
        finally:
            tasks.cancel_scope.cancel()
            log.append("client closed")


@every_loop
def test_without_a_scope_a_client_opened_by_a_request_breaks_the_shutdown(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stack exits in the task of the lifespan what a request has entered in its own: a `RuntimeError`."""
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as app.state.stack:
            app.state.stack.callback(log.append, "pool closed")
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root(request: Request) -> str:
        return str(await request.app.state.stack.enter_async_context(client(log)))

    with serving(app, loop) as served:
        assert httpx.get(served.url).json() == "client"
    assert "RuntimeError: Attempted to exit cancel scope in a different task than it was entered in" in caplog.text


@every_loop
def test_a_client_opened_by_a_request_is_closed_by_the_server(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """A hosted client may be opened in the task of a request and closed in that of the lifespan."""
    log: list[str] = []
    app = FastAPI(lifespan=in_application(lambda scope: scope.defer(log.append, "pool closed")))

    @app.get("/")
    async def root(request: Request) -> str:
        return str(await request.app.state.scope.host(client(log)))

    with serving(app, loop) as served:
        assert [httpx.get(served.url).json() for _ in range(2)] == ["client", "client"]
    assert log == ["client closed", "client closed", "pool closed"]
    assert "ERROR" not in [record.levelname for record in caplog.records]


# Websockets


@every_loop
@pytest.mark.skipif(not WEBSOCKETS, reason="uvicorn serves websockets with websockets or wsproto")
@pytest.mark.parametrize("ending", ["the client goes", "the server stops"])
def test_a_websocket_has_a_scope(loop: str, ending: str) -> None:
    """What a websocket opened is closed when the client goes, and before the pool when the server stops."""
    aiohttp = pytest.importorskip("aiohttp")
    pool = Pool()
    app = FastAPI(lifespan=in_application(lambda scope: scope.add(pool)))

    async def session_scope(websocket: WebSocket) -> AsyncIterator[Scope]:
        async with websocket.app.state.scope.child("session") as scope:
            yield scope

    @app.websocket("/")
    async def echo(websocket: WebSocket, scope: Scope = Depends(session_scope)) -> None:  # noqa: B008
        scope.add(pool.connect())
        scope.on_error(pool.log.append, "rolled back")
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    async def talk(served: Served) -> None:
        async with Scope() as scope:
            session = scope.add(aiohttp.ClientSession())
            socket = await scope.host(session.ws_connect(served.url))
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
            if ending == "the server stops":
                await anyio.to_thread.run_sync(served.stop)

    with serving(app, loop, timeout_graceful_shutdown=0.1) as served:
        anyio.run(talk, served)
        wait_for(lambda: served.over.requests == 1)
    assert pool.log == ["rolled back", "connection given back to an open pool", "pool closed"]


# The example


@pytest.mark.skipif(VERSION < (0, 121), reason="the example wants `Depends(scope=...)`")
def test_the_example_runs() -> None:
    """The example serves, is stopped by SIGTERM, and everything is closed in order."""
    run = run_example("fastapi_app.py", env={"PYTHONUNBUFFERED": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1] == "all that was opened is closed, in order"
