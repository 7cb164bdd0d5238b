"""What to answer when a call fails: another function, another source, or a value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from resilience import conf, signals
from resilience.calls.callables import is_async, name_of, require_plain_callable
from resilience.calls.classify import classify

__all__ = ["Substitute", "fallback", "is_control_flow", "safe_execute"]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")


def fallback(
    target: Any, exceptions: type[BaseException] | tuple[type[BaseException], ...] = (Exception,)
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Answer with `target` when a call of the decorated function fails.

    Decorations nest into chains: the one nearest to the function is asked first, and the next one handles what
    it raises. When a target fails too, its error is raised, with the first as its cause. Control flow
    (cancellation, shutdown, Celery's Retry and Ignore) is never answered by a fallback, whatever `exceptions` says.

    Args:
        target: A function, which gets the call's arguments, and the exception if it has a parameter named
            `exc`; or a coroutine function, for an `async def` only; or any other object, returned as it is.
        exceptions: The exceptions to answer for.

    Raises:
        TypeError: `exceptions` holds something else than exception classes, or the target is a coroutine
            function and the decorated function is not.
        ValueError: `exceptions` is empty.

    Example:
        >>> def from_cache(city, exc):
        ...     return f"{city}: 21 degrees yesterday ({type(exc).__name__})"
        >>> @fallback(from_cache, exceptions=(ConnectionError,))
        ... def temperature(city):
        ...     raise ConnectionError("no route to host")
        >>> temperature("Rome")
        'Rome: 21 degrees yesterday (ConnectionError)'
    """
    substitute = Substitute(target, exceptions)

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        require_plain_callable(func, "fallback")
        if is_async(func):
            return cast("Callable[P, R]", _async_shell(substitute, cast("Callable[P, Awaitable[Any]]", func)))
        substitute.require_plain_target(func)

        @functools.wraps(func)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return func(*args, **kwargs)
            except substitute.exceptions as error:
                if not substitute.answers_for(error):
                    raise
                return cast("R", substitute.answer(func, error, args, kwargs))

        return guarded

    return decorate


def safe_execute(
    func: Callable[..., R],
    *args: Any,
    default: D | None = None,
    exceptions: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
    **kwargs: Any,
) -> R | D | None:
    """Call `func` once and return `default` if it fails.

    Control flow (cancellation, shutdown, Celery's Retry and Ignore) is raised, never answered.

    Args:
        func: What to call. If it gives an awaitable, so does this: `await safe_execute(fetch, url, default="")`.
        *args: Positional arguments for `func`.
        default: What to return on failure.
        exceptions: The exceptions to answer for.
        **kwargs: Keyword arguments for `func`.

    Raises:
        TypeError: `func` cannot be called, or `exceptions` holds something else than exception classes.
        ValueError: `exceptions` is empty.

    Example:
        >>> safe_execute(int, "12", default=0), safe_execute(int, "twelve", default=0)
        (12, 0)
    """
    require_plain_callable(func, "safe_execute")
    substitute = Substitute(_Constant(default), exceptions)
    try:
        result = func(*args, **kwargs)
    except substitute.exceptions as error:
        if not substitute.answers_for(error):
            raise
        return cast("D", substitute.answer(func, error, args, kwargs))
    if inspect.isawaitable(result):
        return cast("R", _awaited(substitute, func, result, args, kwargs))
    return result


class Substitute:
    """The answer to failed calls: which failures it answers for, and what it answers.

    Args:
        target: A function, a coroutine function, or a value; see `fallback`.
        exceptions: The exceptions it answers for.
    """

    __slots__ = ("_is_function", "_takes_error", "exceptions", "target")

    def __init__(self, target: Any, exceptions: type[BaseException] | tuple[type[BaseException], ...] = (Exception,)) -> None:
        self.target = target
        self.exceptions = _checked_exceptions(exceptions)
        self._is_function = callable(target)
        self._takes_error = self._is_function and _has_parameter(target, "exc")

    def require_plain_target(self, func: object) -> None:
        """Refuse a coroutine function as the target of a plain function, which could not wait for it."""
        if is_async(self.target):
            raise TypeError(
                f"fallback must be a plain function or a value for the plain function {name_of(func)!r}, not the coroutine "
                f"function {name_of(self.target)!r}. Make {name_of(func)} an async def, or give a plain fallback."
            )

    def answers_for(self, error: BaseException) -> bool:
        """Tell whether `error` gets an answer: not while switched off, and never for control flow."""
        return conf.current().enabled and not is_control_flow(error)

    def answer(self, func: object, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the answer to a call of `func` that failed with `error`. Call it where `error` is being handled."""
        try:
            result = self._ask(error, args, kwargs)
        except Exception as second:
            self._tell(func, error, failed=True)
            _chain(second, error)
            raise
        self._tell(func, error, failed=False)
        return result

    async def aanswer(self, func: object, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the answer like `answer`, waiting for it where the target gives an awaitable."""
        try:
            result = self._ask(error, args, kwargs)
            if self._is_function and inspect.isawaitable(result):
                result = await result
        except Exception as second:
            self._tell(func, error, failed=True)
            _chain(second, error)
            raise
        self._tell(func, error, failed=False)
        return result

    def _ask(self, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_function:
            return self.target
        if self._takes_error:
            return self.target(*args, **kwargs, exc=error)
        return self.target(*args, **kwargs)

    def _tell(self, func: object, error: BaseException, *, failed: bool) -> None:
        signals.emit(signals.fallback_used, func, name=name_of(func), exception=error, failed=failed)


def is_control_flow(error: BaseException) -> bool:
    """Tell whether `error` steers the program rather than reports a failure.

    Example:
        >>> is_control_flow(KeyboardInterrupt()), is_control_flow(KeyError())
        (True, False)
    """
    return classify(error).is_control_flow


class _Constant(Generic[D]):
    """A target that gives the same value whatever it is called with, also where that value is a function."""

    __slots__ = ("_value",)

    def __init__(self, value: D) -> None:
        self._value = value

    def __call__(self, *args: Any, **kwargs: Any) -> D:
        return self._value


def _async_shell(substitute: Substitute, func: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
    @functools.wraps(func)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return await func(*args, **kwargs)
        except substitute.exceptions as error:
            if not substitute.answers_for(error):
                raise
            return await substitute.aanswer(func, error, args, kwargs)

    return guarded


async def _awaited(substitute: Substitute, func: object, result: Awaitable[Any], args: Any, kwargs: Any) -> Any:
    try:
        return await result
    except substitute.exceptions as error:
        if not substitute.answers_for(error):
            raise
        return substitute.answer(func, error, args, kwargs)


def _chain(second: BaseException, first: BaseException) -> None:
    if second.__cause__ is None and not any(second is cause for cause in _causes_of(first)):
        # Past a __setattr__ of its own: a frozen dataclass has one that refuses.
        BaseException.__setattr__(second, "__cause__", first)


def _causes_of(error: BaseException | None) -> list[BaseException]:
    """Return `error` and what it was raised from, the nearest first, each once."""
    found: dict[int, BaseException] = {}
    while error is not None and id(error) not in found:
        found[id(error)] = error
        error = error.__cause__
    return list(found.values())


def _has_parameter(func: Callable[..., Any], name: str) -> bool:
    try:
        parameter = inspect.signature(func).parameters.get(name)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return False
    return parameter is not None and parameter.kind in {parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD}


def _checked_exceptions(value: object) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"exceptions must be exception classes, not {item!r}. Give a class or a tuple of classes.")
    if not classes:
        raise ValueError("exceptions must be at least one exception class, not (). Leave it out to answer for every Exception.")
    return classes
