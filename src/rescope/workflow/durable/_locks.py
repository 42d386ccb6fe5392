"""Which executors live: a lock for each, which the system takes away from a process that dies.

Every process that opens a `Durable` is an executor of its own, under a name that no other ever has, and holds the lock
of that name. Who can take the lock of another has proof that it is dead, and may take its work over. So nobody waits
for a lease to run out, and two processes on one machine never take each other for a restart of themselves.
"""

from __future__ import annotations

import sqlite3
import time
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["AdvisoryLocks", "FileLocks", "Locks"]

_YOUNG: Final = 60.0  # seconds
_CONNECT_WITHIN: Final = 10  # seconds
_PATIENCE: Final = 30.0  # seconds; the others look after their locks every ten
_ALIVE: Final = {
    "tcp_keepalives_idle": 15,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds, where the server waits for an answer to what it has sent
}


class Locks(Protocol):
    """Locks by name. They block for no longer than the database takes to answer."""

    def take(self, name: str) -> bool:
        """Take one; `False` where a process that lives has it. Again for one that is held here: `True`."""
        ...

    def let_go(self, name: str) -> None:
        """Give one back."""
        ...

    def left(self) -> set[str]:
        """Give the names of those that others may have left behind, as far as they can be seen."""
        ...

    def close(self) -> None:
        """Give all back."""
        ...


@final
class FileLocks:
    """A file beside the database for each, locked as SQLite locks a database: portable, and gone with its process.

    The file stays when its process is killed, until another one takes the lock.
    """

    def __init__(self, database: str) -> None:
        self._database = Path(database).absolute()  # the working directory may change
        self._held: dict[str, sqlite3.Connection] = {}

    def _path(self, name: str) -> Path:
        return Path(f"{self._database}-{name}")

    def take(self, name: str) -> bool:
        if name in self._held:
            return True
        connection = sqlite3.connect(self._path(name), timeout=0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            connection.close()
            return False
        self._held[name] = connection
        return True

    def let_go(self, name: str) -> None:
        connection = self._held.pop(name)
        # First the file, then the lock: who opened the file meanwhile gets a lock that nobody asks for.
        self._path(name).unlink(missing_ok=True)
        connection.close()

    def left(self) -> set[str]:
        beside = f"{self._database.name}-"
        found = self._database.parent.glob(f"{escape(beside)}executor-*")
        names = {path.name.removeprefix(beside) for path in found if _is_old(path)}
        return {name for name in names - self._held.keys() if not name.endswith("-journal")}

    def close(self) -> None:
        for name in list(self._held):
            self.let_go(name)


def _is_old(path: Path) -> bool:
    """Whether a file is there long enough for the process that made it to have locked it."""
    try:
        return time.time() - path.stat().st_mtime > _YOUNG
    except FileNotFoundError:
        return False


@final
class AdvisoryLocks:
    """PostgreSQL's advisory locks, on one connection. The server takes them away from a client that is gone.

    The server finds out after half a minute that a machine went down without a word. A connection that got lost takes
    its locks with it: the next `take` connects anew. As others may have lost theirs too, when the server was restarted,
    it leaves them the time to take them again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection[tuple[bool]] | None = None
        self._held: set[str] = set()
        self._lost: set[str] = set()
        self._patient_until = 0.0

    def take(self, name: str) -> bool:
        if name in self._held and self._still_connected():
            return True
        if name not in self._lost and time.monotonic() < self._patient_until:
            return False
        if self._ask("pg_try_advisory_lock(hashtextextended(%s, 0))", f"rescope/durable/{name}"):
            self._held.add(name)
        return name in self._held

    def let_go(self, name: str) -> None:
        self._held.discard(name)
        self._ask("pg_advisory_unlock(hashtextextended(%s, 0))", f"rescope/durable/{name}")

    def left(self) -> set[str]:
        return set()

    def close(self) -> None:
        if self._still_connected():
            self._ask("pg_advisory_unlock_all() IS NULL")  # the server is in no hurry to notice a client that is gone
        self._drop()

    def _still_connected(self) -> bool:
        import psycopg

        try:
            return self._connection is not None and self._ask("true")
        except psycopg.OperationalError:  # the server was restarted, or the network was
            self._lost = self._held.copy()
            self._patient_until = time.monotonic() + _PATIENCE
            self._drop()
            return False

    def _ask(self, what: str, *arguments: str) -> bool:
        row = self._connected().execute(f"SELECT {what}".encode(), arguments).fetchone()
        return row is not None and row[0]

    def _connected(self) -> Connection[tuple[bool]]:
        if self._connection is None:
            from psycopg import connect
            from psycopg.conninfo import make_conninfo

            within = make_conninfo(self._url, connect_timeout=_CONNECT_WITHIN)
            self._connection = connect(within, autocommit=True)
            for name, value in _ALIVE.items():
                self._connection.execute(f"SET {name} = {value}".encode())
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._held.clear()
