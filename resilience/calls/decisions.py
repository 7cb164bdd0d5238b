"""Whether to try again and when: the rules of a retry, without clock, settings or side effects."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from resilience.calls.callables import name_of
from resilience.calls.classify import classify
from resilience.calls.kinds import ErrorInfo
from resilience.calls.retry_config import RetryConfig
from resilience.exceptions import CircuitOpenError
from resilience.redaction import log_exception

__all__ = ["Decision", "Rules", "Stop", "StopReason", "Wait"]

logger = logging.getLogger("resilience.calls")


class StopReason(StrEnum):
    """Why no further attempt is made; the words that notes and signals use."""

    ATTEMPTS = "attempts exhausted"
    PERMANENT = "the error is not transient"
    NOT_LISTED = "the error is not one to retry"
    MAYBE_EXECUTED = "the call may have been executed and is not idempotent"
    RETRY_AFTER = "the server asks to wait longer than max_retry_after"
    DEADLINE = "the deadline leaves no time"
    BUDGET = "the retry budget is used up"
    CIRCUIT_OPEN = "the circuit is open"
    GIVEN_UP = "a retry further in gave up"
    CONTROL_FLOW = "control flow"


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not try again."""

    reason: StopReason


Decision: TypeAlias = Wait | Stop


class Rules:
    """Decide after each attempt of one call. The series of waits is this call's own.

    Args:
        config: The rules to follow.
        uniform: Draws a number between two others; for the jitter.
    """

    __slots__ = ("_config", "_uniform", "_waits")

    def __init__(self, config: RetryConfig, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._config = config
        self._uniform = uniform
        self._waits: Iterator[float] | None = None

    def skip(self, attempts: int) -> None:
        """Go on with the series of waits as after so many attempts."""
        self._waits = self._config.waits().delays(self._uniform)
        for _ in range(attempts):
            next(self._waits)

    def after_failure(self, exc: Exception, info: ErrorInfo, *, attempt: int, given_up: bool, left: float | None) -> Decision:
        """Decide after an exception.

        Args:
            exc: What was raised.
            info: What `classify` says about it.
            attempt: The attempt that failed, 1 for the first.
            given_up: A retry further in has given it up.
            left: Seconds until the nearest deadline, or None.
        """
        config = self._config
        if info.is_control_flow:
            return Stop(StopReason.CONTROL_FLOW)
        if isinstance(exc, CircuitOpenError):
            return Stop(StopReason.CIRCUIT_OPEN)
        if (refusal := self._refusal(exc, info)) is not None:
            return Stop(refusal)
        if given_up and not config.retry_given_up:
            return Stop(StopReason.GIVEN_UP)
        if info.maybe_executed and not config.idempotent:
            return Stop(StopReason.MAYBE_EXECUTED)
        return self._next_wait(attempt, info.retry_after, left)

    def after_result(self, result: Any, *, attempt: int, left: float | None) -> Decision | None:
        """Decide after a result: None when it is one to keep."""
        rejects = self._config.retry_on_result
        return self._next_wait(attempt, None, left) if rejects and _answer(rejects, result) else None

    def _refusal(self, exc: Exception, info: ErrorInfo) -> StopReason | None:
        config = self._config
        if isinstance(exc, config.exclude) or (config.exceptions is not None and not isinstance(exc, config.exceptions)):
            return StopReason.NOT_LISTED
        if config.retry_if is not None:
            return None if _answer(config.retry_if, exc) else StopReason.NOT_LISTED
        return StopReason.PERMANENT if config.exceptions is None and not info.transient else None

    def _next_wait(self, attempt: int, retry_after: float | None, left: float | None) -> Decision:
        config = self._config
        if attempt >= config.max_attempts:
            return Stop(StopReason.ATTEMPTS)
        if retry_after is not None and config.max_retry_after is not None and retry_after > config.max_retry_after:
            return Stop(StopReason.RETRY_AFTER)
        if self._waits is None:
            self._waits = config.waits().delays(self._uniform)
        wait = next(self._waits)
        if retry_after is not None:
            # The server knows better than the series, in both directions.
            wait = retry_after
        return Stop(StopReason.DEADLINE) if left is not None and wait >= left else Wait(wait)


def _answer(predicate: Callable[[Any], object], value: Any) -> bool:
    """Ask a predicate; one that raises or answers None must not hide what the call did."""
    try:
        answer = predicate(value)
    except Exception as error:  # logged, and not worth the call's own error
        if classify(error).is_control_flow:
            raise
        log_exception(logger, "%s raised; it counts as False.", name_of(predicate), error=error)
        return False
    if answer is None:
        logger.warning("%s returned None, which counts as False. Return True or False.", name_of(predicate))
    return bool(answer)
