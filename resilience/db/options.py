"""Isolation, read-only and time limits of one transaction, in the words of each database.

| | PostgreSQL | MySQL, MariaDB | SQLite | Oracle |
|---|---|---|---|---|
| isolation | SET TRANSACTION | SET TRANSACTION | always serializable | two levels |
| read_only | SET TRANSACTION | SET TRANSACTION | PRAGMA query_only | SET TRANSACTION |
| lock_timeout | SET LOCAL, milliseconds | innodb_lock_wait_timeout, whole seconds | PRAGMA busy_timeout | no |
| statement_timeout | SET LOCAL, milliseconds | max_statement_time (MySQL: SELECT only) | no | no |
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from django.db import NotSupportedError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from resilience.connections import is_in_atomic
from resilience.db.errors import is_database_error

__all__ = ["ISOLATION_LEVELS", "OptionScope", "TransactionOptions"]

#: The four levels of the SQL standard, weakest first.
ISOLATION_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")

_LEVELS_OF = {
    "postgresql": set(ISOLATION_LEVELS),
    "mysql": set(ISOLATION_LEVELS),
    "sqlite": {"serializable"},
    "oracle": {"read committed", "serializable"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionOptions:
    """What one transaction asks of its database.

    Args:
        isolation: One of `ISOLATION_LEVELS`, or None for the connection's own.
        read_only: Refuse writes.
        lock_timeout: Seconds to wait for a lock, more than 0, or None for the connection's own.
        statement_timeout: Seconds a statement may take, more than 0, or None for the connection's own.

    Raises:
        ValueError: A value is out of range.
    """

    isolation: str | None = None
    read_only: bool = False
    lock_timeout: float | None = None
    statement_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.isolation is not None:
            level = str(self.isolation).lower().replace("_", " ")
            if level not in ISOLATION_LEVELS:
                raise ValueError(
                    f"isolation must be one of {', '.join(ISOLATION_LEVELS)}, not {self.isolation!r}. Use None for the default."
                )
            object.__setattr__(self, "isolation", level)
        for name in ("lock_timeout", "statement_timeout"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be more than 0 seconds, not {value!r}. Use None for the connection's own.")

    def __bool__(self) -> bool:
        return self.isolation is not None or self.read_only or self.lock_timeout is not None or self.statement_timeout is not None


class OptionScope:
    """Apply options to one transaction, and put back what outlives it.

    Args:
        connection: The connection of the transaction.
        options: What to apply.
    """

    __slots__ = ("_connection", "_inner", "_options", "_restore")

    def __init__(self, connection: BaseDatabaseWrapper, options: TransactionOptions) -> None:
        self._connection = connection
        self._options = options
        self._restore: list[str] = []
        self._inner: Any = None

    def prepare(self) -> None:
        """Do what has to be done before the transaction begins.

        Raises:
            NotSupportedError: The database cannot do what is asked.
            TransactionManagementError: A transaction is open already, whose isolation cannot be changed any more.
        """
        connection, options = self._connection, self._options
        vendor = connection.vendor
        if options.isolation and options.isolation not in _LEVELS_OF.get(vendor, set()):
            raise NotSupportedError(
                f"isolation must be one that {connection.display_name} has ({', '.join(sorted(_LEVELS_OF.get(vendor, set())))}), "
                f"not {options.isolation!r}. Leave it out."
            )
        lacking = [
            name
            for name, vendors in (("lock_timeout", {"oracle"}), ("statement_timeout", {"oracle", "sqlite"}))
            if getattr(options, name) is not None and vendor in vendors
        ]
        if lacking:
            raise NotSupportedError(
                f"{lacking[0]} must be None on {connection.display_name}, which cannot limit it for one transaction. Leave it out."
            )
        if (options.isolation or options.read_only) and is_in_atomic(connection):
            raise TransactionManagementError(
                "isolation and read_only must be given to the outermost transaction: one is open already. "
                "Move them there, or set durable=True to notice earlier."
            )
        if vendor == "sqlite" and options.lock_timeout is not None:
            self._exchange("PRAGMA busy_timeout", "PRAGMA busy_timeout = {}", math.ceil(options.lock_timeout * 1000))

    def apply(self) -> None:
        """Do what has to be done as the transaction's first statement."""
        vendor, options = self._connection.vendor, self._options
        if options.isolation or options.read_only:
            self._set_transaction(vendor)
        if vendor == "postgresql":
            for name, seconds in (("lock_timeout", options.lock_timeout), ("statement_timeout", options.statement_timeout)):
                if seconds is not None:
                    self._set_local(name, seconds)
        elif vendor == "mysql":
            self._set_session_limits()

    def restore(self) -> None:
        """Put back what outlives the transaction, unless the connection did not; one that will not have it is closed."""
        statements, self._restore = self._restore[::-1], []
        inner: Any = self._connection.connection
        if not statements or inner is None or inner is not self._inner:
            return
        try:
            # The driver's own cursor: Django's refuses statements in a block that is marked for rollback.
            with contextlib.closing(inner.cursor()) as cursor:
                for statement in statements:
                    cursor.execute(statement)
        except BaseException as exc:
            is_failure = is_database_error(exc)
            if not is_failure or self._connection.vendor != "postgresql":  # PostgreSQL forgets them by itself
                self._connection.close()  # a block around is rolled back by this: nothing goes on with wrong limits
            if not is_failure:
                raise

    def _set_transaction(self, vendor: str) -> None:
        # The block of the manager itself is the innermost; what stands around it can only be a test's.
        if len(self._connection.atomic_blocks) > 1:
            return
        if vendor == "sqlite":
            if self._options.read_only:
                self._exchange("PRAGMA query_only", "PRAGMA query_only = {}", 1)
            return
        modes = [f"ISOLATION LEVEL {self._options.isolation.upper()}"] if self._options.isolation else []
        modes += ["READ ONLY"] if self._options.read_only else []
        statements = [", ".join(modes)] if vendor != "oracle" else modes
        with self._connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(f"SET TRANSACTION {statement}")

    def _set_local(self, name: str, seconds: float) -> None:
        value = f"{math.ceil(seconds * 1000)}ms"
        with self._connection.cursor() as cursor:
            if self._connection.savepoint_ids:
                cursor.execute("SELECT current_setting(%s)", [name])
                self._restore.append(f"SET LOCAL {name} = '{cursor.fetchone()[0]}'")
                self._inner = self._connection.connection
            cursor.execute(f"SET LOCAL {name} = '{value}'")

    def _set_session_limits(self) -> None:
        options = self._options
        if options.lock_timeout is not None:
            variable = "innodb_lock_wait_timeout"
            self._exchange(f"SELECT @@{variable}", f"SET SESSION {variable} = {{}}", math.ceil(options.lock_timeout))
        if options.statement_timeout is not None:
            is_mariadb = self._connection.mysql_is_mariadb  # type: ignore[attr-defined]  # MySQL's wrapper only
            variable = "max_statement_time" if is_mariadb else "max_execution_time"
            seconds = options.statement_timeout
            self._exchange(
                f"SELECT @@{variable}",
                f"SET SESSION {variable} = {{}}",
                seconds if is_mariadb else math.ceil(seconds * 1000),
            )

    def _exchange(self, read: str, write: str, value: float) -> None:
        """Set a session variable and remember how to put its old value back."""
        with self._connection.cursor() as cursor:
            self._inner = self._connection.connection
            cursor.execute(read)
            self._restore.append(write.format(cursor.fetchone()[0]))
            cursor.execute(write.format(value))
