from __future__ import annotations

import email.message
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import clock
from resilience.calls.retry_after import LONGEST, from_headers, parse_milliseconds, parse_seconds

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "time", NOW.timestamp)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 42 ", 42.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (b"7", 7.0),
        (3, 3.0),
        (2.5, 2.5),
        ("Thu, 01 Jan 2026 12:01:30 GMT", 90.0),
        ("Thursday, 01-Jan-26 12:01:30 GMT", 90.0),
        ("Thu Jan  1 12:01:30 2026", 90.0),
        ("Thu, 01 Jan 2026 12:01:30", 90.0),
        ("Thu, 01 Jan 2026 14:01:30 +0200", 90.0),
        ("Wed, 31 Dec 2025 12:00:00 GMT", 0.0),
        ("9" * 400, LONGEST),
        (math.inf, LONGEST),
        (10**400, LONGEST),
        *((0, 0.0), (0.5, 0.5), ("0", 0.0)),
    ],
)
def test_parse_seconds__reads_every_form(value: object, seconds: float) -> None:
    """Seconds and the three date forms; a date without a zone is UTC, one in the past is now."""
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("-1", "+1", "abc", "", " ", "²", "٣", "1e3", "0x10", "1,5", "1_000", "nan", "inf", "Mon"),
        *(None, True, -1, math.nan, object(), [], b"\xff"),
        *("Thu, 99 Jan 2026 12:00:00 GMT", "Thu, 01 Foo 2026", "Thu, 01 Jan 99999 12:00:00 GMT"),
    ],
)
def test_parse_seconds__ignores_everything_else(value: object) -> None:
    """What is no wait is no wait, and no error either."""
    assert parse_seconds(value) is None


@given(st.one_of(st.text(), st.binary(), st.floats(), st.integers(), st.none()))
def test_parse_seconds__never_fails(value: object) -> None:
    """Whatever a server sends, the answer is None or a wait that a program can live with."""
    seconds = parse_seconds(value)

    assert seconds is None or 0 <= seconds <= LONGEST


@given(st.integers(0, 10_000_000))
def test_parse_seconds__reads_back_what_servers_write(seconds: int) -> None:
    """Numbers and dates survive the way through a header."""
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert parse_seconds(str(seconds)) == seconds
    clock_now, clock.time = clock.time, NOW.timestamp
    try:
        assert parse_seconds(date) == seconds
    finally:
        clock.time = clock_now


def test_parse_milliseconds__is_exact() -> None:
    """Milliseconds become seconds; dates are not milliseconds."""
    assert parse_milliseconds("1500") == 1.5
    assert parse_milliseconds("Thu, 01 Jan 2026 12:01:30 GMT") is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "3"}, 3.0),
        ({"RETRY-AFTER": "3"}, 3.0),
        ({"Retry-After": "3", "retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "3", "Retry-After-Ms": "junk"}, 3.0),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"x-amz-retry-after": "1500"}, 1.5),
        ({}, None),
        (None, None),
        (object(), None),
        ({1: "3"}, None),
    ],
)
def test_from_headers__finds_the_header(headers: object, seconds: float | None) -> None:
    """Names in any case, the exact form first, and nothing to find is None."""
    assert from_headers(headers) == seconds


def test_from_headers__reads_a_message() -> None:
    """The headers of urllib's errors are an email message."""
    message = email.message.Message()
    message["Retry-After"] = "9"

    assert from_headers(message) == 9


class UnreadableHeaders(dict[str, str]):
    """Headers that came from a library with ideas of its own."""

    def get(self, *args: object) -> str:
        raise RuntimeError(args)


def test_from_headers__that_cannot_be_read_say_nothing() -> None:
    """Foreign headers that fail must not hide the status they came with."""
    assert from_headers(UnreadableHeaders({"Retry-After": "3"})) is None
