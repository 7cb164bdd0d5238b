"""One cache of the circuits, and what is known about its health.

Nothing here raises what the cache raised: it raises `StoreUnavailableError`, at most one caller per interval tries a
cache that failed, and an outage is told once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, local
from typing import TypeVar

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.dispatch import Signal

from resilience import clock, conf, signals
from resilience.circuits.isolation import PutOffError, outside_transaction
from resilience.circuits.judging import is_control_flow
from resilience.exceptions import OperationTimeoutError

__all__ = ["MissingKeyError", "StoreUnavailableError", "WatchedCache", "asking", "avoiding"]

Result = TypeVar("Result")

_READS = frozenset({"get", "get_many"})


class _Asking(local):
    now = False
    avoided: frozenset[str] = frozenset()


#: Whether the running thread is in the middle of a cache operation of the circuits: `asking.now`.
asking = _Asking()


@contextmanager
def avoiding(aliases: Iterable[str]) -> Iterator[None]:
    """Treat these caches as away in this thread, without asking them: they may never answer.

    Args:
        aliases: Aliases in CACHES.
    """
    before, asking.avoided = asking.avoided, frozenset(aliases)
    try:
        yield
    finally:
        asking.avoided = before


class StoreUnavailableError(Exception):
    """The shared state cannot be asked now. Never leaves this package."""


class MissingKeyError(Exception):
    """`incr` met no key. Never leaves this package."""


class WatchedCache:
    """A cache that is asked with care.

    Args:
        alias: Alias in CACHES.
        private: A cache of this process alone, to use instead of the alias's.
    """

    def __init__(self, alias: str, private: BaseCache | None = None) -> None:
        self.alias = alias
        self.private = private
        self._lock = Lock()
        self._is_down = False
        self._only_writes_fail = False
        self._retry_at = -math.inf
        self._news: deque[tuple[Signal, str, str]] = deque()

    @property
    def cache(self) -> BaseCache:
        """The cache object of the calling thread."""
        return self.private if self.private is not None else caches[self.alias]

    @property
    def is_private(self) -> bool:
        """Whether only this process has it."""
        return self.private is not None

    @property
    def is_down(self) -> bool:
        """Whether the last operation failed, or this thread avoids the cache."""
        return self._is_down or self._is_avoided

    @property
    def _is_avoided(self) -> bool:
        return not self.is_private and self.alias in asking.avoided

    @property
    def may_block(self) -> bool:
        """Whether an operation may wait for something outside this process."""
        return not isinstance(self.cache, (LocMemCache, DummyCache))

    def run(self, operation: str, act: Callable[[BaseCache], Result]) -> Result:
        """Do one cache operation, or raise `StoreUnavailableError`."""
        # A server that is full, or a replica, still answers questions, which says nothing about writing to it.
        proves_nothing = self._only_writes_fail and operation in _READS
        if self._is_avoided or (self._is_down and not proves_nothing and not self._claims_attempt()):
            raise StoreUnavailableError
        try:
            result = self._act(act)
        except Exception as error:
            if is_control_flow(error) or isinstance(error, OperationTimeoutError):
                # The caller's own limit or shutdown, which happened to strike here.
                raise
            if isinstance(error, ValueError) and operation == "incr":
                raise MissingKeyError from error
            if not isinstance(error, PutOffError):
                self._failed(operation, error)
            raise StoreUnavailableError from error
        if self._is_down and not proves_nothing:
            self._recovered(operation)
        return result

    def _act(self, act: Callable[[BaseCache], Result]) -> Result:
        cache = self.cache
        asking.now = True
        try:
            if not isinstance(cache, BaseDatabaseCache):
                return act(cache)
            with outside_transaction(cache):
                return act(cache)
        finally:
            asking.now = False

    def start_over(self) -> None:
        """Forget an outage; a new child process needs locks of its own."""
        self._lock = Lock()
        self._is_down = self._only_writes_fail = False
        self._news.clear()

    def _claims_attempt(self) -> bool:
        """Let one caller per interval find out whether the cache is back."""
        with self._lock:
            now = clock.monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._spacing
            return True

    @property
    def _spacing(self) -> float:
        return max(conf.current().sync_interval, 1.0)

    def _failed(self, operation: str, error: Exception) -> None:
        with self._lock:
            is_news, self._is_down = not self._is_down, True
            self._only_writes_fail = operation not in _READS and (is_news or self._only_writes_fail)
            self._retry_at = clock.monotonic() + self._spacing
        if is_news:
            self._news.append((signals.circuit_store_failed, operation, type(error).__name__))

    def _recovered(self, operation: str) -> None:
        with self._lock:
            is_news, self._is_down = self._is_down, False
            self._only_writes_fail = False
        if is_news:
            self._news.append((signals.circuit_store_recovered, operation, ""))

    def tell_news(self) -> None:
        """Send the signals about outages. Called with no lock held: a receiver may use circuits itself."""
        while self._news:
            with suppress(IndexError):  # another thread was quicker
                signal, operation, error = self._news.popleft()
                signals.emit(signal, type(self), alias=self.alias, operation=operation, error=error)
