"""What an operator does to circuits: ask for confirmation, do it once, write it down, say what happened."""

from __future__ import annotations

from functools import partial

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from resilience.circuits.registry import UnknownCircuitError
from resilience.circuits.stats import Detail
from resilience.dashboard import circuits, fleet
from resilience.dashboard.circuits import CircuitRow
from resilience.dashboard.operations import CIRCUIT_OPERATIONS, EXPIRIES, Operation, operate_circuit, parse_expiry
from resilience.dashboard.pages import DashboardAdmin, decode_name, encode_name
from resilience.patience import NoAnswerError

__all__ = ["CircuitActions"]


class CircuitActions(DashboardAdmin):
    """The view behind the buttons of the circuits pages."""

    view_permission = "resilience.view_circuit"
    operate_permission = "resilience.operate_circuit"

    def operate_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation, and then do it."""
        operation = CIRCUIT_OPERATIONS.get(request.POST.get("action", ""))
        survey = fleet.look()
        stats = survey.tell(detail=Detail.STANDING)
        names = list(dict.fromkeys(decode_name(text) for text in request.POST.getlist("circuit")))
        if operation is None or any(name not in stats for name in names):
            raise Http404
        back = self.back_url(
            request.POST.get("back", ""), "circuit_changelist", "circuit_change", [encode_name(name) for name in names]
        )
        if not names:
            messages.warning(request, _("No circuit was selected."))
            return self.redirect(back)
        rows = [circuits.row(stats[name]) for name in names]
        errors = self._errors(request, operation) if request.POST.get("confirmed") else []
        if errors or not request.POST.get("confirmed") or not self.is_ticket(request.POST.get("ticket", "")):
            return self._confirmation(request, operation, rows, errors, back)
        if not self.spend_ticket(request.POST["ticket"]):
            messages.info(request, _("This was done already."))
            return self.redirect(back)
        self._perform(request, operation, rows, survey)
        return self.redirect(back)

    def _errors(self, request: HttpRequest, operation: Operation) -> list[str]:
        errors = []
        if operation.needs_reason and not request.POST.get("reason", "").strip():
            errors.append(_("Give a reason: others will read it in the middle of the night."))
        try:
            parse_expiry(request.POST.get("seconds", ""))
        except ValueError:
            errors.append(_("Choose how long the circuit is to stay open."))
        return errors

    def _confirmation(
        self, request: HttpRequest, operation: Operation, rows: list[CircuitRow], errors: list[str], back_url: str
    ) -> HttpResponse:
        targets = [_target(row) for row in rows if row.state in operation.legal]
        text = ngettext("This is about %(count)d circuit:", "This is about %(count)d circuits:", len(targets))
        return self.render(
            request,
            "confirm",
            tab="circuits",
            title=_("Are you sure?"),
            crumbs=[{"url": self.address("circuit_changelist"), "label": _("Circuits")}],
            operate_url=self.address("circuit_operate"),
            operation=operation,
            field="circuit",
            targets=targets,
            targets_text=text % {"count": len(targets)},
            skipped=[_target(row) for row in rows if row.state not in operation.legal],
            errors=errors,
            expiries=EXPIRIES,
            seconds=request.POST.get("seconds", "900"),
            reason=request.POST.get("reason", "")[:200],
            back=request.POST.get("back", ""),
            back_url=back_url,
            ticket=self.new_ticket(),
        )

    def _perform(self, request: HttpRequest, operation: Operation, rows: list[CircuitRow], survey: fleet.Fleet) -> None:
        actor = f"admin:{request.user.get_username()}"
        reason = request.POST.get("reason", "").strip()
        seconds = parse_expiry(request.POST.get("seconds", "")) if operation.takes_expiry else None
        done, left, unsure = [], 0, 0
        for row in rows:
            if row.state not in operation.legal:
                left += 1
                continue
            act = partial(operate_circuit, row.name, operation, actor=actor, reason=reason, seconds=seconds)
            try:
                text = survey.operate(row.name, act)
            except (ValueError, UnknownCircuitError):  # it changed just now
                left += 1
            except NoAnswerError:
                unsure += 1
                done.append((row.name, row.name, f"{operation.done}: no answer from the cache, the outcome is unknown."))
            else:
                done.append((row.name, row.name, text))
        self.audit(request, done)
        away = any(survey.is_away(name) for name, _label, _text in done) and len(done) > unsure
        self._tell(request, operation, len(done) - unsure, left, unsure, away=away)

    def _tell(self, request: HttpRequest, operation: Operation, done: int, left: int, unsure: int, *, away: bool) -> None:
        """Say how many were changed, how many had moved on meanwhile, and when the fleet could not be told."""
        if done:
            text = ngettext("%(action)s: done for %(count)d circuit.", "%(action)s: done for %(count)d circuits.", done)
            messages.success(request, text % {"action": operation.label, "count": done})
        if left:
            text = ngettext(
                "%(count)d circuit was left alone, because its state has changed meanwhile.",
                "%(count)d circuits were left alone, because their state has changed meanwhile.",
                left,
            )
            messages.warning(request, text % {"count": left})
        if unsure:
            text = ngettext(
                "%(count)d circuit: the cache gave no answer in time, and it may or may not have been changed.",
                "%(count)d circuits: the cache gave no answer in time, and they may or may not have been changed.",
                unsure,
            )
            messages.error(request, text % {"count": unsure})
        if away:
            messages.warning(request, _("The cache does not answer: so far only this process knows of it."))


def _target(row: CircuitRow) -> dict[str, str]:
    return {"value": encode_name(row.name), "label": row.label, "state": row.state, "state_label": row.state_label}
