"""The pages in the night they are made for: a cache that froze or is gone, one of two caches, a database that only reads."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from threading import Thread
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection
from django.http import HttpResponse
from django.test import Client, override_settings

from resilience import CircuitBreaker, CircuitOpenError
from resilience.circuits.keys import head_key
from resilience.circuits.records import Record
from resilience.circuits.registry import forget_circuits
from resilience.observability import gauges
from resilience.runs.models import Run
from tests.real.dashboard_site import CIRCUITS, OVERVIEW, RUNS, client_of, run_of, tripped
from tests.servers import Redis, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos]

PAGES = (CIRCUITS, f"{CIRCUITS}payments/change/", OVERVIEW, f"{OVERVIEW}fragment/", f"{CIRCUITS}fragment/", RUNS, "/admin/")
LIMIT = 1.0
#: What a page may take beside the limit on this machine, however busy.
SLACK = 4.0
#: Clients that wait for ever, and clients that give up by themselves.
CLIENTS = [{}, {"socket_timeout": 0.3, "socket_connect_timeout": 0.3}]


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def operator() -> Client:
    return client_of("view_circuit", "operate_circuit", "view_run", "operate_run")


def _cache(server: Redis, **options: object) -> dict[str, Any]:
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": server.url, "OPTIONS": options}


@contextmanager
def _settings(**given: dict[str, Any]) -> Iterator[None]:
    with override_settings(CACHES=given, RESILIENCE={"DASHBOARD": {"HEALTH_TIMEOUT": LIMIT}}):
        forget_circuits()
        yield
        forget_circuits()


def _in_time(ask: Callable[[], HttpResponse]) -> HttpResponse:
    """Return the answer of a view, which must not take long; a view that hangs is interrupted."""

    def interrupt(*args: object) -> None:
        pytest.fail("The view hangs.")  # no `except Exception` holds it up

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT * 2 + SLACK)
    try:
        return ask()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _pages(client: Client) -> dict[str, HttpResponse]:
    return {path: _in_time(lambda path=path: client.get(path)) for path in PAGES}  # type: ignore[misc]


def _form(action: str, name: str) -> dict[str, str]:
    sure = {"confirmed": "1", "ticket": "0" * 32, "reason": "drill", "seconds": ""}
    return {"action": action, "circuit": name, "back": "detail", **sure}


@pytest.mark.parametrize("options", CLIENTS, ids=["waits for ever", "gives up"])
def test_pages__answer_while_redis_is_frozen(redis: Redis, operator: Client, options: dict[str, float]) -> None:
    """Every page is there in bounded time, shows what this process knows, and says what is wrong; afterwards all is well."""
    with _settings(default=_cache(redis, **options)):
        kept = [tripped("payments"), CircuitBreaker("mail")]
        kept[1].call(lambda: 1)
        redis.freeze()
        try:
            answers = _pages(operator)
        finally:
            redis.thaw()
        wait_until(lambda: "Cache unreachable." not in operator.get(CIRCUITS).text, 20, "the banner is gone")

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(PAGES, 200)
    for path in PAGES[:5]:
        assert "Cache unreachable." in answers[path].text
        assert "payments" in answers[path].text


@pytest.mark.parametrize("options", CLIENTS, ids=["waits for ever", "gives up"])
def test_operate__while_redis_is_frozen(redis: Redis, operator: Client, options: dict[str, float]) -> None:
    """An order holds here at once, is written down, and reaches the fleet when the cache is back."""
    with _settings(default=_cache(redis, **options)):
        breaker = CircuitBreaker("payments", sync_interval=0.1)
        breaker.call(lambda: 1)
        redis.freeze()
        try:
            answer = _in_time(lambda: operator.post(f"{CIRCUITS}operate/", _form("open", "payments")))
            page = _in_time(lambda: operator.get(CIRCUITS))
        finally:
            redis.thaw()
        wait_until(lambda: caches["default"].get("x", "there") == "there", 20, "Redis answers")
        wait_until(lambda: _fleet_state(breaker) == "forced_open", 20, "the order reaches the fleet")

    assert answer.status_code == 302
    assert "so far only this process knows of it" in page.text
    assert "Forced open" in page.text
    assert LogEntry.objects.get().change_message == "Forced open. Reason: drill"


def _fleet_state(breaker: CircuitBreaker) -> str:
    """Return what the cache says, after one more call of this process."""
    with suppress(CircuitOpenError):
        breaker.call(lambda: 1)
    record = Record.load(caches["default"].get(head_key(breaker.name)))
    return str(record.state) if record else ""


def test_operate__a_thread_that_waits_does_not_hold_the_operator(redis: Redis, operator: Client) -> None:
    """A guarded call that hangs in the frozen cache has the circuit's lock: the order is given up in time, and the page says so."""
    with _settings(default=_cache(redis)):
        breaker = CircuitBreaker("payments", sync_interval=0)
        breaker.call(lambda: 1)
        redis.freeze()
        try:
            hanging = Thread(target=breaker.call, args=(lambda: 1,), daemon=True)
            hanging.start()
            wait_until(breaker.circuit.lock.locked, 10, "the call waits for the cache")
            _in_time(lambda: operator.post(f"{CIRCUITS}operate/", _form("open", "payments")))
            page = _in_time(lambda: operator.get(CIRCUITS))
        finally:
            redis.thaw()
        hanging.join(20)

    assert "may or may not have been changed" in page.text
    assert "the outcome is unknown" in LogEntry.objects.get().change_message


def test_pages__answer_while_redis_is_gone(redis: Redis, operator: Client) -> None:
    """A server that was killed is told in a banner, and the circuits of this process can be operated."""
    with _settings(default=_cache(redis)):
        breaker = tripped("payments")
        redis.kill()
        answers = _pages(operator)
        done = _in_time(lambda: operator.post(f"{CIRCUITS}operate/", _form("reset", "payments")))
        page = _in_time(lambda: operator.get(f"{CIRCUITS}payments/change/"))
        errors = StringIO()
        call_command("resilience_circuits", "list", stdout=StringIO(), stderr=errors)

        assert breaker.call(lambda: 1) == 1
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(PAGES, 200)
    assert all("Cache unreachable." in answers[path].text for path in PAGES[:5])
    assert done.status_code == 302
    assert "so far only this process knows of it" in page.text
    assert "The cache 'default' does not answer" in errors.getvalue()


def test_pages__with_one_of_two_caches_gone(redis: Redis, operator: Client) -> None:
    """Only the circuits of the cache that is away lose their numbers: page and gauges show the others as ever."""
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "near"}
    with _settings(default=locmem, far=_cache(redis)):
        kept = [CircuitBreaker("mail", cache="far"), tripped("payments")]
        kept[0].call(lambda: 1)
        redis.kill()
        listed, detail = _in_time(lambda: operator.get(CIRCUITS)), _in_time(lambda: operator.get(f"{CIRCUITS}mail/change/"))
        done = operator.post(f"{CIRCUITS}operate/", _form("reset", "payments"))
        after = operator.get(CIRCUITS)
        found, complete = gauges.read("circuits")

    assert "The cache “far” does not answer" in listed.text
    assert "The cache “default” does not answer" not in listed.text
    assert "payments" in listed.text
    assert "mail" in listed.text
    assert detail.status_code == 200
    assert done.status_code == 302
    assert "so far only this process knows of it" not in after.text
    assert not complete
    assert {labels[0] for labels, _ in found["resilience.circuit.state"]} == {"payments"}


def test_pages__with_a_database_that_only_reads(operator: Client) -> None:
    """Pages are shown, a circuit can be closed, and a run that cannot be changed is told instead of an error page."""
    run = run_of("train")
    kept = tripped("payments")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")
    try:
        answers = {path: operator.get(path).status_code for path in (*PAGES, f"{RUNS}{run.pk}/change/")}
        closed = operator.post(f"{CIRCUITS}operate/", _form("reset", "payments"))
        paused = operator.post(f"{RUNS}operate/", {**_form("pause", ""), "run": str(run.pk), "ticket": "1" * 32})
        page = operator.get(f"{RUNS}{run.pk}/change/")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA query_only = OFF")

    assert set(answers.values()) == {200}
    assert closed.status_code == paused.status_code == 302
    assert kept.call(lambda: 1) == 1
    assert "The database does not take changes" in page.text
    assert Run.objects.get().status == "running"
