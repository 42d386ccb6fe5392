"""A store in memory, for tests and for what one process shares between its tasks and threads."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from rescope.workflow.store import (
    Entry,
    Scan,
    VersionConflictError,
    check_if_version,
    check_key,
    check_prefix,
    check_ttl,
    decode,
    encode,
    encode_many,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PAGE = 500
_SWEEP_AFTER = 1000


@final
class MemoryStore:
    """A store in the memory of this process: nothing outlives it, and nothing needs to be closed.

    Any thread and any event loop may use it. `clock` gives the time, in epoch seconds; a test may turn it.
    """

    __slots__ = ("__weakref__", "_clock", "_held", "_keys", "_lock", "_puts", "_version")

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._held: dict[str, _Held] = {}
        self._keys: list[str] = []  # in order
        self._version = 0  # one count for all keys, so nothing need be kept of one that is gone
        self._puts = 0

    def __repr__(self) -> str:
        return f"<MemoryStore holds {len(self._keys)}>"

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        check_key(key)
        await _checkpoint()
        with self._lock:
            held = self._live(key)
        return None if held is None else held.entry(key)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        """See `Store.put`."""
        check_key(key)
        check_ttl(ttl)
        check_if_version(if_version)
        text = encode(key, value)
        await _checkpoint()
        with self._lock:
            if if_version is not None:
                held = self._live(key)
                found = 0 if held is None else held.version
                if found != if_version:
                    raise VersionConflictError(key, if_version, found)
            return self._put(key, text, ttl)

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        """See `BatchStore.put_many`."""
        check_ttl(ttl)
        texts = encode_many(values)
        await _checkpoint()
        with self._lock:
            return {key: self._put(key, text, ttl) for key, text in texts.items()}

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """See `Store.delete`."""
        check_key(key)
        check_if_version(if_version, least=1)
        await _checkpoint()
        with self._lock:
            held = self._live(key)
            if held is None or if_version not in (None, held.version):
                return False
            self._drop(key)
            return True

    def scan(self, prefix: str) -> Scan:
        """See `Store.scan`."""
        check_prefix(prefix)

        async def page(after: str) -> list[Entry]:
            await _checkpoint()
            with self._lock:
                start = bisect_right(self._keys, after) if after else bisect_left(self._keys, prefix)
                found: list[tuple[str, _Held]] = []
                while not found and start < len(self._keys):  # a page of expired ones is not the end
                    keys = [key for key in self._keys[start : start + _PAGE] if key.startswith(prefix)]
                    if not keys:
                        break
                    found = [(key, held) for key in keys if (held := self._live(key)) is not None]
                    start += _PAGE
            return [held.entry(key) for key, held in found]

        return Scan(page)

    # With the lock held

    def _live(self, key: str) -> _Held | None:
        held = self._held.get(key)
        return None if held is None or held.expired(self._clock()) else held

    def _put(self, key: str, text: str, ttl: float | None) -> int:
        self._sweep()
        if key not in self._held:
            insort(self._keys, key)
        self._version += 1
        self._held[key] = _Held(text, self._version, None if ttl is None else self._clock() + ttl)
        return self._version

    def _drop(self, key: str) -> None:
        del self._held[key]
        del self._keys[bisect_left(self._keys, key)]

    def _sweep(self) -> None:
        """Forget what has expired, each time that as much was put as is held."""
        self._puts += 1
        if self._puts < max(len(self._held), _SWEEP_AFTER):
            return
        self._puts = 0
        now = self._clock()
        self._held = {key: held for key, held in self._held.items() if not held.expired(now)}
        self._keys = sorted(self._held)


@final
@dataclass(frozen=True, slots=True)
class _Held:
    text: str
    version: int
    expires_at: float | None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def entry(self, key: str) -> Entry:
        return Entry(key, decode(key, self.text), self.version, self.expires_at)


async def _checkpoint() -> None:
    """Let others run, and a cancellation in, before anything is done, as every store does."""
    from anyio.lowlevel import checkpoint

    await checkpoint()
