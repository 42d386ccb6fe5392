"""What signals ask for, how much time is left, and the watchdog that ends a process which can't end itself.

A signal handler may interrupt anything, so it takes no lock that the main thread could hold: it counts, looks at the
clock, starts a thread, wakes the loop. It writes no log: that is for the loop, or for the end.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
from asyncio import CancelledError
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from rescope._result import Err
from rescope._tell import log
from rescope.exceptions import ResourceCleanupError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from rescope._scope import Scope

SLACK = 1.0
"""Seconds beyond the grace, and after a second signal, until the process is ended however blocked it is: for the
moments of those that are forced, and for what comes after the scope."""

PATIENCE = 0.3
"""Seconds in which a body that lost its scope may end after all."""

FAREWELL = 0.5
"""Seconds for the last log line and for flushing, where a stuck pipe may hold them up."""

GLANCE = 0.05
"""Seconds between two looks at what is left, which a signal may have made less."""

CENTURY = 100 * 365 * 86400.0
"""As good as no bound, and short enough for every timer."""


class Stop:
    """What one run was asked, how main ended, and the time that is left."""

    def __init__(self, grace: float | None) -> None:
        self.grace = CENTURY if grace is None else min(grace, CENTURY)
        self.deadline = math.inf
        self.scope: Scope | None = None
        self.ended = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.exit: BaseException | None = None
        self.first: int | None = None
        self.forced: str | None = None  # why
        self.wake: Callable[[], object] = int
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._signals = itertools.count(1)  # counts in one step, whatever interrupts it
        self._told = 0
        self._told_error = False
        self._over = False
        self._news: SimpleQueue[None] = SimpleQueue()
        self._watchdog: Thread | None = None

    def listen(self, signals: Iterable[int]) -> None:
        """Handle these signals from here on."""
        for signum in signals:
            self._before[signum] = signal.signal(signum, self._receive) or signal.SIG_DFL

    def quit(self) -> None:
        """End the watchdog, and leave signals to those who had them before.

        In this order: a `KeyboardInterrupt` may come as soon as Ctrl-C is Python's again.
        """
        self._over = True
        self._news.put(None)
        for signum in sorted(self._before, key=signal.SIGINT.__eq__):
            signal.signal(signum, self._before[signum])
        if self._watchdog is not None and self._watchdog.is_alive():
            self._watchdog.join()
        self.tell()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._pass_on(signum, frame)
            return
        count = next(self._signals)
        if count == 1:
            self.first = signum
            self.begin()
        elif count == 2:  # noqa: PLR2004 (the second)
            self.force("a second signal")
        else:
            os._exit(128 + (self.first or signum))
        self.watch()
        with suppress(RuntimeError):  # the loop is gone
            self.wake()

    def force(self, why: str) -> None:
        """Leave next to no time to what still closes, and no more than there was."""
        self.forced = self.forced or why
        self.deadline = min(self.deadline, monotonic())

    @property
    def begun(self) -> bool:
        """Whether main is to end."""
        return self.first is not None or self.exit is not None

    def escaped(self, exc: BaseException) -> None:
        """Stop because of an exit or interrupt that came out of the loop, past main."""
        self.exit = self.exit or exc
        self.begin()
        self.watch()

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal to a child that main has forked as if `run` had never been."""
        before = self._before[signum]
        if callable(before):
            before(signum, frame)
        else:
            signal.signal(signum, before)
            signal.raise_signal(signum)

    def begin(self) -> None:
        """Let the grace run from here on, unless it does already."""
        self.deadline = min(self.deadline, monotonic() + self.grace)

    def stuck(self) -> bool:
        """Tell whether main is in the way: its body has not ended, and nobody closes its scope."""
        return self.scope is not None and not self.ended and self.scope.state != "closing"

    async def close_over(self) -> None:
        """Close the scope of a body that did not end when it was cancelled."""
        if self.scope is None or self.scope.state != "open":
            return
        error = TimeoutError("the body did not end when it was cancelled")
        exc = await self.scope._begin_close(Err(error), error)
        if exc is not None and exc is not error:
            log(f"{reason(exc)} (not raised: {error})")

    def left(self) -> float | None:
        """Give the seconds that are left, `None` while nothing ends."""
        return None if self.deadline == math.inf else max(0.0, self.deadline - monotonic())

    def tell(self) -> None:
        """Log what signals came, and what `run` will not raise because of them, each once."""
        import logging

        logger = logging.getLogger("rescope")
        if self.first is not None and self._told == 0:
            self._told = 1
            within = "" if self.grace == CENTURY else f", {self.grace:g} s"
            logger.info("%s: stopping%s", signal_name(self.first), within)
        if self.forced and self._told != 2:  # noqa: PLR2004 (the second)
            self._told = 2
            logger.warning("%s: what still closes is forced", self.forced)
        verdict = self.verdict()
        if isinstance(self.error, ResourceCleanupError) and verdict is not self.error and not self._told_error:
            self._told_error = True
            because = type(verdict).__name__ if self.first is None else signal_name(self.first)
            log(f"{self.error.message} (not raised, because of a {because})")

    def watch(self) -> None:
        """Let the watchdog know that there is a deadline, or a sooner one.

        It is no thread before that: one would make every `os.fork` of main's a fork of several threads.
        """
        if self._watchdog is None:
            self._watchdog = Thread(target=self._watch, name="rescope watchdog", daemon=True)
            with suppress(RuntimeError):  # no thread can be started: then all is well as long as the loop is
                self._watchdog.start()
        else:
            self._news.put(None)

    def _watch(self) -> None:
        while not self._over:
            try:
                self._news.get(timeout=max(0.0, self.deadline + SLACK - monotonic()))
            except Empty:
                self.end_hard("not ended by force" if self.forced else f"not ended after {self.grace:g} s")

    def verdict(self) -> BaseException | None:
        """Give what `run` raises: what main raised of its own, else an exit for the signal that stopped it."""
        error = self.exit or self.error
        if self.first is None or (error is not None and not _of_the_stop(error)):
            return error
        return SystemExit(128 + self.first)

    def leave(self, names: list[str]) -> None:
        """Tell what did not end. After a signal the process doesn't wait for it; else that is for who called `run`."""
        why = f"left behind: {', '.join(names)}"
        if self.first is not None:
            self.end_hard(why)
        import logging

        logging.getLogger("rescope").warning(why)

    def end_hard(self, why: str) -> NoReturn:
        """End the process at once, without what Python does at its end; say why, and flush."""
        code = 1
        with suppress(BaseException):
            verdict = self.verdict()
            code = exit_code(verdict)
            farewell = Thread(target=self._farewell, args=(why, verdict), daemon=True)
            farewell.start()
            farewell.join(FAREWELL)
        os._exit(code)

    def _farewell(self, why: str, verdict: BaseException | None) -> None:
        import logging

        with suppress(BaseException):
            self.tell()
            logging.getLogger("rescope").warning("%s: the process ends now%s", why, self._still_open())
        with suppress(BaseException):
            if verdict is not None and not isinstance(verdict, SystemExit):
                sys.excepthook(type(verdict), verdict, verdict.__traceback__)
            elif verdict is not None and isinstance(verdict.code, str):
                sys.stderr.write(f"{verdict.code}\n")
        for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
            with suppress(BaseException):
                flush()

    def _still_open(self) -> str:
        if self.scope is None or self.scope.state == "closed":
            return ""
        names = [handle.name for handle in self.scope.resources]
        return f", still open: {', '.join(reversed(names))}" if names else ""


def _of_the_stop(error: BaseException) -> bool:
    """Tell whether it is what stopping main has led to: the cancellation, or a cleanup that failed after one."""
    if isinstance(error, ResourceCleanupError):
        return error.__cause__ is None or _of_the_stop(error.__cause__)
    return isinstance(error, CancelledError)


def seconds_from_now(seconds: float) -> Callable[[], float]:
    """Give what tells how much is left of so many seconds."""
    until = monotonic() + seconds
    return lambda: until - monotonic()


def exit_code(verdict: BaseException | None) -> int:
    """Give the code with which Python would end."""
    if verdict is None:
        return 0
    if not isinstance(verdict, SystemExit):
        return 130 if isinstance(verdict, KeyboardInterrupt) else 1
    if verdict.code is None:
        return 0
    return verdict.code if isinstance(verdict.code, int) else 1


def signal_name(signum: int) -> str:
    """Give `"SIGTERM"`; real-time signals have a number only."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
