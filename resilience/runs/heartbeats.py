"""Signs of life while a step takes its time.

A thread with a database connection of its own renews the lease every few seconds and reads what people ask for.
It proves that the process lives, not that its loop moves: `heartbeat_at` and `progressed_at` are told apart. The
thread is a daemon, ends with the attempt, and closes its connection. How far a run is, is written for people at most once a second.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, SupportsIndex

from django.db import DatabaseError, InterfaceError, connections

from resilience import clock, signals
from resilience.exceptions import RunInterrupted
from resilience.redaction import describe_exception
from resilience.runs.leases import DatabaseNow, Lease, has_second_view
from resilience.runs.models import Run
from resilience.runs.stored_values import is_storable

__all__ = ["Heartbeat", "Progress"]

logger = logging.getLogger("resilience.runs")

#: Seconds between two writes of progress.
_INTERVAL = 1.0

_LONGEST_MESSAGE = 200
#: What the columns hold.
_MOST = 2**63 - 1


class Heartbeat:
    """Renew a lease in the background from `start` to `stop`.

    Where a second connection cannot see the row (SQLite in memory, or inside a transaction, as in tests) there is
    no thread, and `beat_if_due` at the end of each step does the work.

    Args:
        lease: The lease to renew.
        has_moved: Tells whether the loop moved since it was asked last.
    """

    def __init__(self, lease: Lease, has_moved: Callable[[], bool]) -> None:
        self._lease = lease
        self._has_moved = has_moved
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread if a second connection would see what the first one writes."""
        if not has_second_view(self._lease.using):
            return
        thread = threading.Thread(target=self._run, name=f"resilience-run-{self._lease.run_id}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The process may have no more threads. The ends of steps renew the lease, too.
            logger.warning("no thread for heartbeats", extra=self._extra(error))
        else:
            self._thread = thread

    def stop(self) -> None:
        """End the thread and wait for it, so that it writes nothing behind the release."""
        self._end.set()
        if self._thread is not None:
            # A thread that hangs on a dead server must not hang the worker: its writes are fenced anyway.
            self._thread.join(timeout=5.0)

    def beat_if_due(self) -> None:
        """Renew from the calling thread when nobody else does and the time has come."""
        is_alone = self._thread is None or not self._thread.is_alive()
        due = is_alone and clock.monotonic() - self._lease.looked_at >= self._lease.interval
        if due and not connections[self._lease.using].needs_rollback:
            self._lease.beat(self._has_moved)

    def _run(self) -> None:
        try:
            while not self._end.wait(self._lease.interval) and not self._lease.is_lost:
                self._beat()
        finally:
            self._disconnect()

    def _beat(self) -> None:
        try:
            self._lease.beat(self._has_moved)
        except (DatabaseError, InterfaceError) as error:
            # The next beat tries again; what the lease is worth by then, the fence decides.
            logger.debug("heartbeat failed", extra=self._extra(error))
            self._disconnect()
        except Exception as error:  # noqa: BLE001  # resolvers, pools and backends of others fail in any way, and the worker is well
            logger.warning("heartbeat failed", extra=self._extra(error))
            self._disconnect()

    def _disconnect(self) -> None:
        connection = connections[self._lease.using]
        with suppress(Exception):
            connection.close()

    def _extra(self, error: Exception) -> dict[str, Any]:
        return {"run": self._lease.run_id, "error": describe_exception(error)}


class Progress:
    """Collects what is told and writes the newest, with the rate of this attempt; a write is a sign of life too.

    Args:
        run: The row.
        lease: The right to write it.
    """

    def __init__(self, run: Run, lease: Lease) -> None:
        self._run = run
        self._lease = lease
        self._newest: dict[str, Any] = {}
        self._written_at = float("-inf")
        self._first: tuple[float, int] | None = None

    def note(self, current: int, total: int | None, message: str) -> None:
        """Take the newest figures, and write them when the last write is long enough ago.

        Raises:
            TypeError, ValueError: They are not what a person could read, or no database could store.
        """
        current, total = _figure("current", current), None if total is None else _figure("total", total)
        if not isinstance(message, str):
            raise TypeError(f"message must be a text, not {message!r:.80}. Write str(...).")
        if not is_storable(message):
            message = ascii(message)
        now = clock.monotonic()
        if self._first is None:
            self._first = (now, current)
        self._newest = {"current": current, "total": total, "message": message[:_LONGEST_MESSAGE]}
        if now - self._written_at >= _INTERVAL:
            self._write(now)

    def join(self) -> dict[str, Any]:
        """Give what was told last to a write that happens anyway; a write of its own is put off, for more such may come."""
        newest, self._newest = self._newest, {}
        if not newest:
            return {}
        now = clock.monotonic()
        if now - self._written_at >= _INTERVAL:
            self._tell(newest)
        self._written_at = now + _INTERVAL / 2
        return newest | {"rate": self._rate(newest["current"], now)}

    def flush(self) -> None:
        """Write what was told last, if it was not written."""
        if self._newest:
            self._write(clock.monotonic())

    def _write(self, now: float) -> None:
        newest, self._newest, self._written_at = self._newest, {}, now
        try:
            self._lease.write(**newest, rate=self._rate(newest["current"], now), progressed_at=DatabaseNow())
        except (DatabaseError, InterfaceError) as error:
            # Nice to have, unlike a checkpoint: a database that is away, or does not like the message, must not end the training.
            logger.debug("progress not written", extra={"key": self._run.key, "error": type(error).__name__})
        except RunInterrupted:
            return  # remembered by the lease; the loop leaves at the end of its step
        self._tell(newest)

    def _tell(self, newest: dict[str, Any]) -> None:
        sent = {"current": newest["current"], "total": newest["total"]}
        signals.emit(signals.run_progressed, Run, key=self._run.key, task=self._run.task, **sent)

    def _rate(self, current: int, now: float) -> float | None:
        assert self._first is not None
        began, first = self._first
        done, elapsed = current - first, now - began
        return done / elapsed if elapsed > 0 and done > 0 else None


def _figure(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be a whole number, not {value!r:.80}. Write run.progress(done, total).")
    if not 0 <= operator.index(value) <= _MOST:
        raise ValueError(f"{name} must be from 0 to {_MOST}, not {value!r:.80}. Count what is done.")
    return operator.index(value)
