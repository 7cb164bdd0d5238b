"""One alarm clock for many: nested time limits of the main thread over the process's single SIGALRM timer.

A process has one such timer. Whoever sets it naively silences whoever set it before; here every alarm keeps its
own due time, the timer is always wound to the nearest of them, and a timer that was running before (pytest-timeout's,
say) rings on time too and gets its handler back.

Other signals may interrupt this module between any two of its lines: a worker's SIGTERM handler that raises
SystemExit, Celery's soft time limit, Control-C. So nothing here relies on being run to its end:

- An alarm is over as soon as its call is left, by one assignment that nothing can interrupt. One that is over never
  rings, wherever it may still stand.
- The timer repeats until it is wound anew, so that a bell that was interrupted is heard at the next stroke.
- Where SIGALRM had its default action, which ends the process, `_ring` stays in its place: a late stroke is ignored.
- Python puts default actions back on its way out, so the timer is stopped before.

Only the main thread may use this module. It goes by the kernel's time, not by `resilience.clock`, because the
timer does.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

__all__ = ["available", "call_under_alarm"]

R = TypeVar("R")

_SOON = 1e-5
#: Seconds between the strokes of a bell that nobody has heard.
_AGAIN = 0.05
#: Seconds in which a stroke may still be one of a timer that was stopped: a signal may be on its way to another thread.
_ECHO = 1.0


def available() -> bool:
    """Tell whether this thread may set alarms: the main one, on a system that has SIGALRM, with a handler we can put back."""
    return (
        threading.current_thread() is threading.main_thread()
        and hasattr(signal, "setitimer")
        and signal.getsignal(signal.SIGALRM) is not None
    )


def call_under_alarm(
    seconds: float, expired: Callable[[], Exception], func: Callable[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> R:
    """Call a function, and interrupt it after so many seconds with the exception that `expired` makes.

    Args:
        seconds: The limit, above 0.
        expired: Makes the exception.
        func: What to call.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> call_under_alarm(0.01, lambda: TimeoutError("too slow"), time.sleep, (60,), {})
        Traceback (most recent call last):
        TimeoutError: too slow
    """
    alarm = _Alarm(time.monotonic() + seconds)
    try:
        try:
            _set(alarm)
            return func(*args, **kwargs)
        finally:
            # Signals are handled after calls, so nothing comes between the end of the call and this assignment.
            alarm.is_over = True
            _settle()
    except BaseException as error:
        alarm.is_over = True
        _settle()  # again, for an interrupt that came before the line above did
        if not isinstance(error, _AlarmRang) or error.alarm is not alarm:
            raise
        # The traceback shows where the call was stuck.
        raise expired().with_traceback(error.__traceback__) from None


class _AlarmRang(BaseException):
    """Unwind the stack up to the call whose time is over, past every `except Exception` on the way."""

    def __init__(self, alarm: _Alarm) -> None:
        super().__init__("The time is over.")
        self.alarm = alarm


class _Alarm:
    """One time limit: due at an instant of `time.monotonic`, and over once it has rung or its call has been left."""

    __slots__ = ("due", "is_over")

    def __init__(self, due: float) -> None:
        self.due = due
        self.is_over = False


class _Beneath:
    """What others use SIGALRM for: their handler, and when their timer rings next."""

    __slots__ = ("due", "handler", "interval")

    def __init__(self, handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
        self.handler = handler
        self.read_timer()

    def read_timer(self) -> None:
        delay, self.interval = signal.getitimer(signal.ITIMER_REAL)
        self.due = time.monotonic() + delay if delay else None

    def ring(self, signum: int, frame: FrameType | None) -> None:
        self.due = time.monotonic() + self.interval if self.interval else None
        _wind()
        if callable(self.handler):
            self.handler(signum, frame)
        elif self.handler == signal.SIG_DFL:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)


_alarms: list[_Alarm] = []
_beneath: _Beneath | None = None
#: Until when a stroke may be our timer's: for ever while it is wound.
_ours_until = -math.inf


def _set(alarm: _Alarm) -> None:
    if all(other.is_over for other in _alarms):
        _take_over()
    _alarms.append(alarm)
    _wind()


def _take_over() -> None:
    """Put `_ring` in place, and note what was there; the timer of others runs on meanwhile."""
    global _beneath
    handler = signal.getsignal(signal.SIGALRM)
    if handler is not _ring:
        if _beneath is None:
            atexit.register(_leave)
            os.register_at_fork(after_in_child=_forget_parent)
        _beneath = _Beneath(handler)
        signal.signal(signal.SIGALRM, _ring)
    if _beneath is not None and _ours_until != math.inf:
        _beneath.read_timer()


def _settle() -> None:
    """Forget the alarms that are over; with the last of them, give the timer back."""
    _alarms[:] = [alarm for alarm in _alarms if not alarm.is_over]
    if _beneath is None:
        return
    _wind()
    if not _alarms and _beneath.handler != signal.SIG_DFL and signal.getsignal(signal.SIGALRM) is _ring:
        signal.signal(signal.SIGALRM, _beneath.handler)


def _wind() -> None:
    """Set the timer to whatever is due first. With no alarm left it is theirs again; one that is not ours is not touched."""
    global _ours_until
    assert _beneath is not None
    dues = [alarm.due for alarm in _alarms if not alarm.is_over]
    is_ours = bool(dues)
    if _beneath.due is not None:
        dues.append(_beneath.due)
    delay = max(min(dues) - time.monotonic(), _SOON) if dues else 0
    if is_ours:
        _ours_until = math.inf
        signal.setitimer(signal.ITIMER_REAL, delay, _AGAIN)
    elif _ours_until == math.inf:
        signal.setitimer(signal.ITIMER_REAL, delay, _beneath.interval)
        _ours_until = time.monotonic() + _ECHO


def _ring(signum: int, frame: FrameType | None) -> None:
    beneath, now = _beneath, time.monotonic()
    if beneath is None:
        return
    if (beneath.due is not None and beneath.due <= now) or (now > _ours_until and _is_theirs(beneath)):
        beneath.ring(signum, frame)
    # The outermost first: what it unwinds, it unwinds for the inner ones too.
    for alarm in _alarms:
        if not alarm.is_over and alarm.due <= now and _may_interrupt(alarm, frame):
            rang = _AlarmRang(alarm)
            alarm.is_over = True
            raise rang
    if all(alarm.is_over or alarm.due > now for alarm in _alarms):
        _wind()


def _is_theirs(beneath: _Beneath) -> bool:
    """Tell whether somebody has set an alarm whose default action, the end of the process, we are in the way of."""
    return beneath.handler == signal.SIG_DFL and signal.getsignal(signal.SIGALRM) is _ring


def _may_interrupt(alarm: _Alarm, frame: FrameType | None) -> bool:
    """Tell whether an exception raised in `frame` gets to the alarm's call: not out of `__del__`, nor out of another greenlet."""
    while frame is not None and frame.f_code.co_name != "__del__":
        if frame.f_code is call_under_alarm.__code__ and frame.f_locals.get("alarm") is alarm:
            return True
        frame = frame.f_back
    return False


def _forget_parent() -> None:
    """Begin anew in a forked child, which inherits the handler but no timer."""
    global _ours_until
    _alarms.clear()
    _ours_until = -math.inf
    if _beneath is not None:
        _beneath.due = None


def _leave() -> None:
    """Stop the timer before Python puts the default action back; a stroke under way must not end the process then."""
    _alarms.clear()
    if _beneath is None or signal.getsignal(signal.SIGALRM) is not _ring:
        return
    _wind()
    is_quiet = time.monotonic() > _ours_until
    signal.signal(signal.SIGALRM, _beneath.handler if is_quiet or _beneath.due is not None else signal.SIG_IGN)
