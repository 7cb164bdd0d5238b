"""Runs that ended long ago are deleted on real databases, beside people who change them."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import numpy as np
import pytest
from django.db import connections, transaction
from django.utils import timezone

from resilience import save_checkpoint
from resilience.runs import cleanups, store
from resilience.runs.models import Checkpoint, Run, RunEffect

pytestmark = pytest.mark.usefixtures("directory")

LIMIT = 60
MONTH = dt.timedelta(days=30)


@pytest.fixture(params=["postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    return str(request.getfixturevalue(request.param))


def ended(alias: str, *keys: str) -> None:
    """Runs that finished 40 days ago, each with two checkpoints in files and an effect."""
    month = timezone.now() - dt.timedelta(days=40)
    for key in keys:
        for step in range(2):
            save_checkpoint(key, {"w": np.full(10, step)}, using=alias)
        run = Run.objects.using(alias).get(key=key)
        RunEffect.objects.using(alias).create(run=run, key="mail")
        Run.objects.using(alias).filter(key=key).update(finished_at=month)
        Checkpoint.objects.using(alias).filter(run=run).update(created_at=month)


def test_delete_ended__leaves_nothing_of_them_and_all_of_others(
    alias: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, effects, files and directories go, some runs at a time; younger runs and those that wait for a person stay whole."""
    monkeypatch.setattr(cleanups, "_RUNS", 2)
    ended(alias, "failed", "young", "written", *(f"old{number}" for number in range(5)))
    Run.objects.using(alias).filter(key="failed").update(status="failed")
    Run.objects.using(alias).filter(key="young").update(finished_at=timezone.now() - dt.timedelta(days=29))
    save_checkpoint("written", {"w": np.zeros(10)}, using=alias)
    Run.objects.using(alias).filter(key="old1").update(status="cancelled")

    count = cleanups.delete_ended(MONTH, using=alias)

    left = Run.objects.using(alias)
    assert count == 5
    assert set(left.values_list("key", flat=True)) == {"failed", "young", "written"}
    assert RunEffect.objects.using(alias).count() == 3
    names = set(Checkpoint.objects.using(alias).values_list("name", flat=True))
    assert {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} == names
    assert {path.name for path in (directory / store.DIRECTORY).iterdir()} == {
        str(pk) for pk in left.values_list("pk", flat=True)
    }


def test_delete_ended__neither_waits_for_nor_takes_what_somebody_changes(alias: str, directory: Path) -> None:
    """A run that is being retried at this moment in another session stays, and the others go meanwhile."""
    ended(alias, "mine", "other")
    locked, let_go = threading.Event(), threading.Event()

    def retry() -> None:
        with transaction.atomic(using=alias):
            Run.objects.using(alias).filter(key="mine").update(status="queued", finished_at=None)
            locked.set()
            assert let_go.wait(LIMIT)
        connections[alias].close()

    person = threading.Thread(target=retry)
    person.start()
    try:
        assert locked.wait(LIMIT)
        count = cleanups.delete_ended(MONTH, using=alias)
    finally:
        let_go.set()
        person.join(LIMIT)

    (left,) = Run.objects.using(alias)
    assert (count, left.key, left.status) == (1, "mine", "queued")
    assert left.checkpoints.using(alias).count() == 2
    assert cleanups.delete_ended(MONTH, using=alias) == 0
