from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from resilience.dashboard.checks import check_dashboard

GOOD = {
    "ADMIN": False,
    "RATES": True,
    "CRITICAL": ["payments"],
    "DATABASES": ("default",),
    "HEALTH_TIMEOUT": 0.5,
    "SWEEPER_MAX_AGE": 60,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"CRITICL": []}, "RESILIENCE['DASHBOARD'] has the unknown key 'CRITICL'."),
        ({"CRITICAL": "payments"}, "RESILIENCE['DASHBOARD']['CRITICAL'] must be a list of names of circuits, not 'payments'."),
        (
            {"DATABASES": ["nowhere"]},
            "RESILIENCE['DASHBOARD']['DATABASES'] must be a list of aliases in DATABASES, not ['nowhere'].",
        ),
        ({"HEALTH_TIMEOUT": "2"}, "RESILIENCE['DASHBOARD']['HEALTH_TIMEOUT'] must be more than 0 seconds, not '2'."),
        ({"SWEEPER_MAX_AGE": True}, "RESILIENCE['DASHBOARD']['SWEEPER_MAX_AGE'] must be more than 0 seconds, not True."),
        ({"ADMIN": "no"}, "RESILIENCE['DASHBOARD']['ADMIN'] must be True or False, not 'no'."),
    ],
)
def test_check_dashboard__tells_each_mistake_with_a_hint(options: dict[str, Any], message: str) -> None:
    """A circuit that is critical by its letters only would never fail the health endpoint."""
    with override_settings(RESILIENCE={"DASHBOARD": options}):
        (found,) = check_dashboard()

    assert (found.id, found.msg) == ("resilience.E008", message)
    assert found.hint


@pytest.mark.parametrize("resilience", [{}, {"DASHBOARD": GOOD}, {"DASHBOARD": 3}, 3])
def test_check_dashboard__has_nothing_to_say_about_the_rest(resilience: Any) -> None:
    """Good options pass, and a wrong type is E002's."""
    with override_settings(RESILIENCE=resilience):
        assert check_dashboard() == []
