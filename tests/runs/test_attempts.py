from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import OperationalError

from resilience import clock, open_run, save_checkpoint, signals
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs import leases, operations, runs
from resilience.runs.attempts import Attempt
from resilience.runs.leases import take
from resilience.runs.models import Run
from resilience.runs.options import RunConfig

pytestmark = pytest.mark.django_db


def begin(is_stopping: Callable[[], bool] = lambda: False) -> Attempt:
    """An attempt at a new run by a worker."""
    found = take(Run.objects.create(key="a"), "default", statuses=("queued",))
    assert found is not None
    return Attempt(*found, RunConfig(), is_stopping=is_stopping)


def ask(request: str) -> None:
    """What another process asks of the worker, which has not looked yet."""
    Run.objects.update(request=request)


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("pause", "paused"), ("", "queued")])
def test_shutdown__does_what_people_asked_a_moment_before(request_: str, status: str) -> None:
    """A worker that is told to end before it saw a pause or a cancel does not hand the run to the next one as if nothing was."""
    told: list[str] = []
    attempt = begin(lambda: bool(told))

    with attempt as active:
        for step in active.steps(5):
            active.checkpoint(step)
            ask(request_)
            told.append("to end")

    row = Run.objects.get()
    assert (row.status, row.request) == (status, "")
    assert (row.finished_at is not None) == (status == "cancelled")
    assert attempt.outcome.status == status


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("pause", "paused"), ("", "queued")])
def test_error__does_what_people_asked(request_: str, status: str) -> None:
    """A step that fails while the run is to be cancelled or paused is not tried again, and its error is noted."""
    attempt = begin()

    with pytest.raises(ZeroDivisionError), attempt:
        ask(request_)
        _ = 1 / 0

    row = Run.objects.get()
    assert (row.status, row.request, attempt.outcome.status) == (status, "", status)
    assert row.last_error == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("pause", "failed"), ("", "failed")])
def test_error__that_is_final_is_undone_by_a_cancel_alone(request_: str, status: str) -> None:
    """A run that failed for good waits for a person, not for a `resume` that would count its attempts anew."""
    with pytest.raises(ZeroDivisionError), open_run("a"):
        ask(request_)
        _ = 1 / 0

    row = Run.objects.get()
    assert (row.status, row.request) == (status, "")
    assert row.finished_at is not None


@pytest.mark.parametrize("request_", ["pause", "cancel"])
def test_finished__is_finished_whatever_was_asked(request_: str) -> None:
    """A request that comes when all is done changes nothing."""
    with open_run("a"):
        ask(request_)

    row = Run.objects.get()
    assert (row.status, row.request) == ("finished", "")


def test_cut_off__does_what_people_asked() -> None:
    """So does a worker that is killed by an exception of the system."""
    with pytest.raises(SystemExit), begin():
        ask("cancel")
        raise SystemExit(1)

    assert Run.objects.get().status == "cancelled"


def test_pause__taken_back_while_the_worker_leaves_is_none() -> None:
    """Whoever resumed in time finds the run queued, not paused after all."""
    attempt = begin()

    with attempt as active:
        for step in active.steps(5):
            active.checkpoint(step)
            ask("pause")
            attempt.lease.beat(lambda: False)
            assert active.should_stop
            ask("")

    assert (Run.objects.get().status, attempt.outcome.status, attempt.outcome.reason) == ("queued", "queued", "slice")


@pytest.mark.parametrize(("before", "request_", "after"), [("queued", "pause", "paused"), ("failed", "cancel", "cancelled")])
def test_save_checkpoint__does_what_people_asked_meanwhile(
    before: str, request_: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is paused or cancelled while somebody stores a state under its key stays so."""
    Run.objects.create(key="a", status=before)
    monkeypatch.setattr(runs, "Saver", lambda *args: (ask(request_), saver(*args))[1])

    save_checkpoint("a", 1)

    row = Run.objects.get()
    assert (row.status, row.request) == (after, "")
    assert (row.finished_at is not None) == (after == "cancelled")


saver = runs.Saver


@pytest.mark.django_db(transaction=True)
def test_finished__is_known_though_the_answer_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks after the database stored the end costs neither the end nor its result."""
    monkeypatch.setattr(clock, "sleep", lambda seconds: None)
    attempt, row_of, answers = begin(), operations.row_of, ["lost"]

    class Rows:
        def __init__(self, rows: Any) -> None:
            self.rows = rows

        def update(self, **values: Any) -> int:
            count = self.rows.update(**values)
            if answers and answers.pop():
                raise OperationalError("connection reset")
            return int(count)

    monkeypatch.setattr(operations, "row_of", lambda *args, **conditions: Rows(row_of(*args, **conditions)))

    with attempt:
        attempt.result = 7

    assert (attempt.outcome.status, attempt.outcome.reason) == ("finished", "finished")
    assert Run.objects.get().result == 7


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("end", [RunInterrupted("shutdown"), SoftTimeLimitExceeded(), SystemExit(1), ZeroDivisionError()])
def test_given_back__after_a_database_outage_however_the_body_left(monkeypatch: pytest.MonkeyPatch, end: BaseException) -> None:
    """What ended the body did not break into the statements that give the run back: those wait for the database."""
    waits: list[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    attempt, row_of, failures = begin(), operations.row_of, ["away", "away"]

    def away(*args: Any, **conditions: Any) -> Any:
        if failures:
            raise OperationalError(failures.pop())
        return row_of(*args, **conditions)

    monkeypatch.setattr(operations, "row_of", away)

    with suppress(type(end)), attempt:
        raise end

    assert (Run.objects.get().status, attempt.outcome.status, waits) == ("queued", "queued", [0.1, 0.2])


def test_error__of_a_worker_that_lost_the_run_is_told_to_nobody_else() -> None:
    """Another one has the run: it did not fail."""
    heard: list[Any] = []
    signals.run_failed.connect(receiver := lambda **kwargs: heard.append(kwargs), weak=False)
    try:
        with pytest.raises(ZeroDivisionError), open_run("a"):
            Run.objects.update(fence=99)
            _ = 1 / 0
    finally:
        signals.run_failed.disconnect(receiver)

    assert heard == []
    assert Run.objects.get().errors == []


def test_lease__is_forgotten_by_those_who_gave_it_back() -> None:
    """A process that saved by hand is not told any more what is asked of the run."""
    save_checkpoint("a", 1)

    assert ("default", Run.objects.get().pk) not in leases._HELD


@pytest.mark.parametrize(
    ("reason", "status"),
    [("damaged", "failed"), ("newer", "failed"), ("unsigned", "failed"), ("configuration", "failed"), ("storage", "queued")],
)
def test_error__of_a_checkpoint_that_trying_again_cannot_mend_is_final(reason: str, status: str) -> None:
    """A state that is damaged, newer or unsigned is the same at the next attempt; a storage that was away is not."""
    with pytest.raises(CheckpointError), begin():
        raise CheckpointError("cannot be read", reason)

    assert Run.objects.get().status == status


def test_shutdown__takes_only_itself_out_of_the_count_of_attempts_without_progress() -> None:
    """A step that fails each time is stopped in the end, though workers are deployed in between."""
    attempt = begin(lambda: True)
    Run.objects.update(stalled_attempts=3)
    attempt.run.refresh_from_db()

    with attempt as active:
        list(active.steps(3))

    assert Run.objects.get().stalled_attempts == 2
