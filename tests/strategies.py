"""Random programs: what a body does with a scope, as plain data.

A program is a tree of frozen records that can be read, shrunk, and pasted into an `@example`. `tests/programs.py` runs
one on a real scope; `tests/plain_list.py` says what must come of it, and knows nothing of the library.

Twenty times as many, each law for a minute or more, so that the dump of what hangs is turned off:
`HYPOTHESIS_PROFILE=thorough pytest -o faulthandler_timeout=0 tests/test_laws*.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings

settings.register_profile(
    "laws",
    deadline=None,
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("thorough", settings.get_profile("laws"), derandomize=False)

_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "laws")
_FACTOR = 20 if _PROFILE == "thorough" else 1


def examples(count: int) -> settings:
    """Give the settings of a law that shows itself in about that many programs."""
    return settings(settings.get_profile(_PROFILE if _PROFILE == "thorough" else "laws"), max_examples=count * _FACTOR)


class Shown:
    """Shows what differs from the default, so that a program can be read, and pasted."""

    def __repr__(self) -> str:
        told = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
class Plain(Shown):
    """A closer, how it is registered, and what it does: first `does`, then it suspends `steps` times, then `end`."""

    name: str = ""
    how: str = "defer"
    style: str = "sync"
    """`lazy` is a plain function that gives a coroutine."""
    steps: int = 0
    does: str = ""
    target: Any = None
    end: str = "return"


@dataclass(frozen=True, repr=False)
class Managed(Shown):
    """A manager that is entered."""

    name: str = ""
    kind: str = "async"
    steps: int = 0
    act: str = "pass"


@dataclass(frozen=True, repr=False)
class Hosted(Shown):
    """A manager that is hosted."""

    name: str = ""
    steps: int = 0
    act: str = "pass"


@dataclass(frozen=True, repr=False)
class HostAll(Shown):
    """Several that are hosted at once."""

    hosts: tuple[Hosted, ...] = ()


@dataclass(frozen=True, repr=False)
class Child(Shown):
    """A scope inside the scope, and what the body does with it at once."""

    name: str = ""
    items: tuple[Any, ...] = ()
    concurrent: bool = False
    grace: float | None = None


@dataclass(frozen=True, repr=False)
class Early(Shown):
    """Something done in the body to what is held: closed, given back, lost."""

    how: str = "release"
    target: Any = 0


Item: TypeAlias = Plain | Managed | Hosted | HostAll | Child | Early


@dataclass(frozen=True, repr=False)
class Program(Shown):
    """A body and its scope."""

    items: tuple[Item, ...] = ()
    end: str = "return"
    form: str = "with"
    concurrent: bool = False
    grace: float | None = None
    told: bool = False
    cancel: str = "scope"
    """How it is cancelled where it is: by a cancel `scope`, or by `task.cancel()`, which trio has not."""
    times: int = 1
    move: int | None = None
    """After how many items all is moved to another scope."""

    def on(self, backend: str) -> Program:
        """Give the same program as that backend can run it."""
        return replace(self, cancel="scope") if backend == "trio" else self


HOWS = (
    "defer",
    "defer args",
    "add",
    "add limited",
    "add resource",
    "create",
    "own close",
    "own aclose",
    "acquire",
    "acquire async",
    "acquire shield",
    "acquire nothing",
    "on_error",
    "on_success",
    "on_exit",
)
ENDS = (
    "return",
    "return",
    "return",
    "raise",
    "raise secret",
    "err",
    "err value",
    "cancelled",
    "interrupt",
    "exit",
    "stop",
)
CLEAN = ("return",)
URGENT = {"interrupt", "exit", "stop", "cancel"}
DOES = ("", "", "", "defer", "acquire", "host", "child", "enter", "close", "aclose", "aclose root", "aclose task")
ACTS = ("pass", "pass", "suppress", "raise", "reraise", "wrap", "interrupt", "refuse")
"""`refuse` is a manager that fails to enter."""
HOST_ACTS = ACTS
EARLY = ("release", "value", "aclose", "detach", "readd", "die")
BODIES = ("return", "return", "ok", "err", "raise", "raise", "raise secret", "stop", "interrupt", "cancel")
FORMS = ("with", "with_scope", "scoped", "aclose")


@dataclass(frozen=True)
class Focus:
    """What a law wants to be among its programs."""

    hows: tuple[str, ...] = HOWS
    styles: tuple[str, ...] = ("sync", "async", "lazy")
    ends: tuple[str, ...] = ENDS
    does: tuple[str, ...] = DOES
    acts: tuple[str, ...] = ACTS
    host_acts: tuple[str, ...] = HOST_ACTS
    early: tuple[str, ...] = EARLY
    bodies: tuple[str, ...] = BODIES
    forms: tuple[str, ...] = FORMS
    concurrent: bool = True
    children: bool = True
    least: int = 0
    most: int = 6

    def plain(self) -> st.SearchStrategy[Item]:
        return st.builds(
            Plain,
            how=st.sampled_from(self.hows),
            style=st.sampled_from(self.styles),
            steps=st.integers(0, 2),
            does=st.sampled_from(self.does),
            target=st.integers(0, 5),
            end=st.sampled_from(self.ends),
        )

    def managed(self) -> st.SearchStrategy[Item]:
        return st.builds(
            Managed,
            kind=st.sampled_from(["sync", "async", "generator", "async generator"]),
            steps=st.integers(0, 1),
            act=st.sampled_from(self.acts),
        )

    def hosted(self) -> st.SearchStrategy[Hosted]:
        return st.builds(Hosted, steps=st.integers(0, 1), act=st.sampled_from(self.host_acts))

    def child(self, depth: int) -> st.SearchStrategy[Item]:
        return st.builds(
            Child,
            items=self.items(depth - 1, 0, 3),
            concurrent=st.sampled_from([False, False, True]) if self.concurrent else st.just(value=False),
            grace=st.sampled_from([None, None, 1000.0]),
        )

    def items(self, depth: int, least: int, most: int) -> st.SearchStrategy[tuple[Item, ...]]:
        kinds = [self.plain()] * 3
        if self.acts:
            kinds += [self.managed()] * 2
        if self.host_acts:
            kinds.append(self.hosted())
            kinds.append(st.builds(HostAll, hosts=st.lists(self.hosted(), min_size=1, max_size=2).map(tuple)))
        if self.children and depth:
            kinds.append(self.child(depth))
        if self.early:
            kinds.append(st.builds(Early, how=st.sampled_from(self.early), target=st.integers(0, 5)))
        return st.lists(st.one_of(kinds), min_size=least, max_size=most).map(tuple)

    def programs(self) -> st.SearchStrategy[Program]:
        """Give programs of that kind."""
        return st.builds(
            Program,
            items=self.items(2, self.least, self.most),
            end=st.sampled_from(self.bodies),
            form=st.sampled_from(self.forms),
            concurrent=st.sampled_from([False, False, False, True]) if self.concurrent else st.just(value=False),
            grace=st.sampled_from([None, None, 1000.0]),
            told=st.booleans(),
            cancel=st.sampled_from(["scope", "task"]),
            times=st.integers(1, 3),
            move=st.sampled_from([None, None, None, 0, 2, 4]),
        ).map(sensible)


def programs(**focus: Any) -> st.SearchStrategy[Program]:
    """Give random programs, of all kinds or of those that are asked for."""
    return Focus(**focus).programs()


def nothing_else(**focus: Any) -> st.SearchStrategy[Program]:
    """Give random programs with closers alone, and of all that can happen, only what is asked for."""
    bare: dict[str, Any] = {
        "ends": CLEAN,
        "does": ("",),
        "acts": (),
        "host_acts": (),
        "early": (),
        "bodies": ("return",),
        "forms": ("with",),
        "concurrent": False,
        "children": False,
    }
    return Focus(**{**bare, **focus}).programs()


def sensible(program: Program) -> Program:
    """Give names to all, and leave out what is no use, or where the rules leave open what comes of it."""
    return _Sense(program).program()


class _Sense:
    def __init__(self, program: Program) -> None:
        self.raw = program
        self.cancels = program.end == "cancel" or "cancel" in _does(program.items)
        self.overlaps = program.concurrent or any(child.concurrent for child in _children(program.items))
        self.urgent = 0
        self.count = 0

    def program(self) -> Program:
        raw = self.raw
        by_hand = raw.form == "aclose"
        end = raw.end
        if by_hand and end in ("ok", "err", "cancel"):
            end = "return"
        move = raw.move if raw.form == "with" or by_hand else None
        return replace(raw, items=self.items(raw.items, concurrent=raw.concurrent), end=end, move=move)

    def items(self, raw: tuple[Item, ...], *, concurrent: bool) -> tuple[Item, ...]:
        done: list[Item] = []
        for item in raw:
            sense = self.item(item, done, concurrent=concurrent)
            if sense is not None:
                done.append(sense)
        return tuple(done)

    def name(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def item(self, item: Item, before: list[Item], *, concurrent: bool) -> Item | None:  # noqa: PLR0911
        match item:
            case Plain():
                return self.plain(item, before, concurrent=concurrent)
            case Managed():
                # A manager that is tied to the task can't be exited beside others.
                return None if concurrent else replace(item, name=self.name("m"), act=self.once(item.act))
            case Hosted():
                return self.hosted(item)
            case HostAll():
                # All or none: what becomes of the others where one refuses has a law of its own.
                hosts = (replace(host, act="pass") if host.act == "refuse" else host for host in item.hosts)
                return replace(item, hosts=tuple(self.hosted(host) for host in hosts))
            case Child():
                if concurrent and self.cancels:  # whether its task waits depends on the version of Python
                    return None
                name = self.name("s")
                return replace(item, name=name, items=self.items(item.items, concurrent=concurrent or item.concurrent))
            case Early():
                target = _pick(item.target, [one for one in _held(before) if is_simple(one)])
                return None if target is None else replace(item, target=target)

    def hosted(self, item: Hosted) -> Hosted:
        return replace(item, name=self.name("h"), act=self.once(item.act))

    def plain(self, item: Plain, before: list[Item], *, concurrent: bool) -> Plain:
        style, steps, does, end = item.style, item.steps, item.does, item.end
        target: str | None = None
        if does == "cancel" and concurrent:
            style = "async"
        if style == "sync":
            steps = 0
            does = does if does in ("", "cancel") else "defer"
        elif self.cancels:
            steps = max(1, steps)  # else it depends on the version of Python whether anybody waits for it
        if does == "close":
            target = _pick(item.target, [one for one in _held(before) if is_simple(one) and not _is_entered(one)])
            does = does if target else ""
        if does == "cancel" and self.once("cancel") != "cancel":
            does = ""
        if end == "cancelled" and self.cancels:
            end = "raise"  # somebody asked, so it is no failure
        return Plain(self.name("c"), item.how, style, steps, does, target, self.once(end))

    def once(self, act: str) -> str:
        """Where things overlap only one may be urgent: which of several is the first would be chance."""
        if act not in URGENT or not self.overlaps:
            return act
        if self.cancels and act != "cancel":
            return "raise"
        self.urgent += 1
        return act if self.urgent == 1 else "raise"


def _pick(number: Any, among: list[Any]) -> str | None:
    return among[number % len(among)].name if among else None


def _held(items: Any) -> list[Any]:
    """Give all that one can point at, of what some items register."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, HostAll):
            found += item.hosts
        elif not isinstance(item, Early) and not refuses(item):
            found.append(item)
    return found


def refuses(item: Any) -> bool:
    """Tell whether nothing is registered, as acquiring or entering fails."""
    return "refuse" in getattr(item, "act", "") or "nothing" in getattr(item, "how", "")


def is_simple(item: Any) -> bool:
    """Tell whether an item may be closed out of turn, or given away, with nothing else to it."""
    if isinstance(item, Child):
        return all(is_simple(one) for one in _held(item.items))
    return not isinstance(item, Plain) or item.does in ("", "close")


def _is_entered(item: Any) -> bool:
    return isinstance(item, Managed) or (isinstance(item, Child) and any(_is_entered(one) for one in item.items))


def _children(items: Any) -> list[Child]:
    found: list[Child] = []
    for item in items:
        if isinstance(item, Child):
            found += [item, *_children(item.items)]
    return found


def _does(items: Any) -> set[str]:
    return {one.does for one in walk(items) if isinstance(one, Plain)}


def walk(items: Any) -> list[Any]:
    """Give all items of a tree."""
    found: list[Any] = []
    for item in items:
        found.append(item)
        if isinstance(item, Child):
            found += walk(item.items)
        elif isinstance(item, HostAll):
            found += item.hosts
    return found
