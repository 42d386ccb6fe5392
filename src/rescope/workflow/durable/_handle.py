"""Handles: what was started, seen from outside."""

from __future__ import annotations

import asyncio
import math
import pickle
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Final, Generic, Literal, NoReturn, TypeVar, final

from dbos import DBOS
from dbos import error as engine_error

from rescope import Err, Ok
from rescope.workflow.durable._children import FAILED, started_by
from rescope.workflow.durable._packing import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbos import WorkflowHandleAsync

    from rescope.workflow.durable._app import Durable

__all__ = ["DurableCancelledError", "DurableClosedError", "Handle", "KeyReusedError", "Progress", "gather", "seconds"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class KeyReusedError(ValueError):
    """A key that was given with other arguments before. `id` is that of the work that has it."""

    def __init__(self, id: str) -> None:  # noqa: A002
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"the key of {self.id} was given with other arguments before: use another key for other work"


class DurableCancelledError(Exception):
    """The work that a result was awaited of was cancelled, by a tool of the engine. `id` is that of the work."""

    def __init__(self, id: str) -> None:  # noqa: A002
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"{self.id} was cancelled"


class DurableClosedError(RuntimeError):
    """The application is not open, or was closed while a result was awaited. The work goes on when it opens again.

    So it does, soon, where the task that it ran in was cancelled by other means than the engine's.
    """


@dataclass(frozen=True, slots=True)
class Progress:
    """How far what one function has started is: how many in all, and how many of them are done, or failed."""

    total: int
    done: int
    failed: int

    @property
    def running(self) -> int:
        """How many are at work, or wait for their turn."""
        return self.total - self.done - self.failed


@final
class Handle(Generic[R_co]):
    """Work that was started, in this process or in another one, now or long ago."""

    __slots__ = ("_app", "_live", "_opened", "id")

    def __init__(self, app: Durable, id: str, live: WorkflowHandleAsync[R_co] | None = None) -> None:  # noqa: A002
        self._app = app
        self._live = live
        self._opened = app._work
        self.id: Final = id

    async def result(self, *, timeout: float | None = None) -> R_co:
        """Wait for the end of it, and give what the function returned; what it raised in its last attempt is raised.

        What comes is a copy, as a restart would give it: pickled and read again. An exception that can't be pickled
        comes as a `RemoteError`. The work runs on whatever becomes of who waits: `TimeoutError` after `timeout`
        seconds, and a cancellation, end the waiting only.

        Raises `DurableCancelledError` where the work was cancelled; `DurableClosedError` where the application is not
        open, or is closed meanwhile; `LookupError` for an id that was never started; `TypeError` or `ValueError` for a
        `timeout` that is none.
        """
        limit = None if timeout is None or timeout == math.inf else seconds(timeout, "timeout", zero=True)
        return await self._app._within(limit, self._wait(), self.id)

    async def status(self) -> Literal["running", "done", "failed", "cancelled"]:
        """Say how it stands, without waiting. Raises `LookupError` for an id that was never started."""
        status = await self._app._apart(self._app._status(self.id))
        if status is None:
            self._unknown()
        if status.status == "CANCELLED":
            return "cancelled"
        if status.status in FAILED:
            return "failed"
        return "done" if status.status == "SUCCESS" else "running"

    async def progress(self) -> Progress:
        """Count what the function has started so far without a key. It doesn't wait, and works from any process."""
        look = started_by(self.id, load_input=False)
        found = [status.status for status in await self._app._apart(look)]
        return Progress(len(found), found.count("SUCCESS"), sum(status in FAILED for status in found))

    async def _wait(self) -> R_co:
        if self._live is None or self._opened is not self._app._work:
            self._opened = self._app._work
            if await self._app._status(self.id) is None:
                self._unknown()
            self._live = await DBOS.retrieve_workflow_async(self.id, existing_workflow=False)
        try:
            value = await self._live.get_result(polling_interval_sec=self._app._ask_again)
        except engine_error.DBOSAwaitedWorkflowCancelledError as exc:
            raise DurableCancelledError(self.id) from exc
        copy: R_co = unpack(pickle.dumps(value))
        return copy

    def _unknown(self) -> NoReturn:
        msg = f"nothing was ever started as {self.id}"
        raise LookupError(msg)

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"


async def gather(
    *handles: Handle[R], on_progress: Callable[[int, int], object] | None = None
) -> list[Ok[R] | Err[Exception]]:
    """Wait for all, and give how each ended, in their order: `Ok(value)`, or `Err(error)` for one that failed.

    `on_progress(ended, all)` is called when one has ended. Raises `DurableClosedError` where the application closes
    meanwhile; `TypeError` for what is no handle, and for an async `on_progress`. A cancellation ends the waiting, and
    nothing else.
    """
    _check_gathered(handles, on_progress)
    ended = 0

    async def one(handle: Handle[R]) -> Ok[R] | Err[Exception]:
        nonlocal ended
        result: Ok[R] | Err[Exception]
        try:
            result = Ok(await handle.result())
        except DurableClosedError:
            raise
        except Exception as exc:
            result = Err(exc)
        ended += 1
        if on_progress is not None:
            on_progress(ended, len(handles))
        return result

    return await asyncio.gather(*(one(handle) for handle in handles))


def _check_gathered(handles: tuple[object, ...], on_progress: object) -> None:
    for handle in handles:
        if not isinstance(handle, Handle):
            kind = type(handle).__qualname__
            msg = f"`gather` takes handles, as `gather(*handles)`, each of a `start` that was awaited, not a {kind}"
            raise TypeError(msg)
    if iscoroutinefunction(on_progress):
        msg = "`on_progress` must be a plain function, as nobody awaits it"
        raise TypeError(msg)


def seconds(value: object, what: str, *, zero: bool = False) -> float:
    """Give a number of seconds as a float. Raises `TypeError` or `ValueError`, which name the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"`{what}` must be a number of seconds, not a {type(value).__qualname__}"
        raise TypeError(msg)
    if not (0 <= value < math.inf) or (value == 0 and not zero):
        msg = f"`{what}` must be a finite number of seconds, {'0 or more' if zero else 'more than 0'}"
        raise ValueError(msg)
    return float(value)
