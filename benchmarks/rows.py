"""The lines of the table: each a contest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import limit, peers, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.backends import Backend
    from benchmarks.work import Contest, Parts


class Row(NamedTuple):
    """One contest, made when it is wanted."""

    work: str
    contest: Callable[[], Contest]
    closes: int
    """How many closers run each time."""


def rows(backend: Backend, parts: Parts) -> Iterator[Row]:
    """Give all the contests on a backend, with these parts."""
    yield Row("0 resources", partial(_empty, backend, parts), 0)
    for count in (1, 10, 1000):
        yield Row(f"{count} sync {_closers(count)}", partial(_sync, backend, parts, count), count)
    for count in (1, 10, 1000):
        yield Row(f"{count} async {_closers(count)}", partial(_async, backend, parts, count), count)
    for count in (10, 1000):
        yield Row(f"{count} {_closers(count)} that suspend", partial(_pausing, backend, parts, count), count)
    yield Row("10 entered managers", partial(_entered, parts), 10)
    yield Row("10 async generators", partial(_generators, parts), 10)


def _closers(count: int) -> str:
    return "closer" if count == 1 else "closers"


def _empty(backend: Backend, parts: Parts) -> Contest:
    return work.empty(backend) | peers.made_by(parts.generator, 0)


def _sync(backend: Backend, parts: Parts, count: int) -> Contest:
    contest = work.closers(backend, count, parts.close_sync, sync=True)
    by_hand = limit.sync_closers(count, parts.close_sync)
    return contest | {"by hand": by_hand} | peers.made_by(parts.generator, count)


def _async(backend: Backend, parts: Parts, count: int) -> Contest:
    contest = work.closers(backend, count, parts.close_async, sync=False)
    by_hand = limit.async_closers(count, parts.close_async)
    return contest | {"by hand": by_hand} | peers.made_by(parts.async_generator, count)


def _pausing(backend: Backend, parts: Parts, count: int) -> Contest:
    contest = work.closers(backend, count, parts.close_pausing, sync=False)
    by_hand = limit.async_closers(count, parts.close_pausing)
    return contest | {"by hand": by_hand} | peers.made_by(parts.pausing_generator, count)


def _entered(parts: Parts) -> Contest:
    contest = work.entered(10, parts.manager)
    return contest | {"by hand": limit.ten_managers(parts.manager)} | peers.entered(parts.manager, 10)


def _generators(parts: Parts) -> Contest:
    contest = work.generators(10, parts.async_generator)
    by_hand = limit.ten_generators(parts.async_generator)
    return contest | {"by hand": by_hand} | peers.made_by(parts.async_generator, 10)
