"""The admin pages as people meet them: in Chromium, under a strict policy, by mouse, by keyboard and without scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from django.core.cache import caches
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from resilience import CircuitBreaker, get_all_circuit_breaker_stats
from resilience.circuits.registry import forget_circuits
from tests import servers
from tests.real.dashboard_site import (
    CIRCUITS,
    EVIL,
    OVERVIEW,
    RUNS,
    Browser,
    client_of,
    live_site,
    pages_of,
    poll_every,
    press,
    run_of,
    select_row,
    tripped,
    until,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_pages__keep_a_strict_policy(operator: Browser, site: str) -> None:
    """Under a policy without anything inline, every page and the confirmation work without one complaint."""
    tripped("payments")
    tripped(EVIL)
    run = run_of("train")
    operator.complaints()

    for path in pages_of(run):
        operator.get(site + path)
        until(operator, lambda: operator.find_element(By.CSS_SELECTOR, "[data-rs-status]").text == "Live")
    operator.get(f"{site}{CIRCUITS}payments/change/")
    press(operator, 'button[value="open"]')

    until(operator, lambda: operator.find_element(By.NAME, "ticket"))
    assert operator.complaints() == []


def test_list__follows_another_process(browser: Browser, redis_server: servers.Redis) -> None:
    """A circuit that another process trips is shown and announced without a reload, and nothing moves."""
    redis = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis_server.url}}
    code = (
        "import django; django.setup()\n"
        "from resilience import CircuitBreaker\n"
        "breaker = CircuitBreaker('payments', failure_threshold=3, sync_interval=0)\n"
        "def fail(): raise ConnectionError('refused')\n"
        "for _ in range(3):\n"
        "    try: breaker.call(fail)\n"
        "    except ConnectionError: pass\n"
    )
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_CACHE_URL": redis_server.url,
    }
    forget_circuits()
    with live_site(CACHES=redis) as address:
        caches["default"].clear()
        CircuitBreaker("payments", failure_threshold=3).call(lambda: 1)
        browser.sign_in(address, client_of("view_circuit"))
        browser.get(address + CIRCUITS)
        poll_every(browser, "2")
        browser.execute_script("window.stayed = true; window.scrollTo(0, 40)")
        before = browser.execute_script("return window.scrollY")
        assert browser.find_element(By.CSS_SELECTOR, "tbody .rs-state").text.endswith("Closed")

        subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], check=True, timeout=60)
        until(browser, lambda: browser.find_element(By.CSS_SELECTOR, "tbody .rs-state").text.endswith("Open"))

        announced = browser.find_element(By.CSS_SELECTOR, "[data-rs-announcer]").get_property("textContent")
        assert announced == "payments: Open"
        assert browser.execute_script("return window.stayed")
        assert browser.execute_script("return window.scrollY") == before


def test_list__does_not_change_under_the_hand(operator: Browser, site: str) -> None:
    """While a row is selected nothing is replaced, and the page says so; afterwards it goes on."""
    tripped("payments")
    operator.get(site + CIRCUITS)
    poll_every(operator, "2")
    select_row(operator)

    get_all_circuit_breaker_stats()
    CircuitBreaker("payments", failure_threshold=5, sync_interval=0).reset()
    until(operator, lambda: "Paused" in operator.find_element(By.CSS_SELECTOR, "[data-rs-status]").text)
    held = operator.find_element(By.CSS_SELECTOR, "tbody .rs-state").text
    # Nothing has replaced the row: the box is the same, and still selected.
    box = operator.find_element(By.CSS_SELECTOR, "td.rs-check input:checked")
    box.click()
    operator.execute_script("document.activeElement.blur()")
    until(operator, lambda: operator.find_element(By.CSS_SELECTOR, "tbody .rs-state").text.endswith("Closed"))

    assert held.endswith("Open")


def test_list__backs_off_and_recovers(operator: Browser, site: str) -> None:
    """When the server is out of reach the page says so, waits longer each time, and goes on by itself."""
    tripped("payments")
    operator.get(site + CIRCUITS)
    poll_every(operator, "2")
    operator.execute_cdp_cmd("Network.enable", {})

    def offline(is_offline: bool) -> None:
        conditions = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        operator.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def status() -> str:
        return str(operator.find_element(By.CSS_SELECTOR, "[data-rs-status]").text)

    offline(True)
    until(operator, lambda: "trying again in 4 s" in status())
    until(operator, lambda: "trying again in 8 s" in status())
    offline(False)
    until(operator, lambda: status() == "Live", 30)


def test_list__remembers_the_interval(operator: Browser, site: str) -> None:
    """The reader's choice holds on every page, also after a reload."""
    operator.get(site + CIRCUITS)
    poll_every(operator, "60")

    operator.get(site + RUNS)

    assert (
        Select(operator.find_element(By.CSS_SELECTOR, "[data-rs-interval]")).first_selected_option.get_attribute("value") == "60"
    )


def test_list__tells_who_was_signed_out(operator: Browser, site: str) -> None:
    """When the session ends the page says so instead of showing the login form in a table."""
    tripped("payments")
    operator.get(site + CIRCUITS)
    operator.delete_all_cookies()

    poll_every(operator, "2")
    until(operator, lambda: "signed out" in operator.find_element(By.CSS_SELECTOR, "[data-rs-status]").text)

    assert operator.find_elements(By.CSS_SELECTOR, "tbody tr")


@pytest.mark.parametrize("how", ["system", "admin", "class"])
def test_dark__in_each_of_three_ways(operator: Browser, site: str, how: str) -> None:
    """The system's wish, Django's switch and a theme's class all turn the pages dark."""
    tripped("payments")
    look = "return getComputedStyle(document.querySelector('.rs tbody .rs-state-open')).backgroundColor"
    operator.get(site + CIRCUITS)
    light = operator.execute_script(look)

    if how == "system":
        operator.sets(scheme="dark")
    elif how == "admin":
        operator.execute_script("document.documentElement.dataset.theme = 'dark'")
    else:
        operator.execute_script("document.documentElement.classList.add('dark')")

    assert operator.execute_script(look) != light


def test_dark__gives_way_to_the_reader(operator: Browser, site: str) -> None:
    """Who chose light in the admin keeps light on a dark system."""
    tripped("payments")
    look = "return getComputedStyle(document.querySelector('.rs tbody .rs-state-open')).backgroundColor"
    operator.get(site + CIRCUITS)
    light = operator.execute_script(look)

    operator.sets(scheme="dark")
    operator.execute_script("document.documentElement.dataset.theme = 'light'")

    assert operator.execute_script(look) == light


@pytest.mark.parametrize("language", ["en", "ar"])
def test_phone__scrolls_in_one_direction(operator: Browser, site: str, language: str) -> None:
    """On a narrow screen, left to right and right to left, no page is wider than the screen."""
    from django.utils import translation

    tripped("payments")
    tripped("a-very-long-name-" * 8)
    run = run_of("train")
    operator.sets(width=360)
    wide = {}

    with translation.override(language):
        for path in pages_of(run):
            operator.get(site + path)
            if language == "ar":
                operator.execute_script("document.documentElement.dir = 'rtl'")
            wide[path] = operator.execute_script(
                "const box = document.querySelector('.rs').getBoundingClientRect();"
                "return [...document.querySelectorAll('.rs *')].filter((e) => e.tagName !== 'OPTION' && e.getClientRects().length && !e.closest('.rs-scroll, pre, .rs-hidden') &&"
                " (e.getBoundingClientRect().right > box.right + 1 || e.getBoundingClientRect().left < box.left - 1))"
                ".map((e) => e.outerHTML.slice(0, 120))"
            )

    assert {path: elements for path, elements in wide.items() if elements} == {}


@pytest.mark.parametrize(("width", "counts"), [(390, False), (1400, True)])
def test_lists__cut_nothing_off(operator: Browser, site: str, width: int, counts: bool) -> None:
    """On a phone and on a desk the tables fit, and a desk has room for the counts of the window."""
    tripped("payments:stripe").open(600, reason="drill")
    rated = CircuitBreaker("llm:openai", failure_rate_threshold=0.5, minimum_calls=2, failure_window=600, sync_interval=0)
    rated.call(lambda: 1)
    for _ in range(3):
        rated.call(lambda: 1)
        with suppress(ConnectionError), rated:
            raise ConnectionError("no route to the model's host after 30 seconds of trying")
    run_of("embed:catalogue-2026-11", status="cancelled", current=81_300, total=96_000)
    operator.sets(width=width)
    over, shown = {}, []

    for path in (CIRCUITS, OVERVIEW, RUNS):
        operator.get(site + path)
        boxes = "[...document.querySelectorAll('.rs-scroll')].map((box) => box.scrollWidth - box.clientWidth)"
        over[path] = operator.execute_script(f"return {boxes}")
        shown += [part.text for part in operator.find_elements(By.CSS_SELECTOR, ".rs-part") if part.is_displayed()]

    assert {path: pixels for path, pixels in over.items() if any(pixels)} == {}
    assert ("3 failed" in shown) == counts


def test_sorting__is_told_to_a_screen_reader(operator: Browser, site: str) -> None:
    """The heading that sorts says in which direction."""
    tripped("payments")
    operator.get(f"{site}{CIRCUITS}?sort=name")

    heading = operator.find_element(By.CSS_SELECTOR, "th[aria-sort]")

    assert (heading.text.strip(" ▲▼").lower(), heading.get_attribute("aria-sort")) == ("circuit", "ascending")


def test_contrast__survives_forced_colours(operator: Browser, site: str) -> None:
    """With the system's own colours each state still has a frame and a shape."""
    tripped("payments")
    operator.sets(contrast="active")
    operator.get(site + CIRCUITS)
    time.sleep(0.1)

    badge = operator.find_element(By.CSS_SELECTOR, "tbody .rs-state")

    assert badge.value_of_css_property("border-top-style") == "solid"
    assert badge.text.startswith("✖")
