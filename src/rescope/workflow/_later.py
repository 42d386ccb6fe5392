"""Starting a task later, for what mostly ends before: until then it costs a timer.

anyio has tasks and no timers. On asyncio a task that only waits, and its end, cost more than a lock on a store nearby.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from trio import CancelScope

    Main = Callable[[], Coroutine[Any, Any, None]]


class Later(Protocol):
    """What is going to be run."""

    def cancel(self) -> None:
        """Don't begin, or cancel what has begun. Nobody waits for that to end."""
        ...


def later(seconds: float, main: Main) -> Later:
    """Run `main`, which lets no error escape, after these seconds, in a task of its own and a copy of this context."""
    try:
        on_asyncio = asyncio.current_task() is not None
    except RuntimeError:
        on_asyncio = False
    return _OnAsyncio(seconds, main) if on_asyncio else _OnTrio(seconds, main)


_EMPTY = Context()  # the loop keeps a timer that was cancelled, with its context, for as long as it would have run


class _OnAsyncio:
    __slots__ = ("_task", "_timer")

    def __init__(self, seconds: float, main: Main) -> None:
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._begin, main, copy_context(), context=_EMPTY)

    def _begin(self, main: Main, context: Context) -> None:
        self._task = asyncio.get_running_loop().create_task(main(), context=context)

    def cancel(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class _OnTrio:
    __slots__ = ("_scope",)

    _scope: CancelScope

    def __init__(self, seconds: float, main: Main) -> None:
        import trio

        self._scope = trio.CancelScope()
        due = trio.current_time() + seconds  # from now: who asked may keep the loop waiting before the task begins
        trio.lowlevel.spawn_system_task(self._run, due, main, context=copy_context())

    async def _run(self, due: float, main: Main) -> None:
        import trio

        with self._scope:
            await trio.sleep_until(due)
            await main()

    def cancel(self) -> None:
        self._scope.cancel()
