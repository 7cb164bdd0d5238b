"""Retry budgets: retries may be at most a share of all calls, so that an outage is not answered with a stampede.

What calls earn is counted in each process: shares of the parts add up to the share of the whole. Only the reserve,
which every process would have for itself, needs the fleet's agreement; that is counted in Django's cache.

Source:
    The share of calls and the reserve per second: Finagle's RetryBudget (20 %, fading within ten seconds) and Google,
    "Site Reliability Engineering", chapter 21 (10 % per client).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from weakref import WeakSet

from asgiref.sync import sync_to_async

from resilience import clock, conf
from resilience.calls.classify import classify
from resilience.values import checked_number

__all__ = ["RetryBudget", "SharedReserve", "reset_budgets"]

logger = logging.getLogger("resilience.calls")

#: Seconds within which earned retries fade, so that a quiet day does not pay for a stampede.
_FADING = 10.0
_MOST_AT_START = 20.0
#: A hair below 1: ten tenths do not make one in floating point, and the first has faded a little when the last comes.
_PRICE = 0.99
#: Seconds a window of the shared reserve lasts: at most ten, or up to an hour for a reserve of less than one retry in ten seconds.
_WINDOW, _LONGEST_WINDOW = 10, 3600
#: Seconds to go on without a cache that failed: each attempt to reach one that is down may take as long.
_PAUSE = 10.0

_USUAL = "The usual budget is RetryBudget(ratio=0.2, min_per_second=3)."

_budgets: WeakSet[RetryBudget] = WeakSet()


class RetryBudget:
    """At most this share of calls may be retries, over all functions that share the budget.

    Each call earns `ratio` of a retry, each retry costs one. What was earned fades within about ten seconds.
    `min_per_second` is a reserve for quiet times: that many retries a second are let through however few
    calls there are. It starts with ten seconds' worth, at most 20.

    Args:
        ratio: Retries per call, above 0 and at most 1.
        min_per_second: Retries a second that are always possible; 0 or more.
        name: Name for logs and `repr`; needed to share.
        shared: True shares the reserve with all processes through the cache that `RESILIENCE["CACHE"]` names. When
            the cache fails, each process goes on with a reserve of its own.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value is of the wrong type.

    Example:
        >>> budget = RetryBudget(ratio=0.1, min_per_second=0)
        >>> for _ in range(10):
        ...     budget.deposit()
        >>> budget.withdraw(), budget.withdraw()
        (True, False)
    """

    def __init__(self, ratio: float = 0.2, min_per_second: float = 3, *, name: str = "", shared: bool = False) -> None:
        self.ratio = float(checked_number("ratio", ratio, "a number above 0 and at most 1", _USUAL, lambda share: 0 < share <= 1))
        self.min_per_second = float(
            checked_number("min_per_second", min_per_second, "a number of 0 or more", _USUAL, lambda number: number >= 0)
        )
        if shared and not name:
            raise ValueError(f"name must be given for a shared budget, not {name!r}. Processes find it by its name.")
        self.name = name
        self._shared = SharedReserve(name, self.min_per_second) if shared else None
        self._most_reserve = min(_MOST_AT_START, self.min_per_second * _FADING)
        self.reset()
        _budgets.add(self)

    def reset(self) -> None:
        """Start anew in this process: nothing earned, the reserve full."""
        self._lock = threading.Lock()
        self._reserve = self._most_reserve
        self._earned = 0.0
        self._calls = 0
        self._settled = clock.monotonic()

    def deposit(self) -> None:
        """Count one call; the first attempt of each, whatever comes of it."""
        with self._lock:
            self._calls += 1

    def withdraw(self) -> bool:
        """Take the price of one retry; False when there is not enough."""
        if self._shared is None:
            return self._withdraw(from_reserve=True)
        if self._withdraw(from_reserve=False):
            return True
        # Outside the lock: the cache may take its time.
        taken = self._shared.take()
        return self._withdraw(from_reserve=True) if taken is None else taken

    async def awithdraw(self) -> bool:
        """Do as `withdraw` does; a shared reserve asks the cache in a thread, never on the event loop."""
        if self._shared is None:
            return self._withdraw(from_reserve=True)
        if self._withdraw(from_reserve=False):
            return True
        taken = await sync_to_async(self._shared.take, thread_sensitive=False)()
        return self._withdraw(from_reserve=True) if taken is None else taken

    def _withdraw(self, *, from_reserve: bool) -> bool:
        with self._lock:
            self._settle(clock.monotonic())
            if max(self._earned, self._reserve if from_reserve else 0.0) < _PRICE:
                return False
            # From both: the reserve is a floor under the share, not an addition to it.
            self._earned = max(0.0, self._earned - 1)
            self._reserve = max(0.0, self._reserve - 1)
            return True

    @property
    def balance(self) -> float:
        """Retries that could be taken now, as far as this process knows."""
        with self._lock:
            self._settle(clock.monotonic())
            return max(self._earned, self._reserve)

    def _settle(self, now: float) -> None:
        """Bring the account up to date: fade what was earned, add what the calls since then earned, fill the reserve."""
        past = max(0.0, now - self._settled)
        self._settled = now
        kept = math.exp(-past / _FADING)
        # The calls came evenly spread over `past`, so that some of what they earned has faded already.
        kept_of_new = (1 - kept) / (past / _FADING) if past > 0 else 1.0
        self._earned = self._earned * kept + self._calls * self.ratio * kept_of_new
        self._calls = 0
        self._reserve = min(self._most_reserve, self._reserve + past * self.min_per_second)

    def __repr__(self) -> str:
        name = f"name={self.name!r}, " if self.name else ""
        shared = ", shared=True" if self._shared else ""
        return f"RetryBudget({name}ratio={self.ratio!r}, min_per_second={self.min_per_second!r}{shared})"


def reset_budgets() -> None:
    """Start every budget of this process anew, as each test should find them, and each forked child."""
    for budget in list(_budgets):
        budget.reset()


# A thread of the parent may have held a lock at that instant, and what the parent earned is the parent's.
os.register_at_fork(after_in_child=reset_budgets)


class SharedReserve:
    """So many retries a second for all processes together, counted in windows of whole seconds.

    A retry costs an `add` and an atomic `incr` in the cache; once a window is used up, nothing is asked until the next.

    Args:
        name: Name of the budget; equal names share.
        per_second: Retries a second; 0 or more.
    """

    def __init__(self, name: str, per_second: float) -> None:
        self._prefix = f"resilience:budget:{hashlib.blake2s(name.encode()).hexdigest()[:16]}"
        self._name = name
        #: Seconds a window lasts, so that its retries are at most 20 at once, or one second's worth if that is more.
        self.window = _window(per_second)
        self.quota = int(per_second * self.window)
        self._used_up = -1
        self._away_until = 0.0
        self._is_away = False

    def take(self) -> bool | None:
        """Take one retry: True or False, or None when the cache does not tell."""
        window = int(clock.time() // self.window)
        if window == self._used_up or self.quota == 0:
            return False
        if clock.monotonic() < self._away_until:
            return None
        taken = self._count(window)
        if taken is None:
            return None
        if taken > self.quota:
            self._used_up = window
        return taken <= self.quota

    def _count(self, window: int) -> int | None:
        from django.core.cache import caches

        key = f"{self._prefix}:{window}"
        try:
            cache = caches[conf.current().cache]
            cache.add(key, 0, timeout=self.window * 2 + 1)
            taken = int(cache.incr(key))
        except Exception as error:  # a broken cache must not break a call that can be retried
            if classify(error).is_control_flow:
                # A worker's time limit or shutdown, which happened to strike here.
                raise
            self._away_until = clock.monotonic() + _PAUSE
            if not self._is_away:
                self._is_away = True
                logger.warning(
                    "The shared retry budget %r goes on with this process's own reserve until the cache is back: it failed with %s.",
                    self._name,
                    type(error).__name__,
                )
            return None
        self._is_away = False
        return taken


def _window(per_second: float) -> int:
    shortest = 1 / _LONGEST_WINDOW
    if per_second <= shortest:
        return _LONGEST_WINDOW
    return max(1, int(min(_WINDOW, _MOST_AT_START / per_second)), math.ceil(1 / per_second))
