"""Celery workers and sweepers as processes that tests may kill, freeze and end politely."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.servers import wait_until

LIMIT = float(os.environ.get("RUNS_LIMIT", "60"))
_SWEEPER = (
    "import tests.real.runs_app; from django.core.management import call_command; call_command('resilience_sweep', every=0.1)"
)


class Fleet:
    """Workers and a sweeper over one broker and one database, with a folder for what they leave behind.

    Args:
        folder: An empty folder.
        database: URL of a migrated database.
        broker: URL of the broker; "filesystem" for folders.
        variables: More environment.
    """

    def __init__(self, folder: Path, database: str, broker: str, **variables: object) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        transport: dict[str, object] = {}
        if broker == "filesystem":
            (folder / "queue").mkdir()
            (folder / "control").mkdir()
            broker = "filesystem://"
            places = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
            transport = {name: str(folder / place) for name, place in places.items()}
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_URL": database,
            "TEST_BROKER_URL": broker,
            "TEST_MEDIA_ROOT": str(folder / "media"),
            "RUNS_FOLDER": str(folder),
            "RUNS_TRANSPORT": json.dumps(transport),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **{name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()},
        }

    def migrate(self) -> None:
        """Make the tables."""
        self.python("from django.core.management import call_command; call_command('migrate', run_syncdb=True, verbosity=0)")

    def python(self, code: str) -> str:
        """Run code in a process of its own with the app loaded; return what it prints."""
        command = [sys.executable, "-c", f"import tests.real.runs_app\n{code}"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def call(self, task: str, *args: object) -> None:
        """Call a task as a web process would."""
        self.python(f"tests.real.runs_app.{task}.delay(*{args!r})")

    def app_sends(self, task: str, *args: object) -> None:
        """Send a bare copy of a task's message, past the row that owns the run."""
        from celery import Celery

        with Celery(broker=self.environment["TEST_BROKER_URL"], set_as_current=False) as app:
            app.send_task(f"tests.real.runs_app.{task}", args)

    def worker(self, *options: str, wait: bool = True, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready unless told not to."""
        name = f"w{len(self.processes)}"
        pool = options if "--pool" in options else ("--pool", "prefork", *options)
        pool = pool if "-c" in options else ("-c", "1", *pool)
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        command = [sys.executable, "-m", "celery", "-A", "tests.real.runs_app", "worker", "-n", name, "-l", "INFO"]
        log = self.folder / f"{name}.log"
        process = self._start([*command, *quiet, *pool], log, variables)
        if wait:
            self.wait_ready(process, log)
        return process

    def wait_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until a worker takes messages."""
        wait_until(lambda: b" ready." in log.read_bytes() or process.poll() is not None, LIMIT, log.read_text)
        assert process.poll() is None, log.read_text()

    def sweeper(self) -> subprocess.Popen[bytes]:
        """Start `manage.py resilience_sweep` with a short interval."""
        return self._start([sys.executable, "-c", _SWEEPER], self.folder / f"sweeper{len(self.processes)}.log", {})

    def _start(self, command: list[str], log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            environment = {**self.environment, **variables}
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        self.processes.append(process)
        return process

    def lines(self) -> list[list[str]]:
        """The lines of the log so far, split into words."""
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def steps(self) -> Counter[int]:
        """How often each step began."""
        return Counter(int(words[2]) for words in self.lines() if words[0] == "step")

    def logs(self) -> str:
        """The ends of all logs, for the message of a failure."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End everything that was started here."""
        for process in self.processes:
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
            process.wait(LIMIT)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of a worker's pool."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[1]) == process.pid and words[0] != "Z":
                found.append(int(entry.name))
    return found
