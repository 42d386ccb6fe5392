"""`rescope.runner.run`: signals sent to real processes, and the same in this process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import itertools
import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from rescope import Err, Ok, ResourceCleanupError, Scope, runner
from rescope._runner import stop as stop_room
from rescope._runner.stop import Stop, exit_code, signal_name
from rescope.events import ScopeEvent
from rescope.runner import run

BACKENDS = ["asyncio", *(name for name in ("uvloop", "trio") if importlib.util.find_spec(name))]
MAINS = Path(__file__).parent / "runner_programs" / "mains.py"
SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_loop = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "trio"])
posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
trio_only = pytest.mark.skipif("trio" not in BACKENDS, reason="trio is not installed")


# Real processes


class Program:
    """A program of `mains.py` that runs, and is killed if it takes too long."""

    def __init__(self, name: str, backend: str, grace: float, **env: str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-W", "error", str(MAINS), name, backend, str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env, "PYTHONUNBUFFERED": ""},
            start_new_session=True,
        )
        self.stdin: Any = self.process.stdin
        self.stdout: Any = self.process.stdout
        self.stderr: Any = self.process.stderr
        self.limit = threading.Timer(30, self.process.kill)
        self.limit.start()

    def reads(self, expected: str) -> str:
        """Wait for a line, and give it."""
        while line := self.stdout.readline():
            if line.startswith(expected):
                return line.rstrip()
        pytest.fail(f"never said {expected!r}; stderr: {self.stderr.read()}")

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> tuple[int, list[str], str]:
        """Wait until it ends; give its exit code, the rest of its lines, and its stderr."""
        with self.process, contextlib.ExitStack() as stack:  # `communicate` would miss what was read ahead
            stack.callback(self.limit.join)
            stack.callback(self.limit.cancel)
            self.stdin.close()
            out, err = self.stdout.read(), self.stderr.read()
            return self.process.wait(), out.splitlines(), err


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start programs that are gone in the end."""
    started: list[Program] = []

    def begin(name: str, backend: str, grace: float = 60, **env: str) -> Program:
        started.append(Program(name, backend, grace, **env))
        return started[-1]

    yield begin
    for program in started:
        program.process.kill()
        if not program.stdout.closed:
            program.end()


Start = Callable[..., Program]
NEVER = "60"
"""Seconds until the watchdog comes, where a test is about what ends without it, however slow the machine is."""

pytestmark = posix


@every_backend
@pytest.mark.parametrize("signum", [SIGTERM, SIGINT])
def test_a_signal_closes_all_in_order_and_ends_in_the_code_of_the_shell(
    start: Start, backend: str, signum: signal.Signals
) -> None:
    """A signal cancels main, closes in reverse order as on failure, and says nothing; the code is 128 plus it."""
    program = start("body", backend)
    program.reads("up")
    program.send(signum)
    assert program.end() == (128 + signum, ["rolled back", "closed b", "closed a"], "")


@every_backend
def test_main_may_await_while_it_unwinds(start: Start, backend: str) -> None:
    """The cancellation comes once, so that a `finally` of main's may await, as under `asyncio.run`."""
    program = start("unwinding", backend)
    program.reads("up")
    program.send(SIGTERM)
    assert program.end() == (143, ["unwound", "closed a"], "")


@every_backend
def test_a_signal_while_something_is_acquired(start: Start, backend: str) -> None:
    """A signal during start-up cancels the acquisition, and closes what was acquired before."""
    program = start("start_up", backend)
    program.reads("acquiring")
    program.send(SIGTERM)
    assert program.end() == (143, ["closed a"], "")


@every_backend
def test_a_signal_while_all_is_closed(start: Start, backend: str) -> None:
    """A signal after main has ended cuts nothing short: all is closed, and the code tells of the signal."""
    program = start("cleanup", backend, LOG="1")
    program.reads("closing")
    program.send(SIGTERM)
    assert program.stderr.readline() == "INFO rescope SIGTERM: stopping, 60 s\n"
    program.stdin.write("go on\n")
    program.stdin.flush()
    assert program.end() == (143, ["closed b", "closed a"], "")


@every_backend
@pytest.mark.parametrize("name", ["hanging_closers", "hanging_child"])
def test_a_second_signal_forces_what_hangs(start: Start, backend: str, name: str) -> None:
    """A second signal leaves next to no time: what hangs is forced, what doesn't is closed, and all are attempted."""
    program = start(name, backend, LOG="1", SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    program.reads("hangs")
    program.send(SIGINT)
    code, lines, err = program.end()
    forced = [line for line in lines if line.startswith("forced")]
    assert code == 143
    assert forced == (["forced d", "forced b"] if name == "hanging_closers" else ["forced b"])
    assert lines[-1] == "closed a"
    assert "WARNING rescope a second signal: what still closes is forced\n" in err
    assert "ERROR rescope" in err


@every_backend
def test_a_second_signal_ends_an_exit_that_hangs(start: Start, backend: str) -> None:
    """The exit of an entered manager, which no time bounds, is cancelled by a second signal."""
    program = start("hanging_exit", backend, LOG="1", SLACK=NEVER)
    program.reads("exits")
    program.send(SIGTERM)
    assert "stopping" in program.stderr.readline()
    program.send(SIGTERM)
    assert program.end()[:2] == (143, ["closed a"])


@every_backend
def test_an_exit_that_hangs_has_the_grace(start: Start, backend: str) -> None:
    """When the grace is over such an exit is cancelled too, and what is held below it is closed."""
    program = start("hanging_exit", backend, 0.4, SLACK=NEVER)
    program.reads("exits")
    program.send(SIGTERM)
    assert program.end() == (143, ["closed a"], "the grace is over: what still closes is forced\n")


@every_backend
def test_closers_that_hang_have_the_grace(start: Start, backend: str) -> None:
    """After one signal what hangs is forced in its time, and the next ones run: the failures are logged."""
    program = start("hanging_closers", backend, 0.4, SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert code == 143
    assert lines == ["hangs", "forced d", "closed c", "hangs", "forced b", "closed a"]
    assert "2 of 4 resources" in err
    assert "Traceback" not in err


@every_backend
@pytest.mark.parametrize("name", ["stubborn_closer", "closer_in_thread"])
def test_a_closer_that_does_not_end_keeps_nothing_alive(start: Start, backend: str, name: str) -> None:
    """A closer that ignores its cancellation, or sits in a thread, is left behind, and the process ends without it."""
    program = start(name, backend, 0.4)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert code == 143
    assert "closed a" in lines
    assert "the process ends now" in err


@every_loop
def test_a_busy_executor_keeps_nothing_alive(start: Start, backend: str) -> None:
    """After a signal, a thread of the loop's executor has what is left of the grace, and no more."""
    program = start("blocked_executor", backend, 0.4, SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert (code, lines) == (143, ["closed a"])
    assert "left behind: thread " in err


@every_backend
def test_a_stuck_thread_keeps_nothing_alive(start: Start, backend: str) -> None:
    """After a signal a thread that main has started, and that does not end, has what is left of the grace."""
    program = start("stuck_thread", backend, 0.4, SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    assert program.end() == (143, ["closed a"], "left behind: thread stuck: the process ends now\n")


@every_backend
def test_idle_executors_are_python_s(start: Start, backend: str) -> None:
    """An ordinary stop does not wait for the idle workers of executors, which Python ends at its own end."""
    program = start("idle_executors", backend)
    program.reads("up")
    program.send(SIGTERM)
    assert program.end() == (143, ["closed a"], "")


@every_backend
def test_a_log_that_blocks_keeps_nothing_alive(start: Start, backend: str) -> None:
    """The watchdog is there until the last word is logged: a handler that blocks does not keep the process."""
    program = start("blocking_log", backend, 0.2)
    assert program.end() == (143, ["closed a", "logs ERROR"], "")


@every_backend
def test_a_body_that_ignores_its_cancellation_loses_its_scope(start: Start, backend: str) -> None:
    """After half of the grace the scope is closed over the body's head, as failed, and the process ends."""
    program = start("stubborn_body", backend, 0.4, SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert code == 143
    assert [line for line in lines if line != "ignored"] == ["rolled back", "closed a"]
    assert "left behind: main" in err


@every_backend
def test_a_second_signal_does_not_wait_for_such_a_body(start: Start, backend: str) -> None:
    """On a second signal the scope of a body that ignores its cancellation is closed at once."""
    program = start("stubborn_body", backend, LOG="1", SLACK=NEVER)
    program.reads("up")
    program.send(SIGTERM)
    assert "stopping" in program.stderr.readline()
    program.send(SIGTERM)
    code, lines, _ = program.end()
    assert code == 143
    assert "closed a" in lines


@every_backend
@pytest.mark.parametrize("again", [False, True])
def test_a_body_that_blocks_the_loop(start: Start, backend: str, again: bool) -> None:
    """Where nothing can run, the process ends when the time is over; it says what is open, and flushes."""
    program = start("blocking_body", backend, 60 if again else 0.2)
    program.reads("up")
    program.send(SIGTERM)
    if again:
        program.send(SIGINT)
    code, lines, err = program.end()
    assert code in {143, 130} if again else code == 143  # two that come at once may be handled in either order
    assert lines == ["not flushed"]
    assert "the process ends now, still open: goodbye" in err


@every_backend
def test_a_third_signal_ends_it_at_once(start: Start, backend: str) -> None:
    """A third signal ends the process on the spot, with the code of the first, and nothing is said."""
    program = start("telling_body", backend, SLACK="60")
    program.reads("up")
    program.send(SIGTERM)
    program.reads("signal 1")
    program.send(SIGINT)
    program.reads("signal 2")
    program.send(SIGINT)
    assert program.end() == (143, [], "")


@every_backend
def test_catching_the_cancellation_changes_no_code(start: Start, backend: str) -> None:
    """Where main swallows the cancellation and returns, the code is that of the signal."""
    program = start("swallowing", backend)
    program.reads("up")
    program.send(SIGTERM)
    assert program.end() == (143, ["swallowed", "closed a"], "")


@every_backend
def test_a_cleanup_that_fails_is_told_and_changes_no_code(start: Start, backend: str) -> None:
    """A failing closer on an ordinary stop is logged, without a traceback, and the code is that of the signal."""
    program = start("failing_cleanup", backend)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert (code, lines) == (143, ["closed a"])
    assert "1 of 2 resources of scope 'failing_cleanup' failed to close" in err
    assert "Traceback" not in err


@every_backend
def test_what_main_raises_is_its_own(start: Start, backend: str) -> None:
    """An error of main's is raised, with a traceback and code 1, stopped or not."""
    program = start("raising", backend)
    code, lines, err = program.end()
    assert (code, lines, err.splitlines()[-1]) == (1, ["closed a"], "LookupError: its own")
    program = start("raising_when_stopped", backend)
    program.reads("up")
    program.send(SIGTERM)
    code, lines, err = program.end()
    assert (code, lines, err.splitlines()[-1]) == (1, ["closed a"], "LookupError: its own")


@every_backend
def test_an_exit_is_an_exit(start: Start, backend: str) -> None:
    """A `SystemExit` of main's is the exit of the process, after all is closed."""
    assert start("exiting", backend).end() == (3, ["closed a"], "")


@every_backend
def test_it_gives_what_main_returns(start: Start, backend: str) -> None:
    """Without a signal `run` gives what main returned, and the process goes on."""
    assert start("returning", backend).end() == (0, ["closed a", "returned the value"], "")


@every_backend
def test_what_is_left_behind_without_a_signal(start: Start, backend: str) -> None:
    """A closer that will not end keeps no process from ending, also where no signal came; the failure is raised."""
    code, lines, err = start("leaving_behind", backend, 0.3).end()
    assert code == 1
    assert "closed a" in lines
    assert "b: CloseTimeoutError" in err


@every_backend
def test_a_child_in_the_same_group_is_unharmed(start: Start, backend: str) -> None:
    """A signal to the process is passed on to no other: a child of the same group goes on until its closer ends it."""
    program = start("with_child_process", backend)
    program.reads("child up")
    program.send(SIGTERM)
    assert program.end() == (143, ["child unharmed", "child ended with 0"], "")


@every_backend
def test_a_forked_child_does_not_inherit_it(start: Start, backend: str) -> None:
    """A signal to a child that main has forked does there what it would do without `run`."""
    program = start("with_fork", backend)
    os.kill(int(program.reads("child ").split()[1]), SIGTERM)
    assert program.end() == (0, ["child ended by 15", "returned None"], "")


@every_loop
def test_a_server_that_handles_signals_itself(start: Start, backend: str) -> None:
    """The server uvicorn finishes its requests first, then hands the signal on, and `run` stops the rest."""
    pytest.importorskip("uvicorn")
    program = start("with_uvicorn", backend)
    with socket.create_connection(("127.0.0.1", int(program.reads("port ").split()[1])), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        program.reads("requested")
        program.send(SIGTERM)
        assert client.makefile("rb").read().endswith(b"\r\nanswer\r\n0\r\n\r\n")
    assert program.end() == (143, ["answered", "served", "closed a"], "")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "uvloop"])
def test_the_example(backend: str) -> None:
    """The example stops a service that holds orders in memory: lost without `run`, written with it."""
    example = Path(__file__).parent.parent / "examples" / "service.py"
    done = subprocess.run(  # noqa: S603 (our own example)
        [sys.executable, "-W", "error", str(example), "--backend", backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "as it should be")
    assert re.findall("exit code (-?[0-9]+), ([0-9]) of 3", done.stdout) == [("-15", "0"), ("143", "3"), ("143", "3")]


@every_backend
def test_streams_and_threads_are_as_usual(start: Start, backend: str) -> None:
    """An ordinary stop ends idle worker threads, flushes, and says nothing but that it stops."""
    program = start("service", backend, LOG="1")
    assert program.stderr.readline() == "INFO service ready\n"
    program.reads("up")
    program.send(SIGTERM)
    assert program.end() == (143, ["not flushed", "closed a"], "INFO rescope SIGTERM: stopping, 60 s\n")


# In this process


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread and no handler is left by a run; and the watchdog ends no process that is just slow."""
    monkeypatch.setattr(stop_room, "SLACK", 30)
    handlers = [signal.getsignal(number) for number in (SIGINT, SIGTERM)]
    threads = lasting_threads()
    yield
    assert [signal.getsignal(number) for number in (SIGINT, SIGTERM)] == handlers
    for thread in lasting_threads() - threads:
        thread.join(10)
    assert lasting_threads() <= threads


def lasting_threads() -> set[threading.Thread]:
    """The threads that a process waits for at its end, and ours. Those of trio's are neither."""
    return {thread for thread in threading.enumerate() if not thread.daemon or thread.name.startswith("rescope")}


class GoneError(BaseException):
    """The process would be gone here."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have ended hard."""
    codes: list[int] = []

    def leave(code: int) -> None:
        if threading.current_thread() is threading.main_thread():
            codes.append(code)
            raise GoneError
        if not codes:
            codes.append(code)
        time.sleep(0.01)  # the watchdog goes on, here

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    return codes


def stopped(main: Callable[..., Any], *args: object, **options: Any) -> int:
    """Run it, and give the code of the exit."""
    with pytest.raises(SystemExit) as caught:
        run(main, *args, **options)
    return exit_code(caught.value)


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again, for ten seconds at most."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    assert holds()


async def forever(*_: object) -> None:
    await anyio.sleep_forever()


@every_backend
def test_arguments_and_the_value(backend: Any) -> None:
    """Arguments go to main after the scope, which has main's name, and its value comes back."""

    async def main(scope: Scope, a: int, b: str) -> tuple[Scope, str | None, int, str]:
        return scope, scope.name, a, b

    scope, name, *rest = run(main, 1, "b", backend=backend, grace=None)
    assert (scope.state, rest) == ("closed", [1, "b"])
    assert name is not None
    assert name.endswith("main")


@every_backend
def test_events_and_a_name(backend: Any) -> None:
    """`name` and `on_event` are the scope's."""
    events: list[ScopeEvent] = []

    async def main(scope: Scope) -> None:
        scope.defer(int)

    run(main, backend=backend, name="api", on_event=events.append)
    assert [event.kind for event in events] == ["opened", "acquired", "closing", "closed", "scope_closed"]
    assert {event.path for event in events} == {("api",)}


@every_backend
def test_a_returned_err_is_a_failure_and_comes_back(backend: Any) -> None:
    """A body that returns an `Err` rolls back, and `run` gives it back."""
    seen: list[str] = []

    async def main(scope: Scope) -> Err[str]:
        scope.on_error(seen.append, "rolled back")
        scope.on_success(seen.append, "committed")
        return Err("no")

    assert run(main, backend=backend) == Err("no")
    assert seen == ["rolled back"]


@every_backend
def test_a_failing_cleanup_is_raised_also_beside_a_result(backend: Any) -> None:
    """Unlike `with_scope`, `run` raises what failed to close where main returned an `Ok`, so that a program fails."""

    async def main(scope: Scope) -> Ok[str]:
        scope.defer(int, "no number")
        return Ok("fine")

    with pytest.raises(ResourceCleanupError, match="1 of 1 resources") as caught:
        run(main, backend=backend)
    assert caught.value.original_result == Ok("fine")


@every_backend
def test_a_result_that_a_closed_scope_gave(backend: Any) -> None:
    """An `Err` of main's own stays its own, whatever failed to close."""

    async def main(scope: Scope) -> Err[str]:
        scope.defer(int, "no number")
        with pytest.raises(ResourceCleanupError):
            await scope.aclose()
        return Err("handled")

    assert run(main, backend=backend) == Err("handled")


@every_backend
def test_a_signal_in_the_body(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A signal is an exit with its code; that it stops is logged once, at INFO."""
    caplog.set_level(logging.INFO, "rescope")
    closed: list[str] = []

    async def main(scope: Scope) -> None:
        scope.defer(closed.append, "a")
        scope.child("child").defer(closed.append, "b")
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    assert stopped(main, backend=backend, signals=[SIGTERM, SIGTERM]) == 143
    assert closed == ["b", "a"]
    assert caplog.messages == ["SIGTERM: stopping, 25 s"]


@every_backend
def test_a_signal_that_another_thread_gets(backend: Any) -> None:
    """A signal wakes the loop also where the system hands it to another thread than the one that waits."""
    in_time: list[bool] = []
    unwound = threading.Event()

    def signal_here() -> None:
        places: list[tuple[object, int]] = []
        while len(places) < 5 or len(set(places[-5:])) > 1:  # until the main thread sleeps
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            places.append((frame.f_code, frame.f_lasti))
            time.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), SIGTERM)
        in_time.append(unwound.wait(5))

    async def main(scope: Scope) -> None:
        scope.defer(unwound.set)
        thread = threading.Thread(target=signal_here)
        thread.start()
        await anyio.sleep(10)

    assert stopped(main, backend=backend) == 143
    wait_until(lambda: in_time != [])
    assert in_time == [True]


@every_backend
def test_no_bound_and_another_signal(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With `grace=None` nothing is bounded; any signal that can be caught will do, real-time ones too."""
    caplog.set_level(logging.INFO, "rescope")

    async def main(_: Scope) -> None:
        signal.raise_signal(signal.SIGRTMIN + 1)
        await anyio.sleep_forever()

    assert stopped(main, backend=backend, signals=[signal.SIGRTMIN + 1], grace=None) == 128 + signal.SIGRTMIN + 1
    assert caplog.messages == [f"signal {signal.SIGRTMIN + 1}: stopping"]


@every_backend
def test_a_signal_before_main_begins(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while the loop is made, or imported, keeps main from being begun."""
    begun: list[Scope] = []

    async def main(scope: Scope) -> None:
        begun.append(scope)

    def early(module: str, name: str) -> None:
        original = getattr(sys.modules[module], name)

        def signalled(first: object, *rest: object) -> object:
            if first is not None:  # asyncio forgets its loop with the same function
                signal.raise_signal(SIGTERM)
            return original(first, *rest)

        monkeypatch.setattr(sys.modules[module], name, signalled)

    run(main, backend=backend)
    early("trio" if backend == "trio" else "asyncio", "run" if backend == "trio" else "set_event_loop")
    assert stopped(main, backend=backend) == 143
    assert len(begun) == 1


@every_backend
def test_a_signal_at_the_very_end(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal after all is closed, and the loop is gone, still decides the code."""
    original = runner._run_on

    def late(*args: Any) -> list[str]:
        left = original(*args)
        signal.raise_signal(SIGINT)
        return left

    monkeypatch.setattr(runner, "_run_on", late)
    assert stopped(nothing, backend=backend) == 130


async def nothing(_: Scope) -> None:
    await anyio.lowlevel.checkpoint()


@every_backend
def test_signals_while_it_closes(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A first signal in the cleanup lets it go on, a second one forces what hangs, in a child too."""
    log: list[str] = []

    async def stop_then_hang(signum: int) -> None:
        signal.raise_signal(signum)
        await anyio.sleep(0.01)
        log.append("still closing")
        signal.raise_signal(SIGINT)
        await anyio.sleep_forever()

    async def main(scope: Scope) -> str:
        scope.defer(log.append, "a")
        scope.child("child").add("b", lambda: stop_then_hang(SIGTERM), name="b", force=lambda: log.append("forced"))
        return "lost"

    assert stopped(main, backend=backend) == 143
    assert log == ["still closing", "forced", "a"]
    assert "a second signal: what still closes is forced" in caplog.messages


@every_backend
def test_an_exit_is_not_cut_off_by_a_first_signal(backend: Any) -> None:
    """The exit of an entered manager, which a cancellation would reach, runs to its end when a first signal comes."""
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def manager() -> Any:
        yield
        signal.raise_signal(SIGTERM)
        await anyio.sleep(0.01)
        log.append("exited")

    async def main(scope: Scope) -> None:
        await scope.enter(manager())

    assert stopped(main, backend=backend) == 143
    assert log == ["exited"]


@every_backend
def test_the_time_runs_from_the_end_of_main(backend: Any) -> None:
    """Where main ends by itself, the grace of all that follows runs from there."""
    left: list[float | None] = []

    async def main(scope: Any) -> None:
        left.append(scope._stop.left())
        scope.defer(lambda: left.append(scope._stop.left()))

    run(main, backend=backend, grace=7)
    before, after = left
    assert before is None
    assert after is not None
    assert 0 < after <= 7


@every_backend
def test_what_main_takes_its_closers_do_not_have(backend: Any) -> None:
    """The grace counts from the signal: what main needs to unwind is taken from the time of its closers."""
    left: list[float] = []

    async def main(scope: Any) -> None:
        scope.defer(lambda: left.append(scope._unwinding.budget.left()))
        signal.raise_signal(SIGTERM)
        try:
            await anyio.sleep_forever()
        finally:
            time.sleep(0.3)  # noqa: ASYNC251 (it takes time)

    assert stopped(main, backend=backend, grace=10) == 143
    (seconds,) = left
    assert 0 < seconds <= 9.7


@every_backend
def test_a_scope_that_is_moved_keeps_its_grace(backend: Any) -> None:
    """What main moves to another scope is closed there, in the same grace."""
    closed: list[str] = []

    async def main(scope: Scope) -> list[str]:
        scope.defer(closed.append, "a")
        moved = scope.move()
        assert moved._grace == 7
        await moved.aclose()
        return closed

    assert run(main, backend=backend, grace=7) == ["a"]


@every_backend
def test_a_child_that_closes_by_itself_is_forced_too(backend: Any) -> None:
    """Closing a child without any bound, in the body, is cut short by a second signal."""
    forced: list[str] = []

    async def hang() -> None:
        signal.raise_signal(SIGTERM)
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    async def main(scope: Scope) -> None:
        async with scope.child(concurrent=True) as child:
            child.child().add("b", hang, timeout=60, force=lambda: forced.append("b"))

    assert stopped(main, backend=backend) == 143
    assert forced == ["b"]


@every_backend
def test_a_body_whose_scope_was_closed_before(backend: Any) -> None:
    """A body that has closed its scope itself is cancelled as any other."""

    async def main(scope: Scope) -> None:
        await scope.aclose()
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    assert stopped(main, backend=backend) == 143


@every_backend
def test_a_body_that_closes_its_scope_takes_its_time(backend: Any) -> None:
    """While a body closes its scope itself it is not given up; nor is one that then ends late, but in time."""
    log: list[str] = []

    async def close() -> None:
        signal.raise_signal(SIGTERM)
        await anyio.sleep(0.15)
        log.append("closed")

    async def main(scope: Scope) -> None:
        scope.defer(close)
        try:
            await scope.aclose()
        finally:
            log.append("ended")

    assert stopped(main, backend=backend, grace=0.2) == 143
    assert log == ["closed", "ended"]


@every_backend
def test_a_body_that_outlives_its_scope(backend: Any) -> None:
    """A body that has closed its scope, and goes on after it was cancelled, has a little more than its time."""

    async def main(scope: Scope) -> None:
        await scope.aclose()
        signal.raise_signal(SIGTERM)
        with anyio.CancelScope(shield=True):
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                with contextlib.suppress(BaseException):
                    await anyio.sleep(0.01)

    assert stopped(main, backend=backend, grace=0.02) == 143


@every_loop
def test_a_closer_left_behind_without_a_signal(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A closer that ignores its cancellation is named in a WARNING, and `run` is not held up by it."""
    over = threading.Event()

    async def ignore() -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def main(scope: Scope) -> None:
        scope.add("a", ignore, name="a", timeout=0)

    with pytest.raises(ResourceCleanupError):
        run(main, backend=backend)
    assert caplog.messages == ["left behind: a closer"]


@every_backend
def test_no_time_at_all(backend: Any) -> None:
    """With `grace=0` all is attempted still."""
    closed: list[str] = []

    async def main(scope: Scope) -> None:
        scope.defer(closed.append, "a")
        scope.defer(forever)
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    assert stopped(main, backend=backend, grace=0) == 143
    assert closed == ["a"]


@every_backend
def test_a_failing_cleanup_of_a_body_that_had_ended(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where all that went wrong after a signal is the cleanup, that is logged, and the code is the signal's."""

    def fail() -> None:
        signal.raise_signal(SIGTERM)
        raise OSError("disk full")

    async def main(scope: Scope) -> None:
        scope.defer(fail)

    assert stopped(main, backend=backend) == 143
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "OSError: disk full (not raised, because of a SIGTERM)" in record.message


@every_backend
def test_a_body_that_fails_and_can_not_be_closed_either(backend: Any) -> None:
    """A failing cleanup that follows an error of main's own is raised from it, signal or not."""

    async def main(scope: Scope) -> None:
        scope.defer(int, "no number")
        signal.raise_signal(SIGTERM)
        raise LookupError("its own")

    with pytest.raises(ResourceCleanupError) as caught:
        run(main, backend=backend)
    assert isinstance(caught.value.__cause__, LookupError)


@every_backend
def test_a_body_given_up(backend: Any, exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A body that ignores its cancellation loses its scope; failures of that are logged; the process ends hard."""
    outcomes: list[Any] = []

    async def main(scope: Scope) -> None:
        scope.on_exit(outcomes.append)
        scope.defer(int, "no number")
        signal.raise_signal(SIGTERM)
        while not exits:
            with anyio.CancelScope(shield=True):
                with contextlib.suppress(BaseException):
                    await anyio.sleep(0.01)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 (trio wraps what this test raises for an exit)
        run(main, backend=backend, grace=0.1)
    assert exits[0] == 143
    assert [str(outcome.error) for outcome in outcomes] == ["the body did not end when it was cancelled"]
    assert "1 of 2 resources" in caplog.messages[0]
    assert "left behind: main" in caplog.text
    assert caught.type is GoneError or "trio" in caught.type.__module__


@every_backend
def test_a_body_given_up_at_a_second_signal(backend: Any, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal that comes later has the scope closed at once, and a body that ends on that ends the run."""
    monkeypatch.setattr(stop_room, "SLACK", 5)

    async def main(scope: Any) -> None:
        signal.raise_signal(SIGTERM)
        with anyio.CancelScope(shield=True):
            for _ in range(5):
                with contextlib.suppress(BaseException):
                    await anyio.sleep(0.01)
            signal.raise_signal(SIGTERM)
            while scope.state == "open" and not exits:
                with contextlib.suppress(BaseException):
                    await anyio.sleep(0.01)

    assert stopped(main, backend=backend, grace=None) == 143
    assert exits == []


@every_backend
def test_the_scope_of_such_a_body_may_close_well(backend: Any, exits: list[int]) -> None:
    """A body that ends while its scope is closed over its head has been given up in time, and nothing is left."""
    closing = threading.Event()
    log: list[str] = []

    async def close() -> None:
        closing.set()
        await anyio.sleep(0.05)
        log.append("closed")

    async def main(scope: Scope) -> None:
        scope.defer(close)
        signal.raise_signal(SIGTERM)
        with anyio.CancelScope(shield=True):
            while not closing.is_set():
                with contextlib.suppress(BaseException):
                    await anyio.sleep(0.01)

    assert stopped(main, backend=backend, grace=1) == 143
    assert log == ["closed"]
    assert exits == []


@every_backend
def test_threads_and_processes_that_a_run_leaves_idle(backend: Any) -> None:
    """A worker thread of the run's that is idle ends with it."""

    async def main(_: Scope) -> int:
        return await anyio.to_thread.run_sync(threading.get_ident)

    before = threading.active_count()
    assert run(main, backend=backend) != threading.get_ident()
    if backend != "trio":  # whose threads are daemons, and linger a while for the next run
        assert threading.active_count() == before


@every_loop
def test_strays_are_cancelled_and_have_their_time(backend: Any) -> None:
    """A task that main leaves behind is cancelled, and its own scope closes whole."""
    log: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def close() -> None:
        await asyncio.sleep(0.1)
        log.append("closed")

    async def stray() -> None:
        async with Scope() as scope:
            scope.defer(close)
            log.append("opened")
            await anyio.sleep_forever()

    async def main(_: Scope) -> str:
        tasks.append(asyncio.create_task(stray()))
        await anyio.wait_all_tasks_blocked()
        return "value"

    assert run(main, backend=backend) == "value"
    assert log == ["opened", "closed"]


@every_loop
def test_a_stray_that_does_not_end(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What ignores its cancellation is named in a WARNING, and not waited for beyond the grace."""
    tasks: list[asyncio.Task[None]] = []
    over = threading.Event()

    async def stray() -> None:
        while not over.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    async def main(_: Scope) -> str:
        tasks.append(asyncio.create_task(stray(), name="poller"))
        await asyncio.sleep(0)
        return "value"

    assert run(main, backend=backend, grace=0.05) == "value"
    tasks.clear()
    gc.collect()  # nothing is said a second time when the task goes
    (message,) = caplog.messages
    assert message.startswith("left behind: poller (test_a_stray_")


@every_loop
def test_a_stray_that_does_not_end_after_a_signal(backend: Any, exits: list[int]) -> None:
    """After a signal the process does not wait for it either: it ends hard."""
    tasks: list[asyncio.Task[None]] = []

    async def stray() -> None:
        while not exits:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    async def main(_: Scope) -> None:
        tasks.append(asyncio.create_task(stray()))
        signal.raise_signal(SIGTERM)
        await asyncio.sleep(1)

    with pytest.raises(GoneError):
        run(main, backend=backend, grace=0.05)
    assert exits == [143]


@every_loop
def test_a_closer_left_behind_in_a_thread(backend: Any, exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """After a signal a thread that is still busy is waited for within the grace, then the process ends hard."""
    released = threading.Event()

    async def main(scope: Scope) -> None:
        scope.defer(anyio.to_thread.run_sync, released.wait)
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    with pytest.raises(GoneError):
        try:
            run(main, backend=backend, grace=0.1)
        finally:
            released.set()
    assert exits == [143]
    assert "left behind: thread" in caplog.text


@every_loop
def test_a_thread_that_ends_in_time(backend: Any, exits: list[int]) -> None:
    """After a signal a thread that is busy is waited for within the grace, and then nothing is ended hard."""
    log: list[str] = []

    def work() -> None:
        time.sleep(0.2)
        log.append("done")

    async def main(_: Scope) -> None:
        working = asyncio.get_running_loop().run_in_executor(None, work)
        signal.raise_signal(SIGTERM)
        await working

    assert stopped(main, backend=backend) == 143
    assert log == ["done"]
    assert exits == []


@every_loop
def test_no_loop_is_left(backend: Any) -> None:
    """After a run no event loop is the current one, as after `asyncio.run`."""
    assert run(nothing, backend=backend) is None
    with pytest.raises(RuntimeError, match="no current event loop"):
        asyncio.get_event_loop_policy().get_event_loop()


@every_loop
def test_async_generators_are_shut_down(backend: Any) -> None:
    """An async generator that was left half-way runs its `finally` before the loop is closed."""
    log: list[str] = []

    async def numbers() -> Any:
        try:
            for number in itertools.count():
                yield number
        finally:
            await asyncio.sleep(0)
            log.append("ended")

    generator = numbers()

    async def main(_: Scope) -> int:
        return await anext(generator)

    assert run(main, backend=backend) == 0
    assert log == ["ended"]


@every_loop
def test_an_exit_out_of_another_task(backend: Any) -> None:
    """`sys.exit` in a task beside main stops main in order, and is the exit of the process."""
    closed: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def stray() -> None:
        sys.exit(3)

    async def main(scope: Scope) -> None:
        scope.defer(closed.append, "a")
        tasks.append(asyncio.create_task(stray()))
        await anyio.sleep_forever()

    assert stopped(main, backend=backend) == 3
    assert closed == ["a"]
    assert isinstance(tasks[0].exception(), SystemExit)


@every_loop
def test_a_signal_after_such_an_exit(backend: Any) -> None:
    """A signal that comes while an exit unwinds main cancels nothing again, and changes no code."""
    log: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def stray() -> None:
        sys.exit(3)

    async def main(_: Scope) -> None:
        tasks.append(asyncio.create_task(stray()))
        try:
            await anyio.sleep_forever()
        finally:
            signal.raise_signal(SIGTERM)
            await anyio.sleep(0.01)
            log.append("unwound")

    assert stopped(main, backend=backend) == 3
    assert log == ["unwound"]
    assert isinstance(tasks[0].exception(), SystemExit)


@every_loop
def test_a_loop_that_is_stopped(backend: Any) -> None:
    """`loop.stop()`, which `asyncio.run` does not survive, stops main in order; the error is raised."""
    closed: list[str] = []

    async def main(scope: Scope) -> None:
        scope.defer(anyio.sleep, 0.01)
        scope.defer(closed.append, "a")
        asyncio.get_running_loop().stop()
        await anyio.sleep_forever()

    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        run(main, backend=backend)
    assert closed == ["a"]


@every_loop
def test_a_cleanup_that_fails_after_such_an_exit(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where an exit of another task is what `run` raises, a cleanup that failed is told once."""
    tasks: list[asyncio.Task[None]] = []

    async def stray() -> None:
        sys.exit(3)

    async def main(scope: Scope) -> None:
        scope.defer(int, "no number")
        tasks.append(asyncio.create_task(stray()))
        with contextlib.suppress(asyncio.CancelledError):
            await anyio.sleep_forever()

    assert stopped(main, backend=backend) == 3
    (message,) = caplog.messages
    assert message.endswith("(not raised, because of a SystemExit)")
    assert isinstance(tasks[0].exception(), SystemExit)


@every_backend
def test_idle_workers_of_executors(backend: Any, exits: list[int]) -> None:
    """Threads that mind an executor, and have nothing to do, are not left behind."""
    pools = [ThreadPoolExecutor(1), ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))]

    async def main(_: Scope) -> None:
        for pool in pools:
            pool.submit(int).result()
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    assert stopped(main, backend=backend) == 143
    for pool in pools:
        pool.shutdown()
    assert exits == []


@every_backend
def test_a_keyboard_interrupt_that_is_not_handled_here(backend: Any) -> None:
    """SIGINT that is not among `signals` is Python's: a `KeyboardInterrupt`, after all is closed."""
    closed: list[str] = []

    async def main(scope: Scope) -> None:
        scope.defer(closed.append, "a")
        signal.raise_signal(SIGINT)
        await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run(main, backend=backend, signals=[SIGTERM])
    assert closed == ["a"]


@every_backend
def test_no_signals_at_all(backend: Any) -> None:
    """Without signals it is a way to run main in a scope."""
    assert run(nothing, backend=backend, signals=()) is None


@trio_only
def test_trio_has_a_watchdog_without_a_signal(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """On trio a task that ignores its cancellation ends the process hard, with the code that it would have had."""
    monkeypatch.setattr(stop_room, "SLACK", 0.01)

    async def ignore() -> None:
        while not exits:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)

    async def main(scope: Scope) -> str:
        scope.add("a", ignore, name="a", timeout=0)
        return "value"

    with pytest.raises(ResourceCleanupError):
        run(main, backend="trio", grace=0.05)
    assert exits == [1]
    assert "CloseTimeoutError: closing a took longer" in capsys.readouterr().err


# The clock and the watchdog


def test_an_interrupt_while_the_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When Ctrl-C is Python's again, and comes, everything else is as it was."""
    before = signal.getsignal(SIGTERM)
    stop = Stop(60)
    stop.listen([SIGINT, SIGTERM])
    signal.raise_signal(SIGTERM)
    put_back = signal.signal

    def interrupted(signum: int, handler: Any) -> None:
        put_back(signum, handler)
        if signum == SIGINT:
            signal.raise_signal(SIGINT)

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stop.quit()
    assert signal.getsignal(SIGTERM) is before
    wait_until(lambda: "rescope watchdog" not in {thread.name for thread in threading.enumerate()})


def test_a_third_signal(exits: list[int]) -> None:
    """A third signal ends the process at once, with the code of the first."""
    stop = Stop(60)
    stop.listen([SIGTERM, SIGINT])
    try:
        signal.raise_signal(SIGTERM)
        signal.raise_signal(SIGINT)
        with pytest.raises(GoneError):
            signal.raise_signal(SIGINT)
    finally:
        stop.quit()
    assert exits[0] == 143


@pytest.mark.parametrize("forced", [False, True])
def test_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], caplog: pytest.LogCaptureFixture, forced: bool
) -> None:
    """When the time is over, and nobody has ended the process, the watchdog does, and says why."""
    monkeypatch.setattr(stop_room, "SLACK", 0.01)
    stop = Stop(60 if forced else 0)
    stop.scope = Scope()
    stop.scope.defer(int)
    stop.scope.add("value", int, name="socket")
    stop.listen([SIGTERM])
    signal.raise_signal(SIGTERM)
    if forced:
        signal.raise_signal(SIGTERM)
    wait_until(lambda: exits != [])
    stop.quit()
    stop.scope.detach("value")
    stop.scope.detach(stop.scope.resources[0])
    assert exits == [143]
    why = "not ended by force" if forced else "not ended after 0 s"
    assert f"{why}: the process ends now, still open: socket, int" in caplog.messages


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the watchdog can't be started, a signal is handled all the same."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main(_: Scope) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        signal.raise_signal(SIGTERM)
        await anyio.sleep_forever()

    assert stopped(main) == 143
    monkeypatch.undo()


def test_a_hard_end_though_nothing_works(monkeypatch: pytest.MonkeyPatch, exits: list[int]) -> None:
    """The process ends hard though it can neither log nor flush, nor start a thread for that."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    stop = Stop(0)
    with pytest.raises(GoneError):
        stop.end_hard("why")
    monkeypatch.undo()
    assert exits == [0]


@pytest.mark.parametrize(
    ("verdict", "code", "said"),
    [
        (None, 0, ""),
        (SystemExit(), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("no such file"), 1, "no such file\n"),
        (LookupError("its own"), 1, "LookupError: its own\n"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt\n"),
    ],
)
def test_the_code_of_a_hard_end(
    exits: list[int], capsys: pytest.CaptureFixture[str], verdict: BaseException | None, code: int, said: str
) -> None:
    """A hard end has the code that Python's own end would have, and says what that would."""
    stop = Stop(0)
    stop.error = verdict
    with pytest.raises(GoneError):
        stop.end_hard("why")
    assert exits == [code]
    assert capsys.readouterr().err.endswith(said)


def test_the_stuck_pipe(monkeypatch: pytest.MonkeyPatch, exits: list[int]) -> None:
    """A stream that can't be flushed holds the end up for a moment only."""
    released = threading.Event()
    monkeypatch.setattr(stop_room, "FAREWELL", 0.01)
    monkeypatch.setattr(logging, "shutdown", released.wait)
    with pytest.raises(GoneError):
        Stop(0).end_hard("why")
    released.set()
    assert exits == [0]


def test_a_forked_child_gets_the_handler_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child that was forked, a signal goes to who had it before; to nobody: it does what it always does."""
    seen: list[int] = []
    stop = Stop(60)
    before = signal.signal(SIGTERM, lambda signum, _: seen.append(signum))
    try:
        stop.listen([SIGTERM])
        monkeypatch.setattr(os, "getpid", lambda: 0)
        signal.raise_signal(SIGTERM)
        stop._before[SIGTERM] = signal.SIG_IGN
        signal.raise_signal(SIGTERM)
        assert signal.getsignal(SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(SIGTERM, before)
    assert seen == [SIGTERM]
    assert stop.first is None


def test_names_of_signals() -> None:
    """A signal is called as people call it."""
    assert signal_name(SIGTERM) == "SIGTERM"
    assert signal_name(10**6) == "signal 1000000"


# Misuse


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"backend": "curio"}, ValueError, "`backend` must be 'asyncio', 'uvloop' or 'trio', not 'curio'"),
        ({"backend": []}, ValueError, "`backend` must be"),
        ({"grace": -1}, ValueError, "`grace` must not be negative"),
        ({"grace": float("nan")}, ValueError, "`grace` must not be negative or NaN"),
        ({"grace": "25"}, TypeError, "`grace` must be a number of seconds"),
        ({"signals": SIGTERM}, TypeError, r"must be several, as `\(signal.SIGTERM,\)`, not a Signals"),
        ({"signals": "SIGTERM"}, TypeError, "takes members of `signal.Signals`, as `signal.SIGTERM`, not a str"),
        ({"signals": [True]}, TypeError, "not a bool"),
        ({"signals": [4711]}, ValueError, "there is no signal 4711 here"),
        ({"signals": [signal.SIGKILL]}, ValueError, "SIGKILL can't be caught by any process: leave it out"),
        ({"signals": [SIGTERM, signal.SIGSTOP]}, ValueError, "SIGSTOP can't be caught"),
        ({"name": 1}, TypeError, "`name` must be a string"),
        ({"on_event": forever}, TypeError, "`on_event` must be sync"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Options that can't be are refused before anything runs, with the mend."""
    with pytest.raises(kind, match=message):
        run(forever, **options)


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is missing is told by name, with what installs it."""
    monkeypatch.setattr(runner, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"trio is not installed: `pip install rescope\[trio\]`") as caught:
        run(forever, backend="trio")
    assert caught.value.name == "trio"


@every_backend
def test_a_main_that_is_not_async(backend: Any) -> None:
    """A main that gives nothing to await is refused, and so is a coroutine in its place."""
    with pytest.raises(TypeError, match="main must be async: it gave a str, not something to await"):
        run(main_that_is_sync, backend=backend)
    with pytest.raises(TypeError, match="`main` got the coroutine nothing"):
        run(nothing(Scope()), backend=backend)


def main_that_is_sync(_: Scope) -> Any:
    return "value"


main_that_is_sync.__qualname__ = "main"


def test_another_thread() -> None:
    """Outside of the main thread `run` says why it can't."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            run(nothing)
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(error) for error in errors] == [
        "`run` must be called in the main thread: Python handles signals nowhere else"
    ]


async def test_a_running_loop() -> None:
    """Inside of a running loop `run` says what to do there."""
    with pytest.raises(RuntimeError, match="where a loop runs already: await main there"):
        run(nothing)
