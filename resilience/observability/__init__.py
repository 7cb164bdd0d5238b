"""Receivers that turn signals into logs and metrics."""

from __future__ import annotations
