from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from typing import Any

import billiard.exceptions
import pytest
from django.core.cache import caches
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from resilience import clock
from resilience.calls.budgets import RetryBudget, SharedReserve
from resilience.calls.retries import retry
from tests.calls.scripts import FakeTime, Script


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Budgets live on a fake clock."""
    fake = FakeTime()
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)
    monkeypatch.setattr(clock, "time", fake.monotonic)
    monkeypatch.setattr(clock, "sleep", fake.sleep)
    return fake


def taken(budget: RetryBudget, most: int = 100_000) -> int:
    """Withdraw until nothing is left; return how often that went."""
    return next(count for count in range(most + 1) if not budget.withdraw())


@pytest.mark.parametrize(("ratio", "calls", "retries"), [(0.1, 10_000, 1000), (0.2, 1000, 200), (1, 50, 50), (0.01, 99, 0)])
def test_withdraw__gives_the_share_of_the_calls(ratio: float, calls: int, retries: int) -> None:
    """So many calls earn so many retries."""
    budget = RetryBudget(ratio=ratio, min_per_second=0)

    for _ in range(calls):
        budget.deposit()

    assert taken(budget) == pytest.approx(retries, abs=1)


def test_withdraw__ten_tenths_are_one_also_a_moment_later(fake_time: FakeTime) -> None:
    """What was just earned can be spent, although it has faded by a hair."""
    budget = RetryBudget(ratio=0.1, min_per_second=0)

    for _ in range(10):
        budget.deposit()
        fake_time.now += 0.001

    assert budget.withdraw()
    assert not budget.withdraw()


@pytest.mark.parametrize(("per_second", "at_start"), [(0, 0), (0.5, 5), (3, 20), (100, 20)])
def test_withdraw__starts_with_at_most_twenty(per_second: float, at_start: int) -> None:
    """A fresh process has ten seconds' reserve, but never more than twenty."""
    assert taken(RetryBudget(min_per_second=per_second)) == at_start


def test_withdraw__gives_the_reserve_without_any_calls(fake_time: FakeTime) -> None:
    """A quiet service may retry so often a second."""
    budget = RetryBudget(min_per_second=3)
    taken(budget)

    given_back = []
    for _ in range(5):
        fake_time.now += 1
        given_back.append(taken(budget))

    assert given_back == [3, 3, 3, 3, 3]


def test_withdraw__the_reserve_is_a_floor_and_no_addition(fake_time: FakeTime) -> None:
    """Where the share is larger than the reserve, the share is all there is."""
    budget = RetryBudget(ratio=0.2, min_per_second=3)
    taken(budget)
    retries = 0

    for _ in range(30):
        for _ in range(100):
            budget.deposit()
            retries += budget.withdraw()
        fake_time.now += 1

    assert retries == pytest.approx(0.2 * 3000, rel=0.1)


def test_deposit__fades_within_a_while(fake_time: FakeTime) -> None:
    """What a busy hour earned does not pay for a stampede a minute later."""
    budget = RetryBudget(ratio=0.2, min_per_second=0)
    for _ in range(100_000):
        budget.deposit()
    before = budget.balance

    fake_time.now += 60

    assert before == pytest.approx(20_000)
    assert budget.balance < 60


def test_deposit__a_steady_stream_keeps_ten_seconds_of_its_share(fake_time: FakeTime) -> None:
    """However rarely the account is settled, a steady stream holds the same balance."""
    often, rarely = RetryBudget(ratio=0.1, min_per_second=0), RetryBudget(ratio=0.1, min_per_second=0)

    for second in range(100):
        for _ in range(100):
            often.deposit()
            rarely.deposit()
        fake_time.now += 1
        assert often.balance >= 0, second

    assert often.balance == pytest.approx(100, rel=0.05)
    assert rarely.balance == pytest.approx(often.balance, rel=0.05)


@given(
    ratio=st.floats(0.01, 1),
    per_second=st.floats(0, 100),
    steps=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 5)), max_size=30),
)
def test_withdraw__never_exceeds_share_plus_reserve(ratio: float, per_second: float, steps: list[tuple[int, int, float]]) -> None:
    """Whatever the traffic, retries stay below the share of calls plus the reserve, and the balance above zero."""
    budget = RetryBudget(ratio=ratio, min_per_second=per_second)
    calls, retries, started = 0, 0, clock.monotonic()
    fake: Any = clock.monotonic.__self__  # type: ignore[attr-defined]  # the fake clock's own method

    for deposits, withdrawals, seconds in steps:
        for _ in range(deposits):
            budget.deposit()
        retries += sum(budget.withdraw() for _ in range(withdrawals))
        calls += deposits
        fake.now += seconds

    assert budget.balance >= 0
    assert retries <= ratio * calls + min(20, 10 * per_second) + per_second * (clock.monotonic() - started) + 1


def test_retry_budget__at_total_failure_the_load_stays_bounded(fake_time: FakeTime) -> None:
    """When everything fails, three attempts make 1.25 times the load at most, and not three times.

    In this one second 1000 calls earn 200 retries, and the reserve holds 20 and gains 3. Each retry takes 0.99 or more
    from the account that pays for it, so there are at most 223 / 0.99 = 225.
    """
    script = Script(TimeoutError())
    retried = retry(max_attempts=3, delay=0, budget=RetryBudget(ratio=0.2, min_per_second=3))(script)

    for _ in range(1000):
        with pytest.raises(TimeoutError):
            retried()
        fake_time.now += 0.001

    assert fake_time.now - 1000 == pytest.approx(1), "something else moved the clock"
    assert 1150 < script.calls <= 1225


def test_retry_budget__permanent_failures_cost_nothing() -> None:
    """What is not retried is not paid for."""
    budget = RetryBudget(min_per_second=3)

    for _ in range(50):
        with pytest.raises(ValueError, match="wrong"):
            retry(delay=0, budget=budget)(Script(ValueError("wrong")))()

    assert budget.balance == 20


def test_retry_budget__is_exact_under_threads() -> None:
    """Threads that share a budget get no more out of it than one would."""
    budget = RetryBudget(ratio=0.1, min_per_second=0)
    retries: list[bool] = []

    def work() -> None:
        for _ in range(1000):
            budget.deposit()
        retries.extend(budget.withdraw() for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(retries) + taken(budget) == 400


def test_retry_budget__shows_what_it_is() -> None:
    """A budget in a log or a debugger tells its numbers."""
    assert repr(RetryBudget(0.1, 0, name="x", shared=True)) == "RetryBudget(name='x', ratio=0.1, min_per_second=0.0, shared=True)"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("ratio", value) for value in (0, -0.1, 1.1, math.nan, math.inf, True, "0.2", None)),
        *(("min_per_second", value) for value in (-1, math.nan, math.inf, True, "3", None)),
    ],
)
def test_retry_budget__refuses_a_wrong_value(field: str, value: Any) -> None:
    """A wrong value fails where it is written down."""
    with pytest.raises((TypeError, ValueError), match=rf"^{field} must be a number .+, not .+\. The usual budget"):
        RetryBudget(**{field: value})


# Shared by a fleet: two budgets of one name stand for two processes.


def fleet(size: int = 2, **fields: Any) -> list[RetryBudget]:
    return [RetryBudget(name="payments", shared=True, **fields) for _ in range(size)]


def test_shared_budget__needs_a_name() -> None:
    """Processes find the budget by its name."""
    with pytest.raises(ValueError, match="name must be given for a shared budget"):
        RetryBudget(shared=True)


def test_shared_budget__the_fleet_has_one_reserve() -> None:
    """Ten processes together get what one would get, not ten times as much."""
    alone = taken(fleet(1, min_per_second=3)[0])
    caches["default"].clear()

    together = sum(taken(budget) for budget in fleet(10, min_per_second=3))

    assert alone == together == 18


def test_shared_budget__fills_up_again(fake_time: FakeTime) -> None:
    """The next window has its own reserve."""
    budgets = fleet(3, min_per_second=3)
    for budget in budgets:
        taken(budget)

    fake_time.now += 6

    assert sum(taken(budget) for budget in budgets) == 18


def test_shared_budget__what_calls_earn_needs_no_cache() -> None:
    """Shares of the parts add up: only the reserve is agreed upon."""
    budget = fleet(1, ratio=0.5, min_per_second=0)[0]
    for _ in range(100):
        budget.deposit()

    with override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.BrokenCache"}}):
        retries = taken(budget)

    assert retries == 50


def test_shared_budget__asks_the_cache_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls cost nothing, a retry one increment, and a window that is used up is not asked again."""
    asked = []
    reserve = caches["default"]
    incr = type(reserve).incr
    monkeypatch.setattr(
        type(reserve), "incr", lambda self, key, *args, **kwargs: asked.append(key) or incr(self, key, *args, **kwargs)
    )
    budget = fleet(1, min_per_second=1)[0]

    for _ in range(1000):
        budget.deposit()
    taken(budget)
    before = len(asked)
    for _ in range(50):
        budget.withdraw()

    assert before == 11
    assert len(asked) == before


class BrokenCache:
    """A cache that is down."""

    def __init__(self, *args: object) -> None:
        """Take what Django gives a backend."""

    def add(self, *args: object, **kwargs: object) -> bool:
        raise ConnectionError("cache down")

    incr = add

    def close(self, **kwargs: object) -> None:
        """Nothing is open."""

    clear = close


class LateCache(BrokenCache):
    """A cache that is slow enough for a worker's time limit to strike."""

    def add(self, *args: object, **kwargs: object) -> bool:
        raise billiard.exceptions.SoftTimeLimitExceeded

    incr = add


class WaitingCache(BrokenCache):
    """A cache that answers when the event loop has done something else meanwhile."""

    loop_is_free = threading.Event()

    def add(self, *args: object, **kwargs: object) -> bool:
        return self.loop_is_free.wait(5)

    def incr(self, *args: object, **kwargs: object) -> int:
        return 1 if self.loop_is_free.is_set() else 1000


@pytest.mark.parametrize("reject", [None, lambda result: result == "not yet"], ids=["failure", "result"])
def test_shared_budget__does_not_block_the_event_loop(reject: Any) -> None:
    """While a coroutine's retry waits for the cache, others go on."""
    WaitingCache.loop_is_free.clear()
    outcomes = iter([TimeoutError() if reject is None else "not yet", "done"])

    @retry(budget=fleet(1, min_per_second=3)[0], delay=0, retry_on_result=reject)
    async def flaky() -> str:
        asyncio.get_running_loop().call_soon(WaitingCache.loop_is_free.set)
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.WaitingCache"}}):
        result = asyncio.run(flaky())

    assert result == "done"


def test_shared_budget__goes_on_alone_when_the_cache_is_down(caplog: pytest.LogCaptureFixture, fake_time: FakeTime) -> None:
    """A cache that fails is told once and not asked again for a while; the process has its own reserve."""
    budget = fleet(1, min_per_second=3)[0]

    with override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.BrokenCache"}}):
        alone = taken(budget)

    assert alone == 20
    assert len(caplog.records) == 1
    assert "goes on with this process's own reserve" in caplog.text
    fake_time.now += 20
    assert taken(budget) == 18


def test_shared_budget__tells_once_that_the_cache_is_down(caplog: pytest.LogCaptureFixture, fake_time: FakeTime) -> None:
    """However long the cache is away, one line is logged; and one more when it fails again later."""
    budget = fleet(1, min_per_second=3)[0]

    for _ in range(2):
        with override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.BrokenCache"}}):
            for _ in range(5):
                fake_time.now += 11
                budget.withdraw()
        fake_time.now += 11
        assert budget.withdraw()

    assert len(caplog.records) == 2


def test_budget__a_forked_child_inherits_no_lock_and_no_earnings() -> None:
    """A child forked while a thread of the parent counts a call can count its own, from a full reserve."""
    budget = RetryBudget(ratio=0.5, min_per_second=0)
    for _ in range(10):
        budget.deposit()

    with budget._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            budget.deposit()
            os._exit(0 if budget.balance == 0.5 else 1)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert budget.balance == 5


@given(st.floats(0, 1000))
def test_shared_reserve__a_window_holds_what_it_promises(per_second: float) -> None:
    """Windows last whole seconds, hold at most twenty or a second's worth, and on average what was asked for."""
    reserve = SharedReserve("x", per_second)

    assert 1 <= reserve.window <= max(10, min(3600, 1 / per_second + 1) if per_second else 3600)
    assert reserve.quota <= max(20, per_second)
    assert reserve.quota / reserve.window <= per_second
    assert reserve.quota / reserve.window > per_second - 1


def test_shared_budget__lets_a_workers_time_limit_through() -> None:
    """A soft time limit that strikes while the cache is asked ends the task, and is no outage of the cache."""
    budget = fleet(1, min_per_second=3)[0]

    with (
        override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.LateCache"}}),
        pytest.raises(billiard.exceptions.SoftTimeLimitExceeded),
    ):
        budget.withdraw()

    assert budget.withdraw()


def test_withdraw__the_reserve_is_a_floor_under_the_share() -> None:
    """Twenty in reserve and twenty earned are twenty retries, not forty; each is taken from both."""
    budget = RetryBudget(ratio=0.2, min_per_second=3)
    for _ in range(100):
        budget.deposit()

    assert taken(budget) == 20


def test_withdraw__what_the_reserve_paid_is_not_owed_by_the_share() -> None:
    """Calls that come after the reserve was used up earn their retries from nothing, and not from a debt."""
    budget = RetryBudget(ratio=0.2, min_per_second=2)
    assert taken(budget) == 20

    for _ in range(50):
        budget.deposit()

    assert taken(budget) == 10


def test_withdraw__what_the_share_paid_is_not_owed_by_the_reserve(fake_time: FakeTime) -> None:
    """After a burst that its calls paid for, the reserve fills from nothing, and never above ten seconds' worth."""
    budget = RetryBudget(ratio=1, min_per_second=1)
    for _ in range(100):
        budget.deposit()
    assert taken(budget) == 100

    fake_time.now += 2
    assert taken(budget) == 2
    fake_time.now += 1000
    assert taken(budget) == 10


class CountingCache(BrokenCache):
    """A cache that is down, and counts who asks."""

    asked = 0

    def add(self, *args: object, **kwargs: object) -> bool:
        type(self).asked += 1
        raise ConnectionError("cache down")


def test_shared_budget__leaves_a_cache_that_failed_alone_for_a_while(fake_time: FakeTime) -> None:
    """Each attempt to reach a cache that is down may take as long; for ten seconds none is made."""
    CountingCache.asked = 0
    budget = fleet(1, min_per_second=3)[0]

    with override_settings(CACHES={"default": {"BACKEND": "tests.calls.test_budgets.CountingCache"}}):
        withdrawn = [budget.withdraw() for _ in range(5)]
        assert (withdrawn, CountingCache.asked) == ([True] * 5, 1)

        fake_time.now += 9.9
        assert (budget.withdraw(), CountingCache.asked) == (True, 1)
        fake_time.now += 0.2
        assert (budget.withdraw(), CountingCache.asked) == (True, 2)
