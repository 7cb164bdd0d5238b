"""What checkpoints cost: the loop beside a bare loop, saving beside a raw write, memory beside the state.

Run `python -m benchmarks.runs [PART ...] [--json FILE] [--quick] [--check]`, with `TEST_DATABASE_URL` for another database than SQLite
on disk. Loops and writes take turns, so that a busy machine slows all of them alike; ratios are medians of pairs.
`--check` exits with 1 when a target is missed.
"""

# ruff: noqa: E402  # Django must be set up before its models are imported

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path

_DIRECTORY = tempfile.TemporaryDirectory(prefix="resilience-bench-", dir=os.environ.get("BENCH_DIRECTORY"))
os.environ.setdefault("TEST_DATABASE_URL", f"sqlite:///{_DIRECTORY.name}/db.sqlite3")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
os.environ.setdefault("TEST_MEDIA_ROOT", f"{_DIRECTORY.name}/media")

import django

django.setup()

import numpy as np
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from benchmarks.common import Figure, ending, parser_of
from resilience import open_run
from resilience.runs import files, formats
from tests.real.runs_workers import Fleet
from tests.servers import Redis, wait_until

MEGABYTE = 1024 * 1024


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def work(duration: float) -> None:
    """Compute for a while, as a training step does: sleeping would leave the processor to the checkpoints."""
    until = time.perf_counter() + duration
    while time.perf_counter() < until:
        pass


def bare_loop(steps: int, duration: float) -> None:
    for _ in range(steps):
        work(duration)


_numbers = iter(range(1_000_000))


def run_loop(steps: int, duration: float, *, saves: bool, **options: object) -> float:
    """Return the seconds of the loop; a real one is so long that beginning and ending the run do not count."""
    with open_run(f"bench:{next(_numbers)}", **options) as run:
        began = time.perf_counter()
        for step in run.steps(steps):
            work(duration)
            if saves:
                run.checkpoint({"step": step, "loss": 1 / (step + 1)})
        return time.perf_counter() - began


def overhead(steps: int, duration: float, rounds: int, *, saves: bool, **options: object) -> float:
    """Return how much longer the loop takes in a run, in percent: the median of pairs that took turns."""
    run_loop(5, 0.0, saves=saves, **options)
    ratios = []
    for _ in range(rounds):
        bare = seconds(lambda: bare_loop(steps, duration))
        ratios.append(run_loop(steps, duration, saves=saves, **options) / bare)
    return (statistics.median(ratios) - 1) * 100


def writes_per_second(steps: int) -> float:
    """Return the UPDATEs a second of a loop of 1,000 steps/s that saves nothing."""
    with CaptureQueriesContext(connection) as queries, open_run(f"bench:{next(_numbers)}") as run:
        began = time.perf_counter()
        first = len(queries)
        for _ in run.steps(steps):
            work(0.001)
        elapsed = time.perf_counter() - began
        updates = [query for query in queries.captured_queries[first:] if query["sql"].startswith("UPDATE")]
    # The first is written at once, so that people see it has begun.
    return max(0, len(updates) - 1) / elapsed


@contextmanager
def storage() -> Iterator[FileSystemStorage]:
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.name) as directory:
        yield FileSystemStorage(directory)


def raw_write(state: dict[str, np.ndarray], path: Path) -> None:
    """Write the same bytes with nothing around them: no format, no hash."""
    with path.open("wb", buffering=0) as file:
        for array in state.values():
            file.write(memoryview(array).cast("B"))
        os.fsync(file.fileno())


def arrays_of(megabytes: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {f"layer{number}": random.standard_normal(4 * MEGABYTE, "f4") for number in range(megabytes // 16)}


def throughput(megabytes: int, rounds: int) -> tuple[float, float]:
    """Return the speed of a save as a share of a raw write's, and the save's in MB/s: medians of pairs that took turns."""
    state = arrays_of(megabytes)
    ratios, speeds = [], []
    with storage() as target:
        for number in range(rounds + 1):
            path = Path(target.location) / "raw.bin"
            raw = seconds(lambda path=path: raw_write(state, path))
            path.unlink()
            name = f"{number}.zip"
            ours = seconds(lambda name=name: files.save(target, name, formats.prepare(state).write))
            target.delete(name)
            if number:  # the first pair warms up
                ratios.append(raw / ours)
                speeds.append(megabytes / ours)
    return statistics.median(ratios), statistics.median(speeds)


MEMORY = """
import resource, sys, tempfile
import benchmarks.runs as bench
from resilience.runs import files, formats
state = {str(number): bench.np.ones(16 * bench.MEGABYTE, "u1") for number in range(int(sys.argv[1]) // 16)}
with bench.storage() as target:
    files.save(target, "warm.zip", formats.prepare({"w": bench.np.ones(8 * bench.MEGABYTE, "u1")}).write)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files.save(target, "x.zip", formats.prepare(state).write)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def memory(megabytes: int) -> float:
    """Return the megabytes that a save takes above the state, in a process of its own."""
    command = [sys.executable, "-c", MEMORY, str(megabytes)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(result.stdout)


def resume(rounds: int) -> float:
    """Return the seconds from opening a small run that was stopped to its first step."""

    def stopped() -> str:
        key = f"bench:{next(_numbers)}"
        with open_run(key) as run:
            for step in run.steps(3):
                run.checkpoint({"step": step})
        return key

    def first_step(key: str) -> None:
        with open_run(key) as run:
            for _ in run.steps(10):
                return

    keys = [stopped() for _ in range(rounds)]
    return statistics.median(seconds(lambda key=key: first_step(key)) for key in keys)


def worker_resume(rounds: int) -> float:
    """Return the seconds from a real worker's being ready to the first step of a run that another one left."""
    delays = []
    with Redis() as redis, tempfile.TemporaryDirectory(dir=_DIRECTORY.name) as name:
        folder = Path(name)
        fleet = Fleet(folder, f"sqlite:///{folder}/runs.sqlite3", redis.url)
        fleet.migrate()
        fleet.call("train", 1, 100_000)
        try:
            for number in range(rounds + 1):
                before = len(fleet.lines())
                worker = fleet.worker()
                wait_until(lambda before=before: len(fleet.lines()) > before, 60, fleet.logs)
                ready = re.search(r"\[([\d-]+ [\d:]+),(\d+): [^\n]* ready\.", (folder / f"w{number}.log").read_text())
                assert ready, fleet.logs()
                at = datetime.fromisoformat(ready[1]).timestamp() + int(ready[2]) / 1000
                delays.append(float(fleet.lines()[before][-1]) - at)
                os.kill(worker.pid, signal.SIGTERM)
                worker.wait(60)
        finally:
            fleet.close()
    return statistics.median(delays[1:])  # the first one begins, the others resume


def loops(quick: bool) -> Iterator[Figure]:
    rounds = 3
    loop = 100 if quick else 1000  # 10 s, so that the run's beginning does not count
    yield Figure("loop of 10 ms steps, a commit a step", overhead(loop, 0.01, rounds, saves=True), 1.0, "%")
    yield Figure(
        "loop of 10 ms steps, a checkpoint a second", overhead(loop, 0.01, rounds, saves=True, every_seconds=1), 1.0, "%"
    )
    yield Figure(
        "loop of 1,000 steps/s, a checkpoint a second", overhead(10 * loop, 0.001, rounds, saves=True, every_seconds=1), 2.0, "%"
    )
    yield Figure("loop of 1,000 steps/s, progress only", overhead(10 * loop, 0.001, rounds, saves=False), 2.0, "%")
    yield Figure("progress writes of that loop", writes_per_second(3000), 1.0, "/s")


def states(quick: bool) -> Iterator[Figure]:
    rounds = 3 if quick else 7
    ratio, speed = throughput(64 if quick else 256, rounds)
    yield Figure("saving 256 MB of arrays beside write + fsync", ratio, 0.7, "x", at_least=True)
    yield Figure("saving 256 MB of arrays", speed, 0.0, "MB/s", at_least=True)
    yield Figure("memory above a state of 1 GB", memory(256 if quick else 1024), 64.0, "MB")


def resumes(quick: bool) -> Iterator[Figure]:
    rounds = 3 if quick else 7
    yield Figure("resume of a small run, in this process", resume(rounds), 1.0, "s")
    yield Figure("resume of a small run, worker ready to first step", worker_resume(rounds), 1.0, "s")


PARTS: dict[str, Callable[[bool], Iterator[Figure]]] = {"loops": loops, "states": states, "resumes": resumes}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    call_command("migrate", verbosity=0, run_syncdb=True)
    print(f"database: {connection.vendor}, load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    figures = []
    for figure in chain.from_iterable(PARTS[part](options.quick) for part in options.parts or PARTS):
        figures.append(figure)
        rule = ">=" if figure.at_least else "<="
        verdict = "ok" if figure.holds else "MISSED"
        print(f"{figure.name:50} {figure.measured:10.3f} {figure.unit:5} {rule} {figure.target:<6} {verdict}", flush=True)
    return ending(options, [asdict(figure) | {"holds": figure.holds} for figure in figures], figures)


if __name__ == "__main__":
    sys.exit(main())
