"""PostgreSQL's fast way in: COPY, with primary keys drawn from the sequence beforehand where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resilience.db.bulk_columns import Columns
from resilience.db.bulk_rows import Row, is_default

__all__ = ["CopyWriter", "can_copy"]


def can_copy(connection: Any) -> bool:
    """Tell whether the connection's driver can COPY from Python values; psycopg 3 can."""
    if connection.vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


class CopyWriter:
    """COPY straight into the table. One statement, however many rows; an error names the line.

    Args:
        columns: The model's columns.
        returns_keys: Whether the primary keys that the database gives are wanted.
    """

    needs_savepoint = True

    def __init__(self, columns: Columns, *, returns_keys: bool) -> None:
        self.columns = columns
        self.connection = columns.connection
        self.auto_place = columns.fields.index(columns.auto) if columns.auto is not None else None
        self.returns_keys = returns_keys
        self._sequence: str | None = None

    def most_rows(self, rows: Sequence[Row]) -> int:
        """Return how many rows fit into one write: a COPY has no end."""
        return max(1, len(rows))

    def write(self, rows: Sequence[Row]) -> None:
        """Store all rows, or raise and store none."""
        with self.connection.cursor() as cursor:
            self._number(cursor, rows)
            places = [
                place for place, _ in enumerate(self.columns.fields) if not all(is_default(row.values[place]) for row in rows)
            ]
            if not self.returns_keys and self.auto_place is not None and all(row.key is None for row in rows):
                places.remove(self.auto_place)
            quote = self.connection.ops.quote_name
            names = ", ".join(quote(self.columns.fields[place].column) for place in places)
            statement = f"COPY {quote(self.columns.model._meta.db_table)} ({names}) FROM STDIN"
            # The wrappers of `connection.execute_wrapper` see the statement as they see any other.
            cursor._execute_with_wrappers(statement, None, False, _Copying(cursor, rows, places, self.auto_place))  # noqa: SLF001  # no public name

    def _number(self, cursor: Any, rows: Sequence[Row]) -> None:
        """Draw keys from the sequence for rows without one; all rows of a COPY have the same columns."""
        place = self.auto_place
        if place is None:
            return
        for row in rows:
            row.key = row.values[place]
        missing = [row for row in rows if row.key is None]
        if not missing or (len(missing) == len(rows) and not self.returns_keys):
            return
        if self._sequence is None:
            table = self.connection.ops.quote_name(self.columns.model._meta.db_table)
            cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [table, self.columns.fields[place].column])
            self._sequence = cursor.fetchone()[0]
        cursor.execute("SELECT nextval(%s::regclass) FROM generate_series(1, %s)", [self._sequence, len(missing)])
        for row, (key,) in zip(missing, cursor.fetchall(), strict=True):
            row.key = key


class _Copying:
    """The COPY itself, in the form that Django's execute wrappers call."""

    def __init__(self, cursor: Any, rows: Sequence[Row], places: list[int], auto_place: int | None) -> None:
        self.cursor = cursor
        self.rows = rows
        self.places = places
        self.auto_place = auto_place

    def __call__(self, statement: str, params: object, many: bool, context: object) -> None:
        places, auto = self.places, self.auto_place
        with self.cursor.db.wrap_database_errors, self.cursor.cursor.copy(statement) as copy:
            for row in self.rows:
                if auto is not None:
                    values = [row.key if place == auto else row.values[place] for place in places]
                else:
                    values = [row.values[place] for place in places]
                copy.write_row(values)
