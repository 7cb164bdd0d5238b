"""What a circuit costs: against a bare wrapper and one Redis GET, beside pybreaker, circuitbreaker, purgatory, interlock.

Run `python -m benchmarks.circuits [--json FILE] [--quick] [--check]`. It starts a Redis of its own. Each figure is the best
of several rounds that take turns, so that a busy machine slows all of them alike. `--check` exits with 1 when a target is
missed.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import circuitbreaker
import interlock
import purgatory
import pybreaker
import redis
from django.conf import settings

from benchmarks.common import Target, ending, parser_of
from tests.servers import Redis

Call = Callable[[], object]
FAR = 1_000_000_000


class DownError(Exception):
    """What the service raises."""


def fine() -> int:
    return 1


def down() -> None:
    raise DownError


def bare(func: Call) -> Call:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> object:
        return func(*args, **kwargs)

    return wrapper


def breakers(url: str, client: redis.Redis) -> dict[str, Callable[[str, int], Callable[[Call], Call]]]:
    """Return a maker of decorators for each library: name of the circuit, failures that open it."""
    from resilience import CircuitBreaker

    def pybreaker_redis(name: str, limit: int) -> Any:
        storage = pybreaker.CircuitRedisStorage("closed", client, namespace=name)
        return pybreaker.CircuitBreaker(fail_max=limit, reset_timeout=3600, state_storage=storage)

    def purgatory_memory(name: str, limit: int) -> Any:
        return purgatory.SyncCircuitBreakerFactory(default_threshold=limit, default_ttl=3600)(name)

    def interlock_memory(name: str, limit: int) -> Any:
        calls = 1 if limit == 1 else 100
        config = interlock.Config(minimum_number_of_calls=calls, window_size=100, wait_duration_in_open=3600)
        return interlock.CircuitBreaker(name=name, config=config)

    return {
        "resilience + Redis": lambda name, limit: CircuitBreaker(name, failure_threshold=limit, recovery_timeout=3600),
        "interlock (memory)": interlock_memory,
        "pybreaker (memory)": lambda _, limit: pybreaker.CircuitBreaker(fail_max=limit, reset_timeout=3600),
        "circuitbreaker (memory)": lambda name, limit: circuitbreaker.CircuitBreaker(
            failure_threshold=limit, recovery_timeout=3600, name=name
        ),
        "purgatory (memory)": purgatory_memory,
        "pybreaker + Redis": pybreaker_redis,
    }


def subjects(url: str, client: redis.Redis) -> dict[str, dict[str, tuple[Call, int]]]:
    """Return what to measure: group, name, function and how many calls one round makes."""
    made = breakers(url, client)
    success: dict[str, tuple[Call, int]] = {"bare wrapper": (bare(fine), 20_000)}
    mixed: dict[str, tuple[Call, int]] = {"bare wrapper": (ten_percent(bare(fine), bare(down)), 2_000)}
    refused: dict[str, tuple[Call, int]] = {}
    for name, make in made.items():
        calls = 300 if "+ Redis" in name and "resilience" not in name else 20_000
        success[name] = (make("success", FAR)(fine), calls)
        breaker = make("mixed", FAR)
        mixed[name] = (ten_percent(breaker(fine), breaker(down)), max(calls // 10, 100))
        rejecting = make("refused", 1)(down)
        for _ in range(3):
            with suppress(Exception):
                rejecting()
        refused[name] = (refusal(rejecting), max(calls // 10, 100))
    success["one Redis GET"] = (lambda: client.get("nothing"), 300)
    return {"success, closed": success, "refused, open": refused, "10 % failures, closed (10 calls)": mixed}


def ten_percent(good: Call, bad: Call) -> Call:
    def ten() -> None:
        for _ in range(9):
            good()
        with suppress(DownError):
            bad()

    return ten


def refusal(func: Call) -> Call:
    def refused() -> None:
        try:
            func()
        except DownError:
            raise AssertionError("not refused") from None
        except Exception:
            return

    return refused


def measure(group: dict[str, tuple[Call, int]], rounds: int, share: float) -> dict[str, float]:
    """Return the seconds of one call, best of all rounds."""
    best = dict.fromkeys(group, float("inf"))
    for _ in range(rounds):
        for name, (call, number) in group.items():
            repeats = max(int(number * share), 20)
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / repeats)
    return best


TARGETS = [
    ("a success costs at most 6 bare wrappers", "success, closed", "resilience + Redis", "bare wrapper", 6.0),
    ("less than interlock", "success, closed", "resilience + Redis", "interlock (memory)", 1.0),
    ("less than pybreaker in memory", "success, closed", "resilience + Redis", "pybreaker (memory)", 1.0),
    ("less than circuitbreaker", "success, closed", "resilience + Redis", "circuitbreaker (memory)", 1.0),
    ("less than purgatory", "success, closed", "resilience + Redis", "purgatory (memory)", 1.0),
    ("a 200th of pybreaker on Redis", "success, closed", "resilience + Redis", "pybreaker + Redis", 1 / 200),
    ("a refusal costs less than interlock's", "refused, open", "resilience + Redis", "interlock (memory)", 1.0),
    ("less than pybreaker's", "refused, open", "resilience + Redis", "pybreaker (memory)", 1.0),
    ("less than circuitbreaker's", "refused, open", "resilience + Redis", "circuitbreaker (memory)", 1.0),
    ("less than purgatory's", "refused, open", "resilience + Redis", "purgatory (memory)", 1.0),
    (
        "10 % failures: a tenth of pybreaker on Redis",
        "10 % failures, closed (10 calls)",
        "resilience + Redis",
        "pybreaker + Redis",
        1 / 10,
    ),
]


def count_operations(seconds: int) -> dict[str, float]:
    """Return the cache operations a process does each second for each circuit in use, measured on the cache object."""
    from django.core.cache import caches

    from resilience import CircuitBreaker

    counted: Counter[str] = Counter()
    cache = caches["default"]
    for name in ("get", "get_many", "set", "add", "incr", "delete"):
        original = getattr(cache, name)

        def counting(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            counted[_name] += 1
            return _original(*args, **kwargs)

        setattr(cache, name, counting)
    service = CircuitBreaker("counted")(fine)
    calls, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        service()
        calls += 1
    return {"calls": calls, "operations": counted.total(), "operations per second": counted.total() / seconds}


def main() -> int:
    options = parser_of(__doc__).parse_args()
    logging.disable(logging.CRITICAL)
    with Redis() as server:
        settings.configure(
            CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": server.url}}, RESILIENCE={}
        )
        with redis.Redis(port=server.port) as client:
            rounds, share = (4, 0.3) if options.quick else (12, 1.0)
            groups = {name: measure(group, rounds, share) for name, group in subjects(server.url, client).items()}
        operations = count_operations(2 if options.quick else 6)
    targets = [
        Target(name, f"{group}: {one}", other, limit, groups[group][one] / groups[group][other])
        for name, group, one, other, limit in TARGETS
    ]
    for group, figures in groups.items():
        print(f"\n{group}")
        reference = figures["resilience + Redis"]
        for name, value in sorted(figures.items(), key=lambda item: item[1]):
            print(f"  {name:26} {value * 1e9:12,.0f} ns   {value / reference:8.2f} x ours")
    print(f"\ncache operations: {operations['operations per second']:.1f} a second for each process and circuit in use")
    for target in targets:
        verdict = "holds " if target.holds else "MISSED"
        print(f"  {verdict} {target.name}: {target.ratio:.4f} (at most {target.limit:.4f})")
    measured = {"groups": groups, "operations": operations, "targets": [asdict(target) for target in targets]}
    return ending(options, measured, targets)


if __name__ == "__main__":
    sys.exit(main())
