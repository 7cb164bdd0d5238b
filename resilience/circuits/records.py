"""What is stored and told about a circuit: its generations, their changes, and the counts they are judged by.

Plain values. Times are seconds since the epoch, because processes on several hosts compare them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from resilience.circuits.config import CircuitState

__all__ = ["CLOSED_STATES", "OPEN_STATES", "Counts", "Record", "Transition"]

#: States in which calls go ahead and are counted.
CLOSED_STATES = frozenset({CircuitState.CLOSED, CircuitState.METRICS_ONLY})
#: States that refuse calls until their time is over.
OPEN_STATES = frozenset({CircuitState.OPEN, CircuitState.FORCED_OPEN})

#: Shape of a stored record; records of another shape are not read.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in the window: calls by outcome. Slow calls are also successes or failures.

    Example:
        >>> Counts(failures=1, successes=3).failure_rate(minimum=4)
        0.25
    """

    failures: int = 0
    successes: int = 0
    slow: int = 0

    @property
    def calls(self) -> int:
        """Failures and successes together."""
        return self.failures + self.successes

    def failure_rate(self, minimum: int) -> float | None:
        """Return the share of failed calls, or None below `minimum` calls."""
        return self.failures / self.calls if self.calls >= max(minimum, 1) else None

    def slow_rate(self, minimum: int) -> float | None:
        """Return the share of slow calls, or None below `minimum` calls."""
        return self.slow / self.calls if self.calls >= max(minimum, 1) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a circuit's state, as callbacks and signals get it.

    Args:
        name: The circuit's name.
        old: State before.
        new: State after.
        reason: Why, in words.
        at: When, in seconds since the epoch.
        actor: Who asked for it, "" when nobody did.
        generation: Number of the period that begins; grows with every transition.

    Example:
        >>> Transition(name="mail", old="closed", new="open", reason="5 failures", at=0.0).new
        'open'
    """

    name: str
    old: str
    new: str
    reason: str
    at: float
    actor: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One generation of a circuit: the state, since when, until when and why.

    Args:
        generation: Grows by one with every change; a fresh circuit starts at the milliseconds of its birth, so
            that a cache that lost everything never counts below what some process still remembers.
        state: The state it puts the circuit in.
        at: When it was made, in seconds since the epoch.
        old: The state before.
        until: When an open state ends; None for states without an end.
        seconds: How long an open state lasts; bounds what a clock that is wrong can do to `until`.
        attempts: How often the circuit opened since it was last closed.
        reason: Why, in words.
        actor: Who asked for it, "" for the circuit itself.
        trigger: Class and redacted message of the failure that opened the circuit.
        failures: Failures in the window when the circuit changed; so are the next two.
        successes: Successes in the window.
        slow: Slow calls in the window.
        born: True for the first record of a circuit that nobody knew.
    """

    generation: int
    state: CircuitState
    at: float
    old: CircuitState = CircuitState.CLOSED
    until: float | None = None
    seconds: float | None = None
    attempts: int = 0
    reason: str = ""
    actor: str = ""
    trigger: str = ""
    failures: int = 0
    successes: int = 0
    slow: int = 0
    born: bool = False

    def remaining(self, now: float) -> float | None:
        """Return the seconds until an open state ends, within 0 and its length; None when it has no end."""
        if self.until is None:
            return None
        return min(max(self.until - now, 0.0), self.until - self.at if self.seconds is None else self.seconds)

    def transition(self, name: str) -> Transition:
        """Return this change in the form that callbacks and signals get."""
        return Transition(
            name=name,
            old=self.old,
            new=self.state,
            reason=self.reason,
            at=self.at,
            actor=self.actor,
            generation=self.generation,
        )

    def dump(self) -> dict[str, Any]:
        """Return the record as plain types, for the cache."""
        return {"schema": SCHEMA, **asdict(self), "state": str(self.state), "old": str(self.old)}

    @classmethod
    def load(cls, stored: object) -> Record | None:
        """Return the record that `dump` made, or None for anything else."""
        if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
            return None
        values = {key: value for key, value in stored.items() if key != "schema"}
        try:
            return cls(**{**values, "state": CircuitState(values["state"]), "old": CircuitState(values["old"])})
        except (KeyError, TypeError, ValueError):
            return None
