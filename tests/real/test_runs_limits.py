"""A soft time limit strikes anywhere, our own code and Django's included: it ends a slice, and the child goes on with the next."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections, transaction
from django.db.backends.base import base

import resilience.runs
from resilience.runs.attempts import Attempt
from resilience.runs.leases import take
from resilience.runs.models import Run
from resilience.runs.options import RunConfig
from tests.length import LONG

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 300)]

#: Our own code, and Django's that begins and ends transactions.
STRUCK = (str(Path(str(resilience.runs.__file__)).parent), str(transaction.__file__), str(base.__file__))

STEPS = 5


def striking(at: int, lines: list[str]) -> Callable[..., Any]:
    """A trace function that raises before the line of that number, as Celery's handler of the signal does."""

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        # Python itself may lose the end of a `with` block to an exception that strikes right there.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(lines) == at:
                raise SoftTimeLimitExceeded
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return count if frame.f_code.co_filename.startswith(STRUCK) else None

    return enter


def work(key: str, using: str, update: Callable[[int], Any], at: int, lines: list[str]) -> Attempt:
    """One slice; in that of a new run the limit strikes in the save of the third step."""
    run, _ = Run.objects.using(using).get_or_create(key=key)
    found = take(run, using, statuses=("queued",))
    assert found is not None
    attempt = Attempt(*found, RunConfig(keep_last=1), ends_of_slice=(SoftTimeLimitExceeded,))
    with attempt as active:
        strikes_at = -1 if active.resuming else 2
        for step in active.steps(STEPS):
            tracer = sys.gettrace()  # that of whoever measures coverage
            if step == strikes_at:
                sys.settrace(striking(at, lines))
            try:
                active.checkpoint(update(step))
            finally:
                sys.settrace(tracer)
    return attempt


STATES: dict[str, Callable[[int], Any]] = {"row": lambda step: step, "file": lambda step: {"w": np.full(10, step)}}


#: Every line when there is time for it, or one in so many.
@pytest.mark.parametrize(
    ("database", "tier", "stride"),
    [("sqlite_file", "row", 11), ("sqlite_file", "file", 41), ("postgresql", "row", 23), ("mariadb", "row", 23)],
)
def test_soft_time_limit__in_any_line_of_a_save_ends_a_slice(
    directory: Path, request: pytest.FixtureRequest, database: str, tier: str, stride: int
) -> None:
    """No error in the history, no transaction left open, and the next slice goes on from a good checkpoint to the end."""
    using = request.getfixturevalue(database)
    at, wrong = 1, []
    while True:
        lines: list[str] = []
        key = f"limit-{at}"
        first = work(key, using, STATES[tier], at, lines)
        if len(lines) < at:
            break
        struck = Run.objects.using(using).get(key=key)
        ended = work(key, using, STATES[tier], at, lines)
        if (first.outcome.reason, struck.errors, ended.outcome.reason) != ("slice", [], "finished"):
            wrong.append((lines[-1], first.outcome, struck.errors, ended.outcome))
        if connections[using].in_atomic_block or not connections[using].get_autocommit():
            wrong.append((lines[-1], "left in a transaction"))
        at += 1 if LONG else stride

    assert at > 50
    assert wrong == []
