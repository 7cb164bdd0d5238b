"""The demo project: digits, a flaky service and a training task, kept alive by `resilience`."""

from __future__ import annotations

from project.celery import app as celery_app

__all__ = ["celery_app"]
