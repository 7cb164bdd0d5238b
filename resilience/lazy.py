"""Names of a package that are loaded when they are first used.

Source:
    PEP 562, "Module `__getattr__` and `__dir__`".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]

#: Libraries that are no dependency of the app, and the extra that brings each.
_EXTRAS = {"celery": "celery", "kombu": "celery"}


def lazy_names(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that loads each of its names from the module that defines it.

    Args:
        package: The package's `__name__`.
        names: Modules, and the names that each defines.

    The function raises `ImportError` with the extra to install where a name needs one, and `AttributeError` for
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
        try:
            module = import_module(modules[name])
        except ModuleNotFoundError as error:
            if error.name in _EXTRAS:
                extra = f"django-resilience[{_EXTRAS[error.name]}]"
                raise ImportError(f"{package}.{name} needs {error.name}. Install {extra}.") from error
            raise
        value = getattr(module, name)
        # The next look-up finds it without coming here.
        setattr(sys.modules[package], name, value)
        return value

    return load
