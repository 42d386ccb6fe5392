"""What a machine's memory is, and what is said of it: the statuses, the errors, and which subjects there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from typing_extensions import TypeVar

from rescope.exceptions import reason
from rescope.workflow.store import check_key

__all__ = [
    "ExecutionViolation",
    "LockStatus",
    "MachineMemory",
    "ReleaseStatus",
    "State",
    "TransactionViolation",
    "UnfitStateError",
    "ViolationReason",
    "check_subject",
]

State = TypeVar("State", default=Any)


class LockStatus(StrEnum):
    """What came of asking for a lock."""

    ACQUIRED = "ACQUIRED"
    NOT_ACQUIRED = "NOT_ACQUIRED"
    """Somebody else holds it."""
    NOOP = "NOOP"
    """Locking is off: nobody was asked."""


class ReleaseStatus(StrEnum):
    """What came of giving a lock back."""

    RELEASED = "RELEASED"
    NOOP = "NOOP"
    """There was none: it was not acquired, or locking is off."""
    ERROR = "ERROR"
    """The memory failed, or the lock was another's by then. It stays until the memory lets it expire."""


ViolationReason: TypeAlias = Literal[
    "lock failed", "not acquired", "read failed", "write failed", "stale snapshot", "unlock failed"
]


class TransactionViolation(Exception):  # noqa: N818 (the name that the idea has where it comes from)
    """The memory failed, somebody else holds the lock, or the snapshot no longer stands.

    `subject` says where, and `reason` what. The `__cause__` is the memory's own error, if there is one. `may_retry`
    tells whether all of it may simply be done again, reading included, as nothing was written. It is `False` where
    a write failed, and whether it was done isn't known: read the state, and see.
    """

    def __init__(self, subject: str, reason: ViolationReason, /, *, may_retry: bool = True) -> None:
        super().__init__(subject, reason)
        self.subject = subject
        self.reason: ViolationReason = reason
        self.may_retry = may_retry

    def __str__(self) -> str:
        cause = "" if self.__cause__ is None else f" ({reason(self.__cause__)})"
        text = f"machine {self.subject!r}: {_TOLD[self.reason]}{cause}"
        return text if self.may_retry else f"{text}; it may have been written: read the state, and see"

    def __reduce__(self) -> tuple[type[TransactionViolation], tuple[str, ViolationReason], dict[str, bool]]:
        return type(self), (self.subject, self.reason), {"may_retry": self.may_retry}


_TOLD: dict[ViolationReason, str] = {
    "lock failed": "the memory failed to lock it",
    "not acquired": "somebody else holds the lock: try again later",
    "read failed": "the memory failed to read the state",
    "write failed": "the memory failed to write the state",
    "stale snapshot": "the snapshot no longer stands, as somebody else has written: read the state, and decide again",
    "unlock failed": "the lock was not held any more: its time was over",
}


class ExecutionViolation(ValueError):  # noqa: N818 (the name that the idea has where it comes from)
    """The subject can't be one. The memory was not asked. The `__cause__` is what the validation raised, if it did."""


class UnfitStateError(TypeError, ValueError):
    """The state is nothing that the memory can keep. Nothing was written, and the memory need not have failed.

    A memory of your own may raise it in `write`: it comes out as it is.
    """


@runtime_checkable
class MachineMemory(Protocol[State]):
    """Where the states of machines are kept, each under its id. Any class with these four methods is one.

    What they raise is told as a `TransactionViolation`. Where time-outs are needed, they have them.
    """

    async def read(self, id: str, /) -> State | None:  # noqa: A002 (the port's own name)
        """Give the state, or `None` where nothing stands yet."""
        ...

    async def write(self, id: str, data: State, prev: State | None, /) -> object:  # noqa: A002
        """Write a state, only if `prev` is what stands there; `None`: only if nothing does.

        Where it isn't, raise, best a `TransactionViolation(id, "stale snapshot")`, or give `False`.
        """
        ...

    async def lock(self, id: str, /) -> bool:  # noqa: A002
        """Lock it, and tell whether that was possible, without waiting. A lock should expire."""
        ...

    async def unlock(self, id: str, /) -> object:  # noqa: A002
        """Unlock it. To give `False` tells that the lock was not held any more."""
        ...


def check_subject(subject: str) -> None:
    """Refuse what can't be a subject: `TypeError` for what is no string, else `ValueError`.

    A subject is more than blanks, at most 512 bytes long in UTF-8, and holds no control characters and lone surrogates.
    """
    try:
        check_key(subject)
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("a key", "a subject", 1)) from None
    if not subject.strip():
        msg = "a subject must not be blank"
        raise ValueError(msg)
