"""What a database said about a failed INSERT: whose fault it is, which rule was broken, and in which row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from django.db import DataError, Error, IntegrityError, InterfaceError, ProgrammingError, models

from resilience.db.bulk_columns import Columns
from resilience.db.bulk_rows import Row, RowFault
from resilience.db.errors import classify_db_error

__all__ = ["broken_rule", "is_copy_refused", "is_row_error", "position"]

_FAULT_OF_STATE = {
    "21000": RowFault.UNIQUE,
    "22001": RowFault.TOO_LONG,
    "22003": RowFault.OUT_OF_RANGE,
    "23502": RowFault.NOT_NULL,
    "23503": RowFault.FOREIGN_KEY,
    "23505": RowFault.UNIQUE,
    "23514": RowFault.CHECK,
    # What a trigger, a view's condition or a row-level policy says about one row.
    "P0001": RowFault.CHECK,
    "44000": RowFault.CHECK,
    "42501": RowFault.CHECK,
    "23P01": RowFault.EXCLUSION,
}
_FAULT_OF_NUMBER = {
    1048: RowFault.NOT_NULL,
    1062: RowFault.UNIQUE,
    1264: RowFault.OUT_OF_RANGE,
    1292: RowFault.INVALID,
    1364: RowFault.NOT_NULL,
    1366: RowFault.INVALID,
    1406: RowFault.TOO_LONG,
    1452: RowFault.FOREIGN_KEY,
    1586: RowFault.UNIQUE,
    # What a trigger says by SIGNAL.
    1644: RowFault.CHECK,
    3819: RowFault.CHECK,
    4025: RowFault.CHECK,
}
_FAULT_OF_SQLITE = {
    275: RowFault.CHECK,
    787: RowFault.FOREIGN_KEY,
    1299: RowFault.NOT_NULL,
    1555: RowFault.UNIQUE,
    1811: RowFault.CHECK,
    2067: RowFault.UNIQUE,
    2579: RowFault.UNIQUE,
}
_ROW_STATES = frozenset({"21000", "44000", "P0001"})
_NO_PRIVILEGE = "42501"
#: Where PostgreSQL reports that a row breaks a policy; elsewhere the same code says that the table is forbidden.
_POLICY_SOURCE = "ExecWithCheckOptions"
_COPY_REFUSED = frozenset({"0A000", "42809"})
#: MySQL names what it means in a few forms: for key 'x', CONSTRAINT `x`, Column 'x', Check constraint 'x'.
_MYSQL_NAME = re.compile(r"for key '(?:[^']*\.)?([^'.]+)'|CONSTRAINT `([^`]+)`|(?:[Cc]olumn|constraint) '([^']+)'")
_MYSQL_ROW = re.compile(r"at row (\d+)$")
#: The version of MariaDB that knows the row of a failed INSERT.
_COUNTS_ROWS = (10, 7)
_COPY_LINE = re.compile(r"^COPY .*?, \D+ (\d+)", re.MULTILINE)


def is_row_error(error: Exception) -> bool:
    """Tell whether an error condemns a row, and neither the statement nor the connection."""
    if isinstance(error, (IntegrityError, DataError, OverflowError, TypeError, ValueError)):
        return True
    if isinstance(error, (ProgrammingError, InterfaceError)):
        info = classify_db_error(error)
        if not info.code and not info.new_connection:  # the driver did not know how to send a value
            return True
    state = getattr(error.__cause__, "sqlstate", None)
    if state == _NO_PRIVILEGE:  # of the table, or by a policy for this row
        return getattr(error.__cause__.diag, "source_function", None) == _POLICY_SOURCE  # type: ignore[union-attr]  # it has a state
    number = error.args[0] if isinstance(error, Error) and error.args else None
    return state in _ROW_STATES or (isinstance(number, int) and number in _FAULT_OF_NUMBER)


def is_copy_refused(error: Exception) -> bool:
    """Tell whether PostgreSQL takes INSERT but not COPY: a table with row-level security, a view."""
    return getattr(error.__cause__, "sqlstate", None) in _COPY_REFUSED


def broken_rule(error: Exception, model: type[models.Model]) -> tuple[RowFault, str | None]:
    """Return the sort of rule that a row broke and the rule's name, from the driver's codes."""
    cause: Any = error.__cause__
    if diag := getattr(cause, "diag", None):
        fault = _FAULT_OF_STATE.get(cause.sqlstate, RowFault.INVALID)
        return fault, diag.constraint_name or _field_name(model, diag.column_name)
    if code := getattr(cause, "sqlite_errorcode", None):
        return _FAULT_OF_SQLITE.get(code, RowFault.INVALID), _sqlite_constraint(str(error), model)
    if error.args and isinstance(error.args[0], int):
        fault = _FAULT_OF_NUMBER.get(error.args[0], RowFault.INVALID)
        found = _MYSQL_NAME.search(str(error.args[-1]))
        name = next(filter(None, found.groups()), None) if found else None
        return fault, _field_name(model, name) or name
    return (RowFault.CHECK if isinstance(error, IntegrityError) else RowFault.INVALID), None


def _field_name(model: type[models.Model], column: str | None) -> str | None:
    return next((field.name for field in model._meta.concrete_fields if field.column == column), None)


def _sqlite_constraint(text: str, model: type[models.Model]) -> str | None:
    """Read "UNIQUE constraint failed: shop_item.code, shop_item.shop_id", or the name of a check or an index."""
    _, _, named = text.partition("constraint failed: ")
    columns = [part.rpartition(".")[2] for part in named.split(", ")]
    if text.startswith("NOT NULL"):
        return _field_name(model, columns[0])
    for constraint in model._meta.constraints:
        names = [getattr(model._meta.get_field(name), "column", None) for name in getattr(constraint, "fields", ())]
        if names == columns:
            return constraint.name
    return named.removeprefix("index ").strip("'") or None


def position(error: Exception, rows: Sequence[Row], columns: Columns) -> int | None:
    """Return the place within `rows` of the row that the database named, or None."""
    if context := getattr(getattr(error.__cause__, "diag", None), "context", None):
        found = _COPY_LINE.search(context)
        return _place(int(found[1]) - 1, rows) if found else None
    if not error.args or not isinstance(error.args[0], int):
        return None
    text = str(error.args[-1])
    if found := _MYSQL_ROW.search(text):
        return _place(int(found[1]) - 1, rows)
    place = _repeated_key(text, rows, columns) if error.args[0] == 1062 else None  # noqa: PLR2004  # ER_DUP_ENTRY
    return _row_number(columns.connection, rows) if place is None else place


def _row_number(connection: Any, rows: Sequence[Row]) -> int | None:
    """Ask MariaDB which row of the statement before this one was refused."""
    if not (connection.mysql_is_mariadb and connection.mysql_version >= _COUNTS_ROWS):
        return None
    with connection.cursor() as cursor:
        cursor.execute("GET DIAGNOSTICS CONDITION 1 @resilience_row = ROW_NUMBER")
        cursor.execute("SELECT @resilience_row")
        number = cursor.fetchone()[0]
    return _place(int(number) - 1, rows) if number else None


def _place(number: int, rows: Sequence[Row]) -> int | None:
    return number if 0 <= number < len(rows) else None


def _repeated_key(text: str, rows: Sequence[Row], columns: Columns) -> int | None:
    """Find the row with the key of "Duplicate entry 'abc' for key ...", the second one if two of the rows have it."""
    found = re.match(r"Duplicate entry '(.*)' for key", text, re.DOTALL)
    if not found:
        return None
    wanted = found[1]
    places = [
        place
        for place, row in enumerate(rows)
        if any(str(value) == wanted for value, field in zip(row.values, columns.fields, strict=True) if field.unique)
    ]
    return places[min(1, len(places) - 1)] if places else None
