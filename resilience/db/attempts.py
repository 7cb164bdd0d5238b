"""One call of a retried function: its attempts, and what is done after one failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import CoroutineType, GeneratorType
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from resilience import clock, conf, signals
from resilience.calls.callables import name_of
from resilience.calls.classify import classify
from resilience.calls.deadlines import remaining
from resilience.calls.kinds import ErrorKind
from resilience.calls.nesting import annotate, gave_up, mark_gave_up, marks
from resilience.connections import is_in_transaction
from resilience.db.connections import drop_connection
from resilience.db.errors import DatabaseErrorInfo, classify_db_error, is_database_error, originating_alias
from resilience.db.outcomes import PATIENCE, KeyTakenError, Ledger, ServerWitness, Verdict, outcome_unknown, settle
from resilience.db.phases import Phase, TrackedTransaction
from resilience.db.plans import RetryPlan
from resilience.db.watches import FenceWatch, StatementWatch, fence_others, said_nowait
from resilience.exceptions import CommitOutcomeUnknownError
from resilience.redaction import describe_exception, log_exception

__all__ = ["DatabaseCall"]

logger = logging.getLogger("resilience.db")

_KEY_TAKEN = DatabaseErrorInfo(ErrorKind.CONFLICT, True, False, False, "key_taken")
_COMMIT_ABORTED = DatabaseErrorInfo(ErrorKind.CONNECTION, True, True, False, "commit_aborted")


class DatabaseCall:
    """One call of a function under a `RetryPlan`; `step()` until it returns None, then read `value`.

    Args:
        plan: The rules.
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    # Class attributes are what a call without a failure leaves as it is: each one set in `__init__` would cost all calls.
    _attempts = 0
    _ledger: Ledger | None = None
    _fences: Sequence[tuple[BaseDatabaseWrapper, StatementWatch]] = ()
    _history = ""
    _primary: Exception | None = None
    #: Set from outside when nobody waits for the value any more; the transaction is then rolled back.
    is_abandoned = False
    value: Any = None

    def __init__(self, plan: RetryPlan, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self._plan = plan
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self._connection = connections[plan.using]
        self._started = clock.monotonic()
        self._since = marks.count

    def step(self) -> float | None:
        """Make one attempt; return the seconds to wait before the next, or None when `value` is the result."""
        connection, plan = self._connection, self._plan
        if is_in_transaction(connection):
            self._run_inside()
            return None
        if not plan.atomic:
            return self._attempt_loosely(connection)
        witness = ServerWitness(connection) if plan.verify == "server" else None
        transaction = TrackedTransaction(connection, False, plan.options, witness.take_number if witness else None)
        self._attempts += 1
        try:
            if len(connections.settings) > 1:
                self._fences = fence_others(connection)
            with transaction:
                self.value = self._work()
        except BaseException as exc:
            transaction.abandon()
            if not isinstance(exc, Exception):
                raise
            return self._recover(exc, transaction, witness)
        finally:
            for other, fence in self._fences:
                fence.end(other)
        if self._attempts > 1:
            self._tell_success()
        return None

    def _attempt_loosely(self, connection: BaseDatabaseWrapper) -> float | None:
        """Let the function manage its own transactions, and notice what it committed."""
        watch = FenceWatch()
        self._attempts += 1
        try:
            connection.execute_wrappers.append(watch)
            self.value = self._work()
        except Exception as exc:  # noqa: BLE001  # judged, and raised again unless it is retried
            return self._recover_loosely(exc, watch)
        finally:
            watch.end(connection)
        if self._attempts > 1:
            self._tell_success()
        return None

    def _run_inside(self) -> None:
        """Be a plain call inside somebody else's transaction; keyed work is still done once."""
        try:
            self.value = self._work()
        except KeyTakenError:
            self.value = self._work()

    def _work(self) -> Any:
        func, args, kwargs = self._func, self._args, self._kwargs
        if self._plan.idempotency_key is None:
            value = func(*args, **kwargs)
        else:
            key = self._plan.key_for(tuple(args), kwargs)
            self._ledger = ledger = Ledger(key, self._connection)
            value = ledger.perform(lambda: func(*args, **kwargs))
        if isinstance(value, (CoroutineType, GeneratorType)):
            value.close()
            raise TypeError(
                f"{name_of(func)!r} must return its result, not a {type(value).__name__}, whose body runs after the transaction. "
                "Decorate the function that does the work."
            )
        if self.is_abandoned:
            raise _AbandonedError
        return value

    def _recover(self, exc: Exception, transaction: TrackedTransaction, witness: ServerWitness | None) -> float | None:
        phase = transaction.phase
        if phase is Phase.AFTER_COMMIT:
            raise exc
        if transaction.committed:
            self._fences = [*self._fences, (self._connection, transaction)]
        if isinstance(exc, CommitOutcomeUnknownError) and transaction.outermost:
            verdict = self._settle(exc, witness)
            if verdict is Verdict.COMMITTED:
                transaction.run_hooks()
                return None
            return self._retry_or_raise(exc, _COMMIT_ABORTED if self._may_repeat(verdict) else None, Phase.COMMIT)
        info = _KEY_TAKEN if isinstance(exc, KeyTakenError) else classify_db_error(exc, self._plan.using)
        return self._retry_or_raise(exc, info, phase)

    def _recover_loosely(self, exc: Exception, watch: FenceWatch) -> float | None:
        plan = self._plan
        info = classify_db_error(exc, plan.using)
        phase = Phase.BODY if watch.statements else Phase.CONNECT
        if isinstance(exc, CommitOutcomeUnknownError) or self._is_unsure(info, watch):
            unknown = exc if isinstance(exc, CommitOutcomeUnknownError) else outcome_unknown(plan.using)
            unknown.__cause__ = exc.__cause__ if unknown is exc else exc
            verdict = self._settle(unknown, None)
            if verdict is Verdict.COMMITTED:
                return None
            repeat = self._may_repeat(verdict) and (plan.idempotent or not watch.committed)
            return self._retry_or_raise(unknown, _COMMIT_ABORTED if repeat else None, Phase.COMMIT)
        has_committed = watch.committed or self._connection.run_commit_hooks_on_set_autocommit_on
        if has_committed and plan.wants_retry(info) and not plan.idempotent:
            mark_gave_up(exc)
            annotate(exc, "Part of the work was committed before this was raised; nothing is run again.")
            raise exc
        return self._retry_or_raise(exc, info, phase)

    def _is_unsure(self, info: DatabaseErrorInfo, watch: FenceWatch) -> bool:
        """Whether a lost connection leaves open if the last statement, or a COMMIT after it, was carried out."""
        return bool(watch.statements) and info.ambiguous and info.new_connection and watch.may_have_lost_commit(self._plan.using)

    def _settle(self, exc: CommitOutcomeUnknownError, witness: ServerWitness | None) -> Verdict:
        """Find out what became of a lost COMMIT, as far as the plan says how."""
        verify = self._plan.verify
        ask = witness.ask if witness else verify if callable(verify) else self._ledger.ask if self._ledger else None
        verdict = Verdict.UNKNOWN
        if ask is not None:
            left = self._time_left()
            try:
                verdict = settle(ask, self._connection, PATIENCE if left is None else left)
            except Exception as failure:  # noqa: BLE001  # the outcome is still unknown: that is what is raised
                annotate(exc, f"Asking what became of it failed: {describe_exception(failure)}")
        resolution = "raised" if verdict is Verdict.UNKNOWN else str(verdict)
        signals.emit(signals.commit_outcome_unknown, self._func, name=name_of(self._func), using=exc.using, resolution=resolution)
        return verdict

    def _may_repeat(self, verdict: Verdict) -> bool:
        # A key makes repeating safe even while the first COMMIT is still under way: the second waits for its row.
        return verdict is Verdict.ABORTED or self._plan.idempotent or self._ledger is not None

    def _retry_or_raise(self, exc: Exception, info: DatabaseErrorInfo | None, phase: Phase) -> float:
        """Return the wait before the next attempt, or raise what the caller shall see."""
        if info is None or not self._is_ours(exc, info):
            raise exc
        if info.new_connection or phase is Phase.CONNECT:
            drop_connection(self._connection)
        if phase is not Phase.CONNECT or self._primary is None:
            self._primary = exc
        self._history += f"; attempt {self._attempts}: {info.code or type(exc).__name__} in {phase}"
        if info.code == "25P03":  # idle_in_transaction_session_timeout
            logger.warning("%s was idle inside its transaction for too long. Do slow work outside of it.", name_of(self._func))
        delay = self._plan.wait_after(self._attempts, info)
        reason = self._why_stop(delay)
        if reason:
            self._give_up(reason, info, phase)
        self._tell_hook(exc)
        signals.emit(
            signals.db_retry_scheduled,
            self._func,
            name=name_of(self._func),
            using=self._plan.using,
            attempt=self._attempts,
            delay=delay,
            kind=info.kind,
            code=info.code,
            phase=str(phase),
        )
        return delay

    def _is_ours(self, exc: Exception, info: DatabaseErrorInfo) -> bool:
        """Whether the error is one that running this function again may cure."""
        settings = conf.current()
        if not (settings.enabled and settings.retry.get("enabled", True)):
            return False
        is_refusal = said_nowait(exc) and info.code not in self._plan.retry_codes
        if gave_up(exc, self._since) or not self._plan.wants_retry(info) or is_refusal:
            return False
        origin = originating_alias(exc) if is_database_error(exc) else None
        if origin is not None and origin != self._plan.using:
            return False
        return not self._has_left_work(exc)

    def _has_left_work(self, exc: Exception) -> bool:
        """Whether work of this attempt is stored or open elsewhere, which a second attempt would do twice."""
        for other in connections.all(initialized_only=True):
            if other is not self._connection and other.connection is not None and is_in_transaction(other):
                annotate(exc, f"Not retried: a transaction is open on {other.alias!r}, which would not be rolled back.")
                return True
        written = [other.alias for other, fence in self._fences if fence.committed]
        if written and not self._plan.idempotent:
            annotate(exc, f"Not retried: work was committed on {written[0]!r}, which would be done twice.")
            return True
        return False

    def _why_stop(self, delay: float) -> str:
        plan = self._plan
        if plan.max_attempts is not None and self._attempts >= plan.max_attempts:
            return f"max_attempts is {plan.max_attempts}"
        left = self._time_left()
        return "the deadline leaves no time for another" if left is not None and delay >= left else ""

    def _time_left(self) -> float | None:
        """Seconds until the nearer of the plan's deadline and one around the call; None without any."""
        around, own = remaining(), self._plan.deadline
        if own is not None:
            own = max(0.0, own - (clock.monotonic() - self._started))
        return around if own is None else own if around is None else min(own, around)

    def _tell_hook(self, exc: Exception) -> None:
        if (hook := self._plan.on_retry) is None:
            return
        try:
            hook(exc, self._attempts)
        except Exception as error:
            if classify(error).is_control_flow:
                raise
            log_exception(logger, "on_retry of %s raised; the retry goes on.", name_of(self._func), error=error)

    def _give_up(self, reason: str, info: DatabaseErrorInfo, phase: Phase) -> None:
        exc = self._primary
        assert exc is not None
        elapsed = clock.monotonic() - self._started
        mark_gave_up(exc)
        attempts = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
        annotate(exc, f"Given up after {attempts} in {elapsed:.2f} s, because {reason}{self._history}.", self._since)
        signals.emit(
            signals.db_retry_gave_up,
            self._func,
            name=name_of(self._func),
            using=self._plan.using,
            attempts=self._attempts,
            elapsed=elapsed,
            kind=info.kind,
            code=info.code,
            phase=str(phase),
        )
        raise exc

    def _tell_success(self) -> None:
        signals.emit(
            signals.db_retry_succeeded,
            self._func,
            name=name_of(self._func),
            using=self._plan.using,
            attempts=self._attempts,
            elapsed=clock.monotonic() - self._started,
        )


class _AbandonedError(Exception):
    """Nobody waits for the result: roll back. Never seen by anybody."""
