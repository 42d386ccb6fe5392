"""An event that is being handled, and the state that it makes."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Generic, final

from rescope.workflow._machine_port import LockStatus, ReleaseStatus, State, UnfitStateError
from rescope.workflow._machine_store import canonical

if TYPE_CHECKING:
    from rescope.workflow.machine import EventResource

__all__ = ["Transaction", "check_state"]


@final
class Transaction(Generic[State]):
    """An event that is being handled: what `EventResource.transaction` gives."""

    __slots__ = ("__weakref__", "_over", "_previous", "_resource", "_state", "released", "status", "subject")

    subject: str
    status: LockStatus
    """`ACQUIRED`, or `NOOP` where locking is off."""
    released: ReleaseStatus | None
    """What came of unlocking; `None` before."""

    def __init__(self, resource: EventResource[State], subject: str) -> None:
        self.subject = subject
        self.status = LockStatus.NOT_ACQUIRED
        self.released = None
        self._resource = resource
        self._state: State | None = None
        self._previous: State | None = None
        self._over = False

    @property
    def state(self) -> State | None:
        """The state, `None` where nothing stands yet: a copy of the block's own, which it may change, or replace.

        Setting it raises `TypeError` for `None`, and `RuntimeError` after the block, when nobody would write it.
        """
        return self._state

    @state.setter
    def state(self, state: State | None) -> None:  # type checkers narrow what is set where both types are the same
        if self._over:
            msg = f"the transaction on {self.subject!r} is over: what is set now would not be written"
            raise RuntimeError(msg)
        check_state(self.subject, state)
        self._state = state

    @property
    def previous(self) -> State | None:
        """The snapshot that the write builds upon: what was read, or what `persist` wrote since."""
        return self._previous

    async def persist(self, state: State) -> None:
        """Write a state now, and not at the end, for what must not happen before it is written, as sending an event.

        It stays written whatever becomes of the block. Raises as `EventResource.persist_state` does.
        """
        self.state = state
        written = deepcopy(state)  # the block may change its own, and the memory may keep what it is given
        await self._resource.persist_state(self.subject, written, self._previous)
        self._previous = written

    def __repr__(self) -> str:
        return f"<Transaction on {self.subject!r}: {'over' if self._over else self.status}>"

    def _begin(self, snapshot: State | None) -> None:
        self._previous = snapshot
        self._state = deepcopy(snapshot)

    async def _end(self) -> None:
        if self._state is not None and not _same(self._state, self._previous):
            await self.persist(self._state)


def _same(state: object, previous: object) -> bool:
    """Compare as `StoreMemory` does. What isn't JSON may have changed: let the memory say what it thinks of it."""
    try:
        return canonical("", state) == canonical("", previous)
    except UnfitStateError:
        return False


def check_state(subject: str, state: object) -> None:
    """Refuse what stands for no state."""
    if state is None:
        msg = f"the state of {subject!r} must not be None, which stands for no state: a memory forgets none"
        raise TypeError(msg)
