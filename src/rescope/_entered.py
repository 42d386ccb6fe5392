"""Managers entered in the body's task: nested `with` statements.

A shield or a task around their exit would break the ones that keep a task group or cancel scope open, so they are
exited in the closing task, bare: as exposed to cancellation as in a plain `async with`, and without a bound in time.
What they see and what becomes of what they raise is the `Flight`'s.
"""

from __future__ import annotations

import sys
from contextlib import _GeneratorContextManagerBase
from time import perf_counter
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rescope._backends import backend
from rescope._closer import name_of
from rescope._closing import CLOSED, CLOSING, begin_within, end, end_within
from rescope._flight import carries, cut_context, three
from rescope._held import Held, Raised
from rescope._resource import SPECIAL, Resource, managed
from rescope._result import Err
from rescope._slow import unwatch, watch
from rescope.exceptions import WrongTaskError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._closing import Closing
    from rescope._flight import Failure
    from rescope._unwind import Unwinding

T = TypeVar("T")


class Entered(Resource[T]):
    """The handle of an entered manager."""

    __slots__ = ("_aexit", "_handled", "_manager", "_stance")

    _aexit: Callable[..., Any] | None
    """`None` for a sync manager. What a `with` statement needs is looked up on the type, when it is entered."""
    _manager: Any
    _stance: tuple[Any, float, int | None]
    """The task that entered it, how often that was asked to cancel then, and the nurseries that the manager opened."""
    _handled: BaseException | None
    """What was being handled then."""

    _in_task = True
    _kind = "entered"
    _close = staticmethod(managed)
    _limits = SPECIAL
    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:
        __init__ = object.__init__

    def opened(self) -> None:
        """Count the nurseries that it opened, now that it is entered."""
        task, pressure, before = self._stance
        self._stance = task, pressure, (backend().open_nurseries() or 0) - (before or 0)

    def _default_name(self) -> str:
        return name_of_manager(self._manager)

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None]:
        return self._leave(unwinding, closing)

    @staticmethod
    async def _in_turn(held: Held) -> None:
        """Exit the entered managers at the end of what is held, the last one first, until one raises.

        For when nothing is in flight. It also ends where the next is no async manager, or was entered in another task.
        This is what managers mostly meet, and a coroutine or two for each would take as long as the exit itself.
        """
        places = held.places
        task = backend().current_task()
        token = held.token = begin_within(held)
        watch(held)
        try:
            while places:
                handle: Any = places.pop()
                if (
                    type(handle) is not Entered
                    or handle._state is not held
                    or handle._stance[0] is not task
                    or handle._aexit is None
                ):
                    places.append(handle)
                    return
                handle._state = CLOSING
                held.resource = handle
                held.since = perf_counter()
                try:
                    await handle._aexit(handle._manager, None, None, None)
                except BaseException as exc:
                    held.left = Raised(exc, perf_counter() - held.since)
                    return
                handle._handled = None
                if handle._state is CLOSING:
                    handle._state = CLOSED
                else:
                    end(handle)
        finally:
            unwatch(held)
            end_within(token)

    async def _leave(self, unwinding: Unwinding, closing: Closing) -> None:
        """Exit the manager with what is in flight, and see what it leaves."""
        seen = unwinding.seen()
        elsewhere = backend().current_task() is not self._stance[0]
        pressure = backend().pressure() if isinstance(seen, backend().Cancelled) else 0
        try:
            if elsewhere:
                self._refuse_elsewhere()
            if seen is None and self._aexit is not None:
                await self._aexit(self._manager, None, None, None)
            elif seen is None or seen is sys.exception():
                suppressed = await self._aexit(self._manager, *three(seen)) if self._aexit else self._exit_sync(seen)
                if suppressed and seen is not None:
                    unwinding.flight.suppressed()
            elif await self._exit_handling(seen):
                unwinding.flight.suppressed()
        except BaseException as new:
            self._raised(unwinding, closing, new, elsewhere=elsewhere, pressure=pressure)
        self._handled = None

    def _exit_sync(self, exc: BaseException | None) -> object:
        return type(self._manager).__exit__(self._manager, *three(exc))

    async def _exit_handling(self, exc: BaseException) -> object:
        """Exit while Python handles what is in flight, not what the body raised: so all contexts are right."""
        context, traceback = exc.__context__, exc.__traceback__
        try:
            raise exc  # noqa: TRY301 (so that it is handled)
        except BaseException:
            exc.__context__, exc.__traceback__ = context, traceback
            return await self._aexit(self._manager, *three(exc)) if self._aexit else self._exit_sync(exc)

    def _refuse_elsewhere(self) -> None:
        """Leave a nursery alone that was opened in another task: to exit it here would crash the whole run."""
        if self._stance[2]:
            raise self._wrong_task()

    def _has_raised(self, unwinding: Unwinding, raised: Raised) -> None:
        self._raised(unwinding, unwinding, raised.exc, elsewhere=False, pressure=0)
        self._handled = None

    def _raised(
        self,
        unwinding: Unwinding,
        closing: Closing,
        new: BaseException,
        *,
        elsewhere: bool,
        pressure: float,
    ) -> None:
        """Put what the exit raised where it belongs: in the place of what it saw, or on record."""
        flight = unwinding.flight
        seen = flight.exc
        if seen is None and isinstance(unwinding.outcome, Err) and isinstance(unwinding.outcome.error, BaseException):
            cut_context(new, unwinding.outcome.error, self._handled)
        if seen is not None and (carries(new, seen) or self._consumed(pressure)):
            flight.replaced(new)
        elif isinstance(new, Exception) or unwinding.nobody_asked(new):
            failure = unwinding.failed(self, self._explained(new) if elsewhere else new, closing.elapsed())
            flight.failed(cast("Failure", failure))
        else:
            flight.interrupted(new)

    def _consumed(self, before: float) -> bool:
        """Tell whether the cancellation in flight was the manager's own, and it has consumed it in its exit."""
        return before > (now := backend().pressure()) and now <= self._stance[1]

    def _explained(self, exc: BaseException) -> BaseException:
        if isinstance(exc, WrongTaskError):
            return exc
        error = self._wrong_task()
        error.__cause__ = exc
        return error

    def _wrong_task(self) -> WrongTaskError:
        here, there = task_name(backend().current_task()), task_name(self._stance[0])
        msg = (
            f"{self.name} was entered in task {there!r} and can't be exited in task {here!r}: "
            "use `await scope.host(...)` for a manager that may be closed from any task"
        )
        return WrongTaskError(msg)


def task_name(task: Any) -> str:
    """Give the name of a task of either backend."""
    return str(task.get_name() if hasattr(task, "get_name") else task.name)


def name_of_manager(manager: object) -> str:
    """Give the name of the function for a `@contextmanager`, else of the type."""
    generator = getattr(manager, "gen", None) if isinstance(manager, _GeneratorContextManagerBase) else None
    return getattr(generator, "__qualname__", None) or type(manager).__qualname__


def check_manager(manager: object, *, hosted: bool = False) -> None:
    """Refuse what is no context manager, with the mend for the usual slip."""
    kind = type(manager)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        return
    sync = hasattr(kind, "__enter__") and hasattr(kind, "__exit__")
    if sync and not hosted:
        return
    what = "an async context manager" if hosted else "a context manager"
    msg = f"expected {what}, got {_slip(manager, sync=sync)}"
    if isinstance(manager, CoroutineType):
        manager.close()
    raise TypeError(msg)


def _slip(manager: object, *, sync: bool) -> str:
    from inspect import isasyncgenfunction

    name = name_of(manager)
    if sync:
        return f"the sync one {name}: use `await scope.enter(...)`"
    if isinstance(manager, type):
        return f"the class {name}: make an instance, `{name}(...)`"
    if isinstance(manager, CoroutineType):
        return f"the coroutine {name}(): await it first, or drop the `async def` of a function that returns a manager"
    if isinstance(manager, AsyncGeneratorType | GeneratorType) or isasyncgenfunction(manager):
        return f"the generator {name}: decorate its function with `@contextlib.asynccontextmanager`, and call that"
    if callable(manager):
        return f"the function {name}: call it, `{name}(...)`"
    return f"a {name}, which has no `__aenter__` and `__aexit__`"
