"""Managers that live in a task of their own.

One task enters the manager, stays, and exits it; so whatever the manager ties to its task, a task group or a cancel
scope, is content, and the scope may be closed from anywhere. A host is a job: no task group of anyio's or trio's holds
it, as that would bring the tie back, and no exception escapes it. It is in one of four places:

- entering: `host()` waits; if that is cancelled, so is the job, and nothing stays;
- staying: waits to be dismissed. Whatever ends the stay before that (background work of the manager's failed and
  cancelled the task) is a death: told at once, and a failure when it is closed;
- leaving: dismissed with the exception in flight, it exits. Only running out of time cancels it now;
- gone: the job is done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from rescope._backends import backend
from rescope._closing import Life, around
from rescope._entered import name_of_manager
from rescope._flight import Flight, carries, chain, raise_unchanged, three, without
from rescope._held import Held
from rescope._resource import SPECIAL, Resource, managed
from rescope._tell import tell_beside
from rescope.exceptions import CloseFailure, HostDiedError, cleanup_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from contextlib import AbstractAsyncContextManager

    from rescope._backends import Event, Job
    from rescope._closing import Closing
    from rescope._scope import Scope
    from rescope._unwind import Unwinding

T = TypeVar("T")


class Hosted(Resource[T]):
    """The handle of a hosted manager."""

    __slots__ = (
        "_closing",
        "_dismissed",
        "_farewell",
        "_home",
        "_inside",
        "_job",
        "_leave",
        "_manager",
        "_settled",
        "farewell_said",
    )

    _job: Job

    def __init__(self, manager: AbstractAsyncContextManager[T], name: str | None, scope: Scope) -> None:
        super().__init__(None, managed, name=name or name_of_manager(manager))  # type: ignore[arg-type]
        self._limits = SPECIAL
        self._manager = manager
        self._home: ref[Scope] | None = ref(scope)
        self._inside = False
        self._settled: Event | None = None
        self._leave = backend().Event()
        self.farewell_said = backend().Event()
        self._dismissed = False
        self._farewell: BaseException | None = None
        self._closing: Closing | None = None

    @property
    def _kind(self) -> str:  # type: ignore[override]
        return "hosted, has died" if self._job.done and not self._dismissed else "hosted"

    async def _live(self) -> None:
        kind: Any = type(self._manager)
        around.set(Life(None, self, around.get()))
        try:
            self._value = await kind.__aenter__(self._manager)
            self._inside = True
        finally:
            self._settle()
        try:
            await self._exit(await self._stay())
        finally:
            if not self._dismissed:
                self._tell_death(sys.exception())
            self._closing = self._farewell = None
            self._settle()

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()

    async def _stay(self) -> BaseException | None:
        try:
            await self._leave.wait()
        except BaseException as exc:
            return exc
        return self._farewell

    async def _exit(self, exc: BaseException | None) -> None:
        """Exit the manager. What it raises of what it was given is no failure; all else is."""
        kind: Any = type(self._manager)
        around.set(self._closing)
        try:
            suppressed = await kind.__aexit__(self._manager, *three(exc))
        except BaseException as new:
            rest = new if exc is None or not self._dismissed else without(new, exc)
            if rest is new:
                raise
            if rest is not None:
                raise rest from None
            return
        if exc is not None and not self._dismissed and not suppressed:
            raise exc

    def holder(self) -> Scope | None:
        """Give the scope that holds it, also while that closes, or for which it is entered."""
        if type(self._state) is Held:
            return self._state()
        if self._closing is not None:
            return self._closing.scope or self._closing.holder
        return None if self._home is None else self._home()

    def moved_in(self) -> None:
        """Let it be where it is held, and nowhere else."""
        self._home = None

    def _tell_death(self, error: BaseException | None) -> None:
        scope = self.holder()
        if scope is not None and scope._teller is not None:
            scope._teller.tell("died", self.name, error=error)

    def _dismiss(self, farewell: BaseException | None, closing: Closing | None = None) -> None:
        self._dismissed, self._farewell, self._closing = True, farewell, closing
        self._leave.set()
        self.farewell_said.set()

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None] | None:
        if self._job.done:
            unwinding.failed(self, self._death(), closing.elapsed())
            return None
        self._dismiss(unwinding.seen(), closing)
        return self._leaving(unwinding, closing)

    async def _leaving(self, unwinding: Unwinding, closing: Closing) -> None:
        error = await unwinding.within(closing, self._job)
        if error is not None:
            unwinding.failed(self, error, closing.elapsed())

    def _death(self) -> BaseException:
        """Tell why the job ended unasked."""
        error = self._job.take_error()
        if error is not None and not isinstance(error, backend().Cancelled):
            return error
        died = HostDiedError(self.name)
        died.__cause__ = error
        return died


async def move_in(hosts: Sequence[Hosted[Any]]) -> None:
    """Enter all the managers, each in its task; if one can't, or this is cancelled, none stays."""
    try:
        for host in hosts:
            host._job = backend().start(host._live)
        while not all(host._inside for host in hosts) and not any(host._job.done for host in hosts):
            settled = backend().Event()
            for host in hosts:
                host._settled = settled
            await settled.wait()
    except BaseException as exc:
        await move_out([host for host in hosts if hasattr(host, "_job")], exc)
        raise
    lost = [host for host in hosts if host._job.done]
    if lost:
        error = _one_of([host._death() for host in lost])
        try:
            await move_out([host for host in hosts if host not in lost], error)
            raise error
        finally:
            del error


async def move_out(hosts: Sequence[Hosted[Any]], exc: BaseException) -> None:
    """End hosts because of `exc`, which is going to be raised: exit those inside, cancel those that enter.

    What comes meanwhile and no error may replace is raised here.
    """
    for host in hosts:
        host._dismiss(exc)
        if not host._inside:
            host._job.cancel()
    flight = Flight(exc)
    failures = []
    for host in hosts:
        await backend().finish(host._job, flight)
        error = host._job.take_error()
        if error is None or carries(error, exc) or isinstance(error, backend().Cancelled):
            continue
        if isinstance(error, Exception):
            failures.append(CloseFailure(host.name, error, 0.0))
        else:
            flight.interrupts += (error,)
    out = flight.interruption() or exc
    if failures:
        tell_beside(out, cleanup_error(failures, None, scope=None, attempted=len(hosts)))
    if out is not exc:
        chain(out, exc)
        raise_unchanged(out)


def _one_of(errors: list[BaseException]) -> BaseException:
    if len(errors) == 1:
        return errors[0]
    return BaseExceptionGroup("several managers could not be hosted", errors)
