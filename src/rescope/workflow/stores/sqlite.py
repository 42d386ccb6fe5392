"""A store in a file, on the standard library's SQLite: shared by all processes of a machine, and nothing to set up.

A thread can't be cancelled, so each call runs to its end in one, in a transaction of its own, and holds the only
connection while it does. That is all there is to cancelling: a call that was begun is done as a whole, and no
transaction is ever left open on the connection.

The version is SQLite's own count of the rows ever inserted (`AUTOINCREMENT`): a put replaces the row by a new one, and
so nothing need be kept of a key that is gone.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final
from weakref import WeakKeyDictionary, finalize

from rescope.workflow.store import (
    Entry,
    Scan,
    StoreClosedError,
    StoreError,
    VersionConflictError,
    check_if_version,
    check_key,
    check_prefix,
    check_ttl,
    decode,
    encode,
    encode_many,
    prefix_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Self

    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

T = TypeVar("T")

_SCHEMA = 1
_CREATE = (
    "CREATE TABLE rescope_schema (version INTEGER NOT NULL)",
    "INSERT INTO rescope_schema VALUES (1)",
    """CREATE TABLE rescope_entries (
        version INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL, expires_at REAL
    )""",
    "CREATE INDEX rescope_expiry ON rescope_entries (expires_at) WHERE expires_at IS NOT NULL",
)
_LIVE = "(expires_at IS NULL OR expires_at > ?)"
_GET = f"SELECT key, value, version, expires_at FROM rescope_entries WHERE key = ? AND {_LIVE}"  # noqa: S608
_PUT = "INSERT OR REPLACE INTO rescope_entries (key, value, expires_at) VALUES (?, ?, ?)"
_DELETE = f"DELETE FROM rescope_entries WHERE key = ? AND {_LIVE} AND ? IN (0, version)"  # noqa: S608
_PAGE = (
    "SELECT key, value, version, expires_at FROM rescope_entries "  # noqa: S608
    f"WHERE key >= ? AND key > ? AND key < ? AND {_LIVE} ORDER BY key LIMIT 500"
)
_PAGE_SIZE = 1_000_000  # characters of values, or a bit more: values may be large
_SWEEP = (
    "DELETE FROM rescope_entries WHERE version IN "
    "(SELECT version FROM rescope_entries WHERE expires_at <= ? LIMIT 1000)"
)
_SWEEP_EVERY = 60.0
_AFTER_ALL_TEXT = b""  # SQLite sorts every blob after every text


@final
class SqliteStore:
    """A store in the SQLite database at `path`, which is created where there is none. `":memory:"` is for tests.

    Let a scope hold it, `store = scope.add(SqliteStore(path))`, or use it as `async with SqliteStore(path) as store:`.
    It opens when it is first used; a relative path begins where the store was made. Any thread and any event loop may
    use it, and many processes the same file: on one machine, as SQLite's write-ahead log does not work over a network.
    The calls of a store take turns. The file may hold tables of your own. Where it is removed or replaced while it is
    open, what is put would be lost, so each call raises `StoreError`.

    What a put has written stays, also when the power fails. With `synchronous="normal"` a put does not wait for the
    disk: nothing is lost when a process dies, but the last puts are when the power fails, and then their versions are
    given again. Time is that of the machine; `clock`, in epoch seconds, is for tests. Where another process writes,
    a call waits, for up to `busy_timeout` seconds; then it raises a `StoreError` that may be retried.

    A call that is cancelled before it has begun does nothing. One that has begun is done as a whole: it is waited for,
    unless `task.cancel()` of asyncio cuts off the waiting.

    Raises `TypeError` or `ValueError` for arguments that can't be; on first use `StoreError` for a file that can't be
    opened, is no database, or is of a newer version of rescope; `StoreClosedError` when it is closed; `StoreError` in
    a process that was forked while it was open, as SQLite can't be taken through a fork.
    """

    __slots__ = (
        "__weakref__",
        "_busy_timeout",
        "_clock",
        "_closed",
        "_connection",
        "_gave_up",
        "_identity",
        "_lock",
        "_path",
        "_patience",
        "_pid",
        "_swept",
        "_synchronous",
        "_where",
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["full", "normal"] = "full",
        busy_timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = _checked(path)
        if not 0 <= busy_timeout <= _LONGEST_WAIT:
            msg = f"`busy_timeout` must be from 0 to {_LONGEST_WAIT} seconds, not {busy_timeout}"
            raise ValueError(msg)
        if synchronous not in ("full", "normal"):
            msg = "`synchronous` must be 'full' or 'normal'"
            raise ValueError(msg)
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._pid: int | None = None  # of the process that opened it
        self._where = self._path if self._path == _IN_MEMORY else str(Path(self._path).absolute())
        self._identity: tuple[int, int] | None = None  # of the file that was opened
        self._swept = -math.inf
        self._gave_up = -math.inf  # when a call last did, of those that waited for other processes
        self._patience = self._busy_timeout  # that of the connection

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not opened" if self._connection is None else "open"
        return f"<SqliteStore {self._path!r} {state}>"

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        check_key(key)

        def work(connection: sqlite3.Connection) -> Entry | None:
            row = connection.execute(_GET, (key, self._clock())).fetchone()
            return None if row is None else _entry(row)

        return await self._run(work)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        """See `Store.put`."""
        check_key(key)
        check_ttl(ttl)
        check_if_version(if_version)
        text = encode(key, value)

        def work(connection: sqlite3.Connection) -> int:
            with self._writing(connection) as now:
                if if_version is not None:
                    row = connection.execute(_GET, (key, now)).fetchone()
                    found = 0 if row is None else row[2]
                    if found != if_version:
                        raise VersionConflictError(key, if_version, found)
                return _put(connection, key, text, None if ttl is None else now + ttl)

        return await self._run(work)

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        """See `BatchStore.put_many`."""
        check_ttl(ttl)
        texts = encode_many(values)

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            with self._writing(connection) as now:
                expires_at = None if ttl is None else now + ttl
                return {key: _put(connection, key, text, expires_at) for key, text in texts.items()}

        return await self._run(work)

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """See `Store.delete`."""
        check_key(key)
        check_if_version(if_version, least=1)

        def work(connection: sqlite3.Connection) -> bool:
            with self._writing(connection) as now:
                return connection.execute(_DELETE, (key, now, if_version or 0)).rowcount > 0

        return await self._run(work)

    def scan(self, prefix: str) -> Scan:
        """See `Store.scan`. Each page is what the store holds at one moment."""
        check_prefix(prefix)
        end = prefix_end(prefix) or _AFTER_ALL_TEXT

        def work(after: str, connection: sqlite3.Connection) -> list[Entry]:
            entries: list[Entry] = []
            size = 0
            with closing(connection.execute(_PAGE, (prefix, after, end, self._clock()))) as rows:
                for row in rows:
                    entries.append(_entry(row))
                    size += len(row[1])
                    if size > _PAGE_SIZE:
                        break
            return entries

        async def page(after: str) -> list[Entry]:
            return await self._run(partial(work, after))

        return Scan(page)

    async def aclose(self) -> None:
        """Close the file, when what is under way is done. Closing twice closes once."""
        from anyio import CancelScope, to_thread

        self._closed = True
        try:
            with CancelScope(shield=True):  # also where nothing seems open: a thread may be at it
                await to_thread.run_sync(self._close, limiter=_limiter(self))
        except BaseException:  # `task.cancel()` of asyncio goes through the shield
            Thread(target=self._close).start()
            raise

    async def __aenter__(self) -> Self:
        try:
            await self._run(_nothing)
        except Exception:
            raise
        except BaseException:  # cut off likewise, while a thread opens it, and who didn't enter doesn't exit
            self._closed = True
            Thread(target=self._close).start()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # In a worker thread

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        from anyio import to_thread

        self._refuse_closed()
        return await to_thread.run_sync(self._alone, work, time.monotonic(), limiter=_limiter(self))

    def _alone(self, work: Callable[[sqlite3.Connection], T], called: float) -> T:
        """Do it with the connection to itself. Who stood in line while one before it gave up does not wait again."""
        if self._forked():  # before the lock: one that was held when the process forked stays so
            raise StoreError(_FORKED.format(self._path))
        with self._lock:
            self._refuse_closed()
            patience = 0.0 if called < self._gave_up else self._busy_timeout
            try:
                if self._connection is None:
                    self._connection = self._opened(patience)
                if self._patience != patience:
                    self._connection.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
                    self._patience = patience
                self._refuse_lost()
                return work(self._connection)
            except sqlite3.Error as exc:
                raise self._told(exc) from exc

    def _refuse_closed(self) -> None:
        if self._closed:
            msg = f"the store at {self._path!r} is closed: use it before its scope closes, or make a new one"
            raise StoreClosedError(msg)

    def _refuse_lost(self) -> None:
        """Refuse to go on where the file was removed: SQLite would write to what nobody finds again."""
        if self._path != _IN_MEMORY and self._identity != _identity(self._where):
            msg = f"the file at {self._path!r} was removed or replaced: make a new store. Nothing was written"
            raise StoreError(msg)

    def _forked(self) -> bool:
        return self._pid not in (None, os.getpid())

    def _close(self) -> None:
        if not self._forked():  # else it is the other process's to close
            with self._lock:
                connection, self._connection = self._connection, None
                _OPEN.pop(id(self), None)
                if connection is not None:
                    connection.close()

    @contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Generator[float]:
        """Have the only write transaction there is, and the time, which is read when the waiting is over."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            now = self._clock()
            if not self._swept <= now < self._swept + _SWEEP_EVERY and connection.execute(_SWEEP, (now,)).rowcount == 0:
                self._swept = now
            yield now
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _told(self, exc: sqlite3.Error) -> StoreError:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the primary one
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if self._patience:
                self._gave_up = time.monotonic()
            waited = f"others have kept it busy for longer than the `busy_timeout` of {self._busy_timeout:g} s"
            return StoreError(f"the store at {self._path!r}: {waited}; nothing was written", may_retry=True)
        return StoreError(f"the store at {self._path!r}: {exc}; nothing was written")

    # Opening

    def _opened(self, patience: float) -> sqlite3.Connection:
        where, pid = os.path.realpath(self._where), os.getpid()
        if self._path != _IN_MEMORY and any(path == where and by != pid for path, by in list(_OPEN.values())):
            raise StoreError(_FORKED.format(self._path))
        connection = sqlite3.connect(self._where, timeout=patience, isolation_level=None, check_same_thread=False)
        self._patience = patience
        try:
            self._prepare(connection)
            self._identity = _identity(where)
        except BaseException:
            connection.close()
            raise
        self._pid = pid
        _OPEN[id(self)] = (where, pid)
        finalize(self, _OPEN.pop, id(self), None).atexit = False  # one that is dropped closes too
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Look first, so that nothing is written to what is not ours to write to."""
        known = self._schema(connection)
        (encoding,) = connection.execute("PRAGMA encoding").fetchone()
        if encoding != "UTF-8":
            msg = f"the database at {self._path!r} is in {encoding}, which sorts keys otherwise: take one in UTF-8"
            raise StoreError(msg)
        self._log_ahead(connection)
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        if not known:
            connection.execute("BEGIN IMMEDIATE")
            if not self._schema(connection):  # nobody else was first
                for statement in _CREATE:
                    connection.execute(statement)
            connection.execute("COMMIT")

    def _schema(self, connection: sqlite3.Connection) -> int:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rescope_schema'").fetchone()
        if not known:
            return 0
        (found,) = connection.execute("SELECT version FROM rescope_schema").fetchone() or (None,)
        if not isinstance(found, int) or found < 1:
            msg = f"the table rescope_schema in {self._path!r} is none that SqliteStore made. Nothing was written"
            raise StoreError(msg)
        if found > _SCHEMA:
            msg = (
                f"the store at {self._path!r} has schema {found}, of a newer rescope; this one knows {_SCHEMA}: "
                "update rescope. Nothing was written"
            )
            raise StoreError(msg)
        return found

    def _log_ahead(self, connection: sqlite3.Connection) -> None:
        """Switch to a write-ahead log. SQLite does not wait by itself where others do so too."""
        until = time.monotonic() + self._patience
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(_TICK)
            else:
                return


_IN_MEMORY = ":memory:"
_LONGEST_WAIT = 3600
_TICK = 0.01
_FORKED = (
    "the store at {!r} was open when this process was forked, which SQLite does not stand: "
    "start processes by 'spawn', or close the store before the fork"
)
_OPEN: dict[int, tuple[str, int]] = {}
"""The files that are open, and in which process: one that was forked finds here what it must not open again."""


def _checked(path: object) -> str:
    text = os.fspath(path)  # type: ignore[call-overload]
    if not isinstance(text, str):
        msg = f"`path` must be a string or a path of strings, not {type(text).__qualname__}"
        raise TypeError(msg)
    if not text or "\0" in text:
        msg = "`path` must be the path of a file, or ':memory:', and hold no null character"
        raise ValueError(msg)
    return text


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 (each call pays for it)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _put(connection: sqlite3.Connection, key: str, text: str, expires_at: float | None) -> int:
    version = connection.execute(_PUT, (key, text, expires_at)).lastrowid
    assert version is not None  # noqa: S101 (it was inserted)
    return version


def _entry(row: tuple[str, str, int, float | None]) -> Entry:
    key, text, version, expires_at = row
    return Entry(key, decode(key, text), version, expires_at)


def _nothing(_: sqlite3.Connection) -> None:
    """To open the file is all."""


_limiters: RunVar[WeakKeyDictionary[SqliteStore, CapacityLimiter]] | None = None
"""Of each event loop, a limiter for each store: who waits for the connection waits in a task, and takes no thread."""


def _limiter(store: SqliteStore) -> CapacityLimiter:
    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

    global _limiters  # noqa: PLW0603 (anyio is imported late)
    _limiters = _limiters or RunVar("rescope_sqlite_limiters")
    try:
        known = _limiters.get()
    except LookupError:
        known = WeakKeyDictionary()
        _limiters.set(known)
    if store not in known:
        known[store] = CapacityLimiter(1)
    return known[store]
