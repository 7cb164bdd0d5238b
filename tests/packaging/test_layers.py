from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import resilience

ROOT = Path(resilience.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "migrations" not in path.parts)

#: Rooms from the ground up: each may import from its own row and from those above it in this list.
FLOORS = [
    {"exceptions", "conf", "signals", "clock", "connections", "lazy", "redaction", "values"},
    {"calls"},
    {"circuits"},
    {"db"},
    {"runs"},
    {"chaos", "layers", "policies", "recovery"},
]
EDGE = len(FLOORS)


def room_of(path: Path) -> str:
    """Return the top-level name below `resilience` that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    """Return the height of a room; what no row names is an edge and may import everything."""
    return next((height for height, rooms in enumerate(FLOORS) if room in rooms), EDGE)


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "resilience" else [node.module]
            yield from ((node.lineno, name) for name in names)


def test_the_walk_sees_modules() -> None:
    """The tests below have something to judge."""
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports__go_one_way_only(path: Path) -> None:
    """No room imports from a room above it, not even inside a function."""
    room = room_of(path)
    if room == "__init__":
        return
    wrong = [
        f"line {line}: {name}"
        for line, name in imports_of(ast.parse(path.read_text()))
        if name.startswith("resilience.") and floor_of(name.split(".")[1]) > floor_of(room)
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if room_of(path) == "calls" or path.name == "machine.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pure_modules__load_neither_orm_nor_cache(path: Path) -> None:
    """The calls pillar and the state machine load without Django's ORM and cache."""
    tree = ast.parse(path.read_text())
    top_level = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], type_ignores=[])

    wrong = [name for _, name in imports_of(top_level) if name.startswith(("django.db", "django.core.cache"))]

    assert wrong == []
