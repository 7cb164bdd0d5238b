"""Circuits under time limits: whose time was over decides whether the service is to blame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction

from resilience import CircuitBreaker, Policy, async_timeout, timeout
from resilience.calls.deadlines import deadline_scope
from resilience.exceptions import OpenTransactionError, OperationTimeoutError
from tests.circuits.conftest import Fleet, is_refused, succeed

SHORT, LONG = 0.02, 30.0


def limited(name: str, **fields: Any) -> Policy:
    return Policy(name, circuit={"failure_threshold": 3, "scope": "process"}, **fields)


def counts(policy: Policy) -> tuple[str, int, int]:
    """Return the state, the failures and the successes of a policy's circuit."""
    stats = CircuitBreaker(policy.name, scope="process", failure_threshold=3).get_stats()
    return stats["state"], stats["failure_count"], stats["success_count"]


def repeat(call: Callable[[], object], error: type[Exception], times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(error):
            call()


@pytest.mark.parametrize("limit", ["deadline", "timeout"])
def test_own_limit__that_cuts_a_call_off_counts(limit: str) -> None:
    """A service that hangs opens the circuit, also where a policy's deadline is the only limit there is."""
    policy = limited(f"own-{limit}", **{limit: SHORT})

    repeat(lambda: policy.call(time.sleep, LONG), OperationTimeoutError)

    assert counts(policy) == ("open", 3, 0)


@pytest.mark.parametrize("limit", ["deadline", "timeout"])
def test_own_limit__that_cuts_a_coroutine_off_counts(limit: str) -> None:
    """The same on the event loop."""
    policy = limited(f"async-own-{limit}", **{limit: SHORT})

    repeat(lambda: asyncio.run(policy.acall(asyncio.sleep, LONG)), OperationTimeoutError)

    assert counts(policy) == ("open", 3, 0)


def test_outer_limit__that_cuts_a_call_off_counts_nothing() -> None:
    """Whoever calls has no time left: that is their cancellation, and no word about the service."""
    policy = limited("outer", timeout=LONG)
    report = timeout(SHORT)(lambda: policy.call(time.sleep, LONG))

    repeat(report, OperationTimeoutError)

    assert counts(policy) == ("closed", 0, 0)


def test_outer_limit__that_cuts_a_coroutine_off_counts_nothing() -> None:
    """The same on the event loop."""
    policy = limited("async-outer", timeout=LONG)

    @async_timeout(SHORT)
    async def report() -> None:
        await policy.acall(asyncio.sleep, LONG)

    repeat(lambda: asyncio.run(report()), OperationTimeoutError)

    assert counts(policy) == ("closed", 0, 0)


def test_outer_deadline__that_is_over_before_the_call_counts_nothing() -> None:
    """A slow first service leaves no time for the second, which is not called and not blamed."""
    policy, calls = limited("second", timeout=LONG), list[int]()

    with deadline_scope(0):
        repeat(lambda: policy.call(calls.append, 1), OperationTimeoutError)
        repeat(lambda: asyncio.run(policy.acall(asyncio.sleep, 0)), OperationTimeoutError)

    assert calls == []
    assert counts(policy) == ("closed", 0, 0)


def test_outer_deadline__that_is_over_before_a_probe_gives_its_place_back(local_fleet: Fleet) -> None:
    """The next caller may probe at once."""
    breaker = local_fleet.member(failure_threshold=1, success_threshold=1)
    with pytest.raises(ZeroDivisionError):
        breaker.call(lambda: 1 / 0)
    local_fleet.advance(10)

    with deadline_scope(0), pytest.raises(OperationTimeoutError):
        breaker.call(timeout(LONG)(lambda: "never"))

    assert breaker.state == "half_open"
    succeed(breaker)
    assert breaker.state == "closed"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guard", ["policy", "breaker"])
def test_transaction__that_a_timeout_would_leave_counts_nothing(guard: str) -> None:
    """A call refused because of the caller's own transaction is neither a failure nor an answer of the service."""
    policy = limited(f"transaction-{guard}", timeout=LONG)
    breaker = CircuitBreaker(f"transaction-{guard}", scope="process", failure_threshold=3)
    calls: list[int] = []

    def call() -> None:
        if guard == "policy":
            policy.call(calls.append, 1)
        else:
            breaker.call(timeout(LONG)(calls.append), 1)

    def request() -> None:
        try:
            with transaction.atomic():
                repeat(call, OpenTransactionError)
        finally:
            connection.connection.close()  # Django never closes SQLite's in-memory databases

    with ThreadPoolExecutor(1) as pool:
        pool.submit(request).result(LONG)

    assert calls == []
    assert counts(policy) == ("closed", 0, 0)
    assert not is_refused(breaker)
