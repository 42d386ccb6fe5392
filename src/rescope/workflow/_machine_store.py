"""Machine memory on a store.

The state is an entry, `machine/=<id>`, which holds just the state. A write compares it with the snapshot by value, and
puts by version: so of two that have read the same snapshot, one wins. It does not lean on the lock.

The lock is another entry, `machine-lock/=<id>`, which expires. Taking it is a put where there is no entry; giving it
back is a delete of the version of that put. So nobody can take away what another one has put there since. The port
names no holder, and one memory serves many tasks: who asks is told by `HOLDER`, a context variable, which
`EventResource` sets. A mark in the entry lets a put be recognised whose answer got lost.
"""

from __future__ import annotations

import json
import os
from collections import deque
from contextvars import ContextVar
from socket import gethostname
from typing import TYPE_CHECKING, Generic, final
from weakref import WeakKeyDictionary

from rescope.workflow._machine_port import State, TransactionViolation, UnfitStateError
from rescope.workflow._names import check_store, key_in
from rescope.workflow.store import VersionConflictError, check_ttl, encode

if TYPE_CHECKING:
    from rescope.workflow.store import Store

__all__ = ["HOLDER", "StoreMemory", "canonical"]

HOLDER: ContextVar[object] = ContextVar("rescope_machine_holder")
"""On whose behalf a memory is asked to lock and to unlock."""

_STATE = "machine/"
_LOCK = "machine-lock/"
_REMEMBERED = 100  # locks in doubt; one that is forgotten expires


@final
class StoreMemory(Generic[State]):
    """Machine memory on a `Store`: states are JSON values, and locks expire after `lock_ttl` seconds.

    A snapshot stands as long as it is the same JSON as what is stored: the order of keys doesn't matter, a tuple is
    a list, and `1`, `1.0` and `true` are three values. A state that went away and came back is the same.

    A holder that overruns `lock_ttl` loses the lock to whoever asks next, and can't unlock theirs. Nothing is lost by
    that: of two that have read the same state, only one can write.

    Any number of tasks may share one. Raises `TypeError` for what is no store, `TypeError` or `ValueError` for a time
    that is none. What the store raises comes out of its methods.
    """

    __slots__ = ("__weakref__", "_held", "_in_doubt", "_lock_ttl", "_store")

    def __init__(self, store: Store, *, lock_ttl: float = 60) -> None:
        check_store(store)
        _check_lock_ttl(lock_ttl)
        self._store = store
        self._lock_ttl = lock_ttl
        self._held: WeakKeyDictionary[object, dict[str, int]] = WeakKeyDictionary()  # by holder: versions, by key
        self._in_doubt: deque[str] = deque(maxlen=_REMEMBERED)  # marks of puts without an answer

    def __repr__(self) -> str:
        return f"<StoreMemory on a {type(self._store).__qualname__}, locks for {self._lock_ttl:g} s>"

    async def read(self, id: str) -> State | None:  # noqa: A002 (the port's own name)
        """Give the state, or `None` where nothing stands yet."""
        entry = await self._store.get(key_in(_STATE, id))
        return None if entry is None else entry.value

    async def write(self, id: str, data: State, prev: State | None) -> None:  # noqa: A002
        """Write a state over that snapshot; `None` for no state yet.

        Raises `TransactionViolation` where the snapshot doesn't stand, `UnfitStateError` for what is no JSON, and
        for `None`, which stands for no state.
        """
        key = key_in(_STATE, id)
        if data is None:
            msg = f"the state of {id!r} must not be None, which stands for no state"
            raise UnfitStateError(msg)
        canonical(id, data)
        expected = canonical(id, prev)
        while True:
            entry = await self._store.get(key)
            if canonical(id, None if entry is None else entry.value) != expected:
                raise TransactionViolation(id, "stale snapshot")
            try:
                await self._store.put(key, data, if_version=0 if entry is None else entry.version)
            except VersionConflictError:  # what was written meanwhile may be the same
                continue
            return

    async def lock(self, id: str) -> bool:  # noqa: A002
        """Lock it for `lock_ttl` seconds, and tell whether that was possible."""
        key = key_in(_LOCK, id)
        mark = os.urandom(8).hex()
        record = {"holder": f"{gethostname()}:{os.getpid()}", "mark": mark}
        try:
            version: int | None = await self._store.put(key, record, ttl=self._lock_ttl, if_version=0)
        except VersionConflictError:
            version = await self._find_again(key)
        except BaseException:
            self._in_doubt.append(mark)
            raise
        if version is None:
            return False
        self._held.setdefault(HOLDER.get(self), {})[key] = version
        return True

    async def unlock(self, id: str) -> bool:  # noqa: A002
        """Unlock what this holder has locked. Gives `False` where that is another's by now, or nobody's."""
        key = key_in(_LOCK, id)
        held = self._held.get(HOLDER.get(self), {})
        version = held.get(key)
        if version is None:
            return False
        released = await self._store.delete(key, if_version=version)
        if held.get(key) == version:
            del held[key]
        return released

    async def _find_again(self, key: str) -> int | None:
        """Give the version of the lock that stands there, if it was put here and the answer got lost."""
        entry = await self._store.get(key)
        if entry is None or not isinstance(entry.value, dict) or entry.value.get("mark") not in self._in_doubt:
            return None
        self._in_doubt.remove(entry.value["mark"])
        return entry.version


def canonical(id: str, state: object) -> str:  # noqa: A002 (as in the port)
    """Write a state as JSON, the same text for the same state. Raises `UnfitStateError` for what is no JSON."""
    try:
        return json.dumps(json.loads(encode(id, state)), sort_keys=True)
    except (TypeError, ValueError) as exc:
        raise UnfitStateError(str(exc).replace("the value for", "the state of", 1)) from None


def _check_lock_ttl(lock_ttl: object) -> None:
    if lock_ttl is None:
        msg = "`lock_ttl` must be a number of seconds: the lock of a process that died would never be let go of"
        raise TypeError(msg)
    try:
        check_ttl(lock_ttl)
    except TypeError:
        msg = f"`lock_ttl` must be a number of seconds, not a {type(lock_ttl).__qualname__}"
        raise TypeError(msg) from None
    except ValueError as exc:
        msg = str(exc).replace("`ttl`", "`lock_ttl`").partition(":")[0]
        raise ValueError(msg) from None
