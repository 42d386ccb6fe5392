"""What each guarantee adds: the same scope built up step by step, from a bare list to most of what the rules ask for.

None of the steps is of use to anybody. They are the plainest code that gives what each says, so the last one is about
as cheap as Python gets with these guarantees, and the distance from it to `Scope` is what could still be gained.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import get_running_loop
from contextlib import AsyncExitStack
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from weakref import ref

from rescope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.work import Batch, Contest

EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
OPEN, CLOSING, CLOSED = object(), object(), object()
around: ContextVar[object] = ContextVar("around")
Kind: TypeAlias = "type[AList | Scope]"


class AList:
    """An object with a list: what any library pays that is used as `async with`, and told of each closer by a call."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    def defer(self, fn: Callable[[], Any]) -> object:
        """Hold a closer."""
        self._held.append(fn)
        return None

    async def __aexit__(self, *exc_info: object) -> None:
        held = self._held
        while held:
            given = held.pop()()
            if given is not None:
                await given


class AllRun(AList):
    """All run, whatever one does, and every failure is kept."""

    __slots__ = ("_errors",)

    async def __aexit__(self, *exc_info: object) -> None:
        held = self._held
        self._errors: list[BaseException] | None = None
        while held:
            try:
                given = held.pop()()
                if given is not None:
                    await given
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]


class Handle:
    """What a closer is known by."""

    __slots__ = ("close", "limits", "name", "state", "value")

    close: Callable[[], Any]
    limits: object
    name: object
    state: object
    value: object


new: Any = object.__new__


class Handles(AllRun):
    """Each can be named, looked at, released and detached, and knows its scope without a reference cycle."""

    __slots__ = ("__weakref__", "_ref")

    def __init__(self) -> None:
        self._held = []
        self._ref: Any = None

    def defer(self, fn: Callable[[], Any]) -> object:
        """Hold a closer, and give its handle."""
        handle: Handle = new(Handle)
        handle.value = handle.name = handle.limits = None
        handle.close = fn
        if self._ref is None:
            self._ref = ref(self)
        handle.state = self._ref
        self._held.append(handle)
        return handle

    async def __aexit__(self, *exc_info: object) -> None:
        held = self._held
        self._errors = None
        while held:
            handle = held.pop()
            handle.state = CLOSING
            try:
                given = handle.close()
                if given is not None:
                    await given
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]
            handle.state = CLOSED


class Refusing(Handles):
    """Misuse and a closed scope are refused at the call; what is limited, or was closed by others, is seen to."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        super().__init__()
        self._state = OPEN

    def defer(self, fn: Callable[[], Any]) -> object:
        """Hold a closer, and give its handle, unless it is closed or that is none."""
        if self._state is not OPEN or not callable(fn):
            raise TypeError(fn)
        handle: Handle = new(Handle)
        handle.value = handle.name = handle.limits = None
        handle.close = fn
        if self._ref is None:
            self._ref = ref(self)
        handle.state = self._ref
        self._held.append(handle)
        return handle

    async def __aexit__(self, *exc_info: object) -> None:
        held, own = self._held, self._ref
        self._errors = None
        self._state = CLOSING
        while held:
            handle = held.pop()
            if handle.limits is not None or handle.state is not own:
                raise NotImplementedError
            handle.state = CLOSING
            try:
                given = handle.close()
                if given is not None:
                    await given
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]
            handle.state = CLOSED
        self._state = CLOSED


class Timed(Refusing):
    """A failure tells how long its closer took; closers that call back into the scope are known."""

    __slots__ = ("_at", "_since")

    async def __aexit__(self, *exc_info: object) -> None:
        held, own = self._held, self._ref
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
            try:
                given = handle.close()
                if given is not None:
                    await given
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]
            handle.state = CLOSED
        around.reset(token)
        self._state = CLOSED


class Apart(Timed):
    """No cancellation reaches a closer: what is async runs in a task of its own."""

    __slots__ = ("_task",)

    async def __aexit__(self, *exc_info: object) -> None:
        held, own = self._held, self._ref
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
            try:
                given = handle.close()
                if given is not None:
                    task: Any = asyncio.Task(self._rest(handle, given), loop=get_running_loop(), **EAGER)
                    if not task.done():
                        await task
                    continue
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]
            handle.state = CLOSED
        around.reset(token)
        self._state = CLOSED

    async def _rest(self, handle: Handle, given: Any) -> None:
        held, own = self._held, self._ref
        while True:
            try:
                await given
            except BaseException as error:
                self._errors = [*(self._errors or ()), error]
            handle.state = CLOSED
            if not held:
                return
            handle = held.pop()
            if handle.limits is not None or handle.state is not own:
                raise NotImplementedError
            handle.state = CLOSING
            self._at = handle
            self._since = perf_counter()
            given = handle.close()


STEPS: dict[str, Kind] = {
    "a list": AList,
    "all run, no error is lost": AllRun,
    "a handle for each": Handles,
    "misuse is refused": Refusing,
    "time and place of each": Timed,
    "each in the right task": Apart,
    "Scope": Scope,
}


def climb(count: int, close: Callable[[], object], *, sync: bool) -> Contest:
    """Let all the steps do the same, and the stack."""

    def step(kind: Kind) -> Batch:
        async def batch(times: int) -> None:
            for _ in range(times):
                async with kind() as scope:
                    for _ in range(count):
                        scope.defer(close)

        return batch

    push: Any = AsyncExitStack.callback if sync else AsyncExitStack.push_async_callback

    async def stack(times: int) -> None:
        for _ in range(times):
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    push(stack, close)

    steps: Contest = {name: step(kind) for name, kind in STEPS.items()}
    return {"AES": stack, **steps}
