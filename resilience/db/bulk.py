"""Bulk inserts that store every good row and tell exactly which rows are bad, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from django.db import connections, models, router

from resilience import clock, signals
from resilience.calls.progress import Progress, check_progress, report_progress
from resilience.db.bulk_batches import Batches
from resilience.db.bulk_columns import Columns
from resilience.db.bulk_postgresql import CopyWriter, can_copy
from resilience.db.bulk_rows import BadRow, Row, RowFault, RowFaultError
from resilience.db.bulk_writers import ModelWriter, StatementWriter, Writer
from resilience.db.swap_fields import stored_field
from resilience.values import is_whole

__all__ = ["BadRow", "BulkInsertResult", "RowFault", "safe_bulk_insert"]

Conflict = Literal["report", "ignore", "update"]
#: Inside a transaction the batches grow, so that however many rows come, few savepoints are left behind.
_BATCHES_OF_A_SIZE = 4


class BulkInsertResult(NamedTuple):
    """What became of the records; unpacks as `stored, failed`.

    Args:
        inserted: The stored instances in input order; with `return_objects=False` their number.
        failed: What was not stored, in input order.

    Example:
        >>> inserted, failed = BulkInsertResult([], [])
    """

    inserted: Any
    failed: list[BadRow]


def safe_bulk_insert(
    model: type[models.Model],
    records: Iterable[Mapping[str, Any] | models.Model],
    *,
    batch_size: int = 1000,
    using: str | None = None,
    progress: Progress = None,
    return_objects: bool = True,
    on_conflict: Conflict = "report",
    unique_fields: Sequence[str] | None = None,
    update_fields: Sequence[str] | None = None,
) -> BulkInsertResult:
    """Insert many rows; store each good one, and report each bad one with its place, its error and its constraint.

    The records are read as they are needed, in batches, each of which is committed by itself: rows stored before
    an outage stay, and a batch that met a deadlock or a lost connection is stored again as a whole, never twice.
    Inside a transaction of yours nothing is committed; each batch is then a savepoint, and batches grow from four
    to four, so that many rows leave few savepoints behind.

    A batch with a bad row costs a few statements more, not one a row. Of two records with the same key the first
    one wins. Foreign keys and other deferred constraints are checked with the batch, not at your COMMIT. A bad
    record that is an instance keeps its pk and state. Signals of `save()` are not sent, except for models of
    several tables, which are saved one by one. Field validators do not run, as in `bulk_create`.

    Args:
        model: The model class, of a managed table.
        records: Dicts of field values, or instances; any iterable, also an endless-looking generator.
        batch_size: Rows a batch; 1 or more.
        using: Database alias; None asks the routers.
        progress: `progress(done, total)` after each batch, total None when unknown; True draws a bar.
        return_objects: Give the instances back, with their keys. False counts them, in constant memory.
        on_conflict: What to do with a row whose key is taken: "report" it, "ignore" it (neither stored nor
            failed, while every other fault is still reported), or "update" the row that is there.
        unique_fields: For "update": the fields of the key, where the database wants them (not MySQL, MariaDB).
        update_fields: For "update": the fields to overwrite; None for all but the keys.

    Returns:
        The stored instances (or their number) and the bad rows.

    Raises:
        TypeError, ValueError: An argument cannot be right; nothing was stored.
        ConnectionDoesNotExist: No such alias.
        CommitOutcomeUnknownError: A COMMIT was lost on the way, and nothing tells whether it arrived. Batches
            before it are stored.
        django.db.Error: The database failed for longer than the retries; batches before it are stored.

    Example:
        >>> from tests.testapp.models import Account
        >>> stored, failed = safe_bulk_insert(Account, [{"name": "A"}, {"name": "A"}, {"name": None}])
        >>> [(bad.index, str(bad.kind)) for bad in failed]
        [(1, 'unique'), (2, 'not_null')]
    """
    _check(model, records, batch_size, on_conflict)
    _check_names(model, on_conflict, unique_fields=unique_fields, update_fields=update_fields)
    check_progress(progress)
    alias = using or router.db_for_write(model)
    connection = connections[alias]
    columns = Columns(model, connection)
    options = _upsert(columns, unique_fields, update_fields) if on_conflict == "update" else {}
    writer = _writer(columns, alias, options, returns_keys=return_objects)
    insertion = _Insertion(
        columns,
        Batches(columns, alias, writer, is_idempotent=on_conflict != "report", is_upsert=on_conflict == "update"),
        return_objects=return_objects,
        is_ignoring=on_conflict == "ignore",
    )
    started = clock.monotonic()
    total = len(records) if isinstance(records, (Sequence, models.QuerySet)) else None
    with report_progress(progress, model._meta.label, total) as report:
        numbered = enumerate(records)
        for size in _sizes(batch_size, is_inside=insertion.batches.is_inside):
            batch = list(islice(numbered, size))
            if not batch:
                break
            insertion.take(batch)
            report(batch[-1][0] + 1)
    result = insertion.result()
    signals.emit(
        signals.bulk_inserted,
        model,
        model=model._meta.label,
        inserted=insertion.count,
        failed=len(result.failed),
        elapsed=clock.monotonic() - started,
    )
    return result


class _Insertion:
    """What was stored and what failed so far."""

    def __init__(self, columns: Columns, batches: Batches, *, return_objects: bool, is_ignoring: bool) -> None:
        self.columns = columns
        self.batches = batches
        self.return_objects = return_objects
        self.is_ignoring = is_ignoring
        self.count = 0
        self.objects: list[models.Model] = []
        self.failed: list[BadRow] = []

    def take(self, batch: list[tuple[int, Any]]) -> None:
        """Store one batch of numbered records."""
        rows, faults = self.columns.rows(batch)
        # Where Python has found bad rows there are soon others that only the database knows.
        self.batches.expects_faults |= bool(faults)
        if rows:
            faults.update(self.batches.store(rows))
        for row in rows:
            if row.index not in faults:
                self._keep(row)
        if faults:
            for index, record in batch:
                if fault := faults.get(index):
                    self._report(index, record, fault)

    def result(self) -> BulkInsertResult:
        """Return what became of all records."""
        return BulkInsertResult(self.objects if self.return_objects else self.count, self.failed)

    def _keep(self, row: Row) -> None:
        self.count += 1
        instance = row.instance
        if row.returned is not None:
            instance.__dict__.update(row.returned)
        elif row.key is not None and self.columns.auto is not None and self.batches.writer.returns_keys:
            setattr(instance, self.columns.auto.attname, row.key)
        instance._state.adding = False
        instance._state.db = self.batches.alias
        if self.return_objects:
            self.objects.append(instance)

    def _report(self, index: int, record: Any, fault: RowFaultError) -> None:
        if self.is_ignoring and fault.kind is RowFault.UNIQUE:
            return
        self.failed.append(BadRow(index, record, fault.error, fault.kind, fault.constraint))


def _sizes(batch_size: int, *, is_inside: bool) -> Iterator[int]:
    for number in range(1 << 62):
        yield batch_size << min(number // _BATCHES_OF_A_SIZE, 20) if is_inside else batch_size


def _writer(columns: Columns, alias: str, options: dict[str, Any], *, returns_keys: bool) -> Writer:
    """Choose the fastest way into the table that keeps every promise."""
    auto = {columns.auto} if columns.auto else set()
    gives_more = returns_keys and not set(columns.model._meta.db_returning_fields) <= auto
    if options or gives_more or not columns.is_plain:
        return ModelWriter(columns, alias, options)
    if can_copy(columns.connection):
        return CopyWriter(columns, returns_keys=returns_keys)
    if columns.connection.vendor in {"mysql", "sqlite"}:
        return StatementWriter(columns, returns_keys=returns_keys)
    return ModelWriter(columns, alias)


def _upsert(columns: Columns, unique_fields: Sequence[str] | None, update_fields: Sequence[str] | None) -> dict[str, Any]:
    """Return the arguments that make `bulk_create` an upsert."""
    label = columns.model._meta.label
    wants_key = columns.connection.features.supports_update_conflicts_with_target
    if wants_key and not unique_fields:
        raise ValueError(f'unique_fields must name the key of {label} for on_conflict="update", not {unique_fields!r}. Name it.')
    if update_fields is None:
        keys = {*(unique_fields or ())}
        update_fields = [field.name for field in columns.fields if not field.primary_key and field.name not in keys]
    options: dict[str, Any] = {"update_conflicts": True, "update_fields": list(update_fields)}
    return {**options, "unique_fields": list(unique_fields or ())} if wants_key else options


def _check_names(model: type[models.Model], on_conflict: Conflict, **named: Sequence[str] | None) -> None:
    for argument, names in named.items():
        if names is not None and on_conflict != "update":
            raise ValueError(f'{argument} must be left out, not {names!r}, unless on_conflict is "update".')
        for name in names or ():
            stored_field(model, name, argument)


def _check(model: Any, records: Any, batch_size: Any, on_conflict: Any) -> None:
    if not (isinstance(model, type) and issubclass(model, models.Model) and hasattr(model, "_meta")) or model._meta.abstract:
        raise TypeError(f"model must be a concrete model class, not {model!r}. Pass the class whose table gets the rows.")
    if isinstance(records, (str, bytes, Mapping, models.Model)) or not isinstance(records, Iterable):
        kind = type(records).__name__
        raise TypeError(f"records must be an iterable of dicts or instances, not a {kind}. Put a single record into a list.")
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number from 1, not {batch_size!r}. 1000 suits most tables.")
    if on_conflict not in {"report", "ignore", "update"}:
        raise ValueError(f'on_conflict must be "report", "ignore" or "update", not {on_conflict!r}.')
