"""System checks of `RESILIENCE["DASHBOARD"]`: a health endpoint that watches the wrong thing never fails.

| id | meaning |
|---|---|
| resilience.E008 | RESILIENCE["DASHBOARD"] has an unknown key or a wrong value |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from resilience import conf
from resilience.values import is_number

__all__ = ["check_dashboard"]


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


#: What each key must be, and how to tell.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "ADMIN": ("True or False", lambda value: isinstance(value, bool)),
    "RATES": ("True or False", lambda value: isinstance(value, bool)),
    "CRITICAL": ("a list of names of circuits", _is_list_of_text),
    "DATABASES": (
        "a list of aliases in DATABASES",
        lambda value: _is_list_of_text(value) and set(value) <= set(settings.DATABASES),
    ),
    "HEALTH_TIMEOUT": ("more than 0 seconds", _is_positive),
    "SWEEPER_MAX_AGE": ("more than 0 seconds", _is_positive),
}


@register("resilience")
def check_dashboard(**kwargs: Any) -> list[CheckMessage]:
    """Judge the options of the pages and the health endpoint (E008)."""
    raw = getattr(settings, "RESILIENCE", {})
    if conf.problems(raw):
        return []  # E002 says so
    found: list[CheckMessage] = []
    for name, value in raw.get("DASHBOARD", {}).items():
        if name not in _RULES:
            message = f"RESILIENCE['DASHBOARD'] has the unknown key {name!r}."
            hint = f"Remove it, or use one of {', '.join(sorted(_RULES))}."
        elif not _RULES[name][1](value):
            message = f"RESILIENCE['DASHBOARD'][{name!r}] must be {_RULES[name][0]}, not {value!r}."
            hint = "Leave it out for the default; see docs/dashboard.md."
        else:
            continue
        found.append(Error(message, hint=hint, id="resilience.E008"))
    return found
