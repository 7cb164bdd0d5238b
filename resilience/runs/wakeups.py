"""The messages that wake queued runs.

A message owns nothing: it asks the task queue to wake a queued run. One too many finds the run held or done and goes
away; a lost one is sent again by the sweeper. No task queue is known here: the glue that does is found by name, once
a run with a task needs it.
"""

from __future__ import annotations

import logging
from importlib import import_module

from django.db import transaction
from django.db.models import F

from resilience import signals
from resilience.redaction import describe_exception
from resilience.runs.leases import DatabaseNow
from resilience.runs.locks import row_of
from resilience.runs.models import Run, RunStatus

__all__ = ["wake", "wake_later"]

logger = logging.getLogger("resilience.runs")

#: Where the messages are published.
_GLUE = "resilience.celery_messages"


def wake(run: Run, using: str, *, reason: str, delay: float = 0.0) -> bool:
    """Publish a message for a queued run; False when the broker refused, and the sweeper will try again.

    Args:
        run: The run; one without a task is left to whoever opens it.
        using: The database alias.
        reason: "slice", "lease_expired", "shutdown", "error", "resumed", "retried" or "lost".
        delay: Seconds to wait before it is delivered.
    """
    if not run.task:
        return False
    rows = row_of(run.pk, using, status=RunStatus.QUEUED)
    try:
        import_module(_GLUE).publish(run, delay=delay)
    except Exception as error:  # noqa: BLE001  # brokers fail in any way; the row stays queued and is swept
        logger.warning("wake-up not sent, the sweeper will", extra={"key": run.key, "error": describe_exception(error)})
        return False
    rows.update(woken_at=DatabaseNow(delay), wakeups=F("wakeups") + 1)
    signals.emit(signals.run_requeued, Run, key=run.key, task=run.task, reason=reason)
    return True


def wake_later(run: Run, using: str, *, reason: str, delay: float = 0.0) -> None:
    """Wake the run when the open transaction is committed, at once without one."""
    transaction.on_commit(lambda: wake(run, using, reason=reason, delay=delay), using=using)
