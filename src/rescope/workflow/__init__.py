"""Resources that several processes share, on one small store."""

from __future__ import annotations

from rescope.workflow.checkpoints import Checkpoint, CheckpointConflictError, CheckpointReport, checkpoint
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
from rescope.workflow.journal import (
    CleanupTakenError,
    JournaledScope,
    PendingCleanup,
    RecoveryReport,
    cleanup,
    pending,
    recover,
)
from rescope.workflow.lease import Lease, LeaseHeldError, LeaseLostError, lease
from rescope.workflow.machine import (
    EventResource,
    ExecutionViolation,
    LockStatus,
    MachineMemory,
    ReleaseStatus,
    StoreMemory,
    Transaction,
    TransactionViolation,
    UnfitStateError,
    check_subject,
)
from rescope.workflow.processed import ProcessedEntry, ProcessedLog, ProcessedStats
from rescope.workflow.retries import Backoff, RetryEntry, RetryFailure, RetryLedger
from rescope.workflow.shared import get_or_create
from rescope.workflow.store import (
    BatchStore,
    Entry,
    Store,
    StoreClosedError,
    StoreError,
    UnreadableValueError,
    VersionConflictError,
)
from rescope.workflow.stores.memory import MemoryStore
from rescope.workflow.stores.opening import open_store
from rescope.workflow.stores.postgres import PostgresStore
from rescope.workflow.stores.redis import RedisStore
from rescope.workflow.stores.sqlite import SqliteStore
from rescope.workflow.validation import InvalidConnectionError, validated

__all__ = [
    "Backoff",
    "BatchStore",
    "Checkpoint",
    "CheckpointConflictError",
    "CheckpointReport",
    "CleanupTakenError",
    "Entry",
    "EventResource",
    "ExecutionViolation",
    "InvalidConnectionError",
    "Job",
    "JobExistsError",
    "JobFailure",
    "JobFinishedError",
    "JobLog",
    "JobNotFoundError",
    "JobRun",
    "JobStage",
    "JobStatus",
    "JournaledScope",
    "Lease",
    "LeaseHeldError",
    "LeaseLostError",
    "LockStatus",
    "MachineMemory",
    "MemoryStore",
    "PendingCleanup",
    "PostgresStore",
    "ProcessedEntry",
    "ProcessedLog",
    "ProcessedStats",
    "RecoveryReport",
    "RedisStore",
    "ReleaseStatus",
    "RetryEntry",
    "RetryFailure",
    "RetryLedger",
    "SqliteStore",
    "Store",
    "StoreClosedError",
    "StoreError",
    "StoreMemory",
    "Transaction",
    "TransactionViolation",
    "UnfitStateError",
    "UnreadableValueError",
    "VersionConflictError",
    "check_subject",
    "checkpoint",
    "cleanup",
    "get_or_create",
    "lease",
    "open_store",
    "pending",
    "recover",
    "validated",
]
