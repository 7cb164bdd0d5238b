"""One rule and one wording for the numbers that users give."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, db_retry
from resilience.runs.options import RunConfig
from resilience.values import checked_count, checked_number, checked_seconds, is_number, is_whole


@pytest.mark.parametrize("value", [0, -1, 1.5, 10**300])
def test_is_number__finite_numbers_of_any_size(value: float) -> None:
    """Whole and fractional numbers are numbers, however large."""
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, 10**400, -(10**400), "1", None, timedelta(1), 1j])
def test_is_number__neither_switches_nor_what_cannot_be_reckoned_with(value: object) -> None:
    """A switch, a text or an infinity in place of a number is a mistake."""
    assert not is_number(value)


def test_is_whole__whole_numbers_alone() -> None:
    """1.0 may be the result of a division: whoever counts says 1."""
    assert [is_whole(value) for value in (0, -1, 10**400, True, 1.0, "1", None)] == [True] * 3 + [False] * 4


@pytest.mark.parametrize(("value", "error"), [(True, TypeError), ("1", TypeError), (None, TypeError), (math.nan, ValueError)])
def test_checked_number__tells_wrong_types_from_wrong_values(value: object, error: type[Exception]) -> None:
    """What is no number has the wrong type; a number that does not fit has the wrong value."""
    with pytest.raises(error, match=r"^rate must be a number, not .+\. Use 1\.$"):
        checked_number("rate", value, "a number", "Use 1.", lambda number: True)


def test_checked_number__asks_the_rule() -> None:
    """A number that breaks the rule is refused, one that keeps it is returned as it is."""
    assert checked_number("rate", 2, "below 3", "Use 1.", lambda number: number < 3) == 2
    with pytest.raises(ValueError, match=r"^rate must be below 3, not 3\. Use 1\.$"):
        checked_number("rate", 3, "below 3", "Use 1.", lambda number: number < 3)


def test_checked_count__from_the_least_on() -> None:
    """The least number is allowed, the one below is not."""
    assert (checked_count("size", 1, 1, "Use 1."), checked_count("size", 0, 0, "Use 1.")) == (1, 0)
    with pytest.raises(ValueError, match=r"^size must be a whole number of 1 or more, not 0\. Use 1\.$"):
        checked_count("size", 0, 1, "Use 1.")
    with pytest.raises(TypeError, match=r"^size must be a whole number of 1 or more, not 1\.0\. Use 1\.$"):
        checked_count("size", 1.0, 1, "Use 1.")


def test_checked_seconds__takes_numbers_and_timedeltas() -> None:
    """Both are seconds, as a float; 0 only where it has a meaning."""
    assert [checked_seconds("wait", value, "Use 1.") for value in (2, 0.5, timedelta(minutes=1))] == [2.0, 0.5, 60.0]
    assert checked_seconds("wait", timedelta(0), "Use 1.", zero=True) == 0.0
    assert isinstance(checked_seconds("wait", 2, "Use 1."), float)


@pytest.mark.parametrize(
    ("options", "value", "message"),
    [
        ({}, 0, "wait must be a number of seconds above 0, not 0. Use 1."),
        ({}, timedelta(seconds=-1), "wait must be a number of seconds above 0, not datetime.timedelta("),
        ({"zero": True}, -1, "wait must be 0 or more seconds, not -1. Use 1."),
        ({"or_none": True}, 0, "wait must be a number of seconds above 0 or None, not 0. Use 1."),
        ({}, 10**400, "wait must be a number of seconds above 0, not 1000"),
        ({"zero": True, "or_none": True}, math.inf, "wait must be 0 or more seconds or None, not inf. Use 1."),
    ],
)
def test_checked_seconds__says_what_is_wrong(options: dict[str, bool], value: object, message: str) -> None:
    """The message names the rule in force and the value as it was written."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is looked at as a whole
        checked_seconds("wait", value, "Use 1.", **options)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda huge: CircuitBreakerConfig(recovery_timeout=huge), "recovery_timeout must be more than 0 seconds"),
        (lambda huge: CircuitBreaker("numbers").open(huge), "seconds must be more than 0 and finite"),
        (lambda huge: CircuitBreaker("numbers").open("soon"), "seconds must be more than 0 and finite"),
        (lambda huge: db_retry(delay=huge)(print), "delay must be"),
        (lambda huge: RunConfig(lease=huge), "lease must be more than 0 seconds"),
    ],
)
def test_numbers__that_no_float_holds_are_refused_in_every_room(use: Callable[[int], object], words: str) -> None:
    """A number beyond the floats is bad input like any other, and no OverflowError."""
    with pytest.raises(ValueError, match=words):
        use(10**400)
