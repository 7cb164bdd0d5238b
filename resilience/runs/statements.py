"""What a run in progress writes again and again, by SQL that Django builds once.

Building a query costs Django many times what running it costs, and a loop of short steps would do little else. So the UPDATE of
the run, the INSERT of a checkpoint and the DELETE of surplus ones are built when they are needed first, and later only
get new values. Django's model signals are not sent for them; the app's own are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet, Value, sql

from resilience.runs.models import Checkpoint, Run

__all__ = ["HeldRows"]

#: The fields of a new checkpoint, in the order of the INSERT's columns.
_FIELDS = [field for field in Checkpoint._meta.concrete_fields if not field.primary_key]

#: Some versions of Django write None into the statement, some as a value; all write this into the statement.
_NULL = Value(None)

#: How many rows one DELETE names: no database refuses so many parameters.
_NUMBERS = 500


class HeldRows:
    """The row of a run while somebody holds it, and the rows of its checkpoints.

    Threads may share one: each works on its own connection.

    Args:
        run_id: The run's primary key.
        mine: The run's row, on the conditions under which it may be written.
    """

    def __init__(self, run_id: int, mine: QuerySet[Run]) -> None:
        self.using: str = mine.db
        self.run_id = run_id
        self._mine: Any = mine
        self._compiler: Any = mine.query.get_compiler(self.using)
        self._updates: dict[tuple[tuple[str, str], ...], tuple[str, Sequence[Any]]] = {}
        self._inserts: dict[bool, str] = {}

    def update(self, values: Mapping[str, Any]) -> bool:
        """Store values in the run's row; False when it is not, or no longer, on the conditions.

        Args:
            values: Names of fields to plain values, or to expressions that stand for themselves.
        """
        written: list[Any] = []
        parts: list[tuple[str, str]] = []
        values = {name: _NULL if value is None else value for name, value in values.items()}
        for name, value in values.items():
            text, parameters = self._prepared(name, value)
            parts.append((name, text))
            written.extend(parameters)
        shape = tuple(parts)
        if shape not in self._updates:
            self._updates[shape] = self._build_update(values, len(written))
        text, conditions = self._updates[shape]
        return self._execute(text, [*written, *conditions]) > 0

    def insert(self, row: Checkpoint) -> None:
        """Store a checkpoint, without asking for the primary key it gets."""
        connection = connections[self.using]
        has_data = row.data is not None  # MySQL and MariaDB mark bytes in the statement itself
        if has_data not in self._inserts:
            query = sql.InsertQuery(Checkpoint)
            query.insert_values(_FIELDS, [row])
            ((text, _),) = query.get_compiler(self.using).as_sql()
            self._inserts[has_data] = text
        values = [field.get_db_prep_save(field.pre_save(row, add=True), connection=connection) for field in _FIELDS]
        self._execute(self._inserts[has_data], values)

    def delete(self, numbers: Iterable[int]) -> None:
        """Delete the run's sound checkpoints of these numbers."""
        chosen = list(numbers)
        if Checkpoint._meta.related_objects:
            # Somebody's rows refer to checkpoints: Django knows what becomes of them.
            rows = Checkpoint.objects.using(self.using).filter(run_id=self.run_id, status="good")
            rows.filter(sequence__in=chosen).delete()
            return
        quote = connections[self.using].ops.quote_name
        table, run, number, status = (quote(name) for name in (Checkpoint._meta.db_table, "run_id", "sequence", "status"))
        for first in range(0, len(chosen), _NUMBERS):
            some = chosen[first : first + _NUMBERS]
            marks = ", ".join(["%s"] * len(some))
            text = f"DELETE FROM {table} WHERE {run} = %s AND {number} IN ({marks}) AND {status} = 'good'"  # noqa: S608  # quoted names
            self._execute(text, [self.run_id, *some])

    def _prepared(self, name: str, value: Any) -> tuple[str, Sequence[Any]]:
        """Return what stands for a value in a statement, and what is sent along."""
        if hasattr(value, "as_sql"):
            return self._compiler.compile(value)  # type: ignore[no-any-return]  # Django's compilers are not typed
        field: Any = Run._meta.get_field(name)
        return "%s", (field.get_db_prep_save(value, connection=connections[self.using]),)

    def _build_update(self, values: Mapping[str, Any], written: int) -> tuple[str, Sequence[Any]]:
        """Return the statement, and the values of its conditions, which never change."""
        query = self._mine.query.chain(sql.UpdateQuery)
        query.add_update_values(values)
        query.annotations = {}  # as QuerySet.update does: they are in the conditions
        text, parameters = query.get_compiler(self.using).as_sql()
        return text, parameters[written:]

    def _execute(self, text: str, values: list[Any]) -> int:
        with transaction.mark_for_rollback_on_error(using=self.using), connections[self.using].cursor() as cursor:
            cursor.execute(text, values)
            return int(cursor.rowcount)
