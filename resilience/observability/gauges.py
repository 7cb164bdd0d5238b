"""What the fleet is doing now: readings of circuits and runs, for whoever exports gauges.

The numbers are not counted in a process but read when they are asked for, circuits from the cache and runs from the
database, so that every process tells the same.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from resilience import clock
from resilience.circuits.config import CircuitState
from resilience.circuits.outages import avoiding
from resilience.circuits.registry import cache_aliases, get_all_circuit_breaker_stats
from resilience.observability.instruments import as_label
from resilience.patience import unreachable
from resilience.redaction import log_exception

__all__ = ["GAUGES", "Gauge", "Points", "Readings", "SourceUnavailableError", "read", "read_circuits", "read_runs"]

logger = logging.getLogger("resilience.observability")

#: Label values and number of each point of a gauge.
Points = list[tuple[tuple[str, ...], float]]
#: The points of each gauge, by its dotted name.
Readings = Mapping[str, Points]


class SourceUnavailableError(Exception):
    """Some of what the numbers are read from cannot be reached.

    Args:
        message: What is missing.
        found: The rest.
    """

    def __init__(self, message: str, found: Readings) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, slots=True)
class Gauge:
    """One gauge.

    Args:
        source: "circuits" or "runs".
        name: Dotted name for OpenTelemetry; Prometheus' name is made of it.
        unit: UCUM unit.
        description: One sentence.
        labels: Names of the labels.
    """

    source: str
    name: str
    unit: str
    description: str
    labels: tuple[str, ...]

    @property
    def prometheus_name(self) -> str:
        """The name by Prometheus' conventions."""
        return self.name.replace(".", "_") + ("_seconds" if self.unit == "s" else "")


_STATE = "resilience.circuit.state"
_RATIO = "resilience.circuit.failure.ratio"
_WINDOW = "resilience.circuit.window.calls"
_OPENED = "resilience.circuit.opened.timestamp"
_PROBE = "resilience.circuit.next.probe.timestamp"
_CHANGED = "resilience.circuit.last.transition.timestamp"
_RUNS = "resilience.runs"
_PROGRESS = "resilience.run.oldest.progress.timestamp"

GAUGES: tuple[Gauge, ...] = (
    Gauge("circuits", _STATE, "1", "1 for the state that a circuit is in.", ("circuit", "state")),
    Gauge("circuits", _RATIO, "1", "Share of failed calls in the window, from 0 to 1.", ("circuit",)),
    Gauge("circuits", _WINDOW, "{call}", "Calls in the window.", ("circuit", "outcome")),
    Gauge("circuits", _OPENED, "s", "When the circuit opened, while it is open.", ("circuit",)),
    Gauge("circuits", _PROBE, "s", "When an open circuit lets the next call probe, or ends if it was forced open.", ("circuit",)),
    Gauge("circuits", _CHANGED, "s", "When the circuit last changed its state.", ("circuit",)),
    Gauge("runs", _RUNS, "{run}", "Runs by status.", ("status",)),
    Gauge("runs", _PROGRESS, "s", "When the running run that has stood still longest last moved.", ("task",)),
)


def read_circuits() -> Readings:
    """Read the circuits of the whole fleet in a few operations of the cache, however many there are.

    A circuit's failure ratio is absent below its minimum of calls. The circuits of a cache that does not answer are
    absent: what this process alone knows of them would be another story. A cache that gives no sign of life within
    `RESILIENCE["DASHBOARD"]["HEALTH_TIMEOUT"]` seconds is asked nothing else.

    Raises:
        SourceUnavailableError: A cache does not answer; the circuits of the others are in the error.

    Example:
        >>> from resilience import CircuitBreaker
        >>> CircuitBreaker("doc-gauge").reset()
        >>> (("doc-gauge", "closed"), 1.0) in read_circuits()["resilience.circuit.state"]
        True
    """
    # A process that knows no circuit of its own could not tell a cache that is away from an empty one.
    away = set(unreachable(cache_aliases()))
    with avoiding(away):
        known = get_all_circuit_breaker_stats()
    found: dict[str, Points] = defaultdict(list)
    for name, stats in known.items():
        if not stats["cache_available"]:
            away.add(stats["cache"])
            continue
        label = as_label(name)
        found[_STATE] += [((label, state.value), float(stats["state"] == state)) for state in CircuitState]
        found[_WINDOW] += [((label, outcome), float(stats[f"{outcome}_count"])) for outcome in ("success", "failure")]
        if stats["failure_rate"] is not None:
            found[_RATIO].append(((label,), stats["failure_rate"]))
        # Rounded, because it is told as a length of time and would shake by milliseconds.
        probe_at = None if stats["retry_after"] is None else round(clock.time() + stats["retry_after"])
        for gauge, moment in ((_OPENED, stats["opened_at"]), (_PROBE, probe_at), (_CHANGED, stats["changed_at"])):
            if moment is not None:
                found[gauge].append(((label,), float(moment)))
    if away:
        raise SourceUnavailableError(f"Caches that do not answer: {', '.join(sorted(away))}.", found)
    return found


def read_runs() -> Readings:
    """Read the runs in two queries, however many there are.

    Raises:
        DatabaseError: The database does not answer.

    Example:
        >>> sorted(status for (status,), _ in read_runs()["resilience.runs"])
        ['cancelled', 'failed', 'finished', 'paused', 'queued', 'running']
    """
    from django.db.models import Count, Min
    from django.db.models.functions import Coalesce

    from resilience.runs.models import Run, RunStatus

    counted = dict(Run.objects.order_by().values_list("status").annotate(Count("pk")))
    running = Run.objects.order_by().filter(status=RunStatus.RUNNING).values_list("task")
    moved = running.annotate(moved=Min(Coalesce("progressed_at", "started_at", "created_at")))
    return {
        _RUNS: [((status,), float(counted.get(status, 0))) for status in RunStatus.values],
        _PROGRESS: [((as_label(task),), moment.timestamp()) for task, moment in moved],
    }


_SOURCES: dict[str, Callable[[], Readings]] = {"circuits": read_circuits, "runs": read_runs}


def read(source: str) -> tuple[Readings, bool]:
    """Read a source, "circuits" or "runs".

    Returns:
        What can be reached now, and whether that is all of it.

    Example:
        >>> read("circuits")[1]
        True
    """
    found: Readings = {}
    try:
        return _SOURCES[source](), True
    except Exception as error:  # noqa: BLE001  # numbers must not fail because the cache or the database is down
        log_exception(logger, "The gauges of %s could not be read.", source, error=error, level=logging.DEBUG)
        if isinstance(error, SourceUnavailableError):
            found = error.found
    return found, False
