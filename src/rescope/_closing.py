"""What is being closed, by whom, and who waits for it."""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rescope._backends import backend
from rescope._tell import log
from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from rescope._held import Held
    from rescope._host import Hosted
    from rescope._resource import Resource
    from rescope._scope import Scope

# The states of a resource or scope. A resource that a scope holds has the scope's `Held` for a state; what closes has
# CLOSING, or the event that those set up who wait for the end.
OPEN, CLOSING, CLOSED, DETACHED = "open", "closing", "closed", "detached"


class Closing:
    """A close that is under way: of a scope, or of one resource, from within the closing `outer`."""

    __slots__ = ("outer", "resource", "scope", "since")

    holder: Scope | None = None
    """Of a close out of turn: the scope that held it."""

    def elapsed(self) -> float:
        """Seconds since this resource began to close."""
        return perf_counter() - self.since

    def __init__(self, scope: Scope | None, resource: Resource[Any] | None, outer: Closing | Held | None) -> None:
        self.scope = scope
        self.resource: Any = resource
        self.outer = outer
        self.since = 0.0


class Life(Closing):
    """Not a close yet: the life of a hosted manager, for those who close from within."""

    __slots__ = ()


class Apart(Closing):
    """What works from here on is no longer the work of a hosted manager (`resource`): its exit does not wait for it."""

    __slots__ = ()


around: ContextVar[Closing | Held | None] = ContextVar("rescope_closing", default=None)
"""The closing that this code works for. Tasks that a closer starts inherit it, so that closing the same from there
returns at once instead of waiting for itself."""

# Looked up once: on an imported name, Python 3.12 and later would make a bound method at each call.
begin_within, end_within = around.set, around.reset


def inside(x: Resource[Any] | Scope) -> bool:
    """Tell whether this runs within the closing of `x`."""
    child = getattr(x, "_value", x)  # the handle of a child scope stands for it
    return any(
        x is closing.resource or (closing.scope is not None and child is closing.scope) for closing in _outwards()
    )


async def ended(x: Resource[Any] | Scope) -> None:
    """Wait until somebody else has closed `x`; not from within, nor where that waits for us: it would never come."""
    if x._state is CLOSED or inside(x) or _waits_for_us(x) or host_within(x) is not None:
        return
    if x._state is CLOSING:
        x._state = backend().Event()
    await x._state.wait()


def _outwards() -> Iterator[Closing | Held]:
    closing = around.get()
    apart_from = []
    while closing is not None:
        if isinstance(closing, Apart):
            apart_from.append(closing.resource)
        elif not (isinstance(closing, Life) and closing.resource in apart_from):
            yield closing
        closing = closing.outer


def _waits_for_us(x: Resource[Any] | Scope) -> bool:
    """Tell whether a scope that closes waits for something out of turn, within the closing of which this runs."""
    return any(scope is x for closing in _outwards() for scope in line_of(closing.holder))


def host_within(x: Resource[Any] | Scope) -> Hosted[Any] | None:
    """Give the hosted manager that this works for, where it is `x` or `x` holds it: its exit may wait for us."""
    for closing in _outwards():
        if not isinstance(closing, Life):
            continue
        host: Hosted[Any] = closing.resource
        if host is x or any(scope is x for scope in line_of(host.holder())):
            return host
    return None


def line_of(scope: Scope | None) -> Iterator[Scope]:
    """Give a scope and those around it, outwards, each once.

    Where a closer of a child closes the parent, each is around the other.
    """
    seen = set()
    while scope is not None and scope not in seen:
        yield scope
        seen.add(scope)
        scope = scope._parent()


async def apart(begin: Callable[[], Awaitable[BaseException | None]], host: Hosted[Any]) -> BaseException | None:
    """Let a task of its own close what holds the manager we work for; it begins at once.

    Waiting for that can be cancelled, and ends when the manager is told to exit, as the exit may wait for us. What
    fails after that is logged.
    """
    waiting = True

    async def run() -> BaseException | None:
        try:
            exc = await closing
        finally:
            host.farewell_said.set()
        if not waiting and exc is not None:
            log(f"a hosted manager closed what holds it, and did not wait for the end: {reason(exc)}")
        return exc

    token = begin_within(Apart(None, host, around.get()))
    try:
        closing = begin()
        job = backend().start(run)
    finally:
        end_within(token)
    try:
        await host.farewell_said.wait()
    finally:
        waiting = False
    return (job.take_error() or job.value) if job.done else None


def end(x: Resource[Any] | Scope) -> None:
    """Let `x` be closed, and wake those who wait for that."""
    state, x._state = x._state, CLOSED
    if state is not CLOSING:
        state.set()
