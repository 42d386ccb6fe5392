"""Resources that several processes share, on one small store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rescope.workflow.lease import Lease, LeaseHeldError, LeaseLostError, lease
from rescope.workflow.store import BatchStore, Entry, Store, StoreClosedError, StoreError, VersionConflictError
from rescope.workflow.stores.memory import MemoryStore
from rescope.workflow.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from rescope.workflow.stores.opening import open_store
    from rescope.workflow.stores.postgres import PostgresStore
    from rescope.workflow.stores.redis import RedisStore

__all__ = [
    "BatchStore",
    "Entry",
    "Lease",
    "LeaseHeldError",
    "LeaseLostError",
    "MemoryStore",
    "PostgresStore",
    "RedisStore",
    "SqliteStore",
    "Store",
    "StoreClosedError",
    "StoreError",
    "VersionConflictError",
    "lease",
    "open_store",
]

_LATE = {
    "PostgresStore": "rescope.workflow.stores.postgres",
    "RedisStore": "rescope.workflow.stores.redis",
    "open_store": "rescope.workflow.stores.opening",
    "Acquire": "rescope.workflow.machine",
    "Release": "rescope.workflow.machine",
    "EventResource": "rescope.workflow.machine",
    "MachineMemory": "rescope.workflow.machine",
    "StoreMemory": "rescope.workflow.machine",
    "TransactionViolation": "rescope.workflow.machine",
    "ExecutionViolation": "rescope.workflow.machine",
    "ProcessedLog": "rescope.workflow.processed",
    "JobLog": "rescope.workflow.jobs",
    "checkpoint": "rescope.workflow.checkpoints",
    "get_or_create": "rescope.workflow.shared",
    "RetryLedger": "rescope.workflow.retries",
    "validated": "rescope.workflow.validation",
}
"""What needs an extra is imported when it is asked for."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
