"""A soft time limit strikes anywhere, our own code included: it is never taken for a fault of the disk, and never lost."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.files.storage import FileSystemStorage

import resilience.runs
from resilience import load_checkpoint
from resilience.runs import store
from resilience.runs.attempts import Attempt
from resilience.runs.leases import take
from resilience.runs.models import Run
from resilience.runs.options import RunConfig
from tests.runs.checkpoint_files import commit

ROOM = str(Path(str(resilience.runs.__file__)).parent)


def striking(at: int, lines: list[str]) -> Callable[..., Any]:
    """A trace function that raises before the line of that number, as Celery's handler of the signal does."""

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        # Python itself may lose the end of a `with` block to an exception that strikes right there.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(lines) == at:
                raise SoftTimeLimitExceeded
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        # What strikes after the commit, as while old files are deleted, Django's `on_commit(robust=True)` takes for itself.
        is_after = any(each.f_code.co_name == "run_and_clear_commit_hooks" for each, _ in traceback.walk_stack(frame))
        return count if frame.f_code.co_filename.startswith(ROOM) and not is_after else None

    return enter


def work(key: str, at: int, lines: list[str], update: Callable[[int], Any]) -> Attempt:
    """Three steps; the limit strikes in the save of the last one."""
    run, _ = Run.objects.get_or_create(key=key)
    found = take(run, "default", statuses=("queued",))
    assert found is not None
    attempt = Attempt(*found, RunConfig(keep_last=1), ends_of_slice=(SoftTimeLimitExceeded,))
    with attempt as active:
        for step in active.steps(3):
            tracer = sys.gettrace()  # that of whoever measures coverage
            if step == 2:
                sys.settrace(striking(at, lines))
            try:
                active.checkpoint(update(step))
            finally:
                sys.settrace(tracer)
    return attempt


#: Not each line is struck, for the sake of time; those of a save in the row are few.
STRIDE = {"row": 2, "file": 7}


@pytest.mark.parametrize("tier", STRIDE)
def test_soft_time_limit__in_any_line_of_a_save_ends_a_slice(directory: Path, transactional_db: None, tier: str) -> None:
    """It leaves a good checkpoint, no error in the history, and a run that goes on."""
    at, wrong = 1, []
    while True:
        lines: list[str] = []
        attempt = work(
            f"limit-{at}", at, lines, (lambda step: step) if tier == "row" else (lambda step: {"w": np.full(10, step)})
        )
        if len(lines) < at:
            break
        run = Run.objects.get(key=f"limit-{at}")
        if (attempt.outcome.reason, run.status, run.errors) != ("slice", "queued", []):
            wrong.append((lines[-1], attempt.outcome, run.errors))
        at += STRIDE[tier]

    assert at > 50
    assert wrong == []
    assert load_checkpoint("limit-1") is not None


@pytest.mark.parametrize("method", ["open", "exists"])
def test_soft_time_limit__while_a_checkpoint_is_read_is_no_damage(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nothing is quarantined, and nobody reads on as if the storage had not answered."""
    checkpoint = commit(run, 1)
    monkeypatch.setattr(FileSystemStorage, "open", raising(OSError) if method == "exists" else raising(SoftTimeLimitExceeded))
    monkeypatch.setattr(FileSystemStorage, "exists", raising(SoftTimeLimitExceeded))

    with pytest.raises(SoftTimeLimitExceeded):
        store.load_latest(run)

    checkpoint.refresh_from_db()
    assert checkpoint.status == "good"


def raising(error: type[Exception]) -> Callable[..., Any]:
    """A function that only raises."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise error

    return refuse
