"""Events, kept for a test to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, final, get_args

from rescope._closer import check_seconds
from rescope.events import EventKind
from rescope.testing._bell import Bell

if TYPE_CHECKING:
    from rescope.events import ScopeEvent

_KINDS: tuple[EventKind, ...] = get_args(EventKind)


@final
class CapturedEvents:
    """An `on_event` that keeps what it is told, and lets a test wait for what is still to come.

    The idea is that of structlog's `LogCapture`::

        async def test_the_cache_is_closed_first():
            captured = CapturedEvents()
            async with Scope("app", on_event=captured) as scope:
                scope.add(FaultyResource(), name="database")
                scope.add(FaultyResource(), name="cache")
            assert captured.names("closed") == ["cache", "database"]
            assert captured.told[-1] == ("scope_closed", "app", None)
    """

    __slots__ = ("_bell", "events")

    events: list[ScopeEvent]
    """All that was told, in order."""

    def __init__(self) -> None:
        self.events = []
        self._bell = Bell()

    def __call__(self, event: ScopeEvent, /) -> None:
        """Keep one; a scope calls this."""
        self.events.append(event)
        self._bell.ring()

    @property
    def kinds(self) -> list[EventKind]:
        """The kind of each."""
        return [event.kind for event in self.events]

    @property
    def told(self) -> list[tuple[EventKind, str, str | None]]:
        """Kind, path and resource of each, the path as `"app/request"`: easy to write down, and to compare."""
        return [(event.kind, _path(event), event.resource) for event in self.events]

    def of(self, *kinds: EventKind) -> list[ScopeEvent]:
        """Those of some kinds. Raises `ValueError` for a kind that there is not, here and below."""
        _check(kinds)
        return [event for event in self.events if event.kind in kinds]

    def names(self, *kinds: EventKind) -> list[str]:
        """What those of some kinds tell of: the resource's name each, or the scope's where it concerns no resource.

        So `captured.names("closed")` is the order in which things were closed.
        """
        return [event.resource or event.path[-1] for event in self.of(*kinds)]

    def clear(self) -> None:
        """Forget what was told so far."""
        self.events.clear()

    async def wait(
        self, kind: EventKind, resource: str | None = None, *, path: str | None = None, timeout: float = 5.0
    ) -> ScopeEvent:
        """Wait for an event of that kind, and give it: the first there is, also where it was told before.

        `resource` is a name and `path` is as `"app/request"`: `None` for any. To wait for the next one, `clear` first.
        Raises `TimeoutError` after `timeout` seconds, which lists what was told instead. The scope must live on the
        same event loop. A cancellation ends the waiting.
        """
        _check([kind])
        check_seconds(timeout, "timeout")

        def look() -> ScopeEvent | None:
            fits = (event for event in self.of(kind) if resource in {None, event.resource})
            return next((event for event in fits if path in {None, _path(event)}), None)

        def missing() -> str:
            wanted = repr(kind) + ("" if resource is None else f" of {resource!r}") + (f" in {path!r}" if path else "")
            told = "\n  ".join(map(str, self.told)) or "nothing at all"
            return f"no {wanted} was told within {timeout:g} s, but:\n  {told}"

        return await self._bell.within(timeout, look, missing)

    def __repr__(self) -> str:
        return f"<CapturedEvents: {', '.join(self.kinds) or 'none yet'}>"


def _path(event: ScopeEvent) -> str:
    return "/".join(event.path)


def _check(kinds: tuple[str, ...] | list[str]) -> None:
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        msg = f"there is no kind {', '.join(map(repr, unknown))} of events: the kinds are {', '.join(_KINDS)}"
        raise ValueError(msg)
