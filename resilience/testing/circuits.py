"""Circuits in tests: in the state that a test needs, and clean afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from resilience.circuits.breaker import CircuitBreaker
from resilience.circuits.registry import forget_circuits, get_all_circuit_breaker_stats, get_circuit_breaker

__all__ = ["forced_circuit", "reset_circuits"]


def _half_open(circuit: CircuitBreaker) -> None:
    circuit.open(reason="test")
    circuit.half_open()


_FORCES: dict[str, Callable[[CircuitBreaker], object]] = {
    "open": lambda circuit: circuit.open(reason="test"),
    "forced_open": lambda circuit: circuit.open(reason="test"),
    "disabled": lambda circuit: circuit.disable(),
    "metrics_only": lambda circuit: circuit.metrics_only(),
    "closed": lambda circuit: circuit.reset(),
    "half_open": _half_open,
}


@contextmanager
def forced_circuit(name: str, state: str = "open") -> Iterator[CircuitBreaker]:
    """Hold a circuit in a state until the block ends, then reset it.

    Args:
        name: The circuit's name; it need not have been used yet.
        state: "open" (or "forced_open"), "half_open" (the next call is a probe), "closed", "disabled" or "metrics_only".

    Raises:
        ValueError: There is no such state to force.

    Example:
        >>> with forced_circuit("payments", "open") as circuit:
        ...     str(circuit.state)
        'forced_open'
    """
    if state not in _FORCES:
        raise ValueError(f"state must be one of {', '.join(sorted(_FORCES))}, not {state!r}. Choose one of them.")
    circuit = _known_or_new(name)
    _FORCES[state](circuit)
    try:
        yield circuit
    finally:
        circuit.reset()


def reset_circuits() -> None:
    """Close every circuit that is known in this process or in the cache, and forget all that was known of it.

    No circuit of this process brings its state back afterwards, even if the test empties the cache next.

    Example:
        >>> reset_circuits()
    """
    for name in get_all_circuit_breaker_stats():
        # One that only this process knew may have been collected meanwhile: there is nothing left to reset.
        with suppress(LookupError):
            get_circuit_breaker(name).reset()
    forget_circuits()


def _known_or_new(name: str) -> CircuitBreaker:
    try:
        return get_circuit_breaker(name)
    except LookupError:
        return CircuitBreaker(name)
