"""How long the tests that repeat something go on: with `RESILIENCE_CHAOS=long` through every case.

`make chaos` sets it for the tests marked `chaos`; for the others, set it by hand.
"""

from __future__ import annotations

import os

__all__ = ["LONG", "shorter"]

LONG = os.environ.get("RESILIENCE_CHAOS") == "long"


def shorter(many: int) -> int:
    """How often to do what is done `many` times when there is time for it."""
    return many if LONG else max(many // 3, 1)
