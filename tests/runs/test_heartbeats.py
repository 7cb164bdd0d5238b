from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DataError

from resilience import clock, open_run
from resilience.runs import leases
from resilience.runs.leases import Lease
from resilience.runs.models import Run


def test_heartbeat__outlives_an_error_of_any_kind(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver, a pool or a backend that fails once does not end the signs of life of a healthy worker."""
    beat, beaten, answers = Lease.beat, threading.Event(), [OSError("password=x no such host")]

    def odd(self: Lease, has_moved: Callable[[], bool]) -> None:
        if answers:
            raise answers.pop()
        beat(self, has_moved)
        beaten.set()

    monkeypatch.setattr(Lease, "beat", odd)

    with caplog.at_level(logging.WARNING, "resilience.runs"), open_run("a", lease=1.0, using=postgresql):
        assert beaten.wait(20)

    assert [(record.message, vars(record)["error"]) for record in caplog.records] == [
        ("heartbeat failed", "OSError: password=[redacted] no such host")
    ]


def refuse(thread: threading.Thread) -> None:
    if thread.name.startswith("resilience-run"):
        raise RuntimeError("can't start new thread")
    start(thread)


start = threading.Thread.start


def test_heartbeat__is_given_by_the_steps_when_there_is_no_thread_left(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that cannot start a thread works on, and the ends of its steps renew the lease."""
    now = [clock.monotonic()]
    monkeypatch.setattr("resilience.clock.monotonic", lambda: now[0])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    beats: list[Any] = []
    beat = Lease.beat
    monkeypatch.setattr(Lease, "beat", lambda self, has_moved: (beats.append(1), beat(self, has_moved))[1])

    with open_run("a", using=postgresql) as run:
        for _ in run.steps(3):
            now[0] += 5

    assert len(beats) >= 2
    assert Run.objects.using(postgresql).get().status == "finished"
    assert "no thread for heartbeats" in caplog.text


def test_attempt__gives_the_run_back_when_it_cannot_begin(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong before the body leaves no run running, and no lease held."""

    def fail(using: str) -> bool:
        raise MemoryError

    monkeypatch.setattr("resilience.runs.heartbeats.has_second_view", fail)

    with pytest.raises(MemoryError), open_run("a", using=postgresql):
        pass

    run = Run.objects.using(postgresql).get()
    assert run.status == "failed"
    assert (postgresql, run.pk) not in leases._HELD


@pytest.mark.django_db
def test_progress__that_the_database_does_not_like_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person would have read is lost, and nothing else."""

    write = Lease.write

    def odd(self: Lease, **values: Any) -> None:
        if "message" in values:
            raise DataError("Incorrect string value")
        write(self, **values)

    monkeypatch.setattr(Lease, "write", odd)

    with open_run("a") as run:
        run.progress(1, 2, "\N{SNOWMAN}")

    assert Run.objects.get().status == "finished"
