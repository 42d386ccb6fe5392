"""`Resource`: a value and its closer."""

from __future__ import annotations

from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

from rescope import _unwind
from rescope._closer import awaited, check_callable, check_options, check_value, is_awaitable, name_of, reject
from rescope._closing import OPEN
from rescope._held import Held, Raised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope._closing import Closing
    from rescope._result import Result
    from rescope._scope import Scope
    from rescope._unwind import Unwinding

T = TypeVar("T")
State: TypeAlias = Literal["open", "closing", "closed", "detached"]


class Resource(Generic[T]):
    """A value together with what closes it; also the handle of whatever a scope holds.

    `close` takes no argument and is sync or async (`close=db.close`). `name` is for logs, errors and events; by default
    it is the type of the value, or the closer's own name. `timeout`, in seconds, bounds the close. `force` is a sync
    last resort (`proc.kill`, `transport.abort`): it is called when the close ran out of time.
    """

    __slots__ = ("_close", "_limits", "_name", "_site", "_state", "_value")

    _site: str
    """Where it was registered, if that is recorded."""

    _in_task = False
    """Whether it is bound to the task that registered it."""
    _kind = ""
    """What it is, if more than a value and a closer."""

    def __init__(
        self,
        value: T,
        close: Callable[[], object],
        *,
        name: str | None = None,
        timeout: float | None = None,
        force: Callable[[], object] | None = None,
    ) -> None:
        check_value(value)
        check_callable(close, "close")
        self._value = value
        self._close = close
        self._state: Any = OPEN
        self._set_options(name, timeout, force)

    def _set_options(self, name: str | None, timeout: float | None, force: Callable[[], object] | None) -> None:
        check_options(name, timeout, force)
        self._name = name
        self._limits = None if timeout is None and force is None else (timeout, force)

    @property
    def value(self) -> T:
        """What is to be closed."""
        return self._value

    @property
    def name(self) -> str:
        """What it is called in logs, errors and events."""
        return self._name or self._default_name()

    @property
    def state(self) -> State:
        """`"open"`, `"closing"`, `"closed"`, or `"detached"`: taken off its scope, open, and the caller's again."""
        state = self._state
        if type(state) is Held:
            return "open"
        return cast("State", state if isinstance(state, str) else "closing")

    @property
    def timeout(self) -> float | None:
        """The seconds that its close may take, `None` for as long as it likes."""
        return None if self._limits is None else self._limits[0]

    @property
    def force(self) -> Callable[[], object] | None:
        """The last resort, called when its close ran out of time."""
        return None if self._limits is None else self._limits[1]

    async def aclose(self) -> None:
        """Close it now, whoever holds it, and take it off. Closing twice closes once.

        Raises `ResourceCleanupError` when that fails. A cancellation waits until the close has ended. Where somebody
        else is closing it, this waits for them, and that wait can be cancelled.
        """
        await _unwind.close_now(self)

    def __repr__(self) -> str:
        return f"<Resource {self.name!r} {self.state}>"

    def _default_name(self) -> str:
        return name_of(self._close) if self._value is None else type(self._value).__qualname__

    def _inner(self) -> Scope | None:
        """Give the scope that it is the handle of, if it is one's."""
        return None

    def _call(self, outcome: Result[Any, Any]) -> object:  # noqa: ARG002 (callbacks take it)
        """Call the closer, in the closing task; async ones give something to be awaited."""
        return self._close()

    @staticmethod
    async def _in_turn(held: Held) -> None:
        """Close as many as there are of this kind at the end of what is held; most kinds go one by one instead."""

    def _has_raised(self, unwinding: Unwinding, raised: Raised) -> None:
        """See to what its close raised where nobody asked how it is closed."""
        unwinding.failed(self, raised.exc, raised.elapsed, asked=raised.asked)

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None] | None:
        """Start closing; give what is still to be awaited, if anything."""
        result = self._call(unwinding.outcome)
        return None if result is None else self._rest(unwinding, closing, result)

    def _rest(self, unwinding: Unwinding, closing: Closing, result: object) -> Awaitable[None] | None:
        """Give what is still to be awaited of what a closer returned."""
        if isinstance(result, GeneratorType | AsyncGeneratorType):
            msg = f"{name_of(self._close)} is a generator function: calling it ran nothing, so nothing was closed"
            raise TypeError(msg)
        if is_awaitable(result):
            return unwinding.in_time(closing, partial(awaited, cast("Awaitable[object]", result)))
        reject(result)
        return None


def managed() -> None:
    """Stand where a closer would: what is held here closes in a way of its own."""


SPECIAL: tuple[float | None, Callable[[], object] | None] = (None, None)
"""The limits of what has none, but is more than a value and a closer; what is no more than that has `None`."""


class Plain(Resource[Any]):
    """What a scope makes itself of a value and a closer that it has looked at: nearly all that it holds.

    It has no `__init__`: to set what is to be set takes two thirds of the time.
    """

    __slots__ = ()
    if TYPE_CHECKING:

        def __init__(self) -> None: ...

    else:
        __init__ = object.__init__


class Callback(Resource[None]):
    """A cleanup without a value that depends on how the body ended."""

    __slots__ = ("_when",)

    def __init__(self, close: Callable[..., object], when: Literal["error", "success", "exit"]) -> None:
        super().__init__(None, close)
        self._limits = SPECIAL
        self._when = when

    @property
    def _kind(self) -> str:  # type: ignore[override]
        return f"on {self._when}"

    def _call(self, outcome: Result[Any, Any]) -> object:
        return cast("Callable[[object], object]", self._close)(outcome) if self._when == "exit" else self._close()

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None] | None:
        if self._when == "exit" or unwinding.outcome.ok is (self._when == "success"):
            return super()._begin(unwinding, closing)
        unwinding.attempted -= 1
        return None


@overload
async def create_resource(
    acquire: Callable[[], Awaitable[T]],
    release: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[T]: ...
@overload
async def create_resource(
    acquire: Callable[[], T],
    release: Callable[[T], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[T]: ...
async def create_resource(
    acquire: Callable[[], Any],
    release: Callable[[Any], object],
    *,
    name: str | None = None,
    timeout: float | None = None,
    force: Callable[[], object] | None = None,
) -> Resource[Any]:
    """Acquire something and pair it with what releases it.

    `acquire()` and `release(value)` are sync or async. Whatever `acquire` raises is raised, a cancellation too.
    """
    check_callable(acquire, "acquire")
    check_callable(release, "release")
    check_options(name, timeout, force)
    value = acquire()
    if is_awaitable(value):
        value = await value
    return Resource(value, partial(release, value), name=name, timeout=timeout, force=force)
