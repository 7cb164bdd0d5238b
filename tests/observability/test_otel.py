from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilience import CircuitBreaker, retry, signals
from resilience.observability import otel
from resilience.testing import fake_clock
from tests.factories import RunFactory


@pytest.fixture(scope="session")
def reader() -> InMemoryMetricReader:
    """The SDK as a project would set it up, once a process."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    trace.set_tracer_provider(TracerProvider())
    return reader


@pytest.fixture
def registered(reader: InMemoryMetricReader) -> Iterator[InMemoryMetricReader]:
    otel.register()
    yield reader
    otel.unregister()


def flaky() -> None:
    """Fail once, then succeed."""
    calls: list[int] = []

    @retry(max_attempts=2, delay=0, exceptions=(OSError,))
    def once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("secret token=abc")

    once()


def points(reader: InMemoryMetricReader, name: str) -> list[tuple[dict[str, object], float]]:
    data = reader.get_metrics_data()
    return [
        (dict(point.attributes), point.value)
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def test_metrics__carry_names_and_attributes(registered: InMemoryMetricReader) -> None:
    """A retry is counted under its dotted name with namespaced attributes."""
    flaky()

    attributes, value = points(registered, "resilience.retry.attempts")[-1]
    assert value >= 1
    assert set(attributes) == {"resilience.policy", "resilience.kind"}


def test_spans__get_events_without_secrets(registered: InMemoryMetricReader) -> None:
    """What happened inside a span stands in it as an event; no message of an exception does."""
    exporter = InMemorySpanExporter()
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

    with trace.get_tracer("test").start_as_current_span("work"):
        flaky()

    events = [event for span in exporter.get_finished_spans() for event in span.events]
    assert [event.name for event in events] == ["resilience.retry_scheduled"]
    assert "abc" not in str([dict(event.attributes or {}) for event in events])


def test_no_span__no_event(registered: InMemoryMetricReader) -> None:
    """Outside any span nothing is recorded and nothing breaks."""
    assert not trace.get_current_span().is_recording()

    flaky()


@pytest.mark.django_db
def test_gauges__are_read_when_the_sdk_exports(registered: InMemoryMetricReader) -> None:
    """Asked for, the states of circuits and runs are exported as they are now, each source read once an export."""
    otel.register(gauges=True)
    otel.register(gauges=True)
    points(registered, "resilience.runs")
    CircuitBreaker("otel-held").open(reason="test")
    RunFactory(key="otel")

    with fake_clock() as clock, CaptureQueriesContext(connection) as queries:
        clock.advance(60)  # what was read for another test's export is too old
        states = dict_of(points(registered, "resilience.circuit.state"), "otel-held")
        runs = {attributes["resilience.status"]: value for attributes, value in points(registered, "resilience.runs")}

    assert (states["forced_open"], states["closed"]) == (1, 0)
    assert runs["queued"] == 1
    assert len(queries) == 2
    assert connection.connection is not None


def test_unregister__ends_metrics_and_events(registered: InMemoryMetricReader) -> None:
    """Nothing of it stays connected."""
    otel.unregister()
    before = points(registered, "resilience.retry.attempts")

    flaky()

    assert points(registered, "resilience.retry.attempts") == before
    assert not [
        name
        for name in signals.__all__
        if name != "emit"
        for (key, *_), *_ in getattr(signals, name).receivers
        if isinstance(key, str) and key.startswith("resilience.otel")
    ]


def dict_of(found: list[tuple[dict[str, object], float]], circuit: str) -> dict[object, float]:
    return {attributes["resilience.state"]: value for attributes, value in found if attributes["resilience.circuit"] == circuit}
