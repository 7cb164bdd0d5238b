"""How often, and by whom, a cache that failed is asked again; and what its odd answers do to a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.cache.backends.locmem import LocMemCache

from resilience import CircuitBreaker, signals
from resilience.circuits import registry
from resilience.circuits.circuit import Circuit
from resilience.circuits.outages import StoreUnavailableError, WatchedCache
from resilience.circuits.store import CircuitStore
from tests.circuits.conftest import FakeClock, fail, is_refused, succeed


class FailingCache(LocMemCache):
    """Raises `error` at every read, and counts them."""

    error: Exception | None = None
    reads = 0

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        FailingCache.reads += 1
        if FailingCache.error is not None:
            raise FailingCache.error
        return super().get_many(*args, **kwargs)


@pytest.fixture
def failing(settings: Any) -> Iterator[type[FailingCache]]:
    """The circuits' cache, which fails as soon as a test says how."""
    settings.CACHES = {**settings.CACHES, "failing": {"BACKEND": f"{__name__}.FailingCache", "LOCATION": "failing"}}
    registry.forget_circuits()
    yield FailingCache
    FailingCache.error, FailingCache.reads = None, 0


@pytest.fixture
def recovered() -> Iterator[list[str]]:
    """The caches that were told to be back."""
    aliases: list[str] = []

    def receive(sender: object, alias: str, **kwargs: object) -> None:
        aliases.append(alias)

    signals.circuit_store_recovered.connect(receive)
    yield aliases
    signals.circuit_store_recovered.disconnect(receive)


def test_cache__that_is_away_costs_all_circuits_together_one_attempt_a_second(
    failing: type[FailingCache], fake_clock: FakeClock
) -> None:
    """However many circuits a process has: where each attempt waits for a time limit, fifty would be a minute."""
    breakers = [CircuitBreaker(f"away-{number}", cache="failing") for number in range(50)]
    failing.error = ConnectionError("away")

    for _ in range(3):
        for breaker in breakers:
            succeed(breaker)
        fake_clock.advance(1)

    assert failing.reads == 3


def test_cache__that_is_away_altogether_is_not_taken_for_one_that_is_full(fake_clock: FakeClock) -> None:
    """Where a question failed first, a write that fails next does not open the cache to questions again."""
    cache = WatchedCache("default")
    attempts = []

    def down(_: object) -> None:
        attempts.append(1)
        raise ConnectionError

    for operation, later in (("get", 0), ("incr", 1), ("get", 0), ("get", 0)):
        fake_clock.advance(later)
        with pytest.raises(StoreUnavailableError):
            cache.run(operation, down)

    assert len(attempts) == 2


def test_cache__that_is_away_is_asked_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch, fake_clock: FakeClock) -> None:
    """When an attempt is due, two threads that come at the same instant make one."""
    cache = WatchedCache("default")
    refused: list[bool] = []

    def down(_: object) -> None:
        raise ConnectionError

    with pytest.raises(StoreUnavailableError):
        cache.run("get", down)
    fake_clock.advance(10)
    both_are_let_through = threading.Barrier(2)

    def spacing(_: WatchedCache) -> float:
        with suppress(threading.BrokenBarrierError):
            both_are_let_through.wait(0.2)
        return 1.0

    monkeypatch.setattr(WatchedCache, "_spacing", property(spacing))

    def claim() -> None:
        refused.append(not cache._claims_attempt())

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(refused) == [False, True]


def test_cache__that_never_failed_is_not_told_to_be_back(failing: type[FailingCache], recovered: list[str]) -> None:
    """A process that starts finds its cache in order and has nothing to tell."""
    succeed(CircuitBreaker("healthy", cache="failing"), 3)

    assert failing.reads
    assert recovered == []


def test_cache__a_value_that_cannot_be_read_is_an_outage_and_no_error_of_the_call(failing: type[FailingCache]) -> None:
    """A ValueError of a read, as of a pickle of another version, stays between the circuit and its cache."""
    failing.error = ValueError("unsupported pickle protocol: 6")
    breaker = CircuitBreaker("unreadable", cache="failing", failure_threshold=2)

    assert succeed(breaker) == "fine"
    fail(breaker, 2)
    assert is_refused(breaker)
    assert breaker.circuit.store.is_down


def test_redeclare__in_another_cache_takes_the_state_from_there(settings: Any, fake_clock: FakeClock) -> None:
    """What the process knew was of the cache before; it neither counts in the new one nor overwrites what that says."""
    caches = {alias: {**settings.CACHES["default"], "LOCATION": alias} for alias in ("before", "after")}
    settings.CACHES = {**settings.CACHES, **caches}
    settings.RESILIENCE = {"CACHE": "before"}
    breaker = CircuitBreaker("moved")
    for _ in range(3):
        breaker.open()
        breaker.reset()
    elsewhere = CircuitBreaker("elsewhere")
    elsewhere._prepare()
    elsewhere._circuit = Circuit("moved", CircuitStore("after"), breaker.config, "tests", CircuitBreaker)
    elsewhere.open()
    assert not is_refused(breaker)

    settings.RESILIENCE = {"CACHE": "after"}

    assert is_refused(breaker)


def down(_: object) -> None:
    raise ConnectionError


def test_child__of_a_process_whose_cache_was_away_asks_for_itself(fake_clock: FakeClock) -> None:
    """It may be a fresh worker that can connect; what its parent has still to tell is told by the parent."""
    cache = WatchedCache("default")
    told: list[object] = []
    with pytest.raises(StoreUnavailableError):
        cache.run("get", down)

    cache.start_over()

    assert cache.run("get", lambda _: "an answer") == "an answer"
    signals.circuit_store_failed.connect(receiver := lambda **kwargs: told.append(kwargs))
    cache.tell_news()
    signals.circuit_store_failed.disconnect(receiver)
    assert told == []


def test_child__does_not_wait_for_a_thread_of_its_parent(fake_clock: FakeClock) -> None:
    """A lock that was held at the moment of the fork is held for ever."""
    cache = WatchedCache("default")
    outcomes: list[str] = []

    def work() -> None:
        with suppress(StoreUnavailableError):
            cache.run("get", down)
        outcomes.append("went on")

    with cache._lock:
        cache.start_over()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(10)

    assert outcomes == ["went on"]
