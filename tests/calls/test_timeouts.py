from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from resilience import clock, signals
from resilience.calls import threads
from resilience.calls.deadlines import deadline_scope
from resilience.calls.timeouts import (
    TimeoutConfig,
    acall_with_timeout,
    async_timeout,
    call_with_timeout,
    remaining,
    timeout,
)
from resilience.exceptions import OpenTransactionError, OperationTimeoutError, ResilienceError

ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0
SHORT = 0.05

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class SlowSupplierError(Exception):
    pass


class InnerTimeoutError(TimeoutError):
    """Not from a limit of ours; and one that a weak reference can be made to."""


def in_thread(func, *args, **kwargs):
    """Run `func` in a thread that is not the main one and give back what it returns or raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(func, *args, **kwargs).result(LONG)


def in_main(func, *args, **kwargs):
    return func(*args, **kwargs)


anywhere = pytest.mark.parametrize("where", [in_main, in_thread], ids=["main thread", "other thread"])


@pytest.fixture
def expired():
    """Collect what `timeout_expired` tells."""
    events = []

    def receive(sender, **arguments):
        arguments.pop("signal")
        events.append(arguments)

    signals.timeout_expired.connect(receive)
    yield events
    signals.timeout_expired.disconnect(receive)


@anywhere
def test_timeout__cuts_off_a_slow_call(where):
    """A call that takes longer ends with OperationTimeoutError near its limit, wherever it runs."""
    gate = threading.Event()

    @timeout(SHORT)
    def slow():
        gate.wait(LONG)

    started = time.monotonic()
    with pytest.raises(OperationTimeoutError, match=r"slow took longer than 0\.05 s\.") as caught:
        where(slow)
    gate.set()

    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ResilienceError)
    assert caught.value.seconds == SHORT
    assert time.monotonic() - started < LONG / 2


async def test_timeout__cuts_off_a_slow_coroutine():
    """On an async def the limit cancels the body, whose cleanup runs."""
    cleaned = []

    @timeout(SHORT)
    async def slow():
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaned.append(True)

    with pytest.raises(OperationTimeoutError, match=r"slow took longer than 0\.05 s\.") as caught:
        await slow()

    assert inspect.iscoroutinefunction(slow)
    assert caught.value.seconds == SHORT
    assert cleaned == [True]


@anywhere
def test_timeout__leaves_a_fast_call_alone(where, expired):
    """Result, arguments, name and documentation are the function's own, and nothing is told."""

    @timeout(LONG)
    def add(a, *, b=1):
        """Add."""
        return a + b

    assert where(add, 1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert expired == []


@anywhere
def test_timeout__passes_the_functions_own_error_on(where):
    """An error of the function, a TimeoutError included, is the same object outside."""
    error = TimeoutError("the socket's own")

    @timeout(LONG)
    def fails():
        raise error

    with pytest.raises(TimeoutError) as caught:
        where(fails)

    assert caught.value is error


async def test_timeout__an_inner_timeout_error_is_not_ours():
    """A TimeoutError raised inside an async body passes unchanged, even when the limit has expired meanwhile."""
    early, late = TimeoutError("early"), TimeoutError("late")

    @timeout(LONG)
    async def fails():
        raise early

    @timeout(SHORT)
    async def fails_when_cancelled():
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            raise late from None

    with pytest.raises(TimeoutError) as first:
        await fails()
    with pytest.raises(TimeoutError) as second:
        await fails_when_cancelled()

    assert first.value is early
    assert second.value is late


async def test_timeout__the_callers_cancellation_stays_a_cancellation(expired):
    """Cancelled from outside, the call ends with CancelledError and no timeout is told."""

    @timeout(LONG)
    async def slow():
        await asyncio.sleep(LONG)

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert expired == []


async def test_timeout__a_body_that_swallows_its_cancellation_keeps_its_result():
    """As documented: an async body that catches CancelledError and returns is not overruled."""

    @timeout(SHORT)
    async def stubborn():
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            return "partial"

    assert await stubborn() == "partial"


async def test_timeout__nested_coroutines_blame_the_limit_that_was_exceeded():
    """The inner limit raises the inner error, the outer limit the outer one."""

    def nested(outer, inner):
        @timeout(outer, operation="outer")
        @timeout(inner, operation="inner")
        async def slow():
            await asyncio.sleep(LONG)

        return slow()

    with pytest.raises(OperationTimeoutError, match="inner took longer"):
        await nested(LONG, SHORT)
    with pytest.raises(OperationTimeoutError, match="outer took longer"):
        await nested(SHORT, LONG)


@anywhere
def test_timeout__nested_calls_blame_the_limit_that_was_exceeded(where):
    """The inner limit raises the inner error, the outer limit the outer one, in every thread."""

    def nested(outer, inner):
        @timeout(outer, operation="outer")
        @timeout(inner, operation="inner")
        def slow():
            time.sleep(0.6)

        return slow

    with pytest.raises(OperationTimeoutError, match="inner took longer"):
        where(nested(LONG, SHORT))
    with pytest.raises(OperationTimeoutError, match="outer took longer"):
        where(nested(SHORT, LONG))


def test_timeout__an_inner_alarm_does_not_silence_the_outer_one():
    """After inner limits came and went, the outer one still rings on time."""

    @timeout(LONG)
    def inner():
        return None

    @timeout(0.2, operation="outer")
    def outer():
        inner()
        with contextlib.suppress(OperationTimeoutError):
            timeout(SHORT)(time.sleep)(LONG)
        time.sleep(LONG)

    started = time.monotonic()
    with pytest.raises(OperationTimeoutError, match="outer took longer"):
        outer()

    assert time.monotonic() - started < LONG / 2


def test_timeout__a_foreign_alarm_keeps_its_time_and_handler():
    """An alarm that was pending before rings at its own time, during and after our limits."""
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    pending = signal.setitimer(signal.ITIMER_REAL, 0.1)
    started = time.monotonic()
    try:
        timeout(LONG)(time.sleep)(0.2)
        during = len(rung)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with contextlib.suppress(OperationTimeoutError):
            timeout(SHORT)(time.sleep)(LONG)
        before = len(rung)
        time.sleep(0.3)
        after = len(rung)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *pending)

    assert (during, before, after) == (1, 1, 2)
    assert 0.09 < rung[0] - started < LONG


def test_timeout__a_repeating_foreign_timer_goes_on_ticking():
    """The interval of a timer that was there before survives, ticking during and after our limit."""
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    pending = signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        timeout(LONG)(time.sleep)(0.2)
        during = len(rung)
        time.sleep(0.2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *pending)

    assert during >= 2
    assert len(rung) > during


def test_timeout__leaves_no_handler_and_no_timer_behind():
    """After a call, successful, failed or cut off, signal handler and timer are what they were."""
    pending = signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.getsignal(signal.SIGALRM)

    timeout(LONG)(int)("1")
    with contextlib.suppress(ValueError):
        timeout(LONG)(int)("one")
    with contextlib.suppress(OperationTimeoutError):
        timeout(SHORT)(time.sleep)(LONG)

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler
    signal.setitimer(signal.ITIMER_REAL, *pending)


def test_timeout__except_exception_in_the_body_does_not_swallow_it():
    """In the main thread the limit gets past `except Exception`, and finally blocks run."""
    cleaned = []

    @timeout(SHORT)
    def stubborn():
        try:
            time.sleep(LONG)
        except Exception:
            return "swallowed"
        finally:
            cleaned.append(True)

    with pytest.raises(OperationTimeoutError):
        stubborn()
    assert cleaned == [True]


def test_timeout__traceback_shows_where_the_call_was_stuck():
    """The traceback of the timeout in the main thread ends in the line that was running."""

    def the_slow_place():
        time.sleep(LONG)

    with pytest.raises(OperationTimeoutError) as caught:
        timeout(SHORT)(the_slow_place)()

    assert "the_slow_place" in [entry.name for entry in caught.traceback]


STORM = """
import contextlib, signal, time
from resilience.calls.timeouts import timeout
from resilience.exceptions import OperationTimeoutError

def spin(until):
    while time.monotonic() < until:
        with contextlib.suppress(OperationTimeoutError):
            timeout(0.0002, operation="inner")(sum)(range(3000))

outcomes = set()
for number in range(150):
    try:
        timeout(0.0005 + number * 0.00001, operation="outer")(spin)(time.monotonic() + 0.002)
        outcomes.add("finished")
    except OperationTimeoutError as error:
        outcomes.add(str(error).split()[0])
print(*sorted(outcomes), *signal.getitimer(signal.ITIMER_REAL))
"""


def test_timeout__storm_of_nested_alarms_never_leaks_one():
    """Hundreds of limits that ring at awkward instants leave neither a timer nor an unclaimed alarm."""
    # A process of its own: an alarm may strike inside a tracer's lock, which the tracer then never frees.
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", STORM], capture_output=True, text=True, timeout=LONG * 4, check=False, env=environ, cwd=ROOT
    )

    *outcomes, delay, interval = done.stdout.split() or [done.stderr, "", ""]
    assert "outer" in outcomes
    assert set(outcomes) <= {"outer", "finished"}
    assert (float(delay), float(interval)) == (0, 0)


@pytest.mark.parametrize(
    ("given_exception", "expected"),
    [
        (SlowSupplierError, "work took longer than 0.05 s."),
        (lambda message: SlowSupplierError(f"made: {message}"), "made: work took longer than 0.05 s."),
    ],
    ids=["class", "function"],
)
def test_timeout__raises_the_exception_that_was_asked_for(given_exception, expected):
    """`exception` may be a class, or a function that makes an instance from the message."""
    with pytest.raises(SlowSupplierError) as caught:
        timeout(SHORT, exception=given_exception, operation="work")(time.sleep)(LONG)

    assert str(caught.value) == expected


async def test_timeout__message_and_operation(expired):
    """`message` replaces the text; `operation` names the call in the text and in the signal."""
    config = TimeoutConfig(SHORT, message="Too slow.", operation="the report")

    with pytest.raises(OperationTimeoutError, match=r"^Too slow\.$"):
        await timeout(config)(asyncio.sleep)(LONG)

    assert expired == [{"name": "the report", "seconds": SHORT}]


@anywhere
def test_timeout__is_off_when_resilience_is_disabled(where, settings):
    """ENABLED False calls straight through."""
    settings.RESILIENCE = {"ENABLED": False}

    assert where(timeout(0.001)(lambda: time.sleep(0.05) or "done")) == "done"


async def test_async_timeout__is_off_when_resilience_is_disabled(settings):
    """ENABLED False awaits straight through."""
    settings.RESILIENCE = {"ENABLED": False}

    assert await timeout(0.001)(asyncio.sleep)(0.05, "done") == "done"


async def test_async_timeout__limits_a_function_that_returns_an_awaitable():
    """`async_timeout` forces the async form where detection sees a plain function."""
    limited = async_timeout(SHORT)(lambda: asyncio.sleep(LONG))

    with pytest.raises(OperationTimeoutError):
        await limited()


async def test_timeout__sees_through_partials_and_callable_objects():
    """Partials of coroutine functions and objects with an async __call__ get the async form."""

    class Client:
        async def __call__(self):
            await asyncio.sleep(LONG)

    for func in (functools.partial(asyncio.sleep, LONG), Client()):
        with pytest.raises(OperationTimeoutError):
            await timeout(SHORT)(func)()


def test_timeout__works_on_methods():
    """A decorated method gets its instance."""

    class Shop:
        @timeout(LONG)
        def me(self):
            return self

    shop = Shop()

    assert shop.me() is shop


def test_timeout__thread_keeps_context_variables_both_ways():
    """Code in the worker thread sees the caller's context variables, and the caller sees what it set."""

    @timeout(LONG)
    def switch():
        before = tenant.get()
        tenant.set("blue")
        return before, threading.current_thread()

    def caller():
        tenant.set("red")
        seen, thread = switch()
        return seen, tenant.get(), thread is threading.current_thread()

    assert in_thread(caller) == ("red", "blue", False)


@anywhere
def test_timeout__with_no_time_left_calls_nothing(where, monkeypatch):
    """At the very instant of the deadline the time is over: a timer of 0 seconds would never ring."""
    calls = []
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)

    def late():
        with deadline_scope(0):
            call_with_timeout(TimeoutConfig(LONG), calls.append, 1)

    with pytest.raises(OperationTimeoutError):
        where(late)
    assert calls == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("x")], ids=repr)
def test_timeout__thread_hands_every_exception_to_the_caller(error):
    """SystemExit and KeyboardInterrupt raised in the worker thread reach the caller too."""

    def fails():
        raise error

    def caller():
        try:
            timeout(LONG)(fails)()
        except BaseException as caught:
            return caught

    assert in_thread(caller) is error


def test_timeout__abandoned_thread_is_a_daemon_that_ends_with_its_function():
    """As documented: the worker thread goes on until its function returns, and does not hold up the process's exit."""
    gate, seen = threading.Event(), []

    @timeout(SHORT)
    def slow():
        seen.append(threading.current_thread())
        gate.wait(LONG)

    with pytest.raises(OperationTimeoutError):
        in_thread(slow)

    assert seen[0].is_alive()
    assert seen[0].daemon
    gate.set()
    seen[0].join(LONG)
    assert not seen[0].is_alive()


@pytest.mark.django_db(transaction=True)
def test_timeout__thread_is_refused_inside_a_transaction():
    """Moving to another thread would leave the transaction, so it is refused with what to do, and the function is not called."""
    calls = []

    def caller():
        try:
            with transaction.atomic():
                timeout(LONG)(calls.append)(1)
        finally:
            connection.connection.close()  # Django never closes SQLite's in-memory databases

    with pytest.raises(
        OpenTransactionError, match=r"must not be used inside a transaction of the database 'default'.*Call it before"
    ) as caught:
        in_thread(caller)

    assert isinstance(caught.value, RuntimeError)
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_timeout__is_allowed_inside_a_transaction_in_the_main_thread():
    """An alarm stays in its thread, so the body is still inside the caller's transaction."""
    with transaction.atomic():
        inside = timeout(LONG)(lambda: connection.in_atomic_block)()

    assert inside is True


@pytest.mark.django_db(transaction=True)
def test_timeout__thread_closes_its_database_connections():
    """Connections that the worker thread opened are closed when the call has returned."""
    opened = []

    @timeout(LONG)
    def query():
        connection.ensure_connection()
        closed = []
        opened.append(closed)
        # Django never closes SQLite's in-memory databases, so the driver's own close stands in.
        connection.close = lambda: (closed.append(True), connection.connection.close())
        return connection.alias

    alias = in_thread(query)

    assert alias == "default"
    assert opened == [[True]]


def test_remaining__counts_down_in_the_nearest_deadline():
    """Of nested deadlines the nearest counts; outside there is none."""
    with deadline_scope(10):
        with deadline_scope(5):
            inner = remaining()
            with deadline_scope(60):
                innermost = remaining()
        outer = remaining()

    assert remaining() is None
    assert 4 < innermost <= inner <= 5
    assert 9 < outer <= 10


@anywhere
def test_remaining__is_set_by_timeout(where):
    """Inside a limited call, remaining() tells what is left of it; outside, nothing."""
    inside = where(timeout(LONG)(remaining))

    assert LONG - 5 < inside <= LONG
    assert remaining() is None


async def test_remaining__is_set_by_async_timeout():
    """Inside a limited coroutine, remaining() tells what is left of it; outside, nothing."""

    @timeout(LONG)
    async def ask():
        await asyncio.sleep(0)
        return remaining()

    assert LONG - 5 < await ask() <= LONG
    assert remaining() is None


def test_remaining__is_never_negative():
    """A deadline that is over leaves 0 seconds."""
    with deadline_scope(0):
        time.sleep(0.001)

        assert remaining() == 0.0


@anywhere
def test_timeout__is_cut_to_what_is_left_of_a_deadline(where):
    """Inside a deadline that interrupts nothing by itself, the limit is the smaller of the two."""

    def caller():
        with deadline_scope(SHORT):
            timeout(LONG, operation="work")(time.sleep)(0.6)

    with pytest.raises(
        OperationTimeoutError, match=r"work took longer than 0\.0\d+ s, all that was left of the 30 s it may take\."
    ) as caught:
        where(caller)

    assert 0 < caught.value.seconds <= SHORT


async def test_async_timeout__is_cut_to_what_is_left_of_a_deadline():
    """The async form draws on the same deadline."""
    with deadline_scope(SHORT), pytest.raises(OperationTimeoutError, match="all that was left"):
        await timeout(LONG)(asyncio.sleep)(LONG)


async def test_timeout__does_not_call_when_the_deadline_is_over():
    """With nothing left the function is not called at all."""
    calls = []

    with deadline_scope(0):
        with pytest.raises(OperationTimeoutError):
            call_with_timeout(TimeoutConfig(LONG), calls.append, 1)
        with pytest.raises(OperationTimeoutError):
            await acall_with_timeout(TimeoutConfig(LONG), asyncio.sleep, 0)

    assert calls == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "5", None, timedelta(0)], ids=repr)
@pytest.mark.parametrize("decorator", [timeout, async_timeout, TimeoutConfig])
def test_timeout__refuses_a_wrong_limit_when_it_is_written_down(decorator, seconds):
    """A limit that is no positive, finite number of seconds fails at decoration."""
    with pytest.raises(
        (TypeError, ValueError), match=r"^seconds must be a number of seconds above 0, not .*\. Leave the timeout out"
    ):
        decorator(seconds)


def test_timeout__takes_a_timedelta():
    """A timedelta is a limit too."""
    assert TimeoutConfig(timedelta(minutes=1)).seconds == 60.0


@pytest.mark.parametrize("exception", [ValueError("x"), KeyboardInterrupt, "boom"], ids=repr)
def test_timeout__refuses_a_wrong_exception(exception):
    """What is neither an Exception class nor a function fails at decoration."""
    with pytest.raises(TypeError, match=r"^exception must be an exception class or a function"):
        timeout(1, exception=exception)


def test_timeout__refuses_generators_and_non_functions():
    """Generator functions, whose body runs after the call, and non-callables fail at decoration."""

    def numbers():
        yield 1

    async def anumbers():
        yield 1

    for func in (numbers, anumbers, functools.partial(numbers)):
        with pytest.raises(TypeError, match="timeout must decorate a function that returns its result, not the generator"):
            timeout(1)(func)
    with pytest.raises(TypeError, match="timeout must decorate a function, not 5"):
        timeout(1)(5)


def test_timeout__refuses_a_config_together_with_fields():
    """Saying it twice is refused instead of guessed."""
    with pytest.raises(TypeError, match="either a TimeoutConfig or keyword arguments"):
        timeout(TimeoutConfig(1), message="x")


@given(outer=st.floats(0.001, 100), inner=st.floats(0.001, 100))
def test_deadline_scope__only_ever_brings_the_deadline_nearer(outer, inner):
    """Whatever is nested, what is left never exceeds either limit."""
    with deadline_scope(outer), deadline_scope(inner):
        assert remaining() <= min(outer, inner)


def test_close_connections__goes_on_after_one_that_cannot_be_closed(caplog, monkeypatch):
    """A thread's result is worth more than a tidy goodbye: what fails is told, and the others are closed."""
    closed = []

    class Connection:
        def __init__(self, alias):
            self.alias = alias

        def close(self):
            if self.alias == "broken":
                raise OSError("gone")
            closed.append(self.alias)

    monkeypatch.setattr(threads, "_connections", lambda: [Connection("broken"), Connection("sound")])

    threads.close_connections()

    assert closed == ["sound"]
    assert "Closing the database connection 'broken' of a worker thread failed" in caplog.text


async def test_async_timeout__an_error_from_inside_is_freed_at_once():
    """The error is not kept, with all its frames, until the garbage collector comes round: an outage has many."""
    left = []

    @timeout(LONG)
    async def fetch():
        error = InnerTimeoutError()
        left.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.disable()
    try:
        with contextlib.suppress(TimeoutError):
            await fetch()
        assert left[0]() is None
    finally:
        gc.enable()


def test_timeout__a_deadline_left_open_in_a_worker_thread_stays_there():
    """Context variables come back from the thread as if the function had run here; a deadline of its own does not."""

    def call():
        scope = deadline_scope(5)
        return scope.__enter__(), tenant.set("inside")

    def caller():
        with deadline_scope(LONG / 2):
            timeout(LONG)(call)()
            return remaining() > 5, tenant.get()

    assert in_thread(caller) == (True, "inside")
