"""The runs page of the admin: what every long job does, and pause, resume, cancel, retry and skip.

Register `RunAdmin` for `resilience.models.Run` on any admin site.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from resilience.dashboard import run_queries, runs
from resilience.dashboard.operations import RUN_OPERATIONS, Operation, is_legal_for_run, operate_run
from resilience.dashboard.pages import DashboardAdmin
from resilience.dashboard.run_queries import RunQuery
from resilience.dashboard.runs import RunRow
from resilience.exceptions import RunStateError
from resilience.redaction import log_exception
from resilience.runs.models import Checkpoint, Run

__all__ = ["PAGE_SIZE", "RunAdmin"]

logger = logging.getLogger("resilience.dashboard")

#: Runs on one page.
PAGE_SIZE = 100
#: Checkpoints, and points of a plot, on the page of one run.
_CHECKPOINTS = 100
#: Largest primary key there can be.
_LARGEST_KEY = 2**63 - 1
#: Checkpoints listed in the table.
_LISTED = 20


class RunAdmin(DashboardAdmin):
    """List, show and operate runs."""

    view_permission = "resilience.view_run"
    operate_permission = "resilience.operate_run"

    def get_urls(self) -> list[URLPattern]:
        """Return the pages; runs are never edited as rows."""
        view, operate = self.has_view_permission, self.has_operate_permission
        return [
            path("", self.page(self.list_view, allowed=view), name="resilience_run_changelist"),
            path("fragment/", self.page(self.list_fragment, allowed=view), name="resilience_run_fragment"),
            path("operate/", self.page(self.operate_view, allowed=operate, methods=("POST",)), name="resilience_run_operate"),
            path(
                "<int:object_id>/change/fragment/",
                self.page(self.detail_fragment, allowed=view),
                name="resilience_run_change_fragment",
            ),
            path("<int:object_id>/change/", self.page(self.detail_view, allowed=view), name="resilience_run_change"),
        ]

    def list_view(self, request: HttpRequest) -> HttpResponse:
        """Show the list."""
        query = request.GET.urlencode()
        return self.render(
            request,
            "runs",
            tab="runs",
            title=_("Runs"),
            fragment_url=self.address("run_fragment") + (f"?{query}" if query else ""),
            operate_url=self.address("run_operate"),
            query_string=query,
            operations=RUN_OPERATIONS.values(),
            status_choices=[(status, label) for status, (label, _icon) in runs.STATUSES.items()],
            **self._list_context(request),
        )

    def list_fragment(self, request: HttpRequest) -> HttpResponse:
        """Send the list's changing part."""
        context = self._list_context(request)
        key = (request.GET.urlencode(), context["summary"], [item["row"] for item in context["rows"]])
        return self.render_fragment(request, "_runs", context, key=key)

    def _list_context(self, request: HttpRequest) -> dict[str, Any]:
        query = RunQuery.parse(request.GET)
        page = run_queries.find(query, PAGE_SIZE)
        return {
            "query": query,
            "summary": run_queries.status_counts(),
            "rows": [{"row": row, "url": self.address("run_change", row.pk)} for row in page.rows],
            "previous_url": _turn(request, "after", page.newer),
            "next_url": _turn(request, "before", page.older),
        }

    def detail_view(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Show one run."""
        context = self._detail_context(object_id)
        row: RunRow = context["run"]
        return self.render(
            request,
            "run",
            tab="runs",
            title=row.label,
            crumbs=[{"url": self.address("run_changelist"), "label": _("Runs")}],
            fragment_url=self.address("run_change_fragment", object_id),
            **context,
        )

    def detail_fragment(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Send the detail page's changing part."""
        context = self._detail_context(object_id)
        newest = context["checkpoints"][0] if context["checkpoints"] else None
        key = (
            context["run"],
            [(checkpoint.pk, checkpoint.status) for checkpoint in context["checkpoints"]],
            newest.metrics if newest else None,
            context["errors"],
            [entry.pk for entry in context["audit"]],
        )
        return self.render_fragment(request, "_run", context, key=key)

    def _detail_context(self, pk: int) -> dict[str, Any]:
        record = _records([pk]).first() if pk <= _LARGEST_KEY else None
        if record is None:
            raise Http404
        checkpoints = list(
            Checkpoint.objects.filter(run_id=pk)
            .only("step", "status", "reason", "size", "format", "metrics", "created_at")
            .order_by("-pk")[:_CHECKPOINTS]
        )
        row = runs.row(record, timezone.now())
        return {
            "run": row,
            "record": record,
            "skipped": ", ".join(str(step) for step in record.skipped[:50]),
            "checkpoints": checkpoints[:_LISTED],
            "plots": runs.metric_plots(checkpoints),
            "errors": runs.error_rows(record.errors),
            "audit": self.history(str(pk)),
            "operate_url": self.address("run_operate"),
            "operations": [operation for operation in RUN_OPERATIONS.values() if is_legal_for_run(record, operation)],
        }

    def operate_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation, and then do it."""
        operation = RUN_OPERATIONS.get(request.POST.get("action", ""))
        keys = list(dict.fromkeys(request.POST.getlist("run")))
        if operation is None or not all(key.isdecimal() and int(key) <= _LARGEST_KEY for key in keys):
            raise Http404
        back = self.back_url(request.POST.get("back", ""), "run_changelist", "run_change", keys)
        if not keys:
            messages.warning(request, _("No run was selected."))
            return self.redirect(back)
        found = list(_records([int(key) for key in keys]))
        if len(found) != len(keys):
            raise Http404
        if not request.POST.get("confirmed") or not self.is_ticket(request.POST.get("ticket", "")):
            return self._confirmation(request, operation, found, back)
        if not self.spend_ticket(request.POST["ticket"]):
            messages.info(request, _("This was done already."))
            return self.redirect(back)
        self._perform(request, operation, found)
        return self.redirect(back)

    def _confirmation(self, request: HttpRequest, operation: Operation, found: Sequence[Run], back_url: str) -> HttpResponse:
        now = timezone.now()
        legal = [_target(runs.row(run, now)) for run in found if is_legal_for_run(run, operation)]
        text = ngettext("This is about %(count)d run:", "This is about %(count)d runs:", len(legal))
        return self.render(
            request,
            "confirm",
            tab="runs",
            title=_("Are you sure?"),
            crumbs=[{"url": self.address("run_changelist"), "label": _("Runs")}],
            operate_url=self.address("run_operate"),
            operation=operation,
            field="run",
            targets=legal,
            targets_text=text % {"count": len(legal)},
            skipped=[_target(runs.row(run, now)) for run in found if not is_legal_for_run(run, operation)],
            back=request.POST.get("back", ""),
            back_url=back_url,
            ticket=self.new_ticket(),
        )

    def _perform(self, request: HttpRequest, operation: Operation, found: Sequence[Run]) -> None:
        actor = f"admin:{request.user.get_username()}"
        reason = request.POST.get("reason", "").strip()
        done, refused = [], []
        for run in found:
            try:
                done.append((str(run.pk), run.key, operate_run(run, operation, actor=actor, reason=reason)))
            except RunStateError as error:
                refused.append(str(error))
            except DatabaseError as error:
                log_exception(logger, "A run could not be changed: %s", run.key, error=error)
                text = _("The database does not take changes (%(error)s): nothing more was done.")
                refused.insert(0, text % {"error": type(error).__name__})
                break
        if done:
            self.audit(request, done)
        for text in refused[:5]:
            messages.warning(request, text)
        if done:
            text = ngettext("%(action)s: done for %(count)d run.", "%(action)s: done for %(count)d runs.", len(done))
            messages.success(request, text % {"action": operation.label, "count": len(done)})


def _records(keys: Sequence[int]) -> Any:
    """Return runs without their arguments, which may hold anything and are never shown."""
    return Run.objects.defer("arguments", "options", "config", "result").filter(pk__in=keys).order_by("-pk")


def _target(row: RunRow) -> dict[str, object]:
    return {"value": row.pk, "label": row.label, "state": row.shown_status, "state_label": row.status_label}


def _turn(request: HttpRequest, direction: str, pk: int | None) -> str:
    """Return the query string of the next page in a direction, or ""."""
    if pk is None:
        return ""
    query = request.GET.copy()
    query.pop("before", None)
    query.pop("after", None)
    query[direction] = str(pk)
    return f"?{query.urlencode()}"
