from __future__ import annotations

import datetime as dt
import threading
from contextlib import suppress

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from resilience import clock, open_run, save_checkpoint
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs import leases
from resilience.runs.leases import DatabaseNow, Lease, take
from resilience.runs.models import Run
from resilience.runs.operations import give_back

QUEUED = ("queued",)


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.django_db(transaction=True)), "postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param != "default":
        request.getfixturevalue(request.param)
    return request.param


def taken(alias: str, **values: object) -> tuple[Run, Lease]:
    """A run that this process holds."""
    run = Run.objects.using(alias).create(key="a")
    found = take(run, alias, statuses=QUEUED, **values)
    assert found is not None
    return found


def test_take__only_one_gets_it(alias: str) -> None:
    """A run that is held cannot be taken."""
    row, lease = taken(alias)

    again = take(row, alias, statuses=QUEUED)

    assert again is None
    assert (row.status, row.fence, row.attempts, row.stalled_attempts) == ("running", 1, 1, 1)
    assert lease.fence == 1


def test_take__sets_the_end_on_the_database_clock(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is ten minutes off takes a lease that ends when all others think it does."""
    monkeypatch.setattr(clock, "time", lambda: 0.0)
    monkeypatch.setattr(timezone, "now", lambda: dt.datetime(2001, 1, 1, tzinfo=dt.UTC))

    row, _ = taken(alias, lease_seconds=90.0)

    rows = Run.objects.using(alias).filter(pk=row.pk)
    assert rows.filter(lease_expires_at__gt=DatabaseNow(80), lease_expires_at__lt=DatabaseNow(90.5)).exists()
    assert not rows.filter(lease_expires_at__lt=DatabaseNow()).exists()


def test_take__forgets_what_was_of_the_time_before_and_keeps_when_it_first_began(alias: str) -> None:
    """The sweeper's patience starts anew, a run in work has not ended, and people see since when it is worked on."""
    first = timezone.now() - dt.timedelta(days=2)
    run = Run.objects.using(alias).create(key="a", wakeups=5, started_at=first, finished_at=first, request="pause")

    found = take(run, alias, statuses=QUEUED)

    assert found is not None
    row = found[0]
    assert (row.wakeups, row.finished_at, row.request) == (0, None, "")
    assert row.started_at == first


def test_write__renews_the_whole_lease_and_is_a_sign_of_life(alias: str) -> None:
    """Whoever writes holds the run for as long again as the lease is."""
    row, lease = taken(alias, lease_seconds=90.0)
    rows = Run.objects.using(alias).filter(pk=row.pk)
    rows.update(lease_expires_at=DatabaseNow(1), heartbeat_at=DatabaseNow(-50))

    lease.write(message="here")

    assert rows.filter(lease_expires_at__gt=DatabaseNow(80), heartbeat_at__gt=DatabaseNow(-10), message="here").exists()


def test_database_now__is_utc_with_fractions(alias: str) -> None:
    """Leases of less than a second can be told apart, and the zone of the session does not matter."""
    run = Run.objects.using(alias).create(key="a")
    if alias != "default":
        with connections[alias].cursor() as cursor:
            cursor.execute("SET time_zone = '+05:00'" if alias == "mariadb" else "SET TIME ZONE 5")

    Run.objects.using(alias).filter(pk=run.pk).update(heartbeat_at=DatabaseNow(), progressed_at=DatabaseNow(0.25))
    connections[alias].close()

    run.refresh_from_db()

    assert run.heartbeat_at is not None
    assert abs(run.heartbeat_at - timezone.now()) < dt.timedelta(seconds=30)
    assert run.progressed_at - run.heartbeat_at == pytest.approx(dt.timedelta(seconds=0.25), abs=dt.timedelta(seconds=0.01))


def test_database_now__goes_on_within_a_transaction(alias: str) -> None:
    """A lease renewed at the end of a long transaction is counted from then, not from the transaction's beginning."""
    run = Run.objects.using(alias).create(key="a")
    rows = Run.objects.using(alias).filter(pk=run.pk)

    with transaction.atomic(using=alias):
        rows.update(heartbeat_at=DatabaseNow())
        clock.sleep(0.02)
        rows.update(progressed_at=DatabaseNow())

    run.refresh_from_db()
    assert run.heartbeat_at is not None
    assert run.progressed_at is not None
    assert run.progressed_at - run.heartbeat_at >= dt.timedelta(seconds=0.015)


def test_write__is_refused_to_whoever_lost_the_run(alias: str) -> None:
    """The fence stops a worker that was declared dead, and its transaction is rolled back."""
    row, lease = taken(alias)
    Run.objects.using(alias).filter(pk=row.pk).update(status="queued")
    second = take(row, alias, statuses=QUEUED)

    with pytest.raises(RunInterrupted) as caught, lease.transaction(message="mine"):
        pytest.fail("the body must not run")

    assert caught.value.reason == "lease_lost"
    assert lease.is_lost
    assert second is not None
    row.refresh_from_db()
    assert (row.fence, row.message) == (2, "")
    assert not give_back(lease, "finished")


def test_transaction__rolls_back_with_its_values(alias: str) -> None:
    """What is stored with a checkpoint is stored together with it, or not at all."""
    row, lease = taken(alias)

    with pytest.raises(ZeroDivisionError), lease.transaction(step=7):
        _ = 1 / 0

    row.refresh_from_db()
    assert row.step is None


def test_transaction__cut_off_by_system_exit_discards_the_connection(alias: str) -> None:
    """After SystemExit in the middle of a commit the connection is not trusted again."""
    if alias == "default":
        pytest.skip("a SQLite database in memory lives in its connection; the other databases show it")
    row, lease = taken(alias)
    before = connections[alias].connection

    with pytest.raises(SystemExit), lease.transaction(step=7):
        raise SystemExit(-241)

    row.refresh_from_db()
    assert row.step is None
    assert connections[alias].connection is not before


def test_beat__reads_what_people_ask_for(alias: str) -> None:
    """Each sign of life brings back whether to pause or to cancel."""
    row, lease = taken(alias)
    Run.objects.using(alias).filter(pk=row.pk).update(request="pause")

    lease.beat(lambda: False)
    asked = lease.request
    Run.objects.using(alias).filter(pk=row.pk).update(request="")
    lease.beat(lambda: False)

    assert (asked, lease.request) == ("pause", "")


def test_beat__writes_nothing_right_after_another_write(alias: str) -> None:
    """A loop that stores something each second pays for no signs of life besides; what people ask is still read."""
    _, lease = taken(alias)
    lease.write(message="here")

    with CaptureQueriesContext(connections[alias]) as queries:
        lease.beat(lambda: True)

    assert [query["sql"].split()[0] for query in queries] == ["SELECT"]


@pytest.mark.django_db
@pytest.mark.parametrize(("seconds", "interval"), [(6000.0, 2.0), (60.0, 2.0), (3.0, 1.0), (0.01, 0.02)])
def test_interval__is_a_third_of_a_short_lease_and_two_seconds_else(seconds: float, interval: float) -> None:
    """A request is seen soon, however long the lease; a short one is renewed in time."""
    _, lease = taken("default", lease_seconds=seconds)

    assert lease.interval == pytest.approx(interval)


def test_outlast_outages__repeats_until_the_database_is_back(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away for a moment costs a moment."""
    waits: list[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    failures = [OperationalError("away"), OperationalError("away")]

    def operation() -> str:
        if failures:
            raise failures.pop()
        return "done"

    result = leases.outlast_outages(operation, alias, 30)

    assert (result, waits) == ("done", [0.1, 0.2])


@pytest.mark.parametrize("interruption", [SoftTimeLimitExceeded(), SystemExit(1)])
def test_outlast_outages__is_interrupted_by_what_hides_behind_an_error(alias: str, interruption: BaseException) -> None:
    """A time limit in a statement surfaces as the driver's complaint about half an answer: it is no outage, and not waited for."""
    calls = []

    def operation() -> None:
        calls.append(1)
        try:
            try:
                raise interruption
            finally:
                raise OperationalError("the driver's")
        except OperationalError as error:
            raise OperationalError("sending query failed, another command is in progress") from error

    with pytest.raises(type(interruption)) as caught:
        leases.outlast_outages(operation, alias, 5)

    assert (caught.value, len(calls)) == (interruption, 1)


def test_outlast_outages__replaces_a_connection_that_broke(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that the server ended is not tried again and again: the next try has one of its own."""
    if alias == "default":
        pytest.skip("a SQLite database in memory lives in its connection; the other databases show it")
    waits: list[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    kill = "KILL CONNECTION_ID()" if alias == "mariadb" else "SELECT pg_terminate_backend(pg_backend_pid())"
    with suppress(DatabaseError), connections[alias].cursor() as cursor:
        cursor.execute(kill)

    count = leases.outlast_outages(Run.objects.using(alias).count, alias, 30)

    assert (count, waits) == (0, [0.1])


def test_outlast_outages__inside_a_transaction_does_not_try_again(alias: str) -> None:
    """What was done in the transaction is gone with it: only whoever began it can repeat it."""
    calls = []

    def operation() -> None:
        calls.append(1)
        raise OperationalError("away")

    with pytest.raises(OperationalError), transaction.atomic(using=alias):
        leases.outlast_outages(operation, alias, 5)

    assert len(calls) == 1


def test_outlast_outages__gives_up_at_its_limit(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays away is reported within the bound."""
    now = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def operation() -> None:
        raise OperationalError("away")

    with pytest.raises(OperationalError):
        leases.outlast_outages(operation, alias, 5)

    assert 2 < now[0] <= 5


def test_refuse_transaction__also_while_autocommit_is_off(alias: str) -> None:
    """Without autocommit a rollback of the user's would take a committed checkpoint back."""
    connection = connections[alias]
    connection.set_autocommit(False)
    try:
        with pytest.raises(CheckpointError, match="switch autocommit on"):
            save_checkpoint("a", {"w": 1}, using=alias)
    finally:
        connection.set_autocommit(True)

    assert not Run.objects.using(alias).exists()


@pytest.mark.django_db
def test_refuse_transaction__but_not_the_one_of_a_test_case() -> None:
    """Only transactions of the user's count."""
    leases.refuse_transaction("default", "run.checkpoint")

    with pytest.raises(CheckpointError, match=r"run\.checkpoint must be called outside transactions"), transaction.atomic():
        leases.refuse_transaction("default", "run.checkpoint")


def test_once__cut_off_while_another_worker_took_the_run_is_an_interruption(postgresql: str) -> None:
    """The database's error would be taken for one of the body's, and tried again by a worker that lost the run."""

    def lose() -> None:
        def take_over() -> None:
            Run.objects.using(postgresql).update(status="queued", fence=99)
            connections[postgresql].close()

        thread = threading.Thread(target=take_over)
        thread.start()
        thread.join()
        raise OperationalError("terminating connection due to idle-in-transaction timeout")

    with open_run("a", using=postgresql) as run, pytest.raises(RunInterrupted):
        run.once("invoice", lose)
