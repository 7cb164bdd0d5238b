"""The functions that stand around the guarded ones. What happens on the way through a closed circuit is here, and only here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilience import clock, signals
from resilience.circuits.judging import judge_error
from resilience.circuits.local import View
from resilience.circuits.probes import Permit
from resilience.exceptions import CircuitOpenError

if TYPE_CHECKING:
    from resilience.circuits.breaker import CircuitBreaker

__all__ = ["UNUSED", "Unused", "guard", "guard_async"]


class Unused:
    """Stands for the circuit until the first call, which has to read the settings."""

    view = View(None)

    def refusal(self, view: View, now: float) -> CircuitOpenError:
        """Never asked: the view refuses nobody."""
        raise AssertionError


UNUSED = Unused()


def guard(breaker: CircuitBreaker, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return `func` guarded by `breaker`."""
    called, fails = signals.circuit_called, _failure(breaker)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        view, now = breaker._circuit.view, clock.monotonic()  # noqa: SLF001  # a friend
        if now < view.pass_until and breaker._is_plain and not called.receivers:  # noqa: SLF001  # a friend
            try:
                result = func(*args, **kwargs)
            except BaseException as error:
                fails(view, error)
                raise
            view.succeed()
            return result
        if now < view.reject_until and breaker._fallback is None:  # noqa: SLF001  # a friend
            raise breaker._circuit.refusal(view, now)  # noqa: SLF001  # a friend
        return breaker.call(func, *args, **kwargs)

    return wrapper


def guard_async(breaker: CircuitBreaker, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the coroutine function `func` guarded by `breaker`."""

    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await breaker.acall(func, *args, **kwargs)

    if not inspect.iscoroutinefunction(wrapper):
        inspect.markcoroutinefunction(wrapper)  # type: ignore[attr-defined]  # Python 3.12
    return wrapper


def _failure(breaker: CircuitBreaker) -> Callable[[View, BaseException], None]:
    def fails(view: View, error: BaseException) -> None:
        breaker._settle(Permit(view), clock.monotonic(), judge_error(breaker.config, error), error)  # noqa: SLF001  # a friend

    return fails
