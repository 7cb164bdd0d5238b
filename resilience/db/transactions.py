"""Transactions whose end is what it says: committed, rolled back, or an error."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from django.db import connections
from django.db.transaction import TransactionManagementError

from resilience import clock, signals
from resilience.calls.nesting import annotate, mark_gave_up
from resilience.db.connections import ensure_connection, require_plain_def
from resilience.db.errors import classify_db_error
from resilience.db.options import TransactionOptions
from resilience.db.phases import Phase, TrackedTransaction
from resilience.db.savepoints import MAX_SAVEPOINTS, Savepoint, SavepointCount

__all__ = ["MAX_SAVEPOINTS", "Tally", "TransactionManager", "ensure_connection", "tally", "with_savepoint"]

P = ParamSpec("P")
R = TypeVar("R")


class Tally:
    """How many transactions of this process ended how, for who collects it now and then.

    Counting by a signal that is always listened to would cost more than all the rest of a TransactionManager.
    """

    __slots__ = ("collect", "counts", "due")

    def __init__(self) -> None:
        self.counts = {"commit": 0, "rollback": 0}
        #: The monotonic time, in seconds, after which `collect` wants to be called; it must not raise.
        self.due = math.inf
        self.collect: Callable[[], object] = int


tally = Tally()


class TransactionManager:
    """A transaction, or inside another one a savepoint: a context manager and a decorator.

    What leaves the block is the error that mattered. A database error that the block swallowed never turns into
    a silent rollback: it raises `TransactionBrokenError`. A COMMIT that was lost raises
    `CommitOutcomeUnknownError`. Inside Django's TestCase it is a savepoint, and `isolation` and `read_only`,
    which a savepoint cannot have, are not applied.

    Args:
        using: The database alias.
        auto_commit: False rolls back at the end what `commit()` has not stored.
        durable: Refuse with RuntimeError to be inside another transaction (a TestCase's does not count).
        isolation: "read uncommitted", "read committed", "repeatable read" or "serializable"; None: the connection's own.
        read_only: Let the database refuse writes.
        lock_timeout: Most seconds to wait for a lock, more than 0; whole seconds, rounded up, on MySQL and MariaDB.
        statement_timeout: Most seconds for one statement, more than 0.

    Raises:
        ValueError: An option is out of range.
        NotSupportedError: On entry: the database cannot do what an option asks.
        TransactionManagementError: On entry: isolation or read_only inside an open transaction.

    Example:
        >>> from tests.testapp.models import Account
        >>> with TransactionManager() as tx:
        ...     account = Account.objects.create(name="a")
        ...     with tx.savepoint():
        ...         account.save()
        >>> @TransactionManager()
        ... def rename(pk, name):
        ...     return Account.objects.filter(pk=pk).update(name=name)
        >>> rename(account.pk, "b")
        1
    """

    __slots__ = ("_auto_commit", "_block", "_durable", "_options", "_savepoints", "_started", "using")

    def __init__(
        self,
        using: str = "default",
        *,
        auto_commit: bool = True,
        durable: bool = False,
        isolation: str | None = None,
        read_only: bool = False,
        lock_timeout: float | None = None,
        statement_timeout: float | None = None,
    ) -> None:
        if not isinstance(using, str):
            raise TypeError(f"using must be a database alias, not {using!r}. As a decorator, write @TransactionManager().")
        options = None
        if isolation is not None or read_only or lock_timeout is not None or statement_timeout is not None:
            options = TransactionOptions(
                isolation=isolation, read_only=read_only, lock_timeout=lock_timeout, statement_timeout=statement_timeout
            )
        self._set_up(using, auto_commit, durable, options)

    def _set_up(self, using: str, auto_commit: bool, durable: bool, options: TransactionOptions | None) -> None:
        self.using = using
        self._auto_commit = auto_commit
        self._durable = durable
        self._options = options
        self._block: TrackedTransaction | None = None
        self._started = 0.0
        self._savepoints: SavepointCount | None = None

    def __enter__(self) -> Self:
        if self._block is not None:
            raise RuntimeError("This TransactionManager is open already. Create another one for the inner block.")
        if signals.transaction_finished.receivers:
            self._started = clock.monotonic()
        self._savepoints = None
        block = TrackedTransaction(connections[self.using], self._durable, self._options, None)
        try:
            block.__enter__()
            self._block = block
        except BaseException:
            block.abandon()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        block = self._block
        if block is None:
            return  # commit() or rollback() failed, and that is what is on its way out
        try:
            self._end(block, kind, error, trace, self._auto_commit)
        except BaseException:
            self._block = None
            block.abandon()
            raise

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate `func` so that each call runs in a transaction of its own with these options."""
        require_plain_def(func, "TransactionManager")

        @functools.wraps(func)
        def in_transaction(*args: P.args, **kwargs: P.kwargs) -> R:
            manager = TransactionManager.__new__(TransactionManager)
            manager._set_up(self.using, self._auto_commit, self._durable, self._options)  # noqa: SLF001  # its own class
            with manager:
                return func(*args, **kwargs)

        return in_transaction

    def commit(self) -> None:
        """Commit what was done so far; the block goes on in a new transaction.

        In a savepoint it releases the savepoint, and the outer transaction still decides.

        Raises:
            CommitOutcomeUnknownError: The connection was lost while COMMIT was under way.
            TransactionManagementError: The block is not open, or a savepoint inside it is.
            DatabaseError: The next transaction could not begin; a note tells that what came before is committed.
        """
        block = self._require_innermost("commit")
        self._end(block, None, None, None, keep=True)
        try:
            self.__enter__()
        except Exception as exc:
            if block.outermost:
                mark_gave_up(exc)
                annotate(exc, "commit() had succeeded: what was done before it is stored. The next transaction did not begin.")
            raise

    def rollback(self) -> None:
        """Undo what was done since the block began or was last committed; the block goes on in a new transaction.

        Raises:
            TransactionManagementError: The block is not open, or a savepoint inside it is.
        """
        self._end(self._require_innermost("rollback"), None, None, None, keep=False)
        self.__enter__()

    def savepoint(self) -> Savepoint:
        """Return a context manager whose work is undone by itself when an exception leaves it.

        Raises:
            TransactionManagementError: The block is not open; on entry: 50 savepoints are live.
        """
        connection = self._open_block("savepoint").connection
        if self._savepoints is None:
            self._savepoints = SavepointCount()
        return Savepoint(connection, self._savepoints, TransactionManager)

    def on_commit(self, func: Callable[[], object], *, robust: bool = False) -> None:
        """Call `func()` once the outermost transaction is committed; never, if it or this block is rolled back.

        Args:
            func: What to call.
            robust: Log what it raises instead of raising it.
        """
        self._open_block("on_commit").connection.on_commit(func, robust)

    def _end(
        self,
        block: TrackedTransaction,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        keep: bool,
    ) -> None:
        failure = error
        has_committed = False
        try:
            self._block = None
            has_committed = keep and error is None and not block.connection.needs_rollback
            if keep:
                block.__exit__(kind, error, trace)
            else:
                block.roll_back()
        except BaseException as exc:
            block.abandon()
            has_committed, failure = block.phase is Phase.AFTER_COMMIT, exc
            raise
        finally:
            self._report(block, "commit" if has_committed else "rollback", failure)

    def _report(self, block: TrackedTransaction, outcome: str, failure: BaseException | None) -> None:
        if not block.outermost:
            if outcome == "rollback":
                signals.emit(signals.savepoint_rolled_back, TransactionManager, using=self.using)
            return
        tally.counts[outcome] += 1
        if clock.monotonic() >= tally.due:
            tally.collect()
        if signals.transaction_finished.receivers:
            signals.emit(
                signals.transaction_finished,
                TransactionManager,
                using=self.using,
                outcome=outcome,
                duration=clock.monotonic() - self._started,
                code=classify_db_error(failure, self.using).code if failure else "",
            )

    def _open_block(self, action: str) -> TrackedTransaction:
        if self._block is None:
            raise TransactionManagementError(
                f"{action} must be used inside the with-block of its TransactionManager. Open it first."
            )
        return self._block

    def _require_innermost(self, action: str) -> TrackedTransaction:
        block = self._open_block(action)
        if not block.is_innermost:
            raise TransactionManagementError(
                f"{action} must not be used inside a savepoint of its block. Leave the savepoint first."
            )
        return block


@overload
def with_savepoint(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def with_savepoint(*, using: str = "default") -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def with_savepoint(func: Callable[..., Any] | None = None, /, *, using: str = "default") -> Any:
    """Decorate a function so that an exception rolls back its own work only, not that of the transaction around it.

    Outside a transaction the function gets one of its own.

    Args:
        func: The function, when used without parentheses.
        using: The database alias.

    Raises:
        TypeError: `func` is async or a generator.

    Example:
        >>> from tests.testapp.models import Account
        >>> @with_savepoint
        ... def try_to_add(name):
        ...     return Account.objects.create(name=name)
        >>> try_to_add("c").name
        'c'
    """

    def decorate(inner: Callable[P, R]) -> Callable[P, R]:
        require_plain_def(inner, "with_savepoint")

        @functools.wraps(inner)
        def in_savepoint(*args: P.args, **kwargs: P.kwargs) -> R:
            block = TrackedTransaction(connections[using])
            try:
                with block:
                    return inner(*args, **kwargs)
            except BaseException:
                block.abandon()
                if not block.outermost:
                    signals.emit(signals.savepoint_rolled_back, TransactionManager, using=using)
                raise

        return in_savepoint

    return decorate if func is None else decorate(func)
