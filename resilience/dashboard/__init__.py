"""The pages in the admin: circuits, runs and the overview."""

from __future__ import annotations
