from __future__ import annotations

import asyncio
import importlib.util
import io
import sys
import threading
import time
import tracemalloc
from collections import Counter
from contextvars import ContextVar

import pytest
from celery.exceptions import Ignore, Retry
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from resilience import clock, signals
from resilience.calls.batches import BatchResult, batch_with_retry
from resilience.calls.deadlines import deadline_scope
from resilience.calls.retries import retry
from resilience.exceptions import OpenTransactionError

LONG = 30.0

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
workers = pytest.mark.parametrize("max_workers", [1, 4])


class SlowDownError(Exception):
    """An HTTP error as clients raise it."""

    def __init__(self, retry_after):
        super().__init__("slow down")
        self.status_code = 429
        self.response = type("Response", (), {"status_code": 429, "headers": {"Retry-After": str(retry_after)}})()


class Supplier:
    """Fails for each item as often as the plan says, and counts the calls."""

    def __init__(self, plan=(), error=ConnectionRefusedError):
        self.plan, self.error, self.calls = dict(plan), error, Counter()
        self.order = []

    def __call__(self, item):
        self.calls[item] += 1
        self.order.append(item)
        if self.calls[item] <= self.plan.get(item, 0):
            raise self.error(f"item {item}")
        return item * 10


@pytest.fixture
def slept(monkeypatch):
    """Do not wait, and tell how long one would have."""
    waits = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    return waits


@workers
def test_batch__gives_results_and_failures_in_input_order(slept, max_workers):
    """Successes keep the order of their items, and every failed item comes with its exception."""
    supplier = Supplier({3: 99, 7: 99})

    result = batch_with_retry(range(10), supplier, batch_size=4, max_retries=2, max_workers=max_workers)

    assert isinstance(result, BatchResult)
    successful, failed = result
    assert successful == [0, 10, 20, 40, 50, 60, 80, 90]
    assert [(item, type(error), str(error)) for item, error in failed] == [
        (3, ConnectionRefusedError, "item 3"),
        (7, ConnectionRefusedError, "item 7"),
    ]


@workers
def test_batch__max_retries_counts_calls_after_the_first(slept, max_workers):
    """An item that keeps failing is called max_retries + 1 times, one that recovers no more than needed."""
    supplier = Supplier({1: 99, 2: 2})

    successful, failed = batch_with_retry([0, 1, 2], supplier, max_retries=3, max_workers=max_workers)

    assert supplier.calls == {0: 1, 1: 4, 2: 3}
    assert successful == [0, 20]
    assert [item for item, _ in failed] == [1]


def test_batch__without_retries_calls_each_item_once(slept):
    """max_retries=0 never waits and never repeats."""
    supplier = Supplier({1: 99})

    batch_with_retry([0, 1], supplier, max_retries=0)

    assert supplier.calls == {0: 1, 1: 1}
    assert slept == []


def test_batch__failed_items_wait_together(slept, settings):
    """One outage costs one growing wait for each round, however many items failed."""
    settings.RESILIENCE = {"RETRY": {"delay": 0.5, "jitter": False}}
    supplier = Supplier(dict.fromkeys(range(50), 2))

    successful, failed = batch_with_retry(range(50), supplier, batch_size=50, max_retries=3)

    assert len(successful) == 50
    assert failed == []
    assert slept == [0.5, 1.0]


def test_batch__retries_before_it_reads_on(slept):
    """A batch is settled before the next one begins."""
    supplier = Supplier({1: 1})

    batch_with_retry(range(4), supplier, batch_size=2)

    assert supplier.order == [0, 1, 1, 2, 3]


def test_batch__obeys_retry_after(slept, settings):
    """The longest Retry-After of a round sets its wait; one above max_retry_after ends the item at once."""
    settings.RESILIENCE = {"RETRY": {"delay": 0, "max_retry_after": 60}}
    asked = {"a": [20], "b": [60], "c": [61]}

    def supplier(item):
        if asked[item]:
            raise SlowDownError(asked[item].pop())
        return item

    successful, failed = batch_with_retry("abc", supplier)

    assert successful == ["a", "b"]
    assert [item for item, _ in failed] == ["c"]
    assert slept == [60.0]


@pytest.mark.parametrize(
    ("error", "calls"), [(IntegrityError, 1), (AttributeError, 1), (KeyError, 1), (RuntimeError, 3), (TimeoutError, 3)]
)
def test_batch__does_not_retry_what_cannot_be_cured(slept, error, calls):
    """A permanent failure is reported after one call; an unknown one is retried, since retries were asked for."""
    supplier = Supplier({1: 99}, error=error)

    _, failed = batch_with_retry([1], supplier, max_retries=2)

    assert supplier.calls[1] == calls
    assert [item for item, _ in failed] == [1]


def test_batch__does_not_multiply_inner_retries(slept):
    """What a retry inside has given up is not tried again."""
    supplier = Supplier({1: 99})

    _, failed = batch_with_retry([1], retry(max_attempts=3)(supplier), max_retries=3)

    assert supplier.calls[1] == 3
    assert [item for item, _ in failed] == [1]


def test_batch__stops_retrying_at_the_deadline(slept, settings):
    """A wait that does not fit into the deadline around is not begun; the items are reported."""
    settings.RESILIENCE = {"RETRY": {"delay": 20, "jitter": False}}
    supplier = Supplier({1: 99})

    with deadline_scope(10):
        _, failed = batch_with_retry([1], supplier)

    assert slept == []
    assert [item for item, _ in failed] == [1]


def test_batch__a_wait_that_takes_all_that_is_left_is_not_begun(slept, settings, monkeypatch):
    """A round that would begin at the very instant of the deadline comes too late."""
    settings.RESILIENCE = {"RETRY": {"delay": 10, "jitter": False}}
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)

    with deadline_scope(10):
        batch_with_retry([1], Supplier({1: 99}))

    assert slept == []


@pytest.mark.parametrize("off", [{"ENABLED": False}, {"RETRY": {"enabled": False}}], ids=repr)
def test_batch__does_not_retry_when_retrying_is_off(slept, settings, off):
    """Switched off, every item gets one call, and failures are still reported."""
    settings.RESILIENCE = off
    supplier = Supplier({1: 99})

    result = batch_with_retry([0, 1], supplier)

    assert supplier.calls == {0: 1, 1: 1}
    assert (result.successful, [item for item, _ in result.failed]) == ([0], [1])


@workers
@pytest.mark.parametrize(
    "error", [Retry(), Ignore(), SystemExit(1), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
def test_batch__control_flow_ends_it_at_once(slept, max_workers, error):
    """Cancellation, shutdown and Celery's own exceptions come out as they are, after one call."""
    calls = []

    def supplier(item):
        calls.append(item)
        raise error

    with pytest.raises(type(error)) as caught:
        batch_with_retry([1], supplier, max_workers=max_workers)

    assert caught.value is error
    assert calls == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("resilience-batch")]


def test_batch__control_flow_drops_what_has_not_begun(slept):
    """After a shutdown request, items that no thread has begun are left alone."""
    begun = []

    def supplier(item):
        begun.append(item)
        time.sleep(0.001)  # as any real work would, it lets the caller's thread run
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        batch_with_retry(range(1000), supplier, batch_size=1000, max_workers=2)

    assert len(begun) < 1000


def test_batch__reads_generators_one_batch_at_a_time():
    """A generator is read batch by batch, and its items are not kept."""
    read, most_ahead, done = [0], [0], [0]

    def numbers():
        for _ in range(1000):
            read[0] += 1
            most_ahead[0] = max(most_ahead[0], read[0] - done[0])
            yield bytes(20_000)

    def measure(item):
        done[0] += 1
        return len(item)

    tracemalloc.start()
    successful, _ = batch_with_retry(numbers(), measure, batch_size=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(successful) == 1000
    assert most_ahead[0] <= 10
    assert peak < 3_000_000


def test_batch__workers_run_at_once():
    """Four workers have four items in hand together."""
    meeting = threading.Barrier(4, timeout=LONG)

    successful, failed = batch_with_retry(range(4), lambda _: meeting.wait() >= 0, max_workers=4)

    assert (successful, failed) == ([True] * 4, [])


def test_batch__workers_keep_context_variables():
    """Code in a worker sees the caller's context variables; what it sets stays its own."""

    def supplier(item):
        seen = tenant.get()
        tenant.set(f"item {item}")
        return seen

    token = tenant.set("red")
    try:
        successful, _ = batch_with_retry(range(20), supplier, max_workers=3)
        after = tenant.get()
    finally:
        tenant.reset(token)

    assert successful == ["red"] * 20
    assert after == "red"


@pytest.mark.django_db(transaction=True)
def test_batch__workers_close_their_database_connections():
    """Every worker closes the connections it opened, once, when all is done."""
    closed, lock = [], threading.Lock()

    def query(item):
        connection.ensure_connection()
        raw, name = connection.connection, threading.current_thread().name

        def close():
            with lock:
                closed.append(name)
            raw.close()

        # Django never closes SQLite's in-memory databases, so the driver's own close stands in.
        connection.close = close
        return name

    names, _ = batch_with_retry(range(40), query, batch_size=10, max_workers=3)

    assert sorted(closed) == sorted(set(names))


def test_batch__leaves_no_worker_behind_when_there_are_no_more_threads(monkeypatch):
    """A process that may have no more threads raises, and those that began do not wait for jobs for ever."""
    start, started = threading.Thread.start, []

    def start_two(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        batch_with_retry([1, 2, 3], str, max_workers=3)

    assert [thread.is_alive() for thread in started] == [False, False]


@pytest.mark.django_db(transaction=True)
def test_batch__workers_are_refused_inside_a_transaction():
    """Threads would leave the caller's transaction; one worker stays inside and is fine."""
    with transaction.atomic():
        with pytest.raises(OpenTransactionError, match="max_workers above 1 must not be used inside a transaction"):
            batch_with_retry([1], int, max_workers=2)
        result = batch_with_retry([1], lambda _: connection.in_atomic_block)

    assert result == ([True], [])


@workers
def test_batch__progress_is_called_once_for_each_item(slept, max_workers):
    """`progress` counts items that are done for good, in the caller's thread, up to the total."""
    seen, threads = [], set()

    def progress(done, total):
        seen.append((done, total))
        threads.add(threading.current_thread())

    batch_with_retry(range(5), Supplier({1: 1, 2: 99}), batch_size=2, max_workers=max_workers, progress=progress)

    assert seen == [(number, 5) for number in range(1, 6)]
    assert threads == {threading.current_thread()}


def test_batch__progress_of_a_generator_has_no_total():
    """What has no length has no total."""
    seen = []

    batch_with_retry(iter([1, 2]), int, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, None), (2, None)]


def test_batch__broken_progress_spoils_nothing(caplog):
    """A progress function that raises is logged once, and the work goes on."""

    def progress(done, total):
        raise RuntimeError("no terminal")

    successful, _ = batch_with_retry(range(5), int, progress=progress)

    assert successful == [0, 1, 2, 3, 4]
    told = "The progress function failed and is not called again. RuntimeError: no terminal"
    assert [record.message.splitlines()[0] for record in caplog.records] == [told]


@pytest.mark.parametrize("with_rich", [True, False])
def test_batch__progress_true_draws_a_bar_on_stderr(capsys, monkeypatch, with_rich):
    """A bar needs nothing installed; with Rich it is Rich's. Standard output stays clean."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if with_rich or name != "rich" else None)

    batch_with_retry(range(4), int, progress=True)

    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err if with_rich else err == "int: 4/4 (100 %)\n"


def test_batch__text_bar_rewrites_its_line_on_a_terminal(monkeypatch):
    """On a terminal the line is rewritten at most ten times a second and ended in the end."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    times = iter(range(100))
    monkeypatch.setattr(clock, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    batch_with_retry(iter("123"), int, progress=True)

    assert terminal.getvalue() == "int: 1\rint: 2\rint: 3\rint: 3\n"


def test_batch__tells_what_it_did(slept):
    """`batch_finished` carries the counts, `retry_scheduled` each retry."""
    finished, scheduled = [], []

    def on_finished(sender, **arguments):
        finished.append((sender, arguments["name"], arguments["successful"], arguments["failed"]))

    def on_scheduled(sender, **arguments):
        scheduled.append((arguments["attempt"], str(arguments["exception"])))

    signals.batch_finished.connect(on_finished)
    signals.retry_scheduled.connect(on_scheduled)
    supplier = Supplier({1: 2, 2: 99})

    batch_with_retry(range(4), supplier, max_retries=2)

    signals.batch_finished.disconnect(on_finished)
    signals.retry_scheduled.disconnect(on_scheduled)
    assert finished == [(supplier, "Supplier", 3, 1)]
    assert scheduled == [(1, "item 1"), (1, "item 2"), (2, "item 1"), (2, "item 2")]


def test_batch__nothing_to_do():
    """No items give two empty lists."""
    assert batch_with_retry([], int) == ([], [])


def test_batch__refuses_coroutine_functions():
    """A coroutine function, visible or hidden in a lambda, is refused and no coroutine is left behind."""

    async def fetch(item):
        return item

    def hidden(item):
        return fetch(item)

    for func in (fetch, hidden):
        with pytest.raises(TypeError, match=r"^process_func must be a plain function, not .*gives a coroutine\. Run coroutines"):
            batch_with_retry([1], func)
    with pytest.raises(TypeError, match=r"^process_func must be a plain function"):
        batch_with_retry([], fetch)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("max_retries", -1),
        ("max_retries", True),
        ("max_workers", 0),
        ("max_workers", "2"),
    ],
)
def test_batch__refuses_wrong_numbers_before_it_begins(field, value):
    """A wrong number fails before any item is touched."""
    calls = []

    with pytest.raises((TypeError, ValueError), match=rf"^{field} must be a whole number of [01] or more, not "):
        batch_with_retry([1], calls.append, **{field: value})
    assert calls == []


def test_batch__refuses_a_wrong_progress_and_non_functions():
    """Wrong types fail before any item is touched."""
    with pytest.raises(TypeError, match=r"^progress must be a function \(done, total\)"):
        batch_with_retry([1], int, progress="yes")
    with pytest.raises(TypeError, match=r"^batch_with_retry must "):
        batch_with_retry([1], None)


@given(
    plan=st.lists(st.integers(0, 4), max_size=30),
    batch_size=st.integers(1, 10),
    max_retries=st.integers(0, 3),
    max_workers=st.sampled_from([1, 3]),
)
def test_batch__matches_a_simple_model(plan, batch_size, max_retries, max_workers):
    """Whatever fails how often: order, counts and calls are those of a plain loop."""
    supplier = Supplier(enumerate(plan))
    real, clock.sleep = clock.sleep, lambda seconds: None
    try:
        successful, failed = batch_with_retry(iter(range(len(plan))), supplier, batch_size, max_retries, max_workers=max_workers)
    finally:
        clock.sleep = real

    assert successful == [item * 10 for item, failures in enumerate(plan) if failures <= max_retries]
    assert [item for item, _ in failed] == [item for item, failures in enumerate(plan) if failures > max_retries]
    assert all(supplier.calls[item] == min(failures, max_retries) + 1 for item, failures in enumerate(plan))


class ClientGoneError(Exception):
    """What a client library raises for HTTP 499."""

    status_code = 499


def test_batch__goes_on_after_an_answer_that_speaks_of_a_cancellation(slept):
    """One item's HTTP 499 fails that item, once; the others get their chance."""
    supplier = Supplier({2: 99}, error=ClientGoneError)

    successful, failed = batch_with_retry(range(4), supplier)

    assert successful == [0, 10, 30]
    assert [(item, type(error)) for item, error in failed] == [(2, ClientGoneError)]
    assert supplier.calls[2] == 1


def test_batch__tries_an_item_three_more_times_and_reads_a_hundred_at_once(slept):
    """What is left out is as the documentation says."""
    supplier, read = Supplier({250: 9}), []

    def items():
        for item in range(251):
            read.append((item, len(supplier.order)))
            yield item

    _, failed = batch_with_retry(items(), supplier)

    assert supplier.calls[250] == 4
    assert [item for item, _ in failed] == [250]
    assert [called for item, called in read if item in {99, 100, 200}] == [0, 100, 200]
