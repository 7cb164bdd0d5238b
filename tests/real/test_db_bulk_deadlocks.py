"""safe_bulk_insert that loses a deadlock in the middle, against a second session on a real server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from resilience import db_retry, signals
from resilience.db.bulk import RowFault, safe_bulk_insert
from tests import servers
from tests.real.db_peers import Background, mariadb_peer, open_accounts, postgresql_peer, waits_for_lock
from tests.testapp.models import Account, Ware

SEVENTH = 7
CONTESTED = 650  # in the seventh batch of a hundred
LAST = 999  # in the seventh batch inside a transaction, where batches grow
TOTAL = 1000
RECORDS = [{"code": f"c{number}", "name": "good"} for number in range(TOTAL)]

Server = servers.PostgreSQL | servers.MariaDB


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> tuple[str, Server]:
    """Each server in turn: its alias, and the server."""
    return str(request.getfixturevalue(request.param)), request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def retried() -> Iterator[list[str]]:
    """The codes of the errors that were retried."""
    codes: list[str] = []

    def note(code: str, **kwargs: object) -> None:
        codes.append(code)

    signals.db_retry_scheduled.connect(note)
    yield codes
    signals.db_retry_scheduled.disconnect(note)


class Rival:
    """Another session that has stored a row of the seventh batch and, once the seventh batch begins, waits for an account which that batch holds.

    The batch then meets that row: it closes the circle, and the server makes it the victim.
    """

    def __init__(self, alias: str, server: Server, end: str, contested: str = f"c{CONTESTED}") -> None:
        self._alias = alias
        self._server = server
        self._end = end
        self._contested = contested
        self._written = 0
        self._side: Background | None = None
        self._has_written = threading.Event()

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        """Begin before the seventh batch is written, inside its transaction."""
        if sql.startswith(("COPY", "INSERT")):
            self._written += 1
            if self._written == SEVENTH and self._side is None:
                assert context["connection"].in_atomic_block
                self._meet()
        return execute(sql, params, many, context)

    def join(self) -> None:
        """Wait for its end, and raise what went wrong."""
        assert self._side is not None, "no seventh batch was written"
        self._side.join()

    def _meet(self) -> None:
        Account.objects.using(self._alias).select_for_update().get(name="held")
        self._side = Background(self._work)
        servers.wait_until(lambda: self._has_written.is_set() and waits_for_lock(self._server))

    def _work(self) -> None:
        with self._session() as peer:
            peer.execute("BEGIN")
            # MariaDB spares who has written more.
            for number in range(2 * TOTAL):
                peer.execute("INSERT INTO testapp_parent (name) VALUES (%s)", [f"heavy {number}"])
            peer.execute(
                "INSERT INTO testapp_ware (code, name, quantity, price, added) VALUES (%s, 'rival', 0, 0, now())",
                [self._contested],
            )
            self._has_written.set()
            peer.execute("SELECT id FROM testapp_account WHERE name = 'held' FOR UPDATE")
            peer.execute(self._end)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        if isinstance(self._server, servers.PostgreSQL):
            with postgresql_peer(self._server) as peer:
                peer.execute("SET deadlock_timeout = '60s'")  # PostgreSQL's victim is who looks first
                yield peer
        else:
            with mariadb_peer(self._server) as cursor:
                yield cursor


def codes_of(alias: str) -> Counter[str]:
    """How often each code is stored."""
    return Counter(Ware.objects.using(alias).values_list("code", flat=True))


@pytest.mark.parametrize("return_objects", [True, False])
def test_insert__that_loses_a_deadlock_stores_its_batch_again_as_a_whole(
    database: tuple[str, Server], return_objects: bool, retried: list[str]
) -> None:
    """The other one rolls back: all rows are stored once, and those that are returned have the keys they were stored with."""
    alias, server = database
    open_accounts(alias, "held")
    rival = Rival(alias, server, "ROLLBACK")

    with connections[alias].execute_wrapper(rival):
        result = safe_bulk_insert(Ware, RECORDS, using=alias, batch_size=100, return_objects=return_objects)

    rival.join()
    assert retried == ["40P01" if connections[alias].vendor == "postgresql" else "1213"]
    assert result.failed == []
    assert codes_of(alias) == Counter(record["code"] for record in RECORDS)
    if return_objects:
        pks = dict(Ware.objects.using(alias).values_list("code", "pk"))
        assert [instance.pk for instance in result.inserted] == [pks[record["code"]] for record in RECORDS]
    else:
        assert result.inserted == TOTAL


@pytest.mark.parametrize("return_objects", [True, False])
def test_insert__that_loses_a_deadlock_reports_the_row_that_the_winner_stored(
    database: tuple[str, Server], return_objects: bool, retried: list[str]
) -> None:
    """The other one commits: its row is the one that failed, with its reason, and all others are stored once."""
    alias, server = database
    open_accounts(alias, "held")
    rival = Rival(alias, server, "COMMIT")

    with connections[alias].execute_wrapper(rival):
        result = safe_bulk_insert(Ware, RECORDS, using=alias, batch_size=100, return_objects=return_objects)

    rival.join()
    assert len(retried) == 1
    assert [(row.index, row.kind) for row in result.failed] == [(CONTESTED, RowFault.UNIQUE)]
    assert codes_of(alias) == Counter(record["code"] for record in RECORDS)
    assert Ware.objects.using(alias).get(code=f"c{CONTESTED}").name == "rival"
    assert (len(result.inserted) if return_objects else result.inserted) == TOTAL - 1


def test_insert__in_the_callers_transaction_leaves_a_deadlock_to_who_can_run_all_of_it_again(
    database: tuple[str, Server], retried: list[str]
) -> None:
    """There only the outermost can retry: without it nothing is stored, with `db_retry` around everything once."""
    alias, server = database
    open_accounts(alias, "held")

    def store(kind: str) -> int:
        # MariaDB locks around keys that are gone but not cleared away yet, here to the end: so they are new in each try.
        records = ({"code": f"{kind}{number}", "name": "good"} for number in range(TOTAL))
        return int(safe_bulk_insert(Ware, records, using=alias, batch_size=100, return_objects=False).inserted)

    first, second = Rival(alias, server, "ROLLBACK", f"first{LAST}"), Rival(alias, server, "ROLLBACK", f"second{LAST}")
    with pytest.raises(OperationalError), connections[alias].execute_wrapper(first), transaction.atomic(using=alias):
        store("first")
    first.join()
    alone = codes_of(alias)
    with connections[alias].execute_wrapper(second):
        stored = db_retry(using=alias)(store)("second")
    second.join()

    assert (alone, stored) == (Counter(), TOTAL)
    assert retried == ["40P01" if connections[alias].vendor == "postgresql" else "1213"]
    assert codes_of(alias) == Counter(f"second{number}" for number in range(TOTAL))
