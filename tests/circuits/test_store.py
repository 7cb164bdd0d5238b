"""The store's promises where backends, races and caches that forget come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from resilience.circuits import keys, machine, store
from resilience.circuits.outages import StoreUnavailableError
from resilience.circuits.store import CircuitStore, Lease, whole_seconds
from tests.circuits.conftest import FakeClock, Fleet


class ForgetfulCache(LocMemCache):
    """Takes what it is given, keeps nothing and raises nothing, as caches do that swallow their own errors."""

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return False

    def get(self, key: str, default: Any = None, version: Any = None) -> Any:
        return default

    def incr(self, *args: Any, **kwargs: Any) -> Any:
        return None


@pytest.fixture
def forgetful(settings: Any, fake_clock: FakeClock) -> CircuitStore:
    settings.CACHES = {**settings.CACHES, "forgetful": {"BACKEND": f"{__name__}.ForgetfulCache"}}
    return CircuitStore("forgetful")


@pytest.fixture
def local(settings: Any, fake_clock: FakeClock) -> CircuitStore:
    caches["default"].clear()
    return CircuitStore("default")


def before(store: CircuitStore, operation: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `act` happen between two operations of `store`: once, right before the next one of that kind."""
    run, pending = store.run, [act]

    def interrupted(asked: str, operate: Any) -> Any:
        if asked == operation and pending:
            pending.pop()()
        return run(asked, operate)

    monkeypatch.setattr(store, "run", interrupted)


def after(store: CircuitStore, operation: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `act` happen right after the next operation of that kind."""
    run, pending = store.run, [act]

    def interrupted(asked: str, operate: Any) -> Any:
        result = run(asked, operate)
        if asked == operation and pending:
            pending.pop()()
        return result

    monkeypatch.setattr(store, "run", interrupted)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, 1), (0.2, 1), (1.0, 1), (1.2, 2), (60.0, 60), (1e12, keys.HEAD_TTL), (float("inf"), keys.HEAD_TTL)],
)
def test_whole_seconds__rounds_up_within_what_every_cache_takes(seconds: float, expected: int) -> None:
    """Redis takes no fractions, 0 means at once, and Memcached takes a month and more for a date."""
    assert whole_seconds(seconds) == expected


def test_read__more_keys_than_fit_into_one_round_trip(local: CircuitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand circuits are read in parts, and none is left out."""
    monkeypatch.setattr(store, "CHUNK", 2)
    wanted = {f"key-{number}": number for number in range(5)}
    caches["default"].set_many(wanted)

    assert local.read(wanted) == wanted


def test_vote__drops_the_generation_that_leaves_the_history(fleet: Fleet) -> None:
    """As many generations are kept as are shown; more would fill the cache of a circuit that flaps."""
    circuits, generation = CircuitStore(fleet.alias), 100
    record = machine.closed(machine.birth(0.0), 0.0, "reset")

    for number in range(generation, generation + keys.RING + 2):
        circuits.vote(fleet.name, replace(record, generation=number))

    kept = [number for number in range(generation, generation + keys.RING + 2) if _stored(circuits, fleet.name, number)]
    assert kept == list(range(generation + 2, generation + keys.RING + 2))


def test_lease__of_a_cache_that_keeps_nothing_is_the_processes_own_affair(forgetful: CircuitStore) -> None:
    """A place that nobody has and nobody gets is not "taken": such a cache is away, and the process probes by itself."""
    with pytest.raises(StoreUnavailableError):
        forgetful.take_lease("mail", 1, 0, "token", 5)


@pytest.mark.parametrize("exists", [True, False])
def test_count__of_a_cache_that_keeps_nothing_is_no_count(forgetful: CircuitStore, exists: bool) -> None:
    """A count that cannot be read back was not shared, whatever the cache says."""
    with pytest.raises(StoreUnavailableError):
        forgetful.add_to("key", 3, 60, exists=exists)


@pytest.mark.parametrize("publish", ["vote", "publish_first"])
def test_record__of_a_cache_that_keeps_nothing_is_no_agreement(forgetful: CircuitStore, publish: str) -> None:
    """Neither added nor there: the process goes on by itself."""
    with pytest.raises(StoreUnavailableError):
        getattr(forgetful, publish)("mail", machine.birth(1.0))


def test_record__of_two_that_begin_at_once_is_the_first_ones(fleet: Fleet) -> None:
    """Two processes find an empty cache; the slower takes over what the quicker wrote."""
    quicker, slower = machine.birth(1.0), machine.birth(2.0)

    assert CircuitStore(fleet.alias).publish_first(fleet.name, quicker) is quicker
    assert CircuitStore(fleet.alias).publish_first(fleet.name, slower) == quicker


def test_lease__whose_key_holds_something_foreign_is_nobodys(fleet: Fleet) -> None:
    """Another program's value under the key is no error of the call."""
    circuits = CircuitStore(fleet.alias)
    lease = circuits.take_lease(fleet.name, 1, 0, "token", 60)
    assert isinstance(lease, Lease)
    caches[fleet.alias].set(keys.lease_key(fleet.name, 1, 0), "foreign", 60)

    assert not circuits.owns_lease(fleet.name, 1, lease)


def test_count__evicted_in_the_middle_begins_again(fleet: Fleet) -> None:
    """A key that was seen and is gone is made anew, with what there is to add."""
    circuits = CircuitStore(fleet.alias)
    key = keys.count_key(fleet.name, 1, "f", 60, 1)

    assert circuits.add_to(key, 3, 60, exists=True) == 3
    assert circuits.add_to(key, 4, 60, exists=False) == 7


def test_count__evicted_and_made_by_another_in_the_same_moment_is_looked_at_again(
    local: CircuitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone for `incr`, there for `add`: what was not added is not taken for told."""
    before(local, "add", lambda: CircuitStore("default").add_to("key", 5, 60, exists=False), monkeypatch)

    with pytest.raises(StoreUnavailableError):
        local.add_to("key", 3, 60, exists=True)
    assert CircuitStore("default").read(["key"]) == {"key": 5}


@pytest.mark.parametrize("exists", [True, False])
def test_count__that_need_not_be_told_now_takes_one_operation(
    local: CircuitStore, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `insist` a wrong guess about the key is left for next time: an exchange has four operations and no more."""
    if not exists:
        local.add_to("key", 1, 60, exists=False)
    asked: list[str] = []
    run = local.run
    monkeypatch.setattr(local, "run", lambda operation, act: (asked.append(operation), run(operation, act))[1])

    assert local.add_to("key", 3, 60, exists=exists, insist=False) is None
    assert len(asked) == 1


def test_lease__that_is_over_goes_to_one_of_two_who_saw_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read the same ended lease before either wrote: one takes the place, the other is refused."""
    first, second = CircuitStore(fleet.alias), CircuitStore(fleet.alias)
    assert isinstance(first.take_lease(fleet.name, 1, 0, "ended", 60), Lease)
    fleet.advance(60.5)
    winners: list[object] = []
    after(first, "get", lambda: winners.append(second.take_lease(fleet.name, 1, 0, "second", 60)), monkeypatch)

    slower = first.take_lease(fleet.name, 1, 0, "first", 60)

    assert isinstance(winners[0], Lease)
    assert isinstance(slower, float)
    assert second.owns_lease(fleet.name, 1, winners[0])


def test_lease__of_a_successor_is_not_given_back_by_its_predecessor(fleet: Fleet) -> None:
    """Giving back a place that somebody else has by now changes nothing."""
    circuits = CircuitStore(fleet.alias)
    ended = circuits.take_lease(fleet.name, 1, 0, "ended", 60)
    fleet.advance(60.5)
    present = circuits.take_lease(fleet.name, 1, 0, "present", 60)
    assert isinstance(ended, Lease)
    assert isinstance(present, Lease)

    circuits.drop_lease(fleet.name, 1, ended)

    assert isinstance(circuits.take_lease(fleet.name, 1, 0, "third", 60), float)


def test_errors__are_a_ring(fleet: Fleet) -> None:
    """The newest are kept, the oldest go."""
    circuits = CircuitStore(fleet.alias)

    circuits.write_errors(fleet.name, [{"at": number} for number in range(keys.RING + 5)])

    stored = circuits.read([keys.errors_key(fleet.name)])[keys.errors_key(fleet.name)]
    assert [entry["at"] for entry in stored] == list(range(5, keys.RING + 5))


def _stored(circuits: CircuitStore, name: str, number: int) -> bool:
    key = keys.record_key(name, number)
    return key in circuits.read([key])
