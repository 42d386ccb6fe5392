"""The engine: DBOS, opened for one application, and closed again.

One process has one engine. It is started on the event loop that will run the work, which takes it some 50 ms of
blocking; it is stopped in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from dbos import DBOS, DBOSConfig
from sqlalchemy import make_url

from rescope.workflow.durable._locks import AdvisoryLocks, FileLocks

if TYPE_CHECKING:
    from types import ModuleType

    from rescope.workflow.durable._locks import Locks

__all__ = ["application_name", "check_url", "launch", "locked", "sqlite_module", "stop"]

_NEEDED = (3, 42)  # the first SQLite that knows `unixepoch('subsec')`
_WAYS = "sqlite:///jobs.db, sqlite:////var/lib/jobs.db, postgresql://user@host/database"


class _Engine(DBOS):
    """An engine of ours: who makes one where another is open gets that one, which isn't of this type."""


def check_url(url: object) -> str:
    """Give a URL as the engine has it. Raises `TypeError` or `ValueError`, without showing what may hold a password."""
    if not isinstance(url, str):
        msg = f"`url` must be a string, not a {type(url).__qualname__}: as {_WAYS}"
        raise TypeError(msg)
    if re.fullmatch("sqlite:///[^?]+", url) and not url.endswith(":memory:"):
        return url
    if re.match("postgres(ql)?://", url):
        return _check_postgres(re.sub("^postgres://", "postgresql://", url))
    msg = f"`url` must name a file of SQLite, or a PostgreSQL: as {_WAYS}"
    raise ValueError(msg)


def _check_postgres(url: str) -> str:
    """Refuse what can't be read, and what cuts a password in two: the rest would be shown, as an unknown host."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    with suppress(ProgrammingError):  # which may show the password
        parts = conninfo_to_dict(url)
        if "@" not in str(parts.get("host")) and re.fullmatch("[0-9,]*", str(parts.get("port", ""))):
            return url
    msg = "`url` can't be read by libpq: in a user's name or password, write % as %25, @ as %40, : as %3A and / as %2F"
    raise ValueError(msg)


def locked(url: str, executor: str) -> Locks:
    """Give the locks of the executors that share a database; that of this one is taken, and keeps others out."""
    with closing(_locks_for(url)) as others, ExitStack() as undo:
        locks = undo.enter_context(closing(_locks_for(url)))
        if not locks.take(executor) or others.take(executor):
            msg = (
                "the lock that shows others that this process lives can't be taken, or keeps nobody out: put a "
                "database of SQLite on a local disk, and connect to PostgreSQL past a pooler in transaction mode"
            )
            raise RuntimeError(msg)
        undo.pop_all()
    return locks


def _locks_for(url: str) -> Locks:
    if url.startswith("sqlite"):
        return FileLocks(make_url(url).database or "")  # read as the engine reads it
    return AdvisoryLocks(url)


def application_name(name: str) -> str:
    """Give a name as the engine takes it: the name itself where it does, else one that no other name gets."""
    if re.fullmatch("[a-z0-9_-]{3,200}", name):
        return name
    return f"{re.sub('[^a-z0-9_-]', '-', name.lower())[:100]}-{sha256(name.encode()).hexdigest()[:12]}"


def launch(url: str, application: str, executor: str) -> None:
    """Start the engine, on the loop that runs. Raises `RuntimeError` where that can't be; nothing is written then."""
    sqlite = url.startswith("sqlite")
    config: DBOSConfig = {
        "name": application,
        "system_database_url": url,
        # Always the same, so a new release goes on with the work of the last; two applications can't share one.
        "application_version": application,
        "executor_id": executor,
        "log_level": "WARNING",
        "notification_listener_polling_interval_sec": 0.1,
        "use_listen_notify": False,
        # Errors of the database would show what was to be written, and the engine logs them.
        "db_engine_kwargs": {"hide_parameters": True, **({"module": sqlite_module()} if sqlite else {})},
    }
    # With a handler of its own, it prints nothing by itself: its records go where the application sends them.
    logging.getLogger("dbos").addHandler(logging.NullHandler())
    if type(_Engine(config=config)) is not _Engine:
        msg = "a DBOS is open in this process already, and there can be one only: `DBOS.destroy()` it first"
        raise RuntimeError(msg)
    try:
        DBOS.launch()
    except BaseException:
        DBOS.destroy(destroy_registry=True)
        raise


async def stop() -> None:
    """Stop the engine. What it has not written by then is lost: stop the work first."""
    await asyncio.get_running_loop().run_in_executor(own := ThreadPoolExecutor(1), _destroy)
    own.shutdown()
    # It has put its own threads under `asyncio.to_thread`, which would now refuse all work.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))


def _destroy() -> None:
    DBOS.destroy(destroy_registry=True)


def sqlite_module(
    standard: Any = sqlite3, *, version: tuple[int, ...] = sys.version_info[:2], other: str = "pysqlite3"
) -> ModuleType:
    """Give the module for SQLite that the engine can work with: the standard one, or a newer one that is installed.

    Raises `RuntimeError` where there is none. On Python 3.11, the engine makes do with an old one.
    """
    if version < (3, 12) or standard.sqlite_version_info >= _NEEDED:
        return standard  # type: ignore[no-any-return]
    try:
        found = importlib.import_module(other)
    except ImportError:
        found = None
    if found is None or found.sqlite_version_info < _NEEDED:
        msg = (
            f"DBOS needs SQLite 3.42 or newer on Python 3.12 and newer, for `unixepoch('subsec')`, and this one has "
            f"{standard.sqlite_version}: `pip install pysqlite3-binary`, or use PostgreSQL, a newer SQLite, or "
            "Python 3.11"
        )
        raise RuntimeError(msg)
    return found
