"""What people read about a circuit: its latest failures, and its entry in the index.

Of no weight for what the circuit does, and so written only where an exchange has an operation left.
"""

from __future__ import annotations

import math
import os
import socket
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from resilience import clock
from resilience.circuits import keys
from resilience.circuits.store import CircuitStore, StoreUnavailableError
from resilience.redaction import redact

__all__ = ["Description", "Notes", "describe"]

#: Seconds between two looks whether the index still lists a circuit.
LISTING_INTERVAL = 60.0
#: Characters of a message that are kept until it is cleaned and cut.
LONGEST_MESSAGE = 2000


#: Class and raw message of a failure.
Description = tuple[str, str]


def describe(error: BaseException | None) -> Description:
    """Return what is kept of a failure; not under a lock, because an exception's `__str__` may do anything."""
    if error is None:
        return "Result", "judged a failure"
    try:
        return type(error).__name__, str(error)[:LONGEST_MESSAGE]
    except Exception:  # noqa: BLE001  # an exception that cannot be printed is still a failure
        return type(error).__name__, ""


class Notes:
    """One process's notes about one circuit.

    Args:
        name: The circuit's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: When, class and raw message of the latest failures; cleaned before they leave the process.
        self.errors: deque[tuple[float, str, str]] = deque(maxlen=keys.RING)
        self._latest: tuple[float, str, str] | None = None
        self._list_again_at = -math.inf

    def wanted(self, now: float) -> list[str]:
        """Return the keys to read before anything can be told."""
        wanted = [keys.errors_key(self.name)] if self.errors else []
        return [*wanted, keys.shard_key(self.name)] if now >= self._list_again_at else wanted

    def remember(self, described: Description, wall: float) -> None:
        """Keep a failure for the list that people see; the next exchange cleans it of secrets and sends it."""
        self.errors.append((wall, *described))
        self._latest = self.errors[-1]

    @property
    def last_error(self) -> str:
        """Class and redacted message of this process's latest failure, or ""."""
        if self._latest is None:
            return ""
        _, kind, message = self._latest
        clean = _clean(message)
        return f"{kind}: {clean}" if clean else kind

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """Failures that the cache was not told yet, without secrets."""
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        return [{"at": wall, "error": kind, "message": _clean(message), **where} for wall, kind, message in list(self.errors)]

    def tell_errors(self, store: CircuitStore, found: Mapping[str, Any]) -> None:
        """Add this process's failures to the list that everybody sees."""
        stored = found.get(keys.errors_key(self.name))
        latest = [*(stored if isinstance(stored, list) else []), *self.unsent]
        store.write_errors(self.name, sorted(latest, key=lambda entry: float(entry["at"])))
        self.errors.clear()

    def send_errors(self, store: CircuitStore) -> None:
        """Tell the cache about failures outside an exchange, if it can be told."""
        with suppress(StoreUnavailableError):
            self.tell_errors(store, store.read([keys.errors_key(self.name)]))

    def tell_index(self, store: CircuitStore, found: Mapping[str, Any], entry: dict[str, Any], wall: float) -> bool:
        """List the circuit, and look again soon whether a process that wrote at the same time took it off.

        Returns:
            Whether the entry was written: it was missing, out of date, or a day old.
        """
        if clock.monotonic() < self._list_again_at:
            return False
        shard = keys.shard_key(self.name)
        listed = found.get(shard)
        entries = dict(listed) if isinstance(listed, dict) else {}
        present = entries.get(self.name)
        if present and present.items() >= entry.items() and wall - present["seen"] < keys.DAY:
            self._list_again_at = clock.monotonic() + LISTING_INTERVAL
            return False
        alive = {name: value for name, value in entries.items() if wall - value["seen"] < keys.HEAD_TTL}
        store.write_index(shard, {**alive, self.name: {**entry, "seen": wall}})
        return True


def _clean(message: str) -> str:
    return " ".join(redact(message).split())
