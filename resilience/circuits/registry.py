"""The circuits of this process, and the way to those of all others.

One `Circuit` exists per name and process; breakers find it here. Circuits that only ran elsewhere are found through
the index in the cache, and can be read and operated all the same.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache

from resilience import conf
from resilience.circuits import config as configs
from resilience.circuits import stats
from resilience.circuits.circuit import Circuit
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.memory import GeneratedName, Memory
from resilience.circuits.store import CircuitStore, StoreUnavailableError
from resilience.exceptions import ResilienceError

if TYPE_CHECKING:
    from resilience.circuits.breaker import CircuitBreaker

__all__ = [
    "Survey",
    "UnknownCircuitError",
    "cache_aliases",
    "forget_circuits",
    "get_all_circuit_breaker_stats",
    "get_circuit_breaker",
    "get_circuit_breaker_stats",
]

logger = logging.getLogger("resilience.circuits")

_lock = RLock()
_breakers: weakref.WeakValueDictionary[str, CircuitBreaker] = weakref.WeakValueDictionary()
_circuits: weakref.WeakValueDictionary[str, Circuit] = weakref.WeakValueDictionary()
_stores: dict[str | None, CircuitStore] = {}
#: The key of the store of circuits with scope "process", which is no alias.
_PRIVATE = None
#: Cache objects that a child process inherited: kept, so that no destructor speaks on the parent's socket.
_inherited: list[BaseCache] = []


class UnknownCircuitError(ResilienceError, LookupError):
    """No process has used a circuit of this name, and the settings do not mention it.

    Args:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"There is no circuit {self.name!r}. Declare it with circuit_breaker({self.name!r}), or check the spelling."


def get_circuit_breaker(name: str) -> CircuitBreaker:
    """Return a breaker for a circuit that this process declared, the settings name, or any process has used.

    Args:
        name: The circuit's name.

    Raises:
        UnknownCircuitError: Nobody knows the name. Reading never creates a circuit.

    Example:
        >>> from resilience import circuit_breaker
        >>> @circuit_breaker("doc-mail")
        ... def send(): ...
        >>> get_circuit_breaker("doc-mail").name
        'doc-mail'
    """
    from resilience.circuits.breaker import CircuitBreaker

    with _lock:
        declared, circuit = _breakers.get(name), _circuits.get(name)
    if declared is not None:
        return declared
    if circuit is not None:
        # The latest breaker of that name is gone, an earlier one is alive.
        return CircuitBreaker(name, circuit.config, declared_in=circuit.declared_in)
    if name in conf.current().circuits:
        return CircuitBreaker(name)
    entry = _index(_store(conf.current().cache)).get(name)
    if entry is None:
        raise UnknownCircuitError(name)
    return CircuitBreaker(name, declared_in=entry["declared_in"], **stats.restore_fields(entry["config"]))


def get_circuit_breaker_stats(name: str) -> dict[str, Any]:
    """Return what is known about one circuit; see `CircuitBreaker.get_stats`.

    Raises:
        UnknownCircuitError: Nobody knows the name.

    Example:
        >>> from resilience import circuit_breaker
        >>> @circuit_breaker("doc-search")
        ... def search(): ...
        >>> get_circuit_breaker_stats("doc-search")["state"]
        'closed'
    """
    return get_circuit_breaker(name).get_stats()


def get_all_circuit_breaker_stats(names: Iterable[str] | None = None, *, history: bool = True) -> dict[str, dict[str, Any]]:
    """Return the statistics of all circuits that any process has used or this one declared, by name.

    A few cache operations, however many circuits there are. While the cache is away, what this process knows.

    Args:
        names: Only these; unknown ones are left out.
        history: False leaves out older transitions and failures, which makes a list of a thousand twice as quick.

    Example:
        >>> isinstance(get_all_circuit_breaker_stats(), dict)
        True
    """
    return Survey().tell(names, stats.Detail.HISTORY if history else stats.Detail.COUNTS)


class Survey:
    """The circuits that are known at one moment: the index is read once, and each may be told about more than once.

    Args:
        planned: Names to tell about even if nobody has used them yet.
    """

    def __init__(self, planned: Iterable[str] = ()) -> None:
        with _lock:
            own = {**_circuits, **{name: breaker.circuit for name, breaker in _breakers.items()}}
        self._places: dict[CircuitStore, dict[str, stats.Subject]] = {}
        for store in map(_store, cache_aliases()):
            self._places[store] = {name: stats.Subject.listed(name, entry, store.alias) for name, entry in _index(store).items()}
        for name, circuit in own.items():
            if circuit.store.is_private or circuit.store in self._places:
                for listed in self._places.values():
                    listed.pop(name, None)
                self._places.setdefault(circuit.store, {})[name] = stats.Subject.own(circuit)
        known = set().union(*self._places.values())
        for subject in (stats.Subject.planned(name) for name in planned if name not in known):
            self._places.setdefault(_store(subject.cache), {})[subject.name] = subject

    def tell(self, names: Iterable[str] | None = None, detail: stats.Detail = stats.Detail.HISTORY) -> dict[str, dict[str, Any]]:
        """Return the statistics by name, in the order of the names.

        Args:
            names: Only these; unknown ones are left out.
            detail: How much of them.
        """
        wanted = None if names is None else set(names)
        found: dict[str, dict[str, Any]] = {}
        for store, subjects in self._places.items():
            chosen = [subject for name, subject in subjects.items() if wanted is None or name in wanted]
            found.update(stats.collect(store, chosen, detail))
        return dict(sorted(found.items()))

    def alias_of(self, name: str) -> str:
        """Return the cache that a circuit is in; of an unknown one, and of one that is this process's alone, ""."""
        for store, subjects in self._places.items():
            if name in subjects:
                return "" if store.is_private else store.alias
        return ""


def forget_circuits() -> None:
    """Drop all that this process knows about circuits, for tests: the next call reads the cache again."""
    with _lock:
        for circuit in list(_circuits.values()):
            circuit.start_over()
        for store in _all_stores():
            store.start_over()
            if store.private is not None:
                store.private.clear()


def cache_aliases() -> list[str]:
    """Return the caches in which this process's circuits and those of the settings are, by alias."""
    with _lock:
        circuits = [*_circuits.values(), *(breaker.circuit for breaker in _breakers.values())]
    settings = conf.current()
    named = (values.get("cache") for values in (settings.circuit, *settings.circuits.values()))
    own = (circuit.store.alias for circuit in circuits if not circuit.store.is_private)
    return sorted({settings.cache, *own, *(str(alias) for alias in named if alias)})


def declare(breaker: CircuitBreaker) -> None:
    """List a breaker, so that people see circuits that were never called. Reads no settings."""
    with _lock:
        _breakers[breaker.name] = breaker


def find_circuit(name: str, config: CircuitBreakerConfig, sender: type, declared_in: str, *, explicit: bool) -> Circuit:
    """Return this process's circuit of that name, made if need be.

    Args:
        name: The circuit's name.
        config: The configuration in force for the breaker that asks.
        sender: Sender of the signals.
        declared_in: Where the breaker stands in the code.
        explicit: Whether the breaker was given values of its own, which then hold for the circuit.
    """
    with _lock:
        circuit = _circuits.get(name)
        if circuit is None:
            circuit = _circuits[name] = Circuit(name, _store_for(name, config), config, declared_in, sender)
        elif circuit.config_is_stale or (explicit and configs.disagree(circuit.config, config)):
            if not circuit.config_is_stale:
                logger.warning(
                    "Circuit %r is declared twice, with different values; the latest hold.", name, extra={"circuit": name}
                )
            store = circuit.store if isinstance(name, GeneratedName) else _store_for(name, config)
            circuit.redeclare(config, declared_in, store)
        return circuit


def _store_for(name: str, config: CircuitBreakerConfig) -> CircuitStore:
    if isinstance(name, GeneratedName):
        # Nobody else will ever ask for it: what is kept of it goes with it.
        return CircuitStore("memory", Memory())
    return _private_store() if config.scope == "process" else _store(config.cache or conf.current().cache)


def _store(alias: str) -> CircuitStore:
    with _lock:
        if alias not in _stores:
            _stores[alias] = CircuitStore(alias)
        return _stores[alias]


def _private_store() -> CircuitStore:
    """Return the store of circuits with scope "process": memory of this process, in the form of a cache."""
    with _lock:
        if _PRIVATE not in _stores:
            _stores[_PRIVATE] = CircuitStore("memory", Memory())
        return _stores[_PRIVATE]


def _all_stores() -> set[CircuitStore]:
    return {*_stores.values(), *(circuit.store for circuit in list(_circuits.values()))}


def _index(store: CircuitStore) -> Mapping[str, Mapping[str, Any]]:
    try:
        return store.read_index()
    except StoreUnavailableError:
        return {}


def _settings_changed() -> None:
    with _lock:
        for circuit in list(_circuits.values()):
            circuit.settings_changed()


def _after_fork() -> None:
    """Give a child process locks and connections of its own; the parent's unsent counts are the parent's to send."""
    global _lock
    _lock = RLock()
    for store in _all_stores():
        store.start_over()
        if store.is_private:
            # The parent's memory may be locked by a thread that the child does not have.
            store.private = Memory()
            continue
        with suppress(Exception):  # an alias that settings no longer have
            _inherited.append(caches[store.alias])
            del caches[store.alias]
    for circuit in list(_circuits.values()):
        circuit.forget()


conf.on_change(_settings_changed)
os.register_at_fork(after_in_child=_after_fork)
