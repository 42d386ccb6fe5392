"""Closing rule 5, in time, as a law: to the tick of a virtual clock, on which any number of closers may hang.

The clock of asyncio's loop, and trio's, jumps to the next moment at which something is due. uvloop's can't be turned:
there a few programs run in real time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, example, given

from conftest import BACKENDS
from labels import Fault
from rescope import CloseTimeoutError, ResourceCleanupError, Scope
from strategies import Shown, examples

pytestmark = pytest.mark.long

MOMENT = 0.05
HANGS = 500.0
NEVER = 1e5
"""So long that whatever it was is left behind."""
NAMES = [f"c{number}" for number in range(20)]
BUSY = 400
"""More steps of the loop than any of these programs needs, and far less than a busy loop makes."""

turned = pytest.mark.parametrize("backend", [param for param in BACKENDS if param.id != "uvloop"])
everywhere = pytest.mark.parametrize("backend", BACKENDS)


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next moment at which something is due."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.steps = 0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            self.steps += 1
            assert timeout is not None, "nothing is due any more: it hangs"
            assert self.steps < BUSY, "a busy loop"
            self.clock += max(0.0, timeout)
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.clock


def run_turned(backend: Any, main: Callable[[], Any]) -> Any:
    """Run with a virtual clock."""
    if backend[0] == "asyncio":
        return anyio.run(main, backend="asyncio", backend_options={"loop_factory": Jumping})
    import trio
    import trio.testing

    class Patience(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task: object) -> None:
            self.steps += 1
            assert self.steps < BUSY, "a busy loop"

    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(main, backend="trio", backend_options={"clock": clock, "instruments": [Patience()]})


@dataclass(frozen=True, repr=False)
class Slow(Shown):
    """A closer that takes `seconds`, and `stubborn` seconds more to end when it is cancelled."""

    seconds: float = 0.0
    kind: str = "closer"
    """Or `host`, or `manager`, which is entered."""
    timeout: float | None = None
    stubborn: float = 0.0
    force: str = ""
    """`works`: ends it at once, however stubborn it is. `raises`."""


@dataclass(frozen=True, repr=False)
class Inner(Shown):
    """A child scope."""

    items: tuple[Slow, ...] = ()
    grace: float | None = None


def slows(*, managers: bool) -> st.SearchStrategy[Slow]:
    return st.builds(
        Slow,
        seconds=st.sampled_from([0.0, 0.0, 0.013, 0.31, 1.7, 5.3, HANGS]),
        kind=st.sampled_from(["closer", "closer", "closer", "host", *["manager"] * managers]),
        timeout=st.sampled_from([None, None, 0.0, 0.71, 2.3]),
        stubborn=st.sampled_from([0.0, 0.0, 0.021, 0.077, NEVER]),
        force=st.sampled_from(["", "works", "raises"]),
    )


graces = st.sampled_from([None, 0.0, 1.1, 9.0, 30.7])
plans = st.lists(
    slows(managers=True) | st.builds(Inner, items=st.lists(slows(managers=False), max_size=3).map(tuple), grace=graces),
    max_size=6,
)


@dataclass
class Prediction:
    """The model: a clock and a list."""

    now: float = 0.0
    journal: list[tuple[str, str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    names: Any = field(default_factory=lambda: iter(NAMES))

    def log(self, kind: str, name: str) -> None:
        self.journal.append((kind, name, self.now))

    def close_all(self, entries: list[Any], grace: float | None) -> float:
        """Pop from the end; give how much longer than the grace it may take, for those that were out of time."""
        deadline, overtime = self.now + (math.inf if grace is None else grace), 0.0
        while entries:
            name, item = entries.pop()
            left = max(0.0, deadline - self.now) / (2 if entries else 1)
            if isinstance(item, Slow):
                more = self.close(name, item, left)
            else:
                inner = min(left, math.inf if item.grace is None else item.grace)
                more = self.close_all(list(name), None if inner == math.inf else inner)
            overtime += more
            deadline += more
        return overtime

    def close(self, name: str, item: Slow, left: float) -> float:
        self.log("begin", name)
        limit = min(left, math.inf if item.timeout is None else item.timeout)
        if item.kind == "manager":
            limit = math.inf
        assume(item.seconds == 0 or abs(item.seconds - limit) > 1e-6)
        if item.seconds == 0 or item.seconds < limit:
            self.now += item.seconds
            self.log("end", name)
            return 0.0
        self.now += limit
        since = self.now
        self.failures.append(name)
        self.end_it(name, item)
        return self.now - since

    def end_it(self, name: str, item: Slow) -> None:
        """Cancel it, force it, leave it behind."""
        ends = self.now + item.stubborn
        self.now += min(item.stubborn, MOMENT)
        if item.force and item.kind == "closer":
            if item.stubborn <= MOMENT:
                self.log("cut", name)
            self.log("force", name)
            if item.stubborn > MOMENT:
                ends = self.now if item.force == "works" else ends
                self.now = min(ends, self.now + MOMENT)
                self.log("cut" if ends <= self.now else "left", name)
            return
        if item.stubborn > MOMENT:
            self.now = min(ends, self.now + MOMENT)
        self.log("cut" if ends <= self.now else "left", name)


class Stage:
    """Runs a plan on a real scope."""

    def __init__(self) -> None:
        self.journal: list[tuple[str, str, float]] = []
        self.start = anyio.current_time()

    def log(self, kind: str, name: str) -> None:
        self.journal.append((kind, name, anyio.current_time() - self.start))

    async def take(self, name: str, item: Slow, forced: anyio.Event) -> None:
        """Take the time that a closer takes."""
        self.log("begin", name)
        try:
            if item.seconds:
                await anyio.sleep(item.seconds)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(item.stubborn, shield=True):
                if item.stubborn:
                    await forced.wait()
            self.log("cut", name)
            raise
        self.log("end", name)

    async def add(self, scope: Scope, name: str, item: Slow) -> None:
        forced = anyio.Event()

        async def close() -> None:
            await self.take(name, item, forced)

        def force() -> None:
            self.log("force", name)
            if item.force == "raises":
                raise Fault("force")
            forced.set()

        manager = Manager(close)
        if item.kind == "host":
            await scope.host(manager, name=name, timeout=item.timeout)
        elif item.kind == "manager":
            await scope.enter(manager, name=name)
        else:
            scope.add(manager, close, name=name, timeout=item.timeout, force=force if item.force else None)


class Manager:
    """A manager whose exit takes as long as a closer."""

    def __init__(self, close: Callable[[], Any]) -> None:
        self.close = close

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def act_out(plan: list[Any], grace: float | None, *, cancelled: bool) -> tuple[Stage, Any, float]:
    """Close a scope that holds what is planned; then wait for those left behind."""
    stage, scope, names = Stage(), Scope("root", grace=grace), iter(NAMES)
    for item in plan:
        if isinstance(item, Slow):
            await stage.add(scope, next(names), item)
            continue
        child = scope.child("child", grace=item.grace)
        for one in item.items:
            await stage.add(child, next(names), one)
    with anyio.CancelScope() as cancel_scope:
        if cancelled:
            cancel_scope.cancel()
        try:
            await scope.aclose()
        except ResourceCleanupError:
            pass
    took = anyio.current_time() - stage.start
    stage.journal, journal = [], stage.journal
    await anyio.sleep(2 * NEVER)
    stage.journal = journal
    return stage, scope.cleanup_error, took


def failed(error: ResourceCleanupError | None) -> list[Any]:
    """Give all failures, of children too."""
    found: list[Any] = []
    for failure in () if error is None else error.failures:
        inner = failure.exception
        found += failed(inner) if isinstance(inner, ResourceCleanupError) else [failure]
    return found


def told(journal: list[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    return [(kind, name, round(time, 6)) for kind, name, time in journal if kind != "left"]


@turned
@examples(200)
@given(plan=plans, grace=graces, cancelled=st.booleans())
@example(plan=[Slow(HANGS), Slow(HANGS, stubborn=NEVER), Slow(HANGS, force="raises")], grace=9.0, cancelled=True)
@example(plan=[Slow(1.7), Inner((Slow(HANGS, stubborn=NEVER), Slow(HANGS)), 1.1)], grace=9.0, cancelled=False)
def test_closing_rule_5_everything_happens_at_its_time(
    plan: list[Any], grace: float | None, cancelled: bool, backend: Any
) -> None:
    """Timeout, half of what is left, a moment to end, force, another moment, left behind: each at the right time.

    So it is under cancellation, and there is no busy loop. An entered manager is not bounded, but its time counts.
    """
    assume(not cancelled or all(isinstance(item, Inner) or item.kind != "manager" for item in plan))
    prediction, names = Prediction(), iter(NAMES)
    entries: list[Any] = []
    for item in plan:
        if isinstance(item, Slow):
            entries.append((next(names), item))
        else:
            entries.append((tuple((next(names), one) for one in item.items), item))
    prediction.close_all(entries, grace)
    event(f"out of time: {len(prediction.failures)}")

    async def main() -> Any:
        return await act_out(plan, grace, cancelled=cancelled)

    stage, error, took = run_turned(backend, main)
    failures = failed(error)
    assert told(stage.journal) == told(prediction.journal)
    assert (round(took, 6), [one.name for one in failures]) == (round(prediction.now, 6), prediction.failures)
    assert all(type(one.exception) is CloseTimeoutError and one.timed_out for one in failures)
    assert all(one.name in str(one.exception) for one in failures)


@turned
@examples(60)
@given(items=st.lists(slows(managers=False), min_size=1, max_size=6), grace=graces)
def test_closing_rule_5_each_of_a_concurrent_scope_has_all_of_the_grace(
    items: list[Slow], grace: float | None, backend: Any
) -> None:
    """None is given half only, and together they take as long as the longest one."""
    ends = {}
    for name, item in zip(NAMES, items, strict=False):
        alone = Prediction()
        alone.close_all([(name, item)], grace)
        ends[name] = (alone.now, bool(alone.failures))

    async def main() -> Any:
        scope, stage = Scope("root", grace=grace, concurrent=True), Stage()
        for name, item in zip(NAMES, items, strict=False):
            await stage.add(scope, name, item)
        try:
            await scope.aclose()
        except ResourceCleanupError:
            pass
        took = anyio.current_time() - stage.start
        await anyio.sleep(2 * NEVER)
        return took, scope.cleanup_error

    took, error = run_turned(backend, main)
    assert round(took, 6) == round(max(end for end, _ in ends.values()), 6)
    assert sorted(one.name for one in failed(error)) == [name for name, (_, late) in ends.items() if late]


@everywhere
@examples(4)
@given(hangs=st.lists(st.booleans(), min_size=1, max_size=5), by_grace=st.booleans())
@example(hangs=[False, True, True], by_grace=True)
def test_closing_rule_5_what_hangs_starves_nobody_in_real_time(hangs: list[bool], by_grace: bool, backend: Any) -> None:
    """With a real clock: those that hang are named, are forced, and all others end."""
    ended: list[str] = []
    forced: list[str] = []
    expected = [name for name, hang in zip(NAMES, hangs, strict=False) if hang][::-1]

    async def close(name: str, *, hang: bool) -> None:
        if hang:
            await anyio.sleep_forever()
        ended.append(name)

    async def main() -> ResourceCleanupError | None:
        scope = Scope(grace=0.03 if by_grace else None)
        for name, hang in zip(NAMES, hangs, strict=False):
            scope.add(
                name,
                lambda name=name, hang=hang: close(name, hang=hang),
                name=name,
                timeout=0.005 if hang else None,
                force=lambda name=name: forced.append(name),
            )
        try:
            await scope.aclose()
        except ResourceCleanupError as error:
            return error
        return None

    error = anyio.run(main, backend=backend[0], backend_options=backend[1])
    assert [one.name for one in failed(error)] == forced == expected
    assert sorted([*ended, *forced]) == sorted(itertools.islice(NAMES, len(hangs)))
