"""How long to wait between the attempts of one call.

Pure arithmetic: no clock, no sleep, no settings. `Retrying` asks, and the shells in `retries` do the waiting.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["Backoff", "RetryStrategy"]


class RetryStrategy(StrEnum):
    """How the wait grows from one attempt to the next; with `delay=d` and factor 2.

    EXPONENTIAL waits d, 2d, 4d...; LINEAR d, 2d, 3d...; FIXED d, d, d...; FIBONACCI d, d, 2d, 3d, 5d....

    Example:
        >>> RetryStrategy("linear") is RetryStrategy.LINEAR
        True
    """

    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    FIXED = "fixed"
    FIBONACCI = "fibonacci"


#: The jitters, by what may be written for them.
JITTERS: Final[dict[object, str]] = {True: "full", False: "", "full": "full", "equal": "equal", "decorrelated": "decorrelated"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The waits between the attempts of one call; each call draws its own series with `delays()`.

    Args:
        delay: The first nominal wait, in seconds; 0 or more.
        factor: What an exponential wait is multiplied by each time; 1 or more.
        max_delay: Cap on every wait, in seconds; 0 or more.
        strategy: How the nominal wait grows.
        jitter: "full" draws between 0 and the nominal wait, "equal" between its half and itself, "decorrelated"
            between `delay` and three times the wait before (whatever the strategy), "" draws nothing.

    Source:
        M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. There, decorrelated jitter cuts the
        drawn wait at the cap, so that late clients meet exactly there; here the cap bounds the range drawn from.

    Example:
        >>> waits = Backoff(delay=1, max_delay=6).delays()
        >>> [next(waits) for _ in range(5)]
        [1.0, 2.0, 4.0, 6.0, 6.0]
    """

    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    strategy: RetryStrategy = RetryStrategy.EXPONENTIAL
    jitter: str = ""

    def delays(self, uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
        """Yield the waits to sleep, in seconds, for ever.

        The jitter comes after the cap, so that clients that have all reached it do not fall into step.
        """
        if self.jitter == "decorrelated":
            yield from self._decorrelated(uniform)
        elif self.jitter:
            share = 0.5 if self.jitter == "equal" else 0.0
            for nominal in self.nominal():
                yield uniform(nominal * share, nominal)
        else:
            yield from self.nominal()

    def nominal(self) -> Iterator[float]:
        """Yield the waits before jitter, in seconds, for ever: growing up to the cap, then the cap."""
        wait, before = float(self.delay), 0.0
        while wait < self.max_delay:
            yield wait
            if self.strategy is RetryStrategy.EXPONENTIAL:
                wait *= self.factor
            elif self.strategy is RetryStrategy.LINEAR:
                wait += self.delay
            elif self.strategy is RetryStrategy.FIBONACCI:
                wait, before = wait + before, wait
        # Saturated: to grow further would only overflow after a thousand attempts.
        while True:
            yield float(self.max_delay)

    def _decorrelated(self, uniform: Callable[[float, float], float]) -> Iterator[float]:
        shortest = min(self.delay, self.max_delay)
        wait = shortest
        while True:
            wait = uniform(shortest, min(self.max_delay, max(shortest, wait * 3)))
            yield wait
