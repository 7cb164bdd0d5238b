"""Transactions that a silent worker cannot leave locked behind.

A process that is frozen, or whose host is gone, between a statement and its COMMIT keeps its locks for as long as the
server waits for it: by default for hours or for ever, and whoever sweeps, pauses or takes over the run waits as
well. So the server is told to give up on a transaction whose holder says nothing for as long as its lease lasts.

Source:
    PostgreSQL, `idle_in_transaction_session_timeout`; MySQL and MariaDB, `wait_timeout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import DatabaseError, InterfaceError, InternalError, OperationalError, connections, transaction
from django.db.models import Func, QuerySet

from resilience.runs.models import Run

__all__ = ["row_of", "short_transaction", "unless_locked"]

#: Shortest silence, in seconds, that ends a transaction: MySQL counts in whole ones.
_SHORTEST = 1.0
#: Longest, so that the number fits where servers keep it.
_LONGEST = 86_400.0
#: PostgreSQL's code for a session that it ended because of the limit.
_TIMED_OUT = "25P03"


@contextmanager
def short_transaction(using: str, seconds: float) -> Iterator[None]:
    """Open a transaction that the server rolls back, with the connection, when nothing is heard for `seconds`.

    Inside a transaction that is open already it adds nothing. SQLite knows no such limit: a frozen writer
    holds up all others until it thaws or dies.

    Args:
        using: The database alias.
        seconds: The longest silence between two statements; it counts as at least one second.

    Raises:
        OperationalError: The limit was over, on every database.
    """
    connection = connections[using]
    limit = min(max(seconds, _SHORTEST), _LONGEST)
    if connection.in_atomic_block or connection.vendor not in {"postgresql", "mysql"}:
        limit = 0.0
    is_mysql = bool(limit) and connection.vendor == "mysql"
    if is_mysql:
        _execute(connection, "SET @resilience_wait = @@wait_timeout, SESSION wait_timeout = %s", math.ceil(limit))
    try:
        with transaction.atomic(using=using):
            if limit and not is_mysql:
                _execute(
                    connection, "SELECT set_config('idle_in_transaction_session_timeout', %s, true)", str(round(limit * 1000))
                )
            yield
    except InternalError as error:
        if getattr(error.__cause__, "sqlstate", "") != _TIMED_OUT:
            raise
        # As MySQL and MariaDB tell it: the connection is lost.
        raise OperationalError(*error.args) from error
    finally:
        if is_mysql and connection.connection is not None:
            # A connection that is broken will not be used again, whatever it remembers.
            with suppress(DatabaseError, InterfaceError):
                _execute(connection, "SET SESSION wait_timeout = @resilience_wait")


class _Unindexed(Func):
    """A column as it is, in a form that MySQL and MariaDB look up in no index."""

    arity = 1
    template = "%(expressions)s"

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="COALESCE(%(expressions)s)", **extra)


def row_of(run_id: Any, using: str, **conditions: Any) -> QuerySet[Run]:
    """Return one run, found by its primary key alone, if it meets conditions.

    MySQL and MariaDB would else find it by an index on its status when few runs have that: they lock what
    they read on the way, and workers of different runs would wait for each other.

    Args:
        run_id: The run's primary key.
        using: The database alias.
        conditions: Lookups, as in `filter`.

    Example:
        >>> row_of(7, "default", status="running", lease_expires_at=None).exists()
        False
    """
    names = {name.partition("__")[0] for name in conditions}
    rows = Run.objects.using(using).filter(pk=run_id).order_by()
    rows = rows.alias(**{f"its_{name}": _Unindexed(name) for name in names})
    return rows.filter(**{f"its_{name}": value for name, value in conditions.items()})


def unless_locked(run: Run, using: str, change: Callable[[Run, str], bool]) -> bool:
    """Change a run if nobody is in the middle of changing it; False, at once, when somebody is.

    On databases without SKIP LOCKED it waits like everything else.

    Args:
        run: The run.
        using: The database alias.
        change: Called with both; tells whether it changed the run.
    """
    features = connections[using].features
    if not features.has_select_for_update_skip_locked:
        return change(run, using)
    with short_transaction(using, run.lease_seconds):
        free = row_of(run.pk, using).select_for_update(skip_locked=True, no_key=features.has_select_for_no_key_update)
        return bool(free.values_list("pk", flat=True)) and change(run, using)


def _execute(connection: Any, sql: str, value: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, None if value is None else [value])
