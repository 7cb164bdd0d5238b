"""Which rows many want at once: for those, waiting in line beats trying again and again."""

from __future__ import annotations

from collections.abc import Hashable

from resilience import clock

__all__ = ["ContendedRows"]


class ContendedRows:
    """Remembers for a short while where races were lost; one per process, safe to use from several threads.

    Args:
        seconds: How long a lost race is remembered.
        most: How many spots are remembered; above 0.

    Example:
        >>> rows = ContendedRows()
        >>> rows.add("row 7")
        >>> rows.has("row 7"), rows.has("row 8")
        (True, False)
    """

    def __init__(self, seconds: float = 1.0, most: int = 1000) -> None:
        self.seconds = seconds
        self.most = most
        self._until: dict[Hashable, float] = {}

    def add(self, spot: Hashable) -> None:
        """Remember a lost race."""
        if len(self._until) >= self.most:
            self._until.clear()
        self._until[spot] = clock.monotonic() + self.seconds

    def discard(self, spot: Hashable) -> None:
        """Forget a spot."""
        self._until.pop(spot, None)

    def has(self, spot: Hashable) -> bool:
        """Tell whether a race was lost there lately."""
        until = self._until.get(spot)
        if until is None:
            return False
        if clock.monotonic() < until:
            return True
        self._until.pop(spot, None)
        return False
