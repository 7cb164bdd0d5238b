"""Half-open in detail: who may probe, what a refused call is told, and which result counts."""

from __future__ import annotations

import contextvars
import threading
from contextlib import suppress
from typing import Any

import pytest

from resilience import CircuitOpenError
from resilience.circuits.judging import Outcome
from resilience.circuits.probes import Permit
from tests.circuits.conftest import Fleet, ServiceError, is_refused, succeed
from tests.circuits.test_scenarios import begin, end, half_open, opened

BROKEN_CACHE = {"BACKEND": "tests.circuits.test_probes.BrokenCache"}


class BrokenCache:
    """A cache that is away."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        pass

    def close(self, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(name)


@pytest.fixture
def alone(settings: Any, fake_clock: Any) -> Fleet:
    """A process whose cache is away."""
    settings.CACHES = {**settings.CACHES, "broken": BROKEN_CACHE}
    return Fleet("broken", fake_clock)


def test_alone__places_are_limited_in_the_process(alone: Fleet) -> None:
    """Without a cache to agree on them, the places still are as many as configured."""
    breaker = half_open(alone, half_open_max_calls=2)

    first, second = begin(breaker), begin(breaker)
    assert is_refused(breaker)
    end(breaker, first, Outcome.IGNORED)
    third = begin(breaker)

    assert is_refused(breaker)
    for probe in (second, third):
        end(breaker, probe, Outcome.SUCCESS)
    assert breaker.state == "closed"


def test_alone__place_of_a_hung_probe_is_free_after_its_time(alone: Fleet) -> None:
    """The lease runs out by this process's clock."""
    breaker = half_open(alone, half_open_timeout=5, success_threshold=1)
    begin(breaker)
    alone.advance(4.9)
    assert is_refused(breaker)

    alone.advance(0.1)

    succeed(breaker)
    assert breaker.state == "closed"


def test_refused__while_another_process_probes_is_told_when_to_ask_again(fleet: Fleet) -> None:
    """Within one interval: the probe may end at any moment."""
    probing = half_open(fleet, sync_interval=2)
    waiting = fleet.member(failure_threshold=1, sync_interval=2)
    begin(probing)

    with pytest.raises(CircuitOpenError) as refused:
        succeed(waiting)

    assert refused.value.state == "half_open"
    assert refused.value.retry_after == pytest.approx(2, abs=0.1)


def test_refused__asks_again_after_one_interval_however_long_a_probe_may_take(fleet: Fleet) -> None:
    """A place that was given back early is not left empty until its lease would have ended."""
    probing = half_open(fleet, half_open_timeout=600)
    waiting = fleet.member(failure_threshold=1, half_open_timeout=600, success_threshold=1)
    probe = begin(probing)
    assert is_refused(waiting)
    end(probing, probe, Outcome.IGNORED)

    fleet.advance(1)

    succeed(waiting)
    assert waiting.state == "closed"


def test_late__probe_does_not_end_the_one_that_took_its_place(fleet: Fleet) -> None:
    """In the same process: a result past its lease neither decides nor gives its successor's place away."""
    breaker = half_open(fleet, half_open_timeout=5, success_threshold=1)
    late = begin(breaker)
    fleet.advance(5)
    probe = begin(breaker)

    end(breaker, late, Outcome.FAILURE)

    assert breaker.state == "half_open"
    assert is_refused(breaker)
    end(breaker, probe, Outcome.SUCCESS)
    assert breaker.state == "closed"


def test_probe__asked_for_under_an_old_view_is_not_granted(fleet: Fleet) -> None:
    """A call that waited for the lock while the circuit closed takes no place of a half-open time that is over."""
    breaker = half_open(fleet)
    probe = begin(breaker)
    view = probe.view
    breaker.reset()

    assert breaker.circuit.probe(view) is None
    assert not view.leases.get(1)
    assert isinstance(breaker._admit(), Permit)


def test_probe__that_is_slow_closes_where_slowness_opens_nothing(fleet: Fleet) -> None:
    """`slow_call_duration` alone only counts; without a rate to reach, a slow success is a success."""
    breaker = half_open(fleet, slow_call_duration=4, success_threshold=1)

    breaker.call(fleet.advance, 5)

    assert breaker.state == "closed"


def test_probe__that_failed_is_seen_by_all_at_once(fleet: Fleet) -> None:
    """Why the circuit opened again stands in the list of failures that every process reads."""
    breaker = half_open(fleet)

    with pytest.raises(ServiceError):
        breaker.call(_raise, "still on fire")

    latest = fleet.member().get_stats()["recent_failures"][-1]
    assert (latest["error"], latest["message"]) == ("ServiceError", "still on fire")


def test_warning__about_a_call_inside_its_own_probe_is_for_those_only(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A probe that has ended, or another circuit's, is no reason to look for a mistake in the code."""
    breaker = half_open(fleet, success_threshold=3)
    other = half_open(Fleet(fleet.alias, fleet.clock))
    succeed(breaker)
    begin(other)
    begin(fleet.member(failure_threshold=1))

    assert is_refused(breaker)

    assert not [record for record in caplog.records if "its own probe" in record.getMessage()]


def test_opened__again_by_the_late_probe_of_an_earlier_half_open_time(fleet: Fleet) -> None:
    """A probe of one half-open time says nothing in the next."""
    breaker = opened(fleet, half_open_max_calls=2, success_threshold=1)
    fleet.advance(10)
    late, bad = begin(breaker), begin(breaker)
    end(breaker, bad, Outcome.FAILURE)
    fleet.advance(10)
    probe = begin(breaker)

    end(breaker, late, Outcome.SUCCESS)
    assert breaker.state == "half_open"
    end(breaker, late, Outcome.FAILURE)
    assert breaker.state == "half_open"

    end(breaker, probe, Outcome.SUCCESS)
    assert breaker.state == "closed"


def test_probe__that_is_quick_closes_where_slowness_opens(fleet: Fleet) -> None:
    """Only slow probes prove nothing."""
    breaker = half_open(fleet, slow_call_duration=4, slow_call_rate_threshold=0.5, success_threshold=1)

    breaker.call(fleet.advance, 3)

    assert breaker.state == "closed"


def test_warning__is_not_for_a_call_after_the_probe(local_fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A call that comes after a probe of its own request, and meets another request's, is refused without a word."""
    breaker = half_open(local_fleet, success_threshold=3)
    succeed(breaker)
    contextvars.Context().run(begin, local_fleet.member(failure_threshold=1))

    assert is_refused(breaker)

    assert not [record for record in caplog.records if "its own probe" in record.getMessage()]


def test_alone__two_threads_do_not_take_one_place(alone: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache is there to choose between them."""
    breaker = half_open(alone)
    both_ask, take = threading.Barrier(2), breaker.circuit._take_lease
    decided: list[object] = []

    def slowly(*args: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both_ask.wait(0.2)
        return take(*args)

    monkeypatch.setattr(breaker.circuit, "_take_lease", slowly)
    threads = [threading.Thread(target=lambda: decided.append(breaker._admit())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(type(decision).__name__ for decision in decided) == ["CircuitOpenError", "Permit"]


def test_refused__callers_that_waited_for_one_answer_do_not_ask_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that queued up behind the one that asked for a place take its answer."""
    begin(half_open(fleet))
    waiting = fleet.member(failure_threshold=1)
    assert is_refused(waiting)
    asked: list[str] = []
    monkeypatch.setattr(waiting.circuit.store, "run", lambda operation, act: asked.append(operation))

    refused = waiting.circuit.probe(waiting.circuit.view)

    assert isinstance(refused, CircuitOpenError)
    assert asked == []


def _raise(message: str) -> None:
    raise ServiceError(message)
