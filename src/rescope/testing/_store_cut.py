"""What `store_contract` checks where a connection is cut under a call: all or nothing, and an error that tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from rescope.testing._store_bench import Bench, Checks, expect
from rescope.workflow.store import Entry, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope.workflow.store import Store

T = TypeVar("T")

checks = Checks()
_CUTS = 20
_STEP = 0.0002
_TRIES = 20


@checks("a connection cut under a put leaves all or nothing")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        for turn in range(_CUTS):
            before, after = await _put_before(bench, store, turn), [turn] * 3
            outcome = await _cut_under(bench, turn, lambda value=after: store.put(bench.key(), value))  # type: ignore[misc]
            entry = await _again(lambda: store.get(bench.key()))
            if isinstance(outcome, StoreError):
                _expect_whole(entry, before, after)
                version = await _again(lambda value=after: store.put(bench.key(), value))  # type: ignore[misc]
                expect(version > before.version, "a version does not grow where a put is retried")
            else:
                expect(entry == Entry(bench.key(), after, outcome), "a put that ended well is lost with the connection")


@checks("a put with if_version whose connection is cut tells whether it may be retried")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        for turn in range(_CUTS):
            before, after = await _put_before(bench, store, turn), [turn] * 3

            async def put(version: int = before.version, value: list[int] = after) -> int:
                return await store.put(bench.key(), value, if_version=version)

            outcome = await _cut_under(bench, turn, put)
            entry = await _again(lambda: store.get(bench.key()))
            if not isinstance(outcome, StoreError):
                expect(entry == Entry(bench.key(), after, outcome), "a put that ended well is lost with the connection")
            elif outcome.may_retry:
                expect(entry == before, "the error says that a put may be retried, but it was done")
            else:
                _expect_whole(entry, before, after)


@checks("a get whose connection is cut may be retried")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        before = await _put_before(bench, store, 0)
        for turn in range(_CUTS):
            outcome = await _cut_under(bench, turn, lambda: store.get(bench.key()))
            if isinstance(outcome, StoreError):
                expect(outcome.may_retry, "a get that was cut may not be retried, though it does no harm")
            else:
                expect(outcome == before, "a get that was cut gives something else than the entry")
            expect(await _again(lambda: store.get(bench.key())) == before, "the store is no good after a cut")


async def _cut_under(bench: Bench, turn: int, call: Callable[[], Awaitable[T]]) -> T | StoreError:
    """Cut the connections while a call is under way, each turn a little later; give what it gave or raised."""
    from anyio import create_task_group, sleep

    outcome: list[T | StoreError] = []
    wrong: list[Exception] = []

    async def attempt() -> None:
        try:
            outcome.append(await call())
        except StoreError as exc:
            outcome.append(exc)
        except Exception as exc:
            wrong.append(exc)

    cut = bench.cut
    assert cut is not None  # noqa: S101 (the check needs it)
    async with create_task_group() as group:
        group.start_soon(attempt)
        await sleep(turn * _STEP)
        await cut()
    if wrong:
        msg = f"a connection that is cut is told as {type(wrong[0]).__name__}, and not as StoreError"
        raise AssertionError(msg) from wrong[0]
    return outcome[0]


async def _put_before(bench: Bench, store: Store, turn: int) -> Entry:
    """Put what stands before the cut."""
    value = [-1 - turn] * 3
    version = await _again(lambda: store.put(bench.key(), value))
    return Entry(bench.key(), value, version)


async def _again(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the store is there again."""
    from anyio import sleep

    for _ in range(_TRIES):
        try:
            return await call()
        except StoreError as exc:
            expect(exc.may_retry, "after a cut, a call that does no harm may not be retried")
        await sleep(0.02)
    msg = f"the store is not there again after a cut, in {_TRIES} tries"
    raise AssertionError(msg)


def _expect_whole(entry: Entry | None, before: Entry, after: list[int]) -> None:
    whole = entry is not None and (entry == before or (entry.value == after and entry.version > before.version))
    expect(whole, "a put that was cut leaves something else than the value before or after it")
