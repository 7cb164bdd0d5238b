from __future__ import annotations

import asyncio

import pytest
from django.test import SimpleTestCase, override_settings

from resilience import CircuitBreaker, RetryBudget, conf, get_all_circuit_breaker_stats
from resilience.testing import isolated

pytest_plugins = ["pytester"]


@pytest.mark.parametrize("scope", ["fleet", "process"])
def test_isolated__leaves_no_circuit_open(scope: str) -> None:
    """What is opened inside is closed outside, for circuits of the fleet and of the process."""
    circuit = CircuitBreaker(f"isolated-{scope}", scope=scope, failure_threshold=1)
    with isolated(), pytest.raises(ZeroDivisionError):
        circuit.call(lambda: 1 / 0)

    assert circuit.state == "closed"
    with isolated():
        assert circuit.state == "closed"


def test_isolated__hides_what_was_open_before() -> None:
    """A circuit that another process opened in the shared cache does not reach the test, and is still open after it."""
    circuit = CircuitBreaker("isolated-before")
    circuit.open(reason="outage")

    with isolated():
        inside = circuit.state

    assert (inside, circuit.state) == ("closed", "forced_open")


def test_isolated__keeps_the_shared_cache_clean() -> None:
    """Nothing is written where other processes look."""
    with isolated():
        circuit = CircuitBreaker("isolated-hidden")
        circuit.open()
        assert "isolated-hidden" in get_all_circuit_breaker_stats()
    del circuit

    assert "isolated-hidden" not in get_all_circuit_breaker_stats()


def test_isolated__survives_other_caches() -> None:
    """A test may override CACHES inside."""
    circuit = CircuitBreaker("isolated-caches")
    other = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    with isolated(), override_settings(CACHES=other):
        circuit.open()
        inside = circuit.state

    assert (inside, circuit.state) == ("forced_open", "closed")
    assert conf.current().cache == "default"


def test_isolated__fills_the_budgets() -> None:
    """Retries that one test used up are there again for the next."""
    budget = RetryBudget(min_per_second=0.1)
    while budget.withdraw():
        pass

    with isolated():
        assert budget.balance == 1


async def test_isolated__holds_in_coroutines_and_threads() -> None:
    """The state is the process's, not the context's."""
    circuit = CircuitBreaker("isolated-async", failure_threshold=1)
    with isolated():
        await asyncio.to_thread(circuit.open)
        inside = circuit.state

    assert (inside, circuit.state) == ("forced_open", "closed")


class UnittestTests(SimpleTestCase):
    """The same helper in unittest's own words."""

    def setUp(self) -> None:
        self.enterContext(isolated())

    def test_first(self) -> None:
        assert CircuitBreaker("isolated-unittest").state == "closed"
        CircuitBreaker("isolated-unittest").open()

    def test_second(self) -> None:
        assert CircuitBreaker("isolated-unittest").state == "closed"
        CircuitBreaker("isolated-unittest").open()


ONE_AFTER_THE_OTHER = """
    import pytest
    from resilience import CircuitBreaker, RetryBudget

    circuit, budget = CircuitBreaker("shared", failure_threshold=1), RetryBudget(min_per_second=0.1)

    @pytest.mark.parametrize("number", range(4))
    def test_it(number):
        assert circuit.state == "closed"
        assert budget.withdraw()
        with pytest.raises(ZeroDivisionError):
            circuit.call(lambda: 1 / 0)
        assert circuit.state == "open"
"""
SETTINGS = """
    SECRET_KEY = "tests"
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "shared"}}
    INSTALLED_APPS = ["resilience"]
"""


CASES = [
    ("true", ("-p", "xdist", "-n", "2"), {"passed": 4}),
    ("true", ("-p", "no:django", "-p", "no:asyncio"), {"passed": 4}),
    ("false", (), {"passed": 1, "failed": 3}),
]


@pytest.mark.parametrize(("isolate", "options", "outcomes"), CASES, ids=str)
def test_ini_option__isolates_each_test(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    isolate: str,
    options: tuple[str, ...],
    outcomes: dict[str, int],
) -> None:
    """With one line in the ini file tests pass in any process and order; without it the first one's circuit stays open."""
    pytester.makepyfile(ONE_AFTER_THE_OTHER)
    pytester.makepyfile(shop_settings=SETTINGS)
    pytester.makeini(f"[pytest]\nresilience_isolate = {isolate}\n")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop_settings")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=":")

    result = pytester.runpytest_subprocess("-p", "no:randomly", *options)

    result.assert_outcomes(**outcomes)
