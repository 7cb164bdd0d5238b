"""Circuits under gunicorn: made and used before its workers are forked (--preload), and among greenlets (gevent)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Redis, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 0.2


class Site:
    """A running gunicorn."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, outcome: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{outcome}/", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def get_many(self, outcome: str, times: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(times) as pool:
            return list(pool.map(self.get, [outcome] * times))

    def answers_of(self, workers: int, outcome: str) -> dict[int, dict[str, Any]]:
        """Ask until so many workers have answered; return the last answer of each."""
        found: dict[int, dict[str, Any]] = {}

        def all_answered() -> bool:
            found.update({answer["pid"]: answer for answer in self.get_many(outcome, 4)})
            return len(found) == workers

        wait_until(all_answered, 20, "every worker answers")
        return found


@contextmanager
def gunicorn(cache: Redis, *arguments: str, **circuit: Any) -> Iterator[Site]:
    port = free_port()
    environ = {**os.environ, "TEST_CACHE": cache.url, "TEST_CIRCUIT": json.dumps(circuit), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gunicorn", "tests.real.circuits_site:application", "-b", f"127.0.0.1:{port}", *arguments]
    command += ["--log-level", "error", "--graceful-timeout", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
    try:
        site = Site(port)
        wait_until(lambda: _answers(site), 30, "gunicorn answers")
        yield site
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _answers(site: Site) -> bool:
    try:
        return site.get("fine")["answer"] == "fine"
    except OSError:
        return False


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.mark.chaos
def test_gunicorn__preloaded_circuit_is_one_for_all_workers(redis: Redis) -> None:
    """Failures of several forked workers add up, all of them refuse in time, one tells, and all of them call again."""
    fields = {"failure_threshold": 6, "recovery_timeout": 1, "success_threshold": 1, "sync_interval": INTERVAL}

    with gunicorn(redis, "--preload", "-w", "3", **fields) as site:
        site.answers_of(3, "fine")
        answers = Counter(site.get("fail")["answer"] for _ in range(6))
        assert answers == {"failed": 6}
        time.sleep(INTERVAL + 0.2)

        refusing = site.answers_of(3, "fine")
        assert {answer["answer"] for answer in refusing.values()} == {"refused"}
        assert sum((Counter(answer["events"]) for answer in refusing.values()), Counter()) == {"open": 1}

        wait_until(lambda: {answer["answer"] for answer in site.get_many("fine", 6)} == {"fine"}, 10, "the circuit closes")
        calling = site.answers_of(3, "fine")
        assert sum((Counter(answer["events"]) for answer in calling.values()), Counter()) == {
            "open": 1,
            "half_open": 1,
            "closed": 1,
        }


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_gunicorn__greenlets_go_on_while_the_cache_is_frozen(redis: Redis) -> None:
    """One greenlet waits for the cache, no more than its time limit; the others neither wait for it nor for its lock."""
    with gunicorn(redis, "-k", "gevent", "-w", "1", failure_threshold=5, sync_interval=INTERVAL) as site:
        site.get_many("fine", 10)
        redis.freeze()
        time.sleep(INTERVAL)
        try:
            rounds = [site.get_many("fine", 20) for _ in range(10)]
            failing = site.get_many("fail", 20)
        finally:
            redis.thaw()

        seconds = [answer["seconds"] for answers in rounds for answer in answers]
        assert {answer["answer"] for answers in rounds for answer in answers} == {"fine"}
        assert max(seconds) < 2
        # Each of the ten rounds has one that waits, and a busy machine may have a slow answer besides: all would be two hundred.
        assert sum(each > 0.25 for each in seconds) <= 50
        assert {answer["answer"] for answer in failing} <= {"failed", "refused"}
        wait_until(lambda: site.get("fine")["answer"] == "refused", 10, "the circuit opened by what this process knows")
