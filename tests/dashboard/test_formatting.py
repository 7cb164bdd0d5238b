from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

import pytest
from django.utils import timezone, translation
from hypothesis import given
from hypothesis import strategies as st

from resilience.dashboard import formatting
from resilience.templatetags import resilience_dashboard


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (-5, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h")],
)
def test_duration__names_at_most_two_units(seconds: float | None, text: str) -> None:
    """A length of time is short enough for a table cell."""
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "—"), (3, "3 s ago"), (185, "3 min ago"), (7_300, "2 h ago"), (200_000, "2 d ago")]
)
def test_ago__names_one_unit(seconds: float | None, text: str) -> None:
    """A moment in the past reads at a glance."""
    assert formatting.ago(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "—"), (0, "0 %"), (0.5, "50 %"), (0.375, "37.5 %"), (1, "100 %"), (0.9999, "100 %")]
)
def test_percent__says_unknown_instead_of_a_number(share: float | None, text: str) -> None:
    """Below the minimum of calls there is a dash and never a made-up number."""
    assert formatting.percent(share) == text


def test_percent__follows_the_language() -> None:
    """A German reader gets a comma."""
    with translation.override("de"):
        text = formatting.percent(0.375)

    assert text.startswith("37,5")


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_compact__takes_every_number(number: float) -> None:
    """Whatever a metric holds, the page can be shown."""
    assert formatting.compact(number)


@pytest.mark.parametrize(
    ("count", "text"), [(None, "—"), (0, "0 B"), (1_023, "1023 B"), (65_536, "64.0 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_size__picks_the_unit(count: int | None, text: str) -> None:
    """Bytes are shown in the unit that suits them."""
    assert formatting.size(count) == text


@given(st.text())
def test_visible__leaves_nothing_invisible(name: str) -> None:
    """No control or direction character of a name reaches the page as itself."""
    shown = formatting.visible(name)

    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in shown)


def test_visible__keeps_what_can_be_read() -> None:
    """Names in any script stay as they are."""
    assert formatting.visible("دفع 支付 😀") == "دفع 支付 😀"


def test_as_datetime__takes_what_records_hold() -> None:
    """Seconds, datetimes and nothing are all moments; nonsense is none."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)

    assert formatting.as_datetime(moment) is moment
    assert formatting.as_datetime(moment.timestamp()) == moment
    assert formatting.as_datetime(None) is None
    assert formatting.as_datetime(1e30) is None


@pytest.mark.parametrize(
    ("use_tz", "zone", "title"),
    [
        (True, "Asia/Tokyo", "2026-01-01 09:00:00 JST"),
        (False, "Asia/Tokyo", "2026-01-01 09:00:00 JST"),
        (True, "America/New_York", "2025-12-31 19:00:00 EST"),
    ],
)
def test_moment__names_its_time_zone(settings: object, use_tz: bool, zone: str, title: str) -> None:
    """The full time of a moment is in the reader's zone and says which that is; machines get UTC."""
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Tokyo" if not use_tz else "UTC"  # type: ignore[attr-defined]  # pytest-django's settings

    with timezone.override(zone if use_tz else None):
        shown = resilience_dashboard.moment(datetime(2026, 1, 1, tzinfo=UTC).timestamp())

    assert f'title="{title}"' in shown
    assert 'datetime="2026-01-01T00:00:00Z"' in shown
