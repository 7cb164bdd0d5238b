"""System checks of the calls pillar: wrong retry options and classifiers are told before the first outage.

| id | meaning |
|---|---|
| resilience.E003 | RESILIENCE["RETRY"] has an unknown field or a wrong value |
| resilience.E010 | RESILIENCE["CLASSIFIERS"] names something that cannot be imported or called |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

from resilience import conf
from resilience.calls.retry_config import RetryConfig

__all__ = ["check_classifiers", "check_retry"]


@register("resilience")
def check_retry(**kwargs: Any) -> list[CheckMessage]:
    """Judge RESILIENCE["RETRY"] by making a RetryConfig of it (E003)."""
    given = dict(_section("RETRY", {}))
    enabled = given.pop("enabled", True)
    if not isinstance(enabled, bool):
        message = f"RESILIENCE['RETRY']['enabled'] must be True or False, not {enabled!r}."
        return [Error(message, hint="False switches retrying off.", id="resilience.E003")]
    try:
        RetryConfig(**given)
    except (TypeError, ValueError) as error:
        names = ", ".join(["enabled", *(definition.name for definition in fields(RetryConfig))])
        hint = f"The fields are {names}; see docs/calls.md."
        return [Error(f"RESILIENCE['RETRY'] is wrong: {error}", hint=hint, id="resilience.E003")]
    return []


@register("resilience")
def check_classifiers(**kwargs: Any) -> list[CheckMessage]:
    """Import what RESILIENCE["CLASSIFIERS"] names (E010)."""
    return [
        Error(message, hint="Name functions (exception) -> ErrorInfo | None by their dotted paths.", id="resilience.E010")
        for path in _section("CLASSIFIERS", [])
        if (message := _problem_with(path))
    ]


def _problem_with(path: str) -> str:
    try:
        found = import_string(path)
    except ImportError as error:
        return f"RESILIENCE['CLASSIFIERS'] names {path!r}, which cannot be imported: {error}"
    return "" if callable(found) else f"RESILIENCE['CLASSIFIERS'] names {path!r}, which is no function."


def _section(key: str, default: Any) -> Any:
    """Return a part of RESILIENCE, or the default where E002 already tells what is wrong."""
    raw = getattr(settings, "RESILIENCE", {})
    return default if not isinstance(raw, Mapping) or conf.problems(raw) else raw.get(key, default)
