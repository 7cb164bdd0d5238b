"""Rows for bulk inserts, good ones and ones that are bad in one way."""

from __future__ import annotations

from typing import Any

from resilience.db.bulk import RowFault
from tests.testapp.models import Parent, Ware

KINDS = {
    "taken": RowFault.UNIQUE,
    "repeated": RowFault.UNIQUE,
    "null": RowFault.NOT_NULL,
    "check": RowFault.CHECK,
    "long": RowFault.TOO_LONG,
    "orphan": RowFault.FOREIGN_KEY,
    "value": RowFault.INVALID,
}


def spoilt(number: int, kind: str) -> dict[str, Any]:
    """Return a row that is bad in one way."""
    row: dict[str, Any] = {"code": f"c{number}", "name": "name", "parent_id": 1}
    changes: dict[str, dict[str, Any]] = {
        "taken": {"code": f"taken{number % 10}"},
        "repeated": {"code": "c0"},
        "null": {"name": None},
        "check": {"quantity": -1},
        "long": {"name": "x" * 51},
        "orphan": {"parent_id": 999},
        "value": {"quantity": "many"},
    }
    return {**row, **changes[kind]}


def prepare(alias: str) -> None:
    """Store what the bad rows collide with."""
    Parent.objects.using(alias).create(id=1, name="parent")
    Ware.objects.using(alias).bulk_create([Ware(code=f"taken{number}", name="taken") for number in range(10)])
