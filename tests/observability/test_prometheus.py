from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.cache.backends.locmem import LocMemCache
from django.test import override_settings
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from resilience import CircuitBreaker, retry, signals
from resilience.observability import prometheus
from resilience.observability.catalogue import INSTRUMENTS
from resilience.observability.instruments import as_label
from resilience.observability.receivers import connect, disconnect
from tests.factories import RunFactory


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry that the gauges stand on, with the counters connected."""
    registry = CollectorRegistry()
    prometheus.register(registry)
    yield registry
    disconnect("prometheus")


def samples(text: bytes | str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Parse an exposition with Prometheus' own parser."""
    text = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters__count_what_signals_tell(registry: CollectorRegistry) -> None:
    """A retried call shows in attempts, recoveries and waits; a first success shows nowhere."""
    before = samples(generate_latest(REGISTRY))
    calls: list[int] = []

    @retry(max_attempts=3, delay=0, exceptions=(ConnectionError,))
    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionRefusedError
        return "done"

    flaky()

    after = samples(generate_latest(REGISTRY))
    grown = {
        name
        for (name, _), value in after.items()
        if value > before.get((name, _), 0) and not name.endswith(("_created", "_bucket"))
    }
    assert {
        "resilience_retry_attempts_total",
        "resilience_retry_recoveries_total",
        "resilience_retry_wait_duration_seconds_count",
    } <= grown
    assert "resilience_retry_give_ups_total" not in grown


@pytest.mark.django_db
def test_gauges__are_read_at_scrape(registry: CollectorRegistry) -> None:
    """Circuits and runs show the shared truth of the moment, without any signal in this process."""
    circuit = CircuitBreaker("scraped", failure_threshold=3)
    circuit.open(reason="test")
    RunFactory(key="a")

    found = samples(generate_latest(registry))

    assert found["resilience_circuit_state", (("circuit", "scraped"), ("state", "forced_open"))] == 1
    assert found["resilience_circuit_state", (("circuit", "scraped"), ("state", "closed"))] == 0
    assert found["resilience_runs", (("status", "queued"),)] == 1
    assert found["resilience_scrape_errors", (("source", "circuits"),)] == 0


@pytest.mark.django_db
def test_failure_ratio__is_absent_below_the_minimum(registry: CollectorRegistry) -> None:
    """No number is better than a made-up one."""
    CircuitBreaker("quiet").call(len, "abc")

    found = samples(generate_latest(registry))

    assert not [
        labels for (name, labels) in found if name == "resilience_circuit_failure_ratio" and ("circuit", "quiet") in labels
    ]


def test_scrape__goes_on_without_the_database(registry: CollectorRegistry) -> None:
    """A source that cannot be read costs its own gauges and is told; here pytest-django refuses the database."""
    found = samples(generate_latest(registry))

    assert found["resilience_scrape_errors", (("source", "runs"),)] == 1


def test_register__twice_counts_once(registry: CollectorRegistry) -> None:
    """Registering again, as an autoreload does, doubles nothing."""
    prometheus.register(CollectorRegistry())
    key = ("resilience_timeouts_total", (("operation", "once"),))
    before = samples(generate_latest(REGISTRY)).get(key, 0)

    signals.emit(signals.timeout_expired, None, name="once", seconds=1.0)

    assert samples(generate_latest(REGISTRY))[key] - before == 1


def test_register__twice_on_one_registry_shows_each_gauge_once(registry: CollectorRegistry) -> None:
    """A second call, as from two apps, does not put every gauge there twice, which Prometheus refuses to read."""
    prometheus.register(registry)

    text = generate_latest(registry).decode()

    assert text.count("# TYPE resilience_scrape_errors gauge") == 1


def test_unregister__takes_everything_back(registry: CollectorRegistry) -> None:
    """Neither a receiver nor a collector stays behind."""
    prometheus.unregister(registry)

    assert generate_latest(registry) == b""
    assert not [
        name
        for name in signals.__all__
        if name != "emit"
        for (key, *_), *_ in getattr(signals, name).receivers
        if isinstance(key, str) and key.startswith("resilience.prometheus")
    ]


class _DeadCache(LocMemCache):
    """A cache whose server is gone."""

    def get_many(self, keys: object, version: int | None = None) -> dict[str, object]:
        raise ConnectionRefusedError("the cache is down")

    get = add = set = incr = get_many  # type: ignore[assignment]


@pytest.mark.parametrize("knows_one", [True, False])
def test_scrape__tells_that_the_cache_is_down(registry: CollectorRegistry, knows_one: bool) -> None:
    """What one process knows of a circuit is not shown as the truth of the fleet."""
    caches = {"default": {"BACKEND": f"{__name__}._DeadCache"}}
    with override_settings(CACHES=caches):
        breaker = CircuitBreaker("dark") if knows_one else None
        if breaker:
            breaker.call(len, "abc")
        found = samples(generate_latest(registry))

    assert found["resilience_scrape_errors", (("source", "circuits"),)] == 1
    assert not [name for name, _ in found if name.startswith("resilience_circuit_")]


def test_scrape__tells_that_a_circuits_own_cache_is_down(registry: CollectorRegistry) -> None:
    """A circuit that keeps its state elsewhere is absent while that cache is away, and the others are there."""
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    with override_settings(CACHES={"default": locmem, "far": {"BACKEND": f"{__name__}._DeadCache"}}):
        breaker = CircuitBreaker("dark-far", cache="far")
        breaker.call(len, "abc")
        near = CircuitBreaker("near")
        near.call(len, "abc")
        found = samples(generate_latest(registry))

    assert found["resilience_scrape_errors", (("source", "circuits"),)] == 1
    assert found["resilience_circuit_state", (("circuit", "near"), ("state", "closed"))] == 1
    assert not [
        labels for _name, labels in found if ("circuit", "dark-far") in labels and _name.endswith(("_state", "_window_calls"))
    ]


@pytest.mark.parametrize("name", ["a\ud800b", 'quote " and \\ back', "line\nbreak", "x" * 1000])
def test_names__of_any_kind_leave_the_exposition_whole(registry: CollectorRegistry, name: str) -> None:
    """A name that no text format can carry costs that name some characters, and never the whole scrape."""
    signals.emit(signals.timeout_expired, None, name=name, seconds=1.0)
    CircuitBreaker(name.replace("\ud800", "?")).reset()

    found = samples(generate_latest(REGISTRY)) | samples(generate_latest(registry))

    assert ("resilience_timeouts_total", (("operation", as_label(name)),)) in found
    assert all(len(value) <= 200 for _, labels in found for _, value in labels)


def test_backend__that_breaks_never_breaks_a_call(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics that raise, as on a full disk in multiprocess mode, cost the number and nothing else."""
    connect("prometheus", _full_disk)

    assert retry(max_attempts=2, delay=0, retry_on_result=lambda value: value == 3)(len)("abc") == 3
    assert CircuitBreaker("robust").call(len, "abc") == 3
    assert "Error calling" in caplog.text


def _full_disk(*args: object) -> None:
    raise OSError("no space left on device")


def test_receivers__are_one_a_signal(registry: CollectorRegistry) -> None:
    """Registering connects one receiver to a signal, however many metrics it feeds, and only to signals that feed one."""
    connected = {
        name: sum(key == "resilience.prometheus" for (key, *_), *_ in getattr(signals, name).receivers)
        for name in signals.__all__
        if name != "emit"
    }

    fed = {instrument.signal for instrument in INSTRUMENTS}
    assert connected == {name: int(getattr(signals, name) in fed) for name in connected}
