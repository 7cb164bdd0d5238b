"""A clock that tests move by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resilience import clock

__all__ = ["FakeClock", "fake_clock"]


class FakeClock:
    """Time that passes only when told to, or when somebody sleeps.

    Args:
        start: What `time()` says at first, in seconds since the epoch.

    Example:
        >>> fake = FakeClock(start=1000.0)
        >>> fake.sleep(2.5)
        >>> (fake.time(), fake.sleeps)
        (1002.5, [2.5])
    """

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._start = start
        self._passed = 0.0
        self._lock = threading.Lock()
        #: Every sleep so far, in seconds, in order.
        self.sleeps: list[float] = []

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How long; 0 or more.

        Raises:
            ValueError: `seconds` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}. Time does not run backwards.")
        with self._lock:
            self._passed += seconds

    def time(self) -> float:
        """Return seconds since the epoch."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Return seconds since this clock was made."""
        return self._passed

    def sleep(self, seconds: float) -> None:
        """Note the wait and let its time pass at once."""
        self.sleeps.append(seconds)
        self.advance(max(0.0, seconds))

    async def async_sleep(self, seconds: float) -> None:
        """Note the wait and let its time pass at once; other tasks get a turn, as in a real sleep."""
        import asyncio

        await asyncio.sleep(0)
        self.sleep(seconds)


@contextmanager
def fake_clock(start: float = 1_800_000_000.0) -> Iterator[FakeClock]:
    """Put a `FakeClock` in the place of the real one, for all of `resilience`, until the block ends.

    Timeouts that the operating system enforces (`timeout` on a synchronous function, `asyncio.timeout`) still
    follow real time.

    Example:
        >>> from resilience import retry
        >>> with fake_clock() as fake:
        ...     retry(max_attempts=2, delay=3, jitter=False, retry_on_result=lambda value: value is None)(lambda: None)()
        >>> fake.sleeps
        [3.0]
    """
    fake = FakeClock(start)
    before = (clock.monotonic, clock.time, clock.sleep, clock.async_sleep)
    clock.monotonic, clock.time, clock.sleep, clock.async_sleep = fake.monotonic, fake.time, fake.sleep, fake.async_sleep
    try:
        yield fake
    finally:
        clock.monotonic, clock.time, clock.sleep, clock.async_sleep = before
