"""Our readiness checks as checks of django-health-check (extra package, version 4 or later).

Name them in its view: `HealthCheckView.as_view(checks=["resilience.dashboard.health_checks.CriticalCircuits", ...])`.
"""

from __future__ import annotations

import dataclasses

from resilience import health

try:
    from health_check.base import HealthCheck  # type: ignore[import-untyped]  # ships no types
    from health_check.exceptions import ServiceUnavailable  # type: ignore[import-untyped]  # as above
except ImportError as error:
    raise ImportError("resilience.dashboard.health_checks needs django-health-check 4 or later. Install it.") from error

__all__ = ["CriticalCircuits", "SharedCache", "Sweeper"]


def _raise_if_bad(name: str) -> None:
    result = health.run_check(name)
    if not result.ok:
        raise ServiceUnavailable(result.detail)


@dataclasses.dataclass
class SharedCache(HealthCheck):  # type: ignore[misc]  # an untyped base
    """The cache that holds the circuits keeps what it is given."""

    def run(self) -> None:
        """Raise `ServiceUnavailable` when it does not."""
        _raise_if_bad("cache")


@dataclasses.dataclass
class CriticalCircuits(HealthCheck):  # type: ignore[misc]  # an untyped base
    """No circuit named in `RESILIENCE["DASHBOARD"]["CRITICAL"]` refuses calls."""

    def run(self) -> None:
        """Raise `ServiceUnavailable` when one does."""
        _raise_if_bad("circuits")


@dataclasses.dataclass
class Sweeper(HealthCheck):  # type: ignore[misc]  # an untyped base
    """Lost runs are picked up in time."""

    def run(self) -> None:
        """Raise `ServiceUnavailable` when one has waited too long."""
        _raise_if_bad("sweeper")
