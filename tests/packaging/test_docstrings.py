from __future__ import annotations

import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import resilience

ROOT = Path(resilience.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if "migrations" not in path.parts
)


def examples() -> Iterator[doctest.DocTest]:
    """Yield the examples of every docstring, once each, where they are defined."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        yield from (found for found in finder.find(import_module(name)) if found.examples)


EXAMPLES = list(examples())


def test_there_are_examples() -> None:
    """The test below has something to run."""
    assert len(EXAMPLES) > 150


@pytest.mark.django_db
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example__shows_what_happens(example: doctest.DocTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every example of a docstring runs and prints what it says."""
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)

    failed = runner.run(example, out=told.append).failed

    assert not failed, "".join(told)
