"""What a retry may do: the options, their ranges, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from django.core.exceptions import ImproperlyConfigured

from resilience import conf
from resilience.calls.backoff import JITTERS, Backoff, RetryStrategy
from resilience.calls.budgets import RetryBudget
from resilience.calls.callables import is_async
from resilience.values import checked_count, checked_number, checked_seconds

__all__ = ["RetryConfig", "RetryFields", "config_from_settings", "config_in_force", "require_none"]

ExceptionTypes = type[Exception] | tuple[type[Exception], ...]
Jitter = bool | Literal["full", "equal", "decorrelated"]


class RetryFields(TypedDict, total=False):
    """The fields of `RetryConfig`, as keyword arguments of `retry`."""

    max_attempts: int
    delay: float
    backoff: float
    max_delay: float
    strategy: RetryStrategy | str
    jitter: Jitter
    exceptions: ExceptionTypes | None
    exclude: ExceptionTypes
    retry_if: Callable[[Exception], bool] | None
    retry_on_result: Callable[[Any], bool] | None
    on_retry: Callable[[Exception | None, int], object] | None
    attempt_timeout: float | None
    deadline: float | None
    max_retry_after: float | None
    budget: RetryBudget | None
    idempotent: bool
    retry_given_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """When to call again, how long to wait before, and when to stop.

    Args:
        max_attempts: Calls in all, the first included; 1 or more.
        delay: The first wait, in seconds; 0 or more. Every time may be a number or a `timedelta`.
        backoff: What an exponential wait is multiplied by each time; 1 or more.
        max_delay: Cap on every computed wait, in seconds; 0 or more.
        strategy: How the wait grows; a `RetryStrategy` or its value.
        jitter: True or "full" draws each wait between 0 and the nominal one, "equal" between its half and itself,
            "decorrelated" between `delay` and three times the wait before; False waits the nominal time.
        exceptions: The exceptions to retry; None for those that `classify` calls transient. Control flow is never
            retried, nor is an error of an open circuit.
        exclude: Exceptions not to retry, whatever else says so.
        retry_if: `(exception) -> bool`: asked about what the fields above let through (with `exceptions=None`:
            instead of `classify`); False stops.
        retry_on_result: `(result) -> bool`: True tries again, as a failure would. The last result is returned.
        on_retry: `(exception, attempt)`: called before each wait with the attempt that failed, 1 for the first;
            the exception is None for a result. If it raises, that is logged and changes nothing.
        attempt_timeout: Seconds each call may take, above 0, by `resilience.timeout`; None for no limit.
        deadline: Seconds within which all of it takes place, above 0: no wait or attempt begins that it leaves no time for,
            and one in progress is cut off only by an `attempt_timeout`. None for no limit.
        max_retry_after: The longest wait asked for by the other side that is obeyed, in seconds; a longer one
            stops at once. None obeys any.
        budget: The `RetryBudget` that each retry is paid from; None retries without.
        idempotent: False does not repeat a call that may have been executed (see `ErrorInfo.maybe_executed`).
        retry_given_up: True also retries an error that a retry further in has given up. By default only the innermost
            level retries, so that levels add up instead of multiplying.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value is of the wrong type.

    Example:
        >>> RetryConfig(max_attempts=5, delay=0.2).max_delay
        60.0
        >>> RetryConfig(max_attempts=0)
        Traceback (most recent call last):
        ValueError: max_attempts must be a whole number of 1 or more, not 0. It counts all calls: use 1 not to retry.
    """

    max_attempts: int = 3
    delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 60.0
    strategy: RetryStrategy | str = RetryStrategy.EXPONENTIAL
    jitter: Jitter = True
    exceptions: ExceptionTypes | None = None
    exclude: ExceptionTypes = ()
    retry_if: Callable[[Exception], bool] | None = None
    retry_on_result: Callable[[Any], bool] | None = None
    on_retry: Callable[[Exception | None, int], object] | None = None
    attempt_timeout: float | None = None
    deadline: float | None = None
    max_retry_after: float | None = 60.0
    budget: RetryBudget | None = None
    idempotent: bool = True
    retry_given_up: bool = False

    def __post_init__(self) -> None:
        checked_count("max_attempts", self.max_attempts, 1, "It counts all calls: use 1 not to retry.")
        advice = "Use strategy='fixed' for waits that do not grow."
        checked_number("backoff", self.backoff, "a number of 1 or more", advice, lambda factor: factor >= 1)
        for name, zero, or_none, advice in _TIMES:
            if (value := getattr(self, name)) is not None or not or_none:
                self._set(name, checked_seconds(name, value, advice, zero=zero, or_none=or_none))
        self._set("strategy", _checked_strategy(self.strategy))
        _check_jitter(self.jitter)
        if self.exceptions is not None:
            self._set("exceptions", _checked_exceptions("exceptions", self.exceptions))
        self._set("exclude", _checked_exceptions("exclude", self.exclude))
        for name in ("retry_if", "retry_on_result", "on_retry"):
            _check_function(name, getattr(self, name))
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            raise TypeError(
                f"budget must be a RetryBudget or None, not {self.budget!r}. Share one RetryBudget(ratio=0.2) between calls."
            )
        for name in ("idempotent", "retry_given_up"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}. Decide for the function as a whole.")

    @property
    def watches_calls(self) -> bool:
        """Whether a call that does not fail needs looking after too."""
        return any(given is not None for given in (self.deadline, self.attempt_timeout, self.retry_on_result, self.budget))

    def waits(self) -> Backoff:
        """Return the series of waits this asks for."""
        return Backoff(
            delay=self.delay,
            factor=self.backoff,
            max_delay=self.max_delay,
            strategy=RetryStrategy(self.strategy),
            jitter=JITTERS[self.jitter],
        )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def config_from_settings(given: RetryFields) -> RetryConfig | None:
    """Return the fields given to a decorator over those of `RESILIENCE["RETRY"]`, or None when retrying is off.

    Raises:
        ImproperlyConfigured: RESILIENCE["RETRY"] has an unknown field or a wrong value.
    """
    settings = conf.current()
    configured = dict(settings.retry)
    if not settings.enabled or not configured.pop("enabled", True):
        return None
    try:
        return RetryConfig(**{**configured, **given})
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"RESILIENCE['RETRY'] is wrong: {error}") from error


def config_in_force(config: RetryConfig | None, given: RetryFields) -> RetryConfig | None:
    """Return `config`, or without one what `config_from_settings` gives; None when retrying is off.

    Raises:
        ImproperlyConfigured: As for `config_from_settings`.
    """
    if config is None:
        return config_from_settings(given)
    settings = conf.current()
    return config if settings.enabled and settings.retry.get("enabled", True) else None


def require_none(config: RetryConfig, fields_without_sense: tuple[str, ...], place: str, advice: str) -> None:
    """Refuse fields that have no sense in a place.

    Raises:
        TypeError: One of them is given.
    """
    for name in fields_without_sense:
        if (value := getattr(config, name)) is not None:
            raise TypeError(f"{name} must be None in {place}, not {value!r}. {advice}")


#: Field, whether 0 will do, whether None will do, and what to do instead of a wrong value.
_TIMES = (
    ("delay", True, False, "Use 0 to retry at once."),
    ("max_delay", True, False, "Use 0 not to wait at all."),
    ("attempt_timeout", False, True, "Use None for no limit."),
    ("deadline", False, True, "Use None for no limit."),
    ("max_retry_after", True, True, "Use None to obey any."),
)


def _checked_strategy(value: Any) -> RetryStrategy:
    try:
        return RetryStrategy(value)
    except ValueError:
        names = ", ".join(repr(strategy.value) for strategy in RetryStrategy)
        raise ValueError(f"strategy must be one of {names}, not {value!r}. Use RetryStrategy.EXPONENTIAL if in doubt.") from None


def _check_jitter(value: Any) -> None:
    if not isinstance(value, (bool, str)) or value not in JITTERS:
        raise ValueError(f"jitter must be True, 'full', 'equal', 'decorrelated' or False, not {value!r}. Use True if in doubt.")


def _checked_exceptions(name: str, value: Any) -> tuple[type[Exception], ...]:
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    if not classes and name == "exceptions":
        raise ValueError(
            "exceptions must be one or more exception classes, not (). Use None for what classify() calls transient."
        )
    for cls in classes:
        if isinstance(cls, str):
            raise TypeError(f"{name} must be exception classes, not the text {cls!r}. Import the class and give it itself.")
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise TypeError(
                f"{name} must be subclasses of Exception, not {cls!r}. Control flow such as KeyboardInterrupt is never retried."
            )
    return classes


def _check_function(name: str, value: Any) -> None:
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"{name} must be a function or None, not {value!r}. Pass the function itself, without calling it.")
    if is_async(value):
        raise TypeError(
            f"{name} must be a plain function, not the coroutine function {value!r}. Start a task in it if it has to await."
        )


assert set(RetryFields.__annotations__) == {field.name for field in fields(RetryConfig)}
