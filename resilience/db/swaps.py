"""One compare-and-swap of one row: what to compare, the write itself, and what to do after a lost race."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

from django.db import connections, models, router, transaction

from resilience import clock
from resilience.db.contention import ContendedRows
from resilience.db.retries import db_retry
from resilience.db.swap_fields import (
    Field,
    check_model,
    is_exact,
    is_expression,
    is_same,
    names,
    stored_field,
    version_named,
)
from resilience.db.swap_rows import ModelRows, rows_of
from resilience.db.versions import VersionField, find_version_field, remember_version
from resilience.exceptions import ConcurrentUpdateError

__all__ = ["Swap"]

Row = TypeVar("Row", bound=models.Model)

#: A function that is done within this many seconds reads nothing but its row: it may run while the row is locked.
_QUICK = 0.0001
#: One that was thought to be quick and took more seconds than this under a lock does not run there again.
_SLOW = 0.02

#: Where races were lost lately, and which functions were seen to be quick; under load a clock alone misjudges them.
_contended = ContendedRows(seconds=1.0)
_quick = ContendedRows(seconds=60.0)


class Swap(Generic[Row]):
    """The state of one optimistic update: what was read, what is to be written, and on what condition.

    Args:
        model: The model class.
        pk: The row's primary key.
        updates: Field names to values, expressions or functions of the row.
        using: Database alias; None asks the routers.
        version_field: Name of an integer field to compare and raise.
        watch: Names of the fields to compare.
        on_conflict: Returns the updates to try after a conflict.

    Raises:
        FieldDoesNotExist: A name is not a field's.
        TypeError, ValueError: An argument cannot be right.
    """

    def __init__(
        self,
        model: type[Row],
        pk: Any,
        updates: Mapping[str, Any],
        *,
        using: str | None,
        version_field: str | None,
        watch: Iterable[str] | None,
        on_conflict: Callable[[Row, dict[str, Any]], Mapping[str, Any]] | None,
    ) -> None:
        check_model(model, pk)
        self.model, self.pk, self.on_conflict = model, pk, on_conflict
        self.alias: str = using or router.db_for_write(model)
        self.vendor: str = connections[self.alias].vendor
        self.version = version_named(model, version_field) if version_field else find_version_field(model)
        self.watch = [stored_field(model, name, "watch") for name in names(watch)] if watch is not None else None
        self.is_version_asked = version_field is not None
        self._take(updates)
        #: What a lost race was about.
        self.lost: tuple[Row, list[Field]] | None = None
        #: Set when SQL cannot tell whether the row still is what was read: lock it and compare in Python.
        self.needs_lock = False

    @property
    def rows(self) -> ModelRows[Row]:
        """The way to the rows, on the connection of the thread that asks."""
        return rows_of(self.model, connections[self.alias])

    @property
    def is_queued(self) -> bool:
        """Whether the next attempt waits for its turn at the row itself, so that waiting before it is of no use."""
        return self.on_conflict is None and _contended.has(self._spot)

    def attempt(self) -> Row | None:
        """Read, compute and write; return the row as stored, or None when others were faster."""
        if self.is_queued:
            return self._run(self._take_turn)
        if self._is_blind:
            return self._run(self._write_blindly)
        base = _reading(self.alias)(self.rows, self.pk)
        self._learn(base)
        started = clock.monotonic()
        values = self._values(base)
        if clock.monotonic() - started < _QUICK:
            _quick.add(self._codes)
        compared = self._compared(values)
        stored = self._run(self._writer(values, compared), base, values, compared)
        if stored is None:
            self.lost = base, compared
            if _quick.has(self._codes):
                _contended.add(self._spot)
        return stored

    def give_up(self, attempts: int) -> ConcurrentUpdateError:
        """Return the error to raise after the last attempt.

        Raises:
            model.DoesNotExist: The race was lost to a deletion.
        """
        self.rows.read(self.pk)
        return ConcurrentUpdateError(self.model._meta.label, self.pk, attempts)

    def _run(self, work: Callable[..., Row | None], *arguments: Any) -> Row | None:
        return _transaction(self.alias)(work, *arguments)  # type: ignore[no-any-return]  # what work returns

    def _learn(self, base: Row) -> None:
        """Draw the conclusions from a lost race, on the row as it is now."""
        if self.lost is None:
            return
        before, compared = self.lost
        # The UPDATE saw another row than this SELECT does: a snapshot of an outer transaction, or a type that does
        # not compare equal to itself. A locking read sees what the UPDATE saw.
        self.needs_lock = self.needs_lock or all(is_same(field, base, before) for field in compared)
        if self.on_conflict is not None:
            self._take(self.on_conflict(base, dict(self.updates)))

    def _take_turn(self) -> Row | None:
        """Compute and write while the row is locked, as everyone else does at a row that many want."""
        base = self.rows.lock(self.pk)
        started = clock.monotonic()
        values = self._values(base)
        if clock.monotonic() - started > _SLOW:
            _quick.discard(self._codes)
            _contended.discard(self._spot)
        compared = self._compared(values)
        return self._writer(values, compared)(base, values, compared)

    def _values(self, base: Row) -> dict[str, Any]:
        return {
            name: value(base) if callable(value) and not is_expression(value) else value for name, value in self.updates.items()
        }

    def _writer(self, values: Mapping[str, Any], compared: list[Field]) -> Callable[..., Row | None]:
        return self._write_locked if self.needs_lock or not self._is_comparable(compared, values) else self._write

    def _take(self, updates: Mapping[str, Any]) -> None:
        if not isinstance(updates, Mapping):
            raise TypeError(f"updates must be a dict of field names to values, not {updates!r}.")
        if not updates:
            raise ValueError("updates must name at least one field, not {}. Leave the call out when there is nothing to do.")
        for name in updates:
            field = stored_field(self.model, name, "updates")
            if field.primary_key or field in self.model._meta.pk_fields:
                raise ValueError(f"updates must leave the primary key alone, not change {name!r}. Insert a new row instead.")
            if field is self.version:
                raise ValueError(f"updates must leave the version field alone, not set {name!r}: it is raised by itself.")
        self.updates = dict(updates)
        self._codes = tuple((name, _identity(value)) for name, value in updates.items())
        self._spot = (self.alias, self.model, self.pk, self._codes)

    @property
    def _is_blind(self) -> bool:
        """Whether the database computes everything, so that nothing needs to be read or compared first."""
        return self.watch is None and not self.is_version_asked and all(map(is_expression, self.updates.values()))

    def _write_blindly(self) -> Row:
        stored = self._store(None, [], self._with_upkeep(self.model(), self.updates, []))
        if stored is None:
            raise self.rows.missing()
        return stored

    def _compared(self, values: Mapping[str, Any]) -> list[Field]:
        if self.version is not None and self.is_version_asked:
            return [self.version]
        if self.watch is not None:
            return self.watch
        fields = [stored_field(self.model, name, "updates") for name, value in values.items() if not is_expression(value)]
        return [self.version] if fields and self.version is not None else fields

    def _is_comparable(self, compared: list[Field], values: Mapping[str, Any]) -> bool:
        """Tell whether one UPDATE can both compare and write: exact types, and all in one table."""
        written = [stored_field(self.model, name, "updates") for name in values]
        tables = {field.model for field in (*compared, *written, *([self.version] if self.version else []))}
        return len(tables) == 1 and all(is_exact(field, self.vendor) for field in compared)

    def _write(self, base: Row, values: Mapping[str, Any], compared: list[Field]) -> Row | None:
        return self._store(base, compared, self._with_upkeep(base, values, compared))

    def _write_locked(self, base: Row, values: Mapping[str, Any], compared: list[Field]) -> Row | None:
        with transaction.atomic(using=self.alias):
            current = self.rows.lock(self.pk)
            if any(not is_same(field, current, base) for field in compared):
                return None
            return self._store(current, [], self._with_upkeep(current, values, compared))

    def _store(self, base: Row | None, held: list[Field], written: Mapping[str, Any]) -> Row | None:
        stored = self.rows.write(self.pk, base, held, written)
        if stored is not None and isinstance(self.version, VersionField):
            new = getattr(stored, self.version.attname)
            setattr(stored, self.version.attname, new - 1)
            remember_version(stored, self.version, new, self.alias)
        return stored

    def _with_upkeep(self, base: Row, values: Mapping[str, Any], compared: list[Field]) -> dict[str, Any]:
        """Add what `save()` would: the next version, and the time in `auto_now` fields."""
        written = dict(values)
        if self.version is not None:
            is_known = self.version in compared
            column = self.version.attname
            written[column] = (getattr(base, column) or 0) + 1 if is_known else models.F(column) + 1
        for field in self.model._meta.concrete_fields:
            if getattr(field, "auto_now", False) and field.name not in values:
                written[field.attname] = field.pre_save(base, add=False)
        return written


def _identity(value: Any) -> object:
    """Tell functions apart by their code, as a lambda is a new object in each call; other values do not matter."""
    if not callable(value) or is_expression(value):
        return None
    while isinstance(value, partial):
        value = value.func
    # An object that is called has no code that tells it from the next one: it is known for this update only.
    return getattr(value, "__code__", None) or object()


@lru_cache(maxsize=100)
def _transaction(alias: str) -> Callable[..., Any]:
    """Return what runs a function in a transaction of its own, again where that is right."""

    @db_retry(using=alias)
    def atomic_update(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    return atomic_update


@lru_cache(maxsize=100)
def _reading(alias: str) -> Callable[..., Any]:
    """Return what reads a row, again where that is right."""

    @db_retry(using=alias, atomic=False, idempotent=True)
    def atomic_update(rows: ModelRows[Any], pk: Any) -> Any:
        return rows.read(pk)

    return atomic_update
