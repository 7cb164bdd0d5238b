from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from enum import EnumType
from importlib import import_module
from pathlib import Path

import pytest

import resilience

INIT = Path(resilience.__file__)
MODULES = {name: module for module, names in resilience._NAMES.items() for name in names}


def test_all__is_sorted_and_complete() -> None:
    """`__all__` is sorted and names exactly what the package can load."""
    assert resilience.__all__ == sorted(resilience.__all__)
    assert set(resilience.__all__) == set(MODULES)


def test_type_checkers__see_the_same_names() -> None:
    """The imports for type checkers name the same modules as the lazy table."""
    block = next(node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))

    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert seen == MODULES


@pytest.mark.parametrize("name", resilience.__all__)
def test_public_name__exists_where_it_is_said_to_be(name: str) -> None:
    """Each public name loads, and the module that defines it exports it."""
    module = import_module(MODULES[name])

    assert getattr(resilience, name) is getattr(module, name)
    assert name in module.__all__


@pytest.mark.parametrize("name", resilience.__all__)
def test_public_name__is_documented(name: str) -> None:
    """Each public name has a docstring; functions and classes show an example, exceptions and enums need none."""
    value = getattr(resilience, name)
    text = inspect.getdoc(value) or ""
    explains_itself = isinstance(value, EnumType) or (isinstance(value, type) and issubclass(value, BaseException))

    assert text
    assert explains_itself or "Example" in text or ">>>" in text, f"{name} shows no example"


def test_import__needs_no_settings_and_changes_nothing() -> None:
    """Importing the package and the calls loads neither the ORM nor a library; circuits work without settings too."""
    program = (
        "import sys, threading; import resilience; from resilience import retry, timeout, fallback;"
        "assert not {'django.db.models', 'celery', 'requests', 'numpy'} & set(sys.modules), 'too much is loaded';"
        "from resilience import circuit_breaker;"
        "assert threading.active_count() == 1"
    )

    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, env={"PATH": ""}, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")


def test_unknown_name__is_an_attribute_error() -> None:
    """A typing error in an import is told as Python tells it."""
    with pytest.raises(AttributeError, match="module 'resilience' has no attribute 'retri'"):
        resilience.retri  # noqa: B018  # the access is the test


@pytest.mark.parametrize(
    ("library", "statement", "message"),
    [
        (
            "celery",
            "from resilience import resumable_task",
            "resilience.resumable_task needs celery. Install django-resilience[celery].",
        ),
        ("celery", "import resilience.celery", "resilience.celery needs celery. Install django-resilience[celery]."),
        ("celery", "import resilience.tasks", "resilience.tasks needs celery. Install django-resilience[celery]."),
        (
            "prometheus_client",
            "import resilience.observability.prometheus",
            "resilience.observability.prometheus needs prometheus_client. Install django-resilience[prometheus].",
        ),
        (
            "health_check",
            "import resilience.dashboard.health_checks",
            "resilience.dashboard.health_checks needs django-health-check 4 or later. Install it.",
        ),
    ],
)
def test_missing_library__says_what_to_install(library: str, statement: str, message: str) -> None:
    """The error names what was asked for and the package that brings it, where only the base is installed."""
    program = f"import sys; sys.modules[{library!r}] = None\nimport django; django.setup()\ntry:\n    {statement}\nexcept ImportError as error:\n    print(error)\n"
    settings = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=settings)

    assert ran.stdout.strip() == message
