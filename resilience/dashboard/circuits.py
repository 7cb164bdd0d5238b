"""What the circuits page shows of each circuit: statistics turned into rows, and rows put in order.

Plain functions: statistics in, rows out. The worst circuit comes first, because the page is opened when
something is wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext_lazy

from resilience.dashboard.formatting import percent, visible

__all__ = [
    "STATES",
    "CircuitRow",
    "calls_parts",
    "fingerprint",
    "row",
    "timeline",
]

#: States, worst first: their name, and a shape that tells them apart without colour.
STATES: dict[str, tuple[Any, str]] = {
    "open": (pgettext_lazy("circuit state", "Open"), "✖"),
    "half_open": (pgettext_lazy("circuit state", "Half-open"), "◐"),
    "forced_open": (pgettext_lazy("circuit state", "Forced open"), "■"),
    "disabled": (pgettext_lazy("circuit state", "Disabled"), "○"),
    "metrics_only": (pgettext_lazy("circuit state", "Metrics only"), "◇"),
    "closed": (pgettext_lazy("circuit state", "Closed"), "✔"),
}

_RANK = {"open": 0, "half_open": 1, "forced_open": 2, "disabled": 4, "metrics_only": 5, "closed": 6}
_FAILING_RANK = 3
#: Circuits ranked below this one are in trouble, or somebody has taken them out of service.
CALM_RANK = 6
_SEPARATORS = re.compile(r"[:/.]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRow:
    """One circuit as the page shows it; times are seconds since the epoch."""

    name: str
    state: str = "closed"
    success: int = 0
    failure: int = 0
    ignored: int = 0
    slow: int = 0
    rejected: int = 0
    failure_rate: float | None = None
    slow_rate: float | None = None
    threshold: int = 0
    rate_threshold: float | None = None
    minimum_calls: int = 0
    retry_after: float | None = None
    opened_at: float | None = None
    changed_at: float | None = None
    last_error: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "fleet"

    @property
    def label(self) -> str:
        """The name with everything invisible made visible."""
        return visible(self.name)

    @property
    def group(self) -> str:
        """What stands before the first colon, slash or full stop of the name, or ""."""
        head, *rest = _SEPARATORS.split(self.name, maxsplit=1)
        return head if rest else ""

    @property
    def state_label(self) -> str:
        """The state in the reader's language."""
        return str(STATES[self.state][0]) if self.state in STATES else self.state

    @property
    def state_icon(self) -> str:
        """A shape that tells the state apart without colour."""
        return STATES[self.state][1] if self.state in STATES else "?"

    @property
    def calls(self) -> int:
        """Calls in the window that count."""
        return self.success + self.failure

    @property
    def used(self) -> bool:
        """Has the circuit seen a call or a change yet?"""
        return bool(self.calls or self.ignored or self.rejected or self.changed_at or self.state != "closed")

    @property
    def level(self) -> float | None:
        """How far the circuit is towards opening: 1 is the threshold; None below the minimum of calls."""
        if self.rate_threshold:
            return None if self.failure_rate is None else self.failure_rate / self.rate_threshold
        return self.failure / self.threshold if self.threshold else None

    @property
    def level_text(self) -> str:
        """The level in words, as in "3 of 5 failures"."""
        if self.rate_threshold:
            if self.failure_rate is None:
                return _("— (%(calls)d of %(needed)d calls needed)") % {"calls": self.calls, "needed": self.minimum_calls}
            return _("%(rate)s failed, opens at %(threshold)s") % {
                "rate": percent(self.failure_rate),
                "threshold": percent(self.rate_threshold),
            }
        text = ngettext("%(failures)d of %(threshold)d failure", "%(failures)d of %(threshold)d failures", self.threshold)
        return text % {"failures": self.failure, "threshold": self.threshold}

    @property
    def level_short(self) -> str:
        """The level for a table cell, as in "3 of 5"."""
        if not self.rate_threshold:
            return _("%(part)d of %(whole)d") % {"part": self.failure, "whole": self.threshold}
        if self.failure_rate is None:
            return _("%(calls)d of %(needed)d calls") % {"calls": self.calls, "needed": self.minimum_calls}
        return _("%(rate)s (limit %(threshold)s)") % {
            "rate": percent(self.failure_rate),
            "threshold": percent(self.rate_threshold),
        }

    @property
    def rank(self) -> int:
        """Where the state stands in "worst first"."""
        if self.state in {"closed", "metrics_only"} and (self.level or 0) >= 0.5:  # noqa: PLR2004  # half way is failing
            return _FAILING_RANK
        return _RANK.get(self.state, 0)


def row(stats: Mapping[str, Any]) -> CircuitRow:
    """Turn the statistics of one circuit into its row.

    Args:
        stats: What `get_circuit_breaker_stats` returns; keys that are missing count as nothing known.

    Example:
        >>> row({"name": "payments", "state": "open"}).state_icon
        '✖'
    """
    failures = stats.get("recent_failures") or ()
    transitions = stats.get("transitions") or ()
    config = stats.get("config") or {}
    changed_at = stats.get("changed_at")
    if changed_at is None and transitions:
        changed_at = transitions[-1].get("at")
    return CircuitRow(
        name=str(stats["name"]),
        state=str(stats.get("state", "closed")),
        success=int(stats.get("success_count") or 0),
        failure=int(stats.get("failure_count") or 0),
        ignored=int(stats.get("ignored_count") or 0),
        slow=int(stats.get("slow_count") or 0),
        rejected=int(stats.get("rejected_count") or 0),
        failure_rate=stats.get("failure_rate"),
        slow_rate=stats.get("slow_rate"),
        threshold=int(stats.get("failure_threshold") or 0),
        rate_threshold=config.get("failure_rate_threshold"),
        minimum_calls=int(config.get("minimum_calls") or 0),
        retry_after=stats.get("retry_after"),
        opened_at=stats.get("opened_at"),
        changed_at=changed_at if changed_at is not None else stats.get("opened_at"),
        last_error=failures[-1] if failures else {"error": stats.get("last_error") or ""},
        scope=str(config.get("scope") or "fleet"),
    )


def calls_parts(row: CircuitRow) -> list[str]:
    """Return the calls in the window in words; what did not happen is left out.

    Example:
        >>> calls_parts(row({"name": "mail", "success_count": 7, "slow_count": 1}))
        ['7 good', '0 failed', '1 slow']
    """
    parts = [_("%(count)d good") % {"count": row.success}, _("%(count)d failed") % {"count": row.failure}]
    if row.ignored:
        parts.append(_("%(count)d ignored") % {"count": row.ignored})
    if row.slow:
        parts.append(_("%(count)d slow") % {"count": row.slow})
    return parts


def timeline(stats: Mapping[str, Any], now: float, minutes: int = 20) -> tuple[list[str], list[int]]:
    """Return the worst state and the number of known failures of each of the last minutes, oldest first.

    Args:
        stats: What `get_circuit_breaker_stats` returns.
        now: Seconds since the epoch.
        minutes: How many.

    Example:
        >>> timeline({"name": "a", "state": "open", "transitions": [{"old": "closed", "new": "open", "at": 60}]}, 120, 3)
        (['closed', 'closed', 'open'], [0, 0, 0])

    What was before the first change that is remembered is "unknown", unless the circuit was closed then.
    """
    changes = sorted(stats.get("transitions") or (), key=lambda change: change["at"])
    first = str(changes[0]["old"] if changes else stats.get("state", "closed"))
    # A circuit that flaps forgets its older changes: a moment of half-open must not be drawn as an hour.
    first = first if first == "closed" or not changes else "unknown"
    states = []
    for index in range(minutes):
        begin = now - 60 * (minutes - index)
        before = [change["new"] for change in changes if change["at"] < begin]
        held = [before[-1] if before else first]
        held += [change["new"] for change in changes if begin <= change["at"] < begin + 60]
        states.append(min((str(state) for state in held), key=lambda state: _RANK.get(state, 9)))
    failures = [0] * minutes
    for failure in stats.get("recent_failures") or ():
        age = int((now - failure.get("at", 0)) // 60)
        if 0 <= age < minutes:
            failures[minutes - 1 - age] += 1
    return states, failures


def fingerprint(*parts: object) -> str:
    """Return a short text that changes when what is shown changes; relative times are left out by the caller."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(repr(part).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
