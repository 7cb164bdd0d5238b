"""Metrics and span events for OpenTelemetry (extra `otel`): the API only; your project brings the SDK and exporters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from django.db import connections

from resilience import clock, signals
from resilience.observability.catalogue import INSTRUMENTS
from resilience.observability.gauges import GAUGES, Gauge, Readings, read
from resilience.observability.instruments import Instrument
from resilience.observability.receivers import connect, disconnect

try:
    from opentelemetry import metrics, trace
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise ImportError("resilience.observability.otel needs opentelemetry-api. Install django-resilience[otel].") from error

__all__ = ["register", "unregister"]

#: Seconds for which one reading serves.
_READING_LASTS = 1.0
#: Signals that become an event on the span in which they happen, and the arguments that go with it.
_EVENTS = {
    "retry_scheduled": ("name", "attempt", "delay", "kind"),
    "retry_gave_up": ("name", "attempts", "kind", "reason"),
    "timeout_expired": ("name", "seconds"),
    "fallback_used": ("name", "failed"),
    "circuit_opened": ("name",),
    "circuit_half_opened": ("name",),
    "circuit_closed": ("name",),
    "circuit_rejected": ("name", "state"),
    "db_retry_scheduled": ("name", "using", "attempt", "delay", "kind", "phase"),
    "commit_outcome_unknown": ("name", "using", "resolution"),
    "run_interrupted": ("task", "reason"),
    "checkpoint_saved": ("task", "step", "size", "tier"),
}


def register(*, gauges: bool = False) -> None:
    """Start recording metrics, and events on whatever span is current; a second call changes nothing.

    Args:
        gauges: Also export the states of circuits and runs, read from the cache and the database each time the SDK
            exports. Every process would tell the same: choose one or a few, such as Celery beat's.

    Example:
        >>> register()
    """
    connect("otel", _bind)
    for event, fields in _EVENTS.items():
        getattr(signals, event).connect(_event_receiver(event, fields), weak=False, dispatch_uid=f"resilience.otel.span.{event}")
    if gauges:
        _make_gauges()


def unregister() -> None:
    """Stop recording metrics and events; gauges stay, since OpenTelemetry cannot take back an instrument.

    Example:
        >>> unregister()
    """
    disconnect("otel")
    for event in _EVENTS:
        getattr(signals, event).disconnect(dispatch_uid=f"resilience.otel.span.{event}")


def _bind(instrument: Instrument, values: tuple[str, ...]) -> Callable[[float], None]:
    made, attributes = _instruments()[instrument.name], _attributes(instrument.labels, values)
    return partial(made.add if instrument.kind == "counter" else made.record, attributes=attributes)


def _attributes(labels: tuple[str, ...], values: tuple[str, ...]) -> dict[str, str]:
    return {
        "error.type" if name == "error_type" else f"resilience.{name}": value for name, value in zip(labels, values, strict=True)
    }


@lru_cache(maxsize=1)
def _make_gauges() -> None:
    """Make the observable gauges once; the SDK asks each of them at every export."""
    meter = metrics.get_meter("resilience")
    sources = {source: _Source(source) for source in ("circuits", "runs")}
    for gauge in GAUGES:
        observe = partial(sources[gauge.source].observe, gauge)
        meter.create_observable_gauge(gauge.name, [observe], unit=gauge.unit, description=gauge.description)


class _Source:
    """One reading for all gauges of a source, since the SDK asks for them one right after the other."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._readings: Readings = {}
        self._read_at = -math.inf

    def observe(self, gauge: Gauge, options: metrics.CallbackOptions) -> list[metrics.Observation]:
        if not 0 <= clock.monotonic() - self._read_at < _READING_LASTS:
            with _borrowed_connections():
                self._readings, _ = read(self._name)
            self._read_at = clock.monotonic()
        points = self._readings.get(gauge.name, [])
        return [metrics.Observation(amount, _attributes(gauge.labels, values)) for values, amount in points]


@contextmanager
def _borrowed_connections() -> Iterator[None]:
    """Close the database connections that a reading opened: the SDK's thread has no request at whose end Django would."""
    before = {connection.alias for connection in connections.all(initialized_only=True) if connection.connection is not None}
    try:
        yield
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.alias not in before:
                connection.close()


@lru_cache(maxsize=1)
def _instruments() -> dict[str, Any]:
    meter = metrics.get_meter("resilience")
    makers: dict[str, Callable[..., Any]] = {"counter": meter.create_counter, "histogram": meter.create_histogram}
    return {row.name: makers[row.kind](row.name, unit=row.unit, description=row.description) for row in INSTRUMENTS}


def _event_receiver(event: str, fields: tuple[str, ...]) -> Callable[..., None]:
    def receive(sender: Any, **arguments: Any) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            attributes = {f"resilience.{field}": _plain(arguments[field]) for field in fields}
            span.add_event(f"resilience.{event}", attributes)

    return receive


def _plain(value: Any) -> str | bool | int | float:
    return value if isinstance(value, (bool, int, float)) else str(value)
