"""The db pillar: transactions, retries, optimistic updates and bulk inserts.

Its names are loaded when they are first used, because models need the app registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazy import lazy_names

if TYPE_CHECKING:
    from resilience.db.bulk import BadRow, BulkInsertResult, RowFault, safe_bulk_insert
    from resilience.db.errors import DatabaseErrorInfo, classify_db_error, register_db_classifier
    from resilience.db.retries import adb_retry, db_retry
    from resilience.db.transactions import TransactionManager, ensure_connection, with_savepoint
    from resilience.db.updates import VersionField, aatomic_update, atomic_update

__all__ = [
    "BadRow",
    "BulkInsertResult",
    "DatabaseErrorInfo",
    "RowFault",
    "TransactionManager",
    "VersionField",
    "aatomic_update",
    "adb_retry",
    "atomic_update",
    "classify_db_error",
    "db_retry",
    "ensure_connection",
    "register_db_classifier",
    "safe_bulk_insert",
    "with_savepoint",
]

_NAMES = {
    "resilience.db.bulk": ("BadRow", "BulkInsertResult", "RowFault", "safe_bulk_insert"),
    "resilience.db.errors": ("DatabaseErrorInfo", "classify_db_error", "register_db_classifier"),
    "resilience.db.retries": ("adb_retry", "db_retry"),
    "resilience.db.transactions": ("TransactionManager", "ensure_connection", "with_savepoint"),
    "resilience.db.updates": ("VersionField", "aatomic_update", "atomic_update"),
}

__getattr__ = lazy_names(__name__, _NAMES)
