"""Circuit breakers for functions, coroutines and blocks.

The shells here call the function and hand the outcome on; what it means is decided in `circuit.py`. A call through a
closed circuit is one comparison and one counter around the function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from asgiref.sync import sync_to_async

from resilience import clock, conf, signals
from resilience.calls.callables import is_async, require_plain_callable
from resilience.calls.fallbacks import Substitute
from resilience.circuits import config as configs
from resilience.circuits import registry, shells
from resilience.circuits.blocks import Blocks
from resilience.circuits.circuit import Circuit, Undecided
from resilience.circuits.config import CircuitBreakerConfig, CircuitState
from resilience.circuits.judging import Outcome, judge_error, judge_result
from resilience.circuits.memory import GeneratedName
from resilience.circuits.operations import Operations
from resilience.circuits.probes import Permit
from resilience.exceptions import CircuitOpenError

__all__ = ["CircuitBreaker"]

P = ParamSpec("P")
R = TypeVar("R")


class CircuitBreaker(Operations, Blocks):
    """Refuse calls to a service that is failing, for the whole fleet, until it answers again.

    Use it as a decorator of a `def` or an `async def`, as `with` or `async with`, or through `call` and `acall`.
    Breakers of one name share one circuit, in this process and with all others on the same cache.

    Args:
        name: The circuit's name, any text. A decorator without one takes the function's module and name; a breaker
            used otherwise without one has a circuit of its own.
        config: The whole configuration. None takes it from settings.
        declared_in: Where the circuit is declared, for people; a decorator finds out itself.
        defaults: Fields of `CircuitBreakerConfig` for what neither the settings nor `fields` say.
        **fields: Fields of `CircuitBreakerConfig`, which win over `config` and settings.

    Raises:
        TypeError: A field is unknown.
        ValueError: A field is out of range.

    Example:
        >>> payments = CircuitBreaker("doc-payments", failure_threshold=3)
        >>> @payments
        ... def charge(amount):
        ...     return amount
        >>> charge(5), str(payments.state)
        (5, 'closed')
    """

    def __init__(
        self,
        name: str | None = None,
        config: CircuitBreakerConfig | None = None,
        *,
        declared_in: str = "",
        defaults: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        given: object = name
        if given is not None and not (isinstance(given, str) and given):
            raise ValueError(f"name must be a text of one character or more, not {name!r}. Leave it out to use the function's.")
        if config is not None and not isinstance(config, CircuitBreakerConfig):
            raise TypeError(f"config must be a CircuitBreakerConfig, not {config!r}. Give single values by keyword.")
        # Refuses wrong fields where they are written, without reading settings.
        CircuitBreakerConfig(**_with_company(fields))
        self._name = name
        self._given = config
        self._fields = fields
        self._defaults = defaults
        self._declared_in = declared_in
        self._circuit: Circuit | shells.Unused = shells.UNUSED
        self._settings: object = None
        self._is_plain = False
        self._is_enabled = True
        self._fallback: Substitute | None = None
        self.config = config or CircuitBreakerConfig(**_with_company(fields))
        if name is not None:
            registry.declare(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"

    @property
    def name(self) -> str:
        """The circuit's name."""
        if self._name is None:
            self._fields = {"scope": "process", **self._fields}
            self._name = GeneratedName.beginning("anonymous")
        return self._name

    @property
    def circuit(self) -> Circuit:
        """This process's part of the circuit, under the settings in force now."""
        self._prepare()
        assert isinstance(self._circuit, Circuit)
        return self._circuit

    @property
    def state(self) -> CircuitState:
        """The state as the fleet has it now; "half_open" as soon as the open time is over."""
        return self.circuit.state

    # Decorating

    @overload
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...
    def __call__(self, func: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `func` guarded by this circuit; an `async def` stays one.

        Raises:
            TypeError: `func` cannot be called, or is a generator function, whose work happens after the call.
        """
        return self._decorate(func, as_async=is_async(func))

    def _decorate(self, func: Callable[..., Any], *, as_async: bool) -> Callable[..., Any]:
        require_plain_callable(func, "circuit_breaker")
        place = f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', type(func).__qualname__)}"
        if self._name is None:
            self._name = place
            registry.declare(self)
        self._declared_in = self._declared_in or place
        wrapper = shells.guard_async(self, func) if as_async else shells.guard(self, func)
        wrapper.breaker = self  # type: ignore[attr-defined]  # functions take attributes
        return wrapper

    # Calling

    def call(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `func` through the circuit.

        Raises:
            CircuitOpenError: The circuit refused, and there is no fallback.

        Example:
            >>> CircuitBreaker("doc-call").call(max, 1, 2)
            2
        """
        admitted = self._admit()
        if admitted is None:
            return func(*args, **kwargs)
        if isinstance(admitted, CircuitOpenError):
            return self._refuse(func, admitted, args, kwargs)  # type: ignore[no-any-return]  # what the fallback gives
        started = clock.monotonic()
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._settle(admitted, started, judge_error(self.config, error), error)
            raise
        self._settle(admitted, started, judge_result(self.config, result), None)
        return result

    async def acall(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await `func` through the circuit; the cache is asked in a thread, never on the event loop.

        Raises:
            CircuitOpenError: The circuit refused, and there is no fallback.

        Example:
            >>> import asyncio
            >>> async def answer():
            ...     return 42
            >>> asyncio.run(CircuitBreaker("doc-acall").acall(answer))
            42
        """
        admitted = await self._aadmit()
        if admitted is None:
            return await func(*args, **kwargs)
        if isinstance(admitted, CircuitOpenError):
            return await self._arefuse(func, admitted, args, kwargs)  # type: ignore[no-any-return]  # what the fallback gives
        started = clock.monotonic()
        try:
            result = await func(*args, **kwargs)
        except BaseException as error:
            await self._asettle(admitted, started, judge_error(self.config, error), error)
            raise
        await self._asettle(admitted, started, judge_result(self.config, result), None)
        return result

    # Between the shells and the circuit

    def _prepare(self) -> None:
        """Read the settings if they changed since the last time."""
        if (settings := conf.current()) is self._settings:
            return
        name = self.name
        self._is_enabled = configs.is_enabled(name)
        self.config = configs.resolve(name, self._given, self._fields, self._defaults)
        self._fallback = Substitute(self.config.fallback) if self.config.fallback is not None else None
        explicit = self._given is not None or bool(self._fields)
        self._circuit = registry.find_circuit(name, self.config, type(self), self._declared_in, explicit=explicit)
        self._is_plain = not self.config.is_timed and self.config.failure_on_result is None
        self._settings = settings

    def _admit(self) -> Permit | CircuitOpenError | None:
        self._prepare()
        return self.circuit.admit() if self._is_enabled else None

    async def _aadmit(self) -> Permit | CircuitOpenError | None:
        circuit = self.circuit
        if not self._is_enabled:
            return None
        decided = circuit.admit_at_once()
        if not isinstance(decided, Undecided):
            return decided
        is_abandoned = False

        def admit() -> Permit | CircuitOpenError | None:
            admitted = self._admit()
            if is_abandoned and isinstance(admitted, Permit):
                circuit.settle(admitted, Outcome.IGNORED, None)
            return admitted

        try:
            return await sync_to_async(admit, thread_sensitive=False)()
        except BaseException:
            is_abandoned = True
            raise

    def _is_slow(self, outcome: str, started: float) -> bool:
        limit = self.config.slow_call_duration
        return limit is not None and outcome != Outcome.IGNORED and clock.monotonic() - started >= limit

    def _settle(self, permit: Permit, started: float, outcome: str, error: BaseException | None) -> None:
        duration, is_slow = clock.monotonic() - started, self._is_slow(outcome, started)
        assert isinstance(self._circuit, Circuit)
        self._circuit.settle(permit, outcome, error, is_slow=is_slow)
        if signals.circuit_called.receivers:
            signals.emit(signals.circuit_called, type(self), name=self.name, outcome=outcome, duration=duration)

    async def _asettle(self, permit: Permit, started: float, outcome: str, error: BaseException | None) -> None:
        assert isinstance(self._circuit, Circuit)
        if self._circuit.settles_at_once(permit, outcome, is_slow=self._is_slow(outcome, started)):
            self._settle(permit, started, outcome, error)
        elif not isinstance(error, GeneratorExit):  # a coroutine that is being closed may not await; its lease runs out
            await sync_to_async(self._settle, thread_sensitive=False)(permit, started, outcome, error)

    def _refuse(self, func: object, error: CircuitOpenError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._fallback is None:
            raise error
        return self._fallback.answer(func, error, args, kwargs)

    async def _arefuse(self, func: object, error: CircuitOpenError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._fallback is None:
            raise error
        return await self._fallback.aanswer(func, error, args, kwargs)


def _with_company(fields: dict[str, Any]) -> dict[str, Any]:
    """Complete a field that is only valid with another, which settings may supply."""
    if fields.get("slow_call_rate_threshold") is not None and "slow_call_duration" not in fields:
        return {**fields, "slow_call_duration": 1.0}
    return fields
