"""What one process knows of one circuit, and the counters that cost next to nothing.

A `View` belongs to one generation. Calls remember the view they began under, so a result that arrives after the
circuit moved on lands in a view that nobody reads any more.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import count

from resilience.circuits.keys import unpack
from resilience.circuits.records import Counts, Record
from resilience.circuits.store import Lease

__all__ = ["BUCKETS", "Tally", "View"]

#: Parts of the sliding window.
BUCKETS = 20
#: Own failures whose exact times are remembered.
STAMPS = 1000


class Tally:
    """A counter that any number of threads raise without a lock and without losing a count.

    `add()` is `itertools.count.__next__`, one C call that the interpreter does not interrupt. Reading raises the
    counter as well, which `take` subtracts again; only one thread at a time may call `take`.

    Example:
        >>> tally = Tally()
        >>> _ = tally.add(), tally.add()
        >>> tally.take(), tally.take()
        (2, 0)
    """

    __slots__ = ("_start", "add")

    def __init__(self) -> None:
        self.add = count().__next__
        self._start = 0

    def take(self) -> int:
        """Return how many were added since the last time."""
        value = self.add()
        taken, self._start = value - self._start, value + 1
        return taken


class View:
    """One process's knowledge of one generation of a circuit.

    The three deadlines are monotonic seconds and let a call be decided by one comparison: before `pass_until` it
    may go ahead, before `reject_until` it is refused, before `fresh_until` the cache need not be asked.

    Args:
        record: The generation, None while nothing was read yet.
        shared: False when the record was made while the cache was away.
    """

    __slots__ = (
        "active_at",
        "agreed_at",
        "checked_at",
        "denied_until",
        "ends_at",
        "failures",
        "fresh_until",
        "is_armed",
        "leases",
        "pass_until",
        "pending",
        "probe_successes",
        "record",
        "refuse",
        "refused",
        "reject_until",
        "shared",
        "slow",
        "stamps",
        "state",
        "succeed",
        "succeeded",
        "successes",
        "told_limit",
        "trigger",
        "unsent_refusals",
    )

    def __init__(self, record: Record | None, *, shared: bool = True) -> None:
        self.record = record
        self.shared = shared
        self.pass_until = self.reject_until = self.fresh_until = self.checked_at = -math.inf
        self.active_at = self.agreed_at = -math.inf
        self.ends_at = -math.inf
        self.denied_until = -math.inf
        self.is_armed = False
        self.told_limit = False
        #: Calls of this process since they were last looked at.
        self.succeeded, self.slow, self.refused = Tally(), Tally(), Tally()
        self.succeed, self.refuse = self.succeeded.add, self.refused.add
        #: What an error says about a refused call.
        self.state = "" if record is None else str(record.state)
        self.trigger = "" if record is None else record.trigger
        #: Buckets as the cache told them; failures packed with slow calls.
        self.failures: dict[int, int] = {}
        self.successes: dict[int, int] = {}
        #: Buckets of this process that the cache was not told yet: failures, slow, successes.
        self.pending: dict[int, list[int]] = {}
        self.stamps: deque[float] = deque(maxlen=STAMPS)
        self.leases: dict[int, Lease] = {}
        self.probe_successes = 0
        self.unsent_refusals = 0

    def seconds_left(self, following: Record, now: float, wall: float) -> float:
        """Return how long an open state that follows this view lasts, whatever clock its maker's host has."""
        remaining = following.remaining(wall)
        if remaining is None:
            return math.inf
        if following.seconds is None or self.record is None or self.record.generation >= following.generation:
            return remaining
        # It began after this process last looked.
        return max(remaining, following.seconds - (now - self.agreed_at))

    def collect(self, bucket: int) -> None:
        """Move what the lock-free counters gathered into a bucket. One thread at a time."""
        self.unsent_refusals += self.refused.take()
        successes, slow = self.succeeded.take(), self.slow.take()
        if successes or slow:
            cell = self.pending.setdefault(bucket, [0, 0, 0])
            cell[1] += slow
            cell[2] += successes

    def add_failure(self, bucket: int, now: float, *, is_slow: bool) -> None:
        """Count a failure of this process. One thread at a time."""
        cell = self.pending.setdefault(bucket, [0, 0, 0])
        cell[0] += 1
        cell[1] += is_slow
        self.stamps.append(now)
        self.active_at = now

    def forget_outside(self, bucket: int, instant: float) -> None:
        """Drop the buckets, and this process's own failures, that are not of the window. One thread at a time.

        A wall clock that was ahead and was set back leaves buckets in the future, which would never grow old. Those
        less than a window ahead stay: clocks of a fleet differ, and a small correction must lose no failure.
        """
        while self.stamps and self.stamps[0] <= instant:
            self.stamps.popleft()
        for buckets in (self.failures, self.successes, self.pending):
            for other in [number for number in buckets if not bucket <= number < bucket + 2 * BUCKETS]:
                del buckets[other]

    def unshared(self) -> tuple[int, int, int]:
        """Return the failures, slow calls and successes that the cache was not told yet."""
        cells = list(self.pending.values())
        return sum(cell[0] for cell in cells), sum(cell[1] for cell in cells), sum(cell[2] for cell in cells)

    def counts(self) -> Counts:
        """Return the window as this process knows it, after `forget_outside`.

        Buckets forget up to a twentieth of the window too early; this process's own failures are known to the
        instant and make up for that.
        """
        failures, slow, successes = self.unshared()
        for packed in self.failures.values():
            more_failures, more_slow = unpack(packed)
            failures += more_failures
            slow += more_slow
        return Counts(failures=max(failures, len(self.stamps)), successes=successes + sum(self.successes.values()), slow=slow)
