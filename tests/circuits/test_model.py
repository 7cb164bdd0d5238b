"""Any sequence of events against a model that is too simple to be wrong."""

from __future__ import annotations

import math

from django.core.cache import caches
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilience import clock
from resilience.circuits.judging import Outcome
from resilience.circuits.probes import Permit
from tests.circuits.conftest import FakeClock, Fleet, ServiceError
from tests.length import shorter

THRESHOLD, WINDOW, RECOVERY, SUCCESSES, PLACES, LEASE = 3, 60.0, 30.0, 2, 2, 12.0


class CircuitModel(RuleBasedStateMachine):
    """Three processes that ask the cache at every call, and the one circuit they should amount to."""

    @initialize()
    def start(self) -> None:
        self.real = clock.time, clock.monotonic
        self.fake = FakeClock()
        # Whole buckets, so that the model can count without them.
        self.fake._wall = math.ceil(self.fake._wall / WINDOW) * WINDOW
        self.fake._mono = math.ceil(self.fake._mono)
        clock.time, clock.monotonic = self.fake.time, self.fake.monotonic
        caches["default"].clear()
        fleet = Fleet("default", self.fake)
        fields = {
            "failure_threshold": THRESHOLD,
            "failure_window": WINDOW,
            "recovery_timeout": RECOVERY,
            "success_threshold": SUCCESSES,
            "half_open_max_calls": PLACES,
            "half_open_timeout": LEASE,
            "sync_interval": 0,
        }
        self.members = [fleet.member(**fields) for _ in range(3)]
        self.fleet = fleet
        self.running: list[tuple[int, Permit, int, float, bool]] = []
        self.state, self.failures, self.until, self.successes, self.generation = "closed", [], 0.0, 0, 0
        self.events: list[str] = []

    def teardown(self) -> None:
        if hasattr(self, "real"):
            clock.time, clock.monotonic = self.real

    def now(self) -> float:
        return self.fake.offset

    def move(self, state: str, event: str) -> None:
        self.state, self.failures, self.successes = state, [], 0
        self.generation += 1
        self.events.append(event)
        if state == "open":
            self.until = self.now() + RECOVERY

    def live(self) -> int:
        """Probes of this half-open time whose lease is not over."""
        return sum(
            1
            for _, _, generation, began, probe in self.running
            if probe and generation == self.generation and self.now() < began + LEASE
        )

    @rule(steps=st.integers(1, 12))
    def advance(self, steps: int) -> None:
        self.fake.advance(steps * WINDOW / 20)
        self.failures = [at for at in self.failures if self.now() - at < WINDOW]

    @rule(member=st.integers(0, 2))
    def begin(self, member: int) -> None:
        if self.state == "open" and self.now() >= self.until:
            self.move("half_open", "half_open")
        expected = self.state == "closed" or (self.state == "half_open" and self.live() < PLACES)

        admitted = self.members[member]._admit()

        assert isinstance(admitted, Permit) == expected
        if isinstance(admitted, Permit):
            self.running.append((member, admitted, self.generation, self.now(), self.state == "half_open"))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        call = data.draw(st.sampled_from(self.running))
        self.running.remove(call)
        member, permit, generation, began, probe = call
        error = ServiceError("down") if outcome == Outcome.FAILURE else None

        self.members[member].circuit.settle(permit, outcome, error)

        if generation != self.generation or (probe and self.now() >= began + LEASE):
            return
        if probe and outcome == Outcome.FAILURE:
            self.move("open", "open")
        elif probe and outcome == Outcome.SUCCESS:
            self.successes += 1
            if self.successes == SUCCESSES:
                self.move("closed", "close")
        elif outcome == Outcome.FAILURE:
            self.failures.append(self.now())
            if len(self.failures) >= THRESHOLD:
                self.move("open", "open")

    @rule(member=st.integers(0, 2))
    def reset(self, member: int) -> None:
        was_closed = self.state == "closed"
        self.members[member].reset()
        self.move("closed", "close")
        if was_closed:
            self.events.pop()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "members"):
            return
        expected = "half_open" if self.state == "open" and self.now() >= self.until else self.state
        assert [str(member.state) for member in self.members] == [expected] * 3
        assert self.fleet.events == self.events


TestCircuitModel = CircuitModel.TestCase
TestCircuitModel.settings = settings(max_examples=shorter(60), stateful_step_count=40, deadline=None)
