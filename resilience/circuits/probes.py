"""Half-open: few calls at a time, over the whole fleet, find out whether the service is back.

A place for a probe is a lease in the cache. It ends by itself, so a prober that was killed holds nobody up, and its token
tells whether a result still counts.
"""

from __future__ import annotations

import logging
import math
import uuid
from contextvars import ContextVar

from resilience import clock, signals
from resilience.circuits import keys, machine, news
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.judging import Outcome
from resilience.circuits.local import View
from resilience.circuits.mirror import Mirror
from resilience.circuits.notes import Description, describe
from resilience.circuits.records import Counts, Record
from resilience.circuits.store import CircuitStore, Lease, StoreUnavailableError
from resilience.exceptions import CircuitOpenError

__all__ = ["Permit", "Probes"]

logger = logging.getLogger("resilience.circuits")

_rejected = signals.circuit_rejected


class Permit:
    """Leave for one call: the knowledge it was given under, and its place if it is a probe."""

    __slots__ = ("lease", "view")

    def __init__(self, view: View, lease: Lease | None = None) -> None:
        self.view = view
        self.lease = lease

    @property
    def is_probing(self) -> bool:
        """Whether it is a probe that holds its place."""
        return self.lease is not None and self.view.leases.get(self.lease.slot) is self.lease


#: Probes that the running code is part of; those that ended may still be listed.
_under_way: ContextVar[tuple[Permit, ...]] = ContextVar("resilience_circuit_probes", default=())


class Probes(Mirror):
    """The part of a circuit that lets probes through and judges them.

    Args:
        name: The circuit's name.
        store: The cache's side.
        config: The configuration in force.
        declared_in: Where the circuit is declared, for people.
        sender: Sender of the signals.
    """

    def __init__(self, name: str, store: CircuitStore, config: CircuitBreakerConfig, declared_in: str, sender: type) -> None:
        super().__init__(name, store, config, declared_in)
        self._sender = sender

    def refusal(self, view: View, now: float) -> CircuitOpenError:
        """Count a refused call and return the error that says so."""
        view.refuse()
        # Half-open: until this process asks for a place again. Otherwise: until the open time is over.
        left = max(max(view.ends_at, view.denied_until) - now, 0.0)
        retry_after = None if left == math.inf else left
        if _rejected.receivers:
            # The change that began the state, as the other signals of circuits carry it.
            transition = self.record.transition(self.name)
            signals.emit(
                _rejected, self._sender, name=self.name, transition=transition, state=view.state, retry_after=retry_after
            )
        return CircuitOpenError(self.name, view.state, retry_after, view.trigger)

    def announce(self, won: list[Record], *, operated: bool = False) -> None:
        """Tell callbacks and signals about changes that this process made, and whatever else happened under the lock."""
        self.store.tell_news()
        if self.limit_reached:
            reason, self.limit_reached = self.limit_reached, ""
            logger.warning("Circuit %r only measures; it would open: %s.", self.name, reason, extra={"circuit": self.name})
        for record in won:
            news.announce(self.name, self.config, self._sender, record, operated=operated)

    def probe(self, view: View) -> Permit | CircuitOpenError | None:
        """Take a place for a probe, or refuse; None when the circuit moved on meanwhile."""
        permit = None
        with self.lock:
            if self.view is not view:
                return None
            now = clock.monotonic()
            if now >= view.denied_until and (lease := self._take_place(view, now)) is not None:
                permit = Permit(view, lease)
        self.announce([])
        if permit is None:
            if any(other.view is view and other.is_probing for other in _under_way.get()):
                logger.warning(
                    "Circuit %r refused a call made by its own probe, so it cannot close; guard the call once, or raise "
                    "half_open_max_calls.",
                    self.name,
                    extra={"circuit": self.name},
                )
            return self.refusal(view, now)
        _under_way.set((*(other for other in _under_way.get() if other.is_probing), permit))
        return permit

    def _take_place(self, view: View, now: float) -> Lease | None:
        """Try the places that this process does not hold itself; remember for a while if all are taken."""
        wall = clock.time()
        ends = math.inf
        for slot in range(self.config.half_open_max_calls):
            own = view.leases.get(slot)
            if own is not None and wall < own.until:
                ends = min(ends, own.until)
                continue
            taken = self._take_lease(view, slot)
            if isinstance(taken, Lease):
                view.leases[slot] = taken
                return taken
            ends = min(ends, taken)
        view.denied_until = now + min(max(ends - wall, 0.0), self.interval)
        return None

    def _take_lease(self, view: View, slot: int) -> Lease | float:
        token, seconds = uuid.uuid4().hex, self.config.half_open_timeout
        if view.shared:
            try:
                return self.store.take_lease(self.name, self.record.generation, slot, token, seconds)
            except StoreUnavailableError:
                pass
        return Lease(slot, token, clock.time() + seconds)

    def settle_probe(self, view: View, lease: Lease, outcome: str, error: BaseException | None, *, is_slow: bool) -> None:
        """Count a probe's result; one whose lease is over, or was taken over, counts nowhere."""
        described = describe(error)
        with self.lock:
            won = []
            is_late = clock.time() >= lease.until
            if view is self.view and view.leases.get(lease.slot) is lease:
                del view.leases[lease.slot]
                view.denied_until = -math.inf
                won = [] if is_late else self._judge_probe(view, lease, outcome, described, is_slow=is_slow)
        self.announce(won)

    def _judge_probe(self, view: View, lease: Lease, outcome: str, described: Description, *, is_slow: bool) -> list[Record]:
        generation = self.record.generation
        too_slow = is_slow and self.config.slow_call_rate_threshold is not None
        try:
            if view.shared and not self.store.owns_lease(self.name, generation, lease):
                return []
            if outcome == Outcome.IGNORED:
                if view.shared:
                    self.store.drop_lease(self.name, generation, lease)
                return []
        except StoreUnavailableError:
            pass
        if outcome == Outcome.FAILURE or too_slow:
            return self._reopen(view, described)
        if outcome == Outcome.SUCCESS:
            return self._count_probe(view, lease)
        return []

    def _reopen(self, view: View, described: Description) -> list[Record]:
        wall = clock.time()
        self.notes.remember(described, wall)
        counts = Counts(failures=1, successes=view.probe_successes)
        won = self.change(
            machine.opened(self.record, self.config, wall, "a probe failed", counts=counts, trigger=self.notes.last_error)
        )
        if won:
            self.notes.send_errors(self.store)
        return won

    def _count_probe(self, view: View, lease: Lease) -> list[Record]:
        view.probe_successes += 1
        if view.shared:
            try:
                key = keys.total_key(self.name, self.record.generation, "ok")
                total = self.store.add_to(key, 1, keys.RECORD_TTL, exists=view.probe_successes > 1)
                view.probe_successes = max(view.probe_successes, total or 0)
                if view.probe_successes < self.config.success_threshold:
                    self.store.drop_lease(self.name, self.record.generation, lease)
            except StoreUnavailableError:
                pass
        if view.probe_successes < self.config.success_threshold:
            return []
        return self.change(
            machine.closed(
                self.record, clock.time(), f"{view.probe_successes} probe{'' if view.probe_successes == 1 else 's'} succeeded"
            )
        )
