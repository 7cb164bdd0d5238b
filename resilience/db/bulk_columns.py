"""From records to rows: model instances, and the values that their columns are sent.

Everything that Python can know about a row is checked here: unknown names, values of the wrong type, NULL where
none is allowed, text that is too long, numbers out of range. Nothing here talks to the database.

Columns are encoded one after the other, not rows: whether all values of a column are of the usual type and in
range is a question that a few built-in functions answer for a thousand values at once.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, TypeAlias

from django.conf import settings
from django.db import DataError, IntegrityError, models

from resilience.db.bulk_instances import Blueprint, check_related
from resilience.db.bulk_rows import Row, RowFault, RowFaultError

__all__ = ["Columns"]

Field: TypeAlias = "models.Field[Any, Any]"
Faults: TypeAlias = dict[int, RowFaultError]

_UNBOUNDED = 1 << 62
#: Types of which a column often holds the same value again and again, as a default: it is encoded once a batch.
_REPEATED = frozenset({int, type(None)})
_DJANGO = "django.db.models."
#: Floats that a database does not keep: SQLite stores NULL for NaN without a word.
_UNKEPT: dict[str, Callable[[float], bool]] = {"sqlite": math.isnan, "mysql": lambda value: not math.isfinite(value)}


class Columns:
    """The columns of a model that an INSERT fills, and how to fill them.

    Args:
        model: The model.
        connection: The database.
    """

    def __init__(self, model: type[models.Model], connection: Any) -> None:
        meta = model._meta
        self.model = model
        self.connection = connection
        self.fields: list[Field] = [field for field in meta.concrete_fields if not getattr(field, "generated", False)]
        self.auto: Field | None = meta.auto_field
        relations = [field for field in self.fields if field.is_relation]
        self.has_relations = bool(relations)
        #: Whether a row may refer to a row of its own batch.
        self.is_self_referencing = any(_concrete(field.related_model) is meta.concrete_model for field in relations)
        self._columns = [_Column(field, connection) for field in self.fields]
        self._blueprint = Blueprint(model)

    @property
    def is_plain(self) -> bool:
        """Whether the values of each row can be sent as they are, past Django's INSERT compiler."""
        meta = self.model._meta
        special = any(
            getattr(field, "get_placeholder", None) or getattr(field, "get_placeholder_sql", None) for field in self.fields
        )
        foreign = any(type(field).__module__.startswith("django.contrib.postgres") for field in self.fields)
        return not (meta.parents or meta.order_with_respect_to or special or foreign)

    def rows(self, batch: Sequence[tuple[int, Any]]) -> tuple[list[Row], Faults]:
        """Make rows of numbered records; return them and, by number, what is wrong with the others."""
        faults: Faults = {}
        numbers, records, instances = [], [], []
        for number, record in batch:
            try:
                instance = self._instance(record)
            except Exception as error:  # noqa: BLE001  # a model may raise what it likes: it is this row's error
                faults[number] = RowFaultError(error, RowFault.INVALID)
                continue
            numbers.append(number)
            records.append(record)
            instances.append(instance)
        values = [column.encode(instances, numbers, faults) for column in self._columns]
        rows = list(map(Row, numbers, records, instances, zip(*values, strict=True)))
        return [row for row in rows if row.index not in faults] if faults else rows, faults

    def _instance(self, record: Any) -> models.Model:
        instance: Any = record
        if isinstance(record, Mapping):
            return self._blueprint.build(record)
        if not (isinstance(record, models.Model) and _concrete(type(record)) is self.model._meta.concrete_model):
            label = self.model._meta.label
            raise TypeError(f"records must be dicts or instances of {label}, not {type(record).__name__}. Convert it first.")
        if self.has_relations:
            check_related(instance)
        return instance  # type: ignore[no-any-return]  # a model instance by now


class _Column:
    """How one column gets its values."""

    def __init__(self, field: Field, connection: Any) -> None:
        self.field = field
        self.connection = connection
        self.target: Any = getattr(field, "target_field", field)
        self.read = _reader(field)
        is_link = bool(getattr(field.remote_field, "parent_link", False))
        self.takes_none = field.null or isinstance(field, models.AutoField) or is_link
        self.longest: int | None = None
        if isinstance(self.target, (models.CharField, models.TextField)):
            self.longest = self.target.max_length
        self.bounds = _bounds(self.target, connection)
        # A field of somebody's own may store another value than it is given; Django's own are known.
        is_known = type(field).__module__.startswith(_DJANGO) and type(self.target).__module__.startswith(_DJANGO)
        self.types: frozenset[type] = self._usual_types() if is_known else frozenset()

    def _usual_types(self) -> frozenset[type]:
        """Return the types whose values are sent as they are."""
        if self.bounds:
            return frozenset({int})
        usual: dict[type, set[type]] = {
            models.CharField: {str},
            models.SlugField: {str},
            models.TextField: {str},
            models.BooleanField: {bool},
            models.FloatField: {float},
        }
        if self.connection.vendor == "postgresql":
            usual |= {models.DecimalField: {Decimal, int}, models.UUIDField: {uuid.UUID}}
            if settings.USE_TZ:
                usual[models.DateTimeField] = {dt.datetime}
        return frozenset(usual.get(type(self.target), ()))

    def encode(self, instances: Sequence[models.Model], numbers: Sequence[int], faults: Faults) -> list[Any]:
        """Return the values to send for all instances; what is wrong with some goes to `faults` by number."""
        try:
            values = list(map(self.read, instances))
            if self._are_usual(values):
                return values
        except Exception:  # noqa: BLE001  # found again below, in its row
            values = []
        encoded = []
        known: dict[Any, Any] = {}
        for place, instance in enumerate(instances):
            try:
                value = values[place] if values else self.read(instance)
                encoded.append(self._sent(value, known))
            except RowFaultError as fault:
                faults.setdefault(numbers[place], fault)
                encoded.append(None)
            except Exception as error:  # noqa: BLE001  # a field may raise what it likes: it is this row's error
                faults.setdefault(numbers[place], RowFaultError(error, RowFault.INVALID, self.field.name))
                encoded.append(None)
        return encoded

    def _are_usual(self, values: list[Any]) -> bool:
        kinds = set(map(type, values))
        if type(None) in kinds:
            if not (self.takes_none and self.types):
                return False
            kinds.discard(type(None))
            values = [value for value in values if value is not None]
        return kinds <= self.types and (not values or self._are_in_range(values))

    def _are_in_range(self, values: list[Any]) -> bool:
        if self.bounds:
            is_zero_key = isinstance(self.field, models.AutoField) and 0 in values  # MySQL takes it for NULL
            return bool(self.bounds[0] <= min(values) and max(values) <= self.bounds[1]) and not is_zero_key
        if str in self.types:
            return max(map(len, values)) <= (self.longest or _UNBOUNDED) and _is_storable("".join(values))
        if Decimal in self.types:
            limit = 10 ** (self.target.max_digits - self.target.decimal_places) - 1
            return all(map(_is_finite, values)) and -limit <= min(values) and max(values) <= limit
        if float in self.types:
            return all(map(math.isfinite, values))
        if dt.datetime in self.types:
            return None not in set(map(attrgetter("tzinfo"), values))
        return True

    def _sent(self, value: Any, known: dict[Any, Any]) -> Any:
        """Return what is sent for one value; `known` has what was sent for others."""
        if type(value) in self.types and self._are_in_range([value]):
            return value
        if type(value) not in _REPEATED:
            return self._encoded(value)
        key = type(value), value
        if key not in known:
            known[key] = self._encoded(value)
        return known[key]

    def _encoded(self, value: Any) -> Any:
        """Encode one value as Django does, and check what the database would refuse."""
        if hasattr(value, "resolve_expression"):
            return value
        prepared = self.field.get_db_prep_save(value, connection=self.connection)
        if prepared is None:
            if not self.takes_none:
                raise self._fault(IntegrityError, "must not be null", RowFault.NOT_NULL)
        elif isinstance(self.target, models.DecimalField):
            self._check_decimal(self.target.to_python(value))
        elif isinstance(prepared, str):
            self._check_text(prepared)
        elif self.bounds and isinstance(prepared, int) and not self.bounds[0] <= prepared <= self.bounds[1]:
            raise self._fault(DataError, f"must be between {self.bounds[0]} and {self.bounds[1]}", RowFault.OUT_OF_RANGE)
        elif isinstance(prepared, float) and (is_unkept := _UNKEPT.get(self.connection.vendor)) and is_unkept(prepared):
            raise self._fault(DataError, f"must be a number that the database keeps, not {prepared}", RowFault.OUT_OF_RANGE)
        return prepared

    def _check_text(self, text: str) -> None:
        if self.longest is not None and len(text) > self.longest:
            rule = f"must have at most {self.longest} characters, not {len(text)}"
            raise self._fault(DataError, rule, RowFault.TOO_LONG)
        if not _is_storable(text):
            raise self._fault(DataError, "must not contain NUL characters or lone surrogates", RowFault.INVALID)

    def _check_decimal(self, value: Decimal) -> None:
        whole = self.target.max_digits - self.target.decimal_places
        if value.is_finite() and abs(round(value, self.target.decimal_places)) >= Decimal(10) ** whole:
            raise self._fault(DataError, f"must have at most {whole} digits before the point", RowFault.OUT_OF_RANGE)

    def _fault(self, error: type[Exception], rule: str, kind: RowFault) -> RowFaultError:
        return RowFaultError(error(f"{self.field.name} {rule}."), kind, self.field.name)


def _concrete(model: Any) -> Any:
    return model._meta.concrete_model


def _bounds(target: Any, connection: Any) -> tuple[int, int] | None:
    if not isinstance(target, models.IntegerField):
        return None
    low, high = connection.ops.integer_field_range(target.get_internal_type())
    return (-(1 << 63) if low is None else low, (1 << 63) - 1 if high is None else high)


def _is_storable(text: str) -> bool:
    """Tell whether a text has an encoding, and no NUL, which ends text for some databases."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _is_finite(value: Decimal | int) -> bool:
    return isinstance(value, int) or value.is_finite()


def _reader(field: Field) -> Callable[[Any], Any]:
    """Return a function that reads what is to be stored from an instance."""
    if isinstance(field, models.AutoField):
        return lambda instance: instance.__dict__.get(field.attname)
    if field.primary_key and (field.has_default() or field.has_db_default()):
        return lambda instance: _key(field, instance)
    if type(field).pre_save is models.Field.pre_save:
        return attrgetter(field.attname)
    return lambda instance: field.pre_save(instance, add=True)


def _key(field: Field, instance: models.Model) -> Any:
    value = getattr(instance, field.attname)
    return field.get_pk_value_on_save(instance) if value is None else value
