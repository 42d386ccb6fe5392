"""Attempt after attempt: what runs as one workflow of the engine.

An attempt is one step of the engine, and its scope opens and closes inside that step. So acquire and release are never
remembered apart: an attempt that was cut short leaves no trace, and is made again, as a whole, with a fresh scope. One
that ended is remembered with how it ended, also where it failed: so a restart goes on with the next one.

The step may be stopped by a cancellation of the workflow: the engine cancels its task and waits for the end of it. What
closes then is no step of the engine, which would refuse it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final
from weakref import WeakValueDictionary

from dbos import DBOS

from rescope import Ok, ResourceCleanupError, with_scope
from rescope.exceptions import reason
from rescope.workflow.durable._children import Children
from rescope.workflow.durable._packing import pack, packable, unpack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from dbos import StepOptions

    from rescope import Scope

__all__ = ["Policy", "Work", "children_of_this_attempt"]

_log = logging.getLogger("rescope")
_children: ContextVar[Children | None] = ContextVar("rescope.workflow.durable", default=None)

_DONE, _FAILED, _SPENT = "done", "failed", "spent"
_TO_WRITE = 5.0  # seconds, for the engine to write down how a workflow ended


def children_of_this_attempt() -> Children | None:
    """Give what the attempt that we are in has started; `None` outside of one, or when it is over."""
    children = _children.get()
    return None if children is None or children.over else children


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """What a function is called, and how often and how long it may try."""

    name: str
    fn: Callable[..., Awaitable[Any]]
    attempts: int
    backoff: float
    max_backoff: float
    timeout: float | None

    def pause(self, attempt: int) -> float:
        """Give the seconds between an attempt that failed and the next."""
        return min(self.backoff * 2.0 ** min(attempt - 1, 500), self.max_backoff)


@final
class Work:
    """What runs in this process, so that it can be stopped: bodies and pauses at once, what is being written never."""

    def __init__(self) -> None:
        self._stopping = False
        self._cuttable: set[asyncio.Task[Any]] = set()
        self._workflows: set[asyncio.Task[Any]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def workflow(self, policy: Policy) -> Callable[..., Awaitable[Any]]:
        """Give what the engine runs for a function."""

        async def workflow(*args: Any) -> Any:
            task = _current_task()
            self._workflows.add(task)
            task.add_done_callback(self._workflows.discard)
            return await self._try(policy, pack(args, "the arguments"))

        return workflow

    async def stop(self) -> None:
        """Cancel all bodies and pauses, and wait until their scopes are unwound and what ended is written."""
        self._stopping = True
        while self._cuttable:
            for task in self._cuttable:
                task.cancel()
            await asyncio.wait(set(self._cuttable))
            await asyncio.sleep(0)
        if self._workflows:
            # One that lost its work to another process waits for that one's end.
            _, waiting = await asyncio.wait(set(self._workflows), timeout=_TO_WRITE)
            for task in waiting:
                task.cancel()

    async def _try(self, policy: Policy, packed: bytes) -> Any:
        number = 0
        while True:
            number += 1
            how, value = await self._step(policy, number, packed)
            if how == _DONE:
                return value
            if how == _SPENT or number >= policy.attempts:
                _log.warning("%s has failed for good, after %d of %d attempts: %s", *self._told(policy, number, value))
                raise value
            _log.warning("%s failed in attempt %d of %d: %s", *self._told(policy, number, value))
            await self._pause(policy.pause(number))

    async def _step(self, policy: Policy, number: int, packed: bytes) -> tuple[str, Any]:
        """Make one attempt, or remember how it ended."""

        async def attempt() -> tuple[str, Any]:  # without arguments: the engine would show them in its log
            return await self._attempt(policy, number, packed)

        options: StepOptions = {"name": f"attempt {number}", "preemptible": True}
        return await DBOS.run_step_async(options, attempt)

    def _told(self, policy: Policy, number: int, error: Exception) -> tuple[str, int, int, str]:
        return DBOS.workflow_id or policy.name, number, policy.attempts, reason(error)

    async def _pause(self, seconds: float) -> None:
        """Wait, also over a restart: the engine remembers until when."""
        if seconds > 0:
            sleep = asyncio.create_task(DBOS.sleep_async(seconds))
            with self._may_be_cut(sleep):
                await sleep

    async def _attempt(self, policy: Policy, number: int, packed: bytes) -> tuple[str, Any]:
        """Make one attempt. Gives how it ended, as it can be stored; raises only if it was cut short."""
        task = _current_task()
        me = DBOS.workflow_id or ""
        children = Children(me, number)
        _children.set(children)  # the engine gives each attempt a task of its own
        try:
            # One that was cancelled and resumed may still unwind what it had opened.
            with self._may_be_cut(task):
                async with self._turns.setdefault(me, asyncio.Lock()):
                    value = await _in_time(policy, lambda scope: policy.fn(scope, *unpack(packed)))
        except asyncio.CancelledError as cancelled:
            if task.cancelling():
                raise
            # Nobody asked for it, so it is a failure: else it would be pending for ever.
            return _FAILED, packable(
                _noted(RuntimeError("the attempt raised a CancelledError, and nobody had cancelled it"), cancelled)
            )
        except ResourceCleanupError as failure:
            # What it had to do is done; to do it twice may be worse than what was left open.
            return (_SPENT if isinstance(failure.original_result, Ok) else _FAILED), packable(failure)
        except Exception as exc:
            return _FAILED, packable(exc)
        finally:
            children.over = True
        return _stored(value, policy)

    @contextmanager
    def _may_be_cut(self, task: asyncio.Task[Any]) -> Generator[None]:
        if self._stopping:
            task.cancel()
        self._cuttable.add(task)
        try:
            yield
        finally:
            self._cuttable.discard(task)


async def _in_time(policy: Policy, body: Callable[[Scope], Awaitable[Any]]) -> Any:
    """Run a body in a fresh scope. When its time is over, it is cancelled, the scope is unwound, then this raises."""
    limit = asyncio.timeout(policy.timeout)
    try:
        async with limit:
            return await with_scope(body, name=policy.name)
    except TimeoutError as exc:
        if limit.expired():
            exc.args = (f"it took longer than {policy.timeout} s",)
        raise


def _stored(value: object, policy: Policy) -> tuple[str, Any]:
    try:
        return _DONE, unpack(pack(value, f"what {policy.name} returned, a {type(value).__qualname__},"))
    except TypeError as exc:
        return _SPENT, packable(exc)


def _noted(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (the engine runs coroutines in tasks)
    return task
