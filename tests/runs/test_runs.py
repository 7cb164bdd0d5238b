from __future__ import annotations

from typing import Any

import pytest

from resilience import load_checkpoint, open_run, save_checkpoint
from resilience.exceptions import CheckpointError, RunBusyError, RunConfigChangedError
from resilience.runs import runs
from resilience.runs.models import Checkpoint, Run

pytestmark = pytest.mark.django_db


class BoomError(Exception):
    pass


def work(key: str, n: int, *, fail_at: int | None = None, done: list[int] | None = None, **options):
    """Sum the steps of a run, noting in `done` which were worked on."""
    with open_run(key, **options) as run:
        total = run.state or 0
        for step in run.steps(n):
            if step == fail_at:
                raise BoomError
            if done is not None:
                done.append(step)
            total += step
            run.checkpoint(total)


@pytest.mark.parametrize("fail_at", [1, 4])
def test_open_run__resumes_after_the_last_committed_step(fail_at: int) -> None:
    """A run that crashed goes on with the step that was not committed, and its state."""
    done: list[int] = []
    with pytest.raises(BoomError):
        work("a", 6, fail_at=fail_at, done=done)

    work("a", 6, done=done)

    assert done == [0, 1, 2, 3, 4, 5]
    assert load_checkpoint("a") == 15
    run = Run.objects.get(key="a")
    assert (run.status, run.step, run.attempts) == ("finished", 5, 2)


def test_open_run__notes_the_error_with_its_step() -> None:
    """The history tells what went wrong and at which step."""
    with pytest.raises(BoomError):
        work("a", 6, fail_at=4)

    run = Run.objects.get(key="a")

    assert run.status == "failed"
    assert (run.errors[0]["step"], run.errors[0]["error"]) == (4, "BoomError")


def test_open_run__is_refused_while_another_holds_it() -> None:
    """Two cannot hold one run."""
    with open_run("a"), pytest.raises(RunBusyError, match="'a' is held"), open_run("a"):
        pass


def test_open_run__opened_again_when_finished_has_nothing_left_to_do() -> None:
    """A finished run is there with its state and its steps done."""
    work("a", 3)

    with open_run("a") as run:
        left = list(run.steps(3))

    assert left == []
    assert run.resuming
    assert run.state == 3


def test_open_run__every_n_commits_the_last_state_too() -> None:
    """Whatever `every` says, the last state of a finished run is stored."""
    work("a", 7, every=5)

    steps = list(Checkpoint.objects.order_by("sequence").values_list("step", flat=True))

    assert steps == [4, 6]
    assert load_checkpoint("a") == 21


def test_open_run__changed_configuration_names_the_keys() -> None:
    """Another configuration is refused, by names and without values."""
    work("a", 2, config={"rate": 1, "size": 2})

    with pytest.raises(RunConfigChangedError) as caught:
        work("a", 2, config={"rate": 3, "size": 2})

    assert caught.value.names == ("rate",)
    assert "3" not in str(caught.value)


def test_open_run__restarts_with_another_configuration_when_told_to() -> None:
    """The policy "restart" begins again from nothing."""
    work("a", 2, config={"rate": 1})
    done: list[int] = []

    work("a", 2, config={"rate": 3}, on_config_change="restart", done=done)

    assert done == [0, 1]


def test_save_checkpoint__and_load_it_again() -> None:
    """A state stored under a key comes back equal."""
    save_checkpoint("plain", {"epoch": 3, "pair": (1, 2)}, metrics={"accuracy": 0.5})

    assert load_checkpoint("plain") == {"epoch": 3, "pair": (1, 2)}
    assert load_checkpoint("nothing", default="x") == "x"
    assert Checkpoint.objects.get().metrics == {"accuracy": 0.5}


def test_save_checkpoint__refuses_what_cannot_be_stored() -> None:
    """The refusal names where and what."""
    with pytest.raises(CheckpointError, match=r"state\['model'\].*object"):
        save_checkpoint("plain", {"model": object()})

    assert Run.objects.get().status == "finished"


def test_restart__killed_before_it_forgot_restarts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies while it restarts with another configuration leaves no old checkpoint to resume with the new one."""
    options = {"on_config_change": "restart"}
    with open_run("again", config={"rate": 1}, **options) as run:
        run.checkpoint("old")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "forget_checkpoints", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError), open_run("again", config={"rate": 2}, **options):
            pass

    with open_run("again", config={"rate": 2}, **options) as run:
        state = run.state

    assert state is None


def test_save_checkpoint__leaves_the_run_as_it_was() -> None:
    """Saving by hand changes neither a run's status nor when it ended, so that old runs are still pruned by age."""
    save_checkpoint("plain", 1)
    before = Run.objects.get(key="plain")

    save_checkpoint("plain", 2)

    after = Run.objects.get(key="plain")
    assert before.finished_at is not None
    assert (after.status, after.finished_at, after.attempts) == (before.status, before.finished_at, before.attempts)


@pytest.mark.parametrize("step", [-1, 2**63, 1.5, True, "3"])
def test_save_checkpoint__refuses_a_step_that_is_no_position(step: Any) -> None:
    """A wrong step is told before anything is stored."""
    with pytest.raises(ValueError, match="step must be a whole number from 0 to"):
        save_checkpoint("a", {}, step=step)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"metrics": 0.5}, TypeError, r"metrics must be a dict of figures, not 0\.5"),
        ({"keep_last": 0}, ValueError, "keep_last must be a whole number of 1 or more, not 0"),
    ],
)
def test_save_checkpoint__refuses_wrong_fields_before_it_makes_a_run(fields: Any, error: type[Exception], message: str) -> None:
    """A wrong argument leaves no row behind."""
    with pytest.raises(error, match=message):
        save_checkpoint("a", {}, **fields)

    assert not Run.objects.exists()


@pytest.mark.parametrize("status", ["queued", "paused", "finished", "failed", "cancelled"])
def test_open_run__starts_whatever_became_of_the_run(status: str) -> None:
    """Whoever opens a run by hand decides to go on with it: a failed, paused or cancelled one resumes from its last checkpoint."""
    save_checkpoint("a", 7)
    Run.objects.update(status=status, stalled_attempts=9, errors=[{"step": 1, "error": "ValueError"}])

    with open_run("a") as run:
        state = run.state

    row = Run.objects.get()
    assert state == 7
    assert (row.status, len(row.errors)) == ("finished", 1)


def test_open_run__restarted_knows_nothing_of_steps_it_forgot() -> None:
    """Neither how far it was nor which steps were left out."""
    work("a", 4, config={"rate": 1})
    Run.objects.update(skipped=[1])

    with open_run("a", config={"rate": 2}, on_config_change="restart") as run:
        step, row = run.step, Run.objects.get()

    assert (step, row.step, row.current, row.skipped) == (None, None, None, [])


def test_open_run__that_resumes_with_another_configuration_keeps_it() -> None:
    """The policy "resume" makes the new configuration the run's own: later it is no change, and the old one is."""
    work("a", 2, config={"rate": 1})
    work("a", 2, config={"rate": 3}, on_config_change="resume")

    work("a", 2, config={"rate": 3})
    with pytest.raises(RunConfigChangedError):
        work("a", 2, config={"rate": 1})


def test_load_checkpoint__gives_a_state_of_none_as_it_was_stored() -> None:
    """The default is for what was never stored."""
    save_checkpoint("plain", None)

    assert load_checkpoint("plain", default="nothing") is None


def test_save_checkpoint__step_0_is_a_step_of_its_own() -> None:
    """Only a step left out counts up."""
    save_checkpoint("plain", "later", step=5)
    save_checkpoint("plain", "first", step=0)
    save_checkpoint("plain", "next")

    assert list(Checkpoint.objects.order_by("sequence").values_list("step", flat=True)) == [5, 0, 1]
