"""Celery tasks of the app itself, for the beat schedule."""

from __future__ import annotations

from django.db import router

from resilience.lazy import extra_needed
from resilience.runs.models import Run
from resilience.runs.sweeps import sweep

with extra_needed(__name__):
    from celery import shared_task

__all__ = ["sweep_runs"]


@shared_task(name="resilience.tasks.sweep_runs", ignore_result=True, acks_late=False, max_retries=0)
def sweep_runs(limit: int = 1000) -> dict[str, int]:
    """Re-enqueue runs whose lease ran out or whose message was lost, each exactly once.

    Put it on the beat schedule, every 30 seconds or so; any number of copies may run at once.

    Args:
        limit: Most runs of each kind to look at in one go.

    Returns:
        How many runs were reclaimed, woken and failed.
    """
    result = sweep(router.db_for_write(Run), limit=limit)
    return {"reclaimed": len(result.reclaimed), "woken": len(result.woken), "failed": len(result.failed)}
