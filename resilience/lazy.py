"""Names of a package that are loaded when they are first used.

Source:
    PEP 562, "Module `__getattr__` and `__dir__`".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

__all__ = ["extra_needed", "lazy_names"]

#: Libraries that are no dependency of the app, and the extra that brings each.
_EXTRAS = {"celery": "celery", "kombu": "celery"}


@contextmanager
def extra_needed(wanted: str) -> Iterator[None]:
    """Name the extra to install, where an import in the block misses its library.

    Args:
        wanted: What was asked for, as "resilience.tasks".

    Raises:
        ModuleNotFoundError: The library is not installed; its `name` is the library's.

    Example:
        >>> with extra_needed("resilience.tasks"):
        ...     import celery
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        message = f"{wanted} needs {library}. Install django-resilience[{_EXTRAS[library]}]."
        raise ModuleNotFoundError(message, name=library) from error


def lazy_names(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that loads each of its names from the module that defines it.

    Args:
        package: The package's `__name__`.
        names: Modules, and the names that each defines.

    The function raises `ModuleNotFoundError` with the extra to install where a name needs one, and `AttributeError` for
    a name that is not there.

    Example:
        >>> load = lazy_names("resilience.testing", {"resilience.testing.clock": ("FakeClock",)})
        >>> load("FakeClock").__name__
        'FakeClock'
    """
    modules = {name: module for module, defined in names.items() for name in defined}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with extra_needed(f"{package}.{name}"):
            module = import_module(modules[name])
        value = getattr(module, name)
        # The next look-up finds it without coming here.
        setattr(sys.modules[package], name, value)
        return value

    return load
