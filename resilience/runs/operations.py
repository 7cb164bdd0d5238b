"""What people and sweepers may do to a run, as a table, and the one way it is done.

Every change is a conditional UPDATE on what was read: of two who change a run at the same time one wins, and the
other looks again. A running run is only ever asked; the worker that holds it obeys at the end of its step.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import router
from django.utils import timezone

from resilience import signals
from resilience.exceptions import RunStateError
from resilience.runs.leases import RELEASED, DatabaseNow, Lease, notify
from resilience.runs.locks import row_of
from resilience.runs.models import Run, RunRequest, RunStatus
from resilience.runs.wakeups import wake_later

__all__ = ["TRANSITIONS", "give_back", "operate", "reclaim", "with_error"]

#: How many errors a run remembers.
_ERRORS = 20

_QUEUED: dict[str, Any] = {"status": RunStatus.QUEUED, "finished_at": None, "wakeups": 0, "woken_at": None}
_AGAIN: dict[str, Any] = _QUEUED | {"stalled_attempts": 0}
_CANCELLED: dict[str, Any] = {"status": RunStatus.CANCELLED}

#: From action and status to the columns that change; what is not here is refused.
TRANSITIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("pause", RunStatus.QUEUED): {"status": RunStatus.PAUSED},
    ("pause", RunStatus.RUNNING): {"request": RunRequest.PAUSE},
    ("resume", RunStatus.PAUSED): _QUEUED,
    ("resume", RunStatus.RUNNING): {"request": RunRequest.NONE},
    ("cancel", RunStatus.QUEUED): _CANCELLED,
    ("cancel", RunStatus.RUNNING): {"request": RunRequest.CANCEL},
    ("cancel", RunStatus.PAUSED): _CANCELLED,
    ("cancel", RunStatus.FAILED): _CANCELLED,
    ("retry", RunStatus.FAILED): _AGAIN,
    ("retry", RunStatus.CANCELLED): _AGAIN,
    ("skip", RunStatus.FAILED): _AGAIN,
    ("skip", RunStatus.PAUSED): _AGAIN,
}
#: What becomes of a run whose holder was asked something while it gave the run back.
_AS_ASKED: dict[tuple[str, str], str] = {
    (RunStatus.QUEUED, RunRequest.PAUSE): RunStatus.PAUSED,
    (RunStatus.QUEUED, RunRequest.CANCEL): RunStatus.CANCELLED,
    (RunStatus.PAUSED, RunRequest.CANCEL): RunStatus.CANCELLED,
    (RunStatus.FAILED, RunRequest.CANCEL): RunStatus.CANCELLED,
}
_ENDED = frozenset([RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED])
_REASONS = {"resume": "resumed", "retry": "retried", "skip": "skipped"}
_ATTEMPTS = 20


def operate(run: Run, action: str, *, actor: str = "", reason: str = "") -> None:
    """Do what a person asks, if the run's status allows it; `run` is refreshed.

    Args:
        run: The run.
        action: "pause", "resume", "cancel", "retry" or "skip".
        actor: Who asks, for the audit.
        reason: Why, for the audit.

    Raises:
        RunStateError: The run's status does not allow it, or the run was deleted.
    """
    using = router.db_for_write(Run, instance=run)
    for _ in range(_ATTEMPTS):
        reclaim(run, using)
        if not _is_there(run, using):
            raise RunStateError(run.key, action, "deleted")
        values = _values(run, action)
        if _as_seen(run, using).update(**values):
            break
    else:
        raise RunStateError(run.key, action, f"changed by others {_ATTEMPTS} times")
    status = run.status
    _is_there(run, using)
    if status == RunStatus.RUNNING:
        notify(run, using, run.request)
    if run.status == RunStatus.QUEUED:
        wake_later(run, using, reason=_REASONS[action])
    signals.emit(signals.run_operated, Run, key=run.key, action=action, actor=actor, reason=reason)


def reclaim(run: Run, using: str, *, owner: str = "", cause: str = "lease expired: no sign of life from") -> bool:
    """Take a run away from a worker whose lease is over; exactly one of all who try returns True.

    The run becomes queued, or what was asked of the lost worker, or failed when it was one attempt too many. `run`
    is refreshed first; one that was deleted meanwhile is nobody's to take.

    Args:
        run: The run.
        using: The database alias.
        owner: How the owner begins whose end is certain, so that the lease need not be waited for.
        cause: What to write into the history.
    """
    if not _is_there(run, using) or run.status != RunStatus.RUNNING:
        return False
    limit = run.max_stalled_attempts
    if run.request == RunRequest.CANCEL:
        status = RunStatus.CANCELLED
    elif run.request == RunRequest.PAUSE:
        status = RunStatus.PAUSED
    elif limit is not None and run.stalled_attempts >= limit:
        status = RunStatus.FAILED
    else:
        status = RunStatus.QUEUED
    values: dict[str, Any] = {"status": status, "queued_at": DatabaseNow(), "woken_at": None}
    if status in {RunStatus.CANCELLED, RunStatus.FAILED}:
        values["finished_at"] = DatabaseNow()
    values["errors"] = with_error(run, f"{cause} {run.owner.rpartition(':')[0]}")
    lost = {"owner__startswith": owner} if owner else {"lease_expires_at__lt": DatabaseNow()}
    if not _as_seen(run, using, **lost).update(**RELEASED | values):
        return False
    if status == RunStatus.FAILED:
        signals.emit(signals.run_failed, Run, key=run.key, task=run.task, error="LeaseExpired", final=True)
    _is_there(run, using)
    return True


def give_back(lease: Lease, status: str, **values: Any) -> str:
    """Give a run back, and do what people asked of its holder, whether that saw it or not; may be repeated.

    Args:
        lease: The holder's.
        status: Where the run goes if nobody asked for something else.
        values: More columns to store.

    Returns:
        The run's status now; "" when it is no longer the holder's.
    """
    for _ in range(_ATTEMPTS):
        rows = Run.objects.using(lease.using).filter(pk=lease.run_id, fence=lease.fence)
        now, request = rows.values_list("status", "request").first() or ("", "")
        if now != RunStatus.RUNNING:
            # Nobody else finishes a run: the answer to an earlier try was lost.
            return status if now == status == RunStatus.FINISHED else ""
        actual = _AS_ASKED.get((status, request), status)
        times = {"finished_at": DatabaseNow()} if actual in _ENDED else {"queued_at": DatabaseNow(), "woken_at": None}
        stored = times | values if actual == status else values | times
        # Under the condition that nobody asked for anything else meanwhile.
        free = row_of(lease.run_id, lease.using, fence=lease.fence, status=RunStatus.RUNNING, request=request)
        if free.update(**RELEASED | stored | {"status": actual}):
            return actual
    return ""


def with_error(run: Run, text: str, *, step: int | None = None) -> list[dict[str, Any]]:
    """Return the run's errors with one more, the oldest dropped.

    Args:
        run: The run.
        text: What happened, redacted.
        step: Position of the step that was being worked on, if known.
    """
    entry = {"at": timezone.now().isoformat(timespec="seconds"), "attempt": run.attempts, "step": step, "error": text[:400]}
    return [*run.errors, entry][-_ERRORS:]


def _is_there(run: Run, using: str) -> bool:
    """Refresh a run; False when it was deleted."""
    with suppress(Run.DoesNotExist):
        run.refresh_from_db(using=using)
        return True
    return False


def _as_seen(run: Run, using: str, **conditions: Any) -> Any:
    return row_of(run.pk, using, status=run.status, request=run.request, fence=run.fence, **conditions)


def _values(run: Run, action: str) -> dict[str, Any]:
    values = TRANSITIONS.get((action, run.status))
    # Cancelling is a decision; pausing and going on do not undo it.
    is_late = run.request == RunRequest.CANCEL and action != "cancel"
    if values is None or is_late or (action == "resume" and run.status == RunStatus.RUNNING and not run.request):
        raise RunStateError(run.key, action, "being cancelled" if is_late else run.status)
    values = dict(values)
    if values.get("status") == RunStatus.QUEUED:
        values["queued_at"] = DatabaseNow()
    if values.get("status") == RunStatus.CANCELLED:
        values["finished_at"] = DatabaseNow()
    if action == "skip":
        values["skipped"] = sorted({*run.skipped, _failed_step(run)})
    return values


def _failed_step(run: Run) -> int:
    """The position of the step that failed last, or of the first one that is not committed."""
    behind = 0 if run.step is None else run.step + 1
    step = run.errors[-1].get("step") if run.errors else None
    return max(behind, step) if isinstance(step, int) else behind
