"""A short soak on each backend; the long one is `python tests/soak.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

import soak
from conftest import BACKENDS
from rescope import Scope
from running import run_python
from soak import Counted, Memory, Soaked

pytestmark = pytest.mark.long

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.parametrize("backend", [param.id for param in BACKENDS])
def test_many_resources_leave_nothing_behind(backend: str) -> None:
    """20,000 resources through 2,000 scopes leave no memory, no reference cycle, no task, and nothing open."""
    options = ["--scopes", "2000", "--resources", "20000", "--backend", backend]
    done = run_python("-W", "error", str(SOAK), *options)  # where no other test's garbage is counted

    assert done.stderr == ""
    assert done.stdout.startswith(f"{backend} on Python")
    assert "2,000 scopes, 20,000 resources" in done.stdout
    assert "FAILED" not in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("kind", soak.KINDS, ids=lambda kind: kind.__name__)
async def test_each_kind_of_scope_closes_what_it_holds(kind: soak.Kind) -> None:
    """A soak of one kind opens as many as it says, closes them all, and leaves the parent empty."""
    soaked = await soak.soak(20, 200, [kind])

    assert (soaked.scopes, soaked.opened, soaked.closed) == (20, 200, 200)
    assert (soaked.held, soaked.tasks) == (0, 0)


async def test_a_soak_that_leaks_is_noticed() -> None:
    """What is left open, held by the parent, in memory or in circles is found."""

    async def leaky(counted: Counted, n: int, parent: Scope) -> None:
        for _ in range(n):
            parent.defer(counted.close, counted.open())
        circle = Scope()
        circle._handle = circle  # type: ignore[assignment]
        counted.opened += 1

    soaked = await soak.soak(1_000, 10_000, [leaky])

    assert soaked.complaints(500)[1:] == [
        "1,000 objects of ours were left to the collector",
        "1,000 resources are left open",
        "the parent holds 10,000 still",
    ]
    assert "blocks of memory more than after the first tenth" in soaked.complaints(500)[0]


def test_complaints_name_what_does_not_hold() -> None:
    """Growth up to the slack, and a collector that finds what is not ours, are no complaint; a task that is left is."""
    fine = Soaked(10, 100, 100, 0, 0, 1.0, Memory(1_000, 20.0), Memory(1_500, 20.0), 0, 35)
    task_left = Soaked(10, 100, 100, 0, 1, 1.0, Memory(1_000, 20.0), Memory(1_501, 20.0), 0, 0)

    assert fine.complaints(500) == []
    assert task_left.complaints(500) == [
        "501 blocks of memory more than after the first tenth",
        "1 tasks are left",
    ]
