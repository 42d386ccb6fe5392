"""One live resource per key, shared by all who use it.

What a key goes through:

- opening: one task opens it for all who ask, and goes on while one of them waits. Where it fails, what it has
  registered is closed, all who waited are told, and the key is forgotten: the next who asks opens again;
- in use: some have it, or wait for it (`claims` counts them). With `validate`, one task checks it for all who ask while
  that runs;
- idle: nobody claims it. It waits to be used again, or for its time, in the order of last use;
- retired: it failed the check, its hosted manager died, or it was discarded. The next who asks opens another beside it;
  those who use it keep it, and when the last of them leaves it closes;
- closing: it was idle too long, or one too many, or is retired. Who asks for the key waits for the end, so that there
  are never two of it (a retired one apart);
- gone.

Only tasks of the pool's own open, check and close, so that no user's cancellation reaches what others wait for. They
are jobs, held by no task group, and there is none while all is in use. Each value lives in a child of the pool's
scope, which is concurrent: so the end of it all is an ordinary close, where one that hangs takes no time from another.
"""

from __future__ import annotations

import logging
import math
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final, overload

from rescope._backends import backend
from rescope._budget import least
from rescope._closer import is_awaitable, name_of
from rescope._pool_entry import Entry, time_left
from rescope._pool_errand import Errand, Stop
from rescope._pool_options import check_options, opener
from rescope._scope import Scope
from rescope.exceptions import ScopeClosedError, reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from rescope._resource import Resource
    from rescope.events import ScopeEvent

__all__ = ["KeyedPool"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


@final
class KeyedPool(Generic[K, V]):
    """Shares one live resource per key: opened when it is first asked for, closed when it was idle for a while.

    Let a scope hold it, `pool = scope.add(KeyedPool(open))`, or use it as `async with KeyedPool(open) as pool:`. Then,
    from any task, `async with pool.use(key) as value:`.

    `open`, sync or async, takes a key, or a scope and a key: the number of positional parameters it requires tells.

    - `open(scope, key)` registers what it opens in that scope, which is the key's own, and returns the value.
    - `open(key)` returns a `Resource`; or an async context manager, which is hosted; or a value, to be closed by its
      own `aclose` or `close`. What an async `open` returns is open already, so there a closer comes before a manager.

    `idle`, in seconds by the backend's clock, is how long one is kept after its last use: `None` for ever, 0 not at
    all. Beyond `limit` live ones the least recently used idle one is closed. One in use never is: where all are, there
    are more than `limit` for a while, and nobody waits.

    `validate(value)`, sync or async, is asked when a value is used again, once for all who ask meanwhile. Where it
    gives something false, or raises an `Exception`, another is opened; those who use the old one keep it, and it
    closes when the last of them leaves. One whose hosted manager has died is replaced in any case.

    `grace`, in seconds, bounds each close, and that of the whole pool. `label(key)` is what a key is called in errors,
    logs and events; without it they are numbered, as a key may hold a password. `on_event` is called for the pool's
    scope and those of its keys.

    Raises `TypeError` or `ValueError` for options that can't be.
    """

    __slots__ = (
        "__weakref__",
        "_count",
        "_entries",
        "_grace",
        "_idle",
        "_idle_time",
        "_label",
        "_leaving",
        "_limit",
        "_live",
        "_name",
        "_open",
        "_scope",
        "_sweep",
        "_validate",
    )

    @overload
    def __init__(
        self,
        open: Callable[[K], Resource[V] | Awaitable[Resource[V]]],
        *,
        idle: float | None = 300,
        limit: int | None = None,
        validate: Callable[[V], bool | Awaitable[bool]] | None = None,
        grace: float | None = 30,
        label: Callable[[K], str] | None = None,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        open: Callable[[K], AbstractAsyncContextManager[V, Any] | Awaitable[AbstractAsyncContextManager[V, Any]]],
        *,
        idle: float | None = 300,
        limit: int | None = None,
        validate: Callable[[V], bool | Awaitable[bool]] | None = None,
        grace: float | None = 30,
        label: Callable[[K], str] | None = None,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        open: Callable[[K], Awaitable[V]] | Callable[[Scope, K], Awaitable[V]],
        *,
        idle: float | None = 300,
        limit: int | None = None,
        validate: Callable[[V], bool | Awaitable[bool]] | None = None,
        grace: float | None = 30,
        label: Callable[[K], str] | None = None,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        open: Callable[[K], V] | Callable[[Scope, K], V],
        *,
        idle: float | None = 300,
        limit: int | None = None,
        validate: Callable[[V], bool | Awaitable[bool]] | None = None,
        grace: float | None = 30,
        label: Callable[[K], str] | None = None,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None: ...
    def __init__(
        self,
        open: Callable[..., Any],  # noqa: A002 (it is what a pool does)
        *,
        idle: float | None = 300,
        limit: int | None = None,
        validate: Callable[[V], object] | None = None,
        grace: float | None = 30,
        label: Callable[[K], str] | None = None,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> None:
        self._open = opener(open)
        check_options(idle, limit, validate, label)
        self._name = name_of(open)
        self._scope = Scope(f"pool of {self._name}", grace=grace, concurrent=True, on_event=on_event)
        self._idle_time = None if idle == math.inf else idle
        self._limit = limit
        self._validate = validate
        self._grace = grace
        self._label = label
        self._count = 0
        self._entries: dict[K, Entry[K]] = {}  # what a new user is given
        self._live: set[Entry[K]] = set()  # these, and the retired ones
        self._idle: dict[Entry[K], None] = {}  # the least recently used one first
        self._leaving: set[Entry[K]] = set()
        self._sweep: Errand | None = None

    def use(self, key: K) -> AbstractAsyncContextManager[V]:
        """Give a manager of the value of that key, shared by all who use it at the same time.

        To enter it opens the key where nobody has, or checks it where there is a `validate`; all who ask meanwhile wait
        for the same. What opening raises is raised to each of them, with `RuntimeError` for a cancellation that they
        did not ask for. A cancellation ends the waiting; where nobody waits any more, it ends the opening too.

        Raises `TypeError` for a key that is not hashable; `ScopeClosedError`, on entering, when the pool is closed;
        `RuntimeError` where `open` or `validate` asks for the very key they are at, or for one that waits for that.
        """
        try:
            hash(key)
        except TypeError:
            msg = f"a key must be hashable, and a {type(key).__qualname__} is not"
            raise TypeError(msg) from None
        return self._using(key)

    def discard(self, key: K) -> None:
        """Let the next who asks for that key get a new value; the old one closes when its last user leaves.

        For what is known to be broken or out of date. A key that is not there is nothing to do. It may be called from a
        callback of the event loop, as clients do where a connection is lost.
        """
        entry = self._entries.get(key)
        if entry is not None and not entry.leaving:
            self._retire(entry)
            if not entry.claims and entry.running is None:
                self._close(entry)

    @property
    def size(self) -> int:
        """How many values are live: open or being opened, and not closing."""
        return len(self._live)

    @property
    def state(self) -> Literal["open", "closing", "closed"]:
        """`"open"`, `"closing"` or `"closed"`."""
        return self._scope.state

    def __contains__(self, key: object) -> bool:
        """Tell whether the next user of that key is given a value that is there."""
        entry = self._entries.get(key)  # type: ignore[arg-type]
        return entry is not None and entry.opened and not (entry.leaving or entry.dead)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        in_use = self.size - len(self._idle)
        return f"<KeyedPool of {self._name} {self.state}, holds {self.size}, {in_use} in use>"

    async def aclose(self) -> None:
        """Close all, at once, also what is in use: nobody is waited for. Closing twice closes once.

        What is being opened is cancelled, and those who wait for it get a `ScopeClosedError`; an `open` that closes its
        own pool is cancelled too, and not waited for. All of it, and each, has the seconds of `grace`, or what is left
        to the scope that holds the pool, if that is less; what is not closed by then is cancelled and forced. Raises
        `ResourceCleanupError` to the caller that closes. A cancellation waits until all is closed, then it is raised.
        """
        if self._scope.state == "open":
            self._begin_to_close()
        elif any(errand.needs_us() for _, errand in self._running()):
            return
        try:
            await self._scope.aclose()
        finally:
            if self._scope.state == "closed":
                for known in (self._entries, self._live, self._idle):
                    known.clear()

    async def __aenter__(self) -> Self:
        self._refuse_closed()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # Using

    @asynccontextmanager
    async def _using(self, key: K) -> AsyncGenerator[V]:
        entry = await self._claimed(key)
        try:
            yield entry.value
        finally:
            self._give_up(entry)

    async def _claimed(self, key: K) -> Entry[K]:
        """Give what has the key's value, open and checked, and claimed."""
        while True:
            self._refuse_closed()
            entry = self._entries.get(key) or self._new(key)
            if entry.leaving and entry.running is not None:
                await entry.running.wait()
                continue
            entry.claims += 1
            self._idle.pop(entry, None)
            try:
                self._trim()
                ready = await self._ready(entry)
            except BaseException:
                self._give_up(entry)
                raise
            if ready:
                return entry
            self._give_up(entry)

    async def _ready(self, entry: Entry[K]) -> bool:
        """Wait until it is opened, or checked; tell whether it may be used."""
        opening = not entry.opened
        if entry.opened and entry.dead:
            self._retire(entry)
            return False
        if entry.opened and self._validate is None:
            return True
        errand = entry.running
        if errand is None:
            work = self._opening if opening else self._checking
            name = f"{'opening' if opening else 'checking'} {entry.scope.name}"
            errand = entry.errand = Errand(name, entry.on, partial(work, entry))
        done = await errand.done()
        self._refuse_closed()
        return done and (opening or not entry.retired)

    def _give_up(self, entry: Entry[K]) -> None:
        entry.claims -= 1
        if entry.claims or entry.leaving or self._scope.state != "open":
            return
        if entry.running is None:
            self._rest(entry)

    def _rest(self, entry: Entry[K]) -> None:
        """Keep what nobody claims for a while, or close it."""
        if entry.retired or entry.dead or self._idle_time == 0:
            self._close(entry)
            return
        entry.since = entry.on.now()
        self._idle[entry] = None
        self._trim()
        if self._idle_time is not None and (self._sweep is None or self._sweep.over):
            self._sweep = Errand("sweeping", entry.on, partial(self._sweeping, self._idle_time))
            Context().run(self._sweep.start)

    # Opening, checking, closing: each in a task of the pool's own

    def _new(self, key: K) -> Entry[K]:
        self._count += 1
        name = f"{self._name} {self._count}" if self._label is None else self._label(key)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"`label` must give a string, not a {type(name).__qualname__}"
            raise TypeError(msg)
        entry = self._entries[key] = Entry(key, self._scope.child(name, grace=self._grace), backend())
        self._live.add(entry)
        return entry

    async def _opening(self, entry: Entry[K]) -> None:
        scope = await entry.scope.__aenter__()
        try:
            entry.value = await self._open(scope, entry.key)
        except BaseException as exc:
            self._live.discard(entry)
            entry.leave()
            try:
                if scope.state == "open":  # else the pool closes it, and waits for us
                    try:
                        await scope.__aexit__(type(exc), exc, exc.__traceback__)
                    finally:
                        scope._unwinding = None  # it knows the exception, which by its traceback knows the scope
            finally:
                self._forget(entry)
            raise
        entry.opened = True
        self._ended(entry)

    async def _checking(self, entry: Entry[K]) -> None:
        try:
            good = await self._asked(entry)
            if good is None:
                msg = "`validate` gave None: let it return whether the value is good"
                raise TypeError(msg)
            if not good:
                self._retire(entry)
        finally:
            self._ended(entry)

    async def _asked(self, entry: Entry[K]) -> object:
        """Ask `validate`. What it raises says no, unless it is the end of the asking."""
        try:
            good: Any = self._validate(entry.value)  # type: ignore[misc]
            return await good if is_awaitable(good) else good
        except backend().Cancelled:
            if entry.errand.called_off:  # type: ignore[union-attr]
                raise
        except Exception as exc:
            if entry.errand.refused:  # type: ignore[union-attr]
                raise
            logging.getLogger("rescope").debug("%s failed its check: %s", entry.scope.name, reason(exc))
        return False

    def _ended(self, entry: Entry[K]) -> None:
        """See to what was opened or checked, and is claimed by nobody any more."""
        if not entry.claims and self._scope.state == "open":
            self._rest(entry)

    def _retire(self, entry: Entry[K]) -> None:
        entry.retired = True
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    def _trim(self) -> None:
        while self._limit is not None and len(self._live) > self._limit and self._idle:
            self._close(next(iter(self._idle)))

    def _close(self, entry: Entry[K]) -> None:
        self._idle.pop(entry, None)
        self._live.discard(entry)
        self._leaving.add(entry)
        entry.leave()
        # In a context of nobody's: what closes here is no part of what the one who leaves works for.
        entry.errand = Errand(f"closing {entry.scope.name}", entry.on, partial(self._closing, entry))
        Context().run(entry.errand.start)

    async def _closing(self, entry: Entry[K]) -> None:
        try:
            await entry.scope.aclose()
        finally:
            self._forget(entry)

    def _forget(self, entry: Entry[K]) -> None:
        self._leaving.discard(entry)
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    async def _sweeping(self, idle: float) -> None:
        """Close what is idle for too long, as long as anything is idle."""
        from anyio import sleep

        while self._idle:
            entry = next(iter(self._idle))
            left = entry.since + idle - backend().now()
            if left > _TICK:
                await sleep(left)
            else:
                self._close(entry)

    # Closing the pool

    def _refuse_closed(self) -> None:
        if self._scope.state != "open":
            msg = f"the pool of {self._name} is {self._scope.state}: use it before its scope closes, or make a new one"
            raise ScopeClosedError(msg)

    def _begin_to_close(self) -> None:
        for entry, errand in self._running():
            if errand.needs_us():
                errand.call_off()
            else:  # what is registered last is closed first
                (entry.scope if entry.scope.state == "open" else self._scope).add(Stop(errand))
        starting = [entry.running for entry in self._leaving if entry.scope.state == "open"]  # to close by themselves
        for late in (*starting, self._sweep):
            if late is not None and not late.over:
                self._scope.add(Stop(late))
        self._scope._grace = least(self._grace, time_left())

    def _running(self) -> list[tuple[Entry[K], Errand]]:
        """Give what is being opened or checked."""
        return [(entry, errand) for entry in self._live if (errand := entry.running) is not None]


_TICK = 1e-6
"""Seconds that make no difference: a clock and a sum of floats may differ by less for ever."""
