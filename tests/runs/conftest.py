from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from celery import Celery, _state

from resilience.runs.models import Run
from tests.runs.checkpoint_files import directory

__all__ = ["celery_app", "directory", "run"]


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """A Celery app of its own whose tasks run at once; the current app while the test lasts."""
    before, finalizers = _state._tls.current_app, set(_state._on_app_finalizers)
    app = Celery("tests-runs", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    # All apps of a process share what lies in memory: another test's messages stay in its own queue.
    app.conf.task_default_queue = f"tests.{uuid.uuid4().hex}"
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    _state._set_current_app(app)
    yield app
    _state._tls.current_app = before
    # What a test defines with shared_task would be registered with every app that comes later.
    _state._on_app_finalizers.intersection_update(finalizers)
    app.close()


@pytest.fixture
def run(transactional_db: None) -> Run:
    """A run that nobody works on."""
    return Run.objects.create(key="train:1")
