"""The circuits page of the admin: a list that puts the worst first, a page for each circuit, and the actions.

Register `CircuitAdmin` for `resilience.models.Circuit` on any admin site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from resilience import clock
from resilience.circuits.stats import Detail
from resilience.dashboard import banners, charts, circuit_queries, circuits, fleet, overview
from resilience.dashboard.circuit_actions import CircuitActions
from resilience.dashboard.circuit_queries import CircuitQuery
from resilience.dashboard.circuits import CircuitRow
from resilience.dashboard.formatting import visible
from resilience.dashboard.operations import CIRCUIT_OPERATIONS
from resilience.dashboard.pages import decode_name, encode_name

__all__ = ["PAGE_SIZE", "CircuitAdmin"]

#: Circuits on one page.
PAGE_SIZE = 100

_HEADINGS = (
    ("name", "rs-name"),
    ("state", ""),
    ("failures", ""),
    ("", "rs-wide"),
    ("rejected", "rs-number rs-roomy"),
    ("", "rs-roomy"),
    ("changed", "rs-medium"),
    ("", "rs-medium"),
)


class CircuitAdmin(CircuitActions):
    """List, show and operate circuits; also the home of the overview page."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages; Django's own pages for models have nothing to show here."""
        view, operate = self.has_view_permission, self.has_operate_permission
        return [
            path("", self.page(self.list_view, allowed=view), name="resilience_circuit_changelist"),
            path("fragment/", self.page(self.list_fragment, allowed=view), name="resilience_circuit_fragment"),
            path(
                "operate/",
                self.page(self.operate_view, allowed=operate, methods=("POST",)),
                name="resilience_circuit_operate",
            ),
            path("overview/", self.page(self.overview_view, allowed=overview.allowed), name="resilience_circuit_overview"),
            path(
                "overview/fragment/",
                self.page(self.overview_fragment, allowed=overview.allowed),
                name="resilience_circuit_overview_fragment",
            ),
            path(
                "<path:object_id>/change/fragment/",
                self.page(self.detail_fragment, allowed=view),
                name="resilience_circuit_change_fragment",
            ),
            path("<path:object_id>/change/", self.page(self.detail_view, allowed=view), name="resilience_circuit_change"),
        ]

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show the list."""
        query = request.GET.urlencode()
        return self.render(
            request,
            "circuits",
            tab="circuits",
            title=_("Circuits"),
            fragment_url=self.address("circuit_fragment") + (f"?{query}" if query else ""),
            operate_url=self.address("circuit_operate"),
            query_string=query,
            operations=CIRCUIT_OPERATIONS.values(),
            state_choices=[(state, label) for state, (label, _icon) in circuits.STATES.items()],
            sort_choices=circuit_queries.SORTS,
            **self._list_context(request),
        )

    def list_fragment(self, request: HttpRequest) -> HttpResponse:
        """Send the list's changing part."""
        context = self._list_context(request)
        key = (request.GET.urlencode(), context["banners"], context["summary"], [item["row"] for item in context["rows"]])
        return self.render_fragment(request, "_circuits", context, key=key)

    def _list_context(self, request: HttpRequest) -> dict[str, Any]:
        query = CircuitQuery.parse(request.GET)
        survey = fleet.look()
        known = survey.tell(detail=Detail.STANDING)
        everything = [circuits.row(stats) for stats in known.values()]
        found = circuit_queries.arrange(everything, query)
        pages = max(1, -(-len(found) // PAGE_SIZE))
        number = min(max(1, _integer(request.GET.get("p"), 1)), pages)
        shown = found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
        details = survey.tell([row.name for row in shown])
        shown = [circuits.row(details[row.name]) for row in shown if row.name in details]
        return {
            "query": query,
            "total": len(everything),
            "found": len(found),
            "summary": circuit_queries.summary(everything),
            "banners": banners.cache_banners(survey.down) + banners.circuit_banners(everything),
            "group_choices": circuit_queries.groups(everything),
            "rows": [self._item(row, details[row.name]) for row in shown],
            "headings": self._headings(request, query),
            "previous_url": _with(request, p=number - 1) if number > 1 else "",
            "next_url": _with(request, p=number + 1) if number < pages else "",
            "page_text": _("Page %(page)d of %(pages)d") % {"page": number, "pages": pages} if pages > 1 else "",
        }

    def _item(self, row: CircuitRow, stats: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "row": row,
            "value": encode_name(row.name),
            "url": self.address("circuit_change", encode_name(row.name)),
            "meter": level_meter(row),
            "calls": circuits.calls_parts(row),
            "probe_at": clock.time() + row.retry_after if row.retry_after is not None else None,
            "error": visible(fleet.error_text(row.last_error)),
            "timeline": draw_timeline(stats),
        }

    def _headings(self, request: HttpRequest, query: CircuitQuery) -> list[dict[str, Any]]:
        labels = (
            _("Circuit"), _("State"), _("Failures and last error"), _("Calls in the window"), _("Rejected"), _("Next probe"),
            _("Last change"), _("Last 20 minutes"),
        )  # fmt: skip
        headings = []
        for (key, css), label in zip(_HEADINGS, labels, strict=True):
            direction = ""
            if key and query.sort.removeprefix("-") == key:
                # Numbers and times stand largest first when sorted by their key.
                falls = key in {"failures", "rejected", "changed"}
                direction = "ascending" if query.sort.startswith("-") == falls else "descending"
            turned = f"-{key}" if query.sort == key else key
            headings.append(
                {
                    "label": label,
                    "css": css,
                    "url": _with(request, sort=turned, p=None) if key else "",
                    "direction": direction,
                    "arrow": {"ascending": "▲", "descending": "▼"}.get(direction, ""),
                }
            )
        return headings

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show one circuit."""
        context = self._detail_context(decode_name(object_id))
        row: CircuitRow = context["row"]
        return self.render(
            request,
            "circuit",
            tab="circuits",
            title=row.label,
            crumbs=[{"url": self.address("circuit_changelist"), "label": _("Circuits")}],
            fragment_url=self.address("circuit_change_fragment", encode_name(row.name)),
            **context,
        )

    def detail_fragment(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send the detail page's changing part."""
        context = self._detail_context(decode_name(object_id))
        key = (context["row"], context["failures"], context["transitions"], [entry.pk for entry in context["audit"]])
        return self.render_fragment(request, "_circuit", context, key=key)

    def _detail_context(self, name: str) -> dict[str, Any]:
        known = fleet.look()
        stats = known.tell([name]).get(name)
        if stats is None:
            raise Http404
        row = circuits.row(stats)
        return {
            "row": row,
            "operate_url": self.address("circuit_operate"),
            "operations": [operation for operation in CIRCUIT_OPERATIONS.values() if row.state in operation.legal],
            "why": fleet.why(stats),
            "config": fleet.config_table(stats),
            "failures": fleet.failure_rows(stats),
            "transitions": fleet.transition_rows(stats),
            "audit": self.history(name),
            "metric_query": fleet.metric_query(name),
            "declared_at": stats.get("declared_in") or "",
            "banners": banners.cache_banners(known.down) + banners.circuit_banners([row]),
            **self._item(row, stats),
        }

    def overview_view(self, request: HttpRequest) -> HttpResponse:
        """Show circuits, runs and rates on one screen."""
        return self.render(
            request,
            "overview",
            tab="overview",
            title=_("Overview"),
            fragment_url=self.address("circuit_overview_fragment"),
            **overview.context(self, request),
        )

    def overview_fragment(self, request: HttpRequest) -> HttpResponse:
        """Send the overview's changing part."""
        context = overview.context(self, request)
        return self.render_fragment(request, "_overview", context, key=(context["key"],))


def level_meter(row: CircuitRow) -> str:
    """Draw how close a circuit is to its threshold."""
    # Of a count threshold the scale ends at the threshold itself.
    return charts.meter(row.failure_rate, row.rate_threshold) if row.rate_threshold else charts.meter(row.level, 1.0)


def draw_timeline(stats: Mapping[str, Any]) -> str:
    """Draw states and failures of the last minutes."""
    states, failures = circuits.timeline(stats, clock.time())
    opened = sum(state in {"open", "forced_open", "half_open"} for state in states)
    text = _("Open in %(opened)d of the last %(minutes)d minutes; recent failures: %(failures)d")
    known = sum(state != "unknown" for state in states)
    label = text % {"opened": opened, "minutes": known, "failures": sum(failures)}
    return charts.timeline(states, failures, label=label)


def _with(request: HttpRequest, **changes: object) -> str:
    """Return this page's query string with some parameters changed; None removes one."""
    query = request.GET.copy()
    for key, value in changes.items():
        query.pop(key, None)
        if value is not None:
            query[key] = str(value)
    return f"?{query.urlencode()}"


def _integer(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else default  # noqa: PLR2004  # nobody has a billion pages
