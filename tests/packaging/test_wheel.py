from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest

ROOT = Path(__file__).parent.parent.parent

USE = """
import django
from django.conf import settings
django.setup()
from django.test import Client
from django.contrib.auth import get_user_model
from resilience import circuit_breaker, retry

@retry(max_attempts=2, delay=0)
@circuit_breaker("payments")
def pay():
    return "paid"

assert pay() == "paid"
settings.ALLOWED_HOSTS.append("testserver")
get_user_model().objects.create_superuser("admin", password="secret")
client = Client()
assert client.login(username="admin", password="secret")
page = client.get("/admin/resilience/circuit/")
assert page.status_code == 200, page
assert b"payments" in page.content
assert client.get("/admin/resilience/run/").status_code == 200
import sys
assert "celery" not in sys.modules
print("works")
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command outside this project's environment; fail with what it said."""
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "DJANGO", "COVERAGE", "RESILIENCE", "TEST_"))
    }
    result = subprocess.run(
        command, cwd=cwd, env={**variables, **environment}, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    return next(folder.glob("*.whl"))


def test_wheel__works_in_a_foreign_project_without_celery(wheel: Path, tmp_path: Path) -> None:
    """Installed in an empty environment, the app checks, migrates, shows its pages and decorates functions."""
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv/bin/python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel), f"django=={django.__version__}", cwd=tmp_path)
    run(python, "-m", "django", "startproject", "shop", ".", cwd=tmp_path)
    settings = tmp_path / "shop/settings.py"
    settings.write_text(settings.read_text().replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "resilience",'))

    run(python, "-W", "error", "manage.py", "check", cwd=tmp_path)
    run(python, "manage.py", "migrate", cwd=tmp_path)
    said = run(python, "-W", "error::DeprecationWarning", "-c", USE, cwd=tmp_path, DJANGO_SETTINGS_MODULE="shop.settings")

    assert said.strip() == "works"


def test_wheel__ships_all_that_is_not_python(wheel: Path) -> None:
    """Templates, static files, compiled translations and the typing marker are in the wheel."""
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()

    assert "resilience/py.typed" in names
    for ending in (".html", ".css", ".js", ".mo"):
        assert any(name.startswith("resilience/") and name.endswith(ending) for name in names), f"no {ending} file"
    assert not [name for name in names if name.startswith(("tests/", "project/", "benchmarks/"))]
