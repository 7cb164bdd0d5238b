"""Prometheus' numbers over two gunicorn workers and a Celery worker at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import Redis, free_port, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
SEND = """
from tests.real.observability_site import app, train, work_task
for number in range({tasks}):
    work_task.delay()
for number in range({runs}):
    train.delay(number)
"""
TASKS, RUNS, STEPS = 12, 4, 3


@pytest.fixture
def environment(redis_server: Redis, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "metrics").mkdir()
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
        "PYTHONPATH": str(ROOT),
        "TEST_CACHE_URL": redis_server.url,
        "TEST_DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "TEST_SITE_FOLDER": str(tmp_path),
    }


@contextmanager
def process(folder: Path, environment: dict[str, str], *command: str) -> Iterator[Path]:
    """Run a Python module until the block ends; gives the file with what it says."""
    said = folder / f"{command[0]}.log"
    with said.open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
    try:
        yield said
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the exposition with Prometheus' own parser, and see that no series stands there twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=10).text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def total(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], metric: str, **labels: str) -> float:
    return sum(value for (name, given), value in found.items() if name == metric and labels.items() <= dict(given).items())


def test_numbers__add_up_over_web_and_task_workers(environment: dict[str, str], tmp_path: Path) -> None:
    """Each scrape, whoever answers, is the sum of all processes; and what an ended one counted is not lost."""
    django = [sys.executable, "-m", "django"]
    subprocess.run([*django, "migrate", "--run-syncdb", "--verbosity=0"], env=environment, cwd=ROOT, check=True, timeout=60)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    site = "tests.real.observability_site"
    with process(
        tmp_path, environment, "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", f"{site}:application"
    ) as web:
        with process(
            tmp_path, environment, "celery", "-A", site, "worker", "-c", "2", "--without-gossip", "--without-mingle"
        ) as worker:
            wait_until(lambda: answers(url), 60, web.read_text)
            sent, pids = call_both_workers(url)
            send = SEND.format(tasks=TASKS, runs=RUNS)
            subprocess.run([sys.executable, "-c", send], env=environment, cwd=ROOT, check=True, timeout=60)
            wait_until(lambda: len(list(tmp_path.glob("worked-*"))) == TASKS, 60, worker.read_text)
            wait_until(lambda: scrape(url)["resilience_runs", (("status", "finished"),)] == RUNS, 60, worker.read_text)
            scrapes = [scrape(url) for _ in range(4)]
        scrapes.append(scrape(url))

    assert len(pids) == 2
    calls = sent + TASKS
    for found in scrapes:
        assert total(found, "resilience_retry_attempts_total", kind="connection") == calls
        assert total(found, "resilience_retry_recoveries_total") == calls
        assert total(found, "resilience_circuit_calls_total", circuit="upstream", outcome="success") == calls
        assert total(found, "resilience_circuit_calls_total", circuit="upstream", outcome="failure") == calls
        assert total(found, "resilience_circuit_state", circuit="upstream", state="closed") == 1
        assert total(found, "resilience_run_starts_total", outcome="fresh") == RUNS
        assert total(found, "resilience_run_duration_seconds_count") == RUNS
        assert total(found, "resilience_checkpoint_size_bytes_count") == RUNS * STEPS
        assert total(found, "resilience_scrape_errors") == 0


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/metrics", timeout=30).ok
    except requests.ConnectionError:
        return False


def call_both_workers(url: str) -> tuple[int, set[str]]:
    """Call until each of gunicorn's workers has answered, and at least ten times; tell how often, and who did."""
    pids: set[str] = set()
    sent = 0
    with ExitStack() as stack:
        while (len(pids) < 2 or sent < 10) and sent < 500:
            session = stack.enter_context(requests.Session())
            pids.add(session.get(f"{url}/work", timeout=30).text)
            sent += 1
    return sent, pids
