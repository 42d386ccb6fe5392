"""What a scope holds now, as a tree for a person to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rescope._held import Held
from rescope._trace import traced_name

if TYPE_CHECKING:
    from rescope._resource import Resource
    from rescope._scope import Scope


def describe(scope: Scope) -> str:
    """Draw the scope, and below it what it holds and what it is closing, the last registered at the end."""
    return "\n".join(_lines(scope))


def _lines(scope: Scope) -> list[str]:
    lines = [repr(scope)[1:-1]]
    handles = handles_of(scope)
    for handle in handles:
        last = handle is handles[-1]
        first, *rest = _of(handle)
        lines.append(f"{'└── ' if last else '├── '}{first}")
        lines += [f"{'    ' if last else '│   '}{line}" for line in rest]
    return lines


def handles_of(scope: Scope) -> list[Resource[Any]]:
    """Give what it holds, and what it is closing."""
    held = scope._held
    if held is None:
        return []
    under_way = [handle for handle in scope._under_way(held) if handle.state == "closing"]
    return list(dict.fromkeys([*held.handles(), *reversed(under_way)]))


def _of(handle: Resource[Any]) -> list[str]:
    inner = handle._inner()
    if inner is not None:
        return _lines(inner)
    about = [handle._kind] if handle._kind else []
    if type(handle._state) is not Held:
        about.append("closing")
    return [traced_name(handle) + (f": {', '.join(about)}" if about else "")]
