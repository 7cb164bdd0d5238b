from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, NotSupportedError, OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase, TransactionTestCase

from resilience import (
    ConcurrentUpdateError,
    TransactionBrokenError,
    TransactionManager,
    clock,
    db_retry,
    ensure_connection,
    retry,
    signals,
    with_savepoint,
)
from resilience.calls.nesting import gave_up
from tests.testapp.models import Account, Child, Versioned

pytestmark = pytest.mark.django_db(transaction=True)


def add(name: str) -> Account:
    return Account.objects.create(name=name)


def names() -> list[str]:
    return list(Account.objects.order_by("pk").values_list("name", flat=True))


@pytest.fixture
def heard() -> Iterator[list[dict[str, Any]]]:
    """What `transaction_finished` and `savepoint_rolled_back` said, in order."""
    said: list[dict[str, Any]] = []

    def receive(signal: object, sender: object, **arguments: Any) -> None:
        said.append(arguments)

    for signal in (signals.transaction_finished, signals.savepoint_rolled_back):
        signal.connect(receive)
    yield said
    for signal in (signals.transaction_finished, signals.savepoint_rolled_back):
        signal.disconnect(receive)


def test_block__commits_at_its_end_and_rolls_back_on_an_exception() -> None:
    """The plain use is that of transaction.atomic."""
    with TransactionManager():
        add("kept")
    with pytest.raises(ZeroDivisionError), TransactionManager():
        add("lost")
        _ = 1 / 0

    assert names() == ["kept"]


def test_auto_commit_off__stores_only_what_was_committed() -> None:
    """Without commit() nothing stays; what follows the last commit() does not either."""
    with TransactionManager(auto_commit=False):
        add("never")
    with TransactionManager(auto_commit=False) as tx:
        add("kept")
        tx.commit()
        add("after")

    assert names() == ["kept"]


def test_rollback__undoes_so_far_and_the_block_goes_on() -> None:
    """What comes after rollback() is another transaction, and queries work at once."""
    with TransactionManager() as tx:
        add("undone")
        tx.rollback()
        seen = names()
        add("kept")

    assert seen == []
    assert names() == ["kept"]


def test_commit__survives_a_later_exception() -> None:
    """What was committed stays committed."""
    with pytest.raises(ZeroDivisionError), TransactionManager() as tx:
        add("kept")
        tx.commit()
        add("lost")
        _ = 1 / 0

    assert names() == ["kept"]


def test_commit__says_so_when_only_the_next_transaction_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves commit() then is no reason to do the work again: the note tells, and no retry around it will."""

    def fail() -> None:
        raise OperationalError("database is locked")

    def work() -> None:
        with TransactionManager() as tx:
            add("stored")
            monkeypatch.setattr(connection, "_start_transaction_under_autocommit", fail)
            tx.commit()

    with pytest.raises(OperationalError, match="locked") as caught:
        work()
    monkeypatch.undo()

    assert names() == ["stored"]
    assert gave_up(caught.value)
    assert "commit() had succeeded" in caught.value.__notes__[-1]
    assert not connection.in_atomic_block


def test_failing_hook__is_reported_as_a_commit_and_not_retried_around_it(heard: list[dict[str, Any]]) -> None:
    """The work is stored, whatever the hook says: the signal tells a commit, and a retry around it does not repeat it."""
    calls = []

    def fail() -> None:
        raise ConnectionResetError

    @retry(delay=0)
    def work() -> None:
        calls.append(1)
        with TransactionManager() as tx:
            add("stored")
            tx.on_commit(fail)

    with pytest.raises(ConnectionResetError) as caught:
        work()

    assert calls == [1]
    assert names() == ["stored"]
    assert [event["outcome"] for event in heard] == ["commit"]
    assert "was committed before this was raised" in caught.value.__notes__[0]


def test_on_commit__hooks_run_after_commit_and_not_after_rollback() -> None:
    """Hooks belong to the transaction they were registered in."""
    ran: list[str] = []
    with TransactionManager() as tx:
        tx.on_commit(lambda: ran.append("undone"))
        tx.rollback()
        tx.on_commit(lambda: ran.append("first"))
        tx.commit()
        between = list(ran)
        tx.on_commit(lambda: ran.append("second"))

    assert between == ["first"]
    assert ran == ["first", "second"]


def test_on_commit__robust_hooks_do_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    """robust=True logs what the hook raises."""
    with TransactionManager() as tx:
        tx.on_commit(lambda: 1 / 0, robust=True)
        add("kept")

    assert names() == ["kept"]
    assert "division by zero" in caplog.text


def test_savepoint__undoes_its_own_work_only() -> None:
    """The exception leaves the savepoint, and the transaction lives on."""
    with TransactionManager() as tx:
        add("before")
        with pytest.raises(IntegrityError), tx.savepoint():
            add("inside")
            add("before")
        with tx.savepoint():
            add("after")

    assert names() == ["before", "after"]


def test_savepoints__at_most_fifty_are_open_at_once() -> None:
    """The 51st is refused before the database sees it, the 50th is not."""
    deepest = 0
    with TransactionManager() as tx:

        def nest(depth: int) -> None:
            nonlocal deepest
            with tx.savepoint():
                deepest = depth
                nest(depth + 1) if depth < 51 else None

        with pytest.raises(TransactionManagementError, match="must have at most 50 live savepoints"):
            nest(1)
        add("kept")

    assert deepest == 50
    assert names() == ["kept"]


def test_savepoints__that_are_over_do_not_count_where_the_database_forgets_them() -> None:
    """Any number one after the other, kept or undone; only PostgreSQL remembers those that were kept."""
    with TransactionManager() as tx:
        for number in range(60):
            with contextlib.suppress(ZeroDivisionError), tx.savepoint():
                _ = 1 / (number % 2)
        add("kept")

    assert names() == ["kept"]


def test_nested__is_a_savepoint_of_the_outer_transaction() -> None:
    """An inner block that fails undoes itself; the outer one decides on the rest."""
    with TransactionManager():
        add("outer")
        with pytest.raises(ZeroDivisionError), TransactionManager():
            add("inner")
            _ = 1 / 0
        with TransactionManager(auto_commit=False):
            add("inner, not committed")
        with TransactionManager(auto_commit=False) as inner:
            add("inner, committed")
            inner.commit()

    assert names() == ["outer", "inner, committed"]


def test_decorator__gives_each_call_a_transaction() -> None:
    """Also recursively, and as a method's."""

    @TransactionManager()
    def countdown(number: int) -> int:
        add(f"{number}")
        return countdown(number - 1) if number else 0

    assert countdown(2) == 0
    assert countdown.__name__ == "countdown"
    assert names() == ["2", "1", "0"]


@pytest.mark.parametrize("decorator", [TransactionManager(), with_savepoint, ensure_connection])
def test_decorators__refuse_coroutine_functions_and_generators(decorator: Any) -> None:
    """A connection belongs to one thread, and a generator's body runs later."""

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="must decorate a plain def"):
        decorator(coroutine)
    with pytest.raises(TypeError, match="generator"):
        decorator(generator)


def test_bare_decorator__is_told_to_use_parentheses() -> None:
    """@TransactionManager without parentheses is a clear error."""
    with pytest.raises(TypeError, match=r"write @TransactionManager\(\)"):
        TransactionManager(lambda: None)  # type: ignore[arg-type]


def test_durable__refuses_to_be_inside_another_transaction() -> None:
    """As transaction.atomic(durable=True) does."""
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"), TransactionManager(durable=True):
        pytest.fail("entered")


def test_manager__is_not_entered_twice_but_used_again() -> None:
    """One object is one open block; afterwards it may be opened again."""
    manager = TransactionManager()
    with manager, pytest.raises(RuntimeError, match="open already"), manager:
        pytest.fail("entered")
    with manager:
        add("again")

    assert names() == ["again"]


@pytest.mark.parametrize("action", ["commit", "rollback"])
def test_commit_and_rollback__have_their_place(action: str) -> None:
    """Outside the block, or inside a savepoint of it, they are clear errors."""
    manager = TransactionManager()
    with pytest.raises(TransactionManagementError, match="inside the with-block"):
        getattr(manager, action)()
    with manager, manager.savepoint(), pytest.raises(TransactionManagementError, match="Leave the savepoint first"):
        getattr(manager, action)()
    with pytest.raises(TransactionManagementError, match="inside the with-block"):
        manager.savepoint()


def test_swallowed_error__raises_and_names_its_cause() -> None:
    """Django would roll back in silence: the manager does not."""
    add("taken")

    def work() -> None:
        add("new")
        try:
            add("taken")
        except IntegrityError:
            return

    with pytest.raises(TransactionBrokenError, match="IntegrityError was raised and swallowed") as caught:
        TransactionManager()(work)()

    assert isinstance(caught.value.__cause__, IntegrityError)
    assert caught.value.using == "default"
    assert names() == ["taken"]


def test_swallowed_error__of_a_save_that_sent_no_failing_statement_raises_too() -> None:
    """A stale version is no error of the database; Django has marked the transaction all the same."""
    row = Versioned.objects.create()
    Versioned.objects.filter(pk=row.pk).update(version=7)

    def work() -> None:
        add("new")
        with contextlib.suppress(ConcurrentUpdateError):
            row.save()

    with pytest.raises(TransactionBrokenError, match="ConcurrentUpdateError was raised and swallowed"):
        TransactionManager()(work)()

    assert names() == []


@pytest.mark.parametrize("wrap", [TransactionManager(), db_retry, with_savepoint], ids=["manager", "retry", "savepoint"])
def test_swallowed_error__of_a_block_without_savepoint_raises_too(wrap: Any) -> None:
    """Django marks the transaction then and does not say why, as in its own bulk_create, deletions and relations."""

    @wrap
    def work() -> None:
        add("first")
        try:
            with transaction.atomic(savepoint=False):
                add("first")
        except IntegrityError:
            pass

    with pytest.raises(TransactionBrokenError, match="IntegrityError was raised and swallowed"):
        work()

    assert names() == []


def test_handled_error__in_a_savepoint_is_no_damage() -> None:
    """An error that a savepoint undid is dealt with."""
    add("taken")
    with TransactionManager() as tx:
        try:
            with tx.savepoint():
                add("taken")
        except IntegrityError:
            add("instead")

    assert names() == ["taken", "instead"]


def test_transaction_that_ended_early__is_reported() -> None:
    """A raw ROLLBACK inside the block leaves nothing to commit."""
    with pytest.raises(TransactionBrokenError, match="ended before its block did"), TransactionManager():
        add("lost")
        connection.connection.rollback()

    assert names() == []


def test_deferred_constraint__at_commit_is_the_integrity_error_itself() -> None:
    """A definite failure of COMMIT comes out as what it is, and nothing is stored."""
    with pytest.raises(IntegrityError), TransactionManager():
        add("lost")
        Child.objects.create(parent_id=999)

    assert names() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "chaos"}, r"isolation must be one of read uncommitted, .*, not 'chaos'\."),
        ({"lock_timeout": 0}, r"lock_timeout must be more than 0 seconds, not 0\."),
        ({"statement_timeout": float("inf")}, r"statement_timeout must be more than 0 seconds, not inf\."),
    ],
)
def test_options__are_checked_when_written_down(options: dict[str, Any], message: str) -> None:
    """A wrong option fails at once."""
    with pytest.raises(ValueError, match=message):
        TransactionManager(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "read committed"}, "isolation must be one that SQLite has"),
        ({"statement_timeout": 1}, "statement_timeout must be None on SQLite"),
    ],
)
def test_options__that_sqlite_lacks_are_refused_and_nothing_is_stored(options: dict[str, Any], message: str) -> None:
    """A clear error on entry instead of a promise that is not kept."""
    with pytest.raises(NotSupportedError, match=message), TransactionManager(**options):
        add("never")

    assert names() == []
    assert not connection.in_atomic_block


def test_options__that_sqlite_has_work() -> None:
    """It is always serializable, it can wait for locks, and it can refuse to write."""
    with TransactionManager(isolation="SERIALIZABLE", lock_timeout=1.5), connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        inside = cursor.fetchone()[0]
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        after = cursor.fetchone()[0]

    assert (inside, after) == (1500, 20000)
    with pytest.raises(OperationalError, match="readonly"), TransactionManager(read_only=True):
        add("never")
    add("later")
    assert names() == ["later"]


def test_signals__tell_outcome_duration_and_code(heard: list[dict[str, Any]]) -> None:
    """One event for each transaction, one for each savepoint that was rolled back."""
    with TransactionManager() as tx:
        add("a")
        with pytest.raises(ZeroDivisionError), tx.savepoint():
            _ = 1 / 0
    with pytest.raises(OperationalError), TransactionManager():
        raise OperationalError(1213, "Deadlock found")
    with TransactionManager(auto_commit=False):
        add("b")

    assert [event.get("outcome", "savepoint") for event in heard] == ["savepoint", "commit", "rollback", "rollback"]
    assert [event["code"] for event in heard[1:]] == ["", "1213", ""]
    assert all(event["using"] == "default" for event in heard)
    assert all(event["duration"] >= 0 for event in heard[1:])


def test_signals__tell_of_a_rollback_that_was_asked_for(heard: list[dict[str, Any]]) -> None:
    """`set_rollback` stores nothing, so it is no commit."""
    with TransactionManager():
        add("never")
        transaction.set_rollback(True)

    assert names() == []
    assert [event["outcome"] for event in heard] == ["rollback"]


def test_signals__of_a_nested_manager_tell_of_a_rollback_only(heard: list[dict[str, Any]]) -> None:
    """Inside another transaction it is a savepoint: undone it is told, kept it is part of the outer one."""
    with TransactionManager():
        with TransactionManager():
            add("kept")
        assert heard == []
        with TransactionManager(auto_commit=False):
            add("undone")
        assert [event.get("outcome", "savepoint") for event in heard] == ["savepoint"]

    assert [event.get("outcome", "savepoint") for event in heard] == ["savepoint", "commit"]


def test_signals__tell_the_seconds_from_begin_to_end(heard: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time before the block and after it does not count."""
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)

    manager = TransactionManager()
    now = 1010.0
    with manager:
        now = 1012.5

    assert [event["duration"] for event in heard] == [2.5]


def test_commit__that_fails_while_another_error_was_being_handled_raises_its_own() -> None:
    """What was on its way before the transaction began is not taken for what interrupted COMMIT."""
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            with TransactionManager():
                Child.objects.create(parent_id=99)

    assert not Child.objects.exists()


def test_with_savepoint__undoes_only_its_own_work(heard: list[dict[str, Any]]) -> None:
    """Inside a transaction the rest stays; with and without parentheses."""

    @with_savepoint
    def bare() -> None:
        add("bare")
        _ = 1 / 0

    @with_savepoint(using="default")
    def called() -> str:
        return add("called").name

    with transaction.atomic():
        add("outer")
        with pytest.raises(ZeroDivisionError):
            bare()
        result = called()

    assert result == "called"
    assert names() == ["outer", "called"]
    assert [event["using"] for event in heard] == ["default"]


def test_with_savepoint__does_not_swallow_what_was_swallowed_in_it() -> None:
    """A failed save inside it that nobody raised would undo its work in silence."""
    add("taken")

    @with_savepoint
    def work() -> None:
        add("new")
        try:
            add("taken")
        except IntegrityError:
            return

    with transaction.atomic():
        add("outer")
        with pytest.raises(TransactionBrokenError):
            work()

    assert names() == ["taken", "outer"]


def test_ensure_connection__with_and_without_parentheses() -> None:
    """Both spellings decorate; arguments and results pass through."""

    @ensure_connection
    def bare(number: int) -> int:
        return number + 1

    @ensure_connection(using="default")
    def called(number: int) -> int:
        return number + 2

    assert (bare(1), called(1)) == (2, 3)


class InsideTestCase(TestCase):
    """What users' own tests see: everything works inside a TestCase's transaction."""

    def test_db_retry__retries_in_a_savepoint(self) -> None:
        """The blocks of TestCase do not count as somebody's transaction."""
        calls = []

        @db_retry(delay=0)
        def work() -> None:
            calls.append(1)
            add(f"attempt {len(calls)}")
            if len(calls) < 3:
                raise OperationalError("database is locked")

        work()

        assert names() == ["attempt 3"]

    def test_hooks__can_be_captured_and_none_is_ours(self) -> None:
        """captureOnCommitCallbacks sees the user's hooks only."""

        @db_retry
        def work() -> None:
            transaction.on_commit(lambda: add("hook"))

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            work()

        assert len(callbacks) == 1
        assert names() == ["hook"]

    def test_durable_isolation_and_read_only__can_be_entered(self) -> None:
        """What a savepoint cannot have is not applied, so that code under test runs."""
        with TransactionManager(durable=True, isolation="serializable", read_only=True):
            add("written")

        assert names() == ["written"]

    def test_rollback_and_commit__work_on_the_savepoint(self) -> None:
        """As outside of tests."""
        with TransactionManager(auto_commit=False) as tx:
            add("undone")
            tx.rollback()
            add("kept")
            tx.commit()
            add("after")

        assert names() == ["kept"]

    def test_error__of_the_database_leaves_the_test_usable(self) -> None:
        """The savepoint is rolled back, and the test goes on."""
        add("taken")
        with pytest.raises(DatabaseError), TransactionManager():
            add("taken")

        assert names() == ["taken"]


class InsideTransactionTestCase(TransactionTestCase):
    """There transactions are real: nothing stands around them."""

    def test_attempts__are_transactions_that_end(self) -> None:
        """Each attempt is committed or rolled back by itself, and hooks run."""
        calls: list[str] = []

        @db_retry(delay=0)
        def work() -> None:
            calls.append("attempt")
            add(f"attempt {len(calls)}")
            transaction.on_commit(lambda: calls.append("hook"))
            if len(calls) < 2:
                raise OperationalError("database is locked")

        work()

        assert calls == ["attempt", "attempt", "hook"]
        assert names() == ["attempt 2"]
        assert not connection.in_atomic_block
