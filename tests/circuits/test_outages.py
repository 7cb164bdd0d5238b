from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from resilience import CircuitBreaker, CircuitOpenError, signals
from resilience.circuits import registry
from resilience.circuits.outages import avoiding
from resilience.circuits.store import CircuitStore
from tests.circuits.conftest import Fleet, ServiceError, fail, is_refused, succeed

WRITES = ("set", "add", "incr", "delete")


class ReadOnlyCache(LocMemCache):
    """Answers questions; refuses writes like a server that is full, while `is_full`."""

    is_full = False
    attempts: Counter[str] = Counter()


class GuardedCache(LocMemCache):
    """A cache that a project guards with a circuit, which is kept in the same cache."""

    breaker: CircuitBreaker | None = None
    broken = False


def _refusing(name: str) -> Any:
    def operation(self: ReadOnlyCache, *args: Any, **kwargs: Any) -> Any:
        ReadOnlyCache.attempts[name] += 1
        if ReadOnlyCache.is_full:
            raise OSError("OOM command not allowed")
        return getattr(LocMemCache, name)(self, *args, **kwargs)

    return operation


def _guarded(name: str) -> Any:
    def operation(self: GuardedCache, *args: Any, **kwargs: Any) -> Any:
        def act() -> Any:
            if GuardedCache.broken:
                raise ConnectionError("down")
            return getattr(LocMemCache, name)(self, *args, **kwargs)

        assert GuardedCache.breaker is not None
        return GuardedCache.breaker.call(act)

    return operation


for _name in WRITES:
    setattr(ReadOnlyCache, _name, _refusing(_name))
for _name in ("get", *WRITES):
    setattr(GuardedCache, _name, _guarded(_name))


def use(settings: Any, **entry: Any) -> None:
    settings.CACHES = {**settings.CACHES, "odd": {"LOCATION": "odd", **entry}}
    registry.forget_circuits()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What was told about outages, in order."""
    heard: list[str] = []
    receivers = {kind: lambda kind=kind, **kwargs: heard.append(kind) for kind in ("failed", "recovered")}
    for kind, receiver in receivers.items():
        getattr(signals, f"circuit_store_{kind}").connect(receiver)
    yield heard
    for kind, receiver in receivers.items():
        getattr(signals, f"circuit_store_{kind}").disconnect(receiver)


@pytest.fixture(params=["django_redis", "pymemcache"])
def silent(request: pytest.FixtureRequest, settings: Any, fake_clock: Any) -> Fleet:
    """A fleet on a cache that is away and swallows its own errors."""
    if request.param == "django_redis":
        location, options = f"redis://127.0.0.1:{free_port()}/0", {"IGNORE_EXCEPTIONS": True}
        use(settings, BACKEND="django_redis.cache.RedisCache", LOCATION=location, OPTIONS=options)
    else:
        location, options = f"127.0.0.1:{free_port()}", {"ignore_exc": True}
        use(settings, BACKEND="django.core.cache.backends.memcached.PyMemcacheCache", LOCATION=location, OPTIONS=options)
    return Fleet("odd", fake_clock)


def test_silent_cache__thresholds_hold_and_errors_are_the_callers_own(silent: Fleet) -> None:
    """A cache that says nothing of its outage neither keeps the circuit closed nor replaces an error."""
    breaker = silent.member(failure_threshold=3, success_threshold=2)

    fail(breaker, 3)
    assert is_refused(breaker)
    silent.advance(10)
    succeed(breaker, 2)

    assert breaker.state == "closed"
    assert silent.events == ["open", "half_open", "close"]


def test_silent_cache__opens_by_a_rate_and_not_by_lost_successes(silent: Fleet) -> None:
    """What the cache did not keep is still known to this process, failures and successes alike."""
    breaker = silent.member(failure_rate_threshold=0.5, minimum_calls=10)

    for _ in range(20):
        succeed(breaker, 3)
        fail(breaker)
        silent.advance(1)
    stats = breaker.get_stats()

    assert (stats["state"], stats["failure_count"], stats["success_count"]) == ("closed", 20, 60)


def test_silent_cache__takes_orders(silent: Fleet) -> None:
    """An order holds in this process, and giving it ends."""
    breaker = silent.member()

    breaker.open(reason="by hand")
    assert is_refused(breaker)
    breaker.reset()

    assert succeed(breaker) == "fine"


def test_full_cache__is_one_outage_however_long(settings: Any, fake_clock: Any, told: list[str]) -> None:
    """A server that answers but takes no writes is told once, asked to write once a second, and told again when it does."""
    use(settings, BACKEND=f"{__name__}.ReadOnlyCache")
    fleet = Fleet("odd", fake_clock)
    breaker, other = fleet.member(failure_threshold=3), fleet.member(failure_threshold=3)
    succeed(breaker)
    succeed(other)
    ReadOnlyCache.is_full = True
    ReadOnlyCache.attempts.clear()
    try:
        for _ in range(20):
            fleet.advance(0.5)
            succeed(breaker)
        fail(breaker, 3)
        for _ in range(20):
            fleet.advance(0.5)
            is_refused(breaker)
    finally:
        ReadOnlyCache.is_full = False

    assert told == ["failed"]
    assert ReadOnlyCache.attempts.total() <= 30
    fleet.advance(1.1)
    succeed(breaker)
    assert told == ["failed", "recovered"]


def test_full_cache__what_others_wrote_is_still_read(settings: Any, fake_clock: Any) -> None:
    """A process that cannot write hears of an order that another one could."""
    use(settings, BACKEND=f"{__name__}.ReadOnlyCache")
    fleet = Fleet("odd", fake_clock)
    breaker, other = fleet.member(failure_threshold=3), fleet.member()
    succeed(breaker)
    ReadOnlyCache.is_full = True
    try:
        fail(breaker)
        fleet.advance(1.1)
        ReadOnlyCache.is_full = False
        other.open()
        ReadOnlyCache.is_full = True
        fleet.advance(1.1)

        assert is_refused(breaker)
    finally:
        ReadOnlyCache.is_full = False


@pytest.mark.parametrize("use_circuit", ["call", "get_stats", "reset"])
def test_receiver__of_an_outage_may_use_the_circuit(settings: Any, use_circuit: str) -> None:
    """An alert sent through the very circuit that met the outage does not wait for itself."""
    use(settings, BACKEND=f"{__name__}.ReadOnlyCache")
    breaker = CircuitBreaker(f"alerts-{use_circuit}", cache="odd", failure_threshold=2)
    done = []

    def receiver(**kwargs: Any) -> None:
        done.append(succeed(breaker) if use_circuit == "call" else getattr(breaker, use_circuit)())

    def work() -> None:
        ReadOnlyCache.is_full = True
        succeed(breaker)
        fail(breaker)

    signals.circuit_store_failed.connect(receiver)
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(10)
    ReadOnlyCache.is_full = False
    signals.circuit_store_failed.disconnect(receiver)

    assert not worker.is_alive()
    assert len(done) == 1


def test_guarded_cache__that_holds_its_own_circuit_does_not_wait_for_itself(settings: Any) -> None:
    """A circuit around the cache it is kept in works, and protects the cache's other users."""
    use(settings, BACKEND=f"{__name__}.GuardedCache")
    breaker = GuardedCache.breaker = CircuitBreaker("cache-itself", cache="odd", failure_threshold=3)
    outcomes: list[object] = []

    def work() -> None:
        caches["odd"].set("key", "value")
        outcomes.append(caches["odd"].get("key"))
        GuardedCache.broken = True
        for _ in range(5):
            try:
                caches["odd"].get("key")
            except Exception as error:
                outcomes.append(type(error).__name__)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(10)
    GuardedCache.broken = False

    assert not worker.is_alive()
    assert outcomes == ["value", *["ConnectionError"] * 3, *["CircuitOpenError"] * 2]
    assert breaker.state == "open"


def test_error__that_uses_the_circuit_while_it_is_printed_does_not_wait_for_itself(local_fleet: Fleet) -> None:
    """An exception's text is read with no lock held."""
    breaker = local_fleet.member()

    class LazyError(ServiceError):
        def __str__(self) -> str:
            return f"the circuit is {breaker.get_stats()['state']}"

    worker = threading.Thread(target=fail, args=(breaker, 1, LazyError), daemon=True)
    worker.start()
    worker.join(10)

    assert not worker.is_alive()
    assert breaker.get_stats()["recent_failures"][-1]["message"] == "the circuit is closed"


def test_times__beyond_what_a_cache_can_keep(fleet: Fleet) -> None:
    """Windows and leases of years work on every backend: times to live are cut to a month."""
    years = 1e12
    fields = {"failure_window": years, "half_open_timeout": years, "recovery_timeout": years, "max_recovery_timeout": 1e300}
    breaker, other = fleet.member(failure_threshold=2, **fields), fleet.member(failure_threshold=2, **fields)

    succeed(other)
    fail(breaker, 2)
    assert is_refused(breaker)
    assert not breaker.circuit.store.is_down
    breaker.half_open()
    succeed(breaker, 2)
    fleet.advance(1)

    assert succeed(other) == "fine"
    assert not breaker.circuit.store.is_down


@pytest.mark.parametrize("name", ["\ud800 broken", "名前 " * 500, "a\nb\x00c", " ", "💥"])
def test_name__of_any_alphabet_and_length(fleet: Fleet, name: str) -> None:
    """Shared, listed and operated on every backend."""
    fleet.name = name = name + fleet.name
    first, second = fleet.member(failure_threshold=1), fleet.member(failure_threshold=1)

    succeed(second)
    fail(first)
    fleet.advance(1)

    assert is_refused(second)
    assert name in CircuitStore(fleet.alias).read_index()


def test_fork__leaves_no_lock_of_another_thread_behind() -> None:
    """A thread of the parent may be in the middle of anything; circuits of one process work in the child all the same."""
    breaker = CircuitBreaker("forked-alone", scope="process", failure_threshold=2)
    fail(breaker, 2)
    private = breaker.circuit.store.private
    assert isinstance(private, LocMemCache)
    locks = [private._lock, breaker.circuit.lock, registry._lock, breaker.circuit.store._lock]
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        registry._after_fork()
        worker = threading.Thread(target=breaker.reset, daemon=True)
        worker.start()
        worker.join(10)

    assert not worker.is_alive()
    assert succeed(breaker) == "fine"


def test_fork__while_open_changes_nothing_for_the_child(local_fleet: Fleet) -> None:
    """A child of a process that knows the circuit open refuses until its time is over, and no shorter."""
    breaker = local_fleet.member(failure_threshold=1)
    fail(breaker)
    local_fleet.advance(4)

    breaker.circuit.forget()

    with pytest.raises(CircuitOpenError) as refused:
        succeed(breaker)
    assert refused.value.retry_after == pytest.approx(6, abs=0.01)
    local_fleet.advance(6)
    assert succeed(breaker) == "fine"


def test_fork__leaves_the_parents_untold_counts_and_errors_to_the_parent(local_fleet: Fleet) -> None:
    """They would be counted once by each child otherwise."""
    parent = local_fleet.member(failure_threshold=1000)
    fail(parent, 3)

    parent.circuit.forget()
    local_fleet.advance(1)
    fail(parent)

    stats = parent.get_stats()
    assert (stats["failure_count"], len(stats["recent_failures"])) == (1, 1)


def test_fork__of_a_process_that_was_alone_keeps_what_only_it_knows(local_fleet: Fleet) -> None:
    """A circuit that opened while the cache was away is still told about afterwards."""
    parent, other = (local_fleet.member(failure_threshold=3) for _ in range(2))
    succeed(parent)
    with avoiding(["default"]):
        fail(parent, 3)
        assert is_refused(parent)

    parent.circuit.forget()
    assert is_refused(parent)
    local_fleet.advance(1)
    is_refused(parent)
    local_fleet.advance(1)

    assert is_refused(other)
