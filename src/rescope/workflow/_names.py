"""How the names and keys of users become keys of a store, so that no two of them ever mix.

A name stands before a piece's keys behind its length, as in Bernstein's netstrings (1997): `processed/3:a/b/`. So no
such prefix is the beginning of another, whatever the names hold. A user's key stands behind that as it is, marked `=`,
where it fits; else as its SHA-256, marked `~`. So it can be the path of any file, also one that is no UTF-8.
"""

from __future__ import annotations

import re
from hashlib import sha256

from rescope.workflow.store import MAX_KEY_BYTES, check_key

__all__ = ["MAX_NAME_BYTES", "MAX_USER_KEY_BYTES", "check_store", "check_user_key", "key_in", "section"]

MAX_NAME_BYTES = 200
"""How long a name may be, in bytes of its UTF-8: most keys still fit behind it."""

MAX_USER_KEY_BYTES = 4096
"""How long a user's key may be, in bytes of its UTF-8: as the longest path on Linux."""

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udbff]")
_NO_UTF8 = re.compile("[\udc00-\udfff]")


def section(piece: str, name: str) -> str:
    """Give the prefix of all the keys that a piece keeps under a name.

    Raises `TypeError` for a name that is no string; `ValueError` for one that is empty, longer than 200 bytes in UTF-8,
    or holds control characters or lone surrogates.
    """
    try:
        check_key(name)
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("a key", "a name", 1)) from None
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        msg = f"a name must be at most {MAX_NAME_BYTES} bytes in UTF-8, not {size}"
        raise ValueError(msg)
    return f"{piece}/{len(name)}:{name}/"


def key_in(prefix: str, key: str, *, what: str = "a key") -> str:
    """Give the store's key for a user's key behind that prefix: another one for each, in their order where they fit.

    Those that are hashed come after the others. What can't be read from them belongs into the value: keep the user's
    key there. `what` the user calls it, for the errors, which are those of `check_user_key`.
    """
    check_user_key(key, what)
    if not _NO_UTF8.search(key):
        fitting = f"{prefix}={key}"
        if len(fitting.encode()) <= MAX_KEY_BYTES:
            return fitting
    return f"{prefix}~{sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def check_user_key(key: object, what: str = "a key") -> None:
    """Refuse what can't be a user's key: `TypeError` for what is no string, else `ValueError`.

    Low surrogates pass: alone, they stand for what is no UTF-8 in the names of files. High ones don't, as JSON would
    join the two to another character.
    """
    if not isinstance(key, str):
        msg = f"{what} must be a string, not a {type(key).__qualname__}: use `os.fspath` or `str` for what isn't"
        raise TypeError(msg)
    if not key:
        msg = f"{what} must not be empty"
        raise ValueError(msg)
    if found := _FORBIDDEN.search(key):
        msg = f"{what} must not hold control characters or high surrogates, as {found[0]!r} at {found.start()}"
        raise ValueError(msg)
    size = len(key.encode(errors="surrogatepass"))
    if size > MAX_USER_KEY_BYTES:
        msg = f"{what} must be at most {MAX_USER_KEY_BYTES} bytes in UTF-8, not {size}"
        raise ValueError(msg)


def check_store(store: object) -> None:
    """Refuse what isn't a store with a `TypeError`. One that passes on to another by `__getattr__` is a store too."""
    if isinstance(store, type) or not all(hasattr(store, name) for name in ("get", "put", "delete", "scan")):
        what = f"the class {store.__qualname__}" if isinstance(store, type) else f"a {type(store).__qualname__}"
        msg = f"`store` must be a store, as `MemoryStore()`, not {what}"
        raise TypeError(msg)
