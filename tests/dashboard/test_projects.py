"""Projects that are put together differently: no admin, no Celery, another admin theme. Each is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import sys, types
from django.conf import settings
{before}
urls = types.ModuleType("project_urls")
sys.modules["project_urls"] = urls
settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], USE_TZ=True, ROOT_URLCONF="project_urls", STATIC_URL="/static/",
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware"]
               if {has_admin} else [],
    TEMPLATES=[{{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {{"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages"]}}}}],
)
import django
django.setup()
from django.core.management import call_command
from django.urls import include, path
urls.urlpatterns = [path("health/", include("resilience.urls"))]
if {has_admin}:
    from django.contrib import admin
    urls.urlpatterns.append(path("admin/", admin.site.urls))
call_command("check", verbosity=0)
call_command("migrate", verbosity=0)
from django.test import Client
from resilience import CircuitBreaker
breaker = CircuitBreaker("payments", failure_threshold=1, sync_interval=0)
breaker.open(60, reason="drill")
assert Client().get("/health/ready/").status_code == 200
call_command("resilience_circuits", "list")
call_command("resilience_runs", "list")
{after}
"""

_PAGES = """
from django.contrib.auth.models import User
client = Client()
client.force_login(User.objects.create_superuser("anna", password="x"))
for page in ("circuit/", "circuit/payments/change/", "circuit/overview/", "run/"):
    answer = client.get("/admin/resilience/" + page)
    assert answer.status_code == 200, (page, answer.status_code)
    assert "resilience/dashboard.css" in answer.text, page
    assert "payments" in answer.text or page == "run/", page
asked = client.post("/admin/resilience/circuit/operate/", {"action": "reset", "circuit": "payments"})
assert "rs-confirm" in asked.text
"""

_ADMIN = ["django.contrib.admin", "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles"]
_CORE = ["django.contrib.auth", "django.contrib.contenttypes", "resilience"]
_WITHOUT_CELERY = 'for name in ("celery", "kombu"):\n    sys.modules[name] = None'


def _run(before: str, apps: list[str], after: str) -> subprocess.CompletedProcess[str]:
    code = _CODE.format(before=before, apps=apps, has_admin="django.contrib.admin" in apps, after=after)
    environment = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("before", "apps", "after"),
    [
        pytest.param(_WITHOUT_CELERY, _CORE, "", id="neither admin nor Celery"),
        pytest.param(_WITHOUT_CELERY, [*_ADMIN, *_CORE], _PAGES, id="admin without Celery"),
        pytest.param("", ["unfold", *_ADMIN, *_CORE], _PAGES, id="django-unfold"),
    ],
)
def test_project__works_with_what_it_has(before: str, apps: list[str], after: str) -> None:
    """Checks, migrations, commands and the health endpoint work, and the pages where there is an admin."""
    done = _run(before, apps, after)

    assert done.returncode == 0, done.stderr[-3000:]
    assert "payments" in done.stdout
