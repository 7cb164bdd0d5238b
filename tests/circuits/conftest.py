from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.core.cache import caches
from django.core.management import call_command

from resilience import CircuitBreaker, CircuitOpenError, clock
from resilience.circuits.circuit import Circuit
from resilience.circuits.store import CircuitStore

_names = itertools.count()

BACKENDS = ["locmem", "redis", "django_redis", "memcached", "database"]
#: Its constructor asks a None for a key, which Python 3.13 tells.
PYLIBMC = pytest.param(
    "pylibmc",
    marks=pytest.mark.filterwarnings(
        "ignore:Exception ignored in PyMapping_HasKeyString:pytest.PytestUnraisableExceptionWarning"
    ),
)


class FakeClock:
    """Both clocks of the app, moved by hand. Starts now, so that real caches agree about what has expired."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._time, self._monotonic = clock.time, clock.monotonic
        # Whole, so that adding and subtracting whole seconds is exact wherever the machine's clock stands.
        self._wall, self._mono = self._time(), float(int(self._monotonic()))

    def advance(self, seconds: float) -> None:
        self.offset += seconds

    def time(self) -> float:
        return self._wall + self.offset

    def monotonic(self) -> float:
        return self._mono + self.offset


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(clock, "time", fake.time)
    monkeypatch.setattr(clock, "monotonic", fake.monotonic)
    return fake


class ServiceError(Exception):
    """What the guarded service raises."""


class MinorError(ServiceError):
    """What does not count."""


@dataclass
class Fleet:
    """Breakers of one circuit that know of each other only through the cache, as processes do."""

    alias: str
    clock: FakeClock
    name: str = field(default_factory=lambda: f"circuit-{next(_names)}")
    events: list[str] = field(default_factory=list)

    def member(self, **fields: Any) -> CircuitBreaker:
        """Return a breaker with a view and a store of its own."""
        fields = {"cache": self.alias, "recovery_timeout": 10.0, **self.callbacks(), **fields}
        breaker = CircuitBreaker(self.name, **fields)
        breaker._prepare()
        breaker._circuit = Circuit(self.name, CircuitStore(self.alias), breaker.config, "tests", CircuitBreaker)
        return breaker

    def callbacks(self) -> dict[str, Callable[[], None]]:
        return {f"on_{event}": lambda event=event: self.events.append(event) for event in ("open", "close", "half_open")}

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


def succeed(breaker: CircuitBreaker, times: int = 1, value: object = "fine") -> object:
    results = [breaker.call(lambda: value) for _ in range(times)]
    return results[-1]


def fail(breaker: CircuitBreaker, times: int = 1, error: type[BaseException] = ServiceError) -> None:
    def service() -> None:
        raise error("broken")

    for _ in range(times):
        with pytest.raises(error):
            breaker.call(service)


def is_refused(breaker: CircuitBreaker) -> bool:
    try:
        breaker.call(lambda: None)
    except CircuitOpenError:
        return True
    return False


@pytest.fixture(params=[*BACKENDS, PYLIBMC])
def alias(request: pytest.FixtureRequest, settings: Any) -> Iterator[str]:
    """An alias of each backend that circuits promise to work on."""
    options: dict[str, Any] = {"TIMEOUT": 300}
    if request.param == "locmem":
        options |= {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "circuits"}
    elif request.param == "redis":
        server = request.getfixturevalue("redis_server")
        options |= {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": server.url}
    elif request.param == "django_redis":
        server = request.getfixturevalue("redis_server")
        options |= {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": server.url.replace("/0", "/1")}
    elif request.param == "memcached":
        server = request.getfixturevalue("memcached_server")
        options |= {"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache", "LOCATION": server.location}
    elif request.param == "pylibmc":
        pytest.importorskip("pylibmc", reason="pylibmc is not installed; it needs libmemcached's headers")
        server = request.getfixturevalue("memcached_server")
        options |= {"BACKEND": "django.core.cache.backends.memcached.PyLibMCCache", "LOCATION": server.location}
    else:
        request.getfixturevalue("db")
        options |= {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "circuits"}
    settings.CACHES = {
        **settings.CACHES,
        "circuits": {**options, "OPTIONS": {"MAX_ENTRIES": 100_000} if request.param in {"locmem", "database"} else {}},
    }
    if request.param == "database":
        call_command("createcachetable", verbosity=0)
    caches["circuits"].clear()
    yield "circuits"
    caches["circuits"].close()


@pytest.fixture
def fleet(alias: str, fake_clock: FakeClock) -> Fleet:
    return Fleet(alias, fake_clock)


@pytest.fixture
def local_fleet(settings: Any, fake_clock: FakeClock) -> Fleet:
    """A fleet on the memory of this process, for what does not depend on the backend."""
    return Fleet("default", fake_clock)
