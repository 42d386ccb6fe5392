"""Attempt after attempt: what runs as one workflow of the engine.

An attempt is one step of the engine, and its scope opens and closes inside that step. So acquire and release are never
remembered apart: an attempt that was cut short leaves no trace, and is made again, as a whole, with a fresh scope. One
that ended is remembered with how it ended, also where it failed: so a restart goes on with the next one.

The step may be stopped by a cancellation of the workflow: the engine cancels its task and waits for the end of it. What
closes then is no step of the engine, which would refuse it.

An attempt that ends its process each time would be made for ever. So a workflow that is run again first writes down, in
the place of the attempt, that it was cut short. Where that stands too often, the work has failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final
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

__all__ = ["Policy", "Work", "children_of_this_attempt", "started_here"]

_log = logging.getLogger("rescope")
_children: ContextVar[Children | None] = ContextVar("rescope.workflow.durable", default=None)
started_here: ContextVar[bool] = ContextVar("rescope.workflow.durable.started_here", default=False)
"""Whether what runs was started in this life of the process, and is no work that is taken up again."""

_DONE, _FAILED, _SPENT, _CUT = "done", "failed", "spent", "cut"
_CUTS: Final = 100  # how often in a row an attempt may be cut short
_SOON: Final = 3600.0  # seconds between two of them, else it isn't in a row
_TO_WRITE: Final = 5.0  # seconds, for the engine to write down how a workflow ended


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
class _Run:
    """One run of a workflow, from its beginning. `again`: others were before it; `told`: that is written down."""

    __slots__ = ("again", "packed", "policy", "told")

    def __init__(self, policy: Policy, args: tuple[Any, ...]) -> None:
        self.policy = policy
        self.packed = pack(args, "the arguments")
        self.again = not started_here.get()
        self.told = not self.again


@final
class Work:
    """What runs in this process, so that it can be stopped: bodies and pauses at once, what is being written never."""

    def __init__(self) -> None:
        self._stopping = False
        self._cuttable: set[asyncio.Task[Any]] = set()
        self._workflows: dict[asyncio.Task[Any], str] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def workflow(self, policy: Policy) -> Callable[..., Awaitable[Any]]:
        """Give what the engine runs for a function."""

        async def workflow(*args: Any) -> Any:
            task = _current_task()
            self._workflows[task] = DBOS.workflow_id or ""
            task.add_done_callback(self._workflows.pop)
            return await self._try(_Run(policy, args))

        return workflow

    def running(self) -> set[str]:
        """Give the ids of what runs in this process."""
        return set(self._workflows.values())

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

    async def _try(self, run: _Run) -> Any:
        policy, number, cuts, last = run.policy, 1, 0, 0.0
        while True:
            how, value = await self._step(run, number)
            if how == _DONE:
                return value
            if how == _CUT:
                cuts, last = (cuts + 1 if value - last <= _SOON else 1), value
                if cuts < _CUTS:
                    continue
                how, value = _SPENT, _cut_too_often(number)
            if how == _SPENT or number >= policy.attempts:
                _log.warning("%s has failed for good, after %d of %d attempts: %s", *_told(policy, number, value))
                raise value
            _log.warning("%s failed in attempt %d of %d: %s", *_told(policy, number, value))
            await self._pause(policy.pause(number))
            number, cuts = number + 1, 0

    async def _step(self, run: _Run, number: int) -> tuple[str, Any]:
        """Make one attempt, or remember how it ended."""

        async def attempt() -> tuple[str, Any]:  # without arguments: the engine would show them in its log
            children = Children(DBOS.workflow_id or "", number, first=number == 1 and not run.again)
            told, run.told = run.told, True
            # What waits for others is not what ended the process.
            if told or await asyncio.create_task(children.running(), context=Context()):
                return await self._attempt(run, children)
            return _CUT, time.time()

        options: StepOptions = {"name": f"attempt {number}", "preemptible": True}
        return await DBOS.run_step_async(options, attempt)

    async def _pause(self, seconds: float) -> None:
        """Wait, also over a restart: the engine remembers until when."""
        if seconds > 0:
            sleep = asyncio.create_task(DBOS.sleep_async(seconds))
            with self._may_be_cut(sleep):
                await sleep

    async def _attempt(self, run: _Run, children: Children) -> tuple[str, Any]:
        """Make one attempt. Gives how it ended, as it can be stored; raises only if it was cut short."""
        task = _current_task()
        _children.set(children)  # the engine gives each attempt a task of its own
        try:
            # One that was cancelled and resumed may still unwind what it had opened.
            with self._may_be_cut(task):
                async with self._turns.setdefault(children.parent, asyncio.Lock()):
                    await asyncio.sleep(0)  # a cancellation that is there already comes before the body
                    value = await _in_time(run.policy, unpack(run.packed))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as exc:
            # Also what a body makes of our own cancellation. Any other was asked for where it comes out as one.
            if task.cancelling() and (self._stopping or not isinstance(exc, Exception)):
                raise asyncio.CancelledError from exc
            return _how_it_failed(exc)
        finally:
            children.over = True
        return _stored(value, run.policy)

    @contextmanager
    def _may_be_cut(self, task: asyncio.Task[Any]) -> Generator[None]:
        if self._stopping:
            task.cancel()
        self._cuttable.add(task)
        try:
            yield
        finally:
            self._cuttable.discard(task)


async def _in_time(policy: Policy, args: tuple[Any, ...]) -> Any:
    """Run a body in a fresh scope. When its time is over, it is cancelled, the scope is unwound, then this raises.

    A body that has ended has ended in time, however long its scope takes to unwind.
    """
    limit = asyncio.timeout(policy.timeout)

    async def body(scope: Scope) -> Any:
        try:
            return await policy.fn(scope, *args)
        finally:
            if not limit.expired():
                limit.reschedule(None)

    try:
        async with limit:
            return await with_scope(body, name=policy.name)
    except TimeoutError as exc:
        if limit.expired():
            exc.args = (f"it took longer than {policy.timeout} s",)
        raise


def _how_it_failed(error: BaseException) -> tuple[str, Exception]:
    if not isinstance(error, Exception):
        # Nobody asked for it, so it is a failure: else it would be pending for ever.
        kind = type(error).__name__
        return _FAILED, _noted(RuntimeError(f"the attempt raised a {kind}, and nobody had cancelled it"), error)
    # What it had to do is done; to do it twice may be worse than what was left open.
    done = isinstance(error, ResourceCleanupError) and isinstance(error.original_result, Ok)
    return (_SPENT if done else _FAILED), packable(error)


def _cut_too_often(number: int) -> Exception:
    return RuntimeError(f"attempt {number} was cut short {_CUTS} times in a row, and may be what ends the process")


def _told(policy: Policy, number: int, error: Exception) -> tuple[str, int, int, str]:
    return DBOS.workflow_id or policy.name, number, policy.attempts, reason(error)


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
