from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from celery import signals
from celery.worker import state

from resilience import shutdowns


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """The signals that the worker's own handlers got; afterwards everything is as before."""
    numbers: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in shutdowns._SIGNALS}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)
    shutdowns.withdraw()


@pytest.mark.parametrize("number", shutdowns._SIGNALS)
def test_signal__is_announced_and_reaches_celery_once(number: signal.Signals, heard: list[int]) -> None:
    """However often a worker becomes ready, each of its ends is announced and then handled as before."""
    signals.worker_ready.send(None)
    wrapped = signal.getsignal(number)
    signals.worker_ready.send(None)

    os.kill(os.getpid(), number)

    assert signal.getsignal(number) is wrapped
    assert shutdowns.is_stopping()
    assert heard == [number]


def test_child__shares_the_notice_and_gives_none(heard: list[int]) -> None:
    """A forked child sees that its worker is asked to end; its own end announces nothing."""
    shutdowns.wrap_handlers()

    assert _exit_code_of_child(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert not shutdowns.is_stopping()

    shutdowns.announce()
    assert _exit_code_of_child(lambda: None) == 1


def test_thread__leaves_the_signals_to_whoever_embeds_the_worker() -> None:
    """A worker in a thread cannot set handlers, and starts nevertheless."""
    before = signal.getsignal(signal.SIGTERM)
    errors: list[object] = []

    def embedded() -> None:
        try:
            shutdowns.wrap_handlers()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=embedded)
    thread.start()
    thread.join()

    assert errors == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("ending", [signals.worker_shutting_down, signals.worker_shutdown], ids=["shutting_down", "shutdown"])
def test_celery__that_ends_without_a_signal_is_heard(ending: signals.Signal) -> None:
    """An order to shut down is announced, and taken back when a worker begins."""
    ending.send(None)
    assert shutdowns.is_stopping()

    signals.worker_init.send(None)
    assert not shutdowns.is_stopping()


@pytest.mark.parametrize(("flag", "stopping"), [(None, False), (False, False), (True, True), (0, True)])
@pytest.mark.parametrize("name", ["should_stop", "should_terminate"])
def test_flags__of_a_worker_without_children_count(
    monkeypatch: pytest.MonkeyPatch, name: str, flag: bool | int | None, stopping: bool
) -> None:
    """Celery's own flags are read; an exit code of 0 is an end too."""
    monkeypatch.setattr(state, name, flag)

    assert shutdowns.is_stopping() is stopping


def _exit_code_of_child(act: object) -> int:
    """Return 1 if a forked child finds, after it acted, that its worker is asked to end."""
    assert callable(act)
    pid = os.fork()
    if not pid:
        act()
        os._exit(int(shutdowns.is_stopping()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
