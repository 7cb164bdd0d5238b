"""A program that is interrupted inside the alarm clock, at one instant after the other; `test_alarms` runs it.

Argument 1 names what stands beneath our alarms: "default" for SIGALRM's default action, "watchdog" for a timer and a
handler of somebody else's. Argument 2 tells what is interrupted: a "fast" call, a "slow" one that is cut off, or a
"nested" one. Argument 3 is how many instants to go on at a time. Each attempt is a process of its own, whose end takes longer than the limit: a timer that was left
running with the default action back in place kills it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from resilience.calls import alarms

LIMIT = 0.004
NOT_REACHED = 7
#: So many attempts in a row that ended before they were interrupted: that was all. One may be cut off early by its limit.
ENOUGH = 8
WATCHDOG_DUE = 60.0


class SlowToDie:
    """Something that takes its time when the interpreter is torn down, after default actions are back."""

    def __del__(self, sleep=time.sleep):
        sleep(LIMIT * 3)


def watchdog(signum, frame):
    os.write(2, b"the watchdog was rung for nothing\n")
    os._exit(3)


def limited(seconds, func, *args):
    return alarms.call_under_alarm(seconds, TimeoutError, func, args, {})


def slow():
    limited(LIMIT, time.sleep, 5)


SCENES = {"fast": lambda: limited(LIMIT, int), "slow": slow, "nested": lambda: limited(LIMIT, limited, 5, time.sleep, 5)}


def interrupt_at(number, scene):
    """Run a scene and raise SystemExit, as a SIGTERM handler does, before the so-manieth instruction of the alarm clock."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if event == "opcode":
            seen += 1
            if seen == number:
                sys.settrace(None)
                raise SystemExit(0)
        return trace

    def begin(frame, event, argument):
        if frame.f_code.co_filename != alarms.__file__:
            return None
        frame.f_trace_opcodes = True
        return trace

    sys.settrace(begin)
    try:
        scene()
    except TimeoutError:
        pass
    finally:
        sys.settrace(None)
    sys.exit(NOT_REACHED)


def go_on_after(number, scene, beneath):
    """Catch the interrupt and go on: nothing may ring later, and the next limit must."""
    try:
        interrupt_at(number, scene)
    except SystemExit as end:
        code = end.code
    until = time.monotonic() + LIMIT * 2
    while time.monotonic() < until:
        pass
    try:
        slow()
    except TimeoutError:
        pass
    else:
        os._exit(4)
    delay, _ = signal.getitimer(signal.ITIMER_REAL)
    if beneath == "watchdog" and not (delay > WATCHDOG_DUE - 20 and signal.getsignal(signal.SIGALRM) is watchdog):
        os._exit(5)
    if beneath == "default" and delay:
        os._exit(6)
    sys.exit(code)


def main(beneath, name, step):
    for _ in range(2):  # Python 3.13 traces the instructions of a function only when it has been traced before
        with contextlib.suppress(SystemExit):
            interrupt_at(0, SCENES[name])
    signal.signal(signal.SIGALRM, watchdog if beneath == "watchdog" else signal.SIG_DFL)
    number, bad, missed = 0, [], 0
    while missed < ENOUGH:
        number += step
        for survive in (False, True):
            child = os.fork()
            if child == 0:
                if beneath == "watchdog":
                    signal.setitimer(signal.ITIMER_REAL, WATCHDOG_DUE)
                sys.last = SlowToDie()
                if survive:
                    go_on_after(number, SCENES[name], beneath)
                interrupt_at(number, SCENES[name])
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code not in {0, NOT_REACHED}:
                bad.append((number, survive, code))
            missed = missed + 1 if code == NOT_REACHED else 0
    sys.stdout.write(f"{number} instants, bad ones: {bad}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
