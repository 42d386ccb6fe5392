"""The timeline in Chrome's trace event format: each outermost scope is a process, and what it holds are threads.

Slices of one thread must nest, and the lives of resources need not. So each has a thread of its own, shared only by
those of one name and place that follow one another.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

from rescope._timeline.columns import clean
from rescope._timeline.layout import WORDS, Layout
from rescope.exceptions import reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rescope._timeline.spans import Span
    from rescope.events import ScopeEvent

TraceEvent: TypeAlias = "dict[str, Any]"


def trace(events: Sequence[ScopeEvent], dropped: int) -> str:
    """Write events as JSON: slices in microseconds since the first event, moments, and the names of the rows."""
    layout = Layout(events, dropped)
    about = {"started": layout.started, "started_epoch_seconds": layout.first, "dropped_events": dropped}
    return json.dumps({"traceEvents": _Trace(layout).events, "displayTimeUnit": "ms", "otherData": about})


class _Thread:
    """A row of the trace: its number, its place in the tree, and until when it is taken."""

    def __init__(self, tid: int, path: str = "") -> None:
        self.tid, self.path = tid, path
        self.until = 0
        self.below: defaultdict[str, list[_Thread]] = defaultdict(list)


class _Trace:
    """The events of a trace in the making."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.events: list[TraceEvent] = []
        self.threads = 0
        for pid, root in enumerate(layout.roots, 1):
            self._name(pid, 0, "process", clean(root.name), pid)
            self._process(pid, root)

    def _process(self, pid: int, root: Span) -> None:
        """Write a tree, without the stack of Python, which it may be deeper than."""
        ahead = [(root, _Thread(0))]
        while ahead:
            span, above = ahead.pop()
            start = self._us(span.stages(self.layout.first, self.layout.last)[0].start)
            rows = above.below[span.name]
            thread = next((row for row in rows if row.until <= start), None)
            if thread is None:
                thread = self._row(pid, clean(span.name), above)
                rows.append(thread)
            thread.until = self._span(pid, thread.tid, span)
            ahead += [(child, thread) for child in reversed(span.children)]

    def _row(self, pid: int, name: str, above: _Thread) -> _Thread:
        """Make a row, called after its place below the outermost scope. Its number is of no other process either."""
        self.threads += 1
        path = f"{above.path}/{name}" if above.path else name
        self._name(pid, self.threads, "thread", path, self.threads)
        return _Thread(self.threads, path if above.tid else "")

    def _span(self, pid: int, tid: int, span: Span) -> int:
        """Write one span: its whole life, in that acquiring and closing, and the moments of trouble. Give its end."""
        stages = span.stages(self.layout.first, self.layout.last)
        name, kind = clean(span.name), "scope" if span.is_scope else "resource"
        start, end = self._us(stages[0].start), self._us(stages[-1].end)
        self._slice(pid, tid, name, kind, start, end, {"state": span.state})
        for stage in stages:
            if stage.kind != "alive":
                self._slice(pid, tid, WORDS[stage.kind], kind, self._us(stage.start), self._us(stage.end), {})
        for trouble in span.troubles:
            why = {"error": clean(reason(trouble.error))} if isinstance(trouble.error, BaseException) else {}
            at = {"ph": "i", "s": "t", "ts": self._us(trouble.time), "pid": pid, "tid": tid}
            self.events.append({"name": WORDS[trouble.kind], "cat": kind, **at, "args": {"resource": name, **why}})
        return end

    def _slice(self, pid: int, tid: int, name: str, kind: str, start: int, end: int, args: dict[str, str]) -> None:
        at = {"ph": "X", "ts": start, "dur": end - start, "pid": pid, "tid": tid}
        self.events.append({"name": name, "cat": kind, **at, "args": args})

    def _name(self, pid: int, tid: int, what: str, name: str, place: int) -> None:
        row = {"ph": "M", "ts": 0, "pid": pid, "tid": tid}
        self.events.append({"name": f"{what}_name", **row, "args": {"name": name}})
        self.events.append({"name": f"{what}_sort_index", **row, "args": {"sort_index": place}})

    def _us(self, time: float) -> int:
        return round((time - self.layout.first) * 1e6)
