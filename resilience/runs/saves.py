"""Commit the states of one attempt: write the bytes, then the row that makes them count, then forget old ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import InterfaceError, OperationalError

from resilience import clock, signals
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.redaction import describe_exception
from resilience.runs import store
from resilience.runs.leases import DatabaseNow, Lease, outlast_outages
from resilience.runs.models import Checkpoint, Run
from resilience.runs.options import RunConfig
from resilience.runs.retention import Pruner, Retention
from resilience.runs.steps import Place
from resilience.runs.stored_values import as_metrics

__all__ = ["Saver"]

logger = logging.getLogger("resilience.runs")

#: Longest time, in seconds, that one save waits for a database that cannot be reached.
_OUTAGE_LIMIT = 30.0
#: Saving that took so many seconds in all, and so much of the attempt's time, is worth a line in the log.
_NOTABLE, _SHARE = 5.0, 0.1


class Saver:
    """Commits checkpoints under a lease.

    Args:
        run: The row as it was taken; `step` and `sequence` are kept current.
        lease: The right to write it.
        config: What to keep, and how many failures to bear.
        sha256: Hash of the checkpoint that the attempt resumed from, or "".
        also: Gives columns of the run that each save stores along.

    Attributes:
        has_progressed: Whether this attempt committed something new.
    """

    def __init__(
        self, run: Run, lease: Lease, config: RunConfig, sha256: str = "", *, also: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self.run = run
        self.lease = lease
        self.config = config
        self.has_progressed = False
        self._sha256 = sha256
        self._also = also
        self._failures = 0
        self._began = clock.monotonic()
        self._spent = 0.0
        self._has_told = config.background
        rules = Retention(keep_last=config.keep_last, keep_best=config.keep_best, keep_every=config.keep_every)
        self._pruner = Pruner(lease.rows, rules)

    def save(self, state: object, place: Place, metrics: dict[str, Any], *, is_step: bool) -> bool:
        """Commit one state; False when disk or database refused and the training may go on.

        Args:
            state: What to store.
            place: The last step whose work it contains.
            metrics: Figures to keep the best by.
            is_step: Whether `place` was reached by `run.steps`; otherwise only another content is progress.

        Raises:
            CheckpointError: The state cannot be stored, or too many saves failed in a row.
            RunInterrupted: Another worker holds the run.
        """
        began = clock.monotonic()
        try:
            saved = self._commit(state, place, metrics, is_step=is_step)
        except (CheckpointError, OperationalError, InterfaceError) as error:
            self._failed(place, error)
            return False
        self._failures = 0
        elapsed = clock.monotonic() - began
        self._note_cost(elapsed)
        sent = {"key": self.run.key, "task": self.run.task, "step": saved.step, "size": saved.size, "tier": saved.tier}
        signals.emit(signals.checkpoint_saved, Checkpoint, elapsed=elapsed, **sent)
        return True

    def _note_cost(self, elapsed: float) -> None:
        """Tell once when saving makes up much of the attempt: exactness may be what is wanted, so nothing else is done about it."""
        self._spent += elapsed
        if self._has_told or self._spent <= _NOTABLE:
            return
        share = self._spent / max(clock.monotonic() - self._began, self._spent)
        if share <= _SHARE:
            return
        self._has_told = True
        logger.warning(
            "run %s: saving takes %.0f %% of its time; every_seconds=, every= or background=True make it less",
            self.run.key,
            100 * share,
            extra={"key": self.run.key, "share": round(share, 3)},
        )

    def _commit(self, state: object, place: Place, metrics: dict[str, Any], *, is_step: bool) -> Checkpoint:
        stored = store.write(self.run, place.position, state, format=self.config.format, schema=self.config.schema)
        # A number is used once: what is known of as failed or cut off may have been committed.
        self.run.sequence += 1
        row = Checkpoint(
            run_id=self.run.pk,
            sequence=self.run.sequence,
            step=place.position,
            fence=self.lease.fence,
            cursor=place.cursor,
            metrics=as_metrics(metrics),
            **stored.fields(),
        )
        is_new = (self.run.step is None or place.position > self.run.step) if is_step else stored.sha256 != self._sha256
        values = self._also() | {"step": place.position, "sequence": row.sequence, "progressed_at": DatabaseNow()}
        if is_new:
            values["stalled_attempts"] = 0
        limit = min(_OUTAGE_LIMIT, self.lease.seconds / 2)
        try:
            outlast_outages(_Insertion(row, self.lease, values, self._pruner), self.lease.using, limit)
        except RunInterrupted:
            store.discard(stored)
            raise
        self.run.step, self._sha256 = place.position, stored.sha256
        self.has_progressed = self.has_progressed or is_new
        return row

    def _failed(self, place: Place, error: Exception) -> None:
        """Bear a failed save while the last good checkpoint is safe and it is not one too many."""
        self._failures += 1
        sent = {"key": self.run.key, "task": self.run.task, "step": place.position, "error": type(error).__name__}
        signals.emit(signals.checkpoint_failed, Checkpoint, **sent)
        if isinstance(error, CheckpointError) and error.reason != "storage":
            raise error
        if self._failures >= self.config.max_failed_saves:
            raise CheckpointError(
                f"{self._failures} checkpoints of run {self.run.key!r} failed in a row, the last with {describe_exception(error)}. "
                "The last good one is kept: repair the storage or the database, and the run resumes from there.",
                "storage",
            ) from error
        logger.warning("checkpoint failed, the run goes on", extra=sent)


class _Insertion:
    """Insert a checkpoint's row and delete surplus ones in a fenced transaction; may be repeated when the outcome is unknown.

    One transaction for both is half the flushes of the disk, and lets nobody prune who does not hold the run.
    """

    def __init__(self, row: Checkpoint, lease: Lease, values: dict[str, Any], pruner: Pruner) -> None:
        self.row = row
        self.lease = lease
        self.values = values
        self.pruner = pruner
        self.tried = False

    def __call__(self) -> None:
        if self.tried and self._is_committed():
            return
        self.tried = True
        with self.lease.transaction(**self.values):
            self.lease.rows.insert(self.row)
            self.pruner.prune(self.row)

    def _is_committed(self) -> bool:
        rows = Checkpoint.objects.using(self.lease.using)
        mine = {"sequence": self.row.sequence, "fence": self.row.fence, "sha256": self.row.sha256, "name": self.row.name}
        return rows.filter(run_id=self.row.run_id, **mine).exists()
