"""atomic_update and VersionField on real servers: no lost update, whatever the contention and the collation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.models import F

from resilience import signals
from resilience.db.updates import atomic_update
from resilience.exceptions import ConcurrentUpdateError
from tests.db.test_updates import CHANGES, Meddler
from tests.length import LONG
from tests.testapp.models import Account, Parent, Sheet, Versioned


@pytest.fixture
def sqlite(sqlite_file: str) -> str:
    """The alias of a SQLite file that threads can share."""
    return sqlite_file


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> str:
    """Each server in turn."""
    return str(request.getfixturevalue(request.param))


def in_threads(alias: str, count: int, work: Callable[[int], None]) -> None:
    """Run `work` in threads that begin together, each with a connection of its own."""
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


@pytest.mark.parametrize("model", [Account, Versioned] if LONG else [Versioned])
def test_increments__of_many_threads_are_all_counted(alias: str, model: Any) -> None:
    """20 threads add 50 each to one number with a plain function: exactly 1000, with the default retries."""
    field = "balance" if model is Account else "number"
    row = model.objects.using(alias).create()

    def add(number: int) -> None:
        for _ in range(50):
            atomic_update(model, row.pk, {field: lambda row: getattr(row, field) + 1}, using=alias)

    in_threads(alias, 20, add)

    row.refresh_from_db()
    assert getattr(row, field) == 1000
    assert not isinstance(row, Versioned) or row.version == 1001


def test_increments__by_expression_are_all_counted_and_seen(alias: str) -> None:
    """Each caller gets the number that its own addition made: no two get the same."""
    row = Account.objects.using(alias).create(name="a")
    seen: list[int] = []

    def add(number: int) -> None:
        for _ in range(20):
            seen.append(atomic_update(Account, row.pk, {"balance": F("balance") + 1}, using=alias).balance)

    in_threads(alias, 10, add)

    assert sorted(seen) == list(range(1, 201))


@pytest.mark.parametrize(("name", "old", "new"), CHANGES)
def test_comparison__sees_every_change(server: str, name: str, old: Any, new: Any) -> None:
    """Also where the collation holds "a" and "A" for equal, and for every type of column."""
    Parent.objects.using(server).create(id=1, name="parent")
    sheet = Sheet.objects.using(server).create(**{name: old})

    def meddle(row: Sheet) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            Sheet.objects.using(server).filter(pk=row.pk).update(**{name: new})
        return row.number + 1

    calls = 0
    atomic_update(Sheet, sheet.pk, {"number": meddle}, watch=[name], using=server)
    after_change = calls
    atomic_update(Sheet, sheet.pk, {"number": meddle}, watch=[name], using=server, max_retries=0)

    assert (after_change, calls) == (2, 3)


def test_snapshot__of_a_transaction_on_mariadb_does_not_make_it_spin(mariadb: str) -> None:
    """In REPEATABLE READ plain reads stay old while the UPDATE sees the new row: a locking read gets it right."""
    account = Account.objects.using(mariadb).create(name="a", balance=1)
    connection = connections[mariadb]
    other = connection.copy()
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic(using=mariadb):
            Account.objects.using(mariadb).get(pk=account.pk)
            with other.cursor() as cursor:
                cursor.execute("UPDATE testapp_account SET balance = 100")
            row = atomic_update(Account, account.pk, {"balance": lambda row: row.balance + 1}, using=mariadb)
    finally:
        other.close()

    assert row.balance == 101
    assert Account.objects.using(mariadb).get().balance == 101


def test_snapshot__of_a_transaction_on_postgresql_raises_what_must_be_retried_outside(postgresql: str) -> None:
    """There the UPDATE itself says that the transaction has to begin anew; nobody else can do that for it."""
    account = Account.objects.using(postgresql).create(name="a", balance=1)
    connection = connections[postgresql]
    other = connection.copy()
    try:
        with pytest.raises(OperationalError), transaction.atomic(using=postgresql):
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            Account.objects.using(postgresql).get(pk=account.pk)
            with other.cursor() as cursor:
                cursor.execute("UPDATE testapp_account SET balance = 100")
            atomic_update(Account, account.pk, {"balance": lambda row: row.balance + 1}, using=postgresql)
    finally:
        other.close()

    assert Account.objects.using(postgresql).get().balance == 100


def test_connection__that_died_is_replaced(server: str) -> None:
    """A session killed between read and write costs a retry, and the change is made once."""
    account = Account.objects.using(server).create(name="a", balance=1)
    calls = 0

    def kill(row: Account) -> int:
        nonlocal calls
        calls += 1
        connection: Any = connections[server]
        if calls == 1:
            other = connection.copy()
            with other.cursor() as cursor:
                if connection.vendor == "postgresql":
                    cursor.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
                else:
                    cursor.execute(f"KILL {connection.connection.thread_id()}")
            other.close()
        return row.balance + 1

    row = atomic_update(Account, account.pk, {"balance": kill}, using=server)

    assert row.balance == 2
    assert Account.objects.using(server).get().balance == 2


def test_version__keeps_savers_apart(server: str) -> None:
    """Of several savers of one reading exactly one succeeds."""
    versioned = Versioned.objects.using(server).create()
    lost: list[int] = []

    def save(number: int) -> None:
        mine = Versioned.objects.using(server).get(pk=versioned.pk)
        barrier.wait()
        mine.number = number
        try:
            mine.save()
        except ConcurrentUpdateError:
            lost.append(number)

    barrier = threading.Barrier(8)
    in_threads(server, 8, save)

    versioned.refresh_from_db()
    assert len(lost) == 7
    assert versioned.number not in lost
    assert versioned.version == 2


def test_conflicts__are_counted(server: str) -> None:
    """The signal sees what contention there was."""
    account = Account.objects.using(server).create(name="a")
    attempts: list[int] = []

    def receive(attempt: int, **kwargs: Any) -> None:
        attempts.append(attempt)

    signals.update_conflicted.connect(receive)
    try:
        meddler = Meddler(times=0)
        first = True

        def meddle(row: Account) -> int:
            nonlocal first
            if first:
                Account.objects.using(server).update(balance=50)
                first = False
            return int(meddler(row))

        row = atomic_update(Account, account.pk, {"balance": meddle}, using=server)
    finally:
        signals.update_conflicted.disconnect(receive)

    assert (row.balance, attempts) == (51, [1])
