from __future__ import annotations

import math
import random
from itertools import islice
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.calls.backoff import Backoff, RetryStrategy

SERIES = {
    RetryStrategy.EXPONENTIAL: [1, 2, 4, 8, 16, 32, 60, 60],
    RetryStrategy.LINEAR: [1, 2, 3, 4, 5, 6, 7, 8],
    RetryStrategy.FIXED: [1, 1, 1, 1, 1, 1, 1, 1],
    RetryStrategy.FIBONACCI: [1, 1, 2, 3, 5, 8, 13, 21],
}


def drawn(backoff: Backoff, number: int, seed: int = 7) -> list[float]:
    return list(islice(backoff.delays(random.Random(seed).uniform), number))


@pytest.mark.parametrize("strategy", SERIES)
def test_delays__without_jitter_are_the_documented_series(strategy: RetryStrategy) -> None:
    """Each strategy waits exactly what its documentation says."""
    assert drawn(Backoff(strategy=strategy), 8) == SERIES[strategy]


def test_delays__grow_by_the_factor() -> None:
    """The factor is what an exponential wait is multiplied by."""
    assert drawn(Backoff(delay=5, factor=3, max_delay=1000), 4) == [5, 15, 45, 135]


@pytest.mark.parametrize("jitter", ["", "full", "equal", "decorrelated"])
@pytest.mark.parametrize("strategy", RetryStrategy)
def test_delays__do_not_overflow(strategy: RetryStrategy, jitter: str) -> None:
    """The five-thousandth wait is a number within the cap."""
    waits = drawn(Backoff(delay=0.1, factor=10, max_delay=60, strategy=strategy, jitter=jitter), 5000)

    assert all(math.isfinite(wait) and 0 <= wait <= 60 for wait in waits)


@given(
    delay=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    max_delay=st.floats(0, 1e6),
    strategy=st.sampled_from(RetryStrategy),
    jitter=st.sampled_from(["", "full", "equal", "decorrelated"]),
    seed=st.integers(0, 1000),
)
def test_delays__stay_within_their_bounds(
    delay: float, factor: float, max_delay: float, strategy: RetryStrategy, jitter: str, seed: int
) -> None:
    """Whatever the options, a wait is neither negative nor above the cap, nor above the nominal one."""
    backoff = Backoff(delay=delay, factor=factor, max_delay=max_delay, strategy=strategy, jitter=jitter)

    waits, nominal = drawn(backoff, 60, seed), list(islice(backoff.nominal(), 60))

    assert all(0 <= wait <= max_delay for wait in waits)
    assert nominal == sorted(nominal)
    if jitter == "equal":
        assert all(most / 2 <= wait <= most for wait, most in zip(waits, nominal, strict=True))
    if jitter == "full":
        assert all(wait <= most for wait, most in zip(waits, nominal, strict=True))
    if jitter == "decorrelated":
        assert all(wait >= min(delay, max_delay) for wait in waits)


@pytest.mark.parametrize("delay", [1, 10, 500])
def test_delays__full_jitter_spreads_over_the_whole_range_at_the_cap(delay: float) -> None:
    """Also when the first wait is beyond the cap: from nothing to the cap, on average half of it."""
    waits = drawn(Backoff(delay=delay, max_delay=10, jitter="full"), 10_000)[100:]

    assert 0 <= min(waits) < 0.1
    assert 9.9 < max(waits) <= 10
    assert fmean(waits) == pytest.approx(5, abs=0.15)


def test_delays__decorrelated_jitter_has_no_mass_at_the_cap() -> None:
    """Clients that have reached the cap do not wake together: hardly two waits are the same."""
    waits = [wait for seed in range(200) for wait in drawn(Backoff(delay=0.25, max_delay=30, jitter="decorrelated"), 40, seed)]

    assert sum(wait == 30 for wait in waits) == 0
    assert len(set(waits)) > 0.999 * len(waits)
    assert max(waits) > 29


def test_delays__of_nothing_are_nothing() -> None:
    """A first wait of 0 stays 0 with every strategy."""
    for strategy in RetryStrategy:
        assert drawn(Backoff(delay=0, strategy=strategy, jitter="full"), 5) == [0] * 5
