"""The fixture that separates the tests: whichever of two runs second must meet nothing of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches

from resilience import CircuitBreaker, RetryBudget, get_all_circuit_breaker_stats, signals
from resilience.calls.classify import has_own_classifiers, register_classifier
from resilience.circuits import registry
from resilience.dashboard import rates
from resilience.observability import receivers
from tests.isolation import classify

either = pytest.mark.parametrize("turn", ["one", "other"])
KEPT: list[Any] = []
BUDGET = RetryBudget(min_per_second=0.1)


@pytest.fixture(scope="module")
def declared() -> Iterator[CircuitBreaker]:
    """A circuit as a module declares it, before any of the tests; other modules' tests do not meet it."""
    breaker = CircuitBreaker("new-process-kept")
    yield breaker
    for names in (registry._breakers, registry._circuits):
        names.pop(breaker.name, None)


@either
def test_circuits__of_another_test_are_unknown(turn: str, declared: CircuitBreaker) -> None:
    """A circuit that outlives its test is on no list and in no cache; one that a module declared is closed."""
    assert set(get_all_circuit_breaker_stats()) & {"new-process-one", "new-process-other"} == set()
    assert declared.state == "closed"

    KEPT.append(CircuitBreaker(f"new-process-{turn}"))
    KEPT[-1].open()
    declared.open()


@either
def test_caches__are_empty(turn: str, settings: Any) -> None:
    """No memory of this process outlasts a test, whatever alias a test had for it."""
    backend = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "new-process"}
    settings.CACHES = {**settings.CACHES, "passing": backend}

    assert [caches[alias].get("left") for alias in ("default", "passing")] == [None, None]

    for alias in ("default", "passing"):
        caches[alias].set("left", turn)


@either
def test_counts__begin_at_nothing(turn: str) -> None:
    """Retries that another test used up are there again, and what it counted is not."""
    assert BUDGET.balance == 1
    assert rates.counter.pending == {}

    BUDGET.withdraw()
    rates.counter.count("retries")


@either
def test_listeners__of_another_test_are_gone(turn: str) -> None:
    """Receivers, metrics and classifiers end with the test that registered them."""
    listening = len(signals.retry_scheduled.receivers)
    assert "new-process" not in receivers._connected
    assert not has_own_classifiers()
    assert all(listening == before for before in KEPT if isinstance(before, int))

    KEPT.append(listening)
    signals.retry_scheduled.connect(lambda **kwargs: None, weak=False)
    receivers.connect("new-process", lambda instrument, values: lambda amount: None)
    register_classifier(lambda exc: None)
    assert classify._registered
