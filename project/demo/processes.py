"""Child processes of the demo: each in a group of its own, none of which outlives the demo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["Family", "free_port"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE = 10.0


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Family:
    """Starts processes, listens to them, and ends every one of them when the block is left."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab")
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for child in self._children:
            self.kill(child)
        self._log.close()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python process of this project; what it prints can be read line by line."""
        # One BLAS thread: the sums of matrix products are then added in one order, and bytes can be compared.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._children.append(child)
        return child

    def start_part(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        """Start `manage.py demo_part NAME ARGUMENTS`."""
        return self.start("manage.py", "demo_part", name, *map(str, arguments))

    def start_quietly(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python process of this project and throw away what it prints."""
        child = self.start(*arguments)
        threading.Thread(target=lambda: list(lines(child)), daemon=True).start()
        return child

    def start_worker(self, *more: str) -> subprocess.Popen[str]:
        """Start a Celery worker with one child process."""
        options = ["--concurrency=1", "--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        return self.start_quietly("-m", "celery", "-A", "project", "worker", *options, *more)

    def stop(self, child: subprocess.Popen[str]) -> None:
        """Ask a process to end, and end it by force if it does not."""
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE)
        self.kill(child)

    def kill(self, child: subprocess.Popen[str]) -> None:
        """End a process and all its own children at once, as `kill -9` does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None and not child.stdout.closed:
            child.stdout.close()

    def gather(self, children: list[subprocess.Popen[str]], receive: Callable[[dict[str, Any]], None]) -> None:
        """Hand every JSON line of all children to `receive`, one at a time, until all have ended.

        Raises:
            RuntimeError: A child ended with an error; what it said is in the log.
        """
        lock = threading.Lock()

        def listen(child: subprocess.Popen[str]) -> None:
            for line in lines(child):
                with lock:
                    receive(json.loads(line))

        threads = [threading.Thread(target=listen, args=(child,), daemon=True) for child in children]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if codes := [code for child in children if (code := child.wait())]:
            raise RuntimeError(f"{len(codes)} processes of the demo failed (exit codes {codes}). Read {self._log.name}.")


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a process prints until it ends or is killed."""
    assert child.stdout is not None
    try:
        yield from child.stdout
    except ValueError:
        # The pipe was closed under us: the process was killed.
        return
