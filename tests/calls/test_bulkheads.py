from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from resilience import signals
from resilience.calls import bulkheads
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.deadlines import deadline_scope
from resilience.exceptions import BulkheadFullError

LONG = 30.0


class Gauge:
    """Count the calls, and how many of them ran at once."""

    def __init__(self):
        self.lock, self.now, self.peak, self.calls = threading.Lock(), 0, 0, 0

    def __enter__(self):
        with self.lock:
            self.now += 1
            self.calls += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *exc_info):
        with self.lock:
            self.now -= 1


def until(condition):
    """Wait until `condition()` holds, or fail."""
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


async def auntil(condition):
    """Let other tasks run until `condition()` holds, or fail."""
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0)


@pytest.fixture
def rejected():
    """Collect what `bulkhead_rejected` tells."""
    events = []

    def receive(sender, **arguments):
        events.append((sender, arguments["name"], arguments["max_concurrent"]))

    signals.bulkhead_rejected.connect(receive)
    yield events
    signals.bulkhead_rejected.disconnect(receive)


def test_bulkhead__waits_only_where_it_was_told_to():
    """Nobody queues who did not ask for it."""
    assert Bulkhead("reports", 1).max_wait == 0


def test_bulkhead__refuses_the_call_that_is_too_many(rejected):
    """With every place taken the next call is refused at once, and not run."""
    bulkhead, calls = Bulkhead("reports", 2), []

    with bulkhead, bulkhead:
        with pytest.raises(BulkheadFullError, match="'reports' is full: 2 calls are running") as caught:
            bulkhead.call(calls.append, 1)
        running = bulkhead.running

    assert (caught.value.name, caught.value.max_concurrent) == ("reports", 2)
    assert (calls, running, bulkhead.running) == ([], 2, 0)
    assert rejected == [(Bulkhead, "reports", 2)]


async def test_bulkhead__refuses_tasks_too(rejected):
    """async with and acall refuse like their plain twins, and share their count."""
    bulkhead = Bulkhead("reports", 2)

    async with bulkhead:
        with bulkhead, pytest.raises(BulkheadFullError):
            await bulkhead.acall(asyncio.sleep, 0)
        assert await bulkhead.acall(asyncio.sleep, 0, "slept") == "slept"

    assert bulkhead.running == 0


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=repr)
def test_bulkhead__gives_the_place_back_after_a_failure(error):
    """However a call ends, its place is free again and its error is its own."""
    bulkhead = Bulkhead("reports", 1)

    def fails():
        raise error

    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            bulkhead.call(fails)
        assert caught.value is error
    assert bulkhead.running == 0


async def test_bulkhead__gives_the_place_back_after_a_cancellation():
    """A cancelled call frees its place."""
    bulkhead = Bulkhead("reports", 1)
    task = asyncio.create_task(bulkhead.acall(asyncio.sleep, LONG))
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert bulkhead.running == 0


def test_bulkhead__decorates_functions_and_coroutine_functions():
    """As a decorator it keeps name and kind."""
    bulkhead = Bulkhead("reports", 1)

    @bulkhead
    def plain(a):
        return a, bulkhead.running

    @bulkhead
    async def coroutine(a):
        return a, bulkhead.running

    assert plain(1) == (1, 1)
    assert asyncio.run(coroutine(2)) == (2, 1)
    assert (plain.__name__, inspect.iscoroutinefunction(coroutine)) == ("plain", True)
    assert bulkhead.running == 0


def test_bulkhead__waits_for_a_place():
    """With max_wait a call waits until one before it ends."""
    bulkhead, gate = Bulkhead("reports", 1, max_wait=LONG), threading.Event()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bulkhead.call, gate.wait, LONG)
        until(lambda: bulkhead.running == 1)
        second = pool.submit(bulkhead.call, lambda: bulkhead.running)
        until(lambda: bulkhead.waiting == 1)
        gate.set()

        assert first.result(LONG) is True
        assert second.result(LONG) == 1
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


def test_bulkhead__refuses_after_waiting_in_vain():
    """When max_wait is over without a free place, the call is refused and leaves the queue."""
    bulkhead = Bulkhead("reports", 1, max_wait=0.05)

    with bulkhead:
        started = time.monotonic()
        with pytest.raises(BulkheadFullError):
            bulkhead.call(int)
        waited = time.monotonic() - started

    assert waited >= 0.04
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_bulkhead__task_refused_after_waiting_in_vain():
    """A waiting task is refused and leaves the queue as well."""
    bulkhead = Bulkhead("reports", 1, max_wait=0.02)

    async with bulkhead:
        with pytest.raises(BulkheadFullError):
            await bulkhead.acall(asyncio.sleep, 0)

    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


def test_bulkhead__never_waits_beyond_the_deadline():
    """A deadline around the call shortens the wait."""
    bulkhead = Bulkhead("reports", 1, max_wait=LONG)

    started = time.monotonic()
    with bulkhead, deadline_scope(0.05), pytest.raises(BulkheadFullError):
        bulkhead.call(int)

    assert time.monotonic() - started < LONG / 2


async def test_bulkhead__serves_waiting_tasks_in_the_order_they_came():
    """First come, first served."""
    bulkhead, served = Bulkhead("reports", 1, max_wait=LONG), []

    async def work(number):
        served.append(number)
        await asyncio.sleep(0)

    tasks = [asyncio.create_task(bulkhead.acall(work, number)) for number in range(5)]
    await asyncio.gather(*tasks)

    assert served == [0, 1, 2, 3, 4]
    assert bulkhead.running == 0


async def test_bulkhead__cancelled_waiter_leaves_the_queue():
    """A task cancelled while waiting takes no place and holds nobody up."""
    bulkhead = Bulkhead("reports", 1, max_wait=LONG)
    async with bulkhead:
        waiter = asyncio.create_task(bulkhead.acall(asyncio.sleep, 0))
        follower = asyncio.create_task(bulkhead.acall(asyncio.sleep, 0, "served"))
        await auntil(lambda: bulkhead.waiting == 2)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        waiting = bulkhead.waiting

    assert waiting == 1
    assert await follower == "served"
    assert bulkhead.running == 0


async def test_bulkhead__waiter_cancelled_while_being_served_passes_its_place_on():
    """A place granted in the instant of the cancellation is not lost."""
    bulkhead = Bulkhead("reports", 1, max_wait=LONG)
    await bulkhead.__aenter__()
    waiter = asyncio.create_task(bulkhead.acall(asyncio.sleep, 0))
    await auntil(lambda: bulkhead.waiting == 1)

    await bulkhead.__aexit__()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert (bulkhead.running, bulkhead.waiting) == (0, 0)
    assert bulkhead.call(int, "1") == 1


def test_bulkhead__interrupted_waiter_leaves_the_queue(monkeypatch):
    """A thread interrupted while waiting takes no place with it, also one that was granted in that instant."""
    bulkhead = Bulkhead("reports", 1, max_wait=LONG)

    def interrupted(waiter, seconds):
        raise KeyboardInterrupt

    def granted_and_interrupted(waiter, seconds):
        bulkhead.__exit__()
        raise KeyboardInterrupt

    for wait in (interrupted, granted_and_interrupted):
        monkeypatch.setattr("resilience.calls.bulkheads._ThreadWaiter.wait", wait)
        bulkhead.__enter__()
        with pytest.raises(KeyboardInterrupt):
            bulkhead.call(int)
        left = (bulkhead.running, bulkhead.waiting)
        if wait is interrupted:
            bulkhead.__exit__()
            assert left == (1, 0)

    assert left == (0, 0)


def test_bulkhead__passes_over_waiters_of_a_closed_loop():
    """A task whose event loop is gone cannot take a place with it."""
    bulkhead = Bulkhead("reports", 1, max_wait=LONG)
    loop = asyncio.new_event_loop()
    bulkhead.__enter__()
    waiter = loop.create_task(bulkhead.acall(asyncio.sleep, 0))
    loop.run_until_complete(auntil(lambda: bulkhead.waiting == 1))
    loop.close()

    bulkhead.__exit__()

    assert (bulkhead.running, bulkhead.waiting) == (0, 0)
    waiter._log_destroy_pending = False
    waiter.get_coro().close()


def test_bulkhead__threads_and_loops_share_the_places():
    """Under load from threads and event loops the limit holds, everyone is served, and nothing is left over."""
    bulkhead = Bulkhead("reports", 3, max_wait=LONG)
    gauge = Gauge()

    def work():
        with gauge:
            time.sleep(0.001)

    async def awork():
        with gauge:
            await asyncio.sleep(0.001)

    async def many():
        await asyncio.gather(*(bulkhead.acall(awork) for _ in range(40)))

    def thread():
        for _ in range(20):
            bulkhead.call(work)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    threads += [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(2)]
    for started in threads:
        started.start()
    for started in threads:
        started.join(LONG)

    assert (gauge.peak, gauge.calls) == (3, 160)
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


def test_bulkhead__holds_no_lock_during_the_call():
    """While a call runs, another one enters and leaves."""
    bulkhead = Bulkhead("reports", 2)

    with bulkhead, ThreadPoolExecutor(1) as pool:
        assert pool.submit(bulkhead.call, int, "7").result(LONG) == 7


def test_bulkhead__forked_child_starts_empty():
    """A child forked while calls run has all places free: none of those calls runs in it."""
    bulkhead = Bulkhead("reports", 1)

    with bulkhead:
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if bulkhead.call(lambda: bulkhead.running) == 1 else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        running = bulkhead.running

    assert os.waitstatus_to_exitcode(status) == 0
    assert running == 1


def test_bulkhead__is_off_when_resilience_is_disabled(settings):
    """ENABLED False lets everyone in, and the count is right again afterwards."""
    bulkhead = Bulkhead("reports", 1)

    with bulkhead:
        settings.RESILIENCE = {"ENABLED": False}
        assert bulkhead.call(int, "1") == 1
        with bulkhead:
            settings.RESILIENCE = {}
            with pytest.raises(BulkheadFullError):
                bulkhead.call(int)

    assert bulkhead.running == 0


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None], ids=repr)
def test_bulkhead__refuses_a_wrong_limit(value):
    """max_concurrent must be a whole number of calls."""
    with pytest.raises((TypeError, ValueError), match=r"^max_concurrent must be a whole number of 1 or more, not "):
        Bulkhead("reports", value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "3", None], ids=repr)
def test_bulkhead__refuses_a_wrong_wait(value):
    """max_wait must be a finite number of seconds."""
    with pytest.raises(
        (TypeError, ValueError), match=r"^max_wait must be 0 or more seconds, not .*\. Use 0 to refuse at once\.$"
    ):
        Bulkhead("reports", 1, max_wait=value)


def test_bulkhead__refuses_generators():
    """A generator's body runs after the call, so it cannot be counted."""

    def numbers():
        yield 1

    with pytest.raises(TypeError, match="not the generator"):
        Bulkhead("reports", 1)(numbers)


class Interrupted(BaseException):
    pass


def interrupted_at(number, func):
    """Call `func`, and raise where a signal's handler may: before or after the so-manieth call within the bulkhead."""
    seen = 0

    def profile(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename == bulkheads.__file__ and event in {"call", "c_return"}:
            seen += 1
            if seen == number:
                sys.setprofile(None)
                raise Interrupted

    sys.setprofile(profile)
    try:
        return func()
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("is_full", [False, True], ids=["free", "waited for"])
def test_bulkhead__an_interrupt_at_any_instant_loses_no_place(is_full):
    """An alarm or Control-C between any two steps of a call gives the place back, exactly once."""
    bulkhead = Bulkhead("interrupted", max_concurrent=1, max_wait=LONG)

    def attempt():
        if not is_full:
            return bulkhead.call(int)
        bulkhead.__enter__()
        threading.Timer(0.002, bulkhead.__exit__).start()
        return interrupted_at(number, lambda: bulkhead.call(int))

    number = instants = 0
    while instants == number:
        number += 1
        try:
            attempt() if is_full else interrupted_at(number, attempt)
        except Interrupted:
            instants += 1
        until(lambda: bulkhead.running == 0)
        assert bulkhead.waiting == 0
        assert bulkhead.call(int) == 0

    assert instants > 5


def test_bulkhead__an_interrupt_while_a_block_is_left_loses_no_place():
    """From the first step of leaving a `with` block on, the place is given back, exactly once."""
    bulkhead = Bulkhead("left", max_concurrent=1)

    number = entering = 1  # what strikes before that first step, nobody hears of
    instants = 0
    while instants == number - entering:
        number += 1
        bulkhead.__enter__()
        try:
            interrupted_at(number, lambda: bulkhead.__exit__(None, None, None))
        except Interrupted:
            instants += 1
        assert bulkhead.running == 0

    assert instants >= 3


def test_bulkhead__a_child_forked_inside_a_call_begins_anew():
    """A child that leaves its parent's call does not end up with less than no call running."""
    bulkhead = Bulkhead("forked", max_concurrent=1)

    child = bulkhead.call(os.fork)
    if child == 0:
        os._exit(0 if bulkhead.running == 0 and bulkhead.call(lambda: bulkhead.running) == 1 else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bulkhead__a_child_forked_while_the_lock_is_held_is_free():
    """A lock that a thread of the parent held at the instant of the fork keeps nobody out in the child."""
    bulkhead = Bulkhead("forked", max_concurrent=1)

    with bulkhead._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            os._exit(bulkhead.call(int, "7") != 7)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0


def test_bulkhead__waits_for_ever_where_it_may():
    """A wait beyond what the system can count is a long wait and no error."""
    bulkhead = Bulkhead("patient", 1, max_wait=timedelta.max)
    results = []
    bulkhead.__enter__()
    thread = threading.Thread(target=lambda: results.append(bulkhead.call(int)))
    thread.start()
    until(lambda: bulkhead.waiting or not thread.is_alive())
    bulkhead.__exit__()
    thread.join(LONG)

    assert results == [0]


def test_bulkhead__a_waiter_whose_loop_was_closed_gives_nothing_back():
    """It was passed over when a place became free, so what is left of its call has no place to give back."""
    bulkhead = Bulkhead("left", 1, max_wait=LONG)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    waiting = bulkhead.acall(asyncio.sleep, 0)
    with bulkhead:
        task = loop.create_task(waiting)
        loop.run_until_complete(asyncio.sleep(0))
        assert bulkhead.waiting == 1
        loop.close()

    with bulkhead:
        waiting.close()
        assert bulkhead.running == 1
    assert not task.done()
