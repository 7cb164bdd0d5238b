"""Who gets in where: every address of the pages, found by walking the URL configuration, against every kind of reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from resilience import CircuitBreaker, get_all_circuit_breaker_stats
from resilience.dashboard import operations
from tests.dashboard.conftest import OPERATE_CIRCUIT, OPERATE_RUN, VIEW_CIRCUIT, VIEW_RUN
from tests.factories import RunFactory

READERS = {
    "stranger": None,
    "customer": None,
    "staff": (),
    "circuit viewer": (VIEW_CIRCUIT,),
    "circuit operator alone": (OPERATE_CIRCUIT,),
    "circuit operator": (VIEW_CIRCUIT, OPERATE_CIRCUIT),
    "run viewer": (VIEW_RUN,),
    "run operator alone": (OPERATE_RUN,),
    "run operator": (VIEW_RUN, OPERATE_RUN),
    "superuser": (),
}
CIRCUITS, RUNS = {"circuit viewer", "circuit operator", "superuser"}, {"run viewer", "run operator", "superuser"}
#: Who may GET and who may POST each address.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "resilience_circuit_changelist": (CIRCUITS, set()),
    "resilience_circuit_fragment": (CIRCUITS, set()),
    "resilience_circuit_operate": (set(), {"circuit operator", "superuser"}),
    "resilience_circuit_overview": (CIRCUITS | RUNS, set()),
    "resilience_circuit_overview_fragment": (CIRCUITS | RUNS, set()),
    "resilience_circuit_change_fragment": (CIRCUITS, set()),
    "resilience_circuit_change": (CIRCUITS, set()),
    "resilience_run_changelist": (RUNS, set()),
    "resilience_run_fragment": (RUNS, set()),
    "resilience_run_operate": (set(), {"run operator", "superuser"}),
    "resilience_run_change_fragment": (RUNS, set()),
    "resilience_run_change": (RUNS, set()),
}


def _patterns(patterns: list[URLPattern | URLResolver]) -> list[URLPattern]:
    found: list[URLPattern] = []
    for pattern in patterns:
        found += _patterns(pattern.url_patterns) if isinstance(pattern, URLResolver) else [pattern]
    return found


def _names() -> set[str]:
    return {pattern.name for pattern in _patterns(get_resolver().url_patterns) if str(pattern.name).startswith("resilience_")}


@pytest.fixture
def reader(request: pytest.FixtureRequest, sign_in: Callable[..., Client]) -> Client:
    """A browser in the hands of one kind of reader."""
    kind = request.param
    if kind == "stranger":
        return Client()
    if kind == "customer":
        client = Client()
        client.force_login(User.objects.create_user("carl", password="x"))
        return client
    return sign_in(*(READERS[kind] or ()), superuser=kind == "superuser")


def test_addresses__all_have_a_rule() -> None:
    """An address that is added without saying who may open it fails here."""
    assert _names() == set(RULES)


@pytest.mark.parametrize(("kind", "reader"), [(kind, kind) for kind in READERS], indirect=["reader"])
def test_addresses__open_for_those_who_may_and_nobody_else(kind: str, reader: Client) -> None:
    """Each kind of reader meets each address with GET, HEAD and POST, and nothing changes without permission."""
    breaker = CircuitBreaker("payments", sync_interval=0)
    breaker.open(900, reason="drill")
    run = RunFactory(key="train", status="queued")
    wrong = []

    for name, (readers, posters) in RULES.items():
        about = "payments" if "circuit" in name else run.pk
        url = reverse(f"admin:{name}", args=[about] if "change" in name and "changelist" not in name else [])
        form = {"action": "reset" if "circuit" in name else "pause", "circuit": "payments", "run": run.pk}
        got, head, posted = reader.get(url), reader.head(url), reader.post(url, form)
        expected_get = 200 if kind in readers else 405 if kind in posters else (302, 403)
        expected_post = 200 if kind in posters else 405 if kind in readers else (302, 403)
        for answer, expected in ((got, expected_get), (head, expected_get), (posted, expected_post)):
            is_right = answer.status_code in expected if isinstance(expected, tuple) else answer.status_code == expected
            is_silent = answer.status_code in {200, 405} or b"payments" not in answer.content.replace(url.encode(), b"")
            if not is_right or not is_silent:
                wrong.append((name, answer.request["REQUEST_METHOD"], answer.status_code))

    run.refresh_from_db()
    assert wrong == []
    assert get_all_circuit_breaker_stats()["payments"]["state"] == "forced_open"
    assert run.status == "queued"
    assert not LogEntry.objects.exists()


def test_fragments__are_not_shared_between_readers(sign_in: Callable[..., Client]) -> None:
    """One reader's tag is no pass for another: the answer is stored nowhere and asks who reads first."""
    CircuitBreaker("payments", sync_interval=0).open(900, reason="drill")
    url = reverse("admin:resilience_circuit_fragment")
    mine = sign_in(VIEW_CIRCUIT, OPERATE_CIRCUIT, name="anna").get(url)

    stranger = sign_in(name="bert").get(url, headers={"If-None-Match": mine["ETag"]})
    viewer = sign_in(VIEW_CIRCUIT, name="carla").get(url, headers={"If-None-Match": mine["ETag"]})

    assert "no-store" in mine["Cache-Control"]
    assert "private" in mine["Cache-Control"]
    assert stranger.status_code == 403
    assert (viewer.status_code, viewer.text.count('type="checkbox"')) == (200, 0)
    assert mine.text.count('type="checkbox"') == 2


@pytest.mark.parametrize(
    "back", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "q=a\r\nX: y"]
)
def test_operate__never_leads_elsewhere(operator: Client, back: str) -> None:
    """Whatever the form says, the way back is the list."""
    CircuitBreaker("payments", sync_interval=0).call(lambda: 1)
    url = reverse("admin:resilience_circuit_operate")

    answer = operator.post(url, {"action": "reset", "circuit": "payments", "confirmed": "yes", "ticket": "a" * 32, "back": back})

    assert answer.status_code == 302
    assert answer["Location"].startswith(reverse("admin:resilience_circuit_changelist"))


def test_operate__takes_many_hundreds_at_once(operator: Client) -> None:
    """As many as Django lets a form hold are confirmed, carried out and written down."""
    kept = [CircuitBreaker(f"service-{number}", sync_interval=0) for number in range(900)]
    url = reverse("admin:resilience_circuit_operate")
    names = [breaker.name for breaker in kept]
    form = {"action": "disable", "circuit": names, "reason": "drill", "confirmed": "yes", "ticket": "b" * 32}

    asked, done = operator.post(url, {"action": "disable", "circuit": names}), operator.post(url, form)

    assert "900 circuits" in asked.text
    assert done.status_code == 302
    assert {stats["state"] for stats in get_all_circuit_breaker_stats().values()} == {"disabled"}
    assert LogEntry.objects.count() == 900


def test_operate__notices_what_changed_meanwhile(operator: Client) -> None:
    """A circuit that closed between the form and its confirmation is not probed, and the operator is told the number."""
    breaker = CircuitBreaker("payments", sync_interval=0)
    breaker.open(900, reason="drill")
    url = reverse("admin:resilience_circuit_operate")
    operator.post(url, {"action": "half_open", "circuit": "payments"})
    breaker.reset()

    form = {"action": "half_open", "circuit": "payments", "confirmed": "yes", "ticket": "c" * 32}
    page = operator.post(url, form, follow=True)

    assert get_all_circuit_breaker_stats()["payments"]["state"] == "closed"
    assert not LogEntry.objects.exists()
    assert "state has changed" in page.text


def test_operate__writes_down_what_was_done_before_one_failed(operator: Client) -> None:
    """One circuit of three cannot be changed any more: the others are, and the log has exactly them."""
    for name in ("a", "b", "c"):
        CircuitBreaker(name, sync_interval=0).open(900, reason="drill")
    url = reverse("admin:resilience_circuit_operate")
    form = {"action": "half_open", "circuit": ["a", "b", "c"], "confirmed": "yes", "ticket": "d" * 32}
    original = operations.operate_circuit

    def late(name: str, *args: Any, **kwargs: Any) -> str:
        if name == "b":
            raise ValueError("state must be open")
        return original(name, *args, **kwargs)

    with mock.patch("resilience.dashboard.circuit_actions.operate_circuit", late):
        page = operator.post(url, form, follow=True)

    assert {entry.object_id for entry in LogEntry.objects.all()} == {"a", "c"}
    assert "done for 2 circuits" in page.text
    assert "1 circuit was left alone" in page.text


def test_operate__says_when_the_fleet_was_not_told(operator: Client) -> None:
    """With the cache away the order holds in this process, and the operator learns that it holds there only."""
    breaker = CircuitBreaker("payments", sync_interval=0)
    breaker.call(lambda: 1)
    url = reverse("admin:resilience_circuit_operate")
    form = {"action": "open", "circuit": "payments", "reason": "drill", "confirmed": "yes", "ticket": "e" * 32}

    with mock.patch.multiple(type(caches["default"]), **dict.fromkeys(("get", "get_many", "add", "set", "incr"), _away)):
        page = operator.post(url, form, follow=True)

    assert breaker.state == "forced_open"
    assert "only this process knows" in page.text


def _away(*args: object, **kwargs: object) -> None:
    raise ConnectionError("the cache is away")
