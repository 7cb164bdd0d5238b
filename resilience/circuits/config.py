"""What a circuit breaker can be told, its states, and where the values come from.

A breaker's own values beat `RESILIENCE["CIRCUITS"][name]`, which beats `RESILIENCE["CIRCUIT"]`, which beats the
defaults here. Settings are read when a circuit is used, never at import or decoration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from resilience import conf
from resilience.values import is_number, is_whole

__all__ = ["CircuitBreakerConfig", "CircuitState"]


class CircuitState(StrEnum):
    """The states of a circuit; each equals its lower-case name.

    Example:
        >>> CircuitState.HALF_OPEN == "half_open"
        True
    """

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When a circuit opens, how long it stays open and how it closes again.

    Args:
        scope: "fleet" shares the circuit with all processes on the same cache, "process" keeps it to this one.
        failure_threshold: Failures within `failure_window` that open the circuit; 1 or more. Successes do not
            reset the count.
        failure_window: Length of the sliding window, in seconds; more than 0.
        failure_rate_threshold: Share of failed calls that opens the circuit instead of the count; above 0, up to
            1, reaching it is enough. None counts failures.
        minimum_calls: Calls in the window before a rate is judged; 1 or more.
        slow_call_duration: A call that takes this many seconds or longer is slow; more than 0. None times nothing.
        slow_call_rate_threshold: Share of slow calls that opens the circuit; above 0, up to 1. None never does.
        recovery_timeout: Seconds an open circuit refuses calls before it lets a probe through; more than 0.
        recovery_backoff: Factor by which that time grows with each failed recovery; 1 or more. Grown times are
            shortened by up to 5 % at random, so that circuits that opened together do not probe together.
        max_recovery_timeout: Longest such time, in seconds. A longer `recovery_timeout` is used as it is.
        success_threshold: Successful probes that close the circuit; 1 or more. One failed probe opens it again.
        half_open_max_calls: Most probes at once over the whole fleet; 1 or more.
        half_open_timeout: Seconds after which a probe without a result no longer holds its place; more than 0.
        exceptions: What counts as a failure. Other exceptions count as successes: the service did answer.
        ignore: What counts as neither; wins over `exceptions`.
        failure_if: Asked about an exception in `exceptions`; a false answer counts it as a success.
        failure_on_result: Asked about a returned value; a true answer counts as a failure. The value is returned.
        fallback: Serves refused calls: a value, or a function or coroutine function that gets the call's
            arguments, and the `CircuitOpenError` if it has a parameter named `exc`. None raises the error.
        on_open: Called when the circuit opened, by the one process that opened it; without arguments, or with the
            `Transition` if it requires one. So are the two below.
        on_close: Called when the circuit closed.
        on_half_open: Called when the first probe is let through.
        sync_interval: Seconds between two looks at the shared state; 0 or more. None takes the setting.
        cache: Alias in CACHES. None takes the setting.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> CircuitBreakerConfig(failure_threshold=3, recovery_timeout=30).failure_window
        60.0
    """

    scope: str = "fleet"
    failure_threshold: int = 5
    failure_window: float = 60.0
    failure_rate_threshold: float | None = None
    minimum_calls: int = 20
    slow_call_duration: float | None = None
    slow_call_rate_threshold: float | None = None
    recovery_timeout: float = 60.0
    recovery_backoff: float = 1.0
    max_recovery_timeout: float = 600.0
    success_threshold: int = 2
    half_open_max_calls: int = 1
    half_open_timeout: float = 60.0
    exceptions: type[BaseException] | tuple[type[BaseException], ...] = (Exception,)
    ignore: type[BaseException] | tuple[type[BaseException], ...] = ()
    failure_if: Callable[[Exception], object] | None = None
    failure_on_result: Callable[[Any], object] | None = None
    fallback: Any = None
    on_open: Callable[..., object] | None = None
    on_close: Callable[..., object] | None = None
    on_half_open: Callable[..., object] | None = None
    sync_interval: float | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.scope not in {"fleet", "process"}:
            raise ValueError(f'scope must be "fleet" or "process", not {self.scope!r}. Use "fleet" to share the circuit.')
        for name, require in _RULES.items():
            require(name, getattr(self, name))
        if self.slow_call_rate_threshold is not None and self.slow_call_duration is None:
            raise ValueError("slow_call_duration must be set with slow_call_rate_threshold, not None. Say what slow means.")
        for name in ("exceptions", "ignore"):
            object.__setattr__(self, name, _exception_classes(name, getattr(self, name)))

    @property
    def is_timed(self) -> bool:
        """Whether the end of each call matters, and not only whether it failed."""
        return self.failure_rate_threshold is not None or self.slow_call_duration is not None

    def describe(self) -> dict[str, Any]:
        """Return the values as plain JSON types; functions and classes by their names."""
        return {definition.name: _plain(getattr(self, definition.name)) for definition in fields(self)}


#: Fields that the fleet must agree on; the others belong to the code that makes the call.
_SHARED = frozenset(
    definition.name
    for definition in fields(CircuitBreakerConfig)
    if definition.name not in {"exceptions", "ignore", "failure_if"}
) - {"failure_on_result", "fallback"}


def resolve(
    name: str, given: CircuitBreakerConfig | None, own: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> CircuitBreakerConfig:
    """Return the configuration of circuit `name` under the settings in force now.

    Args:
        name: The circuit's name, to look up in `RESILIENCE["CIRCUITS"]`.
        given: A whole configuration; settings then only fill `sync_interval` and `cache`.
        own: Single fields, which win over everything else.
        defaults: Single fields for what neither `given` nor the settings have.

    Raises:
        ImproperlyConfigured: The settings have an unknown field or a value out of range.
    """
    settings = conf.current()
    if given is not None:
        values = {definition.name: getattr(given, definition.name) for definition in fields(given)}
    else:
        values = {**(defaults or {}), **settings.circuit, **settings.circuits.get(name, {})}
        values.pop("enabled", None)
    values.update(own)
    if values.get("sync_interval") is None:
        values["sync_interval"] = settings.sync_interval
    if values.get("cache") is None:
        values["cache"] = settings.cache
    try:
        return CircuitBreakerConfig(**values)
    except (TypeError, ValueError) as error:
        if given is not None:
            raise
        raise ImproperlyConfigured(f"Circuit {name!r}: {error}") from error


def is_enabled(name: str) -> bool:
    """Tell whether breakers of this name do anything under the settings in force now."""
    settings = conf.current()
    if not settings.enabled:
        return False
    return bool(settings.circuits.get(name, {}).get("enabled", settings.circuit.get("enabled", True)))


def disagree(one: CircuitBreakerConfig, other: CircuitBreakerConfig) -> list[str]:
    """Return the names of the fields in which two declarations of one circuit contradict each other."""
    return sorted(name for name in _SHARED if getattr(one, name) != getattr(other, name))


def _require_count(name: str, value: object) -> None:
    if not (is_whole(value) and value >= 1):
        raise ValueError(f"{name} must be a whole number of 1 or more, not {value!r}. Use 1 for the smallest.")


def _require_seconds(name: str, value: Any) -> None:
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be more than 0 seconds, not {value!r}. Give a number of seconds.")


def _require_factor(name: str, value: Any) -> None:
    if not (is_number(value) and value >= 1):
        raise ValueError(f"{name} must be 1 or more, not {value!r}. Use 1 for no growth.")


def _require_share(name: str, value: Any) -> None:
    if not (is_number(value) and 0 < value <= 1):
        raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}. Write 50 % as 0.5.")


def _require_interval(name: str, value: Any) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}. Use 0 to ask at every call.")


def _require_function(name: str, value: object) -> None:
    if not callable(value):
        raise ValueError(f"{name} must be a function, not {value!r}. Pass the function itself.")  # noqa: TRY004  # a value
    if inspect.iscoroutinefunction(value):
        raise ValueError(f"{name} must be a plain function, not {value!r}. Start a task from a plain function instead.")


def _optional(require: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    def require_unless_none(name: str, value: object) -> None:
        if value is not None:
            require(name, value)

    return require_unless_none


_RULES: dict[str, Callable[[str, Any], None]] = {
    "failure_threshold": _require_count,
    "minimum_calls": _require_count,
    "success_threshold": _require_count,
    "half_open_max_calls": _require_count,
    "failure_window": _require_seconds,
    "recovery_timeout": _require_seconds,
    "max_recovery_timeout": _require_seconds,
    "half_open_timeout": _require_seconds,
    "slow_call_duration": _optional(_require_seconds),
    "recovery_backoff": _require_factor,
    "failure_rate_threshold": _optional(_require_share),
    "slow_call_rate_threshold": _optional(_require_share),
    "sync_interval": _optional(_require_interval),
    "failure_if": _optional(_require_function),
    "failure_on_result": _optional(_require_function),
    "on_open": _optional(_require_function),
    "on_close": _optional(_require_function),
    "on_half_open": _optional(_require_function),
}


def _exception_classes(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(f"{name} must be exception classes, not {item!r}. Pass a tuple of the classes themselves.")  # noqa: TRY004  # a value
    return classes


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return type(value).__name__
