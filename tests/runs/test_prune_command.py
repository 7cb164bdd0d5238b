from __future__ import annotations

import datetime as dt
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from resilience import load_checkpoint, save_checkpoint
from resilience.db.models import IdempotencyKey
from resilience.runs import store
from resilience.runs.models import Checkpoint, Run
from tests.factories import RunFactory

pytestmark = pytest.mark.usefixtures("directory", "transactional_db")


def prune(*options: str) -> Any:
    out = StringIO()
    call_command("resilience_runs", "prune", "--json", *options, stdout=out)
    return json.loads(out.getvalue())


@pytest.fixture
def history(transactional_db: None) -> None:
    """Runs that ended 60 days ago, and a key as old."""
    long_ago = timezone.now() - dt.timedelta(days=60)
    for status in ("finished", "failed", "cancelled"):
        RunFactory(key=status, status=status, finished_at=long_ago)
    IdempotencyKey.objects.create(key="order 17", owner="a")
    IdempotencyKey.objects.update(created_at=long_ago)


@pytest.mark.usefixtures("history")
def test_prune__keeps_failed_runs_and_idempotency_keys_unless_told() -> None:
    """What a person or a repetition may still need goes only when its age is given."""
    removed = prune()

    assert removed == {"runs": 2, "quarantined checkpoints": 0, "files": 0}
    assert (Run.objects.get().key, IdempotencyKey.objects.count()) == ("failed", 1)


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize(("days", "count"), [("59", 1), ("61", 0)])
def test_prune__takes_failed_runs_and_idempotency_keys_of_an_age(days: str, count: int) -> None:
    """Each kind has an age of its own."""
    removed = prune("--failed-days", days, "--idempotency-days", days)

    assert (removed["failed runs"], removed["idempotency keys"]) == (count, count)
    assert (Run.objects.count(), IdempotencyKey.objects.count()) == (1 - count, 1 - count)


@pytest.mark.parametrize("option", ["--days", "--failed-days", "--idempotency-days"])
def test_prune__refuses_an_age_below_a_day(option: str) -> None:
    """A zero does not delete everything."""
    with pytest.raises(CommandError, match="must be 1 or more, not 0"):
        prune(option, "0")


def test_prune__counts_from_the_last_write() -> None:
    """A state that is stored again and again under one key is as young as its last write."""
    save_checkpoint("a", {"w": 1})
    Run.objects.update(finished_at=timezone.now() - dt.timedelta(days=60))
    save_checkpoint("a", {"w": 2})

    assert prune()["runs"] == 0
    assert load_checkpoint("a") == {"w": 2}


def test_prune__leaves_no_directories_behind(directory: Path) -> None:
    """Of a run in files nothing is left, not even its directory."""
    save_checkpoint("a", {"w": [0.5] * 20_000})
    Run.objects.update(finished_at=timezone.now() - dt.timedelta(days=31))
    Checkpoint.objects.update(created_at=timezone.now() - dt.timedelta(days=31))

    assert prune()["runs"] == 1
    assert list((directory / store.DIRECTORY).iterdir()) == []
