from __future__ import annotations

from typing import Any

import pytest
from django.core.cache.backends.locmem import LocMemCache

from resilience import CircuitBreaker, CircuitOpenError
from resilience.circuits.checks import check_circuit_cache, check_circuits

BACKENDS = "django.core.cache.backends."
QUICK = {"socket_timeout": 0.25, "retry": None}


class WrappedLocMemCache(LocMemCache):
    """What metrics packages put in its place."""


def ids(settings: Any, backend: str, resilience: dict[str, Any] | None = None, **cache: Any) -> list[str]:
    settings.CACHES = {
        "default": {"BACKEND": backend, "LOCATION": "redis://127.0.0.1:1/0" if "redis" in backend else "x", **cache}
    }
    settings.RESILIENCE = resilience or {}
    return [str(message.id).removeprefix("resilience.") for message in check_circuit_cache()]


def test_check__redis_with_short_timeouts_is_fine(settings: Any) -> None:
    """No warning for what the docs recommend, and no connection is made."""
    assert ids(settings, BACKENDS + "redis.RedisCache", OPTIONS=QUICK) == []


@pytest.mark.parametrize(
    "backend",
    [BACKENDS + "locmem.LocMemCache", BACKENDS + "dummy.DummyCache", f"{__name__}.WrappedLocMemCache"],
)
def test_check__w001_cache_of_one_process(settings: Any, backend: str) -> None:
    """By the object's class, so that wrappers are found too."""
    assert ids(settings, backend) == ["W001"]


def test_check__w002_no_atomic_counters(settings: Any, tmp_path: Any) -> None:
    """Files and databases lose counts between processes."""
    assert ids(settings, BACKENDS + "filebased.FileBasedCache", LOCATION=str(tmp_path)) == ["W002"]


def test_check__w003_cache_in_the_guarded_database(settings: Any) -> None:
    """A database cache in the default database says what transactions do to it."""
    assert ids(settings, BACKENDS + "db.DatabaseCache") == ["W002", "W003"]


def test_check__w004_cache_too_small(settings: Any) -> None:
    """300 entries are too few for 100 circuits."""
    circuits = {"CIRCUITS": {f"circuit-{number}": {} for number in range(100)}}

    assert ids(settings, BACKENDS + "locmem.LocMemCache", circuits) == ["W001", "W004"]
    assert ids(settings, BACKENDS + "locmem.LocMemCache", circuits, OPTIONS={"MAX_ENTRIES": 100_000}) == ["W001"]


def test_check__w005_cache_shared_with_sessions(settings: Any) -> None:
    """Whoever clears the sessions resets the circuits."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"

    assert ids(settings, BACKENDS + "redis.RedisCache", OPTIONS=QUICK) == ["W005"]


def test_check__w006_times_below_a_second(settings: Any) -> None:
    """Caches count whole seconds."""
    resilience = {"CIRCUITS": {"fast": {"recovery_timeout": 0.5}}}

    assert ids(settings, BACKENDS + "redis.RedisCache", resilience, OPTIONS=QUICK) == ["W006"]


def test_check__w011_redis_that_may_hang(settings: Any) -> None:
    """The driver's defaults wait for a frozen server many times over."""
    assert ids(settings, BACKENDS + "redis.RedisCache") == ["W011"]


def test_check__e004_wrong_fields(settings: Any) -> None:
    """A wrong field in settings is an error at start, named with its circuit."""
    settings.RESILIENCE = {"CIRCUITS": {"payments": {"failure_threshold": 0}, "fine": {}}}

    messages = check_circuits()

    assert [message.id for message in messages] == ["resilience.E004"]
    assert "RESILIENCE['CIRCUITS']['payments']" in messages[0].msg
    settings.RESILIENCE = {"CIRCUIT": {"failure_limit": 3}}
    (unknown,) = check_circuits()
    assert unknown.id == "resilience.E004"
    assert unknown.hint is not None
    assert "failure_threshold" in unknown.hint


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"CIRCUIT": {"enabled": "no"}}, "RESILIENCE['CIRCUIT']"),
        ({"CIRCUITS": {"payments": {"enabled": "no"}}}, "RESILIENCE['CIRCUITS']['payments']"),
    ],
)
def test_check__e004_a_switch_that_is_no_switch(settings: Any, section: dict[str, Any], place: str) -> None:
    """The word no is a text and so true: it would leave on what somebody meant to switch off."""
    settings.RESILIENCE = section

    (message,) = check_circuits()

    assert message.id == "resilience.E004"
    assert message.msg == f"{place} is wrong: enabled must be True or False, not 'no'."


@pytest.mark.parametrize("name", ["payments", "search"])
def test_enabled__of_one_circuit_leaves_the_others_alone(settings: Any, name: str) -> None:
    """`enabled: False` in CIRCUITS switches off the circuit it stands under, and no other."""
    settings.RESILIENCE = {"CIRCUITS": {"payments": {"enabled": False}}}
    breaker = CircuitBreaker(name, failure_threshold=1)

    for _ in range(2):
        with pytest.raises((ConnectionError, CircuitOpenError)) as caught:
            breaker.call(_refuse)

    assert isinstance(caught.value, ConnectionError) is (name == "payments")


def _refuse() -> None:
    raise ConnectionRefusedError


@pytest.mark.parametrize(
    ("backend", "option"),
    [("django_redis.cache.RedisCache", "IGNORE_EXCEPTIONS"), (BACKENDS + "memcached.PyMemcacheCache", "ignore_exc")],
)
def test_check__w012_cache_that_swallows_its_errors(settings: Any, backend: str, option: str) -> None:
    """What hides an outage from callers hides it from the circuits too."""
    assert ids(settings, backend, OPTIONS={option: True}) == ["W012"]
    assert ids(settings, backend, OPTIONS={option: False}) == []
    settings.DJANGO_REDIS_IGNORE_EXCEPTIONS = True
    assert ids(settings, backend) == (["W012"] if option.isupper() else [])
