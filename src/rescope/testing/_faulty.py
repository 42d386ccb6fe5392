"""A resource that fails on cue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final, get_args

from rescope._backends import backend
from rescope._closer import check_options, check_seconds, reject
from rescope._result import Err
from rescope.testing._bell import Bell
from rescope.testing._cue import cancellation, check_error, cues_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from rescope.testing._cue import Cue
    from rescope.testing._ledger import Ledger

Moment: TypeAlias = Literal["opening", "opened", "closing", "closed", "failed", "cancelled", "forced"]
"""What may happen to a `FaultyResource`."""

_MOMENTS: tuple[Moment, ...] = get_args(Moment)
_PATIENCE = 1.0  # seconds that a stubborn one holds on, so that it can't keep a loop from ending


@final
class FaultyResource:
    """A double of a resource that fails, hangs, or is slow, when it is opened or closed, on cue.

    Close it by `aclose`, open it by `open` first, or use it as an async context manager, which does both. What these do
    is told by `open` and `close`:

    - `None`: it succeeds, at once;
    - a number: it succeeds, after so many seconds (`0`: it suspends once);
    - an exception, or a type of one: it raises that, `KeyboardInterrupt` and `SystemExit` too;
    - `"hang"`: it waits until it is cancelled, or told by `let_go` or `fail` how to end;
    - `"stubborn"`: it waits, and swallows cancellations too, until it is told or forced; though no longer than a second
      after the first one, then it ends as cancelled, so that no event loop hangs for it;
    - `"cancelled"`: it raises a cancellation that nobody asked for;
    - an `Err`: `close` returns it; as a manager, its exit raises what the `Err` stands for;
    - `"suppress"`: as a manager, its exit suppresses what the body raised;
    - a list of these: one for each attempt, the last one for all that follow, as `[ConnectionError, None]`.

    All that happens to it is kept in `history`, and `wait` waits for it, so that no test has to sleep. A `ledger` is
    told when it is opened and closed, for `cancel_everywhere`. It closes again as often as it is asked to: that it was
    closed once is for the test to see::

        async def test_a_cache_that_hangs_is_forced():
            cache = FaultyResource("cache", close="hang")
            scope = Scope()
            scope.add(cache, timeout=0.01, force=cache.force)
            with pytest.raises(ResourceCleanupError):
                await scope.aclose()
            assert cache.history == ["closing", "cancelled", "forced"]
    """

    __slots__ = ("_bell", "_close", "_ledger", "_open", "_told", "history", "is_closed", "name", "saw")

    name: str
    """What it is called in its own errors, and in the ledger. A scope calls it by its type, unless it is told else."""
    history: list[Moment]
    """All that happened to it, in order."""
    is_closed: bool
    """Whether nothing is open: closed, forced, or never opened with success."""
    saw: BaseException | None
    """The exception that its exit was given."""

    def __init__(
        self,
        name: str = "faulty",
        *,
        open: Cue | Sequence[Cue] = None,  # noqa: A002 (nothing else reads as well beside `close`)
        close: Cue | Sequence[Cue] = None,
        ledger: Ledger | None = None,
    ) -> None:
        check_options(name, None, None)
        self.name = name
        self.history = []
        self.is_closed = False
        self.saw = None
        self._open = cues_of(open, "open")
        self._close = cues_of(close, "close")
        self._ledger = ledger
        self._bell = Bell()
        self._told: tuple[Cue] | None = None

    async def open(self) -> Self:
        """Open it, as for `scope.acquire(faulty.open, FaultyResource.aclose)`."""
        await self._act(self._open, "opening", "opened")
        return self

    async def aclose(self) -> Err[Any] | None:
        """Close it."""
        result = await self._act(self._close, "closing", "closed")
        return result if isinstance(result, Err) else None

    def force(self) -> None:
        """Close it by force. What hangs, or will, ends and succeeds."""
        self._note("forced")
        self.let_go()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.saw = exc
        result = await self._act(self._close, "closing", "closed")
        reject(result)
        return result == "suppress"

    # What a test tells it and asks

    def let_go(self) -> None:
        """End its hanging: whatever hangs, or will, succeeds."""
        self._tell(None)

    def fail(self, error: BaseException | type[BaseException], /) -> None:
        """End its hanging: whatever hangs, or will, raises this."""
        check_error(error, "fail")
        self._tell(error)

    async def wait(self, moment: Moment, /, *, timeout: float = 5.0) -> None:
        """Wait until that has happened to it; it may have happened before.

        Raises `TimeoutError` after `timeout` seconds, which says what happened instead, and `ValueError` for a moment
        that there is not. A cancellation ends the waiting.
        """
        if moment not in _MOMENTS:
            msg = f"there is no moment {moment!r}: the moments are {', '.join(_MOMENTS)}"
            raise ValueError(msg)
        check_seconds(timeout, "timeout")
        await self._bell.within(
            timeout,
            lambda: moment if moment in self.history else None,
            lambda: f"{self.name} was not {moment} within {timeout:g} s: {self._story()}",
        )

    @property
    def opened(self) -> int:
        """How many times it was opened."""
        return self.history.count("opened")

    @property
    def closed(self) -> int:
        """How many times it was closed with success."""
        return self.history.count("closed")

    @property
    def failed(self) -> int:
        """How many times opening or closing failed, by an exception or an `Err`."""
        return self.history.count("failed")

    @property
    def cancelled(self) -> int:
        """How many cancellations reached it, those that it swallowed too."""
        return self.history.count("cancelled")

    @property
    def forced(self) -> int:
        """How many times it was forced."""
        return self.history.count("forced")

    def __repr__(self) -> str:
        return f"<FaultyResource {self.name!r}: {self._story()}>"

    # How it does it

    async def _act(self, cues: list[Cue], begun: Moment, done: Moment) -> Cue:
        """Do what the next cue says, and keep what happens; give the rest of the cue, which is for the caller."""
        cue = cues.pop(0) if len(cues) > 1 else cues[0]
        self._note(begun)
        cue = await self._await(cue)
        if isinstance(cue, BaseException | type | Err):
            self._note("failed")
            if not isinstance(cue, Err):
                raise cue
        else:
            self._note(done)
        return cue

    async def _await(self, cue: Cue) -> Cue:
        """Await what the cue says; give what is to be done then."""
        from anyio import sleep

        try:
            match cue:
                case int() | float():
                    await sleep(cue)
                    return None
                case "hang" | "stubborn":
                    return (await self._bell.until(self._word))[0]
                case "cancelled":
                    return await cancellation()
                case _:
                    return cue
        except backend().Cancelled as exc:
            self._note("cancelled")
            if cue != "stubborn":
                raise
            return await self._hold_on(exc)

    async def _hold_on(self, cancelled: BaseException) -> Cue:
        """Swallow a cancellation, and all that follow, until it is told or the patience is over.

        It takes a shield: a cancel scope goes on for as long as one is in it.
        """
        from anyio import CancelScope, current_time

        with CancelScope(deadline=current_time() + _PATIENCE, shield=True) as patience:
            while True:
                try:
                    return (await self._bell.until(self._word))[0]
                except backend().Cancelled:
                    if patience.cancel_called:
                        raise
                    self._note("cancelled")
        raise cancelled

    def _word(self) -> tuple[Cue] | None:
        return self._told

    def _tell(self, cue: Cue) -> None:
        self._told = (cue,)
        self._bell.ring()

    def _note(self, moment: Moment) -> None:
        self.history.append(moment)
        if self._ledger is not None:
            self._tell_ledger(self._ledger, moment)
        if moment in {"opening", "closed", "forced"}:
            self.is_closed = True
        elif moment == "opened":
            self.is_closed = False
        self._bell.ring()

    def _tell_ledger(self, ledger: Ledger, moment: Moment) -> None:
        """What was forced is closed by that; to close it once more then is no mistake."""
        if moment == "opened":
            ledger.opened(self.name)
        elif (moment == "forced" and not self.is_closed) or (moment == "closed" and not self.forced):
            ledger.closed(self.name)

    def _story(self) -> str:
        return ", ".join(self.history) or "nothing has happened to it"
