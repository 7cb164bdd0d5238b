"""Celery's own exceptions and long waits, in a real prefork worker over a broker of files, with every message counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 60.0
SEND = """
import sys
from tests.real.calls_celery_app import app
for number, line in enumerate(sys.stdin.read().splitlines()):
    wrapper, _, what = line.partition("|")
    app.send_task(wrapper, args=[wrapper, what] if what else [], task_id=line)
"""
WRAPPERS = ["retry", "fallback", "timeout", "policy", "retry_in_task"]


class Worker:
    """A Celery worker process of its own in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.environ = {
            **os.environ,
            "TEST_CELERY_FOLDER": str(folder),
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        self.output = (folder / "output").open("w+")

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "celery", "-A", "tests.real.calls_celery_app", "worker", "-c", "2", "-P", "prefork"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.environ, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()

    def send(self, *calls: str) -> None:
        subprocess.run([sys.executable, "-c", SEND], input="\n".join(calls), text=True, cwd=ROOT, env=self.environ, check=True)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_until(self, condition) -> Counter[str]:
        """Wait until the counted lines satisfy `condition`, and a moment longer for what should not come."""
        limit = time.monotonic() + LIMIT
        while not condition(Counter(self.lines())):
            assert time.monotonic() < limit, (self.lines(), self.output.name, Path(self.output.name).read_text()[-3000:])
            time.sleep(0.1)
        time.sleep(1.5)
        return Counter(self.lines())


@pytest.fixture
def worker(tmp_path):
    with Worker(tmp_path) as worker:
        yield worker


def test_celery__its_exceptions_pass_through_every_wrapper_untouched(worker):
    """Retry publishes exactly one message; Ignore, Reject and the soft time limit end the task after one run."""
    calls = [f"{wrapper}|{what}" for wrapper in WRAPPERS for what in ("retry", "ignore", "reject", "soft limit")]
    expected = Counter()
    for call in calls:
        retried = call.endswith("|retry")
        expected[f"published {call}"] = expected[f"ran {call}"] = 2 if retried else 1
        if retried:
            expected[f"returned {call}"] = 1

    worker.send(*calls)
    counted = worker.wait_until(lambda lines: all(lines[line] >= number for line, number in expected.items()))

    assert counted == expected


def test_celery__system_exit_passes_through_every_wrapper(worker):
    """A task that exits its process is run once, whatever is wrapped around it."""
    calls = [f"{wrapper}|exit" for wrapper in WRAPPERS]

    worker.send(*calls)
    counted = worker.wait_until(lambda lines: all(lines[f"ran {call}"] for call in calls))

    assert all(counted[f"ran {call}"] == counted[f"published {call}"] == 1 for call in calls)


def test_celery__long_waits_go_through_the_broker(worker):
    """Short waits are slept, long ones become messages, and max_attempts counts the calls of all deliveries."""
    worker.send("long waits")
    counted = worker.wait_until(lambda lines: lines["ran long waits 3"])

    assert counted == {
        "published long waits": 3,
        "ran long waits 0": 2,  # the first wait of 0.2 s is slept, the second of 0.4 s is not
        "ran long waits 2": 1,
        "ran long waits 3": 1,
    }
