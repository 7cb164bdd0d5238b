"""One transaction that knows how far it got: connecting, in its body, in COMMIT, or after it.

The same error means different things in different phases. Django alone does not tell them apart: an error that
leaves `atomic()` may come from the body, from COMMIT, or from an `on_commit` hook after everything was stored,
and when the server is down it is hidden behind the failure to reconnect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Any, NoReturn, Self

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic

from resilience.calls.nesting import annotate, mark_gave_up
from resilience.db.connections import drop_connection
from resilience.db.errors import classify_db_error, interrupt_behind, is_database_error, masked_error
from resilience.db.options import OptionScope, TransactionOptions
from resilience.db.watches import StatementWatch, find_damage
from resilience.exceptions import CommitOutcomeUnknownError, TransactionBrokenError

__all__ = ["Phase", "TrackedTransaction"]


class Phase(StrEnum):
    """How far a transaction got."""

    CONNECT = "connect"
    BODY = "body"
    COMMIT = "commit"
    AFTER_COMMIT = "after_commit"


class TrackedTransaction(StatementWatch):
    """A transaction, or inside another one a savepoint, that knows its phase and lets no error be swallowed.

    What leaves the with-block is the error that mattered: the body's own and not the failure to reconnect after
    it; `CommitOutcomeUnknownError` when COMMIT was lost; `TransactionBrokenError` when the body swallowed an
    error that made COMMIT impossible. It watches its own statements, which spares an object for each transaction.

    Args:
        connection: The connection to work on.
        durable: Refuse to be a savepoint.
        options: Isolation and time limits, or None.
        before_commit: Called at the end of the body, still inside the transaction.
    """

    # Class attributes are what most transactions leave as it is: each one set here would cost all of them.
    phase = Phase.CONNECT
    outermost = False
    #: The on_commit hooks that have not run, once COMMIT was sent.
    hooks: list[Any]

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        durable: bool = False,
        options: TransactionOptions | None = None,
        before_commit: Callable[[], object] | None = None,
    ) -> None:
        self.connection = connection
        self._before_commit = before_commit
        self._atomic = Atomic(connection.alias, True, durable)
        self._scope = OptionScope(connection, options) if options else None
        self._handled = sys.exception()

    def __enter__(self) -> Self:
        connection = self.connection
        try:
            if self._scope is None:
                self._atomic.__enter__()
            else:
                self._begin_with(self._scope)
            self.phase = Phase.BODY
            self.depth = len(connection.savepoint_ids)
            if not connection.needs_rollback:
                connection.rollback_exc = None  # type: ignore[attr-defined]  # not in the stubs
            if not self.depth:
                self.outermost = True
                connection.run_commit_hooks_on_set_autocommit_on = False
            connection.execute_wrappers.append(self)
        except BaseException as exc:
            self.abandon(is_sure=not is_database_error(exc))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is not None:
                self._roll_back(kind, error, trace)
            else:
                self._keep()
        except BaseException:
            self.abandon()
            raise

    @property
    def is_innermost(self) -> bool:
        """Whether no other block is open inside this one."""
        blocks = self.connection.atomic_blocks
        return bool(blocks) and blocks[-1] is self._atomic

    def roll_back(self) -> None:
        """Leave the block by rolling it back, without an exception."""
        self.__exit__(_RollBackError, _RollBackError(), None)

    def abandon(self, *, is_sure: bool = False) -> None:
        """Leave nothing of the block behind when an interruption came where the way out could not be taken in order.

        A time limit or Ctrl-C may strike between any two steps, Django's own included. A connection that then still
        believes to be in a transaction would store nothing any more. Does nothing for a block that was left properly.

        Args:
            is_sure: The block was interrupted for sure, even if nothing shows.
        """
        connection = self.connection
        self.end(self.connection)
        blocks = connection.atomic_blocks
        is_open = self._atomic in blocks
        if is_open:
            del blocks[blocks.index(self._atomic) :]
        if blocks:
            if is_open or is_sure:
                del connection.savepoint_ids[len(blocks) - connection.commit_on_exit :]
                connection.needs_rollback = True
                connection.rollback_exc = sys.exception()  # type: ignore[attr-defined]  # not in the stubs
        elif is_open or is_sure or connection.in_atomic_block:
            connection.savepoint_ids.clear()
            connection.in_atomic_block = False
            connection.needs_rollback = not connection.commit_on_exit
            if connection.commit_on_exit:  # else the caller manages transactions by hand, and has to roll back
                drop_connection(connection)

    def run_hooks(self) -> None:
        """Run the on_commit hooks that COMMIT should have run, on a connection that is new if need be."""
        connection, hooks, self.hooks = self.connection, self.hooks, []
        drop_connection(connection)
        connection.run_commit_hooks_on_set_autocommit_on = False
        connection.run_on_commit = hooks
        try:
            connection.run_and_clear_commit_hooks()
        except BaseException as exc:
            self._tell_committed(exc)
            raise

    def _keep(self) -> None:
        """Leave the block by COMMIT, or by releasing the savepoint."""
        connection = self.connection
        try:
            if (damage := find_damage(connection, self, self.outermost)) is not None:
                self._refuse(damage)
            if self._before_commit is not None:
                self._before_commit()
            self.hooks = hooks = connection.run_on_commit
            waiting = len(hooks)
            self.end(connection)
        except BaseException as late:
            self._roll_back(type(late), late, late.__traceback__)
            raise
        self.phase = Phase.COMMIT
        try:
            self._atomic.__exit__(None, None, None)
        except BaseException as exc:
            self.abandon(is_sure=not self.outermost and not is_database_error(exc))
            if not self.outermost or not self._is_settled(exc, hooks_began=len(hooks) < waiting):
                raise
        finally:
            if self._scope is not None:
                self._scope.restore()

    def _refuse(self, damage: BaseException | str) -> NoReturn:
        alias = self.connection.alias
        cause = damage if isinstance(damage, BaseException) else None
        reason = f"{type(damage).__name__} was raised and swallowed in it" if cause else str(damage)
        raise TransactionBrokenError(
            f"The transaction on {alias!r} cannot be committed: {reason}. "
            "Let the error leave the block, or put the statement that may fail into a block of its own.",
            alias,
        ) from cause

    def _roll_back(self, kind: type[BaseException] | None, error: BaseException, trace: TracebackType | None) -> None:
        """Leave the block by `error`, which is what the caller shall see whatever goes wrong on the way out."""
        try:
            self.end(self.connection)
            self._atomic.__exit__(kind, error, trace)
        except Error:
            drop_connection(self.connection)
        except BaseException:
            self.abandon(is_sure=True)  # interrupted on the way out: nobody knows what state it is in
            raise
        finally:
            if self._scope is not None:
                self._scope.restore()

    def _begin_with(self, scope: OptionScope) -> None:
        scope.prepare()
        try:
            self._atomic.__enter__()
            try:
                scope.apply()
            except BaseException as exc:
                self._roll_back(type(exc), exc, exc.__traceback__)
                raise
        except BaseException:
            scope.restore()
            raise

    def _is_settled(self, exc: BaseException, *, hooks_began: bool) -> bool:
        """Judge an error that left COMMIT; True when the transaction is known to be complete.

        Hooks are taken off their list one by one, and only after COMMIT. Django's own flag alone does not tell: a
        hook with a transaction of its own resets it.

        Raises:
            CommitOutcomeUnknownError: The connection was lost before COMMIT was answered.
            BaseException: The error that mattered, when it is not the one that surfaced.
        """
        connection = self.connection
        if hooks_began:
            self.phase = Phase.AFTER_COMMIT
        elif connection.run_commit_hooks_on_set_autocommit_on:
            # COMMIT was answered, and only switching back to autocommit failed.
            self.phase = Phase.AFTER_COMMIT
            drop_connection(connection)
            if isinstance(exc, Error) and interrupt_behind(exc, self._handled) is None:
                self.run_hooks()
                return True
        if self.phase is Phase.AFTER_COMMIT:
            self._tell_committed(exc)
            return False
        self._judge_commit(exc)
        return False

    def _tell_committed(self, exc: BaseException) -> None:
        mark_gave_up(exc)
        annotate(exc, f"The transaction on {self.connection.alias!r} was committed before this was raised; nothing is run again.")

    def _judge_commit(self, exc: BaseException) -> None:
        """Raise what the caller shall see instead of `exc`, if it is not `exc` itself."""
        connection = self.connection
        real = masked_error(exc, self._handled)
        info = classify_db_error(real, connection.alias)
        interrupt = interrupt_behind(exc, self._handled)
        # Only an answer of the server, which has a code, is definite.
        is_unknown = (info.ambiguous or not info.code) and connection.vendor != "sqlite"
        if info.new_connection or is_unknown or interrupt is not None:
            drop_connection(connection)
        if interrupt is not None:
            mark_gave_up(interrupt)
            annotate(interrupt, f"It interrupted COMMIT on {connection.alias!r}: the work may or may not be stored.")
            if interrupt is not exc:
                raise interrupt
        elif is_unknown:
            raise CommitOutcomeUnknownError(
                f"The connection to {connection.alias!r} was lost while COMMIT was under way: the work may or may not be "
                "stored. Look whether it is there before doing it again; idempotent=, verify= or idempotency_key= of "
                "db_retry do that for you.",
                connection.alias,
            ) from real
        elif real is not exc:
            raise real


class _RollBackError(Exception):
    """Tells Django to roll back; never leaves this module."""
