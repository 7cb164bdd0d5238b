"""What the reader of a page must know before believing it: where the state lives, and what is switched off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.core.cache import caches
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.utils.translation import gettext as _

from resilience import clock, conf
from resilience.circuits.checks import KEYS_PER_CIRCUIT
from resilience.circuits.registry import cache_aliases
from resilience.dashboard.circuits import CircuitRow
from resilience.patience import unreachable

__all__ = ["Banner", "cache_banners", "circuit_banners"]

#: Seconds by which another machine's clock may be ahead before the page says so.
_SKEW = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """A notice above a page; `level` is "info", "warning" or "error"."""

    level: str
    title: str
    text: str


def cache_banners(down: Mapping[str, str] | None = None) -> list[Banner]:
    """Judge the caches that hold the shared state.

    Args:
        down: Those that do not answer, and why; None asks them.
    """
    aliases = cache_aliases()
    down = unreachable(aliases) if down is None else down
    return [banner for alias in aliases if (banner := _cache_banner(alias, down.get(alias, "")))]


def _cache_banner(alias: str, error: str) -> Banner | None:
    if error:
        text = _("The cache “%(alias)s” does not answer (%(error)s). This page shows only what this process knows.")
        if alias != conf.current().cache:
            text = _(
                "The cache “%(alias)s” does not answer (%(error)s). Of its circuits this page shows what this process knows."
            )
        return Banner(level="error", title=_("Cache unreachable."), text=text % {"alias": alias, "error": error})
    cache = caches[alias]
    if isinstance(cache, LocMemCache | DummyCache):
        text = _(
            "The cache “%(alias)s” is not shared: each process has its own circuits, and this page shows those of this process."
        )
        return Banner(level="warning", title=_("One process only."), text=text % {"alias": alias})
    if isinstance(cache, FileBasedCache | DatabaseCache):
        text = _(
            "The cache “%(alias)s” is not atomic: two processes may change a circuit at once, "
            "and counts of failures may be lost. Use Redis or Memcached."
        )
        return Banner(level="warning", title=_("Weak cache."), text=text % {"alias": alias})
    return None


def circuit_banners(rows: Iterable[CircuitRow]) -> list[Banner]:
    """Judge the settings and what the circuits' records say about the fleet."""
    rows = list(rows)
    banners = []
    settings = conf.current()
    if not settings.enabled or settings.circuit.get("enabled") is False:
        text = _("The settings switch circuits off: calls go straight through, whatever this page says.")
        banners.append(Banner(level="warning", title=_("Switched off."), text=text))
    if (limit := _entry_limit()) and len(rows) * KEYS_PER_CIRCUIT > limit:
        text = _("The cache keeps at most %(limit)d entries, too few for %(count)d circuits. Raise MAX_ENTRIES in its OPTIONS.")
        banners.append(Banner(level="warning", title=_("Cache too small."), text=text % {"limit": limit, "count": len(rows)}))
    ahead = max((row.changed_at or 0.0 for row in rows), default=0.0) - clock.time()
    if ahead > _SKEW:
        text = _("The clock of another machine is %(seconds)d s ahead of this one. Times on this page are off by as much.")
        banners.append(Banner(level="warning", title=_("Clocks differ."), text=text % {"seconds": ahead}))
    return banners


def rates_banner() -> list[Banner]:
    """Say so when nothing is counted."""
    if conf.current().dashboard.get("RATES", True):
        return []
    return [Banner(level="info", title=_("Not counting."), text=_("The RATES setting of the dashboard is False."))]


def _entry_limit() -> int | None:
    """Return how many entries the cache keeps, for backends that throw entries out by number."""
    try:
        cache = caches[conf.current().cache]
    except Exception:  # noqa: BLE001  # the other banner tells
        return None
    if isinstance(cache, LocMemCache | FileBasedCache | DatabaseCache):
        return int(getattr(cache, "_max_entries", 0)) or None
    return None
