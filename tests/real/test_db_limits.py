"""What one transaction asks for (time limits, isolation, read-only) never holds for the next one on its connection."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.signals import request_finished, request_started
from django.db import Error, IntegrityError, close_old_connections, connections

from resilience import CommitOutcomeUnknownError, TransactionBrokenError, TransactionManager, db_retry, with_savepoint
from tests import servers
from tests.real.db_peers import Background, CommitCutter, mariadb_peer, postgresql_peer, session_id, terminate
from tests.testapp.models import Account, Parent

#: What the connection itself was told by the project's settings: it has to come back to that and not to the server's own.
OWN = (7.0, 8.0)
ASKED: dict[str, Any] = {"lock_timeout": 1, "statement_timeout": 0.5, "isolation": "serializable"}


class Scene:
    """An alias of a persistent connection with limits of its own, on one server, through a proxy."""

    def __init__(self, server: servers.PostgreSQL | servers.MariaDB, cutter: CommitCutter) -> None:
        self.server = server
        self.cutter = cutter
        self.alias = "limited"

    @property
    def is_postgresql(self) -> bool:
        return isinstance(self.server, servers.PostgreSQL)

    def execute(self, statement: str) -> Any:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def limits(self) -> tuple[float, float]:
        """The limits that hold now, in seconds."""
        if self.is_postgresql:
            setting = "(SELECT setting::float / 1000 FROM pg_settings WHERE name = '{}')"
            return tuple(self.execute(f"SELECT {setting.format('lock_timeout')}, {setting.format('statement_timeout')}"))
        return tuple(map(float, self.execute("SELECT @@innodb_lock_wait_timeout, @@max_statement_time")))

    def dawdle(self) -> None:
        """Run a statement that takes longer than it may."""
        self.execute("SELECT pg_sleep(30)" if self.is_postgresql else "SELECT COUNT(*) FROM seq_1_to_100000000000")

    def lock(self, name: str) -> None:
        """Ask for a row that another session holds until this one gave up."""
        update = f"UPDATE testapp_account SET balance = 1 WHERE name = '{name}'"
        with contextlib.ExitStack() as stack:
            peer: Any = stack.enter_context((postgresql_peer if self.is_postgresql else mariadb_peer)(self.server))  # type: ignore[operator]
            peer.execute("BEGIN")
            peer.execute(update)
            with contextlib.suppress(Error):
                self.execute(update)
            peer.execute("ROLLBACK")


@pytest.fixture(params=["postgresql", "mariadb"])
def scene(request: pytest.FixtureRequest, django_db_blocker: Any) -> Iterator[Scene]:
    with django_db_blocker.unblock():
        direct = request.getfixturevalue(request.param)
        server = request.getfixturevalue(f"{request.param}_server")
        cutter = CommitCutter(server.port)
        own = (
            {"options": "-c lock_timeout=7s -c statement_timeout=8s"}
            if request.param == "postgresql"
            else {"charset": "utf8mb4", "init_command": "SET SESSION innodb_lock_wait_timeout = 7, max_statement_time = 8"}
        )
        settings = {**server.settings, "PORT": str(cutter.port), "OPTIONS": own, "CONN_MAX_AGE": None}
        connections.databases["limited"] = connections.configure_settings({"default": {}, "limited": settings})["limited"]
        Account.objects.using(direct).create(name="held")
        yield Scene(server, cutter)
        connections["limited"].close()
        cutter.close()
        del connections.databases["limited"]
        del connections["limited"]


def ends_well(scene: Scene) -> None:
    with TransactionManager(scene.alias, **ASKED):
        assert scene.limits() == (1.0, 0.5)


def writes_and_commits_twice(scene: Scene) -> None:
    with TransactionManager(scene.alias, **ASKED) as tx:
        Account.objects.using(scene.alias).create(name="a")
        tx.commit()
        assert scene.limits() == (1.0, 0.5)
        tx.rollback()
        assert scene.limits() == (1.0, 0.5)


def reads_only(scene: Scene) -> None:
    with contextlib.suppress(Error), TransactionManager(scene.alias, read_only=True, **ASKED):
        Account.objects.using(scene.alias).create(name="a")


def raises(scene: Scene) -> None:
    with contextlib.suppress(ZeroDivisionError), TransactionManager(scene.alias, **ASKED):
        _ = 1 / 0


def breaks_a_constraint(scene: Scene) -> None:
    with contextlib.suppress(IntegrityError), TransactionManager(scene.alias, **ASKED):
        Account.objects.using(scene.alias).create(name="held")


def swallows_an_error(scene: Scene) -> None:
    with (
        contextlib.suppress(TransactionBrokenError),
        TransactionManager(scene.alias, **ASKED),
        contextlib.suppress(IntegrityError),
    ):
        Account.objects.using(scene.alias).create(name="held")


def takes_too_long(scene: Scene) -> None:
    with contextlib.suppress(Error), TransactionManager(scene.alias, **ASKED):
        scene.dawdle()


def waits_too_long(scene: Scene) -> None:
    with contextlib.suppress(Error, TransactionBrokenError), TransactionManager(scene.alias, lock_timeout=1):
        scene.lock("held")


def fails_in_a_savepoint(scene: Scene) -> None:
    @with_savepoint(using=scene.alias)
    def inner() -> None:
        with TransactionManager(scene.alias, lock_timeout=2, statement_timeout=3):
            assert scene.limits() == (2.0, 3.0)
            Account.objects.using(scene.alias).create(name="held")

    with TransactionManager(scene.alias, **ASKED):
        with contextlib.suppress(IntegrityError):
            inner()
        assert scene.limits() == (1.0, 0.5)


def loses_the_connection(scene: Scene) -> None:
    with contextlib.suppress(Error), TransactionManager(scene.alias, **ASKED):
        terminate(scene.server, session_id(scene.alias))
        scene.limits()


def loses_the_connection_and_is_retried(scene: Scene) -> None:
    calls: list[int] = []

    @db_retry(using=scene.alias, delay=0, **ASKED)
    def work() -> None:
        assert scene.limits() == (1.0, 0.5)
        calls.append(session_id(scene.alias))
        if len(calls) == 1:
            terminate(scene.server, calls[0])
        scene.limits()

    work()
    assert len(calls) == 2


def loses_the_commit(scene: Scene) -> None:
    with contextlib.suppress(CommitOutcomeUnknownError), TransactionManager(scene.alias, **ASKED):
        Account.objects.using(scene.alias).create(name="a")
        scene.cutter.armed = "after"


def is_interrupted(scene: Scene) -> None:
    def strike(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with contextlib.suppress(SoftTimeLimitExceeded), TransactionManager(scene.alias, lock_timeout=1, statement_timeout=20):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            scene.dawdle()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ENDINGS = [
    ends_well,
    writes_and_commits_twice,
    reads_only,
    raises,
    breaks_a_constraint,
    swallows_an_error,
    takes_too_long,
    waits_too_long,
    fails_in_a_savepoint,
    loses_the_connection,
    loses_the_connection_and_is_retried,
    loses_the_commit,
    is_interrupted,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_limits__of_a_transaction_end_with_it_however_it_ends(ending: Callable[[Scene], None], scene: Scene) -> None:
    """On a persistent connection the next transaction has the connection's own limits, may write, and sees others' commits."""
    assert scene.limits() == OWN

    ending(scene)

    assert scene.limits() == OWN
    with TransactionManager(scene.alias):
        assert scene.limits() == OWN
        # Without a unique name: there MariaDB keeps gaps locked around rows that were deleted a moment ago.
        late = "late"
        Parent.objects.using(scene.alias).create(name="next")
        assert not Parent.objects.using(scene.alias).filter(name=late).exists()
        Background(lambda: Parent.objects.using(scene.alias).create(name=late)).join()
        # At SERIALIZABLE it would be out of sight.
        assert Parent.objects.using(scene.alias).filter(name=late).exists()


@pytest.mark.parametrize("ending", [ends_well, takes_too_long, loses_the_connection], ids=lambda ending: ending.__name__)
def test_limits__do_not_cross_from_one_request_to_the_next(ending: Callable[[Scene], None], scene: Scene) -> None:
    """CONN_MAX_AGE keeps the session between requests; what one asked for does not reach the other."""
    first = session_id(scene.alias)
    ending(scene)
    for edge in (request_finished, request_started):
        assert close_old_connections in [receiver() for _, receiver, *_ in edge.receivers]
    close_old_connections()
    close_old_connections()

    assert scene.limits() == OWN
    assert (session_id(scene.alias) == first) is (ending is not loses_the_connection)
