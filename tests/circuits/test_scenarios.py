"""What other libraries' suites, and the races they miss, ask of a breaker: the numbers follow one catalogue of them.

Each runs on every backend, where `fleet.member()` stands for a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from typing import Any

import pytest
from django.core.cache import caches

from resilience import CircuitOpenError, RetryConfig, retry
from resilience.circuits.judging import Outcome
from resilience.circuits.probes import Permit
from tests.circuits.conftest import Fleet, MinorError, ServiceError, fail, is_refused, succeed


def begin(breaker: Any) -> Permit:
    """Begin a call that ends when the test says so."""
    permit = breaker._admit()
    assert isinstance(permit, Permit), permit
    return permit


def end(breaker: Any, permit: Permit, outcome: str) -> None:
    breaker.circuit.settle(permit, outcome, ServiceError("broken") if outcome == Outcome.FAILURE else None)


def opened(fleet: Fleet, **fields: Any) -> Any:
    breaker = fleet.member(failure_threshold=1, **fields)
    fail(breaker)
    assert breaker.state == "open"
    return breaker


def half_open(fleet: Fleet, **fields: Any) -> Any:
    breaker = opened(fleet, **fields)
    fleet.advance(10)
    return breaker


# Closed


def test_closed__success_does_not_reset_the_count(fleet: Fleet) -> None:
    """1: failures are counted in the window, so a success between them hides nothing."""
    breaker = fleet.member(failure_threshold=2)

    fail(breaker)
    succeed(breaker)
    fail(breaker)

    assert breaker.state == "open"


def test_closed__opens_at_the_threshold_with_that_count(fleet: Fleet) -> None:
    """2: the third failure of three opens, and the count says three."""
    breaker = fleet.member(failure_threshold=3)

    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)

    assert breaker.state == "open"
    assert breaker.get_stats()["failure_count"] == 3


def test_closed__tripping_call_raises_its_own_error(fleet: Fleet) -> None:
    """3, 4: the call that opens the circuit raises what the service raised; the next one is refused and names it."""
    breaker = fleet.member(failure_threshold=1)

    fail(breaker)
    with pytest.raises(CircuitOpenError) as refused:
        succeed(breaker)

    assert refused.value.last_error == "ServiceError: broken"


def test_closed__rate_waits_for_the_minimum_and_a_success_may_complete_it(fleet: Fleet) -> None:
    """5: 3 of 4 failed is unknown below five calls; the fifth call succeeds and opens it."""
    breaker = fleet.member(failure_rate_threshold=0.5, minimum_calls=5)

    fail(breaker, 3)
    succeed(breaker)
    assert breaker.state == "closed"
    assert breaker.get_stats()["failure_rate"] is None
    succeed(breaker)

    assert breaker.state == "open"


def test_closed__rate_over_time_opens_on_the_call_that_reaches_it(fleet: Fleet) -> None:
    """6: calls spread over the window count together."""
    breaker = fleet.member(failure_rate_threshold=0.5, minimum_calls=4, failure_window=60)

    for _ in range(2):
        succeed(breaker)
        fleet.advance(10)
    fail(breaker)
    assert breaker.state == "closed"
    fleet.advance(10)
    fail(breaker)

    assert breaker.state == "open"


def test_closed__slow_calls_open_whether_they_fail_or_not(fleet: Fleet) -> None:
    """7: three of five calls at or above the limit reach a slow rate of one half."""
    breaker = fleet.member(slow_call_duration=4, slow_call_rate_threshold=0.5, minimum_calls=5, failure_threshold=100)

    succeed(breaker, 2)
    for _ in range(2):
        breaker.call(fleet.advance, 5)
    assert breaker.state == "closed"
    breaker.call(fleet.advance, 5)

    assert breaker.state == "open"


def test_closed__slow_failures_are_slow_calls_too(fleet: Fleet) -> None:
    """7: a service that takes its time to fail is as slow as one that takes it to answer."""
    breaker = fleet.member(slow_call_duration=4, slow_call_rate_threshold=0.5, minimum_calls=4, failure_threshold=100)

    def service() -> None:
        fleet.advance(5)
        raise ServiceError

    succeed(breaker, 2)
    for _ in range(2):
        assert breaker.state == "closed"
        with pytest.raises(ServiceError):
            breaker.call(service)

    assert breaker.state == "open"
    assert breaker.get_stats()["transitions"][-1]["reason"] == "2 of 4 calls took 4 s or longer"


def test_closed__again_a_rate_begins_at_nothing(fleet: Fleet) -> None:
    """48: the first calls after the recovery are judged by themselves."""
    breaker = half_open(fleet, failure_rate_threshold=1.0, minimum_calls=1, success_threshold=1)
    succeed(breaker)

    succeed(breaker, 2)
    fail(breaker)

    stats = breaker.get_stats()
    assert (stats["state"], stats["failure_count"], stats["success_count"]) == ("closed", 1, 2)


@pytest.mark.parametrize(("calls", "state"), [(9, "closed"), (10, "open")])
def test_closed__minimum_and_rate_reached_exactly_are_enough(fleet: Fleet, calls: int, state: str) -> None:
    """8, 12, 14: one call below the minimum nothing opens; at the minimum the rate itself is enough."""
    breaker = fleet.member(failure_rate_threshold=0.5, minimum_calls=10)

    succeed(breaker, calls - 5)
    fail(breaker, 5)

    assert breaker.state == state


def test_closed__failures_as_old_as_the_window_do_not_count(fleet: Fleet) -> None:
    """9, 10: a failure counts while it is younger than the window, and no longer."""
    breaker = fleet.member(failure_threshold=2, failure_window=60)

    fail(breaker)
    fleet.advance(60)
    fail(breaker)
    assert breaker.state == "closed"
    fleet.advance(59)
    fail(breaker)

    assert breaker.state == "open"


def test_closed__window_slides(fleet: Fleet) -> None:
    """11: counts leave one by one and not all at once at a boundary."""
    breaker = fleet.member(failure_threshold=3, failure_window=60)

    for _ in range(10):
        fail(breaker)
        fleet.advance(35)

    assert breaker.state == "closed"
    assert 1 <= breaker.get_stats()["failure_count"] <= 2


def test_closed__timeouts_are_failures(fleet: Fleet) -> None:
    """13: a timeout counts like any failure."""
    breaker = fleet.member(failure_threshold=2)

    fail(breaker, 2, TimeoutError)

    assert breaker.state == "open"


def test_closed__counts_start_afresh_after_it_was_open(fleet: Fleet) -> None:
    """15, 16, 48: what was counted before the circuit opened does not open it again."""
    breaker = half_open(fleet, success_threshold=1, failure_window=600)

    succeed(breaker)

    assert breaker.state == "closed"
    assert breaker.get_stats()["failure_count"] == 0


def test_closed__result_judged_bad_counts_and_is_returned(fleet: Fleet) -> None:
    """17: nothing was raised, the value arrives, and the circuit opens."""
    breaker = fleet.member(failure_threshold=2, failure_on_result=lambda value: value is None)

    assert succeed(breaker, 2, value=None) is None

    assert breaker.state == "open"


def test_closed__ignored_counts_as_nothing_and_unlisted_as_success(fleet: Fleet) -> None:
    """18: `ignore` moves no count; what is not in `exceptions` means that the service answered."""
    breaker = fleet.member(failure_threshold=2, exceptions=ServiceError, ignore=MinorError)

    fail(breaker, 3, MinorError)
    fail(breaker, 3, KeyError)

    stats = breaker.get_stats()
    assert (stats["failure_count"], stats["success_count"], stats["state"]) == (0, 3, "closed")


def test_closed__failure_if_lets_off(fleet: Fleet) -> None:
    """19: a predicate tells 503 from 404."""
    breaker = fleet.member(failure_threshold=2, failure_if=lambda error: isinstance(error, ServiceError))

    fail(breaker, 5, KeyError)
    assert breaker.state == "closed"
    fail(breaker, 2)

    assert breaker.state == "open"


def test_closed__cancellation_counts_nothing(fleet: Fleet) -> None:
    """20: the caller's cancellation says nothing about the service."""
    breaker = fleet.member(failure_threshold=1)

    fail(breaker, 1, asyncio.CancelledError)
    fail(breaker, 1, SystemExit)
    fail(breaker, 1, KeyboardInterrupt)

    stats = breaker.get_stats()
    assert (stats["failure_count"], stats["success_count"], stats["state"]) == (0, 0, "closed")


# Open


def test_open__function_is_not_run(fleet: Fleet) -> None:
    """22: a refused call does not reach the service, in a block neither."""
    breaker = opened(fleet)
    calls: list[int] = []

    with pytest.raises(CircuitOpenError):
        breaker.call(calls.append, 1)
    with pytest.raises(CircuitOpenError), breaker:
        calls.append(2)

    assert calls == []


def test_open__refusals_change_neither_counts_nor_time(fleet: Fleet) -> None:
    """23: a thousand refusals do not keep the circuit open longer."""
    breaker = opened(fleet)
    fleet.advance(5)

    assert all(is_refused(breaker) for _ in range(50))

    stats = breaker.get_stats()
    assert stats["failure_count"] == 1
    assert stats["rejected_count"] == 50
    assert stats["retry_after"] == pytest.approx(5, abs=0.01)


def test_open__fallback_gets_the_arguments(fleet: Fleet) -> None:
    """24: the fallback stands in for the call, and only for refused ones."""
    breaker = fleet.member(failure_threshold=1, fallback=lambda one, *, two, exc: (one, two, type(exc)))

    with pytest.raises(ServiceError):
        breaker.call(_raise, 1, two=2)
    answer = breaker.call(_raise, 1, two=2)

    assert answer == (1, 2, CircuitOpenError)


def test_open__refuses_until_its_time_is_over(fleet: Fleet) -> None:
    """25: refused at 3 of 5 seconds, a probe with fresh counts at 6."""
    breaker = opened(fleet, recovery_timeout=5)

    fleet.advance(3)
    assert is_refused(breaker)
    fleet.advance(3)

    assert breaker.state == "half_open"
    succeed(breaker)
    assert breaker.get_stats()["failure_count"] == 0


def test_open__for_a_given_time(fleet: Fleet) -> None:
    """26: two hours by hand replace the configured wait."""
    breaker = fleet.member()

    breaker.open(7200)
    fleet.advance(7199)
    assert is_refused(breaker)
    fleet.advance(1)

    assert not is_refused(breaker)


def test_open__time_grows_with_failed_probes(fleet: Fleet) -> None:
    """27: after a failed probe the wait of 5 s is 10 s: refused at 6, a probe at 11."""
    breaker = opened(fleet, recovery_timeout=5, recovery_backoff=2)
    fleet.advance(5)
    fail(breaker)

    fleet.advance(6)
    assert is_refused(breaker)
    fleet.advance(5)

    assert not is_refused(breaker)


def test_open__growth_starts_again_after_closing(fleet: Fleet) -> None:
    """28: a recovery ends the growth."""
    breaker = opened(fleet, recovery_timeout=5, recovery_backoff=2, success_threshold=1)
    fleet.advance(5)
    fail(breaker)
    fleet.advance(10)
    succeed(breaker)
    fail(breaker)

    fleet.advance(5)

    assert breaker.state == "half_open"


def test_open__retry_after_is_the_time_left(fleet: Fleet) -> None:
    """29: the error tells the seconds that remain; forced open without an end has none."""
    breaker = opened(fleet)
    fleet.advance(4)

    with pytest.raises(CircuitOpenError) as first:
        succeed(breaker)
    breaker.open()
    with pytest.raises(CircuitOpenError) as forced:
        succeed(breaker)

    assert first.value.retry_after == pytest.approx(6, abs=0.01)
    assert forced.value.retry_after is None
    assert forced.value.state == "forced_open"


def test_open__each_refusal_has_an_error_of_its_own(fleet: Fleet) -> None:
    """30: tracebacks do not pile up on one shared instance."""
    breaker = opened(fleet)

    errors = []
    for _ in range(20):
        with pytest.raises(CircuitOpenError) as refused:
            succeed(breaker)
        errors.append(refused)

    assert len({id(item.value) for item in errors}) == 20
    assert len({len(item.traceback) for item in errors}) == 1


def test_open__late_failure_neither_repeats_the_event_nor_prolongs(fleet: Fleet) -> None:
    """31: a call begun before the trip fails afterwards and changes nothing."""
    breaker = fleet.member(failure_threshold=1)
    late = begin(breaker)
    fail(breaker)
    fleet.advance(4)

    end(breaker, late, Outcome.FAILURE)

    assert fleet.events == ["open"]
    assert breaker.get_stats()["retry_after"] == pytest.approx(6, abs=0.01)


def test_open__huge_times_saturate(fleet: Fleet) -> None:
    """32: growth beyond what a float holds ends at the cap."""
    breaker = opened(fleet, recovery_timeout=1e5, recovery_backoff=1e300, max_recovery_timeout=1e9)
    for _ in range(3):
        breaker.half_open()
        fail(breaker)

    assert breaker.get_stats()["retry_after"] <= 1e9


def test_open__time_left_never_goes_below_zero(fleet: Fleet) -> None:
    """33: closed and half-open have no time left to wait; open counts down to 0."""
    breaker = opened(fleet, success_threshold=1)
    fleet.advance(9)
    assert breaker.get_stats()["retry_after"] == pytest.approx(1, abs=0.01)
    fleet.advance(50)

    assert breaker.get_stats()["retry_after"] is None
    succeed(breaker)
    assert breaker.get_stats()["retry_after"] is None


def test_open__ends_retrying(fleet: Fleet) -> None:
    """34: seven attempts around a threshold of three call the service three times."""
    breaker = fleet.member(failure_threshold=3)
    calls: list[int] = []

    @retry(RetryConfig(max_attempts=7, delay=0, jitter=False, exceptions=Exception))
    @breaker
    def service() -> None:
        calls.append(1)
        raise ServiceError

    with pytest.raises(CircuitOpenError):
        service()

    assert len(calls) == 3


def test_open__becomes_half_open_by_time_alone(fleet: Fleet) -> None:
    """35: nobody has to call for the state to say so; forcing it open undoes that."""
    breaker = opened(fleet)
    fleet.advance(10)

    assert breaker.state == "half_open"
    breaker.open()
    assert breaker.state == "forced_open"
    assert is_refused(breaker)


# Half-open


def test_half_open__has_so_many_places_and_as_many_again(fleet: Fleet) -> None:
    """36, 43: the fifth of four is refused at once; a later half-open time has four again."""
    breaker = half_open(fleet, half_open_max_calls=4)

    for _ in range(2):
        probes = [begin(breaker) for _ in range(4)]
        assert is_refused(breaker)
        for probe in probes:
            end(breaker, probe, Outcome.FAILURE)
        fleet.advance(10)

    assert fleet.events == ["open", "half_open", "open", "half_open", "open"]


def test_half_open__place_given_back_is_free(fleet: Fleet) -> None:
    """37, 39, 46: an ignored or cancelled probe gives its place to the next caller and counts nowhere."""
    breaker = half_open(fleet, success_threshold=1)
    probe = begin(breaker)
    assert is_refused(breaker)

    end(breaker, probe, Outcome.IGNORED)

    succeed(breaker)
    assert breaker.state == "closed"


def test_half_open__ignored_exceptions_move_nothing(fleet: Fleet) -> None:
    """38: any number of them."""
    breaker = half_open(fleet, ignore=MinorError)

    fail(breaker, 5, MinorError)

    assert breaker.state == "half_open"
    assert breaker.get_stats()["success_count"] == 0


def test_half_open__slow_probe_opens(fleet: Fleet) -> None:
    """40: where slowness opens a circuit, a slow probe proves nothing."""
    breaker = half_open(fleet, slow_call_duration=4, slow_call_rate_threshold=0.5)

    breaker.call(fleet.advance, 5)

    assert breaker.state == "open"


def test_half_open__closes_after_enough_successes(fleet: Fleet) -> None:
    """41: two of three leave it half-open, the third closes it with counts at zero."""
    breaker = half_open(fleet, success_threshold=3)

    succeed(breaker, 2)
    assert breaker.state == "half_open"
    succeed(breaker)

    assert breaker.state == "closed"
    assert fleet.events == ["open", "half_open", "close"]


def test_half_open__one_failure_opens_and_forgets_the_successes(fleet: Fleet) -> None:
    """41, 42: success has become impossible, so it opens at once."""
    breaker = half_open(fleet, success_threshold=3)

    succeed(breaker, 2)
    fail(breaker)
    assert breaker.state == "open"
    fleet.advance(10)
    succeed(breaker, 2)

    assert breaker.state == "half_open"


def test_half_open__many_threads_never_exceed_the_places(fleet: Fleet, request: pytest.FixtureRequest) -> None:
    """44: peak probes stay at the limit however many threads arrive."""
    if "database" in request.node.name:
        # A database in memory belongs to one thread: the threads of this test would each see an empty one.
        breaker = half_open(fleet, half_open_max_calls=2)
        probes = [breaker._admit() for _ in range(10)]
        assert sum(isinstance(probe, Permit) for probe in probes) == 2
        return
    breaker = half_open(fleet, half_open_max_calls=2, success_threshold=1000)
    lock, gate = threading.Lock(), threading.Barrier(16)
    running, peak = [], []

    def service() -> None:
        with lock:
            running.append(1)
            peak.append(len(running))
        threading.Event().wait(0.002)
        with lock:
            running.pop()

    def caller() -> None:
        gate.wait()
        for _ in range(10):
            try:
                breaker.call(service)
            except CircuitOpenError:
                threading.Event().wait(0.001)
        caches[fleet.alias].close()

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 <= max(peak) <= 2


def test_half_open__places_are_shared_by_the_fleet(fleet: Fleet) -> None:
    """45: two places, three processes: one each, and the third is refused."""
    first = half_open(fleet, half_open_max_calls=2)
    second, third = (fleet.member(failure_threshold=1, half_open_max_calls=2) for _ in range(2))

    begin(first)
    begin(second)

    assert is_refused(third)


def test_half_open__does_not_last_for_ever(fleet: Fleet) -> None:
    """47: a probe without a result frees its place after `half_open_timeout`."""
    breaker = half_open(fleet, half_open_timeout=3, success_threshold=1)
    begin(breaker)

    fleet.advance(2.9)
    assert is_refused(breaker)
    fleet.advance(0.1)

    succeed(breaker)
    assert breaker.state == "closed"


# Late results


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILURE])
def test_late__result_of_an_earlier_period_changes_no_count(fleet: Fleet, outcome: str) -> None:
    """49: begun in one closed period, ended in the next."""
    breaker = fleet.member(failure_threshold=2)
    late = begin(breaker)
    breaker.reset()

    end(breaker, late, outcome)

    stats = breaker.get_stats()
    assert (stats["failure_count"], stats["success_count"]) == (0, 0)


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILURE])
def test_late__call_of_the_closed_time_is_not_a_probe(fleet: Fleet, outcome: str) -> None:
    """50: admitted while closed, ended while half-open."""
    breaker = fleet.member(failure_threshold=1, success_threshold=1)
    late = begin(breaker)
    fail(breaker)
    fleet.advance(10)
    probe = begin(breaker)

    end(breaker, late, outcome)

    assert breaker.state == "half_open"
    end(breaker, probe, Outcome.SUCCESS)
    assert breaker.state == "closed"


def test_late__decisions_on_an_old_generation_are_void(fleet: Fleet) -> None:
    """51: whoever decides on what is no longer so changes nothing and learns what is."""
    first, second = fleet.member(failure_threshold=1), fleet.member(failure_threshold=1)
    succeed(first)
    succeed(second)
    fail(first)
    opened_at = first.get_stats()["opened_at"]
    fleet.advance(0.5)

    fail(second)

    assert fleet.events == ["open"]
    assert second.get_stats()["opened_at"] == opened_at


# By hand


def test_manual__forced_open_refuses_after_the_wait(fleet: Fleet) -> None:
    """52: only reset ends it."""
    breaker = fleet.member()

    breaker.open(reason="maintenance", actor="cli:anna")
    fleet.advance(3600)
    assert is_refused(breaker)
    breaker.reset()

    succeed(breaker)
    assert breaker.state == "closed"


def test_manual__disabled_lets_all_pass_and_counts_nothing(fleet: Fleet) -> None:
    """52: one transition, then silence."""
    breaker = fleet.member(failure_threshold=1)

    breaker.disable()
    fail(breaker, 5)

    assert breaker.state == "disabled"
    assert breaker.get_stats()["failure_count"] == 0
    assert fleet.events == []


def test_manual__metrics_only_counts_and_never_opens(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """53: it says once that it would have opened."""
    breaker = fleet.member(failure_threshold=2)

    breaker.metrics_only()
    for _ in range(5):
        fail(breaker)
        fleet.advance(1.1)

    assert breaker.state == "metrics_only"
    assert breaker.get_stats()["failure_count"] == 5
    assert sum("would open" in record.getMessage() for record in caplog.records) == 1


def test_manual__half_open_needs_an_open_circuit(fleet: Fleet) -> None:
    """54: nothing to probe while closed; resetting a closed circuit is allowed and silent."""
    breaker = fleet.member()

    with pytest.raises(ValueError, match=r"state must be open for half_open\(\), not 'closed'"):
        breaker.half_open()
    breaker.reset()

    assert fleet.events == []


def test_manual__overrides_the_state_of_the_whole_fleet(fleet: Fleet) -> None:
    """55: an order rules in every process, over open and half-open too, until reset."""
    first = half_open(fleet)
    second = fleet.member(failure_threshold=1)
    begin(first)

    second.disable()
    fleet.advance(1)
    fail(first, 3)
    second.open()
    fleet.advance(1)

    assert is_refused(first)
    first.reset()
    fleet.advance(1)
    assert second.state == "closed"


# The store and events


def test_shared__new_process_finds_things_as_they_are(fleet: Fleet) -> None:
    """56: building a breaker changes no state, count or time, and fires nothing."""
    first = fleet.member(failure_threshold=3)
    fail(first, 2)
    fleet.advance(1)

    second = fleet.member(failure_threshold=3)
    assert second.get_stats()["failure_count"] == 2
    fail(second)

    assert first.name == second.name
    fleet.advance(1)
    assert is_refused(first)
    assert fleet.events == ["open"]


def test_shared__vanished_keys_are_a_closed_circuit(fleet: Fleet) -> None:
    """57: a process that knows nothing meets an empty cache: closed, and no event."""
    breaker = fleet.member()

    succeed(breaker)

    assert breaker.state == "closed"
    assert fleet.events == []


def test_shared__simultaneous_failures_make_one_event(fleet: Fleet) -> None:
    """59: ten processes cross the threshold together."""
    members = [fleet.member(failure_threshold=5) for _ in range(10)]
    begun = [begin(member) for member in members]

    for member, permit in zip(members, begun, strict=True):
        end(member, permit, Outcome.FAILURE)

    assert fleet.events == ["open"]
    fleet.advance(1)
    assert all(is_refused(member) for member in members)


def test_shared__full_cycle_fires_in_order(fleet: Fleet) -> None:
    """60: opened, half-open, closed, each once."""
    breaker = half_open(fleet, success_threshold=2)

    succeed(breaker, 2)

    assert fleet.events == ["open", "half_open", "close"]


# What no other suite asks


def test_gap__killed_probe_frees_its_place_under_steady_traffic(fleet: Fleet) -> None:
    """a: the others' refused calls do not renew the lease of the dead."""
    dead = half_open(fleet, half_open_timeout=5, success_threshold=1)
    living = fleet.member(failure_threshold=1, half_open_timeout=5, success_threshold=1)
    begin(dead)

    for _ in range(10):
        fleet.advance(0.5)
        if not is_refused(living):
            break

    assert living.state == "closed"


def test_gap__probe_past_its_lease_decides_nothing(fleet: Fleet) -> None:
    """c: neither closes nor opens, whether its place was taken over or not."""
    slow = half_open(fleet, half_open_timeout=5, success_threshold=1)
    other = fleet.member(failure_threshold=1, half_open_timeout=5, success_threshold=1)
    late = begin(slow)
    fleet.advance(5)
    probe = begin(other)

    end(slow, late, Outcome.FAILURE)

    assert slow.state == "half_open"
    end(other, probe, Outcome.SUCCESS)
    assert other.state == "closed"


def test_gap__ten_failures_at_threshold_five_open_at_once(fleet: Fleet) -> None:
    """d: no failure is lost between reading a count and writing it."""
    members = [fleet.member(failure_threshold=5) for _ in range(5)]

    for member in members:
        fail(member)

    assert members[-1].state == "open"
    assert fleet.events == ["open"]


def test_gap__noticing_half_open_resets_nothing(fleet: Fleet) -> None:
    """e: a process that joins leaves the successes of the others alone."""
    first = half_open(fleet, success_threshold=3)
    succeed(first, 2)

    second = fleet.member(failure_threshold=1, success_threshold=3)
    succeed(second)

    assert second.state == "closed"


def test_gap__times_below_a_second(fleet: Fleet) -> None:
    """h: a fraction of a second is neither 0 nor a whole one."""
    breaker = opened(fleet, recovery_timeout=0.3, half_open_timeout=0.4, success_threshold=1)

    fleet.advance(0.2)
    assert is_refused(breaker)
    fleet.advance(0.11)
    begin(breaker)
    assert is_refused(breaker)
    fleet.advance(0.41)

    succeed(breaker)
    assert breaker.state == "closed"


def test_gap__error_survives_pickle_and_json(fleet: Fleet) -> None:
    """j: as Celery's result backends need it."""
    breaker = opened(fleet)
    with pytest.raises(CircuitOpenError) as refused:
        succeed(breaker)

    rebuilt = CircuitOpenError(*json.loads(json.dumps(refused.value.args)))

    for copy in (rebuilt, pickle.loads(pickle.dumps(refused.value))):
        assert (copy.name, copy.state, copy.retry_after) == (fleet.name, "open", refused.value.retry_after)
        assert str(copy) == str(refused.value)


def _raise(*args: object, **kwargs: object) -> None:
    raise ServiceError
