"""Checkpoints in files: made, listed and aged."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from django.test import override_settings

from resilience.runs import store
from resilience.runs.models import Checkpoint, Run


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The folder that checkpoints go to."""
    files = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(tmp_path)}}
    with override_settings(STORAGES={"files": files}, RESILIENCE={"RUNS": {"STORAGE": "files"}}):
        yield tmp_path


def commit(run: Run, step: int, **metrics: float) -> Checkpoint:
    stored = store.write(run, step, {"w": np.full(10, step)})
    run.sequence += 1
    return Checkpoint.objects.create(run=run, sequence=run.sequence, step=step, metrics=metrics, **stored.fields())


def existing(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def named() -> set[str]:
    return set(Checkpoint.objects.values_list("name", flat=True))


def age(directory: Path, seconds: float) -> None:
    """Make all files look older."""
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds, time.time() - seconds))
