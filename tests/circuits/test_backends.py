"""What was tried on one backend alone, on each of them: outages, rollbacks, control flow, generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from django.db import transaction

from resilience import CircuitBreaker, signals
from resilience.circuits.outages import WatchedCache
from resilience.exceptions import OperationTimeoutError
from tests.circuits.conftest import Fleet, ServiceError, fail, is_refused, succeed
from tests.circuits.test_scenarios import half_open

Break = Callable[[BaseException | None], None]


@pytest.fixture
def break_cache(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Let every operation on the cache raise, whichever it is, until told otherwise."""
    act = WatchedCache._act
    present: list[BaseException | None] = [None]

    def acting(self: WatchedCache, operation: Callable[[Any], Any]) -> Any:
        if present[0] is not None:
            raise present[0]
        return act(self, operation)

    def switch(error: BaseException | None) -> None:
        present[0] = error

    monkeypatch.setattr(WatchedCache, "_act", acting)
    return switch


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What was told about outages, in order."""
    heard: list[str] = []

    def failed(**kwargs: object) -> None:
        heard.append("failed")

    def recovered(**kwargs: object) -> None:
        heard.append("recovered")

    signals.circuit_store_failed.connect(failed)
    signals.circuit_store_recovered.connect(recovered)
    yield heard
    signals.circuit_store_failed.disconnect(failed)
    signals.circuit_store_recovered.disconnect(recovered)


@pytest.fixture
def file_fleet(settings: Any, fake_clock: Any, tmp_path: Any) -> Fleet:
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {**settings.CACHES, "files": {"BACKEND": backend, "LOCATION": str(tmp_path)}}
    return Fleet("files", fake_clock)


def test_generator__is_refused_on_every_backend(fleet: Fleet) -> None:
    """21: what a generator does happens after the call, so it is refused where it is decorated, and nothing is counted."""
    breaker = fleet.member(failure_threshold=1)

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        breaker(rows)

    assert breaker.get_stats()["success_count"] == 0


def test_generator__consumed_inside_a_guarded_function_counts_its_failure(fleet: Fleet) -> None:
    """21: decorated is what consumes it, and a failure half-way is the call's."""
    breaker = fleet.member(failure_threshold=1)

    def rows() -> Iterator[int]:
        yield 1
        raise ServiceError

    with pytest.raises(ServiceError):
        breaker.call(lambda: list(rows()))

    assert breaker.state == "open"


def test_outage__thresholds_hold_and_are_shared_afterwards(fleet: Fleet, break_cache: Break, told: list[str]) -> None:
    """58: told once each way, the local window trips, one event, and the others hear of it when the cache is back."""
    breaker, other = fleet.member(failure_threshold=3), fleet.member(failure_threshold=3)
    succeed(breaker)
    succeed(other)

    break_cache(ConnectionError("refused"))
    fail(breaker, 3)
    for _ in range(5):
        fleet.advance(0.5)
        assert is_refused(breaker)
    break_cache(None)
    fleet.advance(1.5)
    assert is_refused(breaker)

    assert is_refused(other)
    assert fleet.events == ["open"]
    assert told == ["failed", "recovered"]


def test_outage__is_found_out_by_one_call_a_second_for_all_circuits(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many circuits a process has, a cache that is frozen costs it one time limit a second."""
    breakers = [CircuitBreaker(f"{fleet.name}-{number}", cache=fleet.alias) for number in range(10)]
    for breaker in breakers:
        succeed(breaker)
    asked: list[float] = []

    def freeze(self: WatchedCache, operation: Callable[[Any], Any]) -> Any:
        asked.append(fleet.clock.offset)
        raise TimeoutError

    monkeypatch.setattr(WatchedCache, "_act", freeze)

    for _ in range(50):
        fleet.advance(0.1)
        for breaker in breakers:
            succeed(breaker, 3)

    assert 3 <= len(asked) <= 6


def test_outage__after_a_good_probe_loses_no_result(fleet: Fleet, break_cache: Break) -> None:
    """f: the value is returned, and the circuit closes by what this process knows."""
    breaker = half_open(fleet, success_threshold=1)

    def service() -> str:
        break_cache(ConnectionError("reset"))
        return "good"

    assert breaker.call(service) == "good"
    assert breaker.state == "closed"


def test_control_flow__in_the_cache_reaches_the_worker(fleet: Fleet, break_cache: Break) -> None:
    """i: a soft time limit that strikes in a cache operation is no outage."""
    breaker = fleet.member()
    break_cache(SoftTimeLimitExceeded())

    with pytest.raises(SoftTimeLimitExceeded):
        succeed(breaker)

    break_cache(None)
    assert not breaker.circuit.store.is_down
    assert succeed(breaker) == "fine"


def test_control_flow__time_limit_that_strikes_in_the_cache_is_the_callers(fleet: Fleet, break_cache: Break) -> None:
    """A limit around the call rings while the cache is asked: the caller hears of it, and it is no outage."""
    breaker = fleet.member()
    break_cache(OperationTimeoutError("the report took longer than 5 s.", 5))

    with pytest.raises(OperationTimeoutError):
        succeed(breaker)

    break_cache(None)
    assert not breaker.circuit.store.is_down


@pytest.mark.parametrize("error", [ValueError("bad pickle"), EOFError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")])
def test_outage__of_any_class_reaches_no_caller(fleet: Fleet, break_cache: Break, error: Exception) -> None:
    """What cannot be read is an outage like any other, a ValueError too, which means a missing key to `incr` alone."""
    breaker = fleet.member(failure_threshold=2)
    break_cache(error)

    assert succeed(breaker) == "fine"
    fail(breaker, 2)

    assert is_refused(breaker)


def test_control_flow__of_the_function_passes_and_counts_nowhere(fleet: Fleet) -> None:
    """i: closed and in a probe alike, and the probe's place is free at once."""
    breaker = fleet.member(failure_threshold=1, success_threshold=1)
    for error in (SystemExit, Ignore, Retry, SoftTimeLimitExceeded):
        fail(breaker, 1, error)
    assert breaker.state == "closed"

    fail(breaker)
    fleet.advance(10)
    for error in (SystemExit, Ignore, Retry, SoftTimeLimitExceeded):
        fail(breaker, 1, error)

    assert breaker.state == "half_open"
    succeed(breaker)
    assert breaker.state == "closed"


@pytest.mark.django_db(transaction=True)
def test_rollback__takes_no_failure_back(fleet: Fleet) -> None:
    """g: each failure rolls its transaction back, and the circuit opens all the same."""
    breaker = fleet.member(failure_threshold=3)
    succeed(breaker)

    for _ in range(3):
        with pytest.raises(ServiceError), transaction.atomic(), breaker:
            raise ServiceError

    assert is_refused(breaker)


def test_files__keep_sharing_while_nobody_races(file_fleet: Fleet, break_cache: Break) -> None:
    """The file cache loses races, and nothing else: counts, orders, probes and outages work one after the other."""
    first, second = (file_fleet.member(failure_threshold=4, success_threshold=1) for _ in range(2))
    fail(first, 2)
    fail(second, 2)
    file_fleet.advance(1)
    assert is_refused(first)
    file_fleet.advance(9)
    probe = first._admit()
    assert is_refused(second)
    first.circuit.settle(probe, "success", None)
    file_fleet.advance(1)
    succeed(second)

    break_cache(OSError("disk full"))
    fail(first, 4)
    break_cache(None)
    file_fleet.advance(1.5)
    assert is_refused(first)
    assert is_refused(second)
    assert file_fleet.events == ["open", "half_open", "close", "open"]
    second.reset()
    file_fleet.advance(1)

    assert succeed(first) == "fine"
