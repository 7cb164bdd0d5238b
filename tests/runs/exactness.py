"""Compare states as strictly as a resumed training run does: type, order and every bit."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def same(left: Any, right: Any) -> bool:
    """Tell whether two states are of the same types, in the same order, with the same bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return _bits(left) == _bits(right)


def _bits(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype, value.shape, value.tobytes("A")
    if isinstance(value, complex):
        return struct.pack(">dd", value.real, value.imag)
    return struct.pack(">d", value) if isinstance(value, float) else value
