"""What a scope tells while it lives: frozen events, given to its `on_event`."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

EventKind: TypeAlias = Literal[
    "opened", "acquired", "closing", "closed", "failed", "timed_out", "forced", "died", "scope_closed"
]
"""What an event may tell of."""


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
