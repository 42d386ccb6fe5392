"""The state of machines that events step, one event at a time: locked, read, written over what was read, unlocked.

After the machine memory and the synchronous event resource of the event-driven orchestrators xorca and Arvo. Events
with the same subject are about the same machine. Who handles one does four things, in this order: `acquire_lock`,
`acquire_state`, `persist_state`, `release_lock`. `EventResource.transaction` does the four as one block.

The lock saves work, the snapshot saves the state: a lock may run out under its holder, and then the write is refused,
as the snapshot that it builds upon doesn't stand any more.
"""

from __future__ import annotations

import logging
import math
import random
import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar, cast, final

from rescope import Err, Ok, ResourceCleanupError, Scope
from rescope.exceptions import reason
from rescope.workflow._machine_port import (
    ExecutionViolation,
    LockStatus,
    MachineMemory,
    ReleaseStatus,
    State,
    TransactionViolation,
    UnfitStateError,
    ViolationReason,
    check_subject,
)
from rescope.workflow._machine_spans import operations
from rescope.workflow._machine_store import HOLDER, StoreMemory
from rescope.workflow._machine_transaction import Transaction, check_state
from rescope.workflow.store import StoreClosedError, StoreError, VersionConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from opentelemetry.trace import Tracer

    from rescope import Result
    from rescope.workflow._machine_spans import Operation

__all__ = [
    "EventResource",
    "ExecutionViolation",
    "LockStatus",
    "MachineMemory",
    "ReleaseStatus",
    "StoreMemory",
    "Transaction",
    "TransactionViolation",
    "UnfitStateError",
    "ViolationReason",
    "check_subject",
]

Answer = TypeVar("Answer")

_PAUSES = (0.03, 0.06, 0.12, 0.24)  # seconds between tries, at most
_PATIENCE = 0.5  # seconds after which no other try begins
_LAST_WORD = 1.0  # seconds that a lock which is under way has to answer when it is cancelled
_LONGEST_UNLOCK = 5.0  # seconds: what is not unlocked expires


@final
class EventResource(Generic[State]):
    """What stands between the events and the memory of their machines.

    `memory` keeps the states: a `StoreMemory`, or one of your own. `locking`: whether a subject is locked while an
    event is handled. Without it the memory is never asked to lock, and the statuses are `NOOP`: then of two that handle
    events of a subject at once, one fails in the end, and its work was for nothing.

    `validate_subject` is called with each subject before anything else. It refuses one by raising, or by giving
    `False`; it replaces `check_subject`, which it may call.

    A memory that fails to read or to lock is asked again, and so is one where somebody else holds the lock: up to four
    more times, with jittered pauses, and no more after half a second. Nothing else is tried twice. `clock` gives
    seconds that never go back, for that half second.

    `tracer` makes a span of each of the four operations. Where it is not given and OpenTelemetry is installed, the
    global tracer does. No span holds a state.

    Any number of tasks may share one. Raises `TypeError` for what can't be any of these. ::

        orders = EventResource(StoreMemory(store), locking=True)

        async with orders.transaction("order-17") as step:
            step.state = next_state(step.state, event)
    """

    __slots__ = ("__weakref__", "_clock", "_locking", "_memory", "_operation", "_validate")

    def __init__(
        self,
        memory: MachineMemory[State],
        *,
        locking: bool,
        validate_subject: Callable[[str], object] = check_subject,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check(memory, locking, validate_subject, clock)
        self._memory = memory
        self._locking = locking
        self._validate = validate_subject
        self._clock = clock
        self._operation = operations(tracer)

    def __repr__(self) -> str:
        return f"<EventResource on a {type(self._memory).__qualname__}, locking {'on' if self._locking else 'off'}>"

    async def acquire_lock(self, subject: str) -> LockStatus:
        """Lock a subject: `ACQUIRED`, `NOT_ACQUIRED` where somebody else holds it, or `NOOP` where locking is off.

        Give the status to `release_lock`. Raises `TransactionViolation` where the memory goes on failing. When it is
        cancelled, a lock that is under way has a second to answer, and what it has locked is unlocked again.
        """
        self._check(subject)
        scope = Scope(f"lock of {subject}")
        try:
            status = await self._acquire(scope, subject, self)
        except BaseException:
            await self._unlock_all(scope, subject)
            raise
        for lock in scope.resources:
            scope.detach(lock)
        return status

    async def acquire_state(self, subject: str) -> State | None:
        """Read the state, the snapshot to build upon; `None` where nothing stands yet.

        Raises `TransactionViolation` where the memory goes on failing.
        """
        self._check(subject)
        with self._operation("acquire_state", subject) as operation:
            try:
                return await self._patiently(partial(self._memory.read, subject), operation)
            except Exception as exc:
                _violate(subject, "read failed", exc)

    async def persist_state(self, subject: str, data: State, prev: State | None) -> None:
        """Write the state, if `prev` still stands, which is what was read; `None`: if nothing stands yet.

        Raises `TransactionViolation` where it doesn't, or the memory fails; it is not tried again. Raises `TypeError`
        for `None`, which stands for no state, and `UnfitStateError` for what the memory can't keep. A write that is
        cancelled may have been done.
        """
        self._check(subject)
        check_state(subject, data)
        with self._operation("persist_state", subject):
            try:
                written = await self._memory.write(subject, data, prev)
            except UnfitStateError:
                raise
            except VersionConflictError as exc:
                raise TransactionViolation(subject, "stale snapshot") from exc
            except Exception as exc:
                may_retry = isinstance(exc, StoreError) and exc.may_retry
                _violate(subject, "write failed", exc, may_retry=may_retry)
            if written is False:
                raise TransactionViolation(subject, "stale snapshot")

    async def release_lock(self, subject: str, status: LockStatus | None) -> ReleaseStatus:
        """Unlock what `acquire_lock` gave that status for: `RELEASED`, `ERROR`, or `NOOP` where nothing was acquired.

        What the memory fails with is told by a WARNING on the logger `rescope`, and never raised; the memory's lock
        expires then. No cancellation reaches the unlocking, which takes 5 seconds at most.
        """
        self._check(subject)
        scope = Scope(f"lock of {subject}")
        if _status(status) is LockStatus.ACQUIRED and self._locking:
            self._hold(scope, subject, self)
        return await self._release(scope, subject)

    def transaction(self, subject: str) -> AbstractAsyncContextManager[Transaction[State], bool | None]:
        """Handle an event: lock, read, run the block, write what it made of the state, unlock.

        Gives a `Transaction`. Change its `state`, or set another: at a clean end of the block it is written, if it has
        changed. Where the block raises or is cancelled, nothing is written. The lock is given back in any case, as
        `release_lock` does.

        Raises `TransactionViolation` before the block where the lock isn't to be had or the memory fails; after the
        block where the snapshot no longer stands or the write fails. A cancellation at the very end, while it is
        written, leaves open whether it was.
        """
        self._check(subject)
        return self._transaction(subject)

    @asynccontextmanager
    async def _transaction(self, subject: str) -> AsyncGenerator[Transaction[State]]:
        step = Transaction(self, subject)
        scope = Scope(f"transaction {subject}")
        try:
            step.status = await self._acquire(scope, subject, step)
            if step.status is LockStatus.NOT_ACQUIRED:
                raise TransactionViolation(subject, "not acquired")
            step._begin(await self.acquire_state(subject))
            yield step
            await step._end()
        finally:
            step._over = True
            await self._release(scope, subject, step)

    # The lock, as something that a scope holds

    async def _acquire(self, scope: Scope, subject: str, holder: object) -> LockStatus:
        with self._operation("acquire_lock", subject) as operation:
            status = LockStatus.NOOP
            if self._locking:
                try:
                    taken = await self._patiently(partial(self._lock, scope, subject, holder), operation, bool)
                except Exception as exc:
                    _violate(subject, "lock failed", exc)
                status = LockStatus.ACQUIRED if taken else LockStatus.NOT_ACQUIRED
            operation.end(status)
            return status

    async def _lock(self, scope: Scope, subject: str, holder: object) -> bool:
        """Ask for the lock once. A cancellation waits a little for the answer: else nobody would know of the lock."""
        from anyio import CancelScope, Event, create_task_group, current_time
        from anyio.lowlevel import checkpoint_if_cancelled

        await checkpoint_if_cancelled()
        shield, answered = CancelScope(shield=True), Event()
        answer: Result[bool, BaseException] = Err(TimeoutError("the memory gave no answer"))

        async def ask() -> None:
            nonlocal answer
            with shield:
                try:
                    answer = Ok(bool(await _for(holder, partial(self._memory.lock, subject))))
                    if answer.value:
                        self._hold(scope, subject, holder)
                except (Exception, KeyboardInterrupt, SystemExit) as exc:
                    answer = Err(exc)
                finally:
                    answered.set()
            if shield.cancelled_caught:
                _tell(subject, "locking it was cancelled, and the memory gave no answer: it may be locked")

        async with create_task_group() as tasks:
            tasks.start_soon(ask)
            try:
                await answered.wait()
            finally:
                shield.deadline = current_time() + _LAST_WORD
        return answer.unwrap()

    def _hold(self, scope: Scope, subject: str, holder: object) -> None:
        scope.add(None, partial(self._unlock, subject, holder), name="unlock", timeout=_LONGEST_UNLOCK)

    async def _unlock(self, subject: str, holder: object) -> None:
        if await _for(holder, partial(self._memory.unlock, subject)) is False:
            raise TransactionViolation(subject, "unlock failed")

    async def _release(self, scope: Scope, subject: str, step: Transaction[State] | None = None) -> ReleaseStatus:
        status = ReleaseStatus.RELEASED if scope.size else ReleaseStatus.NOOP
        with self._operation("release_lock", subject) as operation:
            try:
                await self._unlock_all(scope, subject)
            finally:  # a cancellation goes on after the unlocking
                status = status if scope.cleanup_error is None else ReleaseStatus.ERROR
                operation.end(status)
                if step is not None:
                    step.released = status
        return status

    async def _unlock_all(self, scope: Scope, subject: str) -> None:
        try:
            await scope.aclose()
        except ResourceCleanupError as error:
            _tell(subject, error.message)

    # Asking the memory

    async def _patiently(
        self,
        ask: Callable[[], Awaitable[Answer]],
        operation: Operation,
        is_enough: Callable[[Answer], bool] = lambda _: True,
    ) -> Answer:
        """Ask until the answer is enough; in the end give the answer that there is, or raise what it failed with."""
        from anyio import sleep

        end = self._clock() + _PATIENCE
        pauses = iter((*_PAUSES, math.inf))
        while True:
            pause, trouble = next(pauses), None
            try:
                answer = await ask()
                if is_enough(answer) or pause > end - self._clock():
                    return answer
            except Exception as exc:
                if isinstance(exc, StoreClosedError) or pause > end - self._clock():
                    raise
                trouble = exc
            operation.retry(trouble)
            await sleep(random.uniform(pause / 2, pause))  # noqa: S311 (it spreads the tries, and hides nothing)

    def _check(self, subject: str) -> None:
        try:
            verdict = self._validate(subject)
        except ExecutionViolation:
            raise
        except Exception as exc:
            msg = f"this can't be the subject of an event: {reason(exc)}"
            raise ExecutionViolation(msg) from exc
        if iscoroutine(verdict):
            verdict.close()
            msg = "`validate_subject` must not be async: it is called at once, before the memory is asked"
            raise TypeError(msg)
        if verdict is False:
            msg = "this can't be the subject of an event: `validate_subject` gave False"
            raise ExecutionViolation(msg)


async def _for(holder: object, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask a memory on behalf of a holder."""
    token = HOLDER.set(holder)
    try:
        return await ask()
    finally:
        HOLDER.reset(token)


def _violate(subject: str, what: ViolationReason, exc: Exception, *, may_retry: bool = True) -> NoReturn:
    """Raise what a memory's error means; a violation is its own."""
    if isinstance(exc, TransactionViolation):
        raise exc
    raise TransactionViolation(subject, what, may_retry=may_retry) from exc


def _status(status: object) -> LockStatus:
    try:
        return LockStatus.NOOP if status is None else LockStatus(cast("str", status))
    except ValueError:
        msg = f"`status` must be what `acquire_lock` gave, a LockStatus, not a {type(status).__qualname__}"
        raise TypeError(msg) from None


def _tell(subject: str, what: str) -> None:
    logging.getLogger("rescope").warning("machine %r: %s", subject, what)


def _check(memory: object, locking: object, validate_subject: object, clock: object) -> None:
    """Refuse what no resource can be made of."""
    if not isinstance(locking, bool):
        msg = f"`locking` must be True or False, not a {type(locking).__qualname__}"
        raise TypeError(msg)
    methods = ["read", "write", "lock", "unlock"] if locking else ["read", "write"]
    if isinstance(memory, type):
        msg = f"`memory` must be a memory, not the class {memory.__qualname__}: make one"
        raise TypeError(msg)
    if missing := [name for name in methods if not callable(getattr(memory, name, None))]:
        msg = f"`memory` must have {', '.join(methods)}; a {type(memory).__qualname__} lacks {', '.join(missing)}"
        raise TypeError(msg)
    for option, given in (("validate_subject", validate_subject), ("clock", clock)):
        if not callable(given):
            msg = f"`{option}` must be callable, not a {type(given).__qualname__}"
            raise TypeError(msg)
