"""What the pages ask of the circuits: all of them at once, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.utils.translation import gettext as _

from resilience import conf, patience
from resilience.circuits.outages import avoiding
from resilience.circuits.registry import Survey, cache_aliases
from resilience.circuits.stats import Detail
from resilience.dashboard.circuits import STATES
from resilience.dashboard.formatting import visible

__all__ = ["Fleet", "config_table", "error_text", "failure_rows", "look", "metric_query", "transition_rows", "why"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The circuits known at one moment.

    Args:
        survey: Where they are.
        down: Caches that do not answer, and why; of their circuits only what this process knows is told.
    """

    survey: Survey
    down: Mapping[str, str]

    def tell(self, names: Iterable[str] | None = None, detail: Detail = Detail.HISTORY) -> dict[str, dict[str, Any]]:
        """Return the statistics by name; see `Survey.tell`."""
        with avoiding(self.down):
            return self.survey.tell(names, detail)

    def is_away(self, name: str) -> bool:
        """Does the cache of that circuit give no answer?"""
        return self.survey.alias_of(name) in self.down

    def operate(self, name: str, act: Callable[[], str]) -> str:
        """Do something to a circuit; while its cache is away, in this process only.

        Raises:
            NoAnswerError: A thread that waits for the cache keeps the circuit from being changed.
            Exception: What `act` raised.
        """

        def here() -> str:
            with avoiding(self.down):
                return act()

        return patience.ask(self.survey.alias_of(name), f"operate-{name}", here) if self.is_away(name) else act()


def look() -> Fleet:
    """Return every circuit of the fleet, and those that only the settings name so far, to be told about.

    The number of calls to the cache does not depend on the number of circuits, and a cache that gives no sign of life
    within `HEALTH_TIMEOUT` seconds is asked nothing else.
    """
    down = patience.unreachable(cache_aliases())
    with avoiding(down):
        return Fleet(Survey(planned=conf.current().circuits), down)


def failure_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the failures that are remembered, newest first; equal ones in a row are told once, with their number.

    Example:
        >>> failure_rows({"recent_failures": [{"at": 1, "error": "OSError"}, {"at": 2, "error": "OSError"}]})
        [{'at': 2, 'error': 'OSError', 'where': '', 'count': 2}]
    """
    rows = []
    for error, group in groupby(reversed(stats.get("recent_failures") or ()), key=error_text):
        equal = list(group)
        places = dict.fromkeys(place for failure in equal if (place := _place(failure)))
        rows.append({"at": equal[0].get("at"), "error": error, "where": "; ".join(places), "count": len(equal)})
    return rows


def _place(failure: Mapping[str, Any]) -> str:
    return ", ".join(str(failure[key]) for key in ("task", "host", "pid") if failure.get(key))


def why(stats: Mapping[str, Any]) -> str:
    """Return why a circuit is in its state, and who brought it there; "" when nobody said.

    Example:
        >>> why({"name": "mail", "reason": "provider is down", "actor": "admin:anna"})
        'provider is down (admin:anna)'
    """
    reason, actor = str(stats.get("reason") or ""), str(stats.get("actor") or "")
    return f"{reason} ({actor})".strip() if actor else reason


def transition_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the changes of state that are remembered, newest first, with their states in the reader's language."""
    return [
        {**change, "old_label": _state_label(change.get("old")), "new_label": _state_label(change.get("new"))}
        for change in reversed(stats.get("transitions") or ())
    ]


def error_text(failure: Mapping[str, Any]) -> str:
    """Return class and redacted message of a remembered failure, or "".

    Example:
        >>> error_text({"error": "TimeoutError", "message": "after 3 s"})
        'TimeoutError: after 3 s'
    """
    return ": ".join(str(failure[key]) for key in ("error", "message") if failure.get(key))


def _state_label(state: object) -> str:
    return str(STATES[str(state)][0]) if str(state) in STATES else str(state or "")


def config_table(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the configuration of a circuit: each value, and where it comes from.

    A process that never made the circuit knows only what the settings say.
    """
    name = str(stats["name"])
    settings = conf.current()
    own, shared = settings.circuits.get(name, {}), settings.circuit
    rows = []
    for key, value in (stats.get("config") or {}).items():
        if value is None or value in ("", [], ()):
            continue
        if key in own and _same(own[key], value):
            source = f'RESILIENCE["CIRCUITS"]["{visible(name)}"]'
        elif key in shared and _same(shared[key], value):
            source = 'RESILIENCE["CIRCUIT"]'
        elif _same(_defaults().get(key), value):
            source = _("default")
        else:
            source = _("code")
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        rows.append({"key": key, "value": shown, "source": source})
    return rows


def _same(one: object, other: object) -> bool:
    return one == other or str(one) == str(other)


def _defaults() -> dict[str, Any]:
    from resilience.circuits.config import CircuitBreakerConfig

    return CircuitBreakerConfig().describe()


def metric_query(name: str) -> str:
    r"""Return a Prometheus query for the circuit's failures, ready to be pasted.

    Example:
        >>> metric_query('a"b')
        'sum by (outcome) (rate(resilience_circuit_calls_total{circuit="a\\"b"}[5m]))'
    """
    # PromQL knows Go's escapes: what cannot be seen is written so that it can be seen and still be pasted.
    value = "".join(_escaped(character) for character in name)
    return f'sum by (outcome) (rate(resilience_circuit_calls_total{{circuit="{value}"}}[5m]))'


def _escaped(character: str) -> str:
    if character in {"\\", '"'}:
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
