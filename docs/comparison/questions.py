"""What every peer is asked: one function for each column of the tables, which tries it and says what it saw."""
# ruff: noqa: EM101, INP001, PLR2004, TRY003

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

import anyio
import trio
from peers import nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from peers import Closer, Peer

NO = "\N{EN DASH}"
"""There is no way to ask for it."""


def closers(*each: Callable[[], Awaitable[object]] | None) -> tuple[list[Closer], list[int]]:
    """Make closers that do these things, and a list of those that reached their end."""
    ended: list[int] = []

    def make(number: int, act: Callable[[], Awaitable[object]] | None) -> Closer:
        async def close(_told: BaseException | None) -> None:
            if act is not None:
                await act()
            ended.append(number)

        return close

    return [make(number, act) for number, act in enumerate(each)], ended


class Fault(Exception):  # noqa: N818
    """What goes wrong here on purpose."""


def fail(name: str) -> Callable[[], Awaitable[None]]:
    """Give a function that fails."""

    async def act() -> None:
        raise Fault(name)

    return act


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Give what is logged meanwhile."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


def leaves(exc: BaseException) -> list[str]:
    """Give the texts of an exception, or of those in a group."""
    return (
        [text for inner in exc.exceptions for text in leaves(inner)]
        if isinstance(exc, BaseExceptionGroup)
        else [str(exc)]
    )


def beside(exc: BaseException) -> str:
    """Say which fault an exception has behind it, as its cause or along its contexts."""
    if isinstance(exc.__cause__, Fault):
        return f"{exc.__cause__} as its cause"
    behind = exc.__context__
    while behind is not None and not isinstance(behind, Fault):
        behind = behind.__context__
    return "" if behind is None else f"{behind} as its context"


async def cancelled(peer: Peer) -> str:
    """Three closers of 50 ms; `task.cancel()`, once, 20 ms into the first: how many reach their end."""
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.05)

    three, ended = closers(slow, slow, slow)
    task = asyncio.create_task(peer.run(three, nothing))
    await begun.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    return f"{len(ended)} of 3" if task.cancelled() else f"{len(ended)} of 3, no cancellation raised"


async def cancelled_by_scope(peer: Peer) -> str:
    """Three closers of 10 ms; an anyio scope is cancelled while the body runs: how many reach their end."""
    three, ended = closers(*[lambda: anyio.sleep(0.01)] * 3)
    with anyio.move_on_after(0.02) as limit:
        await peer.run(three, anyio.sleep_forever)
    return f"{len(ended)} of 3" if limit.cancelled_caught else f"{len(ended)} of 3, no cancellation raised"


async def interrupted(peer: Peer) -> str:
    """Three closers, the first of which raises an exception that is no `Exception`: how many of the others run."""

    class Interrupt(BaseException):
        pass

    async def interrupt() -> None:
        raise Interrupt

    three, ended = closers(None, None, interrupt)
    with suppress(Interrupt):
        await peer.run(three, nothing)
        return f"{len(ended)} of 2, nothing raised"
    return f"{len(ended)} of 2"


async def two_fail(peer: Peer) -> str:
    """The body is clean, and of three closers the first two raise: what comes out."""
    three, _ = closers(None, fail("the second"), fail("the first"))
    with logged() as log:
        try:
            await peer.run(three, nothing)
        except Exception as exc:
            texts = leaves(exc)
            if len(texts) > 1:
                return "both, in a group"
            behind = beside(exc)
            return f"{texts[0]}, {behind}" if behind else f"{texts[0]} alone"
    return "nothing, both are logged" if len(log) > 1 else "nothing"


async def body_fails_too(peer: Peer) -> str:
    """The body raises, and so does the first of three closers: what comes out, and where the body's exception is."""
    three, ended = closers(None, None, fail("the closer's"))

    async def body() -> None:
        raise Fault("the body's")

    with logged() as log:
        try:
            await peer.run(three, body)
        except Exception as exc:
            texts, behind = leaves(exc), beside(exc)
            said = " and ".join(texts)
            if behind:
                said += f", {behind}"
            elif "the body's" not in texts:
                said += ", the body's is lost"
            if log:
                said += "; the closer's is logged"
            return said if len(ended) == 2 else f"{said}; {len(ended)} of the other 2 run"
    return "nothing"


async def told(peer: Peer) -> str:
    """The body raises: do closers know, so that they can roll back."""
    seen: list[BaseException | None] = []

    async def close(exc: BaseException | None) -> None:
        seen.append(exc)

    async def body() -> None:
        raise Fault("the body's")

    with suppress(Fault):
        await peer.run([close], body)
    return "yes" if isinstance(seen[0], Fault) else "no"


async def hangs(peer: Peer) -> str:
    """The first of three closers sleeps for an hour, the others are quick; 0.3 s are given. How it is after 1 s."""
    three, ended = closers(None, None, lambda: asyncio.sleep(3600))
    task = asyncio.create_task(peer.run(three, nothing, grace=0.3))
    await asyncio.wait([task], timeout=1)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return "waits on"
    rest = f"{len(ended)} of the others run"
    return f"{rest}, and it is told" if task.exception() else f"{rest}, nothing is told"


async def at_once(peer: Peer) -> str:
    """Three closers of 100 ms that don't need one another: do they overlap."""
    if peer.at_once is None:
        return NO
    three, _ = closers(*[lambda: asyncio.sleep(0.1)] * 3)
    began = perf_counter()
    await peer.at_once(three)
    return "yes" if perf_counter() - began < 0.25 else "no"


async def client() -> AsyncIterator[object]:
    """Hold a task group, as many clients do."""
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        try:
            yield object()
        finally:
            group.cancel_scope.cancel()


async def another_task(peer: Peer) -> str:
    """A client that holds a task group, opened in one task and closed in another."""
    if peer.keep is None:
        return NO
    close = await asyncio.create_task(peer.keep(client))
    with logged() as log:
        try:
            await asyncio.create_task(close())
        except Exception as exc:
            grouped = isinstance(exc, ExceptionGroup)
            inner = exc.exceptions[0] if grouped else exc
            return f"`{type(inner).__name__}`{', in a group' if grouped else ''}"
    return "`RuntimeError`, logged" if log else "yes"


async def twice(peer: Peer) -> str:
    """Two tasks close at the same time: how often is it closed, and does the second wait for the end."""
    if peer.keep is None:
        return NO
    ended: list[float] = []

    async def slow() -> AsyncIterator[object]:
        try:
            yield object()
        finally:
            await asyncio.sleep(0.1)
            ended.append(perf_counter())

    close = await peer.keep(slow)
    first = asyncio.create_task(close())
    await asyncio.sleep(0.02)
    second = asyncio.create_task(close())
    await asyncio.wait([second])
    waited = bool(ended)
    error = second.exception()
    await asyncio.wait([first])
    if error is not None:
        return f"the second gets a `{type(error).__name__}`"
    times = {1: "once"}.get(len(ended), f"{len(ended)} times")
    return f"{times}, the second {'waits' if waited else 'does not wait'}"


async def early(peer: Peer) -> str:
    """Three are open, the second is closed alone, then the rest: is each closed once, the second first."""
    if peer.early is None:
        return NO
    three, ended = closers(None, None, None)
    await peer.early(three)
    return "yes" if ended[0] == 1 and sorted(ended) == [0, 1, 2] else f"closed in the order {ended}"


async def hand_over(peer: Peer) -> str:
    """Two are open and handed over; what opened them ends; are both still open, and closed by the new owner."""
    if peer.hand_over is None:
        return NO
    two, ended = closers(None, None)
    close = await peer.hand_over(two)
    if ended:
        return "no"
    await close()
    return "yes" if ended == [1, 0] else f"closed in the order {ended}"


async def dropped(peer: Peer) -> str:
    """Something is open, and its owner is forgotten: does anybody tell."""
    if peer.keep is None:
        return NO

    async def thing() -> AsyncIterator[object]:
        yield object()

    with warnings.catch_warnings(record=True) as told_of:
        warnings.simplefilter("always")
        await peer.keep(thing)
        gc.collect()
        await asyncio.sleep(0)
    kinds = sorted({f"`{warning.category.__name__}`" for warning in told_of})
    return ", ".join(kinds) or "nothing"


async def opened_at_once(peer: Peer) -> str:
    """Three that take 100 ms each to open and don't need one another: do they overlap."""
    if peer.opened_at_once is None:
        return NO

    async def slow() -> AsyncIterator[object]:
        await asyncio.sleep(0.1)
        yield object()

    began = perf_counter()
    await peer.opened_at_once([slow, slow, slow])
    return "yes" if perf_counter() - began < 0.25 else "no"


async def faked(peer: Peer) -> str:
    """A shop needs a database, and gets a fake in its place."""
    if peer.faked is None:
        return NO
    return "yes" if await peer.faked() == "Fake" else "no"


async def made(peer: Peer) -> str:
    """A shop that needs a database is asked for: is it made, and the database with it."""
    if peer.made is None:
        return NO
    return f"yes, by {peer.asked_by}" if await peer.made() == "Database" else "no"


def on_trio(peer: Peer) -> str:
    """Open and close three on trio."""
    three, ended = closers(*[trio.lowlevel.checkpoint] * 3)
    try:
        trio.run(peer.run, three, nothing)
    except Exception as exc:
        return f"no, `{type(exc).__name__}`"
    return "yes" if ended == [2, 1, 0] else "no"
