"""COMMITs that were lost on the way, and what goes wrong after a COMMIT."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import IntegrityError, OperationalError, connections, transaction

from resilience import (
    CommitOutcomeUnknownError,
    ResilienceError,
    TransactionBrokenError,
    TransactionManager,
    db_retry,
    retry,
    signals,
)
from resilience.db.models import IdempotencyKey
from tests import servers
from tests.real.db_peers import (
    Background,
    CommitCutter,
    hook,
    mariadb_peer,
    names,
    postgresql_peer,
    session_id,
    terminate,
    through,
    waits_for_lock,
)
from tests.testapp.models import Account


@pytest.fixture(autouse=True)
def _databases(django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]  # pytest-django's blocker
        yield


@pytest.fixture
def resolutions() -> Iterator[list[str]]:
    """What became of lost COMMITs, as the signal tells."""
    heard: list[str] = []

    def note(resolution: str, **kwargs: object) -> None:
        heard.append(resolution)

    signals.commit_outcome_unknown.connect(note)
    yield heard
    signals.commit_outcome_unknown.disconnect(note)


@pytest.fixture
def slow_commit(postgresql: str, postgresql_server: servers.PostgreSQL) -> Iterator[str]:
    """A PostgreSQL where COMMIT of a new account named "slow" takes two seconds, in a deferred constraint trigger."""
    with postgresql_peer(postgresql_server) as peer:
        peer.execute(
            """
            CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.note = 'slow' THEN PERFORM pg_sleep(20); END IF; RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON testapp_account
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle();
            """
        )
        yield postgresql
        peer.execute("DROP TRIGGER dawdle ON testapp_account; DROP FUNCTION dawdle()")


def creating(alias: str, *, note: str = "", hooks: list[str] | None = None) -> Callable[[], str]:
    """Make a function that stores "attempt 1", "attempt 2"... and returns the name; only the first has the note."""
    calls = 0

    def work() -> str:
        nonlocal calls
        calls += 1
        name = f"attempt {calls}"
        if hooks is not None:
            hook(alias, hooks, name)
        Account.objects.using(alias).create(name=name, note=note if calls == 1 else "")
        return name

    return work


def kill_when(condition: str, server: servers.PostgreSQL) -> Background:
    """End the session that a condition on pg_stat_activity finds, as soon as there is one."""

    def kill() -> None:
        with postgresql_peer(server) as peer:

            def is_hit() -> bool:
                query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({condition})"
                return bool(peer.execute(query).fetchall())  # type: ignore[arg-type]

            servers.wait_until(is_hit)

    return Background(kill)


IN_SLEEP = "wait_event = 'PgSleep'"
IN_SYNC_REPLICATION = "wait_event = 'SyncRep'"


@pytest.mark.parametrize("how", ["server", "function"])
def test_lost_commit__that_was_aborted_is_run_again_once_that_is_known(
    how: str, slow_commit: str, postgresql_server: servers.PostgreSQL, resolutions: list[str]
) -> None:
    """The session dies inside COMMIT before anything is stored: asked for, the server says so."""
    hooks: list[str] = []
    verify: Any = "server" if how == "server" else lambda: Account.objects.using(slow_commit).filter(name="attempt 1").exists()
    killer = kill_when(IN_SLEEP, postgresql_server)

    result = db_retry(using=slow_commit, verify=verify)(creating(slow_commit, note="slow", hooks=hooks))()
    killer.join()

    assert result == "attempt 2"
    assert names(slow_commit) == ["attempt 2"]
    assert hooks == ["attempt 2"]
    assert resolutions == ["aborted"]


def test_lost_commit__raises_and_is_not_run_again_when_nothing_settles_it(
    slow_commit: str, postgresql_server: servers.PostgreSQL, resolutions: list[str]
) -> None:
    """Without a way to find out there is no second attempt, and the error says what to do."""
    killer = kill_when(IN_SLEEP, postgresql_server)
    work = creating(slow_commit, note="slow")

    with pytest.raises(CommitOutcomeUnknownError, match="may or may not be stored") as caught:
        db_retry(using=slow_commit)(work)()
    killer.join()

    assert work() == "attempt 2"
    assert caught.value.using == slow_commit
    assert isinstance(caught.value.__cause__, OperationalError)
    assert resolutions == ["raised"]


def test_lost_commit__raises_from_a_transaction_manager_too(slow_commit: str, postgresql_server: servers.PostgreSQL) -> None:
    """The manager does not pass a lost COMMIT off as a plain connection error."""
    killer = kill_when(IN_SLEEP, postgresql_server)

    with pytest.raises(CommitOutcomeUnknownError), TransactionManager(slow_commit):
        creating(slow_commit, note="slow")()
    killer.join()

    assert names(slow_commit) == []


@pytest.fixture
def ghost_replica(postgresql: str, postgresql_server: servers.PostgreSQL) -> Iterator[str]:
    """A PostgreSQL that waits for a replica that does not exist: COMMIT is stored, and never answered."""
    with postgresql_peer(postgresql_server) as peer:
        peer.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        peer.execute("SELECT pg_reload_conf()")
        servers.wait_until(lambda: peer.execute("SHOW synchronous_standby_names").fetchone() == ("ghost",))
        # Only sessions that begin now wait: the tests' own look-ups do not.
        yield postgresql
        peer.execute("ALTER SYSTEM RESET synchronous_standby_names")
        peer.execute("SELECT pg_reload_conf()")
        servers.wait_until(lambda: peer.execute("SHOW synchronous_standby_names").fetchone() == ("",))


@pytest.mark.parametrize("how", ["server", "function", "key"])
def test_lost_commit__that_was_stored_is_not_run_again_and_gives_its_value(
    how: str, ghost_replica: str, postgresql_server: servers.PostgreSQL, resolutions: list[str]
) -> None:
    """The session dies after the COMMIT is durable: the first attempt's value comes back and its hooks run, once."""
    alias = ghost_replica
    hooks: list[str] = []
    options: dict[str, Any] = {
        "server": {"verify": "server"},
        "function": {"verify": lambda: Account.objects.using(alias).filter(name="attempt 1").exists()},
        "key": {"idempotency_key": "order 1"},
    }[how]
    killer = kill_when(IN_SYNC_REPLICATION, postgresql_server)

    result = db_retry(using=alias, **options)(creating(alias, hooks=hooks))()
    killer.join()

    assert result == "attempt 1"
    assert names(alias) == ["attempt 1"]
    assert hooks == ["attempt 1"]
    assert resolutions == ["committed"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_cut_connection__is_decided_by_the_idempotency_row(
    database: str, when: str, request: pytest.FixtureRequest, resolutions: list[str]
) -> None:
    """A proxy drops COMMIT, or the answer to it: the key's row tells which, and the work is stored once."""
    direct = request.getfixturevalue(database)
    server = request.getfixturevalue(f"{database}_server")
    cutter = CommitCutter(server.port)
    hooks: list[str] = []

    with through(cutter, server.settings) as alias:
        work = db_retry(using=alias, idempotency_key="order 2")(creating(alias, hooks=hooks))
        Account.objects.using(alias).count()
        cutter.armed = when
        first = work()
        second = work()

    assert cutter.cuts == 1
    assert first == second == ("attempt 1" if when == "after" else "attempt 2")
    assert names(direct) == [first]
    assert hooks == [first]
    assert resolutions == ["committed" if when == "after" else "aborted"]
    assert IdempotencyKey.objects.using(direct).get().key == "order 2"


def test_cut_connection__of_work_that_wrote_nothing_is_settled_as_done(
    postgresql: str, postgresql_server: servers.PostgreSQL, resolutions: list[str]
) -> None:
    """A transaction that only read has no number to ask about, and nothing of it can be missing."""
    cutter = CommitCutter(postgresql_server.port)
    calls: list[int] = []

    with through(cutter, postgresql_server.settings) as alias:
        Account.objects.using(alias).count()

        @db_retry(using=alias, verify="server", deadline=5)
        def work() -> int:
            calls.append(Account.objects.using(alias).count())
            return 42

        cutter.armed = "before"
        result = work()

    assert (result, calls, cutter.cuts) == (42, [0], 1)
    assert resolutions == ["committed"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_cut_connection__is_run_again_when_twice_does_no_harm(database: str, when: str, request: pytest.FixtureRequest) -> None:
    """idempotent=True runs again without asking."""
    direct = request.getfixturevalue(database)
    server = request.getfixturevalue(f"{database}_server")
    cutter = CommitCutter(server.port)

    with through(cutter, server.settings) as alias:
        Account.objects.using(alias).count()
        cutter.armed = when
        result = db_retry(using=alias, idempotent=True)(creating(alias))()

    assert result == "attempt 2"
    assert names(direct) == (["attempt 2"] if when == "before" else ["attempt 1", "attempt 2"])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("has_handled", [False, True])
def test_cut_connection__in_a_transaction_of_the_functions_own_is_as_unknown(
    when: str, has_handled: bool, mariadb: str, mariadb_server: servers.MariaDB
) -> None:
    """With atomic=False a COMMIT inside the function is lost like any other, also after an error that it dealt with."""
    cutter = CommitCutter(mariadb_server.port)

    with through(cutter, mariadb_server.settings) as alias:
        create = creating(alias)
        Account.objects.using(alias).count()
        cutter.armed = when

        @db_retry(using=alias, atomic=False)
        def work() -> None:
            with transaction.atomic(using=alias):
                name = create()
                if has_handled:
                    with contextlib.suppress(IntegrityError), transaction.atomic(using=alias):
                        Account.objects.using(alias).create(name=name)

        with pytest.raises(CommitOutcomeUnknownError):
            work()

    assert names(mariadb) == ([] if when == "before" else ["attempt 1"])


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_failing_hook__after_a_commit_that_was_settled_runs_nothing_again(database: str, request: pytest.FixtureRequest) -> None:
    """A hook that fails after a lost COMMIT turned out to be stored: a retry around it must not do the work twice."""
    direct = request.getfixturevalue(database)
    server = request.getfixturevalue(f"{database}_server")
    cutter = CommitCutter(server.port)

    with through(cutter, server.settings) as alias:
        create = creating(alias)

        @retry(delay=0)
        @db_retry(using=alias, verify=lambda: True)
        def work() -> None:
            transaction.on_commit(_raise_lost, using=alias)
            create()

        Account.objects.using(alias).count()
        cutter.armed = "after"
        with pytest.raises(OperationalError, match="server closed the connection") as caught:
            work()

    assert "was committed before" in caught.value.__notes__[0]
    assert names(direct) == ["attempt 1"]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
@pytest.mark.parametrize("answer", ["raises", "stored", "not stored"])
def test_cut_connection__is_settled_by_a_function(
    database: str, answer: str, request: pytest.FixtureRequest, resolutions: list[str]
) -> None:
    """verify= decides; one that fails itself leaves the outcome unknown, and a retry around it does nothing twice."""
    direct = request.getfixturevalue(database)
    server = request.getfixturevalue(f"{database}_server")
    cutter = CommitCutter(server.port)

    def verify() -> bool:
        if answer == "raises":
            raise ConnectionError("the search index is away")
        return Account.objects.using(alias).filter(name="attempt 1").exists()

    with through(cutter, server.settings) as alias:
        work = retry(delay=0)(db_retry(using=alias, verify=verify)(creating(alias)))
        Account.objects.using(alias).count()
        cutter.armed = "before" if answer == "not stored" else "after"
        if answer == "raises":
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                work()
            assert "ConnectionError: the search index is away" in caught.value.__notes__[0]
        else:
            assert work() == ("attempt 1" if answer == "stored" else "attempt 2")

    assert names(direct) == ["attempt 2" if answer == "not stored" else "attempt 1"]
    assert resolutions == [{"raises": "raised", "stored": "committed", "not stored": "aborted"}[answer]]


def test_key__that_mariadb_takes_for_another_is_refused_and_not_passed_off_as_done(mariadb: str) -> None:
    """Its collation holds "Order" and "order" equal; a value that belongs to another key is never returned."""
    create = creating(mariadb)
    db_retry(using=mariadb, idempotency_key="order 1")(create)()

    for key in ("Order 1", "order 1 ", "\u00f3rder 1"):
        with pytest.raises(ValueError, match="idempotency_key must differ from others by more than case"):
            db_retry(using=mariadb, idempotency_key=key)(create)()

    assert names(mariadb) == ["attempt 1"]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_key__that_another_call_commits_meanwhile_gives_its_value(database: str, request: pytest.FixtureRequest) -> None:
    """Of two calls at once one works and the other waits for it, even if it may try only once."""
    alias = request.getfixturevalue(database)
    begun, go_on = threading.Event(), threading.Event()

    def work(name: str) -> str:
        begun.set()
        go_on.wait(30)
        Account.objects.using(alias).create(name=name)
        return name

    keyed = db_retry(using=alias, idempotency_key="one", max_attempts=1)(work)
    first = Background(lambda: keyed("first"))
    assert begun.wait(30)
    second = Background(lambda: keyed("second"))
    server = request.getfixturevalue(f"{database}_server")
    servers.wait_until(lambda: waits_for_lock(server))
    go_on.set()

    assert (first.join(), second.join()) == ("first", "first")
    assert names(alias) == ["first"]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_key__that_a_snapshot_cannot_show_tells_what_to_do(database: str, request: pytest.FixtureRequest) -> None:
    """In somebody else's transaction that has read before, the other call's value is out of sight: it is told so."""
    alias = request.getfixturevalue(database)
    keyed = db_retry(using=alias, idempotency_key="one")(creating(alias))

    with (
        pytest.raises(ResilienceError, match="Run the transaction around"),
        TransactionManager(alias, isolation="repeatable read"),
    ):
        assert names(alias) == []
        Background(keyed).join()
        keyed()

    assert names(alias) == ["attempt 1"]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_key__that_a_snapshot_cannot_show_is_seen_by_the_next_attempt(database: str, request: pytest.FixtureRequest) -> None:
    """A `db_retry` around runs the whole transaction again, whose new snapshot shows what the other call returned."""
    alias = request.getfixturevalue(database)
    keyed = db_retry(using=alias, idempotency_key="one")(creating(alias))
    attempts = 0

    @db_retry(using=alias, isolation="repeatable read")
    def work() -> str:
        nonlocal attempts
        attempts += 1
        names(alias)
        if attempts == 1:
            Background(keyed).join()
        return keyed()

    assert work() == "attempt 1"
    assert attempts == 2
    assert names(alias) == ["attempt 1"]


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_failing_hook__after_commit_runs_nothing_again(fixture: str, request: pytest.FixtureRequest) -> None:
    """An on_commit hook that raises what looks transient: the row is there, and the function is not called twice."""
    alias = request.getfixturevalue(fixture)
    create = creating(alias)

    @db_retry(using=alias)
    def work() -> None:
        create()
        transaction.on_commit(_raise_lost, using=alias)

    with pytest.raises(OperationalError, match="server closed the connection") as caught:
        work()

    assert names(alias) == ["attempt 1"]
    assert "was committed before" in caught.value.__notes__[-1]


def _raise_lost() -> None:
    raise OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_lost_connection__between_commit_and_autocommit_is_a_success(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT was answered, switching back failed: the value comes back, the hooks run once, a new connection follows."""
    alias = request.getfixturevalue(fixture)
    server = request.getfixturevalue(f"{fixture}_server")
    connection = connections[alias]
    connection.ensure_connection()
    hooks: list[str] = []
    real = connection.commit

    def commit_and_die() -> None:
        number = session_id_raw(connection)
        real()
        terminate(server, number)
        connection.connection.close()

    def session_id_raw(connection: Any) -> int:
        with connection.connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()" if fixture == "postgresql" else "SELECT connection_id()")
            return int(cursor.fetchone()[0])

    monkeypatch.setattr(connection, "commit", commit_and_die)
    result = db_retry(using=alias)(creating(alias, hooks=hooks))()
    monkeypatch.undo()

    assert result == "attempt 1"
    assert names(alias) == ["attempt 1"]
    assert hooks == ["attempt 1"]


def test_swallowed_error__of_a_raw_cursor_is_no_silent_rollback(postgresql: str) -> None:
    """PostgreSQL answers such a COMMIT with a rollback and no error: the manager raises and no hook runs."""
    Account.objects.using(postgresql).create(name="taken")
    hooks: list[str] = []

    def work() -> None:
        Account.objects.using(postgresql).create(name="new")
        hook(postgresql, hooks, "ran")
        with connections[postgresql].cursor() as cursor, contextlib.suppress(IntegrityError):
            cursor.execute("INSERT INTO testapp_account (name, balance, note) VALUES ('taken', 0, '')")

    with pytest.raises(TransactionBrokenError, match="IntegrityError was raised and swallowed"), TransactionManager(postgresql):
        work()
    with pytest.raises(TransactionBrokenError, match="IntegrityError was raised and swallowed"):
        db_retry(using=postgresql)(work)()

    assert hooks == []
    assert names(postgresql) == ["taken"]


def test_settling__waits_for_a_server_that_is_still_down(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """COMMIT is lost because the server went away: the question is asked again until it is back."""
    create = creating(postgresql)
    work = db_retry(using=postgresql, verify="server", max_attempts=10)(_ending_with(create, postgresql, postgresql_server))
    restarter = None
    try:
        work_thread = Background(work)
        servers.wait_until(lambda: postgresql_server.process is None, 30)
        time.sleep(0.5)
        restarter = postgresql_server.start()
        result = work_thread.join()
    finally:
        if restarter is None and postgresql_server.process is None:
            postgresql_server.start()
        connections[postgresql].close()  # this thread's own, which died with the server

    assert names(postgresql) == [result]


def _ending_with(create: Callable[[], str], alias: str, server: servers.PostgreSQL) -> Callable[[], str]:
    """Stop the server at the moment of the first COMMIT: after the body, before the answer."""
    calls = 0

    def work() -> str:
        nonlocal calls
        calls += 1
        name = create()
        connection = connections[alias]
        if calls == 1:
            real = connection._commit

            def stop_and_commit() -> None:
                connection._commit = real
                server.stop_immediately()
                real()

            connection._commit = stop_and_commit
        return name

    return work


def test_lost_session__before_the_body_ended_is_no_lost_commit(postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """Killed in the body: definite, so the second attempt follows without any question."""
    create = creating(postgresql)
    killed = []

    @db_retry(using=postgresql)
    def work() -> str:
        name = create()
        if not killed:
            killed.append(session_id(postgresql))
            terminate(postgresql_server, killed[0])
        Account.objects.using(postgresql).count()
        return name

    assert work() == "attempt 2"
    assert names(postgresql) == ["attempt 2"]


@contextlib.contextmanager
def soft_limit(seconds: float) -> Iterator[None]:
    """Raise SoftTimeLimitExceeded after a while, wherever the main thread then is, as a Celery worker does."""

    def exceed(number: int, frame: object) -> None:
        raise SoftTimeLimitExceeded(seconds)

    before = signal.signal(signal.SIGALRM, exceed)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
def test_time_limit__in_a_statement_rolls_back_and_leaves_a_connection_of_use(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """SoftTimeLimitExceeded comes out itself, once, and the next transaction works."""
    alias = request.getfixturevalue(fixture)
    create = creating(alias)
    wait = "SELECT pg_sleep(3)" if fixture == "postgresql" else "SELECT SLEEP(3)"

    @db_retry(using=alias)
    def work() -> None:
        create()
        with connections[alias].cursor() as cursor:
            cursor.execute(wait)

    with soft_limit(0.5), pytest.raises(SoftTimeLimitExceeded):
        work()
    db_retry(using=alias)(create)()

    assert names(alias) == ["attempt 2"]


@contextlib.contextmanager
def hanging_commit(fixture: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An alias where COMMIT takes long."""
    server = request.getfixturevalue(f"{fixture}_server")
    if fixture == "postgresql":
        yield request.getfixturevalue("slow_commit")
        kill_when(IN_SLEEP, server).join()
        return
    alias = request.getfixturevalue(fixture)
    with mariadb_peer(server) as peer:
        peer.execute("BACKUP STAGE START")
        peer.execute("BACKUP STAGE BLOCK_COMMIT")
        yield alias
        peer.execute("BACKUP STAGE END")


@pytest.mark.parametrize("fixture", ["postgresql", "mariadb"])
@pytest.mark.parametrize("keyed", [False, True])
def test_time_limit__in_commit_says_that_the_outcome_is_unknown(
    fixture: str, keyed: bool, request: pytest.FixtureRequest
) -> None:
    """The limit comes out and not the driver's complaint; nothing is run again; the connection is replaced."""
    calls = []
    with hanging_commit(fixture, request) as alias:
        create = creating(alias, note="slow")

        @db_retry(using=alias, idempotency_key="work" if keyed else None, isolation="read committed")
        def work() -> None:
            calls.append(session_id(alias))
            create()

        with soft_limit(1), pytest.raises(SoftTimeLimitExceeded) as caught:
            work()

        assert calls != [session_id(alias)]

    assert len(calls) == 1
    assert "may or may not be stored" in caught.value.__notes__[-1]
    db_retry(using=alias)(create)()
    assert "attempt 2" in names(alias)
