"""Subprocesses that don't want to end: what goes wrong without a scope, and what a scope does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from asyncio.subprocess import Process as AsyncioProcess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process

import running
from clients.shared import gone, on_asyncio, until
from rescope import CloseTimeoutError, ResourceCleanupError, Scope
from rescope.events import ScopeEvent
from running import run_example, run_python

every_backend = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
asyncio_backend = pytest.mark.parametrize("backend", ["asyncio", "uvloop"])

# What children do; each says so when it is up. A signal that comes before that is none of our tests' business.
BEGIN = "import os, signal, subprocess, sys, time\n"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
STAY = "os.write(1, b'up\\n'); time.sleep(60)\n"

WILLING = BEGIN + STAY
STUBBORN = BEGIN + IGNORE + STAY
# It tidies up when it is told to end, and says so with more than a pipe holds.
TIDY = (
    BEGIN
    + """
def tidy_up(*_):
    sys.stdout.write("x" * 1_000_000)
    sys.stdout.flush()
    open(sys.argv[1], "w").close()
    sys.exit(0)

signal.signal(signal.SIGTERM, tidy_up)
"""
    + STAY
)
# It writes without end.
CHATTY = BEGIN + IGNORE + "os.write(1, b'up\\n')\nwhile True: print('x' * 1000)\n"
# It has a child of its own that ignores SIGTERM, and inherits the pipe unless told otherwise.
PARENT = (
    BEGIN
    + f"""
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
child.stdout.readline()
os.write(1, b"%d\\n" % child.pid)
time.sleep(60)
"""
)
STUBBORN_PARENT = BEGIN + IGNORE + PARENT.removeprefix(BEGIN)

# What programs without a scope begin with; each runs in a process of its own, for the warnings at its end.
WITHOUT = """
import asyncio, gc, os, sys
import anyio

backend, child, *arguments = sys.argv[1:]
command = [sys.executable, "-c", child, *arguments]

def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

def run(main):
    options = {"use_uvloop": backend == "uvloop"} if backend != "trio" else {}
    anyio.run(main, backend=backend.replace("uvloop", "asyncio"), backend_options=options)
"""


def without_scope(program: str, backend: str, *arguments: str) -> tuple[list[str], str]:
    """Run a program that has no scope; give the lines that it printed, and what it wrote to stderr."""
    result = run_python("-W", "always", "-c", WITHOUT + program, backend, *arguments)
    return result.stdout.splitlines(), result.stderr


def ended(pid: int) -> bool:
    """Tell whether a process has ended; who is to wait for one that is not our child, is not our business."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    return gone(pid)


async def stop(process: Process) -> None:
    """Ask a process to end, read what it still has to say, and wait; cut off, kill it, and wait."""
    async with process:
        with suppress(ProcessLookupError):
            process.terminate()
        if process.stdout is not None:
            async for _ in process.stdout:
                pass
        await process.wait()


async def stop_asyncio(process: AsyncioProcess) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await process.communicate()
    finally:
        await process.wait()


def signal_group(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def stop_group(process: Process) -> None:
    try:
        async with process:
            signal_group(process, signal.SIGTERM)
            await process.wait()
    finally:
        signal_group(process, signal.SIGKILL)


async def start(scope: Scope, child: str, *arguments: str, **options: Any) -> Process:
    """Run a child in a scope, until it is up."""
    process = await anyio.open_process([sys.executable, "-c", child, *arguments], stderr=None)
    scope.add(process, partial(stop, process), force=process.kill, **options)
    assert process.stdout is not None
    assert (await process.stdout.receive()).startswith(b"up\n")
    return process


async def start_asyncio(scope: Scope, child: str, **options: Any) -> AsyncioProcess:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, stdout=PIPE)
    scope.add(process, partial(stop_asyncio, process), force=process.kill, **options)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process


async def start_group(scope: Scope, child: str, **options: Any) -> tuple[Process, int]:
    """Run a child that has a child, in a group of their own; give that one's id too."""
    process = await anyio.open_process([sys.executable, "-c", child], stderr=None, start_new_session=True)
    scope.add(process, partial(stop_group, process), force=partial(signal_group, process, signal.SIGKILL), **options)
    assert process.stdout is not None
    return process, int(await process.stdout.receive())


# Without a scope


@asyncio_backend
def test_without_a_scope_a_child_outlives_the_task_that_was_cancelled(backend: str) -> None:
    """Cancelled in `communicate()`, a task leaves its child running, and a transport to warn of."""
    lines, errors = without_scope(
        """
pids = []

async def main():
    async def work():
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        await process.stdout.readline()
        pids.append(process.pid)
        await process.communicate()

    task = asyncio.create_task(work())
    while not pids:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    print("cancelled" if task.cancelled() else "", "with a live child" if alive(pids[0]) else "", flush=True)

try:
    run(main)
    gc.collect()
finally:
    os.kill(pids[0], 9)
""",
        backend,
        WILLING,
    )

    assert lines == ["cancelled with a live child"]
    assert "ResourceWarning: unclosed" in errors or (backend == "asyncio" and sys.version_info < (3, 12))


@asyncio_backend
def test_without_a_scope_a_finally_waits_for_a_stubborn_child_until_it_is_cancelled_too(backend: str) -> None:
    """`terminate` and `wait` in a `finally` never end with a child that ignores SIGTERM; cancelled, they leave it."""
    lines, _ = without_scope(
        """
async def main():
    pids = []
    async def work():
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            await process.stdout.readline()
        finally:
            process.terminate()
            pids.append(process.pid)
            await process.wait()

    task = asyncio.create_task(work())
    while not pids:
        await asyncio.sleep(0.01)
    await asyncio.wait([task], timeout=0.5)
    print("done" if task.done() else "still waiting")
    task.cancel()
    await asyncio.wait([task])
    print("cancelled" if task.cancelled() else "", "with a live child" if alive(pids[0]) else "")
    os.kill(pids[0], 9)

run(main)
""",
        backend,
        STUBBORN,
    )

    assert lines == ["still waiting", "cancelled with a live child"]


@every_backend
def test_without_a_scope_the_manager_of_anyio_waits_for_ever_or_kills_at_once(backend: str, tmp_path: Path) -> None:
    """`async with` a process waits for one that doesn't end by itself; cancelled, it kills without asking first."""
    lines, _ = without_scope(
        """
async def main():
    with anyio.CancelScope() as limit:
        async with await anyio.open_process(command, stderr=None) as process:
            await process.stdout.receive()
            limit.deadline = anyio.current_time() + 0.5
    print("waited until it was cancelled" if limit.cancelled_caught else "", process.returncode)

run(main)
""",
        backend,
        TIDY,
        str(tmp_path / "tidy"),
    )

    assert lines == ["waited until it was cancelled -9"]
    assert not (tmp_path / "tidy").exists()


@every_backend
def test_without_a_scope_a_child_that_still_writes_and_the_one_who_waits_block_each_other(
    backend: str, tmp_path: Path
) -> None:
    """Told to end, a child that has more to say than a pipe holds is waited for by one who does not read."""
    lines, _ = without_scope(
        """
async def main():
    process = await anyio.open_process(command, stderr=None)
    await process.stdout.receive()
    process.terminate()
    with anyio.move_on_after(1) as limit:
        await process.wait()
    print("waited until it was cancelled" if limit.cancelled_caught else "", process.returncode)
    process.kill()
    await process.aclose()

run(main)
""",
        backend,
        TIDY,
        str(tmp_path / "tidy"),
    )

    assert lines == ["waited until it was cancelled None"]


@every_backend
def test_without_a_group_the_children_of_a_child_live_on(backend: str) -> None:
    """`terminate` reaches one process, not those that it has started."""
    lines, _ = without_scope(
        """
async def main():
    process = await anyio.open_process(command, stderr=None)
    pid = int(await process.stdout.receive())
    process.terminate()
    await process.aclose()
    print(process.returncode, "with a live grandchild" if alive(pid) else "")
    os.kill(pid, 9)

run(main)
""",
        backend,
        PARENT,
    )

    assert lines == ["-15 with a live grandchild"]


# With a scope


async def test_a_child_that_ignores_sigterm_is_killed_named_and_waited_for() -> None:
    """Out of time, it is forced; the failure names it; it is gone when the scope is, with its pipes closed."""
    kinds: list[str] = []
    scope = Scope("worker", on_event=lambda event: kinds.append(event.kind))
    willing = await start(scope, WILLING, name="willing", timeout=20)
    stubborn = await start(scope, STUBBORN, name="stubborn", timeout=0.2)

    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()

    assert [(failure.name, failure.timed_out) for failure in caught.value.failures] == [("stubborn", True)]
    assert isinstance(caught.value.errors[0], CloseTimeoutError)
    assert "forced" in kinds
    await until(lambda: stubborn.returncode is not None)
    assert (stubborn.returncode, willing.returncode) == (-signal.SIGKILL, -signal.SIGTERM)
    assert [gone(stubborn.pid), gone(willing.pid)] == [True, True]


async def test_a_child_that_still_writes_when_it_ends_is_heard_out(tmp_path: Path) -> None:
    """A close that reads to the end lets a child tidy up, however much it writes."""
    async with Scope("worker") as scope:
        child = await start(scope, TIDY, str(tmp_path / "tidy"), timeout=20)

    assert child.returncode == 0
    assert gone(child.pid)
    assert (tmp_path / "tidy").exists()


async def test_a_child_that_writes_without_end_is_killed() -> None:
    """Where reading to the end never ends, time does."""
    scope = Scope("worker")
    child = await start(scope, CHATTY, name="chatty", timeout=0.2)

    with pytest.raises(ResourceCleanupError, match="closing chatty took longer"):
        await scope.aclose()

    await until(lambda: child.returncode is not None)
    assert gone(child.pid)


async def test_a_child_that_has_ended_is_no_failure() -> None:
    """Closing what is over already is clean."""
    async with Scope("worker") as scope:
        child = await start(scope, WILLING, timeout=20)
        child.kill()
        await child.wait()

    assert child.returncode == -signal.SIGKILL
    assert gone(child.pid)


async def test_a_child_may_tidy_up_when_the_body_is_cancelled_by_a_scope(tmp_path: Path) -> None:
    """A cancel scope of anyio's in the midst of the work: the child is asked to end, and has its time."""
    children: list[Process] = []

    with anyio.CancelScope() as cancel_scope:
        async with Scope("worker") as scope:
            children.append(await start(scope, TIDY, str(tmp_path / "tidy"), timeout=20))
            cancel_scope.cancel()
            await children[0].wait()

    assert cancel_scope.cancelled_caught
    assert children[0].returncode == 0
    assert gone(children[0].pid)
    assert (tmp_path / "tidy").exists()


@on_asyncio
@pytest.mark.parametrize("starter", [start, start_asyncio])
async def test_children_are_closed_when_the_body_is_cancelled_again_and_again(starter: Any) -> None:
    """`task.cancel()` in the midst of the work, and then for each close: all children are gone, each in its way."""
    children: list[Any] = []
    up = anyio.Event()

    def cancel_again(event: ScopeEvent) -> None:
        if event.kind == "closing":
            asyncio.get_running_loop().call_soon(task.cancel)

    async def work() -> None:
        async with Scope("worker", on_event=cancel_again) as scope:
            children.append(await starter(scope, WILLING, timeout=20))
            children.append(await starter(scope, STUBBORN, timeout=0.2))
            up.set()
            await children[0].wait()

    task = asyncio.create_task(work())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: all(child.returncode is not None for child in children))
    assert [child.returncode for child in children] == [-signal.SIGTERM, -signal.SIGKILL]
    assert [gone(child.pid) for child in children] == [True, True]


@on_asyncio
async def test_processes_of_asyncio_are_ended_too() -> None:
    """One that ends when it is told to ends so, one that doesn't is killed, and no transport is left unclosed."""
    scope = Scope("worker")
    willing = await start_asyncio(scope, WILLING, timeout=20)
    stubborn = await start_asyncio(scope, STUBBORN, name="stubborn", timeout=0.2)

    with pytest.raises(ResourceCleanupError, match="closing stubborn took longer") as caught:
        await scope.aclose()

    assert len(caught.value.failures) == 1
    await until(lambda: stubborn.returncode is not None)
    assert (stubborn.returncode, willing.returncode) == (-signal.SIGKILL, -signal.SIGTERM)
    assert [gone(stubborn.pid), gone(willing.pid)] == [True, True]


async def test_the_children_of_a_child_end_with_it() -> None:
    """In a group of their own, what the child leaves behind is killed, and that is no failure."""
    async with Scope("worker") as scope:
        parent, child = await start_group(scope, PARENT, timeout=20)

    assert parent.returncode == -signal.SIGTERM
    assert gone(parent.pid)
    await until(lambda: ended(child))


async def test_a_group_that_does_not_end_is_forced() -> None:
    """`force` kills the whole group where its leader won't end."""
    scope = Scope("worker")
    parent, child = await start_group(scope, STUBBORN_PARENT, name="group", timeout=0.2)

    with pytest.raises(ResourceCleanupError, match="closing group took longer"):
        await scope.aclose()

    await until(lambda: parent.returncode is not None)
    assert parent.returncode == -signal.SIGKILL
    assert gone(parent.pid)
    await until(lambda: ended(child))


async def test_a_child_is_ended_early_by_another_task() -> None:
    """`release` ends one while the others run."""
    async with Scope("worker") as scope:
        first, second = await start(scope, WILLING, timeout=20), await start(scope, WILLING, timeout=20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scope.release, first)
        assert [gone(first.pid), gone(second.pid)] == [True, False]

    assert gone(second.pid)


async def test_stubborn_children_share_a_grace_at_the_same_time() -> None:
    """In a concurrent scope all are asked at once; when the grace is over each is killed and named."""
    events: list[ScopeEvent] = []
    scope = Scope("workers", grace=0.3, concurrent=True, on_event=events.append)
    children = [await start(scope, STUBBORN, name=name) for name in ("a", "b", "c")]

    with pytest.raises(ResourceCleanupError) as caught:
        await scope.aclose()

    kinds = [event.kind for event in events if event.kind in {"closing", "closed"}]
    assert kinds == ["closing"] * 3 + ["closed"] * 3
    assert sorted(failure.name for failure in caught.value.failures) == ["a", "b", "c"]
    await until(lambda: all(child.returncode is not None for child in children))
    assert [gone(child.pid) for child in children] == [True, True, True]


async def test_a_start_that_is_cancelled_leaves_no_child() -> None:
    """With `shield=True` a cancellation waits until the child is started and registered; then it is ended."""
    children: list[Process] = []

    async def open_it() -> Process:
        children.append(await anyio.open_process([sys.executable, "-c", WILLING], stderr=None))
        return children[0]

    with anyio.CancelScope() as cancel_scope:
        async with Scope("worker") as scope:
            cancel_scope.cancel()
            await scope.acquire(open_it, stop, shield=True)
            pytest.fail("the cancellation goes on")

    assert cancel_scope.cancelled_caught
    assert children[0].returncode == -signal.SIGTERM
    assert gone(children[0].pid)


# The example


@running.every_backend
def test_the_example_leaves_no_process(backend: str) -> None:
    """`processes` ends its four workers each in its way, tells which had to be forced, and leaves none."""
    result = run_example("processes.py", "--backend", backend)

    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert "    the scope says: 2 of 4 resources of scope 'shift' failed to close: " in result.stdout
    assert "    indexer: died of SIGTERM" in lines
    assert "    archiver: exit code 0" in lines
    assert "    importer: died of SIGKILL, had to be forced" in lines
    assert "    launcher: died of SIGKILL, had to be forced" in lines
    assert "    the archive has 20,000 of 20,000 pages" in lines
    assert lines[-1] == "5 processes were started, none is left; had to be forced: importer, launcher"
    assert result.returncode == 0
