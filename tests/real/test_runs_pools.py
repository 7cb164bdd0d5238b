from __future__ import annotations

import os
import signal

import pytest

from resilience.runs.models import Run
from tests.real.runs_scenes import Scene
from tests.real.runs_workers import LIMIT
from tests.servers import wait_until


@pytest.mark.parametrize("scene", [("filesystem", "sqlite")], ids=["filesystem-sqlite"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_pools_without_children__are_told_to_leave_too(scene: Scene, pool: str) -> None:
    """SIGTERM reaches tasks in threads and in the main process itself; another worker goes on."""
    fleet = scene.fleet
    fleet.call("train", 1, 100)
    worker = fleet.worker("--pool", pool)
    wait_until(lambda: len(fleet.lines()) > 10, LIMIT, fleet.logs)

    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(LIMIT)
    fleet.sweeper()
    row = Run.objects.using(scene.alias).get()
    fleet.worker("--pool", pool, wait=False)
    run = scene.finish()

    assert (row.status, row.interruptions) == ("queued", 1)
    assert (run.errors, run.stalled_attempts) == ([], 0)
    assert sum(fleet.steps().values()) == 100


@pytest.mark.parametrize("scene", [("redis", "postgresql")], ids=["redis-postgresql"], indirect=True)
def test_hard_time_limit__is_told_and_counted(scene: Scene) -> None:
    """A step that hangs is cut off, tried again at once, counted each time, and the history names the limit."""
    fleet = scene.fleet
    fleet.call("hang", 1)
    fleet.worker()

    wait_until(lambda: Run.objects.using(scene.alias).get().status == "failed", LIMIT, fleet.logs)

    run = Run.objects.using(scene.alias).get()
    assert (run.attempts, run.interruptions, run.step) == (3, 0, 2)
    assert [error["error"].partition(" for ")[0] for error in run.errors] == ["hard time limit of 1 s is over"] * 3
    assert fleet.steps()[3] == 3
