"""How often things happened in each of the last 60 minutes, over the whole fleet.

Each process counts what the signals tell it in its own memory. Every few seconds, after a request or a task
if it can wait that long, it adds its counts to a record of its own in the cache: one of `SLOTS` slots, which
a process holds by a lease. As nobody else writes that record, no atomic increment is needed, and the whole
fleet's numbers are read with one `get_many`. A process that ends leaves its numbers behind; its slot passes on.

Numbers can be lost (a process that ends between two flushes, a flushed cache, more processes than slots);
calls never are: a failing cache is left alone for a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.core.signals import request_finished
from django.db import connections

from resilience import clock, conf, patience, signals
from resilience.db.transactions import tally
from resilience.redaction import log_exception

__all__ = ["MINUTES", "SLOTS", "RateCounter", "connect", "counter", "read"]

logger = logging.getLogger("resilience.dashboard")

#: How many minutes are kept.
MINUTES = 60
#: How many processes can add their counts at the same time.
SLOTS = 64

_FLUSH_EVERY = 5.0
_RETRY_AFTER_FAILURE = 60.0
_OVERDUE = 3 * _FLUSH_EVERY
_LEASE = 180
_KEEP = (MINUTES + 5) * 60
_OWNER, _RECORD = "resilience:rates:owner:{}", "resilience:rates:{}"

Record = dict[int, dict[str, int]]


class RateCounter:
    """Counts of this process that are not in the cache yet.

    Args:
        slots: How many slots there are to choose from.

    Example:
        >>> counter = RateCounter()
        >>> counter.count("retries")
        >>> sum(minute["retries"] for minute in counter.pending.values())
        1
    """

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = slots
        self.reset()

    def reset(self) -> None:
        """Start from nothing, as a forked child must: its parent still has the counts."""
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._token = uuid.uuid4().hex
        self._slot: int | None = None
        self.pending: Record = {}
        self._last_flush = clock.monotonic()

    def count(self, metric: str, amount: int = 1) -> None:
        """Add to this minute's number of a metric."""
        minute = int(clock.time()) // 60
        with self._lock:
            numbers = self.pending.setdefault(minute, {})
            numbers[metric] = numbers.get(metric, 0) + amount
            if len(self.pending) > MINUTES:
                del self.pending[min(self.pending)]

    def due(self, seconds: float = _FLUSH_EVERY) -> bool:
        """Is there something to flush, and was the last flush at least so many seconds ago?"""
        return bool(self.pending) and clock.monotonic() - self._last_flush >= seconds

    def flush(self) -> bool:
        """Add the counts to this process's record in the cache; True when it worked.

        Never raises. While another thread flushes, it returns at once.
        """
        if not self._flushing.acquire(blocking=False):
            return False
        try:
            return self._flush()
        finally:
            self._flushing.release()

    def _flush(self) -> bool:
        with self._lock:
            taken, self.pending = self.pending, {}
        self._last_flush = clock.monotonic()
        if not conf.current().dashboard.get("RATES", True):
            return False
        try:
            self._add_to_record(taken)
        except Exception as error:  # noqa: BLE001  # logged; numbers break no call
            # The numbers wait for the next time, a minute from now: a broken cache is not asked every second.
            log_exception(logger, "The rates of the last minutes could not be stored.", error=error, level=logging.DEBUG)
            self._last_flush = clock.monotonic() + _RETRY_AFTER_FAILURE - _FLUSH_EVERY
            with self._lock:
                _merge(self.pending, taken)
            return False
        return True

    def _add_to_record(self, taken: Record) -> None:
        from django.core.cache import caches

        cache = caches[conf.current().cache]
        if self._slot is None or cache.get(_OWNER.format(self._slot)) != self._token:
            self._slot = self._lease_slot(cache)
        if self._slot is None:
            return
        key = _RECORD.format(self._slot)
        record: Record = cache.get(key) or {}
        _merge(record, taken)
        oldest = int(clock.time()) // 60 - MINUTES
        cache.set(key, {minute: numbers for minute, numbers in record.items() if minute > oldest}, _KEEP)
        cache.set(_OWNER.format(self._slot), self._token, _LEASE)

    def _lease_slot(self, cache: Any) -> int | None:
        """Take a free slot, or None when twelve in a row are taken."""
        candidates = random.sample(range(self._slots), min(self._slots, 12))
        return next((slot for slot in candidates if cache.add(_OWNER.format(slot), self._token, _LEASE)), None)


def _merge(into: Record, other: Mapping[int, Mapping[str, int]]) -> None:
    for minute, numbers in other.items():
        mine = into.setdefault(minute, {})
        for metric, number in numbers.items():
            mine[metric] = mine.get(metric, 0) + number


#: The counts of this process.
counter = RateCounter()
os.register_at_fork(after_in_child=counter.reset)


def read() -> dict[str, list[int]]:
    """Return, for each metric that happened, its 60 numbers a minute, oldest first; one call to the cache.

    Raises:
        Exception: Whatever the cache raises when it is away.

    Example:
        >>> counter.count("retries")
        >>> _ = counter.flush()
        >>> read()["retries"][-1] >= 1
        True
    """
    from django.core.cache import caches

    records = caches[conf.current().cache].get_many([_RECORD.format(slot) for slot in range(SLOTS)])
    newest = int(clock.time()) // 60
    rates: dict[str, list[int]] = {}
    for record in records.values():
        for minute, numbers in record.items():
            age = newest - minute
            if not 0 <= age < MINUTES:
                continue
            for metric, number in numbers.items():
                rates.setdefault(metric, [0] * MINUTES)[MINUTES - 1 - age] += number
    return rates


def _count(metric: str) -> None:
    counter.count(metric)
    if counter.due(_OVERDUE):
        _flush_from_call()


def _flush_from_call() -> None:
    """Flush in a process that has seen no end of a request for long; never in an event loop's own thread.

    Nor inside a transaction, whose locks would be held meanwhile, and which a cache in the database could spoil.
    """
    if any(connection.in_atomic_block for connection in connections.all(initialized_only=True)):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _flush_in_time()
    else:
        with contextlib.suppress(RuntimeError):  # the loop is being shut down
            loop.run_in_executor(None, counter.flush)


def _flush_between_calls(**kwargs: object) -> None:
    _transactions.take()
    if counter.due():
        _flush_in_time()


def _flush_in_time() -> None:
    """Flush, and go on without waiting for a cache that froze."""
    with contextlib.suppress(patience.NoAnswerError):
        patience.ask(conf.current().cache, "rates", counter.flush)


def _counting(metric: str) -> Callable[..., None]:
    def receive(**kwargs: object) -> None:
        _count(metric)

    return receive


def _retry_gave_up(kind: object = "", **kwargs: object) -> None:
    _count("gave_up")
    _count(f"kind:{str(kind).lower()[:40]}")


class _Transactions:
    """The transactions that ended, taken over from the db pillar's own plain counts every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = {"commit": 0, "rollback": 0}

    def forget(self) -> None:
        """Count from here on, as a forked child must."""
        self._lock = threading.Lock()
        self._seen = dict(tally.counts)

    def take(self) -> None:
        """Count what was added since the last time."""
        tally.due = clock.monotonic() + _FLUSH_EVERY
        with self._lock:
            news = {outcome: number - self._seen[outcome] for outcome, number in tally.counts.items()}
            self._seen = dict(tally.counts)
        for outcome, number in news.items():
            if number > 0:
                counter.count(f"{outcome}s", number)

    def collect(self) -> None:
        """Take, and see to it that a process which does nothing else flushes as well."""
        self.take()
        if counter.due(_OVERDUE):
            _flush_from_call()


_transactions = _Transactions()
os.register_at_fork(after_in_child=_transactions.forget)


def _db_retry_scheduled(kind: object = "", code: object = "", **kwargs: object) -> None:
    _count("db_retries")
    if _is_deadlock(kind, code):
        _count("deadlocks")


def _db_retry_gave_up(kind: object = "", code: object = "", **kwargs: object) -> None:
    _count("db_gave_up")
    _count(f"kind:{str(kind).lower()[:40]}")
    if _is_deadlock(kind, code):
        _count("deadlocks")


def _is_deadlock(kind: object, code: object) -> bool:
    """PostgreSQL says 40P01, MySQL and MariaDB say 1213."""
    return str(code) in {"40P01", "1213"} or "deadlock" in str(kind).lower()


_RECEIVERS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (signals.retry_scheduled, _counting("retries")),
    (signals.retry_succeeded, _counting("recovered")),
    (signals.retry_gave_up, _retry_gave_up),
    (signals.timeout_expired, _counting("timeouts")),
    (signals.fallback_used, _counting("fallbacks")),
    (signals.circuit_opened, _counting("opened")),
    (signals.circuit_closed, _counting("closed")),
    (signals.circuit_rejected, _counting("rejected")),
    (signals.db_retry_scheduled, _db_retry_scheduled),
    (signals.db_retry_succeeded, _counting("db_recovered")),
    (signals.db_retry_gave_up, _db_retry_gave_up),
    (signals.commit_outcome_unknown, _counting("ambiguous_commits")),
    (signals.update_conflicted, _counting("conflicts")),
    (signals.run_finished, _counting("runs_finished")),
    (signals.run_failed, _counting("runs_failed")),
)


def connect() -> None:
    """Start counting; called once when Django starts, and harmless when called again."""
    tally.collect, tally.due = _transactions.collect, clock.monotonic() + _FLUSH_EVERY
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"resilience.rates.{id(receiver)}")
    request_finished.connect(_flush_between_calls, weak=False, dispatch_uid="resilience.rates.flush")
