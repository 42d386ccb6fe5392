"""`validated`: a connection is checked as it is acquired, and closed again where it fails."""

from __future__ import annotations

import copy
import pickle
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

from rescope import CloseTimeoutError, Err, Ok, Resource, ResourceCleanupError, Scope, cleanup_errors, create_resource
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow.validation import InvalidConnectionError, validated


class Fault(Exception):
    """An error of our own."""


class CloseFault(Exception):
    """Another one."""


class Connection:
    """A connection that is closed by its own `aclose`."""

    def __init__(self, ledger: Ledger | None = None, *, fails: bool = False) -> None:
        self.ledger = Ledger() if ledger is None else ledger
        self.fails = fails
        self.open = True
        self.ledger.opened("connection")

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.open = False
        self.ledger.closed("connection")
        if self.fails:
            raise CloseFault("broken pipe")


class Managed:
    """A manager that keeps what it is left with, and may suppress it, or raise something else."""

    def __init__(self, *, suppress: bool = False, leaves: Exception | None = None) -> None:
        self.suppress = suppress
        self.leaves = leaves
        self.connection = Connection()
        self.seen: BaseException | None = None
        self.left = 0

    async def __aenter__(self) -> Connection:
        return self.connection

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        self.seen = exc
        self.left += 1
        await self.connection.aclose()
        if self.leaves is not None:
            raise self.leaves
        return self.suppress


def refuse(_: object) -> NoReturn:
    raise Fault("no such table: orders")


async def refuse_later(_: object) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise Fault("no such table: orders")


def passing(_: object) -> None:
    """Find nothing wrong."""


async def connect() -> Connection:
    await anyio.lowlevel.checkpoint()
    return Connection()


@asynccontextmanager
async def opened(ledger: Ledger | None = None) -> AsyncGenerator[Connection]:
    connection = Connection(ledger)
    try:
        yield connection
    finally:
        connection.open = False
        connection.ledger.closed("connection")


async def entered(manager: Any) -> Any:
    """Give what it gives; it is left at once."""
    async with manager as value:
        return value


async def failure_of(manager: Any) -> InvalidConnectionError:
    """Give the error with which it fails."""
    with pytest.raises(InvalidConnectionError) as caught:
        await entered(manager)
    return caught.value


# What may be validated


async def test_a_manager_is_entered_checked_and_left() -> None:
    """A connection that passes is given to the block, and closed after it."""
    managed = Managed()
    seen: list[Connection] = []
    async with validated(managed, seen.append) as connection:
        assert connection is managed.connection
        assert seen == [connection]
        assert connection.open
    assert not connection.open
    assert managed.left == 1


async def test_a_manager_that_can_be_awaited_is_entered() -> None:
    """What a pool's `acquire()` gives is often both, and is to be entered."""

    class Both(Managed):
        def __await__(self) -> Generator[Any, Any, Connection]:
            raise AssertionError

    both = Both()
    assert await entered(validated(both, passing)) is both.connection
    assert await entered(validated(Both, passing))


async def test_a_sync_manager_is_entered() -> None:
    """A sync manager is entered and left in the task of the block."""
    seen: list[BaseException | None] = []

    @contextmanager
    def opened() -> Generator[str]:
        try:
            yield "connection"
        except BaseException as exc:
            seen.append(exc)
            raise
        seen.append(None)

    assert await entered(validated(opened(), passing)) == "connection"
    error = await failure_of(validated(opened, refuse))
    assert seen == [None, error]


@pytest.mark.parametrize("make", [Connection, connect, partial(connect), Managed, opened])
async def test_a_function_is_called_when_it_is_entered(make: Callable[[], Any]) -> None:
    """A function, sync or async, is called for what is to be checked, and what it gives is closed."""
    calls = 0

    def acquire() -> Any:
        nonlocal calls
        calls += 1
        return make()

    manager = validated(acquire, passing)
    assert calls == 0
    async with manager as connection:
        assert calls == 1
        assert connection.open
    assert not connection.open


async def test_a_closer_comes_before_a_manager_where_it_is_open_already() -> None:
    """What an async function gives is open: it is closed, and not entered once more."""

    class Client(Connection):
        async def __aenter__(self) -> NoReturn:
            raise AssertionError

        async def __aexit__(self, *_: object) -> NoReturn:
            raise AssertionError

    async def open_client() -> Client:
        return Client()

    client = await entered(validated(open_client, passing))
    assert not client.open


async def test_an_awaited_manager_without_a_closer_is_entered() -> None:
    """What an async function gives that has no closer, and can be entered, is."""

    async def make() -> Any:
        return opened()

    connection = await entered(validated(make, passing))
    assert not connection.open


async def test_a_resource_brings_its_own_closer() -> None:
    """A function may give a `Resource`, with a closer of any kind; the check and the block get its value."""
    log: list[Any] = []

    def make() -> Resource[str]:
        return Resource("connection", partial(log.append, "closed"))

    async with validated(make, log.append) as value:
        log.append(f"the {value}")
    assert log == ["connection", "the connection", "closed"]

    await failure_of(validated(lambda: create_resource(lambda: None, log.append), refuse))
    assert log[3:] == [None]


async def test_a_connection_of_sqlite3_is_closed() -> None:
    """A connection of `sqlite3`, whose own `with` does not close it, is closed where it fails, and after the block."""

    def ready(database: sqlite3.Connection) -> Any:
        return database.execute("SELECT 1 FROM orders").fetchone()

    opened: list[sqlite3.Connection] = []

    def open_database() -> sqlite3.Connection:
        opened.append(sqlite3.connect(":memory:"))
        return opened[0]

    error = await failure_of(validated(open_database, ready))
    assert error.reason == "raised OperationalError: no such table: orders"
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        opened[0].execute("SELECT 1")

    async with validated(
        closing(sqlite3.connect(":memory:")), lambda database: database.execute("SELECT 1")
    ) as database:
        assert database.execute("SELECT 2").fetchone() == (2,)
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        database.execute("SELECT 1")


async def test_a_connection_that_cannot_be_opened() -> None:
    """What opening raises comes out as it is, and nothing is checked."""

    def no_route() -> NoReturn:
        raise Fault("no route to host")

    with pytest.raises(Fault, match="no route to host"):
        await entered(validated(no_route, refuse))


@pytest.mark.parametrize("given", [None, "connection", object()])
async def test_what_cannot_be_closed_is_refused(given: object) -> None:
    """Where a function gives what has no closer, the error says which function, and what it may give instead."""

    def make() -> object:
        return given

    with pytest.raises(TypeError, match=r"make gave what can't be closed .* let it give a `Resource\(value, close\)`"):
        await entered(validated(make, passing))


# What passes, and what fails


@pytest.mark.parametrize("result", [None, True, 1, "PONG", [1], object(), Ok(None), Ok(0)])
@pytest.mark.parametrize("later", [False, True])
async def test_what_passes(result: object, later: bool) -> None:
    """A check that gives nothing, or something true, passes; it may be async."""

    async def check_later(_: Connection) -> object:
        await anyio.lowlevel.checkpoint()
        return result

    def check(_: Connection) -> object:
        return result

    async with validated(connect, check_later if later else check) as connection:
        assert connection.open


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (False, "gave False"),
        (0, "gave a int that is false"),
        ([], "gave a list that is false"),
        ("", "gave a str that is false"),
        (Err("hunter2"), "gave an Err of a str"),
        (Err(Fault("read-only")), "gave an Err of Fault: read-only"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
async def test_what_fails(result: object, says: str, later: bool) -> None:
    """A check that gives something false, or an `Err`, fails, and the connection is closed again."""
    managed = Managed()

    async def check_later(_: Connection) -> object:
        await anyio.lowlevel.checkpoint()
        return result

    def check(_: Connection) -> object:
        return result

    error = await failure_of(validated(managed, check_later if later else check))
    assert error.reason == says
    assert error.__cause__ is (result.error if isinstance(result, Err) and isinstance(result.error, Fault) else None)
    assert not managed.connection.open


@pytest.mark.parametrize("check", [refuse, refuse_later])
@pytest.mark.parametrize("make", [Managed, connect])
async def test_a_check_that_raises(check: Callable[[object], object], make: Callable[[], Any]) -> None:
    """What a check raises is the cause, and the connection is closed before the error comes out."""
    checked: list[Connection] = []

    async def remember(connection: Connection) -> object:
        checked.append(connection)
        result = check(connection)
        return await result if isinstance(result, Awaitable) else result

    error = await failure_of(validated(make, remember))
    assert isinstance(error.__cause__, Fault)
    assert [connection.open for connection in checked] == [False]
    assert error.close_error is None


async def test_a_truth_that_cannot_be_told_fails() -> None:
    """A check whose result has no truth value fails."""

    class Vague:
        def __bool__(self) -> bool:
            raise Fault("it depends")

    error = await failure_of(validated(connect, lambda _: Vague()))
    assert error.reason == "raised Fault: it depends"


async def test_a_connection_that_hangs_fails() -> None:
    """A check that does not end in its time fails, and the connection is closed."""
    managed = Managed()

    async def hang(_: Connection) -> None:
        await anyio.sleep_forever()

    error = await failure_of(validated(managed, hang, timeout=0.01))
    assert error.reason == "did not end within 0.01 s"
    assert isinstance(error.__cause__, TimeoutError)
    assert not managed.connection.open


async def test_the_time_is_for_the_check_alone() -> None:
    """The block has all the time it likes."""
    async with validated(connect, passing, timeout=0.01):
        with anyio.move_on_after(0.03) as waiting:
            await anyio.sleep_forever()
    assert waiting.cancelled_caught


async def test_a_timeout_of_the_check_itself_is_its_own() -> None:
    """A `TimeoutError` that the check raises is what it raised, not the time that it was given."""

    def out_of_time(_: object) -> None:
        raise TimeoutError("no answer")

    error = await failure_of(validated(connect, out_of_time, timeout=5))
    assert error.reason == "raised TimeoutError: no answer"


# What the error says


async def test_the_error_says_what_to_look_at() -> None:
    """It names the connection, its type and the check, what the check said, and what its author said to look at."""
    error = await failure_of(validated(connect, refuse, name="orders-db", hint="Have the migrations run?"))
    assert str(error) == (
        "orders-db (a Connection) failed its check refuse, which raised Fault: no such table: orders. "
        "It has been closed again. Have the migrations run?"
    )
    assert (error.connection, error.check) == ("orders-db (a Connection)", "refuse")
    assert (error.reason, error.hint) == ("raised Fault: no such table: orders", "Have the migrations run?")


async def test_the_error_without_a_name() -> None:
    """Without a name the type tells what it is; a partial is called after its function, an object after its type."""

    class Ping:
        def __call__(self, connection: object) -> bool:
            return False

    error = await failure_of(validated(connect, partial(refuse)))
    of_an_object = await failure_of(validated(connect, Ping()))
    assert str(error) == (
        "a Connection failed its check refuse, which raised Fault: no such table: orders. It has been closed again."
    )
    assert of_an_object.check.endswith("Ping")


async def test_no_value_is_shown() -> None:
    """Neither the connection's `repr` nor that of what the check gave or raised gets into the error."""

    class Secret(Connection):
        def __repr__(self) -> str:
            return "hunter2"

        def __bool__(self) -> bool:
            return False

    def look_up(connection: Secret) -> None:
        raise KeyError(connection)

    errors = [
        await failure_of(validated(Secret, lambda connection: connection)),
        await failure_of(validated(Secret, Err)),
        await failure_of(validated(Secret, look_up)),
    ]
    assert all("hunter2" not in f"{error} {error!r}" for error in errors)


@pytest.mark.parametrize("make", [lambda: Connection(fails=True), lambda: Managed(leaves=CloseFault("broken pipe"))])
async def test_a_close_that_fails_too_is_told(make: Callable[[], Any]) -> None:
    """Where closing what failed the check fails, the same error says both."""
    error = await failure_of(validated(make, refuse, hint="Is the server up?"))
    assert error.close_error is not None
    assert isinstance(error.__cause__, Fault)
    assert "raised Fault: no such table: orders. Closing it again failed too: " in str(error)
    assert "CloseFault: broken pipe" in str(error)
    assert str(error).endswith(". Is the server up?")


async def test_a_closer_that_fails_is_found() -> None:
    """`cleanup_errors` finds what a closer failed with, and nothing goes round in a circle."""
    error = await failure_of(validated(lambda: Connection(fails=True), refuse))
    assert cleanup_errors(error) == [error.close_error]
    assert error.close_error is not None
    assert error.close_error.__cause__ is None


async def test_a_task_group_in_the_manager_hides_nothing() -> None:
    """A task group in the manager wraps what it is left with; the error comes out of it as itself."""

    @asynccontextmanager
    async def with_tasks(*, fails: bool = False) -> AsyncGenerator[int]:
        async def stop() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                if fails:
                    raise CloseFault("half a message")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            await anyio.wait_all_tasks_blocked()
            yield 1

    error = await failure_of(validated(with_tasks(), refuse))
    assert error.close_error is None
    error = await failure_of(validated(with_tasks(fails=True), refuse))
    assert isinstance(error.close_error, ExceptionGroup)
    assert [type(one) for one in error.close_error.exceptions] == [CloseFault]


async def test_the_error_can_be_copied_and_pickled() -> None:
    """It survives the way to another process."""
    error = await failure_of(validated(connect, refuse, name="orders-db", hint="Look."))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 (our own)
        assert type(other) is InvalidConnectionError
        assert str(other) == str(error)


# What the manager sees


async def test_a_manager_sees_that_the_check_has_failed() -> None:
    """A manager is left with the error, so that a transaction rolls back."""
    managed = Managed()
    error = await failure_of(validated(managed, refuse))
    assert managed.seen is error
    assert managed.left == 1


async def test_a_manager_cannot_suppress_that_the_check_has_failed() -> None:
    """There is nothing to give to the block, so the error comes out in any case."""
    managed = Managed(suppress=True)
    error = await failure_of(validated(managed, refuse))
    assert managed.seen is error
    assert isinstance(error.__cause__, Fault)


async def test_a_manager_that_cuts_the_check_off() -> None:
    """Where the manager cancels the check and swallows that, the check has failed."""

    @asynccontextmanager
    async def short() -> AsyncGenerator[int]:
        with anyio.CancelScope() as cut:
            cut.cancel()
            yield 1

    async def check(_: int) -> None:
        await anyio.sleep_forever()

    error = await failure_of(validated(short(), check))
    assert error.reason == "was cancelled by the connection's own manager"


async def test_a_block_that_raises_is_seen_by_the_manager() -> None:
    """The manager is left with what the block raised, and that comes out as it is."""
    managed, error = Managed(), Fault("the block's own")
    with pytest.raises(Fault) as caught:
        async with validated(managed, passing):
            raise error
    assert caught.value is error
    assert managed.seen is error


async def test_a_manager_may_suppress_what_the_block_raised() -> None:
    """What the manager swallows without a check, it swallows with one."""
    async with validated(Managed(suppress=True), passing) as connection:
        raise Fault
    assert not connection.open


async def test_what_a_manager_raises_comes_out_as_it_is() -> None:
    """A failing exit is raised as it would be without a check."""
    error = CloseFault("commit failed")
    with pytest.raises(CloseFault) as caught:
        async with validated(Managed(leaves=error), passing):
            pass
    assert caught.value is error


async def test_a_closer_that_fails_after_the_block() -> None:
    """A closer's failure is a `ResourceCleanupError`, as of every closer; what the block raised is its cause."""
    error = Fault("the block's own")
    with pytest.raises(ResourceCleanupError) as caught:
        async with validated(lambda: Connection(fails=True), passing):
            raise error
    assert caught.value.__cause__ is error
    assert [type(one) for one in caught.value.errors] == [CloseFault]


async def test_a_resource_keeps_its_timeout() -> None:
    """A closer that hangs is ended in the time that its `Resource` says."""

    def make() -> Resource[str]:
        return Resource("connection", anyio.sleep_forever, timeout=0.01)

    error = await failure_of(validated(make, refuse))
    assert isinstance(error.close_error, ResourceCleanupError)
    assert isinstance(error.close_error.errors[0], CloseTimeoutError)


# Cancellation


async def test_a_cancelled_check_closes_and_the_cancellation_comes_out() -> None:
    """A check that is cancelled has not failed: the connection is closed, and the cancellation goes on."""
    managed = Managed()
    with anyio.CancelScope() as cut:

        async def check(_: Connection) -> None:
            cut.cancel()
            await anyio.sleep_forever()

        await entered(validated(lambda: managed.connection, check))
    assert cut.cancelled_caught
    assert not managed.connection.open


async def test_an_interrupted_check_closes() -> None:
    """`KeyboardInterrupt` in a check comes out itself, when the connection is closed."""
    managed = Managed()

    def check(_: Connection) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await entered(validated(managed, check))
    assert isinstance(managed.seen, KeyboardInterrupt)
    assert not managed.connection.open


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("how", ["async function", "manager", "in a scope", "hosted"])
async def test_what_is_opened_is_closed_wherever_it_is_cancelled(how: str, passes: bool) -> None:
    """Opening, checking and closing are cancelled at every point: what was opened is closed, once."""

    async def check(_: Connection) -> bool:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        return passes

    async def program(ledger: Ledger) -> None:
        async def acquire() -> Connection:
            await anyio.lowlevel.checkpoint()
            return Connection(ledger)

        if how == "async function":
            async with validated(acquire, check, timeout=60):
                await anyio.lowlevel.checkpoint()
            return
        async with Scope() as scope:
            if how == "in a scope":
                await scope.enter(validated(acquire, check))
            elif how == "hosted":
                await scope.host(validated(opened(ledger), check))
            else:
                await scope.enter(validated(opened(ledger), check))
            await anyio.lowlevel.checkpoint()

    report = await cancel_everywhere(program, raises=() if passes else InvalidConnectionError)
    assert report.total > 0


# In a scope


async def test_a_scope_enters_and_hosts_it() -> None:
    """A scope holds a validated connection like any other, and calls it by what it is."""
    managed = Managed()
    async with Scope() as scope:
        assert await scope.enter(validated(managed, passing)) is managed.connection
        hosted = await scope.host(validated(connect, passing))
        assert [handle.name for handle in scope.resources] == ["validated", "validated"]
        assert hosted.open
    assert not hosted.open
    assert managed.left == 1


@pytest.mark.parametrize("how", [Scope.enter, Scope.host])
async def test_a_scope_holds_nothing_that_failed(how: Callable[[Scope, Any], Awaitable[Any]]) -> None:
    """Where the check fails, the error comes out of `enter` and `host`, and the scope holds nothing."""
    managed = Managed()
    async with Scope() as scope:
        with pytest.raises(InvalidConnectionError):
            await how(scope, validated(managed, refuse))
        assert scope.size == 0
    assert managed.left == 1


# Bad input


def generate() -> Generator[int]:
    yield 1


async def generate_later() -> AsyncGenerator[int]:
    yield 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "expected a context manager, or a function that opens a connection, got a NoneType"),
        ("postgres://", "got a str"),
        (connect, None),
        (generate, "generate is a generator function: decorate it"),
        (generate_later, "generate_later is a generator function: decorate it"),
    ],
)
def test_what_cannot_be_opened(given: Any, says: str | None) -> None:
    """What is neither a manager nor a function is refused at the call, with the mend."""
    if says is None:
        given, says = given(), r"got the coroutine connect\(\): pass the function itself, without calling it"
    with pytest.raises(TypeError, match=says):
        validated(given, passing)


def any_of(value: object) -> Any:
    """Give it to what would not take it, as type checkers see."""
    return value


async def test_a_generator_is_refused() -> None:
    """A generator was meant to be a manager."""
    generator = generate()
    with pytest.raises(TypeError, match="got the generator generate: decorate its function"):
        validated(any_of(generator), passing)
    generator.close()
    later = generate_later()
    with pytest.raises(TypeError, match="got the generator generate_later: decorate its function"):
        validated(any_of(later), passing)
    await later.aclose()


def test_an_open_connection_that_a_with_may_not_close_is_refused() -> None:
    """The `with` of a connection of `sqlite3` is a transaction: what is meant is to be said."""
    with (
        closing(sqlite3.connect(":memory:")) as database,
        pytest.raises(TypeError, match="a Connection is open already") as caught,
    ):
        validated(database, passing)
    assert "pass the function that opens it, or `contextlib.closing(...)` of it" in str(caught.value)


def check_that_is_async() -> Any:
    return refuse_later(None)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"check": None}, TypeError, "`check` must be a function that takes a connection, not a NoneType"),
        ({"check": "SELECT 1"}, TypeError, "not a str"),
        ({"timeout": 0}, ValueError, "`timeout` must be more than 0 s, not 0"),
        ({"timeout": -1}, ValueError, "`timeout` must be more than 0 s"),
        ({"timeout": float("nan")}, ValueError, "`timeout` must be more than 0 s"),
        ({"timeout": "5"}, TypeError, "`timeout` must be a number of seconds, or None, not a str"),
        ({"timeout": True}, TypeError, "not a bool"),
        ({"name": 7}, TypeError, "`name` must be a string, not a int"),
        ({"hint": b"look"}, TypeError, "`hint` must be a string, not a bytes"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], error: type[Exception], says: str) -> None:
    """Each option that can't be is refused by its name, and nothing is opened."""
    given: dict[str, Any] = {"check": passing, **options}
    with pytest.raises(error, match=says):
        validated(lambda: pytest.fail("opened"), given.pop("check"), **given)


def test_a_check_that_was_called_is_refused() -> None:
    """A coroutine in place of a check is refused with the mend, and is not left to be awaited."""
    with pytest.raises(TypeError, match=r"`check` got the coroutine refuse_later\(\): pass the function itself"):
        validated(connect, check_that_is_async())


async def test_an_endless_time_is_a_time() -> None:
    """`math.inf` is the same as no timeout."""
    assert await entered(validated(connect, passing, timeout=float("inf")))
