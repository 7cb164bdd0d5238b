"""Connections that are of no more use: noticed before the work begins, and given up after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, overload

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.connections import is_in_transaction

__all__ = [
    "aliases_in_blocks",
    "drop_connection",
    "ensure_connection",
    "free_connections",
    "replace_connection",
    "require_plain_def",
]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def ensure_connection(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def ensure_connection(*, using: str = "default") -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def ensure_connection(func: Callable[..., Any] | None = None, /, *, using: str = "default") -> Any:
    """Decorate a function so that a dead connection is noticed and replaced before it runs.

    For code that Django's own checks do not reach, because they happen at the edges of a request: commands,
    threads, long tasks. Costs one round trip a call. Inside a transaction, where a new connection would lose what
    was done, it checks nothing.

    Args:
        func: The function, when used without parentheses.
        using: The database alias.

    Raises:
        TypeError: `func` is async or a generator.
        OperationalError: When called: there is no connecting to the database.

    Example:
        >>> from tests.testapp.models import Account
        >>> @ensure_connection(using="default")
        ... def how_many():
        ...     return Account.objects.filter(name="nobody").count()
        >>> how_many()
        0
    """

    def decorate(inner: Callable[P, R]) -> Callable[P, R]:
        require_plain_def(inner, "ensure_connection")

        @functools.wraps(inner)
        def with_connection(*args: P.args, **kwargs: P.kwargs) -> R:
            connection = connections[using]
            if not connection.in_atomic_block and not is_in_transaction(connection):
                if not _answers(connection):
                    drop_connection(connection)
                connection.ensure_connection()
            return inner(*args, **kwargs)

        return with_connection

    return decorate if func is None else decorate(func)


def _answers(connection: BaseDatabaseWrapper) -> bool:
    if connection.connection is None or connection.vendor != "mysql":
        return connection.connection is None or connection.is_usable()
    # PyMySQL's ping, which is_usable() calls, reconnects behind Django's back and forgets the session's settings.
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error:
        return False
    return True


def require_plain_def(func: Callable[..., Any], decorator: str) -> None:
    """Refuse generators and coroutine functions.

    Raises:
        TypeError: `func` is not a plain function.
    """
    require_plain_callable(func, decorator)
    if is_async(func):
        raise TypeError(
            f"{decorator} must decorate a plain def, not the async def {name_of(func)!r}: a connection belongs to one "
            "thread. Put the work into a plain def; adb_retry decorates one and gives an awaitable."
        )


def drop_connection(connection: BaseDatabaseWrapper) -> None:
    """Close a connection that is of no more use, so that the next statement opens another; inside a block do nothing.

    Args:
        connection: One of `django.db.connections`.
    """
    if connection.in_atomic_block:
        return
    _close_for_good(connection)
    with suppress(Error):
        connection.close()


def replace_connection(connection: BaseDatabaseWrapper) -> None:
    """Do the same even inside a block: for one that nobody will leave any more, as after a signal that struck where it ended.

    Args:
        connection: One of `django.db.connections`; its server may be away.
    """
    if connection.in_atomic_block:
        _close_for_good(connection)
        before = connection.connection
        with suppress(Error):
            connection.close()
        # This alone clears Django's notes of the block, even when it fails.
        with suppress(Error), connection.wrap_database_errors:
            connection.connect()
        if not connection.settings_dict["OPTIONS"].get("pool"):
            # SQLite in memory was not closed: it would have been lost.
            with suppress(Exception):
                before.close()
    drop_connection(connection)


def aliases_in_blocks() -> frozenset[str]:
    """Return the aliases on which this thread is inside an `atomic()` block.

    Example:
        >>> from django.db import transaction
        >>> with transaction.atomic():
        ...     "default" in aliases_in_blocks()
        True
    """
    return frozenset(connection.alias for connection in connections.all(initialized_only=True) if connection.in_atomic_block)


def free_connections(around: Collection[str], *, was_struck: bool) -> None:
    """Give up this thread's connections that a signal has left in the middle of something: a transaction, or an answer half read.

    Work that caught the signal's exception may have left its transaction open as well, and nobody would end it.

    Args:
        around: The aliases that were in a block before the work began; whoever opened that will leave it.
        was_struck: Whether a signal's exception ended the work; if not, only blocks that were left open count.
    """
    for connection in connections.all(initialized_only=True):
        if connection.alias in around:
            continue
        if connection.in_atomic_block:
            replace_connection(connection)
        elif was_struck:
            drop_connection(connection)


def _close_for_good(connection: BaseDatabaseWrapper) -> None:
    """Close the session itself where a pool would hand out again what comes back open; it may be that of a demoted server."""
    if connection.settings_dict["OPTIONS"].get("pool") and connection.connection is not None:
        with suppress(Exception):
            connection.connection.close()
