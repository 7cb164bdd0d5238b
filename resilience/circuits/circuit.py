"""One named circuit in one process: who may call now, and what a result changes.

`admit` is asked before a call and `settle` after it; both are quick and never raise what the cache raised. The
caller's function runs between them, with no lock held and no thread of this app.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from resilience import clock
from resilience.circuits import machine
from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.judging import Outcome
from resilience.circuits.local import View
from resilience.circuits.notes import describe
from resilience.circuits.outages import asking
from resilience.circuits.probes import Permit, Probes
from resilience.circuits.records import CLOSED_STATES, OPEN_STATES, Counts, Record
from resilience.circuits.store import CircuitStore
from resilience.exceptions import CircuitOpenError

__all__ = ["Circuit", "Outcome", "Permit", "Undecided"]


class Undecided(Enum):
    """No decision yet: it takes a lock or the cache."""

    YET = "yet"


class Circuit(Probes):
    """A circuit as this process sees it. Breakers of one name share it.

    Args:
        name: The circuit's name.
        store: The cache's side.
        config: The configuration in force.
        declared_in: Where the circuit is declared, for people.
        sender: Sender of the signals.
    """

    def redeclare(self, config: CircuitBreakerConfig, declared_in: str, store: CircuitStore) -> None:
        """Take other values; what was counted stays, unless it is counted elsewhere or otherwise from now on."""
        with self.lock:
            keeps = store is self.store and config.failure_window == self.config.failure_window and not self.config_is_stale
            self.config, self.declared_in, self.store = config, declared_in, store
            self.config_is_stale = False
            view = self.view
            view.pass_until = view.reject_until = view.fresh_until = -math.inf
        if not keeps:
            self.start_over()

    # Before a call

    def admit(self) -> Permit | CircuitOpenError | None:
        """Decide about one call.

        Returns:
            A permit to settle, the error to raise, or None when the call goes ahead and counts nothing.
        """
        if asking.now:
            # The circuits' own cache is guarded by a circuit; its state cannot be asked to know its state.
            return None
        for _ in range(3):
            view = self.look(clock.monotonic())
            assert view.record is not None
            # Asked anew: looking may have taken a while.
            decided = self._decide(view, clock.monotonic())
            if isinstance(decided, Undecided):
                if view.record.state in OPEN_STATES:
                    self._begin_half_open(view)
                    continue
                decided = self.probe(view)
                if decided is None:
                    continue
            return decided
        # The circuit changed hands three times while this call waited; refusing is the careful answer.
        return self.refusal(self.view, clock.monotonic())

    def admit_at_once(self) -> Permit | CircuitOpenError | Undecided | None:
        """Decide about one call like `admit`, if that needs neither a lock nor a cache outside this process."""
        view, now = self.view, clock.monotonic()
        if view.record is not None and now < view.fresh_until:
            decided = self._decide(view, now)
            if not isinstance(decided, Undecided):
                return decided
        return Undecided.YET if self.store.may_block else self.admit()

    def _decide(self, view: View, now: float) -> Permit | CircuitOpenError | Undecided | None:
        record = view.record
        assert record is not None
        if record.state in CLOSED_STATES:
            return Permit(view)
        if record.state is CircuitState.DISABLED:
            return None
        ends_at = view.ends_at if record.state in OPEN_STATES else view.denied_until
        return self.refusal(view, now) if now < ends_at else Undecided.YET

    def look(self, now: float) -> View:
        """Return a view that is recent enough to decide on, asking the cache if need be."""
        view = self.view
        if now < view.fresh_until:
            return view
        if self.lock.locked() and now - view.checked_at < 2 * self.interval:
            # One caller asks for all; the others go on with what is known, up to twice its age.
            return view
        # `with` and nothing else: an alarm of a time limit may strike between acquire() and a `try`.
        with self.lock:
            won = self.exchange() if clock.monotonic() >= self.view.fresh_until else []
        self.announce(won)
        return self.view

    @property
    def state(self) -> CircuitState:
        """The state that the next call meets."""
        view = self.look(clock.monotonic())
        assert view.record is not None
        is_over = view.record.state in OPEN_STATES and clock.monotonic() >= view.ends_at
        return CircuitState.HALF_OPEN if is_over else view.record.state

    def synchronize(self) -> None:
        """Exchange now, however recent the view is."""
        with self.lock:
            won = self.exchange()
        self.announce(won)

    def settles_at_once(self, permit: Permit, outcome: str, *, is_slow: bool) -> bool:
        """Whether `settle` will not ask a cache outside this process."""
        if permit.lease is None and (
            outcome == Outcome.IGNORED or (outcome == Outcome.SUCCESS and not (is_slow or permit.view.is_armed))
        ):
            return True
        return not self.store.may_block

    def _begin_half_open(self, view: View) -> None:
        """The open time is over: whoever gets here first makes the circuit half-open."""
        with self.lock:
            won = []
            if self.view is view and view.record is not None:
                won = self.change(machine.half_opened(view.record, clock.time()))
        self.announce(won)

    # After a call

    def settle(self, permit: Permit, outcome: str, error: BaseException | None, *, is_slow: bool = False) -> None:
        """Count a result, and change the state if it was the one that tips the balance."""
        if asking.now:
            return
        if permit.lease is not None:
            self.settle_probe(permit.view, permit.lease, outcome, error, is_slow=is_slow)
        elif outcome == Outcome.FAILURE:
            self._count_failure(permit.view, error, is_slow=is_slow)
        elif outcome == Outcome.SUCCESS:
            self._count_success(permit.view, is_slow=is_slow)

    def _count_success(self, view: View, *, is_slow: bool) -> None:
        view.succeeded.add()
        if is_slow:
            view.slow.add()
        if not self.config.is_timed:
            return
        view.active_at = clock.monotonic()
        if not (is_slow or view.is_armed) or self.lock.locked():
            return
        with self.lock:
            won = self._judge_timed(view)
        self.announce(won)

    def _judge_timed(self, view: View) -> list[Record]:
        """A rate can reach its limit by a success too, when it completes the minimum of calls."""
        if view is not self.view:
            return []
        now, wall = clock.monotonic(), clock.time()
        self._collect(now, wall)
        counts = view.counts()
        if machine.reason_to_open(self.config, counts) or view.unshared()[1]:
            return self.exchange()
        return []

    def _count_failure(self, view: View, error: BaseException | None, *, is_slow: bool) -> None:
        described = describe(error)
        with self.lock:
            won = []
            if view is self.view:
                now, wall = clock.monotonic(), clock.time()
                self._collect(now, wall)
                view.add_failure(self.bucket(wall), now, is_slow=is_slow)
                self.notes.remember(described, wall)
                counts = view.counts()
                failures, slow, _ = view.unshared()
                unshared = failures + slow
                is_urgent = machine.is_near(self.config, counts, unshared) and machine.is_news(self.config, counts, unshared)
                won = self.exchange() if is_urgent and self.record.state is CircuitState.CLOSED else []
        self.announce(won)

    # By hand

    def operate(self, make: Callable[[Record, Counts, float], Record]) -> Record:
        """Put the whole fleet into the state that `make` asks for.

        Args:
            make: Makes the next record from the present one, the counts and the time; may be asked several times.

        Returns:
            The record in force afterwards.
        """
        made: Record | None = None
        while made is None:
            with self.lock:
                won = self.exchange()
                record = self.record
                counts = self.view.counts()
                proposal = make(record, counts, clock.time())
                operated = self.change(proposal)
                made = operated[0] if operated else None
            self.announce(won)
        self.announce([made], operated=True)
        return made
