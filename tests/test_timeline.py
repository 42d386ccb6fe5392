"""The timeline of a scope: what it collects, and what its drawings say."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
import threading
import xml.etree.ElementTree as ET
from collections import defaultdict
from contextlib import asynccontextmanager
from io import TextIOWrapper
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import given

from rescope import CloseFailure, ResourceCleanupError, Scope
from rescope._timeline.axis import duration, ticks
from rescope._timeline.columns import clean, fit, squeeze, width_of
from rescope._timeline.spans import Span
from rescope._timeline.tree import spans_of
from rescope.events import EventKind, ScopeEvent, ScopePath, Timeline, tee
from rescope.exceptions import cleanup_error
from running import every_backend, run_example, run_python
from strategies import examples

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

SVG = "{http://www.w3.org/2000/svg}"
KINDS: list[EventKind] = [
    "opened",
    "acquired",
    "closing",
    "closed",
    "failed",
    "timed_out",
    "forced",
    "died",
    "scope_closed",
]

Row = tuple[Any, ...]


def events_of(*rows: Row) -> list[ScopeEvent]:
    """Make events of `(seconds, kind, "scope/child", resource, elapsed, error)`, the last three as needed."""
    events = []
    for seconds, kind, path, *rest in rows:
        resource, elapsed, error = (*rest, None, None, None)[:3]
        names = tuple(path.split("/")) if isinstance(path, str) else path
        events.append(ScopeEvent(kind, names, resource, 1e9 + seconds, elapsed, error))
    return events


def timeline_of(*rows: Row) -> Timeline:
    timeline = Timeline()
    for event in events_of(*rows):
        timeline(event)
    return timeline


def tree_of(*rows: Row) -> list[Any]:
    """Give the names of the tree of spans, each with those below it, if there are any."""
    return [_named(span) for span in spans_of(events_of(*rows))]


def _named(span: Span) -> Any:
    return (span.name, [_named(child) for child in span.children]) if span.children else span.name


def children_of(*rows: Row) -> list[Span]:
    """Give the spans of what the only outermost scope held."""
    [root] = spans_of(events_of(*rows))
    return root.children


def lived(span: Span) -> tuple[float | None, ...]:
    """Give when it was acquired, began to close and was closed, in seconds."""
    return tuple(time and round(time - 1e9, 3) for time in (span.acquired, span.closing, span.closed))


class Database:
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


def fail() -> None:
    raise ConnectionError("no answer")


JOB: list[Row] = [
    (0, "opened", "job"),
    (2, "acquired", "job", "file", 1),
    (7, "closing", "job", "file"),
    (9, "closed", "job", "file", 2),
    (10, "scope_closed", "job"),
]


# Collecting


async def test_a_timeline_is_an_on_event() -> None:
    """It is given to a scope as it is, and keeps what it is told, in order."""
    timeline = Timeline()

    async with Scope("service", on_event=timeline) as scope:
        scope.add(Database())

    assert [event.kind for event in timeline.events] == ["opened", "acquired", "closing", "closed", "scope_closed"]
    assert repr(timeline) == "<Timeline of 5 events>"


def test_a_timeline_with_a_limit_keeps_the_latest_and_says_what_it_dropped() -> None:
    """With a `limit`, the oldest events go, and every drawing says how many."""
    timeline = Timeline(limit=2)
    for event in events_of(*JOB):
        timeline(event)

    assert [event.kind for event in timeline.events] == ["closed", "scope_closed"]
    assert timeline.dropped == 3
    assert repr(timeline) == "<Timeline of 2 events, 3 dropped>"
    assert "3 earlier events dropped" in timeline.text(80)
    assert "3 earlier events dropped" in timeline.svg()
    assert json.loads(timeline.chrome_trace())["otherData"]["dropped_events"] == 3


def test_a_cleared_timeline_is_empty() -> None:
    """`clear` forgets the events, and how many were dropped."""
    timeline = Timeline(limit=1)
    for event in events_of(*JOB):
        timeline(event)
    timeline.clear()

    assert (timeline.events, timeline.dropped) == ((), 0)


def test_several_threads_may_tell_one_timeline() -> None:
    """No event is lost, and the count of the dropped ones is right."""
    timeline = Timeline(limit=1000)
    ready = threading.Barrier(4)
    [event] = events_of((0, "opened", "job"))

    def tell() -> None:
        ready.wait()
        for _ in range(1000):
            timeline(event)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(timeline.events), timeline.dropped) == (1000, 3000)


def test_an_event_may_come_while_another_is_taken_in() -> None:
    """A callback that runs within, as the garbage collector's do, in the thread that tells, doesn't wait for itself."""
    timeline = Timeline()
    event, inner = events_of((0, "opened", "job"), (1, "scope_closed", "job"))
    with timeline._lock:
        timeline(inner)
    timeline(event)

    assert timeline.events == (inner, event)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "`limit` must be at least 1, got 0"),
        ("9", TypeError, "`limit` must be a whole number, not a str"),
        (True, TypeError, "`limit` must be a whole number, not a bool"),
    ],
)
def test_a_limit_that_is_none_is_refused(limit: Any, error: type[Exception], message: str) -> None:
    """A `limit` that is no whole number above 0 is refused at once."""
    with pytest.raises(error, match=f"^{message}$"):
        Timeline(limit)


def test_what_is_no_event_is_refused() -> None:
    """A timeline takes in events, and says so."""
    with pytest.raises(TypeError, match=r"^a timeline takes in a ScopeEvent, not a tuple$"):
        Timeline()(("opened", ("job",)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("draw", "least"), [(Timeline.text, 1), (Timeline.svg, 320)])
def test_a_width_that_nothing_fits_in_is_refused(draw: Callable[[Timeline, int], str], least: int) -> None:
    """A drawing says how wide it must be at least."""
    with pytest.raises(ValueError, match=f"^`width` must be at least {least}, got {least - 1}$"):
        draw(Timeline(), least - 1)


def test_the_core_imports_no_drawing() -> None:
    """`import rescope` and making a timeline cost no import that only a drawing needs."""
    code = "import sys, rescope.events as e; e.Timeline(); print([m for m in sys.modules if '_timeline' in m])"
    done = run_python("-c", code)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# From events to spans


def test_a_child_scope_is_drawn_once() -> None:
    """A child is a resource of its parent and a scope of its own: that is one span, with what it holds below it."""
    rows = [
        (0, "opened", "service"),
        (1, "opened", "service/request"),
        (1, "acquired", "service", "request"),
        (2, "acquired", "service/request", "file"),
        (3, "closing", "service", "request"),
        (3, "closing", "service/request", "file"),
        (4, "closed", "service/request", "file", 1),
        (4, "scope_closed", "service/request"),
        (4, "closed", "service", "request", 1),
        (5, "scope_closed", "service"),
    ]

    assert tree_of(*rows) == [("service", [("request", ["file"])])]
    assert lived(children_of(*rows)[0]) == (1, 3, 4)


async def test_scopes_of_the_same_name_are_told_apart() -> None:
    """Children of one name that live at the same time each have what they hold, and their own end."""
    timeline = Timeline()
    async with Scope("service", on_event=timeline) as scope:
        first, second = scope.child("request"), scope.child("request")
        second.add(Database(), name="second")
        first.add(Database(), name="first")
        await first.aclose()
        await second.aclose()

    [root] = spans_of(timeline.events)
    assert [_named(child) for child in root.children] == [("request", ["first"]), ("request", ["second"])]
    ends = [span.closed or 0 for span in root.children]
    assert ends == sorted(ends)
    assert all(span.closed >= (span.children[0].closed or 0) for span in root.children if span.closed)


async def test_children_of_one_name_that_close_in_any_order_keep_their_own_end() -> None:
    """Which of several children of a name closes is told by the child itself, also where it holds nothing."""
    timeline = Timeline()
    async with Scope("service", on_event=timeline) as scope:
        first, second, _third = scope.child("request"), scope.child("request"), scope.child("request")
        await first.aclose()
        scope.add(Database(), name="between")
        await second.aclose()

    [root] = spans_of(timeline.events)
    one, two, three, between = root.children
    assert (one.closed or 0) <= (between.acquired or 0) <= (two.closed or 0) <= (three.closed or 0)
    assert {span.state for span in root.children} == {"closed"}


def test_a_child_of_several_that_closes_is_known_as_soon_as_it_tells() -> None:
    """While one of several children of a name closes, it is the one that closes what it holds."""
    root = ScopePath(("service",))
    paths = [ScopePath(("service", "request"), root) for _ in range(2)]
    rows: list[Row] = [(0, "opened", root)]
    for path in paths:
        rows += [(1, "opened", path), (1, "acquired", root, "request"), (2, "acquired", path, "file")]

    first, second = children_of(*rows, (3, "closing", root, "request"), (3, "closing", paths[0], "file"))
    assert (lived(first), lived(second)) == ((1, 3, None), (1, None, None))


def test_of_several_by_one_name_the_last_one_closes_first() -> None:
    """Names are paired as a scope closes: last in, first out."""
    first, second = children_of(
        (0, "opened", "job"),
        (1, "acquired", "job", "file"),
        (2, "acquired", "job", "file"),
        (3, "closing", "job", "file"),
        (4, "closed", "job", "file", 1),
        (5, "closing", "job", "file"),
        (6, "closed", "job", "file", 1),
    )

    assert (lived(first), lived(second)) == ((1, 5, 6), (2, 3, 4))


def test_of_several_that_close_at_once_the_time_tells_which_is_closed() -> None:
    """`closed` says how long closing took, and so which of those of one name it was; `failed` does too."""
    first, second, third = children_of(
        (0, "opened", "job"),
        *[(0, "acquired", "job", "file")] * 3,
        (1, "closing", "job", "file"),
        (2, "closing", "job", "file"),
        (3, "closing", "job", "file"),
        (5, "failed", "job", "file", 3, OSError("gone")),
        (5, "closed", "job", "file", 3),
        (6, "closed", "job", "file", 3),
        (7, "closed", "job", "file", 6),
    )

    assert [lived(span) for span in (first, second, third)] == [(0, 3, 6), (0, 2, 5), (0, 1, 7)]
    assert [len(span.troubles) for span in (first, second, third)] == [0, 1, 0]


def test_what_is_out_of_time_is_what_closes_for_longest() -> None:
    """`timed_out` and `forced` tell of the oldest of those that close, and `failed` of the one with the same error."""
    late, other = TimeoutError("late"), TimeoutError("later")
    third, second, first = children_of(
        (0, "opened", "job"),
        *[(0, "acquired", "job", "file")] * 3,
        *[(1, "closing", "job", "file")] * 3,
        (2, "timed_out", "job", "file", None, late),
        (2, "timed_out", "job", "file", None, other),
        (2, "forced", "job", "file"),
        (2, "failed", "job", "file", 1, other),
    )

    assert [[trouble.kind for trouble in span.troubles] for span in (first, second, third)] == [
        ["timed_out", "forced"],
        ["timed_out", "failed"],
        [],
    ]


async def test_what_was_detached_is_handed_over() -> None:
    """What a scope let go of without closing it ends there, and is said to live on."""
    timeline = Timeline()
    async with Scope("service", on_event=timeline) as scope:
        database = Database()
        scope.add(database, name="database")
        held = scope.resources[0]
        scope.detach(held)

    await database.aclose()
    assert "1 handed over" in timeline.text(80)
    assert "▹" in timeline.text(80)


async def test_a_scope_that_was_moved_goes_on() -> None:
    """A moved scope has the path of the one it comes from: they are one span, which ends with the last of them."""
    timeline = Timeline()
    async with Scope("service", on_event=timeline) as scope:
        scope.add(Database(), name="database")
        moved = scope.move()
    still = timeline.text(80)
    await moved.aclose()

    assert "1 still open" in still
    assert len(spans_of(timeline.events)) == 1
    assert "▸" not in timeline.text(80)
    assert "handed over" not in timeline.text(80)


async def test_a_child_that_was_moved_goes_on() -> None:
    """The end of a child whose resources were moved is not the end of its span."""
    timeline = Timeline()
    async with Scope("service", on_event=timeline) as scope:
        child = scope.child("request")
        child.add(Database(), name="database")
        moved = child.move()
        await child.aclose()
        [root] = spans_of(timeline.events)
        assert [span.state for span in root.children] == ["open"]
        await moved.aclose()

    [root] = spans_of(timeline.events)
    assert [(_named(span), span.state) for span in root.children] == [(("request", ["database"]), "closed")]


def test_a_path_that_opens_again_is_another_scope() -> None:
    """Of plain tuples, a scope that opens under the path of a closed one is a new one."""
    assert tree_of(*JOB, *JOB) == [("job", ["file"]), ("job", ["file"])]


def test_what_has_no_beginning_was_there_before() -> None:
    """Of what the first event finds there, no beginning is made up."""
    rows = JOB[2:]
    text = timeline_of(*rows).text(60)

    assert tree_of(*rows) == [("job", ["file"])]
    assert text.count("◂") == 3  # the scope, the file, and what that means
    assert "alive  " not in text.splitlines()[1]


def test_what_a_known_scope_did_not_tell_to_acquire_begins_when_it_is_heard_of() -> None:
    """Where the beginning of the scope was told, nothing was there before it."""
    [file] = children_of((0, "opened", "job"), (3, "closing", "job", "file"), (4, "closed", "job", "file", 1))

    assert [(stage.kind, stage.start - 1e9) for stage in file.stages(1e9, 1e9 + 4)] == [("alive", 3), ("closing", 3)]


def test_a_close_without_a_beginning_knows_it_by_how_long_it_took() -> None:
    """`closed` alone tells when the close began."""
    [file] = children_of((0, "opened", "job"), (1, "acquired", "job", "file"), (5, "closed", "job", "file", 2))

    assert lived(file) == (1, 3, 5)


def test_scopes_above_that_were_not_told_of_are_drawn() -> None:
    """What is missing above a scope is known from its path; a `ScopePath` without a parent is outermost."""
    told = ScopePath(("a", "b"))

    assert tree_of((0, "opened", "service/request/upload")) == [("service", [("request", ["upload"])])]
    assert tree_of((0, "opened", told), (0, "opened", ())) == ["a/b", "scope"]


def test_a_child_that_did_not_tell_that_it_opened_is_what_its_parent_acquired() -> None:
    """A scope that is only known as a resource becomes one when it tells of what it holds."""
    assert tree_of(
        (0, "opened", "service"),
        (1, "acquired", "service", "request", 0.5),
        (1, "acquired", "service", "request"),
        (2, "acquired", "service/request", "file"),
        (3, "closing", "service", "request"),
    ) == [("service", ["request", ("request", ["file"])])]


async def test_a_host_that_dies_is_dead_until_it_is_closed() -> None:
    """`died` comes at once: from then on the span is not alive, and the reason is said once."""
    timeline = Timeline()
    died = anyio.Event()

    def heard(event: ScopeEvent) -> None:
        if event.kind == "died":
            died.set()

    @asynccontextmanager
    async def client() -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(break_off)
            yield

    async def break_off() -> None:
        raise OSError("link lost")

    with pytest.raises(ResourceCleanupError):
        async with Scope("service", on_event=tee(timeline, heard)) as scope:
            await scope.host(client(), name="mcp")
            await died.wait()

    [root] = spans_of(timeline.events)
    assert [stage.kind for stage in root.children[0].stages(0, 2e9)] == ["acquiring", "alive", "dead", "closing"]
    assert [note for _, note in root.children[0].notes()] == ["died: ExceptionGroup of OSError: link lost"]


async def test_of_several_hosts_of_one_name_the_one_that_died_is_marked() -> None:
    """Which of them died can only be guessed at first; the error with which it fails to close tells."""
    timeline = Timeline()
    all_there, died = anyio.Event(), anyio.Event()

    def heard(event: ScopeEvent) -> None:
        if event.kind == "died":
            died.set()

    @asynccontextmanager
    async def client(*, breaks: bool) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            if breaks:
                tasks.start_soon(break_off)
            yield

    async def break_off() -> None:
        await all_there.wait()
        raise OSError("link lost")

    with pytest.raises(ResourceCleanupError):
        async with Scope("service", on_event=tee(timeline, heard)) as scope:
            for number in range(3):
                await scope.host(client(breaks=number == 1), name="mcp")
            all_there.set()
            await died.wait()

    [root] = spans_of(timeline.events)
    assert [(span.died is not None, len(span.notes())) for span in root.children] == [(False, 0), (True, 1), (False, 0)]


def test_several_that_died_are_several() -> None:
    """Those of one name that die without an error are each taken for another one."""
    first, second = children_of(
        (0, "opened", "job"),
        *[(1, "acquired", "job", "mcp")] * 2,
        *[(2, "died", "job", "mcp")] * 2,
    )

    assert [span.died is not None for span in (first, second)] == [True, True]


def test_a_host_may_die_before_it_is_acquired() -> None:
    """What died before it was registered is the one that is acquired next under its name."""
    [host] = children_of((0, "opened", "job"), (1, "died", "job", "mcp"), (2, "acquired", "job", "mcp", 2))

    assert (lived(host), [trouble.kind for trouble in host.troubles]) == ((2, None, None), ["died"])


def test_a_host_may_die_while_it_closes() -> None:
    """Where none is held any more, it is the one that is closing."""
    [host] = children_of(*JOB[:3], (8, "died", "job", "file"))

    assert [trouble.kind for trouble in host.troubles] == ["died"]


def test_a_failure_of_something_unknown_is_drawn() -> None:
    """A failure whose resource was not heard of makes it known."""
    assert tree_of((0, "failed", "job", "file", 1, OSError("gone"))) == [("job", ["file"])]


def test_a_trouble_of_the_scope_itself_is_drawn_on_its_line() -> None:
    """An event with no resource tells of the scope, whatever its kind."""
    [root] = spans_of(events_of((0, "opened", "job"), (1, "failed", "job", None, None, OSError("gone"))))

    assert [note for _, note in root.notes()] == ["failed: OSError: gone"]


def test_what_can_not_be_drawn_is_passed_over() -> None:
    """`opened` and `scope_closed` with a resource, and kinds that are not known, say nothing that could be drawn."""
    timeline = timeline_of((0, "opened", "job", "file"), (1, "polished", "job"), (2, "polished", "job", "file"))

    assert tree_of((0, "opened", "job", "file")) == ["job"]
    assert "file" not in timeline.text(80) + timeline.svg() + timeline.chrome_trace()


def test_a_child_that_closes_says_so_although_its_own_words_are_missing() -> None:
    """Where several children of a name were closed and none told of it, they are paired as resources are."""
    root = ScopePath(("job",))
    parts = [(1, "acquired", ScopePath(("job", "part"), root), "file") for _ in range(2)]
    first, second = children_of((0, "opened", root), *parts, (2, "closing", root, "part"), (3, "closed", root, "part"))

    assert (lived(first), lived(second)) == ((None, None, None), (None, 2, 3))


def test_a_child_is_closed_although_nobody_said_that_it_began_to() -> None:
    """A child that tells that it is closed is the one whose parent then says so."""
    part, other = children_of(
        (0, "opened", "job"),
        (1, "acquired", "job/part", "file"),
        (2, "acquired", "job", "other"),
        (3, "scope_closed", "job/part"),
        (4, "closed", "job", "part", 2),
    )

    assert (lived(part), other.state) == ((None, 2, 4), "open")


def test_a_scope_says_its_own_close_if_it_knows() -> None:
    """A `scope_closed` that says how long it took is drawn with that close."""
    [root] = spans_of(events_of((0, "opened", "job"), (5, "scope_closed", "job", None, 2)))

    assert lived(root) == (0, 3, 5)


def test_times_that_no_clock_gives_are_not_believed() -> None:
    """A time that is no number, or beyond all calendars, is taken as that of the event before."""
    [file] = children_of(
        (float("nan"), "opened", "job"),
        (1, "acquired", "job", "file", float("inf")),
        (float("inf"), "closing", "job", "file"),
        (4, "closed", "job", "file", -1),
    )

    assert lived(file) == (1, 1, 4)
    assert file.durations(0)[0] is None


def test_a_clock_that_is_set_back_makes_no_negative_time() -> None:
    """A stage that would end before it begins takes no time."""
    [file] = children_of((0, "opened", "job"), (9, "acquired", "job", "file", 1), (5, "closing", "job", "file"))

    assert [stage.end - stage.start for stage in file.stages(1e9, 1e9 + 9)] == [1, 0, 0]
    assert file.durations(1e9 + 9) == (1, 0, None)


def test_events_that_were_copied_or_pickled_are_the_same_tree() -> None:
    """Paths keep what they are through `pickle` and `copy.deepcopy`, so that events can be kept and drawn later."""
    root = ScopePath(("job",))
    rows = [(0, "opened", root), *[(0, "opened", ScopePath(("job", "part"), root)) for _ in range(2)]]
    events = events_of(*rows)

    for again in (pickle.loads(pickle.dumps(events)), copy.deepcopy(events)):  # noqa: S301 (our own)
        assert [_named(span) for span in spans_of(again)] == [("job", ["part", "part"])]


@pytest.mark.parametrize("seed", range(20))
async def test_a_random_tree_of_namesakes_is_drawn_as_it_was(seed: int) -> None:
    """However children of one name come and go, each has what it held, and lies within the scope that held it."""
    random = Random(seed)
    timeline = Timeline()
    held: dict[str, int] = {}

    async def close() -> None:
        await anyio.sleep(random.choice([0, 0.0005]))

    async def live(scope: Scope, name: str, depth: int) -> None:
        scope.add(object(), close, name=name)
        held[name] = 1
        async with anyio.create_task_group() as tasks:
            for _ in range(random.randint(0, 4)):
                if depth == 3 or random.random() < 0.4:
                    scope.add(object(), close, name="file")
                else:
                    tasks.start_soon(live_below, scope.child("part", concurrent=random.random() < 0.3), depth + 1)
                held[name] += 1
                await anyio.sleep(random.choice([0, 0.0005]))

    async def live_below(scope: Scope, depth: int) -> None:
        await live(scope, f"part {len(held)}", depth)
        if random.random() < 0.7:
            await scope.aclose()

    async with Scope("whole", on_event=timeline) as scope:
        await live(scope, "whole", 0)

    ahead = spans_of(timeline.events)
    drawn = {}
    while ahead:
        span = ahead.pop()
        [name] = [child.name for child in span.children if child.name in held]
        drawn[name] = len(span.children)
        assert all(span.times()[0] <= child.times()[0] for child in span.children)
        assert all((child.closed or 0) <= (span.closed or 0) for child in span.children)
        ahead += [child for child in span.children if child.is_scope]
    assert drawn == held


# What went wrong


def test_a_trouble_is_said_in_one_line_with_its_reason() -> None:
    """What tells of the same error is said once: the kinds, the type, and the message."""
    late = TimeoutError("too late")
    [file] = children_of(
        *JOB[:3],
        (8, "timed_out", "job", "file", None, late),
        (8, "forced", "job", "file"),
        (8, "forced", "job", "file"),
        (8, "failed", "job", "file", 1, late),
        (8, "failed", "job", "file", 1, KeyError("password")),
        (8, "failed", "job", "file", 1, "no exception"),
    )

    assert [note for _, note in file.notes()] == [
        "timed out, forced: TimeoutError: too late",
        "failed: KeyError",
        "failed",
    ]


def test_a_scope_does_not_say_again_what_failed_in_it() -> None:
    """A cleanup error is said where it comes from; on a scope of which nothing else is known, it is said there."""
    gone = OSError("gone")
    error = cleanup_error([CloseFailure("file", gone, 1)], None, scope="job", attempted=1)
    known = [*JOB[:3], (8, "failed", "job", "file", 1, gone), (9, "scope_closed", "job", None, None, error)]
    unknown = [(9, "scope_closed", "job", None, None, error)]

    assert [span.notes() for span in spans_of(events_of(*known))] == [[]]
    assert [len(span.notes()) for span in spans_of(events_of(*unknown))] == [1]


# As text


def test_the_text_of_a_small_scope() -> None:
    """A tree on the left, a bar for each span, how long each part took on the right, and what the signs mean."""
    assert timeline_of(*JOB).text(72, plain=False).splitlines() == [
        "job, 2001-09-09 01:46:40 UTC, 10 s, 1 resource",
        "        0                   5 s              10 s  acquire  alive  close",
        "        ┼───────────────────┼──────────────────┼",
        "job     ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━             10 s",
        "└ file      ────████████████████████▒▒▒▒▒▒▒▒           1 s    5 s    2 s",
        "─ acquiring  █ alive  ▒ closing  ━ scope",
    ]


def test_plain_text_is_ascii() -> None:
    """`plain` draws the same with ASCII alone, names included."""
    timeline = timeline_of((0, "opened", "job"), (1e-5, "acquired", "job", "größe", 1e-5))

    assert timeline.text(72, plain=True).splitlines() == [
        "job, 2001-09-09 01:46:40 UTC, 10 us, 1 resource, 1 still open",
        "               0                  5 us             10 us  acquire  alive",
        "               +------------------+-------------------+",
        "job            ========================================>           10 us",
        "`-gr\\xf6\\xdfe  ---------------------------------------->    10 us    0 s",
        "- acquiring  = scope  > still open",
    ]


@pytest.mark.parametrize(("encoding", "ascii_only"), [("utf-8", False), ("ascii", True), ("cp1252", True)])
def test_text_is_plain_where_the_output_can_show_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, ascii_only: bool
) -> None:
    """By default the standard output's encoding decides."""
    with (tmp_path / "out").open("wb") as file, TextIOWrapper(file, encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        text = timeline_of(*JOB).text(72)
        monkeypatch.undo()

    assert text.isascii() is ascii_only


def test_a_text_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a width, it is the terminal's; `str` takes 100 columns."""
    timeline = timeline_of(*JOB)
    monkeypatch.setenv("COLUMNS", "64")

    assert timeline.text() == timeline.text(64)
    assert str(timeline) == timeline.text(100)


def test_an_axis_leaves_out_a_label_that_has_no_room() -> None:
    """Where labels would touch, only some are written."""
    axis = timeline_of((0, "opened", "a scope with a name"), (0.0011, "scope_closed", "a scope with a name")).text(30)

    assert axis.splitlines()[3].split() == ["0", "0.5", "ms"]
    assert axis.splitlines()[4].count("┼") == 3


def test_a_narrow_text_gives_up_figures_then_the_chart() -> None:
    """Where there is less room, there are fewer columns; the names stay to the last."""
    timeline = timeline_of(*JOB)
    narrow = timeline.text(24).splitlines()

    assert "acquire" in timeline.text(72)
    assert "acquire" not in timeline.text(44)
    assert "close" in timeline.text(44)
    assert "close" not in narrow[2]
    assert "█" in timeline.text(24)
    assert timeline.text(12).splitlines()[-2:] == ["job", "└ file"]


def test_wide_and_combining_characters_keep_the_bars_in_line() -> None:
    """The bars of names in any script begin in the same column."""
    names = ["キャッシュ", "naïve", "nai\u0308ve", "🚀", "👨‍👩‍👧", "❤️", "👍🏽", "한국어", "한", "x"]
    rows = [(1, "acquired", "job", name) for name in names]
    lines = timeline_of((0, "opened", "job"), *rows, (2, "scope_closed", "job")).text(60).splitlines()[5:-1]

    assert {width_of(line[: line.index("█")]) for line in lines} == {33}
    assert [width_of(name) for name in names] == [10, 5, 5, 2, 2, 2, 2, 6, 2, 1]


def test_a_cut_never_parts_what_belongs_together() -> None:
    """A name is cut in its middle, between characters as a reader sees them."""
    assert squeeze("connection 17", 10, "…") == "connec… 17"
    assert squeeze("データベース 12", 10, "…") == "データ… 12"
    assert squeeze("❤️❤️❤️❤️❤️❤️", 9, "…") == "❤️❤️❤️…❤️"
    assert squeeze("\ufe0fabcdefghi", 8, "…") == "\ufe0fabcde…hi"
    assert squeeze("abcdefghi", 4, "…") == "abc…"
    assert fit("データ", 4, "…") == "デ…"
    assert fit("データ", 1, "…") == ""


def test_names_are_made_harmless() -> None:
    """What moves the cursor, breaks the line, hides, or turns the writing round is written out."""
    hostile = "a\x1b[31m\nb\u202e\u200b\xa0\ud800"

    assert clean(hostile) == "a\\x1b[31m\\nb\\u202e\\u200b \\ud800"
    assert clean(hostile) in timeline_of((0, "opened", (hostile,))).text(120)


def test_what_failed_is_said_below_its_line_in_full() -> None:
    """The reason is wrapped, not cut, and marked where it happened."""
    error = OSError("the other side has gone away, and it won't come back any more")
    text = timeline_of(*JOB[:3], (8, "failed", "job", "file", 1, error), *JOB[3:]).text(48)

    assert "✗ failed: OSError: the other side has gone" in text
    assert "any more" in text
    assert re.search("▒+✗", text)


def test_marks_of_the_same_moment_stand_side_by_side() -> None:
    """Of several marks at one place, each can be seen, at the end of the line too."""
    late = TimeoutError("late")
    rows: list[Row] = [
        (0, "opened", "job"),
        (0, "acquired", "job", "file"),
        (9, "died", "job", "file"),
        (9, "closing", "job", "file"),
        (9, "timed_out", "job", "file", None, late),
        (9, "forced", "job", "file"),
    ]

    assert "↯◔†" in timeline_of(*rows).text(60)


def test_a_close_that_is_out_of_time_has_one_mark_for_it() -> None:
    """That it failed, too, goes without saying."""
    late = TimeoutError("late")
    rows = [*JOB[:3], (8, "timed_out", "job", "file", None, late), (8, "failed", "job", "file", 1, late)]
    text = timeline_of(*rows).text(60)

    assert text.count("◔") == 3  # on the line, before the reason, and in the legend
    assert "✗" not in text


def test_of_more_marks_than_places_the_last_is_seen() -> None:
    """Where a chart is full of marks, they stand over one another."""
    troubles = [(1, kind, "job", "file", None, OSError()) for kind in ("failed", "timed_out", "forced", "died")]
    lines = timeline_of((0, "opened", "job"), (0, "acquired", "job", "file"), *troubles).text(30).splitlines()

    assert all(width_of(line) <= 30 for line in lines)


def test_a_tree_may_be_deeper_than_the_stack() -> None:
    """Drawing doesn't recurse; of very many levels, a text shows the nearest."""
    path: ScopePath | None = None
    rows: list[Row] = []
    for number in range(sys.getrecursionlimit() + 100):
        path = ScopePath((f"level {number}",), path)
        rows.append((number, "opened", path))
    timeline = timeline_of(*rows)

    assert all(width_of(line) <= 80 for line in timeline.text(80).splitlines())
    assert "…" in timeline.text(80)
    assert len(json.loads(timeline.chrome_trace())["traceEvents"]) > len(rows)
    assert timeline.svg().count('class="row"') == len(rows)


def test_a_short_life_can_be_seen() -> None:
    """What lived at all has ink, however short it was, at any place of a column."""
    rows: list[Row] = [(0, "opened", "job"), (80, "scope_closed", "job")]
    for eighth in range(8):
        at = 40 + eighth / 8
        rows += [(at, "acquired", "job", f"{eighth}"), (at + 0.01, "closed", "job", f"{eighth}", 0)]
    lines = timeline_of(*sorted(rows)).text(120).splitlines()

    assert all(re.search("[▏▎▍▌▋▊▉█▕▐]", line) for line in lines if re.match("[├└] [0-7] ", line))


def test_the_line_of_a_scope_ends_in_half_columns() -> None:
    """A scope's line is drawn in halves of a column."""
    text = timeline_of(
        (0, "opened", "job"),
        (10.6, "opened", "job/part"),
        (10.6, "acquired", "job", "part"),
        (50.4, "scope_closed", "job/part"),
        (99, "scope_closed", "job"),
    ).text(100)

    assert re.search("╺━+╸", text)


def test_a_time_that_no_calendar_has_is_not_said() -> None:
    """A beginning before the first year or after the last one has no date."""
    timeline = timeline_of((1e14, "opened", "job"))

    assert timeline.text(80).splitlines()[0] == "job, 0 s, 0 resources"
    assert "UTC" not in timeline.svg()


def test_an_empty_timeline_says_so() -> None:
    """Nothing to draw is no error."""
    timeline = Timeline()

    assert timeline.text(80) == "nothing has happened yet"
    assert "nothing has happened yet" in "".join(ET.fromstring(timeline.svg()).itertext())  # noqa: S314 (our own)
    assert [event for event in json.loads(timeline.chrome_trace())["traceEvents"] if event["ph"] != "M"] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.2e-7, "0.32 µs"),
        (9.996e-4, "1 ms"),
        (0.0123456, "12.3 ms"),
        (59.99, "1 min"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (86400 * 400, "400 d"),
    ],
)
def test_a_duration_is_said_in_three_digits(seconds: float, text: str) -> None:
    """It has the unit that a person would use, also where rounding gets to the next one."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        (1e-6, ["0", "0.5 µs", "1 µs"]),
        (0.0022, ["0", "1 ms", "2 ms"]),
        (2.3, ["0", "1 s", "2 s"]),
        (100, ["0", "1 min"]),
        (200, ["0", "2 min"]),
        (5400, ["0", "30 min", "60 min", "90 min"]),
        (86400, ["0", "12 h", "24 h"]),
        (86400 * 300, ["0", "100 d", "200 d", "300 d"]),
    ],
)
def test_ticks_stand_at_times_that_people_count_in(seconds: float, labels: list[str]) -> None:
    """An axis has few ticks, at round numbers, all in one unit."""
    assert [label for _, label in ticks(seconds, 3)] == labels


# As SVG


def test_an_svg_stands_on_its_own() -> None:
    """It has no script and no link, words for who can't see it, and styles for light and dark."""
    root = ET.fromstring(timeline_of(*JOB).svg())  # noqa: S314 (our own)
    style = root.findtext(f"{SVG}style") or ""

    assert (root.get("role"), root.get("aria-label")) == ("img", "Timeline of job: 10 s, 1 resource")
    assert (root[0].tag, root[0].text) == (f"{SVG}title", "Timeline of job")
    assert (root[1].tag, root[1].text) == (f"{SVG}desc", "10 s, 1 resource")
    assert "prefers-color-scheme:dark" in style
    assert not re.search("url|@import|http", style)
    assert not list(root.iter(f"{SVG}script"))
    assert not [name for part in root.iter() for name in part.attrib if "href" in name or name.startswith("on")]


def test_an_svg_says_in_words_what_failed() -> None:
    """The description and the tooltip of a row name each failure; tooltips say how long each part took."""
    rows = [*JOB[:3], (9, "failed", "job", "file", 2, OSError("<gone> & away")), *JOB[3:]]
    root = ET.fromstring(timeline_of(*rows).svg())  # noqa: S314 (our own)

    assert root.findtext(f"{SVG}desc") == "10 s, 1 resource, 1 failed. file: failed: OSError: <gone> & away"
    assert [row.findtext(f"{SVG}title") for row in root.iter(f"{SVG}g") if row.get("class") == "row"] == [
        "job\nalive for 10 s",
        "file\nacquired in 1 s\nalive for 5 s\nclosed in 2 s\nfailed: OSError: <gone> & away",
    ]


def test_an_svg_marks_what_went_wrong_and_what_is_open() -> None:
    """Every kind of mark and of stage has its sign, and a legend that says what it means."""
    late = TimeoutError("late")
    rows: list[Row] = [
        (1, "closing", "old", "file"),
        (0, "opened", "job"),
        (0, "acquired", "job", "lent"),
        (5, "acquired", "job", "file", 5),
        (6, "acquired", "job", "mcp", 1),
        (7, "died", "job", "mcp", None, OSError("gone")),
        (8, "closing", "job", "mcp"),
        (9, "closing", "job", "file"),
        (9, "timed_out", "job", "file", None, late),
        (9, "forced", "job", "file"),
        (9, "failed", "job", "file", 1, late),
        (9, "closed", "job", "file", 1),
        (9, "scope_closed", "job"),
    ]
    words = "\n".join(ET.fromstring(timeline_of(*rows).svg(400)).itertext())  # noqa: S314 (our own)

    for meaning in ("acquiring", "alive", "died, not closed yet", "closing", "scope", "timed out", "forced", "died"):
        assert f"\n{meaning}\n" in words
    assert "still open" in words
    assert "handed over" in words
    assert "there before" in words


def test_the_lines_of_a_tree_pass_by_what_is_below_others() -> None:
    """In a picture as in a text, the line to a later row passes by those that are deeper."""
    timeline = timeline_of((0, "opened", "a/b/c"), (1, "acquired", "a/b/c", "d"), (2, "acquired", "a", "e"))

    assert [line[:8].rstrip() for line in timeline.text(60).splitlines()[3:-1]] == [
        "a",
        "├ b",
        "│ └ c",
        "│   └ d",
        "└ e",
    ]
    assert len(re.findall("v24", timeline.svg())) == 2


def test_a_long_svg_has_its_axis_below_too() -> None:
    """Where the axis is far above, it is drawn again below the last row."""
    files = [(1, "acquired", "job", f"file {number}") for number in range(40)]
    long = timeline_of((0, "opened", "job"), *files, (4, "scope_closed", "job")).svg()

    assert long.count(">2 s</text>") == 2
    assert timeline_of((0, "opened", "job"), (4, "scope_closed", "job")).svg().count(">2 s</text>") == 1


# As a Chrome trace


def checked(trace: str) -> list[dict[str, Any]]:
    """Check a trace by the published format, and give its events.

    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: the slices of one thread nest.
    """
    whole = json.loads(trace, parse_constant=pytest.fail)
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert whole["displayTimeUnit"] in {"ms", "ns"}
    slices = defaultdict(list)
    named = set()
    for event in whole["traceEvents"]:
        assert all(type(event[key]) is int for key in ("pid", "tid", "ts"))
        assert type(event["name"]) is str
        assert type(event["args"]) is dict
        assert event["ts"] >= 0
        if event["ph"] == "M":
            assert event["name"] in {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
            named.add((event["name"], event["pid"], event["tid"]))
        elif event["ph"] == "i":
            assert event["s"] == "t"
        else:
            assert event["ph"] == "X"
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for (pid, tid), spans in slices.items():
        assert ("process_name", pid, 0) in named
        assert ("thread_name", pid, tid) in named
        open_until: list[int] = []
        for start, less in sorted((start, -end) for start, end in spans):
            end = -less
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
    return whole["traceEvents"]  # type: ignore[no-any-return]


def test_the_trace_of_a_small_scope() -> None:
    """A process for the outermost scope, a thread for each row, and slices in microseconds since the first event."""
    events = checked(timeline_of(*JOB).chrome_trace())

    assert [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"] == [
        (1, "job", 0, 10_000_000),
        (2, "file", 1_000_000, 8_000_000),
        (2, "acquiring", 1_000_000, 1_000_000),
        (2, "closing", 7_000_000, 2_000_000),
    ]
    assert [(e["name"], e["tid"], e["args"]["name"]) for e in events if e["name"].endswith("_name")] == [
        ("process_name", 0, "job"),
        ("thread_name", 1, "job"),
        ("thread_name", 2, "file"),
    ]


def test_the_rows_of_a_trace_are_called_after_their_place() -> None:
    """The name of a row is its path below the outermost scope, and its number is of no other row."""
    rows = [(0, "opened", "service"), (1, "acquired", "service/request/upload", "file"), (2, "opened", "other")]
    events = checked(timeline_of(*rows).chrome_trace())

    assert [(e["pid"], e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"] == [
        (1, 1, "service"),
        (1, 2, "request"),
        (1, 3, "request/upload"),
        (1, 4, "request/upload/file"),
        (2, 5, "other"),
    ]


def test_what_goes_wrong_is_a_moment_of_a_trace() -> None:
    """Each trouble is an instant, with its reason."""
    rows = [*JOB[:3], (8, "forced", "job", "file"), (9, "failed", "job", "file", 2, OSError("gone")), *JOB[3:]]
    events = checked(timeline_of(*rows).chrome_trace())

    assert [(e["name"], e["ts"], e["args"]) for e in events if e["ph"] == "i"] == [
        ("forced", 8_000_000, {"resource": "file"}),
        ("failed", 9_000_000, {"resource": "file", "error": "OSError: gone"}),
    ]


def test_rows_of_a_trace_are_shared_by_what_follows_one_another() -> None:
    """Of one name, those that overlap get a row each, and the others share one."""
    rows: list[Row] = [(0, "opened", "job")]
    for start in (1, 3, 4):
        rows += [(start, "acquired", "job", "file"), (start + 0.5, "closing", "job", "file")]
        rows += [(start + 1, "closed", "job", "file", 0.5)]
    rows += [(10, "acquired", "job", "file", 5.5), (11, "scope_closed", "job")]
    events = checked(timeline_of(*rows).chrome_trace())

    assert [e["tid"] for e in events if e["name"] == "file"] == [2, 2, 2, 3]


# Any events

names = st.text(max_size=8)
root_path = ScopePath(("service",))
paths = st.sampled_from(
    [
        root_path,
        *[ScopePath(("service", "request"), root_path) for _ in range(2)],
        ScopePath(("lost", "found")),
        ("service",),
        ("service", "request"),
        ("a", "b", "c"),
        (),
    ]
)
errors = st.sampled_from(
    [
        None,
        OSError("gone\naway"),
        ExceptionGroup("several", [KeyError("secret"), TimeoutError()]),
        KeyboardInterrupt(),
        cleanup_error([CloseFailure("file", OSError(), 1)], None, scope="\x1b", attempted=1),
    ]
)
numbers = st.one_of(st.floats(0, 10), st.floats())
any_events = st.lists(
    st.builds(
        ScopeEvent,
        kind=st.sampled_from(KINDS),
        path=st.one_of(paths, st.lists(names, max_size=3).map(tuple)),
        resource=st.one_of(st.none(), st.sampled_from("ab"), names),
        time=numbers,
        elapsed=st.one_of(st.none(), numbers),
        error=errors,
    ),
    max_size=30,
)


def drawn(events: list[ScopeEvent]) -> Timeline:
    timeline = Timeline()
    for event in events:
        timeline(event)
    return timeline


def names_in(events: list[ScopeEvent]) -> set[str]:
    """Give the names of the resources and scopes that must be drawn."""
    told = {event.resource for event in events if event.resource is not None and "ope" not in event.kind}
    inner = {event.path[-1] for event in events if event.path and getattr(event.path, "parent", event.path[:-1])}
    return {clean(name) for name in told | inner}


@given(any_events, st.integers(1, 140), st.booleans())
@examples(100)
def test_no_events_make_a_text_too_wide(events: list[ScopeEvent], width: int, plain: bool) -> None:
    """Whatever is told, in whatever order, a text keeps to its width and to its lines."""
    lines = drawn(events).text(width, plain=plain).split("\n")

    assert max(width_of(line) for line in lines) <= width
    assert all(clean(line) == line for line in lines)
    assert not plain or all(line.isascii() for line in lines)


@given(any_events)
@examples(100)
def test_every_name_is_in_every_drawing(events: list[ScopeEvent]) -> None:
    """Whatever is told, all drawings can be read, and name each resource and each scope."""
    timeline = drawn(events)
    text = timeline.text(600, plain=False)
    root = ET.fromstring(timeline.svg())  # noqa: S314 (our own)
    tooltips = {(row.findtext(f"{SVG}title") or "").split("\n")[0] for row in root.iter(f"{SVG}g")}
    slices = {event["name"] for event in checked(timeline.chrome_trace()) if event["ph"] == "X"}

    assert all(name in text for name in names_in(events))
    assert names_in(events) <= tooltips
    assert names_in(events) <= slices


# Writing


@pytest.mark.parametrize("suffix", [".txt", ".svg", ".json", ".SVG"])
def test_a_timeline_is_written_as_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    """The suffix of the file picks the drawing."""
    timeline = timeline_of(*JOB)
    path = tmp_path / f"timeline{suffix}"
    timeline.write(str(path))
    expected = {".txt": timeline.text(120) + "\n", ".svg": timeline.svg(), ".json": timeline.chrome_trace()}

    assert path.read_text(encoding="utf-8") == expected[suffix.lower()]


@pytest.mark.parametrize("name", ["timeline.png", "timeline"])
def test_a_timeline_is_written_as_nothing_else(tmp_path: Path, name: str) -> None:
    """Another suffix is refused, and no file is made."""
    with pytest.raises(
        ValueError, match=r"^a timeline is written as \.txt, \.svg or \.json \(a Chrome trace\), not as "
    ):
        Timeline().write(tmp_path / name)

    assert list(tmp_path.iterdir()) == []


# Several callbacks


async def test_tee_tells_all() -> None:
    """One `on_event` for several callbacks: each is told of all, in order."""
    first, second = Timeline(), Timeline()
    async with Scope(on_event=tee(first, second)) as scope:
        scope.add(Database())

    assert first.events == second.events
    assert len(first.events) == 5


async def test_a_callback_that_raises_does_not_keep_the_others_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What one raises is logged by the scope; the others are told all the same."""
    timeline = Timeline()

    def broken(event: ScopeEvent) -> None:
        raise ValueError(event.kind)

    async with Scope(on_event=tee(broken, timeline)):
        pass

    assert [event.kind for event in timeline.events] == ["opened", "scope_closed"]
    assert "on_event raised at 'opened', and the scope goes on: ValueError: opened" in caplog.messages


def test_of_several_that_raise_none_is_lost() -> None:
    """What several callbacks raise comes out as a group, an interrupt too."""

    def interrupted(_event: ScopeEvent) -> None:
        raise KeyboardInterrupt

    def broken(_event: ScopeEvent) -> None:
        raise ValueError

    [event] = events_of((0, "opened", "job"))
    with pytest.raises(BaseExceptionGroup) as caught:
        tee(interrupted, broken)(event)

    assert [type(error) for error in caught.value.exceptions] == [KeyboardInterrupt, ValueError]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (None, "`callback 2 of tee` must be callable, not a NoneType"),
        (anyio.sleep, "`on_event` must be sync, and sleep is async: nothing is awaited where events are told"),
    ],
)
def test_what_can_be_no_callback_is_refused(callback: Any, message: str) -> None:
    """`tee` checks its callbacks as a scope checks its `on_event`."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        tee(print, callback)


# The example


@every_backend
def test_the_example_draws_what_happened(tmp_path: Path, backend: str) -> None:
    """The program prints its timeline, writes it, and finds in it what it did."""
    written = tmp_path / "timeline.svg"
    done = run_example("timeline.py", "--backend", backend, "--write", str(written))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("all of it can be seen\n")
    assert "✗ failed: ConnectionError: the server hung up before the goodbye" in done.stdout
    assert ET.fromstring(written.read_text(encoding="utf-8")).get("role") == "img"  # noqa: S314 (our own)
