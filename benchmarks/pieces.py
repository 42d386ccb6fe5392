"""What a scope is made of: `python -m benchmarks.pieces [--quick] [--json FILE]`.

First each piece by itself, less what the loop around it takes; then the same scope built up step by step (`ladder`).
On asyncio, as that is where there is a choice of tasks and shields.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from asyncio import Task, current_task, shield, timeout
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from anyio import CancelScope

from benchmarks import bounds, entering
from benchmarks.backends import backend
from benchmarks.ladder import EAGER, STEPS, AList, Handle, around, climb, new
from benchmarks.measuring import FULL, QUICK, Effort, compete
from benchmarks.results import rounded
from benchmarks.work import idle_parts

if TYPE_CHECKING:
    from benchmarks.work import Contest, Parts


class Piece(NamedTuple):
    """Something that a scope does, or would do if its guarantees were got in another way."""

    name: str
    code: str
    when: str
    buys: str


class Back(ref[Any]):
    """A weak reference that isn't shared, as `ref` itself is."""


PIECES = (
    Piece("call a sync closer", "close()", "each", "the work itself"),
    Piece("await an async closer", "await close_async()", "each", "the work itself"),
    Piece("append and pop", "held.append(close); held.pop()", "each", "the order"),
    Piece(
        "make a handle",
        "h = new(Handle); h.value = h.name = h.limits = None; h.close = close; h.state = around",
        "each",
        "`release`, `detach`, `state`, and names in errors",
    ),
    Piece("refuse what can't be called", "callable(close)", "each", "misuse is told at the call"),
    Piece("read the clock", "perf_counter()", "each", "`elapsed` of a failure"),
    Piece(
        "set and reset a context variable", "around.reset(around.set(held))", "once", "`aclose()` in a closer returns"
    ),
    Piece("make a weak reference", "Back(kind)", "once", "no cycles; a scope that is dropped is told"),
    Piece("ask for the current task", "current_task()", "once", "asyncio is told from trio"),
    Piece("`async with` of an object", "async with AList(): pass", "once", "the block"),
    Piece("`async with` of an empty stack", "async with AsyncExitStack(): pass", "never", "for comparison"),
    Piece(
        "the task of async closers, eager from 3.12 on",
        "await Task(close_async(), loop=loop, **EAGER)",
        "once, where async",
        "no cancellation reaches a closer",
    ),
    Piece("a task, not eager", "await loop.create_task(close_async())", "never", "the same, dearer"),
    Piece(
        "`asyncio.shield` of a task", "await shield(loop.create_task(close_async()))", "never", "the same, as in AES+"
    ),
    Piece("anyio's shield", "with CancelScope(shield=True): pass", "when cancelled", "no busy loop"),
    Piece("`asyncio.timeout`", "async with timeout(9): pass", "never", "a bound: a timer of the loop's does it"),
    Piece("copy the context", "copy_context()", "never", "by the way: a task does it"),
    Piece("one turn of the loop", "await asyncio.sleep(0)", "each that suspends", "the work itself"),
)

NAMED: tuple[Any, ...] = (
    *(AList, AsyncExitStack, Back, CancelScope, Handle, Task),
    *(asyncio, copy_context, current_task, perf_counter, shield, timeout),
)

LADDERS = tuple(work for work in bounds.ROWS if work.split()[1] in {"sync", "async", "entered"})


def contest() -> Contest:
    """Give all the pieces, each in a loop of its own, written into it as `timeit` does."""
    parts = idle_parts(backend("asyncio"))
    loop = asyncio.get_running_loop()
    names: dict[str, Any] = {
        "close": parts.close_sync,
        "close_async": parts.close_async,
        "held": [],
        "kind": Piece,
        "loop": loop,
    }
    names |= {one.__name__: one for one in NAMED} | {"EAGER": EAGER, "around": around, "new": new}
    made: Contest = {}
    for name, code in [("", "pass"), *((piece.name, piece.code) for piece in PIECES)]:
        exec(f"async def batch(times):\n    for _ in range(times):\n        {code}", names)  # noqa: S102 (our own code)
        made[name] = names["batch"]
    return made


def ladder_of(work: str, parts: Parts) -> Contest:
    """Give the steps that do some work."""
    count, kind, *_ = work.split()
    if kind == "entered":
        return entering.climb(list(STEPS), int(count), parts.manager)
    sync = kind == "sync"
    return climb(int(count), parts.close_sync if sync else parts.close_async, sync=sync)


async def measure_pieces(effort: Effort) -> dict[str, float]:
    """Give the nanoseconds that each piece takes."""
    took = await compete(contest(), effort)
    loop = took.pop("")
    return {name: median(a - b for a, b in zip(found, loop, strict=True)) * 1e9 for name, found in took.items()}


async def measure_ladder(work: str, effort: Effort) -> dict[str, float]:
    """Give the nanoseconds per closer, or manager, of each step, and of the stack."""
    count = int(work.split(maxsplit=1)[0])
    took = await compete(ladder_of(work, idle_parts(backend("asyncio"))), effort)
    return {name: median(took[name]) / count * 1e9 for name in (*STEPS, "AES")}


async def measure(effort: Effort) -> dict[str, Any]:
    """Measure all, and print it as it comes."""
    pieces = await measure_pieces(effort)
    print(f"{'piece':<46} {'ns':>6}   {'when':<20} what it buys")
    for piece in PIECES:
        print(f"{piece.name:<46} {pieces[piece.name]:>6.0f}   {piece.when:<20} {piece.buys}")
    ladders = {work: await measure_ladder(work, effort) for work in LADDERS}
    print(f"\n{'ns per closer':<30}" + "".join(f"{work:>20}" for work in LADDERS))
    for step in (*STEPS, "AES"):
        print(f"{step:<30}" + "".join(f"{ladders[work][step]:>20.0f}" for work in LADDERS))
    return {"python": platform.python_version(), "pieces": pieces, "ladders": ladders}


def keep(found: dict[str, Any], path: Path) -> None:
    """Keep it in a file."""
    path.write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pieces", description="What a scope is made of.")
    parser.add_argument("--quick", action="store_true", help="a rough figure in a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in a file, for the report")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, asyncio")
    found = asyncio.run(measure(QUICK if options.quick else FULL))
    if options.json is not None:
        keep(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
