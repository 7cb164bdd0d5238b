"""A soft time limit that strikes while a checkpoint is read or deleted is never taken for a fault of the disk, and never lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.files.storage import FileSystemStorage
from django.db import ProgrammingError, connections

from resilience import open_run
from resilience.runs import store
from resilience.runs.attempts import Attempt
from resilience.runs.heartbeats import Progress
from resilience.runs.leases import take
from resilience.runs.models import Run
from resilience.runs.options import RunConfig
from resilience.runs.retention import delete_files
from tests.runs.checkpoint_files import commit


@pytest.mark.parametrize("method", ["open", "exists"])
def test_soft_time_limit__while_a_checkpoint_is_read_is_no_damage(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nothing is quarantined, and nobody reads on as if the storage had not answered."""
    checkpoint = commit(run, 1)
    monkeypatch.setattr(FileSystemStorage, "open", raising(OSError) if method == "exists" else raising(SoftTimeLimitExceeded))
    monkeypatch.setattr(FileSystemStorage, "exists", raising(SoftTimeLimitExceeded))

    with pytest.raises(SoftTimeLimitExceeded):
        store.load_latest(run)

    checkpoint.refresh_from_db()
    assert checkpoint.status == "good"


def test_soft_time_limit__while_old_files_are_deleted_comes_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that refuses to delete leaves an orphan, a limit ends the slice."""
    monkeypatch.setattr(FileSystemStorage, "delete", raising(OSError))
    delete_files([("files", "one")])

    monkeypatch.setattr(FileSystemStorage, "delete", raising(SoftTimeLimitExceeded))
    with pytest.raises(SoftTimeLimitExceeded):
        delete_files([("files", "one")])


@pytest.mark.parametrize(("steps_before", "ends"), [(1, "slice"), (0, "error")])
def test_soft_time_limit__behind_a_drivers_complaint_counts_as_a_limit(run: Run, steps_before: int, ends: str) -> None:
    """What surfaces of a limit in the body's own statement is "another command is in progress"; the limit is what ended the slice."""
    found = take(run, "default", statuses=("queued",))
    assert found is not None
    attempt = Attempt(*found, RunConfig(), ends_of_slice=(SoftTimeLimitExceeded,))

    with suppress(SoftTimeLimitExceeded), attempt as active:
        for step in active.steps(3):
            if step == steps_before:
                try:
                    raise SoftTimeLimitExceeded
                finally:
                    raise ProgrammingError("can't change 'autocommit' now: connection in transaction status INTRANS")
            active.checkpoint(step)

    assert attempt.outcome.reason == ends
    run.refresh_from_db()
    assert [error["error"].partition(":")[0] for error in run.errors] == ([] if ends == "slice" else ["SoftTimeLimitExceeded"])


def test_soft_time_limit__behind_a_complaint_while_the_state_is_read_counts_as_a_limit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same before the body begins: what comes out, and what the history names, is the limit."""

    def complain(*args: Any, **options: Any) -> Any:
        try:
            raise SoftTimeLimitExceeded
        finally:
            raise ProgrammingError("another command is in progress")

    monkeypatch.setattr(store, "load_latest", complain)

    with pytest.raises(SoftTimeLimitExceeded), open_run(run.key):
        pytest.fail("the body must not begin")

    run.refresh_from_db()
    assert run.last_error.partition(":")[0] == "SoftTimeLimitExceeded"


def test_soft_time_limit__behind_a_complaint_at_the_end_ends_a_slice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same after the body: the run goes on with the next slice, and nothing failed."""

    def complain(self: Progress) -> None:
        try:
            raise SoftTimeLimitExceeded
        finally:
            raise ProgrammingError("another command is in progress")

    monkeypatch.setattr(Progress, "flush", complain)
    found = take(run, "default", statuses=("queued",))
    assert found is not None

    with Attempt(*found, RunConfig(), ends_of_slice=(SoftTimeLimitExceeded,)) as active:
        active.checkpoint(1)

    run.refresh_from_db()
    assert (run.status, run.errors) == ("queued", [])


@pytest.mark.parametrize("struck", [SoftTimeLimitExceeded, KeyboardInterrupt, SystemExit])
def test_open_run__that_a_signal_cut_off_keeps_no_connection(postgresql: str, struck: type[BaseException]) -> None:
    """The signal may have come in the middle of an answer, in a task that is not resumable, too."""
    with pytest.raises(struck), open_run("a", using=postgresql):
        before = connections[postgresql].connection
        raise struck

    assert before.closed


@pytest.mark.parametrize("handled", [GeneratorExit, SoftTimeLimitExceeded])
def test_error__of_the_database_is_its_own_when_nothing_broke_into_it(run: Run, handled: type[BaseException]) -> None:
    """What a generator's cleanup meets as it is closed, and what is met long after a limit was dealt with, are failures."""
    if handled is GeneratorExit:
        with pytest.raises(ProgrammingError), open_run(run.key):
            rows = cleaning_up()
            next(rows)
            rows.close()
    else:
        try:
            raise handled
        except handled:
            with pytest.raises(ProgrammingError), open_run(run.key):
                raise ProgrammingError("no such column") from None

    run.refresh_from_db()
    assert (run.status, run.last_error.partition(":")[0]) == ("failed", "ProgrammingError")


@pytest.mark.parametrize(("server", "statement"), [("postgresql", "SELECT pg_sleep(9)"), ("mariadb", "SELECT SLEEP(9)")])
def test_soft_time_limit__in_a_statement_of_an_open_run_gives_it_back(
    server: str, statement: str, request: pytest.FixtureRequest
) -> None:
    """In a task that is not resumable the limit fails the run, and the answer half read is in nobody's way."""
    using = request.getfixturevalue(server)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: raising(SoftTimeLimitExceeded)())
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1])

    try:
        with pytest.raises(SoftTimeLimitExceeded), open_run("a", using=using), connections[using].cursor() as cursor:
            timer.start()
            cursor.execute(statement)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)

    struck = Run.objects.using(using).get()
    assert (struck.status, struck.last_error.partition(":")[0]) == ("failed", "SoftTimeLimitExceeded")


def cleaning_up() -> Iterator[int]:
    """A generator whose own cleanup fails."""
    try:
        yield 1
    finally:
        raise ProgrammingError("cursor does not exist")


def raising(error: type[Exception]) -> Callable[..., Any]:
    """A function that only raises."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise error

    return refuse
