"""The one place where this app asks for the time or waits.

Callers write `clock.monotonic()`, so that `resilience.testing` can put a fake clock in its place: it assigns
these module attributes and puts them back.
"""

from __future__ import annotations

import asyncio
import time as _time
from collections.abc import Awaitable, Callable

__all__ = ["async_sleep", "monotonic", "sleep", "time"]

monotonic: Callable[[], float] = _time.monotonic
time: Callable[[], float] = _time.time
sleep: Callable[[float], None] = _time.sleep
async_sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
