from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext

from resilience import clock, load_checkpoint, open_run, signals
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs import store
from resilience.runs.attempts import Attempt
from resilience.runs.leases import DatabaseNow, take
from resilience.runs.models import Checkpoint, Run, RunEffect
from resilience.runs.options import RunConfig
from tests.testapp.models import RunsLedger

pytestmark = pytest.mark.django_db


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    return moment


def steps_saved() -> list[int | None]:
    """The steps of all checkpoints, oldest first."""
    return list(Checkpoint.objects.order_by("sequence").values_list("step", flat=True))


def test_checkpoint__every_seconds_saves_at_most_so_often(now: list[float]) -> None:
    """`every_seconds` bounds the rate of saves; the last state is stored in any case."""
    with open_run("a", every_seconds=10, keep_last=10) as run:
        for step in run.steps(25):
            now[0] += 1
            run.checkpoint(step)

    assert steps_saved() == [9, 19, 24]


def test_checkpoint__pause_stores_the_state_given_last_whatever_every_says() -> None:
    """A polite stop redoes nothing."""
    with open_run("a", every=100) as run:
        for step in run.steps(50):
            run.checkpoint({"step": step})
            if step == 6:
                Run.objects.get().pause()

    assert Run.objects.get().status == "paused"
    assert load_checkpoint("a") == {"step": 6}


@pytest.mark.parametrize(("rhythm", "last"), [(4, 7), (2, 9)])
def test_checkpoint__given_now_and_then_is_stored_as_it_was_given(rhythm: int, last: int) -> None:
    """A state that is not given at each step is stored as of the step it was given in, though later steps change it."""
    with open_run("a", every=100) as run:
        weights = []
        for step in run.steps(50):
            weights.append(step)
            if step % rhythm == rhythm - 1:
                run.checkpoint(weights)
            if step == 10:
                Run.objects.get().pause()

    assert steps_saved() == [last]
    assert load_checkpoint("a") == list(range(last + 1))


def test_checkpoint__at_the_end_of_the_loop_is_as_the_loop_left_it() -> None:
    """What follows the loop may change the state in place; what is stored is that of the last step."""
    with open_run("a", every=100) as run:
        weights = []
        for step in run.steps(3):
            weights.append(step)
            run.checkpoint(weights)
        weights.append("for the report only")

    assert load_checkpoint("a") == [0, 1, 2]


def test_checkpoint__refused_by_the_storage_is_stored_on_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A polite stop redoes nothing, even if the save in its last step failed."""
    write, failures = store.write, [CheckpointError("disk full", "storage")]

    def full_once(run: Run, step: int, state: object, **options: Any) -> store.StoredState:
        if step == 3 and failures:
            raise failures.pop()
        return write(run, step, state, **options)

    monkeypatch.setattr(store, "write", full_once)

    with open_run("a") as run:
        for step in run.steps(9):
            run.checkpoint(step)
            if step == 3:
                Run.objects.get().pause()

    assert (Run.objects.get().status, load_checkpoint("a")) == ("paused", 3)


def test_checkpoint__stale_state_is_not_stored_as_another_step() -> None:
    """A state given at every step and then no more is not stored with what later steps made of it."""
    with open_run("a", every=5, keep_last=10) as run:
        weights = []
        for step in run.steps(9):
            weights.append(step)
            if step < 7:
                run.checkpoint(weights)

    assert steps_saved() == [4]
    assert load_checkpoint("a") == [0, 1, 2, 3, 4]


def test_checkpoint__without_a_loop_counts_up() -> None:
    """A body without steps saves as it likes, and finds its last state."""
    with open_run("a") as run:
        for epoch in range(3):
            run.checkpoint({"epoch": epoch})
    with open_run("a") as run:
        state = run.state

    assert steps_saved() == [0, 1, 2]
    assert state == {"epoch": 2}


def test_checkpoint__the_same_content_again_is_no_progress() -> None:
    """A body that stores the same thing at each attempt and fails is not taken for one that moves."""
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), open_run("a") as run:
            run.checkpoint({"phase": "begin"})
            _ = 1 / 0

    assert Run.objects.get().stalled_attempts == 2


def test_checkpoint__storage_down_for_a_moment_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails is told and borne; the next one is stored."""
    heard: list[int] = []
    signals.checkpoint_failed.connect(receiver := lambda step, **kwargs: heard.append(step), weak=False)
    write = store.write

    def flaky(run: Run, step: int, state: object, **options: Any) -> store.StoredState:
        if step in {2, 3}:
            raise CheckpointError("disk full", "storage")
        return write(run, step, state, **options)

    monkeypatch.setattr(store, "write", flaky)
    try:
        with open_run("a", keep_last=10) as run:
            for step in run.steps(6):
                run.checkpoint(step)
    finally:
        signals.checkpoint_failed.disconnect(receiver)

    assert heard == [2, 3]
    assert steps_saved() == [0, 1, 4, 5]


def test_checkpoint__storage_down_for_good_fails_with_the_last_good_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many failures in a row end the attempt, with a message that says what to do."""
    write = store.write

    def full(run: Run, step: int, state: object, **options: Any) -> store.StoredState:
        if step >= 2:
            raise CheckpointError("disk full", "storage")
        return write(run, step, state, **options)

    monkeypatch.setattr(store, "write", full)

    with pytest.raises(CheckpointError, match="3 checkpoints of run 'a' failed in a row"), open_run("a") as run:
        for step in run.steps(6):
            run.checkpoint(step)

    assert load_checkpoint("a") == 1


def test_checkpoint__last_state_that_cannot_be_stored_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is not finished while its last state is not safe."""
    write = store.write

    def full(run: Run, step: int, state: object, **options: Any) -> store.StoredState:
        if step == 5:
            raise CheckpointError("disk full", "storage")
        return write(run, step, state, **options)

    monkeypatch.setattr(store, "write", full)

    with (
        pytest.raises(CheckpointError, match="The last state of run 'a' could not be stored"),
        open_run("a", max_failed_saves=9) as run,
    ):
        for step in run.steps(6):
            run.checkpoint(step)

    assert Run.objects.get().status == "failed"


def test_steps__leave_when_the_lease_is_lost() -> None:
    """Whoever lost the run stores nothing more and stops at the step it is in."""
    seen = []
    with open_run("a") as run:
        for step in run.steps(10):
            seen.append(step)
            if step == 3:
                Run.objects.update(status="queued")
                other = take(Run.objects.get(), "default", statuses=("queued",))
            run.checkpoint(step)

    row = Run.objects.get()
    assert seen == [0, 1, 2, 3]
    assert other is not None
    assert (row.status, row.fence, row.step) == ("running", 2, 2)
    assert steps_saved() == [0, 1, 2]


def test_steps__interruption_is_not_swallowed_by_except_exception() -> None:
    """User code that catches everything does not keep a run from leaving."""
    seen = []
    with open_run("a") as run:
        for step in run.steps(10):
            seen.append(step)
            try:
                Run.objects.update(status="queued", fence=99)
                run.checkpoint(step)
            except Exception:
                pytest.fail("RunInterrupted must pass")

    assert seen == [0]


def test_steps__twice_in_a_run_is_refused() -> None:
    """Two loops would not know their places apart."""
    with pytest.raises(RuntimeError, match=r"run\.steps must be called once"), open_run("a") as run:
        list(run.steps(2))
        list(run.steps(2))


def test_steps__skipped_ones_are_left_out() -> None:
    """An operator's `skip` leaves out exactly that step."""
    Run.objects.create(key="a", skipped=[2])

    with open_run("a") as run:
        seen = list(run.steps(5))

    assert seen == [0, 1, 3, 4]


def test_once__happens_once_and_gives_its_result_again() -> None:
    """An effect is not repeated when its step is."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), open_run("a") as run:
            for _step in run.steps(1):
                result = run.once("invoice", lambda: {"number": RunsLedger.objects.create(number=1, step=0).pk})
                _ = 1 / 0

    assert RunsLedger.objects.count() == 1
    assert result == {"number": RunsLedger.objects.get().pk}


def test_once__of_a_worker_that_lost_the_run_is_rolled_back() -> None:
    """The fence is checked in the transaction of the effect."""
    with open_run("a") as run:
        Run.objects.update(status="queued", fence=99)
        with pytest.raises(RunInterrupted):
            run.once("invoice", lambda: RunsLedger.objects.create(number=1, step=0))

    assert not RunsLedger.objects.exists()
    assert not RunEffect.objects.exists()


def test_once__that_raises_may_happen_later() -> None:
    """An effect that failed is not noted."""
    with open_run("a") as run:
        with pytest.raises(ZeroDivisionError):
            run.once("invoice", lambda: 1 / 0)
        result = run.once("invoice", lambda: 2)

    assert result == 2


def test_once__result_that_is_no_json_is_given_the_first_time_only() -> None:
    """A model instance may be returned; it is not stored."""
    with open_run("a") as run:
        first = run.once("row", lambda: RunsLedger.objects.create(number=1, step=0))
        second = run.once("row", lambda: RunsLedger.objects.create(number=1, step=0))

    assert first == RunsLedger.objects.get()
    assert second is None


def test_progress__is_written_at_most_once_a_second(now: list[float], django_assert_max_num_queries: Any) -> None:
    """A fast loop costs one write a second, and what was told last is there in the end."""
    with open_run("a") as run:
        with django_assert_max_num_queries(3):
            for number in range(2000):
                now[0] += 0.001
                run.progress(number, 2000, "learning")
        written = Run.objects.get().current

    row = Run.objects.get()
    assert written is not None
    assert 900 < written < 2000
    assert (row.current, row.total, row.message) == (1999, 2000, "learning")
    assert row.rate == pytest.approx(1000, rel=0.01)


def test_progress__rides_along_with_checkpoints(now: list[float]) -> None:
    """A loop that saves each second pays for one write a second, not for two."""
    with CaptureQueriesContext(connection) as queries, open_run("a", every_seconds=1) as run:
        for step in run.steps(5000):
            now[0] += 0.001
            run.checkpoint(step)

    updates = [query["sql"] for query in queries.captured_queries if query["sql"].startswith("UPDATE")]
    of_saves = [sql for sql in updates if '"sequence"' in sql]
    alone = [sql for sql in updates if '"current"' in sql and sql not in of_saves]
    assert len(of_saves) == 5
    assert all('"current"' in sql for sql in of_saves)
    assert len(alone) == 1, "the first, so that people see it has begun"
    assert Run.objects.get().current == 5000


def test_steps__tell_progress_by_themselves() -> None:
    """A loop whose length is known needs no call to show how far it is."""
    with open_run("a") as run:
        list(run.steps(4))

    assert (Run.objects.get().current, Run.objects.get().percent) == (4, 100.0)


def test_heartbeat__is_given_at_the_end_of_steps_where_no_thread_can(now: list[float]) -> None:
    """Long loops keep their lease, and see what people ask, without a thread."""
    with open_run("a", lease=60) as run:
        for step in run.steps(10):
            now[0] += 30
            if step == 4:
                Run.objects.update(request="pause", lease_expires_at=DatabaseNow(1))
        pytest.fail("must leave")

    row = Run.objects.get()
    assert row.status == "paused"
    assert row.current == 5


def test_attempt__that_a_person_cut_off_is_not_counted() -> None:
    """Ctrl-C is an interruption, not a failure."""
    with pytest.raises(KeyboardInterrupt), open_run("a") as run:
        for _step in run.steps(3):
            raise KeyboardInterrupt

    row = Run.objects.get()
    assert (row.status, row.stalled_attempts, row.interruptions, row.errors) == ("queued", 0, 1, [])


def test_rng__resumes_where_it_was() -> None:
    """With `rng` a resumed run draws what it would have drawn."""
    import random

    random.seed(5)
    expected = [random.random() for _ in range(6)]
    random.seed(5)
    drawn: list[float] = []
    with pytest.raises(ZeroDivisionError), open_run("a", rng=True) as run:
        for step in run.steps(6):
            if step == 3:
                random.seed(999)
                _ = 1 / 0
            drawn.append(random.random())
            run.checkpoint(drawn)

    with open_run("a", rng=True) as run:
        drawn = run.state
        for _step in run.steps(6):
            drawn.append(random.random())
            run.checkpoint(drawn)

    assert drawn == expected
    assert load_checkpoint("a") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number of 1 or more, not 0"),
        ({"every": True}, "every must be a whole number of 1 or more, not True"),
        ({"lease": 0}, "lease must be more than 0 seconds, not 0"),
        ({"max_slice": float("nan")}, "max_slice must be more than 0 seconds, not nan"),
        ({"keep_best": ("accuracy", "highest", 2)}, "keep_best must be"),
        ({"keep_best": ("accuracy", "max", 0)}, "the count of keep_best must be"),
        ({"lease": 1e12}, "lease must be 31536000 seconds .a year. or less"),
        ({"schema": 40_000}, "schema must be 32767 or less"),
        ({"max_stalled_attempts": 2**40}, "max_stalled_attempts must be 2147483647 or less"),
        ({"every": -1}, "every must be a whole number of 1 or more, not -1"),
        ({"format": "yaml"}, "format must be one of 'auto', .*, not 'yaml'"),
        ({"on_config_change": "ignore"}, "on_config_change must be one of 'fail', 'resume', 'restart', not 'ignore'"),
    ],
)
def test_options__out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """A wrong option fails where it is written down."""
    with pytest.raises(ValueError, match=message), open_run("a", **options):
        pass


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "a text of 1 to 255 characters"),
        ("x" * 256, "a text of 1 to 255 characters"),
        (None, "a text of 1 to 255 characters"),
        (7, "a text of 1 to 255 characters"),
        ("a\0b", "without NUL characters"),
        ("a\ud800b", "without NUL characters and lone surrogates"),
    ],
)
def test_key__that_cannot_be_stored_is_refused(key: Any, message: str) -> None:
    """A key is a text that every database takes, of 1 to 255 characters; so is that of an effect."""
    with pytest.raises(ValueError, match=f"key must be {message}"), open_run(key):
        pass
    with pytest.raises(ValueError, match=f"key must be {message}"), open_run("sound") as run:
        run.once(key, list)


@pytest.mark.parametrize(
    ("figures", "error", "message"),
    [
        ((-1,), ValueError, "current must be from 0 to 9223372036854775807, not -1"),
        ((2**70,), ValueError, "current must be from 0"),
        ((1, -5), ValueError, "total must be from 0"),
        ((0.5,), TypeError, "current must be a whole number, not 0.5"),
        ((1, 2, None), TypeError, "message must be a text, not None"),
    ],
)
def test_progress__that_cannot_be_stored_is_refused(figures: Any, error: type[Exception], message: str) -> None:
    """Wrong figures are told where they are given, not by the database a second later."""
    with pytest.raises(error, match=message), open_run("a") as run:
        run.progress(*figures)


def test_metrics__that_are_no_dict_are_refused() -> None:
    """A bare figure has no name to keep the best by."""
    with pytest.raises(TypeError, match=r"metrics must be a dict of figures, not 0\.5"), open_run("a") as run:
        run.checkpoint(1, metrics=0.5)


def test_config__that_is_no_json_is_named() -> None:
    """What cannot be compared later is refused with its name."""
    with pytest.raises(TypeError, match="the configuration's 'model' must be JSON"), open_run("a", config={"model": object()}):
        pass


@pytest.mark.parametrize("goes_on", [False, True], ids=["returns", "saves"])
def test_steps__body_that_swallows_the_interruption_is_not_taken_for_finished(goes_on: bool) -> None:
    """A bare `except` around the loop does not turn a paused run into a finished one, and what it saves then is refused."""
    with open_run("swallow") as run:
        try:
            for step in run.steps(10):
                run.checkpoint(step)
                if step == 2:
                    Run.objects.get(key="swallow").pause()
        except BaseException:
            if goes_on:
                run.checkpoint("as if all was done")

    row = Run.objects.get(key="swallow")
    assert (row.status, row.step) == ("paused", 2)
    assert load_checkpoint("swallow") == 2


def test_options__default_to_what_the_docs_promise() -> None:
    """Who sets nothing saves at each step, keeps three, holds for a minute, and fails after three attempts that got nowhere."""
    config = RunConfig()

    assert (config.every, config.every_seconds, config.keep_last, config.keep_best) == (1, None, 3, None)
    assert (config.lease, config.max_slice, config.max_stalled_attempts, config.on_config_change) == (60, None, 3, "fail")
    assert store.INLINE_LIMIT == 65_536


def test_once__keys_are_those_of_one_run() -> None:
    """An effect of one run does not keep another run's from happening."""
    for key in ("a", "b"):
        with open_run(key) as run:
            run.once("invoice", lambda: RunsLedger.objects.create(number=1, step=0) and None)

    assert RunsLedger.objects.count() == 2


def test_cancel__inside_a_step_is_obeyed_at_its_end_with_the_state_given_last() -> None:
    """A cancelled run keeps what it has, whatever `every` says, and can be taken up again."""
    with open_run("a", every=100) as run:
        for step in run.steps(50):
            run.checkpoint({"step": step})
            if step == 6:
                Run.objects.get().cancel()

    row = Run.objects.get()
    assert (row.status, row.step) == ("cancelled", 6)
    assert load_checkpoint("a") == {"step": 6}


def test_steps__of_a_queryset_resume_behind_the_last_row_though_others_went() -> None:
    """The place of a run in a queryset is kept with its checkpoint: deleted rows move nothing, and no row comes twice."""
    for number in range(6):
        RunsLedger.objects.create(number=number, step=0)
    done: list[int] = []

    for leave_after in (3, None):
        with open_run("rows") as run:
            for row in run.steps(RunsLedger.objects.all()):
                done.append(row.number)
                run.checkpoint(len(done))
                if row.number == leave_after:
                    Run.objects.get().pause()
        RunsLedger.objects.filter(number__in=[0, 2]).delete()

    assert done == [0, 1, 2, 3, 4, 5]
    assert Run.objects.get().step == 5


def begun(stopping: list[bool], **options: Any) -> Attempt:
    """An attempt by a worker, which is told to end as soon as `stopping` holds something."""
    found = take(Run.objects.create(key="a"), "default", statuses=("queued",))
    assert found is not None
    return Attempt(*found, RunConfig(**options), is_stopping=lambda: bool(stopping))


def test_steps__of_a_worker_about_to_end_begin_none() -> None:
    """Who was told to leave before the first step does not begin it."""
    with begun([True]) as run:
        for _step in run.steps(3):
            pytest.fail("must not begin")

    assert Run.objects.get().status == "queued"


def test_steps__leave_when_the_slice_is_over_with_a_state_that_was_not_due(now: list[float]) -> None:
    """A slice ends though `every` has not stored anything yet: what was given last is stored first."""
    with open_run("a", every=100, max_slice=5) as run:
        for step in run.steps(50):
            now[0] += 2
            run.checkpoint(step)

    assert (Run.objects.get().status, load_checkpoint("a")) == ("queued", 2)


def test_should_stop__in_a_long_step_sees_what_another_process_asks(now: list[float]) -> None:
    """A step of an hour that looks now and then hears of a pause without waiting for its own end."""
    with open_run("a") as run:
        for _step in run.steps(3):
            Run.objects.update(request="pause")
            now[0] += 30
            assert run.should_stop
            run.checkpoint("half")
            break

    assert Run.objects.get().status == "paused"


def test_should_stop__once_told_a_body_that_returns_early_is_resumed_though_it_was_taken_back() -> None:
    """A body that left its loop because it was told to is not through, whatever it is told afterwards."""
    stopping: list[bool] = []

    with begun(stopping) as run:
        for step in run.steps(3):
            run.checkpoint(step)
            stopping.append(True)
            assert run.should_stop
            stopping.clear()
            assert not run.should_stop
            break

    assert Run.objects.get().status == "queued"


def test_should_stop__behind_the_loop_leaves_a_finished_run_finished() -> None:
    """Once all steps are done there is nothing to resume, even if the worker is about to end."""
    stopping: list[bool] = []

    with begun(stopping) as run:
        for step in run.steps(3):
            run.checkpoint(step)
        stopping.append(True)
        assert run.should_stop

    assert Run.objects.get().status == "finished"


def test_progress__told_by_the_body_is_not_overwritten_by_the_loop() -> None:
    """Who counts documents instead of steps sees documents."""
    with open_run("a") as run:
        for step in run.steps(3):
            run.progress(10 * (step + 1), 30, "documents")

    row = Run.objects.get()
    assert (row.current, row.total, row.message) == (30, 30, "documents")


def test_once__an_integrity_error_of_the_effect_itself_comes_out() -> None:
    """It does not mean that the effect was done before."""

    def clash() -> None:
        raise IntegrityError("duplicate key value violates unique constraint")

    with open_run("a") as run:
        with pytest.raises(IntegrityError):
            run.once("invoice", clash)
        result = run.once("invoice", lambda: 2)

    assert result == 2


def test_progress__is_a_sign_that_something_moves_and_its_message_is_short() -> None:
    """The row says when it moved last, and 200 characters of what was told."""
    Run.objects.create(key="a", progressed_at=dt.datetime(2000, 1, 1, tzinfo=dt.UTC))

    with open_run("a") as run:
        run.progress(1, 2, "x" * 500)
        row = Run.objects.get()

    assert row.progressed_at is not None
    assert row.progressed_at.year > 2000
    assert row.message == "x" * 200
