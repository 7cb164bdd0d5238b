"""The calls pillar: one call that may fail is classified, retried, timed out or replaced."""

from __future__ import annotations

from resilience.calls.batches import BatchResult, batch_with_retry
from resilience.calls.budgets import RetryBudget
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.classify import ErrorInfo, ErrorKind, classify, register_classifier
from resilience.calls.fallbacks import fallback, safe_execute
from resilience.calls.retries import RetryConfig, RetryContext, RetryStrategy, async_retry, retry
from resilience.calls.timeouts import TimeoutConfig, async_timeout, remaining, timeout

__all__ = [
    "BatchResult",
    "Bulkhead",
    "ErrorInfo",
    "ErrorKind",
    "RetryBudget",
    "RetryConfig",
    "RetryContext",
    "RetryStrategy",
    "TimeoutConfig",
    "async_retry",
    "async_timeout",
    "batch_with_retry",
    "classify",
    "fallback",
    "register_classifier",
    "remaining",
    "retry",
    "safe_execute",
    "timeout",
]
