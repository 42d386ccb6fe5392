"""`JobLog`: what jobs are at, readable while they run, and how they ended, whatever competes and whatever dies."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conftest import ASYNCIO_ONLY
from rescope import ResourceCleanupError, Scope
from rescope.testing import Ledger, cancel_everywhere
from rescope.workflow import MemoryStore, PostgresStore, RedisStore, SqliteStore, Store, StoreError
from rescope.workflow.jobs import (
    Job,
    JobExistsError,
    JobFailure,
    JobFinishedError,
    JobLog,
    JobNotFoundError,
    JobRun,
    JobStage,
    JobStatus,
)
from workflow.broken_stores import Clock, Good
from workflow.openers import open_postgres, open_redis

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
once = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY[:1], indirect=True)


class Fault(Exception):
    """An error of our own."""


class Mute(Exception):
    """An error that can't say what it is."""

    def __str__(self) -> str:
        raise Fault


INNER = "ExceptionGroup: one (1 sub-exception): Mute"


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still unless it is turned."""
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    """A store."""
    return MemoryStore()


@pytest.fixture
def jobs(store: MemoryStore, clock: Clock) -> JobLog:
    """A log in the store, by the clock."""
    return JobLog(store, clock=clock)


async def content(store: Store) -> list[Any]:
    return [(entry.key, entry.value) async for entry in store.scan("")]


# The life of a job


async def test_a_job_is_readable_from_its_creation_on(jobs: JobLog) -> None:
    """It runs, with the metadata and the time of its creation."""
    created = await jobs.create("import", file="orders.csv", parts=(1, 2))

    assert created == await jobs.get("import")
    assert created == Job(
        id="import",
        status=JobStatus.RUNNING,
        metadata={"file": "orders.csv", "parts": [1, 2]},
        stages=(),
        result=None,
        error=None,
        created_at=1000.0,
        updated_at=1000.0,
        finished_at=None,
    )


async def test_no_job_is_none(jobs: JobLog) -> None:
    """Where there is none of that id."""
    await jobs.create("import")

    assert await jobs.get("other") is None


async def test_stages_follow_each_other(jobs: JobLog, clock: Clock) -> None:
    """Each ends when the next one begins, so that durations can be shown; a name may come again."""
    await jobs.create("import")
    for name in ("load", "check", "load"):
        clock.advance(2)
        staged = await jobs.stage("import", name)

    assert staged == await jobs.get("import")
    assert staged.stages == (JobStage("load", 1002, 1004), JobStage("check", 1004, 1006), JobStage("load", 1006, None))
    assert (staged.status, staged.updated_at, staged.finished_at) == (JobStatus.RUNNING, 1006, None)


async def test_a_job_tells_its_latest_stage(jobs: JobLog) -> None:
    """By its name, also when it has ended; `None` before the first."""
    told = [await jobs.create("import")]
    told += [await jobs.stage("import", name) for name in ("load", "check")]
    told += [await jobs.complete("import")]

    assert [job.stage for job in told] == [None, "load", "check", "check"]


async def test_completing_ends_the_job_with_its_result(jobs: JobLog, clock: Clock) -> None:
    """And its latest stage."""
    await jobs.create("import", file="orders.csv")
    await jobs.stage("import", "load")
    clock.advance(3)
    done = await jobs.complete("import", rows=12, parts=("a",))

    assert done == await jobs.get("import")
    assert done.status is JobStatus.COMPLETED
    assert done.result == {"rows": 12, "parts": ["a"]}
    assert done.metadata == {"file": "orders.csv"}
    assert done.error is None
    assert (done.stages, done.updated_at, done.finished_at) == ((JobStage("load", 1000, 1003),), 1003, 1003)


@pytest.mark.parametrize(
    ("error", "kept", "text"),
    [
        (Fault("no such table"), JobFailure("Fault", "no such table"), "Fault: no such table"),
        ("disk full", JobFailure(None, "disk full"), "disk full"),
        (KeyboardInterrupt(), JobFailure("KeyboardInterrupt", ""), "KeyboardInterrupt"),
        (Mute(), JobFailure("Mute", ""), "Mute"),
        (
            ExceptionGroup("two tasks", [Fault("cut off"), ExceptionGroup("one", [Mute()])]),
            JobFailure("ExceptionGroup", f"two tasks (2 sub-exceptions): Fault: cut off, {INNER}"),
            f"ExceptionGroup: two tasks (2 sub-exceptions): Fault: cut off, {INNER}",
        ),
    ],
)
async def test_failing_ends_the_job_with_its_error(
    error: Any, kept: JobFailure, text: str, jobs: JobLog, clock: Clock
) -> None:
    """An exception's type and message, or a text."""
    await jobs.create("import")
    await jobs.stage("import", "load")
    clock.advance(3)
    failed = await jobs.fail("import", error)

    assert failed == await jobs.get("import")
    assert (failed.status, failed.error, failed.result) == (JobStatus.FAILED, kept, None)
    assert str(failed.error) == text
    assert (failed.stages, failed.finished_at) == ((JobStage("load", 1000, 1003),), 1003)


async def test_metadata_and_results_may_have_any_names(jobs: JobLog) -> None:
    """Also those of the parameters."""
    created = await jobs.create("import", self=1, job_id=2, metadata=3, status=4)
    done = await jobs.complete("import", self=1, job_id=2, result=3)

    assert created.metadata == {"self": 1, "job_id": 2, "metadata": 3, "status": 4}
    assert done.result == {"self": 1, "job_id": 2, "result": 3}


async def test_the_times_are_those_of_the_machine_by_default(store: MemoryStore) -> None:
    """In epoch seconds."""
    before = time.time()
    created = await JobLog(store).create("import")

    assert before <= created.created_at <= time.time()


@pytest.mark.parametrize("job_id", ["a/b", "ä 日本", "x" * 4096, "=a", "\udce9"])
async def test_any_id_will_do(job_id: str, jobs: JobLog) -> None:
    """As long as a path may be, also what is no UTF-8."""
    await jobs.create("a")
    await jobs.create(job_id)
    await jobs.complete(job_id)
    done = await jobs.get(job_id)

    assert done is not None
    assert (done.id, done.status) == (job_id, JobStatus.COMPLETED)
    assert {job.id async for job in jobs.list()} == {"a", job_id}


async def test_nothing_of_the_users_own_is_shown(store: MemoryStore, jobs: JobLog) -> None:
    """Metadata, results and messages may hold passwords, and are left out of every `repr`."""
    await jobs.create("import", password="hunter2")  # noqa: S106 (an example)
    await jobs.create("export")
    shown = [await jobs.complete("import", token="hunter2"), await jobs.fail("export", "hunter2"), jobs]  # noqa: S106

    assert "hunter2" not in repr(shown)
    assert repr(jobs) == "<JobLog in a MemoryStore>"
    assert "id='import', status=<JobStatus.COMPLETED" in repr(shown[0])


# What can't be


async def test_a_job_that_exists_is_not_created_again(store: MemoryStore, jobs: JobLog, clock: Clock) -> None:
    """The first one is left as it is."""
    await jobs.create("import", first=True)
    before = await content(store)
    clock.advance(1)
    with pytest.raises(
        JobExistsError, match="there is a job 'import' already: give each run an id of its own"
    ) as caught:
        await jobs.create("import", first=False)

    assert caught.value.job_id == "import"
    assert await content(store) == before


async def test_what_is_told_of_no_job_is_refused(store: MemoryStore, jobs: JobLog) -> None:
    """It would be lost."""
    for act in (jobs.stage("import", "load"), jobs.complete("import", rows=1), jobs.fail("import", "broken")):
        with pytest.raises(JobNotFoundError, match=r"^there is no job 'import': create it first$") as caught:
            await act
        assert isinstance(caught.value, KeyError)

    assert caught.value.job_id == "import"
    assert await content(store) == []


async def test_what_has_ended_stays_as_it_is(store: MemoryStore, jobs: JobLog, clock: Clock) -> None:
    """No stage follows, and it doesn't end otherwise."""
    await jobs.create("good")
    await jobs.create("bad")
    await jobs.complete("good", rows=1)
    await jobs.fail("bad", Fault("broken"))
    before = await content(store)
    clock.advance(1)
    late = [jobs.stage("good", "x"), jobs.complete("good", rows=2), jobs.complete("good"), jobs.fail("good", "x")]
    for act in late:
        with pytest.raises(JobFinishedError, match="job 'good' has completed already") as caught:
            await act
        assert (caught.value.job_id, caught.value.status) == ("good", JobStatus.COMPLETED)
    for act in (jobs.stage("bad", "x"), jobs.complete("bad"), jobs.fail("bad", "broken"), jobs.fail("bad", Fault("x"))):
        with pytest.raises(JobFinishedError, match="job 'bad' has failed already"):
            await act

    assert await content(store) == before


async def test_ending_again_in_the_same_way_changes_nothing(store: MemoryStore, jobs: JobLog, clock: Clock) -> None:
    """So it may be tried again where the answer got lost."""
    await jobs.create("good")
    await jobs.create("bad")
    done, failed = await jobs.complete("good", a=(1,), b=2), await jobs.fail("bad", Fault("broken"))
    before = await content(store)
    clock.advance(1)

    assert await jobs.complete("good", b=2, a=[1]) == done
    assert await jobs.fail("bad", Fault("broken")) == failed
    assert await content(store) == before


@pytest.mark.parametrize("error", [JobExistsError("a"), JobNotFoundError("a"), JobFinishedError("a", JobStatus.FAILED)])
def test_the_errors_can_be_pickled(error: Exception) -> None:
    """With what they say."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)

    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [("", ValueError, "must not be empty"), (7, TypeError, "must be a string, not a int")],
)
async def test_bad_ids_and_names_are_refused(
    bad: Any, error: type[Exception], text: str, store: MemoryStore, jobs: JobLog
) -> None:
    """Before anything is written."""
    await jobs.create("import")
    before = await content(store)
    acts = [jobs.create(bad), jobs.get(bad), jobs.stage(bad, "x"), jobs.complete(bad), jobs.fail(bad, "x")]
    for act in acts:
        with pytest.raises(error, match=f"the id of a job {text}"):
            await act
    with pytest.raises(error, match=f"the name of a stage {text}"):
        await jobs.stage("import", bad)

    assert await content(store) == before


async def test_what_is_not_json_is_refused(store: MemoryStore, jobs: JobLog) -> None:
    """Metadata and results, before anything is written."""
    await jobs.create("import")
    before = await content(store)
    for act in (jobs.create("other", what=object()), jobs.complete("import", what={1, 2})):
        with pytest.raises(TypeError, match=r"is not JSON: Object of type (object|set)"):
            await act
    with pytest.raises(ValueError, match="is not JSON: it holds a NaN"):
        await jobs.complete("import", what=float("nan"))

    assert await content(store) == before


@pytest.mark.parametrize(
    ("error", "text"), [(Fault, "not the class Fault"), (None, "not a NoneType"), (3, "not a int")]
)
async def test_what_is_no_error_is_refused(error: Any, text: str, jobs: JobLog) -> None:
    """A class is none, and nothing is none."""
    created = await jobs.create("import")
    with pytest.raises(TypeError, match="must be an exception or a text, " + text):
        await jobs.fail("import", error)

    assert await jobs.get("import") == created


def test_what_is_no_store_is_refused() -> None:
    """At once."""
    with pytest.raises(TypeError, match="`store` must be a store"):
        JobLog("jobs.db")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["mine", {"id": "import"}, {"status": "new", "stages": [], "error": None}])
async def test_what_something_else_wrote_is_told(value: Any, store: MemoryStore, jobs: JobLog) -> None:
    """Where a job should be; it is not overwritten."""
    await store.put("jobs/=import", value)
    for act in (jobs.get("import"), jobs.stage("import", "load"), anext(jobs.list())):
        with pytest.raises(StoreError, match="is no job that this version of rescope knows"):
            await act

    assert await content(store) == [("jobs/=import", value)]


# Lists


async def test_jobs_are_listed_by_id_and_by_status(jobs: JobLog) -> None:
    """Of all statuses, or of one."""
    for job_id in ("c", "a", "b", "d"):
        await jobs.create(job_id)
    await jobs.complete("a")
    await jobs.complete("d")
    await jobs.fail("b", "broken")

    assert [job.id async for job in jobs.list()] == ["a", "b", "c", "d"]
    assert [job.id async for job in jobs.list(status=JobStatus.COMPLETED)] == ["a", "d"]
    assert [job.id async for job in jobs.list(status="failed")] == ["b"]
    assert [job.id async for job in jobs.list(status=JobStatus.RUNNING)] == ["c"]
    with pytest.raises(ValueError, match="'dead' is not a valid JobStatus"):
        jobs.list(status="dead")


async def test_a_list_may_be_left_and_jobs_changed_while_it_is_read(jobs: JobLog) -> None:
    """Nothing is left open."""
    for number in range(700):
        await jobs.create(f"{number:04}")
    async for job in jobs.list():
        if job.id == "0003":
            break
    async for job in jobs.list():
        await jobs.complete(job.id)

    assert [job.id async for job in jobs.list(status="completed")] == [f"{number:04}" for number in range(700)]


@pytest.mark.long
@once
async def test_a_hundred_thousand_jobs_are_listed(store: MemoryStore, jobs: JobLog) -> None:
    """All of them, in order."""
    await jobs.create("000000")
    ((_, value),) = await content(store)
    await store.put_many({f"jobs/={number:06}": {**value, "id": f"{number:06}"} for number in range(100_000)})
    listed = [int(job.id) async for job in jobs.list()]

    assert listed == [*range(100_000)]


# Several at once


async def test_stages_told_at_the_same_time_are_all_there(jobs: JobLog) -> None:
    """Whoever comes too late reads again."""
    await jobs.create("import")
    async with anyio.create_task_group() as tasks:
        for number in range(25):
            tasks.start_soon(jobs.stage, "import", str(number))
    job = await jobs.get("import")

    assert job is not None
    assert {stage.name for stage in job.stages} == {str(number) for number in range(25)}
    assert [stage.finished_at is None for stage in job.stages] == [False] * 24 + [True]


async def test_one_of_those_that_end_a_job_ends_it(jobs: JobLog) -> None:
    """The others are told that it has ended."""
    await jobs.create("import")
    outcomes: list[object] = []

    async def end(number: int) -> None:
        try:
            outcomes.append((await jobs.complete("import", by=number)).result)
        except JobFinishedError as exc:
            outcomes.append(exc.status)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(end, number)
    job = await jobs.get("import")

    assert job is not None
    assert outcomes.count(JobStatus.COMPLETED) == 4
    assert job.result in outcomes


async def test_one_of_those_that_create_a_job_creates_it(jobs: JobLog) -> None:
    """The others are told that it exists."""
    created: list[Job] = []

    async def create(number: int) -> None:
        try:
            created.append(await jobs.create("import", by=number))
        except JobExistsError:
            pass

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(create, number)

    assert created == [await jobs.get("import")]


WORK = """
import sys, anyio
from rescope.workflow import SqliteStore
from rescope.workflow.jobs import JobLog

async def main(path, who):
    async with SqliteStore(path, synchronous="normal", busy_timeout=30) as store:
        jobs = JobLog(store)
        for number in range(25):
            await jobs.stage("shared", f"{who}/{number}")
        await jobs.create(who)
        await jobs.stage(who, "waiting")
        print("waiting", flush=True)
        sys.stdin.readline()
        await jobs.complete(who, stages=25)

anyio.run(main, *sys.argv[1:])
"""


@once
async def test_stages_of_several_processes_are_all_there_and_readable_meanwhile(tmp_path: Path) -> None:
    """None is lost; another process sees a job while it runs; the job of one that is killed goes on running."""
    path = str(tmp_path / "store.db")
    async with SqliteStore(path) as store:
        jobs = JobLog(store)
        await jobs.create("shared")
        names = [f"p{number}" for number in range(3)]
        command = [sys.executable, "-c", WORK, path]
        processes = [
            subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220, S603
            for name in names
        ]
        said = [process.stdout.readline() for process in processes if process.stdout is not None]
        meanwhile = {job.id: job.stages[-1].name async for job in jobs.list() if job.id != "shared"}
        processes[0].kill()
        for process in processes:
            process.communicate(b"\n")
        after = {job.id: job.status async for job in jobs.list()}
        shared = await jobs.get("shared")

    assert said == [b"waiting\n"] * 3
    assert meanwhile == dict.fromkeys(names, "waiting")
    assert after == {"p0": "running", "p1": "completed", "p2": "completed", "shared": "running"}
    assert shared is not None
    assert sorted(stage.name for stage in shared.stages) == sorted(f"{name}/{n}" for name in names for n in range(25))


@pytest.fixture(params=["postgres", "redis"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[PostgresStore | RedisStore]:
    """A store on a server."""
    url = request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgres":
        async with open_postgres(url, "jobs") as store:
            yield store
    else:
        async with open_redis(url) as other:
            yield other


@on_asyncio
async def test_it_is_the_same_on_a_server(served: PostgresStore | RedisStore) -> None:
    """Stages told at once, and the end."""
    jobs = JobLog(served)
    await served.delete("jobs/=import")
    await jobs.create("import", file="orders.csv")
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(jobs.stage, "import", str(number))
    done = await jobs.complete("import", rows=1)

    assert done == await jobs.get("import")
    assert sorted(stage.name for stage in done.stages) == [str(number) for number in range(8)]
    assert [job async for job in jobs.list()] == [done]


# A block that is a job


async def test_a_block_that_ends_completes_its_job(jobs: JobLog) -> None:
    """With its metadata, stages and result; it is running meanwhile."""
    async with jobs.run("import", file="orders.csv") as run:
        staged = await run.stage("load")
        run.result["rows"] = 12
        meanwhile = await jobs.get("import")
        shown = repr(run)
    job = await jobs.get("import")

    assert meanwhile == staged
    assert meanwhile.status is JobStatus.RUNNING
    assert job is not None
    assert (job.status, job.metadata, job.result) == (JobStatus.COMPLETED, {"file": "orders.csv"}, {"rows": 12})
    assert (isinstance(run, JobRun), run.id, shown) == (True, "import", "<JobRun 'import'>")


@pytest.mark.parametrize("error", [Fault("broken"), SystemExit(3)])
async def test_a_block_that_raises_fails_its_job(error: BaseException, jobs: JobLog) -> None:
    """What it raised comes out, itself."""
    with pytest.raises(type(error)) as caught:
        async with jobs.run("import"):
            raise error
    job = await jobs.get("import")

    assert caught.value is error
    assert job is not None
    assert (job.status, job.error) == (JobStatus.FAILED, JobFailure(type(error).__name__, str(error)))


async def test_a_block_that_is_cancelled_fails_its_job(jobs: JobLog) -> None:
    """The recording is out of the cancellation's reach."""
    with anyio.move_on_after(0) as scope:
        async with jobs.run("import") as run:
            await run.stage("load")
            await anyio.sleep_forever()
    with anyio.CancelScope() as later:
        async with jobs.run("export"):
            later.cancel()
            await anyio.lowlevel.checkpoint()
    found = [await jobs.get(job_id) for job_id in ("import", "export")]

    assert (scope.cancelled_caught, later.cancelled_caught) == (True, True)
    assert found[1] is not None
    assert all(job is None or job.status is JobStatus.FAILED for job in found)
    assert found[1].error is not None
    assert found[1].error.type in {"CancelledError", "Cancelled"}


async def test_wherever_it_is_cancelled_no_job_is_left_running() -> None:
    """At each of its points, while it is created and while its end is recorded too, before the answers come."""

    class Answers(Good):
        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            version = await super().put(key, value, ttl=ttl, if_version=if_version)
            await anyio.lowlevel.checkpoint()
            return version

    jobs = JobLog(Answers(MemoryStore()))
    numbers = iter(range(10_000))
    left: list[Job] = []

    async def program(_: Ledger) -> None:
        job_id = str(next(numbers))
        try:
            async with jobs.run(job_id) as run:
                await run.stage("load")
        finally:
            with anyio.CancelScope(shield=True):
                job = await jobs.get(job_id)
            if job is not None and job.status is JobStatus.RUNNING:
                left.append(job)

    await cancel_everywhere(program)

    assert left == []
    assert next(numbers) > 5


async def test_a_job_that_its_block_has_ended_stays_so(jobs: JobLog) -> None:
    """However the block ends then."""
    async with jobs.run("failed"):
        await jobs.fail("failed", "not today")
    with pytest.raises(Fault):
        async with jobs.run("completed"):
            await jobs.complete("completed", rows=1)
            raise Fault
    failed, completed = await jobs.get("failed"), await jobs.get("completed")

    assert failed is not None
    assert failed.error == JobFailure(None, "not today")
    assert completed is not None
    assert (completed.status, completed.result) == (JobStatus.COMPLETED, {"rows": 1})


async def test_a_block_does_not_begin_where_its_job_exists(jobs: JobLog) -> None:
    """And the job is left as it is."""
    created = await jobs.create("import")
    with pytest.raises(JobExistsError):
        async with jobs.run("import"):
            raise AssertionError

    assert await jobs.get("import") == created


async def test_a_result_that_is_not_json_fails_the_job(jobs: JobLog) -> None:
    """And is told: the job is not left running."""
    with pytest.raises(ResourceCleanupError) as caught:
        async with jobs.run("import") as run:
            run.result["what"] = object()
    job = await jobs.get("import")

    assert [type(error) for error in caught.value.exceptions] == [TypeError]
    assert job is not None
    assert job.error == JobFailure(
        "TypeError", "the value for 'import' is not JSON: Object of type object is not JSON serializable"
    )


async def test_an_end_that_could_not_be_recorded_is_told() -> None:
    """By the error of a scope, from what the block raised."""

    class Fails(Good):
        broken = False

        async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
            if self.broken:
                raise StoreError("no route to host")
            return await super().put(key, value, ttl=ttl, if_version=if_version)

    store = Fails(MemoryStore())
    with pytest.raises(ResourceCleanupError, match="no route to host") as caught:
        async with JobLog(store).run("import"):
            store.broken = True
            raise Fault

    assert isinstance(caught.value.__cause__, Fault)


async def test_a_scope_can_hold_a_job(jobs: JobLog) -> None:
    """It ends as the scope does, the recording being one of its cleanups."""
    with pytest.raises(Fault):
        async with Scope() as scope:
            run = await scope.enter(jobs.run("import"))
            await run.stage("load")
            raise Fault
    job = await jobs.get("import")

    assert job is not None
    assert job.status is JobStatus.FAILED
