from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event
from threading import enumerate as enumerate_threads
from unittest import mock

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection, connections
from django.test import Client, override_settings
from django.utils import timezone

from resilience import CircuitBreaker
from tests.dashboard.conftest import VIEW_CIRCUIT
from tests.factories import RunFactory

READY, LIVE = "/resilience/ready/", "/resilience/live/"
CRITICAL = override_settings(RESILIENCE={"DASHBOARD": {"CRITICAL": ["payments"]}})


def test_ready__tells_strangers_nothing(client: Client, db: None) -> None:
    """Anonymous readers get a word and a status code."""
    answer = client.get(READY)

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}
    assert "no-store" in answer["Cache-Control"]


def test_ready__tells_staff_with_permission_everything(sign_in: Callable[..., Client]) -> None:
    """With the permission to see circuits the checks are listed; being staff is not enough."""
    full, bare = sign_in(VIEW_CIRCUIT).get(READY).json(), sign_in(name="bert").get(READY).json()

    assert set(full["checks"]) == {"database", "cache", "circuits", "sweeper"}
    assert all(check["ok"] for check in full["checks"].values())
    assert bare == {"status": "ok"}


def test_ready__fails_with_the_cache(client: Client, db: None) -> None:
    """A cache that is away or forgets makes the process not ready, without an error page."""
    kind = type(cache._connections["default"])

    with mock.patch.object(kind, "set", side_effect=ConnectionError("redis://:geheim@host away")):
        away = client.get(READY)
    with mock.patch.object(kind, "get", return_value=None):
        forgetful = client.get(READY)

    assert away.status_code == forgetful.status_code == 503
    assert away.json() == {"status": "not ok"}


def test_ready__fails_with_the_database(client: Client, db: None) -> None:
    """Without the database there is still an answer, also to who brings a session cookie."""
    client.cookies["sessionid"] = "x" * 32

    with mock.patch.object(type(connection._connections["default"]), "cursor", side_effect=OperationalError("down")):
        ready, alive = client.get(READY), client.get(LIVE)

    assert ready.status_code == 503
    assert ready.json() == {"status": "not ok"}
    assert alive.status_code == 200


def test_endpoints__answer_while_requests_cannot_begin_a_transaction(client: Client) -> None:
    """With ATOMIC_REQUESTS and no database the process still says that it lives, and that it is not ready."""
    client.raise_request_exception = False
    down = OperationalError("down")

    with (
        mock.patch.dict(connections["default"].settings_dict, {"ATOMIC_REQUESTS": True}),
        mock.patch.object(type(connection._connections["default"]), "ensure_connection", side_effect=down),
    ):
        answers = [client.get(path) for path in (LIVE, READY, "/metrics")]

    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert answers[1].json() == {"status": "not ok"}


@override_settings(RESILIENCE={"DASHBOARD": {"HEALTH_TIMEOUT": 0.1, "CRITICAL": ["payments"]}})
def test_ready__does_not_hang_with_the_cache(client: Client, db: None) -> None:
    """A cache that freezes is given up in time, with one waiting thread a check however often it is asked."""
    thaw, kind = Event(), type(cache._connections["default"])

    def frozen(*args: object, **kwargs: object) -> None:
        thaw.wait(60)

    with mock.patch.object(kind, "set", frozen), mock.patch.object(kind, "get_many", frozen):
        answers = [client.get(READY).status_code for _ in range(3)]
        alive = client.get(LIVE).status_code
        waiting = sorted(thread.name for thread in enumerate_threads() if thread.name.startswith("resilience-health"))
        thaw.set()
        for thread in enumerate_threads():
            if thread.name.startswith("resilience-health"):
                thread.join(10)

    assert answers == [503, 503, 503]
    assert alive == 200
    assert waiting == ["resilience-health-cache", "resilience-health-circuits"]
    assert client.get(READY).status_code == 200


@CRITICAL
def test_ready__follows_critical_circuits(client: Client, db: None) -> None:
    """A critical circuit that refuses calls makes the process not ready; one that nobody used, or another, does not."""
    before = client.get(READY).status_code
    other = CircuitBreaker("mail", sync_interval=0)
    other.open(60, "drill")
    unconcerned = client.get(READY).status_code
    breaker = CircuitBreaker("payments", sync_interval=0)
    breaker.open(60, "drill")

    during = client.get(READY).status_code
    breaker.reset()

    assert (before, unconcerned, during, client.get(READY).status_code) == (200, 200, 503, 200)


@pytest.mark.parametrize(("minutes", "status"), [(1, 200), (20, 503)])
def test_ready__notices_a_sweeper_that_sleeps(client: Client, db: None, minutes: int, status: int) -> None:
    """A lost run that nobody picked up for a quarter of an hour is a problem."""
    RunFactory(key="lost", status="running", lease_expires_at=timezone.now() - timedelta(minutes=minutes))

    assert client.get(READY).status_code == status


def test_ready__shows_no_secret(sign_in: Callable[..., Client]) -> None:
    """What an exception says is cleaned even for those who may read it."""
    with mock.patch.object(type(cache._connections["default"]), "set", side_effect=ConnectionError("redis://:geheim@host/0")):
        answer = sign_in(VIEW_CIRCUIT).get(READY)

    assert answer.status_code == 503
    assert "geheim" not in answer.text


@pytest.mark.parametrize("path", [READY, LIVE, "/resilience/"])
def test_health__takes_no_post(client: Client, db: None, path: str) -> None:
    """Reading only."""
    assert client.post(path).status_code == 405


@CRITICAL
async def test_health_checks__plug_in(transactional_db: None) -> None:
    """The checks work in django-health-check's own runner."""
    from asgiref.sync import sync_to_async
    from health_check.exceptions import ServiceUnavailable

    from resilience.dashboard.health_checks import CriticalCircuits, SharedCache

    fine = await SharedCache().get_result()
    breaker = await sync_to_async(CircuitBreaker)("payments", sync_interval=0)
    await sync_to_async(breaker.open)(60, "drill")
    bad = await CriticalCircuits().get_result()

    assert fine.error is None
    assert isinstance(bad.error, ServiceUnavailable)
