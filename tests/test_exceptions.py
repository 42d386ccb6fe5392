"""The errors: what they say, keep and hide, and how they survive `split`, `except*`, `copy` and `pickle`."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import warnings
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

from rescope import (
    CloseCancelledError,
    CloseFailure,
    CloseRejectedError,
    CloseTimeoutError,
    Err,
    HostDiedError,
    Ok,
    Resource,
    ResourceCleanupError,
    Scope,
    ScopeClosedError,
    UnwrapError,
    WrongTaskError,
    cleanup_errors,
    is_resource_cleanup_error,
    with_scope,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rescope.events import ScopeEvent

PASSWORD = "hunter2"  # noqa: S105


class Secret:
    """A value whose `repr` must never be told."""

    def __repr__(self) -> str:
        return PASSWORD

    def close(self) -> None:
        raise SecretError(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        raise SecretError(self)


class SecretError(Exception):
    """An error that holds a secret, as `KeyError(key)` does."""


async def error_of(
    *errors: Exception, name: str | None = "jobs", body: Exception | None = None
) -> ResourceCleanupError:
    """Make a real one: a scope whose closers `c0`, `c1`... fail with these."""

    def fail(error: Exception) -> None:
        raise error

    try:
        async with Scope(name) as scope:
            for n, error in reversed(list(enumerate(errors))):
                scope.add(object(), lambda error=error: fail(error), name=f"c{n}")
            if body is not None:
                raise body
    except ResourceCleanupError as error:
        return error
    raise AssertionError


T = TypeVar("T")


def pickled(x: T) -> T:
    """Send it through `pickle`."""
    again: T = pickle.loads(pickle.dumps(x))  # noqa: S301 (it is our own)
    return again


def names(error: BaseException | None) -> list[str]:
    """The names of the failures."""
    assert isinstance(error, ResourceCleanupError)
    return [failure.name for failure in error.failures]


def matches(error: ResourceCleanupError) -> bool:
    """Whether failures and exceptions are of the same length and order, and the same objects."""
    told = [failure.exception for failure in error.failures]
    return len(told) == len(error.exceptions) and all(a is b for a, b in zip(told, error.exceptions, strict=True))


# The group


async def test_errors_is_exceptions() -> None:
    """`.errors` gives the same as `.exceptions`, in the order in which they happened."""
    first, second = OSError("one"), ValueError("two")
    error = await error_of(first, second)

    assert (error.exceptions, error.errors, names(error)) == ((first, second), (first, second), ["c0", "c1"])


async def test_the_message_says_how_many_which_and_why() -> None:
    """One line, with the count, the scope's name, and each name and reason."""
    error = await error_of(OSError("disk full"), ValueError("no\n  such  place"))
    expected = "2 of 2 resources of scope 'jobs' failed to close: c0: OSError: disk full; c1: ValueError: no such place"

    assert (error.message, len(str(error).splitlines())) == (expected, 1)


async def test_the_message_counts_what_was_attempted() -> None:
    """Resources that closed well are counted too."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.defer(list)
            scope.add(Secret(), name="bad")
            scope.defer(list)

    assert caught.value.message == "1 of 3 resources failed to close: bad: SecretError"


async def test_except_star_takes_a_part_and_leaves_the_rest_whole() -> None:
    """What `except*` doesn't handle goes on as a `ResourceCleanupError` with the failures that are left."""
    taken: list[BaseException] = []
    left: list[BaseException] = []
    disk, value = OSError("disk"), ValueError("value")
    error = await error_of(disk, value, body=KeyError("body"))
    try:
        try:
            raise error
        except* OSError as part:
            taken.append(part)
    except ResourceCleanupError as rest:
        left.append(rest)

    assert [names(part) for part in (*taken, *left)] == [["c0"], ["c1"]]
    assert isinstance(taken[0], ResourceCleanupError)
    assert (taken[0].exceptions, taken[0].original_result, taken[0].__cause__) == (
        (disk,),
        error.original_result,
        error.__cause__,
    )


async def test_except_star_of_the_error_itself_is_a_type_error() -> None:
    """Python has it so for every group; `cleanup_errors` is the way."""
    error = await error_of(OSError("disk"))
    with pytest.raises(TypeError):
        try:
            raise error
        except* ResourceCleanupError:
            pass

    assert cleanup_errors(error) == [error]


async def test_split_keeps_the_failures_of_each_part() -> None:
    """Names, times and the body's result go with the exceptions."""
    error = await error_of(OSError("a"), ValueError("b"), OSError("c"))
    match, rest = error.split(OSError)

    assert isinstance(match, ResourceCleanupError)
    assert isinstance(rest, ResourceCleanupError)
    assert (names(match), names(rest), matches(match), matches(rest)) == (["c0", "c2"], ["c1"], True, True)


async def test_split_of_nested_groups_matches_leaf_by_leaf() -> None:
    """A group among the exceptions is rebuilt by `split`: its part still belongs to the same failure."""
    group = ExceptionGroup("group", [OSError("in group"), ValueError("in group")])
    error = await error_of(group, OSError("alone"))
    match, rest = error.split(OSError)

    assert isinstance(match, ResourceCleanupError)
    assert isinstance(rest, ResourceCleanupError)
    assert (names(match), names(rest), matches(match), matches(rest)) == (["c0", "c1"], ["c0"], True, True)


async def test_split_of_a_childs_error_keeps_the_childs_failures() -> None:
    """Two levels deep, each part tells the names of its own level."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("parent") as scope:
            child = scope.child("child")
            for name, error in (("disk", OSError("disk")), ("value", ValueError("value"))):
                child.add(object(), Err(error).unwrap, name=name)
    part = caught.value.subgroup(OSError)

    assert isinstance(part, ResourceCleanupError)
    assert (names(part), names(part.exceptions[0])) == (["child"], ["disk"])


async def test_split_tells_the_same_error_raised_by_two_closers_apart() -> None:
    """One exception object from two closers: both failures are kept, each under its own name."""
    shared = OSError("shared")
    error = await error_of(shared, ValueError("other"), shared)
    match, _ = error.split(OSError)

    assert names(match) == ["c0", "c2"]


async def test_split_tells_a_group_and_its_own_member_apart() -> None:
    """A closer fails with an error, another with a group around the same one: the names stay with their own."""
    shared = OSError("shared")
    group = ExceptionGroup("group", [shared, ValueError("other")])
    error = await error_of(group, shared)
    match, _ = error.split(lambda exc: exc is shared)

    assert isinstance(match, ResourceCleanupError)
    assert names(match) == ["c0", "c1"]


async def test_a_subgroup_says_in_its_message_what_it_holds() -> None:
    """The part's message names the part's resources alone."""
    error = await error_of(OSError("a"), ValueError("b"))
    part = error.subgroup(ValueError)

    assert part is not None
    assert part.message == "1 of 2 resources of scope 'jobs' failed to close: c1: ValueError: b"


async def test_derive_of_foreign_exceptions_keeps_them() -> None:
    """`derive` of what it never held is still a valid group with those exceptions."""
    error = await error_of(OSError("a"))
    foreign = ValueError("foreign")

    assert error.derive([foreign]).exceptions == (foreign,)


async def test_copy_keeps_everything() -> None:
    """`copy.copy` gives one with the same exceptions, failures, result and message."""
    error = await error_of(OSError("a"), ValueError("b"), body=KeyError("body"))
    again = copy.copy(error)

    assert (again.exceptions, again.failures, again.original_result, again.message) == (
        error.exceptions,
        error.failures,
        error.original_result,
        error.message,
    )


async def test_a_copy_can_be_split() -> None:
    """What `copy` gives still knows which failure belongs to which exception, and of which scope."""
    again = copy.copy(await error_of(OSError("a"), ValueError("b")))
    part = again.subgroup(ValueError)

    assert part is not None
    assert part.message == "1 of 2 resources of scope 'jobs' failed to close: c1: ValueError: b"


async def test_pickle_keeps_everything() -> None:
    """Failures and exceptions are the same objects again, the result equal, the message the same."""
    error = await error_of(OSError("a"), ValueError("b"))
    again = pickled(error)

    actual = (type(again), names(again), matches(again), again.message, again.original_result)
    assert actual == (ResourceCleanupError, ["c0", "c1"], True, error.message, Ok(None))


async def test_pickle_keeps_the_elapsed_seconds_and_the_timed_out_mark() -> None:
    """Each `CloseFailure` is what it was."""
    error = await error_of(CloseTimeoutError("c0", 0.5))
    again = pickled(error)
    told = [(failure.elapsed, failure.timed_out, str(failure.exception)) for failure in again.failures]

    assert told == [(failure.elapsed, failure.timed_out, str(failure.exception)) for failure in error.failures]


async def test_pickle_keeps_a_childs_error() -> None:
    """Nested cleanup errors arrive with their failures, and can be split there."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("parent") as scope:
            child = scope.child("child")
            for name, error in (("disk", OSError("disk")), ("value", ValueError("value"))):
                child.add(object(), Err(error).unwrap, name=name)
    again = pickled(caught.value)
    part = again.subgroup(OSError)

    assert (names(again), names(again.exceptions[0]), names(part.exceptions[0])) == (
        ["child"],
        ["value", "disk"],
        ["disk"],
    )


async def test_pickle_keeps_an_error_result() -> None:
    """`original_result` of a failed body arrives as an `Err`."""
    again = pickled(await error_of(OSError("a"), body=ValueError("body")))

    assert (type(again.original_result), str(again.original_result.error)) == (Err, "body")


def test_it_may_not_be_empty() -> None:
    """As every exception group."""
    with pytest.raises(ValueError, match="non-empty"):
        ResourceCleanupError("nothing", [])


def test_it_may_not_hold_what_is_no_exception() -> None:
    """As every `ExceptionGroup`."""
    with pytest.raises(TypeError):
        ResourceCleanupError("interrupt", [KeyboardInterrupt()])  # type: ignore[list-item]


def test_it_can_be_made_by_hand() -> None:
    """With a message and exceptions alone, it has no failures and no result."""
    inner = OSError("a")
    error = ResourceCleanupError("by hand", [inner])

    assert (error.message, error.exceptions, error.failures, error.original_result) == ("by hand", (inner,), (), None)


def test_one_made_by_hand_can_be_split() -> None:
    """Exceptions without failures stay where `split` puts them."""
    disk, value = OSError("disk"), ValueError("value")
    match, rest = ResourceCleanupError("by hand", [disk, value]).split(OSError)

    assert match is not None
    assert rest is not None
    assert (match.exceptions, rest.exceptions) == ((disk,), (value,))


# Finding


async def test_is_resource_cleanup_error_tells_it_from_the_rest() -> None:
    """True for the error, false for groups, other errors and other things."""
    error = await error_of(OSError("a"))
    told = [is_resource_cleanup_error(x) for x in (error, ExceptionGroup("g", [error]), OSError(), None)]

    assert told == [True, False, False, False]


async def test_cleanup_errors_finds_all_in_groups_causes_and_contexts() -> None:
    """Wherever one is: the thing itself, in nested groups, as a cause, as a context, behind another."""
    found = [await error_of(OSError(str(n))) for n in range(4)]
    top: Exception = ExceptionGroup("top", [ValueError("x"), ExceptionGroup("inner", [found[0]])])
    top.__cause__ = found[1]
    top.__context__ = LookupError("between")
    top.__context__.__context__ = found[2]
    found[1].__context__ = found[3]

    assert set(map(id, cleanup_errors(top))) == set(map(id, found))


async def test_cleanup_errors_finds_a_childs_inside_its_parents() -> None:
    """A `ResourceCleanupError` in a `ResourceCleanupError` counts too, the outer one first."""
    inner = await error_of(OSError("a"))
    outer = await error_of(inner)

    assert cleanup_errors(outer) == [outer, inner]


async def test_cleanup_errors_finds_each_once_in_a_circle() -> None:
    """Contexts that somebody tied into a ring don't hang it, and nothing is told twice."""
    error = await error_of(OSError("a"))
    other = ValueError("other")
    other.__context__ = error
    error.__cause__ = other

    assert cleanup_errors(ExceptionGroup("g", [error, other, error])) == [error]


def test_cleanup_errors_of_nothing_is_empty() -> None:
    """`None` and errors without one give an empty list."""
    assert [cleanup_errors(None), cleanup_errors(ValueError("x"))] == [[], []]


async def test_cleanup_errors_finds_it_behind_a_long_chain() -> None:
    """A chain of contexts longer than the recursion limit is walked."""
    error = await error_of(OSError("a"))
    link: BaseException = error
    for _ in range(5000):
        above = ValueError("above")
        above.__context__ = link
        link = above

    assert cleanup_errors(link) == [error]


# Every error class


ERRORS = [
    ScopeClosedError("scope 'jobs' is closed"),
    WrongTaskError("entered there, closed here"),
    UnwrapError(41),
    CloseRejectedError(42),
    CloseTimeoutError("database", 0.25),
    CloseCancelledError("database"),
    HostDiedError("database"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, pickled], ids=["copy", "pickle"])
def test_every_error_survives(error: Exception, again: Callable[[Exception], Exception]) -> None:
    """Type, text, attributes and arguments arrive."""
    actual = again(error)

    assert (type(actual), str(actual), vars(actual), actual.args) == (type(error), str(error), vars(error), error.args)


@pytest.mark.parametrize("error", ERRORS[4:], ids=lambda error: type(error).__name__)
def test_every_error_of_a_resource_names_it(error: Exception) -> None:
    """The name is in the text, and in `.name`."""
    assert ("database" in str(error), getattr(error, "name", None)) == (True, "database")


@pytest.mark.parametrize("kind", [UnwrapError, CloseRejectedError])
def test_an_error_that_keeps_a_value_shows_its_type_alone(kind: type[UnwrapError]) -> None:
    """Neither `str` nor `repr` holds the value's `repr`; `.error` holds the value."""
    secret = Secret()
    error = kind(secret)
    text = f"{error} {error!r}"

    assert ("Secret" in text, PASSWORD in text, error.error) == (True, False, secret)


def test_close_timeout_is_a_timeout_and_close_rejected_an_unwrap_error() -> None:
    """So that a caller may catch them as what they are."""
    told = (issubclass(CloseTimeoutError, TimeoutError), issubclass(CloseRejectedError, UnwrapError))

    assert told == (True, True)


def test_a_close_failure_is_frozen_and_comparable() -> None:
    """Equal where name, exception and times are; not to be changed."""
    error = OSError("a")
    failure = CloseFailure("db", error, 0.5, False)  # noqa: FBT003

    assert failure == CloseFailure("db", error, 0.5, timed_out=False)
    with pytest.raises(AttributeError):
        failure.name = "other"  # type: ignore[misc]


# Nobody's secrets


async def fail_async(secret: Secret) -> None:
    """A closer that fails with a secret in its error."""
    raise SecretError(secret)


def fail(secret: object) -> None:
    """The same, sync."""
    raise KeyError(secret)


@asynccontextmanager
async def secretive(secret: Secret) -> AsyncIterator[Secret]:
    """A manager that fails with a secret in its error."""
    yield secret
    raise SecretError(secret)


@contextmanager
def secretive_sync(secret: Secret) -> Iterator[Secret]:
    """The same, sync."""
    yield secret
    raise SecretError(secret, "text", 1)


async def fill(scope: Scope) -> None:
    """Register secrets in every way, each of which fails to close with an error that holds one."""
    secret = Secret()
    scope.add(secret)
    scope.add(Resource(Secret(), Secret().close))
    scope.defer(fail, secret)
    scope.defer(fail_async, secret=secret)
    scope.defer(lambda: Err(Secret()))
    scope.on_exit(lambda _: Err(Secret()))
    scope.defer(lambda: Err(ExceptionGroup("group", [SecretError(secret)])))
    scope.defer(lambda: Err(SecretError([secret])))
    scope.defer(lambda: Err(SecretError({"password": secret})))
    await scope.acquire(Secret, fail)
    await scope.enter(Secret())
    await scope.enter(secretive_sync(secret))
    await scope.host(secretive(secret))
    scope.child().defer(fail, secret)


async def test_no_values_repr_is_in_the_message_or_in_a_name() -> None:
    """Whatever holds a secret fails to close: neither the message nor any name tells it."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope("jobs") as scope:
            await fill(scope)
    texts = [str(caught.value), caught.value.message, *names(caught.value)]

    assert (len(caught.value.exceptions), [text for text in texts if PASSWORD in text]) == (14, [])


async def test_no_values_repr_is_in_an_event() -> None:
    """Kind, path and resource of every event are names alone."""
    events: list[ScopeEvent] = []
    with pytest.raises(ResourceCleanupError):
        async with Scope("jobs", on_event=events.append) as scope:
            await fill(scope)
    texts = [f"{event.kind} {event.path} {event.resource}" for event in events]

    assert (len(events) > 14, [text for text in texts if PASSWORD in text]) == (True, [])


async def test_no_values_repr_is_in_the_log_or_in_a_note(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged and noted, because an interrupt had to be raised, names types; tracebacks included."""
    interrupt = KeyboardInterrupt()
    caplog.set_level(logging.DEBUG, "rescope")
    raised: list[BaseException] = []
    try:
        async with Scope("jobs") as scope:
            await fill(scope)
            raise interrupt
    except KeyboardInterrupt as exc:
        raised.append(exc)
    notes = " ".join(interrupt.__notes__)

    assert ("SecretError" in notes, PASSWORD in notes, "SecretError" in caplog.text, PASSWORD in caplog.text) == (
        True,
        False,
        True,
        False,
    )


async def test_no_values_repr_is_in_the_repr_of_a_scope_or_handle() -> None:
    """A debugger shows names, states and counts."""
    scope = Scope("jobs")
    scope.add(Secret(), list)
    scope.defer(id, Secret())
    text = " ".join(map(repr, (scope, *scope.resources)))
    await scope.aclose()

    assert ("jobs" in text, "Secret" in text, PASSWORD in text) == (True, True, False)


def test_no_values_repr_is_in_the_warning_of_a_dropped_scope() -> None:
    """The `ResourceWarning` tells names."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scope = Scope("jobs")
        scope.add(Secret(), list)
        del scope
        gc.collect()
    text = " ".join(str(warning.message) for warning in told if warning.category is ResourceWarning)

    assert ("Secret" in text, PASSWORD in text) == (True, False)


class Bare(Secret):
    """A secret that can't be closed."""

    close = None  # type: ignore[assignment]
    __enter__ = None  # type: ignore[assignment]
    __exit__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "call",
    [
        lambda scope, secret: scope.add(secret),
        lambda scope, secret: scope.add(1, secret),
        lambda scope, secret: scope.add(1, list, name=secret),
        lambda scope, secret: scope.add(1, list, timeout=secret),
        lambda scope, secret: scope.add(1, list, force=secret),
        lambda scope, secret: scope.defer(secret),
        lambda scope, secret: scope.detach(secret),
        lambda scope, secret: scope.child(secret),
        lambda scope, secret: Scope(grace=secret),
        lambda scope, secret: Scope(on_event=secret),
    ],
)
async def test_no_values_repr_is_in_a_message_of_misuse(call: Callable[[Scope, Any], object]) -> None:
    """What is refused is named by its type."""
    scope = Scope()
    with pytest.raises((TypeError, KeyError)) as caught:
        call(scope, Bare())

    assert (PASSWORD in str(caught.value), scope.size) == (False, 0)


async def test_no_values_repr_is_in_what_enter_host_and_release_refuse() -> None:
    """The async ways in and out name types too."""
    scope, secret = Scope(), Bare()
    texts: list[str] = []
    for refuse in (scope.enter, scope.host, scope.release):
        with pytest.raises((TypeError, KeyError)) as caught:
            await refuse(secret)  # type: ignore[arg-type]
        texts.append(str(caught.value))

    assert ([PASSWORD in text for text in texts], scope.size) == ([False] * 3, 0)


async def test_a_timed_out_values_repr_is_not_told() -> None:
    """The `CloseTimeoutError` names the resource's type."""
    import anyio

    with pytest.raises(ResourceCleanupError) as caught:
        async with Scope() as scope:
            scope.add(Secret(), anyio.sleep_forever, timeout=0.01, force=lambda: fail(Secret()))
    timeout = caught.value.exceptions[0]
    text = " ".join([str(timeout), str(caught.value), *timeout.__notes__])

    assert ("Secret" in text, PASSWORD in text) == (True, False)


async def test_an_unwrapped_values_repr_is_not_told() -> None:
    """`Err(secret).unwrap()` in a body: the error that comes out of `with_scope` names the type."""

    async def body(scope: Scope) -> None:
        scope.defer(list)
        Err(Secret()).unwrap()

    with pytest.raises(UnwrapError) as caught:
        await with_scope(body)

    assert PASSWORD not in f"{caught.value} {caught.value!r}"


# Errors that are hard to tell of


class Unspeakable(Exception):
    """An error that can't say what it is."""

    def __str__(self) -> str:
        msg = "no words"
        raise RuntimeError(msg)

    __repr__ = __str__


async def test_an_error_whose_str_raises_is_told_by_its_type() -> None:
    """It disturbs nothing: all are closed, the scope too, and the failure is told."""
    log: list[str] = []
    unspeakable = Unspeakable()
    scope = Scope()
    raised: list[BaseException] = []
    try:
        async with scope:
            scope.defer(log.append, "outer")
            scope.add(object(), Err(unspeakable).unwrap, name="mute")
    except Exception as exc:
        raised.append(exc)

    assert ([type(exc) for exc in raised], log, scope.state) == ([ResourceCleanupError], ["outer"], "closed")
    assert raised[0].args[0] == "1 of 2 resources failed to close: mute: Unspeakable"


async def test_an_error_whose_str_raises_is_told_beside_an_interrupt() -> None:
    """Noting and logging one that can't be printed keeps the interrupt what is raised."""
    interrupt = KeyboardInterrupt()
    raised: list[BaseException] = []
    try:
        async with Scope() as scope:
            scope.defer(Err(Unspeakable()).unwrap)
            raise interrupt
    except BaseException as exc:
        raised.append(exc)

    assert raised == [interrupt]


async def test_a_very_long_reason_is_cut() -> None:
    """A message stays one that a person can read."""
    error = await error_of(OSError("x" * 10_000))

    assert (len(error.message) < 500, error.message.endswith("…")) == (True, True)


async def test_a_deeply_nested_group_is_told() -> None:
    """A failure that is a group in a group in a group is told by all its reasons."""
    error = await error_of(ExceptionGroup("a", [ExceptionGroup("b", [OSError("c")]), ValueError("d")]))

    assert ("OSError: c" in error.message, "ValueError: d" in error.message) == (True, True)
