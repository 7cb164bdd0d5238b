"""Many processes, and somebody who kills sessions and servers under them.

The short form runs by default; RESILIENCE_CHAOS=long runs 20 processes of 500 increments and a minute of load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.length import LONG
from tests.real.db_peers import Background, balance, mariadb_peer, open_accounts, postgresql_peer, sqlite_file
from tests.testapp.models import Account, Parent

PROCESSES, INCREMENTS, SECONDS = (20, 500, 60.0) if LONG else (6, 60, 1.0)
WRITERS = 4

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200 if LONG else 240)]


@pytest.fixture(autouse=True)
def _databases(django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        yield


def run_workers(what: str, url: str, amount: int, count: int, meanwhile: Callable[[], None]) -> list[dict[str, Any]]:
    """Start worker processes, do something `meanwhile`, tell those that work without end to stop, and return the reports."""
    environment = {**os.environ, "TEST_DATABASE_URL": url}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.real.db_worker", what, f"worker{number}", str(amount)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]
    try:
        meanwhile()
        outputs = [worker.communicate(timeout=1000 if LONG else 200) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * count, [errors.decode()[-800:] for _, errors in outputs]
        return [json.loads(out.decode().splitlines()[-1]) for out, _ in outputs]
    finally:
        for worker in workers:
            with worker:  # which closes its pipes
                worker.kill()


def tell(what: str, reports: list[dict[str, Any]], **more: object) -> None:
    """Print the totals, for who runs it with `-s`, and hold the part of the hit calls that recovered to 99.9 %."""
    totals = {name: sum(len(report[name]) for report in reports) for name in ("done", "unknown", "failed")}
    totals |= {name: sum(report[name] for report in reports) for name in ("retries", "recovered")}
    hit = totals["recovered"] + totals["failed"]
    rate = totals["recovered"] / hit if hit else 1.0
    sys.stdout.write(f"\n{what}: {totals} {more}, recovery rate {rate:.4%}\n")
    assert rate >= 0.999


class Killer:
    """Ends a random session every 200 ms, in a thread of its own, until told to stop."""

    def __init__(self, server: servers.PostgreSQL | servers.MariaDB) -> None:
        self.kills = 0
        self._server = server
        self._over = threading.Event()
        self._work = Background(self._kill)

    def stop(self) -> None:
        """Stop, and raise what went wrong."""
        self._over.set()
        self._work.join()

    def _kill(self) -> None:
        while not self._over.wait(0.2):
            self.kills += self._kill_one()

    def _kill_one(self) -> int:
        if isinstance(self._server, servers.PostgreSQL):
            with postgresql_peer(self._server) as peer:
                victims = "pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
                return len(peer.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {victims}").fetchall())
        with mariadb_peer(self._server) as peer:
            peer.execute(
                "SELECT id FROM information_schema.processlist WHERE user = 'root' AND id <> connection_id() ORDER BY rand() LIMIT 1"
            )
            if not (row := peer.fetchone()):
                return 0
            try:
                peer.execute(f"KILL {row[0]}")
            except Exception:  # it has ended by itself meanwhile
                return 0
            return 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_increments__are_exact_while_sessions_are_killed(database: str, request: pytest.FixtureRequest) -> None:
    """Processes that add to one row, with a session killed every 200 ms: the total is exact and nobody gave up."""
    alias = request.getfixturevalue(database)
    server = request.getfixturevalue(f"{database}_server")
    open_accounts(alias, "shared")
    killer = Killer(server)

    try:
        reports = run_workers("increment", server.url, INCREMENTS, PROCESSES, lambda: None)
    finally:
        killer.stop()

    from django.db import connections

    connections[alias].close()
    tell(f"{database}, increments", reports, kills=killer.kills, total=balance(alias, "shared"))
    assert [report["failed"] for report in reports] == [[]] * PROCESSES
    assert balance(alias, "shared") == PROCESSES * INCREMENTS
    assert killer.kills > 3
    assert sum(report["recovered"] for report in reports) > 0


def test_increments__of_many_processes_on_one_sqlite_file_are_exact(tmp_path: Path) -> None:
    """The same on a file that only one process can write at a time."""
    with sqlite_file(tmp_path, timeout=20, transaction_mode="IMMEDIATE") as alias:
        Account.objects.using(alias).create(name="shared")

        reports = run_workers("increment", f"sqlite:///{tmp_path}/test.sqlite3", INCREMENTS, PROCESSES, lambda: None)

        tell("sqlite, increments", reports, total=balance(alias, "shared"))
        assert [report["failed"] for report in reports] == [[]] * PROCESSES
        assert balance(alias, "shared") == PROCESSES * INCREMENTS


def test_immediate_restart__under_load_does_everything_once_or_reports_it(
    postgresql: str, postgresql_server: servers.PostgreSQL
) -> None:
    """PostgreSQL crashes and recovers under load: done is stored once, failed is not stored, unknown at most once."""
    from django.db import connections

    def restart() -> None:
        wait_for_load(postgresql_server)
        postgresql_server.stop_immediately()
        postgresql_server.start()
        wait_for_load(postgresql_server)

    reports = run_workers("insert", postgresql_server.url, 0, WRITERS, restart)
    connections[postgresql].close()
    stored = Counter(Parent.objects.using(postgresql).values_list("name", flat=True))

    tell("postgresql, immediate restart", reports, stored=len(stored))
    done = [entry for report in reports for entry in report["done"]]
    unknown = [entry for report in reports for entry in report["unknown"]]
    failed = [entry for report in reports for entry in report["failed"]]
    assert all(stored[entry] == 1 for entry in done)
    assert all(stored[entry] <= 1 for entry in unknown)
    assert all(stored[entry] == 0 for entry in failed)
    assert set(stored) <= {*done, *unknown}
    assert all(report["recovered"] or report["unknown"] for report in reports)
    assert len(done) > len(unknown) * 10


def wait_for_load(server: servers.PostgreSQL) -> None:
    """Wait until each writer has stored a good many rows from now on, and for the time of the test's form at least."""
    end = time.monotonic() + SECONDS / 2
    with postgresql_peer(server) as peer:

        def counts() -> dict[str, int]:
            return dict(peer.execute("SELECT split_part(name, ' ', 1), count(*) FROM testapp_parent GROUP BY 1").fetchall())

        before = counts()

        def is_loaded() -> bool:
            now = counts()
            busy = [name for name, count in now.items() if count >= before.get(name, 0) + 20]
            return len(busy) == WRITERS and time.monotonic() > end

        servers.wait_until(is_loaded, 150, lambda: f"rows of each writer: {counts()}")
