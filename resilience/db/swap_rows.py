"""One row of a model, read and written by SQL that Django compiles once per connection and model.

Building a query costs Django several times what running it costs. Under contention that is what counts: the row is
locked, or the reading grows old, while it happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import sql

from resilience.db.swap_fields import Field, is_expression, reads_as_given, stored_field

__all__ = ["CompiledRows", "ModelRows", "rows_of"]

Row = TypeVar("Row", bound=models.Model)


def rows_of(model: type[Row], connection: BaseDatabaseWrapper) -> ModelRows[Row]:
    """Return the way to a model's rows on a connection: the quick one where the rows are simple enough."""
    # Kept with the connection, which belongs to one thread as compiled queries do, and goes when it goes.
    known: dict[type[models.Model], ModelRows[Any]] = connection.__dict__.setdefault("_resilience_rows", {})
    if model not in known:
        is_simple = (
            type(model._base_manager) is models.Manager
            and all(field.model is model._meta.concrete_model for field in model._meta.concrete_fields)
            and (connection.vendor in {"mysql", "postgresql"} or _can_return(connection))
        )
        known[model] = (CompiledRows if is_simple else ModelRows)(model, connection)
    return known[model]


def _can_return(connection: Any) -> bool:
    """Tell whether an UPDATE can give back the row as it has become."""
    return connection.vendor == "postgresql" or (
        connection.vendor == "sqlite" and bool(connection.features.can_return_columns_from_insert)
    )


class ModelRows(Generic[Row]):
    """The rows of any model, by querysets.

    Args:
        model: The model.
        connection: The database.
    """

    def __init__(self, model: type[Row], connection: Any) -> None:
        self.model = model
        self.connection = connection
        self.alias: str = connection.alias

    @property
    def all(self) -> models.QuerySet[Row]:
        """All rows; by the base manager, as one that hides rows must not turn "hidden" into "does not exist"."""
        return self.model._base_manager.using(self.alias)

    def missing(self) -> Exception:
        """Return the error that says that there is no such row, in Django's words."""
        error: Any = self.model
        return error.DoesNotExist(f"{self.model._meta.object_name} matching query does not exist.")  # type: ignore[no-any-return]  # each model has its own

    def read(self, pk: Any) -> Row:
        """Return the row, or raise the model's DoesNotExist."""
        return self.all.get(pk=pk)

    def lock(self, pk: Any) -> Row:
        """Return the row as it is now, and keep others from changing it until the transaction ends."""
        if not self.connection.features.has_select_for_update:
            # SQLite locks the database when a transaction writes; one that read before would have to begin anew.
            column = self.model._meta.pk_fields[0].attname
            self.all.filter(pk=pk).update(**{column: models.F(column)})
        return self.all.select_for_update().get(pk=pk)

    def write(self, pk: Any, base: Row | None, held: Iterable[Field], written: Mapping[str, Any]) -> Row | None:
        """Change the row if it still has the values that `base` has in the `held` fields.

        Returns:
            The row as stored, or None when there was none to change.
        """
        condition = {field.attname: field.value_from_object(base) for field in held}  # type: ignore[arg-type]  # base is there
        return self._stored(pk, base, written) if self.all.filter(pk=pk, **condition).update(**written) else None

    def _stored(self, pk: Any, base: Row | None, written: Mapping[str, Any]) -> Row:
        """Return the row as stored, without asking when what was written is what is read."""
        if base is None or not all(reads_as_given(self.model, name, value) for name, value in written.items()):
            return self.read(pk)
        for name, value in written.items():
            setattr(base, name, value)
        return base


class CompiledRows(ModelRows[Row]):
    """The rows of a model of one table whose base manager is Django's own.

    Args:
        model: The model.
        connection: The database.
    """

    def __init__(self, model: type[Row], connection: Any) -> None:
        super().__init__(model, connection)
        self._query: Any = self.all.order_by().query
        self._compiler: Any = self._query.get_compiler(connection=connection)
        self._select: str = self._compiler.as_sql()[0]
        selected = [column for column, _, _ in self._compiler.select]
        self._names = [column.target.attname for column in selected]
        self._converters = self._compiler.get_converters(selected)
        columns = ", ".join(text for _, (text, _), _ in self._compiler.select)
        self._returning = f" RETURNING {columns}" if _can_return(connection) else ""
        self._updates: dict[tuple[str, ...], str] = {}

    def read(self, pk: Any) -> Row:
        """Return the row, or raise the model's DoesNotExist."""
        return self._one(self._select, (), pk)

    def lock(self, pk: Any) -> Row:
        """Return the row as it is now, and keep others from changing it until the transaction ends."""
        if self.connection.features.has_select_for_update:
            return self._one(self._select, (), pk, self.connection.ops.for_update_sql())
        # SQLite locks the database when a transaction writes; one that read before would have to begin anew.
        column = self.model._meta.pk_fields[0].attname
        return self._one(*self._update({column: models.F(column)}), pk, self._returning)

    def write(self, pk: Any, base: Row | None, held: Iterable[Field], written: Mapping[str, Any]) -> Row | None:
        """Change the row if it still has the values that `base` has in the `held` fields."""
        update, values = self._update(written)
        try:
            where, parameters = self._where(pk, [(field, field.value_from_object(base)) for field in held])  # type: ignore[arg-type]  # base is there
        except EmptyResultSet:  # a number that the column cannot hold
            return None
        if self._returning:
            rows = self._fetch(f"{update} WHERE {where}{self._returning}", (*values, *parameters))
            return rows[0] if rows else None
        with transaction.mark_for_rollback_on_error(using=self.alias), self.connection.cursor() as cursor:
            cursor.execute(f"{update} WHERE {where}", (*values, *parameters))
            is_found = bool(cursor.rowcount)
        return self._stored(pk, base, written) if is_found else None

    def _one(self, statement: str, values: tuple[Any, ...], pk: Any, ending: str = "") -> Row:
        try:
            where, parameters = self._where(pk)
        except EmptyResultSet:  # a number that the column cannot hold
            rows = []
        else:
            rows = self._fetch(f"{statement} WHERE {where} {ending}", (*values, *parameters))
        if not rows:
            raise self.missing()
        return rows[0]

    def _fetch(self, statement: str, parameters: tuple[Any, ...]) -> list[Row]:
        with transaction.mark_for_rollback_on_error(using=self.alias), self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows: Iterable[Any] = cursor.fetchall()
        if self._converters:
            rows = self._compiler.apply_converters(rows, self._converters)
        return [self.model.from_db(self.alias, self._names, row) for row in rows]

    def _where(self, pk: Any, held: Iterable[tuple[Field, Any]] = ()) -> tuple[str, list[Any]]:
        table, parts, parameters = self.model._meta.db_table, [], []
        key: Any = self.model._meta.pk
        for field, value in ((key, pk), *held):
            column = field.get_col(table)
            lookup = field.get_lookup("exact")(column, value) if value is not None else field.get_lookup("isnull")(column, True)
            text, values = self._compiler.compile(lookup)
            parts.append(text)
            parameters.extend(values)
        return " AND ".join(parts), parameters

    def _update(self, written: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """Return `UPDATE table SET ...` and its values; values that need compiling are compiled each time."""
        fields = {name: stored_field(self.model, name, "updates") for name in written}
        if any(map(is_expression, written.values())) or any(map(_has_placeholder, fields.values())):
            query = self._query.chain(sql.UpdateQuery)
            query.add_update_values({field.name: written[name] for name, field in fields.items()})
            text, values = query.get_compiler(connection=self.connection).as_sql()
            return text, tuple(values)
        quote = self.connection.ops.quote_name
        names = tuple(written)
        if names not in self._updates:
            columns = ", ".join(f"{quote(field.column)} = %s" for field in fields.values())
            self._updates[names] = f"UPDATE {quote(self.model._meta.db_table)} SET {columns}"  # noqa: S608  # quoted names
        return self._updates[names], tuple(
            field.get_db_prep_save(written[name], connection=self.connection) for name, field in fields.items()
        )


def _has_placeholder(field: Any) -> bool:
    """Tell whether the column wants more than a value in the statement, as one of an array does."""
    return bool(getattr(field, "get_placeholder", None) or getattr(field, "get_placeholder_sql", None))
