from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resilience import RunBusyError, load_checkpoint, open_run, save_checkpoint, testing
from resilience.exceptions import CheckpointError, RunInterrupted
from resilience.runs import cleanups
from resilience.runs.models import Checkpoint, Run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("directory")]

STEPS = 8


def small(step: int, state: Any) -> Any:
    return {"sum": (state or {"sum": 0})["sum"] + step}


def large(step: int, state: Any) -> Any:
    weights = np.zeros(5000) if state is None else state["w"]
    return {"w": weights * 0.9 + step}


def train(key: str, update: Callable[[int, Any], Any], done: list[int] | None = None) -> Any:
    """A training loop whose result shows a step that was lost or done twice."""
    with open_run(key) as run:
        for step in run.steps(STEPS):
            if done is not None:
                done.append(step)
            run.checkpoint(update(step, run.state))
    return run.state


def files_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("update", [small, large])
@pytest.mark.parametrize("moment", ["writing", "stored", "committed"])
@pytest.mark.parametrize("number", [1, 4, STEPS])
def test_crash_at_save__a_resumed_run_ends_with_the_same_bytes(
    update: Callable[[int, Any], Any], moment: Any, number: int, directory: Path
) -> None:
    """Dead in the middle of a save, before or after its commit: the result is that of an undisturbed run."""
    undisturbed, done = train("a", update), []

    with pytest.raises(testing.Crash), testing.crash_at_save(number, moment):
        train("b", update, done)
    resumed = train("b", update, done)

    redone = len(done) - STEPS
    assert repr(resumed) == repr(undisturbed)
    assert redone == (0 if moment == "committed" else 1)
    rows = set(Checkpoint.objects.exclude(name="").values_list("name", flat=True))
    assert rows <= files_in(directory), "every row has its file"


@pytest.mark.parametrize("moment", ["writing", "stored", "committed"])
def test_crash_at_save__what_is_left_behind_is_collected(moment: Any, directory: Path) -> None:
    """Files that a crash leaves without a row go with the orphans; nothing else does."""
    with pytest.raises(testing.Crash), testing.crash_at_save(5, moment):
        train("a", large)
    for path in directory.rglob("*"):
        os.utime(path, (0, 0))

    cleanups.collect_orphans()

    assert files_in(directory) == set(Checkpoint.objects.values_list("name", flat=True))


def test_crash_at_save__is_over_after_the_block() -> None:
    """The fault ends with the block, hit or not."""
    with testing.crash_at_save(100):
        train("a", small)

    assert train("b", small) == train("a", small)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0,), "number must be 1 or more"), ((1, "later"), "moment must be 'writing'")]
)
def test_crash_at_save__refuses_a_wrong_wish(arguments: Any, message: str) -> None:
    """A fault that could never happen fails the test that asks for it."""
    with pytest.raises(ValueError, match=message), testing.crash_at_save(*arguments):
        pass


KILLED = """
import django, os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0, run_syncdb=True)
from resilience import open_run, testing
with testing.crash_at_save(3, "committed", kill=True), open_run("killed") as run:
    for step in run.steps(8):
        run.checkpoint({"last": step})
"""


def test_crash_at_save__kills_for_real_when_asked(tmp_path: Path) -> None:
    """With kill=True the process gets SIGKILL, as from the kernel when memory runs out."""
    environment = os.environ | {"TEST_DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3"}

    result = subprocess.run([sys.executable, "-c", KILLED], env=environment, timeout=120, check=False, capture_output=True)

    assert result.returncode == -9, result.stderr.decode()


@pytest.mark.parametrize("update", [small, large])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_corrupt_checkpoint__the_run_goes_on_from_the_one_before(update: Callable[[int, Any], Any], damage: Any) -> None:
    """A rotten checkpoint costs the steps since the one before it, and nothing else."""
    undisturbed, done = train("a", update), []
    with pytest.raises(testing.Crash), testing.crash_at_save(5, "committed"):
        train("b", update, done)
    testing.corrupt_checkpoint("b", damage)

    resumed = train("b", update, done)

    assert repr(resumed) == repr(undisturbed)
    assert done == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert Checkpoint.objects.get(status="quarantined").run.key == "b"


def test_corrupt_checkpoint__all_of_them_is_an_error_and_no_restart() -> None:
    """A run whose checkpoints are all damaged stops with an error, and its body is not run."""
    done: list[int] = []
    with pytest.raises(testing.Crash), testing.crash_at_save(5, "committed"):
        train("a", small)
    for newest in range(Checkpoint.objects.count(), 0, -1):
        testing.corrupt_checkpoint("a", newest=newest)

    with pytest.raises(CheckpointError, match="are damaged, and it is not restarted silently"):
        train("a", small, done)

    assert done == []


def test_corrupt_checkpoint__refuses_what_is_not_there() -> None:
    """A test that damages nothing is told so."""
    with pytest.raises(LookupError, match="newest must be 1 to the number of sound checkpoints of 'nothing'"):
        testing.corrupt_checkpoint("nothing")
    with pytest.raises(ValueError, match="damage must be"):
        testing.corrupt_checkpoint("nothing", "burn")  # type: ignore[arg-type]


def test_expire_lease__lets_another_take_over_and_refuses_the_first() -> None:
    """A worker that was frozen past its lease finds its saves refused when it wakes up."""
    reached: list[str] = []

    with open_run("a") as first:
        first.checkpoint({"by": "first"})
        with pytest.raises(RunBusyError), open_run("a"):
            pass
        testing.expire_lease("a")
        with open_run("a") as second:
            second.checkpoint({"by": "second"})
        reached.append("woken up")
        with pytest.raises(RunInterrupted):
            first.checkpoint({"by": "first again"})

    assert reached == ["woken up"]
    assert load_checkpoint("a") == {"by": "second"}


def test_expire_lease__of_no_run_is_told() -> None:
    """A wrong key fails the test that uses it."""
    with pytest.raises(LookupError, match="key must be that of a run, not 'nothing'"):
        testing.expire_lease("nothing")


def test_race__starts_at_the_same_instant_and_keeps_the_order() -> None:
    """All begin before one ends, and each result stands in its place."""
    together = threading.Barrier(3)

    def meet(number: int) -> int:
        together.wait(10)
        return number

    results = testing.race(lambda: meet(1), lambda: meet(2), lambda: meet(3) // 0)

    assert results[:2] == [1, 2]
    assert isinstance(results[2], ZeroDivisionError)


def test_race__does_not_wait_for_ever() -> None:
    """A deadlock fails the test with a hint."""
    hold = threading.Event()

    with pytest.raises(TimeoutError, match=r"did not end within 0\.05 s"):
        testing.race(lambda: hold.wait(10), timeout=0.05)

    hold.set()


def test_plain_checkpoints__are_damaged_too() -> None:
    """The kit works on `save_checkpoint` as on runs, whichever checkpoint is meant."""
    for epoch in range(3):
        save_checkpoint("plain", {"epoch": epoch})

    testing.corrupt_checkpoint("plain", newest=2)
    testing.corrupt_checkpoint("plain", newest=1)

    assert load_checkpoint("plain") == {"epoch": 0}
    assert Run.objects.get(key="plain").checkpoints.filter(status="quarantined").count() == 2
