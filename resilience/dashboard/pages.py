"""What the admin pages share: permissions, fragments that are sent only when they changed, one-time forms, audit.

Every view goes through `DashboardAdmin.page`, so that none can forget to ask for its permission.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, models, router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.cache import get_conditional_response
from django.utils.http import quote_etag
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from resilience import conf, patience
from resilience.dashboard.circuits import fingerprint
from resilience.dashboard.formatting import visible
from resilience.redaction import log_exception

__all__ = ["DashboardAdmin", "decode_name", "encode_name"]

logger = logging.getLogger("resilience.dashboard")

View = Callable[..., HttpResponse]
_TO_ENCODE = re.compile(r'[\x00-\x1f\x7f":/_#?;@&=+$,\[\]<>%\\.]')
_ENCODED = re.compile(r"_([0-9A-F]{2})")
_TICKET = re.compile(r"[0-9a-f]{32}")
_TICKET_SECONDS = 900


def encode_name(name: str) -> str:
    """Return a name in the form that stands in addresses and form fields.

    A superset of what Django's admin escapes: browsers turn a lone newline of a form field into two
    characters, and drop a full stop from an address.

    Example:
        >>> encode_name("payments/eu")
        'payments_2Feu'
    """
    return _TO_ENCODE.sub(lambda match: f"_{ord(match.group()):02X}", name)


def decode_name(text: str) -> str:
    """Undo `encode_name`, and `django.contrib.admin.utils.quote` as well.

    Example:
        >>> decode_name("payments_2Feu")
        'payments/eu'
    """
    return _ENCODED.sub(lambda match: chr(int(match.group(1), 16)), text)


class DashboardAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic in the stubs only
    """A page of its own in place of Django's change list and change form.

    Nothing can be added, changed or deleted through it. `view_permission` opens it, and
    `operate_permission` shows and accepts the actions.
    """

    view_permission = ""
    operate_permission = ""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        """Nobody adds anything here."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Changes go through the actions, never through a form of fields."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Nobody deletes anything here."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Being staff is not enough: the permission must have been given."""
        return request.user.has_perm(self.view_permission)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Show the entry in the admin's index to whoever may open the page."""
        return self.has_view_permission(request)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """May the user press the buttons? Seeing is part of it."""
        return self.has_view_permission(request) and request.user.has_perm(self.operate_permission)

    def page(self, view: View, *, allowed: Callable[[HttpRequest], bool], methods: Sequence[str] = ("GET", "HEAD")) -> View:
        """Wrap a view: signed in to this admin site, permitted, and with the right method."""

        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not allowed(request):
                raise PermissionDenied
            if request.method not in methods:
                return HttpResponseNotAllowed(methods)
            request.current_app = self.admin_site.name
            return view(request, *args, **kwargs)

        return self.admin_site.admin_view(guarded)

    def address(self, name: str, *args: object) -> str:
        """Return the address of one of this admin site's pages.

        Args:
            name: What follows the app's label in the name of the URL.
            args: Parts of the address.
        """
        return reverse(f"{self.admin_site.name}:resilience_{name}", args=args, current_app=self.admin_site.name)

    def tabs(self, request: HttpRequest, current: str) -> list[dict[str, Any]]:
        """Return the pages of this app that the user may open on this admin site."""
        pages = (
            ("overview", _("Overview"), "circuit_overview", ("resilience.view_circuit", "resilience.view_run")),
            ("circuits", _("Circuits"), "circuit_changelist", ("resilience.view_circuit",)),
            ("runs", _("Runs"), "run_changelist", ("resilience.view_run",)),
        )
        found = []
        for key, label, name, permissions in pages:
            if not any(request.user.has_perm(permission) for permission in permissions):
                continue
            try:
                found.append({"label": label, "url": self.address(name), "current": key == current})
            except NoReverseMatch:
                continue
        return found

    def render(self, request: HttpRequest, template: str, *, tab: str, title: str, **context: Any) -> TemplateResponse:
        """Render a whole page inside the admin site."""
        return TemplateResponse(
            request,
            f"resilience/admin/{template}.html",
            {
                **self.admin_site.each_context(request),
                "title": title,
                "opts": self.opts,
                "media": self.media,
                "tabs": self.tabs(request, tab),
                "crumbs": [],
                "may_operate": self.has_operate_permission(request),
                **context,
            },
        )

    def render_fragment(
        self, request: HttpRequest, template: str, context: Mapping[str, Any], *, key: Iterable[object]
    ) -> HttpResponse:
        """Send the changing part of a page, or 304 when the reader has it already.

        Args:
            request: The request.
            template: Name of the partial template.
            context: Its context.
            key: Everything that decides what is shown, apart from the passing of time.
        """
        may_operate = self.has_operate_permission(request)
        etag = quote_etag(fingerprint(*key, may_operate, get_language()))
        unchanged = get_conditional_response(request, etag=etag)
        if unchanged is not None:
            return unchanged
        response = TemplateResponse(
            request, f"resilience/admin/{template}.html", {"request": request, "may_operate": may_operate, **context}
        )
        response["ETag"] = etag
        response["X-Resilience-Fragment"] = "1"
        return response

    def new_ticket(self) -> str:
        """Return a value that lets a form be carried out once."""
        return uuid.uuid4().hex

    def spend_ticket(self, ticket: str) -> bool:
        """Take a form's ticket; False when the form was carried out before.

        With the cache away the answer is True: an operator in an outage must not be stopped, and doing the
        same thing twice changes nothing.
        """
        alias = conf.current().cache

        def spend() -> bool:
            return bool(caches[alias].add(f"resilience:ticket:{ticket}", 1, _TICKET_SECONDS))

        try:
            return patience.ask(alias, "ticket", spend)
        except Exception as error:  # noqa: BLE001  # logged; an outage of the cache stops no operator
            message = "The cache could not tell whether a form was sent twice; it is carried out."
            log_exception(logger, message, error=error, level=logging.WARNING)
            return True

    def is_ticket(self, text: str) -> bool:
        """Does the text have the form of a ticket?"""
        return bool(_TICKET.fullmatch(text))

    def back_url(self, back: str, changelist: str, change: str, names: Sequence[str]) -> str:
        """Return where an action leads back to; never an address that came from outside.

        Args:
            back: "detail", or the query string of the list.
            changelist: Name of the list's URL.
            change: Name of the detail page's URL.
            names: Encoded names that the action was about.
        """
        if back == "detail" and len(names) == 1:
            return self.address(change, names[0])
        query = QueryDict(back if back != "detail" else "").urlencode()
        return self.address(changelist) + (f"?{query}" if query else "")

    def audit(self, request: HttpRequest, entries: Sequence[tuple[str, str, str]]) -> None:
        """Write who did what into Django's admin log.

        Args:
            request: The request of the user who did it.
            entries: For each object its id, its name and what was done to it.
        """
        try:
            # A savepoint, so that a log that cannot be written does not break the request's own transaction.
            with transaction.atomic(using=router.db_for_write(LogEntry)):
                kind = ContentType.objects.get_for_model(self.model, for_concrete_model=False)
                LogEntry.objects.bulk_create(
                    LogEntry(
                        user_id=cast(int, request.user.pk),
                        content_type=kind,
                        object_id=object_id.replace("\x00", ""),
                        object_repr=visible(name)[:200],
                        action_flag=CHANGE,
                        change_message=message,
                    )
                    for object_id, name, message in entries
                )
        except DatabaseError as error:
            message = "An action was carried out, but could not be written to the admin log: %s"
            log_exception(logger, message, entries, error=error)
            messages.warning(request, _("It was done, but could not be written to the audit log."))

    def history(self, object_id: str, limit: int = 20) -> list[LogEntry]:
        """Return what was done to one object by hand, newest first."""
        kind = ContentType.objects.get_for_model(self.model, for_concrete_model=False)
        entries = LogEntry.objects.filter(content_type=kind, object_id=object_id).select_related("user")
        return list(entries.order_by("-action_time")[:limit])

    def redirect(self, url: str) -> HttpResponseRedirect:
        """Send the browser on after a form was carried out."""
        return HttpResponseRedirect(url)
