"""Real workers that are asked to end, in every way there is, or frozen past their lease."""

from __future__ import annotations

import os
import signal
import time

import pytest
from celery import Celery

from resilience.runs.models import Run
from tests.real.runs_scenes import Scene
from tests.real.runs_training import expected
from tests.real.runs_workers import LIMIT, children
from tests.servers import wait_until

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("scene", [("redis", "postgresql")], ids=["redis-postgresql"], indirect=True)
@pytest.mark.parametrize("end", ["warm", "remote", "soft", "remapped", "cold", "child"])
def test_asked_to_end__leaves_in_time_and_another_worker_finishes(scene: Scene, end: str) -> None:
    """However a worker is asked to end, its run is not failed, counts no attempt, and ends with the same weights."""
    number, variables = {
        "warm": (signal.SIGTERM, {}),
        "remote": (0, {}),
        "soft": (signal.SIGQUIT, {"RUNS_SOFT": "4"}),
        "remapped": (signal.SIGTERM, {"RUNS_SOFT": "4", "REMAP_SIGTERM": "SIGQUIT"}),
        "cold": (signal.SIGQUIT, {}),
        "child": (signal.SIGTERM, {}),
    }[end]
    fleet = scene.fleet
    fleet.call("train", 1, 60)
    worker = fleet.worker(**variables)
    wait_until(lambda: len(fleet.lines()) > 10, LIMIT, fleet.logs)

    began = time.monotonic()
    if end == "remote":
        with Celery(broker=fleet.environment["TEST_BROKER_URL"], set_as_current=False) as app:
            app.control.shutdown()
    else:
        os.kill(children(worker)[0] if end == "child" else worker.pid, number)
    wait_until(lambda: Run.objects.using(scene.alias).get().interruptions == 1, LIMIT, fleet.logs)
    left = time.monotonic() - began
    fleet.sweeper()
    fleet.worker(wait=False)
    if end != "child":
        worker.wait(LIMIT)
    run = scene.finish()

    assert run.result == expected(60)
    assert (run.errors, run.stalled_attempts) == ([], 0)
    assert scene.ledger() == list(range(60))
    if end in {"warm", "remote", "soft", "remapped"}:
        # The notice is there at the start of the window, and nothing is redone.
        assert left < 4
        assert sum(fleet.steps().values()) == 60


@pytest.mark.parametrize("scene", [("redis", "postgresql")], ids=["redis-postgresql"], indirect=True)
def test_frozen_past_its_lease__writes_nothing_when_it_thaws(scene: Scene) -> None:
    """A worker stopped for longer than its lease loses the run: the other one finishes it, and the first one's save is refused."""
    fleet = scene.fleet
    fleet.call("train", 1, 100)
    first = fleet.worker()
    fleet.sweeper()
    wait_until(lambda: len(fleet.lines()) > 10, LIMIT, fleet.logs)
    pids = [first.pid, *children(first)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    fleet.worker(wait=False)
    wait_until(lambda: Run.objects.using(scene.alias).get().attempts == 2, LIMIT, fleet.logs)
    wait_until(scene.moves, LIMIT, fleet.logs)

    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    run = scene.finish()
    wait_until(lambda: b"lease_lost" in (fleet.folder / "w0.log").read_bytes(), LIMIT, fleet.logs)

    assert run.result == expected(100)
    assert run.attempts == 2
    assert scene.ledger() == list(range(100))
    assert sum(fleet.steps().values()) - 100 <= 2
