"""Tests that do not meet each other's circuits and budgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import methodcaller

from django.conf import settings
from django.core.cache import caches

from resilience import conf
from resilience.calls.budgets import reset_budgets
from resilience.circuits import registry
from resilience.observability import logs

__all__ = ["isolated"]

_ALIAS = "resilience-isolated"


@contextmanager
def isolated() -> Iterator[None]:
    """Start with closed circuits and full budgets, and leave no trace of what happens inside the block.

    Circuits and shared budgets keep their state in a memory of this process meanwhile, whatever `RESILIENCE["CACHE"]`
    names: tests that run side by side in other processes are out of reach. A circuit that names a `cache` of its own
    stays there.

    Example:
        >>> from resilience import CircuitBreaker
        >>> circuit = CircuitBreaker("doc-isolated")
        >>> with isolated():
        ...     circuit.open()
        >>> str(circuit.state)
        'closed'
    """
    _start_over()
    try:
        if settings.configured:
            with conf.override(_in_memory):
                yield
        else:
            yield
    finally:
        _start_over()


def _in_memory(configured: conf.Settings) -> conf.Settings:
    """Move the shared state; asked again after CACHES changed, when the alias has to be made anew."""
    backend = "django.core.cache.backends.locmem.LocMemCache"
    caches.settings.setdefault(_ALIAS, {"BACKEND": backend, "LOCATION": _ALIAS, "OPTIONS": {"MAX_ENTRIES": 1_000_000}})
    return replace(configured, cache=_ALIAS)


def _start_over() -> None:
    if settings.configured and _ALIAS in caches.settings:
        caches[_ALIAS].clear()
    registry._private_store().run("clear", methodcaller("clear"))  # noqa: SLF001  # the memory of circuits with scope "process"
    registry.forget_circuits()
    reset_budgets()
    logs.forget()
