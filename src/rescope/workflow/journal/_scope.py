"""`JournaledScope`: a scope whose registrations outlive the process."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from rescope import Scope, ScopeClosedError
from rescope._backends import backend
from rescope._closer import check_callable
from rescope._held import hold
from rescope._unwind import Unwinding
from rescope.workflow._names import check_store, section
from rescope.workflow.journal._cleanups import find_name
from rescope.workflow.journal._making import Making
from rescope.workflow.journal._owner import Family, Journal
from rescope.workflow.journal._records import place
from rescope.workflow.lease import _clock
from rescope.workflow.store import check_ttl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._held import Held
    from rescope.events import ScopeEvent
    from rescope.workflow.journal._owner import Owner
    from rescope.workflow.store import Store

__all__ = ["JournaledScope"]

T = TypeVar("T")
Token = TypeVar("Token")

_NO_TOKEN: Final[Any] = object()
_scopes = count(1)


class _Parting(Unwinding):
    """An unwinding at the end of which the scope needs its owner's lease no more."""

    __slots__ = ()

    async def run(self, held: Held) -> None:
        """Close all that is held, then let the lease go; in time, and out of reach of what cancels this task."""
        await super().run(held)
        while (parting := cast("JournaledScope", self.scope)._part()) is not None:
            job = backend().start(parting)
            await backend().finish(job, self.flight, self.limit(None))
            await super().run(held)


class JournaledScope(Scope):
    """A `Scope` whose cleanups survive a crash: what is acquired with a token is in the journal, in a store.

    `owner` is whose it is, as `"worker-7"`, up to 200 bytes: for people to read. Each process and event loop is a life
    of its own, also under the same name, so a process that is started again never waits for the one before it, nor
    touches what another one holds. A life has one lease of `ttl` seconds, which its scopes share and which is renewed
    by itself; so `recover` waits as long for a process that died. It is taken by the first acquisition with a token,
    and given back when all scopes that did one are closed.

    It may hold anything else too, and closes all of it in one order. Its children journal as well, at their place in
    that order and in the same life. `clock` is that of the lease, for tests.

    Where the lease is lost (the store could not be reached for `ttl`, or the process was stopped as long), a WARNING on
    the logger `rescope` tells it, `acquire` with a token raises `LeaseLostError`, and what was acquired is left to who
    recovers it: closing the scope closes what nobody has closed by then, and raises `CleanupTakenError` (in
    a `ResourceCleanupError`) where somebody is at it.

    Raises `TypeError` or `ValueError` for arguments that can't be.
    """

    __slots__ = ()

    _pass = _Parting
    _owner: Owner | None = None

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        ttl: float = 30,
        name: str | None = None,
        grace: float | None = None,
        concurrent: bool = False,
        on_event: Callable[[ScopeEvent], object] | None = None,
        clock: Callable[[], float] = _clock,
    ) -> None:
        _check(store, owner, ttl, clock)
        super().__init__(name, grace=grace, concurrent=concurrent, on_event=on_event)
        self._plain = False
        self._family = Family(Journal(store, owner, ttl, clock))
        self._path = f"{place(next(_scopes))}/"
        self._places = count(1)

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
    @overload
    async def acquire(
        self,
        acquire: Callable[[Token], Awaitable[T]],
        release: str | Callable[[Any], object],
        *,
        token: Token,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> T: ...
    @overload
    async def acquire(
        self,
        acquire: Callable[[Token], T],
        release: str | Callable[[Any], object],
        *,
        token: Token,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> T: ...
    async def acquire(
        self,
        acquire: Callable[..., Any],
        release: str | Callable[[Any], object],
        *,
        token: Any = _NO_TOKEN,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
        shield: bool = False,
    ) -> Any:
        """Write down that the cleanup is to be run with the token, call `acquire(token)`, and hold what that gives.

        `release` is a function that is registered by `@cleanup`, or its name. `acquire`, sync or async, makes what the
        token names: think of a token that is good for this one making, as a name with a random part. It is JSON. What
        `acquire` gives need not be. When the scope closes, or the resource is released, the cleanup is run with a copy
        of the token, and the record goes; where the cleanup fails that is told as any failure to close, and the record
        is left to `recover` at once.

        Where `acquire` fails or is cancelled, the cleanup is run at once, as something may have been made, with the
        same `timeout` and `force`. No cancellation leaves anything made that isn't written down. Otherwise it is as
        `Scope.acquire`; without a token it is that, and nothing is written.

        Raises, before anything is written: `TypeError` or `ValueError` for a token that is not JSON, and for a cleanup
        that is not registered; `ScopeClosedError` on a closed scope; `LeaseLostError` where the owner has lost its
        lease. Raises `StoreError` where the intent can't be written; then nothing is made. ::

            vm = await scope.acquire(create_vm, delete_vm, token=f"ci-{uuid4()}")
        """
        if token is _NO_TOKEN:
            if isinstance(release, str):
                msg = f"the cleanup {release!r} needs a token: `acquire(create, {release!r}, token=...)`"
                raise TypeError(msg)
            return await super().acquire(acquire, release, name=name, timeout=timeout, force=force, shield=shield)
        self._refuse_closed()
        check_callable(acquire, "create")
        cleanup = find_name(release)
        making = Making(self._path + place(next(self._places)), cleanup, token)
        return await super().acquire(
            partial(making.make, self._join, acquire, token, name=name, timeout=timeout, force=force),
            making.close,
            name=cleanup if name is None else name,
            timeout=timeout,
            force=force,
            shield=shield,
        )

    def child(self, name: str | None = None, *, grace: float | None = None, concurrent: bool = False) -> JournaledScope:
        """Open a scope inside this one, which journals too.

        Closing this one closes it, with the same outcome; closing it first takes it off.
        """
        child = cast("JournaledScope", super().child(name, grace=grace, concurrent=concurrent))
        child._family = self._family
        child._path = f"{self._path}{place(next(self._places))}/"
        return child

    def move(self) -> JournaledScope:
        """Hand all that is held to a new open scope with the same name, grace, mode and `on_event`.

        It goes on with the same journal, at the same place. This one stays usable, and empty. Raises `ScopeClosedError`
        unless it is open.
        """
        new = cast("JournaledScope", super().move())
        new._family, new._path, new._places = self._family, self._path, self._places
        new._owner, self._owner = self._owner, None
        return new

    # What the rest of the room uses

    async def _join(self) -> Owner:
        """Give the life that this scope belongs to. What is made in it counts on it until the scope is closed."""
        if self._owner is None:
            owner = await self._family.join()
            if self._state == "closed":
                await self._family.part(owner)
                msg = f"{self._label()} was closed meanwhile: nothing was made"
                raise ScopeClosedError(msg)
            if self._owner is not None:  # another task of this scope was first
                await self._family.part(owner)
            else:
                self._owner = owner
                self._held = self._held or hold(self)  # so that its end is one to be run
        self._owner.check()
        return self._owner

    def _part(self) -> Callable[[], Awaitable[None]] | None:
        """Give what takes it out of the life that it belonged to, once."""
        owner, self._owner = self._owner, None
        return None if owner is None else partial(self._family.part, owner)

    def _another(self, name: str | None, *, grace: float | None, concurrent: bool) -> JournaledScope:
        journal = self._family.journal
        return JournaledScope(
            journal.store,
            journal.owner,
            ttl=journal.ttl,
            name=name,
            grace=grace,
            concurrent=concurrent,
            clock=journal.clock,
        )


def _check(store: object, owner: object, ttl: object, clock: object) -> None:
    """Refuse what no journal can be kept with."""
    check_store(store)
    try:
        section("journal", owner)  # type: ignore[arg-type]
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("a name", "`owner`", 1)) from None
    if ttl is None:
        msg = "`ttl` must be a number of seconds: it is how long what a process leaves behind waits to be recovered"
        raise TypeError(msg)
    check_ttl(ttl)
    check_callable(clock, "clock")
