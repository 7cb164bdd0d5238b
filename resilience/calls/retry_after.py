"""What a server says about when to come back: the Retry-After family of headers.

Source:
    RFC 9110, sections 5.6.7 (the three date forms) and 10.2.3 (Retry-After). `retry-after-ms` is sent by OpenAI,
    Anthropic and Azure, `x-amz-retry-after` (milliseconds) by AWS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from resilience import clock

__all__ = ["from_headers", "header", "parse_milliseconds", "parse_seconds"]

#: A hundred years: what is longer is cut to it, so that arithmetic on the result stays finite.
LONGEST = 100 * 365 * 86_400.0
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms", "x-amz-retry-after")


def parse_seconds(value: object) -> float | None:
    """Read the value of a Retry-After header.

    Args:
        value: Seconds as a number or as digits, or a date in one of HTTP's three forms; a date without a zone
            is UTC.

    Returns:
        Seconds from now, 0 for a date in the past, or None for anything else: a sign, words, digits of other
        scripts, NaN.

    Example:
        >>> parse_seconds(" 42 ")
        42.0
        >>> parse_seconds("Sun, 06 Nov 1994 08:49:37 GMT")
        0.0
        >>> parse_seconds("-1") is None
        True
    """
    number = _number(value)
    return number if number is not None else _seconds_until(_text(value))


def parse_milliseconds(value: object) -> float | None:
    """Read a number of milliseconds and return it in seconds, or None for anything else.

    Example:
        >>> parse_milliseconds("1500")
        1.5
    """
    number = _number(value)
    return None if number is None else number / 1000


def from_headers(headers: object) -> float | None:
    """Return the seconds to wait that a response's headers ask for, the exact form first.

    Args:
        headers: A mapping, or any object with `get` or `items` (as `email.message.Message`); names in any case.

    Example:
        >>> from_headers({"Retry-After": "120", "retry-after-ms": "1500"})
        1.5
    """
    for name in _MILLISECONDS:
        if (seconds := parse_milliseconds(header(headers, name))) is not None:
            return seconds
    return parse_seconds(header(headers, "retry-after"))


def header(headers: object, name: str) -> Any:
    """Return one header's value, whatever the case its name has in a plain dict, or None."""
    if headers is None:
        return None
    try:
        get = getattr(headers, "get", None)
        if callable(get) and (value := get(name)) is not None:
            return value
        if isinstance(headers, Mapping):
            return next((value for key, value in headers.items() if isinstance(key, str) and key.lower() == name), None)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
        # Foreign headers that cannot be read must not hide the status they came with; a time limit that strikes here may.
        return None
    return None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").strip()
    return value.strip() if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(min(value, LONGEST)) if value >= 0 else None
    text = _text(value)
    return min(float(text), LONGEST) if _NUMBER.fullmatch(text) else None


def _seconds_until(text: str) -> float | None:
    if not text.isascii() or not text[:1].isalpha():
        return None
    try:
        moment = parsedate_to_datetime(text)
        stamp = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, stamp - clock.time()), LONGEST)
