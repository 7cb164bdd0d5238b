"""What type checkers see of the public names. Never run: `mypy` is the test."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, assert_type

from django.contrib.auth.models import Group

from resilience import (
    Bulkhead,
    CircuitBreaker,
    CircuitBreakerConfig,
    ErrorInfo,
    Policy,
    RetryBudget,
    RetryConfig,
    RetryContext,
    RetryStrategy,
    Run,
    TransactionManager,
    adb_retry,
    async_circuit_breaker,
    async_retry,
    async_timeout,
    atomic_update,
    batch_with_retry,
    circuit_breaker,
    classify,
    db_retry,
    fallback,
    open_run,
    register_classifier,
    remaining,
    resilient,
    retry,
    safe_bulk_insert,
    safe_execute,
    timeout,
)
from resilience.db.bulk import BadRow
from resilience.runs.active import ActiveRun

# Retries keep the signature, with and without parentheses.


@retry
def bare(number: int, *, word: str = "") -> list[str]:
    return [word] * number


@retry()
def empty(number: int) -> str:
    return str(number)


@retry(max_attempts=3, strategy=RetryStrategy.LINEAR, jitter="equal", exceptions=(OSError,), budget=RetryBudget())
def with_fields(number: int) -> str:
    return str(number)


@retry(RetryConfig(max_attempts=3), idempotent=False)
def with_config(number: int) -> str:
    return str(number)


@retry(deadline=5)
async def coroutine(number: int) -> str:
    return str(number)


@async_retry
def hands_on(number: int) -> Awaitable[str]:
    return coroutine(number)


@async_retry(max_attempts=2)
def hands_on_with_fields(number: int) -> Awaitable[str]:
    return coroutine(number)


class Client:
    @retry(delay=0.1)
    def fetch(self, number: int) -> str:
        return str(number)


assert_type(bare(1, word="a"), list[str])
assert_type(empty(1), str)
assert_type(with_fields(1), str)
assert_type(with_config(1), str)
_ = assert_type(coroutine(1), Coroutine[Any, Any, str])
_ = assert_type(hands_on(1), Coroutine[Any, Any, str])
_ = assert_type(hands_on_with_fields(1), Coroutine[Any, Any, str])
assert_type(Client().fetch(1), str)

bare("1")  # type: ignore[arg-type]  # the decorated function takes an int
retry(max_attempt=3)  # type: ignore[call-overload]  # an option that does not exist
retry(jitter="some")  # type: ignore[call-overload]  # a jitter that does not exist


@register_classifier
def classifier(exc: Exception) -> ErrorInfo | None:
    return None


assert_type(classify(ValueError()), ErrorInfo)

for attempt in RetryContext(max_attempts=2, name="block"):
    with attempt:
        assert_type(attempt.number, int)

# Circuits do so too.


@circuit_breaker
def guarded(number: int) -> str:
    return str(number)


@circuit_breaker("named", failure_threshold=3)
def guarded_by_name(number: int) -> str:
    return str(number)


@circuit_breaker(config=CircuitBreakerConfig(failure_threshold=3))
async def guarded_coroutine(number: int) -> str:
    return str(number)


@async_circuit_breaker
def guarded_hands_on(number: int) -> Awaitable[str]:
    return coroutine(number)


@async_circuit_breaker("handing on")
def guarded_hands_on_by_name(number: int) -> Awaitable[str]:
    return coroutine(number)


assert_type(guarded(1), str)
assert_type(guarded_by_name(1), str)
_ = assert_type(guarded_coroutine(1), Coroutine[Any, Any, str])
_ = assert_type(guarded_hands_on(1), Coroutine[Any, Any, str])
_ = assert_type(guarded_hands_on_by_name(1), Coroutine[Any, Any, str])
assert_type(circuit_breaker("block"), CircuitBreaker)
assert_type(CircuitBreaker("call").call(guarded, 1), str)
guarded("1")  # type: ignore[arg-type]  # the guarded function takes an int
guarded_by_name("1")  # type: ignore[arg-type]  # the guarded function takes an int


# Policies, limits and fallbacks.


@resilient("rates", timeout=5)
def rates(number: int) -> str:
    return str(number)


@Policy("search", bulkhead=Bulkhead("search", 3), retry=False)
async def search(number: int) -> str:
    return str(number)


@timeout(5)
def limited(number: int) -> str:
    return str(number)


@async_timeout(5)
def limited_hands_on(number: int) -> Awaitable[str]:
    return coroutine(number)


@fallback("nothing")
def answered(number: int) -> str:
    return str(number)


assert_type(rates(1), str)
_ = assert_type(search(1), Coroutine[Any, Any, str])
assert_type(Policy("call", timeout=5).call(rates, 1), str)
assert_type(limited(1), str)
awaitable = assert_type(limited_hands_on(1), Awaitable[str])
assert_type(answered(1), str)
assert_type(safe_execute(len, "x", default=None), int | None)
assert_type(remaining(), float | None)
assert_type(remaining(at_most=3), float)
assert_type(batch_with_retry(["1"], int).successful, list[int])
rates("1")  # type: ignore[arg-type]  # the protected function takes an int
Policy("wrong", timeout="5")  # type: ignore[arg-type]  # seconds are numbers


# The database.


@db_retry
def store(name: str) -> int:
    return len(name)


@db_retry(using="default", max_attempts=3)
def store_elsewhere(name: str) -> int:
    return len(name)


@adb_retry
def astore(name: str) -> int:
    return len(name)


assert_type(store("a"), int)
assert_type(store_elsewhere("a"), int)
number = assert_type(astore("a"), Coroutine[Any, Any, int])
store(1)  # type: ignore[arg-type]  # the retried function takes a text

with TransactionManager() as manager:
    assert_type(manager, TransactionManager)

assert_type(safe_bulk_insert(Group, [{"name": "a"}]).failed, list[BadRow])
assert_type(atomic_update(Group, 1, {"name": "b"}), Group)


# Runs.

with open_run("doc") as run:
    assert_type(run, ActiveRun)
assert_type(Run.objects.get(pk=1), Run)
