"""One call in progress: its attempts, and what the world is told about them."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from resilience import clock, signals
from resilience.calls.classify import classify
from resilience.calls.deadlines import remaining
from resilience.calls.decisions import Decision, Rules, Stop, StopReason
from resilience.calls.kinds import ErrorInfo, ErrorKind
from resilience.calls.nesting import annotate, gave_up, mark_gave_up
from resilience.calls.retry_after import LONGEST
from resilience.calls.retry_config import RetryConfig
from resilience.redaction import log_exception

__all__ = ["Retrying"]

logger = logging.getLogger("resilience.calls")

#: Reasons that are nobody's business as long as nothing was retried: the exception passes as if no retry were there.
_SILENT_AT_FIRST = {StopReason.NOT_LISTED, StopReason.GIVEN_UP, StopReason.CIRCUIT_OPEN}
#: Reasons that do not keep a level further out from trying: this level has not tried itself.
_UNMARKED = {StopReason.PERMANENT, StopReason.NOT_LISTED}


class Retrying:
    """The attempts of one call, each a with-block that swallows an exception to be retried.

    A shell asks `pending`, sleeps `delay`, asks `is_late()`, enters the block and hands the result to `accept`.

    Args:
        config: The rules.
        sender: The function, or whatever stands for it in signals.
        name: Its name in signals.
        started: When the call began, on `clock.monotonic`.
        since: `marks.count` when it began.
        made: Attempts that were made elsewhere before, which count, and whose waits go on growing.
    """

    __slots__ = (
        "_config",
        "_name",
        "_rules",
        "_sender",
        "_since",
        "_started",
        "attempt",
        "delay",
        "failure",
        "pending",
        "result",
    )

    def __init__(self, config: RetryConfig, sender: object, name: str, started: float, since: int, *, made: int = 0) -> None:
        self._config = config
        self._rules = Rules(config)
        self._sender = sender
        self._name = name
        self._started = started
        self._since = since
        #: What the attempt to be made again raised.
        self.failure: Exception | None = None
        #: The number of the attempt in progress, 1 for the first.
        self.attempt = made
        #: Seconds to sleep before the next attempt.
        self.delay = 0.0
        #: Whether there is an attempt to make.
        self.pending = True
        self.result: Any = None
        if made:
            self._rules.skip(made)

    def __enter__(self) -> None:
        self.attempt += 1

    def __exit__(self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> bool:
        if isinstance(exc, Exception):
            return self.failed(exc)
        if exc is not None:
            self.pending = False
        return False

    def failed(self, exc: Exception) -> bool:
        """Take note of a failure: True to try again after `delay`, False to let the exception go."""
        info = classify(exc)
        return self._follow(self._paid(self._judge(exc, info)), exc, info.kind)

    async def afailed(self, exc: Exception) -> bool:
        """Do as `failed` does; a budget that asks the cache does so in a thread, not on the event loop."""
        info = classify(exc)
        return self._follow(await self._apaid(self._judge(exc, info)), exc, info.kind)

    async def arejects(self, result: Any) -> bool:
        """Tell whether a result is one to retry, and take note of it if so, with the same care as `afailed`."""
        self.result = result
        decision = self._rules.after_result(result, attempt=self.attempt, left=remaining())
        if decision is None:
            return False
        self._follow(await self._apaid(decision), None, ErrorKind.UNKNOWN)
        return True

    @property
    def judges_results(self) -> bool:
        """Whether a result may be one to retry."""
        return self._config.retry_on_result is not None

    def accept(self, result: Any, *, judged: bool = False) -> None:
        """Take a result, which ends the call unless it is one to retry; `judged` when `arejects` has been asked."""
        self.result = result
        if self._config.retry_on_result is not None and not judged:
            decision = self._rules.after_result(result, attempt=self.attempt, left=remaining())
            if decision is not None:
                self._follow(self._paid(decision), None, ErrorKind.UNKNOWN)
                return
        self.pending = False
        self.failure = None
        if self.attempt > 1:
            arguments = {"name": self._name, "attempts": self.attempt, "elapsed": self._elapsed()}
            signals.emit(signals.retry_succeeded, self._sender, **arguments)

    def is_late(self) -> bool:
        """Look at the deadline again after a sleep, which may have taken longer than it should.

        Returns:
            True when there is no time for another attempt and the last result has to do.

        Raises:
            Exception: There is no time for another attempt after a failure: it is raised again.
        """
        if self.attempt == 0 or remaining() != 0:
            return False
        failure, self.failure = self.failure, None
        self._give_up(StopReason.DEADLINE, failure, ErrorKind.UNKNOWN if failure is None else classify(failure).kind)
        if failure is None:
            return True
        try:
            raise failure
        finally:
            del failure  # it refers to this frame; do not refer back

    def _judge(self, exc: Exception, info: ErrorInfo) -> Decision:
        given_up = gave_up(exc, self._since)
        return self._rules.after_failure(exc, info, attempt=self.attempt, given_up=given_up, left=remaining())

    def _paid(self, decision: Decision) -> Decision:
        """Pay for a retry from the budget, or stop."""
        budget = self._config.budget
        if budget is None or isinstance(decision, Stop) or budget.withdraw():
            return decision
        return Stop(StopReason.BUDGET)

    async def _apaid(self, decision: Decision) -> Decision:
        budget = self._config.budget
        if budget is None or isinstance(decision, Stop) or await budget.awithdraw():
            return decision
        return Stop(StopReason.BUDGET)

    def _follow(self, decision: Decision, exc: Exception | None, kind: ErrorKind) -> bool:
        if isinstance(decision, Stop):
            self._give_up(decision.reason, exc, kind)
            return False
        self.delay = min(decision.seconds, LONGEST)  # the system cannot sleep much longer
        self.failure = exc
        self._tell_hook(exc)
        arguments = {"name": self._name, "attempt": self.attempt, "delay": self.delay, "exception": exc, "kind": kind}
        signals.emit(signals.retry_scheduled, self._sender, **arguments)
        return True

    def _give_up(self, reason: StopReason, exc: Exception | None, kind: ErrorKind) -> None:
        self.pending = False
        self.failure = None
        if reason is StopReason.CONTROL_FLOW or (self.attempt == 1 and reason in _SILENT_AT_FIRST):
            return
        elapsed = self._elapsed()
        if exc is not None:
            attempts = f"{self.attempt} attempt{'s' if self.attempt > 1 else ''}"
            annotate(exc, f"resilience: gave up after {attempts} in {elapsed:.2f} s: {reason}", self._since)
            if reason not in _UNMARKED and not (reason is StopReason.ATTEMPTS and self.attempt == 1):
                mark_gave_up(exc)
        arguments = {"name": self._name, "attempts": self.attempt, "elapsed": elapsed, "exception": exc, "kind": kind}
        signals.emit(signals.retry_gave_up, self._sender, **arguments, reason=reason.value)

    def _tell_hook(self, exc: Exception | None) -> None:
        hook = self._config.on_retry
        if hook is None:
            return
        try:
            hook(exc, self.attempt)
        except Exception as error:
            if classify(error).is_control_flow:
                raise
            log_exception(logger, "on_retry of %s raised; the retry goes on.", self._name, error=error)

    def _elapsed(self) -> float:
        return max(0.0, clock.monotonic() - self._started)
