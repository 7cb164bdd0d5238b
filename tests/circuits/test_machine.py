from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.circuits import machine
from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.machine import Verdict
from resilience.circuits.records import Counts, Record

NOW = 1_800_000_000.0
counts = st.builds(Counts, st.integers(0, 50), st.integers(0, 50), st.integers(0, 20))


def record(state: CircuitState = CircuitState.CLOSED, generation: int = 7, **values: object) -> Record:
    return Record(generation=generation, state=state, at=NOW, **values)


OPEN = record(CircuitState.OPEN, until=NOW + 60, seconds=60.0)
BIRTH = machine.birth(NOW)


def test_machine__is_pure() -> None:
    """The rules need no cache, no database and no settings."""
    code = (
        "import sys, resilience.circuits.machine as m; m.birth(0.0);"
        "sys.exit(any(name in sys.modules for name in ('django.core.cache', 'django.db.models')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@given(counts=counts, threshold=st.integers(1, 60))
def test_reason_to_open__count_mode_is_the_threshold_and_nothing_else(counts: Counts, threshold: int) -> None:
    """Successes and slow calls do not matter to a count."""
    config = CircuitBreakerConfig(failure_threshold=threshold)

    assert bool(machine.reason_to_open(config, counts)) == (counts.failures >= threshold)


@given(counts=counts, rate=st.floats(0.01, 1), minimum=st.integers(1, 60))
def test_reason_to_open__rate_mode_needs_the_minimum_and_the_rate(counts: Counts, rate: float, minimum: int) -> None:
    """Below the minimum no rate opens; the count threshold is out of the game."""
    config = CircuitBreakerConfig(failure_rate_threshold=rate, minimum_calls=minimum, failure_threshold=1)

    expected = counts.calls >= minimum and counts.failures / counts.calls >= rate

    assert bool(machine.reason_to_open(config, counts)) == expected


@given(
    counts=counts,
    threshold=st.integers(1, 2000),
    rate=st.none() | st.floats(0.01, 1),
    minimum=st.integers(1, 60),
    slow_rate=st.none() | st.floats(0.01, 1),
)
def test_is_near__whatever_opens_is_near(
    counts: Counts, threshold: int, rate: float | None, minimum: int, slow_rate: float | None
) -> None:
    """A failure that opens the circuit is never kept back for the next regular look."""
    config = CircuitBreakerConfig(
        failure_threshold=threshold,
        failure_rate_threshold=rate,
        minimum_calls=minimum,
        slow_call_rate_threshold=slow_rate,
        slow_call_duration=1,
    )

    if machine.reason_to_open(config, counts):
        assert machine.is_near(config, counts, 0)


@given(base=st.floats(0.01, 1e6), growth=st.floats(1, 1e300), cap=st.floats(0.01, 1e9), attempts=st.integers(1, 10_000))
def test_open_seconds__stays_between_the_first_wait_and_the_cap(base: float, growth: float, cap: float, attempts: int) -> None:
    """Whatever grows, no wait is longer than the cap, nor shorter than the first less the jitter."""
    config = CircuitBreakerConfig(recovery_timeout=base, recovery_backoff=growth, max_recovery_timeout=cap)

    seconds = machine.open_seconds(config, attempts)

    assert base * (1 - machine.JITTER) <= seconds <= max(cap, base)


def test_open_seconds__grows_by_the_factor() -> None:
    """10, 20, 40, then the cap; the first wait is exact."""
    config = CircuitBreakerConfig(recovery_timeout=10, recovery_backoff=2, max_recovery_timeout=50)

    waits = [machine.open_seconds(config, attempts, lambda low, high: high) for attempts in range(1, 6)]

    assert waits == [10, 20, 40, 50, 50]


@given(offset=st.floats(-1e9, 1e9))
def test_remaining__a_wrong_clock_does_bounded_damage(offset: float) -> None:
    """However far another host's clock is off, the wait stays between 0 and the open time."""
    assert 0 <= OPEN.remaining(NOW + offset) <= 60


def test_record__survives_the_cache_and_refuses_other_shapes() -> None:
    """What was dumped loads equal; anything else loads as nothing."""
    assert Record.load(OPEN.dump()) == OPEN
    for foreign in (None, "x", {}, {**OPEN.dump(), "schema": 99}, {**OPEN.dump(), "state": "ajar"}, {"schema": 1}):
        assert Record.load(foreign) is None


@pytest.mark.parametrize(
    ("known", "seen", "shared", "verdict", "expected"),
    [
        (None, None, True, Verdict.PUBLISH, BIRTH),
        (None, OPEN, True, Verdict.ADOPT, OPEN),
        (OPEN, None, True, Verdict.PUBLISH, OPEN),
        (OPEN, OPEN, True, Verdict.KEEP, OPEN),
        (OPEN, record(generation=6), True, Verdict.PUBLISH, OPEN),
        (OPEN, record(generation=8), True, Verdict.ADOPT, record(generation=8)),
        (OPEN, BIRTH, True, Verdict.REPUBLISH, replace(OPEN, generation=BIRTH.generation + 1)),
        (record(), BIRTH, True, Verdict.ADOPT, BIRTH),
        (OPEN, record(generation=6), False, Verdict.REPUBLISH, OPEN),
        (record(), OPEN, False, Verdict.ADOPT, OPEN),
        (OPEN, replace(OPEN, generation=9), False, Verdict.ADOPT, replace(OPEN, generation=9)),
    ],
)
def test_reconcile__newer_wins_and_an_emptied_cache_undoes_nothing(
    known: Record | None, seen: Record | None, shared: bool, verdict: Verdict, expected: Record
) -> None:
    """Each case of what a process knows against what the cache says."""
    assert machine.reconcile(known, seen, NOW, shared=shared) == (verdict, expected)


def test_reconcile__an_open_time_that_is_over_is_not_brought_back() -> None:
    """A process that slept through the recovery does not open a circuit that began anew."""
    assert machine.reconcile(OPEN, BIRTH, NOW + 61, shared=True) == (Verdict.ADOPT, BIRTH)


@pytest.mark.parametrize(("slow", "opens"), [(4, False), (5, True)])
def test_reason_to_open__slow_rate_is_reached_by_its_exact_share(slow: int, opens: bool) -> None:
    """Five slow calls of ten are one half, four are not."""
    config = CircuitBreakerConfig(slow_call_duration=1, slow_call_rate_threshold=0.5, minimum_calls=10)

    assert bool(machine.reason_to_open(config, Counts(successes=10, slow=slow))) == opens


@pytest.mark.parametrize(
    ("fields", "far", "near"),
    [
        ({"failure_threshold": 10}, Counts(failures=4), Counts(failures=5)),
        ({"failure_rate_threshold": 0.5}, Counts(failures=2, successes=7), Counts(failures=2, successes=6)),
        ({"slow_call_duration": 1, "slow_call_rate_threshold": 0.5}, Counts(successes=9, slow=2), Counts(successes=8, slow=2)),
    ],
)
def test_is_near__from_half_way_to_the_limit(fields: dict[str, Any], far: Counts, near: Counts) -> None:
    """The others hear at once of a failure half-way to the limit, so that together they do not run far past it."""
    config = CircuitBreakerConfig(**fields)

    assert (machine.is_near(config, far, 0), machine.is_near(config, near, 0)) == (False, True)


@pytest.mark.parametrize(("unshared", "near"), [(10, False), (11, True)])
def test_is_near__however_far_a_hundredth_of_the_limit_is_not_kept_back(unshared: int, near: bool) -> None:
    """A hundred processes that each keep a hundredth to themselves are one limit too late, and no more."""
    config = CircuitBreakerConfig(failure_threshold=1000)

    assert machine.is_near(config, Counts(failures=unshared), unshared) == near


@pytest.mark.parametrize(
    ("counts", "unshared", "news"),
    [
        (Counts(failures=400, successes=9_600), 100, False),
        (Counts(failures=400, successes=9_600), 101, True),
        (Counts(failures=500, successes=500), 1, True),
    ],
)
def test_is_news__a_hundredth_of_the_calls_or_what_opens(counts: Counts, unshared: int, news: bool) -> None:
    """A rate hardly moves by one failure more: it is told by the hundredth, or when it decides."""
    config = CircuitBreakerConfig(failure_rate_threshold=0.5)

    assert machine.is_news(config, counts, unshared) == news


def test_open_seconds__grown_waits_are_spread() -> None:
    """The shortest wait that can be drawn is a twentieth below the grown one; the first is exact."""
    config = CircuitBreakerConfig(recovery_timeout=10, recovery_backoff=2)

    waits = [machine.open_seconds(config, attempts, lambda low, high: low) for attempts in (1, 2)]

    assert waits == [10, 19]


def test_trigger__is_kept_until_the_circuit_closes() -> None:
    """Whoever is refused while a probe runs, or after it failed without a word, still hears what opened the circuit."""
    config = CircuitBreakerConfig()
    first = machine.opened(record(), config, NOW, "5 failures", counts=Counts(failures=5), trigger="OSError: gone")

    probing = machine.half_opened(first, NOW)
    again = machine.opened(probing, config, NOW, "a probe failed", counts=Counts(failures=1))

    assert [item.trigger for item in (first, probing, again, machine.closed(again, NOW, "well"))] == ["OSError: gone"] * 3 + [""]


@pytest.mark.parametrize("state", [CircuitState.FORCED_OPEN, CircuitState.DISABLED, CircuitState.METRICS_ONLY])
def test_reconcile__an_order_without_an_end_is_brought_back(state: CircuitState) -> None:
    """What somebody ordered holds until somebody orders otherwise, also when the cache forgot it."""
    order = record(state)

    verdict, brought = machine.reconcile(order, BIRTH, NOW + 1e6, shared=True)

    assert (verdict, brought.state, brought.generation) == (Verdict.REPUBLISH, state, BIRTH.generation + 1)


@pytest.mark.parametrize(("age", "verdict"), [(59, Verdict.REPUBLISH), (61, Verdict.ADOPT)])
def test_reconcile__half_open_is_brought_back_for_a_minute(age: float, verdict: Verdict) -> None:
    """An emptied cache does not let everybody through while somebody probes; nor does an old memory stop a fresh start."""
    assert machine.reconcile(record(CircuitState.HALF_OPEN), BIRTH, NOW + age, shared=True)[0] is verdict
