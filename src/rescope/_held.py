"""What a scope holds, in order of registration, found by handle or by value in O(1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rescope._resource import Resource


class Held(dict[object, "Resource[Any]"]):
    """The handles of a scope; the dict's own order is the order of registration.

    A handle stands under the `id` of its value, so that one dict gives order and look-up both. Where there is no value,
    or the value is held already, the handle stands under itself, and `_again` tells the later handles of that value.
    """

    __slots__ = ("_again",)

    def __init__(self) -> None:
        super().__init__()
        self._again: dict[int, list[Resource[Any]]] = {}

    def keep(self, handle: Resource[Any]) -> None:
        """Hold one more, as the last."""
        value = handle._value
        if value is None:
            self[handle] = handle
        elif id(value) in self._again or self.setdefault(id(value), handle) is not handle:
            self[handle] = handle
            self._again.setdefault(id(value), []).append(handle)

    def find(self, value: object) -> Resource[Any] | None:
        """Find the latest handle of a value. `None` finds nothing: any number of handles may have it."""
        if id(value) in self._again:
            return self._again[id(value)][-1]
        return self.get(id(value))

    def take(self) -> Resource[Any]:
        """Take off the last one."""
        handle = self.popitem()[1]
        if self._again:
            self._forget(handle)
        return handle

    def drop(self, handle: Resource[Any]) -> None:
        """Hold this one no longer, if it is still here."""
        if self.pop(handle, None) is not None:
            self._forget(handle)
        elif self.get(id(handle._value)) is handle:
            del self[id(handle._value)]

    def _forget(self, handle: Resource[Any]) -> None:
        later = self._again.get(id(handle._value), [])
        if handle in later:
            later.remove(handle)
            if not later:
                del self._again[id(handle._value)]
