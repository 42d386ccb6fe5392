"""What a scope holds, in order of registration, found by value in O(1)."""

from __future__ import annotations

import warnings
from contextvars import Token
from time import perf_counter
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import ref

from rescope._backends import backend
from rescope._closer import is_coroutine_function, reject
from rescope._closing import CLOSED, CLOSING, begin_within, end, end_within
from rescope._trace import Trace, traced_name

if TYPE_CHECKING:
    from rescope._backends import Job
    from rescope._closing import Closing
    from rescope._resource import Resource
    from rescope._scope import Scope

    Index: TypeAlias = "dict[int, Resource[Any] | dict[Resource[Any], None]]"

_NAMES_TOLD = 10
_FEW = 16


class Raised:
    """What a close raised, after how many seconds, and whether somebody asked its task to cancel."""

    __slots__ = ("asked", "elapsed", "exc")

    def __init__(self, exc: BaseException, elapsed: float, *, asked: bool = False) -> None:
        self.exc = exc
        self.elapsed = elapsed
        self.asked = asked


class Held(ref["Scope"]):
    """The places of a scope's handles, the last registered at the end, and an index of their values.

    It is also the weak reference by which the handles know their scope: so they are no circle, and a scope that is
    dropped is gone at once.

    A handle that closes out of turn leaves its place behind, to be passed over: looking for it would take the longer
    the more there are. When most places are such they are swept, so that a long-lived scope stays small. The last place
    is always a live one.
    """

    __slots__ = (
        "_coroutine",
        "attempted",
        "gone",
        "heir",
        "job",
        "left",
        "places",
        "resource",
        "since",
        "token",
        "values",
    )

    places: list[Resource[Any]]
    values: Index | None
    """By the `id` of a value its handle, or its handles in order."""
    gone: int
    """How many of the places are left behind."""
    attempted: int
    """How many there are to close, once it begins."""
    heir: Held | None
    """The one to which all of it was handed over."""
    left: object
    """What is to be seen to before the next is closed: what one raised, as `Raised`, or gave that is no coroutine."""

    # While it calls plain closers or exits managers in turn, it is the closing of what it is at.
    resource: Any
    since: float
    job: Job | None
    """The task in which it awaits what they gave."""
    holder: Scope | None = None
    _coroutine: CoroutineType[Any, Any, Any] | None

    @property
    def scope(self) -> Scope | None:
        """The scope that closes."""
        return self()

    @property
    def outer(self) -> Closing | Held | None:
        """The closing from within which it closes."""
        outer = self.token.old_value
        return None if outer is Token.MISSING else outer

    def close_plain(self) -> None:
        """Call plain closers, the last one first, until there is something to be seen to: a `job`, or what one did.

        It also ends where the next is not plain, or none is left. Nearly all that scopes hold is plain: a value and a
        closer without a bound. One call more for each would be a good part of what it costs.
        """
        places = self.places
        token = self.token = begin_within(self)
        try:
            while places:
                resource = places.pop()
                if resource._limits is not None or resource._state is not self:
                    places.append(resource)
                    return
                resource._state = CLOSING
                self.resource = resource
                self.since = perf_counter()
                try:
                    given = resource._close()
                    if given is not None:
                        if type(given) is not CoroutineType:
                            self.left = given
                            return
                        self._coroutine = given
                        self.job = backend().launch(self._batch)
                        if self.job is not None or self.left is not None:
                            return
                        continue
                except BaseException as exc:
                    self.left = Raised(exc, perf_counter() - self.since)
                    return
                if resource._state is CLOSING:
                    resource._state = CLOSED
                else:  # an eager task that it started waits for it
                    end(resource)
        finally:
            end_within(token)

    async def _batch(self) -> None:
        """Await what a plain closer gave, and go on with the next ones while they are coroutine functions.

        Calling one of those runs nothing of it yet, while a sync closer belongs to the closing task. It also ends where
        one failed, and where somebody asked this task to cancel: that is not for the next.
        """
        places = self.places
        resource: Resource[Any] = self.resource
        close: Any = resource._close
        given: Any
        given, self._coroutine = self._coroutine, None
        known = pressure = None
        while True:
            try:
                if given is None:
                    given = close()
                given = await given
                if given is not None:
                    reject(given)
                    given = None
            except BaseException as exc:
                self.left = Raised(exc, perf_counter() - self.since, asked=backend().pressure() > 0)
                break
            if resource._state is CLOSING:
                resource._state = CLOSED
            else:
                end(resource)
            if not places:
                break
            pressure = pressure or backend().pressure_gauge()
            resource = places.pop()
            close = resource._close
            later = close is known  # often the same closes many
            if not later:
                fn = close.__func__ if type(close) is MethodType else close
                later = fn is known or is_coroutine_function(fn)
                known = fn
            if not later or resource._limits is not None or resource._state is not self or pressure():
                places.append(resource)
                break
            resource._state = CLOSING
            self.resource = resource
            self.since = perf_counter()
        if self.job is not None:
            self.job.end()

    def keep(self, handle: Resource[Any]) -> None:
        """Hold one more, as the last."""
        handle._state = self
        self.places.append(handle)
        if self.values is None:
            if len(self.places) > _FEW:
                self._index_all()
        elif handle._value is not None and self.values.setdefault(id(handle._value), handle) is not handle:
            self._index_another(handle)

    def find(self, value: object) -> Resource[Any] | None:
        """Find the latest open handle of a value. `None` finds nothing: any number of handles may have it."""
        if value is None:
            return None
        if self.values is None and len(self.places) > _FEW:
            self._index_all()
        for handle in reversed(self._candidates(value)):
            if handle._value is value and handle._state is not CLOSED:
                return handle
        return None

    def _candidates(self, value: object) -> list[Resource[Any]] | dict[Resource[Any], None]:
        if self.values is None:
            return self.places
        known = self.values.get(id(value))
        return known if isinstance(known, dict) else [] if known is None else [known]

    def _index_all(self) -> None:
        """Begin to index. Few handles are found by looking at each, which costs less than to index them."""
        self.values = {}
        for handle in self.handles():
            if handle._value is not None and self.values.setdefault(id(handle._value), handle) is not handle:
                self._index_another(handle)

    def _index_another(self, handle: Resource[Any]) -> None:
        """Index one more handle of a value."""
        values = cast("Index", self.values)
        known = values[id(handle._value)]
        if isinstance(known, dict):
            known[handle] = None
        else:
            values[id(handle._value)] = {known: None, handle: None}

    def handles(self) -> list[Resource[Any]]:
        """Give those that are held."""
        return [handle for handle in self.places if handle._state is not CLOSED]

    def leave(self, handle: Resource[Any]) -> None:
        """Let one go that has closed out of turn."""
        if self.heir is not None:
            self.heir.leave(handle)
            return
        self._forget(handle)
        self.gone += 1
        self.trim()
        if self.gone > _FEW + len(self.places) // 2:
            self.places[:] = self.handles()
            self.gone = 0

    def take_out(self, handle: Resource[Any]) -> None:
        """Let one go that stays open, and may come back."""
        self._forget(handle)
        self.places.remove(handle)
        self.trim()

    def hand_over(self, scope: Scope) -> Held:
        """Let another scope hold all of it."""
        self.heir = heir = hold(scope)
        heir.places, heir.values, heir.gone = self.places, self.values, self.gone
        self.places, self.values, self.gone = [], None, 0
        for handle in heir.places:
            if handle._state is self:
                handle._state = heir
        return heir

    def pass_over(self) -> None:
        """Let the last one be, which somebody else is closing; its `leave` is still to come."""
        self.places.pop()
        self.gone -= 1
        self.trim()

    def trim(self) -> None:
        """Drop the places left behind at the end."""
        while self.places and self.places[-1]._state is CLOSED:
            self.places.pop()
            self.gone -= 1

    def _forget(self, handle: Resource[Any]) -> None:
        known = None if self.values is None else self.values.get(id(handle._value))
        if self.values is None or known is None:
            return
        if isinstance(known, dict):
            known.pop(handle, None)
        if known is handle or not known:
            del self.values[id(handle._value)]


def hold(scope: Scope) -> Held:
    """Let a scope begin to hold."""
    held = Held(scope)
    held.places = []
    held.values = held.heir = held.resource = held.left = held.job = None
    held.gone = 0
    return held


def tell_dropped(label: str, held: Held) -> None:
    """Warn of a scope that is gone and had something left to close."""
    names = [traced_name(handle) for handle in held.handles()]
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    msg = f"{label} was dropped without being closed; it still held: {', '.join(names[:_NAMES_TOLD])}{more}"
    try:
        warnings.warn(msg, ResourceWarning, stacklevel=3)
    finally:
        if Trace.watcher is not None:
            Trace.watcher.dropped(label, held.handles())
