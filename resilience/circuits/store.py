"""The shared side of circuits: which keys there are, and the few cache operations that are safe on every backend.

Only `add` (a vote that one process wins), `incr` on keys that `add` made, `set`, `get_many` and `delete` are used,
each key with a time to live in whole seconds. A cache that swallows its own errors is found out by what it does not keep, and
`StoreUnavailableError` raised. `keys.py` has the keys, `outages.py` the operations.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from operator import methodcaller
from typing import Any

from resilience import clock
from resilience.circuits.keys import (
    ERRORS_TTL,
    HEAD_TTL,
    PREFIX,
    RECORD_TTL,
    RING,
    errors_key,
    head_key,
    lease_key,
    record_key,
    shard_keys,
)
from resilience.circuits.outages import MissingKeyError, StoreUnavailableError, WatchedCache
from resilience.circuits.records import Record

__all__ = ["CircuitStore", "Lease", "StoreUnavailableError"]

#: Keys asked for in one round trip.
CHUNK = 10_000
#: A lease that ended this many seconds ago would have left the cache by itself; if it is there, this host's clock is wrong.
LEASE_GRACE = 2.0


class Lease:
    """The right to run one probe.

    Args:
        slot: Which of the places for probes it takes.
        token: Who holds it; a lease taken over has another token.
        until: When it ends, in seconds since the epoch.
    """

    __slots__ = ("slot", "token", "until")

    def __init__(self, slot: int, token: str, until: float) -> None:
        self.slot = slot
        self.token = token
        self.until = until


def whole_seconds(seconds: float) -> int:
    """Return a time to live that every backend takes: whole seconds, rounded up, from 1 to just below 30 days."""
    return max(1, math.ceil(min(seconds, HEAD_TTL)))


class CircuitStore(WatchedCache):
    """The circuits' keys in one cache.

    Args:
        alias: Alias in CACHES.
        private: A cache of this process alone, to use instead of the alias's.
    """

    # Records

    def read(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that exist, in one round trip for each 10,000."""
        wanted = list(keys)
        found: dict[str, Any] = {}
        for start in range(0, len(wanted), CHUNK):
            part = wanted[start : start + CHUNK]
            found.update(self.run("get_many", methodcaller("get_many", part)))
        return found

    def vote(self, name: str, record: Record) -> Record:
        """Try to make `record` the circuit's next generation; only one process in the fleet succeeds.

        Returns:
            The winner: `record` itself, or another process's.
        """
        key = record_key(name, record.generation)
        if not self.run("add", lambda cache: cache.add(key, record.dump(), RECORD_TTL)):
            # Neither added nor there: emptied in between, or a cache that swallows its errors.
            return self._present(key)
        self.publish(name, record)
        # The generations are the history: the one that leaves it is dropped here.
        self.run("delete", lambda cache: cache.delete(record_key(name, record.generation - RING)))
        return record

    def publish(self, name: str, record: Record) -> None:
        """Write the hint that tells where the latest generation is."""
        self.run("set", lambda cache: cache.set(head_key(name), record.dump(), HEAD_TTL))

    def publish_first(self, name: str, record: Record) -> Record:
        """Write the hint unless there is one; return the one that is there now."""
        if self.run("add", lambda cache: cache.add(head_key(name), record.dump(), HEAD_TTL)):
            return record
        return self._present(head_key(name))

    def _present(self, key: str) -> Record:
        """Return the record that kept ours out."""
        present = Record.load(self.read([key]).get(key))
        if present is None:
            raise StoreUnavailableError
        return present

    def _require_memory(self) -> None:
        """Find out a cache that swallows its errors: it refuses to add what nobody can have added."""
        key = f"{PREFIX}:memory:{uuid.uuid4().hex}"
        if not self.run("add", lambda cache: cache.add(key, 1, 1)):
            raise StoreUnavailableError

    # Counts

    def add_to(self, key: str, amount: int, seconds: float, *, exists: bool, insist: bool = True) -> int | None:
        """Add to a count and return its new value.

        Args:
            key: The count's key.
            amount: What to add.
            seconds: Time to live of a new key.
            exists: Whether the key was seen, which saves one operation.
            insist: False gives up after one operation and returns None if the key was there after all, or not.

        Raises:
            StoreUnavailableError: The cache keeps nothing now.
        """
        timeout = whole_seconds(seconds)
        if not exists:
            if self.run("add", lambda cache: cache.add(key, amount, timeout)):
                return amount
            if not insist:
                return None
        try:
            value: int | None = self.run("incr", lambda cache: cache.incr(key, amount))
        except MissingKeyError:
            # Evicted since it was seen.
            if not insist:
                return None
            value = amount if self.run("add", lambda cache: cache.add(key, amount, timeout)) else None
        if not isinstance(value, int):
            raise StoreUnavailableError
        return value

    # Probes

    def take_lease(self, name: str, generation: int, slot: int, token: str, seconds: float) -> Lease | float:
        """Try to take the place `slot` for a probe.

        Returns:
            The lease, or when the present one ends, in seconds since the epoch.
        """
        key, until = lease_key(name, generation, slot), clock.time() + seconds
        value, timeout = {"token": token, "until": until}, whole_seconds(seconds)
        if self.run("add", lambda cache: cache.add(key, value, timeout)):
            return Lease(slot, token, until)
        holder = self.run("get", lambda cache: cache.get(key))
        if not isinstance(holder, dict):
            # Over or given back between the two, unless the cache keeps nothing.
            self._require_memory()
            won = self.run("add", lambda cache: cache.add(key, value, timeout))
            return Lease(slot, token, until) if won else clock.time()
        ends = float(holder.get("until", until))
        over = clock.time() - ends
        if over < 0:
            return ends
        if over > LEASE_GRACE and self.may_block:
            return until
        # Over, though the key lives on for a fraction of a second. One successor wins the old token's key.
        if not self.run("add", lambda cache: cache.add(f"{key}:{holder.get('token')}", 1, timeout)):
            return until
        self.run("set", lambda cache: cache.set(key, value, timeout))
        return Lease(slot, token, until)

    def owns_lease(self, name: str, generation: int, lease: Lease) -> bool:
        """Tell whether nobody else took the lease's place. An evicted lease is still the holder's."""
        holder = self.run("get", lambda cache: cache.get(lease_key(name, generation, lease.slot)))
        return holder is None or (isinstance(holder, dict) and holder.get("token") == lease.token)

    def drop_lease(self, name: str, generation: int, lease: Lease) -> None:
        """Give the place back."""
        if self.owns_lease(name, generation, lease):
            self.run("delete", lambda cache: cache.delete(lease_key(name, generation, lease.slot)))

    # Errors and index

    def write_errors(self, name: str, errors: list[dict[str, Any]]) -> None:
        """Replace the list of recent failures; the newest `RING` are kept."""
        self.run("set", lambda cache: cache.set(errors_key(name), errors[-RING:], ERRORS_TTL))

    def write_index(self, shard: str, entries: Mapping[str, Any]) -> None:
        """Replace one part of the index."""
        self.run("set", lambda cache: cache.set(shard, dict(entries), HEAD_TTL))

    def read_index(self) -> dict[str, dict[str, Any]]:
        """Return every circuit's name and what was said about it when it was registered."""
        names: dict[str, dict[str, Any]] = {}
        for shard in self.read(shard_keys()).values():
            if isinstance(shard, dict):
                names.update(shard)
        return names
