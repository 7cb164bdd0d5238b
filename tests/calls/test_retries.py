from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import pickle
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import billiard.exceptions
import celery.exceptions
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from resilience import clock, signals
from resilience.calls.budgets import RetryBudget
from resilience.calls.classify import ErrorInfo, ErrorKind
from resilience.calls.nesting import gave_up, mark_gave_up, marks
from resilience.calls.retries import RetryConfig, RetryStrategy, async_retry, retry
from resilience.calls.timeouts import deadline_scope, remaining
from resilience.exceptions import CircuitOpenError, OperationTimeoutError
from tests.calls.scripts import FakeTime, Script

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Retries wait on a fake clock."""
    fake = FakeTime()
    for name in ("monotonic", "sleep", "async_sleep"):
        monkeypatch.setattr(clock, name, getattr(fake, name))
    return fake


@pytest.fixture(params=["sync", "async", "sync, warm", "async, warm"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a script under `retry`, as a function or as a coroutine function; warm, after a call that read the settings."""

    def run(script: Script, *args: Any, **fields: Any) -> object:
        if request.param.startswith("sync"):
            retried = retry(*args, **fields)(script)
        else:
            coroutine_function = retry(*args, **fields)(script.run)

            def retried() -> object:
                return asyncio.run(coroutine_function())

        if request.param.endswith("warm") and not fields.keys() & WATCHED and not args:
            script.is_warming_up = True
            retried()
            script.is_warming_up = False
        return retried()

    return run


#: The options that look after every call; the others take the short way once the settings have been read.
WATCHED = {"attempt_timeout", "budget", "deadline", "retry_on_result"}


@pytest.fixture
def sent() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the retry signals told."""
    told: list[tuple[str, dict[str, Any]]] = []
    receivers = []
    for name in ("retry_scheduled", "retry_succeeded", "retry_gave_up"):

        def receive(sender: object, *, _name: str = name, signal: object = None, **arguments: Any) -> None:
            told.append((_name, arguments))

        receivers.append((getattr(signals, name), receive))
        getattr(signals, name).connect(receive)
    yield told
    for signal, receive in receivers:
        signal.disconnect(receive)


class LimitError(Exception):
    """A 429 with a wait."""

    def __init__(self, retry_after: object, status: int = 429) -> None:
        super().__init__("limited")
        self.status = status
        self.response = SimpleNamespace(headers={"Retry-After": retry_after})


# Attempts and waits


def test_retry__calls_until_it_succeeds(run: Run, fake_time: FakeTime) -> None:
    """Two failures and a success make three calls and two waits."""
    script = Script(TimeoutError(), ConnectionError(), "done")

    result = run(script, max_attempts=3, delay=1, jitter=False)

    assert result == "done"
    assert script.calls == 3
    assert fake_time.sleeps == [1, 2]


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_retry__max_attempts_counts_all_calls(attempts: int, run: Run, fake_time: FakeTime) -> None:
    """N attempts are N calls and one wait less; one attempt is none."""
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError):
        run(script, max_attempts=attempts, jitter=False)

    assert script.calls == attempts
    assert len(fake_time.sleeps) == attempts - 1


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        (RetryStrategy.EXPONENTIAL, [1, 2, 4, 8, 10]),
        ("linear", [1, 2, 3, 4, 5]),
        ("fixed", [1, 1, 1, 1, 1]),
        ("fibonacci", [1, 1, 2, 3, 5]),
    ],
)
def test_retry__waits_follow_the_strategy(strategy: str, waits: list[float], run: Run, fake_time: FakeTime) -> None:
    """Without jitter the waits are exactly the documented series, up to the cap."""
    with pytest.raises(TimeoutError):
        run(Script(TimeoutError()), max_attempts=6, delay=1, max_delay=10, strategy=strategy, jitter=False)

    assert fake_time.sleeps == waits


def test_retry__no_wait_is_longer_than_the_system_can_sleep(run: Run, fake_time: FakeTime) -> None:
    """A wait of 300 years raises no error of the clock's in place of the call's own."""
    script = Script(ConnectionError(), "ok")

    assert run(script, delay=1e10, max_delay=1e10, jitter=False) == "ok"
    assert fake_time.sleeps == [100 * 365 * 86_400.0]


def test_retry__each_call_starts_its_own_series(fake_time: FakeTime) -> None:
    """The waits of one call do not go on in the next."""
    retried = retry(max_attempts=3, delay=1, jitter=False)(Script(TimeoutError()))

    for _ in range(2):
        with pytest.raises(TimeoutError):
            retried()

    assert fake_time.sleeps == [1, 2, 1, 2]


def test_retry__interleaved_coroutines_keep_their_own_count(fake_time: FakeTime) -> None:
    """Calls that run at the same time through one decorator share nothing."""
    seen: dict[str, list[float]] = {"a": [], "b": [], "c": []}

    @retry(max_attempts=4, delay=1, jitter=False)
    async def call(name: str) -> None:
        seen[name].append(len(seen[name]) + 1)
        await asyncio.sleep(0)
        raise TimeoutError

    async def main() -> None:
        await asyncio.gather(*map(call, seen), return_exceptions=True)

    asyncio.run(main())

    assert seen == {name: [1, 2, 3, 4] for name in seen}
    assert sorted(fake_time.sleeps) == sorted([1, 2, 4] * 3)


def test_retry__threads_keep_their_own_count() -> None:
    """The same holds for threads."""
    per_thread = threading.local()
    barrier = threading.Barrier(4)
    counts: list[int] = []

    @retry(max_attempts=5, delay=0)
    def call() -> None:
        per_thread.calls = getattr(per_thread, "calls", 0) + 1
        barrier.wait(20)
        raise TimeoutError

    def work() -> None:
        with pytest.raises(TimeoutError):
            call()
        counts.append(per_thread.calls)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts == [5, 5, 5, 5]


def test_retry__a_function_may_call_itself(fake_time: FakeTime) -> None:
    """A call within a call of the same function counts for itself, and only the inner one retries."""
    calls = []

    @retry(max_attempts=3, delay=0)
    def call(depth: int) -> None:
        calls.append(depth)
        if depth:
            call(depth - 1)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        call(1)

    assert calls == [1, 0, 0, 0]


# What is retried


def test_retry__what_is_not_listed_passes_untouched(run: Run, sent: list[Any]) -> None:
    """An exception outside `exceptions` comes out at once, the same object, without a trace of the retry."""
    error = KeyError("missing")
    script = Script(error)

    with pytest.raises(KeyError) as caught:
        run(script, exceptions=(TimeoutError,))

    assert caught.value is error
    assert script.calls == 1
    assert not hasattr(error, "__notes__")
    assert sent == []


def test_retry__exclude_beats_exceptions(run: Run) -> None:
    """A subclass that is excluded is not retried although its base is listed."""
    script = Script(ConnectionResetError())

    with pytest.raises(ConnectionResetError):
        run(script, exceptions=(OSError,), exclude=ConnectionResetError)

    assert script.calls == 1


@pytest.mark.parametrize(
    ("error", "calls"), [(TimeoutError(), 3), (LimitError(0), 3), (ValueError(), 1), (LimitError(0, status=401), 1)]
)
def test_retry__by_default_what_is_transient(error: Exception, calls: int, run: Run) -> None:
    """Without a list, `classify` decides."""
    script = Script(error)

    with pytest.raises(type(error)):
        run(script, delay=0)

    assert script.calls == calls


def test_retry__retry_if_decides_instead_of_classify(run: Run) -> None:
    """A predicate may retry what nobody calls transient, and stop what everybody does."""
    eager, lazy = Script(ArithmeticError()), Script(TimeoutError())

    with pytest.raises(ArithmeticError):
        run(eager, delay=0, retry_if=lambda exc: isinstance(exc, ArithmeticError))
    with pytest.raises(TimeoutError):
        run(lazy, delay=0, retry_if=lambda exc: isinstance(exc, ArithmeticError))

    assert (eager.calls, lazy.calls) == (3, 1)


@pytest.mark.parametrize("answer", [None, RuntimeError("broken")])
def test_retry__a_predicate_without_an_answer_is_false(answer: object, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A predicate that returns None or raises is logged, and the function's own exception comes out."""
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError):
        run(script, delay=0, retry_if=lambda exc: _do(answer))

    assert script.calls == 1
    assert "False" in caplog.text


def _do(step: object) -> Any:
    if isinstance(step, Exception):
        raise step
    return step


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        GeneratorExit(),
        celery.exceptions.Retry(),
        celery.exceptions.Ignore(),
        celery.exceptions.Reject(),
        billiard.exceptions.SoftTimeLimitExceeded(),
    ],
    ids=repr,
)
def test_retry__control_flow_passes_even_when_everything_is_listed(error: BaseException, sent: list[Any]) -> None:
    """What steers the program leaves on its first raise, without a note and without a signal."""
    script = Script(error)

    with pytest.raises(type(error)):
        retry(exceptions=(Exception,), delay=0)(script)()

    assert script.calls == 1
    assert not hasattr(error, "__notes__")
    assert sent == []


def test_retry__cancellation_while_waiting_starts_no_further_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled between two attempts makes no third."""
    monkeypatch.setattr(clock, "async_sleep", asyncio.sleep)
    script = Script(TimeoutError())

    async def main() -> None:
        task = asyncio.ensure_future(retry(delay=30, jitter=False)(script.run)())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert script.calls == 1


def test_retry__stops_at_an_open_circuit(run: Run) -> None:
    """An open circuit is not hammered, even when everything is to be retried."""
    script = Script(CircuitOpenError("payments", "open", 0.0))

    with pytest.raises(CircuitOpenError):
        run(script, max_attempts=5, delay=0, exceptions=(Exception,))

    assert script.calls == 1


@pytest.mark.parametrize(("idempotent", "calls"), [(True, 3), (False, 1)])
def test_retry__what_may_have_been_executed(idempotent: bool, calls: int, run: Run) -> None:
    """A call that is not idempotent is not repeated when the first may have been executed."""
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError):
        run(script, delay=0, idempotent=idempotent)

    assert script.calls == calls


def test_retry__a_request_that_was_never_sent_is_always_repeated(run: Run) -> None:
    """A refused connection is safe to repeat whatever the call does."""
    script = Script(ConnectionRefusedError(), "done")

    assert run(script, delay=0, idempotent=False) == "done"


# Results


def test_retry__a_rejected_result_is_tried_again_and_the_last_one_returned(run: Run, fake_time: FakeTime) -> None:
    """Results are retried like failures; when the attempts are used up, the last result comes out."""
    script = Script("", "", "done")

    assert run(script, delay=1, jitter=False, retry_on_result=lambda result: not result) == "done"
    assert fake_time.sleeps == [1, 2]
    assert run(Script(""), delay=0, retry_on_result=lambda result: not result) == ""


def test_retry__results_and_failures_share_the_attempts(run: Run) -> None:
    """A failure after a rejected result counts on."""
    script = Script(None, TimeoutError(), None, "never")

    assert run(script, delay=0, retry_on_result=lambda result: result is None, on_retry=lambda exc, attempt: None) is None
    assert script.calls == 3


# The exception that comes out


def test_retry__raises_the_original_exception_with_a_note(run: Run, fake_time: FakeTime) -> None:
    """What comes out is the function's own last exception, and it tells what was tried."""
    error = TimeoutError("slow")
    script = Script(TimeoutError("first"), error, takes=0.25, time=fake_time)

    with pytest.raises(TimeoutError) as caught:
        run(script, max_attempts=2, delay=0.5, jitter=False)

    assert caught.value is error
    assert error.__notes__ == ["resilience: gave up after 2 attempts in 1.00 s: attempts exhausted"]
    assert error.__context__ is None
    assert gave_up(error)


def test_retry__the_traceback_leads_to_the_function() -> None:
    """The last frame is the function's, and the exception can be pickled with its note."""

    def fails() -> None:
        raise TimeoutError("slow")

    with pytest.raises(TimeoutError) as caught:
        retry(max_attempts=2, delay=0)(fails)()

    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fails"
    assert pickle.loads(pickle.dumps(caught.value)).__notes__ == caught.value.__notes__


def test_retry__a_permanent_error_says_why_it_was_not_retried(run: Run) -> None:
    """The first question about an error that was not retried is answered on it."""
    error = LimitError(0, status=401)

    with pytest.raises(LimitError):
        run(Script(error))

    assert error.__notes__ == ["resilience: gave up after 1 attempt in 0.00 s: the error is not transient"]


def test_retry__notes_do_not_pile_up_on_an_exception_raised_again(run: Run) -> None:
    """Each call that gives up on a cached exception leaves its own note, and the notes of others stay."""
    error = TimeoutError("cached")
    error.add_note("from the client")

    for _ in range(3):
        with pytest.raises(TimeoutError):
            run(Script(*[error] * 2), max_attempts=2, delay=0, jitter=False)

    assert error.__notes__ == ["from the client", "resilience: gave up after 2 attempts in 0.00 s: attempts exhausted"]


def test_retry__the_notes_of_all_levels_stay() -> None:
    """What a level further in tried is not forgotten when the one around it gives up too."""
    error = TimeoutError()

    @retry(max_attempts=3, delay=0, retry_given_up=True)
    @retry(max_attempts=2, delay=0)
    def call() -> None:
        raise error

    for _ in range(2):
        with pytest.raises(TimeoutError):
            call()

    assert [note.split(" in ")[0] for note in error.__notes__] == [
        "resilience: gave up after 2 attempts",
        "resilience: gave up after 3 attempts",
    ]


class UnprintableError(Exception):
    """Its author forgot the attribute that its text is made from."""

    def __str__(self) -> str:
        return str(self.missing)  # type: ignore[attr-defined]  # the very bug


@dataclass(frozen=True)
class FrozenError(ConnectionError):
    """Takes neither a note nor a mark."""

    code: int = 7


@pytest.mark.parametrize("error", [UnprintableError(), FrozenError()], ids=["unprintable", "frozen"])
def test_retry__an_odd_exception_is_not_replaced(error: Exception, run: Run) -> None:
    """What the caller sees is the function's exception, also one that cannot be printed or takes no note."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever comes out
        run(Script(*[error] * 3), delay=0)

    assert caught.value is error


# Deadline


def test_retry__no_wait_ends_past_the_deadline(run: Run, fake_time: FakeTime) -> None:
    """A wait that would cross the deadline is not begun."""
    script = Script(TimeoutError(), takes=1, time=fake_time)

    with pytest.raises(TimeoutError) as caught:
        run(script, max_attempts=10, delay=2, deadline=10, jitter=False)

    # 1 s, wait 2, 1 s, wait 4 (8 s so far), 1 s: another 8 do not fit.
    assert fake_time.now - 1000 == 9
    assert script.calls == 3
    assert "the deadline leaves no time" in caught.value.__notes__[0]


def test_retry__a_wait_up_to_the_very_deadline_is_not_begun(run: Run, fake_time: FakeTime) -> None:
    """A wait that would end exactly at the deadline leaves no time for an attempt."""
    with pytest.raises(TimeoutError):
        run(Script(TimeoutError()), delay=3, deadline=3, jitter=False)

    assert fake_time.sleeps == []


def test_retry__a_deadline_without_waits_is_a_plain_limit(run: Run, fake_time: FakeTime) -> None:
    """Without waits, attempts go on until the time is over."""
    script = Script(TimeoutError(), takes=1, time=fake_time)

    with pytest.raises(TimeoutError):
        run(script, max_attempts=100, delay=0, deadline=4.5)

    assert script.calls == 5


def test_retry__looks_at_the_deadline_again_after_a_wait(run: Run, fake_time: FakeTime) -> None:
    """A sleep that took too long is not followed by another attempt."""
    fake_time.oversleeps = 5
    error = TimeoutError()
    script = Script(error)

    with pytest.raises(TimeoutError) as caught:
        run(script, delay=1, deadline=3, jitter=False)

    assert caught.value is error
    assert script.calls == 1


def test_retry__a_late_result_is_returned(run: Run, fake_time: FakeTime) -> None:
    """When the time is over after a rejected result, that result has to do."""
    fake_time.oversleeps = 5

    assert run(Script("bad", "good"), delay=1, deadline=3, jitter=False, retry_on_result=lambda result: result == "bad") == "bad"


def test_retry__draws_on_the_deadline_around_it(run: Run, fake_time: FakeTime) -> None:
    """A deadline set further out counts as well, although this retry has none."""
    script = Script(TimeoutError(), takes=1, time=fake_time)

    with deadline_scope(4), pytest.raises(TimeoutError):
        run(script, max_attempts=10, delay=1, strategy="fixed", jitter=False)

    assert script.calls == 2


def test_retry__tells_the_function_what_is_left(fake_time: FakeTime) -> None:
    """`remaining()` counts down over the attempts, and is gone afterwards."""
    left: list[float | None] = []

    @retry(max_attempts=3, delay=1, strategy="fixed", deadline=10, jitter=False)
    def call() -> None:
        left.append(remaining())
        fake_time.now += 2
        raise TimeoutError

    with pytest.raises(TimeoutError):
        call()

    assert left == [10, 7, 4]
    assert remaining() is None


def test_retry__an_attempt_timeout_cuts_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt is cut off by itself and the next one gets its own time."""
    monkeypatch.undo()
    calls = []

    @retry(max_attempts=3, delay=0, attempt_timeout=0.05)
    async def hang() -> None:
        calls.append(remaining())
        await asyncio.sleep(30)

    with pytest.raises(OperationTimeoutError) as caught:
        asyncio.run(hang())

    assert len(calls) == 3
    assert "attempts exhausted" in caught.value.__notes__[0]


def test_retry__an_attempt_timeout_is_cut_short_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both, the whole never takes longer than the deadline."""
    monkeypatch.undo()
    limits = []

    @retry(max_attempts=10, delay=0, attempt_timeout=0.2, deadline=0.3)
    def hang() -> None:
        limits.append(remaining())
        threading.Event().wait(30)

    started = clock.monotonic()
    with pytest.raises(OperationTimeoutError) as caught:
        hang()

    assert clock.monotonic() - started < 5
    assert len(limits) == 2
    assert limits[1] is not None
    assert limits[1] < 0.15
    assert "the deadline leaves no time" in caught.value.__notes__[0]


# Retry-After


@pytest.mark.parametrize("asked", [0, 7, 60])
def test_retry__obeys_retry_after(asked: int, run: Run, fake_time: FakeTime) -> None:
    """The server's wait replaces the computed one, shorter or longer."""
    script = Script(LimitError(asked), "done")

    assert run(script, delay=5) == "done"
    assert sum(fake_time.sleeps) == asked


def test_retry__gives_up_at_once_when_asked_to_wait_too_long(run: Run, fake_time: FakeTime) -> None:
    """Beyond the cap there is no sense in waiting less: one request, no sleep."""
    script = Script(LimitError(61))

    with pytest.raises(LimitError) as caught:
        run(script)

    assert script.calls == 1
    assert fake_time.sleeps == []
    assert "longer than max_retry_after" in caught.value.__notes__[0]


def test_retry__a_retry_after_that_does_not_fit_the_deadline_ends_it(run: Run, fake_time: FakeTime) -> None:
    """No sleep is begun that the deadline would cut."""
    script = Script(LimitError(20))

    with pytest.raises(LimitError) as caught:
        run(script, deadline=10)

    assert fake_time.sleeps == []
    assert "deadline" in caught.value.__notes__[0]


def test_retry__a_retry_after_in_the_past_is_no_wait(run: Run, fake_time: FakeTime) -> None:
    """A date that is over means now."""
    assert run(Script(LimitError("Sun, 06 Nov 1994 08:49:37 GMT"), "done")) == "done"
    assert sum(fake_time.sleeps) == 0


def test_retry__no_cap_obeys_any_retry_after(run: Run, fake_time: FakeTime) -> None:
    """`max_retry_after=None` waits as long as asked."""
    assert run(Script(LimitError(3600), "done"), max_retry_after=None) == "done"
    assert fake_time.sleeps == [3600]


# Nested retries


def test_retry__three_levels_of_three_make_three_calls(run: Run) -> None:
    """Only the innermost level retries."""
    script = Script(TimeoutError())
    protect = retry(max_attempts=3, delay=0)

    with pytest.raises(TimeoutError) as caught:
        protect(protect(protect(script)))()

    assert script.calls == 3
    assert len(caught.value.__notes__) == 1


def test_retry__three_asynchronous_levels_make_three_calls() -> None:
    """The same holds for coroutine functions."""
    script = Script(TimeoutError())
    protect = retry(max_attempts=3, delay=0)

    with pytest.raises(TimeoutError):
        asyncio.run(protect(protect(protect(script.run)))())

    assert script.calls == 3


def test_retry__a_level_may_ask_to_retry_what_was_given_up() -> None:
    """Who really wants the product gets it by saying so."""
    script = Script(TimeoutError())
    inner = retry(max_attempts=3, delay=0)(script)

    with pytest.raises(TimeoutError):
        retry(max_attempts=2, delay=0, retry_given_up=True)(inner)()

    assert script.calls == 6


def test_retry__a_level_of_one_attempt_does_not_stop_the_others() -> None:
    """A retry that never retries has given nothing up."""
    script = Script(TimeoutError())
    inner = retry(max_attempts=1)(script)

    with pytest.raises(TimeoutError):
        retry(max_attempts=3, delay=0)(inner)()

    assert script.calls == 3


def test_retry__an_exception_object_raised_again_is_a_new_failure(run: Run) -> None:
    """The mark of an earlier call does not stick to an object that is raised again."""
    error = TimeoutError()

    for _ in range(2):
        script = Script(error)
        with pytest.raises(TimeoutError):
            run(script, delay=0)
        assert script.calls == 3


def test_retry__what_the_inner_level_does_not_list_is_the_outer_ones() -> None:
    """An error that the inner level let pass may be retried further out."""
    script = Script(ConnectionError())
    inner = retry(max_attempts=3, delay=0, exceptions=TimeoutError)(script)

    with pytest.raises(ConnectionError):
        retry(max_attempts=3, delay=0)(inner)()

    assert script.calls == 3


# Hooks and signals


def test_retry__tells_on_retry_before_each_wait(run: Run, fake_time: FakeTime) -> None:
    """The hook gets the exception and the number of the attempt that failed, once for each wait."""
    error = TimeoutError()
    told: list[tuple[object, int, int]] = []

    with pytest.raises(TimeoutError):
        run(Script(error), on_retry=lambda exc, attempt: told.append((exc, attempt, len(fake_time.sleeps))))

    assert told == [(error, 1, 0), (error, 2, 1)]


def test_retry__a_hook_that_raises_changes_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A broken hook is logged; the result comes all the same."""

    def broken(exc: object, attempt: int) -> None:
        raise RuntimeError("broken hook")

    assert run(Script(TimeoutError(), "done"), delay=0, on_retry=broken) == "done"
    assert "broken hook" in caplog.text


def test_retry__a_hook_may_leave_by_control_flow(run: Run) -> None:
    """A hook that hands the task back to Celery is obeyed."""

    def hand_back(exc: object, attempt: int) -> None:
        raise celery.exceptions.Retry

    with pytest.raises(celery.exceptions.Retry):
        run(Script(TimeoutError()), delay=0, on_retry=hand_back)


def test_retry__tells_nothing_while_nothing_fails(run: Run, sent: list[Any]) -> None:
    """A call that succeeds at once sends no signal."""
    run(Script("done"))

    assert sent == []


def test_retry__tells_what_it_does(run: Run, sent: list[tuple[str, dict[str, Any]]], fake_time: FakeTime) -> None:
    """Each wait and the success after it are told, with the time they took."""
    error = TimeoutError()

    run(Script(error, error, "done", takes=1, time=fake_time), delay=2, strategy="fixed", jitter=False)

    assert [name for name, _ in sent] == ["retry_scheduled", "retry_scheduled", "retry_succeeded"]
    first = {"attempt": 1, "delay": 2, "exception": error, "kind": ErrorKind.TIMEOUT}
    assert {key: value for key, value in sent[0][1].items() if key != "name"} == first
    assert sent[2][1]["attempts"] == 3
    assert sent[2][1]["elapsed"] == 7


def test_retry__tells_once_that_it_gave_up(run: Run, sent: list[tuple[str, dict[str, Any]]]) -> None:
    """The end is told once, with its reason."""
    with pytest.raises(TimeoutError):
        run(Script(TimeoutError()), delay=0)

    endings = [arguments for name, arguments in sent if name != "retry_scheduled"]
    assert len(endings) == 1
    assert (endings[0]["attempts"], endings[0]["reason"], endings[0]["kind"]) == (3, "attempts exhausted", ErrorKind.TIMEOUT)


def test_retry__one_decorator_on_two_functions_tells_once_each(sent: list[Any]) -> None:
    """Using a decorator object twice doubles nothing."""
    protect = retry(max_attempts=2, delay=0)
    first, second = protect(Script(TimeoutError(), "a")), protect(Script(TimeoutError(), "b"))

    assert (first(), second()) == ("a", "b")
    assert [name for name, _ in sent] == ["retry_scheduled", "retry_succeeded"] * 2


def test_retry__logs_no_arguments(caplog: pytest.LogCaptureFixture) -> None:
    """What a function is called with never reaches a log or a note."""

    @retry(max_attempts=2, delay=0)
    def call(secret: str) -> None:
        raise TimeoutError("slow")

    with caplog.at_level(logging.DEBUG), pytest.raises(TimeoutError) as caught:
        call("hunter2")

    assert "hunter2" not in caplog.text + "".join(caught.value.__notes__)


# Budget


def test_retry__stops_when_the_budget_is_used_up(run: Run) -> None:
    """Without a token the original exception comes out at once and says why."""
    script = Script(TimeoutError())

    with pytest.raises(TimeoutError) as caught:
        run(script, delay=0, budget=RetryBudget(ratio=0.1, min_per_second=0))

    assert script.calls == 1
    assert "the retry budget is used up" in caught.value.__notes__[0]


def test_retry__functions_share_a_budget(run: Run) -> None:
    """Two functions with one budget drain it once."""
    budget = RetryBudget(ratio=0.01, min_per_second=0.3)
    scripts = Script(TimeoutError()), Script(TimeoutError())

    for script in scripts:
        with pytest.raises(TimeoutError):
            run(script, delay=0, max_attempts=3, budget=budget)

    assert [script.calls for script in scripts] == [3, 2]


# What can be decorated


class Client:
    """Something with methods."""

    def __init__(self) -> None:
        self.calls = 0

    @retry(delay=0)
    def method(self, value: int = 1, *, factor: int = 2) -> int:
        """Multiply."""
        self.calls += 1
        if self.calls == 1:
            raise TimeoutError
        return value * factor

    @classmethod
    @retry(delay=0)
    def of_class(cls) -> str:
        return cls.__name__

    @staticmethod
    @retry(delay=0)
    def of_nobody() -> str:
        return "static"

    @retry(delay=0)
    async def __call__(self) -> str:
        return "called"


def test_retry__works_on_methods() -> None:
    """Methods, class methods, static methods and `__call__` keep their manners."""
    assert Client().method(3, factor=5) == 15
    assert Client.of_class() == "Client"
    assert Client.of_nobody() == "static"
    assert asyncio.run(Client()()) == "called"


def test_retry__keeps_what_a_function_is() -> None:
    """Name, docstring, defaults and kind stay visible."""
    assert Client.method.__name__ == "method"
    assert Client.method.__doc__ == "Multiply."
    assert str(inspect.signature(Client.method)) == "(self, value: 'int' = 1, *, factor: 'int' = 2) -> 'int'"
    assert inspect.iscoroutinefunction(Client.__call__)
    assert not inspect.iscoroutinefunction(Client.method)


def test_retry__works_on_partials_and_objects() -> None:
    """Whatever can be called can be retried, and coroutine functions are found inside."""
    partial = functools.partial(Client().method, 3)
    awaitable = retry(delay=0)(functools.partial(Script(TimeoutError(), "done").run))

    assert retry(delay=0)(partial)() == 6
    assert asyncio.run(_awaited(awaitable)) == "done"
    assert asyncio.run(_awaited(retry(delay=0)(Client()))) == "called"


async def _awaited(func: Callable[[], Awaitable[object]]) -> object:
    return await func()


async def test_async_retry__retries_what_returns_an_awaitable() -> None:
    """A plain function that hands a coroutine on is retried when it is told to be asynchronous."""
    script = Script(TimeoutError(), "done")

    def hand_on() -> Awaitable[object]:
        return script.run()

    assert await async_retry(delay=0)(hand_on)() == "done"
    assert await async_retry(script.run)() == "done"


def test_retry__refuses_generators() -> None:
    """A generator's body runs after the call returned, where no retry can reach: that is said at once."""

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> Any:
        yield 1

    for func in (generator, async_generator, functools.partial(generator)):
        for decorator in (retry, retry(max_attempts=2), async_retry):
            with pytest.raises(TypeError, match="must decorate a function that returns its result"):
                decorator(func)  # type: ignore[operator]


@pytest.mark.parametrize("thing", ["text", 5, staticmethod(print), classmethod(print), [TimeoutError]])
def test_retry__refuses_what_is_no_function(thing: Any) -> None:
    """The mistake shows at decoration and says what to do."""
    with pytest.raises(TypeError, match="must"):
        retry()(thing)


# Options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_attempts", value) for value in (0, -1, 1.5, True, "3", None, math.nan)),
        *(("delay", value) for value in (-1, math.nan, math.inf, True, "1", None)),
        *(("backoff", value) for value in (0.5, 0, -1, math.nan, math.inf, False, None, timedelta(seconds=2))),
        *(("max_delay", value) for value in (-1, math.nan, math.inf, True, None)),
        *(("strategy", value) for value in ("quadratic", None, 1)),
        *(("jitter", value) for value in ("some", 1, 0, None, 0.5)),
        *(
            ("exceptions", value)
            for value in ((), [], "TimeoutError", BaseException, (KeyboardInterrupt,), (TimeoutError(),), int)
        ),
        *(("exclude", value) for value in ("TimeoutError", None, (SystemExit,))),
        *(("retry_if", value) for value in (True, "f", TimeoutError())),
        *(("retry_on_result", value) for value in (True, "f")),
        *(("on_retry", value) for value in (True, "f")),
        *(("attempt_timeout", value) for value in (0, -1, math.nan, math.inf, True, "1")),
        *(("deadline", value) for value in (0, -1, math.nan, math.inf, True, "1")),
        *(("max_retry_after", value) for value in (-1, math.nan, math.inf, True, "1")),
        *(("budget", value) for value in (0.2, True, {})),
        *(("idempotent", value) for value in (1, None, "yes")),
        *(("retry_given_up", value) for value in (1, None)),
    ],
)
def test_retry__refuses_a_wrong_option_at_decoration(field: str, value: Any) -> None:
    """A wrong value fails where it is written, names the field and the value, and says what to do."""
    with pytest.raises((TypeError, ValueError), match=rf"^{field} must be .+, not .+\. \w.+\.$"):
        retry(**{field: value})


@pytest.mark.parametrize("field", ["retry_if", "retry_on_result", "on_retry"])
def test_retry__refuses_a_coroutine_function_as_a_hook(field: str) -> None:
    """A coroutine is always true and never awaited: a trap that is closed at decoration."""

    async def hook(*args: object) -> bool:
        return True

    with pytest.raises(TypeError, match=f"{field} must be a plain function"):
        retry(**{field: hook})


def test_retry__refuses_an_unknown_option() -> None:
    """A misspelt option is no option."""
    with pytest.raises(TypeError, match="max_attempt"):
        retry(max_attempt=3)  # type: ignore[call-overload]


def test_retry_config__takes_timedeltas_and_strings() -> None:
    """Times may be timedeltas and the strategy its value, as settings write them."""
    config = RetryConfig(delay=timedelta(milliseconds=500), deadline=timedelta(minutes=1), strategy="linear")  # type: ignore[arg-type]

    assert (config.delay, config.deadline, config.strategy) == (0.5, 60.0, RetryStrategy.LINEAR)


def test_retry__a_config_is_followed_as_it_is(fake_time: FakeTime) -> None:
    """A config is complete: settings do not shine through it, single fields may replace its own."""
    config = RetryConfig(max_attempts=2, delay=1, jitter=False)

    with override_settings(RESILIENCE={"RETRY": {"max_attempts": 9, "delay": 9}}):
        for retried, calls in ((retry(config), 2), (retry(config, max_attempts=4), 4)):
            script = Script(TimeoutError())
            with pytest.raises(TimeoutError):
                retried(script)()
            assert script.calls == calls

    assert fake_time.sleeps == [1, 1, 2, 4]


# Settings


def test_retry__bare_takes_everything_from_the_settings_when_called(run: Run) -> None:
    """What is decorated once follows the settings of the moment, and given fields stay above them."""
    script = Script(TimeoutError())
    bare, given = retry(script), retry(delay=0)(script)

    for attempts in (2, 4):
        with override_settings(RESILIENCE={"RETRY": {"max_attempts": attempts, "delay": 7, "jitter": False}}):
            for retried in (bare, given):
                script.calls = 0
                with pytest.raises(TimeoutError):
                    retried()
                assert script.calls == attempts


def test_retry__settings_may_bring_a_deadline_later(fake_time: FakeTime) -> None:
    """Options that look after calls without a failure take effect and go again."""
    left: list[object] = []
    retried = retry(lambda: left.append(remaining()))

    retried()
    with override_settings(RESILIENCE={"RETRY": {"deadline": 5}}):
        retried()
    retried()

    assert left == [None, 5, None]


@pytest.mark.parametrize("settings", [{"ENABLED": False}, {"RETRY": {"enabled": False}}])
@pytest.mark.parametrize("fields", [{}, {"deadline": 5}, {"retry_on_result": lambda result: True}])
def test_retry__switched_off_calls_straight_through(settings: dict[str, Any], fields: dict[str, Any], run: Run) -> None:
    """Off means exactly one call and the original exception without a note."""
    error = TimeoutError()
    failing, working = Script(error), Script("done")

    with override_settings(RESILIENCE=settings):
        with pytest.raises(TimeoutError):
            run(failing, **fields)
        with pytest.raises(TimeoutError):
            run(failing, RetryConfig(**fields))
        assert run(working, **fields) == "done"

    assert (failing.calls, working.calls) == (2, 1)
    assert not hasattr(error, "__notes__")


def test_retry__wrong_settings_are_told_by_name() -> None:
    """A wrong value in the settings names the setting."""
    with (
        override_settings(RESILIENCE={"RETRY": {"max_attempts": 0}}),
        pytest.raises(ImproperlyConfigured, match=r"RESILIENCE\['RETRY'\] is wrong: max_attempts must be"),
    ):
        retry(Script("done"))()


def test_retry__asks_the_projects_classifiers(run: Run) -> None:
    """A classifier of the settings makes an error worth retrying."""
    script = Script(ArithmeticError(), "done")

    with override_settings(RESILIENCE={"CLASSIFIERS": ["tests.calls.test_retries.arithmetic_passes"]}):
        assert run(script, delay=0) == "done"


def arithmetic_passes(exc: Exception) -> ErrorInfo | None:
    return ErrorInfo(ErrorKind.CONFLICT, transient=True) if isinstance(exc, ArithmeticError) else None


def test_retry__answer_that_speaks_of_a_cancellation_is_for_good_unless_listed(run: Run) -> None:
    """HTTP 499 is no control flow: not transient, so called once, and again where somebody lists its exception."""

    class ClientGoneError(Exception):
        status_code = 499

    once, listed = Script(ClientGoneError(), "done"), Script(ClientGoneError(), "done")

    with pytest.raises(ClientGoneError):
        run(once)
    assert run(listed, exceptions=ClientGoneError) == "done"
    assert (once.calls, listed.calls) == (1, 2)


def test_retry__deadline_alone_counts_down_in_the_first_call(run: Run) -> None:
    """A client's own timeout can be fed by `remaining()` before anything has failed."""

    class Client(Script):
        def __call__(self) -> object:
            return remaining()

    assert run(Client(), deadline=5) == 5


def test_retry__makes_its_first_call_also_when_an_outer_deadline_is_over(run: Run) -> None:
    """Nothing is swallowed: the function itself finds out that its time is up."""
    script = Script("done")

    with deadline_scope(0):
        assert run(script, deadline=5) == "done"


def test_retry__own_fields_beat_the_settings(run: Run) -> None:
    """What stands at the function holds, whatever the project says in general."""
    script = Script(*[TimeoutError()] * 9)

    with override_settings(RESILIENCE={"RETRY": {"max_attempts": 7, "delay": 0}}), pytest.raises(TimeoutError):
        run(script, max_attempts=2)

    assert script.calls == 2


def test_retry__error_that_was_not_tried_again_is_the_outer_levels_to_judge() -> None:
    """A level that found an error permanent has not tried: one further out that lists it may."""
    script = Script(*[ValueError()] * 9)

    @retry(max_attempts=3, delay=0, exceptions=ValueError)
    @retry(max_attempts=3, delay=0)
    def nested() -> object:
        return script()

    with pytest.raises(ValueError):  # noqa: PT011  # the script's own, without a text
        nested()

    assert script.calls == 3


async def test_retry__without_a_delay_lets_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that retries at once still gives the event loop a turn."""
    monkeypatch.setattr(clock, "async_sleep", asyncio.sleep)
    turns: list[str] = []

    @retry(max_attempts=3, delay=0)
    async def service() -> None:
        turns.append("service")
        raise TimeoutError

    async def other() -> None:
        turns.append("other")

    waiting = asyncio.ensure_future(other())
    with pytest.raises(TimeoutError):
        await service()
    await waiting

    assert turns == ["service", "other", "service", "service"]


@pytest.mark.parametrize("predicate", ["retry_if", "retry_on_result"])
def test_retry__a_time_limit_that_strikes_in_a_predicate_ends_it(predicate: str, run: Run) -> None:
    """Control flow is never swallowed, also when it happens to be raised while a predicate is asked."""

    def slow(value: object) -> bool:
        raise billiard.exceptions.SoftTimeLimitExceeded

    with pytest.raises(billiard.exceptions.SoftTimeLimitExceeded):
        run(Script(TimeoutError() if predicate == "retry_if" else "result"), delay=0, **{predicate: slow})


def test_gave_up__holds_for_an_error_from_another_process() -> None:
    """How often this process has given up says nothing of an error that a worker process gave up and sent."""
    error = TimeoutError("slow")
    mark_gave_up(error)

    sent = pickle.dumps(error)

    assert gave_up(pickle.loads(sent), since=marks.count + 1_000)
    assert not gave_up(error, since=marks.count)
    assert b"resilience." not in sent
