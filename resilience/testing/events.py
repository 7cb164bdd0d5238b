"""What happened, for assertions: every signal of the app, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from resilience import signals

__all__ = ["Event", "Events", "capture_events"]


@dataclass(frozen=True, slots=True)
class Event:
    """One signal as it was sent.

    Args:
        signal: Its name in `resilience.signals`.
        arguments: What it carried.
    """

    signal: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Events:
    """The signals captured so far, in the order they were sent."""

    all: list[Event] = field(default_factory=list)

    def of(self, signal: str, **arguments: Any) -> list[Event]:
        """Return the events of one signal whose arguments include the given ones."""
        return [event for event in self.all if event.signal == signal and arguments.items() <= event.arguments.items()]

    def assert_retried(self, times: int, name: str | None = None) -> None:
        """Fail unless exactly so many retries were scheduled.

        Args:
            times: Retries, not counting first attempts.
            name: Count only those of this function or policy.
        """
        found = [event for event in self.of("retry_scheduled") if name in {None, event.arguments["name"]}]
        assert len(found) == times, f"{len(found)} retries were scheduled, not {times}."

    def assert_circuit_opened(self, name: str) -> None:
        """Fail unless the circuit opened."""
        opened = sorted({event.arguments["name"] for event in self.of("circuit_opened")})
        assert name in opened, f"Circuit {name!r} did not open; opened: {', '.join(opened) or 'none'}."

    def assert_nothing_happened(self) -> None:
        """Fail if any signal was sent."""
        assert not self.all, f"These were sent: {', '.join(event.signal for event in self.all)}."


@contextmanager
def capture_events() -> Iterator[Events]:
    """Collect every signal of the app that is sent in this process until the block ends.

    Example:
        >>> from resilience import retry
        >>> with capture_events() as events:
        ...     retry(max_attempts=2, delay=0, retry_on_result=lambda value: True)(lambda: 0)()
        0
        >>> events.assert_retried(times=1)
    """
    events = Events()
    receivers = {}
    for name in signals.__all__:
        if name == "emit":
            continue

        def receive(sender: Any, signal: Any, _name: str = name, **arguments: Any) -> None:
            events.all.append(Event(_name, arguments))

        receivers[name] = receive
        getattr(signals, name).connect(receive, weak=False)
    try:
        yield events
    finally:
        for name, receive in receivers.items():
            getattr(signals, name).disconnect(receive)
