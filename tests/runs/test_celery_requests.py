from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery.worker.request import Request
from django.db import connections, transaction

from resilience import celery_requests
from resilience.celery_requests import ResumableRequest
from resilience.runs.leases import take
from resilience.runs.models import Run


class Router:
    """Keeps everything in PostgreSQL, which threads can share."""

    alias = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.alias

    db_for_write = db_for_read


@pytest.fixture
def alias(postgresql: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Router, "alias", postgresql)
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    return postgresql


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time limits after which Celery killed the child."""
    limits: list[float] = []
    monkeypatch.setattr(Request, "on_timeout", lambda self, soft, timeout: limits.append(timeout))
    return limits


def request_of_child() -> ResumableRequest:
    """A message that a child works on; this process plays the child."""
    request = ResumableRequest.__new__(ResumableRequest)
    request._type, request.name, request.worker_pid = "tests.task", "shown as this", os.getpid()
    return request


def taken_run(alias: str) -> Run:
    run = Run.objects.using(alias).create(key="a", task="tests.task")
    assert take(run, alias, statuses=("queued",)) is not None
    return run


def test_on_timeout__takes_the_run_from_the_child_before_it_is_killed(
    alias: str, killed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is queued again, with the reason, and woken after the child is gone."""
    woken: list[str] = []
    monkeypatch.setattr(celery_requests, "wake", lambda run, using, **options: woken.append(run.key))
    run = taken_run(alias)

    request_of_child().on_timeout(False, 30.0)

    run.refresh_from_db()
    assert (run.status, woken, killed) == ("queued", ["a"], [30.0])
    assert run.last_error == f"hard time limit of 30 s is over for {socket.gethostname()}:{os.getpid()}"


@pytest.fixture
def locked(alias: str) -> Iterator[threading.Event]:
    """Nobody can read the table of runs until the event is set."""
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("LOCK TABLE resilience_run IN ACCESS EXCLUSIVE MODE")
            held.set()
            free.wait(60)
        connections[alias].close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    yield free
    free.set()
    thread.join(10)


def test_on_timeout__goes_on_when_the_database_does_not_answer(
    alias: str,
    killed: list[float],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker's main loop waits for it no longer than its patience; the run is taken away once it answers."""
    monkeypatch.setattr(celery_requests, "_PATIENCE", 0.1)
    monkeypatch.setattr(celery_requests, "wake", lambda run, using, **options: True)
    run = taken_run(alias)
    free = request.getfixturevalue("locked")

    with caplog.at_level(logging.WARNING, "resilience.runs"):
        request_of_child().on_timeout(False, 30.0)

    assert (killed, free.is_set()) == ([30.0], False)
    assert "time limit not noted yet" in caplog.text
    free.set()
    for thread in threading.enumerate():
        if thread.name == "resilience-time-limit":
            thread.join(10)
    run.refresh_from_db()
    assert run.status == "queued"
