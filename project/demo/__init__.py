"""The demo app: `manage.py demo` breaks things on purpose and shows that the work is done all the same."""

from __future__ import annotations
