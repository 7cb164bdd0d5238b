"""Retry budgets that several processes share through a real cache server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resilience import clock
from resilience.calls.budgets import RetryBudget

PROCESSES = 3
PER_SECOND = 5

#: A process of the fleet: withdraws as often as it can for as long as the budget's window lasts.
MEMBER = """
import sys, time
from django.conf import settings
backend, location, at = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings.configure(RESILIENCE={}, CACHES={"default": {"BACKEND": backend, "LOCATION": location}})
from resilience.calls.budgets import RetryBudget
budget = RetryBudget(min_per_second=int(sys.argv[4]), name="fleet", shared=True)
time.sleep(max(0, at - time.time()))
print(sum(budget.withdraw() for _ in range(500)))
"""

BACKENDS = {
    "redis": ("django.core.cache.backends.redis.RedisCache", "redis://127.0.0.1:{port}"),
    "memcached": ("django.core.cache.backends.memcached.PyMemcacheCache", "127.0.0.1:{port}"),
}


@pytest.fixture(params=sorted(BACKENDS))
def server(request):
    """A cache server of each kind."""
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def cache(server):
    """Backend and location of the server."""
    backend, location = BACKENDS[server.name]
    return backend, location.format(port=server.port)


def test_shared_budget__a_fleet_has_one_reserve_on_a_real_cache(cache):
    """Three processes that want 1,500 retries at once get, together, one window's reserve, or two at a window's edge."""
    window = 4  # seconds: at most 20 retries at once
    quota = PER_SECOND * window
    at = (clock.time() + 8) // window * window + 0.2
    command = [sys.executable, "-c", MEMBER, *cache, str(at), str(PER_SECOND)]

    fleet = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    taken = [int(member.communicate(timeout=60)[0]) for member in fleet]

    assert quota <= sum(taken) <= 2 * quota < PROCESSES * quota


def test_shared_budget__survives_the_cache_server(server, cache, settings, caplog):
    """When the server is gone, this process's own reserve serves, and that is told once."""
    backend, location = cache
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": location}}
    budget = RetryBudget(min_per_second=PER_SECOND, name="orphan", shared=True)
    before = budget.withdraw()

    server.stop()
    try:
        taken = sum(budget.withdraw() for _ in range(100))
    finally:
        server.start()

    assert before
    assert 1 <= taken <= 20
    assert len([record for record in caplog.records if "orphan" in record.getMessage()]) == 1
