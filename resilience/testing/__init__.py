"""Helpers for the tests of projects that use this app; the pytest plugin offers them as fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazy import lazy_names

if TYPE_CHECKING:
    from resilience.testing.circuits import forced_circuit, reset_circuits
    from resilience.testing.clock import FakeClock, fake_clock
    from resilience.testing.events import Event, Events, capture_events
    from resilience.testing.failures import FaultyService, fail_database, failing, faulty_service, inject_faults
    from resilience.testing.faults import Crash, corrupt_checkpoint, crash_at_save, expire_lease, race
    from resilience.testing.isolation import isolated
    from resilience.testing.retries import disable_resilience, disable_retries, fast_retries

__all__ = [
    "Crash",
    "Event",
    "Events",
    "FakeClock",
    "FaultyService",
    "capture_events",
    "corrupt_checkpoint",
    "crash_at_save",
    "disable_resilience",
    "disable_retries",
    "expire_lease",
    "fail_database",
    "failing",
    "fake_clock",
    "fast_retries",
    "faulty_service",
    "forced_circuit",
    "inject_faults",
    "isolated",
    "race",
    "reset_circuits",
]

_NAMES = {
    "resilience.testing.circuits": ("forced_circuit", "reset_circuits"),
    "resilience.testing.clock": ("FakeClock", "fake_clock"),
    "resilience.testing.events": ("Event", "Events", "capture_events"),
    "resilience.testing.failures": ("FaultyService", "fail_database", "failing", "faulty_service", "inject_faults"),
    "resilience.testing.faults": ("Crash", "corrupt_checkpoint", "crash_at_save", "expire_lease", "race"),
    "resilience.testing.isolation": ("isolated",),
    "resilience.testing.retries": ("disable_resilience", "disable_retries", "fast_retries"),
}

__getattr__ = lazy_names(__name__, _NAMES)
