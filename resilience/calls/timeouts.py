"""Time limits: what a call may take, how it is cut off, and how much of it is left.

Three mechanisms, chosen by where the call happens, never silently none:

- `async def`: `asyncio.timeout`, which cancels the body at its next `await`;
- a plain function in the main thread: a SIGALRM timer, which interrupts it between two bytecodes;
- a plain function in another thread: a worker thread, which is abandoned when the time is over.

docs/calls.md has the table of what each of them cannot do.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, cast

from resilience import conf, signals
from resilience.calls import alarms
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.deadlines import deadline_scope, is_deadline, remaining, time_allowed
from resilience.calls.threads import call_in_context, close_connections, require_no_transaction
from resilience.exceptions import AbandonedCallsError, OperationTimeoutError
from resilience.values import checked_seconds

__all__ = ["TimeoutConfig", "acall_with_timeout", "async_timeout", "call_with_timeout", "deadline_scope", "remaining", "timeout"]

#: Calls that were cut off outside the main thread and still run; with so many of them the next is refused.
MOST_ABANDONED = 100
_abandoned: set[threading.Thread] = set()

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TimeoutConfig:
    """What a call may take, and what is raised when it takes longer.

    Args:
        seconds: The limit, a number of seconds above 0 or a `timedelta`.
        exception: What to raise: an exception class, or a function that makes an exception from the message.
        message: Text of the exception; None tells the operation and the limit.
        operation: Name of the operation in that text and in the signal; None takes the function's name.

    Raises:
        TypeError: `seconds` is no number, or `exception` is neither an exception class nor a function.
        ValueError: `seconds` is out of range.

    Example:
        >>> TimeoutConfig(2.5, operation="lookup").seconds
        2.5
    """

    seconds: float
    _: KW_ONLY
    exception: Callable[..., Exception] = OperationTimeoutError
    message: str | None = None
    operation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "seconds",
            checked_seconds("seconds", self.seconds, "Leave the timeout out to wait for ever, or write @timeout(2.5)."),
        )
        wrong_class = isinstance(self.exception, type) and not issubclass(self.exception, Exception)
        if wrong_class or not callable(self.exception):
            raise TypeError(
                f"exception must be an exception class or a function that makes an exception, not {self.exception!r}. "
                "Use lambda message: MyError(message) for one with other arguments."
            )

    def error(self, operation: str, seconds: float) -> Exception:
        """Make the exception for a call of `operation` that was cut off after `seconds`."""
        operation = self.operation or operation
        cut_short = "" if seconds >= self.seconds else f", all that was left of the {self.seconds:g} s it may take"
        message = self.message or f"{operation} took longer than {max(seconds, 0.0):.3g} s{cut_short}."
        make = self.exception
        is_ours = isinstance(make, type) and issubclass(make, OperationTimeoutError)
        return make(message, max(seconds, 0.0)) if is_ours else make(message)


def timeout(
    seconds: float | timedelta | TimeoutConfig,
    *,
    exception: Callable[..., Exception] = OperationTimeoutError,
    message: str | None = None,
    operation: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Limit how long each call of a function may take.

    On an `async def` this is `async_timeout`. A plain function is interrupted by a timer in the main thread; in
    any other thread it runs in a worker thread, which is abandoned when the time is over and goes on until
    its function returns: prefer the timeout of the client you call, fed by `remaining()`, wherever there is one.

    Args:
        seconds: The limit, above 0; or a `TimeoutConfig` that says everything.
        exception: What to raise: an exception class, or a function that makes an exception from the message.
        message: Text of the exception; None tells the operation and the limit.
        operation: Name of the operation in that text; None takes the function's name.

    Raises:
        ValueError: `seconds` is out of range.
        TypeError: The decorated object is not a function, or is a generator function.

    Example:
        >>> @timeout(5, operation="the lookup")
        ... def look_up(word):
        ...     return remaining() > 4
        >>> look_up("resilience")
        True
    """
    config = _as_config(seconds, exception, message, operation)

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        require_plain_callable(func, "timeout")
        if is_async(func):
            return cast("Callable[P, R]", _async_shell(config, cast("Callable[P, Awaitable[Any]]", func)))

        @functools.wraps(func)
        def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            return call_with_timeout(config, func, *args, **kwargs)

        return limited

    return decorate


def async_timeout(
    seconds: float | timedelta | TimeoutConfig,
    *,
    exception: Callable[..., Exception] = OperationTimeoutError,
    message: str | None = None,
    operation: str | None = None,
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Limit how long each call of a coroutine function, or of any function that returns an awaitable, may take.

    The body is cancelled at its next `await`. One that swallows the cancellation keeps its result, and one that
    never awaits is not interrupted. A cancellation from outside and a TimeoutError from inside pass unchanged.

    Args:
        seconds: The limit, above 0; or a `TimeoutConfig` that says everything.
        exception: What to raise: an exception class, or a function that makes an exception from the message.
        message: Text of the exception; None tells the operation and the limit.
        operation: Name of the operation in that text; None takes the function's name.

    Raises:
        ValueError: `seconds` is out of range.
        TypeError: The decorated object is not a function, or is a generator function.

    Example:
        >>> @async_timeout(0.01, operation="the nap")
        ... async def nap():
        ...     await asyncio.sleep(60)
        >>> asyncio.run(nap())
        Traceback (most recent call last):
        resilience.exceptions.OperationTimeoutError: the nap took longer than 0.01 s.
    """
    config = _as_config(seconds, exception, message, operation)

    def decorate(func: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        require_plain_callable(func, "async_timeout")
        return _async_shell(config, func)

    return decorate


def call_with_timeout(config: TimeoutConfig, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a plain function once under a time limit.

    Raises:
        OpenTransactionError: It would have to run in another thread, and this one is in a transaction.
        AbandonedCallsError: It would have to run in another thread, and 100 of those left behind still run.

    Example:
        >>> call_with_timeout(TimeoutConfig(5), pow, 2, 10)
        1024
    """
    if not conf.current().enabled:
        return func(*args, **kwargs)
    enforcer = "alarm" if alarms.available() else "thread"
    seconds = _allowed(config, func, enforcer)
    with deadline_scope(seconds, enforcer):
        if enforcer == "alarm":
            return alarms.call_under_alarm(seconds, lambda: _expired(config, seconds, func), func, args, kwargs)
        return cast("R", _call_in_thread(config, seconds, func, args, kwargs))


async def acall_with_timeout(config: TimeoutConfig, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a coroutine function once under a time limit; see `async_timeout`."""
    if not conf.current().enabled:
        return await func(*args, **kwargs)
    seconds = _allowed(config, func, "task")
    own: TimeoutError | None = None
    try:
        async with asyncio.timeout(seconds) as scope:
            try:
                with deadline_scope(seconds, "task"):
                    return await func(*args, **kwargs)
            except TimeoutError as error:
                own = error
                raise
    except TimeoutError as error:
        if error is own or not scope.expired():
            raise
        raise _expired(config, seconds, func) from error
    finally:
        del own  # the error refers to this frame; do not refer back


def _call_in_thread(config: TimeoutConfig, seconds: float, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    require_no_transaction(f"A timeout of {name_of(func)} in the thread {threading.current_thread().name!r}")
    if _too_many_left():
        raise AbandonedCallsError(config.operation or name_of(func), MOST_ABANDONED)
    outcome: list[tuple[bool, Any]] = []
    finished = threading.Event()
    context = contextvars.copy_context()

    def work() -> None:
        outcome.append(call_in_context(context, func, *args, **kwargs))
        close_connections()
        finished.set()

    thread = threading.Thread(target=work, name=f"resilience-timeout-{name_of(func)}", daemon=True)
    thread.start()
    finished.wait(seconds)
    if not outcome:
        _abandoned.add(thread)
        raise _expired(config, seconds, func)
    succeeded, value = outcome[0]
    _take_over(context)
    if succeeded:
        return value
    try:
        raise value
    finally:
        del value, outcome[:]  # the error refers to this frame; do not refer back


def _too_many_left() -> bool:
    """Whether so many threads are left behind that one more would do harm: each holds memory and a connection."""
    if len(_abandoned) < MOST_ABANDONED:
        return False
    _abandoned.difference_update([thread for thread in list(_abandoned) if not thread.is_alive()])
    return len(_abandoned) >= MOST_ABANDONED


def _take_over(context: contextvars.Context) -> None:
    """Let the caller see the context variables that the function set, as if it had run in this thread."""
    for variable, value in context.items():
        if not is_deadline(variable) and variable.get(_MISSING) is not value:
            variable.set(value)


_MISSING = object()


def _async_shell(config: TimeoutConfig, func: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(func)
    async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        return await acall_with_timeout(config, func, *args, **kwargs)

    return limited


def _allowed(config: TimeoutConfig, func: object, enforcer: str) -> float:
    seconds = time_allowed(config.seconds, enforcer)
    if seconds <= 0:
        raise _expired(config, seconds, func)
    return seconds


def _expired(config: TimeoutConfig, seconds: float, func: object) -> Exception:
    operation = config.operation or name_of(func)
    signals.emit(signals.timeout_expired, func, name=operation, seconds=max(seconds, 0.0))
    return config.error(operation, seconds)


def _as_config(
    seconds: float | timedelta | TimeoutConfig, exception: Callable[..., Exception], message: str | None, operation: str | None
) -> TimeoutConfig:
    if isinstance(seconds, TimeoutConfig):
        if (exception, message, operation) != (OperationTimeoutError, None, None):
            raise TypeError(
                "timeout must be given either a TimeoutConfig or keyword arguments, not both. Put them into the config."
            )
        return seconds
    return TimeoutConfig(cast("float", seconds), exception=exception, message=message, operation=operation)
