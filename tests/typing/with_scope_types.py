# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `with_scope` and `scoped`. Never run, only checked.

The types do not include the `None` that comes back where an entered manager suppressed what the body raised: that
would burden every caller with a case that only who enters such a manager can meet.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import assert_type

from rescope import Err, Ok, ResourceCleanupError, Result, Scope, scoped, with_scope


class Missing(Exception):
    """An error."""


class User:
    """What is found."""


async def plain(scope: Scope, user_id: int) -> User:
    del scope, user_id
    return User()


async def nothing(scope: Scope) -> None:
    del scope


async def result(scope: Scope, user_id: int, name: str) -> Result[User, Missing]:
    del scope, name
    return Ok(User()) if user_id else Err(Missing())


async def always_ok(scope: Scope) -> Ok[User]:
    del scope
    return Ok(User())


async def always_err(scope: Scope) -> Err[Missing]:
    del scope
    return Err(Missing())


async def many(scope: Scope, *names: str) -> int:
    del scope
    return len(names)


async def defaulted(scope: Scope, name: str = "") -> str:
    del scope
    return name


def awaitable(scope: Scope) -> Awaitable[int]:
    raise NotImplementedError


def sync(scope: Scope) -> int:
    del scope
    return 1


class Service:
    """A class with bodies among its methods."""

    async def method(self, scope: Scope, key: str) -> User:
        del scope, key
        return User()

    async def result_method(self, scope: Scope) -> Result[int, str]:
        del scope
        return Ok(1)

    @classmethod
    async def class_method(cls, scope: Scope, key: str) -> User:
        del scope, key
        return User()

    @staticmethod
    async def static_method(scope: Scope) -> int:
        del scope
        return 1

    @scoped
    async def scoped_method(self, scope: Scope, key: str, *, deep: bool = False) -> User:
        del scope, key, deep
        return User()

    @scoped
    async def scoped_result(self, scope: Scope) -> Result[User, Missing]:
        del scope
        return Ok(User())

    @scoped(name="load", grace=5)
    async def with_options(self, scope: Scope, key: str) -> User:
        del scope, key
        return User()

    @scoped(grace=5)
    async def result_with_options(self, scope: Scope, key: str) -> Result[User, Missing]:
        del scope, key
        return Ok(User())

    @classmethod
    @scoped
    async def scoped_class_method(cls, scope: Scope, key: str) -> User:
        del scope, key
        return User()

    @staticmethod
    @scoped
    async def scoped_static_method(scope: Scope, key: str) -> User:
        del scope, key
        return User()


@scoped
async def load(scope: Scope, key: str, *, deep: bool = False) -> User:
    del scope, key, deep
    return User()


@scoped
async def load_result(scope: Scope, key: str) -> Result[User, Missing]:
    del scope, key
    return Ok(User())


@scoped
async def only_ok(scope: Scope) -> Ok[User]:
    del scope
    return Ok(User())


@scoped
async def no_arguments(scope: Scope) -> None:
    del scope


@scoped
async def variadic(scope: Scope, /, first: int, *rest: int, key: str, **more: int) -> User:
    """Beside `**more` the scope is positional-only: else a keyword `scope` could mean either."""
    del scope, first, rest, key, more
    return User()


@scoped(name="load", grace=2.5)
async def load_with_options(scope: Scope, key: str) -> User:
    del scope, key
    return User()


@scoped()
async def result_with_options(scope: Scope, key: str) -> Result[User, Missing]:
    del scope, key
    return Ok(User())


async def what_with_scope_gives(service: Service) -> None:
    assert_type(await with_scope(plain, 1), User)
    assert_type(await with_scope(nothing), None)
    assert_type(await with_scope(many, "a", "b"), int)
    assert_type(await with_scope(defaulted), str)
    assert_type(await with_scope(awaitable), int)
    assert_type(await with_scope(partial(plain, user_id=1)), User)
    assert_type(await with_scope(service.method, "a"), User)
    assert_type(await with_scope(Service.class_method, "a"), User)
    assert_type(await with_scope(Service.static_method), int)


async def what_with_scope_gives_for_a_result(service: Service) -> None:
    assert_type(await with_scope(result, 1, "a"), Ok[User] | Err[Missing | ResourceCleanupError])
    assert_type(await with_scope(service.result_method), Ok[int] | Err[str | ResourceCleanupError])
    assert_type(await with_scope(always_err), Err[Missing | ResourceCleanupError])


async def an_ok_may_become_an_err() -> None:
    """A body that only ever returns `Ok` gives an `Err` where the cleanup fails."""
    assert_type(await with_scope(always_ok), Ok[User] | Err[ResourceCleanupError])
    assert_type(await only_ok(), Ok[User] | Err[ResourceCleanupError])


async def narrowing_a_result() -> None:
    outcome = await with_scope(result, 1, "a")
    if outcome.ok is True:
        assert_type(outcome.value, User)
    elif isinstance(outcome.error, ResourceCleanupError):
        assert_type(outcome.error, ResourceCleanupError)
    else:
        assert_type(outcome.error, Missing)


async def what_with_scope_refuses() -> None:
    await with_scope(plain, "1")  # type: ignore[arg-type]
    await with_scope(plain)  # type: ignore[arg-type, call-arg]
    await with_scope(sync)  # type: ignore[arg-type, call-arg]
    await with_scope(plain, 1, key=2)  # type: ignore[call-overload]


async def what_scoped_gives() -> None:
    assert_type(await load("a"), User)
    assert_type(await load("a", deep=True), User)
    assert_type(await load(key="a"), User)
    assert_type(await load_result("a"), Ok[User] | Err[Missing | ResourceCleanupError])
    assert_type(await no_arguments(), None)
    assert_type(await variadic(1, 2, 3, key="a", other=4), User)
    assert_type(await load_with_options("a"), User)
    assert_type(await result_with_options("a"), Ok[User] | Err[Missing | ResourceCleanupError])


async def what_scoped_gives_for_methods(service: Service) -> None:
    assert_type(await service.scoped_method("a"), User)
    assert_type(await service.scoped_method(key="a", deep=True), User)
    assert_type(await Service.scoped_method(service, "a"), User)
    assert_type(await service.scoped_result(), Ok[User] | Err[Missing | ResourceCleanupError])
    assert_type(await service.with_options("a"), User)
    assert_type(await service.result_with_options("a"), Ok[User] | Err[Missing | ResourceCleanupError])
    assert_type(await service.scoped_class_method("a"), User)
    assert_type(await Service.scoped_class_method("a"), User)
    assert_type(await service.scoped_static_method("a"), User)
    assert_type(await Service.scoped_static_method("a"), User)


async def what_scoped_refuses(scope: Scope, service: Service) -> None:
    await load(1)  # type: ignore[arg-type]
    await load()  # type: ignore[call-arg]
    await load(scope, "a")  # type: ignore[call-arg, arg-type]
    await service.scoped_method(1)  # type: ignore[arg-type]
    await service.scoped_method(scope, "a")  # type: ignore[call-arg, arg-type]
    scoped(sync)  # type: ignore[arg-type]
    scoped(name=1)  # type: ignore[call-overload]
