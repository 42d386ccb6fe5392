"""What a `FaultyResource` may be told to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, TypeAlias, cast, get_args

from rescope._backends import backend
from rescope._closer import check_seconds
from rescope._result import Err

_Word: TypeAlias = Literal["hang", "stubborn", "cancelled", "suppress"]

Cue: TypeAlias = float | BaseException | type[BaseException] | Err[Any] | _Word | None
"""What a `FaultyResource` does when it is opened or closed."""

_WORDS: tuple[_Word, ...] = get_args(_Word)


def cues_of(given: Cue | Sequence[Cue], what: Literal["open", "close"]) -> list[Cue]:
    """Give the cues for one attempt after the other."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    cues: list[Cue] = [*cast("Sequence[Cue]", given if several else [given])]
    if not cues:
        msg = f"`{what}` is an empty list: it takes one cue at least"
        raise ValueError(msg)
    for cue in cues:
        _check(cue, what)
    if what == "open" and any(cue == "suppress" or isinstance(cue, Err) for cue in cues):
        msg = "`open` can't suppress and can't return an `Err`: let it raise an exception"
        raise ValueError(msg)
    return cues


def _check(cue: object, what: str) -> None:
    if isinstance(cue, str):
        if cue not in _WORDS:
            msg = f"`{what}` can't be {cue!r}: the words are {', '.join(_WORDS)}"
            raise ValueError(msg)
    elif isinstance(cue, int | float):
        check_seconds(cue, what)
    elif not (cue is None or isinstance(cue, Err) or is_error(cue)):
        msg = "takes None, seconds, an exception, an `Err`, a word, or a list of these"
        _refuse(what, msg, cue)


def check_error(error: object, what: str) -> None:
    """Refuse what can't be raised."""
    if not is_error(error):
        _refuse(what, "takes an exception", error)


def is_error(cue: object) -> bool:
    """Tell whether it can be raised."""
    return isinstance(cue, BaseException) or (isinstance(cue, type) and issubclass(cue, BaseException))


def _refuse(what: str, takes: str, given: object) -> NoReturn:
    name = f"the class {given.__qualname__}" if isinstance(given, type) else f"a {type(given).__qualname__}"
    msg = f"`{what}` {takes}, not {name}"
    raise TypeError(msg)


async def cancellation() -> BaseException:
    """Give a cancellation that nobody asked for."""
    given: BaseException = asyncio.CancelledError()
    if not isinstance(given, backend().Cancelled):
        import trio

        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as exc:  # nothing but trio can make one
                given = exc.with_traceback(None)
    return given
