"""Part d: a training task whose worker is killed in the middle, twice."""

from __future__ import annotations

import io
import time

from django.core.management import call_command
from rich.progress import Progress, TaskID

from project.demo import tasks
from project.demo.models import TrainedModel
from project.demo.parts.report import Report
from project.demo.processes import Family
from resilience import Run

__all__ = ["train_through_kills"]

_EPOCHS, _PACE = 40, 0.12
#: The worker is killed when so many passes are done.
_KILLS = (10, 24)
_LIMIT = 90.0
_GOOD_ENOUGH = 0.93


def train_through_kills(report: Report, family: Family) -> None:
    """Train once in peace and once through two kills, and compare the bytes."""
    report.begin(
        "d. A training task that is killed",
        f"A Celery worker trains for {_EPOCHS} epochs; it is ended by SIGKILL {len(_KILLS)} times in the middle.",
    )
    with report.progress() as progress:
        worker = family.start_worker()
        tasks.train_digits.delay("in-peace", epochs=_EPOCHS)
        _watch(progress, progress.add_task("in peace", total=_EPOCHS, note=""), "in-peace", _EPOCHS, family)

        tasks.train_digits.delay("killed", epochs=_EPOCHS, pace=_PACE)
        bar = progress.add_task("  killed", total=_EPOCHS, note="")
        for step in _KILLS:
            _watch(progress, bar, "killed", step, family)
            family.kill(worker)
            progress.update(bar, note="SIGKILL; a new worker starts")
            worker = family.start_worker()
        _watch(progress, bar, "killed", _EPOCHS, family)
        family.stop(worker)

    run = Run.objects.get(key="digits:killed")
    peace, killed = (TrainedModel.objects.get(name=name) for name in ("in-peace", "killed"))
    report.figures["training"] = {
        "kills_survived": len(_KILLS),
        "attempts": run.attempts,
        "sha256_in_peace": peace.sha256[:16],
        "sha256_killed": killed.sha256[:16],
        "test_accuracy": killed.accuracy,
    }
    report.promise(
        f"killed {len(_KILLS)} times, the run finished without help", run.status == "finished" and run.attempts > len(_KILLS)
    )
    report.promise("the weights have the same SHA-256 as those of the uninterrupted run", peace.sha256 == killed.sha256)
    report.promise(f"test accuracy is {killed.accuracy:.3f}", killed.accuracy >= _GOOD_ENOUGH)


def _watch(progress: Progress, bar: TaskID, name: str, step: int, family: Family) -> None:
    """Follow a run until it has done `step` steps, or all of its work; sweep as Celery beat would.

    Raises:
        TimeoutError: It did not get there.
    """
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        run = Run.objects.filter(key=f"digits:{name}").first()
        if run is not None:
            done = 0 if run.step is None else run.step + 1
            progress.update(bar, completed=done, note=f"{run.status}, attempt {run.attempts}")
            if run.status == "finished" or (step < _EPOCHS and done >= step):
                return
        call_command("resilience_sweep", verbosity=0, stdout=io.StringIO())
        family.rest(0.1)
    raise TimeoutError(f"The run {name!r} did not reach step {step} within {_LIMIT:.0f} s.")
