from __future__ import annotations

import dataclasses
import re
from enum import Enum
from pathlib import Path

import pytest

import resilience
from resilience import CircuitBreakerConfig, RetryConfig
from resilience.chaos import ChaosConfig
from resilience.conf import Settings

ROOT = Path(resilience.__file__).parent
PAGE = (ROOT.parent / "docs" / "settings.md").read_text()


def shown(value: object) -> str:
    """Return a default as the page shows it."""
    if isinstance(value, Enum):
        return repr(value.value)
    if isinstance(value, tuple):
        return f"({', '.join(getattr(item, '__name__', repr(item)) for item in value)}{',' if len(value) == 1 else ''})"
    return repr(value)


def defaults_of(config: type) -> dict[str, str]:
    return {
        field.name: shown(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        for field in dataclasses.fields(config)
    }


def table_under(heading: str) -> dict[str, str]:
    """Return the first two columns of the first table below a heading, without their quotes."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "config"), [("RETRY", RetryConfig), ("CIRCUIT and CIRCUITS", CircuitBreakerConfig), ("CHAOS", ChaosConfig)]
)
def test_fields__stand_on_the_page_with_their_defaults(heading: str, config: type) -> None:
    """A field that is new, renamed, gone or has another default is a wrong page."""
    found = {name: default for name, default in table_under(heading).items() if not name.isupper() and name != "enabled"}

    assert found == defaults_of(config)


def test_keys__stand_on_the_page() -> None:
    """Every key of RESILIENCE has its row, and no other has one."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| ", PAGE.partition("\n## ")[0], re.MULTILINE)

    assert sorted(rows) == sorted(field.name.upper() for field in dataclasses.fields(Settings))


@pytest.mark.parametrize(("heading", "attribute"), [("RUNS", "runs"), ("DASHBOARD", "dashboard")])
def test_options__stand_on_the_page(heading: str, attribute: str) -> None:
    """Every option that the code asks for has its row."""
    asked = {
        name
        for path in ROOT.rglob("*.py")
        for name in re.findall(rf"\.{attribute}(?:\.get\(|\[)\s*['\"]([A-Z_]+)['\"]", path.read_text())
    }

    assert asked
    assert asked <= set(table_under(heading))


def test_checks__stand_on_the_page() -> None:
    """Every id that a system check can give is explained, and no other."""
    used = {found for path in ROOT.rglob("*.py") for found in re.findall(r"\bresilience\.[EW]\d{3}\b", path.read_text())}

    explained = re.findall(r"^\| `(resilience\.[EW]\d{3})` \|", PAGE, re.MULTILINE)

    assert sorted(used) == sorted(explained)
