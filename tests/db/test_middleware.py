from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client, override_settings
from django.urls import path

from resilience import clock, db_retry, signals
from resilience.db.middleware import forbid_replay
from tests.testapp.models import Account

pytestmark = pytest.mark.django_db(transaction=True)

calls: list[Any] = []


def view(request: HttpRequest) -> HttpResponse:
    """Store what was posted, and fail as often as the header says."""
    calls.append(json.loads(request.body) if request.content_type == "application/json" else request.POST.get("name"))
    Account.objects.create(name=f"call {len(calls)}")
    _maybe_fail(request)
    return HttpResponse(f"call {len(calls)}")


def _maybe_fail(request: HttpRequest) -> None:
    if len(calls) <= int(request.headers.get("Fail", 1)):
        raise OperationalError(request.headers.get("With", "deadlock detected"))


def upload(request: HttpRequest) -> HttpResponse:
    calls.append(request.FILES["file"].read())
    _maybe_fail(request)
    return HttpResponse(calls[-1])


def consume(request: HttpRequest) -> HttpResponse:
    calls.append(request.read())
    _maybe_fail(request)
    return HttpResponse()


def announce(request: HttpRequest) -> HttpResponse:
    calls.append("mail")
    forbid_replay(request)
    _maybe_fail(request)
    return HttpResponse()


@transaction.non_atomic_requests
def not_atomic(request: HttpRequest) -> HttpResponse:
    return view(request)


def hooked(request: HttpRequest) -> HttpResponse:
    calls.append("hooked")
    Account.objects.create(name="stored")
    transaction.on_commit(lambda: _maybe_fail(request))
    return HttpResponse()


def streaming(request: HttpRequest) -> StreamingHttpResponse:
    calls.append("streaming")

    def body() -> Iterator[bytes]:
        yield b"first"
        raise OperationalError("deadlock detected")

    return StreamingHttpResponse(body())


def settled(request: HttpRequest) -> HttpResponse:
    calls.append("settled")
    Account.objects.get_or_create(name="taken")
    with contextlib.suppress(IntegrityError), transaction.atomic():
        Account.objects.create(name="taken")
    return HttpResponse()


def sip(request: HttpRequest) -> HttpResponse:
    calls.append(request.read(1))
    _maybe_fail(request)
    return HttpResponse()


def lines(request: HttpRequest) -> HttpResponse:
    calls.append(b"".join(request))
    _maybe_fail(request)
    return HttpResponse()


def stream_after_failure(request: HttpRequest) -> StreamingHttpResponse:
    calls.append("begun")
    row = Account.objects.create(name=f"call {len(calls)}")
    _maybe_fail(request)
    return StreamingHttpResponse(name.encode() for name in (row.name, " and ", row.name))


@db_retry
def service() -> None:
    calls.append("service")
    if len(calls) < 3:
        raise OperationalError("deadlock detected")


def serviced(request: HttpRequest) -> HttpResponse:
    service()
    return HttpResponse("served")


def elsewhere(request: HttpRequest) -> HttpResponse:
    """Store something outside of the transaction in one of the attempts, and fail in each."""
    calls.append("elsewhere")
    if len(calls) == int(request.headers["Store"]):
        Account.objects.using("sqlite_file").create(name="stored")
    raise OperationalError("deadlock detected")


def lost(request: HttpRequest) -> HttpResponse:
    """Lose the connection in the middle of a statement, the first time."""
    calls.append("lost")

    def lose(execute: Callable[..., Any], *statement: Any) -> Any:
        if len(calls) == 1:
            raise OperationalError("server closed the connection unexpectedly")
        return execute(*statement)

    with connection.execute_wrapper(lose):
        Account.objects.create(name=f"call {len(calls)}")
    return HttpResponse()


def locked_elsewhere(request: HttpRequest) -> HttpResponse:
    """Read, and fail to write, in a database without a transaction of its own."""
    calls.append("locked")
    with sqlite3.connect(connections["sqlite_file"].settings_dict["NAME"]) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            with connections["sqlite_file"].cursor() as cursor:
                cursor.execute("PRAGMA busy_timeout = 0")
                cursor.execute("DELETE FROM testapp_account")
        finally:
            other.close()
    return HttpResponse()


urlpatterns = [
    path(f"{endpoint.__name__}/", endpoint)
    for endpoint in (
        view,
        upload,
        consume,
        announce,
        not_atomic,
        hooked,
        streaming,
        serviced,
        settled,
        sip,
        lines,
        stream_after_failure,
        elsewhere,
        lost,
        locked_elsewhere,
    )
]


@pytest.fixture(autouse=True)
def post(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Post to a view under ATOMIC_REQUESTS and the middleware."""
    calls.clear()
    monkeypatch.setattr(clock, "sleep", lambda seconds: None)
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    client = Client(raise_request_exception=False)
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=["resilience.db.middleware.RetryAtomicRequestsMiddleware"]):
        yield client.post


def names() -> list[str]:
    return list(Account.objects.values_list("name", flat=True))


def test_deadlock__runs_the_view_again_with_the_same_body(post: Callable[..., Any]) -> None:
    """The second attempt reads the same JSON and is the only one stored."""
    response = post("/view/", {"amount": 5}, content_type="application/json")

    assert (response.status_code, response.content) == (200, b"call 2")
    assert calls == [{"amount": 5}, {"amount": 5}]
    assert names() == ["call 2"]


def test_form__is_there_again(post: Callable[..., Any]) -> None:
    """So is a form."""
    response = post("/view/", {"name": "x"})

    assert response.status_code == 200
    assert calls == ["x", "x"]


def test_uploaded_file__is_read_from_its_start_again(post: Callable[..., Any]) -> None:
    """Files are wound back."""
    response = post("/upload/", {"file": SimpleUploadedFile("a.txt", b"content")})

    assert response.content == b"content"
    assert calls == [b"content", b"content"]


def test_attempts__are_limited(post: Callable[..., Any]) -> None:
    """Three in all, then the server error that it would have been anyhow."""
    response = post("/view/", headers={"Fail": "9"})

    assert response.status_code == 500
    assert len(calls) == 3
    assert names() == []


def test_lasting_error__is_not_retried(post: Callable[..., Any]) -> None:
    """What no repetition cures takes its course."""
    response = post("/view/", headers={"With": "no such table"})

    assert (response.status_code, len(calls)) == (500, 1)


@pytest.mark.parametrize("endpoint", ["consume", "sip", "lines", "announce", "not_atomic", "hooked"])
def test_fences__keep_what_cannot_be_undone_from_being_done_twice(endpoint: str, post: Callable[..., Any]) -> None:
    """A body that was consumed, wholly or in part or line by line, something irreversible, a view without a transaction, a hook that failed after COMMIT."""
    response = post(f"/{endpoint}/", b"x", content_type="application/octet-stream")

    assert (response.status_code, len(calls)) == (500, 1)


@pytest.mark.parametrize(("attempt", "is_open"), [(1, False), (2, True)])
def test_fences__see_what_an_attempt_stores_in_another_database(
    attempt: int, is_open: bool, post: Callable[..., Any], sqlite_file: str
) -> None:
    """The first attempt or a later one, on a connection of old or one that the view opened: nothing is committed again."""
    if not is_open:
        connections[sqlite_file].close()
        del connections[sqlite_file]

    response = post("/elsewhere/", headers={"Store": str(attempt)})

    assert (response.status_code, len(calls)) == (500, attempt)
    assert Account.objects.using(sqlite_file).count() == 1


def test_fences__see_what_is_left_open_in_another_database(post: Callable[..., Any], sqlite_file: str) -> None:
    """Work in a transaction that somebody else will end is not done a second time in it."""
    connections[sqlite_file].set_autocommit(False)
    try:
        response = post("/elsewhere/", headers={"Store": "1"})
        assert Account.objects.using(sqlite_file).count() == 1
    finally:
        connections[sqlite_file].rollback()
        connections[sqlite_file].set_autocommit(True)

    assert (response.status_code, len(calls)) == (500, 1)


def test_lost_connection__inside_the_transaction_runs_the_view_again(post: Callable[..., Any]) -> None:
    """A statement that was lost before any COMMIT left nothing behind."""
    response = post("/lost/")

    assert (response.status_code, calls) == (200, ["lost", "lost"])
    assert names() == ["call 2"]


def test_error__of_a_database_without_a_transaction_is_not_retried(post: Callable[..., Any], sqlite_file: str) -> None:
    """Only what ATOMIC_REQUESTS rolls back is run again, however passing the error of another database is."""
    response = post("/locked_elsewhere/")

    assert (response.status_code, calls) == (500, ["locked"])


def test_signals__tell_each_retry_and_the_success(post: Callable[..., Any]) -> None:
    """Which view, in which database, after how many attempts."""
    heard: list[tuple[Any, ...]] = []

    def on_retry(**told: Any) -> None:
        heard.append(("retry", *(told[key] for key in ("name", "using", "attempt", "kind", "code", "phase"))))

    def on_success(**told: Any) -> None:
        heard.append(("success", *(told[key] for key in ("name", "using", "attempts"))))

    signals.db_retry_scheduled.connect(on_retry)
    signals.db_retry_succeeded.connect(on_success)
    try:
        post("/view/", headers={"Fail": "2"})
    finally:
        signals.db_retry_scheduled.disconnect(on_retry)
        signals.db_retry_succeeded.disconnect(on_success)

    assert heard == [
        ("retry", "view", "default", 1, "conflict", "", "body"),
        ("retry", "view", "default", 2, "conflict", "", "body"),
        ("success", "view", "default", 3),
    ]


def test_streaming__that_fails_on_the_way_is_not_begun_again(post: Callable[..., Any]) -> None:
    """What has gone out cannot be taken back."""
    response = post("/streaming/")

    with pytest.raises(OperationalError):
        b"".join(response.streaming_content)
    assert calls == ["streaming"]


def test_streaming__response_of_the_second_attempt_goes_out_once_and_whole(post: Callable[..., Any]) -> None:
    """A view that fails before it begins to stream is run again like any other."""
    response = post("/stream_after_failure/", b"x", content_type="application/octet-stream")

    assert b"".join(response.streaming_content) == b"call 2 and call 2"
    assert names() == ["call 2"]


def test_lost_commit__is_not_repeated_also_after_an_error_that_the_view_handled(
    post: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies in COMMIT: whatever failed before and was dealt with, nobody knows if the work is stored."""
    real = connection.commit

    def commit_and_die() -> None:
        real()
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(connection, "commit", commit_and_die)
    response = post("/settled/")

    assert (response.status_code, calls) == (500, ["settled"])


def test_service__inside_the_view_is_a_plain_call_and_the_request_retries(post: Callable[..., Any]) -> None:
    """A db_retry function cannot be the outermost there; the middleware is."""
    response = post("/serviced/")

    assert response.content == b"served"
    assert calls == ["service"] * 3


def test_switched_off__it_does_nothing(post: Callable[..., Any]) -> None:
    """RESILIENCE["ENABLED"] False: the error takes its course."""
    with override_settings(RESILIENCE={"ENABLED": False}):
        response = post("/view/")

    assert (response.status_code, len(calls)) == (500, 1)


def test_success__is_left_alone(post: Callable[..., Any]) -> None:
    """A request that works runs once."""
    response = post("/view/", headers={"Fail": "0"})

    assert (response.content, names()) == (b"call 1", ["call 1"])
