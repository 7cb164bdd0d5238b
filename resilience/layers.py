"""What a policy consists of, and how its layers are put around each other.

From the outside in: fallback, deadline, retry, circuit, bulkhead, attempt timeout.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from resilience.calls import alarms
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.callables import name_of
from resilience.calls.classify import classify
from resilience.calls.deadlines import deadline_scope
from resilience.calls.fallbacks import Substitute
from resilience.calls.retries import RetryConfig, async_retry, retry
from resilience.calls.timeouts import TimeoutConfig, acall_with_timeout, call_with_timeout
from resilience.circuits.breaker import CircuitBreaker
from resilience.circuits.config import CircuitBreakerConfig
from resilience.values import checked_seconds

__all__ = ["AsyncInvoke", "Invoke", "Parts", "fields_from_settings", "put_together"]

#: The layers, outside in.
ORDER = ("fallback", "deadline", "retry", "circuit", "bulkhead", "timeout")

#: Bulkheads that settings describe, by policy, so that all users of one policy share one.
_bulkheads: dict[tuple[str, int, float], Bulkhead] = {}

Invoke = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
AsyncInvoke = Callable[[Callable[..., Awaitable[Any]], tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The checked parts of a policy; None where it has no such layer."""

    fallback: Substitute | None = None
    deadline: float | None = None
    retry: RetryConfig | bool | None = None
    circuit: CircuitBreaker | None = None
    bulkhead: Bulkhead | None = None
    timeout: TimeoutConfig | None = None

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> Parts:
        """Check the fields of `Policy` and make the parts they ask for."""
        deadline, limit = given.get("deadline"), given.get("timeout")
        if deadline is not None:
            deadline = checked_seconds("deadline", deadline, "Leave it out for no limit.")
        if limit is not None:
            limit = (
                limit
                if isinstance(limit, TimeoutConfig)
                else TimeoutConfig(checked_seconds("timeout", limit, "Leave it out for no limit."))
            )
            limit = replace(limit, operation=limit.operation or name)
        return cls(
            fallback=Substitute(given["fallback"]) if "fallback" in given else None,
            deadline=deadline,
            retry=_checked_retry(given.get("retry")),
            circuit=_circuit(name, given.get("circuit")),
            bulkhead=_checked_bulkhead(name, given.get("bulkhead")),
            timeout=limit,
        )

    def describe(self) -> dict[str, Any]:
        """Return the parts as plain JSON types, and the order of those there are."""
        bulkhead = self.bulkhead
        return {
            "order": [layer for layer in ORDER if getattr(self, layer) is not None],
            "fallback": _described_fallback(self.fallback),
            "deadline": self.deadline,
            "retry": _plain(self.retry),
            "circuit": None if self.circuit is None else _plain(self.circuit.config),
            "bulkhead": None if bulkhead is None else {"max_concurrent": bulkhead.max_concurrent, "max_wait": bulkhead.max_wait},
            "timeout": None if self.timeout is None else self.timeout.seconds,
        }


def fields_from_settings(name: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `RESILIENCE["POLICIES"][name]` in the form that `Policy` takes.

    Raises:
        ImproperlyConfigured: A field is unknown or wrong.
    """
    unknown = sorted(set(configured) - set(ORDER))
    if unknown:
        raise ImproperlyConfigured(
            f"RESILIENCE['POLICIES'][{name!r}] has the unknown field {unknown[0]!r}. Use {', '.join(ORDER)}."
        )
    values = {field: value for field, value in configured.items() if value is not None and value is not False}
    try:
        if isinstance(values.get("fallback"), str):
            values["fallback"] = _imported_fallback(values["fallback"])
        if isinstance(values.get("bulkhead"), Mapping):
            values["bulkhead"] = _shared_bulkhead(name, Bulkhead(name, **values["bulkhead"]))
        Parts.of(name, values)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"RESILIENCE['POLICIES'][{name!r}] is wrong: {error}") from error
    return values


def _imported_fallback(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        advice = "Write the answer as a constant in a module of yours and name that, or correct the path."
        raise TypeError(f"fallback must be the dotted path of a function or value, not {path!r} ({error}). {advice}") from error


def _shared_bulkhead(name: str, bulkhead: Bulkhead) -> Bulkhead:
    return _bulkheads.setdefault((name, bulkhead.max_concurrent, bulkhead.max_wait), bulkhead)


def _checked_retry(value: Any) -> RetryConfig | bool | None:
    if value is None or value is True or isinstance(value, RetryConfig):
        return value
    if isinstance(value, Mapping):
        return RetryConfig(**value)
    raise TypeError(
        f"retry must be a RetryConfig, a dict of its fields or True, not {value!r}. Use True for RESILIENCE['RETRY']."
    )


def _checked_bulkhead(name: str, value: Any) -> Bulkhead | None:
    if value is None or isinstance(value, Bulkhead):
        return value
    if isinstance(value, Mapping):
        return Bulkhead(name, **value)
    raise TypeError(f"bulkhead must be a Bulkhead, not {value!r}. Write Bulkhead({name!r}, max_concurrent=10).")


def _circuit(name: str, value: Any) -> CircuitBreaker | None:
    """Make the breaker of a policy, on which an error that will not pass is an answer like any other."""
    if value is None or isinstance(value, CircuitBreaker):
        return value
    if isinstance(value, CircuitBreakerConfig):
        _require_no_circuit_fallback(value.fallback)
        return CircuitBreaker(name, replace(value, failure_if=value.failure_if or _is_transient), declared_in=f"policy {name}")
    if isinstance(value, Mapping) or value is True:
        chosen = {} if value is True else dict(value)
        _require_no_circuit_fallback(chosen.get("fallback"))
        return CircuitBreaker(name, declared_in=f"policy {name}", defaults={"failure_if": _is_transient}, **chosen)
    raise TypeError(
        f"circuit must be a CircuitBreakerConfig, a dict of its fields or True, not {value!r}. Use True for RESILIENCE['CIRCUIT']."
    )


def _require_no_circuit_fallback(value: object) -> None:
    if value is not None:
        raise ValueError(
            f"fallback must be given to the policy, not to its circuit: {value!r}. The policy's answers refused calls too."
        )


def _is_transient(error: Exception) -> bool:
    return classify(error).transient


def put_together(name: str, parts: Parts) -> tuple[Invoke, AsyncInvoke]:
    """Put the layers around each other, for plain calls and for coroutines.

    Each layer is called with a function, its arguments and its keyword arguments, so that one set serves all.
    """
    invoke, ainvoke = _named(name, _invoke(name, parts)), _named(name, _ainvoke(name, parts))
    if parts.bulkhead is not None:
        invoke, ainvoke = parts.bulkhead(invoke), parts.bulkhead(ainvoke)
    if parts.circuit is not None:
        invoke, ainvoke = parts.circuit(invoke), parts.circuit(ainvoke)
    if parts.retry is not None:
        config = parts.retry if isinstance(parts.retry, RetryConfig) else None
        invoke, ainvoke = retry(config)(invoke), async_retry(config)(ainvoke)
    if parts.deadline is not None:
        invoke, ainvoke = _within(parts.deadline, invoke), _awithin(parts.deadline, ainvoke)
    if parts.fallback is not None:
        invoke, ainvoke = _answered(parts.fallback, invoke), _aanswered(parts.fallback, ainvoke)
    return invoke, ainvoke


def _invoke(name: str, parts: Parts) -> Invoke:
    limit = parts.timeout or _what_is_left(name, parts.deadline)

    def invoke(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def invoke_within(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert limit is not None
        return call_with_timeout(limit, func, *args, **kwargs)

    def invoke_within_deadline(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A thread that nothing can interrupt is not left for a deadline's sake: that would leave its transaction too.
        return (invoke_within if alarms.available() else invoke)(func, args, kwargs)

    if limit is None:
        return invoke
    return invoke_within_deadline if parts.timeout is None else invoke_within


def _ainvoke(name: str, parts: Parts) -> AsyncInvoke:
    limit = parts.timeout or _what_is_left(name, parts.deadline)

    async def ainvoke(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if limit is None:
            return await func(*args, **kwargs)
        return await acall_with_timeout(limit, func, *args, **kwargs)

    return ainvoke


def _what_is_left(name: str, deadline: float | None) -> TimeoutConfig | None:
    """Return the limit of an attempt that has none of its own: the deadline around it cuts it short."""
    return None if deadline is None else TimeoutConfig(deadline, operation=name)


def _named(name: str, layer: Any) -> Any:
    """Let signals and messages speak of the policy, whichever function it protects."""
    layer.__qualname__ = layer.__name__ = name
    return layer


def _within(seconds: float, inner: Invoke) -> Invoke:
    def within(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with deadline_scope(seconds):
            return inner(func, args, kwargs)

    return within


def _awithin(seconds: float, inner: AsyncInvoke) -> AsyncInvoke:
    async def within(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with deadline_scope(seconds):
            return await inner(func, args, kwargs)

    return within


def _answered(substitute: Substitute, inner: Invoke) -> Invoke:
    def answered(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return inner(func, args, kwargs)
        except Exception as error:
            if not substitute.answers_for(error):
                raise
            return substitute.answer(func, error, args, kwargs)

    return answered


def _aanswered(substitute: Substitute, inner: AsyncInvoke) -> AsyncInvoke:
    async def answered(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return await inner(func, args, kwargs)
        except Exception as error:
            if not substitute.answers_for(error):
                raise
            return await substitute.aanswer(func, error, args, kwargs)

    return answered


def _described_fallback(substitute: Substitute | None) -> str | None:
    if substitute is None:
        return None
    target = substitute.target
    return str(_plain(target)) if callable(target) else f"a value of type {type(target).__name__}"


def _plain(value: Any) -> Any:
    """Return `value` in plain JSON types: functions and classes by their names, other objects by their types."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Enum)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {definition.name: _plain(getattr(value, definition.name)) for definition in fields(value)}
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{name_of(value)}"
    return type(value).__name__
