"""A transaction that a body leaves open, as a time limit makes it, is given up with its connection when the run is given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from resilience import open_run
from resilience.runs.models import Run
from tests.servers import PostgreSQL


@pytest.fixture
def pooled(postgresql: str, postgresql_server: PostgreSQL) -> Iterator[str]:
    """An alias of the same database, with a pool of two sessions."""
    settings = {**postgresql_server.settings, "OPTIONS": {"pool": {"min_size": 2, "max_size": 2, "timeout": 10}}}
    connections.databases["pooled"] = connections.configure_settings({"default": {}, "pooled": settings})["pooled"]
    yield "pooled"
    connections["pooled"].close()
    connections["pooled"].close_pool()  # type: ignore[attr-defined]  # PostgreSQL's wrapper only
    del connections.databases["pooled"]
    delattr(connections._connections, "pooled")  # type: ignore[attr-defined]


def test_block_left_open__on_a_database_that_went_away_costs_the_run_nothing(
    postgresql: str, mariadb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the body left behind is given up whether or not its server answers, and the run ends."""
    with open_run("a", using=postgresql):
        transaction.atomic(using=mariadb).__enter__()
        monkeypatch.setitem(connections[mariadb].settings_dict, "PORT", "1")

    assert Run.objects.using(postgresql).get().status == "finished"
    assert not connections[mariadb].in_atomic_block


def test_block_left_open__in_a_session_of_a_pool_closes_nobody_elses(postgresql: str, pooled: str) -> None:
    """Whoever waits for a session of the pool gets one that works: not the one that is given up."""
    connections[pooled].ensure_connection()
    pool: Any = connections[pooled].pool  # type: ignore[attr-defined]  # PostgreSQL's wrapper only
    is_over, answers = threading.Event(), []
    spare = pool.getconn()

    def wait_for_one() -> None:
        session = pool.getconn()
        pool.putconn(spare)
        is_over.wait(20)
        answers.append(session.execute("SELECT 1").fetchone())
        session.commit()
        pool.putconn(session)

    with open_run("a", using=postgresql):
        transaction.atomic(using=pooled).__enter__()
        waiting = threading.Thread(target=wait_for_one)
        waiting.start()
        while not pool.get_stats().get("requests_waiting"):
            pass
    is_over.set()
    waiting.join()

    assert answers == [(1,)]
    assert not connections[pooled].in_atomic_block
