"""Circuits: breakers whose state the whole fleet shares through Django's cache.

The names are loaded when they are first used, so that the pure rules in `machine` need no cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazy import lazy_names

if TYPE_CHECKING:
    from resilience.circuits.breaker import CircuitBreaker
    from resilience.circuits.config import CircuitBreakerConfig, CircuitState
    from resilience.circuits.decorators import async_circuit_breaker, circuit_breaker
    from resilience.circuits.records import Transition
    from resilience.circuits.registry import (
        UnknownCircuitError,
        get_all_circuit_breaker_stats,
        get_circuit_breaker,
        get_circuit_breaker_stats,
    )

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitState",
    "Transition",
    "UnknownCircuitError",
    "async_circuit_breaker",
    "circuit_breaker",
    "get_all_circuit_breaker_stats",
    "get_circuit_breaker",
    "get_circuit_breaker_stats",
]

_NAMES = {
    "resilience.circuits.breaker": ("CircuitBreaker",),
    "resilience.circuits.config": ("CircuitBreakerConfig", "CircuitState"),
    "resilience.circuits.decorators": ("async_circuit_breaker", "circuit_breaker"),
    "resilience.circuits.records": ("Transition",),
    "resilience.circuits.registry": (
        "UnknownCircuitError",
        "get_all_circuit_breaker_stats",
        "get_circuit_breaker",
        "get_circuit_breaker_stats",
    ),
}

__getattr__ = lazy_names(__name__, _NAMES)
