"""The port that all of `rescope.workflow` stands on: JSON values under string keys, in a store that processes share.

A store of your own has the four methods of `Store`, and maybe the one of `BatchStore`. The functions below it check and
write what goes in as all stores of rescope do, and `rescope.testing.store_contract` tells whether it keeps what the
port promises.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from typing import Self

__all__ = [
    "MAX_KEY_BYTES",
    "BatchStore",
    "Entry",
    "Scan",
    "Store",
    "StoreClosedError",
    "StoreError",
    "UnreadableValueError",
    "VersionConflictError",
    "check_if_version",
    "check_key",
    "check_prefix",
    "check_ttl",
    "decode",
    "encode",
    "encode_many",
    "prefix_end",
]

MAX_KEY_BYTES = 512
"""How long a key may be, in bytes of its UTF-8."""


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds under a key.

    `value` is a copy of the reader's own, and is left out of the `repr`, as it may hold a password. `version` is that
    of the put that wrote it. `expires_at` is in epoch seconds by the store's clock, or `None`.
    """

    key: str
    value: Any = field(repr=False)
    version: int
    expires_at: float | None = None


class StoreError(Exception):
    """The store could not do what it was asked for: it can't be reached, is busy, is full, or is not what it should be.

    `may_retry` tells whether the very same call may be made again: either nothing was written, or to write it again
    does no harm. It is `False` where trying again can't help, and where the connection was cut under a put with
    `if_version`: whether it was done is not known, so look at the entry first.
    """

    def __init__(self, message: str, *, may_retry: bool = False) -> None:
        super().__init__(message)
        self.may_retry = may_retry


class StoreClosedError(StoreError):
    """The store, or the pool or client it stands on, is closed. Nothing was written."""


class UnreadableValueError(StoreError):
    """What the store holds there is not JSON, or nested too deep for this Python. The entry is left as it is."""


class VersionConflictError(Exception):
    """The entry is not of the version that the put expects; somebody else was first. Nothing was written.

    `expected` and `found` are versions, 0 for no entry.
    """

    def __init__(self, key: str, expected: int, found: int) -> None:
        super().__init__(key, expected, found)
        self.key = key
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        expected = f"version {self.expected}" if self.expected else "no entry"
        found = f"version {self.found}" if self.found else "none"
        return f"{self.key!r}: expected {expected}, found {found}: get it and decide again"


@runtime_checkable
class Store(Protocol):
    """JSON values under string keys, with versions for compare-and-set and a time-to-live on the store's own clock.

    *Keys* are text: not empty, at most 512 bytes in UTF-8, without control characters and lone surrogates.

    *Values* are what `json` can write, NaN and infinities apart. What comes back is a fresh copy as JSON has it: tuples
    come back as lists, and the keys of a `dict` as strings: of `1` and `"1"` in one `dict`, the last stays.

    *Versions* are positive. Those of a key only grow, also when it is deleted or expires and is put again. So who holds
    an old version never overwrites anything, and a version is good as a fencing token.

    *Expiry*: an entry whose time has come is as if it weren't there, for every method.

    Each operation is atomic. One that is cancelled was done as a whole, or not at all. Bad keys, values and options
    raise `TypeError` or `ValueError` before anything is written; where the store fails, `StoreError` tells whether the
    call may be retried.
    """

    async def get(self, key: str) -> Entry | None:
        """Give the entry under that key, or `None`."""
        ...

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        """Write a value, and give its version.

        `ttl`: seconds until it expires, up to 1e10; without it, it stays (also if the entry before it had a time).
        `if_version`: write only if that is the entry's version; 0 for no entry. Raises `VersionConflictError` where it
        is another.
        """
        ...

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """Take the entry away, and tell whether there was one. With `if_version`, only if it is of that version."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[Entry]:
        """Give all entries whose keys begin with that prefix (all there are, for `""`), in key order by code points.

        They are read in pages, so that few are in memory. What doesn't change meanwhile is given once; what is written,
        deleted or expires meanwhile may be given as it was before or after. It may be left at any time.
        """
        ...


@runtime_checkable
class BatchStore(Store, Protocol):
    """A store that can also write many entries in one go."""

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        """Write all of them, or none, as `put` without `if_version` does. Gives the version of each key."""
        ...


@final
class Scan:
    """An iterator for `scan`: asks for a page when the one before it was given.

    `page(after)` gives the next few entries whose keys come after that one (`""` at first), or none at the end. Nothing
    is held open between pages, as it would be in an async generator: so a loop over it may just `break`.
    """

    __slots__ = ("_after", "_entries", "_over", "_page")

    def __init__(self, page: Callable[[str], Awaitable[Sequence[Entry]]]) -> None:
        self._page = page
        self._entries: deque[Entry] = deque()
        self._after = ""
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        if not self._entries and not self._over:
            self._entries.extend(await self._page(self._after))
        if not self._entries:
            self._over = True
            raise StopAsyncIteration
        entry = self._entries.popleft()
        self._after = entry.key
        return entry


# What goes in, checked and written in the same way by all stores

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_key(key: object) -> None:
    """Refuse what can't be a key: `TypeError` for what is no string, else `ValueError`."""
    _check_text(key, "a key")
    if not key:
        msg = "a key must not be empty"
        raise ValueError(msg)


def check_prefix(prefix: object) -> None:
    """Refuse what no key can begin with."""
    _check_text(prefix, "a prefix")


def check_ttl(ttl: object) -> None:
    """Refuse a time-to-live that is no number of seconds above 0, and up to 1e10. `None` is for ever."""
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        msg = f"`ttl` must be a number of seconds, or None, not a {type(ttl).__qualname__}"
        raise TypeError(msg)
    if not 0 < ttl <= _LONGEST_TTL:
        msg = f"`ttl` must be more than 0 and at most {_LONGEST_TTL:g} s, not {ttl}: leave it out for what stays"
        raise ValueError(msg)


def check_if_version(if_version: object, *, least: int = 0) -> None:
    """Refuse what can't be a version. The least is 0 for `put`, 1 for `delete`. `None` is any."""
    if if_version is None:
        return
    if isinstance(if_version, bool) or not isinstance(if_version, int):
        msg = f"`if_version` must be the version of an entry, not a {type(if_version).__qualname__}"
        raise TypeError(msg)
    if not least <= if_version <= _GREATEST_VERSION:
        msg = f"`if_version` must be the version of an entry, at least {least}, not {if_version}"
        raise ValueError(msg)


def encode(key: str, value: Any) -> str:
    """Write a value as JSON, in ASCII. The errors name the key, and never show the value."""
    try:
        return _ENCODER.encode(value)
    except TypeError as exc:  # its message names types only
        msg = f"the value for {key!r} is not JSON: {exc}"
        raise TypeError(msg) from None
    except RecursionError:
        msg = f"the value for {key!r} is not JSON: it is nested too deep"
        raise ValueError(msg) from None
    except ValueError:
        msg = f"the value for {key!r} is not JSON: it holds a NaN, an infinity, a number too long, or itself"
        raise ValueError(msg) from None


def encode_many(values: Mapping[str, Any]) -> dict[str, str]:
    """Check each key and write each value, as for a `put_many`."""
    if not hasattr(values, "items"):
        msg = f"`values` must be a mapping of keys to values, not a {type(values).__qualname__}"
        raise TypeError(msg)
    for key in values:
        check_key(key)
    return {key: encode(key, value) for key, value in values.items()}


def decode(key: str, text: str | bytes) -> Any:
    """Read what `encode` wrote. Raises `UnreadableValueError` where it is not JSON, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        msg = f"what the store holds under {key!r} is nested too deep for this Python to read"
        raise UnreadableValueError(msg) from None
    except ValueError:
        msg = f"what the store holds under {key!r} is not JSON: something other than rescope wrote it"
        raise UnreadableValueError(msg) from None


def prefix_end(prefix: str) -> str | None:
    """Give the least string that comes after all that begin with that prefix; `None` where there is none."""
    body = prefix.rstrip(chr(_LAST))
    if not body:
        return None
    following = ord(body[-1]) + 1
    return body[:-1] + chr(0xE000 if following == _FIRST_SURROGATE else following)


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # `json.dumps` makes one at each call
_LONGEST_TTL = 1e10
_GREATEST_VERSION = 2**63 - 1
_LAST = 0x10FFFF
_FIRST_SURROGATE = 0xD800


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        msg = f"{what} must be a string, not a {type(text).__qualname__}"
        raise TypeError(msg)
    if found := _FORBIDDEN.search(text):
        msg = f"{what} must not hold control characters or lone surrogates, as {found[0]!r} at {found.start()}"
        raise ValueError(msg)
    size = len(text.encode())
    if size > MAX_KEY_BYTES:
        msg = f"{what} must be at most {MAX_KEY_BYTES} bytes in UTF-8, not {size}"
        raise ValueError(msg)
