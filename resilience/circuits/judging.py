"""What an exception or a result means to a circuit: success, failure, or neither."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from resilience.calls.classification_rules import CONTROL_FLOW
from resilience.calls.classify import ErrorKind, classify, has_own_classifiers
from resilience.circuits.config import CircuitBreakerConfig
from resilience.exceptions import BulkheadFullError, OpenTransactionError, OperationTimeoutError
from resilience.redaction import log_exception

__all__ = ["Outcome", "is_control_flow", "judge_error", "judge_result"]

logger = logging.getLogger("resilience.circuits")


class Outcome:
    """How a call ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


def is_control_flow(error: BaseException) -> bool:
    """Tell whether an exception only steers the worker: cancellation, shutdown, celery's Retry and the like.

    What `classify` calls CANCELLED by its tables, at a fraction of the cost: a failing service raises a lot.

    Example:
        >>> is_control_flow(SystemExit()), is_control_flow(KeyError())
        (True, False)
    """
    return _is_control_flow(type(error))  # type: ignore[arg-type]  # BaseException's __hash__ is object's, and typed so


@lru_cache(maxsize=1024)
def _is_control_flow(kind: type[BaseException]) -> bool:
    paths = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    return not issubclass(kind, Exception) or not CONTROL_FLOW.isdisjoint(paths)


def judge_error(config: CircuitBreakerConfig, error: BaseException) -> str:
    """Return the outcome of a call that raised `error`.

    Neither success nor failure are cancellation, the shutdown of a worker, a call that this process refused to begin,
    what a classifier of the project calls CANCELLED, and what `ignore` names. What is not in `exceptions`, or what
    `failure_if` lets off, is a success: the service did answer.
    """
    if isinstance(error, config.ignore) or not isinstance(error, Exception) or is_control_flow(error):
        return Outcome.IGNORED
    if _was_not_begun(error) or (has_own_classifiers() and classify(error).kind is ErrorKind.CANCELLED):
        return Outcome.IGNORED
    if not isinstance(error, config.exceptions):
        return Outcome.SUCCESS
    if config.failure_if is None:
        return Outcome.FAILURE
    try:
        return Outcome.FAILURE if config.failure_if(error) else Outcome.SUCCESS
    except Exception as broken:  # noqa: BLE001  # logged, and not worth the call's own error
        log_exception(logger, "A circuit's failure_if failed; the call counts as a failure.", error=broken)
        return Outcome.FAILURE


def _was_not_begun(error: Exception) -> bool:
    """Tell whether a limit of this app refused the call: a full bulkhead, a transaction, a deadline that was over before."""
    if isinstance(error, OperationTimeoutError):
        return error.seconds == 0
    return isinstance(error, (BulkheadFullError, OpenTransactionError))


def judge_result(config: CircuitBreakerConfig, result: Any) -> str:
    """Return the outcome of a call that returned `result`. A judge that fails does not lose a good result."""
    if config.failure_on_result is None:
        return Outcome.SUCCESS
    try:
        return Outcome.FAILURE if config.failure_on_result(result) else Outcome.SUCCESS
    except Exception as broken:  # noqa: BLE001  # logged, and not worth the result
        log_exception(logger, "A circuit's failure_on_result failed; the call counts as a success.", error=broken)
        return Outcome.SUCCESS
