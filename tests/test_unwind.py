"""The corners of an unwinding that no rule alone leads into."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from conftest import ASYNCIO_ONLY
from rescope import CloseRejectedError, Err, ResourceCleanupError, Scope
from rescope.events import ScopeEvent

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)


@asyncio_only
async def test_a_task_that_a_sync_closer_started_may_close_the_scope() -> None:
    """It is inside, so its `aclose` returns at once, and a later closer that awaits it does not wait for itself."""
    log: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def close_scope() -> None:
        await scope.aclose()
        log.append("returned")

    async def join() -> None:
        await tasks[0]
        log.append("joined")

    with anyio.fail_after(5):
        async with Scope() as scope:
            scope.defer(join)
            scope.defer(lambda: tasks.append(asyncio.get_running_loop().create_task(close_scope())))

    assert log == ["returned", "joined"]


async def test_one_waits_for_a_resource_that_its_scope_is_closing() -> None:
    """A second closer of a resource comes back when the first has ended, and the closer ran once."""
    log: list[str] = []
    reached, go = anyio.Event(), anyio.Event()

    async def close() -> None:
        reached.set()
        await go.wait()
        log.append("closed")

    scope = Scope()
    handle = scope.defer(close)

    async def second() -> None:
        await reached.wait()
        await handle.aclose()
        log.append("second")

    async with anyio.create_task_group() as tg:
        tg.start_soon(second)
        tg.start_soon(scope.aclose)
        await anyio.wait_all_tasks_blocked()
        go.set()

    assert log == ["closed", "second"]


async def test_a_sync_closer_after_a_failing_one_still_runs_where_one_awaits() -> None:
    """Failures of plain closers stand in order, sync and async, with an entered manager between."""
    order: list[str] = []

    def failing(name: str) -> None:
        order.append(name)
        raise OSError(name)

    async def failing_later(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        failing(name)

    scope = Scope()
    scope.defer(failing, "first")
    await scope.enter(contextlib.nullcontext())
    scope.defer(failing_later, "second")
    scope.defer(failing, "third")
    with pytest.raises(ResourceCleanupError) as caught:
        async with scope:
            pass

    assert [str(error) for error in caught.value.errors] == order == ["third", "second", "first"]


@pytest.mark.parametrize("options", [{}, {"concurrent": True}, {"grace": 5}])
async def test_an_err_from_an_async_closer_is_a_failure_in_every_mode(options: dict[str, Any]) -> None:
    """The closers of a concurrent scope, and of one with a grace, are judged as those of any other."""

    async def reject() -> Err[str]:
        return Err("no")

    scope = Scope(**options)
    scope.defer(reject)
    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()

    assert [type(error) for error in caught.value.errors] == [CloseRejectedError]


async def test_an_interrupt_from_a_closer_that_ran_out_of_time_is_raised() -> None:
    """What is no `Exception` is never replaced, also not by the timeout that brought it about."""

    async def close() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise SystemExit(3)

    scope = Scope()
    scope.add("x", close, timeout=0.01)
    with pytest.raises(SystemExit) as caught:
        await scope.aclose()

    assert caught.value.code == 3
    assert scope.cleanup_error is not None


async def test_a_child_that_fails_by_itself_is_told_to_its_parent() -> None:
    """The parent's events know of the failure, though it is raised to whoever closed the child."""
    told: list[tuple[str, str | None]] = []

    def hear(event: ScopeEvent) -> None:
        if event.path == ("parent",):
            told.append((event.kind, event.resource))

    def fail() -> None:
        raise OSError

    parent = Scope("parent", on_event=hear)
    child = parent.child("child")
    child.defer(fail)
    with pytest.raises(ResourceCleanupError):
        await child.aclose()
    await parent.aclose()

    assert told == [
        ("opened", None),
        ("acquired", "child"),
        ("closing", "child"),
        ("failed", "child"),
        ("closed", "child"),
        ("scope_closed", None),
    ]


async def test_an_interrupt_of_the_body_stays_where_an_exit_raises_another() -> None:
    """Of two exits, the first comes out."""

    @contextlib.contextmanager
    def exiting() -> Any:
        try:
            yield
        finally:
            raise SystemExit(2)

    async def body() -> None:
        async with Scope() as scope:
            await scope.enter(exiting())
            raise SystemExit(1)

    with pytest.raises(SystemExit) as caught:
        await body()

    assert caught.value.code == 1


class Client:
    """A manager whose background task closes something when told to, and whose exit waits for that task."""

    def __init__(self, close: Any) -> None:
        self.close = close
        self.lost = anyio.Event()
        self.returned = False

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self.background)
            yield

    async def background(self) -> None:
        await self.lost.wait()
        await self.close()
        self.returned = True


async def test_a_hosted_manager_may_close_its_own_handle() -> None:
    """From a background task of its own: it is told to exit, and the task goes on."""
    scope = Scope()
    client = Client(lambda: scope.release(scope.resources[0]))
    await scope.host(client.session())
    client.lost.set()
    with anyio.fail_after(5):
        while scope.size:
            await anyio.wait_all_tasks_blocked()
    await scope.aclose()

    assert client.returned


async def test_a_hosted_manager_may_close_the_scope_above_its_own() -> None:
    """The parent closes, and with it the child and what that hosts."""
    parent = Scope()
    child = parent.child()
    client = Client(parent.aclose)
    await child.host(client.session())
    client.lost.set()
    with anyio.fail_after(5):
        await anyio.wait_all_tasks_blocked()
        await parent.aclose()

    assert (client.returned, child.state, parent.state) == (True, "closed", "closed")


async def test_what_fails_where_a_hosted_manager_closed_and_did_not_wait_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody is there to raise it to: it is logged, and kept in `cleanup_error`."""

    def fail() -> None:
        raise OSError("full")

    scope = Scope()
    scope.defer(fail)
    client = Client(scope.aclose)
    await scope.host(client.session())
    client.lost.set()
    with anyio.fail_after(5):
        await anyio.wait_all_tasks_blocked()
        await scope.aclose()

    logged = [(r.name, r.levelno, "OSError: full" in r.getMessage()) for r in caplog.records]
    assert (logged, scope.cleanup_error is not None) == ([("rescope", logging.ERROR, True)], True)


@asyncio_only
async def test_a_shielded_acquire_that_fails_while_cancelled_is_cancelled() -> None:
    """The cancellation goes on, with the error as its context."""
    began, go = asyncio.Event(), asyncio.Event()

    async def acquire() -> None:
        began.set()
        await go.wait()
        raise OSError("refused")

    scope = Scope()
    task = asyncio.ensure_future(scope.acquire(acquire, lambda _: None, shield=True))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert (repr(caught.value.__context__), scope.size) == ("OSError('refused')", 0)


@pytest.mark.parametrize("imported", [True, False])
def test_without_a_running_task_the_error_says_so(monkeypatch: pytest.MonkeyPatch, *, imported: bool) -> None:
    """Whether or not asyncio was ever imported."""
    if not imported:
        monkeypatch.delitem(sys.modules, "asyncio")
    entering = Scope().enter(contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="no async task is running here"):
        entering.send(None)  # type: ignore[attr-defined]

    entering.close()  # type: ignore[attr-defined]


async def test_an_async_on_event_is_refused() -> None:
    """Nothing is awaited where events are told, so it would never run."""

    async def hear(event: ScopeEvent) -> None:
        del event

    with pytest.raises(TypeError, match="`on_event` must be sync"):
        Scope(on_event=hear)


@asyncio_only
async def test_a_task_cancelled_while_a_child_fails_is_cancelled_and_both_are_told() -> None:
    """The task group consumes the cancellation that it asked for, and not the one that came from outside."""
    scopes: list[Scope] = []

    async def body() -> None:
        async with Scope() as scope:
            scopes.append(scope)
            group = await scope.enter(asyncio.TaskGroup())
            group.create_task(fail())
            await asyncio.Event().wait()

    async def fail() -> None:
        asyncio.get_running_loop().call_soon(task.cancel)
        raise OSError("lost")

    task = asyncio.ensure_future(body())
    with pytest.raises(asyncio.CancelledError):
        await task
    error = scopes[0].cleanup_error

    assert error is not None
    assert [type(part) for part in error.errors] == [ExceptionGroup]


async def test_what_is_released_while_its_scope_is_moved_is_gone_from_the_new_one() -> None:
    """A release that is under way ends in the scope that holds the rest."""
    go = anyio.Event()
    scope = Scope()
    scope.defer(list)
    released = scope.defer(go.wait)
    scope.defer(list)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scope.release, released)
        await anyio.wait_all_tasks_blocked()
        moved = scope.move()
        go.set()
    sizes = (scope.size, moved.size, len(moved.resources))
    await moved.aclose()

    assert sizes == (0, 2, 2)
