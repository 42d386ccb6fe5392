"""What each guarantee adds where managers are entered: the steps of `ladder`, for `enter` instead of `defer`."""

from __future__ import annotations

import sys
from asyncio import Task, current_task
from contextlib import AsyncExitStack
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from weakref import ref

from rescope import Scope

if TYPE_CHECKING:
    from benchmarks.work import Batch, Contest

OPEN, CLOSING, CLOSED = object(), object(), object()
around: ContextVar[object] = ContextVar("around")
new: Any = object.__new__
Kind: TypeAlias = "type[AList | Scope]"


class AList:
    """An object with a list. A manager's dunders are looked up on its type, as a `with` statement does."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def enter(self, manager: Any) -> Any:
        """Enter a manager."""
        kind = type(manager)
        aenter, aexit = kind.__aenter__, kind.__aexit__
        value = await aenter(manager)
        self._held.append((aexit, manager))
        return value

    async def __aexit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> bool:
        held = self._held
        while held:
            aexit, manager = held.pop()
            await aexit(manager, None, None, None)
        return False


class AllExit(AList):
    """All exit, each sees what the inner ones have left, and every failure is kept."""

    __slots__ = ("_errors",)

    async def __aexit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> bool:
        held, seen = self._held, exc
        self._errors: list[BaseException] | None = None
        while held:
            aexit, manager = held.pop()
            seen = await self._exit(aexit, manager, seen)
        return seen is None

    async def _exit(self, aexit: Any, manager: Any, seen: BaseException | None) -> BaseException | None:
        try:
            if seen is None:
                await aexit(manager, None, None, None)
            elif await aexit(manager, type(seen), seen, seen.__traceback__):
                seen = None
        except BaseException as error:
            self._errors = [*(self._errors or ()), error]
            seen = error
        return seen


class Handle:
    """What an entered manager is known by."""

    __slots__ = ("aexit", "close", "handled", "limits", "manager", "name", "pressure", "state", "task", "value")

    aexit: Any
    handled: BaseException | None
    limits: object
    manager: Any
    name: object
    pressure: int
    state: object
    task: Task[Any] | None
    value: object


class Handles(AllExit):
    """Each can be named, looked at, released and detached, and knows its scope without a reference cycle."""

    __slots__ = ("__weakref__", "_ref")

    def __init__(self) -> None:
        self._held = []
        self._ref: Any = None

    async def enter(self, manager: Any) -> Any:
        """Enter a manager."""
        kind = type(manager)
        handle: Handle = new(Handle)
        handle.aexit = kind.__aexit__
        handle.manager = manager
        handle.name = handle.limits = None
        value = handle.value = await kind.__aenter__(manager)
        if self._ref is None:
            self._ref = ref(self)
        handle.state = self._ref
        self._held.append(handle)
        return value

    async def __aexit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> bool:
        held, seen = self._held, exc
        self._errors = None
        while held:
            handle = held.pop()
            handle.state = CLOSING
            seen = await self._exit(handle.aexit, handle.manager, seen)
            handle.state = CLOSED
        return seen is None


class Refusing(Handles):
    """Misuse and a closed scope are refused at the call; what was closed by others is passed over."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        super().__init__()
        self._state = OPEN

    async def enter(self, manager: Any) -> Any:
        """Enter a manager, unless it is none."""
        if self._state is not OPEN:
            raise RuntimeError
        kind = type(manager)
        handle: Handle = new(Handle)
        try:
            aenter, handle.aexit = kind.__aenter__, kind.__aexit__
        except AttributeError:
            raise TypeError(manager) from None
        handle.manager = manager
        handle.name = handle.limits = None
        value = handle.value = await aenter(manager)
        if self._ref is None:
            self._ref = ref(self)
        handle.state = self._ref
        self._held.append(handle)
        return value


class Timed(Refusing):
    """A failure tells how long its exit took; an exit that calls back into the scope is known."""

    __slots__ = ("_at", "_since")

    async def __aexit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> bool:
        held, own, seen = self._held, self._ref, exc
        self._errors = None
        self._state = CLOSING
        token = around.set(self)
        while held:
            handle = held.pop()
            if handle.limits is not None or handle.state is not own:
                raise NotImplementedError
            handle.state = CLOSING
            self._at = handle
            self._since = perf_counter()
            seen = await self._exit(handle.aexit, handle.manager, seen)
            handle.state = CLOSED
        around.reset(token)
        self._state = CLOSED
        return seen is None


class InItsTask(Timed):
    """One that is exited in another task is told so; a cancellation is told from one that the manager consumed."""

    __slots__ = ()

    async def enter(self, manager: Any) -> Any:
        """Enter a manager, unless it is none."""
        if self._state is not OPEN:
            raise RuntimeError
        kind = type(manager)
        handle: Handle = new(Handle)
        try:
            aenter, handle.aexit = kind.__aenter__, kind.__aexit__
        except AttributeError:
            raise TypeError(manager) from None
        handle.manager = manager
        handle.name = handle.limits = None
        handle.handled = sys.exception()
        handle.task = task = current_task()
        handle.pressure = 0 if task is None else task.cancelling()
        value = handle.value = await aenter(manager)
        if self._ref is None:
            self._ref = ref(self)
        handle.state = self._ref
        self._held.append(handle)
        return value

    async def __aexit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> bool:
        held, own, seen = self._held, self._ref, exc
        self._errors = None
        self._state = CLOSING
        token = around.set(self)
        while held:
            handle = held.pop()
            if handle.limits is not None or handle.state is not own or handle.task is not current_task():
                raise NotImplementedError
            handle.state = CLOSING
            self._at = handle
            self._since = perf_counter()
            seen = await self._exit(handle.aexit, handle.manager, seen)
            handle.state = CLOSED
        around.reset(token)
        self._state = CLOSED
        return seen is None


STEPS: tuple[Kind, ...] = (AList, AllExit, Handles, Refusing, Timed, InItsTask, Scope)


def climb(names: list[str], count: int, manager: Any) -> Contest:
    """Let all the steps enter so many managers, and the stack."""

    def step(kind: Kind) -> Batch:
        async def batch(times: int) -> None:
            for _ in range(times):
                async with kind() as scope:
                    for _ in range(count):
                        await scope.enter(manager)

        return batch

    async def stack(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(manager)

    steps: Contest = {name: step(kind) for name, kind in zip(names, STEPS, strict=True)}
    return {"AES": stack, **steps}
