from __future__ import annotations

import json
import threading
from io import StringIO
from typing import Any

import pytest
from celery import Celery
from django.core.management import call_command
from django.db import DataError, OperationalError, connections

from resilience import signals
from resilience.exceptions import RunStateError
from resilience.runs import sweeps, wakeups
from resilience.runs.leases import DatabaseNow, take
from resilience.runs.models import Run
from resilience.runs.sweeps import sweep
from resilience.tasks import sweep_runs
from tests.factories import RunFactory


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the runs that a message was published for."""
    keys: list[str] = []
    glue = type("Glue", (), {"publish": staticmethod(lambda run, delay=0.0: keys.append(run.key))})
    monkeypatch.setattr(wakeups, "import_module", lambda name: glue)
    return keys


def lost_run(using: str = "default", key: str = "a", **values: Any) -> Run:
    """A run whose worker is gone."""
    run = Run.objects.using(using).create(key=key, task="tests.task")
    assert take(run, using, statuses=("queued",)) is not None
    Run.objects.using(using).filter(pk=run.pk).update(**{"lease_expires_at": DatabaseNow(-1)} | values)
    return run


@pytest.mark.django_db
def test_sweep__takes_a_lost_run_and_wakes_it_once(sent: list[str]) -> None:
    """A run whose lease is over is queued again, with a note, and gets one message."""
    run = lost_run()

    first, second = sweep("default"), sweep("default")

    run.refresh_from_db()
    assert (first.reclaimed, first.woken, second.reclaimed, second.woken) == (("a",), ("a",), (), ())
    assert sent == ["a"]
    assert (run.status, run.stalled_attempts, run.wakeups) == ("queued", 1, 1)
    assert "lease expired" in run.last_error


@pytest.mark.django_db
def test_sweep__never_touches_live_runs(sent: list[str]) -> None:
    """A run with a lease, however old, is left alone; so are those that wait for a person."""
    run = RunFactory(key="live", task="tests.task")
    take(run, "default", statuses=("queued",))
    Run.objects.filter(pk=run.pk).update(started_at="2001-01-01T00:00Z", progressed_at="2001-01-01T00:00Z")
    for status in ("paused", "finished", "failed", "cancelled"):
        RunFactory(key=status, task="tests.task", status=status, lease_expires_at="2001-01-01T00:00Z")

    result = sweep("default")

    assert result == sweeps.SweepResult()
    assert sent == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"request": "cancel"}, "cancelled"),
        ({"request": "pause"}, "paused"),
        ({"stalled_attempts": 3}, "failed"),
        ({"stalled_attempts": 30, "max_stalled_attempts": None}, "queued"),
    ],
)
def test_sweep__does_what_the_lost_worker_was_asked(sent: list[str], values: dict[str, Any], status: str) -> None:
    """Cancel and pause reach a run whose worker died; too many attempts without progress end it."""
    run = lost_run(**values)

    sweep("default")

    run.refresh_from_db()
    assert (run.status, run.request) == (status, "")
    assert sent == (["a"] if status == "queued" else [])


@pytest.mark.django_db
def test_sweep__finds_messages_that_were_lost_with_growing_patience(sent: list[str]) -> None:
    """A queued run whose message did not arrive gets another one, each after twice the time."""
    run = RunFactory(key="a", task="tests.task")
    woken = []

    for age in (61, 61, 121, 121, 241):
        Run.objects.update(woken_at=DatabaseNow(-age))
        woken.append(len(sweep("default").woken))

    run.refresh_from_db()
    assert woken == [1, 1, 1, 0, 1]
    assert run.wakeups == 4


@pytest.mark.django_db
def test_sweep__patient_runs_take_no_place_of_those_that_are_due(sent: list[str]) -> None:
    """Runs that got many messages wait longer, and do not fill the limit meanwhile."""
    for number in range(3):
        RunFactory(key=f"patient{number}", task="tests.task", wakeups=4, woken_at=DatabaseNow(-200))
    for number in range(1, 9):
        RunFactory(key=f"due{number}", task="tests.task", wakeups=number, woken_at=DatabaseNow(-60 * 2 ** min(number - 1, 6) - 1))

    woken = [key for _ in range(4) for key in sweep("default", limit=2).woken]

    assert sorted(woken) == [f"due{number}" for number in range(1, 9)]


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_sweep__those_that_never_got_a_message_come_first(server: str, request: pytest.FixtureRequest, sent: list[str]) -> None:
    """On every database a run whose first message was lost does not wait behind all others."""
    alias = request.getfixturevalue(server)
    for number in range(3):
        Run.objects.using(alias).create(key=f"again{number}", task="tests.task", wakeups=1, woken_at=DatabaseNow(-100 - number))
    Run.objects.using(alias).create(key="first", task="tests.task", queued_at=DatabaseNow(-50))

    result = sweep(alias, limit=2)

    assert result.woken == ("first", "again2")


@pytest.mark.django_db
def test_sweep__gives_whoever_queued_a_run_time_to_publish(sent: list[str]) -> None:
    """A run queued this moment is not swept; one whose first message was never sent is."""
    RunFactory(key="new", task="tests.task", queued_at=DatabaseNow())
    RunFactory(key="old", task="tests.task", queued_at=DatabaseNow(-6))

    result = sweep("default")

    assert result.woken == ("old",)


@pytest.mark.django_db
def test_sweep__broker_down_leaves_the_run_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that cannot be sent is sent by a later sweep; nothing is stranded."""
    run = lost_run()

    def refuse(run: Run, delay: float = 0.0) -> None:
        raise ConnectionRefusedError("amqp://guest:secret@broker")

    monkeypatch.setattr(wakeups, "import_module", lambda name: type("Glue", (), {"publish": staticmethod(refuse)}))

    result = sweep("default")

    run.refresh_from_db()
    assert (result.failed, run.status, run.woken_at) == (("a",), "queued", None)


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_sweep__two_at_once_wake_each_run_once(server: str, request: pytest.FixtureRequest, sent: list[str]) -> None:
    """However many sweepers meet, each lost run is reclaimed and woken exactly once."""
    alias = request.getfixturevalue(server)
    for number in range(20):
        lost_run(alias, f"k{number}")
    barrier = threading.Barrier(4)
    results: list[sweeps.SweepResult] = []

    def work() -> None:
        barrier.wait(10)
        results.append(sweep(alias))
        connections[alias].close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(sent) == sorted(f"k{number}" for number in range(20))
    assert sum(len(result.reclaimed) for result in results) == 20


@pytest.mark.django_db
def test_sweep__a_run_that_is_deleted_meanwhile_holds_up_no_other(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and taking, a page or a cascade may delete runs: the others are taken all the same."""
    for key in "abc":
        lost_run(key=key)
    reclaim = sweeps.reclaim

    def deleting(run: Run, using: str) -> bool:
        Run.objects.filter(key="b").delete()
        return reclaim(run, using)

    monkeypatch.setattr(sweeps, "reclaim", deleting)

    result = sweep("default")

    assert result.reclaimed == ("a", "c")


@pytest.mark.django_db
def test_sweep__a_run_that_cannot_be_changed_holds_up_no_other(
    sent: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A row whose change fails is logged, and the others are taken."""
    for key in "abc":
        lost_run(key=key)
    reclaim = sweeps.reclaim

    def odd(run: Run, using: str) -> bool:
        if run.key == "b":
            raise DataError("unsupported Unicode escape sequence")
        return reclaim(run, using)

    monkeypatch.setattr(sweeps, "reclaim", odd)

    result = sweep("default")

    assert result.reclaimed == ("a", "c")
    assert [(record.message, vars(record)["key"]) for record in caplog.records] == [("run not swept", "b")]


@pytest.mark.django_db
def test_operate__a_deleted_run_is_told_as_such() -> None:
    """Whoever presses a button of a run that somebody deleted hears that, and no error of the database."""
    run = RunFactory(key="a")
    Run.objects.all().delete()

    with pytest.raises(RunStateError, match="'a' cannot pause: it is deleted"):
        run.pause()


@pytest.mark.django_db
def test_sweep_runs__is_a_task_for_beat(sent: list[str], celery_app: Celery) -> None:
    """The task tells how many it found."""
    lost_run()

    result = sweep_runs.delay()

    assert result.get() == {"reclaimed": 1, "woken": 1, "failed": 0}


@pytest.mark.django_db
def test_command__reports_as_json(sent: list[str]) -> None:
    """`manage.py resilience_sweep --json` is for programs."""
    lost_run()
    out = StringIO()

    call_command("resilience_sweep", json=True, stdout=out)

    assert json.loads(out.getvalue()) == {"reclaimed": ["a"], "woken": ["a"], "failed": []}


@pytest.mark.django_db
def test_command__goes_on_when_the_database_comes_back(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The endless form survives an outage of the database, and whatever else goes wrong, and tells where."""
    lost_run()
    answers: list[Any] = [OperationalError("password=x away"), KeyError("password=x"), None, KeyboardInterrupt()]

    def flaky(using: str, *, limit: int) -> sweeps.SweepResult:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return sweep(using, limit=limit)

    monkeypatch.setattr("resilience.management.commands.resilience_sweep.sweep", flaky)
    monkeypatch.setattr("resilience.clock.sleep", lambda seconds: None)
    monkeypatch.setattr("resilience.management.commands.resilience_sweep.connections", {"default": connections["default"]})
    monkeypatch.setattr(connections["default"], "close", lambda: None)
    out, err = StringIO(), StringIO()

    with pytest.raises(KeyboardInterrupt):
        call_command("resilience_sweep", every=1.0, stdout=out, stderr=err)

    assert "1 reclaimed, 1 woken, 0 failed" in out.getvalue()
    assert err.getvalue().count("sweep failed") == 2
    assert "in flaky" in err.getvalue()
    assert "password=x" not in err.getvalue()


@pytest.mark.django_db
def test_sweep__tells_that_a_run_failed_for_good(sent: list[str]) -> None:
    """A run killed once too often is reported as failed."""
    heard: list[dict[str, Any]] = []
    signals.run_failed.connect(receiver := lambda **kwargs: heard.append(kwargs), weak=False)
    lost_run(stalled_attempts=3)
    try:
        sweep("default")
    finally:
        signals.run_failed.disconnect(receiver)

    assert [(event["key"], event["final"]) for event in heard] == [("a", True)]


@pytest.mark.parametrize("woken", [None, -3600.0], ids=["never", "long ago"])
@pytest.mark.django_db
def test_sweep__of_two_who_saw_the_same_overdue_run_one_sends_the_message(woken: float | None) -> None:
    """Whoever claims a queued run second, by what it read before, sends nothing."""
    run = Run.objects.create(key="a", task="tests.any")
    if woken is not None:
        Run.objects.update(woken_at=DatabaseNow(woken), wakeups=1)
    first, second = (Run.objects.get(pk=run.pk) for _ in range(2))

    claimed = [sweeps._claim(each, "default") for each in (first, second)]

    assert claimed == [True, False]
