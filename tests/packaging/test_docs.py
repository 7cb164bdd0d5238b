from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import testapp

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python[^\S\n]*(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?:#[^)]*)?\)")


def snippets(page: Path) -> list[tuple[int, str]]:
    """Return line and code of each Python block that claims to run."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start()) + 1, match["code"]) for match in FENCE.finditer(text) if "no-run" not in match["info"]
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets__run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every Python block of a page runs as it stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "shop", testapp)  # as the pages call the reader's own app
    monkeypatch.setitem(sys.modules, "shop.models", testapp.models)
    # A module of its own: two pages may well have a task of the same name.
    namespace: dict[str, object] = {"__name__": f"snippet_{page.stem}"}
    for line, code in snippets(page):
        # Blank lines in front give tracebacks the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)  # that is the test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that exists."""
    missing = [match["target"] for match in LINK.finditer(page.read_text()) if not (page.parent / match["target"]).exists()]

    assert missing == []
