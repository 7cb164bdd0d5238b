from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from celery.exceptions import SoftTimeLimitExceeded
from django.db import IntegrityError, NotSupportedError, OperationalError, connection, connections, transaction
from django.test import override_settings
from django.utils.connection import ConnectionDoesNotExist

from resilience import CommitOutcomeUnknownError, TransactionBrokenError, adb_retry, clock, db_retry, signals
from resilience.calls.deadlines import deadline_scope
from resilience.calls.nesting import gave_up
from resilience.db.models import IdempotencyKey
from tests.testapp.models import Account

pytestmark = pytest.mark.django_db(transaction=True)

LOCKED = "database is locked"
LOST = "server closed the connection unexpectedly"


class Time:
    """A clock that stands still but for the sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(clock, "monotonic", lambda: fake.now)
    monkeypatch.setattr(clock, "sleep", fake.sleep)
    monkeypatch.setattr(clock, "async_sleep", fake.async_sleep)
    return fake


def fail(error: BaseException | str) -> None:
    """Raise an error, or an OperationalError with the given text."""
    raise OperationalError(error) if isinstance(error, str) else error


def failing(*errors: BaseException | str) -> Callable[[], int]:
    """Make a function that stores an account in each call and raises the given errors first; it returns its calls."""
    left = list(errors)
    calls = 0

    def work() -> int:
        nonlocal calls
        calls += 1
        Account.objects.create(name=f"attempt {calls}")
        if left:
            fail(left.pop(0))
        return calls

    return work


def names() -> list[str]:
    return list(Account.objects.order_by("pk").values_list("name", flat=True))


Heard = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What the signals of the db pillar said, in order."""
    said: Heard = []
    receivers = []
    for name in ("db_retry_scheduled", "db_retry_succeeded", "db_retry_gave_up", "commit_outcome_unknown"):

        def receive(sender: object, signal: object, event: str = name, **arguments: Any) -> None:
            said.append((event, arguments))

        getattr(signals, name).connect(receive)
        receivers.append((getattr(signals, name), receive))
    yield said
    for signal, receive in receivers:
        signal.disconnect(receive)


def test_db_retry__runs_everything_again_and_keeps_the_last_attempt_only() -> None:
    """The work of failed attempts is rolled back, that of the last is stored."""
    work = db_retry(failing(LOCKED, LOST))

    result = work()

    assert result == 3
    assert names() == ["attempt 3"]


def test_db_retry__with_and_without_parentheses_keeps_the_function() -> None:
    """Both spellings decorate, and the name stays."""

    @db_retry
    def bare() -> str:
        return "bare"

    @db_retry(max_attempts=2)
    def called() -> str:
        return "called"

    assert (bare(), called()) == ("bare", "called")
    assert (bare.__name__, called.__name__) == ("bare", "called")


def test_db_retry__gives_up_with_the_functions_own_error_and_its_story(heard: Heard) -> None:
    """After the last attempt the original exception comes out, with a note, marked for the levels around."""
    work = db_retry(failing(LOCKED, LOCKED, LOCKED))

    with pytest.raises(OperationalError, match="database is locked") as caught:
        work()

    assert "Given up after 3 attempts" in caught.value.__notes__[-1]
    assert "attempt 2: OperationalError in body" in caught.value.__notes__[-1]
    assert gave_up(caught.value)
    assert names() == []
    assert [name for name, _ in heard] == ["db_retry_scheduled", "db_retry_scheduled", "db_retry_gave_up"]
    assert all((told["name"], told["using"]) == ("work", "default") for _, told in heard)


def test_db_retry__tells_of_a_success_that_took_more_than_one_attempt(time: Time, heard: Heard) -> None:
    """Which function, in which database, after how many attempts and seconds; the first success of most calls is no news."""
    db_retry(failing())()
    assert heard == []
    db_retry(failing_more("again", LOCKED))()

    assert heard[1:] == [
        (
            "db_retry_succeeded",
            {"name": "work", "using": "default", "attempts": 2, "elapsed": pytest.approx(time.sleeps[0])},
        )
    ]


def test_db_retry__counts_a_single_attempt_in_the_singular() -> None:
    """The note of a call that may try once reads as English."""
    with pytest.raises(OperationalError) as caught:
        db_retry(max_attempts=1)(failing(LOCKED))()

    assert "Given up after 1 attempt in" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("UNIQUE constraint failed"),
        OperationalError("no such table"),
        ValueError("locked"),
        SoftTimeLimitExceeded(10),
        KeyboardInterrupt(),
        SystemExit(3),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_db_retry__leaves_alone_what_no_repetition_cures(error: BaseException, heard: Heard) -> None:
    """Constraint errors, mistakes, the function's own errors and control flow come out at once; the work is rolled back."""
    with pytest.raises(type(error)):
        db_retry(failing(error))()

    assert names() == []
    assert heard == []


def test_waits__are_milliseconds_for_contention_and_more_for_an_outage(time: Time) -> None:
    """Full jitter below 10 and 20 ms for a lock; at least 0.1 and 0.2 seconds for a server that is away."""
    db_retry(failing(LOCKED, LOCKED))()
    contention, time.sleeps = time.sleeps, []
    db_retry(failing_more("again", LOST, LOST))()

    assert 0 <= contention[0] <= 0.01
    assert 0 <= contention[1] <= 0.02
    assert 0.1 <= time.sleeps[0] <= 0.2
    assert 0.2 <= time.sleeps[1] <= 0.4


def failing_more(prefix: str, *errors: str) -> Callable[[], None]:
    left = list(errors)

    def work() -> None:
        Account.objects.create(name=f"{prefix} {len(left)}")
        if left:
            fail(left.pop(0))

    return work


def test_delay__replaces_both_curves(time: Time) -> None:
    """delay=0 retries at once, whatever failed."""
    db_retry(delay=0)(failing(LOCKED, LOST))()

    assert time.sleeps == [0, 0]


def test_deadline__is_never_overrun_by_a_wait(time: Time) -> None:
    """A wait that does not fit is not begun: the error comes out before the deadline."""
    work = db_retry(max_attempts=None, deadline=1.0)(failing(*[LOST] * 100))

    with pytest.raises(OperationalError) as caught:
        work()

    assert time.now - 1000 <= 1.0
    assert len(time.sleeps) >= 2
    assert "the deadline leaves no time" in caught.value.__notes__[-1]


def test_deadline__counts_the_time_of_the_attempts(time: Time) -> None:
    """An attempt that was long leaves less for the next: none begins after the deadline."""
    began: list[float] = []

    @db_retry(max_attempts=None, deadline=1.0, delay=0)
    def work() -> None:
        began.append(time.now - 1000)
        if len(began) < 9:
            time.now += 0.6
            fail(LOCKED)

    with pytest.raises(OperationalError):
        work()

    assert began == [0, pytest.approx(0.6)]


def test_deadline__around_the_call_counts_too(time: Time) -> None:
    """The time that an outer limit has left bounds the waits as well."""
    work = db_retry(max_attempts=50)(failing(*[LOST] * 50))

    with deadline_scope(0.5), pytest.raises(OperationalError):
        work()

    assert time.now - 1000 <= 0.5


def test_on_retry__gets_the_exception_and_the_attempt() -> None:
    """It is called once before each wait, and not when nothing follows."""
    seen: list[tuple[BaseException, int]] = []
    first, second = OperationalError("database is locked"), OperationalError("database is locked")

    db_retry(on_retry=lambda exc, attempt: seen.append((exc, attempt)))(failing(first, second))()

    assert seen == [(first, 1), (second, 2)]


def test_on_retry__that_raises_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A hook's own failure neither ends the retrying nor hides the database's error when all attempts have failed."""

    def broken(exc: BaseException, attempt: int) -> None:
        raise KeyError("metrics down")

    work = failing(LOCKED, LOCKED, LOCKED)

    with pytest.raises(OperationalError, match=LOCKED):
        db_retry(on_retry=broken, max_attempts=3)(work)()
    value = db_retry(on_retry=broken)(work)()

    assert value == 4
    assert names() == ["attempt 4"]
    assert "the retry goes on" in caplog.text


def test_on_retry__lets_a_time_limit_out() -> None:
    """What means "stop" stops, wherever it strikes."""

    def struck(exc: BaseException, attempt: int) -> None:
        raise SoftTimeLimitExceeded

    work = failing(LOCKED)

    with pytest.raises(SoftTimeLimitExceeded):
        db_retry(on_retry=struck)(work)()


@pytest.fixture
def away() -> Iterator[str]:
    """The alias of a server that is not there, in a project that commits by hand on it."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    settings = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port, "NAME": "x"}
    connections.databases["away"] = connections.configure_settings({"default": {}, "away": settings})["away"]
    yield "away"
    del connections.databases["away"]
    delattr(connections._connections, "away")  # type: ignore[attr-defined]  # as Django has no way to forget one


def test_other_database__that_was_never_opened_holds_no_work(away: str) -> None:
    """It does not hinder a second attempt, even where transactions are managed by hand."""
    connections[away].settings_dict["AUTOCOMMIT"] = False

    assert db_retry(failing(LOCKED))() == 2


@pytest.mark.parametrize("atomic", [True, False])
def test_signals__tell_alias_code_phase_and_numbers(heard: Heard, atomic: bool) -> None:
    """A retry that helped: one scheduled, one succeeded, with what metrics need."""
    work = failing(OperationalError(1213, "Deadlock found"))

    db_retry(atomic=atomic, idempotent=True)(work)()

    (first, scheduled), (second, succeeded) = heard
    assert (first, second) == ("db_retry_scheduled", "db_retry_succeeded")
    assert scheduled["using"] == "default"
    assert (scheduled["code"], scheduled["kind"], scheduled["phase"], scheduled["attempt"]) == ("1213", "conflict", "body", 1)
    assert succeeded["attempts"] == 2


@pytest.mark.parametrize("atomic", [True, False])
def test_no_failure__says_nothing(heard: Heard, atomic: bool) -> None:
    """Without a failure no signal is sent."""
    db_retry(atomic=atomic)(failing())()

    assert heard == []


@pytest.mark.parametrize("decorator", [db_retry, adb_retry])
def test_coroutine_functions_and_generators__are_refused(decorator: Any) -> None:
    """Their bodies would run after the transaction: a TypeError when they are decorated."""

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="must decorate a plain def"):
        decorator(coroutine)
    with pytest.raises(TypeError, match="generator"):
        decorator(generator)


def test_hidden_coroutine__is_refused_when_it_is_returned() -> None:
    """A plain function that returns a coroutine has not done its work: the transaction is rolled back."""

    async def later() -> None: ...

    def work() -> Any:
        Account.objects.create(name="early")
        return later()

    with pytest.raises(TypeError, match="must return its result, not a coroutine"):
        db_retry(work)()

    assert names() == []


@pytest.mark.parametrize("decorator", [db_retry, adb_retry])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, r"max_attempts must be 1 or more, not 0\."),
        ({"max_attempts": True}, ValueError, r"max_attempts must be 1 or more, not True\."),
        ({"max_attempts": None}, ValueError, r"max_attempts must be given where there is no deadline"),
        ({"deadline": 0}, ValueError, r"deadline must be more than 0 seconds, not 0\."),
        ({"delay": -1}, ValueError, r"delay must be 0 or more seconds, not -1\."),
        ({"delay": float("nan")}, ValueError, r"delay must be 0 or more seconds, not nan\."),
        ({"using": ["a", "b"]}, TypeError, r"using must be the alias of one database"),
        ({"verify": "guess"}, TypeError, r'verify must be a function or "server"'),
        ({"verify": "server", "atomic": False}, ValueError, r"atomic must be True with verify"),
        ({"idempotency_key": "k", "atomic": False}, ValueError, r"atomic must be True with verify"),
        ({"isolation": "serializable", "atomic": False}, ValueError, r"atomic must be True with isolation"),
        ({"isolation": "chaos"}, ValueError, r"isolation must be one of"),
        ({"read_only": True, "atomic": False}, ValueError, r"atomic must be True with isolation"),
        ({"lock_timeout": 0}, ValueError, r"lock_timeout must be more than 0 seconds"),
        ({"statement_timeout": 0}, ValueError, r"statement_timeout must be more than 0 seconds"),
        ({"on_retry": "shout"}, TypeError, r"on_retry must be a function"),
        ({"retry_codes": "57014"}, TypeError, r"retry_codes must be a collection"),
    ],
)
def test_options__are_checked_when_the_function_is_decorated(
    options: dict[str, Any], error: type[Exception], message: str, decorator: Any
) -> None:
    """A wrong option fails when it is written down, not when the database is down; in both forms."""
    with pytest.raises(error, match=message):
        decorator(**options)


def test_unknown_alias__says_so() -> None:
    """A database that is not configured is a clear error, and nothing runs."""
    ran = []

    with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
        db_retry(using="nowhere")(lambda: ran.append(1))()

    assert ran == []


def test_verify_server__is_refused_where_the_server_cannot_be_asked() -> None:
    """Only PostgreSQL remembers what became of a transaction; the function is not run."""
    with pytest.raises(NotSupportedError, match='verify must be a function on SQLite, not "server"'):
        db_retry(verify="server")(failing())()

    assert names() == []


def test_inside_a_transaction__it_is_a_plain_call_and_the_outermost_retries(heard: Heard) -> None:
    """Nested twice: one sequence of waits, the outer function's, and no multiplication of attempts."""
    calls = []

    @db_retry
    def inner() -> None:
        calls.append("inner")
        Account.objects.create(name=f"inner {len(calls)}")
        if len(calls) < 4:
            fail(LOCKED)

    @db_retry(max_attempts=5)
    def outer() -> None:
        calls.append("outer")
        inner()

    outer()

    assert calls == ["outer", "inner"] * 2
    assert len(heard) == 2


def test_inside_plain_atomic__nothing_is_retried() -> None:
    """Somebody else's transaction cannot be run again from inside."""
    work = db_retry(failing(LOCKED))

    with pytest.raises(OperationalError), transaction.atomic():
        work()

    assert names() == []


def test_without_autocommit__it_is_a_plain_call() -> None:
    """Where the application commits by hand, nothing here may commit or roll back for it."""
    transaction.set_autocommit(False)
    try:
        work = db_retry(failing(LOCKED))
        with pytest.raises(OperationalError):
            work()
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)

    assert names() == []


def test_inner_retry__that_gave_up_is_not_multiplied_by_the_outer() -> None:
    """Two levels that both own their transactions: the inner one's attempts are all there are."""
    calls = []

    @db_retry(max_attempts=3, delay=0)
    def inner() -> None:
        calls.append(1)
        fail(LOCKED)

    with pytest.raises(OperationalError):
        db_retry(atomic=False, max_attempts=3)(inner)()

    assert len(calls) == 3


def test_hooks__of_failed_attempts_never_run_and_keep_their_order() -> None:
    """Only the last attempt's on_commit hooks run; those of a rolled back savepoint do not."""
    ran: list[str] = []
    attempts = 0

    @db_retry
    def work() -> None:
        nonlocal attempts
        attempts += 1
        transaction.on_commit(lambda: ran.append(f"first of {attempts}"))
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: ran.append("of a savepoint"))
            _ = 1 / 0
        transaction.on_commit(lambda: ran.append(f"second of {attempts}"))
        if attempts < 3:
            fail(LOCKED)

    work()

    assert ran == ["first of 3", "second of 3"]


def test_failing_hook__after_commit_is_not_retried() -> None:
    """The row is stored: what the hook raises comes out once, and says that it came after."""
    calls = []

    @db_retry
    def work() -> None:
        calls.append(1)
        Account.objects.create(name="stored")
        transaction.on_commit(functools.partial(fail, LOCKED))

    with pytest.raises(OperationalError, match="locked") as caught:
        work()

    assert calls == [1]
    assert names() == ["stored"]
    assert "was committed before this was raised" in caught.value.__notes__[-1]


def test_failing_hook__that_takes_no_note_comes_out_all_the_same() -> None:
    """A frozen exception is raised as it is, not replaced by the failure to write on it."""

    @dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    @db_retry
    def work() -> None:
        transaction.on_commit(functools.partial(fail, FrozenError(7)))

    with pytest.raises(FrozenError):
        work()


def test_failing_hook__with_a_transaction_of_its_own_is_not_retried_either() -> None:
    """What the hook commits resets Django's note that there was a COMMIT; the row is stored all the same."""
    calls = []

    def hook() -> None:
        Account.objects.create(name="by the hook")
        with transaction.atomic():
            Account.objects.create(name="in its transaction")
        fail(LOCKED)

    @db_retry
    def work() -> None:
        calls.append(1)
        Account.objects.create(name="stored")
        transaction.on_commit(hook)

    with pytest.raises(OperationalError, match="locked") as caught:
        work()

    assert calls == [1]
    assert names() == ["stored", "by the hook", "in its transaction"]
    assert gave_up(caught.value)


def test_not_atomic__is_run_again_while_nothing_was_committed() -> None:
    """The function's own transaction was rolled back: once more is right."""
    work = failing(LOCKED)

    @db_retry(atomic=False)
    def outer() -> int:
        with transaction.atomic():
            return work()

    assert outer() == 2
    assert names() == ["attempt 2"]


@pytest.mark.parametrize("own_transaction", [True, False])
def test_not_atomic__is_not_run_again_after_it_committed_something(own_transaction: bool) -> None:
    """Part of the work is stored: a second run would store it twice."""
    calls = []

    @db_retry(atomic=False)
    def work() -> None:
        calls.append(1)
        with transaction.atomic() if own_transaction else contextlib.nullcontext():
            Account.objects.create(name=f"part {len(calls)}")
        fail(LOCKED)

    with pytest.raises(OperationalError) as caught:
        work()

    assert names() == ["part 1"]
    assert "Part of the work was committed" in caught.value.__notes__[-1]


def test_not_atomic__notices_a_commit_after_which_switching_back_to_autocommit_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function's own transaction is stored although its block raised: nothing is run again."""
    switch = connection._set_autocommit

    def fail_to_switch_back(autocommit: bool) -> None:
        if autocommit:
            fail(LOCKED)
        switch(autocommit)

    @db_retry(atomic=False)
    def work() -> None:
        with transaction.atomic():
            Account.objects.create(name="once")
            monkeypatch.setattr(connections["default"], "_set_autocommit", fail_to_switch_back)

    with pytest.raises(OperationalError) as caught:
        work()
    monkeypatch.undo()
    transaction.set_autocommit(True)

    assert names() == ["once"]
    assert "Part of the work was committed" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("answer", "calls", "notes"),
    [
        (True, 1, []),
        (False, 2, []),
        (None, 1, []),
        (
            ConnectionError("the search index is away"),
            1,
            ["Asking what became of it failed: ConnectionError: the search index is away"],
        ),
    ],
)
def test_not_atomic__settles_a_commit_that_the_function_lost(
    answer: bool | Exception | None, calls: int, notes: list[str]
) -> None:
    """verify= decides; without one, or when it fails, the outcome stays unknown and nothing is run again."""
    run: list[int] = []

    def verify() -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    @db_retry(atomic=False, verify=None if answer is None else verify)
    def work() -> None:
        run.append(1)
        if len(run) == 1:
            raise CommitOutcomeUnknownError("lost", "default")

    if answer in {True, False}:
        work()
    else:
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            work()
        assert getattr(caught.value, "__notes__", []) == notes

    assert len(run) == calls


def test_not_atomic__may_do_its_part_twice_where_that_does_no_harm() -> None:
    """idempotent=True runs again after a part was stored."""
    calls = []

    @db_retry(atomic=False, idempotent=True)
    def work() -> None:
        calls.append(1)
        Account.objects.get_or_create(name="part")
        if len(calls) == 1:
            fail(LOCKED)

    work()

    assert (len(calls), names()) == (2, ["part"])


def test_idempotency_key__does_the_work_once_and_returns_its_value_again() -> None:
    """The second call with the same key changes nothing; another key does its own work."""
    calls = []

    @db_retry(idempotency_key=lambda order: f"order {order}")
    def pay(order: int) -> dict[str, int]:
        calls.append(order)
        Account.objects.create(name=f"order {order}")
        return {"paid": order}

    results = [pay(1), pay(1), pay(2)]

    assert results == [{"paid": 1}, {"paid": 1}, {"paid": 2}]
    assert calls == [1, 2]


def test_idempotency_key__of_a_failed_call_is_free_again() -> None:
    """The key is part of the transaction: rolled back with it."""
    work = db_retry(idempotency_key="k", max_attempts=1)(failing(LOCKED))

    with pytest.raises(OperationalError):
        work()
    result = work()

    assert (result, names()) == (2, ["attempt 2"])


def test_idempotency_key__inside_a_transaction_still_works_once() -> None:
    """A plain call, but keyed all the same, and bound to the outer transaction."""
    work = db_retry(idempotency_key="k")(failing())

    with transaction.atomic():
        first = work()
    second = work()

    assert (first, second, names()) == (1, 1, ["attempt 1"])


@pytest.mark.parametrize("value", [object(), (1, 2), {1: "a"}, float("nan")])
def test_idempotency_key__refuses_a_value_that_cannot_be_given_back(value: object) -> None:
    """What JSON would change is refused at the first call, before anything is stored."""
    with pytest.raises(TypeError, match="must return what JSON gives back unchanged"):
        db_retry(idempotency_key="k")(lambda: value)()

    assert not IdempotencyKey.objects.exists()


@pytest.mark.parametrize("key", ["", "x" * 201, 7])
def test_idempotency_key__refuses_a_key_it_cannot_store(key: Any) -> None:
    """Empty, too long or no text: nothing runs."""
    with pytest.raises(ValueError, match="idempotency_key must be 1 to 200 characters"):
        db_retry(idempotency_key=lambda: key)(failing())()

    assert names() == []


@pytest.mark.parametrize("off", [{"ENABLED": False}, {"RETRY": {"enabled": False}}])
def test_switched_off__it_keeps_the_transaction_and_does_not_retry(off: dict[str, Any]) -> None:
    """What is atomic does not depend on a setting; whether it is retried does."""
    with override_settings(RESILIENCE=off), pytest.raises(OperationalError):
        db_retry(failing(LOCKED))()

    assert names() == []


def test_swallowed_error__raises_instead_of_a_silent_rollback() -> None:
    """A failed save that the function caught cannot be committed around."""
    Account.objects.create(name="taken")

    @db_retry
    def work() -> str:
        Account.objects.create(name="new")
        with contextlib.suppress(IntegrityError):
            Account.objects.create(name="taken")
        return "done"

    with pytest.raises(TransactionBrokenError, match="IntegrityError was raised and swallowed"):
        work()

    assert names() == ["taken"]


def test_set_rollback__after_an_error_that_a_savepoint_undid_is_no_error() -> None:
    """The error is over and done with; the rollback was asked for."""
    Account.objects.create(name="taken")

    @db_retry
    def work() -> str:
        Account.objects.create(name="trial")
        with contextlib.suppress(IntegrityError), transaction.atomic():
            Account.objects.create(name="taken")
        transaction.set_rollback(True)
        return "looked"

    assert work() == "looked"
    assert names() == ["taken"]


def test_set_rollback__that_was_asked_for_is_no_error() -> None:
    """transaction.set_rollback(True) undoes the work and returns the value."""

    @db_retry
    def work() -> str:
        Account.objects.create(name="trial")
        transaction.set_rollback(True)
        return "looked"

    assert work() == "looked"
    assert names() == []


def test_methods__can_be_decorated() -> None:
    """The function gets its instance."""

    class Till:
        @db_retry
        def open(self) -> Till:
            return self

    till = Till()

    assert till.open() is till


async def test_adb_retry__retries_without_blocking_the_loop() -> None:
    """Attempts run in the thread of the connection, waits on the loop; the work is stored once."""
    work = adb_retry(failing(LOCKED, LOST))

    result = await work()

    assert result == 3
    assert await sync_to_async(names)() == ["attempt 3"]


@pytest.mark.parametrize("idempotent", [True, False])
async def test_adb_retry__without_a_transaction_repeats_what_does_no_harm_twice(idempotent: bool) -> None:
    """What an attempt has committed by itself forbids the next one, unless it may be done again."""
    work = adb_retry(atomic=False, idempotent=idempotent)(failing(LOCKED))

    if idempotent:
        assert await work() == 2
    else:
        with pytest.raises(OperationalError, match=LOCKED):
            await work()

    assert await sync_to_async(names)() == (["attempt 1", "attempt 2"] if idempotent else ["attempt 1"])


async def test_adb_retry__two_tasks_at_once_do_not_mix_their_transactions() -> None:
    """Each attempt is whole: the tasks take turns, and both are stored."""

    @adb_retry(max_attempts=5)
    def work(name: str) -> str:
        first = f"{name} 1"
        if not failed.get(name):
            failed[name] = True
            Account.objects.create(name=first)
            fail(LOCKED)
        Account.objects.create(name=first)
        Account.objects.create(name=f"{name} 2")
        return name

    failed: dict[str, bool] = {}

    results = await asyncio.gather(work("a"), work("b"))

    assert results == ["a", "b"]
    assert sorted(await sync_to_async(names)()) == ["a 1", "a 2", "b 1", "b 2"]


async def test_adb_retry__cancelled_in_the_body_leaves_nothing_behind() -> None:
    """The thread cannot be stopped, but it rolls back; no transaction stays open."""
    begun, go_on = threading.Event(), threading.Event()

    @adb_retry
    def work() -> None:
        Account.objects.create(name="half")
        begun.set()
        go_on.wait(10)

    task = asyncio.create_task(work())
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    threading.Timer(0.1, go_on.set).start()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await sync_to_async(names)() == []
    assert not await sync_to_async(lambda: connection.in_atomic_block)()


async def test_adb_retry__cancelled_while_it_waits_for_the_thread_does_not_begin() -> None:
    """Who cancels before anything ran finds nothing stored later."""
    busy, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def occupy() -> None:
        busy.set()
        go_on.wait(10)

    other = asyncio.create_task(sync_to_async(occupy)())
    await asyncio.to_thread(busy.wait, 10)
    task = asyncio.create_task(adb_retry(lambda: calls.append("run"))())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await other

    assert calls == []
