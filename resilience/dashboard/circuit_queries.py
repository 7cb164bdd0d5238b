"""Which circuits the page lists, in which order, and how many there are of each kind.

The worst circuit comes first, because the page is opened when something is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy

from resilience.dashboard.circuits import STATES, CircuitRow

__all__ = ["SORTS", "CircuitQuery", "arrange", "groups", "summary"]

#: What the list can be sorted by, and the headings that do it.
SORTS: dict[str, Any] = {
    "worst": gettext_lazy("Worst first"),
    "name": gettext_lazy("Name"),
    "state": gettext_lazy("State"),
    "failures": gettext_lazy("Failures"),
    "rejected": gettext_lazy("Rejected"),
    "changed": gettext_lazy("Last change"),
}

#: `STATES` is in this order too.
_ORDER = {state: place for place, state in enumerate(STATES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitQuery:
    """What the reader asked for.

    Args:
        search: Part of a name, in any case.
        state: A state, or "" for all.
        group: A group, or "" for all.
        sort: A key of `SORTS`; with a leading "-" the other way round.
    """

    search: str = ""
    state: str = ""
    group: str = ""
    sort: str = "worst"

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> CircuitQuery:
        """Read a query string; what makes no sense counts as not given."""
        sort = str(parameters.get("sort", ""))
        state = str(parameters.get("state", ""))
        return cls(
            search=str(parameters.get("q", "")).strip()[:200],
            state=state if state in STATES else "",
            group=str(parameters.get("group", ""))[:255],
            sort=sort if sort.removeprefix("-") in SORTS else "worst",
        )

    @property
    def filtered(self) -> bool:
        """Is anything left out?"""
        return bool(self.search or self.state or self.group)


def arrange(rows: Iterable[CircuitRow], query: CircuitQuery) -> list[CircuitRow]:
    """Filter and sort rows.

    Example:
        >>> from resilience.dashboard.circuits import row
        >>> rows = [row({"name": "a"}), row({"name": "b", "state": "open"})]
        >>> [found.name for found in arrange(rows, CircuitQuery())]
        ['b', 'a']
    """
    needle = query.search.casefold()
    found = [
        candidate
        for candidate in rows
        if needle in candidate.name.casefold() and query.state in {"", candidate.state} and query.group in {"", candidate.group}
    ]
    key = query.sort.removeprefix("-")
    found.sort(key=lambda candidate: candidate.name.casefold())
    found.sort(key=lambda candidate: _sort_key(candidate, key), reverse=query.sort.startswith("-"))
    return found


def _sort_key(candidate: CircuitRow, key: str) -> Any:
    match key:
        case "name":
            return candidate.name.casefold()
        case "state":
            return _ORDER.get(candidate.state, 0)
        case "failures":
            return -(candidate.level or 0.0), -candidate.failure
        case "rejected":
            return -candidate.rejected
        case "changed":
            return -(candidate.changed_at or 0.0)
        case _:
            return candidate.rank, -(candidate.level or 0.0), -candidate.failure, -candidate.rejected


def summary(rows: Iterable[CircuitRow]) -> list[dict[str, Any]]:
    """Count the circuits of each state, worst first; states that nobody is in are left out, except closed and open."""
    counts = Counter(candidate.state for candidate in rows)
    return [
        {"state": state, "label": label, "icon": icon, "count": counts[state]}
        for state, (label, icon) in STATES.items()
        if counts[state] or state in {"open", "closed"}
    ]


def groups(rows: Sequence[CircuitRow], limit: int = 40) -> list[str]:
    """Return the largest groups of at least two circuits, in order of their names."""
    counts = Counter(candidate.group for candidate in rows if candidate.group)
    return sorted(group for group, count in counts.most_common(limit) if count > 1)
