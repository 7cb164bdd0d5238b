from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resilience.dashboard.runs import RunRow, error_rows, metric_plots, row
from resilience.runs.models import Checkpoint
from tests.factories import RunFactory

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def shown(**fields: Any) -> RunRow:
    """Return the row of a run with these fields."""
    return row(RunFactory.build(**fields), NOW)


@pytest.mark.parametrize(("current", "total", "text"), [(None, None, "—"), (7, None, "7"), (7, 10, "7 of 10")])
def test_progress__is_told_as_far_as_it_is_known(current: int | None, total: int | None, text: str) -> None:
    """Without a total nothing is promised."""
    assert shown(current=current, total=total).progress_text == text


@pytest.mark.parametrize(
    ("stalled", "most", "text"), [(0, 5, "9"), (2, 5, "9 (2 of 5 without progress)"), (2, None, "9 (2 of ∞ without progress)")]
)
def test_attempts__tell_how_many_went_nowhere(stalled: int, most: int | None, text: str) -> None:
    """Attempts in a row without progress stand beside their limit."""
    assert shown(attempts=9, stalled_attempts=stalled, max_stalled_attempts=most).attempts_text == text


@pytest.mark.parametrize(("seconds", "status"), [(-1, "lost"), (1, "running")])
def test_status__of_a_run_whose_lease_is_over_is_lost(seconds: int, status: str) -> None:
    """A worker that does not renew its lease is told, before the sweeper comes."""
    assert shown(status="running", lease_expires_at=NOW + timedelta(seconds=seconds)).shown_status == status


def test_errors__are_newest_first_and_survive_strange_records() -> None:
    """Whatever stands in the column, the page is shown."""
    errors = [{"at": "2026-01-01T00:00:00+00:00", "step": 3, "error": "first"}, "strange", {"at": 5.0, "error": None}, {"at": []}]

    rows = error_rows(errors)

    assert [(error["at"], error["text"]) for error in rows] == [(None, ""), (5.0, "None"), (NOW, "first")]
    assert error_rows({"not": "a list"}) == []


def test_metrics__leave_out_what_cannot_be_drawn() -> None:
    """Only finite numbers make a plot; a metric that has none has no plot."""
    metrics = [
        None,
        {"loss": 2.0, "good": True, "name": "x"},
        {"loss": float("nan")},
        {"loss": 1.0, "worst": float("inf"), "huge": 10**400},
    ]

    (plot,) = metric_plots([Checkpoint(metrics=found) for found in reversed(metrics)])

    assert plot["label"] == "loss: last 1, lowest 1, highest 2"
