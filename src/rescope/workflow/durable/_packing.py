"""What crosses a restart is pickled. What can't be is told at once, and not when the restart comes."""

from __future__ import annotations

import pickle
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from typing import Any

from rescope.exceptions import reason

__all__ = ["RemoteError", "digest", "pack", "packable", "same", "unpack"]


class RemoteError(Exception):
    """Stands for an exception that can't be pickled, with its type and message as text.

    `kind` is the qualified name of its type.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def pack(value: object, what: str) -> bytes:
    """Pickle a value. Raises `TypeError` for what can't be pickled, or not read again; `what` it is called there."""
    try:
        packed = pickle.dumps(value)
        pickle.loads(packed)  # noqa: S301 (it is our own)
    except Exception as exc:
        msg = f"{what} can't be pickled, so it would not survive a restart: {reason(exc)}"
        raise TypeError(msg) from exc
    return packed


def unpack(packed: bytes) -> Any:
    """Give a copy of a value."""
    return pickle.loads(packed)  # noqa: S301 (as the engine does with all that it stores)


def packable(error: Exception) -> Exception:
    """Give an exception as it will be after a restart; one that can't be pickled as a `RemoteError`."""
    try:
        again = unpack(pickle.dumps(error))
    except Exception:
        again = None
    if type(again) is type(error):
        return error
    return RemoteError(type(error).__qualname__, reason(error))


def same(left: object, right: object) -> bool:
    """Whether two values are equal: as they say themselves, or by what is pickled of them."""
    with suppress(Exception):  # arrays refuse, as they compare by element
        if left == right:
            return True
    return _each_apart(left) == _each_apart(right)


def digest(value: object) -> str:
    """Give a short name for a value that no other value gets."""
    return sha256(_each_apart(value)).hexdigest()[:16]


def _each_apart(value: object) -> bytes:
    """Pickle a value so that it makes no difference whether two equal things in it are one and the same."""
    into = BytesIO()
    pickler = pickle.Pickler(into)
    pickler.fast = True
    try:
        pickler.dump(value)
    except (ValueError, RecursionError):  # it holds itself
        return pickle.dumps(value)
    return into.getvalue()
