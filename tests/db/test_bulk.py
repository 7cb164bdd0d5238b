from __future__ import annotations

import uuid
from typing import Any, Self

import pytest
from django.core.exceptions import FieldDoesNotExist
from django.db import OperationalError, connection, models, transaction

from resilience import signals
from resilience.db.bulk import BadRow, RowFault, safe_bulk_insert
from tests.testapp.models import Account, Parent, SpecialWare, Stamp, Ware

pytestmark = pytest.mark.django_db


def ware(code: str, **fields: Any) -> dict[str, Any]:
    return {"code": code, "name": code, **fields}


def test_insert__stores_good_rows_and_reports_each_bad_one() -> None:
    """Every kind of bad row is reported with its place, its record, its kind and its rule; the others are stored."""
    parent = Parent.objects.create(name="parent")
    Ware.objects.create(code="old", name="old")
    records: list[Any] = [
        ware("a", parent=parent),
        ware("old"),
        ware("a"),
        ware("b", name=None),
        ware("c", quantity=-1),
        ware("d", name="d" * 51),
        ware("e", parent_id=parent.pk + 1000),
        ware("f", quantity="many"),
        ware("g", quantity=1 << 70),
        ware("h", price="1234567.89"),
        ware("i", name="nul\0"),
        {**ware("j"), "colour": "red"},
        42,
        Parent(name="another model"),
        ware("k", shelf=1, place=1),
        ware("l", shelf=1, place=1),
        Ware(code="m", name="m"),
    ]

    stored, failed = safe_bulk_insert(Ware, records)

    assert [instance.code for instance in stored] == ["a", "k", "m"]
    assert sorted(Ware.objects.values_list("code", flat=True)) == ["a", "k", "m", "old"]
    assert [(bad.index, bad.kind, bad.constraint) for bad in failed] == [
        (1, RowFault.UNIQUE, "testapp_ware.code"),
        (2, RowFault.UNIQUE, "testapp_ware.code"),
        (3, RowFault.NOT_NULL, "name"),
        (4, RowFault.CHECK, "ware_quantity_not_negative"),
        (5, RowFault.TOO_LONG, "name"),
        (6, RowFault.FOREIGN_KEY, "testapp_ware.parent_id"),
        (7, RowFault.INVALID, "quantity"),
        (8, RowFault.OUT_OF_RANGE, "quantity"),
        (9, RowFault.OUT_OF_RANGE, "price"),
        (10, RowFault.INVALID, "name"),
        (11, RowFault.INVALID, None),
        (12, RowFault.INVALID, None),
        (13, RowFault.INVALID, None),
        (15, RowFault.UNIQUE, "ware_place_taken"),
    ]
    assert all(bad.record is records[bad.index] and isinstance(bad.error, Exception) for bad in failed)


def test_insert__that_fails_while_it_looks_for_bad_rows_blames_none_of_them() -> None:
    """What is wrong with the database and not with a row comes out, and nothing of the batch is stored."""
    sent = 0

    def break_down(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal sent
        sent += sql.startswith("INSERT")
        if sql.startswith("INSERT") and sent > 1:
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    records = [{"code": code, "name": code, "quantity": -(code == "b")} for code in "abc"]
    with connection.execute_wrapper(break_down), pytest.raises(OperationalError, match="database is locked"):
        safe_bulk_insert(Ware, records)

    assert not Ware.objects.exists()


def test_insert__gives_back_instances_as_stored() -> None:
    """The instances have the keys and the times of their rows, and count as saved."""
    stored, failed = safe_bulk_insert(Ware, [ware("a"), Ware(code="b", name="b")])

    assert failed == []
    assert [instance.pk for instance in stored] == [Ware.objects.get(code=code).pk for code in "ab"]
    assert all(not instance._state.adding and instance._state.db == "default" for instance in stored)
    assert all(instance.added is not None for instance in stored)


def test_insert__leaves_a_bad_instance_unsaved() -> None:
    """A bad row's instance has no key and counts as new, so that it can be mended and saved."""
    bad = Ware(code="a", name="second")

    _, failed = safe_bulk_insert(Ware, [Ware(code="a", name="first"), bad])
    bad.code = "b"
    bad.save()

    assert failed[0].record is bad
    assert sorted(Ware.objects.values_list("code", flat=True)) == ["a", "b"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_insert__lets_the_first_of_two_equal_keys_win_in_any_batch(batch_size: int) -> None:
    """Who wins does not depend on where the batches end; a bad first row does not stand in the way."""
    records = [ware("a", parent_id=10**6), ware("a", quantity=1), ware("a", quantity=2), ware("b"), ware("b")]

    stored, failed = safe_bulk_insert(Ware, records, batch_size=batch_size)

    assert [(instance.code, instance.quantity) for instance in stored] == [("a", 1), ("b", 0)]
    assert [bad.index for bad in failed] == [0, 2, 4]


def test_insert__counts_when_objects_are_not_wanted() -> None:
    """Without objects the result holds their number."""
    result = safe_bulk_insert(Ware, (ware(str(number)) for number in range(25)), batch_size=10, return_objects=False)

    assert result.inserted == 25
    assert result.failed == []


def test_insert__reads_records_as_it_needs_them() -> None:
    """A generator is read one batch ahead of the table, not to its end."""
    seen: list[int] = []

    def records() -> Any:
        for number in range(5):
            seen.append(Ware.objects.count())
            yield ware(str(number))

    safe_bulk_insert(Ware, records(), batch_size=2)

    assert seen == [0, 0, 2, 2, 4]


def test_insert__of_nothing_stores_nothing() -> None:
    """Empty input is no error."""
    assert safe_bulk_insert(Ware, []) == ([], [])


def test_insert__keeps_the_callers_transaction_usable() -> None:
    """Bad rows do not break the transaction around the call, and its rollback takes the good ones back."""
    with pytest.raises(KeyError), transaction.atomic():  # the block is the subject
        Ware.objects.create(code="mine", name="mine")
        _, failed = safe_bulk_insert(Ware, [ware("mine"), ware("a"), ware("b", parent_id=10**6)])
        inside = sorted(Ware.objects.values_list("code", flat=True))
        raise KeyError

    assert inside == ["a", "mine"]
    assert [bad.index for bad in failed] == [0, 2]
    assert not Ware.objects.exists()


def test_insert__accepts_a_row_whose_parent_comes_later_in_the_batch() -> None:
    """A deferred key may point to a row further down; a child of a bad row is bad, its key's next owner is not."""
    first, second = uuid.uuid4(), uuid.uuid4()
    records = [
        {"number": 1, "after_id": first},
        {"number": 2, "id": first, "after_id": second},
        {"number": 3, "id": first},
        {"number": 4, "after_id": second},
    ]

    stored, failed = safe_bulk_insert(Stamp, records)

    assert [instance.number for instance in stored] == [1, 3]
    assert [(bad.index, bad.kind) for bad in failed] == [(1, RowFault.FOREIGN_KEY), (3, RowFault.FOREIGN_KEY)]


def test_insert__fills_in_what_the_database_computes() -> None:
    """Database defaults and generated columns are on the instances; mixed with given values too."""
    stored, _ = safe_bulk_insert(Stamp, [{"number": 1}, {"number": 2, "state": "used"}])

    assert [(instance.state, instance.doubled) for instance in stored] == [("new", 2), ("used", 4)]


def test_insert__handles_models_of_several_tables() -> None:
    """Rows of an inheriting model are stored in both tables or in none."""
    bad = SpecialWare(code="b", name="b", grade="too long")
    records = [{**ware("a"), "grade": "1"}, bad, {**ware("a"), "grade": "2"}]

    stored, failed = safe_bulk_insert(SpecialWare, records)

    assert [instance.grade for instance in stored] == ["1"]
    assert [bad.index for bad in failed] == [1, 2]
    assert bad.pk is None
    assert list(Ware.objects.values_list("code", flat=True)) == ["a"]


def test_insert__takes_expressions() -> None:
    """Values that the database computes go through Django's compiler."""
    upper = models.functions.Upper(models.Value("abc"))

    _, failed = safe_bulk_insert(Ware, [ware("a", name=upper), ware("b")])

    assert failed == []
    assert Ware.objects.get(code="a").name == "ABC"


def test_ignore__drops_rows_whose_key_is_taken_and_nothing_else() -> None:
    """Ignoring conflicts hides no other fault, as INSERT OR IGNORE would."""
    Ware.objects.create(code="old", name="old")

    stored, failed = safe_bulk_insert(Ware, [ware("old", name="new"), ware("a"), ware("b", quantity=-1)], on_conflict="ignore")

    assert [instance.code for instance in stored] == ["a"]
    assert [(bad.index, bad.kind) for bad in failed] == [(2, RowFault.CHECK)]
    assert Ware.objects.get(code="old").name == "old"


def test_update__overwrites_the_row_that_has_the_key() -> None:
    """An upsert reports its bad rows too."""
    Ware.objects.create(code="old", name="old", quantity=1)
    records = [ware("old", name="new", quantity=2), ware("a"), ware("b", quantity=-1)]

    stored, failed = safe_bulk_insert(
        Ware, records, on_conflict="update", unique_fields=["code"], update_fields=["name", "quantity"]
    )

    assert len(stored) == 2
    assert [(bad.index, bad.kind) for bad in failed] == [(2, RowFault.CHECK)]
    assert Ware.objects.get(code="old").name == "new"


def test_progress__is_told_after_each_batch() -> None:
    """The function gets what is done and, if the input knows its length, how much there is."""
    told: list[tuple[int, int | None]] = []

    safe_bulk_insert(Ware, [ware(str(number)) for number in range(5)], batch_size=2, progress=lambda *args: told.append(args))
    safe_bulk_insert(Account, iter([{"name": "a"}]), progress=lambda *args: told.append(args))

    assert told == [(2, 5), (4, 5), (5, 5), (1, None)]


def test_signal__tells_how_many_were_stored() -> None:
    """`bulk_inserted` carries counts and seconds."""
    received: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        received.append(arguments)

    signals.bulk_inserted.connect(receive)
    try:
        safe_bulk_insert(Ware, [ware("a"), ware("a")])
    finally:
        signals.bulk_inserted.disconnect(receive)

    assert [(told["model"], told["inserted"], told["failed"]) for told in received] == [("testapp.Ware", 1, 1)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "Ware"}, TypeError, "model must be a concrete model class, not 'Ware'"),
        ({"model": models.Model}, TypeError, "model must be a concrete model class"),
        ({"records": {"code": "a"}}, TypeError, "records must be an iterable of dicts or instances, not a dict"),
        ({"records": None}, TypeError, "records must be an iterable"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number from 1, not 0"),
        ({"batch_size": True}, ValueError, "batch_size must be a whole number from 1, not True"),
        ({"on_conflict": "replace"}, ValueError, "on_conflict must be"),
        ({"on_conflict": "update"}, ValueError, "unique_fields must name the key"),
        ({"update_fields": ["name"]}, ValueError, "update_fields must be left out, not \\['name'\\], unless on_conflict"),
        ({"unique_fields": ["code"], "on_conflict": "ignore"}, ValueError, "unique_fields must be left out"),
        (
            {"unique_fields": ["colour"], "on_conflict": "update"},
            FieldDoesNotExist,
            "unique_fields must name fields of testapp.Ware, not 'colour'",
        ),
        ({"progress": 5}, TypeError, "progress must be"),
    ],
)
def test_insert__refuses_wrong_arguments_before_anything_is_stored(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A wrong argument says what to do, and no row is stored."""
    with pytest.raises(error, match=message):
        safe_bulk_insert(**{"model": Ware, "records": [ware("a")], **arguments})

    assert not Ware.objects.exists()


def test_insert__refuses_an_unknown_alias() -> None:
    """Django's own error names the alias."""
    with pytest.raises(Exception, match="nowhere"):
        safe_bulk_insert(Ware, [ware("a")], using="nowhere")


def test_insert__sends_few_statements_for_few_bad_rows() -> None:
    """A thousand good rows are a handful of statements, and ten bad ones do not make them a thousand."""
    with CountedStatements() as clean:
        safe_bulk_insert(Ware, [ware(f"a{number}") for number in range(1000)])
    with CountedStatements() as dirty:
        safe_bulk_insert(Ware, [ware(f"b{number}", quantity=-(number % 100 == 50)) for number in range(1000)])

    # Django 5.2 sends SQLite at most 999 values at once, later versions many more.
    assert clean.count <= 20
    assert dirty.count <= 300
    assert Ware.objects.count() == 1990


def test_bad_row__can_be_told_from_its_parts() -> None:
    """The report of a row is plain data."""
    bad = BadRow(0, {"code": "a"}, ValueError("no"), RowFault.INVALID)

    assert (bad.index, bad.kind == "invalid", bad.constraint) == (0, True, None)


class CountedStatements:
    """Counts the statements of the default connection."""

    def __enter__(self) -> Self:
        self.count = 0
        self._wrapper = connection.execute_wrapper(self._counted)
        self._wrapper.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wrapper.__exit__(*exc_info)

    def _counted(self, execute: Any, *args: Any) -> Any:
        self.count += 1
        return execute(*args)
