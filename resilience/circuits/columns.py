"""Counts of a sliding window as surveys read them: what is over is read once, and then remembered.

A process adds to the present part of a window only. What is over for some seconds is therefore the same at every look, and a
page that updates itself every few seconds asks for three or four keys of a circuit in place of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from resilience import clock
from resilience.circuits import keys
from resilience.circuits.local import BUCKETS
from resilience.circuits.store import CircuitStore

__all__ = ["Column", "Past", "Place", "number", "recall", "remember"]

#: Seconds for which parts that are over are read again: clocks of a fleet differ, and an exchange takes time.
SETTLING = 5.0


class Place(NamedTuple):
    """Whose counts, and of what: a circuit's generation, "f" or "s", and the length of the window in seconds."""

    name: str
    generation: int
    kind: str
    window: float


#: Number of the oldest part, and the counts of all that are over.
Past = Mapping[Place, tuple[int, tuple[int, ...]]]
#: What the last survey of each cache left, and the clock it went by: clocks of tests begin anew.
_pasts: WeakKeyDictionary[CircuitStore, tuple[Callable[[], float], Past]] = WeakKeyDictionary()


def recall(store: CircuitStore) -> Past:
    """Return what the last survey of this cache left."""
    asked, past = _pasts.get(store, (clock.time, {}))
    return past if asked is clock.time else {}


def remember(store: CircuitStore, columns: Iterable[Column], found: Mapping[str, Any]) -> None:
    """Keep what is over, in place of what was kept before."""
    _pasts[store] = clock.time, {column.place: (column.first, column.over(found)) for column in columns}


def number(found: Mapping[str, Any], key: str) -> int:
    """Return a count that was read; what is missing or no count is 0."""
    value = found.get(key, 0)
    return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class Column:
    """The counts of one kind, oldest first: those that are known, and the keys of the rest.

    Args:
        place: Whose they are.
        first: Number of the oldest part.
        known: Counts of the oldest parts.
        keys: Where the others are in the cache.
    """

    place: Place
    first: int
    known: tuple[int, ...]
    keys: list[str]

    @classmethod
    def of(cls, place: Place, wall: float, past: Past) -> Column:
        """Return the column of the window that ends at `wall`, in seconds since the epoch."""
        last = int(wall * BUCKETS / place.window)
        first = last - BUCKETS + 1
        known_from, known = past.get(place, (first, ()))
        # After a clock was set back, nothing is known.
        known = known[first - known_from :] if first >= known_from else ()
        return cls(place, first, known, keys.count_keys(*place, range(first + len(known), last + 1)))

    def read(self, found: Mapping[str, Any]) -> list[int]:
        """Return the counts, packed as they are stored."""
        return [*self.known, *(number(found, key) for key in self.keys)]

    def over(self, found: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the counts of those parts that nobody adds to any more."""
        still_open = 1 + math.ceil(SETTLING * BUCKETS / self.place.window)
        return tuple(self.read(found)[: max(BUCKETS - still_open, 0)])
