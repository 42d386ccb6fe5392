"""httpx and aiohttp against a real server: streams that are cancelled in flight, closed early, or never answered."""

from __future__ import annotations

import asyncio
import gc
import shutil
import ssl
import subprocess
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import anyio
import pytest

from clients.shared import on_asyncio, until
from conftest import ASYNCIO_ONLY  # pyright: ignore[reportAttributeAccessIssue]
from rescope import CloseTimeoutError, ResourceCleanupError, Scope
from running import every_backend, run_example

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")

from aiohttp import web  # noqa: E402

on_plain_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1], indirect=True)


class Server:
    """A server in a thread of its own, which knows how many of its answers are still under way."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.url = ""
        self.under_way = 0
        self.close_codes: list[int | None] = []
        self.ready = Event()
        self.thread = Thread(target=lambda: asyncio.run(self.serve()))

    async def serve(self) -> None:
        app = web.Application()
        handlers = {"/hello": self.hello, "/ticks": self.ticks, "/never": self.never}
        handlers |= {"/socket": self.socket, "/impolite": self.impolite}
        app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        async with Scope("server") as scope:
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
            await scope.acquire(runner.setup, lambda _: runner.cleanup())
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls).start()
            port = runner.addresses[0][1]
            self.url = f"{'http' if self.tls is None else 'https'}://127.0.0.1:{port}"
            self.ready.set()
            await self.stop.wait()

    @contextmanager
    def counted(self) -> Generator[None, None, None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def hello(self, request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def ticks(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with self.counted():
            await response.write(b"tick")
            await asyncio.sleep(3600)
        return response

    async def never(self, request: web.Request) -> web.StreamResponse:
        with self.counted():
            await asyncio.sleep(3600)
        return web.Response()

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with self.counted():
            async for message in socket:
                await socket.send_str(message.data)
        self.close_codes.append(socket.close_code)
        return socket

    async def impolite(self, request: web.Request) -> web.WebSocketResponse:
        """Take a websocket, and never answer again, nor to the goodbye."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with self.counted():
            await asyncio.sleep(3600)
        return socket

    async def quiet(self) -> None:
        """Wait until nothing is under way any more."""
        await until(lambda: self.under_way == 0)


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Generator[Server, None, None]:
    server = Server(tls)
    server.thread.start()
    assert server.ready.wait(20)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(server.stop.set)
        server.thread.join(20)


@pytest.fixture(scope="module", name="server")
def one_server() -> Generator[Server, None, None]:
    with running() as server:
        yield server


def new_client(connections: int = 1) -> Any:
    limits = httpx.Limits(max_connections=connections)
    return httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(20, pool=0.1))


def new_session(connections: int = 1) -> Any:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=20, connect=1),
    )


async def cancel_twice(fn: Callable[[], Coroutine[Any, Any, object]], begun: Callable[[], object]) -> None:
    """Run `fn`, and cancel it when it has begun, and once more before it can have ended."""
    task = asyncio.create_task(fn())
    await until(begun)
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# httpx: several streams


async def test_without_a_scope_a_failure_leaks_what_was_opened(server: Server) -> None:
    """Where the third stream can't be opened, the first two stay open, and the pool has no room for the next."""
    client = new_client(2)
    with pytest.raises(httpx.PoolTimeout):
        _ = [await client.send(client.build_request("GET", f"{server.url}/ticks"), stream=True) for _ in range(3)]
    with pytest.raises(httpx.PoolTimeout):
        await client.get(f"{server.url}/hello")
    await client.aclose()
    await server.quiet()


async def test_what_was_opened_is_closed_when_the_next_fails(server: Server) -> None:
    """A scope closes the streams that it has when another can't be opened."""
    async with Scope() as outer:
        client = outer.add(new_client(2))
        with pytest.raises(httpx.PoolTimeout):
            async with Scope() as scope:
                for _ in range(3):
                    await scope.host(client.stream("GET", f"{server.url}/ticks"))
        assert (await client.get(f"{server.url}/hello")).text == "hello"
        await server.quiet()


async def test_all_or_none_are_opened(server: Server) -> None:
    """`host_all` opens streams at once; where one fails, the scope goes on without any of them."""
    async with Scope() as scope:
        client = scope.add(new_client(2))
        with pytest.raises(httpx.PoolTimeout):
            await scope.host_all(*(client.stream("GET", f"{server.url}/ticks") for _ in range(3)))
        assert scope.size == 1
        assert (await client.get(f"{server.url}/hello")).text == "hello"
    await server.quiet()


async def test_streams_are_cancelled_in_flight(server: Server) -> None:
    """Streams that are cancelled while they are read are closed, client and all, without a warning."""
    read: list[bytes] = []
    note = read.append

    async def reader(response: Any) -> None:
        async for chunk in response.aiter_raw():
            note(chunk)

    client = new_client(3)
    responses: tuple[Any, ...] = ()
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            scope.add(client)
            responses = await scope.host_all(*(client.stream("GET", f"{server.url}/ticks") for _ in range(3)))
            async with anyio.create_task_group() as tasks:
                for response in responses:
                    tasks.start_soon(reader, response)
                await until(lambda: len(read) == 3)
                cancel_scope.cancel()
    assert cancel_scope.cancelled_caught
    assert [response.is_closed for response in responses] == [True] * 3
    assert client.is_closed
    await server.quiet()
    gc.collect()


async def test_one_stream_is_closed_early_by_another_task(server: Server) -> None:
    """`release` closes one stream from any task, and its place in the pool is free; the others go on."""
    async with Scope() as scope:
        client = scope.add(new_client(2))
        first, second = await scope.host_all(*(client.stream("GET", f"{server.url}/ticks") for _ in range(2)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, first)
        assert [first.is_closed, second.is_closed] == [True, False]
        assert (await client.get(f"{server.url}/hello")).text == "hello"
        await until(lambda: server.under_way == 1)
    assert second.is_closed
    await server.quiet()


async def test_who_reads_a_released_stream_is_told(server: Server) -> None:
    """A task that still reads when another one releases the stream gets httpx's `ReadError`."""
    async with Scope() as scope:
        client = scope.add(new_client())
        response = await scope.host(client.stream("GET", f"{server.url}/ticks"))
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"tick"
        errors: list[BaseException] = []

        async def read() -> None:
            try:
                await anext(chunks)
            except httpx.ReadError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await scope.release(response)
        assert [type(error) for error in errors] == [httpx.ReadError]
    await server.quiet()


async def test_a_server_that_never_answers(server: Server) -> None:
    """A timeout around `host` ends the wait; the scope holds nothing of it, and the pool is free."""
    async with Scope() as scope:
        client = scope.add(new_client())
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.05):
                await scope.host(client.stream("GET", f"{server.url}/never"))
        assert scope.size == 1
        assert (await client.get(f"{server.url}/hello")).text == "hello"
    await server.quiet()


# httpx: cancelled twice


@on_plain_asyncio
@pytest.mark.parametrize("path", ["/ticks", "/never"])
async def test_without_a_scope_two_cancellations_leak_a_connection(server: Server, path: str) -> None:
    """A task that is cancelled again while httpx closes a response leaves the connection in the pool, for ever."""
    client = new_client()

    async def use() -> None:
        async with client.stream("GET", server.url + path):
            opened.append(path)
            await anyio.sleep_forever()

    opened: list[str] = []
    await cancel_twice(use, lambda: opened or (path == "/never" and server.under_way))
    with pytest.raises(httpx.PoolTimeout):
        await client.get(f"{server.url}/hello")
    await client.aclose()
    await server.quiet()
    gc.collect()


@on_asyncio
@pytest.mark.parametrize("path", ["/ticks", "/never"])
async def test_two_cancellations_do_not_reach_a_hosted_stream(server: Server, path: str) -> None:
    """A hosted stream is closed in full however often its user is cancelled, and the pool is free."""
    async with Scope() as outer:
        client = outer.add(new_client())

        async def use() -> None:
            async with Scope() as scope:
                await scope.host(client.stream("GET", server.url + path))
                opened.append(path)
                await anyio.sleep_forever()

        opened: list[str] = []
        await cancel_twice(use, lambda: opened or (path == "/never" and server.under_way))
        assert (await client.get(f"{server.url}/hello")).text == "hello"
        await server.quiet()


@asynccontextmanager
async def chunks(client: Any, url: str) -> AsyncGenerator[Any, None]:
    """Read a stream in a task of its own."""
    async with client.stream("GET", url) as response, anyio.create_task_group() as tasks:
        send, receive = anyio.create_memory_object_stream[bytes]()

        async def read() -> None:
            async with send:
                async for chunk in response.aiter_raw():
                    await send.send(chunk)

        async with receive:
            tasks.start_soon(read)
            try:
                yield receive
            finally:
                tasks.cancel_scope.cancel()


@on_plain_asyncio
@pytest.mark.parametrize("hosted", ["the stream", "the reader"])
async def test_who_reads_a_stream_is_best_hosted_too(server: Server, hosted: str) -> None:
    """Two cancellations of who reads leak, as httpx closes there too, unless that task is hosted."""
    async with Scope() as outer:
        client = outer.add(new_client())
        read: list[bytes] = []
        note = read.append

        async def use() -> None:
            async with Scope() as scope:
                if hosted == "the stream":
                    response = await scope.host(client.stream("GET", f"{server.url}/ticks"))
                    ticks = response.aiter_raw()
                else:
                    ticks = await scope.host(chunks(client, f"{server.url}/ticks"))
                async for tick in ticks:
                    note(tick)

        await cancel_twice(use, lambda: read)
        if hosted == "the stream":
            with pytest.raises(httpx.PoolTimeout):
                await client.get(f"{server.url}/hello")
        else:
            assert (await client.get(f"{server.url}/hello")).text == "hello"
    await server.quiet()
    gc.collect()


@every_backend
@pytest.mark.parametrize("how", ["break", "cancel"])
def test_what_trio_says_of_a_loop_that_is_left(server: Server, backend: str, how: str) -> None:
    """On trio, httpx's iterators warn where a loop is left in its middle, and not where the reading is cancelled."""
    told: list[str] = []

    def note(message: object, *_: object, **__: object) -> None:
        told.append(str(message))  # the warning itself would keep the generator

    async def main() -> None:
        begun = anyio.Event()

        async def read(response: Any) -> None:
            async for _ in response.aiter_raw():
                if how == "break":
                    break
                begun.set()

        async with Scope() as scope:
            client = scope.add(new_client())
            response = await scope.host(client.stream("GET", f"{server.url}/ticks"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, response)
                if how == "cancel":
                    await begun.wait()
                    await anyio.wait_all_tasks_blocked()
                    tasks.cancel_scope.cancel()
        await server.quiet()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        anyio.run(main, backend=backend)
        gc.collect()
    left = any("before it had been exhausted" in message for message in told)
    assert left is (how == "break" and backend == "trio")


# aiohttp


async def cannot_start() -> None:
    raise ConnectionError("no such queue")


@on_asyncio
async def test_without_a_scope_a_session_is_left_unclosed(server: Server) -> None:
    """Where something fails between opening and closing, aiohttp tells of an unclosed session and connector."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))

    async def start() -> None:
        session = new_session()
        async with session.get(f"{server.url}/hello") as response:
            assert await response.text() == "hello"
        await cannot_start()
        await session.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a warning that is kept would keep the session
        with pytest.raises(ConnectionError):
            await start()
        gc.collect()
    assert set(told) == {"Unclosed client session", "Unclosed connector"}


@on_asyncio
async def test_a_session_is_closed_when_the_start_fails(server: Server) -> None:
    """A session that is in a scope is closed whatever fails after it, and there is nothing to tell."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))

    async def start() -> None:
        async with Scope() as scope:
            session = scope.add(new_session())
            async with session.get(f"{server.url}/hello") as response:
                assert await response.text() == "hello"
            await cannot_start()

    with pytest.raises(ConnectionError):
        await start()
    gc.collect()
    assert told == []


@on_asyncio
async def test_without_a_scope_responses_keep_their_connections(server: Server) -> None:
    """Responses that nobody closes, since something failed, leave no connection for the next request."""
    session = new_session(2)
    responses: list[Any] = []
    with pytest.raises(ConnectionError):
        responses += [await session.get(f"{server.url}/ticks") for _ in range(2)]
        await cannot_start()
    with pytest.raises(TimeoutError):
        await session.get(f"{server.url}/hello")
    for response in responses:
        response.close()
    await session.close()
    await server.quiet()


@on_asyncio
async def test_responses_are_closed_when_something_fails(server: Server) -> None:
    """A scope closes the responses that it has, and their connections are free."""
    async with Scope() as outer:
        session = outer.add(new_session(2))
        with pytest.raises(ConnectionError):
            async with Scope() as scope:
                for _ in range(2):
                    scope.add(await session.get(f"{server.url}/ticks"))
                await cannot_start()
        async with session.get(f"{server.url}/hello") as response:
            assert await response.text() == "hello"
    await server.quiet()


@on_asyncio
async def test_aiohttp_streams_are_cancelled_in_flight(server: Server) -> None:
    """Responses that are cancelled while they are read are closed, session and all, without a warning."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    read: list[bytes] = []
    note = read.append

    async def reader(response: Any) -> None:
        async for chunk in response.content.iter_any():
            note(chunk)

    session = new_session(3)
    responses: tuple[Any, ...] = ()
    with anyio.CancelScope() as cancel_scope:
        async with Scope() as scope:
            scope.add(session)
            responses = await scope.host_all(*(session.get(f"{server.url}/ticks") for _ in range(3)))
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(reader, responses[number])
                await until(lambda: len(read) == 3)
                cancel_scope.cancel()
    assert cancel_scope.cancelled_caught
    assert session.closed
    await server.quiet()
    del session, responses
    gc.collect()
    assert told == []


@on_asyncio
async def test_one_response_is_closed_early_by_another_task(server: Server) -> None:
    """`release` closes one response from any task, and its connection is free; the other goes on."""
    async with Scope() as scope:
        session = scope.add(new_session(2))
        first, second = [scope.add(await session.get(f"{server.url}/ticks")) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, first)
        assert [first.closed, second.closed] == [True, False]
        async with session.get(f"{server.url}/hello") as response:
            assert await response.text() == "hello"
    await server.quiet()


@on_asyncio
async def test_aiohttp_and_a_server_that_never_answers(server: Server) -> None:
    """A timeout ends the wait for an answer, and the session goes on, and is closed."""
    async with Scope() as scope:
        session = scope.add(new_session())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await scope.host(session.get(f"{server.url}/never"))
        assert scope.size == 1
        async with session.get(f"{server.url}/hello") as response:
            assert await response.text() == "hello"
    await server.quiet()


@on_asyncio
async def test_a_websocket_is_closed_from_another_task(server: Server) -> None:
    """A websocket that one task opened and another closes says goodbye: the server sees a normal closure."""
    scope = Scope()
    session = scope.add(new_session())

    async def connect() -> None:
        socket = await scope.host(session.ws_connect(f"{server.url}/socket"))
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"

    before = len(server.close_codes)
    await asyncio.create_task(connect())
    await asyncio.create_task(scope.aclose())
    await until(lambda: len(server.close_codes) > before)
    assert server.close_codes[before:] == [1000]
    assert session.closed


@on_asyncio
async def test_a_websocket_whose_server_says_no_goodbye(server: Server) -> None:
    """A `timeout` bounds the goodbye, which aiohttp waits ten seconds for; it is told, and the session is closed."""
    session = new_session()
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(session)
            await scope.host(session.ws_connect(f"{server.url}/impolite"), name="websocket", timeout=0.05)
    (failure,) = caught.value.failures
    assert failure.name == "websocket"
    assert isinstance(failure.exception, CloseTimeoutError)
    assert session.closed
    await server.quiet()


@on_asyncio
@pytest.mark.parametrize("path", ["/ticks", "/never", "/socket"])
async def test_aiohttp_stands_two_cancellations_by_itself(server: Server, path: str) -> None:
    """What httpx leaks, aiohttp closes without a scope too, and a websocket says goodbye."""
    session, before = new_session(), len(server.close_codes)
    opened: list[str] = []

    async def use() -> None:
        url = server.url + path
        async with session.ws_connect(url) if path == "/socket" else session.get(url):
            opened.append(path)
            await anyio.sleep_forever()

    await cancel_twice(use, lambda: opened or (path == "/never" and server.under_way))
    async with session.get(f"{server.url}/hello") as response:
        assert await response.text() == "hello"
    await session.close()
    await server.quiet()
    await until(lambda: path != "/socket" or server.close_codes[before:] == [1000])


# aiohttp and TLS: its advice to sleep after the close


@pytest.fixture(name="certificate")
def one_certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 (our own arguments)
    return certificate, key


@pytest.fixture(name="tls_server")
def one_tls_server(certificate: tuple[Path, Path]) -> Generator[Server, None, None]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with running(tls) as server:
        yield server


def unclosed(recorded: pytest.WarningsRecorder) -> bool:
    gc.collect()
    return any("unclosed transport" in str(one.message) for one in recorded)


def test_without_a_moment_tls_leaves_a_transport(
    tls_server: Server, certificate: tuple[Path, Path], recwarn: pytest.WarningsRecorder
) -> None:
    """Closing a session does not wait until TLS is closed where a response was cut off: the transport is left."""
    trusted, go_on = ssl.create_default_context(cafile=certificate[0]), Event()

    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"{tls_server.url}/ticks", ssl=trusted) as response:
            assert await response.content.readany() == b"tick"
            tls_server.loop.call_soon_threadsafe(go_on.wait, 20)  # the server says no goodbye

    asyncio.run(main())
    found = unclosed(recwarn)
    go_on.set()
    assert found


def test_a_scope_can_wait_a_moment_after_the_close(
    tls_server: Server, certificate: tuple[Path, Path], recwarn: pytest.WarningsRecorder
) -> None:
    """What is registered before the session comes after its close: there aiohttp's advice, a short sleep, belongs."""
    trusted = ssl.create_default_context(cafile=certificate[0])

    async def main() -> None:
        async with Scope() as scope:
            scope.defer(asyncio.sleep, 0.25)
            session = scope.add(aiohttp.ClientSession())
            response = scope.add(await session.get(f"{tls_server.url}/ticks", ssl=trusted))
            assert await response.content.readany() == b"tick"

    asyncio.run(main())
    assert not unclosed(recwarn)


# The example


@every_backend
def test_the_example_runs(backend: str) -> None:
    """The example reads its streams, closes them early, in time and in flight, and nothing stays open."""
    run = run_example("http_streams.py", "--backend", backend, env={"PYTHONUNBUFFERED": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1] == "the server has no stream open any more"
