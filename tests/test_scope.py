"""`Scope`: registering, looking, handing over."""

from __future__ import annotations

import contextvars
import gc
import warnings
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from rescope import Err, Ok, Resource, ResourceCleanupError, Scope, ScopeClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator


class Connection:
    """Something with a `close`."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def close(self) -> None:
        """Write it down."""
        self.log.append("close")


class Client(Connection):
    """Something with a `close` and an `aclose`."""

    async def aclose(self) -> None:
        """Write it down, after a checkpoint."""
        await anyio.lowlevel.checkpoint()
        self.log.append("aclose")


class Manager:
    """A context manager of one kind that writes down what happens to it."""

    def __init__(self, value: object = "value", log: list[object] | None = None) -> None:
        self.value = value
        self.log: list[object] = [] if log is None else log


class AsyncManager(Manager):
    """An async one."""

    async def __aenter__(self) -> object:
        await anyio.lowlevel.checkpoint()
        self.log.append("enter")
        return self.value

    async def __aexit__(self, kind: object, exc: object, traceback: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(exc or "exit")


class SyncManager(Manager):
    """A sync one."""

    def __enter__(self) -> object:
        self.log.append("enter")
        return self.value

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        self.log.append(exc or "exit")


@asynccontextmanager
async def failing_to_enter() -> AsyncGenerator[None, None]:
    """Fail before anything is there."""
    await anyio.lowlevel.checkpoint()
    msg = "refused"
    raise ConnectionError(msg)
    yield


def nothing() -> None:
    """Close nothing."""


async def nothing_async() -> None:
    """Close nothing, after a checkpoint."""
    await anyio.lowlevel.checkpoint()


# add


async def test_add_gives_back_the_value() -> None:
    """`add` is transparent: what goes in comes out."""
    client = Client()

    async with Scope() as scope:
        assert scope.add(client) is client


async def test_add_prefers_aclose() -> None:
    """Of a value that has both, `aclose` is called, and `close` is not."""
    async with Scope() as scope:
        client = scope.add(Client())

    assert client.log == ["aclose"]


async def test_add_falls_back_to_close() -> None:
    """A value without an `aclose` is closed by its `close`."""
    async with Scope() as scope:
        connection = scope.add(Connection())

    assert connection.log == ["close"]


async def test_add_falls_back_from_an_aclose_that_cannot_be_called() -> None:
    """What is called `aclose` and is no function is no closer."""
    connection: Any = Connection()
    connection.aclose = None

    async with Scope() as scope:
        scope.add(connection)

    assert connection.log == ["close"]


async def test_add_looks_the_closer_up_once() -> None:
    """The closer is the one that the value had when it was registered."""
    looked_up: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            looked_up.append(name)
            if name == "close":
                return nothing
            raise AttributeError(name)

    async with Scope() as scope:
        scope.add(Watched())

    assert looked_up == ["aclose", "close"]


async def test_add_calls_the_closer_it_is_given() -> None:
    """An explicit closer goes before the value's own."""
    log: list[str] = []

    async with Scope() as scope:
        client = scope.add(Client(), close=lambda: log.append("mine"))

    assert (log, client.log) == (["mine"], [])


async def test_add_takes_none_with_a_closer() -> None:
    """`None` is a fine value with an explicit closer."""
    log: list[str] = []

    async with Scope() as scope:
        value = scope.add(None, lambda: log.append("closed"))

    assert (value, log) == (None, ["closed"])


async def test_add_takes_a_class_with_a_closer() -> None:
    """A class is a fine value, once somebody says how it is closed."""
    async with Scope() as scope:
        assert scope.add(Client, close=nothing) is Client


async def test_add_passes_on_the_options() -> None:
    """`name`, `timeout` and `force` are those of the resource."""
    log: list[str] = []

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(1, anyio.sleep_forever, name="db", timeout=0.01, force=lambda: log.append("forced"))

    assert ([f.name for f in caught.value.failures], log) == (["db"], ["forced"])


async def test_add_of_a_resource_gives_back_its_value() -> None:
    """A `Resource` is unpacked."""
    value = object()

    async with Scope() as scope:
        assert scope.add(Resource(value, nothing)) is value


async def test_add_of_a_resource_holds_that_very_handle() -> None:
    """The `Resource` itself is the handle."""
    resource = Resource(1, nothing)

    async with Scope() as scope:
        scope.add(resource)

        assert scope.resources[0] is resource


async def test_add_of_a_generator_closes_it() -> None:
    """An async generator has an `aclose` like anything else."""
    log: list[str] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            log.append("closed")

    async with Scope() as scope:
        await anext(scope.add(numbers()))

    assert log == ["closed"]


# acquire


async def connect() -> Client:
    """Make a client, after a checkpoint."""
    await anyio.lowlevel.checkpoint()
    return Client()


@pytest.mark.parametrize("shield", [False, True])
@pytest.mark.parametrize("acquire", [Client, connect, lambda: connect()])  # noqa: PLW0108
@pytest.mark.parametrize(("release", "expected"), [(Client.close, "close"), (Client.aclose, "aclose")])
async def test_acquire_takes_sync_and_async(acquire: Any, release: Any, expected: str, shield: bool) -> None:
    """`acquire` gives what it acquired, and `release` gets it, each sync or async."""
    async with Scope() as scope:
        client = await scope.acquire(acquire, release, shield=shield)

    assert client.log == [expected]


async def test_acquire_registers_what_it_gives() -> None:
    """The value is held from then on."""
    async with Scope() as scope:
        client = await scope.acquire(connect, Client.aclose)

        assert client in scope


async def test_acquire_passes_on_the_options() -> None:
    """`name`, `timeout` and `force` are those of the resource."""
    log: list[str] = []

    async def release(_: object) -> None:
        await anyio.sleep_forever()

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.acquire(connect, release, name="db", timeout=0.01, force=lambda: log.append("forced"))

    assert ([f.name for f in caught.value.failures], log) == (["db"], ["forced"])


@pytest.mark.parametrize("shield", [False, True])
async def test_acquire_that_fails_registers_nothing(shield: bool) -> None:
    """What `acquire` raises is raised, and nothing is held."""

    async def refused() -> Client:
        await anyio.lowlevel.checkpoint()
        raise ConnectionError

    async with Scope() as scope:
        with pytest.raises(ConnectionError):
            await scope.acquire(refused, Client.aclose, shield=shield)

        assert scope.size == 0


async def test_acquire_has_no_checkpoint_after_acquiring() -> None:
    """A cancellation that is due when `acquire` ends finds the resource registered."""
    async with Scope() as scope:
        with anyio.CancelScope() as cancel:

            async def acquire() -> Client:
                cancel.cancel()
                return Client()

            await scope.acquire(acquire, Client.aclose)

        assert scope.size == 1


async def test_acquire_is_cancelled_without_a_shield() -> None:
    """A cancellation cuts `acquire` short, and nothing is held."""
    async with Scope() as scope:
        with anyio.move_on_after(0):
            await scope.acquire(anyio.sleep_forever, print)

        assert scope.size == 0


async def test_shielded_acquire_ends_before_the_cancellation_goes_on() -> None:
    """With `shield` a cancellation waits for `acquire`, whose resource is then held."""
    log: list[str] = []

    async with Scope() as scope:
        with anyio.CancelScope() as cancel:

            async def acquire() -> Client:
                cancel.cancel()
                await anyio.lowlevel.checkpoint()
                log.append("acquired")
                return Client()

            await scope.acquire(acquire, Client.aclose, shield=True)
            log.append("went on")

        assert (log, scope.size, cancel.cancelled_caught) == (["acquired"], 1, True)


@pytest.mark.parametrize("shield", [False, True])
async def test_acquire_releases_what_comes_too_late(shield: bool) -> None:
    """Where the scope was closed meanwhile, the new resource is released, and the caller hears why."""
    client = Client()
    scope = Scope()

    async def acquire() -> Client:
        await scope.aclose()
        return client

    with pytest.raises(ScopeClosedError):
        await scope.acquire(acquire, Client.aclose, shield=shield)

    assert (client.log, scope.size) == (["aclose"], 0)


async def test_acquire_too_late_tells_a_failing_release() -> None:
    """A release that fails then is the cause of the `ScopeClosedError`."""
    scope = Scope()

    async def acquire() -> Client:
        await scope.aclose()
        return Client()

    with pytest.raises(ScopeClosedError) as caught:
        await scope.acquire(acquire, lambda _: 1 / 0)

    assert isinstance(caught.value.__cause__, ResourceCleanupError)


# enter


@pytest.mark.parametrize("kind", [AsyncManager, SyncManager])
async def test_enter_gives_what_the_manager_gives(kind: type[Any]) -> None:
    """`enter` gives what `as` would."""
    async with Scope() as scope:
        assert await scope.enter(kind("inside")) == "inside"


@pytest.mark.parametrize("kind", [AsyncManager, SyncManager])
async def test_enter_exits_when_the_scope_closes(kind: type[Any]) -> None:
    """A manager is exited with the scope, not before."""
    manager = kind()

    async with Scope() as scope:
        await scope.enter(manager)
        manager.log.append("body")

    assert manager.log == ["enter", "body", "exit"]


@pytest.mark.parametrize("kind", [AsyncManager, SyncManager])
async def test_an_entered_manager_sees_what_the_body_raised(kind: type[Any]) -> None:
    """The exit gets the body's exception, as in a `with` statement."""
    manager, error = kind(), ValueError()

    with pytest.raises(ValueError):  # noqa: PT011
        async with Scope() as scope:
            await scope.enter(manager)
            raise error

    assert manager.log == ["enter", error]


async def test_enter_runs_in_the_calling_task_and_context() -> None:
    """What a manager sets in the context is set for the body, and reset by its exit."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")

    @contextmanager
    def setting() -> Generator[None, None, None]:
        token = var.set("inside")
        yield
        var.reset(token)

    seen: list[str] = []
    async with Scope() as scope:
        await scope.enter(setting())
        seen.append(var.get())
    seen.append(var.get())

    assert seen == ["inside", "outside"]


async def test_enter_prefers_the_async_side() -> None:
    """A manager that is of both kinds is entered as an async one."""

    class Both(SyncManager, AsyncManager):
        async def __aenter__(self) -> object:
            self.log.append("async")
            return self.value

    manager = Both()

    async with Scope() as scope:
        await scope.enter(manager)

    assert manager.log == ["async", "exit"]


async def test_enter_looks_the_dunders_up_on_the_type() -> None:
    """An instance's own `__aenter__` is not what `async with` would call."""
    manager: Any = AsyncManager()
    manager.__aenter__ = manager.__aexit__ = nothing

    async with Scope() as scope:
        await scope.enter(manager)

    assert manager.log == ["enter", "exit"]


async def test_enter_that_fails_registers_nothing() -> None:
    """A manager that could not be entered is not exited."""
    async with Scope() as scope:
        with pytest.raises(ConnectionError):
            await scope.enter(failing_to_enter())

        assert scope.size == 0


async def test_several_managers_may_give_none() -> None:
    """Managers that give nothing are held, and exited, each."""
    log: list[object] = []

    async with Scope() as scope:
        await scope.enter(AsyncManager(None, log))
        await scope.enter(SyncManager(None, log))
        log.append(scope.size)

    assert log == ["enter", "enter", 2, "exit", "exit"]


async def test_enter_is_named_after_the_type() -> None:
    """The default name is the manager's type, not that of what it gives."""
    async with Scope() as scope:
        await scope.enter(AsyncManager())

        assert [handle.name for handle in scope.resources] == ["AsyncManager"]


async def test_enter_is_named_after_the_managers_function() -> None:
    """A manager made by `@contextmanager` is known by its function."""
    async with Scope() as scope:

        @contextmanager
        def chdir() -> Generator[None, None, None]:
            yield

        await scope.enter(chdir())

        assert scope.resources[0].name.endswith("chdir")


async def test_enter_takes_a_name() -> None:
    """A given name goes before the default."""
    async with Scope() as scope:
        await scope.enter(AsyncManager(), name="db")

        assert [handle.name for handle in scope.resources] == ["db"]


async def test_a_scope_can_be_entered_in_a_scope() -> None:
    """A scope is an async context manager like any other."""
    log: list[str] = []

    async with Scope() as outer:
        inner = await outer.enter(Scope())
        inner.defer(log.append, "inner")

    assert (log, inner.state) == (["inner"], "closed")


# host, host_all


async def test_host_gives_what_the_manager_gives() -> None:
    """`host` gives what `as` would."""
    async with Scope() as scope:
        assert await scope.host(AsyncManager("inside")) == "inside"


async def test_host_exits_when_the_scope_closes() -> None:
    """A hosted manager is exited with the scope, not before."""
    manager = AsyncManager()

    async with Scope() as scope:
        await scope.host(manager)
        manager.log.append("body")

    assert manager.log == ["enter", "body", "exit"]


async def test_host_may_be_closed_from_another_task() -> None:
    """A hosted task group is content, whichever task closes the scope."""
    scope = Scope()
    await scope.host(anyio.create_task_group())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)

    assert (scope.state, scope.cleanup_error) == ("closed", None)


async def test_hosts_may_be_closed_in_any_order() -> None:
    """Hosted task groups can be released first one first."""
    async with Scope() as scope:
        first = await scope.host(anyio.create_task_group())
        second = await scope.host(anyio.create_task_group())

        await scope.release(first)
        await scope.release(second)

        assert scope.size == 0


async def test_host_that_fails_registers_nothing() -> None:
    """What entering raises is raised, and nothing is held."""
    async with Scope() as scope:
        with pytest.raises(ConnectionError, match="refused"):
            await scope.host(failing_to_enter())

        assert scope.size == 0


async def test_host_that_is_cancelled_registers_nothing() -> None:
    """A cancellation of `host` cancels the entering."""
    log: list[str] = []

    @asynccontextmanager
    async def slow() -> AsyncGenerator[None, None]:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")
        yield

    async with Scope() as scope:
        with anyio.CancelScope() as cancel:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(scope.host, slow())
                await anyio.wait_all_tasks_blocked()
                cancel.cancel()

        assert (log, scope.size) == (["cancelled"], 0)


async def test_host_takes_a_name() -> None:
    """A given name goes before the default, the manager's type."""
    async with Scope() as scope:
        await scope.host(AsyncManager())
        await scope.host(AsyncManager(), name="db")

        assert [handle.name for handle in scope.resources] == ["AsyncManager", "db"]


async def test_host_is_bounded_by_its_timeout() -> None:
    """`timeout` bounds the exit."""

    @asynccontextmanager
    async def stuck() -> AsyncGenerator[None, None]:
        yield
        await anyio.sleep_forever()

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            await scope.host(stuck(), name="stuck", timeout=0.01)

    assert [(f.name, f.timed_out) for f in caught.value.failures] == [("stuck", True)]


async def test_host_too_late_exits_again() -> None:
    """Where the scope was closed meanwhile, the manager is exited, and the caller hears why."""
    scope = Scope()
    log: list[str] = []

    @asynccontextmanager
    async def closing() -> AsyncGenerator[None, None]:
        await scope.aclose()
        try:
            yield
        finally:
            log.append("exited")

    with pytest.raises(ScopeClosedError):
        await scope.host(closing())

    assert (log, scope.size) == (["exited"], 0)


async def test_host_all_gives_a_tuple_in_order() -> None:
    """What the managers give comes in the order in which they were passed."""
    async with Scope() as scope:
        assert await scope.host_all(AsyncManager("a"), AsyncManager("b")) == ("a", "b")


async def test_host_all_of_nothing_gives_nothing() -> None:
    """No managers, an empty tuple."""
    async with Scope() as scope:
        assert await scope.host_all() == ()


async def test_host_all_enters_at_once() -> None:
    """The managers are entered concurrently: each may wait for the other."""
    one, other = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def meeting(mine: anyio.Event, theirs: anyio.Event) -> AsyncGenerator[str, None]:
        mine.set()
        await theirs.wait()
        yield "met"

    async with Scope() as scope:
        assert await scope.host_all(meeting(one, other), meeting(other, one)) == ("met", "met")


async def test_host_all_holds_all_of_them() -> None:
    """Each manager is a resource of its own, in the order in which they were passed."""
    async with Scope() as scope:
        await scope.host_all(AsyncManager("a"), AsyncManager("b"))

        assert [handle.value for handle in scope.resources] == ["a", "b"]


async def test_host_all_keeps_none_where_one_fails() -> None:
    """If one can't be entered, the others are exited, and it is raised."""
    log: list[object] = []

    async with Scope() as scope:
        with pytest.raises(ConnectionError, match="refused") as caught:
            await scope.host_all(AsyncManager("a", log), failing_to_enter(), AsyncManager("c", log))

        assert (scope.size, log) == (0, ["enter", "enter", caught.value, caught.value])


async def test_host_all_cancels_those_that_still_enter() -> None:
    """If one can't be entered, those that are not inside yet are not waited for."""
    log: list[str] = []

    @asynccontextmanager
    async def slow() -> AsyncGenerator[None, None]:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")
        yield

    async with Scope() as scope:
        with pytest.raises(ConnectionError):
            await scope.host_all(slow(), failing_to_enter())

    assert log == ["cancelled"]


# defer, on_error, on_success, on_exit


async def test_defer_passes_its_arguments() -> None:
    """The function gets the arguments, positional and by keyword."""
    calls: list[object] = []

    def call(*args: object, **kwargs: object) -> None:
        calls.append((args, kwargs))

    async with Scope() as scope:
        scope.defer(call, 1, 2, key=3)

    assert calls == [((1, 2), {"key": 3})]


async def test_defer_awaits_an_async_function() -> None:
    """The function may be async, with arguments too."""
    log: list[int] = []

    async def call(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(number)

    async with Scope() as scope:
        scope.defer(call, 1)

    assert log == [1]


async def test_defer_gives_a_handle_without_a_value() -> None:
    """The handle has the function's name and no value."""
    async with Scope() as scope:
        handle = scope.defer(print, "x", end="")
        scope.detach(handle)

    assert (handle.value, handle.name) == (None, "print")


@pytest.mark.parametrize("register", ["defer", "on_error", "on_success"])
@pytest.mark.parametrize("keyword", ["self", "fn", "scope", "name", "args", "when"])
async def test_callbacks_may_take_any_keyword(register: str, keyword: str) -> None:
    """No keyword of a callback clashes with a parameter of ours."""
    calls: list[object] = []

    def call(**kwargs: object) -> None:
        calls.append(kwargs)

    with pytest.raises(ValueError) if register == "on_error" else Nothing():  # noqa: PT011
        async with Scope() as scope:
            getattr(scope, register)(call, **{keyword: 1})
            if register == "on_error":
                raise ValueError

    assert calls == [{keyword: 1}]


class Nothing:
    """A manager that does nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def register_all(scope: Scope, log: list[object]) -> None:
    """Register one callback of each kind."""
    scope.on_exit(log.append)
    scope.on_success(log.append, "success")
    scope.on_error(log.append, "error")
    scope.defer(log.append, "always")


async def test_callbacks_of_a_body_that_succeeded() -> None:
    """`on_success` runs, `on_error` does not, `on_exit` gets `Ok(None)`."""
    log: list[object] = []

    async with Scope() as scope:
        register_all(scope, log)

    assert log == ["always", "success", Ok(None)]


async def test_callbacks_of_a_body_that_raised() -> None:
    """`on_error` runs, `on_success` does not, `on_exit` gets the `Err` of what was raised."""
    log: list[object] = []
    error = ValueError()

    with pytest.raises(ValueError):  # noqa: PT011
        async with Scope() as scope:
            register_all(scope, log)
            raise error

    assert log == ["always", "error", Err(error)]


async def test_callbacks_of_a_body_that_was_cancelled() -> None:
    """A cancelled body counts as failed."""
    log: list[object] = []

    with anyio.CancelScope() as cancel:
        async with Scope() as scope:
            scope.on_success(log.append, "success")
            scope.on_error(log.append, "error")
            cancel.cancel()
            await anyio.sleep_forever()

    assert log == ["error"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_callbacks_of_a_body_that_was_interrupted(kind: type[BaseException]) -> None:
    """An interrupted body counts as failed."""
    log: list[object] = []

    with pytest.raises(kind):
        async with Scope() as scope:
            scope.on_success(log.append, "success")
            scope.on_error(log.append, "error")
            raise kind

    assert log == ["error"]


async def test_callbacks_of_a_scope_closed_by_hand() -> None:
    """`aclose` counts as success."""
    log: list[object] = []
    scope = Scope()
    register_all(scope, log)

    await scope.aclose()

    assert log == ["always", "success", Ok(None)]


async def test_callbacks_that_are_released() -> None:
    """`release` closes as on success: `on_success` runs, `on_error` doesn't, `on_exit` gets `Ok(None)`."""
    log: list[object] = []

    async with Scope() as scope:
        register_all(scope, log)
        for handle in scope.resources:
            await scope.release(handle)

    assert log == [Ok(None), "success", "always"]


async def test_async_callbacks_are_awaited() -> None:
    """`on_success` and `on_exit` take async functions too."""
    log: list[object] = []

    async def call(what: object) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(what)

    async with Scope() as scope:
        scope.on_exit(call)
        scope.on_success(call, "success")

    assert log == ["success", Ok(None)]


async def test_a_callback_that_does_not_apply_closes_too() -> None:
    """An `on_error` of a body that succeeded is closed without being called."""
    async with Scope() as scope:
        handle = scope.on_error(pytest.fail)

    assert handle.state == "closed"


async def test_callbacks_are_named_after_their_function() -> None:
    """The default name is the function's."""
    async with Scope() as scope:
        handles = [scope.on_error(print, "x"), scope.on_success(nothing), scope.on_exit(repr)]

    assert [handle.name for handle in handles] == ["print", "nothing", "repr"]


# child


async def test_a_child_is_closed_by_its_parent() -> None:
    """Closing the parent closes the child."""
    log: list[str] = []

    async with Scope() as parent:
        child = parent.child()
        child.defer(log.append, "child")

    assert (log, child.state) == (["child"], "closed")


async def test_a_child_is_closed_at_its_place() -> None:
    """A child stands in the parent's LIFO order like any resource."""
    log: list[str] = []

    async with Scope() as parent:
        parent.defer(log.append, "first")
        parent.child().defer(log.append, "second")
        parent.defer(log.append, "third")

    assert log == ["third", "second", "first"]


async def test_a_child_closed_first_is_off_the_parent() -> None:
    """A long-lived parent stays small."""
    async with Scope() as parent:
        child = parent.child()

        await child.aclose()

        assert (parent.size, child in parent) == (0, False)


async def test_a_child_in_its_own_block_is_off_the_parent() -> None:
    """`async with parent.child()` closes at the end of its block."""
    async with Scope() as parent:
        async with parent.child() as child:
            child.defer(nothing)

        assert (parent.size, child.state) == (0, "closed")


async def test_a_child_that_is_released_is_closed() -> None:
    """The parent can release a child like any value."""
    async with Scope() as parent:
        child = parent.child()

        await parent.release(child)

        assert (parent.size, child.state) == (0, "closed")


async def test_a_child_that_was_detached_outlives_its_parent() -> None:
    """A detached child is the caller's."""
    async with Scope() as parent:
        child = parent.child()
        child.defer(nothing)
        parent.detach(child)

    state = child.state
    await child.aclose()
    assert state == "open"


async def test_a_detached_child_may_be_added_elsewhere() -> None:
    """The handle of a child can move to another parent, which closes it."""
    async with Scope() as second:
        async with Scope() as first:
            child = first.child()
            second.add(first.detach(child))

        state = child.state

    assert (state, child.state) == ("open", "closed")


async def test_a_child_gets_the_parents_outcome() -> None:
    """Callbacks of a child see how the parent's body ended."""
    log: list[object] = []
    error = ValueError()

    with pytest.raises(ValueError):  # noqa: PT011
        async with Scope() as parent:
            register_all(parent.child(), log)
            raise error

    assert log == ["always", "error", Err(error)]


async def test_a_child_has_a_name() -> None:
    """A child is held, and reported, under its name."""
    async with Scope() as parent:
        children = [parent.child("inner"), parent.child()]

        assert ([c.name for c in children], [h.name for h in parent.resources]) == (
            ["inner", None],
            ["inner", "scope"],
        )


async def test_a_child_closes_concurrently_if_asked() -> None:
    """`concurrent` is the child's own."""
    one, other = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, theirs: anyio.Event) -> None:
        mine.set()
        await theirs.wait()

    async with Scope() as parent:
        child = parent.child(concurrent=True)
        child.defer(meet, one, other)
        child.defer(meet, other, one)

    assert (one.is_set(), other.is_set()) == (True, True)


async def test_a_child_is_bounded_by_its_grace() -> None:
    """`grace` is the child's own."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as parent:
            parent.child("inner", grace=0.01).defer(anyio.sleep_forever)

    inner = caught.value.exceptions[0]
    assert [f.timed_out for f in inner.failures] == [True]  # type: ignore[union-attr]


async def test_a_grandchild_is_closed_too() -> None:
    """Scopes nest to any depth."""
    log: list[str] = []

    async with Scope() as parent:
        parent.child().child().defer(log.append, "grandchild")

    assert log == ["grandchild"]


# Looking


async def test_a_scope_has_its_name() -> None:
    """`name` is what it was given, or `None`."""
    assert (Scope("orders").name, Scope().name) == ("orders", None)


async def test_a_scope_is_always_truthy() -> None:
    """However empty."""
    scope = Scope()
    empty = bool(scope)
    async with scope:
        scope.defer(nothing)

    assert (empty, bool(scope)) == (True, True)


async def test_size_counts_what_is_held() -> None:
    """Each registration counts, also of the same value."""
    client = Client()

    async with Scope() as scope:
        scope.add(client)
        scope.add(client)
        scope.add(None, nothing)
        scope.child()

        assert scope.size == 4


async def test_size_is_0_afterwards() -> None:
    """A closed scope holds nothing."""
    async with Scope() as scope:
        scope.defer(nothing)

    assert (scope.size, scope.resources) == (0, ())


async def test_resources_are_in_order_of_registration() -> None:
    """`resources` is a tuple of the handles, first registered first."""
    async with Scope() as scope:
        handles = (scope.defer(nothing), scope.on_error(nothing), scope.defer(nothing))

        assert scope.resources == handles


async def test_has_finds_a_handle() -> None:
    """A handle is held until it is closed or detached."""
    async with Scope() as scope:
        handle = scope.defer(nothing)

        assert (scope.has(handle), handle in scope) == (True, True)


async def test_has_finds_a_value_by_identity() -> None:
    """An equal value is another one."""
    value, equal = [1], [1]

    async with Scope() as scope:
        scope.add(value, nothing)

        assert (scope.has(value), scope.has(equal)) == (True, False)


async def test_has_finds_what_is_not_hashable_and_compares_nothing() -> None:
    """Looking up a value asks nothing of it."""

    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError

    odd = Odd()
    async with Scope() as scope:
        scope.add(odd, nothing)

        assert odd in scope


async def test_has_does_not_find_none() -> None:
    """Any number of registrations may have no value: `None` finds none of them."""
    async with Scope() as scope:
        scope.add(None, nothing)

        assert scope.has(None) is False


async def test_has_does_not_find_a_handle_of_another_scope() -> None:
    """A handle is found where it is held."""
    async with Scope() as scope, Scope() as other:
        handle = other.defer(nothing)

        assert handle not in scope


async def test_has_finds_nothing_afterwards() -> None:
    """A closed scope holds nothing."""
    client = Client()
    async with Scope() as scope:
        scope.add(client)
        handle = scope.resources[0]

    assert (client in scope, handle in scope) == (False, False)


async def test_the_state_goes_from_open_to_closed() -> None:
    """`state` is `open`, then `closing` before the first closer runs, then `closed`."""
    scope = Scope()
    states: list[str] = [scope.state]
    async with scope:
        scope.defer(lambda: states.append(scope.state))
    states.append(scope.state)

    assert states == ["open", "closing", "closed"]


async def test_the_outcome_is_none_while_open() -> None:
    """Nobody knows yet."""
    async with Scope() as scope:
        assert scope.outcome is None


async def test_the_outcome_is_known_to_closers() -> None:
    """While closing, `outcome` tells how the body ended."""
    seen: list[object] = []

    async with Scope() as scope:
        scope.defer(lambda: seen.append(scope.outcome))

    assert seen == [Ok(None)]


async def test_the_outcome_of_a_body_that_raised() -> None:
    """`outcome` is the `Err` of what the body raised."""
    error = ValueError()

    with pytest.raises(ValueError):  # noqa: PT011
        async with Scope() as scope:
            raise error

    assert scope.outcome == Err(error)


async def test_the_outcome_is_the_bodys_though_cleanup_failed() -> None:
    """A failing cleanup does not change how the body ended."""
    error = ValueError()

    with pytest.raises(ResourceCleanupError):
        async with Scope() as scope:
            scope.defer(lambda: 1 / 0)
            raise error

    assert scope.outcome == Err(error)


async def test_there_is_no_cleanup_error_where_all_went_well() -> None:
    """`cleanup_error` is `None` while open, and after a clean close."""
    async with Scope() as scope:
        before = scope.cleanup_error

    assert (before, scope.cleanup_error) == (None, None)


async def test_the_cleanup_error_is_the_one_that_was_raised() -> None:
    """`cleanup_error` keeps what failed."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(lambda: 1 / 0)

    assert scope.cleanup_error is caught.value


async def test_repr_tells_name_state_and_size() -> None:
    """The `repr` is what a person wants to see in a debugger."""
    async with Scope("orders") as scope:
        scope.defer(nothing)
        shown = repr(scope)

    assert (shown, repr(scope), repr(Scope())) == (
        "<Scope 'orders' open, holds 1>",
        "<Scope 'orders' closed, holds 0>",
        "<Scope open, holds 0>",
    )


# release


async def test_release_closes_a_value_now() -> None:
    """`release` closes one, and takes it off."""
    async with Scope() as scope:
        client = scope.add(Client())

        await scope.release(client)

        assert (client.log, scope.size) == (["aclose"], 0)


async def test_release_takes_a_handle() -> None:
    """A handle is found where a value can't be."""
    log: list[str] = []

    async with Scope() as scope:
        handle = scope.defer(log.append, "released")

        await scope.release(handle)

        assert (log, handle.state) == (["released"], "closed")


async def test_release_closes_once() -> None:
    """What was released is not closed with the scope."""
    async with Scope() as scope:
        client = scope.add(Client())
        await scope.release(client)

    assert client.log == ["aclose"]


async def test_release_leaves_the_others() -> None:
    """The order of the others stays."""
    log: list[int] = []

    async with Scope() as scope:
        handles = [scope.defer(log.append, number) for number in range(4)]
        await scope.release(handles[1])

    assert log == [1, 3, 2, 0]


async def test_release_of_a_value_registered_twice_closes_the_latest() -> None:
    """Each `release` closes one registration, the latest first."""
    value = object()
    log: list[str] = []

    async with Scope() as scope:
        scope.add(value, lambda: log.append("first"))
        scope.add(value, lambda: log.append("second"))
        await scope.release(value)
        between = (list(log), value in scope)
        await scope.release(value)

    assert (between, log) == ((["second"], True), ["second", "first"])


async def test_release_raises_a_failure() -> None:
    """A failing closer is raised as `ResourceCleanupError`, and the resource is off."""
    async with Scope() as scope:
        handle = scope.defer(lambda: 1 / 0)
        with pytest.raises(ResourceCleanupError) as caught:
            await scope.release(handle)

        assert ([type(e) for e in caught.value.exceptions], scope.size) == ([ZeroDivisionError], 0)


async def test_release_of_what_is_not_held_is_a_key_error() -> None:
    """An unknown value, or a handle of another scope, is not held."""
    async with Scope() as scope:
        for unknown in (object(), None, Resource(1, nothing)):
            with pytest.raises(KeyError):
                await scope.release(unknown)

        assert scope.size == 0


async def test_release_of_a_closed_handle_is_nothing() -> None:
    """What is closed already needs no release."""
    async with Scope() as scope:
        handle = scope.defer(nothing)
        await scope.release(handle)

        assert await scope.release(handle) is None  # type: ignore[func-returns-value]


async def test_release_of_a_released_value_is_a_key_error() -> None:
    """A value that is gone is not held."""
    async with Scope() as scope:
        client = scope.add(Client())
        await scope.release(client)

        with pytest.raises(KeyError):
            await scope.release(client)


async def test_release_on_a_closed_scope() -> None:
    """After the scope, its values are not held, and its handles are closed."""
    async with Scope() as scope:
        client = scope.add(Client())
        handle = scope.resources[0]

    await scope.release(handle)
    with pytest.raises(KeyError):
        await scope.release(client)
    assert client.log == ["aclose"]


async def test_release_twice_at_once_closes_once() -> None:
    """Overlapping `release`s of a handle: one closes, the other waits."""
    began, go_on = anyio.Event(), anyio.Event()
    log: list[str] = []

    async def close() -> None:
        began.set()
        await go_on.wait()
        log.append("closed")

    async with Scope() as scope:
        handle = scope.defer(close)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, handle)
            await began.wait()
            tasks.start_soon(scope.release, handle)
            await anyio.wait_all_tasks_blocked()
            go_on.set()

    assert log == ["closed"]


async def test_the_scope_waits_for_a_release_under_way() -> None:
    """A scope that closes waits for what is being released from it."""
    began, go_on = anyio.Event(), anyio.Event()
    log: list[str] = []

    async def close() -> None:
        began.set()
        await go_on.wait()
        log.append("released")

    scope = Scope()
    handle = scope.defer(close)

    async def close_scope() -> None:
        await scope.aclose()
        log.append("scope closed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.release, handle)
        await began.wait()
        tasks.start_soon(close_scope)
        await anyio.wait_all_tasks_blocked()
        go_on.set()

    assert log == ["released", "scope closed"]


# detach


async def test_detach_does_not_close() -> None:
    """What is detached is the caller's to close."""
    async with Scope() as scope:
        client = scope.add(Client())
        scope.detach(client)

    assert client.log == []


async def test_detach_gives_the_handle() -> None:
    """`detach` gives what the scope held it by, now `detached`."""
    async with Scope() as scope:
        client = scope.add(Client())
        (held,) = scope.resources
        handle = scope.detach(client)

        assert (handle is held, handle.state, scope.size) == (True, "detached", 0)


async def test_a_detached_handle_closes_by_itself() -> None:
    """The caller closes what it has taken back."""
    async with Scope() as scope:
        client = scope.add(Client())
        handle = scope.detach(client)

    await handle.aclose()

    assert (client.log, handle.state) == (["aclose"], "closed")


async def test_a_detached_handle_may_be_added_elsewhere() -> None:
    """Another scope takes over."""
    async with Scope() as other:
        async with Scope() as scope:
            client = scope.add(Client())
            other.add(scope.detach(client))
        between = list(client.log)

    assert (between, client.log) == ([], ["aclose"])


async def test_a_handle_that_was_added_again_is_open() -> None:
    """Detached is a state of nobody's."""
    async with Scope() as scope:
        handle = scope.detach(scope.defer(nothing))
        scope.add(handle)

        assert handle.state == "open"


async def test_detach_of_a_value_registered_twice_takes_the_latest() -> None:
    """Of a value registered twice, the latest is forgotten."""
    value = object()
    log: list[str] = []

    async with Scope() as scope:
        scope.add(value, lambda: log.append("first"))
        scope.add(value, lambda: log.append("second"))
        scope.detach(value)

    assert log == ["first"]


async def test_detach_of_what_is_not_held_is_a_key_error() -> None:
    """An unknown value, or a handle of another scope, is not held."""
    async with Scope() as scope:
        for unknown in (object(), None, Resource(1, nothing)):
            with pytest.raises(KeyError):
                scope.detach(unknown)

        assert scope.size == 0


async def test_detach_of_a_released_handle_is_a_key_error() -> None:
    """What is closed can't be the caller's again."""
    async with Scope() as scope:
        handle = scope.defer(nothing)
        await scope.release(handle)

        with pytest.raises(KeyError):
            scope.detach(handle)


async def test_detach_works_for_a_host() -> None:
    """A hosted manager can be handed over too."""
    manager = AsyncManager()

    async with Scope() as other:
        async with Scope() as scope:
            await scope.host(manager)
            other.add(scope.detach(scope.resources[0]))
        manager.log.append("between")

    assert manager.log == ["enter", "between", "exit"]


async def test_detach_works_for_an_entered_manager() -> None:
    """An entered manager can be handed over within its task."""
    manager = AsyncManager()

    async with Scope() as other:
        async with Scope() as scope:
            await scope.enter(manager)
            other.add(scope.detach(scope.resources[0]))
        manager.log.append("between")

    assert manager.log == ["enter", "between", "exit"]


async def test_detach_keeps_the_condition_of_a_callback() -> None:
    """An `on_error` that moved still runs only on failure."""
    log: list[str] = []

    async with Scope() as other, Scope() as scope:
        other.add(scope.detach(scope.on_error(log.append, "error")))
        other.add(scope.detach(scope.on_success(log.append, "success")))

    assert log == ["success"]


# move


async def test_move_hands_all_over() -> None:
    """The new scope holds the same handles, in the same order, and closes them."""
    log: list[int] = []

    async with Scope() as scope:
        handles = tuple(scope.defer(log.append, number) for number in range(3))
        moved = scope.move()
        held = (scope.size, moved.resources == handles)
    between = list(log)
    await moved.aclose()

    assert (held, between, log) == ((0, True), [], [2, 1, 0])


async def test_move_leaves_a_usable_scope() -> None:
    """The old scope is open, and closes what it holds afterwards."""
    log: list[str] = []

    async with Scope() as scope:
        moved = scope.move()
        scope.defer(log.append, "later")
    await moved.aclose()

    assert log == ["later"]


async def test_move_gives_an_open_scope_with_the_same_name() -> None:
    """The new scope has the name of the old one."""
    scope = Scope("orders")
    moved = scope.move()

    assert (moved is scope, moved.name, moved.state) == (False, "orders", "open")


async def test_move_keeps_the_mode() -> None:
    """What was handed over by a concurrent scope closes concurrently."""
    one, other = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, theirs: anyio.Event) -> None:
        mine.set()
        await theirs.wait()

    scope = Scope(concurrent=True)
    scope.defer(meet, one, other)
    scope.defer(meet, other, one)
    await scope.move().aclose()

    assert (one.is_set(), other.is_set()) == (True, True)


async def test_move_keeps_the_grace() -> None:
    """What was handed over is bounded as before."""
    scope = Scope(grace=0.01)
    scope.defer(anyio.sleep_forever)

    with pytest.raises(ResourceCleanupError) as caught:
        await scope.move().aclose()

    assert [f.timed_out for f in caught.value.failures] == [True]


async def test_moved_handles_belong_to_the_new_scope() -> None:
    """Release, detach and look-up work where the handle is now, and only there."""
    value = object()
    scope = Scope()
    scope.add(value, nothing)
    moved = scope.move()
    found = (value in scope, value in moved, moved.resources[0] in moved)

    await moved.release(value)

    assert (found, moved.size) == ((False, True, True), 0)


async def test_a_moved_child_is_closed_by_the_new_scope() -> None:
    """Children go along; closing one takes it off the new parent."""
    scope = Scope()
    first, second = scope.child(), scope.child()
    moved = scope.move()
    await first.aclose()
    left = moved.size

    await moved.aclose()

    assert (left, second.state) == (1, "closed")


async def test_move_out_of_a_block_keeps_what_was_opened() -> None:
    """The usual way to give away what a block has opened."""

    async def open_client() -> tuple[Client, Scope]:
        async with Scope() as scope:
            client = scope.add(Client())
            return client, scope.move()

    client, owner = await open_client()
    between = list(client.log)
    await owner.aclose()

    assert (between, client.log) == ([], ["aclose"])


@pytest.mark.parametrize("when", ["closing", "closed"])
async def test_move_of_a_scope_that_is_not_open(when: str) -> None:
    """What is being closed, or was, can't be handed over."""
    raised: list[type[Exception]] = []

    def move() -> None:
        try:
            scope.move()
        except ScopeClosedError as error:
            raised.append(type(error))

    async with Scope() as scope:
        if when == "closing":
            scope.defer(move)
    if when == "closed":
        move()

    assert raised == [ScopeClosedError]


# aclose, and the manual form


async def test_aclose_closes_all() -> None:
    """The manual form: register at once, and close in a `finally`."""
    scope = Scope()
    client = scope.add(Client())

    await scope.aclose()

    assert (client.log, scope.state) == (["aclose"], "closed")


async def test_aclose_is_idempotent() -> None:
    """Closing twice closes once."""
    scope = Scope()
    client = scope.add(Client())

    await scope.aclose()
    await scope.aclose()

    assert client.log == ["aclose"]


async def test_aclose_of_an_empty_scope() -> None:
    """Nothing held is nothing to do."""
    scope = Scope()

    await scope.aclose()

    assert (scope.state, scope.outcome) == ("closed", Ok(None))


async def test_aclose_inside_its_block() -> None:
    """A body may close its scope early; the end of the block finds nothing to do."""
    async with Scope() as scope:
        client = scope.add(Client())
        await scope.aclose()
        early = list(client.log)

    assert (early, client.log) == (["aclose"], ["aclose"])


async def test_a_failure_of_an_early_aclose_is_raised_once() -> None:
    """The failure goes to the one that closed, and not to the end of the block as well."""
    async with Scope() as scope:
        scope.defer(lambda: 1 / 0)
        with pytest.raises(ResourceCleanupError):
            await scope.aclose()

    assert scope.state == "closed"


async def test_a_body_that_raises_after_an_early_aclose() -> None:
    """What the body raises is raised, also where its scope is closed already."""
    with pytest.raises(ValueError, match="body"):
        async with Scope() as scope:
            await scope.aclose()
            msg = "body"
            raise ValueError(msg)

    assert scope.outcome == Ok(None)


def test_a_scope_may_be_made_outside_any_loop() -> None:
    """Making a scope, registering and detaching need no running loop."""
    scope = Scope("orders", on_event=repr)
    handles = [scope.defer(nothing_async), scope.child("inner").defer(nothing), scope.on_error(nothing)]
    size = scope.size
    for handle in scope.resources:
        if isinstance(handle.value, Scope):
            handle.value.detach(handles[1])
        scope.detach(handle)

    assert (size, [handle.state for handle in handles]) == (3, ["detached"] * 3)


async def test_dropping_an_open_scope_warns() -> None:
    """A scope left open tells what it held."""
    scope = Scope("orders")
    scope.add(Client(), nothing, name="db")
    scope.defer(nothing)

    with pytest.warns(ResourceWarning, match="'orders'.*db, nothing"):
        del scope


def test_dropping_an_empty_scope_is_fine() -> None:
    """A scope that holds nothing has nothing to lose."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Scope("orders")
        gc.collect()

    assert seen == []
