"""Capture and restore the state of random number generators, so that a resumed run draws what it would have drawn.

Covers `random`, NumPy's global generator, generators of `numpy.random` that you pass, and PyTorch's on the CPU and on
every CUDA device. A library that the process has not imported has drawn nothing, and is left alone.
The captured state is made of plain values: a small state with it still fits into its row.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from resilience.exceptions import CheckpointError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["capture", "restore"]


def capture(generators: Mapping[str, np.random.Generator] | None = None) -> dict[str, Any]:
    """Return the state of all generators, ready to be part of a checkpoint.

    Args:
        generators: Your own NumPy generators by name.

    Example:
        >>> state = capture()
        >>> first = random.random()
        >>> restore(state)
        >>> random.random() == first
        True
    """
    captured: dict[str, Any] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        captured["numpy"] = _plain(import_module("numpy").random.get_state(legacy=False))
        captured["generators"] = {name: _plain(generator.bit_generator.state) for name, generator in (generators or {}).items()}
    if "torch" in sys.modules:
        torch = import_module("torch")
        captured["torch"] = _hex(torch.get_rng_state())
        captured["cuda"] = [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return captured


def restore(captured: Mapping[str, Any], generators: Mapping[str, np.random.Generator] | None = None) -> None:
    """Put all generators back to a captured state.

    Args:
        captured: What `capture` returned.
        generators: Your own NumPy generators, under the names they were captured with.

    Raises:
        CheckpointError: A captured generator was not passed, or one that was passed was not captured.
    """
    saved, given = captured.get("generators", {}), generators or {}
    if saved.keys() != given.keys():
        names = ", ".join(sorted(saved.keys() ^ given.keys()))
        raise CheckpointError(
            f"generators must be those that were captured, but they differ in: {names}. Pass the same names.", "configuration"
        )
    random.setstate(captured["random"])
    if "numpy" in captured:
        import_module("numpy").random.set_state(_arrays(captured["numpy"]))
        for name, state in saved.items():
            given[name].bit_generator.state = _arrays(state)
    if "torch" in captured:
        torch = import_module("torch")
        torch.set_rng_state(_tensor(torch, captured["torch"]))
        if captured["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([_tensor(torch, state) for state in captured["cuda"]])


def _plain(state: Any) -> Any:
    """Replace the small arrays in a generator's state by lists, beside their dtype."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return {"dtype": state.dtype.str, "values": state.tolist()} if hasattr(state, "dtype") else state


def _arrays(state: Any) -> Any:
    """Undo `_plain`."""
    if not isinstance(state, dict):
        return state
    if state.keys() == {"dtype", "values"}:
        return import_module("numpy").array(state["values"], dtype=state["dtype"])
    return {key: _arrays(value) for key, value in state.items()}


def _hex(state: Any) -> str:
    return bytes(state.tolist()).hex()


def _tensor(torch: Any, digits: str) -> Any:
    return torch.tensor(list(bytes.fromhex(digits)), dtype=torch.uint8)
