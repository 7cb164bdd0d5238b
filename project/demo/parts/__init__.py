"""The parts of the demo, in the order in which `manage.py demo` shows them."""

from __future__ import annotations
