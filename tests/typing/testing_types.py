# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What users see inferred for `rescope.testing`. Never run, only checked."""

from __future__ import annotations

from functools import partial
from typing import Literal, assert_type

from rescope import Err, Resource, Scope
from rescope.events import EventKind, ScopeEvent
from rescope.testing import (
    CancelEverywhereError,
    CancelMode,
    CancelReport,
    CapturedEvents,
    Cue,
    Fault,
    FaultyResource,
    Ledger,
    Moment,
    assert_all_closed,
    cancel_everywhere,
)


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


def what_a_double_does() -> None:
    FaultyResource()
    FaultyResource("db", open=1, close=0.5)
    FaultyResource(open=ConnectionError, close=ConnectionError("gone"))
    FaultyResource(open="hang", close="stubborn")
    FaultyResource(close=[KeyboardInterrupt, "cancelled", Err("no"), "suppress", 0, None], ledger=Ledger())
    cues: list[Cue] = ["hang", None]
    FaultyResource(open=cues, close=tuple(cues))
    FaultyResource(close="hng")  # type: ignore[arg-type]
    FaultyResource(close=int)  # type: ignore[arg-type]
    FaultyResource(close=["hang", "hng"])  # type: ignore[list-item]


async def a_double_in_a_scope(scope: Scope) -> None:
    faulty = FaultyResource()
    assert_type(scope.add(faulty, timeout=1, force=faulty.force), FaultyResource)
    assert_type(await scope.acquire(faulty.open, FaultyResource.aclose), FaultyResource)
    assert_type(await scope.enter(faulty), FaultyResource)
    assert_type(await scope.host(faulty), FaultyResource)
    async with faulty as same:
        assert_type(same, FaultyResource)


async def what_a_double_tells(faulty: FaultyResource) -> None:
    assert_type(
        faulty.history,
        list[Literal["opening", "opened", "closing", "closed", "failed", "cancelled", "forced"]],
    )
    moments: list[Moment] = faulty.history
    assert moments == ["opening"]
    assert_type(faulty.closed, int)
    assert_type(faulty.is_closed, bool)
    assert_type(faulty.saw, BaseException | None)
    assert_type(await faulty.wait("closing", timeout=1), None)
    await faulty.wait("close")  # type: ignore[arg-type]
    faulty.fail(KeyboardInterrupt)
    faulty.fail("gone")  # type: ignore[arg-type]


async def what_was_captured() -> None:
    captured = CapturedEvents()
    Scope(on_event=captured)
    assert_type(captured.events, list[ScopeEvent])
    assert_type(captured.kinds, list[EventKind])
    assert_type(captured.told, list[tuple[EventKind, str, str | None]])
    assert_type(captured.of("closed", "failed"), list[ScopeEvent])
    assert_type(captured.names("closed"), list[str])
    assert_type(await captured.wait("died", resource="client", path="app", timeout=1), ScopeEvent)
    captured.of("faild")  # type: ignore[arg-type]


def what_must_be_closed(scope: Scope, handle: Resource[int], faulty: FaultyResource) -> None:
    assert_all_closed(scope, handle, faulty, *scope.resources, object())
