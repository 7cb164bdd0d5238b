"""Circuits that stay in one process: where their state lives, and the names of those that were given none."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from threading import Lock
from typing import Any

from django.core.cache.backends.locmem import LocMemCache

__all__ = ["GeneratedName", "Memory"]


class GeneratedName(str):
    """A name made up for a circuit that was given none: only one object knows it, and it ends with that object.

    Example:
        >>> name = GeneratedName.beginning("recovery")
        >>> name.kind, len(name)
        ('recovery', 41)
    """

    __slots__ = ()

    @classmethod
    def beginning(cls, kind: str) -> GeneratedName:
        """Return a name that nobody else has.

        Args:
            kind: What it is the name of, without a dash.
        """
        return cls(f"{kind}-{uuid.uuid4().hex}")

    @property
    def kind(self) -> str:
        """What all names of the kind have in common, for metrics: their number has no bound."""
        return self.partition("-")[0]


class Memory(LocMemCache):
    """A cache that ends with this object: `LocMemCache` itself keeps its keys for good, under its name."""

    _cache: OrderedDict[str, Any]
    _expire_info: dict[str, float | None]

    def __init__(self) -> None:
        super().__init__("resilience.circuits", {"OPTIONS": {"MAX_ENTRIES": 1_000_000}})
        self._cache, self._expire_info, self._lock = OrderedDict(), {}, Lock()
