"""Measurements beside the peers: `python -m benchmarks.calls`, one module a pillar.

Absolute times are noise on a shared machine; every figure is a ratio of two things measured in the same run.
"""

from __future__ import annotations
