from __future__ import annotations

import asyncio
import os
import threading
from unittest import mock

import pytest
from django.core.cache import cache
from django.core.signals import request_finished
from django.test import override_settings

from resilience import RetryConfig, TransactionManager, clock, retry, signals
from resilience.dashboard import rates
from resilience.dashboard.rates import RateCounter


@pytest.fixture
def counter() -> RateCounter:
    """A counter of another process, so to say."""
    return RateCounter()


def test_read__sums_the_processes(counter: RateCounter) -> None:
    """What two processes counted in the same minute is one number, and nothing is lost or doubled by flushing again."""
    other = RateCounter()
    for _ in range(3):
        counter.count("retries")
    other.count("retries", 4)

    assert counter.flush()
    assert other.flush()
    assert counter.flush()

    assert rates.read()["retries"][-1] == 7


def test_read__forgets_what_is_older_than_an_hour(counter: RateCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is sixty minutes, and the record in the cache does not grow with time."""
    now = clock.time()
    for minute in range(200):
        monkeypatch.setattr(clock, "time", lambda minute=minute: now + 60 * minute)
        counter.count("retries")
        counter.flush()

    numbers = rates.read()["retries"]
    record = cache.get(f"resilience:rates:{counter._slot}")

    assert numbers == [1] * rates.MINUTES
    assert len(record) == rates.MINUTES


def test_slot__of_a_dead_process_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a process that ended stay, and a new one goes on in its slot after the lease."""
    dead, heir = RateCounter(slots=1), RateCounter(slots=1)
    dead.count("retries")
    dead.flush()
    heir.count("retries")
    heir.flush()
    waiting = dict(heir.pending)
    cache.delete("resilience:rates:owner:0")

    heir.count("retries")
    heir.flush()

    assert waiting == {}, "with every slot taken the numbers are dropped, not hoarded"
    assert rates.read()["retries"][-1] == 2


def test_flush__survives_a_cache_that_is_away(counter: RateCounter) -> None:
    """No error leaves it, the numbers wait, and the cache is left alone for a while."""
    counter.count("retries")
    with mock.patch.object(type(cache._connections["default"]), "get", side_effect=ConnectionError("away")) as get:
        counter._slot = 0
        assert not counter.flush()
        assert not counter.due()
        assert get.call_count == 1

    assert counter.flush()
    assert rates.read()["retries"][-1] == 1


def test_count__keeps_a_bounded_number_of_minutes(counter: RateCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the cache is away for a day the process's memory does not grow."""
    now = clock.time()
    for minute in range(1_440):
        monkeypatch.setattr(clock, "time", lambda minute=minute: now + 60 * minute)
        counter.count("retries")

    assert len(counter.pending) <= rates.MINUTES


def test_fork__starts_from_nothing() -> None:
    """A child does not send its parent's counts again."""
    rates.counter.count("retries")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, str(len(rates.counter.pending)).encode())
        os._exit(0)
    os.waitpid(child, 0)

    seen = os.read(read_end, 10)
    os.close(read_end)
    os.close(write_end)

    assert seen == b"0"


@override_settings(RESILIENCE={"DASHBOARD": {"RATES": False}})
def test_flush__sends_nothing_when_switched_off(counter: RateCounter) -> None:
    """The setting is obeyed, and what was counted is dropped."""
    counter.count("retries")
    counter.flush()

    assert rates.read() == {}
    assert counter.pending == {}


def test_signals__are_counted() -> None:
    """Retries, their success and why they were given up are seen by the page."""
    config = RetryConfig(max_attempts=2, delay=0, jitter=False)
    outcomes = iter([ConnectionError("x"), None, ConnectionError("x"), ConnectionError("x")])

    @retry(config)
    def call() -> None:
        if error := next(outcomes):
            raise error

    call()
    with pytest.raises(ConnectionError):
        call()
    rates.counter.flush()

    numbers = {metric: sum(values) for metric, values in rates.read().items()}
    assert numbers == {"retries": 2, "recovered": 1, "gave_up": 1, "kind:connection": 1}


@pytest.mark.django_db(transaction=True)
def test_transactions__are_counted_when_a_request_ends() -> None:
    """Each transaction counts, a savepoint does not; the numbers are taken over at the end of the next request."""
    request_finished.send(None)
    rates.counter.reset()

    for _ in range(3):
        with TransactionManager(), TransactionManager():
            pass
    with TransactionManager(auto_commit=False):
        pass
    assert rates.counter.pending == {}
    request_finished.send(None)

    assert list(rates.counter.pending.values()) == [{"commits": 3, "rollbacks": 1}]


@pytest.mark.django_db(transaction=True)
def test_transactions__of_a_process_without_requests_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that only has transactions takes over its numbers every few seconds, and flushes them."""
    request_finished.send(None)
    rates.counter.reset()
    now = clock.monotonic()

    for seconds in (1, 6, 7, 30):
        monkeypatch.setattr(clock, "monotonic", lambda seconds=seconds: now + seconds)
        with TransactionManager():
            pass

    assert rates.read()["commits"][-1] == 4


@pytest.mark.django_db(transaction=True)
def test_flush__waits_until_no_transaction_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is not asked while a transaction holds its locks."""
    rates.counter.reset()
    now = clock.monotonic()

    with TransactionManager():
        monkeypatch.setattr(clock, "monotonic", lambda: now + 100)
        rates._count("retries")
        during = rates.read()

    assert during == {}
    assert rates.read()["retries"][-1] == 1


@pytest.mark.parametrize("code", ["40P01", "1213"])
def test_signals__know_a_deadlock(code: str) -> None:
    """Deadlocks are counted by the database's own code."""
    signals.emit(
        signals.db_retry_scheduled, None, name="f", using="default", attempt=1, delay=0, kind="conflict", code=code, phase="body"
    )
    rates.counter.flush()

    assert rates.read()["deadlocks"][-1] == 1


def test_flush__waits_for_the_end_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call never waits for the flush while requests end often enough."""
    start = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: start + 6)
    signals.emit(signals.fallback_used, None, name="f", exception=None, failed=False)
    during = rates.read()

    with mock.patch("django.db.close_old_connections"):
        rates._flush_between_calls()

    assert during == {}
    assert rates.read()["fallbacks"][-1] == 1
    assert any("resilience.rates" in str(key) for (key, *_rest) in request_finished.receivers)


async def test_flush__leaves_the_event_loop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In async code an overdue flush goes to another thread."""
    start = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: start + 60)
    threads: list[int] = []
    monkeypatch.setattr(rates.counter, "flush", lambda: threads.append(threading.get_ident()) or True)

    signals.emit(signals.fallback_used, None, name="f", exception=None, failed=False)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if threads:
            break

    assert threads
    assert threads[0] != threading.get_ident()
