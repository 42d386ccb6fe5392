"""The manual form, as a state machine beside plain lists: open, register, look, hand over, close, in any order.

Every step runs on a real loop, kept between the steps, in a task of its own: so all of it also happens across tasks.
(What is `enter`ed belongs to one task, and has its laws elsewhere.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conftest import BACKENDS
from labels import Secret, told_result
from programs import Place, Runner
from rescope import Resource, Scope
from strategies import HOWS, Child, HostAll, Hosted, Plain, Program, examples

pytestmark = pytest.mark.long

everywhere = pytest.mark.parametrize("backend", BACKENDS)
numbers = st.integers(0, 7)


class ManualForm(RuleBasedStateMachine):
    """A root scope, its children, and what was moved from them; beside each stands a list of names."""

    backend: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        name, options = self.backend
        self.portal = self.stack.enter_context(start_blocking_portal(name, options))
        self.scopes: dict[str, Scope] = {}
        self.lists: dict[str, list[str]] = {}
        self.concurrent: set[str] = set()
        self.items: dict[str, Any] = {}
        self.states: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.count = 0

    # Help

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.portal.call(fn, *args)

    def named(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def pick(self, number: int) -> str:
        """Choose an open scope."""
        return list(self.lists)[number % len(self.lists)]

    def pick_held(self, number: int) -> tuple[str, str] | None:
        """Choose something that is held, and tell by which scope."""
        held = [(scope, name) for scope, names in self.lists.items() for name in names]
        return held[number % len(held)] if held else None

    def keep(self, scope: str, name: str, item: Any) -> None:
        self.lists[scope].append(name)
        self.items[name], self.states[name] = item, "open"
        self.values[name] = self.runner.handles[name].value

    def begun(self) -> list[str]:
        """Give what has begun to close since the last look."""
        journal = self.runner.report.journal
        names = [entry[1] for entry in journal if entry[0] == "begin"]
        journal.clear()
        return names

    def close_model(self, name: str) -> tuple[list[str], Any]:
        """Close one in the lists, and give what closes, in order, and how it fails."""
        item = self.items[name]
        self.states[name] = "closed"
        if isinstance(item, Child):
            return self.close_list(name)
        if isinstance(item, Hosted):
            return [name], ()
        if item.how == "on_error":
            return [], ()
        return [name], ((name, name),) if item.end == "raise" else ()

    def close_list(self, scope: str) -> tuple[list[str], Any]:
        """Close a whole scope in the lists."""
        order: list[str] = []
        failures: list[Any] = []
        for name in reversed(self.lists.pop(scope, [])):
            began, failed = self.close_model(name)
            order += began
            failures += [(name, failed)] if failed and isinstance(self.items[name], Child) else failed
        return order, tuple(failures)

    def check(self, closed: tuple[list[str], Any], raised: Any) -> None:
        """Compare what was closed and raised with the lists; what closes at once has no order."""
        order, failures = closed
        began, raised = self.begun(), raised or ()
        if self.concurrent:
            order, began, failures, raised = sorted(order), sorted(began), flat(failures), flat(raised)
        assert (began, raised) == (order, failures)

    # Registering

    @initialize(concurrent=st.booleans(), grace=st.sampled_from([None, 100.0]), told=st.booleans())
    def open(self, concurrent: bool, grace: float | None, told: bool) -> None:
        async def make() -> Runner:
            return Runner(Program())

        self.runner: Runner = self.call(make)
        on_event = self.runner.report.events.append if told else None
        self.scopes["root"] = Scope("root", concurrent=concurrent, grace=grace, on_event=on_event)
        self.lists["root"] = []
        if concurrent:
            self.concurrent.add("root")

    @precondition(lambda self: self.lists)
    @rule(
        where=numbers,
        how=st.sampled_from([how for how in HOWS if how != "acquire nothing"]),
        style=st.sampled_from(["sync", "async", "lazy"]),
        end=st.sampled_from(["return", "return", "raise"]),
    )
    def register(self, where: int, how: str, style: str, end: str) -> None:
        scope = self.pick(where)
        item = Plain(self.named("c"), how, style, end=end)
        self.call(self.runner.do_one, Place(self.scopes[scope]), item)
        self.keep(scope, item.name, item)

    @precondition(lambda self: self.lists)
    @rule(where=numbers, count=st.integers(1, 3))
    def host(self, where: int, count: int) -> None:
        scope = self.pick(where)
        hosts = tuple(Hosted(self.named("h"), steps=1) for _ in range(count))
        self.call(self.runner.do_one, Place(self.scopes[scope]), hosts[0] if count == 1 else HostAll(hosts))
        for item in hosts:
            self.keep(scope, item.name, item)

    @precondition(lambda self: self.lists)
    @rule(where=numbers, concurrent=st.booleans())
    def child(self, where: int, concurrent: bool) -> None:
        scope = self.pick(where)
        item = Child(self.named("s"), concurrent=concurrent)
        self.call(self.runner.do_one, Place(self.scopes[scope]), item)
        self.keep(scope, item.name, item)
        self.scopes[item.name], self.lists[item.name] = self.values[item.name], []
        if concurrent:
            self.concurrent.add(item.name)

    @rule(which=numbers)
    def register_a_value_again(self, which: int) -> None:
        """Of a value registered twice, the latest is found."""
        picked = self.pick_held(which)
        if picked is None or not isinstance(self.values[picked[1]], Secret):
            return
        scope, first = picked
        item = Plain(self.named("c"), "add")

        async def add() -> None:
            place = Place(self.scopes[scope])
            value, close = self.values[first], self.runner.closer(place, item, None)
            place.scope.add(value, close, name=item.name)
            self.runner.keep(item.name, place.scope.resources[-1])

        self.call(add)
        self.keep(scope, item.name, item)

    # Handing over and closing

    @rule(which=numbers, how=st.sampled_from(["release", "value", "aclose"]))
    def close_early(self, which: int, how: str) -> None:
        picked = self.pick_held(which)
        if picked is None:
            return
        scope, name = picked
        if how == "value" and self.values[name] is not None:
            name = [one for one in self.lists[scope] if self.values[one] is self.values[name]][-1]
        self.lists[scope].remove(name)
        raised = self.call(self.runner.early, self.scopes[scope], how, self.runner.handles[name])
        self.check(self.close_model(name), raised)

    @rule(which=numbers)
    def close_again(self, which: int) -> None:
        """A handle that is closed: nothing. By its value it is not held any more."""
        closed = [name for name, state in self.states.items() if state == "closed"]
        if not closed:
            return
        handle = self.runner.handles[closed[which % len(closed)]]
        raised = [self.call(self.runner.early, self.scopes["root"], how, handle) for how in ("release", "aclose")]
        assert (raised, self.begun()) == ([None, None], [])

    @precondition(lambda self: self.lists)
    @rule(which=numbers, where=numbers, again=st.booleans())
    def detach(self, which: int, where: int, again: bool) -> None:
        """Take one off, and add it elsewhere, or close it."""
        picked = self.pick_held(which)
        if picked is None:
            return
        scope, name = picked
        target = self.pick(where)
        handle: Resource[Any] = self.runner.handles[name]

        async def detach() -> tuple[str, str]:
            given = self.scopes[scope].detach(handle)
            return ("same" if given is handle else "other"), given.state

        assert self.call(detach) == ("same", "detached")
        assert self.call(self.runner.early, self.scopes[scope], "detach", handle) == "KeyError"
        self.lists[scope].remove(name)
        within = self.within(name)
        if again and target not in within:

            async def add() -> None:
                self.scopes[target].add(handle)

            self.call(add)
            self.lists[target].append(name)
        else:
            self.check(self.close_model(name), self.call(self.runner.attempt, handle.aclose))

    def within(self, name: str) -> set[str]:
        """Give a child and all scopes in it: it can't be added to itself."""
        found = {name}
        for inner in self.lists.get(name, []):
            found |= self.within(inner)
        return found

    @precondition(lambda self: self.lists)
    @rule(where=numbers)
    def move(self, where: int) -> None:
        """All goes to a new scope; the old one stays where it was, usable and empty."""
        name = self.pick(where)

        async def move() -> Scope:
            return self.scopes[name].move()

        moved, new = self.call(move), self.named("moved")
        self.scopes[new], self.lists[new], self.lists[name] = moved, self.lists[name], []
        if name in self.concurrent:
            self.concurrent.add(new)

    @precondition(lambda self: self.lists)
    @rule(where=numbers, times=st.integers(1, 3))
    def close_scope(self, where: int, times: int) -> None:
        """Close one, at once from several tasks."""
        name = self.pick(where)
        raised: list[Any] = []

        async def close() -> None:
            raised.append(await self.runner.attempt(self.scopes[name].aclose))

        async def main() -> None:
            async with anyio.create_task_group() as tg:
                for _ in range(times):
                    tg.start_soon(close)

        for names in self.lists.values():
            if name in names:
                names.remove(name)
        if name in self.states:
            self.states[name] = "closed"
        self.call(main)
        told = [one for one in raised if one is not None]
        assert len(told) <= 1
        self.check(self.close_list(name), told[0] if told else None)

    # Looking

    @rule(which=numbers)
    def refused_when_closed(self, which: int) -> None:
        closed = [scope for name, scope in self.scopes.items() if name not in self.lists]
        if not closed:
            return
        scope = closed[which % len(closed)]

        async def move() -> None:
            scope.move()

        refused = {self.call(self.runner.attempt, one) for one in (move, lambda: scope.acquire(Secret, print))}
        assert refused == {"ScopeClosedError"}

    @invariant()
    def looks_like_the_lists(self) -> None:
        for name, scope in self.scopes.items():
            names = self.lists.get(name, [])
            handles = [self.runner.handles[one] for one in names]
            assert [*scope.resources] == handles
            assert (scope.size, scope.state) == (len(names), "open" if name in self.lists else "closed")
            assert all(scope.has(handle) and handle in scope for handle in handles)
            assert all(scope.has(self.values[one]) == (self.values[one] is not None) for one in names)
            assert scope
            others = [one for one in self.states if one not in names]
            mine = [self.values[one] for one in names]
            assert not any(scope.has(self.runner.handles[one]) for one in others)
            assert not any(
                scope.has(self.values[one]) for one in others if not any(self.values[one] is x for x in mine)
            )
            outcome = None if scope.outcome is None else told_result(scope.outcome)
            assert outcome == (None if name in self.lists else ("Ok", None))

    @invariant()
    def handles_are_as_the_lists_say(self) -> None:
        assert {name: self.runner.handles[name].state for name in self.states} == self.states

    def teardown(self) -> None:
        try:
            while self.lists:
                self.close_scope(0, 1)
                self.looks_like_the_lists()
            self.handles_are_as_the_lists_say()
        finally:
            self.stack.close()


def flat(failures: Any) -> list[str]:
    """Give the names of what failed, in no order."""
    found: list[str] = []
    for name, failed in failures:
        found += [name] if isinstance(failed, str) else flat(failed)
    return sorted(found)


@everywhere
def test_the_manual_form_is_a_list(backend: Any) -> None:
    """Whatever is done by hand, in whatever order and task, a scope is to the user what a list of names says."""
    machine = type("OnBackend", (ManualForm,), {"backend": backend})
    run_state_machine_as_test(machine, settings=settings(examples(40), stateful_step_count=40))
    assert issubclass(machine, ManualForm)
