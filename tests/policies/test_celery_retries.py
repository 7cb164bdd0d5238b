from __future__ import annotations

import pytest
from celery import Celery
from celery.exceptions import Retry

from resilience import clock, signals
from resilience.calls.budgets import RetryBudget
from resilience.calls.retry_config import RetryConfig
from resilience.celery_retries import retry_in_task

app = Celery("unit", broker="memory://")


@pytest.fixture
def slept(monkeypatch):
    """Do not wait, and tell how long one would have."""
    waits = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    return waits


def task_that_fails(calls, error=ConnectionRefusedError, **fields):
    """Make a bound task that fails whenever it is called."""

    @retry_in_task(**{"jitter": False, **fields})
    def body(self, item):
        calls.append(item)
        raise error

    return app.task(bind=True, name=f"unit {id(calls)}")(body)


def deliver(task, *args, retries=0):
    """Run a task as a worker does, without one."""
    task.push_request(args=args, retries=retries, called_directly=False, id="1", delivery_info={})
    try:
        return task.run(*args)
    finally:
        task.pop_request()


@pytest.fixture
def published(monkeypatch):
    """Do not publish, and tell what would have been."""
    sent = []

    def apply_async(self, **options):
        sent.append((self.options["countdown"], self.options["retries"]))

    monkeypatch.setattr("celery.canvas.Signature.apply_async", apply_async)
    return sent


def test_retry_in_task__called_directly_it_sleeps_every_wait(slept):
    """Without a worker there is no broker to wait in."""
    calls = []

    with pytest.raises(ConnectionRefusedError):
        task_that_fails(calls, max_attempts=4, delay=10, longer_than=1)("x")

    assert (calls, slept) == (["x"] * 4, [10.0, 20.0, 40.0])


def test_retry_in_task__hands_long_waits_to_the_broker(slept, published):
    """A wait above the limit becomes one message that carries the number of calls made."""
    calls = []
    task = task_that_fails(calls, max_attempts=5, delay=2, longer_than=3)

    with pytest.raises(Retry):
        deliver(task, "x")

    assert (calls, slept) == (["x"] * 2, [2.0])
    assert published == [(4.0, 2)]


def test_retry_in_task__waits_go_on_growing_over_deliveries(slept, published):
    """A later delivery goes on where the one before ended, up to max_attempts."""
    calls = []
    task = task_that_fails(calls, max_attempts=5, delay=2, longer_than=3)

    with pytest.raises(Retry):
        deliver(task, "x", retries=3)
    with pytest.raises(ConnectionRefusedError):
        deliver(task, "x", retries=4)

    assert (len(calls), slept) == (2, [])
    assert published == [(16.0, 4)]


@pytest.mark.parametrize(("error", "expected"), [(ValueError, ValueError), (Retry, Retry), (SystemExit, SystemExit)])
def test_retry_in_task__passes_on_what_is_not_to_be_retried(slept, published, error, expected):
    """Permanent errors and control flow come out after one call, and nothing is published."""
    calls = []

    with pytest.raises(expected):
        deliver(task_that_fails(calls, error=error, delay=10), "x")

    assert (calls, slept, published) == (["x"], [], [])


def test_retry_in_task__pays_from_the_budget(slept, published):
    """An empty budget ends it."""
    calls, budget = [], RetryBudget(ratio=0.01, min_per_second=0)
    while budget.withdraw():
        pass

    with pytest.raises(ConnectionRefusedError):
        deliver(task_that_fails(calls, budget=budget, delay=0), "x")

    assert calls == ["x"]


@pytest.mark.parametrize("off", [{"ENABLED": False}, {"RETRY": {"enabled": False}}], ids=repr)
def test_retry_in_task__is_off_when_retrying_is_off(slept, published, settings, off):
    """Switched off, the body runs once."""
    settings.RESILIENCE = off
    calls = []

    with pytest.raises(ConnectionRefusedError):
        deliver(task_that_fails(calls, delay=10), "x")

    assert (calls, slept, published) == (["x"], [], [])


def test_retry_in_task__tells_of_each_wait(slept, published):
    """`retry_scheduled` is sent for slept waits and for those in the broker."""
    delays = []

    def receive(sender, **arguments):
        delays.append((arguments["attempt"], arguments["delay"]))

    signals.retry_scheduled.connect(receive)
    with pytest.raises(Retry):
        deliver(task_that_fails([], max_attempts=5, delay=2, longer_than=3), "x")
    signals.retry_scheduled.disconnect(receive)

    assert delays == [(1, 2.0), (2, 4.0)]


def test_retry_in_task__fields_replace_those_of_the_config(slept):
    """As in retry: a config, and single fields that win over it."""
    calls, config = [], RetryConfig(max_attempts=2, delay=0)

    @retry_in_task(config, max_attempts=5)
    def body(self):
        calls.append(1)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        app.task(bind=True, name="unit config")(body)()

    assert len(calls) == 5


@pytest.mark.parametrize("off", [{"ENABLED": False}, {"RETRY": {"enabled": False}}], ids=repr)
def test_retry_in_task__with_a_config_it_is_off_too_when_retrying_is_off(slept, settings, off):
    """The switch in the settings holds for every retry."""
    settings.RESILIENCE = off
    calls = []

    @retry_in_task(RetryConfig(max_attempts=3, delay=0))
    def body(self):
        calls.append(1)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        app.task(bind=True, name=f"unit off {off}")(body)()

    assert len(calls) == 1


def test_retry_in_task__calls_the_hook_and_judges_results(slept, published):
    """`on_retry` and `retry_on_result` do what they do in retry, here and through the broker."""
    hooked, answers = [], iter(["pending", "pending", "done"])

    @retry_in_task(
        max_attempts=5,
        delay=2,
        jitter=False,
        longer_than=3,
        on_retry=lambda exc, attempt: hooked.append((exc, attempt)),
        retry_on_result=lambda result: result == "pending",
    )
    def body(self):
        return next(answers)

    task = app.task(bind=True, name="unit results")(body)
    with pytest.raises(Retry):
        deliver(task)
    result = deliver(task, retries=2)

    assert (result, hooked, published) == ("done", [(None, 1), (None, 2)], [(4.0, 2)])


def test_retry_in_task__earns_for_the_budget_once_per_task(slept):
    """Each task earns its share at its first delivery, so that a budget of a share of all calls is one."""
    budget = RetryBudget(ratio=1, min_per_second=0)

    @retry_in_task(budget=budget)
    def body(self):
        return "done"

    task = app.task(bind=True, name="unit earning")(body)
    deliver(task)
    earned = budget.balance
    deliver(task, retries=1)

    assert 0.9 < earned <= 1
    assert budget.balance <= earned


def test_retry_in_task__tells_how_it_ended(slept, published):
    """Metrics hear of successes and of giving up, counted over all deliveries; the exception bears the note."""
    told, error, outcomes = [], ConnectionRefusedError(), iter([None, ConnectionRefusedError])

    def receive(sender, signal, **arguments):
        told.append((signal, arguments["attempts"]))

    @retry_in_task(max_attempts=4)
    def body(self):
        if next(outcomes) is not None:
            raise error

    task = app.task(bind=True, name="unit endings")(body)
    for signal in (signals.retry_succeeded, signals.retry_gave_up):
        signal.connect(receive)
    deliver(task, retries=2)
    with pytest.raises(ConnectionRefusedError):
        deliver(task, retries=3)
    for signal in (signals.retry_succeeded, signals.retry_gave_up):
        signal.disconnect(receive)

    assert told == [(signals.retry_succeeded, 3), (signals.retry_gave_up, 4)]
    assert error.__notes__[0].startswith("resilience: gave up after 4 attempts")


def test_retry_in_task__asks_retry_if_once_for_each_failure(slept, published):
    """A late delivery does not go through the decisions of the earlier ones again."""
    asked = []

    with pytest.raises(Retry):
        deliver(task_that_fails([], max_attempts=9, delay=2, retry_if=lambda exc: not asked.append(exc)), "x", retries=5)

    assert len(asked) == 1


def test_retry_in_task__a_handed_wait_shows_why(slept, published):
    """Celery logs its Retry: the failure stands behind it, with its traceback."""
    with pytest.raises(Retry) as caught:
        deliver(task_that_fails([], delay=20), "x")

    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize("field", ["attempt_timeout", "deadline"])
def test_retry_in_task__refuses_limits_that_belong_inside(field):
    """A limit that would not be kept is not accepted, neither as a field nor in a config."""
    with pytest.raises(TypeError, match=f"{field} must be None in retry_in_task, not 5"):
        retry_in_task(**{field: 5})
    with pytest.raises(TypeError, match=f"{field} must be None in retry_in_task, not 5"):
        retry_in_task(RetryConfig(**{field: 5}))


def test_retry_in_task__refuses_what_it_cannot_do():
    """Coroutine functions, generators and wrong options fail at decoration."""

    async def later(self):
        return 1

    def numbers(self):
        yield 1

    with pytest.raises(TypeError, match="retry_in_task must decorate a plain function"):
        retry_in_task()(later)
    with pytest.raises(TypeError, match="not the generator"):
        retry_in_task()(numbers)
    with pytest.raises(ValueError, match="longer_than must be 0 or more seconds"):
        retry_in_task(longer_than=-1)
    with pytest.raises(ValueError, match="max_attempts must be"):
        retry_in_task(max_attempts=0)


def test_retry_in_task__without_a_config_follows_the_settings_when_it_runs(slept, settings):
    """`RESILIENCE["RETRY"]` is read when the task runs, beneath the fields that were given."""
    calls = []
    task = task_that_fails(calls, delay=3)
    settings.RESILIENCE = {"RETRY": {"max_attempts": 4, "strategy": "fixed"}}

    with pytest.raises(ConnectionRefusedError):
        task("x")

    assert slept == [3, 3, 3]
