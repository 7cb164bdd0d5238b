"""One circuit shared by all children of two real Celery workers, while its service dies and recovers and its cache is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Redis, wait_until

ROOT = Path(__file__).resolve().parents[2]
INTERVAL, RECOVERY = 0.3, 1.5
#: What a loaded machine may add to any of the times.
SLACK = 1.5
CIRCUIT = {
    "failure_threshold": 5,
    "recovery_timeout": RECOVERY,
    "half_open_timeout": 10,
    "success_threshold": 2,
    "sync_interval": INTERVAL,
}
WORKERS, CHILDREN = 2, 4


class Workers:
    """Two prefork workers of four children each, all of them calling the service."""

    def __init__(self, folder: Path, ledger: Redis, cache: Redis) -> None:
        import redis

        self.cache = cache
        self.ledger = redis.Redis(port=ledger.port, decode_responses=True)
        circuit = json.dumps(CIRCUIT)
        environ = {
            **os.environ,
            "TEST_LEDGER": ledger.url,
            "TEST_CACHE": cache.url,
            "TEST_CIRCUIT": circuit,
            "PYTHONPATH": str(ROOT),
        }
        self.output = (folder / "output").open("w+")
        self.processes = []
        for number in range(WORKERS):
            command = [sys.executable, "-m", "celery", "-A", "tests.real.circuits_celery_app", "worker", "-P", "prefork"]
            command += ["-c", str(CHILDREN), "-Q", f"queue-{number}", "-n", f"worker-{number}@localhost"]
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            self.processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environ, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        send = "from tests.real.circuits_celery_app import traffic\n" + "".join(
            f"traffic.apply_async(queue='queue-{number}')\n" for number in range(WORKERS) for _ in range(CHILDREN)
        )
        subprocess.run([sys.executable, "-c", send], cwd=ROOT, env=environ, check=True)
        self.wait(lambda: len(self.latest()) == WORKERS * CHILDREN, 60, "every child calls")

    def wait(self, condition: Any, seconds: float, what: str) -> None:
        wait_until(
            condition, seconds, lambda: f"{what}: {self.latest()}, {self.events()}, {Path(self.output.name).read_text()[-2000:]}"
        )

    def latest(self) -> dict[str, str]:
        return self.ledger.hgetall("latest")

    def events(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.ledger.lrange("events", 0, -1)]

    def changes(self) -> list[tuple[str, str]]:
        return [(old, new) for _, old, new, _ in self.events()]

    def all_children(self, outcome: str) -> bool:
        return set(self.latest().values()) == {outcome}

    def calls_since(self, count: int) -> list[list[Any]]:
        return [json.loads(line) for line in self.ledger.lrange("calls", count, -1)]

    def close(self) -> None:
        self.ledger.set("stop", 1)
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self.ledger.close()
        self.output.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with Redis() as ledger, Redis() as cache:
        workers = Workers(tmp_path, ledger, cache)
        try:
            yield workers
        finally:
            workers.close()


@pytest.mark.chaos
def test_celery__dead_service_opens_once_is_probed_by_one_and_closes_everywhere(workers: Workers) -> None:
    """Eight children: one opening, one probe at a time, and all call again soon after the service is back."""
    workers.ledger.set("down", 1)
    workers.wait(lambda: workers.changes() == [("closed", "open")], 20, "the circuit opens")
    workers.wait(lambda: workers.all_children("refused"), INTERVAL + SLACK, "everybody refuses")
    began, known = time.monotonic(), workers.ledger.llen("calls")
    time.sleep(3 * RECOVERY)
    elapsed = time.monotonic() - began

    probes = workers.calls_since(known)
    assert 1 <= len(probes) <= elapsed / RECOVERY + 1
    workers.ledger.delete("down")
    back = time.monotonic()
    workers.wait(lambda: workers.all_children("fine"), RECOVERY + 2 * INTERVAL + SLACK, "everybody calls again")

    closed_after = time.monotonic() - back
    assert closed_after < RECOVERY + 2 * INTERVAL + SLACK
    closed_at = workers.events()[-1][-1]
    assert {running for at, _, running in workers.calls_since(known) if at < closed_at} == {1}
    assert workers.changes().count(("closed", "open")) == workers.changes().count(("half_open", "closed")) == 1
    assert max(Counter(generation for generation, *_ in workers.events()).values()) == 1
    assert set(workers.ledger.hgetall("outcomes")) == {"fine", "failed", "refused"}


@pytest.mark.chaos
@pytest.mark.parametrize("loss", ["flush", "kill"])
def test_celery__a_cache_lost_while_open_changes_nothing_for_the_children(workers: Workers, loss: str) -> None:
    """Emptied or killed and restarted while the circuit is open: no second opening, no error, and it closes in the end."""
    workers.ledger.set("down", 1)
    workers.wait(lambda: workers.changes() == [("closed", "open")], 20, "the circuit opens")
    workers.wait(lambda: workers.all_children("refused"), INTERVAL + SLACK, "everybody refuses")
    if loss == "kill":
        workers.cache.restart()
    else:
        import redis

        with redis.Redis(port=workers.cache.port) as client:
            client.flushall()
    time.sleep(2 * RECOVERY)
    assert workers.changes().count(("closed", "open")) == 1
    workers.ledger.delete("down")

    workers.wait(lambda: workers.all_children("fine"), RECOVERY + 2 * INTERVAL + 1 + SLACK, "everybody calls again")

    assert workers.changes().count(("closed", "open")) == 1
    assert set(workers.ledger.hgetall("outcomes")) == {"fine", "failed", "refused"}
