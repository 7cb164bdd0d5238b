"""System checks of the circuits: what the cache behind them cannot keep, told before the first outage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004  # Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router

from resilience import conf
from resilience.circuits import config as configs

__all__ = ["KEYS_PER_CIRCUIT", "check_circuit_cache", "check_circuits"]

#: Keys that one circuit in use has in the cache at a time: head, two buckets of each kind, errors, history.
KEYS_PER_CIRCUIT = 10


@register("resilience")
def check_circuits(**kwargs: Any) -> list[CheckMessage]:
    """Judge the values in RESILIENCE["CIRCUIT"] and RESILIENCE["CIRCUITS"] (E004)."""
    if conf.problems(getattr(settings, "RESILIENCE", {})):
        return []
    found: list[CheckMessage] = []
    for name in ["", *conf.current().circuits]:
        if problem := _problem_with(name):
            place = f"RESILIENCE['CIRCUITS'][{name!r}]" if name else "RESILIENCE['CIRCUIT']"
            names = ", ".join(["enabled", *(definition.name for definition in fields(configs.CircuitBreakerConfig))])
            hint = f"The fields are {names}; see docs/circuits.md."
            found.append(Error(f"{place} is wrong: {problem}", hint=hint, id="resilience.E004"))
            if not name:
                # Every circuit inherits it: once is enough.
                break
    return found


def _problem_with(name: str) -> str:
    """Say what is wrong with the values of a circuit, or with those of all for ""."""
    current = conf.current()
    enabled = (current.circuits[name] if name else current.circuit).get("enabled", True)
    if not isinstance(enabled, bool):
        return f"enabled must be True or False, not {enabled!r}."
    try:
        configs.resolve(name, None, {})
    except ImproperlyConfigured as error:
        return str(error.__cause__ or error)
    return ""


@register("resilience")
def check_circuit_cache(**kwargs: Any) -> list[CheckMessage]:
    """Judge the cache that the circuits share (W001 to W006, W011 and W012)."""
    if conf.problems(getattr(settings, "RESILIENCE", {})) or check_circuits():
        return []
    found: list[CheckMessage] = []
    current = conf.current()
    aliases = {current.cache, *(str(values["cache"]) for values in current.circuits.values() if values.get("cache"))}
    for alias in sorted(aliases & set(settings.CACHES)):
        cache = caches[alias]
        for number, message, hint in _weaknesses(alias, cache):
            found.append(Warning(message, hint=hint, id=f"resilience.W{number:03}"))
    return found


def _weaknesses(alias: str, cache: BaseCache) -> Iterator[tuple[int, str, str]]:
    advice = 'Name an alias with Redis or Memcached in RESILIENCE["CACHE"].'
    if isinstance(cache, (LocMemCache, DummyCache)):
        kind = "keeps nothing" if isinstance(cache, DummyCache) else "belongs to one process"
        yield 1, f"The cache {alias!r} of the circuits {kind}: each process has its own circuits.", advice
    if isinstance(cache, (FileBasedCache, BaseDatabaseCache)):
        yield 2, f"The cache {alias!r} of the circuits has no atomic counters: some failures may not be counted.", advice
    if isinstance(cache, BaseDatabaseCache):
        yield from _shared_database(alias, cache, advice)
    if isinstance(cache, (LocMemCache, FileBasedCache, BaseDatabaseCache)):
        needed = KEYS_PER_CIRCUIT * max(len(conf.current().circuits), 1)
        limit = int(getattr(cache, "_max_entries", needed))
        if limit < needed:
            message = f"The cache {alias!r} keeps {limit} entries, and the declared circuits need about {needed}."
            yield 4, message, f"Set OPTIONS['MAX_ENTRIES'] of the cache {alias!r} to {needed * 10} or more."
    yield from _shared_alias(alias)
    yield from _short_times(alias, cache)
    yield from _slow_to_give_up(alias, cache)
    yield from _swallows_errors(alias)


def _shared_database(alias: str, cache: BaseDatabaseCache, advice: str) -> Iterator[tuple[int, str, str]]:
    database = router.db_for_write(cache.cache_model_class)
    connection = connections[database]
    if database != DEFAULT_DB_ALIAS and not connection.settings_dict["ATOMIC_REQUESTS"]:
        return
    if connection.vendor == "sqlite":
        effect = "what happens inside a transaction is shared only after it"
    else:
        effect = "each look from inside a transaction opens a connection"
    yield 3, f"The cache {alias!r} of the circuits lives in the database {database!r} that requests use: {effect}.", advice


def _shared_alias(alias: str) -> Iterator[tuple[int, str, str]]:
    users = []
    if "cache" in settings.SESSION_ENGINE and alias == settings.SESSION_CACHE_ALIAS:
        users.append("sessions")
    if any("CacheMiddleware" in path for path in settings.MIDDLEWARE) and alias == settings.CACHE_MIDDLEWARE_ALIAS:
        users.append("pages")
    if users:
        message = f"The cache {alias!r} of the circuits also holds {' and '.join(users)}: clearing it resets every circuit."
        yield 5, message, 'Name an alias of its own in RESILIENCE["CACHE"]; another KEY_PREFIX on the same server is not enough.'


def _short_times(alias: str, cache: BaseCache) -> Iterator[tuple[int, str, str]]:
    if isinstance(cache, (LocMemCache, DummyCache)):
        return
    current = conf.current()
    for name in ["", *current.circuits]:
        config = configs.resolve(name, None, {})
        shortest = min(config.recovery_timeout, config.half_open_timeout)
        if shortest < 1 and config.cache == alias:
            place = f"circuit {name!r}" if name else "RESILIENCE['CIRCUIT']"
            message = f"{place} waits {shortest:g} s, and caches keep times in whole seconds: clocks of hosts differ by as much."
            yield 6, message, "Use 1 second or more for recovery_timeout and half_open_timeout."


def _swallows_errors(alias: str) -> Iterator[tuple[int, str, str]]:
    entry: Any = settings.CACHES[alias]
    options = entry.get("OPTIONS", {})
    by_default = "django_redis" in entry["BACKEND"] and getattr(settings, "DJANGO_REDIS_IGNORE_EXCEPTIONS", False)
    for name, default in (("IGNORE_EXCEPTIONS", by_default), ("ignore_exc", False)):
        if options.get(name, default):
            message = f"The cache {alias!r} of the circuits swallows its errors: an outage is not told, and costs several waits."
            yield 12, message, f"Use an alias without OPTIONS[{name!r}] for the circuits: they handle an absent cache themselves."
            return


def _slow_to_give_up(alias: str, cache: BaseCache) -> Iterator[tuple[int, str, str]]:
    if not isinstance(cache, RedisCache):
        return
    entry: Any = settings.CACHES[alias]
    options = entry.get("OPTIONS", {})
    if options.get("socket_timeout") is None or "retry" not in options:
        message = (
            f"The cache {alias!r} of the circuits waits long for a Redis that hangs: the driver's own time limit, several times."
        )
        hint = 'Set OPTIONS["socket_timeout"] and ["socket_connect_timeout"] to 0.5 or less, and ["retry"] as docs/circuits.md shows.'
        yield 11, message, hint
