"""Retry a block of code where a function of its own would be too much."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

from resilience import clock
from resilience.calls.attempts import Retrying
from resilience.calls.deadlines import deadline_scope
from resilience.calls.nesting import marks
from resilience.calls.retry_config import RetryConfig, RetryFields, config_in_force, require_none

__all__ = ["Attempt", "RetryContext"]

_NEEDS_FUNCTION = ("retry_on_result", "attempt_timeout")


class Attempt:
    """One attempt of a `RetryContext`: enter it around the work.

    Attributes:
        number: 1 for the first attempt.
    """

    __slots__ = ("_retrying", "_scope", "number", "used")

    def __init__(self, number: int, retrying: Retrying | None, seconds_left: float | None) -> None:
        self.number = number
        self.used = False
        self._retrying = retrying
        self._scope = nullcontext() if seconds_left is None else deadline_scope(max(0.0, seconds_left))

    def __enter__(self) -> Self:
        self.used = True
        if self._retrying is not None:
            self._retrying.__enter__()
        self._scope.__enter__()
        return self

    def __exit__(self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> bool:
        try:
            if self._retrying is None:
                return False
            if exc is None:
                self._retrying.accept(None)
            return self._retrying.__exit__(cls, exc, traceback)
        finally:
            self._scope.__exit__(cls, exc, traceback)


class RetryContext:
    """Retry a block: `for attempt in RetryContext(...): with attempt: ...`, or `async for` in a coroutine.

    The loop ends after the first attempt whose block raises nothing. It can be used many times and by many threads:
    each loop counts for itself.

    Args:
        config: A `RetryConfig` to follow; without one, `RESILIENCE["RETRY"]` is followed, read when the loop begins.
        name: Name in signals and logs.
        given: Fields of `RetryConfig` that replace those of `config` or of the settings.

    Raises:
        TypeError: An option is of the wrong type, or one that a block cannot have: there is no result to look at with
            `retry_on_result`, and nothing that `attempt_timeout` could cut off.
        ValueError: An option is out of range.

    Example:
        >>> for attempt in RetryContext(max_attempts=3, delay=0):
        ...     with attempt:
        ...         if attempt.number < 3:
        ...             raise TimeoutError
        >>> attempt.number
        3
    """

    def __init__(self, config: RetryConfig | None = None, /, *, name: str = "RetryContext", **given: Unpack[RetryFields]) -> None:
        if config is not None and not isinstance(config, RetryConfig):
            raise TypeError(f"config must be a RetryConfig or None, not {config!r}. Give single fields as keyword arguments.")
        checked = RetryConfig(**given)
        self._config = config if config is None else replace(config, **given)
        self._given = given
        self._name = name
        checked = checked if self._config is None else self._config
        require_none(checked, _NEEDS_FUNCTION, "a RetryContext", "Decorate a function with retry to use it.")

    def __iter__(self) -> Iterator[Attempt]:
        config = config_in_force(self._config, self._given)
        if config is None:
            yield Attempt(1, None, None)
            return
        retrying, due = self._begin(config)
        while retrying.pending:
            if retrying.delay > 0:
                clock.sleep(retrying.delay)
            yield from self._attempt(retrying, due)

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        config = config_in_force(self._config, self._given)
        if config is None:
            yield Attempt(1, None, None)
            return
        retrying, due = self._begin(config)
        while retrying.pending:
            if retrying.attempt:
                await clock.async_sleep(retrying.delay)
            for attempt in self._attempt(retrying, due):
                yield attempt

    def _attempt(self, retrying: Retrying, due: float | None) -> Iterator[Attempt]:
        left = None if due is None else due - clock.monotonic()
        with nullcontext() if left is None else deadline_scope(max(0.0, left)):
            if retrying.is_late():
                return
        attempt = Attempt(retrying.attempt + 1, retrying, left)
        yield attempt
        if not attempt.used:
            raise RuntimeError("A RetryContext's attempt must be entered. Write `with attempt:` around the work in the loop.")

    def _begin(self, config: RetryConfig) -> tuple[Retrying, float | None]:
        now = clock.monotonic()
        if config.budget is not None:
            config.budget.deposit()
        return Retrying(config, self, self._name, now, marks.count), None if config.deadline is None else now + config.deadline
