"""Misuse raises at the call, with the mend in the message, and leaves nothing behind."""

# What a type checker would refuse is what this is about.
# mypy: disable-error-code="arg-type, call-arg, call-overload, return-value"

from __future__ import annotations

import inspect
import re
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from rescope import Resource, Scope, ScopeClosedError, create_resource, scoped, with_scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator

ACQUIRED: list[str] = []
COROUTINES: list[Coroutine[Any, Any, Any]] = []


class Client:
    """Something to close, that is a context manager too."""

    async def __aenter__(self) -> Client:
        ACQUIRED.append("entered")
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def aclose(self) -> None:
        """Close it."""


@asynccontextmanager
async def session() -> AsyncGenerator[str, None]:
    """An async context manager."""
    ACQUIRED.append("entered")
    yield "session"


@contextmanager
def chdir() -> Generator[str, None, None]:
    """A sync context manager."""
    ACQUIRED.append("entered")
    yield "directory"


async def undecorated() -> AsyncGenerator[None, None]:
    """An async generator function that was meant to be a context manager."""
    ACQUIRED.append("entered")
    yield


async def connect() -> Client:
    """Make a client."""
    ACQUIRED.append("connected")
    return Client()


async def kill() -> None:
    """A `force` that is async by mistake."""


def nothing(*_: object) -> None:
    """Close nothing."""


def called(fn: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Call an async function where the function itself was meant, and remember the coroutine."""
    COROUTINES.append(fn())
    return COROUTINES[-1]


@pytest.fixture(autouse=True)
def clean_record() -> Iterator[None]:
    """Begin with nothing acquired, and leave no coroutine to warn in another test."""
    ACQUIRED.clear()
    COROUTINES.clear()
    yield
    for coroutine in COROUTINES:
        coroutine.close()


async def misuse(call: Callable[[], object], kind: type[Exception]) -> str:
    """Make the call, await what it gives, and give the message of the error."""
    with pytest.raises(kind) as caught:
        result: Any = call()
        if hasattr(result, "__await__"):
            await result
    return str(caught.value)


# A way to misuse a scope, the error, and the mend that its message must tell.
Misuse = tuple["Callable[[Any], object]", type[Exception], str]

CALLERS: dict[str, Misuse] = {
    "add: no closer to be found": (lambda s: s.add(object()), TypeError, "object has neither.*pass `close=`"),
    "add: None without a closer": (lambda s: s.add(None), TypeError, "NoneType has neither.*pass `close=`"),
    "add: a closer that is none": (lambda s: s.add(1, 2), TypeError, "`close` must be callable, not a int"),
    "add: a closer that was called": (
        lambda s: s.add(1, called(kill)),
        TypeError,
        "coroutine kill.*without calling it",
    ),
    "add: a coroutine": (lambda s: s.add(called(connect)), TypeError, "coroutine connect.*await it first.*acquire"),
    "add: a coroutine with a closer": (lambda s: s.add(called(connect), nothing), TypeError, "await it first"),
    "add: a class": (lambda s: s.add(Client), TypeError, "Client is a class: add an instance"),
    "add: a sync manager": (lambda s: s.add(chdir()), TypeError, "context manager: use `await scope.enter"),
    "add: an async manager": (lambda s: s.add(session()), TypeError, "context manager: use `await scope.enter"),
    "add: a manager's function": (lambda s: s.add(session), TypeError, "session is a function: call it"),
    "add: a name that is no text": (lambda s: s.add(1, nothing, name=1), TypeError, "`name` must be a string"),
    "add: a negative timeout": (lambda s: s.add(1, nothing, timeout=-1), ValueError, "`timeout` must not be negative"),
    "add: a timeout of NaN": (lambda s: s.add(1, nothing, timeout=float("nan")), ValueError, "`timeout` must not be"),
    "add: a timeout that is no number": (lambda s: s.add(1, nothing, timeout="5"), TypeError, "number of seconds"),
    "add: a timeout of True": (lambda s: s.add(1, nothing, timeout=True), TypeError, "number of seconds"),
    "add: a force that is none": (lambda s: s.add(1, nothing, force=2), TypeError, "`force` must be callable"),
    "add: a force that was called": (lambda s: s.add(1, nothing, force=called(kill)), TypeError, "without calling it"),
    "add: a force that is async": (lambda s: s.add(1, nothing, force=kill), TypeError, "`force` must be sync"),
    "add: a resource with a closer": (lambda s: s.add(Resource(1, nothing), nothing), TypeError, "to the `Resource`"),
    "add: a resource with options": (lambda s: s.add(Resource(1, nothing), name="x"), TypeError, "to the `Resource`"),
    "acquire: none": (lambda s: s.acquire(1, nothing), TypeError, "`acquire` must be callable"),
    "acquire: one that was called": (lambda s: s.acquire(called(connect), nothing), TypeError, "without calling it"),
    "acquire: no release": (lambda s: s.acquire(connect, 1), TypeError, "`release` must be callable"),
    "acquire: a release that was called": (lambda s: s.acquire(connect, called(kill)), TypeError, "without calling it"),
    "acquire: a negative timeout": (lambda s: s.acquire(connect, nothing, timeout=-1), ValueError, "`timeout`"),
    "acquire: a name that is no text": (lambda s: s.acquire(connect, nothing, name=1), TypeError, "`name`"),
    "acquire: a force that is async": (lambda s: s.acquire(connect, nothing, force=kill), TypeError, "must be sync"),
    "enter: no manager": (lambda s: s.enter(1), TypeError, "expected a context manager, got a int"),
    "enter: None": (lambda s: s.enter(None), TypeError, "expected a context manager, got a NoneType"),
    "enter: a manager's function": (lambda s: s.enter(session), TypeError, "function session: call it"),
    "enter: a sync manager's function": (lambda s: s.enter(chdir), TypeError, "function chdir: call it"),
    "enter: a coroutine": (lambda s: s.enter(called(connect)), TypeError, "coroutine connect.*await it first"),
    "enter: a class": (lambda s: s.enter(Client), TypeError, "class Client: make an instance"),
    "enter: an async generator function": (lambda s: s.enter(undecorated), TypeError, "asynccontextmanager"),
    "enter: an async generator": (lambda s: s.enter(undecorated()), TypeError, "asynccontextmanager"),
    "enter: a name that is no text": (lambda s: s.enter(session(), name=1), TypeError, "`name` must be a string"),
    "host: no manager": (lambda s: s.host(1), TypeError, "expected an async context manager, got a int"),
    "host: a sync manager": (lambda s: s.host(chdir()), TypeError, "the sync one.*use `await scope.enter"),
    "host: a manager's function": (lambda s: s.host(session), TypeError, "function session: call it"),
    "host: a coroutine": (lambda s: s.host(called(connect)), TypeError, "coroutine connect.*await it first"),
    "host: a class": (lambda s: s.host(Client), TypeError, "class Client: make an instance"),
    "host: an async generator function": (lambda s: s.host(undecorated), TypeError, "asynccontextmanager"),
    "host: a negative timeout": (lambda s: s.host(session(), timeout=-1), ValueError, "`timeout`"),
    "host: a name that is no text": (lambda s: s.host(session(), name=1), TypeError, "`name` must be a string"),
    "host_all: one that is no manager": (lambda s: s.host_all(session(), 1), TypeError, "got a int"),
    "host_all: a list": (lambda s: s.host_all([session()]), TypeError, "got a list"),
    "defer: no function": (lambda s: s.defer(1), TypeError, "`fn` must be callable, not a int"),
    "defer: one that was called": (lambda s: s.defer(called(kill)), TypeError, "coroutine kill.*without calling it"),
    "on_error: no function": (lambda s: s.on_error(1), TypeError, "`fn` must be callable"),
    "on_error: one that was called": (lambda s: s.on_error(called(kill)), TypeError, "without calling it"),
    "on_success: no function": (lambda s: s.on_success(None), TypeError, "`fn` must be callable"),
    "on_success: one that was called": (lambda s: s.on_success(called(kill)), TypeError, "without calling it"),
    "on_exit: no function": (lambda s: s.on_exit(1), TypeError, "`fn` must be callable"),
    "on_exit: one that was called": (lambda s: s.on_exit(called(kill)), TypeError, "without calling it"),
    "child: a negative grace": (lambda s: s.child(grace=-1), ValueError, "`grace` must not be negative"),
    "child: a grace that is no number": (lambda s: s.child(grace="5"), TypeError, "number of seconds"),
    "child: a name that is no text": (lambda s: s.child(1), TypeError, "`name` must be a string"),
    "release: a stranger": (lambda s: s.release(object()), KeyError, "does not hold that object"),
    "release: a strange handle": (lambda s: s.release(Resource(1, nothing, name="db")), KeyError, "not hold db"),
    "detach: a stranger": (lambda s: s.detach(object()), KeyError, "does not hold that object"),
    "detach: a strange handle": (lambda s: s.detach(Resource(1, nothing, name="db")), KeyError, "not hold db"),
}
FREE: dict[str, Misuse] = {
    "Scope: a negative grace": (lambda _: Scope(grace=-0.1), ValueError, "`grace` must not be negative"),
    "Scope: a grace of NaN": (lambda _: Scope(grace=float("nan")), ValueError, "`grace` must not be"),
    "Scope: a grace that is no number": (lambda _: Scope(grace="5"), TypeError, "number of seconds"),
    "Scope: a name that is no text": (lambda _: Scope(1), TypeError, "`name` must be a string"),
    "Scope: an on_event that is none": (lambda _: Scope(on_event=1), TypeError, "`on_event` must be callable"),
    "Scope: an on_event that was called": (lambda _: Scope(on_event=called(kill)), TypeError, "without calling it"),
    "Resource: a closer that is none": (lambda _: Resource(1, 2), TypeError, "`close` must be callable"),
    "Resource: a closer that was called": (lambda _: Resource(1, called(kill)), TypeError, "without calling it"),
    "Resource: a coroutine": (
        lambda _: Resource(called(connect), nothing),
        TypeError,
        "coroutine connect.*await it first",
    ),
    "Resource: a negative timeout": (lambda _: Resource(1, nothing, timeout=-1), ValueError, "`timeout`"),
    "Resource: a name that is no text": (lambda _: Resource(1, nothing, name=1), TypeError, "`name`"),
    "Resource: a force that is async": (lambda _: Resource(1, nothing, force=kill), TypeError, "must be sync"),
    "create_resource: none": (lambda _: create_resource(1, nothing), TypeError, "`acquire` must be callable"),
    "create_resource: one that was called": (
        lambda _: create_resource(called(connect), nothing),
        TypeError,
        "coroutine connect.*without calling it",
    ),
    "create_resource: no release": (lambda _: create_resource(connect, 1), TypeError, "`release` must be callable"),
    "create_resource: a negative timeout": (
        lambda _: create_resource(connect, nothing, timeout=-1),
        ValueError,
        "`timeout`",
    ),
    "with_scope: no function": (lambda _: with_scope(1), TypeError, "`fn` must be callable"),
    "with_scope: one that was called": (
        lambda _: with_scope(called(kill)),
        TypeError,
        "coroutine kill.*without calling it",
    ),
    "with_scope: a sync function": (lambda _: with_scope(nothing), TypeError, "nothing must be async"),
    "with_scope: an async generator function": (
        lambda _: with_scope(lambda _: undecorated()),
        TypeError,
        "must be async: it gave a async_generator",
    ),
    "scoped: a sync function": (lambda _: scoped(nothing), TypeError, "`async def` function, not for nothing"),
    "scoped: no function": (lambda _: scoped(1), TypeError, "`async def` function|must be callable"),
    "scoped: one that was called": (lambda _: scoped(called(kill)), TypeError, "coroutine kill.*without calling it"),
    "scoped: a function that takes no scope": (lambda _: scoped(kill), TypeError, "kill takes no scope: make it its"),
    "scoped: an async generator function": (lambda _: scoped(undecorated), TypeError, "`async def` function"),
    "scoped: a negative grace": (lambda _: scoped(grace=-1), ValueError, "`grace` must not be negative"),
    "scoped: a name that is no text": (lambda _: scoped(name=1), TypeError, "`name` must be a string"),
}
ALL = CALLERS | FREE


@pytest.mark.parametrize("what", ALL)
async def test_raises_at_the_call(what: str) -> None:
    """Each misuse raises where it is made, and the message tells the mend."""
    call, kind, mend = ALL[what]

    async with Scope() as scope:
        message = await misuse(lambda: call(scope), kind)

    assert re.search(mend, message) is not None, message


@pytest.mark.parametrize("what", ALL)
async def test_nothing_is_half_registered(what: str) -> None:
    """After a misuse the scope is open, holds what it held, and has room for more."""
    call, kind, _ = ALL[what]

    async with Scope() as scope:
        held = scope.defer(nothing)
        await misuse(lambda: call(scope), kind)

        assert (scope.size, scope.resources, scope.state) == (1, (held,), "open")


@pytest.mark.parametrize("what", ALL)
async def test_nothing_is_acquired(what: str) -> None:
    """A misuse is noticed before anything is acquired or entered."""
    call, kind, _ = ALL[what]

    async with Scope() as scope:
        await misuse(lambda: call(scope), kind)

    assert ACQUIRED == []


@pytest.mark.parametrize("what", ALL)
async def test_no_coroutine_is_left_behind(what: str) -> None:
    """The error is the one message: no coroutine that was never awaited adds a warning of its own."""
    call, kind, _ = ALL[what]

    async with Scope() as scope:
        await misuse(lambda: call(scope), kind)

    assert [inspect.getcoroutinestate(c) for c in COROUTINES] == [inspect.CORO_CLOSED] * len(COROUTINES)


@pytest.mark.parametrize("what", ["release: a stranger", "detach: a stranger"])
async def test_messages_never_show_a_value(what: str) -> None:
    """A message names the type of a value, which may be a password."""
    method = getattr(Scope, what.partition(":")[0])

    async with Scope() as scope:
        message = await misuse(lambda: method(scope, "hunter2"), KeyError)

    assert ("that str" in message, "hunter2" in message) == (True, False)


async def test_has_of_a_stranger_is_no_error() -> None:
    """To look is no misuse."""
    async with Scope() as scope:
        assert (scope.has(object()), object() in scope) == (False, False)


# Resources that can't be held


async def test_add_of_a_closed_resource() -> None:
    """A resource that is closed can't be held any more."""
    resource = Resource(1, nothing, name="db")
    await resource.aclose()

    async with Scope() as scope:
        message = await misuse(lambda: scope.add(resource), ValueError)

        assert (message, scope.size) == ("db is closed: it can't be held any more", 0)


async def test_add_of_a_resource_that_is_being_closed() -> None:
    """A resource that is being closed can't be held any more."""
    sizes: list[int] = []

    async with Scope() as scope:

        async def close() -> None:
            await misuse(lambda: scope.add(resource), ValueError)
            sizes.append(scope.size)

        resource = Resource(1, close)
        await resource.aclose()

    assert sizes == [0]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_add_of_a_held_resource(where: str) -> None:
    """A resource has one scope; the mend is to detach it there first."""
    resource = Resource(1, nothing, name="db")

    async with Scope() as scope, Scope() as other:
        (scope if where == "here" else other).add(resource)
        message = await misuse(lambda: scope.add(resource), ValueError)

        assert ("`detach` it there first" in message, scope.size + other.size) == (True, 1)


async def test_a_resource_of_a_closed_scope_is_closed() -> None:
    """What a scope has closed can't be given to another."""
    async with Scope() as scope:
        handle = scope.defer(nothing)

    async with Scope() as other:
        message = await misuse(lambda: other.add(handle), ValueError)

    assert "is closed" in message


# Scopes that are not open

REGISTERING: dict[str, Callable[[Scope], object]] = {
    "add": lambda s: s.add(1, nothing),
    "add a resource": lambda s: s.add(Resource(1, nothing)),
    "acquire": lambda s: s.acquire(connect, Client.aclose),
    "shielded acquire": lambda s: s.acquire(connect, Client.aclose, shield=True),
    "enter": lambda s: s.enter(session()),
    "host": lambda s: s.host(session()),
    "host_all": lambda s: s.host_all(session(), session()),
    "defer": lambda s: s.defer(nothing),
    "on_error": lambda s: s.on_error(nothing),
    "on_success": lambda s: s.on_success(nothing),
    "on_exit": lambda s: s.on_exit(nothing),
    "child": lambda s: s.child(),
    "the block": lambda s: s.__aenter__(),
}


@pytest.mark.parametrize("what", REGISTERING)
async def test_a_closed_scope_refuses(what: str) -> None:
    """On a closed scope everything that registers raises `ScopeClosedError`."""
    async with Scope("orders") as scope:
        pass

    message = await misuse(lambda: REGISTERING[what](scope), ScopeClosedError)

    assert re.match("scope 'orders' is closed: (open a new one|nothing can be entered)", message) is not None, message


@pytest.mark.parametrize("what", REGISTERING)
async def test_a_closed_scope_acquires_nothing(what: str) -> None:
    """A closed scope refuses before anything is acquired, and holds nothing."""
    async with Scope() as scope:
        pass

    await misuse(lambda: REGISTERING[what](scope), ScopeClosedError)

    assert (ACQUIRED, scope.size) == ([], 0)


async def test_a_resource_that_a_closed_scope_refused_is_the_callers() -> None:
    """The caller keeps what is theirs, open."""
    resource = Resource(1, nothing)
    async with Scope() as scope:
        pass

    await misuse(lambda: scope.add(resource), ScopeClosedError)

    assert resource.state == "open"


async def test_a_closing_scope_refuses_to_enter() -> None:
    """While a scope closes, no manager can be entered in it any more."""
    messages: list[str] = []

    async with Scope("orders") as scope:

        async def close() -> None:
            messages.append(await misuse(lambda: scope.enter(session()), ScopeClosedError))

        scope.defer(close)

    assert (messages, ACQUIRED) == (["scope 'orders' is closing: nothing can be entered in it any more"], [])


@pytest.mark.parametrize("what", [name for name in REGISTERING if name not in {"enter", "the block"}])
async def test_a_closing_scope_drains_what_comes(what: str) -> None:
    """While a scope closes, everything else may be registered, and is closed in the same unwinding."""
    async with Scope() as scope:

        async def close() -> None:
            result: Any = REGISTERING[what](scope)
            if hasattr(result, "__await__"):
                await result

        scope.defer(close)

    assert (scope.state, scope.size, scope.cleanup_error) == ("closed", 0, None)


# Blocks


async def test_a_scope_can_be_entered_once() -> None:
    """One scope is for one `async with`, after it and inside of it."""
    messages: list[str] = []

    async with Scope("orders") as scope:
        messages.append(await misuse(scope.__aenter__, RuntimeError))

    assert messages == ["scope 'orders' was entered already: a scope is for one `async with`, open a new one"]


async def test_a_scope_entered_twice_is_not_closed_by_that() -> None:
    """The block that is there goes on."""
    async with Scope() as scope:
        with pytest.raises(RuntimeError):
            async with scope:
                pytest.fail("entered twice")

        assert scope.state == "open"


# Concurrent scopes


async def enter_in(scope: Scope) -> str:
    """Try to enter a manager."""
    return await misuse(lambda: scope.enter(session()), TypeError)


async def test_enter_in_a_concurrent_scope() -> None:
    """A manager that is tied to a task can't be closed beside others; the mend is `host`."""
    async with Scope("orders", concurrent=True) as scope:
        message = await enter_in(scope)

        assert ("use `await scope.host(...)`" in message, scope.size, ACQUIRED) == (True, 0, [])


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_enter_below_a_concurrent_scope(depth: int) -> None:
    """Nor anywhere below one, whatever the mode of the scopes in between."""
    async with Scope(concurrent=True) as scope:
        below = scope
        for _ in range(depth):
            below = below.child()

        assert "`await scope.host(...)`" in await enter_in(below)


async def test_enter_in_a_concurrent_child() -> None:
    """Nor in a concurrent child of a scope that closes in order."""
    async with Scope() as scope:
        assert "`await scope.host(...)`" in await enter_in(scope.child(concurrent=True))


async def test_enter_beside_a_concurrent_child() -> None:
    """The parent of a concurrent child may enter what it likes."""
    async with Scope() as scope:
        scope.child(concurrent=True)

        assert await scope.enter(session()) == "session"


async def test_enter_in_what_a_concurrent_scope_was_moved_to() -> None:
    """A moved scope has the mode of the old one."""
    async with Scope(concurrent=True).move() as scope:
        assert "`await scope.host(...)`" in await enter_in(scope)


async def test_an_entered_handle_can_not_get_into_a_concurrent_scope() -> None:
    """Nor by the back door: a detached entered manager is refused, and stays the caller's."""
    async with Scope() as scope:
        await scope.enter(session())
        async with Scope(concurrent=True) as concurrent:
            handle = scope.detach(scope.resources[0])
            message = await misuse(lambda: concurrent.add(handle), TypeError)
        scope.add(handle)

    assert "`await scope.host(...)`" in message


async def test_a_child_with_entered_managers_can_not_get_into_a_concurrent_scope() -> None:
    """Nor by another: a detached child that holds an entered manager is refused."""
    async with Scope() as scope:
        child = scope.child()
        await child.enter(session())
        async with Scope(concurrent=True) as concurrent:
            handle = scope.detach(child)
            message = await misuse(lambda: concurrent.add(handle), TypeError)
        scope.add(handle)

    assert "`await scope.host(...)`" in message


async def test_a_child_that_gets_into_a_concurrent_scope_refuses_to_enter() -> None:
    """An adopted child is below its new parent like one that was made there."""
    async with Scope() as scope, Scope(concurrent=True) as concurrent:
        child = scope.child()
        concurrent.add(scope.detach(child))

        assert "`await scope.host(...)`" in await enter_in(child)


async def test_a_concurrent_scope_hosts() -> None:
    """What can't be entered there can be hosted."""
    async with Scope(concurrent=True) as scope:
        assert await scope.host(session()) == "session"


# Names that are free


async def test_positional_only_parameters_leave_keywords_to_the_callback() -> None:
    """`defer(fn, fn=..., self=...)` passes both on."""
    got: list[dict[str, int]] = []

    async with Scope() as scope:
        scope.defer(lambda **kwargs: got.append(kwargs), fn=1, self=2)

    assert got == [{"fn": 1, "self": 2}]


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.add(resource=Resource(1, nothing)),
        lambda s: s.enter(cm=session()),
        lambda s: s.host(cm=session()),
        lambda s: s.release(x=1),
        lambda s: s.detach(x=1),
        lambda s: s.has(x=1),
        lambda s: s.defer(fn=nothing),
        lambda s: s.on_exit(fn=nothing),
    ],
)
async def test_what_is_passed_by_position_has_no_keyword(call: Callable[[Any], Awaitable[object]]) -> None:
    """The subject of a call is passed by position."""
    async with Scope() as scope:
        message = await misuse(lambda: call(scope), TypeError)

    assert re.search("positional|keyword|missing", message) is not None, message


async def test_a_sync_body_leaves_no_scope_open() -> None:
    """What a sync body registered is closed before the misuse is raised."""
    log: list[str] = []

    def body(scope: Scope) -> None:
        scope.defer(log.append, "closed")

    await misuse(lambda: with_scope(body), TypeError)

    assert log == ["closed"]


async def test_no_task_is_running() -> None:
    """Awaiting nothing of it needs no loop: `add` works in a worker thread, where no task runs."""
    scope = Scope()

    await anyio.to_thread.run_sync(scope.defer, nothing)
    size = scope.size
    await scope.aclose()

    assert size == 1
