"""A live admin site under a strict Content-Security-Policy, and the Chromium that visits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django
import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.test.testcases import LiveServerThread
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from resilience import Checkpoint, CircuitBreaker, Run, get_all_circuit_breaker_stats
from resilience.circuits.registry import forget_circuits
from tests.servers import find_program

_CONST = "default-src 'none'; connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "

CIRCUITS, OVERVIEW, RUNS = "/admin/resilience/circuit/", "/admin/resilience/circuit/overview/", "/admin/resilience/run/"
EVIL = "<img src=x onerror=alert(1)>\"'"

NONCES = django.VERSION >= (6, 1)


def self_only(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Allow what this site serves and nothing inline; the strictest that Django 5.2 and 6.0 admins live with."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = _CONST + "script-src 'self'; style-src 'self'"
        return response

    return respond


def _policy() -> dict[str, Any]:
    """Return the settings of the strictest policy that this Django's own admin keeps."""
    from django.conf import settings

    if not NONCES:
        return {"MIDDLEWARE": [f"{__name__}.self_only", *settings.MIDDLEWARE]}
    from django.utils.csp import CSP

    templates = [{**settings.TEMPLATES[0], "OPTIONS": {**settings.TEMPLATES[0]["OPTIONS"]}}]
    processors = [*templates[0]["OPTIONS"]["context_processors"], "django.template.context_processors.csp"]
    templates[0]["OPTIONS"]["context_processors"] = processors
    return {
        "MIDDLEWARE": ["django.middleware.csp.ContentSecurityPolicyMiddleware", *settings.MIDDLEWARE],
        "TEMPLATES": templates,
        "SECURE_CSP": {
            "default-src": [CSP.NONE],
            "script-src": [CSP.NONCE, CSP.STRICT_DYNAMIC],
            "style-src": [CSP.SELF, CSP.NONCE],
            "connect-src": [CSP.SELF],
            "img-src": [CSP.SELF],
            "form-action": [CSP.SELF],
            "base-uri": [CSP.NONE],
            "frame-ancestors": [CSP.NONE],
        },
    }


@contextmanager
def live_site(**overrides: Any) -> Iterator[str]:
    """Serve this project on a free port, on the test's own database; gives the address."""
    connection = connections["default"]
    with override_settings(**_policy(), **overrides):
        shared = {"default": connection} if connection.vendor == "sqlite" else {}
        if shared:
            # For good: threads of connections that Chromium keeps open close it after the server has stopped.
            connection.inc_thread_sharing()
        thread = LiveServerThread("127.0.0.1", StaticFilesHandler, connections_override=shared)
        thread.daemon = True
        thread.start()
        thread.is_ready.wait(30)
        assert thread.error is None, thread.error
        try:
            yield f"http://127.0.0.1:{thread.port}"
        finally:
            thread.terminate()


class Browser(webdriver.Chrome):
    """Headless Chromium with the few moves that the tests make."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = find_program("chromium", "chromium", "chromium")
        for flag in (
            "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking",
            "--disable-component-update", "--disable-default-apps", "--disable-sync", "--no-first-run",
            "--window-size=1400,1000",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        super().__init__(options=options, service=Service(find_program("chromium", "chromium-driver", "chromedriver")))
        self.set_script_timeout(60)

    def sign_in(self, site: str, client: Client) -> None:
        """Take over a signed-in test client's session."""
        self.get(f"{site}/static/resilience/dashboard.css")
        self.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value, "path": "/"})

    def sets(self, *, scheme: str = "light", width: int = 1400, contrast: str = "none", script: bool = True) -> None:
        """Set what the reader's machine says about itself."""
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "forced-colors", "value": contrast}]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})

    def complaints(self) -> list[str]:
        """Return what the console has said since the last time, apart from the missing favourite icon."""
        return [entry["message"] for entry in self.get_log("browser") if "favicon" not in entry["message"]]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the module; each test starts without cookies."""
    browser = Browser()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The browser as a fresh reader has it: light, wide, scripts on."""
    chromium.sets()
    chromium.get("about:blank")
    chromium.delete_all_cookies()
    return chromium


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a live site whose cache is this process's."""
    forget_circuits()
    with live_site() as address:
        yield address


def client_of(*permissions: str, name: str = "anna") -> Client:
    """Return a client signed in as a member of staff with these permissions."""
    user = User.objects.create_user(name, password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="resilience", codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator(browser: Browser, site: str) -> Browser:
    """The browser, signed in as somebody who may do everything on the pages."""
    browser.sign_in(site, client_of("view_circuit", "operate_circuit", "view_run", "operate_run"))
    browser.execute_script("localStorage.clear()")
    return browser


def tripped(name: str, failures: int = 5) -> CircuitBreaker:
    """Return a circuit that has failed so many times; five open it."""
    breaker = CircuitBreaker(name, failure_threshold=5, sync_interval=0)
    for _ in range(failures):
        with pytest.raises(ConnectionError), breaker:
            raise ConnectionError("https://bob:hunter2@api.example/ refused")
    return breaker


def run_of(key: str, **fields: Any) -> Run:
    """Return a run with five checkpoints."""
    run = Run.objects.create(key=key, **{"status": "running", "current": 10, "total": 100, "rate": 2.0, **fields})
    for number in range(1, 6):
        Checkpoint.objects.create(
            run=run, sequence=number, step=number, format="json", size=10, sha256="0" * 64, metrics={"loss": 1 / number}
        )
    return run


def state_of(name: str) -> str:
    """Return the state of a circuit as the fleet sees it."""
    return str(get_all_circuit_breaker_stats([name])[name]["state"])


def until(browser: Browser, condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a condition holds; the page may be loading meanwhile."""
    WebDriverWait(browser, seconds, 0.1, ignored_exceptions=[Exception]).until(lambda _: condition())


def press(browser: Browser, selector: str) -> None:
    """Click what a page that is just loading will have, and that polling may replace until it is clicked."""

    def click() -> bool:
        browser.find_element(By.CSS_SELECTOR, selector).click()
        return True

    until(browser, click)


def address_behind(browser: Browser, selector: str) -> str:
    """Return where a link leads; in one step, because polling may replace it."""
    return browser.execute_script("return document.querySelector(arguments[0]).href", selector)


def select_row(browser: Browser) -> None:
    """Select the first row; polling may replace it at any moment until it is."""

    def box() -> WebElement:
        return browser.find_element(By.CSS_SELECTOR, "td.rs-check input")

    until(browser, lambda: box().is_selected() or (box().click(), box().is_selected())[1])


def pages_of(run: Run) -> list[str]:
    """Return the addresses of all pages."""
    return [CIRCUITS, f"{CIRCUITS}payments/change/", OVERVIEW, RUNS, f"{RUNS}{run.pk}/change/"]


def poll_every(browser: Browser, seconds: str) -> None:
    """Choose how often the page updates itself."""
    Select(browser.find_element(By.CSS_SELECTOR, "[data-rs-interval]")).select_by_value(seconds)
    browser.execute_script("document.activeElement.blur()")
