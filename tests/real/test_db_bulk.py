"""safe_bulk_insert on real servers: bad rows of every kind, faults in the middle, and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.db import OperationalError, connections, models, transaction
from django.test.utils import isolate_apps

from resilience.db.bulk import RowFault, safe_bulk_insert
from tests.real.db_rows import prepare, spoilt
from tests.testapp.models import Account, DatabaseSlot, Sheet, SpecialWare, Stamp, Ware


@pytest.fixture(params=["postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each server in turn."""
    return str(request.getfixturevalue(request.param))


def test_insert__names_the_constraint_as_the_database_does(alias: str) -> None:
    """Constraints are reported by the name that is in the catalogue."""
    prepare(alias)
    records = [
        spoilt(1, "taken"),
        spoilt(2, "check"),
        spoilt(3, "orphan"),
        {"code": "a", "name": "a", "shelf": 1, "place": 1},
        {"code": "b", "name": "b", "shelf": 1, "place": 1},
    ]

    _, failed = safe_bulk_insert(Ware, records, using=alias)

    with connections[alias].cursor() as cursor:
        names = connections[alias].introspection.get_constraints(cursor, Ware._meta.db_table)
    assert [row.index for row in failed] == [0, 1, 2, 4]
    assert {row.constraint for row in failed} <= {*names, "ware_quantity_not_negative"}


def test_insert__on_mariadb_holds_keys_equal_as_its_collation_does(mariadb: str) -> None:
    """The database alone judges what is a duplicate: of "a" and "A" the first one wins."""
    stored, failed = safe_bulk_insert(Ware, [{"code": code, "name": code} for code in ("a", "b", "A", "c")], using=mariadb)

    assert [instance.code for instance in stored] == ["a", "b", "c"]
    assert [(row.index, row.kind) for row in failed] == [(2, RowFault.UNIQUE)]


@isolate_apps("tests.testapp")
def test_insert__on_mariadb_finds_a_parent_as_its_collation_does(mariadb: str) -> None:
    """A text key in other letters is no orphan for the database, so it is stored beside one that is."""

    class Label(models.Model):
        ware = models.ForeignKey(Ware, models.CASCADE, to_field="code", related_name="+")

        class Meta:
            app_label = "testapp"

    Ware.objects.using(mariadb).create(code="abc", name="parent")
    with connections[mariadb].schema_editor() as editor:
        editor.create_model(Label)
    try:
        stored, failed = safe_bulk_insert(Label, [{"ware_id": code} for code in ("ABC", "none", "abc")], using=mariadb)
    finally:
        with connections[mariadb].schema_editor() as editor:
            editor.delete_model(Label)

    assert [instance.ware_id for instance in stored] == ["ABC", "abc"]
    assert [(row.index, row.kind) for row in failed] == [(1, RowFault.FOREIGN_KEY)]


@pytest.fixture(params=["postgresql", "mariadb", "sqlite_file"])
def any_alias(request: pytest.FixtureRequest, django_db_blocker: Any) -> Iterator[str]:
    """Each database in turn."""
    with django_db_blocker.unblock():
        yield str(request.getfixturevalue(request.param))


def test_insert__that_counts_gives_no_instance_the_key_of_another(any_alias: str) -> None:
    """With return_objects=False keys that were given stay, and those that were drawn stay unknown; no driver's guess gets in."""
    given = [Ware(pk=5, code="a", name="a"), Ware(pk=9, code="b", name="b")]
    drawn = [Ware(code=code, name=code) for code in ("c", "d", "e")]

    safe_bulk_insert(Ware, given, using=any_alias, return_objects=False)
    safe_bulk_insert(Ware, drawn, using=any_alias, return_objects=False)

    assert [row.pk for row in given] == [5, 9]
    assert [row.pk for row in drawn] == [None, None, None]
    assert Ware.objects.using(any_alias).count() == 5


def test_insert__of_keys_given_and_drawn_in_one_batch_tells_them_apart(any_alias: str) -> None:
    """Each instance has the key of its own row."""
    rows = [Ware(code="a", name="a"), Ware(pk=50, code="b", name="b"), Ware(code="c", name="c")]

    stored, _ = safe_bulk_insert(Ware, rows, using=any_alias)

    assert {row.pk: row.code for row in stored} == dict(Ware.objects.using(any_alias).values_list("pk", "code"))


def test_insert__refuses_a_key_that_mariadb_would_take_for_none(mariadb: str) -> None:
    """Key 0 would be stored as some other number: it is a bad row, as in Django."""
    stored, failed = safe_bulk_insert(Ware, [{"pk": 0, "code": "a", "name": "a"}, {"code": "b", "name": "b"}], using=mariadb)

    assert [(row.index, row.kind, row.constraint) for row in failed] == [(0, RowFault.INVALID, "id")]
    assert [row.code for row in stored] == ["b"]


@pytest.mark.parametrize("is_inside", [False, True])
def test_insert__isolates_values_that_cannot_even_be_sent(any_alias: str, is_inside: bool) -> None:
    """What the driver or the encoder chokes on is a fault of its row; what would be stored as something else is one too."""
    nan = float("nan")
    records: list[Any] = [
        {"text": "a"},
        {"data": object()},
        {"text": "b"},
        {"data": {"a": {1, 2}}},
        {"ratio": nan},
        {"text": "c"},
    ]

    with transaction.atomic(using=any_alias) if is_inside else nullcontext():
        stored, failed = safe_bulk_insert(Sheet, records, using=any_alias)

    keeps_nan = connections[any_alias].vendor == "postgresql"
    assert [row.index for row in failed] == ([1, 3] if keeps_nan else [1, 3, 4])
    assert {row.kind for row in failed} <= {RowFault.INVALID, RowFault.OUT_OF_RANGE}
    texts = ["a", "b", None, "c"] if keeps_nan else ["a", "b", "c"]
    assert [row.text for row in stored] == texts
    assert list(Sheet.objects.using(any_alias).order_by("pk").values_list("text", flat=True)) == texts


def test_insert__of_other_models(alias: str) -> None:
    """Defaults and generated columns of the database, keys made by Python, and models of several tables."""
    stamps = safe_bulk_insert(Stamp, [{"number": 1}, {"number": 1}, {"number": 2, "state": "used"}], using=alias)
    special = safe_bulk_insert(
        SpecialWare, [{"code": "a", "name": "a", "grade": "1"}, {"code": "a", "name": "a", "grade": "1"}], using=alias
    )

    assert [(stamp.number, stamp.state) for stamp in Stamp.objects.using(alias).order_by("number")] == [(1, "new"), (2, "used")]
    assert [row.index for row in stamps.failed] == [1]
    assert [row.index for row in special.failed] == [1]
    assert SpecialWare.objects.using(alias).count() == 1


def test_insert__leaves_few_savepoints_in_the_callers_transaction(postgresql: str) -> None:
    """However many batches and bad rows: below the 64 subtransactions that PostgreSQL keeps at hand."""
    prepare(postgresql)
    live: list[str] = []
    most = 0

    def count(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal most
        if sql.startswith("SAVEPOINT"):
            live.append(sql.split()[1])
        elif sql.startswith("ROLLBACK TO"):
            del live[live.index(sql.rsplit(maxsplit=1)[-1]) :]
        most = max(most, len(live))
        return execute(sql, *args)

    rows = (spoilt(number, "check") if number % 7 == 3 else {"code": f"c{number}", "name": "good"} for number in range(6000))
    with transaction.atomic(using=postgresql), connections[postgresql].execute_wrapper(count):
        result = safe_bulk_insert(Ware, rows, using=postgresql, batch_size=50, return_objects=False)

    assert most <= 100
    assert len(live) <= 60
    assert result.inserted + len(result.failed) == 6000


class TerminateOnce:
    """Ends the connection's own backend in the middle of its n-th insert."""

    def __init__(self, alias: str, at: int) -> None:
        self.alias = alias
        self.at = at
        self.seen = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith(("COPY", "INSERT")):
            self.seen += 1
            if self.seen == self.at:
                self.terminate(connections[self.alias])
        return result

    def terminate(self, connection: Any) -> None:
        """Kill the session from another one."""
        other = connection.copy()
        try:
            with other.cursor() as cursor:
                if connection.vendor == "postgresql":
                    cursor.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
                else:
                    cursor.execute(f"KILL {connection.connection.thread_id()}")
        finally:
            other.close()


@pytest.mark.parametrize("return_objects", [True, False])
def test_insert__stores_a_batch_again_as_a_whole_after_the_connection_died(alias: str, return_objects: bool) -> None:
    """Batches before the fault stay, the batch that met it is stored once, and nothing is doubled."""
    records = [{"code": f"c{number}", "name": "good"} for number in range(1000)]
    killer = TerminateOnce(alias, at=7)

    with connections[alias].execute_wrapper(killer):
        result = safe_bulk_insert(Ware, records, using=alias, batch_size=100, return_objects=return_objects)

    assert killer.seen > 10
    assert result.failed == []
    assert sorted(Ware.objects.using(alias).values_list("code", flat=True)) == sorted(record["code"] for record in records)
    if return_objects:
        pks = dict(Ware.objects.using(alias).values_list("code", "pk"))
        assert [instance.pk for instance in result.inserted] == [pks[record["code"]] for record in records]


def test_insert__bad_rows_and_a_dying_connection_at_once(alias: str) -> None:
    """The search for bad rows begins anew on a new connection."""
    prepare(alias)
    records = [spoilt(number, "check") if number % 50 == 7 else {"code": f"c{number}", "name": "good"} for number in range(400)]

    with connections[alias].execute_wrapper(TerminateOnce(alias, at=5)):
        result = safe_bulk_insert(Ware, records, using=alias, batch_size=200)

    assert [row.index for row in result.failed] == [number for number in range(400) if number % 50 == 7]
    assert Counter(Ware.objects.using(alias).exclude(code__startswith="taken").values_list("code", flat=True)) == Counter(
        record["code"] for number, record in enumerate(records) if number % 50 != 7
    )


def test_ignore__is_exact_on_real_servers(alias: str) -> None:
    """INSERT IGNORE would store a truncated name here; a taken key is left out and the fault is reported."""
    prepare(alias)

    stored, failed = safe_bulk_insert(
        Ware, [spoilt(1, "taken"), spoilt(2, "check"), {"code": "a", "name": "a"}], using=alias, on_conflict="ignore"
    )

    assert [instance.code for instance in stored] == ["a"]
    assert [(row.index, row.kind) for row in failed] == [(1, RowFault.CHECK)]


def test_update__overwrites_on_real_servers(alias: str) -> None:
    """An upsert with a bad row in it; equal keys in the input are applied one after the other."""
    prepare(alias)
    target = {"unique_fields": ["code"]} if alias == "postgresql" else {}
    records = [{"code": "taken1", "name": "once"}, {"code": "taken1", "name": "twice"}, spoilt(2, "check")]

    _, failed = safe_bulk_insert(Ware, records, using=alias, on_conflict="update", update_fields=["name"], **target)

    assert [row.index for row in failed] == [2]
    assert Ware.objects.using(alias).get(code="taken1").name == "twice"
    assert Ware.objects.using(alias).count() == 10


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("return_objects", [True, False])
def test_commit__that_was_lost_on_the_way_is_looked_up(
    alias: str, monkeypatch: pytest.MonkeyPatch, arrived: bool, return_objects: bool
) -> None:
    """Whether the lost COMMIT arrived or not, each row is stored once."""
    connection: Any = connections[alias]
    real, lost = connection._commit, []

    def commit() -> None:
        if lost:
            real()
            return
        lost.append(1)
        if arrived:
            real()
        cut(connection)

    connection.ensure_connection()
    monkeypatch.setattr(connection, "_commit", commit)
    records = [{"code": f"c{number}", "name": "good"} for number in range(300)]

    result = safe_bulk_insert(Ware, records, using=alias, batch_size=100, return_objects=return_objects)

    assert lost == [1]
    assert result.failed == []
    assert sorted(Ware.objects.using(alias).values_list("code", flat=True)) == sorted(record["code"] for record in records)


def cut(connection: Any) -> None:
    """Lose the connection as a network does, and say what the driver says then."""
    if connection.vendor == "postgresql":
        connection.connection.close()
        raise OperationalError("server closed the connection unexpectedly")
    connection.connection._force_close()
    raise OperationalError(2013, "Lost connection to MySQL server during query")


@contextmanager
def changed(alias: str, *statements: str, back: tuple[str, ...]) -> Iterator[None]:
    """Change the schema for a test."""
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    try:
        yield
    finally:
        with connections[alias].cursor() as cursor:
            for statement in back:
                cursor.execute(statement)


def test_insert__reports_the_rows_that_a_trigger_refuses(alias: str) -> None:
    """A rule in a trigger is a rule of the row: the others are stored."""
    body = "IF NEW.name = 'bad' THEN {} END IF;"
    raising = body.format("RAISE 'refused';")
    statements = {
        "postgresql": (
            f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raising} RETURN NEW; END $$",
            "CREATE TRIGGER refusing BEFORE INSERT ON testapp_account FOR EACH ROW EXECUTE FUNCTION refuse()",
        ),
        "mariadb": (
            "CREATE TRIGGER refusing BEFORE INSERT ON testapp_account FOR EACH ROW "
            + body.format("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused';"),
        ),
    }[alias]
    back = {"postgresql": ("DROP FUNCTION refuse() CASCADE",), "mariadb": ("DROP TRIGGER refusing",)}[alias]

    with changed(alias, *statements, back=back):
        stored, failed = safe_bulk_insert(Account, [{"name": name} for name in ("a", "bad", "b")], using=alias)

    assert [account.name for account in stored] == ["a", "b"]
    assert [(row.index, row.kind) for row in failed] == [(1, RowFault.CHECK)]
    assert "refused" in str(failed[0].error)


def test_insert__takes_inserts_where_row_level_security_forbids_copy(postgresql: str) -> None:
    """A row that a policy refuses is reported, a parent that a policy hides is no missing parent."""
    prepare(postgresql)
    statements = (
        "CREATE ROLE tenant",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO tenant",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO tenant",
        "ALTER TABLE testapp_ware ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY few ON testapp_ware USING (true) WITH CHECK (quantity < 10)",
        "ALTER TABLE testapp_parent ENABLE ROW LEVEL SECURITY",
        "SET ROLE tenant",
    )
    back = (
        "RESET ROLE",
        "DROP POLICY few ON testapp_ware",
        "ALTER TABLE testapp_ware DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE testapp_parent DISABLE ROW LEVEL SECURITY",
        "DROP OWNED BY tenant",
        "DROP ROLE tenant",
    )
    records = [
        {"code": "a", "name": "a", "parent_id": 1},
        {"code": "b", "name": "b", "quantity": 11},
        {"code": "c", "name": "c", "parent_id": 999},
        {"code": "d", "name": "d"},
    ]

    with changed(postgresql, *statements, back=back):
        stored, failed = safe_bulk_insert(Ware, records, using=postgresql)

    assert [ware.code for ware in stored] == ["a", "d"]
    assert [(row.index, row.kind) for row in failed] == [(1, RowFault.CHECK), (2, RowFault.FOREIGN_KEY)]


@pytest.mark.parametrize("is_inside", [False, True])
def test_insert__judges_constraints_that_only_postgresql_has(postgresql: str, is_inside: bool) -> None:
    """Deferred, partial and exclusion constraints, by the row that breaks them."""
    statements = (
        "CREATE EXTENSION IF NOT EXISTS btree_gist",
        "ALTER TABLE testapp_ware ADD CONSTRAINT late UNIQUE (name) DEFERRABLE INITIALLY DEFERRED",
        "CREATE UNIQUE INDEX partial ON testapp_ware (shelf) WHERE quantity = 5",
        "ALTER TABLE testapp_ware ADD CONSTRAINT apart EXCLUDE USING gist (int4range(place, place + 10) WITH &&)",
    )
    back = ("ALTER TABLE testapp_ware DROP CONSTRAINT late, DROP CONSTRAINT apart", "DROP INDEX partial")
    records = [
        {"code": "a", "name": "a", "shelf": 1, "place": 0, "quantity": 5},
        {"code": "b", "name": "a", "shelf": 2, "place": 10},
        {"code": "c", "name": "c", "shelf": 1, "place": 20, "quantity": 5},
        {"code": "d", "name": "d", "shelf": 1, "place": 5},
        {"code": "e", "name": "e", "shelf": 1, "place": 30},
    ]

    with changed(postgresql, *statements, back=back), transaction.atomic(using=postgresql) if is_inside else nullcontext():
        stored, failed = safe_bulk_insert(Ware, records, using=postgresql)

    assert [ware.code for ware in stored] == ["a", "e"]
    assert [(row.index, row.kind, row.constraint) for row in failed] == [
        (1, RowFault.UNIQUE, "late"),
        (2, RowFault.UNIQUE, "partial"),
        (3, RowFault.EXCLUSION, "apart"),
    ]


def test_insert__of_composite_keys(alias: str) -> None:
    """A key of two columns is a key."""
    records = [{"shelf": 1, "place": place} for place in (1, 2, 1, 3)]

    stored, failed = safe_bulk_insert(DatabaseSlot, records, using=alias)

    assert [slot.pk for slot in stored] == [(1, 1), (1, 2), (1, 3)]
    assert [(row.index, row.kind) for row in failed] == [(2, RowFault.UNIQUE)]
    assert DatabaseSlot.objects.using(alias).count() == 3


def test_insert__cuts_batches_that_the_server_would_not_take(mariadb: str) -> None:
    """20 MB in one batch are more than max_allowed_packet; all rows are stored all the same, and the bad one is found."""
    records = [{"body": "x" * 20_000, "number": number if number != 700 else 1 << 40} for number in range(1000)]

    result = safe_bulk_insert(Sheet, records, using=mariadb, return_objects=False)

    assert (result.inserted, [row.index for row in result.failed]) == (999, [700])
    assert Sheet.objects.using(mariadb).count() == 999
