"""safe_bulk_insert, every share of bad rows on every database; RESILIENCE_CHAOS=long makes it 50,000 rows."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from itertools import cycle

import pytest
from django.db import connections, transaction

from resilience.db.bulk import safe_bulk_insert
from tests.length import LONG
from tests.real.db_rows import KINDS, prepare, spoilt
from tests.testapp.models import Ware

pytestmark = pytest.mark.chaos

ROWS = 50_000 if LONG else 600


@pytest.fixture(params=["postgresql", "mariadb", "sqlite_file"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.mark.parametrize("bad", [0, 1, 37, ROWS // 100, ROWS // 10, ROWS], ids=["0", "1", "37", "1 %", "10 %", "100 %"])
@pytest.mark.parametrize("is_inside", [False, True], ids=["batches", "one transaction"])
def test_insert__tells_good_from_bad_exactly(alias: str, bad: int, is_inside: bool) -> None:
    """Whatever the share of bad rows: good ones are stored once, bad ones reported by index, kind and constraint."""
    prepare(alias)
    ways = cycle([kind for kind in KINDS if bad < ROWS or kind != "repeated"])
    kinds = {number * ROWS // bad: next(ways) for number in range(bad)}
    if bad < ROWS and kinds.pop(0, None):  # the first row has the key that others repeat
        kinds[ROWS - 1] = "check"
    records = [
        spoilt(number, kinds[number]) if number in kinds else {"code": f"c{number}", "name": "good", "parent_id": 1}
        for number in range(ROWS)
    ]

    with transaction.atomic(using=alias) if is_inside else nullcontext():
        stored, failed = safe_bulk_insert(Ware, iter(records), using=alias)

    assert {row.index: row.kind for row in failed} == {place: KINDS[kind] for place, kind in kinds.items()}
    assert len(failed) == bad
    assert all(row.constraint and row.record is records[row.index] for row in failed)
    assert [instance.code for instance in stored] == [f"c{number}" for number in range(ROWS) if number not in kinds]
    rows = Ware.objects.using(alias).exclude(code__startswith="taken").order_by("pk").values_list("code", "pk")
    assert sorted(rows) == sorted((instance.code, instance.pk) for instance in stored)


@pytest.mark.parametrize("alias", ["postgresql", "sqlite_file"], indirect=True)
def test_insert__of_a_generator_needs_little_memory(alias: str) -> None:
    """However many rows come, memory holds a few batches of them: below 200 MB for a million."""
    count = 1_000_000 if LONG else 30_000
    database = {key: str(value) if key == "NAME" else value for key, value in connections.databases[alias].items()}

    process = subprocess.run(
        [sys.executable, "-m", "tests.real.db_memory", json.dumps(database), str(count)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )

    told = json.loads(process.stdout)
    assert (told["stored"], told["failed"]) == (count - count // 10_000, count // 10_000)
    assert told["megabytes"] < (200 if LONG else 50)
