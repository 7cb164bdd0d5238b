from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages
from django.db.models import ProtectedError
from django.db.models.signals import pre_delete
from django.test import override_settings
from django.utils import timezone

from resilience.runs import cleanups, store
from resilience.runs.models import Checkpoint, Run, RunEffect
from tests.runs.checkpoint_files import age, commit, existing, named

MONTH = dt.timedelta(days=30)


def ended_run(key: str, status: str = "finished", days: int = 40) -> Run:
    return Run.objects.create(key=key, status=status, finished_at=timezone.now() - dt.timedelta(days=days))


def test_delete_ended__takes_rows_files_and_directories_in_pieces(
    directory: Path, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that ended long ago nothing is left; all others are as they were."""
    monkeypatch.setattr(cleanups, "_RUNS", 2)
    stay = [ended_run("failed", "failed"), ended_run("young", days=29), Run.objects.create(key="queued")]
    for run in (*stay, *(ended_run(f"old{number}", ("finished", "cancelled")[number % 2]) for number in range(5))):
        commit(run, 1)
        RunEffect.objects.create(run=run, key="mail")
    Checkpoint.objects.update(created_at=timezone.now() - dt.timedelta(days=40))

    count = cleanups.delete_ended(MONTH)

    assert count == 5
    assert set(Run.objects.all()) == set(stay)
    assert existing(directory) == named()
    assert {path.name for path in (directory / store.DIRECTORY).iterdir()} == {str(run.pk) for run in stay}


def test_delete_ended__takes_failed_ones_only_when_told(directory: Path, transactional_db: None) -> None:
    """What failed waits for a person, unless somebody decides otherwise."""
    run = ended_run("failed", "failed")

    assert cleanups.delete_ended(MONTH) == 0
    assert cleanups.delete_ended(MONTH, statuses=["failed"]) == 1
    assert not Run.objects.filter(pk=run.pk).exists()


def test_delete_ended__leaves_a_run_that_goes_on_meanwhile(
    directory: Path, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that somebody retried after it was found is not deleted."""
    run, delete = ended_run("a", "cancelled"), cleanups._delete_runs

    def late(*arguments: Any) -> int:
        Run.objects.filter(pk=run.pk).update(status="queued", finished_at=None)
        return delete(*arguments)

    monkeypatch.setattr(cleanups, "_delete_runs", late)

    assert cleanups.delete_ended(MONTH) == 0
    assert Run.objects.filter(pk=run.pk).exists()


def test_delete_ended__leaves_what_other_models_protect(
    directory: Path, transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    """One run with a protected reference does not keep all others."""
    kept_one, _ = ended_run("invoiced"), [ended_run(f"old{number}") for number in range(3)]
    commit(kept_one, 1)
    Checkpoint.objects.update(created_at=timezone.now() - dt.timedelta(days=40))

    def protect(instance: Run, **kwargs: Any) -> None:
        if instance.pk == kept_one.pk:
            raise ProtectedError("an invoice needs it", set())

    pre_delete.connect(protect, sender=Run)
    try:
        with caplog.at_level(logging.WARNING, "resilience.runs"):
            count = cleanups.delete_ended(MONTH)
    finally:
        pre_delete.disconnect(protect, sender=Run)

    assert (count, list(Run.objects.all())) == (3, [kept_one])
    assert existing(directory) == named() != set()
    assert "protects it" in caplog.text


def test_collect_orphans__removes_directories_of_runs_that_are_no_more(directory: Path, run: Run) -> None:
    """What a deleted run leaves goes with its directory; that of a run that lives stays, empty or not."""
    commit(run, 1)
    idle, gone = Run.objects.create(key="idle"), Run.objects.create(key="gone")
    for other in (idle, gone):
        (directory / commit(other, 1).name).unlink()
    gone.delete()
    (directory / store.DIRECTORY / "notes").mkdir()

    cleanups.collect_orphans()

    assert {path.name for path in (directory / store.DIRECTORY).iterdir()} == {str(run.pk), str(idle.pk), "notes"}


def test_collect_orphans__takes_old_files_without_a_row(directory: Path, run: Run) -> None:
    """Files of crashes and of deleted runs go, unfinished ones too; what a row names stays, however old."""
    kept_one = commit(run, 1)
    deleted = Run.objects.create(key="gone")
    commit(deleted, 1)
    deleted.delete()
    orphan = store.write(run, 2, {"w": np.zeros(3)})
    (directory / (orphan.name + ".tmp")).write_bytes(b"half")
    (directory / "elsewhere.txt").write_bytes(b"not ours")
    age(directory, 2 * 24 * 3600)
    fresh = store.write(run, 3, {"w": np.zeros(3)})

    count = cleanups.collect_orphans()

    assert count == 3
    assert existing(directory) == {kept_one.name, fresh.name, "elsewhere.txt"}


def test_collect_orphans__refuses_an_age_that_would_hit_files_about_to_get_their_row(directory: Path) -> None:
    """Between the file and its row lies a moment in which it must not be taken."""
    with pytest.raises(ValueError, match="older_than must be at least 0:10:00, not 0:01:00"):
        cleanups.collect_orphans(dt.timedelta(minutes=1))


def test_collect_orphans__an_empty_storage_is_fine(directory: Path, transactional_db: None) -> None:
    """Before the first checkpoint there is nothing to list."""
    assert cleanups.collect_orphans() == 0


class Opaque(Storage):
    """A storage that cannot list its files."""


def test_collect_orphans__a_storage_that_cannot_list_is_left_alone(transactional_db: None) -> None:
    """Without listdir nothing can be found, and nothing fails."""
    with override_settings(STORAGES={"o": {"BACKEND": "tests.runs.test_cleanups.Opaque"}}, RESILIENCE={"RUNS": {"STORAGE": "o"}}):
        assert cleanups.collect_orphans() == 0


def test_collect_orphans__works_in_batches_on_any_listing_storage(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InMemoryStorage lists and dates its files too; more than a batch of them is collected in pieces."""
    monkeypatch.setattr(cleanups, "_BATCH", 2)
    memory = {"m": {"BACKEND": "django.core.files.storage.InMemoryStorage"}}
    with override_settings(STORAGES=memory, RESILIENCE={"RUNS": {"STORAGE": "m"}}):
        commit(Run.objects.create(key="a"), 1)
        for number in range(5):
            storages["m"].save(f"{store.DIRECTORY}/1/{number}.zip", ContentFile(b"x"))
        monkeypatch.setattr(cleanups.timezone, "now", lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=3))

        assert cleanups.collect_orphans() == 5


def test_purge_quarantined__deletes_old_damaged_ones_but_never_the_last_of_a_run(directory: Path, run: Run) -> None:
    """After a while evidence goes, but a run whose checkpoints are all damaged never becomes one without any."""
    first, second, fresh = (commit(run, step) for step in range(3))
    month = timezone.now() - dt.timedelta(days=40)
    Checkpoint.objects.update(status="quarantined")
    Checkpoint.objects.filter(pk__in=[first.pk, second.pk]).update(created_at=month)
    other = Run.objects.create(key="all damaged")
    alone = [commit(other, step) for step in range(2)]
    Checkpoint.objects.filter(run=other).update(status="quarantined", created_at=month)

    count = cleanups.purge_quarantined(dt.timedelta(days=30))

    assert count == 3
    assert list(run.checkpoints.all()) == [fresh]
    assert other.checkpoints.count() == 1
    assert set(alone) > set(other.checkpoints.all())
    assert existing(directory) == named()
