from __future__ import annotations

import ast
import gettext
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.template.base import Lexer, TokenType
from django.utils.text import unescape_string_literal

import resilience
from tests.servers import find_program

ROOT = Path(resilience.__file__).parent
LANGUAGES = ("de", "en", "es", "fr")
_CALLS = {"_": 0, "gettext": 0, "gettext_lazy": 0, "ngettext": 0, "ngettext_lazy": 0, "pgettext": 1, "pgettext_lazy": 1}
_STRING = r'("(?:[^"\\]|\\.)*")'


def _catalogue(language: str) -> dict[str, str]:
    """What the compiled catalogue knows; a context is part of the key, and a plural the text's last."""
    with (ROOT / f"locale/{language}/LC_MESSAGES/django.mo").open("rb") as file:
        catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # there is no public way to list it
    return {str(key[0] if isinstance(key, tuple) else key): text for key, text in sorted(catalogue.items(), key=str) if key}


def _of_python() -> Iterator[str]:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
                texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                place = _CALLS[node.func.id]
                if len(texts) > place:
                    yield f"{texts[0]}\x04{texts[1]}" if place else texts[0]


def _of_templates() -> Iterator[str]:
    for path in ROOT.rglob("*.html"):
        block: list[str] | None = None
        for token in Lexer(path.read_text()).tokenize():
            if token.token_type is TokenType.BLOCK and token.contents.startswith("blocktranslate"):
                block = []
            elif token.token_type is TokenType.BLOCK and token.contents in {"plural", "endblocktranslate"} and block is not None:
                yield "".join(block)
                block = None
            elif block is not None:
                block.append(f"%({token.contents})s" if token.token_type is TokenType.VAR else token.contents.replace("%", "%%"))
            elif match := re.match(rf"translate {_STRING}(?: context {_STRING})?", token.contents):
                text, context = match[1], match[2]
                start = f"{unescape_string_literal(context)}\x04" if context else ""
                # Django looks texts of templates up with their percent signs doubled.
                yield start + unescape_string_literal(text).replace("%", "%%")


def _placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)[sd]|%s", text))


def test_catalogues__know_every_text() -> None:
    """Whatever the pages say can be said in each language we ship."""
    texts = {*_of_python(), *_of_templates()}

    missing = {language: sorted(texts - set(_catalogue(language))) for language in LANGUAGES}

    assert len(texts) > 250
    assert {language: found for language, found in missing.items() if found} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogues__are_finished(language: str) -> None:
    """Nothing is empty or marked as a guess, and each translation keeps the placeholders of its text."""
    source = (ROOT / f"locale/{language}/LC_MESSAGES/django.po").read_text()
    catalogue = _catalogue(language)

    wrong = {
        key: text
        for key, text in catalogue.items()
        if not text or (key != "every second" and _placeholders(key) != _placeholders(text))
    }

    assert wrong == {}
    assert ", fuzzy" not in source
    assert "Plural-Forms" in source
    assert set(catalogue) == set(_catalogue("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogues__are_compiled(language: str) -> None:
    """The compiled catalogue is the one of its source."""
    msgfmt = find_program("gettext", "gettext", "msgfmt")
    folder = ROOT / f"locale/{language}/LC_MESSAGES"
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "django.mo"
        subprocess.run([msgfmt, "--check", "-o", str(fresh), str(folder / "django.po")], check=True, timeout=60)

        with fresh.open("rb") as new, (folder / "django.mo").open("rb") as shipped:
            assert gettext.GNUTranslations(new)._catalog == gettext.GNUTranslations(shipped)._catalog  # type: ignore[attr-defined]  # as above
