"""What people may do to a circuit, and see of it: orders that hold for the whole fleet, and its statistics."""

from __future__ import annotations

from typing import Any

from resilience.circuits import machine, stats
from resilience.circuits.circuit import Circuit
from resilience.circuits.config import CircuitState
from resilience.circuits.records import OPEN_STATES, Counts, Record
from resilience.redaction import redact
from resilience.values import is_number

__all__ = ["Operations"]


class Operations:
    """The methods of a breaker that put its circuit into a state or describe it."""

    @property
    def circuit(self) -> Circuit:
        """This process's part of the circuit."""
        raise NotImplementedError

    def open(self, seconds: float | None = None, reason: str = "", *, actor: str = "") -> None:
        """Refuse all calls of the whole fleet, until `reset` or for a time, after which probes decide.

        Args:
            seconds: For how long; more than 0. None until somebody resets it.
            reason: Why, for the people who find it open; redacted.
            actor: Who did it, as in "cli:anna".

        Raises:
            ValueError: `seconds` is out of range.
        """
        if seconds is not None and not (is_number(seconds) and seconds > 0):
            raise ValueError(f"seconds must be more than 0 and finite, not {seconds!r}. Leave it out to stay open until reset.")
        self._operate(CircuitState.FORCED_OPEN, reason or "forced open", actor, seconds)

    def disable(self, reason: str = "", *, actor: str = "") -> None:
        """Let all calls of the whole fleet through and count nothing, until `reset`."""
        self._operate(CircuitState.DISABLED, reason or "disabled", actor)

    def metrics_only(self, reason: str = "", *, actor: str = "") -> None:
        """Let all calls of the whole fleet through and count them, without ever opening, until `reset`."""
        self._operate(CircuitState.METRICS_ONLY, reason or "metrics only", actor)

    def reset(self, reason: str = "", *, actor: str = "") -> None:
        """Close the circuit for the whole fleet and forget its counts."""
        clean = redact(reason or "reset")
        self.circuit.operate(lambda record, _, now: machine.closed(record, now, clean, actor))

    def half_open(self, reason: str = "", *, actor: str = "") -> None:
        """Let the next call probe although the open time is not over.

        Raises:
            ValueError: The circuit is not open.
        """
        clean = redact(reason or "probe now")

        def make(record: Record, counts: Counts, now: float) -> Record:
            if record.state not in OPEN_STATES:
                raise ValueError(f"state must be open for half_open(), not {str(record.state)!r}. There is nothing to probe.")
            return machine.half_opened(record, now, clean, actor)

        self.circuit.operate(make)

    def _operate(self, state: CircuitState, reason: str, actor: str, seconds: float | None = None) -> None:
        clean = redact(reason)
        self.circuit.operate(
            lambda record, counts, now: machine.operated(record, state, now, clean, actor, seconds=seconds, counts=counts)
        )

    def get_stats(self) -> dict[str, Any]:
        """Return what the fleet knows about the circuit.

        Returns:
            A dict of plain types, among them `name`, `state`, `failure_count`, `success_count`, `slow_count` (of the
            window), `rejected_count` (in this state), `failure_rate` (None below `minimum_calls`), `failure_threshold`,
            `opened_at`, `retry_after`, `recent_failures` and `transitions` (at most 20 each, newest last), `series`
            (failures and successes of each twentieth of the window, oldest first), `config`, `declared_in`, `cache`.

        Example:
            >>> from resilience import CircuitBreaker
            >>> CircuitBreaker("doc-stats").get_stats()["failure_count"]
            0
        """
        circuit = self.circuit
        circuit.synchronize()
        return stats.collect(circuit.store, [stats.Subject.own(circuit)])[circuit.name]
