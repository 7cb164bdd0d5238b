"""A fleet over a broker and a database, for the tests that kill workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from resilience.runs.models import Run
from tests.real.runs_workers import LIMIT, Fleet
from tests.servers import wait_until
from tests.testapp.models import RunsLedger


@pytest.fixture
def sqlite(tmp_path: Path, django_db_blocker) -> Iterator[str]:
    """The alias of a SQLite file that this process and the fleet share."""
    alias = "runs_file"
    file = tmp_path / "runs.sqlite3"
    options = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(file),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
    connections.databases[alias] = connections.configure_settings({"default": {}, alias: options})[alias]
    with django_db_blocker.unblock():
        yield alias
        connections[alias].close()
    del connections[alias], connections.databases[alias]


class Scene:
    """A fleet, and the alias under which this process sees its database."""

    def __init__(self, fleet: Fleet, alias: str) -> None:
        self.fleet = fleet
        self.alias = alias

    def is_finished(self) -> bool:
        """Whether all runs are finished; fails at once when one failed."""
        rows = list(Run.objects.using(self.alias).values_list("status", "errors"))
        assert not [row for row in rows if row[0] == "failed"], rows
        return bool(rows) and all(status == "finished" for status, _ in rows)

    def moves(self) -> bool:
        """Wait for the next line of the log; False when all runs are finished instead."""
        began = len(self.fleet.lines())
        wait_until(lambda: len(self.fleet.lines()) > began or self.is_finished(), LIMIT, self.fleet.logs)
        return not self.is_finished()

    def owner_pid(self) -> int | None:
        """The process that holds the only run now."""
        owners = Run.objects.using(self.alias).filter(status="running").values_list("owner", flat=True)
        return next((int(owner.split(":")[-2]) for owner in owners if owner), None)

    def finish(self) -> Run:
        """Wait until the only run is finished."""
        wait_until(self.is_finished, LIMIT, self.fleet.logs)
        return Run.objects.using(self.alias).get()

    def ledger(self) -> list[int]:
        """The steps whose effect is in the database."""
        return sorted(RunsLedger.objects.using(self.alias).values_list("step", flat=True))


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A fleet over the broker and the database that the test names."""
    broker, database, *more = request.param
    alias = request.getfixturevalue(database)
    url = f"sqlite:///{tmp_path / 'runs.sqlite3'}" if database == "sqlite" else request.getfixturevalue(f"{database}_server").url
    address = broker if broker == "filesystem" else request.getfixturevalue(f"{broker}_server").url
    if broker == "redis":
        import redis

        redis.Redis.from_url(address).flushall()
    fleet = Fleet(tmp_path, url, address, **(more[0] if more else {}))
    if database == "sqlite":
        fleet.migrate()
    try:
        yield Scene(fleet, alias)
    finally:
        fleet.close()
