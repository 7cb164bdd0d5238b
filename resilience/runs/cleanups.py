"""What piles up and is deleted when somebody asks for it: runs that ended, damaged checkpoints, files that no row names."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.core.files.storage import FileSystemStorage, Storage, storages
from django.db import connections, router, transaction
from django.db.models import ProtectedError, RestrictedError
from django.utils import timezone

from resilience.runs import store
from resilience.runs.models import Checkpoint, Run, RunStatus
from resilience.runs.retention import delete_files

logger = logging.getLogger("resilience.runs")

__all__ = ["MIN_AGE", "collect_orphans", "delete_ended", "purge_quarantined"]

#: Youngest age at which a file without a row may be taken for an orphan; it may be about to get its row.
MIN_AGE = dt.timedelta(minutes=10)

_BATCH = 500
#: How long the name of a directory may be to be a primary key.
_DIGITS = 19
#: How many runs are deleted in one transaction, each with its checkpoints and effects.
_RUNS = 100


def delete_ended(
    older_than: dt.timedelta,
    *,
    statuses: Iterable[str] = (RunStatus.FINISHED, RunStatus.CANCELLED),
    using: str | None = None,
) -> int:
    """Delete runs that ended longer ago than `older_than`, with their checkpoints, files and effects, some at a time.

    Left are those whose last checkpoint is younger, those that go on meanwhile, and, with a warning, those that a row of
    another model protects.

    Args:
        older_than: How long ago they must have ended.
        statuses: How they must have ended: any of "finished", "cancelled", "failed".
        using: The database alias; None asks the router.

    Returns:
        How many runs were deleted.
    """
    alias, before, chosen = using or router.db_for_write(Run), timezone.now() - older_than, set(statuses)

    def has_ended(run: Run) -> bool:
        is_old = run.status in chosen and run.finished_at is not None and run.finished_at < before
        # `save_checkpoint` writes to a run that has ended, and leaves it as it was.
        return is_old and not run.checkpoints.using(alias).filter(created_at__gte=before).exists()

    ended = Run.objects.using(alias).filter(status__in=chosen, finished_at__lt=before).order_by("pk").values_list("pk", flat=True)
    deleted, last = 0, 0
    while keys := list(ended.filter(pk__gt=last)[:_RUNS]):
        deleted, last = deleted + _delete_runs(keys, alias, has_ended), keys[-1]
    return deleted


def _delete_runs(keys: list[int], alias: str, has_ended: Callable[[Run], bool]) -> int:
    try:
        with transaction.atomic(using=alias):
            skips = connections[alias].features.has_select_for_update_skip_locked
            locked = Run.objects.using(alias).filter(pk__in=keys).order_by().select_for_update(skip_locked=skips)
            # Looked at once more under the lock: somebody may have retried it.
            ended = [run.pk for run in locked.only("status", "finished_at") if has_ended(run)]
            rows = Checkpoint.objects.using(alias).filter(run__in=ended).exclude(name="").order_by()
            files = list(rows.values_list("storage", "name"))
            Run.objects.using(alias).filter(pk__in=ended).order_by().only("pk").delete()
            transaction.on_commit(lambda: _delete_with_directories(files), using=alias)
    except (ProtectedError, RestrictedError):
        if len(keys) > 1:
            return sum(_delete_runs([key], alias, has_ended) for key in keys)
        logger.warning("run not deleted: a row of another model protects it", extra={"run": keys[0]})
        return 0
    return len(ended)


def _delete_with_directories(files: list[tuple[str, str]]) -> None:
    delete_files(files)
    for alias, directory in {(alias, name.rpartition("/")[0]) for alias, name in files}:
        if alias in storages.backends:
            _remove_empty(store.storage(alias), directory)


def purge_quarantined(older_than: dt.timedelta, *, using: str | None = None) -> int:
    """Delete quarantined checkpoints that are older than `older_than`, with their files.

    The last checkpoint of a run is never deleted, so that a run whose checkpoints are all damaged stays an error.

    Args:
        older_than: How old they must be.
        using: The database alias; None asks the router.

    Returns:
        How many checkpoints were deleted.
    """
    alias = using or router.db_for_write(Checkpoint)
    rows = Checkpoint.objects.using(alias).filter(status="quarantined", created_at__lt=timezone.now() - older_than)
    deleted = 0
    for checkpoint in rows.defer("data").iterator(chunk_size=_BATCH):
        others = Checkpoint.objects.using(alias).filter(run=checkpoint.run_id).exclude(pk=checkpoint.pk)
        if others.exists():
            _delete_checkpoint(checkpoint, alias)
            deleted += 1
    return deleted


def _delete_checkpoint(checkpoint: Checkpoint, alias: str) -> None:
    files = [(checkpoint.storage, checkpoint.name)] if checkpoint.name else []
    with transaction.atomic(using=alias):
        checkpoint.delete(using=alias)
        transaction.on_commit(lambda: delete_files(files), using=alias)


def collect_orphans(older_than: dt.timedelta = dt.timedelta(days=1), *, using: str | None = None) -> int:
    """Delete files of checkpoints that no row names, in every storage in use: left by a crash, or by runs that were deleted.

    Two databases must not share one storage location: each would take the other's files for orphans. A database in which
    no row names a file at all is taken for the wrong one: nothing is deleted, and a warning is logged.

    Args:
        older_than: Age from which a file without a row is an orphan; at least `MIN_AGE`.
        using: The database that holds the rows; None asks the router.

    Returns:
        How many files were deleted; none on a storage that cannot list its files or tell their age.

    Raises:
        ValueError: older_than is less than `MIN_AGE`.
    """
    if older_than < MIN_AGE:
        raise ValueError(f"older_than must be at least {MIN_AGE}, not {older_than}. A younger file may be about to get its row.")
    alias = using or router.db_for_write(Checkpoint)
    rows = Checkpoint.objects.using(alias).exclude(name="").order_by()
    used = {store.current_storage(), *rows.values_list("storage", flat=True).distinct()}
    before = timezone.now() - older_than
    # One that STORAGES has no longer holds nothing that could be deleted.
    return sum(_collect_in(store.storage(name), rows, before) for name in sorted(used) if name in storages.backends)


def _collect_in(storage: Storage, rows: Any, before: dt.datetime) -> int:
    deleted = 0
    with suppress(NotImplementedError):
        for names in _batches(_old_files(storage, before)):
            if not rows.exists():
                logger.warning(
                    "no file deleted: no row of this database names one, it may be the wrong one", extra={"database": rows.db}
                )
                return 0
            # By name alone: two aliases may stand for one place.
            named = set(rows.filter(name__in=names).values_list("name", flat=True))
            for name in names:
                if name not in named:
                    storage.delete(name)
                    deleted += 1
        _remove_deserted(storage, rows.db)
    return deleted


def _remove_deserted(storage: Storage, alias: str) -> None:
    """Remove the empty directories of runs that are no more; object storages have none."""
    if not isinstance(storage, FileSystemStorage) or not storage.exists(store.DIRECTORY):
        return
    for names in _batches(name for name in storage.listdir(store.DIRECTORY)[0] if name.isdecimal() and len(name) < _DIGITS):
        alive = set(Run.objects.using(alias).filter(pk__in=names).values_list("pk", flat=True))
        for name in names:
            if int(name) not in alive:
                _remove_empty(storage, f"{store.DIRECTORY}/{name}")


def _remove_empty(storage: Storage, directory: str) -> None:
    if isinstance(storage, FileSystemStorage):
        with suppress(OSError):
            Path(storage.path(directory)).rmdir()


def _old_files(storage: Storage, before: dt.datetime) -> Iterator[str]:
    """Yield the names of all files of checkpoints, unfinished ones included, that were last written before."""
    try:
        directories, _ = storage.listdir(store.DIRECTORY)
    except FileNotFoundError:
        return
    for directory in directories:
        path = f"{store.DIRECTORY}/{directory}"
        try:
            files = storage.listdir(path)[1]
        except FileNotFoundError:
            continue  # somebody else cleans up
        for file in files:
            name = f"{path}/{file}"
            with suppress(FileNotFoundError):
                modified = storage.get_modified_time(name)
                if (modified if timezone.is_aware(modified) else timezone.make_aware(modified)) < before:
                    yield name


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
