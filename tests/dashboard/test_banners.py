from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resilience import clock
from resilience.circuits.checks import KEYS_PER_CIRCUIT
from resilience.dashboard.banners import cache_banners, circuit_banners, rates_banner
from resilience.dashboard.circuits import CircuitRow

BACKENDS = "django.core.cache.backends"


def said(settings: Any, backend: str, location: str, **options: Any) -> list[tuple[str, str]]:
    """Return level and title of what is said about a cache."""
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.{backend}", "LOCATION": location, **options}}
    return [(banner.level, banner.title) for banner in cache_banners()]


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_cache__of_one_process_is_told(settings: Any, backend: str) -> None:
    """Whoever looks at the circuits of one process reads that the fleet has others."""
    assert said(settings, backend, "banners") == [("warning", "One process only.")]


def test_cache__of_files_is_weak(settings: Any, tmp_path: Path) -> None:
    """A cache that is shared and not atomic is told."""
    assert said(settings, "filebased.FileBasedCache", str(tmp_path)) == [("warning", "Weak cache.")]


@pytest.mark.django_db
def test_cache__without_its_table_is_unreachable(settings: Any) -> None:
    """A cache that raises is told by its alias and the class of the error, not by its message."""
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.db.DatabaseCache", "LOCATION": "no_such_table"}}

    (banner,) = cache_banners()

    assert (banner.level, banner.title) == ("error", "Cache unreachable.")
    assert "“default”" in banner.text
    assert "no_such_table" not in banner.text


def test_cache__that_settings_do_not_have_is_unreachable(settings: Any) -> None:
    """A wrong alias breaks neither this banner nor the one that asks how many entries fit."""
    settings.RESILIENCE = {"CACHE": "nowhere"}

    assert [banner.title for banner in cache_banners()] == ["Cache unreachable."]
    assert circuit_banners([CircuitRow(name="payments")]) == []


def test_cache__that_is_shared_and_atomic_needs_no_word(settings: Any, redis_server: Any) -> None:
    """Over a cache that is fit for it nothing stands."""
    assert said(settings, "redis.RedisCache", redis_server.url) == []


@pytest.mark.parametrize("switched_off", [{"ENABLED": False}, {"CIRCUIT": {"enabled": False}}])
def test_circuits__that_are_switched_off_are_told(settings: Any, switched_off: dict[str, Any]) -> None:
    """States that no call follows are not shown without a word."""
    settings.RESILIENCE = switched_off

    assert [banner.title for banner in circuit_banners([])] == ["Switched off."]


def test_circuits__too_many_for_the_cache_are_told(settings: Any) -> None:
    """A cache that throws entries out by number says how many circuits it holds."""
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 2 * KEYS_PER_CIRCUIT}}}
    rows = [CircuitRow(name=f"circuit {number}") for number in range(3)]

    assert circuit_banners(rows[:2]) == []
    (banner,) = circuit_banners(rows)
    assert f"{2 * KEYS_PER_CIRCUIT} entries" in banner.text
    assert "3 circuits" in banner.text


@pytest.mark.parametrize(("ahead", "titles"), [(5, []), (60, ["Clocks differ."])])
def test_circuits__of_a_machine_that_is_ahead_are_told(ahead: float, titles: list[str]) -> None:
    """Ten seconds between two machines' clocks are borne, more are told."""
    row = CircuitRow(name="payments", changed_at=clock.time() + ahead)

    assert [banner.title for banner in circuit_banners([row])] == titles


@pytest.mark.parametrize(("rates", "titles"), [(True, []), (False, ["Not counting."])])
def test_rates__that_are_not_counted_are_told(settings: Any, rates: bool, titles: list[str]) -> None:
    """Charts that stay empty by a setting say which."""
    settings.RESILIENCE = {"DASHBOARD": {"RATES": rates}}

    assert [banner.title for banner in rates_banner()] == titles
