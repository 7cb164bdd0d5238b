"""What commands say where the app's tables are not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router

from resilience.runs.models import Run

__all__ = ["tables_expected"]


@contextmanager
def tables_expected(using: str | None = None) -> Iterator[None]:
    """Turn a failed statement into advice if the table of runs is missing.

    Args:
        using: Alias of the database that is asked; the router decides by default.

    Raises:
        CommandError: The database answers and has no such table.

    Example:
        >>> with tables_expected():
        ...     pass
    """
    try:
        yield
    except DatabaseError as error:
        alias = using or router.db_for_write(Run)
        if _is_missing(alias):
            option = "" if alias == DEFAULT_DB_ALIAS else f" --database {alias}"
            message = f"The database {alias!r} has no tables of runs. Run manage.py migrate{option}."
            raise CommandError(message) from error
        raise


def _is_missing(alias: str) -> bool:
    with suppress(DatabaseError), connections[alias].cursor() as cursor:
        return Run._meta.db_table not in connections[alias].introspection.table_names(cursor)
    return False
