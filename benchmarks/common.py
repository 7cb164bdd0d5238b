"""What the benchmarks share: their options, the form of a promise, and how they end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Figure", "Target", "ending", "parser_of"]


class _Judged(Protocol):
    @property
    def holds(self) -> bool: ...


@dataclass
class Target:
    """A promise: this figure divided by that one is at most `limit`."""

    name: str
    measured: str
    reference: str
    limit: float
    ratio: float = 0.0

    @property
    def holds(self) -> bool:
        return self.ratio <= self.limit


@dataclass
class Figure:
    """One measurement beside its target."""

    name: str
    measured: float
    target: float
    unit: str = ""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: for a look, not for a verdict")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return parser


def ending(options: argparse.Namespace, figures: Any, judged: Iterable[_Judged]) -> int:
    """Write what was measured where `--json` says; return the exit code that `--check` asks for."""
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(options.check and not all(each.holds for each in judged))
