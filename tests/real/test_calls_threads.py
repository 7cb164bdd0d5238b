"""Threads that a call was moved to leave no connection behind on a real PostgreSQL."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from django.db import connections

from resilience.calls.batches import batch_with_retry
from resilience.calls.timeouts import timeout


def sessions(alias: str) -> int:
    """Count the sessions of this database's user, this one included."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


def ask(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def settled(alias: str, expected: int) -> int:
    """Wait for the server to notice closed sockets, and return the sessions left."""
    limit = time.monotonic() + 10
    while (count := sessions(alias)) != expected and time.monotonic() < limit:
        time.sleep(0.05)
    return count


def test_timeout__worker_threads_leave_no_session_open(postgresql):
    """Twenty limited calls outside the main thread use sessions of their own and close them."""
    before = sessions(postgresql)

    with ThreadPoolExecutor(1) as pool:
        pids = {pool.submit(timeout(30)(ask), postgresql).result(60) for _ in range(20)}

    assert len(pids) == 20
    assert settled(postgresql, before) == before


def test_batch__worker_threads_leave_no_session_open(postgresql):
    """Four workers use at most four sessions for a hundred items and close them."""
    before = sessions(postgresql)

    pids, failed = batch_with_retry([postgresql] * 100, ask, max_workers=4)

    assert failed == []
    assert len(set(pids)) <= 4
    assert settled(postgresql, before) == before
