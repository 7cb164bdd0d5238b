from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from resilience.calls.checks import check_classifiers, check_retry

A_NUMBER = 5


@pytest.mark.parametrize(
    ("retry", "part"),
    [
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"delay": "1"}, "delay must be"),
        ({"attempts": 3}, "attempts"),
        ({"enabled": "no"}, "['RETRY']['enabled'] must be True or False, not 'no'."),
    ],
)
def test_check_retry__tells_what_is_wrong(retry: dict[str, Any], part: str) -> None:
    """A wrong option of the settings is an error with a hint."""
    with override_settings(RESILIENCE={"RETRY": retry}):
        (error,) = check_retry()

    assert error.id == "resilience.E003"
    assert part in error.msg
    assert error.hint


@pytest.mark.parametrize(
    "path", ["no.such.module", "tests.calls.test_calls_checks.A_NUMBER", "tests.calls.test_calls_checks.missing"]
)
def test_check_classifiers__tells_what_cannot_be_used(path: str) -> None:
    """A classifier that nobody can call is an error with a hint."""
    with override_settings(RESILIENCE={"CLASSIFIERS": [path]}):
        (error,) = check_classifiers()

    assert error.id == "resilience.E010"
    assert path in error.msg
    assert error.hint


@pytest.mark.parametrize(
    "resilience", [{}, {"RETRY": {"max_attempts": 5, "enabled": False}, "CLASSIFIERS": ["tests.calls.test_calls_checks.repr"]}]
)
def test_checks__have_nothing_to_say_about_good_settings(resilience: dict[str, Any]) -> None:
    """What is right is not mentioned."""
    globals()["repr"] = repr

    with override_settings(RESILIENCE=resilience):
        assert [*check_retry(), *check_classifiers()] == []


@pytest.mark.parametrize("resilience", [5, {"RETRY": 5}, {"CLASSIFIERS": "x"}])
def test_checks__leave_wrong_types_to_the_check_of_types(resilience: Any) -> None:
    """What E002 tells is not told twice, and breaks nothing."""
    with override_settings(RESILIENCE=resilience):
        assert [*check_retry(), *check_classifiers()] == []
