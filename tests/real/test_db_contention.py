"""Deadlocks, serialization failures and locks, on the servers that make them."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError, connections, transaction

from resilience import TransactionBrokenError, TransactionManager, atomic_update, classify_db_error, db_retry, signals
from tests import servers
from tests.length import LONG
from tests.real.db_peers import (
    Background,
    add,
    balance,
    hook,
    mariadb_peer,
    names,
    open_accounts,
    postgresql_peer,
    sqlite_file,
)
from tests.testapp.models import Account

#: Increments of each of the twenty threads.
ROUNDS = 50 if LONG else 10


@pytest.fixture(autouse=True)
def _databases(django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        yield


@pytest.fixture
def retried() -> Iterator[list[str]]:
    """The codes of the errors that were retried."""
    codes: list[str] = []

    def note(code: str, **kwargs: object) -> None:
        codes.append(code)

    signals.db_retry_scheduled.connect(note)
    yield codes
    signals.db_retry_scheduled.disconnect(note)


@pytest.mark.parametrize(("fixture", "code"), [("postgresql", "40P01"), ("mariadb", "1213")])
def test_deadlock__both_sides_finish_and_each_effect_and_hook_happens_once(
    fixture: str, code: str, request: pytest.FixtureRequest, retried: list[str]
) -> None:
    """The victim's whole transaction runs again, also where a nested block met the deadlock."""
    alias = request.getfixturevalue(fixture)
    open_accounts(alias, "a", "b")
    meeting = threading.Barrier(2)
    hooks: list[str] = []

    def cross(first: str, second: str) -> None:
        attempts = 0

        @db_retry(using=alias, max_attempts=5)
        def work() -> None:
            nonlocal attempts
            attempts += 1
            hook(alias, hooks, first)
            add(alias, first)
            if attempts == 1:
                meeting.wait(20)
            with transaction.atomic(using=alias):
                add(alias, second)

        work()

    sides = [Background(lambda: cross("a", "b")), Background(lambda: cross("b", "a"))]
    for side in sides:
        side.join()

    assert (balance(alias, "a"), balance(alias, "b")) == (2, 2)
    assert sorted(hooks) == ["a", "b"]
    assert retried == [code]


def test_write_skew__keeps_the_rule_that_both_transactions_relied_on(postgresql: str, retried: list[str]) -> None:
    """Two doctors go off call at once under SERIALIZABLE: one is told to look again, and one stays."""
    for name in ("a", "b"):
        Account.objects.using(postgresql).create(name=name, balance=1)
    meeting = threading.Barrier(2)

    def go_off_call(name: str) -> None:
        attempts = 0

        @db_retry(using=postgresql, isolation="serializable", max_attempts=5)
        def work() -> None:
            nonlocal attempts
            attempts += 1
            on_call = Account.objects.using(postgresql).filter(balance=1).count()
            if attempts == 1:
                meeting.wait(20)
            if on_call == 2:
                Account.objects.using(postgresql).filter(name=name).update(balance=0)

        work()

    sides = [Background(lambda: go_off_call("a")), Background(lambda: go_off_call("b"))]
    for side in sides:
        side.join()

    assert Account.objects.using(postgresql).filter(balance=1).count() == 1
    assert retried == ["40001"]


def test_repeatable_read__is_retried_by_the_outermost_and_not_in_a_savepoint(
    postgresql: str, postgresql_server: servers.PostgreSQL, retried: list[str]
) -> None:
    """A lost update under REPEATABLE READ needs a new snapshot, which only the outermost transaction can get."""
    open_accounts(postgresql, "a")
    inner_calls = []

    @db_retry(using=postgresql, max_attempts=4)
    def inner(seen: int) -> None:
        inner_calls.append(seen)
        Account.objects.using(postgresql).filter(name="a").update(balance=seen + 1)

    @db_retry(using=postgresql, isolation="repeatable read")
    def outer() -> None:
        seen = balance(postgresql)
        if not inner_calls:
            with postgresql_peer(postgresql_server) as peer:
                peer.execute("UPDATE testapp_account SET balance = balance + 10")
        inner(seen)

    outer()

    assert inner_calls == [0, 10]
    assert balance(postgresql) == 11
    assert retried == ["40001"]


def test_snapshot_isolation__of_mariadb_is_a_deadlock_by_another_number(
    mariadb: str, mariadb_server: servers.MariaDB, retried: list[str]
) -> None:
    """Error 1020 under innodb_snapshot_isolation is retried like a deadlock."""
    open_accounts(mariadb, "a")
    with connections[mariadb].cursor() as cursor:
        cursor.execute("SET SESSION innodb_snapshot_isolation = ON")
    attempts = 0

    @db_retry(using=mariadb, isolation="repeatable read")
    def work() -> None:
        nonlocal attempts
        attempts += 1
        balance(mariadb)
        if attempts == 1:
            with mariadb_peer(mariadb_server) as peer:
                peer.execute("UPDATE testapp_account SET balance = balance + 10")
        add(mariadb, "a")

    work()

    assert balance(mariadb) == 11
    assert retried == ["1020"]


def test_lock_timeout__is_retried_until_the_lock_is_free(
    postgresql: str, postgresql_server: servers.PostgreSQL, retried: list[str]
) -> None:
    """A wait ended by lock_timeout is tried again."""
    open_accounts(postgresql, "a")
    with postgresql_peer(postgresql_server) as peer:
        peer.execute("BEGIN; UPDATE testapp_account SET balance = 10")
        threading.Timer(0.3, peer.execute, ["COMMIT"]).start()

        db_retry(using=postgresql, lock_timeout=0.1, max_attempts=30)(lambda: add(postgresql, "a"))()

    assert balance(postgresql) == 11
    assert set(retried) == {"55P03"}


@pytest.mark.parametrize(
    ("fixture", "code"),
    [("postgresql", "55P03"), ("mariadb", "1205")],
)
def test_nowait__is_not_retried_unless_asked_for(
    fixture: str, code: str, request: pytest.FixtureRequest, retried: list[str]
) -> None:
    """Who says NOWAIT wants to know at once; retry_codes says otherwise."""
    alias = request.getfixturevalue(fixture)
    open_accounts(alias, "a")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=alias):
            add(alias, "a")
            held.set()
            release.wait(20)

    def work() -> None:
        Account.objects.using(alias).select_for_update(nowait=True).get(name="a")

    holder = Background(hold)
    held.wait(20)
    with pytest.raises(OperationalError):
        db_retry(using=alias)(work)()
    assert retried == []
    db_retry(using=alias, retry_codes=[code], max_attempts=50, on_retry=lambda exc, attempt: release.set())(work)()
    holder.join()

    assert set(retried) == {code}


def test_lock_wait_timeout__of_mariadb_rolls_the_attempt_back_before_the_next(
    mariadb: str, mariadb_server: servers.MariaDB, retried: list[str]
) -> None:
    """1205 undoes the statement only: what the attempt wrote before is rolled back by the retry, and not doubled."""
    open_accounts(mariadb, "a", "b")
    with mariadb_peer(mariadb_server) as peer:
        peer.execute("BEGIN")
        peer.execute("UPDATE testapp_account SET balance = 10 WHERE name = 'b'")

        @db_retry(using=mariadb, lock_timeout=1, on_retry=lambda exc, attempt: peer.execute("COMMIT"))
        def work() -> None:
            add(mariadb, "a")
            add(mariadb, "b")

        work()

    assert (balance(mariadb, "a"), balance(mariadb, "b")) == (1, 11)
    assert retried == ["1205"]


def test_timeouts__of_mariadb_are_put_back_after_the_transaction(mariadb: str) -> None:
    """Session variables are as before, whether the transaction ended well or not."""

    def limits() -> tuple[int, float]:
        with connections[mariadb].cursor() as cursor:
            cursor.execute("SELECT @@innodb_lock_wait_timeout, @@max_statement_time")
            return tuple(map(float, cursor.fetchone()))  # type: ignore[return-value]

    before = limits()
    with TransactionManager(mariadb, lock_timeout=3, statement_timeout=2.5):
        inside = limits()
    after_commit = limits()
    with pytest.raises(ZeroDivisionError), TransactionManager(mariadb, lock_timeout=3, statement_timeout=2.5):
        _ = 1 / 0

    assert inside == (3, 2.5)
    assert after_commit == limits() == before


def test_sqlite_busy__is_retried_until_the_other_writer_is_done(tmp_path: Path, retried: list[str]) -> None:
    """SQLITE_BUSY after the busy timeout: the transaction runs again."""
    with sqlite_file(tmp_path, timeout=0.2) as alias:
        open_accounts(alias, "a")
        peer = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None, check_same_thread=False)
        peer.execute("BEGIN IMMEDIATE")
        peer.execute("UPDATE testapp_account SET balance = 10")
        timer = threading.Timer(0.5, peer.execute, ["COMMIT"])
        timer.start()

        db_retry(using=alias, max_attempts=20)(lambda: add(alias, "a"))()
        timer.join()
        peer.close()

        assert balance(alias) == 11
        assert set(retried) == {"5"}


@pytest.mark.parametrize(("mode", "codes"), [("DEFERRED", ["517"]), ("IMMEDIATE", [])])
def test_sqlite_snapshot__is_too_old_to_write_to_and_starts_anew(
    mode: str, codes: list[str], tmp_path: Path, retried: list[str]
) -> None:
    """Read, then write, with another writer in between: a new transaction sees the new state; IMMEDIATE avoids it."""
    with sqlite_file(tmp_path, timeout=0.2, transaction_mode=mode) as alias:
        open_accounts(alias, "a")
        peer = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None, timeout=0)
        attempts = 0

        @db_retry(using=alias)
        def work() -> None:
            nonlocal attempts
            attempts += 1
            seen = balance(alias)
            if attempts == 1 and mode == "DEFERRED":
                peer.execute("UPDATE testapp_account SET balance = 10")
            Account.objects.using(alias).filter(name="a").update(balance=seen + 1)

        work()
        peer.close()

        assert balance(alias) == (11 if mode == "DEFERRED" else 1)
        assert retried == codes


def test_sqlite_commit__that_meets_a_reader_is_definite_and_retried(tmp_path: Path, retried: list[str]) -> None:
    """A busy COMMIT stores nothing for certain: no question is left open, and the next attempt stores it once."""
    phases: list[str] = []

    def note(phase: str, **kwargs: object) -> None:
        phases.append(phase)

    signals.db_retry_scheduled.connect(note)
    with sqlite_file(tmp_path, journal="delete", timeout=0.1, transaction_mode="IMMEDIATE") as alias:
        open_accounts(alias, "a")
        peer = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None)
        peer.execute("BEGIN")
        peer.execute("SELECT * FROM testapp_account").fetchall()

        db_retry(using=alias, on_retry=lambda exc, attempt: peer.execute("COMMIT"))(lambda: add(alias, "a"))()
        peer.close()

        assert balance(alias) == 1
    signals.db_retry_scheduled.disconnect(note)
    assert (retried, phases) == (["5"], ["commit"])


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_many_threads__lose_no_increment(fixture: str, request: pytest.FixtureRequest, retried: list[str]) -> None:
    """Twenty threads read, add and write under the strictest isolation; every increment is there."""
    alias = request.getfixturevalue(fixture)
    open_accounts(alias, "a", "b")

    @db_retry(using=alias, isolation="serializable", max_attempts=200)
    def increment() -> None:
        account = Account.objects.using(alias).get(name="a")
        account.balance += 1
        account.save()

    def many() -> None:
        for _ in range(ROUNDS):
            increment()
        for _ in range(ROUNDS):
            atomic_update(Account, Account.objects.using(alias).get(name="b").pk, _plus_one(), using=alias, max_retries=200)

    threads = [Background(many) for _ in range(20)]
    for thread in threads:
        thread.join(400)

    assert (balance(alias, "a"), balance(alias, "b")) == (20 * ROUNDS, 20 * ROUNDS)
    assert retried
    assert set(retried) <= {"40001", "40P01", "1213", "1205"}


def _plus_one() -> dict[str, object]:
    return {"balance": lambda account: account.balance + 1}


def test_swallowed_deadlock__of_a_raw_cursor_becomes_a_retry_and_no_half_commit(
    mariadb: str, mariadb_server: servers.MariaDB, retried: list[str]
) -> None:
    """The server rolled everything back: what came after the swallowed deadlock is not committed alone."""
    open_accounts(mariadb, "a", "b", "c")
    attempts = 0
    refused: list[str] = []

    @db_retry(using=mariadb)
    def work() -> None:
        nonlocal attempts
        attempts += 1
        add(mariadb, "a")
        if attempts == 1:
            _lose_deadlock(mariadb, mariadb_server)
            try:
                add(mariadb, "c")
            except transaction.TransactionManagementError as exc:
                refused.append(str(exc))

    work()

    assert refused
    assert [balance(mariadb, name) for name in "abc"] == [1, 1, 0]
    assert retried == ["1213"]


def test_swallowed_deadlock__raises_where_nobody_retries(mariadb: str, mariadb_server: servers.MariaDB) -> None:
    """A TransactionManager says what happened instead of reporting success."""
    open_accounts(mariadb, "a", "b")

    @TransactionManager(mariadb)
    def work() -> None:
        add(mariadb, "a")
        _lose_deadlock(mariadb, mariadb_server)

    with pytest.raises(TransactionBrokenError, match="swallowed") as caught:
        work()

    assert classify_db_error(caught.value, mariadb).code == "1213"
    assert balance(mariadb) == 0


def _lose_deadlock(alias: str, server: servers.MariaDB) -> None:
    """Be the victim of a deadlock in this thread's transaction, and swallow the error as careless code does."""
    locked = threading.Event()

    def other() -> None:
        with mariadb_peer(server) as peer:
            # The transaction that wrote more wins.
            peer.execute("BEGIN")
            for _ in range(20):
                peer.execute("INSERT INTO testapp_parent (name) VALUES ('x')")
            peer.execute("UPDATE testapp_account SET balance = balance + 1 WHERE name = 'b'")
            locked.set()
            peer.execute("UPDATE testapp_account SET note = 'x' WHERE name = 'a'")
            peer.execute("COMMIT")

    side = Background(other)
    locked.wait(20)
    time.sleep(0.1)
    with connections[alias].cursor() as cursor, contextlib.suppress(OperationalError):
        cursor.execute("UPDATE testapp_account SET note = 'y' WHERE name = 'b'")
    side.join()


def test_statement_timeout__is_not_retried_unless_asked_for(postgresql: str, retried: list[str]) -> None:
    """What took too long once will do so again: 57014 comes out at once."""
    calls = []

    def slow() -> None:
        calls.append(1)
        with connections[postgresql].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(5)")

    with pytest.raises(OperationalError, match="statement timeout"):
        db_retry(using=postgresql, statement_timeout=0.1)(slow)()
    first = len(calls)
    with pytest.raises(OperationalError, match="statement timeout"):
        db_retry(using=postgresql, statement_timeout=0.1, retry_codes=["57014"], max_attempts=2)(slow)()

    assert (first, len(calls)) == (1, 3)
    assert names(postgresql) == []
