"""What a pool knows of one key, and how long it may take to close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from rescope._budget import MOMENT
from rescope._closing import Closing, around
from rescope._host import Hosted
from rescope._unwind import Unwinding

if TYPE_CHECKING:
    import weakref

    from rescope._backends import Backend
    from rescope._child import Child
    from rescope._pool_errand import Errand
    from rescope._resource import Resource
    from rescope._scope import Scope

K = TypeVar("K")


class Entry(Generic[K]):
    """One key, from when it is first asked for until its value is gone."""

    __slots__ = ("claims", "errand", "handles", "key", "leaving", "on", "opened", "retired", "scope", "since", "value")

    value: Any
    since: float
    """When it was used last."""

    def __init__(self, key: K, scope: Scope, on: Backend) -> None:
        self.key = key
        self.on = on
        self.scope = scope
        self.claims = 0
        self.errand: Errand | None = None
        self.opened = False
        self.retired = False
        self.leaving = False
        self.handles: tuple[Resource[Any], ...] = ()
        handle: Any = cast("weakref.ref[Child]", scope._handle)()
        handle._limits = None, self._force

    @property
    def running(self) -> Errand | None:
        """What opens, checks or closes it now."""
        return None if self.errand is None or self.errand.over else self.errand

    @property
    def dead(self) -> bool:
        """Whether its value can be of no use: a hosted manager has died, or somebody has closed the scope."""
        hosts = (handle for handle in self.scope.resources if isinstance(handle, Hosted))
        return self.scope.state != "open" or any(host._job.done for host in hosts)

    def leave(self) -> None:
        """Begin to go."""
        self.leaving = True
        self.handles = self.scope.resources

    def _force(self) -> None:
        """Force a close that began before the pool's own, where that has less time left."""
        for handle in self.handles:
            if handle.state == "closing" and handle.force is not None:
                handle.force()


def time_left() -> float | None:
    """Give the seconds that a pool has to close: less than what closes it has, so that it can still tell how it went.

    A child scope is given what its parent has left. A pool is no child, and has to ask.
    """
    closing = around.get()
    unwinding = closing.outer if type(closing) is Closing else closing
    if closing is None or closing.resource is None or not isinstance(unwinding, Unwinding):
        return None
    left = unwinding.limit(closing.resource.timeout)
    return None if left is None else max(left - 3 * MOMENT, left / 2)
