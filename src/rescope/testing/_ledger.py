"""What a program has opened and closed."""

from __future__ import annotations

from typing import final


@final
class Ledger:
    """What a program has opened and closed: by this, a run is judged. Each run gets a fresh one.

    Call `opened` where a resource is there, and `closed` where it is gone, in any task.
    """

    __slots__ = ("_known", "_mistakes", "_open", "_ordered")

    def __init__(self, *, ordered: bool = True) -> None:
        self._open: list[str] = []
        self._known: set[str] = set()
        self._mistakes: list[str] = []
        self._ordered = ordered

    def opened(self, name: str, /) -> str:
        """Note that a resource is open, and give back its name."""
        self._open.insert(0, name)
        self._known.add(name)
        return name

    def closed(self, name: str, /) -> None:
        """Note that a resource is closed: the latest of that name."""
        if name not in self._open:
            self._mistakes.append(f"closed {'twice' if name in self._known else 'but never opened'}: {name}")
            return
        if self._ordered and self._open[0] != name:
            self._mistakes.append(f"closed out of order: {name} before {self._open[0]}")
        self._open.remove(name)

    @property
    def open(self) -> tuple[str, ...]:
        """The names of what is open, the latest first."""
        return tuple(self._open)

    @property
    def problems(self) -> tuple[str, ...]:
        """What was closed twice or out of order, and what is open still."""
        return (*self._mistakes, *(f"left open: {name}" for name in self._open))
