from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connections

from resilience import clock, load_checkpoint, open_run
from resilience.exceptions import CheckpointError
from resilience.runs import store
from resilience.runs.background import BackgroundSaver
from resilience.runs.models import Run

LIMIT = 30


class Gate:
    """A save that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.open.wait(LIMIT)


def fail() -> None:
    raise OSError("disk full")


def test_submit__saves_beside_the_loop() -> None:
    """The job runs in another thread while the caller goes on."""
    threads = []

    with BackgroundSaver() as saver:
        saver.submit(lambda: threads.append(threading.current_thread()))
        assert saver.wait(LIMIT)

    assert threads[0] is not threading.current_thread()


def test_submit__of_those_that_wait_the_newest_wins() -> None:
    """A storage slower than the loop saves the first and the newest state, not a queue of old ones."""
    gate, saved = Gate(), []

    with BackgroundSaver() as saver:
        saver.submit(gate)
        assert gate.entered.wait(LIMIT)
        for number in range(100):
            saver.submit(lambda number=number: saved.append(number))
        gate.open.set()

    assert saved == [99]


def test_close__saves_what_waits() -> None:
    """The state given last is saved before the end, whatever still waited."""
    saved: list[str] = []
    saver = BackgroundSaver()
    saver.submit(lambda: saved.append("last"))

    saver.close()

    assert saved == ["last"]
    assert saver._thread is not None
    assert not saver._thread.is_alive()


def test_submit__tells_the_error_of_an_earlier_save_once_and_takes_the_job() -> None:
    """A failed save comes up in the next step, and the state given then is saved all the same."""
    saved: list[int] = []
    saver = BackgroundSaver()
    saver.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        saver.wait(LIMIT)
    saver.submit(fail)
    while saver._error is None:
        assert saver._thread is not None
        saver._thread.join(0.01)

    with pytest.raises(OSError, match="disk full"):
        saver.submit(lambda: saved.append(1))

    saver.submit(lambda: saved.append(2))
    saver.close()
    assert saved[-1] == 2


def test_close__tells_the_error_of_the_last_save() -> None:
    """A save that fails at the end is not lost in silence."""
    saver = BackgroundSaver()
    saver.submit(fail)

    with pytest.raises(OSError, match="disk full"):
        saver.close()


def test_exit__keeps_the_loops_own_exception() -> None:
    """When the loop and the save both fail, the loop's error goes on, with a note of the other."""

    def loop() -> None:
        with BackgroundSaver() as saver:
            saver.submit(fail)
            raise KeyError("loop")

    with pytest.raises(KeyError) as caught:
        loop()

    assert caught.value.__notes__ == ["A background save failed too: OSError"]


def test_exit__raises_the_saves_error_when_the_loop_was_fine() -> None:
    """Leaving the block does not swallow a failed save."""
    with pytest.raises(OSError, match="disk full"), BackgroundSaver() as saver:
        saver.submit(fail)


def test_wait__gives_up_after_its_time() -> None:
    """A save that hangs does not hold the caller beyond the time given."""
    gate, saver = Gate(), BackgroundSaver()
    saver.submit(gate)

    assert saver.wait(0.01) is False

    gate.open.set()
    saver.close()


def test_submit__after_close_is_refused() -> None:
    """A state given too late is not lost in silence."""
    saver = BackgroundSaver()
    saver.close()

    with pytest.raises(RuntimeError, match="takes no more saves"):
        saver.submit(fail)


def test_close__without_any_save_starts_no_thread() -> None:
    """Who never saves pays for no thread."""
    saver = BackgroundSaver()

    saver.close()

    assert saver._thread is None


def test_thread__closes_its_database_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread leaves no connection behind when it ends."""
    closed: list[threading.Thread] = []
    monkeypatch.setattr(connections, "close_all", lambda: closed.append(threading.current_thread()))

    with BackgroundSaver() as saver:
        saver.submit(lambda: None)

    assert closed == [saver._thread]


def test_checkpoint__in_the_background_is_waited_for_at_the_end(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose last state is being stored is not finished before it is safe, and fails if it cannot be."""
    write = store.write

    def slow(run: Run, step: int, state: object, **options: Any) -> store.StoredState:
        clock.sleep(0.1)
        if run.key == "full" and step == 2:
            raise CheckpointError("disk full", "storage")
        return write(run, step, state, **options)

    monkeypatch.setattr(store, "write", slow)

    with open_run("a", background=True, using=postgresql) as run:
        for step in run.steps(3):
            run.checkpoint(step)
    with pytest.raises(CheckpointError, match="last state"), open_run("full", background=True, using=postgresql) as run:
        for step in run.steps(3):
            run.checkpoint(step)

    assert load_checkpoint("a", using=postgresql) == 2
    assert list(Run.objects.using(postgresql).order_by("key").values_list("status", flat=True)) == ["finished", "failed"]
