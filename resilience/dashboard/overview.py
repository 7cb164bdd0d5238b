"""The overview page: circuits, runs and an hour of rates on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from resilience import conf
from resilience.circuits.stats import Detail
from resilience.dashboard import banners, charts, circuit_queries, circuits, fleet, rates
from resilience.dashboard.charts import Series
from resilience.dashboard.circuit_queries import CircuitQuery
from resilience.dashboard.formatting import compact, percent
from resilience.dashboard.pages import encode_name

if TYPE_CHECKING:
    from resilience.dashboard.fleet import Fleet
    from resilience.dashboard.pages import DashboardAdmin

__all__ = ["allowed", "charts_of", "context"]

#: How many troubled circuits and runs stand on the overview.
_TROUBLES = 8

#: Charts: a title, and the metrics drawn in it with their colours and names.
_CHARTS: tuple[tuple[Any, tuple[tuple[str, str, Any], ...]], ...] = (
    (
        gettext_lazy("Retries"),
        (
            ("recovered", "good", gettext_lazy("succeeded after a retry")),
            ("retries", "plain", gettext_lazy("retries")),
            ("gave_up", "bad", gettext_lazy("gave up")),
        ),
    ),
    (
        gettext_lazy("Circuits"),
        (
            ("closed", "good", gettext_lazy("closed")),
            ("rejected", "plain", gettext_lazy("calls refused")),
            ("opened", "bad", gettext_lazy("opened")),
        ),
    ),
    (
        gettext_lazy("Transactions"),
        (("commits", "good", gettext_lazy("committed")), ("rollbacks", "bad", gettext_lazy("rolled back"))),
    ),
    (
        gettext_lazy("Database conflicts"),
        (
            ("db_recovered", "good", gettext_lazy("succeeded after a retry")),
            ("conflicts", "plain", gettext_lazy("optimistic conflicts")),
            ("deadlocks", "bad", gettext_lazy("deadlocks")),
            ("ambiguous_commits", "worse", gettext_lazy("unknown commits")),
        ),
    ),
    (
        gettext_lazy("Time limits and fallbacks"),
        (("fallbacks", "plain", gettext_lazy("fallbacks used")), ("timeouts", "bad", gettext_lazy("timeouts"))),
    ),
    (
        gettext_lazy("Runs"),
        (("runs_finished", "good", gettext_lazy("finished")), ("runs_failed", "bad", gettext_lazy("failed"))),
    ),
)


def allowed(request: HttpRequest) -> bool:
    """May the user open the overview? Whoever may see circuits or runs may; each sees only those."""
    return request.user.has_perm("resilience.view_circuit") or request.user.has_perm("resilience.view_run")


def context(admin: DashboardAdmin, request: HttpRequest) -> dict[str, Any]:
    """Return the template's context, and under "key" what decides whether it changed."""
    survey = fleet.look()
    notices = banners.cache_banners(survey.down) + banners.rates_banner()
    found: dict[str, Any] = {"banners": notices, "minutes": rates.MINUTES}
    key: list[object] = [notices]
    if request.user.has_perm("resilience.view_circuit"):
        found["circuits"] = _circuits(admin, survey)
        key += [found["circuits"]["summary"], found["circuits"]["key"]]
    if request.user.has_perm("resilience.view_run"):
        found["runs"] = _runs(admin)
        key += [found["runs"]["summary"], found["runs"]["key"]]
    numbers = {} if conf.current().cache in survey.down else _read_rates()
    found["charts"] = charts_of(numbers)
    found["figures"] = figures_of(numbers)
    found["kinds"] = kinds_of(numbers)
    key.append(numbers)
    return {**found, "key": key}


def _read_rates() -> dict[str, list[int]]:
    try:
        return rates.read()
    except Exception:  # noqa: BLE001  # the banner tells that the cache is away
        return {}


def _circuits(admin: DashboardAdmin, survey: Fleet) -> dict[str, Any]:
    rows = [circuits.row(stats) for stats in survey.tell(detail=Detail.STANDING).values()]
    worst = [row for row in circuit_queries.arrange(rows, CircuitQuery()) if row.rank < circuits.CALM_RANK]
    return {
        "total": len(rows),
        "summary": circuit_queries.summary(rows),
        "url": admin.address("circuit_changelist"),
        "worst": [{"row": row, "url": admin.address("circuit_change", encode_name(row.name))} for row in worst[:_TROUBLES]],
        "more": max(0, len(worst) - _TROUBLES),
        "key": worst[:_TROUBLES],
    }


def _runs(admin: DashboardAdmin) -> dict[str, Any]:
    from resilience.dashboard.run_queries import status_counts, troubled_runs

    rows = troubled_runs(_TROUBLES)
    return {
        "summary": status_counts(),
        "url": admin.address("run_changelist"),
        "rows": [{"row": row, "url": admin.address("run_change", row.pk)} for row in rows],
        "key": rows,
    }


def charts_of(numbers: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Draw the charts of an hour of rates; a chart in which nothing happened is drawn empty."""
    drawn = []
    for title, metrics in _CHARTS:
        series = [
            Series(label=str(label), css=css, values=numbers.get(metric) or [0] * rates.MINUTES) for metric, css, label in metrics
        ]
        parts = ", ".join(f"{compact(row.total)} {row.label}" for row in series)
        label = _("%(title)s in the last hour: %(parts)s") % {"title": title, "parts": parts}
        peak = max((sum(row.values[i] for row in series) for i in range(rates.MINUTES)), default=0)
        drawn.append(
            {
                "title": title,
                "svg": charts.stacked_bars(series, label=label),
                "legend": [{"label": row.label, "css": row.css, "total": compact(row.total)} for row in series],
                "peak": compact(peak),
                "empty": not any(row.total for row in series),
            }
        )
    return drawn


def figures_of(numbers: Mapping[str, Sequence[int]]) -> list[dict[str, str]]:
    """Return the hour's numbers that say most."""
    total = {metric: sum(values) for metric, values in numbers.items()}
    recovered = total.get("recovered", 0) + total.get("db_recovered", 0)
    gave_up = total.get("gave_up", 0) + total.get("db_gave_up", 0)
    ended = total.get("commits", 0) + total.get("rollbacks", 0)
    return [
        {"label": _("retries"), "value": compact(total.get("retries", 0) + total.get("db_retries", 0))},
        {"label": _("of failed calls saved by a retry"), "value": percent(_share(recovered, recovered + gave_up))},
        {"label": _("circuits opened"), "value": compact(total.get("opened", 0))},
        {"label": _("calls refused"), "value": compact(total.get("rejected", 0))},
        {"label": _("of transactions rolled back"), "value": percent(_share(total.get("rollbacks", 0), ended))},
        {"label": _("deadlocks"), "value": compact(total.get("deadlocks", 0))},
    ]


def kinds_of(numbers: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Return why calls were given up, most frequent first."""
    counts = {metric.removeprefix("kind:"): sum(values) for metric, values in numbers.items() if metric.startswith("kind:")}
    top = max(counts.values(), default=0) or 1
    return [
        {"kind": kind, "count": count, "meter": charts.meter(count / top, None)}
        for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
