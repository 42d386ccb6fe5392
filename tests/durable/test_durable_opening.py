"""Opening an application: what is refused, what the engine needs, and whose work is taken over."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import runpy
import signal
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from dbos import DBOS

from durable.conftest import until
from rescope import Scope
from rescope.workflow import durable
from rescope.workflow.durable import Durable, DurableClosedError, _locks, _takeover
from rescope.workflow.durable import _engine as engine
from rescope.workflow.durable._locks import AdvisoryLocks, FileLocks, Locks, _is_old
from rescope.workflow.durable._takeover import TakeOver

# A process of its own that starts `orders.payment.charge` and hangs in its first attempt, until it is killed.
OTHER = """
import asyncio, sys
from pathlib import Path
from rescope.workflow.durable._takeover import TakeOver
from rescope.workflow.durable import Durable, DurableClosedError

app = Durable(url=sys.argv[1], name="shop")

@app.function(namespace="orders.payment")
async def charge(scope, order):
    print("at work", flush=True)
    await asyncio.sleep(60)

async def main():
    async with app:
        await charge.start("order-7", key="order-7")
        await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def other_process(url: str) -> Generator[subprocess.Popen[str]]:
    """Run that process, which is at work when this is entered."""
    command = [sys.executable, "-c", OTHER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (our own)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": 7}, r"`url` must be a string, not a int"),
        ({"url": "mysql://root:secret@host/db"}, r"`url` must name a file of SQLite, or a PostgreSQL"),
        ({"url": "sqlite://"}, r"must name a file of SQLite"),
        ({"url": "sqlite:///:memory:"}, r"must name a file of SQLite"),
        ({"url": "postgresql://me:my@secret@host/db"}, r"`url` can't be read by libpq: in a user's name or password, "),
        ({"url": "postgresql://me:secret/1@host/db"}, r"`url` can't be read by libpq"),
        ({"url": "postgresql://me:secret%@host/db"}, r"`url` can't be read by libpq.* write % as %25, @ as %40"),
        ({"name": ""}, r"a name must not be empty"),
        ({"name": 7}, r"a name must be a string"),
        ({"recover_every": 0}, r"`recover_every` must be a finite number of seconds, more than 0"),
        ({"recover_every": "1"}, r"`recover_every` must be a number of seconds, not a str"),
    ],
)
def test_bad_arguments_of_an_application_are_refused(options: dict[str, Any], message: str) -> None:
    """With an error that names the mend, and doesn't show the URL."""
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        Durable(**{"url": "sqlite:///jobs.db", "name": "shop", **options})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"namespace": "payment"}, r"`namespace` must be two names with a dot between, as 'orders\.payment'"),
        ({"namespace": "a.b.c"}, r"`namespace` must be two names"),
        ({"namespace": None}, r"`namespace` must be two names"),
        ({"attempts": 0}, r"`attempts` must be a whole number from 1"),
        ({"attempts": 1.5}, r"`attempts` must be a whole number from 1"),
        ({"attempts": True}, r"`attempts` must be a whole number from 1"),
        ({"backoff": -1}, r"`backoff` must be a finite number of seconds, 0 or more"),
        ({"max_backoff": float("nan")}, r"`max_backoff` must be a finite number"),
        ({"timeout": 0}, r"`timeout` must be a finite number of seconds, more than 0"),
        ({"timeout": True}, r"`timeout` must be a number of seconds, not a bool"),
    ],
)
def test_bad_arguments_of_a_function_are_refused(app: Durable, options: dict[str, Any], message: str) -> None:
    """At the decorator, before anything is registered."""
    with pytest.raises((TypeError, ValueError), match=message):
        app.function(**{"namespace": "orders.payment", **options})


def test_what_is_no_durable_function_is_refused(app: Durable) -> None:
    """One that isn't async, one that takes no scope, and one whose name is taken."""

    def plain(scope: Scope) -> None: ...

    async def scopeless() -> None: ...

    async def keywords(*, scope: Scope) -> None: ...

    async def charge(scope: Scope) -> None: ...

    async def by_name(scope: Scope, *, cents: int) -> None: ...

    register: Callable[[Any], Any] = app.function(namespace="orders.payment")
    with pytest.raises(TypeError, match="must be an `async def` function, not a function"):
        register(plain)
    with pytest.raises(TypeError, match="must be an `async def` function, not a partial"):
        register(partial(charge))
    with pytest.raises(
        TypeError, match="by_name needs `cents` by its name, and `start` gives arguments by their position"
    ):
        register(by_name)
    for bad in (scopeless, keywords):
        with pytest.raises(TypeError, match="takes no scope: make it its first parameter"):
            register(bad)
    register(charge)
    with pytest.raises(ValueError, match=r"orders\.payment\.charge is registered already"):
        register(charge)


def test_without_the_engine_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ImportError` with the line for pip."""
    monkeypatch.setitem(sys.modules, "dbos", None)

    with pytest.raises(ImportError, match=r"pip install 'rescope\[durable\]'"):
        runpy.run_path(durable.__file__)


def test_on_trio_it_is_refused(app: Durable) -> None:
    """A `RuntimeError` says that the engine runs on asyncio only, and nothing is open afterwards."""
    trio = pytest.importorskip("trio")

    with pytest.raises(RuntimeError, match="run on asyncio only, as DBOS does"):
        trio.run(app.__aenter__)
    assert Durable._open is None


async def test_a_process_has_one_application_open(app: Durable, url: str) -> None:
    """A second one is refused with a `RuntimeError`, also where the engine was opened by somebody else."""
    second = Durable(url=url, name="second")
    async with app:
        for other in (second, app):
            with pytest.raises(RuntimeError, match=r"<Durable 'shop'> is open in this process already"):
                await other.__aenter__()
    DBOS(config={"name": "foreign", "system_database_url": url})
    try:
        with pytest.raises(RuntimeError, match="a DBOS is open in this process already"):
            await second.__aenter__()
    finally:
        DBOS.destroy(destroy_registry=True)
    async with second:
        assert Durable._open is second


async def test_a_database_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    """The error comes out, and another application can be opened."""
    missing = Durable(url=f"sqlite:///{tmp_path}/missing/jobs.db", name="shop")
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        await missing.__aenter__()
    (tmp_path / "folder.db").mkdir()
    folder = Durable(url=f"sqlite:///{tmp_path}/folder.db", name="shop")
    with pytest.raises(sqlalchemy.exc.OperationalError):
        await folder.__aenter__()
    async with Durable(url=f"sqlite:///{tmp_path}/jobs.db", name="shop") as app:
        assert Durable._open is app


async def test_a_path_is_read_as_the_engine_reads_it(tmp_path: Path) -> None:
    """So the locks are beside the database, whatever its version of SQLAlchemy makes of a `%`."""
    url = f"sqlite:///{tmp_path}/my%20jobs/a.db"
    folder = Path(sqlalchemy.make_url(url).database or "").parent
    folder.mkdir()
    async with Durable(url=url, name="shop"):
        found = list(folder.glob("a.db-executor-*"))

    assert found != []


async def test_with_a_lock_that_others_can_take_too_it_does_not_open(
    app: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler in transaction mode, where two processes share a connection."""
    monkeypatch.setattr(FileLocks, "take", lambda *_: True)

    with pytest.raises(RuntimeError, match="connect to PostgreSQL past a pooler"):
        await app.__aenter__()


async def test_without_a_lock_of_its_own_it_does_not_open(app: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that can't lock: others would take it for dead."""
    monkeypatch.setattr(FileLocks, "take", lambda *_: False)

    with pytest.raises(RuntimeError, match="can't be taken, or keeps nobody out"):
        await app.__aenter__()
    assert Durable._open is None


async def test_what_the_database_refuses_is_not_shown(app: Durable, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither raised nor logged: it may hold a password."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, password: str) -> None: ...

    async with app:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
            db.execute("ALTER TABLE workflow_input RENAME TO elsewhere")
        with pytest.raises(sqlalchemy.exc.OperationalError, match="SQL parameters hidden") as caught:
            await charge.start("secret")
    for shown in (str(caught.value), caplog.text):
        assert "secret" not in shown
        assert b64encode(pickle.dumps("secret"))[8:16].decode() not in shown


async def test_locks_of_those_that_were_killed_at_rest_are_removed(app: Durable, url: str, tmp_path: Path) -> None:
    """They had no work to take over, so only the files beside the database tell of them."""
    path = url.removeprefix("sqlite:///")
    alive = FileLocks(path)
    assert alive.take("executor-alive")
    dead, young = (Path(f"{path}-executor-{name}") for name in ("dead", "young"))
    dead.touch()
    young.touch()
    os.utime(dead, (0, 0))
    os.utime(f"{path}-executor-alive", (0, 0))
    async with app:
        found = set(os.listdir(tmp_path))  # noqa: PTH208
    alive.close()

    assert {"jobs.db-executor-alive", "jobs.db-executor-young"} < found
    assert "jobs.db-executor-dead" not in found
    young.unlink()
    assert not _is_old(young)


def test_an_old_sqlite_is_told_with_what_to_do() -> None:
    """On Python 3.12 and newer, an old SQLite is replaced by a newer one that is installed, else it is an error."""
    old = SimpleNamespace(sqlite_version_info=(3, 40, 1), sqlite_version="3.40.1")
    new = SimpleNamespace(sqlite_version_info=(3, 42, 0), sqlite_version="3.42.0")
    modules: list[Any] = [engine.sqlite_module(old, version=(3, 11)), engine.sqlite_module(new, version=(3, 12))]
    assert modules == [old, new]
    for other in ("nowhere", "sys"):
        sys.sqlite_version_info = old.sqlite_version_info  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=r"and this one has 3\.40\.1: `pip install pysqlite3-binary`, or use"):
            engine.sqlite_module(old, version=(3, 12), other=other)
    sys.sqlite_version_info = new.sqlite_version_info  # type: ignore[attr-defined]
    assert engine.sqlite_module(old, version=(3, 12), other="sys") is sys
    del sys.sqlite_version_info  # type: ignore[attr-defined]


async def test_without_a_fit_sqlite_nothing_is_written(
    app: Durable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening raises, and leaves no file and no engine."""

    def refuse() -> None:
        raise RuntimeError("DBOS needs SQLite 3.42")

    monkeypatch.setattr(engine, "sqlite_module", refuse)
    with pytest.raises(RuntimeError, match=r"DBOS needs SQLite 3\.42"):
        await app.__aenter__()
    with pytest.raises(DurableClosedError):
        await app.handle("7").result()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert Durable._open is None


async def test_what_is_taken_over_begins_soon(app: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's queue for it is asked five times a second; what is started waits in none."""
    monkeypatch.undo()
    started = asyncio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None:
        started.set()

    async with app:
        queue = await DBOS.retrieve_queue_async("rescope-shop")
        assert queue is not None
        assert await queue.get_polling_interval_sec_async() == 0.2
        handle = await charge.start()
        await started.wait()
        status = await DBOS.get_workflow_status_async(handle.id)
        assert status is not None
        assert status.queue_name is None


def test_every_name_has_one_for_the_engine() -> None:
    """Names that the engine doesn't take get one that no other name has."""
    names = ["shop", "Shop", "a/b", "a b", "é", "x" * 300]

    found = [engine.application_name(name) for name in names]

    assert found[0] == "shop"
    assert len(set(found)) == len(names)
    assert all(3 <= len(name) <= 256 for name in found)


# Whose work is taken over


async def test_work_of_a_process_that_lives_is_left_to_it(app: Durable, url: str) -> None:
    """Two processes that share a database never take each other for one that died; the same key is the same work."""
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, order: str) -> str:
        log.append(order)
        return f"{order} charged"

    with other_process(url) as other:
        async with app:
            handle = await charge.start("order-7", key="order-7")
            with pytest.raises(TimeoutError):
                await handle.result(timeout=0.5)
            assert log == []
            assert await handle.status() == "running"
            assert other.poll() is None


async def test_work_of_a_process_that_was_killed_is_taken_over(url: str, tmp_path: Path) -> None:
    """By one that runs already, every `recover_every` seconds; nothing of the dead one is left beside the database."""
    app = Durable(url=url, name="shop", recover_every=0.05)
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, order: str) -> str:
        log.append(order)
        return f"{order} charged"

    with other_process(url) as other:
        async with app:
            handle = await charge.start("order-7", key="order-7")
            other.send_signal(signal.SIGKILL)

            assert await handle.result(timeout=30) == "order-7 charged"
            assert log == ["order-7"]
    assert os.listdir(tmp_path) == ["jobs.db"]  # noqa: PTH208


async def test_work_of_functions_that_are_not_known_is_told(
    app: Durable, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays for a process that knows them; a WARNING names them."""
    may_end = asyncio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> str:
        await may_end.wait()
        return "charged"

    renamed = Durable(url=url, name="shop", recover_every=0.02)
    looked: list[str] = []
    resume = TakeOver._resume_all_of

    async def resume_and_count(take_over: TakeOver, executor: str) -> None:
        await resume(take_over, executor)
        looked.append(executor)

    monkeypatch.setattr(TakeOver, "_resume_all_of", resume_and_count)
    async with app:
        handle = await charge.start()
    async with renamed:
        assert await renamed.handle(handle.id).status() == "running"
        await until(lambda: len(looked) > 2)  # it tells it once
    may_end.set()
    async with app:
        assert await app.handle(handle.id).result() == "charged"
    told = [record.getMessage() for record in caplog.records if record.name == "rescope"]
    assert told == ["work of 'shop' can't go on, as this process does not know orders.payment.charge"]


async def test_a_failure_to_take_over_is_told_and_tried_again(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the database can't be reached for a while."""
    app = Durable(url=url, name="shop", recover_every=0.01)
    calls: list[str] = []
    async with app:

        async def fail(take_over: TakeOver) -> list[Any]:
            calls.append("asked")
            raise ConnectionError("no route to host")

        monkeypatch.setattr(TakeOver, "_pending", fail)
        await until(lambda: len(calls) > 1)
    assert "what others may have left of 'shop' can't be taken over: ConnectionError: no route to host" in caplog.text
    assert {record.levelno for record in caplog.records if record.name == "rescope"} == {logging.WARNING}


async def test_what_just_begins_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pending before it runs. So what is pending, and does not run, is taken up when that lasts for seconds."""
    resumed: list[list[str]] = []
    now = [100.0]

    async def resume(_: TakeOver, ids: list[str]) -> None:
        resumed.append(sorted(ids))

    monkeypatch.setattr(TakeOver, "_resume", resume)
    monkeypatch.setattr(_takeover, "monotonic", lambda: now[0])
    take_over = TakeOver("shop", (), FileLocks(f"{tmp_path}/jobs.db"), "me", lambda: {"runs"})
    for pending in (["a", "runs"], ["a", "b", "runs"], ["a", "b"], ["a"], ["b"], ["b"]):
        await take_over._resume_lost(pending)
        now[0] += 3

    assert resumed == [[], [], ["a"], [], [], []]


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path, postgres_url: str) -> None:
    """Of files as of PostgreSQL: refused while another holds it, free when that one lets go, closes or dies."""

    def all_of(left: Locks, right: Locks) -> list[bool]:
        found = [left.take("a"), left.take("a"), right.take("a"), right.take("b")]
        left.let_go("a")
        found.append(right.take("a"))
        right.close()
        found.append(left.take("b"))
        left.close()
        right.close()
        return found

    path = f"{tmp_path}/jobs.db"
    assert all_of(FileLocks(path), FileLocks(path)) == [True, True, False, True, True, True]
    assert list(tmp_path.iterdir()) == []
    left, right = AdvisoryLocks(postgres_url), AdvisoryLocks(postgres_url)
    assert all_of(left, right) == [True, True, False, True, True, True]


def test_locks_that_got_lost_with_their_connection_are_taken_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was restarted has forgotten all: each takes its own anew, and leaves the others time to do so."""
    now = [1000.0]
    monkeypatch.setattr(_locks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    locks = AdvisoryLocks(postgres_url)
    assert locks.take("c")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        pid = locks._connected().info.backend_pid
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    assert locks.take("c")
    assert locks._connected().info.backend_pid != pid
    assert not locks.take("d")
    now[0] += 30
    assert locks.take("d")
    locks.close()


def test_the_server_is_to_notice_soon_that_a_machine_is_gone(postgres_url: str) -> None:
    """By asking for a sign of life: the session that holds the locks has set how often."""
    locks = AdvisoryLocks(postgres_url)
    locks.take("e")
    asked = "SELECT count(*) FROM pg_settings WHERE name = ANY(%s) AND source = 'session'"
    row: Any = locks._connected().execute(asked, (list(_locks._ALIVE),)).fetchone()
    locks.close()

    assert row == (4,)


async def test_it_works_on_postgresql(postgres_url: str) -> None:
    """With a URL of either scheme; what was cut short goes on when the application opens again."""
    app = Durable(url=postgres_url.replace("postgresql://", "postgres://"), name=f"shop {uuid4()}")
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0)
    async def charge(scope: Scope, cents: int) -> int:
        scope.defer(log.append, "close")
        log.append("open")
        if len(log) < 3:
            await asyncio.sleep(60)
        if len(log) < 5:
            raise ConnectionError
        return cents

    async with app:
        handle = await charge.start(100, key="k")
        await until(lambda: log == ["open"])
    async with app:
        assert await app.handle(handle.id).result() == 100
        assert (await charge.start(100, key="k")).id == handle.id
    assert log == ["open", "close"] * 3
