"""Running the caller's code in another thread: what Django needs to know about it.

Database connections belong to threads. Work that moves to another thread leaves the caller's transaction and
opens connections of its own, which somebody has to close.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Self

from resilience.connections import is_in_atomic
from resilience.exceptions import OpenTransactionError
from resilience.redaction import log_exception

__all__ = ["Crew", "call_in_context", "close_connections", "require_no_transaction"]

logger = logging.getLogger("resilience.calls")


def require_no_transaction(what: str) -> None:
    """Refuse to leave this thread while one of its database connections is in a transaction.

    The block that Django's `TestCase` opens around a test does not count.

    Args:
        what: What would change threads, for the message.

    Raises:
        OpenTransactionError: A database alias is inside `atomic()`.
    """
    for connection in _connections():
        if is_in_atomic(connection):
            raise OpenTransactionError(
                f"{what} must not be used inside a transaction of the database {connection.alias!r}: it would run in another "
                "thread, which does not see the transaction's rows. Call it before the atomic() block, or after it."
            )


def close_connections() -> None:
    """Close the database connections that the current thread opened; call it as the thread's last act."""
    for connection in _connections():
        try:
            connection.close()
        except Exception as error:  # noqa: BLE001  # the thread's result is worth more than a tidy goodbye
            message = "Closing the database connection %r of a worker thread failed."
            log_exception(logger, message, connection.alias, error=error, level=logging.WARNING)


def _connections() -> list[Any]:
    """Return the database connections that this thread has opened, without loading Django's ORM for it."""
    database, configuration = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or configuration is None or not configuration.settings.configured:
        return []
    return list(database.connections.all(initialized_only=True))


class Crew:
    """Threads that call functions for one caller, with its context variables, and close their connections in the end.

    Use it in a with-block, which ends when the calls that were begun have returned; those not begun are dropped.

    Args:
        size: How many threads; 1 or more.
        name: What the threads are called.
    """

    def __init__(self, size: int, name: str) -> None:
        self._jobs: SimpleQueue[tuple[int, contextvars.Context, Callable[[Any], Any], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[int, bool, Any]] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(size)]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            # The process can have no more threads: those that began are not left waiting for jobs for ever.
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def run(self, func: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, bool, Any]]:
        """Call `func` for each numbered item; yield number, success, and result or exception, as each call ends."""
        for number, item in jobs:
            self._jobs.put((number, contextvars.copy_context(), func, item))
        for _ in jobs:
            yield self._outcomes.get()

    def _work(self) -> None:
        try:
            while job := self._jobs.get():
                number, context, func, item = job
                self._outcomes.put((number, *call_in_context(context, func, item)))
        finally:
            close_connections()


def call_in_context(context: contextvars.Context, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[bool, Any]:
    """Call `func` in `context` and return whether it succeeded, with its result or its exception of any kind."""
    try:
        return True, context.run(func, *args, **kwargs)
    except BaseException as error:  # noqa: BLE001  # it belongs to another thread, which raises it
        return False, error
