"""Ready-made policies for the two most common places: a service object, and a provider's client.

`ErrorRecoveryManager` turns whatever went wrong into one of two errors with a message that says what happened, why, and
how to fix it. `ResilientProvider` keeps providers apart and lets calls to one provider share what is known about it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, Generic, ParamSpec, TypeVar

from resilience.calls.classify import ErrorKind, classify
from resilience.calls.fallbacks import is_control_flow
from resilience.calls.nesting import gave_up, marks
from resilience.calls.retries import RetryConfig
from resilience.calls.timeouts import TimeoutConfig, acall_with_timeout, call_with_timeout
from resilience.circuits.config import CircuitBreakerConfig
from resilience.circuits.memory import GeneratedName
from resilience.exceptions import CircuitOpenError, PermanentError, TransientError
from resilience.policies import Policy
from resilience.redaction import describe_exception, redact

__all__ = ["ErrorRecoveryManager", "ResilientProvider"]

P = ParamSpec("P")
R = TypeVar("R")

#: Why a failure of each kind happens, and how to fix it.
ADVICE: Final[dict[ErrorKind, tuple[str, str]]] = {
    ErrorKind.TIMEOUT: (
        "The other side did not answer in time.",
        "Try again later. If it happens often, raise the timeout above the slowest answers you accept, or ask for less at once.",
    ),
    ErrorKind.RATE_LIMIT: (
        "More calls were made than the other side allows.",
        "Wait and try again, make fewer calls at once (max_concurrent of a Bulkhead), or ask for a higher limit.",
    ),
    ErrorKind.QUOTA: (
        "The account's quota or credit is used up; waiting does not bring it back.",
        "Check plan and billing of the account, then try again.",
    ),
    ErrorKind.CONNECTION: (
        "The other side could not be reached, or the connection was lost.",
        "Check that the host name and port are right, that the service is running, and that no firewall is in between.",
    ),
    ErrorKind.SERVER_ERROR: (
        "The other side failed while it worked on the call.",
        "Try again later. If it goes on, look at the service's status page or its logs.",
    ),
    ErrorKind.OVERLOADED: (
        "The other side has more work than it can do now.",
        "Try again later, and spread calls that need not happen now.",
    ),
    ErrorKind.CONFLICT: (
        "Someone else changed or locked the same thing at the same time.",
        "Try again. If it happens often, shorten what is done under the lock.",
    ),
    ErrorKind.AUTH: (
        "The credentials were not accepted.",
        "Check that the API key or password is set, complete, not expired, and meant for this environment.",
    ),
    ErrorKind.PERMISSION: (
        "The credentials are valid but may not do this.",
        "Give the account the missing permission, or use another account.",
    ),
    ErrorKind.INVALID_REQUEST: (
        "The other side does not accept what was sent; it will not accept it the next time either.",
        "Compare the arguments of the call with the service's documentation.",
    ),
    ErrorKind.NOT_FOUND: (
        "What the call asks for does not exist.",
        "Check the name or address: a model, a path, an id.",
    ),
    ErrorKind.TLS: (
        "A secure connection could not be made: the certificate or the protocol does not fit.",
        "Check the host name, the clock of this machine, and the installed certificates.",
    ),
    ErrorKind.INTEGRITY: (
        "The data contradicts a rule of the database.",
        "Check for a duplicate or a missing reference; what is there already may be the result of an earlier try.",
    ),
    ErrorKind.UNKNOWN: (
        "The error is none that is known to pass by itself.",
        "Read the error and its traceback. If it does pass by itself, teach resilience with register_classifier().",
    ),
}


class ErrorRecoveryManager:
    """Run a function with retries, a time limit and a circuit, and explain what went wrong in the end.

    Args:
        name: Name of the circuit, shared with all that use it. None keeps a circuit to this object alone.
        retry: When to try again. By default three attempts, for errors that may pass.
        circuit: When to stop trying at all.
        timeout: Seconds each attempt may take, above 0.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of range.

    Example:
        >>> manager = ErrorRecoveryManager("doc-llm", timeout=5)
        >>> manager.execute_with_retry_sync(lambda: "fine", context="asking the model")
        'fine'
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        retry: RetryConfig = RetryConfig(max_attempts=3, delay=0.1, max_delay=10.0),  # noqa: B008  # frozen
        circuit: CircuitBreakerConfig = CircuitBreakerConfig(),  # noqa: B008  # frozen
        timeout: float = 30.0,
    ) -> None:
        self._is_named = name is not None
        if name is None:
            circuit = replace(circuit, scope="process")
        self.name = GeneratedName.beginning("recovery") if name is None else name
        self._limit = TimeoutConfig(timeout)
        self._policy = Policy(self.name, retry=retry, circuit=circuit)

    async def execute_with_retry(
        self, async_fn: Callable[[], Awaitable[R]], context: str = "", timeout_seconds: float | None = None
    ) -> R:
        """Call and await `async_fn` until it succeeds, cannot succeed, or was tried often enough.

        Args:
            async_fn: A coroutine function without arguments.
            context: What is being done, for the message, as in "asking the model".
            timeout_seconds: Seconds each attempt may take instead of the manager's `timeout`.

        Raises:
            TransientError: Every attempt failed for a reason that may pass.
            PermanentError: It failed for a reason that will not pass, or the circuit is open.
        """
        attempt = _Attempts(async_fn, self._limit_for(context, timeout_seconds))
        try:
            return await self._policy.acall(attempt.amake)
        except Exception as error:
            if is_control_flow(error):
                raise
            raise attempt.explained(error, self._what(context)) from error

    def execute_with_retry_sync(self, fn: Callable[[], R], context: str = "", timeout_seconds: float | None = None) -> R:
        """Call `fn` until it succeeds, cannot succeed, or was tried often enough; see `execute_with_retry`.

        Raises:
            TransientError: Every attempt failed for a reason that may pass.
            PermanentError: It failed for a reason that will not pass, or the circuit is open.
        """
        attempt = _Attempts(fn, self._limit_for(context, timeout_seconds))
        try:
            return self._policy.call(attempt.make)
        except Exception as error:
            if is_control_flow(error):
                raise
            raise attempt.explained(error, self._what(context)) from error

    def describe(self) -> dict[str, Any]:
        """Return the manager's policy as a plain dict."""
        return {**self._policy.describe(), "timeout": self._limit.seconds}

    def _limit_for(self, context: str, seconds: float | None) -> TimeoutConfig:
        return TimeoutConfig(self._limit.seconds if seconds is None else seconds, operation=redact(self._what(context)))

    def _what(self, context: str) -> str:
        return context or (self.name if self._is_named else "the call")


class ResilientProvider:
    """Call one provider, with retries and a circuit that all who call this provider share.

    Args:
        name: The provider's name, as in "openai". Providers do not affect each other.
        retry: When to try again; None takes `RESILIENCE["RETRY"]`.
        circuit: When to stop calling the provider; None takes `RESILIENCE["CIRCUIT"]`.

    Example:
        >>> openai, anthropic = ResilientProvider("doc-openai-2"), ResilientProvider("doc-anthropic")
        >>> openai.execute(max, 1, 2)
        2
    """

    def __init__(self, name: str, retry: RetryConfig | None = None, circuit: CircuitBreakerConfig | None = None) -> None:
        self.name = name
        self.policy = Policy(name, retry=retry or True, circuit=circuit or True)

    def execute(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a plain function.

        Raises:
            Exception: What `fn` raised last.
            CircuitOpenError: The provider's circuit is open.
        """
        return self.policy.call(fn, *args, **kwargs)

    async def aexecute(self, fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call and await a coroutine function; raises what `execute` raises."""
        return await self.policy.acall(fn, *args, **kwargs)


class _Attempts(Generic[R]):
    """Make the attempts of one call, each under its limit, and count them."""

    __slots__ = ("_func", "_limit", "_since", "count")

    def __init__(self, func: Callable[[], R], limit: TimeoutConfig) -> None:
        self._func = func
        self._limit = limit
        self._since = marks.count
        self.count = 0

    def make(self) -> R:
        self.count += 1
        return call_with_timeout(self._limit, self._func)

    async def amake(self) -> Any:
        self.count += 1
        return await acall_with_timeout(self._limit, self._func)  # type: ignore[arg-type]  # a coroutine function here

    def explained(self, error: Exception, what: str) -> TransientError | PermanentError:
        """Tell the story of these attempts, which `error` ended."""
        # Also an error that nobody but this manager's retry calls worth trying again.
        was_retried = self.count > 1 and gave_up(error, self._since)
        return _explained(error, what, self.count, was_retried=was_retried)


def _explained(error: Exception, what: str, attempts: int, *, was_retried: bool) -> TransientError | PermanentError:
    info = classify(error)
    is_open = isinstance(error, CircuitOpenError)
    why, fix = ADVICE.get(info.kind, ADVICE[ErrorKind.UNKNOWN])
    if is_open:
        why = "It failed so often that it is not called for a while."
        fix = "Wait until the circuit lets a call through, or find out what made it open and reset it."
    times = "was not tried" if attempts == 0 else f"failed after {attempts} attempt{'s' if attempts > 1 else ''}"
    message = f"What happened: {redact(what)} {times}: {describe_exception(error)}\nWhy: {why}\nHow to fix: {fix}"
    is_transient = not is_open and (info.transient or was_retried)
    return (TransientError if is_transient else PermanentError)(message, info.kind, attempts)
