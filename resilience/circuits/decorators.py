"""Guard a function with a circuit breaker: the decorators."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from resilience.circuits.breaker import CircuitBreaker
from resilience.circuits.config import CircuitBreakerConfig

__all__ = ["async_circuit_breaker", "circuit_breaker"]

P = ParamSpec("P")
R = TypeVar("R")


class _AsyncDecorator(Protocol):
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def circuit_breaker(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def circuit_breaker(name: str | None = None, config: CircuitBreakerConfig | None = None, **fields: Any) -> CircuitBreaker: ...
def circuit_breaker(name: Any = None, config: CircuitBreakerConfig | None = None, **fields: Any) -> Any:
    """Guard a function with a circuit breaker; see `CircuitBreaker`.

    Args:
        name: The circuit's name; without one, with or without parentheses, the function's module and name.
        config: The whole configuration.
        **fields: Fields of `CircuitBreakerConfig`.

    Returns:
        The guarded function, or a `CircuitBreaker`, which decorates functions, when called with a name, options or nothing.

    Example:
        >>> @circuit_breaker("doc-rates", failure_threshold=3, recovery_timeout=30)
        ... def fetch_rates():
        ...     return {"EUR": 1.0}
        >>> fetch_rates()
        {'EUR': 1.0}
    """
    if callable(name) and not isinstance(name, str):
        return CircuitBreaker(None, config, **fields)(name)
    return CircuitBreaker(name, config, **fields)


@overload
def async_circuit_breaker(func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def async_circuit_breaker(
    name: str | None = None, config: CircuitBreakerConfig | None = None, **fields: Any
) -> _AsyncDecorator: ...
def async_circuit_breaker(name: Any = None, config: CircuitBreakerConfig | None = None, **fields: Any) -> Any:
    """Guard a callable that returns an awaitable where that cannot be seen, such as a `partial` of a client's method.

    Args:
        name: The circuit's name; without one the function's module and name.
        config: The whole configuration.
        **fields: Fields of `CircuitBreakerConfig`.

    Example:
        >>> import asyncio
        >>> @async_circuit_breaker("doc-lookup")
        ... async def look_up():
        ...     return "found"
        >>> asyncio.run(look_up())
        'found'
    """
    if callable(name) and not isinstance(name, str):
        return CircuitBreaker(None, config, **fields)._decorate(name, as_async=True)  # noqa: SLF001  # the same room
    breaker = CircuitBreaker(name, config, **fields)
    return functools.partial(breaker._decorate, as_async=True)  # noqa: SLF001  # the same room
