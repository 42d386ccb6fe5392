"""One resource of a scope, from before it is made until it is gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, final

from rescope import Resource, Scope
from rescope._closer import is_awaitable
from rescope.exceptions import reason
from rescope.workflow._lease_held import tell
from rescope.workflow.journal._cleanups import known, run
from rescope.workflow.store import check_key, decode, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope.workflow.journal._owner import Owner

__all__ = ["Making", "as_json"]

T = TypeVar("T")


def as_json(token: Any) -> Any:
    """Give a copy of a token as JSON has it. Raises `TypeError` or `ValueError`, which don't show it."""
    try:
        return decode("token", encode("token", token))
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("the value for 'token'", "`token`", 1)) from None


@final
class Making:
    """A record of an owner that lives: the intent, what was made by it, and its end.

    It counts as one who stands on the owner's lease until it is closed.
    """

    __slots__ = ("_begun", "_clean", "_join", "_key", "_owner", "_place", "_record", "_settled", "_token", "cleanup")

    _owner: Owner
    _key: str
    _record: dict[str, Any]

    def __init__(self, join: Callable[[], Awaitable[Owner]], place: str, cleanup: str, token: Any) -> None:
        self.cleanup = cleanup
        self._clean = known(cleanup)
        self._join = join
        self._place = place
        self._token = as_json(token)
        self._begun = False  # whether there may be something to clean up
        self._settled = False  # whether what is made was made while the lease was held

    async def make(self, create: Callable[[Any], Any], token: Any) -> Any:
        """Write the intent, and make it. Whatever fails or is cancelled, it is closed again before that comes out."""
        self._stand_on(await self._join())
        undoing = Resource(None, self.close, name=self.cleanup)
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
        key = owner.prefix + self._place
        _check_depth(key)
        self._key, self._owner = key, owner
        self._record = {"cleanup": self.cleanup, "token": self._token, "owner": owner.life.owner, "since": time.time()}
        owner.need_too()

    async def close(self, _value: object = None) -> None:
        """Run the cleanup, then forget the record, unless that is somebody else's to do by now."""
        try:
            if not self._begun:
                await self._withdraw()
            elif self._owner.lost:
                await self._close_lost()
            else:
                await self._clean_up()
        finally:
            await self._owner.let_go()

    async def _withdraw(self) -> None:
        """Forget the intent of what was never made. Where it stays, its cleanup will have nothing to do."""
        try:
            await self._forget()
        except Exception as exc:
            tell(f"the intent to make what {self.cleanup!r} cleans up may stand until it is recovered ({reason(exc)})")

    async def _clean_up(self) -> None:
        await run(self._clean, self._token)
        await self._forget()

    async def _close_lost(self) -> None:
        """Close what still has a record; what was made when that may have been recovered gets it back first."""
        if not self._settled:
            await self._write()
        await self._owner.again(self.cleanup, self._close_if_known)

    async def _close_if_known(self) -> None:
        if await self._owner.journal.store.get(self._key) is not None:
            await self._clean_up()

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
