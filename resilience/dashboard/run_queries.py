"""How the pages ask the database about runs: bounded queries, whatever the size of the table.

Nothing here counts a whole table. Counts stop at `COUNT_LIMIT`, and pages are found by key, not by offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from resilience.dashboard.runs import STATUSES, RunRow, row
from resilience.runs.models import Run

__all__ = ["COUNT_LIMIT", "RunPage", "RunQuery", "find", "status_counts", "troubled_runs"]

#: Runs of one status are counted up to here; more are shown as "1000+".
COUNT_LIMIT = 1_000

#: Columns that a list does not need and that may be large.
_HEAVY = ("arguments", "options", "config", "result", "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """What the reader asked for.

    Args:
        search: Part of a key or the whole name of a task, or "".
        status: A key of `STATUSES`, or "" for all.
        before: Show runs older than this primary key.
        after: Show runs newer than this primary key.
    """

    search: str = ""
    status: str = ""
    before: int | None = None
    after: int | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RunQuery:
        """Read a query string; what makes no sense counts as not given."""
        status = str(parameters.get("status", ""))
        return cls(
            search=str(parameters.get("q", "")).strip().replace("\x00", "")[:200],
            status=status if status in STATUSES else "",
            before=_key(parameters.get("before")),
            after=_key(parameters.get("after")),
        )

    @property
    def filtered(self) -> bool:
        """Is anything left out?"""
        return bool(self.search or self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """One page of runs, newest first."""

    rows: list[RunRow]
    newer: int | None
    older: int | None


def find(query: RunQuery, size: int) -> RunPage:
    """Return one page of the runs asked for, with one query.

    Args:
        query: What to show.
        size: Most runs on a page.
    """
    runs = _matching(query)
    backwards = query.after is not None
    if backwards:
        runs = runs.filter(pk__gt=query.after).order_by("pk")
    elif query.before is not None:
        runs = runs.filter(pk__lt=query.before)
    found = list(runs[: size + 1])
    more = len(found) > size
    shown = found[:size]
    if backwards:
        shown.reverse()
    now = timezone.now()
    has_newer = more if backwards else query.before is not None
    has_older = True if backwards else more
    return RunPage(
        rows=[row(run, now) for run in shown],
        newer=shown[0].pk if shown and has_newer else None,
        older=shown[-1].pk if shown and has_older else None,
    )


def _matching(query: RunQuery) -> QuerySet[Run]:
    runs = Run.objects.defer(*_HEAVY).order_by("-pk")
    if query.status:
        runs = runs.filter(_has_status(query.status))
    if query.search:
        runs = runs.filter(Q(key__icontains=query.search) | Q(task=query.search))
    return runs


def _has_status(status: str) -> Q:
    """Return the condition of a status as it is shown: a running run whose lease is over is lost."""
    if status == "lost":
        return Q(status="running", lease_expires_at__lt=timezone.now())
    if status == "running":
        return Q(status="running") & (Q(lease_expires_at__gte=timezone.now()) | Q(lease_expires_at=None))
    return Q(status=status)


def status_counts() -> list[dict[str, Any]]:
    """Count the runs of each status up to `COUNT_LIMIT`, with one bounded query for each status."""
    counts = []
    for status, (label, icon) in STATUSES.items():
        number = Run.objects.filter(_has_status(status)).order_by()[: COUNT_LIMIT + 1].count()
        text = f"{COUNT_LIMIT}+" if number > COUNT_LIMIT else str(number)
        if number or status in {"running", "failed"}:
            counts.append({"status": status, "label": label, "icon": icon, "count": number, "text": text})
    return counts


def troubled_runs(limit: int) -> list[RunRow]:
    """Return lost runs, then failed ones, then those that run, newest first in each group."""
    now = timezone.now()
    found: list[RunRow] = []
    for status in ("lost", "failed", "running"):
        if len(found) < limit:
            runs = Run.objects.defer(*_HEAVY).filter(_has_status(status)).order_by("-pk")
            found += [row(run, now) for run in runs[: limit - len(found)]]
    return found


def _key(text: object) -> int | None:
    digits = str(text or "")
    return int(digits) if digits.isdecimal() and len(digits) < 19 else None  # noqa: PLR2004  # what a 64-bit key can hold
