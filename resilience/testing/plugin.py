"""The pytest plugin: the helpers of `resilience.testing` as fixtures, and one marker.

It is found through its entry point; nothing of Django is imported before a fixture is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from resilience.testing import Events, FakeClock
    from resilience.testing.failures import FaultyService

__all__ = [
    "circuit_in_state",
    "fake_clock",
    "fast_retries",
    "http_service",
    "isolated_resilience",
    "no_retries",
    "pytest_addoption",
    "pytest_configure",
    "resilience_events",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option of the ini file."""
    parser.addini("resilience_isolate", "Give each test circuits and retry budgets of its own.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", "resilience(enabled=True, retries='on'): switch the app off, or its retries 'off' or 'fast', for one test."
    )


@pytest.fixture(autouse=True)
def _resilience_isolate(request: pytest.FixtureRequest) -> None:
    """Do what the ini file says."""
    if request.config.getini("resilience_isolate"):
        request.getfixturevalue("isolated_resilience")
    elif "resilience.observability.logs" in sys.modules:
        from resilience.observability import logs

        logs.forget()  # what an earlier test logged must not silence this one


@pytest.fixture
def isolated_resilience() -> Iterator[None]:
    """Circuits closed and budgets full, and no trace of the test left behind in either."""
    from resilience import testing

    with testing.isolated():
        yield


@pytest.fixture(autouse=True)
def _resilience_marker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Do what the marker says."""
    marker = request.node.get_closest_marker("resilience")
    if marker is None:
        yield
        return
    from resilience import testing

    wishes = {"enabled": True, "retries": "on", **marker.kwargs}
    if wishes.keys() != {"enabled", "retries"} or wishes["retries"] not in {"on", "off", "fast"}:
        raise pytest.UsageError(f"resilience({marker.kwargs}) must use enabled=True or False and retries='on', 'off' or 'fast'.")
    with ExitStack() as stack:
        if not wishes["enabled"]:
            stack.enter_context(testing.disable_resilience())
        if wishes["retries"] == "off":
            stack.enter_context(testing.disable_retries())
        if wishes["retries"] == "fast":
            stack.enter_context(testing.fast_retries())
        yield


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A clock that moves when the test says `fake_clock.advance(seconds)` or the code sleeps."""
    from resilience import testing

    with testing.fake_clock() as clock:
        yield clock


@pytest.fixture
def fast_retries() -> Iterator[list[float]]:
    """Retries do not wait; the value lists the waits they would have made, in seconds."""
    from resilience import testing

    with testing.fast_retries() as waits:
        yield waits


@pytest.fixture
def no_retries() -> Iterator[None]:
    """Every first failure is final."""
    from resilience import testing

    with testing.disable_retries():
        yield


@pytest.fixture
def resilience_events() -> Iterator[Events]:
    """Every signal of the app that is sent during the test."""
    from resilience import testing

    with testing.capture_events() as events:
        yield events


@pytest.fixture
def circuit_in_state() -> Iterator[Callable[[str, str], None]]:
    """A function `(name, state)` that holds a circuit in a state until the test ends."""
    from resilience import testing

    with ExitStack() as stack:

        def force(name: str, state: str = "open") -> None:
            stack.enter_context(testing.forced_circuit(name, state))

        yield force


@pytest.fixture
def http_service() -> Iterator[Callable[..., FaultyService]]:
    """A function that starts a `FaultyService` with a script of answers; it ends with the test."""
    from resilience import testing

    with ExitStack() as stack:

        def start(*script: int | str | tuple[int, dict[str, str]], hang: float = 30.0) -> FaultyService:
            return stack.enter_context(testing.faulty_service(*script, hang=hang))

        yield start
