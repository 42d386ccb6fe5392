"""A close that takes long is said while it takes long."""

from __future__ import annotations

import asyncio
import logging
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from rescope import Resource, ResourceCleanupError, Scope
from rescope._slow import Settings, _said, _watched
from rescope.events import warn_when_slow

if TYPE_CHECKING:
    from collections.abc import Iterator


class Said(logging.Handler):
    """What the logger `rescope` was told at WARNING."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.more = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        assert record.levelno == logging.WARNING
        self.lines.append(record.getMessage())
        self.more.set()

    async def count(self, number: int) -> list[str]:
        """Wait until so many lines are there."""
        with anyio.fail_after(10):
            while len(self.lines) < number:
                self.more = anyio.Event()
                await self.more.wait()
        return self.lines


@pytest.fixture
def said() -> Iterator[Said]:
    handler = Said()
    logger = logging.getLogger("rescope")
    logger.addHandler(handler)
    warn_when_slow(0.01)
    yield handler
    warn_when_slow(5)
    logger.removeHandler(handler)
    assert not _watched


class Slow:
    """Closes when it is let."""

    def __init__(self) -> None:
        self.go = anyio.Event()

    async def aclose(self) -> None:
        await self.go.wait()

    async def __aenter__(self) -> Slow:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.go.wait()


async def close_after(said: Said, number: int, scope: Scope, slow: Slow) -> list[str]:
    """Close the scope, and let the slow one go when so much was said."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        lines = list(await said.count(number))
        slow.go.set()
    return lines


async def test_names_what_is_still_closing(said: Said) -> None:
    """The warning names the resource, the scope, and how many more are to be closed."""
    slow, scope = Slow(), Scope("service")
    scope.defer(print, end="")
    scope.add(slow, name="queue")
    (line, *_) = await close_after(said, 1, scope, slow)
    assert line.startswith("closing queue takes long: 0.0")
    assert line.endswith(" s so far (scope 'service', 1 more to close)")


async def test_says_so_at_doubling_intervals(said: Said) -> None:
    """Each warning comes when the close has taken at least twice as long as at the one before."""
    slow, scope = Slow(), Scope()
    scope.add(slow)
    lines = await close_after(said, 4, scope, slow)
    seconds = [float(line.removeprefix("closing Slow takes long: ").partition(" s")[0]) for line in lines]
    assert seconds[0] >= 0.009
    assert all(later >= 1.9 * earlier for earlier, later in pairwise(seconds))


@pytest.mark.parametrize("way", ["enter", "host", "timeout", "concurrent", "grace", "on_event", "release"])
async def test_says_so_of_every_kind(said: Said, way: str) -> None:
    """Entered and hosted managers are named too, and so is what closes with a bound, beside others, or by itself."""
    slow = Slow()
    options: dict[str, Any] = {"grace": 60} if way == "grace" else {}
    scope = Scope("s", concurrent=way == "concurrent", on_event=print if way == "on_event" else None, **options)
    if way == "release":
        scope.add(slow)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, slow)
            (line, *_) = await said.count(1)
            slow.go.set()
        await scope.aclose()
    elif way == "enter":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_go_after, said, slow)
            async with scope:
                await scope.enter(slow)
        (line, *_) = said.lines
    else:
        if way == "host":
            await scope.host(slow)
        else:
            scope.add(slow, timeout=60 if way == "timeout" else None)
        (line, *_) = await close_after(said, 1, scope, slow)
    assert line.startswith("closing Slow takes long: ")
    assert "scope 's'" in line


async def let_go_after(said: Said, slow: Slow) -> None:
    await said.count(1)
    slow.go.set()


async def test_says_so_of_a_manager_that_sees_an_exception(said: Said) -> None:
    """A manager that exits because of an exception is named as well."""
    slow = Slow()
    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_go_after, said, slow)
            async with Scope() as scope:
                await scope.enter(slow)
                raise LookupError
    assert said.lines[0].startswith("closing Slow takes long: ")


async def test_names_what_is_inside_a_child_and_where_that_is(said: Said) -> None:
    """Of a child it is said what in it takes long, and in which scopes that is; not that the child takes long."""
    slow, scope = Slow(), Scope("service")
    scope.child("request").child().add(slow)
    lines = await close_after(said, 2, scope, slow)
    assert [line.rpartition(" s so far ")[2] for line in lines[:2]] == [
        "(scope in scope 'request' in scope 'service')"
    ] * 2


async def test_what_is_released_is_not_the_beginning_of_more(said: Said) -> None:
    """Of what is closed out of turn it is said which scope holds it, and not that more is to close: the rest stays."""
    scope = Scope("service")
    scope.defer(print)
    slow = Slow()
    handle = scope.defer(slow.aclose)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.aclose)
        line, *_ = await said.count(1)
        slow.go.set()
        assert line.endswith(" s so far (scope 'service')")
    assert scope.size == 1
    scope.detach(scope.resources[0])


async def test_says_so_of_what_no_scope_holds(said: Said) -> None:
    """A handle that is closed by its owner is named alone."""
    slow = Slow()
    handle = Resource("x", slow.aclose, name="lonely")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.aclose)
        line, *_ = await said.count(1)
        slow.go.set()
        assert line.startswith("closing lonely takes long: ")
        assert line.endswith(" s so far")


async def test_begins_anew_with_the_next_one(said: Said) -> None:
    """Of one that closes after one that was slow, it is not said before it has taken as long itself."""
    first, second, scope = Slow(), Slow(), Scope()
    scope.add(second, name="second")
    scope.add(first, name="first")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await said.count(3)
        before = len(said.lines)
        first.go.set()
        await said.count(before + 1)
        second.go.set()
    assert all("closing first" in line for line in said.lines[:before])
    seconds = float(said.lines[-1].removeprefix("closing second takes long: ").partition(" s")[0])
    assert seconds >= 0.009


async def test_says_nothing_where_nothing_takes_long(said: Said) -> None:
    """Closes that end in time are not mentioned, and nothing is watched when they have ended."""
    warn_when_slow(60)
    async with Scope() as scope:
        scope.defer(anyio.sleep, 0)
        scope.add("x", anyio.lowlevel.checkpoint, timeout=10)
    assert said.lines == []
    assert not _watched


async def test_says_nothing_when_it_is_told_not_to(said: Said) -> None:
    """`warn_when_slow(None)` ends it, also for what is watched already."""
    slow, scope = Slow(), Scope()
    scope.add(slow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scope.aclose)
        await said.count(1)
        warn_when_slow(None)
        before = len(said.lines)
        await anyio.sleep(0.05)
        slow.go.set()
    async with Scope() as scope:
        scope.defer(anyio.sleep, 0.02)
    assert len(said.lines) == before


async def test_watches_no_longer_what_failed_or_was_cut_off(said: Said) -> None:
    """A close that raises or runs out of time is watched no longer."""
    with pytest.raises(ResourceCleanupError):
        async with Scope(grace=0.05) as scope:
            scope.defer(anyio.sleep_forever)
            scope.defer(anyio.sleep, -1)
    assert not _watched
    said.lines.clear()
    await anyio.sleep(0.05)
    assert said.lines == []


async def test_forgets_what_it_said(said: Said) -> None:
    """Nothing of a close that was slow is kept once another one is looked at."""
    for _ in range(2):
        slow, scope = Slow(), Scope()
        scope.add(slow)
        before = len(said.lines)
        await close_after(said, before + 1, scope, slow)
    assert len(_said) <= 1


def test_sets_an_alarm_on_each_loop(said: Said) -> None:
    """A loop that was closed with its alarm set does not keep the next one from being watched."""

    async def main() -> None:
        slow, scope = Slow(), Scope()
        scope.add(slow)
        await close_after(said, len(said.lines) + 1, scope, slow)

    asyncio.run(main())
    asyncio.run(main())
    assert len(said.lines) >= 2


@pytest.mark.parametrize(
    ("after", "error", "message"),
    [
        (0, ValueError, "`after` must be more than 0 seconds, or None for no warning"),
        (-1, ValueError, "`after` must not be negative or NaN, got -1"),
        (math.nan, ValueError, "`after` must not be negative or NaN, got nan"),
        ("5", TypeError, "`after` must be a number of seconds or None, not a str"),
    ],
)
def test_refuses_what_is_no_time(after: Any, error: type[Exception], message: str) -> None:
    """What is no length of time is refused, and changes nothing."""
    with pytest.raises(error, match=message):
        warn_when_slow(after)
    assert Settings.after == 5
