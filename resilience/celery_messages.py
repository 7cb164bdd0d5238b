"""The messages that wake runs up: what of a call is kept for later ones, and how they are published."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery import current_app
from django.utils import timezone
from kombu.utils import json

from resilience.runs.leases import DatabaseNow
from resilience.runs.locks import row_of
from resilience.runs.models import Run, RunStatus

__all__ = ["RUN", "as_json", "delay_of", "kept_options", "publish", "seconds_until", "send_first"]

#: Header of each message that wakes a run: the row's primary key. A run that was deleted is not made anew by it.
RUN = "resilience_run"

#: Delivery options of a call that later messages for the same run repeat.
_KEPT = frozenset(
    [
        "queue",
        "exchange",
        "routing_key",
        "priority",
        "serializer",
        "compression",
        "time_limit",
        "soft_time_limit",
        "ignore_result",
        "shadow",
        "link",
        "link_error",
        "chain",
        "chord",
        "group_id",
        "group_index",
        "root_id",
        "parent_id",
    ]
)


def kept_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the delivery options of a call that later messages repeat."""
    return {name: value for name, value in options.items() if name in _KEPT and value is not None}


def publish(run: Run, *, delay: float = 0.0) -> None:
    """Send a message that wakes a run up; with `task_always_eager` it is worked on here.

    Args:
        run: A run with a task.
        delay: Seconds before it is delivered.
    """
    args, kwargs = json.loads(run.arguments)
    options: dict[str, Any] = json.loads(run.options) if run.options else {}
    if current_app.conf.task_always_eager:
        current_app.tasks[run.task].apply(args, kwargs, task_id=run.task_id)
        return
    if delay > 0:
        options["countdown"] = delay
    current_app.send_task(run.task, args, kwargs, task_id=run.task_id, headers={RUN: run.pk}, **options)


def send_first(run: Run, using: str, delay: float) -> None:
    """Publish the first message; unlike later ones its failure is the caller's to see."""
    publish(run, delay=delay)
    row_of(run.pk, using, status=RunStatus.QUEUED).update(woken_at=DatabaseNow(delay), wakeups=1)


def as_json(name: str, value: object) -> str:
    """Return arguments or options as the row keeps them.

    Raises:
        TypeError: They are not JSON.
    """
    try:
        return str(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"arguments of {name} must be JSON, for they are stored in the run's row ({error}). Pass ids.") from error


def delay_of(options: dict[str, Any]) -> float:
    """Seconds until a call is to be delivered."""
    eta = options.get("eta")
    return float(options.get("countdown") or 0) if eta is None else seconds_until(eta)


def seconds_until(when: Any) -> float:
    """Seconds from now to a time, or the seconds themselves."""
    if isinstance(when, datetime):
        return max(0.0, (when - timezone.now()).total_seconds())
    return float(when)
