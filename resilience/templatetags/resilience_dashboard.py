"""Template tags of the admin pages: moments, countdowns and the formats of `resilience.dashboard.formatting`."""

from __future__ import annotations

from datetime import UTC, datetime

from django import template
from django.template.defaultfilters import date as format_date
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from resilience import clock
from resilience.dashboard import formatting

register = template.Library()
register.filter("duration", formatting.duration)
register.filter("percent", formatting.percent)
register.filter("compact", formatting.compact)
register.filter("size", formatting.size)
register.filter("visible", formatting.visible)


@register.simple_tag
def moment(at: float | datetime | None) -> SafeString | str:
    """Show how long ago a moment was, with the full time as a title; the script keeps the text fresh."""
    point = formatting.as_datetime(at)
    if point is None:
        return "—"
    return _time(point, "ago", formatting.ago(clock.time() - point.timestamp()))


@register.simple_tag
def countdown(at: float | datetime | None) -> SafeString | str:
    """Show how long it is until a moment; the script counts it down."""
    point = formatting.as_datetime(at)
    if point is None:
        return "—"
    left = point.timestamp() - clock.time()
    text = _("in %(time)s") % {"time": formatting.duration(left)} if left > 0 else _("now")
    return _time(point, "until", text)


def _time(point: datetime, kind: str, text: str) -> SafeString:
    local = timezone.localtime(point)
    return format_html(
        '<time datetime="{}" title="{}" data-{}>{}</time>',
        point.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        format_date(local, "Y-m-d H:i:s T"),
        kind,
        text,
    )
