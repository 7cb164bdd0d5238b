from __future__ import annotations

import gc
import html
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.core.cache import cache
from django.db import connection
from django.test import Client, override_settings

from resilience import CircuitBreaker, get_all_circuit_breaker_stats, signals
from resilience.circuits.registry import forget_circuits
from resilience.dashboard.pages import decode_name, encode_name
from tests.dashboard.conftest import OPERATE_CIRCUIT, VIEW_CIRCUIT, VIEW_RUN

LIST = "/admin/resilience/circuit/"
OPERATE = f"{LIST}operate/"

STRANGE_NAMES = [
    "payments/eu",
    "quote\"s & 'apostrophes'",
    "<script>alert(1)</script>",
    "two\nlines",
    "carriage\rreturn",
    "\u202eevil\u202c",
    "دفع",
    "😀 pay",
    "..",
    ".",
    "a_2Fb",
    "overview",
    "fragment",
    "operate/change",
    "percent%41",
    "question?x=1#y",
    "semi;colon",
    "back\\slash",
    " spaces ",
    "x" * 200,
    "x" * 300,
]


def _failing(name: str, failures: int = 5) -> CircuitBreaker:
    """Use a circuit until it has seen that many failures."""
    breaker = CircuitBreaker(name, failure_threshold=5, sync_interval=0)
    for _ in range(failures):
        with pytest.raises(ConnectionError), breaker:
            raise ConnectionError("https://bob:hunter2@api.example/?key=sk-abcdefgh12345678 refused")
    return breaker


def _state(name: str) -> str:
    return str(get_all_circuit_breaker_stats([name])[name]["state"])


def _confirm(client: Client, action: str, *names: str, **fields: str) -> dict[str, object]:
    """Ask for an action, and return the fields of the confirmation form."""
    page = client.post(OPERATE, {"action": action, "circuit": [encode_name(name) for name in names], **fields})
    assert page.status_code == 200
    ticket = re.search(r'name="ticket" value="([0-9a-f]{32})"', page.text)
    assert ticket
    return {
        "action": action,
        "circuit": [html.unescape(value) for value in re.findall(r'name="circuit" value="([^"]*)"', page.text)],
        "ticket": ticket[1],
        "confirmed": "yes",
        "reason": "drill",
        **fields,
    }


def test_list__shows_what_is_broken_first(operator: Client) -> None:
    """An open circuit stands above the others, with its state in words, its counts and its last error."""
    calm = CircuitBreaker("a-calm-one")
    calm.call(lambda: 1)
    _failing("z-broken-one")

    page = operator.get(LIST)

    assert page.status_code == 200
    assert page.text.index("z-broken-one") < page.text.index("a-calm-one")
    assert "5 of 5" in page.text
    assert "ConnectionError" in page.text
    assert re.search(r'rs-state-open"[^>]*>.{0,60}✖</span> Open', page.text)


def test_list__says_what_to_do_when_it_is_empty(operator: Client) -> None:
    """A newcomer's page is not blank."""
    page = operator.get(LIST)

    assert "No circuits have been used yet" in page.text
    assert "@circuit_breaker" in page.text


@override_settings(RESILIENCE={"CIRCUITS": {"declared": {"failure_threshold": 3}}})
def test_list__shows_circuits_that_only_the_settings_name(operator: Client) -> None:
    """A declared circuit is listed before its first call, and says so."""
    page = operator.get(LIST)

    assert "declared" in page.text
    assert "no calls yet" in page.text


def test_list__finds_declared_circuits_in_their_own_cache(operator: Client, settings: Any) -> None:
    """A circuit that the settings put into another cache is shown as the processes that use it left it there."""
    locmem = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {alias: {"BACKEND": locmem, "LOCATION": alias} for alias in ("default", "far")}
    settings.RESILIENCE = {"CIRCUITS": {"mail": {"cache": "far"}}}
    CircuitBreaker("mail").open(reason="drill")
    gc.collect()
    forget_circuits()

    assert "rs-state-forced_open" in operator.get(f"{LIST}mail/change/").text


def test_list__shows_no_secret(operator: Client) -> None:
    """What looked like a secret in an exception's message is not on any page."""
    _failing("payments")

    for address in (LIST, f"{LIST}payments/change/"):
        text = operator.get(address).text
        assert "hunter2" not in text
        assert "sk-abcdefgh" not in text
        assert "[redacted]" in text


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_pages__take_any_name(operator: Client, name: str) -> None:
    """A name is shown as text, leads to its own page, and can be operated."""
    _failing(name)

    text = operator.get(LIST).text
    links = re.findall(r'<th scope="row" class="rs-name"><a href="([^"]+)"', text)
    detail = operator.get(html.unescape(links[0]))
    fields = _confirm(operator, "reset", name)
    done = operator.post(OPERATE, fields)

    assert len(links) == 1
    assert detail.status_code == 200
    assert done.status_code == 302
    assert _state(name) == "closed"
    assert LogEntry.objects.get().object_id == name
    assert "<script>alert" not in text + detail.text
    shown = re.sub(r' (value|data-rs-key)="[^"]*"', "", text + detail.text)
    assert "\u202e" not in shown


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_encode_name__comes_back(name: str) -> None:
    """The form in addresses and fields is the name again, and holds no character that a browser changes."""
    encoded = encode_name(name)

    assert decode_name(encoded) == name
    assert not set(encoded) & set("\r\n/.?#")


@pytest.mark.parametrize(
    ("method", "path"),
    [("get", LIST), ("get", f"{LIST}fragment/"), ("get", f"{LIST}payments/change/"), ("get", f"{LIST}payments/change/fragment/"),
     ("post", OPERATE), ("get", f"{LIST}overview/"), ("get", f"{LIST}overview/fragment/")],
)  # fmt: skip
@pytest.mark.parametrize("permissions", [(), ("staff only",)])
def test_pages__refuse_staff_without_permission(
    sign_in: Callable[..., Client], method: str, path: str, permissions: tuple[str, ...]
) -> None:
    """Being staff opens no page, shows no name and presses no button."""
    _failing("payments")
    client = sign_in() if not permissions else sign_in(name="bert")

    answer = getattr(client, method)(path, {"action": "reset", "circuit": "payments", "confirmed": "yes"})

    assert answer.status_code == 403
    assert "payments" not in answer.text
    assert _state("payments") == "open"


def test_pages__send_strangers_to_the_login(client: Client, db: None) -> None:
    """Who is not signed in sees the login form and nothing else."""
    _failing("payments")

    for path in (LIST, f"{LIST}fragment/", f"{LIST}payments/change/"):
        answer = client.get(path)
        assert answer.status_code == 302
        assert "/login/" in answer["Location"]
    assert client.post(OPERATE, {"action": "reset", "circuit": "payments"}).status_code == 302
    assert _state("payments") == "open"


def test_pages__show_no_button_to_who_may_only_look(sign_in: Callable[..., Client]) -> None:
    """Seeing and operating are two permissions."""
    _failing("payments")
    client = sign_in(VIEW_CIRCUIT)

    listed, detail = client.get(LIST), client.get(f"{LIST}payments/change/")
    posted = client.post(OPERATE, {"action": "reset", "circuit": "payments", "confirmed": "yes"})

    assert listed.status_code == detail.status_code == 200
    assert "checkbox" not in listed.text
    assert 'name="action"' not in listed.text + detail.text
    assert posted.status_code == 403
    assert _state("payments") == "open"


def test_operate__alone_opens_nothing(sign_in: Callable[..., Client]) -> None:
    """Operating includes seeing: the one without the other is refused."""
    _failing("payments")

    answer = sign_in(OPERATE_CIRCUIT).post(OPERATE, {"action": "reset", "circuit": "payments", "confirmed": "yes"})

    assert answer.status_code == 403


def test_overview__shows_each_reader_only_what_he_may_see(sign_in: Callable[..., Client]) -> None:
    """With the permission for runs alone no circuit appears."""
    _failing("payments")

    runs_only = sign_in(VIEW_RUN).get(f"{LIST}overview/")
    circuits_only = sign_in(VIEW_CIRCUIT, name="bert").get(f"{LIST}overview/")

    assert runs_only.status_code == circuits_only.status_code == 200
    assert "payments" not in runs_only.text
    assert "payments" in circuits_only.text
    assert "Runs by status" not in circuits_only.text


@pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
def test_operate__takes_post_only(operator: Client, method: str) -> None:
    """A link, a prefetch or a crawler changes nothing."""
    _failing("payments")

    answer = getattr(operator, method)(f"{OPERATE}?action=reset&circuit=payments&confirmed=yes")

    assert answer.status_code == 405
    assert _state("payments") == "open"


def test_operate__wants_the_csrf_token(operator: Client) -> None:
    """Another site cannot press the buttons."""
    _failing("payments")
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = operator.cookies

    answer = strict.post(OPERATE, {"action": "reset", "circuit": "payments", "confirmed": "yes"})

    assert answer.status_code == 403
    assert _state("payments") == "open"


@pytest.mark.parametrize("path", [f"{LIST}nobody/change/", f"{LIST}nobody/change/fragment/"])
def test_detail__of_an_unknown_name_is_404_and_creates_nothing(operator: Client, path: str) -> None:
    """Looking for a circuit does not make one."""
    assert operator.get(path).status_code == 404
    assert "nobody" not in get_all_circuit_breaker_stats()


@pytest.mark.parametrize("action", ["open", "reset", "half_open", "disable", "metrics_only"])
def test_operate__of_an_unknown_name_is_404_and_creates_nothing(operator: Client, action: str) -> None:
    """One unknown name among known ones stops the whole action."""
    _failing("payments")

    answer = operator.post(
        OPERATE, {"action": action, "circuit": ["payments", "nobody"], "confirmed": "yes", "reason": "x", "ticket": "0" * 32}
    )

    assert answer.status_code == 404
    assert list(get_all_circuit_breaker_stats()) == ["payments"]
    assert _state("payments") == "open"
    assert not LogEntry.objects.exists()


def test_operate__asks_before_it_acts(operator: Client) -> None:
    """The first click only shows what would happen."""
    _failing("payments")

    page = operator.post(OPERATE, {"action": "reset", "circuit": "payments"})

    assert page.status_code == 200
    assert "payments" in page.text
    assert "Calls go through again" in page.text
    assert _state("payments") == "open"
    assert not LogEntry.objects.exists()


def test_operate__ignores_a_confirmation_without_ticket(operator: Client) -> None:
    """A form that was not made by the confirmation page is asked again."""
    _failing("payments")

    page = operator.post(OPERATE, {"action": "reset", "circuit": "payments", "confirmed": "yes", "reason": "x", "ticket": "1"})

    assert page.status_code == 200
    assert _state("payments") == "open"


@pytest.mark.parametrize(
    ("action", "state"),
    [
        ("open", "forced_open"),
        ("reset", "closed"),
        ("half_open", "half_open"),
        ("disable", "disabled"),
        ("metrics_only", "metrics_only"),
    ],
)
def test_operate__does_it_and_writes_it_down(operator: Client, action: str, state: str) -> None:
    """The circuit changes, the admin log says who did what and why, and the history names the actor."""
    _failing("payments")
    operated = []
    signals.circuit_operated.connect(lambda **arguments: operated.append(arguments), weak=False, dispatch_uid="test")
    fields = _confirm(operator, action, "payments", reason="token=geheim drill", seconds="900")

    try:
        answer = operator.post(OPERATE, fields, follow=True)
    finally:
        signals.circuit_operated.disconnect(dispatch_uid="test")

    entry = LogEntry.objects.get()
    assert _state("payments") == state
    assert "done for 1 circuit" in answer.text
    assert (entry.user.username, entry.object_id, entry.object_repr) == ("anna", "payments", "payments")
    assert "drill" in entry.change_message
    assert "geheim" not in entry.change_message
    assert operated[0]["actor"] == "admin:anna"
    assert "admin:anna" in operator.get(f"{LIST}payments/change/").text
    assert operator.get(entry.get_admin_url() and f"/admin/{entry.get_admin_url().removeprefix('/admin/')}").status_code == 200


def test_operate__carries_a_form_out_once(operator: Client) -> None:
    """A double click, a reload or the back button does nothing more."""
    _failing("payments")
    fields = _confirm(operator, "open", "payments", seconds="")
    operator.post(OPERATE, fields)
    operator.post(OPERATE, _confirm(operator, "reset", "payments"))

    again = operator.post(OPERATE, fields, follow=True)

    assert "This was done already." in again.text
    assert _state("payments") == "closed"
    assert LogEntry.objects.count() == 2


def test_operate__wants_a_reason_for_what_stops_traffic(operator: Client) -> None:
    """Whoever is woken next can read why."""
    _failing("payments")
    fields = _confirm(operator, "open", "payments", seconds="") | {"reason": "  "}

    page = operator.post(OPERATE, fields)

    assert page.status_code == 200
    assert "Give a reason" in page.text
    assert _state("payments") == "open"


@pytest.mark.parametrize("seconds", ["-5", "0", "nan", "inf", "1e12", "soon"])
def test_operate__refuses_a_wrong_length(operator: Client, seconds: str) -> None:
    """A length that makes no sense is refused instead of being taken for ever."""
    _failing("payments")
    fields = _confirm(operator, "open", "payments") | {"seconds": seconds}

    page = operator.post(OPERATE, fields)

    assert page.status_code == 200
    assert _state("payments") == "open"


def test_operate__works_on_many_at_once(operator: Client) -> None:
    """A bulk action leaves alone what its state does not allow, and says so before."""
    _failing("one")
    _failing("two")
    CircuitBreaker("calm").call(lambda: 1)

    page = operator.post(OPERATE, {"action": "half_open", "circuit": ["one", "two", "calm"]})
    operator.post(OPERATE, _confirm(operator, "half_open", "one", "two", "calm"))

    assert "This is about 2 circuits" in page.text
    assert "stay as they are" in page.text
    assert [_state(name) for name in ("one", "two", "calm")] == ["half_open", "half_open", "closed"]
    assert LogEntry.objects.count() == 2


def test_operate__leads_back_to_the_filtered_list_and_nowhere_else(operator: Client) -> None:
    """The way back is a query string of this page, never an address that somebody slipped in."""
    _failing("payments")

    normal = operator.post(OPERATE, _confirm(operator, "reset", "payments", back="state=open&q=pay"))
    evil = operator.post(OPERATE, _confirm(operator, "reset", "payments", back="https://evil.example/"))

    assert normal["Location"] == f"{LIST}?state=open&q=pay"
    assert evil["Location"].startswith(LIST)


def test_fragment__is_sent_only_when_something_changed(operator: Client) -> None:
    """Polling costs a 304 while nothing happens, and the time passing is not a change."""
    breaker = _failing("payments", failures=1)
    first = operator.get(f"{LIST}fragment/")
    again = operator.get(f"{LIST}fragment/", headers={"If-None-Match": first["ETag"]})
    with pytest.raises(ValueError, match="x"), breaker:
        raise ValueError("x")

    changed = operator.get(f"{LIST}fragment/", headers={"If-None-Match": first["ETag"]})

    assert first.status_code == 200
    assert first["X-Resilience-Fragment"] == "1"
    assert "<html" not in first.text
    assert again.status_code == 304
    assert changed.status_code == 200


def test_pages__render_while_the_cache_is_away(operator: Client) -> None:
    """In the outage in which the page is needed most it shows what this process knows, and says so."""
    _failing("payments")
    broken = mock.Mock(side_effect=ConnectionError("cache away"))

    with mock.patch.multiple(type(cache._connections["default"]), get=broken, get_many=broken, set=broken, add=broken):
        listed, overview = operator.get(LIST), operator.get(f"{LIST}overview/")

    assert listed.status_code == overview.status_code == 200
    assert "Cache unreachable." in listed.text
    assert "payments" in listed.text


def test_pages__are_written_for_a_strict_policy(operator: Client) -> None:
    """No inline script, style or handler stands in the content of any page."""
    _failing("payments")

    for path in (LIST, f"{LIST}payments/change/", f"{LIST}overview/", f"{LIST}?state=closed"):
        text = operator.get(path).text
        content = text[text.index('<div class="rs"') :]
        assert "<script" not in content
        assert "<style" not in content
        assert not re.search(r"<[^>]+\s(style|on\w+)=", content)


def test_index__leads_to_the_pages(operator: Client) -> None:
    """The admin's index shows both entries to whoever may see them."""
    page = operator.get("/admin/")

    assert 'href="/admin/resilience/circuit/"' in page.text
    assert 'href="/admin/resilience/run/"' in page.text
    assert "/add/" not in page.text


def test_detail__says_whose_page_it_is(operator: Client) -> None:
    """The name stands in the page itself, because a theme may leave out titles and crumbs."""
    CircuitBreaker("payments").call(lambda: 1)

    assert '<h1 class="rs-title"><bdi>payments</bdi></h1>' in operator.get("/admin/resilience/circuit/payments/change/").text


def test_operate__with_a_database_that_only_reads(operator: Client) -> None:
    """Nobody is kept from closing a circuit because the audit log cannot be written; the page says so and goes on."""
    CircuitBreaker("payments").open(reason="drill")
    form = {"action": "reset", "circuit": "payments", "back": "detail", "confirmed": "1", "ticket": "0" * 32}
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")

    try:
        done = operator.post(OPERATE, form)
        page = operator.get(f"{LIST}payments/change/")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA query_only = OFF")

    assert (done.status_code, page.status_code) == (302, 200)
    assert get_all_circuit_breaker_stats(["payments"])["payments"]["state"] == "closed"
    assert "could not be written to the audit log" in page.text
