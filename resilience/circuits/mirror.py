"""Keep one process's view of a circuit in step with the cache.

Every look at the cache is an *exchange*: read what changed, decide who knows better, tell what this process
counted, and judge the sum; at most four cache operations while nothing changes state. The caller holds
`Mirror.lock`, which is never held while a guarded function runs.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any

from resilience import clock
from resilience.circuits import keys, machine
from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.local import BUCKETS, View
from resilience.circuits.machine import Verdict
from resilience.circuits.notes import Notes
from resilience.circuits.records import CLOSED_STATES, OPEN_STATES, Record
from resilience.circuits.store import CircuitStore, StoreUnavailableError

__all__ = ["Mirror"]

#: Cache operations of one exchange that changes no state.
BUDGET = 4


class Mirror:
    """This process's share in one circuit.

    Args:
        name: The circuit's name.
        store: The cache's side.
        config: The configuration in force; replaced when settings change.
        declared_in: Where the circuit is declared, for people.
    """

    def __init__(self, name: str, store: CircuitStore, config: CircuitBreakerConfig, declared_in: str) -> None:
        self.name = name
        self.store = store
        self.config = config
        self.declared_in = declared_in
        self.config_is_stale = False
        self.lock = Lock()
        self.view = View(None)
        self.notes = Notes(name)
        #: Why a circuit that only measures would open, until it is logged.
        self.limit_reached = ""

    @property
    def interval(self) -> float:
        """Seconds between two exchanges."""
        assert self.config.sync_interval is not None
        return self.config.sync_interval

    @property
    def record(self) -> Record:
        """The generation in force, after the first exchange."""
        assert self.view.record is not None
        return self.view.record

    def bucket(self, wall: float) -> int:
        """Return the number of the window's part that a time belongs to."""
        return int(wall * BUCKETS / self.config.failure_window)

    def forget(self) -> None:
        """Drop what can be read again from the cache; called in a new child process too, so the lock is renewed."""
        known = self.view
        self.lock = Lock()
        self.view = View(known.record, shared=known.shared)
        self.view.ends_at, self.view.agreed_at = known.ends_at, known.agreed_at
        self.notes = Notes(self.name)

    def start_over(self) -> None:
        """Drop everything known; the next call reads the cache."""
        self.forget()
        self.view = View(None)

    def settings_changed(self) -> None:
        """Have the next call read the settings again."""
        self.config_is_stale = True
        view = self.view
        view.pass_until = view.reject_until = view.fresh_until = -math.inf

    # Exchange

    def collect(self) -> None:
        """Bring the bookkeeping up to now without asking the cache, for people who look."""
        # While the cache is away, whoever has the lock may be waiting for it without a limit.
        if self.lock.acquire(blocking=not self.store.is_down):
            try:
                self._collect(clock.monotonic(), clock.time())
            finally:
                self.lock.release()

    def exchange(self) -> list[Record]:
        """Bring this process and the cache to the same knowledge.

        Returns:
            The changes of state that this process won, for it alone to announce.
        """
        now, wall = clock.monotonic(), clock.time()
        self._collect(now, wall)
        try:
            found = self._read(wall)
            won = self._agree(found, wall)
            if won is None:
                self._tell(found, wall)
                won = self.judge(wall)
            fresh_until = now + self.interval
            self.view.agreed_at = now
        except StoreUnavailableError:
            if self.view.record is None:
                self.adopt(machine.birth(wall), shared=False)
            won = self.judge(wall)
            fresh_until = clock.monotonic() + max(self.interval, 1.0)
        self.view.checked_at = now
        self._set_deadlines(fresh_until)
        return won

    def _collect(self, now: float, wall: float) -> None:
        """Put the lock-free counts into the bucket of the time they were made in."""
        view = self.view
        age = 0.0 if view.active_at == -math.inf else max(now - view.active_at, 0.0)
        view.collect(self.bucket(wall - age))
        view.active_at = now
        view.forget_outside(self.bucket(wall) - BUCKETS + 1, now - self.config.failure_window)

    def _read(self, wall: float) -> dict[str, Any]:
        """Ask for everything that may have changed, in one operation."""
        wanted = [keys.head_key(self.name)]
        record = self.view.record
        if record is not None:
            wanted.append(keys.record_key(self.name, record.generation + 1))
            wanted += self._count_keys(record, wall)
        wanted += self.notes.wanted(clock.monotonic())
        return self.store.read(wanted)

    def _count_key(self, kind: str, bucket: int) -> str:
        return keys.count_key(self.name, self.record.generation, kind, self.config.failure_window, bucket)

    def _count_keys(self, record: Record, wall: float) -> list[str]:
        if record.state not in CLOSED_STATES:
            return []
        last = self.bucket(wall)
        view, kinds = self.view, [("f", self.view.failures)]
        if self.config.is_timed:
            kinds.append(("s", view.successes))
        # Buckets that are over do not change any more, except the latest, which others may be a moment behind in.
        return [
            self._count_key(kind, number)
            for kind, known in kinds
            for number in range(last - BUCKETS + 1, last + 1)
            if number not in known or number >= last - 1
        ]

    def _agree(self, found: dict[str, Any], wall: float) -> list[Record] | None:
        """Settle which generation is in force; return the changes won by it, or None when this process knew it already."""
        view = self.view
        seen = Record.load(found.get(keys.head_key(self.name)))
        if view.record is not None:
            following = Record.load(found.get(keys.record_key(self.name, view.record.generation + 1)))
            if following is not None and (seen is None or following.generation > seen.generation):
                seen = following
                self.store.publish(self.name, following)
        verdict, record = machine.reconcile(view.record, seen, wall, shared=view.shared)
        if verdict is Verdict.KEEP:
            view.shared = True
            self._learn_counts(found, wall)
            return None
        if verdict is Verdict.PUBLISH:
            return self._publish(record, seen)
        if verdict is Verdict.REPUBLISH:
            # Or somebody else brought it back first.
            record = self.store.vote(self.name, record)
        self.adopt(record, shared=True)
        self._learn_counts(self.store.read(self._count_keys(record, wall)), wall)
        return self.judge(wall)

    def _publish(self, record: Record, seen: Record | None) -> list[Record] | None:
        """Tell a cache that knows nothing, or something older."""
        if seen is not None:
            self.store.publish(self.name, record)
        else:
            first = self.store.publish_first(self.name, record)
            if self.view.record is None:
                self.adopt(first, shared=True)
        self.view.shared = True
        return None

    def _learn_counts(self, found: dict[str, Any], wall: float) -> None:
        record, last = self.record, self.bucket(wall)
        if record.state not in CLOSED_STATES:
            return
        for kind, known in (("f", self.view.failures), ("s", self.view.successes)):
            for number in range(last - BUCKETS + 1, last + 1):
                value = found.get(self._count_key(kind, number))
                if isinstance(value, int):
                    known[number] = value
                elif number < last - 1:
                    known.setdefault(number, 0)

    # Tell

    def _tell(self, found: dict[str, Any], wall: float) -> None:
        """Add this process's counts to everybody's, then errors and the index entry, as far as the budget goes."""
        view, budget = self.view, BUDGET - 1  # one was for reading
        budget -= self._tell_counts(found, self.bucket(wall), budget)
        if view.unsent_refusals and budget > 1:
            budget -= 2
            key = keys.total_key(self.name, self.record.generation, "r")
            self.store.add_to(key, view.unsent_refusals, keys.RECORD_TTL, exists=False)
            view.unsent_refusals = 0
        if self.notes.errors and budget > 0:
            budget -= 1
            self.notes.tell_errors(self.store, found)
        entry = {"config": self.config.describe(), "declared_in": self.declared_in}
        if budget > 1 and not self.store.is_private and self.notes.tell_index(self.store, found, entry, wall):
            self.store.publish(self.name, self.record)

    def _tell_counts(self, found: dict[str, Any], bucket: int, budget: int) -> int:
        """Return the most operations that it can have taken."""
        view, cost = self.view, 0
        failures, slow, successes = view.unshared()
        if failures or slow:
            # What was learned earlier may be gone from the cache by now.
            cost = 1 if self._count_key("f", bucket) in found else 2
            self._tell_count("f", view.failures, bucket, keys.pack(failures, slow))
            for cell in view.pending.values():
                cell[0] = cell[1] = 0
        if successes and budget > cost:
            if self._tell_count("s", view.successes, bucket, successes, insist=budget > cost + 1):
                for cell in view.pending.values():
                    cell[2] = 0
            cost += 2
        return cost

    def _tell_count(self, kind: str, known: dict[int, int], bucket: int, amount: int, *, insist: bool = True) -> bool:
        lifetime = self.config.failure_window * 2
        value = self.store.add_to(self._count_key(kind, bucket), amount, lifetime, exists=known.get(bucket, 0) > 0, insist=insist)
        if value is None:
            # The key was there, or was gone: look again next time.
            known[bucket] = 0 if known.get(bucket) else 1
            return False
        known[bucket] = value
        return True

    # Decide

    def judge(self, wall: float) -> list[Record]:
        """Open the circuit if the counts that this process knows say so."""
        view, record = self.view, self.record
        if record.state not in CLOSED_STATES:
            return []
        counts = view.counts()
        reason = machine.reason_to_open(self.config, counts)
        view.is_armed = self.config.is_timed and bool(counts.failures or counts.slow) and machine.is_near(self.config, counts, 0)
        if not reason:
            return []
        if record.state is CircuitState.METRICS_ONLY:
            if not view.told_limit:
                view.told_limit = True
                self.limit_reached = reason
            return []
        return self.change(machine.opened(record, self.config, wall, reason, counts=counts, trigger=self.notes.last_error))

    def change(self, record: Record) -> list[Record]:
        """Try to make `record` the next generation; return it if this process won."""
        if self.view.shared:
            try:
                winner = self.store.vote(self.name, record)
            except StoreUnavailableError:
                pass
            else:
                self.adopt(winner, shared=True)
                if winner is record:
                    return [record]
                self.view.fresh_until = self.view.pass_until = -math.inf
                return []
        self.adopt(record, shared=False)
        return [record]

    def adopt(self, record: Record, *, shared: bool) -> None:
        """Begin a new view; results of calls that began under the old one count nowhere."""
        now = clock.monotonic()
        view = View(record, shared=shared)
        view.active_at = view.checked_at = view.agreed_at = now
        if record.state in OPEN_STATES:
            view.ends_at = now + self.view.seconds_left(record, now, clock.time())
        self.view = view
        self._set_deadlines(now + self.interval)

    def _set_deadlines(self, fresh_until: float) -> None:
        view, record = self.view, self.record
        view.fresh_until = fresh_until
        if record.state in CLOSED_STATES:
            view.pass_until = fresh_until
        elif record.state in OPEN_STATES:
            view.reject_until = min(fresh_until, view.ends_at)
