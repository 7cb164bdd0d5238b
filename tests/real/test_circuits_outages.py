"""Circuits while their cache is stopped, frozen, restarted, flushed or evicting. The guarded service is never in doubt."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience import circuit_breaker
from tests.real.circuits_fleet import Processes, memcached_cache, redis_cache
from tests.servers import Memcached, Redis, Server, wait_until

INTERVAL = 0.2
#: A cache that failed is tried again at most once a second.
SPACING = 1.0


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def memcached() -> Iterator[Memcached]:
    with Memcached() as server:
        yield server


def fresh() -> str:
    return f"circuit-{uuid.uuid4().hex}"


def cache_of(server: Server) -> dict[str, Any]:
    return redis_cache(server.url) if isinstance(server, Redis) else memcached_cache(server.location)


@pytest.fixture(params=["redis", "memcached"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.mark.chaos
def test_outage__stopped_cache_reaches_no_caller_and_thresholds_hold(server: Server) -> None:
    """Calls go on, five local failures still open the circuit, and the outage is told once by each process."""
    name, other = fresh(), fresh()

    with Processes(2, cache_of(server), failure_threshold=5, recovery_timeout=600, sync_interval=INTERVAL) as fleet:
        fleet.ask("calls", names=[name, other], kind="fine")
        server.kill()
        time.sleep(INTERVAL)

        first, second = fleet
        assert first.ask("calls", names=[name] * 5, kind="fail") == ["failed"] * 5
        assert first.ask("calls", names=[name, other], kind="fine") == ["refused", "fine"]
        assert second.ask("timed", name=name, kind="fine", times=30, pause=0.05)["outcomes"] == {"fine": 30}
        assert fleet.events()["store:failed"] == 2

        server.start()
        wait_until(
            lambda: fleet.ask("calls", names=[name], kind="fine") == [["refused"]] * 2, 15, "the open circuit is brought back"
        )
        events = fleet.events()
        assert events["store:recovered"] == 2
        assert events[f"opened:{name}"] == 1


@pytest.mark.chaos
def test_outage__frozen_cache_costs_one_timeout_an_interval(redis: Redis) -> None:
    """A server that accepts and never answers delays one call a second by its socket timeout, and no other."""
    name = fresh()

    with Processes(1, redis_cache(redis.url), sync_interval=INTERVAL) as (process,):
        process.ask("calls", names=[name], kind="fine")
        redis.freeze()
        began = time.monotonic()
        answer = process.ask("timed", name=name, kind="fine", times=150, pause=0.02)
        elapsed = time.monotonic() - began
        redis.thaw()

        assert answer["outcomes"] == {"fine": 150}
        assert 1 <= answer["slow"] <= elapsed / SPACING + 2
        assert answer["longest"] < 2
        assert process.ask("events")["store:failed"] == 1
        wait_until(lambda: process.ask("calls", names=[name], kind="fine") and process.ask("events").get("store:recovered"), 15)


@pytest.mark.chaos
async def test_outage__frozen_cache_does_not_stop_the_event_loop(redis: Redis, settings: Any) -> None:
    """Calls on the loop wait for the cache in a thread; everything else on the loop goes on."""
    cache = redis_cache(redis.url, 0.5)
    cache["OPTIONS"]["retry"] = Retry(NoBackoff(), 0)
    settings.CACHES = {**settings.CACHES, "frozen": cache}
    service = circuit_breaker(fresh(), cache="frozen", sync_interval=INTERVAL)(asyncio.sleep)
    await service(0)
    beats: list[float] = []

    async def heart() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    beating = asyncio.ensure_future(heart())
    redis.freeze()
    for _ in range(20):
        await asyncio.gather(*(service(0.02) for _ in range(10)))
    beating.cancel()
    redis.thaw()

    assert beats[-1] - beats[0] > 0.5
    assert max(later - earlier for earlier, later in pairwise(beats)) < 0.4


@pytest.mark.chaos
@pytest.mark.parametrize("loss", ["flush", "restart"])
def test_outage__open_circuit_survives_an_emptied_cache(server: Server, loss: str) -> None:
    """Whoever knows the circuit open puts it back; a process started meanwhile agrees soon."""
    name = fresh()
    cache = cache_of(server)

    with Processes(2, cache, failure_threshold=1, recovery_timeout=600, sync_interval=INTERVAL) as fleet:
        fleet.ask("calls", names=[name], kind="fine")
        fleet[0].ask("calls", names=[name], kind="fail")
        time.sleep(INTERVAL)
        assert fleet.ask("calls", names=[name], kind="fine") == [["refused"]] * 2
        if loss == "restart":
            server.restart()
        else:
            _flush(server)

        with Processes(1, cache, failure_threshold=1, recovery_timeout=600, sync_interval=INTERVAL) as (newcomer,):
            newcomer.ask("calls", names=[name], kind="fine")
            assert fleet.ask("calls", names=[name], kind="fine") == [["refused"]] * 2
            wait_until(
                lambda: (
                    fleet.ask("calls", names=[name], kind="fine") == [["refused"]] * 2
                    and newcomer.ask("calls", names=[name], kind="fine") == ["refused"]
                ),
                15,
                "the fleet agrees",
            )
        assert fleet.events()[f"opened:{name}"] == 1


@pytest.mark.chaos
def test_outage__evicting_cache_loses_no_open_circuit() -> None:
    """A Redis with too little memory throws keys out at random while circuits open; nobody meets an error."""
    import redis as driver

    names = [fresh() for _ in range(10)]

    with (
        Redis("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random") as server,
        Processes(2, redis_cache(server.url, 2.0), failure_threshold=3, recovery_timeout=600, sync_interval=INTERVAL) as fleet,
        driver.Redis(port=server.port) as client,
    ):
        fleet.ask("calls", names=names, kind="fine")
        for _ in range(3):
            for number in range(2000):
                client.set(f"noise-{number}", b"x" * 2000)
            fleet[0].ask("calls", names=names, kind="fail")
        assert client.info("stats")["evicted_keys"] > 1000
        for number in range(2000):
            client.set(f"more-noise-{number}", b"x" * 2000)
        time.sleep(INTERVAL * 3)

        assert fleet[0].ask("calls", names=names, kind="fine") == ["refused"] * 10
        wait_until(lambda: fleet.ask("calls", names=names, kind="fine") == [["refused"] * 10] * 2, 15, "the other process agrees")


def _flush(server: Server) -> None:
    if isinstance(server, Redis):
        import redis as driver

        with driver.Redis(port=server.port) as client:
            client.flushall()
    else:
        from pymemcache.client.base import Client

        with closing(Client(("127.0.0.1", server.port))) as client:
            client.flush_all()
