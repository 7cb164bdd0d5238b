"""Is this process able to do its work? Answers for load balancers, orchestrators and people.

Liveness asks nothing: a process that can answer lives, and restarting it would not cure a database. Readiness
looks at the database, the cache, the circuits that the settings call critical, and how long lost runs have waited
for the sweeper. A cache that freezes fails its checks after `RESILIENCE["DASHBOARD"]["HEALTH_TIMEOUT"]` seconds (2).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.cache import caches
from django.db import connections, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from resilience import clock, conf, patience
from resilience.redaction import describe_exception, redact

__all__ = ["CheckResult", "live", "ready", "run_check", "run_checks"]

logger = logging.getLogger("resilience.health")

_REFUSING = frozenset({"open", "forced_open"})


class _UnhealthyError(Exception):
    """A check found something wrong; the message is for people as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found.

    Args:
        ok: Is all well?
        detail: A sentence for people with permission, without secrets.
        seconds: How long the check took.
    """

    ok: bool
    detail: str = ""
    seconds: float = 0.0


def check_database() -> str:
    """Ask each database named in `RESILIENCE["DASHBOARD"]["DATABASES"]` (the default one) for a row."""
    for alias in conf.current().dashboard.get("DATABASES", ("default",)):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    return "answers"


def check_cache() -> str:
    """Write, read and delete a key in the cache that holds the shared state."""
    cache, key, value = caches[conf.current().cache], f"resilience:health:{uuid.uuid4().hex}", uuid.uuid4().hex
    cache.set(key, value, 30)
    found = cache.get(key)
    cache.delete(key)
    if found != value:
        raise _UnhealthyError("The cache must return what was stored in it. Check its backend and its memory limit.")
    return "keeps what it is given"


def check_circuits() -> str:
    """Look at the circuits named in `RESILIENCE["DASHBOARD"]["CRITICAL"]`; one that nobody used yet is fine."""
    from resilience.circuits.registry import get_all_circuit_breaker_stats

    names = list(conf.current().dashboard.get("CRITICAL", ()))
    if not names:
        return "none is critical"
    stats = get_all_circuit_breaker_stats(names)
    refusing = sorted(name for name in names if str(stats.get(name, {}).get("state", "closed")) in _REFUSING)
    if refusing:
        raise _UnhealthyError(f"Critical circuits refuse calls: {', '.join(refusing)}.")
    return f"{len(names)} critical circuits let calls through"


def check_sweeper() -> str:
    """Look for runs that a sweeper should have picked up `RESILIENCE["DASHBOARD"]["SWEEPER_MAX_AGE"]` (900 s) ago."""
    from datetime import timedelta

    from django.utils import timezone

    from resilience.runs.models import Run

    longest = float(conf.current().dashboard.get("SWEEPER_MAX_AGE", 900))
    limit = timezone.now() - timedelta(seconds=longest)
    waiting = Run.objects.filter(status="running", lease_expires_at__lt=limit).order_by("lease_expires_at")
    oldest = waiting.values_list("lease_expires_at", flat=True).first()
    if oldest is not None:
        age = (timezone.now() - oldest).total_seconds()
        raise _UnhealthyError(f"A lost run has waited {age:.0f} s for the sweeper. Is resilience.tasks.sweep_runs scheduled?")
    return "no lost run is waiting"


_CHECKS: Mapping[str, Callable[[], str]] = {
    "database": check_database,
    "cache": check_cache,
    "circuits": check_circuits,
    "sweeper": check_sweeper,
}


#: Checks that ask the cache, whose clients often wait for ever; a database has time limits of its own.
_LIMITED = frozenset({"cache", "circuits"})


def _check_in_time(name: str) -> str:
    """Run a check, and give it up when its cache does not answer in time.

    Raises:
        Exception: What the check raised.
    """
    if name not in _LIMITED:
        return _CHECKS[name]()
    try:
        return patience.within(patience.limit(), f"health-{name}", _CHECKS[name])
    except patience.NoAnswerError:
        text = f"The cache gave no answer within {patience.limit():g} s. Give its client a time limit of its own."
        raise _UnhealthyError(text) from None


def run_checks() -> dict[str, CheckResult]:
    """Run all readiness checks; a check that raises has failed, and the others are run all the same.

    Example:
        >>> sorted(run_checks())
        ['cache', 'circuits', 'database', 'sweeper']
    """
    return {name: run_check(name) for name in _CHECKS}


def run_check(name: str) -> CheckResult:
    """Run one readiness check.

    Args:
        name: "database", "cache", "circuits" or "sweeper".

    Example:
        >>> run_check("cache").ok
        True
    """
    begin = clock.monotonic()
    try:
        detail, ok = _check_in_time(name), True
    except Exception as error:  # noqa: BLE001  # whatever is wrong is the answer
        detail, ok = redact(str(error)) if isinstance(error, _UnhealthyError) else describe_exception(error), False
        logger.warning("The health check %r failed: %s", name, detail, extra={"check": name})
    return CheckResult(ok=ok, detail=detail, seconds=round(clock.monotonic() - begin, 4))


@transaction.non_atomic_requests
@require_safe
@never_cache
def live(request: HttpRequest) -> JsonResponse:
    """Answer 200 as long as the process can answer."""
    return JsonResponse({"status": "ok"})


@transaction.non_atomic_requests
@require_safe
@never_cache
def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 when all checks pass and 503 otherwise; what failed is for staff with permission only."""
    results = run_checks()
    ok = all(result.ok for result in results.values())
    body: dict[str, Any] = {"status": "ok" if ok else "not ok"}
    if _may_see_details(request):
        body["checks"] = {
            name: {"ok": result.ok, "detail": result.detail, "seconds": result.seconds} for name, result in results.items()
        }
    return JsonResponse(body, status=200 if ok else 503)


def _may_see_details(request: HttpRequest) -> bool:
    try:
        user = getattr(request, "user", None)
        return bool(user is not None and user.is_active and user.is_staff and user.has_perm("resilience.view_circuit"))
    except Exception:  # noqa: BLE001  # sessions may live in the database that is down
        return False
