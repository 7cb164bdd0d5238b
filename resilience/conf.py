"""The `RESILIENCE` setting: its keys, their types, and the snapshot everybody reads.

The snapshot is built when it is first asked for and dropped on `setting_changed`, so that `override_settings`
works and a call costs one attribute look-up. Nothing here knows what the values of RETRY, CIRCUIT, POLICIES or
RUNS mean: their pillars do, and `resilience.checks` asks them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from resilience.values import is_number

__all__ = ["Settings", "current", "from_env", "on_change", "override", "problems"]

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One reading of `settings.RESILIENCE`, with defaults filled in.

    Args:
        enabled: False makes every decorator call straight through, fallbacks included.
        cache: Alias in CACHES that holds the shared state.
        sync_interval: Seconds between two looks of one process at the shared state; 0 or more.
        retry: Fields of `RetryConfig` that replace its defaults; `enabled` False switches retrying off.
        circuit: Fields of `CircuitBreakerConfig` that replace its defaults; `enabled` False switches breakers off.
        circuits: Circuit names to `CircuitBreakerConfig` fields.
        policies: Policy names to the fields of `Policy`.
        classifiers: Dotted paths of functions `(exception) -> ErrorInfo | None`, asked before the built-in rules.
        runs: Options of the runs pillar.
        redact: Extra regular expressions whose matches are replaced before anything is stored or shown.
        chaos: Policy names to the faults injected into them; see docs/testing.md.
        dashboard: Options of the admin pages and the health endpoint.
    """

    enabled: bool = True
    cache: str = "default"
    sync_interval: float = 1.0
    retry: Mapping[str, Any] = field(default_factory=dict)
    circuit: Mapping[str, Any] = field(default_factory=dict)
    circuits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classifiers: tuple[str, ...] = ()
    runs: Mapping[str, Any] = field(default_factory=dict)
    redact: tuple[str, ...] = ()
    chaos: Mapping[str, Any] = field(default_factory=dict)
    dashboard: Mapping[str, Any] = field(default_factory=dict)


_KEYS = {definition.name.upper(): definition.name for definition in fields(Settings)}
_LISTS = {"CLASSIFIERS", "REDACT"}

_snapshot: Settings | None = None
_overrides: list[Callable[[Settings], Settings]] = []
_listeners: list[Callable[[], None]] = []


def current() -> Settings:
    """Return the settings in force now.

    Without any Django settings (a plain script) the defaults hold.

    Raises:
        ImproperlyConfigured: RESILIENCE has an unknown key or a value of the wrong type.

    Example:
        >>> current().cache
        'default'
    """
    return _snapshot if _snapshot is not None else _read()


def on_change(listener: Callable[[], None]) -> None:
    """Call `listener()` whenever RESILIENCE, CACHES or DEBUG changed, as `override_settings` does."""
    _listeners.append(listener)


@contextmanager
def override(change: Callable[[Settings], Settings]) -> Iterator[None]:
    """Put `change` on top of whatever the settings say, until the block ends; for `resilience.testing`.

    Args:
        change: Takes the settings as they would be and returns the settings to use.

    Example:
        >>> with override(lambda settings: Settings(enabled=False)):
        ...     current().enabled
        False
    """
    _overrides.append(change)
    _changed()
    try:
        yield
    finally:
        _overrides.remove(change)
        _changed()


def problems(raw: object) -> list[tuple[str, str]]:
    """Tell what is wrong with a value of `settings.RESILIENCE`.

    Args:
        raw: The value to judge.

    Returns:
        Pairs of a sentence and a hint, one for each unknown key or wrong type; empty when all is well.
    """
    if not isinstance(raw, Mapping):
        return [(f"RESILIENCE must be a dict, not {raw!r}.", "Set RESILIENCE = {}.")]
    found = []
    for key, value in raw.items():
        if key not in _KEYS:
            hint = f"Remove it, or use one of {', '.join(sorted(_KEYS))}."
            found.append((f"RESILIENCE has the unknown key {key!r}.", hint))
        elif rule := _broken_rule(key, value):
            found.append((f"RESILIENCE[{key!r}] must be {rule}, not {value!r}.", "See docs/settings.md for its form."))
    return found


def from_env(env: Any) -> dict[str, Any]:
    """Build a `RESILIENCE` dict from 12-factor variables; what is not set keeps its default.

    Args:
        env: A `environ.Env` of django-environ.

    Returns:
        A dict to assign to `settings.RESILIENCE`, or to update with more keys first.

    Raises:
        ImproperlyConfigured: A variable is no number or no boolean; the message names it.

    Example:
        >>> import environ  # doctest: +SKIP
        >>> RESILIENCE = from_env(environ.Env())  # doctest: +SKIP
    """
    result: dict[str, Any] = {}
    if (enabled := _switch(env, "RESILIENCE_ENABLED")) is not None:
        result["ENABLED"] = enabled
    for section, variables in _ENVIRONMENT.items():
        values = {name: value for name, (read, variable) in variables.items() if (value := read(env, variable)) is not None}
        if values:
            result[section] = values
    return result


def _integer(env: Any, variable: str) -> int | None:
    return _parsed(env, variable, int, "a whole number")


def _number(env: Any, variable: str) -> float | None:
    return _parsed(env, variable, float, "a number")


def _parsed(env: Any, variable: str, read: Callable[[str], _Number], rule: str) -> _Number | None:
    """Read a number strictly: django-environ makes 500 of `500ms`."""
    text = _text(env, variable)
    try:
        return read(text) if text else None
    except ValueError:
        raise _bad_variable(variable, text, rule) from None


def _switch(env: Any, variable: str, *words: str) -> bool | None:
    """Read a boolean strictly: django-environ takes a misspelt `true` for False, which would switch protection off."""
    text = _text(env, variable)
    if text and text.lower() not in _SWITCHES:
        raise _bad_variable(variable, text, f"one of {', '.join(['true', 'false', *words])}")
    return _SWITCHES[text.lower()] if text else None


def _text(env: Any, variable: str) -> str:
    """Return the variable's text, "" for one that is not set."""
    return str(env.str(variable, default="")).strip()


def _jitter(env: Any, variable: str) -> bool | str | None:
    kinds = ("full", "equal", "decorrelated")
    text = _text(env, variable)
    return text if text in kinds else _switch(env, variable, *kinds)


def _bad_variable(variable: str, text: str, rule: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{variable} must be {rule}, not {text!r}. Correct it, or leave it out for the default.")


_SWITCHES = {
    **dict.fromkeys(("true", "t", "on", "ok", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "off", "no", "n", "0"), False),
}

_ENVIRONMENT: dict[str, dict[str, tuple[Callable[[Any, str], Any], str]]] = {
    "RETRY": {
        "enabled": (_switch, "RESILIENCE_RETRY_ENABLED"),
        "max_attempts": (_integer, "RETRY_MAX_ATTEMPTS"),
        "delay": (_number, "RETRY_BASE_DELAY"),
        "max_delay": (_number, "RETRY_MAX_DELAY"),
        "backoff": (_number, "RETRY_EXPONENTIAL_BASE"),
        "jitter": (_jitter, "RETRY_JITTER"),
    },
    "CIRCUIT": {
        "enabled": (_switch, "RESILIENCE_CIRCUIT_BREAKER_ENABLED"),
        "failure_threshold": (_integer, "CIRCUIT_BREAKER_FAILURE_THRESHOLD"),
        "success_threshold": (_integer, "CIRCUIT_BREAKER_SUCCESS_THRESHOLD"),
        "recovery_timeout": (_number, "CIRCUIT_BREAKER_TIMEOUT"),
        "half_open_max_calls": (_integer, "CIRCUIT_BREAKER_HALF_OPEN_MAX_CALLS"),
    },
}


def _broken_rule(key: str, value: object) -> str:
    """Name the rule that `value` breaks, or return ""."""
    rule, holds = _RULES[key]
    return "" if holds(value) else rule


def _is_interval(value: object) -> bool:
    return is_number(value) and value >= 0


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_list_of_expressions(value: object) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    try:
        for item in value:
            re.compile(item)
    except (re.error, TypeError):
        return False
    return _is_list_of_text(value)


def _is_dict(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_dict_of_dicts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, Mapping) for item in value.values())


#: What each key must be, and how to tell.
_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "ENABLED": ("True or False", lambda value: isinstance(value, bool)),
    "CACHE": ("the name of an alias in CACHES", lambda value: isinstance(value, str)),
    "SYNC_INTERVAL": ("0 or more seconds", _is_interval),
    "CLASSIFIERS": ("a list of strings", _is_list_of_text),
    "REDACT": ("a list of regular expressions", _is_list_of_expressions),
    "CIRCUITS": ("a dict of names to dicts", _is_dict_of_dicts),
    "POLICIES": ("a dict of names to dicts", _is_dict_of_dicts),
    **dict.fromkeys(("RETRY", "CIRCUIT", "RUNS", "CHAOS", "DASHBOARD"), ("a dict", _is_dict)),
}


def _read() -> Settings:
    global _snapshot
    if not settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        raw: Any = {}
    else:
        raw = getattr(settings, "RESILIENCE", {})
    if found := problems(raw):
        raise ImproperlyConfigured(" ".join(found[0]))
    values: dict[str, Any] = {_KEYS[key]: tuple(value) if key in _LISTS else value for key, value in raw.items()}
    snapshot = Settings(**values)
    for change in _overrides:
        snapshot = change(snapshot)
    if settings.configured:
        _snapshot = snapshot
    return snapshot


def _changed() -> None:
    global _snapshot
    _snapshot = None
    for listener in _listeners:
        listener()


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in {"RESILIENCE", "CACHES", "DEBUG"}:
        _changed()


setting_changed.connect(_forget, dispatch_uid="resilience.conf")
