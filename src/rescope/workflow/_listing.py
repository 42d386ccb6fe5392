"""Lists of what a store holds, read in pages as they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Self

    from rescope.workflow.store import Entry

__all__ = ["Listing"]

T = TypeVar("T")


def _all(_: object) -> bool:
    return True


@final
class Listing(Generic[T]):
    """What `read` makes of each entry of a scan, where that is `wanted`.

    It is no async generator, as nothing has to be closed: so a loop over it may just `break`.
    """

    __slots__ = ("_entries", "_read", "_wanted")

    def __init__(
        self, entries: AsyncIterator[Entry], read: Callable[[Entry], T], wanted: Callable[[T], bool] = _all
    ) -> None:
        self._entries = entries
        self._read = read
        self._wanted = wanted

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._wanted(one := self._read(await anext(self._entries))):
            pass
        return one
