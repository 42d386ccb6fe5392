"""`run`: a program's main function in a root scope, which signals stop in order and in time.

A run is in one of these states, and a signal takes it from one to the next:

- **starting**: the handlers are set, the loop is not there yet. After a signal main is not begun at all.
- **running**: main runs. The first signal cancels it, once.
- **stopping**: main unwinds. It has half of the grace to end; then its scope is closed over its head, by a supervisor,
  with what is left. If it closes already when the signal comes, nothing is cancelled: the time runs, that is all.
- **forcing**, after the second signal, or when the grace is over: what is closing has 50 ms more, and so has each that
  follows, before it is out of time; main is cancelled again, which reaches the exits of entered managers.
- **gone**: a third signal ends the process on the spot. So does a watchdog thread, a second after the grace is over or
  after the second signal, however blocked the loop is.

Who may be cancelled where: main's task, in its body and in the exits of what it entered. Closers run in jobs that this
does not reach. When main is gone, stray tasks are cancelled, and those left behind once more.
"""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, cast

from rescope._closer import check_callable, check_scope, check_seconds, name_of
from rescope._flight import raise_unchanged
from rescope._result import Err
from rescope._runner.root import Root
from rescope._runner.stop import Stop
from rescope._runner.threads import busy_threads
from rescope._with_scope import _body, _run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from rescope._scope import Scope
    from rescope.events import ScopeEvent

__all__ = ["run"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_HINTS = {"uvloop": "`pip install uvloop`", "trio": "`pip install rescope[trio]`"}


def run(
    main: Callable[[Scope, *Args], Awaitable[T]],
    /,
    *args: *Args,
    grace: float | None = 25,
    signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
    backend: Literal["asyncio", "uvloop", "trio"] = "asyncio",
    name: str | None = None,
    on_event: Callable[[ScopeEvent], object] | None = None,
) -> T:
    """Run `await main(scope, *args)` in a root scope, and give what it returns.

    The first of the `signals` cancels main, which then has `grace` seconds, counted from that signal, to unwind: half
    of them for its body at most, what is left for its closers. A second signal, or the end of that time, leaves 50 ms
    to each close that is under way or to come; a third signal ends the process at once. Where main ends by itself, its
    closers have `grace` seconds from there. `None` is no bound. `name`, by default main's, and `on_event` are the
    scope's.

    A signal ends in `SystemExit(128 + number)`, as a shell would have it, also where main caught the cancellation.
    What main raises of its own is raised as it is, and so is a `ResourceCleanupError`, unless all that went wrong is
    a cleanup that followed a signal: that is logged. A returned `Err` counts as a failure for `on_error`.

    Tasks that main leaves behind are cancelled, and have what is left of the grace. What doesn't end then is named in
    a WARNING, and not waited for: after a signal the process is ended hard, if need be, a second after the grace at the
    latest. On trio that is so without a signal too. No signal is sent on to any other process.

    Raises `TypeError` and `ValueError` for what can't be run or caught, `ModuleNotFoundError` for a backend that is not
    installed, `RuntimeError` outside of the main thread or inside of a running loop.
    """
    check_callable(main, "main")
    if grace is not None:
        check_seconds(grace, "grace")
    label = name_of(main) if name is None else name
    check_scope(label, None, on_event)
    numbers = _check_signals(signals)
    _check_backend(backend)
    _check_place()

    stop = Stop(grace)
    live = partial(_live, stop, main, args, partial(Root, label, grace=grace, on_event=on_event))
    threads = set(threading.enumerate())
    try:
        stop.listen(numbers)
        left = _run_on(backend, stop, live)
        busy = busy_threads(stop, threads)
        if stop.first is not None:
            left += busy
        if left:
            stop.leave(left)
        stop.tell()
    finally:
        stop.quit()
    verdict = stop.verdict()
    if verdict is not None:
        try:
            raise_unchanged(verdict)
        finally:
            del verdict
    return cast("T", stop.value)


async def _live(
    stop: Stop, main: Callable[..., Awaitable[object]], args: tuple[Any, ...], open_scope: Callable[[], Root]
) -> None:
    """Live main's life, in the scope. At the top of a program a cleanup that failed is raised, and never returned."""
    scope = open_scope()
    scope._stop = stop
    stop.scope = scope

    async def body(scope: Scope, *args: object) -> object:
        try:
            return await _body(main, scope, *args)
        finally:
            stop.ended = True

    value = await _run(scope, body, args, {})
    failed = scope.cleanup_error
    if failed is not None and isinstance(value, Err) and value.error is failed:
        raise failed
    stop.value = value


def _run_on(backend: str, stop: Stop, live: Callable[[], Awaitable[None]]) -> list[str]:
    """Run it; give the names of what did not end."""
    if backend == "trio":
        from rescope._runner import trio

        return trio.run(stop, live)
    from rescope._runner import asyncio

    if backend == "uvloop":
        import uvloop

        return asyncio.run(stop, live, uvloop.new_event_loop)
    return asyncio.run(stop, live)


def _check_signals(signals: Iterable[int]) -> list[int]:
    try:
        found = list(signals)
    except TypeError:
        msg = f"`signals` must be several, as `(signal.SIGTERM,)`, not a {type(signals).__qualname__}"
        raise TypeError(msg) from None
    for number in found:
        if isinstance(number, bool) or not isinstance(cast("object", number), int):
            msg = f"`signals` takes members of `signal.Signals`, as `signal.SIGTERM`, not a {type(number).__qualname__}"
            raise TypeError(msg)
        if number not in signal.valid_signals():
            msg = f"there is no signal {number} here: take members of `signal.Signals`, as `signal.SIGTERM`"
            raise ValueError(msg)
        if number in {getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None)}:
            msg = f"{signal.Signals(number).name} can't be caught by any process: leave it out of `signals`"
            raise ValueError(msg)
    return list(dict.fromkeys(found))


def _check_backend(backend: str) -> None:
    if backend not in ("asyncio", *_HINTS):
        msg = f"`backend` must be 'asyncio', 'uvloop' or 'trio', not {backend!r}"
        raise ValueError(msg)
    if backend != "asyncio" and find_spec(backend) is None:
        msg = f"the backend {backend} is not installed: {_HINTS[backend]}"
        raise ModuleNotFoundError(msg, name=backend)


def _check_place() -> None:
    if threading.current_thread() is not threading.main_thread():
        msg = "`run` must be called in the main thread: Python handles signals nowhere else"
        raise RuntimeError(msg)
    if _in_loop():
        msg = "`run` was called where a loop runs already: await main there, in `async with Scope() as scope`"
        raise RuntimeError(msg)


def _in_loop() -> bool:
    from asyncio import get_running_loop

    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return True
    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True
