from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache

from resilience import patience
from resilience.patience import NoAnswerError, ask, limit, may_freeze, unreachable, within

LONG = 30.0
SHORT = 0.05


class Frozen(LocMemCache):
    """A cache on a server that accepts questions and says nothing; `thawed` lets it answer."""

    thawed = threading.Event()

    def get(self, *args: Any, **kwargs: Any) -> Any:
        assert self.thawed.wait(LONG)


@pytest.fixture
def frozen(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A cache, "far", that does not answer before this event is set, and one second of patience with it."""
    monkeypatch.setattr(Frozen, "thawed", threading.Event())
    monkeypatch.setattr(patience, "LocMemCache", type("Near", (), {}))
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
        **{alias: {"BACKEND": f"{__name__}.Frozen"} for alias in ("far", "farther")},
    }
    settings.RESILIENCE = {"DASHBOARD": {"HEALTH_TIMEOUT": SHORT}}
    yield Frozen.thawed
    Frozen.thawed.set()


def test_within__returns_the_answer_or_raises_the_error() -> None:
    """In time, it is as if the function had been called here."""
    with pytest.raises(ZeroDivisionError):
        within(LONG, "wrong", lambda: 1 // 0)

    assert within(LONG, "none", lambda: None) is None
    assert within(LONG, "slow", lambda: time.sleep(SHORT) or "answer") == "answer"
    assert within(LONG, "thread", threading.current_thread) is not threading.current_thread()


def test_within__gives_up_and_leaves_one_thread_alone() -> None:
    """While one question waits, the same one is not asked again; once it ended, it is."""
    thawed, asked = threading.Event(), []

    def act() -> int:
        asked.append(threading.current_thread())
        assert thawed.wait(LONG)
        return len(asked)

    for _ in range(3):
        with pytest.raises(NoAnswerError):
            within(SHORT, "stuck", act)
    assert len(asked) == 1
    assert asked[0].daemon
    assert within(LONG, "another", lambda: "answer") == "answer"

    thawed.set()
    asked[0].join(LONG)

    assert within(LONG, "stuck", act) == 2
    assert within(LONG, "stuck", act) == 3


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
def test_within__no_time_is_no_answer_and_no_error(seconds: float) -> None:
    """Time that is over before the question is asked waits no longer."""
    thawed = threading.Event()

    with pytest.raises(NoAnswerError):
        within(seconds, f"late {seconds}", lambda: thawed.wait(LONG))
    thawed.set()


@pytest.mark.django_db
def test_within__closes_the_connections_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that used the database leaves no connection behind, whatever came of it."""
    closed: list[threading.Thread] = []
    monkeypatch.setattr(patience.connections, "close_all", lambda: closed.append(threading.current_thread()))

    asker = within(LONG, "sound", threading.current_thread)
    with pytest.raises(ZeroDivisionError):
        within(LONG, "broken", lambda: 1 // 0)

    assert closed[0] is asker
    assert len(closed) == 2


def test_limit__is_the_setting(settings: Any) -> None:
    """Two seconds, or what `HEALTH_TIMEOUT` says."""
    assert limit() == 2.0

    settings.RESILIENCE = {"DASHBOARD": {"HEALTH_TIMEOUT": 7}}

    assert limit() == 7.0


def test_may_freeze__only_what_is_asked_over_a_network(settings: Any, tmp_path: Any) -> None:
    """Memory, files and nothing at all answer; a database has limits of its own; an alias that is missing fails at once."""
    backends = "django.core.cache.backends"
    settings.CACHES = {
        "default": {"BACKEND": f"{backends}.locmem.LocMemCache"},
        "none": {"BACKEND": f"{backends}.dummy.DummyCache"},
        "files": {"BACKEND": f"{backends}.filebased.FileBasedCache", "LOCATION": str(tmp_path)},
        "table": {"BACKEND": f"{backends}.db.DatabaseCache", "LOCATION": "cache"},
        "redis": {"BACKEND": f"{backends}.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1"},
    }

    assert [alias for alias in [*settings.CACHES, "missing"] if may_freeze(alias)] == ["redis"]


def test_ask__gives_up_on_a_cache_that_is_frozen(frozen: threading.Event) -> None:
    """One that may freeze is asked with a limit, one that cannot is asked here."""
    with pytest.raises(NoAnswerError):
        ask("far", "question", lambda: caches["far"].get("key"))

    assert ask("default", "question", threading.current_thread) is threading.current_thread()


def test_unreachable__names_what_does_not_answer(frozen: threading.Event) -> None:
    """All are asked at the same time and each once, in the order given; what is wrong is told by its class alone."""
    assert unreachable(["far", "default", "missing", "farther", "far"]) == {
        "far": "no answer",
        "missing": "InvalidCacheBackendError",
        "farther": "no answer",
    }

    frozen.set()
    for thread in list(patience._stuck.values()):
        thread.join(LONG)

    assert unreachable(["far", "default", "farther"]) == {}


def test_unreachable__has_one_limit_for_all(frozen: threading.Event, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is for all caches together, however many are frozen."""
    waits: list[float] = []
    monkeypatch.setattr(patience._Question, "answer", lambda question, seconds: waits.append(seconds))
    monkeypatch.setattr(patience.clock, "monotonic", iter([100.0, 100.5, 101.5]).__next__)
    settings.RESILIENCE = {"DASHBOARD": {"HEALTH_TIMEOUT": 3}}

    unreachable(["far", "farther"])

    assert waits == [2.5, 1.5]
