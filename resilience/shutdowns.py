"""The notice that this worker is about to end, where running tasks can see it.

Celery tells the main process alone that it was asked to end; a task in a prefork child never hears of it, and of a
soft shutdown even the main process hears only when the time is over. So one byte of memory is shared with the
children, and the handlers of SIGTERM, SIGQUIT and SIGINT are wrapped: they set the byte, then do what they did.

The byte is plain shared memory and not a `multiprocessing.Event`: an event is read under a lock, and a child
killed while it reads would leave the lock taken for the main process to hang on.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery import bootsteps, current_task, signals

__all__ = ["announce", "is_stopping", "is_worker_stopping", "withdraw"]

# Made when tasks are imported, which is before the pool forks: children share it.
_notice = mmap.mmap(-1, 1)

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
_MARK = "_resilience_announces"


def is_stopping() -> bool:
    """Tell whether the worker that this code runs in was asked to end.

    Example:
        >>> is_stopping()
        False
    """
    if _notice[0]:
        return True
    state = sys.modules.get("celery.worker.state")
    # In pools without children (solo, threads, gevent) Celery's own flags are in reach; an exit code of 0 counts.
    flags = (getattr(state, "should_stop", None), getattr(state, "should_terminate", None))
    return any(flag is not None and flag is not False for flag in flags)


def is_worker_stopping() -> bool:
    """Tell the same to code that may be called anywhere; False outside the tasks that a worker runs.

    A process that had a worker, as one that runs tests, goes on when that has ended.
    """
    request = getattr(current_task, "request", None)
    return request is not None and not (request.called_directly or request.is_eager) and is_stopping()


def announce(**kwargs: Any) -> None:
    """Tell every task of this worker that it is time to save and leave; safe in a signal handler."""
    _notice[0] = 1


def withdraw(**kwargs: Any) -> None:
    """Take the notice back: a worker begins."""
    _notice[0] = 0


def wrap_handlers(**kwargs: Any) -> None:
    """Announce the end before Celery's own handlers do theirs; once a process, in its main thread only."""
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and not hasattr(handler, _MARK):
            try:
                signal.signal(number, _announcing(handler))
            except ValueError:
                # Not the main thread: whoever embeds a worker handles the signals.
                return


def _announcing(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
    owner = os.getpid()

    def announce_first(number: int, frame: FrameType | None) -> Any:
        # Between fork and its own set-up a child still has this handler; its end is not the worker's.
        if os.getpid() == owner:
            announce()
        return handler(number, frame)

    setattr(announce_first, _MARK, True)
    return announce_first


class _Ending(bootsteps.StartStopStep):
    """Announces the end of a worker that no signal of the system tells of, as `control.shutdown()`, before its pool waits for tasks."""

    def close(self, worker: Any) -> None:
        """The worker has stopped to take messages, and begins to wait."""
        announce()


def add_step(sender: Any, **kwargs: Any) -> None:
    """Let the worker that begins run our step when it ends."""
    if (app := getattr(sender, "app", None)) is not None:
        app.steps["worker"].add(_Ending)


signals.worker_init.connect(withdraw, weak=False, dispatch_uid="resilience.withdraw")
signals.worker_ready.connect(wrap_handlers, weak=False, dispatch_uid="resilience.wrap_handlers")
signals.worker_init.connect(add_step, weak=False, dispatch_uid="resilience.add_step")
signals.worker_shutting_down.connect(announce, weak=False, dispatch_uid="resilience.announce")
signals.worker_shutdown.connect(announce, weak=False, dispatch_uid="resilience.announce")
