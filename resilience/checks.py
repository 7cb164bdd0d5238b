"""System checks: what is wrong with the settings, told before the first call and not during an outage.

| id | meaning |
|---|---|
| resilience.E001 | RESILIENCE["CACHE"], or the `cache` of a circuit, names an alias that CACHES does not have |
| resilience.E002 | RESILIENCE has an unknown key or a value of the wrong type |
| resilience.E003 | RESILIENCE["RETRY"] has an unknown field or a wrong value |
| resilience.E004 | RESILIENCE["CIRCUIT"] or ["CIRCUITS"] has an unknown field or a value out of range |
| resilience.E005 | RESILIENCE["POLICIES"] has a policy with an unknown field or a wrong value |
| resilience.E006 | RESILIENCE["CHAOS"] has an unknown field or a wrong value |
| resilience.E007 | RESILIENCE["CHAOS"] injects faults although DEBUG is off, and does not say that it may |
| resilience.E008 | RESILIENCE["DASHBOARD"] has an unknown key or a wrong value |
| resilience.E010 | RESILIENCE["CLASSIFIERS"] names something that cannot be imported or called |
| resilience.E020 | RESILIENCE["RUNS"] has an unknown key or a wrong value |
| resilience.W001 | the circuits' cache belongs to one process, or keeps nothing |
| resilience.W002 | the circuits' cache has no atomic counters (files, database) |
| resilience.W003 | the circuits' cache lives in the database that requests use |
| resilience.W004 | the circuits' cache keeps fewer entries than the circuits need |
| resilience.W005 | the circuits' cache also holds sessions or pages |
| resilience.W006 | a circuit waits less than a second, below what caches can count |
| resilience.W011 | the circuits' Redis cache may wait long for a server that hangs |
| resilience.W012 | the circuits' cache swallows its own errors |
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from resilience import conf
from resilience.calls.checks import check_classifiers, check_retry
from resilience.chaos import check_chaos
from resilience.circuits.checks import check_circuit_cache, check_circuits
from resilience.dashboard.checks import check_dashboard
from resilience.policies import check_policies
from resilience.runs.checks import check_runs

__all__ = [
    "check_cache_alias",
    "check_chaos",
    "check_circuit_cache",
    "check_circuits",
    "check_classifiers",
    "check_dashboard",
    "check_keys",
    "check_policies",
    "check_retry",
    "check_runs",
]


@register("resilience")
def check_keys(**kwargs: Any) -> list[CheckMessage]:
    """Judge the keys and types of RESILIENCE (E002)."""
    found = conf.problems(getattr(settings, "RESILIENCE", {}))
    return [Error(message, hint=hint, id="resilience.E002") for message, hint in found]


@register("resilience")
def check_cache_alias(**kwargs: Any) -> list[CheckMessage]:
    """Look for the cache aliases that hold the shared state (E001)."""
    raw = getattr(settings, "RESILIENCE", {})
    if conf.problems(raw):
        return []
    current = conf.current()
    named = {"['CACHE']": current.cache, "['CIRCUIT']['cache']": current.circuit.get("cache")}
    named |= {f"['CIRCUITS'][{name!r}]['cache']": values.get("cache") for name, values in current.circuits.items()}
    known = ", ".join(sorted(settings.CACHES))
    return [
        Error(
            f"RESILIENCE{place} must be an alias in CACHES, not {alias!r}.",
            hint=f"Add {alias!r} to CACHES, or name one of {known}.",
            id="resilience.E001",
        )
        for place, alias in named.items()
        if alias is not None and alias not in settings.CACHES
    ]
