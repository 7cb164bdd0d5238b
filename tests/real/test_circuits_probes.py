"""Half-open over real processes on a real Redis: how many probe, and what a killed one leaves."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.length import LONG
from tests.real.circuits_fleet import Processes, redis_cache
from tests.servers import Redis


def fresh(count: int) -> list[str]:
    return [f"circuit-{uuid.uuid4().hex}" for _ in range(count)]


@pytest.mark.chaos
@pytest.mark.parametrize("places", [1, 3])
def test_probes__never_exceed_the_places(redis_server: Redis, places: int) -> None:
    """16 processes with 8 threads each arrive together at a circuit whose open time is over."""
    (name,) = fresh(1)
    count = 16 if LONG else 8
    fields = {"failure_threshold": 1, "recovery_timeout": 0.3, "half_open_max_calls": places, "success_threshold": 10_000}

    with Processes(count, redis_cache(redis_server.url, 5.0), sync_interval=0.05, **fields) as fleet:
        fleet[0].ask("calls", names=[name], kind="fail")
        at = time.time() + 0.5

        answers = fleet.ask("storm", name=name, threads=8, calls=40, at=at, url=redis_server.url)

        assert 1 <= max(answer["peak"] for answer in answers) <= places
        assert sum(answer["probes"] for answer in answers) > places
        assert fleet.events()[f"half_opened:{name}"] == 1


@pytest.mark.chaos
def test_probes__killed_one_frees_its_place_in_time(redis_server: Redis) -> None:
    """SIGKILL in mid-call: the next probe goes through after `half_open_timeout`, and not before."""
    (name,) = fresh(1)
    fields = {"failure_threshold": 1, "recovery_timeout": 0.2, "half_open_timeout": 2.0, "success_threshold": 1}

    with Processes(2, redis_cache(redis_server.url), sync_interval=0.1, **fields) as fleet:
        dead, living = fleet
        dead.ask("calls", names=[name], kind="fail")
        time.sleep(0.3)
        dead.send("hang", name=name)
        assert dead.receive() == "probing"
        began = time.monotonic()
        dead.popen.kill()

        refused = 0
        while living.ask("calls", names=[name], kind="fine") != ["fine"]:
            refused += 1
            time.sleep(0.02)
            assert time.monotonic() - began < 30
        waited = time.monotonic() - began

        assert 1.9 <= waited < 3.5
        assert refused > 10
        assert living.ask("states", names=[name]) == ["closed"]


@pytest.mark.chaos
def test_probes__close_soon_after_the_service_is_back(redis_server: Redis) -> None:
    """Within `recovery_timeout` and two intervals everybody calls again."""
    names = fresh(10)
    fields = {"failure_threshold": 1, "recovery_timeout": 0.5, "success_threshold": 1}

    with Processes(4, redis_cache(redis_server.url), sync_interval=0.2, **fields) as fleet:
        fleet.ask("calls", names=names, kind="fine")
        fleet[0].ask("calls", names=names, kind="fail")
        time.sleep(0.5)
        fleet[1].ask("calls", names=names, kind="fine")
        time.sleep(0.4)

        assert fleet.ask("calls", names=names, kind="fine") == [["fine"] * 10] * 4
