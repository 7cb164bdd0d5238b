"""Numbers and times as people read them, in their language.

Plain functions of plain values: no clock, no HTML.
"""

from __future__ import annotations

from datetime import UTC, datetime

from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _

__all__ = ["ago", "as_datetime", "compact", "duration", "percent", "size", "visible"]

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_KIBIBYTE = 1_024
#: From here on a percentage is shown as 100 and a number without decimal places.
_NEARLY_ALL, _THOUSAND = 99.95, 1_000
_FIRST_PRINTABLE = 0x20


def as_datetime(at: float | datetime | None) -> datetime | None:
    """Return a moment as an aware datetime.

    Args:
        at: Seconds since the epoch, a datetime, or None.

    Example:
        >>> as_datetime(0).isoformat()
        '1970-01-01T00:00:00+00:00'
    """
    if at is None:
        return None
    if isinstance(at, datetime):
        # Without USE_TZ the database gives naive moments in the project's time zone.
        return at if timezone.is_aware(at) else timezone.make_aware(at)
    try:
        return datetime.fromtimestamp(at, tz=UTC)
    except (OverflowError, OSError, ValueError):
        return None


def duration(seconds: float | None) -> str:
    """Return a length of time in at most two units, or a dash when it is unknown.

    Args:
        seconds: The length in seconds; negative counts as 0.

    Example:
        >>> duration(3725)
        '1 h 2 min'
    """
    if seconds is None:
        return "—"
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return _("%(seconds)d s") % {"seconds": whole}
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": rest} if rest else _minutes(minutes)
    if whole < _DAY:
        hours, rest = divmod(whole // _MINUTE, 60)
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": rest}
    days, rest = divmod(whole // _HOUR, 24)
    return _("%(days)d d %(hours)d h") % {"days": days, "hours": rest}


def _minutes(minutes: int) -> str:
    return _("%(minutes)d min") % {"minutes": minutes}


def ago(seconds: float | None) -> str:
    """Return how long ago something was, in one unit.

    Args:
        seconds: Seconds that have passed since; None gives a dash.

    Example:
        >>> ago(185)
        '3 min ago'
    """
    if seconds is None:
        return "—"
    whole = max(0, round(seconds))
    for unit, text in (
        (_DAY, _("%(count)d d ago")),
        (_HOUR, _("%(count)d h ago")),
        (_MINUTE, _("%(count)d min ago")),
    ):
        if whole >= unit:
            return text % {"count": whole // unit}
    return _("%(count)d s ago") % {"count": whole}


def percent(share: float | None) -> str:
    """Return a share between 0 and 1 as a percentage, or a dash when it is unknown.

    Example:
        >>> percent(0.375)
        '37.5 %'
    """
    if share is None:
        return "—"
    value = share * 100
    digits = 0 if value in {0, 100} or value >= _NEARLY_ALL or float(value).is_integer() else 1
    return _("%(number)s %%") % {"number": number_format(round(value, digits), digits)}


def compact(number: float | None) -> str:
    """Return a number with at most three significant places, for charts and tables.

    Example:
        >>> compact(0.123456), compact(1234), compact(None)
        ('0.123', '1234', '—')
    """
    if number is None:
        return "—"
    if isinstance(number, int) or float(number).is_integer():
        return number_format(int(number), 0)
    return number_format(float(f"{number:.3g}")) if abs(number) < _THOUSAND else number_format(round(number), 0)


def size(count: int | None) -> str:
    """Return a number of bytes in the unit that suits it.

    Example:
        >>> size(65536)
        '64.0 KiB'
    """
    if count is None:
        return "—"
    if count < _KIBIBYTE:
        return _("%(number)d B") % {"number": count}
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= _KIBIBYTE
        if value < _KIBIBYTE or unit == "TiB":
            break
    return f"{number_format(value, 1)} {unit}"


def visible(name: str) -> str:
    r"""Return a name with its control and direction-changing characters made visible.

    A newline or a right-to-left override in a name must not be able to forge another row or hide the end of
    a name from the person who is about to press a button.

    Example:
        >>> visible("pay\nments")
        'pay␊ments'
    """
    if name.isprintable():
        return name
    return "".join(_picture(character) for character in name)


def _picture(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < _FIRST_PRINTABLE else f"⟨U+{code:04X}⟩"
