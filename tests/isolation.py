"""Each test as in a process that has just started: it meets nothing of the tests before it, in whatever order they run."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
from django.core.cache import caches
from django.core.cache.backends import locmem

from resilience import chaos, layers, patience, signals
from resilience.calls.budgets import reset_budgets
from resilience.circuits import registry
from resilience.dashboard import rates
from resilience.db import errors
from resilience.observability import logs, receivers

# The package exports a function of the same name.
classify = import_module("resilience.calls.classify")

_SIGNALS = [getattr(signals, name) for name in signals.__all__ if name != "emit"]


def _begin_anew() -> None:
    """Forget what this process has counted, opened, told and stored so far."""
    caches["default"].clear()
    for name in list(locmem._caches):
        locmem._caches[name].clear()
        locmem._expire_info[name].clear()
    registry.forget_circuits()
    reset_budgets()
    logs.forget()
    rates.counter.reset()
    chaos._told.clear()
    patience._stuck.clear()


def _declared() -> Iterator[None]:
    """Take back what is declared after the first step, at the second; what modules declare when imported stays."""
    circuits, stores = {*registry._breakers, *registry._circuits}, set(registry._stores)
    bulkheads, backends = set(layers._bulkheads), set(receivers._connected)
    listening = [list(signal.receivers) for signal in _SIGNALS]
    classifiers, of_databases = list(classify._registered), {using: list(own) for using, own in errors._classifiers.items()}
    yield
    for names, before in (
        (registry._breakers, circuits),
        (registry._circuits, circuits),
        (registry._stores, stores),
        (layers._bulkheads, bulkheads),
        (receivers._connected, backends),
    ):
        for name in set(names) - before:
            names.pop(name, None)
    for signal, found in zip(_SIGNALS, listening, strict=True):
        signal.receivers = found
    classify._registered[:] = classifiers
    errors._classifiers.clear()
    errors._classifiers.update(of_databases)


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """Start from nothing, leave nothing behind."""
    _begin_anew()
    yield from _declared()
