"""Retry a call: the decorators, for plain functions and coroutine functions alike.

The shells here only act; `decisions` decides, `attempts` keeps count and tells the world. While a call succeeds, the
wrapper costs two reads and a try: everything else waits until something has failed.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, cast, overload
from weakref import WeakSet

from resilience import clock, conf
from resilience.calls.attempts import Retrying
from resilience.calls.backoff import RetryStrategy
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.deadlines import deadline_scope
from resilience.calls.nesting import gave_up, mark_gave_up, marks
from resilience.calls.retry_config import RetryConfig, RetryFields, config_in_force
from resilience.calls.retry_contexts import RetryContext
from resilience.calls.timeouts import TimeoutConfig, acall_with_timeout, call_with_timeout

__all__ = ["RetryConfig", "RetryContext", "RetryStrategy", "async_retry", "gave_up", "mark_gave_up", "retry"]

P = ParamSpec("P")
R = TypeVar("R")


class _Decorator(Protocol):
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...


class _AsyncDecorator(Protocol):
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def retry(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def retry(config: RetryConfig | None = None, /, **given: Unpack[RetryFields]) -> _Decorator: ...
def retry(config: Any = None, /, **given: Any) -> Any:
    """Call a function again when it fails for a reason that may pass.

    Works on functions, methods, coroutine functions, partials and callable objects; what is decorated keeps its
    signature. The exception that comes out at the end is the function's own, with a note that tells how often
    and how long it was tried and why no more.

    Args:
        config: A `RetryConfig` to follow as it is. Without one, `RESILIENCE["RETRY"]` is followed, read when used.
        given: Fields of `RetryConfig` that replace those of `config` or of the settings.

    Returns:
        The decorated function, or a decorator when called with options or without arguments.

    Raises:
        TypeError: What is decorated is no function or a generator function, or an option is of the wrong type.
        ValueError: An option is out of range.

    Example:
        >>> answers = iter([TimeoutError(), "pong"])
        >>> @retry(delay=0)
        ... def ping():
        ...     answer = next(answers)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> ping()
        'pong'
    """
    return _decorator("retry", config, given, force_async=False)


@overload
def async_retry(func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def async_retry(config: RetryConfig | None = None, /, **given: Unpack[RetryFields]) -> _AsyncDecorator: ...
def async_retry(config: Any = None, /, **given: Any) -> Any:
    """Retry a function that returns an awaitable, also where that cannot be seen from outside.

    `retry` finds `async def` by itself; this is for the rest: a plain function that hands a coroutine on, a
    method of a client that is built at run time.

    Args:
        config: As for `retry`.
        given: As for `retry`.

    Returns:
        The decorated function, a coroutine function.

    Raises:
        TypeError: As for `retry`.
        ValueError: As for `retry`.

    Example:
        >>> import asyncio
        >>> ping = async_retry(max_attempts=2)(lambda: asyncio.sleep(0, "pong"))
        >>> asyncio.run(ping())
        'pong'
    """
    return _decorator("async_retry", config, given, force_async=True)


def _decorator(decorator: str, config: Any, options: dict[str, Any], *, force_async: bool) -> Any:
    func = None
    if config is not None and not isinstance(config, RetryConfig):
        func, config = config, None
        require_plain_callable(func, decorator)
    # Also without a config: what is wrong with the fields shows here and not at the first failure.
    RetryConfig(**options)
    given = cast("RetryFields", options)
    if config is not None:
        config = replace(config, **given)

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        require_plain_callable(func, decorator)
        engine = _Engine(func, config, given)
        return _async_shell(engine) if force_async or is_async(func) else _sync_shell(engine)

    return decorate if func is None else decorate(func)


class _Engine:
    """What all calls of one decorated function share: the function, and where its rules come from."""

    __slots__ = ("__weakref__", "_config", "_given", "_resolved", "_settings", "func", "name", "watching")

    def __init__(self, func: Callable[..., Any], config: RetryConfig | None, given: RetryFields) -> None:
        self.func = func
        self.name = name_of(func)
        self._config = config
        self._given = given
        self._settings: object = None
        self._resolved: RetryConfig | None = None
        #: Whether calls that do not fail need looking after too; True until the settings have been read.
        self.watching = True
        _engines.add(self)

    def config(self) -> RetryConfig | None:
        """Return the rules in force, or None when retrying is switched off."""
        settings = conf.current()
        if settings is not self._settings:
            self._resolved = config_in_force(self._config, self._given)
            self._settings = settings
            self.watching = self._resolved is not None and self._resolved.watches_calls
        return self._resolved

    def begin(self, started: float, since: int) -> Retrying | None:
        """Start to look after a call; None when retrying is switched off."""
        config = self.config()
        return None if config is None else Retrying(config, self.func, self.name, started, since)

    def recover(self, exc: Exception, started: float, since: int) -> Retrying | None:
        """Start to look after a call whose first attempt has failed; None to let the exception go."""
        retrying = self.begin(started, since)
        if retrying is None:
            return None
        retrying.attempt = 1
        return retrying if retrying.failed(exc) else None

    def watch(self) -> tuple[Retrying | None, AbstractContextManager[object]]:
        """Start to look after a call before its first attempt, within its deadline."""
        retrying = self.begin(clock.monotonic(), marks.count)
        config = self._resolved
        if config is None or retrying is None:
            return None, _NO_DEADLINE
        if config.budget is not None:
            config.budget.deposit()
        return retrying, _NO_DEADLINE if config.deadline is None else deadline_scope(config.deadline)

    def limited(self, call_within: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, under its attempt timeout if it has one."""
        config = self._resolved
        if config is None or config.attempt_timeout is None:
            return self.func
        return functools.partial(call_within, TimeoutConfig(config.attempt_timeout, operation=self.name), self.func)


_engines: WeakSet[_Engine] = WeakSet()
_NO_DEADLINE: AbstractContextManager[object] = nullcontext()


def _read_settings_again() -> None:
    for engine in list(_engines):
        engine.watching = True


conf.on_change(_read_settings_again)


def _sync_shell(engine: _Engine) -> Callable[..., Any]:
    func = engine.func

    @functools.wraps(func)
    def retried(*args: Any, **kwargs: Any) -> Any:
        if engine.watching:
            return _watched(engine, args, kwargs)
        started, since = clock.monotonic(), marks.count
        try:
            return func(*args, **kwargs)
        except Exception as exc:
            if (retrying := engine.recover(exc, started, since)) is None:
                raise
        return _pursue(retrying, func, args, kwargs)

    return retried


def _watched(engine: _Engine, args: Any, kwargs: Any) -> Any:
    retrying, scope = engine.watch()
    if retrying is None:
        return engine.func(*args, **kwargs)
    with scope:
        return _pursue(retrying, engine.limited(call_with_timeout), args, kwargs)


def _pursue(retrying: Retrying, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    while retrying.pending:
        if retrying.delay > 0:
            clock.sleep(retrying.delay)
        if retrying.is_late():
            break
        with retrying:
            retrying.accept(func(*args, **kwargs))
    return retrying.result


def _async_shell(engine: _Engine) -> Callable[..., Any]:
    func = engine.func

    @functools.wraps(func)
    async def retried(*args: Any, **kwargs: Any) -> Any:
        if engine.watching:
            return await _awatched(engine, args, kwargs)
        started, since = clock.monotonic(), marks.count
        try:
            return await func(*args, **kwargs)
        except Exception as exc:
            if (retrying := engine.recover(exc, started, since)) is None:
                raise
        return await _apursue(retrying, func, args, kwargs)

    return retried


async def _awatched(engine: _Engine, args: Any, kwargs: Any) -> Any:
    retrying, scope = engine.watch()
    if retrying is None:
        return await engine.func(*args, **kwargs)
    with scope:
        return await _apursue(retrying, engine.limited(acall_with_timeout), args, kwargs)


async def _apursue(retrying: Retrying, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    while retrying.pending:
        if retrying.attempt:
            await clock.async_sleep(retrying.delay)
        if retrying.is_late():
            break
        retrying.attempt += 1
        try:
            result = await func(*args, **kwargs)
        except Exception as exc:
            if not await retrying.afailed(exc):
                raise
        else:
            if not (retrying.judges_results and await retrying.arejects(result)):
                retrying.accept(result, judged=True)
    return retrying.result
