from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from project.demo import processes
from project.demo.processes import Family
from tests.project.processes_of_demo import processes_of
from tests.servers import wait_until

SLEEPER = ("-S", "-c", "import time; print(1); time.sleep(600)")
QUICK = ("-S", "-c", "print(1)")
#: Where a child is started, waited for and ended.
STEPS = (processes.__file__, sys.modules["subprocess"].__file__)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A demo's folder; this process's handlers of signals are as before afterwards."""
    monkeypatch.setenv("DEMO_VAR", str(tmp_path))
    before = {number: signal.getsignal(number) for number in processes._ENDINGS}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


class Interrupter:
    """Sends this process a SIGINT where a line of `STEPS` is reached that no earlier one was sent at."""

    def __init__(self) -> None:
        self.used: set[tuple[str, int]] = set()
        self.last = ("", 0)
        self.armed = True

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        # What a destructor raises goes nowhere, and by then all is done.
        if frame.f_code.co_filename not in STEPS or frame.f_code.co_name == "__del__":
            return None
        place = (frame.f_code.co_filename, frame.f_lineno)
        if self.armed and event == "line" and place not in self.used:
            self.last = place
            self.used.add(place)
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return self


def live(log: Path) -> None:
    """Start children, listen to them, wait for one, stop one, leave one to the end."""
    received: list[Any] = []
    with Family(log) as family:
        family.start_quietly(*SLEEPER)
        stopped = family.start(*SLEEPER)
        family.listen([stopped], received.append)
        family.gather([family.start(*QUICK)], received.append)
        family.stop(stopped)
        family.rest(0.001)


def test_family__ends_every_child_wherever_ctrl_c_arrives(folder: Path) -> None:
    """A SIGINT at any line that starts, awaits or ends children comes out once, and no child is left."""
    interrupter, tracer = Interrupter(), sys.gettrace()

    while not interrupter.armed or not interrupter.used:
        interrupter.armed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as a process is born
        sys.settrace(interrupter)
        try:
            live(folder / "log")
        except KeyboardInterrupt:
            came_out = True
        else:
            came_out = False
        finally:
            sys.settrace(tracer)
        assert came_out is not interrupter.armed, f"interrupted at {interrupter.last}"
        assert processes_of(folder) == [], f"interrupted at {interrupter.last}"

    assert len(interrupter.used) > 80


def test_family__hears_a_ctrl_c_that_it_was_born_deaf_to(folder: Path) -> None:
    """A shell's background job has SIGINT ignored from birth; inside the block it counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with pytest.raises(KeyboardInterrupt), Family(folder / "log") as family:
        signal.raise_signal(signal.SIGINT)
        family.rest(60)


def test_family__puts_handlers_back_unless_it_was_interrupted(folder: Path) -> None:
    """After the block signals do what they did before; after an interrupt a second Ctrl-C does nothing."""
    before = [signal.getsignal(number) for number in processes._ENDINGS]

    with Family(folder / "log"):
        assert before != [signal.getsignal(number) for number in processes._ENDINGS]
    assert before == [signal.getsignal(number) for number in processes._ENDINGS]

    with pytest.raises(KeyboardInterrupt), Family(folder / "log"):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_family__obeys_an_interrupt_that_was_swallowed(folder: Path) -> None:
    """Code that catches the KeyboardInterrupt and goes on meets it again at the next step, and at the end."""
    with pytest.raises(KeyboardInterrupt), Family(folder / "log") as family:
        child = family.start(*SLEEPER)
        signal.raise_signal(signal.SIGINT)
        for step in (family.heed, lambda: family.start(*QUICK), lambda: family.stop(child)):
            with pytest.raises(KeyboardInterrupt):
                step()

    assert child.returncode in {-signal.SIGTERM, -signal.SIGKILL}


def test_family__ends_children_of_children(folder: Path) -> None:
    """What a child started ends with it."""
    forking = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"

    with Family(folder / "log") as family:
        family.start("-c", f"{forking}; time.sleep(600)")
        wait_until(lambda: len(processes_of(folder)) == 2, 30, "the child's child was not started")

    wait_until(lambda: processes_of(folder) == [], 10, lambda: f"still there: {processes_of(folder)}")


def test_family__tells_which_child_failed(folder: Path) -> None:
    """A child that ends with an error is an error with its exit code and the log that explains it."""
    with pytest.raises(RuntimeError, match=r"exit codes \[3\].*log"), Family(folder / "log") as family:
        family.gather([family.start("-S", "-c", "raise SystemExit(3)")], print)
