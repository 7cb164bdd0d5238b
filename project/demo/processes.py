"""Child processes of the demo: each in a group of its own, none of which outlives the demo.

Ctrl-C is noted when it comes and obeyed at the next safe place. An exception raised wherever the main process happens
to be could lose a child between its start and the note of it, leave a lock taken, or be swallowed by a library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

__all__ = ["Family", "free_port"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE = 10.0
#: Seconds between two looks at whether somebody asked for the end.
_LOOK = 0.05
#: Ctrl-C, a polite kill, and a terminal that was closed.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Family:
    """Starts processes, listens to them, and ends every one of them when the block is left.

    Inside the block, signals that ask for the end raise nothing by themselves: `heed`, which every method of the
    main process calls, raises `KeyboardInterrupt` if there was one. They count although the demo was started with
    SIGINT ignored, as a shell without job control does in the background. Use it in the main thread.
    """

    def __init__(self, log: Path) -> None:
        self._log_path = log
        self._children: list[subprocess.Popen[str]] = []
        self._handlers: dict[int, Any] = {}
        self._asked_to_end = False

    def __enter__(self) -> Self:
        for number in _ENDINGS:
            # None stands for a handler that is not Python's own, which could not be put back.
            self._handlers[number] = signal.signal(number, self._note) or signal.SIG_DFL
        self._log = self._log_path.open("ab")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for child in self._children:
            self.kill(child)
        self._log.close()
        for number, handler in self._handlers.items():
            # A second Ctrl-C must not cut off what is said and done on the way out.
            signal.signal(number, signal.SIG_IGN if self._asked_to_end else handler)
        self.heed()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_end = True

    def heed(self) -> None:
        """Leave if somebody asked for the end.

        Raises:
            KeyboardInterrupt: By Ctrl-C, SIGTERM or SIGHUP.
        """
        if self._asked_to_end:
            raise KeyboardInterrupt

    def rest(self, seconds: float) -> None:
        """Sleep, but not past a Ctrl-C.

        Raises:
            KeyboardInterrupt: Somebody asked for the end.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.heed()
            time.sleep(min(_LOOK, left))
        self.heed()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python process of this project; what it prints can be read line by line."""
        self.heed()
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
        child.terminate()
        until = time.monotonic() + _PATIENCE
        while child.poll() is None and time.monotonic() < until:
            self.rest(_LOOK)
        self.kill(child)

    def kill(self, child: subprocess.Popen[str]) -> None:
        """End a process and all its own children at once, as `kill -9` does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None and not child.stdout.closed:
            child.stdout.close()

    def listen(
        self, children: Iterable[subprocess.Popen[str]], receive: Callable[[dict[str, Any]], None]
    ) -> list[threading.Thread]:
        """Hand every JSON line of all children to `receive`, one at a time; return the threads that do so."""
        lock = threading.Lock()

        def follow(child: subprocess.Popen[str]) -> None:
            for line in lines(child):
                with lock:
                    receive(json.loads(line))

        threads = [threading.Thread(target=follow, args=(child,), daemon=True) for child in children]
        for thread in threads:
            thread.start()
        return threads

    def gather(self, children: list[subprocess.Popen[str]], receive: Callable[[dict[str, Any]], None]) -> None:
        """Listen to all children until they have ended.

        Raises:
            RuntimeError: A child ended with an error; what it said is in the log.
        """
        threads = self.listen(children, receive)
        while any(thread.is_alive() for thread in threads) or any(child.poll() is None for child in children):
            self.rest(_LOOK)
        self.blame(children)

    def blame(self, children: Iterable[subprocess.Popen[str]]) -> None:
        """Fail if a child has ended with an error.

        Raises:
            RuntimeError: One has; what it said is in the log.
        """
        if codes := [code for child in children if (code := child.poll())]:
            raise RuntimeError(f"{len(codes)} processes of the demo failed (exit codes {codes}). Read {self._log_path}.")


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a process prints until it ends or is killed."""
    assert child.stdout is not None
    try:
        yield from child.stdout
    except ValueError:
        # The pipe was closed under us: the process was killed.
        return
