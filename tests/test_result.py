"""`Ok`, `Err` and `Result`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from rescope import Err, Ok, Result, UnwrapError, is_err, is_ok

BOTH: list[Result[Any, Any]] = [Ok(1), Err("no")]


@pytest.fixture(params=BOTH, ids=repr)
def result(request: pytest.FixtureRequest) -> Result[Any, Any]:
    """An `Ok` and an `Err`."""
    found: Result[Any, Any] = request.param
    return found


def describe(result: Result[object, object]) -> str:
    """Take a `Result` apart by position."""
    match result:
        case Ok(value):
            return f"value {value}"
        case Err(error):
            return f"error {error}"


# What it is


def test_ok_keeps_its_value() -> None:
    """An `Ok` gives back, as `value`, the very object it was made of."""
    value = object()

    assert Ok(value).value is value


def test_err_keeps_its_error() -> None:
    """An `Err` gives back, as `error`, the very object it was made of."""
    error = ValueError()

    assert Err(error).error is error


def test_ok_of_an_ok_is_true() -> None:
    """`Ok(...).ok` is the literal `True`."""
    assert Ok(0).ok is True


def test_ok_of_an_err_is_false() -> None:
    """`Err(...).ok` is the literal `False`."""
    assert Err(0).ok is False


def test_ok_has_no_error() -> None:
    """An `Ok` has a value only."""
    assert not hasattr(Ok(1), "error")


def test_err_has_no_value() -> None:
    """An `Err` has an error only."""
    assert not hasattr(Err(1), "value")


def test_stays_small() -> None:
    """Nothing is on them but what the contract lists."""
    shared = {"ok", "unwrap", "unwrap_or", "map", "map_err", "and_then"}

    public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (Ok, Err)]

    assert public == [shared | {"value"}, shared | {"error"}]


def test_ok_can_be_made_with_its_type() -> None:
    """`Ok[int](1)` makes an `Ok`, on Python 3.11 too."""
    assert Ok[int](1) == Ok(1)


def test_err_can_be_made_with_its_type() -> None:
    """`Err[str]("no")` makes an `Err`, on Python 3.11 too."""
    assert Err[str]("no") == Err("no")


def test_ok_takes_its_value_by_name() -> None:
    """The field is the argument's name."""
    assert Ok(value=1) == Ok(1)


def test_err_takes_its_error_by_name() -> None:
    """The field is the argument's name."""
    assert Err(error=1) == Err(1)


@pytest.mark.parametrize("kind", [Ok, Err])
def test_needs_its_content(kind: Any) -> None:
    """There is no empty `Ok` or `Err`."""
    with pytest.raises(TypeError):
        kind()


def test_repr_of_an_ok() -> None:
    """The `repr` is what makes an equal one."""
    assert repr(Ok("a")) == "Ok('a')"


def test_repr_of_an_err() -> None:
    """The `repr` is what makes an equal one."""
    assert repr(Err(2)) == "Err(2)"


# Frozen and slotted


@pytest.mark.parametrize("field", ["value", "error", "ok", "other"])
def test_no_attribute_can_be_set(result: Any, field: str) -> None:
    """A frozen object takes no assignment, to its field or any other name."""
    with pytest.raises(AttributeError):
        setattr(result, field, 1)


def test_assignment_changes_nothing() -> None:
    """After a refused assignment the value is what it was."""
    result: Any = Ok(1)

    with pytest.raises(AttributeError):
        result.value = 2

    assert result == Ok(1)


@pytest.mark.parametrize(("result", "field"), [(Ok(1), "value"), (Err(1), "error")])
def test_no_attribute_can_be_deleted(result: Any, field: str) -> None:
    """A frozen object lets nothing be deleted."""
    with pytest.raises(AttributeError):
        delattr(result, field)


def test_has_no_dict(result: Result[Any, Any]) -> None:
    """A slotted object carries no `__dict__`."""
    assert not hasattr(result, "__dict__")


# Comparable and hashable


def test_ok_equals_ok_of_an_equal_value() -> None:
    """Two `Ok`s are equal when their values are."""
    assert Ok([1]) == Ok([1])


def test_ok_differs_from_ok_of_another_value() -> None:
    """Two `Ok`s differ when their values do."""
    assert Ok(1) != Ok(2)


def test_err_equals_err_of_an_equal_error() -> None:
    """Two `Err`s are equal when their errors are."""
    assert Err("a") == Err("a")


def test_err_differs_from_err_of_another_error() -> None:
    """Two `Err`s differ when their errors do."""
    assert Err("a") != Err("b")


def test_ok_differs_from_err_of_the_same() -> None:
    """An `Ok` never equals an `Err`."""
    assert Ok(1) != Err(1)


def test_differs_from_its_bare_content() -> None:
    """An `Ok` is not its value."""
    assert Ok(1) != 1


def test_equal_ones_hash_alike() -> None:
    """Equal results have one place in a set."""
    assert {Ok(1), Ok(1), Err(1), Err(1)} == {Ok(1), Err(1)}


def test_ok_and_err_of_the_same_hash_apart() -> None:
    """The kind takes part in the hash."""
    assert hash(Ok(1)) != hash(Err(1))


@pytest.mark.parametrize("kind", [Ok, Err])
def test_unhashable_content_makes_it_unhashable(kind: Any) -> None:
    """The hash is made of the content, so a list has none."""
    with pytest.raises(TypeError):
        hash(kind([]))


# Copied, pickled, matched


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_survives_pickling(result: Result[Any, Any], protocol: int) -> None:
    """What comes out of a pickle equals what went in, under every protocol."""
    assert pickle.loads(pickle.dumps(result, protocol)) == result  # noqa: S301


def test_copy_equals(result: Result[Any, Any]) -> None:
    """A shallow copy equals the original."""
    assert copy.copy(result) == result


def test_copy_shares_the_content() -> None:
    """A shallow copy holds the same value."""
    value = [1]

    assert copy.copy(Ok(value)).value is value


def test_deep_copy_has_content_of_its_own() -> None:
    """A deep copy holds an equal value of its own."""
    value = [1]

    copied = copy.deepcopy(Ok(value))

    assert (copied, copied.value is value) == (Ok([1]), False)


def test_matches_ok_by_position() -> None:
    """`case Ok(value)` takes the value."""
    assert describe(Ok(1)) == "value 1"


def test_matches_err_by_position() -> None:
    """`case Err(error)` takes the error."""
    assert describe(Err(2)) == "error 2"


def test_matches_by_name() -> None:
    """`case Ok(value=...)` works like the positional form."""
    match Ok(1):
        case Ok(value=found):
            pass

    assert found == 1


# Guards


def test_is_ok_knows_ok() -> None:
    """`is_ok` is true of an `Ok`, and false of an `Err`."""
    assert [is_ok(result) for result in BOTH] == [True, False]


def test_is_err_knows_err() -> None:
    """`is_err` is true of an `Err`, and false of an `Ok`."""
    assert [is_err(result) for result in BOTH] == [False, True]


# unwrap, unwrap_or


def test_unwrap_of_an_ok_gives_the_value() -> None:
    """`Ok(value).unwrap()` is the value."""
    assert Ok(1).unwrap() == 1


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BaseExceptionGroup("two", [KeyError()])])
def test_unwrap_of_an_err_raises_an_exception_itself(error: BaseException) -> None:
    """An `Err` that holds an exception, of whatever kind, raises that very one."""
    with pytest.raises(type(error)) as caught:
        Err(error).unwrap()

    assert caught.value is error


def test_unwrap_of_an_err_keeps_what_is_no_exception() -> None:
    """An `Err` that holds anything else raises `UnwrapError`, which keeps it in `error`."""
    with pytest.raises(UnwrapError) as caught:
        Err({"code": 7}).unwrap()

    assert caught.value.error == {"code": 7}


def test_unwrap_of_an_exception_class_is_no_exception() -> None:
    """An exception's class is a value like any other: it is not raised."""
    with pytest.raises(UnwrapError) as caught:
        Err(ValueError).unwrap()

    assert caught.value.error is ValueError


def test_unwrap_error_tells_the_type_and_never_the_value() -> None:
    """The message of an `UnwrapError` names the type; the value may be a password."""
    error = UnwrapError("hunter2")

    assert ("str" in str(error), "hunter2" in str(error) + repr(error)) == (True, False)


def test_unwrap_error_survives_pickling() -> None:
    """An `UnwrapError` comes out of a pickle with its error."""
    assert pickle.loads(pickle.dumps(UnwrapError(7))).error == 7  # noqa: S301


def test_unwrap_or_of_an_ok_gives_the_value() -> None:
    """The default is not used, even where the value is false."""
    assert Ok(0).unwrap_or(5) == 0


def test_unwrap_or_of_an_err_gives_the_default() -> None:
    """The default stands in for a missing value."""
    assert Err("no").unwrap_or(5) == 5


# map, map_err, and_then


def test_map_of_an_ok_applies() -> None:
    """`map` makes a new `Ok` of the value."""
    assert Ok(2).map(str) == Ok("2")


def test_map_wraps_whatever_comes() -> None:
    """`map` does not flatten: that is what `and_then` is for."""
    assert Ok(2).map(Err) == Ok(Err(2))


def test_map_of_an_err_gives_itself() -> None:
    """`map` leaves an `Err` as it is, and calls nothing."""
    result = Err("no")

    assert result.map(pytest.fail) is result


def test_map_err_of_an_err_applies() -> None:
    """`map_err` makes a new `Err` of the error."""
    assert Err("no").map_err(len) == Err(2)


def test_map_err_of_an_ok_gives_itself() -> None:
    """`map_err` leaves an `Ok` as it is, and calls nothing."""
    result = Ok(1)

    assert result.map_err(pytest.fail) is result


@pytest.mark.parametrize("then", [Ok("next"), Err("no")])
def test_and_then_of_an_ok_gives_the_next_result(then: Result[str, str]) -> None:
    """`and_then` gives what the function gives, as it is."""
    assert Ok(1).and_then(lambda _: then) is then


def test_and_then_hands_on_the_value() -> None:
    """`and_then` calls the function with the value."""
    assert Ok(1).and_then(lambda value: Ok(value + 1)) == Ok(2)


def test_and_then_of_an_err_gives_itself() -> None:
    """`and_then` leaves an `Err` as it is, and calls nothing."""
    result = Err("no")

    assert result.and_then(pytest.fail) is result


@pytest.mark.parametrize("apply", [lambda f: Ok(1).map(f), lambda f: Err(1).map_err(f), lambda f: Ok(1).and_then(f)])
def test_what_the_function_raises_is_raised(apply: Any) -> None:
    """`map`, `map_err` and `and_then` catch nothing."""

    def fail(_: int) -> int:
        raise LookupError

    with pytest.raises(LookupError):
        apply(fail)
