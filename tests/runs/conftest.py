from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, _state
from django.test import override_settings

from resilience.runs.models import Run


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """A Celery app of its own whose tasks run at once; the current app while the test lasts."""
    before, finalizers = _state._tls.current_app, set(_state._on_app_finalizers)
    app = Celery("tests-runs", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    _state._set_current_app(app)
    yield app
    _state._tls.current_app = before
    # What a test defines with shared_task would be registered with every app that comes later.
    _state._on_app_finalizers.intersection_update(finalizers)
    app.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The folder that checkpoints go to."""
    files = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(tmp_path)}}
    with override_settings(STORAGES={"files": files}, RESILIENCE={"RUNS": {"STORAGE": "files"}}):
        yield tmp_path


@pytest.fixture
def run(transactional_db: None) -> Run:
    """A run that nobody works on."""
    return Run.objects.create(key="train:1")
