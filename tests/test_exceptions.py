from __future__ import annotations

import json
import pickle

import pytest

from resilience import exceptions

EXAMPLES = [
    exceptions.ResilienceError("plain"),
    exceptions.OperationTimeoutError("too slow", 2.5),
    exceptions.BulkheadFullError("reports", 3),
    exceptions.AbandonedCallsError("lookup", 100),
    exceptions.CircuitOpenError("payments", "open", 12.5, "ConnectionError: refused"),
    exceptions.TransientError("line one\nline two", "timeout", 3),
    exceptions.PermanentError("line one\nline two", "auth", 1),
    exceptions.CommitOutcomeUnknownError("unknown", "other"),
    exceptions.ConcurrentUpdateError("shop.Account", 7, 5),
    exceptions.RunBusyError("train:1"),
    exceptions.RunConfigChangedError("train:1", ["rate"]),
    exceptions.CheckpointError("damaged"),
    exceptions.RunInterrupted("shutdown"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_exception__survives_pickle(error: BaseException) -> None:
    """An exception that crossed a process boundary says and carries the same."""
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_exception__is_rebuilt_from_json_args(error: BaseException) -> None:
    """Celery's JSON results keep class and args: that is enough to rebuild it."""
    copy = type(error)(*json.loads(json.dumps(error.args)))

    assert str(copy) == str(error)


def test_timeout__is_what_callers_expect() -> None:
    """Code that catches the builtin TimeoutError catches ours."""
    assert issubclass(exceptions.OperationTimeoutError, TimeoutError)
    assert issubclass(exceptions.OperationTimeoutError, exceptions.ResilienceError)


def test_interruption__is_not_swallowed_by_except_exception() -> None:
    """Leaving a run is no error that user code may catch by accident."""
    assert not issubclass(exceptions.RunInterrupted, Exception)


def test_open_circuit__begins_as_promised() -> None:
    """The message begins with the words people search logs for, and tells when to come back."""
    message = str(exceptions.CircuitOpenError("payments", "open", 12.5))

    assert message == "Circuit breaker is OPEN: 'payments' refuses calls for another 12.5 s."
    assert "until it is reset" in str(exceptions.CircuitOpenError("payments", "forced_open"))
