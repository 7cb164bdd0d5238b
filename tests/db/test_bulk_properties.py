from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience.db.bulk import RowFault, safe_bulk_insert
from tests.length import shorter
from tests.testapp.models import Parent, Ware

pytestmark = pytest.mark.django_db

RECORDS = st.fixed_dictionaries(
    {
        "code": st.sampled_from(["a", "b", "c", "d", "old"]) | st.text(max_size=3),
        "name": st.sampled_from(["name", "x" * 51, None, "nul\0", "\ud800"]) | st.text(max_size=5),
        "quantity": st.sampled_from([0, 1, 7, -1, 1 << 70, "many", None]),
        "parent_id": st.sampled_from([None, 1, 1, 999]),
        "shelf": st.sampled_from([None, 1]),
        "place": st.sampled_from([None, 1, 2]),
    }
)


class Table:
    """What a table with these rules does with rows that come one after the other."""

    def __init__(self) -> None:
        self.codes = {"old"}
        self.places: set[tuple[int, int]] = set()

    def faults(self, record: dict[str, Any]) -> set[RowFault]:
        """Take a row in, or tell all that is wrong with it."""
        place = (record["shelf"], record["place"])
        wrong = {
            RowFault.TOO_LONG: len(record["name"] or "") > 50,
            RowFault.NOT_NULL: record["name"] is None or record["quantity"] is None,
            RowFault.CHECK: record["quantity"] == -1,
            RowFault.OUT_OF_RANGE: record["quantity"] == 1 << 70,
            RowFault.INVALID: record["quantity"] == "many" or not (is_text(record["code"]) and is_text(record["name"] or "")),
            RowFault.FOREIGN_KEY: record["parent_id"] == 999,
            RowFault.UNIQUE: record["code"] in self.codes or place in self.places,
        }
        found = {kind for kind, is_wrong in wrong.items() if is_wrong}
        if not found:
            self.codes.add(record["code"])
            if None not in place:
                self.places.add(place)
        return found


def is_text(value: str) -> bool:
    """Whether a database can store the text."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


@settings(max_examples=shorter(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=25), batch_size=st.integers(1, 30), is_inside=st.booleans())
def test_insert__does_what_inserts_one_by_one_would_do(records: list[Any], batch_size: int, is_inside: bool) -> None:
    """Every record is stored exactly once or reported exactly once, for a rule that it breaks."""
    Ware.objects.all().delete()
    Parent.objects.get_or_create(id=1, defaults={"name": "parent"})
    Ware.objects.create(code="old", name="old")
    table = Table()
    expected = [table.faults(record) for record in records]

    with transaction.atomic() if is_inside else nullcontext():
        stored, failed = safe_bulk_insert(Ware, records, batch_size=batch_size)

    assert [bad.index for bad in failed] == [index for index, kinds in enumerate(expected) if kinds]
    assert all(bad.kind in expected[bad.index] and bad.record is records[bad.index] for bad in failed)
    good = [record["code"] for record, kinds in zip(records, expected, strict=True) if not kinds]
    assert [ware.code for ware in stored] == good
    assert dict(Ware.objects.exclude(code="old").values_list("code", "pk")) == {ware.code: ware.pk for ware in stored}
