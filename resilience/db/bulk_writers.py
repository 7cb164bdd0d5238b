"""How rows get into a table: one INSERT statement, or Django's own way where a model needs it.

A writer writes all of the rows it is given or raises. `needs_savepoint` says whether a failed write leaves the
transaction unusable. PostgreSQL has a faster one in `bulk_postgresql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from django.db import models

from resilience.db.bulk_columns import Columns
from resilience.db.bulk_rows import Row, is_default

__all__ = ["ModelWriter", "StatementWriter", "Writer", "has_expressions"]


#: What a statement needs at most: in UTF-8, and for a number or a time with its comma and quotes.
_BYTES_A_LETTER, _BYTES_A_VALUE = 4, 36
#: Every MySQL and MariaDB takes a statement of this many bytes; for larger ones it is asked.
_SMALL_STATEMENT = 1 << 20


class Writer(Protocol):
    """What `resilience.db.bulk` asks of a way into the table."""

    needs_savepoint: bool
    #: Whether the rows' keys belong to them; else at most one of a batch is known, by which a lost COMMIT is settled.
    returns_keys: bool

    def most_rows(self, rows: Sequence[Row]) -> int:
        """Return how many of the rows fit into one write, 1 or more."""

    def write(self, rows: Sequence[Row]) -> None:
        """Store all rows, or raise and store none."""


class StatementWriter:
    """One INSERT of many rows; MySQL, MariaDB and SQLite undo a statement that fails and keep the transaction.

    Args:
        columns: The model's columns.
        returns_keys: Whether the primary keys that the database gives are wanted.
    """

    needs_savepoint = False

    def __init__(self, columns: Columns, *, returns_keys: bool) -> None:
        self.columns = columns
        self.connection = columns.connection
        self.returns_keys = (
            returns_keys and columns.auto is not None and bool(self.connection.features.can_return_rows_from_bulk_insert)
        )
        self._packet: int | None = None

    def most_rows(self, rows: Sequence[Row]) -> int:
        """Return how many of the rows fit into one statement."""
        width = len(self.columns.fields)
        limit: int | None = self.connection.features.max_query_params
        if limit:
            return max(1, limit // width)
        sizes = [_BYTES_A_VALUE * width + _BYTES_A_LETTER * _letters(row.values) for row in rows]
        if sum(sizes) < _SMALL_STATEMENT:
            return max(1, len(rows))
        if self._packet is None:
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT @@max_allowed_packet")
                self._packet = int(cursor.fetchone()[0])
        return max(1, self._packet // max(sizes))

    def write(self, rows: Sequence[Row]) -> None:
        """Store all rows, or raise and store none."""
        places = [place for place, _ in enumerate(self.columns.fields) if not all(is_default(row.values[place]) for row in rows)]
        quote = self.connection.ops.quote_name
        names = ", ".join(quote(self.columns.fields[place].column) for place in places)
        group = f"({', '.join(['%s'] * len(places))})"
        table = quote(self.columns.model._meta.db_table)
        statement = f"INSERT INTO {table} ({names}) VALUES {', '.join([group] * len(rows))}"  # noqa: S608  # quoted names
        if len(places) == len(self.columns.fields):
            values = [value for row in rows for value in row.values]
        else:
            values = [row.values[place] for row in rows for place in places]
        auto = self.columns.auto
        if self.returns_keys and auto is not None:
            statement += f" RETURNING {quote(auto.column)}"
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)
            if self.returns_keys:
                for row, (key,) in zip(rows, cursor.fetchall(), strict=True):
                    row.key = key
            elif self.connection.vendor == "mysql" and auto is not None and rows[0].instance.pk is None:
                rows[0].key = cursor.cursor.lastrowid  # MySQL gives the first of the keys that it drew


class ModelWriter:
    """Django's own INSERT: `bulk_create`, or `save()` for a model of several tables.

    Args:
        columns: The model's columns.
        alias: The database alias.
        options: Arguments for `bulk_create`, as for an upsert.
    """

    needs_savepoint = True
    returns_keys = True

    def __init__(self, columns: Columns, alias: str, options: dict[str, Any] | None = None) -> None:
        self.columns = columns
        self.alias = alias
        self.options = options or {}
        self.has_parents = bool(columns.model._meta.parents) and not columns.model._meta.proxy

    def most_rows(self, rows: Sequence[Row]) -> int:
        """Return how many rows fit into one write: Django cuts them by itself."""
        return max(1, len(rows))

    def write(self, rows: Sequence[Row]) -> None:
        """Store all rows, or raise and leave the instances as they were."""
        instances = [row.instance for row in rows]
        before = [(dict(instance.__dict__), instance._state.adding, instance._state.db) for instance in instances]
        try:
            if self.has_parents:
                for instance in instances:
                    instance.save(force_insert=(models.Model,), using=self.alias)
            else:
                self.columns.model._base_manager.using(self.alias).bulk_create(instances, **self.options)
        except BaseException:
            restore(instances, before)
            raise
        for row in rows:
            row.key = row.instance.pk
            row.returned = dict(row.instance.__dict__)
        restore(instances, before)


def _letters(values: Sequence[Any]) -> int:
    return sum([len(value) for value in values if isinstance(value, (str, bytes))])


def restore(instances: Sequence[models.Model], before: Sequence[tuple[dict[str, Any], bool, str | None]]) -> None:
    """Put instances back into the state they had."""
    for instance, (attributes, adding, alias) in zip(instances, before, strict=True):
        instance.__dict__.clear()
        instance.__dict__.update(attributes)
        instance._state.adding, instance._state.db = adding, alias


def has_expressions(rows: Sequence[Row]) -> bool:
    """Tell whether a value has to be compiled by Django: an expression, or a DEFAULT beside real values."""
    for column in zip(*(row.values for row in rows), strict=True):
        if any(hasattr(kind, "resolve_expression") for kind in set(map(type, column))) and not all(map(is_default, column)):
            return True
    return False
