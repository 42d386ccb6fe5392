"""`Ok`, `Err` and `Result`: success or failure as a value.

The idea is Rust's `std::result`. It stays small on purpose: what a scope needs to know how a body ended, and no more.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    TypeAlias,
    TypeVar,
    cast,
    dataclass_transform,
    final,
)

from rescope.exceptions import UnwrapError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Never

    from typing_extensions import TypeIs

T = TypeVar("T")
E = TypeVar("E")
U = TypeVar("U")
F = TypeVar("F")
T_co = TypeVar("T_co", covariant=True)
E_co = TypeVar("E_co", covariant=True)


@dataclass_transform(frozen_default=True, eq_default=False)
class _Frozen:
    """What a frozen dataclass gives.

    Written out because on Python 3.11 a frozen, slotted, generic dataclass can't be made as `Ok[int](1)`: its
    `__setattr__` answers typing with a `TypeError` where an `AttributeError` is expected.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        msg = f"cannot assign to {name!r}: {type(self).__name__} is frozen"
        raise AttributeError(msg)

    def __delattr__(self, name: str) -> NoReturn:
        msg = f"cannot delete {name!r}: {type(self).__name__} is frozen"
        raise AttributeError(msg)

    def _content(self) -> Any:
        return getattr(self, cast("Any", self).__match_args__[0])

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self):
            return bool(self._content() == other._content())
        return NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), self._content()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._content()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content(),)


@final
class Ok(_Frozen, Generic[T_co]):
    """A success and its value."""

    __slots__ = ("value",)
    __match_args__ = ("value",)

    value: T_co
    ok: ClassVar[Literal[True]] = True

    def __init__(self, value: T_co) -> None:
        object.__setattr__(self, "value", value)

    def unwrap(self) -> T_co:
        """Give the value."""
        return self.value

    def unwrap_or(self, default: object, /) -> T_co:  # noqa: ARG002 (the other half of the pair uses it)
        """Give the value; an `Err` would give `default`."""
        return self.value

    def map(self, f: Callable[[T_co], U], /) -> Ok[U]:
        """Apply `f` to the value."""
        return Ok(f(self.value))

    def map_err(self, f: Callable[[Never], object], /) -> Ok[T_co]:  # noqa: ARG002
        """Give itself; an `Err` would apply `f` to its error."""
        return self

    def and_then(self, f: Callable[[T_co], U], /) -> U:
        """Go on with `f`, which gives the next `Result`."""
        return f(self.value)


@final
class Err(_Frozen, Generic[E_co]):
    """A failure and its error, an exception or any other value."""

    __slots__ = ("error",)
    __match_args__ = ("error",)

    error: E_co
    ok: ClassVar[Literal[False]] = False

    def __init__(self, error: E_co) -> None:
        object.__setattr__(self, "error", error)

    def unwrap(self) -> NoReturn:
        """Raise the error itself where it is an exception, else `UnwrapError` with it."""
        if isinstance(self.error, BaseException):
            raise self.error
        raise UnwrapError(self.error)

    def unwrap_or(self, default: U, /) -> U:
        """Give `default`; an `Ok` would give its value."""
        return default

    def map(self, f: Callable[[Never], object], /) -> Err[E_co]:  # noqa: ARG002
        """Give itself; an `Ok` would apply `f` to its value."""
        return self

    def map_err(self, f: Callable[[E_co], F], /) -> Err[F]:
        """Apply `f` to the error."""
        return Err(f(self.error))

    def and_then(self, f: Callable[[Never], object], /) -> Err[E_co]:  # noqa: ARG002
        """Give itself; an `Ok` would go on with `f`."""
        return self


Result: TypeAlias = Ok[T] | Err[E]
"""Either an `Ok[T]` or an `Err[E]`."""


def is_ok(result: Result[T, E], /) -> TypeIs[Ok[T]]:
    """Tell whether `result` is an `Ok`, so that type checkers know it too."""
    return isinstance(result, Ok)


def is_err(result: Result[T, E], /) -> TypeIs[Err[E]]:
    """Tell whether `result` is an `Err`, so that type checkers know it too."""
    return isinstance(result, Err)
