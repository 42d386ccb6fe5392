"""Many: a long-lived parent stays small, and a large scope is no slower per resource."""

from __future__ import annotations

import gc
import weakref

import anyio
import anyio.lowlevel
import pytest

from rescope import Resource, Scope


async def test_10_000_children_under_one_parent_leave_nothing() -> None:
    """Children opened and closed one after the other: each closes its own, and the parent stays empty."""
    closed: list[int] = []
    async with Scope() as parent:
        for n in range(10_000):
            async with parent.child() as child:
                child.defer(closed.append, n)
        size = parent.size

    assert (size, len(closed), closed == list(range(10_000))) == (0, 10_000, True)


async def test_10_000_children_with_async_closers_in_a_concurrent_parent() -> None:
    """So it is with async closers, in a concurrent parent, however they overlap."""
    closed: list[int] = []

    async def close(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append(n)

    async with Scope(concurrent=True) as parent:
        for n in range(0, 10_000, 100):
            children = [parent.child() for _ in range(100)]
            for offset, child in enumerate(children):
                child.defer(close, n + offset)
            async with anyio.create_task_group() as tg:
                for child in children:
                    tg.start_soon(child.aclose)
        size = parent.size

    assert (size, sorted(closed) == list(range(10_000))) == (0, True)


async def test_10_000_children_open_at_once_are_closed_by_the_parent() -> None:
    """They are closed last in, first out."""
    closed: list[int] = []
    parent = Scope()
    for n in range(10_000):
        parent.child().defer(closed.append, n)
    await parent.aclose()

    assert closed == list(reversed(range(10_000)))


async def test_a_deep_tree_of_scopes_closes() -> None:
    """A hundred scopes, one inside the other, with async closers."""
    closed: list[int] = []

    async def close(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append(n)

    root = scope = Scope()
    for n in range(100):
        scope.defer(close, n)
        scope = scope.child()
    await root.aclose()

    assert closed == list(reversed(range(100)))


@pytest.mark.parametrize("concurrent", [False, True])
async def test_100_000_resources_in_one_scope(*, concurrent: bool) -> None:
    """All are closed, in reverse order."""
    closed: list[int] = []
    scope = Scope(concurrent=concurrent)
    for n in range(100_000):
        scope.defer(closed.append, n)
    size = scope.size
    await scope.aclose()

    assert (size, closed == list(reversed(range(100_000))), scope.size) == (100_000, True, 0)


async def test_10_000_async_closers_in_one_concurrent_scope() -> None:
    """All are closed at once."""
    closed: list[int] = []

    async def close(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append(n)

    scope = Scope(concurrent=True)
    for n in range(10_000):
        scope.defer(close, n)
    await scope.aclose()

    assert sorted(closed) == list(range(10_000))


async def test_early_release_of_many_among_100_000() -> None:
    """Releasing every second one, by value, leaves the others in their order."""
    closed: list[int] = []
    values = [object() for _ in range(100_000)]
    scope = Scope()
    for n, value in enumerate(values):
        scope.add(value, lambda n=n: closed.append(n))
    for value in values[::2]:
        await scope.release(value)
    early, size = list(closed), scope.size
    closed.clear()
    await scope.aclose()

    assert (early == list(range(0, 100_000, 2)), size) == (True, 50_000)
    assert closed == list(range(99_999, 0, -2))


async def test_early_release_looks_at_no_other() -> None:
    """Releasing one among many compares it with no other held value, so it costs the same however many there are."""
    compared: list[int] = []

    class Value:
        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return self is other

        def __hash__(self) -> int:
            compared.append(1)
            return 0

    scope = Scope()
    values = [scope.add(Value(), lambda: None) for _ in range(1000)]
    for value in values:
        await scope.release(value)

    assert (compared, scope.size) == ([], 0)


async def test_handles_of_many_equal_values_are_released_each_for_itself() -> None:
    """A value registered a thousand times is released a thousand times, the latest first."""
    closed: list[int] = []
    value = object()
    async with Scope() as scope:
        for n in range(1000):
            scope.add(value, lambda n=n: closed.append(n))
        for _ in range(1000):
            await scope.release(value)
        held = scope.has(value)

    assert (closed == list(reversed(range(1000))), held) == (True, False)


async def test_what_a_long_lived_parent_has_closed_is_freed() -> None:
    """No handle, value or child stays behind with the parent."""

    class Value:
        pass

    gc.collect()
    gc.disable()
    try:
        async with Scope() as parent:
            refs: list[weakref.ref[object]] = []
            for _ in range(10):
                value = Value()
                refs.append(weakref.ref(value))
                handle = Resource(value, lambda: None)
                child = parent.child()
                child.add(handle)
                refs.append(weakref.ref(child))
                await child.aclose()
                parent.add(value, lambda: None)
                await parent.release(value)
            del value, handle, child
            await anyio.wait_all_tasks_blocked()
            alive = [ref() for ref in refs if ref() is not None]
    finally:
        gc.enable()

    assert alive == []


async def test_many_callers_close_one_scope() -> None:
    """A thousand tasks that close the same scope: one closes, all come back."""
    closed: list[int] = []
    back: list[int] = []

    async def close(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append(n)

    scope = Scope()
    for n in range(10):
        scope.defer(close, n)

    async def caller() -> None:
        await scope.aclose()
        back.append(len(closed))

    async with anyio.create_task_group() as tg:
        for _ in range(1000):
            tg.start_soon(caller)

    assert (closed, back) == (list(reversed(range(10))), [10] * 1000)


async def test_a_value_that_is_none_of_many_is_not_held() -> None:
    """Nothing is found among many cleanups without a value; a value added after them is."""
    async with Scope() as scope:
        for _ in range(100):
            scope.defer(list)
        before = scope.has(object())
        value = scope.add(object(), list)

        assert (before, scope.has(value)) == (False, True)
