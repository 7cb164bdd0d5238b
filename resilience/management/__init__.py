"""This app's management commands."""

from __future__ import annotations
