"""Circuits shared by real processes on a real Redis."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from tests.real.circuits_fleet import Processes, memcached_cache, redis_cache
from tests.servers import Redis, wait_until

INTERVAL = 0.3


def fresh(count: int) -> list[str]:
    return [f"circuit-{uuid.uuid4().hex}" for _ in range(count)]


@pytest.mark.chaos
def test_fleet__five_failures_in_five_processes_open_for_all_eight(redis_server: Redis) -> None:
    """200 circuits: each opens by the sum of its failures, everybody refuses in time, and one process tells."""
    names = fresh(200)
    cache = redis_cache(redis_server.url)

    with Processes(8, cache, failure_threshold=5, sync_interval=INTERVAL) as fleet:
        fleet.ask("calls", names=names, kind="fine")
        for position in range(5):
            for number, process in enumerate(fleet):
                process.send("calls", names=[name for i, name in enumerate(names) if (i + position) % 8 == number], kind="fail")
            for process in fleet:
                assert set(process.receive()) <= {"failed"}
        time.sleep(INTERVAL + 0.2)

        answers = fleet.ask("calls", names=names, kind="fine")

        assert all(set(answer) == {"refused"} for answer in answers)
        events = fleet.events()
        assert {events[f"opened:{name}"] for name in names} == {1}
        assert {events[f"callback:{name}"] for name in names} == {1}


@pytest.mark.chaos
def test_fleet__sixteen_processes_failing_at_once_make_one_event(redis_server: Redis) -> None:
    """Everybody crosses the threshold in the same moment; one wins."""
    names = fresh(20)

    with Processes(16, redis_cache(redis_server.url, 2.0), failure_threshold=5, sync_interval=INTERVAL) as fleet:
        fleet.ask("calls", names=names, kind="fine")
        fleet.ask("calls", names=names, kind="fail", at=time.time() + 0.3)
        time.sleep(INTERVAL)

        assert fleet.ask("states", names=names) == [["open"] * 20] * 16
        events = fleet.events()
        assert {events[f"opened:{name}"] for name in names} == {1}


@pytest.mark.parametrize("backend", ["redis", "django_redis", "memcached", "file"])
def test_fleet__fork_after_first_use_keeps_sharing(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A child of a process that used the circuit counts for the fleet, and the parent hears of it."""
    (name,) = fresh(1)
    if backend == "memcached":
        cache = memcached_cache(request.getfixturevalue("memcached_server").location)
    elif backend == "file":
        cache = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}
    elif backend == "django_redis":
        url = request.getfixturevalue("redis_server").url.replace("/0", "/1")
        cache = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": url}
    else:
        cache = redis_cache(request.getfixturevalue("redis_server").url)

    with Processes(1, cache, failure_threshold=3, sync_interval=0.1) as (process,):
        answer = process.ask("fork", name=name)

    assert answer == {"before": "fine", "child": ["failed", "failed", "failed", "refused"], "after": "refused"}


def test_fleet__an_order_reaches_all(redis_server: Redis) -> None:
    """Forced open in one process, refused in the others after one interval, and back."""
    (name,) = fresh(1)

    with Processes(3, redis_cache(redis_server.url), sync_interval=0.2) as fleet:
        fleet.ask("calls", names=[name], kind="fine")
        fleet[0].ask("operate", name=name, action="open")
        time.sleep(0.25)
        assert fleet.ask("calls", names=[name], kind="fine") == [["refused"]] * 3
        fleet[1].ask("operate", name=name, action="reset")
        time.sleep(0.25)

        assert fleet.ask("calls", names=[name], kind="fine") == [["fine"]] * 3
        wait_until(lambda: set(map(tuple, fleet.ask("states", names=[name]))) == {("closed",)})
