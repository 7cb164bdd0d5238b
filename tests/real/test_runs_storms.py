"""Everything at once: databases that restart in a save, frozen workers, too many sweepers and messages."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from django.db import connections

from resilience.exceptions import RunStateError
from resilience.runs.models import Run
from tests.length import LONG
from tests.real.runs_kills import SHORT_LEASE
from tests.real.runs_scenes import Scene
from tests.real.runs_training import expected
from tests.real.runs_workers import LIMIT, children
from tests.servers import PostgreSQL, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 300)]


@pytest.mark.parametrize("scene", [("redis", "postgresql", SHORT_LEASE)], ids=["redis-postgresql"], indirect=True)
def test_database_restarted_in_the_middle__ends_with_the_same_weights(scene: Scene, postgresql_server: PostgreSQL) -> None:
    """Immediate restarts of the database at random instants lose no commit and change no bit; nobody needs to help."""
    fleet, steps, restarts = scene.fleet, 60, 30 if LONG else 3
    fleet.call("train", 1, steps * (5 if LONG else 1))
    fleet.worker()
    fleet.sweeper()

    for _ in range(restarts):
        began = len(fleet.lines())
        wait_until(lambda began=began: len(fleet.lines()) > began + 5, LIMIT, fleet.logs)
        time.sleep(random.uniform(0, 0.05))
        postgresql_server.stop_immediately()
        time.sleep(random.uniform(0, 0.3))
        postgresql_server.start()
    connections[scene.alias].close()
    run = scene.finish()

    assert run.result == expected(steps * (5 if LONG else 1))
    assert scene.ledger() == list(range(steps * (5 if LONG else 1)))


@pytest.mark.parametrize("scene", [("redis", "postgresql", SHORT_LEASE)], ids=["redis-postgresql"], indirect=True)
def test_storm__of_freezes_copies_pauses_and_sweepers_changes_nothing(scene: Scene) -> None:
    """Workers frozen past their lease and thawed, copies of the message, pauses, resumes, two sweepers: one writer, same bits."""
    fleet, steps = scene.fleet, 600 if LONG else 100
    fleet.call("train", 1, steps)
    workers = [fleet.worker(wait=False) for _ in range(3)]
    for _ in range(2):
        fleet.sweeper()
    wait_until(lambda: len(fleet.lines()) > 5, LIMIT, fleet.logs)
    end = time.monotonic() + (90 if LONG else 6)

    while time.monotonic() < end and not scene.is_finished():
        row = Run.objects.using(scene.alias).get()
        victim = random.choice([pid for worker in workers for pid in children(worker)])
        os.kill(victim, signal.SIGSTOP)
        with suppress(RunStateError):
            row.pause()
        fleet.app_sends("train", 1, steps)
        time.sleep(random.uniform(0, 0.8))
        with suppress(RunStateError):
            row.resume()
        os.kill(victim, signal.SIGCONT)
    with suppress(RunStateError):
        Run.objects.using(scene.alias).get().resume()
    run = scene.finish()

    assert run.result == expected(steps)
    assert scene.ledger() == list(range(steps))
    assert sum(fleet.steps().values()) - steps <= run.attempts
