"""Connections that die, servers that go away and come back, databases that are full or read-only."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import InternalError, OperationalError, connections, transaction

from resilience import classify_db_error, db_retry, ensure_connection, signals
from tests import servers
from tests.real.db_peers import (
    Background,
    add,
    balance,
    hook,
    mariadb_peer,
    names,
    open_accounts,
    postgresql_peer,
    session_id,
    terminate,
)
from tests.testapp.models import Account


@pytest.fixture(autouse=True)
def _databases(django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        yield


@pytest.fixture
def retried() -> Iterator[list[tuple[str, str]]]:
    """Code and phase of the errors that were retried."""
    seen: list[tuple[str, str]] = []

    def note(code: str, phase: str, **kwargs: object) -> None:
        seen.append((code, phase))

    signals.db_retry_scheduled.connect(note)
    yield seen
    signals.db_retry_scheduled.disconnect(note)


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_killed_session__in_the_body_is_replaced_and_the_work_done_once(
    fixture: str, request: pytest.FixtureRequest, retried: list[tuple[str, str]]
) -> None:
    """The body runs again on a new connection; its effects and hooks happen once."""
    alias = request.getfixturevalue(fixture)
    server = request.getfixturevalue(f"{fixture}_server")
    open_accounts(alias, "a")
    sessions: list[int] = []
    hooks: list[str] = []

    @db_retry(using=alias)
    def work() -> None:
        sessions.append(session_id(alias))
        hook(alias, hooks, "ran")
        add(alias, "a")
        if len(sessions) == 1:
            terminate(server, sessions[0])
        add(alias, "a")

    work()

    assert balance(alias) == 2
    assert hooks == ["ran"]
    assert len(set(sessions)) == 2
    assert len(retried) == 1
    assert retried[0][1] == "body"
    assert retried[0][0] in {"57P01", "", "1927", "2006", "2013"}


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_killed_session__between_two_transactions_is_noticed_by_the_next(fixture: str, request: pytest.FixtureRequest) -> None:
    """A persistent connection that died while idle costs one attempt, outside of any request."""
    alias = request.getfixturevalue(fixture)
    server = request.getfixturevalue(f"{fixture}_server")
    open_accounts(alias, "a")
    work = db_retry(using=alias)(lambda: add(alias, "a"))
    work()
    terminate(server, session_id(alias))

    work()

    assert balance(alias) == 2


def test_idle_session__that_mariadb_closed_is_replaced(mariadb: str, mariadb_server: servers.MariaDB) -> None:
    """wait_timeout closes the idle session: the next transaction runs on another."""
    open_accounts(mariadb, "a")
    with connections[mariadb].cursor() as cursor:
        cursor.execute("SET SESSION wait_timeout = 1")
    number = session_id(mariadb)
    with mariadb_peer(mariadb_server) as peer:
        servers.wait_until(lambda: peer.execute(f"SELECT 1 FROM information_schema.processlist WHERE id = {number}") == 0)

    db_retry(using=mariadb)(lambda: add(mariadb, "a"))()

    assert balance(mariadb) == 1


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_ensure_connection__replaces_a_dead_connection_before_the_function_runs(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """The function runs once, on a live connection with the settings that Django gives to new ones."""
    alias = request.getfixturevalue(fixture)
    server = request.getfixturevalue(f"{fixture}_server")
    open_accounts(alias, "a")
    before = session_id(alias)
    terminate(server, before)
    calls = []

    @ensure_connection(using=alias)
    def work() -> int:
        calls.append(1)
        add(alias, "a")
        return session_id(alias)

    after = work()

    assert after != before
    assert calls == [1]
    assert balance(alias) == 1
    if fixture == "mariadb":
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT @@session.tx_isolation")
            assert cursor.fetchone()[0] == "READ-COMMITTED"


def test_ensure_connection__checks_nothing_inside_a_transaction(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """A new connection inside a transaction would lose what was done: the error comes out instead."""

    @ensure_connection(using=postgresql)
    def work() -> None:
        add(postgresql, "a")

    @transaction.atomic(using=postgresql)
    def outer() -> None:
        Account.objects.using(postgresql).create(name="lost")
        terminate(postgresql_server, session_id(postgresql))
        work()

    with pytest.raises(OperationalError):
        outer()

    assert names(postgresql) == []


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_stopped_server__in_the_body_is_waited_for(
    fixture: str, request: pytest.FixtureRequest, retried: list[tuple[str, str]]
) -> None:
    """While it is down Django shows the failure to reconnect; the phase is still the body, and the work is done once."""
    alias = request.getfixturevalue(fixture)
    server = request.getfixturevalue(f"{fixture}_server")
    if fixture == "mariadb":
        with mariadb_peer(server) as peer:
            # The server of the tests keeps a second of commits in its own memory, which a kill would lose.
            peer.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    open_accounts(alias, "a")
    connections[alias].close()
    calls = []

    @db_retry(using=alias, max_attempts=None, deadline=60)
    def work() -> None:
        calls.append(1)
        add(alias, "a")
        if len(calls) == 1:
            server.kill()
        add(alias, "a")

    side = Background(work)
    servers.wait_until(lambda: len(retried) >= 2)
    server.start()
    side.join()

    assert balance(alias) == 2
    assert retried[0][1] == "body"
    assert {phase for _, phase in retried[1:]} == {"connect"}


def test_server__that_never_answers_gives_the_failure_to_connect() -> None:
    """What comes out is that error, with a note that tells of both attempts."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    settings = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port, "NAME": "x"}
    connections.databases["away"] = connections.configure_settings({"default": {}, "away": settings})["away"]

    try:
        with pytest.raises(OperationalError, match="refused") as caught:
            db_retry(using="away", max_attempts=2, delay=0)(lambda: None)()
    finally:
        del connections.databases["away"]
        delattr(connections._connections, "away")  # type: ignore[attr-defined]  # as Django has no way to forget one

    assert "Given up after 2 attempts" in caught.value.__notes__[-1]


def test_immediate_restart__is_survived_within_the_deadline(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """Crash, recovery, success: one effect."""
    open_accounts(postgresql, "a")
    connections[postgresql].close()
    started = threading.Event()

    @db_retry(using=postgresql, max_attempts=None, deadline=60)
    def work() -> None:
        add(postgresql, "a")
        started.set()
        with connections[postgresql].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.5)")

    side = Background(work)
    started.wait(20)
    postgresql_server.stop_immediately()
    postgresql_server.start()
    side.join()

    assert balance(postgresql) == 1


def test_deadline__shorter_than_the_outage_gives_the_original_error(
    postgresql: str, postgresql_server: servers.PostgreSQL
) -> None:
    """What comes out is what happened to the work, not that the last attempt could not connect; and in time."""
    open_accounts(postgresql, "a")
    connections[postgresql].close()
    errors: list[BaseException] = []

    @db_retry(using=postgresql, max_attempts=None, deadline=1.5, on_retry=lambda exc, attempt: errors.append(exc))
    def work() -> None:
        add(postgresql, "a")
        postgresql_server.stop_immediately()
        add(postgresql, "a")

    begun = time.monotonic()
    try:
        with pytest.raises(OperationalError) as caught:
            Background(work).join()
        elapsed = time.monotonic() - begun
    finally:
        postgresql_server.start()

    assert caught.value is errors[0]
    assert len(errors) > 1
    assert "deadline" in caught.value.__notes__[-1]
    assert elapsed < 10
    assert balance(postgresql) == 0


def test_full_server__is_tried_again_when_a_place_is_free(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """53300 at connect: the limit of a role is reached, and a moment later it is not."""
    alias = "crowded"
    settings = {**postgresql_server.settings, "USER": "narrow"}
    connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    infos = []
    with postgresql_peer(postgresql_server) as peer:
        peer.execute("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1")
        taken = psycopg.connect(postgresql_server.dsn().replace("user=postgres", "user=narrow"))
        try:

            def leave(exc: BaseException, attempt: int) -> None:
                infos.append(classify_db_error(exc, alias))
                taken.close()

            @db_retry(using=alias, on_retry=leave, max_attempts=20)
            def work() -> int:
                return session_id(alias)

            assert work() > 0
        finally:
            connections[alias].close()
            del connections.databases[alias]
            delattr(connections._connections, alias)  # type: ignore[attr-defined]
            taken.close()
            servers.wait_until(
                lambda: peer.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'narrow'").fetchone() == (0,)
            )
            peer.execute("DROP ROLE narrow")

    assert infos[0].kind == "overloaded"
    assert infos[0].new_connection


def test_idle_in_transaction__is_retried_on_a_new_connection_with_a_warning(
    postgresql: str, retried: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """25P03 comes as InternalError; it is a lost connection all the same, and the log says what is to be changed."""
    open_accounts(postgresql, "a")
    calls = []

    @db_retry(using=postgresql)
    def work() -> None:
        calls.append(1)
        add(postgresql, "a")
        if len(calls) == 1:
            with connections[postgresql].cursor() as cursor:
                cursor.execute("SET idle_in_transaction_session_timeout = '100ms'")
            time.sleep(0.5)
        add(postgresql, "a")

    work()

    assert balance(postgresql) == 2
    assert retried == [("25P03", "body")]
    assert "work was idle inside its transaction for too long" in caplog.text


def test_demoted_primary__is_left_for_a_new_connection(postgresql: str, retried: list[tuple[str, str]]) -> None:
    """25006: the session became read-only; the next connection leads to a server that is not."""
    open_accounts(postgresql, "a")
    connections[postgresql].ensure_connection()
    with connections[postgresql].cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")

    db_retry(using=postgresql)(lambda: add(postgresql, "a"))()

    assert balance(postgresql) == 1
    assert retried == [("25006", "body")]


def test_read_only_server__is_not_tried_for_ever(
    postgresql: str, postgresql_server: servers.PostgreSQL, retried: list[tuple[str, str]]
) -> None:
    """When every new session is read-only too, the error comes out after max_attempts."""
    with postgresql_peer(postgresql_server) as peer:
        peer.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
        connections[postgresql].close()
        try:
            with pytest.raises(InternalError, match="read-only"):
                db_retry(using=postgresql)(lambda: Account.objects.using(postgresql).create(name="x"))()
        finally:
            peer.execute("SET default_transaction_read_only = off")
            peer.execute("ALTER ROLE postgres RESET default_transaction_read_only")
            connections[postgresql].close()

    assert retried == [("25006", "body")] * 2


def test_read_only_mariadb__is_told_by_number_and_option(mariadb: str, mariadb_server: servers.MariaDB) -> None:
    """1290 stands for any option; with --read-only it is a demoted primary."""
    alias = "demoted"
    settings = {**mariadb_server.settings, "USER": "plain", "PASSWORD": "plain"}
    connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    with mariadb_peer(mariadb_server) as peer:
        peer.execute("CREATE USER plain@'%' IDENTIFIED BY 'plain'")
        peer.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON test.* TO plain@'%'")
        peer.execute("SET GLOBAL read_only = 1")
        try:

            def back_to_normal(exc: BaseException, attempt: int) -> None:
                infos.append(classify_db_error(exc, alias))
                peer.execute("SET GLOBAL read_only = 0")

            infos: list[object] = []
            db_retry(using=alias, on_retry=back_to_normal)(lambda: Account.objects.using(alias).create(name="x"))()
        finally:
            peer.execute("SET GLOBAL read_only = 0")
            connections[alias].close()
            del connections.databases[alias]
            delattr(connections._connections, alias)  # type: ignore[attr-defined]
            peer.execute("DROP USER plain@'%'")

    assert [(info.code, info.new_connection) for info in infos] == [("1290", True)]  # type: ignore[attr-defined]
    assert names(mariadb) == ["x"]


@pytest.mark.parametrize(
    "options", [{"pool": {"min_size": 1, "max_size": 2}}, {"server_side_binding": True}], ids=["pool", "server_side_binding"]
)
def test_options_of_the_driver__change_nothing(
    options: dict[str, Any], postgresql: str, postgresql_server: servers.PostgreSQL
) -> None:
    """With a pool of sessions, or parameters bound by the server: a killed and a read-only session are replaced."""
    settings = {**postgresql_server.settings, "OPTIONS": options}
    connections.databases["other"] = connections.configure_settings({"default": {}, "other": settings})["other"]
    open_accounts(postgresql, "a")
    killed: list[int] = []
    sessions: list[int] = []

    @db_retry(using="other", isolation="serializable", lock_timeout=2, statement_timeout=5, verify="server")
    def killed_once() -> None:
        add("other", "a")
        if not killed:
            killed.append(session_id("other"))
            terminate(postgresql_server, killed[0])
        add("other", "a")

    @db_retry(using="other", delay=0.01)
    def on_a_demoted_server() -> None:
        sessions.append(session_id("other"))
        add("other", "a")

    try:
        killed_once()
        with connections["other"].cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
        on_a_demoted_server()
    finally:
        connections["other"].close()
        if "pool" in options:
            connections["other"].close_pool()  # type: ignore[attr-defined]  # PostgreSQL's wrapper only
        del connections.databases["other"]
        delattr(connections._connections, "other")  # type: ignore[attr-defined]

    assert balance(postgresql) == 3
    assert len(set(sessions)) == 2
