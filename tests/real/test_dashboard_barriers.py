"""The admin pages as axe sees them: what stands in the way of people who read with other means than most."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from axe_selenium_python import Axe

from tests.length import LONG
from tests.real.dashboard_site import (
    CIRCUITS,
    OVERVIEW,
    RUNS,
    Browser,
    pages_of,
    press,
    run_of,
    tripped,
    until,
)

pytestmark = pytest.mark.django_db(transaction=True)

Findings = set[tuple[str, str]]


def _axe(browser: Browser) -> Axe:
    """Return axe; the one that Python 3.11 has is of 2018, so there another package lends its script."""
    if sys.version_info >= (3, 12):
        return Axe(browser)
    lender = find_spec("axe_core_python")
    assert lender is not None
    assert lender.origin is not None
    return Axe(browser, str(Path(lender.origin).with_name("axe.min.js")))


def look(browser: Browser, address: str = "") -> Findings:
    """Return what axe finds serious on the whole page: the rule, and the element that breaks it."""
    if address:
        browser.get(address)
    axe = _axe(browser)
    axe.inject()
    report = axe.run()
    assert len(report["passes"]) > 10
    return {
        (item["id"], node["html"][:200])
        for item in report["violations"]
        if item["impact"] in {"serious", "critical"}
        for node in item["nodes"]
    }


@pytest.mark.parametrize(
    ("width", "scheme"), [(1400, "light"), (390, "dark"), *([(1400, "dark"), (390, "light")] if LONG else [])]
)
def test_pages__have_no_serious_barrier(operator: Browser, site: str, scheme: str, width: int) -> None:
    """axe finds nothing serious on any page, in light and dark, wide and narrow, empty and full, but what Django's index has."""
    operator.sets(scheme=scheme, width=width)
    found = {path: look(operator, site + path) for path in (CIRCUITS, OVERVIEW, RUNS)}
    for name in ("payments", "forced", "off", "calm"):
        breaker = tripped(name, failures=5 if name == "payments" else 1)
        if name == "forced":
            breaker.open(900, "drill")
        if name == "off":
            breaker.disable(reason="drill")
    runs = [
        run_of(f"run-{status}", status=status) for status in ("running", "failed", "paused", "finished", "queued", "cancelled")
    ]

    found |= {f"{path} (full)": look(operator, site + path) for path in pages_of(runs[0])}
    operator.get(f"{site}{CIRCUITS}payments/change/")
    press(operator, 'button[value="open"]')
    until(operator, lambda: operator.find_element("name", "ticket"))
    found["confirmation"] = look(operator)
    of_django = look(operator, f"{site}/admin/")

    assert {path: problems - of_django for path, problems in found.items() if problems - of_django} == {}
