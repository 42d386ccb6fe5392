"""One value that all share until it expires, made once.

The value is one entry, which the store forgets when its time is over. Who finds none takes a lease for it, looks once
more, calls the factory, and writes what it gives, unless something stands there by then: so whatever became of the
lease, what was written first is what everybody gets. A holder that dies leaves the lease to expire.

In one process the tasks that find none take turns, so that one of them stands for all in the race for the lease.
"""

from __future__ import annotations

import logging
import random
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

from rescope.workflow._names import check_store, key_in
from rescope.workflow.lease import LeaseHeldError, LeaseLostError, _clock, lease
from rescope.workflow.store import Entry, StoreError, VersionConflictError, check_ttl, decode, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from anyio import Lock
    from anyio.lowlevel import RunVar

    from rescope.workflow.store import Store

__all__ = ["get_or_create"]

T = TypeVar("T")

_PREFIX = "shared/"
_LEASES = "lease/"
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_PAUSES = (0.05, 0.1, 0.2)  # between the tries to write what was made


@overload
async def get_or_create(
    store: Store,
    key: str,
    factory: Callable[[], Awaitable[T]],
    *,
    ttl: float | None,
    lease_ttl: float = 10.0,
    clock: Callable[[], float] = _clock,
) -> T: ...
@overload
async def get_or_create(
    store: Store,
    key: str,
    factory: Callable[[], T],
    *,
    ttl: float | None,
    lease_ttl: float = 10.0,
    clock: Callable[[], float] = _clock,
) -> T: ...
async def get_or_create(
    store: Store,
    key: str,
    factory: Callable[[], Any],
    *,
    ttl: float | None,
    lease_ttl: float = 10.0,
    clock: Callable[[], float] = _clock,
) -> Any:
    """Give the value that all share under a key; make it if there is none, once for all tasks, processes and machines.

    `factory()`, sync or async, makes it: anything that is JSON, `None` too. Everybody gets a copy of their own, as JSON
    has it, also the one who made it: tuples come back as lists, and the keys of a `dict` as strings. ::

        job = await get_or_create(store, f"job/{date.today()}", new_job_id, ttl=2 * 86400)

    `key` may have up to 4096 bytes. `ttl`: seconds until the value expires, from when it was written, by the store's
    clock; `None` for never. `lease_ttl`: seconds for which the others wait for one that died while it made the value.
    The lease is renewed while the factory runs, so that may take longer; but one that keeps the event loop waiting for
    as long loses it, and somebody else makes the value too. Then the one that was written first is what all get.
    `clock` is that of the lease.

    The others wait for as long as it is being made. Where the factory raises, the one who called it gets the exception,
    and the next one tries. So too where it is cancelled: the lease is released at once.

    Raises `TypeError` or `ValueError` for bad arguments, before anything is written, and for a value that is not JSON;
    `StoreError` where the store fails, though what was made is offered to it a few times; `LeaseLostError` where the
    lease got lost, and the factory then failed; `RuntimeError` where the factory asks for its own value.
    """
    check_store(store)
    at = key_in(_PREFIX, key)
    _check(factory, ttl, lease_ttl, clock)
    sharing = _Sharing(store, key, at, factory, ttl, lease_ttl, clock)
    entry = await sharing.look()
    if entry is None:
        sharing.refuse_own_tail()
        async with _turn(store, at):
            entry = await sharing.look_or_make()
    return entry.value["value"]


@final
@dataclass(slots=True)
class _Sharing:
    """What one caller does about a value."""

    store: Store
    key: str
    at: str
    factory: Callable[[], Any]
    ttl: float | None
    lease_ttl: float
    clock: Callable[[], float]
    made: str | None = field(default=None, repr=False)
    making: bool = False
    failed: bool = False

    def refuse_own_tail(self) -> None:
        """Refuse to wait for a value whose factory is what waits, in whatever task that does."""
        if any(other.making and other.store is self.store and other.at == self.at for other in _MAKING.get()):
            msg = f"the factory for {self.key!r} asks for {self.key!r} itself, and would wait for ever"
            raise RuntimeError(msg)

    async def look(self) -> Entry | None:
        """Give what all share, if it is there."""
        entry = await self.store.get(self.at)
        if entry is not None and not (isinstance(entry.value, dict) and "value" in entry.value):
            msg = f"what the store holds under {self.at!r} was not written by `get_or_create`: delete it"
            raise StoreError(msg)
        return entry

    async def look_or_make(self) -> Entry:
        """Look for it, and try to be the one who makes it, until it is there."""
        pause = _FIRST_PAUSE
        while True:
            entry = await self.look() or await self._make_under_lease()
            if entry is not None:
                return entry
            await _sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _make_under_lease(self) -> Entry | None:
        """Make it; nothing where somebody else is at it, or may be by now."""
        name = key_in(_LEASES + _PREFIX, self.key).removeprefix(_LEASES)
        try:
            async with lease(self.store, name, ttl=self.lease_ttl, clock=self.clock):
                return await self.look() or await self._make()
        except LeaseHeldError:
            if self.failed:  # it is the factory's, about another lease
                raise
            return None
        except LeaseLostError as lost:
            if self.failed:
                raise
            logging.getLogger("rescope").warning("while the value for %r was made: %s", self.key, lost)
        return None if self.made is None else await self._write(self.made)

    async def _make(self) -> Entry:
        self.making = True
        token = _MAKING.set((*_MAKING.get(), self))
        try:
            value = self.factory()
            if hasattr(value, "__await__"):
                value = await value
            made = self.made = encode(self.key, value)
        except Exception:
            self.failed = True
            raise
        finally:
            self.making = False
            _MAKING.reset(token)
        return await self._write(made)

    async def _write(self, made: str) -> Entry:
        """Write what was made, unless something stands there by now; stubbornly, as it may have been much work.

        A try whose answer got lost is no harm: the next one finds what it has written.
        """
        for pause in _PAUSES:
            with suppress(StoreError):
                return await self._write_once(made)
            await _sleep(pause)
        return await self._write_once(made)

    async def _write_once(self, made: str) -> Entry:
        record = {"key": self.key, "value": decode(self.key, made)}
        while True:
            try:
                version = await self.store.put(self.at, record, ttl=self.ttl, if_version=0)
            except VersionConflictError:
                if (entry := await self.look()) is not None:
                    return entry
            else:
                return Entry(self.at, record, version)


_MAKING: ContextVar[tuple[_Sharing, ...]] = ContextVar("rescope_workflow_making", default=())
"""Those whose factories this is called by, also from tasks and threads that they have started."""


# Turns, in one process


@final
@dataclass(slots=True)
class _Turn:
    """Whose turn it is, of those who ask for one value. It is forgotten when nobody does."""

    lock: Lock
    asking: int = 0


@cache
def _turns() -> RunVar[dict[tuple[int, str], _Turn]]:
    """The turns of each event loop."""
    from anyio.lowlevel import RunVar

    return RunVar("rescope.workflow.shared")


@asynccontextmanager
async def _turn(store: Store, at: str) -> AsyncGenerator[None]:
    """Be the only task of this event loop that sees to this value."""
    from anyio import Lock

    try:
        turns = _turns().get()
    except LookupError:
        turns = {}
        _turns().set(turns)
    turn = turns.setdefault((id(store), at), _Turn(Lock()))
    turn.asking += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.asking -= 1
        if not turn.asking:
            del turns[id(store), at]


async def _sleep(seconds: float) -> None:
    from anyio import sleep

    await sleep(seconds * random.uniform(0.5, 1))  # noqa: S311 (it spreads the tries, and hides nothing)


def _check(factory: object, ttl: object, lease_ttl: object, clock: object) -> None:
    """Refuse what no value can be made with."""
    if not callable(factory):
        msg = f"`factory` must be callable, not a {type(factory).__qualname__}"
        if isinstance(factory, CoroutineType):
            factory.close()
            msg = f"`factory` got the coroutine {factory.__qualname__}(): pass the function itself, without calling it"
        raise TypeError(msg)
    check_ttl(ttl)
    if lease_ttl is None:
        msg = "`lease_ttl` must be a number of seconds: it is how long the others wait for one that died"
        raise TypeError(msg)
    try:
        check_ttl(lease_ttl)
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("`ttl`", "`lease_ttl`")) from None
    if not callable(clock):
        msg = f"`clock` must be callable, not a {type(clock).__qualname__}"
        raise TypeError(msg)
