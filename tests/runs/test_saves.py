"""What a save tells of its cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from resilience import open_run
from resilience.runs import store
from resilience.testing import FakeClock

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("step_takes", "save_takes", "options", "said"),
    [
        (0.9, 0.3, {}, ["run slow: saving takes 25 % of its time; every_seconds=, every= or background=True make it less"]),
        (9.0, 0.3, {}, []),
        (0.0, 0.1, {}, []),
        (0.9, 0.3, {"background": True}, []),
    ],
    ids=["much", "little", "short", "beside the loop"],
)
def test_saving__that_takes_much_of_the_time_is_told_once(
    fake_clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step_takes: float,
    save_takes: float,
    options: dict[str, Any],
    said: list[str],
) -> None:
    """Nobody's loop is slower by a quarter without being told what makes it less; what costs little is not mentioned."""
    write = store.write

    def write_slowly(*args: Any, **keywords: Any) -> store.StoredState:
        fake_clock.advance(save_takes)
        return write(*args, **keywords)

    monkeypatch.setattr(store, "write", write_slowly)

    with caplog.at_level(logging.WARNING, "resilience.runs"), open_run("slow", lease=3600, **options) as run:
        for step in run.steps(40):
            fake_clock.advance(step_takes)
            run.checkpoint(step)

    assert [record.getMessage() for record in caplog.records] == said
