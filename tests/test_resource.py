"""`Resource` and `create_resource`."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from rescope import (
    CloseRejectedError,
    CloseTimeoutError,
    Err,
    Ok,
    Resource,
    ResourceCleanupError,
    Scope,
    create_resource,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Connection:
    """Something to close."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1

    async def aclose(self) -> None:
        """Count, after a checkpoint."""
        await anyio.lowlevel.checkpoint()
        self.closed += 1


def nothing() -> None:
    """Close nothing."""


async def hang() -> None:
    """Never end."""
    await anyio.sleep_forever()


# What it shows


def test_gives_its_value() -> None:
    """`value` is the very object it was made of."""
    value = object()

    assert Resource(value, nothing).value is value


def test_is_open_when_made() -> None:
    """A `Resource` that nobody holds is open."""
    assert Resource(1, nothing).state == "open"


def test_is_named_after_the_type_of_its_value() -> None:
    """Without a name, the value's type is what a person recognises."""
    assert Resource(Connection(), nothing).name == "Connection"


def test_is_named_after_its_closer_where_there_is_no_value() -> None:
    """Where the value is `None`, the closer's qualified name tells more than `NoneType`."""
    assert Resource(None, Connection().aclose).name == "Connection.aclose"


def test_is_named_after_what_a_partial_calls() -> None:
    """A partial has no name of its own; the function inside of it has."""
    assert Resource(None, partial(partial(print, 1), 2)).name == "print"


def test_is_named_after_the_type_of_a_callable_object() -> None:
    """A closer without a qualified name is known by its type."""

    class Closer:
        def __call__(self) -> None: ...

    assert Resource(None, Closer()).name.endswith("Closer")


def test_takes_the_name_it_is_given() -> None:
    """A given name goes before any default."""
    assert Resource(Connection(), nothing, name="db").name == "db"


def test_repr_shows_name_and_state_and_no_value() -> None:
    """The `repr` is for logs: it names, and keeps the value, which may be a password, to itself."""
    assert repr(Resource("hunter2", nothing, name="token")) == "<Resource 'token' open>"


@pytest.mark.parametrize("attribute", ["value", "name", "state"])
def test_what_it_shows_cannot_be_set(attribute: str) -> None:
    """`value`, `name` and `state` are to be read."""
    resource: Any = Resource(1, nothing)

    with pytest.raises(AttributeError):
        setattr(resource, attribute, "other")


# Closing


async def test_calls_a_sync_closer() -> None:
    """`aclose` calls a closer that is a plain function."""
    connection = Connection()

    await Resource(connection, connection.close).aclose()

    assert connection.closed == 1


async def test_awaits_an_async_closer() -> None:
    """`aclose` awaits a closer that is a coroutine function."""
    connection = Connection()

    await Resource(connection, connection.aclose).aclose()

    assert connection.closed == 1


async def test_awaits_whatever_a_closer_gives_to_await() -> None:
    """A plain function may give something to await; it is awaited."""
    connection = Connection()

    await Resource(connection, lambda: connection.aclose()).aclose()  # noqa: PLW0108

    assert connection.closed == 1


async def test_awaits_an_awaitable_that_is_no_coroutine() -> None:
    """Anything with `__await__` counts as something to await."""
    connection = Connection()

    class Closing:
        def __await__(self) -> Any:
            return connection.aclose().__await__()

    await Resource(connection, Closing).aclose()

    assert connection.closed == 1


async def test_closing_twice_closes_once() -> None:
    """A second `aclose` finds nothing to do."""
    connection = Connection()
    resource = Resource(connection, connection.aclose)

    await resource.aclose()
    await resource.aclose()

    assert connection.closed == 1


async def test_is_closing_while_the_closer_runs() -> None:
    """The closer sees its own resource as `closing`."""
    states: list[str] = []
    resource: Resource[None] = Resource(None, lambda: states.append(resource.state))

    await resource.aclose()

    assert states == ["closing"]


async def test_is_closed_afterwards() -> None:
    """After `aclose` the state is `closed`."""
    resource = Resource(1, nothing)

    await resource.aclose()

    assert resource.state == "closed"


async def test_keeps_its_value_when_closed() -> None:
    """A closed `Resource` still tells what it was."""
    resource = Resource("value", nothing)

    await resource.aclose()

    assert resource.value == "value"


async def test_a_failure_is_raised_as_a_cleanup_error() -> None:
    """What the closer raises is among the exceptions of one `ResourceCleanupError`."""
    error = OSError("no")

    def fail() -> None:
        raise error

    with pytest.raises(ResourceCleanupError) as caught:
        await Resource(1, fail).aclose()

    assert caught.value.exceptions == (error,)


async def test_a_failure_is_reported_with_its_name() -> None:
    """The failure names the resource."""
    with pytest.raises(ResourceCleanupError) as caught:
        await Resource(1, lambda: 1 / 0, name="db").aclose()

    assert [(f.name, type(f.exception), f.timed_out) for f in caught.value.failures] == [
        ("db", ZeroDivisionError, False)
    ]


async def test_a_failure_is_raised_once() -> None:
    """Whoever closes again after a failure hears nothing of it."""
    resource = Resource(1, lambda: 1 / 0)
    with pytest.raises(ResourceCleanupError):
        await resource.aclose()

    assert await resource.aclose() is None  # type: ignore[func-returns-value]


async def test_is_closed_after_a_failure() -> None:
    """A closer that failed was tried: there is no second try."""
    resource = Resource(1, lambda: 1 / 0)

    with pytest.raises(ResourceCleanupError):
        await resource.aclose()

    assert resource.state == "closed"


@pytest.mark.parametrize("make_async", [False, True])
async def test_a_returned_err_is_a_failure(make_async: bool) -> None:
    """A closer that returns an `Err` has failed, with its exception."""
    error = OSError("no")

    async def close() -> Err[OSError]:
        return Err(error)

    with pytest.raises(ResourceCleanupError) as caught:
        await Resource(1, close if make_async else lambda: Err(error)).aclose()

    assert caught.value.exceptions == (error,)


async def test_a_returned_err_of_a_value_is_kept() -> None:
    """An `Err` that holds no exception comes as `CloseRejectedError`, which keeps it."""
    with pytest.raises(ResourceCleanupError) as caught:
        await Resource(1, lambda: Err("busy")).aclose()

    error = caught.value.exceptions[0]
    assert (type(error), getattr(error, "error", None)) == (CloseRejectedError, "busy")


@pytest.mark.parametrize("result", [None, False, 0, "text", Ok("fine"), ValueError("returned, not raised")])
async def test_any_other_result_is_a_success(result: object) -> None:
    """What else a closer returns means nothing."""
    resource = Resource(1, lambda: result)

    await resource.aclose()

    assert resource.state == "closed"


async def test_out_of_time_is_a_failure() -> None:
    """A closer that takes longer than `timeout` fails with a `CloseTimeoutError` that names it."""
    with pytest.raises(ResourceCleanupError) as caught:
        await Resource(1, hang, name="db", timeout=0.01).aclose()

    assert [(f.name, type(f.exception), f.timed_out) for f in caught.value.failures] == [
        ("db", CloseTimeoutError, True)
    ]


async def test_force_is_called_when_time_is_out() -> None:
    """`force` is the last resort of a closer that hangs."""
    forced: list[str] = []

    with pytest.raises(ResourceCleanupError):
        await Resource(1, hang, timeout=0.01, force=lambda: forced.append("killed")).aclose()

    assert forced == ["killed"]


async def test_force_is_not_called_in_time() -> None:
    """A closer that ends in time needs no force."""
    forced: list[str] = []
    connection = Connection()

    await Resource(connection, connection.aclose, timeout=60, force=lambda: forced.append("killed")).aclose()

    assert forced == []


async def test_force_is_not_called_for_a_failure_in_time() -> None:
    """`force` is for what hangs, not for what fails."""
    forced: list[str] = []

    async def fail() -> None:
        raise OSError

    with pytest.raises(ResourceCleanupError):
        await Resource(1, fail, timeout=60, force=lambda: forced.append("killed")).aclose()

    assert forced == []


@pytest.mark.parametrize("timeout", [float("inf"), 10**9])
async def test_a_timeout_may_be_endless(timeout: float) -> None:
    """A `timeout` however long is a fine one."""
    connection = Connection()

    await Resource(connection, connection.aclose, timeout=timeout).aclose()

    assert connection.closed == 1


# Overlapping closes


async def test_overlapping_closes_close_once() -> None:
    """Of two that close at the same time, one closes and the other waits for it."""
    began, go_on = anyio.Event(), anyio.Event()
    log: list[str] = []

    async def close() -> None:
        log.append("began")
        began.set()
        await go_on.wait()
        log.append("ended")

    async def close_again() -> None:
        await resource.aclose()
        log.append("waited")

    resource = Resource(1, close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resource.aclose)
        await began.wait()
        tasks.start_soon(close_again)
        await anyio.wait_all_tasks_blocked()
        go_on.set()

    assert log == ["began", "ended", "waited"]


async def test_the_one_that_waits_hears_of_no_failure() -> None:
    """A failure is raised to the one that closes, not to the one that waited for it."""
    began, go_on = anyio.Event(), anyio.Event()
    heard: list[str] = []

    async def fail() -> None:
        began.set()
        await go_on.wait()
        raise OSError

    async def close(who: str) -> None:
        try:
            await resource.aclose()
        except ResourceCleanupError:
            heard.append(who)

    resource = Resource(1, fail)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close, "first")
        await began.wait()
        tasks.start_soon(close, "second")
        await anyio.wait_all_tasks_blocked()
        go_on.set()

    assert heard == ["first"]


async def test_waiting_for_another_close_can_be_cancelled() -> None:
    """Who waits for somebody else's close may give up waiting."""
    began, go_on = anyio.Event(), anyio.Event()

    async def close() -> None:
        began.set()
        await go_on.wait()

    resource = Resource(1, close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resource.aclose)
        await began.wait()
        with anyio.move_on_after(0) as waiting:
            await resource.aclose()
        state = resource.state
        go_on.set()

    assert (waiting.cancelled_caught, state) == (True, "closing")


async def test_closing_from_inside_the_closer_returns_at_once() -> None:
    """A closer that closes its own resource does not wait for itself."""
    log: list[str] = []

    async def close() -> None:
        await resource.aclose()
        log.append("closed")

    resource = Resource(1, close)
    await resource.aclose()

    assert log == ["closed"]


# Held by a scope


async def test_closing_a_held_one_takes_it_off() -> None:
    """`aclose` works whoever holds it, and takes it off."""
    async with Scope() as scope:
        resource = scope.defer(nothing)

        await resource.aclose()

        assert (scope.size, resource in scope) == (0, False)


async def test_a_held_one_that_was_closed_is_not_closed_again() -> None:
    """The scope closes only what is still open."""
    connection = Connection()

    async with Scope() as scope:
        scope.add(connection)
        await scope.resources[0].aclose()

    assert connection.closed == 1


async def test_a_failure_of_a_held_one_is_not_the_scopes() -> None:
    """What was raised by the handle's own `aclose` is not raised by the scope again."""
    async with Scope() as scope:
        handle = scope.defer(lambda: 1 / 0)
        with pytest.raises(ResourceCleanupError):
            await handle.aclose()

    assert scope.cleanup_error is None


async def test_a_handle_is_closed_after_its_scope() -> None:
    """A scope that closes leaves its handles closed."""
    async with Scope() as scope:
        handle = scope.defer(nothing)

    assert handle.state == "closed"


async def test_a_handle_outlives_its_scope() -> None:
    """A handle knows its scope only weakly: it keeps no scope alive, and closes without one."""
    connection = Connection()
    scope = Scope()
    scope.add(connection)
    handle = scope.detach(connection)
    known = weakref.ref(scope)
    del scope

    await handle.aclose()

    assert (known(), connection.closed) == (None, 1)


# create_resource


async def make_async() -> Connection:
    """Make one, after a checkpoint."""
    await anyio.lowlevel.checkpoint()
    return Connection()


@pytest.mark.parametrize("acquire", [Connection, make_async, lambda: make_async()])  # noqa: PLW0108
@pytest.mark.parametrize("release", [Connection.close, Connection.aclose, lambda value: value.aclose()])
async def test_create_resource_takes_sync_and_async(
    acquire: Callable[[], Awaitable[Connection]], release: Callable[[Connection], object]
) -> None:
    """`acquire` and `release` may each be sync or async; `release` gets the value."""
    resource = await create_resource(acquire, release)

    await resource.aclose()

    assert resource.value.closed == 1


async def test_create_resource_gives_an_open_resource() -> None:
    """Nothing is closed before anyone asks."""
    resource = await create_resource(Connection, Connection.close)

    assert (type(resource), resource.state, resource.value.closed) == (Resource, "open", 0)


async def test_create_resource_names_it_after_its_value() -> None:
    """The default name is the value's type."""
    assert (await create_resource(make_async, Connection.aclose)).name == "Connection"


async def test_create_resource_names_one_without_a_value_after_its_release() -> None:
    """Where `acquire` gives `None`, the name of `release` is left."""

    def lock() -> None: ...

    assert (await create_resource(lock, print)).name == "print"


async def test_create_resource_takes_a_name() -> None:
    """A given name goes before any default."""
    assert (await create_resource(make_async, Connection.aclose, name="db")).name == "db"


async def test_create_resource_passes_on_timeout_and_force() -> None:
    """`timeout` bounds `release`, and `force` is its last resort."""
    forced: list[str] = []

    async def release(_: object) -> None:
        await anyio.sleep_forever()

    resource = await create_resource(Connection, release, timeout=0.01, force=lambda: forced.append("killed"))
    with pytest.raises(ResourceCleanupError):
        await resource.aclose()

    assert forced == ["killed"]


async def test_create_resource_raises_what_acquire_raises() -> None:
    """Where nothing was acquired there is nothing to pair."""
    error = OSError("refused")

    async def connect() -> Connection:
        raise error

    with pytest.raises(OSError, match="refused") as caught:
        await create_resource(connect, Connection.aclose)

    assert caught.value is error


async def test_create_resource_does_not_release_what_was_not_acquired() -> None:
    """After a failed `acquire`, `release` is not called."""
    released: list[object] = []

    def connect() -> Connection:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        await create_resource(connect, released.append)

    assert released == []


async def test_create_resource_gives_something_to_add() -> None:
    """A scope takes over what `create_resource` made."""
    resource = await create_resource(make_async, Connection.aclose)

    async with Scope() as scope:
        connection = scope.add(resource)

    assert (connection is resource.value, connection.closed) == (True, 1)
