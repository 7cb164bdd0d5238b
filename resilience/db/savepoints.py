"""Savepoints of one transaction, and how many of them a transaction bears."""

from __future__ import annotations

from types import TracebackType

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from resilience import signals
from resilience.db.phases import TrackedTransaction

__all__ = ["MAX_SAVEPOINTS", "Savepoint", "SavepointCount"]

#: PostgreSQL keeps 64 subtransactions of a transaction at hand; beyond them every session of the server pays.
MAX_SAVEPOINTS = 50


class SavepointCount:
    """How many savepoints of one transaction live: the open ones, and on PostgreSQL also those released.

    There a released savepoint keeps its number until the transaction ends.
    """

    __slots__ = ("live",)

    def __init__(self) -> None:
        self.live = 0


class Savepoint:
    """One savepoint: its work is undone by itself when an exception leaves the with-block.

    Args:
        connection: The connection of the transaction.
        count: How many savepoints the transaction has.
        sender: Who sends `savepoint_rolled_back`.
    """

    __slots__ = ("_block", "_connection", "_count", "_sender")

    def __init__(self, connection: BaseDatabaseWrapper, count: SavepointCount, sender: object) -> None:
        self._connection = connection
        self._count = count
        self._sender = sender

    def __enter__(self) -> None:
        if self._count.live >= MAX_SAVEPOINTS:
            raise TransactionManagementError(
                f"A transaction must have at most {MAX_SAVEPOINTS} live savepoints, and this would be one more. "
                "Commit in between, use one savepoint for several rows, or safe_bulk_insert."
            )
        self._block = TrackedTransaction(self._connection)
        self._block.__enter__()
        self._count.live += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_kept = False
        try:
            self._block.__exit__(kind, error, trace)
            is_kept = error is None and self._connection.vendor == "postgresql"
        finally:
            if not is_kept:
                self._count.live -= 1
        if error is not None:
            signals.emit(signals.savepoint_rolled_back, self._sender, using=self._connection.alias)
