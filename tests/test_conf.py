from __future__ import annotations

import importlib
import sys
from typing import Any
from unittest import mock

import environ
import pytest
from django.contrib.admin import AdminSite
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from resilience import conf
from resilience.checks import check_cache_alias, check_keys
from resilience.models import Run


def test_current__fills_in_the_defaults() -> None:
    """Without any setting the documented defaults hold."""
    settings = conf.current()

    assert (settings.enabled, settings.cache, settings.sync_interval) == (True, "default", 1.0)


def test_current__follows_override_settings() -> None:
    """A changed setting is seen at once, and so is its end."""
    with override_settings(RESILIENCE={"ENABLED": False, "REDACT": ["x+"]}):
        inside = conf.current()

    assert (inside.enabled, inside.redact) == (False, ("x+",))
    assert conf.current().enabled


def test_on_change__is_called_for_each_change() -> None:
    """Whoever keeps something derived from the settings is told when to drop it."""
    calls: list[int] = []
    conf.on_change(lambda: calls.append(1))

    with override_settings(RESILIENCE={}):
        during = len(calls)

    assert (during, len(calls)) == (1, 2)


BAD = [
    ([], r"RESILIENCE must be a dict, not \[\]\."),
    ({"SPEED": 1}, r"RESILIENCE has the unknown key 'SPEED'\."),
    ({"ENABLED": "yes"}, r"RESILIENCE\['ENABLED'\] must be True or False, not 'yes'\."),
    ({"CACHE": 3}, r"RESILIENCE\['CACHE'\] must be the name of an alias in CACHES, not 3\."),
    ({"SYNC_INTERVAL": -1}, r"RESILIENCE\['SYNC_INTERVAL'\] must be 0 or more seconds, not -1\."),
    ({"SYNC_INTERVAL": float("nan")}, r"must be 0 or more seconds, not nan\."),
    ({"SYNC_INTERVAL": True}, r"must be 0 or more seconds, not True\."),
    ({"RETRY": 3}, r"RESILIENCE\['RETRY'\] must be a dict, not 3\."),
    ({"CIRCUITS": {"payments": 5}}, r"RESILIENCE\['CIRCUITS'\] must be a dict of names to dicts, not \{'payments': 5\}\."),
    ({"POLICIES": {"openai": True}}, r"RESILIENCE\['POLICIES'\] must be a dict of names to dicts"),
    ({"REDACT": ["("]}, r"RESILIENCE\['REDACT'\] must be a list of regular expressions, not \['\('\]\."),
    ({"CLASSIFIERS": "a.b"}, r"RESILIENCE\['CLASSIFIERS'\] must be a list of strings, not 'a\.b'\."),
]


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_bad_setting__is_an_error_with_a_hint(raw: Any, message: str) -> None:
    """A wrong value is a system check error with a hint, and no guess is made when it is read."""
    with override_settings(RESILIENCE=raw):
        found = check_keys()
        with pytest.raises(ImproperlyConfigured, match=message):
            conf.current()

    assert [error.id for error in found] == ["resilience.E002"]
    assert found[0].hint


def test_missing_cache_alias__is_an_error_with_a_hint() -> None:
    """An alias that CACHES does not have is told before the first call."""
    with override_settings(RESILIENCE={"CACHE": "elsewhere"}):
        found = check_cache_alias()

    assert [(error.id, bool(error.hint)) for error in found] == [("resilience.E001", True)]


@pytest.mark.parametrize("raw", [{"CIRCUIT": {"cache": "elsewhere"}}, {"CIRCUITS": {"payments": {"cache": "elsewhere"}}}])
def test_missing_cache_alias_of_a_circuit__is_an_error_too(raw: Any) -> None:
    """A circuit that names a missing alias would count in its process alone."""
    with override_settings(RESILIENCE=raw):
        found = check_cache_alias()

    assert [error.id for error in found] == ["resilience.E001"]
    assert "['cache'] must be an alias in CACHES, not 'elsewhere'." in found[0].msg


def test_admin__leaves_bad_settings_to_the_checks() -> None:
    """`manage.py check` tells what is wrong and how to repair it; the admin's import does not get in its way."""
    site = AdminSite()

    with override_settings(RESILIENCE={"SPEED": 1}), mock.patch("django.contrib.admin.site", site):
        importlib.reload(sys.modules["resilience.admin"])

    assert site.is_registered(Run)


def test_checks__are_registered() -> None:
    """`manage.py check` runs them."""
    with override_settings(RESILIENCE={"SPEED": 1}):
        found = run_checks(tags=["resilience"])

    assert "resilience.E002" in [error.id for error in found]


def test_from_env__reads_every_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 12-factor variables become the RESILIENCE dict."""
    variables = {
        "RESILIENCE_ENABLED": "true",
        "RESILIENCE_RETRY_ENABLED": "false",
        "RETRY_MAX_ATTEMPTS": "5",
        "RETRY_BASE_DELAY": "0.25",
        "RETRY_MAX_DELAY": "30",
        "RETRY_EXPONENTIAL_BASE": "3",
        "RETRY_JITTER": "equal",
        "RESILIENCE_CIRCUIT_BREAKER_ENABLED": "true",
        "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "7",
        "CIRCUIT_BREAKER_SUCCESS_THRESHOLD": "3",
        "CIRCUIT_BREAKER_TIMEOUT": "45",
        "CIRCUIT_BREAKER_HALF_OPEN_MAX_CALLS": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    settings = conf.from_env(environ.Env())

    assert settings == {
        "ENABLED": True,
        "RETRY": {"enabled": False, "max_attempts": 5, "delay": 0.25, "max_delay": 30.0, "backoff": 3.0, "jitter": "equal"},
        "CIRCUIT": {
            "enabled": True,
            "failure_threshold": 7,
            "success_threshold": 3,
            "recovery_timeout": 45.0,
            "half_open_max_calls": 2,
        },
    }
    assert conf.problems(settings) == []


def test_from_env__leaves_out_what_is_not_set() -> None:
    """Without variables the defaults of the configs stay in force."""
    assert conf.from_env(environ.Env()) == {}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("off", False), ("full", "full"), ("decorrelated", "decorrelated")])
def test_from_env__reads_jitter_as_switch_or_kind(monkeypatch: pytest.MonkeyPatch, text: str, value: object) -> None:
    """RETRY_JITTER takes a boolean or the name of a kind of jitter."""
    monkeypatch.setenv("RETRY_JITTER", text)

    assert conf.from_env(environ.Env())["RETRY"]["jitter"] == value


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("RETRY_MAX_ATTEMPTS", "three", "RETRY_MAX_ATTEMPTS must be a whole number, not 'three'."),
        ("RETRY_BASE_DELAY", "1s", "RETRY_BASE_DELAY must be a number, not '1s'."),
        ("RESILIENCE_ENABLED", "ture", "RESILIENCE_ENABLED must be one of true, false, not 'ture'."),
        ("RETRY_JITTER", "ful", "RETRY_JITTER must be one of true, false, full, equal, decorrelated, not 'ful'."),
    ],
)
def test_from_env__names_the_variable_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    """A misspelt switch is told; it never means False, which would take all protection away without a word."""
    monkeypatch.setenv(variable, text)

    with pytest.raises(ImproperlyConfigured) as caught:
        conf.from_env(environ.Env())

    assert str(caught.value) == f"{message} Correct it, or leave it out for the default."


@pytest.mark.parametrize("variable", ["RESILIENCE_ENABLED", "RETRY_JITTER", "RETRY_MAX_ATTEMPTS", "CIRCUIT_BREAKER_TIMEOUT"])
def test_from_env__takes_an_empty_variable_for_none(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """`RETRY_JITTER=` in a .env file keeps the default."""
    monkeypatch.setenv(variable, "")

    assert conf.from_env(environ.Env()) == {}
