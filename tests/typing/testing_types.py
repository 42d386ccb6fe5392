# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `rescope.testing`. Never run, only checked."""

from __future__ import annotations

from functools import partial
from typing import Literal, assert_type

from rescope.testing import CancelEverywhereError, CancelMode, CancelReport, Fault, Ledger, cancel_everywhere


async def program(ledger: Ledger) -> int:
    return len(ledger.opened("a"))


async def with_argument(times: int, ledger: Ledger) -> None: ...


async def without_ledger() -> None: ...


def sync(ledger: Ledger) -> None: ...


class Programs:
    async def method(self, ledger: Ledger) -> None: ...


async def what_comes_back() -> None:
    report = await cancel_everywhere(program)
    assert_type(report, CancelReport)
    assert_type(report.task, int)
    assert_type(report.total, int)


async def what_is_a_program() -> None:
    await cancel_everywhere(Programs().method)
    await cancel_everywhere(partial(with_argument, 2))
    await cancel_everywhere(lambda ledger: program(ledger))  # noqa: PLW0108 (the type of its argument is inferred)
    await cancel_everywhere(without_ledger)  # type: ignore[arg-type]
    await cancel_everywhere(sync)  # type: ignore[arg-type]


async def what_it_takes() -> None:
    modes: list[CancelMode] = ["task", "scope"]
    await cancel_everywhere(program, modes=modes, turns=0, timeout=1, max_points=10, ordered=False)
    await cancel_everywhere(program, raises=ValueError)
    await cancel_everywhere(program, raises=(ValueError, KeyboardInterrupt))
    await cancel_everywhere(program, modes={"scope"})
    await cancel_everywhere(program, modes=["twice"])  # type: ignore[list-item]


def a_ledger() -> None:
    ledger = Ledger(ordered=False)
    assert_type(ledger.opened("a"), str)
    assert_type(ledger.open, tuple[str, ...])
    assert_type(ledger.problems, tuple[str, ...])


def what_went_wrong(error: CancelEverywhereError) -> None:
    assert_type(error.faults, tuple[Fault, ...])
    for fault in error.faults:
        assert_type(fault.mode, Literal["task", "late", "repeated", "scope"] | None)
        assert_type(fault.point, int)
        assert_type(fault.stack, tuple[str, ...])
        assert_type(fault.problems, tuple[str, ...])
        assert_type(fault.exception, BaseException | None)
