"""The rows that own long jobs: what is to be done, who holds it, how far it is.

A `Run` owns a job; messages of a task queue only wake it up. Who may write is decided by the lease and its
fence number (`resilience.runs.leases`), how people operate runs by `resilience.runs.operations`.
"""

from __future__ import annotations

import datetime as dt

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

__all__ = ["Checkpoint", "CheckpointStatus", "Run", "RunEffect", "RunRequest", "RunStatus"]


class RunStatus(models.TextChoices):
    """Where a run is in its life. A running run whose lease is over is lost: see `Run.is_lost`."""

    QUEUED = "queued", _("queued")
    RUNNING = "running", _("running")
    PAUSED = "paused", _("paused")
    FINISHED = "finished", _("finished")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")


class RunRequest(models.TextChoices):
    """What the worker that holds a run is asked to do at the end of its step."""

    NONE = "", _("none")
    PAUSE = "pause", _("pause")
    CANCEL = "cancel", _("cancel")


class CheckpointStatus(models.TextChoices):
    """Whether a checkpoint may be resumed from."""

    GOOD = "good", _("good")
    QUARANTINED = "quarantined", _("quarantined")


class Run(models.Model):
    """One long job: its key, its state, its lease and its history.

    Times of the lease are the database's clock, so that hosts whose clocks disagree still agree on who holds
    what. `heartbeat_at` tells that the process lives, `progressed_at` that its loop moves.

    Example:
        >>> Run(key="train:7").status.value
        'queued'
    """

    key = models.CharField(_("key"), max_length=255, unique=True)
    status = models.CharField(_("status"), max_length=16, choices=RunStatus.choices, default=RunStatus.QUEUED)
    request = models.CharField(_("request"), max_length=8, choices=RunRequest.choices, default=RunRequest.NONE, blank=True)

    task = models.CharField(_("task"), max_length=255, blank=True, default="")
    task_id = models.CharField(_("message id"), max_length=155, blank=True, default="")
    arguments = models.JSONField(_("arguments"), default=dict, blank=True, editable=False)
    options = models.JSONField(_("delivery options"), default=dict, blank=True, editable=False)
    config = models.JSONField(_("configuration hashes"), default=dict, blank=True, editable=False)

    fence = models.PositiveBigIntegerField(_("fence"), default=0)
    owner = models.CharField(_("owner"), max_length=200, blank=True, default="")
    lease_seconds = models.FloatField(_("lease in seconds"), default=60.0)
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True, blank=True)
    heartbeat_at = models.DateTimeField(_("last heartbeat"), null=True, blank=True)
    progressed_at = models.DateTimeField(_("last progress"), null=True, blank=True)

    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    stalled_attempts = models.PositiveIntegerField(_("attempts without progress"), default=0)
    max_stalled_attempts = models.PositiveIntegerField(_("most attempts without progress"), null=True, blank=True, default=3)
    interruptions = models.PositiveIntegerField(_("interruptions"), default=0)

    step = models.BigIntegerField(_("last committed step"), null=True, blank=True)
    sequence = models.PositiveBigIntegerField(_("number of the last checkpoint"), default=0)
    skipped = models.JSONField(_("skipped steps"), default=list, blank=True)

    current = models.BigIntegerField(_("progress"), null=True, blank=True)
    total = models.BigIntegerField(_("of"), null=True, blank=True)
    rate = models.FloatField(_("steps per second"), null=True, blank=True)
    message = models.CharField(_("message"), max_length=200, blank=True, default="")

    errors = models.JSONField(_("errors"), default=list, blank=True)
    result = models.JSONField(_("result"), null=True, blank=True, editable=False)

    wakeups = models.PositiveIntegerField(_("wake-ups since it was queued"), default=0)
    woken_at = models.DateTimeField(_("last wake-up"), null=True, blank=True)
    queued_at = models.DateTimeField(_("queued at"), null=True, blank=True)
    started_at = models.DateTimeField(_("first started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("ended at"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        permissions = [("operate_run", "Can pause, resume, cancel, retry and skip runs")]
        indexes = [
            models.Index(fields=["status", "lease_expires_at"], name="resilience_run_lease"),
            models.Index(fields=["status", "woken_at"], name="resilience_run_woken"),
            models.Index(fields=["task", "status"], name="resilience_run_task"),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def is_lost(self) -> bool:
        """Whether the lease is over though nobody gave it back, by this host's clock; for display only."""
        expired = self.lease_expires_at is not None and self.lease_expires_at < timezone.now()
        return self.status == RunStatus.RUNNING and expired

    @property
    def percent(self) -> float | None:
        """Progress in percent, 0 to 100, or None when the total is unknown."""
        if not self.total or self.current is None:
            return None
        return min(100.0, 100.0 * self.current / self.total)

    @property
    def eta(self) -> dt.timedelta | None:
        """Time left at the rate seen last, or None when unknown."""
        if not self.rate or self.total is None or self.current is None:
            return None
        return dt.timedelta(seconds=max(0, self.total - self.current) / self.rate)

    @property
    def last_error(self) -> str:
        """Class and redacted message of the error seen last, or ""."""
        return str(self.errors[-1].get("error", "")) if self.errors else ""

    def pause(self, *, actor: str = "", reason: str = "") -> None:
        """Stop the run at the end of its step, until `resume`; see `operations.pause`."""
        _operate(self, "pause", actor=actor, reason=reason)

    def resume(self, *, actor: str = "", reason: str = "") -> None:
        """Let a paused run go on where it stopped; see `operations.resume`."""
        _operate(self, "resume", actor=actor, reason=reason)

    def cancel(self, *, actor: str = "", reason: str = "") -> None:
        """End the run at the end of its step, at once when nobody works on it."""
        _operate(self, "cancel", actor=actor, reason=reason)

    def retry(self, *, actor: str = "", reason: str = "") -> None:
        """Give a failed or cancelled run another `max_stalled_attempts` attempts from its last checkpoint."""
        _operate(self, "retry", actor=actor, reason=reason)

    def skip(self, *, actor: str = "", reason: str = "") -> None:
        """Leave out the step that failed last and go on behind it."""
        _operate(self, "skip", actor=actor, reason=reason)


class Checkpoint(models.Model):
    """One stored state of a run. The row is the commit point: a file without a row does not count.

    `sequence` counts the checkpoints of a run from 1; `step` is the position, from 0, of the last step whose
    work the state contains.

    Example:
        >>> Checkpoint(sequence=3, step=2, size=100).status.value
        'good'
    """

    run = models.ForeignKey(Run, models.CASCADE, related_name="checkpoints", verbose_name=_("run"))
    sequence = models.PositiveBigIntegerField(_("number"))
    step = models.BigIntegerField(_("step"), null=True, blank=True)
    fence = models.PositiveBigIntegerField(_("fence"), default=0)
    cursor = models.JSONField(_("cursor"), null=True, blank=True)

    tier = models.CharField(_("tier"), max_length=8, choices=[("row", _("row")), ("file", _("file"))], default="row")
    format = models.CharField(_("format"), max_length=32)
    schema = models.PositiveSmallIntegerField(_("schema version"), default=1)
    size = models.PositiveBigIntegerField(_("size in bytes"))
    sha256 = models.CharField(_("SHA-256"), max_length=64)
    data = models.BinaryField(_("inline bytes"), null=True, blank=True)
    storage = models.CharField(_("storage"), max_length=100, blank=True, default="")
    name = models.CharField(_("name in the storage"), max_length=255, blank=True, default="")
    metrics = models.JSONField(_("metrics"), default=dict, blank=True)

    status = models.CharField(_("status"), max_length=16, choices=CheckpointStatus.choices, default=CheckpointStatus.GOOD)
    reason = models.CharField(_("why it is quarantined"), max_length=200, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        verbose_name = _("checkpoint")
        verbose_name_plural = _("checkpoints")
        constraints = [models.UniqueConstraint(fields=["run", "sequence"], name="resilience_checkpoint_sequence")]

    def __str__(self) -> str:
        return f"{self.run_id}#{self.sequence}"


class RunEffect(models.Model):
    """The trace of one `run.once`: it is stored in the transaction of the effect itself."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="effects", verbose_name=_("run"))
    key = models.CharField(_("key"), max_length=255)
    result = models.JSONField(_("result"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("effect")
        verbose_name_plural = _("effects")
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="resilience_effect_once")]

    def __str__(self) -> str:
        return f"{self.run_id}:{self.key}"


def _operate(run: Run, action: str, *, actor: str, reason: str) -> None:
    """Hand over to `operations`, which needs these models and so cannot be imported before them."""
    from resilience.runs import operations

    operations.operate(run, action, actor=actor, reason=reason)
