"""Every exception this app raises, and what each one carries.

All derive from `ResilienceError`, so `except ResilienceError` catches what this app decided itself and
nothing that your own code raised. Each can be pickled and rebuilt from its `args`, so that it survives
Celery's result backends.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AbandonedCallsError",
    "BulkheadFullError",
    "CheckpointError",
    "CircuitOpenError",
    "CommitOutcomeUnknownError",
    "ConcurrentUpdateError",
    "OpenTransactionError",
    "OperationTimeoutError",
    "PermanentError",
    "ResilienceError",
    "RunBusyError",
    "RunConfigChangedError",
    "RunInterrupted",
    "RunStateError",
    "TransactionBrokenError",
    "TransientError",
]


class ResilienceError(Exception):
    """Base of everything this app raises. Do not raise directly."""


class OperationTimeoutError(ResilienceError, TimeoutError):
    """A call took longer than it was given.

    Args:
        message: What took too long.
        seconds: The limit that was exceeded, in seconds, if known.
    """

    def __init__(self, message: str = "The operation timed out.", seconds: float | None = None) -> None:
        super().__init__(message, seconds)
        self.message = message
        self.seconds = seconds

    def __str__(self) -> str:
        return self.message


class OpenTransactionError(ResilienceError, RuntimeError):
    """A call would have moved to another thread, and so out of the transaction it was made in.

    Args:
        message: What was asked for, which database alias is in a transaction, and what to do.
    """


class BulkheadFullError(ResilienceError):
    """A bulkhead had no free place within its `max_wait`.

    Args:
        name: The bulkhead's name.
        max_concurrent: How many calls it lets run at once.
    """

    def __init__(self, name: str, max_concurrent: int) -> None:
        super().__init__(name, max_concurrent)
        self.name = name
        self.max_concurrent = max_concurrent

    def __str__(self) -> str:
        running = "1 call is" if self.max_concurrent == 1 else f"{self.max_concurrent} calls are"
        return f"Bulkhead {self.name!r} is full: {running} running. Try again later, or raise max_concurrent."


class AbandonedCallsError(BulkheadFullError):
    """A time limit outside the main thread refused the call: too many calls that were cut off have not returned.

    Args:
        name: The operation that was not called.
        max_concurrent: How many threads may be left behind at once.
    """

    def __str__(self) -> str:
        return (
            f"{self.name} was not called: {self.max_concurrent} calls that took longer than their timeouts still run in threads "
            "of this process. Give the client a timeout of its own, fed by remaining()."
        )


class CircuitOpenError(ResilienceError):
    """A circuit breaker refused the call; the function was not run.

    Args:
        name: The circuit's name.
        state: The state that refused, as in `CircuitState` ("open", "half_open", "forced_open").
        retry_after: Seconds until the next call may be let through, or None when nobody knows (forced open
            without an expiry).
        last_error: Class and redacted message of the failure seen last, or "".

    Example:
        >>> error = CircuitOpenError("payments", "open", 12.0)
        >>> str(error)
        "Circuit breaker is OPEN: 'payments' refuses calls for another 12.0 s."
    """

    # The values live in `args` alone: a refused call should cost little, and this halves the price of the error.
    def __init__(self, name: str, state: str = "open", retry_after: float | None = None, last_error: str = "") -> None:
        self.args = (name, str(state), retry_after, last_error)

    @property
    def name(self) -> str:
        """The circuit's name."""
        return str(self.args[0])

    @property
    def state(self) -> str:
        """The state that refused."""
        return str(self.args[1])

    @property
    def retry_after(self) -> float | None:
        """Seconds until the next call may be let through, or None when nobody knows."""
        return self.args[2]  # type: ignore[no-any-return]  # `args` holds anything

    @property
    def last_error(self) -> str:
        """Class and redacted message of the failure seen last, or ""."""
        return str(self.args[3])

    def __str__(self) -> str:
        until = "until it is reset" if self.retry_after is None else f"for another {self.retry_after:.1f} s"
        last = f" Last error: {self.last_error}" if self.last_error else ""
        return f"Circuit breaker is OPEN: {self.name!r} refuses calls {until}.{last}"


class _GaveUpError(ResilienceError):
    """What `TransientError` and `PermanentError` share: the story of a call that was given up."""

    def __init__(self, message: str, kind: str = "unknown", attempts: int = 1) -> None:
        super().__init__(message, kind, attempts)
        self.message = message
        self.kind = kind
        self.attempts = attempts

    def __str__(self) -> str:
        return self.message


class TransientError(_GaveUpError):
    """A call failed for a reason that may pass, also after all retries.

    Args:
        message: What happened, why, and what to do; several lines, without secrets.
        kind: The `ErrorKind` of the last failure.
        attempts: How many times the function was called.
    """


class PermanentError(_GaveUpError):
    """A call failed for a reason that retrying cannot cure.

    Args:
        message: What happened, why, and what to do; several lines, without secrets.
        kind: The `ErrorKind` of the failure.
        attempts: How many times the function was called.
    """


class CommitOutcomeUnknownError(ResilienceError):
    """The connection was lost while COMMIT was under way: the work may or may not be stored.

    Args:
        message: What is known, and how to find out the rest.
        using: The database alias.
    """

    def __init__(self, message: str, using: str = "default") -> None:
        super().__init__(message, using)
        self.message = message
        self.using = using

    def __str__(self) -> str:
        return self.message


class TransactionBrokenError(ResilienceError):
    """A transaction's code swallowed a database error, after which nothing of it can be stored: it was rolled back.

    Args:
        message: What happened, and what to do; `__cause__` is the swallowed error when it is known.
        using: The database alias.
    """

    def __init__(self, message: str, using: str = "default") -> None:
        super().__init__(message, using)
        self.message = message
        self.using = using

    def __str__(self) -> str:
        return self.message


class ConcurrentUpdateError(ResilienceError):
    """An optimistic update lost the race every time it was tried.

    Args:
        model: Label of the model, as in "shop.Account".
        pk: Primary key of the row.
        attempts: How many times the update was tried.
    """

    def __init__(self, model: str, pk: Any, attempts: int = 1) -> None:
        super().__init__(model, pk, attempts)
        self.model = model
        self.pk = pk
        self.attempts = attempts

    def __str__(self) -> str:
        if self.attempts == 1:
            return f"{self.model} {self.pk!r} was changed or deleted by others since it was read. Read it again, then change it."
        return f"{self.model} {self.pk!r} was changed by others in each of {self.attempts} attempts. Raise max_retries, or lock the row."


class RunBusyError(ResilienceError):
    """Another worker holds the run's lease.

    Args:
        key: The run's key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"Run {self.key!r} is held by another worker. Wait for it to finish, or cancel it first."


class RunConfigChangedError(ResilienceError):
    """A run would resume with another configuration than it was started with.

    Args:
        key: The run's key.
        names: Names of the arguments that differ; never their values.
    """

    def __init__(self, key: str, names: tuple[str, ...] | list[str] = ()) -> None:
        super().__init__(key, tuple(names))
        self.key = key
        self.names = tuple(names)

    def __str__(self) -> str:
        return (
            f"Run {self.key!r} was started with other values of: {', '.join(self.names)}. "
            'Use another key, or set on_config_change to "resume" or "restart".'
        )


class RunStateError(ResilienceError):
    """A run is in a status from which it cannot do what it was asked to do.

    Args:
        key: The run's key.
        action: What was asked, as in "pause" or "start".
        status: The run's status.
    """

    def __init__(self, key: str, action: str, status: str) -> None:
        super().__init__(key, action, status)
        self.key = key
        self.action = action
        self.status = status

    def __str__(self) -> str:
        return f"Run {self.key!r} cannot {self.action}: it is {self.status}. See docs/runs.md for what each status allows."


class CheckpointError(ResilienceError):
    """A checkpoint could not be stored or read back.

    Args:
        message: What happened and what to do.
        reason: One word for programs: "unstorable" (the state holds something no format can carry), "storage" (disk,
            storage or network), "damaged" (bytes are missing or wrong), "newer" (written by a newer version),
            "unsigned" (no signing key fits), "configuration", or "".
        path: Where in the state the fault lies, as in `state['model']['layers'][0]`, or "".
    """

    def __init__(self, message: str = "A checkpoint could not be stored or read back.", reason: str = "", path: str = "") -> None:
        super().__init__(message, reason, path)
        self.message = message
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return self.message


class RunInterrupted(BaseException):
    """Leave the body of a run at a step's end: shutdown, pause, cancel, slice over or lease lost.

    A `BaseException`, so that `except Exception` around a step does not swallow it. The decorator or context
    manager that opened the run catches it; user code lets it pass.

    Args:
        reason: One of "shutdown", "paused", "cancelled", "slice", "lease_lost".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
