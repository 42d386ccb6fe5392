"""The rules for failing, as laws, continued: misuse, and what must never be shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import event, given

from conftest import BACKENDS
from labels import SECRET
from programs import Runner, ran
from rescope import Resource, Scope, create_resource, scoped, with_scope
from strategies import DOES, Program, examples, programs

pytestmark = pytest.mark.long

everywhere = pytest.mark.parametrize("backend", BACKENDS)


def run_on(backend: Any, main: Callable[[], Any]) -> Any:
    return anyio.run(main, backend=backend[0], backend_options=backend[1])


# Failing 8: misuse raises at the call


def misuses(scope: Any) -> dict[str, Callable[[], Any]]:
    """Give slips of the pen, each of which must raise a `TypeError` at once."""

    async def connect() -> None:
        await anyio.lowlevel.checkpoint()

    @asynccontextmanager
    async def manager() -> Any:
        yield

    class Client:
        def close(self) -> None:
            raise AssertionError

    nothing: Any = None
    sync: Any = print
    return {
        "no closer": lambda: scope.add(object()),
        "a closer that can't be called": lambda: scope.add(object(), 1),
        "a coroutine for a closer": lambda: scope.add(object(), connect()),
        "a coroutine for a value": lambda: scope.add(connect()),
        "a coroutine for a value with a closer": lambda: scope.add(connect(), print),
        "a class for a value": lambda: scope.add(Client),
        "nothing to defer": lambda: scope.defer(None),
        "a coroutine to defer": lambda: scope.defer(connect()),
        "a coroutine for an error": lambda: scope.on_error(connect()),
        "a number for a success": lambda: scope.on_success(3),
        "a string for an exit": lambda: scope.on_exit("x"),
        "a coroutine to acquire": lambda: scope.acquire(connect(), print),
        "no release": lambda: scope.acquire(connect, None),
        "a function to enter": lambda: scope.enter(manager),
        "a function to host": lambda: scope.host(manager),
        "a class to host": lambda: scope.host(Client),
        "a coroutine to enter": lambda: scope.enter(connect()),
        "a function among several to host": lambda: scope.host_all(manager(), manager),
        "a name that is none": lambda: scope.add(object(), print, name=3),
        "a timeout that is none": lambda: scope.add(object(), print, timeout="1"),
        "an async force": lambda: scope.add(object(), print, force=connect),
        "a resource without a closer": lambda: Resource(object(), nothing),
        "nothing to create": lambda: create_resource(nothing, print),
        "a scope that is none": lambda: with_scope(nothing),
        "a sync body": lambda: scoped(sync),
    }


class Misuser(Runner):
    """Tries all of it at the end of the body."""

    async def body_end(self) -> Any:
        scope = self.root.scope
        before = scope.resources
        for what, slip in misuses(scope).items():
            self.report.slips[what] = await self.attempt(self.slip, slip)
        self.taken = [handle for handle in self.handles.values() if handle.state != "detached"]  # held, or closed
        for handle in self.taken:
            self.report.slips[handle.name] = await self.attempt(self.slip, partial(scope.add, handle))
        assert scope.resources == before
        return await super().body_end()

    async def slip(self, slip: Callable[[], Any]) -> None:
        given = slip()
        if hasattr(given, "__await__"):
            await given


@everywhere
@examples(25)
@given(program=programs(does=("",), concurrent=False))
def test_failing_rule_8_misuse_raises_at_the_call(program: Program, backend: Any) -> None:
    """Whatever else a scope holds: a slip is a `TypeError`, adding twice a `ValueError`, and nothing is registered."""

    async def main() -> Any:
        runner = Misuser(program.on(backend[0]))
        return await runner.run(), runner

    report, runner = run_on(backend, main)
    slips = dict.fromkeys(misuses(Scope()), "TypeError")
    twice = dict.fromkeys([handle.name for handle in runner.taken], "ValueError")

    assert report.slips == {**slips, **twice}


# Failing 9: names, never values


@everywhere
@examples(120)
@given(
    program=programs(
        ends=("return", "raise secret", "err value", "raise secret", "cancelled", "interrupt"),
        bodies=("return", "raise secret", "err", "interrupt", "cancel"),
        does=(*DOES, "cancel"),
        least=1,
    )
)
def test_failing_rule_9_names_never_values(program: Program, backend: Any) -> None:
    """No log, event, name, message, note or `repr` of a handle or scope shows the `repr` of a value."""
    _, report = ran(program, backend)
    event(f"texts: {len(report.texts) // 10 * 10}")

    assert report.texts
    assert [text for text in report.texts if SECRET in text] == []
