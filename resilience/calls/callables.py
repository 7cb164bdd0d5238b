"""What a decorator has to know about the function it is given: its kind and its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_async", "name_of", "require_plain_callable"]


def is_async(func: object) -> bool:
    """Tell whether calling `func` gives a coroutine, looking through partials and at `__call__` of objects."""
    while isinstance(func, functools.partial):
        func = func.func
    if inspect.iscoroutinefunction(func):
        return True
    return not inspect.isroutine(func) and inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004  # its kind matters


def name_of(func: object) -> str:
    """Return the name to show for `func` in messages and signals; never its arguments."""
    while isinstance(func, functools.partial):
        func = func.func
    return str(getattr(func, "__qualname__", type(func).__qualname__)).rpartition("<locals>.")[2]


def require_plain_callable(func: Callable[..., Any], decorator: str) -> None:
    """Refuse what cannot be called, and generator functions, whose body runs after the call has returned.

    Raises:
        TypeError: `func` is not a function, or is a generator function or a staticmethod.
    """
    if not callable(func):
        raise TypeError(
            f"{decorator} must decorate a function, not {func!r}. Put it right above a def or an async def, and give options by name."
        )
    if isinstance(func, staticmethod):
        # What is made of it would be called with the instance, and whether it is a coroutine function does not show.
        raise TypeError(f"{decorator} must stand below @staticmethod, not above. Swap the two lines.")
    inner: Any = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"{decorator} must decorate a function that returns its result, not the generator {name_of(func)!r}. "
            "Decorate what the generator calls for each item."
        )
