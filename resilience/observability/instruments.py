"""Counters and histograms as values: their names by two conventions, and labels that stay few and short.

Source:
    Prometheus, "Metric and label naming" and "Instrumentation"; OpenTelemetry, "Semantic conventions:
    naming, metrics, recording errors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.dispatch import Signal

__all__ = ["LABEL_LIMIT", "OTHER", "Arguments", "Instrument", "LabelGuard", "Reading", "as_label"]

#: Most values that one label may take in a process; further ones are counted under `OTHER`.
LABEL_LIMIT = 500
OTHER = "_other"
_LABEL_LENGTH = 200

Arguments = Mapping[str, Any]
Reading = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One counter or histogram.

    Args:
        name: Dotted name for OpenTelemetry; Prometheus' name is made of it.
        kind: "counter" or "histogram".
        unit: UCUM unit: "s", "By", or a counted thing such as "{call}".
        description: One sentence.
        labels: Names of the labels.
        signal: The signal that is listened to.
        read: Takes the signal's arguments; returns label values and the amount.
    """

    name: str
    kind: Literal["counter", "histogram"]
    unit: str
    description: str
    labels: tuple[str, ...]
    signal: Signal
    read: Callable[[Arguments], Reading]

    @property
    def prometheus_name(self) -> str:
        """The name by Prometheus' conventions: underscores, base unit, `_total` on counters."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit + ("_total" if self.kind == "counter" else "")


def as_label(value: str) -> str:
    """Return a value that every exposition format can carry: valid UTF-8 and of bounded length.

    Example:
        >>> as_label("half of a pair: " + chr(0xD800))
        'half of a pair: ?'
    """
    return value[:_LABEL_LENGTH].encode("utf-8", "replace").decode()


class LabelGuard:
    """Keeps the number of label values of a process bounded, whatever names users make up."""

    def __init__(self, limit: int = LABEL_LIMIT) -> None:
        self._limit = limit
        self._seen: dict[str, set[str]] = {}

    def __call__(self, names: tuple[str, ...], values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the values, with what came too late replaced by `OTHER`."""
        return tuple(self._admit(name, value) for name, value in zip(names, values, strict=True))

    def _admit(self, name: str, value: str) -> str:
        seen, value = self._seen.setdefault(name, set()), as_label(value)
        if value in seen:
            return value
        if len(seen) >= self._limit:
            return OTHER
        seen.add(value)
        return value
