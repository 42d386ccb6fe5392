"""Async resource scopes: everything you open gets closed, and every failure is told."""

from rescope._resource import Resource, create_resource
from rescope._result import Err, Ok, Result, is_err, is_ok
from rescope._scope import Scope
from rescope._with_scope import scoped, with_scope
from rescope.exceptions import (
    CloseCancelledError,
    CloseFailure,
    CloseRejectedError,
    CloseTimeoutError,
    HostDiedError,
    ResourceCleanupError,
    ScopeClosedError,
    UnwrapError,
    WrongTaskError,
    cleanup_errors,
    is_resource_cleanup_error,
)

__all__ = [
    "CloseCancelledError",
    "CloseFailure",
    "CloseRejectedError",
    "CloseTimeoutError",
    "Err",
    "HostDiedError",
    "Ok",
    "Resource",
    "ResourceCleanupError",
    "Result",
    "Scope",
    "ScopeClosedError",
    "UnwrapError",
    "WrongTaskError",
    "cleanup_errors",
    "create_resource",
    "is_err",
    "is_ok",
    "is_resource_cleanup_error",
    "scoped",
    "with_scope",
]
