"""Several databases, and blocks inside blocks, on databases that are really there."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.db import OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from resilience import TransactionBrokenError, TransactionManager, atomic_update, db_retry, safe_bulk_insert, signals
from resilience.db import middleware
from resilience.db.errors import classify_db_error
from tests import servers
from tests.real.db_peers import add, balance, names, open_accounts, postgresql_peer, sqlite_file
from tests.testapp.models import Account


@pytest.fixture(autouse=True)
def _databases(django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        yield


def test_other_alias__in_an_open_transaction_forbids_a_second_attempt(tmp_path: Path) -> None:
    """Its work would not be rolled back, and a second attempt would do it twice."""
    (tmp_path / "b").mkdir()
    with sqlite_file(tmp_path) as other, sqlite_file(tmp_path / "b", journal="delete") as first:

        @db_retry(using=other)
        def work() -> None:
            add_to_both.append(1)
            raise OperationalError("database is locked")

        add_to_both: list[int] = []

        with pytest.raises(OperationalError) as caught, transaction.atomic(using=first):
            work()

    assert add_to_both == [1]
    assert "a transaction is open on 'sqlite_delete'" in caught.value.__notes__[-1]


@pytest.mark.parametrize("idempotent", [False, True])
def test_other_alias__that_something_was_committed_on_forbids_a_second_attempt(idempotent: bool, tmp_path: Path) -> None:
    """What went to the other database is not rolled back: once more would store it twice, unless that does no harm."""
    (tmp_path / "b").mkdir()
    with sqlite_file(tmp_path) as other, sqlite_file(tmp_path / "b", journal="delete") as first:
        calls = []

        @db_retry(using=first, idempotent=idempotent)
        def work() -> None:
            calls.append(1)
            Account.objects.using(other).get_or_create(name="elsewhere")
            Account.objects.using(first).create(name="here")
            if len(calls) == 1:
                raise OperationalError("database is locked")

        if idempotent:
            work()
        else:
            with pytest.raises(OperationalError) as caught:
                work()
            assert "work was committed on 'sqlite_wal'" in caught.value.__notes__[-1]

        assert len(calls) == (2 if idempotent else 1)
        assert names(other) == ["elsewhere"]


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize(
    ("statement", "times"),
    [
        ("CREATE TABLE made_here (id int)", 1),
        ("truncate table testapp_sheet", 1),
        ("CREATE TEMPORARY TABLE kept_here (id int)", 2),
    ],
)
def test_statement__that_commits_on_mariadb_forbids_a_second_attempt(
    statement: str, times: int, atomic: bool, mariadb: str
) -> None:
    """What came before it is stored: running the function again would store it twice."""
    open_accounts(mariadb, "a")
    calls = []

    @db_retry(using=mariadb, atomic=atomic, max_attempts=2, delay=0)
    def work() -> None:
        calls.append(1)
        with transaction.atomic(using=mariadb):
            add(mariadb, "a")
            with connections[mariadb].cursor() as cursor:
                cursor.execute("DROP TEMPORARY TABLE IF EXISTS kept_here")
                cursor.execute(statement)
            raise OperationalError(1213, "Deadlock found when trying to get lock")

    try:
        with pytest.raises(OperationalError) as caught:
            work()
    finally:
        with connections[mariadb].cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS made_here")
            cursor.execute("DROP TEMPORARY TABLE IF EXISTS kept_here")

    assert len(calls) == times
    assert balance(mariadb) == (1 if times == 1 else 0)
    assert ("was committed" in caught.value.__notes__[-1]) is (times == 1)


@pytest.mark.parametrize(("statement", "is_trace"), [("CREATE TABLE made_here (id int)", True), ("SELECT 1", False)])
def test_statement__that_commits_on_mariadb_forbids_a_second_request(statement: str, is_trace: bool, mariadb: str) -> None:
    """The middleware leaves a request alone whose view has stored something by such a statement."""
    error = OperationalError(1213, "Deadlock found when trying to get lock")
    attempt = middleware._Attempt(lambda: None, (), {}, [mariadb])

    try:
        with ExitStack() as watched:
            attempt.watch(watched)
            with contextlib.suppress(OperationalError), transaction.atomic(using=mariadb):
                with connections[mariadb].cursor() as cursor:
                    cursor.execute(statement)
                raise error
            traces = attempt.has_left_traces(classify_db_error(error, mariadb), mariadb)
    finally:
        with connections[mariadb].cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS made_here")

    assert traces is is_trace


def test_other_alias__that_was_only_read_does_not_hinder(tmp_path: Path) -> None:
    """Reading from a second database is no reason to give up."""
    (tmp_path / "b").mkdir()
    with sqlite_file(tmp_path) as other, sqlite_file(tmp_path / "b", journal="delete") as first:
        calls = []

        @db_retry(using=first)
        def work() -> int:
            calls.append(len(names(other)))
            if len(calls) == 1:
                raise OperationalError("database is locked")
            return len(calls)

        assert work() == 2


def test_other_alias__error_is_not_retried_here(tmp_path: Path) -> None:
    """An error that the traceback traces to another database is not this policy's to cure."""
    (tmp_path / "b").mkdir()
    with sqlite_file(tmp_path, timeout=0.05) as other, sqlite_file(tmp_path / "b", journal="delete") as first:
        peer = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None)
        peer.execute("BEGIN IMMEDIATE")
        calls = []

        @db_retry(using=first)
        def work() -> None:
            calls.append(1)
            Account.objects.using(other).create(name="x")

        with pytest.raises(OperationalError, match="locked"):
            work()
        peer.execute("ROLLBACK")
        peer.close()

    assert calls == [1]


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
@pytest.mark.parametrize("level", ["read uncommitted", "read committed", "repeatable read", "serializable"])
def test_isolation__holds_for_one_transaction(fixture: str, level: str, request: pytest.FixtureRequest) -> None:
    """The level is set for this transaction and not for the next one, also when the block did nothing."""
    alias = request.getfixturevalue(fixture)

    def level_now() -> str:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1 FROM testapp_account")
            if fixture == "mariadb":
                time.sleep(0.2)  # the server renews this view ten times a second at most
            cursor.execute("SHOW transaction_isolation" if fixture == "postgresql" else _LEVEL_OF_MARIADB)
            return str(cursor.fetchone()[0]).lower().replace("-", " ")

    with TransactionManager(alias, isolation=level):
        pass
    with TransactionManager(alias):
        between = level_now()
    with TransactionManager(alias, isolation=level):
        inside = level_now()
    with TransactionManager(alias):
        after = level_now()

    assert (between, inside, after) == ("read committed", level, "read committed")


_LEVEL_OF_MARIADB = "SELECT trx_isolation_level FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = connection_id()"


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_read_only__makes_the_database_refuse_writes(fixture: str, request: pytest.FixtureRequest) -> None:
    """A write fails, a read works, and the next transaction may write."""
    alias = request.getfixturevalue(fixture)

    with TransactionManager(alias, read_only=True):
        assert names(alias) == []
    with pytest.raises(Exception, match=r"(?i)read.only"), TransactionManager(alias, read_only=True):
        open_accounts(alias, "a")
    open_accounts(alias, "b")

    assert names(alias) == ["b"]


def test_read_only__on_sqlite_ends_with_the_block(tmp_path: Path) -> None:
    """PRAGMA query_only is taken back, whether the block ended well or not."""
    with sqlite_file(tmp_path) as alias:
        with pytest.raises(OperationalError, match="readonly"), TransactionManager(alias, read_only=True):
            open_accounts(alias, "a")
        open_accounts(alias, "b")

        assert names(alias) == ["b"]


def test_timeouts__in_a_savepoint_are_put_back_for_the_transaction_around(postgresql: str) -> None:
    """Inside, the inner limits hold; afterwards the outer ones."""

    def limits() -> tuple[str, str]:
        with connections[postgresql].cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")
            return cursor.fetchone()

    with TransactionManager(postgresql, lock_timeout=2, statement_timeout=3):
        with TransactionManager(postgresql, lock_timeout=0.5):
            inner = limits()
        outer = limits()
    after = limits()

    assert (inner, outer, after) == (("500ms", "3s"), ("2s", "3s"), ("0", "0"))


def test_isolation__inside_a_transaction_is_refused(postgresql: str) -> None:
    """A level cannot be changed once the transaction runs: a clear error, and the outer transaction lives on."""
    with TransactionManager(postgresql):
        open_accounts(postgresql, "a")
        with (
            pytest.raises(TransactionManagementError, match="must be given to the outermost transaction"),
            TransactionManager(postgresql, isolation="serializable"),
        ):
            pytest.fail("entered")
        add(postgresql, "a")

    assert balance(postgresql) == 1


def test_savepoints__on_postgresql_are_counted_also_when_released(postgresql: str) -> None:
    """The 51st of one transaction is refused, before every session of the server pays for it; a commit starts anew."""
    with TransactionManager(postgresql) as tx:
        for number in range(50):
            with tx.savepoint():
                Account.objects.using(postgresql).create(name=f"{number}")
        with pytest.raises(TransactionManagementError, match="at most 50 live savepoints"), tx.savepoint():
            pytest.fail("entered")
        tx.commit()
        with tx.savepoint():
            Account.objects.using(postgresql).create(name="after")

    assert len(names(postgresql)) == 51


def test_commit__inside_the_block_is_seen_by_others_at_once(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """commit() stores what was done so far; what follows is another transaction."""
    with postgresql_peer(postgresql_server) as peer:

        def seen() -> int:
            return peer.execute("SELECT count(*) FROM testapp_account").fetchone()[0]  # type: ignore[index]

        with TransactionManager(postgresql, auto_commit=False) as tx:
            open_accounts(postgresql, "a")
            before = seen()
            tx.commit()
            after = seen()
            open_accounts(postgresql, "b")

    assert (before, after) == (0, 1)
    assert names(postgresql) == ["a"]


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_closed_connection__inside_the_block_is_no_silent_rollback(fixture: str, request: pytest.FixtureRequest) -> None:
    """connection.close() in a transaction throws its work away: that is an error, and the next block works."""
    alias = request.getfixturevalue(fixture)

    def work() -> None:
        open_accounts(alias, "lost")
        connections[alias].close()

    with pytest.raises(TransactionBrokenError, match="connection was closed inside"):
        TransactionManager(alias)(work)()
    TransactionManager(alias)(lambda: open_accounts(alias, "kept"))()

    assert names(alias) == ["kept"]


@pytest.fixture(params=["postgresql", "mariadb"])
def manual(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """An alias with AUTOCOMMIT off, where the project itself says when to commit, and another one to look from."""
    direct = request.getfixturevalue(request.param)
    server = request.getfixturevalue(f"{request.param}_server")
    settings = {**server.settings, "AUTOCOMMIT": False}
    connections.databases["manual"] = connections.configure_settings({"default": {}, "manual": settings})["manual"]
    yield "manual", direct
    connections["manual"].close()
    del connections["manual"], connections.databases["manual"]


def test_manual_commits__are_the_callers_and_everything_inside_is_a_savepoint(manual: tuple[str, str]) -> None:
    """With AUTOCOMMIT off nothing is committed, retried or reported as committed before the caller says so."""
    alias, direct = manual
    ended: list[str] = []
    calls: list[int] = []

    def note(outcome: str, **kwargs: object) -> None:
        ended.append(outcome)

    @db_retry(using=alias, delay=0)
    def work() -> None:
        calls.append(1)
        raise OperationalError("deadlock detected")

    signals.transaction_finished.connect(note)
    try:
        with TransactionManager(alias):
            account = Account.objects.using(alias).create(name="kept")
        with pytest.raises(ZeroDivisionError), TransactionManager(alias):
            Account.objects.using(alias).create(name="undone")
            _ = 1 / 0
        with TransactionManager(alias) as tx:
            Account.objects.using(alias).create(name="taken back")
            tx.rollback()
        stored, failed = safe_bulk_insert(Account, [{"name": "bulk"}, {"name": "kept"}, {"name": "more"}], using=alias)
        atomic_update(Account, account.pk, {"balance": lambda row: row.balance + 7}, using=alias)
        with pytest.raises(OperationalError, match="deadlock"):
            work()
    finally:
        signals.transaction_finished.disconnect(note)

    assert (calls, ended, [row.name for row in stored], [row.index for row in failed]) == ([1], [], ["bulk", "more"], [1])
    assert names(direct) == []
    assert not connections[alias].in_atomic_block
    connections[alias].commit()
    assert names(direct) == ["kept", "bulk", "more"]
    assert balance(direct, "kept") == 7


def test_manual_commits__after_an_interruption_wait_for_the_callers_rollback(manual: tuple[str, str]) -> None:
    """A block that was interrupted on its way in or out leaves a transaction that can only be rolled back."""
    alias, direct = manual
    Account.objects.using(alias).create(name="before")
    block = TransactionManager(alias)
    block.__enter__()
    opened = block._block
    assert opened is not None

    opened.abandon(is_sure=True)

    with pytest.raises(TransactionManagementError):
        Account.objects.using(alias).count()
    connections[alias].rollback()
    Account.objects.using(alias).create(name="after")
    connections[alias].commit()
    assert names(direct) == ["after"]
