from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.project.processes_of_demo import processes_of
from tests.servers import free_port, wait_until

ROOT = Path(__file__).parent.parent.parent


def environment(folder: Path) -> dict[str, str]:
    """A newcomer's environment: nothing is configured but a proxy, and nothing of this test session leaks in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "PYTEST", "TEST_", "RESILIENCE"))}
    return {**kept, "DEMO_VAR": str(folder), "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}


def test_demo__keeps_every_promise_without_any_setting(tmp_path: Path) -> None:
    """On a machine where nothing is set up, every part runs, every promise is kept and no process is left."""
    report = tmp_path / "report.json"
    command = [sys.executable, "manage.py", "demo", "--quick", "--json", str(report)]

    result = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path / "var"), capture_output=True, text=True, timeout=280, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(report.read_text())
    assert figures["ok"]
    assert [promise["promise"] for promise in figures["promises"] if not promise["kept"]] == []
    assert figures["figures"]["bulk insert"] == {"rows_stored": 1797, "rows_refused": 6}
    assert figures["figures"]["training"]["kills_survived"] == 2
    assert figures["figures"]["training"]["test_accuracy"] >= 0.93
    assert processes_of(tmp_path / "var") == []


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background"])
def test_demo__leaves_nothing_behind_on_ctrl_c(ignored: bool, tmp_path: Path) -> None:
    """Interrupted while its children work, the demo ends them all before it ends; also as a script's background job."""
    # Shells without job control start background jobs with SIGINT ignored, and so may this test have been started.
    disposition = signal.SIG_IGN if ignored else signal.SIG_DFL
    folder = tmp_path / "var"
    with (tmp_path / "output").open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "manage.py", "demo"],
            cwd=ROOT,
            env=environment(folder),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, disposition),  # noqa: PLW1509  # touches nothing that threads share
        )
    try:
        wait_until(lambda: len(processes_of(folder)) >= 3 or demo.poll() is not None, 120, "no child was started")
        demo.send_signal(signal.SIGINT)
        code = demo.wait(60)
    finally:
        demo.kill()
        demo.wait(10)

    said = (tmp_path / "output").read_text()
    assert code == 130, said
    assert "Traceback" not in said, said
    wait_until(lambda: processes_of(folder) == [], 10, lambda: f"still there: {processes_of(folder)}")


def test_demo_serve__shows_the_pages_to_the_user_it_made(tmp_path: Path) -> None:
    """The printed password opens the admin, circuits and runs are alive, and everything ends with the server."""
    folder, port = tmp_path / "var", free_port()
    with (tmp_path / "output").open("wb") as output:
        command = [sys.executable, "-u", "manage.py", "demo_serve", "--port", str(port)]
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment(folder), stdout=output, stderr=output, start_new_session=True
        )
    url, session = f"http://127.0.0.1:{port}", requests.Session()

    def page(path: str) -> str:
        try:
            response = session.get(url + path, timeout=10)
        except requests.ConnectionError:
            return ""
        return response.text if response.ok else ""

    try:
        said = (tmp_path / "output").read_text
        wait_until(lambda: "Ctrl-C" in said(), 90, said)
        assert "django-resilience demo" in page("/")
        password = re.search(r"password (\S+) \(shown only now\)", said())
        assert password, said()
        page("/admin/login/")
        login = {"username": "admin", "password": password[1], "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        session.post(f"{url}/admin/login/", data=login, timeout=10)
        wait_until(lambda: "labelling" in page("/admin/resilience/circuit/"), 60, "the circuit is not on its page")
        wait_until(lambda: "digits:live-" in page("/admin/resilience/run/"), 60, "the run is not on its page")
        for status, name in (("paused", "digits:on-hold"), ("failed", "labels:scikit-learn")):
            address = f"/admin/resilience/run/?status={status}"
            wait_until(lambda address=address, name=name: name in page(address), 90, f"no run is {status}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)

    wait_until(lambda: processes_of(folder) == [], 10, lambda: f"still there: {processes_of(folder)}")


def test_demo_serve__names_a_port_that_is_taken(tmp_path: Path) -> None:
    """Where somebody else serves already, nothing is started, and the error tells how to choose another port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "manage.py", "demo_serve", "--port", str(port)]
        served = subprocess.run(
            command, cwd=ROOT, env=environment(tmp_path / "var"), capture_output=True, text=True, timeout=120, check=False
        )

    assert served.returncode == 1
    assert (
        served.stderr.strip() == f'CommandError: Port {port} is taken. Choose another: make demo-serve ARGS="--port {port + 1}"'
    )
    assert processes_of(tmp_path / "var") == []
