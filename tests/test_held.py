"""What a scope holds, against a model that is a plain list."""

from __future__ import annotations

import gc
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from rescope import Resource, Scope
from rescope._closing import CLOSED
from rescope._held import hold


class Value:
    """Equal to every other, so that only identity tells them apart, and of no use in a set."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value)


# Small integers and texts are the same object wherever they are written; `None` has no place of its own.
VALUES: list[Any] = [Value(), Value(), None, 0, 1, True, "", (), []]
values = st.sampled_from(VALUES)


def close() -> None:
    """Close nothing."""


def latest(model: list[Resource[Any]], value: object) -> Resource[Any] | None:
    """Find the latest handle of a value, the slow way; `None` finds nothing."""
    if value is None:
        return None
    return next((handle for handle in reversed(model) if handle.value is value), None)


class HeldAgainstAList(RuleBasedStateMachine):
    """`Held` keeps, finds, and lets go as a list would."""

    handles: Bundle[Resource[Any]] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.scope = Scope()
        self.held = hold(self.scope)
        self.model: list[Resource[Any]] = []

    @rule(target=handles, value=values)
    def keep(self, value: object) -> Resource[Any]:
        """Hold one more, of a value held already or not."""
        handle = Resource(value, close)
        self.held.keep(handle)
        self.model.append(handle)
        return handle

    @rule(handle=handles)
    def leave(self, handle: Resource[Any]) -> None:
        """Let any one go that has closed, first or last."""
        if handle in self.model:
            handle._state = CLOSED
            self.held.leave(handle)
            self.model.remove(handle)

    @rule(target=handles, handle=consumes(handles))
    def keep_again(self, handle: Resource[Any]) -> Resource[Any]:
        """Let one go that stays open, and hold it again: it is the last now."""
        if handle in self.model:
            self.held.take_out(handle)
            self.model.remove(handle)
            self.held.keep(handle)
            self.model.append(handle)
        return handle

    @precondition(lambda self: self.model)
    @rule()
    def hand_over(self) -> None:
        """Let another scope hold all of it."""
        other = Scope()
        heir = self.held.hand_over(other)
        assert (self.held.handles(), self.held.find(self.model[-1].value)) == ([], None)
        self.scope, self.held = other, heir

    @rule(value=values)
    def find(self, value: object) -> None:
        """Find the latest of a value."""
        assert self.held.find(value) is latest(self.model, value)

    @rule()
    def find_a_stranger(self) -> None:
        """A value that is equal to one that is held is another one."""
        assert self.held.find(Value()) is None

    @invariant()
    def same_order(self) -> None:
        """What is held stands in order of registration."""
        assert self.held.handles() == self.model

    @invariant()
    def same_size(self) -> None:
        """There are as many, and no more places than a few beyond twice as many."""
        size = len(self.held.places) - self.held.gone
        assert (size, bool(self.held.places), len(self.held.places) <= 2 * size + 32) == (
            len(self.model),
            bool(self.model),
            True,
        )

    def teardown(self) -> None:
        """Whatever was done, letting all go leaves nothing, not even a note of values that were held twice."""
        for handle in self.model:
            handle._state = CLOSED
            self.held.leave(handle)
        assert (self.held.places, self.held.values or {}) == ([], {})


class ScopeAgainstLists(RuleBasedStateMachine):
    """Two scopes hold, detach, hand over and look up as two lists would."""

    handles: Bundle[Resource[Any]] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.scopes = [Scope("a"), Scope("b")]
        self.models: list[list[Resource[Any]]] = [[], []]

    @initialize(target=handles)
    def first(self) -> Resource[Any]:
        """Begin with one of no value."""
        return self.add(None, 0)

    @rule(target=handles, value=values, which=st.booleans())
    def add_one(self, value: object, which: bool) -> Resource[Any]:
        """Register a value, held already or not."""
        return self.add(value, int(which))

    def add(self, value: object, which: int) -> Resource[Any]:
        """Register with both the scope and its model."""
        assert self.scopes[which].add(value, close) is value
        handle = self.scopes[which].resources[-1]
        self.models[which].append(handle)
        return handle

    @rule(value=values, which=st.booleans())
    def detach_a_value(self, value: object, which: bool) -> None:
        """Detach the latest of a value; what is not held is a `KeyError`."""
        self.detach(value, latest(self.models[which], value), int(which))

    @rule(handle=handles, which=st.booleans())
    def detach_a_handle(self, handle: Resource[Any], which: bool) -> None:
        """Detach a handle, first or last; what is not held, or by the other one, is a `KeyError`."""
        self.detach(handle, handle if handle in self.models[which] else None, int(which))

    def detach(self, x: object, expected: Resource[Any] | None, which: int) -> None:
        """Detach from both the scope and its model."""
        try:
            found = self.scopes[which].detach(x)
        except KeyError:
            found = None
        assert found is expected
        if expected is not None:
            assert expected.state == "detached"
            self.models[which].remove(expected)

    @rule(handle=handles, which=st.booleans())
    def add_a_handle(self, handle: Resource[Any], which: bool) -> None:
        """Give a handle to a scope; one that is held, by whichever, is a `ValueError`."""
        try:
            self.scopes[which].add(handle)
        except ValueError:
            assert handle in self.models[0] + self.models[1]
        else:
            assert handle not in self.models[0] + self.models[1]
            self.models[which].append(handle)

    @rule(which=st.booleans())
    def move(self, which: bool) -> None:
        """Hand all over to a new scope, which goes on in the old one's place."""
        old = self.scopes[which]
        self.scopes[which] = old.move()
        assert (old.size, old.resources) == (0, ())

    @rule(value=values, which=st.booleans())
    def look_for_a_value(self, value: object, which: bool) -> None:
        """`has` and `in` tell whether any registration has that value."""
        expected = latest(self.models[which], value) is not None
        assert (self.scopes[which].has(value), value in self.scopes[which]) == (expected, expected)

    @rule(handle=handles)
    def look_for_a_handle(self, handle: Resource[Any]) -> None:
        """`has` tells which scope holds a handle."""
        assert [scope.has(handle) for scope in self.scopes] == [handle in model for model in self.models]

    @invariant()
    def same_order(self) -> None:
        """Handles stand in order of registration, and are counted."""
        assert [list(scope.resources) for scope in self.scopes] == self.models
        assert [scope.size for scope in self.scopes] == [len(model) for model in self.models]

    def teardown(self) -> None:
        """Take everything back, so that nothing open is dropped."""
        for scope in self.scopes:
            for handle in scope.resources:
                scope.detach(handle)


TestHeldAgainstAList = HeldAgainstAList.TestCase
TestHeldAgainstAList.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestScopeAgainstLists = ScopeAgainstLists.TestCase
TestScopeAgainstLists.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


async def test_closes_a_value_held_twice_once_for_each_registration() -> None:
    """Each registration has its own closer, and its own place in the order."""
    value = object()
    log: list[int] = []

    async with Scope() as scope:
        for number in range(4):
            scope.add(value, lambda number=number: log.append(number))  # type: ignore[misc]

    assert log == [3, 2, 1, 0]


async def test_a_value_is_kept_alive_while_it_is_held() -> None:
    """No other object can take the identity of a value that is held."""
    async with Scope() as scope:
        scope.add(Value(), close)
        gc.collect()

        assert Value() not in scope


async def test_forgetting_one_of_many_registrations_of_a_value_is_no_search() -> None:
    """`release` takes as long among many registrations of one value as among few."""
    compared: list[object] = []

    class Handle(Resource[int]):
        __slots__ = ()
        __hash__ = Resource.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return self is other

    async with Scope() as scope:
        handles = [Handle(1, close) for _ in range(100)]
        for handle in handles:
            scope.add(handle)
        for handle in reversed(handles):
            await scope.release(handle)

    assert compared == []
