"""The fields of an optimistic update: which names may be given, and how a stored value is compared exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeAlias

from django.core.exceptions import FieldDoesNotExist
from django.db import models

__all__ = [
    "Field",
    "check_model",
    "is_exact",
    "is_expression",
    "is_same",
    "names",
    "reads_as_given",
    "stored_field",
    "version_named",
]

Field: TypeAlias = "models.Field[Any, Any]"

#: Column types whose equality in SQL is equality in Python, on every database.
_COMPARABLE = frozenset(
    {
        "AutoField", "BigAutoField", "BigIntegerField", "BooleanField", "DateField", "DateTimeField", "DurationField",
        "IntegerField", "PositiveBigIntegerField", "PositiveIntegerField", "PositiveSmallIntegerField", "SmallAutoField",
        "SmallIntegerField", "TimeField", "UUIDField",
    }
)  # fmt: skip
#: Those besides, by database: text where no collation folds it, numbers where they are kept exactly.
_COMPARABLE_ON = {
    "postgresql": frozenset({"CharField", "DecimalField", "FileField", "SlugField", "TextField"}),
    "sqlite": frozenset({"CharField", "FileField", "SlugField", "TextField"}),
    "mysql": frozenset({"DecimalField"}),
}


def check_model(model: Any, pk: Any) -> None:
    """Refuse what is no model and what is no primary key.

    Raises:
        TypeError, ValueError: One of them is not.
    """
    if not (isinstance(model, type) and issubclass(model, models.Model) and hasattr(model, "_meta")) or model._meta.abstract:
        raise TypeError(f"model must be a concrete model class, not {model!r}. Pass the class, and the row's key as pk.")
    if isinstance(pk, models.Model):
        raise TypeError(f"pk must be a primary key, not an instance of {pk._meta.label}. Pass instance.pk of a saved instance.")
    try:
        hash(pk)
    except TypeError:
        kind = type(pk).__name__
        raise TypeError(f"pk must be a primary key, not the {kind} {pk!r}. A key of several columns is a tuple.") from None
    if pk is None or (isinstance(pk, tuple) and None in pk):
        raise ValueError(f"pk must be the primary key of a stored row, not {pk!r}. Save the instance first.")


def stored_field(model: type[models.Model], name: Any, argument: str) -> Field:
    """Return the concrete field of that name (or of that column, as in "owner_id")."""
    meta = model._meta
    if name == "pk":
        name = meta.pk.name
    if isinstance(name, str) and (field := _by_name(model).get(name)):
        if getattr(field, "generated", False) and argument == "updates":
            raise ValueError(f"{argument} must name columns that can be written, not {name!r}, which the database generates.")
        return field
    known = ", ".join(sorted(field.name for field in meta.concrete_fields))
    if isinstance(name, str) and any(field.name == name for field in meta.get_fields()):
        raise ValueError(
            f"{argument} must name columns of {meta.label}, not {name!r}, which lives elsewhere. Use one of {known}."
        )
    raise FieldDoesNotExist(f"{argument} must name fields of {meta.label}, not {name!r}. Use one of {known}.")


@lru_cache(maxsize=500)
def _by_name(model: type[models.Model]) -> dict[str, Field]:
    return {key: field for field in model._meta.concrete_fields for key in (field.attname, field.name)}


def version_named(model: type[models.Model], name: str) -> Field:
    """Return the integer field of that name."""
    field = stored_field(model, name, "version_field")
    if not isinstance(field, models.IntegerField):
        message = f"version_field must name an integer field, not {name!r}. Use watch to compare fields of other types."
        raise ValueError(message)  # noqa: TRY004  # a wrong choice of a name, not a value of a wrong type
    return field


def names(watch: Iterable[str]) -> list[str]:
    """Return the names to watch, at least one."""
    given = [watch] if isinstance(watch, str) else list(watch)
    if not given:
        raise ValueError("watch must name at least one field, not []. Leave it out to compare the fields that are updated.")
    return given


def is_expression(value: Any) -> bool:
    """Tell whether the database computes the value."""
    return hasattr(value, "resolve_expression")


def is_exact(field: Field, vendor: str) -> bool:
    """Tell whether equality in SQL is equality in Python for this column."""
    target = getattr(field, "target_field", field)
    kind = target.get_internal_type()
    return kind in _COMPARABLE or (kind in _COMPARABLE_ON.get(vendor, ()) and not getattr(target, "db_collation", None))


def is_same(field: Field, one: models.Model, other: models.Model) -> bool:
    """Compare two readings of a field, telling 1 from True and 1.0 inside JSON, and holding NaN equal to itself."""
    first, second = field.value_from_object(one), field.value_from_object(other)
    if isinstance(field, models.JSONField):
        return json.dumps(first, sort_keys=True, cls=field.encoder) == json.dumps(second, sort_keys=True, cls=field.encoder)
    return bool(first == second) or (first != first and second != second)  # noqa: PLR0124  # only NaN differs from itself


def reads_as_given(model: type[models.Model], name: str, value: Any) -> bool:
    """Tell whether the database will give back exactly this object, so that asking is needless."""
    field = stored_field(model, name, "updates")
    kind = field.get_internal_type()
    if value is None or (kind == "BooleanField" and isinstance(value, bool)):
        return not isinstance(field, models.JSONField)
    if kind in {"CharField", "TextField"}:
        return type(value) is str and type(field) in {models.CharField, models.TextField} and bool(value)
    return type(value) is int and isinstance(field, models.IntegerField)
