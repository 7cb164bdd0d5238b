"""Bulkheads: how many calls to one dependency may run at once, so that a slow one cannot take every worker."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, ParamSpec, Self, TypeVar, cast
from weakref import WeakSet

from resilience import conf, signals
from resilience.calls.callables import is_async, require_plain_callable
from resilience.calls.deadlines import remaining
from resilience.exceptions import BulkheadFullError
from resilience.values import checked_count, checked_seconds

__all__ = ["Bulkhead"]

P = ParamSpec("P")
R = TypeVar("R")

_bulkheads: WeakSet[Bulkhead] = WeakSet()


class Bulkhead:
    """Let at most `max_concurrent` calls run at once in this process, and refuse the rest.

    One object serves plain and async code together, as a decorator, a context manager (`with`, `async with`) or
    through `call` and `acall`. Waiting callers get their places in the order they came. No lock is held while
    a call runs. Each object counts for itself: share the object, not the name.

    Args:
        name: Name for messages and signals.
        max_concurrent: How many calls may run at once; 1 or more.
        max_wait: How long a call may wait for a place, in seconds, 0 or more; never longer than `remaining()`.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.

    Example:
        >>> bulkhead = Bulkhead("reports", max_concurrent=1)
        >>> with bulkhead:
        ...     bulkhead.call(print, "never printed")
        Traceback (most recent call last):
        resilience.exceptions.BulkheadFullError: Bulkhead 'reports' is full: 1 call is running. Try again later, or raise max_concurrent.
    """

    def __init__(self, name: str, max_concurrent: int, max_wait: float | timedelta = 0) -> None:
        self.name = name
        self.max_concurrent = checked_count("max_concurrent", max_concurrent, 1, "Use 1 for one call at a time.")
        self.max_wait = checked_seconds("max_wait", max_wait, "Use 0 to refuse at once.", zero=True)
        self._start_empty()
        _bulkheads.add(self)

    def _start_empty(self) -> None:
        """Have no call running; a forked child has none of its parent's threads and so none of its calls."""
        self._lock = threading.Lock()
        self._running = 0
        self._waiters: deque[_ThreadWaiter | _TaskWaiter] = deque()

    def __repr__(self) -> str:
        return f"Bulkhead({self.name!r}, max_concurrent={self.max_concurrent}, max_wait={self.max_wait:g})"

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or a coroutine function."""
        require_plain_callable(func, "Bulkhead")
        if is_async(func):

            @functools.wraps(func)
            async def aguarded(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self.acall(cast("Callable[P, Awaitable[Any]]", func), *args, **kwargs)

            return cast("Callable[P, R]", aguarded)

        @functools.wraps(func)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(func, *args, **kwargs)

        return guarded

    def call(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `func` if there is a place for it.

        Raises:
            BulkheadFullError: No place became free within `max_wait`.
        """
        place = _Place()
        try:
            try:
                self._take(place)
                return func(*args, **kwargs)
            finally:
                self._leave(place)
        except BaseException:
            self._leave(place)  # again, for an interrupt that came before the line above did
            raise

    async def acall(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call and await `func` if there is a place for it.

        Raises:
            BulkheadFullError: No place became free within `max_wait`.
        """
        async with self:
            return await func(*args, **kwargs)

    @property
    def running(self) -> int:
        """How many calls hold a place now."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many calls wait for a place now."""
        return len(self._waiters)

    def __enter__(self) -> Self:
        place = _Place()
        try:
            self._take(place)
        except BaseException:
            self._leave(place)
            raise
        return self

    async def __aenter__(self) -> Self:
        place = _Place()
        try:
            waiter = self._enter(place, _TaskWaiter)
            if waiter is not None:
                self._settle(place, waiter, in_time=await waiter.wait(self._patience()))
        except BaseException:
            self._leave(place)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        place: _Place | None = None
        try:
            place = _Place(is_held=True)
            self._leave(place)
        except BaseException:
            self._leave(place or _Place(is_held=True))  # again, for an interrupt that came before the line above did
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__(*exc_info)

    def _take(self, place: _Place) -> None:
        """Take a place, or wait for one. A signal may interrupt it anywhere: `place` knows what there is to give back."""
        waiter = self._enter(place, _ThreadWaiter)
        if waiter is not None:
            self._settle(place, waiter, in_time=waiter.wait(self._patience()))

    def _enter(self, place: _Place, make_waiter: type[W]) -> W | None:
        """Take a place, or queue up for one: None means that the place is taken."""
        is_limited = conf.current().enabled
        with self._lock:
            if self._running < self.max_concurrent or not is_limited:
                self._running += 1
                place.is_held = True
                return None
            if self.max_wait:
                place.waiter = waiter = make_waiter()
                self._waiters.append(waiter)
                return waiter
        raise self._full()

    def _leave(self, place: _Place) -> None:
        """Leave the queue, and give the place to whoever has waited longest, or free it. Twice is once."""
        with self._lock:
            if place.waiter is not None:
                if place.waiter in self._waiters:
                    self._waiters.remove(place.waiter)
                place.is_held, place.waiter = place.waiter.granted, None
            if self._running <= self.max_concurrent:  # more only run after ENABLED was False for a while
                while place.is_held and self._waiters:
                    waiter = self._waiters.popleft()
                    # Signals are handled after calls, so nothing comes between these two.
                    place.is_held, waiter.granted = False, True
                    if not waiter.wake():
                        place.is_held, waiter.granted = True, False
            if place.is_held:
                running = max(0, self._running - 1)  # never below: a forked child began anew at 0
                self._running, place.is_held = running, False

    def _settle(self, place: _Place, waiter: W, *, in_time: bool) -> None:
        """End the wait: with a place, which may have been granted at the last instant, or with a refusal."""
        with self._lock:
            if in_time or waiter.granted:
                place.is_held, place.waiter = True, None
                return
        raise self._full()

    def _patience(self) -> float:
        return remaining(at_most=min(self.max_wait, threading.TIMEOUT_MAX))

    def _full(self) -> BulkheadFullError:
        signals.emit(signals.bulkhead_rejected, Bulkhead, name=self.name, max_concurrent=self.max_concurrent)
        return BulkheadFullError(self.name, self.max_concurrent)


class _Place:
    """What one call has to give back: its place, or its place in the queue. Changed together with the count."""

    __slots__ = ("is_held", "waiter")

    def __init__(self, *, is_held: bool = False) -> None:
        self.is_held = is_held
        self.waiter: _ThreadWaiter | _TaskWaiter | None = None


class _ThreadWaiter:
    """A thread in the queue."""

    __slots__ = ("_bell", "granted")

    def __init__(self) -> None:
        self.granted = False
        self._bell = threading.Event()

    def wait(self, seconds: float) -> bool:
        return self._bell.wait(seconds)

    def wake(self) -> bool:
        self._bell.set()
        return True


class _TaskWaiter:
    """A task in the queue, woken through its own event loop."""

    __slots__ = ("_future", "_loop", "granted")

    def __init__(self) -> None:
        self.granted = False
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def wait(self, seconds: float) -> bool:
        done, _ = await asyncio.wait([self._future], timeout=seconds)
        return bool(done)

    def wake(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._end_wait)
        except RuntimeError:  # its loop is closed: nobody is waiting any more
            return False
        return True

    def _end_wait(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


W = TypeVar("W", _ThreadWaiter, _TaskWaiter)


def _after_fork() -> None:
    """Free the locks and places that threads of the parent held at that instant."""
    for bulkhead in list(_bulkheads):
        bulkhead._start_empty()  # noqa: SLF001  # this module's own


os.register_at_fork(after_in_child=_after_fork)
