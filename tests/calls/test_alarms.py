from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from resilience.calls.alarms import call_under_alarm
from tests.length import LONG

#: Every instant when there is time for it, or one in so many.
STEPS = {"fast": 1, "slow": 1, "nested": 1} if LONG else {"fast": 17, "slow": 23, "nested": 71}


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=280, check=False)


def program(text):
    """Run a program in a process of its own, where SIGALRM has its default action."""
    prelude = """
    import os, signal, sys, time
    from resilience.calls.alarms import call_under_alarm
    def limited(seconds, func, *args):
        return call_under_alarm(seconds, TimeoutError, func, args, {})
    """
    return python("-c", textwrap.dedent(prelude) + textwrap.dedent(text))


@pytest.mark.chaos
@pytest.mark.parametrize("scene", ["fast", "slow", "nested"])
@pytest.mark.parametrize("beneath", ["default", "watchdog"])
def test_alarm__an_interrupt_at_any_instant_leaves_nothing_that_rings(beneath, scene):
    """Interrupted before any instruction, a limit kills no process, rings no more, and the next one works."""
    done = python("-m", "tests.calls.interrupted_limits", beneath, scene, str(STEPS[scene]))

    instants, _, bad = done.stdout.partition(" instants, bad ones: ")
    assert (bad.strip(), done.stderr) == ("[]", "")
    assert int(instants) > 150


def test_alarm__an_exit_in_the_middle_of_a_call_ends_the_process_as_asked():
    """SystemExit from a SIGTERM handler ends the process with its own code, however long the end takes."""
    done = program("""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        class SlowToDie:
            def __del__(self, sleep=time.sleep): sleep(0.3)
        sys.last = SlowToDie()
        limited(0.1, os.kill, os.getpid(), signal.SIGTERM)
    """)

    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_alarm__somebodys_alarm_with_its_default_action_still_ends_the_process(when):
    """An alarm that was meant to end the process does so, whether it was set before our first limit or after it."""
    done = program(f"""
        if {when!r} == "before":
            signal.alarm(1)
            limited(5, int)
        else:
            limited(5, int)
            signal.alarm(2)
        time.sleep(10)
    """)

    assert done.returncode == -signal.SIGALRM


def test_alarm__rings_once_a_destructor_is_done():
    """In `__del__`, where Python throws exceptions away, the alarm waits for the code around it."""
    reached = []

    class Slow:
        def __del__(self):
            time.sleep(0.1)
            reached.append("the end of __del__")

    def work():
        slow = Slow()
        del slow
        time.sleep(30)

    with pytest.raises(TimeoutError):
        call_under_alarm(0.03, TimeoutError, work, (), {})

    assert reached == ["the end of __del__"]


def test_alarm__a_forked_child_inherits_no_timer():
    """A child forked within a limit gets neither our timer nor the one that was running before."""
    done = program("""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(3))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        child = limited(0.15, os.fork)
        if not child:
            time.sleep(0.5)
            os._exit(9)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)

    assert (done.returncode, done.stderr) == (9, "")
