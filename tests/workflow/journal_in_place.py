"""A plugin of pytest: a `JournaledScope` in place of each `Scope`, in which each acquisition is journaled.

    PYTHONPATH=tests pytest -p workflow.journal_in_place tests/test_scope.py tests/test_closing_rules.py

What differs by its nature: there is a task more, that of the lease; and closing what is journaled waits for the store,
so a closer that cancels its own scope is noticed there, and not at the next thing that waits.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import rescope
from rescope import _with_scope
from rescope._closer import is_awaitable
from rescope.workflow import JournaledScope, MemoryStore, cleanup

if TYPE_CHECKING:
    from collections.abc import Callable

store = MemoryStore()
made: dict[int, tuple[Any, Callable[[Any], object]]] = {}
numbers = count()


@cleanup("in-place.release")
def release_made(token: int) -> object:
    if token not in made:
        return None
    value, release = made.pop(token)
    return release(value)


class Scope(JournaledScope):
    """What takes the same arguments as a `Scope`."""

    __slots__ = ()

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(store, "in place", name=name, **options)

    def _another(self, name: str | None, **options: Any) -> Scope:
        return Scope(name, **options)

    async def acquire(self, acquire: Any, release: Any, **options: Any) -> Any:
        if not (callable(acquire) and callable(release)):
            return await super().acquire(acquire, release, **options)

        async def create(token: int) -> Any:
            value = acquire()
            if is_awaitable(value):
                value = await value
            made[token] = value, release
            return value

        return await super().acquire(create, release_made, token=next(numbers), **options)


rescope.Scope = _with_scope.Scope = Scope  # type: ignore[misc]
