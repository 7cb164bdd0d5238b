"""Kill whoever works on a run, at random instants, and hold the outcome against a training that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

from tests.real.runs_scenes import Scene
from tests.real.runs_training import expected
from tests.real.runs_workers import children

__all__ = ["SHORT_LEASE", "train_and_kill"]

#: Every second of a lease is waited for after each kill.
SHORT_LEASE = {"RUNS_OPTIONS": {"lease": 0.4, "max_stalled_attempts": 30}}


def train_and_kill(scene: Scene, victim: str, kills: int) -> None:
    """Train while `victim` ("child" or "main") is sent SIGKILL so many times; the result must be as if nothing had been."""
    steps = 4 * kills + 20
    fleet = scene.fleet
    fleet.call("train", 1, steps)
    # A main process takes seconds to start, and Celery's asynchronous pools seconds to fill a child's place: one rests, others work.
    workers = [fleet.worker("-c", "1" if victim == "main" else "6", wait=False) for _ in range(2)]
    fleet.sweeper()
    done = 0

    while done < kills and scene.moves():
        time.sleep(random.uniform(0, 0.08))
        pid, worker = _holder(scene, workers)
        if worker is None:
            continue
        done += 1
        if victim == "main":
            os.kill(worker.pid, signal.SIGKILL)
            workers = [each for each in workers if each is not worker] + [fleet.worker(wait=False)]
        else:
            os.kill(pid, signal.SIGKILL)
    run = scene.finish()

    assert done == kills
    assert run.result == expected(steps)
    assert sum(fleet.steps().values()) - steps <= run.attempts - 1
    assert scene.ledger() == list(range(steps))


def _holder(scene: Scene, workers: list[subprocess.Popen[bytes]]) -> tuple[int, subprocess.Popen[bytes] | None]:
    """The child that the run is with now, and its worker."""
    pid = scene.owner_pid() or 0
    return pid, next((worker for worker in workers if pid in children(worker)), None)
