from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import resilience
from resilience import signals
from tests.observability.tables import documented_arguments

ROOT = Path(resilience.__file__).parent
NAMES = sorted(set(signals.__all__) - {"emit"})

Site = tuple[str, frozenset[str], set[str]]


def sites() -> Iterator[Site]:
    """Yield place, signals and argument names of every call of `emit` in the app."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "signals.py":
            continue
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if ast.unparse(call.func) == "signals.emit":
                    yield f"{path.relative_to(ROOT)}:{call.lineno}", signals_of(call.args[0], tree), arguments_of(call, function)


def signals_of(node: ast.expr, tree: ast.Module) -> frozenset[str]:
    """Return the signals that an expression can mean: written out, chosen by an `if`, or by a function of the module."""
    text = ast.unparse(node)
    found = re.findall(r"\bsignals\.(\w+)", text)
    if not found:
        module = ast.unparse(tree)
        alias = re.search(rf"^{re.escape(text)} = signals\.(\w+)$", module, re.MULTILINE)
        # A variable: whatever the module speaks of outside its calls of emit.
        found = [alias[1]] if alias else re.findall(r"(?<!emit\()\bsignals\.(?!emit\b)(\w+)", module)
    return frozenset(found)


def arguments_of(call: ast.Call, function: ast.AST) -> set[str]:
    """Return the argument names, also of dicts that the function put together before."""
    names = {keyword.arg for keyword in call.keywords if keyword.arg}
    for keyword in call.keywords:
        if keyword.arg is None:
            dicts = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == ast.unparse(keyword.value)
            ]
            assert len(dicts) == 1, f"line {call.lineno}: where does {ast.unparse(keyword.value)} come from?"
            assert isinstance(dicts[0], ast.Dict), f"line {call.lineno}: write the dict out"
            names |= {ast.literal_eval(key) for key in dicts[0].keys if key is not None}
    return names


SITES = list(sites())


@pytest.mark.parametrize(("place", "sent", "arguments"), SITES, ids=[place for place, *_ in SITES])
def test_emit__sends_what_the_table_says(place: str, sent: frozenset[str], arguments: set[str]) -> None:
    """Every place that sends a signal gives it exactly the documented arguments."""
    table = documented_arguments()

    assert sent
    assert {name: table[name] for name in sent} == dict.fromkeys(sent, arguments), place


def test_every_signal__is_sent_somewhere() -> None:
    """The table promises nothing that never happens."""
    assert sorted({name for _, sent, _ in SITES for name in sent}) == NAMES
