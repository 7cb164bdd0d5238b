from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from resilience.runs.checks import check_runs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"STORAGE": "default", "INLINE_LIMIT": 0, "FORMAT": "zip", "WAKE_AFTER": 30, "SIGNING_KEYS": ["k" * 32, b"k" * 40]},
        {"SIGNING_KEYS": [], "FORMAT": "auto"},
    ],
)
def test_check_runs__is_silent_when_all_is_well(options: dict[str, Any]) -> None:
    """Right options give no message."""
    with override_settings(RESILIENCE={"RUNS": options}):
        assert check_runs() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"STORAGE": "nowhere"}, "RESILIENCE['RUNS']['STORAGE'] must be an alias in STORAGES, not 'nowhere'."),
        ({"INLINE_LIMIT": -1}, "RESILIENCE['RUNS']['INLINE_LIMIT'] must be 0 or more bytes, not -1."),
        ({"INLINE_LIMIT": True}, "RESILIENCE['RUNS']['INLINE_LIMIT'] must be 0 or more bytes, not True."),
        (
            {"FORMAT": "npz"},
            "RESILIENCE['RUNS']['FORMAT'] must be one of auto, json, zip, safetensors, pickle, not 'npz'.",
        ),
        ({"SIGNING_KEYS": "k" * 40}, "RESILIENCE['RUNS']['SIGNING_KEYS'] must be a list of keys of at least 32 bytes."),
        ({"SIGNING_KEYS": ["short"]}, "RESILIENCE['RUNS']['SIGNING_KEYS'] must be a list of keys of at least 32 bytes."),
        ({"WAKE_AFTER": 0}, "RESILIENCE['RUNS']['WAKE_AFTER'] must be more than 0 seconds, not 0."),
        (
            {"FORMAT": "pickle"},
            "RESILIENCE['RUNS']['FORMAT'] must not be 'pickle' without RESILIENCE['RUNS']['SIGNING_KEYS'].",
        ),
        ({"STORE": "default"}, "RESILIENCE['RUNS'] has the unknown key 'STORE'."),
    ],
)
def test_check_runs__tells_each_mistake_with_a_hint(options: dict[str, Any], message: str) -> None:
    """A wrong option is told by `manage.py check` and not by the first save."""
    with override_settings(RESILIENCE={"RUNS": options}):
        (found,) = check_runs()

    assert found.msg == message
    assert found.id == "resilience.E020"
    assert found.hint


@pytest.mark.parametrize("raw", [{"RUNS": 3}, 3])
def test_check_runs__leaves_other_mistakes_to_their_check(raw: Any) -> None:
    """A RUNS that is no dict is E002's, and breaks nothing here."""
    with override_settings():
        from django.conf import settings

        settings.RESILIENCE = raw

        assert check_runs() == []
