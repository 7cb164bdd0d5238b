from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, _state
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from django.db import OperationalError, transaction

from resilience import Run, resumable_task, shutdowns
from resilience.exceptions import CheckpointError, RunBusyError, RunConfigChangedError, RunStateError
from resilience.runs import leases
from resilience.runs.keys import hash_value
from resilience.runs.runs import open_run
from resilience.runs.sweeps import sweep
from tests.settings import RESILIENCE

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("celery_app")]


class BoomError(Exception):
    pass


def summing(key: str = "sum:{number}", *, fail_at: set[int] | None = None, done: list[int] | None = None, **options: Any) -> Any:
    """A task that sums its steps, fails at those in `fail_at` and notes in `done` what it worked on."""
    failing = set() if fail_at is None else fail_at
    noted = [] if done is None else done

    @resumable_task(key=key, name=f"tests.sum.{uuid.uuid4().hex}", **options)
    def task(run, number, steps=5, rate=1):
        total = run.state or 0
        for step in run.steps(steps):
            noted.append(step)
            if step in failing:
                raise BoomError("token=abc123")
            total += step * rate
            run.checkpoint(total)
        return total

    return task


def messages(app: Celery) -> list[str]:
    """Take what lies in the queue: the bodies of the messages."""
    with app.connection_for_read() as connection, connection.SimpleQueue(app.conf.task_default_queue) as queue:
        found = []
        while queue.qsize():
            message = queue.get(timeout=1)
            message.ack()
            found.append(message.headers["id"])
        return found


def test_delay__eager_runs_to_the_end() -> None:
    """An eager call does the work and returns its result."""
    task = summing()

    result = task.delay(7)

    assert result.get() == 10
    assert Run.objects.get(key="sum:7").status == "finished"


def test_call__directly_works_here_and_resumes() -> None:
    """A direct call raises what the body raises; the next one goes on behind the last committed step."""
    done: list[int] = []
    failing = {3}
    task = summing(fail_at=failing, done=done)
    with pytest.raises(BoomError):
        task(7)
    failing.clear()

    total = task(7)

    assert total == 10
    assert done == [0, 1, 2, 3, 3, 4]


def test_apply__of_a_finished_run_does_nothing_and_gives_its_result() -> None:
    """A late copy of a finished run's message changes nothing, and has the same result."""
    done: list[int] = []
    task = summing(done=done)
    task.apply((7,))

    result = task.apply((7,))

    assert result.get() == 10
    assert done == [0, 1, 2, 3, 4]
    assert Run.objects.get().attempts == 1


def test_attempts__without_progress_are_limited_in_all() -> None:
    """A step that fails each time is tried `max_stalled_attempts` times, the first included; then nothing runs any more."""
    done: list[int] = []
    task = summing(fail_at={0}, done=done, max_stalled_attempts=3)

    states = [task.apply((7,)).state for _ in range(5)]

    assert done == [0, 0, 0]
    assert states == ["FAILURE", "FAILURE", "FAILURE", "IGNORED", "IGNORED"]
    run = Run.objects.get()
    assert run.status == "failed"
    assert len(run.errors) == 3
    assert run.last_error.startswith("BoomError: token=[redacted]")


def test_attempts__with_progress_are_not_limited() -> None:
    """A run that gets one step further each time may fail for ever."""
    failing = {1}
    task = summing(fail_at=failing, max_stalled_attempts=2)

    for step in range(1, 30):
        failing.clear()
        failing.add(step)
        task.apply((7, 30))

    assert Run.objects.get().status == "queued"
    assert Run.objects.get().attempts == 29


def test_retry__gives_a_failed_run_new_attempts() -> None:
    """`retry` resumes from the last good checkpoint."""
    done: list[int] = []
    failing = {2}
    task = summing(fail_at=failing, done=done, max_stalled_attempts=1)
    task.apply((7,))
    task.apply((7,))
    assert Run.objects.get().status == "failed"
    failing.clear()

    with transaction.atomic():
        Run.objects.get().retry(actor="ann")
    task.apply((7,))

    assert Run.objects.get().status == "finished"
    assert done == [0, 1, 2, 2, 2, 3, 4]


def test_slices__are_worked_off_one_after_the_other_when_eager() -> None:
    """With `max_slice` a run is left and taken up again, and no slice counts as an attempt without progress."""
    task = summing(max_slice=1e-9, max_stalled_attempts=1)

    result = task.delay(7)

    run = Run.objects.get()
    assert result.get() == 10
    assert run.interruptions == 5
    assert run.status == "finished"


def test_key__missing_argument_is_refused_at_the_call() -> None:
    """A call that cannot give the key its value fails before anything is stored."""
    task = summing()

    with pytest.raises(ValueError, match=r"key 'sum:\{number\}' must find a value for 'number', not None"):
        task.delay(None)

    assert not Run.objects.exists()


def test_key__naming_no_argument_is_refused_when_defined() -> None:
    """A template that names something else than an argument fails where it is written."""
    with pytest.raises(ValueError, match=r"must name arguments of the call, not 'model'. Use one of: number, steps, rate"):
        summing(key="sum:{model}")


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("keeplast", "keep_last"),
        ("every_second", "every_seconds"),
        ("max_slices", "max_slice"),
        ("max_stalled_attempt", "max_stalled_attempts"),
    ],
)
def test_option__misspelt_is_refused_when_defined(option: str, meant: str) -> None:
    """Celery takes any option, so that a slip would leave the default in force without a word."""
    with pytest.raises(TypeError, match=rf"must be given options that exist, not '{option}'\. Write '{meant}'\."):
        resumable_task(key="misspelt", **{option: 2})


def test_option__of_celery_or_of_ones_own_is_passed_on() -> None:
    """Options of tasks stay possible, known to Celery or an attribute of one's own."""

    @resumable_task(key="owned:{number}", name="tests.owned", serializer="json", time_limit=60, team="search")
    def owned(run: Any, number: int) -> int:
        return number

    assert (owned.serializer, owned.time_limit, owned.team) == ("json", 60, "search")


def test_arguments__that_are_not_json_are_refused() -> None:
    """What the row cannot hold is refused with the task's name."""
    task = summing()

    with pytest.raises(TypeError, match=r"arguments of tests\.sum\..* must be JSON"):
        task.apply_async((7,), {"rate": object()})

    assert not Run.objects.exists()


def test_config__changed_is_refused_naming_the_arguments() -> None:
    """Another learning rate for the same key is refused, without showing it."""
    task = summing(fail_at={3})
    task.apply((7,), {"rate": 123})

    with pytest.raises(RunConfigChangedError, match="started with other values of: rate"):
        task.apply((7,), {"rate": 456}, throw=True)


def test_config__changed_by_new_code_fails_the_run(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """A deploy that changes a default is noticed by the worker, and the run waits for a person."""
    celery_app.conf.task_always_eager = False
    task = summing()
    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)
    Run.objects.update(config={"rate": hash_value(0), "steps": hash_value(5)})

    with pytest.raises(RunConfigChangedError, match="other values of: rate"):
        deliver(task, first.id, 7)

    run = Run.objects.get()
    assert (run.status, run.attempts) == ("failed", 0)
    assert "other values of: rate" in run.last_error


@pytest.mark.parametrize(("policy", "expected"), [("resume", [0, 1, 2, 2, 3, 4]), ("restart", [0, 1, 2, 0, 1, 2, 3, 4])])
def test_config__policies(policy: str, expected: list[int]) -> None:
    """ "resume" goes on with the new configuration, "restart" begins again."""
    done: list[int] = []
    failing = {2}
    task = summing(fail_at=failing, done=done, on_config_change=policy)
    task.apply((7,), {"rate": 1})
    failing.clear()

    task.apply((7,), {"rate": 2})

    assert done == expected
    assert Run.objects.get().status == "finished"


def test_busy__a_direct_call_is_refused_and_a_message_goes_away() -> None:
    """Nobody gets a run that is held."""
    task = summing()
    with open_run("sum:7"):
        Run.objects.update(task=task.name, arguments="[[7], {}]")
        with pytest.raises(RunBusyError):
            task(7)


def test_paused__a_direct_call_says_so() -> None:
    """A paused run is not started behind the back of who paused it."""
    task = summing(fail_at={2})
    task.apply((7,))
    Run.objects.get().pause()

    with pytest.raises(RunStateError, match="cannot start: it is paused"):
        task(7)


def test_pause__inside_a_step_is_obeyed_at_its_end() -> None:
    """The worker leaves at the end of the step, with what it has."""

    @resumable_task(key="pause:{number}", name=f"tests.pause.{uuid.uuid4().hex}")
    def task(run, number):
        for step in run.steps(5):
            if step == 2:
                Run.objects.get(key=run.key).pause()
            run.checkpoint(step)

    result = task.apply((7,))

    run = Run.objects.get()
    assert (run.status, run.step, result.state) == ("paused", 2, "IGNORED")


def test_told_to_stop__a_body_that_returns_is_not_taken_for_finished() -> None:
    """`should_stop` makes an early return an interruption."""

    @resumable_task(key="stop:{number}", name=f"tests.stop.{uuid.uuid4().hex}")
    def task(run, number):
        for step in run.steps(5):
            run.checkpoint(step)
            Run.objects.get(key=run.key).pause()
            if run.should_stop:
                return

    task.apply((7,))

    assert Run.objects.get().status == "paused"


def test_checkpoint__inside_a_transaction_is_refused() -> None:
    """A checkpoint that a rollback could undo is no checkpoint."""

    @resumable_task(key="atomic:{number}", name=f"tests.atomic.{uuid.uuid4().hex}")
    def task(run, number):
        with transaction.atomic():
            run.checkpoint(1)

    result = task.apply((7,))

    assert isinstance(result.result, CheckpointError)
    assert "outside transactions" in str(result.result)


def test_enabled_false__goes_straight_through(settings: Any) -> None:
    """Switched off, a task is a plain task."""
    settings.RESILIENCE = {**RESILIENCE, "ENABLED": False}
    task = summing()

    result = task.delay(7)

    assert result.get() == 10
    assert not Run.objects.exists()


def test_delay__publishes_once_the_transaction_is_committed(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """The message is sent after the row it speaks of can be seen."""
    celery_app.conf.task_always_eager = False
    task = summing()

    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
        before = messages(celery_app)
    second = task.delay(7)

    assert before == []
    assert messages(celery_app) == [first.id]
    assert second.id == first.id
    assert Run.objects.get().wakeups == 1


def test_error__in_a_message_publishes_the_next_attempt(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """After an error the run is queued again and its next message is sent, after a pause."""
    celery_app.conf.task_always_eager = False
    task = summing(fail_at={2})
    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)

    with pytest.raises(Retry):
        deliver(task, first.id, 7)

    assert messages(celery_app) == [first.id]
    run = Run.objects.get()
    assert (run.status, run.stalled_attempts, run.step) == ("queued", 0, 1)


def test_message__of_a_run_that_is_held_goes_away(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """A copy of a message finds the lease and leaves: no work, no error, no message."""
    celery_app.conf.task_always_eager = False
    done: list[int] = []
    task = summing(done=done)
    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)
    run = Run.objects.get()
    taken = leases.take(run, "default", statuses=("queued",))

    with pytest.raises(Ignore):
        deliver(task, first.id, 7)

    assert taken is not None
    assert done == []
    assert messages(celery_app) == []


def test_message__in_a_worker_about_to_end_is_handed_back(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was asked to end begins nothing, counts nothing and sends the message on."""
    celery_app.conf.task_always_eager = False
    monkeypatch.setattr("resilience.celery.is_stopping", lambda: True)
    monkeypatch.setattr("resilience.celery._HAND_BACK", 0.0)
    done: list[int] = []
    task = summing(done=done)
    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)

    with pytest.raises(Ignore):
        deliver(task, first.id, 7)

    assert (done, messages(celery_app), Run.objects.get().attempts) == ([], [first.id], 0)


@pytest.mark.parametrize("status", ["paused", "failed", "cancelled"])
def test_message__for_a_run_that_waits_for_a_person_says_so(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any], status: str
) -> None:
    """The log of the worker tells the status, and not of another worker that nobody will find."""
    celery_app.conf.task_always_eager = False
    task = summing()
    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)
    Run.objects.update(status=status)

    with pytest.raises(Ignore, match=f"cannot start: it is {status}"):
        deliver(task, first.id, 7)


@pytest.fixture
def stopped_worker() -> Iterator[None]:
    """A worker was asked to end in this process."""
    shutdowns.announce()
    yield
    shutdowns.withdraw()


@pytest.mark.usefixtures("stopped_worker")
def test_call__goes_on_in_a_process_that_had_a_worker() -> None:
    """The end of a worker, as of one that a test had started, says nothing to those who call the function themselves."""
    task = summing()

    assert task(7) == 10
    assert task.delay(8).get() == 10


@pytest.mark.usefixtures("stopped_worker")
def test_call__in_a_task_of_a_worker_leaves_when_that_ends() -> None:
    """A run that another task works on is given back in a shutdown."""
    task, outer = summing(), summing(key="outer:{number}")
    outer.push_request(called_directly=False)
    _state._task_stack.push(outer)
    try:
        with pytest.raises(Ignore, match="shutdown"):
            task(7)
    finally:
        _state._task_stack.pop()
        outer.pop_request()

    run = Run.objects.get()
    assert (run.status, run.interruptions) == ("queued", 1)


def test_soft_time_limit__ends_a_slice_that_got_somewhere(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """The time limit of a task is a slice: what is committed stays, the next message goes on, nothing is counted."""
    celery_app.conf.task_always_eager = False

    @resumable_task(key="soft:{number}", name=f"tests.soft.{uuid.uuid4().hex}")
    def task(run, number):
        for step in run.steps(5):
            if step == 2:
                raise SoftTimeLimitExceeded
            run.checkpoint(step)

    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)

    with pytest.raises(Ignore):
        deliver(task, first.id, 7)
    with pytest.raises(Retry):
        deliver(task, first.id, 7)

    run = Run.objects.get()
    assert messages(celery_app) == [first.id, first.id]
    assert (run.status, run.step, run.interruptions, run.stalled_attempts) == ("queued", 1, 1, 1)


def test_task_retry__is_one_message_for_the_same_run(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """`run.task.retry()` gives the run back and sends one message, not a second run."""
    celery_app.conf.task_always_eager = False

    @resumable_task(key="retry:{number}", name=f"tests.retry.{uuid.uuid4().hex}")
    def task(run, number):
        raise run.task.retry(countdown=30)

    with django_capture_on_commit_callbacks(execute=True):
        first = task.delay(7)
    messages(celery_app)

    with pytest.raises(Retry):
        deliver(task, first.id, 7)

    run = Run.objects.get()
    assert messages(celery_app) == [first.id]
    assert (run.status, run.attempts, run.stalled_attempts) == ("queued", 1, 1)


def deliver(task: Any, task_id: str, *args: Any) -> Any:
    """Do what a worker's tracer does with a message."""
    task.push_request(id=task_id, called_directly=False, args=args, kwargs={})
    try:
        return task(*args)
    finally:
        task.pop_request()


def take_messages(app: Celery) -> list[Any]:
    """Take what lies in the queue, as a worker gets it."""
    with app.connection_for_read() as connection, connection.SimpleQueue(app.conf.task_default_queue) as queue:
        found = []
        while queue.qsize():
            found.append(queue.get(timeout=1))
            found[-1].ack()
        return found


def consume(task: Any, message: Any) -> Any:
    """Do what a worker's tracer does with a message, its headers included."""
    args, kwargs, _ = message.payload
    task.push_request(**message.headers, called_directly=False, args=args, kwargs=kwargs)
    try:
        return task(*args, **kwargs)
    finally:
        task.pop_request()


def test_message__of_a_deleted_run_does_not_make_it_anew(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """What somebody deleted stays deleted, whatever message of it is still on its way: the first, or one of a sweep."""
    celery_app.conf.task_always_eager = False
    done: list[int] = []
    task = summing(done=done)
    with django_capture_on_commit_callbacks(execute=True):
        task.delay(7)
    Run.objects.update(woken_at="2000-01-01T00:00Z")
    assert sweep("default").woken == ("sum:7",)
    sent = take_messages(celery_app)
    Run.objects.all().delete()

    for message in sent:
        with pytest.raises(Ignore, match="'sum:7' cannot start: it is deleted"):
            consume(task, message)

    assert len(sent) == 2
    assert (done, Run.objects.count()) == ([], 0)


def test_message__of_a_deleted_run_does_not_wake_another_one_with_its_key(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """A run that was deleted and started again is woken by its own message, whose result its caller waits for."""
    celery_app.conf.task_always_eager = False
    task = summing()
    with django_capture_on_commit_callbacks(execute=True):
        task.delay(7)
    (old,) = take_messages(celery_app)
    Run.objects.all().delete()
    with django_capture_on_commit_callbacks(execute=True):
        result = task.delay(7)
    (new,) = take_messages(celery_app)

    with pytest.raises(Ignore):
        consume(task, old)
    total = consume(task, new)

    assert (total, new.headers["id"]) == (10, result.id)


def test_message__sent_by_name_makes_the_run(celery_app: Celery) -> None:
    """Whoever has no database, or only the task's name, starts runs all the same."""
    celery_app.conf.task_always_eager = False
    task = summing()
    celery_app.send_task(task.name, (7,))
    (message,) = take_messages(celery_app)

    total = consume(task, message)

    assert total == 10
    assert Run.objects.get().task_id == message.headers["id"]


def test_message__late_copy_of_a_finished_runs_does_nothing_and_gives_its_result(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """Two messages for one run do its work once."""
    celery_app.conf.task_always_eager = False
    done: list[int] = []
    task = summing(done=done)
    with django_capture_on_commit_callbacks(execute=True):
        task.delay(7)
    (message,) = take_messages(celery_app)

    totals = [consume(task, message), consume(task, message)]

    assert (totals, done, Run.objects.get().attempts) == ([10, 10], [0, 1, 2, 3, 4], 1)


def test_key__of_another_task_is_refused(celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]) -> None:
    """Two tasks with one key would work on each other's run: neither a call nor a message does."""
    celery_app.conf.task_always_eager = False
    done: list[int] = []
    mine, other = summing(fail_at={0}), summing(done=done)
    with django_capture_on_commit_callbacks(execute=True):
        mine.delay(7)
    celery_app.send_task(other.name, (7,))
    by_name = take_messages(celery_app)[-1]

    for start in (lambda: other.delay(7), lambda: other(7), lambda: consume(other, by_name)):
        with pytest.raises(ValueError, match=r"key must be that of one task, not 'sum:7': it is taken by 'tests\.sum\..*'"):
            start()

    assert (done, Run.objects.get().task) == ([], mine.name)


def test_message__waits_for_the_sweeper_when_the_database_is_away_at_the_start(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is lost because the database did not answer strands nothing: the run is found and woken again."""
    celery_app.conf.task_always_eager = False
    task = summing()
    with django_capture_on_commit_callbacks(execute=True):
        task.delay(7)
    (message,) = take_messages(celery_app)
    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr("resilience.runs.runs.take", _away)
        consume(task, message)

    Run.objects.update(woken_at="2000-01-01T00:00Z")
    sweep("default")
    (message,) = take_messages(celery_app)

    assert consume(task, message) == 10


def _away(*args: Any, **options: Any) -> Any:
    raise OperationalError("connection refused")


def test_message__says_only_which_run_is_meant(
    celery_app: Celery, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    """The row's arguments count, not those of a message that is older."""
    celery_app.conf.task_always_eager = False
    task = summing(on_config_change="resume")
    with django_capture_on_commit_callbacks(execute=True):
        task.delay(7, rate=1)
    (message,) = take_messages(celery_app)
    task.delay(7, rate=2)

    assert consume(task, message) == 20


@pytest.mark.django_db(transaction=True)
def test_soft_time_limit__before_the_attempt_leaves_no_block_open(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every later task of this child would find a transaction that nobody ends."""
    celery_app.conf.task_always_eager = False
    task = summing()
    task.delay(7)
    (message,) = take_messages(celery_app)

    def struck(*args: Any, **options: Any) -> None:
        transaction.atomic().__enter__()
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch, pytest.raises(SoftTimeLimitExceeded):
        patch.setattr("resilience.celery.start", struck)
        consume(task, message)

    assert consume(task, message) == 10
