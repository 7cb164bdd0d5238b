from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.models.signals import pre_delete
from django.test.utils import CaptureQueriesContext

from resilience import open_run
from resilience.runs.leases import DatabaseNow, Lease, take
from resilience.runs.models import Checkpoint, Run
from resilience.runs.retention import Pruner
from resilience.testing import FakeClock


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param != "default":
        request.getfixturevalue(request.param)
    return request.param


def held(alias: str, key: str = "a") -> Lease:
    """The lease of a run that this process holds."""
    found = take(Run.objects.using(alias).create(key=key), alias, statuses=("queued",))
    assert found is not None
    return found[1]


def checkpoint(lease: Lease, number: int, **fields: Any) -> Checkpoint:
    """A checkpoint that is not stored yet."""
    small = {"format": "json", "size": 2, "sha256": "0" * 64, "data": b"{}"}
    return Checkpoint(run_id=lease.run_id, sequence=number, **small | fields)


def columns(row: Checkpoint) -> dict[str, Any]:
    """All that is stored of a checkpoint, apart from what differs between any two."""
    values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    values["data"] = None if row.data is None else bytes(row.data)
    return {name: value for name, value in values.items() if name not in {"id", "sequence", "created_at"}}


def numbers(lease: Lease) -> list[int]:
    rows = Checkpoint.objects.using(lease.using).filter(run=lease.run_id).order_by("sequence")
    return list(rows.values_list("sequence", flat=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"data": b"\x00\xff%s"},
        {"data": None, "tier": "file", "storage": "files", "name": "resilience/runs/1/a.zip", "size": 2**40},
        {"step": 2**40, "cursor": "7%", "metrics": {"loss": 0.1, "größe": None}, "fence": 3, "schema": 2},
        {"cursor": {"key": [1, None]}, "reason": 'it\'s "quoted"'},
    ],
    ids=["bytes", "file", "figures", "texts"],
)
def test_insert__stores_what_django_stores(alias: str, fields: dict[str, Any]) -> None:
    """The quick way leaves the same row as the ORM, also when the statement was built for another row."""
    lease = held(alias)
    lease.rows.insert(checkpoint(lease, 1))
    lease.rows.insert(checkpoint(lease, 2, **fields))
    checkpoint(lease, 3, **fields).save(using=alias)

    rows = Checkpoint.objects.using(alias)
    quick, plain = rows.get(run=lease.run_id, sequence=2), rows.get(run=lease.run_id, sequence=3)

    assert columns(quick) == columns(plain)
    assert abs((plain.created_at - quick.created_at).total_seconds()) < 60


def test_update__stores_values_and_expressions_in_any_company(alias: str) -> None:
    """The same columns with other values, other columns, and expressions among them each arrive where they belong."""
    lease = held(alias)
    rows = Run.objects.using(alias).filter(pk=lease.run_id)

    lease.rows.update({"step": 1, "progressed_at": DatabaseNow(), "message": "100 %s"})
    lease.rows.update({"step": 2, "progressed_at": DatabaseNow(), "message": "it's"})
    lease.rows.update({"message": "last", "rate": None})
    lease.rows.update({"started_at": None, "heartbeat_at": DatabaseNow()})
    lease.rows.update({"started_at": DatabaseNow(), "heartbeat_at": None})

    row = rows.get()
    assert (row.step, row.message, row.rate, row.heartbeat_at) == (2, "last", None, None)
    assert rows.filter(progressed_at__gt=DatabaseNow(-60), progressed_at__lte=DatabaseNow()).exists()
    assert rows.filter(started_at__gt=DatabaseNow(-60), started_at__lte=DatabaseNow()).exists()


@pytest.mark.parametrize("change", [{"fence": 9}, {"status": "cancelled"}])
def test_update__changes_nothing_on_other_conditions(alias: str, change: dict[str, Any]) -> None:
    """A statement that was built while the run was ours is refused when it no longer is."""
    lease = held(alias)
    assert lease.rows.update({"step": 1})
    Run.objects.using(alias).filter(pk=lease.run_id).update(**change)

    assert not lease.rows.update({"step": 2})

    assert Run.objects.using(alias).get(pk=lease.run_id).step == 1


def test_delete__takes_sound_checkpoints_of_its_run_only(alias: str) -> None:
    """Neither another run's nor a quarantined one, whatever the numbers say."""
    mine, other = held(alias, "a"), held(alias, "b")
    for number in (1, 2, 3):
        mine.rows.insert(checkpoint(mine, number))
        other.rows.insert(checkpoint(other, number))
    Checkpoint.objects.using(alias).filter(run=mine.run_id, sequence=2).update(status="quarantined")

    mine.rows.delete([1, 2])

    assert numbers(mine) == [2, 3]
    assert numbers(other) == [1, 2, 3]


def test_delete__names_at_most_some_hundred_rows_in_a_statement(alias: str) -> None:
    """Databases refuse statements with too many parameters; rules that are tightened late leave many to delete."""
    lease = held(alias)
    for number in (1, 700, 1201):
        lease.rows.insert(checkpoint(lease, number))

    with CaptureQueriesContext(connections[alias]) as queries:
        lease.rows.delete(range(1, 1201))

    assert numbers(lease) == [1201]
    assert len(queries) == 3


def test_delete__leaves_it_to_django_where_others_refer_to_checkpoints(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a foreign key of somebody's model to checkpoints, Django's rules for such rows and its signals hold."""
    lease = held(alias)
    lease.rows.insert(checkpoint(lease, 1))
    monkeypatch.setitem(Checkpoint._meta.__dict__, "related_objects", (object(),))
    deleted: list[int] = []

    def note(instance: Checkpoint, **kwargs: object) -> None:
        deleted.append(instance.sequence)

    pre_delete.connect(note, sender=Checkpoint)
    try:
        lease.rows.delete([1])
    finally:
        pre_delete.disconnect(note, sender=Checkpoint)

    assert deleted == [1]
    assert numbers(lease) == []


def test_statement__that_fails_breaks_the_transaction_around_it(alias: str) -> None:
    """Inside somebody's `atomic` a swallowed error does not let the rest be committed."""
    lease = held(alias)
    lease.rows.insert(checkpoint(lease, 1))

    with transaction.atomic(using=alias):
        with pytest.raises(DatabaseError):
            lease.rows.insert(checkpoint(lease, 1))
        assert connections[alias].needs_rollback


def test_checkpoint__takes_three_statements(alias: str) -> None:
    """Each later checkpoint of a run updates the run, inserts a row and deletes one, and asks nothing."""
    with open_run("a", using=alias, keep_last=2) as run:
        for step in run.steps(10):
            with CaptureQueriesContext(connections[alias]) as queries:
                run.checkpoint(step)
            if step >= 5:
                statements = [
                    query["sql"]
                    for query in queries.captured_queries
                    if "resilience_run" in query["sql"] or "resilience_checkpoint" in query["sql"]
                ]
                words = [sql.split()[0] for sql in statements]
                assert words == ["UPDATE", "INSERT", "DELETE"]


def test_checkpoints__are_counted_anew_after_a_failed_commit(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken for deleted and was rolled back is deleted in the end."""
    prune, fails = Pruner.prune, iter([False, False, False, True])

    def prune_and_fail(self: Pruner, newest: Checkpoint | None = None) -> int:
        count = prune(self, newest)
        if next(fails, False):
            raise OperationalError("the server closed the connection unexpectedly")
        return count

    monkeypatch.setattr(Pruner, "prune", prune_and_fail)
    with open_run("a", using=alias, keep_last=2) as run:
        for step in run.steps(6):
            run.checkpoint(step)

    rows = Checkpoint.objects.using(alias).filter(run__key="a").order_by("sequence")
    assert list(rows.values_list("step", flat=True)) == [4, 5]


def test_checkpoints__are_counted_anew_after_a_commit_that_gave_no_answer(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was committed without our being told is deleted in its turn."""
    prune, attempt, lost = Pruner.prune, Lease.transaction, iter([False, False, True])
    cut: list[bool] = []

    def prune_and_forget(self: Pruner, newest: Checkpoint | None = None) -> int:
        count = prune(self, newest)
        if next(lost, False):
            connections[alias].run_on_commit.clear()
            cut.append(True)
        return count

    @contextmanager
    def transaction_without_answer(self: Lease, **values: Any) -> Iterator[None]:
        with attempt(self, **values):
            yield
        if cut:
            cut.clear()
            raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(Pruner, "prune", prune_and_forget)
    monkeypatch.setattr(Lease, "transaction", transaction_without_answer)
    with open_run("a", using=alias, keep_last=2) as run:
        for step in run.steps(6):
            run.checkpoint(step)

    rows = Checkpoint.objects.using(alias).filter(run__key="a").order_by("sequence")
    assert list(rows.values_list("step", flat=True)) == [4, 5]


def test_checkpoints__quarantined_from_outside_count_for_nothing_within_a_minute(alias: str, fake_clock: FakeClock) -> None:
    """Somebody loads a damaged one while the run goes on: soon as many sound ones are kept as were asked for."""
    with open_run("a", using=alias, keep_last=2, lease=1e6) as run:
        for step in run.steps(5):
            run.checkpoint(step)
            if step == 3:
                Checkpoint.objects.using(alias).filter(run__key="a", step=3).update(status="quarantined")
                fake_clock.advance(61)

    rows = Checkpoint.objects.using(alias).filter(run__key="a").order_by("sequence")
    assert list(rows.values_list("step", "status")) == [(2, "good"), (3, "quarantined"), (4, "good")]
