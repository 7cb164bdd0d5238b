"""One run asked for several times: by copies of a message, and by callers at the same instant."""

from __future__ import annotations

import pytest

from tests.real.runs_scenes import Scene

#: Redis sends what is not acknowledged again after a second, as it does after an hour by default.
IMPATIENT = {
    "RUNS_TRANSPORT": {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
    "RUNS_OPTIONS": {"acks_late": True, "lease": 2.0},
    "RUNS_PAUSE": "0.1",
}

RACE = """
from resilience import testing
from tests.real.runs_app import train
print(*{result.id for result in testing.race(*[lambda: train.delay(1, 30)] * 6)})
"""


@pytest.mark.parametrize("scene", [("redis", "postgresql", IMPATIENT)], ids=["redis-postgresql"], indirect=True)
def test_redelivered_while_it_runs__the_body_never_runs_twice(scene: Scene) -> None:
    """Copies that Redis sends after its visibility timeout find the lease and go away: each step and effect once."""
    fleet = scene.fleet
    fleet.call("train", 1, 30)
    fleet.worker(wait=False)
    fleet.worker(wait=False)

    run = scene.finish()

    logs = "".join(log.read_text() for log in fleet.folder.glob("w*.log"))
    assert logs.count("] received") > 1, logs
    assert logs.count("] ignored") >= 1, logs
    assert (run.attempts, run.interruptions) == (1, 0)
    assert sum(fleet.steps().values()) == 30
    assert scene.ledger() == list(range(30))


@pytest.mark.parametrize(
    "scene", [("redis", "postgresql"), ("filesystem", "sqlite")], ids=["postgresql", "sqlite"], indirect=True
)
def test_called_at_the_same_instant__is_one_run(scene: Scene) -> None:
    """Of callers who start one key at the same instant all get the same handle, and each step is done once."""
    ids = set(scene.fleet.python(RACE).split())
    scene.fleet.worker(wait=False)

    run = scene.finish()

    assert ids == {run.task_id}
    assert run.attempts == 1
    assert sum(scene.fleet.steps().values()) == 30
