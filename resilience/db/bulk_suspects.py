"""Which rows of a batch are likely to be bad: questions to Python and to the database, one a constraint.

What is certain (a key that is stored, a parent that is not) condemns a row; the rest is suspicion, by which a batch
is cut so that suspects are written alone and the database judges them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

from django.db import Error, IntegrityError, models

from resilience.db.bulk_columns import Columns
from resilience.db.bulk_rows import Row, RowFault, RowFaultError

__all__ = ["Suspects"]


class Suspects:
    """Asks the database, one question a constraint, which of many rows cannot be stored.

    Args:
        columns: The columns of the rows.
        alias: The database alias.
    """

    def __init__(self, columns: Columns, alias: str) -> None:
        self.columns = columns
        self.alias = alias
        self._names: dict[tuple[str, bool], str] | None = None
        self._checks: list[str] | None = None

    def repeats(self, rows: Sequence[Row]) -> set[int]:
        """Return the rows that repeat a key of an earlier one, as far as Python can tell."""
        found: set[int] = set()
        places = {field.attname: place for place, field in enumerate(self.columns.fields)}
        fold = self.columns.connection.vendor == "mysql"
        for names in _keys(self.columns.model):
            if not all(name in places for name in names):
                continue
            columns = [_comparable([row.values[places[name]] for row in rows], fold=fold) for name in names]
            if any(column.count(None) == len(column) for column in columns):
                continue
            seen: set[Any] = set()
            for row, key in zip(rows, zip(*columns, strict=True), strict=True):
                if None not in key and key in seen:
                    found.add(row.index)
                seen.add(key)
        return found

    def breakers(self, rows: Sequence[Row]) -> set[int]:
        """Return the rows that break a check constraint, asked in a question of its own: a guess, as types may differ."""
        connection, quote = self.columns.connection, self.columns.connection.ops.quote_name
        checks = self._check_sql()
        fields = [field for field in self.columns.fields if any(quote(field.column) in check for check in checks)]
        if not fields:
            return set()
        places = [self.columns.fields.index(field) for field in fields]
        names = ", ".join(["resilience_index", *(quote(field.column) for field in fields)])
        opening = "ROW(" if connection.vendor == "mysql" and not connection.mysql_is_mariadb else "("
        group = f"{opening}{', '.join(['%s'] * (len(fields) + 1))})"
        broken = " OR ".join(f"NOT ({check})" for check in checks).replace("%", "%%")
        most = (connection.features.max_query_params or 50_000) // (len(fields) + 1)
        found: set[int] = set()
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            values = [value for row in part for value in (row.index, *(_plain(row.values[place]) for place in places))]
            question = (
                f"WITH given ({names}) AS (VALUES {', '.join([group] * len(part))}) "  # noqa: S608  # quoted names
                f"SELECT resilience_index FROM given WHERE {broken}"
            )
            # What cannot be asked like this is found by cutting; a lost connection shows at the next statement.
            with suppress(Error), connection.cursor() as cursor:
                cursor.execute(question, values)
                found.update(int(index) for (index,) in cursor.fetchall())
        return found

    def _check_sql(self) -> list[str]:
        if self._checks is None:
            model, editor = self.columns.model, self.columns.connection.schema_editor()
            constraints = [entry for entry in model._meta.constraints if isinstance(entry, models.CheckConstraint)]
            self._checks = [str(constraint._get_check_sql(model, editor)) for constraint in constraints]  # type: ignore[attr-defined]  # noqa: SLF001  # no public name
        return self._checks

    def duplicates(self, rows: Sequence[Row]) -> dict[int, RowFaultError]:
        """Return the rows whose key is in the table already, by index; for keys of one column."""
        found: dict[int, RowFaultError] = {}
        for place, field in enumerate(self.columns.fields):
            # A number that is kept with more digits than it is read with may be equal here and not there.
            if not field.unique or field.is_relation or isinstance(field, (models.DecimalField, models.FloatField)):
                continue
            wanted = _by_value(rows, place, field, field)
            for value in self._present(self.columns.model, field, wanted):
                message = f"{self.columns.model._meta.label} with this {field.name} already exists."
                fault = RowFaultError(IntegrityError(message), RowFault.UNIQUE, self._name(field, is_foreign=False))
                found.update({row.index: fault for row in wanted.get(value, ())})
        return found

    def orphans(self, rows: Sequence[Row], known: Iterable[Row] = ()) -> dict[int, RowFaultError]:
        """Return the rows whose foreign key points nowhere, by index.

        Args:
            rows: The rows to judge.
            known: Rows that count as stored, for keys that point into the same table.
        """
        found: dict[int, RowFaultError] = {}
        for place, field in enumerate(self.columns.fields):
            if not (isinstance(field, models.ForeignKey) and getattr(field, "db_constraint", True)):
                continue
            target = field.target_field
            if not self._is_exact(target) or self._may_be_hidden(target.model):
                continue
            wanted = _by_value(rows, place, field, target)
            missing = set(wanted) - set(self._present(target.model, target, wanted))
            if target.model._meta.concrete_model is self.columns.model._meta.concrete_model:
                missing -= {getattr(row.instance, target.attname) for row in known}
            for value in missing:
                message = f"{field.remote_field.model._meta.label} with {target.name} {value!r} does not exist."
                fault = RowFaultError(IntegrityError(message), RowFault.FOREIGN_KEY, self._name(field, is_foreign=True))
                found.update({row.index: fault for row in wanted[value]})
        return found

    def _present(self, model: type[models.Model], field: Any, wanted: dict[Any, list[Row]]) -> set[Any]:
        """Return those of the values that the column has, as they were given."""
        keys = list(wanted)
        most = self.columns.connection.features.max_query_params or 10_000
        present: set[Any] = set()
        # Not by a manager, which may hide rows.
        stored: models.QuerySet[Any] = models.QuerySet(model=model, using=self.alias)
        for start in range(0, len(keys), most):
            chunk = keys[start : start + most]
            present.update(stored.filter(**{f"{field.attname}__in": chunk}).values_list(field.attname, flat=True))
        return present & wanted.keys()

    def _may_be_hidden(self, model: type[models.Model]) -> bool:
        """Tell whether a policy of PostgreSQL may hide rows from questions that foreign keys still find."""
        connection = self.columns.connection
        if connection.vendor != "postgresql":
            return False
        with connection.cursor() as cursor:
            cursor.execute("SELECT row_security_active(%s::regclass)", [connection.ops.quote_name(model._meta.db_table)])
            return bool(cursor.fetchone()[0])

    def _is_exact(self, target: Any) -> bool:
        """Tell whether a key that is not found by equality in Python is missing for the database as well."""
        is_text = isinstance(target, (models.CharField, models.TextField))
        return not is_text or (self.columns.connection.vendor != "mysql" and not target.db_collation)

    def _name(self, field: Any, *, is_foreign: bool) -> str:
        connection, table = self.columns.connection, self.columns.model._meta.db_table
        if connection.vendor == "sqlite":
            return f"{table}.{field.column}"
        if self._names is None:
            with connection.cursor() as cursor:
                constraints = connection.introspection.get_constraints(cursor, table)
            self._names = {
                (about["columns"][0], bool(about["foreign_key"])): name
                for name, about in constraints.items()
                if len(about["columns"] or ()) == 1 and (about["unique"] or about["foreign_key"])
            }
        return self._names.get((field.column, is_foreign), f"{table}.{field.column}")


def _by_value(rows: Sequence[Row], place: int, field: Any, target: Any) -> dict[Any, list[Row]]:
    """Group rows by the value in one column; NULL and expressions can be neither duplicate nor orphan."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        value = row.values[place]
        if value is not None and not hasattr(value, "resolve_expression"):
            key = target.to_python(field.value_from_object(row.instance))
            if isinstance(key, Hashable):  # a list or a dict is left to the database
                groups.setdefault(key, []).append(row)
    return groups


def _keys(model: type[models.Model]) -> list[tuple[str, ...]]:
    """Return the keys that no two rows may share, as names of attributes; a conditional one counts, it is only a hint."""
    meta = model._meta
    singles = [(field.attname,) for field in meta.concrete_fields if field.unique]
    groups = [tuple(constraint.fields) for constraint in meta.constraints if isinstance(constraint, models.UniqueConstraint)]
    names = [
        tuple(cast("Any", meta.get_field(name)).attname for name in group) for group in (*groups, *meta.unique_together) if group
    ]
    return [*singles, *names]


def _comparable(values: list[Any], *, fold: bool) -> list[Any]:
    """Return what stands for values when keys are compared: None for what cannot be compared, NULL included."""
    kinds = set(map(type, values))
    if kinds <= {int, type(None)}:
        return values
    if kinds <= {str}:
        return [value.casefold().rstrip() for value in values] if fold else values
    return [value if isinstance(value, Hashable) and not hasattr(value, "resolve_expression") else None for value in values]


def _plain(value: Any) -> Any:
    return None if hasattr(value, "resolve_expression") else value
