"""Where things were registered: recorded when tracing is on, and told where something is left open."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from rescope import Resource, Scope
from rescope._trace import Trace, site_of, traced_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator


class Watch:
    """What a watcher was told."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def dropped(self, label: str, handles: Iterable[Resource[Any]]) -> None:
        self.lost += [label, *(handle.name for handle in handles)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    before = Trace.on, Trace.watcher
    Trace.on, Trace.watcher = True, (watcher := Watch())
    yield watcher
    Trace.on, Trace.watcher = before


@asynccontextmanager
async def manager() -> AsyncGenerator[None]:
    yield


class Thing:
    def close(self) -> None: ...


async def opened() -> Thing:
    await anyio.lowlevel.checkpoint()
    return Thing()


def line_of(place: int) -> str:
    return f"{__file__}:{test_knows_the_line_of_every_registration.__code__.co_firstlineno + place} in "


async def test_knows_the_line_of_every_registration(watch: Watch) -> None:
    """Whichever way something is registered, the site is the line of the caller's."""
    async with Scope() as scope:
        scope.add(Thing())
        scope.defer(print, end="")
        await scope.acquire(Thing, Thing.close)
        await scope.acquire(opened, Thing.close)
        await scope.acquire(opened, Thing.close, shield=True)
        await scope.enter(manager())
        await scope.host(manager())
        await scope.host_all(manager())
        scope.child()
        scope.on_error(print)
        scope.add(Resource(1, print))
        sites = [str(site_of(handle)) for handle in scope.resources]
    here = test_knows_the_line_of_every_registration.__qualname__
    assert sites == [line_of(place) + here for place in range(3, 14)]


async def test_names_the_function_that_called(watch: Watch) -> None:
    """Where a helper registers, the site is in the helper."""

    async def helper(scope: Scope) -> None:
        await scope.acquire(Thing, Thing.close)

    async with Scope() as scope:
        await helper(scope)
        (handle,) = scope.resources
        assert str(site_of(handle)).endswith(".helper")


async def test_goes_on_after_a_move(watch: Watch) -> None:
    """The scope that something was moved to records as well."""
    old = Scope()
    old.add(Thing())
    async with old.move() as scope:
        scope.defer(print, end="")
        assert all(site_of(handle) for handle in scope.resources)


async def test_tells_the_lines_of_what_a_dropped_scope_held(watch: Watch) -> None:
    """The `ResourceWarning` names the line of each, and the watcher is told."""
    scope = Scope("lost")
    scope.add(Thing())
    with pytest.warns(ResourceWarning, match=r"held: Thing \(registered at .*test_trace\.py:\d+ in test_tells"):
        del scope
    assert watch.lost == ["scope 'lost'", "Thing"]


async def test_records_nothing_when_it_is_off() -> None:
    """Without tracing nothing knows its line, and the warning has names alone."""
    assert not Trace.on
    scope = Scope()
    scope.add(Thing())
    assert [site_of(handle) for handle in scope.resources] == [None]
    assert [traced_name(handle) for handle in scope.resources] == ["Thing"]
    with pytest.warns(ResourceWarning, match=r"it still held: Thing$"):
        del scope


PROGRAM = """
import anyio, gc
from rescope import Scope

async def main():
    scope = Scope("main")
    scope.defer(print)
    print(scope.describe())
    del scope
    gc.collect()

anyio.run(main)
"""


@pytest.mark.parametrize(("value", "traced"), [("1", True), ("0", False), ("", False), (None, False)])
def test_is_switched_on_by_the_environment(value: str | None, *, traced: bool) -> None:
    """`RESCOPE_TRACE=1` records sites in any program; 0 and nothing do not."""
    env = {key: text for key, text in os.environ.items() if key != "RESCOPE_TRACE"}
    if value is not None:
        env["RESCOPE_TRACE"] = value
    run = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-W", "always", "-c", PROGRAM], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert ("registered at <string>:7 in main" in run.stdout) is traced
    assert ("registered at <string>:7 in main" in run.stderr) is traced
    assert "ResourceWarning" in run.stderr


async def test_knows_no_line_where_a_loop_calls_directly(watch: Watch) -> None:
    """Where an event loop or a thread runs a method of the scope by itself, no line of theirs is taken for the site."""
    async with Scope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.acquire, Thing, Thing.close)
        await anyio.to_thread.run_sync(scope.defer, print)
        thread = Thread(target=scope.defer, args=(print,))
        thread.start()
        thread.join()
        assert [traced_name(handle) for handle in scope.resources] == ["Thing", "print", "print"]


async def test_knows_the_line_that_used_contextlib(watch: Watch) -> None:
    """Where `contextlib` stands between, the site is the line that used it."""
    scope = Scope()
    with ExitStack() as stack:
        stack.callback(scope.defer, print)
    (handle,) = scope.resources
    assert str(site_of(handle)).startswith(f"{__file__}:")
    await scope.aclose()
