"""Managers entered in the body's task: nested `with` statements.

A shield or a task around their exit would break the ones that keep a task group or cancel scope open, so they are
exited in the closing task, bare: as exposed to cancellation as in a plain `async with`, and without a bound in time.
What they see and what becomes of what they raise is the `Flight`'s.
"""

from __future__ import annotations

import sys
from contextlib import _GeneratorContextManagerBase
from inspect import isasyncgenfunction
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

from rescope._backends import backend
from rescope._flight import carries, mend_context
from rescope._resource import Resource, managed, name_of
from rescope.exceptions import WrongTaskError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._unwind import Closing, Unwinding

T = TypeVar("T")


class Entered(Resource[T]):
    """The handle of an entered manager."""

    __slots__ = ("_awaits", "_exit", "_manager", "_nurseries", "_pressure", "_task")

    _in_task = True

    def __init__(self, manager: object, name: str | None) -> None:
        kind = type(manager)
        self._awaits = hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")
        self._exit: Callable[..., Any] = getattr(kind, "__aexit__" if self._awaits else "__exit__")
        super().__init__(None, managed, name=name or name_of_manager(manager))  # type: ignore[arg-type]
        self._manager = manager
        self._task = backend().current_task()
        self._pressure = backend().pressure()
        self._nurseries = 0

    async def _enter(self) -> T:
        manager: Any = self._manager
        nurseries = backend().open_nurseries()
        value: T = await type(manager).__aenter__(manager) if self._awaits else type(manager).__enter__(manager)
        self._nurseries = backend().open_nurseries() - nurseries
        self._value = value
        return value

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None]:
        return self._leave(unwinding, closing)

    async def _leave(self, unwinding: Unwinding, closing: Closing) -> None:
        """Exit the manager with what is in flight, and see what it leaves."""
        flight = unwinding.flight
        seen = flight.exc
        elsewhere = backend().current_task() is not self._task
        handled = sys.exception()
        pressure = backend().pressure() if isinstance(seen, backend().Cancelled) else 0
        try:
            if elsewhere and self._nurseries:
                raise self._wrong_task()
            if await self._call_exit(seen) and seen is not None:
                flight.suppressed()
        except BaseException as new:
            mend_context(new, seen, handled)
            if seen is not None and (carries(new, seen) or self._consumed(pressure)):
                flight.replaced(new)
            elif isinstance(new, Exception) or unwinding.nobody_asked(new):
                self._failed(unwinding, closing, new, elsewhere=elsewhere)
            else:
                flight.interrupted(new)

    async def _call_exit(self, exc: BaseException | None) -> bool:
        result = self._exit(self._manager, None if exc is None else type(exc), exc, exc and exc.__traceback__)
        return bool(await result if self._awaits else result)

    def _consumed(self, before: float) -> bool:
        """Tell whether the cancellation in flight was the manager's own, and it has consumed it in its exit."""
        return self._pressure >= (now := backend().pressure()) and now < before

    def _failed(self, unwinding: Unwinding, closing: Closing, exc: BaseException, *, elsewhere: bool) -> None:
        if elsewhere and not isinstance(exc, WrongTaskError):
            wrong = self._wrong_task()
            wrong.__cause__ = exc
            exc = wrong
        failure = unwinding.failed(closing, exc)
        if failure is not None:
            unwinding.flight.failed(failure)

    def _wrong_task(self) -> WrongTaskError:
        here, there = task_name(backend().current_task()), task_name(self._task)
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
    if isinstance(manager, _GeneratorContextManagerBase):
        return name_of(manager.func)  # type: ignore[attr-defined]
    return type(manager).__qualname__


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
