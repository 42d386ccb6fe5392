"""What jobs are at, and how they ended, for whoever wants to look while they run.

A job is one entry, which each step replaces if it is still the one that was read, so that steps from several processes
don't overwrite each other: compare-and-set, as in Herlihy's "Wait-free synchronization" (1991). Who comes too late
reads again. One of those that compete always gets on.
"""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, cast, final

from rescope import Err, Scope
from rescope.workflow._failure import told
from rescope.workflow._listing import Listing
from rescope.workflow._names import check_store, check_user_key, key_in
from rescope.workflow.store import StoreError, VersionConflictError, decode, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from rescope import Result
    from rescope.workflow.store import Entry, Store

    Change = Callable[["Job", float], "Job"]
    """Gives a job as it becomes at that time, or the very same one where nothing changes."""

__all__ = [
    "Job",
    "JobExistsError",
    "JobFailure",
    "JobFinishedError",
    "JobLog",
    "JobNotFoundError",
    "JobRun",
    "JobStage",
    "JobStatus",
]

_PREFIX = "jobs/"
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1
_GRACE = 5.0  # seconds to record how a run has ended


class JobStatus(StrEnum):
    """How far a job is."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class JobExistsError(Exception):
    """There is a job of that id already. It was left as it is."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"there is a job {self.job_id!r} already: give each run an id of its own, as one with its date"


class JobNotFoundError(KeyError):
    """There is no job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"there is no job {self.job_id!r}: create it first"


class JobFinishedError(Exception):
    """The job has ended otherwise. It was left as it is. `status` says how it ended."""

    def __init__(self, job_id: str, status: JobStatus) -> None:
        super().__init__(job_id, status)
        self.job_id = job_id
        self.status = status

    def __str__(self) -> str:
        return f"job {self.job_id!r} has {self.status} already: what has ended stays as it is"


@final
@dataclass(frozen=True, slots=True)
class JobStage:
    """A stage of a job. It ends when the next one begins, or the job ends; `finished_at` is `None` until then.

    Times are in epoch seconds by the clocks of the processes that told them.
    """

    name: str
    started_at: float
    finished_at: float | None


@final
@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job failed: the name of the exception's type, or `None` where it was a text, and its message.

    The message of a group goes on with those of what it holds. It is left out of the `repr`.
    """

    type: str | None
    message: str = field(repr=False)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.type, self.message) if part)


@final
@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when it was read.

    Times are in epoch seconds by the clocks of the processes that told them. `updated_at` is when anything was told of
    it last: a job that is `RUNNING` and has not been updated for long may belong to a process that died. `finished_at`
    and `result` are `None` until it ends, and `error` unless it failed. What is the user's own is left out of the
    `repr`.
    """

    id: str
    status: JobStatus
    metadata: dict[str, Any] = field(repr=False)
    stages: tuple[JobStage, ...]
    result: dict[str, Any] | None = field(repr=False)
    error: JobFailure | None
    created_at: float
    updated_at: float
    finished_at: float | None

    @property
    def stage(self) -> str | None:
        """The name of the latest stage, at which it is, or ended; `None` where none has begun."""
        return self.stages[-1].name if self.stages else None


@final
class JobLog:
    """The jobs of a store that processes share: what they are at, readable while they run, and how they ended.

    `clock` gives the times of what is told, in epoch seconds.

    *Ids* are strings: not empty, up to 4096 bytes, without control characters. *Metadata* and *results* are what `json`
    can write. Any number of tasks and processes may tell stages of a job at once; none is lost. Each call is one
    change, done as a whole or not at all, also when it is cancelled or the process is killed. Where the store fails,
    its `StoreError` is raised. ::

        jobs = JobLog(store)
        await jobs.create("import-2026-11-22", file="orders.csv")
        await jobs.stage("import-2026-11-22", "load")
        await jobs.complete("import-2026-11-22", rows=1200)
    """

    __slots__ = ("_clock", "_store")

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        check_store(store)
        self._store = store
        self._clock = clock

    def __repr__(self) -> str:
        return f"<JobLog in a {type(self._store).__qualname__}>"

    async def create(self, job_id: str, /, **metadata: Any) -> Job:
        """Begin a job.

        Raises `JobExistsError` where there is one of that id; `TypeError` or `ValueError` for an id that is no string
        or empty, and for metadata that isn't JSON.
        """
        key, now = _key(job_id), self._clock()
        job = Job(job_id, JobStatus.RUNNING, _as_json(job_id, metadata), (), None, None, now, now, None)
        try:
            await self._store.put(key, _value(job), if_version=0)
        except VersionConflictError:
            raise JobExistsError(job_id) from None
        return job

    async def stage(self, job_id: str, name: str) -> Job:
        """Begin the next stage of a job; the one before it ends. A name may come again.

        All stages of a job are in one entry: have tens of them, not thousands. Raises `JobNotFoundError`, and
        `JobFinishedError` where the job has ended; `TypeError` or `ValueError` for a name that is no string or empty.
        """
        check_user_key(name, "the name of a stage")
        return await self._change(job_id, partial(_staged, name))

    async def complete(self, job_id: str, /, **result: Any) -> Job:
        """End a job well. To do so again with the same result changes nothing.

        Raises `JobNotFoundError`, and `JobFinishedError` where the job has ended otherwise; `TypeError` or `ValueError`
        for a result that isn't JSON.
        """
        ending = {"status": JobStatus.COMPLETED, "result": _as_json(job_id, result)}
        return await self._change(job_id, partial(_ended, ending))

    async def fail(self, job_id: str, error: BaseException | str) -> Job:
        """End a job with an error: an exception, of which the name of its type and its message are kept, or a text.

        To do so again with the same error changes nothing. Raises `JobNotFoundError`, and `JobFinishedError` where the
        job has ended otherwise; `TypeError` for what is neither an exception nor a text.
        """
        ending = {"status": JobStatus.FAILED, "error": JobFailure(*told(error))}
        return await self._change(job_id, partial(_ended, ending))

    async def get(self, job_id: str) -> Job | None:
        """Give a job as it is now, or `None` where there is none of that id."""
        entry = await self._store.get(_key(job_id))
        return None if entry is None else _job(entry)

    def list(self, *, status: JobStatus | str | None = None) -> AsyncIterator[Job]:
        """Give all jobs, or those of a status, in the order of their ids by code points.

        Those of more than about 500 bytes, and those that are no UTF-8, come last, in no order. They are read in pages,
        so that few are in memory. What changes meanwhile may be given as it was before or after. It may be left at any
        time. Raises `ValueError` for what is no status.
        """
        wanted = set(JobStatus) if status is None else {JobStatus(status)}
        return Listing(self._store.scan(_PREFIX), _job, lambda job: job.status in wanted)

    @asynccontextmanager
    async def run(self, job_id: str, /, **metadata: Any) -> AsyncGenerator[JobRun]:
        """Create a job, and end it as the block ends: completed with the `result` of what this gives, or failed.

        A block that raises or is cancelled has failed; what it raised comes out. No cancellation reaches the recording,
        which takes 5 seconds at most. Where that fails, `ResourceCleanupError` says so, from what the block raised. One
        that the block has ended itself stays as it is. Raises as `create` does. ::

            async with jobs.run("import-2026-11-22", file="orders.csv") as job:
                await job.stage("load")
                job.result["rows"] = 1200
        """
        run = JobRun(self, job_id)
        async with Scope(f"job {job_id}", grace=_GRACE) as scope:

            async def record(_: Job) -> None:
                await run._end(scope.outcome)

            await scope.acquire(partial(self.create, job_id, **metadata), record, name="record", shield=True)
            yield run

    async def _change(self, job_id: str, change: Change) -> Job:
        """Change a job as it is now, as often as somebody else was first."""
        from anyio import sleep

        key, pause = _key(job_id), _FIRST_PAUSE
        while True:
            entry = await self._store.get(key)
            if entry is None:
                raise JobNotFoundError(job_id)
            before, now = _job(entry), self._clock()
            after = change(before, now)
            if after is before:
                return before
            after = replace(after, updated_at=now)
            try:
                await self._store.put(key, _value(after), if_version=entry.version)
            except VersionConflictError:
                await sleep(random.uniform(0, pause))  # noqa: S311 (nothing secret)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return after


@final
class JobRun:
    """What `JobLog.run` gives: a job that ends with its block."""

    __slots__ = ("_log", "id", "result")

    id: str
    """The id of the job."""
    result: dict[str, Any]
    """What the job is completed with: put in what you like, as JSON has it."""

    def __init__(self, log: JobLog, job_id: str) -> None:
        self._log = log
        self.id = job_id
        self.result = {}

    def __repr__(self) -> str:
        return f"<JobRun {self.id!r}>"

    async def stage(self, name: str) -> Job:
        """See `JobLog.stage`."""
        return await self._log.stage(self.id, name)

    async def _end(self, outcome: Result[Any, BaseException] | None) -> None:
        """Record how the block has ended, unless it has done so itself."""
        with suppress(JobFinishedError):
            if isinstance(outcome, Err):
                await self._log.fail(self.id, outcome.error)
                return
            try:
                await self._log.complete(self.id, **self.result)
            except (TypeError, ValueError) as exc:
                await self._log.fail(self.id, exc)
                raise


def _staged(name: str, job: Job, now: float) -> Job:
    if job.status is not JobStatus.RUNNING:
        raise JobFinishedError(job.id, job.status)
    return replace(job, stages=(*_closed(job.stages, now), JobStage(name, now, None)))


def _ended(ending: dict[str, Any], job: Job, now: float) -> Job:
    if job.status is JobStatus.RUNNING:
        return replace(job, stages=_closed(job.stages, now), finished_at=now, **ending)
    if any(getattr(job, name) != value for name, value in ending.items()):
        raise JobFinishedError(job.id, job.status)
    return job


def _closed(stages: tuple[JobStage, ...], now: float) -> tuple[JobStage, ...]:
    """End the latest stage, if there is one."""
    return (*stages[:-1], *(replace(latest, finished_at=now) for latest in stages[-1:]))


# To the store, and from it


def _key(job_id: str) -> str:
    return key_in(_PREFIX, job_id, what="the id of a job")


def _as_json(job_id: str, value: dict[str, Any]) -> dict[str, Any]:
    """Give it as it will come back, so that it can be compared with that."""
    return cast("dict[str, Any]", decode(job_id, encode(job_id, value)))


def _value(job: Job) -> dict[str, Any]:
    value = {each.name: getattr(job, each.name) for each in fields(job)}
    stages = [asdict(stage) for stage in job.stages]
    return value | {"stages": stages, "error": None if job.error is None else asdict(job.error)}


def _job(entry: Entry) -> Job:
    try:
        value = entry.value
        stages = tuple(JobStage(**stage) for stage in value["stages"])
        error = None if value["error"] is None else JobFailure(**value["error"])
        return Job(**value | {"status": JobStatus(value["status"]), "stages": stages, "error": error})
    except (KeyError, TypeError, ValueError):
        msg = f"what the store holds under {entry.key!r} is no job that this version of rescope knows"
        raise StoreError(msg) from None
