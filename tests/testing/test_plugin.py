from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resilience import CircuitOpenError, circuit_breaker, fallback, retry
from resilience.testing import FakeClock, forced_circuit

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.testing import Events
    from resilience.testing.failures import FaultyService

pytest_plugins = ["pytester"]


def test_fake_clock__makes_waits_free(fake_clock: FakeClock) -> None:
    """A retry that would wait for an hour is done at once, and the clock shows it."""
    calls: list[float] = []

    @retry(max_attempts=3, delay=1800, max_delay=3600, jitter=False, exceptions=(ValueError,))
    def flaky() -> str:
        calls.append(fake_clock.monotonic())
        if len(calls) < 3:
            raise ValueError("not yet")
        return "done"

    result = flaky()

    assert (result, calls) == ("done", [0, 1800, 5400])
    assert fake_clock.sleeps == [1800, 3600]


async def test_fake_clock__makes_async_waits_free(fake_clock: FakeClock) -> None:
    """The same holds for coroutines."""

    @retry(max_attempts=2, delay=1800, max_delay=3600, jitter=False, exceptions=(ValueError,))
    async def failing() -> None:
        raise ValueError("never")

    with pytest.raises(ValueError, match="never"):
        await failing()

    assert fake_clock.sleeps == [1800]


def test_fake_clock__refuses_to_run_backwards() -> None:
    """A negative step is a mistake in the test, and is told."""
    with pytest.raises(ValueError, match=r"seconds must be 0 or more, not -1\. Time does not run backwards\."):
        FakeClock().advance(-1)


def test_fast_retries__note_the_waits(fast_retries: list[float]) -> None:
    """Retries happen, waits do not."""
    with pytest.raises(ValueError, match="x"):
        retry(max_attempts=3, delay=10, jitter=False, exceptions=(ValueError,))(_raise)()

    assert fast_retries == [10, 20]


@pytest.mark.usefixtures("no_retries")
def test_no_retries__lets_the_first_failure_through() -> None:
    """One call, the original exception."""
    calls: list[int] = []

    @retry(max_attempts=3, delay=0, exceptions=(ValueError,))
    def failing() -> None:
        calls.append(1)
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        failing()

    assert calls == [1]


@pytest.mark.resilience(retries="off")
def test_marker__switches_retries_off() -> None:
    """The marker does what the fixture does."""
    calls: list[int] = []

    with pytest.raises(ValueError, match="x"):
        retry(max_attempts=3, delay=0, exceptions=(ValueError,))(lambda: calls.append(1) or _raise())()

    assert calls == [1]


@pytest.mark.resilience(enabled=False)
def test_marker__switches_everything_off() -> None:
    """Switched off, not even a fallback stands in the way."""
    with pytest.raises(ValueError, match="x"):
        fallback("never")(_raise)()


def test_marker__refuses_what_it_does_not_know(pytester: pytest.Pytester) -> None:
    """A typing error in the marker fails the test that bears it."""
    pytester.makepyfile("import pytest\n@pytest.mark.resilience(retires='off')\ndef test_it(): pass")

    result = pytester.runpytest_subprocess("-p", "no:django", "-p", "no:randomly")

    result.stdout.fnmatch_lines(["*must use enabled=True or False and retries='on', 'off' or 'fast'*"])
    result.assert_outcomes(errors=1)


def test_plugin__works_without_django_settings(pytester: pytest.Pytester) -> None:
    """Projects without Django settings can have the plugin installed and use it."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            assert "django" not in sys.modules

        def test_clock(fake_clock):
            fake_clock.advance(3)
            assert fake_clock.monotonic() == 3
        """
    )

    result = pytester.runpytest_subprocess("-p", "no:django", "-p", "no:randomly", "-p", "no:xdist")

    result.assert_outcomes(passed=2)


def test_events__tell_what_happened(resilience_events: Events) -> None:
    """Signals are collected in order and can be asked for."""
    with pytest.raises(ValueError, match="x"):
        retry(max_attempts=3, delay=0, exceptions=(ValueError,))(_raise)()

    resilience_events.assert_retried(times=2)
    assert len(resilience_events.of("retry_gave_up", attempts=3)) == 1
    with pytest.raises(AssertionError, match="2 retries were scheduled, not 1"):
        resilience_events.assert_retried(times=1)
    with pytest.raises(AssertionError, match="Circuit 'a' did not open; opened: none"):
        resilience_events.assert_circuit_opened("a")


def test_events__know_when_nothing_happened(resilience_events: Events) -> None:
    """A call that went well sends nothing."""
    retry(max_attempts=3)(len)("abc")

    resilience_events.assert_nothing_happened()


def test_circuit_in_state__rejects_like_a_real_one(circuit_in_state: Callable[..., None]) -> None:
    """A circuit that is held open refuses the call without running the function."""
    circuit_in_state("testing-held", "open")
    calls: list[int] = []

    with pytest.raises(CircuitOpenError):
        circuit_breaker("testing-held")(lambda: calls.append(1))()

    assert calls == []


STATES = {"open": "forced_open", "forced_open": "forced_open", "half_open": "half_open", "closed": "closed"}


@pytest.mark.parametrize("state", [*STATES, "disabled", "metrics_only"])
def test_forced_circuit__holds_every_state(state: str) -> None:
    """The circuit is in the state inside the block and closed after it."""
    with forced_circuit("testing-forced", state) as circuit:
        assert circuit.state == STATES.get(state, state)

    assert circuit.state == "closed"


def test_forced_circuit__half_open_lets_probes_decide() -> None:
    """From half-open a success closes the circuit, as it would in production."""
    with forced_circuit("testing-probed", "half_open") as circuit:
        for _ in range(circuit.config.success_threshold or 2):
            circuit.call(len, "abc")

        assert circuit.state == "closed"


def test_forced_circuit__refuses_unknown_states() -> None:
    """A typing error is told with the states there are."""
    with pytest.raises(ValueError, match=r"state must be one of closed, disabled, .*, not 'ajar'"), forced_circuit("x", "ajar"):
        pass


def test_http_service__answers_as_scripted(http_service: Callable[..., FaultyService]) -> None:
    """Statuses, headers and cut connections come in the order of the script."""
    import requests

    service = http_service(503, (429, {"Retry-After": "7"}), "reset", 200)

    statuses = []
    for _ in range(4):
        try:
            response = requests.get(service.url, timeout=5)
        except requests.ConnectionError:
            statuses.append("reset")
        else:
            statuses.append((response.status_code, response.headers.get("Retry-After")))

    assert statuses == [(503, None), (429, "7"), "reset", (200, None)]
    assert service.requests == 4


def test_http_service__keeps_waiting(http_service: Callable[..., FaultyService]) -> None:
    """A hang is as long as the caller's patience."""
    import requests

    service = http_service("hang")

    with pytest.raises(requests.ReadTimeout):
        requests.get(service.url, timeout=0.2)


def _raise() -> None:
    raise ValueError("x")
