"""The only rooms that know asyncio from trio, behind one port."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from rescope._flight import Flight


class Job(Protocol):
    """A coroutine function that runs in a task of its own, out of reach of whatever cancels the one who started it."""

    done: bool
    value: Any

    @property
    def asked(self) -> bool:
        """Whether anybody asked this task to cancel."""
        ...

    def cancel(self) -> None:
        """Ask it to end."""

    def end(self) -> None:
        """Let those know who wait for it: what was launched calls this when all is done."""

    def take_error(self) -> BaseException | None:
        """Give what it raised, once: the job forgets it, so that no reference cycle stays."""


class Event(Protocol):
    """What asyncio and trio both call an event."""

    def set(self) -> object:
        """Wake all who wait."""

    async def wait(self) -> object:
        """Wait until it is set; this can be cancelled."""


class Backend(Protocol):
    """What a backend module must offer."""

    Event: Callable[[], Event]
    Cancelled: type[BaseException]

    def start(self, fn: Callable[[], Awaitable[object]], /) -> Job:
        """Run `fn` as a job, in a copy of the current context."""
        ...

    def launch(self, main: Callable[[], Coroutine[Any, Any, None]], /) -> Job | None:
        """Run as a job what lets nothing escape; `None` where it has ended at once."""
        ...

    async def finish(self, job: Job, flight: Flight, seconds: float | None = None, /) -> bool:
        """Wait for a job through every cancellation of the current task, each handed to `flight.hold_off`.

        After `seconds` give up; tell whether the job has ended.
        """
        ...

    def now(self) -> float:
        """Give the time that timeouts go by, in seconds."""
        ...

    def current_task(self) -> object:
        """Give the running task."""
        ...

    def pressure(self) -> float:
        """Count the cancellations that were asked of the current task and are not consumed yet."""
        ...

    def pressure_gauge(self) -> Callable[[], float]:
        """Give what tells `pressure()` of this task, for one who asks often."""
        ...

    def alarm(self, seconds: float, ring: Callable[[], float | None], /) -> None:
        """Call `ring` after so many seconds, and again later, until it gives `None`.

        It may be one alarm for all who ask; and it may ring only while somebody waits in `finish`.
        """

    def scope_cancelled(self) -> bool:
        """Tell whether an anyio or trio scope around the current task is cancelled."""
        ...

    def open_nurseries(self) -> int | None:
        """Count the trio nurseries that the current task holds open; on asyncio there are none."""
        ...

    def warm(self) -> None:
        """Import what a cancellation needs, so that it does not take its time from a short grace."""
        ...


class _Loaded:
    """The backends that were imported so far."""

    asyncio: Backend | None = None
    trio: Backend | None = None


def backend() -> Backend:
    """Give the backend of the running task, imported on first use.

    A running loop proves nothing: in trio's guest mode an asyncio loop runs too. The current task does.
    """
    if _Loaded.asyncio is None:
        _load("asyncio")
    try:
        if _Loaded.asyncio is not None and _Loaded.asyncio.current_task() is not None:
            return _Loaded.asyncio
    except RuntimeError:
        pass  # no loop runs here
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return _Loaded.trio or _load("trio")
    msg = "no async task is running here: use a scope from a coroutine that asyncio or trio runs"
    raise RuntimeError(msg)


def stance() -> tuple[Any, float, int | None]:
    """Give the running task, its pressure, and how many nurseries it holds open, where it can; each `enter` asks."""
    if _Loaded.asyncio is not None:
        try:
            task: Any = _Loaded.asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None:
            return task, task.cancelling(), None
    here = backend()
    return here.current_task(), here.pressure(), here.open_nurseries()


def _load(name: str) -> Any:
    if name in sys.modules:
        setattr(_Loaded, name, import_module(f"rescope._backends.{name}"))
    return getattr(_Loaded, name)
