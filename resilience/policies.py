"""Policies: everything that protects the calls to one dependency, under one name, in one order.

From the outside in: fallback, deadline, retry, circuit, bulkhead, attempt timeout. A policy is put together once,
and again when the settings change; a call that succeeds then runs through the layers it has and no others.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast
from weakref import WeakSet

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from resilience import conf
from resilience.calls.bulkheads import Bulkhead
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.fallbacks import Substitute
from resilience.calls.retries import RetryConfig
from resilience.calls.timeouts import TimeoutConfig
from resilience.chaos import disturbed
from resilience.circuits.config import CircuitBreakerConfig
from resilience.layers import AsyncInvoke, Invoke, Parts, fields_from_settings, put_together

if TYPE_CHECKING:
    from resilience.recovery import ErrorRecoveryManager, ResilientProvider

__all__ = ["ErrorRecoveryManager", "Policy", "ResilientProvider", "check_policies", "resilient"]

P = ParamSpec("P")
R = TypeVar("R")


class Policy:
    """What protects the calls to one dependency.

    Fields given here win over those of `RESILIENCE["POLICIES"][name]`, which is read when the policy is used. A field
    left out of both adds no layer, and False takes away a layer that the settings have; only as a `fallback` it is a
    value like any other.

    Args:
        name: The dependency's name, as in "openai": the name of its circuit, and of the call in signals and messages.
        retry: A `RetryConfig`, a dict of its fields, or True for `RESILIENCE["RETRY"]`.
        circuit: A `CircuitBreakerConfig`, a dict of its fields, or True for `RESILIENCE["CIRCUIT"]`. Only errors that may pass
            (`classify(...).transient`) count against it, unless it has a `failure_if` of its own. Policies and
            breakers of one name share one circuit.
        timeout: Seconds each attempt may take, above 0; or a `TimeoutConfig`. It is enforced as `resilience.timeout` is.
        deadline: Seconds everything may take, waits included, above 0. No wait and no attempt begins that it leaves no time for,
            and `remaining()` tells each attempt what is left. Coroutines and calls in the main thread are cut off when
            it is over; in other threads only a `timeout` cuts an attempt off.
        fallback: What to answer when all of this failed: a function, which gets the call's arguments, and the exception
            if it has a parameter named `exc`; or a value. In settings, the dotted path of either.
        bulkhead: A `Bulkhead`; in settings, a dict of its `max_concurrent` and `max_wait`.

    Raises:
        TypeError: A field is of the wrong type.
        ValueError: A field is out of range.

    Example:
        >>> policy = Policy("doc-openai", retry=RetryConfig(max_attempts=2, delay=0), timeout=20, fallback="sorry")
        >>> policy.call(str.upper, "hello")
        'HELLO'
        >>> policy.call(int, "x")
        'sorry'
    """

    _parts: Parts | None
    _call: Invoke
    _acall: AsyncInvoke

    def __init__(
        self,
        name: str,
        *,
        retry: RetryConfig | Mapping[str, Any] | bool | None = None,
        circuit: CircuitBreakerConfig | Mapping[str, Any] | bool | None = None,
        timeout: float | TimeoutConfig | Literal[False] | None = None,
        deadline: float | Literal[False] | None = None,
        fallback: Any = None,
        bulkhead: Bulkhead | Mapping[str, Any] | Literal[False] | None = None,
    ) -> None:
        if not isinstance(cast("object", name), str) or not name:
            raise ValueError(f"name must be a text of one character or more, not {name!r}. Name what is called.")
        self.name = name
        given = {
            "retry": retry,
            "circuit": circuit,
            "timeout": timeout,
            "deadline": deadline,
            "fallback": fallback,
            "bulkhead": bulkhead,
        }
        self._removed = {field for field, value in given.items() if value is False and field != "fallback"}
        self._given = {field: value for field, value in given.items() if value is not None and field not in self._removed}
        parts = Parts.of(name, self._given)  # refuses wrong fields where they are written
        self._given.update({field: part for field in ("circuit", "bulkhead") if (part := getattr(parts, field)) is not None})
        self._forget()
        _policies.add(self)

    def __repr__(self) -> str:
        return f"<Policy {self.name!r}>"

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or a coroutine function; `resilient(policy)` does the same."""
        require_plain_callable(func, "resilient")
        if is_async(func):
            coroutine = cast("Callable[P, Awaitable[Any]]", func)

            @functools.wraps(func)
            async def aprotected(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self._acall(coroutine, args, kwargs)

            return cast("Callable[P, R]", aprotected)
        self._require_plain_fallback(func)

        @functools.wraps(func)
        def protected(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._call(func, args, kwargs)  # type: ignore[no-any-return]  # the layers carry any function

        return protected

    def call(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a plain function under the policy.

        Raises:
            Exception: What `func` raised last, when nothing helped.
            CircuitOpenError: The circuit refused the call.
            BulkheadFullError: Too many calls are running.
            OperationTimeoutError: The last attempt took too long.

        Example:
            >>> Policy("doc-call", timeout=5).call(divmod, 7, 2)
            (3, 1)
        """
        self._require_plain_fallback(func)
        return self._call(func, args, kwargs)  # type: ignore[no-any-return]  # the layers carry any function

    async def acall(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call and await a coroutine function under the policy; raises what `call` raises.

        Example:
            >>> import asyncio
            >>> asyncio.run(Policy("doc-acall", timeout=5).acall(asyncio.sleep, 0, "slept"))
            'slept'
        """
        return await self._acall(func, args, kwargs)  # type: ignore[no-any-return]  # the layers carry any function

    def describe(self) -> dict[str, Any]:
        """Return what the policy consists of as plain JSON types; functions by their names, values by their types.

        Example:
            >>> Policy("doc-describe", timeout=5).describe()["timeout"]
            5.0
        """
        return {"name": self.name, **self._assembled().describe()}

    def _assembled(self) -> Parts:
        """Return the parts in force, put together from the settings and what was given."""
        if self._parts is None:
            configured = dict(conf.current().policies.get(self.name, {}))
            if not configured and not self._given and conf.current().enabled:
                known = ", ".join(sorted(conf.current().policies)) or "none"
                raise ImproperlyConfigured(
                    f"Policy {self.name!r} must have fields or stand in RESILIENCE['POLICIES'], which has: {known}. Check the spelling."
                )
            kept = {field: value for field, value in configured.items() if field not in self._removed}
            parts = Parts.of(self.name, {**fields_from_settings(self.name, kept), **self._given})
            self._call, self._acall = disturbed(self.name, *put_together(self.name, parts))
            self._parts = parts
        return self._parts

    def _assemble_and_call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._assembled()
        return self._call(func, args, kwargs)

    async def _assemble_and_acall(self, func: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
        self._assembled()
        return await self._acall(func, args, kwargs)

    def _forget(self) -> None:
        """Read the settings again before the next call."""
        self._parts = None
        self._call = self._assemble_and_call
        self._acall = self._assemble_and_acall

    def _require_plain_fallback(self, func: object) -> None:
        if "fallback" in self._given:
            Substitute(self._given["fallback"]).require_plain_target(func)


def resilient(policy: str | Policy | None = None, **given: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Protect a function or a coroutine function with a policy.

    Args:
        policy: A `Policy`; or the name of one, from `RESILIENCE["POLICIES"]` or with fields; or nothing but fields, for a
            policy named after the function.
        **given: Fields of `Policy`.

    Raises:
        TypeError: Neither a policy nor fields are given, or a field is unknown or of the wrong type.
        ValueError: A field is out of range.

    Example:
        >>> @resilient("doc-rates", timeout=5, fallback={})
        ... def fetch_rates():
        ...     return {"EUR": 1.0}
        >>> fetch_rates()
        {'EUR': 1.0}
    """
    if isinstance(policy, Policy):
        if given:
            raise TypeError(
                f"resilient must be given a Policy or fields, not both: {', '.join(sorted(given))}. Put them into the Policy."
            )
        return policy
    if isinstance(policy, str):
        return Policy(policy, **given)
    if cast("object", policy) is not None or not given:
        raise TypeError(f"resilient must be given a policy's name, a Policy or fields, not {policy!r}. Write @resilient('name').")

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        require_plain_callable(func, "resilient")
        return Policy(f"{getattr(func, '__module__', '')}.{name_of(func)}", **given)(func)

    return decorate


_policies: WeakSet[Policy] = WeakSet()


def _read_settings_again() -> None:
    for policy in list(_policies):
        policy._forget()  # noqa: SLF001  # one module


conf.on_change(_read_settings_again)


@register("resilience")
def check_policies(**kwargs: Any) -> list[CheckMessage]:
    """Judge RESILIENCE["POLICIES"] by putting each policy together (E005)."""
    raw = getattr(settings, "RESILIENCE", {})
    if conf.problems(raw):
        return []
    found: list[CheckMessage] = []
    for name, fields in raw.get("POLICIES", {}).items():
        try:
            fields_from_settings(name, fields)
        except (ImproperlyConfigured, TypeError, ValueError) as error:
            found.append(Error(str(error), hint="The fields are those of Policy; see docs/policies.md.", id="resilience.E005"))
    return found


def __getattr__(name: str) -> Any:
    # Defined on top of policies; named here because it is where they are looked for.
    if name in {"ErrorRecoveryManager", "ResilientProvider"}:
        from resilience import recovery

        return getattr(recovery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
