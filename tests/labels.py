"""How what happens is told, so that two runs can be compared.

An exception that `c1` raises is `"c1"`, or `"KeyboardInterrupt c1"`; a `ResourceCleanupError` is the tuple of its
failures, each a name and a label.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import anyio
import anyio.lowlevel

from rescope import (
    CloseCancelledError,
    CloseRejectedError,
    CloseTimeoutError,
    Err,
    HostDiedError,
    Ok,
    ResourceCleanupError,
)
from strategies import Child, Early, HostAll, Item, Program, walk

CANCELLED = "cancelled"
SECRET = "hunter2"  # noqa: S105 (what must show nowhere)


class Fault(Exception):
    """An error with a label."""


class Stop(BaseException):
    """Something urgent with a label, that is neither of Python's own."""


class Secret:
    """A value whose `repr` must never be seen."""

    def __init__(self, name: str = "") -> None:
        self.owner = name

    def __repr__(self) -> str:
        return SECRET

    __str__ = __repr__


def label(exc: BaseException | None) -> Any:  # noqa: PLR0911
    """Say which exception it is."""
    match exc:
        case None:
            return None
        case ResourceCleanupError():
            return tuple((failure.name, label(failure.exception)) for failure in exc.failures)
        case CloseCancelledError() | CloseTimeoutError() | HostDiedError():
            return f"{type(exc).__name__} {exc.name}"
        case CloseRejectedError():
            return f"CloseRejectedError {getattr(exc.error, 'owner', None)}"
        case KeyError():
            return f"KeyError {exc.args[0].owner}" if isinstance(exc.args[0], Secret) else "KeyError"
        case Fault():
            return exc.args[0]
        case KeyboardInterrupt() | SystemExit() | Stop():
            return f"{type(exc).__name__} {exc.args[0]}"
        case _:
            return CANCELLED if isinstance(exc, anyio.get_cancelled_exc_class()) else type(exc).__name__


def ending(name: str, end: str) -> Any:
    """End as something of that name does."""
    match end:
        case "raise":
            raise Fault(name)
        case "raise secret":
            raise KeyError(Secret(name))
        case "err":
            return Err(Fault(name))
        case "err value":
            return Err(Secret(name))
        case "interrupt":
            raise KeyboardInterrupt(name)
        case "exit":
            raise SystemExit(name)
        case "stop":
            raise Stop(name)
    return Ok(Secret(name))


def acting(name: str, act: str, seen: BaseException | None) -> bool:
    """Do what a manager of that name does when it is exited."""
    match act:
        case "suppress":
            return True
        case "raise":
            raise Fault(name)
        case "reraise" if seen is not None:
            raise seen
        case "wrap" if seen is not None:
            raise Fault(name) from seen
        case "interrupt":
            raise KeyboardInterrupt(name)
        case "stop":
            raise Stop(name)
    return False


async def own_cancellation() -> BaseException:
    """Give a cancellation that nobody asked for."""
    if "asyncio" in str(anyio.get_cancelled_exc_class().__module__):
        return asyncio.CancelledError()
    import trio

    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            return exc.with_traceback(None)
    raise AssertionError


def told_result(result: Any) -> Any:
    """Say what came back."""
    if isinstance(result, Err):
        return ("Err", label(result.error) if isinstance(result.error, BaseException) else result.error)
    return ("Ok", result.value) if isinstance(result, Ok) else result


def living_tasks() -> int:
    """Count the tasks that run."""
    if "asyncio" in str(anyio.get_cancelled_exc_class().__module__):
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


@contextlib.contextmanager
def logs_into(messages: list[str]) -> Iterator[None]:
    """Gather what the library logs."""

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("rescope"), Gather()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


# What overlaps


def overlaps(program: Program) -> bool:
    """Tell whether something in it closes concurrently."""
    return program.concurrent or any(isinstance(item, Child) and item.concurrent for item in walk(program.items))


def blocks(program: Program) -> dict[str, str]:
    """Give the outermost concurrent scope around each name: in there, things happen in any order."""
    found: dict[str, str] = {}

    def look(items: tuple[Item, ...], block: str | None) -> None:
        for item in walk(items) if block is not None else items:
            if block is not None and not isinstance(item, HostAll | Early):
                found[item.name] = found[f"{item.name}+"] = block
            if isinstance(item, Child):
                look(item.items, block or (item.name if item.concurrent else None))

    look(program.items, "root" if program.concurrent else None)
    return found


def in_any_order(program: Program, journal: list[tuple[Any, ...]]) -> list[Any]:
    """Give a journal in which what overlaps is sorted, and all else stands as it was."""
    block = blocks(program)
    told: list[Any] = []
    if block:
        journal = [(*entry[:2], *map(in_no_order, entry[2:])) for entry in journal]
    for key, entries in groupby(journal, key=lambda entry: block.get(entry[1])):
        here = list(entries)
        told.append(sorted(here, key=repr) if key else here)
    return told


def in_no_order(exc: Any) -> Any:
    """Give a label in which failures are sorted by name."""
    if isinstance(exc, tuple):
        return tuple(sorted((in_no_order(one) for one in exc), key=repr))
    return exc
