from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from resilience import CircuitBreaker, CircuitOpenError, circuit_breaker, clock
from resilience.circuits import machine
from resilience.circuits.judging import Outcome
from resilience.circuits.probes import Permit
from resilience.circuits.store import CircuitStore, Lease
from tests.circuits.conftest import Fleet, ServiceError, fail, is_refused, succeed

COUNTED = ("get", "get_many", "set", "add", "incr", "delete", "touch", "set_many", "delete_many", "decr", "get_or_set")


class CountingCache(LocMemCache):
    """Counts operations; can fail like a cache that is away."""

    operations: Counter[str] = Counter()
    broken: Exception | None = None


def _counted(name: str) -> Any:
    def operation(self: CountingCache, *args: Any, **kwargs: Any) -> Any:
        CountingCache.operations[name] += 1
        if CountingCache.broken is not None:
            raise CountingCache.broken
        # Not through our own methods: get_many of the base class calls get.
        if name == "get_many":
            found = {key: LocMemCache.get(self, key) for key in args[0]}
            return {key: value for key, value in found.items() if value is not None}
        return getattr(LocMemCache, name)(self, *args, **kwargs)

    return operation


for _name in COUNTED:
    setattr(CountingCache, _name, _counted(_name))


@pytest.fixture
def counting(settings: Any, fake_clock: Any) -> Fleet:
    settings.CACHES = {
        **settings.CACHES,
        "counting": {
            "BACKEND": f"{__name__}.CountingCache",
            "LOCATION": "counting",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        },
    }
    CountingCache.broken = None
    caches["counting"].clear()
    CountingCache.operations.clear()
    return Fleet("counting", fake_clock)


def operations() -> int:
    """Return the number of operations since the last time."""
    total = CountingCache.operations.total()
    CountingCache.operations.clear()
    return total


def test_cost__closed_success_asks_nothing_between_refreshes(counting: Fleet) -> None:
    """10,000 calls in one interval: not one cache operation."""
    service = counting.member()(lambda: "fine")
    service()
    operations()

    for _ in range(10_000):
        service()

    assert operations() == 0


def test_cost__refused_call_asks_nothing_between_refreshes(counting: Fleet) -> None:
    """While open, the deadline is known."""
    breaker = counting.member(failure_threshold=1)
    fail(breaker)
    is_refused(breaker)
    operations()

    assert all(is_refused(breaker) for _ in range(1000))

    assert operations() == 0


@pytest.mark.parametrize("rate", [None, 0.5])
def test_cost__refresh_is_at_most_four_operations(counting: Fleet, rate: float | None) -> None:
    """Over hours of calls with failures, in several processes, open or closed."""
    members = [counting.member(failure_threshold=1000, failure_rate_threshold=rate) for _ in range(3)]
    for member in members:
        succeed(member)
    highest = 0

    for second in range(400):
        counting.advance(1.0)
        for number, member in enumerate(members):
            operations()
            succeed(member)
            highest = max(highest, operations())
            if (second + number) % 7 == 0:
                fail(member)
            succeed(member, 3)

    members[0].open()
    for _ in range(50):
        counting.advance(1.0)
        operations()
        is_refused(members[1])
        highest = max(highest, operations())
    assert 1 <= highest <= 4


def test_cost__failures_below_a_high_threshold_wait_for_the_refresh(counting: Fleet) -> None:
    """10 % failures far below the threshold cost no operation each."""
    breaker = counting.member(failure_threshold=1_000_000)
    succeed(breaker)
    operations()

    for _ in range(100):
        fail(breaker)
        succeed(breaker, 9)

    assert operations() == 0
    counting.advance(1.0)
    succeed(breaker)
    assert counting.member(failure_threshold=1_000_000).get_stats()["failure_count"] == 100


def test_cost__sync_interval_zero_asks_at_every_call(counting: Fleet) -> None:
    """What one process does, the next call of another sees."""
    first = counting.member(failure_threshold=1, sync_interval=0)
    second = counting.member(failure_threshold=1, sync_interval=0)
    succeed(second)

    fail(first)

    assert is_refused(second)


def test_freshness__nothing_is_admitted_on_old_knowledge(counting: Fleet) -> None:
    """After a pause the first call asks before it is let through."""
    first, second = counting.member(failure_threshold=1), counting.member(failure_threshold=1)
    succeed(second)
    fail(first)

    counting.advance(3600 - 3595)

    assert is_refused(second)


def test_outage__is_told_once_and_retried_once_an_interval(counting: Fleet) -> None:
    """One signal each way, and one attempt a second however many calls."""
    from resilience import signals

    told: list[str] = []
    receivers = {kind: lambda kind=kind, **kwargs: told.append(kind) for kind in ("failed", "recovered")}
    breaker = counting.member(failure_threshold=3)
    succeed(breaker)
    for kind, receiver in receivers.items():
        getattr(signals, f"circuit_store_{kind}").connect(receiver)
    try:
        CountingCache.broken = ConnectionError("refused")
        operations()
        for _ in range(50):
            counting.advance(0.1)
            succeed(breaker, 20)
        attempts = operations()
        CountingCache.broken = None
        counting.advance(1.1)
        succeed(breaker)
    finally:
        for kind, receiver in receivers.items():
            getattr(signals, f"circuit_store_{kind}").disconnect(receiver)

    assert told == ["failed", "recovered"]
    assert 3 <= attempts <= 6


def test_outage__local_counts_open_and_rejoin(counting: Fleet) -> None:
    """58: thresholds hold without a cache; what was found out is told when it is back, by one event."""
    breaker, other = counting.member(failure_threshold=3), counting.member(failure_threshold=3)
    succeed(breaker)
    succeed(other)
    CountingCache.broken = TimeoutError()

    fail(breaker, 3)
    assert is_refused(breaker)
    CountingCache.broken = None
    counting.advance(1.5)
    assert is_refused(breaker)

    assert is_refused(other)
    assert counting.events == ["open"]


def test_outage__good_result_is_returned_when_the_write_fails(counting: Fleet) -> None:
    """f: a probe that succeeded returns its value though the cache broke meanwhile, and closes locally."""
    breaker = counting.member(failure_threshold=1, success_threshold=1)
    fail(breaker)
    counting.advance(10)

    def service() -> str:
        CountingCache.broken = ConnectionError("reset")
        return "good"

    assert breaker.call(service) == "good"
    assert breaker.state == "closed"


@pytest.mark.parametrize("loss", ["head", "record", "all"])
def test_loss__of_any_key_while_open(counting: Fleet, loss: str) -> None:
    """Evicted keys come back from the processes that know."""
    first, second = counting.member(failure_threshold=1), counting.member(failure_threshold=1)
    succeed(second)
    fail(first)
    is_refused(first)
    cache = caches["counting"]
    for key in list(cache._cache):
        if loss == "all" or key.endswith(":head") == (loss == "head"):
            LocMemCache.delete(cache, key.split(":", 2)[2])

    counting.advance(1)
    newcomer = counting.member(failure_threshold=1)
    succeed(newcomer) if loss == "all" else None
    assert is_refused(first)
    counting.advance(1)
    assert is_refused(first)
    counting.advance(1)

    assert is_refused(second)
    assert is_refused(newcomer)
    assert counting.events == ["open"]


def test_loss__closed_fleet_agrees_on_one_generation_again(counting: Fleet) -> None:
    """After a flush, old and new processes count together."""
    members = [counting.member(failure_threshold=4) for _ in range(2)]
    for member in members:
        fail(member)
    caches["counting"].clear()
    members.append(counting.member(failure_threshold=4))

    for seconds in (1, 1, 60):
        counting.advance(seconds)
        for member in members:
            succeed(member)
    for member in [*members, members[0]]:
        fail(member)
        counting.advance(1)

    assert is_refused(members[2])


def test_million__calls_below_the_threshold_never_open(counting: Fleet) -> None:
    """No false positive: a million calls, 4 of them failing in each window of five."""
    service = circuit_breaker(counting.name, failure_threshold=5, cache="counting")(lambda error: 1 / 0 if error else None)

    for call in range(1_000_000):
        if call % 50_000 == 0:
            with pytest.raises(ZeroDivisionError):
                service(error=True)
            counting.advance(15.1)
        else:
            service(error=False)

    assert service.breaker.state == "closed"


def test_prefix__separates_projects_on_one_server(settings: Any, fake_clock: Any) -> None:
    """KEY_PREFIX and VERSION are Django's and hold for circuits."""
    base = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "shared"}
    settings.CACHES = {**settings.CACHES, "one": {**base, "KEY_PREFIX": "one"}, "two": {**base, "KEY_PREFIX": "two"}}
    one, two = Fleet("one", fake_clock, name="same"), Fleet("two", fake_clock, name="same")
    first, second = one.member(failure_threshold=1), two.member(failure_threshold=1)

    fail(first)

    assert is_refused(first)
    assert not is_refused(second)


def test_index__names_lost_to_a_race_come_back(counting: Fleet) -> None:
    """Two processes that register at once may overwrite each other's entry; the loser looks again."""
    fleets = [Fleet("counting", counting.clock) for _ in range(40)]
    members = [fleet.member() for fleet in fleets]
    for member in members:
        succeed(member)
    for shard in [key for key in caches["counting"]._cache if ":index:" in key]:
        LocMemCache.delete(caches["counting"], shard.split(":", 2)[2])

    counting.advance(61)
    for member in members:
        succeed(member)

    assert {fleet.name for fleet in fleets} <= set(CircuitStore("counting").read_index())


def test_stats__of_a_thousand_circuits_take_few_operations(counting: Fleet, settings: Any) -> None:
    """A page that lists them all asks the cache a handful of times."""
    settings.RESILIENCE = {"CACHE": "counting"}
    fleets = [Fleet("counting", counting.clock) for _ in range(300)]
    for fleet in fleets:
        succeed(fleet.member())
    operations()
    from resilience import get_all_circuit_breaker_stats

    stats = get_all_circuit_breaker_stats()

    assert {fleet.name for fleet in fleets} <= set(stats)
    assert operations() <= 8


def test_control_flow__inside_the_cache_is_not_taken_for_an_outage(counting: Fleet) -> None:
    """i: a worker's soft time limit that strikes in a cache operation reaches the worker."""
    from celery.exceptions import SoftTimeLimitExceeded

    breaker = counting.member()
    CountingCache.broken = SoftTimeLimitExceeded()

    with pytest.raises(SoftTimeLimitExceeded):
        succeed(breaker)

    CountingCache.broken = None
    assert not breaker.circuit.store.is_down
    assert succeed(breaker) == "fine"


def test_control_flow__of_the_function_is_not_masked(counting: Fleet) -> None:
    """i: SystemExit and celery's exceptions pass an almost open circuit unchanged and uncounted."""
    from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded

    breaker = counting.member(failure_threshold=1)

    for error in (SystemExit, Ignore, Retry, SoftTimeLimitExceeded):
        fail(breaker, 1, error)

    assert breaker.state == "closed"
    assert breaker.get_stats()["failure_count"] == 0
    fail(breaker, 1, ServiceError)
    assert breaker.state == "open"


@pytest.mark.parametrize("backend", ["filebased.FileBasedCache", "dummy.DummyCache"])
def test_weak_backends__still_protect_their_own_process(settings: Any, fake_clock: Any, tmp_path: Any, backend: str) -> None:
    """What neither counts exactly nor keeps anything opens, probes and closes within one process all the same."""
    settings.CACHES = {**settings.CACHES, "weak": {"BACKEND": f"django.core.cache.backends.{backend}", "LOCATION": str(tmp_path)}}
    fleet = Fleet("weak", fake_clock)
    breaker = fleet.member(failure_threshold=3, success_threshold=1)

    fail(breaker, 3)
    assert is_refused(breaker)
    fleet.advance(10)
    succeed(breaker)

    assert breaker.state == "closed"
    assert fleet.events == ["open", "half_open", "close"]


def test_vote__has_one_winner(fleet: Fleet) -> None:
    """Of two processes that propose the same generation, one is told that it won."""
    first, second = CircuitStore(fleet.alias), CircuitStore(fleet.alias)
    record = machine.birth(1.0)

    assert first.vote(fleet.name, record) is record
    assert (second.vote(fleet.name, record), second.vote(fleet.name, record) is record) == (record, False)


def test_lease__taken_over_belongs_to_the_successor(fleet: Fleet) -> None:
    """The token tells; of two successors one gets the place, and only after it is over."""
    store = CircuitStore(fleet.alias)
    old = store.take_lease(fleet.name, 1, 0, "old", 5)
    assert isinstance(old, Lease)
    assert isinstance(store.take_lease(fleet.name, 1, 0, "early", 5), float)
    fleet.advance(5.01)

    new = store.take_lease(fleet.name, 1, 0, "new", 5)

    assert isinstance(new, Lease)
    assert isinstance(store.take_lease(fleet.name, 1, 0, "third", 5), float)
    assert (store.owns_lease(fleet.name, 1, old), store.owns_lease(fleet.name, 1, new)) == (False, True)


def test_lease__given_back_and_taken_in_the_same_moment_is_no_outage(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who loses a race for a place is refused; only a cache that keeps nothing lets processes probe on their own."""
    store, others, name = CircuitStore(fleet.alias), CircuitStore(fleet.alias), fleet.name
    lease = others.take_lease(name, 1, 0, "first", 60)
    assert isinstance(lease, Lease)
    run = store.run

    def slow_run(operation: str, act: Any) -> Any:
        if operation != "get":
            return run(operation, act)
        others.drop_lease(name, 1, lease)
        found = run(operation, act)
        assert isinstance(others.take_lease(name, 1, 0, "third", 60), Lease)
        return found

    monkeypatch.setattr(store, "run", slow_run)

    assert isinstance(store.take_lease(name, 1, 0, "second", 60), float)


def test_lease__result_after_its_end_decides_nothing(counting: Fleet) -> None:
    """Also when nobody took the place over."""
    breaker = counting.member(failure_threshold=1, success_threshold=1, half_open_timeout=5)
    fail(breaker)
    counting.advance(10)

    breaker.call(counting.advance, 5.01)

    assert breaker.state == "half_open"


def test_refusal__through_a_decorator_hears_of_a_reset(counting: Fleet) -> None:
    """The fast way of refusing looks at the cache once an interval too."""
    first, second = counting.member(failure_threshold=1), counting.member(failure_threshold=1)
    service = first(lambda: "fine")
    fail(first)
    with pytest.raises(CircuitOpenError):
        service()

    second.reset()
    counting.advance(1)

    assert service() == "fine"


def test_cost__high_failure_rate_below_its_threshold_is_told_by_the_hundred(counting: Fleet) -> None:
    """30 % of failures at a limit of 50 % do not ask the cache at each failure, once there were many calls."""
    breaker = counting.member(failure_rate_threshold=0.5, minimum_calls=20)
    for _ in range(1000):
        succeed(breaker, 7)
        fail(breaker, 3)
    operations()

    for _ in range(100):
        succeed(breaker, 7)
        fail(breaker, 3)

    assert operations() <= 4 * 5
    assert breaker.state == "closed"


def test_clock__that_is_wrong_does_not_end_an_open_time_that_was_seen_to_begin(counting: Fleet) -> None:
    """A host ten minutes ahead refuses as long as the others, if it used the circuit before."""
    first, ahead = counting.member(failure_threshold=1, recovery_timeout=60), counting.member(recovery_timeout=60)
    wall = clock.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", lambda: wall() + 600)
        succeed(ahead)
    fail(first)
    counting.advance(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", lambda: wall() + 600)
        refused = []
        for _ in range(58):
            refused.append(is_refused(ahead))
            counting.advance(1)
        counting.advance(2)

        assert set(refused) == {True}
        assert succeed(ahead) == "fine"


def test_clock__that_is_wrong_takes_nobodys_probe(fleet: Fleet) -> None:
    """A host ten minutes ahead does not think that a probe under way is over, on a cache that ends leases itself."""
    store, name = CircuitStore(fleet.alias), fleet.name
    lease = store.take_lease(name, 1, 0, "first", 60)
    assert isinstance(lease, Lease)
    fleet.advance(600)

    taken = store.take_lease(name, 1, 0, "ahead", 60)

    # One process with one clock cannot be ahead of itself.
    assert isinstance(taken, Lease) is not store.may_block
    assert store.owns_lease(name, 1, lease) is store.may_block


def test_open__brought_back_lasts_no_longer_than_it_had_left(counting: Fleet) -> None:
    """After a flush, newcomers refuse for the rest of the open time and not for all of it."""
    first = counting.member(failure_threshold=1, recovery_timeout=60)
    fail(first)
    counting.advance(50)
    is_refused(first)
    caches["counting"].clear()
    newcomer = counting.member(recovery_timeout=60)
    succeed(newcomer)
    counting.advance(1)
    assert is_refused(first)
    counting.advance(1)

    with pytest.raises(CircuitOpenError) as refused:
        succeed(newcomer)

    assert refused.value.retry_after is not None
    assert 7 < refused.value.retry_after <= 8


def test_late__failure_of_an_earlier_closed_time_is_not_counted(counting: Fleet) -> None:
    """A call that began before the circuit opened and closed again says nothing about the service now."""
    breaker = counting.member(failure_threshold=2, success_threshold=1)
    late = breaker._admit()
    assert isinstance(late, Permit)
    fail(breaker, 2)
    counting.advance(10)
    succeed(breaker)
    assert breaker.state == "closed"
    fail(breaker)

    breaker._settle(late, clock.monotonic(), Outcome.FAILURE, ServiceError("late"))

    stats = breaker.get_stats()
    assert (stats["state"], stats["failure_count"]) == ("closed", 1)
    assert "late" not in [item["message"] for item in stats["recent_failures"]]


def test_late__probe_whose_place_was_taken_over_decides_nothing(counting: Fleet) -> None:
    """Its host's clock stood still, so only the token tells that another prober has its place."""
    slow, other = (counting.member(failure_threshold=1, success_threshold=2, half_open_timeout=5) for _ in range(2))
    fail(slow)
    counting.advance(10)
    late = slow._admit()
    assert isinstance(late, Permit)
    assert late.lease is not None
    counting.advance(5.01)
    successor = other._admit()
    assert isinstance(successor, Permit)
    late.lease.until += 3600

    slow._settle(late, clock.monotonic(), Outcome.FAILURE, ServiceError("late"))

    assert other.state == "half_open"
    other._settle(successor, clock.monotonic(), Outcome.SUCCESS, None)
    succeed(other)
    assert other.state == "closed"


def test_probe__that_needs_its_own_circuit_is_told(local_fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A guarded call inside a guarded call cannot close the circuit with one place; the log says what to do."""
    breaker = local_fleet.member(failure_threshold=1, success_threshold=1)
    fail(breaker)
    local_fleet.advance(10)

    with pytest.raises(CircuitOpenError):
        breaker.call(succeed, breaker)

    assert "guard the call once" in caplog.text
    roomy = local_fleet.member(half_open_max_calls=2, success_threshold=2)
    local_fleet.advance(10)
    assert roomy.call(succeed, roomy) == "fine"
    assert roomy.state == "closed"


async def test_loop__known_answers_need_no_thread(settings: Any, fake_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Successes, timed or not, and refusals, half-open ones too, are decided on the event loop without the cache."""
    from resilience.circuits import breaker as module

    threads: list[object] = []
    in_thread = module.sync_to_async
    monkeypatch.setattr(module, "sync_to_async", lambda func, **kwargs: threads.append(func) or in_thread(func, **kwargs))
    monkeypatch.setattr(CircuitStore, "may_block", True)
    fleet = Fleet("default", fake_clock)
    breaker = fleet.member(failure_rate_threshold=0.5, slow_call_duration=5, minimum_calls=2, half_open_timeout=60)
    started, released = asyncio.Event(), asyncio.Event()

    async def fine() -> None: ...

    async def probing() -> None:
        started.set()
        await released.wait()

    async def broken() -> None:
        raise ServiceError

    await breaker.acall(fine)
    threads.clear()
    for _ in range(10):
        await breaker.acall(fine)
    assert threads == []

    for _ in range(20):
        with pytest.raises((ServiceError, CircuitOpenError)):
            await breaker.acall(broken)
    assert breaker.state == "open"
    fleet.advance(10)
    probe = asyncio.create_task(breaker.acall(probing))
    await asyncio.wait_for(started.wait(), 30)
    with pytest.raises(CircuitOpenError):
        await breaker.acall(fine)
    threads.clear()
    for _ in range(10):
        with pytest.raises(CircuitOpenError):
            await breaker.acall(fine)
    assert threads == []
    released.set()
    await probe


def test_window__forgets_failures_of_a_clock_that_was_ahead(counting: Fleet) -> None:
    """A wall clock an hour ahead that is set back leaves no failures that never grow old."""
    breaker = counting.member(failure_threshold=5, failure_window=60.0)
    counting.clock._wall += 3600
    for _ in range(4):
        fail(breaker)

    counting.clock._wall -= 3600
    counting.advance(120)
    succeed(breaker)
    fail(breaker)

    assert breaker.state == "closed"
    assert breaker._circuit.view.counts().failures == 1


def test_window__keeps_failures_over_a_small_correction(counting: Fleet) -> None:
    """A clock set back by a few seconds loses no failure."""
    breaker = counting.member(failure_threshold=5, failure_window=60.0)
    for _ in range(4):
        fail(breaker)

    counting.clock._wall -= 7
    counting.advance(2)
    fail(breaker)

    assert breaker.state == "open"


def asked_by(breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch, before_add: Callable[[], object]) -> list[str]:
    """Return the list that fills with this process's cache operations; `before_add` happens once, before the first `add`."""
    asked: list[str] = []
    pending = [before_add]
    store = breaker.circuit.store
    run = store.run

    def noted(operation: str, act: Any) -> Any:
        if operation == "add" and pending:
            pending.pop()()
        asked.append(operation)
        return run(operation, act)

    monkeypatch.setattr(store, "run", noted)
    return asked


def begun(counting: Fleet) -> tuple[CircuitBreaker, CircuitBreaker]:
    """Return two members that each have 20 successes and one failure to tell, at the beginning of a part of the window."""
    counting.clock._wall -= counting.clock._wall % 3
    members = [counting.member(failure_rate_threshold=0.5, minimum_calls=1000) for _ in range(2)]
    for member in members:
        succeed(member, 20)
        fail(member)
    return members[0], members[1]


def test_cost__counts_that_another_makes_in_the_same_moment_take_no_fifth_operation(
    counting: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is any of them lost: what did not fit is told by the next refresh."""
    breaker, other = begun(counting)
    counting.advance(5)
    asked = asked_by(breaker, monkeypatch, lambda: succeed(other))

    succeed(breaker)

    assert 1 < len(asked) <= 4, asked
    counting.advance(1)
    other.get_stats()
    breaker.get_stats()
    stats = other.get_stats()
    assert (stats["failure_count"], stats["success_count"]) == (2, 42)


def test_cost__counts_that_are_gone_take_no_fifth_operation(counting: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicted since they were seen: each is made anew, as far as four operations go."""
    breaker, _ = begun(counting)
    counting.advance(1)
    succeed(breaker, 20)
    fail(breaker)
    for key in [key for key in caches["counting"]._cache if re.search(r":[fs]\d+:\d+$", key)]:
        LocMemCache.delete(caches["counting"], key.split(":", 2)[2])
    counting.advance(1)
    asked = asked_by(breaker, monkeypatch, lambda: None)

    succeed(breaker)

    assert asked == ["get_many", "incr", "add", "incr"]


def test_event__of_an_opening_that_a_look_brought_about_is_told(counting: Fleet) -> None:
    """One process's failures and another's successes meet when somebody reads the statistics there: that process tells."""
    failing, other = (counting.member(failure_rate_threshold=0.5, minimum_calls=6) for _ in range(2))
    assert other.state == "closed"
    fail(failing, 3)
    succeed(other, 3)
    assert counting.events == []

    other.get_stats()

    assert counting.events == ["open"]
    assert is_refused(other)


def test_window__successes_count_from_when_they_were_made(counting: Fleet) -> None:
    """However late they are told: with long intervals a success is not as old as the last look at the cache."""
    breaker = counting.member(failure_rate_threshold=0.5, failure_window=60.0, sync_interval=30.0)
    assert breaker.state == "closed"
    counting.advance(29)
    succeed(breaker, 5)

    counting.advance(40)

    assert breaker.get_stats()["success_count"] == 5


async def test_loop__the_cache_is_asked_in_a_thread(settings: Any, fake_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First calls, refreshes, failures, probes: none of them holds the event loop up."""
    monkeypatch.setattr(CircuitStore, "may_block", True)
    fleet = Fleet("default", fake_clock)
    breaker = fleet.member(failure_threshold=2, success_threshold=1)
    run, asked_in = breaker.circuit.store.run, list[int]()

    def noted(operation: str, act: Any) -> Any:
        asked_in.append(threading.get_ident())
        return run(operation, act)

    async def fine() -> None: ...

    async def broken() -> None:
        raise ServiceError

    monkeypatch.setattr(breaker.circuit.store, "run", noted)
    for _ in range(3):
        await breaker.acall(fine)
        fleet.advance(1)
    for _ in range(2):
        with pytest.raises(ServiceError):
            await breaker.acall(broken)
    fleet.advance(10)
    await breaker.acall(fine)

    assert fleet.events == ["open", "half_open", "close"]
    assert len(asked_in) > 5
    assert threading.get_ident() not in asked_in
