"""A disk or a database that is away while a run saves: the loop goes on, and no checkpoint is lost."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import OperationalError

from resilience import clock, load_checkpoint, open_run, signals
from resilience.exceptions import CheckpointError
from resilience.runs import saves
from resilience.runs.leases import Lease
from resilience.runs.models import Run
from tests.runs.checkpoint_files import existing, named
from tests.servers import PostgreSQL


@pytest.fixture
def failed() -> Any:
    """The steps whose save failed."""
    heard: list[int] = []
    signals.checkpoint_failed.connect(receiver := lambda step, **kwargs: heard.append(step), weak=False)
    yield heard
    signals.checkpoint_failed.disconnect(receiver)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EXDEV, errno.EDQUOT, errno.EIO])
def test_checkpoint__a_disk_that_refuses_costs_the_training_nothing(
    directory: Path, transactional_db: None, failed: list[int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The failure is told, the last good checkpoint kept, nothing left lying about, and the next state stored."""
    rename, kept = Path.rename, []

    def refuse(self: Path, target: Path) -> Path:
        if "000000000002-" in self.name or "000000000003-" in self.name:
            kept.append(load_checkpoint("a")["step"])
            raise OSError(code, os.strerror(code))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)

    with open_run("a", keep_last=2) as run:
        for step in run.steps(6):
            run.checkpoint({"w": np.full(10, step), "step": step})

    assert (failed, kept) == ([2, 3], [1, 1])
    assert load_checkpoint("a")["step"] == 5
    assert existing(directory) == named() != set()


def test_checkpoint__a_disk_that_refuses_for_good_stops_the_run(
    directory: Path, transactional_db: None, failed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many failures in a row as asked for, and not one earlier."""

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)

    with (
        pytest.raises(CheckpointError, match="4 checkpoints of run 'a' failed in a row"),
        open_run("a", max_failed_saves=4) as run,
    ):
        for step in run.steps(9):
            run.checkpoint({"w": np.full(10, step)})

    assert failed == [0, 1, 2, 3]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("lease", "bound"), [(4, 2), (60, 30), (6000, 30)])
def test_checkpoint__waits_for_a_database_half_a_lease_at_most(
    lease: float, bound: float, failed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stands still no longer than that, 30 seconds in any case, and its lease is not over by then."""
    now, stood, transaction = [1000.0], [], Lease.transaction
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def away(self: Lease, **values: Any) -> Any:
        if values.get("step") == 1:
            raise OperationalError("connection refused")
        return transaction(self, **values)

    monkeypatch.setattr(Lease, "transaction", away)

    with open_run("a", lease=lease) as run:
        for step in run.steps(3):
            began = now[0]
            run.checkpoint(step)
            stood.append(now[0] - began)

    assert failed == [1]
    assert bound / 4 < stood[1] <= bound
    assert load_checkpoint("a") == 2


@pytest.mark.django_db(transaction=True)
def test_checkpoint__committed_though_told_as_failed_is_in_no_later_ones_way(
    failed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A COMMIT that went through just before the database was gone for long costs the loop nothing when it is back."""
    now, transaction, away = [1000.0], Lease.transaction, [False]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    @contextmanager
    def lose_the_answer(self: Lease, **values: Any) -> Any:
        with transaction(self, **values):
            yield
        if values.get("step") == 1:
            away[0] = True
            raise OperationalError("server closed the connection unexpectedly")

    def is_committed(self: Any) -> bool:
        raise OperationalError("connection refused")

    monkeypatch.setattr(Lease, "transaction", lose_the_answer)
    monkeypatch.setattr(saves._Insertion, "_is_committed", is_committed)

    with open_run("a") as run:
        for step in run.steps(4):
            run.checkpoint(step)

    assert (failed, away) == ([1], [True])
    assert (run.step, load_checkpoint("a"), Run.objects.get().status) == (3, 3, "finished")


def test_checkpoint__a_database_that_is_down_for_some_steps_loses_none(
    postgresql: str, postgresql_server: PostgreSQL, failed: list[int]
) -> None:
    """While it is down steps go on; when it is back the newest state is stored, and the run finishes."""
    done = []

    with open_run("a", lease=1.0, max_failed_saves=9, using=postgresql) as run:
        for step in run.steps(7):
            if step == 2:
                postgresql_server.stop_immediately()
            if step == 5:
                postgresql_server.start()
            done.append(step)
            run.checkpoint({"done": done})

    row = Run.objects.using(postgresql).get()
    assert failed == [2, 3, 4]
    assert done == list(range(7))
    assert (row.status, row.step, row.attempts) == ("finished", 6, 1)
    assert load_checkpoint("a", using=postgresql) == {"done": done}
