"""Metrics for Prometheus (extra `prometheus`).

Counters and histograms are kept in each process and follow prometheus_client's multiprocess mode
(`PROMETHEUS_MULTIPROC_DIR`). States of circuits and runs are shared by the fleet: they are read from the cache and
the database when Prometheus scrapes, so that every process tells the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from django.db import transaction
from django.http import HttpRequest, HttpResponse

from resilience.observability.catalogue import INSTRUMENTS
from resilience.observability.gauges import GAUGES, Gauge, Points, read
from resilience.observability.instruments import Instrument
from resilience.observability.receivers import connect, disconnect

try:
    import prometheus_client
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise ImportError(
        "resilience.observability.prometheus needs prometheus_client. Install django-resilience[prometheus]."
    ) from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["StateCollector", "metrics", "register", "unregister"]

#: Buckets in seconds: from a cache hit to the slowest language model.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
#: Buckets in bytes: from a small JSON state to large weights.
BYTES = tuple(4**power for power in range(5, 17))


class StateCollector(Collector):
    """Reads the fleet's circuits and runs each time Prometheus scrapes.

    When a cache or the database cannot be reached, the scrape goes on without the gauges of what is in it and
    `resilience_scrape_errors` tells which was missing.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> registry = CollectorRegistry()
        >>> registry.register(StateCollector())
    """

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        errors = GaugeMetricFamily(
            "resilience_scrape_errors",
            "1 for each source that could not be read, or not all of it, at this scrape.",
            labels=["source"],
        )
        for source in ("circuits", "runs"):
            readings, complete = read(source)
            errors.add_metric([source], float(not complete))
            if complete or readings:
                yield from (_family(gauge, readings.get(gauge.name, [])) for gauge in GAUGES if gauge.source == source)
        yield errors

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: registering must touch neither cache nor database."""
        return []


def register(registry: CollectorRegistry | None = None) -> None:
    """Start counting, and add the gauges of circuits and runs to a registry; a second call changes nothing.

    Call it once at start, for example in your `AppConfig.ready()`. In multiprocess mode the gauges must stand on
    the registry that is scraped: `metrics` does that, and so can any view of yours through `StateCollector`.

    Args:
        registry: Where to add the gauges; prometheus_client's own by default.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> register(CollectorRegistry())
    """
    connect("prometheus", _bind)
    chosen = prometheus_client.REGISTRY if registry is None else registry
    if chosen not in _collectors:
        collector = StateCollector()
        chosen.register(collector)
        _collectors[chosen] = collector


def unregister(registry: CollectorRegistry | None = None) -> None:
    """Stop counting, and take the gauges off the registry; what was counted so far stays exported.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> registry = CollectorRegistry()
        >>> register(registry)
        >>> unregister(registry)
    """
    disconnect("prometheus")
    chosen = prometheus_client.REGISTRY if registry is None else registry
    if (collector := _collectors.pop(chosen, None)) is not None:
        chosen.unregister(collector)


#: The collector on each registry, so that a second one never doubles every gauge.
_collectors: WeakKeyDictionary[CollectorRegistry, StateCollector] = WeakKeyDictionary()


@transaction.non_atomic_requests
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape: a view for your URLs, right in single and in multiprocess mode.

    It shows names of circuits, policies and tasks. Guard it as you guard your other metrics.

    Example:
        >>> from django.urls import path
        >>> urlpatterns = [path("metrics", metrics)]
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client's constructor is untyped
        registry.register(StateCollector())
    else:
        registry = prometheus_client.REGISTRY
    return HttpResponse(prometheus_client.generate_latest(registry), content_type=prometheus_client.CONTENT_TYPE_LATEST)


def _bind(instrument: Instrument, values: tuple[str, ...]) -> Callable[[float], None]:
    metric = _metrics()[instrument.prometheus_name].labels(*values)
    return cast("Callable[[float], None]", metric.inc if instrument.kind == "counter" else metric.observe)


@lru_cache(maxsize=1)
def _metrics() -> dict[str, Any]:
    """Make every counter and histogram once; prometheus_client refuses a second one of the same name."""
    made: dict[str, Any] = {}
    for instrument in INSTRUMENTS:
        name = instrument.prometheus_name
        if name in made:
            continue
        if instrument.kind == "counter":
            made[name] = prometheus_client.Counter(name, instrument.description, instrument.labels)
        else:
            buckets = BYTES if instrument.unit == "By" else SECONDS
            made[name] = prometheus_client.Histogram(name, instrument.description, instrument.labels, buckets=buckets)
    return made


def _family(gauge: Gauge, points: Points) -> Metric:
    family = GaugeMetricFamily(gauge.prometheus_name, gauge.description, labels=gauge.labels)
    for values, amount in points:
        family.add_metric(values, amount)
    return family
