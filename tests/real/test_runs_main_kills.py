from __future__ import annotations

import pytest

from tests.length import LONG
from tests.real.runs_kills import SHORT_LEASE, train_and_kill
from tests.real.runs_scenes import Scene

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000 if LONG else 300)]

SCENES = [("redis", "postgresql", SHORT_LEASE)]
if LONG:
    SCENES += [("filesystem", "sqlite", SHORT_LEASE), ("rabbitmq", "mariadb", SHORT_LEASE)]
#: The broker keeps the message of a worker that is killed, and sends it again by itself: as a copy of the sweeper's.
LATE = {
    "RUNS_OPTIONS": {"lease": 0.4, "max_stalled_attempts": 30, "acks_late": True, "reject_on_worker_lost": True},
    "RUNS_TRANSPORT": {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
}


@pytest.mark.parametrize("scene", SCENES, ids=["-".join(scene[:2]) for scene in SCENES], indirect=True)
def test_main_process_killed_at_random__ends_with_the_same_weights(scene: Scene) -> None:
    """SIGKILL of a worker's main process, whose child dies with it, changes no bit and no effect; another worker goes on."""
    train_and_kill(scene, "main", 100 if LONG else 10)


@pytest.mark.parametrize("scene", [("redis", "postgresql", LATE)], ids=["redis-postgresql"], indirect=True)
def test_main_process_killed_with_late_acknowledgement__ends_with_the_same_weights(scene: Scene) -> None:
    """The same with messages that are acknowledged after the work: those that come again change nothing."""
    train_and_kill(scene, "main", 100 if LONG else 5)
