"""Workers frozen in the middle of a transaction, whose locks would hold up everyone else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from resilience.runs import sweeps
from resilience.runs.leases import DatabaseNow
from resilience.runs.locks import row_of, short_transaction
from resilience.runs.models import Run
from tests.servers import wait_until

LIMIT = 60

FREEZE = """
import os, signal, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from resilience import open_run
from resilience.runs.retention import Pruner

times = iter([1])

def freeze(*args):
    if next(times, 0):
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return 0

Pruner.prune = freeze
with open_run("frozen", lease=float(sys.argv[1])) as run:
    for step in run.steps(2):
        if sys.argv[2] == "save":
            run.checkpoint(step)
        else:
            run.once("effect", freeze)
print("went on", flush=True)
"""


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Alias and URL of each database that has row locks."""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_server").url


@pytest.fixture
def frozen(server: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process frozen in a transaction that has locked its run."""
    lease, place = request.param
    process = subprocess.Popen(
        [sys.executable, "-c", FREEZE, str(lease), place],
        env=os.environ | {"TEST_DATABASE_URL": server[1]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "frozen\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("frozen", [(60, "save")], indirect=True)
def test_sweep__passes_by_a_run_whose_worker_is_frozen_in_a_transaction(
    server: tuple[str, str], frozen: subprocess.Popen[str]
) -> None:
    """The sweeper neither waits for the lock nor forgets the other runs."""
    alias = server[0]
    Run.objects.using(alias).create(key="other", status="running", lease_expires_at="2000-01-01T00:00Z")
    expired = Run.objects.using(alias).filter(status="running")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_expired", lambda using: expired.order_by("pk"))
        result = sweeps.sweep(alias)

    assert result.reclaimed == ("other",)
    assert frozen.poll() is None


@pytest.mark.parametrize("frozen", [(1, "save"), (1, "once")], ids=["save", "once"], indirect=True)
def test_frozen_in_a_transaction__the_server_takes_the_lock_back(server: tuple[str, str], frozen: subprocess.Popen[str]) -> None:
    """After as long as the lease the lock is gone: people and sweepers get at the run, and the thawed worker writes nothing."""
    alias = server[0]
    run = Run.objects.using(alias).get()

    run.pause()
    wait_until(lambda: sweeps.sweep(alias) and Run.objects.using(alias).get().status == "paused", LIMIT)
    os.kill(frozen.pid, signal.SIGCONT)
    output, _ = frozen.communicate(timeout=LIMIT)

    run.refresh_from_db()
    assert run.status == "paused", output
    assert frozen.returncode == 0, output
    assert "went on" in output
    assert not run.checkpoints.exists()
    assert not run.effects.exists()


def limit_of(alias: str) -> Any:
    queries = {"postgresql": "SHOW idle_in_transaction_session_timeout", "mysql": "SELECT @@wait_timeout"}
    with connections[alias].cursor() as cursor:
        cursor.execute(queries[connections[alias].vendor])
        return cursor.fetchone()[0]


def test_short_transaction__leaves_the_connection_as_it_was(server: tuple[str, str]) -> None:
    """The limit holds in the transaction alone, also when that fails: it is not the user's."""
    alias = server[0]
    before = limit_of(alias)

    with short_transaction(alias, 7.2):
        within = limit_of(alias)
    with pytest.raises(ZeroDivisionError), short_transaction(alias, 7.2):
        raise ZeroDivisionError

    assert str(within) in {"7200ms", "8"}
    assert limit_of(alias) == before


def test_row_of__is_found_by_its_primary_key_alone(mariadb: str) -> None:
    """With few runs of a status MariaDB would go by an index on it, and lock rows that others work on."""
    run = Run.objects.using(mariadb).create(key="a", status="running", lease_expires_at="2000-01-01T00:00Z")
    conditions = {"status": "running", "fence": 0, "lease_expires_at__lt": DatabaseNow(), "woken_at": None}

    with CaptureQueriesContext(connections[mariadb]) as queries:
        changed = row_of(run.pk, mariadb, **conditions).update(message="found")
    with connections[mariadb].cursor() as cursor:
        cursor.execute("EXPLAIN " + queries[-1]["sql"])
        plan = cursor.fetchone()

    assert changed == 1
    assert "PRIMARY" in plan
    assert "resilience_run_lease" not in str(plan)
