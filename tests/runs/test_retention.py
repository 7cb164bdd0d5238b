from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import storages
from django.db import transaction
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import open_run
from resilience.runs import cleanups, retention
from resilience.runs.models import Checkpoint, Run
from resilience.runs.retention import Best, Pruner, Retention
from resilience.runs.statements import HeldRows
from tests.runs.checkpoint_files import age, commit, existing, named


@dataclass
class Row:
    """The columns that decide."""

    sequence: int
    step: int | None
    metrics: dict[str, Any] = field(default_factory=dict)


def rows(*metrics: Any) -> list[Row]:
    return [Row(number, number, {} if value is None else {"accuracy": value}) for number, value in enumerate(metrics)]


def kept(rule: Retention, checkpoints: list[Row]) -> list[int]:
    surplus = {row.sequence for row in rule.surplus(checkpoints)}
    return [row.sequence for row in checkpoints if row.sequence not in surplus]


def prune(run: Run, rule: Retention) -> int:
    """Prune as the holder of a run does, and return how many checkpoints went."""
    return Pruner(HeldRows(run.pk, Run.objects.filter(pk=run.pk)), rule).prune()


# --- the decision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Retention(keep_last=1), [9]),
        (Retention(keep_last=3), [7, 8, 9]),
        (Retention(keep_last=50), list(range(10))),
        (Retention(keep_last=1, keep_every=4), [0, 4, 8, 9]),
        (Retention(keep_last=2, keep_best=("accuracy", "max", 2)), [1, 4, 8, 9]),
        (Retention(keep_last=1, keep_best=("accuracy", "min", 1)), [0, 9]),
        (Retention(keep_last=1, keep_best=("accuracy", "max", 1), keep_every=5), [0, 4, 5, 9]),
        (Retention(keep_last=1, keep_best=("loss", "min", 3)), [9]),
    ],
)
def test_surplus__is_what_no_rule_keeps(rule: Retention, expected: list[int]) -> None:
    """The rules add up: last k, best k by a metric, every n-th step."""
    checkpoints = rows(0.1, 0.8, 0.2, 0.3, 0.9, 0.3, 0.5, 0.4, 0.4, 0.2)

    assert kept(rule, checkpoints) == expected


def test_surplus__nan_and_missing_metrics_are_never_best() -> None:
    """A NaN does not win by being incomparable, nor does a checkpoint without the metric, nor a text; a number of any size may."""
    checkpoints = rows(float("nan"), 0.5, None, "0.9", True, float("nan"), 10**400, None)

    assert kept(Retention(keep_last=1, keep_best=("accuracy", "max", 2)), checkpoints) == [1, 6, 7]


def test_surplus__of_equal_metrics_the_newer_is_kept() -> None:
    """A tie is settled, and always in the same way."""
    checkpoints = rows(0.5, 0.5, 0.5, 0.1)

    assert kept(Retention(keep_last=1, keep_best=("accuracy", "max", 1)), checkpoints) == [2, 3]


@given(
    metrics=st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=30),
    last=st.integers(1, 5),
    count=st.integers(1, 5),
    every=st.none() | st.integers(1, 7),
    mode=st.sampled_from(["min", "max"]),
)
@example(metrics=[float("inf"), None], last=1, count=1, every=None, mode="min")
def test_surplus__never_has_the_newest_or_the_best(
    metrics: list[float | None], last: int, count: int, every: int | None, mode: str
) -> None:
    """Whatever the rules, the newest and the best stay, and deciding twice changes nothing."""
    checkpoints = rows(*metrics)
    rule = Retention(keep_last=last, keep_best=("accuracy", mode, count), keep_every=every)

    result = kept(rule, checkpoints)

    numbers = [value for value in metrics if value is not None and value == value]  # noqa: PLR0124  # NaN is not
    assert result[-1] == len(metrics) - 1
    if numbers:
        best = (max if mode == "max" else min)(numbers)
        assert any(checkpoints[pk].metrics.get("accuracy") == best for pk in result)
    assert kept(rule, [checkpoints[pk] for pk in result]) == result


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_last": 0}, r"keep_last must be 1 or more, not 0\."),
        ({"keep_last": True}, r"keep_last must be 1 or more, not True\."),
        ({"keep_every": 0}, r"keep_every must be 1 or more steps, not 0\."),
        ({"keep_best": ("a", "most", 1)}, r'mode must be "max" or "min", not \'most\'\.'),
        ({"keep_best": ("a", "max", 0)}, r"count must be 1 or more, not 0\."),
        ({"keep_best": ()}, r"keep_best must be \(metric"),
    ],
)
def test_retention__refuses_a_wrong_rule(fields: dict[str, Any], message: str) -> None:
    """A wrong rule fails when it is written down."""
    with pytest.raises(ValueError, match=message):
        Retention(**fields)


def test_run__goes_on_when_its_loss_became_nan(directory: Path, transactional_db: None) -> None:
    """A diverging training is stored with its NaN, which never counts as the best."""
    with open_run("diverging", keep_last=1, keep_best=("loss", "min", 1)) as run:
        for step in run.steps(4):
            run.checkpoint({"step": step}, metrics={"loss": [0.5, 0.25, float("nan"), float("nan")][step]})

    kept_rows = Checkpoint.objects.filter(run__key="diverging").order_by("sequence")
    assert list(kept_rows.values_list("step", "metrics")) == [(1, {"loss": 0.25}), (3, {"loss": "nan"})]


# --- rows and files ------------------------------------------------------------------------------------------


def test_prune__deletes_rows_and_files(directory: Path, run: Run) -> None:
    """After pruning exactly the kept rows and their files are left."""
    checkpoints = [commit(run, step) for step in range(5)]

    count = prune(run, Retention(keep_last=2))

    assert count == 3
    assert list(run.checkpoints.order_by("pk")) == checkpoints[-2:]
    assert existing(directory) == named()


def test_prune__keeps_the_files_while_its_transaction_may_roll_back(directory: Path, run: Run) -> None:
    """Inside a transaction that rolls back nothing is lost: files go only after the commit."""
    for step in range(3):
        commit(run, step)

    with transaction.atomic():
        prune(run, Retention(keep_last=1))
        transaction.set_rollback(True)

    assert run.checkpoints.count() == 3
    assert existing(directory) == named()


def test_prune__counts_are_right_after_a_crash_between_rows_and_files(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle leaves orphans at most; the next prune keeps the right number, and orphans are collected."""
    for step in range(5):
        commit(run, step, accuracy=step % 2)
    rule = Retention(keep_last=2, keep_best=("accuracy", "max", 1))
    with monkeypatch.context() as patch:
        patch.setattr(retention, "delete_files", lambda names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune(run, rule)
    commit(run, 5)

    prune(run, rule)

    assert sorted(run.checkpoints.values_list("step", flat=True)) == [3, 4, 5]
    assert named() < existing(directory)
    age(directory, 2 * 24 * 3600)
    assert cleanups.collect_orphans() == 3
    assert existing(directory) == named()


def test_prune__a_storage_that_is_down_leaves_orphans_only(directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not fail because an old file could not be deleted."""
    for step in range(3):
        commit(run, step)

    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(storages["files"], "delete", fail)

    assert prune(run, Retention(keep_last=1)) == 2
    assert len(existing(directory)) == 3


def test_prune__quarantined_ones_count_for_nothing(directory: Path, run: Run) -> None:
    """Damaged checkpoints do not push good ones out, and are left for a look."""
    first, second, third, fourth = (commit(run, step) for step in range(4))
    Checkpoint.objects.filter(pk__in=[third.pk, fourth.pk]).update(status="quarantined")

    prune(run, Retention(keep_last=1))

    assert list(run.checkpoints.order_by("pk")) == [second, third, fourth]
    assert first.name not in existing(directory)


def test_prune__other_runs_are_left_alone(directory: Path, run: Run) -> None:
    """Pruning one run touches no other."""
    other = Run.objects.create(key="train:2")
    commit(other, 1)
    commit(run, 1)
    commit(run, 2)

    prune(run, Retention(keep_last=1))

    assert other.checkpoints.count() == 1
    assert existing(directory) == named()


def test_best__is_also_a_rule_of_its_own() -> None:
    """`Best` may be given as such."""
    assert Retention(keep_best=Best("loss", "min", 2)).keep_best == Best("loss", "min", 2)
