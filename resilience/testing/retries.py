"""Retries in tests: without waiting, or off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from resilience import clock, conf

__all__ = ["disable_resilience", "disable_retries", "fast_retries"]


@contextmanager
def fast_retries() -> Iterator[list[float]]:
    """Retry as usual, but note the waits instead of sleeping, until the block ends.

    Yields:
        The waits so far, in seconds; it grows while the block runs.

    Example:
        >>> from resilience import retry
        >>> with fast_retries() as waits:
        ...     retry(max_attempts=3, delay=1, jitter=False, retry_on_result=lambda value: True)(lambda: 0)()
        0
        >>> waits
        [1.0, 2.0]
    """
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    before = (clock.sleep, clock.async_sleep)
    clock.sleep, clock.async_sleep = waits.append, note
    try:
        yield waits
    finally:
        clock.sleep, clock.async_sleep = before


@contextmanager
def disable_retries() -> Iterator[None]:
    """Let every first failure through, everywhere in this process, until the block ends.

    Example:
        >>> from resilience import retry
        >>> calls = []
        >>> with disable_retries():
        ...     retry(max_attempts=3, delay=0, retry_on_result=lambda value: True)(lambda: calls.append(1))()
        >>> len(calls)
        1
    """
    with conf.override(lambda settings: replace(settings, retry={**settings.retry, "enabled": False})):
        yield


@contextmanager
def disable_resilience() -> Iterator[None]:
    """Make every decorator of this app call straight through, fallbacks included, until the block ends.

    Example:
        >>> from resilience import fallback
        >>> with disable_resilience():
        ...     fallback("never")(int)("x")
        Traceback (most recent call last):
            ...
        ValueError: invalid literal for int() with base 10: 'x'
    """
    with conf.override(lambda settings: replace(settings, enabled=False)):
        yield
