"""A real training on real data, small enough to be killed hundreds of times: softmax regression on the digits."""

from __future__ import annotations

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["begin", "data", "digest", "expected", "learn"]


def data() -> tuple[Any, Any]:
    """The digits of scikit-learn, read without importing it: that would take longer than the training."""
    package = find_spec("sklearn")
    assert package is not None
    with gzip.open(Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1] / 16, table[:, -1].astype(int)


def begin() -> dict[str, Any]:
    """The weights and the random numbers that every training begins with."""
    return {"w": np.zeros((64, 10)), "rng": np.random.default_rng(7).bit_generator.state, "losses": []}


def learn(state: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
    """A few mini-batch gradient steps, drawn at random."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    for _ in range(5):
        rows = rng.integers(0, len(x), 32)
        scores = x[rows] @ state["w"]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        loss = float(-np.log(scores[np.arange(32), y[rows]]).mean())
        scores[np.arange(32), y[rows]] -= 1
        state["w"] -= 0.1 * x[rows].T @ scores / 32
    state["losses"].append(loss)
    state["rng"] = rng.bit_generator.state
    return state


def digest(state: dict[str, Any]) -> str:
    """A hash of the weights, bit for bit."""
    return hashlib.sha256(state["w"].tobytes() + repr(state["losses"]).encode()).hexdigest()


def expected(steps: int) -> str:
    """What an uninterrupted training ends with."""
    x, y = data()
    state = begin()
    for _ in range(steps):
        state = learn(state, x, y)
    return digest(state)
