"""What people do on the admin pages, in Chromium: by mouse, by keyboard and without scripts."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from resilience import Run
from tests.real.dashboard_site import (
    CIRCUITS,
    EVIL,
    RUNS,
    Browser,
    address_behind,
    client_of,
    poll_every,
    press,
    run_of,
    select_row,
    state_of,
    tripped,
    until,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("script", [True, False])
def test_operate__from_the_list(operator: Browser, site: str, script: bool) -> None:
    """Select, choose, confirm: with and without scripts the circuit changes and it is written down."""
    tripped("payments")
    tripped("mail")
    operator.sets(script=script)
    operator.get(f"{site}{CIRCUITS}?q=pay")

    select_row(operator)
    Select(operator.find_element(By.NAME, "action")).select_by_value("open")
    operator.find_element(By.CSS_SELECTOR, ".rs-actions button").click()
    until(operator, lambda: operator.find_element(By.NAME, "reason"))
    operator.find_element(By.NAME, "reason").send_keys("provider is down")
    press(operator, '[name="confirmed"]')

    until(operator, lambda: "q=pay" in operator.current_url)
    assert state_of("payments") == "forced_open"
    assert state_of("mail") == "open"
    assert LogEntry.objects.get().object_id == "payments"
    operator.sets(script=True)


def test_operate__a_double_click_does_it_once(operator: Browser, site: str) -> None:
    """Two quick clicks on the button are one action."""
    tripped("payments")
    operator.get(f"{site}{CIRCUITS}payments/change/")
    press(operator, 'button[value="reset"]')

    until(operator, lambda: operator.find_element(By.NAME, "confirmed"))
    operator.execute_script("const b = document.querySelector('[name=confirmed]'); b.click(); b.click();")
    until(operator, lambda: "/change/" in operator.current_url)

    assert state_of("payments") == "closed"
    assert LogEntry.objects.count() == 1


def test_operate__an_evil_name_is_only_text(operator: Browser, site: str) -> None:
    """A name full of markup is shown, confirmed and carried out, and never run."""
    tripped(EVIL)
    operator.get(site + CIRCUITS)
    poll_every(operator, "2")
    operator.get(address_behind(operator, ".rs tbody th a"))
    press(operator, 'button[value="reset"]')

    until(operator, lambda: operator.find_element(By.CSS_SELECTOR, ".rs-targets bdi").text)
    shown = operator.find_element(By.CSS_SELECTOR, ".rs-targets bdi").text
    press(operator, '[name="confirmed"]')
    until(operator, lambda: "/change/" in operator.current_url)

    assert shown == EVIL
    assert state_of(EVIL) == "closed"


def test_permissions__decide_what_is_there(browser: Browser, site: str) -> None:
    """Without permission there is no page; with the one to look there is no button."""
    tripped("payments")
    browser.sign_in(site, client_of(name="nobody"))
    browser.get(site + CIRCUITS)
    refused = browser.find_element(By.TAG_NAME, "body").text
    browser.delete_all_cookies()
    browser.sign_in(site, client_of("view_circuit", name="reader"))
    browser.get(f"{site}{CIRCUITS}payments/change/")

    tabs = [tab.text for tab in browser.find_elements(By.CSS_SELECTOR, ".rs-tabs a")]
    assert "403" in refused
    assert "payments" not in refused
    assert not browser.find_elements(By.CSS_SELECTOR, ".rs form")
    assert tabs[:2] == ["Overview", "Circuits"]
    assert "Runs" not in tabs


def test_runs__are_paused_and_resumed(operator: Browser, site: str) -> None:
    """The buttons offer what the status allows; the bar moves without a reload."""
    run = run_of("train:7", status="queued")
    operator.get(f"{site}{RUNS}{run.pk}/change/")
    offered = [button.get_attribute("value") for button in operator.find_elements(By.CSS_SELECTOR, "button[name=action]")]
    press(operator, 'button[value="pause"]')
    press(operator, '[name="confirmed"]')
    until(operator, lambda: "Paused" in operator.find_element(By.CSS_SELECTOR, ".rs-state").text)

    poll_every(operator, "2")
    Run.objects.filter(pk=run.pk).update(current=55, heartbeat_at=timezone.now())
    until(operator, lambda: operator.find_element(By.TAG_NAME, "progress").get_attribute("value") == "55")

    run.refresh_from_db()
    assert offered == ["pause", "cancel"]
    assert run.status == "paused"
    assert LogEntry.objects.get().object_repr == "train:7"


def test_keyboard__reaches_everything(operator: Browser, site: str) -> None:
    """Search with one key, select, choose and confirm without a mouse."""
    tripped("payments")
    operator.get(site + CIRCUITS)

    operator.switch_to.active_element.send_keys("/")
    operator.switch_to.active_element.send_keys("pay", Keys.ENTER)
    until(operator, lambda: "q=pay" in operator.current_url)

    def select_by_key() -> bool:
        box = operator.find_element(By.CSS_SELECTOR, "td.rs-check input")
        return box.is_selected() or (box.send_keys(Keys.SPACE), box.is_selected())[1]

    until(operator, select_by_key)
    Select(operator.find_element(By.NAME, "action")).select_by_value("reset")
    operator.find_element(By.CSS_SELECTOR, ".rs-actions button").send_keys(Keys.ENTER)
    until(operator, lambda: operator.find_element(By.NAME, "confirmed"))
    operator.find_element(By.NAME, "confirmed").send_keys(Keys.ENTER)
    until(operator, lambda: "q=pay" in operator.current_url)

    assert state_of("payments") == "closed"


def test_list__keeps_the_row_that_is_pressed(operator: Browser, site: str) -> None:
    """Between pressing and releasing, nothing takes the row away from under the pointer; afterwards the page goes on."""
    breaker = tripped("payments")
    operator.get(site + CIRCUITS)
    poll_every(operator, "2")

    def press_row() -> bool:
        ActionChains(operator).click_and_hold(operator.find_element(By.CSS_SELECTOR, "tbody .rs-state")).perform()
        return True

    until(operator, press_row)
    row = operator.find_element(By.CSS_SELECTOR, "tbody .rs-state")
    breaker.reset()
    until(operator, lambda: "Paused" in operator.find_element(By.CSS_SELECTOR, "[data-rs-status]").text)
    held = row.text
    ActionChains(operator).release().perform()
    until(operator, lambda: operator.find_element(By.CSS_SELECTOR, "tbody .rs-state").text.endswith("Closed"))

    assert held.endswith("Open")
