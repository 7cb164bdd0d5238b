"""How long the tests that repeat something go on: `RESILIENCE_CHAOS=long`, as `make chaos` sets it, goes through every case."""

from __future__ import annotations

import os

__all__ = ["LONG"]

LONG = os.environ.get("RESILIENCE_CHAOS") == "long"
