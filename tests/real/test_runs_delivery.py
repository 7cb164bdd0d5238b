from __future__ import annotations

import time

import pytest

from resilience import open_run
from resilience.runs.models import Run
from tests.real.runs_scenes import Scene
from tests.real.runs_training import expected
from tests.real.runs_workers import LIMIT
from tests.servers import wait_until


@pytest.mark.parametrize("scene", [("redis", "postgresql")], ids=["redis-postgresql"], indirect=True)
def test_poison__is_stopped_with_its_step_and_without_secrets(scene: Scene) -> None:
    """A step that fails each time ends the run after its attempts, by messages alone, and the history tells why."""
    fleet = scene.fleet
    fleet.call("crash", 1)
    fleet.worker(wait=False)

    wait_until(lambda: Run.objects.using(scene.alias).get().status == "failed", LIMIT, fleet.logs)

    run = Run.objects.using(scene.alias).get()
    assert (run.attempts, run.step) == (4, 2)
    assert [error["step"] for error in run.errors] == [3, 3, 3, 3]
    assert "hunter2" not in str(run.errors)
    assert fleet.steps()[3] == 4


#: A slice ends after one step or two, however slow the machine is: a new child takes Celery up to five seconds.
SLICES = {"RUNS_OPTIONS": {"max_slice": 0.5}, "RUNS_PAUSE": "0.3"}


# Not over the filesystem: Kombu reads files that are still being written, and loses them; see docs/runs.md.
@pytest.mark.parametrize("recycling", ["--max-tasks-per-child", "--max-memory-per-child"])
@pytest.mark.parametrize("scene", [("redis", "postgresql", SLICES)], ids=["redis-postgresql"], indirect=True)
def test_slices__follow_one_another_without_a_sweeper(scene: Scene, recycling: str) -> None:
    """A long run is worked off in slices, each in a new child: each publishes the next message, the caller gets the whole's result."""
    fleet = scene.fleet
    # One message, or one kilobyte: a child has used that up after each slice.
    fleet.worker(recycling, "1", wait=False)

    result = fleet.python("print(tests.real.runs_app.train.delay(1, 6).get(timeout=50))")

    run = Run.objects.using(scene.alias).get()
    assert result == run.result
    assert run.interruptions >= 1
    # When the last slice is over with the last step, one more child only ends the run.
    assert len({words[3] for words in fleet.lines()}) in {run.attempts, run.attempts - 1}
    assert sum(fleet.steps().values()) == 6


#: Three seconds of work with a limit of one.
SOFT = {"RUNS_OPTIONS": {"soft_time_limit": 1, "lease": 5.0, "max_stalled_attempts": 1}, "RUNS_PAUSE": "0.1"}


@pytest.mark.parametrize("scene", [("redis", "postgresql", SOFT)], ids=["redis-postgresql"], indirect=True)
def test_soft_time_limit__of_a_real_worker_ends_a_slice(scene: Scene) -> None:
    """Celery's limit strikes anywhere in a step: what is committed stands, the next message goes on, no attempt is counted."""
    fleet = scene.fleet
    fleet.call("train", 1, 30)
    fleet.worker(wait=False)

    run = scene.finish()

    assert run.result == expected(30)
    assert scene.ledger() == list(range(30))
    assert run.interruptions >= 1
    assert not run.errors, str(run.errors) + scene.fleet.logs()
    assert run.attempts == run.interruptions + 1
    assert sum(fleet.steps().values()) - 30 <= run.interruptions


@pytest.mark.parametrize("scene", [("filesystem", "sqlite")], ids=["filesystem-sqlite"], indirect=True)
def test_paused_and_resumed__from_another_process(scene: Scene) -> None:
    """A person pauses a run in a worker, and lets it go on later."""
    fleet = scene.fleet
    fleet.call("train", 1, 60)
    fleet.worker(wait=False)
    fleet.sweeper()
    wait_until(lambda: len(fleet.lines()) > 10, LIMIT, fleet.logs)

    Run.objects.using(scene.alias).get().pause()
    wait_until(lambda: Run.objects.using(scene.alias).get().status == "paused", LIMIT, fleet.logs)
    at = len(fleet.lines())
    time.sleep(0.5)
    still = len(fleet.lines())
    fleet.python("from resilience import Run; Run.objects.get().resume()")
    scene.finish()

    assert still == at
    assert sum(fleet.steps().values()) == 60


def test_hung_loop__is_told_apart_from_a_dead_worker(postgresql: str) -> None:
    """While a step hangs, signs of life go on and signs of progress do not: people see which of the two it is."""
    with open_run("hung", lease=0.6, using=postgresql) as run:
        for step in run.steps(1):
            time.sleep(0.5)
            before = Run.objects.using(postgresql).get()
            time.sleep(1)
            after = Run.objects.using(postgresql).get()
            run.checkpoint(step)

    assert after.heartbeat_at > before.heartbeat_at
    assert after.progressed_at == before.progressed_at
    assert not after.is_lost
