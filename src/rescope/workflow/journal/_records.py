"""What stands in the store: one entry for what may have to be closed, and how a person sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from rescope.workflow._names import section
from rescope.workflow.store import decode, encode

if TYPE_CHECKING:
    from rescope.workflow.store import Entry, Store

__all__ = ["LEASES", "PREFIX", "Life", "PendingCleanup", "as_json", "begin_life", "live_leases", "place", "read"]

PREFIX: Final = "journal/"
LEASES: Final = "lease/"
UNREADABLE: Final = "not a record of the journal"

_YEAR_10000 = 253402300800.0
_MANY = 1_000_000
_DIGITS = re.compile(r"[0-9]+:")


class Life(NamedTuple):
    """One life of an owner: one event loop of one process."""

    owner: str
    id: str

    @property
    def prefix(self) -> str:
        """What the keys of all its records begin with."""
        return f"{section('journal', self.owner)}{self.id}/"

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return self.prefix.removesuffix("/")

    @property
    def left(self) -> Life:
        """What stands for what this one could not close while it goes on: no lease is ever held of that name."""
        return Life(self.owner, f"{self.id}-left")


def begin_life(owner: str, now: float, mark: str) -> Life:
    """Give a new life: ids sort by the time of their beginning, and the mark is nobody else's."""
    return Life(owner, f"{int(now * 1000):012x}{mark}")


def place(number: int) -> str:
    """Write a number so that texts sort as numbers do."""
    return f"{number:08x}"


@final
@dataclass(frozen=True, slots=True)
class PendingCleanup:
    """A cleanup that is to be run when its scope closes, or by who recovers it.

    `owner`, and its `life`: one event loop of one process. `live`: whether that held its lease when it was looked at.
    `scope` and `place` say where it is registered: places sort in order of registration, those of a child scope below
    the child's own place. `cleanup` is the name; `token` is left out of the `repr`, as it may hold a password. `since`:
    when the intent was written, in epoch seconds by the owner's clock. `attempts`: how often a recoverer has tried in
    vain; `error` is what the last try failed with, `next_try` when the next one may come, in epoch seconds.
    """

    key: str = field(repr=False)
    owner: str
    life: str
    scope: str
    place: str
    cleanup: str
    token: Any = field(repr=False)
    since: float
    live: bool
    attempts: int = 0
    error: str | None = None
    next_try: float | None = None


def as_json(token: Any) -> Any:
    """Give a copy of a token as JSON has it. Raises `TypeError` or `ValueError`, which don't show it."""
    try:
        copy = decode("token", encode("token", token))
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("the value for 'token'", "`token`", 1)) from None
    _check_keys(token)
    return copy


def _check_keys(token: Any) -> None:
    """Refuse the keys that `json` would write as strings: the cleanup would look for others than were made."""
    todo = [token]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str):
                    msg = f"`token` is not JSON: the keys of a dict must be strings, not {type(key).__qualname__}"
                    raise TypeError(msg)
            part = list(part.values())
        if isinstance(part, list | tuple):
            todo += part


def life_of(key: str) -> Life | None:
    """Give whose a record is, by its key."""
    rest = key.removeprefix(PREFIX)
    size = _DIGITS.match(rest)
    if size is None:
        return None
    end = size.end() + int(size[0][:-1])
    owner, life = rest[size.end() : end], rest[end + 1 :].partition("/")[0]
    return Life(owner, life) if owner and life and rest[end] == "/" else None


def read(entry: Entry, live: frozenset[str] = frozenset()) -> PendingCleanup:
    """Read a record. What is none is given as one that no cleanup is known for, so that it is told and kept."""
    known = life_of(entry.key)
    life = known or Life("?", "?")
    scope, _, at = entry.key.removeprefix(life.prefix).partition("/")
    value = entry.value if isinstance(entry.value, dict) else {}
    name, error = value.get("cleanup"), value.get("error")
    readable = known is not None and bool(at) and isinstance(name, str) and "token" in value
    return PendingCleanup(
        entry.key,
        life.owner,
        life.id,
        scope if readable else "?",
        at if readable else "?",
        str(name) if readable else "",
        value.get("token"),
        _time(value.get("since")) or 0.0,
        LEASES + life.lease in live,
        _count(value.get("attempts")),
        (error if isinstance(error, str) else None) if readable else UNREADABLE,
        _time(value.get("next_try")),
    )


def _time(value: object) -> float | None:
    """Read a time, in epoch seconds, that can be shown."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _YEAR_10000
    return float(value) if known else None  # type: ignore[arg-type]


def _count(value: object) -> int:
    return int(value) if isinstance(value, int) and 0 <= value < _MANY else 0


async def live_leases(store: Store) -> frozenset[str]:
    """Give the keys of the leases that owners hold."""
    return frozenset([entry.key async for entry in store.scan(LEASES + PREFIX)])
