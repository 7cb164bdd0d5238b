"""Connecting a metrics backend to the signals of the instruments.

A busy circuit sends a signal for each call. So each backend has one receiver a signal, and what a backend makes of a
set of label values is made once and kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from django.dispatch import Signal

from resilience.observability.catalogue import INSTRUMENTS
from resilience.observability.instruments import Arguments, Instrument, LabelGuard

__all__ = ["Bind", "connect", "disconnect"]

#: Takes an instrument and label values; returns what takes the amounts.
Bind = Callable[[Instrument, tuple[str, ...]], Callable[[float], None]]

# Django holds receivers weakly: these live here until they are disconnected.
_connected: dict[str, dict[Signal, Callable[..., None]]] = {}


def connect(backend: str, bind: Bind) -> None:
    """Send every reading of every instrument to a backend; a second call for a backend replaces the first.

    Args:
        backend: Name of the backend, as in "prometheus".
        bind: Called once for an instrument and its label values; what it returns is called with each amount.
    """
    disconnect(backend)
    guard = LabelGuard()
    rows: dict[Signal, list[_Row]] = defaultdict(list)
    for instrument in INSTRUMENTS:
        rows[instrument.signal].append(_Row(instrument, bind, guard))
    _connected[backend] = {signal: _receiver(of_signal) for signal, of_signal in rows.items()}
    for signal, receiver in _connected[backend].items():
        signal.connect(receiver, weak=False, dispatch_uid=f"resilience.{backend}")


def disconnect(backend: str) -> None:
    """Stop sending readings to a backend; nothing happens if it was not connected."""
    for signal in _connected.pop(backend, {}):
        signal.disconnect(dispatch_uid=f"resilience.{backend}")


def _receiver(rows: list[_Row]) -> Callable[..., None]:
    def receive(sender: Any, **arguments: Any) -> None:
        for row in rows:
            row.record(arguments)

    return receive


class _Row:
    """An instrument on its way into a backend."""

    def __init__(self, instrument: Instrument, bind: Bind, guard: LabelGuard) -> None:
        self._instrument = instrument
        self._bind = bind
        self._guard = guard
        self._bound: dict[tuple[str, ...], Callable[[float], None]] = {}

    def record(self, arguments: Arguments) -> None:
        values, amount = self._instrument.read(arguments)
        bound = self._bound.get(values)
        (self._bind_anew(values) if bound is None else bound)(amount)

    def _bind_anew(self, values: tuple[str, ...]) -> Callable[[float], None]:
        admitted = self._guard(self._instrument.labels, values)
        bound = self._bind(self._instrument, admitted)
        if admitted == values:  # what was changed has no bound, and is not kept
            self._bound[values] = bound
        return bound
