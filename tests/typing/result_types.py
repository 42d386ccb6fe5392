# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `Ok`, `Err`, `Result` and the guards. Never run, only checked."""

from __future__ import annotations

from typing import Literal, NoReturn, assert_never, assert_type

from rescope import Err, Ok, Result, is_err, is_ok


class Missing(Exception):
    """An error."""


class Animal:
    """A type with a subtype."""


class Cat(Animal):
    """The subtype."""


def find(key: str) -> Result[int, Missing]:
    """Give either."""
    return Ok(1) if key else Err(Missing())


def making() -> None:
    assert_type(Ok(1), Ok[int])
    assert_type(Ok[int](1), Ok[int])
    assert_type(Err("no"), Err[str])
    assert_type(Err[str]("no"), Err[str])
    assert_type(Ok("a").value, str)
    assert_type(Err(2).error, int)
    assert_type(find(""), Ok[int] | Err[Missing])


def ok_tells(result: Result[int, Missing]) -> None:
    assert_type(result.ok, bool)
    assert_type(Ok(1).ok, Literal[True])
    assert_type(Err(1).ok, Literal[False])


def ok_compared_narrows(result: Result[int, Missing]) -> None:
    if result.ok is True:
        assert_type(result, Ok[int])
        assert_type(result.value, int)
    else:
        assert_type(result, Err[Missing])
        assert_type(result.error, Missing)


def not_ok_compared_narrows(result: Result[int, Missing]) -> int:
    if result.ok is False:
        assert_type(result, Err[Missing])
        return 0
    assert_type(result, Ok[int])
    return result.value


def ok_alone_narrows(result: Result[int, Missing]) -> None:
    """Mypy narrows here; pyright, by design, narrows by `is` and `==` only, and it is noticed when that changes."""
    if result.ok:
        assert_type(result, Ok[int])  # pyright: ignore[reportAssertTypeFailure]
    else:
        assert_type(result, Err[Missing])  # pyright: ignore[reportAssertTypeFailure]


def is_ok_narrows(result: Result[int, Missing]) -> None:
    if is_ok(result):
        assert_type(result, Ok[int])
    else:
        assert_type(result, Err[Missing])


def is_err_narrows(result: Result[int, Missing]) -> None:
    if is_err(result):
        assert_type(result, Err[Missing])
    else:
        assert_type(result, Ok[int])


def guards_narrow_the_same_type_on_both_sides(result: Result[int, int]) -> None:
    if is_ok(result):
        assert_type(result, Ok[int])
    else:
        assert_type(result, Err[int])


def match_narrows(result: Result[int, Missing]) -> int:
    match result:
        case Ok(value):
            assert_type(value, int)
            return value
        case Err(error):
            assert_type(error, Missing)
            return 0
        case _:
            assert_never(result)


def isinstance_narrows(result: Result[int, Missing]) -> None:
    if isinstance(result, Ok):
        assert_type(result, Ok[int])
    else:
        assert_type(result, Err[Missing])


def both_fields_need_narrowing(result: Result[int, Missing]) -> None:
    result.value  # type: ignore[union-attr]
    result.error  # type: ignore[union-attr]


def methods_of_either(result: Result[int, Missing]) -> None:
    assert_type(result.unwrap(), int)
    assert_type(result.unwrap_or(5), int)
    assert_type(result.unwrap_or(None), int | None)
    assert_type(result.map(str), Ok[str] | Err[Missing])
    assert_type(result.map_err(str), Ok[int] | Err[str])
    assert_type(result.and_then(halve), Ok[float] | Err[str] | Err[Missing])


def methods_of_each() -> None:
    assert_type(Ok(1).unwrap(), int)
    assert_type(Ok(1).unwrap_or("default"), int)
    assert_type(Err(1).unwrap_or("default"), str)
    assert_type(Ok(1).map(str), Ok[str])
    assert_type(Err(1).map(str), Err[int])
    assert_type(Ok(1).map_err(str), Ok[int])
    assert_type(Err(1).map_err(str), Err[str])
    assert_type(Ok(1).and_then(halve), Ok[float] | Err[str])
    assert_type(Err(1).and_then(halve), Err[int])


def err_unwrap_never_returns(error: Err[Missing]) -> NoReturn:
    error.unwrap()


def halve(value: int) -> Result[float, str]:
    return Ok(value / 2) if value else Err("zero")


def lambdas(result: Result[int, Missing]) -> None:
    assert_type(result.map(lambda value: value + 1), Ok[int] | Err[Missing])
    assert_type(result.and_then(lambda value: halve(value)), Ok[float] | Err[str] | Err[Missing])  # noqa: PLW0108


def covariant(cat: Ok[Cat], missing: Err[Missing], either: Result[Cat, Missing]) -> None:
    animal: Ok[Animal] = cat
    error: Err[Exception] = missing
    wider: Result[Animal, Exception] = either
    del animal, error, wider


def frozen(result: Ok[int], error: Err[int]) -> None:
    result.value = 2  # type: ignore[misc]
    error.error = 2  # type: ignore[misc]
    result.ok = True  # type: ignore[misc]


def wrong_content(value: str) -> Result[int, Missing]:
    if value:
        return Ok(value)  # type: ignore[arg-type]
    return Err(value)  # type: ignore[arg-type]


def unhandled(result: Result[int, Missing]) -> int:
    return result  # type: ignore[return-value]


class NoSubclass(Ok[int]):  # type: ignore[misc]
    """`Ok` is final."""
