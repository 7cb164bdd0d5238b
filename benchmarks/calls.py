"""What a retry costs: against a bare wrapper, and beside tenacity, stamina, backon and redress.

Run `python -m benchmarks.calls [--json FILE] [--quick] [--check]`. Each figure is the best of several rounds that take
turns, so that a busy machine slows all of them alike. `--check` exits with 1 when a target is missed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from django.conf import settings

if not settings.configured:
    settings.configure(RESILIENCE={}, CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}})

import backon
import redress
import redress.strategies
import stamina
import tenacity
from stamina.instrumentation import set_on_retry_hooks

from benchmarks.common import Target, ending, parser_of
from resilience import CircuitBreakerConfig, Policy, RetryBudget, async_retry, classify, retry, timeout

Sync = Callable[[int], int]
Async = Callable[[int], Awaitable[int]]


def add_one(number: int) -> int:
    return number + 1


async def add_one_later(number: int) -> int:
    return number + 1


def bare(func: Sync) -> Sync:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        return func(*args, **kwargs)

    return wrapper


def bare_async(func: Async) -> Async:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> int:
        return await func(*args, **kwargs)

    return wrapper


class FailsOnce:
    """Fails on every other call."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self, number: int) -> int:
        self.fails = not self.fails
        if self.fails:
            raise ConnectionError
        return number + 1


def sync_cases() -> dict[str, Sync]:
    """Wrappers of a function that succeeds."""
    circuit = CircuitBreakerConfig(scope="process")
    return {
        "no wrapper": add_one,
        "bare functools.wraps": bare(add_one),
        "resilience retry": retry(max_attempts=3)(add_one),
        "resilience retry + budget": retry(max_attempts=3, budget=RetryBudget())(add_one),
        "resilience retry + deadline": retry(max_attempts=3, deadline=30)(add_one),
        "resilience policy (retry, in-process circuit)": Policy("benchmark", retry={"max_attempts": 3}, circuit=circuit)(add_one),
        "resilience timeout (main thread)": timeout(30)(add_one),
        "resilience policy (retry, circuit, timeout)": Policy(
            "benchmark limit", retry={"max_attempts": 3}, circuit=circuit, timeout=30
        )(add_one),
        "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential())(add_one),
        "stamina": stamina.retry(on=Exception, attempts=3)(add_one),
        "backon": backon.on_exception(backon.expo, Exception, max_tries=3)(add_one),
        "redress": redress.retry(add_one),
    }


def async_cases() -> dict[str, Async]:
    """Wrappers of a coroutine function that succeeds."""
    return {
        "no wrapper": add_one_later,
        "bare functools.wraps": bare_async(add_one_later),
        "resilience retry": retry(max_attempts=3)(add_one_later),
        "resilience async_retry": async_retry(max_attempts=3)(add_one_later),
        "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential())(add_one_later),
        "stamina": stamina.retry(on=Exception, attempts=3)(add_one_later),
        "backon": backon.on_exception(backon.expo, Exception, max_tries=3)(add_one_later),
    }


def failing_cases() -> dict[str, Sync]:
    """One failing attempt, no wait, one that succeeds."""
    set_on_retry_hooks(())
    quick = redress.Retry(classifier=redress.default_classifier, strategy=lambda _context: 0.0, max_attempts=3, deadline_s=60)
    fails_once = FailsOnce()

    def through_redress(number: int) -> int:
        return quick.call(lambda: fails_once(number))

    return {
        "resilience retry": retry(max_attempts=3, delay=0)(FailsOnce()),
        "resilience retry, exceptions=(Exception,)": retry(max_attempts=3, delay=0, exceptions=Exception)(FailsOnce()),
        "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())(FailsOnce().__call__),
        # The others ask the system to sleep for 0 s, which costs more than all the rest; without it the comparison is harder.
        "tenacity, its sleep taken out": tenacity.retry(
            stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), sleep=lambda _seconds: None
        )(FailsOnce().__call__),
        "stamina": stamina.retry(on=Exception, attempts=3, wait_initial=0, wait_jitter=0)(FailsOnce().__call__),
        "redress": through_redress,
    }


def time_sync(func: Sync, calls: int) -> float:
    started = time.perf_counter()
    for number in range(calls):
        func(number)
    return (time.perf_counter() - started) / calls


def time_async(func: Async, calls: int) -> float:
    async def run() -> float:
        started = time.perf_counter()
        for number in range(calls):
            await func(number)
        return (time.perf_counter() - started) / calls

    return asyncio.run(run())


def best(cases: dict[str, Any], timer: Callable[[Any, int], float], calls: int, rounds: int) -> dict[str, float]:
    """Return the best time of each case, in seconds a call; the cases take turns."""
    times: dict[str, float] = {}
    for func in cases.values():
        timer(func, 10)
    for _ in range(rounds):
        for name, func in cases.items():
            times[name] = min(times.get(name, float("inf")), timer(func, calls))
    return times


def measure(quick: bool) -> dict[str, dict[str, float]]:
    calls, rounds = (2_000, 3) if quick else (20_000, 7)
    errors = {"classify(ConnectionError)": ConnectionError(), "classify(unknown)": RuntimeError("unknown")}
    return {
        "sync, no failure": best(sync_cases(), time_sync, calls, rounds),
        "async, no failure": best(async_cases(), time_async, calls, rounds),
        "one failing attempt, no wait": best(failing_cases(), time_sync, calls // 10, rounds),
        "classify": best(
            {name: functools.partial(_classified, error) for name, error in errors.items()}, time_sync, calls // 10, rounds
        ),
    }


def _classified(error: Exception, number: int) -> None:
    classify(error)


def targets(figures: dict[str, dict[str, float]]) -> list[Target]:
    """Hold the figures against the promises."""
    found = [
        Target("sync, no failure", "resilience retry", "bare functools.wraps", 3.0),
        Target("async, no failure", "resilience retry", "bare functools.wraps", 2.0),
        Target("sync, no failure", "resilience retry", "tenacity", 1 / 20),
        Target("sync, no failure", "resilience retry", "stamina", 1 / 20),
        *(
            Target("sync, no failure", "resilience policy (retry, in-process circuit)", peer, 1.0)
            for peer in ("tenacity", "stamina", "backon", "redress")
        ),
        Target("one failing attempt, no wait", "resilience retry", "tenacity, its sleep taken out", 1.0),
    ]
    for target in found:
        times = figures[target.name]
        target.ratio = times[target.measured] / times[target.reference]
    return found


def report(figures: dict[str, dict[str, float]], found: list[Target]) -> None:
    for title, times in figures.items():
        reference = times.get("bare functools.wraps") or next(iter(times.values()))
        print(f"\n{title}")
        for name, seconds in times.items():
            print(f"  {name:<48}{seconds * 1e9:>12,.0f} ns {seconds / reference:>8.2f}x")
    print("\ntargets (ratio measured / limit)")
    for target in found:
        verdict = "holds" if target.holds else "MISSED"
        print(f"  {verdict:<7}{target.ratio:>9.4f} / {target.limit:<7.3g}{target.name}: {target.measured} to {target.reference}")


def main(arguments: list[str] | None = None) -> int:
    options = parser_of(__doc__).parse_args(arguments)
    for name in ("stamina", "backon", "redress", "resilience"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    figures = measure(options.quick)
    found = targets(figures)
    report(figures, found)
    return ending(options, {"seconds": figures, "targets": [asdict(target) for target in found]}, found)


if __name__ == "__main__":
    sys.exit(main())
