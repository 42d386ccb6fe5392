"""What a scope tells while it lives: frozen events, given to its `on_event`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

EventKind: TypeAlias = Literal[
    "opened", "acquired", "closing", "closed", "failed", "timed_out", "forced", "died", "scope_closed"
]
"""What an event may tell of."""


class ScopePath(tuple[str, ...]):  # noqa: SLOT001 (a tuple can have none)
    """The names from the root scope down to one scope; `parent` is the path of the scope that it is in.

    All events of one scope have the very same path, so that `is` tells scopes of the same name apart.
    """

    parent: ScopePath | None

    def __new__(cls, names: Iterable[str], parent: ScopePath | None = None) -> Self:
        """Make one of names."""
        self = super().__new__(cls, names)
        self.parent = parent
        return self


class ScopeEvent(NamedTuple):
    """One thing that happened to a scope or to a resource it holds.

    `path` holds the names from the root scope down to the one that tells (`"scope"` for one without a name);
    `resource` is the resource's name, `None` for what concerns the scope itself; `time` is in seconds since the epoch,
    `elapsed` in seconds: how long it took, where that is known. `closing` and `closed` are told for each resource,
    whether or not it fails; `failed` comes between them.
    """

    kind: EventKind
    path: tuple[str, ...]
    resource: str | None
    time: float
    elapsed: float | None = None
    error: BaseException | None = None
