"""One resource of a scope, from before it is made until it is gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, final

from rescope import Resource, Scope
from rescope._closer import is_awaitable
from rescope.exceptions import reason
from rescope.workflow._lease_held import tell
from rescope.workflow.journal._cleanups import begin, known
from rescope.workflow.journal._records import as_json
from rescope.workflow.store import check_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope.workflow.journal._owner import Owner

__all__ = ["Making"]


@final
class Making:
    """A record of an owner that lives: the intent, what was made by it, and its end.

    It counts as one who stands on the owner's lease until it is closed.
    """

    __slots__ = ("_begun", "_called", "_clean", "_key", "_owner", "_place", "_record", "_settled", "_token", "cleanup")

    _owner: Owner
    _key: str
    _record: dict[str, Any]

    def __init__(self, place: str, cleanup: str, token: Any) -> None:
        self.cleanup = cleanup
        self._clean = known(cleanup)
        self._place = place
        self._token = as_json(token)
        self._called = False
        self._begun = False  # whether there may be something to clean up
        self._settled = False  # whether what is made was made while the lease was held

    async def make(
        self,
        join: Callable[[], Awaitable[Owner]],
        create: Callable[[Any], Any],
        token: Any,
        *,
        name: str | None,
        timeout: float | None,
        force: Callable[[], object] | None,
    ) -> Any:
        """Write the intent, and make it. Whatever fails or is cancelled, it is closed again before that comes out."""
        self._stand_on(await join())
        undoing = Resource(None, self.close, name=name or self.cleanup, timeout=timeout, force=force)
        async with Scope(self.cleanup) as undo:
            undo.add(undoing)
            await self._write()
            self._owner.check()
            self._begun = True
            value = create(token)
            if is_awaitable(value):
                value = await value
            self._owner.check()
            self._settled = True
            undo.detach(undoing)
        return value

    def _stand_on(self, owner: Owner) -> None:
        _check_depth(owner.left + self._place)
        self._key, self._owner = owner.prefix + self._place, owner
        self._record = {"cleanup": self.cleanup, "token": self._token, "owner": owner.life.owner, "since": time.time()}
        owner.need_too()

    def close(self, _value: object = None) -> Awaitable[None]:
        """Run the cleanup, then forget the record, unless that is somebody else's to do by now.

        As any closer, the cleanup is called in the closing task; so this does no more than that, and gives the rest.
        """
        if not self._begun:
            return self._let_go_after(self._withdraw())
        if self._owner.lost:
            return self._let_go_after(self._close_lost())
        return self._let_go_after(self._clean_up())

    async def _let_go_after(self, closing: Awaitable[None]) -> None:
        try:
            await closing
        finally:
            await self._owner.let_go()

    async def _withdraw(self) -> None:
        """Forget the intent of what was never made. Where it stays, its cleanup will have nothing to do."""
        try:
            await self._forget()
        except Exception as exc:
            tell(f"the intent to make what {self.cleanup!r} cleans up may stand until it is recovered ({reason(exc)})")

    def _clean_up(self) -> Awaitable[None]:
        self._called = True
        return self._forget_after(begin(self._clean, as_json(self._token)))

    async def _forget_after(self, cleaning: Awaitable[None]) -> None:
        try:
            await cleaning
        except BaseException as exc:
            if not self._owner.lost:
                await self._leave(exc)
            raise
        await self._forget()

    async def _leave(self, error: BaseException) -> None:
        """Let what could not be closed be recovered at once, although its owner lives, maybe for long."""
        from anyio import CancelScope

        why = reason(error) if isinstance(error, Exception) else "it was cut off"
        record = {**self._record, "error": why}
        try:
            with CancelScope(shield=True):
                await self._owner.journal.store.put(self._owner.left + self._place, record)
                await self._forget()
        except Exception as exc:
            tell(f"what {self.cleanup!r} could not close may stay until its owner has ended ({reason(exc)})")

    async def _close_lost(self) -> None:
        """Close what still has a record; what was made when that may have been recovered gets it back first."""
        try:
            if not self._settled:
                await self._write()
            if await self._is_known():
                await self._owner.again(self.cleanup, self._close_if_known)
        except BaseException:
            if not self._called:  # else what is older would be closed before it
                self._owner.leaves_all = True
            raise

    async def _close_if_known(self) -> None:
        if await self._is_known():
            await self._clean_up()

    async def _is_known(self) -> bool:
        return await self._owner.journal.store.get(self._key) is not None

    async def _write(self) -> None:
        await self._owner.journal.store.put(self._key, self._record)

    async def _forget(self) -> None:
        await self._owner.journal.store.delete(self._key)


def _check_depth(key: str) -> None:
    try:
        check_key(key)
    except ValueError as exc:
        msg = f"journaled scopes are nested too deep for the keys of a store: {exc}; a shorter `owner` leaves more room"
        raise ValueError(msg) from None
