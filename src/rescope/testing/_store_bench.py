"""What the checks of `store_contract` stand on."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, final
from uuid import uuid4

from rescope.workflow.store import Store, VersionConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from rescope.workflow.store import Entry

    Opened: TypeAlias = Store | AbstractAsyncContextManager[Store, Any]
    Opener: TypeAlias = Callable[[], Opened | Awaitable[Opened]]


TTL = 0.25
"""Seconds that a check of expiry waits for."""
LONG = 1000.0
"""Seconds that no check lives to see the end of."""
SECRET = "hunter2"  # noqa: S105 (no error may show it)


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """What a check works with: a way to open the store, a prefix of its own, and the hooks."""

    open_store: Opener
    advance: Callable[[float], Awaitable[None]] | None
    processes: int
    cut: Callable[[], Awaitable[None]] | None
    prefix: str = field(default_factory=lambda: f"contract:{uuid4().hex[:12]}:")

    def store(self) -> AbstractAsyncContextManager[Store]:
        """Open it."""
        return opened(self.open_store)

    def key(self, name: str = "key") -> str:
        """Make a key that is this check's own."""
        return self.prefix + name

    async def pass_by(self, seconds: float) -> None:
        """Let that time pass on the store's clock, and a bit more."""
        from anyio import sleep

        await (self.advance or sleep)(seconds * 1.2 + 0.05)

    async def clean(self) -> None:
        """Take away what the check has written, as far as the store can."""
        from anyio import move_on_after

        with move_on_after(10, shield=True), suppress(Exception):
            async with self.store() as store:
                for key in await keys(store, self.prefix):
                    await store.delete(key)


@asynccontextmanager
async def opened(open_store: Opener) -> AsyncGenerator[Store]:
    """Enter what `open_store` gives, awaited if need be. A store that owns nothing need not be entered."""
    given: Any = open_store()
    if not hasattr(type(given), "__aenter__"):
        given = nullcontext(await given if hasattr(type(given), "__await__") else given)
    async with given as store:
        if not isinstance(store, Store):
            msg = f"`open_store` gives no store, but a {type(store).__qualname__}"
            raise TypeError(msg)
        yield store


def expect(holds: object, otherwise: str) -> None:
    """Fail the check, in words that a store's author can act on."""
    if not holds:
        raise AssertionError(otherwise)


@final
class Checks(dict[str, "Callable[[Bench], Awaitable[None]]"]):
    """Checks by the name that says what must hold."""

    def __call__(self, name: str) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
        """Take a function among them."""
        return lambda run: self.__setitem__(name, run)


async def keys(store: Store, prefix: str) -> list[str]:
    """Give the keys that a scan gives."""
    return [entry.key async for entry in store.scan(prefix)]


async def there(store: Store, key: str) -> Entry:
    """Give the entry under that key, which was put."""
    entry = await store.get(key)
    if entry is None:
        msg = "an entry that was put is not there"
        raise AssertionError(msg)
    return entry


async def refused(calls: Iterable[tuple[str, Callable[[], Awaitable[object]]]]) -> None:
    """Check that each call raises `TypeError` or `ValueError`, and that the error shows no value."""
    for what, call in calls:
        try:
            await call()
        except (TypeError, ValueError) as exc:
            expect(SECRET not in str(exc), f"the error for {what} shows the value")
        else:
            expect(holds=False, otherwise=f"{what} is not refused with a TypeError or ValueError")


async def conflict(call: Awaitable[object], key: str, expected: int, found: int) -> None:
    """Check that a put is refused, and that the error says why."""
    try:
        await call
    except VersionConflictError as exc:
        told, meant = (exc.key, exc.expected, exc.found), (key, expected, found)
        expect(told == meant, f"the conflict tells (key, expected, found) {told}, and not {meant}")
        expect(SECRET not in str(exc), "the conflict shows the value")
    else:
        expect(holds=False, otherwise=f"a put with if_version={expected} is done where the version is {found}")


async def increment(store: Store, key: str) -> int:
    """Add 1 to a number that others add to as well, and give the version it was written with."""
    while True:
        entry = await store.get(key)
        value, version = (0, 0) if entry is None else (entry.value, entry.version)
        with suppress(VersionConflictError):
            return await store.put(key, value + 1, if_version=version)
