"""The rules of a circuit: when it opens, for how long, and what may follow what.

Pure: no clock, no cache, no Django. Every change of state makes the next *generation*, a `Record` that says all
there is to know about it; whoever stores that record first has made the change (`store.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.records import OPEN_STATES, Counts, Record

__all__ = [
    "Verdict",
    "birth",
    "closed",
    "effective_state",
    "half_opened",
    "is_near",
    "is_news",
    "open_seconds",
    "opened",
    "operated",
    "reason_to_open",
    "reconcile",
]

#: Grown open times are shortened by at most this share, so that circuits do not probe in step.
JITTER = 0.05


def birth(now: float) -> Record:
    """Return the first record of a circuit that nobody knows: closed."""
    return Record(generation=int(now * 1000), state=CircuitState.CLOSED, at=now, reason="first use", born=True)


def reason_to_open(config: CircuitBreakerConfig, counts: Counts) -> str:
    """Return why these counts open a closed circuit, or ""."""
    slow_rate = counts.slow_rate(config.minimum_calls)
    if config.slow_call_rate_threshold is not None and slow_rate is not None and slow_rate >= config.slow_call_rate_threshold:
        return f"{counts.slow} of {counts.calls} calls took {config.slow_call_duration:g} s or longer"
    if config.failure_rate_threshold is None:
        if counts.failures >= config.failure_threshold:
            return f"{counts.failures} failure{'' if counts.failures == 1 else 's'} in {config.failure_window:g} s"
        return ""
    failure_rate = counts.failure_rate(config.minimum_calls)
    if failure_rate is not None and failure_rate >= config.failure_rate_threshold:
        return f"{counts.failures} of {counts.calls} calls failed in {config.failure_window:g} s"
    return ""


def is_near(config: CircuitBreakerConfig, counts: Counts, unshared: int) -> bool:
    """Tell whether a failure must reach the other processes now and cannot wait for the next regular look.

    Args:
        config: The circuit's configuration.
        counts: The window as this process knows it, its own latest calls included.
        unshared: Failures and slow calls of this process that the others do not know yet.
    """
    if (
        config.slow_call_rate_threshold is not None
        and counts.calls
        and counts.slow / counts.calls >= config.slow_call_rate_threshold / 2
    ):
        return True
    if config.failure_rate_threshold is not None:
        return bool(counts.calls) and counts.failures / counts.calls >= config.failure_rate_threshold / 2
    return unshared > config.failure_threshold // 100 or counts.failures * 2 >= config.failure_threshold


def is_news(config: CircuitBreakerConfig, counts: Counts, unshared: int) -> bool:
    """Tell whether the others would judge differently if they knew: of ten thousand calls, one failure more changes no rate.

    Args:
        config: The circuit's configuration.
        counts: The window as this process knows it, its own latest calls included.
        unshared: Failures and slow calls of this process that the others do not know yet.
    """
    return config.failure_rate_threshold is None or unshared * 100 > counts.calls or bool(reason_to_open(config, counts))


def open_seconds(config: CircuitBreakerConfig, attempts: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Return how long the circuit stays open, in seconds.

    Args:
        config: The circuit's configuration.
        attempts: How often it opened since it was last closed, this time included; 1 or more.
        uniform: Draws the jitter of grown times.
    """
    if attempts <= 1 or config.recovery_backoff == 1:
        return config.recovery_timeout
    try:
        grown = config.recovery_timeout * config.recovery_backoff ** (attempts - 1)
    except OverflowError:
        grown = math.inf
    capped = min(grown, max(config.max_recovery_timeout, config.recovery_timeout))
    return capped * uniform(1 - JITTER, 1)


def opened(
    record: Record,
    config: CircuitBreakerConfig,
    now: float,
    reason: str,
    *,
    counts: Counts,
    trigger: str = "",
    uniform: Callable[[float, float], float] = random.uniform,
) -> Record:
    """Return the record that opens the circuit, after closed or half-open."""
    attempts = record.attempts + 1
    seconds = open_seconds(config, attempts, uniform)
    return _next(
        record,
        CircuitState.OPEN,
        now,
        reason,
        until=now + seconds,
        seconds=seconds,
        attempts=attempts,
        trigger=trigger or record.trigger,
        failures=counts.failures,
        successes=counts.successes,
        slow=counts.slow,
    )


def half_opened(record: Record, now: float, reason: str = "the open time is over", actor: str = "") -> Record:
    """Return the record that lets probes through; the growth of the open time goes on if they fail."""
    return _next(record, CircuitState.HALF_OPEN, now, reason, actor=actor, attempts=record.attempts, trigger=record.trigger)


def closed(record: Record, now: float, reason: str, actor: str = "") -> Record:
    """Return the record that closes the circuit; counts and growth start afresh."""
    return _next(record, CircuitState.CLOSED, now, reason, actor=actor)


def operated(
    record: Record, state: CircuitState, now: float, reason: str, actor: str, *, seconds: float | None, counts: Counts
) -> Record:
    """Return the record of a state that somebody asked for: forced open, disabled or metrics only."""
    return _next(
        record,
        state,
        now,
        reason,
        actor=actor,
        until=None if seconds is None else now + seconds,
        seconds=seconds,
        attempts=record.attempts,
        trigger=record.trigger,
        failures=counts.failures,
        successes=counts.successes,
        slow=counts.slow,
    )


def effective_state(record: Record, now: float) -> CircuitState:
    """Return the state a caller meets: half-open as soon as the open time is over."""
    if record.state in OPEN_STATES and record.remaining(now) == 0:
        return CircuitState.HALF_OPEN
    return record.state


class Verdict(Enum):
    """What a process does after it compared its own knowledge with the cache's."""

    KEEP = "keep"
    ADOPT = "adopt"
    PUBLISH = "publish"
    REPUBLISH = "republish"


def reconcile(known: Record | None, seen: Record | None, now: float, *, shared: bool) -> tuple[Verdict, Record]:
    """Decide between what a process knows and what the cache says.

    The higher generation wins, with one exception: a cache that forgot everything and began anew does not undo an
    open circuit or an operator's order that somebody still knows of.

    Args:
        known: The latest record this process knows, or None.
        seen: The latest record in the cache, or None.
        now: Seconds since the epoch.
        shared: False when `known` was made while the cache was away, so that nobody else has it.

    Returns:
        The verdict and the record it speaks of: to keep, to adopt, to publish where the cache has nothing newer,
        or to propose as the next generation.
    """
    if known is None:
        return (Verdict.ADOPT, seen) if seen is not None else (Verdict.PUBLISH, birth(now))
    if seen is None or (shared and seen.generation < known.generation):
        return Verdict.PUBLISH, known
    if seen == known:
        return Verdict.KEEP, known
    if (seen.born or not shared) and seen.state is CircuitState.CLOSED and _is_in_force(known, now):
        return Verdict.REPUBLISH, replace(known, generation=seen.generation + 1, seconds=known.remaining(now))
    return Verdict.ADOPT, seen


def _is_in_force(record: Record, now: float) -> bool:
    if record.state is CircuitState.CLOSED:
        return False
    if record.state is CircuitState.HALF_OPEN:
        return now - record.at < (record.seconds or 60.0)
    return record.until is None or now < record.until


def _next(record: Record, state: CircuitState, now: float, reason: str, **values: Any) -> Record:
    return Record(generation=record.generation + 1, state=state, at=now, old=record.state, reason=reason, **values)
