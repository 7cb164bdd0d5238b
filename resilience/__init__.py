"""Resilience for Django and Celery: calls, circuits, transactions and runs that survive the worst night.

Every public name of the app is importable from here; each is loaded when it is first used, so that importing
this package needs no settings and has no side effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazy import lazy_names

if TYPE_CHECKING:
    from resilience.calls.batches import BatchResult, batch_with_retry
    from resilience.calls.budgets import RetryBudget
    from resilience.calls.bulkheads import Bulkhead
    from resilience.calls.classify import ErrorInfo, ErrorKind, classify, register_classifier
    from resilience.calls.fallbacks import fallback, safe_execute
    from resilience.calls.retries import RetryConfig, RetryContext, RetryStrategy, async_retry, retry
    from resilience.calls.timeouts import TimeoutConfig, async_timeout, remaining, timeout
    from resilience.celery import ResumableTask, resumable_task
    from resilience.circuits.breaker import CircuitBreaker
    from resilience.circuits.config import CircuitBreakerConfig, CircuitState
    from resilience.circuits.decorators import async_circuit_breaker, circuit_breaker
    from resilience.circuits.registry import get_all_circuit_breaker_stats, get_circuit_breaker, get_circuit_breaker_stats
    from resilience.db.bulk import BulkInsertResult, safe_bulk_insert
    from resilience.db.errors import DatabaseErrorInfo, classify_db_error, register_db_classifier
    from resilience.db.retries import adb_retry, db_retry
    from resilience.db.transactions import TransactionManager, ensure_connection, with_savepoint
    from resilience.db.updates import VersionField, aatomic_update, atomic_update
    from resilience.exceptions import (
        BulkheadFullError,
        CheckpointError,
        CircuitOpenError,
        CommitOutcomeUnknownError,
        ConcurrentUpdateError,
        OpenTransactionError,
        OperationTimeoutError,
        PermanentError,
        ResilienceError,
        RunBusyError,
        RunConfigChangedError,
        RunInterrupted,
        RunStateError,
        TransactionBrokenError,
        TransientError,
    )
    from resilience.policies import ErrorRecoveryManager, Policy, ResilientProvider, resilient
    from resilience.runs.models import Checkpoint, Run
    from resilience.runs.runs import load_checkpoint, open_run, save_checkpoint

__version__ = "1.0.0"

__all__ = [
    "BatchResult",
    "BulkInsertResult",
    "Bulkhead",
    "BulkheadFullError",
    "Checkpoint",
    "CheckpointError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "CircuitState",
    "CommitOutcomeUnknownError",
    "ConcurrentUpdateError",
    "DatabaseErrorInfo",
    "ErrorInfo",
    "ErrorKind",
    "ErrorRecoveryManager",
    "OpenTransactionError",
    "OperationTimeoutError",
    "PermanentError",
    "Policy",
    "ResilienceError",
    "ResilientProvider",
    "ResumableTask",
    "RetryBudget",
    "RetryConfig",
    "RetryContext",
    "RetryStrategy",
    "Run",
    "RunBusyError",
    "RunConfigChangedError",
    "RunInterrupted",
    "RunStateError",
    "TimeoutConfig",
    "TransactionBrokenError",
    "TransactionManager",
    "TransientError",
    "VersionField",
    "aatomic_update",
    "adb_retry",
    "async_circuit_breaker",
    "async_retry",
    "async_timeout",
    "atomic_update",
    "batch_with_retry",
    "circuit_breaker",
    "classify",
    "classify_db_error",
    "db_retry",
    "ensure_connection",
    "fallback",
    "get_all_circuit_breaker_stats",
    "get_circuit_breaker",
    "get_circuit_breaker_stats",
    "load_checkpoint",
    "open_run",
    "register_classifier",
    "register_db_classifier",
    "remaining",
    "resilient",
    "resumable_task",
    "retry",
    "safe_bulk_insert",
    "safe_execute",
    "save_checkpoint",
    "timeout",
    "with_savepoint",
]

_NAMES = {
    "resilience.calls.batches": ("BatchResult", "batch_with_retry"),
    "resilience.calls.budgets": ("RetryBudget",),
    "resilience.calls.bulkheads": ("Bulkhead",),
    "resilience.calls.classify": ("ErrorInfo", "ErrorKind", "classify", "register_classifier"),
    "resilience.calls.fallbacks": ("fallback", "safe_execute"),
    "resilience.calls.retries": ("RetryConfig", "RetryContext", "RetryStrategy", "async_retry", "retry"),
    "resilience.calls.timeouts": ("TimeoutConfig", "async_timeout", "remaining", "timeout"),
    "resilience.celery": ("ResumableTask", "resumable_task"),
    "resilience.circuits.breaker": ("CircuitBreaker",),
    "resilience.circuits.config": ("CircuitBreakerConfig", "CircuitState"),
    "resilience.circuits.decorators": ("async_circuit_breaker", "circuit_breaker"),
    "resilience.circuits.registry": ("get_all_circuit_breaker_stats", "get_circuit_breaker", "get_circuit_breaker_stats"),
    "resilience.db.bulk": ("BulkInsertResult", "safe_bulk_insert"),
    "resilience.db.errors": ("DatabaseErrorInfo", "classify_db_error", "register_db_classifier"),
    "resilience.db.retries": ("adb_retry", "db_retry"),
    "resilience.db.transactions": ("TransactionManager", "ensure_connection", "with_savepoint"),
    "resilience.db.updates": ("VersionField", "aatomic_update", "atomic_update"),
    "resilience.exceptions": (
        "BulkheadFullError",
        "CheckpointError",
        "CircuitOpenError",
        "CommitOutcomeUnknownError",
        "ConcurrentUpdateError",
        "OpenTransactionError",
        "OperationTimeoutError",
        "PermanentError",
        "ResilienceError",
        "RunBusyError",
        "RunConfigChangedError",
        "RunInterrupted",
        "RunStateError",
        "TransactionBrokenError",
        "TransientError",
    ),
    "resilience.policies": ("ErrorRecoveryManager", "Policy", "ResilientProvider", "resilient"),
    "resilience.runs.models": ("Checkpoint", "Run"),
    "resilience.runs.runs": ("load_checkpoint", "open_run", "save_checkpoint"),
}

__getattr__ = lazy_names(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
