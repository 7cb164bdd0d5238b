from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from resilience import signals
from resilience.exceptions import RunStateError
from resilience.runs.leases import DatabaseNow, take
from resilience.runs.models import Run
from resilience.runs.operations import TRANSITIONS

pytestmark = pytest.mark.django_db

ACTIONS = ["pause", "resume", "cancel", "retry", "skip"]
#: What is so: the status, what its worker was asked and has not done yet, and whether that worker is dead.
SITUATIONS = {
    "queued": ("queued", "", False),
    "running": ("running", "", False),
    "pausing": ("running", "pause", False),
    "cancelling": ("running", "cancel", False),
    "lost": ("running", "", True),
    "lost and pausing": ("running", "pause", True),
    "lost and cancelling": ("running", "cancel", True),
    "paused": ("paused", "", False),
    "finished": ("finished", "", False),
    "failed": ("failed", "", False),
    "cancelled": ("cancelled", "", False),
}
#: What each action makes of it; what is not there is refused. An interrupted run is queued.
EXPECTED = {
    "queued": {"pause": "paused", "cancel": "cancelled"},
    "running": {"pause": "pausing", "cancel": "cancelling"},
    "pausing": {"pause": "pausing", "resume": "running", "cancel": "cancelling"},
    "cancelling": {"cancel": "cancelling"},
    "lost": {"pause": "paused", "cancel": "cancelled"},
    "lost and pausing": {"resume": "queued", "cancel": "cancelled", "skip": "queued"},
    "lost and cancelling": {"retry": "queued"},
    "paused": {"resume": "queued", "cancel": "cancelled", "skip": "queued"},
    "finished": {},
    "failed": {"cancel": "cancelled", "retry": "queued", "skip": "queued"},
    "cancelled": {"retry": "queued"},
}
#: Whoever asks about a lost run finds out that it is lost: it is queued again, or what its worker was asked.
FOUND = {"lost": "queued", "lost and pausing": "paused", "lost and cancelling": "cancelled"}


def run_in(situation: str) -> Run:
    """A run in a situation."""
    status, request, is_lost = SITUATIONS[situation]
    run = Run.objects.create(key="a", status="queued" if status == "running" else status)
    if status == "running":
        assert take(run, "default", statuses=("queued",)) is not None
        Run.objects.update(request=request)
    if is_lost:
        Run.objects.update(lease_expires_at=DatabaseNow(-1))
    run.refresh_from_db()
    return run


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_operations__legal_ones_only(situation: str, action: str) -> None:
    """Each action does what the table says, or is refused and changes nothing."""
    run = run_in(situation)
    expected = EXPECTED[situation].get(action)

    if expected is None:
        with pytest.raises(RunStateError, match=f"Run 'a' cannot {action}"):
            getattr(run, action)()
    else:
        getattr(run, action)(actor="ann", reason="why")

    run.refresh_from_db()
    assert (run.status, run.request) == SITUATIONS[expected or FOUND.get(situation, situation)][:2]
    if expected == "cancelled":
        assert run.finished_at is not None
    if expected == "queued":
        assert run.queued_at is not None


def test_operations__table_has_no_more_than_this() -> None:
    """The table in the code and the table above are the same."""
    living = {situation: row for situation, row in EXPECTED.items() if not SITUATIONS[situation][2]}

    assert set(TRANSITIONS) == {(action, SITUATIONS[situation][0]) for situation, row in living.items() for action in row}


def test_resume__takes_back_a_pause_that_was_not_obeyed_yet() -> None:
    """Pause and resume before the step ends: the worker goes on."""
    run = run_in("running")
    run.pause()

    run.resume()

    run.refresh_from_db()
    assert (run.status, run.request) == ("running", "")


def test_cancel__stands_against_resume() -> None:
    """Nobody un-cancels by going on."""
    run = run_in("running")
    run.cancel()

    with pytest.raises(RunStateError, match="it is being cancelled"):
        run.resume()


def test_operation__tells_who() -> None:
    """The signal carries the action and the actor, for the audit."""
    heard: list[dict[str, Any]] = []
    signals.run_operated.connect(receiver := lambda **kwargs: heard.append(kwargs), weak=False)
    try:
        run_in("queued").pause(actor="ann", reason="night")
    finally:
        signals.run_operated.disconnect(receiver)

    assert [(event["key"], event["action"], event["actor"]) for event in heard] == [("a", "pause", "ann")]


def test_skip__leaves_out_the_step_that_failed() -> None:
    """The step named by the last error is skipped."""
    run = run_in("failed")
    Run.objects.update(step=4, errors=[{"step": 7, "error": "ValueError"}])
    run.refresh_from_db()

    run.skip()

    run.refresh_from_db()
    assert (run.skipped, run.stalled_attempts) == ([7], 0)


def test_key__is_unique() -> None:
    """Two runs cannot have one key."""
    Run.objects.create(key="a")

    with pytest.raises(IntegrityError), transaction.atomic():
        Run.objects.create(key="a")


def test_progress__as_people_read_it() -> None:
    """Percent and time left follow from the counts and the rate."""
    run = Run(key="a", current=25, total=100, rate=5.0)

    assert run.percent == 25.0
    assert run.eta == dt.timedelta(seconds=15)
    assert Run(key="b").percent is None
    assert Run(key="b", current=1).eta is None


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM resilience_run WHERE status = 'running' AND lease_expires_at < '2026'",
        "SELECT id FROM resilience_run WHERE status = 'queued' AND woken_at < '2026'",
        "SELECT id FROM resilience_run WHERE key = 'a'",
        "SELECT id FROM resilience_checkpoint WHERE run_id = 1 ORDER BY sequence DESC",
    ],
)
def test_indexes__carry_what_workers_and_sweepers_ask(statement: str) -> None:
    """No question of a worker or a sweeper reads a million rows."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
        plan = " ".join(str(row[3]) for row in cursor.fetchall())

    assert "USING" in plan
    assert "INDEX" in plan


def test_retry__gives_all_attempts_back_and_resume_none() -> None:
    """Who retries has mended something; a pause has mended nothing, and does not make a poison step immortal."""
    run = run_in("failed")
    Run.objects.update(stalled_attempts=3)
    run.retry()
    retried = run.stalled_attempts
    Run.objects.update(status="paused", stalled_attempts=2)
    run.resume()

    run.refresh_from_db()
    assert (retried, run.stalled_attempts) == (0, 2)
