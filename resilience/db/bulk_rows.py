"""The vocabulary of bulk inserts: a row on its way, what may be wrong with it, and how that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db import models
from django.db.models.expressions import DatabaseDefault

__all__ = ["BadRow", "Row", "RowFault", "RowFaultError", "is_default"]


class RowFault(StrEnum):
    """What is wrong with a row.

    Example:
        >>> RowFault.NOT_NULL == "not_null"
        True
    """

    UNIQUE = "unique"
    FOREIGN_KEY = "foreign_key"
    NOT_NULL = "not_null"
    CHECK = "check"
    EXCLUSION = "exclusion"
    TOO_LONG = "too_long"
    OUT_OF_RANGE = "out_of_range"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that was not stored, and why.

    Args:
        index: Its place in the input, from 0.
        record: The record as it was given.
        error: What Python or the database said.
        kind: The rule it breaks.
        constraint: The name of the constraint; where the database gives none, the column as "table.column", and
            for rules of one field (null, length, range, type) the field's name; None when nobody names it.

    Example:
        >>> BadRow(3, {"code": "A"}, ValueError("duplicate key"), RowFault.UNIQUE, "shop_item_code_key").index
        3
    """

    index: int
    record: Any
    error: Exception
    kind: RowFault
    constraint: str | None = None


class RowFaultError(Exception):
    """Carries what is wrong with a row from where it is seen to where it is reported."""

    def __init__(self, error: Exception, kind: RowFault, constraint: str | None = None) -> None:
        super().__init__(error, kind, constraint)
        self.error = error
        self.kind = kind
        self.constraint = constraint


class Row:
    """A record on its way into the table."""

    __slots__ = ("index", "instance", "key", "record", "returned", "values")

    def __init__(self, index: int, record: Any, instance: models.Model, values: tuple[Any, ...]) -> None:
        self.index = index
        self.record = record
        self.instance = instance
        self.values = values
        #: The primary key that the database gave, until the row is committed.
        self.key: Any = None
        #: The attributes that the instance gets when the row is committed, where Django computed them.
        self.returned: dict[str, Any] | None = None


def is_default(value: Any) -> bool:
    """Tell whether a value stands for the column's DEFAULT."""
    return isinstance(value, DatabaseDefault)
