"""Registering: what a scope takes, from whom, and what it refuses."""

from __future__ import annotations

import sys
from functools import partial
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from rescope._backends import backend, stance
from rescope._closer import (
    awaited,
    bound,
    check_callable,
    check_options,
    check_scope,
    check_value,
    find_closer,
    is_awaitable,
)
from rescope._closing import CLOSED, CLOSING, OPEN, line_of
from rescope._entered import Entered, check_manager
from rescope._flight import Flight, chain, raise_unchanged
from rescope._held import Held, hold
from rescope._host import Hosted, move_in, move_out
from rescope._resource import Callback, Plain, Resource
from rescope._tell import Teller
from rescope._trace import Trace, registered
from rescope.events import ScopePath
from rescope.exceptions import ResourceCleanupError, ScopeClosedError

if TYPE_CHECKING:
    import weakref
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from rescope._child import Child
    from rescope._result import Result
    from rescope._scope import Scope
    from rescope._unwind import Unwinding
    from rescope.events import ScopeEvent

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


class Registry:
    """The half of a scope that registers."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_entered",
        "_held",
        "_name",
        "_plain",
        "_state",
        "_straight",
        "_unwinding",
    )

    # What few scopes have stands here until one does.
    _concurrent = False
    _grace: float | None = None
    _handle: weakref.ref[Child] | None = None
    _teller: Teller | None = None

    def __init__(
        self,
        name: str | None = None,
        *,
        grace: float | None = None,
        concurrent: bool = False,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None:
        self._held: Held | None = None
        self._straight: Held | None = None  # what is held, while nothing but holding it is to be done
        self._state: Any = OPEN
        self._name = name
        self._plain = True  # nothing of what stands above
        self._entered = False
        self._unwinding: Unwinding | None = None
        if name is not None or grace is not None or concurrent or on_event is not None:
            self._set_options(name, grace, concurrent, on_event)

    @overload
    def add(self, resource: Resource[T], /) -> T: ...
    @overload
    def add(
        self,
        value: T,
        close: Callable[[], object] | None = None,
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
    ) -> T: ...
    def add(
        self,
        value: Any,
        close: Callable[[], object] | None = None,
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
    ) -> Any:
        """Hold a value, to be closed by `close`, or by its own `aclose` or `close`; or hold a `Resource`.

        Gives back the value. `timeout`, in seconds, bounds its close; `force` is called when that ran out. Raises
        `TypeError` for a value that can't be closed, `ValueError` for a `Resource` that is closed or held already,
        `ScopeClosedError` on a closed scope; then nothing is registered.
        """
        held = self._straight
        if held is None and self._state is CLOSED:
            self._refuse_closed()
        if isinstance(value, Resource):
            return self._add_handle(value, close, name, timeout, force)
        if close is None or type(value) is CoroutineType or not callable(close):
            check_value(value)
            close = find_closer(value) if close is None else close
            check_callable(close, "close")
        handle: Resource[Any] = Plain()
        handle._value = value
        handle._close = close
        handle._name = handle._limits = None
        if name is not None or timeout is not None or force is not None:
            handle._set_options(name, timeout, force)
        if held is None:
            self._keep(handle)
        else:
            held.keep(handle)
        return value

    @overload
    async def acquire(
        self,
        acquire: Callable[[], Awaitable[T]],
        release: Callable[[T], object],
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> T: ...
    @overload
    async def acquire(
        self,
        acquire: Callable[[], T],
        release: Callable[[T], object],
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> T: ...
    async def acquire(
        self,
        acquire: Callable[[], Any],
        release: Callable[[Any], object],
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> Any:
        """Call `acquire()`, hold what it gives, to be closed by `release(value)`, and give it back. Both sync or async.

        A closed scope refuses before anything is acquired; nothing can come between the end of `acquire` and its
        registration. With `shield=True` a cancellation waits for `acquire` to end, the resource is registered, and then
        the cancellation goes on; `acquire` then runs in a task of its own. Where the scope was closed meanwhile,
        the new resource is released and `ScopeClosedError` raised.
        """
        self._refuse_closed()
        if not (callable(acquire) and callable(release)):
            check_callable(acquire, "acquire")
            check_callable(release, "release")
        if name is not None or timeout is not None or force is not None:
            check_options(name, timeout, force)
        flight = Flight(None) if shield else None
        since = None if self._plain else perf_counter()
        value = acquire()
        if type(value) is CoroutineType or is_awaitable(value):
            value = await (value if flight is None else _through(value, flight))
        handle: Resource[Any] = Plain()
        handle._value = value
        handle._close = bound(release, value)
        handle._name = name
        handle._limits = None if timeout is None and force is None else (timeout, force)
        held = self._straight
        if held is not None and flight is None:
            held.keep(handle)
            return value
        try:
            if self._state is CLOSED:
                handle._state = OPEN
                await self._give_back(handle)
            self._keep(handle, since)
        except ScopeClosedError as error:
            if flight is None or flight.exc is None:
                raise
            chain(flight.exc, error)
        if flight is not None and flight.exc is not None:
            raise_unchanged(flight.exc)
        return value

    @overload
    async def enter(self, cm: AbstractAsyncContextManager[T, Any], /, *, name: str | None = None) -> T: ...
    @overload
    async def enter(self, cm: AbstractContextManager[T, Any], /, *, name: str | None = None) -> T: ...
    async def enter(self, cm: Any, /, *, name: str | None = None) -> Any:
        """Enter a sync or async context manager in the calling task, and hold it; it is exited as nested `with`s are.

        Gives what it gives. One that holds a task group or cancel scope must be exited in the task that entered it:
        where the scope may be closed from another one, use `host`. Raises `TypeError` in a concurrent scope and below
        one, `ScopeClosedError` unless the scope is open. A manager that fails to enter registers nothing.
        """
        if self._state is not OPEN:
            msg = f"{self._label()} is {self.state}: nothing can be entered in it any more"
            raise ScopeClosedError(msg)
        since = None
        if not self._plain:
            self._refuse_entered()
            since = perf_counter()
        if name is not None:
            check_options(name, None, None)
        handle: Entered[Any] = Entered()
        handle._manager = cm
        handle._name = name
        handle._handled = sys.exception()
        handle._stance = here = stance()
        kind = type(cm)
        try:
            enter, handle._aexit = kind.__aenter__, kind.__aexit__
        except AttributeError:
            check_manager(cm)
            handle._aexit = None
            value = kind.__enter__(cm)
        else:
            value = await enter(cm)
        handle._value = value
        if here[2] is not None:
            handle.opened()
        held = self._straight
        if held is not None:
            held.keep(handle)
            return value
        if self._state is not OPEN:
            handle._state = OPEN
            await self._give_back(handle)
        self._keep(handle, since)
        return value

    async def host(
        self,
        cm: AbstractAsyncContextManager[T, Any],
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
    ) -> T:
        """Enter an async context manager in a task of its own, and hold it; it is exited there too.

        So the scope may be closed from any task and in any order, and no cancellation of the caller's can hit the
        exit. For clients that hold a task group or cancel scope inside. `timeout`, in seconds, bounds the exit; where
        the client has a shutdown of its own, let it be longer than that takes. `force` is called when it ran out.
        A cancellation of `host` itself cancels the entering.
        """
        self._refuse_closed()
        check_manager(cm, hosted=True)
        check_options(name, timeout, force)
        handle = Hosted(cm, name, self)  # type: ignore[arg-type]
        handle._limits = timeout, force
        await self._host([handle])
        return handle.value

    @overload
    async def host_all(self, cm1: AbstractAsyncContextManager[T1, Any], /) -> tuple[T1]: ...
    @overload
    async def host_all(
        self, cm1: AbstractAsyncContextManager[T1, Any], cm2: AbstractAsyncContextManager[T2, Any], /
    ) -> tuple[T1, T2]: ...
    @overload
    async def host_all(
        self,
        cm1: AbstractAsyncContextManager[T1, Any],
        cm2: AbstractAsyncContextManager[T2, Any],
        cm3: AbstractAsyncContextManager[T3, Any],
        /,
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def host_all(
        self,
        cm1: AbstractAsyncContextManager[T1, Any],
        cm2: AbstractAsyncContextManager[T2, Any],
        cm3: AbstractAsyncContextManager[T3, Any],
        cm4: AbstractAsyncContextManager[T4, Any],
        /,
    ) -> tuple[T1, T2, T3, T4]: ...
    @overload
    async def host_all(self, *cms: AbstractAsyncContextManager[T, Any]) -> tuple[T, ...]: ...
    async def host_all(self, *cms: AbstractAsyncContextManager[Any, Any]) -> tuple[Any, ...]:
        """Host several managers, entered concurrently. All or none: if one fails, the others are exited."""
        self._refuse_closed()
        for cm in cms:
            check_manager(cm, hosted=True)
        handles = [Hosted(cm, None, self) for cm in cms]  # type: ignore[arg-type]
        await self._host(handles)
        return tuple(handle.value for handle in handles)

    def defer(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> Resource[None]:
        """Call `fn(*args, **kwargs)`, sync or async, when the scope closes."""
        if not callable(fn):
            self._refuse_closed()
            check_callable(fn, "fn")
        handle: Resource[None] = Plain()
        handle._value = handle._name = handle._limits = None
        handle._close = partial(fn, *args, **kwargs) if args or kwargs else fn
        held = self._straight
        if held is None:
            return self._keep(handle)
        handle._state = held
        held.places.append(handle)
        return handle

    def on_error(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> Resource[None]:
        """Like `defer`, but only when the body failed: it raised, was cancelled, or returned an `Err`."""
        return self._on("error", fn, args, kwargs)

    def on_success(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> Resource[None]:
        """Like `defer`, but only when the body succeeded."""
        return self._on("success", fn, args, kwargs)

    def on_exit(self, fn: Callable[[Result[Any, Any]], object], /) -> Resource[None]:
        """Call `fn(outcome)`, sync or async, when the scope closes, with the body's `Ok(value)` or `Err(error)`."""
        return self._on("exit", fn, (), {})

    @property
    def name(self) -> str | None:
        """The name it was given."""
        return self._name

    @property
    def state(self) -> Literal["open", "closing", "closed"]:
        """`"open"`, `"closing"` or `"closed"`."""
        return self._state if self._state in (OPEN, CLOSED) else "closing"

    # What the other half uses too

    def _parent(self) -> Scope | None:
        """Give the scope that holds this one, or that closes it, or that did until it began to close by itself."""
        handle = None if self._handle is None else self._handle()
        if handle is not None and type(handle._state) is Held:
            return handle._state()
        if self._unwinding is None:
            return None
        return self._unwinding.holder or (None if self._unwinding.outer is None else self._unwinding.outer.scope)

    def _keep(self, handle: Resource[T], since: float | None = None) -> Resource[T]:
        held = self._held
        if held is None:
            if self._state is CLOSED:
                self._refuse_closed()
            held = self._held = hold(self)  # type: ignore[arg-type]
            if self._state is OPEN and self._teller is None and not Trace.on:
                self._straight = held
                held.keep(handle)
                return handle
        held.keep(handle)
        if Trace.on:
            registered(handle)
        if self._state is not OPEN:
            (self._unwinding or held).attempted += 1
        if self._teller is not None:
            self._teller.tell("acquired", handle.name, elapsed=None if since is None else perf_counter() - since)
        return handle

    async def _give_back(self, handle: Resource[Any]) -> None:
        """Close what came too late."""
        msg = f"{self._label()} was closed while {handle.name} was acquired: it has been closed again"
        try:
            await handle.aclose()
        except ResourceCleanupError as error:
            raise ScopeClosedError(msg) from error
        raise ScopeClosedError(msg)

    async def _host(self, handles: list[Hosted[Any]]) -> None:
        since = perf_counter()
        await move_in(handles)
        if self._state is CLOSED:
            msg = f"{self._label()} was closed while a manager was being hosted: it has been exited again"
            error = ScopeClosedError(msg)
            await move_out(handles, error)
            raise error
        for handle in handles:
            self._keep(handle, since)
            handle.moved_in()

    def _add_handle(self, handle: Resource[T], *options: object) -> T:
        if any(option is not None for option in options):
            msg = "a `Resource` has its own closer and options: pass them to the `Resource`"
            raise TypeError(msg)
        if handle._in_task:
            self._refuse_entered()
        if type(handle._state) is Held and handle._state() is not None:
            msg = f"{handle.name} is held by a scope already: `detach` it there first"
            raise ValueError(msg)
        if handle.state in {CLOSING, CLOSED}:
            msg = f"{handle.name} is {handle.state}: it can't be held any more"
            raise ValueError(msg)
        self._keep(handle)
        return handle.value

    def _on(
        self, when: Literal["error", "success", "exit"], fn: Callable[..., object], args: Any, kwargs: Any
    ) -> Resource[None]:
        self._refuse_closed()
        check_callable(fn, "fn")
        return self._keep(Callback(partial(fn, *args, **kwargs) if args or kwargs else fn, when))

    def _refuse_closed(self) -> None:
        if self._state is CLOSED:
            msg = f"{self._label()} is closed: open a new one"
            raise ScopeClosedError(msg)

    def _refuse_entered(self) -> None:
        for scope in line_of(cast("Scope", self)):
            if scope._concurrent:
                msg = (
                    f"{scope._label()} closes concurrently, and an entered manager can't be exited beside others: "
                    "use `await scope.host(...)`"
                )
                raise TypeError(msg)

    def _label(self) -> str:
        return "scope" if self._name is None else f"scope {self._name!r}"

    def _set_options(
        self,
        name: str | None,
        grace: float | None,
        concurrent: bool,  # noqa: FBT001 (as it was given)
        on_event: Callable[[ScopeEvent], object] | None,
    ) -> None:
        check_scope(name, grace, on_event)
        if grace is not None:
            self._grace = grace
            self._plain = False
        if concurrent:
            self._concurrent = True
            self._plain = False
        if on_event is not None:
            self._tell_from(Teller(on_event, ScopePath((name or "scope",))))

    def _tell_from(self, teller: Teller) -> None:
        self._teller = teller
        self._plain = False
        teller.tell("opened")


async def _through(acquiring: Awaitable[T], flight: Flight) -> T:
    """Await something to its end; a cancellation stays in `flight`."""
    job = backend().start(partial(awaited, acquiring))
    await backend().finish(job, flight)
    error = job.take_error()
    if error is not None:
        if flight.exc is not None:
            flight.exc.__context__ = error
            raise_unchanged(flight.exc)
        raise error
    return cast("T", job.value)
