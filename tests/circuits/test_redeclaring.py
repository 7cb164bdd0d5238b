"""Circuits whose settings change under them, and what others do while one call asks the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from resilience import CircuitBreaker, get_all_circuit_breaker_stats
from tests.circuits.conftest import FakeClock, Fleet, fail, is_refused, succeed

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
BOUND = 30.0


class FrozenCache(LocMemCache):
    """Answers nobody while `thawed` is not set."""

    thawed = threading.Event()
    asked = threading.Event()

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        FrozenCache.asked.set()
        assert FrozenCache.thawed.wait(BOUND)
        return super().get_many(*args, **kwargs)


def use_place(settings: Any, location: str) -> None:
    settings.CACHES = {**settings.CACHES, "moved": {"BACKEND": LOCMEM, "LOCATION": location}}


def test_settings__that_name_another_cache_begin_with_what_is_there(settings: Any) -> None:
    """The same alias on another server: neither the state nor the counts of the first are taken along."""
    use_place(settings, "first")
    breaker = CircuitBreaker("moving", cache="moved", failure_threshold=2)
    fail(breaker, 2)
    assert is_refused(breaker)

    use_place(settings, "second")

    assert not is_refused(breaker)
    fail(breaker)
    assert breaker.get_stats()["failure_count"] == 1
    use_place(settings, "first")
    assert is_refused(breaker)


def test_settings__that_changed_are_taken_over_once(settings: Any, fake_clock: FakeClock) -> None:
    """The second breaker of a name to notice loses nothing that was counted since the first one did."""
    first, second = (CircuitBreaker("noticed", failure_threshold=1000) for _ in range(2))
    for breaker in (first, second):
        succeed(breaker)
    settings.RESILIENCE = {"CIRCUIT": {"minimum_calls": 50}}

    fail(first, 3)
    fail(second)

    assert first.get_stats()["failure_count"] == 4


def test_declaration__with_another_window_counts_anew(fake_clock: FakeClock) -> None:
    """Failures of a minute are none of an hour: their places in the window differ."""
    first = CircuitBreaker("windows", failure_threshold=1000, failure_window=60)
    fail(first, 3)

    second = CircuitBreaker("windows", failure_threshold=1000, failure_window=3600)
    fail(second)

    assert second.get_stats()["failure_count"] == 1


def test_declaration__in_another_cache_begins_with_what_is_there(settings: Any) -> None:
    """A circuit that is moved takes neither its state nor its counts along, and finds them again when it is moved back."""
    use_place(settings, "elsewhere")
    first = CircuitBreaker("moved", failure_threshold=1)
    fail(first)

    second = CircuitBreaker("moved", failure_threshold=1, cache="moved")
    assert not is_refused(second)
    third = CircuitBreaker("moved", failure_threshold=1, cache="default")

    assert is_refused(third)


@pytest.fixture
def frozen(settings: Any) -> Any:
    settings.CACHES = {**settings.CACHES, "frozen": {"BACKEND": f"{__name__}.FrozenCache", "LOCATION": "frozen"}}
    FrozenCache.thawed.set()
    caches["frozen"].clear()
    yield FrozenCache
    FrozenCache.thawed.set()


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_looking__at_a_circuit_whose_cache_is_away_waits_for_nobody(frozen: Any, fake_clock: FakeClock) -> None:
    """A page about circuits does not hang behind the one call that finds out whether the cache is back."""
    breaker = CircuitBreaker("hanging", cache="frozen")
    succeed(breaker)
    breaker.circuit.store._failed("get_many", ConnectionError("away"))
    fake_clock.advance(2)
    frozen.asked.clear()
    frozen.thawed.clear()
    caller = in_thread(lambda: succeed(breaker))
    assert frozen.asked.wait(BOUND)

    looker = in_thread(breaker.circuit.collect)

    looker.join(BOUND)
    assert not looker.is_alive()
    assert caller.is_alive()
    frozen.thawed.set()
    caller.join(BOUND)
    assert breaker.get_stats()["success_count"] == 2


def test_looking__at_a_busy_circuit_counts_after_the_other_has_counted(fake_clock: FakeClock) -> None:
    """Two that move the same counters at once would count calls twice or not at all; so one waits."""
    breaker = CircuitBreaker("busy")
    succeed(breaker, 5)

    with breaker.circuit.lock:
        looker = in_thread(breaker.circuit.collect)
        looker.join(0.2)
        assert looker.is_alive()
        assert not breaker.circuit.view.pending

    looker.join(BOUND)
    assert breaker.circuit.view.unshared() == (0, 0, 5)


def test_looking__leaves_the_circuit_usable(local_fleet: Fleet) -> None:
    """The counts of this process stand in the list at once, and the next look is no different."""
    breaker = CircuitBreaker(local_fleet.name, failure_threshold=1000)
    succeed(breaker, 3)
    fail(breaker, 2)

    seen = [get_all_circuit_breaker_stats([breaker.name])[breaker.name] for _ in range(2)]

    assert [(stats["failure_count"], stats["success_count"]) for stats in seen] == [(2, 3)] * 2
    assert succeed(breaker) == "fine"


def test_calling__beside_one_that_asks_the_cache_goes_on_for_two_intervals_and_no_longer(
    frozen: Any, fake_clock: FakeClock
) -> None:
    """One caller asks for all; but nobody is let through on knowledge older than two intervals."""
    breaker = CircuitBreaker("beside", cache="frozen", sync_interval=1.0)
    succeed(breaker)
    frozen.asked.clear()
    frozen.thawed.clear()
    fake_clock.advance(1.5)
    asking = in_thread(lambda: succeed(breaker))
    assert frozen.asked.wait(BOUND)

    early = in_thread(lambda: succeed(breaker))
    early.join(BOUND)
    assert not early.is_alive()
    fake_clock.advance(0.5)
    late = in_thread(lambda: succeed(breaker))
    late.join(0.2)
    assert late.is_alive()

    frozen.thawed.set()
    for caller in (asking, late):
        caller.join(BOUND)
        assert not caller.is_alive()
