from __future__ import annotations

import getpass
import io
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.utils import timezone

from resilience import CircuitBreaker, Run, get_all_circuit_breaker_stats, signals
from tests.factories import RunFactory


def _call(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def _json(*arguments: str) -> Any:
    return json.loads(_call(*arguments, "--json"))


def _code(*arguments: str) -> int:
    with pytest.raises(CommandError) as caught:
        call_command(*arguments, stdout=io.StringIO())
    return caught.value.returncode


@pytest.fixture
def breaker() -> CircuitBreaker:
    """A circuit that is open."""
    made = CircuitBreaker("payments", failure_threshold=1, sync_interval=0)
    with pytest.raises(ConnectionError), made:
        raise ConnectionError("token=geheim refused")
    return made


def test_circuits__lists_the_worst_first(breaker: CircuitBreaker) -> None:
    """A person sees a table, a script gets JSON, and neither gets a secret."""
    CircuitBreaker("a-calm-one").call(lambda: 1)

    lines = _call("resilience_circuits", "list").splitlines()

    assert lines[0].startswith("payments    open")
    assert {item["name"] for item in _json("resilience_circuits", "list")} == {"payments", "a-calm-one"}
    assert "geheim" not in _call("resilience_circuits", "show", "payments")
    assert "closed -> open" in _call("resilience_circuits", "show", "payments")


@pytest.mark.parametrize(
    ("action", "state"),
    [
        ("open", "forced_open"),
        ("close", "closed"),
        ("reset", "closed"),
        ("probe", "half_open"),
        ("disable", "disabled"),
        ("metrics-only", "metrics_only"),
    ],
)
def test_circuits__operates_and_says_who(breaker: CircuitBreaker, action: str, state: str) -> None:
    """Each action does what its button does, and the history names the person at the shell."""
    actors: list[str] = []
    signals.circuit_operated.connect(lambda actor, **_: actors.append(actor), weak=False, dispatch_uid="test")

    try:
        done = _json("resilience_circuits", action, "payments", "--reason", "drill")
    finally:
        signals.circuit_operated.disconnect(dispatch_uid="test")

    assert get_all_circuit_breaker_stats()["payments"]["state"] == state
    assert "drill" in done["payments"]
    assert actors == [f"cli:{getpass.getuser()}"]


def test_circuits__exits_with_what_it_found(breaker: CircuitBreaker) -> None:
    """Unknown names, missing names and wrong times are 1 and create nothing; --check tells an open circuit with 3."""
    assert _code("resilience_circuits", "open", "nobody") == 1
    assert _code("resilience_circuits", "open") == 1
    assert _code("resilience_circuits", "open", "payments", "--seconds", "-3") == 1
    assert _code("resilience_circuits", "list", "--check") == 3
    breaker.reset()
    assert _call("resilience_circuits", "list", "--check")
    assert list(get_all_circuit_breaker_stats()) == ["payments"]


def test_circuits__what_cannot_be_done_is_told_after_what_was_done(breaker: CircuitBreaker) -> None:
    """A circuit that is closed cannot be probed: exit code 1 and a sentence; the open one beside it is let probe."""
    CircuitBreaker("search").call(len, "abc")
    out = io.StringIO()

    with pytest.raises(CommandError) as caught:
        call_command("resilience_circuits", "probe", "search", "payments", stdout=out)

    assert str(caught.value) == "search: state must be open for half_open(), not 'closed'. There is nothing to probe."
    assert out.getvalue().startswith("payments: ")
    assert breaker.state == "half_open"


def test_runs__what_cannot_be_done_is_told_after_what_was_done(db: None) -> None:
    """A finished run cannot be paused; the running one before it is, at the end of its step, and the output says so."""
    RunFactory(key="train:1", status="running")
    RunFactory(key="train:2", status="finished")
    out = io.StringIO()

    with pytest.raises(CommandError, match=r"'train:2' cannot pause: it is finished"):
        call_command("resilience_runs", "pause", "train:2", "train:1", stdout=out)

    assert out.getvalue() == "train:1: Paused, at the end of the step.\n"


@pytest.mark.parametrize("arguments", [["resilience_sweep"], ["resilience_runs", "list"]])
def test_command__without_tables_names_the_command_that_makes_them(tmp_path: Any, arguments: list[str]) -> None:
    """Before `migrate` there is advice instead of a traceback."""
    program = [sys.executable, "-m", "django", *arguments, "--settings", "tests.settings"]
    environment = {**os.environ, "TEST_DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3"}

    ran = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)

    assert (ran.returncode, ran.stderr.strip().splitlines()[-1]) == (
        1,
        "CommandError: The database 'default' has no tables of runs. Run manage.py migrate.",
    )
    assert "Traceback" not in ran.stderr


def test_runs__lists_shows_and_operates(db: None) -> None:
    """A run is found by its key, and its status decides what can be done."""
    RunFactory(key="train:7", status="queued")

    listed, done = _json("resilience_runs", "list"), _json("resilience_runs", "pause", "train:7", "--reason", "drill")

    assert [item["key"] for item in listed] == ["train:7"]
    assert Run.objects.get().status == "paused"
    assert "drill" in done["train:7"]
    assert _json("resilience_runs", "show", "train:7")[0]["checkpoints"] == []
    assert _code("resilience_runs", "retry", "train:7") == 1
    assert _code("resilience_runs", "pause", "nobody") == 1
    assert _code("resilience_runs", "pause") == 1


def test_runs__check_tells_failed_ones(db: None) -> None:
    """A watchdog can use the exit code."""
    assert _call("resilience_runs", "list", "--check") == ""
    RunFactory(key="bad", status="failed")

    assert _code("resilience_runs", "list", "--check") == 3


def test_runs__prune_deletes_only_what_ended_long_ago(db: None, settings: Any, tmp_path: Any) -> None:
    """Failed runs, young runs and runs under way stay."""
    settings.MEDIA_ROOT = str(tmp_path)
    old = timezone.now() - timedelta(days=40)
    for key, status, finished_at in (
        ("old", "finished", old), ("gone", "cancelled", old), ("failed", "failed", old), ("young", "finished", timezone.now()), ("live", "running", None),
    ):  # fmt: skip
        RunFactory(key=key, status=status, finished_at=finished_at)

    removed = _json("resilience_runs", "prune", "--days", "30")

    assert removed["runs"] == 2
    assert set(Run.objects.values_list("key", flat=True)) == {"failed", "young", "live"}
    assert _code("resilience_runs", "prune", "--days", "0") == 1


def test_check__warns_about_a_cache_of_one_process(transactional_db: None) -> None:
    """On LocMem everything works, with a warning and the exit code 2."""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("resilience_check", "--json", stdout=out)

    results = {item["test"]: item["result"] for item in json.loads(out.getvalue())}
    assert caught.value.returncode == 2
    assert results.pop("cache: is shared") == "warning"
    assert set(results.values()) == {"ok"}


def test_check__fails_when_the_cache_forgets(transactional_db: None) -> None:
    """A cache that does not keep what it is given is exit code 1, told in a sentence."""
    out = io.StringIO()
    with (
        mock.patch.object(type(cache._connections["default"]), "get", return_value=None),
        pytest.raises(CommandError) as caught,
    ):
        call_command("resilience_check", "--json", stdout=out)

    details = {item["test"]: item["detail"] for item in json.loads(out.getvalue())}
    assert caught.value.returncode == 1
    assert details["cache: keeps values"] == "It returned None. Check the backend in CACHES."


#: The keys that scripts may rely on; adding one is fine, taking one away is not.
_CIRCUIT_KEYS = {
    "name", "state", "failure_count", "success_count", "rejected_count", "slow_count", "failure_rate", "slow_rate",
    "failure_threshold", "opened_at", "retry_after", "reason", "actor", "changed_at", "generation", "last_error",
    "recent_failures", "transitions", "series", "config", "declared_in", "scope", "cache", "cache_available", "last_seen",
}  # fmt: skip
_RUN_KEYS = {
    "key", "status", "request", "task", "current", "total", "progress", "attempts", "owner", "heartbeat_at", "error",
}  # fmt: skip


def test_json__has_the_documented_keys(breaker: CircuitBreaker, settings: Any) -> None:
    """Circuits that were used and those that only the settings name look the same to a script."""
    settings.RESILIENCE = {"CIRCUITS": {"planned": {"failure_threshold": 7}, "broken": {"failure_threshold": -1}}}

    listed = {item["name"]: item for item in _json("resilience_circuits", "list")}

    assert {name: set(item) for name, item in listed.items()} == dict.fromkeys(["payments", "planned", "broken"], _CIRCUIT_KEYS)
    assert listed["planned"]["failure_threshold"] == 7


@pytest.mark.django_db
def test_json__of_runs_has_the_documented_keys() -> None:
    """Numbers are numbers and moments are ISO 8601, in whatever language the shell is."""
    RunFactory(key="train", current=3, total=9, heartbeat_at=timezone.now())

    (listed,) = _json("resilience_runs", "list")
    (shown,) = _json("resilience_runs", "show", "train")

    assert set(listed) == _RUN_KEYS
    assert set(shown) == _RUN_KEYS | {"checkpoints", "errors"}
    assert (listed["current"], listed["total"]) == (3, 9)
    assert datetime.fromisoformat(listed["heartbeat_at"]).tzinfo is not None


@pytest.mark.parametrize(
    "name", ["-begins with a dash", "new\nline", "\ud800 half a pair", "\u202egnirts", "\N{PILE OF POO}", "q'\"uote"], ids=ascii
)
def test_names__may_be_odd(name: str) -> None:
    """Any name can be listed, shown and operated, and what is printed can be printed anywhere."""
    CircuitBreaker(name).call(lambda: 1)

    call_command("resilience_circuits", "disable", "--", name, stdout=io.StringIO())
    (shown,) = json.loads(_call("resilience_circuits", "show", "--json", "--", name))

    assert (shown["name"], shown["state"]) == (name, "disabled")
    assert _call("resilience_circuits", "list", "--json").isascii()
    _call("resilience_circuits", "show", "--", name).encode()


@pytest.mark.parametrize("arguments", [["--seconds", "900", "payments"], ["payments", "--seconds", "900"]])
def test_options__stand_anywhere(breaker: CircuitBreaker, arguments: list[str]) -> None:
    """Nobody has to remember whether the name comes before the options."""
    assert "for 900 s" in _call("resilience_circuits", "open", "--reason", "down", *arguments)


@pytest.mark.django_db
def test_runs__those_that_can_be_operated_are() -> None:
    """One run that cannot be paused does not keep the others from it; the exit code and the message tell."""
    RunFactory(key="over", status="finished")
    RunFactory(key="waiting", status="queued")
    out = io.StringIO()

    with pytest.raises(CommandError, match="over"):
        call_command("resilience_runs", "pause", "over", "waiting", stdout=out)

    assert Run.objects.get(key="waiting").status == "paused"
    assert out.getvalue().startswith("waiting: Paused.")
