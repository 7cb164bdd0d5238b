"""System checks of `RESILIENCE["RUNS"]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from resilience.runs.formats import AUTO, FORMATS
from resilience.runs.signing import MIN_KEY_LENGTH
from resilience.values import is_number, is_whole

__all__ = ["check_runs"]

_HINTS = {
    "STORAGE": "Add it to STORAGES, or name one that is there.",
    "INLINE_LIMIT": "Leave it out for 65,536 bytes.",
    "FORMAT": "Leave it out to choose by content.",
    "WAKE_AFTER": "Leave it out for the default.",
    "SIGNING_KEYS": "Make one with secrets.token_urlsafe(48), and keep it where SECRET_KEY is kept.",
}


@register("resilience")
def check_runs(**kwargs: Any) -> list[CheckMessage]:
    """Judge the options of the runs pillar (E020); a key that signs is never shown."""
    raw = getattr(settings, "RESILIENCE", {})
    options = raw.get("RUNS", {}) if isinstance(raw, Mapping) else {}
    if not isinstance(options, Mapping):
        return []  # E002 says so
    found: list[CheckMessage] = []
    for name, value in options.items():
        if name not in _HINTS:
            hint = f"Remove it, or use one of {', '.join(sorted(_HINTS))}."
            found.append(Error(f"RESILIENCE['RUNS'] has the unknown key {name!r}.", hint=hint, id="resilience.E020"))
        elif rule := _broken_rule(name, value):
            shown = "" if name == "SIGNING_KEYS" else f", not {value!r}"
            message = f"RESILIENCE['RUNS'][{name!r}] must be {rule}{shown}."
            found.append(Error(message, hint=_HINTS[name], id="resilience.E020"))
    if options.get("FORMAT") == "pickle" and not options.get("SIGNING_KEYS"):
        message = "RESILIENCE['RUNS']['FORMAT'] must not be 'pickle' without RESILIENCE['RUNS']['SIGNING_KEYS']."
        found.append(Error(message, hint=_HINTS["SIGNING_KEYS"], id="resilience.E020"))
    return found


def _broken_rule(name: str, value: Any) -> str:
    """Name the rule that a value breaks, or return ""."""
    if name == "STORAGE":
        return "" if isinstance(value, str) and value in settings.STORAGES else "an alias in STORAGES"
    if name == "INLINE_LIMIT":
        return "" if is_whole(value) and value >= 0 else "0 or more bytes"
    if name == "WAKE_AFTER":
        return "" if is_number(value) and value > 0 else "more than 0 seconds"
    if name == "FORMAT":
        return "" if isinstance(value, str) and value in {AUTO, *FORMATS} else f"one of {', '.join([AUTO, *FORMATS])}"
    is_list = isinstance(value, (list, tuple)) and all(isinstance(key, (str, bytes)) for key in value)
    is_long = is_list and all(len(key if isinstance(key, bytes) else key.encode()) >= MIN_KEY_LENGTH for key in value)
    return "" if is_long else f"a list of keys of at least {MIN_KEY_LENGTH} bytes"
