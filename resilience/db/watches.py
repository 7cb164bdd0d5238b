"""Notice what a transaction would otherwise hide: errors that its code swallowed, and work that was committed on the way.

Django marks a transaction for rollback when an ORM save fails, but not when a raw cursor or a query does. The
block then "commits": PostgreSQL answers the COMMIT with a rollback, MySQL has long rolled back and commits
only what came after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from resilience.db.errors import classify_db_error

__all__ = ["FenceWatch", "StatementWatch", "fence_others", "find_damage", "said_nowait"]

#: Errors after which MySQL and MariaDB have rolled back the whole transaction, savepoints included.
_ROLLED_BACK = frozenset({"1020", "1180", "1213", "1614", "3101"})
_LOCK_WAIT_TIMEOUT = "1205"
#: libpq's transaction states: the transaction has failed, the connection is of no use.
_FAILED_OR_GONE = frozenset({3, 4})
#: Statements with which MySQL and MariaDB commit what came before, whatever transaction is open.
_COMMITTING = ("ALTER", "COMMIT", "CREATE", "DROP", "GRANT", "LOCK", "RENAME", "REVOKE", "TRUNCATE")
_TEMPORARY = ("CREATE TEMPORARY", "DROP TEMPORARY")
#: Statements that store nothing by themselves.
_READS = ("SELECT", "SHOW", "EXPLAIN", "PRAGMA", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET")


class StatementWatch:
    """Remember the last failed statement of a transaction, and mark the transaction when the server ended it.

    An execute wrapper of a connection, for as long as the transaction lasts.
    """

    error: Error | None = None
    #: How many savepoints were open when the watch began.
    depth = 0
    #: Whether the error stood in a savepoint inside the block, which has undone it since.
    is_contained = False
    #: Whether the error stood in a block without a savepoint, which had Django mark the transaction and not say why.
    is_doomed = False
    #: Something was committed for certain: running the function again would do it twice.
    committed = False

    def end(self, connection: BaseDatabaseWrapper) -> None:
        """Watch no more."""
        wrappers: list[Any] = connection.execute_wrappers
        if self in wrappers:
            wrappers.remove(self)

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Run one statement, as Django's execute wrappers do."""
        try:
            result = execute(sql, params, many, context)
        except TransactionManagementError:
            raise  # Django's own word for an error that was noted when it happened
        except Error as exc:
            connection = context["connection"]
            inner = connection.savepoint_ids[self.depth :]
            has_ended = _note_failure(exc, sql, connection)
            self.error = exc
            self.is_contained = not has_ended and any(inner)
            self.is_doomed = bool(inner) and not self.is_contained
            raise
        if context["connection"].vendor == "mysql" and _commits(sql):
            self.committed = True
        return result


class FenceWatch(StatementWatch):
    """Notice as well whether anything was committed, or may have been, while a function managed its own transactions."""

    statements = 0
    #: What the last statement raised; None when it succeeded.
    failed: Error | None = None
    #: It stood outside a transaction and was not a mere read.
    unsure = False
    _block: object = None

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Run one statement, and note whether it committed something by itself."""
        connection = context["connection"]
        self.statements += 1
        alone = not connection.in_atomic_block
        writes = alone and not sql.lstrip(" (\n\t").upper().startswith(_READS)
        if not alone and connection.atomic_blocks and connection.atomic_blocks[0] is not self._block:
            self._block = connection.atomic_blocks[0]
            connection.on_commit(self._mark_committed)
        try:
            result = super().__call__(execute, sql, params, many, context)
        except Error as exc:
            self.failed, self.unsure = exc, writes
            raise
        self.failed, self.unsure = None, False
        self.committed |= writes
        return result

    def may_have_lost_commit(self, using: str) -> bool:
        """Tell whether a connection that was lost may have been so in COMMIT, or in a statement that is one by itself."""
        if self.failed is None or not classify_db_error(self.failed, using).new_connection:
            return True  # the last statement was answered: it was not what met the loss
        return self.unsure

    def _mark_committed(self) -> None:
        self.committed = True


def fence_others(connection: BaseDatabaseWrapper) -> list[tuple[BaseDatabaseWrapper, FenceWatch]]:
    """Watch what is committed on the other databases during an attempt."""
    fences = [(other, FenceWatch()) for other in connections.all() if other is not connection]
    for other, fence in fences:
        other.execute_wrappers.append(fence)
    return fences


def find_damage(connection: BaseDatabaseWrapper, watch: StatementWatch, outermost: bool) -> BaseException | str | None:
    """Tell why COMMIT would not store what the block wrote although no exception left it, or None when all is well.

    Args:
        connection: The connection, still inside its block.
        watch: What watched the block's statements.
        outermost: Whether the block is a transaction and not a savepoint.

    Returns:
        The error that was swallowed, a sentence when it is not known, or None. A rollback that was asked for by
        `transaction.set_rollback(True)` is no damage.
    """
    if connection.needs_rollback:
        marked: BaseException | None = connection.rollback_exc  # type: ignore[attr-defined]  # not in the stubs
        if marked is not None and not (marked is watch.error and watch.is_contained):
            return marked
        if watch.is_doomed:
            return watch.error
    inner: Any = connection.connection
    if connection.closed_in_transaction or inner is None:
        return "the connection was closed inside the transaction"
    broken = ""
    if connection.vendor == "postgresql":
        # psycopg 3 has the library's own connection at hand, which is quicker to ask than its description.
        native = getattr(inner, "pgconn", None) or inner.info
        if native.transaction_status in _FAILED_OR_GONE:
            broken = "a statement had failed"
    elif connection.vendor == "sqlite" and outermost and not inner.in_transaction:
        broken = "the transaction had ended before its block did"
    return (watch.error or broken) if broken else None


def _commits(sql: str) -> bool:
    """Tell whether MySQL and MariaDB end the transaction with this statement."""
    opening = str(sql[:40]).lstrip().upper()
    return opening.startswith(_COMMITTING) and not opening.startswith(_TEMPORARY)


def _note_failure(exc: Error, sql: str, connection: BaseDatabaseWrapper) -> bool:
    """Mark what MySQL and MariaDB do not tell by themselves; True when the server has ended the transaction."""
    if connection.vendor != "mysql":
        return False
    if "NOWAIT" in sql.upper():
        exc._resilience_nowait = True  # type: ignore[attr-defined]  # noqa: SLF001  # MariaDB has one number for both
    if not (connection.in_atomic_block and _ended_transaction(exc, connection)):
        return False
    connection.needs_rollback = True
    connection.rollback_exc = exc  # type: ignore[attr-defined]  # not in the stubs
    return True


def said_nowait(exc: BaseException) -> bool:
    """Tell whether the statement that failed did not want to wait for a lock: its author wants to know at once."""
    return getattr(exc, "_resilience_nowait", False)


def _ended_transaction(exc: Error, connection: BaseDatabaseWrapper) -> bool:
    info = classify_db_error(exc, connection.alias)
    if info.code == _LOCK_WAIT_TIMEOUT:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_rollback_on_timeout")
            return bool(cursor.fetchone()[0])
    return info.new_connection or info.code in _ROLLED_BACK
