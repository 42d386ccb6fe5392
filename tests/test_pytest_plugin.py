"""The pytest plugin: each test runs pytest on a small test module, and looks at what a user would see."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from rescope._registry import Registry
from rescope._trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.filterwarnings("ignore:.*dropped without being closed:ResourceWarning")

# What a run imports is forgotten when it ends. These take long, and are here to stay.
SLOW = ["anyio.pytest_plugin", "pytest_asyncio.plugin", "trio", "uvloop"]
IMPORTED = [import_module(name) for name in SLOW if find_spec(name.partition(".")[0])]

PRELUDE = """
import gc, warnings
import anyio
import pytest
{fixture}
from rescope import CloseTimeoutError, HostDiedError, ResourceCleanupError, Scope, ScopeClosedError

LOG = []
KEPT = []

class Db:
    def __init__(self, name="db"):
        self.name = name
    async def aclose(self):
        await anyio.sleep(0)
        LOG.append(self.name + " closed")

async def fail():
    raise ConnectionError("it is gone")

"""
QUICK = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:sybil", "-p", "no:cov", "-p", "no:timeout"]
ANYIO = ["-p", "no:asyncio"]
ASYNCIO = ["-p", "no:anyio", "-o", "asyncio_default_fixture_loop_scope=function"]
RUNNERS: dict[str, tuple[str | None, str, list[str]]] = {
    "asyncio": ("('asyncio', {'use_uvloop': False})", "function", ANYIO),
    "uvloop": ("('asyncio', {'use_uvloop': True})", "function", ANYIO),
    "trio": ("('trio', {})", "function", ANYIO),
    "session backend": ("('asyncio', {})", "session", ANYIO),
    "strict": (None, "function", ASYNCIO),
    "auto": (None, "function", [*ASYNCIO, "-o", "asyncio_mode=auto"]),
    "module loop": (None, "module", [*ASYNCIO, "-o", "asyncio_mode=auto"]),
    "session loop": (None, "session", [*ASYNCIO, "-o", "asyncio_mode=auto"]),
}
for optional in ("trio", "uvloop"):
    if not find_spec(optional):
        del RUNNERS[optional]


class Run:
    """Runs pytest in this process, on one runner of async tests."""

    def __init__(self, pytester: pytest.Pytester, runner: str) -> None:
        self.pytester = pytester
        self.backend, self.scope, self.options = RUNNERS[runner]
        self.mark = "" if "asyncio_mode=auto" in self.options else "asyncio" if self.backend is None else "anyio"

    def __call__(self, source: str, *options: str) -> pytest.RunResult:
        options = (*self.options, *options)
        if self.backend is not None:
            self.pytester.makeconftest(
                f"import pytest\n@pytest.fixture(scope={self.scope!r})\ndef anyio_backend(): return {self.backend}"
            )
        elif not self.mark:
            for what in ("fixture", "test"):
                options = (*options, "-o", f"asyncio_default_{what}_loop_scope={self.scope}")
        fixture = "from pytest_asyncio import fixture" if self.mark == "asyncio" else "from pytest import fixture"
        mark = f"pytestmark = pytest.mark.{self.mark}\n" if self.mark else ""
        self.pytester.makepyfile(PRELUDE.replace("{fixture}", fixture) + mark + dedent(source))
        return inner(self.pytester, *options)


def inner(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """Run pytest with what a user has for warnings; what it leaves behind is no matter of the outer run."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)  # there pytest's summary is longer
        warnings.resetwarnings()
        warnings.simplefilter("ignore", ResourceWarning)
        result = pytester.runpytest_inprocess(*QUICK, "--tb=short", *options)
        gc.collect()
    return result


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Let go here of what the frames of an inner run still hold, and not in the middle of another test."""
    yield
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):  # pytest keeps the last failure there
        vars(sys).pop(name, None)
    gc.collect()


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> Run:
    """Run on each of the runners."""
    return Run(pytester, request.param)


@pytest.fixture(params=[name for name in ("asyncio", "trio", "auto") if name in RUNNERS])
def run_some(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> Run:
    """Run on one runner of each kind."""
    return Run(pytester, request.param)


@pytest.fixture
def run_anyio(pytester: pytest.Pytester) -> Run:
    """Run where the runner doesn't matter."""
    return Run(pytester, "asyncio")


# The fixtures


def test_scope_is_named_after_the_test_and_closed_after_it(run: Run) -> None:
    """`scope` is named after its test, and what it holds is closed, the last first, before the next test begins."""
    result = run("""
        @fixture
        async def db(scope):
            return scope.add(Db())

        async def test_opens(scope, db):
            assert scope.name == "test_opens"
            scope.add(Db("replica"))
            assert LOG == []

        def test_was_closed():
            assert LOG == ["replica closed", "db closed"]
    """)
    result.assert_outcomes(passed=2)


def test_factory_makes_scopes_that_close_last_made_first(run: Run) -> None:
    """`scope_factory` takes the options of `Scope`; what it made is closed after the test, the last made first."""
    result = run("""
        async def test_opens(scope_factory, scope):
            events = []
            first = scope_factory()
            second = scope_factory("second", grace=1, concurrent=True, on_event=lambda event: LOG.append(event.kind))
            for each in (first, second, scope):
                each.add(Db(str(each.name)))
            assert second._grace == 1
            with pytest.raises(TypeError, match="closes concurrently"):
                await second.enter(warnings.catch_warnings())

        def test_was_closed():
            closed = [what for what in LOG if " " in what]
            assert closed == ["second closed", "None closed", "test_opens closed"]
            assert LOG[0] == "opened"
    """)
    result.assert_outcomes(passed=2)


def test_task_group_may_be_entered_in_a_fixture_or_in_the_test(run: Run) -> None:
    """A task group entered in set-up or in the test works there, and is exited in tear-down, on every runner."""
    result = run("""
        @fixture
        async def tasks(scope):
            return await scope.enter(anyio.create_task_group(), name="tasks")

        async def shout(event):
            event.set()
            LOG.append("shouted")

        async def test_uses_them(scope, tasks):
            more = await scope.child("child").enter(anyio.create_task_group())
            for group in (tasks, more):
                event = anyio.Event()
                group.start_soon(shout, event)
                await event.wait()

        async def test_again(scope, tasks):
            tasks.start_soon(shout, anyio.Event())

        def test_ran():
            assert LOG == ["shouted"] * 3
    """)
    result.assert_outcomes(passed=3)


def test_task_group_is_cancelled_where_the_test_fails(run: Run) -> None:
    """A task group of a failing test is cancelled as by an `async with`: nothing hangs, and nothing else is told."""
    result = run("""
        async def test_fails(scope):
            tasks = await scope.enter(anyio.create_task_group())
            tasks.start_soon(anyio.sleep_forever)
            assert LOG
    """)
    result.assert_outcomes(failed=1)


def test_task_group_may_be_cancelled_by_the_test(run: Run) -> None:
    """A task group that the test cancels ends quietly."""
    result = run("""
        async def test_cancels(scope):
            tasks = await scope.enter(anyio.create_task_group())
            tasks.start_soon(anyio.sleep_forever)
            tasks.cancel_scope.cancel()
            await anyio.sleep(0)

        async def test_cancels_at_the_end(scope):
            tasks = await scope.enter(anyio.create_task_group())
            tasks.start_soon(anyio.sleep_forever)
            tasks.cancel_scope.cancel()
    """)
    result.assert_outcomes(passed=2)


def test_failing_child_ends_the_test(run: Run) -> None:
    """Where a child of an entered task group fails, the test that would wait forever fails with that, and once."""
    result = run("""
        @fixture
        async def tasks(scope):
            return await scope.enter(anyio.create_task_group())

        async def test_waits(tasks):
            tasks.start_soon(fail)
            await anyio.sleep_forever()

        async def test_goes_on():
            assert True
    """)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*ConnectionError: it is gone*"])


def test_child_that_failed_in_set_up_keeps_the_test_from_running(run_some: Run) -> None:
    """Where a child failed in set-up, the test does not begin, and fails with that."""
    result = run_some("""
        @fixture
        async def tasks(scope):
            tasks = await scope.enter(anyio.create_task_group())
            tasks.start_soon(fail)
            await anyio.sleep(0.01)

        async def test_is_not_run(tasks):
            LOG.append("run")

        def test_was_not_run():
            assert LOG == []
    """)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*ConnectionError: it is gone*"])


def test_child_that_fails_after_the_test_is_an_error_of_it(run_some: Run) -> None:
    """Where a child fails when the test is over, its task group is a failure to close, which is named."""
    result = run_some("""
        async def test_ends(scope):
            tasks = await scope.enter(anyio.create_task_group(), name="the tasks")
            go = anyio.Event()

            async def fail_later():
                await go.wait()
                await fail()

            tasks.start_soon(fail_later)
            scope.defer(go.set)
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ResourceCleanupError: 1 of 2 resources of scope 'test_ends' * the tasks: *"])


def test_each_failing_task_group_is_told(run_some: Run) -> None:
    """Of two task groups that fail in the test, the first is what it fails with, the other a failure to close."""
    result = run_some("""
        async def test_waits(scope):
            for name in ("first", "second"):
                tasks = await scope.enter(anyio.create_task_group(), name=name)
                tasks.start_soon(fail)
            await anyio.sleep_forever()
    """)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*1 of 2 resources of scope 'test_waits' failed to close: second: *"])


def test_failing_child_is_told_beside_what_the_test_raised(run_some: Run) -> None:
    """Where the test raised something itself, or took the cancellation for its own, the child's failure is told."""
    result = run_some("""
        async def test_raises(scope):
            tasks = await scope.enter(anyio.create_task_group(), name="the tasks")
            tasks.start_soon(fail)
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("of the test")

        async def test_swallows(scope):
            tasks = await scope.enter(anyio.create_task_group(), name="the tasks")
            tasks.start_soon(fail)
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass
    """)
    result.assert_outcomes(failed=2, errors=1)
    result.stdout.fnmatch_lines(["*ValueError: of the test*"])
    result.stdout.fnmatch_lines(["*1 of 1 resources of scope 'test_raises' failed to close: the tasks: *"])


def test_hosted_manager_that_dies_is_a_failure_to_close(run_some: Run) -> None:
    """What was `host`ed keeps the rules of `host`: the test goes on, and its end is told at the close."""
    result = run_some("""
        async def test_goes_on(scope):
            tasks = await scope.host(anyio.create_task_group(), name="client")
            tasks.cancel_scope.cancel()
            await anyio.sleep(0.01)
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*client: HostDiedError: the task that hosts client ended before it was closed*"])


def test_entered_manager_whose_task_is_cancelled_is_a_failure_to_close(pytester: pytest.Pytester) -> None:
    """Where somebody cancels the task of an entered manager, no cancellation gets into the test: its close fails."""
    result = Run(pytester, "auto")("""
        import asyncio

        async def test_cancels(scope):
            tasks = await scope.enter(anyio.create_task_group(), name="the tasks")
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await anyio.sleep(0.01)
            LOG.append("to the end")

        def test_log():
            assert LOG == ["to the end"]
    """)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*failed to close: the tasks: HostDiedError: *"])


def test_sync_manager_is_entered_in_the_test(run_some: Run) -> None:
    """A sync manager is entered in the calling task, and exited with what the test raised."""
    result = run_some("""
        import contextlib

        @contextlib.contextmanager
        def manager():
            try:
                yield "value"
            except ValueError as error:
                LOG.append(f"saw {error}")
                raise KeyError("translated") from error
            LOG.append("saw nothing")

        async def test_passes(scope):
            assert await scope.enter(manager()) == "value"

        async def test_fails(scope):
            await scope.enter(manager())
            raise ValueError("of the test")

        def test_log():
            assert LOG == ["saw nothing", "saw of the test"]
    """)
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_fails*", "*KeyError: 'translated'*"])


def test_fixture_on_another_loop_is_refused(pytester: pytest.Pytester) -> None:
    """A fixture that runs on another loop than the test can host nothing in its scope, and is told what to do."""
    result = Run(pytester, "auto")("""
        import pytest_asyncio

        @pytest_asyncio.fixture(loop_scope="module")
        async def hosted(scope):
            return await scope.child("child").host(anyio.create_task_group())

        async def test_uses(hosted):
            assert hosted
    """)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: scope 'child' is on the event loop of its test, *loop_scope*"])


def test_misuse_of_enter_is_refused(run_anyio: Run) -> None:
    """`enter` takes what it takes in any scope, and refuses the rest at the call."""
    result = run_anyio("""
        async def test_misuse(scope):
            with pytest.raises(TypeError, match="expected a context manager"):
                await scope.enter(5)
            with pytest.raises(TypeError, match="name"):
                await scope.enter(anyio.create_task_group(), name=5)

            class Half:
                async def __aenter__(self):
                    LOG.append("entered")

            with pytest.raises(TypeError, match="expected an async context manager"):
                await scope.enter(Half())
            await scope.aclose()
            Half.__aexit__ = Half.__aenter__
            with pytest.raises(ScopeClosedError):
                await scope.enter(Half())
            assert LOG == []
    """)
    result.assert_outcomes(passed=1)


def test_failing_close_is_an_error_that_names_each(run: Run) -> None:
    """What fails to close is an error of its test, which names each failure; the next test is not touched."""
    result = run("""
        async def test_opens(scope):
            scope.add("a", fail, name="database")
            scope.add("b", fail, name="cache")

        async def test_goes_on(scope):
            scope.add(Db())
    """)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_opens*",
            "*ResourceCleanupError: 2 of 2 resources of scope 'test_opens' failed to close: cache: *; database: *",
        ]
    )


def test_failures_of_several_scopes_are_all_told(run_some: Run) -> None:
    """Where several scopes fail to close, one error tells of all of them."""
    result = run_some("""
        async def test_opens(scope, scope_factory):
            scope.add("a", fail, name="database")
            scope_factory("second").add("b", fail, name="cache")
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ExceptionGroup: several scopes of the test failed to close*"])
    result.stdout.fnmatch_lines(["*scope 'second' failed to close: cache*", "*'test_opens' failed to close: database*"])


def test_close_that_hangs_does_not_hang_the_run(run_some: Run) -> None:
    """A scope that was given a grace tells what hung; `scope` itself has half a minute."""
    result = run_some("""
        async def test_opens(scope, scope_factory):
            assert scope._grace == 30
            tasks = await scope_factory("short", grace=0.01).enter(anyio.create_task_group(), name="tasks")
            tasks.start_soon(anyio.sleep_forever)
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*'short' failed to close: tasks: CloseTimeoutError: *"])


def test_failure_that_the_test_was_told_is_not_told_again(run_some: Run) -> None:
    """A scope that the test closed itself is done with: whoever closes is told what fails."""
    result = run_some("""
        async def test_closes(scope):
            scope.add("a", fail)
            with pytest.raises(ResourceCleanupError):
                await scope.aclose()
    """)
    result.assert_outcomes(passed=1)


def test_test_and_close_that_fail_are_told_each_once(run_some: Run) -> None:
    """A failing test and a failing close are two reports, and neither tells of the other."""
    result = run_some("""
        @pytest.mark.parametrize("how", [ValueError, pytest.fail.Exception])
        async def test_fails(scope, how):
            scope.add("a", fail, name="database")
            raise how("of the test")
    """)
    result.assert_outcomes(failed=2, errors=2)
    output = result.stdout.str()
    assert output.count("E   ValueError: of the test") == 1
    assert "direct cause" not in output


def test_scope_closes_as_the_test_ended(run_some: Run) -> None:
    """`on_error` runs where the test, or a fixture, raised something, be it a skip; `on_success` where nothing did."""
    result = run_some("""
        @fixture
        async def watched(scope, request):
            name = request.node.name
            scope.on_error(lambda: LOG.append(f"{name} failed"))
            scope.on_success(lambda: LOG.append(f"{name} succeeded"))

        @fixture
        async def broken(watched):
            raise ValueError("of the fixture")

        async def test_passes(watched): pass
        async def test_fails(watched): assert False
        async def test_stops(watched): pytest.fail("stops")
        async def test_skips(watched): pytest.skip("skips")
        async def test_does_not_start(broken): pass

        def test_log():
            assert LOG == [
                "test_passes succeeded", "test_fails failed", "test_stops failed", "test_skips failed",
                "test_does_not_start failed",
            ]
    """)
    result.assert_outcomes(passed=2, failed=2, skipped=1, errors=1)


def test_exit_in_a_closer_lets_the_others_close(pytester: pytest.Pytester) -> None:
    """What is no `Exception` comes out of the tear-down as itself, when all scopes are closed."""
    result = Run(pytester, "auto")("""
        def leave():
            raise SystemExit(3)

        async def test_opens(scope, scope_factory):
            scope.add(Db())
            scope_factory().add("a", leave)

        def test_closed():
            assert LOG == ["db closed"]
    """)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*SystemExit: 3"])


@pytest.mark.parametrize(("runner", "what"), [("asyncio", "anyio_backend"), ("strict", ""), ("auto", "")])
def test_sync_test_may_have_a_scope_where_there_is_a_runner(pytester: pytest.Pytester, runner: str, what: str) -> None:
    """A sync test may ask for a scope under pytest-asyncio, and under anyio together with `anyio_backend`."""
    run = Run(pytester, runner)
    run.mark = ""
    result = run(f"""
        def test_opens(scope, {what}):
            scope.add(Db())

        def test_was_closed():
            assert LOG == ["db closed"]
    """)
    result.assert_outcomes(passed=2)


def test_scope_without_a_runner_is_refused(run_anyio: Run) -> None:
    """A test that nothing runs fixtures for is told what to do."""
    result = run_anyio("""
        def test_sync(scope):
            pass
    """)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["test_sync asks for a scope of rescope, but nothing runs async fixtures for it.", "*anyio*"]
    )


def test_scopes_work_with_the_markers_of_the_runners(pytester: pytest.Pytester) -> None:
    """Tests of both runners may stand in one module, with the loop scope that the marker says."""
    pytester.makepyfile(
        PRELUDE.replace("{fixture}", "")
        + dedent("""
            class TestAnyio:
                @pytest.mark.anyio
                async def test_anyio(self, scope, anyio_backend_name):
                    tasks = await scope.enter(anyio.create_task_group())
                    tasks.start_soon(anyio.sleep, 0)

            class TestAsyncio:
                @pytest.mark.asyncio(loop_scope="class")
                async def test_class_loop(self, scope):
                    import asyncio
                    KEPT.append(asyncio.get_running_loop())
                    tasks = await scope.enter(anyio.create_task_group())
                    tasks.start_soon(anyio.sleep, 0)

                @pytest.mark.asyncio(loop_scope="class")
                async def test_same_loop(self, scope):
                    import asyncio
                    assert KEPT == [asyncio.get_running_loop()]
                    assert await scope.acquire(lambda: 1, lambda value: None) == 1
        """)
    )
    # In a process of its own: pytest-asyncio 1.0 marks, in its auto mode, the function of a fixture for good.
    result = pytester.runpytest_subprocess(*QUICK, "-o", "asyncio_default_fixture_loop_scope=function")
    result.assert_outcomes(passed=4 if "trio" in RUNNERS else 3)  # `anyio_backend` stands for each that is there


def test_item_is_left_as_it_was(run_some: Run) -> None:
    """After the call, the item has the user's own function again, for those who run it once more."""
    result = run_some("""
        @pytest.fixture
        def same(request):
            before = request.node.obj
            yield
            assert request.node.obj is before

        async def test_it(same, scope):
            pass
    """)
    result.assert_outcomes(passed=1)


def test_scope_may_be_asked_for_by_the_tests_of_classes(run_some: Run) -> None:
    """A test method ends, as a function does, when a child fails."""
    result = run_some("""
        class TestIt:
            async def test_waits(self, scope):
                tasks = await scope.enter(anyio.create_task_group())
                tasks.start_soon(fail)
                await anyio.sleep_forever()

            async def test_passes(self, scope):
                assert isinstance(self, TestIt)
    """)
    result.assert_outcomes(failed=1, passed=1)


# The watch


def leaks(result: pytest.RunResult) -> list[str]:
    """Give what is said of leaks."""
    return [line for line in result.outlines if line.startswith(("left open: ", "still closing: "))]


def resources(result: pytest.RunResult) -> list[str]:
    """Give the same without where they were registered."""
    return [line.partition(",")[0] for line in leaks(result)]


def test_scope_left_open_is_an_error_of_the_test(run: Run) -> None:
    """A test that leaves a scope open fails, with a line for each resource; the next test passes."""
    result = run("""
        class Application:
            def start(self):
                self.scope = Scope("application")
                self.scope.add(Db())
                self.scope.defer(print)

        async def test_leaves():
            application = Application()
            KEPT.append(application)
            application.start()

        async def test_goes_on():
            assert KEPT.pop().scope.size == 2
    """)
    result.assert_outcomes(passed=2, errors=1)
    (path,) = run.pytester.path.glob("test_*.py")
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "scope.add(Db())" in text)
    assert leaks(result) == [
        f"left open: Db in scope 'application', registered at {path.name}:{line} in Application.start",
        f"left open: print in scope 'application', registered at {path.name}:{line + 1} in Application.start",
    ]
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves*"])
    result.stdout.no_fnmatch_line("*traceback*")


@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["", "error"])
def test_scope_that_was_dropped_is_told_once(run_some: Run, options: list[str]) -> None:
    """A scope that a test drops is one error of the test, also where all warnings are errors."""
    result = run_some(
        """
        async def test_drops():
            scope = Scope("application")
            scope.add(Db())
            scope.child("empty")
            scope.child("child").add(Db("inner"))

        async def test_goes_on():
            gc.collect()
        """,
        *options,
    )
    result.assert_outcomes(passed=2, errors=1)
    assert resources(result) == [
        "left open: Db in scope 'application'",
        "left open: empty in scope 'application'",
        "left open: Db in scope 'child'",
    ]
    result.stdout.no_fnmatch_line("*Warning*")


def test_what_is_left_in_a_child_is_told_once(run_anyio: Run) -> None:
    """Of a scope that is open with scopes inside, each resource is told once, with the scope that holds it."""
    result = run_anyio("""
        async def test_leaves():
            scope = Scope()
            KEPT.append(scope)
            scope.child("empty")
            child = scope.child("child")
            KEPT.append(child)
            child.add(Db())

        def test_drops():
            KEPT.clear()
            gc.collect()
    """)
    result.assert_outcomes(passed=2, errors=1)
    assert resources(result) == ["left open: empty in a scope without a name", "left open: Db in scope 'child'"]


def test_close_that_is_under_way_is_told(pytester: pytest.Pytester) -> None:
    """A scope that is still closing when the test ends has not closed what it held."""
    result = Run(pytester, "session backend")("""
        import asyncio

        async def test_leaves():
            scope = Scope("slow")
            scope.add("a", anyio.sleep_forever, name="database")
            scope.add(Db())
            KEPT.append(scope)
            KEPT.append(asyncio.get_running_loop().create_task(scope.aclose()))
            while not LOG:
                await anyio.sleep(0)

        @pytest.fixture(scope="module", autouse=True)
        async def loop_lasts():
            yield

        def test_goes_on():
            assert KEPT[0].state == "closing"
    """)
    result.assert_outcomes(passed=2, errors=1)
    assert resources(result) == ["still closing: database in scope 'slow'"]


def test_what_is_closed_or_given_away_is_no_leak(run_some: Run) -> None:
    """What was closed, detached, or handed to a scope that was closed, is no leak, and an empty scope is none."""
    result = run_some("""
        async def test_closes():
            KEPT.append(Scope("empty"))
            async with Scope() as scope:
                scope.add(Db())
            scope = Scope()
            KEPT.append(scope)
            scope.add(Db())
            await scope.aclose()

        async def test_detaches():
            scope = Scope()
            handle = scope.defer(print)
            KEPT.append((scope, scope.detach(handle)))

        async def test_moves():
            scope = Scope()
            scope.defer(print)
            await scope.move().aclose()
            KEPT.append(scope)
    """)
    result.assert_outcomes(passed=3)


def test_warning_that_the_test_looks_at_is_no_leak(run_some: Run) -> None:
    """A test that drops a scope to see the `ResourceWarning` sees it, and passes."""
    result = run_some("""
        def drop():
            Scope("application").add(Db())

        async def test_warns():
            with pytest.warns(ResourceWarning, match="'application' was dropped"):
                drop()

        def test_records():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                drop()
            assert len(caught) == 1

        def test_asks_for_warnings(recwarn):
            drop()
            assert len(recwarn) == 1

        def test_leaves(recwarn):
            KEPT.append(Scope("left"))
            KEPT[0].add(Db())
    """)
    result.assert_outcomes(passed=4, errors=1)
    assert resources(result) == ["left open: Db in scope 'left'"]


def test_what_a_test_means_to_be_collected_is_collected(run_anyio: Run) -> None:
    """The watch keeps nothing alive of what a scope held, be it closed or open."""
    result = run_anyio("""
        import weakref

        async def test_closes():
            db = Db()
            async with Scope() as scope:
                scope.add(db)
            known = weakref.ref(db)
            del db, scope
            assert known() is None

        @pytest.mark.rescope_leaks("off")
        async def test_drops():
            scope = Scope()
            known = weakref.ref(scope.add(Db()))
            del scope
            assert known() is None
    """)
    result.assert_outcomes(passed=2)


def test_fixture_of_the_test_is_watched_as_the_test_is(run_some: Run) -> None:
    """What a fixture of the test leaves open is a leak when the test and its fixtures are finished."""
    result = run_some("""
        @fixture
        async def closed():
            scope = Scope("closed")
            scope.add(Db())
            yield scope
            await scope.aclose()

        @fixture
        async def left():
            scope = Scope("left")
            scope.add(Db())
            return scope

        async def test_uses(closed, left):
            assert closed.size == left.size == 1
    """)
    result.assert_outcomes(passed=1, errors=1)
    assert resources(result) == ["left open: Db in scope 'left'"]


LASTING = """
        @pytest.fixture(scope="module")
        def application():
            scope = Scope("application")
            scope.add(Db())
            yield scope
            {close}

        def test_begins(application):
            child = application.child("request")
            child.add(Db("of the test"))
            application.defer(print)

        def test_goes_on(application):
            assert application.size == 3

        class TestLast:
            def test_ends(self): pass
"""


def test_what_lasts_longer_than_a_test_is_judged_when_it_ends(run_anyio: Run) -> None:
    """What a fixture of the module has made, and what tests put into it, is a leak when the fixture leaves it open."""
    result = run_anyio(LASTING.format(close="KEPT.append(scope)"))
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of TestLast.test_ends*"])
    assert resources(result) == [
        "left open: Db in scope 'application'",
        "left open: Db in scope 'request'",
        "left open: print in scope 'application'",
    ]


def test_what_lasts_longer_than_a_test_and_is_closed_is_no_leak(run_anyio: Run) -> None:
    """What a fixture of the module closes in the end is no leak, nor is what tests have put into it."""
    result = run_anyio(LASTING.format(close="anyio.run(scope.aclose)"))
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("runner", ["session backend", "session loop"])
def test_async_fixture_of_the_session_keeps_its_own(pytester: pytest.Pytester, runner: str) -> None:
    """What an async fixture of the session makes is its own, also where its tests have a task in common with it."""
    result = Run(pytester, runner)("""
        @fixture(scope="session")
        async def server():
            async with Scope("server") as scope:
                await scope.host(anyio.create_task_group())
                yield scope

        async def test_uses(server):
            async with server.child("of the test") as scope:
                scope.add(Db())

        async def test_leaves(server):
            KEPT.append(Scope("mine"))
            KEPT[0].add(Db())

        async def test_goes_on(server):
            assert server.size == 1
    """)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves*"])
    assert resources(result) == ["left open: Db in scope 'mine'"]


def test_what_was_made_on_import_is_no_leak(run_anyio: Run) -> None:
    """A scope of a module lasts as long as the program, whatever tests register in it."""
    result = run_anyio("""
        SCOPE = Scope("of the module")

        def test_registers():
            SCOPE.add(Db())
    """)
    result.assert_outcomes(passed=1)


def test_what_is_imported_by_a_test_is_no_leak(run_anyio: Run) -> None:
    """A scope of a module that a test imports is no leak of that test; what the test itself makes then is one."""
    run_anyio.pytester.makepyfile(
        application="""
        from rescope import Scope

        SCOPE = Scope("of the module")
        SCOPE.defer(print)
        """
    )
    result = run_anyio("""
        def test_imports():
            import application
            KEPT.append(Scope("mine"))
            KEPT[0].add(Db())
    """)
    result.assert_outcomes(passed=1, errors=1)
    assert resources(result) == ["left open: Db in scope 'mine'"]


def test_leaks_of_one_line_are_told_as_one(run_anyio: Run) -> None:
    """What was registered on one line again and again is told once, with how often it was."""
    result = run_anyio("""
        def test_leaves():
            for _ in range(1000):
                scope = Scope("application")
                scope.add(Db())
                KEPT.append(scope)
            scope.add(Db("another"))
    """)
    result.assert_outcomes(passed=1, errors=1)
    first, second = leaks(result)
    assert first.endswith("in test_leaves, 1000 times")
    assert second.endswith("in test_leaves")


def test_leak_that_no_line_registered_is_told_without_one(run_anyio: Run) -> None:
    """What a thread registered by itself is told by its name and scope."""
    result = run_anyio("""
        from threading import Thread

        def test_leaves():
            KEPT.append(Scope("application"))
            thread = Thread(target=KEPT[0].add, args=(Db(),))
            thread.start()
            thread.join()
    """)
    result.assert_outcomes(passed=1, errors=1)
    assert leaks(result) == ["left open: Db in scope 'application'"]


ALL_KINDS = '''
"""
>>> from rescope import Scope
>>> KEPT.append(Scope("doctest"))
>>> handle = KEPT[-1].defer(print)
"""
import asyncio, threading, unittest
from rescope import Scope

KEPT = []

def leave(name):
    scope = Scope(name)
    scope.defer(print)
    KEPT.append(scope)

def test_thread():
    thread = threading.Thread(target=leave, args=("thread",))
    thread.start()
    thread.join()

def test_loop():
    async def main():
        leave("loop")
    asyncio.run(main())

def test_generator():
    async def generate():
        async with Scope("generator") as scope:
            scope.defer(print)
            yield
    async def main():
        await anext(generator)
    generator = generate()
    KEPT.append(generator)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()

class TestUnit(unittest.TestCase):
    def test_unit(self):
        leave("unittest")
'''


def test_all_kinds_of_tests_are_watched(pytester: pytest.Pytester) -> None:
    """Sync tests, `unittest` and doctests are watched, and what they do in threads and loops of their own."""
    pytester.makepyfile(ALL_KINDS)
    result = inner(pytester, "--doctest-modules", "-p", "no:asyncio")
    result.assert_outcomes(passed=5, errors=5)
    found = [line.rpartition(" ")[2] for line in resources(result)]
    assert sorted(found) == ["'doctest'", "'generator'", "'loop'", "'thread'", "'unittest'"]


def test_leak_is_told_beside_a_failing_tear_down(run_anyio: Run) -> None:
    """Where the tear-down fails, the leak is told as a note on what it failed with."""
    result = run_anyio("""
        async def test_leaves(scope):
            scope.add("a", fail, name="database")
            KEPT.append(Scope("other"))
            KEPT[0].defer(print)

        @pytest.fixture
        def broken():
            yield
            raise ValueError("of the fixture")

        def test_leaves_more(broken):
            KEPT.append(Scope("more"))
            KEPT[1].defer(print)

        def test_leaves_nothing(broken):
            for scope in KEPT:
                scope.detach(scope.resources[0])
    """)
    result.assert_outcomes(passed=3, errors=3)
    result.stdout.fnmatch_lines(["*database: ConnectionError*", "*left open: print in scope 'other', registered at *"])
    result.stdout.fnmatch_lines(["*ValueError: of the fixture", "*left open: print in scope 'more', registered at *"])
    assert result.stdout.str().count("left open: print in scope 'more'") == 1


LEAVES = """
        def test_leaves():
            KEPT.append(Scope("application"))
            KEPT[0].add(Db())
"""


@pytest.mark.parametrize(
    "options", [["--rescope-leaks=warn"], ["-o", "rescope_leaks=warn"]], ids=["option", "settings"]
)
def test_leaks_may_be_warnings(run_anyio: Run, options: list[str]) -> None:
    """With `warn`, by option or in the settings, a leak is a warning of the test, with the same lines."""
    result = run_anyio(LEAVES, *options)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*::test_leaves", "*PytestWarning: left open: Db in scope 'application', *"])


@pytest.mark.parametrize(
    "options",
    [["--rescope-leaks=off", "-o", "rescope_leaks=error"], ["-o", "rescope_leaks=off"]],
    ids=["option", "settings"],
)
def test_nothing_is_switched_on_without_the_watch(run_anyio: Run, options: list[str]) -> None:
    """With `off`, nothing is traced and nothing patched; the option goes before the settings."""
    source = """
        from rescope._registry import Registry
        from rescope._trace import Trace

        def test_leaves():
            assert (Trace.on, Trace.watcher) == (False, None)
            assert not hasattr(Registry.__init__, "__wrapped__")
            KEPT.append(Scope("application"))
            KEPT[0].add(Db())
    """
    result = run_anyio(source, *options)
    result.assert_outcomes(passed=1)


def test_the_core_is_left_as_it_was(run_anyio: Run) -> None:
    """After a run that watched, nothing is traced or patched any more."""
    before = Registry.__init__, Trace.on, Trace.watcher
    run_anyio(LEAVES).assert_outcomes(passed=1, errors=1)
    assert (Registry.__init__, Trace.on, Trace.watcher) == before


@pytest.mark.parametrize(("mode", "expected"), [("error", {"errors": 1}), ("warn", {"warnings": 1}), ("off", {})])
def test_marker_says_what_is_done_for_one_test(run_anyio: Run, mode: str, expected: dict[str, int]) -> None:
    """`@pytest.mark.rescope_leaks` goes before the option; what it let be is not told to the next test."""
    source = """
        @pytest.mark.rescope_leaks("MODE")
        def test_leaves():
            KEPT.append(Scope("application"))
            KEPT[0].add(Db())

        def test_drops():
            KEPT.clear()
    """
    for given in (f'"{mode}"', f'mode="{mode}"'):
        result = run_anyio(source.replace('"MODE"', given), "--strict-markers")
        result.assert_outcomes(passed=2, **expected)


def test_mode_that_is_none_is_refused(run_anyio: Run) -> None:
    """What is no mode is a usage error that names them, in the option, the settings, and the marker."""
    assert run_anyio("", "--rescope-leaks=loud").ret == pytest.ExitCode.USAGE_ERROR
    result = run_anyio("", "-o", "rescope_leaks=loud")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*rescope_leaks is one of 'error', 'warn', 'off', not 'loud'"])
    result = run_anyio("""
        @pytest.mark.rescope_leaks("loud")
        def test_marked(): pass

        @pytest.mark.rescope_leaks
        def test_bare(): pass

        @pytest.mark.rescope_leaks("off", "warn")
        def test_twice(): pass
    """)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["@pytest.mark.rescope_leaks takes one of 'error', 'warn', 'off', not 'loud'"])


def test_plugin_needs_no_runner(pytester: pytest.Pytester) -> None:
    """The plugin is found by pytest itself, and imports neither runner of async tests."""
    pytester.makepyfile("""
        import sys

        def test_loaded(request):
            assert request.config.pluginmanager.has_plugin("rescope")
            assert not {"pytest_asyncio", "anyio.pytest_plugin", "trio"} & set(sys.modules)
    """)
    command = [sys.executable, "-m", "pytest", "-q", *QUICK, "-p", "no:anyio", "-p", "no:asyncio"]
    run = subprocess.run(  # noqa: S603 (our own interpreter)
        command, cwd=pytester.path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "1 passed" in run.stdout, run.stdout


def test_example_says_what_failed_and_what_was_left_open(tmp_path: Path) -> None:
    """The example runs as it is, and ends well as pytest said all that it should."""
    example = Path(__file__).parent.parent / "examples" / "tests_with_scope.py"
    run = subprocess.run(  # noqa: S603 (our own example, run by our own interpreter)
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "left open: connection in scope 'client', registered at " in run.stdout
