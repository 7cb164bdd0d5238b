from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.cache import caches

from resilience import CircuitBreaker
from resilience.observability import gauges
from resilience.testing import FakeClock

_KEPT: list[CircuitBreaker] = []


@pytest.fixture
def passing_cache(settings: object) -> Iterator[str]:
    """A cache alias that is gone after the test."""
    settings.CACHES = {  # type: ignore[attr-defined]  # pytest-django's settings
        **settings.CACHES,  # type: ignore[attr-defined]
        "passing": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "passing"},
    }
    yield "passing"
    caches["passing"].clear()


@pytest.mark.parametrize("name", ["kept-one", "kept-two"])
def test_circuits__meet_none_of_another_test(name: str, passing_cache: str) -> None:
    """A circuit that outlives its test, and the cache it was in, stands in no other test's way."""
    _KEPT.append(CircuitBreaker(name, cache=passing_cache, failure_threshold=1))
    _KEPT[-1].reset()

    found = gauges.read_circuits()

    assert {labels[0] for labels, _ in found["resilience.circuit.state"]} == {name}


def test_circuits__tell_moments_not_lengths_of_time(fake_clock: FakeClock) -> None:
    """When an open circuit opened, changed last and probes next is the same at every scrape; what has no end has no next probe."""
    timed, endless, calm = (CircuitBreaker(name, sync_interval=0) for name in ("timed", "endless", "calm"))
    began = fake_clock.time()
    timed.open(300, reason="drill")
    endless.open(reason="drill")
    calm.call(lambda: 1)
    fake_clock.advance(100)

    found = gauges.read_circuits()

    moments = {name: dict(found[f"resilience.circuit.{name}.timestamp"]) for name in ("opened", "next.probe", "last.transition")}
    assert moments["next.probe"] == {("timed",): began + 300}
    assert moments["opened"] == moments["last.transition"] == {("timed",): began, ("endless",): began}
