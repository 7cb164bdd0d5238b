"""Calls to a handful of imaginary providers, each with a character of its own, for the dashboard to show."""

from __future__ import annotations

import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from django.db import DatabaseError

from project.demo.models import Source
from resilience import CircuitBreaker, CircuitOpenError, ResilienceError, TransactionManager, retry

__all__ = ["call_providers"]

_PAUSE = 0.15
#: A provider's bad time comes round again after so many seconds.
_CYCLE = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Provider:
    """How an imaginary provider behaves.

    Args:
        name: Name of its circuit.
        usual: Share of calls that fail in good times, from 0 to 1.
        bad: Share of calls that fail in bad times.
        begins: Second of the cycle in which bad times begin.
        lasts: How many seconds they last.
        error: What its client says.
    """

    name: str
    usual: float = 0.0
    bad: float = 1.0
    begins: float = 0.0
    lasts: float = 0.0
    error: str = ""


_PROVIDERS = (
    _Provider(name="payments:charge", begins=20, lasts=70, error="503 from https://pay.example/charges: upstream is down"),
    _Provider(name="payments:refund"),
    _Provider(name="llm:chat", usual=0.03, bad=0.35, begins=5, lasts=130, error="429 Too Many Requests, limit of 500 a minute reached"),
    _Provider(name="llm:embeddings", usual=0.01, error="read timed out after 10 s"),
    _Provider(name="mail:smtp", begins=90, lasts=50, error="421 mail.example: too many connections"),
    _Provider(name="search:index"),
    _Provider(name="storage:upload", usual=0.02, error="connection reset by peer"),
)  # fmt: skip


def call_providers() -> None:
    """Call all of them in turn until told to end: the body of a child process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # One of them has been switched off by hand, as happens when a provider announces works.
    CircuitBreaker("geo:lookup").open(8 * 3600, reason="Provider announced works until the morning")
    calls = [(provider, _circuit(provider)) for provider in _PROVIDERS]
    began = time.monotonic()
    while True:
        for provider, breaker in calls:
            with suppress(ConnectionError, CircuitOpenError):
                _call(provider, breaker, (time.monotonic() - began) % _CYCLE)
        with suppress(DatabaseError, ResilienceError), TransactionManager() as transaction:
            Source.objects.count()
            if random.random() < 0.1:  # somebody changes their mind
                transaction.rollback()
        time.sleep(_PAUSE)


def _circuit(provider: _Provider) -> CircuitBreaker:
    if provider.name.startswith("llm:"):
        return CircuitBreaker(provider.name, failure_rate_threshold=0.5, minimum_calls=20)
    return CircuitBreaker(provider.name, failure_threshold=5, recovery_timeout=20.0)


@retry(max_attempts=3, delay=0.02, exceptions=(ConnectionError,))
def _call(provider: _Provider, breaker: CircuitBreaker, second: float) -> None:
    is_bad = provider.begins <= second < provider.begins + provider.lasts
    with breaker:
        if random.random() < (provider.bad if is_bad else provider.usual):
            raise ConnectionError(provider.error)
